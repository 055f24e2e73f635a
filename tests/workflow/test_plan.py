"""The graph of an experiment: segments, tasks, what waits for what, and when a key changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.config.chain import segments
from callmip_global.config.plan import Plan, plan_from_json, run_context, tasks_table
from callmip_global.config.schema import Phase
from callmip_global.workflow.api import plan_experiment


def plan_of(toy: Any) -> Plan:
    toy.write()
    return plan_experiment(toy.experiment)[0]


def changed(before: Plan, after: Plan) -> set[str]:
    """Tasks whose key is another one."""
    old, new = before.keys(), after.keys()
    return {ref for ref in old | new if old.get(ref) != new.get(ref)}


@given(
    first=st.integers(1700, 1900),
    length=st.integers(1, 120),
    cut=st.integers(1, 150),
    cycles=st.integers(1, 3),
)
def test_segments_cover_each_year_of_each_cycle_once_and_in_order(
    first: int, length: int, cut: int, cycles: int
) -> None:
    phase = Phase.model_validate(
        {
            "name": "p",
            "years": [first, first + length - 1],
            "cycles": cycles,
            "climate": "actual",
            "co2": "yearly",
            "segment_years": cut,
        }
    )
    found = segments((phase,))
    years = [y for s in found for y in range(s.first_year, s.last_year + 1)]
    assert years == list(range(first, first + length)) * cycles
    assert all(1 <= s.n_years == s.last_year - s.first_year + 1 <= cut for s in found)
    assert len({s.name for s in found}) == len(found)


def test_one_labelled_year_stands_for_a_whole_pass_over_the_recycled_climate() -> None:
    phase = Phase.model_validate(
        {"name": "spinup", "years": [1700, 1700], "cycles": 2, "co2": 1700,
         "climate": {"recycle": [1901, 1920]}}
    )  # fmt: skip
    assert [(s.name, s.n_years) for s in segments((phase,))] == [
        ("run-spinup-c01", 20),
        ("run-spinup-c02", 20),
    ]


def test_the_graph_of_the_toy_worked_by_hand(toy: Any) -> None:
    plan = plan_of(toy)
    assert [(s.name, len(s.tasks)) for s in plan.steps] == [
        ("run-spinup-c01", 2),
        ("run-spinup-c02", 2),
        ("run-historical-1901-1962", 2),
        ("run-historical-1963-2024", 2),
        ("harmonize", 2),
        ("regrid", 2),
        ("export", 2),
    ]
    upstream = {f"{s.name}/{t.id}": t.upstream for s, t in plan.tasks()}
    assert upstream["run-spinup-c01/S3.Prior"] == ()
    assert upstream["run-spinup-c02/S3.Prior"] == ("run-spinup-c01/S3.Prior",)
    # Only the last segment holds delivered years (2005-2024).
    assert upstream["harmonize/S3.Posterior"] == ("run-historical-1963-2024/S3.Posterior",)
    assert plan.step("run-historical-1901-1962").outputs == {}
    assert plan.step("run-historical-1963-2024").outputs == {"out/mon_1963.txt": 240}


def test_members_and_tiles_are_tasks_and_tiles_are_merged(toy: Any) -> None:
    for member in (1, 2, 3):
        (toy.folder / f"member_{member:03d}.sh").write_text(":\n")
    toy.tree["stages"]["Posterior"] = {
        "parameters": "member_{member:03d}.sh",
        "members": 3,
        "scenario": 1,
    }
    toy.tree["run"]["command"] += " {tile}"
    toy.tree["run"]["tiles"] = {"count": 2, "merge": "cat {inputs} > {output}"}
    plan = plan_of(toy)
    last = plan.step("run-historical-1963-2024")
    assert [t.id for t in last.tasks] == [
        "S3.Prior.t01",
        "S3.Prior.t02",
        "S3.Posterior.m001.t01",
        "S3.Posterior.m001.t02",
        "S3.Posterior.m002.t01",
        "S3.Posterior.m002.t02",
        "S3.Posterior.m003.t01",
        "S3.Posterior.m003.t02",
    ]
    merge = {t.id: t.upstream for t in plan.step("merge").tasks}
    assert merge["S3.Posterior.m002"] == (
        "run-historical-1963-2024/S3.Posterior.m002.t01",
        "run-historical-1963-2024/S3.Posterior.m002.t02",
    )
    assert [t.upstream for t in plan.step("harmonize").tasks][2] == ("merge/S3.Posterior.m002",)


def test_a_simulation_holds_what_it_does_not_vary(toy: Any) -> None:
    toy.tree["simulations"] = ["S3", "CO2"]
    plan = plan_of(toy)
    step = plan.step("run-historical-1963-2024")
    tasks = {t.id: run_context(plan, step, t) for t in step.tasks}
    s3, co2 = tasks["S3.Prior"], tasks["CO2.Prior"]
    assert (s3["climate"], s3["climate_first_year"], s3["co2"]) == ("actual", 1963, "yearly")
    assert (co2["climate"], co2["climate_first_year"], co2["climate_last_year"]) == (
        "recycle",
        1901,
        1920,
    )
    assert co2["co2"] == "yearly"


def test_the_plan_survives_json(toy: Any) -> None:
    plan = plan_of(toy)
    tables = {step.name: tasks_table(step.tasks) for step in plan.steps}
    value = json.loads(json.dumps(plan.to_json()))
    again = plan_from_json(value, "plan.json", lambda name, digest: tables[name])
    assert json.dumps(again.to_json()) == json.dumps(plan.to_json())
    assert again.keys() == plan.keys()


def test_where_something_runs_changes_no_key(toy: Any) -> None:
    before = plan_of(toy)
    toy.tree["resources"] = {"run": {"memory": "5GB", "walltime": "09:00:00", "cpus": 4}}
    assert changed(before, plan_of(toy)) == set()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda toy: toy.parameters("Prior", "# other\n"), lambda ref: "Prior" in ref),
        (
            lambda toy: toy.tree["run"]["phases"][1].update(co2=1901),
            lambda ref: "spinup" not in ref,
        ),
        (lambda toy: toy.tree["output"].update(grid="1deg"), lambda ref: ref[:3] in ("reg", "exp")),
        (lambda toy: toy.tree["run"].update(environment="export LEDGER=/x"), lambda ref: True),
        (
            lambda toy: toy.tree["stages"]["Posterior"].update(scenario=2),
            lambda ref: "Posterior" in ref,
        ),
    ],
    ids=["parameter-file", "forcing-of-a-phase", "grid", "environment", "scenario"],
)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(
    toy: Any, change: Callable[[Any], None], wanted: Callable[[str], bool]
) -> None:
    before = plan_of(toy)
    change(toy)
    assert changed(before, plan_of(toy)) == {ref for ref in sorted(before.keys()) if wanted(ref)}


def test_another_mask_scores_again_and_nothing_else(toy: Any) -> None:
    """The path is seen from the experiment file; its content belongs to what the scores are of."""
    products = (
        "products:\n  A: {variable: gpp, path: none.nc, units: gC m-2 day-1, kind: upscaled}\n"
    )
    (toy.folder / "products.yaml").write_text(products)
    (toy.folder / "none.nc").touch()
    mask = toy.folder / "mask.nc"
    axes = {"lat": [-45.0, 45.0], "lon": [-90.0, 90.0]}
    xr.Dataset({"inside": (("lat", "lon"), np.eye(2))}, axes).to_netcdf(mask)
    toy.tree["benchmark"] = {"products": "products.yaml"}
    without = plan_of(toy)
    toy.tree["benchmark"]["regions"] = ["global", "mine=mask.nc:inside"]
    before = plan_of(toy)
    assert before.settings["regions"] == ["global", f"mine={mask}:inside"]
    assert str(mask) in before.inputs
    xr.Dataset({"inside": (("lat", "lon"), np.ones((2, 2)))}, axes).to_netcdf(mask)
    after = plan_of(toy)
    for old, new in ((without, before), (before, after)):
        assert {ref.split("/")[0] for ref in changed(old, new)} == {"benchmark", "report"}


def test_plan_prints_json_for_scripts_and_a_graph_for_graphviz(toy: Any) -> None:
    value = json.loads(toy.cli("plan", str(toy.experiment), "--json").stdout)
    assert {"steps", "tasks", "core_hours"} <= set(value)
    assert len(value["tasks"]) == 14
    dot = toy.cli("plan", str(toy.experiment), "--dot").stdout
    assert '"run-spinup-c01" -> "run-spinup-c02";' in dot
    table = toy.cli("plan", str(toy.experiment)).stdout
    assert "14 tasks" in table


def test_what_is_wrong_with_an_experiment_is_exit_code_2_and_nothing_is_submitted(toy: Any) -> None:
    toy.tree["run"]["colour"] = "red"
    toy.write()
    done = toy.cli("submit", str(toy.experiment))
    assert done.returncode == 2
    assert "colour" in done.stderr
    assert "Traceback" not in done.stderr
    assert not toy.run_dir.exists()
