"""Whether the files of a product or run hold what they are said to hold, one line for each fault.

A fault that makes every number wrong (unit, scale, sign, dates, damage) refuses the product; one
that leaves the rest usable (a month that is missing, a stamp beside its bounds) is told, and the
product is used. Each rule says what evidence it needs; without it (a region, a few months, only
anomalies) it is silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.benchmark.product import Product
from callmip_global.benchmark.series import (
    FileSeries,
    Period,
    file_opener,
    product_series,
    why_unreadable,
)
from callmip_global.benchmark.uncertainty import (
    UncertaintyError,
    no_values,
    uncertainty_series,
)
from callmip_global.errors import DataError, Problem
from callmip_global.timeaxis import canonical_calendar, time_name
from callmip_global.units import CAUSES, same_units
from callmip_global.variables import Variable, variable_table, windows

if TYPE_CHECKING:
    from callmip_global.benchmark.compare import Comparison

Array = NDArray[np.float64]

RULES: dict[str, str] = {
    "missing": "no file where the products file says",
    "unreadable": "cut short, or no NetCDF",
    "damaged": "a chunk of the data cannot be read",
    "variable": "the variable is not in the file",
    "units": "no unit, or one that does not convert",
    "grid": "no rectilinear grid, or another one than that of the other files",
    "time-bounds-wrong": "bounds of zero length, or not of one month or year",
    "time-outside-bounds": "a time stamp outside its own bounds; the bounds count",
    "time": "times that cannot be read, or are there twice",
    "calendar": "the times are months of another calendar than the one named",
    "period": "years that the product does not cover",
    "month-missing": "a month is missing between the first and the last",
    "month-empty": "a month without a single value",
    "all-missing": "no value at all",
    "fill": "a fill value that no attribute names",
    "range": "values that the variable cannot have",
    "scale": "values wrong by a usual factor (1000, 86400, ...)",
    "sign": "the opposite sign, told by the range or by the northern seasons",
    "season": "greater in the northern winter than in its summer",
    "mask": "zeros where values should be missing",
    "uncertainty": "no such variable, its unit, a negative or nameless fill value; used without",
}
"""What is looked for, by the name that ends each line."""

_MANY = 0.2  # share of values outside the range that is no matter of outliers
_FITS = 0.99
_TELLING = 0.02  # a correction that leaves less of the range than this explains nothing
_SLACK = 3.0  # beyond the window of the whole Earth, for products of a part of it
_FAR = 10.0
_FAINT = 1e-3  # of the range: a field that varies less was scaled wrongly
ZEROS = 0.55  # deserts and ice are a third of the land; with the sea it is four fifths
_SAMPLE = 20_000
_BLOCK_BYTES = 64 * 1024**2
_NORTH = (30.0, 65.0)
_SEASONAL = frozenset(
    ("nep", "gpp", "reco", "hfls", "hfss", "hfg", "evspsbl", "tran", "ts", "lai", "npp")
)
_LAND_M2 = 1.3e14
_HALF_LAND_M2 = 0.6e14
_MOST_OF_EARTH_M2 = 4.5e14
_YEAR_S = 365.25 * 86400.0
_PER_M2 = {
    "PgC yr-1": 1e12 / _YEAR_S / _LAND_M2,
    "1e3 km3 yr-1": 1e15 / _YEAR_S / _LAND_M2,
    "PgC": 1e12 / _LAND_M2,
    "PW": 1e15 / _LAND_M2,
}


@dataclass(frozen=True)
class Finding:
    """One fault; ``refuse``: nothing of the series may be used."""

    problem: Problem
    refuse: bool


def check_products(
    products: Iterable[Product],
    progress: Callable[[str], None] = lambda name: None,
) -> Iterator[tuple[Product, list[Finding]]]:
    """Every product with what is wrong with its files; all of its values are read."""
    for product in products:
        progress(product.name)
        yield product, check_product(product)


def check_product(product: Product, *, quick: bool = False) -> list[Finding]:
    """What is wrong with the files of a product; nothing is raised.

    ``quick``: of the values only January and July of the year in the middle are read; headers and
    times of all files are.
    """
    files = product.files()
    if not files:
        return [Finding(product.missing(), True)]
    found: list[Finding] = []
    units: list[tuple[Path, str]] = []
    alone: list[Problem] = []
    for path in files:
        at = f"product {product.name} ({path.name})"
        try:
            with file_opener(path)() as ds:
                found += of_times(ds, at)
                units += [(path, text) for text in _units(ds, product)]
            if len(files) > 1:
                alone += _alone(product, path)
        except DataError as error:
            found += [Finding(named(problem), True) for problem in error.problems]
        except (OSError, ValueError) as error:
            said = f"a file that cannot be read ({why_unreadable(error)})"
            remedy = "Cut short on the way? Get it again."
            if path.is_dir():
                said, remedy = "a folder", f"Name the files in it: {path / '*.nc'}."
            found.append(fault("unreadable", at, product.variable, said, "NetCDF", remedy))
    found += [Finding(named(problem), True) for problem in alone]
    found += _of_units(units, product)
    if any(finding.refuse for finding in found):
        return found
    try:
        series = product_series(product)
    except DataError as error:
        return [*found, *(Finding(named(problem), True) for problem in error.problems)]
    names = [path.name for path in files]
    found += _of_period(series, product, names)
    if any(finding.refuse for finding in found):
        return found
    found += check_series(
        series,
        product.variable,
        names,
        anomaly=product.anomaly,
        lacks_months=product.lacks_months,
        quick=quick,
    )
    # A benchmark finds the same when it reads the uncertainty.
    return found if quick else found + _of_uncertainty(product, series)


def _of_uncertainty(product: Product, series: FileSeries) -> list[Finding]:
    """The first thing that is wrong with the uncertainty; the product can be used all the same."""
    try:
        stated = uncertainty_series(product, series)
        if stated is None:
            return []
        try:
            there = [
                bool(np.isfinite(stated.read(block)).any())
                for _, block in _blocks(stated.series, quick=False)
            ]
        finally:
            stated.close()
            series.close()
    except UncertaintyError as error:
        return [Finding(problem, False) for problem in error.problems]
    return [] if any(there) else [Finding(no_values(product).problems[0], False)]


def check_series(
    series: FileSeries,
    variable: str,
    files: Sequence[str] = (),
    *,
    anomaly: bool = False,
    lacks_months: bool = False,
    quick: bool = False,
) -> list[Finding]:
    """What is wrong with the months and values of a product or run, in the table's units.

    ``files``: names of the parts of the series; arguments else as in `check_product`. Memory is
    that of a few maps.
    """
    found: list[Finding] = []
    if not lacks_months:
        remedy = "Left out of the runs too; get the file again, or say lacks_months: true."
        found += lacking_months(series, files, remedy)
    seen = _Seen.empty(series)
    try:
        for part, block in _blocks(series, quick):
            try:
                seen.add(series.read(block), block, series, variable_table()[variable])
            except DataError as error:
                # The series speaks of the whole product, the reader knows which file it is at.
                at = _at(series, files, part)
                problems = (replace(problem, where=at) for problem in error.problems)
                return [*found, *(Finding(named(problem), True) for problem in problems)]
    finally:
        series.close()
    if quick and not any(seen.counts.values()):
        return found  # the comparison sees whether there is none at all
    return found + list(_of_values(seen, series, variable, files, anomaly, lacks_months))


def check_runs(comparison: Comparison) -> Iterator[Problem]:
    """What is wrong with the size, sign or mask of the runs; told only. Sizes and signs are seen in
    the maps of their means."""
    variable = variable_table()[comparison.product.variable]
    area = comparison.grid.cell_area
    north = next((c for name, c in comparison.cycles.items() if name == "nh"), [])
    for k, place in enumerate(comparison.places):
        yield from comparison.masks.faults(k, comparison.grid, place, variable.name)
        if comparison.product.anomaly:
            continue
        seen = _Seen.of_map(comparison.maps[k]["mean"], area, variable)
        if north:
            cycle = north[k + 1]
            seen.seasons = {
                "summer": [sum(cycle[5:8]), 3.0],
                "winter": [cycle[11] + cycle[0] + cycle[1], 3.0],
            }
        wrong = (_of_size(seen, variable) or _of_season(seen, variable)) if seen.counts else None
        if wrong is not None:
            rule, said, wanted, remedy, _ = wrong
            for of_products in (" Set factor or sign.", " Set sign: -1."):
                remedy = remedy.replace(of_products, " Mend it in the variable map of the model.")
            yield fault(rule, place, variable.name, said, wanted, remedy).problem


def _units(ds: xr.Dataset, product: Product) -> list[str]:
    """The unit of the product's variable, if the file has both."""
    names = [name for name in (product.source, product.variable) if name in ds.data_vars]
    text = str(ds[names[0]].attrs.get("units", "")).strip() if names else ""
    return [text] if text else []


