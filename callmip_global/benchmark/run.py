"""The benchmark: every product against every run; scores, differences, spread, maps, a summary."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.benchmark import scores
from callmip_global.benchmark.bootstrap import DRAWS, LEVEL, MINIMUM_DRAWN_YEARS
from callmip_global.benchmark.cache import (
    FOLDER,
    FileDigests,
    Found,
    Kept,
    maps_of,
    product_parts,
    unit_key,
    versions,
)
from callmip_global.benchmark.call import FREQUENCIES, Call, usable_call
from callmip_global.benchmark.ceiling import against, rivals
from callmip_global.benchmark.compare import (
    MINIMUM_MONTHS,
    MINIMUM_YEARS,
    Comparison,
    Regridder,
    TooShortError,
    compare,
)
from callmip_global.benchmark.inputs import STAGES, Run, pairs, unpaired_notes
from callmip_global.benchmark.product import Product
from callmip_global.benchmark.product_check import check_product, check_runs, named
from callmip_global.benchmark.regions import REGIONS, Region
from callmip_global.benchmark.run_check import months_lacking
from callmip_global.benchmark.series import (
    AnnualSeries,
    Period,
    Series,
    at_frequency,
    product_series,
)
from callmip_global.benchmark.spread import Spread, between_models, land_fraction, one_stage_notes
from callmip_global.benchmark.tables import (
    UNITLESS,
    Score,
    number_text,
    write_parquet,
    write_scores,
)
from callmip_global.benchmark.uncertainty import (
    BEYOND,
    REFERENCE_UNCERTAINTY,
    RUN_QUANTITIES,
    UncertaintyError,
    uncertainty_series,
)
from callmip_global.errors import CallmipError, DataError, Problem
from callmip_global.files import name_part, write_json
from callmip_global.parallel import (
    Progress,
    TaskMap,
    keep_freed_memory,
    one_by_one,
    quiet,
    run_units,
)
from callmip_global.store import grid_variables
from callmip_global.variables import UNCERTAINTY, variable_table

Array = NDArray[np.float64]
_Has = Mapping[tuple[tuple[str, str, str, str], str], set[str]]

CHANGE = "Posterior-Prior"
ALL_MODELS = "all models"
_OF_THE_PRODUCT = ("reference_mean", REFERENCE_UNCERTAINTY)
# The NetCDF library does not bear that one thread writes while another one opens a file: it kills
# the process. Units are for several processes; in one they take turns.
_ALONE = threading.Lock()


def run_benchmark(
    stores: Sequence[Path],
    *,
    products: Sequence[Product],
    out: Path,
    regridder: Regridder,
    frequencies: Sequence[str] = FREQUENCIES,
    regions: Sequence[str] = tuple(REGIONS),
    schemes: Sequence[str] = (scores.COLLIER2018.name,),
    progress: Progress = quiet,
    task_map: TaskMap = one_by_one,
) -> dict[str, Any]:
    """Score runs against products and write what was found.

    ``stores``: stores of harmonized runs, or NetCDF files with the protocol's names. ``regridder``:
    brings a dataset (time, lat, lon, with bounds; ``sftlf`` where known) to a grid, conserving
    area means (``regrid.regrid_dataset``); product and runs meet on the coarsest of their grids.
    ``schemes``: names of ``scores.SCHEMES``; scores.csv has a whole table of each, the maps have
    fields of each (``rmse_score_prior`` of the first, ``rmse_score_prior_ilamb27`` of another that
    differs), those that the report shows are of the first. ``task_map``: where the units run, each
    of them one product at one frequency with all runs, or with another product.

    Writes ``out/scores.csv``, the same table as ``out/scores.parquet``, ``out/maps/*.nc``,
    ``out/benchmark.json`` (with table and maps all that ``write_report`` needs) and
    ``out/problems.json``, and returns the summary that is in benchmark.json. What came of each unit
    stays in ``out/kept``: a later call for the same ``out`` computes those whose inputs have
    changed, or that a killed one has not done. A product that cannot be used is one line in its
    ``problems``; the rest goes on. Raises UsageError for runs, frequencies, regions or schemes that
    cannot be used at all.
    """
    call = usable_call(
        stores, products=products, frequencies=frequencies, regions=regions, schemes=schemes
    )
    return run_call(call, out=out, regridder=regridder, progress=progress, task_map=task_map)


def run_call(
    call: Call,
    *,
    out: Path,
    regridder: Regridder,
    progress: Progress = quiet,
    task_map: TaskMap = one_by_one,
) -> dict[str, Any]:
    """``run_benchmark`` of a call that is known to be usable."""
    runs, products, frequencies = call.runs, call.products, call.frequencies
    for folder in ("maps", FOLDER):
        (out / folder).mkdir(parents=True, exist_ok=True)
    files = {product: product.files() for product in products}
    has = {(run.identity, f): run.variables(f) for run in runs for f in FREQUENCIES}
    work = _Work(tuple(runs), has, call.regions, call.schemes, regridder, Kept(out))
    units = [
        _Unit(product, frequency)
        for product in products
        for frequency in (("fx",) if product.static else frequencies)
    ]
    # A unit reads all runs and the product, one of a ceiling two products.
    others_of = {product: rivals(product, products) for product in products}
    pairs_of_products = sum(len(others_of[unit.product]) for unit in units)
    share = 1.0 / (1.0 + 2 * pairs_of_products / (len(units) * (len(runs) + 1)))
    with FileDigests((path for own in files.values() for path in own), out) as digests:
        keys = _Keys(work, files, digests)
        results = _results(work, units, keys, task_map, _part(progress, 0.0, share))
        others = _ceiling_units(units, results, others_of)
        tops = _results(work, others, keys, task_map, _part(progress, share, 1.0))
        stays = [keys.of(unit) for unit in (*units, *others)]
        read = [{str(path): digests[path] for path in own} for own in files.values()]
    rows: list[Score] = []
    entries: list[dict[str, Any]] = []
    problems = list(call.damaged)
    of_products: list[list[Problem]] = []
    notes = unpaired_notes(runs)
    position = {run.identity: k for k, run in enumerate(runs)}
    compared: list[tuple[Product, str, list[Run]]] = []
    for product in products:
        before = len(problems)
        own = [(u, r) for u, r in zip(units, results, strict=True) if u.product is product]
        for unit, found in own:
            above = [r for o, r in zip(others, tops, strict=True) if o.of is unit]
            rows += found.rows + [row for top in above for row in top.rows]
            shown = [
                {
                    **entry,
                    "runs": [position[*identity] for identity in entry["runs"]],
                    "ceiling": [of for top in above for of in top.entries],
                }
                for entry in found.entries
            ]
            entries += shown
            compared += [
                (product, unit.frequency, [runs[k] for k in entry["runs"]]) for entry in shown
            ]
            problems += [p for p in found.problems if _told(p) not in map(_told, problems)]
            notes += found.notes + [note for top in above for note in top.notes]
        short = [p for _, found in own for p in found.short]
        if any(found.entries for _, found in own):
            # Two years make a monthly comparison and no annual one: that is no fault.
            notes += [str(problem) for problem in short]
        else:
            problems += short
        of_products.append([p for p in problems[before:] if _speaks_of(p, product)])
    notes += one_stage_notes(compared)
    progress("writing", 1.0)
    write_scores(out / "scores.csv", rows)
    write_parquet(out / "scores.parquet", rows)
    write_json(out / "problems.json", [str(problem) for problem in problems])
    summary = _summary(call, read, entries, problems, of_products, notes)
    write_json(out / "benchmark.json", summary)
    maps = [name for found in results for name in maps_of(found)]
    work.kept.remove_others(stays, maps)
    return summary


def _told(problem: Problem) -> Problem:
    """A fault of a run shows against every product, in other numbers: the first line will do."""
    return replace(problem, found="", wanted="") if problem.rule else problem


def _speaks_of(problem: Problem, product: Product) -> bool:
    """Whether a problem that came up with a product is one of it, and not of a run."""
    where = f"product {product.name}"
    return problem.where == where or problem.where.startswith(f"{where} (")


@dataclass(frozen=True)
class _Work:
    """What the units of one call have in common. ``has``: variables by run and frequency."""

    runs: tuple[Run, ...]
    has: _Has
    regions: Sequence[Region]
    schemes: Sequence[scores.Scheme]
    regridder: Regridder
    kept: Kept

    def key(self, *parts: Any) -> str:
        """The key of a unit that depends on ``parts``, and on what all have in common."""
        regions = [region.definition() for region in self.regions]
        names = [scheme.name for scheme in self.schemes]
        return unit_key(self.regridder, parts, regions, names)


@dataclass(frozen=True, eq=False)
class _Unit:
    """One product at one frequency with all runs.

    With ``other``: that product against this one, to be put beside the result of the unit ``of``,
    which is of ``periods``.
    """

    product: Product
    frequency: str
    other: Product | None = None
    of: _Unit | None = None
    periods: tuple[Period, ...] = ()

    def __str__(self) -> str:
        rival = "" if self.other is None else f" and {self.other.name}"
        return f"{self.product.variable}: {self.product.name}{rival}, {self.frequency}"


class _Keys:
    """What the result of each unit is kept under, known when the files of its product are hashed:
    that goes on while the first units are computed."""

    def __init__(
        self, work: _Work, files: Mapping[Product, Sequence[Path]], digests: FileDigests
    ) -> None:
        self._work, self._files, self._digests = work, files, digests
        # As the runs are before anything is made of them.
        self._runs = [(run, run.digests, run.changed()) for run in work.runs]
        self._known: dict[_Unit, str] = {}

    def of(self, unit: _Unit) -> str:
        """The key of a unit; empty where nothing may be kept of it."""
        if unit not in self._known:
            self._known[unit] = self._made(unit)
            self._digests.remember()
        return self._known[unit]

    def _made(self, unit: _Unit) -> str:
        product, frequency = unit.product, unit.frequency
        parts = self._parts(product)
        if unit.other is not None:
            both = parts, self._parts(unit.other)
            return self._work.key("ceiling", both, frequency, unit.periods) if all(both) else ""
        runs = [
            (run.identity, own, run.synthetic, digests, changed)
            for run, digests, changed in self._runs
            if (own := _frequency_of(run, product.variable, frequency, self._work.has)) is not None
        ]
        return self._work.key(parts, frequency, runs) if parts else ""

    def _parts(self, product: Product) -> Any:
        return product_parts(product, [(p, self._digests[p]) for p in self._files[product]])


def _ceiling_units(
    units: Sequence[_Unit],
    results: Sequence[Found],
    others_of: Mapping[Product, Sequence[Product]],
) -> list[_Unit]:
    """Every product that can be used against every other one of its variable that was compared.

    ``others_of``: the rivals of each product.
    """
    usable = {u.product for u, r in zip(units, results, strict=True) if r.entries or r.short}
    return [
        _Unit(unit.product, unit.frequency, other, unit, tuple(result.periods))
        for unit, result in zip(units, results, strict=True)
        if result.entries
        for other in others_of[unit.product]
        if other in usable
    ]


def _part(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part of the work."""
    return lambda text, share: progress(text, start + share * (end - start))


def _results(
    work: _Work, units: Sequence[_Unit], keys: _Keys, task_map: TaskMap, progress: Progress
) -> list[Found]:
    """What came of each unit: kept from an earlier call, or computed now and kept."""
    results: list[Found | None] = [None] * len(units)
    if not work.kept.empty():
        results = work.kept.load([keys.of(unit) for unit in units])
    missing = [k for k, found in enumerate(results) if found is None]
    there = len(units) - len(missing)
    if there:
        what = "comparisons" if units[0].other is None else "pairs of products"
        progress(f"{there} of {len(units)} {what} kept from before", there / len(units))

    def done(unit: _Unit, found: Found, share: float) -> None:
        work.kept.save(keys.of(unit), found)
        progress(str(unit), (there + share * len(missing)) / len(units))

    computed = run_units(task_map, _found, work, [units[k] for k in missing], done)
    for k, found in zip(missing, computed, strict=True):
        results[k] = found
    return [found for found in results if found is not None]


def _found(work: _Work, unit: _Unit) -> Found:
    """What comes of one unit; its maps are written."""
    keep_freed_memory()
    with _ALONE:
        return _compared(work, unit) if unit.other is None else _against(work, unit, unit.other)


def _against(work: _Work, unit: _Unit, other: Product) -> Found:
    """Compare another product with one that runs were compared with."""
    product, found = unit.product, Found()
    said = f"product {product.name}: no ceiling at {unit.frequency} from {other.name}"
    try:
        ceiling = against(
            product,
            other,
            periods=unit.periods,
            frequency=unit.frequency,
            regions=work.regions,
            schemes=work.schemes,
            regridder=work.regridder,
        )
    except CallmipError as error:
        return Found(notes=[f"{said}: {problem}" for problem in error.problems])
    if ceiling is None:
        return found
    comparison = ceiling.comparison
    if comparison is None:
        found.notes.append(f"{said}: {ceiling.shared} steps in common.")
        return found
    for scheme in work.schemes:
        found.rows += _rows(comparison, scheme, ())
    entry = _ceiling_entry(comparison, other, of_runs=ceiling.of_runs)
    if other.anomaly and not product.anomaly:
        # Of fewer scores than the overall ones of the runs: the two are no match.
        found.rows = [
            replace(row, value=math.nan) if row.quantity == "overall_score" else row
            for row in found.rows
        ]
        entry["overall"] = {name: dict.fromkeys(of) for name, of in entry["overall"].items()}
    found.entries.append(entry)
    return found


def _compared(work: _Work, unit: _Unit) -> Found:
    """Compare one product at one frequency with all runs that have it, and write the maps."""
    product, frequency = unit.product, unit.frequency
    found = Found()
    with_it = []
    for run in work.runs:
        try:
            series = _run_series(run, product.variable, frequency, work.has)
        except CallmipError as error:
            found.problems += [named(problem) for problem in error.problems]
            continue
        if series is not None:
            found.problems += months_lacking(series)
            with_it.append((run, series))
    faults = check_product(product, quick=True) if with_it else []
    found.problems += [fault.problem for fault in faults]
    if any(fault.refuse for fault in faults):
        return found
    try:
        reference = product_series(product)
    except CallmipError as error:
        found.problems += error.problems
        return found
    seen = at_frequency(reference, frequency)
    if not with_it or seen is None:
        what = "no run has it that can be used" if not with_it else "the product is annual"
        found.notes.append(
            f"product {product.name}: {product.variable} not compared at {frequency}, {what}."
        )
        return found
    stated = {}
    for run, series in with_it:
        try:
            uncertainty = _run_series(run, product.variable + UNCERTAINTY, frequency, work.has)
        except CallmipError as error:
            found.problems += error.problems
            continue
        if uncertainty is not None and uncertainty.frequency == series.frequency:
            stated[run.identity] = uncertainty
    own: Series | None = None
    try:
        beside = uncertainty_series(product, reference)
        own = None if beside is None else at_frequency(beside, frequency)
    except UncertaintyError as error:
        found.problems += error.problems
    try:
        comparison, problems = compare(
            product,
            seen,
            with_it,
            frequency=frequency,
            regions=work.regions,
            schemes=work.schemes,
            regridder=work.regridder,
            stated=stated,
            uncertainty=own,
        )
    except TooShortError as error:
        found.short += error.problems
        return found
    except CallmipError as error:
        found.problems += error.problems
        return found
    finally:
        for series in (seen, *(series for _, series in with_it), *stated.values()):
            series.close()
        if own is not None:
            own.close()
    found.problems += problems
    found.problems += check_runs(comparison)
    found.notes += comparison.notes
    compared = [own for run, own in with_it if run in comparison.runs]
    spreads = between_models(
        comparison, lambda: land_fraction(compared, comparison.grid, work.regridder)
    )
    files = _write_maps(work.kept.out / "maps", comparison, spreads)
    for scheme in work.schemes:
        found.rows += _rows(comparison, scheme, spreads)
    found.entries.append(_entry(comparison, files, spreads))
    found.periods = list(comparison.periods)
    return found


def _run_series(run: Run, variable: str, frequency: str, has: _Has) -> Series | None:
    """The run's variable at a frequency: its own, or annual means of its months; None without."""
    own = _frequency_of(run, variable, frequency, has)
    if own is None:
        return None
    series = run.series(variable, own)
    return AnnualSeries(series) if (frequency, own) == ("yr", "mon") else series


def _frequency_of(run: Run, variable: str, frequency: str, has: _Has) -> str | None:
    """The frequency of the data that a run is compared by at ``frequency``; None without any."""
    wanted = {"fx": ("mon", "yr"), "mon": ("mon",), "yr": ("yr", "mon")}[frequency]
    return next((own for own in wanted if variable in has[run.identity, own]), None)


# --- scores -----------------------------------------------------------------------------------


def run_numbers(
    comparison: Comparison, scheme: scores.Scheme, k: int, region: str
) -> tuple[dict[str, tuple[float, int]], dict[str, float]]:
    """(value, cells) of every quantity of run ``k`` in a region, and the scores behind the overall.

    A quantity that does not apply at this frequency is absent; one that applies but is not
    defined is NaN.
    """
    numbers: dict[str, tuple[float, int]] = {}
    for name in ("reference_mean", "mean", "bias", "absolute_bias", "rmse"):
        number = comparison.mean(scheme.name, name, k, region)
        if number is not None:
            numbers[name] = number
    wanted = scheme.applicable(comparison.frequency, anomaly=comparison.product.anomaly)
    for name in wanted:
        if name == "spatial_score":
            sigma, correlation, cells = comparison.taylor(scheme, k, region)
            numbers[name] = (scores.taylor_score(sigma, correlation), cells)
        else:
            number = comparison.mean(scheme.name, name, k, region)
            numbers[name] = (math.nan, 0) if number is None else number
    for name in RUN_QUANTITIES:
        number = comparison.mean(scheme.name, name, k, region)
        if number is not None:
            numbers[name] = number
    parts = {name: numbers[name][0] for name in wanted}
    numbers["overall_score"] = (scheme.overall(parts)[0], numbers["mean"][1])
    return numbers, parts


def _rows(
    comparison: Comparison, scheme: scores.Scheme, spreads: Sequence[Spread]
) -> Iterator[Score]:
    usual = variable_table()[comparison.product.variable].units

    def score(
        identity: Sequence[str],
        region: str,
        quantity: str,
        value: float,
        cells: int,
        ends: tuple[float, float] = (math.nan, math.nan),
        units: str = usual,
    ) -> Score:
        model, simulation, stage, member = identity
        return Score(
            variable=comparison.product.variable,
            product=comparison.product.name,
            model=model,
            simulation=simulation,
            stage=stage,
            member=member,
            region=region,
            frequency=comparison.frequency,
            scheme=scheme.name,
            quantity=quantity,
            value=value if cells else math.nan,
            units="1" if quantity.endswith(UNITLESS) else units,
            n_cells=cells,
            n_months=comparison.n_months,
            low=ends[0],
            high=ends[1],
        )

    runs = comparison.runs
    for number, region in enumerate(comparison.areas):
        numbers = [run_numbers(comparison, scheme, k, region) for k in range(len(runs))]
        for run, (values, _) in zip(runs, numbers, strict=True):
            for quantity, (value, cells) in values.items():
                yield score(run.identity, region, quantity, value, cells)
        for i, j in pairs(runs):
            (prior, prior_parts), (posterior, posterior_parts) = numbers[i], numbers[j]
            model, simulation, _, member = runs[j].identity
            same = _defined(prior_parts) == _defined(posterior_parts)
            drawn = comparison.resampled.get((i, j))
            ends = drawn.ends(number, scheme, (prior_parts, posterior_parts)) if drawn else {}
            for quantity, (after, cells) in posterior.items():
                if quantity in _OF_THE_PRODUCT:
                    continue
                before, cells_before = prior[quantity]
                # Overall scores of different sets of scores do not differ by the calibration alone.
                change = after - before if quantity != "overall_score" or same else math.nan
                low, high = ends.get(quantity, (math.nan, math.nan))
                yield score(
                    (model, simulation, CHANGE, member),
                    region,
                    quantity,
                    change,
                    min(cells, cells_before),
                    (change + low, change + high),
                )
            beyond = comparison.mean("", BEYOND, j, region)
            if beyond is not None:
                yield score((model, simulation, CHANGE, member), region, BEYOND, *beyond)
        for identity, quantity, value, cells in comparison.judged.rows(runs, number):
            yield score(identity, region, quantity, value, cells)
    for spread in spreads:
        both = (ALL_MODELS, spread.simulation, CHANGE, "")
        for number, region in enumerate(comparison.areas):
            cells = int(spread.cells[number])
            for quantity in spread.values["Prior"]:
                before, after = (float(spread.values[s][quantity][number]) for s in STAGES)
                units = spread.units.get(quantity, usual)
                for stage, value in (
                    *zip(STAGES, (before, after), strict=True),
                    (CHANGE, after - before),
                ):
                    of = (ALL_MODELS, spread.simulation, stage, "")
                    yield score(of, region, quantity, value, cells, units=units)
                if quantity in spread.reductions:
                    share, low, high = map(float, spread.reductions[quantity][:, number])
                    yield score(both, region, f"{quantity}_reduction", share, cells, (low, high))


def _defined(parts: Mapping[str, float]) -> set[str]:
    return {name for name, value in parts.items() if math.isfinite(value)}


# --- maps -------------------------------------------------------------------------------------

_TITLES = {
    "mean": "mean of the run",
    "bias": "mean of the run minus mean of the product",
    "rmse": "root mean square error",
    "bias_score": "bias score",
    "rmse_score": "centralised RMSE score",
    "seasonal_cycle_score": "seasonal cycle score",
    "interannual_score": "interannual variability score",
    "spread": "standard deviation across models of the mean",
    "spread_mad": "median absolute deviation across models of the mean",
    "spread_range": "range across models of the mean",
    "multi_model_bias": "mean of the models minus mean of the product",
}


def _write_maps(
    folder: Path, comparison: Comparison, spreads: Sequence[Spread]
) -> list[dict[str, Any]]:
    """One file per model, simulation and member, with both stages, and one per spread.

    Fields of further schemes, where they differ from those of the first, end in the scheme's name.
    """
    units = variable_table()[comparison.product.variable].units
    files: list[dict[str, Any]] = []
    runs = comparison.runs
    paired = pairs(runs)
    done_priors = {i for i, _ in paired}
    groups: list[tuple[int | None, int | None]] = list(paired)
    groups += [(i, None) for i, r in enumerate(runs) if r.stage == "Prior" and i not in done_priors]
    taken = {j for _, j in paired}
    groups += [(None, j) for j, r in enumerate(runs) if r.stage == "Posterior" and j not in taken]
    for i, j in sorted(groups, key=lambda g: min(k for k in g if k is not None)):
        fields: dict[str, tuple[NDArray[Any], str, str]] = {
            "reference": (comparison.reference, units, "mean of the product")
        }
        if comparison.uncertainty is not None:
            fields["uncertainty"] = comparison.uncertainty, units, "mean uncertainty of the product"
        for k, stage in ((i, "prior"), (j, "posterior")):
            if k is None:
                continue
            for key, values in comparison.maps[k].items():
                name, *scheme = key.split(".")
                unit = "1" if name.endswith("_score") else units
                title = ", ".join((_TITLES[name], stage, *scheme))
                fields["_".join((name, stage, *scheme))] = values, unit, title
        if i is not None and j is not None and "bias" in comparison.maps[i]:
            fields["misfit_change"] = (
                np.abs(comparison.maps[j]["bias"]) - np.abs(comparison.maps[i]["bias"]),
                units,
                "misfit change: size of the bias, posterior minus prior",
            )
        run = runs[j if j is not None else i if i is not None else 0]
        name = _file_name(comparison, run.model, run.simulation, run.member_name)
        _write_map_file(folder / name, comparison, fields, f"{run.model} {run.simulation}")
        files.append(
            {
                "file": f"maps/{name}",
                "model": run.model,
                "simulation": run.simulation,
                "member": run.member_name,
                "fields": list(fields),
            }
        )
    for spread in spreads:
        fields = {
            f"{name}_{stage.lower()}": (values, units, f"{_TITLES[name]}, {stage.lower()}")
            for stage, maps in spread.maps.items()
            for name, values in maps.items()
        }
        name = _file_name(comparison, "all-models", spread.simulation, "")
        _write_map_file(folder / name, comparison, fields, f"{ALL_MODELS} {spread.simulation}")
        files.append(
            {
                "file": f"maps/{name}",
                "model": ALL_MODELS,
                "simulation": spread.simulation,
                "member": "",
                "fields": list(fields),
            }
        )
    return files


def _file_name(comparison: Comparison, model: str, simulation: str, member: str) -> str:
    product = comparison.product
    names = [name_part(product.name, "_"), *map(name_part, (model, simulation, member))]
    parts = (product.variable, *names, comparison.frequency)
    return "_".join(part for part in parts if part) + ".nc"


_FILE_BYTES = 1024**2


def _write_map_file(
    path: Path,
    comparison: Comparison,
    fields: Mapping[str, tuple[NDArray[Any], str, str]],
    what: str,
) -> None:
    first, last = comparison.periods[0], comparison.periods[-1]
    product = comparison.product
    ds = xr.Dataset(
        {
            name: (
                ("lat", "lon"),
                values.astype(np.float32),
                {"units": units, "long_name": title, "cell_measures": "area: areacella"},
            )
            for name, (values, units, title) in fields.items()
        },
        coords=grid_variables(comparison.grid),
        attrs={
            "Conventions": "CF-1.8",
            "title": f"{product.variable}: {what} and {product.name}",
            "variable": product.variable,
            "product": product.name,
            "product_version": product.version,
            "product_doi": product.doi,
            "frequency": comparison.frequency,
            "years": f"{first[0]}-{last[0]}",
            "n_months": comparison.n_months,
            "scheme": " ".join(scheme.name for scheme in comparison.schemes),
            "references": "; ".join(scheme.citation for scheme in comparison.schemes),
            "source": f"callmip-global {__version__}",
            "synthetic": "; ".join(_synthetic_texts(comparison.runs, [product])),
        },
    )
    encoding: dict[str, dict[str, Any]] = {
        name: {"zlib": True, "complevel": 1, "_FillValue": np.float32(np.nan)} for name in fields
    }
    encoding |= {str(name): {"_FillValue": None} for name in ds.coords}
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        ds.to_netcdf(temporary, format="NETCDF4", engine="netcdf4", encoding=encoding)
        temporary.replace(path)
    except (PermissionError, RuntimeError):
        # The NetCDF library calls a full disk "Permission denied" or "HDF error": a plain write of
        # as much, and what a file has beside its data, says what it is.
        temporary.write_bytes(bytes(ds.nbytes + _FILE_BYTES))
        raise
    finally:
        temporary.unlink(missing_ok=True)


# --- summary ----------------------------------------------------------------------------------


def _entry(
    comparison: Comparison,
    files: list[dict[str, Any]],
    spreads: Sequence[Spread],
) -> dict[str, Any]:
    """What the report shows of one comparison; ``runs`` by their identities."""
    product = comparison.product
    first, last = comparison.periods[0], comparison.periods[-1]
    schemes = {scheme.name: _scheme_entry(comparison, scheme) for scheme in comparison.schemes}
    return {
        "variable": product.variable,
        "product": product.name,
        "frequency": comparison.frequency,
        "grid": _grid_text(comparison),
        "years": [first[0], last[0]],
        "n_months": comparison.n_months,
        "n_cells": int(np.isfinite(comparison.reference).sum()),
        "units": variable_table()[product.variable].units,
        **schemes[comparison.schemes[0].name],
        "schemes": schemes,
        "runs": [list(run.identity) for run in comparison.runs],
        "cycles": {name: [_numbers(s) for s in cycle] for name, cycle in comparison.cycles.items()},
        "annual": {
            name: {"years": years, "series": [_numbers(s) for s in series]}
            for name, (years, series) in comparison.annual.items()
        },
        "spread_models": {spread.simulation: list(spread.models) for spread in spreads},
        "spread_cycles": {
            region: {
                spread.simulation: {s: _numbers(of[number]) for s, of in spread.cycles.items()}
                for spread in spreads
                if spread.cycles
            }
            for number, region in enumerate(comparison.cycles)
        },
        "ensembles": comparison.judged.entries(list(comparison.areas)),
        "maps": files,
        "notes": comparison.notes,
    }


def _ceiling_entry(comparison: Comparison, other: Product, *, of_runs: bool) -> dict[str, Any]:
    """What the report shows of another product against this one.

    ``of_runs``: whether of the period of the runs; ``years`` null for static products.
    """
    first, last = comparison.periods[0], comparison.periods[-1]
    regions = comparison.areas
    numbers = {
        scheme.name: {region: run_numbers(comparison, scheme, 0, region) for region in regions}
        for scheme in comparison.schemes
    }
    return {
        "product": other.name,
        "years": None if comparison.frequency == "fx" else [first[0], last[0]],
        "n_months": comparison.n_months,
        "of_runs": of_runs,
        "overall": {
            name: {region: _numbers([n["overall_score"][0]])[0] for region, (n, _) in of.items()}
            for name, of in numbers.items()
        },
        "scores_present": {
            name: {region: len(_defined(parts)) for region, (_, parts) in of.items()}
            for name, of in numbers.items()
        },
        "taylor": {
            scheme.name: {
                region: _numbers(comparison.taylor(scheme, 0, region)[:2]) for region in regions
            }
            for scheme in comparison.schemes
        },
    }


def _scheme_entry(comparison: Comparison, scheme: scores.Scheme) -> dict[str, Any]:
    """Scores that apply, how many of them each run has, and points of the Taylor diagram."""
    runs = range(len(comparison.runs))
    anomaly = comparison.product.anomaly
    return {
        "scores": list(scheme.applicable(comparison.frequency, anomaly=anomaly)),
        "scores_present": {
            region: [len(_defined(run_numbers(comparison, scheme, k, region)[1])) for k in runs]
            for region in comparison.areas
        },
        "taylor": {
            region: [_numbers(comparison.taylor(scheme, k, region)[:2]) for k in runs]
            for region in comparison.areas
        },
    }


def _grid_text(comparison: Comparison) -> str:
    grid = comparison.grid
    nlat, nlon = grid.shape
    dlat = float(np.diff(grid.lat_edges).mean())
    dlon = float(np.diff(grid.lon_edges).mean())
    return f"{nlat} × {nlon} cells of {dlat:.3g}° × {dlon:.3g}°"


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [float(text) if (text := number_text(v)) else None for v in values]


def _synthetic_texts(runs: Sequence[Run], products: Sequence[Product]) -> list[str]:
    texts = [run.synthetic for run in runs if run.synthetic]
    made = [product.name for product in products if product.kind == "synthetic"]
    if made:
        texts.append(f"synthetic products, no observations: {', '.join(made)}")
    return list(dict.fromkeys(texts))


def _summary(
    call: Call,
    files: Sequence[Mapping[str, str]],
    entries: list[dict[str, Any]],
    problems: Sequence[Problem],
    of_products: Sequence[Sequence[Problem]],
    notes: Sequence[str],
) -> dict[str, Any]:
    table = variable_table()
    runs, products = call.runs, call.products
    return {
        **_scheme_text(call.schemes[0]),
        "schemes": [_scheme_text(scheme) for scheme in call.schemes],
        "minimum": {"months": MINIMUM_MONTHS, "years": MINIMUM_YEARS},
        "bootstrap": {"draws": DRAWS, "level": LEVEL, "minimum_years": MINIMUM_DRAWN_YEARS},
        "versions": versions(),
        "synthetic": _synthetic_texts(runs, products),
        "frequencies": list(call.frequencies),
        "regions": [region.entry() for region in call.regions],
        "variables": {
            name: {"long_name": table[name].long_name, "units": table[name].units}
            for name in table
            if any(product.variable == name for product in products)
        },
        "runs": [
            {
                "model": run.model,
                "simulation": run.simulation,
                "stage": run.stage,
                "member": run.member_name,
                "grid": run.grid,
                "synthetic": run.synthetic,
                "paths": [str(path) for path in run.paths],
                "digests": run.digests,
            }
            for run in runs
        ],
        "pairs": [list(pair) for pair in pairs(runs)],
        "products": [
            _product_entry(*one) for one in zip(products, files, of_products, strict=True)
        ],
        "comparisons": entries,
        "problems": [str(problem) for problem in problems],
        "notes": list(dict.fromkeys(notes)),
    }


def _scheme_text(scheme: scores.Scheme) -> dict[str, Any]:
    return {
        "scheme": scheme.name,
        "citation": scheme.citation,
        "formulas": [list(pair) for pair in scheme.formulas],
        "weights": dict(scheme.weights),
    }


def _product_entry(
    product: Product, files: Mapping[str, str], problems: Sequence[Problem]
) -> dict[str, Any]:
    return {
        "name": product.name,
        "variable": product.variable,
        "kind": product.kind,
        "version": product.version,
        "doi": product.doi,
        "licence": product.licence,
        "independent_of_towers": product.independent_of_towers,
        "like_for_like": product.like_for_like,
        "static": product.static,
        "anomaly": product.anomaly,
        "window": list(product.window) if product.window else None,
        "source": product.source,
        "uncertainty": product.uncertainty,
        "units": product.units,
        "factor": product.factor,
        "sign": product.sign,
        "note": product.note,
        "files": dict(files),
        "problems": [str(problem) for problem in problems],
    }


def raise_problems(summary: Mapping[str, Any]) -> None:
    """DataError with the problems of a finished benchmark, if there are any (exit code 1)."""
    if summary["problems"]:
        raise DataError([Problem(text) for text in summary["problems"]])
