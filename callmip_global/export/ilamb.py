"""Stores and reference products as a folder that ILAMB 2.7 or ilamb3 runs on as it is.

::

    OUT/MODELS/<model>_<stage>/<variable>.nc    one model directory per model and stage
    OUT/DATA/<variable>/<product>.nc            the references
    OUT/ilamb.cfg, run.sh                       for ILAMB 2.7; or
    OUT/ilamb.yaml, models.csv, references.csv, run.py   for ilamb3
    OUT/README.txt                              what is there, and the exact command

The tools have no notion of a pair, so that prior and posterior are two models. A variable is
written monthly where it is monthly, else annual, and never both: they would be taken for one
series. References come on the grid of the models, brought there as the benchmark does it, unless
the models differ or the reference is the coarser one: then the tools' own nesting is exact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.errors import CallmipError, DataError, Problem, UsageError
from callmip_global.export.ilamb_files import Layout, Steps, write_field, write_fixed
from callmip_global.export.ilamb_setup import (
    RUN_PY,
    RUN_SH,
    Row,
    Told,
    Tool,
    ilamb3_yaml,
    ilamb_cfg,
    models_csv,
    readme,
    reference_units,
    references_csv,
    tool_attributes,
    tool_name,
    tool_sign,
)
from callmip_global.files import (
    checked_target,
    inside,
    read_json,
    text_hash,
    write_atomic,
    write_json,
)
from callmip_global.grid import Grid, SourceGrid, grid_of
from callmip_global.parallel import Progress, quiet
from callmip_global.store import (
    PER_LAND,
    StoreInfo,
    StoreName,
    open_store,
    store_digest,
    store_info,
)
from callmip_global.timeaxis import Frequency, MonthAxis, decode_months, decode_years
from callmip_global.variables import Variable, variable_table

Period = tuple[int, int]
Regridder = Callable[[xr.Dataset, Grid], xr.Dataset]

LEDGER = "callmip-export.json"
"""What an export leaves of itself: its files, and from what each was made."""

_BLOCK_STEPS = 60
_BLOCK_BYTES = 192 * 1024**2


class Series(Protocol):
    """What is needed of a product: ``benchmark.series.FileSeries`` is one.

    ``periods``: (year, month) of each step; ``read`` gives (T, nlat, nlon) in the units of the
    variable table, in ``grid`` order, NaN where missing; ``land``: land fraction where the values
    are means over land and the file knows it.
    """

    where: str
    frequency: str
    calendar: str
    periods: tuple[Period, ...]
    grid: Grid
    land: NDArray[np.float64] | None

    def read(self, periods: Sequence[Period]) -> NDArray[Any]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Reference:
    """A reference product: the protocol's variable, and how its series is opened.

    ``identity``: a text that changes whenever the product does. ``about``: global attributes of its
    file (source, references ...). The rest as in ``benchmark.Product``.
    """

    name: str
    variable: str
    open_series: Callable[[], Series] = field(repr=False)
    identity: str = ""
    static: bool = False
    anomaly: bool = False
    window: tuple[int, int] | None = None
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class IlambExport:
    """What was written. ``problems``: references that could not be; ``notes``: what to know."""

    files: tuple[Path, ...]
    command: Path
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def export_ilamb(
    stores: Sequence[Path],
    *,
    out: Path,
    tool: Tool,
    references: Sequence[Reference] = (),
    regridder: Regridder | None = None,
    years: int | None = None,
    progress: Progress = quiet,
) -> IlambExport:
    """Write models, references, configuration and command for ``tool`` into ``out``.

    stores : harmonized stores; each is one model directory
    regridder : brings a dataset to a grid, conserving area means (``regrid.regrid_dataset``);
        without one, references stay on their own grids
    years : how many of the last years of each store (default: all)

    A reference that cannot be used is a problem of the result, and the rest is written. Run again,
    what is there and still true is kept, what was written before and belongs to it no more is
    removed. Every file has a temporary name until it is whole. UsageError before anything is
    written for stores that cannot be told apart or used, and for an ``out`` with other files.
    """
    runs = _runs(stores, years)
    ledger = _Ledger.of(out)
    ledger.expect(name for run in runs for name in _names(run))
    ledger.expect(_reference_path(reference) for reference in references)
    total = sum(len(run.fields) for run in runs) + len(references) + 1
    done = 0

    def tell(text: str) -> None:
        nonlocal done
        progress(text, done / total)
        done += 1

    rows: list[Row] = []
    for run in runs:
        rows += _write_run(run, out, ledger, tell)
    told: list[Told] = []
    problems: list[Problem] = []
    notes = [note for run in runs for note in run.notes]
    for reference in references:
        tell(f"{reference.variable}: {reference.name}")
        try:
            told.append(_write_reference(reference, runs, regridder, out, ledger, told, notes))
        except CallmipError as error:
            problems += error.problems
        except _LeftOutError as left:
            notes.append(str(left))
    tell("configuration")
    for name, text in _texts(tool, [run.directory for run in runs], rows, told, notes).items():
        executable = name in ("run.sh", "run.py")
        write_atomic(checked_target(out, name), text, mode=0o777 if executable else None)
        ledger.keep(name, text_hash(text))
    ledger.close()
    command = out / ("run.sh" if tool == "ilamb" else "run.py")
    files = tuple(out / name for name in sorted(ledger.kept))
    return IlambExport(files, command, tuple(problems), tuple(notes))


class _LeftOutError(Exception):
    """A reference that the tools have no comparison for; no fault of it."""


def _texts(
    tool: Tool,
    models: Sequence[str],
    rows: Sequence[Row],
    told: Sequence[Told],
    notes: Sequence[str],
) -> dict[str, str]:
    texts = {"README.txt": readme(tool, models, told, notes)}
    if tool == "ilamb":
        return {**texts, "ilamb.cfg": ilamb_cfg(told), "run.sh": RUN_SH}
    return {
        **texts,
        "ilamb.yaml": ilamb3_yaml(told),
        "models.csv": models_csv(rows),
        "references.csv": references_csv(told),
        "run.py": RUN_PY,
    }


# --- what is there already ----------------------------------------------------------------------


@dataclass
class _Ledger:
    """The files of an export and from what each was made, on disk after each of them."""

    out: Path
    before: dict[str, str]
    kept: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, out: Path) -> _Ledger:
        """That of an earlier export into the same folder; UsageError for a folder of others."""
        path = out / LEDGER
        if path.is_file():
            try:
                found = read_json(path)["files"]
            except (ValueError, KeyError, TypeError):
                found = {}
            before = {str(name): str(key) for name, key in dict(found).items()}
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(
                Problem(
                    str(out),
                    found="something that no export to ILAMB has written",
                    wanted="a new folder, or one of an earlier export",
                    remedy="ILAMB takes every file of a model's folder for its output.",
                )
            )
        else:
            before = {}
        out.mkdir(parents=True, exist_ok=True)
        ledger = cls(out, before)
        ledger._save()
        return ledger

    def expect(self, names: Iterable[str]) -> None:
        """Note files before they are written: one that a kill leaves behind is known as ours."""
        self.before = {**dict.fromkeys(names, ""), **self.before}
        self._save()

    def has(self, name: str, key: str) -> bool:
        """Whether a file is there, made from the same; it then counts as written."""
        if self.before.get(name) == key and (self.out / name).is_file():
            self.kept[name] = key
            return True
        return False

    def keep(self, name: str, key: str) -> None:
        """Note a file that was written."""
        self.kept[name] = key
        self._save()

    def close(self) -> None:
        """Remove what belongs to the export no more."""
        for name in sorted(set(self.before) - set(self.kept)):
            target = self.out / name
            if not inside(self.out, target):
                continue
            target.unlink(missing_ok=True)
            folder = target.parent
            if folder != self.out and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        for part in ("MODELS", "DATA"):
            for path in (self.out / part).rglob(".*.nc.*.tmp"):
                path.unlink()
        self.before = {}
        self._save()

    def _save(self) -> None:
        files = {**self.before, **self.kept}
        write_json(self.out / LEDGER, {"callmip_global": __version__, "files": files})


# --- models -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """A variable of a run, at the one frequency that is written."""

    variable: Variable
    frequency: Frequency
    steps: slice
    axis: MonthAxis


@dataclass(frozen=True)
class _Run:
    """A store on its way to a model directory."""

    store: Path
    info: StoreInfo
    name: StoreName
    directory: str
    source: SourceGrid
    layout: Layout
    fields: Mapping[str, _Field]
    identity: str
    notes: tuple[str, ...] = ()


def _runs(stores: Sequence[Path], years: int | None) -> list[_Run]:
    """All stores, each with a directory of its own; UsageError with every problem at once."""
    problems: list[Problem] = []
    infos: list[tuple[Path, StoreInfo, StoreName]] = []
    for store in stores:
        try:
            info = store_info(store)
        except DataError as error:
            problems += error.problems
            continue
        if info.name is None:
            found = "a store without model, simulation and stage"
            problems.append(Problem(str(store), found=found, wanted="a harmonized store"))
        else:
            infos.append((store, info, info.name))
    names = [name for _, _, name in infos]
    taken: dict[str, Path] = {}
    runs: list[_Run] = []
    for store, info, name in infos:
        directory = model_directory(name, names)
        if directory in taken:
            wanted = f"each run once ({taken[directory]} is it too)"
            problems.append(Problem(str(store), "", f"a second {directory}", wanted))
            continue
        taken[directory] = store
        try:
            runs.append(_run(store, info, name, directory, years))
        except CallmipError as error:
            problems += error.problems
    if not stores:
        problems.append(Problem("export", found="no store", wanted="at least one"))
    if problems:
        raise UsageError(problems)
    return sorted(runs, key=lambda run: (run.name.model, run.name.stage != "Prior", run.directory))


def model_directory(name: StoreName, among: Sequence[StoreName]) -> str:
    """``<model>_<stage>[_mNNN]``, with version, simulation and grid where the model has several."""
    own = [other for other in among if other.model == name.model]

    def several(part: str) -> bool:
        return len({getattr(other, part) for other in own}) > 1

    text = f"{name.model}.{name.version}" if several("version") else name.model
    parts = [text]
    parts += [getattr(name, part) for part in ("simulation", "grid") if several(part)]
    parts.append(name.stage)
    if name.member is not None:
        parts.append(f"m{name.member:03d}")
    return _plain("_".join(parts))


def _plain(text: str) -> str:
    """A name that is safe in paths and in both configurations; ILAMB skips any "Benchmark"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).replace("Benchmark", "benchmark")


