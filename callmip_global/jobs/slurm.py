"""Slurm: facts and pure functions. Behaviour was verified on Slurm 22.05."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from callmip_global.jobs.scheduler import (
    Answer,
    Dependency,
    JobRecord,
    JobSpec,
    JobState,
    SchedulerFacts,
    Submission,
    Wait,
    expand_ranges,
    index_ranges,
    one_line,
)
from callmip_global.resources import memory_mib, walltime_text

_JOB_ID = re.compile(r"(\d+)(?:;\S+)?")
_WAITS = {"Dependency": Wait.JOBS, "DependencyNeverSatisfied": Wait.NEVER}
_LIVE = {
    "PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD",
    "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip
_FAILED = {
    "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "CANCELLED", "BOOT_FAIL", "DEADLINE",
    "PREEMPTED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL",
}  # fmt: skip


def flag(name: str, value: str | int) -> str:
    """``--name=value`` in the form sbatch reads from a script: quoted where it must be."""
    return f"--{name}={shlex.quote(one_line(str(value), f'--{name}'))}"


class Slurm:
    """sbatch, squeue, scancel, scontrol. sacct is not used: many sites run without slurmdbd, and
    where it runs its records lag behind; the success markers carry the truth.

    What dependencies do, as tried:

    - ``afterok:ARRAY`` is never satisfied once one element has failed, also for a job that is
      submitted later and after that element was done anew by another job. ``afterok:ARRAY_3`` is
      satisfied by that element alone, whatever became of the others.
    - ``afterok`` of a job or element that is not known is satisfied at once.
    - An element under ``aftercorr`` that has no counterpart waits for the whole array.
    - An element that is cancelled while pending leaves no record.
    """

    facts = SchedulerFacts(
        name="slurm",
        directive="#SBATCH",
        index_variable="SLURM_ARRAY_TASK_ID",
        job_id_variable="SLURM_JOB_ID",
        largest_array=1000,
        elementwise=True,
        element_ids=True,
        pending=("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING"),
        # The state alone does not tell: jobacct_gather/linux ends a job over its memory as FAILED
        # (JobLaunchFailure), and MinJobAge after its end no state is to be had at all.
        log_says={
            "DUE TO TIME LIMIT": "walltime",
            "exceeded memory limit": "memory",
            "Exceeded job memory limit": "memory",
            "oom_kill event": "memory",
            "oom-kill event": "memory",
            "DUE TO NODE FAILURE": "node",
            "DUE TO PREEMPTION": "node",
            "CANCELLED AT": "node",
        },
        # squeue would cut the list of an array's indices after 64 characters.
        environment={"SLURM_BITSTR_LEN": "0"},
        queue_full=(
            "QOSMaxSubmit",
            "AssocMaxSubmit",
            "AssocGrpSubmit",
            "job submit limit",
            "temporarily unable to accept job",
        ),
        no_answer=(
            "Unable to contact",
            "timed out",
            "Connection refused",
            "connect failure",
            "Zero Bytes were transmitted",
            "Transport endpoint",
            "controller in standby",
        ),
        hints={
            "invalid partition": "Set resources.<step>.queue, or the queues of the site file.",
            "Invalid account": "Set resources.<step>.account to the project you may charge.",
            "array specification": "Set max_array_size of the site file below MaxArraySize.",
            "Memory specification": "Lower resources.<step>.memory, or leave --mem to the site.",
        },
    )

    def directives(self, job: JobSpec) -> list[str]:
        """Long form, sorted."""
        lines = [
            flag("cpus-per-task", job.cpus),
            flag("export", "ALL" if job.export_environment else "NONE"),
            flag("job-name", job.name),
            # A dependent of a failed job stays, keeps its place in the queue, and gets another job
            # to wait for when that is tried again: see `repair_command`.
            flag("kill-on-invalid-dep", "no"),
            *self._size(job),
            flag("nodes", job.nodes),
            flag("ntasks", job.tasks),
            flag("open-mode", "append"),
            flag("output", _log(job.log_dir, "%j")),
            # A requeued job finds its half-done attempt and starts a new one, so this is safe. So
            # the jobs of a node that is lost start again by themselves (two minutes later), and
            # what waits for them goes on waiting; without it they would be NODE_FAIL.
            "--requeue",
        ]
        if job.queue:
            lines.append(flag("partition", job.queue))
        if job.account:
            lines.append(flag("account", job.account))
        return sorted(_kept(lines, job)) + [one_line(d, "directive") for d in job.directives]

    def _size(self, job: JobSpec) -> list[str]:
        lines = [
            flag("mem", f"{memory_mib(job.memory_bytes)}M"),
            flag("time", walltime_text(job.walltime_s)),
        ]
        return _kept(lines, job)

    def resource_arguments(self, job: JobSpec) -> tuple[str, ...]:
        return tuple(self._size(job))

    def repair_command(
        self, job_ids: Sequence[str], depends: Sequence[Dependency]
    ) -> list[str] | None:
        # No dependency at all lets them go at once, whatever they waited for. Of a list with jobs
        # that have ended, the others are changed although the exit code is 1. ``aftercorr`` works
        # here as it does in sbatch: one command for all elements, each waits for its like.
        text = dependency_text(depends)
        return ["scontrol", "update", f"JobId={','.join(job_ids)}", f"Dependency={text}"]

    def submit_command(self, submission: Submission) -> list[str]:
        command = [
            "sbatch",
            "--parsable",
            # sbatch would honour #PBS lines of a script that has both.
            "--ignore-pbs",
            f"--comment={submission.token}",
            *submission.resources,
        ]
        if submission.is_array:
            command.append(f"--array={index_ranges(submission.array_indices)}")
            # %j of an element is a number of its own, from which nobody finds the element.
            command.append(f"--output={_log(submission.script.parent / 'log', '%A_%a')}")
        if submission.depends:
            command.append(f"--dependency={dependency_text(submission.depends)}")
        single = "" if submission.is_array else str(submission.indices[0])
        return [*command, str(submission.script), submission.token, single, str(submission.offset)]

    def parse_submit(self, stdout: str) -> str | None:
        """``id`` or ``id;cluster`` on the last line (sites print banners before it)."""
        lines = [line.strip() for line in stdout.splitlines() if line.strip()]
        match = _JOB_ID.fullmatch(lines[-1]) if lines else None
        return match.group(1) if match else None

    def list_command(self) -> list[str]:
        # Not squeue --json: its fields change by version. Pending elements of an array are one
        # line.
        user = str(os.getuid())
        return ["squeue", "-h", "-t", "all", "-u", user, "-o", "%i|%k|%T|%r"]

    def parse_list(self, answer: Answer) -> list[JobRecord] | None:
        """Any failure is no answer: code 1 means unreachable controller and more alike."""
        if answer.code != 0:
            return None
        records: list[JobRecord] = []
        for line in answer.stdout.splitlines():
            parts = line.strip().split("|", 3)
            if len(parts) != 4:
                continue
            text_id, token, state, reason = parts
            base, _, element = text_id.partition("_")
            detail = state if reason in ("None", "") else f"{state} ({reason})"
            try:
                indices = expand_ranges(element.strip("[]")) if element else None
            except ValueError:  # cut short: what is not said must not be guessed
                return None
            wait = _WAITS.get(reason, Wait.NONE)
            records.append(JobRecord(base, indices, token, slurm_state(state), detail, wait))
        return records

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        return ["scancel", *job_ids]

    def element_id(self, job_id: str, index: int) -> str:
        return f"{job_id}_{index}"


def _kept(lines: Sequence[str], job: JobSpec) -> list[str]:
    """Without the options the site does not take, as ``--mem`` where memory comes with the node."""
    return [line for line in lines if line[2:].partition("=")[0] not in job.drop]


def _log(folder: Path, name: str) -> str:
    """Pattern of the log file; ``%`` in the folder's own name is doubled."""
    return f"{folder}".replace("%", "%%") + f"/{name}.out"


def slurm_state(text: str) -> JobState:
    """State of squeue's long name, which may carry a suffix (``CANCELLED by 1000``)."""
    state = (text.split() or [""])[0].rstrip("+")
    if state in _LIVE:
        return JobState.LIVE
    if state in _FAILED:
        return JobState.FAILED
    return JobState.GONE if state == "COMPLETED" else JobState.UNKNOWN


def dependency_text(depends: Sequence[Dependency]) -> str:
    """``afterok:1:2,aftercorr:3``: comma is *and*."""
    parts = []
    for word, elementwise in (("afterok", False), ("aftercorr", True)):
        ids = [d.job_id for d in depends if d.elementwise is elementwise]
        if ids:
            parts.append(":".join([word, *ids]))
    return ",".join(parts)
