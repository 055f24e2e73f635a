"""Files to a flat store in one reading: annual means, kinds of variables, masks, what was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from grid_cases import gaussian
from typer.testing import CliRunner

from callmip_global.cli.app import app
from callmip_global.errors import DataError, UsageError
from callmip_global.grid import standard_grid
from callmip_global.regrid import pipeline, regrid_files, shards
from callmip_global.regrid.fields import Field
from callmip_global.store import global_total, open_store, value_fraction
from callmip_global.timeaxis import MonthAxis

SOURCE = gaussian(32, 64)
AREA = SOURCE.cell_area
TWO = standard_grid("2deg")


def monthly(
    path: Path,
    months: int = 24,
    *,
    first: tuple[int, int] = (2001, 1),
    calendar: str = "noleap",
    gaps: bool = False,
    **attributes: Any,
) -> Path:
    """Months of float32 numbers with a fixed ocean; ``gaps`` take other cells every month."""
    rng = np.random.default_rng(months)
    axis = MonthAxis(calendar, first, months)
    values = rng.random((months, *SOURCE.shape), dtype=np.float32) + np.float32(0.5)
    values[:, rng.random(SOURCE.shape) < 0.4] = np.nan
    if gaps:
        values[rng.random(values.shape) < 0.3] = np.nan
    ds = xr.Dataset(
        {"x": (("time", "lat", "lon"), values, {"units": "kg m-2 s-1", **attributes})},
        coords={
            "time": ("time", axis.time, axis.time_attributes),
            "time_bnds": (("time", "bnds"), axis.bounds),
            "lat": ("lat", SOURCE.lat, {"units": "degrees_north"}),
            "lon": ("lon", SOURCE.lon, {"units": "degrees_east"}),
        },
    )
    ds.to_netcdf(path)
    return path


def values_in(path: Path) -> np.ndarray:
    with xr.open_dataset(path, decode_times=False) as ds:
        return ds["x"].values.astype(np.float64)


# --- annual means, on the way -----------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("calendar", ["noleap", "360_day", "standard"])
def test_the_integral_of_a_year_is_the_days_weighted_mean_of_its_months(
    calendar: str, gaps: bool, tmp_path: Path
) -> None:
    path = monthly(tmp_path / "in.nc", 150, first=(1999, 1), calendar=calendar, gaps=gaps)
    out = tmp_path / "out.zarr"
    regrid_files([path], grid=TWO, out=out, annual=True)
    months, years = open_store(out, "mon"), open_store(out, "yr")
    assert years.sizes["time"] == 12
    days = MonthAxis(calendar, (1999, 1), 144).lengths_days.reshape(12, 12)
    by_month = np.nansum(values_in(path)[:144] * AREA, axis=(1, 2)).reshape(12, 12)
    wanted = (by_month * days).sum(axis=1) / days.sum(axis=1)
    np.testing.assert_allclose(global_total(years, "x"), wanted, rtol=1e-6)
    assert (value_fraction(years, "x").dims[0] == "time") is gaps
    assert years["x"].dtype == months["x"].dtype == np.float32
    assert [t.year for t in years["time"].values[[0, -1]]] == [1999, 2010]


def test_a_year_by_hand_with_a_cell_that_is_missing_in_some_months(tmp_path: Path) -> None:
    path = monthly(tmp_path / "in.nc", 12)
    with xr.open_dataset(path, decode_times=False) as ds:
        changed = ds.load()
    changed["x"][...] = np.arange(1.0, 13.0).reshape(12, 1, 1)
    changed["x"][6:, :, :] = np.nan
    changed["x"][:, 0, 0] = 7.0
    changed.to_netcdf(tmp_path / "half.nc")
    regrid_files([tmp_path / "half.nc"], grid=TWO, out=tmp_path / "o.zarr", annual=True)
    ds = open_store(tmp_path / "o.zarr", "yr")
    days = np.array([31, 28, 31, 30, 31, 30])
    assert ds["x"][0, 45, 90].item() == pytest.approx(
        (days * np.arange(1, 7)).sum() / days.sum(), rel=1e-6
    )
    assert ds["valid_fraction"][0, 45, 90].item() == pytest.approx(181 / 365, rel=1e-6)


def test_years_that_lie_across_two_shards_are_whole_and_the_ends_are_left_out(
    tmp_path: Path,
) -> None:
    path = monthly(tmp_path / "in.nc", 130, first=(2000, 8))
    regrid_files([path], grid=TWO, out=tmp_path / "o.zarr", annual=True)
    months, years = open_store(tmp_path / "o.zarr", "mon"), open_store(tmp_path / "o.zarr", "yr")
    assert len(months["x"].encoding["shards"]) == 3
    assert months["x"].encoding["shards"][0] < 130
    assert [t.year for t in years["time"].values] == list(range(2001, 2011))
    days = MonthAxis("noleap", (2001, 1), 120).lengths_days.reshape(10, 12, 1, 1)
    whole = months["x"].values[5:125].astype(np.float64).reshape(10, 12, *TWO.shape)
    np.testing.assert_allclose(
        years["x"].values, (whole * days).sum(axis=1) / days.sum(axis=1), rtol=1e-6
    )


def test_each_byte_of_the_input_is_read_once_but_for_the_first_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions: list[slice] = []
    read = Field.read

    def counted(self: Field, region: slice) -> Any:
        regions.append(region)
        return read(self, region)

    monkeypatch.setattr(Field, "read", counted)
    path = monthly(tmp_path / "in.nc", 130, gaps=True)
    regrid_files([path], grid=TWO, out=tmp_path / "o.zarr", annual=True)
    first, *others = regions
    assert first == slice(0, 1)
    steps = sorted(t for region in others for t in range(region.start, region.stop))
    assert steps == list(range(130))


@pytest.mark.parametrize(
    ("months", "words"),
    [(11, "hold no whole year"), (1, "hold no whole year")],
)
def test_without_a_whole_year_there_are_no_annual_means(
    months: int, words: str, tmp_path: Path
) -> None:
    path = monthly(tmp_path / "in.nc", months)
    with pytest.raises(DataError, match=rf"in\.nc: time: found .*{words}.*Leave --annual out"):
        regrid_files([path], grid=TWO, out=tmp_path / "o.zarr", annual=True)
    assert not (tmp_path / "o.zarr").exists()


# --- masks that change late --------------------------------------------------------------------


def test_a_mask_that_changes_in_the_last_month_has_a_fraction_for_every_month(
    tmp_path: Path,
) -> None:
    path = monthly(tmp_path / "in.nc", 125)
    with xr.open_dataset(path, decode_times=False) as ds:
        late = ds.load()
    late["x"][124, 10:14] = np.nan
    late.to_netcdf(tmp_path / "late.nc")
    report = regrid_files([tmp_path / "late.nc"], grid=TWO, out=tmp_path / "late.zarr")
    regrid_files([path], grid=TWO, out=tmp_path / "o.zarr")
    assert report["conservation"][""]["x"]["mask"] == "changes"
    a, b = open_store(tmp_path / "late.zarr"), open_store(tmp_path / "o.zarr")
    assert a["valid_fraction"].dims == ("time", "lat", "lon")
    assert b["valid_fraction"].dims == ("lat", "lon")
    np.testing.assert_array_equal(a["x"][:124], b["x"][:124])
    np.testing.assert_array_equal(
        a["valid_fraction"][:124].astype(np.float32),
        np.broadcast_to(b["valid_fraction"].values.astype(np.float32), (124, *TWO.shape)),
    )
    before = np.nansum(late["x"].values * AREA, axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(global_total(a, "x"), before, rtol=1e-6)


def test_the_size_of_blocks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = monthly(tmp_path / "in.nc", 70, gaps=True)
    found = []
    for size in (1, 10_000_000):
        monkeypatch.setattr(shards, "_BLOCK_BYTES", size)
        regrid_files([path], grid=TWO, out=tmp_path / f"{size}.zarr", annual=True)
        with xr.open_zarr(tmp_path / f"{size}.zarr", group="mon") as ds:
            found.append(ds.load())
    xr.testing.assert_equal(*found)


# --- kinds of variables ------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
def test_the_sum_of_amounts_is_kept(gaps: bool, tmp_path: Path) -> None:
    path = monthly(
        tmp_path / "in.nc", 14, gaps=gaps, cell_methods="area: sum time: mean", units="kg"
    )
    report = regrid_files([path], grid=TWO, out=tmp_path / "o.zarr", annual=True)
    ds = open_store(tmp_path / "o.zarr", "mon")
    before = np.nansum(values_in(path), axis=(1, 2))
    np.testing.assert_allclose(ds["x"].sum(("lat", "lon"), dtype=float), before, rtol=1e-6)
    assert report["conservation"]["mon"]["x"]["kind"] == "extensive"
    assert report["conservation"]["mon"]["x"]["max_relative_drift"] < 1e-6
    year = open_store(tmp_path / "o.zarr", "yr")["x"].sum(dtype=float).item()
    days = MonthAxis("noleap", (2001, 1), 12).lengths_days
    assert year == pytest.approx(np.average(before[:12], weights=days), rel=1e-6)


def test_of_classes_a_cell_gets_the_one_with_the_largest_area(tmp_path: Path) -> None:
    classes = np.zeros((90, 180), dtype=np.int32)
    classes[:, 90:] = 3
    classes[44:46, 100:102] = [[1, 2], [2, 1]]
    ds = xr.Dataset(
        {"pft": (("lat", "lon"), classes, {"flag_values": [0, 1, 2, 3]})},
        coords={"lat": np.arange(-89.0, 90, 2), "lon": np.arange(-179.0, 180, 2)},
    )
    ds.to_netcdf(tmp_path / "in.nc")
    out = tmp_path / "o.zarr"
    report = regrid_files([tmp_path / "in.nc"], grid=standard_grid("1deg"), out=out)
    found = open_store(out)["pft"].values
    np.testing.assert_array_equal(found, classes.repeat(2, axis=0).repeat(2, axis=1))
    assert report["conservation"][""]["pft"] == {
        "kind": "categorical",
        "weighting": "valid area",
        "mask": "static",
        "stored_as": "float64",
    }


def test_the_kind_can_be_said_and_a_wrong_word_is_one_error(tmp_path: Path) -> None:
    path = monthly(tmp_path / "in.nc", 12)
    arguments = ["regrid", str(path), "--grid", "2deg", "--out", str(tmp_path / "o.zarr")]
    done = CliRunner().invoke(app, [*arguments, "--kind", "x=extensive", "--annual"])
    assert done.exit_code == 0, done.output
    assert "x: weighted by amount, mask static, integral kept to" in done.output
    for given, words in {
        "x": "--kind: found 'x', wanted NAME=KIND",
        "y=extensive": "--kind: y: found no such variable on the grid, wanted one of: x",
        "x=much": "--kind: x: found 'much', wanted one of: intensive, extensive, categorical",
    }.items():
        result = CliRunner().invoke(app, [*arguments, "--kind", given])
        assert isinstance(result.exception, SystemExit | UsageError)
        assert words in str(result.exception) + result.output


# --- engines and methods ------------------------------------------------------------------------


def stations(path: Path) -> Path:
    """Three places that are on no grid, one of them without a value."""
    ds = xr.Dataset(
        {"x": (("site",), np.array([1.0, np.nan, 3.0], dtype=np.float32), {"units": "1"})},
        coords={
            "lat": ("site", [10.3, 20.1, -33.7], {"units": "degrees_north"}),
            "lon": ("site", [15.2, 100.9, 24.4], {"units": "degrees_east"}),
        },
    )
    ds.to_netcdf(path)
    return path


def test_points_without_cells_go_to_the_nearest_centres_when_asked_for(tmp_path: Path) -> None:
    path = stations(tmp_path / "in.nc")
    arguments = ["regrid", str(path), "--grid", "2deg", "--out", str(tmp_path / "o.zarr")]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, DataError)
    assert "--method nearest" in str(refused.exception)
    done = CliRunner().invoke(app, [*arguments, "--method", "nearest"])
    assert done.exit_code == 0, done.output
    assert "not conservative" in done.output
    assert "x: weighted by valid area, mask static, no integrals" in done.output
    ds = open_store(tmp_path / "o.zarr")
    assert ds["x"].sel(lat=11, lon=15).item() == 1.0
    assert ds["x"].sel(lat=-33, lon=25).item() == 3.0
    assert np.isnan(ds["x"].sel(lat=21, lon=101).item())
    assert np.isnan(ds["x"].sel(lat=61, lon=-99).item())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "esmf"}, "--engine: found 'esmf', wanted auto or native or xesmf"),
        ({"method": "cubic"}, "--method: found 'cubic', wanted conservative or nearest or bili"),
        ({"engine": "native", "method": "bilinear"}, "--method: found bilinear, wanted conserv"),
        ({"gaussian_edges": "middle"}, "--gaussian-edges: found 'middle', wanted weights or mid"),
        ({"method": "nearest", "kinds": {"x": "extensive"}}, "x: found amounts per cell (exten"),
    ],
)
def test_what_no_engine_can_do_is_said_before_anything_is_read(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = monthly(tmp_path / "in.nc", 1)
    with pytest.raises((UsageError, DataError)) as error:
        regrid_files([path], grid=TWO, out=tmp_path / "o.zarr", **given)
    assert words in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.nc"]


def test_weights_that_were_saved_give_the_same_values_when_they_are_read(tmp_path: Path) -> None:
    path, file = monthly(tmp_path / "in.nc", 3), tmp_path / "weights.nc"
    one, two = tmp_path / "one.zarr", tmp_path / "two.zarr"
    arguments = ["regrid", str(path), "--grid", "2deg", "--out"]
    done = CliRunner().invoke(app, [*arguments, str(one), "--save-weights", str(file)])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*arguments, str(two), "--weights", str(file)])
    assert done.exit_code == 0, done.output
    assert {p.name for p in tmp_path.iterdir()} == {"in.nc", "weights.nc", "one.zarr", "two.zarr"}
    ours, theirs = open_store(one), open_store(two)
    for name in ("x", "valid_fraction"):
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("file", "given", "words"),
    [
        ("w.nc", {"method": "nearest"}, "--save-weights: found nearest cell centre within"),
        ("no/w.nc", {}, "cannot be written: No such file"),
    ],
)
def test_weights_that_keep_no_integral_or_have_no_place_are_not_saved(
    file: str, given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = monthly(tmp_path / "in.nc", 1)
    with pytest.raises(UsageError, match=words):
        regrid_files(
            [path], grid=TWO, out=tmp_path / "o.zarr", save_weights=tmp_path / file, **given
        )
    assert [p.name for p in tmp_path.iterdir()] == ["in.nc"]


def test_edges_between_gaussian_rows_are_those_asked_for(tmp_path: Path) -> None:
    path = monthly(tmp_path / "in.nc", 1)
    found = {}
    for edges in ("weights", "midpoints"):
        out = tmp_path / f"{edges}.zarr"
        found[edges] = regrid_files([path], grid=TWO, out=out, gaussian_edges=edges)["weights"]
    assert found["weights"]["edge_model"] != found["midpoints"]["edge_model"]
    a, b = (open_store(tmp_path / f"{edges}.zarr") for edges in found)
    assert not np.array_equal(a["x"], b["x"], equal_nan=True)


# --- a minimum valid fraction, and what was conserved ------------------------------------------


def test_cells_with_less_than_the_minimum_valid_fraction_are_missing(tmp_path: Path) -> None:
    path = monthly(tmp_path / "in.nc", 5)
    all_of_it = tmp_path / "all.zarr"
    regrid_files([path], grid=TWO, out=all_of_it)
    report = regrid_files([path], grid=TWO, out=tmp_path / "o.zarr", min_fraction=0.5)
    a, b = open_store(all_of_it), open_store(tmp_path / "o.zarr")
    enough = a["valid_fraction"] >= 0.5
    assert 0 < int(enough.sum()) < int((a["valid_fraction"] > 0).sum())
    np.testing.assert_array_equal(b["x"], a["x"].where(enough))
    entry = report["conservation"][""]["x"]
    assert entry["integral_kept"] == pytest.approx(global_total(b, "x").mean(), rel=1e-6)
    assert entry["integral_kept"] < entry["integral_after"]
    with pytest.raises(UsageError, match=r"--min-fraction: found 1\.5, wanted 0 to 1"):
        regrid_files([path], grid=TWO, out=tmp_path / "p.zarr", min_fraction=1.5)


def test_the_integrals_of_every_step_are_written_beside_the_data(tmp_path: Path) -> None:
    path = monthly(tmp_path / "in.nc", 70, gaps=True)
    regrid_files([path], grid=TWO, out=tmp_path / "o.zarr")
    ds = xr.open_zarr(tmp_path / "o.zarr", group="conservation")
    np.testing.assert_allclose(
        ds["x_before"], np.nansum(values_in(path) * AREA, axis=(1, 2)), rtol=1e-12
    )
    np.testing.assert_allclose(ds["x_after"], global_total(open_store(tmp_path / "o.zarr"), "x"))
    assert ds["x_before"].attrs["units"] == "kg m-2 s-1 m2"
    assert float(ds["x_drift"].max()) < pipeline.TOLERANCE["float32"]
    assert ds.sizes["time"] == 70
