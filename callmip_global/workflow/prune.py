"""Freeing disk: what of a run nobody needs any more, and how to get it back when somebody does.

Only what is done is ever touched, and the success markers say what is done: neither the queue nor a
guess. A task that is not done (waiting, queued, held, running, failed) keeps everything it builds
on. What was removed is on record in ``pruned.json`` beside the success marker before it goes, so
that a missing file is always explained, and `revive` lets a later task have it made again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from callmip_global.config.plan import Plan, Step, Task
from callmip_global.files import (
    file_hash,
    fsync_folder,
    read_json,
    refuse_links,
    remove_below,
    walk_files,
    write_json,
)
from callmip_global.workflow.journal import now
from callmip_global.workflow.observe import ALIVE, TaskState
from callmip_global.workflow.rundir import PRUNED, Attempt, RunDir

KINDS = {
    "restart_out": "restart files of superseded segments",
    "restart_in": "copies of restart files in finished attempts",
    "attempt": "failed attempts before the one that succeeded (logs are kept)",
    "pieces": "pieces of segments that are done",
    "outputs": "tiles' outputs that are merged",
}
"""What is removed, in the order of the table."""

RECORD = "pruned.json"
_KEPT_OF_ATTEMPTS = ("status.json", "stdout", "stderr")
_LONGEST_CHAIN = 40
"""Links that lead to links: the kernel follows no more."""


@dataclass(frozen=True)
class Item:
    """One file (or link) that may go. ``path`` is relative to the folder of the task ``ref``."""

    ref: str
    kind: str
    path: str
    bytes: int
    sha256: str | None = None


def prune(
    run_dir: Path, *, keep: int = 2, outputs: bool = False, delete: bool = False
) -> tuple[RunDir, list[Item]]:
    """What can go, or (``delete``) what went, of a run directory.

    ``keep``: how many restart sets of every chain stay, counted from its end. ``outputs``: also the
    tiles' outputs once they are merged and what reads the merged files is done. Raises UsageError
    for a folder that is no run directory or holds links that lead out of it, and while another
    command works on it.
    """
    run = RunDir(run_dir.resolve())
    run.plan()
    refuse_links(run.path, ("steps",))
    if not delete:
        return run, list(_Selection(run, run.plan(), keep, outputs).items())
    with run.lock():
        # Looked at again under the lock: a submit may have come between.
        selection = _Selection(run, run.plan(), keep, outputs)
        removed = []
        for items in selection.by_task():
            _remove(run, items)
            removed += items
    return run, removed


def pruned_files(run: RunDir, ref: str) -> dict[str, dict[str, Any]]:
    """What was removed of a task: bytes, sha256 and time by path from the task's folder."""
    try:
        record: dict[str, dict[str, Any]] = read_json(run.task_dir(ref) / RECORD)["files"]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return record


def revive(run: RunDir, states: Mapping[str, TaskState], *, only: str | None = None) -> list[str]:
    """Make tasks due again whose pruned files are needed by tasks that are about to run.

    ``states``: those of all tasks; what is neither done nor alive, of the step or kind ``only``, is
    about to run. Returns the tasks made due, upstream first. Their success markers are kept as
    ``done-<key>-pruned.json``. To be called with the run lock held.
    """
    due = [
        state
        for state in states.values()
        if state.state not in ("done", *ALIVE) and only in (None, state.step.name, state.step.kind)
    ]
    revived: set[str] = set()
    while due:
        reader = due.pop()
        what = "restarts" if reader.step.kind == "run" else "outputs"
        for ref in reader.task.upstream:
            if ref in revived or states[ref].state != "done":
                continue
            gone = pruned_files(run, ref)
            marker = run.marker(ref) if gone else None
            if marker is not None and _lacks(run, ref, marker, what, gone):
                _make_due(run, ref, marker)
                revived.add(ref)
                due.append(states[ref])
    return [ref for ref in states if ref in revived]


def _lacks(
    run: RunDir, ref: str, marker: Mapping[str, Any], what: str, gone: Mapping[str, Any]
) -> bool:
    """Whether a published file of a task was pruned. One that is missing without a record was
    not: the task that needs it says so."""
    folder = f"{marker['attempt']}/restart_out" if what == "restarts" else marker["attempt"]
    paths = [os.path.normpath(f"{folder}/{name}") for name in marker.get(what, {})]
    return any(p in gone and not os.path.lexists(run.task_dir(ref) / p) for p in paths)


def _make_due(run: RunDir, ref: str, marker: Mapping[str, Any]) -> None:
    folder = run.task_dir(ref)
    # The attempt first: cut short between the two, the task is still done and this comes again.
    for attempt in run.attempts(ref):
        if attempt.path.name == marker["attempt"]:
            write_json(attempt.path / "status.json", {**attempt.status, "state": PRUNED})
    name = f"done-{marker['key'][:12]}-pruned"
    kept, number = folder / f"{name}.json", 1
    while kept.exists():
        number += 1
        kept = folder / f"{name}-{number}.json"
    (folder / "done.json").rename(kept)
    fsync_folder(folder)


