"""OpenPBS and PBS Pro: facts and pure functions, from the OpenPBS source and manual pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from callmip_global.jobs.scheduler import (
    Answer,
    JobRecord,
    JobSpec,
    JobState,
    SchedulerFacts,
    Submission,
    index_ranges,
    one_line,
)
from callmip_global.resources import memory_mib, walltime_text

_JOB_ID = re.compile(r"\d+(?:\[\])?(?:\.[A-Za-z0-9._-]+)?")
_ANY_ID = re.compile(r"(\d+)(?:\[(\d*)\])?(\.\S+)?")
_LIVE = set("QRHWTESUBM")
# qselect first: it filters by user on the server, and with no job at all `qstat -f` without
# operands would list everybody's. No -x: history is off at many sites, and markers carry the truth.
_LIST = (
    'ids=$(qselect -u "$(id -un)") || exit $?; [ -z "$ids" ] && exit 0; exec qstat -f -w -t $ids'
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
        queue_full=("would exceed", "exceeds limit", "Maximum number of jobs", "15046", "15142"),
        no_answer=("cannot connect to server", "Connection refused", "timed out", "End of File"),
        hints={
            "Unknown queue": "Set resources.<step>.queue, or the queues of the site file.",
            "Unauthorized Request": "Check resources.<step>.account and the queue's access list.",
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
        lines = [
            "-j oe",
            f"-l {one_line(template.format(**values), 'resource_line')}",
            f"-l walltime={walltime_text(job.walltime_s)}",
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

    def submit_command(self, submission: Submission) -> list[str]:
        single = "" if submission.is_array else str(submission.indices[0])
        variables = [
            f"CALLMIP_TOKEN={submission.token}",
            f"CALLMIP_INDEX={single}",
            f"CALLMIP_OFFSET={submission.offset}",
        ]
        command = ["qsub", "-v", ",".join(variables)]
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
        printing the rest: that is still an answer.
        """
        if answer.code not in (0, 153, 35):
            return None
        records = []
        for full_id, fields in _jobs(answer.stdout):
            match = _ANY_ID.fullmatch(full_id)
            if match is None:
                continue
            number, element, server = match.groups()
            array = element is not None
            base = f"{number}{'[]' if array else ''}{server or ''}"
            variables = dict(
                pair.split("=", 1)
                for pair in fields.get("Variable_List", "").split(",")
                if "=" in pair
            )
            state = fields.get("job_state", "?")
            if element == "" and state in ("B", "R"):
                # The array itself: its elements follow in the same list.
                index = None
            else:
                index = int(element) if element else None
            records.append(
                JobRecord(
                    base, index, variables.get("CALLMIP_TOKEN", ""), _state(state, fields), state
                )
            )
        return records

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        return ["qdel", *job_ids]

    def element_id(self, job_id: str, index: int) -> str:
        return job_id.replace("[]", f"[{index}]")


def _state(state: str, fields: dict[str, str]) -> JobState:
    if state in _LIVE:
        return JobState.LIVE
    if state in ("X", "F"):
        return JobState.GONE if fields.get("Exit_status", "0") == "0" else JobState.FAILED
    return JobState.UNKNOWN


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
