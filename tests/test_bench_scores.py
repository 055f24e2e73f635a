"""scripts/bench_scores at its smallest: it runs and counts right. Its times are not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = ["--grid", "2deg", "--months", "72", "--rounds", "1"]


def bench(
    root: Path, folder: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What the script said and the numbers it wrote."""
    out = folder / "bench.json"
    clean = {k: v for k, v in os.environ.items() if k not in ("BENCH_ILAMB", "BENCH_ILAMB3")}
    program = [sys.executable, str(root / "scripts" / "bench_scores"), *TINY]
    answer = subprocess.run(
        [*program, "--dir", str(folder), "--out", str(out), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=clean,
    )
    return answer, json.loads(out.read_text()) if out.exists() else {}


def test_a_pair_is_measured_and_what_is_left_out_is_said(
    project_root: Path, awkward_dir: Path
) -> None:
    page = awkward_dir / "bench.md"
    absent = str(awkward_dir / "none" / "python")
    answer, found = bench(project_root, awkward_dir, "--ilamb3", absent, "--out", str(page))
    assert (answer.returncode, answer.stderr) == (0, "")
    (measures,) = found["pairs"].values()
    assert list(measures) == ["ours"]
    assert 0 < measures["ours"]["scoring_s"][0] < measures["ours"]["wall_s"][0]
    assert measures["ours"]["peak_mib"][0] > 10
    assert page.read_text() == answer.stdout
    assert "ilamb3 was left out: its Python (--ilamb3) is not there." in answer.stdout
    assert "ILAMB 2.7 was left out: its Python (--ilamb) was not given." in answer.stdout
    assert sorted(path.name for path in awkward_dir.iterdir()) == ["bench.json", "bench.md"]


def test_a_study_scores_every_run_against_every_product(
    project_root: Path, awkward_dir: Path
) -> None:
    answer, found = bench(
        *(project_root, awkward_dir, "--study", "--models", "3", "--variables", "2"),
        *("--products", "2", "--workers", "1"),
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    # That there is a score for each is checked by the script itself: else code 1.
    assert found["study"]["pairs of run and product"] == 3 * 2 * 2 * 2
    assert found["study"]["maps_mib"] > 0
