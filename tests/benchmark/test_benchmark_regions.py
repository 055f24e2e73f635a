"""Regions: exact areas on any grid of boxes, polygons and maps; what is none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import GRID, benchmark, cycles, dataset, number, write_product, write_run
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.benchmark.overlap import map_shares, polygon_shares
from callmip_global.benchmark.regions import (
    Polygon,
    ipcc_regions,
    region_area,
    select_regions,
)
from callmip_global.errors import UsageError
from callmip_global.files import content_hash
from callmip_global.grid import EARTH_RADIUS_M, Grid, standard_grid


@given(
    nlat=st.integers(1, 9),
    nlon=st.integers(1, 11),
    first=st.sampled_from([-180.0, 0.0, -17.5]),
    south=st.floats(-90, 80),
    height=st.floats(1, 170),
    west=st.floats(-180, 180),
    width=st.floats(1, 359),
)
def test_a_box_has_its_exact_area_on_every_grid(nlat, nlon, first, south, height, west, width):
    north, east = min(90.0, south + height), west + width
    east = east - 360.0 if east > 360.0 else east
    (box,) = select_regions([f"box={south!r},{north!r},{west!r},{east!r}"])
    grid = Grid("g", np.linspace(-90, 90, nlat + 1), np.linspace(first, first + 360, nlon + 1))
    rise = np.sin(np.deg2rad(north)) - np.sin(np.deg2rad(south))
    exact = EARTH_RADIUS_M**2 * np.deg2rad(width) * rise
    area = region_area(box, grid)
    assert area.sum() == pytest.approx(exact, rel=1e-9)
    assert (area <= grid.cell_area * (1 + 1e-12)).all()
    assert (area >= 0).all()


def test_a_box_across_the_date_line_takes_half_of_the_cells_it_cuts():
    """Columns of 45 degrees from -180; 157.5 E to 157.5 W is half of the last and of the first."""
    (box,) = select_regions(["pacific=0,90,157.5,-157.5"])
    shares = region_area(box, GRID) / GRID.cell_area
    np.testing.assert_allclose(shares[5], [0.5, 0, 0, 0, 0, 0, 0, 0.5], atol=1e-12)
    assert shares[:3].max() == 0.0


def test_a_box_around_the_earth_is_a_band():
    band, named = select_regions(["band=0,90,-180,180", "nh"])
    np.testing.assert_allclose(region_area(band, GRID), region_area(named, GRID))


def test_scores_of_a_box_are_those_of_its_cells(tmp_path):
    """The run is 6 above in one column of cells and right elsewhere: half a cell of the box."""
    truth = cycles(3)
    run = truth.copy()
    run[..., 3] += 6.0
    boxes = ["cut=0,30,-22.5,22.5", "far=0,30,50,100"]
    product = write_product(tmp_path, truth)
    benchmark([write_run(tmp_path, run)], [product], tmp_path / "out", regions=boxes)
    assert number(tmp_path / "out", "bias", region="cut") == pytest.approx(3.0)
    assert number(tmp_path / "out", "bias", region="far") == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("europe=35,70,-10", "NAME=SOUTH,NORTH,WEST,EAST in degrees"),
        ("europe=35,70,-10,x", "NAME=SOUTH,NORTH,WEST,EAST in degrees"),
        ("europe=70,35,-10,40", "SOUTH < NORTH"),
        ("europe=35,95,-10,40", "SOUTH < NORTH"),
        ("europe=35,70,10,10", "WEST and EAST apart"),
        ("europe=35,70,-10,4000", "WEST and EAST apart"),
        ("nh=35,70,-10,40", "a name of letters"),
        ("my region=35,70,-10,40", "a name of letters"),
    ],
)
def test_what_is_no_box_is_refused_with_what_a_box_is(text, said):
    with pytest.raises(UsageError, match=said):
        select_regions(["global", text])


def test_two_boxes_of_one_name_are_refused():
    with pytest.raises(UsageError, match="found a twice"):
        select_regions(["a=0,1,0,1", "a=0,2,0,1"])


# --- polygons ---------------------------------------------------------------------------------


def polygon_area(rings: Any) -> float:
    """R^2 times the integral of sin(latitude) over longitude around each ring, exactly."""
    total = 0.0
    for ring in rings:
        around = 0.0
        for (x0, y0), (x1, y1) in zip(ring, (*ring[1:], ring[0]), strict=True):
            south, north = np.deg2rad([y0, y1])
            flat = abs(north - south) < 1e-5  # below, the quotient has lost its digits
            mean = (np.cos(south) - np.cos(north)) / (1.0 if flat else north - south)
            mean = np.sin(0.5 * (south + north)) if flat else mean
            around += np.deg2rad(x1 - x0) * mean
        total += abs(around)
    return total * EARTH_RADIUS_M**2


def sampled(ring: np.ndarray, grid: Grid, n: int = 60) -> np.ndarray:
    """(nlat, nlon) shares of n x n points of each cell, even in longitude and sin(latitude),
    that lie inside the ring by the even-odd rule, a whole turn on either side too."""
    part = (np.arange(n) + 0.5) / n
    sines = np.sin(np.deg2rad(grid.lat_edges))
    lat = np.rad2deg(np.arcsin((sines[:-1, None] + np.diff(sines)[:, None] * part).ravel()))
    lon = (grid.lon_edges[:-1, None] + np.diff(grid.lon_edges)[:, None] * part).ravel()
    inside = np.zeros((lat.size, lon.size), bool)
    for turn in (-360.0, 0.0, 360.0):
        here = np.zeros_like(inside)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                crosses = (y0 > lat) != (y1 > lat)
                at = x0 + (lat - y0) / (y1 - y0) * (x1 - x0)
                here ^= crosses[:, None] & (lon - turn < at[:, None])
        inside |= here
    return inside.reshape(grid.shape[0], n, grid.shape[1], n).mean(axis=(1, 3))


@st.composite
def stars(draw: st.DrawFn) -> np.ndarray:
    """(n, 2) corners of a polygon that does not cross itself, either way round, anywhere."""
    n = draw(st.integers(3, 9))
    x, y = draw(st.floats(-180, 180)), draw(st.floats(-85, 85))
    radii = np.array([draw(st.floats(0.05, 1.0)) for _ in range(n)])
    angles = (np.arange(n) + np.array([draw(st.floats(0, 0.9)) for _ in range(n)])) / n
    turn = draw(st.sampled_from([1, -1])) * 2 * np.pi * angles
    lon = x + draw(st.floats(1, 170)) * radii * np.cos(turn)
    lat = y + min(90 - abs(y), draw(st.floats(1, 80))) * radii * np.sin(turn)
    return np.stack([lon, lat], axis=1)


GRIDS = st.builds(
    lambda nlat, nlon, first: Grid(
        "g", np.linspace(-90, 90, nlat + 1), np.linspace(first, first + 360, nlon + 1)
    ),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([-180.0, 0.0, -17.5]),
)


@given(ring=stars(), grid=GRIDS)
def test_a_polygon_has_its_exact_area_on_every_grid(ring, grid):
    shares = polygon_shares([ring], grid)
    # 100 m2 are the rounding of sums over an earth of 5e14.
    assert (shares * grid.cell_area).sum() == pytest.approx(polygon_area([ring]), rel=1e-9, abs=100)
    assert shares.min() >= -1e-12
    assert shares.max() <= 1 + 1e-12


@given(ring=stars(), grid=GRIDS)
def test_the_share_of_each_cell_is_that_of_its_points_inside(ring, grid):
    # A straight edge cuts at most 2 n of the n^2 points of a cell from their squares.
    np.testing.assert_allclose(polygon_shares([ring], grid), sampled(ring, grid), atol=0.08)


@given(ring=stars())
def test_a_grid_of_a_part_of_the_earth_has_the_cells_of_the_whole(ring):
    whole = Grid("g", np.linspace(-90, 90, 19), np.linspace(-180, 180, 25))
    part = Grid("p", whole.lat_edges[3:9], whole.lon_edges[20:] - 360.0)
    np.testing.assert_allclose(
        polygon_shares([ring], part), polygon_shares([ring], whole)[3:8, 20:], atol=1e-12
    )


def test_a_triangle_has_the_area_under_its_edge():
    """Between 0 and 30 N the mean of sin(latitude) along the edge is (1 - cos 30) / (pi / 6)."""
    grid = Grid("g", np.array([-30.0, 0, 30, 60]), np.array([-45.0, 0, 45, 90]))
    shares = polygon_shares([[(0, 0), (45, 30), (45, 0)]], grid)
    expected = np.zeros((3, 3))
    expected[1, 1] = (1 - np.cos(np.pi / 6)) / (np.pi / 6) / 0.5
    np.testing.assert_allclose(shares, expected, atol=1e-14)


# --- regions of the IPCC ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def ipcc_areas() -> dict[str, np.ndarray]:
    """Name of a standard grid -> (46, nlat, nlon) areas [m2]."""
    regions = select_regions(["ipcc"])
    return {
        name: np.stack([region_area(region, standard_grid(name)) for region in regions])
        for name in ("0.5deg", "1deg", "2deg")
    }


def test_there_are_46_land_regions_with_source_and_licence():
    regions = ipcc_regions()
    assert len(regions) == 46
    assert {"GIC", "WNA", "NEU", "SAH", "RFE", "RAR", "NZ", "WAN"} <= set(regions)
    for region in regions.values():
        assert "Iturbide et al. (2020)" in region.source
        assert region.licence == "CC BY 4.0"
    assert regions["NEU"].title == "N. Europe (NEU)"


def test_a_region_of_the_ipcc_has_its_own_area_on_all_standard_grids(ipcc_areas):
    own = [polygon_area(region.rings) for region in ipcc_regions().values()]
    for areas in ipcc_areas.values():
        np.testing.assert_allclose(areas.sum(axis=(1, 2)), own, rtol=1e-9)


def test_regions_of_the_ipcc_overlap_only_where_rounded_corners_do(ipcc_areas):
    """The source's corners have one decimal: where three regions meet on a slanted edge, two of
    them cross by up to 16000 km2. All others share edges, and nothing else."""
    shares = ipcc_areas["0.5deg"] / standard_grid("0.5deg").cell_area
    assert shares.min() >= 0
    assert shares.max() <= 1
    twice = shares.sum(axis=0) > 1 + 1e-9
    names = list(ipcc_regions())
    together = {tuple(names[i] for i in np.flatnonzero(cell > 0)) for cell in shares[:, twice].T}
    assert together == {
        ("SWS", "SSA"),
        ("SWS", "SES"),
        ("ESAF", "MDG"),
        ("NEAF", "ARP"),
        ("SAH", "ARP"),
        ("SAH", "NEAF", "ARP"),
    }
    over = (shares.sum(axis=0) - 1)[twice] * standard_grid("0.5deg").cell_area[twice]
    assert over.sum() < 1e-4 * ipcc_areas["0.5deg"].sum()


def test_the_russian_arctic_goes_on_behind_the_date_line():
    areas = region_area(ipcc_regions()["RAR"], standard_grid("2deg"))
    row = areas[int((90 + 68) / 2)] > 0
    assert row[:6].all()  # to 168 W
    assert not row[6:110].any()
    assert row[110:].all()  # from 40 E
    eastern = Grid("g", standard_grid("2deg").lat_edges, np.linspace(0, 360, 181))
    turned = region_area(ipcc_regions()["RAR"], eastern)
    np.testing.assert_allclose(np.roll(turned, 90, axis=1), areas, rtol=1e-9)


def test_ipcc_stands_for_all_and_single_ones_are_taken_once():
    chosen = select_regions(["global", "SAH", "ipcc", "NEU"])
    assert [region.name for region in chosen[:3]] == ["global", "SAH", "GIC"]
    assert len(chosen) == 47


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("neu", "Did you mean NEU?"),
        ("tropic", "Did you mean tropics?"),
        ("IPCC", "Did you mean ipcc?"),
        ("atlantis", "or the acronym of one of them"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(text, said):
    with pytest.raises(UsageError, match=f"found {text}, wanted global.*") as failed:
        select_regions([text])
    assert said in str(failed.value)


def test_a_box_named_like_a_region_of_the_ipcc_is_refused():
    with pytest.raises(UsageError, match="that no other region has"):
        select_regions(["NEU=48,72,-10,40"])


def test_equal_definitions_are_equal_regions():
    regions = [*select_regions(["global", "ipcc", "a=0,10,0,10", "b=0,10,0,10"])]
    texts = [json.dumps(region.definition(), sort_keys=True) for region in regions]
    assert len(set(texts)) == len(regions)
    square = ((0.0, 0.0), (0.0, 10.0), (10.0, 10.0))
    moved = ((0.0, 0.0), (0.0, 10.0), (10.0, 10.1))
    one, same, other = (Polygon("p", "P", (ring,)) for ring in (square, square, moved))
    assert one.definition() == same.definition() != other.definition()


def test_benchmark_json_says_where_the_outlines_are_from(tmp_path):
    product = write_product(tmp_path, cycles(3))
    run = write_run(tmp_path, cycles(3))
    summary = benchmark([run], [product], tmp_path / "out", regions=["global", "SAH"])
    plain, sahara = summary["regions"]
    assert plain == {"name": "global", "title": "Global"}
    assert sahara["title"] == "Sahara (SAH)"
    assert "10.5194/essd-12-2959-2020" in sahara["source"]
    assert sahara["licence"] == "CC BY 4.0"
    assert number(tmp_path / "out", "bias", region="SAH") == pytest.approx(0.0, abs=1e-9)


# --- masks and maps of labels -----------------------------------------------------------------

FINE = Grid("fine", np.linspace(-90, 90, 13), np.linspace(-180, 180, 25))


def write_map(
    folder: Path,
    values: Any,
    *,
    units: str = "1",
    grid: Grid = GRID,
    name: str = "inside",
    file: str = "map.nc",
    **attributes: Any,
) -> Path:
    """A file with one map; ``_FillValue`` among the attributes is written as such."""
    ds = dataset(name, np.asarray(values), grid, None, units)
    fill = attributes.pop("_FillValue", None)
    ds[name].attrs |= attributes
    ds.to_netcdf(folder / file, encoding={name: {"_FillValue": fill}})
    return folder / file


@given(
    seed=st.integers(0, 2**32),
    source=st.tuples(st.integers(2, 9), st.integers(2, 9), st.floats(-200, 200)),
    target=GRIDS,
)
def test_a_map_has_the_same_area_on_every_grid(seed, source, target):
    nlat, nlon, first = source
    rng = np.random.default_rng(seed)
    own = Grid("own", np.linspace(-90, 90, nlat + 1), np.linspace(first, first + 360, nlon + 1))
    values = rng.random(own.shape)
    shares = map_shares(values, own, target)
    exact = (values * own.cell_area).sum()
    assert (shares * target.cell_area).sum() == pytest.approx(exact, rel=1e-9)
    assert shares.min() >= values.min() - 1e-12
    assert shares.max() <= values.max() + 1e-12
    np.testing.assert_allclose(map_shares(values, own, own), values, atol=1e-12)


def test_a_cell_has_the_mean_of_the_map_by_area():
    """One cell of the globe over two rows of two columns; beyond the edges of a map is nothing."""
    globe = Grid("g", np.array([-90.0, 90]), np.array([0.0, 360]))
    quarters = Grid("q", np.array([-90.0, 0, 90]), np.array([-90.0, 90, 270]))
    values = np.array([[0.2, 0.4], [0.6, 1.0]])
    assert map_shares(values, quarters, globe)[0, 0] == pytest.approx(0.55)
    tropics = Grid("t", np.array([-30.0, 30]), np.array([170.0, 190]))
    assert map_shares(np.ones((1, 1)), tropics, globe)[0, 0] == pytest.approx(0.5 * 20 / 360)


@pytest.mark.parametrize(
    ("values", "attributes"),
    [
        (np.linspace(0, 1, 48).reshape(6, 8), {}),
        (np.linspace(0, 100, 48).reshape(6, 8), {"units": "%"}),
        (np.linspace(0, 100, 48).reshape(6, 8).astype(np.int8), {"units": "percent"}),
        (np.arange(48).reshape(6, 8) % 3 == 0, {}),
        (np.arange(48).reshape(6, 8) % 2, {}),
    ],
    ids=["shares", "percent", "whole-percent", "bool", "0-and-1"],
)
def test_a_field_of_shares_is_a_region(tmp_path, values, attributes):
    path = write_map(tmp_path, values, **attributes)
    (region,) = select_regions([f"mine={path}"])
    scale = 100.0 if attributes else 1.0
    np.testing.assert_allclose(
        region_area(region, GRID) / GRID.cell_area, values / scale, atol=1e-12
    )
    assert region.name == "mine"
    assert region.entry()["sha256"] == content_hash(path)
    assert region.entry()["source"] == f"{path}:inside"


def test_missing_cells_of_a_mask_count_as_outside(tmp_path):
    values = np.ones(GRID.shape)
    values[2] = np.nan
    (region,) = select_regions([f"mine={write_map(tmp_path, values)}"])
    assert region_area(region, GRID)[2].max() == 0.0
    assert region_area(region, GRID)[3].min() > 0.0


def test_a_mask_that_runs_south_from_0_to_360_lies_where_it_says(tmp_path):
    values = np.zeros(GRID.shape)
    values[4, 6] = 1.0
    ds = dataset("inside", values, GRID, None, "1")
    turned = ds.isel(lat=slice(None, None, -1), lon=np.roll(np.arange(8), 4))
    turned = turned.assign_coords(
        lon=turned.lon % 360, lon_bnds=turned.lon_bnds + 360.0 * (turned.lon < 0)
    )
    turned.to_netcdf(tmp_path / "turned.nc")
    (region,) = select_regions([f"mine={tmp_path / 'turned.nc'}:inside"])
    np.testing.assert_allclose(region_area(region, GRID) / GRID.cell_area, values, atol=1e-12)


def test_each_label_of_a_map_is_a_region(tmp_path):
    """Whole numbers beyond 1, 0 for none; on cells twice as large they share out what they cut."""
    labels = np.zeros(FINE.shape, np.int16)
    labels[6:8, :3], labels[6:8, 3:6] = 2, 7
    path = write_map(tmp_path, labels, grid=FINE)
    two, seven = select_regions([f"zone={path}"])
    assert (two.name, seven.name) == ("zone-2", "zone-7")
    assert two.title == "zone: 2"
    shares = [region_area(region, GRID) / GRID.cell_area for region in (two, seven)]
    np.testing.assert_allclose(shares[0][3], [1, 0, 0, 0, 0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(shares[1][3], [0, 1, 0, 0, 0, 0, 0, 0], atol=1e-12)
    coarse = Grid("c", np.linspace(-90, 90, 4), np.linspace(-180, 180, 4))
    shares = [region_area(region, coarse) / coarse.cell_area for region in (two, seven)]
    # Half the height of the middle row in sin(latitude), three and three of eight columns.
    for own in shares:
        np.testing.assert_allclose(own[1], [0.5 * 3 / 8, 0, 0], atol=1e-12)


def test_labels_have_the_names_that_cf_attributes_give(tmp_path):
    labels = np.arange(48, dtype=np.int8).reshape(6, 8) % 4
    path = write_map(
        tmp_path,
        labels,
        flag_values=np.array([0, 1, 3], np.int8),
        flag_meanings="sea tropical_rain_forest steppe+desert",
    )
    regions = select_regions([f"K={path}:inside"])
    assert [region.name for region in regions] == [
        "K-sea",
        "K-tropical_rain_forest",
        "K-steppe-desert",
    ]
    area = region_area(regions[2], GRID)
    np.testing.assert_array_equal(area > 0, labels == 3)


def test_region_files_of_ilamb_are_read_as_ilamb_does(tmp_path):
    """Indices into the variable that the attribute ``labels`` names; masked cells in none."""
    ids = np.full(GRID.shape, -9, np.int32)
    ids[0, 0], ids[1, 1], ids[2, 2] = 0, 1, 1
    ds = dataset("ids", ids, GRID, None, "1")
    ds.ids.attrs = {"labels": "labels"}
    ds["labels"] = ("n", np.array(["amazon", "Río Bravo", "unused"], dtype=object))
    ds.to_netcdf(tmp_path / "basins.nc", encoding={"ids": {"_FillValue": -9}})
    first, second = select_regions([f"basin={tmp_path / 'basins.nc'}"])
    assert (first.name, second.name) == ("basin-amazon", "basin-R-o-Bravo")
    assert second.title == "basin: Río Bravo"
    np.testing.assert_array_equal(region_area(first, GRID) > 0, ids == 0)
    np.testing.assert_array_equal(region_area(second, GRID) > 0, ids == 1)


def test_the_definition_of_a_mask_follows_its_content(tmp_path):
    paths = [
        write_map(tmp_path, values, file=f"{i}.nc")
        for i, values in enumerate((np.ones(GRID.shape), np.ones(GRID.shape), np.eye(6, 8)))
    ]
    one, same, other = (select_regions([f"a={path}"])[0].definition() for path in paths)
    assert one == same != other


def test_scores_of_a_mask_are_those_of_its_cells(tmp_path):
    truth = cycles(3)
    run = truth.copy()
    run[..., 3] += 6.0
    mask = np.zeros(GRID.shape)
    mask[:, 3], mask[:, 4] = 0.5, 1.0
    path = write_map(tmp_path, mask, license="CC0")
    product = write_product(tmp_path, truth)
    summary = benchmark(
        [write_run(tmp_path, run)], [product], tmp_path / "out", regions=[f"two={path}"]
    )
    assert number(tmp_path / "out", "bias", region="two") == pytest.approx(2.0)
    assert summary["regions"][0]["sha256"] == content_hash(path)


def _several(folder: Path) -> str:
    ds = dataset("a", np.ones(GRID.shape), GRID, None, "1")
    ds["b"] = ds.a
    ds["series"] = ("time", np.ones(3))
    ds.to_netcdf(folder / "several.nc")
    return f"m={folder / 'several.nc'}"


def _flagged(folder: Path, values: Any, meanings: str) -> str:
    field = np.arange(48).reshape(6, 8) % 2
    path = write_map(folder, field, flag_values=np.array(values), flag_meanings=meanings)
    return f"m={path}"


REFUSED: dict[str, tuple[Any, str]] = {
    "absent": (lambda f: f"m={f / 'absent.nc'}", "found no such file"),
    "beyond-1": (
        lambda f: f"m={write_map(f, np.full((6, 8), 1.5))}",
        "found values from 1.5 to 1.5, wanted 0 to 1, 0 to 100 with units '%'",
    ),
    "below-0": (lambda f: f"m={write_map(f, np.full((6, 8), -0.5))}", "values from -0.5 to -0.5"),
    "beyond-100": (lambda f: f"m={write_map(f, np.full((6, 8), 101.0), units='%')}", "to 101 %"),
    "nowhere": (lambda f: f"m={write_map(f, np.zeros((6, 8)))}", "no value above 0"),
    "negative": (lambda f: f"m={write_map(f, np.full((6, 8), -3))}", "numbers from -3 to -3"),
    "meanings": (lambda f: _flagged(f, [1, 2], "a"), "2 flag_values and 1 flag_meanings"),
    "no-such-label": (lambda f: _flagged(f, [5], "a"), "no cell"),
    "same-name": (lambda f: _flagged(f, [0, 1], "a+ a*"), "each label to have its name"),
    "no-names": (
        lambda f: f"m={write_map(f, np.ones((6, 8), int), labels='names')}",
        "labels: found no variable names",
    ),
    "several": (_several, r"2 variables \(lat, lon\) \(a, b\), wanted one, or its name"),
    "no-variable": (
        lambda f: f"{_several(f)}:c",
        "c: found no such variable, wanted a map .* a, b",
    ),
    "series": (lambda f: f"{_several(f)}:series", r"found dimensions \(time\), wanted a map"),
    "taken": (lambda f: f"nh={write_map(f, np.ones((6, 8)))}", "that no other region has"),
    "no-netcdf": (lambda f: f"m={f / 'mask.tif'}", "or NAME=FILE.nc"),
}


@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_mask_is_refused_in_one_line(tmp_path, given, said):
    with pytest.raises(UsageError, match=said) as failed:
        select_regions([given(tmp_path)])
    assert len(str(failed.value).splitlines()) == 1


def test_a_text_that_is_no_netcdf_is_refused(tmp_path):
    (tmp_path / "text.nc").write_text("no map")
    with pytest.raises(UsageError, match="a file that cannot be read"):
        select_regions([f"m={tmp_path / 'text.nc'}"])


def test_a_map_that_gdal_made_of_a_geotiff_is_read(tmp_path):
    """Bytes without bounds, marked unsigned, beside a variable for the projection."""
    labels = np.zeros(FINE.shape, np.uint8)
    labels[6:8, :3], labels[8, 4] = 200, 1
    ds = xr.Dataset(
        {"Band1": (("lat", "lon"), labels.astype(np.int8)), "crs": ((), b"")},
        {"lat": ("lat", FINE.lat), "lon": ("lon", FINE.lon)},
    )
    ds.Band1.attrs = {"_Unsigned": "true", "grid_mapping": "crs", "long_name": "GDAL Band Number 1"}
    ds.lat.attrs, ds.lon.attrs = {"units": "degrees_north"}, {"units": "degrees_east"}
    ds.to_netcdf(tmp_path / "koppen.nc", encoding={"Band1": {"_FillValue": 0}})
    first, last = select_regions([f"KG={tmp_path / 'koppen.nc'}"])
    assert (first.name, last.name) == ("KG-1", "KG-200")
    np.testing.assert_array_equal(region_area(last, FINE) > 0, labels == 200)


def test_a_mask_of_one_row_and_one_month_is_a_map(tmp_path):
    row = Grid("row", np.array([0.0, 30.0]), GRID.lon_edges)
    ds = dataset("inside", np.ones((1, 8)), row, None, "1").expand_dims(time=[0.0])
    ds.to_netcdf(tmp_path / "row.nc")
    (region,) = select_regions([f"m={tmp_path / 'row.nc'}:inside"])
    np.testing.assert_allclose(region_area(region, GRID)[3], GRID.cell_area[3], rtol=1e-12)
    assert region_area(region, GRID)[4].max() == 0.0
