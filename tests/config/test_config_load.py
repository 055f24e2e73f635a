"""The experiment file: layers, presets, and every problem at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from callmip_global.config.load import load_experiment
from callmip_global.config.schema import (
    FixedForcing,
    Phase,
    PhaseForcing,
    Recycle,
    Simulation,
    phase_forcing,
)
from callmip_global.data import data_path
from callmip_global.errors import UsageError

Problems = Callable[..., list[str]]
FIXED = FixedForcing(climate=Recycle(recycle=(1901, 1920)), co2=1700, luc=1701, ndep=1702)


def test_an_experiment_is_read_as_written(group) -> None:
    loaded = load_experiment("experiment.yaml")
    experiment = loaded.experiment
    assert [s.name for s in experiment.simulations] == ["S3", "CO2"]
    assert experiment.simulations[0].varies == {"climate", "co2", "luc", "ndep"}
    assert experiment.simulations[1].varies == {"co2"}
    assert experiment.stages["Prior"].member_numbers == (None,)
    assert experiment.stages["Posterior"].member_numbers == (1, 2, 3)
    assert [p.n_years for p in experiment.run.phases] == [4, 200, 30]
    assert [p.n_segments for p in experiment.run.phases] == [2, 1, 3]
    assert experiment.delivered_years == (1911, 1930)
    assert loaded.base_dir == group.folder
    assert loaded.resolve("params/prior.txt") == group.folder / "params" / "prior.txt"
    assert loaded.site.path == group.folder / "site.yaml"
    assert loaded.fixed_forcing.climate.recycle == (1901, 1904)
    assert loaded.fixed_forcing.co2 == 1700


def test_each_layer_wins_over_the_one_below_and_every_value_knows_its_layer(group) -> None:
    site = (
        "defaults: {resources: {default: {account: ab12}, regrid: {cpus: 3, memory: 1GB},"
        ' run: {walltime: "05:00:00", cpus: 2}}}\n'
    )
    path = group.folder / "site.yaml"
    path.write_text(path.read_text(encoding="utf-8") + site, encoding="utf-8")
    loaded = load_experiment("experiment.yaml", overrides=["resources.run.tasks=8"])
    run, regrid = loaded.resources("run"), loaded.resources("regrid")
    assert (run.tasks, run.cpus, run.account) == (8, 2, "ab12")
    assert (run.memory_bytes, run.walltime_s, run.queue) == (16 * 1024**3, 36000, "normal")
    assert (regrid.cpus, regrid.memory_bytes, regrid.walltime_s) == (3, 1024**3, 3600)
    site_line = f"{path}:{group.line('defaults', 'site.yaml')}"
    run_line = f"experiment.yaml:{group.line('  run: {tasks')}"
    assert loaded.where("resources", "run", "tasks") == "--set resources.run.tasks=8"
    assert loaded.where("resources", "run", "memory") == run_line
    assert loaded.where("resources", "run", "account") == site_line
    assert loaded.where("resources", "regrid", "cpus") == site_line
    defaults = data_path("config", "defaults.yaml")
    assert loaded.where("resources", "regrid", "walltime").startswith(f"{defaults}:")


def test_the_default_of_a_file_gives_way_to_the_step_in_the_same_file_only(group) -> None:
    group.edit(("resources:\n", 'resources:\n  default: {memory: "3GB", tasks: 2}\n'))
    loaded = load_experiment("experiment.yaml")
    assert loaded.resources("run").memory_bytes == 16 * 1024**3
    assert loaded.resources("regrid").memory_bytes == 3 * 1024**3
    assert loaded.resources("regrid").cpus == 2


def test_presets_are_changed_and_own_simulations_are_spelled_out(group) -> None:
    group.edit(
        (
            "simulations: [S3, CO2]",
            "simulations: {S3: {}, CO2: {luc: vary}, S1: {ndep: fixed},"
            " OWN: {climate: vary, co2: fixed, luc: fixed, ndep: fixed}}",
        )
    )
    found = load_experiment("experiment.yaml").experiment.simulations
    assert {s.name: set(s.varies) for s in found} == {
        "S3": {"climate", "co2", "luc", "ndep"},
        "CO2": {"co2", "luc"},
        "S1": {"co2"},
        "OWN": {"climate"},
    }


@pytest.mark.parametrize(
    ("simulations", "line"),
    [
        ("[S3, CO]", "experiment.yaml:3: simulations: found 'CO', wanted one of: S0, S1, S2, S3,"),
        ("[S3, S3]", "experiment.yaml:3: simulations: found S3 twice, wanted each simulation once"),
        ("S3", "experiment.yaml:3: simulations: found 'S3', wanted a list: a list of simulations"),
        ("[]", "experiment.yaml:3: simulations: found [], wanted at least 1 of them"),
        ("[{S3: {}}]", "experiment.yaml:3: simulations: found {'S3': {}}, wanted a preset: S0,"),
        ("{S3: {luc: no}}", "experiment.yaml:3: simulations.S3.luc: found False, wanted vary or"),
        (
            "{S3: {lux: vary}}",
            "experiment.yaml:3: simulations.S3.lux: found an unknown key, wanted",
        ),
        (
            "{S9: {co2: vary}}",
            "experiment.yaml:3: simulations.S9: found nothing about climate",
        ),
    ],
)
def test_a_simulation_that_is_no_preset_is_refused(
    group, problems: Problems, simulations: str, line: str
) -> None:
    group.edit(("[S3, CO2]", simulations))
    (problem,) = problems()
    assert problem.startswith(line)


YEARS = st.integers(1, 9999)
LEVELS = YEARS | st.just("yearly")
CLIMATES = st.just("actual") | st.just(Recycle(recycle=(1951, 1960)))
VARIES = st.frozensets(st.sampled_from(["climate", "co2", "luc", "ndep"]))


@given(CLIMATES, LEVELS, st.none() | LEVELS, st.none() | LEVELS, VARIES)
def test_a_forcing_that_does_not_vary_never_changes_within_a_phase(
    climate, co2, luc, ndep, varies
) -> None:
    phase = Phase(name="p", years=(1901, 1910), climate=climate, co2=co2, luc=luc, ndep=ndep)
    forcing = phase_forcing(phase, Simulation(name="X", varies=varies), FIXED)
    for name in ("climate", "co2", "luc", "ndep"):
        written, value = getattr(phase, name), getattr(forcing, name)
        held = written not in ("actual", "yearly", None)
        if held or name in varies:
            assert value == written
        else:
            assert value == getattr(FIXED, name)
    assert not varies.isdisjoint({"climate", "co2", "luc", "ndep"}) or forcing.steady


def test_forcings_of_a_co2_only_run_by_hand() -> None:
    phase = Phase(name="h", years=(1901, 2024), climate="actual", co2="yearly", luc="yearly")
    forcing = phase_forcing(phase, Simulation(name="CO2", varies=frozenset({"co2"})), FIXED)
    assert forcing == PhaseForcing(Recycle(recycle=(1901, 1920)), "yearly", 1701, 1702)


@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 5))
def test_segments_cover_a_phase_and_none_is_empty(length: int, size: int, cycles: int) -> None:
    phase = Phase(
        name="p",
        years=(1601, 1600 + length),
        cycles=cycles,
        climate="actual",
        co2="yearly",
        segment_years=size,
    )
    per_cycle = phase.n_segments // cycles
    assert (per_cycle - 1) * size < phase.n_years <= per_cycle * size


CASES = {
    "unknown-key": (
        ("restart: [", "restat: ["),
        "13: run.restat: found an unknown key, wanted one of: environment, files, inputs,"
        " executables, options, command, restart, outputs, phases, tiles, calendar, fixed, disk."
        " Did you mean 'restart'?",
    ),
    "unknown-top-key": (
        ("site: site.yaml", "site: site.yaml\nqueue: normal"),
        "22: queue: found an unknown key, wanted one of: model, protocol, simulations, stages, run,"
        " variables, site, resources, output, benchmark, retry",
    ),
    "unquoted-walltime": (
        ('walltime: "10:00:00"', "walltime: 10:00:00"),
        "23: resources.run.walltime: found 10:00:00 without quotes, which YAML reads as 36000,"
        ' wanted "HH:MM:SS" or "D-HH:MM:SS", in quotes. Put the quotes around it.',
    ),
    "walltime-that-is-none": (
        ('walltime: "10:00:00"', 'walltime: "10h"'),
        '23: resources.run.walltime: found \'10h\', wanted "HH:MM:SS" or "D-HH:MM:SS", in quotes.'
        ' \'10h\' is not "HH:MM:SS" or "D-HH:MM:SS".',
    ),
    "memory-without-unit": (
        ('memory: "16GB"', "memory: 16000"),
        "23: resources.run.memory: found 16000, wanted a size with its unit, in quotes, e.g."
        ' "32GB". 16000 has no unit; write it as text, e.g. "32GB".',
    ),
    "no-resources-for-run": (
        (
            '  run: {tasks: 4, memory: "16GB", walltime: "10:00:00"}',
            "  run: {walltime: '01:00:00'}",
        ),
        "23: resources.run.memory: found nothing, wanted memory per node with its unit, in quotes,"
        ' e.g. "32GB"',
    ),
    "unknown-step": (
        ("  run: {tasks", "  regird: {}\n  run: {tasks"),
        "23: resources.regird: found an unknown key, wanted one of: run, merge, harmonize, regrid,"
        " benchmark, report, export, default. Did you mean 'regrid'?",
    ),
    "default-of-all-steps": (
        ("  run: {tasks", "  default: {cpu: 1}\n  run: {tasks"),
        "23: resources.default.cpu: found an unknown key, wanted one of: nodes, tasks, cpus,"
        " memory, walltime, queue, account, directives, pack, workers. Did you mean 'cpus'?",
    ),
    "number-as-version": (
        ("version: v1", "version: 1.0"),
        '1: model.version: found 1.0, wanted text: the model version, e.g. "v2". Write it in'
        ' quotes: "1.0".',
    ),
    "model-name-with-dot": (
        ("name: LAND", "name: LAND.2"),
        "1: model.name: found 'LAND.2', wanted letters, digits and '-', beginning with a letter or"
        " digit",
    ),
    "unknown-stage": (
        ("  Prior:", "  prior:"),
        "5: stages.prior: found an unknown key, wanted one of: Prior, Posterior."
        " Did you mean 'Prior'?",
    ),
    "years-backwards": (
        ("[1701, 1900]", "[1900, 1701]"),
        "17: run.phases.1.years: found [1900, 1701], wanted first <= last."
        " Did you mean [1701, 1900]?",
    ),
    "unknown-climate": (
        ("climate: actual", "climate: real"),
        "18: run.phases.2.climate: found 'real', wanted \"actual\" (the years of the phase) or"
        " {recycle: [first, last]}",
    ),
    "no-cycles": (
        ("cycles: 2", "cycles: 0"),
        "16: run.phases.0.cycles: found 0, wanted at least 1",
    ),
    "no-segment-years": (
        ("segment_years: 10", "segment_years: 0"),
        "18: run.phases.2.segment_years: found 0, wanted at least 1",
    ),
    "phase-twice": (
        ("name: transient", "name: spinup"),
        "15: run.phases: found a list of 3, wanted phases with different names."
        " spinup: used twice.",
    ),
    "unknown-grid": (
        ("grid: 1deg", "grid: 3deg"),
        "24: output.grid: found '3deg', wanted one of: '0.5deg', '1deg' or '2deg'",
    ),
    "output-outside": (
        ('mon: "out/', 'mon: "../out/'),
        "14: run.outputs.mon: found '../out/{variable}_{year}.nc', wanted a path inside the working"
        " folder of the task (no leading /, no ..)",
    ),
    "more-nodes-than-tasks": (
        ("tasks: 4", "nodes: 8, tasks: 4"),
        "23: resources.run: found a mapping (nodes, tasks, memory, walltime), wanted at least one"
        " task per node: 8 nodes, 4 tasks",
    ),
    "unknown-site": (
        ("site: site.yaml", "site: gady"),
        "21: site: found 'gady', wanted one of: archer2, derecho, gadi, jasmin-lotus2, jean-zay,"
        " levante, local, pbs, perlmutter, slurm. Did you mean 'gadi'?",
    ),
    "unknown-protocol": (
        ("callmip-phase1-global", "callmip-phase1"),
        "2: protocol: found 'callmip-phase1', wanted one of: callmip-phase1-global."
        " Did you mean 'callmip-phase1-global'?",
    ),
    "no-command": (
        ('  command: "./land namelist.txt {first_year}"\n', ""),
        '7: run.command: found nothing, wanted the shell command, e.g. "srun ./model namelist.txt"',
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_mistake_is_one_line(group, problems: Problems, case: str) -> None:
    change, line = CASES[case]
    group.edit(change)
    assert problems() == [f"experiment.yaml:{line}"]


def test_all_mistakes_come_at_once_with_those_of_the_disk(
    group, problems: Problems, golden: Callable[[str, str], None]
) -> None:
    for name in ("unknown-key", "unquoted-walltime", "number-as-version", "unknown-stage"):
        group.edit(CASES[name][0])
    group.edit(("grid: 1deg", "grid: 3deg"), ("params/prior.txt", "params/none.txt"))
    group.edit(('climate: "forcing/', 'climate: "absent/'), ("[S3, CO2]", "[S3, C02]"))
    group.edit(("max_nodes: 4", "max_node: 4"), file="site.yaml")
    (group.folder / "params" / "posterior_002.txt").unlink()
    found = problems("run.phases.9.cycles=1", "output.years=twenty")
    golden("config/all_problems.txt", "".join(f"{line}\n" for line in found))


def test_load_raises_with_all_problems_and_exit_code_2(group) -> None:
    group.edit(CASES["unknown-key"][0], CASES["unknown-grid"][0])
    with pytest.raises(UsageError) as caught:
        load_experiment("experiment.yaml")
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 2


def test_the_resolved_tree_is_an_experiment_file_that_gives_the_same_experiment(group) -> None:
    group.edit(("[S3, CO2]", "{S3: {}, CO2: {luc: vary}}"))
    loaded = load_experiment("experiment.yaml", overrides=["run.phases.0.cycles=7"])
    text = yaml.safe_dump(loaded.sources.value, sort_keys=False)
    (group.folder / "resolved.yaml").write_text(text, encoding="utf-8")
    assert load_experiment("resolved.yaml").experiment == loaded.experiment


def test_a_slip_in_the_defaults_of_a_site_names_the_site_file(group, problems: Problems) -> None:
    path = group.folder / "site.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "defaults: {outputs: {grid: 2deg}}\n")
    (problem,) = problems()
    assert problem.startswith(f"site.yaml:{group.line('defaults', 'site.yaml')}: outputs: found an")


def test_a_walltime_given_by_set_needs_no_quotes(group) -> None:
    loaded = load_experiment("experiment.yaml", overrides=["resources.run.walltime=01:30:00"])
    assert loaded.resources("run").walltime_s == 5400


def test_an_experiment_cannot_be_changed_after_it_was_checked(group) -> None:
    loaded = load_experiment("experiment.yaml")
    with pytest.raises(ValidationError):
        loaded.experiment.output.years = 1  # type: ignore[misc]


@pytest.mark.parametrize("text", ["", "- a\n"], ids=["empty", "list"])
def test_a_file_that_is_no_experiment_says_so(group, text: str) -> None:
    group.experiment.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="wanted an experiment"):
        load_experiment("experiment.yaml")
