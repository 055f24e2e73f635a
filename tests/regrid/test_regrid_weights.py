"""Conservative weights and the kernel: what they are made of, real grids, cases by hand."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from grid_cases import fields, gaussian, grids, integral, pole_centred
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.compiled import compiled
from callmip_global.errors import DataError
from callmip_global.grid import Grid, standard_grid
from callmip_global.regrid import conservative_weights, covered_fraction, masked_mean

REAL = {
    "Gaussian N48": gaussian(96, 192),
    "pole-centred N96": pole_centred(145, 192),
    "pole-centred CLM": pole_centred(192, 288),
    "0.5 degrees": standard_grid("0.5deg"),
    "stops at 60 S": Grid("land", np.linspace(-60, 90, 151), np.linspace(-180, 180, 361)),
    "edge beyond the pole": Grid(
        "colm", np.append(np.arange(-89.25, 89.0, 2.0), 90.0), np.linspace(-180.75, 179.25, 181)
    ),
}


@given(grids(), grids(whole=False))
def test_row_sums_are_the_covered_part_of_each_cell(a: Grid, b: Grid) -> None:
    np.testing.assert_allclose(conservative_weights(a, b).coverage(), 1.0, rtol=1e-12)
    back = conservative_weights(b, a).coverage()
    np.testing.assert_allclose((back * a.cell_area).sum(), b.cell_area.sum(), rtol=1e-11)


@given(grids(), grids(), st.sampled_from([-720.0, -360.0, 360.0, 1080.0]))
def test_whole_turns_of_longitude_change_nothing(a: Grid, b: Grid, turn: float) -> None:
    turned = Grid("turned", a.lat_edges, a.lon_edges + turn)
    one, other = conservative_weights(a, b), conservative_weights(turned, b)
    np.testing.assert_allclose(one.lon.dense(), other.lon.dense(), atol=1e-11)


def test_overlaps_in_sine_of_latitude_by_hand() -> None:
    # From 0-30-90 to 0-90 north: sin 30 = 1/2, so both rows weigh the same though 30 and 60 wide.
    source = Grid("s", np.array([0.0, 30.0, 90.0]), np.array([0.0, 360.0]))
    target = Grid("t", np.array([0.0, 90.0]), np.array([0.0, 360.0]))
    weights = conservative_weights(source, target)
    np.testing.assert_allclose(weights.lat.dense(), [[0.5, 0.5]], rtol=1e-15)


def test_a_cell_across_the_dateline_takes_from_both_sides() -> None:
    source = Grid("s", np.array([-90.0, 90.0]), np.array([0.0, 90.0, 180.0, 270.0, 360.0]))
    target = Grid("t", np.array([-90.0, 90.0]), np.array([-45.0, 45.0]))
    weights = conservative_weights(source, target)
    np.testing.assert_allclose(weights.lon.dense(), [[0.5, 0.0, 0.0, 0.5]], rtol=1e-14)


@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("target", ["0.5deg", "1deg", "2deg"])
def test_real_grids_keep_the_integral_and_each_polar_row(source: str, target: str) -> None:
    a, b = REAL[source], standard_grid(target)
    weights = conservative_weights(a, b)
    values = fields(a, 5, 1)
    out, covered = masked_mean(weights, values)
    before, after = integral(a, values, 1.0), integral(b, out, covered)
    np.testing.assert_allclose(after, before, rtol=1e-12)
    # Row by row at both poles, against overlaps of the zonal strips worked out independently.
    filled = np.nan_to_num(values[0])
    strip = (filled * np.diff(a.lon_edges)).sum(axis=1)
    for row in (0, 1, -2, -1):
        south, north = np.deg2rad(b.lat_bnds[row])
        low = np.clip(np.deg2rad(a.lat_edges[:-1]), south, north)
        high = np.clip(np.deg2rad(a.lat_edges[1:]), south, north)
        expected = (strip * (np.sin(high) - np.sin(low))).sum() / (np.sin(north) - np.sin(south))
        got = (np.nan_to_num(out[0]) * covered[0])[row].sum() * (b.lon_edges[1] - b.lon_edges[0])
        assert got == pytest.approx(expected, rel=1e-9)


def test_edges_with_rounding_noise_make_no_slivers() -> None:
    grid = standard_grid("1deg")
    noise = np.random.default_rng(0).uniform(-1e-12, 1e-12, grid.lat_edges.size - 2)
    lat = np.concatenate([[-90.0], grid.lat_edges[1:-1] + noise, [90.0]])
    weights = conservative_weights(Grid("noisy", lat, grid.lon_edges + 1e-12), grid)
    assert weights.lat.values.size == grid.shape[0]
    assert weights.lon.values.size == grid.shape[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_data_is_kept_and_sums_are_float64(dtype: type) -> None:
    a, b = standard_grid("1deg"), standard_grid("2deg")
    values = fields(a, 2).astype(dtype)
    out, covered = masked_mean(conservative_weights(a, b), values)
    assert out.dtype == dtype
    assert covered.dtype == np.float64
    before, after = integral(a, values.astype(float), 1.0), integral(b, out.astype(float), covered)
    limit = 1e-12 if dtype is np.float64 else 1e-6
    np.testing.assert_allclose(after, before, rtol=limit)
    if dtype is np.float32:
        exact, _ = masked_mean(conservative_weights(a, b), values.astype(np.float64))
        np.testing.assert_array_equal(out, exact.astype(np.float32))


def test_further_dimensions_are_carried_along() -> None:
    a, b = standard_grid("2deg"), Grid("b", np.array([-90, 0, 90.0]), np.array([0, 360.0]))
    weights = conservative_weights(a, b)
    values = fields(a, 2, 6).reshape(3, 2, *a.shape)
    out, covered = masked_mean(weights, values)
    assert out.shape == covered.shape == (3, 2, 2, 1)
    single, _ = masked_mean(weights, values[1, 1])
    np.testing.assert_array_equal(out[1, 1], single)


def test_a_land_fraction_is_carried_over_with_its_area() -> None:
    a, b = gaussian(96, 192), standard_grid("1deg")
    land = np.random.default_rng(4).random(a.shape)
    carried = covered_fraction(conservative_weights(a, b), land)
    assert (carried * b.cell_area).sum() == pytest.approx((land * a.cell_area).sum(), rel=1e-12)


def test_weights_for_another_grid_are_refused() -> None:
    one, two, half = (standard_grid(name) for name in ("1deg", "2deg", "0.5deg"))
    weights = conservative_weights(one, two)
    weights.check(one, two)
    shifted = Grid("shifted", one.lat_edges, one.lon_edges + 0.5)
    with pytest.raises(DataError, match=r"source grid.*Make the weights again"):
        weights.check(shifted, two)
    with pytest.raises(DataError, match="target grid"):
        weights.check(one, half)


def test_what_does_not_fit_the_weights_is_refused() -> None:
    weights = conservative_weights(standard_grid("2deg"), standard_grid("1deg"))
    with pytest.raises(ValueError, match=r"values are \(3, 4\)"):
        masked_mean(weights, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="float32 or float64, got int64"):
        masked_mean(weights, np.zeros((90, 180), dtype=np.int64))
    for bad in (np.full((90, 180), 1.5), np.full((90, 180), np.nan), np.ones((2, 2))):
        with pytest.raises(ValueError, match="within"):
            masked_mean(weights, np.zeros((90, 180)), bad)


def test_without_a_place_for_machine_code_the_kernel_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def njit(**options: Any):  # what numba does in a read-only installation without a home
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(len) is len
    options = {"nogil": True, "error_model": "numpy"}
    assert asked == [{**options, "cache": True}, options]
