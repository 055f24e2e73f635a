"""The journal: an append-only file that says what was asked of the scheduler, before it is asked.

One JSON object a line, each durable (fsync) before anything follows from it. Events:

========== ======================================================================================
intent     about to submit: token, step, tasks and rows, jobs waited for, tokens replaced
submitted  the scheduler accepted the token under this job id
adopted    the reply was lost, but the job was found in the queue by its token
seen       the reply was lost and the job has left the queue, but its attempt was found by token
lost       no trace of the token: it never reached the scheduler, or found no room or dependency
rejected   the scheduler refused; nothing was submitted
cancelled  the user (or a repair by `resume`) cancelled the job
========== ======================================================================================

The latest intent for a task is also a lease: a job with an older token leaves the task alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from callmip_global.files import fsync_folder

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class Intent:
    """One submission as the journal tells it; ``outcome`` is the last event, ``intent`` if open."""

    token: str
    step: str
    tasks: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[int, ...]
    offset: int
    depends: tuple[str, ...]
    replaces: tuple[str, ...]
    time: str
    job_id: str | None = None
    outcome: str = "intent"
    message: str = ""

    @property
    def is_open(self) -> bool:
        """Neither known to be accepted nor known to be refused or lost."""
        return self.outcome == "intent"

    def age_s(self) -> float:
        """Seconds since the intent was written."""
        then = datetime.strptime(self.time, _TIME_FORMAT).replace(tzinfo=UTC)
        return (datetime.now(UTC) - then).total_seconds()

    def key_of(self, task: str) -> str:
        """Key that a task of this submission had when it was submitted."""
        return self.keys[self.tasks.index(task)]

    def array_index(self, row: int) -> int | None:
        """Array index of a row of tasks.tsv in this job; None for a job that is no array."""
        return row - self.offset if len(self.rows) > 1 else None


class Journal:
    """Reads and appends ``RUN/journal.jsonl``. Only commands that hold the run lock append."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **fields: Any) -> None:
        """Write one event and wait until it is on disk."""
        line = json.dumps({"event": event, "time": now(), **fields}, sort_keys=True) + "\n"
        existed = self.path.exists()
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(handle).st_size
            # A line cut short by a crash must not swallow the next one.
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = "\n" + line
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        if not existed:
            fsync_folder(self.path.parent)

    def events(self) -> Iterator[dict[str, Any]]:
        """All whole events; a line cut short by a crash promised nothing and is skipped."""
        if not self.path.exists():
            return
        for line in self.path.read_bytes().split(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event

    def intents(self) -> dict[str, Intent]:
        """Every intent by token, in order, with what became of it."""
        found: dict[str, Intent] = {}
        for event in self.events():
            token = event["token"]
            if event["event"] == "intent":
                found[token] = Intent(
                    token,
                    event["step"],
                    tuple(event["tasks"]),
                    tuple(event["keys"]),
                    tuple(event["rows"]),
                    event["offset"],
                    tuple(event["depends"]),
                    tuple(event["replaces"]),
                    event["time"],
                )
            elif token in found:
                found[token].outcome = event["event"]
                found[token].job_id = event.get("job_id", found[token].job_id)
                found[token].message = event.get("message", "")
        return found

    def latest(self) -> dict[str, Intent]:
        """`latest_intents` of this journal."""
        return latest_intents(self.intents())


def latest_intents(intents: Mapping[str, Intent]) -> dict[str, Intent]:
    """The latest intent that was not lost, for each ``step/task``."""
    by_task: dict[str, Intent] = {}
    for intent in intents.values():
        if intent.outcome == "lost":
            continue
        for task in intent.tasks:
            by_task[f"{intent.step}/{task}"] = intent
    return by_task


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime(_TIME_FORMAT)
