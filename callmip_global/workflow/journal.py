"""The journal: an append-only file that says what was asked of the scheduler, before it is asked.

One JSON object a line, each durable (fsync) before anything follows from it. Events:

========== ======================================================================================
intent     about to submit: token, step, rows of its table of tasks, jobs waited for, and more
submitted  the scheduler accepted the token under this job id
adopted    the reply was lost, but the job was found in the queue by its token
seen       the reply was lost and the job has left the queue, but its attempt was found by token
lost       no trace of the token: it never reached the scheduler, or found no room or dependency
rejected   the scheduler refused; nothing was submitted
cancelled  the user (or a repair by `resume`) cancelled the job
repaired   some rows wait for other jobs now, because what they waited for had failed
========== ======================================================================================

The latest intent for a task is also a lease: a job with an older token leaves the task alone.
An intent names the table of tasks that its rows are of by its digest; every table that a job was
submitted from is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from callmip_global.files import fsync_folder
from callmip_global.jobs.scheduler import expand_ranges, index_ranges

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class Intent:
    """One submission as the journal tells it; ``outcome`` is the last event, ``intent`` if open.

    ``rows`` (from 1) of ``table``; ``pack`` rows share one element of the job; ``offset`` is what
    the job adds to its array index. ``retry`` is the class of failure it tries again after;
    ``walltime_s`` and ``memory_bytes`` are None where the job script says them; ``segment_years``
    is None where a segment is run in one piece.
    """

    token: str
    step: str
    table: str
    rows: tuple[int, ...]
    pack: int
    offset: int
    depends: tuple[str, ...]
    replaces: tuple[str, ...]
    retry: str
    walltime_s: int | None
    memory_bytes: int | None
    segment_years: int | None
    time: str
    job_id: str | None = None
    outcome: str = "intent"
    told: str = ""
    """When the outcome was written."""
    message: str = ""
    repaired: dict[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Neither known to be accepted nor known to be refused or lost."""
        return self.outcome == "intent"

    def age_s(self) -> float:
        """Seconds since the last that is known of it."""
        return age_s(self.told or self.time)

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Numbers (from 1) of the packs of rows that the elements of the job stand for."""
        return units_of(self.rows, self.pack)

    @cached_property
    def is_array(self) -> bool:
        """Whether the job has more than one element."""
        return len(self.units) > 1

    @cached_property
    def row_set(self) -> frozenset[int]:
        return frozenset(self.rows)

    def array_index(self, row: int) -> int | None:
        """Array index of a row in this job; None for a job that is no array."""
        return unit_of(row, self.pack) - self.offset if self.is_array else None

    def depends_of(self, row: int) -> tuple[str, ...]:
        """The jobs that a row waits for."""
        return self.repaired.get(row, self.depends)


def unit_of(row: int, pack: int) -> int:
    """Number (from 1) of the pack that a row (from 1) is in."""
    return (row - 1) // pack + 1


def units_of(rows: Iterable[int], pack: int) -> tuple[int, ...]:
    """Numbers of the packs that rows are in, each once, in the order of the rows."""
    return tuple(dict.fromkeys(unit_of(row, pack) for row in rows))


class Journal:
    """Reads and appends ``RUN/journal.jsonl``. Only commands that hold the run lock append."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **fields: Any) -> None:
        """Write one event and wait until it is on disk; ``rows`` are written as ranges."""
        if "rows" in fields:
            fields["rows"] = index_ranges(fields["rows"])
        line = json.dumps({"event": event, "time": now(), **fields}, sort_keys=True) + "\n"
        existed = self.path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(self.path, flags, 0o666)
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
                    event["table"],
                    tuple(expand_ranges(event["rows"])),
                    event["pack"],
                    event["offset"],
                    tuple(event["depends"]),
                    tuple(event["replaces"]),
                    event["retry"],
                    event["walltime_s"],
                    event["memory_bytes"],
                    event["segment_years"],
                    event["time"],
                )
            elif token not in found:
                continue
            elif event["event"] == "repaired":
                waits = tuple(event["depends"])
                found[token].repaired.update(dict.fromkeys(expand_ranges(event["rows"]), waits))
            else:
                found[token].outcome = event["event"]
                found[token].told = event["time"]
                found[token].job_id = event.get("job_id", found[token].job_id)
                found[token].message = event.get("message", "")
        return found


def age_s(time: str) -> float:
    """Seconds since a time that `now` gave."""
    then = datetime.strptime(time, _TIME_FORMAT).replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime(_TIME_FORMAT)
