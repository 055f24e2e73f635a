"""Classes on another grid: the one with the largest area, counted cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.grid import Grid
from callmip_global.regrid import conservative_weights
from callmip_global.regrid.categories import largest_category


def grid(rows: int, columns: int) -> Grid:
    return Grid("g", np.linspace(-90, 90, rows + 1), np.linspace(-180, 180, columns + 1))


SOURCE, TARGET = grid(6, 8), grid(4, 5)
WEIGHTS = conservative_weights(SOURCE, TARGET)
DENSE = np.kron(WEIGHTS.lat.dense(), WEIGHTS.lon.dense())


@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float32", "float64"]))
@settings(max_examples=50, deadline=None)
def test_no_other_class_has_more_area_and_of_equal_ones_the_smallest_is_taken(
    seed: int, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([np.nan, -1.0, 2.0, 5.0, 7.0], size=(2, *SOURCE.shape)).astype(dtype)
    fraction = rng.choice([0.0, 0.3, 1.0], size=SOURCE.shape)
    out, covered = largest_category(WEIGHTS, values, fraction)
    assert out.dtype == values.dtype
    for step in range(2):
        areas = {
            name: DENSE @ (fraction * (values[step] == name)).ravel() for name in (-1, 2, 5, 7)
        }
        table = np.stack(list(areas.values()))
        np.testing.assert_allclose(covered[step].ravel(), table.sum(axis=0), atol=1e-12)
        wanted = np.array(list(areas))[np.argmax(table > table.max(axis=0) - 1e-12, axis=0)]
        wanted = np.where(table.sum(axis=0) > 0.0, wanted, np.nan)
        np.testing.assert_array_equal(out[step].ravel(), wanted)


@pytest.mark.parametrize("order", [[1, 2, 3, 4], [4, 3, 2, 1], [3, 1, 4, 2]])
def test_four_equal_quarters_give_the_smallest_number_in_any_order(order: list[int]) -> None:
    weights = conservative_weights(grid(2, 2), grid(1, 1))
    out, covered = largest_category(weights, np.array(order, dtype=float).reshape(1, 2, 2))
    assert out.item() == 1.0
    assert covered.item() == pytest.approx(1.0, rel=1e-12)


def test_two_small_parts_of_one_class_outweigh_a_larger_one_of_another() -> None:
    weights = conservative_weights(grid(2, 2), grid(1, 1))
    values = np.array([[[3.0, 8.0], [8.0, np.nan]]])
    fraction = np.array([[0.9, 0.5], [0.5, 1.0]])
    out, covered = largest_category(weights, values, fraction)
    assert out.item() == 8.0
    assert covered.item() == pytest.approx(1.9 / 4)
