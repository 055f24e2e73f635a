"""Names and files that mean harm, or only have an apostrophe: nothing of them is ever run, and
nothing is written, published or removed outside of the run directory."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from waiting import wait_for

from callmip_global.config.placeholders import expand, render_template
from callmip_global.config.shell import insert, is_bare
from callmip_global.errors import DataError, UsageError
from callmip_global.files import (
    checked_target,
    inside,
    refuse_links,
    remove_below,
    walk_files,
    write_atomic,
)
from callmip_global.jobs.render import render_script
from callmip_global.jobs.scheduler import JobSpec, Submission
from callmip_global.jobs.slurm import Slurm
from callmip_global.workflow import api
from callmip_global.workflow.engines import run_engine
from callmip_global.workflow.model_run import run_segment
from callmip_global.workflow.provenance import check_results
from callmip_global.workflow.prune import prune
from callmip_global.workflow.rundir import RunDir
from callmip_global.workflow.task import run_task

HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "\ntouch pwned\n",
    "'; touch pwned #",
    '"; touch pwned #',
    "a[$(touch pwned)]",
    "x\nEOF\ntouch pwned\n",
    "\\'; touch pwned;",
    "); touch pwned; (",
    "=$(touch pwned)",
    "-rf *",
    "e\u0301\u00e9\u202eodaem\u200b\u2028\u0085",
    "~ {a,b} !! %j",
    "",
]
# Where a group may put a placeholder, each before a word that the shell takes as it is.
BARE = [
    "",
    "./run ",
    "./run --in=",
    "export X=1; ./run ",
    "env N=${N} ./run ",
    "# it's a comment\n./run ",
    "cat > n <<EOF\nit's \"\nEOF\n./run ",
    "(cd . && ./run ",
    "for i in 1; do ./run ",
    "echo \"$(pwd)\" ''; ./run ",
    "x=$(echo $(pwd)) ./run ",
    "a \\\n b ",
]
NOT_BARE = [
    "./run '",
    './run "',
    "# ",
    "cat <<EOF\n",
    "cat <<'EOF'\n",
    "./run \\",
    "./run $",
    "eval ./run ",
    "ssh node ./run ",
    "bash -c './run ",
    "./run `",
    "./run ${",
    "(( ",
    "[[ 1 -eq ",
    "a[",
    "a=(",
    'echo "$(echo "',
    "let x=",
    "declare ",
    "read ",
    "trap '' ",
    "unset ",
    "[ -v ",
]
PIECES = [
    *"'\"\\$`(){};=[]~!*<# \n@",
    *("$(", "${", "${X}", "$(pwd)", "<<E", "<<-E\n", '<<"E"', "\nE\n", "# ", "echo ", "a", "E"),
    *("[[ ", " ]]", "((", "))", "eval ", "case a in ", " esac", "&& ", "|cat ", "x=", "$'", ">f "),
    *("test ", "export Y=", "export ", "declare ", "printf ", "@", "@"),
]
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))


def bash(script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )


# What the shell makes of a value.


@settings(max_examples=150)
@given(value=texts)
@example(value=HOSTILE[0])
@example(value=HOSTILE[3])
@example(value=HOSTILE[-1])
def test_a_value_arrives_as_one_argument_equal_to_the_byte(value: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        command = expand("printf '%s\\0' {a} x={a}y", {"a": value}, quote=True)
        done = bash(command, Path(name))
        assert done.stdout == f"{value}\0x={value}y\0".encode()
        assert list(Path(name).iterdir()) == []


@pytest.mark.parametrize("before", BARE)
@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_stays_an_argument_wherever_the_shell_reads_a_word(
    before: str, value: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.write_text('#!/bin/sh\nfor last do :; done; printf %s "$last" > got\n')
    run.chmod(0o755)
    command = before + insert(value, before)
    if before and "./run" in before:
        ends = {"(cd": ")", "for": "; done"}
        bash(f"{command}{ends.get(before[:3], '')}", tmp_path)
        got = (tmp_path / "got").read_bytes()
        assert got in (value.encode(), f"--in={value}".encode())
    else:
        bash(command, tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("before", NOT_BARE)
def test_where_the_shell_would_run_a_value_it_is_refused(before: str) -> None:
    assert not is_bare(before)
    with pytest.raises(ValueError, match="a word of its own"):
        insert("$(touch pwned)", before)
    # What means nothing to a shell goes anywhere, as in '{first_year}' inside an awk program.
    assert insert("1901", before) == "1901"
    assert insert("/data/CRU-JRA_v2.5/co2.txt", before) == "/data/CRU-JRA_v2.5/co2.txt"


@settings(max_examples=400)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=14), value=st.sampled_from(HOSTILE[:10]))
@example(pieces=["\\", "eval ", " @"], value="a[$(touch pwned)]")
@example(pieces=["E", "<<-E\n", "echo \\\nE\n @"], value="$(touch pwned)")
@example(pieces=["export Y=", "(~ esac ; @"], value="x\nE\ntouch pwned\n")
@example(pieces=["$(pwd)", "#", "<<E\n", "x= @"], value="a[$(touch pwned)]")
@example(pieces=["\\ # ", '"', "<<-E\n @"], value='"; touch pwned #')
def test_no_command_however_odd_makes_the_shell_run_a_value(pieces: list[str], value: str) -> None:
    first, *rest = "".join([*pieces, "@"]).split("@")
    command = first
    for text in rest:
        try:
            command += insert(value, command)
        except ValueError:
            command += "refused"
        command += text
    with tempfile.TemporaryDirectory() as name:
        bash(command, Path(name))
        assert not (Path(name) / "pwned").exists(), command


def test_a_refused_placeholder_is_named_with_the_remedy() -> None:
    with pytest.raises(UsageError) as caught:
        expand("./run '{p}'", {"p": "/my files/x"}, quote=True, where="e.yaml:7", key="run.command")
    line = str(caught.value)
    assert line.startswith("e.yaml:7: run.command: found '{p}'")
    assert "Take {p} out of the quotes" in line
    assert "/my files/x" in line


@pytest.mark.parametrize("value", ["a\0b", "caf\udce9"])
def test_what_no_script_can_hold_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="valid Unicode"):
        expand("./run {p}", {"p": value}, quote=True)


def test_a_template_reaches_values_and_not_into_python() -> None:
    assert render_template("{{ a }}", {"a": "x'y"}, where="t") == "x'y"
    with pytest.raises(UsageError, match="unsafe"):
        render_template("{{ a.__class__.__mro__[1].__subclasses__() }}", {"a": ""}, where="t")
    with pytest.raises(UsageError, match="undefined"):
        render_template("{{ b }}", {"a": ""}, where="t")


# The whole way: an experiment, a run directory and files with such names.


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


HOSTILE_NAMES = [
    "$(touch pwned) `touch pwned`.sh",
    "'; touch pwned; '\".sh",
    "a\ntouch pwned\n.sh",
    f"{nfd('é')}é\u202eodaem\u2028.sh",
    "-rf --help & touch pwned.sh",
    "%j*?[a]~{a,b}\\.sh",
]


@pytest.fixture
def hostile_toy(make_toy: Callable[..., Any], tmp_path: Path) -> Any:
    """A toy of one segment in a folder whose name is an attack."""
    parent = tmp_path / "x'$(touch pwned)`touch pwned`\" -n é"
    parent.mkdir()
    toy = make_toy(name="t;&|#", parent=parent)
    toy.tree["run"]["phases"] = [
        {**toy.tree["run"]["phases"][1], "years": [2005, 2024], "segment_years": 20}
    ]
    toy.tree["run"]["restart"] = []
    (toy.folder / "model.sh").write_text(
        'set -e\n. "$3"\nprintf "%s" "$3" > parameters.txt\necho x > "out/mon_$1.txt"\n'
    )
    return toy


STEP = "run-historical"


def perform(toy: Any, step: str = STEP, row: int = 1) -> RunDir:
    """Write the run directory and do one task in this process, as its job would."""
    run, plan = api.prepare(toy.experiment)
    run.journal.append(
        "intent", token=f"t-{step}-{row}", step=step, table=plan.step(step).table, rows=[row],
        offset=0, pack=1, depends=[], replaces=[], retry="", walltime_s=None, memory_bytes=None,
        segment_years=None,
    )  # fmt: skip
    run_task(run, step, row, f"t-{step}-{row}")
    return run


def attempt_of(run: RunDir, ref: str) -> Path:
    return run.attempts(ref)[-1].path


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_parameter_file_of_any_name_reaches_the_model_as_it_is(
    hostile_toy: Any, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile_toy.tree["stages"] = {
        "Prior": {"parameters": "./" + name.replace("{", "{{").replace("}", "}}")}
    }
    hostile_toy.write()
    (hostile_toy.folder / name).write_text(":\n")
    run = perform(hostile_toy)
    assert run.marker(f"{STEP}/S3.Prior") is not None, attempt_of(run, f"{STEP}/S3.Prior")
    got = (attempt_of(run, f"{STEP}/S3.Prior") / "parameters.txt").read_bytes()
    assert got == os.fsencode(hostile_toy.folder / name)
    assert not list(tmp_path.rglob("pwned"))


def test_a_hostile_experiment_runs_through_the_local_scheduler(
    hostile_toy: Any, tmp_path: Path
) -> None:
    hostile_toy.tree["stages"] = {"Prior": {"parameters": HOSTILE_NAMES[0]}}
    hostile_toy.write()
    (hostile_toy.folder / HOSTILE_NAMES[0]).write_text(":\n")
    hostile_toy.submit()
    assert set(hostile_toy.wait().values()) == {"done"}
    assert not list(tmp_path.rglob("pwned"))


FILE_NAMES = [
    "$(touch pwned) `touch pwned`.txt",
    "'; touch pwned; '\".txt",
    "-rf",
    "--help",
    "a;b&c|d<e>f#g.txt",
    f"{nfd('é')}é\u202eodaem.txt",
    "sp ace/sub dir/-n.txt",
    "back\\slash%j~!.txt",
    "$HOME",
    "x" * 240,
]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_restart_output_and_rendered_files_of_any_name_go_through_a_chain(
    toy: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (toy.folder / "model.py").write_text(
        "import pathlib, sys\n"
        f"name = {name!r}\n"
        "before = pathlib.Path('restart_in', name)\n"
        "n = int(before.read_text()) if before.exists() else 0\n"
        "assert pathlib.Path('nml', name).read_text() == sys.argv[1]\n"
        "for folder in ('restart_out', 'out'):\n"
        "    path = pathlib.Path(folder, name)\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.write_text(str(n + 1))\n"
    )
    (toy.folder / "year.j2").write_text("{{ first_year }}")
    toy.tree["stages"] = {"Prior": {"parameters": "prior.sh"}}
    toy.tree["run"] |= {
        "executables": {"model": "model.py"},
        "command": "{python} {executables.model} {first_year}",
        "restart": [name],
        "outputs": {"mon": f"out/{name}"},
        "files": {f"nml/{name}": "year.j2"},
        "phases": [{**toy.tree["run"]["phases"][1], "years": [2005, 2024], "segment_years": 10}],
    }
    toy.write()
    for step in ("run-historical-2005-2014", "run-historical-2015-2024"):
        run = perform(toy, step)
    marker = run.marker("run-historical-2015-2024/S3.Prior")
    assert marker is not None, run.attempts(f"{step}/S3.Prior")[-1].status
    assert set(marker["restarts"]) == {name}
    assert set(marker["outputs"]) == {f"out/{name}"}
    assert (attempt_of(run, f"{step}/S3.Prior") / "restart_out" / name).read_text() == "2"
    prune(run.path, keep=1, delete=True)
    assert not list(run.path.glob("steps/run-historical-2005*/*/*/restart_out/*"))
    assert check_results(run.path) == []
    assert not list(tmp_path.rglob("pwned"))


def test_modules_in_the_users_folder_take_no_place_of_ours(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    for name in ("json", "argparse", "yaml", "callmip_global", "random", "statistics"):
        text = f"open({str(tmp_path / 'pwned')!r}, 'w')\nraise SystemExit(9)\n"
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    toy.submit()
    assert set(toy.wait().values()) == {"done"}
    assert not (tmp_path / "pwned").exists()


def test_a_run_directory_with_a_line_break_is_refused_in_one_line(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        api.prepare(toy.experiment, tmp_path / "a\n#SBATCH --uid=0")
    assert "\n" not in str(caught.value.problems[0])
    assert not list(tmp_path.glob("a*#SBATCH*/jobs"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (("run", "restart"), ["./years.txt"], "without line breaks, ./"),
        (("run", "restart"), ["a\nb"], "without line breaks"),
        (("run", "restart"), ["a\0b"], "without control characters"),
        (("run", "restart"), ["é" * 128], "at most 255 bytes"),
        (("run", "restart"), ["../../journal.jsonl"], "inside the working folder"),
        (("run", "outputs"), {"mon": "out/"}, "/ at its end"),
        (("run", "outputs"), {"mon": "status.json"}, "another name"),
        (("run", "files"), {"command.sh": "model.sh"}, "another name"),
        (("run", "files"), {"/etc/passwd": "model.sh"}, "inside the working folder"),
        (("run", "files"), {"\x1b[2J": "model.sh"}, "without control characters"),
        (("run", "command"), "./model \0", "without control characters"),
        (("run", "command"), "./model '{inputs.met}'", "a word of its own"),
        (("run", "options"), {"o": "\ud800"}, "without control characters"),
        (("run", "environment"), "\x1b]0;x\x07", "without control characters"),
        (("model", "contact"), "x\x7f", "without control characters"),
        (("model", "version"), "v1\n", "letters, digits"),
        (("model", "name"), "x" * 65, "at most 64 characters"),
        (("variables",), "a\0b", "without control characters"),
        (("simulations",), ["$(touch pwned)"], "one of"),
    ],
)
def test_hostile_text_in_the_experiment_is_one_line_with_the_key(
    toy: Any, key: tuple[str, ...], value: Any, words: str, tmp_path: Path
) -> None:
    toy.tree["run"]["inputs"] = {"met": "model.sh's.nc"}
    (toy.folder / "model.sh's.nc").write_text("x")
    at = toy.tree
    for name in key[:-1]:
        at = at[name]
    at[key[-1]] = value
    toy.write()
    with pytest.raises(UsageError) as caught:
        api.prepare(toy.experiment)
    lines = [str(problem) for problem in caught.value.problems]
    assert any(words in line and key[0] in line for line in lines), lines
    assert all(c.isprintable() for line in lines for c in line)
    assert not list(toy.folder.rglob("pwned"))
    assert not (toy.run_dir / "plan.json").exists()


@pytest.mark.parametrize("field", ["queue", "account"])
def test_a_queue_or_account_that_would_be_split_is_refused_before_anything_is_written(
    toy: Any, field: str
) -> None:
    toy.tree["resources"]["run"][field] = "x -W umask=0 $(touch pwned)"
    toy.write()
    with pytest.raises(UsageError, match=field):
        api.prepare(toy.experiment)
    assert not (toy.run_dir / "jobs").exists()


def test_slurm_itself_finds_script_and_log_under_a_hostile_name(slurm: Any, tmp_path: Path) -> None:
    name = '100%j %A $(touch pwned) `touch pwned` it\'s "q" é\u202e#-x'
    job = JobSpec(
        name="a", step="s", run_dir=tmp_path / name, python="/bin/echo", nodes=1, tasks=1,
        cpus=1, memory_bytes=10**8, walltime_s=60,
    )  # fmt: skip
    job.log_dir.mkdir(parents=True)
    script = job.log_dir.parent / "job.sh"
    script.write_text(render_script(job, Slurm()))
    submission = Submission(script, "a", "tok", (1,))
    for each in (submission, replace(submission, indices=(1, 2))):
        subprocess.run(Slurm().submit_command(each), check=True, capture_output=True, cwd=tmp_path)
    slurm.wait_idle()
    wait_for(lambda: len(list(job.log_dir.iterdir())) == 3)
    assert not list(tmp_path.rglob("pwned"))


# Links: what is published, written and removed stays where it belongs.


@pytest.fixture
def linking_toy(toy: Any, tmp_path: Path) -> Iterator[Any]:
    """A toy of one segment with a restart file, and a file outside that must stay as it is."""
    toy.tree["run"]["phases"] = [
        {**toy.tree["run"]["phases"][1], "years": [2005, 2024], "segment_years": 20}
    ]
    toy.write()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    toy.outside = outside
    yield toy
    assert (outside / "precious.txt").read_text() == "precious"
    assert [p.name for p in outside.rglob("*")] == ["precious.txt"]


def at_exit(toy: Any, *lines: str) -> None:
    """Have the model do this as the last thing, after it has written its files."""
    text = "\n".join(["finish() {", f"  outside={shlex.quote(str(toy.outside))}", *lines, "}"])
    toy.parameters("Prior", f"{text}\ntrap finish EXIT\n")


@pytest.mark.parametrize(
    "plant",
    [
        'ln -sf "$outside/precious.txt" restart_out/years.txt',
        'ln -sf "$outside/precious.txt" out/mon_2005.txt',
        'rm -r restart_out; ln -s "$outside" restart_out',
        'rm -r out; ln -s "$outside" out',
        "ln -sf ../../../../../journal.jsonl out/mon_2005.txt",
        "ln -sf /dev/zero restart_out/years.txt",
        "ln -sf years.txt restart_out/years.txt",
    ],
    ids=["restart", "output", "restarts", "outputs", "inside-the-run", "device", "loop"],
)
def test_a_published_link_out_of_the_attempt_is_a_failure_of_the_model(
    linking_toy: Any, plant: str
) -> None:
    at_exit(linking_toy, plant)
    run = perform(linking_toy)
    assert run.marker(f"{STEP}/S3.Prior") is None
    failure = run.attempts(f"{STEP}/S3.Prior")[0].status["failure"]
    if plant.startswith("ln -sf years.txt"):
        assert "years.txt is missing" in failure["message"]
    else:
        assert failure["class"] == "model"
        assert "is a link that leaves the attempt folder" in failure["message"]


def test_a_link_inside_the_attempt_is_published_like_any_file(linking_toy: Any) -> None:
    at_exit(
        linking_toy,
        "mkdir work; mv restart_out/years.txt work/a; ln -s ../work/a restart_out/years.txt",
    )
    run = perform(linking_toy)
    marker = run.marker(f"{STEP}/S3.Prior")
    assert marker is not None
    assert marker["restarts"]["years.txt"]["bytes"] == len("20\n")


def test_a_pattern_that_reaches_through_a_link_is_refused(linking_toy: Any) -> None:
    linking_toy.tree["run"]["restart"] = ["*/precious.txt"]
    linking_toy.write()
    at_exit(linking_toy, 'ln -s "$outside" restart_out/far')
    run = perform(linking_toy)
    failure = run.attempts(f"{STEP}/S3.Prior")[0].status["failure"]
    assert "leaves the attempt folder" in failure["message"]


@pytest.mark.parametrize(
    "name", ["jobs", "steps", "stores", "export", "benchmark", "journal.jsonl", "plan.json"]
)
def test_a_link_in_place_of_a_folder_of_the_run_is_named_before_anything_is_written(
    linking_toy: Any, name: str
) -> None:
    linking_toy.run_dir.mkdir()
    (linking_toy.run_dir / name).symlink_to(linking_toy.outside)
    with pytest.raises(UsageError) as caught:
        api.prepare(linking_toy.experiment)
    assert str(linking_toy.run_dir / name) in str(caught.value)
    assert str(linking_toy.outside) in str(caught.value)
    assert [p.name for p in linking_toy.run_dir.iterdir()] == [name]
    (linking_toy.run_dir / name).unlink()


@pytest.mark.parametrize(
    "inner", [f"jobs/{STEP}", f"jobs/{STEP}/log", f"steps/{STEP}", f"steps/{STEP}/S3.Prior"]
)
def test_a_link_deeper_in_the_run_is_named_before_anything_is_written(
    linking_toy: Any, inner: str
) -> None:
    link = linking_toy.run_dir / inner
    link.parent.mkdir(parents=True)
    link.symlink_to(linking_toy.outside)
    with pytest.raises(UsageError, match="a link that leads to"):
        api.prepare(linking_toy.experiment)
    assert not (linking_toy.run_dir / "plan.json").exists()


def test_a_job_does_not_follow_a_link_that_was_planted_after_submit(linking_toy: Any) -> None:
    run, _ = api.prepare(linking_toy.experiment)
    (run.path / "steps").symlink_to(linking_toy.outside)
    with pytest.raises((DataError, UsageError), match="a link that leads to"):
        api.prepare(linking_toy.experiment)
    (run.path / "steps").unlink()
    (run.path / "steps" / STEP).mkdir(parents=True)
    plan = run.plan()
    run.journal.append(
        "intent", token="t", step=STEP, table=plan.step(STEP).table, rows=[1], offset=0, pack=1,
        depends=[], replaces=[], retry="", walltime_s=None, memory_bytes=None,
        segment_years=None,
    )  # fmt: skip
    (run.path / "steps" / STEP / "S3.Prior").symlink_to(linking_toy.outside)
    with pytest.raises(DataError, match="a link that leads to"):
        run_task(run, STEP, 1, "t")


@pytest.mark.parametrize("name", ["stores", "export", "benchmark"])
def test_an_engine_does_not_write_through_a_link(linking_toy: Any, name: str) -> None:
    run, plan = api.prepare(linking_toy.experiment)
    (run.path / name).symlink_to(linking_toy.outside)
    step = plan.step("harmonize")
    with pytest.raises(UsageError, match="a link that leads to"):
        run_engine(run, plan, step, step.tasks[0], run.path, {})


def test_pieces_of_a_segment_are_not_kept_through_a_link(linking_toy: Any) -> None:
    run, plan = api.prepare(linking_toy.experiment)
    attempt = run.task_dir(f"{STEP}/S3.Prior") / "attempt-01"
    attempt.mkdir(parents=True)
    (attempt.parent / "pieces").symlink_to(linking_toy.outside)
    step = plan.step(STEP)
    with pytest.raises(DataError, match="a link that leads to"):
        run_segment(plan, step, step.tasks[0], attempt, {}, piece_years=5)


def test_a_run_directory_that_is_itself_reached_through_a_link_is_fine(
    linking_toy: Any, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    run, _ = api.prepare(linking_toy.experiment, tmp_path / "link")
    assert run.path == tmp_path / "real"
    api.prepare(linking_toy.experiment, tmp_path / "link")


# The functions beneath.


def test_a_target_is_made_inside_and_refused_outside(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "near").symlink_to("a")
    (folder / "far").symlink_to(tmp_path)
    assert checked_target(folder, "a/b/c.txt") == folder / "a/b/c.txt"
    assert (folder / "a/b").is_dir()
    assert checked_target(folder, "near/x") == folder / "near/x"
    for name in ("far/x", "far/new/x", "far", "../x", "a/../../x", "/etc/x"):
        with pytest.raises(DataError, match="a link that leads to"):
            checked_target(folder, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]


def test_inside_is_about_where_a_path_leads(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/loop").symlink_to("loop")
    (tmp_path / "a/up").symlink_to("../ab")
    assert inside(tmp_path / "a", tmp_path / "a")
    assert inside(tmp_path / "a", tmp_path / "a/not/there")
    assert inside(tmp_path / "a", tmp_path / "a/loop")
    assert not inside(tmp_path / "a", tmp_path / "ab")
    assert not inside(tmp_path / "a", tmp_path / "a/up/x")


def test_every_link_that_leads_out_is_told_at_once(tmp_path: Path) -> None:
    root = tmp_path / "r"
    (root / "jobs/s").mkdir(parents=True)
    (root / "stores").symlink_to(tmp_path)
    (root / "jobs/s/log").symlink_to("/nowhere")
    (root / "jobs/fine").symlink_to("s")
    (root / "notes").symlink_to("/etc")
    with pytest.raises(UsageError) as caught:
        refuse_links(root, ("jobs", "stores", "steps"))
    assert [Path(p.where).relative_to(root) for p in caught.value.problems] == [
        Path("jobs/s/log"),
        Path("stores"),
    ]


@pytest.mark.parametrize(
    ("umask", "mode", "wanted"),
    [(0o077, None, 0o600), (0o077, 0o755, 0o700), (0o002, None, 0o664), (0o022, 0o755, 0o755)],
)
def test_files_have_the_permissions_of_the_umask(
    umask: int, mode: int | None, wanted: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "f", "x", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == wanted


def test_the_run_directory_is_as_private_as_the_umask_says(toy: Any) -> None:
    before = os.umask(0o077)
    try:
        run, _ = api.prepare(toy.experiment)
    finally:
        os.umask(before)
    for path in (run.path, *run.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_writing_replaces_a_link_and_never_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "f").symlink_to("precious")
    write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "f").is_symlink()
    assert (tmp_path / "f").read_text() == "new"


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("x" * 255), "x")
    assert (tmp_path / ("x" * 255)).read_text() == "x"


def test_walking_sees_a_link_as_itself(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_text("12345")
    (tmp_path / "d/link").symlink_to("/etc")
    found = {name: status.st_size for name, status in walk_files(tmp_path / "d")}
    assert found == {"e/f": 5, "link": len("/etc")}
    assert list(walk_files(tmp_path / "not there")) == []


def test_removing_never_leaves_the_folder(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "r"
    (outside / "d").mkdir(parents=True)
    (outside / "d/f").write_text("precious")
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/f").write_text("x")
    (root / "a/far").symlink_to(outside)
    (root / "a/file").symlink_to(outside / "d/f")
    remove_below(root, ["a/far/d/f", "a/file", "a/b/f", "a/b/not-there", "gone/x"])
    assert (outside / "d/f").read_text() == "precious"
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*")) == ["a", "a/far"]
    for name in ("../outside/d/f", "/etc/passwd", "a/../../outside/d/f", ""):
        with pytest.raises(ValueError):
            remove_below(root, [name])


def test_a_root_that_became_a_link_is_not_removed_from(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/f").write_text("precious")
    (tmp_path / "r").symlink_to("outside")
    remove_below(tmp_path / "r", ["f"])
    assert (tmp_path / "outside/f").exists()
