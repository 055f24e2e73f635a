"""Cells of any shape: exact areas and overlaps, poles and the date line, files of many kinds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from grid_cases import grids, pole_centred
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_cases import (
    Corners,
    boxes,
    cubed_sphere,
    hexagonal,
    icosahedral,
    mesh_file,
    mesh_of,
    rotated_pole,
)

from callmip_global.errors import DataError
from callmip_global.grid import EARTH_RADIUS_M, Grid, standard_grid
from callmip_global.regrid import (
    CellWeights,
    Mesh,
    conservative_weights,
    covered_fraction,
    masked_mean,
    regrid_dataset,
    regrid_files,
)
from callmip_global.regrid.meshfiles import source_of
from callmip_global.regrid.polygons import cell_areas, overlaps

ONE = standard_grid("1deg")

WHOLE = {
    "cubed sphere, poles at corners": cubed_sphere(8),
    "cubed sphere, poles in cells": cubed_sphere(9),
    "cubed sphere ne30": cubed_sphere(30),
    "cubed sphere turned": cubed_sphere(12, seed=4),
    "triangles": icosahedral(3),
    "triangles turned": icosahedral(4, seed=5),
    "hexagons": hexagonal(3),
    "hexagons turned": hexagonal(3, seed=6),
    "rotated pole": rotated_pole(60, 120, 39.25, -162.0),
    "poles on edges": rotated_pole(45, 91, 0.0, 0.0),
    "rotated by nothing": rotated_pole(36, 72, 90.0, 0.0),
    "icosahedron": icosahedral(0),
    "cube": cubed_sphere(1),
}


def by_triangles(corners: Corners) -> np.ndarray:
    """Areas [sr] from the solid angles of triangles (Van Oosterom and Strackee 1983)."""
    lat, lon = np.deg2rad(corners[0]), np.deg2rad(corners[1])
    v = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
    area = np.zeros(len(lat))
    for k in range(1, lat.shape[1] - 1):
        a, b, c = v[:, 0], v[:, k], v[:, k + 1]
        triple = np.einsum("ij,ij->i", a, np.cross(b - a, c - a))
        dots = sum(np.einsum("ij,ij->i", p, q) for p, q in ((a, b), (b, c), (c, a)))
        area += 2.0 * np.arctan2(triple, 1.0 + dots)
    return np.abs(area)


def crossing_sphere_grid() -> Grid:
    """Uneven rows and columns that start anywhere, pole to pole."""
    lat = np.concatenate([[-90.0], np.linspace(-88.3, 89.1, 61), [90.0]])
    return Grid("uneven", lat, 17.3 + 360.0 * np.linspace(0, 1, 50) ** 1.3)


# --- laws of the kernel -----------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("grid", [ONE, crossing_sphere_grid()], ids=["1deg", "uneven"])
def test_cells_that_cover_the_sphere_fill_every_box_exactly(name: str, grid: Grid) -> None:
    found = overlaps(*WHOLE[name], grid)
    assert found.cell_areas.sum() == pytest.approx(4 * np.pi, rel=1e-13)
    per_cell = np.bincount(found.cells, found.areas, minlength=len(WHOLE[name][0]))
    np.testing.assert_allclose(per_cell, found.cell_areas, rtol=1e-10)
    per_box = np.bincount(found.boxes, found.areas, minlength=grid.cell_area.size)
    np.testing.assert_allclose(per_box, grid.cell_area.ravel() / EARTH_RADIUS_M**2, rtol=1e-10)
    assert np.all(found.smallest > -1e-11 * found.cell_areas)


@pytest.mark.parametrize("name", WHOLE)
def test_areas_are_those_of_spherical_polygons(name: str) -> None:
    expected = by_triangles(WHOLE[name])
    np.testing.assert_allclose(cell_areas(*WHOLE[name]), expected, rtol=1e-9)
    # ... whichever way round the corners go, and whatever the longitudes are counted from.
    lat, lon = WHOLE[name]
    np.testing.assert_allclose(cell_areas(lat[:, ::-1], lon[:, ::-1] + 720.0), expected, rtol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), grids())
def test_a_cubed_sphere_turned_anyhow_fills_any_grid(seed: int, n: int, grid: Grid) -> None:
    corners = cubed_sphere(n, seed)
    found = overlaps(*corners, grid)
    assert found.cell_areas.sum() == pytest.approx(4 * np.pi, rel=1e-12)
    per_box = np.bincount(found.boxes, found.areas, minlength=grid.cell_area.size)
    sphere = grid.cell_area.ravel() / EARTH_RADIUS_M**2
    np.testing.assert_allclose(per_box, sphere, rtol=1e-10, atol=1e-13)


@settings(max_examples=30)
@given(grids(), grids())
def test_boxes_have_the_weights_of_the_exact_overlaps_per_axis(a: Grid, b: Grid) -> None:
    if np.diff(a.lon_edges).max() >= 179.0:
        return
    mesh = mesh_of(boxes(a.lat_edges, a.lon_edges), parallels=True)
    values = np.random.default_rng(1).random((2, *a.shape))
    values[values < 0.2] = np.nan
    flat, covered = masked_mean(conservative_weights(mesh, b), values.reshape(2, 1, -1))
    expected, part = masked_mean(conservative_weights(a, b), values)
    np.testing.assert_allclose(covered, part, atol=1e-8)
    np.testing.assert_allclose(flat[part > 1e-8], expected[part > 1e-8], rtol=1e-8)
    np.testing.assert_allclose(mesh.cell_area.ravel(), a.cell_area.ravel(), rtol=1e-11)


def test_the_weights_of_boxes_of_real_grids_are_the_same_to_1e_12() -> None:
    a, b = pole_centred(24, 36), standard_grid("2deg")
    mesh = mesh_of(boxes(a.lat_edges, a.lon_edges), parallels=True)
    weights = conservative_weights(mesh, b)
    separable = conservative_weights(a, b)
    dense = np.kron(separable.lat.dense(), separable.lon.dense())
    got = np.zeros_like(dense)
    rows = np.repeat(np.arange(len(weights.indptr) - 1), np.diff(weights.indptr))
    got[rows, weights.indices] = weights.values
    np.testing.assert_allclose(got, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WHOLE)
def test_integrals_and_constants_are_kept_with_any_gaps_and_land(name: str) -> None:
    mesh = mesh_of(WHOLE[name])
    rng = np.random.default_rng(2)
    values = 10.0 * rng.random((3, *mesh.shape))
    values[rng.random(values.shape) < 0.33] = np.nan
    land = rng.random(mesh.shape)
    weights = conservative_weights(mesh, ONE)
    out, covered = masked_mean(weights, values, land)
    before = np.nansum(values * land * mesh.cell_area, axis=(1, 2))
    np.testing.assert_allclose(np.nansum(out * covered * ONE.cell_area, axis=(1, 2)), before, 1e-10)
    assert np.nanmin(out) >= np.nanmin(values) - 1e-12
    assert np.nanmax(out) <= np.nanmax(values) + 1e-12
    constant, covered = masked_mean(weights, np.where(np.isnan(values), np.nan, 7.5), land)
    np.testing.assert_allclose(constant[covered > 0], 7.5, rtol=1e-13)
    np.testing.assert_allclose(covered_fraction(weights, np.ones(mesh.shape)), 1.0, rtol=2e-9)


def test_a_part_of_the_sphere_onto_a_part_of_the_sphere() -> None:
    # A target that stops at 60 S and 40 E: what lies beyond is nowhere, not at its border.
    grid = Grid("part", np.linspace(-60, 90, 31), np.linspace(-20.0, 40.0, 13))
    found = overlaps(*cubed_sphere(7, seed=1), grid)
    per_box = np.bincount(found.boxes, found.areas, minlength=grid.cell_area.size)
    np.testing.assert_allclose(per_box, grid.cell_area.ravel() / EARTH_RADIUS_M**2, rtol=1e-10)


def test_the_octant_of_the_sphere_by_hand() -> None:
    # Corners (0 N, 0 E), (0 N, 90 E) and the pole: an eighth of the sphere. The half of it south
    # of asin(1/2) = 30 N has half of its area, in each of three columns of 30 degrees a third.
    lat, lon = np.array([[0.0, 0.0, 90.0]]), np.array([[0.0, 90.0, 33.0]])
    grid = Grid("rows", np.array([-90.0, 0.0, 30.0, 90.0]), np.linspace(0.0, 360.0, 13))
    found = overlaps(lat, lon, grid)
    assert found.cell_areas[0] == pytest.approx(np.pi / 2, rel=1e-14)
    kept = found.areas > 1e-12
    assert sorted(found.boxes[kept]) == [12, 13, 14, 24, 25, 26]
    np.testing.assert_allclose(found.areas[kept], np.pi / 12, rtol=1e-13)


def test_a_great_circle_bulges_over_its_parallel_by_hand() -> None:
    # From 45 N 0 E to 45 N 90 E the great circle rises to atan(sqrt 2) = 54.7 N at 45 E. With the
    # pole the edge makes a triangle of area 2 atan(t^2 sin 90 / (1 + t^2 cos 90)), t = tan 22.5.
    lat, lon = np.array([[45.0, 45.0, 90.0]]), np.array([[0.0, 90.0, 0.0]])
    peak = np.rad2deg(np.arctan(np.sqrt(2.0)))
    grid = Grid("rows", np.array([-90.0, 45.0, peak, 90.0]), np.array([0.0, 45.0, 90.0, 360.0]))
    found = overlaps(lat, lon, grid)
    triangle = 2.0 * np.arctan(np.tan(np.pi / 8) ** 2)
    cap = (1.0 - np.sqrt(2.0 / 3.0)) * np.pi / 2
    parts = dict(zip(found.boxes.tolist(), found.areas.tolist(), strict=True))
    assert parts[6] == pytest.approx(cap / 2, rel=1e-13)
    assert parts[7] == pytest.approx(cap / 2, rel=1e-13)
    assert parts[3] == pytest.approx((triangle - cap) / 2, rel=1e-12)
    assert parts[4] == pytest.approx((triangle - cap) / 2, rel=1e-12)


def test_a_cell_round_the_pole_and_one_across_the_date_line() -> None:
    lat = np.array([[80.0, 80.0, 80.0, 80.0], [-5.0, -5.0, 5.0, 5.0]])
    lon = np.array([[10.0, 100.0, 190.0, 280.0], [175.0, -175.0, -175.0, 175.0]])
    grid = Grid("4x2", np.array([-90.0, 0.0, 90.0]), np.linspace(-180.0, 180.0, 5))
    found = overlaps(lat, lon, grid)
    np.testing.assert_allclose(found.areas[found.cells == 0], found.cell_areas[0] / 4, rtol=1e-13)
    assert found.boxes[found.cells == 0].tolist() == [4, 5, 6, 7]
    line = found.areas[found.cells == 1]
    np.testing.assert_allclose(line, found.cell_areas[1] / 4, rtol=1e-12)
    assert sorted(found.boxes[found.cells == 1]) == [0, 3, 4, 7]


def test_cells_that_cross_themselves_or_lie_over_each_other_are_refused() -> None:
    bow = mesh_of((np.array([[0.0, 10.0, 0.0, 11.0]]), np.array([[0.0, 10.0, 10.0, 0.0]])))
    with pytest.raises(DataError, match="1 cells whose edges cross; the first is cell 1"):
        conservative_weights(bow, ONE)
    lat, lon = cubed_sphere(4)
    twice = mesh_of((np.concatenate([lat, lat[:3]]), np.concatenate([lon, lon[:3]])))
    with pytest.raises(DataError, match="lie over each other: 2 of the cell at"):
        conservative_weights(twice, ONE)


def test_digits_of_float32_make_no_slivers() -> None:
    lat, lon = boxes(np.linspace(-90, 90, 181), np.linspace(-180, 180, 361))
    noise = np.random.default_rng(3).uniform(-5e-6, 5e-6, (181, 361))
    shaken = lat + noise[np.round(lat + 90).astype(int), np.round(lon + 180).astype(int) % 360]
    corners = np.clip(np.float32(shaken).astype(float), -90, 90), lon
    corners[0][np.abs(lat) == 90.0] = lat[np.abs(lat) == 90.0]
    rough = mesh_of(corners)
    rough = Mesh(rough.shape, rough.lat_points, rough.lon_points, *corners, precision=2.0**-16)
    weights = conservative_weights(rough, ONE)
    # Great circles leave their parallels by more than that, but only near the poles.
    middle = slice(60 * 360, 120 * 360 + 1)
    assert np.diff(weights.indptr[middle]).mean() < 3.0


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
@pytest.mark.parametrize("name", ["cubed sphere turned", "triangles turned", "rotated pole"])
def test_cdo_says_nearly_the_same(name: str, tmp_path: Path) -> None:
    ds = mesh_file(WHOLE[name], "degrees")
    ds.to_netcdf(tmp_path / "in.nc")
    (tmp_path / "grid.txt").write_text(
        "gridtype = lonlat\nxsize = 180\nysize = 90\n"
        "xfirst = -179\nxinc = 2\nyfirst = -89\nyinc = 2\n"
    )
    command = ["cdo", "-s", "-b", "F64", "remapcon,grid.txt", "in.nc", "out.nc"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    with xr.open_dataset(tmp_path / "out.nc", decode_times=False) as result:
        witness = result["gpp"].values
    two = standard_grid("2deg")
    out = regrid_dataset(ds, grid=two)["gpp"].values
    assert np.isnan(witness).sum() == np.isnan(out).sum() == 0
    difference = np.abs(out - witness).max(axis=(0, 2))
    np.testing.assert_allclose(difference, 0.0, atol=1e-9)


# --- files ------------------------------------------------------------------------------------


def drift(ds: xr.Dataset, out: xr.Dataset) -> float:
    """Relative difference of the integrals of ``gpp``, with areas of triangles before."""
    area = by_triangles((ds["lat_vertices"].values, ds["lon_vertices"].values))
    before = (ds["gpp"].values.reshape(2, -1) * area * EARTH_RADIUS_M**2).sum(axis=1)
    after = (out["gpp"] * out["valid_fraction"] * out["areacella"]).sum(("lat", "lon")).values
    return float(np.abs(after / before - 1.0).max())


def test_lists_of_cells_with_corners_are_regridded_with_their_integral() -> None:
    ds = mesh_file(WHOLE["cubed sphere turned"])
    out = regrid_dataset(ds, grid=ONE)
    assert out["gpp"].dims == ("time", "lat", "lon")
    assert drift(ds, out) < 1e-11
    assert set(out.data_vars) == {"gpp", "valid_fraction"}


def test_curvilinear_grids_and_radians_give_the_same() -> None:
    plain = regrid_dataset(mesh_file(WHOLE["rotated pole"]), grid=ONE)
    matrix = regrid_dataset(mesh_file(WHOLE["rotated pole"], shape=(60, 120)), grid=ONE)
    radian = regrid_dataset(mesh_file(WHOLE["rotated pole"], "radian"), grid=ONE)
    np.testing.assert_array_equal(matrix["gpp"], plain["gpp"])
    np.testing.assert_allclose(radian["gpp"], plain["gpp"], rtol=1e-9)
    assert source_of(mesh_file(WHOLE["rotated pole"]), "x").edge_model == "great-circles"


def test_only_cells_between_two_parallels_have_edges_along_them() -> None:
    grid = standard_grid("2deg")
    assert source_of(mesh_file(boxes(grid.lat_edges, grid.lon_edges)), "x").edge_model == (
        "parallels"
    )
    # All edges of this cube join corners of one latitude or one longitude; great circles they are.
    cube = mesh_file(WHOLE["cube"])
    assert source_of(cube, "x").edge_model == "great-circles"
    cube["gpp"][:] = np.arange(6.0)
    out = regrid_dataset(cube, grid=ONE)["gpp"]
    assert float(out.sel(lat=43.5, lon=0.5).mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(out.sel(lat=45.5, lon=0.5).mean()) == pytest.approx(4.0, abs=1e-12)


def ugrid(corners: Corners) -> xr.Dataset:
    keys = np.round(np.stack([corners[0].ravel(), np.mod(corners[1].ravel(), 360)], 1), 9)
    nodes, index = np.unique(keys, axis=0, return_inverse=True)
    ds = mesh_file(corners).drop_vars(["lat", "lon", "lat_vertices", "lon_vertices"])
    ds["gpp"].attrs.pop("coordinates")
    table = index.reshape(corners[0].shape) + 1.0
    table[:, 1:][table[:, 1:] == table[:, :-1]] = np.nan
    attributes = {
        "cf_role": "mesh_topology",
        "topology_dimension": 2,
        "node_coordinates": "node_lon node_lat",
        "face_node_connectivity": "face_nodes",
    }
    ds["mesh2d"] = ((), 0, attributes)
    ds["face_nodes"] = (("cell", "nv"), table, {"start_index": 1})
    ds["node_lat"] = ("node", nodes[:, 0], {"standard_name": "latitude", "units": "degrees_north"})
    ds["node_lon"] = ("node", nodes[:, 1], {"standard_name": "longitude", "units": "degrees_east"})
    ds["on_nodes"] = (("time", "node"), np.ones((2, len(nodes))))
    return ds


def mpas(corners: Corners) -> xr.Dataset:
    keys = np.round(np.stack([corners[0].ravel(), np.mod(corners[1].ravel(), 360)], 1), 9)
    nodes, index = np.unique(keys, axis=0, return_inverse=True)
    table = index.reshape(corners[0].shape) + 1
    number = 1 + (table[:, 1:] != table[:, :-1]).sum(axis=1)
    table = np.where(np.arange(table.shape[1]) < number[:, None], table, 0)
    points = mesh_of(corners)
    values = mesh_file(corners)["gpp"].values
    return xr.Dataset(
        {
            "gpp": (("Time", "nCells"), values, {"units": "kg m-2 s-1"}),
            "latCell": ("nCells", np.deg2rad(points.lat_points)),
            "lonCell": ("nCells", np.deg2rad(points.lon_points)),
            "latVertex": ("nVertices", np.deg2rad(nodes[:, 0])),
            "lonVertex": ("nVertices", np.deg2rad(nodes[:, 1])),
            "verticesOnCell": (("nCells", "maxEdges"), table.astype(np.int32)),
            "nEdgesOnCell": ("nCells", number.astype(np.int32)),
        }
    )


@pytest.mark.parametrize("made", [ugrid, mpas])
def test_meshes_of_nodes_give_what_their_corners_give(made) -> None:
    corners = WHOLE["hexagons turned"]
    expected = regrid_dataset(mesh_file(corners), grid=ONE)
    ds = made(corners)
    out = regrid_dataset(ds, grid=ONE)
    np.testing.assert_allclose(out["gpp"], expected["gpp"], rtol=1e-6)
    assert set(out.data_vars) == {"gpp", "valid_fraction"}


def test_corners_padded_with_missing_values_are_those_padded_with_repeats() -> None:
    ds = mesh_file(WHOLE["hexagons"])
    expected = regrid_dataset(ds, grid=ONE)
    around = [ds[f"{name}_vertices"] for name in ("lat", "lon")]
    again = (around[0] == around[0].shift(nv=1)) & (around[1] == around[1].shift(nv=1))
    for name, corners in zip(("lat", "lon"), around, strict=True):
        ds[f"{name}_padded"] = corners.where(~again)
        ds[name].attrs["bounds"] = f"{name}_padded"
    assert int(again.sum()) == 12
    ds = ds.drop_vars(["lat_vertices", "lon_vertices"])
    np.testing.assert_allclose(regrid_dataset(ds, grid=ONE)["gpp"], expected["gpp"], rtol=1e-12)


@pytest.mark.parametrize("row", [False, True], ids=["list", "one row"])
def test_land_points_on_a_regular_grid_are_its_cells(row: bool) -> None:
    lat, lon = np.meshgrid(ONE.lat, ONE.lon, indexing="ij")
    values = np.random.default_rng(4).random((2, *ONE.shape))
    land = (np.random.default_rng(5).random(ONE.shape) < 0.3) & (np.abs(lat) < 84)
    dims = ("y", "x") if row else ("land",)
    kept = (lambda v: v[..., land][..., None, :]) if row else (lambda v: v[..., land])
    ds = xr.Dataset(
        {
            "gpp": (("time", *dims), kept(values)),
            "latitude": (dims, kept(np.float32(lat)), {"units": "degrees_north"}),
            "longitude": (dims, kept(np.float32(lon)), {"units": "degrees_east"}),
        }
    )
    two = standard_grid("2deg")
    out = regrid_dataset(ds, grid=two)
    full = ONE_as_file(np.where(land, values, np.nan))
    expected = regrid_dataset(full, grid=two)
    np.testing.assert_allclose(out["gpp"], expected["gpp"], rtol=1e-6)
    np.testing.assert_allclose(out["valid_fraction"], expected["valid_fraction"], atol=1e-6)
    assert source_of(ds, "x").edge_model == "regular-spacing"


def ONE_as_file(values: np.ndarray) -> xr.Dataset:  # noqa: N802
    coords = {
        "lat": ("lat", ONE.lat, {"units": "degrees_north"}),
        "lon": ("lon", ONE.lon, {"units": "degrees_east"}),
    }
    return xr.Dataset({"gpp": (("time", "lat", "lon"), values)}, coords=coords)


def without_corners(shape: tuple[int, ...] | None = None) -> xr.Dataset:
    ds = mesh_file(WHOLE["rotated pole"], shape=shape)
    ds = ds.drop_vars(["lat_vertices", "lon_vertices"])
    for name in ("lat", "lon"):
        del ds[name].attrs["bounds"]
    return ds


def in_unknown_units() -> xr.Dataset:
    ds = mesh_file(WHOLE["triangles"], "radian")
    for name in ("lat", "lon"):
        del ds[name].attrs["units"]
    return ds


def with_corners_of_others() -> xr.Dataset:
    ds = mesh_file(WHOLE["triangles"])
    for name in ("lat_vertices", "lon_vertices"):
        ds[name] = ds[name].roll(cell=7)
    return ds


def with_few_corners() -> xr.Dataset:
    ds = mesh_file(WHOLE["triangles"])
    ds["lat_vertices"] = (
        ds["lat_vertices"].where(ds["cell"] != 3)
        if "cell" in ds.coords
        else (ds["lat_vertices"].where(np.arange(ds.sizes["cell"])[:, None] != 3))
    )
    return ds


REFUSED = {
    "points": (without_corners(), "on no regular grid, without the corners.*--weights"),
    "curvilinear": (without_corners((60, 120)), "a curvilinear grid without the corners"),
    "units": (in_unknown_units(), r"lat\.units: found units ''.*degrees or radians, by name"),
    "others": (with_corners_of_others(), "a point outside its corners in .* cells; the first is"),
    "few": (with_few_corners(), "1 cells with fewer than 3 corners .the first is cell 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_mesh_is_refused_with_its_reason(case: str) -> None:
    ds, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        regrid_dataset(ds, grid=ONE)


def test_files_of_cells_become_a_store_with_the_integral_kept(tmp_path: Path) -> None:
    ds = mesh_file(WHOLE["cubed sphere ne30"])
    ds["gpp"] = ds["gpp"].where(ds["lat"] > -60).astype("float32")
    ds.to_netcdf(tmp_path / "in.nc")
    report = regrid_files([tmp_path / "in.nc"], grid=ONE, out=tmp_path / "out.zarr")
    assert report["weights"]["edge_model"] == "great-circles"
    assert report["conservation"][""]["gpp"]["max_relative_drift"] < 1e-6
    with xr.open_zarr(tmp_path / "out.zarr", decode_times=False) as out:
        assert out["gpp"].dims == ("time", "lat", "lon")
        assert float(out["valid_fraction"].min()) == 0.0
        assert bool(np.isnan(out["gpp"].sel(lat=-70, method="nearest")).all())
        assert not {"lat_vertices", "nv"} & {*out.variables, *out.dims}


def test_weights_of_cells_are_bound_to_their_mesh() -> None:
    mesh, other = mesh_of(cubed_sphere(4)), mesh_of(cubed_sphere(4, seed=1))
    weights = conservative_weights(mesh, ONE)
    assert isinstance(weights, CellWeights)
    weights.check(mesh, ONE)
    with pytest.raises(DataError, match="weights: source grid: found edges"):
        weights.check(other, ONE)


def rotated_axes() -> xr.Dataset:
    rlat, rlon = np.linspace(18.0, -18.0, 37), np.linspace(-24.0, 24.0, 49)
    values = 1.0 + np.random.default_rng(6).random((2, 3, 37, 49))
    pole = {
        "grid_mapping_name": "rotated_latitude_longitude",
        "grid_north_pole_latitude": 39.25,
        "grid_north_pole_longitude": -162.0,
    }
    time = ("time", [15.0, 45.0], {"units": "days since 2000-01-01"})
    return xr.Dataset(
        {
            "mrsol": (("time", "soil", "rlat", "rlon"), values, {"grid_mapping": "crs"}),
            "crs": ((), 0, pole),
        },
        coords={
            "time": time,
            "rlat": ("rlat", rlat, {"standard_name": "grid_latitude", "units": "degrees"}),
            "rlon": ("rlon", rlon, {"standard_name": "grid_longitude", "units": "degrees"}),
        },
    )


def test_axes_round_another_pole_are_turned_back(tmp_path: Path) -> None:
    ds = rotated_axes()
    source = source_of(ds, "x")
    # CORDEX Europe: the middle of the rotated grid is at 50.75 N, 18 E, its first row the north.
    middle = 18 * 49 + 24
    assert source.grid.lat_points[middle] == pytest.approx(50.75, abs=1e-9)
    assert source.grid.lon_points[middle] % 360 == pytest.approx(18.0, abs=1e-9)
    assert source.grid.lat_points[24] == pytest.approx(68.75, abs=1e-9)
    # The whole region, but that great circles bow a little beyond its parallels.
    region = np.deg2rad(49.0) * 2.0 * np.sin(np.deg2rad(18.5)) * EARTH_RADIUS_M**2
    assert source.grid.cell_area.sum() == pytest.approx(region, rel=1e-4)
    ds.to_netcdf(tmp_path / "in.nc")
    report = regrid_files([tmp_path / "in.nc"], grid=ONE, out=tmp_path / "out.zarr")
    assert report["conservation"][""]["mrsol"]["max_relative_drift"] < 1e-11
    with xr.open_zarr(tmp_path / "out.zarr", decode_times=False) as out:
        assert out["mrsol"].dims == ("time", "soil", "lat", "lon")
        assert out["soil"].values.tolist() == [0, 1, 2]
        value = out["mrsol"].sel(lat=50.5, lon=18.5)
        assert bool(((value > 1.0) & (value < 2.0)).all())


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
def test_cdo_turns_the_pole_back_to_the_same_places(tmp_path: Path) -> None:
    rotated_axes().to_netcdf(tmp_path / "in.nc")
    command = ["cdo", "-s", "-f", "nc4", "setgridtype,curvilinear", "in.nc", "out.nc"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    ours = source_of(rotated_axes(), "x").grid
    with xr.open_dataset(tmp_path / "out.nc", decode_times=False) as ds:
        theirs = source_of(ds.load(), "x").grid
    np.testing.assert_allclose(theirs.lat_points, ours.lat_points, atol=1e-5)
    np.testing.assert_allclose(
        theirs.lon_points, np.mod(ours.lon_points + 180, 360) - 180, atol=1e-4
    )
    np.testing.assert_allclose(theirs.cell_area, ours.cell_area, rtol=1e-3)


@pytest.mark.parametrize("order", [1, -1], ids=["south first", "north first"])
def test_matrices_that_repeat_the_axes_are_rectilinear_with_their_corners(order: int) -> None:
    grid = pole_centred(24, 36)
    lat, lon = boxes(grid.lat_edges, grid.lon_edges)
    values = np.random.default_rng(7).random((2, *grid.shape))
    points = np.meshgrid(grid.lat, grid.lon, indexing="ij")
    ds = xr.Dataset({"gpp": (("time", "y", "x"), values)})
    for name, units, where, around in (
        ("lat", "degrees_north", points[0], lat),
        ("lon", "degrees_east", points[1], lon),
    ):
        ds[name] = (("y", "x"), where, {"units": units, "bounds": f"{name}_bnds"})
        ds[f"{name}_bnds"] = (("y", "x", "nv4"), around.reshape(*grid.shape, 4))
    ds = ds.isel(y=slice(None, None, order))
    assert isinstance(source_of(ds, "x").grid, Grid)
    out = regrid_dataset(ds, grid=ONE)
    assert set(out.data_vars) == {"gpp", "valid_fraction"}
    expected, _ = masked_mean(conservative_weights(grid, ONE), values)
    np.testing.assert_allclose(out["gpp"], expected, rtol=1e-12)


def test_land_fractions_and_fractions_of_their_own_weigh_the_cells_of_a_mesh() -> None:
    ds = mesh_file(WHOLE["hexagons turned"], gaps=True)
    cells = ds.sizes["cell"]
    rng = np.random.default_rng(8)
    land, part = rng.random(cells), rng.random((2, cells))
    ds["sftlf"] = ("cell", 100.0 * land, {"units": "%", "standard_name": "land_area_fraction"})
    ds["gpp"].attrs["cell_methods"] = "area: mean where land time: mean"
    ds["ra"] = ds["gpp"] * 0.5
    ds["ra"].attrs = {"units": "kg m-2 s-1"}
    ds["valid_fraction_ra"] = (("time", "cell"), part, {"units": "1"})
    out = regrid_dataset(ds, grid=ONE)
    area = by_triangles((ds["lat_vertices"].values, ds["lon_vertices"].values)) * EARTH_RADIUS_M**2
    for name, weight in (("gpp", land), ("ra", part)):
        own = f"valid_fraction_{name}"
        fraction = out[own if own in out else "valid_fraction"]
        after = (out[name] * fraction * out["areacella"]).sum(("lat", "lon"))
        before = np.nansum(ds[name].values * weight * area, axis=1)
        np.testing.assert_allclose(after, before, rtol=1e-11)
    carried = float((out["sftlf"] * out["areacella"]).sum()) / 100.0
    assert carried == pytest.approx(float((land * area).sum()), rel=1e-11)


def test_files_of_one_mesh_are_joined_and_of_two_refused(tmp_path: Path) -> None:
    ds = mesh_file(WHOLE["triangles turned"], gaps=True)
    later = ds.assign_coords(time=("time", [74.0, 105.0], ds["time"].attrs))
    ds.to_netcdf(tmp_path / "a.nc")
    later.to_netcdf(tmp_path / "b.nc")
    regrid_files([tmp_path / "b.nc", tmp_path / "a.nc"], grid=ONE, out=tmp_path / "out.zarr")
    with xr.open_zarr(tmp_path / "out.zarr", decode_times=False) as out:
        assert out.sizes["time"] == 4
        expected = regrid_dataset(ds, grid=ONE)
        np.testing.assert_allclose(out["gpp"][:2], expected["gpp"], rtol=1e-12)
        np.testing.assert_allclose(out["gpp"][2:], expected["gpp"], rtol=1e-12)
    mesh_file(WHOLE["triangles"]).to_netcdf(tmp_path / "other.nc")
    paths = [tmp_path / "a.nc", tmp_path / "other.nc"]
    with pytest.raises(DataError, match="one grid for all files"):
        regrid_files(paths, grid=ONE, out=tmp_path / "no.zarr")


@pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")
@pytest.mark.parametrize("name", ["cubed sphere ne30", "hexagons turned", "cube"])
def test_cdo_leaves_out_the_same_cells_when_values_are_missing(name: str, tmp_path: Path) -> None:
    ds = mesh_file(WHOLE[name], gaps=True)
    ds.to_netcdf(tmp_path / "in.nc")
    command = ["cdo", "-s", "-b", "F64", "remapcon,global_1", "in.nc", "out.nc"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    with xr.open_dataset(tmp_path / "out.nc", decode_times=False) as result:
        witness = result["gpp"].values
    out = regrid_dataset(ds, grid=ONE)["gpp"].values
    both = ~np.isnan(out) & ~np.isnan(witness)
    assert np.mean(np.isnan(out) != np.isnan(witness)) < 1e-4
    assert np.quantile(np.abs(out - witness)[both], 0.9999) < 1e-8
