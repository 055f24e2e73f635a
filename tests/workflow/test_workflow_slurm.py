"""The same chain on a real Slurm: what the scheduler does, not what we believe it does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callmip_global.workflow import api


def all_done(states: dict[str, str]) -> bool:
    return set(states.values()) == {"done"}


def wait_for(what: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def test_the_chain_runs_each_segment_once_as_arrays_with_aftercorr(
    slurm_toy: Any, slurm: Any, calls: list[str]
) -> None:
    for stage in ("Prior", "Posterior"):
        slurm_toy.parameters(stage, "sleep 3\n")
    result = slurm_toy.submit()
    assert [n for _, _, n in result.jobs] == [2, 2, 2, 2]
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == calls


def test_every_script_of_a_dry_run_is_accepted_by_bash_and_sbatch(
    slurm_toy: Any, slurm: Any
) -> None:
    run, plan = api.prepare(slurm_toy.experiment)
    for step in plan.steps:
        script = str(run.job_dir(step.name) / "job.sh")
        subprocess.run(["bash", "-n", script], check=True)
        subprocess.run(["sbatch", "--test-only", script], check=True, capture_output=True)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killing_submit_before_or_after_sbatch_runs_nothing_twice(
    slurm_toy: Any, slurm: Any, calls: list[str], tmp_path: Path, moment: str
) -> None:
    """sbatch itself kills the submitting process: between it and the journal line is no time."""
    real = shutil.which("sbatch")
    folder = tmp_path / "bin"
    folder.mkdir()
    kill = "kill -9 $PPID"
    submit = f'{real} "$@"'
    lines = [kill, "exit 1"] if moment == "before" else [submit, kill]
    (folder / "sbatch").write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    code = (
        "import sys; from pathlib import Path; from callmip_global.workflow import api;"
        " api.submit(Path(sys.argv[1]), only='run')"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(slurm_toy.experiment)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert slurm_toy.journal() == ["intent"]
    result = slurm_toy.submit()
    assert result.adopted == (1 if moment == "after" else 0)
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == calls


def test_a_failing_segment_is_told_mended_and_resumed(
    slurm_toy: Any, slurm: Any, calls: list[str]
) -> None:
    flag = slurm_toy.folder / "broken"
    flag.touch()
    slurm_toy.parameters("Posterior", f'[ "$first" != 1901 ] || [ ! -e "{flag}" ] || exit 3\n')
    slurm_toy.submit()
    states = slurm_toy.wait()
    assert states["run-historical-1901-1962/S3.Posterior"] == "failed"
    assert states["run-historical-1963-2024/S3.Posterior"] == "held"
    assert states["run-historical-1963-2024/S3.Prior"] == "done"
    told = slurm_toy.cli("status", str(slurm_toy.run_dir))
    assert told.returncode == 1
    assert "exit code 3" in told.stdout
    flag.unlink()
    # The dependent keeps its place in the queue and waits for the new job.
    result = slurm_toy.submit(retry_failed=True)
    assert [(step, n) for _, step, n in result.jobs] == [("run-historical-1901-1962", 1)]
    assert result.repaired == 1
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*calls, "posterior 1901 1962 after 2"])


def test_resume_right_after_a_failure_repairs_dependents_that_would_never_run(
    slurm_toy: Any, slurm: Any, calls: list[str]
) -> None:
    flag = slurm_toy.folder / "broken"
    flag.touch()
    slurm_toy.parameters("Prior", f'[ "$first" != 1901 ] || [ ! -e "{flag}" ] || exit 3\n')
    slurm_toy.submit()
    wait_for(lambda: slurm_toy.states()["run-historical-1901-1962/S3.Prior"] == "failed")
    flag.unlink()
    slurm_toy.submit(retry_failed=True)
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*calls, "prior 1901 1962 after 2"])


def test_a_job_requeued_in_the_middle_makes_a_new_attempt_and_one_result(
    slurm_toy: Any, slurm: Any, calls: list[str]
) -> None:
    flag = slurm_toy.folder / "slow"
    flag.touch()
    slurm_toy.parameters("Prior", f'[ "$first" != 1901 ] || [ ! -e "{flag}" ] || sleep 60\n')
    slurm_toy.submit()
    wait_for(lambda: "prior 1901 1962 after 2" in slurm_toy.ledger())
    state = api.status(slurm_toy.run_dir).tasks["run-historical-1901-1962/S3.Prior"]
    flag.unlink()
    element = f"{state.job_id}_1"
    slurm.run("scontrol", "requeue", element)
    # Slurm holds a requeued job back for two minutes (BeginTime); let it go at once.
    wait_for(lambda: "PENDING" in slurm.run("squeue", "-h", "-j", element, "-o", "%T"))
    slurm.run("scontrol", "update", f"JobId={element}", "StartTime=now")
    if not all_done(slurm_toy.wait()):
        # Let go at once, Slurm may take the late end of the first attempt for that of the second:
        # the job is FAILED before it began again, its dependents cancelled. Then it is resumed.
        slurm_toy.submit(retry_failed=True)
        assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*calls, "prior 1901 1962 after 2"])
    attempts = slurm_toy.run_dir / "steps" / "run-historical-1901-1962" / "S3.Prior"
    assert sorted(p.name for p in attempts.glob("attempt-*")) == ["attempt-01", "attempt-02"]


def test_an_unreachable_controller_is_exit_code_3_and_loses_nothing(
    slurm_toy: Any, slurm: Any, calls: list[str]
) -> None:
    slurm_toy.parameters("Prior", "sleep 3\n")
    slurm_toy.submit()
    with slurm.controller_down():
        told = slurm_toy.cli("status", str(slurm_toy.run_dir), "--json")
        assert told.returncode == 3
        again = slurm_toy.cli("submit", str(slurm_toy.experiment), "--only", "run")
        assert again.returncode == 3
    assert slurm_toy.submit().jobs == []
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == calls


def test_a_refused_job_is_told_with_the_schedulers_words_and_nothing_depends_on_it(
    slurm_toy: Any, slurm: Any
) -> None:
    slurm_toy.tree["resources"]["run"]["queue"] = "nosuch"
    slurm_toy.write()
    result = slurm_toy.submit()
    assert result.jobs == []
    assert "invalid partition" in str(result.refused[0])
    states = slurm_toy.states()
    assert states["run-spinup-c01/S3.Prior"] == "failed"
    assert states["run-spinup-c02/S3.Prior"] == "blocked"
    del slurm_toy.tree["resources"]["run"]["queue"]
    slurm_toy.write()
    assert sum(n for _, _, n in slurm_toy.submit().jobs) == 8
    assert all_done(slurm_toy.wait())


def test_a_job_over_its_time_limit_is_classified(slurm_toy: Any, slurm: Any) -> None:
    slurm_toy.tree["resources"]["run"]["walltime"] = "00:00:05"
    slurm_toy.write()
    slurm_toy.parameters("Prior", "sleep 300\n")
    slurm_toy.submit()
    wait_for(lambda: "prior 1900 1900 after 0" in slurm_toy.ledger())
    job_id = api.status(slurm_toy.run_dir).tasks["run-spinup-c01/S3.Prior"].job_id
    # Slurm counts whole minutes; a TERM after the limit is what its end looks like.
    time.sleep(5)
    slurm.run("scancel", "--signal=TERM", "--full", f"{job_id}_1")
    wait_for(lambda: slurm_toy.states()["run-spinup-c01/S3.Prior"] == "failed")
    failure = api.status(slurm_toy.run_dir).tasks["run-spinup-c01/S3.Prior"].failure
    assert failure is not None
    assert failure.kind == "walltime"
