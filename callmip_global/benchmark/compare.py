"""One product against all runs: common grid, common mask, one pass, maps of every quantity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.benchmark import scores
from callmip_global.benchmark.bootstrap import MINIMUM_DRAWN_YEARS, Resampled
from callmip_global.benchmark.ensemble import CellSums, Judged
from callmip_global.benchmark.inputs import Run, pairs
from callmip_global.benchmark.parts import Parts
from callmip_global.benchmark.product import Product
from callmip_global.benchmark.product_check import named
from callmip_global.benchmark.regions import Region, region_area
from callmip_global.benchmark.run_check import Masks, empty_months, without_a_value
from callmip_global.benchmark.scores import Scheme
from callmip_global.benchmark.series import Box, Period, Series, days_of, said_period
from callmip_global.benchmark.statistics import Moments, PairSums, YearSums
from callmip_global.benchmark.uncertainty import (
    BEYOND,
    CellUncertainty,
    ExcessSums,
    ProductUncertainty,
    UncertaintyError,
    no_values,
)
from callmip_global.errors import DataError, Problem
from callmip_global.grid import Grid
from callmip_global.store import PER_LAND
from callmip_global.variables import variable_table

T = TypeVar("T")
Array = NDArray[np.float64]
Regridder = Callable[[xr.Dataset, Grid], xr.Dataset]
_Weights = tuple[Parts, Array]  # of the cells of a tile: regions they lie in, weight of each

MINIMUM_MONTHS = 12
MINIMUM_YEARS = 3
MINIMUM_STEPS = {"mon": MINIMUM_MONTHS, "yr": MINIMUM_YEARS, "fx": 1}
_BLOCK_STEPS = 60  # what a store holds in one chunk
_BLOCK_BYTES = 192 * 1024**2  # of all series of a comparison together; two blocks are held
# Of one series: what is larger is fetched from the kernel and given back for every block, which
# takes longer than the sums (glibc keeps up to 32 MiB).
_ARRAY_BYTES = 16 * 1024**2
_SUM_BYTES = 256 * 1024**2  # of the sums of a tile
_MOST_SUM_BYTES = 1024**3  # where smaller tiles mean that runs are read again
_HELD_BYTES = 512 * 1024**2  # of a product that is read once for all tiles
_IMPLAUSIBLE_SHARE = 0.2
_MOST_READ_AGAIN = 3  # steps that are lost, to see to whom
# What the sums of a spatial pattern are filed under, by whether cells weigh by their area.
_PATTERN = {True: "pattern by area", False: "pattern"}


class _RunError(Exception):
    """The data of a run, by its position, cannot be read."""

    def __init__(self, run: int, problems: tuple[Problem, ...]) -> None:
        super().__init__(run, problems)
        self.run, self.problems = run, problems


class TooShortError(DataError):
    """Product and runs have too few steps in common at this frequency: ``shared`` of them."""

    def __init__(self, problem: Problem, shared: int) -> None:
        super().__init__(problem)
        self.shared = shared


@dataclass(eq=False)
class RegionalSums:
    """Sums over the cells of each region of one quantity that cells have, for each run.

    ``total``, ``weight`` (runs, regions): weight times value, and weight, of cells that have a
    value; the weight is the area [m2], or 1. ``cells`` (runs, regions): their number.
    """

    total: Array
    weight: Array
    cells: NDArray[np.int64]

    @classmethod
    def empty(cls, n_runs: int, n_regions: int) -> RegionalSums:
        shape = (n_runs, n_regions)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64))

    def mean(self, k: int, region: int) -> tuple[float, int]:
        """Mean of run ``k`` and the number of cells behind it; (NaN, 0) if there is none."""
        if self.cells[k, region] == 0:
            return float("nan"), 0
        mean = self.total[k, region] / self.weight[k, region]
        return float(mean), int(self.cells[k, region])


@dataclass
class Comparison:
    """What came of one product at one frequency.

    ``maps[k]``: per run, (nlat, nlon) maps of its mean, its bias, and the RMSE and the scores of
    the first scheme, as far as they apply; NaN outside the common mask. Those of another scheme
    that differ from them are there too, under names like ``rmse_score.ilamb27``. ``reference``: the
    product's mean; ``uncertainty``: its mean uncertainty, None without one. ``sums``: of (scheme,
    quantity), scheme "" for what all have in common. ``resampled``: of each pair (prior,
    posterior), where there are enough years. ``judged``: ensembles and stated uncertainties.
    ``days`` (T,): length of the ``periods``. ``masks``: where product and runs have values;
    ``places``: of the runs' data, for messages.
    ``cycles``: region -> series (reference first, then the runs) of 12 means, or empty;
    ``annual``: region -> years and the same series.
    """

    product: Product
    frequency: str
    schemes: tuple[Scheme, ...]
    runs: list[Run]
    grid: Grid
    areas: dict[str, Array]
    periods: tuple[Period, ...]
    days: Array
    n_months: int
    reference: Array
    maps: list[dict[str, NDArray[Any]]]
    sums: dict[tuple[str, str], RegionalSums]
    resampled: dict[tuple[int, int], Resampled]
    judged: Judged
    masks: Masks
    places: list[str]
    uncertainty: Array | None = None
    cycles: dict[str, list[list[float]]] = field(default_factory=dict)
    annual: dict[str, tuple[list[int], list[list[float]]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def mean(self, scheme: str, quantity: str, k: int, region: str) -> tuple[float, int] | None:
        """Mean of a quantity of run ``k`` over a region, and its cells; None if it has none."""
        sums = self.sums.get((scheme, quantity)) or self.sums.get(("", quantity))
        return None if sums is None else sums.mean(k, list(self.areas).index(region))

    def taylor(self, scheme: Scheme, k: int, region: str) -> tuple[float, float, int]:
        """Ratio of standard deviations, correlation and cells of the mean maps in a region."""
        kind, means, cells = _PATTERN[scheme.by_area], {}, 0
        for name in scores.PATTERN_TERMS:
            means[name], cells = self.sums[kind, name].mean(k, list(self.areas).index(region))
        return scores.spatial_pattern(means, cells)


def compare(
    product: Product,
    reference: Series,
    runs: Sequence[tuple[Run, Series]],
    *,
    frequency: str,
    regions: Sequence[Region],
    schemes: Sequence[Scheme],
    regridder: Regridder,
    stated: Mapping[tuple[str, str, str, str], Series] | None = None,
    uncertainty: Series | None = None,
) -> tuple[Comparison, list[Problem]]:
    """Compare all runs with a product at ``mon``, ``yr`` or ``fx``.

    ``stated``: uncertainties that runs state of the variable, by the identity of the run.
    A run without a single value where the others have some is left out with a problem; the mask of
    the rest is common. ``uncertainty``: of the product, at the same steps; one that cannot be used
    is a problem, and the rest is as without it. Raises DataError where nothing is left to compare.
    """
    kept, problems, notes = _overlapping(product, reference, runs, frequency)
    while True:
        try:
            options = regions, schemes, regridder, stated or {}, uncertainty
            gathered = _gather(product, reference, kept, frequency, *options)
        except UncertaintyError as error:
            problems += error.problems
            uncertainty = None
            continue
        except _RunError as error:
            problems += [named(problem) for problem in error.problems]
            kept.pop(error.run)
            if not kept:
                raise DataError(problems) from error
            continue
        said = _span(gathered.periods, frequency)
        if gathered.values[0] == 0:
            left_out = "The product is left out."
            raise DataError(without_a_value(reference, product.variable, said, left_out))
        empty = [k for k, count in enumerate(gathered.values[1:]) if count == 0]
        left_out = "The run is left out."
        problems += [without_a_value(kept[k][1], product.variable, said, left_out) for k in empty]
        kept = [pair for k, pair in enumerate(kept) if k not in empty]
        if not kept:
            raise DataError(problems)
        if not empty:
            problems += gathered.judged.problems()
            problems += _lost_months(product.variable, reference, kept, gathered)
            break
    comparison = _result(product, kept, frequency, schemes, gathered)
    comparison.notes += notes
    return comparison, problems


def _overlapping(
    product: Product,
    reference: Series,
    runs: Sequence[tuple[Run, Series]],
    frequency: str,
) -> tuple[list[tuple[Run, Series]], list[Problem], list[str]]:
    """The runs that are long enough with the product, and why the others are not, as problems and
    notes; all of them where none is. One run of other years would leave none to the others."""
    kept, problems, notes = [], [], []
    for pair in runs:
        try:
            _common_periods(product, reference, [pair], frequency)
            kept.append(pair)
        except TooShortError as error:
            remedy = "The run is left out. Check the epoch in time's units. [period]"
            (problem,) = error.problems
            problem = replace(problem, where=pair[1].where, remedy=remedy, rule="period")
            # Two years make a monthly comparison and no annual one: that is no fault.
            if error.shared:
                notes.append(str(problem))
            else:
                problems.append(problem)
    return (kept, problems, notes) if kept else (list(runs), [], [])


def _lost_months(
    name: str, reference: Series, runs: Sequence[tuple[Run, Series]], gathered: _Gathered
) -> Iterator[Problem]:
    """Runs without a value in a step that the product has, which is then lost for all."""
    lost = np.flatnonzero(gathered.area_valid.sum(axis=0) == 0)
    if len(lost) == len(gathered.periods) or reference.frequency == "fx":
        return
    periods = [gathered.periods[t] for t in lost[:_MOST_READ_AGAIN]]
    there = set(reference.periods)
    wanted = [p for p in periods if p in there and np.isfinite(reference.read([p])).any()]
    for _, series in runs:
        empty = [p for p in wanted if not np.isfinite(series.read([p])).any()]
        if empty:
            months = [said_period(p, series.frequency) for p in empty]
            yield empty_months(series.where, name, months)


@dataclass
class _Gathered:
    """What one pass found: maps, and regional sums; series are the reference, then the runs.

    ``reference``, ``maps``, ``sums``, ``resampled``, ``judged``: as in ``Comparison``.
    ``area_valid`` (regions, T): common area [m2]; ``area_sums`` (series, regions, T): area times
    value. ``cycle_sums``, ``cycle_areas`` (series, regions, 12): area times mean of the calendar
    month, and that area. ``values`` (series,): how many there are, common or not.
    """

    grid: Grid
    areas: dict[str, Array]
    periods: tuple[Period, ...]
    days: Array
    reference: Array
    maps: list[dict[str, NDArray[Any]]]
    sums: dict[tuple[str, str], RegionalSums]
    resampled: dict[tuple[int, int], Resampled]
    judged: Judged
    area_valid: Array
    area_sums: Array
    cycle_sums: Array
    cycle_areas: Array
    values: NDArray[np.int64]
    implausible: int
    masks: Masks
    uncertainty: ProductUncertainty | None = None


def _gather(
    product: Product,
    reference: Series,
    runs: Sequence[tuple[Run, Series]],
    frequency: str,
    regions: Sequence[Region],
    schemes: Sequence[Scheme],
    regridder: Regridder,
    stated: Mapping[tuple[str, str, str, str], Series],
    uncertainty: Series | None,
) -> _Gathered:
    """Tile by tile of the map, and for each tile block by block of time, everything read once."""
    periods = _common_periods(product, reference, runs, frequency)
    grid = coarsest([series.grid for _, series in runs] + [reference.grid])
    step = "yr" if runs[0][1].frequency == "yr" else "mon"
    calendar = runs[0][1].calendar if frequency == "fx" else reference.calendar
    days = np.array([days_of(period, step, calendar) for period in periods])
    n_series, n_regions = len(runs) + 1, len(regions)
    n_years = len({year for year, _ in periods})
    enough = frequency != "fx" and n_years >= MINIMUM_DRAWN_YEARS
    drawn = pairs([run for run, _ in runs]) if enough else []
    found = _Gathered(
        grid,
        {region.name: region_area(region, grid) for region in regions},
        periods,
        days,
        np.full(grid.shape, np.nan),
        [{} for _ in runs],
        {},
        {pair: Resampled.empty(n_regions) for pair in drawn},
        Judged.empty(
            [run for run, _ in runs],
            stated,
            product.variable,
            n_regions,
            static=frequency == "fx",
            anomaly=product.anomaly,
        ),
        np.zeros((n_regions, len(periods))),
        np.zeros((n_series, n_regions, len(periods))),
        np.zeros((n_series, n_regions, 12)),
        np.zeros((n_series, n_regions, 12)),
        np.zeros(n_series, dtype=np.int64),
        0,
        Masks.empty(len(runs), grid),
    )
    static = static_map(product, reference, grid, regridder) if frequency == "fx" else None
    series = [reference, *(s for _, s in runs)]
    n_slots = 12 if frequency == "mon" else 1
    boxes = _tiles(grid, series, n_slots, n_years if drawn else 0, len(periods))
    budget = _HELD_BYTES if uncertainty is None else _HELD_BYTES // 2
    if static is None:
        series[0] = _held(reference, periods, grid, product.variable, regridder, boxes, budget)
    if uncertainty is not None:
        own = ProductUncertainty.of(uncertainty, pairs([run for run, _ in runs]), grid)
        if static is not None:
            own.static = static_map(product, uncertainty, grid, regridder)
        else:
            own.series = _held(
                uncertainty, periods, grid, product.variable, regridder, boxes, budget
            )
        found.uncertainty = own
    reader = _Reader(grid, periods, product.variable, series, static, regridder)
    blocks = reader.blocks(boxes, found.judged.stated)
    for box in boxes:
        _gather_tile(found, product, reader, blocks, frequency, box, schemes)
    used = found.uncertainty
    if used is not None and used.counted and not used.known:
        raise no_values(product)
    return found


def _gather_tile(
    found: _Gathered,
    product: Product,
    reader: _Reader,
    blocks: Iterator[_Block],
    frequency: str,
    box: Box,
    schemes: Sequence[Scheme],
) -> None:
    """Add one tile, the next of ``blocks``: its maps, and what it adds to the regional sums."""
    grid, n_runs = found.grid, len(found.maps)
    areas = np.stack([area[box].ravel() for area in found.areas.values()])
    area = grid.cell_area[box].ravel()
    parts = Parts.of(areas, area)
    sums, yearly, judged = _tile_sums(found, product, blocks, frequency, box, parts)
    minimum = MINIMUM_STEPS[frequency]
    # Two thirds of the cells are sea: what follows is done for those that count.
    cells = np.flatnonzero(sums.count.sum(axis=0) >= minimum)
    if not cells.size:
        return
    sums = sums.of_cells(cells)
    moments = sums.moments()
    areas, area, parts = areas[:, cells], area[cells], parts.of_cells(cells)
    found.judged.add_tile(judged, cells, parts, area, moments)
    if yearly is not None:
        yearly = yearly.of_cells(cells)
        for pair, resampled in found.resampled.items():
            resampled.add(
                yearly,
                pair,
                sums.guess_reference,
                sums.guess_model,
                parts,
                area,
                anomaly=product.anomaly,
            )
    weights = [(parts, area)]
    if not all(scheme.by_area for scheme in schemes):
        # Cells belong to a region as a whole or not at all.
        alike = np.ones_like(area)
        weights.append((Parts.of((areas >= (0.5 - 1e-9) * area).astype(np.float64), alike), alike))
    _place(found.reference, box, cells, moments.mean_reference)
    if found.uncertainty is not None:
        weight = sums.weight.sum(axis=0)
        to = box, cells, weights[0]
        _add_uncertainty(found, product, reader, frequency, schemes, to, moments, weight)
    for k in range(n_runs):
        _add_run(found, product, frequency, schemes, moments, k, box, cells, weights)
    if frequency == "mon":
        for i, cycle in enumerate((moments.cycle_reference, *moments.cycle_model)):
            total, weight, _ = parts.sums(cycle, area)
            found.cycle_areas[i] += weight.T
            found.cycle_sums[i] += total.T


def _tile_sums(
    found: _Gathered,
    product: Product,
    blocks: Iterator[_Block],
    frequency: str,
    box: Box,
    parts: Parts,
) -> tuple[PairSums, YearSums | None, CellSums]:
    """The sums over time of a tile's cells; sums over the tile for each step go to ``found``."""
    grid, periods, n_runs = found.grid, found.periods, len(found.maps)
    area = grid.cell_area[box].ravel()
    n_cells = area.size
    monthly = frequency == "mon"
    slots = np.array([period[1] - 1 if monthly else 0 for period in periods])
    sums = PairSums.empty(n_runs, n_cells, 12 if monthly else 1)
    _, years = np.unique([year for year, _ in periods], return_inverse=True)
    yearly = None
    if found.resampled:
        yearly = YearSums.empty(n_runs, n_cells, int(years.max()) + 1)
    judged = found.judged.tile(n_cells)
    for block in blocks:
        here, r, m = block.steps, block.reference, block.models
        added = sums.add(
            r,
            m,
            found.days[here],
            slots[here],
            part=parts.part,
            area=area,
            plausible=variable_table()[product.variable].valid_range,
            years=years[here],
            yearly=yearly,
        )
        found.masks.add(box, here, r, m)
        found.judged.add_block(judged, r, m, block.beside, found.days[here])
        found.area_valid[:, here] += parts.kinds @ added.areas
        found.area_sums[:, :, here] += parts.kinds @ added.sums
        parts.add_cut(r, m, area, found.area_valid[:, here], found.area_sums[:, :, here])
        found.values += added.seen
        found.implausible += added.outside
        if block.last:
            break
    return sums, yearly, judged


