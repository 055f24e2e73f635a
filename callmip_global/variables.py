"""The variable table: one entry per variable, read from config/variables.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Literal

import yaml

from callmip_global.data import data_path
from callmip_global.errors import Problem, UsageError

UNCERTAINTY = "_post_unc"
"""Ends the name of the uncertainty (one standard deviation) that a calibration states."""


@dataclass(frozen=True)
class Variable:
    """One CalLMIP variable, with CF metadata.

    ``units`` are those of the stores (CF form), ``upload_units`` the protocol's own string.
    ``kind``: flux (rate per area), pool (content per area), state (intensive).
    ``valid_range``: what the monthly mean of one cell may plausibly be, in ``units``.
    ``depth_m``: bounds of the soil layer the variable speaks of, where it is one. ``known_as``:
    other names it has in model output that is handed round (TRENDY and others).
    """

    name: str
    long_name: str
    units: str
    upload_units: str
    cell_methods: str
    kind: Literal["flux", "pool", "state"]
    valid_range: tuple[float, float]
    standard_name: str | None = None
    positive: Literal["up", "down"] | None = None
    comment: str | None = None
    depth_m: tuple[float, float] | None = None
    known_as: tuple[str, ...] = ()
    signed: bool = False
    requested: bool = False

    def cf_attributes(self, *, upload: bool = False) -> dict[str, str]:
        """Attributes of the variable in a store, or (``upload``) in a protocol file."""
        attributes = {
            "long_name": self.long_name,
            "standard_name": self.standard_name,
            "units": self.upload_units if upload else self.units,
            "cell_methods": self.cell_methods,
            "positive": self.positive,
            "comment": self.comment,
        }
        return {name: text for name, text in attributes.items() if text is not None}

    @property
    def is_uncertainty(self) -> bool:
        """Whether it is the stated uncertainty of another variable: a width, never negative."""
        return self.name.endswith(UNCERTAINTY)

    def uncertainty(self) -> Variable:
        """The uncertainty (one standard deviation) that a calibration states of this variable.

        Its standard name has the modifier that CF (appendix C) has for it.
        """
        low, high = self.valid_range
        standard_name = self.standard_name and f"{self.standard_name} standard_error"
        return replace(
            self,
            name=self.name + UNCERTAINTY,
            long_name=f"uncertainty (one standard deviation) of {self.long_name}",
            standard_name=standard_name,
            valid_range=(0.0, high - low),
            positive=None,
            comment=None,
            depth_m=None,
            known_as=(),
            signed=False,
            requested=False,
        )


@cache
def variable_table() -> Mapping[str, Variable]:
    """All known variables by name, the requested ones first and in the protocol's order."""
    raw = yaml.safe_load(data_path("config", "variables.yaml").read_text(encoding="utf-8"))
    table = {}
    for name, entry in raw.items():
        low, high = entry.pop("range")
        if "depth_m" in entry:
            entry["depth_m"] = tuple(entry["depth_m"])
        entry["known_as"] = tuple(entry.get("known_as", ()))
        table[name] = Variable(name=name, valid_range=(float(low), float(high)), **entry)
    return MappingProxyType(table)


def known_variable(name: str) -> Variable | None:
    """The entry of ``name`` in the table, or the stated uncertainty of one; None if neither."""
    table = variable_table()
    if name in table:
        return table[name]
    of = table.get(name.removesuffix(UNCERTAINTY))
    return None if of is None else of.uncertainty()


def with_uncertainties(names: Iterable[str]) -> tuple[str, ...]:
    """``names``, then those of their stated uncertainties in the same order."""
    names = tuple(names)
    return (*names, *(name + UNCERTAINTY for name in names))


def requested_variables() -> tuple[str, ...]:
    """Names of the variables the protocol asks for, in its order."""
    return tuple(v.name for v in variable_table().values() if v.requested)


def variable(name: str, where: str) -> Variable:
    """The entry of ``name``; UsageError that lists the known names if there is none."""
    table = variable_table()
    if name not in table:
        known = ", ".join(table)
        raise UsageError(Problem(where, name, "an unknown variable", f"one of: {known}"))
    return table[name]


@dataclass(frozen=True)
class Window:
    """What the whole Earth's land may hold or exchange, see config/plausible.yaml."""

    of: Literal["total", "mean"]
    units: str
    warn: tuple[float, float]
    fail: tuple[float, float]
    source: str


def _pair(values: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, values)
    return low, high


@cache
def windows() -> Mapping[str, Window]:
    """Plausible global totals and means by variable."""
    raw = yaml.safe_load(data_path("config", "plausible.yaml").read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            name: Window(
                entry["of"],
                entry["units"],
                _pair(entry["warn"]),
                _pair(entry["fail"]),
                entry["source"],
            )
            for name, entry in raw.items()
        }
    )
