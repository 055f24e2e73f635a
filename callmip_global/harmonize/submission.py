"""What becomes of every file and every variable of a submission: accepted, fixed or refused.

`check_file` and `check_store` look without writing anything; both use the rules that harmonizing
uses. A broken file never stops the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from callmip_global.errors import CallmipError, DataError, Problem
from callmip_global.files import walk_files
from callmip_global.harmonize.checks import Summary, summary_problem
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.inventory import UNREAD, Taken, take
from callmip_global.harmonize.naming import READABLE, Row, classify
from callmip_global.harmonize.native import Inventory, NativeFile, build_timeline, whole_years
from callmip_global.harmonize.resolve import complete, of_stage
from callmip_global.harmonize.rules import RULES, outcome_of
from callmip_global.harmonize.run import check_values
from callmip_global.harmonize.variable_map import VariableMap
from callmip_global.parallel import Progress, quiet
from callmip_global.store import (
    FREQUENCIES,
    is_per_land,
    is_store,
    open_store,
    store_info,
    value_fraction,
)
from callmip_global.units import same_units
from callmip_global.variables import UNCERTAINTY, known_variable

Outcome = Literal["accepted", "fixed", "refused"]

_BLOCK = 60
_LINE = re.compile(r"^([^:]+):\d+: ")


@dataclass(frozen=True, order=True)
class Entry:
    """One line of the report. ``rules``: names of the rules that fixed or refused it.

    ``variable`` is the protocol's name, the native one where it is not in the map, and empty for a
    file as a whole; ``path`` is empty for what is derived from other variables.
    """

    path: str
    variable: str
    outcome: Outcome
    rules: tuple[str, ...]
    message: str


def entries_json(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The report as JSON, sorted: the same submission gives the same bytes."""
    return [{**asdict(entry), "rules": list(entry.rules)} for entry in sorted(entries)]


