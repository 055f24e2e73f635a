"""Regions: exact areas on any grid of boxes, polygons and maps; what is none of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from benchmark_cases import GRID, benchmark, cycles, number, write_product, write_run
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.benchmark.overlap import polygon_shares
from callmip_global.benchmark.regions import (
    Polygon,
    ipcc_regions,
    region_area,
    select_regions,
)
from callmip_global.errors import UsageError
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
    # A thousandth of a square metre is rounding of an earth.
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
