"""The committee's ingest: a handed-in submission to harmonized stores, and a report of everything.

Harmonizing, regridding and the report are joined here because the engines do not know each other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from callmip_global import __version__
from callmip_global.config.manifest import Manifest
from callmip_global.errors import CallmipError, DataError, Problem, UsageError
from callmip_global.files import canonical_json, inside, read_json, text_hash, write_json
from callmip_global.grid import standard_grid
from callmip_global.harmonize.inventory import take
from callmip_global.harmonize.native import NativeFile
from callmip_global.harmonize.planning import RefusedVariablesError
from callmip_global.harmonize.plausibility import same_values
from callmip_global.harmonize.report import write_report
from callmip_global.harmonize.resolve import complete, of_stage
from callmip_global.harmonize.run import harmonize_files
from callmip_global.harmonize.submission import (
    Entry,
    absent_entries,
    accounted,
    check_submission,
    common_years,
    entries_json,
    entries_of,
    file_entries,
    opened,
    refused,
    refused_entries,
    variable_entries,
)
from callmip_global.harmonize.variable_map import VariableMap
from callmip_global.parallel import Progress, TaskMap, in_threads, quiet
from callmip_global.regrid import regrid_store
from callmip_global.store import StoreName, store_info
from callmip_global.workflow.collection import Collection
from callmip_global.workflow.lock import held_alone

_REPORTING_S = 600.0


def ingest(
    submissions: Sequence[Path],
    manifest: Manifest,
    *,
    collection: Path,
    progress: Progress = quiet,
    task_map: TaskMap | None = None,
) -> tuple[list[Path], list[Entry]]:
    """Stores of a submission in ``collection``, one per grid of the manifest, and the report.

    Every file below the submissions and every variable of the map appears in the report: what is
    broken is refused and the rest goes on. A refused variable is in no store. ``task_map``: where
    the units of harmonizing and regridding run, None for this process.

    Killed at any moment and called again it goes on; called again for a submission in which no file
    has changed it does nothing and says the same. Where something has changed, the store it makes
    is a new version, and the one before is kept: see `workflow.collection`, which also says where
    the reports are. UsageError when a submission does not exist, when the collection lies inside
    one, or while another process harmonizes the same run.
    """
    missing = [
        Problem(str(path), found="nothing there") for path in submissions if not path.exists()
    ]
    within = [path for path in submissions if path.is_dir() and inside(path, collection)]
    missing += [
        Problem(str(collection), found=f"a collection inside {path}", wanted="one elsewhere")
        for path in within
    ]
    if missing:
        raise UsageError(missing)
    home = Collection(collection)
    stores: list[Path] = []
    by_run: dict[str, list[Entry]] = {}
    for one in manifest.runs:
        run = run_name(one)
        with held_alone(home.place / f"{run}.lock", "one harmonize of a run at a time"):
            work = _Ingest(submissions, one, home, run, progress, task_map)
            made, by_run[run] = work.stores_and_entries()
            stores += made
    by_run = _of_one_submission(by_run)
    _write_reports(home, by_run)
    return stores, _together(by_run)


def _of_one_submission(by_run: Mapping[str, list[Entry]]) -> dict[str, list[Entry]]:
    """The entries of the runs of one manifest, without those of files that another run reads.

    A file that none of them reads is the first one's.
    """
    unread = {"not-data", "other-run"}
    read = {e.path for entries in by_run.values() for e in entries if not unread & {*e.rules}}
    told: set[str] = set()
    left: dict[str, list[Entry]] = {}
    for run, entries in by_run.items():
        left[run] = [e for e in entries if not unread & {*e.rules} or e.path not in read | told]
        told |= {e.path for e in left[run] if unread & {*e.rules}}
    return left


def _together(by_run: Mapping[str, list[Entry]]) -> list[Entry]:
    """One list of entries. With several runs, what has no file says which run it is of."""
    if len(by_run) == 1:
        return next(iter(by_run.values()))
    named = [
        entry if entry.path else replace(entry, path=run)
        for run, entries in by_run.items()
        for entry in entries
    ]
    return accounted(named, ())


def _write_reports(home: Collection, by_run: Mapping[str, list[Entry]]) -> None:
    """The reports of these runs, and that of all runs of the collection."""
    home.reports.mkdir(exist_ok=True)
    with held_alone(home.place / "reports.lock", "one at a time", wait_s=_REPORTING_S):
        for run, entries in by_run.items():
            write_json(home.reports / f"{run}.json", entries_json(entries))
        found = {path.stem: read_json(path) for path in sorted(home.reports.glob("*.json"))}
        rows = [{"run": run, **row} for run, entries in found.items() for row in entries]
        write_json(home.path / "report.json", rows)
        write_report(rows, out=home.path / "report.html")


def run_name(manifest: Manifest) -> str:
    """``<model>.<version>_<simulation>_<Stage>[_mNNN]``: what one manifest describes."""
    return _name(manifest, "native").text.replace("_native_", "_").removesuffix(".zarr")


@dataclass(frozen=True)
class _Ingest:
    """One call of `ingest`, the lock of its run held."""

    submissions: Sequence[Path]
    manifest: Manifest
    home: Collection
    run: str
    progress: Progress
    task_map: TaskMap | None

    @property
    def work(self) -> Path:
        return self.home.place / self.run

    @property
    def state(self) -> Path:
        """What the submission was when it was last ingested, and what came of it."""
        return self.home.place / f"{self.run}.json"

    def stores_and_entries(self) -> tuple[list[Path], list[Entry]]:
        key = self._key()
        self.home.settle(self.work)
        done = self._done(key)
        if done is not None:
            return done
        if self._begun() != key:
            self._clear()
            self.work.mkdir(parents=True)
            write_json(self.work / "key.json", {"key": key})
        native, entries = self._harmonized()
        stores: list[Path] = []
        failed = False
        for grid in self.manifest.file.grids:
            if native is None:
                break
            try:
                stores.append(self.home.publish(self._regridded(native, grid)))
            except DataError as error:
                failed = True
                entries.append(refused("", f"all on {grid}", "regridding", error.problems))
        contents = self.home.stores()
        copied = any("copy-of-stage" in entry.rules for entry in entries)
        if not failed and not copied:
            # Both come about for reasons outside the submission too: then it is tried again.
            said = {store.name: contents[store.name] for store in stores}
            state = {"key": key, "stores": said, "entries": entries_json(entries)}
            write_json(self.state, state)
        self._clear()
        return stores, entries

    def _clear(self) -> None:
        """Remove the work folder; one that is half removed is not taken up again."""
        (self.work / "key.json").unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def _key(self) -> str:
        """Hash of what the result depends on: files by size and times of change, not by content.

        A file that changes without either is not to be had; one whose times change alone is read
        again, and gives the same content, which is no new version.
        """
        said = [__version__, repr(self.manifest), [str(path) for path in self.submissions]]
        return text_hash(canonical_json([said, [list(_walked(p)) for p in self.submissions]]))

    def _done(self, key: str) -> tuple[list[Path], list[Entry]] | None:
        """The stores and the report of an earlier call, where nothing has changed since."""
        with suppress(FileNotFoundError, ValueError, KeyError):
            state = read_json(self.state)
            there = self.home.stores()
            same = all(there.get(name) == content for name, content in state["stores"].items())
            if state["key"] == key and same:
                names = [_name(self.manifest, grid).text for grid in self.manifest.file.grids]
                self._clear()
                stores = [self.home.path / n for n in names if n in state["stores"]]
                return stores, entries_of(state["entries"])
        return None

    def _begun(self) -> str:
        with suppress(FileNotFoundError, ValueError, KeyError):
            return str(read_json(self.work / "key.json")["key"])
        return ""

    def _harmonized(self) -> tuple[Path | None, list[Entry]]:
        """The native store of all variables that can be had (None if none can), and the entries."""
        native = self.work / "native" / _name(self.manifest, "native").text
        record = self.work / "harmonized.json"
        if record.exists():
            return (native if native.exists() else None), entries_of(read_json(record))
        manifest = self.manifest
        taken = take(
            self.submissions,
            manifest.file.files,
            unpack_to=self.work / "unpacked",
            declared=manifest.declared,
            model=manifest.file.model.name,
            simulation=manifest.file.simulation,
            stage=manifest.file.stage,
            progress=lambda text, _share: self.progress(text, 0.0),
        )
        files, entries = opened(taken, manifest.declared)
        variable_map = complete(manifest.variable_map, files)
        variable_map = of_stage(variable_map, manifest.file.stage, files)
        entries += [*file_entries(files, variable_map), *absent_entries(variable_map)]
        years = manifest.file.years or common_years(files, variable_map)
        if years is None:
            problem = Problem(manifest.path.name, "years", "no whole year that all variables have")
            for name in variable_map.delivered:
                entries += refused_entries(name, [problem], files, variable_map)
        else:
            native.parent.mkdir(exist_ok=True)
            entries += self._streamed(files, variable_map, years, native)
        entries = accounted(entries, (file.origin for file in files))
        write_json(record, entries_json(entries))
        return (native if native.exists() else None), entries

    def _streamed(
        self,
        files: Sequence[NativeFile],
        variable_map: VariableMap,
        years: tuple[int, int],
        out: Path,
    ) -> list[Entry]:
        """Entries of all variables; the store of those that can be had is then at ``out``."""
        manifest = self.manifest
        entries: list[Entry] = []
        try:
            report = harmonize_files(
                files,
                variable_map=variable_map,
                name=_name(manifest, "native"),
                attributes=manifest.attributes,
                years=years,
                frequencies=manifest.file.frequencies,
                out=out,
                variables=variable_map.delivered,
                progress=self.progress,
                task_map=self.task_map or in_threads,
            )
        except RefusedVariablesError as error:
            bad: Mapping[str, Sequence[Problem]] = error.by_variable
        else:
            bad = {**report["refused"], **self._copied(report)}
            if not bad.keys().isdisjoint(report["variables"]):
                shutil.rmtree(out)
                report["variables"] = {}
            entries = variable_entries(report, files)
        for name in variable_map.delivered:
            if name in bad:
                entries += refused_entries(name, bad[name], files, variable_map)
        return entries

    def _copied(self, report: dict[str, Any]) -> dict[str, list[Problem]]:
        """Why all is refused whose values are those of the other stage in the collection.

        Where only some are the same, words about it go to what was done with them.
        """
        for grid in self.manifest.file.grids:
            name = _name(self.manifest, grid)
            other = replace(name, stage="Posterior" if name.stage == "Prior" else "Prior")
            with suppress(CallmipError, KeyError):
                held = store_info(self.home.path / other.text).provenance["harmonize"]
                break
        else:
            return {}
        said = other.text.replace(f"_{grid}_", "_").removesuffix(".zarr")
        problems: dict[str, list[Problem]] = {}
        for variable, rule, found in same_values(report, held, self.manifest.path.name, said):
            if isinstance(found, Problem):
                problems = problems or {n: [replace(found, key=n)] for n in report["variables"]}
            else:
                report["variables"][variable]["fixes"][rule] = found
        return problems

    def _regridded(self, native: Path, grid: str) -> Path:
        """The store on a standard grid, finished, in the work folder."""
        name = _name(self.manifest, grid)
        out = self.work / name.text
        if not out.exists():
            regrid_store(
                native,
                grid=standard_grid(grid),
                out=out,
                name=name,
                progress=self.progress,
                task_map=self.task_map or in_threads,
            )
        return out


def _walked(path: Path) -> Iterator[list[Any]]:
    """[name, size, times of change] of a file, or of all files below a folder, in a fixed order."""
    if path.is_file():
        yield _seen(path, path)
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted(names + links):
            yield _seen(Path(folder, name), path)


def _seen(path: Path, top: Path) -> list[Any]:
    with suppress(OSError):
        status = path.stat()
        times = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        return [os.fsencode(path.relative_to(top)).hex(), *times]
    return [os.fsencode(path.relative_to(top)).hex()]


def check_manifest(
    submissions: Sequence[Path], manifest: Manifest, progress: Progress = quiet
) -> list[Entry]:
    """What `ingest` would say of a submission, as far as that shows without writing a store."""
    by_run = {}
    for one in manifest.runs:
        file = one.file
        by_run[run_name(one)] = check_submission(
            submissions,
            one.variable_map,
            one.declared,
            patterns=file.files,
            model=file.model.name,
            simulation=file.simulation,
            stage=file.stage,
            progress=progress,
        ).entries
        by_run[run_name(one)] += absent_entries(one.variable_map)
    return _together(_of_one_submission(by_run))


def _name(manifest: Manifest, grid: str) -> StoreName:
    file = manifest.file
    model = file.model
    name = StoreName(model.name, model.version, file.simulation, "native", file.stage, file.member)
    return replace(name, grid=grid)
