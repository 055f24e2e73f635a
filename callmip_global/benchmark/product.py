"""A reference product: where its numbers are, what they mean, and how far they may be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from callmip_global.errors import Problem

Kind = Literal["satellite", "upscaled", "fusion", "site", "synthetic"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Product:
    """One variable of one reference data set.

    ``variable`` is the protocol's name. A number x of the file becomes ``sign * factor * x`` in
    ``units``, which is then converted to the units of the variable table, so ``units`` are those
    *after* the factor (latent heat from mm day-1: factor 2.45e6 J kg-1, units J m-2 day-1). Without
    ``units`` those of the file count, and the factor has to be 1.

    ``paths``: absolute paths or glob patterns, all files of the product. ``source``: the name of
    the variable in them (default: the only data variable, or the protocol's name).
    ``native_units``: what the files hold before the factor. It stands in where a file names no
    unit; beside ``units``, a file with a different unit is refused: the factor would be wrong.
    ``window``: first and last year to use. ``static``: a map without time (or one epoch): bias and
    spatial distribution only. ``anomaly``: only departures from the mean are comparable, so bias
    and spatial distribution are left out and the RMSE is the centralised one.
    ``independent_of_towers``: False for products trained on flux towers, which are not independent
    of a calibration on flux towers; ``like_for_like``: whether product and variable speak of the
    same quantity. None where that is not known.

    Raises ValueError for a contradiction inside the entry.
    """

    name: str
    variable: str
    paths: tuple[str, ...]
    kind: Kind
    source: str | None = None
    units: str | None = None
    native_units: str | None = None
    factor: float = 1.0
    sign: Literal[1, -1] = 1
    static: bool = False
    anomaly: bool = False
    window: tuple[int, int] | None = None
    independent_of_towers: bool | None = None
    like_for_like: bool | None = None
    differs: str = ""
    uncertainty: str | None = None
    period: tuple[int, int | None] | None = None
    lacks_months: bool = False
    gridded: bool = True
    resolution: str = "unknown"
    masks: str = ""
    pattern: str = "unknown"
    url: str = "unknown"
    version: str = "unknown"
    doi: str = "unknown"
    licence: str = "unknown"
    note: str = ""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths must name at least one file")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.sign not in (1, -1):
            raise ValueError(f"sign must be 1 or -1, got {self.sign!r}")
        if not (abs(self.factor) > 0 and abs(self.factor) < float("inf")):
            raise ValueError(f"factor must be a finite number other than 0, got {self.factor!r}")
        if self.factor != 1 and self.units is None:
            raise ValueError("a factor other than 1 needs units: those after the factor")
        if self.window is not None and self.window[0] > self.window[1]:
            raise ValueError(f"window must be [first, last] year, got {list(self.window)}")
        first, last = self.period or (0, None)
        if last is not None and first > last:
            raise ValueError(f"period must be [first, last] year, got {[first, last]}")
        if not self.gridded:
            raise ValueError("a list of towers or a global total, no map: it cannot be compared")
        if self.static and self.anomaly:
            raise ValueError(
                "a static product has no anomalies in time: static or anomaly, not both"
            )

    def in_window(self, periods: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """Of (year, month) those in the years of ``window``; all without one."""
        first, last = self.window or (-math.inf, math.inf)
        return {period for period in periods if first <= period[0] <= last}

    def files(self) -> tuple[Path, ...]:
        """The files there are, patterns expanded, sorted, each once."""
        found: set[Path] = set()
        for text in self.paths:
            path = Path(text)
            if path.exists():
                # Brackets in a folder's name are no pattern.
                found.add(path)
            else:
                found.update(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        return tuple(sorted(found))

    def missing(self) -> Problem:
        """That there is no file, and where groups get the product."""
        known = [
            text
            for text, value in (
                (f"from {self.url}", self.url),
                (f"doi {self.doi}", self.doi),
                (f"files like {self.pattern}", self.pattern),
            )
            if value != "unknown"
        ]
        return Problem(
            f"product {self.name}",
            self.variable,
            "no file",
            f"files at {', '.join(self.paths)}",
            f"Get it {', '.join(known)} [missing]" if known else "[missing]",
            "missing",
        )
