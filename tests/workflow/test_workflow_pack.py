"""Packed tasks: several small tasks side by side in one job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from callmip_global.workflow import api
from callmip_global.workflow.journal import Intent


@pytest.fixture
def tiled(toy: Any) -> Any:
    """The toy with five tiles, three of which share a job."""
    run = toy.tree["run"]
    run["command"] += " {tile}"
    run["tiles"] = {"count": 5, "merge": "cat {inputs} > {output}"}
    toy.tree["resources"]["run"]["pack"] = 3
    toy.write()
    return toy


def intents(toy: Any) -> list[Intent]:
    from callmip_global.workflow.rundir import RunDir

    return list(RunDir(toy.run_dir).journal.intents().values())


def test_packs_are_the_elements_of_the_job_and_chains_stay_element_by_element(tiled: Any) -> None:
    tiled.submit()
    # 10 tasks a step (2 stages x 5 tiles): rows 1-3, 4-6, 7-9, 10.
    assert [(len(i.rows), i.units) for i in intents(tiled)] == [(10, (1, 2, 3, 4))] * 4
    assert set(tiled.wait().values()) == {"done"}
    assert len(tiled.ledger()) == 40
    assert len(set(tiled.ledger())) == 8


def test_the_others_of_a_pack_are_not_harmed_and_only_what_failed_is_resumed(tiled: Any) -> None:
    flag = tiled.folder / "broken"
    flag.touch()
    # $5 is the tile.
    tiled.parameters("Prior", f'[ "$5" != 2 ] || [ ! -e "{flag}" ] || exit 3\n')
    tiled.submit()
    states = tiled.wait()
    first = {ref: state for ref, state in states.items() if ref.startswith("run-spinup-c01/")}
    assert [ref for ref, state in first.items() if state != "done"] == [
        "run-spinup-c01/S3.Prior.t02"
    ]
    assert first["run-spinup-c01/S3.Prior.t02"] == "failed"
    flag.unlink()
    before = len(intents(tiled))
    tiled.submit(retry_failed=True)
    assert intents(tiled)[before].rows == (2,)
    for _ in range(3):
        if set(tiled.wait().values()) == {"done"}:
            break
        tiled.submit(retry_failed=True)
    assert set(tiled.states().values()) == {"done"}
    # Nothing that was done ran again: one call more, the one that failed.
    assert len(tiled.ledger()) == 41


def test_a_task_whose_process_was_killed_is_spoken_for(tiled: Any) -> None:
    flag = tiled.folder / "fatal"
    flag.touch()
    # The grandparent of the model's shell is the process of the task.
    kill = "kill -9 \"$(ps -o ppid= -p $PPID | tr -d ' ')\"; sleep 1"
    tiled.parameters("Prior", f'[ "$5" != 1 ] || [ ! -e "{flag}" ] || {{ {kill}; }}\n')
    tiled.submit()
    tiled.wait()
    state = api.status(tiled.run_dir).tasks["run-spinup-c01/S3.Prior.t01"]
    assert state.state == "failed"
    assert state.failure is not None
    assert state.failure.kind == "memory"
    assert "killed" in state.failure.message


def test_plan_counts_jobs_not_tasks(tiled: Any) -> None:
    value = json.loads(tiled.cli("plan", str(tiled.experiment), "--json").stdout)
    step = value["steps"][0]
    assert (step["tasks"], step["core_hours"]) == (10, pytest.approx(4 * 5 / 60))
