"""Command lines, and how the answers of real schedulers are read, with all their traps."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.jobs.pbs import Pbs
from callmip_global.jobs.scheduler import (
    Answer,
    Dependency,
    JobRecord,
    JobState,
    Submission,
    Wait,
    contains_any,
    expand_ranges,
    index_ranges,
)
from callmip_global.jobs.slurm import Slurm, slurm_state

SCRIPT = Path("/run/jobs/s/job.sh")


def submission(*indices: int, offset: int = 0, depends: tuple[Dependency, ...] = ()) -> Submission:
    return Submission(SCRIPT, "name", "tok", indices, offset, depends)


@given(st.sets(st.integers(1, 300), min_size=1))
def test_ranges_say_exactly_the_indices_they_were_made_of(indices: set[int]) -> None:
    assert list(expand_ranges(index_ranges(sorted(indices)))) == sorted(indices)


@pytest.mark.parametrize(
    ("job", "wanted"),
    [
        (submission(4), "sbatch --parsable --ignore-pbs --comment=tok /run/jobs/s/job.sh tok 4 0"),
        (
            submission(1, 2, 3, 7),
            "sbatch --parsable --ignore-pbs --comment=tok --array=1-3,7"
            " --output=/run/jobs/s/log/%A_%a.out /run/jobs/s/job.sh tok  0",
        ),
        (
            submission(1001, 1002, offset=1000, depends=(Dependency("12", True),)),
            "sbatch --parsable --ignore-pbs --comment=tok --array=1-2"
            " --output=/run/jobs/s/log/%A_%a.out --dependency=aftercorr:12"
            " /run/jobs/s/job.sh tok  1000",
        ),
        (
            submission(1, depends=(Dependency("12"), Dependency("13"))),
            "sbatch --parsable --ignore-pbs --comment=tok --dependency=afterok:12:13"
            " /run/jobs/s/job.sh tok 1 0",
        ),
    ],
    ids=["one-task-is-no-array", "explicit-indices", "second-part-of-a-split-array", "barrier"],
)
def test_slurm_submit_command(job: Submission, wanted: str) -> None:
    assert " ".join(Slurm().submit_command(job)) == wanted


@pytest.fixture
def umask_027() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    assert os.umask(before) == 0o027


@pytest.mark.parametrize(
    ("job", "wanted"),
    [
        (
            submission(4),
            "qsub -v CALLMIP_TOKEN=tok,CALLMIP_INDEX=4,CALLMIP_OFFSET=0 -W umask=0027"
            " /run/jobs/s/job.sh",
        ),
        (
            submission(1, 2, 3, depends=(Dependency("12[].srv"),)),
            "qsub -v CALLMIP_TOKEN=tok,CALLMIP_INDEX=,CALLMIP_OFFSET=0 -W umask=0027 -J 1-3"
            " -W depend=afterok:12[].srv /run/jobs/s/job.sh",
        ),
    ],
    ids=["one-task-is-no-array", "array-after-array"],
)
def test_pbs_submit_command_with_the_umask_of_whoever_submits(
    job: Submission, wanted: str, umask_027: None
) -> None:
    assert " ".join(Pbs().submit_command(job)) == wanted


def test_a_pbs_array_with_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="one range"):
        Pbs().submit_command(submission(1, 3))


@pytest.mark.parametrize(
    ("stdout", "wanted"),
    [
        ("123\n", "123"),
        ("123;cluster1\n", "123"),
        ("*** welcome, 5 jobs ***\n123\n\n", "123"),
        ("Submitted batch job 123 on cluster c4\n", None),
        ("", None),
    ],
)
def test_slurm_job_id_is_read_from_the_last_line_only(stdout: str, wanted: str | None) -> None:
    assert Slurm().parse_submit(stdout) == wanted


@pytest.mark.parametrize(
    ("stdout", "wanted"),
    [
        ("123.gadi-pbs\n", "123.gadi-pbs"),
        ("note: project ab12\n123[].pbs01.site.org\n", "123[].pbs01.site.org"),
        ("qsub: job submitted\n", None),
    ],
)
def test_pbs_job_id_keeps_brackets_and_server(stdout: str, wanted: str | None) -> None:
    assert Pbs().parse_submit(stdout) == wanted


def test_squeue_lists_elements_and_the_token_of_each() -> None:
    never = "DependencyNeverSatisfied"
    text = (
        f"12_1|tok|RUNNING|None\n12_2|tok|PENDING|Dependency\n13|tok2|PENDING|{never}\n"
        "9|(null)|FAILED|NonZeroExitCode\n"
    )
    assert Slurm().parse_list(Answer(0, text, "")) == [
        JobRecord("12", range(1, 2), "tok", JobState.LIVE, "RUNNING"),
        JobRecord("12", range(2, 3), "tok", JobState.LIVE, "PENDING (Dependency)", Wait.JOBS),
        JobRecord("13", None, "tok2", JobState.LIVE, f"PENDING ({never})", Wait.NEVER),
        JobRecord("9", None, "(null)", JobState.FAILED, "FAILED (NonZeroExitCode)"),
    ]


def test_a_pending_array_that_squeue_keeps_in_one_line_is_still_its_elements() -> None:
    found = Slurm().parse_list(Answer(0, "12_[3-5,9%2]|tok|PENDING|Resources\n", ""))
    assert found is not None
    assert [(list(r.indices or ()), r.size) for r in found] == [([3, 4, 5, 9], 4)]


def test_a_list_of_indices_that_squeue_cuts_short_is_no_answer() -> None:
    assert Slurm().parse_list(Answer(0, "12_[3,5,9,...]|tok|PENDING|Resources\n", "")) is None


@pytest.mark.parametrize("code", [1, 124])
def test_a_failed_squeue_is_no_answer_and_never_an_empty_queue(code: int) -> None:
    assert Slurm().parse_list(Answer(code, "", "Unable to contact slurm controller")) is None


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("RUNNING", JobState.LIVE),
        ("COMPLETED", JobState.GONE),
        ("CANCELLED by 1000", JobState.FAILED),
        ("OUT_OF_MEMORY", JobState.FAILED),
        ("NEW_STATE_OF_2030", JobState.UNKNOWN),
        ("", JobState.UNKNOWN),
    ],
)
def test_slurm_states(text: str, state: JobState) -> None:
    assert slurm_state(text) is state


# Answers of OpenPBS 23.06.06 to `qstat -f -w -t`, without the attributes that nobody reads here.
ENVIRONMENT = "PBS_O_HOME=/home/me,PBS_O_PATH=/usr/bin:/bin,PBS_O_SYSTEM=Linux"
QSTAT = f"""\
Job Id: 1000[].pbs1
    Job_Name = f2.sh
    job_state = B
    Error_Path = pbs1:/run/f2.sh.e1000.^array_index^
    substate = 70
    Variable_List = {ENVIRONMENT},CALLMIP_TOKEN=callmip-aaa,CALLMIP_INDEX=,CALLMIP_OFFSET=0
    Exit_status = 1
    Submit_arguments = -v CALLMIP_TOKEN=callmip-aaa,CALLMIP_INDEX= -W umask=0022 -J 1-3 f2.sh
    array = True
    array_state_count = Queued:0 Running:1 Exiting:0 Expired:2

