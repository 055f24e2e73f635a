"""The same chain on a real PBS, where there is one: what it does, not what we believe it does."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for

from callmip_global.workflow import api

pytestmark = pytest.mark.pbs


def all_done(states: dict[str, str]) -> bool:
    return set(states.values()) == {"done"}


single_jobs_and_arrays = pytest.mark.parametrize(
    "pbs_toy", [False, True], ids=["single-jobs", "arrays"], indirect=True
)


@single_jobs_and_arrays
def test_the_chain_runs_each_segment_once(
    pbs_toy: Any, calls: list[str], request: pytest.FixtureRequest
) -> None:
    arrays = "arrays" in request.node.callspec.id
    result = pbs_toy.submit()
    assert [n for _, _, n in result.jobs] == ([2, 2, 2, 2] if arrays else [1] * 8)
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger() == calls
    # PBS names the logs itself, once the job has ended: one for each job or element.
    logs = pbs_toy.run_dir / "jobs" / "run-spinup-c01" / "log"
    wait_for(lambda: len(list(logs.glob("*.OU"))) == 2)


def test_results_have_the_permissions_of_whoever_submitted(pbs_toy: Any) -> None:
    """Left alone, PBS gives every job the umask 077."""
    before = os.umask(0o027)
    try:
        pbs_toy.submit()
    finally:
        os.umask(before)
    assert all_done(pbs_toy.wait())
    markers = list(pbs_toy.run_dir.glob("steps/*/*/attempt-*"))
    assert len(markers) == 8
    assert {stat.S_IMODE(m.stat().st_mode) for m in markers} == {0o750}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killing_submit_before_or_after_qsub_runs_nothing_twice(
    pbs_toy: Any, calls: list[str], tmp_path: Path, moment: str
) -> None:
    """qsub itself kills the submitting process: between it and the journal line is no time."""
    folder = tmp_path / "bin"
    folder.mkdir()
    kill = "kill -9 $PPID"
    lines = [kill, "exit 1"] if moment == "before" else [f'{shutil.which("qsub")} "$@"', kill]
    (folder / "qsub").write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / "qsub").chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from callmip_global.workflow import api;"
        " api.submit(Path(sys.argv[1]), only='run')"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(pbs_toy.experiment)],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert pbs_toy.journal() == ["intent"]
    pbs_toy.submit()
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger() == calls
    found = {"adopted", "seen"} if moment == "after" else {"lost"}
    assert found & set(pbs_toy.journal())


@single_jobs_and_arrays
def test_a_failing_segment_is_told_mended_and_resumed(
    pbs_toy: Any, calls: list[str], request: pytest.FixtureRequest
) -> None:
    """PBS deletes what depends on a failed job. What depends on an array it may even start, for the
    exit status of an array is that of the element that ended last: the job itself then declines."""
    flag = pbs_toy.folder / "broken"
    flag.touch()
    pbs_toy.parameters("Posterior", f'[ "$first" != 1901 ] || [ ! -e "{flag}" ] || exit 3\n')
    pbs_toy.submit()
    states = pbs_toy.wait()
    assert states["run-historical-1901-1962/S3.Posterior"] == "failed"
    # Until PBS has deleted it, it is held.
    left = ("blocked", "failed", "held")
    assert states["run-historical-1963-2024/S3.Posterior"] in left
    if "single-jobs" in request.node.callspec.id:
        assert states["run-historical-1963-2024/S3.Prior"] == "done"
    told = pbs_toy.cli("status", str(pbs_toy.run_dir))
    assert told.returncode == 1
    assert "exit code 3" in told.stdout
    flag.unlink()
    pbs_toy.submit(retry_failed=True)
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger() == sorted([*calls, "posterior 1901 1962 after 2"])


def test_a_job_that_pbs_deletes_since_its_dependency_just_ended_is_submitted_again(
    pbs_toy: Any, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qsub is held up, once, until the job to wait for has ended: PBS accepts and deletes."""
    folder, flag = tmp_path / "bin", tmp_path / "first"
    folder.mkdir()
    flag.touch()
    lines = [
        "#!/bin/sh",
        "for word do case $word in depend=*) job=${word##*:} ;; esac; done",
        f'if [ -n "$job" ] && [ -e "{flag}" ]; then',
        f'rm "{flag}"; while qstat "$job"; do sleep 0.3; done; fi > /dev/null 2>&1',
        f'exec {shutil.which("qsub")} "$@"',
        "",
    ]
    (folder / "qsub").write_text("\n".join(lines))
    (folder / "qsub").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert len(pbs_toy.submit().jobs) == 8
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger() == calls


