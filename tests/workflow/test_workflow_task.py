"""Inside a job: who may run a task, and what is published."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from callmip_global.files import write_json
from callmip_global.jobs.scheduler import JobRecord, JobState
from callmip_global.workflow import api, model_run, task
from callmip_global.workflow.failures import TaskFailedError
from callmip_global.workflow.journal import Journal
from callmip_global.workflow.observe import Queue, observe
from callmip_global.workflow.rundir import RunDir
from callmip_global.workflow.task import run_task

STEP = "run-spinup-c01"
REF = f"{STEP}/S3.Prior"
INTENT: dict[str, Any] = {
    "rows": [1],
    "pack": 1,
    "offset": 0,
    "depends": [],
    "replaces": [],
    "retry": "",
    "walltime_s": None,
    "memory_bytes": None,
    "segment_years": None,
}


@pytest.fixture
def run(toy: Any) -> RunDir:
    """The toy's run directory, written but not submitted."""
    run, _ = api.prepare(toy.experiment)
    return run


def intend(run: RunDir, token: str, step: str = STEP, **changes: Any) -> None:
    """What `submit` writes before it submits a step's first task."""
    run.journal.append(
        "intent",
        token=token,
        step=step,
        table=run.plan().step(step).table,
        **{**INTENT, **changes},
    )


def attempts(run: RunDir) -> list[str]:
    return [a.state for a in run.attempts(REF)]


def test_a_job_with_the_latest_token_runs_its_task_and_publishes_it(run: RunDir, toy: Any) -> None:
    intend(run, "t1")
    assert run_task(run, STEP, 1, "t1") == 0
    assert attempts(run) == ["done"]
    marker = run.marker(REF)
    assert marker is not None
    assert marker["key"] == run.plan().step(STEP).tasks[0].key
    assert toy.ledger() == ["prior 1900 1900 after 0"]


def test_a_job_that_was_superseded_touches_nothing(run: RunDir, toy: Any) -> None:
    intend(run, "t1")
    intend(run, "t2")
    assert run_task(run, STEP, 1, "t1") == 0
    assert not run.task_dir(REF).exists()
    assert toy.ledger() == []


def test_a_job_nobody_intended_touches_nothing(run: RunDir, toy: Any) -> None:
    assert run_task(run, STEP, 1, "t1") == 0
    assert toy.ledger() == []


def test_a_second_job_of_a_finished_task_touches_nothing(run: RunDir, toy: Any) -> None:
    intend(run, "t1")
    run_task(run, STEP, 1, "t1")
    assert run_task(run, STEP, 1, "t1") == 0
    assert attempts(run) == ["done"]
    assert len(toy.ledger()) == 1


def left_running(run: RunDir, number: int = 1, **status: Any) -> Path:
    """An attempt whose owner gave a sign of life just now."""
    path = run.task_dir(REF) / f"attempt-{number:02d}"
    path.mkdir(parents=True)
    owner = {"state": "running", "token": "t1", "job_id": "77", "host": "node9", "pid": 1}
    write_json(path / "status.json", {**owner, **status})
    return path


def test_a_job_leaves_a_task_to_another_live_attempt(run: RunDir, toy: Any) -> None:
    intend(run, "t1")
    left_running(run)
    assert run_task(run, STEP, 1, "t1") == 0
    assert attempts(run) == ["running"]
    assert toy.ledger() == []


