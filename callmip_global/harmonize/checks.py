"""Whether values can be what they claim to be, and which mistake is likely when they cannot."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled
from callmip_global.errors import Problem
from callmip_global.units import CAUSES
from callmip_global.variables import Variable

Array = NDArray[np.float64]

MANY = 1e-3
"""Share of values outside the range of the variable table above which the variable is refused."""
FAR = 10.0
"""Spans of the range beyond it where not even one value may be (damaged chunks, fill values)."""
FAINT = 1e-3
"""A field whose largest value is smaller than this share of the range was scaled wrongly."""


@dataclass
class NorthernSeasons:
    """Means of the land at 40-70 N in June-August and in December-February.

    There the land takes up carbon in summer and gives it off in winter, in every model: the
    seasons tell the sign of nep where names and attributes cannot (CalLMIP's own tower files hold
    the opposite sign under nep's standard name). ``area``: land there, at most in one step [m2].
    """

    total: dict[str, float] = field(default_factory=lambda: {"summer": 0.0, "winter": 0.0})
    weight: dict[str, float] = field(default_factory=lambda: {"summer": 0.0, "winter": 0.0})
    size: float = 0.0
    area: float = 0.0

    def add(self, values: NDArray[Any], weights: Array, lat: Array, months: Sequence[int]) -> None:
        """Count a block (n, nlat, nlon) whose steps lie in ``months`` (1 to 12)."""
        rows = np.flatnonzero((lat >= 40.0) & (lat <= 70.0))
        if not rows.size:
            return
        band = slice(int(rows[0]), int(rows[-1]) + 1)
        area = np.ascontiguousarray(weights[band])
        for step, month in enumerate(months):
            season = _SEASONS.get(month)
            if season is not None:
                total, weight, size = _integrals(np.ascontiguousarray(values[step, band]), area)
                self.total[season] += total
                self.weight[season] += weight
                self.size += size
                self.area = max(self.area, weight)

    def merge(self, later: NorthernSeasons) -> None:
        """Count what another one counted."""
        for season in self.total:
            self.total[season] += later.total[season]
            self.weight[season] += later.weight[season]
        self.size += later.size
        self.area = max(self.area, later.area)

    @property
    def means(self) -> tuple[float, float] | None:
        """(summer, winter); None unless both were seen, over an area that no drought rules."""
        if not self.weight["summer"] or not self.weight["winter"] or self.area < _WIDE_M2:
            return None
        summer, winter = (self.total[s] / self.weight[s] for s in ("summer", "winter"))
        return summer, winter

    @property
    def reversed(self) -> bool:
        """Whether winter uptake clearly exceeds that of summer (by 10 % of the mean size)."""
        means = self.means
        if means is None:
            return False
        return means[1] - means[0] > 0.1 * self.size / sum(self.weight.values())


# Around the Mediterranean the land takes up carbon in winter: a region proves nothing.
_WIDE_M2 = 5e12
_SEASONS = dict.fromkeys((6, 7, 8), "summer") | dict.fromkeys((12, 1, 2), "winter")

# What is kept of each step: integrals over the area (of the values, of the area that holds any, of
# their sizes, of the values with the other weights), extremes, number of cells.
_TOTAL, _AREA, _SIZE, _OTHER, _LOW, _HIGH, _COUNT = range(7)
_KEPT = 7
_SAMPLE = 8000


class Summary:
    """What the checks need to know of one variable's values, gathered block by block.

    Blocks come in the order of time; those of one part are merged with those of later ones. NaN is
    not counted, infinite values are counted apart. Memory: seven numbers per step, and a map.
    The same blocks give the same numbers, however they are divided among summaries.
    """

    def __init__(self) -> None:
        self.steps: Array = np.empty((0, _KEPT))
        self.outside = 0
        self.infinite = 0
        self.low_at: tuple[int, int] | None = None
        self.high_at: tuple[int, int] | None = None
        self.sample: Array | None = None
        self.seasons = NorthernSeasons()
        # Per cell: whether it ever held a value, and the value as long as it is the only one.
        self.held: NDArray[np.bool_] | None = None
        self.still: NDArray[np.float32] | None = None

    def add(
        self, values: NDArray[Any], weights: Array, var: Variable, other: Array | None = None
    ) -> None:
        """Count a block.

        values : (n, nlat, nlon) float64 or float32
        weights : (nlat, nlon) land area of each cell [m2]
        other : (nlat, nlon) weights of a second integral [m2]: those that hold if the values are
            per area of the cell and not per area of land (see `plausibility`)
        """
        n, *shape = values.shape
        cells = values.reshape(n, int(np.prod(shape)))
        if self.held is None or self.still is None:
            self.held = np.zeros(shape, dtype=bool)
            self.still = np.full(shape, np.nan, dtype=np.float32)
        low, high = tolerated(var)
        steps = np.zeros((n, _KEPT))
        areas = np.ascontiguousarray(weights, dtype=np.float64).ravel()
        others = areas if other is None else np.ascontiguousarray(other, dtype=np.float64).ravel()
        found = _gather(
            np.ascontiguousarray(cells),
            areas,
            others,
            (low, high),
            steps,
            self.held.reshape(-1),
            self.still.reshape(-1),
        )
        outside, infinite, low_step, low_cell, high_step, high_cell = found
        held = steps[:, _COUNT] > 0
        if held.any():
            at = len(self.steps)
            self._extremes(steps, (at + low_step, low_cell), (at + high_step, high_cell))
            if self.sample is None:
                self.sample = _sample(cells)
        self.steps = np.concatenate([self.steps, steps])
        self.outside += outside
        self.infinite += infinite

    def merge(self, later: Summary) -> None:
        """Count what another one counted of later blocks."""
        if later.low_at is not None and later.high_at is not None:
            at = len(self.steps)
            low, high = later.low_at, later.high_at
            self._extremes(later.steps, (at + low[0], low[1]), (at + high[0], high[1]))
        self.steps = np.concatenate([self.steps, later.steps])
        self.outside += later.outside
        self.infinite += later.infinite
        self.sample = later.sample if self.sample is None else self.sample
        self.seasons.merge(later.seasons)
        if later.held is None or later.still is None:
            return
        if self.held is None or self.still is None:
            self.held, self.still = later.held.copy(), later.still.copy()
            return
        both = self.held & later.held
        differ = both & (self.still != later.still)
        self.still = np.where(self.held, self.still, later.still)
        self.still[differ] = np.nan
        self.held = self.held | later.held

    def _extremes(self, steps: Array, low_at: tuple[int, int], high_at: tuple[int, int]) -> None:
        """Take over where a later part has its extremes if it goes beyond; the first stays."""
        held = steps[:, _COUNT] > 0
        if self.low_at is None or steps[held, _LOW].min() < self.low:
            self.low_at = low_at
        if self.high_at is None or steps[held, _HIGH].max() > self.high:
            self.high_at = high_at

    # --- per step ---

    @property
    def totals(self) -> Array:
        """(n,) integral of each step over the land [units m2]."""
        return self.steps[:, _TOTAL]

    @property
    def areas(self) -> Array:
        """(n,) land area that holds a value in each step [m2]."""
        return self.steps[:, _AREA]

    @property
    def sizes(self) -> Array:
        """(n,) integral of the absolute values of each step [units m2]."""
        return self.steps[:, _SIZE]

    @property
    def other_totals(self) -> Array:
        """(n,) integral of each step with the other weights [units m2]."""
        return self.steps[:, _OTHER]

    @property
    def counts(self) -> Array:
        """(n,) cells that hold a value in each step."""
        return self.steps[:, _COUNT]

    @property
    def step_lows(self) -> Array:
        """(n,) smallest value of each step, inf where there is none."""
        return self.steps[:, _LOW]

    @property
    def step_highs(self) -> Array:
        """(n,) largest value of each step, -inf where there is none."""
        return self.steps[:, _HIGH]

    # --- over all ---

    @property
    def low(self) -> float:
        """The smallest value."""
        return float(self.step_lows.min(initial=np.inf))

    @property
    def high(self) -> float:
        """The largest value."""
        return float(self.step_highs.max(initial=-np.inf))

    @property
    def count(self) -> int:
        """Number of finite values."""
        return int(self.counts.sum())

    @property
    def weighted(self) -> float:
        """Sum of all integrals."""
        return float(self.totals.sum())

    @property
    def weight(self) -> float:
        """Sum of all areas."""
        return float(self.areas.sum())

    @property
    def mean(self) -> float:
        """Mean over time and land area."""
        return self.weighted / self.weight if self.weight else float("nan")

    @property
    def still_share(self) -> tuple[float, float]:
        """Shares of the cells with values that never change: of all of them, of those not 0."""
        if self.held is None or self.still is None or not self.held.any():
            return 0.0, 0.0
        still = self.held & np.isfinite(self.still)
        cells = int(self.held.sum())
        return int(still.sum()) / cells, int((still & (self.still != 0.0)).sum()) / cells

    @property
    def digest(self) -> str:
        """Equal for equal values on equal grids: sha256 of the integrals and extremes, in float32.

        Float32, so that a last bit that another machine sums differently does not matter.
        """
        return hashlib.sha256(self.steps.astype("<f4").tobytes()).hexdigest()[:16]

    def report(self) -> dict[str, float | int | str | None]:
        """JSON-able numbers; None where nothing was counted."""
        if not self.count:
            return {"min": None, "max": None, "mean": None, "values": 0, "outside_range": 0}
        return {
            "min": self.low,
            "max": self.high,
            "mean": self.mean if self.weight else None,
            "values": self.count,
            "outside_range": self.outside,
            "digest": self.digest,
        }

    # --- kept in files ---

    def to_json(self) -> dict[str, Any]:
        """Everything, for JSON; `from_json` of it is this summary bit by bit."""
        seasons = self.seasons
        return {
            "steps": _packed(self.steps),
            "counts": [self.outside, self.infinite],
            "low_at": self.low_at,
            "high_at": self.high_at,
            "sample": None if self.sample is None else _packed(self.sample),
            "seasons": _packed(
                np.array(
                    [*seasons.total.values(), *seasons.weight.values(), seasons.size, seasons.area]
                )
            ),
            "shape": None if self.held is None else list(self.held.shape),
            "held": None if self.held is None else _packed(np.packbits(self.held)),
            "still": None if self.still is None else _packed(self.still),
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Summary:
        """The summary that `to_json` was made of."""
        made = cls()
        made.steps = _unpacked(kept["steps"], "<f8").reshape(-1, _KEPT)
        made.outside, made.infinite = kept["counts"]
        made.low_at = None if kept["low_at"] is None else (kept["low_at"][0], kept["low_at"][1])
        made.high_at = None if kept["high_at"] is None else (kept["high_at"][0], kept["high_at"][1])
        made.sample = None if kept["sample"] is None else _unpacked(kept["sample"], "<f8")
        *four, size, area = map(float, _unpacked(kept["seasons"], "<f8"))
        seasons = ("summer", "winter")
        made.seasons = NorthernSeasons(
            dict(zip(seasons, four[:2], strict=True)),
            dict(zip(seasons, four[2:], strict=True)),
            size,
            area,
        )
        if kept["shape"] is not None:
            shape = tuple(kept["shape"])
            cells = int(np.prod(shape))
            bits = np.unpackbits(_unpacked(kept["held"], "u1"), count=cells)
            made.held = bits.astype(bool).reshape(shape)
            made.still = _unpacked(kept["still"], "<f4").reshape(shape)
        return made


def _packed(values: NDArray[Any]) -> str:
    """The bytes of an array as text. Little-endian, compressed: most maps hold few values."""
    raw = np.ascontiguousarray(values)
    content = raw.astype(raw.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(content, 1)).decode()


def _unpacked(text: str, dtype: str) -> NDArray[Any]:
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)
    return raw.astype(raw.dtype.newbyteorder("="))


def _sample(cells: NDArray[Any]) -> Array:
    """Some finite values of a block, spread over it."""
    flat = cells.ravel()
    some = flat[:: max(1, flat.size // _SAMPLE)]
    some = some[np.isfinite(some)]
    if some.size < _SAMPLE // 100:
        # Few cells hold values: look at all of them.
        finite = flat[np.isfinite(flat)]
        some = finite[:: max(1, finite.size // _SAMPLE)]
    return np.array(some, dtype=np.float64)


@compiled
def _integrals(values: NDArray[Any], weights: NDArray[np.float64]) -> tuple[float, float, float]:
    """(integral, area with values, integral of the sizes) of one map (rows, columns)."""
    total, area, size = 0.0, 0.0, 0.0
    for j in range(values.shape[0]):
        for i in range(values.shape[1]):
            x = values[j, i]
            if np.isfinite(x):
                w = weights[j, i]
                total += x * w
                area += w
                size += abs(x) * w
    return total, area, size


@compiled
def _gather(
    values: NDArray[Any],
    weights: NDArray[np.float64],
    others: NDArray[np.float64],
    bounds: tuple[float, float],
    steps: NDArray[np.float64],
    held: NDArray[np.bool_],
    still: NDArray[np.float32],
) -> tuple[int, int, int, int, int, int]:
    """Fill ``steps`` (n, 7) and go on with ``held``, ``still`` (cells,), in one pass.

    Returns the numbers of values outside the bounds and of infinite ones, and the (step, cell) of
    the smallest and of the largest value.
    """
    low, high = bounds
    outside, infinite = 0, 0
    least, most = np.inf, -np.inf
    low_step, low_cell, high_step, high_cell = 0, 0, 0, 0
    for t in range(values.shape[0]):
        total, area, size, other, count = 0.0, 0.0, 0.0, 0.0, 0
        smallest, largest = np.inf, -np.inf
        for i in range(values.shape[1]):
            x = values[t, i]
            if np.isnan(x):
                continue
            if np.isinf(x):
                infinite += 1
                continue
            w = weights[i]
            total += x * w
            area += w
            size += abs(x) * w
            other += x * others[i]
            count += 1
            if x < low or x > high:
                outside += 1
            if x < smallest:
                smallest = x
                if x < least:
                    least, low_step, low_cell = x, t, i
            if x > largest:
                largest = x
                if x > most:
                    most, high_step, high_cell = x, t, i
            single = np.float32(x)
            if not held[i]:
                held[i] = True
                still[i] = single
            elif still[i] != single:
                still[i] = np.float32(np.nan)
        steps[t, 0] = total
        steps[t, 1] = area
        steps[t, 2] = size
        steps[t, 3] = other
        steps[t, 4] = smallest
        steps[t, 5] = largest
        steps[t, 6] = count
    return outside, infinite, low_step, low_cell, high_step, high_cell


def tolerated(var: Variable) -> tuple[float, float]:
    """The range of the variable table, 1 % of its span wider: rounding is not implausible."""
    low, high = var.valid_range
    slack = 0.01 * (high - low)
    return low - slack, high + slack


def summary_problem(summary: Summary, var: Variable, where: str) -> Problem | None:
    """What is implausible about a variable as a whole, with the likely cause, or None."""
    low, high = var.valid_range
    wanted = f"values within {low:g} to {high:g} {var.units}".removesuffix(" 1")

    def problem(rule: str, found: str, wanted: str, remedy: str = "") -> Problem:
        return Problem(where, var.name, found, wanted, remedy, rule)

    if not summary.count and not summary.infinite:
        return problem("no-values", "no value at all, everything is missing", wanted)
    if summary.infinite:
        return problem("infinite", f"{summary.infinite} infinite values", wanted)
    span = f"{summary.low:.4g} to {summary.high:.4g}"
    if summary.low == summary.high and not var.is_uncertainty:
        remedy = "Declare it absent if the model does not have it."
        return problem("constant", f"the constant {summary.low:g}", "values that vary", remedy)
    if var.name == "nep" and summary.seasons.reversed:
        found = "uptake at 40-70 N in winter and release in summer"
        remedy = "The sign is that of NEE: say sign: -1 in the variable map, or not if it does."
        return problem("season", found, "positive into the land", remedy)
    largest = max(abs(low), abs(high))
    faint = max(abs(summary.low), abs(summary.high)) < FAINT * largest and not var.is_uncertainty
    far = FAR * (high - low)
    if summary.outside > MANY * summary.count or faint:
        share = f" ({100 * summary.outside / summary.count:.3g} % outside)" if not faint else ""
        return problem("range", f"{span}{share}", wanted, _cause(summary, var))
    if summary.low < low - far or summary.high > high + far:
        remedy = "Damaged data, or a fill value that no attribute names?"
        return problem("damaged", f"{span} ({summary.outside} values outside)", wanted, remedy)
    means = summary.seasons.means
    if means is not None and _is_winter_larger(var, *means):
        found = f"a mean of {means[0]:.4g} in June-August and {means[1]:.4g} in December-February"
        remedy = "North and south swapped, or the time axis half a year off?"
        return problem("season", f"{found} at 40-70 N", "more in summer", remedy)
    return None


def _is_winter_larger(var: Variable, summer: float, winter: float) -> bool:
    """Whether a northern winter is warmer, or has twice the growth and evaporation, of a summer."""
    if var.name == "ts":
        return winter - summer > 10.0
    return var.name in ("gpp", "hfls", "tran", "evspsbl") and winter > 2.0 * abs(summer)


def _cause(summary: Summary, var: Variable) -> str:
    """The mistake whose correction would make the values plausible."""
    sample = summary.sample
    if sample is None:
        return ""
    low, high = tolerated(var)
    largest = max(abs(low), abs(high))
    likely = []
    for factor, text in CAUSES:
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