def test_jobs_that_cannot_even_start_are_submitted_once_and_told_with_their_log(
    pbs_toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave the queue without a word, and PBS deletes what waits for them."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(sys, "executable", "/nonexistent/python")
        pbs_toy.submit()
    intents = api.status(pbs_toy.run_dir).run.journal.intents().values()
    assert [i.step for i in intents].count("run-spinup-c01") == 2
    ref = "run-spinup-c01/S3.Prior"
    wait_for(lambda: pbs_toy.states()[ref] == "failed")
    failure = api.status(pbs_toy.run_dir).tasks[ref].failure
    assert failure is not None
    assert (failure.kind, Path(failure.log).suffix) == ("node", ".OU")
    assert "/nonexistent/python" in failure.tail[-1]
    wait_for(lambda: pbs_toy.states()["run-spinup-c02/S3.Prior"] == "blocked")
    assert pbs_toy.submit().jobs == []
    pbs_toy.submit(retry_failed=True)
    assert all_done(pbs_toy.wait())


@single_jobs_and_arrays
def test_cancelled_jobs_leave_the_queue_and_can_be_submitted_again(
    pbs_toy: Any, calls: list[str]
) -> None:
    flag = pbs_toy.folder / "slow"
    flag.touch()
    pbs_toy.parameters("Prior", f'[ "$first" != 1901 ] || [ ! -e "{flag}" ] || sleep 60\n')
    pbs_toy.submit()
    wait_for(lambda: "prior 1901 1962 after 2" in pbs_toy.ledger())
    complaints: list[str] = []
    assert api.cancel(pbs_toy.run_dir, say=complaints.append) > 0
    assert complaints == []
    run = api.status(pbs_toy.run_dir)
    listed = api.client_of(run.run, run.plan)
    tokens = {i.token for i in run.run.journal.intents().values()}
    wait_for(lambda: not tokens & {r.token for r in listed.jobs()})
    flag.unlink()
    pbs_toy.submit(retry_failed=True)
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger().count("prior 1901 1962 after 2") == 2


def test_an_unreachable_server_is_exit_code_3_and_loses_nothing(
    pbs_toy: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pbs_toy.parameters("Prior", "sleep 3\n")
    pbs_toy.submit()
    with monkeypatch.context() as elsewhere:
        # A port where nobody listens, for every PBS command.
        elsewhere.setenv("PBS_BATCH_SERVICE_PORT", "1")
        assert pbs_toy.cli("status", str(pbs_toy.run_dir), "--json").returncode == 3
        again = pbs_toy.cli("submit", str(pbs_toy.experiment), "--only", "run")
        assert again.returncode == 3
    assert pbs_toy.submit().jobs == []
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger() == calls


def test_a_job_over_its_time_limit_is_classified(pbs_toy: Any) -> None:
    pbs_toy.tree["resources"]["run"]["walltime"] = "00:00:05"
    pbs_toy.write()
    pbs_toy.parameters("Prior", "sleep 300\n")
    pbs_toy.submit()
    ref = "run-spinup-c01/S3.Prior"
    wait_for(lambda: pbs_toy.states()[ref] == "failed")
    assert kind_of(pbs_toy, ref) == "walltime"


def kind_of(toy: Any, ref: str) -> str | None:
    failure = api.status(toy.run_dir).tasks[ref].failure
    return None if failure is None else str(failure.kind)


def two_steps(toy: Any) -> None:
    """Cut the toy's chain to its last two segments, the first of which waits for a file."""
    toy.tree["run"]["phases"] = toy.tree["run"]["phases"][1:]
    toy.write()
    gate = toy.folder / "gate"
    toy.parameters("Prior", f'[ "$first" != 1901 ] || until [ -e "{gate}" ]; do sleep 0.2; done\n')


FIRST, SECOND = "run-historical-1901-1962/S3.Prior", "run-historical-1963-2024/S3.Prior"
TWO_STEPS = [
    "posterior 1901 1962 after 0",
    "posterior 1963 2024 after 62",
    "prior 1901 1962 after 0",
    "prior 1963 2024 after 62",
]


def job_of(toy: Any, ref: str) -> str:
    return str(api.status(toy.run_dir).tasks[ref].job_id)


def test_jobs_deleted_from_outside_are_told_and_submitted_again(pbs_toy: Any) -> None:
    two_steps(pbs_toy)
    pbs_toy.submit()
    wait_for(lambda: len(pbs_toy.ledger()) == 3)
    # A pending job leaves no trace: it was never begun, so that `submit` sends it again.
    subprocess.run(["qdel", job_of(pbs_toy, SECOND)], check=True)
    wait_for(lambda: pbs_toy.states()[SECOND] == "waiting")
    assert [step for _, step, _ in pbs_toy.submit().jobs] == ["run-historical-1963-2024"]
    # A running job has failed, and PBS deletes what waits for it.
    subprocess.run(["qdel", job_of(pbs_toy, FIRST)], check=True)
    wait_for(lambda: pbs_toy.states()[FIRST] == "failed")
    assert kind_of(pbs_toy, FIRST) == "node"
    wait_for(lambda: pbs_toy.states()[SECOND] == "blocked")
    (pbs_toy.folder / "gate").touch()
    assert pbs_toy.submit().jobs == []
    pbs_toy.submit(retry_failed=True)
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])