Job Id: 1000[2].pbs1
    Job_Name = f2.sh
    job_state = E
    substate = 53
    Variable_List = {ENVIRONMENT},CALLMIP_TOKEN=callmip-aaa,CALLMIP_INDEX=,CALLMIP_OFFSET=0
    comment = Job run at Sun Nov 22 at 14:34 on (pbs1:ncpus=1)
    Exit_status = 5
    array_id = 1000[].pbs1
    array_index = 2

Job Id: 1001.pbs1
    Job_Name = f2.sh
    job_state = H
    depend = afterok:1000[].pbs1@pbs1
    substate = 22
    Variable_List = {ENVIRONMENT},CALLMIP_TOKEN=callmip-bbb,CALLMIP_INDEX=4,CALLMIP_OFFSET=0

Job Id: 1002[].pbs1
    job_state = H
    depend = afterok:1000[].pbs1@pbs1
    Variable_List = {ENVIRONMENT},CALLMIP_TOKEN=callmip-ccc,CALLMIP_INDEX=,CALLMIP_OFFSET=0
    array = True

Job Id: 1002[1].pbs1
    job_state = Q
    Variable_List = {ENVIRONMENT},CALLMIP_TOKEN=callmip-ccc,CALLMIP_INDEX=,CALLMIP_OFFSET=0
