"""Data sets, stores and files on a standard grid: totals kept, nothing lost, nothing half-done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from grid_cases import gaussian
from typer.testing import CliRunner

from callmip_global.errors import DataError, UsageError
from callmip_global.grid import Grid, standard_grid
from callmip_global.regrid import regrid_dataset, regrid_files, regrid_store
from callmip_global.regrid.pipeline import TOLERANCE
from callmip_global.store import (
    StoreName,
    create_store,
    global_total,
    is_store,
    open_store,
    protocol_template,
    store_attributes,
    store_info,
    value_fraction,
)
from callmip_global.timeaxis import month_axis

NATIVE = StoreName("DEMO", "v1", "S3", "native", "Prior")
ONE = StoreName("DEMO", "v1", "S3", "2deg", "Prior")
LAND = "area: mean where land time: mean"
VARIABLES = {
    "gpp": {"units": "kg m-2 s-1", "cell_methods": LAND},
    "ts": {"units": "K", "cell_methods": "area: mean time: mean"},
    "lai": {"units": "1", "cell_methods": LAND},
    "sparse": {"units": "1", "cell_methods": LAND},
}
SOURCE = gaussian(32, 64)


def land_of(grid: Grid) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.where(rng.random(grid.shape) < 0.4, 0.0, rng.random(grid.shape))


def values_of(name: str, steps: int) -> np.ndarray:
    """float32: gpp, ts on all land; lai lacks the south; sparse has gaps that change."""
    rng = np.random.default_rng(sum(map(ord, name)))
    values = rng.random((steps, *SOURCE.shape), dtype=np.float32) + np.float32(0.1)
    values[:, land_of(SOURCE) == 0] = np.nan
    if name == "lai":
        values[:, :6] = np.nan
    if name == "sparse":
        values[rng.random(values.shape) < 0.5] = np.nan
    return values


def native_store(folder: Path, years: tuple[int, int] = (2001, 2006)) -> Path:
    attributes = store_attributes(NATIVE, {"institution": "somewhere"}, ["mon", "yr"])
    templates = {
        frequency: protocol_template(
            grid=SOURCE,
            axis=month_axis(years, "noleap", frequency),
            variables=VARIABLES,
            land_fraction=land_of(SOURCE),
            attributes=attributes,
        )
        for frequency in ("mon", "yr")
    }
    writer = create_store(folder / NATIVE.text, templates, fingerprint={}, attributes=attributes)
    for frequency, template in templates.items():
        for name in VARIABLES:
            values = values_of(name, template.coordinates.sizes["time"])
            for region in writer.regions(frequency, name):
                writer.write(frequency, name, region, values[region])
    return writer.publish({"provenance": json.dumps({"harmonize": {"by": "test"}})})


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_store(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def regridded(native: Path) -> tuple[Path, dict]:
    out = native.parent / ONE.text
    report = regrid_store(native, grid=standard_grid("2deg"), out=out, name=ONE)
    return out, report


# --- store to store ---


@pytest.mark.parametrize("frequency", ["mon", "yr"])
@pytest.mark.parametrize("name", VARIABLES)
def test_the_global_total_of_every_step_is_the_native_one(
    name: str, frequency: str, native: Path, regridded: tuple[Path, dict]
) -> None:
    before = global_total(open_store(native, frequency), name)
    after = global_total(open_store(regridded[0], frequency), name)
    np.testing.assert_allclose(after, before, rtol=1e-6)
    entry = regridded[1]["conservation"][frequency][name]
    assert entry["integral_before"] == pytest.approx(before.mean(), rel=1e-12)
    assert entry["integral_after"] == pytest.approx(after.mean(), rel=1e-12)
    drift = np.abs(after - before) / np.abs(before)
    assert entry["max_relative_drift"] == pytest.approx(drift.max(), abs=1e-12)


def test_a_total_without_the_fraction_would_be_wrong(regridded: tuple[Path, dict]) -> None:
    ds = open_store(regridded[0], "mon")
    naive = float((ds["gpp"][0].astype(float) * ds["areacella"]).sum())
    assert abs(naive / global_total(ds, "gpp")[0] - 1.0) > 0.05


def test_land_is_kept_in_area_and_any_land_has_values(
    native: Path, regridded: tuple[Path, dict]
) -> None:
    a, b = open_store(native, "mon"), open_store(regridded[0], "mon")
    land_m2 = [float((ds["sftlf"] / 100.0 * ds["areacella"]).sum()) for ds in (a, b)]
    assert land_m2[1] == pytest.approx(land_m2[0], rel=1e-12)
    np.testing.assert_array_equal(np.isfinite(b["gpp"][0]), b["sftlf"] > 0)


def test_a_fraction_is_written_only_where_it_is_not_the_land(
    regridded: tuple[Path, dict],
) -> None:
    ds = open_store(regridded[0], "mon")
    own = sorted(str(n) for n in ds.variables if str(n).startswith("valid_fraction"))
    assert own == ["valid_fraction_lai", "valid_fraction_sparse", "valid_fraction_ts"]
    assert ds["valid_fraction_lai"].dims == ("lat", "lon")
    assert ds["valid_fraction_sparse"].dims == ("time", "lat", "lon")
    for name in VARIABLES:
        there = np.isfinite(ds[name][0]).values
        fraction = value_fraction(ds, name)
        fraction = fraction[0] if "time" in fraction.dims else fraction
        np.testing.assert_array_equal(there, fraction.values > 0)
        assert float(fraction.max()) <= 1.0


def test_the_store_has_cf_metadata_bounds_and_its_history(
    regridded: tuple[Path, dict],
) -> None:
    with xr.open_zarr(regridded[0], group="mon") as ds:
        for name, attributes in VARIABLES.items():
            assert ds[name].dtype == np.float32
            assert ds[name].attrs == {**attributes, "cell_measures": "area: areacella"}
        for bounds in ("time_bnds", "lat_bnds", "lon_bnds", "areacella", "sftlf"):
            assert bounds in ds.variables
        assert ds["lat"].values[[0, -1]].tolist() == [-89.0, 89.0]
    info = store_info(regridded[0])
    assert info.name == ONE
    assert info.attributes["institution"] == "somewhere"
    assert info.provenance["harmonize"] == {"by": "test"}
    assert info.provenance["regrid"]["conservation"] == regridded[1]["conservation"]
    assert info.provenance["regrid"]["target_grid"] == "2deg"
    assert info.provenance["regrid"]["edge_model"] == "bounds"


def test_the_annual_mean_of_the_regridded_is_the_regridded_annual_mean(
    native: Path, tmp_path: Path
) -> None:
    ds = open_store(native, "mon")[["gpp", "sftlf"]].isel(time=slice(0, 12))
    mean = ds.mean("time", keep_attrs=True).transpose(..., "lat", "lon").assign(sftlf=ds["sftlf"])
    a = regrid_dataset(mean.drop_vars("time_bnds", errors="ignore"), grid=standard_grid("2deg"))
    b = regrid_dataset(ds, grid=standard_grid("2deg"))["gpp"].mean("time")
    np.testing.assert_allclose(a["gpp"], b, rtol=2e-6)


def test_drift_beyond_the_tolerance_publishes_nothing(
    native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCE, "float32", 1e-15)
    out = tmp_path / ONE.text
    with pytest.raises(
        DataError, match=r"mon gpp: found a global integral that drifts by .*e-"
    ) as e:
        regrid_store(native, grid=standard_grid("2deg"), out=out, name=ONE)
    assert len(e.value.problems) == 2 * len(VARIABLES)
    assert not out.exists()


def test_infinite_values_are_refused_with_their_place(tmp_path: Path) -> None:
    ds = xr.Dataset(
        {"x": (("lat", "lon"), np.full(SOURCE.shape, np.inf))},
        coords={"lat": SOURCE.lat, "lon": SOURCE.lon},
    )
    ds.to_netcdf(tmp_path / "inf.nc")
    with pytest.raises(DataError, match=r"inf\.nc: x: found infinite values, in steps 1 to"):
        regrid_files([tmp_path / "inf.nc"], grid=standard_grid("2deg"), out=tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()


def test_a_store_without_groups_is_refused(tmp_path: Path, native: Path) -> None:
    out = tmp_path / "flat.zarr"
    regrid_files([native], grid=standard_grid("2deg"), out=out, frequency="yr")
    with pytest.raises(DataError, match=r"no group mon or yr"):
        regrid_store(out, grid=standard_grid("2deg"), out=tmp_path / ONE.text, name=ONE)


CHILD = """
import sys
from pathlib import Path
import callmip_global.store as store
from callmip_global.grid import standard_grid
from callmip_global.regrid import regrid_store
record = store.StoreWriter.record
def slow(self, *args, **kwargs):
    record(self, *args, **kwargs)
    print("written", flush=True)