@dataclass(frozen=True)
class _Block:
    """Some steps of a tile: ``reference`` (T, N), ``models`` (K, T, N), and what is ``beside``
    them, (T, N) each. ``last``: of the tile."""

    steps: slice
    reference: NDArray[Any]
    models: NDArray[Any]
    beside: list[NDArray[Any]]
    last: bool


@dataclass(frozen=True)
class _Reader:
    """What the tiles are read from: the reference, or its ``static`` map instead, and the runs."""

    grid: Grid
    periods: tuple[Period, ...]
    variable: str
    series: Sequence[Series]
    static: Array | None
    regridder: Regridder

    def blocks(self, boxes: Sequence[Box], beside: Sequence[Series]) -> Iterator[_Block]:
        """All steps of the first tile, then of the next. A block is valid until the next but one:
        the next is read while the caller works on it."""
        n_runs, n_steps = len(self.series) - 1, len(self.periods)
        stored = np.result_type(*(_type(s) for s in self.series[1:]))
        work: list[tuple[Box, int, slice]] = []
        for box in boxes:
            n_cells = self.grid.cell_area[box].size
            size = _block_steps(n_cells, n_runs + len(beside))
            starts = range(0, n_steps, size)
            work += [(box, n_cells, slice(start, min(start + size, n_steps))) for start in starts]
        room = max(n_cells * (steps.stop - steps.start) for _, n_cells, steps in work)
        buffers = [np.empty(n_runs * room, stored) for _ in work[:2] if n_runs > 1]

        def read(number: int) -> _Block:
            box, n_cells, steps = work[number]
            own = self.periods[steps]
            if self.static is not None:
                r = np.broadcast_to(self.static[box].ravel(), (len(own), n_cells))
            else:
                r = self._values(self.series[0], own, box)
            if n_runs == 1:
                m = self._run(0, own, box)[None]
            else:
                m = buffers[number % 2][: n_runs * len(own) * n_cells]
                m = m.reshape(n_runs, len(own), n_cells)
                for k in range(n_runs):
                    m[k] = self._run(k, own, box)
            others = [self._values(one, own, box) for one in beside]
            return _Block(steps, r, m, others, steps.stop == n_steps)

        return _one_ahead(read, len(work))

    def _run(self, k: int, periods: Sequence[Period], box: Box) -> NDArray[Any]:
        try:
            return self._values(self.series[k + 1], periods, box)
        except DataError as error:
            raise _RunError(k, error.problems) from error

    def _values(self, series: Series, periods: Sequence[Period], box: Box) -> NDArray[Any]:
        try:
            return on_grid(series, periods, self.grid, self.variable, self.regridder, box)
        except UncertaintyError:
            raise
        except DataError as error:
            raise DataError(map(named, error.problems)) from error