def _run(store: Path, info: StoreInfo, name: StoreName, directory: str, years: int | None) -> _Run:
    fields: dict[str, _Field] = {}
    source: SourceGrid | None = None
    for frequency in info.frequencies:
        ds = open_store(store, frequency)
        there = [v for n, v in variable_table().items() if n in ds.variables and n not in fields]
        if not there:
            continue
        source = grid_of(ds, str(store))
        axis = (decode_months if frequency == "mon" else decode_years)(ds, f"{store} {frequency}")
        first, last = axis.years
        if years is not None and years > last - first + 1:
            found, wanted = f"{last - first + 1} years ({first} to {last})", f"{years} years"
            raise UsageError(Problem(str(store), frequency, found, wanted))
        steps = slice(0, axis.size)
        if years is not None:
            steps = axis.select(last - years + 1, last, str(store))
        for variable in there:
            fields[variable.name] = _Field(variable, frequency, steps, axis.part(steps))
    if source is None:
        raise DataError(Problem(str(store), found="no variable of the variable table"))
    notes = []
    annual = [n for n, f in fields.items() if f.frequency == "yr"]
    if annual and "mon" in info.frequencies:
        notes.append(
            f"{directory}: annual only, so that there is no seasonal cycle: {', '.join(annual)}."
        )
    layout = Layout.of(source.grid, str(store))
    if layout.columns.size > source.grid.shape[1]:
        notes.append(
            f"{directory}: the column across 180 degrees is cut in two. Both tools lose the bounds "
            "of what they compute and guess them again, so that these columns weigh a little more "
            "than they should; a store on a standard grid has no such column."
        )
    return _Run(
        store, info, name, directory, source, layout, fields, store_digest(store), tuple(notes)
    )