store.StoreWriter.record = slow
name = store.StoreName.parse({out!r})
regrid_store(Path({native!r}), grid=standard_grid("2deg"), out=Path({out!r}), name=name)
"""


@pytest.mark.parametrize("after", [1, 6])
def test_killed_and_run_again_the_store_is_the_one_of_a_single_run(
    after: int, native: Path, regridded: tuple[Path, dict], tmp_path: Path
) -> None:
    out = tmp_path / ONE.text
    code = textwrap.dedent(CHILD).format(native=str(native), out=str(out))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(after):
        assert child.stdout.readline() == "written\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not is_store(out)
    done = len(list((tmp_path / f".{ONE.text}.work" / "done").glob("*.json")))
    assert done >= after
    report = regrid_store(native, grid=standard_grid("2deg"), out=out, name=ONE)
    assert report == regridded[1]
    assert contents(out) == contents(regridded[0])
    assert [p.name for p in tmp_path.iterdir()] == [ONE.text]


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


# --- data sets in memory ---


def small(lat_descending: bool = False, **attributes: str) -> xr.Dataset:
    """Four cells of 90 x 180 degrees with land in them, and what is not on the grid."""
    lat = [45.0, -45.0] if lat_descending else [-45.0, 45.0]
    values = np.array([[[1.0, 2.0], [3.0, np.nan]]], dtype=np.float32)
    return xr.Dataset(
        {
            "x": (("time", "lat", "lon"), values, {"cell_methods": LAND, **attributes}),
            "y": (("time", "lat", "lon"), values, {"cell_methods": "area: mean"}),
            "sftlf": (("lat", "lon"), [[50.0, 100.0], [25.0, 100.0]], {"units": "%"}),
            "scalar": ((), 5.0),
        },
        coords={
            "time": ("time", [15.5], {"units": "days since 2001-01-01", "bounds": "time_bnds"}),
            "time_bnds": (("time", "bnds"), [[0.0, 31.0]]),
            "lat": lat,
            "lon": [-90.0, 90.0],
        },
        attrs={"title": "by hand"},
    )


WHOLE = Grid("whole", np.array([-90.0, 90.0]), np.array([-180.0, 180.0]))


def test_land_weights_by_hand() -> None:
    out = regrid_dataset(small(), grid=WHOLE)
    # x per land area: (1 x 0.5 + 2 x 1 + 3 x 0.25) / 1.75; y per cell: (1 + 2 + 3) / 3.
    assert out["x"].item() == pytest.approx(3.25 / 1.75, rel=1e-7)
    assert out["y"].item() == pytest.approx(2.0, rel=1e-7)
    assert out["x"].dtype == np.float32
    assert value_fraction(out, "x").item() == pytest.approx(1.75 / 4)
    assert value_fraction(out, "y").item() == pytest.approx(3 / 4)
    assert out["sftlf"].item() == pytest.approx(100 * 2.75 / 4)


def test_the_land_fraction_can_be_given_or_left_aside() -> None:
    none = regrid_dataset(small(), grid=WHOLE, land_fraction=None)
    assert none["x"].item() == pytest.approx(2.0, rel=1e-7)
    given = xr.DataArray([[1.0, 0.0], [0.0, 1.0]], dims=("lat", "lon"), attrs={"units": "1"})
    other = regrid_dataset(small(), grid=WHOLE, land_fraction=given)
    assert other["x"].item() == pytest.approx(1.0, rel=1e-7)
    assert other["y"].item() == pytest.approx(2.0, rel=1e-7)


def test_time_its_bounds_and_scalars_are_passed_on() -> None:
    out = regrid_dataset(small(), grid=WHOLE)
    assert out["time_bnds"].values.tolist() == [[0.0, 31.0]]
    assert out["time"].attrs["units"] == "days since 2001-01-01"
    assert float(out["scalar"]) == 5.0
    assert out.attrs["title"] == "by hand"
    assert out["lat_bnds"].values.tolist() == [[-90.0, 90.0]]
    assert "valid_fraction" in out


def test_a_land_fraction_in_unknown_units_is_refused() -> None:
    ds = small()
    ds["sftlf"].attrs["units"] = "km2"
    with pytest.raises(DataError, match=r"mine: sftlf: found units 'km2' .*Set its units"):
        regrid_dataset(ds, grid=WHOLE, where="mine")


def test_descending_latitudes_give_the_same_as_ascending_ones() -> None:
    up, down = small(), small().isel(lat=slice(None, None, -1))
    target = standard_grid("2deg")
    xr.testing.assert_identical(regrid_dataset(up, grid=target), regrid_dataset(down, grid=target))


def test_nothing_to_regrid_is_an_error() -> None:
    with pytest.raises(DataError, match="no numeric variable"):
        regrid_dataset(small()[["scalar", "sftlf"]], grid=WHOLE)


# --- files and the command ---


def file_of(path: Path, first: int, steps: int, *, name: str = "GPP_x", year: int = 2001) -> Path:
    """A file as models leave it: latitudes from the north, 0 to 360, own names, day counts."""
    rng = np.random.default_rng(first)
    values = rng.random((steps, 32, 64)).astype(np.float32)
    values[:, :8] = np.nan
    days = 15.0 + 30.0 * np.arange(steps)
    ds = xr.Dataset(
        {name: (("time", "latitude", "longitude"), values, {"units": "gC m-2 day-1"})},
        coords={
            "time": (
                "time",
                days + 30.0 * first,
                {"units": f"days since {year}-01-01", "calendar": "360_day"},
            ),
            "latitude": ("latitude", SOURCE.lat[::-1], {"units": "degrees_north"}),
            "longitude": ("longitude", np.arange(64) * 5.625, {"units": "degrees_east"}),
        },
    )
    ds.to_netcdf(path)
    return path


def test_the_command_writes_a_flat_store(tmp_path: Path) -> None:
    import typer

    from callmip_global.cli.regrid import regrid

    app = typer.Typer()
    app.command()(regrid)
    path = file_of(tmp_path / "model.nc", 0, 3)
    out = tmp_path / "out.zarr"
    for _ in range(2):  # safe to run twice
        result = CliRunner().invoke(app, [str(path), "--grid", "2deg", "--out", str(out)])
        assert result.exit_code == 0, result.output
    assert "edges from gauss-weights" in result.output
    assert "GPP_x: weighted by valid area, mask static" in result.output
    ds = xr.open_zarr(out)
    assert ds["GPP_x"].dims == ("time", "lat", "lon")
    assert ds["GPP_x"].dtype == np.float32
    assert ds["GPP_x"].attrs["units"] == "gC m-2 day-1"
    assert ds["valid_fraction"].dims == ("lat", "lon")
    with xr.open_dataset(path) as source:
        area = SOURCE.cell_area[::-1]
        before = np.nansum(source["GPP_x"].values.astype(float) * area, axis=(1, 2))
    np.testing.assert_allclose(global_total(ds, "GPP_x"), before, rtol=1e-6)
    result = CliRunner().invoke(app, [str(path), "--grid", "2deg", "--out", str(out), "--json"])
    assert json.loads(result.output)["weights"]["engine"] == "native"


def test_files_that_continue_each_other_are_joined_in_order_of_time(tmp_path: Path) -> None:
    late = file_of(tmp_path / "a.nc", 0, 4, year=2002)
    early = file_of(tmp_path / "b.nc", 0, 12, year=2001)
    other = file_of(tmp_path / "c.nc", 0, 16, name="lai_x", year=2001)
    out = tmp_path / "out.zarr"
    regrid_files([late, other, early], grid=standard_grid("2deg"), out=out)
    ds = open_store(out)
    assert sorted(n for n in ds.data_vars if n.endswith("_x")) == ["GPP_x", "lai_x"]
    assert [(t.year, t.month) for t in ds["time"].values[[0, 11, 12, 15]]] == [
        (2001, 1),
        (2001, 12),
        (2002, 1),
        (2002, 4),
    ]
    alone = tmp_path / "alone.zarr"
    regrid_files([late], grid=standard_grid("2deg"), out=alone)
    np.testing.assert_array_equal(ds["GPP_x"][12:], open_store(alone)["GPP_x"])


def test_gaps_that_change_have_a_fraction_that_changes(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.nc", 0, 5)
    with xr.open_dataset(path, decode_times=False) as ds:
        gappy = ds.load()
    gappy["GPP_x"][2, 10:20] = np.nan
    gappy["full"] = gappy["GPP_x"].fillna(1.0)
    gappy.to_netcdf(tmp_path / "b.nc")
    regrid_files([tmp_path / "b.nc"], grid=standard_grid("2deg"), out=tmp_path / "o.zarr")
    ds = open_store(tmp_path / "o.zarr")
    assert ds["valid_fraction"].dims == ("lat", "lon")
    assert float(ds["valid_fraction"].min()) == pytest.approx(1.0)
    assert ds["valid_fraction_GPP_x"].dims == ("time", "lat", "lon")
    before = np.nansum(gappy["GPP_x"].values * SOURCE.cell_area[::-1], axis=(1, 2), dtype=float)
    np.testing.assert_allclose(global_total(ds, "GPP_x"), before, rtol=1e-6)
    regrid_files([tmp_path / "o.zarr"], grid=standard_grid("1deg"), out=tmp_path / "again.zarr")
    again = open_store(tmp_path / "again.zarr")
    np.testing.assert_allclose(global_total(again, "GPP_x"), before, rtol=1e-6)


def test_levels_are_carried_along(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 2, *SOURCE.shape))
    ds = xr.Dataset(
        {"t": (("depth", "time", "lat", "lon"), values)},
        coords={
            "depth": [0.1, 0.5, 2.0],
            "time": ("time", [0.0, 1.0], {"units": "days since 2001-01-01"}),
            "lat": SOURCE.lat,
            "lon": SOURCE.lon,
        },
    )
    ds.to_netcdf(tmp_path / "soil.nc")
    regrid_files([tmp_path / "soil.nc"], grid=standard_grid("2deg"), out=tmp_path / "o.zarr")
    out = open_store(tmp_path / "o.zarr")
    assert out["t"].dims == ("time", "depth", "lat", "lon")
    assert out["t"].dtype == np.float64
    assert out["depth"].values.tolist() == [0.1, 0.5, 2.0]
    after = (out["t"] * out["areacella"]).sum(["lat", "lon"]).transpose("depth", "time")
    np.testing.assert_allclose(after, (values * SOURCE.cell_area).sum(axis=(2, 3)), rtol=1e-12)


def test_wrong_inputs_are_one_clear_line_each(tmp_path: Path, native: Path) -> None:
    target, out = standard_grid("2deg"), tmp_path / "o.zarr"
    with pytest.raises(UsageError, match=r"a\.nc: found no such file[^\n]*\n.*b\.nc: found no"):
        regrid_files([tmp_path / "a.nc", tmp_path / "b.nc"], grid=target, out=out)
    (tmp_path / "text.nc").write_text("not a NetCDF file")
    with pytest.raises(DataError, match=r"text\.nc: found cannot be opened"):
        regrid_files([tmp_path / "text.nc"], grid=target, out=out)
    with pytest.raises(UsageError, match="Give --frequency mon"):
        regrid_files([native], grid=target, out=out)
    one = file_of(tmp_path / "one.nc", 0, 4)
    two = file_of(tmp_path / "two.nc", 2, 4)
    with pytest.raises(DataError, match=r"two\.nc: GPP_x: found times that overlap those of"):
        regrid_files([one, two], grid=target, out=out)
    three = file_of(tmp_path / "three.nc", 0, 3, name="lai_x")
    with pytest.raises(DataError, match=r"different time axes \(steps: GPP_x 4, lai_x 3\)"):
        regrid_files([one, three], grid=target, out=out)
    with xr.open_dataset(one, decode_times=False) as ds:
        ds.isel(latitude=slice(0, 20)).to_netcdf(tmp_path / "part.nc")
    with pytest.raises(DataError, match=r"part\.nc: grid: found \(20, 64\)"):
        regrid_files([three, tmp_path / "part.nc"], grid=target, out=out)
    with pytest.raises(UsageError, match="something that is no store"):
        regrid_files([one], grid=target, out=one)
    with pytest.raises(UsageError, match=r"--frequency: found 'day', wanted mon or yr"):
        regrid_files([one], grid=target, out=out, frequency="day")
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"units": "kg m-2 s-1"}, "GPP_x units: found 'kg m-2 s-1', wanted 'gC m-2 day-1', as in"),
        ({"levels": 2}, "GPP_x dimensions: found"),
        ({"fraction": 0.5}, "found another valid_fraction than"),
        ({"fraction": None}, "GPP_x valid area: found another valid area than"),
    ],
)
def test_files_whose_numbers_mean_something_else_are_not_joined(
    tmp_path: Path, change: dict, said: str
) -> None:
    files = [file_of(tmp_path / f"{year}.nc", 0, 4, year=year) for year in (2001, 2002)]
    first = {"fraction": 0.25} if "fraction" in change else {}
    for path, own in zip(files, (first, change), strict=True):
        with xr.open_dataset(path, decode_times=False) as ds:
            ds = ds.load()
        if own.get("units"):
            ds["GPP_x"].attrs["units"] = own["units"]
        if own.get("levels"):
            ds["GPP_x"] = ds["GPP_x"].expand_dims(z=own["levels"], axis=1)
        if own.get("fraction"):
            shape = tuple(ds.sizes[dim] for dim in ("latitude", "longitude"))
            ds["valid_fraction"] = (("latitude", "longitude"), np.full(shape, own["fraction"]))
        path.unlink()
        ds.to_netcdf(path)
    with pytest.raises(DataError) as caught:
        regrid_files(files, grid=standard_grid("2deg"), out=tmp_path / "o.zarr")
    assert said in str(caught.value)
    assert not (tmp_path / "o.zarr").exists()


@pytest.mark.parametrize("fill", [1e20, 9.96921e36, -9999.0])
def test_a_fill_value_that_no_attribute_names_is_never_averaged(
    tmp_path: Path, fill: float
) -> None:
    path = file_of(tmp_path / "a.nc", 0, 2)
    with xr.open_dataset(path, decode_times=False) as ds:
        filled = ds.load().fillna(fill)
    filled["GPP_x"].encoding = {"_FillValue": None}
    filled.to_netcdf(tmp_path / "b.nc")
    with pytest.raises(DataError, match=r"b\.nc: GPP_x: found .* no attribute calls missing"):
        regrid_files([tmp_path / "b.nc"], grid=standard_grid("2deg"), out=tmp_path / "o.zarr")
    with pytest.raises(DataError, match="no attribute calls missing"):
        regrid_dataset(filled, grid=standard_grid("2deg"))


def test_a_file_without_time_steps_or_with_radians_is_refused() -> None:
    target = standard_grid("2deg")
    with pytest.raises(DataError, match="x: found no time steps at all"):
        regrid_dataset(small().isel(time=slice(0, 0)), grid=target)
    radians = small().assign_coords(lat=("lat", np.deg2rad([-45.0, 45.0]), {"units": "radian"}))
    with pytest.raises(DataError, match=r"lat\.units: found 'radian', wanted degrees_north"):
        regrid_dataset(radians, grid=target)
