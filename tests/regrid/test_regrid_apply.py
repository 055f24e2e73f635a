"""Weights applied to maps: means, integrals and extremes, whatever is missing and however cut."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from grid_cases import gaussian, grids, pole_centred
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.grid import Grid, standard_grid
from callmip_global.regrid.apply import (
    FixedMean,
    covered_fraction,
    integrals,
    masked_mean,
    survey,
)
from callmip_global.regrid.weights import CellWeights, Weights, conservative_weights

EPS = np.finfo(np.float64).eps


def regular(n_lat: int, n_lon: int, start: float = -180.0) -> Grid:
    edges = np.linspace(-90.0, 90.0, n_lat + 1)
    return Grid("regular", edges, start + np.linspace(0.0, 360.0, n_lon + 1))


REAL = {
    "half the cells": (regular(36, 72), regular(18, 36)),
    "half the cells, across the edge": (regular(36, 72), regular(18, 36, 0.0)),
    "half the cells, pairs cut apart": (regular(36, 72), regular(18, 36, 2.5)),
    "twice the cells": (regular(18, 36), regular(36, 72)),
    "twice the cells, the last not": (
        regular(18, 36),
        Grid("odd", np.linspace(-90.0, 90.0, 37), np.append(np.linspace(-180.0, 170.0, 71), 180.0)),
    ),
    "the same cells": (regular(18, 36), regular(18, 36)),
    "a fifth of the cells": (regular(90, 180), regular(18, 36)),
    "Gaussian": (gaussian(24, 48), regular(36, 72)),
    "pole-centred": (pole_centred(25, 48), regular(36, 72)),
    "part of the target": (
        Grid("north", np.linspace(-60.0, 90.0, 31), np.linspace(-20.0, 100.0, 41)),
        regular(36, 72),
    ),
}


def matrix(weights: Weights) -> np.ndarray:
    return np.kron(weights.lat.dense(), weights.lon.dense())


def as_cells(weights: Weights) -> CellWeights:
    dense = matrix(weights)
    rows, columns = np.nonzero(dense)
    return CellWeights(
        weights.source_shape,
        weights.target_shape,
        np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=dense.shape[0]))]),
        columns,
        dense[rows, columns],
        weights.source_digest,
        weights.target_digest,
        weights.edge_model,
    )


def maps(shape: tuple[int, int], seed: int, n: int = 3, share: float = 0.5) -> np.ndarray:
    """Maps with gaps that change, float64, of both signs."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, *shape)) * 10.0 ** rng.integers(-6, 6)
    values[rng.random(values.shape) > share] = np.nan
    return values


def fractions(shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.2, 0.0, rng.random(shape))