def _add_uncertainty(
    found: _Gathered,
    product: Product,
    reader: _Reader,
    frequency: str,
    schemes: Sequence[Scheme],
    to: tuple[Box, NDArray[np.int64], _Weights],
    moments: Moments,
    weight: Array,
) -> None:
    """Add what the uncertainty says of the cells of a tile that count, read again for it.

    ``to``: the tile, its N cells that count, and their areas;  weight : (N,) length of the common
    steps [days]
    """
    box, cells, by_area = to
    own, n_runs = found.uncertainty, len(found.maps)
    assert own is not None
    if own.static is not None:
        there = CellUncertainty.of_map(own.static[box].ravel()[cells], moments.count)
    else:
        sums = ExcessSums.about(moments, cells, found.reference[box].size)
        for block in reader.blocks([box], [own.series]):
            days = found.days[block.steps]
            sums.add(block.reference, block.models, block.beside[0], days)
        there = CellUncertainty.of_sums(sums, weight, cells)
    own.known += int(there.known.sum())
    own.counted += int(moments.count.sum())
    _place(own.field, box, cells, there.field)
    for k in range(n_runs):
        fields = there.run_fields(moments, k, frequency, schemes, anomaly=product.anomaly)
        _add_sums(found.sums, fields, k, n_runs, by_area)
    for i, j in () if product.anomaly else own.pairs:
        _add_sums(found.sums, {("", BEYOND): there.beyond(moments, i, j)}, j, n_runs, by_area)