class _Selection:
    """What can go of a run, given its success markers as they are now."""

    def __init__(self, run: RunDir, plan: Plan, keep: int, outputs: bool) -> None:
        self.run, self.keep, self.outputs = run, keep, outputs
        self.tasks: dict[str, tuple[Step, Task]] = {
            f"{step.name}/{task.id}": (step, task) for step, task in plan.tasks()
        }
        self.readers: dict[str, list[str]] = {ref: [] for ref in self.tasks}
        for ref, (_, task) in self.tasks.items():
            for upstream in task.upstream:
                self.readers[upstream].append(ref)
        self.done: dict[str, Mapping[str, Any]] = {}
        for ref, (_, task) in self.tasks.items():
            marker = run.marker(ref)
            if marker is not None and marker["key"] == task.key:
                self.done[ref] = marker

    def items(self) -> Iterator[Item]:
        """Every file that can go, task by task."""
        for items in self.by_task():
            yield from items

    def by_task(self) -> Iterator[list[Item]]:
        for ref in self.done:
            items = list(self._of_task(ref))
            if items:
                yield items

    def kind(self, ref: str) -> str:
        return self.tasks[ref][0].kind

    @cached_property
    def kept_restarts(self) -> set[str]:
        """Tasks whose restart files stay: read by a task that is not done, or the last of a chain.

        A chain is a run task that no other builds on, with all run tasks it builds on.
        """
        runs = [ref for ref in self.tasks if self.kind(ref) == "run"]
        place = {ref: number for number, ref in enumerate(runs)}
        kept: set[str] = set()
        for ref in runs:
            if ref not in self.done:
                kept.update(u for u in self.tasks[ref][1].upstream if u in place)
            if any(reader in place for reader in self.readers[ref]):
                continue
            chain, due = {ref}, [ref]
            while due:
                upstream = self.tasks[due.pop()][1].upstream
                fresh = [u for u in upstream if u in place and u not in chain]
                chain.update(fresh)
                due += fresh
            left = [r for r in chain if r in self.done and self.done[r].get("restarts")]
            kept.update(sorted(left, key=place.__getitem__)[-self.keep :])
        return kept

    def _of_task(self, ref: str) -> Iterator[Item]:
        marker = self.done[ref]
        folder, name = self.run.task_dir(ref), str(marker["attempt"])
        published = folder / name
        if self.kind(ref) == "run" and not published.is_symlink():
            yield from self._of_segment(ref, marker, published)
        if not (folder / "pieces").is_symlink():
            for path, status in walk_files(folder / "pieces"):
                yield Item(ref, "pieces", f"pieces/{path}", status.st_size)
        if name == "attempt-01":
            return
        for attempt in self.run.attempts(ref):
            if not attempt.path.is_symlink() and _is_superseded(attempt, name):
                for path, status in walk_files(attempt.path):
                    if path not in _KEPT_OF_ATTEMPTS:
                        yield Item(ref, "attempt", f"{attempt.path.name}/{path}", status.st_size)

    def _of_segment(self, ref: str, marker: Mapping[str, Any], published: Path) -> Iterator[Item]:
        restarts, outputs = marker.get("restarts", {}), marker.get("outputs", {})
        kept, merged = ref in self.kept_restarts, self.outputs and self._is_merged(ref)
        going: dict[str, tuple[str, str | None, int]] = {}
        for folder in ("restart_in",) if kept else ("restart_out", "restart_in"):
            if (published / folder).is_symlink():
                continue
            for path, status in walk_files(published / folder):
                known = restarts.get(path, {}).get("sha256") if folder == "restart_out" else None
                going[f"{folder}/{path}"] = (folder, known, status.st_size)
        if merged:
            for path in sorted(_with_targets(published, outputs)):
                known = outputs.get(path, {}).get("sha256")
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    size = os.lstat(published / path).st_size
                    going.setdefault(path, ("outputs", known, size))
        if not going:
            return
        stays = {f"restart_out/{name}" for name in restarts} if kept else set()
        stays = _with_targets(published, stays if merged else stays.union(outputs))
        for path, (kind, known, size) in going.items():
            if path not in stays:
                yield Item(ref, kind, f"{published.name}/{path}", size, known)

    def _is_merged(self, ref: str) -> bool:
        """Whether a tile's outputs were merged, and all that reads the merged files is done."""
        readers = [r for r in self.readers[ref] if self.kind(r) != "run"]
        merges = [r for r in readers if self.kind(r) == "merge"]
        last = [r for merge in merges for r in self.readers[merge]]
        return bool(merges) and all(r in self.done for r in (*readers, *last))


def _is_superseded(attempt: Attempt, published: str) -> bool:
    number = int(published.removeprefix("attempt-"))
    return attempt.number < number and attempt.state in ("failed", "left", PRUNED)


def _with_targets(folder: Path, names: Iterable[str]) -> set[str]:
    """Paths in ``folder`` of these files, and of all that they lead to where they are links."""
    found = set()
    for name in names:
        path = folder / name
        for _ in range(_LONGEST_CHAIN):
            path = Path(os.path.realpath(path.parent)) / path.name
            if not path.is_relative_to(folder):
                break
            found.add(str(path.relative_to(folder)))
            if not path.is_symlink():
                break
            path = path.parent / path.readlink()
    return found


def _remove(run: RunDir, items: list[Item]) -> None:
    """Remove files of one task: the record first, so that none is ever missing unexplained."""
    ref = items[0].ref
    folder = run.task_dir(ref)
    files = pruned_files(run, ref)
    time = now()
    for item in items:
        entry: dict[str, Any] = {"kind": item.kind, "bytes": item.bytes, "time": time}
        path = folder / item.path
        if path.is_symlink():
            entry["link"] = os.fsencode(path.readlink()).decode(errors="replace")
        else:
            entry["sha256"] = item.sha256 or _hash(path)
        files[item.path] = entry
    write_json(folder / RECORD, {"files": files})
    remove_below(run.path, (f"steps/{ref}/{item.path}" for item in items))


def _hash(path: Path) -> str | None:
    """The hash of a file; None of what is no regular file or cannot be read."""
    try:
        return file_hash(path) if path.is_file() else None
    except OSError:
        return None
