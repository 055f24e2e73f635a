"""The run directory: where everything is, attempts, success markers, and the lock of the commands.

::

    RUN/experiment.yaml plan.json          resolved configuration and graph
    RUN/jobs/<step>/job.sh tasks.tsv       exact scripts and the table an array index points to
    RUN/jobs/<step>/tasks-<digest>.tsv     tables of older plans that jobs were submitted from
    RUN/steps/<step>/<task>/attempt-NN/    working folder, rendered files, streams, status.json
    RUN/steps/<step>/<task>/done.json      success marker, published after outputs were verified
    RUN/steps/<step>/<task>/pruned.json    what `prune` removed of it
    RUN/journal.jsonl                      append-only
    RUN/provenance.json                    what it was made of; earlier ones by their digest
    RUN/stores/*.zarr  RUN/benchmark/  RUN/export/
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from callmip_global.config.plan import Plan, plan_from_json
from callmip_global.errors import Problem, UsageError
from callmip_global.files import fsync_folder, read_json, text_hash, write_json
from callmip_global.workflow.journal import Journal
from callmip_global.workflow.lease import Leases

OWN_NAMES = (
    "benchmark",
    "experiment.yaml",
    "export",
    "jobs",
    "journal.jsonl",
    "local-queue",
    "plan.json",
    "provenance.json",
    "steps",
    "stores",
)
"""What is written in a run directory: none of it may lead out of it."""

HEARTBEAT_S = 20.0
"""How often a running attempt touches its status.json."""

STALE_S = 180.0
"""An attempt that has not touched its status.json for so long does not live any more.

