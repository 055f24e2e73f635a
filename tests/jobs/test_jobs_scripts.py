"""Job scripts compared whole, and what bash says of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from callmip_global.jobs.local import Local
from callmip_global.jobs.pbs import Pbs
from callmip_global.jobs.render import render_script
from callmip_global.jobs.scheduler import JobSpec, Scheduler
from callmip_global.jobs.slurm import Slurm

GB = 1024**3
RUN = JobSpec(
    name="CLASSIC.v2-run-historical",
    step="run-historical",
    run_dir=Path("/scratch/ab12/classic.run"),
    python="/home/me/env/bin/python",
    nodes=2,
    tasks=96,
    cpus=1,
    memory_bytes=190 * GB,
    walltime_s=36000,
    queue="normal",
    account="ab12",
    limit_threads=False,
)
NCI = "ncpus={cpus_total},mem={memory_total_mb}mb,jobfs=10gb"
SCHEDULERS: dict[str, Scheduler] = {
    "slurm": Slurm(),
    "pbs": Pbs(),
    "local": Local(Path("/scratch/queue"), 2),
}
CASES = {
    "slurm-mpi": ("slurm", RUN),
    "slurm-awkward-path": (
        "slurm",
        replace(RUN, run_dir=Path("/scratch/my 100% run's dir"), python="/opt/my py/bin/python"),
    ),
    "slurm-engine": (
        "slurm",
        replace(
            RUN, name="CLASSIC.v2-regrid", step="regrid", nodes=1, tasks=1, cpus=8,
            memory_bytes=32 * GB, queue=None, account=None, limit_threads=True,
            shell_setup="source /etc/profile\nmodule purge\n",
            directives=("--constraint=rome", "--mail-type=FAIL"),
        ),
    ),
    "pbs-select": ("pbs", RUN),
    "pbs-nci": (
        "pbs",
        replace(
            RUN, account=None, resource_line=NCI,
            directives=("-P ab12", "-l storage=gdata/ab12+scratch/ab12"),
        ),
    ),
    "local": ("local", replace(RUN, limit_threads=True)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_script_is_the_golden_one_to_the_byte(
    case: str, golden: Callable[[str, str], None], tmp_path: Path
) -> None:
    scheduler, job = CASES[case]
    text = render_script(job, SCHEDULERS[scheduler])
    golden(f"jobs/{case}.sh", text)
    script = tmp_path / "job.sh"
    script.write_text(text)
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
@pytest.mark.parametrize("field", ["name", "queue", "account"])
def test_a_line_break_in_a_directive_is_refused(scheduler: str, field: str) -> None:
    job = replace(RUN, **{field: "x\n#SBATCH --uid=0"})
    with pytest.raises(ValueError, match="line break"):
        render_script(job, SCHEDULERS[scheduler])


def test_a_path_that_pbs_cannot_take_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="choose another run directory"):
        render_script(replace(RUN, run_dir=Path("/a b/run")), Pbs())


@pytest.mark.parametrize(
    ("arguments", "environment", "wanted"),
    [
        (["tok", "7", "0"], {}, "run-historical 7 tok"),
        (["tok", "", "0"], {"SLURM_ARRAY_TASK_ID": "3"}, "run-historical 3 tok"),
        (["tok", "", "1000"], {"SLURM_ARRAY_TASK_ID": "3"}, "run-historical 1003 tok"),
        # A plain job submitted from inside somebody's array inherits the index: it does not count.
        (["tok", "7", "0"], {"SLURM_ARRAY_TASK_ID": "3"}, "run-historical 7 tok"),
        ([], {"CALLMIP_TOKEN": "tok", "CALLMIP_INDEX": "5", "CALLMIP_OFFSET": "0"},
         "run-historical 5 tok"),
    ],
    ids=["single", "array", "array-with-offset", "single-inside-an-array", "by-environment"],
)  # fmt: skip
def test_the_script_hands_over_the_row_of_the_task_table(
    arguments: list[str], environment: dict[str, str], wanted: str, awkward_dir: Path
) -> None:
    python = awkward_dir / "python"
    python.write_text('#!/bin/sh\nshift 3\necho "$*"\n')
    python.chmod(0o755)
    job = replace(RUN, python=str(python), run_dir=awkward_dir)
    script = awkward_dir / "job.sh"
    script.write_text(render_script(job, Slurm()))
    done = subprocess.run(
        ["bash", str(script), *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == wanted
