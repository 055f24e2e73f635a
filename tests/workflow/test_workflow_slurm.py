"""The same chain on a real Slurm: what the scheduler does, not what we believe it does."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from waiting import wait_for

from callmip_global.workflow import api, observe, submit


def all_done(states: dict[str, str]) -> bool:
    return set(states.values()) == {"done"}


def two_steps(toy: Any, **more: Any) -> None:
    """Cut the toy's chain to its last two segments: what is tested needs no more."""
    toy.tree["run"]["phases"] = toy.tree["run"]["phases"][1:]
    toy.tree["resources"]["run"].update(more)
    toy.write()


FIRST, SECOND = "run-historical-1901-1962", "run-historical-1963-2024"
TWO_STEPS = [
    "posterior 1901 1962 after 0",
    "posterior 1963 2024 after 62",
    "prior 1901 1962 after 0",
    "prior 1963 2024 after 62",
]


def while_there(toy: Any, name: str, action: str, stage: str = "Prior") -> Path:
    """A file; while it is there, a stage's segment from 1901 on does this (shell) first."""
    flag: Path = toy.folder / name
    flag.touch()
    toy.parameters(stage, f'[ "$first" != 1901 ] || [ ! -e "{flag}" ] || {action}\n')
    return flag


def job_of(toy: Any, ref: str) -> str:
    """Job, or element, of a task."""
    state = api.status(toy.run_dir).tasks[ref]
    index = state.lease.array_index
    return str(state.job_id) if index is None else f"{state.job_id}_{index}"


def let_go(toy: Any, slurm: Any, ref: str, element: str) -> None:
    """Slurm holds a requeued job back for two minutes (BeginTime); let it go, and wait for it.

    Not at once: a node refuses to start a job in the second in which it ended it ("already
    killed, do not launch": credentials tell seconds apart). Slurm then calls the job FAILED, and
    its dependents never run. That is what the two minutes are for.
    """

    def put_back() -> bool:
        # It is COMPLETING until the node has ended the first run.
        state = slurm.run("squeue", "-h", "-t", "all", "-j", element, "-o", "%T").strip()
        return state == "PENDING" or len(attempts(toy, ref)) == 2

    def begun() -> bool:
        nonlocal next_update
        if time.monotonic() >= next_update:
            # Again after a while, for it may be held back anew.
            next_update = time.monotonic() + 10
            with contextlib.suppress(RuntimeError):
                slurm.run("scontrol", "update", f"JobId={element}", "StartTime=now+2")
        return len(attempts(toy, ref)) == 2

    next_update = 0.0
    wait_for(put_back)
    wait_for(begun)


def wait_until_prior_is_alone(toy: Any, slurm: Any) -> None:
    """Until nothing runs but the slow first segment of the prior, as Slurm sees it as well: what
    has published its result may still be ending, and is requeued when its node is lost."""
    wait_for(lambda: toy.states()[f"{SECOND}/S3.Posterior"] == "done")
    wait_for(lambda: len(toy.ledger()) == 3)
    alone = [job_of(toy, f"{FIRST}/S3.Prior")]
    listed = ("squeue", "-h", "-r", "-t", "RUNNING,COMPLETING", "-o", "%i")
    wait_for(lambda: slurm.run(*listed).split() == alone)


def gate(toy: Any, condition: str, *stages: str) -> Path:
    """A file; until it is there, segments of the stages for which a condition (shell) holds
    wait for it."""
    path: Path = toy.folder / "gate"
    for stage in stages:
        toy.parameters(
            stage, f'if {condition}; then until [ -e "{path}" ]; do sleep 0.2; done; fi\n'
        )
    return path


def attempts(toy: Any, ref: str) -> list[str]:
    """State of each attempt of a task."""
    return [a.state for a in api.status(toy.run_dir).run.attempts(ref)]


def site_option(toy: Any, **options: Any) -> None:
    """Change the site file of the toy."""
    path = toy.folder / "site.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **options}))


