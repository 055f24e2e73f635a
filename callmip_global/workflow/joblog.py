"""The log of a job itself: what its script printed, and why the scheduler ended it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from callmip_global.jobs.scheduler import Scheduler, contains_any
from callmip_global.workflow.failures import TAIL_LINES, last_lines
from callmip_global.workflow.lease import Lease
from callmip_global.workflow.rundir import RunDir

LEFT = "nothing to do here"
"""The last words of a job that finds that its task is not its own (any more)."""


@dataclass(frozen=True)
class JobLog:
    """What the log holds about one attempt: its path, last lines, and why the scheduler ended the
    job: a class of failure and the line that says so ("" where it says nothing)."""

    path: Path
    tail: tuple[str, ...]
    kind: str = ""
    line: str = ""

    @property
    def is_left(self) -> bool:
        """Whether the job looked at its task and left it alone."""
        return bool(self.tail) and self.tail[-1].endswith(LEFT)


def first_words(ref: str, number: int) -> str:
    """What an attempt prints first. A job that is started again writes on in the same log."""
    return f"{ref}: attempt {number} on "


def job_log_path(run: RunDir, scheduler: Scheduler, lease: Lease) -> Path | None:
    """Log of the job, or element, that a task was submitted in; None where nothing is in it."""
    job_id, index = lease.intent.job_id, lease.array_index
    if job_id is None:
        return None
    name = job_id if index is None else scheduler.element_id(job_id, index)
    path = run.job_dir(lease.intent.step) / "log" / f"{name}{scheduler.facts.log_suffix}"
    return path if path.exists() and path.stat().st_size else None


def read_job_log(run: RunDir, scheduler: Scheduler, lease: Lease, begin: str = "") -> JobLog | None:
    """What the log says from its last line on that starts with ``begin``; None without a log."""
    path = job_log_path(run, scheduler, lease)
    if path is None:
        return None
    lines = [line for line in last_lines(path) if line.strip()]
    starts = [n for n, line in enumerate(lines) if begin and line.startswith(begin)]
    lines = lines[starts[-1] :] if starts else lines
    tail = tuple(lines[-TAIL_LINES:])
    for words, kind in scheduler.facts.log_says.items():
        for line in lines:
            if contains_any(line, [words]):
                return JobLog(path, tail, kind, line.rpartition("error: ")[2].strip())
    return JobLog(path, tail)