def _of_units(units: Sequence[tuple[Path, str]], product: Product) -> Iterator[Finding]:
    """A factor is for one unit: another one in another file is a fault."""
    if product.units is None:
        return
    for path, text in units[1:]:
        first, wanted = units[0]
        if not same_units(text, wanted):
            yield fault(
                "units",
                f"product {product.name} ({path.name})",
                product.source or product.variable,
                f"units {text!r}",
                f"{wanted!r} as in {first.name}",
                "Make two products of them, with `window:`.",
            )


def _alone(product: Product, path: Path) -> tuple[Problem, ...]:
    try:
        product_series(replace(product, paths=(str(path),)))
    except DataError as error:
        return error.problems
    return ()


# --- times ----------------------------------------------------------------------------------------


def of_times(ds: xr.Dataset, at: str) -> Iterator[Finding]:
    """Stamps beside their bounds, and months of another calendar than the one that is named."""
    try:
        name = time_name(ds, at)
    except DataError:
        return
    time = ds[name]
    values = np.atleast_1d(time.values)
    units = str(time.attrs.get("units", ""))
    if values.dtype.kind not in "iuf" or " since " not in units:
        return
    bounds = _bounds_of(ds, name, values.size)
    if bounds is not None and np.all(bounds[:, 1] > bounds[:, 0]):
        outside = np.flatnonzero((values < bounds[:, 0] - 1e-6) | (values > bounds[:, 1] + 1e-6))
        if outside.size:
            i = int(outside[0])
            more = f" and {outside.size - 1} more" if outside.size > 1 else ""
            yield fault(
                "time-outside-bounds",
                at,
                name,
                f"{values[i]:g} outside {bounds[i, 0]:g} to {bounds[i, 1]:g} at step {i + 1}{more}",
                f"stamps within their bounds ({units})",
                "The bounds are used: see that they are right.",
                refuse=False,
            )
        values = bounds[:, 0]
    yield from _of_calendar(time, values, units, at, name)


