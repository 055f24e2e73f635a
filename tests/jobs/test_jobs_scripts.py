"""Job scripts compared whole, and what bash says of them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

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
    python.write_text('#!/bin/sh\nshift 4\necho "$*"\n')
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


HOSTILE_PATHS = [
    "/s/$(touch pwned)/`touch pwned`",
    "/s/'; touch pwned; '",
    '/s/"; touch pwned; "',
    "/-rf/--help/ #SBATCH --uid=0",
    "/s/${HOME}/*/?/[a-z]/~/!1/a%jb%%",
    "/s/e\u0301\u00e9/\u202eodaem\u200b/\u2028#SBATCH --uid=0/\u0085x/\U0001f30d",
    "/s/" + "long" * 500,
]
paths = st.text(
    st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="\\"), min_size=1
).map(lambda text: f"/{text}")


def handed_over(script: str, folder: Path) -> list[str]:
    """Arguments of `python`, NUL between them, as bash hands them over when it runs a script."""
    path = folder / "job.sh"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(
        ["bash", str(path), "tok'en $(touch pwned)", "7", "0"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    assert sorted(p.name for p in folder.iterdir()) == ["job.sh", "python"]
    return done.stdout.decode("utf-8").split("\0")[:-1]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run_dir=paths, step=paths)
@example(run_dir=HOSTILE_PATHS[0], step=HOSTILE_PATHS[1])
@example(run_dir=HOSTILE_PATHS[2], step=HOSTILE_PATHS[3])
@example(run_dir=HOSTILE_PATHS[4], step=HOSTILE_PATHS[5])
@example(run_dir=HOSTILE_PATHS[6], step="-n")
def test_bash_hands_over_exactly_the_bytes_of_every_name(run_dir: str, step: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "python"
        python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        python.chmod(0o755)
        job = replace(RUN, run_dir=Path(run_dir), step=step, python=str(python))
        arguments = handed_over(render_script(job, SCHEDULERS["local"]), folder)
        # Path() takes out doubled slashes: what counts is what the script was made from.
        wanted = ["-P", "-m", "callmip_global.workflow.task", str(job.run_dir), step, "7"]
        assert arguments == [*wanted, "tok'en $(touch pwned)"]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_no_hostile_path_makes_a_second_directive(path: str) -> None:
    plain = render_script(RUN, Slurm())
    text = render_script(replace(RUN, run_dir=Path(path)), Slurm())

    def directives(script: str) -> int:
        return sum(line.startswith(b"#SBATCH") for line in script.encode().split(b"\n"))

    assert directives(text) == directives(plain)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("field", ["name", "queue", "account"])
@pytest.mark.parametrize(
    "value",
    [
        "ab12 -W umask=0",
        "x'y",
        'x"y',
        "$(touch pwned)",
        "`id`",
        "-q",
        "a;b",
        "a#b",
        "é",
        "",
        "a\\b",
    ],
)
def test_what_a_directive_would_split_or_expand_is_refused(
    scheduler: str, field: str, value: str
) -> None:
    with pytest.raises(ValueError, match=field):
        render_script(replace(RUN, **{field: value}), SCHEDULERS[scheduler])


@pytest.mark.parametrize("queue", ["normal", "express@server2", "cpu,gpu", "gpu_p13", "abc@v100"])
def test_queues_and_accounts_of_real_sites_are_accepted(queue: str) -> None:
    for scheduler in SCHEDULERS.values():
        assert render_script(replace(RUN, queue=queue, account=queue), scheduler)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("field", ["run_dir", "step"])
@pytest.mark.parametrize("end", ["\n", "\r", "\0", "\x1b[2J"])
def test_a_control_character_never_reaches_a_comment(scheduler: str, field: str, end: str) -> None:
    value = f"/s/x{end}touch /tmp/pwned"
    job = replace(RUN, **{field: Path(value) if field == "run_dir" else value})
    with pytest.raises(ValueError, match=r"line break|PBS takes no"):
        render_script(job, SCHEDULERS[scheduler])


def test_a_name_that_is_not_valid_on_disk_is_refused_before_it_is_written() -> None:
    with pytest.raises(ValueError, match="not valid UTF-8"):
        render_script(replace(RUN, run_dir=Path("/s/caf\udce9")), Slurm())


def test_a_backslash_in_the_path_is_refused_for_slurm_only() -> None:
    job = replace(RUN, run_dir=Path("/s/a\\b"))
    with pytest.raises(ValueError, match="another run directory"):
        render_script(job, Slurm())
    assert "/s/a\\b" in render_script(job, SCHEDULERS["local"])
