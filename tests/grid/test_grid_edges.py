"""Grids by their edges, and how they are read out of files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import xarray as xr
from grid_cases import gaussian, grids, pole_centred
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.errors import DataError, UsageError
from callmip_global.grid import (
    EARTH_RADIUS_M,
    STANDARD_GRIDS,
    Grid,
    SourceGrid,
    grid_of,
    standard_grid,
)

SPHERE_M2 = 4.0 * np.pi * EARTH_RADIUS_M**2


def dataset(lat, lon, names=("lat", "lon"), **extra) -> xr.Dataset:
    """A file with one variable that holds, in every cell, 1000 lat + lon of its centre."""
    lat, lon = np.asarray(lat), np.asarray(lon)
    turned = np.mod(lon + 180.0, 360.0) - 180.0
    values = 1000.0 * lat[:, None] + turned[None, :]
    coords = {names[0]: (names[0], lat), names[1]: (names[1], lon)}
    return xr.Dataset({"v": (names, values), **extra}, coords=coords)


@given(grids())
def test_the_cells_of_a_whole_grid_cover_the_sphere_once(grid: Grid) -> None:
    assert grid.is_global
    assert grid.cell_area.sum() == pytest.approx(SPHERE_M2, rel=1e-12)


@given(grids(whole=False))
def test_a_grid_that_is_written_with_bounds_is_read_back_as_itself(grid: Grid) -> None:
    ds = dataset(
        grid.lat,
        grid.lon,
        lat_bnds=(("lat", "bnds"), grid.lat_bnds),
        lon_bnds=(("lon", "bnds"), grid.lon_bnds),
    )
    read = grid_of(ds, "file.nc")
    assert read.edge_model == "bounds"
    np.testing.assert_allclose(read.grid.lat_edges, grid.lat_edges, rtol=0, atol=1e-10)
    np.testing.assert_allclose(read.grid.lon_edges, grid.lon_edges, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", STANDARD_GRIDS)
def test_standard_grids_start_at_the_dateline_and_the_south_pole(name: str) -> None:
    grid, step = standard_grid(name), float(name.removesuffix("deg"))
    assert grid.shape == (round(180 / step), round(360 / step))
    assert (grid.lat[0], grid.lon[0]) == (-90 + step / 2, -180 + step / 2)
    assert grid.cell_area.sum() == pytest.approx(SPHERE_M2, rel=1e-14)


def test_an_unknown_standard_grid_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'3deg'.*0\.5deg, 1deg, 2deg"):
        standard_grid("3deg")


def test_a_cell_of_one_degree_at_the_equator_has_the_area_worked_by_hand() -> None:
    # (R pi / 180) per degree of longitude, times R sin(1 degree): 111.19493 km x 111.18928 km.
    grid = Grid("hand", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    by_hand_m2 = (6.371e6 * np.pi / 180.0) * (6.371e6 * 0.01745240643728351)
    assert grid.cell_area[0, 0] == pytest.approx(by_hand_m2, rel=1e-14)


def test_grids_are_equal_when_their_edges_are() -> None:
    a = Grid("a", np.array([-90.0, -0.0, 90.0]), np.array([0.0, 180.0]))
    b = Grid("b", np.array([-90.0, 0.0, 90.0]), np.array([0.0, 180.0]), np.array([-40.0, 40.0]))
    c = Grid("a", np.array([-90.0, 1.0, 90.0]), np.array([0.0, 180.0]))
    assert a == b
    assert a.digest == b.digest
    assert hash(a) == hash(b)
    assert a != c


@pytest.mark.parametrize(
    ("lat", "lon", "message"),
    [
        ([-91, 0, 90], [0, 1], "lie in"),
        ([0, 0, 90], [0, 1], "strictly ascending"),
        ([90, 0], [0, 1], "strictly ascending"),
        ([0, 1], [0, 361], "span at most 360"),
        ([0], [0, 1], "one-dimensional"),
        ([0, np.nan], [0, 1], "finite"),
    ],
)
def test_edges_that_are_no_grid_are_refused(lat, lon, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid("bad", np.array(lat, float), np.array(lon, float))


def test_gaussian_rows_are_as_high_as_their_quadrature_weights() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(96)
    lat = np.rad2deg(np.arcsin(nodes))[::-1].astype(np.float32)
    read = grid_of(dataset(lat, np.arange(192) * 1.875), "n48.nc")
    assert read.edge_model == "gauss-weights"
    rows = read.grid.cell_area.sum(axis=1) / SPHERE_M2 * 2.0
    np.testing.assert_allclose(rows, weights, rtol=1e-12)
    assert read.grid.lat_edges[[0, 48, 96]].tolist() == [-90.0, 0.0, 90.0]
    np.testing.assert_allclose(read.grid.lat, lat[::-1])
    np.testing.assert_array_equal(read.grid.lat_edges, -read.grid.lat_edges[::-1])


def test_rows_centred_on_the_poles_are_half_as_high() -> None:
    lat = np.linspace(-90.0, 90.0, 145)
    read = grid_of(dataset(lat, np.arange(192) * 1.875), "n96.nc")
    assert read.edge_model == "clipped-midpoints"
    assert read.grid == pole_centred(145, 192)
    assert np.diff(read.grid.lat_edges)[[0, 1, -1]].tolist() == [0.625, 1.25, 0.625]
    assert read.grid.cell_area.sum() == pytest.approx(SPHERE_M2, rel=1e-14)
    assert read.grid.lat[0] == -90.0


def test_an_edge_beyond_the_pole_is_clipped_not_trusted() -> None:
    # The OpenBench sample: first centre 89.75 with steps of 2 degrees.
    lat = 89.75 - 2.0 * np.arange(90)
    read = grid_of(dataset(lat, -179.75 + 2.0 * np.arange(180)), "colm.nc")
    assert read.lat_descending
    assert read.grid.lat_edges[[0, 1, -2, -1]].tolist() == [-89.25, -87.25, 88.75, 90.0]
    assert read.grid.lon_edges[[0, -1]].tolist() == [-180.75, 179.25]
    assert not read.grid.is_global
    bounds = np.stack([lat + 1.0, lat - 1.0], axis=1)
    told = grid_of(dataset(lat, read.grid.lon, lat_bnds=(("lat", "b"), bounds)), "colm.nc")
    assert told.edge_model == "bounds"
    assert told.grid == read.grid


def test_float32_jitter_is_the_regular_grid_it_means() -> None:
    lat = np.linspace(-89.95, 89.95, 1800).astype(np.float32)
    lon = np.linspace(-179.95, 179.95, 3600).astype(np.float32)
    grid = grid_of(dataset(lat, lon), "tenth.nc").grid
    np.testing.assert_allclose(grid.lat_edges, np.linspace(-90, 90, 1801), rtol=0, atol=1e-12)
    np.testing.assert_allclose(grid.lon_edges, np.linspace(-180, 180, 3601), rtol=0, atol=1e-12)
    half = grid_of(
        dataset(np.arange(-89.75, 90, 0.5, "f4"), np.arange(-179.75, 180, 0.5, "f4")), ""
    )
    assert half.grid == standard_grid("0.5deg")
    assert half.grid.name == "0.5deg"


def test_areas_of_the_whole_sphere_give_the_edges_when_there_are_no_bounds() -> None:
    grid = Grid("uneven", np.array([-90, -70, -40, 5, 30, 90.0]), np.linspace(0, 360, 9))
    area = xr.DataArray(grid.cell_area * 1.001, dims=("lat", "lon"), attrs={"units": "m2"})
    read = grid_of(dataset(grid.lat, grid.lon, areacella=area), "area.nc")
    assert read.edge_model == "areacella"
    np.testing.assert_allclose(read.grid.lat_edges, grid.lat_edges, atol=1e-9)
    # One cell in each row tells as much; a row without any, or the land in each cell, nothing.
    some = area.where(np.random.default_rng(0).random(area.shape) < 0.6)
    some[:, 3] = area[:, 3]
    read = grid_of(dataset(grid.lat, grid.lon, areacella=some), "land.nc")
    np.testing.assert_allclose(read.grid.lat_edges, grid.lat_edges, atol=1e-9)
    land = area * np.linspace(0.1, 1.0, 8)
    for useless in (area.where(np.arange(5)[:, None] > 0), land):
        with pytest.raises(DataError, match=r"a step of 25 after -80 among steps of 36.*no bounds"):
            grid_of(dataset(grid.lat, grid.lon, areacella=useless), "area.nc")


@pytest.mark.parametrize("told", ["gauss-weights", "clipped-midpoints"])
@pytest.mark.parametrize("asked", ["weights", "midpoints"])
@pytest.mark.parametrize("where_land", [False, True])
def test_areas_tell_the_edges_of_gaussian_rows_whatever_is_asked_for(
    told: str, asked: Literal["weights", "midpoints"], where_land: bool
) -> None:
    by_weights = gaussian(96, 192)
    midpoints = 0.5 * (by_weights.lat[:-1] + by_weights.lat[1:])
    lat_edges = np.concatenate([[-90.0], midpoints, [90.0]])
    half_way = Grid("half way", lat_edges, by_weights.lon_edges, by_weights.lat)
    grid = by_weights if told == "gauss-weights" else half_way
    values = grid.cell_area.astype(np.float32) * np.float32((6371.22 / 6371.0) ** 2)
    area = xr.DataArray(values, dims=("lat", "lon"))
    if where_land:
        area = area.where(np.random.default_rng(1).random(area.shape) < 0.3)
        area[:12] = np.nan
    ds = dataset(grid.lat, grid.lon, areacella=area).isel(lat=slice(None, None, -1))
    read = grid_of(ds, "area.nc", gaussian_edges=asked)
    assert read.edge_model == "areacella"
    np.testing.assert_allclose(read.grid.lat_edges, grid.lat_edges, rtol=0, atol=1e-10)


WHOLE_CLM = pole_centred(192, 288)
WHOLE_N48 = gaussian(96, 192)
# A step and a place of no special size; rows that stop at 60 S, even and Gaussian ones.
OFFSET = Grid("offset", -59.95 + 0.3 * np.arange(400), 0.1 + 0.3 * np.arange(1201))
CLM_FATES = pole_centred(96, 144)
FROM_60_S = Grid("60 S", CLM_FATES.lat_edges[16:], CLM_FATES.lon_edges, CLM_FATES.lat[16:])
GAUSS_60_S = Grid("N48, 60 S", WHOLE_N48.lat_edges[16:], WHOLE_N48.lon_edges, WHOLE_N48.lat[16:])
ROUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda x: x,
    "float32": lambda x: x.astype(np.float32),
    "4 decimals": lambda x: np.round(x, 4),
}


@pytest.mark.parametrize("rounded", ROUNDED)
@pytest.mark.parametrize("bounds", [False, True])
def test_a_grid_has_the_same_bits_however_it_was_written(rounded: str, bounds: bool) -> None:
    cut = ROUNDED[rounded]
    for grid in (WHOLE_CLM, WHOLE_N48, standard_grid("0.5deg"), OFFSET, FROM_60_S, GAUSS_60_S):
        extra = (
            {
                "lat_bnds": (("lat", "b"), cut(grid.lat_bnds)),
                "lon_bnds": (("lon", "b"), cut(grid.lon_bnds)),
            }
            if bounds
            else {}
        )
        lat = cut(grid.lat)
        plain = grid_of(dataset(grid.lat, grid.lon), "").grid
        read = grid_of(dataset(lat, cut(grid.lon), **extra), "").grid
        assert read == plain, grid.name
        np.testing.assert_array_equal(read.lat, plain.lat)
        np.testing.assert_array_equal(read.lon, plain.lon)
        np.testing.assert_allclose(read.lat_edges, grid.lat_edges, rtol=0, atol=1e-10)
        np.testing.assert_allclose(read.lon_edges, grid.lon_edges, rtol=0, atol=1e-10)
        told = {
            "lat_bnds": (("lat", "b"), read.lat_bnds),
            "lon_bnds": (("lon", "b"), read.lon_bnds),
        }
        assert grid_of(dataset(read.lat, read.lon, **told), "").grid == read


@pytest.mark.parametrize("n", [32, 64, 94, 96, 160])
def test_a_run_of_gaussian_rows_has_the_edges_of_the_whole_grid(n: int) -> None:
    whole = gaussian(n, 2 * n)
    middle = np.concatenate([[-90.0], 0.5 * (whole.lat[:-1] + whole.lat[1:]), [90.0]])
    for first, last in ((n // 6, n), (0, 5 * n // 6), (n // 6, 5 * n // 6)):
        lat = whole.lat[first:last].astype(np.float32)
        ds = dataset(lat, whole.lon)
        read = grid_of(ds, "run.nc")
        assert read.edge_model == "gauss-weights"
        expected = whole.lat_edges[first : last + 1]
        np.testing.assert_allclose(read.grid.lat_edges, expected, rtol=0, atol=1e-10)
        asked = grid_of(ds, "run.nc", gaussian_edges="midpoints")
        assert asked.edge_model == "clipped-midpoints"
        expected = middle[first : last + 1]
        np.testing.assert_allclose(asked.grid.lat_edges, expected, rtol=0, atol=1e-10)


def test_the_choice_of_gaussian_edges_is_no_choice_where_the_file_has_bounds() -> None:
    bounds = (("lat", "b"), WHOLE_N48.lat_bnds)
    ds = dataset(WHOLE_N48.lat, WHOLE_N48.lon, lat_bnds=bounds)
    a, b = (grid_of(ds, "", gaussian_edges=edges) for edges in ("weights", "midpoints"))
    assert a.grid == b.grid
    assert a.edge_model == b.edge_model == "bounds"
    even = dataset(np.arange(-89.5, 90.0), [0.0, 1.0])
    assert grid_of(even, "", gaussian_edges="midpoints").grid == grid_of(even, "").grid


def test_half_rows_at_the_poles_may_be_labelled_at_their_middle() -> None:
    # GEOS-Chem 4 x 5: rows of 4 degrees, half ones at 89; the file may stop before a pole.
    lat = np.concatenate([[-89.0], np.arange(-86.0, 87.0, 4.0), [89.0]])
    whole = grid_of(dataset(lat, np.arange(-180.0, 180.0, 5.0)), "geos.nc")
    assert whole.edge_model == "regular-spacing"
    assert whole.grid.lat_edges.tolist() == [-90.0, *np.arange(-88.0, 89.0, 4.0), 90.0]
    np.testing.assert_array_equal(whole.grid.lat, lat)
    part = grid_of(dataset(lat[8:], [0.0, 5.0]), "geos.nc").grid
    assert part.lat_edges[[0, 1, -2, -1]].tolist() == [-60.0, -56.0, 88.0, 90.0]


def test_latitudes_of_few_digits_are_even_enough() -> None:
    lat = np.linspace(-89.375, 89.375, 144)
    read = grid_of(dataset(lat.round(2), np.arange(192) * 1.875), "n96.nc").grid
    assert read.is_global
    np.testing.assert_allclose(read.lat_edges, np.linspace(-90, 90, 145), atol=0.02)


def test_a_latitude_beyond_the_pole_by_rounding_is_the_pole() -> None:
    lat = np.linspace(-90.0, 90.0, 181)
    lat[[0, -1]] += [-1e-5, 1e-5]
    read = grid_of(dataset(lat, [0.0, 1.0]), "poles.nc").grid
    assert read.lat[[0, -1]].tolist() == [-90.0, 90.0]
    assert read.lat_edges[[0, 1]].tolist() == [-90.0, -89.5]


def test_areas_of_land_with_zeros_over_the_sea_tell_edges_other_units_and_shares_do_not() -> None:
    middle = 0.5 * (WHOLE_N48.lat[:-1] + WHOLE_N48.lat[1:])
    half_way = Grid("m", np.concatenate([[-90.0], middle, [90.0]]), WHOLE_N48.lon_edges)
    area = xr.DataArray(half_way.cell_area, dims=("lat", "lon"))
    sea = np.random.default_rng(2).random(area.shape) < 0.6
    share = np.tile([0.8, 1.2], 96)
    for told, model in (
        (area.where(~sea, 0.0), "areacella"),
        (area * 1e-6, "gauss-weights"),
        (area * share, "gauss-weights"),
    ):
        read = grid_of(dataset(WHOLE_N48.lat, WHOLE_N48.lon, areacella=told), "area.nc")
        assert read.edge_model == model


def test_bounds_beyond_the_poles_are_clipped() -> None:
    bounds = [[-95.0, -60.0], [-60.0, 20.0], [20.0, 95.0]]
    uneven = dataset([-80.0, -10.0, 60.0], [0.0, 1.0], lat_bnds=(("lat", "b"), bounds))
    assert grid_of(uneven, "uneven.nc").grid.lat_edges.tolist() == [-90.0, -60.0, 20.0, 90.0]
    half = 90.0 / 191
    lat = np.linspace(-90.0, 90.0, 192)
    bounds = np.stack([lat - half, lat + half], axis=1)
    read = grid_of(dataset(lat, WHOLE_CLM.lon, lat_bnds=(("lat", "b"), bounds)), "clm.nc").grid
    np.testing.assert_allclose(read.lat_edges, WHOLE_CLM.lat_edges, rtol=0, atol=1e-12)


def test_bounds_that_were_repeated_along_time_are_bounds() -> None:
    bounds = np.repeat(WHOLE_CLM.lat_bnds[None], 3, axis=0)
    ds = dataset(WHOLE_CLM.lat, WHOLE_CLM.lon, lat_bnds=(("time", "lat", "b"), bounds))
    source = grid_of(ds, "joined.nc")
    assert source.edge_model == "bounds"
    assert grid_of(ds.isel(time=0).transpose("b", "lon", "lat"), "turned.nc") == source
    bounds[1] += 0.1
    ds = dataset(WHOLE_CLM.lat, WHOLE_CLM.lon, lat_bnds=(("time", "lat", "b"), bounds))
    with pytest.raises(DataError, match=r"lat_bnds: found shape \(3, 192, 2\)"):
        grid_of(ds, "moving.nc")


COLUMN_BOUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "eastwards": lambda b: b,
    "westwards": lambda b: b[:, ::-1],
    "-180 to 180": lambda b: np.mod(b + 180.0, 360.0) - 180.0,
    "0 to 360": lambda b: np.mod(b, 360.0),
    "sorted after the turn": lambda b: np.sort(np.mod(b + 180.0, 360.0) - 180.0, axis=1),
}


@pytest.mark.parametrize("written", COLUMN_BOUNDS)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_bounds_of_columns_may_be_written_on_any_branch(written: str, place: float) -> None:
    """Also with the points on the western or eastern edges, to all but rounding."""
    west = 2.0 * np.arange(-90, 90) - 1.0
    bounds = COLUMN_BOUNDS[written](np.stack([west, west + 2.0], axis=1))
    for rounding in (-1e-6, 0.0, 1e-6):
        lon = west + 2.0 * place + rounding
        ds = dataset([-45.0, 45.0], lon, lon_bnds=(("lon", "b"), bounds))
        edges = grid_of(ds, "file.nc").grid.lon_edges
        np.testing.assert_allclose(np.diff(edges), 2.0, atol=1e-9)
        offset = np.mod(edges[0] + 181.0 + 1.0, 360.0) - 1.0
        assert offset == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("bounds", [(0.0, 360.0), (-180.0, 180.0), (180.0, -180.0), (10.0, 30.0)])
def test_one_column_with_bounds_is_a_grid(bounds: tuple[float, float]) -> None:
    ds = dataset([-45.0, 45.0], [20.0], lon_bnds=(("lon", "b"), [bounds]))
    edges = grid_of(ds, "zonal.nc").grid.lon_edges
    assert edges[1] - edges[0] == abs(bounds[1] - bounds[0])


AXES: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "as it is": lambda lat, lon: (lat, lon),
    "north to south": lambda lat, lon: (lat[::-1], lon),
    "0 to 360": lambda lat, lon: (lat, np.sort(np.mod(lon, 360.0))),
    "0 to 180, then -180 to 0": lambda lat, lon: (lat, np.roll(lon, lon.size // 2)),
    "east to west": lambda lat, lon: (lat, lon[::-1]),
    "shuffled": lambda lat, lon: (lat, np.concatenate([lon[1::2], lon[::2]])),
}


@pytest.mark.parametrize("order", AXES)
def test_values_stay_with_their_cells_in_any_order_of_the_axes(order: str) -> None:
    lat, lon = AXES[order](standard_grid("2deg").lat, standard_grid("2deg").lon)
    ds = dataset(lat, lon, names=("latitude", "longitude"))
    source = grid_of(ds, "file.nc")
    x = source.to_grid_order(ds["v"].transpose("longitude", "latitude"))
    assert x.dims == ("lat", "lon")
    assert np.all(np.diff(x.lat) > 0)
    assert np.all(np.diff(x.lon) > 0)
    assert source.grid.is_global
    turned = np.mod(x.lon.values + 180.0, 360.0) - 180.0
    np.testing.assert_allclose(x, 1000.0 * x.lat.values[:, None] + turned[None, :])


@given(grids(whole=False), st.booleans(), st.integers(0, 7))
def test_flipping_and_rolling_the_file_does_not_change_its_grid(
    grid: Grid, flip: bool, roll: int
) -> None:
    rows = slice(None, None, -1 if flip else 1)
    columns = np.roll(np.arange(grid.shape[1]), roll)
    ds = dataset(
        grid.lat[rows],
        np.mod(grid.lon[columns], 360.0),
        lat_bnds=(("lat", "b"), grid.lat_bnds[rows]),
        lon_bnds=(("lon", "b"), np.mod(grid.lon_bnds[columns], 360.0)),
    )
    read = grid_of(ds, "file.nc")
    np.testing.assert_allclose(read.grid.lat_edges, grid.lat_edges, atol=1e-9)
    np.testing.assert_allclose(
        np.sort(np.diff(read.grid.lon_edges)), np.sort(np.diff(grid.lon_edges)), atol=1e-8
    )
    values = read.to_grid_order(ds["v"])
    turned = np.mod(read.grid.lon + 180.0, 360.0) - 180.0
    np.testing.assert_allclose(
        np.mod(values - (1000.0 * read.grid.lat[:, None] + turned) + 1.0, 360.0), 1.0, atol=1e-6
    )


@pytest.mark.parametrize("names", [("y", "x"), ("lat_FULL", "lon_FULL"), ("lsmlat", "lsmlon")])
def test_usual_names_are_found_without_attributes(names: tuple[str, str]) -> None:
    grid = grid_of(dataset([-45.0, 45.0], [0.0, 180.0], names=names), "file.nc").grid
    assert grid.lat_edges.tolist() == [-90.0, 0.0, 90.0]


def test_attributes_beat_names_and_matrices_that_repeat_a_vector_are_vectors() -> None:
    lat, lon = np.meshgrid([-45.0, 45.0], [0.0, 120.0, 240.0], indexing="ij")
    ds = xr.Dataset(
        {"v": (("j", "i"), np.zeros((2, 3)))},
        coords={
            "phi": (("j", "i"), lat, {"standard_name": "latitude"}),
            "lam": (("j", "i"), lon, {"units": "degrees_east"}),
        },
    )
    read = grid_of(ds, "file.nc")
    assert (read.lat_name, read.lon_name, read.lat_dim, read.lon_dim) == ("phi", "lam", "j", "i")
    assert read.grid.shape == (2, 3)


def curvilinear() -> xr.Dataset:
    lat = np.array([[10.0, 11.0], [20.0, 21.0]])
    return xr.Dataset(coords={"lat": (("y", "x"), lat), "lon": (("y", "x"), lat.T)})


REFUSED: dict[str, tuple[xr.Dataset, str]] = {
    "no coordinates": (xr.Dataset({"x": (("a", "b"), np.zeros((2, 2)))}), "no such coordinate"),
    "curvilinear": (curvilinear(), "a curvilinear grid.*cdo remapcon"),
    "land vector": (
        xr.Dataset(coords={"lat": ("land", [1.0, 2.0]), "lon": ("land", [3.0, 4.0])}),
        "along one dimension",
    ),
    "latitude in metres": (dataset([0.0, 5000.0], [0.0, 1.0]), "values from 0 to 5000"),
    "up and down": (
        dataset([0.0, 2.0, 1.0, 3.0], [0.0, 1.0]),
        r"up and down, at 1 \(value 3 of 4\)",
    ),
    "meridian twice": (
        dataset([0.0, 1.0], np.arange(0.0, 361.0, 60.0)),
        "longitudes 0 and 360 that meet or overlap",
    ),
    "meridian twice but for rounding": (
        dataset([0.0, 1.0], np.append(np.arange(0.0, 360.0, 60.0), 359.99999)),
        r"longitudes 359\.99999 and 0 that meet or overlap",
    ),
    "one point": (dataset([0.0], [0.0, 1.0]), "one point and no bounds"),
    "gap in bounds": (
        dataset([0.0, 2.0], [0.0, 1.0], lat_bnds=(("lat", "b"), [[-1.0, 0.5], [1.0, 3.0]])),
        r"bounds with a gap between 0\.5 and 1, ",
    ),
    "overlap of bounds": (
        dataset([0.0, 2.0], [0.0, 1.0], lat_bnds=(("lat", "b"), [[-1.0, 1.5], [1.0, 3.0]])),
        r"bounds with an overlap between 1\.5 and 1, ",
    ),
    "gaps between columns": (
        dataset(
            [0.0, 2.0],
            np.arange(0.5, 360.0),
            lon_bnds=(("lon", "b"), np.arange(0.5, 360.0)[:, None] + [[-0.4, 0.4]]),
        ),
        r"lon: found bounds with a gap between 0\.9 and 1\.1, ",
    ),
    "two columns that overlap": (
        dataset(
            [0.0, 2.0],
            [0.5, 1.5, 2.5],
            lon_bnds=(("lon", "b"), [[0.0, 1.0], [1.0, 2.25], [2.0, 3.0]]),
        ),
        r"lon: found bounds with an overlap between 2\.25 and 2, ",
    ),
    "bounds of other columns": (
        dataset(
            [0.0, 2.0],
            np.arange(0.5, 360.0),
            lon_bnds=(("lon", "b"), np.arange(0.5, 360.0)[:, None] + [[0.5, 1.5]]),
        ),
        r"lon: found 0\.5 outside its bounds \[1, 2\]",
    ),
    "bounds in the other order": (
        dataset([0.0, 2.0], [0.0, 1.0], lat_bnds=(("lat", "b"), [[1.0, 3.0], [-1.0, 1.0]])),
        r"0 outside its bounds \[1, 3\]",
    ),
    "bounds never written": (
        dataset([0.0, 2.0], [0.0, 1.0], lat_bnds=(("lat", "b"), np.zeros((2, 2)))),
        r"2 outside its bounds \[0, 0\]",
    ),
    "bounds without extent": (
        dataset([0.0], [0.0, 1.0], lat_bnds=(("lat", "b"), np.zeros((1, 2)))),
        r"bounds \[0, 0\] without extent",
    ),
    "bounds of another size": (
        dataset([0.0, 2.0], [0.0, 1.0], lat_bnds=(("c", "b"), np.zeros((3, 2)))),
        r"lat_bnds: found shape \(3, 2\), wanted finite \(2, 2\)",
    ),
    "bounds that are missing": (
        dataset([0.0, 2.0], [0.0, 1.0], lat_bnds=(("lat", "b"), [[-1.0, np.nan], [1.0, 3.0]])),
        "lat_bnds: found 1 values missing or infinite",
    ),
    "latitude twice": (dataset([0.0, 1.0, 1.0], [0.0, 1.0]), "the latitude 1 twice"),
    "latitude twice, from the north": (
        dataset([2.0, 1.0, 1.0, 0.0], [0.0, 1.0]),
        "the latitude 1 twice",
    ),
    "latitude missing": (dataset([0.0, np.nan], [0.0, 1.0]), "1 of 2 values missing or infinite"),
    "latitude beyond the pole": (
        dataset(np.linspace(-90.47, 90.47, 192), [0.0, 1.0]),
        r"values from -90\.47 to 90\.47, wanted finite degrees within \[-90, 90\]",
    ),
    "text": (
        dataset([0.0, 1.0], [0.0, 1.0]).assign_coords(lat=["a", "b"]),
        "values that are no numbers",
    ),
    "nothing": (dataset(np.zeros(0), [0.0, 1.0]), "no values"),
    "a row left out": (
        dataset(np.delete(np.arange(-89.5, 90.0), 50), [0.0, 1.0]),
        r"lat: found a step of 2 after -40\.5 among steps of 1, no bounds.*Add bounds",
    ),
    "columns left out": (
        dataset([0.0, 1.0], np.delete(np.arange(-179.5, 180.0), [30, 200])),
        "lon: found a step of 2 after .* among steps of 1, no bounds",
    ),
    "uneven columns all round": (
        dataset([0.0, 1.0], [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]),
        "lon: found a step of 60 after 300 among steps of 50, no bounds",
    ),
    "point outside": (
        dataset([0.0, 2.0], [0.0, 1.0], lat_bnds=(("lat", "b"), [[0.5, 1.0], [1.0, 3.0]])),
        "0 outside its bounds",
    ),
    "two latitudes": (
        dataset([0.0, 2.0], [0.0, 1.0], latitude=("lat", [0.1, 2.1])),
        "two coordinates that differ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_rectilinear_grid_is_refused_with_its_reason(case: str) -> None:
    ds, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        grid_of(ds, "model.nc")
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith("model.nc: ")


@pytest.mark.parametrize("bounds", [False, True])
def test_a_region_across_the_seam_of_the_file_is_one_region(bounds: bool) -> None:
    lon = np.array([0.5, 1.5, 2.5, 357.5, 358.5, 359.5])
    extra = {"lon_bnds": (("lon", "b"), np.stack([lon - 0.5, lon + 0.5], axis=1))} if bounds else {}
    source = grid_of(dataset([0.5, 1.5], lon, **extra), "europe.nc")
    assert source.grid.lon_edges.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert source.lon_order == (3, 4, 5, 0, 1, 2)


def test_a_variable_that_is_not_on_the_grid_is_told_apart() -> None:
    source: SourceGrid = grid_of(dataset([0.0, 1.0], [0.0, 1.0]), "file.nc")
    other = xr.DataArray([1.0], dims="time", name="t")
    assert not source.on_grid(other)
    with pytest.raises(ValueError, match="lack lat, lon"):
        source.to_grid_order(other)


def test_gaussian_helper_and_reader_agree() -> None:
    made = gaussian(32, 64)
    read = grid_of(dataset(made.lat, made.lon), "g.nc").grid
    np.testing.assert_allclose(read.lat_edges, made.lat_edges, atol=1e-11)


@pytest.mark.parametrize(
    "spelling", ["degrees_{}", "degree_{}", "degrees {}", "degreesN", "degree_N"]
)
def test_units_of_coordinates_in_every_spelling_of_cf(spelling: str) -> None:
    lat = spelling.format("north")
    lon = spelling.format("east").replace("N", "E")
    ds = dataset([-45.0, 45.0], [0.0, 180.0], names=("a", "b"))
    ds["a"].attrs["units"], ds["b"].attrs["units"] = lat, lon
    read = grid_of(ds, "file.nc")
    assert (read.lat_name, read.lon_name) == ("a", "b")


def test_data_named_x_are_data() -> None:
    ds = dataset([-45.0, 45.0], [0.0, 180.0]).rename(v="x")
    assert grid_of(ds, "file.nc").lon_name == "lon"