def _bounds_of(ds: xr.Dataset, name: str, size: int) -> Array | None:
    named = ds[name].attrs.get("bounds") or ds[name].encoding.get("bounds")
    for candidate in (named, f"{name}_bnds", f"{name}_bounds"):
        if candidate in ds.variables and ds[candidate].shape == (size, 2):
            other = ds[candidate].attrs.get("units")
            if other is None or other == ds[name].attrs.get("units"):
                return np.asarray(ds[candidate].values, dtype=np.float64)
    return None


def _of_calendar(
    time: xr.DataArray, values: Array, units: str, at: str, name: str
) -> Iterator[Finding]:
    """Needs two years: the same month then begins on the same day, in the right calendar only."""
    stated = str(time.attrs.get("calendar") or time.encoding.get("calendar") or "standard")
    try:
        own = canonical_calendar(stated)
    except ValueError:
        return  # said by the reader
    drift = _drift(values, units, own)
    if drift is None or drift < 0.9:
        return
    for other in ("standard", "noleap", "360_day"):
        there = _drift(values, units, other) if other != own else None
        if there is not None and there < 0.6:
            yield fault(
                "calendar",
                at,
                f"{name}.calendar",
                f"{stated!r}, in which the same month begins up to {drift:.2g} days apart",
                f"{other!r}, in which it does not",
                f"Set it: ncatted -a calendar,{name},o,c,{other} FILE",
            )
            return


