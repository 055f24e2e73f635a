"""Ensembles and stated uncertainties: ranks, spread and coverage, by laws and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import GRID, axis_of, benchmark, cycles, number, rows_of, write_run
from benchmark_cases import write_product as product_of
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.benchmark import compare
from callmip_global.benchmark.ensemble import Judged, ensembles_of
from callmip_global.benchmark.inputs import Run
from callmip_global.benchmark.parts import Parts
from callmip_global.benchmark.statistics import PairSums
from callmip_global.grid import Grid
from callmip_global.store import StoreName, create_store, protocol_template, store_attributes
from callmip_global.variables import UNCERTAINTY

QUANTITIES = ("ensemble_spread", "ensemble_rmse", "spread_skill", "range_coverage")


def members(n: int, stage: str = "Posterior", model: str = "M.v1") -> list[Run]:
    return [Run(model, "S3", stage, k, "g", "", []) for k in range(1, n + 1)]


def judged(reference, models, days, area=None, *, cuts=(), tiles=(), anomaly=False, static=False):
    """One region of all cells; blocks of time at ``cuts``, tiles of cells at ``tiles``."""
    runs, n_cells = members(len(models)), reference.shape[1]
    area = np.ones(n_cells) if area is None else np.asarray(area, float)
    found = Judged.empty(runs, {}, "hfls", 1, static=static, anomaly=anomaly)
    for cells in np.split(np.arange(n_cells), tiles):
        tile = found.tile(len(cells))
        sums = PairSums.empty(len(models), len(cells), 1)
        for steps in np.split(np.arange(len(days)), cuts):
            at = np.ix_(steps, cells)
            block = np.ascontiguousarray(models[:, at[0], at[1]])
            found.add_block(tile, reference[at], block, [], days[steps])
            sums.add(reference[at], block, days[steps], np.zeros(len(steps), int))
        there = np.flatnonzero(sums.count[0] > 0)
        moments = sums.of_cells(there).moments()
        inside = area[cells][there]
        found.add_tile(tile, there, Parts.of(inside[None], inside), inside, moments)
    return found


def numbers(found: Judged) -> dict[str, float]:
    runs = members(10)
    return {quantity: value for _, quantity, value, _ in found.rows(runs, 0)}


def histogram(found: Judged) -> list[float]:
    (entry,) = found.entries(["all"])
    shares: list[float] = entry["rank_histogram"]["all"]
    return shares


def random_case(seed: int, n: int = 4, gaps: float = 0.1):
    rng = np.random.default_rng(seed)
    reference = rng.normal(10.0, 2.0, (30, 7))
    models = reference + rng.normal(0.5, 1.0, (n, 30, 7))
    # Whole numbers now and then: members that equal each other and the product.
    reference[:5], models[:, :5] = np.round(reference[:5]), np.round(models[:, :5])
    models[rng.random(models.shape) < gaps] = np.nan
    return reference, models, rng.uniform(28.0, 31.0, 30), rng.uniform(1.0, 3.0, 7)


# --- laws -------------------------------------------------------------------------------------


def test_a_product_that_could_be_a_member_has_a_flat_histogram_and_a_spread_equal_to_the_error():
    rng = np.random.default_rng(7)
    n, shape = 5, (400, 50)
    truth = rng.normal(100.0, 20.0, shape)
    drawn = truth + rng.normal(0.0, 3.0, (n + 1, *shape))
    found = judged(drawn[0], drawn[1:], np.ones(400))
    # 20,000 independent ranks: a share of 1/6 has a standard error of 0.0026.
    assert histogram(found) == pytest.approx([1 / 6] * 6, abs=4 * 0.0027)
    values = numbers(found)
    assert values["spread_skill"] == pytest.approx(1.0, abs=0.02)
    assert values["ensemble_spread"] == pytest.approx(3.0, rel=0.01)
    assert values["range_coverage"] == pytest.approx(4 / 6, abs=4 * 0.0034)


def test_members_that_agree_too_well_are_told_by_a_u_and_a_ratio_below_one():
    rng = np.random.default_rng(8)
    drawn = rng.normal(0.0, 1.0, (5, 400, 20))
    drawn[1:] *= 0.3
    found = judged(drawn[0], drawn[1:], np.ones(400))
    shares, values = histogram(found), numbers(found)
    assert min(shares[0], shares[-1]) > 2 * max(shares[1:-1])
    assert values["spread_skill"] < 0.5
    assert values["range_coverage"] < 3 / 5 - 0.2


@given(
    seed=st.integers(0, 500),
    cuts=st.lists(st.integers(0, 30), max_size=2).map(sorted),
    tiles=st.lists(st.integers(0, 7), max_size=2).map(sorted),
    anomaly=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_blocks_and_tiles_add_up_to_the_same(seed, cuts, tiles, anomaly):
    reference, models, days, area = random_case(seed)
    whole = judged(reference, models, days, area, anomaly=anomaly)
    pieces = judged(reference, models, days, area, cuts=cuts, tiles=tiles, anomaly=anomaly)
    for one, other in zip(whole.sums, pieces.sums, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert whole.cells[0].tolist() == pieces.cells[0].tolist()


@given(seed=st.integers(0, 500), order=st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_members_changes_nothing_and_the_shares_sum_to_one(seed, order):
    reference, models, days, area = random_case(seed)
    one = judged(reference, models, days, area)
    other = judged(reference, models[list(order)], days, area)
    assert sum(histogram(one)) == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(one.sums[0], other.sums[0], rtol=1e-12)


@given(seed=st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_sums_are_those_of_the_common_steps_alone(seed):
    reference, models, days, area = random_case(seed)
    common = np.isfinite(models).all(axis=0)
    weight = np.where(common, days[:, None] * area, 0.0)
    filled = np.where(common, models, 0.0)
    variance = (weight * filled.var(axis=0, ddof=1)).sum() / weight.sum()
    error = (weight * (filled.mean(axis=0) - reference) ** 2).sum() / weight.sum()
    values = numbers(judged(reference, models, days, area))
    assert values["ensemble_spread"] == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert values["ensemble_rmse"] == pytest.approx(math.sqrt(error), rel=1e-9)
    assert values["spread_skill"] == pytest.approx(math.sqrt(5 / 4 * variance / error), rel=1e-9)


@given(seed=st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_anomalies_are_departures_of_every_member_and_of_the_product_from_its_own_mean(seed):
    reference, models, days, area = random_case(seed)
    common = np.isfinite(models).all(axis=0)
    step = np.where(common, days[:, None], 0.0)
    departures = []
    for values in (reference, *models):
        mean = np.nansum(step * values, axis=0) / step.sum(axis=0)
        departures.append(np.where(common, values - mean, 0.0))
    weight = step * area
    r, m = departures[0], np.array(departures[1:])
    variance = (weight * m.var(axis=0, ddof=1)).sum() / weight.sum()
    error = (weight * (m.mean(axis=0) - r) ** 2).sum() / weight.sum()
    found = judged(reference, models + np.arange(4)[:, None, None], days, area, anomaly=True)
    values = numbers(found)
    assert values["ensemble_spread"] == pytest.approx(math.sqrt(variance), rel=1e-6)
    assert values["ensemble_rmse"] == pytest.approx(math.sqrt(error), rel=1e-6)
    assert "range_coverage" not in values
    assert found.entries(["all"]) == []


# --- by hand ----------------------------------------------------------------------------------


def test_two_steps_of_one_cell_by_hand():
    """Members 1, 2, 6 (mean 3, variance 7), product 4 over 31 days: two below. Members 5, 5, 8
    (mean 6, variance 3), product 5 over 28 days: none below and two equal, a third each."""
    models = np.array([[[1.0], [5.0]], [[2.0], [5.0]], [[6.0], [8.0]]])
    found = judged(np.array([[4.0], [5.0]]), models, np.array([31.0, 28.0]))
    third = 28.0 / 3.0
    assert histogram(found) == pytest.approx(
        [third / 59, third / 59, (31 + third) / 59, 0.0], rel=1e-12
    )
    variance, error = (31 * 7 + 28 * 3) / 59, (31 * 1 + 28 * 1) / 59
    assert numbers(found) == pytest.approx(
        {
            "ensemble_spread": math.sqrt(variance),
            "ensemble_rmse": math.sqrt(error),
            "spread_skill": math.sqrt(4 / 3 * variance / error),
            "range_coverage": 1.0 - third / 59,
        },
        rel=1e-12,
    )


def test_where_all_are_the_same_every_rank_is_as_likely():
    same = np.zeros((3, 1, 1))
    found = judged(np.zeros((1, 1)), same, np.ones(1))
    assert histogram(found) == pytest.approx([0.25] * 4)
    assert numbers(found)["range_coverage"] == pytest.approx(0.5)
    assert math.isnan(numbers(found)["spread_skill"])


def test_two_members_are_no_ensemble_and_a_run_without_number_is_no_member():
    runs = [
        *members(2, "Prior"),
        *members(3),
        Run("M.v1", "S3", "Posterior", None, "g", "", []),
        *members(2, model="N.v1"),
    ]
    (found,) = ensembles_of(runs)
    assert found.identity == ("M.v1", "S3", "Posterior", "ensemble")
    assert found.members == (2, 3, 4)


# --- through the benchmark --------------------------------------------------------------------

YEARS = (2001, 2003)


def ensemble(folder: Path, count: int = 4, spread: float = 2.0, **options) -> list[Path]:
    rng = np.random.default_rng(3)
    return [
        write_run(
            folder,
            cycles(3) + rng.normal(0.0, spread, (36, *GRID.shape)),
            stage="Posterior",
            member=f"_m{k:03d}",
            **options,
        )
        for k in range(1, count + 1)
    ]


def add_sigma(path: Path, sigma: np.ndarray, variable: str = "hfls", **attributes: str) -> None:
    name = variable + UNCERTAINTY
    sigma = np.broadcast_to(sigma, (36, *GRID.shape))
    ds = xr.Dataset({name: (("time", "lat", "lon"), sigma, attributes)})
    ds.to_netcdf(path, mode="a")


def entry_of(out: Path, frequency: str = "mon") -> dict:
    summary = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
    (entry,) = (c for c in summary["comparisons"] if c["frequency"] == frequency)
    return entry


def test_an_ensemble_has_rows_of_its_own_and_a_histogram_for_each_region(tmp_path):
    truth = cycles(3)
    runs = [write_run(tmp_path, truth + 1.0), *ensemble(tmp_path)]
    summary = benchmark(runs, [product_of(tmp_path, truth)], tmp_path / "out")
    assert summary["problems"] == []
    where = {"model": "M.v1", "stage": "Posterior", "member": "ensemble"}
    found = {q: number(tmp_path / "out", q, **where) for q in QUANTITIES}
    rows = rows_of(tmp_path / "out")
    units = {r["quantity"]: r["units"] for r in rows if r["member"] == "ensemble"}
    assert units == dict(zip(QUANTITIES, ("W m-2", "W m-2", "1", "1"), strict=True))
    assert {r["stage"] for r in rows if r["member"] == "ensemble"} == {"Posterior"}
    # The product is the truth that the members scatter about: an error of 2 / sqrt(4).
    assert found["ensemble_spread"] == pytest.approx(2.0, rel=0.05)
    assert found["ensemble_rmse"] == pytest.approx(1.0, rel=0.05)
    (said,) = entry_of(tmp_path / "out")["ensembles"]
    assert said["members"] == 4
    assert said["stage"] == "Posterior"
    assert set(said["rank_histogram"]) >= {"global", "tropics"}
    for shares in said["rank_histogram"].values():
        assert len(shares) == 5
        assert sum(shares) == pytest.approx(1.0)
    shares = said["rank_histogram"]["global"]
    assert found["range_coverage"] == pytest.approx(1.0 - shares[0] - shares[-1])


def test_tiles_of_the_map_give_the_same_rows(tmp_path, monkeypatch):
    runs = ensemble(tmp_path)
    add_sigma(runs[0], np.float32(2.0), units="W m-2")
    product = product_of(tmp_path, cycles(3))
    benchmark(runs, [product], tmp_path / "whole")
    boxes = [(slice(i, i + 3), slice(0, 8)) for i in (0, 3)]
    monkeypatch.setattr(compare, "_tiles", lambda *_: boxes)
    monkeypatch.setattr(compare, "_block_steps", lambda *_: 20)
    benchmark(runs, [product], tmp_path / "tiles")
    whole, tiles = rows_of(tmp_path / "whole"), rows_of(tmp_path / "tiles")
    new = {*QUANTITIES, "uncertainty", "within_1sd_coverage"}
    assert {r["quantity"] for r in whole} >= new
    for one, other in zip(whole, tiles, strict=True):
        if one["quantity"] in new:
            assert float(one["value"]) == pytest.approx(float(other["value"]), rel=1e-9)


def test_a_static_product_is_held_against_the_time_means(tmp_path):
    """Members 1, 2 and 6 (all the time, give or take a cycle) and a map of 4."""
    wave = 5.0 * np.cos(2 * np.pi * np.arange(36) / 12)[:, None, None] * np.ones(GRID.shape)
    # All months count alike only where they are as long: a calendar of 30 days each.
    runs = [
        write_run(
            tmp_path, wave + level, stage="Posterior", member=f"_m00{level}", calendar="360_day"
        )
        for level in (1, 2, 6)
    ]
    add_sigma(runs[0], np.float32(3.5), units="W m-2")
    product = product_of(tmp_path, np.full(GRID.shape, 4.0), static=True)
    benchmark(runs, [product], tmp_path / "out")
    where = {"frequency": "fx", "stage": "Posterior"}
    found = {q: number(tmp_path / "out", q, member="ensemble", **where) for q in QUANTITIES}
    assert found["ensemble_spread"] == pytest.approx(math.sqrt(7.0), rel=1e-6)
    assert found["ensemble_rmse"] == pytest.approx(1.0, rel=1e-6)
    assert found["range_coverage"] == pytest.approx(1.0)
    (said,) = entry_of(tmp_path / "out", "fx")["ensembles"]
    assert said["rank_histogram"]["global"] == pytest.approx([0, 0, 1, 0])
    assert number(tmp_path / "out", "spread_skill", member="m001", **where) == pytest.approx(
        3.5 / 3.0, rel=1e-6
    )
    assert number(tmp_path / "out", "within_1sd_coverage", member="m001", **where) == 1.0


def test_anomalies_have_no_ranks_and_the_report_says_so(tmp_path):
    runs = ensemble(tmp_path)
    add_sigma(runs[0], np.float32(2.0), units="W m-2")
    product = product_of(tmp_path, cycles(3) - 40.0, anomaly=True)
    benchmark(runs, [product], tmp_path / "out", frequencies=["mon"])
    rows = [r for r in rows_of(tmp_path / "out") if r["region"] == "global"]
    of_all = [r["quantity"] for r in rows if r["member"] == "ensemble"]
    assert of_all == ["ensemble_spread", "ensemble_rmse", "spread_skill"]
    assert {r["quantity"] for r in rows if "coverage" in r["quantity"]} == set()
    entry = entry_of(tmp_path / "out")
    assert entry["ensembles"] == []
    assert any("no rank histogram" in note for note in entry["notes"])


# --- stated uncertainty -----------------------------------------------------------------------


def stated_rows(out: Path, **where: str) -> dict[str, float | None]:
    names = ("uncertainty", "spread_skill", "within_1sd_coverage", "within_2sd_coverage")
    return {n: number(out, n, stage="Posterior", **where) for n in names}


def test_a_stated_uncertainty_by_hand_in_other_units_and_with_gaps(tmp_path):
    """Off by 3 W m-2 everywhere. The uncertainty is 1.2 W m-2 from 30S to 30N, half of the earth, 2
    up to 60 degrees, 4 beyond, and missing in the first year."""
    truth = cycles(3)
    prior = write_run(tmp_path, truth)
    path = write_run(tmp_path, truth + 3.0, stage="Posterior")
    bands = np.select([np.abs(GRID.lat) < 30, np.abs(GRID.lat) < 60], [1.2e-3, 2e-3], 4e-3)
    sigma = bands[None, :, None] * np.ones((36, 1, GRID.shape[1]))
    polar = 1.0 - math.sqrt(0.75)
    middle = 0.5 - polar
    sigma[:12] = np.nan
    add_sigma(path, sigma, units="kW m-2")
    product = product_of(tmp_path, truth)
    summary = benchmark([prior, path], [product], tmp_path / "out")
    assert summary["problems"] == []
    for frequency in ("mon", "yr"):
        found = stated_rows(tmp_path / "out", frequency=frequency)
        assert found == pytest.approx(
            {
                "uncertainty": 0.5 * 1.2 + middle * 2 + polar * 4,
                "spread_skill": math.sqrt(0.5 * 1.44 + middle * 4 + polar * 16) / 3,
                "within_1sd_coverage": polar,
                "within_2sd_coverage": middle + polar,
            },
            rel=1e-5,
        )
    # All scores are as they are without it.
    without = write_run(tmp_path / "plain", truth + 3.0, stage="Posterior")
    benchmark([prior, without], [product], tmp_path / "bare")
    new = {"uncertainty", "spread_skill", "within_1sd_coverage", "within_2sd_coverage"}
    kept = [r for r in rows_of(tmp_path / "out") if r["quantity"] not in new]
    assert kept == rows_of(tmp_path / "bare")


def test_the_width_of_a_temperature_has_no_offset(tmp_path):
    truth = cycles(3) + 240.0
    prior = write_run(tmp_path, truth, variable="ts", units="K")
    path = write_run(tmp_path, truth - 272.15, variable="ts", units="degC", stage="Posterior")
    add_sigma(path, np.float32(2.0), "ts")  # of the units that the temperature has
    product = product_of(tmp_path, truth, variable="ts", units="K")
    benchmark([prior, path], [product], tmp_path / "out")
    found = stated_rows(tmp_path / "out")
    assert found["uncertainty"] == pytest.approx(2.0)
    assert found["spread_skill"] == pytest.approx(2.0, rel=1e-4)


def test_an_uncertainty_meets_the_product_on_the_coarser_grid(tmp_path):
    coarse = Grid("c", np.linspace(-90, 90, 4), np.linspace(-180, 180, 5))
    path = write_run(tmp_path, np.full((36, *GRID.shape), 10.0), stage="Posterior")
    add_sigma(path, np.float32(1.5), units="W m-2")
    product = product_of(tmp_path, cycles(3, coarse) * 0 + 9.0, grid=coarse)
    benchmark([path], [product], tmp_path / "out")
    assert stated_rows(tmp_path / "out") == pytest.approx(
        {
            "uncertainty": 1.5,
            "spread_skill": 1.5,
            "within_1sd_coverage": 1.0,
            "within_2sd_coverage": 1.0,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize("wrong", ["negative", "units", "fill"])
def test_a_wrong_uncertainty_is_one_line_and_costs_no_score(tmp_path, wrong):
    truth = cycles(3)
    runs = [write_run(tmp_path, truth), write_run(tmp_path, truth + 3.0, stage="Posterior")]
    sigma = np.full((36, *GRID.shape), 4.0)
    said = {
        "negative": ("hfls_post_unc", "1 negative values", "0 or more"),
        "units": ("hfls_post_unc", "units 'K'", "W m-2"),
        "fill": ("hfls_post_unc", "1e+20", "missing values"),
    }[wrong]
    if wrong == "negative":
        sigma[3, 2, 2] = -1.0
    if wrong == "fill":
        sigma[:, :2] = 1e20
    add_sigma(runs[1], sigma.astype(np.float32), units="K" if wrong == "units" else "W m-2")
    product = product_of(tmp_path, truth)
    summary = benchmark(runs, [product], tmp_path / "out", frequencies=["mon"])
    (line,) = summary["problems"]
    assert all(part in line for part in said), line
    assert number(tmp_path / "out", "bias", stage="Posterior") == pytest.approx(3.0, rel=1e-5)
    rows = {r["quantity"] for r in rows_of(tmp_path / "out")}
    assert ("uncertainty" in rows) == (wrong == "negative")


def test_a_prior_states_no_uncertainty_of_its_calibration(tmp_path):
    path = write_run(tmp_path, cycles(3))
    add_sigma(path, np.float32(1.0), units="W m-2")
    benchmark([path], [product_of(tmp_path, cycles(3) + 1.0)], tmp_path / "out")
    assert "uncertainty" not in {r["quantity"] for r in rows_of(tmp_path / "out")}


def test_stores_hold_an_uncertainty_as_files_do(tmp_path):
    truth = cycles(3)
    name = StoreName("M", "v1", "S3", "native", "Posterior")
    template = protocol_template(
        grid=GRID,
        axis=axis_of(YEARS),
        variables={"hfls": {"units": "W m-2"}, "hfls" + UNCERTAINTY: {"units": "W m-2"}},
        land_fraction=np.ones(GRID.shape),
        attributes={},
    )
    path = tmp_path / name.text
    attributes = store_attributes(name, {}, ["mon"])
    writer = create_store(path, {"mon": template}, fingerprint={}, attributes=attributes)
    for variable, values in (
        ("hfls", truth + 1.0),
        ("hfls" + UNCERTAINTY, np.full_like(truth, 2.0)),
    ):
        for region in writer.regions("mon", variable):
            writer.write("mon", variable, region, values[region].astype(np.float32))
    writer.publish()
    benchmark([path], [product_of(tmp_path, truth)], tmp_path / "out")
    assert stated_rows(tmp_path / "out")["spread_skill"] == pytest.approx(2.0, rel=1e-4)
