"""Whether values can be what they claim to be, and which mistake is likely when they cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import Problem
from callmip_global.variables import Variable

Array = NDArray[np.float64]

MANY = 1e-3
"""Share of values outside the range of the variable table above which the variable is refused."""
FAR = 10.0
"""Spans of the range beyond it where not even one value may be (damaged chunks, fill values)."""
FAINT = 1e-3
"""A field whose largest value is smaller than this share of the range was scaled wrongly."""

_SENTINELS = (-99999.0, -9999.0, -999.0, 1e20, -1e20, 1e30, 1e33, 1e36, -1e36, 1e38)
_STATIC_SHARE = 0.2

# Mistakes by the factor that would mend them.
_CAUSES: tuple[tuple[float, str], ...] = (
    (1e-3, "1000: g for kg?"),
    (1e3, "1/1000: kg for g?"),
    (1 / 86400.0, "86400: per day for per second?"),
    (86400.0, "1/86400: converted to per second twice?"),
    (1 / (30.4 * 86400.0), "2.6e6: per month for per second?"),
    (1 / (365.0 * 86400.0), "3.2e7: per year for per second?"),
    (1e-3 / 86400.0, "8.6e7: g and per day for kg and per second?"),
    (1e-3 / (30.4 * 86400.0), "2.6e9: g and per month for kg and per second?"),
    (12.011 / 44.009, "44/12: CO2 for carbon?"),
    (1e-2, "100: percent for a fraction, or cm for m?"),
    (28.94, "1/28.9: mm/day for W m-2?"),
    (1 / 28.94, "28.9: W m-2 for mm/day?"),
    (-1.0, "-1: the opposite sign?"),
)


@dataclass
class NorthernSeasons:
    """Means of the land at 40-70 N in June-August and in December-February.

    There the land takes up carbon in summer and gives it off in winter, in every model: the
    seasons tell the sign of nep where names and attributes cannot (CalLMIP's own tower files hold
    the opposite sign under nep's standard name).
    """

    total: dict[str, float] = field(default_factory=lambda: {"summer": 0.0, "winter": 0.0})
    weight: dict[str, float] = field(default_factory=lambda: {"summer": 0.0, "winter": 0.0})
    size: float = 0.0

    def add(self, values: Array, weights: Array, lat: Array, months: Sequence[int]) -> None:
        """Count a block (n, nlat, nlon) whose steps lie in ``months`` (1 to 12)."""
        rows = (lat >= 40.0) & (lat <= 70.0)
        band, area = values[:, rows], weights[rows]
        for season, wanted in (("summer", (6, 7, 8)), ("winter", (12, 1, 2))):
            block = band[[i for i, month in enumerate(months) if month in wanted]]
            finite = np.isfinite(block)
            held = np.where(finite, block, 0.0)
            self.total[season] += float((held * area).sum())
            self.weight[season] += float((finite * area).sum())
            self.size += float((np.abs(held) * area).sum())

    def merge(self, later: NorthernSeasons) -> None:
        """Count what another one counted."""
        for season in self.total:
            self.total[season] += later.total[season]
            self.weight[season] += later.weight[season]
        self.size += later.size

    @property
    def reversed(self) -> bool:
        """Whether winter uptake clearly exceeds that of summer (by 10 % of the mean size)."""
        if not self.weight["summer"] or not self.weight["winter"]:
            return False
        summer, winter = (self.total[s] / self.weight[s] for s in ("summer", "winter"))
        return winter - summer > 0.1 * self.size / sum(self.weight.values())


@dataclass
class Summary:
    """Running summary of one variable's values, block by block. NaN is not counted."""

    low: float = np.inf
    high: float = -np.inf
    count: int = 0
    outside: int = 0
    infinite: int = 0
    weighted: float = 0.0
    weight: float = 0.0
    sample: Array | None = None
    seasons: NorthernSeasons = field(default_factory=NorthernSeasons)

    def add(self, values: Array, weights: Array, var: Variable) -> None:
        """Count a block (n, nlat, nlon); ``weights`` (nlat, nlon) is the land area of each cell."""
        finite = np.isfinite(values)
        self.infinite += int(np.isinf(values).sum())
        inside = values[finite]
        if not inside.size:
            return
        self.low = min(self.low, float(inside.min()))
        self.high = max(self.high, float(inside.max()))
        self.count += inside.size
        low, high = tolerated(var)
        self.outside += int(((inside < low) | (inside > high)).sum())
        self.weighted += float(np.where(finite, values, 0.0).sum(axis=0).ravel() @ weights.ravel())
        self.weight += float(finite.sum(axis=0).ravel() @ weights.ravel())
        if self.sample is None:
            self.sample = inside[:: max(1, inside.size // 20000)]

    def merge(self, later: Summary) -> None:
        """Count what another one counted of later blocks."""
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)
        self.count += later.count
        self.outside += later.outside
        self.infinite += later.infinite
        self.weighted += later.weighted
        self.weight += later.weight
        self.sample = later.sample if self.sample is None else self.sample
        self.seasons.merge(later.seasons)

    @property
    def mean(self) -> float:
        """Mean over time and land area."""
        return self.weighted / self.weight if self.weight else float("nan")

    def report(self) -> dict[str, float | int | None]:
        """JSON-able numbers; None where nothing was counted."""
        if not self.count:
            return {"min": None, "max": None, "mean": None, "values": 0, "outside_range": 0}
        return {
            "min": self.low,
            "max": self.high,
            "mean": self.mean if self.weight else None,
            "values": self.count,
            "outside_range": self.outside,
        }


def tolerated(var: Variable) -> tuple[float, float]:
    """The range of the variable table, 1 % of its span wider: rounding is not implausible."""
    low, high = var.valid_range
    slack = 0.01 * (high - low)
    return low - slack, high + slack


def summary_problem(summary: Summary, var: Variable, where: str) -> Problem | None:
    """What is implausible about a variable as a whole, with the likely cause, or None."""
    low, high = var.valid_range
    wanted = f"values within {low:g} to {high:g} {var.units}"
    if not summary.count and not summary.infinite:
        return Problem(where, var.name, "no value at all, everything is missing", wanted)
    if summary.infinite:
        return Problem(where, var.name, f"{summary.infinite} infinite values", wanted)
    span = f"{summary.low:.4g} to {summary.high:.4g}"
    if summary.low == summary.high:
        remedy = "Declare it absent if the model does not have it."
        return Problem(where, var.name, f"the constant {summary.low:g}", "values that vary", remedy)
    if var.name == "nep" and summary.seasons.reversed:
        found = "uptake at 40-70 N in winter and release in summer"
        remedy = "The sign is that of NEE: say sign: -1 in the variable map."
        return Problem(where, var.name, found, "positive into the land", remedy)
    largest = max(abs(low), abs(high))
    faint = max(abs(summary.low), abs(summary.high)) < FAINT * largest
    far = FAR * (high - low)
    if summary.outside > MANY * summary.count or faint:
        share = f" ({100 * summary.outside / summary.count:.3g} % outside)" if not faint else ""
        return Problem(where, var.name, f"{span}{share}", wanted, _cause(summary, var))
    if summary.low < low - far or summary.high > high + far:
        remedy = "Damaged data, or a fill value that no attribute names?"
        found = f"{span} ({summary.outside} values outside)"
        return Problem(where, var.name, found, wanted, remedy)
    return None


def _cause(summary: Summary, var: Variable) -> str:
    """The mistake whose correction would make the values plausible."""
    sample = summary.sample
    if sample is None:
        return ""
    low, high = tolerated(var)
    largest = max(abs(low), abs(high))
    likely = []
    for factor, text in _CAUSES:
        mended = sample * factor
        fits = ((mended >= low) & (mended <= high)).mean() >= 1 - MANY
        # A correction that leaves next to nothing explains nothing.
        if fits and np.abs(mended).max() > 0.02 * largest:
            likely.append((abs(np.log10(np.abs(mended).max() / largest)), text))
    if var.units == "K":
        mended = sample + 273.15
        if ((mended >= low) & (mended <= high)).mean() >= 1 - MANY:
            likely.append((0.0, "an offset of 273.15: degrees Celsius for K?"))
    if not likely:
        return "No usual factor explains it; check the units, the fill value and the variable."
    best = [text for _, text in sorted(likely)[:2]]
    return f"Perhaps wrong by {' or by '.join(best)}"


def unflagged_fill(
    values: Array, plausible: Callable[[float], bool]
) -> tuple[float, NDArray[np.bool_]] | None:
    """A fill value that no attribute names, and the cells (nlat, nlon) that hold it; or None.

    Only a value on the list of those seen, on at least 20 % of the cells, at the same cells in
    every step, and not ``plausible`` for the variable, is taken for one. ``values``: native ones,
    (n, nlat, nlon).
    """
    for sentinel in _SENTINELS:
        if plausible(sentinel):
            continue
        cells = np.isclose(values[0], sentinel, rtol=1e-6, atol=0)
        if cells.mean() >= _STATIC_SHARE and np.array_equal(
            np.isclose(values, sentinel, rtol=1e-6, atol=0),
            np.broadcast_to(cells, values.shape),
        ):
            return sentinel, cells
    return None
