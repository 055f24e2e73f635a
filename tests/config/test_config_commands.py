"""``init`` and ``validate`` as a user types them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from callmip_global.cli import experiment
from callmip_global.config.init import write_experiment
from callmip_global.config.load import load_leniently
from callmip_global.config.site import config_names
from callmip_global.errors import UsageError

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(experiment.init)
app.command()(experiment.validate)


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_a_valid_experiment_is_one_line(group) -> None:
    result = run("validate", "experiment.yaml")
    assert result.exit_code == 0
    assert result.stdout == (
        "experiment.yaml: valid: 2 simulations (S3, CO2) x Prior + Posterior (3 members)"
        " x 6 segments on cluster; delivers 1911-1930 at 1deg\n"
    )


def test_fewer_years_than_the_protocol_wants_are_pointed_out(group) -> None:
    result = run("validate", "experiment.yaml", "--set", "output.years=5")
    assert result.exit_code == 0
    assert result.stdout.endswith("at 1deg (the protocol asks for at least 20 years)\n")


def test_problems_are_raised_for_exit_code_2_with_nothing_on_stdout(group) -> None:
    result = run("validate", "experiment.yaml", "--set", "output.grid=7deg")
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert result.stdout == ""


def test_json_has_the_same_problems_and_exit_code(group) -> None:
    result = run("validate", "experiment.yaml", "--json", "--set", "output.grid=7deg")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert report["valid"] is False
    assert report["problems"] == [
        {
            "where": "--set output.grid=7deg",
            "key": "output.grid",
            "found": "'7deg'",
            "wanted": "one of: '0.5deg', '1deg' or '2deg'",
            "remedy": "",
        }
    ]


def test_json_of_a_valid_experiment_sums_it_up(group) -> None:
    report = json.loads(run("validate", "experiment.yaml", "--json").stdout)
    assert report == {
        "experiment": "experiment.yaml",
        "valid": True,
        "problems": [],
        "summary": {
            "simulations": ["S3", "CO2"],
            "stages": {"Prior": 1, "Posterior": 3},
            "tiles": 1,
            "segments": 6,
            "years": [1911, 1930],
            "grid": "1deg",
            "site": "cluster",
        },
    }


def test_json_of_a_file_that_is_not_there_is_json_too(tmp_path: Path) -> None:
    result = run("validate", str(tmp_path / "none.yaml"), "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"][0]["found"] == "no such file"


@pytest.mark.parametrize("site", config_names("sites"))
@pytest.mark.parametrize("model", ["CLASSIC", "My-Model2"])
def test_init_writes_an_experiment_that_is_right_but_for_what_is_the_groups(
    tmp_path: Path, model: str, site: str
) -> None:
    path = tmp_path / "experiment.yaml"
    steps = write_experiment(model, site, path)
    loaded, problems = load_leniently(path)
    assert problems == []
    assert loaded is not None
    assert (loaded.experiment.model.name, loaded.site.name) == (model, site)
    assert loaded.experiment.model.version == "v1"
    assert loaded.resolve_variables().name == (
        "classic.yaml" if model == "CLASSIC" else "template.yaml"
    )
    assert steps[-1] == f"then: callmip-global validate {path}"
    wanted = loaded.site.requires.values()
    assert all(any(meaning in step for step in steps) for meaning in wanted)


def test_the_command_prints_one_line_per_problem_on_stderr_and_exits_with_2(
    group, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from callmip_global.cli.app import main

    (group.folder / "params" / "posterior_002.txt").unlink()
    words = ["callmip-global", "validate", "experiment.yaml", "--set", "run.restrt=[]"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(": ")[0] for line in err.splitlines()] == [
        "experiment.yaml:6",
        "--set run.restrt=[]",
    ]


def test_a_path_that_cannot_be_written_is_one_line_and_wrong_use(
    group, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from callmip_global.cli.app import main

    words = ["submit", "experiment.yaml", "--dry-run", "--run-dir", "experiment.yaml/run"]
    monkeypatch.setattr("sys.argv", ["callmip-global", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "experiment.yaml/run: found an error of the operating system: Not a directory" in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "x.nc"), 1, "x.nc: found an error"),
        (RuntimeError("NetCDF: HDF error"), 1, "Is the disk or the quota full"),
    ],
    ids=["system", "netcdf"],
)
def test_a_full_disk_is_one_line(
    error: Exception,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from callmip_global.cli import app as command_line

    def fail() -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err


def test_a_plan_in_a_file_has_every_name_whole_and_on_one_line(
    group, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from callmip_global.cli.plan import plan

    monkeypatch.setenv("COLUMNS", "80")
    plan(Path("experiment.yaml"), json=True)
    steps = json.loads(capsys.readouterr().out)["steps"]
    plan(Path("experiment.yaml"))
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for step in steps:
        assert ", ".join(step["waits_for"]) in rows[step["name"]]


def test_init_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("mine")
    result = run("init", "CLASSIC", "gadi", "--out", str(path))
    assert isinstance(result.exception, UsageError)
    assert "already there" in str(result.exception)
    assert path.read_text() == "mine"


def test_init_takes_a_site_file_of_the_group(group) -> None:
    result = run("init", "LAND", "site.yaml", "--out", "new.yaml")
    assert result.exit_code == 0
    assert "\nsite: site.yaml\n" in Path("new.yaml").read_text()


@pytest.mark.parametrize(
    ("model", "site", "line"),
    [
        (
            "CLASSIC",
            "gady",
            "init SITE: found 'gady', wanted one of: archer2, derecho, gadi, jasmin-lotus2,",
        ),
        ("CLASSIC.v2", "gadi", "init MODEL: name: found 'CLASSIC.v2', wanted letters, digits and"),
        ("a: {b", "gadi", "init MODEL: name: found 'a: {b', wanted letters, digits and"),
    ],
)
def test_init_refuses_what_it_does_not_know(
    tmp_path: Path, model: str, site: str, line: str
) -> None:
    with pytest.raises(UsageError) as caught:
        write_experiment(model, site, tmp_path / "x.yaml")
    assert str(caught.value).startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_that_python_drops_ends_the_command_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from callmip_global.cli import app as command_line

    class InterruptedWhileItGoes:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    other = typer.Typer(pretty_exceptions_enable=False)

    @other.command()
    def work() -> None:
        InterruptedWhileItGoes()
        time.sleep(10)

    before = sys.unraisablehook
    monkeypatch.setattr(command_line, "app", other)
    monkeypatch.setattr("sys.argv", ["callmip-global"])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "interrupted\n")
    assert sys.unraisablehook is before