"""
# The same failed element of an array that still runs, on a server with and without job history.
# Without, it is shown with the attributes of the array (one failed: 1), and so is every other.
ENDED_WITH_HISTORY = """\
Job Id: 1003[2].pbs1
    job_state = X
    Error_Path = pbs1:/run/f2.sh.e1003.2
    Variable_List = CALLMIP_TOKEN=callmip-ddd,CALLMIP_INDEX=,CALLMIP_OFFSET=0
    comment = Job run at Sun Nov 22 at 14:35 on (pbs1:ncpus=1) and failed
    Exit_status = 5
    array_id = 1003[].pbs1
    array_index = 2
"""
ENDED_WITHOUT_HISTORY = """\
Job Id: 110[1].pbs1
    job_state = X
    Error_Path = pbs1:/run/f2.sh.e110.^array_index^
    Variable_List = CALLMIP_TOKEN=callmip-eee,CALLMIP_INDEX=,CALLMIP_OFFSET=0
    comment = Subjob finished
    Exit_status = 1
"""
WRAPPED = """\
Job Id: 77.pbs1
    job_state = R
    Variable_List = PBS_O_HOME=/home/me,PBS_O_LANG=C.UTF-8,
\tPBS_O_PATH=/opt/pbs/bin:/opt/pbs/sbin:/home/me/.cargo
\t/bin:/bin,PBS_O_SHELL=/bin/bash,
\tPBS_O_SYSTEM=Linux,CALLMIP_TOKEN=callmip-f00,CALLMIP_INDEX=,CALLMIP_OFFSET=
\t0,SHELL=/bin/bash,CALLMIP_TOKEN=that-of-the-job-it-was-submitted-in,
\tPWD=/tmp
    euser = me