Generous against the attribute caches of network file systems (NFS keeps up to 60 s)."""


PRUNED = "pruned"
"""State of an attempt that was published until its files were pruned and needed again."""


@dataclass(frozen=True)
class Attempt:
    """One try at a task. ``status`` is its status.json, which the folder appears with."""

    path: Path
    number: int
    status: Mapping[str, Any]

    @property
    def state(self) -> str:
        """``running``, ``done``, ``failed``, ``left`` (it found that the task is not its own), or
        `PRUNED`."""
        return str(self.status.get("state", "running"))

    def is_fresh(self) -> bool:
        """Whether its owner gave a sign of life lately."""
        return time.time() - (self.path / "status.json").stat().st_mtime < STALE_S

    def owner_vanished(self) -> bool:
        """Whether its process was one of this machine and is gone."""
        if self.status.get("host") != socket.gethostname():
            return False
        return not Path(f"/proc/{self.status.get('pid')}").exists()


class RunDir:
    """Paths and small files of one run directory. Constructing it touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def journal(self) -> Journal:
        return Journal(self.path / "journal.jsonl")

    @property
    def stores(self) -> Path:
        return self.path / "stores"

    def job_dir(self, step: str) -> Path:
        return self.path / "jobs" / step

    def task_dir(self, ref: str) -> Path:
        """Folder of ``step/task``."""
        step, task = ref.split("/")
        return self.path / "steps" / step / task

    def plan(self) -> Plan:
        """The plan of plan.json; UsageError where this is no run directory."""
        path = self.path / "plan.json"
        try:
            return plan_from_json(read_json(path), str(path), self.table)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                Problem(
                    str(self.path),
                    found="no plan.json",
                    wanted="a run directory",
                    remedy="Give the folder that `callmip-global submit --run-dir` named.",
                )
            ) from None

    def table(self, step: str, digest: str) -> str:
        """Text of a table of tasks; an older one is kept beside tasks.tsv under its digest.

        UsageError where no table of that digest is there.
        """
        folder = self.job_dir(step)
        for path in (folder / "tasks.tsv", self.old_table(step, digest)):
            with contextlib.suppress(FileNotFoundError):
                text = path.read_text(encoding="utf-8")
                if text_hash(text) == digest:
                    return text
        raise UsageError(
            Problem(
                str(folder / "tasks.tsv"),
                found="edited by hand",
                wanted="the table as it was written",
                remedy="`callmip-global submit` (or `resume`) writes it again.",
            )
        )

    def old_table(self, step: str, digest: str) -> Path:
        """Where a table of tasks is kept once there is another one."""
        return self.job_dir(step) / f"tasks-{digest[:16]}.tsv"

    def leases(self) -> Leases:
        """Who owns which task, as the journal has it now."""
        return Leases(self.journal.intents(), self.table)

    def marker(self, ref: str) -> Mapping[str, Any] | None:
        """The success marker of a task, whatever its key; None if there is none."""
        try:
            # Not by pathlib: a large run has 100,000 of them.
            with open(f"{self.path}/steps/{ref}/done.json", "rb") as file:  # noqa: PTH123
                value: dict[str, Any] = json.loads(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return value

    def is_done(self, ref: str, key: str) -> bool:
        """Whether the task has a success marker with the plan's key."""
        marker = self.marker(ref)
        return marker is not None and marker["key"] == key

    def attempts(self, ref: str) -> list[Attempt]:
        """Attempts of a task in order."""
        folder = self.task_dir(ref)
        found = []
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        for name in names:
            if name.startswith("attempt-") and name[8:].isdigit():
                path = folder / name
                found.append(Attempt(path, int(name[8:]), read_json(path / "status.json")))
        return sorted(found, key=lambda a: a.number)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by submit, resume and cancel: one of them at a time.

        A file made with O_EXCL, because flock is not to be had on every cluster file system. The
        lock of a process of this machine that no longer lives is taken over; that of another
        machine is reported with its owner.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ".lock"
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid4().hex}
        draft = path.with_name(f".lock.{mine['id']}")
        write_json(draft, mine)
        try:
            for _ in range(2):
                try:
                    os.link(draft, path)
                    break
                except FileExistsError:
                    if self._take_over(path, draft, mine):
                        break
            else:
                raise self._locked(path)
        finally:
            draft.unlink(missing_ok=True)
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                if read_json(path)["id"] == mine["id"]:
                    path.unlink()

    def _take_over(self, path: Path, draft: Path, mine: Mapping[str, Any]) -> bool:
        """Put our lock in the place of that of a process which no longer lives; False if it lives.

        Of several that find the same dead lock one may do so: who makes the heir file of its owner,
        or of the owner's heir if that one died over it. A lock is replaced, never away.
        """
        try:
            owner = last = read_json(path)
            heirs = []
            while True:
                if last["host"] != mine["host"] or Path(f"/proc/{last['pid']}").exists():
                    return False
                heirs.append(path.with_name(f".lock.{last['id']}.heir"))
                if not heirs[-1].exists():
                    break
                last = read_json(heirs[-1])
            os.link(draft, heirs[-1])
            # Another heir may have been here, and gone, since we read the lock.
            ours = bool(read_json(path)["id"] == owner["id"])
            if ours:
                draft.replace(path)
        except (FileNotFoundError, FileExistsError, ValueError):
            return False
        for heir in reversed(heirs if ours else heirs[-1:]):
            heir.unlink(missing_ok=True)
        return ours

    def _locked(self, path: Path) -> UsageError:
        try:
            owner = read_json(path)
            text = f"process {owner['pid']} on {owner['host']}"
        except (FileNotFoundError, ValueError):
            text = "another process"
        return UsageError(
            Problem(
                str(self.path),
                found=f"locked by {text}",
                wanted="one submit, resume or cancel at a time",
                remedy=f"If that process is gone for certain, remove {path}.",
            )
        )

    def publish(self, ref: str, marker: Mapping[str, Any]) -> bool:
        """Publish a success marker whole; False if another attempt published one first.

        link() fails where the name exists, so that of two attempts exactly one is published.
        """
        folder = self.task_dir(ref)
        draft = folder / f".done.{uuid4().hex}"
        write_json(draft, marker)
        try:
            os.link(draft, folder / "done.json")
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        fsync_folder(folder)
        return True

    def retire_marker(self, ref: str, key: str) -> None:
        """Move aside a success marker that belongs to an older plan, keeping it for the record."""
        marker = self.marker(ref)
        if marker is not None and marker["key"] != key:
            folder = self.task_dir(ref)
            with contextlib.suppress(FileNotFoundError):
                (folder / "done.json").rename(folder / f"done-{marker['key'][:12]}.json")
