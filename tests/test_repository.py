"""What must hold for the checkout as a whole: files, scripts, packaging, light imports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import callmip_global

DATA_FOLDERS = ("config", "jobs", "regrid")
SCRIPTS = ("demo", "test", "check", "slurm-here")
# What conda-forge calls another name than PyPI does.
CONDA_NAMES = {"netCDF4": "netcdf4"}
ONLY_ON_PYPI = {"deflate", "global-land-mask"}
HEAVY = ("cftime", "dask", "distributed", "h5py", "netCDF4", "numba", "numpy", "pandas")
HEAVY += ("pint", "pyarrow", "xarray", "zarr")


@pytest.fixture(scope="module")
def tracked(project_root: Path) -> list[Path]:
    """Every file git knows, as paths that exist now."""
    answer = subprocess.run(
        ["git", "ls-files", "-z"], cwd=project_root, capture_output=True, text=True
    )
    if answer.returncode != 0:
        pytest.skip(f"not a git checkout: {answer.stderr.strip()}")
    files = [project_root / name for name in answer.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


@pytest.fixture(scope="module")
def project(project_root: Path) -> dict[str, Any]:
    return tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", DATA_FOLDERS)
def test_a_data_folder_holds_data_and_no_code(project_root: Path, folder: str) -> None:
    files = [path for path in (project_root / folder).rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if path.suffix == ".py"] == []


def test_no_file_names_a_folder_of_one_machine(project_root: Path, tracked: list[Path]) -> None:
    # /home/me is nobody's: examples may use it.
    pattern = re.compile(rb"(?<![\w.$})])/(?:root/\w|home/(?!me\b)\w)")
    found = [
        f"{path.relative_to(project_root)}:{number}"
        for path in tracked
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_every_script_can_be_executed_and_is_well_formed(tracked: list[Path]) -> None:
    scripts = [path for path in tracked if path.read_bytes().startswith(b"#!")]
    assert {f"scripts/{name}" for name in SCRIPTS} | {".ci/run"} <= {
        f"{path.parent.name}/{path.name}" for path in scripts
    }
    for path in scripts:
        if path.parent.name in ("scripts", ".ci"):
            assert path.stat().st_mode & 0o111 == 0o111, f"{path} is not executable"
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        if "bash" in first:
            answer = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
            assert (answer.returncode, answer.stderr) == (0, ""), path
        else:
            compile(path.read_bytes(), path, "exec")


def test_the_changelog_begins_with_this_version(project_root: Path) -> None:
    versions = re.findall(r"^## (\S+)", (project_root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == callmip_global.__version__


def test_conda_and_pip_ask_for_the_same_versions(
    project_root: Path, project: dict[str, Any]
) -> None:
    wanted = {
        f"{CONDA_NAMES.get(requirement.name, requirement.name)}{requirement.specifier}"
        for requirement in map(Requirement, project["project"]["dependencies"])
        if requirement.name not in ONLY_ON_PYPI
    }
    text = (project_root / "environment.yml").read_text(encoding="utf-8")
    listed = {line for line in yaml.safe_load(text)["dependencies"] if isinstance(line, str)}
    assert wanted - listed == set()
    assert set(project["project"]["optional-dependencies"]["xesmf"]) <= listed


def test_the_wheel_carries_the_package_and_the_data_folders(
    project_root: Path, tracked: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=project_root,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {path.relative_to(project_root).as_posix() for path in tracked}
    package = {name for name in sources if name.startswith("callmip_global/")}
    data = {f"callmip_global/_data/{n}" for n in sources if n.split("/")[0] in DATA_FOLDERS}
    assert len(package) > 10
    assert len(data) > 5
    assert package | data <= names
    assert {name.split("/")[0] for name in names} == {
        "callmip_global",
        f"callmip_global-{callmip_global.__version__}.dist-info",
    }


def test_the_command_line_starts_without_heavy_libraries() -> None:
    program = (
        "import sys, callmip_global.cli.app\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (answer.stdout.strip(), answer.stderr) == ("[]", "")


def test_a_python_that_is_too_old_is_refused_with_what_to_do(
    project_root: Path, awkward_dir: Path
) -> None:
    """A PATH with the tools of a script, and a python3 that says it is 3.9."""
    for tool in ("dirname", "readlink", "bash"):
        (awkward_dir / tool).symlink_to(shutil.which(tool) or "")
    old = awkward_dir / "python3"
    old.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo Python 3.9.1;; *) exit 1;; esac\n', "utf-8"
    )
    old.chmod(0o755)
    answer = subprocess.run(
        [shutil.which("bash") or "", project_root / "scripts" / "demo"],
        env={"PATH": str(awkward_dir)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "Python 3.11 or newer is needed" in answer.stderr
    assert "Python 3.9.1" in answer.stderr


def test_an_environment_made_by_someone_else_is_left_alone(
    project_root: Path, awkward_dir: Path
) -> None:
    (awkward_dir / "pyproject.toml").write_text("", encoding="utf-8")
    mine = awkward_dir / ".venv" / "mine"
    mine.parent.mkdir()
    mine.write_text("precious", encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, project_root / "scripts" / "_setup.py", awkward_dir],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert "was not made by these scripts; move it away first" in answer.stderr
    assert mine.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_checkout_that_cannot_be_written_to_is_refused_in_one_line(
    project_root: Path, awkward_dir: Path
) -> None:
    (awkward_dir / "pyproject.toml").write_text("", encoding="utf-8")
    awkward_dir.chmod(0o555)
    answer = subprocess.run(
        [sys.executable, project_root / "scripts" / "_setup.py", awkward_dir],
        capture_output=True,
        text=True,
    )
    awkward_dir.chmod(0o755)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "cannot be written to" in answer.stderr
