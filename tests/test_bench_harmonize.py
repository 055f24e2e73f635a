"""scripts/bench_harmonize at its smallest: it runs, and wrong values are found."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_a_submission_is_made_harmonized_and_right(project_root: Path, awkward_dir: Path) -> None:
    numbers, page = awkward_dir / "bench.json", awkward_dir / "bench.md"
    answer = subprocess.run(
        [
            *(sys.executable, str(project_root / "scripts" / "bench_harmonize")),
            *("--size", "tiny", "--models", "1", "--dir", str(awkward_dir)),
            *("--out", str(numbers), "--out", str(page)),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert page.read_text() == answer.stdout
    assert "Values: all as they must be." in answer.stdout
    found = json.loads(numbers.read_text())
    run = next(run for run in found["runs"] if run["engine"] == "ours")
    assert run["memory_bytes"] > 1e8
    assert found["input_bytes"]["NORTH"] > 1e6
    assert {run["engine"] for run in found["runs"]} | set(found["missing"]) == {
        "ours",
        "xarray",
        "cdo",
    }
    # Nothing is left behind.
    assert sorted(path.name for path in awkward_dir.iterdir()) == ["bench.json", "bench.md"]


@pytest.mark.parametrize(("factor", "wrong"), [(1.0, False), (1.00001, True)])
def test_values_that_are_slightly_off_are_wrong(
    project_root: Path, tmp_path: Path, factor: float, wrong: bool
) -> None:
    bench = runpy.run_path(str(project_root / "scripts" / "bench_harmonize"))
    names = bench["compare"].__globals__
    names["VARIABLES"] = {"gpp": bench["VARIABLES"]["gpp"]}
    size = bench["SIZES"]["tiny"]

    def made(*_: Any) -> Any:
        months = bench["reference"]("gpp", 0, range(12), size)
        monthly = months.copy()
        monthly[3] *= factor
        yield monthly.astype(np.float32)
        yield np.average(months, axis=0, weights=bench["days_of"](range(12)))[np.newaxis]

    names["made"] = made
    (tmp_path / "refused.json").write_text("[]")
    result = bench["Result"]({}, size)
    run = bench["Run"]("NORTH", "ours", 1.0, 1.0, 1)
    bench["compare"](run, tmp_path, 0, size, result)
    assert bool(result.failures) == wrong


def test_the_reference_is_the_mean_over_the_land_of_four_cells(project_root: Path) -> None:
    bench = runpy.run_path(str(project_root / "scripts" / "bench_harmonize"))
    size = bench["SIZES"]["tiny"]
    fine, got = bench["grid_of"]("1deg"), bench["reference"]("lai", 1, [6], size)[0]
    values = bench["truth"]("lai", 1, 6, "1deg")
    row, column = 62, 95  # 34 to 36 N, 10 to 12 E: land and sea
    part = np.s_[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    held = ~np.isnan(values[part])
    assert 0 < held.sum() < 4
    by_hand = np.average(values[part][held], weights=fine.cell_area[part][held])
    assert got[row, column] == pytest.approx(by_hand, rel=1e-12)
    assert np.isnan(got[0, 0])