"""


def test_qstat_text_gives_elements_tokens_and_states() -> None:
    assert Pbs().parse_list(Answer(0, QSTAT, "")) == [
        JobRecord("1000[].pbs1", None, "callmip-aaa", JobState.LIVE, "B"),
        JobRecord("1000[].pbs1", (2,), "callmip-aaa", JobState.UNKNOWN, "E"),
        JobRecord("1001.pbs1", None, "callmip-bbb", JobState.LIVE, "H", Wait.JOBS),
        JobRecord("1002[].pbs1", None, "callmip-ccc", JobState.LIVE, "H", Wait.JOBS),
        JobRecord("1002[].pbs1", (1,), "callmip-ccc", JobState.LIVE, "Q"),
    ]


@pytest.mark.parametrize(
    ("text", "state"),
    [(ENDED_WITH_HISTORY, JobState.FAILED), (ENDED_WITHOUT_HISTORY, JobState.GONE)],
    ids=["with-history", "without-history"],
)
def test_an_ended_element_has_failed_only_where_the_exit_status_is_its_own(
    text: str, state: JobState
) -> None:
    found = Pbs().parse_list(Answer(0, text, ""))
    assert found is not None
    assert [r.state for r in found] == [state]


def test_values_that_qstat_wraps_are_put_together_and_our_own_token_is_the_first() -> None:
    assert Pbs().parse_list(Answer(0, WRAPPED, "")) == [
        JobRecord("77.pbs1", None, "callmip-f00", JobState.LIVE, "R")
    ]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (153, "qstat: Unknown Job Id 999.pbs1"),
        (35, "qstat: 36.pbs1 Job has finished, use -x or -H to obtain historical job information"),
    ],
)
def test_a_job_that_ended_while_qstat_looked_spoils_no_answer(code: int, message: str) -> None:
    found = Pbs().parse_list(Answer(code, QSTAT, message))
    assert found is not None
    assert len(found) == 5


REFUSED = "Connection refused\nqselect: cannot connect to server pbs1 (errno=15010)\n"
BROKEN = "Communication failure.\nqstat: cannot connect to server pbs1 (errno=15031)\n"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(162, "", REFUSED),
        Answer(160, "", "Unknown Host.\nqselect: cannot connect to server pbs2. (errno=15008)\n"),
        Answer(255, QSTAT, BROKEN),
        # The server went away, came back, and had forgotten the last job: the code tells only that.
        Answer(153, QSTAT, BROKEN + "qstat: Unknown Job Id 999.pbs1\n"),
        Answer(127, "", "sh: 1: qselect: not found\n"),
    ],
    ids=["down", "unknown-host", "half-way", "half-way-and-back", "no-pbs-here"],
)
def test_a_pbs_server_that_did_not_answer_in_full_is_no_answer(answer: Answer) -> None:
    assert Pbs().parse_list(answer) is None


def test_no_jobs_at_all_is_an_answer() -> None:
    assert Pbs().parse_list(Answer(0, "", "")) == []


@pytest.mark.parametrize(
    "message",
    [
        "Connection refused qsub: cannot connect to server pbs1 (errno=15010)",
        "Communication failure. qsub: cannot connect to server pbs1 (errno=15031)",
        "qsub: Premature end of message",
    ],
    ids=["server-down", "server-dies-while-connecting", "server-dies-before-it-replies"],
)
def test_a_qsub_that_may_have_reached_the_server_is_not_taken_for_refused(message: str) -> None:
    assert contains_any(message, Pbs.facts.no_answer)
    assert not contains_any(message, Pbs.facts.queue_full)


@pytest.mark.parametrize(
    ("message", "full"),
    [
        ("qsub: would exceed complex's per-user limit", True),
        ("qsub: would exceed queue generic's per-user limit of jobs in 'Q' state", True),
        ("qsub: Maximum number of jobs already in queue workq", True),
        ("qsub: would exceed per-user limit on resource ncpus in queue workq", True),
        ("qsub: Job violates queue and/or server resource limits", False),
        ("qsub: Array job exceeds server or queue size limit", False),
        ("qsub: Unknown queue", False),
        ("qsub: Unauthorized Request ", False),
        ("qsub: Unknown resource Resource_List.storage", False),
        ('qsub: "-lresource=" cannot be used with "select" or "place", resource is: ncpus', False),
    ],
)
def test_a_full_pbs_queue_is_told_from_a_job_that_will_never_be_taken(
    message: str, full: bool
) -> None:
    assert contains_any(message, Pbs.facts.queue_full) is full
    assert not contains_any(message, Pbs.facts.no_answer)
    hints = [hint for words, hint in Pbs.facts.hints.items() if contains_any(message, [words])]
    assert full or len(hints) == 1


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [
        ({"12[].srv": 153, "13.srv": 168, "14[2].srv": 55, "15.srv": 35}, 0),
        ({"12[].srv": 162}, 162),
    ],
    ids=["ended-or-ending", "server-down"],
)
def test_pbs_jobs_are_cancelled_one_by_one_and_ended_ones_are_no_failure(
    codes: dict[str, int], wanted: int, tmp_path: Path
) -> None:
    """OpenPBS leaves jobs out, or dies, when it is given several and one of them has ended."""
    jobs = [*codes, "16[7].srv"]
    cases = " ".join(f"'{job}') exit {code};;" for job, code in codes.items())
    qdel = tmp_path / "qdel"
    qdel.write_text(f'#!/bin/sh\necho "$#" "$1"\ncase "$1" in {cases} esac\n')
    qdel.chmod(0o755)
    done = subprocess.run(
        Pbs().cancel_command(jobs),
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"1 {job}" for job in jobs]
    assert done.returncode == wanted