def _one_ahead(read: Callable[[int], T], count: int) -> Iterator[T]:
    """What ``read`` gives for 0, 1, 2 ...: the next while the caller works on the last."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, 0)
        for number in range(count):
            result = coming.result()
            if number + 1 < count:
                coming = pool.submit(read, number + 1)
            yield result


def _add_run(
    found: _Gathered,
    product: Product,
    frequency: str,
    schemes: Sequence[Scheme],
    moments: Moments,
    k: int,
    box: Box,
    cells: NDArray[np.int64],
    weights: Sequence[_Weights],
) -> None:
    """Maps and regional sums of run ``k`` for the ``cells`` of a tile that count.

    weights : by area, then of cells that belong to a region as a whole, where a scheme wants them
    """
    mean_r, mean_m = moments.mean_reference, moments.mean_model[k]
    common: dict[str, Array] = {"reference_mean": mean_r, "mean": mean_m}
    if not product.anomaly:
        bias = mean_m - mean_r
        common |= {"bias": bias, "absolute_bias": np.abs(bias)}
    fields = {("", name): values for name, values in common.items()}
    for scheme in schemes:
        own = scheme.cell_maps(moments, k, frequency, anomaly=product.anomaly)
        fields |= {(scheme.name, name): values for name, values in own.items()}
    terms = scores.pattern_terms(mean_m, mean_r)
    if any(scheme.by_area for scheme in schemes):
        fields |= {(_PATTERN[True], name): values for name, values in terms.items()}
    _add_sums(found.sums, fields, k, len(found.maps), weights[0])
    if not all(scheme.by_area for scheme in schemes):
        alike = {(_PATTERN[False], name): values for name, values in terms.items()}
        _add_sums(found.sums, alike, k, len(found.maps), weights[1])
    first, *others = schemes
    repeated = {
        (scheme.name, name)
        for scheme in others
        for _, name in fields
        if (first.name, name) in fields
        and scheme.variant(name, frequency) == first.variant(name, frequency)
    }
    shown = {"", *(scheme.name for scheme in schemes)}
    for (of, name), values in fields.items():
        if of not in shown or (of, name) in repeated or name in ("reference_mean", "absolute_bias"):
            continue
        key = name if of in ("", first.name) else f"{name}.{of}"
        if key not in found.maps[k]:
            # The spread between models is made of the means: they keep all their digits.
            kind = np.float64 if name == "mean" else np.float32
            found.maps[k][key] = np.full(found.grid.shape, np.nan, kind)
        _place(found.maps[k][key], box, cells, values)


def _place(whole: NDArray[Any], box: Box, cells: NDArray[np.int64], values: Array) -> None:
    """Put the values of a tile's ``cells`` into the map."""
    part = whole[box]
    part[np.unravel_index(cells, part.shape)] = values


