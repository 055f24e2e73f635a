"""The example experiments: what they claim, and what they refuse to run without."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.config import unset
from callmip_global.config.chain import chain
from callmip_global.config.graph import build_plan
from callmip_global.config.init import example_names, first_experiment, write_experiment
from callmip_global.config.load import LoadedExperiment, load_experiment, load_leniently
from callmip_global.config.placeholders import expand, render_template
from callmip_global.config.plan import run_context
from callmip_global.config.site import config_names
from callmip_global.config.validate import check_experiment
from callmip_global.config.variable_map import load_variable_map
from callmip_global.data import data_path
from callmip_global.errors import UsageError
from callmip_global.variables import requested_variables

EXAMPLES = example_names()
# Runs of the model for one parameter set: simulation by simulation, and those that both share.
RUNS = {
    "cable-pop": {"S3": 31, "CO2": 30, "shared": 28},
    "classic": {"S3": 24, "CO2": 24, "shared": 15},
    "ctsm": {"S3": 26, "CO2": 26, "shared": 17},
    "jules": {"S3": 21, "CO2": 21, "shared": 12},
    "orchidee": {"S3": 30, "CO2": 30, "shared": 17},
}


def shipped(name: str) -> LoadedExperiment:
    return load_experiment(data_path("config", "examples", name, "experiment.yaml"))


def filled(text: str) -> str:
    """What a group might write for SET_...: a number for what goes into a namelist, else a name."""

    def value(match: re.Match[str]) -> str:
        numbers = r"_S$|_PERCENT|_T_FOR|_FRAC_CONST|_Z1_"
        word = match.group()
        return "1" if re.search(numbers, word) else word.removeprefix("SET_").lower()

    return re.sub(r"\bSET_[A-Z0-9_]+", value, text)


@dataclass
class GroupFolder:
    """An example as a group would have it: every SET_... set, and every file it names there."""

    folder: Path
    # Simulated years read so far: nothing in an example is read before.
    first_year: int = 1700
    last_year: int = 2024

    @property
    def experiment(self) -> Path:
        return self.folder / "experiment.yaml"

    def fill_in(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file():
                path.write_text(filled(path.read_text(encoding="utf-8")))

    def make_files(self) -> None:
        tree = yaml.safe_load(self.experiment.read_text(encoding="utf-8"))
        run, named = tree["run"], set(tree["run"]["executables"].values())
        for stage, settings in tree["stages"].items():
            for member in range(1, (settings.get("members") or 1) + 1):
                for text in (settings["parameters"], *run["inputs"].values()):
                    known = text.replace("{stage}", stage)
                    named.add(known.replace("{member:03d}", f"{member:03d}"))
        for text in named:
            self._make(text)

    def _make(self, text: str) -> None:
        years = range(self.first_year, self.last_year + 1) if "{year}" in text else (0,)
        for year in years:
            path = self.folder / text.replace("{year}", str(year)).replace("{var}", "pre")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if path.suffix == ".txt" and "co2" in path.name:
                rows = range(self.first_year, self.last_year + 1)
                path.write_text("".join(f"{y} {277 + 0.1 * (y - 1700):.2f}\n" for y in rows))

    def problems(self, *overrides: str) -> list[str]:
        _, found = check_experiment(self.experiment, overrides)
        return [str(problem).replace(f"{self.folder}/", "") for problem in found]


def group_with(name: str, site: str, folder: Path) -> GroupFolder:
    write_experiment(name.upper(), site, folder / "experiment.yaml")
    group = GroupFolder(folder)
    group.fill_in()
    group.make_files()
    return group


@pytest.fixture(scope="module")
def group_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GroupFolder]:
    """The folder of an example's group on its own site, made once; not to be changed."""

    @cache
    def make(name: str) -> GroupFolder:
        text = data_path("config", "examples", name, "experiment.yaml").read_text(encoding="utf-8")
        return group_with(name, yaml.safe_load(text)["site"], tmp_path_factory.mktemp(name))

    return make


@dataclass(frozen=True)
class Rendered:
    """One run of the first parameter set of a simulation, with its files as the job sees them."""

    step: str
    simulation: str
    parameters: str
    files: Mapping[str, str]


