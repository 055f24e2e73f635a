"""The local scheduler: the same scripts, tokens, arrays and dependencies on this machine alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from callmip_global.jobs.scheduler import (
    Answer,
    Dependency,
    JobRecord,
    JobSpec,
    SchedulerFacts,
    Submission,
    index_ranges,
)
from callmip_global.jobs.slurm import dependency_text, slurm_state


class Local:
    """Talks to ``callmip_global.jobs.localqueue``, a command-line queue in a folder.

    ``queue_dir``: the folder; ``slots``: how many jobs run at a time.
    """

    facts = SchedulerFacts(
        name="local",
        directive="#LOCAL",
        index_variable="CALLMIP_ARRAY_INDEX",
        job_id_variable="CALLMIP_JOB_ID",
        largest_array=100000,
        elementwise=True,
        element_ids=True,
    )

    def __init__(self, queue_dir: Path, slots: int) -> None:
        self.queue_dir = queue_dir
        self.slots = slots

    def _command(self, verb: str) -> list[str]:
        # -P: no module in the user's folder takes the place of one of ours.
        module = "callmip_global.jobs.localqueue"
        return [sys.executable, "-Pm", module, verb, str(self.queue_dir)]

    def directives(self, job: JobSpec) -> list[str]:
        return []

    def submit_command(self, submission: Submission) -> list[str]:
        command = [*self._command("submit"), f"--comment={submission.token}"]
        command += [f"--slots={self.slots}", f"--log={submission.script.parent / 'log'}"]
        if submission.is_array:
            command.append(f"--array={index_ranges(submission.array_indices)}")
        if submission.depends:
            command.append(f"--dependency={dependency_text(submission.depends)}")
        single = "" if submission.is_array else str(submission.indices[0])
        arguments = [submission.token, single, str(submission.offset)]
        return [*command, "--", str(submission.script), *arguments]

    def parse_submit(self, stdout: str) -> str | None:
        text = stdout.strip()
        return text if text.isdigit() else None

    def list_command(self) -> list[str]:
        return self._command("list")

    def parse_list(self, answer: Answer) -> list[JobRecord] | None:
        if answer.code != 0:
            return None
        records = []
        for line in answer.stdout.splitlines():
            job_id, index, token, state, reason = line.split("|", 4)
            detail = f"{state} ({reason})" if reason else state
            indices = (int(index),) if index else None
            records.append(JobRecord(job_id, indices, token, slurm_state(state), detail))
        return records

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        return [*self._command("cancel"), *job_ids]

    def element_id(self, job_id: str, index: int) -> str:
        return f"{job_id}_{index}"

    def resource_arguments(self, job: JobSpec) -> tuple[str, ...]:
        """The local queue limits neither time nor memory."""
        return ()

    def repair_command(
        self, job_ids: Sequence[str], depends: Sequence[Dependency]
    ) -> list[str] | None:
        """The local queue cancels a job whose dependency failed, so nothing is left to repair."""
        return None
