"""Why the scheduler ended a job, from the job's own log: lines of Slurm 22.05 and OpenPBS 23.06."""

from __future__ import annotations

from pathlib import Path

import pytest

from callmip_global.jobs.pbs import Pbs
from callmip_global.jobs.scheduler import Scheduler
from callmip_global.jobs.slurm import Slurm
from callmip_global.workflow.joblog import first_words, read_job_log
from callmip_global.workflow.journal import Intent
from callmip_global.workflow.lease import Lease
from callmip_global.workflow.rundir import RunDir

REF = "run-spinup-c01/S3.Prior"
BEGUN = f"{REF}: attempt 1 on node7\n"
TIME_LIMIT = (
    "slurmstepd-node1: error: *** JOB 34 ON node1 CANCELLED AT 2026-11-22T17:19:19 DUE TO TIME"
    " LIMIT ***"
)
NODE = (
    "slurmstepd-node1: error: *** JOB 29 ON node1 CANCELLED AT 2026-11-22T17:17:20 DUE TO NODE"
    " FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***"
)
MEMORY = (
    "slurmstepd-node1: error: StepId=1.batch exceeded memory limit (197270528 > 104857600), being"
    " killed\nslurmstepd-node1: error: *** JOB 1 ON node1 CANCELLED AT 2026-11-22T17:20:30 ***"
)
OOM = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=77.batch. Some of the step tasks have"
    " been OOM Killed."
)
SCANCEL = "slurmstepd-node1: error: *** JOB 5 ON node1 CANCELLED AT 2026-11-22T17:20:30 ***"
PBS_WALLTIME = "=>> PBS: job killed: walltime 10 exceeded limit 5"
PBS_MEMORY = "=>> PBS: job killed: mem 412345kb exceeded limit 102400kb"


def lease(job_id: str, rows: tuple[int, ...] = (1,)) -> Lease:
    intent = Intent(
        "t", "run-spinup-c01", "", rows, 1, 0, (), (), "", None, None, None, "", job_id=job_id
    )
    return Lease(intent, rows[0], "k")


def write(run: RunDir, name: str, text: str) -> None:
    folder = run.job_dir("run-spinup-c01") / "log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("scheduler", "job_id", "name", "line", "kind"),
    [
        (Slurm(), "34", "34.out", TIME_LIMIT, "walltime"),
        (Slurm(), "29", "29.out", NODE, "node"),
        (Slurm(), "1", "1.out", MEMORY, "memory"),
        (Slurm(), "77", "77.out", OOM, "memory"),
        (Slurm(), "5", "5.out", SCANCEL, "node"),
        (Pbs(), "6.pbs1", "6.pbs1.OU", PBS_WALLTIME, "walltime"),
        (Pbs(), "6.pbs1", "6.pbs1.OU", PBS_MEMORY, "memory"),
        (Pbs(), "6.pbs1", "6.pbs1.OU", "Terminated", ""),
    ],
    ids=["time", "node", "memory", "oom", "scancel", "pbs-time", "pbs-memory", "pbs-qdel"],
)
def test_the_schedulers_last_words_are_a_class_of_failure(
    tmp_path: Path, scheduler: Scheduler, job_id: str, name: str, line: str, kind: str
) -> None:
    run = RunDir(tmp_path)
    write(run, name, f"{BEGUN}{line}\nTerminated\n")
    log = read_job_log(run, scheduler, lease(job_id), first_words(REF, 1))
    assert log is not None
    assert (log.kind, bool(log.line)) == (kind, bool(kind))


def test_the_log_of_an_element_is_its_own(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, "34_2.out", BEGUN)
    write(run, "6[2].pbs1.OU", BEGUN)
    for scheduler, job_id in ((Slurm(), "34"), (Pbs(), "6[].pbs1")):
        assert read_job_log(run, scheduler, lease(job_id, (2, 3))) is not None
        assert read_job_log(run, scheduler, lease(job_id, (3, 4))) is None


def test_what_ended_an_earlier_attempt_of_a_requeued_job_does_not_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    second = first_words(REF, 2)
    write(run, "34.out", f"{BEGUN}{NODE}\n{second}node8\n")
    log = read_job_log(run, Slurm(), lease("34"), second)
    assert log is not None
    assert (log.kind, log.tail) == ("", (f"{second}node8",))
