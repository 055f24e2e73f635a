"""Folders for ILAMB 2.7 and ilamb3: what is written, and what the tools themselves make of it.

The tools are looked for in CALLMIP_ILAMB_RUN (a path of ilamb-run) and on the PATH, and in
CALLMIP_ILAMB3_PYTHON (a Python that has ilamb3) and among this Python's packages.
"""

from __future__ import annotations

import configparser
import csv
import importlib.util
import json
import math
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cftime
import netCDF4
import numpy as np
import pytest
import typer
import xarray as xr
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from callmip_global.benchmark.run import run_benchmark
from callmip_global.cli.export import export
from callmip_global.cli.harmonize import harmonize
from callmip_global.config.products import load_products
from callmip_global.errors import DataError, UsageError
from callmip_global.export import export_ilamb
from callmip_global.export.ilamb import LEDGER, Reference, Series, model_directory
from callmip_global.export.ilamb_files import Layout
from callmip_global.export.ilamb_setup import Told, ilamb3_yaml, ilamb_cfg
from callmip_global.grid import Grid
from callmip_global.regrid import regrid_dataset
from callmip_global.store import StoreName, create_store, protocol_template, store_attributes
from callmip_global.timeaxis import annual_mean, month_axis
from callmip_global.variables import requested_variables, variable_table

# Centres at 0, 30 ... 330: the column at 180 lies across the dateline.
PACIFIC = Grid("native", np.linspace(-90, 90, 7), np.linspace(-15, 345, 13))
PLAIN = Grid("plain", np.linspace(-90, 90, 7), np.linspace(-180, 180, 13))
YEARS = (2003, 2005)
LAND = np.zeros(PACIFIC.shape)
LAND[1:5, :] = 0.5
LAND[2, 6] = 1.0