def test_a_job_started_again_by_the_scheduler_makes_a_new_attempt(
    run: RunDir, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    intend(run, "t1")
    left_running(run)
    monkeypatch.setenv("CALLMIP_JOB_ID", "77")
    assert run_task(run, STEP, 1, "t1") == 0
    assert attempts(run) == ["running", "done"]
    assert len(toy.ledger()) == 1


def test_a_job_takes_over_from_one_the_scheduler_had_let_go_of(run: RunDir, toy: Any) -> None:
    intend(run, "t1")
    intend(run, "t2", replaces=["t1"])
    left_running(run)
    assert run_task(run, STEP, 1, "t2") == 0
    assert attempts(run) == ["running", "done"]


def test_a_job_takes_over_from_a_process_of_this_machine_that_is_gone(run: RunDir) -> None:
    intend(run, "t1")
    left_running(run, host=socket.gethostname(), pid=2**22 + 1)
    assert run_task(run, STEP, 1, "t1") == 0
    assert attempts(run) == ["running", "done"]


def test_a_job_takes_over_from_an_attempt_without_a_sign_of_life(run: RunDir) -> None:
    intend(run, "t1")
    status = left_running(run) / "status.json"
    os.utime(status, (1, 1))
    assert run_task(run, STEP, 1, "t1") == 0
    assert attempts(run) == ["running", "done"]


def test_an_attempt_that_was_overtaken_publishes_nothing(
    run: RunDir, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    intend(run, "t1")
    real = task._Attempt._work

    def overtaken(self: Any, upstream: Any) -> Any:
        result = real(self, upstream)
        left_running(run, 2)
        return result

    monkeypatch.setattr(task._Attempt, "_work", overtaken)
    assert run_task(run, STEP, 1, "t1") == 0
    assert run.marker(REF) is None
    assert attempts(run)[0] == "left"


def test_of_two_markers_only_the_first_is_published(run: RunDir) -> None:
    run.task_dir(REF).mkdir(parents=True)
    assert run.publish(REF, {"key": "a"})
    assert not run.publish(REF, {"key": "b"})
    assert run.marker(REF) == {"key": "a"}
    assert [p.name for p in run.task_dir(REF).iterdir()] == ["done.json"]


def test_a_task_whose_upstream_is_not_done_fails_without_running(
    run: RunDir, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "_UPSTREAM_WAIT_S", 0.1)
    intend(run, "t", step="run-spinup-c02", depends=["5"])
    assert run_task(run, "run-spinup-c02", 1, "t") == 1
    failure = run.attempts("run-spinup-c02/S3.Prior")[0].status["failure"]
    assert failure["class"] == "upstream"
    assert REF in failure["message"]
    assert toy.ledger() == []


@pytest.mark.parametrize(
    ("parameters", "kind", "words"),
    [
        ("exit 9", "model", "exit code 9"),
        ("kill -9 $$", "memory", "signal 9"),
        ("echo oom-kill event >&2; exit 1", "memory", "out of memory"),
        ("trap 'rm -f restart_out/years.txt' EXIT", "restart", "years.txt is missing"),
        ("trap ': > restart_out/years.txt' EXIT", "restart", "years.txt is empty"),
    ],
)
def test_a_failure_is_classified(
    run: RunDir, toy: Any, parameters: str, kind: str, words: str
) -> None:
    toy.parameters("Prior", parameters + "\n")
    run, _ = api.prepare(toy.experiment)
    intend(run, "t1")
    assert run_task(run, STEP, 1, "t1") == 1
    failure = run.attempts(REF)[0].status["failure"]
    assert failure["class"] == kind
    assert words in failure["message"]
    assert run.marker(REF) is None


@pytest.mark.parametrize(("limit_s", "kind"), [(1, "walltime"), (3600, "node")])
def test_a_model_that_is_told_to_end_before_its_task_is_told_ended_at_the_time_limit_or_not(
    run: RunDir, toy: Any, limit_s: int, kind: str
) -> None:
    """Slurm sends TERM to every process of a job, in no order."""
    toy.parameters("Prior", "sleep 1; kill -TERM $$\n")
    run, _ = api.prepare(toy.experiment)
    intend(run, "t1", walltime_s=limit_s)
    assert run_task(run, STEP, 1, "t1") == 1
    assert run.attempts(REF)[0].status["failure"]["class"] == kind


def test_a_parameter_file_changed_since_submit_is_not_run_with(run: RunDir, toy: Any) -> None:
    intend(run, "t1")
    toy.parameters("Prior", "# other\n")
    assert run_task(run, STEP, 1, "t1") == 1
    assert run.attempts(REF)[0].status["failure"]["class"] == "input"
    assert toy.ledger() == []


def test_a_journal_line_cut_short_by_a_crash_loses_nothing_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("intent", token="a", step="s", table="", **INTENT)
    with journal.path.open("a") as file:
        file.write('{"event": "submitted", "token": "a", "job')
    assert journal.intents()["a"].is_open
    journal.append("adopted", token="a", job_id="7")
    assert journal.intents()["a"].job_id == "7"


def test_a_missing_output_is_told_with_the_last_words_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_text("disk quota exceeded\n")
    with pytest.raises(TaskFailedError, match=r"mon\.nc is missing") as caught:
        model_run._outputs({"out/mon.nc": 12}, tmp_path)
    assert caught.value.failure.tail == ("disk quota exceeded",)


def test_a_task_put_back_into_the_queue_is_queued_only_while_the_plan_is_the_same(
    make_toy: Any, local_site: dict[str, Any]
) -> None:
    toy = make_toy({**local_site, "scheduler": "slurm"})
    run, _ = api.prepare(toy.experiment)
    intend(run, "t1")
    run.journal.append("submitted", token="t1", job_id="7")
    left_running(run, started="2026-01-01T00:00:00Z")
    queue = Queue([JobRecord("7", None, "t1", JobState.LIVE, "PENDING")])
    assert observe(run, run.plan(), queue)[REF].state == "queued"
    # The queued job is of an older plan now: when it starts, it will leave the task alone.
    toy.parameters("Prior", "# edited\n")
    _, plan = api.prepare(toy.experiment)
    assert observe(run, plan, queue)[REF].state == "running"
    shutil.rmtree(toy.run_dir)  # there is no Slurm to cancel anything
