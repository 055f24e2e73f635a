"""The one place that runs scheduler commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from callmip_global.errors import Problem, SchedulerError
from callmip_global.jobs.local import Local
from callmip_global.jobs.pbs import Pbs
from callmip_global.jobs.scheduler import (
    Answer,
    JobRecord,
    Scheduler,
    Submission,
    contains_any,
)
from callmip_global.jobs.slurm import Slurm

# sbatch itself tries again for 120 s before it says that Slurm has no room (MaxJobCount).
_TIMEOUT_S = 180.0
_NOT_FOUND = 127
"""What a shell says of a command that does not exist."""
_OF_ONE_JOB = ("CALLMIP_TOKEN", "CALLMIP_INDEX", "CALLMIP_OFFSET")


class Outcome(Enum):
    """What became of a submission, as far as its reply tells."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    QUEUE_FULL = "queue full"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reply:
    """Reply to a submission: the job id when accepted, else what the scheduler said."""

    outcome: Outcome
    job_id: str | None = None
    message: str = ""


def make_scheduler(site: Mapping[str, Any], run_dir: Path) -> Scheduler:
    """The scheduler of a site (plain values of its site file)."""
    name = site["scheduler"]
    if name == "slurm":
        return Slurm()
    if name == "pbs":
        return Pbs()
    return Local(run_dir / "local-queue", site["max_running"])


class Client:
    """Submits, lists and cancels through a scheduler's own commands."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def submit(self, submission: Submission) -> Reply:
        """Submit once. A reply that does not tell is UNKNOWN: the caller looks the token up."""
        facts = self.scheduler.facts
        try:
            answer = self.run(self.scheduler.submit_command(submission))
        except subprocess.TimeoutExpired:
            return Reply(Outcome.UNKNOWN, message=f"no reply within {_TIMEOUT_S:.0f} s")
        text = " ".join((answer.stderr or answer.stdout).split())
        if answer.code == 0:
            job_id = self.scheduler.parse_submit(answer.stdout)
            if job_id is not None:
                return Reply(Outcome.ACCEPTED, job_id)
            return Reply(Outcome.UNKNOWN, message=f"no job id in {answer.stdout!r}")
        if answer.code < 0 or contains_any(text, facts.no_answer):
            return Reply(Outcome.UNKNOWN, message=text)
        if contains_any(text, facts.queue_full):
            return Reply(Outcome.QUEUE_FULL, message=text)
        hints = [hint for words, hint in facts.hints.items() if contains_any(text, [words])]
        return Reply(Outcome.REJECTED, message=" ".join([text, *hints]))

    def jobs(self) -> list[JobRecord]:
        """This user's jobs that the scheduler knows; SchedulerError without a sure answer."""
        command = self.scheduler.list_command()
        try:
            answer = self.run(command)
        except subprocess.TimeoutExpired:
            answer = Answer(124, "", f"no reply within {_TIMEOUT_S:.0f} s")
        if answer.code == _NOT_FOUND:
            raise _no_such_command(command[0], answer.stderr.strip())
        records = self.scheduler.parse_list(answer)
        if records is None:
            raise SchedulerError(
                Problem(
                    f"scheduler {self.scheduler.facts.name}",
                    command[0],
                    answer.stderr.strip() or f"exit code {answer.code}",
                    "the list of jobs",
                    "Nothing was changed; try again when the scheduler answers.",
                )
            )
        return records

    def cancel(self, job_ids: Sequence[str]) -> str:
        """Cancel jobs; returns what the scheduler complained of ("" if nothing)."""
        return self.change(self.scheduler.cancel_command(job_ids)) if job_ids else ""

    def change(self, command: Sequence[str]) -> str:
        """Run a command that changes jobs; returns what the scheduler complained of."""
        try:
            answer = self.run(command)
        except subprocess.TimeoutExpired:
            return f"no reply within {_TIMEOUT_S:.0f} s"
        return "" if answer.code == 0 else " ".join(answer.stderr.split())

    def run(self, command: Sequence[str]) -> Answer:
        """Run a command of the scheduler. subprocess.TimeoutExpired where it does not answer."""
        # A job may submit jobs. Where the environment travels with them (qsub -V), the token of the
        # job that submits would take the place of their own.
        inherited = {n: v for n, v in os.environ.items() if n not in _OF_ONE_JOB}
        try:
            done = subprocess.run(
                command,
                env={**inherited, **self.scheduler.facts.environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError:
            raise _no_such_command(command[0], "no such command on this machine") from None
        return Answer(done.returncode, done.stdout, done.stderr)


def _no_such_command(command: str, found: str) -> SchedulerError:
    return SchedulerError(
        Problem(
            command,
            found=found,
            wanted="the scheduler of the site file",
            remedy="Run it on a login node, load its module, or choose another site.",
        )
    )
