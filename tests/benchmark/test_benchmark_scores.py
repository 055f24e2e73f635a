"""The formulas of the scores in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.benchmark import scores
from callmip_global.benchmark.regions import REGIONS, region_area, select_regions
from callmip_global.errors import UsageError
from callmip_global.grid import EARTH_RADIUS_M, Grid


def pattern(model, reference, area):
    """The pattern of two maps, from the sums that tiles of them add up to."""
    terms = scores.pattern_terms(model, reference)
    means = {name: float(np.average(values, weights=area)) for name, values in terms.items()}
    return scores.spatial_pattern(means, len(model))


def test_an_error_of_one_sigma_scores_exp_minus_one():
    assert scores.error_score(-2.5, 2.5) == pytest.approx(np.exp(-1.0))


def test_without_a_scale_there_is_no_score():
    scale = scores.noticeable(np.array([0.0, 1e-5, 1e-3]), np.array([5.0, 300.0, 300.0]))
    assert np.isnan(scores.error_score([0.0, 0.0, 0.0], scale)).tolist() == [True, True, False]


@pytest.mark.parametrize("shift", [1, 5, 6, 11])
def test_a_shifted_cycle_scores_the_cosine_of_the_days_between_the_months(shift):
    """July's middle is day 196.5; Collier et al. (2018): (1 + cos(2 pi days / 365)) / 2."""
    cycle = np.cos(2 * np.pi * (np.arange(12) - 6) / 12.0)[:, None]
    shifted = np.roll(cycle, shift, axis=0)
    score = scores.cosine_phase_score(
        scores.month_of_maximum(shifted), scores.month_of_maximum(cycle)
    )
    days = scores.MID_MONTH_DAY[(6 + shift) % 12] - 196.5
    assert score[0] == pytest.approx(0.5 * (1 + np.cos(2 * np.pi * days / 365.0)), rel=1e-14)
    if shift == 1:
        assert score[0] == pytest.approx(0.5 * (1 + np.cos(2 * np.pi * 31.0 / 365.0)))


def test_a_flat_cycle_and_one_of_few_months_have_no_month_of_maximum():
    flat = np.full(12, 280.0)
    few = np.full(12, np.nan)
    few[:5] = [1, 2, 3, 4, 5]
    enough = np.full(12, np.nan)
    enough[:6] = [1, 2, 9, 4, 5, 6]
    months = scores.month_of_maximum(np.stack([flat, few, enough], axis=1))
    assert np.isnan(months).tolist() == [True, True, False]
    assert months[2] == 2


@given(
    values=st.lists(st.floats(-50, 50), min_size=3, max_size=8, unique=True),
    factor=st.floats(0.1, 10.0),
    offset=st.floats(-5, 5),
)
def test_the_spatial_score_sees_amplitude_and_pattern_but_no_offset(values, factor, offset):
    reference = np.array(values)
    if np.std(reference) < 0.1:
        return
    area = np.arange(1.0, 1.0 + len(values))
    sigma, correlation, count = pattern(factor * reference + offset, reference, area)
    assert count == len(values)
    assert sigma == pytest.approx(factor, rel=1e-6)
    assert correlation == pytest.approx(1.0, abs=1e-9)
    expected = 4.0 * 2.0 / (2.0 * (factor + 1.0 / factor) ** 2)
    assert scores.taylor_score(sigma, correlation) == pytest.approx(expected, rel=1e-5)


def test_spatial_pattern_of_three_cells_by_hand():
    """Areas 1, 2, 1: r = (0, 2, 4): mean 2, variance (4 + 0 + 4) / 4 = 2; m = (1, 0, 5): mean 1.5,
    variance (0.25 + 2 * 2.25 + 12.25) / 4 = 4.25; covariance (1 + 0 + 7) / 4 = 2."""
    sigma, correlation, _ = pattern([1, 0, 5], [0, 2, 4], [1, 2, 1])
    assert sigma == pytest.approx(np.sqrt(4.25 / 2.0))
    assert correlation == pytest.approx(2.0 / np.sqrt(2.0 * 4.25))


def test_a_reference_in_tiny_units_keeps_its_spatial_score():
    """In kg m-2 s-1 carbon fluxes are about 1e-8; the score may not depend on the unit."""
    reference = np.array([1.0, 2.0, 4.0])
    model = np.array([1.5, 2.5, 3.0])
    plain = pattern(model, reference, np.ones(3))
    tiny = pattern(1e-9 * model, 1e-9 * reference, np.ones(3))
    assert tiny == pytest.approx(plain)


def test_a_model_without_any_pattern_scores_zero_and_a_flat_reference_gives_none():
    sigma, correlation, _ = pattern(np.ones(3), np.arange(3.0), np.ones(3))
    assert scores.taylor_score(sigma, correlation) == 0.0
    sigma, correlation, _ = pattern(np.arange(3.0), np.ones(3), np.ones(3))
    assert np.isnan(scores.taylor_score(sigma, correlation))


def test_rmse_counts_twice_in_the_overall_score_and_a_missing_score_is_said():
    value, there, wanted = scores.COLLIER2018.overall(
        {"bias_score": 1.0, "rmse_score": 0.4, "spatial_score": 0.5, "interannual_score": np.nan}
    )
    assert value == pytest.approx((1.0 + 0.8 + 0.5) / 4.0)
    assert (there, wanted) == (3, 4)


def test_no_score_at_all_is_missing():
    value, there, wanted = scores.COLLIER2018.overall({"bias_score": np.nan})
    assert np.isnan(value)
    assert (there, wanted) == (0, 1)


def test_area_mean_of_two_cells_by_hand_skips_what_is_missing():
    assert scores.area_mean([1.0, 4.0], [2.0, 1.0]) == (2.0, 2)
    assert scores.area_mean([np.nan, 4.0], [2.0, 1.0]) == (4.0, 1)
    mean, count = scores.area_mean([np.nan, np.nan], [2.0, 1.0])
    assert np.isnan(mean)
    assert count == 0


def test_annual_data_have_no_seasonal_cycle_and_static_data_only_a_map():
    assert "seasonal_cycle_score" not in scores.COLLIER2018.applicable("yr")
    assert scores.COLLIER2018.applicable("fx") == ("bias_score", "spatial_score")
    assert scores.COLLIER2018.applicable("mon", anomaly=True) == (
        "rmse_score",
        "seasonal_cycle_score",
        "interannual_score",
    )


@given(nlat=st.integers(1, 13), nlon=st.integers(1, 7), name=st.sampled_from(sorted(REGIONS)))
def test_a_region_has_its_exact_area_on_every_grid(nlat, nlon, name):
    region = REGIONS[name]
    grid = Grid("g", np.linspace(-90, 90, nlat + 1), np.linspace(-180, 180, nlon + 1))
    south, north = np.sin(np.deg2rad([region.south, region.north]))
    exact = 2 * np.pi * EARTH_RADIUS_M**2 * (north - south)
    assert region_area(region, grid).sum() == pytest.approx(exact, rel=1e-12)


def test_an_unknown_region_names_the_known_ones():
    with pytest.raises(UsageError, match="found moon, wanted global, nh"):
        select_regions(["global", "moon"])
