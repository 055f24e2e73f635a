"""Lists of land points, with an index of their cells or without, and the nearest cell centre."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from grid_cases import gaussian, pole_centred
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_cases import cubed_sphere, mesh_file, mesh_of

from callmip_global.errors import DataError, UsageError
from callmip_global.grid import Grid, standard_grid
from callmip_global.regrid import Mesh, masked_mean, regrid_dataset, regrid_files
from callmip_global.regrid.fields import open_inputs
from callmip_global.regrid.mesh import PointSource
from callmip_global.regrid.meshfiles import source_of
from callmip_global.regrid.nearest import nearest_weights

TWO = standard_grid("2deg")
LAND = {"units": "kg m-2 s-1", "cell_methods": "area: mean where land time: mean"}

GRIDS = {
    "4x5": Grid("4x5", np.linspace(-90, 90, 46), np.linspace(-180, 180, 73)),
    "from Greenwich": Grid("0-360", np.linspace(-90, 90, 37), np.linspace(0, 360, 73)),
    "pole-centred": pole_centred(46, 72),
    "Gaussian": gaussian(48, 96),
    "thirds": Grid("thirds", np.linspace(-90, 90, 55), np.linspace(-180, 180, 109)),
    "offset": Grid("offset", np.linspace(-61.0, 89.0, 31), np.linspace(-178.0, 182.0, 73)),
}
NORTH_FIRST = ("from Greenwich", "Gaussian")


def land_of(grid: Grid) -> np.ndarray:
    """Fractions: two continents and islands, none on the whole southern rim."""
    rng = np.random.default_rng(3)
    lat, lon = np.meshgrid(grid.lat, grid.lon, indexing="ij")
    there = (np.cos(np.deg2rad(2 * lon + lat)) > 0.1) & (lat > -62) & (lat < 86)
    there |= rng.random(grid.shape) < 0.03
    return np.where(there, rng.random(grid.shape).clip(0.05), 0.0)


def maps(name: str) -> xr.Dataset:
    """A file of whole maps, missing where there is no land: the truth of every list."""
    grid = GRIDS[name]
    land = land_of(grid)
    rng = np.random.default_rng(4)
    gpp = rng.random((3, *grid.shape), dtype=np.float32)
    gpp[:, land == 0.0] = np.nan
    soil = rng.random((3, 2, *grid.shape))
    soil[..., land == 0.0] = np.nan
    soil[1, :, grid.shape[0] // 2] = np.nan
    fraction = {"units": "%", "standard_name": "land_area_fraction"}
    ds = xr.Dataset(
        {
            "gpp": (("time", "lat", "lon"), gpp, LAND),
            "mrsol": (("time", "soil", "lat", "lon"), soil, {"units": "kg m-2"}),
            "sftlf": (("lat", "lon"), 100.0 * land, fraction),
        },
        coords={
            "time": ("time", [15.0, 45.0, 75.0], {"units": "days since 2000-01-01"}),
            "soil": ("soil", [0.05, 0.5], {"units": "m"}),
            "lat": ("lat", grid.lat, {"units": "degrees_north"}),
            "lon": ("lon", grid.lon, {"units": "degrees_east"}),
        },
    )
    return ds.isel(lat=slice(None, None, -1)) if name in NORTH_FIRST else ds


def listed(ds: xr.Dataset, dim: str) -> xr.Dataset:
    """The land points of maps as a list along ``dim``, with ``row`` and ``column`` from 0."""
    flat = ds.reset_coords().assign(
        row=("lat", np.arange(ds.sizes["lat"])), column=("lon", np.arange(ds.sizes["lon"]))
    )
    flat = flat.set_coords(["lat", "lon"]).stack({dim: ("lat", "lon")})
    flat = flat.isel({dim: np.flatnonzero(ds["sftlf"].values.ravel() > 0.0)})
    return flat.reset_index(dim).reset_coords(["lat", "lon", "row", "column"])


def gathered(ds: xr.Dataset) -> xr.Dataset:
    """CF-1.8, section 8.2: numbers from 0."""
    flat = listed(ds, "landpoint")
    index = flat["row"] * ds.sizes["lon"] + flat["column"]
    out = flat.drop_vars(["lat", "lon", "row", "column"]).assign(lat=ds["lat"], lon=ds["lon"])
    return out.assign_coords(
        landpoint=("landpoint", index.values.astype(np.int32), {"compress": "lat lon"})
    )


def gathered_by_columns(ds: xr.Dataset) -> xr.Dataset:
    flat = listed(ds, "i")
    index = flat["column"] * ds.sizes["lat"] + flat["row"]
    out = flat.drop_vars(["lat", "lon", "row", "column"]).assign(lat=ds["lat"], lon=ds["lon"])
    return out.assign(index=("i", index.values, {"compress": "lon lat"}))


def alma(ds: xr.Dataset) -> xr.Dataset:
    """ALMA and IOIPSL (GSWP2, ORCHIDEE): numbers from 1, matrices of coordinates."""
    out = gathered(ds).rename(landpoint="land").drop_vars(["lat", "lon"])
    matrices = np.meshgrid(ds["lat"].values, ds["lon"].values, indexing="ij")
    for name, matrix, units in zip(
        ("nav_lat", "nav_lon"), matrices, ("degrees_north", "degrees_east"), strict=True
    ):
        out[name] = (("y", "x"), matrix.astype(np.float32), {"units": units})
    return out.assign_coords(land=("land", out["land"].values + 1, {"compress": "y x"}))


def clm(ds: xr.Dataset) -> xr.Dataset:
    """CTSM with hist_dov2xy = .false.: rows and columns from 1, vectors of plant types too."""
    flat = listed(ds, "gridcell")
    out = flat.rename(lat="grid1d_lat", lon="grid1d_lon").drop_vars(["row", "column"])
    number = {"_FillValue": -9999}
    out["grid1d_jxy"] = ("gridcell", flat["row"].values.astype(np.int32) + 1, number)
    out["grid1d_ixy"] = ("gridcell", flat["column"].values.astype(np.int32) + 1, number)
    out["landfrac"] = (("lat", "lon"), ds["sftlf"].values / 100.0)
    out["area"] = (("lat", "lon"), np.ones(ds["sftlf"].shape), {"units": "km^2"})
    out["TLAI"] = (("time", "pft"), np.ones((3, 7)))
    out["pfts1d_wtgcell"] = ("pft", np.ones(7))
    return out.drop_vars("sftlf").assign(lat=ds["lat"], lon=ds["lon"])


def clm_without_axes(ds: xr.Dataset) -> xr.Dataset:
    out = clm(ds).drop_vars(["lat", "lon", "landfrac", "area"])
    return out.assign(sftlf=listed(ds, "gridcell")["sftlf"])


def plain(ds: xr.Dataset) -> xr.Dataset:
    """No index at all; coordinates in float32."""
    out = listed(ds, "land").drop_vars(["row", "column"])
    for name in ("lat", "lon"):
        out[name] = ("land", out[name].values.astype(np.float32), out[name].attrs)
    return out


def jules(ds: xr.Dataset) -> xr.Dataset:
    """JULES: one row of all points, matrices of coordinates."""
    return plain(ds).rename(lat="latitude", lon="longitude", land="x").expand_dims("y", -2)


FORMS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "gathered": gathered,
    "gathered by columns": gathered_by_columns,
    "ALMA": alma,
    "CLM": clm,
    "CLM without axes": clm_without_axes,
    "no index": plain,
    "one row": jules,
}


def result(folder: Path, ds: xr.Dataset, name: str) -> tuple[xr.Dataset, dict]:
    path = folder / f"{name}.nc"
    path.unlink(missing_ok=True)
    ds.to_netcdf(path)
    report = regrid_files([path], grid=TWO, out=folder / f"{name}.zarr")
    with xr.open_zarr(folder / f"{name}.zarr", decode_times=False) as out:
        return out.load(), report


def assert_same_bytes(out: xr.Dataset, expected: xr.Dataset) -> None:
    assert set(out.variables) == set(expected.variables)
    for name in expected.variables:
        assert out[name].dims == expected[name].dims
        assert out[name].values.tobytes() == expected[name].values.tobytes(), name


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, xr.Dataset]:
    folder = tmp_path_factory.mktemp("truth")
    return {name: result(folder, maps(name), name.replace(" ", "-"))[0] for name in GRIDS}


# --- every form, on every grid ----------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_list_gives_what_its_maps_give_to_the_byte(
    form: str, grid: str, truth: dict[str, xr.Dataset], tmp_path: Path
) -> None:
    ds = FORMS[form](maps(grid))
    out, report = result(tmp_path, ds, "list")
    assert_same_bytes(out, truth[grid])
    assert report["conservation"][""]["gpp"]["max_relative_drift"] < 1e-6
    assert report["conservation"][""]["mrsol"]["max_relative_drift"] < 1e-11
    inferred = form in ("CLM without axes", "no index", "one row")
    if inferred:
        named = "gauss-latitudes" if grid == "Gaussian" else "regular-spacing"
        assert report["weights"]["edge_model"] == named
    if form.startswith("CLM"):
        assert report["left_out"] == ["TLAI: not on the grid"]


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_points_changes_nothing(
    form: str, truth: dict[str, xr.Dataset], tmp_path: Path
) -> None:
    ds = FORMS[form](maps("pole-centred"))
    dim = max((d for d in ds["gpp"].dims if d != "time"), key=lambda d: ds.sizes[d])
    order = np.random.default_rng(5).permutation(ds.sizes[dim])
    assert_same_bytes(result(tmp_path, ds.isel({dim: order}), "mixed")[0], truth["pole-centred"])


def test_longitudes_may_be_counted_from_anywhere(
    truth: dict[str, xr.Dataset], tmp_path: Path
) -> None:
    ds = plain(maps("4x5"))
    ds["lon"] = ("land", np.mod(ds["lon"].values, 360.0), ds["lon"].attrs)
    out, _ = result(tmp_path, ds, "turned")
    np.testing.assert_allclose(out["gpp"], truth["4x5"]["gpp"], rtol=1e-6)
    np.testing.assert_allclose(out["valid_fraction"], truth["4x5"]["valid_fraction"], atol=1e-12)


def test_lists_and_maps_of_one_file_are_regridded_together(tmp_path: Path) -> None:
    ds = gathered(maps("4x5"))
    ds["ts"] = (("time", "lat", "lon"), np.random.default_rng(6).random((3, 45, 72)))
    out, _ = result(tmp_path, ds, "both")
    expected, _ = result(tmp_path, maps("4x5").assign(ts=ds["ts"]), "maps")
    assert_same_bytes(out, expected)


def test_files_of_lists_in_different_orders_are_joined(tmp_path: Path) -> None:
    whole = maps("Gaussian")
    expected, _ = result(tmp_path, whole, "whole")
    order = np.random.default_rng(7).permutation(gathered(whole).sizes["landpoint"])
    first = gathered(whole).isel(time=slice(0, 2))
    later = gathered(whole).isel(time=slice(2, 3), landpoint=order)
    first.to_netcdf(tmp_path / "a.nc")
    later.to_netcdf(tmp_path / "b.nc")
    paths = [tmp_path / "b.nc", tmp_path / "a.nc"]
    regrid_files(paths, grid=TWO, out=tmp_path / "joined.zarr")
    with xr.open_zarr(tmp_path / "joined.zarr", decode_times=False) as out:
        for name in ("gpp", "mrsol", "sftlf", "valid_fraction"):
            assert out[name].values.tobytes() == expected[name].values.tobytes()


def test_values_are_read_in_blocks_as_maps_of_their_own_type(tmp_path: Path) -> None:
    ds = gathered(maps("4x5"))
    ds["mask"] = ("landpoint", np.arange(ds.sizes["landpoint"], dtype=np.int16))
    ds.to_netcdf(tmp_path / "in.nc")
    inputs = open_inputs([tmp_path / "in.nc"])
    fields = {field.name: field for field in inputs.fields}
    gpp = fields["gpp"]
    assert gpp.dims == ("time", "lat", "lon")
    assert gpp.step_size == 45 * 72
    assert fields["mrsol"].step_size == 2 * 45 * 72
    block = gpp.read(slice(1, 2))
    assert block.shape == (1, 45, 72)
    assert block.dtype == np.float32
    np.testing.assert_array_equal(block, maps("4x5")["gpp"].values[1:2])
    mask = fields["mask"].read(slice(0, 1))
    assert mask.dtype == np.float64
    assert np.nanmax(mask) == ds.sizes["landpoint"] - 1
    assert np.isnan(mask).sum() == 45 * 72 - ds.sizes["landpoint"]


def test_a_fraction_of_its_own_weighs_a_list(tmp_path: Path) -> None:
    whole = maps("4x5")
    part = np.random.default_rng(8).random((3, 45, 72))
    still = np.random.default_rng(9).random((45, 72))
    whole["valid_fraction_gpp"] = (("time", "lat", "lon"), part)
    whole["valid_fraction"] = (("lat", "lon"), still)
    expected, _ = result(tmp_path, whole, "maps")
    out, report = result(tmp_path, gathered(whole), "list")
    assert report["conservation"][""]["gpp"]["weighting"] == "valid_fraction_gpp"
    assert report["conservation"][""]["mrsol"]["weighting"] == "valid_fraction"
    assert_same_bytes(out, expected)


def test_a_region_is_cut_out_of_the_globe_it_is_a_part_of(tmp_path: Path) -> None:
    # Twelfths of a degree across the date line: as a globe 9 million cells, here a few thousand.
    lat, lon = -40.0 + (np.arange(60) + 0.5) / 12.0, 177.0 + (np.arange(70) + 0.5) / 12.0
    lat, lon = (v.ravel() for v in np.meshgrid(lat, lon, indexing="ij"))
    lon = np.where(lon > 180.0, lon - 360.0, lon)
    ds = xr.Dataset(
        {
            "gpp": ("land", np.random.default_rng(10).random(lat.size)),
            "lat": ("land", lat, {"units": "degrees_north"}),
            "lon": ("land", lon, {"units": "degrees_east"}),
        }
    )
    source = source_of(ds, "x")
    assert source.grid.shape == (60, 70)
    assert source.grid.lat_edges[[0, -1]].tolist() == pytest.approx([-40.0, -35.0], abs=1e-9)
    assert source.grid.lon_edges[[0, -1]] == pytest.approx([177.0, 177.0 + 70 / 12], abs=1e-9)
    out, report = result(tmp_path, ds, "region")
    assert report["conservation"][""]["gpp"]["max_relative_drift"] < 1e-11
    assert int(np.isfinite(out["gpp"]).sum()) == 3 * 4
    # A part of a Gaussian grid has the edges of the whole.
    part = gathered_region("Gaussian")
    edges = source_of(part, "x").grid.lat_edges
    whole = source_of(maps("Gaussian"), "x").grid.lat_edges
    assert set(edges.tolist()) < set(whole.tolist())


def gathered_region(name: str) -> xr.Dataset:
    ds = plain(maps(name))
    near = (ds["lat"] > 20) & (ds["lat"] < 75) & (ds["lon"] > 30) & (ds["lon"] < 150)
    return ds.isel(land=np.flatnonzero(near.values))


def test_ends_of_each_cell_are_its_edges(tmp_path: Path) -> None:
    whole = maps("4x5")
    ds = plain(whole)
    for name, half in (("lat", 2.0), ("lon", 2.5)):
        ends = np.stack([ds[name].values - half, ds[name].values + half], axis=1)
        ds[f"{name}_bnds"] = (("land", "two"), ends)
        ds[name].attrs["bounds"] = f"{name}_bnds"
    source = source_of(ds, "x")
    assert source.edge_model == "parallels"
    out, _ = result(tmp_path, ds, "boxes")
    expected, _ = result(tmp_path, whole, "maps")
    np.testing.assert_allclose(out["gpp"], expected["gpp"], rtol=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 720),
    st.sampled_from([0.0, 0.5]),
    st.integers(12, 1440),
    st.floats(0.0, 0.999),
    st.integers(0, 2**32 - 1),
)
def test_any_even_grid_is_told_by_a_connected_part_of_it(
    rows: int, on_pole: float, columns: int, phase: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    step, wide = 180.0 / rows, 360.0 / columns
    lat = -90.0 + step * (np.arange(rows) + 0.5 - on_pole)
    lon = -180.0 + wide * (np.arange(columns) + phase)
    height, width = min(6, rows), min(9, columns)
    j = rng.integers(0, rows - height + 1) + np.arange(height)
    i = (rng.integers(0, columns) + np.arange(width)) % columns
    row, column = (v.ravel() for v in np.meshgrid(j, i, indexing="ij"))
    order = rng.permutation(row.size)
    row, column = row[order], column[order]
    ds = xr.Dataset(
        {
            "v": ("land", np.arange(row.size, dtype=float)),
            "lat": ("land", lat[row] + rng.uniform(-5e-6, 5e-6, row.size)),
            "lon": ("land", lon[column] + rng.uniform(-5e-6, 5e-6, row.size)),
        }
    )
    for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
        ds[name].attrs["units"] = units
    ds["lat"] = ds["lat"].clip(-90.0, 90.0)
    source = source_of(ds, "x")
    assert isinstance(source, PointSource)
    assert source.edge_model == "regular-spacing"
    grid = source.grid
    place_row, place_column = np.divmod(source.cells, grid.shape[1])
    np.testing.assert_allclose(grid.lat[place_row], lat[row], atol=2e-5)
    turn = np.mod(grid.lon[place_column] - lon[column] + 180.0, 360.0) - 180.0
    # Columns that begin at no number of few digits are placed to 1e-4 degrees.
    np.testing.assert_allclose(turn, 0.0, atol=1e-4)
    np.testing.assert_allclose(np.diff(grid.lon_edges), wide, atol=1e-4)
    south = np.clip(lat[row] - 0.5 * step, -90.0, 90.0)
    np.testing.assert_allclose(grid.lat_edges[place_row], south, atol=4e-5)


@pytest.mark.parametrize("size", [32, 48, 64, 80, 94, 96, 128, 160, 256, 320])
def test_every_gaussian_grid_is_told_from_its_neighbours(size: int) -> None:
    grid = gaussian(size, 2 * size)
    row, column = np.nonzero(land_of(grid))
    ds = xr.Dataset(
        {
            "v": ("land", np.ones(row.size)),
            "lat": ("land", np.round(grid.lat, 3)[row], {"units": "degrees_north"}),
            "lon": ("land", np.float32(grid.lon)[column], {"units": "degrees_east"}),
        }
    )
    source = source_of(ds, "x")
    assert source.edge_model == "gauss-latitudes"
    assert source.grid.shape == grid.shape
    np.testing.assert_allclose(source.grid.lat_edges, grid.lat_edges, atol=1e-9)


@pytest.mark.parametrize("form", [gathered, clm_without_axes, plain])
def test_edges_half_way_between_gaussian_rows_are_had_on_request(form) -> None:
    whole = source_of(maps("Gaussian"), "x", gaussian_edges="midpoints")
    source = source_of(form(maps("Gaussian")), "x", gaussian_edges="midpoints")
    assert source.grid == whole.grid
    assert source.edge_model == whole.edge_model == "clipped-midpoints"


# --- what is refused --------------------------------------------------------------------------


def with_index(change: Callable[[np.ndarray], np.ndarray]) -> xr.Dataset:
    ds = gathered(maps("4x5"))
    index = change(ds["landpoint"].values.astype(float))
    return ds.assign_coords(landpoint=("landpoint", index, {"compress": "lat lon"}))


def at(position: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[position] = values[value] if isinstance(value, int) else value
        return values

    return change


def with_place(name: str, position: int, value: float) -> xr.Dataset:
    ds = plain(maps("4x5"))
    ds[name][position] = value
    return ds


def twice() -> xr.Dataset:
    ds = plain(maps("4x5"))
    return xr.concat([ds, ds.isel(land=[7])], "land", data_vars="minimal", coords="minimal")


def stations() -> xr.Dataset:
    """Places of flux towers, to a tenth of a degree: they fit a grid of tenths, each on its own."""
    rng = np.random.default_rng(11)
    return xr.Dataset(
        {
            "gpp": ("site", rng.random(40)),
            "lat": ("site", np.round(rng.uniform(-50, 70, 40), 1), {"units": "degrees_north"}),
            "lon": ("site", np.round(rng.uniform(-180, 180, 40), 1), {"units": "degrees_east"}),
        }
    )


def thinned() -> xr.Dataset:
    ds = plain(maps("4x5"))
    return ds.isel(land=np.flatnonzero(np.random.default_rng(12).random(ds.sizes["land"]) < 0.04))


def wrong_row() -> xr.Dataset:
    ds = clm(maps("4x5"))
    ds["grid1d_jxy"][3] = 46
    return ds


def other_row() -> xr.Dataset:
    ds = clm(maps("4x5"))
    ds["grid1d_jxy"][:] = 46 - ds["grid1d_jxy"]
    return ds


def three_dimensions() -> xr.Dataset:
    ds = gathered(maps("4x5"))
    ds["landpoint"].attrs["compress"] = "soil lat lon"
    return ds


def unsaid() -> xr.Dataset:
    ds = gathered(maps("4x5"))
    del ds["landpoint"].attrs["compress"]
    return ds


def of_xios() -> xr.Dataset:
    return alma(maps("4x5")).assign_attrs(description="Created by xios")


def bad_resolution() -> xr.Dataset:
    return thinned().assign_attrs(geospatial_lat_resolution="fine", geospatial_lon_resolution=5.0)


def other_resolution() -> xr.Dataset:
    return thinned().assign_attrs(geospatial_lat_resolution=7.0, geospatial_lon_resolution=7.0)


REFUSED: dict[str, tuple[Callable[[], xr.Dataset], str]] = {
    "an index missing": (
        lambda: with_index(at(4, math.nan)),
        r"landpoint: found 1 of \d+ points without an index, the first is 5",
    ),
    "a fraction": (lambda: with_index(at(0, 3.5)), "1 of .* without an index, the first is 1"),
    "a cell twice": (
        lambda: with_index(at(9, 2)),
        "landpoint: found 1 cells given twice, the first by points 3 and 10",
    ),
    "an index beyond": (
        lambda: with_index(at(1, 3241.0)),
        r"1 of .* points beyond the grid, the first is point 2 with 3241, wanted numbers from 0",
    ),
    "an index below": (lambda: with_index(at(1, -1.0)), "point 2 with -1, wanted numbers from 0"),
    "both ends": (
        lambda: with_index(lambda v: np.concatenate([[0.0], v[1:-1], [3240.0]])),
        "wanted numbers from 0 to 3239",
    ),
    "a row beyond": (wrong_row, "grid1d_jxy: found 1 of .* point 4 with 46, wanted .* 1 to 45"),
    "a row of other places": (other_row, "points elsewhere than their coordinates; point 1 is at"),
    "three dimensions": (three_dimensions, 'compress = "soil lat lon", wanted the two dimensions'),
    "an index not said to be one": (
        unsaid,
        r'along time, soil, landpoint, wanted .* along lat, lon.*compress,landpoint,o,c,"lat lon"',
    ),
    "from 0 or from 1": (of_xios, "whether they count from 0 .CF. or from 1 .IOIPSL.*start_index"),
    "no latitude": (lambda: with_place("lat", 2, math.nan), "lat: found 1 of .* the first is 3"),
    "no longitude": (lambda: with_place("lon", 0, math.nan), "lon: found 1 of .* the first is 1"),
    "no such latitude": (lambda: with_place("lat", 0, 1e20), "lat: found 1e.20 at point 1"),
    "off the grid": (lambda: with_place("lat", 6, 33.3), "on no regular grid.*--method nearest"),
    "two in one cell": (twice, r"two points in one cell, 1 times; the first are points 8 and \d+"),
    "stations": (
        stations,
        r"40 points of which \d+ % have a neighbour on the coarsest grid they fit .0.1 x 0.1 .*"
        "geospatial_lat_resolution",
    ),
    "too few": (thinned, r"have a neighbour on the coarsest grid .*geospatial_lat_resolution"),
    "a resolution in words": (bad_resolution, "geospatial_lat_resolution: found 'fine', wanted"),
    "another resolution": (other_resolution, "not on the grid of geospatial_lat_resolution"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_leaves_doubt_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    made, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as refused:
        result(tmp_path, made(), "refused")
    assert len(refused.value.problems) == 1
    assert not (tmp_path / "refused.zarr").exists()


def test_a_resolution_said_in_the_file_makes_cells_of_points_that_are_far_apart() -> None:
    ds = thinned().assign_attrs(
        geospatial_lat_resolution="4.0 degrees", geospatial_lon_resolution=np.float32(5.0)
    )
    out = regrid_dataset(ds, grid=TWO)
    whole = maps("4x5")
    index = listed(whole, "land")
    keep = np.flatnonzero(np.random.default_rng(12).random(index.sizes["land"]) < 0.04)
    kept = np.zeros((45, 72), dtype=bool)
    kept[index["row"].values[keep], index["column"].values[keep]] = True
    expected = regrid_dataset(whole.where(kept).assign(sftlf=whole["sftlf"] * kept), grid=TWO)
    np.testing.assert_array_equal(out["gpp"], expected["gpp"])
    np.testing.assert_array_equal(out["sftlf"], expected["sftlf"])


def test_a_start_said_in_the_file_is_believed(tmp_path: Path) -> None:
    expected, _ = result(tmp_path, maps("4x5"), "maps")
    ds = gathered(maps("4x5"))
    attributes = {"compress": "lat lon", "start_index": 1}
    ds = ds.assign_coords(landpoint=("landpoint", ds["landpoint"].values + 1, attributes))
    assert_same_bytes(result(tmp_path, ds, "from-1")[0], expected)
    ds = of_xios()
    ds["land"].attrs["start_index"] = 1
    assert_same_bytes(result(tmp_path, ds, "xios")[0], expected)


def test_the_coordinates_tell_what_an_index_counts_from(tmp_path: Path) -> None:
    expected, _ = result(tmp_path, maps("4x5"), "maps")
    for made, shift in ((gathered, 1), (alma, -1)):
        ds = made(maps("4x5"))
        dim = ds["gpp"].dims[-1]
        index = ds[dim].values + shift
        assert index.min() > 0
        ds = ds.assign_coords({dim: (dim, index, ds[dim].attrs)})
        ds["latitude"] = (dim, plain(maps("4x5"))["lat"].values, {"units": "degrees_north"})
        ds["longitude"] = (dim, plain(maps("4x5"))["lon"].values, {"units": "degrees_east"})
        assert_same_bytes(result(tmp_path, ds, made.__name__)[0], expected)


def test_an_index_into_a_curvilinear_grid_leads_to_its_cells(tmp_path: Path) -> None:
    from mesh_cases import rotated_pole

    whole = mesh_file(rotated_pole(30, 60, 39.25, -162.0), shape=(30, 60))
    there = np.random.default_rng(13).permutation(1800)[:700]
    flat = whole["gpp"].values.reshape(2, -1)
    kept = np.full_like(flat, np.nan)
    kept[:, there] = flat[:, there]
    expected = regrid_dataset(
        whole.assign(gpp=(("time", "j", "i"), kept.reshape(2, 30, 60))), grid=TWO
    )
    ds = whole.drop_vars("gpp").assign(gpp=(("time", "land"), flat[:, there]))
    ds = ds.assign_coords(land=("land", there, {"compress": "j i"}))
    np.testing.assert_array_equal(regrid_dataset(ds, grid=TWO)["gpp"], expected["gpp"])


# --- the nearest cell centre ------------------------------------------------------------------


def cloud(n: int, seed: int) -> Mesh:
    v = np.random.default_rng(seed).normal(size=(n, 3))
    lat = np.rad2deg(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))
    return Mesh((1, n), lat, np.rad2deg(np.arctan2(v[:, 1], v[:, 0])))


def vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    p, q = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(p) * np.cos(q), np.cos(p) * np.sin(q), np.sin(p)], axis=-1)


def distances_km(source: Grid | Mesh, target: Grid) -> np.ndarray:
    """(targets, sources), all of them."""
    places = []
    for grid in (target, source):
        if isinstance(grid, Mesh):
            places.append(vectors(grid.lat_points, grid.lon_points))
        else:
            lat, lon = np.meshgrid(grid.lat, grid.lon, indexing="ij")
            places.append(vectors(lat.ravel(), lon.ravel()))
    return 6371.0 * np.arccos(np.clip(places[0] @ places[1].T, -1.0, 1.0))


def taken(source: Grid | Mesh, target: Grid, km: float | None = None) -> np.ndarray:
    """Number of the source cell each target cell takes, -1 where it takes none."""
    weights = nearest_weights(source, target, max_distance_km=km)
    counts = np.diff(weights.indptr)
    assert set(counts.tolist()) <= {0, 1}
    assert np.all(weights.values == 1.0)
    out = np.full(counts.size, -1)
    out[counts == 1] = weights.indices
    return out


COARSE = Grid("coarse", np.linspace(-90, 90, 19), np.linspace(-180, 180, 37))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.floats(50.0, 20000.0))
def test_every_cell_takes_the_nearest_of_all_points_within_reach(
    n: int, seed: int, km: float
) -> None:
    mesh = cloud(n, seed)
    far = distances_km(mesh, COARSE)
    nearest = far.min(axis=1)
    sure = np.abs(nearest - km) > 0.01
    expected = np.where(nearest <= km, far.argmin(axis=1), -1)
    np.testing.assert_array_equal(taken(mesh, COARSE, km)[sure], expected[sure])


@pytest.mark.parametrize("source", ["4x5", "pole-centred", "Gaussian"])
def test_of_equally_near_cells_it_is_the_southernmost_and_of_these_the_first_from_0_east(
    source: str,
) -> None:
    grid = GRIDS[source]
    far = distances_km(grid, COARSE)
    lat, lon = (v.ravel() for v in np.meshgrid(grid.lat, np.mod(grid.lon, 360), indexing="ij"))
    order = np.lexsort((lon, lat))
    near = far <= far.min(axis=1, keepdims=True) + 1e-3
    first = order[np.argmax(near[:, order], axis=1)]
    np.testing.assert_array_equal(taken(grid, COARSE, 1e4), first)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-720.0, 720.0))
def test_the_order_of_points_and_of_the_circle_does_not_matter(seed: int, turn: float) -> None:
    # Half of the points lie on a grid between the target's centres: four are equally near.
    rng = np.random.default_rng(seed)
    lat, lon = (v.ravel() for v in np.meshgrid(np.arange(-80, 90, 10), np.arange(0, 360, 10)))
    odd = cloud(lat.size, seed)
    lat = np.concatenate([lat, odd.lat_points])
    lon = np.concatenate([lon, odd.lon_points])
    order = rng.permutation(lat.size)
    whole = 360.0 * np.round(turn / 360.0)
    one = taken(Mesh((1, lat.size), lat, lon), COARSE)
    other = taken(Mesh((1, lat.size), lat[order], lon[order] + whole), COARSE)
    np.testing.assert_array_equal(np.where(other >= 0, order[other], -1), one)


def test_a_grid_is_nearest_to_itself_and_turned_by_whole_cells_the_result_is_turned() -> None:
    np.testing.assert_array_equal(taken(COARSE, COARSE), np.arange(18 * 36))
    mesh = cloud(500, 14)
    values = np.random.default_rng(15).random((1, 1, 500))
    out, covered = masked_mean(nearest_weights(mesh, COARSE), values)
    turned = Mesh(mesh.shape, mesh.lat_points, mesh.lon_points + 70.0)
    again, part = masked_mean(nearest_weights(turned, COARSE), values)
    np.testing.assert_array_equal(again, np.roll(out, 7, axis=-1))
    np.testing.assert_array_equal(part, np.roll(covered, 7, axis=-1))


def test_oceans_are_not_filled_from_a_distant_coast_by_hand() -> None:
    # Points a degree apart from 0.5 N to 9.5 N and from 0.5 E to 9.5 E: their median spacing is
    # cos(5 N) of a degree or a little less, 110 km, so they speak for what is within 166 km or in
    # half a target cell (157 km for 2 x 2 degrees).
    lat, lon = (v.ravel() for v in np.meshgrid(np.arange(10) + 0.5, np.arange(10) + 0.5))
    weights = nearest_weights(Mesh((1, 100), lat, lon), TWO)
    assert weights.method.startswith("nearest cell centre within 166")
    assert weights.method.endswith("km or half a target cell; not conservative")
    assert weights.tolerance == math.inf
    assert weights.provenance()["method"] == weights.method
    assert weights.provenance()["edge_model"] == "cell-centres"
    coverage = weights.coverage()
    rows, columns = np.nonzero(coverage)
    assert sorted(set(TWO.lat[rows])) == sorted(set(TWO.lon[columns])) == [1, 3, 5, 7, 9]
    assert coverage.sum() == 25
    # (-1 N, 1 E) is 1.6 degrees, 176 km, from (0.5 N, 0.5 E); (-1 N, -1 E) is 2.1 degrees.
    wide = nearest_weights(Mesh((1, 100), lat, lon), TWO, max_distance_km=180.0).coverage()
    assert wide.sum() == 7 * 7 - 4


def test_coarse_points_leave_no_holes_and_fine_ones_no_halo() -> None:
    coarse = Grid("coarse", np.linspace(-90, 90, 61), np.linspace(-180, 180, 49))
    assert nearest_weights(coarse, standard_grid("1deg")).coverage().min() == 1.0
    fine = cloud(200_000, 16)
    north = fine.lat_points > 0
    half = Mesh((1, int(north.sum())), fine.lat_points[north], fine.lon_points[north])
    rows = nearest_weights(half, TWO).coverage().mean(axis=1)
    # The first row south of the equator has its centres a degree from it, within half a diagonal.
    assert rows[TWO.lat > 0].min() == 1.0
    assert rows[TWO.lat < -2].max() == 0.0


def test_values_and_gaps_are_taken_as_they_are() -> None:
    mesh = mesh_of(cubed_sphere(12, seed=17))
    values = np.random.default_rng(18).random((2, 1, 864)).astype(np.float32)
    values[:, :, ::5] = np.nan
    weights = nearest_weights(mesh, COARSE)
    out, covered = masked_mean(weights, values)
    expected = values[:, 0, taken(mesh, COARSE)].reshape(2, 18, 36)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(covered, np.isfinite(expected))
    weights.check(mesh, COARSE)
    with pytest.raises(DataError, match="weights: source grid"):
        weights.check(cloud(864, 1), COARSE)


def test_stations_are_regridded_to_the_nearest_one_when_that_is_asked_for(tmp_path: Path) -> None:
    stations().to_netcdf(tmp_path / "in.nc")
    out = tmp_path / "out.zarr"
    report = regrid_files([tmp_path / "in.nc"], grid=TWO, out=out, method="nearest")
    assert report["weights"]["method"] == (
        "nearest cell centre within 500 km or half a target cell; not conservative"
    )
    assert report["weights"]["edge_model"] == "cell-centres"
    assert "integral_before" not in report["conservation"][""]["gpp"]
    inputs = open_inputs([tmp_path / "in.nc"], corners=False)
    assert isinstance(inputs.source.grid, Mesh)
    near = distances_km(inputs.source.grid, TWO)
    values = stations()["gpp"].values[near.argmin(axis=1)]
    expected = np.where(near.min(axis=1) <= 500.0, values, np.nan).reshape(90, 180)
    with xr.open_zarr(out, decode_times=False) as ds:
        np.testing.assert_array_equal(ds["gpp"], expected)
        np.testing.assert_array_equal(ds["valid_fraction"], np.isfinite(expected))


def test_a_list_with_its_index_is_a_grid_also_for_the_nearest_centre(tmp_path: Path) -> None:
    for made in (maps, lambda name: gathered(maps(name))):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.nc"
        made("4x5").to_netcdf(path)
        regrid_files([path], grid=TWO, out=path.with_suffix(".zarr"), method="nearest")
    stores = [xr.open_zarr(p, decode_times=False).load() for p in sorted(tmp_path.glob("*.zarr"))]
    assert_same_bytes(*stores)


@pytest.mark.parametrize("km", [0.0, -1.0, math.nan, math.inf])
def test_a_distance_that_is_none_is_refused(km: float) -> None:
    with pytest.raises(UsageError, match=r"max_distance_km: found .*, wanted above 0"):
        nearest_weights(cloud(5, 1), COARSE, max_distance_km=km)