@pytest.fixture(scope="module")
def runs_of(group_of: Callable[[str], GroupFolder]) -> Callable[[str], list[Rendered]]:
    """Each run of one parameter set, that of a further simulation where it is not shared."""

    @cache
    def render(name: str) -> list[Rendered]:
        overrides = ["stages.Posterior.members=1"]
        plan = build_plan(load_experiment(group_of(name).experiment, overrides=overrides))
        texts, found = plan.settings["templates"], []
        for step in plan.steps:
            if step.kind != "run":
                continue
            for task in {task.simulation: task for task in reversed(step.tasks)}.values():
                context = {**run_context(plan, step, task), "python": sys.executable}
                files = {
                    target: render_template(texts[source], context, where=source)
                    for target, source in step.recipe["files"].items()
                }
                assert task.simulation is not None
                found.append(Rendered(step.name, task.simulation, context["parameters"], files))
        return found

    return render


def test_the_models_of_the_issue_have_an_example() -> None:
    assert set(EXAMPLES) == set(RUNS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_loads_with_s3_and_co2_prior_and_posterior(name: str) -> None:
    loaded, problems = load_leniently(data_path("config", "examples", name, "experiment.yaml"))
    assert problems == []
    assert loaded is not None
    experiment = loaded.experiment
    assert [s.name for s in experiment.simulations] == ["S3", "CO2"]
    assert set(experiment.stages) == {"Prior", "Posterior"}
    assert experiment.delivered_years[1] - experiment.delivered_years[0] + 1 == 20
    assert experiment.run.executables


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_parameter_set_is_as_many_runs_as_the_file_says(name: str) -> None:
    run = shipped(name).experiment.run
    for simulation in ("S3", "CO2"):
        assert len(chain(run, simulation)) == RUNS[name][simulation]
    head = data_path("config", "examples", name, "experiment.yaml").read_text().split("\nmodel:")[0]
    assert re.search(rf"is {RUNS[name]['S3']} (runs|jobs)", head)


def test_cable_pop_is_the_sequence_of_its_public_script() -> None:
    """By hand from run_cable.sh of CABLE-LSM/TRENDY: nequi1=3, nequi2=15, nequi2a=5, S3."""
    links = chain(shipped("cable-pop").experiment.run, "S3")
    runs = [(link.segment.phase, link.segment.inner) for link in links]
    assert runs == [
        ("climate_restart", None),
        ("zero_biomass", None),
        *[("equilibrium1", step) for _ in range(3) for step in "ab"],
        *[("equilibrium2", step) for _ in range(5) for step in "ab"],
        *[("equilibrium2", "a")] * 10,
        ("init_land_use", None),
        ("transient", None),
        ("historical", None),
    ]
    assert Counter(runs)["equilibrium2", "a"] == 15
    # 20 + 30 + 18 x 20 + 201 + 124 years of the whole model, and 120 of CASA alone for land use.
    years = Counter[bool]()
    for link in links:
        if link.segment.inner != "b":
            years[link.segment.part.options.get("icycle") == 12] += link.segment.n_years
    assert years == {False: 735, True: 120}
    by_name = {link.segment.name: link for link in links}
    # b takes the dumps of the a before it; the physics that b does not leave stays that of a.
    third = by_name["run-equilibrium1-c03-b"].restart_in
    assert third["c2c_*_dump.nc"] == "run-equilibrium1-c03-a"
    after = by_name["run-equilibrium1-c02-a"].restart_in
    assert after["cru_casa_*_rst.nc"] == "run-equilibrium1-c01-b"
    assert after["cru_cable_rst.nc"] == "run-equilibrium1-c01-a"
    # Land use is driven by the dumps of the last a, with the biomes of the very first run.
    land = by_name["run-init_land_use"].restart_in
    assert land["c2c_*_dump.nc"] == "run-equilibrium2-c15-a"
    assert land["luc_climate.nc"] == "run-climate_restart"
    assert by_name["run-transient"].restart_in["cru_LUC_rst.nc"] == "run-init_land_use"


def test_cable_pop_without_varying_land_use_neither_makes_nor_reads_a_state_of_it() -> None:
    links = chain(shipped("cable-pop").experiment.run, "CO2")
    assert "init_land_use" not in {link.segment.phase for link in links}
    assert all("cru_LUC_rst.nc" not in link.restart_in for link in links)


@pytest.mark.parametrize("name", EXAMPLES)
def test_whatever_a_run_reads_was_left_by_one_before(name: str) -> None:
    run = shipped(name).experiment.run
    for simulation in ("S3", "CO2"):
        before: set[str] = set()
        for link in chain(run, simulation):
            assert link.missing == ()
            assert set(link.restart_in.values()) <= before
            # Nothing begins from zero by oversight.
            assert link.restart_in or link.segment.part.restart_in == {} or not before
            before.add(link.segment.name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_filled_in_it_is_valid_and_the_spin_up_is_shared(
    name: str, group_of: Callable[[str], GroupFolder]
) -> None:
    group = group_of(name)
    assert group.problems() == []
    loaded = load_experiment(group.experiment, overrides=["stages.Posterior.members=2"])
    plan = build_plan(loaded)
    tiles = loaded.experiment.run.tiles
    size = 3 * (tiles.count if tiles else 1)
    runs = RUNS[name]
    tasks = [task for step, task in plan.tasks() if step.kind == "run"]
    assert len(tasks) == size * (runs["S3"] + runs["CO2"] - runs["shared"])
    assert sum(task.shared_by == ("CO2",) for task in tasks) == size * runs["shared"]


@pytest.mark.parametrize("site", [s for s in config_names("sites") if s != "local"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_on_any_cluster_nothing_is_wrong_but_the_size_of_the_jobs(
    name: str, site: str, group_of: Callable[[str], GroupFolder]
) -> None:
    folder = group_of(name).folder
    first = first_experiment(name.upper(), site, base_dir=folder)
    path = folder / f"on-{site}.yaml"
    path.write_text(filled(first.text))
    _, problems = check_experiment(path)
    assert {re.sub(r"^resources\.(run|merge)\.", "", problem.key) for problem in problems} <= {
        "walltime", "tasks", "memory", "nodes",
    }  # fmt: skip
    default = yaml.safe_load(path.read_text())["resources"].get("default", {})
    assert ("account" in default) == ("account" in first.site.requires)


@pytest.mark.parametrize("name", EXAMPLES)
def test_as_shipped_every_place_that_is_to_be_set_is_refused_in_one_line(name: str) -> None:
    path = data_path("config", "examples", name, "experiment.yaml")
    _, problems = check_experiment(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    wanted = {
        (number, word)
        for number, line in enumerate(lines, start=1)
        for word in re.findall(r"\bSET_[A-Z0-9_]+", line.partition("#")[0])
    }
    own = [p for p in problems if p.where.startswith(f"{path}:") and p.wanted == "a value of yours"]
    # Of a text over several lines only the first is known.
    assert {word for _, word in wanted} == {p.found for p in own}
    assert len(own) == len(wanted)
    near = {(int(p.where.rpartition(":")[2]), p.found) for p in own}
    assert all((n, word) in near or (n - 1, word) in near for n, word in wanted)
    # Beside these, only that files of the group are not there.
    assert all(p.found.startswith(("SET_", "no file")) for p in problems)


def test_a_set_value_in_a_template_or_a_variable_map_has_its_own_line(tmp_path: Path) -> None:
    group = group_with("jules", "jasmin-lotus2", tmp_path)
    template = tmp_path / "templates" / "drive.nml.j2"
    template.write_text("{# SET_IN\nA_COMMENT #}\n  z1_uv_in = SET_HEIGHT\n")
    variables = tmp_path / "variables.yaml"
    variables.write_text(variables.read_text().replace("ftl_gb", "SET_HEAT"))
    lines = variables.read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines, start=1) if "SET_HEAT" in line]
    assert group.problems() == [
        "templates/drive.nml.j2:3: found SET_HEIGHT, wanted a value of yours",
        f"variables.yaml:{number}: variables.hfss.source: found SET_HEAT, wanted a value of yours",
    ]


@given(st.text(alphabet="SETset_ABab12/. -", max_size=20))
def test_only_set_with_an_underscore_and_capitals_is_a_placeholder(text: str) -> None:
    found = unset._UNSET.findall(text)
    words = re.split(r"\W+", text)
    for word in found:
        assert word.startswith("SET_")
        assert word == word.upper()
        assert any(part.startswith(word) for part in words)
    if "SET_" not in text:
        assert found == []


@pytest.mark.parametrize(
    ("name", "changed", "first"),
    [
        # In a folder for each variable.
        ("cable-pop", "forcing/pre/pre_19500101_19501231.nc", "run-historical"),
        ("cable-pop", "landmasks/landmaskpre.nc", "run-climate_restart"),
        # Of the model's year, not of the climate's.
        ("jules", "forcing/co2_mmr_1801.nc", "run-transient-1801-1850"),
        ("orchidee", "forcing/PFTmap_1700.nc", "run-spinup-c01"),
    ],
)
def test_a_changed_input_runs_anew_from_the_first_segment_that_reads_it(
    name: str, changed: str, first: str, tmp_path: Path
) -> None:
    group = group_with(name, "slurm", tmp_path)
    overrides = ["stages.Posterior.members=1"]
    before = build_plan(load_experiment(group.experiment, overrides=overrides)).steps
    path = tmp_path / changed
    assert path.is_file()
    path.write_text("other values")
    after = build_plan(load_experiment(group.experiment, overrides=overrides)).steps
    old, new = ([(s.name, s.tasks[0].key) for s in steps] for steps in (before, after))
    anew = [name for (name, key), (_, again) in zip(old, new, strict=True) if key != again]
    assert anew[0] == first


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_template_renders_for_every_run_and_leaves_no_gap(
    name: str, runs_of: Callable[[str], list[Rendered]]
) -> None:
    for run in runs_of(name):
        for target, text in run.files.items():
            assert not re.search(r"None|\{\{|\{%|\{var\}|\{year\}|SET_", text), (run.step, target)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_script_is_one_that_bash_understands(
    name: str, runs_of: Callable[[str], list[Rendered]]
) -> None:
    texts = {run.files["run.sh"] for run in runs_of(name)}
    assert texts
    for text in texts:
        found = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (found.returncode, found.stderr) == (0, "")


def test_cable_pop_switches_follow_the_public_script(
    runs_of: Callable[[str], list[Rendered]],
) -> None:
    """By hand from run_cable.sh: stages 3b, 5, 6 and 7 of S3, and with static land use."""

    def values(text: str) -> dict[str, str]:
        rows = (line.split("=", 1) for line in text.splitlines() if "=" in line)
        return {key.strip(): value.strip().strip('"') for key, value in rows}

    found: dict[str, dict[str, str]] = {}
    for run in runs_of("cable-pop"):
        name = f"{run.step} {run.simulation}"
        found[name] = values(run.files["cable_changes.nml"])
        found[f"{name} cru"] = values(run.files["cru.nml"])
        found[f"{name} luc"] = values(run.files["luc.nml"])
        assert found[name]["casafile%cnpbiome"] == run.parameters
    first = found["run-climate_restart S3"]
    assert (first["cable_user%POPLUC"], first["cable_user%CASA_fromZero"]) == (".false.", ".true.")
    assert first["filename%restart_in"] == ""
    analytic = found["run-equilibrium1-c02-b S3"]
    assert (analytic["icycle"], analytic["spincasa"]) == ("12", ".true.")
    assert analytic["cable_user%CASA_DUMP_READ"] == ".true."
    assert analytic["cable_user%CASA_SPIN_STARTYEAR"] == "1841"
    assert analytic["cable_user%limit_labile"] == ".true."
    assert found["run-equilibrium2-c02-b S3"]["cable_user%limit_labile"] == ".false."
    land = found["run-init_land_use S3"]
    assert (land["icycle"], land["spincasa"]) == ("12", ".false.")
    assert land["cable_user%POPLUC_RunType"] == "init"
    assert (land["cable_user%YearStart"], land["cable_user%YearEnd"]) == ("1580", "1699")
    assert land["cable_user%CASA_OUT_FREQ"] == "annually"
    assert found["run-init_land_use S3 cru"]["CO2Method"] == "1700"
    assert found["run-transient S3"]["cable_user%POPLUC_RunType"] == "restart"
    assert found["run-transient CO2"]["cable_user%POPLUC_RunType"] == "static"
    assert found["run-transient S3 luc"]["YearStart"] == "1700"
    assert found["run-transient S3 cru"]["NDepMethod"] == "Yearly"
    assert found["run-transient CO2 cru"]["NDepMethod"] == "1850"
    assert found["run-transient CO2 cru"]["CO2Method"] == "Yearly"
    assert found["run-historical S3 cru"]["rainRecycle"] == ".false."
    assert found["run-historical CO2 cru"]["rainRecycle"] == ".true."
    assert found["run-historical CO2 cru"]["RecycStartYear"] == "1901"
    assert found["run-historical S3 luc"]["YearStart"] == "1901"
    assert found["run-historical CO2 luc"]["YearStart"] == "1700"


@pytest.mark.parametrize("name", ["jules", "orchidee"])
def test_recycled_years_go_round_and_1701_has_the_weather_of_1901(
    name: str, runs_of: Callable[[str], list[Rendered]]
) -> None:
    years: dict[str, list[tuple[int, int]]] = {}
    for run in runs_of(name):
        step = f"{run.step} {run.simulation}"
        rows = run.files["lists/climate.txt" if name == "jules" else "years.txt"].splitlines()
        if name == "jules":
            pairs = [re.search(r"_(\d{4})\.nc', '(\d{4})", row) for row in rows]
            years[step] = [(int(m[2]), int(m[1])) for m in pairs if m]
        else:
            years[step] = [(int(row.split("\t")[0]), int(row.split("\t")[1])) for row in rows]
    spinup = years["run-spinup-c01 S3"]
    assert spinup[:2] == [(1681, 1901), (1682, 1902)]
    assert dict(spinup)[1700] == 1920
    historical = dict(years["run-historical-1901-1925 CO2"])
    assert (historical[1901], historical[1920], historical[1921]) == (1901, 1920, 1901)
    assert dict(years["run-historical-1901-1925 S3"])[1925] == 1925
    transient = next(pairs for step, pairs in years.items() if "transient-1701" in step)
    assert transient[0] == (1701, 1901)


def test_jules_gets_one_record_beyond_the_end_and_repeats_the_last_year(
    runs_of: Callable[[str], list[Rendered]],
) -> None:
    (final,) = [
        run
        for run in runs_of("jules")
        if (run.step, run.simulation) == ("run-historical-2001-2024", "S3")
    ]
    last = final.files["lists/climate.txt"].splitlines()[-1]
    assert last.endswith("_2024.nc', '2025-01-01 00:00:00'")


def test_land_points_of_jules_become_the_map_they_came_from(
    tmp_path: Path, runs_of: Callable[[str], list[Rendered]]
) -> None:
    """Three of six points of a 2 x 3 grid are land; their values return to their places.

    Of 5 units from the soil store 2 are transpiration; 1 of snow sublimates: 4 leave the ground.
    """
    (tmp_path / "to_grid.py").write_text(runs_of("jules")[0].files["to_grid.py"])
    source = xr.Dataset(
        {
            "latitude": (("y", "x"), [[-0.5, 0.5, 0.5]]),
            "longitude": (("y", "x"), [[12.5, 10.5, 11.5]]),
            "gpp_gb": (
                ("time", "y", "x"),
                np.arange(6.0).reshape(2, 1, 3),
                {"units": "kg m-2 s-1"},
            ),
            "esoil_gb": (("time", "y", "x"), np.full((2, 1, 3), 5.0)),
            "et_stom_gb": (("time", "y", "x"), np.full((2, 1, 3), 2.0)),
            "ei_gb": (("time", "y", "x"), np.full((2, 1, 3), 1.0)),
            "time_bounds": (("time", "nt"), [[0.0, 31.0], [31.0, 59.0]]),
        },
        coords={"time": ("time", [15.0, 45.0], {"units": "days since 2001-01-01"})},
    )
    source.to_netcdf(tmp_path / "points.nc")
    command = [sys.executable, "to_grid.py", "points.nc", "map.nc"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with xr.open_dataset(tmp_path / "map.nc", decode_times=False) as result:
        assert result["lat"].values.tolist() == [-0.5, 0.5]
        assert result["lon"].values.tolist() == [10.5, 11.5, 12.5]
        np.testing.assert_array_equal(
            result["gpp_gb"].values[1], [[np.nan, np.nan, 3.0], [4.0, 5.0, np.nan]]
        )
        assert result["gpp_gb"].attrs["units"] == "kg m-2 s-1"
        assert result["evspsblsoi"].values[0, 0, 2] == 4.0


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_variable_map_accounts_for_every_requested_variable(name: str) -> None:
    loaded = load_variable_map(shipped(name).resolve_variables())
    assert set(requested_variables()) <= set(loaded.entries)
    assert len(loaded.delivered) >= 12


@pytest.mark.parametrize(
    ("model", "example"),
    [("CABLE-POP", "cable-pop"), ("CABLE", "cable-pop"), ("CLM", "ctsm"), ("classic", "classic")],
)
def test_init_begins_with_the_example_of_the_model(
    model: str, example: str, tmp_path: Path
) -> None:
    first = first_experiment(model, "gadi", base_dir=tmp_path)
    folder = data_path("config", "examples", example)
    assert {p.name for p in folder.glob("templates/*")} == {Path(n).name for n in first.files}
    assert f"model: {{name: {model}, version: v1," in first.text
    assert "\nsite: gadi\n" in first.text
    assert '"-l storage=SET_DIRECTIVE"' in first.text


def test_init_leaves_out_the_queue_of_another_site(tmp_path: Path) -> None:
    at_home = first_experiment("JULES", "jasmin-lotus2", base_dir=tmp_path).text
    elsewhere = first_experiment("JULES", "levante", base_dir=tmp_path).text
    assert "queue: high" in at_home
    assert "queue:" not in elsewhere


def test_init_never_overwrites_a_template(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "cru.nml.j2").write_text("mine")
    with pytest.raises(UsageError, match=r"cru\.nml\.j2: found a file that is already there"):
        write_experiment("CABLE-POP", "gadi", tmp_path / "experiment.yaml")
    assert not (tmp_path / "experiment.yaml").exists()
    assert (tmp_path / "templates" / "cru.nml.j2").read_text() == "mine"


def write_tool(path: Path, words: str) -> None:
    """A command that is the stand-in ``words``, or runs the rest of its own line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/bash\nexec {words} "$@"\n')
    path.chmod(0o755)


def stand_in(name: str) -> str:
    from support import model_stand_ins

    return f'"{sys.executable}" -I -S "{model_stand_ins.__file__}" {name}'


# What the group's own files must say for the scripts, and what the first state is.
CONTENTS = {
    "cable-pop": {
        "namelists/cable.nml": "&cablenml\n  icycle = 3\n  filename%met = 'x'\n/\n",
        "landmasks/landmask1.nc": "",
    },
    "classic": {
        "classic_folder/configurationFiles/template_job_options_file.txt": (
            "&joboptions\n metLoop = 7 , ! loops\n init_file = 'other.nc' ,\n/\n"
        ),
        "init_file": "0",
        **{
            f"forcing/{variable}_{years}.nc": ""
            for variable in ("tswrf", "dlwrf", "pre", "tmp", "spfh", "wind", "pres")
            for years in ("1901_2024", "1700_2024_recycled")
        },
    },
    "ctsm": {},
    "jules": {
        "namelists/jules_vegetation.nml": "&JULES_VEGETATION\n  l_triffid = .true.\n/\n",
        "namelists/initial_conditions.nml": "&JULES_INITIAL\n  dump_file = .false.\n/\n",
        "namelists/timesteps.nml": "&JULES_TIME\n/\n",
    },
    "orchidee": {
        "config/run.def": "ATM_CO2 = 350.\nSPINUP_ANALYTIC=n\nSTOMATE_OK_STOMATE = y\n",
        "config/iodef.xml": "",
        "params/prior_orchidee_pft.def": "VCMAX25__02 = 45.0\n",
    },
}
TOOLS = {
    "cable-pop": {"cable_folder/offline/cable": "cable"},
    "classic": {"classic_folder/bin/CLASSIC_parallel": "classic"},
    "ctsm": {"ctsm_folder/cime/scripts/create_clone": "create_clone"},
    "jules": {"jules_folder/build/bin/jules.exe": "jules"},
    "orchidee": {"modipsl/bin/orchideedriver": "orchidee"},
}
# The same chain with fewer runs of the same kinds.
SHORTER = {
    "ctsm": [
        f"run.phases.{phase}.segment_years={years}"
        for phase, years in enumerate((175, 150, 100, 100, 62))
    ],
    "orchidee": [
        "run.phases.0.cycles=1",
        "run.phases.1.years=[1701,1710]",
        "run.phases.1.segment_years=5",
        "run.phases.2.years=[2001,2024]",
    ],
}
# Runs in one line of descent, as the stand-ins count them in their restart files: of CABLE-POP the
# first run has no descendants; ORCHIDEE runs once a year.
DESCENT = {
    ("cable-pop", "S3"): 30,
    ("cable-pop", "CO2"): 29,
    ("classic", "S3"): 24,
    ("ctsm", "S3"): 10,
    ("jules", "S3"): 21,
    ("orchidee", "CO2"): 20 + 10 + 24,
}


@pytest.mark.parametrize(("name", "simulation"), DESCENT, ids=lambda value: value)
def test_the_whole_chain_of_scripts_works_with_a_stand_in_of_the_model(
    name: str, simulation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = group_with(name, "slurm", tmp_path)
    for path, text in CONTENTS[name].items():
        (tmp_path / path).write_text(text)
    for path, tool in TOOLS[name].items():
        write_tool(tmp_path / path, stand_in(tool))
    bin_ = tmp_path / "bin"
    for tool in ("ncap2", "ncrcat", "cdo"):
        write_tool(bin_ / tool, stand_in(tool))
    for launcher in ("srun", "mpirun"):
        (bin_ / launcher).write_text('#!/bin/bash\nshift 2\nexec "$@"\n')
        (bin_ / launcher).chmod(0o755)
    write_tool(bin_ / "to_grid", stand_in("to_grid"))
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")

    overrides = ["stages.Posterior.members=1", *SHORTER.get(name, [])]
    loaded = load_experiment(group.experiment, overrides=overrides)
    plan = build_plan(loaded)
    texts, counts = plan.settings["templates"], []
    for link in chain(loaded.experiment.run, simulation):
        step = plan.step(link.segment.name)
        task = next(t for t in step.tasks if simulation in (t.simulation, *t.shared_by))
        context = {**run_context(plan, step, task), "python": "to_grid"}
        folder = tmp_path / "runs" / step.name
        for part in ("restart_in", "restart_out"):
            (folder / part).mkdir(parents=True)
        for pattern, source in link.restart_in.items():
            left = sorted((tmp_path / "runs" / source / "restart_out").glob(pattern))
            assert left, (step.name, pattern)
            for path in left:
                shutil.copy(path, folder / "restart_in")
        for target, source in step.recipe["files"].items():
            (folder / target).parent.mkdir(exist_ok=True)
            (folder / target).write_text(render_template(texts[source], context, where=source))
        command = expand(step.recipe["command"], context, quote=True)
        done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
        said = f"{step.name}: {done.stderr}"
        assert (done.returncode, done.stderr) == (0, ""), said
        for pattern in link.restart_out:
            assert list((folder / "restart_out").glob(pattern)), (step.name, pattern)
        for pattern in step.outputs:
            assert list(folder.glob(pattern)), (step.name, pattern)
        # CABLE's last run leaves no state that is handed on, but its stand-in does.
        found = sorted((folder / "restart_out").glob("*.nc"))
        counts.append(
            max(int(path.read_text()) for path in found if "luc_climate" not in path.name)
        )
    assert counts[-1] == DESCENT[name, simulation]
