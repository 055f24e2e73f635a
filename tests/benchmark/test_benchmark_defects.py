"""Defects of a product, of a run in a file and of a run in a store: one line with file, variable,
rule and remedy; everything else is scored; exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import GRID, axis_of, benchmark, cycles, number, write_product, write_run

from callmip_global.benchmark.product_check import RULES
from callmip_global.cli.app import main
from callmip_global.errors import UsageError
from callmip_global.store import (
    StoreName,
    create_store,
    protocol_template,
    store_attributes,
)
from callmip_global.variables import variable_table

Change = Callable[[xr.Dataset, str], xr.Dataset]


def in_another_unit(ds: xr.Dataset, name: str) -> xr.Dataset:
    ds[name].attrs["units"] = "kg m-2"
    return ds


def turned_around(ds: xr.Dataset, name: str) -> xr.Dataset:
    ds[name].values *= -2.0
    return ds


def with_zeros_over_the_sea(ds: xr.Dataset, name: str) -> xr.Dataset:
    ds[name].values *= 2.0
    ds[name].values[:, :, :6] = 0.0
    return ds


def in_no_calendar(ds: xr.Dataset, name: str) -> xr.Dataset:
    ds["time"].attrs["calendar"] = "lunar"
    return ds


def without_a_month(ds: xr.Dataset, name: str) -> xr.Dataset:
    return ds.isel(time=[*range(7), *range(8, 36)])


def without_values(ds: xr.Dataset, name: str) -> xr.Dataset:
    ds[name].values[:] = np.nan
    return ds


def sound(ds: xr.Dataset, name: str) -> xr.Dataset:
    return ds


DEFECTS: dict[str, tuple[Change, str, str]] = {
    "a wrong unit": (in_another_unit, "units", "State the true units"),
    "the opposite sign": (turned_around, "sign", "the opposite sign?"),
    "zeros for a mask": (with_zeros_over_the_sea, "mask", "Set them missing"),
    "an unknown calendar": (in_no_calendar, "calendar", "e."),
    "one month missing": (without_a_month, "month-missing", "again"),
    "all missing": (without_values, "all-missing", "Wrong file"),
    "cut short": (sound, "unreadable", "Cut short on the way?"),
}
LEFT_OUT = ("units", "calendar", "all-missing", "unreadable", "damaged")


def damaged_file(path: Path, defect: str, name: str) -> None:
    """Make the defect in a file."""
    with xr.open_dataset(path, decode_times=False) as ds:
        whole = ds.load()
    path.unlink()
    DEFECTS[defect][0](whole, name).to_netcdf(path)
    if defect == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_store(folder: Path, values: np.ndarray, model: str) -> Path:
    """A run as a store, monthly and small."""
    name = StoreName(model, "v1", "S3", "2deg", "Prior")
    axis = axis_of((2001, 2003))
    template = protocol_template(
        grid=GRID,
        axis=axis,
        variables={"hfls": variable_table()["hfls"].cf_attributes()},
        land_fraction=np.ones(GRID.shape, np.float32),
        attributes={},
    )
    writer = create_store(
        folder / name.text,
        {"mon": template},
        fingerprint={},
        attributes=store_attributes(name, {"synthetic": "made for a test"}, ("mon",)),
    )
    for region in writer.regions("mon", "hfls"):
        writer.write("mon", "hfls", region, values.astype(np.float32)[region])
    return writer.publish()


@pytest.fixture
def told(tmp_path, monkeypatch, capsys) -> Callable[[list[Path], dict[str, Path]], list[str]]:
    """Lines on stderr of the command, which must end with 1."""

    def run(runs: list[Path], products: dict[str, Path]) -> list[str]:
        lines = [
            f"  {name}: {{variable: hfls, path: {path}, source: obs, kind: satellite}}"
            for name, path in products.items()
        ]
        listed = tmp_path / "products.yaml"
        listed.write_text("\n".join(["products:", *lines, ""]))
        options = ["--products", str(listed), "--out", str(tmp_path / "out")]
        options += ["--frequency", "mon", "--region", "global", "--region", "nh"]
        arguments = ["callmip-global", "benchmark", *map(str, runs), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 1
        return [line for line in capsys.readouterr().err.splitlines() if line.strip()]

    return run


def assert_one_line(lines: list[str], rule: str, said: tuple[str, ...]) -> str:
    assert len(lines) == 1, lines
    assert lines[0].endswith(f"[{rule}]")
    assert rule in RULES
    for text in said:
        assert text in lines[0]
    return lines[0]


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_a_product_is_one_line_and_the_other_is_scored(tmp_path, told, defect):
    _, rule, remedy = DEFECTS[defect]
    good = Path(write_product(tmp_path, cycles(3)).paths[0])
    bad = Path(write_product(tmp_path, cycles(3), name="BAD").paths[0])
    damaged_file(bad, defect, "obs")
    run = write_run(tmp_path, cycles(3, seed=1))
    lines = told([run], {"REF": good, "BAD": bad})
    variable = "time" if rule in ("calendar", "month-missing") else "obs"
    variable = "hfls" if rule in ("unreadable", "units") else variable
    line = assert_one_line(lines, rule, (f": {variable}", "found ", "wanted ", remedy))
    assert "product BAD (BAD.nc)" in line
    assert number(tmp_path / "out", "bias_score", product="REF", model="M.v1") > 0.5


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_a_run_is_one_line_and_the_other_is_scored(tmp_path, told, defect):
    _, rule, remedy = DEFECTS[defect]
    product = Path(write_product(tmp_path, cycles(3)).paths[0])
    good = write_run(tmp_path, cycles(3, seed=1))
    bad = write_run(tmp_path, cycles(3, seed=2), model="BAD.v1")
    damaged_file(bad, defect, "hfls")
    lines = told([bad, good], {"REF": product})
    variable = "time" if rule in ("calendar", "month-missing") else "hfls"
    variable = "" if rule == "unreadable" else f": {variable}"
    line = assert_one_line(lines, rule, (variable, "found ", "wanted ", remedy))
    assert "BAD.v1_global_test_mon_2001-2003_Prior.nc" in line
    assert number(tmp_path / "out", "bias_score", model="M.v1") > 0.5
    if rule in LEFT_OUT:
        with pytest.raises(AssertionError, match="0 rows"):
            number(tmp_path / "out", "bias_score", model="BAD.v1")
    else:
        assert number(tmp_path / "out", "bias_score", model="BAD.v1") is not None


def edited(store: Path, old: str, new: str) -> None:
    """The text of the store's metadata changed, wherever it is."""
    found = 0
    for path in store.rglob("zarr.json"):
        text = path.read_text()
        found += old in text
        path.write_text(text.replace(old, new))
    assert found