def _add_sums(
    sums: dict[tuple[str, str], RegionalSums],
    fields: dict[tuple[str, str], Array],
    k: int,
    n_runs: int,
    weights: _Weights,
) -> None:
    """Add the cells of a tile to the sums over all regions."""
    parts, area = weights
    total, weight, cells = parts.sums(np.stack(list(fields.values())), area)
    for i, key in enumerate(fields):
        own = sums.setdefault(key, RegionalSums.empty(n_runs, len(parts.kinds)))
        own.total[k] += total[i]
        own.weight[k] += weight[i]
        own.cells[k] += cells[i]


def _type(series: Series) -> np.dtype[Any]:
    return np.dtype(getattr(series, "dtype", np.float64))


def _tiles(
    grid: Grid, series: Sequence[Series], n_slots: int, n_years: int, n_steps: int
) -> list[Box]:
    """Parts of the map whose sums fit in memory: whole chunks of what is read, or all of it.

    Small ones where that costs no second reading: their sums stay in the processor's cache while
    all steps are added.

    What is regridded, and files that hold whole maps, have to be read again for each tile; that is
    done where the sums of the whole map would take too much. The reference is first.
    """
    nlat, nlon = grid.shape
    bytes_per_cell = len(series) * (8 * (3 * n_slots + 12) + 12 * n_years)
    chunks = [s.chunk if s.grid.same_cells(grid) else grid.shape for s in series]
    rows, columns = (max(chunk[i] for chunk in chunks) for i in (0, 1))
    budget = _SUM_BYTES
    if rows * columns * bytes_per_cell > _MOST_SUM_BYTES:
        small = [c for c in chunks if math.prod(c) * bytes_per_cell <= _MOST_SUM_BYTES]
        rows, columns = (max((c[i] for c in small), default=1) for i in (0, 1))
        if any(chunk not in small for chunk in chunks[1:]):
            budget = _MOST_SUM_BYTES
    fitting = max(1, min(budget // bytes_per_cell, _ARRAY_BYTES // (4 * n_steps)))
    columns = min(nlon, max(columns, fitting // rows // columns * columns))
    rows = min(nlat, max(rows, fitting // columns // rows * rows))
    return [
        (slice(i, min(i + rows, nlat)), slice(j, min(j + columns, nlon)))
        for i in range(0, nlat, rows)
        for j in range(0, nlon, columns)
    ]


@dataclass
class _Held:
    """A series on the comparison grid, read once for all tiles; (T, nlat, nlon) in memory."""

    series: Series
    grid: Grid
    values: NDArray[Any]
    periods: tuple[Period, ...]
    land: Array | None = None
    chunk: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        self.where, self.frequency = self.series.where, self.series.frequency
        self.calendar = self.series.calendar
        self._places = {period: i for i, period in enumerate(self.periods)}

    def read(self, periods: Sequence[Period], box: Box | None = None) -> NDArray[Any]:
        first = self._places[periods[0]]
        return self.values[(slice(first, first + len(periods)), *(box or ()))]

    def close(self) -> None:
        self.series.close()


def _held(
    reference: Series,
    periods: tuple[Period, ...],
    grid: Grid,
    variable: str,
    regridder: Regridder,
    boxes: Sequence[Box],
    budget: int,
) -> Series:
    """The reference, in memory where its files would be read again for each tile and it fits."""
    tile = [cut.stop - cut.start for cut in boxes[0]]
    fine = reference.grid.same_cells(grid) and all(
        chunk <= size for chunk, size in zip(reference.chunk, tile, strict=True)
    )
    n_cells = math.prod(grid.shape)
    size = _type(reference).itemsize * len(periods) * n_cells
    if len(boxes) == 1 or fine or size > budget:
        return reference
    values = np.empty((len(periods), *grid.shape), _type(reference))
    step = _block_steps(n_cells, 0)
    for start in range(0, len(periods), step):
        block = periods[start : start + step]
        own = on_grid(reference, block, grid, variable, regridder)
        values[start : start + len(block)] = own.reshape(len(block), *grid.shape)
    return _Held(reference, grid, values, periods)


def _block_steps(n_cells: int, n_runs: int) -> int:
    """Steps read at a time: whole chunks where memory allows, else fewer."""
    fitting = min(_BLOCK_BYTES // (n_runs + 1), _ARRAY_BYTES) // (4 * n_cells)
    if fitting >= _BLOCK_STEPS:
        return fitting // _BLOCK_STEPS * _BLOCK_STEPS
    return max(n for n in range(1, _BLOCK_STEPS) if n <= max(fitting, 1) and _BLOCK_STEPS % n == 0)


def coarsest(grids: Sequence[Grid]) -> Grid:
    """The grid with the largest mean cell; of equal ones the first."""

    largest = max(grid.mean_cell for grid in grids)
    return next(grid for grid in grids if grid.mean_cell >= largest * (1.0 - 1e-6))


def on_grid(
    series: Series,
    periods: Sequence[Period],
    grid: Grid,
    variable: str,
    regridder: Regridder,
    box: Box | None = None,
) -> NDArray[Any]:
    """(T, N) values of a box of the comparison grid; regridded where the series has another."""
    if series.grid.same_cells(grid):
        return series.read(periods, box).reshape(len(periods), -1)
    values = _regridded(series.read(periods), series, grid, variable, regridder)
    return values[(slice(None), *(box or ()))].reshape(len(periods), -1)


def _regridded(
    values: Array, series: Series, grid: Grid, variable: str, regridder: Regridder
) -> Array:
    source = series.grid
    methods = {} if series.land is None else {"cell_methods": f"area: mean {PER_LAND}"}
    ds = xr.Dataset(
        {variable: (("time", "lat", "lon"), values, methods)},
        coords={
            "lat": ("lat", source.lat, {"standard_name": "latitude", "bounds": "lat_bnds"}),
            "lon": ("lon", source.lon, {"standard_name": "longitude", "bounds": "lon_bnds"}),
            "lat_bnds": (("lat", "bnds"), source.lat_bnds),
            "lon_bnds": (("lon", "bnds"), source.lon_bnds),
        },
    )
    if series.land is not None:
        ds = ds.assign_coords(
            sftlf=(
                ("lat", "lon"),
                100.0 * np.nan_to_num(series.land),
                {"standard_name": "land_area_fraction", "units": "%"},
            )
        )
    out = regridder(ds, grid)[variable]
    return np.asarray(out.transpose("time", "lat", "lon").values, dtype=np.float64)


def static_map(product: Product, reference: Series, grid: Grid, regridder: Regridder) -> Array:
    """(nlat, nlon) map of the product; of several epochs the mean of those in the window."""
    periods = reference.periods
    if reference.frequency != "fx":
        periods = tuple(sorted(product.in_window(periods)))
    if not periods:
        raise DataError(
            Problem(
                reference.where,
                product.variable,
                f"{_span(reference.periods, reference.frequency)}",
                f"an epoch in the window {_window(product)}",
            )
        )
    total = np.zeros(grid.shape[0] * grid.shape[1])
    count = np.zeros_like(total)
    for period in periods:
        values = on_grid(reference, [period], grid, product.variable, regridder)[0]
        total += np.nan_to_num(values)
        count += np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / count).reshape(grid.shape)


def _common_periods(
    product: Product,
    reference: Series,
    runs: Sequence[tuple[Run, Series]],
    frequency: str,
) -> tuple[Period, ...]:
    common = set(runs[0][1].periods)
    for _, series in runs[1:]:
        common &= set(series.periods)
    if frequency != "fx":
        common &= set(reference.periods)
    common = product.in_window(common)
    annual = runs[0][1].frequency == "yr"
    minimum = MINIMUM_STEPS[frequency]
    if len(common) < minimum:
        spans = sorted({_span(series.periods, series.frequency) for _, series in runs})
        window = f", window {_window(product)}" if product.window else ""
        own = "" if frequency == "fx" else f"{_span(reference.periods, frequency)}{window}; "
        raise TooShortError(
            Problem(
                reference.where,
                product.variable,
                f"{len(common)} {'years' if annual else 'months'} in common "
                f"({own or window}runs {', '.join(spans)})",
                f"at least {minimum}",
            ),
            len(common),
        )
    return tuple(sorted(common))


def _result(
    product: Product,
    runs: Sequence[tuple[Run, Series]],
    frequency: str,
    schemes: Sequence[Scheme],
    gathered: _Gathered,
) -> Comparison:
    reference = gathered.reference
    annual_steps = frequency == "yr" or (frequency == "fx" and gathered.days[0] > 300)
    comparison = Comparison(
        product=product,
        frequency=frequency,
        schemes=tuple(schemes),
        runs=[run for run, _ in runs],
        grid=gathered.grid,
        areas=gathered.areas,
        periods=gathered.periods,
        days=gathered.days,
        n_months=len(gathered.periods) * (12 if annual_steps else 1),
        reference=reference,
        maps=gathered.maps,
        sums=gathered.sums,
        resampled=gathered.resampled,
        judged=gathered.judged,
        masks=gathered.masks,
        places=[series.where for _, series in runs],
    )
    comparison.notes += gathered.judged.notes(product.name)
    if gathered.uncertainty is not None:
        comparison.uncertainty = gathered.uncertainty.field
        comparison.notes += gathered.uncertainty.notes(product)
    if frequency == "mon":
        comparison.cycles = _regional_cycles(gathered)
    if frequency != "fx":
        comparison.annual = _annual_series(gathered, frequency)
    share = gathered.implausible / gathered.values[0]
    if share > _IMPLAUSIBLE_SHARE and not product.anomaly:
        entry = variable_table()[product.variable]
        comparison.notes.append(
            f"product {product.name}: {share:.0%} of the values lie outside "
            f"{entry.valid_range[0]:g} to {entry.valid_range[1]:g} {entry.units}, what "
            f"{product.variable} may plausibly be: check units, factor and sign."
        )
    if not np.isfinite(reference).any():
        minimum = MINIMUM_STEPS[frequency]
        raise DataError(
            Problem(
                f"product {product.name}",
                product.variable,
                f"no cell with {minimum} steps that product and all runs have",
                "an overlap in space",
            )
        )
    return comparison


def _regional_cycles(gathered: _Gathered) -> dict[str, list[list[float]]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        means = gathered.cycle_sums / gathered.cycle_areas
    return {name: means[:, i].tolist() for i, name in enumerate(gathered.areas)}


def _annual_series(
    gathered: _Gathered, frequency: str
) -> dict[str, tuple[list[int], list[list[float]]]]:
    """Region -> whole years and the means over area and time of reference and runs."""
    years = np.array([period[0] for period in gathered.periods])
    needed = 12 if frequency == "mon" else 1
    whole = [int(y) for y in np.unique(years) if (years == y).sum() == needed]
    result = {}
    for i, name in enumerate(gathered.areas):
        series: list[list[float]] = []
        for sums in gathered.area_sums:
            values = []
            for year in whole:
                steps = years == year
                area = (gathered.area_valid[i, steps] * gathered.days[steps]).sum()
                total = (sums[i, steps] * gathered.days[steps]).sum()
                values.append(float(total / area) if area > 0 else float("nan"))
            series.append(values)
        result[name] = (whole, series)
    return result


def _span(periods: Sequence[Period], frequency: str) -> str:
    if not periods:
        return "no time at all"
    (y0, m0), (y1, m1) = periods[0], periods[-1]
    return f"{y0}-{y1}" if frequency == "yr" else f"{y0}-{m0:02d} to {y1}-{m1:02d}"


def _window(product: Product) -> str:
    return "" if product.window is None else f"{product.window[0]}-{product.window[1]}"
