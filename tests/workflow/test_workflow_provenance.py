"""The manifest of a run, the check that nothing in it changed, and the check of what is on disk."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from callmip_global import __version__
from callmip_global.errors import UsageError
from callmip_global.files import file_hash, read_json, write_json
from callmip_global.workflow import api, provenance
from callmip_global.workflow.provenance import (
    MANIFEST,
    Difference,
    check_reproduces,
    check_results,
    read_provenance,
    repository,
    reproduce,
)
from callmip_global.workflow.prune import prune
from callmip_global.workflow.rundir import RunDir
from callmip_global.workflow.task import run_task

SPINUP = "run-spinup"
FIRST, LAST = "run-historical-2001-2012", "run-historical-2013-2024"
YEARS = (*range(1901, 1921), *range(2001, 2025))
ENGINES = ("harmonize", "regrid", "export")


@pytest.fixture
def rich(toy: Any) -> Any:
    """A toy with everything that a manifest holds: program, template, inputs for one phase alone,
    a spin-up of one segment, and historical years in two."""
    tree = toy.tree
    spinup, historical = tree["run"]["phases"]
    tree["run"]["phases"] = [
        {**spinup, "years": [2000, 2000], "cycles": 1},
        {**historical, "years": [2001, 2024], "segment_years": 12},
    ]
    tree["run"]["executables"] = {"model": "model.sh"}
    tree["run"]["files"] = {"run.nml": "run.j2"}
    tree["run"]["inputs"] = {"met": "met_{year}.txt"}
    tree["run"]["environment"] += "\nmodule() { :; }\nmodule load netcdf"
    for year in YEARS:
        (toy.folder / f"met_{year}.txt").write_text(str(year))
    (toy.folder / "run.j2").write_text("{{ first_year }}\n")
    toy.write()
    return toy


def manifest(toy: Any) -> dict[str, Any]:
    return read_provenance(toy.run_dir)


def changes(toy: Any) -> dict[str, tuple[str, ...]]:
    """Steps that change, by the name of the file (or what it is) that makes them."""
    found = reproduce(toy.run_dir)
    return {Path(d.what.rstrip(")")).name: d.steps for d in found if d.steps}


def perform(toy: Any, step: str = SPINUP, row: int = 1) -> RunDir:
    run, plan = api.prepare(toy.experiment)
    token = f"t{random.random()}"
    run.journal.append(
        "intent", token=token, step=step, table=plan.step(step).table, rows=[row], offset=0,
        pack=1, depends=[], replaces=[], retry="", walltime_s=None, memory_bytes=None,
        segment_years=None,
    )  # fmt: skip
    run_task(run, step, row, token)
    return run


# The manifest.


def test_the_manifest_names_everything_with_its_hash(rich: Any) -> None:
    _, plan = api.prepare(rich.experiment)
    found = manifest(rich)
    model = rich.folder / "model.sh"
    entry = found["executables"]["model"]
    assert (entry["path"], entry["sha256"]) == (str(model), file_hash(model))
    assert entry["bytes"] == model.stat().st_size
    assert found["experiment"]["sha256"] == file_hash(rich.experiment)
    assert found["templates"][str(rich.folder / "run.j2")]["sha256"] == file_hash(
        rich.folder / "run.j2"
    )
    inputs = found["inputs"]
    wanted = ["prior.sh", "posterior.sh", *(f"met_{y}.txt" for y in YEARS)]
    for name in wanted:
        assert inputs[str(rich.folder / name)]["sha256"] == file_hash(rich.folder / name)
    assert str(model) not in inputs
    assert list(found["steps"]) == sorted(step.name for step in plan.steps)


def test_the_manifest_says_what_it_ran_with(rich: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADEDMODULES", "netcdf/4.9:openmpi/5")
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "callmip")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    api.prepare(rich.experiment)
    found = manifest(rich)["environment"]
    assert "module load netcdf" in found["text"]
    assert found["callmip_global"] == __version__
    assert found["site"] == "here"
    assert found["variables"]["LOADEDMODULES"] == "netcdf/4.9:openmpi/5"
    assert set(found["variables"]) <= {"LOADEDMODULES", "CONDA_DEFAULT_ENV", "VIRTUAL_ENV"}
    assert "hunter2" not in (rich.run_dir / MANIFEST).read_text()


def test_submitting_again_leaves_the_manifest_alone(rich: Any) -> None:
    api.prepare(rich.experiment)
    before = (rich.run_dir / MANIFEST).read_bytes()
    os.utime(rich.folder / "model.sh", (1, 1))
    api.prepare(rich.experiment)
    assert (rich.run_dir / MANIFEST).read_bytes() == before
    assert [p.name for p in rich.run_dir.glob("provenance*")] == [MANIFEST]


def test_a_manifest_that_is_replaced_is_kept(rich: Any) -> None:
    api.prepare(rich.experiment)
    first = manifest(rich)
    for text in (":\n# a\n", ":\n# b\n", ":\n# a\n"):
        rich.parameters("Prior", text)
        api.prepare(rich.experiment)
    kept = [read_json(p) for p in rich.run_dir.glob("provenance-*.json")]
    assert len(kept) == 3
    assert first in kept
    assert manifest(rich)["inputs"] != first["inputs"]


# Repositories.


def git(folder: Path, *words: str) -> str:
    author = ("-c", "user.name=x", "-c", "user.email=x@y.z")
    done = subprocess.run(
        ["git", *author, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_commit_and_changes_of_a_repository_are_told(rich: Any) -> None:
    assert repository(rich.folder) is None
    git(rich.folder, "init", "-q")
    git(rich.folder, "add", "model.sh", "run.j2")
    git(rich.folder, "commit", "-q", "-m", "x")
    commit = git(rich.folder, "rev-parse", "HEAD")
    wanted = {"root": str(rich.folder), "commit": commit, "dirty": False}
    api.prepare(rich.experiment)
    assert manifest(rich)["repository"] == wanted
    assert manifest(rich)["executables"]["model"]["repository"] == wanted
    (rich.folder / "run.j2").write_text("other\n")
    assert repository(rich.folder) == {**wanted, "dirty": True}


def test_a_repository_cannot_start_a_program_of_its_own(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "f").write_text("x")
    git(tmp_path, "add", "f")
    git(tmp_path, "commit", "-q", "-m", "x")
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/pwned'\n")
    hook.chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(hook))
    assert repository(tmp_path) is not None
    assert not (tmp_path / "pwned").exists()


def test_a_repository_without_a_commit_is_no_error(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    found = repository(tmp_path)
    assert found is not None
    assert found["commit"] is None


# Is it still the same?


def test_when_nothing_changed_nothing_is_told(rich: Any) -> None:
    api.prepare(rich.experiment)
    assert reproduce(rich.run_dir) == []
    done = rich.cli("reproduce", str(rich.run_dir))
    assert (done.returncode, done.stdout) == (0, "nothing changed\n")


def everything(*runs: str) -> tuple[str, ...]:
    return (*runs, *ENGINES)


@pytest.mark.parametrize(
    ("file", "text", "steps"),
    [
        ("model.sh", "# another\n", everything(SPINUP, FIRST, LAST)),
        ("run.j2", "another\n", everything(SPINUP, FIRST, LAST)),
        ("prior.sh", "# another\n", everything(SPINUP, FIRST, LAST)),
        ("met_1910.txt", "another", everything(SPINUP, FIRST, LAST)),
        # Beyond the years that the spin-up recycles: nothing before them changes.
        ("met_2005.txt", "another", everything(FIRST, LAST)),
        ("met_2020.txt", "another", everything(LAST)),
    ],
)
def test_a_changed_file_is_told_with_the_steps_it_changes(
    rich: Any, file: str, text: str, steps: tuple[str, ...]
) -> None:
    api.prepare(rich.experiment)
    old = file_hash(rich.folder / file)
    (rich.folder / file).write_text(text)
    assert changes(rich) == {file: steps}
    line = next(str(d) for d in reproduce(rich.run_dir) if d.steps)
    assert old[:12] in line
    assert file_hash(rich.folder / file)[:12] in line


def test_a_file_that_is_gone_is_told_even_if_nothing_can_be_planned(rich: Any) -> None:
    api.prepare(rich.experiment)
    (rich.folder / "met_2020.txt").unlink()
    found = changes(rich)
    assert LAST in found["met_2020.txt"]
    line = next(str(d) for d in reproduce(rich.run_dir) if "met_2020" in d.what)
    assert "now not there" in line
    assert "experiment.yaml" in found


def test_a_setting_is_told_with_exactly_the_steps_it_changes(rich: Any) -> None:
    api.prepare(rich.experiment)
    rich.tree["run"]["phases"][1]["options"] = {"edited": True}
    rich.write()
    assert changes(rich) == {"experiment.yaml": everything(FIRST, LAST)}


def test_what_changes_no_result_is_a_note(rich: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api.prepare(rich.experiment)
    rich.experiment.write_text(rich.experiment.read_text() + "# a remark\n")
    os.utime(rich.folder / "model.sh", (1, 1))
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "other")
    monkeypatch.setattr("socket.gethostname", lambda: "login2")
    found = reproduce(rich.run_dir)
    assert [d.steps for d in found] == [()] * 3
    assert {Path(d.what).name for d in found} == {"experiment.yaml", "host", "CONDA_DEFAULT_ENV"}


@pytest.mark.parametrize(
    ("name", "version", "steps"),
    [
        ("numpy", "0.0.1", ENGINES),
        ("zarr", "0.0.1", ENGINES),
        ("rich", "0.0.1", ()),
        ("python", "2.7.18", ENGINES),
        ("callmip_global", "0.0.0", ENGINES),
    ],
)
def test_software_that_computes_changes_what_it_computes(
    rich: Any, name: str, version: str, steps: tuple[str, ...]
) -> None:
    api.prepare(rich.experiment)
    found = manifest(rich)
    versions = found["environment"]
    if name not in ("python", "callmip_global"):
        versions = versions["packages"]
    assert name in versions
    versions[name] = version
    write_json(rich.run_dir / MANIFEST, found)
    told = [d for d in reproduce(rich.run_dir) if d.recorded == version]
    assert [d.steps for d in told] == [steps]


def test_a_newer_patch_of_python_is_a_note(rich: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api.prepare(rich.experiment)
    found = manifest(rich)
    here = found["environment"]["python"]
    found["environment"]["python"] = f"{here.rpartition('.')[0]}.99"
    write_json(rich.run_dir / MANIFEST, found)
    assert [d.steps for d in reproduce(rich.run_dir)] == [()]


def test_a_new_commit_with_equal_files_is_a_note(rich: Any) -> None:
    git(rich.folder, "init", "-q")
    git(rich.folder, "add", "model.sh")
    git(rich.folder, "commit", "-q", "-m", "x")
    api.prepare(rich.experiment)
    git(rich.folder, "commit", "-q", "--allow-empty", "-m", "y")
    found = reproduce(rich.run_dir)
    assert [d.what for d in found] == ["git commit of the experiment", "git commit of model"]
    assert not any(d.steps for d in found)


def test_the_command_says_one_line_for_each_difference_and_refuses(rich: Any) -> None:
    api.prepare(rich.experiment)
    rich.parameters("Prior", ":\n# other\n")
    (rich.folder / "met_2020.txt").write_text("other")
    done = rich.cli("reproduce", str(rich.run_dir))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("recorded" in line and "changes run-" in line for line in lines)
    value = json.loads(rich.cli("reproduce", str(rich.run_dir), "--json").stdout)
    assert {Path(c["what"]).name for c in value["changes"]} == {"prior.sh", "met_2020.txt"}
    assert value["damaged"] == []


def test_a_folder_without_a_manifest_is_wrong_use(rich: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no provenance\.json"):
        reproduce(tmp_path)
    api.prepare(rich.experiment)
    write_json(rich.run_dir / MANIFEST, {"format": 99})
    with pytest.raises(UsageError, match="99"):
        reproduce(rich.run_dir)


# The same experiment in another place.


def moved(toy: Any, name: str = "moved") -> Path:
    """A copy of the experiment's folder, without the run directory."""
    target = toy.folder.parent / name
    subprocess.run(["cp", "-r", str(toy.folder), str(target)], check=True)
    subprocess.run(["rm", "-rf", str(target / "experiment.run")], check=True)
    text = (target / "experiment.yaml").read_text()
    (target / "experiment.yaml").write_text(text)
    return target / "experiment.yaml"