STORE_DEFECTS: dict[str, tuple[Callable[[Path], Any] | Change, str]] = {
    "a wrong unit": (lambda store: edited(store, '"W m-2"', '"kg m-2"'), "units"),
    "the opposite sign": (turned_around, "sign"),
    "zeros for a mask": (with_zeros_over_the_sea, "mask"),
    "an unknown calendar": (
        lambda store: edited(store, '"calendar": "noleap"', '"calendar": "lunar"'), "calendar"),
    "a month without a value": (None, "month-empty"),
    "all missing": (without_values, "all-missing"),
    "a file cut short": ("chunk", "damaged"),
    "its description cut short": ("zarr.json", "unreadable"),
}  # fmt: skip


@pytest.mark.parametrize("defect", STORE_DEFECTS)
def test_a_defect_of_a_store_is_one_line_and_the_other_is_scored(tmp_path, told, defect):
    change, rule = STORE_DEFECTS[defect]
    product = Path(write_product(tmp_path, cycles(3)).paths[0])
    good = write_store(tmp_path, cycles(3, seed=1), "GOOD")
    values = cycles(3, seed=2)
    if rule == "month-empty":
        values[7] = np.nan
    if rule in ("sign", "mask", "all-missing"):
        ds = xr.Dataset({"hfls": (("time", "lat", "lon"), values)})
        values = change(ds, "hfls")["hfls"].values
    bad = write_store(tmp_path, values, "BAD")
    if rule in ("units", "calendar"):
        change(bad)
    if change in ("chunk", "zarr.json"):
        found = [p for p in bad.rglob("*") if p.is_file() and "hfls" in p.parts]
        named = [p for p in found if (p.name == "zarr.json") == (change == "zarr.json")]
        for path in named if change == "chunk" else [bad / "zarr.json", bad / "mon/zarr.json"]:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lines = told([bad, good], {"REF": product})
    line = assert_one_line(lines, rule, ("found ", bad.name))
    assert rule in ("calendar", "unreadable") or ": hfls: " in line
    kept = {path.name for path in (tmp_path / "out" / "kept").glob("*.json")} - {"files.json"}
    # What could not be read is tried again the next time.
    assert bool(kept) == (rule != "damaged")
    assert number(tmp_path / "out", "bias_score", model="GOOD.v1") > 0.5
    if rule in LEFT_OUT:
        with pytest.raises(AssertionError, match="0 rows"):
            number(tmp_path / "out", "bias_score", model="BAD.v1")


def test_a_run_of_other_years_does_not_take_the_comparison_from_the_others(tmp_path):
    product = write_product(tmp_path, cycles(3))
    good = write_run(tmp_path, cycles(3, seed=1))
    early = write_run(tmp_path, cycles(3, seed=2), model="EARLY.v1", years=(1801, 1803))
    summary = benchmark([early, good], [product], tmp_path / "out", frequencies=["mon"])
    (line,) = summary["problems"]
    assert line.startswith("EARLY.v1 S3 Prior (EARLY.v1_global_test_mon_1801-1803_Prior.nc): hfls")
    assert "0 months in common" in line
    assert line.endswith("[period]")
    assert number(tmp_path / "out", "bias_score") > 0.5


def test_a_run_that_lacks_most_of_what_the_others_have_is_told(tmp_path):
    product = write_product(tmp_path, cycles(3))
    good = write_run(tmp_path, cycles(3, seed=1))
    values = cycles(3, seed=2)
    values[:, :, 2:] = np.nan
    small = write_run(tmp_path, values, model="SMALL.v1")
    summary = benchmark([small, good], [product], tmp_path / "out", frequencies=["mon"])
    (line,) = summary["problems"]
    assert line.startswith("SMALL.v1 S3 Prior (")
    assert "values in 25% of the area where the product and other runs have some" in line
    assert line.endswith("[mask]")
    assert benchmark([small], [product], tmp_path / "alone")["problems"] == []


def test_without_a_single_run_that_can_be_read_nothing_is_done(tmp_path):
    product = write_product(tmp_path, cycles(3))
    run = write_run(tmp_path, cycles(3))
    damaged_file(run, "cut short", "hfls")
    with pytest.raises(UsageError, match=r"cannot be read .*\[unreadable\]"):
        benchmark([run], [product], tmp_path / "out")
    assert not (tmp_path / "out").exists()