def _drift(values: Array, units: str, calendar: str) -> float | None:
    """Largest difference between years of the day of the month, for any month [days]."""
    try:
        dates = np.atleast_1d(cftime.num2date(values, units.lower(), calendar))
    except (ValueError, OverflowError, TypeError):
        return None
    days: dict[int, list[float]] = {}
    for date in dates:
        days.setdefault(date.month, []).append(date.day + date.hour / 24.0)
    if sum(len(of) > 1 for of in days.values()) < 6:
        return None
    return max(max(of) - min(of) for of in days.values())


def _of_period(series: FileSeries, product: Product, files: Sequence[str]) -> Iterator[Finding]:
    if product.period is None or series.frequency == "fx":
        return
    first, last = product.period
    strange = [p for p in series.periods if p[0] < first or (last is not None and p[0] > last)]
    if strange:
        at = _at(series, files, series.places[strange[0]][0])
        span = f"{first} to {last}" if last is not None else f"{first} or later"
        yield fault(
            "period",
            at,
            "time",
            f"{_span(strange, series.frequency)}",
            f"{span}, the years of this product",
            "Check the epoch in time's units; for a newer version set `period:` of the product.",
            refuse=len(strange) == len(series.periods),
        )


def lacking_months(series: FileSeries, files: Sequence[str], remedy: str) -> Iterator[Finding]:
    """Months that are missing between the first and the last."""
    if series.frequency != "mon":
        return
    (y0, m0), (y1, m1) = series.periods[0], series.periods[-1]
    there = set(series.periods)
    lacking = [
        (i // 12, i % 12 + 1)
        for i in range(12 * y0 + m0 - 1, 12 * y1 + m1)
        if (i // 12, i % 12 + 1) not in there
    ]
    if lacking:
        before = max(p for p in series.periods if p < lacking[0])
        yield fault(
            "month-missing",
            _at(series, files, series.places[before][0]),
            "time",
            f"no {_some(lacking)}",
            f"every month of {_span(series.periods, 'mon')}",
            remedy,
            refuse=False,
        )


# --- values ---------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What is kept of the values: sums over the area, and maps of what was there."""

    area: Array
    north: NDArray[np.bool_]
    counts: dict[Period, int] = field(default_factory=dict)
    area_sum: float = 0.0
    value_sum: float = 0.0
    square_sum: float = 0.0
    outside: int = 0
    low: float = math.inf
    high: float = -math.inf
    sample: list[NDArray[Any]] = field(default_factory=list)
    valid: NDArray[np.bool_] | None = None
    other: NDArray[np.bool_] | None = None
    seasons: dict[Literal["summer", "winter"], list[float]] = field(default_factory=dict)

    @classmethod
    def empty(cls, series: FileSeries) -> _Seen:
        lat = series.grid.lat
        return cls(series.grid.cell_area, (lat >= _NORTH[0]) & (lat <= _NORTH[1]))

    @classmethod
    def of_map(cls, values: NDArray[Any], area: Array, var: Variable) -> _Seen:
        """From the map of a mean, as if it were one step."""
        seen = cls(area, np.zeros(area.shape[0], bool))
        if np.isfinite(values).any():
            seen._add_map((0, 1), values, np.isfinite(values), var)
        return seen

    def add(
        self, values: NDArray[Any], block: Sequence[Period], series: FileSeries, var: Variable
    ) -> None:
        if self.valid is None or self.other is None:
            self.valid = np.zeros(self.area.shape, bool)
            self.other = np.zeros(self.area.shape, bool)
        for period, one in zip(block, values, strict=True):
            there = np.isfinite(one)
            self.counts[period] = 0
            if there.any():
                self._add_map(period, one, there, var)
                self.valid |= there
                self.other |= there & (one != 0)
                self._add_season(period, one, there, series)

    def _add_map(
        self, period: Period, one: NDArray[Any], there: NDArray[np.bool_], var: Variable
    ) -> None:
        low, high = var.valid_range
        found = one[there].astype(np.float64)
        area = self.area[there]
        self.counts[period] = found.size
        self.area_sum += float(area.sum())
        self.value_sum += float(area @ found)
        self.square_sum += float(area @ found**2)
        self.outside += int(((found < low) | (found > high)).sum())
        self.low = min(self.low, float(found.min()))
        self.high = max(self.high, float(found.max()))
        self.sample.append(found[:: max(1, found.size // 512)])

    def _add_season(
        self, period: Period, one: NDArray[Any], there: NDArray[np.bool_], series: FileSeries
    ) -> None:
        season: Literal["summer", "winter"] | None = (
            "summer" if period[1] in (6, 7, 8) else "winter" if period[1] in (12, 1, 2) else None
        )
        if series.frequency != "mon" or season is None:
            return
        rows = there[self.north]
        area = self.area[self.north][rows]
        sums = self.seasons.setdefault(season, [0.0, 0.0])
        sums[0] += float(area @ one[self.north][rows].astype(np.float64))
        sums[1] += float(area.sum())

    @property
    def of_the_earth(self) -> bool:
        """Whether the map is one of the whole Earth, but perhaps Antarctica, with half of its land.

        The area with values is a mean over the steps that have any.
        """
        covered = self.area_sum / sum(count > 0 for count in self.counts.values())
        return covered > _HALF_LAND_M2 and float(self.area.sum()) > _MOST_OF_EARTH_M2

    @property
    def mean(self) -> float:
        return self.value_sum / self.area_sum

    @property
    def sigma(self) -> float:
        return math.sqrt(max(0.0, self.square_sum / self.area_sum - self.mean**2))

    def season(self, name: Literal["summer", "winter"]) -> float:
        total, area = self.seasons.get(name, [0.0, 0.0])
        return total / area if area else math.nan


def _blocks(series: FileSeries, quick: bool) -> Iterator[tuple[int, list[Period]]]:
    """(part, periods of it that are read together): a few maps at a time."""
    chosen = set(series.periods)
    if quick:
        year = series.periods[len(series.periods) // 2][0]
        chosen = {p for p in chosen if p[0] == year and p[1] in (1, 7)} or chosen
    at_once = max(1, _BLOCK_BYTES // (8 * math.prod(series.grid.shape)))
    block: list[Period] = []
    part = -1
    for period in series.periods:
        if period not in chosen:
            continue
        here = series.places[period][0]
        if block and (here != part or len(block) == at_once):
            yield part, block
            block = []
        part = here
        block.append(period)
    if block:
        yield part, block


def _of_values(
    seen: _Seen,
    series: FileSeries,
    variable: str,
    files: Sequence[str],
    anomaly: bool,
    lacks_months: bool,
) -> Iterator[Finding]:
    at = _at(series, files, 0) if len(set(files)) == 1 else series.where
    name = series.name
    if not any(seen.counts.values()):
        yield fault(
            "all-missing", at, name, "no value at all", "values", "Wrong file, or a wrong fill?"
        )
        return
    empty = [period for period, count in seen.counts.items() if not count]
    if empty and not lacks_months and series.frequency != "fx":
        yield fault(
            "month-empty",
            _at(series, files, series.places[empty[0]][0]),
            name,
            f"no value in {_some(empty, series.frequency)}",
            "values in every step",
            "Left out of the runs too; get the file again, or say lacks_months: true.",
            refuse=False,
        )
    if anomaly:
        return
    var = variable_table()[variable]
    wrong = _of_size(seen, var)
    if wrong is None:
        wrong = _of_season(seen, var)
    if wrong is not None:
        rule, found, wanted, remedy, refuse = wrong
        yield fault(rule, at, name, found, wanted, remedy, refuse=refuse)
    yield from _of_mask(seen, series, at)


_Said = tuple[str, str, str, str, bool] | None


def _of_size(seen: _Seen, var: Variable) -> _Said:
    """Scale, sign and range: from the share of values outside the range, and from the mean.

    The mean needs a map of the Earth: that of a desert or of the Arctic tells nothing.
    """
    low, high = var.valid_range
    sample = np.concatenate(seen.sample)
    sample = sample[:: max(1, sample.size // _SAMPLE)]
    share = seen.outside / sum(seen.counts.values())
    wanted = f"{low:g} to {high:g} {var.units}"
    span = high - low

    def fits(values: Array) -> bool:
        return bool(np.mean((values >= low) & (values <= high)) >= _FITS)

    if share > _MANY:
        said = f"{share:.0%} of the values outside ({seen.low:.4g} to {seen.high:.4g})"
        if var.units == "K" and fits(sample + 273.15):
            remedy = "Degrees Celsius? Set `units: degC` for this product."
            return "units", said, wanted, remedy, True
        known = _causes(seen, var, lambda f: fits(sample * f) and _tells(sample * f, high))
        remedy = _remedy(known) or "Check unit, factor, sign, fill value and variable."
        return _rule(known), said, wanted, remedy, True
    if not seen.of_the_earth:
        return None
    window = _mean_window(var)
    if window is not None:
        least, most = window[0] / _SLACK, window[1] * _SLACK
        if least <= seen.mean <= most:
            return None
        known = _causes(seen, var, lambda f: window[0] <= seen.mean * f <= window[1])
        said = f"a mean of {seen.mean:.3g}"
        remedy = _remedy(known) or "Check unit, factor and variable."
        about = f"about {window[0]:.2g} to {window[1]:.2g} {var.units}"
        # Far off, or of the opposite sign; else other land than was thought may be the reason.
        far = not least / _FAR <= abs(seen.mean) <= most * _FAR or _rule(known) == "sign"
        return _rule(known), said, about, remedy, far
    if var.signed and low < 0 and seen.sigma < _FAINT * span and seen.high > seen.low:
        known = [
            (f, text)
            for f, text in CAUSES
            if f > 1 and 0.01 * span < seen.sigma * f < 0.3 * span and fits(sample * f)
        ]
        said = f"values that vary by {seen.sigma:.2g} {var.units}"
        remedy = _remedy(known) or "Check unit and factor."
        return "scale", said, f"more than {_FAINT * span:.1g}", remedy, bool(known)
    return None


def _tells(mended: Array, high: float) -> bool:
    return bool(np.abs(mended).max() > _TELLING * abs(high))


def _causes(seen: _Seen, var: Variable, mends: Callable[[float], bool]) -> list[tuple[float, str]]:
    """The usual mistakes that explain the values; those that also give a likely mean come first."""
    window = _mean_window(var)

    def off(factor: float) -> float:
        if window is None or seen.mean * factor <= 0:
            return 0.0 if window is None else math.inf
        middle = math.sqrt(window[0] * window[1])
        return abs(math.log(seen.mean * factor / middle))

    known = [(factor, text) for factor, text in CAUSES if mends(factor)]
    return sorted(known, key=lambda cause: off(cause[0]))[:2]


def _rule(known: Sequence[tuple[float, str]]) -> str:
    return "sign" if known and known[0][0] == -1.0 else "scale" if known else "range"


def _remedy(known: Sequence[tuple[float, str]]) -> str:
    if not known:
        return ""
    return f"Perhaps wrong by {' or by '.join(text for _, text in known)} Set factor or sign."


def _mean_window(var: Variable) -> tuple[float, float] | None:
    """What the mean over the land may be, in the units of the table; None around zero."""
    window = windows().get(var.name)
    if window is None or window.fail[0] <= 0:
        return None
    factor = 1.0 if window.of == "mean" else _PER_M2.get(window.units)
    return None if factor is None else (window.fail[0] * factor, window.fail[1] * factor)


def _of_season(seen: _Seen, var: Variable) -> _Said:
    """Needs a map of the Earth with June to August and December to February."""
    if not seen.of_the_earth:
        return None
    summer, winter = seen.season("summer"), seen.season("winter")
    if var.name not in _SEASONAL or not math.isfinite(summer + winter) or summer >= winter:
        return None
    if winter - summer < 0.1 * max(abs(summer), abs(winter)):
        return None
    said = (
        f"a mean of {summer:.3g} in June to August and of {winter:.3g} in December to February "
        f"at {_NORTH[0]:g} to {_NORTH[1]:g} N"
    )
    if var.signed and _mean_window(var) is None:
        remedy = "The opposite sign? Set sign: -1. Else check the dates and the latitudes."
        return "sign", said, "more in summer", remedy, True
    return "season", said, "more in summer", "Check the dates and the latitudes.", False


def _of_mask(seen: _Seen, series: FileSeries, at: str) -> Iterator[Finding]:
    """Needs a map of the whole Earth."""
    if seen.valid is None or seen.other is None or not series.grid.is_global:
        return
    covered = float(seen.area[seen.valid].sum())
    zeros = float(seen.area[seen.valid & ~seen.other].sum())
    if covered > 0.9 * float(seen.area.sum()) and zeros > ZEROS * covered:
        yield fault(
            "mask",
            at,
            series.name,
            f"0 in {zeros / covered:.0%} of the Earth at every step read",
            "missing values where there is no land",
            f"Set them missing: cdo setctomiss,0, or ncatted -a _FillValue,{series.name},o,f,0",
            refuse=False,
        )


# --- words ----------------------------------------------------------------------------------------


def fault(
    rule: str,
    where: str,
    key: str,
    found: str,
    wanted: str = "",
    remedy: str = "",
    *,
    refuse: bool = True,
) -> Finding:
    """One line with the name of its rule at the end."""
    return Finding(Problem(where, key, found, wanted, f"{remedy} [{rule}]", rule), refuse)


def named(problem: Problem) -> Problem:
    """A problem of the reader with the name of the rule at its end."""
    if problem.rule and problem.remedy.endswith(f"[{problem.rule}]"):
        return problem
    known = {"time-gaps": "time", "time-missing": "time", "time-undecodable": "time"}
    rule = known.get(problem.rule, problem.rule)
    text = problem.found
    if rule == "calendar-unknown":
        rule = "calendar"
    elif rule not in RULES:
        for word, name in (
            ("cannot be read", "damaged" if problem.key else "unreadable"),
            ("chunk", "damaged"),
            ("no attribute calls missing", "fill"),
            ("units", "units"),
            ("no such variable", "variable"),
            ("a second time", "time"),
        ):
            if word in f"{problem.key} {text}":
                rule = name
                break
        else:
            rule = "grid"
    remedy = problem.remedy.removesuffix(".")
    remedy = f"{remedy}. [{rule}]" if remedy else f"[{rule}]"
    return replace(problem, rule=rule, remedy=remedy)


def _at(series: FileSeries, files: Sequence[str], part: int) -> str:
    return f"{series.where} ({files[part]})" if files else series.where


def _span(periods: Sequence[Period], frequency: str) -> str:
    first, last = _month(periods[0], frequency), _month(periods[-1], frequency)
    return first if first == last else f"{first} to {last}"


def _month(period: Period, frequency: str = "mon") -> str:
    return str(period[0]) if frequency == "yr" else f"{period[0]}-{period[1]:02d}"


def _some(periods: Sequence[Period], frequency: str = "mon", limit: int = 6) -> str:
    more = f" and {len(periods) - limit} more" if len(periods) > limit else ""
    return ", ".join(_month(period, frequency) for period in periods[:limit]) + more