@pytest.fixture
def portable(rich: Any) -> Any:
    """The toy without paths of its folder in its command."""
    rich.tree["run"]["environment"] = "export LEDGER=/dev/null"
    rich.tree["run"]["command"] = (
        "bash {executables.model} {first_year} {last_year} {parameters} {write_output}"
    )
    rich.write()
    return rich


def test_a_copy_of_the_experiment_reproduces_it(portable: Any) -> None:
    api.prepare(portable.experiment)
    _, plan = api.prepare(moved(portable), like=portable.run_dir)
    assert check_reproduces(plan, manifest(portable)) == []


@pytest.mark.parametrize("file", ["model.sh", "prior.sh", "run.j2", "met_2020.txt"])
def test_submitting_like_another_run_is_refused_where_a_file_differs(
    portable: Any, file: str
) -> None:
    api.prepare(portable.experiment)
    copy = moved(portable)
    with (copy.parent / file).open("a") as handle:
        handle.write("\n# other\n")
    with pytest.raises(UsageError) as caught:
        api.submit(copy, like=portable.run_dir)
    text = str(caught.value)
    assert str(copy.parent / file) in text
    assert f"other keys for {'run-spinup' if file != 'met_2020.txt' else LAST}" in text
    assert not copy.with_suffix(".run").exists()