def refusals(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """Why anything was refused, each reason once, and the names of the variables it holds for.

    Where only the file and the variable differ, the first file is named, and how many more; where
    only the line of the manifest does, the manifest.
    """
    found: dict[str, list[Entry]] = {}
    for entry in sorted(e for e in entries if e.outcome == "refused"):
        bare = entry.message.replace(f"{entry.path}: ", "") if entry.path else entry.message
        bare = re.sub(rf"(^|; |: ){re.escape(entry.variable)}: ", r"\1", bare)
        bare = _LINE.sub(r"\1: ", bare)
        found.setdefault(bare, []).append(entry)
    said = {}
    for bare, alike in found.items():
        paths = [path for path in dict.fromkeys(entry.path for entry in alike) if path]
        text = f"{paths[0]}: {bare}" if paths else bare
        if len({entry.message for entry in alike}) == 1:
            text = alike[0].message
        elif len(paths) > 1:
            text = f"{paths[0]} and {len(paths) - 1} more: {bare}"
        said[text] = [name for name in dict.fromkeys(entry.variable for entry in alike) if name]
    return said


def remarks(entries: Iterable[Entry]) -> list[tuple[str, list[str], int, str]]:
    """What was done with what is kept: (fixed or kept, variables, number of files, words).

    Kept is what somebody should look at though nothing was changed. The same words come once.
    """
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in sorted(entries):
        if entry.outcome == "fixed":
            found.setdefault(("fixed", entry.message), []).append(entry)
        elif entry.outcome == "accepted" and any(RULES[r].kind == "warn" for r in entry.rules):
            found.setdefault(("kept", entry.message), []).append(entry)
    return [
        (
            what,
            list(dict.fromkeys(entry.variable for entry in alike)),
            sum(bool(entry.path) and "derived" not in entry.rules for entry in alike),
            message,
        )
        for (what, message), alike in sorted(found.items())
    ]


def entries_of(rows: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The entries that `entries_json` made the rows of; KeyError for other rows."""
    return [
        Entry(r["path"], r["variable"], r["outcome"], tuple(r["rules"]), r["message"]) for r in rows
    ]


def refused(path: str, variable: str, rule: str, problems: Sequence[Problem]) -> Entry:
    """The entry of something refused for ``problems``; ``rule`` stands for those without one."""
    rules = tuple(dict.fromkeys(p.rule or rule for p in problems))
    return Entry(path, variable, "refused", rules, "; ".join(str(p) for p in problems))


def variable_entries(report: Mapping[str, Any], files: Sequence[NativeFile]) -> list[Entry]:
    """Entries of what `harmonize_files` delivered: per file and variable, or per derivation."""
    entries = []
    for name, item in report["variables"].items():
        outcome = outcome_of(item["fixes"])
        words = ((rule, text.removeprefix(f"{rule}: ")) for rule, text in item["fixes"].items())
        message = "; ".join(f"{rule}: {text}" for rule, text in words)
        rules = tuple(item["fixes"])
        used = set(item["files"])
        if item["source"] is None:
            entries.append(Entry("", name, outcome, rules, message))
            continue
        for file in files:
            if item["source"] not in file.variables:
                continue
            if file.origin in used:
                entries.append(Entry(file.origin, name, outcome, rules, message))
            else:
                said = "holds none of the wanted years, or annual values beside monthly ones"
                entries.append(Entry(file.origin, name, "accepted", ("not-used",), said))
    return entries


def opened(taken: Taken, declared: Declared) -> tuple[list[NativeFile], list[Entry]]:
    """Headers of the files of a submission, and the entries of all its other files.

    A file has, beside its own notes, those of how it was come by, and without the variables for
    which the manifest names another one.
    """
    entries = [Entry(o, "", outcome_of([rule]), (rule,), said) for o, rule, said in taken.notes]
    entries += [refused(origin, "", "unreadable", [problem]) for origin, problem in taken.refused]
    inventory = Inventory.of(taken.files, declared)
    for origin, problems in inventory.problems.items():
        entries.append(refused(origin, "", "unreadable", problems))
    found = {item.origin: item for item in taken.files}
    files = []
    for file in inventory.files:
        item = found[file.origin]
        said = "the manifest names another file for it; not read"
        entries += [Entry(file.origin, n, "accepted", ("not-named",), said) for n in item.without]
        kept = {n: v for n, v in file.variables.items() if n not in item.without}
        files.append(replace(file, variables=kept, notes=(*file.notes, *item.notes)))
    return files, entries


def file_entries(files: Sequence[NativeFile], variable_map: VariableMap) -> list[Entry]:
    """Entries of the fields that the map does not speak of, and of files without any field."""
    sources = {e.source for e in variable_map.entries.values()}
    weights = {e.cover for e in variable_map.entries.values()}
    weights |= {variable_map.land_fraction, variable_map.cover}
    entries = []
    for file in files:
        if file.problems:
            others = [name for name in file.flaws if name not in sources]
            entries += [refused(file.origin, n, "unreadable", file.problems) for n in others]
            continue
        fields = file.data_variables()
        for name in fields:
            if name in sources:
                continue
            label = f"{name} (native)" if name in variable_map.entries else name
            if name in weights:
                rule, said = "fractions", "weights other fields, where they need it"
            elif file.time_dim in file.variables[name].dims:
                rule, said = "not-mapped", "not in the variable map; not used"
            else:
                rule, said = "not-mapped", "a field without time; not used"
            entries.append(Entry(file.origin, label, "accepted", (rule,), said))
        if not fields:
            said = "no field on latitudes and longitudes; not used"
            entries.append(Entry(file.origin, "", "accepted", ("no-field",), said))
    return entries


def absent_entries(variable_map: VariableMap) -> list[Entry]:
    """Entries of the variables that the map declares absent, with the reason."""
    return [
        Entry("", name, "accepted", ("absent",), f"declared absent: {entry.absent}")
        for name, entry in variable_map.entries.items()
        if entry.absent is not None
    ]


def accounted(entries: Iterable[Entry], walked: Iterable[str]) -> list[Entry]:
    """The entries, sorted, each file and variable once, and one for every file without any.

    Of several entries of one (path, variable) the worst outcome is kept, with the rules and words
    of all. ``walked``: every file there is; of an archive its members may stand for it.
    """
    merged: dict[tuple[str, str], Entry] = {}
    for entry in sorted(set(entries)):
        key = (entry.path, entry.variable)
        merged[key] = _joined(merged[key], entry) if key in merged else entry
    said = {path for path, _ in merged} | {path.split("::")[0] for path, _ in merged}
    for path in sorted(set(walked) - said):
        text = "nothing in it was asked for; not used"
        merged[path, ""] = Entry(path, "", "accepted", ("not-used",), text)
    return sorted(merged.values())


def _joined(one: Entry, other: Entry) -> Entry:
    worst = max(one.outcome, other.outcome, key=("accepted", "fixed", "refused").index)
    rules = tuple(dict.fromkeys((*one.rules, *other.rules)))
    message = "; ".join(dict.fromkeys(m for m in (one.message, other.message) if m))
    return Entry(one.path, one.variable, worst, rules, message)


def refused_entries(
    name: str, problems: Sequence[Problem], files: Sequence[NativeFile], variable_map: VariableMap
) -> list[Entry]:
    """Entries of a refused variable: one per file that holds it, or one without a file."""
    source = variable_map.entries[name].source
    holders = [f.origin for f in files if source is not None and source in f.variables]
    return [refused(path, name, "refused", problems) for path in holders or [""]]


def common_years(files: Sequence[NativeFile], variable_map: VariableMap) -> tuple[int, int] | None:
    """First and last whole year that every variable found has; None if there is none.

    Variables that are not found, or whose files overlap, do not narrow the years: they are refused
    later, with the reason. Nor do stated uncertainties.
    """
    spans = []
    for name, entry in variable_map.entries.items():
        if entry.source is None or name.endswith(UNCERTAINTY):
            continue
        try:
            span = whole_years(build_timeline(entry.source, files, None, ""))
        except CallmipError:
            continue
        if span is not None:
            spans.append(span)
    first, last = max((s[0] for s in spans), default=1), min((s[1] for s in spans), default=0)
    return (first, last) if first <= last else None


# --- checking alone ------------------------------------------------------------------------------


def check_files(
    files: Sequence[NativeFile],
    variable_map: VariableMap,
    stage: str = "",
    progress: Progress = quiet,
) -> list[Entry]:
    """What harmonizing would make of the files of one run, without writing a store.

    ``stage``: of the run; empty where nothing says it.
    """
    variable_map = of_stage(complete(variable_map, files), stage, files)
    entries = file_entries(files, variable_map)
    report = check_values(files, variable_map, variable_map.delivered, progress)
    for name, problems in report["refused"].items():
        entries += refused_entries(name, problems, files, variable_map)
    entries += variable_entries(report, files)
    return entries


def check_store(path: Path) -> list[Entry]:
    """Entries of a store: every variable of every group, its attributes, units and values."""
    entries: list[Entry] = []
    try:
        info = store_info(path)
        groups = info.frequencies or (None,)
    except CallmipError as error:
        return [refused(str(path), "", "unreadable", error.problems)]
    for group in groups:
        ds = open_store(path, group)
        where = f"{path}/{group}" if group else str(path)
        for name in map(str, ds.data_vars):
            if ds[name].dims != ("time", "lat", "lon") or name.startswith("valid_fraction"):
                continue
            problems = _store_problems(ds, name, where)
            if problems:
                entries.append(refused(where, name, "refused", problems))
            else:
                entries.append(Entry(where, name, "accepted", (), ""))
    return entries


def _store_problems(ds: Any, name: str, where: str) -> list[Problem]:
    var = known_variable(name)
    if var is None:
        return []
    problems = []
    units = str(ds[name].attrs.get("units", ""))
    if not units or not same_units(units, var.units):
        problems.append(Problem(where, name, f"units {units!r}", repr(var.units)))
    for auxiliary in ("time_bnds", "lat_bnds", "lon_bnds", "areacella"):
        if auxiliary not in ds.variables:
            problems.append(Problem(where, auxiliary, "nothing", "the coordinate"))
    if problems:
        return problems
    if is_per_land(ds[name]) and "sftlf" not in ds.variables:
        problems.append(Problem(where, "sftlf", "nothing", "the land fraction of a per-land field"))
    summary = Summary()
    weights = ds["areacella"].values.astype(np.float64)
    fraction = value_fraction(ds, name)
    if "time" not in fraction.dims:
        weights = weights * np.nan_to_num(fraction.transpose("lat", "lon").values)
    for start in range(0, ds.sizes["time"], _BLOCK):
        block = ds[name].isel(time=slice(start, start + _BLOCK))
        values = block.values.astype(np.float64)
        summary.add(values, weights, var)
        if where.endswith("/mon"):
            months = [t.month for t in block["time"].values]
            summary.seasons.add(values, weights, ds["lat"].values, months)
    problem = summary_problem(summary, var, where)
    return problems + ([problem] if problem else [])


@dataclass(frozen=True)
class Checked:
    """What checking found: entries, and the headers of all native files that could be read."""

    entries: list[Entry]
    files: list[NativeFile]


def check_submission(
    paths: Sequence[Path],
    variable_map: VariableMap,
    declared: Declared,
    *,
    patterns: Sequence[str] = ("**/*.nc", "**/*.zarr"),
    model: str = "",
    simulation: str = "",
    stage: str = "",
    progress: Progress = quiet,
) -> Checked:
    """What harmonizing would make of one run's submission, by the same inventory and rules.

    Nothing is written but what is packed, to a temporary folder. Without ``model``, ``simulation``
    and ``stage`` nothing is held against the names of files and folders.
    """
    with TemporaryDirectory(prefix="callmip-check-") as folder:
        taken = take(
            paths,
            patterns,
            unpack_to=Path(folder),
            declared=declared,
            model=model,
            simulation=simulation,
            stage=stage,
            progress=lambda text, _share: progress(text, 0.0),
        )
        files, entries = opened(taken, declared)
        entries += check_files(files, variable_map, stage, progress)
    return Checked(accounted(entries, (f.origin for f in files)), files)


def check_path(
    path: Path, variable_map: VariableMap | None = None, progress: Progress = quiet
) -> Checked:
    """Check a file, a store, or a folder of them. DataError for what is not there.

    ``variable_map`` None takes the protocol's names and those that the variable table knows. The
    files of a folder are looked at together, model by model and run by run where folders, or names
    of files, say of which model, simulation and stage they are. Of a collection, the newest version
    of every store is checked.
    """
    if not path.exists():
        raise DataError(Problem(str(path), found="nothing there"))
    stores = _stores_in(path)
    if stores == [path] or (path / "collection.json").is_file():
        return Checked([entry for store in stores for entry in check_store(store)], [])
    entries = [entry for store in stores for entry in check_store(store)]
    native = [path] if not stores else _beside(path, stores)
    models, beside = _models_in(path) if native == [path] else ([], [])
    entries += beside
    files: list[NativeFile] = []
    for part in [[model] for model in models] or [native]:
        checked = _check_runs(part, variable_map, progress)
        files += checked.files
        # What has no file would be that of no model.
        of = str(part[0]) if models else ""
        entries += [e if e.path else replace(e, path=of) for e in checked.entries]
    return Checked(accounted(entries, ()), files)


def _models_in(path: Path) -> tuple[list[Path], list[Entry]]:
    """The folders in ``path`` that are a model each, and the entries of the texts beside them.

    None where the folder or name of any file leaves a doubt.
    """
    models, beside = set(), []
    for name, _ in walk_files(path) if path.is_dir() else ():
        row, (top, *below) = classify(name, 1), name.split("/")
        if not below and row.kind in ("text", "script", "junk", "table"):
            said = f"{UNREAD[row.kind]}; not read"
            beside.append(Entry(str(path / name), "", "accepted", ("not-data",), said))
        elif not below or (row.kind in READABLE and not _of_model(row, top)):
            return [], []
        else:
            models.add(path / top)
    return (sorted(models), beside) if len(models) > 1 else ([], [])


def _of_model(row: Row, folder: str) -> bool:
    """Whether a file lies below the folder of a model with a folder of a simulation in it."""
    return bool(row.folder_simulation) and row.folder_model == folder != row.copy


def _check_runs(
    paths: Sequence[Path], variable_map: VariableMap | None, progress: Progress
) -> Checked:
    """The runs that names and folders tell of, each by itself; files that tell nothing in all."""
    if variable_map is None:
        where = " ".join(["the names of variables in", *map(str, paths[:1])])
        variable_map = VariableMap({}, well_known=True, where=where)
    declared = Declared(calendar=variable_map.calendar)
    runs = _runs_of(paths) or [("", "")]
    entries, files = list[Entry](), dict[str, NativeFile]()
    for simulation, stage in runs:
        one = check_submission(
            paths,
            variable_map,
            declared,
            simulation=simulation,
            stage=stage,
            progress=progress,
        )
        files |= {file.origin: file for file in one.files}
        entries += one.entries
    read = {entry.path for entry in entries if "other-run" not in entry.rules}
    kept = [e for e in entries if "other-run" not in e.rules or e.path not in read]
    return Checked(accounted(kept, ()), [files[origin] for origin in sorted(files)])


def _runs_of(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """(simulation, stage) of all files that say so by their name or folder."""
    found = set()
    for path in paths:
        names = [n for n, _ in walk_files(path)] if path.is_dir() else [""]
        for name in names:
            row = classify(f"{path.resolve().name}/{name}" if name else path.name, 1)
            if row.kind in READABLE:
                found.add((row.folder_simulation or row.simulation, row.folder_stage or row.stage))
    simulations = {simulation for simulation, _ in found if simulation}
    stages = {stage for _, stage in found if stage}
    return sorted(
        {
            (simulation, stage)
            for simulation, stage in found
            if (simulation or not simulations) and (stage or not stages)
        }
    )


def _stores_in(path: Path) -> list[Path]:
    """The protocol stores at or below ``path``; of a collection the newest versions."""
    if is_store(path):
        return [path] if _is_harmonized(path) else []
    if path.is_file():
        return []
    if (path / "collection.json").is_file():
        return [store for store in sorted(path.glob("*.zarr")) if _is_harmonized(store)]
    found = (p.parent for p in sorted(path.rglob("zarr.json")))
    return [p for p in found if _is_harmonized(p)]


def _is_harmonized(path: Path) -> bool:
    """Whether a Zarr v3 group is a store of this tool's: with groups by frequency."""
    return is_store(path) and any(is_store(path / frequency) for frequency in FREQUENCIES)


def _beside(path: Path, stores: Sequence[Path]) -> list[Path]:
    """Everything at or below ``path`` that is in none of the stores."""
    if not any(path == store or path in store.parents for store in stores):
        return [path]
    if path in stores:
        return []
    return [found for child in sorted(path.iterdir()) for found in _beside(child, stores)]
