"""The schemes collier2018, ilamb27 and ilamb3: closed forms, and where they differ."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import benchmark, cycles, number, rows_of, write_product, write_run

from callmip_global.benchmark.scores import MONTH_DAYS, SCHEMES, cycle_errors, month_of_maximum
from callmip_global.cli.benchmark import benchmark as benchmark_command
from callmip_global.errors import UsageError
from callmip_global.grid import Grid

ALL = tuple(SCHEMES)
DAYS = np.tile(MONTH_DAYS, 3)


def scored(tmp_path, truth, run, **options):
    """The folder of a monthly benchmark by all schemes."""
    tmp_path.mkdir(exist_ok=True)
    product = write_product(tmp_path, truth, **options)
    benchmark(
        [write_run(tmp_path, run, **options)],
        [product],
        tmp_path / "out",
        frequencies=["mon"],
        schemes=ALL,
    )
    return tmp_path / "out"


def with_winter_gaps(values):
    gappy = values.copy()
    gappy[np.ix_(np.isin(np.arange(len(values)) % 12, [11, 0, 1, 2]), [4, 5])] = np.nan
    return gappy


def series(years: int, seed: int) -> np.ndarray:
    """Yearly cycles with noise in every month, so that months and their means differ."""
    noise = np.random.default_rng(seed).normal(0.0, 4.0, (12 * years, 6, 8))
    return cycles(years, seed=seed) + noise


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "winter gaps in the product"])
def test_a_run_equal_to_the_product_scores_one_by_every_scheme(tmp_path, gaps):
    truth = series(3, 1)
    out = scored(tmp_path, with_winter_gaps(truth) if gaps else truth, truth)
    found = [r for r in rows_of(out) if r["quantity"].endswith("_score") and r["value"]]
    assert {r["scheme"] for r in found} == set(ALL)
    for row in found:
        assert float(row["value"]) == pytest.approx(1.0, abs=1e-6), row


def test_gaps_of_the_product_take_the_same_months_from_the_run_by_every_scheme(tmp_path):
    """The run's other months may hold anything: no score moves."""
    truth = series(3, 2)
    run = series(3, 3)
    gappy = with_winter_gaps(truth)
    elsewhere = np.where(np.isnan(gappy), 1000.0, run)
    first = scored(tmp_path / "a", gappy, run)
    second = scored(tmp_path / "b", gappy, elsewhere)
    assert (first / "scores.csv").read_bytes() == (second / "scores.csv").read_bytes()


def test_an_offset_of_one_sigma_scores_exp_minus_one_by_every_scheme(tmp_path):
    truth = series(3, 4)
    mean = np.average(truth, axis=0, weights=DAYS)
    sigma = np.sqrt(np.average((truth - mean) ** 2, axis=0, weights=DAYS))
    out = scored(tmp_path, truth, truth + sigma)
    for scheme in ALL:
        bias_score = number(out, "bias_score", scheme=scheme)
        assert bias_score == pytest.approx(np.exp(-1.0), rel=1e-9)
        assert number(out, "rmse_score", scheme=scheme) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("shift", [1, 4, 8])
def test_a_shifted_cycle_scores_the_cosine_or_the_line(tmp_path, shift):
    """July's middle is day 196.5; eight months late is four months early."""
    truth = cycles(3, noise=0.0)
    out = scored(tmp_path, truth, np.roll(truth, shift, axis=0))
    late = {1: 227.5, 4: 319.0, 8: 74.5}[shift]
    cosine = 0.5 * (1.0 + np.cos(2.0 * np.pi * (late - 196.5) / 365.0))
    line = 1.0 - min(shift, 12 - shift) / 6.0
    for scheme, expected in (("collier2018", cosine), ("ilamb27", cosine), ("ilamb3", line)):
        got = number(out, "seasonal_cycle_score", scheme=scheme)
        assert got == pytest.approx(expected, rel=1e-9)


def test_noise_that_repeats_in_no_year_costs_the_series_but_not_the_cycle(tmp_path):
    """Errors of +d, -d and 0 in three years leave the mean cycle as it is: ilamb27 sees nothing."""
    truth = series(3, 5)
    wave = np.repeat([1.0, -1.0, 0.0], 12)[:, None, None]
    out = scored(tmp_path, truth, truth + 5.0 * wave)
    rms = 5.0 * np.sqrt(2.0 / 3.0)
    assert number(out, "rmse", scheme="ilamb27") == pytest.approx(0.0, abs=1e-9)
    assert number(out, "rmse_score", scheme="ilamb27") == pytest.approx(1.0, abs=1e-9)
    for scheme in ("collier2018", "ilamb3"):
        assert number(out, "rmse", scheme=scheme) == pytest.approx(rms, rel=1e-9)
        assert number(out, "rmse_score", scheme=scheme) < 0.9


def test_the_error_of_a_mean_cycle_by_hand():
    """The model is 12 above in January alone: plain mean 1, so January is 11 off and the others
    -1; by days (31 * 121 + 334) / 365."""
    cycle = np.zeros((12, 1))
    cycle[0] = 12.0
    rmse, centred = cycle_errors(cycle, np.zeros((12, 1)))
    assert rmse[0] == pytest.approx(np.sqrt(31 * 144 / 365))
    assert centred[0] == pytest.approx(np.sqrt((31 * 121 + 334) / 365))


def test_the_overall_score_is_weighted_as_each_tool_does_it(tmp_path):
    truth = series(4, 6)
    out = scored(tmp_path, truth, series(4, 7), years=(2001, 2004))
    names = ("bias_score", "rmse_score", "seasonal_cycle_score", "spatial_score")
    weights = {"ilamb27": (1.0, 2.0, 1.0, 1.0), "ilamb3": (1.0, 1.0, 1.0, 1.0)}
    for scheme, own in weights.items():
        values = [number(out, name, scheme=scheme) for name in names]
        overall = number(out, "overall_score", scheme=scheme)
        assert overall == pytest.approx(np.average(values, weights=own), rel=1e-8)
    assert not [
        r
        for r in rows_of(out)
        if r["quantity"] == "interannual_score" and r["scheme"] != "collier2018"
    ]