def test_a_job_that_pbs_runs_again_makes_a_new_attempt_and_one_result(pbs_toy: Any) -> None:
    two_steps(pbs_toy)
    pbs_toy.submit()
    wait_for(lambda: len(pbs_toy.ledger()) == 3)
    subprocess.run(["qrerun", job_of(pbs_toy, FIRST)], check=True)
    wait_for(lambda: len(pbs_toy.ledger()) >= 4)
    (pbs_toy.folder / "gate").touch()
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])
    found = [a.state for a in api.status(pbs_toy.run_dir).run.attempts(FIRST)]
    assert found in (["failed", "done"], ["running", "done"])


def test_a_job_that_pbs_would_hold_for_ever_is_submitted_anew(
    pbs_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is told to wait for one that is just ending may stay held (about one in a hundred
    that come in that moment). Here qsub makes such a job, by a hold as the server's own."""
    two_steps(pbs_toy)
    folder, flag = tmp_path / "bin", tmp_path / "first"
    folder.mkdir()
    flag.touch()
    real = shutil.which("qsub")
    lines = [
        "#!/bin/bash",
        f'if [[ "$*" != *depend=* || ! -e "{flag}" ]]; then exec {real} "$@"; fi',
        f'rm "{flag}"',
        "words=()",
        'while [ $# -gt 0 ]; do case "$2" in depend=*) shift 2 ;;'
        ' *) words+=("$1"); shift ;; esac; done',
        f'job=$({real} -h "${{words[@]}}") || exit',
        'qhold -h s "$job" && qrls -h u "$job" || { qdel "$job"; exit 1; }',
        'echo "$job"',
        "",
    ]
    (folder / "qsub").write_text("\n".join(lines))
    (folder / "qsub").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    result = pbs_toy.submit()
    if result.refused:
        pytest.skip(f"only a PBS manager may do that: {result.refused[0]}")
    held = next(job for job, step, _ in result.jobs if step == "run-historical-1963-2024")
    (pbs_toy.folder / "gate").touch()
    wait_for(lambda: len(pbs_toy.ledger()) == 3)
    wait_for(lambda: pbs_toy.submit().replaced == 1)
    assert subprocess.run(["qstat", held], capture_output=True, check=False).returncode != 0
    assert all_done(pbs_toy.wait())
    assert pbs_toy.ledger() == TWO_STEPS


def test_a_refused_job_is_told_with_the_schedulers_words(pbs_toy: Any) -> None:
    pbs_toy.tree["resources"]["run"]["queue"] = "nosuch"
    pbs_toy.write()
    result = pbs_toy.submit()
    assert result.jobs == []
    assert "Unknown queue" in str(result.refused[0])
