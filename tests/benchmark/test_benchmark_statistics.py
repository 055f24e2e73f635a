"""One pass, any blocks, one mask: the sums behind every score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.benchmark.statistics import PairSums

DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], dtype=float)


def gathered(reference, models, days, slots, guess=0.0, n_slots=12, cuts=()):
    """Sums of the series, added in the blocks that ``cuts`` makes."""
    n_models, _, n_cells = models.shape
    sums = PairSums.start(np.full(n_cells, guess), np.full((n_models, n_cells), guess), n_slots)
    for part in np.split(np.arange(len(days)), cuts):
        sums.add(reference[part], models[:, part], days[part], slots[part])
    return sums


def series(seed: int, years: int = 3, n_cells: int = 5, n_models: int = 2, gaps: float = 0.2):
    rng = np.random.default_rng(seed)
    n = 12 * years
    reference = rng.normal(300.0, 5.0, (n, n_cells))
    models = reference + rng.normal(1.0, 2.0, (n_models, n, n_cells))
    reference[rng.random(reference.shape) < gaps] = np.nan
    models[rng.random(models.shape) < gaps / 2] = np.nan
    return reference, models, np.tile(DAYS, years), np.tile(np.arange(12), years)


def assert_same(first, second):
    one, two = first.moments(), second.moments()
    for name in one.__dataclass_fields__:
        np.testing.assert_allclose(
            getattr(one, name), getattr(two, name), rtol=1e-9, atol=1e-9, err_msg=name
        )


@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 36), max_size=3).map(sorted),
    guess=st.sampled_from([0.0, 250.0, 301.5]),
)
@settings(max_examples=25, deadline=None)
def test_blocks_of_any_size_about_any_guess_give_the_sums_of_one_pass(seed, cuts, guess):
    data = series(seed)
    assert_same(gathered(*data, guess=300.0), gathered(*data, guess=guess, cuts=cuts))


@given(seed=st.integers(0, 1000), cut=st.integers(0, 36))
@settings(max_examples=25, deadline=None)
def test_merging_the_sums_of_two_blocks_equals_one_pass(seed, cut):
    reference, models, days, slots = series(seed)
    first = gathered(reference[:cut], models[:, :cut], days[:cut], slots[:cut], guess=299.0)
    second = gathered(reference[cut:], models[:, cut:], days[cut:], slots[cut:], guess=-3.0)
    assert_same(gathered(reference, models, days, slots, guess=300.0), first.merged(second))


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_moments_are_those_of_the_common_steps(seed):
    reference, models, days, slots = series(seed)
    moments = gathered(reference, models, days, slots).moments()
    common = np.isfinite(reference) & np.isfinite(models).all(axis=0)
    for cell in range(reference.shape[1]):
        used = common[:, cell]
        w, r = days[used], reference[used, cell]
        assert moments.count[cell] == used.sum()
        for k in range(len(models)):
            m = models[k, used, cell]
            mean_r, mean_m = np.average(r, weights=w), np.average(m, weights=w)
            assert moments.mean_model[k, cell] == pytest.approx(mean_m, rel=1e-12)
            assert moments.covariance[k, cell] == pytest.approx(
                np.average((r - mean_r) * (m - mean_m), weights=w), rel=1e-6
            )
            cycle = {
                s: np.average(m[slots[used] == s], weights=w[slots[used] == s])
                for s in set(slots[used])
            }
            departures = m - np.array([cycle[s] for s in slots[used]])
            assert moments.interannual_variance_model[k, cell] == pytest.approx(
                np.average(departures**2, weights=w), rel=1e-6
            )


def test_a_gap_of_one_model_leaves_the_step_out_for_all():
    reference = np.array([[1.0], [2.0], [6.0]])
    models = np.array([[[1.0], [2.0], [6.0]], [[1.0], [np.nan], [6.0]]])
    sums = gathered(reference, models, np.ones(3), np.zeros(3, int), n_slots=1)
    moments = sums.moments()
    assert moments.count.tolist() == [2]
    assert moments.mean_reference.tolist() == [3.5]
    assert moments.mean_model.tolist() == [[3.5], [3.5]]


def test_steps_count_by_their_length():
    """A value of 4 over 31 days and of 1 over 28: (4*31 + 28) / 59 and 31*28*9 / 59^2 by hand."""
    reference = np.array([[4.0], [1.0]])
    sums = gathered(reference, reference[None], np.array([31.0, 28.0]), np.array([0, 1]))
    moments = sums.moments()
    assert moments.mean_reference[0] == pytest.approx(152.0 / 59.0, rel=1e-15)
    assert moments.variance_reference[0] == pytest.approx(31 * 28 * 9 / 59**2, rel=1e-12)


def test_a_cell_without_a_common_step_is_missing_and_not_zero():
    reference = np.array([[np.nan], [np.nan]])
    moments = gathered(reference, np.ones((1, 2, 1)), np.ones(2), np.array([0, 1])).moments()
    assert np.isnan(moments.mean_reference[0])
    assert np.isnan(moments.mean_model[0, 0])
    assert moments.count[0] == 0


def test_a_small_variance_of_large_numbers_keeps_its_digits():
    rng = np.random.default_rng(1)
    small = rng.normal(0.0, 1e-4, (240, 1))
    reference = 300.0 + small
    exact = np.average((small - small.mean()) ** 2)
    sums = gathered(reference, reference[None], np.ones(240), np.tile(np.arange(12), 20), 300.0)
    assert sums.moments().variance_reference[0] == pytest.approx(exact, rel=1e-8)
