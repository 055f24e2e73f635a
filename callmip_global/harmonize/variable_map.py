"""The variable map: how a model's own output becomes the protocol's variables.

Every variable has exactly one of three origins: a native variable (``source``), a derivation from
other variables of the map (``derive``), or the declaration that the model does not have it
(``absent``, with the reason). What is read from YAML is in ``callmip_global.config.variable_map``;
what the files themselves can add to a map is in ``callmip_global.harmonize.resolve``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from callmip_global.errors import DataError, Problem
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.derive import Expression, parse_expression
from callmip_global.units import Substance, convert_factor
from callmip_global.variables import (
    Variable,
    known_variable,
    requested_variables,
    variable_table,
    with_uncertainties,
)

Per = Literal["land", "cell"]


_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class VariableSource:
    """Where one variable comes from: exactly one of ``source``, ``derive``, ``absent``, ``refuse``.

    ``source``: native name in the files; ``names``: other names it goes by, of which the files may
    hold one instead. ``units``: native units; None takes the file's own. ``factor``, ``sign``: the
    converted values are multiplied by both; ``sign_stated``: the map says so, be it 1. ``per``: the
    native value is per m2 of land, or per m2 of the whole cell (then fluxes and pools are divided
    by the land fraction: stores always hold values per land area); None where nobody says.
    ``select``: indices along extra dimensions, such as soil layers; several indices are summed.
    ``last_share``: the share that the last selected layer counts with. ``depth_m``: bounds of the
    selected layers. ``cover``: native name of the area fractions of plant types or tiles, with
    which their values are averaged. ``found``: rule -> why the files themselves gave this entry.
    ``refuse``: why the variable cannot be had, though something in the files speaks of it.
    """

    source: str | None = None
    names: tuple[str, ...] = ()
    units: str | None = None
    factor: float = 1.0
    sign: Literal[1, -1] = 1
    sign_stated: bool = False
    per: Per | None = "land"
    select: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    last_share: float = 1.0
    depth_m: tuple[float, float] | None = None
    cover: str | None = None
    derive: str | None = None
    absent: str | None = None
    found: Mapping[str, str] = field(default_factory=lambda: _NONE)
    refuse: Problem | None = None

    def __post_init__(self) -> None:
        origins = ("source", "derive", "absent", "refuse")
        given = [key for key in origins if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"exactly one of source, derive, absent is wanted, found {found}")
        if self.factor == 0.0 or self.factor != self.factor:
            raise ValueError(f"factor must be a number other than 0, got {self.factor}")

    @property
    def expression(self) -> Expression | None:
        """The parsed derivation, or None."""
        return None if self.derive is None else parse_expression(self.derive)


@dataclass(frozen=True)
class VariableMap:
    """All variables of one model. ``where`` names the map in messages (its file, usually).

    ``calendar``: declared where the files have none. ``land_fraction``: native name of the land
    fraction of each cell (1 or %), without which a cell that ever holds a value counts as all land.
    ``cover``: native name of the area fractions of plant types or tiles, for every entry that needs
    one. ``per``: what values are per, where no entry says it. ``well_known``: requested variables
    without an entry go by the names that the variable table knows. ``declared``: what the group
    declares beside the map. ``lines``: line of each entry in ``where``, for messages.
    """

    entries: Mapping[str, VariableSource]
    calendar: str | None = None
    land_fraction: str | None = None
    cover: str | None = None
    per: Per | None = None
    well_known: bool = False
    declared: Declared = field(default_factory=Declared)
    where: str = "variable map"
    lines: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def place(self, name: str) -> str:
        """``file:line`` of an entry, or the map's name."""
        return f"{self.where}:{self.lines[name]}" if name in self.lines else self.where

    @property
    def delivered(self) -> tuple[str, ...]:
        """Names of all variables the map can give, in the order of the variable table; then stated
        uncertainties in the same order."""
        names = with_uncertainties(variable_table())
        return tuple(n for n in names if n in self.entries and self.entries[n].absent is None)

    @property
    def native_names(self) -> tuple[str, ...]:
        """Native names the files must hold, each once, in the map's order."""
        names: list[str | None] = []
        for entry in self.entries.values():
            names += [entry.source, *entry.names, entry.cover]
        names += [self.land_fraction, self.cover]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def closure(self, names: Iterable[str]) -> tuple[str, ...]:
        """``names`` and everything their derivations need, sources first.

        KeyError for a name without an entry, ValueError for a circular derivation: neither happens
        in a map without problems.
        """
        order: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise ValueError(f"{' -> '.join((*path, name))} is circular")
            if name in order:
                return
            expression = self.entries[name].expression
            for needed in expression.names if expression else ():
                visit(needed, (*path, name))
            order.append(name)

        for name in names:
            visit(name, ())
        return tuple(order)

    def problems(self, requested: Iterable[str] | None = None) -> list[Problem]:
        """Everything wrong with the map itself, every problem at once.

        ``requested``: variables that need an entry (default: those the protocol asks for).
        """
        table = variable_table()
        found: list[Problem] = []
        for name, entry in self.entries.items():
            var = known_variable(name)
            if var is None:
                known = ", ".join(table)
                found.append(
                    Problem(self.place(name), name, "an unknown variable", f"one of: {known}")
                )
                continue
            found += self._entry_problems(name, entry, var)
        names = requested_variables() if requested is None else requested
        missing = [n for n in names if n not in self.entries and not self.well_known]
        if missing:
            remedy = f'Add where each comes from, or e.g. "{missing[0]}: {{absent: <reason>}}".'
            wanted = "an entry for every requested variable"
            found.append(
                Problem(self.where, "variables", f"none for {', '.join(missing)}", wanted, remedy)
            )
        return found

    def _entry_problems(self, name: str, entry: VariableSource, var: Variable) -> list[Problem]:
        place = self.place(name)
        if var.is_uncertainty and entry.sign * entry.factor < 0:
            found, wanted = "values turned round", "one sigma, which has no sign"
            return [Problem(place, name, found, wanted, "Leave out the sign.")]
        if entry.units is not None and entry.source is not None:
            try:
                convert_factor(
                    entry.units, var.units, place, f"{name}.units", substance=substance_of(var)
                )
            except DataError as error:
                return list(error.problems)
        if entry.depth_m and var.depth_m and entry.depth_m != var.depth_m:
            low, high = var.depth_m
            remedy = "Layers that do not fit the depth cannot be delivered: declare it absent."
            found = f"depth {entry.depth_m[0]:g} to {entry.depth_m[1]:g} m"
            wanted = f"{low:g} to {high:g} m"
            return [Problem(place, name, found, wanted, remedy)]
        if entry.derive is None:
            return []
        try:
            expression = parse_expression(entry.derive)
        except ValueError as error:
            return [Problem(place, f"{name}.derive", str(error), remedy='Write e.g. "ra + rh".')]
        problems = []
        for needed in expression.names:
            key = f"{name}.derive"
            if needed not in self.entries:
                wanted = "variables of this map"
                problems.append(Problem(place, key, f"{needed!r}, which has no entry", wanted))
            elif self.entries[needed].absent is not None:
                wanted = "variables the model has"
                problems.append(Problem(place, key, f"{needed!r}, declared absent", wanted))
        if not problems:
            try:
                self.closure([name])
            except ValueError as error:
                problems.append(Problem(place, f"{name}.derive", str(error)))
            except KeyError:
                pass  # a missing entry further down is the problem of the entry that names it
        return problems


def substance_of(variable: Variable) -> Substance | None:
    """What a mass in the variable's units is a mass of: carbon, water, or not a mass."""
    if "kg" not in variable.units:
        return None
    text = f"{variable.long_name} {variable.standard_name} {variable.upload_units}"
    return "carbon" if "carbon" in text.lower() or "kgC" in text else "water"