def cycles(seed: int, size: float = 1.0, years: tuple[int, int] = YEARS) -> np.ndarray:
    """(12 n, nlat, nlon) a yearly cycle of another height in each cell, NaN over the sea."""
    rng = np.random.default_rng(seed)
    months = np.arange(12 * (years[1] - years[0] + 1))
    cycle = 2.0 + np.cos(2 * np.pi * (months % 12 - 6) / 12.0) + 0.1 * (months // 12)
    values = size * cycle[:, None, None] * rng.uniform(0.5, 1.5, PACIFIC.shape)
    return np.where(LAND > 0, values, np.nan)


def make_store(
    folder: Path,
    fields: dict[str, np.ndarray],
    *,
    model: str = "M1",
    version: str = "v1",
    stage: str = "Prior",
    simulation: str = "S3",
    member: int | None = None,
    calendar: str = "standard",
    years: tuple[int, int] = YEARS,
    annual_only: tuple[str, ...] = (),
    grid: Grid = PLAIN,
) -> Path:
    """A native store of monthly fields, and of annual means of those that are annual only."""
    name = StoreName(model, version, simulation, "native", stage, member)  # type: ignore[arg-type]
    there = ("mon", "yr") if annual_only else ("mon",)
    root = store_attributes(name, {"institution": "Here"}, there)  # type: ignore[arg-type]
    names = {"mon": [n for n in fields if n not in annual_only], "yr": list(annual_only)}
    names = {frequency: own for frequency, own in names.items() if own}
    axes = {f: month_axis(years, calendar, f) for f in ("mon", "yr")}  # type: ignore[arg-type]
    templates = {
        frequency: protocol_template(
            grid=grid,
            axis=axes[frequency],
            variables={v: variable_table()[v].cf_attributes() for v in own},
            land_fraction=LAND,
            attributes=root,
        )
        for frequency, own in names.items()
    }
    writer = create_store(folder / name.text, templates, fingerprint={}, attributes=root)
    for frequency, own in names.items():
        for variable in own:
            values = fields[variable].astype(np.float32)
            if frequency == "yr":
                values = annual_mean(values, axes["mon"].lengths_days)
            (region,) = writer.regions(frequency, variable)  # type: ignore[arg-type]
            writer.write(frequency, variable, region, values)  # type: ignore[arg-type]
    return writer.publish()


class Memory:
    """A product in memory, as the benchmark's series gives one."""

    land = None

    def __init__(
        self,
        values: np.ndarray,
        *,
        first: tuple[int, int] = (YEARS[0], 1),
        frequency: str = "mon",
        calendar: str = "standard",
        grid: Grid = PLAIN,
        lacking: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.where, self.frequency, self.calendar, self.grid = (
            "product P",
            frequency,
            calendar,
            grid,
        )
        step = 12 if frequency == "yr" else 1
        start = 12 * first[0] + first[1] - 1
        months = [start + step * i for i in range(len(values))]
        self.values = {(m // 12, m % 12 + 1): v for m, v in zip(months, values, strict=True)}
        for period in lacking:
            del self.values[period]
        self.periods = tuple(self.values)
        self.closed = 0

    def read(self, periods: Sequence[tuple[int, int]]) -> np.ndarray:
        return np.stack([self.values[period] for period in periods])

    def close(self) -> None:
        self.closed += 1


def reference(name: str, variable: str, series: Series, **settings: Any) -> Reference:
    return Reference(name=name, variable=variable, open_series=lambda: series, **settings)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All 14 variables of a prior, three of its posterior, three references; for both tools."""
    folder = tmp_path_factory.mktemp("ilamb")
    scale = {n: min(variable_table()[n].valid_range[1] / 6, 1e3) for n in requested_variables()}
    fields = {n: cycles(i, size) for i, (n, size) in enumerate(scale.items())}
    few = {n: fields[n] for n in ("nep", "gpp", "cLiveBioAbove")}
    stores = [
        make_store(folder, few, stage="Posterior", grid=PACIFIC),
        make_store(folder, fields, grid=PACIFIC),
    ]
    size = scale["cLiveBioAbove"]
    references = [
        reference("GPP_1", "gpp", Memory(cycles(3, scale["gpp"]), grid=PACIFIC)),
        reference("NEP product", "nep", Memory(cycles(0, scale["nep"]), grid=PACIFIC)),
        reference(
            "BIO",
            "cLiveBioAbove",
            Memory(cycles(10, size)[:1], frequency="fx", first=(2000, 1), grid=PACIFIC),
            static=True,
        ),
    ]
    found = {"stores": folder}
    for tool in ("ilamb", "ilamb3"):
        out = folder / tool
        done = export_ilamb(stores, out=out, tool=tool, references=references)  # type: ignore[arg-type]
        assert done.problems == ()
        found[tool] = out
    return found


def models(out: Path) -> list[Path]:
    return sorted((out / "MODELS").iterdir())


# --- data -------------------------------------------------------------------------------------


def test_prior_and_posterior_are_two_model_directories(exported: dict[str, Path]) -> None:
    assert [m.name for m in models(exported["ilamb"])] == ["M1_Posterior", "M1_Prior"]


def test_every_variable_is_a_file_under_the_name_that_the_tools_look_for(
    exported: dict[str, Path],
) -> None:
    renamed = {"nep": "nee", "cLiveBioAbove": "biomass", "hfg": "hfdsl"}
    wanted = {renamed.get(n, n) for n in requested_variables()} | {"areacella", "sftlf"}
    prior = exported["ilamb"] / "MODELS/M1_Prior"
    assert {f.stem for f in prior.iterdir()} == wanted
    for file in prior.iterdir():
        with netCDF4.Dataset(file) as nc:
            assert file.stem in nc.variables


def test_nee_is_nep_with_the_sign_turned_and_nothing_else_is_changed(
    exported: dict[str, Path],
) -> None:
    layout = Layout.of(PACIFIC, "")
    for name, file, sign in (("nep", "nee", -1), ("hfg", "hfdsl", 1), ("gpp", "gpp", 1)):
        index = list(requested_variables()).index(name)
        size = min(variable_table()[name].valid_range[1] / 6, 1e3)
        with xr.open_dataset(exported["ilamb"] / f"MODELS/M1_Prior/{file}.nc") as ds:
            expected = sign * layout.lay(cycles(index, size)).astype(np.float32)
            np.testing.assert_array_equal(ds[file].values, expected)
            assert ds[file].attrs["units"] == variable_table()[name].units


def test_a_column_across_180_degrees_is_cut_in_two_and_no_area_moves(
    exported: dict[str, Path],
) -> None:
    folder = exported["ilamb"] / "MODELS/M1_Prior"
    with (
        xr.open_dataset(folder / "areacella.nc") as areas,
        xr.open_dataset(folder / "gpp.nc") as ds,
    ):
        assert ds.sizes["lon"] == 13
        assert np.all(np.diff(ds["lon"].values) > 0)
        assert np.all(np.diff(ds["lat"].values) > 0)
        np.testing.assert_allclose(ds["lon_bnds"].values[[0, -1], [0, 1]], [-180, 180])
        np.testing.assert_allclose(ds["lon_bnds"].values[1:, 0], ds["lon_bnds"].values[:-1, 1])
        np.testing.assert_array_equal(ds["gpp"].values[..., 0], ds["gpp"].values[..., -1])
        sphere = 4 * np.pi * 6.371e6**2
        assert areas["areacella"].sum() == pytest.approx(sphere)
        total = float((ds["gpp"][0].fillna(0) * areas["areacella"]).sum())
        own = cycles(3, variable_table()["gpp"].valid_range[1] / 6)[0].astype(np.float32)
        assert total == pytest.approx(float((np.nan_to_num(own) * PACIFIC.cell_area).sum()))
    with xr.open_dataset(folder / "sftlf.nc") as ds:
        assert ds["sftlf"].attrs["units"] == "%"
        np.testing.assert_allclose(ds["sftlf"].values, 100 * Layout.of(PACIFIC, "").lay(LAND))


def test_time_has_exact_bounds_in_a_calendar_without_leap_days(exported: dict[str, Path]) -> None:
    files = [
        exported["ilamb"] / "MODELS/M1_Prior/gpp.nc",
        exported["ilamb"] / "DATA/gpp/GPP-1.nc",
    ]
    for file in files:
        with netCDF4.Dataset(file) as nc:
            time = nc["time"]
            assert (time.calendar, time.bounds) == ("noleap", "time_bnds")
            stamps = cftime.num2date(nc["time_bnds"][:, 0], time.units, time.calendar)
            assert [(t.year, t.month, t.day) for t in stamps] == [
                (year, month, 1) for year in range(2003, 2006) for month in range(1, 13)
            ]
            np.testing.assert_array_equal(nc["time_bnds"][1:, 0], nc["time_bnds"][:-1, 1])


def test_references_are_in_units_per_day_and_with_the_sign_of_their_name(
    exported: dict[str, Path],
) -> None:
    data = exported["ilamb3"] / "DATA"
    assert {str(p.relative_to(data)) for p in data.rglob("*.nc")} == {
        "gpp/GPP-1.nc",
        "nee/NEP-product.nc",
        "biomass/BIO.nc",
    }
    layout = Layout.of(PACIFIC, "")
    with xr.open_dataset(data / "nee/NEP-product.nc") as ds:
        nep = cycles(0, variable_table()["nep"].valid_range[1] / 6)
        np.testing.assert_allclose(ds["nee"].values, -layout.lay(nep) * 86.4e6, rtol=1e-6)
        assert ds["nee"].attrs["units"] == "g m-2 d-1"


def test_a_map_is_one_step_as_long_as_the_years_that_all_runs_have(
    exported: dict[str, Path],
) -> None:
    with netCDF4.Dataset(exported["ilamb"] / "DATA/biomass/BIO.nc") as nc:
        time = nc["time"]
        assert nc["biomass"].shape == (1, 6, 13)
        bounds = cftime.num2date(nc["time_bnds"][0], time.units, time.calendar)
        assert [(b.year, b.month, b.day) for b in bounds] == [(2003, 1, 1), (2006, 1, 1)]
        assert nc["biomass"].units == "kg m-2"


# --- configuration ----------------------------------------------------------------------------


def test_the_configuration_of_ilamb_names_variables_and_references(
    exported: dict[str, Path],
) -> None:
    out = exported["ilamb"]
    text = (out / "ilamb.cfg").read_text()
    assert "mass_weighting" not in text
    parser = configparser.ConfigParser()
    parser.read_string(text)
    quoted = {s: {k: json.loads(v) for k, v in parser[s].items()} for s in parser.sections()}
    assert set(quoted) == {
        "h1: Carbon",
        "h2: Net ecosystem exchange",
        "NEP-product",
        "h2: Gross primary production",
        "GPP-1",
        "h2: Aboveground live biomass carbon",
        "BIO",
    }
    assert quoted["h2: Net ecosystem exchange"] == {"variable": "nee"}
    for source in ("NEP-product", "GPP-1", "BIO"):
        assert (out / quoted[source]["source"]).is_file()
        assert quoted[source]["table_unit"] == quoted[source]["plot_unit"]


def test_the_configuration_of_ilamb3_has_three_levels_and_a_table_of_models(
    exported: dict[str, Path],
) -> None:
    out = exported["ilamb3"]
    tree = yaml.safe_load((out / "ilamb.yaml").read_text())
    leaves = {
        source: leaf
        for variables in tree.values()
        for sources in variables.values()
        for source, leaf in sources.items()
    }
    assert set(leaves) == {"GPP-1", "NEP-product", "BIO"}
    for leaf in leaves.values():
        ((_, path),) = leaf["sources"].items()
        assert (out / path).is_file()
    with (out / "models.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["source_id"] for r in rows} == {"M1_Prior", "M1_Posterior"}
    assert len(rows) == 14 + 3
    assert all((out / r["path"]).is_file() for r in rows)
    assert {r["stage"] for r in rows} == {"Prior", "Posterior"}


def test_the_commands_can_be_executed_and_the_readme_tells_them(exported: dict[str, Path]) -> None:
    for tool, command in (("ilamb", "run.sh"), ("ilamb3", "run.py")):
        mode = (exported[tool] / command).stat().st_mode
        assert mode & stat.S_IXUSR
        assert command in (exported[tool] / "README.txt").read_text()
    assert subprocess.run(["sh", "-n", str(exported["ilamb"] / "run.sh")]).returncode == 0
    compile((exported["ilamb3"] / "run.py").read_text(), "run.py", "exec")


@pytest.mark.parametrize("name", list(variable_table()))
def test_every_variable_has_a_section_and_readable_configurations(name: str) -> None:
    told = [Told("P", variable_table()[name], f"DATA/{name}/P.nc")]
    parser = configparser.ConfigParser()
    parser.read_string(ilamb_cfg(told))
    assert json.loads(parser["P"]["source"]) == f"DATA/{name}/P.nc"
    ((_, variables),) = yaml.safe_load(ilamb3_yaml(told)).items()
    ((_, sources),) = variables.items()
    assert list(sources) == ["P"]


# --- laws -------------------------------------------------------------------------------------


@given(
    start=st.floats(-360, 360).map(lambda x: round(x, 3)),
    columns=st.integers(3, 40),
)
def test_a_layout_covers_the_globe_from_180_west_and_keeps_every_area(
    start: float, columns: int
) -> None:
    grid = Grid("g", np.array([-90.0, 0.0, 90.0]), np.linspace(start, start + 360, columns + 1))
    layout = Layout.of(grid, "")
    edges = layout.grid.lon_edges
    assert edges[[0, -1]].tolist() == pytest.approx([-180, 180])
    assert set(layout.columns.tolist()) == set(range(columns))
    assert len(layout.columns) - columns in (0, 1)
    widths = np.bincount(layout.columns, weights=np.diff(edges))
    np.testing.assert_allclose(widths, 360 / columns, atol=1e-5)
    # Each piece lies within the column it comes from.
    centres = grid.lon[layout.columns]
    away = np.abs((layout.grid.lon - centres + 180) % 360 - 180)
    assert np.all(away <= 180 / columns + 1e-5)


def test_a_region_across_180_degrees_is_refused() -> None:
    grid = Grid("fiji", np.linspace(-30, 0, 4), np.linspace(150, 210, 7))
    with pytest.raises(DataError, match="across 180 degrees"):
        Layout.of(grid, "store")
    west = Grid("west", np.linspace(-30, 0, 4), np.linspace(200, 260, 7))
    assert Layout.of(west, "store").grid.lon_edges[[0, -1]].tolist() == [-160, -100]


# --- names ------------------------------------------------------------------------------------


def test_what_tells_runs_apart_is_in_the_directory_and_no_more() -> None:
    def name(*parts: str, member: int | None = None) -> StoreName:
        return StoreName(*parts, member)  # type: ignore[arg-type]

    one = name("A", "v1", "S3", "1deg", "Prior")
    assert model_directory(one, [one, name("B", "v2", "S2", "1deg", "Prior")]) == "A_Prior"
    newer = name("A", "v2", "S3", "1deg", "Prior")
    assert model_directory(newer, [one, newer]) == "A.v2_Prior"
    other = name("A", "v1", "S2", "1deg", "Prior")
    assert model_directory(other, [one, other]) == "A_S2_Prior"
    member = name("A", "v1", "S3", "1deg", "Posterior", member=7)
    assert model_directory(member, [one, member]) == "A_Posterior_m007"


def test_members_are_models_of_their_own(tmp_path: Path) -> None:
    stores = [
        make_store(tmp_path, {"gpp": cycles(i, 1e-8)}, stage="Posterior", member=i) for i in (1, 2)
    ]
    export_ilamb(stores, out=tmp_path / "x", tool="ilamb3")
    assert [m.name for m in models(tmp_path / "x")] == ["M1_Posterior_m001", "M1_Posterior_m002"]
    with (tmp_path / "x" / "models.csv").open() as file:
        assert [r["member_id"] for r in csv.DictReader(file)] == ["m001", "m002"]


def test_a_variable_is_written_monthly_where_it_is_and_annual_where_it_is_not(
    tmp_path: Path,
) -> None:
    fields = {"gpp": cycles(1, 1e-8), "cSoil": cycles(2, 10.0)}
    store = make_store(tmp_path, fields, annual_only=("cSoil",))
    done = export_ilamb([store], out=tmp_path / "x", tool="ilamb")
    with netCDF4.Dataset(tmp_path / "x/MODELS/M1_Prior/cSoil.nc") as nc:
        assert nc["cSoil"].shape[0] == 3
        np.testing.assert_array_equal(np.diff(nc["time_bnds"][:], axis=1), 365)
    with netCDF4.Dataset(tmp_path / "x/MODELS/M1_Prior/gpp.nc") as nc:
        assert nc["gpp"].shape[0] == 36
    assert ["cSoil" in note for note in done.notes] == [True]


# --- references -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(
        tmp_path_factory.mktemp("store"), {"gpp": cycles(1, 1e-8), "mrso": cycles(2, 100.0)}
    )


def read(path: Path, name: str) -> np.ndarray:
    with xr.open_dataset(path) as ds:
        return np.asarray(ds[name].values)


def test_months_that_a_product_lacks_are_written_without_values(
    store: Path, tmp_path: Path
) -> None:
    values = cycles(4, 1e-8)
    lacking = ((2004, 2), (2004, 3))
    done = export_ilamb(
        [store],
        out=tmp_path / "x",
        tool="ilamb",
        references=[reference("P", "gpp", Memory(values, lacking=lacking))],
    )
    got = read(tmp_path / "x/DATA/gpp/P.nc", "gpp")
    assert got.shape[0] == 36
    assert np.isnan(got[[13, 14]]).all()
    land = LAND > 0
    assert np.isfinite(got[np.r_[0:13, 15:36]][:, land]).all()
    assert any("2 steps are not in the product" in note for note in done.notes)


def test_a_product_is_cut_to_the_years_of_the_runs_and_to_its_window(
    store: Path, tmp_path: Path
) -> None:
    long = cycles(4, 1e-8, years=(2001, 2010))
    references = [
        reference("ALL", "gpp", Memory(long, first=(2001, 1))),
        reference("WINDOW", "gpp", Memory(long, first=(2001, 1)), window=(2004, 2020)),
    ]
    export_ilamb([store], out=tmp_path / "x", tool="ilamb", references=references)
    laid = long * 86.4e6
    np.testing.assert_allclose(read(tmp_path / "x/DATA/gpp/ALL.nc", "gpp"), laid[24:60], rtol=1e-6)
    np.testing.assert_allclose(
        read(tmp_path / "x/DATA/gpp/WINDOW.nc", "gpp"), laid[36:60], rtol=1e-6
    )


def test_epochs_of_a_static_product_are_averaged_each_cell_over_those_it_has(
    store: Path, tmp_path: Path
) -> None:
    values = np.ones((2, *PLAIN.shape))
    values[1] = 3.0
    values[1, 0, 0] = np.nan
    series = Memory(values, frequency="yr", first=(1999, 1))
    export_ilamb(
        [store],
        out=tmp_path / "x",
        tool="ilamb",
        references=[reference("P", "mrso", series, static=True)],
    )
    got = read(tmp_path / "x/DATA/mrso/P.nc", "mrso")
    assert set(np.unique(got)) == {1.0, 2.0}


def test_a_finer_product_comes_on_the_grid_of_the_models_and_a_coarser_one_on_its_own(
    store: Path, tmp_path: Path
) -> None:
    fine = Grid("fine", np.linspace(-90, 90, 13), np.linspace(-180, 180, 25))
    coarse = Grid("coarse", np.linspace(-90, 90, 4), np.linspace(-180, 180, 7))
    asked: list[Grid] = []

    def regridder(ds: xr.Dataset, grid: Grid) -> xr.Dataset:
        asked.append(grid)
        values = np.full((ds.sizes["time"], *grid.shape), 2e-8)
        return xr.Dataset({"gpp": (("time", "lat", "lon"), values)})

    references = [
        reference("FINE", "gpp", Memory(np.full((36, *fine.shape), 1e-8), grid=fine)),
        reference("COARSE", "gpp", Memory(np.full((36, *coarse.shape), 1e-8), grid=coarse)),
    ]
    done = export_ilamb(
        [store], out=tmp_path / "x", tool="ilamb", references=references, regridder=regridder
    )
    assert set(asked) == {PLAIN}
    assert read(tmp_path / "x/DATA/gpp/FINE.nc", "gpp").shape == (36, 6, 12)
    assert read(tmp_path / "x/DATA/gpp/COARSE.nc", "gpp").shape == (36, 3, 6)
    assert [note.split(":")[0] for note in done.notes] == ["FINE"]


def test_a_product_that_cannot_be_used_is_a_problem_and_the_rest_is_written(
    store: Path, tmp_path: Path
) -> None:
    def fails() -> Series:
        raise DataError("product BAD: cannot be read")

    late = Memory(cycles(4, 1e-8), first=(2010, 1))
    empty = Memory(np.full((36, *PLAIN.shape), np.nan))
    good = Memory(cycles(4, 1e-8))
    done = export_ilamb(
        [store],
        out=tmp_path / "x",
        tool="ilamb",
        references=[
            Reference("BAD", "gpp", fails),
            reference("LATE", "gpp", late),
            reference("EMPTY", "gpp", empty),
            reference("GOOD", "gpp", good),
            reference("GO OD", "gpp", good),
            reference("GO-OD", "gpp", good),
        ],
    )
    said = [str(problem) for problem in done.problems]
    assert ["BAD" in said[0], "LATE" in said[1], "no value at all" in said[2]] == [True] * 3
    assert len(said) == 4
    assert "a second file" in said[3]
    assert (late.closed, empty.closed) == (1, 1)
    assert {p.name for p in (tmp_path / "x/DATA/gpp").iterdir()} == {"GOOD.nc", "GO-OD.nc"}
    assert "LATE" not in (tmp_path / "x/ilamb.cfg").read_text()


def test_anomalies_and_variables_that_no_run_has_are_left_out_with_a_note(
    store: Path, tmp_path: Path
) -> None:
    done = export_ilamb(
        [store],
        out=tmp_path / "x",
        tool="ilamb",
        references=[
            reference("GRACE", "mrso", Memory(cycles(1)), anomaly=True),
            reference("LAI", "lai", Memory(cycles(1))),
        ],
    )
    assert done.problems == ()
    assert [note.split(":")[0] for note in done.notes] == ["GRACE", "LAI"]
    assert not (tmp_path / "x/DATA").exists()


# --- the folder -------------------------------------------------------------------------------


def test_run_again_keeps_what_is_true_and_mends_the_rest(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    references = [reference("P", "gpp", Memory(cycles(4, 1e-8)), identity="1")]
    first = export_ilamb([store], out=out, tool="ilamb", references=references)
    before = bytes_of(out)
    kept, lost = out / "MODELS/M1_Prior/gpp.nc", out / "DATA/gpp/P.nc"
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    again = export_ilamb([store], out=out, tool="ilamb", references=references)
    assert again == first
    assert kept.stat().st_mtime_ns == stamp
    assert set(bytes_of(out)) == set(before)
    changed = [reference("P", "gpp", Memory(2 * cycles(4, 1e-8)), identity="2")]
    export_ilamb([store], out=out, tool="ilamb", references=changed)
    np.testing.assert_allclose(read(lost, "gpp"), 2 * 86.4e6 * cycles(4, 1e-8), rtol=1e-6)


def test_what_belongs_to_the_export_no_more_is_removed_and_nothing_else(
    store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x"
    other = make_store(tmp_path, {"gpp": cycles(9, 1e-8)}, model="M2")
    export_ilamb([store, other], out=out, tool="ilamb")
    (out / "mine.txt").write_text("notes")
    export_ilamb([other], out=out, tool="ilamb3")
    assert [m.name for m in models(out)] == ["M2_Prior"]
    assert (out / "mine.txt").exists()
    assert not (out / "ilamb.cfg").exists()
    assert (out / "run.py").exists()


def test_an_export_that_stopped_half_way_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from callmip_global.export import ilamb

    out = tmp_path / "x"
    real = ilamb.write_field

    def stops(path: Path, *rest: Any) -> None:
        if path.name == "mrso.nc":
            raise KeyboardInterrupt
        real(path, *rest)

    monkeypatch.setattr(ilamb, "write_field", stops)
    with pytest.raises(KeyboardInterrupt):
        export_ilamb([store], out=out, tool="ilamb")
    stamp = (out / "MODELS/M1_Prior/gpp.nc").stat().st_mtime_ns
    monkeypatch.undo()
    export_ilamb([store], out=out, tool="ilamb")
    assert (out / "MODELS/M1_Prior/gpp.nc").stat().st_mtime_ns == stamp
    assert (out / "MODELS/M1_Prior/mrso.nc").exists()


def test_what_a_kill_left_behind_is_removed_by_the_next_export(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from callmip_global.export import ilamb

    out = tmp_path / "x"
    other = make_store(tmp_path, {"gpp": cycles(9, 1e-8)}, model="M2")
    real = ilamb._Ledger.keep

    def killed(self: Any, name: str, key: str) -> None:
        if name.endswith("gpp.nc"):
            raise KeyboardInterrupt
        real(self, name, key)

    monkeypatch.setattr(ilamb._Ledger, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        export_ilamb([store], out=out, tool="ilamb")
    (out / "MODELS/M1_Prior/.mrso.nc.0123456789abcdef.tmp").write_text("half")
    assert (out / "MODELS/M1_Prior/gpp.nc").exists()
    monkeypatch.undo()
    export_ilamb([store, other], out=out, tool="ilamb")
    assert not list(out.rglob("*.tmp"))
    export_ilamb([other], out=out, tool="ilamb")
    assert [m.name for m in models(out)] == ["M2_Prior"]


def test_a_folder_with_other_files_is_refused_and_left_alone(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    out.mkdir()
    (out / "old.nc").write_text("")
    with pytest.raises(UsageError, match="no export to ILAMB"):
        export_ilamb([store], out=out, tool="ilamb")
    assert [p.name for p in out.iterdir()] == ["old.nc"]


def test_stores_that_cannot_be_told_apart_are_refused_before_anything_is_written(
    store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy" / store.name
    shutil.copytree(store, copy)
    with pytest.raises(UsageError, match="each run once"):
        export_ilamb([store, copy], out=tmp_path / "x", tool="ilamb")
    with pytest.raises(UsageError, match="wanted 9 years"):
        export_ilamb([store], out=tmp_path / "x", tool="ilamb", years=9)
    with pytest.raises(UsageError, match="no Zarr v3 store"):
        export_ilamb([tmp_path], out=tmp_path / "x", tool="ilamb")
    with pytest.raises(UsageError, match="no store"):
        export_ilamb([], out=tmp_path / "x", tool="ilamb")
    assert not (tmp_path / "x").exists()


def test_years_are_the_last_ones(store: Path, tmp_path: Path) -> None:
    export_ilamb([store], out=tmp_path / "x", tool="ilamb", years=1)
    got = read(tmp_path / "x/MODELS/M1_Prior/gpp.nc", "gpp")
    np.testing.assert_array_equal(got, cycles(1, 1e-8)[24:].astype(np.float32))
    assert LEDGER in {p.name for p in (tmp_path / "x").iterdir()}


# --- the command ------------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, list(arguments))


def write_product(path: Path, values: np.ndarray, units: str, calendar: str = "noleap") -> None:
    axis = month_axis(YEARS, calendar)
    xr.Dataset(
        {"obs": (("time", "lat", "lon"), values, {"units": units})},
        coords={
            "time": ("time", axis.time, axis.time_attributes),
            "time_bnds": (("time", "bnds"), axis.bounds),
            "lat": ("lat", PLAIN.lat, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": ("lon", PLAIN.lon, {"standard_name": "longitude", "units": "degrees_east"}),
        },
    ).to_netcdf(path)


def test_the_command_applies_factor_and_sign_of_the_products_file(
    store: Path, tmp_path: Path
) -> None:
    write_product(tmp_path / "p.nc", np.full((36, *PLAIN.shape), 3.0), "gC m-2 day-1")
    (tmp_path / "products.yaml").write_text(
        "products:\n"
        "  P: {variable: gpp, path: p.nc, source: obs, kind: synthetic, sign: -1, factor: 2,"
        " units: gC m-2 day-1, doi: 10.1/x}\n"
        "  GONE: {variable: gpp, path: gone.nc, kind: synthetic}\n"
    )
    arguments = [str(store), "--to", "ilamb", "--out", str(tmp_path / "x")]
    result = command(*arguments, "--products", str(tmp_path / "products.yaml"))
    assert isinstance(result.exception, DataError)
    assert "GONE" in str(result.exception)
    with xr.open_dataset(tmp_path / "x/DATA/gpp/P.nc") as ds:
        values = ds["gpp"].values
        assert np.nanmin(values) == pytest.approx(-6.0)
        assert np.nanmax(values) == pytest.approx(-6.0)
        assert ds.attrs["references"] == "10.1/x"


def test_products_are_for_the_exports_that_have_references(store: Path, tmp_path: Path) -> None:
    (tmp_path / "products.yaml").write_text("products: {}")
    result = command(
        str(store), "--out", str(tmp_path / "x"), "--products", str(tmp_path / "products.yaml")
    )
    assert isinstance(result.exception, UsageError)
    assert "--to ilamb or ilamb3" in str(result.exception)


# --- the scripts, with a stand-in for ILAMB ------------------------------------------------------

STAND_IN = """#!/bin/sh
echo "$@" >> "$ILAMB_ROOT/calls.txt"
echo kept >> ilamb_results/pair.nc
[ -n "${FAILS:-}" ] || echo scores > ilamb_results/scalar_database.csv
"""


def run_script(out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    bin_folder = out.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / "ilamb-run").write_text(STAND_IN)
    (bin_folder / "ilamb-run").chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(out / "run.sh"), *options],
        env={**os.environ, "PATH": path, **environment},
        cwd="/",
        capture_output=True,
        text=True,
    )


def test_run_sh_goes_on_with_the_same_and_begins_anew_with_another(
    store: Path, tmp_path: Path
) -> None:
    out, pair = tmp_path / "x y", tmp_path / "x y/ilamb_results/pair.nc"
    export_ilamb([store], out=out, tool="ilamb")
    for _ in range(2):
        assert run_script(out, "--skip_plots").returncode == 0
    assert pair.read_text() == "kept\n" * 2
    result = run_script(out, "--rmse_score_basis", "series")
    assert "computed anew" in result.stderr
    assert pair.read_text() == "kept\n"
    export_ilamb([store], out=out, tool="ilamb", years=1)
    assert run_script(out, "--rmse_score_basis", "series").returncode == 0
    assert pair.read_text() == "kept\n"
    first = (out / "calls.txt").read_text().splitlines()[0]
    assert first.endswith("--regions global --build_dir ilamb_results --skip_plots")


def test_run_sh_fails_where_ilamb_leaves_no_scores(store: Path, tmp_path: Path) -> None:
    export_ilamb([store], out=tmp_path / "x", tool="ilamb")
    assert run_script(tmp_path / "x").returncode == 0
    result = run_script(tmp_path / "x", FAILS="1")
    assert result.returncode == 1
    assert "scalar_database.csv" in result.stderr


def test_the_scripts_say_what_is_not_installed(store: Path, tmp_path: Path) -> None:
    export_ilamb([store], out=tmp_path / "x", tool="ilamb")
    result = subprocess.run(
        [str(tmp_path / "x/run.sh")],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    if shutil.which("ilamb-run", path="/usr/bin:/bin") is None:
        assert (result.returncode, "pip install ILAMB" in result.stderr) == (2, True)
    export_ilamb([store], out=tmp_path / "x", tool="ilamb3")
    result = subprocess.run(
        [sys.executable, "-S", "-I", str(tmp_path / "x/run.py")], capture_output=True, text=True
    )
    assert (result.returncode, "pip install ilamb3" in result.stderr) == (1, True)


# --- the tools --------------------------------------------------------------------------------


# Read when the tests are collected: while they run, no CALLMIP_ variable is set.
ILAMB_RUN = os.environ.get("CALLMIP_ILAMB_RUN") or shutil.which("ilamb-run")
ILAMB3_PYTHON = os.environ.get("CALLMIP_ILAMB3_PYTHON") or (
    sys.executable if importlib.util.find_spec("ilamb3") else None
)


def with_ilamb(test: Any) -> Any:
    reason = "no ilamb-run (pip install ILAMB==2.7.3, or set CALLMIP_ILAMB_RUN)"
    return pytest.mark.ilamb(pytest.mark.skipif(ILAMB_RUN is None, reason=reason)(test))


def with_ilamb3(test: Any) -> Any:
    reason = "no ilamb3 (pip install ilamb3, or set CALLMIP_ILAMB3_PYTHON)"
    return pytest.mark.ilamb(pytest.mark.skipif(ILAMB3_PYTHON is None, reason=reason)(test))


def offline() -> dict[str, str]:
    """An environment in which nothing can be fetched; MPI may run as root."""
    nowhere = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    return {**os.environ, **nowhere, **root, "no_proxy": "", "NO_PROXY": ""}


OFFSET = {"gpp": 1e-8, "nep": 3e-8}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Reference]]:
    """The posterior is the reference; the prior is too high by OFFSET, and its map by a tenth."""
    folder = tmp_path_factory.mktemp("study")
    gpp, nep, carbon = cycles(1, 4e-8), cycles(2, 4e-8), np.full((36, *PLAIN.shape), 5.0)
    carbon *= np.arange(1.0, 7.0)[:, None]
    posterior = {"gpp": gpp, "nep": nep, "cLiveBioAbove": carbon}
    prior = {
        "gpp": gpp + OFFSET["gpp"],
        "nep": nep + OFFSET["nep"],
        "cLiveBioAbove": 1.1 * carbon,
        "hfls": heat()[1],
    }
    stores = [
        make_store(folder, prior),
        make_store(folder, posterior, stage="Posterior"),
    ]
    static = Memory(carbon[:1], frequency="fx")
    references = [
        reference("GPP-obs", "gpp", Memory(gpp)),
        reference("NEP-obs", "nep", Memory(nep)),
        reference("BIO-obs", "cLiveBioAbove", static, static=True),
        reference("HEAT-obs", "hfls", Memory(heat()[0])),
    ]
    return stores, references


def heat() -> tuple[np.ndarray, np.ndarray]:
    """A reference with cells that never change, with gaps and a mask of its own; and a model."""
    values = cycles(5, 30.0)
    values[:, 1] = 0.0
    values[np.arange(36) % 12 < 2, 3] = np.nan
    values[:, 4, :5] = np.nan
    return values, np.roll(cycles(6, 30.0), 1, axis=0)


def mean_by(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(...) mean along time over the steps each cell has; NaN without any."""
    there = np.isfinite(values)
    days = np.where(there, weights[:, None, None], 0.0)
    with np.errstate(invalid="ignore"):
        return (days * np.where(there, values, 0.0)).sum(axis=0) / days.sum(axis=0)


class Theirs:
    """The numbers of both tools for ``heat``, by formulas of their own, as docs/ilamb.md has them.

    Each series has its own months; a cell counts where both have a mean.
    """

    def __init__(self) -> None:
        self.r, self.m = (v.astype(np.float32).astype(np.float64) for v in heat())
        axis = month_axis(YEARS, "noleap")
        self.exact, time = axis.lengths_days, axis.time
        # ILAMB: bounds half way between the stamps, for the standard deviation alone.
        edges = np.r_[1.5 * time[0] - 0.5 * time[1], 0.5 * (time[1:] + time[:-1])]
        self.midway = np.diff(np.r_[edges, 1.5 * time[-1] - 0.5 * time[-2]])
        # ilamb3: half the way from the 15th of the month before to that of the month after.
        apart = np.r_[self.exact[0], self.exact[:-1], self.exact[-2]]
        self.fifteenth = 0.5 * (apart[1:] + apart[:-1])
        self.mean_r, self.mean_m = mean_by(self.r, self.exact), mean_by(self.m, self.exact)
        self.both = np.isfinite(self.mean_r) & np.isfinite(self.mean_m)
        self.area = PLAIN.cell_area

    def over(self, field: np.ndarray) -> float:
        used = self.both & np.isfinite(field)
        return float((field[used] * self.area[used]).sum() / self.area[used].sum())

    def sigma(self, weights: np.ndarray) -> np.ndarray:
        return np.sqrt(mean_by((self.r - self.mean_r) ** 2, weights))

    def months(self) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for values in (self.r, self.m):
            cycle = mean_by(values.reshape(3, 12, -1), np.ones(3)).reshape(12, *PLAIN.shape)
            found.append(np.nan_to_num(cycle, nan=-np.inf).argmax(axis=0))
        return found[0], found[1]

    def ilamb(self) -> dict[str, float]:
        bias, sigma = self.mean_m - self.mean_r, self.sigma(self.midway)
        still = sigma < 1e-6
        scale = np.where(still, 1.0, sigma)
        off = (self.m - self.mean_m) - (self.r - self.mean_r)
        crmse = np.sqrt(mean_by(off**2, self.exact))
        days = np.array([15.5, 45, 74.5, 105, 135.5, 166, 196.5, 227.5, 258, 288.5, 319, 349.5])
        month_r, month_m = self.months()
        apart = 2 * np.pi * (days[month_r] - days[month_m]) / 365
        x, y = np.where(self.both, self.mean_r, 0), np.where(self.both, self.mean_m, 0)
        ratio = y[self.both].std() / x[self.both].std()
        # The sea counts, with zeros.
        correlation = np.corrcoef(x.ravel(), y.ravel())[0, 1]
        return {
            "Bias": self.over(bias),
            # Cells without a standard deviation: the bias itself, in the units of the plots.
            "Bias Score": self.over(np.exp(-np.abs(bias) / scale)),
            "RMSE": self.over(np.sqrt(mean_by((self.m - self.r) ** 2, self.exact))),
            "RMSE Score": self.over(np.where(still, np.nan, np.exp(-crmse / scale))),
            "Seasonal Cycle Score": self.over(0.5 * (1 + np.cos(apart))),
            "Spatial Distribution Score": float(2 * (1 + correlation) / (ratio + 1 / ratio) ** 2),
        }

    def ilamb3(self) -> dict[str, float]:
        bias, sigma, w = self.mean_m - self.mean_r, self.sigma(self.exact), self.fifteenth
        mean_r, mean_m = mean_by(self.r, w), mean_by(self.m, w)
        crmse = np.sqrt(mean_by(((self.m - mean_m) - (self.r - mean_r)) ** 2, w))
        spread = np.sqrt(mean_by((self.r - mean_r) ** 2, w))
        still = spread < 1e-6
        month_r, month_m = self.months()
        apart = np.abs(month_m - month_r)
        ratio = np.nanstd(self.mean_m) / np.nanstd(self.mean_r)
        correlation = np.corrcoef(self.mean_r[self.both], self.mean_m[self.both])[0, 1]
        score = np.exp(-np.abs(bias) / np.where(still, 1.0, sigma))
        return {
            "Bias": self.over(bias),
            "Bias Score": self.over(np.where(still, 0.0, score)),
            "RMSE": self.over(np.sqrt(mean_by((self.m - self.r) ** 2, w))),
            "RMSE Score": self.over(
                np.where(still, 0.0, np.exp(-crmse / np.where(still, 1.0, spread)))
            ),
            "Seasonal Cycle Score": self.over(1 - np.minimum(apart, 12 - apart) / 6),
            "Spatial Distribution Score": float(2 * (1 + correlation) / (ratio + 1 / ratio) ** 2),
        }


def expected_bias_score(values: np.ndarray, offset: float) -> float:
    """exp(-offset / sigma) of each cell, by area; months as long as in a year of 365 days."""
    lengths = month_axis(YEARS, "noleap").lengths_days[:, None, None]
    mean = (values * lengths).sum(axis=0) / lengths.sum()
    sigma = np.sqrt((lengths * (values - mean) ** 2).sum(axis=0) / lengths.sum())
    land = np.isfinite(sigma)
    score = np.exp(-offset / sigma[land])
    return float((score * PLAIN.cell_area[land]).sum() / PLAIN.cell_area[land].sum())


def check(found: dict[tuple[str, str, str], float]) -> None:
    """``found``: (source, model, scalar) -> value, in the units of the references."""
    per_day = 86.4e6
    for source, sign, values, offset in (
        ("GPP-obs", 1, cycles(1, 4e-8), OFFSET["gpp"]),
        ("NEP-obs", -1, cycles(2, 4e-8), OFFSET["nep"]),
    ):
        bias = found[source, "M1_Prior", "Bias"]
        assert bias == pytest.approx(sign * offset * per_day, rel=1e-5)
        score = found[source, "M1_Prior", "Bias Score"]
        assert score == pytest.approx(expected_bias_score(values, offset), abs=2e-3)
        assert found[source, "M1_Posterior", "Bias"] == pytest.approx(0.0, abs=1e-6)
        assert found[source, "M1_Prior", "Seasonal Cycle Score"] == pytest.approx(1.0)
        for name in ("Bias Score", "RMSE Score", "Seasonal Cycle Score"):
            assert found[source, "M1_Posterior", name] == pytest.approx(1.0, abs=1e-5)
    assert found["BIO-obs", "M1_Prior", "Bias Score"] == pytest.approx(math.exp(-0.1), abs=1e-5)
    assert found["BIO-obs", "M1_Posterior", "Bias Score"] == pytest.approx(1.0, abs=1e-5)


def run_ilamb(out: Path, *options: str) -> dict[tuple[str, str, str], float]:
    """(source, model, scalar) -> value that ILAMB 2.7 finds in a folder."""
    environment = offline()
    environment["PATH"] = f"{Path(str(ILAMB_RUN)).parent}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(
        [str(out / "run.sh"), "--skip_plots", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    with (out / "ilamb_results" / "scalar_database.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {(r["Source"], r["Model"], r["ScalarName"]): float(r["Data"]) for r in rows}


def run_ilamb3(out: Path) -> dict[tuple[str, str, str], float]:
    """(source, model, scalar) -> value that ilamb3 finds in a folder."""
    result = subprocess.run(
        [str(ILAMB3_PYTHON), str(out / "run.py")],
        env=offline(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = {}
    for path in (out / "ilamb3_results").rglob("*.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row.get("source", "Reference") != "Reference":
                    name = row["name"].split(" [")[0]
                    found[path.parent.name, path.stem, name] = float(row["value"])
    return found


@with_ilamb
def test_ilamb_27_runs_the_folder_and_finds_what_was_put_into_it(
    study: tuple[list[Path], list[Reference]], tmp_path: Path
) -> None:
    export_ilamb(study[0], out=tmp_path / "x", tool="ilamb", references=study[1])
    found = run_ilamb(tmp_path / "x", "--rmse_score_basis", "series")
    check(found)
    for name, value in Theirs().ilamb().items():
        assert found["HEAT-obs", "M1_Prior", name] == pytest.approx(value, rel=1e-5), name


@with_ilamb3
def test_ilamb3_runs_the_folder_and_finds_what_was_put_into_it(
    study: tuple[list[Path], list[Reference]], tmp_path: Path
) -> None:
    export_ilamb(study[0], out=tmp_path / "x", tool="ilamb3", references=study[1])
    found = run_ilamb3(tmp_path / "x")
    check(found)
    for name, value in Theirs().ilamb3().items():
        assert found["HEAT-obs", "M1_Prior", name] == pytest.approx(value, rel=1e-5), name


# --- the tools on real data -------------------------------------------------------------------

SCALARS = {
    "bias": "Bias",
    "rmse": "RMSE",
    "bias_score": "Bias Score",
    "rmse_score": "RMSE Score",
    "seasonal_cycle_score": "Seasonal Cycle Score",
}


@pytest.fixture(scope="module")
def real(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The store of the CoLM run, and its products file."""
    sample = project_root / ".cache" / "sample_data"
    script = project_root / "scripts" / "fetch_sample_data"
    result = subprocess.run(
        [sys.executable, str(script), str(sample)], capture_output=True, text=True
    )
    if result.returncode:
        pytest.skip(f"no sample data: {result.stderr.strip()}")
    top = tmp_path_factory.mktemp("checkout")
    folder = top / "config" / "examples" / "colm-sample"
    shutil.copytree(project_root / "config" / "examples" / "colm-sample", folder)
    (top / "sample_data").symlink_to(sample)
    app = typer.Typer()
    app.command()(harmonize)
    arguments = ["--manifest", str(folder / "manifest.yaml"), "--out", str(top / "collection")]
    done = CliRunner().invoke(app, [str(sample / "Initial_test"), *arguments])
    assert done.exit_code == 0, done.output
    return top / "collection" / "CoLM.sample_S3_2deg_Prior.zarr", folder / "products.yaml"


def ours(store: Path, products: Path, out: Path) -> dict[tuple[str, str, str], float]:
    """(scheme, product, quantity) -> value of the benchmark, in the units of the references."""
    run_benchmark(
        [store],
        products=load_products(products),
        out=out,
        regridder=lambda ds, grid: regrid_dataset(ds, grid=grid),
        frequencies=("mon",),
        regions=("global",),
        schemes=("collier2018", "ilamb27", "ilamb3"),
    )
    found = {}
    with (out / "scores.csv").open() as file:
        for row in csv.DictReader(file):
            if row["quantity"] in SCALARS and row["stage"] == "Prior":
                value = float(row["value"]) * (86400.0 if row["units"] == "kg m-2 s-1" else 1.0)
                found[row["scheme"], row["product"], row["quantity"]] = value
    return found


def close(quantity: str, theirs: float, mine: float) -> bool:
    if quantity in ("bias", "rmse"):
        return abs(theirs - mine) <= 1e-3 * abs(mine)
    return abs(theirs - mine) <= 2e-3


@with_ilamb
@pytest.mark.sample_data
def test_on_the_real_run_ilamb_27_and_the_benchmark_agree(
    real: tuple[Path, Path], tmp_path: Path
) -> None:
    mine = ours(*real, tmp_path / "benchmark")
    result = command(
        *(str(real[0]), "--to", "ilamb", "--out", str(tmp_path / "x")),
        *("--products", str(real[1])),
    )
    assert result.exit_code == 0, result.output
    for scheme, basis in (("collier2018", "series"), ("ilamb27", "cycle")):
        found = run_ilamb(tmp_path / "x", "--rmse_score_basis", basis)
        for (of, product, quantity), value in mine.items():
            # 58 cells of GLEAM never change: ILAMB has their maximum in January.
            if of != scheme or (scheme, product, quantity) == (
                "collier2018",
                "GLEAM-evspsbl",
                "seasonal_cycle_score",
            ):
                continue
            theirs = found[product, "CoLM_Prior", SCALARS[quantity]]
            assert close(quantity, theirs, value), (scheme, product, quantity, theirs, value)


@with_ilamb3
@pytest.mark.sample_data
def test_on_the_real_run_ilamb3_and_the_benchmark_agree(
    real: tuple[Path, Path], tmp_path: Path
) -> None:
    mine = ours(*real, tmp_path / "benchmark")
    result = command(
        *(str(real[0]), "--to", "ilamb3", "--out", str(tmp_path / "x")),
        *("--products", str(real[1])),
    )
    assert result.exit_code == 0, result.output
    found = run_ilamb3(tmp_path / "x")
    for (scheme, product, quantity), value in mine.items():
        # 58 cells of GLEAM never change: ilamb3 gives them the score 0, the benchmark none.
        if scheme != "ilamb3" or (
            product == "GLEAM-evspsbl" and quantity in ("bias_score", "rmse_score")
        ):
            continue
        theirs = found[product, "CoLM_Prior", SCALARS[quantity]]
        assert close(quantity, theirs, value), (product, quantity, theirs, value)
