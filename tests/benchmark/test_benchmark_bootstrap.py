"""Intervals of the change from prior to posterior: whole years drawn again, the same for all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmark_cases import GRID, benchmark, cycles, rows_of, write_product, write_run

from callmip_global.benchmark import bootstrap
from callmip_global.benchmark import compare as comparing
from callmip_global.benchmark.parts import Parts
from callmip_global.benchmark.scores import COLLIER2018, ILAMB3, ILAMB27, MONTH_DAYS
from callmip_global.benchmark.statistics import PairSums, YearSums

YEARS = (2001, 2008)
N_YEARS = 8
DAYS = np.tile(MONTH_DAYS, N_YEARS)


def series(seed: int, noise: float = 4.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shared = cycles(N_YEARS, seed=0, noise=0.0)
    return shared + rng.normal(0.0, noise, shared.shape)


def changes(out, **where: str) -> dict[str, tuple[float, float, float]]:
    """Quantity -> value, low, high of the change in a region; NaN for an empty field."""
    wanted = {"region": "global", "frequency": "mon", "stage": "Posterior-Prior", **where}
    found = [r for r in rows_of(out) if all(r[k] == v for k, v in wanted.items())]
    return {
        r["quantity"]: tuple(float(r[k] or "nan") for k in ("value", "low", "high")) for r in found
    }


def pair_of_runs(folder, prior, posterior, years=YEARS):
    return [
        write_run(folder, prior, years=years),
        write_run(folder, posterior, years=years, stage="Posterior"),
    ]


def test_each_draw_is_what_the_years_drawn_give_when_they_are_put_together():
    """Against the formulas on the drawn series themselves, with gaps, where a region cuts cells."""
    rng = np.random.default_rng(3)
    n_cells = 7
    shape = (12 * N_YEARS, n_cells)
    reference = rng.normal(300.0, 5.0, shape)
    models = reference + rng.normal(1.0, 3.0, (3, *shape))
    reference[rng.random(shape) < 0.1] = np.nan
    reference[:, 5][rng.random(shape[0]) < 0.5] = np.nan
    slots, years = np.tile(np.arange(12), N_YEARS), np.repeat(np.arange(N_YEARS), 12)
    sums = PairSums.empty(3, n_cells, 12)
    yearly = YearSums.empty(3, n_cells, N_YEARS)
    for part in np.split(np.arange(len(DAYS)), [12, 50]):
        block = reference[part], models[:, part], DAYS[part], slots[part]
        sums.add(*block, years=years[part], yearly=yearly)
    area = rng.uniform(1.0, 2.0, n_cells)
    shares = np.array([[1.0] * n_cells, [0.0, 0.0, 0.5, 1.0, 0.0, 0.25, 1.0]])
    found = bootstrap.Resampled.empty(2)
    guesses = sums.guess_reference, sums.guess_model
    found.add(yearly, (2, 0), *guesses, Parts.of(shares * area, area), area, anomaly=False)
    parts = ({"bias_score": 0.5, "rmse_score": 0.5},) * 2
    drawn = bootstrap.drawn_years(N_YEARS)
    assert (drawn.sum(axis=0) == N_YEARS).all()
    for region in (0, 1):
        weights = shares[region] * area
        expected: dict[str, list[float]] = {"bias": [], "rmse": [], "rmse_score": []}
        for d in range(bootstrap.DRAWS):
            length = DAYS * drawn[years, d]
            w = np.where(np.isfinite(reference), length[:, None], 0.0)
            r = np.nan_to_num(reference)
            own = []
            for model in models[[2, 0]]:
                mean = [(w * x).sum(axis=0) / w.sum(axis=0) for x in (r, model)]
                square = [(w * x).sum(axis=0) / w.sum(axis=0) for x in ((model - r) ** 2, r**2)]
                bias = mean[1] - mean[0]
                centred = np.sqrt(square[0] - bias**2)
                score = np.exp(-centred / np.sqrt(square[1] - mean[0] ** 2))
                own.append(
                    [np.average(x, weights=weights) for x in (bias, np.sqrt(square[0]), score)]
                )
            for name, before, after in zip(expected, *own, strict=True):
                expected[name].append(after - before)
        got = found.ends(region, COLLIER2018, parts)
        for name, values in expected.items():
            ends = np.quantile(values, [0.025, 0.975]) - np.mean(values)
            assert got[name] == pytest.approx(ends, rel=1e-3), name


def test_the_exponential_is_that_of_numpy():
    rng = np.random.default_rng(1)
    edges = [0.0, -0.0, -1e-300, -0.34657359, -0.3465736, -1.0, -699.9]
    x = np.concatenate([edges, -3.0 * np.abs(rng.standard_cauchy(100_000))])
    x = x[x > -700.0]
    found = x.copy()
    bootstrap._exponential(found, np.empty_like(x))
    np.testing.assert_allclose(found, np.exp(x), rtol=5e-16)
    tiny = np.array([-700.0, -1e300, -np.inf])
    bootstrap._exponential(tiny, np.empty_like(tiny))
    assert (tiny < 1e-303).all()


def test_years_that_are_all_alike_leave_nothing_to_chance(tmp_path):
    """Every draw is the whole: the interval is the value."""
    truth, noise = (np.random.default_rng(i).normal(0, 3, (12, *GRID.shape)) for i in (1, 2))
    truth = np.tile(cycles(1, noise=0.0) + truth, (N_YEARS, 1, 1))
    runs = pair_of_runs(tmp_path, truth + 4.0, truth + np.tile(noise, (N_YEARS, 1, 1)))
    benchmark(runs, [write_product(tmp_path, truth, years=YEARS)], tmp_path / "out")
    found = changes(tmp_path / "out")
    for name in ("bias", "absolute_bias", "rmse", "bias_score", "rmse_score", "overall_score"):
        value, low, high = found[name]
        assert (low, high) == pytest.approx((value, value), rel=1e-4), name
    for name in ("seasonal_cycle_score", "interannual_score", "spatial_score", "mean"):
        assert math.isnan(found[name][1])


def test_a_change_that_all_years_share_is_clear_and_chance_is_not(tmp_path):
    """Prior and posterior differ by noise alone: the interval holds 0. An offset does not."""
    truth = series(1)
    product = write_product(tmp_path, truth, years=YEARS)
    luck = tmp_path / "luck"
    benchmark(pair_of_runs(luck, series(2), series(3)), [product], luck / "out")
    _, low, high = changes(luck / "out")["bias"]
    assert low < 0.0 < high
    shift = tmp_path / "shift"
    benchmark(pair_of_runs(shift, series(2) + 5.0, series(3)), [product], shift / "out")
    for name, sign in (("bias", -1), ("rmse", -1), ("bias_score", 1), ("overall_score", 1)):
        value, low, high = changes(shift / "out")[name]
        assert low < value < high
        assert sign * low > 0
        assert sign * high > 0


def test_the_width_is_that_of_means_over_years(tmp_path):
    """Each year's bias differs by its own offset, everywhere: the mean of n years has the standard
    error s / sqrt(n), and 95 % of a normal lie within 1.96 of it; 200 draws know that to 15 %."""
    rng = np.random.default_rng(5)
    years = (1981, 2020)
    offsets = rng.normal(0.0, 2.0, 40)
    truth = np.tile(cycles(1), (40, 1, 1))
    posterior = truth + np.repeat(offsets, 12)[:, None, None]
    runs = pair_of_runs(tmp_path, truth, posterior, years)
    benchmark(
        runs, [write_product(tmp_path, truth, years=years)], tmp_path / "out", frequencies=["mon"]
    )
    _, low, high = changes(tmp_path / "out")["bias"]
    assert high - low == pytest.approx(2 * 1.96 * offsets.std() / np.sqrt(40), rel=0.15)


def test_too_few_years_have_no_interval(tmp_path):
    years = (2001, 2004)
    truth = cycles(4)
    runs = pair_of_runs(tmp_path, truth + 1.0, truth, years)
    benchmark(runs, [write_product(tmp_path, truth, years=years)], tmp_path / "out")
    assert all(math.isnan(low) for _, low, _ in changes(tmp_path / "out").values())


def test_intervals_are_the_same_every_time_and_in_tiles(tmp_path, monkeypatch):
    runs = pair_of_runs(tmp_path, series(2), series(3))
    product = write_product(tmp_path, series(1), years=YEARS)
    benchmark(runs, [product], tmp_path / "one")
    benchmark(runs, [product], tmp_path / "two")
    first = (tmp_path / "one" / "scores.csv").read_bytes()
    assert first == (tmp_path / "two" / "scores.csv").read_bytes()
    boxes = [(slice(a, a + 4), slice(b, b + 5)) for a in (0, 4) for b in (0, 5)]
    monkeypatch.setattr(comparing, "_tiles", lambda *_: boxes)
    benchmark(runs, [product], tmp_path / "tiles")
    whole, tiles = (changes(tmp_path / name, region="nh") for name in ("one", "tiles"))
    assert sum(not math.isnan(low) for _, low, _ in whole.values()) == 6
    for name, values in whole.items():
        assert tiles[name] == pytest.approx(values, rel=1e-9, nan_ok=True)


def test_annual_data_have_intervals_too(tmp_path):
    runs = pair_of_runs(tmp_path, series(2) + 5.0, series(3))
    benchmark(runs, [write_product(tmp_path, series(1), years=YEARS)], tmp_path / "out")
    value, low, high = changes(tmp_path / "out", frequency="yr")["bias"]
    assert low < value < high < 0


def test_schemes_have_intervals_of_what_the_sums_of_years_can_say(tmp_path):
    runs = pair_of_runs(tmp_path, series(2), series(3))
    schemes = [scheme.name for scheme in (COLLIER2018, ILAMB27, ILAMB3)]
    product = write_product(tmp_path, series(1), years=YEARS)
    benchmark(runs, [product], tmp_path / "out", schemes=schemes)
    with_interval = {
        scheme: {
            name
            for name, (_, low, _) in changes(tmp_path / "out", scheme=scheme).items()
            if not math.isnan(low)
        }
        for scheme in schemes
    }
    common = {"bias", "absolute_bias", "bias_score"}
    assert with_interval == {
        "collier2018": common | {"rmse", "rmse_score", "overall_score"},
        "ilamb27": common,
        "ilamb3": common | {"rmse", "rmse_score"},
    }