def test_submitting_like_another_run_is_refused_where_a_setting_differs(portable: Any) -> None:
    api.prepare(portable.experiment)
    done = portable.cli(
        "submit", str(moved(portable)), "--dry-run", "--set", "output.years=10",
        "--reproduce", str(portable.run_dir),
    )  # fmt: skip
    assert done.returncode == 2
    assert "other keys for" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_submitting_like_another_run_is_refused_where_software_differs(portable: Any) -> None:
    api.prepare(portable.experiment)
    found = manifest(portable)
    found["environment"]["packages"]["numpy"] = "0.0.1"
    _, plan = api.prepare(portable.experiment)
    problems = check_reproduces(plan, found)
    assert [p.where for p in problems] == ["version of numpy"]


# What is on disk.


@pytest.mark.parametrize(
    ("damage", "words"),
    [("echo 9 > {f}", "recorded"), ("rm {f}", "not there"), (": > {f}", "recorded")],
    ids=["changed", "removed", "emptied"],
)
@pytest.mark.parametrize("name", ["restart_out/years.txt", "out/mon_2013.txt"])
def test_damage_to_a_result_is_found(rich: Any, damage: str, words: str, name: str) -> None:
    for step in (SPINUP, FIRST, LAST):
        run = perform(rich, step)
    assert check_results(run.path) == []
    path = run.task_dir(f"{LAST}/S3.Prior") / "attempt-01" / name
    subprocess.run(["bash", "-c", damage.replace("{f}", '"$1"'), "x", str(path)], check=True)
    found = check_results(run.path)
    assert [(d.what, d.steps) for d in found] == [(str(path), (LAST,))]
    assert words in str(found[0])
    done = rich.cli("reproduce", str(run.path), "--results")
    assert done.returncode == 1
    assert name in done.stdout


def test_what_was_pruned_is_no_damage(rich: Any) -> None:
    for step in (SPINUP, FIRST, LAST):
        run = perform(rich, step)
    prune(run.path, keep=1, delete=True)
    assert check_results(run.path) == []


def test_a_difference_reads_as_one_line() -> None:
    digest = "ab" * 32
    steps = tuple(f"run-{i}" for i in range(9))
    line = str(Difference("f.nc", digest, f"ends-{digest}", steps))
    assert line == (
        "f.nc: recorded abababababab, now ends-abababababab;"
        " changes run-0, run-1, run-2, run-3, run-4 and 4 more"
    )


def test_hashes_that_are_told_are_those_of_the_file(tmp_path: Path) -> None:
    """A guard: were `_hash_now` another hash, every file would seem to have changed."""
    (tmp_path / "f").write_text("x")
    assert provenance._hash_now(str(tmp_path / "f")) == file_hash(tmp_path / "f")
    assert provenance._hash_now(str(tmp_path / "g")) == "not there"