def _write_run(run: _Run, out: Path, ledger: _Ledger, tell: Callable[[str], None]) -> list[Row]:
    """The model directory of a run: areas, land, and a file for each variable."""
    folder = f"MODELS/{run.directory}"
    _write_fixed(run, out, folder, ledger)
    rows = []
    for found in run.fields.values():
        variable = found.variable
        path = f"{folder}/{tool_name(variable)}.nc"
        tell(path)
        span = [found.axis.first, found.axis.size]
        key = text_hash(json.dumps([__version__, run.identity, found.frequency, span]))
        if not ledger.has(path, key):
            write_field(
                checked_target(out, path),
                tool_name(variable),
                {
                    **tool_attributes(variable, variable.units),
                    "cell_measures": "area: areacella",
                },
                run.layout,
                Steps.of(found.axis),
                _store_blocks(run, found),
                _about_run(run, found),
            )
            ledger.keep(path, key)
        member = "" if run.name.member is None else f"m{run.name.member:03d}"
        rows.append(
            Row(run.directory, run.name.stage, member, tool_name(variable), found.frequency, path)
        )
    return rows


def _names(run: _Run) -> Iterator[str]:
    """The files of a model directory."""
    for name in ("areacella", "sftlf", *(tool_name(f.variable) for f in run.fields.values())):
        yield f"MODELS/{run.directory}/{name}.nc"


