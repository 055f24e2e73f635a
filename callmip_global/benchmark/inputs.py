"""The runs to be scored: stores, or NetCDF files with the protocol's names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import xarray as xr

from callmip_global.benchmark.product_check import Finding, fault, named, of_times
from callmip_global.benchmark.series import (
    Opener,
    Series,
    file_opener,
    run_series,
    why_unreadable,
)
from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.files import file_hash
from callmip_global.store import is_store, open_store, store_digest, store_info
from callmip_global.variables import UNCERTAINTY, variable_table

_FILE = re.compile(
    r"(?P<model>[^_]+)_(?:global_)?(?P<grid>[^_]+)_(?P<frequency>mon|yr)"
    r"_(?P<years>\d{4}-\d{4})_(?P<stage>Prior|Posterior)(?:_m(?P<member>\d+))?\.nc"
)
STAGES = ("Prior", "Posterior")
_UNREADABLE = (OSError, ValueError, KeyError)
_DATA_RULES = ("unreadable",)


@dataclass
class Run:
    """One model run: simulation, stage and member of a model version, with its data.

    ``sources``: per frequency the opener of its data and the place to name in messages.
    """

    model: str
    simulation: str
    stage: str
    member: int | None
    grid: str
    synthetic: str
    paths: list[Path]
    sources: dict[str, tuple[str, Opener]] = field(repr=False, default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def member_name(self) -> str:
        """``m001``, or empty for a stage without members."""
        return "" if self.member is None else f"m{self.member:03d}"

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What tells one run from another in every table."""
        return self.model, self.simulation, self.stage, self.member_name

    @property
    def label(self) -> str:
        """The same in words."""
        return " ".join(part for part in self.identity if part)

    def changed(self) -> list[int]:
        """When its large files were changed last [ns]: their digests are of the ends alone."""
        return [
            path.stat().st_mtime_ns
            for path, digest in zip(self.paths, self.digests.values(), strict=True)
            if digest.startswith("ends-")
        ]

    def variables(self, frequency: str) -> set[str]:
        """Names of the table's variables there are at a frequency, and of a posterior run's stated
        uncertainties of them."""
        if frequency not in self.sources:
            return set()
        with self.sources[frequency][1]() as ds:
            there = {name for name in variable_table() if name in ds.variables}
            if self.stage == "Posterior":
                there |= {n + UNCERTAINTY for n in there if n + UNCERTAINTY in ds.variables}
            return there

    def series(self, variable: str, frequency: str) -> Series:
        """A variable at a frequency that the run has, or the stated uncertainty of one."""
        file, opener = self.sources[frequency]
        where = f"{self.label} ({file})"
        if variable.endswith(UNCERTAINTY):
            opener = partial(_with_attributes, opener, variable)
        return run_series(where, [where], [opener], variable)


def _with_attributes(opener: Opener, uncertainty: str) -> xr.Dataset:
    """What a stated uncertainty does not say of itself, its variable says: units, and of what part
    of the cell it is."""
    ds = opener()
    of, own = ds[uncertainty.removesuffix(UNCERTAINTY)].attrs, ds[uncertainty].attrs
    said = {key: of[key] for key in ("units", "cell_methods") if key in of and not own.get(key)}
    return ds.assign({uncertainty: ds[uncertainty].assign_attrs(said)})


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[Problem]]:
    """The runs behind stores and files, in a fixed order, and what is wrong with those that are
    damaged and left out.

    Files of different frequencies of one run belong together; the same run twice is refused, for
    its scores could not be told apart. UsageError with all that are no runs, or where all are
    damaged.
    """
    problems: list[Problem] = []
    damaged: list[Problem] = []
    runs: dict[tuple[str, str, str, str], Run] = {}
    for path in paths:
        try:
            run = _store_run(path) if path.is_dir() else _file_run(path)
            damaged += _unusable(run)
        except (DataError, UsageError) as error:
            of_data = [problem for problem in error.problems if problem.rule in _DATA_RULES]
            damaged += of_data
            problems += [problem for problem in error.problems if problem not in of_data]
            continue
        known = runs.setdefault(run.identity, run)
        if known is run:
            continue
        if set(known.sources) & set(run.sources):
            problems.append(
                Problem(
                    str(path),
                    found=f"a second time {run.label}",
                    wanted=f"each run once ({known.paths[0]} is it too)",
                )
            )
            continue
        known.sources.update(run.sources)
        known.paths.extend(run.paths)
        for path in run.paths:
            # Files of one run may have one name, in folders of their own.
            name = str(path) if path.name in known.digests else path.name
            known.digests[name] = run.digests[path.name]
        known.synthetic = known.synthetic or run.synthetic
    if not paths:
        problems.append(Problem("benchmark", found="no store and no file", wanted="at least one"))
    if problems or not any(run.sources for run in runs.values()):
        raise UsageError(problems + damaged)
    order = {stage: i for i, stage in enumerate(STAGES)}
    used = [run for run in runs.values() if run.sources]
    used.sort(key=lambda r: (r.model, r.simulation, order[r.stage], r.member_name))
    return used, damaged


