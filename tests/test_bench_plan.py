"""scripts/bench_plan at its smallest: it runs and counts right. Its times are not tested."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# 2 simulations x 2 stages x 1 member x 3 tiles: 12 chains of 2 segments, and 4 stores.
SMALL = ["--members", "1", "--tiles", "3", "--segments", "2", "--array", "5", "--repeat", "1"]
TASKS = 12 * 2 + 4 * 4
ARRAYS = 2 * 3 + 4
"""Each segment's 12 tasks as 5 + 5 + 2; merge, harmonize, regrid and export one array each."""


def bench(
    root: Path, folder: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What the script said and the numbers it wrote."""
    out = folder / "bench.json"
    program = [sys.executable, str(root / "scripts" / "bench_plan")]
    answer = subprocess.run(
        [*program, *SMALL, "--dir", str(folder), "--out", str(out), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return answer, json.loads(out.read_text()) if out.exists() else {}


def test_every_task_is_planned_submitted_once_and_found_again(
    project_root: Path, awkward_dir: Path
) -> None:
    page = awkward_dir / "bench.md"
    answer, found = bench(
        project_root, awkward_dir, "--snakemake", "none", "--out", str(page), "--repeat", "2"
    )
    # That all tasks are submitted, queued and done is checked by the script itself: else code 1.
    assert (answer.returncode, answer.stderr) == (0, "")
    assert found["size"]["tasks"] == TASKS
    assert found["counts"]["planned sbatch"] == ARRAYS
    assert found["counts"]["calls of sbatch"] == ARRAYS
    assert found["counts"]["scheduler calls"] > ARRAYS
    assert found["counts"]["scheduler calls of status"] == 1
    # A script and a table for each of the 6 steps, at least.
    assert found["counts"]["files"] >= 12
    assert list(found["measures"]) == ["dry run", "submit", "status queued", "status done"]
    for measure in found["measures"].values():
        assert len(measure["wall_s"]) == len(measure["peak_mib"]) == 2
        assert min(measure["wall_s"]) > 0
        assert min(measure["peak_mib"]) > 10
    assert page.read_text() == answer.stdout
    assert "Snakemake was left out" in answer.stdout
    assert sorted(path.name for path in awkward_dir.iterdir()) == ["bench.json", "bench.md"]


def test_snakemake_finds_the_same_number_of_jobs(project_root: Path, tmp_path: Path) -> None:
    program = shutil.which("snakemake")
    if program is None:
        pytest.skip("Snakemake is not installed, and no part of the project needs it")
    answer, found = bench(project_root, tmp_path, "--snakemake", program)
    assert answer.returncode == 0, answer.stderr
    assert found["machine"]["snakemake"]
    assert f"| dry run of {TASKS} tasks | callmip-global | Snakemake | ratio |" in answer.stdout


@pytest.fixture
def stand_in(project_root: Path, awkward_dir: Path) -> Path:
    """Folder of the stand-in scheduler's commands, without jobs."""
    program = (
        "import runpy, sys; from pathlib import Path\n"
        "sys.path.insert(0, str(Path(sys.argv[1]).parent))\n"
        "runpy.run_path(sys.argv[1])['StandIn'](Path(sys.argv[2]))"
    )
    folder = awkward_dir / "scheduler"
    script = project_root / "scripts" / "bench_plan"
    subprocess.run([sys.executable, "-c", program, script, folder], check=True)
    return folder


def test_the_stand_in_lists_arrays_as_slurm_does(stand_in: Path) -> None:
    def ask(*command: str) -> str:
        program = stand_in / command[0]
        answer = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    assert ask("sbatch", "--parsable", "--comment=one", "--array=1-3,7", "job.sh") == "1001\n"
    after = "--dependency=aftercorr:1001"
    assert ask("sbatch", "--parsable", "--comment=two", after, "job.sh") == "1002\n"
    listed = ask("squeue", "-h", "-t", "all", "-o", "%i|%k|%T|%r").splitlines()
    assert listed == ["1001_[1-3,7]|one|PENDING|Priority", "1002|two|PENDING|Dependency"]
    elements = ask("squeue", "-h", "-r", "-o", "%i").splitlines()
    assert elements == ["1001_1", "1001_2", "1001_3", "1001_7", "1002"]
    assert ask("sbatch", "--version").startswith("slurm ")
    calls = [json.loads(line)[0] for line in (stand_in / "calls.jsonl").read_text().splitlines()]
    assert calls == ["sbatch", "sbatch", "squeue", "squeue"]


def test_the_stand_in_refuses_a_dependency_on_a_job_it_never_had(stand_in: Path) -> None:
    answer = subprocess.run(
        [stand_in / "sbatch", "--parsable", "--dependency=afterok:99", "job.sh"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "never submitted: ['99']" in answer.stderr