def _about_run(run: _Run, found: _Field) -> dict[str, str]:
    name = run.name
    title = f"CalLMIP {name.model}.{name.version} {name.simulation} {name.stage}"
    said = {
        "title": f"SYNTHETIC, not a result. {title}" if run.info.synthetic else title,
        "institution": str(run.info.attributes.get("institution", "")),
        "source_id": run.directory,
        "Model": f"{name.model}.{name.version}",
        "Calibration_stage": name.stage,
        "simulation": name.simulation,
        "frequency": found.frequency,
        "comment": run.info.synthetic,
        "history": f"exported by callmip-global {__version__} from {run.store.name}",
    }
    return {key: text for key, text in said.items() if text}


def _write_fixed(run: _Run, out: Path, folder: str, ledger: _Ledger) -> None:
    """areacella and sftlf, each in a file of its own: the tools look for them among all files."""
    grid = run.layout.grid
    maps = {
        "areacella": (
            np.asarray(grid.cell_area),
            {"standard_name": "cell_area", "long_name": "Cell area", "units": "m2"},
        )
    }
    ds = open_store(run.store, run.info.frequencies[0])
    if "sftlf" in ds.variables:
        land = np.asarray(run.source.to_grid_order(ds["sftlf"]).values, dtype=np.float64)
        maps["sftlf"] = (
            run.layout.lay(np.nan_to_num(land)),
            {
                "standard_name": "land_area_fraction",
                "long_name": "Land area fraction",
                "units": "%",
            },
        )
    for name, (values, attributes) in maps.items():
        path = f"{folder}/{name}.nc"
        key = text_hash(json.dumps([__version__, run.identity, name]))
        if not ledger.has(path, key):
            write_fixed(checked_target(out, path), name, attributes, grid, values)
            ledger.keep(path, key)


def _store_blocks(run: _Run, found: _Field) -> Iterator[NDArray[Any]]:
    """The values of a field, sign as the tools have it, a few steps at a time."""
    ds = open_store(run.store, found.frequency)
    stored = run.source.to_grid_order(ds[found.variable.name])
    sign = tool_sign(found.variable)
    size = _block_steps(run.source.grid)
    for start in range(found.steps.start, found.steps.stop, size):
        block = stored.isel(time=slice(start, min(start + size, found.steps.stop)))
        values = block.transpose("time", ...).values
        yield values if sign == 1 else -values


