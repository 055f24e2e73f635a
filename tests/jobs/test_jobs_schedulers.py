"""Command lines, and how the answers of real schedulers are read, with all their traps."""

from __future__ import annotations

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
    expand_ranges,
    index_ranges,
)
from callmip_global.jobs.slurm import Slurm, slurm_state

SCRIPT = Path("/run/jobs/s/job.sh")


def submission(*indices: int, offset: int = 0, depends: tuple[Dependency, ...] = ()) -> Submission:
    return Submission(SCRIPT, "name", "tok", indices, offset, depends)


@given(st.sets(st.integers(1, 300), min_size=1))
def test_ranges_say_exactly_the_indices_they_were_made_of(indices: set[int]) -> None:
    assert expand_ranges(index_ranges(sorted(indices))) == sorted(indices)


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


@pytest.mark.parametrize(
    ("job", "wanted"),
    [
        (
            submission(4),
            "qsub -v CALLMIP_TOKEN=tok,CALLMIP_INDEX=4,CALLMIP_OFFSET=0 /run/jobs/s/job.sh",
        ),
        (
            submission(1, 2, 3, depends=(Dependency("12[].srv"),)),
            "qsub -v CALLMIP_TOKEN=tok,CALLMIP_INDEX=,CALLMIP_OFFSET=0 -J 1-3"
            " -W depend=afterok:12[].srv /run/jobs/s/job.sh",
        ),
    ],
    ids=["one-task-is-no-array", "array-after-array"],
)
def test_pbs_submit_command(job: Submission, wanted: str) -> None:
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
    text = "12_1|tok|RUNNING|None\n12_2|tok|PENDING|Dependency\n9|(null)|FAILED|NonZeroExitCode\n"
    assert Slurm().parse_list(Answer(0, text, "")) == [
        JobRecord("12", 1, "tok", JobState.LIVE, "RUNNING"),
        JobRecord("12", 2, "tok", JobState.LIVE, "PENDING (Dependency)"),
        JobRecord("9", None, "(null)", JobState.FAILED, "FAILED (NonZeroExitCode)"),
    ]


def test_a_pending_array_that_squeue_keeps_in_one_line_is_still_its_elements() -> None:
    found = Slurm().parse_list(Answer(0, "12_[3-5,9%2]|tok|PENDING|Resources\n", ""))
    assert found is not None
    assert [r.index for r in found] == [3, 4, 5, 9]


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


QSTAT = """\
Job Id: 77[].pbs01
    Job_Name = historical
    job_state = B
    Variable_List = PBS_O_HOME=/home/me,PBS_O_PATH=/usr/bin:/bin,
\tCALLMIP_TOKEN=callmip-abc,CALLMIP_INDEX=,CALLMIP_OFFSET=0
    array = True

Job Id: 77[1].pbs01
    job_state = X
    Exit_status = 1
    Variable_List = CALLMIP_TOKEN=callmip-abc

Job Id: 77[2].pbs01
    job_state = R
    Variable_List = CALLMIP_TOKEN=callmip-abc

Job Id: 78.pbs01
    job_state = H
    Variable_List = CALLMIP_TOKEN=callmip-def,CALLMIP_INDEX=4
"""


def test_qstat_text_gives_subjobs_tokens_and_exit_states() -> None:
    assert Pbs().parse_list(Answer(0, QSTAT, "")) == [
        JobRecord("77[].pbs01", None, "callmip-abc", JobState.LIVE, "B"),
        JobRecord("77[].pbs01", 1, "callmip-abc", JobState.FAILED, "X"),
        JobRecord("77[].pbs01", 2, "callmip-abc", JobState.LIVE, "R"),
        JobRecord("78.pbs01", None, "callmip-def", JobState.LIVE, "H"),
    ]


def test_a_job_that_ended_while_qstat_looked_spoils_no_answer() -> None:
    found = Pbs().parse_list(Answer(153, QSTAT, "qstat: Unknown Job Id 79.pbs01"))
    assert found is not None
    assert len(found) == 4


def test_an_unreachable_pbs_server_is_no_answer() -> None:
    assert Pbs().parse_list(Answer(255, "", "Connection refused")) is None
    assert Pbs().parse_list(Answer(0, "", "")) == []
