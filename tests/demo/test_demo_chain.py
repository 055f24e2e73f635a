"""The demo command from end to end, small: on this machine, and through a real Slurm."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from callmip_global.demo.products import demo_products


def run_demo(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "callmip_global.cli.app", "demo", "--size", "small"]
    done = subprocess.run(
        [*command, "--dir", str(folder), *options],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a small demo that ran to its end, and what it printed."""
    folder = tmp_path_factory.mktemp("chain") / "my demo"
    return folder, run_demo(folder)


def test_the_demo_ends_with_a_report_and_says_where_and_that_it_is_synthetic(
    finished: tuple[Path, str],
) -> None:
    folder, said = finished
    report = folder / "run" / "benchmark" / "report.html"
    assert f"report: {report}\n" in said
    assert "synthetic" in said
    text = report.read_text(encoding="utf-8")
    assert "ynthetic" in text
    assert {product.name for product in demo_products(True) if product.name not in text} == set()


def test_every_product_is_scored_for_both_stages_and_the_calibration_helps_most_fluxes(
    finished: tuple[Path, str],
) -> None:
    with (finished[0] / "run" / "benchmark" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {
        (row["product"], row["stage"]): float(row["value"])
        for row in rows
        if row["region"] == "global"
        and row["quantity"] == "bias_score"
        and row["frequency"] in ("mon", "fx")
        and row["stage"] in ("Prior", "Posterior")
    }
    names = {product.name for product in demo_products(True)}
    assert {name for name, _ in scores} == names
    assert len(scores) == 2 * len(names)
    for name in ("DEMO-GPP", "DEMO-LE"):
        assert scores[name, "Posterior"] > scores[name, "Prior"]


def test_the_stores_hold_what_the_model_wrote(finished: tuple[Path, str]) -> None:
    stores = finished[0] / "run" / "stores"
    for stage in ("Prior", "Posterior"):
        with xr.open_zarr(stores / f"DEMO.v1_S3_2deg_{stage}.zarr", group="mon") as ds:
            assert ds.sizes["time"] == 48
            gpp = (ds["gpp"] * ds["areacella"] * ds["sftlf"] / 100.0).sum(["lat", "lon"])
            assert 100.0 < float(gpp.mean()) * 365 * 86400 / 1e12 < 185.0


def test_repeating_the_demo_runs_nothing_again(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    attempts = sorted((folder / "run" / "steps").glob("*/*/attempt-*"))
    assert len(attempts) >= 30
    said = run_demo(folder)
    assert f"report: {folder / 'run' / 'benchmark' / 'report.html'}\n" in said
    assert sorted((folder / "run" / "steps").glob("*/*/attempt-*")) == attempts


def chunks(folder: Path) -> dict[str, bytes]:
    """Every chunk of every store by name; metadata name the run directory, so they are left out."""
    stores = folder / "run" / "stores"
    return {
        str(path.relative_to(stores)): path.read_bytes()
        for path in sorted(stores.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


def test_the_same_demo_through_slurm_gives_the_same_bytes(
    finished: tuple[Path, str], slurm: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "through slurm"
    said = run_demo(folder, "--scheduler", "slurm")
    assert f"report: {folder / 'run' / 'benchmark' / 'report.html'}\n" in said
    # Every step was a job of the cluster, none ran here.
    steps = {path.name for path in (folder / "run" / "steps").iterdir()}
    names = {job.name for job in slurm.jobs()}
    assert {f"DEMO.v1-{step}" for step in steps} <= names
    wanted = chunks(finished[0])
    assert len(wanted) > 100
    assert chunks(folder) == wanted