def _block_steps(grid: Grid) -> int:
    """Steps read at a time: what a store holds in one chunk, fewer of a large grid."""
    fitting = _BLOCK_BYTES // (8 * grid.shape[0] * grid.shape[1])
    return int(max(1, min(_BLOCK_STEPS, fitting)))


# --- references ---------------------------------------------------------------------------------


def _write_reference(
    reference: Reference,
    runs: Sequence[_Run],
    regridder: Regridder | None,
    out: Path,
    ledger: _Ledger,
    others: Sequence[Told],
    notes: list[str],
) -> Told:
    """The file of one reference, cut to the years of the runs that have its variable."""
    variable = variable_table()[reference.variable]
    with_it = [run for run in runs if variable.name in run.fields]
    if reference.anomaly:
        raise _LeftOutError(
            f"{reference.name}: left out, for only its departures from the mean can be compared, "
            "and the tools compare the mean; callmip-global benchmark does it."
        )
    if not with_it:
        raise _LeftOutError(f"{reference.name}: left out, no run has {variable.name}.")
    path = _reference_path(reference)
    if any(told.path == path for told in others):
        wanted = "names that differ in letters and digits"
        raise DataError(Problem(f"product {reference.name}", found="a second file", wanted=wanted))
    series = reference.open_series()
    try:
        target = _target(series.grid, with_it) if regridder is not None else None
        axis, periods = _axis(reference, series, with_it)
        key = text_hash(
            json.dumps(
                [
                    __version__,
                    reference.identity,
                    "" if target is None else target.digest,
                    [axis.calendar, axis.first, axis.size, axis.frequency],
                ]
            )
        )
        missing = axis.size - len(periods)
        if missing and not _is_static(reference, series):
            notes.append(
                f"{reference.name}: {missing} steps are not in the product; they are written "
                "without values."
            )
        if target is not None:
            notes.append(f"{reference.name}: regridded to the grid of the models, conservatively.")
        if not ledger.has(path, key):
            grid = series.grid if target is None else target
            static = _is_static(reference, series)
            source = _Values(series, variable, target, regridder)
            units = reference_units(variable)[0]
            write_field(
                checked_target(out, path),
                tool_name(variable),
                tool_attributes(variable, units),
                Layout.of(grid, f"product {reference.name}"),
                Steps.one(axis) if static else Steps.of(axis),
                source.mean(periods) if static else source.blocks(axis.periods),
                {
                    "title": reference.name,
                    **reference.about,
                    "history": f"exported by callmip-global {__version__}",
                },
            )
            ledger.keep(path, key)
    finally:
        series.close()
    return Told(Path(path).stem, variable, path)


def _reference_path(reference: Reference) -> str:
    name = _plain(reference.name).replace("_", "-")
    return f"DATA/{tool_name(variable_table()[reference.variable])}/{name}.nc"


def _target(grid: Grid, runs: Sequence[_Run]) -> Grid | None:
    """The one grid of the runs, where the reference has another and is not the coarser one."""
    one = runs[0].source.grid
    if any(not run.source.grid.same_cells(one) for run in runs) or grid.same_cells(one):
        return None
    return None if grid.mean_cell > one.mean_cell * (1.0 + 1e-6) else one


def _is_static(reference: Reference, series: Series) -> bool:
    return reference.static or series.frequency == "fx"


