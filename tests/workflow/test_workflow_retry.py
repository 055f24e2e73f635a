"""Failure classes and what is done about them: budgets, more time, more memory, the next action."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from waiting import wait_for

from callmip_global.jobs.scheduler import JobSpec, Submission
from callmip_global.jobs.slurm import Slurm
from callmip_global.workflow import api
from callmip_global.workflow.journal import Intent
from callmip_global.workflow.lease import Lease
from callmip_global.workflow.retry import Level, Verdict, level_of, verdict

STEP = "run-spinup-c01"
HOUR = 3600
GIB = 1024**3


def past(*classes: str) -> list[Lease]:
    """A task's submissions, each after a failure of a class ("": the first)."""
    return [
        Lease(Intent(f"t{i}", STEP, "", (1,), 1, 0, (), (), kind, None, None, None, ""), 1, "k")
        for i, kind in enumerate(classes)
    ]


@pytest.fixture
def planned(toy: Any) -> Any:
    """Plan and step of a toy that asks for 10 hours and 4 GiB, of a queue with 20 and 6."""
    queue = {"max_walltime": "20:00:00", "max_memory": "6GiB"}
    site = {"name": "here", "scheduler": "slurm", "queues": {"q": queue}, "default_queue": "q",
            "source": "none", "date": "2026-11-22"}  # fmt: skip
    (toy.folder / "site.yaml").write_text(yaml.safe_dump(site))
    toy.tree["resources"] = {
        "default": {"memory": "4GiB", "walltime": "10:00:00"},
    }
    toy.tree["retry"] = {
        "node": {"times": 2},
        "walltime": {"times": 3, "walltime": 1.5},
        "memory": {"times": 3, "memory": 1.25},
        "model": {"times": 0},
    }
    toy.write()
    plan = api.plan_experiment(toy.experiment)[0]
    return plan, plan.step(STEP)


def decide(planned: Any, kind: str, *classes: str, beyond_budget: bool = False) -> Verdict:
    return verdict(*planned, kind, past(*classes), beyond_budget=beyond_budget)


def test_a_class_is_tried_again_as_often_as_its_rule_says(planned: Any) -> None:
    assert decide(planned, "node", "") == Verdict("node", Level())
    assert decide(planned, "node", "", "node").refused == ""
    used_up = decide(planned, "node", "", "node", "node")
    assert "retry.node.times" in used_up.refused
    assert decide(planned, "node", "", "node", "node", beyond_budget=True).refused == ""
    assert decide(planned, "model", "").refused != ""


def test_one_class_does_not_use_up_the_budget_of_another(planned: Any) -> None:
    assert decide(planned, "node", "", "walltime", "memory", "node").refused == ""


def test_each_retry_asks_for_more_up_to_what_the_queue_gives(planned: Any) -> None:
    assert decide(planned, "walltime", "").level == Level(15 * HOUR, None)
    assert decide(planned, "walltime", "", "walltime").level == Level(20 * HOUR, None)
    at_the_limit = decide(planned, "walltime", "", "walltime", "walltime")
    assert "no more than 20:00:00" in at_the_limit.refused
    assert decide(planned, "memory", "").level == Level(None, 5 * GIB)
    assert decide(planned, "memory", "", "memory").level == Level(None, 6 * GIB)
    assert "no more than 6GB" in decide(planned, "memory", "", "memory", "memory").refused


def test_what_was_gained_is_kept_by_later_submissions(planned: Any) -> None:
    assert level_of(*planned, past("", "walltime")) == Level(15 * HOUR, None)
    assert decide(planned, "node", "", "walltime", "memory").level == Level(15 * HOUR, 5 * GIB)


def test_more_is_asked_for_on_the_command_line_over_the_script(tmp_path: Any) -> None:
    job = JobSpec("n", "s", tmp_path, "python", 1, 1, 1, 5 * GIB, 15 * HOUR)
    more = Slurm().resource_arguments(job)
    assert more == ("--mem=5120M", "--time=15:00:00")
    submission = Submission(tmp_path / "job.sh", "n", "t", (1, 2), resources=more)
    command = Slurm().submit_command(submission)
    assert set(more) < set(command[: command.index(str(tmp_path / "job.sh"))])


def test_a_retry_after_a_memory_failure_asks_slurm_for_more_memory(
    slurm_toy: Any, slurm: Any, calls: list[str]
) -> None:
    slurm_toy.tree["resources"]["run"]["memory"] = "100MiB"
    slurm_toy.tree["retry"] = {"memory": {"times": 1, "memory": 2.5}}
    slurm_toy.write()
    flag = slurm_toy.folder / "hungry"
    flag.touch()
    seen = slurm_toy.folder / "seen.txt"
    slurm_toy.parameters(
        "Prior",
        f'[ "$first" != 1901 ] || {{ echo "$SLURM_MEM_PER_NODE" >> "{seen}";'
        f' [ ! -e "{flag}" ] || {{ echo "oom-kill event" >&2; exit 1; }}; }}\n',
    )
    slurm_toy.submit()
    assert slurm_toy.wait()["run-historical-1901-1962/S3.Prior"] == "failed"
    state = api.status(slurm_toy.run_dir)
    failed = state.tasks["run-historical-1901-1962/S3.Prior"]
    assert failed.failure is not None
    assert failed.failure.kind == "memory"
    assert "asking for 250 MiB" in state.next_action(failed)
    flag.unlink()
    slurm_toy.submit(retry_failed=True)
    assert set(slurm_toy.wait().values()) == {"done"}
    assert seen.read_text().split() == ["100", "250"]


