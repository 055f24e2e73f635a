"""Regions: exact areas on any grid, boxes across the date line, and what is no box."""

from __future__ import annotations

import numpy as np
import pytest
from benchmark_cases import GRID, benchmark, cycles, number, write_product, write_run
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.benchmark.regions import region_area, select_regions
from callmip_global.errors import UsageError
from callmip_global.grid import EARTH_RADIUS_M, Grid


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
