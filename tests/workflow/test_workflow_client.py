"""How scheduler commands are run, with commands made for the purpose."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callmip_global.errors import SchedulerError
from callmip_global.jobs.pbs import Pbs
from callmip_global.jobs.scheduler import Submission
from callmip_global.workflow.client import Client, Outcome, Reply

SUBMISSION = Submission(Path("/run/job.sh"), "name", "tok", (4,))


@pytest.fixture
def qsub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``qsub("lines", "of shell")``: a qsub that does just that."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(*lines: str) -> None:
        (tmp_path / "qsub").write_text("\n".join(["#!/bin/sh", *lines, ""]))
        (tmp_path / "qsub").chmod(0o755)

    return write


def test_the_token_of_a_job_does_not_travel_with_the_jobs_it_submits(
    qsub: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenPBS lets what ``qsub -V`` finds in the environment overrule ``-v``."""
    for name in ("TOKEN", "INDEX", "OFFSET"):
        monkeypatch.setenv(f"CALLMIP_{name}", "1")
    monkeypatch.setenv("LEDGER", "2")
    qsub("echo $CALLMIP_TOKEN$CALLMIP_INDEX$CALLMIP_OFFSET$LEDGER")
    assert Client(Pbs()).submit(SUBMISSION).job_id == "2"


@pytest.mark.parametrize(
    ("message", "code", "outcome"),
    [
        ("qsub: Premature end of message", 183, Outcome.UNKNOWN),
        ("Connection refused\nqsub: cannot connect to server pbs1", 162, Outcome.UNKNOWN),
        ("qsub: would exceed complex's per-user limit", 38, Outcome.QUEUE_FULL),
        ("qsub: Unknown queue", 170, Outcome.REJECTED),
    ],
)
def test_what_qsub_said_decides_whether_the_job_may_exist(
    qsub: Callable[..., None], message: str, code: int, outcome: Outcome
) -> None:
    qsub(f'echo "{message}" >&2', f"exit {code}")
    reply = Client(Pbs()).submit(SUBMISSION)
    assert reply.outcome is outcome
    assert reply.message.startswith(" ".join(message.split()))


def test_a_machine_without_the_scheduler_is_told_from_a_scheduler_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    (tmp_path / "id").symlink_to("/usr/bin/id")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match="login node"):
        Client(Pbs()).jobs()


def test_a_full_queue_postpones_and_fails_nothing(
    toy: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(Client, "submit", lambda self, job: Reply(Outcome.QUEUE_FULL, message="full"))
        assert toy.submit().stopped == "full"
    assert set(toy.states().values()) == {"waiting"}
    assert len(toy.submit().jobs) == 4
    assert set(toy.wait().values()) == {"done"}
    assert toy.ledger() == calls
