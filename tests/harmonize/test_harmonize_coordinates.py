"""Coordinates as groups write them: what is mended, on what evidence, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from native_files import LAT, LON, field, write_native

from callmip_global.errors import DataError
from callmip_global.grid import EARTH_RADIUS_M, SourceGrid, standard_grid
from callmip_global.harmonize.coordinates import aligned, read_grid
from callmip_global.harmonize.native import Inventory, NativeFile, build_timeline, open_native, scan
from callmip_global.harmonize.rules import RULES

CARBON = {"units": "kg m-2 s-1"}
SPHERE = 4.0 * np.pi * EARTH_RADIUS_M**2
TEMPLATE = Path("shared/data/CLASSIC.v2_Phase1b_Scen1_DK-Sor_Cal_Prior.nc")


def maps(
    lat: Any,
    lon: Any,
    names: tuple[str, str] = ("lat", "lon"),
    units: tuple[str, str] = ("degrees_north", "degrees_east"),
) -> xr.Dataset:
    lat, lon = np.asarray(lat), np.asarray(lon)
    return xr.Dataset(
        {"gpp": (names, np.zeros((lat.size, lon.size)))},
        coords={
            name: (name, values, {"units": unit} if unit else {})
            for name, values, unit in zip(names, (lat, lon), units, strict=True)
        },
    )


def grid_of(ds: xr.Dataset) -> tuple[SourceGrid, dict[str, str]]:
    source, notes = read_grid(ds, "model.nc")
    assert {rule for rule, _ in notes} <= set(RULES)
    return source, dict(notes)


def refusal(ds: xr.Dataset) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        read_grid(ds, "model.nc")
    (problem,) = caught.value.problems
    assert RULES[problem.rule].kind == "refuse"
    return problem.rule, str(problem)


def centres(step: float) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(-90 + step / 2, 90, step), np.arange(-180 + step / 2, 180, step)


# --- rectilinear grids ---------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.sampled_from([(360, 720), (180, 360), (192, 288), (90, 144), (45, 72)]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["regular", "pole-centred", "gaussian"]),
)
def test_every_global_grid_has_the_area_of_the_sphere_however_it_runs(
    shape: tuple[int, int], south_first: bool, from_greenwich: bool, kind: str
) -> None:
    nlat, nlon = shape
    lat = {
        "regular": lambda: -90 + 180 / nlat * (np.arange(nlat) + 0.5),
        "pole-centred": lambda: np.linspace(-90, 90, nlat),
        "gaussian": lambda: np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(nlat)[0])),
    }[kind]()
    lon = (0.0 if from_greenwich else -180.0) + 360 / nlon * (np.arange(nlon) + 0.5)
    lat = (lat if south_first else lat[::-1]).astype(np.float32)
    source, notes = grid_of(maps(lat, lon.astype(np.float32)))
    assert source.grid.is_global
    np.testing.assert_allclose(source.grid.cell_area.sum(), SPHERE, rtol=1e-9)
    assert ("grid-edges" in notes) == (kind != "regular")
    assert "grid-truncated" not in notes


def test_the_grid_of_clm_in_single_precision_is_the_one_in_double_precision() -> None:
    lat, lon = np.linspace(-90, 90, 192), 1.25 * np.arange(288)
    exact, quiet = grid_of(maps(lat, lon))
    rounded, notes = grid_of(maps(lat.astype(np.float32), lon.astype(np.float32)))
    assert rounded.grid == exact.grid
    assert "coordinate-jitter" not in quiet
    assert "e-06 degrees off" in notes["coordinate-jitter"]
    assert "pole" in notes["grid-edges"]


def test_half_degree_cells_from_north_to_south_and_from_0_to_360_are_the_standard_grid() -> None:
    lat, lon = centres(0.5)
    source, notes = grid_of(maps(lat[::-1], lon + 180.0))
    assert source.lat_descending
    np.testing.assert_array_equal(source.grid.lat, standard_grid("0.5deg").lat)
    assert list(notes) == ["longitude-order"]
    west, quiet = grid_of(maps(lat, lon))
    assert west.grid == standard_grid("0.5deg")
    assert quiet == {}


def test_coordinates_that_miss_a_grid_by_rounding_are_the_same_grid() -> None:
    lat, lon = centres(12.0)
    rng = np.random.default_rng(3)
    exact, _ = grid_of(maps(lat, lon))
    for _ in range(20):
        off = [rng.uniform(-5e-5, 5e-5, axis.size).astype(np.float32) for axis in (lat, lon)]
        found, notes = grid_of(maps(lat + off[0], lon + off[1]))
        assert found.grid == exact.grid
        assert "coordinate-jitter" in notes


@pytest.mark.parametrize(
    "names",
    [("latitude", "longitude"), ("lat_FULL", "lon_FULL"), ("nav_lat", "nav_lon"),
     ("lsmlat", "lsmlon"), ("y", "x")],
)  # fmt: skip
def test_coordinates_of_other_names_are_found_and_renamed(names: tuple[str, str]) -> None:
    source, notes = grid_of(maps(*centres(10.0), names))
    assert (source.lat_name, source.lon_name) == names
    assert notes == {"coordinate-names": f"{names[0]} and {names[1]} renamed"}


def test_y_and_x_count_by_their_attributes_though_their_dimensions_have_other_names() -> None:
    lat, lon = centres(10.0)
    ds = xr.Dataset(
        {"gpp": (("row", "column"), np.zeros((18, 36)))},
        coords={
            "y": ("row", lat, {"standard_name": "latitude", "units": "degrees_north"}),
            "x": ("column", lon, {"standard_name": "longitude", "units": "degrees_east"}),
        },
    )
    source, notes = grid_of(ds)
    assert source.grid.shape == (18, 36)
    assert notes["coordinate-names"] == "y(row) and x(column) renamed"


@pytest.mark.parametrize("units", ["degree north (-90->90)", "", "deg"])
def test_units_in_other_words_are_taken_as_degrees_and_recorded(units: str) -> None:
    ds = maps(*centres(10.0), units=(units, units.replace("north", "east")))
    source, notes = grid_of(ds)
    assert source.grid.is_global
    assert "taken as degrees" in notes["coordinate-units"]


def test_rows_that_stop_at_60_south_leave_the_rest_missing_and_say_so() -> None:
    lat, lon = centres(1.0)
    source, notes = grid_of(maps(lat[30:], lon))
    assert source.grid.shape == (150, 360)
    assert source.grid.lat_edges[0] == -60.0
    assert "rows from -60 to 90" in notes["grid-truncated"]
    assert "missing" in notes["grid-truncated"]


def test_gaussian_rows_have_the_areas_of_their_weights() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(96)
    source, notes = grid_of(maps(np.rad2deg(np.arcsin(nodes)), 1.875 * np.arange(192)))
    rows = source.grid.cell_area.sum(axis=1)
    np.testing.assert_allclose(rows, SPHERE * weights / 2, rtol=1e-9)
    assert "96 Gaussian rows" in notes["grid-edges"]


def test_irregular_longitudes_and_two_latitudes_that_differ_are_refused() -> None:
    lat, lon = centres(10.0)
    lon[20] += 2.0
    rule, message = refusal(maps(lat, lon))
    assert rule == "grid"
    assert "lon" in message
    ds = maps(*centres(10.0))
    ds["latitude"] = ("lat", ds["lat"].values + 5.0, {"standard_name": "latitude"})
    rule, message = refusal(ds)
    assert rule == "grid"
    assert "two coordinates that differ, lat and latitude" in message


# --- lists of land points ------------------------------------------------------------------------


def land_vector(land: np.ndarray, lat: np.ndarray, lon: np.ndarray, *, index: bool) -> xr.Dataset:
    rows, columns = np.nonzero(land)
    values = np.arange(rows.size, dtype=np.float64)
    ds = xr.Dataset({"gpp": (("time", "land"), np.stack([values, values + 0.5]))})
    if index:
        cells = rows * lon.size + columns
        return ds.assign_coords(
            land=("land", cells, {"compress": "lat lon"}),
            lat=("lat", lat, {"units": "degrees_north"}),
            lon=("lon", lon, {"units": "degrees_east"}),
        )
    ds["latitude"] = ("land", lat[rows], {"units": "degrees_north"})
    ds["longitude"] = ("land", lon[columns], {"units": "degrees_east"})
    return ds


def continents(nlat: int, nlon: int) -> np.ndarray:
    """Two blocks of land, one of them up to the date line, and a strip that goes round."""
    land = np.zeros((nlat, nlon), dtype=bool)
    land[nlat // 3 : nlat - 1, : nlon // 4] = True
    land[1 : nlat // 2, -nlon // 4 :] = True
    land[nlat // 2] = True
    return land


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("gaussian", [True, False])
def test_a_list_of_land_points_comes_back_as_the_map_it_was_made_of(
    index: bool, gaussian: bool
) -> None:
    lat, lon = centres(5.0)
    if gaussian:
        lat = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(36)[0]))
    land = continents(lat.size, lon.size)
    ds = land_vector(land, lat, lon, index=index)
    source, notes = grid_of(ds)
    got = source.to_grid_order(ds["gpp"]).values
    assert got.shape == (2, lat.size, lon.size)
    # By place, since the grid may begin at another meridian.
    columns = np.argmin(
        np.abs(np.mod(source.grid.lon[None] - lon[:, None] + 180.0, 360.0) - 180.0), axis=1
    )
    want = np.full(land.shape, np.nan)
    want[land] = np.arange(land.sum())
    np.testing.assert_array_equal(got[0][:, columns], want)
    np.testing.assert_array_equal(got[1][:, columns], want + 0.5)
    told = "index" if index else "latitudes and longitudes"
    assert f"{land.sum()} points along land" in notes["land-vector"]
    assert told in notes["land-vector"]


def test_points_on_no_grid_or_without_places_are_refused() -> None:
    rng = np.random.default_rng(1)
    ds = land_vector(continents(36, 72), *centres(5.0), index=False)
    ds["latitude"] = ("land", rng.uniform(-60, 80, ds.sizes["land"]), {"units": "degrees_north"})
    rule, message = refusal(ds)
    assert rule == "land-vector-unclear"
    assert "compress" in message
    rule, _ = refusal(ds.drop_vars(["latitude", "longitude"]))
    assert rule == "grid"
    ds["latitude"] = ("land", np.zeros(ds.sizes["land"]), {"units": "radians"})
    ds["latitude"].attrs["standard_name"] = "latitude"
    assert "'radians', wanted degrees" in refusal(ds)[1]
    twice = land_vector(continents(36, 72), *centres(5.0), index=False)
    for name in ("latitude", "longitude"):
        values = twice[name].values.copy()
        values[1] = values[0]
        twice[name] = ("land", values, twice[name].attrs)
    rule, message = refusal(twice)
    assert rule == "grid"
    assert "two points in one cell" in message


def test_a_packed_land_vector_is_read_from_a_file_as_maps(tmp_path: Path) -> None:
    lat, lon = centres(30.0)
    land = continents(6, 12)
    rows, columns = np.nonzero(land)
    path = tmp_path / "gpp.nc"
    with netCDF4.Dataset(path, "w") as nc:
        nc.createDimension("time", 12)
        nc.createDimension("land", rows.size)
        time = nc.createVariable("time", "f8", ("time",))
        time.setncatts({"units": "days since 2001-01-01", "calendar": "noleap"})
        time[:] = np.arange(12) * 30.4 + 15
        for name, values, units in (
            ("lat", lat[rows], "degrees_north"),
            ("lon", lon[columns], "degrees_east"),
        ):
            axis = nc.createVariable(name, "f8", ("land",))
            axis.units = units
            axis[:] = values
        gpp = nc.createVariable("gpp", "i2", ("time", "land"), fill_value=-1)
        gpp.setncatts({"units": "kg m-2 s-1", "scale_factor": 0.5})
        gpp.set_auto_maskandscale(False)
        gpp[:] = np.arange(rows.size)[None] + np.zeros((12, 1), dtype="i2")
        gpp[3, 0] = -1
    file = scan(path)
    values = build_timeline("gpp", [file], (2001, 2001), "map").read(slice(0, 12), {})
    want = np.full(land.shape, np.nan)
    want[land] = 0.5 * np.arange(rows.size)
    np.testing.assert_array_equal(values[0], want)
    assert np.isnan(values[3][land][0])
    assert "land-vector" in dict(file.notes_of("gpp"))


# --- files ---------------------------------------------------------------------------------------


def test_the_order_of_dimensions_is_turned_and_recorded_for_the_variable(tmp_path: Path) -> None:
    values = field(0, 20)
    path = tmp_path / "turned.nc"
    straight = write_native(tmp_path / "a.nc", {"GPP": (values, CARBON)})
    with netCDF4.Dataset(straight) as old, netCDF4.Dataset(path, "w") as nc:
        for name, dimension in old.dimensions.items():
            nc.createDimension(name, len(dimension))
        for name, var in old.variables.items():
            dims = ("lon", "lat", "time") if name == "GPP" else var.dimensions
            out = nc.createVariable(name, "f8", dims)
            out.setncatts({k: var.getncattr(k) for k in var.ncattrs() if k != "_FillValue"})
            out[:] = var[:].filled(np.nan).T if name == "GPP" else var[:]
    file = scan(path)
    assert dict(file.notes_of("GPP"))["dimension-order"] == (
        "(lon, lat, time) turned to (time, lat, lon)"
    )
    assert "dimension-order" not in dict(file.notes)
    got = build_timeline("GPP", [file], None, "").read(slice(0, 24), {})
    want = build_timeline("GPP", [scan(straight)], None, "").read(slice(0, 24), {})
    np.testing.assert_array_equal(got, want)
    assert "dimension-order" not in dict(scan(straight).notes_of("GPP"))


def test_the_official_template_opens_and_everything_about_it_is_said(project_root: Path) -> None:
    path = project_root.parent / TEMPLATE
    if not path.is_file():
        pytest.skip(f"{path} is not there: the official template comes with the shared folder")
    ds, notes = open_native(path)
    with ds:
        assert {"gpp", "latitude", "longitude", "time"} <= set(ds.variables)
        assert "lat" not in ds.variables
    ((rule, words),) = notes
    assert rule == "file"
    assert "lat = 55.4849 (latitude is 55.49)" in words
    assert "lon = 11.6446 (longitude is 11.64)" in words
    with pytest.raises(DataError) as caught:
        scan(path)
    found = [p.rule for p in caught.value.problems]
    # A site file of daily values: opened, mended, and refused for a global monthly collection,
    # each of its fields by name.
    (file,) = Inventory.of([path]).files
    assert {"gpp", "nep", "cSoil", "ts"} <= set(file.flaws)
    assert found[:2] == ["time-daily", "grid"]
    assert "file" in found
    assert "6574 steps of 1 days" in str(caught.value)


# --- damage and stores ---------------------------------------------------------------------------


def store(path: Path, version: int, *, fill: float | None, chunks: int = 6) -> NativeFile:
    """A Zarr store written by zarr itself, two years of GPP with zeros in it."""
    values = field(1, 20)
    values[:, 0, 0] = 0.0
    group = zarr.open_group(path, mode="w", zarr_format=version)
    days = np.arange(24) * 30.4167 + 15.2
    told = {
        "time": (days, ("time",), {"units": "days since 2001-01-01", "calendar": "noleap"}),
        "lat": (LAT, ("lat",), {"units": "degrees_north"}),
        "lon": (LON, ("lon",), {"units": "degrees_east"}),
        "GPP": (values, ("time", "lat", "lon"), CARBON),
    }
    for name, (data, dims, attributes) in told.items():
        shape = (chunks, 4, 6) if name == "GPP" else data.shape
        more: dict[str, Any] = {"dimension_names": dims} if version == 3 else {}
        if fill is not None and name == "GPP":
            more["fill_value"] = fill
        array = group.create_array(name, shape=data.shape, chunks=shape, dtype="f8", **more)
        array[:] = data
        array.attrs.update(attributes)
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = list(dims)
    return scan(path)


@pytest.mark.parametrize("version", [2, 3])
def test_zeros_of_a_zarr_store_stay_zeros(tmp_path: Path, version: int) -> None:
    file = store(tmp_path / "model.zarr", version, fill=0.0)
    assert file.axis is not None
    assert file.axis.years == (2001, 2002)
    values = build_timeline("GPP", [file], (2001, 2002), "").read(slice(5, 8), {})
    # Row 0 of the file is the northernmost.
    np.testing.assert_array_equal(values[:, -1, 0], 0.0)
    np.testing.assert_array_equal(np.isnan(values[0]), np.isnan(field(1, 20)[5][::-1]))
    assert ("zarr-fill" in dict(file.notes_of("GPP"))) == (version == 2)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("stated", [0.0, -9999.0])
def test_a_missing_value_that_an_attribute_of_a_store_states_is_missing(
    tmp_path: Path, version: int, stated: float
) -> None:
    path = tmp_path / "model.zarr"
    store(path, version, fill=0.0)
    array = zarr.open_group(path, mode="a")["GPP"]
    assert isinstance(array, zarr.Array)
    array[:, 0, 0] = stated
    array.attrs["_FillValue"] = stated
    file = scan(path)
    values = build_timeline("GPP", [file], (2001, 2002), "").read(slice(0, 3), {})
    assert np.isnan(values[:, -1, 0]).all()
    assert np.isfinite(values[:, -1, 1]).all()
    assert "zarr-fill" not in dict(file.notes_of("GPP"))


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_that_xarray_wrote_reads_as_the_file_it_was_made_of(
    tmp_path: Path, version: int
) -> None:
    path = write_native(tmp_path / "a.nc", {"GPP": (field(0, 20), CARBON)})
    with xr.open_dataset(path, decode_times=False) as ds:
        ds.to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=False)
    got, want = scan(tmp_path / "a.zarr"), scan(path)
    assert got.axis == want.axis
    np.testing.assert_array_equal(
        build_timeline("GPP", [got], None, "").read(slice(0, 24), {}),
        build_timeline("GPP", [want], None, "").read(slice(0, 24), {}),
    )


@pytest.mark.parametrize("version", [2, 3])
def test_a_lost_chunk_that_would_read_as_missing_is_refused_by_name(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "model.zarr"
    store(path, version, fill=np.nan)
    chunk = path / "GPP" / ("1.0.0" if version == 2 else "c/1/0/0")
    chunk.unlink()
    file = scan(path)
    with pytest.raises(DataError) as caught:
        build_timeline("GPP", [file], (2001, 2002), "")
    (problem,) = caught.value.problems
    assert problem.rule == "zarr-chunks-lost"
    assert "1 of 4 chunks are not there, the first holds time 7 to 12" in problem.found


def test_a_chunk_without_values_that_was_never_written_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "model.zarr"
    file = store(path, 3, fill=0.0)
    assert "zarr-chunks" not in dict(file.notes_of("GPP"))
    (path / "GPP" / "c" / "1" / "0" / "0").unlink()
    warned = scan(path)
    assert "1 of 4 chunks are not stored" in dict(warned.notes_of("GPP"))["zarr-chunks"]
    for rest in (path / "GPP" / "c").rglob("0"):
        if rest.is_file():
            rest.unlink()
    with pytest.raises(DataError, match="4 of 4 chunks are not there"):
        build_timeline("GPP", [scan(path)], (2001, 2002), "")


def test_a_damaged_chunk_is_named_with_its_months(tmp_path: Path) -> None:
    path = tmp_path / "model.zarr"
    file = store(path, 3, fill=np.nan)
    chunk = path / "GPP" / "c" / "2" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(DataError) as caught:
        build_timeline("GPP", [file], (2001, 2002), "").read(slice(6, 18), {})
    (problem,) = caught.value.problems
    assert problem.rule == "damaged"
    assert problem.key == "GPP"
    assert "in 2002-01 to 2002-06 (steps 13 to 18)" in problem.found


def test_a_folder_that_is_no_store_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match="Zarr store that cannot be opened"):
        scan(tmp_path / "empty.zarr", origin="hand-in/empty.zarr")


# --- files of one run -----------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    step=st.sampled_from([60.0, 30.0, 7.5]),
    shifts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    turned=st.booleans(),
)
def test_files_whose_first_column_differs_are_on_the_grid_of_most(
    step: float, shifts: list[int], turned: bool
) -> None:
    """Law: every cell keeps its value and its place, whatever column each file begins with."""
    lat, lon = np.arange(-90 + step / 2, 90, step), np.arange(-180 + step / 2, 180, step)
    place = np.broadcast_to(lon, (lat.size, lon.size)) + 1000.0 * lat[:, None]
    sources, fields = [], []
    for shift in shifts:
        columns = np.roll(np.arange(lon.size), -shift)
        east = np.unwrap(lon[columns], period=360.0)
        ds = maps(lat[:: -1 if turned else 1], east)
        sources.append(read_grid(ds, "a.nc")[0])
        fields.append(ds["gpp"].copy(data=place[:: -1 if turned else 1, columns]))
    found = aligned(sources)
    assert len({s.grid for s in found}) == 1
    assert sum(s.grid == found[0].grid for s in sources) == max(
        sum(s.grid == t.grid for s in sources) for t in sources
    )
    for source, values in zip(found, fields, strict=True):
        got = source.to_grid_order(values)
        there = np.mod(got["lon"].values + 180.0, 360.0) - 180.0
        np.testing.assert_array_equal(
            got.values, np.round(there, 6) + 1000.0 * got["lat"].values[:, None]
        )


def test_another_grid_or_a_part_of_one_is_left_as_it_is() -> None:
    lat, lon = np.arange(-87.5, 90, 5), np.arange(-177.5, 180, 5)
    sources = [
        read_grid(maps(*axes), "a.nc")[0]
        for axes in ((lat, lon), (lat[6:], lon), (lat, lon + 2.5), (lat, lon[:40]), (lat, lon[40:]))
    ]
    assert aligned(sources) == sources


def test_a_file_from_0_to_360_beside_others_is_turned_and_said(tmp_path: Path) -> None:
    lon = np.arange(-150.0, 180, 60)
    values = field(0, 1)
    files = [write_native(tmp_path / f"{n}.nc", {n: (values, CARBON)}, lon=lon) for n in "ab"]
    order = np.argsort(lon % 360)
    files.append(
        write_native(tmp_path / "c.nc", {"c": (values[..., order], CARBON)}, lon=(lon % 360)[order])
    )
    found = Inventory.of(files).files
    got = [build_timeline(n, found, None, "").read(slice(0, 24), {}) for n in "abc"]
    np.testing.assert_array_equal(got[2], got[0])
    assert any(rule == "longitude-order" for rule, _ in found[2].notes)