def killed_at(
    command: str, moment: str, folder: Path, call: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a call of the API in a process that a command of Slurm kills before or after its effect:
    between that and the next line of the journal is no time."""
    real, bin_dir = shutil.which(command), folder / "bin"
    bin_dir.mkdir()
    kill = "kill -9 $PPID"
    lines = [kill, "exit 1"] if moment == "before" else [f'{real} "$@"', kill]
    # Its version may be asked before.
    asked = f'case "$*" in --version) exec {real} --version ;; esac'
    (bin_dir / command).write_text("\n".join(["#!/bin/sh", asked, *lines, ""]))
    (bin_dir / command).chmod(0o755)
    code = f"from pathlib import Path; from callmip_global.workflow import api; {call}"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}"},
        capture_output=True,
        check=False,
    )


def test_the_chain_runs_each_segment_once_as_arrays_with_aftercorr(
    slurm_toy: Any, slurm: Any, calls: list[str]
) -> None:
    opened = gate(slurm_toy, '[ "$first" = 1900 ]', "Prior", "Posterior")
    result = slurm_toy.submit()
    assert [n for _, _, n in result.jobs] == [2, 2, 2, 2]
    first, *others = [job for job, _, _ in result.jobs]
    for before, job in zip([first, *others], others, strict=False):
        assert slurm.dependency(job) == f"aftercorr:{before}_*(unfulfilled)"
    opened.touch()
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
    slurm_toy: Any, slurm: Any, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slurm shows a job as soon as sbatch has replied, so what is not there now will not come.
    for module in (observe, submit):
        monkeypatch.setattr(module, "SETTLE_S", 2.0)
    two_steps(slurm_toy)
    call = f"api.submit(Path({str(slurm_toy.experiment)!r}), only='run')"
    killed = killed_at("sbatch", moment, tmp_path, call)
    assert killed.returncode == -signal.SIGKILL
    assert slurm_toy.journal() == ["intent"]
    result = slurm_toy.submit()
    assert result.adopted == (1 if moment == "after" else 0)
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == TWO_STEPS


def test_a_failing_segment_is_told_mended_and_resumed(slurm_toy: Any, slurm: Any) -> None:
    two_steps(slurm_toy)
    flag = while_there(slurm_toy, "broken", "exit 3", stage="Posterior")
    slurm_toy.submit()
    states = slurm_toy.wait()
    assert states["run-historical-1901-1962/S3.Posterior"] == "failed"
    assert states["run-historical-1963-2024/S3.Posterior"] == "held"
    assert states["run-historical-1963-2024/S3.Prior"] == "done"
    told = slurm_toy.cli("status", str(slurm_toy.run_dir))
    assert told.returncode == 1
    assert "exit code 3" in told.stdout
    logs = slurm_toy.cli("logs", str(slurm_toy.run_dir)).stdout
    assert f"{FIRST}/S3.Posterior: attempt 1 on" in logs
    flag.unlink()
    # The dependent keeps its place in the queue and waits for the new job.
    result = slurm_toy.submit(retry_failed=True)
    assert [(step, n) for _, step, n in result.jobs] == [("run-historical-1901-1962", 1)]
    assert result.repaired == 1
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*TWO_STEPS, "posterior 1901 1962 after 0"])


def test_resume_right_after_a_failure_repairs_dependents_that_would_never_run(
    slurm_toy: Any, slurm: Any
) -> None:
    two_steps(slurm_toy)
    flag = while_there(slurm_toy, "broken", "exit 3")
    slurm_toy.submit()
    wait_for(lambda: slurm_toy.states()["run-historical-1901-1962/S3.Prior"] == "failed")
    flag.unlink()
    slurm_toy.submit(retry_failed=True)
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])


def test_a_job_requeued_in_the_middle_makes_a_new_attempt_and_one_result(
    slurm_toy: Any, slurm: Any
) -> None:
    two_steps(slurm_toy)
    flag = while_there(slurm_toy, "slow", "sleep 600")
    slurm_toy.submit()
    wait_for(lambda: "prior 1901 1962 after 0" in slurm_toy.ledger())
    ref = f"{FIRST}/S3.Prior"
    element = job_of(slurm_toy, ref)
    flag.unlink()
    slurm.run("scontrol", "requeue", element)
    let_go(slurm_toy, slurm, ref, element)
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])
    assert attempts(slurm_toy, ref) == ["failed", "done"]


def test_an_unreachable_controller_is_exit_code_3_and_loses_nothing(
    slurm_toy: Any, slurm: Any
) -> None:
    two_steps(slurm_toy)
    opened = gate(slurm_toy, '[ "$first" = 1901 ]', "Prior")
    slurm_toy.submit()
    wait_for(lambda: "prior 1901 1962 after 0" in slurm_toy.ledger())
    with slurm.controller_down():
        # The job ends while nobody hears of it.
        opened.touch()
        told = slurm_toy.cli("status", str(slurm_toy.run_dir), "--json")
        assert told.returncode == 3
        again = slurm_toy.cli("submit", str(slurm_toy.experiment), "--only", "run")
        assert again.returncode == 3
    assert slurm_toy.submit().jobs == []
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == TWO_STEPS


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


def test_jobs_of_a_node_that_crashes_begin_again_elsewhere_by_themselves(
    slurm_toy: Any, slurm: Any
) -> None:
    two_steps(slurm_toy)
    flag = while_there(slurm_toy, "slow", "sleep 600")
    slurm_toy.submit()
    wait_until_prior_is_alone(slurm_toy, slurm)
    ref = f"{FIRST}/S3.Prior"
    element = job_of(slurm_toy, ref)
    flag.unlink()
    with slurm.node_lost(slurm.node_of(element), with_jobs=True):
        wait_for(lambda: slurm_toy.states()[ref] == "queued")
        let_go(slurm_toy, slurm, ref, element)
        assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])
    assert attempts(slurm_toy, ref) == ["running", "done"]


def test_jobs_that_are_not_to_be_requeued_fail_with_their_node_and_are_resumed(
    slurm_toy: Any, slurm: Any
) -> None:
    two_steps(slurm_toy, directives=["--no-requeue"])
    flag = while_there(slurm_toy, "slow", "sleep 600")
    slurm_toy.submit()
    wait_until_prior_is_alone(slurm_toy, slurm)
    ref = f"{FIRST}/S3.Prior"
    with slurm.node_lost(slurm.node_of(job_of(slurm_toy, ref)), with_jobs=True):
        wait_for(lambda: slurm_toy.states()[ref] == "failed")
        failure = api.status(slurm_toy.run_dir).tasks[ref].failure
        assert failure is not None
        assert (failure.kind, "NODE_FAIL" in failure.message) == ("node", True)
        assert slurm_toy.wait()[f"{SECOND}/S3.Prior"] == "held"
        flag.unlink()
        assert slurm_toy.submit(retry_failed=True).repaired == 1
        assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])


def test_a_job_that_runs_on_where_slurm_cannot_see_it_publishes_nothing_twice(
    slurm_toy: Any, slurm: Any
) -> None:
    """The node is cut off, the job goes on there and, requeued, on another node as well."""
    two_steps(slurm_toy)
    flag = slurm_toy.folder / "slow"
    flag.touch()
    opened = gate(slurm_toy, f'[ "$first" = 1901 ] && [ -e "{flag}" ] && rm "{flag}"', "Prior")
    slurm_toy.submit()
    wait_until_prior_is_alone(slurm_toy, slurm)
    ref = f"{FIRST}/S3.Prior"
    element = job_of(slurm_toy, ref)
    with slurm.node_lost(slurm.node_of(element), with_jobs=False):
        let_go(slurm_toy, slurm, ref, element)
        assert all_done(slurm_toy.wait())
        opened.touch()
        wait_for(lambda: attempts(slurm_toy, ref) == ["left", "done"])
    assert all_done(slurm_toy.states())
    assert slurm_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])


def test_a_job_over_its_memory_is_classified_and_gets_more(
    strict_toy: Any, strict_slurm: Any
) -> None:
    strict_toy.tree["retry"] = {"memory": {"times": 1, "memory": 4}}
    two_steps(strict_toy, memory="200MiB")
    python = shlex.quote(sys.executable)
    # With 200 MiB it waits until it is killed, with 800 for a few looks of Slurm.
    hungry = (
        'import os, time; x = b"x" * (400 << 20);'
        ' time.sleep(600 if int(os.environ["SLURM_MEM_PER_NODE"]) < 400 else 3)'
    )
    strict_toy.parameters("Prior", f"[ \"$first\" != 1901 ] || {python} -c '{hungry}'\n")
    strict_toy.submit()
    ref = f"{FIRST}/S3.Prior"
    assert strict_toy.wait()[ref] == "failed"
    failure = api.status(strict_toy.run_dir).tasks[ref].failure
    assert failure is not None
    assert failure.kind == "memory", failure
    strict_toy.submit(retry_failed=True)
    assert all_done(strict_toy.wait())
    assert strict_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])


def test_elements_and_arrays_cancelled_from_outside_are_told_and_submitted_again(
    slurm_toy: Any, slurm: Any
) -> None:
    two_steps(slurm_toy)
    flag = while_there(slurm_toy, "slow", "sleep 600")
    slurm_toy.submit()
    wait_until_prior_is_alone(slurm_toy, slurm)
    prior = f"{FIRST}/S3.Prior"
    # The whole second array while the first runs, one element of it done: nothing has failed.
    slurm.run("scancel", job_of(slurm_toy, f"{SECOND}/S3.Prior").partition("_")[0])
    wait_for(lambda: slurm_toy.states()[f"{SECOND}/S3.Prior"] == "waiting")
    assert [(step, n) for _, step, n in slurm_toy.submit().jobs] == [(SECOND, 1)]
    # A running element: it has failed, and what waits for it is held.
    slurm.run("scancel", job_of(slurm_toy, prior))
    states = slurm_toy.wait()
    assert (states[prior], states[f"{SECOND}/S3.Prior"]) == ("failed", "held")
    failure = api.status(slurm_toy.run_dir).tasks[prior].failure
    assert failure is not None
    assert (failure.kind, "CANCELLED" in failure.message) == ("node", True)
    flag.unlink()
    assert slurm_toy.submit().jobs == []
    assert slurm_toy.submit(retry_failed=True).repaired == 1
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])


def test_split_arrays_of_simulations_that_share_their_spin_up_wait_element_by_element(
    slurm_toy: Any, slurm: Any
) -> None:
    """Eight tasks a step in arrays of at most three; only four in the spin-up that is shared."""
    site_option(slurm_toy, max_array_size=3)
    slurm_toy.tree["simulations"] = ["S3", "CO2"]
    run = slurm_toy.tree["run"]
    run["tiles"] = {"count": 2, "merge": "cat {inputs} > {output}"}
    run["command"] += " {tile}"
    run["phases"][0].update(cycles=1, luc=1900)
    run["phases"][1].update(luc="yearly", segment_years=124)
    slurm_toy.write()
    opened = gate(slurm_toy, '[ "$first" = 1900 ]', "Prior", "Posterior")
    result = slurm_toy.submit()
    jobs = {step: [j for j, s, _ in result.jobs if s == step] for _, step, _ in result.jobs}
    rows = {
        str(i.job_id): i.rows for i in api.status(slurm_toy.run_dir).run.journal.intents().values()
    }
    spinup, historical = jobs["run-spinup"], jobs["run-historical"]
    assert [rows[j] for j in spinup] == [(1, 2, 3), (4,)]
    waits = {rows[j]: slurm.dependency(j).replace("(unfulfilled)", "") for j in historical}
    # Rows 1-4 are of S3, 5-8 of CO2, which needs the same restarts: row 5 those of row 1.
    assert waits == {
        (1, 2, 3): f"aftercorr:{spinup[0]}_*",
        (4,): f"afterok:{spinup[1]}",
        (5, 6, 7): f"aftercorr:{spinup[0]}_*",
        (8,): f"afterok:{spinup[1]}",
    }
    opened.touch()
    assert all_done(slurm_toy.wait())
    assert len(slurm_toy.ledger()) == 12


def test_what_failed_of_an_array_is_one_array_again_and_what_waited_for_it_is_repaired(
    slurm_toy: Any, slurm: Any
) -> None:
    """Two tiles of eight fail; the next segment and the merges are in the queue already."""
    run = slurm_toy.tree["run"]
    run["tiles"] = {"count": 4, "merge": "cat {inputs} > {output}"}
    run["command"] += " {tile}"
    two_steps(slurm_toy)
    flag, opened = slurm_toy.folder / "broken", slurm_toy.folder / "gate"
    flag.touch()
    fails = '[ "$first:$5" != 1901:%d ] || { [ ! -e "%s" ] || exit 3; %s; }\n'
    closed = f'until [ -e "{opened}" ]; do sleep 0.2; done'
    slurm_toy.parameters("Prior", fails % (2, flag, closed))
    slurm_toy.parameters("Posterior", fails % (1, flag, closed))
    _, result = api.submit(slurm_toy.experiment, only="run", say=slurm_toy.said.append)
    _, merges = api.submit(slurm_toy.experiment, only="merge", say=slurm_toy.said.append)
    assert [n for _, _, n in [*result.jobs, *merges.jobs]] == [8, 8, 2]
    second, merge = result.jobs[1][0], merges.jobs[0][0]
    states = slurm_toy.wait()
    assert [n for n, s in enumerate(states.values(), 1) if s != "done"] == [2, 5, 10, 13]
    # Slurm forgets at once an element that is cancelled while it is pending.
    slurm.run("scancel", f"{merge}_1")
    flag.unlink()
    again = slurm_toy.submit(retry_failed=True)
    assert [(step, n) for _, step, n in again.jobs] == [(FIRST, 2)]
    assert again.repaired == 2
    new = again.jobs[0][0]
    assert set(slurm.run("squeue", "-h", "-r", "-j", new, "-o", "%K").split()) == {"2", "5"}
    # Both with one command: each element waits for its like.
    for element in (f"{second}_2", f"{second}_5"):
        assert slurm.dependency(element) == f"aftercorr:{new}_*(unfulfilled)"
    _, merges = api.submit(slurm_toy.experiment, only="merge", say=slurm_toy.said.append)
    # The merge that is left waits for the whole array, which can succeed again. The new one waits
    # for the one tile that is missing.
    assert merges.repaired == 0
    assert [n for _, _, n in merges.jobs] == [1]
    assert slurm.dependency(f"{merge}_2") == f"afterok:{second}_*(unfulfilled)"
    assert slurm.dependency(merges.jobs[0][0]) == f"afterok:{second}_2(unfulfilled)"
    opened.touch()
    assert all_done(slurm_toy.wait())
    tasks = api.status(slurm_toy.run_dir).tasks
    assert {t.state for t in tasks.values() if t.step.kind == "merge"} == {"done"}
    assert len(slurm_toy.ledger()) == 18


def test_a_packed_job_that_is_killed_is_resumed_as_one_and_nobody_else_is_harmed(
    slurm_toy: Any, slurm: Any
) -> None:
    """Three tiles share a job. One fails, is tried again on its own while the others go on; then
    the whole job is killed, without a word."""
    run = slurm_toy.tree["run"]
    run["tiles"] = {"count": 3, "merge": "cat {inputs} > {output}"}
    run["command"] += " {tile}"
    two_steps(slurm_toy, pack=3)
    flag, opened = slurm_toy.folder / "broken", slurm_toy.folder / "gate"
    flag.touch()
    closed = f'until [ -e "{opened}" ]; do sleep 0.2; done'
    slurm_toy.parameters(
        "Prior",
        f'if [ "$first:$5" = 1901:2 ]; then [ ! -e "{flag}" ] || exit 3;'
        f' elif [ "$first" = 1901 ]; then {closed}; fi\n',
    )
    assert [n for _, _, n in slurm_toy.submit().jobs] == [6, 6]
    tiles = [f"{FIRST}/S3.Prior.t0{n}" for n in (1, 2, 3)]
    wait_for(lambda: slurm_toy.states()[tiles[1]] == "failed" and len(slurm_toy.ledger()) >= 6)
    element = job_of(slurm_toy, tiles[0])
    flag.unlink()
    # Twice: the second call finds a job whose second task is not its own any more.
    assert [(s, n) for _, s, n in slurm_toy.submit(retry_failed=True).jobs] == [(FIRST, 1)]
    wait_for(lambda: slurm_toy.states()[tiles[1]] == "done")
    assert slurm_toy.submit(retry_failed=True).jobs == []
    assert [slurm_toy.states()[tile] for tile in tiles] == ["running", "done", "running"]
    slurm.run("scancel", "--signal=KILL", "--full", element)
    states = slurm_toy.wait()
    assert [states[tile] for tile in tiles] == ["failed", "done", "failed"]
    opened.touch()
    again = slurm_toy.submit(retry_failed=True)
    assert [(step, n) for _, step, n in again.jobs] == [(FIRST, 2)]
    assert all_done(slurm_toy.wait())
    first, second = "prior 1901 1962 after 0", "prior 1963 2024 after 62"
    assert [slurm_toy.ledger().count(line) for line in (first, second)] == [6, 3]
    assert len(slurm_toy.ledger()) == 15


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killing_resume_before_or_after_a_repair_runs_nothing_twice(
    slurm_toy: Any, slurm: Any, tmp_path: Path, moment: str
) -> None:
    two_steps(slurm_toy)
    flag = slurm_toy.folder / "broken"
    flag.touch()
    opened = gate(slurm_toy, f'[ "$first" = 1901 ] && [ -e "{flag}" ]', "Prior")
    with (slurm_toy.folder / "prior.sh").open("a") as script:
        script.write(f'[ "$first" != 1901 ] || [ ! -e "{flag}" ]\n')
    # It fails when what waits for it is in the queue.
    slurm_toy.submit()
    opened.touch()
    assert slurm_toy.wait()[f"{SECOND}/S3.Prior"] == "held"
    flag.unlink()
    killed = killed_at(
        "scontrol", moment, tmp_path, f"api.resume(Path({str(slurm_toy.run_dir)!r}))"
    )
    assert killed.returncode == -signal.SIGKILL
    assert "repaired" not in slurm_toy.journal()
    result = slurm_toy.submit(retry_failed=True)
    # Repaired again where that was not written down: it is the same dependency.
    assert (result.jobs, result.repaired) == ([], 1)
    assert all_done(slurm_toy.wait())
    assert slurm_toy.ledger() == sorted([*TWO_STEPS, "prior 1901 1962 after 0"])


@pytest.fixture(scope="module")
def overdue(
    strict_slurm: Any, toy_in: Any, slurm_site: dict[str, Any], tmp_path_factory: Any
) -> Iterator[Any]:
    """A toy on a Slurm of its own, submitted; its first segments run until Slurm ends them, at
    the shortest limit that Slurm knows, a minute. One hears it (TERM), one is too far gone."""
    toy = toy_in(tmp_path_factory.mktemp("overdue"), slurm_site)
    toy.tree["retry"] = {"walltime": {"times": 1, "walltime": 2}}
    two_steps(toy, walltime="00:01:00")
    flag = toy.folder / "slow"
    flag.touch()
    deaf = "kill -STOP \"$(ps -o ppid= -p $PPID | tr -d ' ')\""
    slow = f'[ "$first" != 1901 ] || [ ! -e "{flag}" ] || {{ %s; sleep 600; }}\n'
    toy.parameters("Prior", slow % ":")
    toy.parameters("Posterior", slow % deaf)
    with strict_slurm.as_ours():
        toy.submit()
    yield toy
    with strict_slurm.as_ours():
        api.cancel(toy.run_dir, say=lambda _: None)


@pytest.fixture(scope="module", autouse=True)
def _begin_with_what_takes_longest(request: pytest.FixtureRequest) -> None:
    """Submit the overdue jobs before the first test, so that their minute passes meanwhile."""
    if any("overdue" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("overdue")


def test_a_job_over_its_time_limit_is_classified_even_when_slurm_has_forgotten_it(
    overdue: Any, strict_slurm: Any
) -> None:
    with strict_slurm.as_ours():
        prior, posterior = f"{FIRST}/S3.Prior", f"{FIRST}/S3.Posterior"
        wait_for(lambda: overdue.states()[posterior] == "failed")
        wait_for(lambda: overdue.states()[prior] == "failed")
        for forgotten in (False, True):
            if forgotten:
                strict_slurm.cancel_all()
                strict_slurm.forget_jobs()
            failures = [api.status(overdue.run_dir).tasks[r].failure for r in (prior, posterior)]
            assert [f and f.kind for f in failures] == ["walltime", "walltime"], failures
        (overdue.folder / "slow").unlink()
        again = overdue.submit(retry_failed=True).jobs
        assert [(step, n) for _, step, n in again] == [(FIRST, 2), (SECOND, 2)]
        asked = strict_slurm.run("squeue", "-h", "-t", "all", "-o", "%l", "-j", again[0][0])
        assert set(asked.split()) == {"2:00"}
        assert all_done(overdue.wait())
        again = ["prior 1901 1962 after 0", "posterior 1901 1962 after 0"]
        assert overdue.ledger() == sorted([*TWO_STEPS, *again])
