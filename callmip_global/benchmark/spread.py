"""Between models: how far apart they are in both stages, what makes it up, whether it is honest.

Everything is made of the models' mean maps and regional mean cycles that the one pass over the data
has left; nothing is read again. The same models count in both stages, those that have both, and the
members of one model count as their mean.

Every number that has a reduction is made for all models and for all but each one in turn, so that a
reduction that hangs on a single model shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.benchmark.compare import Comparison, Regridder
from callmip_global.benchmark.inputs import STAGES, Run
from callmip_global.benchmark.product import Product
from callmip_global.benchmark.scores import MINIMUM_CALENDAR_MONTHS, RESOLUTION
from callmip_global.benchmark.series import Series
from callmip_global.compiled import compiled
from callmip_global.grid import Grid
from callmip_global.store import grid_variables
from callmip_global.variables import Variable, variable_table, windows

Array = NDArray[np.float64]

MINIMUM_MODELS = 3  # below that a spread says nothing
_BLOCK = 4096  # cells whose values of all models are held at a time
_YEAR_S = 365.25 * 86400.0
# From the units of the variable table times m2.
_TOTALS = {"PgC yr-1": 1e-12 * _YEAR_S, "1e3 km3 yr-1": 1e-15 * _YEAR_S, "PgC": 1e-12, "PW": 1e-15}
_MAPPED = ("spread", "spread_mad", "spread_range")


@dataclass(frozen=True, eq=False)
class Spread:
    """The models of one simulation that have both stages, R regions.

    ``models``: their names. ``values``: stage -> quantity -> (R,). ``reductions``: quantity ->
    (3, R) 1 - posterior / prior, the least and the largest of it when each model in turn is left
    out; NaN where the prior has no spread to speak of. ``units``: of quantities that are not in the
    units of the variable or 1. ``cells`` (R,): common cells. ``cycles``: stage -> (R, 12) standard
    deviation across models of the regional mean of each calendar month; empty without months.
    ``maps``: stage -> name -> (nlat, nlon) float32, NaN outside the common mask.
    """

    simulation: str
    models: tuple[str, ...]
    values: Mapping[str, Mapping[str, Array]]
    reductions: Mapping[str, Array]
    units: Mapping[str, str]
    cells: NDArray[np.int64]
    cycles: Mapping[str, Array]
    maps: Mapping[str, Mapping[str, NDArray[np.float32]]]


def between_models(comparison: Comparison, land: Callable[[], Array]) -> list[Spread]:
    """The spread of each simulation that has at least three models with both stages.

    ``land``: gives (nlat, nlon) the part of each cell that counts in totals (`land_fraction`).
    """
    found = []
    for simulation in sorted({run.simulation for run in comparison.runs}):
        models = models_with_both_stages(comparison.runs, simulation)
        if len(models) >= MINIMUM_MODELS:
            found.append(_spread(comparison, simulation, models, land))
    return found


def one_stage_notes(compared: Sequence[tuple[Product, str, Sequence[Run]]]) -> list[str]:
    """What to tell of models that do not count, and of a spread that is not there for want of them.

    ``compared``: product, frequency and runs of each comparison. One line for all products of which
    the same is to be told; nothing of one model, of which nobody expects a spread.
    """
    told: dict[tuple[str, str], dict[Product, list[str]]] = {}
    for product, frequency, runs in compared:
        for said in _one_stage(runs):
            told.setdefault(said, {}).setdefault(product, []).append(frequency)
    notes = []
    for (simulation, what), products in told.items():
        names: dict[str, list[str]] = {}
        for product, frequencies in products.items():
            others = [f for own, f, _ in compared if own is product and f not in frequencies]
            at = f" at {', '.join(frequencies)}" if others else ""
            names.setdefault(product.variable, []).append(f"{product.name}{at}")
        of = ", ".join(f"{variable} ({', '.join(own)})" for variable, own in names.items())
        notes.append(f"spread between models, {simulation}, of {of}: {what}.")
    return notes


def _one_stage(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """Simulation and what to tell of the spread of these runs."""
    for simulation in sorted({run.simulation for run in runs}):
        names = sorted({run.model for run in runs if run.simulation == simulation})
        both = models_with_both_stages(runs, simulation)
        if len(names) == 1 or (len(both) == len(names) >= MINIMUM_MODELS):
            continue
        if len(names) < MINIMUM_MODELS:
            yield simulation, f"{len(names)} are too few, {MINIMUM_MODELS} are needed"
            continue
        alone = ", ".join(name for name in names if name not in both)
        what = f"without {alone}, of one stage only"
        if len(both) < MINIMUM_MODELS:
            what += f"; that leaves {len(both)}, {MINIMUM_MODELS} are needed"
        yield simulation, what


def models_with_both_stages(
    runs: Sequence[Run], simulation: str
) -> dict[str, dict[str, list[int]]]:
    """Model -> stage -> positions of its runs (members), of models that have both stages."""
    found: dict[str, dict[str, list[int]]] = {}
    for k, run in enumerate(runs):
        if run.simulation == simulation:
            found.setdefault(run.model, {}).setdefault(run.stage, []).append(k)
    return {model: found[model] for model in sorted(found) if set(found[model]) == set(STAGES)}


def total_units(variable: Variable) -> str | None:
    """Units of the variable's total over an area; None for one whose mean is what people ask for.

    Source: config/plausible.yaml; carbon fluxes that are not in it have totals in PgC yr-1.
    """
    window = windows().get(variable.name)
    if window is not None:
        return window.units if window.of == "total" else None
    return "PgC yr-1" if variable.upload_units == "kgC m-2 s-1" else None


def land_fraction(runs: Sequence[Series], grid: Grid, regridder: Regridder) -> Array:
    """(nlat, nlon) part of each cell that the values are of, mean of the runs; 1 for a run whose
    values are of whole cells or whose file does not say."""
    found: list[tuple[Grid, Array]] = []
    for series in runs:
        whole = np.ones(series.grid.shape)
        land = whole if series.land is None else np.clip(np.nan_to_num(series.land), 0.0, 1.0)
        for known, total in found:
            if known.same_cells(series.grid):
                total += land
                break
        else:
            found.append((series.grid, land))
    mean = np.zeros(grid.shape)
    for own, total in found:
        if not own.same_cells(grid):
            ds = xr.Dataset({"land": (("lat", "lon"), total)}, coords=grid_variables(own))
            total = np.nan_to_num(regridder(ds, grid)["land"].transpose("lat", "lon").values)
        mean += total / len(runs)
    return mean


@compiled
def _spread_of_cell(values: Array, order: NDArray[np.int64], kept: Array, found: Array) -> None:
    """Fill ``found`` (4, n + 1) from ``values`` (n,): standard deviation (n - 1), median absolute
    deviation, range and variance of all models, then without each; the others are for work."""
    n = len(values)
    for i in range(n):
        j = i
        while j > 0 and values[order[j - 1]] > values[i]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    for without in range(n + 1):
        size = 0
        total = 0.0
        for i in range(n):
            if order[i] != without - 1:
                kept[size] = values[order[i]]
                total += kept[size]
                size += 1
        mean = total / size
        square = 0.0
        for i in range(size):
            square += (kept[i] - mean) ** 2
        median = 0.5 * (kept[(size - 1) // 2] + kept[size // 2])
        # Departures from the median in ascending order, from the middle outwards.
        low, high = (size + 1) // 2 - 1, (size + 1) // 2
        departure = before = 0.0
        for _ in range(size // 2 + 1):
            before = departure
            if high >= size or (low >= 0 and median - kept[low] <= kept[high] - median):
                departure = median - kept[low]
                low -= 1
            else:
                departure = kept[high] - median
                high += 1
        variance = square / (size - 1)
        found[0, without] = np.sqrt(variance)
        found[1, without] = departure if size % 2 else 0.5 * (before + departure)
        found[2, without] = kept[size - 1] - kept[0]
        found[3, without] = variance


@compiled
def _add_cells(
    values: Array,
    reference: Array,
    land: Array,
    areas: Array,
    spread: Array,
    mean: Array,
    total: Array,
    against: Array,
    maps: Array,
) -> None:
    """Add N cells to the sums of ``_Sums``, and fill ``maps`` (4, N).

    values : (N, n);  reference, land : (N,);  areas : (R, N)
    """
    # No matrix products: they are of small matrices, for which threads wait for each other.
    n_cells, n = values.shape
    order, kept, found = np.empty(n, np.int64), np.empty(n), np.empty((4, n + 1))
    for c in range(n_cells):
        own = values[c]
        _spread_of_cell(own, order, kept, found)
        bias = own.mean() - reference[c]
        covered = own.min() <= reference[c] <= own.max()
        size = (own**2).mean()
        for r in range(len(areas)):
            area = areas[r, c]
            if area == 0.0:
                continue
            for q in range(4):
                for i in range(n + 1):
                    spread[r, q, i] += area * found[q, i]
            for i in range(n):
                mean[r, i] += area * own[i]
                total[r, i] += area * land[c] * own[i]
            against[r, 0] += area * size
            against[r, 1] += area * bias**2
            against[r, 2] += area * covered
        maps[:3, c] = found[:3, 0]
        maps[3, c] = bias


def left_out_variance(values: Any) -> Array:
    """(1 + n, ...) variance (n - 1) of ``values`` (n, ...) of all models, then without each."""
    values = np.asarray(values, np.float64)
    kept = [values, *(np.delete(values, k, axis=0) for k in range(len(values)))]
    return np.stack([np.var(some, axis=0, ddof=1) for some in kept])


def seasonal_variance(cycles: Any, days: Any) -> Array:
    """(1 + n, R) variance across models of the shape of their regional mean cycles.

    cycles : (n, R, 12) of each model, NaN for a month without a value;  days : (12,) weights

    The mean over the year is taken off each cycle, for it is part of the offset. NaN where fewer
    than MINIMUM_CALENDAR_MONTHS months are there.
    """
    cycles = np.asarray(cycles, np.float64)
    there = np.isfinite(cycles).all(axis=0)
    weight = np.where(there, days, 0.0)
    enough = there.sum(axis=-1) >= MINIMUM_CALENDAR_MONTHS
    weight /= np.where(enough, weight.sum(axis=-1), np.nan)[:, None]
    cycles = np.where(there, cycles, 0.0)
    departures = cycles - (cycles * weight).sum(axis=-1, keepdims=True)
    return np.asarray((left_out_variance(departures) * weight).sum(axis=-1))


class _Sums:
    """Sums over the common cells of one stage, block by block.

    ``groups``: the mean maps (nlat, nlon) of the members of each model. Sums are of area times
    number: ``_spread`` (R, 4, 1 + n) as in ``_spread_of_cell``; ``_mean``, ``_total`` (R, n) the
    values, of whole cells and of land; ``_against`` (R, 3) mean square of the values, square of
    the bias of their mean, whether the product lies within their range.
    """

    def __init__(self, groups: Sequence[Sequence[Array]], reference: Array, n_regions: int) -> None:
        n = len(groups)
        self._groups = [[own.ravel() for own in members] for members in groups]
        self._reference = reference.ravel()
        self._spread = np.zeros((n_regions, 4, n + 1))
        self._mean, self._total = np.zeros((2, n_regions, n))
        self._against = np.zeros((n_regions, 3))
        names = (*_MAPPED, "multi_model_bias")
        self.maps = {name: np.full(reference.shape, np.nan, np.float32) for name in names}

    def add(self, cells: NDArray[np.int64], areas: Array, land: Array) -> None:
        """Add N cells; ``areas`` (R, N) [m2]; ``land`` (N,) part of each that counts in totals."""
        reference = self._reference[cells]
        members = ([own[cells] for own in group] for group in self._groups)
        values = np.stack([np.mean(own, axis=0) for own in members], axis=1)
        sums = self._spread, self._mean, self._total, self._against
        maps = np.empty((4, len(cells)))
        _add_cells(values, reference, land, areas, *sums, maps)
        for whole, found in zip(self.maps.values(), maps, strict=True):
            whole.reshape(-1)[cells] = found

    def spreads(self, area: Array, factor: float) -> dict[str, Array]:
        """Quantity -> (1 + n, R) of all models, then without each.

        ``area`` (R,): of the cells. ``factor``: to the units of totals; NaN where there are none.
        """
        of_cells = (self._spread / area[:, None, None]).transpose(1, 2, 0)
        offset = left_out_variance((self._mean / area[:, None]).T)
        total = left_out_variance(factor * self._total.T) if math.isfinite(factor) else offset
        return {
            **dict(zip(_MAPPED, of_cells[:3], strict=True)),
            "spread_offset": np.sqrt(offset),
            "spread_pattern": np.sqrt(np.maximum(of_cells[3] - offset, 0.0)),
            "total_spread": np.where(np.isfinite(area), np.sqrt(total), np.nan),
        }

    def against_product(self, area: Array) -> dict[str, Array]:
        """Quantity -> (R,): whether the spread is as large as the error of the multi-model mean."""
        n = self._mean.shape[1]
        rmse = np.sqrt(self._against[:, 1] / area)
        wanted = np.sqrt((n + 1) / n * self._spread[:, 3, 0] / area)
        return {
            "multi_model_rmse": rmse,
            "spread_skill": wanted / np.where(rmse > 0, rmse, np.nan),
            "range_coverage": self._against[:, 2] / area,
        }

    def floor(self, area: Array) -> Array:
        """(R,) what is nothing beside the size of the values: no spread to be reduced."""
        return np.asarray(RESOLUTION * np.sqrt(self._against[:, 0] / area))


def _spread(
    comparison: Comparison,
    simulation: str,
    models: Mapping[str, Mapping[str, Sequence[int]]],
    land: Callable[[], Array],
) -> Spread:
    anomaly = comparison.product.anomaly
    regions = [area.ravel() for area in comparison.areas.values()]
    sums = {
        stage: _Sums(
            [[comparison.maps[k]["mean"] for k in of[stage]] for of in models.values()],
            comparison.reference,
            len(regions),
        )
        for stage in STAGES
    }
    cells = np.flatnonzero(np.isfinite(comparison.reference))
    units = total_units(variable_table()[comparison.product.variable])
    part = np.ones(comparison.reference.size) if units is None else land().ravel()
    area, land_area = np.zeros((2, len(regions)))
    count = np.zeros(len(regions), np.int64)
    for start in range(0, len(cells), _BLOCK):
        block = cells[start : start + _BLOCK]
        areas = np.stack([region[block] for region in regions])
        area += areas.sum(axis=1)
        land_area += areas @ part[block]
        count += (areas > 0).sum(axis=1)
        for own in sums.values():
            own.add(block, areas, part[block])
    area[count == 0] = np.nan
    factor = math.nan if units is None else _TOTALS[units]
    cycles = _cycles(comparison, models)
    months = [month - 1 for _, month in comparison.periods] if cycles else []
    days = np.bincount(months, comparison.days, 12) if cycles else np.empty(0)
    spreads, values = {}, {}
    for stage, own in sums.items():
        found = own.spreads(area, factor)
        if cycles:
            found["spread_seasonal"] = np.sqrt(seasonal_variance(cycles[stage], days))
        spreads[stage] = found
        values[stage] = {name: of[0] for name, of in found.items()}
        if anomaly:
            del own.maps["multi_model_bias"]
        else:
            values[stage] |= own.against_product(area)
    floor = sums["Prior"].floor(area)
    floors = {} if units is None else {"total_spread": floor * factor * land_area}
    return Spread(
        simulation,
        tuple(models),
        values,
        {
            name: _reduction(before, spreads["Posterior"][name], floors.get(name, floor))
            for name, before in spreads["Prior"].items()
        },
        {} if units is None else {"total_spread": units},
        count,
        {stage: np.std(of, axis=0, ddof=1) for stage, of in cycles.items()},
        {stage: own.maps for stage, own in sums.items()},
    )


def _cycles(
    comparison: Comparison, models: Mapping[str, Mapping[str, Sequence[int]]]
) -> dict[str, Array]:
    """Stage -> (n, R, 12) regional mean cycles of the models; empty without months."""
    if not comparison.cycles:
        return {}
    series = np.array(list(comparison.cycles.values()))[:, 1:]
    return {
        stage: np.stack([series[:, list(of[stage])].mean(axis=1) for of in models.values()])
        for stage in STAGES
    }


def _reduction(before: Array, after: Array, floor: Array) -> Array:
    """(3, R) 1 - after / before of all models, and its ends when each in turn is left out."""
    share = 1.0 - after / np.where(before > floor, before, np.nan)
    return np.stack([share[0], share[1:].min(axis=0), share[1:].max(axis=0)])
