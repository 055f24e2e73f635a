"""scripts/bench_regrid at its smallest: it runs, and wrong values are found. No time is tested."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callmip_global.grid import Grid


def bench(
    root: Path, folder: Path, *arguments: str, modules: Path | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What the script said and the numbers it wrote; ``modules`` come first on Python's path."""
    out = folder / "bench.json"
    environment = dict(os.environ)
    if modules is not None:
        environment["PYTHONPATH"] = str(modules)
    answer = subprocess.run(
        [
            *(sys.executable, str(root / "scripts" / "bench_regrid"), "--size", "tiny"),
            *("--dir", str(folder), "--out", str(out), *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=environment,
    )
    return answer, json.loads(out.read_text()) if out.exists() else {}


def test_every_part_asked_for_is_measured_and_the_values_are_right(
    project_root: Path, awkward_dir: Path
) -> None:
    page = awkward_dir / "bench.md"
    answer, found = bench(
        project_root, awkward_dir, "kills", "layout", "--kills", "2", "--out", str(page)
    )
    assert answer.returncode == 0, answer.stderr
    assert page.read_text() == answer.stdout
    assert [table["title"].partition(":")[0] for table in found["tables"]] == ["kills", "layout"]
    killed, finished, identical, different, _ = found["tables"][0]["rows"][0]
    assert (killed, different) == ("2", "0")
    assert int(finished) == int(identical) > 0
    assert "Values: all as they must be." in answer.stdout
    assert found["failures"] == []
    # Nothing is left behind.
    assert sorted(path.name for path in awkward_dir.iterdir()) == ["bench.json", "bench.md"]


# Loaded by every Python with this folder on its path, so also by the processes that measure. One
# cell of one month is off by one part in 10,000.
SPOILED = """
import importlib.abc, importlib.machinery, sys

class Spoil(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "callmip_global.regrid.apply":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            mean = module.FixedMean.mean
            def spoiled(self, values, out=None):
                result = mean(self, values, out)
                flat = result.reshape(-1)
                at = int((flat == flat).nonzero()[0][0])
                flat[at] *= 1.0001
                return result
            module.FixedMean.mean = spoiled
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Spoil())
"""


def test_values_that_are_wrong_in_one_cell_are_found(project_root: Path, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(SPOILED)
    answer, found = bench(project_root, tmp_path, "apply", modules=modules)
    assert answer.returncode == 1, answer.stderr
    # The mask that changes goes through the other kernel, which is not spoiled.
    (failure,) = found["failures"]
    assert failure.startswith("apply 2deg to 5deg, constant mask: ours differs from the float64")
    assert "WRONG: apply" in answer.stdout
    rows = {tuple(row[1:4]): row for row in found["tables"][0]["rows"]}
    ours = next(row for key, row in rows.items() if key[1] == "varying" and "ours" in key[2])
    assert float(ours[-1].split()[0]) < 1e-5


@pytest.fixture(scope="module")
def script(project_root: Path) -> dict[str, Any]:
    """What the script defines."""
    return runpy.run_path(str(project_root / "scripts" / "bench_regrid"))


def test_the_reference_of_four_cells_is_their_mean_by_area(script: dict[str, Any]) -> None:
    source = Grid("two by two", np.array([0.0, 30.0, 90.0]), np.array([0.0, 90.0, 180.0]))
    target = Grid("one", np.array([0.0, 90.0]), np.array([0.0, 180.0]))
    # Both rows are half of the hemisphere's area: sin 30 degrees is a half.
    values = np.array([[[1.0, 2.0], [3.0, np.nan]], [[1.0, 2.0], [3.0, 6.0]], [[np.nan] * 2] * 2])
    found = script["reference"](source, target, values)
    np.testing.assert_allclose(found[:, 0, 0], [2.0, 3.0, np.nan], rtol=1e-15)


def test_a_difference_says_where_it_is_and_which_cells_are_missing(script: dict[str, Any]) -> None:
    grid = Grid("2 x 2", np.array([-90.0, 0.0, 90.0]), np.array([0.0, 180.0, 360.0]))
    ours = np.array([[[1.0, 2.0], [3.0, np.nan]]], np.float32)
    theirs = np.array([[[1.0, np.nan], [3.5, np.nan]], [[1.0, 2.0], [3.0, 4.0]]])
    found = script["difference"](ours, theirs[:1], grid)
    assert (found.largest, found.relative, found.latitude) == (0.5, 0.5 / 3.5, 45.0)
    assert (found.only_ours, found.only_theirs, found.cells) == (1, 0, 2)
    found = script["difference"](ours, theirs[1:], grid)
    assert (found.largest, found.only_ours, found.only_theirs) == (0.0, 0, 1)
    with pytest.raises(ValueError, match="ours are"):
        script["difference"](ours, theirs, grid)


def test_bytes_of_every_file_are_compared(script: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0").write_bytes(b"abc")
    (tmp_path / ".rest").write_bytes(b"")
    assert script["contents"](tmp_path) == {"c/0": b"abc", ".rest": b""}


def test_the_cubed_sphere_covers_the_sphere_once(script: dict[str, Any]) -> None:
    from callmip_global.regrid import Mesh

    lat, lon, lat_corners, lon_corners = script["cubed_sphere"](5)
    assert lat.shape == (150,)
    mesh = Mesh((1, 150), lat, lon, lat_corners, lon_corners)
    sphere = 4.0 * np.pi * 6.371e6**2
    assert mesh.cell_area.sum() == pytest.approx(sphere, rel=1e-12)
    assert mesh.cell_area.min() > 0.5 * sphere / 150