def test_what_has_used_up_its_retries_is_told_and_left(toy: Any) -> None:
    toy.tree["retry"] = {"model": {"times": 1}}
    toy.write()
    toy.parameters("Prior", "exit 3\n")
    toy.submit()
    toy.wait()
    assert len(toy.submit(retry_failed=True).jobs) > 0
    toy.wait()
    third = toy.submit(retry_failed=True)
    assert [job for job in third.jobs if job[1] == STEP] == []
    assert list(third.exhausted) == [f"{STEP}/S3.Prior"]
    told = toy.cli("resume", str(toy.run_dir))
    assert told.returncode == 1
    assert "retry.model.times" in told.stderr
    assert "beyond-budget" in toy.cli("status", str(toy.run_dir)).stdout
    assert len(toy.ledger()) == 6
    # Mended parameters are another key, which has no past.
    toy.parameters("Prior", ":\n")
    toy.submit(retry_failed=True)
    assert set(toy.wait().values()) == {"done"}


def test_watching_ends_when_nothing_is_alive(make_toy: Any, local_site: dict[str, Any]) -> None:
    toy = make_toy({**local_site, "poll_seconds": 1})
    toy.submit()
    told = toy.cli("status", str(toy.run_dir), "--watch")
    assert told.returncode == 0
    assert set(toy.states().values()) == {"done"}
    assert "run-spinup-c01" in told.stdout


def test_after_a_walltime_failure_a_segment_is_run_in_pieces_that_are_kept(toy: Any) -> None:
    """Each piece is finished once: a try that ends in the middle is gone on with."""
    model = (toy.folder / "model.sh").read_text()
    (toy.folder / "model.sh").write_text(
        model.replace("out/mon_$first.txt", "out/part.txt")
        + 'if [ "$write" = true ]; then for y in $(seq "$first" "$last"); do'
        ' [ "$y" -lt 2005 ] || echo "$y" > "out/mon_$y.txt"; done; fi\n'
    )
    toy.tree["run"]["outputs"] = {"mon": "out/mon_{year}.txt"}
    toy.tree["retry"] = {"walltime": {"times": 3, "segment_years": 25}}
    toy.write()
    flag = toy.folder / "late"
    toy.parameters(
        "Prior",
        '[ "$first-$last" != 1963-2024 ] ||'
        ' { echo "srun: CANCELLED DUE TO TIME LIMIT" >&2; exit 143; }\n'
        f'[ "$first" != 1988 ] || [ -e "{flag}" ] || {{ touch "{flag}"; exit 143; }}\n',
    )
    toy.submit()
    last = "run-historical-1963-2024/S3.Prior"
    assert toy.wait()[last] == "failed"
    state = api.status(toy.run_dir)
    failure = state.tasks[last].failure
    assert failure is not None
    assert failure.kind == "walltime"
    assert "in pieces of 25 years" in state.next_action(state.tasks[last])
    toy.submit(retry_failed=True)
    assert toy.wait()[last] == "failed"  # in its second piece, by a node
    toy.submit(retry_failed=True)
    assert set(toy.wait().values()) == {"done"}
    runs = [line for line in toy.ledger() if line.startswith("prior") and " 1901" not in line]
    assert [line for line in runs if "1900" not in line] == [
        "prior 1963 1987 after 64",
        "prior 1963 2024 after 64",
        "prior 1988 2012 after 89",
        "prior 1988 2012 after 89",
        "prior 2013 2024 after 114",
    ]
    marker = state.run.marker(last)
    assert marker is not None
    assert sorted(marker["outputs"]) == [f"out/mon_{year}.txt" for year in range(2005, 2025)]
    folder = state.run.task_dir(last) / marker["attempt"]
    assert (folder / "restart_out" / "years.txt").read_text() == "126\n"
    # They are removed after the result was published.
    wait_for(lambda: not (state.run.task_dir(last) / "pieces").exists())


def test_every_piece_has_the_restart_files_of_older_phases(toy: Any) -> None:
    """The piece before leaves what the segment leaves; the rest comes from where it came first."""
    model = (toy.folder / "model.sh").read_text()
    (toy.folder / "model.sh").write_text(
        model.replace("out/mon_$first.txt", "out/mon_$last.txt") + "echo b > restart_out/base.txt\n"
    )
    run = toy.tree["run"]
    run["outputs"] = {"mon": "out/mon_{year}.txt"}
    toy.tree["output"]["years"] = 1
    toy.tree["retry"] = {"walltime": {"times": 3, "segment_years": 31}}
    run["restart"] = ["years.txt", "base.txt"]
    run["phases"][1] |= {
        "restart_in": {"years.txt": "latest", "base.txt": "spinup"},
        "restart_out": ["years.txt"],
    }
    toy.write()
    toy.parameters(
        "Prior",
        '[ "$first" = 1900 ] || [ -f restart_in/base.txt ] || exit 9\n'
        '[ "$first-$last" != 1963-2024 ] ||'
        ' { echo "srun: CANCELLED DUE TO TIME LIMIT" >&2; exit 143; }\n',
    )
    toy.submit()
    last = "run-historical-1963-2024/S3.Prior"
    assert toy.wait()[last] == "failed"
    toy.submit(retry_failed=True)
    assert set(toy.wait().values()) == {"done"}
    assert "prior 1994 2024 after 95" in toy.ledger()
