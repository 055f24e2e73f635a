"""From files to scores.csv: closed forms, one mask for all, bad products, files that repeat."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import (
    GRID,
    benchmark,
    cycles,
    number,
    rows_of,
    write_product,
    write_run,
)

from callmip_global.benchmark import Product
from callmip_global.benchmark import compare as comparing
from callmip_global.benchmark.tables import COLUMNS
from callmip_global.errors import UsageError
from callmip_global.grid import Grid, standard_grid
from callmip_global.store import (
    StoreName,
    create_store,
    protocol_template,
    store_attributes,
)
from callmip_global.timeaxis import annual_mean, month_axis
from callmip_global.variables import variable_table

SCORES = (
    "bias_score",
    "rmse_score",
    "seasonal_cycle_score",
    "interannual_score",
    "spatial_score",
    "overall_score",
)


def with_winter_gaps(values: np.ndarray) -> np.ndarray:
    """Without December to March in the northern rows, as optical satellites leave them."""
    gappy = values.copy()
    gappy[np.ix_(np.isin(np.arange(len(values)) % 12, [11, 0, 1, 2]), [4, 5])] = np.nan
    return gappy


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "winter gaps in the product"])
def test_a_run_equal_to_the_product_scores_one_everywhere(tmp_path, gaps):
    truth = cycles(3)
    product = write_product(tmp_path, with_winter_gaps(truth) if gaps else truth)
    benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    for quantity in SCORES:
        assert number(tmp_path / "out", quantity) == pytest.approx(1.0, abs=1e-7)
    for quantity in ("bias", "absolute_bias", "rmse"):
        assert number(tmp_path / "out", quantity) == pytest.approx(0.0, abs=1e-6)


def test_gaps_of_the_product_leave_the_same_months_out_of_the_run(tmp_path):
    """Without the common mask the run's mean would hold winters that the product's has not."""
    truth = cycles(3)
    product = write_product(tmp_path, with_winter_gaps(truth))
    benchmark([write_run(tmp_path, truth + 7.0)], [product], tmp_path / "out")
    assert number(tmp_path / "out", "bias", region="nh") == pytest.approx(7.0, abs=1e-9)
    assert number(tmp_path / "out", "rmse_score", region="nh") == pytest.approx(1.0, abs=1e-6)


def test_an_offset_of_one_sigma_costs_the_bias_score_alone(tmp_path):
    truth = cycles(3)
    days = np.tile([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], 3).astype(float)
    mean = np.average(truth, axis=0, weights=days)
    sigma = np.sqrt(np.average((truth - mean) ** 2, axis=0, weights=days))
    product = write_product(tmp_path, truth)
    benchmark([write_run(tmp_path, truth + sigma)], [product], tmp_path / "out")
    assert number(tmp_path / "out", "bias_score") == pytest.approx(np.exp(-1.0), rel=1e-9)
    for quantity in ("rmse_score", "seasonal_cycle_score", "interannual_score"):
        assert number(tmp_path / "out", quantity) == pytest.approx(1.0, abs=1e-6)


def test_a_run_one_month_late_scores_the_cosine_of_31_days(tmp_path):
    """July to August are 31 days from middle to middle: (1 + cos(2 pi 31 / 365)) / 2 = 0.9305."""
    truth = cycles(3, noise=0.0)
    product = write_product(tmp_path, truth)
    late = np.roll(truth, 1, axis=0)
    benchmark([write_run(tmp_path, late)], [product], tmp_path / "out")
    expected = 0.5 * (1 + np.cos(2 * np.pi * 31.0 / 365.0))
    assert number(tmp_path / "out", "seasonal_cycle_score") == pytest.approx(expected, rel=1e-9)


def test_two_cells_by_hand(tmp_path):
    """Areas 1 : 2, months of 30 days. Product 1, 3, 1, 3 ...: mean 2, sigma 1 in both cells.

    Cell A of the run is the product + 1: bias 1, bias score 1/e, centred error 0.
    Cell B is 2 + 2 (product - 2): bias 0, centred error sqrt(mean((r - 2)^2)) = 1, score 1/e.
    The product's mean map is flat and the series one year long: no spatial, no interannual score.
    """
    grid = Grid("two", np.array([0.0, 90.0]), np.array([0.0, 120.0, 360.0]))
    truth = np.tile([1.0, 3.0], 6)[:, None, None] * np.ones((1, 1, 2))
    run = np.concatenate([truth[..., :1] + 1.0, 2.0 + 2.0 * (truth[..., 1:] - 2.0)], axis=2)
    options = {"grid": grid, "years": (2001, 2001), "calendar": "360_day"}
    product = write_product(tmp_path, truth, **options)
    benchmark(
        [write_run(tmp_path, run, **options)], [product], tmp_path / "out", frequencies=["mon"]
    )
    out, e = tmp_path / "out", np.exp(-1.0)
    bias_score, rmse_score = (e + 2.0) / 3.0, (1.0 + 2.0 * e) / 3.0
    assert number(out, "bias") == pytest.approx(1.0 / 3.0)
    assert number(out, "bias_score") == pytest.approx(bias_score)
    assert number(out, "rmse") == pytest.approx(1.0)
    assert number(out, "rmse_score") == pytest.approx(rmse_score)
    assert number(out, "seasonal_cycle_score") == 1.0
    assert number(out, "interannual_score") is None
    assert number(out, "spatial_score") is None
    overall = (bias_score + 2.0 * rmse_score + 1.0) / 4.0
    assert number(out, "overall_score") == pytest.approx(overall)
    summary = json.loads((out / "benchmark.json").read_text())
    assert summary["comparisons"][0]["scores_present"]["global"] == [3]
    assert len(summary["comparisons"][0]["scores"]) == 5


def test_a_gap_of_the_posterior_is_left_out_of_the_prior_too(tmp_path):
    truth = cycles(3)
    prior, posterior = truth + 5.0, truth + 1.0
    prior[:, :3] += 20.0
    posterior[:, :3] = np.nan
    runs = [
        write_run(tmp_path, prior),
        write_run(tmp_path, posterior, stage="Posterior"),
    ]
    benchmark(runs, [write_product(tmp_path, truth)], tmp_path / "out")
    assert number(tmp_path / "out", "bias", stage="Prior") == pytest.approx(5.0, abs=1e-9)
    assert number(tmp_path / "out", "bias", stage="Posterior") == pytest.approx(1.0, abs=1e-9)
    assert number(tmp_path / "out", "bias", stage="Posterior-Prior") == pytest.approx(-4.0)
    assert number(tmp_path / "out", "bias", stage="Prior", region="sh") is None


def test_posterior_members_are_paired_with_the_only_prior(tmp_path):
    truth = cycles(3)
    runs = [write_run(tmp_path, truth + 3.0)] + [
        write_run(tmp_path, truth + k, stage="Posterior", member=f"_m{k:03d}") for k in (1, 2)
    ]
    benchmark(runs, [write_product(tmp_path, truth)], tmp_path / "out")
    where = {"stage": "Posterior-Prior"}
    assert number(tmp_path / "out", "bias", member="m001", **where) == pytest.approx(-2.0)
    assert number(tmp_path / "out", "bias", member="m002", **where) == pytest.approx(-1.0)


def test_units_factor_and_sign_of_a_product_are_applied(tmp_path):
    """NEE of -2 gC m-2 day-1 is nep of 2e-3 / 86400 kg m-2 s-1; most negative in summer."""
    nee = -2.0 - cycles(3) / 100.0
    product = write_product(tmp_path, nee, variable="nep", units="gC m-2 day-1", sign=-1)
    nep = -nee * 1e-3 / 86400.0
    run = write_run(tmp_path, nep, variable="nep", units="kgC m-2 s-1")
    benchmark([run], [product], tmp_path / "out")
    assert number(tmp_path / "out", "bias_score") == pytest.approx(1.0, abs=1e-7)
    mean = number(tmp_path / "out", "mean")
    assert number(tmp_path / "out", "reference_mean") == pytest.approx(mean, rel=1e-9)


def test_sums_per_month_are_divided_by_the_length_of_each_month(tmp_path):
    days = np.tile([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], 3)[:, None, None]
    flux = cycles(3) / 1e6
    product = write_product(tmp_path, flux * days * 86400.0, variable="evspsbl", units="mm.month-1")
    run = write_run(tmp_path, flux, variable="evspsbl", units="mm/s")
    benchmark([run], [product], tmp_path / "out")
    assert number(tmp_path / "out", "rmse_score") == pytest.approx(1.0, abs=1e-6)


def test_annual_data_are_scored_by_their_own_sigma_and_without_a_seasonal_cycle(tmp_path):
    truth = cycles(4, noise=3.0)
    product = write_product(tmp_path, truth, years=(2001, 2004))
    run = write_run(tmp_path, truth + 1.0, years=(2001, 2004))
    benchmark([run], [product], tmp_path / "out")
    quantities = {r["quantity"] for r in rows_of(tmp_path / "out") if r["frequency"] == "yr"}
    assert "seasonal_cycle_score" not in quantities
    assert "rmse_score" in quantities
    monthly = number(tmp_path / "out", "bias_score")
    annual = number(tmp_path / "out", "bias_score", frequency="yr")
    assert annual is not None
    assert monthly is not None
    assert annual < monthly
    assert number(tmp_path / "out", "rmse_score", frequency="yr") == pytest.approx(1.0, abs=1e-6)


def test_a_year_with_a_missing_month_is_no_year(tmp_path):
    truth = cycles(4)
    truth[5, 0, 0] = np.nan
    product = write_product(tmp_path, truth, years=(2001, 2004))
    run = write_run(tmp_path, cycles(4), years=(2001, 2004))
    summary = benchmark([run], [product], tmp_path / "out")
    annual = next(c for c in summary["comparisons"] if c["frequency"] == "yr")
    assert annual["n_cells"] == GRID.shape[0] * GRID.shape[1]
    assert number(tmp_path / "out", "bias_score", frequency="yr") == pytest.approx(1.0, abs=1e-7)


def test_a_static_product_gives_bias_and_spatial_scores_against_the_mean_of_all_years(tmp_path):
    stock = np.linspace(1.0, 9.0, GRID.shape[0] * GRID.shape[1]).reshape(GRID.shape)
    product = write_product(tmp_path, stock, variable="cSoil", units="Mg ha-1", static=True)
    run = np.broadcast_to(0.2 * stock, (36, *GRID.shape))
    benchmark(
        [write_run(tmp_path, run, variable="cSoil", units="kg m-2")], [product], tmp_path / "o"
    )
    got = {r["quantity"] for r in rows_of(tmp_path / "o")}
    assert {q for q in got if q.endswith("_score")} == {
        "bias_score",
        "spatial_score",
        "overall_score",
    }
    # 1 Mg ha-1 = 0.1 kg m-2, so the run is twice the product: exp(-1) and 8 / (2 * 2.5^2).
    assert number(tmp_path / "o", "bias_score", frequency="fx") == pytest.approx(np.exp(-1.0))
    assert number(tmp_path / "o", "spatial_score", frequency="fx") == pytest.approx(0.64)


def test_of_anomalies_neither_the_mean_nor_its_pattern_is_scored(tmp_path):
    truth = cycles(3)
    product = write_product(tmp_path, truth - truth.mean(axis=0), anomaly=True)
    benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    assert number(tmp_path / "out", "rmse") == pytest.approx(0.0, abs=1e-6)
    assert number(tmp_path / "out", "overall_score") == pytest.approx(1.0, abs=1e-6)
    got = {r["quantity"] for r in rows_of(tmp_path / "out")}
    assert not got & {"bias", "bias_score", "spatial_score"}


def three_models(tmp_path: Path, truth: np.ndarray, offsets: dict[str, tuple[float, float]]):
    return [
        write_run(tmp_path, truth + offset, model=f"{model}.v1", stage=stage)
        for model, pair in offsets.items()
        for stage, offset in zip(("Prior", "Posterior"), pair, strict=True)
    ]


def test_the_spread_of_three_models_by_hand(tmp_path):
    """Offsets -3, 0, 3 have a standard deviation of 3, offsets 0, 1, 2 one of 1."""
    truth = cycles(3)
    runs = three_models(tmp_path, truth, {"A": (-3, 0), "B": (0, 1), "C": (3, 2)})
    runs.append(write_run(tmp_path, truth + 99.0, model="D.v1"))
    benchmark(runs, [write_product(tmp_path, truth)], tmp_path / "out")
    where = {"model": "all models"}
    assert number(tmp_path / "out", "spread", stage="Prior", **where) == pytest.approx(3.0)
    assert number(tmp_path / "out", "spread", stage="Posterior", **where) == pytest.approx(1.0)
    change = {"stage": "Posterior-Prior", **where}
    assert number(tmp_path / "out", "spread", **change) == pytest.approx(-2.0)
    assert number(tmp_path / "out", "spread_reduction", **change) == pytest.approx(2.0 / 3.0)


def test_two_models_have_no_spread(tmp_path):
    truth = cycles(3)
    runs = three_models(tmp_path, truth, {"A": (-3, 0), "B": (0, 1)})
    benchmark(runs, [write_product(tmp_path, truth)], tmp_path / "out")
    assert not [r for r in rows_of(tmp_path / "out") if r["quantity"] == "spread"]


def test_product_and_runs_meet_on_the_coarsest_grid(tmp_path):
    """Each coarse cell of the product is the area mean of its fine cells: nothing is left over."""
    coarse = Grid("c", np.linspace(-90, 90, 4), np.linspace(-180, 180, 5))
    truth = cycles(3)
    area = GRID.cell_area
    blocks = (truth * area).reshape(36, 3, 2, 4, 2).sum(axis=(2, 4))
    mean = blocks / area.reshape(3, 2, 4, 2).sum(axis=(1, 3))
    product = write_product(tmp_path, mean, grid=coarse)
    summary = benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    assert summary["comparisons"][0]["grid"].startswith("3 × 4 cells")
    for quantity in SCORES:
        assert number(tmp_path / "out", quantity) == pytest.approx(1.0, abs=1e-6)


def test_a_product_from_0_to_360_and_north_to_south_is_the_same_product(tmp_path):
    truth = cycles(3)
    turned = Grid("t", GRID.lat_edges, np.linspace(0, 360, 9))
    product = write_product(tmp_path, np.roll(truth, -4, axis=2), grid=turned)
    path = Path(product.paths[0])
    with xr.open_dataset(path, decode_times=False) as ds:
        flipped = ds.isel(lat=slice(None, None, -1)).load()
    flipped.to_netcdf(path)
    benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    assert number(tmp_path / "out", "rmse") == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"paths": ("/no/such/file.nc",)}, "BAD: hfls: found no file"),
        ({"source": "other"}, "other: found no such variable, wanted one of: obs"),
        ({"units": "kg m-2"}, "units 'kg m-2', wanted units convertible to 'W m-2'"),
        ({"window": (1990, 1995)}, "found 0 months in common"),
        (
            {"factor": 2.0, "units": "W m-2", "native_units": "mm day-1"},
            "found units 'W m-2', wanted 'mm day-1'",
        ),
    ],
    ids=["absent", "no such variable", "unit", "no overlap", "unexpected unit"],
)
def test_a_bad_product_is_one_line_and_the_others_go_on(tmp_path, change, said):
    truth = cycles(3)
    run = write_run(tmp_path, truth)
    good = write_product(tmp_path, truth)
    bad = Product(
        **{"name": "BAD", "variable": "hfls", "paths": good.paths, "kind": "satellite"} | change
    )
    summary = benchmark([run], [bad, good], tmp_path / "out", frequencies=["mon"])
    assert len(summary["problems"]) == 1
    assert said in summary["problems"][0]
    assert "BAD" in summary["problems"][0]
    assert number(tmp_path / "out", "overall_score") == pytest.approx(1.0, abs=1e-6)
    assert json.loads((tmp_path / "out" / "problems.json").read_text()) == summary["problems"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [("cut short", "cannot be read"), ("bytes changed", "chunk 0, 0, 0 (steps 1 to 12")],
)
def test_a_damaged_product_is_one_line(tmp_path, damage, said):
    grid = Grid("g", np.linspace(-90, 90, 61), np.linspace(-180, 180, 81))
    truth = cycles(1, grid) + np.random.default_rng(0).normal(size=(12, *grid.shape))
    options = {"grid": grid, "years": (2001, 2001)}
    product = write_product(tmp_path, truth, **options)
    path = Path(product.paths[0])
    with xr.open_dataset(path, decode_times=False) as ds:
        whole = ds.load()
    whole.to_netcdf(path, encoding={"obs": {"zlib": True}})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "cut short":
        del data[middle:]
    else:
        data[middle : middle + 5000] = bytes(5000)
    path.write_bytes(data)
    run = write_run(tmp_path, truth, **options)
    summary = benchmark([run], [product], tmp_path / "out", frequencies=["mon"])
    assert len(summary["problems"]) == 1
    assert said in summary["problems"][0]
    assert "REF" in summary["problems"][0]


def test_too_few_years_for_annual_scores_are_a_note_where_months_are_scored(tmp_path):
    truth = cycles(2)
    options = {"years": (2001, 2002)}
    product = write_product(tmp_path, truth, **options)
    summary = benchmark([write_run(tmp_path, truth, **options)], [product], tmp_path / "out")
    assert summary["problems"] == []
    assert "found 2 years in common" in summary["notes"][-1]
    again = benchmark(
        [write_run(tmp_path, truth, **options)], [product], tmp_path / "out", frequencies=["yr"]
    )
    assert "found 2 years in common" in again["problems"][0]


def test_a_product_without_a_value_is_refused(tmp_path):
    product = write_product(tmp_path, np.full((36, *GRID.shape), np.nan))
    summary = benchmark([write_run(tmp_path, cycles(3))], [product], tmp_path / "out")
    assert "no value at all in 2001-01 to 2003-12" in summary["problems"][0]
    assert rows_of(tmp_path / "out") == []


@pytest.mark.parametrize("fill", [1e20, -9999.0])
def test_a_product_with_a_fill_value_that_nothing_names_is_refused(tmp_path, fill):
    truth = cycles(3)
    filled = truth.copy()
    filled[:, 0] = fill
    product = write_product(tmp_path, filled)
    summary = benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    (said,) = summary["problems"]
    assert "product REF (REF.nc): obs: found" in said
    assert "no attribute calls missing" in said


def test_a_land_fraction_that_changes_is_one_line(tmp_path):
    truth = cycles(3)
    product = write_product(tmp_path, truth)
    with xr.open_dataset(product.paths[0], decode_times=False) as ds:
        ds = ds.load()
    ds["sftlf"] = ds["obs"] * 0.0 + 50.0
    ds["obs"].attrs["cell_methods"] = "area: mean where land"
    Path(product.paths[0]).unlink()
    ds.to_netcdf(product.paths[0])
    summary = benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    (said,) = summary["problems"]
    assert "sftlf: found dimensions" in said


def test_december_and_january_in_one_file_are_two_months_and_not_two_years(tmp_path):
    truth = cycles(3)
    whole = write_product(tmp_path, truth)
    with xr.open_dataset(whole.paths[0], decode_times=False) as ds:
        for k, part in enumerate((slice(0, 11), slice(11, 13), slice(13, 36))):
            ds[["obs"]].isel(time=part).to_netcdf(tmp_path / f"p{k}.nc")
    parts = replace(whole, paths=(str(tmp_path / "p*.nc"),))
    summary = benchmark([write_run(tmp_path, truth)], [parts], tmp_path / "out")
    assert summary["problems"] == []
    assert number(tmp_path / "out", "overall_score") == pytest.approx(1.0)


def test_a_run_without_a_value_is_left_out_and_named(tmp_path):
    truth = cycles(3)
    runs = [
        write_run(tmp_path, truth),
        write_run(tmp_path, np.full_like(truth, np.nan), stage="Posterior"),
    ]
    summary = benchmark(
        runs, [write_product(tmp_path, truth)], tmp_path / "out", frequencies=["mon"]
    )
    assert summary["problems"] == [
        "M.v1 S3 Posterior (M.v1_global_test_mon_2001-2003_Posterior.nc): hfls: found no value at "
        "all in 2001-01 to 2003-12, wanted values. Wrong file, or a wrong fill value? The run is "
        "left out. [all-missing]"
    ]
    assert number(tmp_path / "out", "bias_score", stage="Prior") == pytest.approx(1.0, abs=1e-7)


def test_a_product_in_the_wrong_unit_is_refused_with_the_likely_cause(tmp_path):
    truth = cycles(3)
    product = write_product(tmp_path, 1000.0 * truth)
    summary = benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    (said,) = summary["problems"]
    assert "found 100% of the values outside" in said
    assert "wanted -60 to 250 W m-2. Perhaps wrong by 1000: g for kg?" in said
    assert summary["comparisons"] == []


def test_the_same_run_twice_is_refused(tmp_path):
    truth = cycles(3)
    one = write_run(tmp_path, truth)
    two = write_run(tmp_path / "copy", truth)
    with pytest.raises(UsageError, match=r"a second time M\.v1 S3 Prior"):
        benchmark([one, two], [write_product(tmp_path, truth)], tmp_path / "out")


def test_a_file_that_says_nothing_of_its_run_is_refused(tmp_path):
    path = write_run(tmp_path, cycles(3))
    with xr.open_dataset(path, decode_times=False) as ds:
        bare = ds.load()
    bare.attrs = {}
    other = tmp_path / "some.nc"
    bare.to_netcdf(other)
    with pytest.raises(UsageError, match="Calibration_stage"):
        benchmark([other], [write_product(tmp_path, cycles(3))], tmp_path / "out")


def test_scores_have_the_columns_agreed_on_and_the_same_bytes_every_time(tmp_path):
    truth = cycles(3)
    runs = [write_run(tmp_path, truth + 1), write_run(tmp_path, truth, stage="Posterior")]
    product = write_product(tmp_path, truth)
    for name in ("one", "two"):
        benchmark(runs[:: 1 if name == "one" else -1], [product], tmp_path / name)
    first = (tmp_path / "one" / "scores.csv").read_bytes()
    assert first == (tmp_path / "two" / "scores.csv").read_bytes()
    one, two = (tmp_path / name / "benchmark.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    header = (
        "variable,product,model,simulation,stage,member,region,frequency,scheme,quantity,value,"
        "units,n_cells,n_months,low,high"
    )
    assert first.decode().splitlines()[0] == header == ",".join(COLUMNS)


def test_maps_are_written_with_the_misfit_change_of_each_cell(tmp_path):
    truth = cycles(3)
    runs = [write_run(tmp_path, truth - 4), write_run(tmp_path, truth + 1, stage="Posterior")]
    benchmark(runs, [write_product(tmp_path, truth)], tmp_path / "out", frequencies=["mon"])
    (path,) = (tmp_path / "out" / "maps").glob("*.nc")
    assert path.name == "hfls_REF_M.v1_S3_mon.nc"
    with xr.open_dataset(path) as ds:
        np.testing.assert_allclose(ds["misfit_change"], -3.0, atol=1e-5)
        np.testing.assert_allclose(ds["bias_prior"], -4.0, atol=1e-5)
        np.testing.assert_allclose(ds["reference"], truth_mean(truth), rtol=1e-6)
        assert ds["misfit_change"].attrs["units"] == "W m-2"
        assert ds["lat"].attrs["bounds"] == "lat_bnds"


def truth_mean(truth: np.ndarray) -> np.ndarray:
    days = np.tile([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], 3).astype(float)
    return np.average(truth, axis=0, weights=days)


def test_a_store_is_scored_as_it_is(tmp_path):
    grid, axis = standard_grid("2deg"), month_axis((2001, 2003), "noleap")
    annual = month_axis((2001, 2003), "noleap", "yr")
    truth = cycles(3, grid).astype(np.float32)
    truth[:, :10] = np.nan
    land = np.where(np.isnan(truth[0]), 0.0, 1.0)
    name = StoreName("M", "v1", "S3", "2deg", "Prior")
    attributes = {"hfls": variable_table()["hfls"].cf_attributes()}
    data = {"mon": truth, "yr": annual_mean(truth, axis.lengths_days)}
    writer = create_store(
        tmp_path / name.text,
        {
            group: protocol_template(
                grid=grid, axis=a, variables=attributes, land_fraction=land, attributes={}
            )
            for group, a in (("mon", axis), ("yr", annual))
        },
        fingerprint={},
        attributes=store_attributes(name, {"synthetic": "made for a test"}, ("mon", "yr")),
    )
    for group, values in data.items():
        for region in writer.regions(group, "hfls"):
            writer.write(group, "hfls", region, values[region])
    store = writer.publish()
    product = write_product(tmp_path, truth.astype(float), grid=grid)
    summary = benchmark([store], [product], tmp_path / "out")
    assert summary["problems"] == []
    assert summary["synthetic"][0] == "made for a test"
    for frequency in ("mon", "yr"):
        for quantity in ("bias_score", "rmse_score", "spatial_score"):
            got = number(tmp_path / "out", quantity, frequency=frequency)
            assert got == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("frequency", "held"), [("mon", True), ("mon", False), ("yr", True)], ids=str
)
def test_a_map_taken_in_tiles_gives_the_numbers_of_the_whole(
    tmp_path, monkeypatch, frequency, held
):
    """Whether the product, whose file holds whole maps, is kept or read again for each tile."""
    if not held:
        monkeypatch.setattr(comparing, "_HELD_BYTES", 0)
    grid = Grid("g", np.linspace(-90, 90, 13), np.linspace(-180, 180, 19))
    truth = cycles(4, grid)
    options = {"grid": grid, "years": (2001, 2004)}
    product = write_product(tmp_path, with_winter_gaps(truth), **options)
    runs = [
        write_run(tmp_path, cycles(4, grid, seed=i), stage=stage, **options)
        for i, stage in enumerate(("Prior", "Posterior"))
    ]
    found = []
    rows = [slice(0, 5), slice(5, 10), slice(10, 12)]
    columns = [slice(0, 7), slice(7, 14), slice(14, 18)]
    for out, boxes in (
        ("whole", [(slice(0, 12), slice(0, 18))]),
        ("tiles", [(a, b) for a in rows for b in columns]),
    ):
        monkeypatch.setattr(comparing, "_tiles", lambda *_, boxes=boxes: boxes)
        benchmark(runs, [product], tmp_path / out, frequencies=[frequency])
        found.append([float(row["value"] or "nan") for row in rows_of(tmp_path / out)])
        summary = json.loads((tmp_path / out / "benchmark.json").read_text())
        (entry,) = summary["comparisons"]
        series = [*entry["cycles"].values(), *(a["series"] for a in entry["annual"].values())]
        found[-1] += [float(v) for own in series for run in own for v in run if v is not None]
    assert len(found[0]) > 100
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_tiles_are_whole_chunks_that_fit_and_cover_the_map_once():
    class Stored:
        def __init__(self, grid: Grid, chunk: tuple[int, int]) -> None:
            self.grid, self.chunk = grid, chunk

    grid = standard_grid("0.5deg")
    many = comparing._tiles(grid, [Stored(grid, (90, 90))] * 41, 12, 0, 240)
    assert all(b.start % 90 == 0 for box in many for b in box)
    covered = np.zeros(grid.shape, int)
    for box in many:
        covered[box] += 1
    assert (covered == 1).all()
    assert len(many) > 4
    maps = [Stored(grid, (90, 90)), Stored(grid, grid.shape)]
    assert comparing._tiles(grid, maps, 12, 0, 240) == [(slice(0, 360), slice(0, 720))]
    coarse = [Stored(grid, (90, 90)), Stored(standard_grid("1deg"), (90, 90))]
    assert len(comparing._tiles(standard_grid("1deg"), coarse, 12, 0, 240)) == 1


def test_many_runs_are_taken_in_tiles_even_where_files_hold_whole_maps():
    class Stored:
        def __init__(self, grid: Grid, chunk: tuple[int, int]) -> None:
            self.grid, self.chunk = grid, chunk

    grid = standard_grid("0.5deg")
    product, stores = Stored(grid, grid.shape), [Stored(grid, (90, 90))] * 40
    boxes = comparing._tiles(grid, [product, *stores], 12, 20, 240)
    assert boxes == comparing._tiles(grid, [stores[0], *stores], 12, 20, 240)
    files = comparing._tiles(grid, [product] * 41, 12, 20, 240)
    assert sum((b[0].stop - b[0].start) * (b[1].stop - b[1].start) for b in files) == 360 * 720
    # 41 series of 12 months and 20 years: 25 kB a cell.
    largest = max((b[0].stop - b[0].start) * (b[1].stop - b[1].start) for b in files)
    assert 41 * (8 * 48 + 12 * 20) * largest < 2**30 < 41 * (8 * 48 + 12 * 20) * 360 * 720
    assert len(files) < len(boxes)
