"""What regridding must never do, for any grids, gaps and land: laws, then a case worked by hand.

Tolerances come from the rounding of edges. Edges are numbers of degrees up to 1080 (a turn either
way), known to one unit in the last place of that, 2.3e-13; cells and their overlaps are at least
0.01 degrees wide here. So a weight is right to 5e-11 of itself, and so is a mean of positive
numbers: 1e-10 is asked for. An integral is much better, because what one cell loses at an edge its
neighbour wins: ``moved_m2`` bounds the area that changes hands.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from grid_cases import fields, gaussian, grids, integral, pole_centred
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.grid import EARTH_RADIUS_M, Grid, standard_grid
from callmip_global.regrid import conservative_weights, masked_mean, regrid_dataset
from callmip_global.store import value_fraction

seeds = st.integers(0, 2**32 - 1)
EDGE_DEGREES = np.spacing(1080.0)
MEAN = {"rtol": 1e-10, "atol": 1e-300}
LAND = "area: mean where land time: mean"


def moved_m2(*grids: Grid) -> float:
    """Area that rounding of all edges may give to the wrong cell, and that of the sums."""
    area = 0.0
    for grid in grids:
        lat, lon = np.deg2rad(grid.lat_edges[[0, -1]]), np.deg2rad(np.ptp(grid.lon_edges))
        height = float(np.sin(lat[1]) - np.sin(lat[0]))
        strips = (grid.lon_edges.size * height + grid.lat_edges.size * lon) * EARTH_RADIUS_M**2
        area += np.deg2rad(4.0 * EDGE_DEGREES) * strips
        area += 8.0 * np.finfo(float).eps * grid.cell_area.size**0.5 * grid.cell_area.sum()
    return float(area)


def land_of(grid: Grid, seed: int) -> np.ndarray:
    """(nlat, nlon) fractions of land, some of them none and some of them whole."""
    return np.clip(np.random.default_rng(seed).uniform(-0.3, 1.3, grid.shape), 0.0, 1.0)


def on(a: Grid, b: Grid, values: np.ndarray, land: np.ndarray | None = None) -> np.ndarray:
    return masked_mean(conservative_weights(a, b), values, land)[0]


# --- conservation, constants, extremes --------------------------------------------------------


@given(grids(), grids(), seeds)
def test_the_area_integral_is_kept_with_any_gaps_and_land(a: Grid, b: Grid, seed: int) -> None:
    values, land = fields(a, seed), land_of(a, seed)
    out, covered = masked_mean(conservative_weights(a, b), values, land)
    drift = integral(b, out, covered) - integral(a, values, land)
    assert np.all(np.abs(drift) <= 10.0 * moved_m2(a, b))


@given(grids(whole=False), grids(), seeds)
def test_the_integral_of_a_part_of_the_globe_is_kept_too(a: Grid, b: Grid, seed: int) -> None:
    values = fields(a, seed)
    out, covered = masked_mean(conservative_weights(a, b), values)
    drift = integral(b, out, covered) - integral(a, values, 1.0)
    assert np.all(np.abs(drift) <= 10.0 * moved_m2(a, a))


@given(grids(), grids(), seeds)
def test_the_integral_is_kept_where_land_changes_from_step_to_step(
    a: Grid, b: Grid, seed: int
) -> None:
    values = fields(a, seed, 3)
    land = np.stack([land_of(a, seed + step) for step in range(3)])
    out, covered = masked_mean(conservative_weights(a, b), values, land)
    drift = integral(b, out, covered) - integral(a, values, land)
    assert np.all(np.abs(drift) <= 10.0 * moved_m2(a, b))


@given(grids(), grids(), seeds, st.floats(-1e6, 1e6))
def test_a_constant_stays_that_constant(a: Grid, b: Grid, seed: int, value: float) -> None:
    values = np.where(np.isnan(fields(a, seed)), np.nan, value)
    out, covered = masked_mean(conservative_weights(a, b), values, land_of(a, seed))
    # At most 3 overlaps per edge: sums of some 500 terms, each of three roundings.
    np.testing.assert_allclose(out[covered > 0], value, rtol=1e-13, atol=1e-300)
    assert np.all(np.isnan(out[covered == 0]))


@given(grids(), grids(), seeds)
def test_no_new_extremes_and_no_coverage_beyond_the_cell(a: Grid, b: Grid, seed: int) -> None:
    values = fields(a, seed, 1)
    if np.all(np.isnan(values)):
        return
    out, covered = masked_mean(conservative_weights(a, b), values)
    assert np.nanmin(out) >= np.nanmin(values) - 1e-12
    assert np.nanmax(out) <= np.nanmax(values) + 1e-12
    assert covered.min() >= 0.0
    assert covered.max() <= 1.0


@given(grids(), grids(), seeds)
def test_more_everywhere_is_nowhere_less(a: Grid, b: Grid, seed: int) -> None:
    less, land = fields(a, seed), land_of(a, seed)
    more = less + np.random.default_rng(seed).random(a.shape)
    assert np.all(np.nan_to_num(on(a, b, more, land) - on(a, b, less, land)) >= -1e-12)


@given(grids(), grids(), seeds)
def test_a_mean_of_two_fields_is_the_mean_of_their_means(a: Grid, b: Grid, seed: int) -> None:
    one = fields(a, seed, 1)
    other = np.where(np.isnan(one), np.nan, fields(a, seed + 1, 1))
    other = np.where(np.isnan(other), one, other)
    both = on(a, b, 0.25 * one + 0.75 * other)
    np.testing.assert_allclose(both, 0.25 * on(a, b, one) + 0.75 * on(a, b, other), rtol=1e-12)


# --- no place and no order is special ---------------------------------------------------------


@given(grids(), grids(), seeds)
def test_the_mirrored_globe_gives_the_mirrored_result(a: Grid, b: Grid, seed: int) -> None:
    values, land = fields(a, seed), land_of(a, seed)
    expected = on(a, b, values, land)
    south = [Grid("m", -g.lat_edges[::-1], g.lon_edges) for g in (a, b)]
    flipped = on(*south, values[:, ::-1], land[::-1])
    np.testing.assert_allclose(flipped[:, ::-1], expected, **MEAN)
    east = [Grid("m", g.lat_edges, -g.lon_edges[::-1]) for g in (a, b)]
    flipped = on(*east, values[:, :, ::-1], land[:, ::-1])
    np.testing.assert_allclose(flipped[:, :, ::-1], expected, **MEAN)


@given(grids(), grids(), seeds, st.integers(1, 8), st.integers(1, 8))
def test_where_a_grid_begins_in_longitude_changes_nothing(
    a: Grid, b: Grid, seed: int, roll_a: int, roll_b: int
) -> None:
    values = fields(a, seed)
    (rolled_a, by_a), (rolled_b, by_b) = rolled(a, roll_a), rolled(b, roll_b)
    out = on(rolled_a, rolled_b, np.roll(values, -by_a, axis=-1))
    np.testing.assert_allclose(np.roll(out, by_b, axis=-1), on(a, b, values), **MEAN)


def rolled(grid: Grid, by: int) -> tuple[Grid, int]:
    """The grid that begins ``by`` columns further east, and how many columns that is."""
    by %= grid.shape[1]
    edges = np.concatenate([grid.lon_edges[by:], grid.lon_edges[1 : by + 1] + 360.0])
    return Grid("rolled", grid.lat_edges, edges), by


@given(grids(), grids(), seeds, st.integers(-36000, 36000))
def test_turning_both_grids_alike_changes_nothing(a: Grid, b: Grid, seed: int, by: int) -> None:
    values = fields(a, seed)
    turned = [Grid("turned", g.lat_edges, g.lon_edges + by / 100.0) for g in (a, b)]
    np.testing.assert_allclose(on(*turned, values), on(a, b, values), **MEAN)


def file_of(grid: Grid, values: np.ndarray, land: np.ndarray) -> xr.Dataset:
    bounds = {
        "lat_bnds": (("lat", "b"), grid.lat_bnds),
        "lon_bnds": (("lon", "b"), grid.lon_bnds),
    }
    data = {
        "x": (("time", "lat", "lon"), values, {"cell_methods": LAND}),
        "y": (("time", "lat", "lon"), values, {"cell_methods": "area: time: mean"}),
        "sftlf": (("lat", "lon"), land, {"units": "1"}),
        **bounds,
    }
    return xr.Dataset(data, coords={"lat": grid.lat, "lon": grid.lon})


@settings(max_examples=25)
@given(grids(), grids(), seeds, st.booleans(), st.integers(0, 7), st.booleans())
def test_the_order_of_a_files_axes_changes_nothing(
    a: Grid, b: Grid, seed: int, descending: bool, roll: int, wrapped: bool
) -> None:
    plain = file_of(a, fields(a, seed), land_of(a, seed))
    other = plain.roll(lon=roll, roll_coords=True).isel(
        lat=slice(None, None, -1 if descending else 1)
    )
    # (The bounds of a single column all round would become one meridian.)
    for name in ("lon", "lon_bnds") if a.shape[1] > 1 else ():
        turned = np.mod(other[name] + 180.0, 360.0) - 180.0
        other[name] = turned if wrapped else np.mod(other[name], 360.0)
    out = regrid_dataset(plain, grid=b)
    shuffled = regrid_dataset(other.transpose("lon", "b", "lat", "time"), grid=b)
    assert set(shuffled.data_vars) == set(out.data_vars)
    for name in out.data_vars:
        # Bounds that were turned into another branch and back have lost another digit.
        np.testing.assert_allclose(shuffled[name], out[name], rtol=1e-9, atol=1e-300)


@settings(max_examples=25)
@given(grids(), grids(), seeds)
def test_a_data_set_keeps_its_integrals_with_the_fraction_beside_it(
    a: Grid, b: Grid, seed: int
) -> None:
    values, land = fields(a, seed), land_of(a, seed)
    out = regrid_dataset(file_of(a, values, land), grid=b)
    for name, part in (("x", land), ("y", 1.0)):
        fraction = value_fraction(out, name)
        after = (out[name] * fraction * out["areacella"]).sum(("lat", "lon"))
        drift = after.values - integral(a, values, part)
        assert np.all(np.abs(drift) <= 10.0 * moved_m2(a, b))
        there = np.broadcast_to(fraction.values > 0, out[name].shape)
        np.testing.assert_array_equal(np.isfinite(out[name]), there)
    kept = (out["sftlf"] / 100.0 * out["areacella"]).sum().item() - (land * a.cell_area).sum()
    assert abs(kept) <= moved_m2(a, b)


# --- one step or several ----------------------------------------------------------------------


@given(grids())
def test_a_grid_onto_itself_changes_nothing(grid: Grid) -> None:
    values = fields(grid, 1)
    out, covered = masked_mean(conservative_weights(grid, grid), values)
    np.testing.assert_allclose(out, values, rtol=1e-13)
    np.testing.assert_allclose(covered, ~np.isnan(values), atol=1e-13)


@given(grids(), seeds)
def test_by_way_of_a_grid_between_is_the_same_as_at_once(fine: Grid, seed: int) -> None:
    """For nested grids: each keeps some of the edges of the one before."""
    rng = np.random.default_rng(seed)

    def some(edges: np.ndarray) -> np.ndarray:
        kept = rng.random(edges.size) < 0.6
        kept[[0, -1]] = True
        return edges[kept]

    middle = Grid("middle", some(fine.lat_edges), some(fine.lon_edges))
    coarse = Grid("coarse", some(middle.lat_edges), some(middle.lon_edges))
    values, land = fields(fine, seed), land_of(fine, seed)
    direct, part = masked_mean(conservative_weights(fine, coarse), values, land)
    step, between = masked_mean(conservative_weights(fine, middle), values, land)
    twice, twice_part = masked_mean(conservative_weights(middle, coarse), step, between)
    np.testing.assert_allclose(twice, direct, **MEAN)
    np.testing.assert_allclose(twice_part, part, rtol=1e-10, atol=1e-300)


def test_by_way_of_1_degree_is_the_same_as_from_05_to_2_degrees() -> None:
    half, one, two = (standard_grid(name) for name in ("0.5deg", "1deg", "2deg"))
    values, land = fields(half, 3), land_of(half, 3)
    direct, direct_covered = masked_mean(conservative_weights(half, two), values, land)
    step, covered = masked_mean(conservative_weights(half, one), values, land)
    twice, twice_covered = masked_mean(conservative_weights(one, two), step, covered)
    np.testing.assert_allclose(twice, direct, rtol=1e-12)
    np.testing.assert_allclose(twice_covered, direct_covered, atol=1e-12)


def test_there_and_back_to_finer_cells_changes_nothing() -> None:
    one, half = standard_grid("1deg"), standard_grid("0.5deg")
    values = fields(one, 4)
    fine, covered = masked_mean(conservative_weights(one, half), values)
    back, whole = masked_mean(conservative_weights(half, one), fine, covered)
    np.testing.assert_allclose(back, values, rtol=1e-13)
    np.testing.assert_allclose(whole, ~np.isnan(values), atol=1e-13)


@pytest.mark.parametrize("native", [gaussian(96, 192), pole_centred(192, 288)], ids=["N48", "CLM"])
def test_native_to_2_degrees_at_once_or_by_way_of_half_a_degree(native: Grid) -> None:
    # Not nested, so a value differs (half a degree has forgotten where in it the value was) but
    # zonal integrals over rows of 2 degrees do not: half degree rows nest in those.
    half, two = standard_grid("0.5deg"), standard_grid("2deg")
    values = fields(native, 5, 1)
    direct, covered = masked_mean(conservative_weights(native, two), values)
    step, between = masked_mean(conservative_weights(native, half), values)
    twice, part = masked_mean(conservative_weights(half, two), step, between)
    rows = [
        np.nansum(v * c * two.cell_area, axis=-1) for v, c in ((direct, covered), (twice, part))
    ]
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-10)


# --- by hand ----------------------------------------------------------------------------------


def test_two_by_two_cells_to_one_by_hand() -> None:
    # Symmetric about the equator, so all four cells are alike; one is missing: (1 + 2 + 2) / 3.
    source = Grid("2x2", np.array([-30.0, 0.0, 30.0]), np.array([0.0, 10.0, 20.0]))
    target = Grid("1x1", np.array([-30.0, 30.0]), np.array([0.0, 20.0]))
    values = np.array([[[1.0, 2.0], [2.0, np.nan]]])
    out, covered = masked_mean(conservative_weights(source, target), values)
    assert out[0, 0, 0] == pytest.approx(5.0 / 3.0, rel=1e-15)
    assert covered[0, 0, 0] == pytest.approx(0.75, rel=1e-15)
    # With land in the cells: (1 x 0.5 + 2 x 1 + 2 x 0.25) / 1.75, the missing cell's land unused.
    land = np.array([[0.5, 1.0], [0.25, 1.0]])
    out, covered = masked_mean(conservative_weights(source, target), values, land)
    assert out[0, 0, 0] == pytest.approx(3.0 / 1.75, rel=1e-15)
    assert covered[0, 0, 0] == pytest.approx(1.75 / 4.0, rel=1e-15)


def test_two_by_two_cells_that_differ_in_size_to_one_by_hand() -> None:
    # Rows 0-30 and 30-90 N are equally large (sin 30 = 1/2), columns 90 and 270 wide are not:
    # weights 1/8, 3/8, 1/8, 3/8. South-west missing, land 1, 1/2, 1, 0 in the others' order:
    # west of the north row 2 x 1/8 x 1, east of the south row 6 x 3/8 x 1/2, and no land left.
    source = Grid("2x2", np.array([0.0, 30.0, 90.0]), np.array([0.0, 90.0, 360.0]))
    target = Grid("1x1", np.array([0.0, 90.0]), np.array([0.0, 360.0]))
    values = np.array([[[np.nan, 6.0], [2.0, 9.0]]])
    land = np.array([[1.0, 0.5], [1.0, 0.0]])
    out, covered = masked_mean(conservative_weights(source, target), values, land)
    weight = 1.0 / 8.0 + 3.0 / 16.0
    assert out[0, 0, 0] == pytest.approx((2.0 / 8.0 + 6.0 * 3.0 / 16.0) / weight, rel=1e-15)
    assert covered[0, 0, 0] == pytest.approx(weight, rel=1e-15)
