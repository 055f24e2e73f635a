"""The README example on real data: a CoLM run, benchmarked against FLUXCOM and GLEAM."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

from callmip_global.cli.benchmark import benchmark
from callmip_global.cli.harmonize import harmonize
from callmip_global.store import global_total, open_store

pytestmark = pytest.mark.sample_data

EARTH_RADIUS_M = 6.371e6
NATIVE = {"hfls": "f_lfevpa", "hfss": "f_fsena", "evspsbl": "f_fevpa"}


@pytest.fixture(scope="module")
def sample(project_root: Path) -> Path:
    """The sample data, fetched once into .cache/ of the checkout; skips where there are none."""
    target = project_root / ".cache" / "sample_data"
    script = project_root / "scripts" / "fetch_sample_data"
    result = subprocess.run(
        [sys.executable, str(script), str(target)], capture_output=True, text=True
    )
    if result.returncode:
        pytest.skip(f"no sample data: {result.stderr.strip()}")
    return target


@pytest.fixture(scope="module")
def example(sample: Path, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as a checkout in which the README's commands were given."""
    top = tmp_path_factory.mktemp("checkout")
    folder = top / "config" / "examples" / "colm-sample"
    shutil.copytree(project_root / "config" / "examples" / "colm-sample", folder)
    (top / "sample_data").symlink_to(sample)
    app = typer.Typer()
    app.command()(harmonize)
    result = CliRunner().invoke(
        app,
        [
            str(top / "sample_data" / "Initial_test"),
            *("--manifest", str(folder / "manifest.yaml")),
            *("--out", str(top / "collection")),
        ],
    )
    assert result.exit_code == 0, result.output
    return top


def native_totals(sample: Path, name: str) -> np.ndarray:
    """(24,) global sums of a native variable by a way of their own: xarray, areas by hand.

    Centres from 89.75 to -88.25: the first edge, 90.75, lies beyond the pole and is cut there.
    """
    folder = sample / "Initial_test" / "Simulation" / "Initial_test" / "grid"
    totals = []
    for path in sorted(folder.glob("*.nc")):
        with xr.open_dataset(path) as ds:
            edges = np.append(ds["lat"].values + 1.0, ds["lat"].values[-1] - 1.0)
            sines = np.sin(np.deg2rad(np.clip(edges, -90, 90)))
            rows = EARTH_RADIUS_M**2 * (sines[:-1] - sines[1:]) * np.deg2rad(2.0)
            totals.append(float((ds[name][0].fillna(0.0).values * rows[:, None]).sum()))
    return np.array(totals)


@pytest.mark.parametrize("grid", ["1deg", "2deg"])
@pytest.mark.parametrize("name", list(NATIVE))
def test_the_global_total_is_the_native_one(
    sample: Path, example: Path, grid: str, name: str
) -> None:
    store = example / "collection" / f"CoLM.sample_S3_{grid}_Prior.zarr"
    got = global_total(open_store(store, "mon"), name)
    np.testing.assert_allclose(got, native_totals(sample, NATIVE[name]), rtol=1e-6)


def test_the_stores_are_labelled_as_the_protocol_wants(example: Path) -> None:
    ds = open_store(example / "collection" / "CoLM.sample_S3_1deg_Prior.zarr", "mon")
    assert ds["hfls"].attrs["standard_name"] == "surface_upward_latent_heat_flux"
    assert {n: ds[n].attrs["units"] for n in NATIVE} == {
        "hfls": "W m-2",
        "hfss": "W m-2",
        "evspsbl": "kg m-2 s-1",
    }
    assert ds["lat"].values[[0, -1]].tolist() == [-89.5, 89.5]
    assert ds.sizes["time"] == 24
    first, last = ds["time"].values[[0, -1]]
    assert ((first.year, first.month), (last.year, last.month)) == ((2004, 1), (2005, 12))
    assert ds["time"].values[0].calendar == "standard"


def test_the_report_accounts_for_all_24_files_and_3_variables(example: Path) -> None:
    rows = json.loads((example / "collection" / "report.json").read_text())
    used = [r for r in rows if r["outcome"] == "fixed"]
    assert {r["variable"] for r in used} == set(NATIVE)
    assert len(used) == 24 * 3
    assert not [r for r in rows if r["outcome"] == "refused"]


def test_the_run_is_scored_against_all_three_products(example: Path) -> None:
    app = typer.Typer()
    app.command()(benchmark)
    folder = example / "config" / "examples" / "colm-sample"
    result = CliRunner().invoke(
        app,
        [
            str(example / "collection" / "CoLM.sample_S3_2deg_Prior.zarr"),
            *("--products", str(folder / "products.yaml")),
            *("--frequency", "mon"),
            *("--out", str(example / "benchmark")),
        ],
    )
    assert result.exit_code == 0, result.output
    with (example / "benchmark" / "scores.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["region"] == "global"]
    scores = {
        (r["variable"], r["product"]): float(r["value"])
        for r in rows
        if r["quantity"] == "overall_score"
    }
    assert set(scores) == {
        ("hfls", "FLUXCOM-hfls"),
        ("hfss", "FLUXCOM-hfss"),
        ("evspsbl", "GLEAM-evspsbl"),
    }
    assert all(0.3 < value < 1.0 for value in scores.values())
    # Monthly sums of GLEAM became rates: the model's evaporation is of the same size.
    means = {
        (r["quantity"], r["product"]): float(r["value"]) for r in rows if "mean" in r["quantity"]
    }
    ratio = means["mean", "GLEAM-evspsbl"] / means["reference_mean", "GLEAM-evspsbl"]
    assert 0.5 < ratio < 2.0
    assert (example / "benchmark" / "report.html").stat().st_size > 10_000
