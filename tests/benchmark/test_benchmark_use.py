"""The command as people use it: odd names, one folder twice, what lies about, slips of the hand."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import GRID, benchmark, cycles, dataset, number, write_product, write_run
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from callmip_global.benchmark import report
from callmip_global.benchmark.inputs import read_runs, unpaired_notes
from callmip_global.benchmark.pictures import Projection, Scale, map_png
from callmip_global.benchmark.regions import select_regions
from callmip_global.cli.app import app
from callmip_global.config.products import load_products
from callmip_global.errors import UsageError
from callmip_global.files import home_path, name_part


def write_products(folder: Path, entries: dict[str, dict]) -> Path:
    """A products file; it is read as YAML, of which JSON is a part."""
    path = folder / "products.yaml"
    whole = {n: {"variable": "hfls", "kind": "synthetic"} | own for n, own in entries.items()}
    path.write_text(json.dumps({"products": whole}), encoding="utf-8")
    return path


@pytest.fixture
def study(tmp_path):
    """Runs in ``stores``, and two products of other means."""
    truth = cycles(3)
    write_run(tmp_path / "stores", truth)
    write_run(tmp_path / "stores", truth + 1.0, stage="Posterior")
    write_product(tmp_path, truth, name="a")
    write_product(tmp_path, truth + 5.0, name="b")
    return tmp_path


def called(study: Path, products: Path, out: Path):
    """The command, in one region at one frequency."""
    choice = ["--region", "global", "--frequency", "mon"]
    arguments = ["benchmark", str(study / "stores"), "-p", str(products), "-o", str(out), *choice]
    return CliRunner().invoke(app, arguments)


@given(st.lists(st.text(max_size=90), min_size=2, max_size=4, unique=True))
def test_different_texts_make_different_parts_of_file_names(texts):
    parts = [name_part(text) for text in texts]
    assert len(set(parts)) == len(parts)
    assert all(re.fullmatch(r"[A-Za-z0-9.+-]{0,69}", part) for part in parts)
    assert name_part("FLUXCOM-X.v1+") == "FLUXCOM-X.v1+"


def test_products_whose_names_differ_in_signs_alone_have_maps_of_their_own(study):
    names = ("A B", "A-B", "A/B", "A_B", "../A")
    entries = {name: {"path": f"{'ab'[k % 2]}.nc"} for k, name in enumerate(names)}
    assert called(study, write_products(study, entries), study / "out").exit_code == 0
    summary = json.loads((study / "out" / "benchmark.json").read_text())
    maps = [file["file"] for entry in summary["comparisons"] for file in entry["maps"]]
    assert len(set(maps)) == len(names) == len(list((study / "out" / "maps").iterdir()))
    assert number(study / "out", "bias", product="A B", stage="Prior") == pytest.approx(0, abs=1e-5)
    assert number(study / "out", "bias", product="A-B", stage="Prior") == pytest.approx(-5)


def test_a_folder_in_use_by_another_benchmark_is_left_alone(study):
    products, out = write_products(study, {"A": {"path": "a.nc"}}), study / "out"
    out.mkdir()
    owner = {"host": os.uname().nodename, "pid": os.getpid(), "id": "0"}
    (out / ".lock").write_text(json.dumps(owner))
    refused = called(study, products, out)
    assert isinstance(refused.exception, UsageError)
    assert f"{out}: found locked by process {os.getpid()}" in str(refused.exception)
    assert [path.name for path in out.iterdir()] == [".lock"]
    (out / ".lock").unlink()
    assert called(study, products, out).exit_code == 0
    assert not (out / ".lock").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--region", "moon"],
        ["--scheme", "ilamb28"],
        ["--frequency", "day"],
        ["--workers", "2"],
        ["--dask", "slurm", "--set", "memory=lots"],
        ["--dask", "slurm", "--set", 'directives=["--a\\nb"]'],
        ["a.nc"],
    ],
    ids=" ".join,
)
def test_a_call_that_cannot_be_used_leaves_nothing_behind(study, wrong):
    products = write_products(study, {"A": {"path": "a.nc"}})
    before = sorted(study.rglob("*"))
    wrong = [str(study / part) if part == "a.nc" else part for part in wrong]
    out = study / "new" / "out"
    arguments = ["benchmark", str(study / "stores"), "-p", str(products), "-o", str(out), *wrong]
    assert isinstance(CliRunner().invoke(app, arguments).exception, UsageError)
    assert sorted(study.rglob("*")) == before


def test_maps_of_benchmarks_among_the_stores_are_no_runs(study):
    products = write_products(study, {"A": {"path": "a.nc"}})
    out = study / "stores" / "out"
    for _ in range(2):
        assert called(study, products, out).exit_code == 0
    assert called(study, products, study / "stores" / "other").exit_code == 0
    assert (out / "scores.csv").read_bytes() == (study / "stores/other/scores.csv").read_bytes()


def test_pictures_of_the_users_own_stay_and_old_ones_go(study, monkeypatch):
    monkeypatch.setattr(report, "_MAP_BYTES", 0)
    pictures = study / "out" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "holiday.png").write_bytes(b"\x89PNG\r\n\x1a\n and a face")
    field, edges = np.zeros((2, 2)), (np.linspace(-90, 90, 3), np.linspace(-180, 180, 3))
    old = map_png(field, Projection.of(*edges, 20), Scale("sequential", 0, 1))
    (pictures / "old.png").write_bytes(old)
    assert (
        called(study, write_products(study, {"A": {"path": "a.nc"}}), study / "out").exit_code == 0
    )
    names = {path.name for path in pictures.iterdir()}
    assert {"holiday.png", "A_M.v1_S3_bias_prior.png"} <= names
    assert "old.png" not in names


@pytest.mark.parametrize("name", ["", " ", "two\nlines", "\u202eright to left", "x" * 81])
def test_a_name_that_cannot_stand_in_a_table_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="wanted 1 to 80 letters on one line"):
        load_products(write_products(tmp_path, {name: {"path": "a.nc"}}))


def test_a_home_that_nobody_has_is_a_file_that_is_not_there(tmp_path):
    assert home_path("~") == Path.home()
    assert home_path("~nobody-of-that-name/a") == Path("~nobody-of-that-name/a")
    (product,) = load_products(write_products(tmp_path, {"A": {"path": "~nobody-of-that-name/a"}}))
    assert not product.files()
    with pytest.raises(UsageError, match="no such file"):
        select_regions(["A=~nobody-of-that-name/a.nc"])


def test_what_is_said_of_a_product_can_be_done_in_its_entry(study):
    dataset("obs", cycles(3)[0], GRID, None, "kg").to_netcdf(study / "c.nc")
    (study / "d.nc").write_text("no data")
    files = {"A": "a.nc", "WRONG": "c.nc", "FOLDER": ".", "TEXT": "d.nc"}
    entries = {name: {"path": path} for name, path in files.items()}
    done = called(study, write_products(study, entries), study / "out")
    wrong, folder, text = str(done.exception).splitlines()
    assert "as factor and units in the products file" in wrong
    assert "found a folder, wanted NetCDF. Name the files in it:" in folder
    assert "found a file that cannot be read (no NetCDF file)" in text


@pytest.mark.parametrize("said", [PermissionError(13, "Permission denied"), RuntimeError("NetCDF")])
def test_a_full_disk_is_told_as_what_it_is(study, monkeypatch, said):
    def library(*_: object, **__: object) -> None:
        raise said

    def plain(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    products = write_products(study, {"A": {"path": "a.nc"}})
    monkeypatch.setattr(xr.Dataset, "to_netcdf", library)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", plain)
        assert str(called(study, products, study / "out").exception).startswith("[Errno 28]")
    # A disk with room: what the library said stays, and no half file.
    assert called(study, products, study / "out").exception is said
    assert list((study / "out" / "maps").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"M": ["Prior", "Posterior"]}, []),
        ({"M": ["Posterior"]}, ["M (no other stage than Posterior)"]),
        (
            {"M": ["Prior_m001", "Prior_m002", "Posterior"], "N": ["Prior", "Posterior_m007"]},
            ["M (the one without a number: neither a prior of that number nor a single prior)"],
        ),
        (
            {"M": ["Prior_m001", "Prior_m002", "Posterior_m002", "Posterior_m003"]},
            ["M (m003: neither a prior of that number nor a single prior)"],
        ),
    ],
    ids=["a pair", "one stage", "which prior", "another member"],
)
def test_runs_that_have_no_counterpart_are_told(tmp_path, given, told):
    paths = []
    for model, own in given.items():
        for run in own:
            stage, _, member = run.partition("_")
            member = f"_{member}" if member else ""
            paths.append(write_run(tmp_path, cycles(3), model=model, stage=stage, member=member))
    runs, _ = read_runs(paths)
    start = "change from prior to posterior, S3: none of"
    assert unpaired_notes(runs) == ([f"{start} {', '.join(told)}."] if told else [])


@pytest.mark.parametrize("models", [1, 2, 3])
def test_a_spread_that_is_not_there_is_told(tmp_path, models):
    for model in range(models):
        for stage in ("Prior", "Posterior"):
            write_run(tmp_path / "stores", cycles(3), model=f"M{model}", stage=stage)
    product = write_product(tmp_path, cycles(3))
    summary = benchmark(sorted((tmp_path / "stores").rglob("*.nc")), [product], tmp_path / "out")
    told = ["spread between models, S3, of hfls (REF): 2 are too few, 3 are needed."]
    assert summary["notes"] == (told if models == 2 else [])


def test_a_product_named_by_a_number_is_told_where(tmp_path):
    path = tmp_path / "products.yaml"
    path.write_text("products:\n  2020: {variable: hfls, kind: synthetic, path: a.nc}\n")
    with pytest.raises(UsageError, match=r"products\.2020: found a key that is not text"):
        load_products(path)
