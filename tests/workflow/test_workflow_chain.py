"""The chain of the toy experiment: each segment runs exactly once, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for

from callmip_global.errors import SchedulerError, UsageError
from callmip_global.workflow import api
from callmip_global.workflow.client import Client
from callmip_global.workflow.rundir import RunDir


def all_done(states: dict[str, str]) -> bool:
    return set(states.values()) == {"done"}


def test_a_chain_runs_each_segment_once_with_the_restart_of_the_one_before(
    toy: Any, calls: list[str]
) -> None:
    toy.submit()
    assert all_done(toy.wait())
    assert toy.ledger() == calls


def test_submitting_again_submits_nothing_that_is_alive_or_done(toy: Any, calls: list[str]) -> None:
    first = toy.submit()
    assert sum(n for _, _, n in first.jobs) == 8
    assert toy.submit().jobs == []
    toy.wait()
    assert toy.submit().jobs == []
    assert toy.ledger() == calls


def test_a_failing_segment_stops_its_chain_only_and_resume_runs_what_is_missing(
    toy: Any, calls: list[str]
) -> None:
    toy.parameters("Posterior", '[ "$first" != 1901 ] || { echo "no convergence" >&2; exit 3; }\n')
    toy.submit()
    states = toy.wait()
    assert states["run-historical-1901-1962/S3.Posterior"] == "failed"
    assert states["run-historical-1963-2024/S3.Posterior"] == "blocked"
    assert states["run-historical-1963-2024/S3.Prior"] == "done"
    task = api.status(toy.run_dir).tasks["run-historical-1901-1962/S3.Posterior"]
    assert task.failure is not None
    assert (task.failure.kind, task.failure.exit_code) == ("model", 3)
    assert task.failure.tail[-1] == "no convergence"
    # Submitting does not try a failed model again; resume does, and nothing that is done.
    assert toy.submit().jobs == []
    toy.parameters("Posterior", ":\n# mended\n")
    before = toy.ledger()
    api.submit(toy.experiment, only="run", retry_failed=True, say=toy.said.append)
    assert all_done(toy.wait())
    prior = [line for line in toy.ledger() if line.startswith("prior")]
    assert prior == [line for line in calls if line.startswith("prior")]
    # The parameter file changed, so the posterior chain is another one from its first segment on.
    after = [line for line in toy.ledger() if line.startswith("posterior")]
    assert sorted(after) == sorted(
        [line for line in before if line.startswith("posterior")]
        + [line for line in calls if line.startswith("posterior")]
    )


def test_resume_after_a_failure_that_was_not_in_the_files_repeats_no_finished_segment(
    toy: Any, calls: list[str]
) -> None:
    flag = toy.folder / "disk is full"
    flag.touch()
    toy.parameters("Prior", f'[ "$first" != 1963 ] || [ ! -e "{flag}" ] || exit 1\n')
    toy.submit()
    assert toy.wait()["run-historical-1963-2024/S3.Prior"] == "failed"
    flag.unlink()
    toy.submit(retry_failed=True)
    assert all_done(toy.wait())
    assert toy.ledger() == sorted([*calls, "prior 1963 2024 after 64"])
    attempts = sorted((toy.run_dir / "steps/run-historical-1963-2024/S3.Prior").glob("attempt-*"))
    assert [path.name for path in attempts] == ["attempt-01", "attempt-02"]


def test_editing_one_phase_reruns_it_and_what_depends_on_it_only(
    toy: Any, calls: list[str]
) -> None:
    toy.submit()
    toy.wait()
    toy.tree["run"]["phases"][1]["co2"] = 1901
    toy.write()
    toy.submit()
    assert all_done(toy.wait())
    again = [line for line in calls if " 1900 " not in line]
    assert toy.ledger() == sorted(calls + again)


def test_equal_input_gives_equal_bytes_and_a_dry_run_writes_what_submit_uses(
    toy: Any, make_toy: Callable[..., Any]
) -> None:
    run, plan = api.prepare(toy.experiment)
    assert len(api.dry_run_commands(run, plan)) == len(plan.steps)
    dry = {p: p.read_bytes() for p in sorted(run.path.rglob("*")) if p.is_file()}
    assert not (run.path / "journal.jsonl").exists()
    toy.submit()
    toy.wait()
    assert {p: p.read_bytes() for p in dry} == dry


def test_a_script_edited_by_hand_is_not_overwritten(toy: Any) -> None:
    api.prepare(toy.experiment)
    script = toy.run_dir / "jobs" / "run-spinup-c01" / "job.sh"
    script.write_text(script.read_text() + "# my own line\n")
    with pytest.raises(UsageError, match="edited by hand"):
        toy.submit()
    assert script.read_text().endswith("# my own line\n")


def test_a_run_directory_of_another_experiment_is_refused(
    toy: Any, make_toy: Callable[..., Any]
) -> None:
    api.prepare(toy.experiment)
    other = make_toy(name="other")
    with pytest.raises(UsageError, match="another one with --run-dir"):
        api.prepare(other.experiment, toy.run_dir)


def test_a_submission_whose_reply_is_lost_is_found_by_its_token_and_adopted(
    toy: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    real = Client.submit

    def crash_after_submitting(self: Client, submission: Any) -> Any:
        real(self, submission)
        raise Crash

    monkeypatch.setattr(Client, "submit", crash_after_submitting)
    with pytest.raises(Crash):
        toy.submit()
    assert toy.journal() == ["intent"]
    monkeypatch.setattr(Client, "submit", real)
    result = toy.submit()
    assert result.adopted == 1
    assert sum(n for _, _, n in result.jobs) == 6
    assert all_done(toy.wait())
    assert toy.ledger() == calls


def test_an_intent_that_never_reached_the_scheduler_is_submitted_anew(
    toy: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash_before_submitting(self: Client, submission: Any) -> Any:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Client, "submit", crash_before_submitting)
        with pytest.raises(Crash):
            toy.submit()
    monkeypatch.setattr("callmip_global.workflow.submit.SETTLE_S", 0.5)
    toy.submit()
    assert toy.journal()[:2] == ["intent", "lost"]
    assert all_done(toy.wait())
    assert toy.ledger() == calls


def test_a_scheduler_that_does_not_answer_changes_nothing(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.parameters("Prior", "sleep 600\n")
    toy.submit()
    before = (toy.run_dir / "journal.jsonl").read_bytes()

    def no_answer(self: Client) -> Any:
        raise SchedulerError("the scheduler is down")

    with monkeypatch.context() as patch:
        patch.setattr(Client, "jobs", no_answer)
        with pytest.raises(SchedulerError):
            toy.submit(retry_failed=True)
        state = api.status(toy.run_dir)
        assert state.trouble is not None
        assert state.tasks["run-historical-1963-2024/S3.Prior"].state == "unknown"
    assert (toy.run_dir / "journal.jsonl").read_bytes() == before


def test_cancel_stops_everything_and_submit_begins_where_it_was(toy: Any, calls: list[str]) -> None:
    flag = toy.folder / "wait"
    flag.touch()
    script = f'while [ -e "{flag}" ] && [ "$first" = 1901 ]; do sleep 0.1; done\n'
    toy.parameters("Prior", script)
    toy.parameters("Posterior", script)
    toy.submit()
    wait_for(lambda: sum(line.split()[1] == "1901" for line in toy.ledger()) == 2)
    assert api.cancel(toy.run_dir) == 2
    assert set(toy.wait().values()) == {"done", "cancelled"}
    flag.unlink()
    toy.submit()
    assert all_done(toy.wait())
    twice = [line for line in calls if " 1901 " in line]
    assert toy.ledger() == sorted(calls + twice)


def processes_of(folder: Path) -> list[int]:
    found = []
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit() and int(proc.name) != os.getpid():
            try:
                text = (proc / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in text:
                found.append(int(proc.name))
    return found


def test_killing_everything_at_once_and_resuming_repeats_no_finished_segment(
    toy: Any, calls: list[str]
) -> None:
    flag = toy.folder / "wait"
    flag.touch()
    slow = f'while [ -e "{flag}" ] && [ "$first" = 1901 ]; do sleep 0.1; done\n'
    toy.parameters("Prior", slow)
    toy.parameters("Posterior", slow)
    toy.submit()
    wait_for(lambda: sum(line.split()[1] == "1901" for line in toy.ledger()) == 2)
    while alive := processes_of(toy.folder):
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    flag.unlink()
    states = toy.states()
    assert states["run-spinup-c02/S3.Prior"] == "done"
    assert states["run-historical-1901-1962/S3.Prior"] == "failed"
    toy.submit(retry_failed=True)
    assert all_done(toy.wait())
    assert toy.ledger() == sorted(calls + [line for line in calls if " 1901 " in line])


def test_only_one_submit_at_a_time_and_a_dead_one_leaves_no_lock(toy: Any) -> None:
    run = RunDir(toy.run_dir)
    with run.lock(), pytest.raises(UsageError, match="locked by process"):
        toy.submit()
    code = "import os; os.kill(os.getpid(), 9)"
    killed = toy.python(
        "from pathlib import Path",
        "from callmip_global.workflow.rundir import RunDir",
        f"lock = RunDir(Path({str(toy.run_dir)!r})).lock()",
        "lock.__enter__()",
        code,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (toy.run_dir / ".lock").exists()
    assert sum(n for _, _, n in toy.submit().jobs) == 8
    assert not (toy.run_dir / ".lock").exists()


def test_status_is_one_json_entry_per_task(toy: Any) -> None:
    toy.submit()
    toy.wait()
    value = json.loads(toy.cli("status", str(toy.run_dir), "--json").stdout)
    assert len(value["tasks"]) == value["counts"]["done"] + value["counts"]["waiting"]
    assert {"step", "task", "state", "attempts", "failure"} <= set(value["tasks"][0])


def test_arrays_are_split_at_the_sites_largest_and_stay_in_step(
    make_toy: Callable[..., Any], local_site: dict[str, Any]
) -> None:
    toy = make_toy({**local_site, "max_array_size": 2})
    for member in (1, 2, 3, 4):
        (toy.folder / f"member_{member}.sh").write_text("sleep 0.5\n")
    toy.tree["stages"]["Posterior"] = {
        "parameters": "member_{member}.sh",
        "members": 4,
        "scenario": 1,
    }
    toy.write()
    toy.submit()
    jobs = RunDir(toy.run_dir).journal.intents().values()
    first = [(i.rows, i.offset) for i in jobs if i.step == "run-spinup-c01"]
    assert first == [((1, 2), 0), ((3, 4), 2), ((5,), 4)]
    assert all_done(toy.wait())
    assert len(toy.ledger()) == 20
    assert len(set(toy.ledger())) == 20


def test_a_site_without_arrays_gets_single_jobs(
    make_toy: Callable[..., Any], local_site: dict[str, Any], calls: list[str]
) -> None:
    toy = make_toy({**local_site, "arrays": False})
    assert [n for _, _, n in toy.submit().jobs] == [1] * 8
    assert all_done(toy.wait())
    assert toy.ledger() == calls


def test_submission_stops_at_the_queue_limit_and_goes_on_later(
    make_toy: Callable[..., Any], local_site: dict[str, Any], calls: list[str]
) -> None:
    toy = make_toy({**local_site, "max_queued": 4})
    flag = toy.folder / "wait"
    flag.touch()
    for stage in ("Prior", "Posterior"):
        toy.parameters(stage, f'while [ -e "{flag}" ]; do sleep 0.1; done\n')
    result = toy.submit()
    assert "max_queued of the site file (4)" in result.stopped
    assert sum(n for _, _, n in result.jobs) == 4
    flag.unlink()
    toy.wait()
    assert toy.submit().stopped == ""
    assert all_done(toy.wait())
    assert toy.ledger() == calls