def _unusable(run: Run) -> list[Problem]:
    """What is wrong with the times of the run's files, or why one cannot be read. A frequency that
    cannot be used is taken out of its sources."""
    problems: list[Problem] = []
    for frequency, (file, opener) in list(run.sources.items()):
        at = f"{run.label} ({file})"
        try:
            with opener() as ds:
                findings = list(of_times(ds, at))
        except DataError as error:
            findings = [Finding(named(problem), True) for problem in error.problems]
        except _UNREADABLE as error:
            findings = [_no_calendar(at, error) or _unreadable(at, error)]
        problems += [finding.problem for finding in findings]
        if any(finding.refuse for finding in findings):
            del run.sources[frequency]
    return problems


def _no_calendar(at: str, error: Exception) -> Finding | None:
    """The times of a store are decoded when it is opened."""
    text = " ".join(str(error).split())
    if "unable to decode time" not in text:
        return None
    return fault(
        "calendar",
        at,
        "time",
        f"times that cannot be read ({text[:80]})",
        "a calendar of CF",
        "The run is left out. Harmonize it again.",
    )


def _unreadable(at: str, error: Exception) -> Finding:
    return fault(
        "unreadable",
        at,
        "",
        f"a file that cannot be read ({why_unreadable(error)})",
        "NetCDF, or a whole store",
        "The run is left out. Cut short on the way? Copy it again.",
    )


def _store_run(path: Path) -> Run:
    if not is_store(path):
        raise DataError(
            Problem(
                str(path), found="a folder that is no Zarr v3 store", wanted="a store or a file"
            )
        )
    try:
        info = store_info(path)
    except _UNREADABLE as error:
        raise DataError(_unreadable(str(path), error).problem) from error
    if info.name is None:
        raise DataError(
            Problem(
                str(path),
                found="a flat store, which names no model, simulation and stage",
                wanted="a store made by harmonize and regrid",
            )
        )
    name = info.name
    run = Run(
        f"{name.model}.{name.version}",
        name.simulation,
        name.stage,
        name.member,
        name.grid,
        info.synthetic,
        [path],
        digests={path.name: store_digest(path)},
    )
    for frequency in info.frequencies:
        run.sources[frequency] = (path.name, partial(open_store, path, frequency))
    return run


def _file_run(path: Path) -> Run:
    open_file = file_opener(path)
    try:
        with open_file() as ds:
            attributes = {str(key): str(value) for key, value in ds.attrs.items()}
    except _UNREADABLE as error:
        raise DataError(_unreadable(str(path), error).problem) from error
    match = _FILE.fullmatch(path.name)
    parts = match.groupdict() if match else {}
    stage = attributes.get("Calibration_stage") or parts.get("stage") or ""
    model = attributes.get("Model") or parts.get("model") or ""
    frequency = attributes.get("frequency") or parts.get("frequency") or ""
    simulation = (
        attributes.get("simulation") or attributes.get("Simulation") or path.resolve().parent.name
    )
    if stage not in STAGES or not model or frequency not in ("mon", "yr"):
        raise DataError(
            Problem(
                str(path),
                found=f"model {model!r}, stage {stage!r}, frequency {frequency!r}",
                wanted="<model>.<version>_global_<grid>_<mon|yr>_<YYYY-YYYY>_<Prior|Posterior>.nc",
                remedy="Name it so, or set the attributes Model, Calibration_stage, frequency.",
            )
        )
    member = attributes.get("member") or parts.get("member") or ""
    return Run(
        model,
        simulation,
        stage,
        int(member) if str(member).isdigit() else None,
        parts.get("grid", "of the file"),
        attributes.get("synthetic", ""),
        [path],
        {frequency: (path.name, open_file)},
        {path.name: file_hash(path)},
    )


def pairs(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """(prior, posterior) positions of the same model and simulation.

    A posterior member belongs to the prior member of the same number, or to the one prior there is.
    """
    found = []
    for j, posterior in enumerate(runs):
        if posterior.stage != "Posterior":
            continue
        priors = [
            i
            for i, run in enumerate(runs)
            if run.stage == "Prior" and run.identity[:2] == posterior.identity[:2]
        ]
        same = [i for i in priors if runs[i].member == posterior.member]
        if same or len(priors) == 1:
            found.append(((same or priors)[0], j))
    return found


def unpaired_notes(runs: Sequence[Run]) -> list[str]:
    """What to tell of models without a change from prior to posterior, one line a simulation."""
    paired = {k for pair in pairs(runs) for k in pair}
    lacking: dict[str, list[str]] = {}
    for model, simulation in sorted({run.identity[:2] for run in runs}):
        own = [(k, run) for k, run in enumerate(runs) if run.identity[:2] == (model, simulation)]
        stages = sorted({run.stage for _, run in own})
        alone = [
            run.member_name or "the one without a number"
            for k, run in own
            if run.stage == "Posterior" and k not in paired
        ]
        if len(stages) == 1:
            lacking.setdefault(simulation, []).append(f"{model} (no other stage than {stages[0]})")
        elif alone:
            lacking.setdefault(simulation, []).append(
                f"{model} ({', '.join(alone)}: neither a prior of that number nor a single prior)"
            )
    return [
        f"change from prior to posterior, {simulation}: none of {', '.join(models)}."
        for simulation, models in sorted(lacking.items())
    ]
