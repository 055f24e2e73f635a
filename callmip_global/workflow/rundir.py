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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from callmip_global.config.plan import Plan, plan_from_json
from callmip_global.errors import Problem, UsageError
from callmip_global.files import fsync_folder, read_json, text_hash, write_json
from callmip_global.workflow.journal import Journal
from callmip_global.workflow.lease import Leases
from callmip_global.workflow.lock import held_alone

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

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held by submit, resume and cancel: one of them at a time."""
        return held_alone(self.path / ".lock", "one submit, resume or cancel at a time")

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