def expected(
    weights: Weights, values: np.ndarray, fraction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The definition, with a dense matrix."""
    dense, n = matrix(weights), len(values)
    part = np.where(np.isnan(values), 0.0, np.broadcast_to(fraction, values.shape))
    num = (part * np.nan_to_num(values)).reshape(n, -1) @ dense.T
    den = part.reshape(n, -1) @ dense.T
    out = np.divide(num, den, out=np.full(num.shape, np.nan), where=den > 0.0)
    shape = (n, *weights.target_shape)
    return out.reshape(shape), den.reshape(shape)


# --- means: laws ---

CASES = st.tuples(
    grids(), grids(whole=False), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0])
)


@settings(max_examples=60, deadline=None)
@given(CASES, st.booleans(), st.sampled_from(["float32", "float64"]), st.booleans())
def test_a_fixed_mask_gives_the_bits_that_a_changing_one_gives(
    case: tuple, whole: bool, dtype: str, cells: bool
) -> None:
    source, target, seed, share = case
    weights = conservative_weights(source, target)
    chosen = as_cells(weights) if cells else weights
    values = maps(source.shape, seed, share=share).astype(dtype)
    valid = ~np.isnan(values[0])
    values = np.where(valid, np.nan_to_num(values), np.nan).astype(dtype)
    weight = np.ones(source.shape) if whole else fractions(source.shape, seed)
    fixed = FixedMean(chosen, valid, weight)
    out, covered = masked_mean(chosen, values, None if whole else weight)
    assert fixed.mean(values).tobytes() == out.tobytes()
    assert all(np.array_equal(fixed.covered, one) for one in covered)
    assert out.dtype == dtype
    # Weights where nothing is valid are not looked at.
    weight = np.where(valid, weight, np.nan)
    assert FixedMean(chosen, valid, weight).mean(values).tobytes() == out.tobytes()


@settings(max_examples=60, deadline=None)
@given(CASES, st.booleans())
def test_means_are_what_the_definition_says(case: tuple, each: bool) -> None:
    source, target, seed, share = case
    weights = conservative_weights(source, target)
    values = maps(source.shape, seed, share=share)
    fraction = fractions(values.shape if each else source.shape, seed)
    check_definition(weights, values, fraction)


def check_definition(weights: Weights, values: np.ndarray, fraction: np.ndarray) -> None:
    wanted, covered = expected(weights, values, fraction)
    scale = np.nanmax(np.abs(values), initial=0.0)
    for chosen in (weights, as_cells(weights)):
        out, part = masked_mean(chosen, values, fraction)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(wanted))
        np.testing.assert_allclose(part, np.minimum(covered, 1.0), rtol=1e-14, atol=0)
        assert part.max(initial=0.0) <= 1.0
        np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-14 * scale)


@pytest.mark.parametrize("name", REAL)
def test_means_between_real_grids_are_what_the_definition_says(name: str) -> None:
    weights = conservative_weights(*REAL[name])
    values = maps(weights.source_shape, 1)
    check_definition(weights, values, fractions(weights.source_shape, 2))
    wanted, covered = expected(weights, values, np.ones(weights.source_shape))
    out, part = masked_mean(weights, values)
    np.testing.assert_allclose(part, np.minimum(covered, 1.0), rtol=1e-14)
    np.testing.assert_allclose(out, wanted, rtol=1e-13, atol=1e-13 * np.nanmax(np.abs(values)))
    valid = ~np.isnan(values[0])
    fixed = FixedMean(weights, valid, np.ones(valid.shape))
    assert fixed.mean(values[:1]).tobytes() == out[:1].tobytes()


@settings(max_examples=60, deadline=None)
@given(CASES, st.floats(-1e6, 1e6, width=32))
def test_a_constant_stays_and_nothing_is_beyond_its_sources(case: tuple, constant: float) -> None:
    source, target, seed, share = case
    weights = conservative_weights(source, target)
    values = maps(source.shape, seed, share=share)
    fraction = fractions(source.shape, seed)
    flat = np.where(np.isnan(values), np.nan, constant)
    out, covered = masked_mean(weights, flat, fraction)
    assert np.all(np.isnan(out) == (covered == 0.0))
    found = out[~np.isnan(out)]
    np.testing.assert_allclose(found, constant, rtol=16 * EPS, atol=0)
    single, _ = masked_mean(weights, flat.astype(np.float32), fraction)
    assert np.all(single[~np.isnan(single)] == np.float32(constant))
    out, _ = masked_mean(weights, values, fraction)
    touched = (matrix(weights) > 0.0)[None] & ((fraction > 0.0) & ~np.isnan(values)).reshape(
        len(values), 1, -1
    )
    flat = np.nan_to_num(values).reshape(len(values), 1, -1)
    low = np.where(touched, flat, np.inf).min(axis=-1).reshape(out.shape)
    high = np.where(touched, flat, -np.inf).max(axis=-1).reshape(out.shape)
    slack = 16 * EPS * np.nanmax(np.abs(values), initial=0.0)
    some = ~np.isnan(out)
    assert np.all(out[some] >= low[some] - slack)
    assert np.all(out[some] <= high[some] + slack)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cells", [False, True], ids=["axes", "cells"])
def test_time_cut_anywhere_gives_the_same_bytes(dtype: str, cells: bool) -> None:
    source, target = REAL["Gaussian"]
    weights = conservative_weights(source, target)
    chosen = as_cells(weights) if cells else weights
    values = maps(source.shape, 3, n=11).astype(dtype)
    each = fractions(values.shape, 4)
    valid = ~np.isnan(values[0])
    filled = np.where(valid, np.nan_to_num(values), np.nan).astype(dtype)
    fixed = FixedMean(chosen, valid, each[0])
    out, covered = masked_mean(chosen, values, each)
    whole = survey(values, each, source.cell_area, valid)
    for cut in (1, 4, 10):
        parts = [slice(0, cut), slice(cut, None)]
        for got, wanted in (
            ([masked_mean(chosen, values[p], each[p])[0] for p in parts], out),
            ([masked_mean(chosen, values[p], each[p])[1] for p in parts], covered),
            ([fixed.mean(filled[p]) for p in parts], fixed.mean(filled)),
            ([survey(values[p], each[p], source.cell_area).total for p in parts], whole.total),
            ([integrals(values[p], each[p], source.cell_area)[1] for p in parts], whole.absolute),
        ):
            assert np.concatenate(got).tobytes() == wanted.tobytes()


def test_threads_share_one_fixed_mean() -> None:
    source, target = REAL["pole-centred"]
    values = maps(source.shape, 5, n=1)
    valid = ~np.isnan(values[0])
    values = np.repeat(values, 40, axis=0) * np.arange(1.0, 41.0)[:, None, None]
    fixed = FixedMean(conservative_weights(source, target), valid, np.ones(valid.shape))
    wanted = fixed.mean(values)
    out = np.empty_like(wanted)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: fixed.mean(values[k : k + 1], out[k : k + 1]), range(40)))
    assert out.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("column", [0, 47])
def test_an_infinity_reaches_no_cell_that_it_does_not_touch(column: int) -> None:
    weights = conservative_weights(*REAL["Gaussian"])
    values = np.ones((1, *weights.source_shape))
    values[0, :, column] = np.inf
    out, _ = masked_mean(weights, values)
    touched = weights.lon.dense()[:, column] > 0.0
    assert np.all(np.isfinite(out[0]) == ~touched)
    fixed = FixedMean(weights, np.ones(weights.source_shape, dtype=bool), np.ones(values.shape[1:]))
    assert fixed.mean(values).tobytes() == out.tobytes()


# --- means: by hand ---


def test_four_cells_into_one_by_hand() -> None:
    source = Grid("4", np.array([-90.0, 0.0, 90.0]), np.array([0.0, 180.0, 360.0]))
    target = Grid("1", np.array([-90.0, 90.0]), np.array([0.0, 360.0]))
    weights = conservative_weights(source, target)
    values = np.array([[1.0, 2.0], [np.nan, 5.0]], dtype=np.float32)
    out, covered = masked_mean(weights, values)
    assert out.item() == np.float32(8.0 / 3.0)
    assert covered.item() == 0.75
    # A tenth, three tenths and a half of the cells are land: 0.9 of four, (0.1 + 0.6 + 2.5) / 0.9.
    land = np.array([[0.1, 0.3], [1.0, 0.5]])
    fixed = FixedMean(weights, ~np.isnan(values), land)
    assert fixed.mean(values).item() == np.float32(3.2 / 0.9)
    assert fixed.covered.item() == pytest.approx(0.9 / 4.0, rel=1e-15)
    assert covered_fraction(weights, land).item() == pytest.approx(1.9 / 4.0, rel=1e-15)


# --- means: where they are written ---


def test_results_go_where_they_are_wanted_and_take_no_further_memory() -> None:
    source, target = REAL["half the cells"]
    weights = conservative_weights(source, target)
    values = np.repeat(maps(source.shape, 6, n=1), 50, axis=0).astype(np.float32)
    valid = ~np.isnan(values[0])
    whole = np.ones(valid.shape)
    fixed = FixedMean(weights, valid, whole)
    out = np.empty((50, *target.shape), dtype=np.float32)
    covered = np.empty_like(out)
    wanted, part = masked_mean(weights, values, whole)
    given_back = masked_mean(weights, values, whole, out=out, covered=covered)
    assert given_back[0] is out
    assert given_back[1] is covered
    assert out.tobytes() == wanted.tobytes()
    assert covered.tobytes() == part.astype(np.float32).tobytes()
    calls = {
        "fixed": (lambda: fixed.mean(values), out.nbytes),
        "fixed into out": (lambda: fixed.mean(values, out), 0),
        "masked into out": (
            lambda: masked_mean(weights, values, whole, out=out, covered=covered),
            0,
        ),
    }
    for name, (call, allowed) in calls.items():
        call()
        tracemalloc.start()
        kept = call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < allowed + 50_000, name
        del kept
    assert fixed.mean(values, out) is out


def test_what_does_not_fit_is_refused() -> None:
    source, target = REAL["the same cells"]
    weights = conservative_weights(source, target)
    valid = np.ones(source.shape, dtype=bool)
    values = np.zeros((2, *source.shape), dtype=np.float32)
    fixed = FixedMean(weights, valid, np.ones(source.shape))
    for out in (
        np.empty((1, *target.shape), dtype=np.float32),
        np.empty((2, *target.shape)),
        np.empty((2, *target.shape[::-1]), dtype=np.float32).transpose(0, 2, 1),
    ):
        with pytest.raises(ValueError, match="out must be contiguous"):
            fixed.mean(values, out)
        with pytest.raises(ValueError, match="out must be contiguous"):
            masked_mean(weights, values, out=out)
    with pytest.raises(ValueError, match="covered must be contiguous"):
        masked_mean(weights, values, covered=np.empty((1, *target.shape)))
    with pytest.raises(ValueError, match="values are"):
        fixed.mean(values[:, 1:])
    with pytest.raises(ValueError, match="the weights take"):
        FixedMean(weights, valid[1:], np.ones(source.shape))
    for bad in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="within"):
            FixedMean(weights, valid, np.full(source.shape, bad))


# --- surveys ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cells", [1, 7, 1024, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("each", [False, True], ids=["one weight", "a weight for each map"])
def test_a_survey_says_what_numpy_says(dtype: str, cells: int, each: bool) -> None:
    values = maps((1, cells), cells, n=5, share=0.7).astype(dtype)
    values[2] = np.nan
    values[4] = np.abs(values[4])
    weight = fractions(values.shape if each else values.shape[1:], 7)
    area = np.random.default_rng(8).random((1, cells)) * 1e10
    valid = ~np.isnan(values[0])
    values[1] = np.where(valid, 3.0, np.nan)
    found = survey(values, weight, area, valid)
    part = np.nan_to_num(values.astype(np.float64)) * weight * area
    scale = np.abs(part).sum(axis=(1, 2))
    assert np.all(np.abs(found.total - part.sum(axis=(1, 2))) <= 1e-14 * scale)
    np.testing.assert_allclose(found.absolute, scale, rtol=1e-14)
    again = integrals(values, weight, area)
    assert [one.tobytes() for one in again] == [found.total.tobytes(), found.absolute.tobytes()]
    same = np.all(np.isnan(values) != valid, axis=(1, 2))
    assert found.same.tolist() == same.tolist()
    assert same[:2].all()
    if np.isnan(values).all():
        assert np.isnan([found.low, found.high]).all()
        assert found.low_count == 0
        return
    assert (found.low, found.high) == (np.nanmin(values), np.nanmax(values))
    assert found.low_count == np.count_nonzero(values == np.nanmin(values))


def test_one_cell_that_differs_is_seen_wherever_it_is() -> None:
    shape = (3, 2000)
    values, area = np.ones((3, *shape), dtype=np.float32), np.ones(shape)
    valid = np.ones(shape, dtype=bool)
    for place in (0, 1023, 4096, 5999):
        gap, number = values.copy(), values.copy()
        gap[1].reshape(-1)[place] = np.nan
        assert survey(gap, area, area, valid).same.tolist() == [True, False, True]
        assert survey(gap, area, area).same.tolist() == [True, False, True]
        other = valid.copy()
        other.reshape(-1)[place] = False
        number[:, ~other] = np.nan
        number[2] = 1.0
        assert survey(number, area, area, other).same.tolist() == [True, True, False]


def test_fill_values_and_infinities_show_in_a_survey() -> None:
    shape = (60, 100)
    values = np.random.default_rng(9).random((4, *shape)).astype(np.float32)
    values[:, :20] = -9999.0
    values[0, 30] = np.nan
    values[3, 40, 2] = -9999.0
    area = np.ones(shape)
    found = survey(values, area, area)
    assert (found.low, found.low_count) == (-9999.0, 4 * 2000 + 1)
    values[2, 50, 1] = np.inf
    values[2, 50, 2] = np.nan
    found = survey(values, area, area)
    assert found.high == np.inf
    assert np.isfinite(found.absolute).tolist() == [True, True, False, True]
    values[1, 50, 1] = -np.inf
    found = survey(values, area, area)
    assert (found.low, found.low_count) == (-np.inf, 1)
    only = np.full((1, *shape), np.inf)
    found = survey(only, area, area)
    assert (found.low, found.high, found.low_count) == (np.inf, np.inf, 6000)
    nothing = survey(np.full((2, *shape), np.nan), np.full(shape, np.nan), area)
    assert np.isnan([nothing.low, nothing.high]).all()
    assert nothing.total.tolist() == [0.0, 0.0]


def test_the_integral_of_the_means_is_that_of_the_maps() -> None:
    source, target = REAL["pole-centred"][0], standard_grid("2deg")
    values = maps(source.shape, 10)
    fraction = fractions(source.shape, 11)
    out, covered = masked_mean(conservative_weights(source, target), values, fraction)
    before = survey(values, fraction, source.cell_area)
    after = integrals(out, covered, target.cell_area)[0]
    assert np.all(np.abs(after - before.total) <= 1e-14 * before.absolute)