def test_only_collier2018_weighs_the_pattern_by_area(tmp_path):
    """Cells of 1 : 2: (r, m) = (0, 0), (3, 1) and (6, 8) with areas 1, 2, 1 or all alike."""
    grid = Grid("three", np.array([0.0, 90.0]), np.array([0.0, 90.0, 270.0, 360.0]))
    season = 10.0 * np.cos(2 * np.pi * np.arange(36) / 12.0)[:, None, None]
    season = season - np.average(season, axis=0, weights=DAYS)
    r, m = np.array([0.0, 3.0, 6.0]), np.array([0.0, 1.0, 8.0])
    out = scored(tmp_path, season + r, season + m, grid=grid)
    for scheme in ALL:
        w = np.array([1.0, 2.0, 1.0]) if scheme == "collier2018" else np.ones(3)
        covariance = np.cov(m, r, aweights=w, ddof=0)
        sigma = np.sqrt(covariance[0, 0] / covariance[1, 1])
        correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        expected = 2.0 * (1.0 + correlation) / (sigma + 1.0 / sigma) ** 2
        assert number(out, "spatial_score", scheme=scheme) == pytest.approx(expected, rel=1e-6)


def test_a_flat_cycle_has_its_maximum_in_january_for_the_programs_alone():
    flat = np.full((12, 1), 3.0)
    assert np.isnan(month_of_maximum(flat)[0])
    assert month_of_maximum(flat, flat=True)[0] == 0


def test_each_scheme_has_a_whole_table_whichever_is_the_first(tmp_path):
    truth = series(3, 8)
    runs = [
        write_run(tmp_path, series(3, 8 + i), stage=stage)
        for i, stage in enumerate(("Prior", "Posterior"))
    ]
    product = write_product(tmp_path, truth)
    both, one = tmp_path / "both", tmp_path / "one"
    benchmark(runs, [product], both, schemes=["ilamb3", "collier2018"])
    benchmark(runs, [product], one)
    rows = [r for r in rows_of(both) if r["scheme"] == "collier2018"]
    assert rows == rows_of(one)
    summary = json.loads((both / "benchmark.json").read_text())
    assert summary["scheme"] == "ilamb3"
    assert [entry["scheme"] for entry in summary["schemes"]] == ["ilamb3", "collier2018"]
    (entry,) = (c for c in summary["comparisons"] if c["frequency"] == "mon")
    assert "interannual_score" not in entry["scores"]
    assert "interannual_score" in entry["schemes"]["collier2018"]["scores"]


def test_an_unknown_scheme_names_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="found ilamb2, wanted collier2018, ilamb27, ilamb3"):
        benchmark([], [], tmp_path, schemes=["ilamb2"])


def test_the_command_takes_schemes_and_boxes(tmp_path, capsys):
    truth = series(3, 8)
    run, product = write_run(tmp_path, truth), write_product(tmp_path, truth)
    products = tmp_path / "products.yaml"
    entry = f"{{variable: hfls, path: {product.paths[0]}, source: obs, kind: synthetic}}"
    products.write_text(f"products: {{REF: {entry}}}\n")
    chosen = {"region": ["nh", "box=0,45,-30,60"], "scheme": ["ilamb27", "ilamb3"]}
    benchmark_command([run], products, tmp_path / "out", **chosen)
    assert "scores.csv" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out")
    assert {r["scheme"] for r in rows} == set(chosen["scheme"])
    assert {r["region"] for r in rows} == {"nh", "box"}


@pytest.mark.parametrize("first", ALL)
@pytest.mark.parametrize("frequency", ["mon", "yr", "fx"])
def test_the_maps_of_every_scheme_have_the_means_of_its_table(tmp_path, frequency, first):
    """A scheme's own field where it has one, else that of the schemes it shares it with."""
    truth, run = series(3, 1), series(3, 2)
    # Flat cycles are one of the things that schemes differ in.
    truth[:, :, 0] = 40.0
    static = {"static": True} if frequency == "fx" else {}
    product = write_product(tmp_path, truth[0] if static else truth, **static)
    schemes = [first, *(name for name in ALL if name != first)]
    options = {"frequencies": ["mon" if static else frequency], "schemes": schemes}
    summary = benchmark([write_run(tmp_path, run)], [product], tmp_path / "o", **options)
    (file,) = summary["comparisons"][0]["maps"]
    seen = 0
    with xr.open_dataset(tmp_path / "o" / file["file"]) as ds:
        assert set(file["fields"]) == set(ds.data_vars)
        area = ds["areacella"]
        for scheme in schemes:
            for row in rows_of(tmp_path / "o"):
                if (row["scheme"], row["region"]) != (scheme, "global"):
                    continue
                name = f"{row['quantity']}_prior"
                field = ds.get(f"{name}_{scheme}", ds.get(name))
                if field is None or not row["value"]:
                    continue
                mean = float(field.weighted(area).mean())
                assert mean == pytest.approx(float(row["value"]), rel=2e-6), (scheme, name)
                seen += 1
        for name, field in ds.data_vars.items():
            of_first = name.removesuffix(f"_{schemes[1]}").removesuffix(f"_{schemes[2]}")
            if of_first != name and of_first in ds:
                assert not np.array_equal(ds[of_first], field, equal_nan=True)
    assert seen >= {"mon": 15, "yr": 12, "fx": 9}[frequency]