def _axis(
    reference: Reference, series: Series, runs: Sequence[_Run]
) -> tuple[MonthAxis, tuple[Period, ...]]:
    """The axis to be written, and the periods of the product that go into it.

    A static product is as long as the years that all runs have; of several epochs those of the
    window count. Any other has the months (years) between the first and the last that runs have.
    """
    where, variable = f"product {reference.name}", reference.variable
    axes = [run.fields[variable].axis for run in runs]
    periods = series.periods
    if reference.window is not None and series.frequency != "fx":
        first, last = reference.window
        periods = tuple(p for p in periods if first <= p[0] <= last)
    if _is_static(reference, series):
        first, last = max(a.years[0] for a in axes), min(a.years[1] for a in axes)
        if first > last:
            raise DataError(
                Problem(where, variable, "runs without a common year", "at least one year")
            )
        if not periods:
            raise DataError(
                Problem(where, variable, "no epoch in the window", f"one of {reference.window}")
            )
        return MonthAxis("noleap", (first, 1), last - first + 1, "yr"), periods
    first, last = min(a.years[0] for a in axes), max(a.years[1] for a in axes)
    used = tuple(p for p in periods if first <= p[0] <= last)
    if not used:
        found = f"{series.periods[0][0]} to {series.periods[-1][0]}"
        window = "" if reference.window is None else f" within the window {reference.window}"
        wanted = f"years of the runs, {first} to {last}{window}"
        raise DataError(Problem(where, variable, found, wanted))
    frequency: Frequency = "yr" if series.frequency == "yr" else "mon"
    months = 12 * (used[-1][0] - used[0][0]) + used[-1][1] - used[0][1]
    size = (months // 12 if frequency == "yr" else months) + 1
    return MonthAxis(series.calendar, used[0], size, frequency), used


@dataclass(frozen=True)
class _Values:
    """The values of a reference as the tools want them: grid, sign and units."""

    series: Series
    variable: Variable
    target: Grid | None
    regridder: Regridder | None

    def blocks(self, periods: Sequence[Period]) -> Iterator[NDArray[Any]]:
        """All periods in turn, those that the product lacks without values."""
        there = set(self.series.periods)
        size = _block_steps(self.series.grid)
        seen = False
        for start in range(0, len(periods), size):
            block = periods[start : start + size]
            known = [i for i, period in enumerate(block) if period in there]
            shape = self.series.grid.shape if self.target is None else self.target.shape
            values = np.full((len(block), *shape), np.nan)
            if known:
                values[known] = self._read([block[i] for i in known])
            seen = seen or bool(np.isfinite(values).any())
            yield values
        if not seen:
            raise self._empty()

    def mean(self, periods: Sequence[Period]) -> Iterator[NDArray[Any]]:
        """One map: the mean over the epochs, each cell over those it has."""
        total = count = np.zeros(())
        for period in periods:
            values = self._read([period])
            total = total + np.nan_to_num(values)
            count = count + np.isfinite(values)
        if not np.any(count):
            raise self._empty()
        with np.errstate(invalid="ignore", divide="ignore"):
            yield np.asarray(total / count)

    def _empty(self) -> DataError:
        name = self.variable.name
        return DataError(Problem(self.series.where, name, "no value at all", "some values"))

    def _read(self, periods: Sequence[Period]) -> NDArray[Any]:
        values = self.series.read(periods)
        if self.target is not None and self.regridder is not None:
            values = self._regridded(values)
        return np.asarray(values * (tool_sign(self.variable) * reference_units(self.variable)[1]))

    def _regridded(self, values: NDArray[Any]) -> NDArray[Any]:
        assert self.regridder is not None
        assert self.target is not None
        grid, land, name = self.series.grid, self.series.land, self.variable.name
        methods = {} if land is None else {"cell_methods": f"area: mean {PER_LAND}"}
        ds = xr.Dataset(
            {name: (("time", "lat", "lon"), values, methods)},
            coords={
                "lat": ("lat", grid.lat, {"standard_name": "latitude", "bounds": "lat_bnds"}),
                "lon": ("lon", grid.lon, {"standard_name": "longitude", "bounds": "lon_bnds"}),
                "lat_bnds": (("lat", "bnds"), grid.lat_bnds),
                "lon_bnds": (("lon", "bnds"), grid.lon_bnds),
            },
        )
        if land is not None:
            says = {"standard_name": "land_area_fraction", "units": "%"}
            share = 100.0 * np.nan_to_num(land)
            ds = ds.assign_coords(sftlf=(("lat", "lon"), share, says))
        out = self.regridder(ds, self.target)[name]
        return np.asarray(out.transpose("time", "lat", "lon").values)
