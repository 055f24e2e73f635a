"""Real chains: inner steps, restart sets, overlays, phases of some simulations, shared spin-up."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from callmip_global.config.chain import chain
from callmip_global.config.plan import Plan
from callmip_global.config.validate import check_experiment
from callmip_global.workflow.api import plan_experiment

RECYCLED = {"climate": {"recycle": [1901, 1920]}, "co2": 1900, "luc": 1900, "ndep": 1900}

# Each call adds its name to both restart files, and to a dump where it leaves one.
MODEL = """
set -e
name=$1 parameters=$2 write=$3
for file in soil.txt veg.txt dump_1.txt dump_2.txt; do
    was=
    if [ -f "restart_in/$file" ]; then was="$(cat "restart_in/$file") "; fi
    echo "$was$name" > "restart_out/$file"
done
if [ "$write" = true ]; then echo "$name" > out/mon.txt; fi
"""


@pytest.fixture
def cable(toy: Any) -> Any:
    """A chain like CABLE-POP's in small: from zero, twice (a, b), the first cycle alone with b,
    land use in S3 only, transient, final."""
    (toy.folder / "model.sh").write_text(MODEL)
    inner = [
        {"name": "a", "restart_out": ["soil.txt", "veg.txt", "dump_*.txt"]},
        {
            "name": "b",
            "cycles": 1,
            "restart_in": {"soil.txt": "latest", "veg.txt": "zero", "dump_*.txt": "latest"},
        },
    ]
    toy.tree["simulations"] = ["S3", "CO2"]
    run = toy.tree["run"]
    model = shlex.quote(str(toy.folder / "model.sh"))
    run["command"] = f"bash {model} {{options.label}} {{parameters}} {{write_output}}"
    run["options"] = {"label": "none"}
    run["restart"] = ["soil.txt", "veg.txt"]
    run["outputs"] = {"mon": "out/mon.txt"}
    run["phases"] = [
        {"name": "zero", "years": [1841, 1860], "options": {"label": "zero"}, **RECYCLED},
        {"name": "equi", "years": [1841, 1860], "cycles": 2, "options": {"label": "equi"},
         "steps": inner, **RECYCLED},
        {"name": "landuse", "years": [1841, 1860], "simulations": ["S3"],
         "options": {"label": "landuse"}, "restart_out": ["veg.txt"], **RECYCLED},
        {"name": "final", "years": [1861, 2024], "climate": "actual", "co2": "yearly",
         "luc": "yearly", "options": {"label": "final"}},
    ]  # fmt: skip
    toy.write()
    return toy


def plan_of(toy: Any) -> Plan:
    toy.write()
    return plan_experiment(toy.experiment)[0]


def problems(toy: Any) -> list[str]:
    toy.write()
    return [str(problem).split(": ", 1)[1] for problem in check_experiment(toy.experiment)[1]]


def test_inner_steps_are_segments_in_every_cycle_they_are_asked_for(cable: Any) -> None:
    names = [step.name for step in plan_of(cable).steps if step.kind == "run"]
    assert names == [
        "run-zero",
        "run-equi-c01-a",
        "run-equi-c01-b",
        "run-equi-c02-a",
        "run-landuse",
        "run-final",
    ]


def test_each_restart_file_comes_from_the_segment_that_left_it(cable: Any) -> None:
    from callmip_global.config.load import load_experiment

    run = load_experiment(cable.experiment).experiment.run
    sources = {link.segment.name: dict(link.restart_in) for link in chain(run, "S3")}
    both = ("soil.txt", "veg.txt")
    assert sources["run-zero"] == {}
    assert sources["run-equi-c01-a"] == dict.fromkeys(both, "run-zero")
    assert sources["run-equi-c01-b"] == {
        "soil.txt": "run-equi-c01-a",
        "veg.txt": "run-zero",
        "dump_*.txt": "run-equi-c01-a",
    }
    assert sources["run-landuse"] == dict.fromkeys(both, "run-equi-c02-a")
    assert sources["run-final"] == {"soil.txt": "run-equi-c02-a", "veg.txt": "run-landuse"}
    co2 = {link.segment.name: dict(link.restart_in) for link in chain(run, "CO2")}
    assert "run-landuse" not in co2
    assert co2["run-final"] == dict.fromkeys(both, "run-equi-c02-a")


def test_simulations_share_what_is_identical_and_only_that(cable: Any) -> None:
    plan = plan_of(cable)
    shared = {
        step.name: [(task.id, task.shared_by) for task in step.tasks if task.stage == "Prior"]
        for step in plan.steps
        if step.kind == "run"
    }
    together = [("S3.Prior", ("CO2",))]
    assert shared["run-zero"] == shared["run-equi-c02-a"] == together
    assert shared["run-landuse"] == [("S3.Prior", ())]
    assert shared["run-final"] == [("S3.Prior", ()), ("CO2.Prior", ())]
    final = plan.step("run-final").tasks
    assert final[2].upstream == ("run-equi-c02-a/S3.Prior",)


def test_what_may_differ_is_not_shared(cable: Any) -> None:
    run = cable.tree["run"]
    four = ["S3.Prior", "S3.Posterior", "CO2.Prior", "CO2.Posterior"]
    command = run["command"]
    run["command"] += " {simulation}"
    assert [task.id for task in plan_of(cable).step("run-zero").tasks] == four
    # Land use that changes in S3 and not in CO2, and a model that is told of it.
    run["phases"] = [run["phases"][0], run["phases"][3]]
    run["phases"][0]["luc"] = "yearly"
    run["command"] = f"{command} {{luc}}"
    assert [task.id for task in plan_of(cable).step("run-zero").tasks] == four
    run["command"] = command
    assert [task.id for task in plan_of(cable).step("run-zero").tasks] == four[:2]


def test_stages_never_share_even_with_equal_parameters(cable: Any) -> None:
    assert len(plan_of(cable).step("run-zero").tasks) == 2


def test_the_chain_runs_with_its_restart_sets(cable: Any) -> None:
    cable.submit()
    assert set(cable.wait().values()) == {"done"}
    left = {}
    for simulation in ("S3", "CO2"):
        folder = cable.run_dir / "steps" / "run-final" / f"{simulation}.Prior" / "attempt-01"
        left[simulation] = [
            (folder / "restart_out" / name).read_text().strip() for name in ("soil.txt", "veg.txt")
        ]
    # soil: b reads a's, the second a reads b's; veg: b takes that of zero.
    soil = "zero equi equi equi"
    veg = "zero equi equi"
    assert left["S3"] == [f"{soil} final", f"{veg} landuse final"]
    assert left["CO2"] == [f"{soil} final", f"{veg} final"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda phases: phases[1]["steps"][1]["restart_in"].update({"moon.txt": "latest"}),
            "run.phases.1.steps.1.restart_in: found moon.txt, which no segment before leaves in S3,"
            " wanted one of the files that are left: dump_*.txt, soil.txt, veg.txt",
        ),
        (
            lambda phases: phases[3].update(restart_in={"soil.txt": "equ"}),
            "run.phases.3.restart_in: found 'equ', wanted latest or one of: zero, equi, landuse,"
            " final",
        ),
        (
            lambda phases: phases[2].update(simulations=["S2"]),
            "run.phases.2.simulations: found 'S2', wanted one of: S3, CO2",
        ),
        (
            lambda phases: phases[3].update(simulations=["S3"]),
            "run.phases.3.simulations: found no CO2, wanted all simulations. Its last years are"
            " what is delivered.",
        ),
        (
            lambda phases: phases[1].update(command="bash model.sh {colour}"),
            "run.phases.1.command: found '{colour}', wanted one of:",
        ),
        (
            lambda phases: phases[1]["steps"][0].update(files={"a.nml": "none.j2"}),
            "run.phases.1.steps.0.files.a.nml: found no file",
        ),
    ],
    ids=["restart", "source", "simulation", "last-phase", "command", "template"],
)
def test_a_mistake_in_a_chain_is_one_line(cable: Any, change: Any, line: str) -> None:
    change(cable.tree["run"]["phases"])
    found = problems(cable)
    assert any(text.startswith(line) for text in found), found


def test_a_start_from_zero_is_said_and_a_forgotten_restart_is_told(cable: Any) -> None:
    run = cable.tree["run"]
    run["restart"] = []
    run["phases"] = [run["phases"][0], run["phases"][3]]
    assert any(
        text.startswith("run.restart: found nothing, but 2 segments") for text in problems(cable)
    )
    run["phases"][1]["restart_in"] = []
    assert problems(cable) == []


def test_editing_an_overlay_reruns_its_phase_and_what_builds_on_it(cable: Any) -> None:
    before = plan_of(cable).keys()
    cable.tree["run"]["phases"][2]["options"]["label"] = "other"
    after = plan_of(cable).keys()
    changed = {ref for ref in before if before[ref] != after[ref]}
    s3 = {ref for ref in before if ref.partition("/")[2].startswith("S3")}
    early = {ref for ref in s3 if ref.startswith(("run-zero", "run-equi"))}
    assert changed == s3 - early


def test_the_executable_is_part_of_the_key(cable: Any) -> None:
    cable.tree["run"]["executables"] = {"model": "model.sh"}
    before = plan_of(cable).keys()
    with (cable.folder / "model.sh").open("a") as file:
        file.write("# other\n")
    after = plan_of(cable).keys()
    assert all(before[ref] != after[ref] for ref in before)
