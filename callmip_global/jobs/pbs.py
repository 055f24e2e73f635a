"""OpenPBS and PBS Pro: facts, command lines, answers; from OpenPBS's source, manual and behaviour.

Tried on OpenPBS 23.06.06 (main branch of April 2026), whose answers the tests hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from callmip_global.jobs.scheduler import (
    Answer,
    Dependency,
    JobRecord,
    JobSpec,
    JobState,
    SchedulerFacts,
    Submission,
    Wait,
    contains_any,
    index_ranges,
    one_line,
)
from callmip_global.resources import memory_mib, walltime_text

_JOB_ID = re.compile(r"\d+(?:\[\])?(?:\.[A-Za-z0-9._-]+)?")
_ANY_ID = re.compile(r"(\d+)(?:\[(\d*)\])?(\.\S+)?")
# Not E, exiting: a job that is told to wait for one of those may be held for ever, OpenPBS having
# seen to its dependents already (2 of 180 that came in that moment). What it is will show in a
# moment; until then it is unknown.
_LIVE = set("QRHWTSUBM")
# qselect first: it filters by user on the server, and with no job at all `qstat -f` without
# operands would list everybody's. No -x: history is off at many sites, and markers carry the truth.
# set -f: 12[3] is no pattern of file names.
_LIST = (
    'ids=$(qselect -u "$(id -un)") || exit $?; [ -z "$ids" ] && exit 0;'
    " set -f; exec qstat -f -w -t $ids"
)
# One at a time: given several, OpenPBS 23.06 leaves some out without a word when one of them has
# ended, and its server dies of a list with an array that it has forgotten. A job that has ended or
# is just ending (35, 55, 153, 168) is what was wanted.
_CANCEL = (
    'worst=0; for id do qdel "$id"; code=$?;'
    " case $code in 0|35|55|153|168) ;; *) worst=$code ;; esac; done; exit $worst"
)
_PATH = re.compile(r"[A-Za-z0-9._/+=@%~-]+")


class Pbs:
    """qsub, qselect, qstat, qdel."""

    facts = SchedulerFacts(
        name="pbs",
        directive="#PBS",
        index_variable="PBS_ARRAY_INDEX",
        job_id_variable="PBS_JOBID",
        largest_array=10000,
        # A dependency on a single subjob is refused (PBSE_IVALREQ): there is no aftercorr.
        elementwise=False,
        one_range=True,
        deletes_dependents=True,
        log_suffix=".OU",
        pending=("Q", "H", "W", "T"),
        log_says={
            "job killed: walltime": "walltime",
            "job killed: cput": "walltime",
            "job killed: mem": "memory",
            "job killed: vmem": "memory",
            "job killed: pmem": "memory",
            "job killed: pvmem": "memory",
        },
        queue_full=("would exceed", "exceeds limit", "Maximum number of jobs", "15046", "15142"),
        # The second line is what qsub says when the server dies between request and reply.
        no_answer=(
            "cannot connect to server",
            "Connection refused",
            "Couldn't connect",
            "timed out",
            "Premature end of message",
            "Communication failure",
            "Batch protocol error",
            "Failed to recv data",
            "End of File",
        ),
        hints={
            "Unknown queue": "Set resources.<step>.queue, or the queues of the site file.",
            "Unauthorized Request": "Check resources.<step>.account and the queue's access list.",
            "resource limits": "Compare resources.<step> with the queue: qstat -Qf QUEUE.",
            "Array job exceeds": "Set max_array_size of the site file: qstat -Bf says it.",
            "Unknown resource": "Check resource_line of the site file: sites differ.",
            "-lresource": "Check resource_line of the site file: sites differ.",
            "Illegal attribute": "Check resource_line of the site file: sites differ.",
        },
    )

    def directives(self, job: JobSpec) -> list[str]:
        """``resource_line`` of the site file is the -l text; sites differ (select or NCI style)."""
        log = str(job.log_dir)
        if not _PATH.fullmatch(log):
            raise ValueError(
                f"{log!r}: PBS takes no spaces, quotes, commas or colons in the path of -o;"
                " choose another run directory"
            )
        lines = [
            "-j oe",
            *(f"-l {text}" for text in self._size(job)),
            # Old servers and some sites refuse names over 15 characters; the token finds the job.
            f"-N {one_line(job.name, 'job name')[-15:].lstrip('-._0123456789') or 'callmip'}",
            f"-o {log}/",
            # A rerun finds its half-done attempt and starts a new one, so this is safe.
            "-r y",
        ]
        if job.queue:
            lines.append(f"-q {one_line(job.queue, 'queue')}")
        if job.account:
            lines.append(f"-A {one_line(job.account, 'account')}")
        if job.export_environment:
            lines.append("-V")
        return sorted(lines) + [one_line(d, "directive") for d in job.directives]

    def _size(self, job: JobSpec) -> list[str]:
        """What -l asks for."""
        values = {
            "nodes": job.nodes,
            "tasks": job.tasks,
            "cpus": job.cpus,
            "tasks_per_node": -(-job.tasks // job.nodes),
            "cpus_per_node": -(-job.tasks // job.nodes) * job.cpus,
            "cpus_total": job.tasks * job.cpus,
            "memory_mb": memory_mib(job.memory_bytes),
            "memory_total_mb": memory_mib(job.memory_bytes) * job.nodes,
        }
        template = job.resource_line or (
            "select={nodes}:ncpus={cpus_per_node}:mpiprocs={tasks_per_node}:mem={memory_mb}mb"
        )
        text = one_line(template.format(**values), "resource_line")
        return [text, f"walltime={walltime_text(job.walltime_s)}"]

    def resource_arguments(self, job: JobSpec) -> tuple[str, ...]:
        return tuple(word for text in self._size(job) for word in ("-l", text))

    def repair_command(
        self, job_ids: Sequence[str], depends: Sequence[Dependency]
    ) -> list[str] | None:
        """PBS deletes a job whose dependency failed: there is nothing left to repair."""
        return None

    def submit_command(self, submission: Submission) -> list[str]:
        single = "" if submission.is_array else str(submission.indices[0])
        variables = [
            f"CALLMIP_TOKEN={submission.token}",
            f"CALLMIP_INDEX={single}",
            f"CALLMIP_OFFSET={submission.offset}",
        ]
        # PBS starts jobs with umask 077, whoever submits: nobody else could read the results.
        command = ["qsub", "-v", ",".join(variables), "-W", f"umask={_umask():04o}"]
        command += submission.resources
        if submission.is_array:
            first, last = submission.array_indices[0], submission.array_indices[-1]
            if submission.array_indices != tuple(range(first, last + 1)):
                raise ValueError(
                    "PBS arrays are one range, got " + index_ranges(submission.array_indices)
                )
            command += ["-J", f"{first}-{last}"]
        if submission.depends:
            command += ["-W", "depend=afterok:" + ":".join(d.job_id for d in submission.depends)]
        return [*command, str(submission.script)]

    def parse_submit(self, stdout: str) -> str | None:
        lines = [line.strip() for line in stdout.splitlines() if line.strip()]
        return lines[-1] if lines and _JOB_ID.fullmatch(lines[-1]) else None

    def list_command(self) -> list[str]:
        return ["sh", "-c", _LIST]

    def parse_list(self, answer: Answer) -> list[JobRecord] | None:
        """Text of ``qstat -f -w``, never its JSON, which is often not valid JSON.

        A job that ended between qselect and qstat makes qstat fail (153 unknown, 35 finished) after
        printing the rest: that is still an answer. The code is that of the last job that failed, so
        a server lost in between shows in the messages only.
        """
        if answer.code not in (0, 153, 35) or contains_any(answer.stderr, self.facts.no_answer):
            return None
        records = []
        for full_id, fields in _jobs(answer.stdout):
            match = _ANY_ID.fullmatch(full_id)
            if match is None:
                continue
            number, element, server = match.groups()
            array = element is not None
            base = f"{number}{'[]' if array else ''}{server or ''}"
            # An array itself has no index; its elements follow in the same list.
            indices = (int(element),) if element else None
            state = fields.get("job_state", "?")
            # Hold_Types: s is the server's own hold, for a dependency; u that of the user.
            held = state == "H" and "s" in fields.get("Hold_Types", "s")
            wait = Wait.JOBS if held else Wait.NONE
            live = _state(state, fields)
            records.append(JobRecord(base, indices, _token(fields), live, state, wait))
        return records

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        return ["sh", "-c", _CANCEL, "qdel", *job_ids]

    def element_id(self, job_id: str, index: int) -> str:
        return job_id.replace("[]", f"[{index}]")


def _umask() -> int:
    """The umask of this process; the only way to read it is to set it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _token(fields: dict[str, str]) -> str:
    """``qsub -v`` comes first in the list, what ``-V`` took from the environment after it."""
    for pair in fields.get("Variable_List", "").split(","):
        name, _, value = pair.partition("=")
        if name == "CALLMIP_TOKEN":
            return value
    return ""


def _state(state: str, fields: dict[str, str]) -> JobState:
    if state in _LIVE:
        return JobState.LIVE
    if state not in ("X", "F"):
        return JobState.UNKNOWN
    # A server without job history shows an ended element with attributes of the whole array; those
    # of its own would include array_id.
    borrowed = state == "X" and "array_id" not in fields
    ended_well = borrowed or fields.get("Exit_status", "0") == "0"
    return JobState.GONE if ended_well else JobState.FAILED


def _jobs(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(job id, attributes) of ``qstat -f`` text; lines that start with a tab continue the value."""
    job_id, fields, last = "", dict[str, str](), ""
    for line in text.splitlines():
        if line.startswith("Job Id:"):
            if job_id:
                yield job_id, fields
            job_id, fields, last = line.partition(":")[2].strip(), {}, ""
        elif line.startswith("\t") and last:
            fields[last] += line.strip()
        elif " = " in line:
            last, _, value = line.strip().partition(" = ")
            fields[last] = value
    if job_id:
        yield job_id, fields
