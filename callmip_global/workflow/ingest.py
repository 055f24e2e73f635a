"""The committee's ingest: a handed-in submission to harmonized stores, and a report of everything.

Harmonizing, regridding and the report are joined here because the engines do not know each other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from callmip_global.config.manifest import Manifest
from callmip_global.errors import CallmipError, DataError, Problem, UsageError
from callmip_global.grid import standard_grid
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.native import Inventory, NativeFile, build_timeline, whole_years
from callmip_global.harmonize.planning import RefusedVariablesError
from callmip_global.harmonize.run import harmonize_files
from callmip_global.harmonize.submission import (
    Entry,
    refused,
    refused_entries,
    unmapped_entries,
    variable_entries,
)
from callmip_global.harmonize.variable_map import VariableMap
from callmip_global.parallel import TaskMap, in_threads, one_by_one
from callmip_global.regrid import regrid_store
from callmip_global.store import StoreName

Progress = Callable[[str, float], None]


def ingest(
    submissions: Sequence[Path],
    manifest: Manifest,
    *,
    collection: Path,
    progress: Progress = lambda _text, _share: None,
    task_map: TaskMap | None = None,
) -> tuple[list[Path], list[Entry]]:
    """Stores of a submission in ``collection``, one per grid of the manifest, and the report.

    Every file below the submissions and every variable of the map appears in the report: what is
    broken is refused and the rest goes on. A refused variable is in no store. ``task_map``: where
    the units of harmonizing and regridding run, None for this process. UsageError when a submission
    does not exist.
    """
    missing = [
        Problem(str(path), found="nothing there") for path in submissions if not path.exists()
    ]
    if missing:
        raise UsageError(missing)
    data, other = _files(submissions, manifest.file.files)
    said = "matches no pattern of the manifest's files; not read"
    entries = [Entry(str(path), "", "accepted", ("not-data",), said) for path in other]

    variable_map = manifest.variable_map
    inventory = Inventory.of(data, Declared(calendar=variable_map.calendar))
    entries += [
        refused(origin, "", "unreadable", problems)
        for origin, problems in inventory.problems.items()
    ]
    files = inventory.files
    entries += unmapped_entries(files, variable_map)
    years = manifest.file.years or common_years(files, variable_map)
    if years is None:
        problem = Problem(manifest.path.name, "years", "no whole year that all variables have")
        return [], [*entries, refused("", "", "refused", [problem])]

    collection.mkdir(parents=True, exist_ok=True)
    work = collection / f".ingest-{_name(manifest, 'native').text}"
    work.mkdir(exist_ok=True)
    try:
        native, found = _harmonized(files, manifest, years, work, progress, task_map)
        entries += found
        stores: list[Path] = []
        for grid in manifest.file.grids:
            if native is None:
                break
            try:
                stores.append(_regridded(native, manifest, grid, collection, progress, task_map))
            except DataError as error:
                entries.append(refused("", f"all on {grid}", "regridding", error.problems))
    finally:
        shutil.rmtree(work)
    return stores, entries


def common_years(files: Sequence[NativeFile], variable_map: VariableMap) -> tuple[int, int] | None:
    """First and last whole year that every variable found has; None if there is none.

    Variables that are not found, or whose files overlap, do not narrow the years: they are refused
    later, with the reason.
    """
    spans = []
    for entry in variable_map.entries.values():
        if entry.source is None:
            continue
        try:
            span = whole_years(build_timeline(entry.source, files, None, ""))
        except CallmipError:
            continue
        if span is not None:
            spans.append(span)
    first, last = max((s[0] for s in spans), default=1), min((s[1] for s in spans), default=0)
    return (first, last) if first <= last else None


def _files(submissions: Sequence[Path], patterns: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(data files, all other files) of the submissions, sorted, each once."""
    data: set[Path] = set()
    everything: set[Path] = set()
    for submission in submissions:
        if submission.is_file():
            data.add(submission)
            continue
        everything |= {p for p in submission.rglob("*") if p.is_file()}
        for pattern in patterns:
            data |= {p for p in submission.glob(pattern) if p.is_file()}
    return sorted(data), sorted(everything - data)


def _harmonized(
    files: Sequence[NativeFile],
    manifest: Manifest,
    years: tuple[int, int],
    work: Path,
    progress: Progress,
    task_map: TaskMap | None,
) -> tuple[Path | None, list[Entry]]:
    """The native store of all variables that can be had (None if none can), and their entries."""
    variable_map, name = manifest.variable_map, _name(manifest, "native")
    bad: Mapping[str, Sequence[Problem]]
    native: Path | None = work / name.text
    entries: list[Entry] = []
    try:
        report = harmonize_files(
            files,
            variable_map=variable_map,
            name=name,
            attributes=manifest.attributes,
            years=years,
            frequencies=manifest.file.frequencies,
            out=work / name.text,
            variables=variable_map.delivered,
            progress=progress,
            task_map=task_map or one_by_one,
        )
    except RefusedVariablesError as error:
        native, bad = None, error.by_variable
    else:
        bad, entries = report["refused"], variable_entries(report, files)
    for variable, problems in bad.items():
        entries += refused_entries(variable, problems, files, variable_map)
    return native, entries


def _regridded(
    native: Path,
    manifest: Manifest,
    grid: str,
    collection: Path,
    progress: Progress,
    task_map: TaskMap | None,
) -> Path:
    name = _name(manifest, grid)
    out = collection / name.text
    regrid_store(
        native,
        grid=standard_grid(grid),
        out=out,
        name=name,
        progress=progress,
        task_map=task_map or in_threads,
    )
    return out


def _name(manifest: Manifest, grid: str) -> StoreName:
    file = manifest.file
    model = file.model
    name = StoreName(model.name, model.version, file.simulation, "native", file.stage, file.member)
    return replace(name, grid=grid)
