"""The uncertainty that a product states: laws and closed forms of the scores that allow for it,
units, gaps, and one line for one that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import (
    GRID,
    axis_of,
    benchmark,
    cycles,
    dataset,
    number,
    rows_of,
    write_product,
    write_run,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.benchmark import Product, write_report
from callmip_global.benchmark import compare as comparing
from callmip_global.benchmark.product_check import RULES, check_product
from callmip_global.benchmark.scores import SCHEMES
from callmip_global.benchmark.statistics import PairSums
from callmip_global.benchmark.uncertainty import CellUncertainty, ExcessSums
from callmip_global.grid import Grid

DAYS = np.tile([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], 3).astype(float)
WITH_U = ("reference_uncertainty", "uncertain_bias_score", "uncertain_rmse_score")


def stating(
    folder: Path,
    values: np.ndarray,
    uncertainty: np.ndarray,
    sd_units: str | None = "W m-2",
    **options: Any,
) -> Product:
    """A product, and in its file beside ``obs`` the variable ``obs_sd``; without time if 2-d."""
    product = write_product(folder, values, uncertainty="obs_sd", **options)
    path = Path(product.paths[0])
    with xr.open_dataset(path, decode_times=False) as ds:
        whole = ds.load()
    path.unlink()
    dims = ("time", "lat", "lon")[-uncertainty.ndim :]
    whole["obs_sd"] = (dims, uncertainty, {} if sd_units is None else {"units": sd_units})
    whole.to_netcdf(path)
    return product


def sigma_of(values: np.ndarray) -> np.ndarray:
    mean = np.average(values, axis=0, weights=DAYS)
    return np.sqrt(np.average((values - mean) ** 2, axis=0, weights=DAYS))


def scored(r: np.ndarray, m: np.ndarray, u: np.ndarray, days: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of series (T, N) and one model, ordinary and with the uncertainty, annual data."""
    sums = PairSums.empty(1, r.shape[1], 1)
    sums.add(r, m[None], days, np.zeros(len(r), int))
    moments = sums.moments()
    cells = np.arange(r.shape[1])
    excess = ExcessSums.about(moments, cells, len(cells))
    for block in (slice(0, 2), slice(2, None)):
        excess.add(r[block], m[None, block], u[block], days[block])
    own = CellUncertainty.of_sums(excess, sums.weight.sum(axis=0), cells)
    scheme = SCHEMES["ilamb3"]
    found = scheme.cell_maps(moments, 0, "yr")
    with_u = own.run_fields(moments, 0, "yr", [scheme], anomaly=False)
    return found | {name: values for (_, name), values in with_u.items()}


numbers = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4)


@settings(deadline=None, max_examples=50)
@given(r=numbers, m=numbers, u=numbers, more=numbers)
def test_a_larger_uncertainty_never_lowers_a_score_and_none_is_the_ordinary_one(r, m, u, more):
    days = np.array([31.0, 28.0, 31.0, 30.0])
    series = np.array([r, m]).T[:, :, None]
    size = np.abs(np.array(u))[:, None]
    larger = size + np.abs(np.array(more))[:, None]
    r, m = series[:, 0], series[:, 1]
    none, some, most = (scored(r, m, allowed, days) for allowed in (0 * size, size, larger))
    for name in ("bias_score", "rmse_score"):
        np.testing.assert_allclose(none[f"uncertain_{name}"], none[name], atol=1e-6)
        if np.isfinite(none[name]):
            rising = [float(of[f"uncertain_{name}"][0]) for of in (none, some, most)]
            assert rising == sorted(rising)
            assert 0.0 <= rising[0] <= rising[-1] <= 1.0


def test_two_steps_worked_by_hand():
    """r = 0, 4 and m = 3, 1 (equal days): b = 0, sigma = 2; departures of m - r are 3 and -3, with
    U = 1 and 2 beyond by 2 and 1: crmse^2 = (4 + 1) / 2. Bias within the mean U of 1.5: 1."""
    r, m, u = (np.array(x)[:, None] for x in ([0.0, 4.0], [3.0, 1.0], [1.0, 2.0]))
    found = scored(r, m, u, np.array([30.0, 30.0]))
    assert found["reference_uncertainty"] == pytest.approx(1.5)
    assert found["uncertain_bias_score"] == pytest.approx(1.0)
    assert found["uncertain_rmse_score"] == pytest.approx(np.exp(-np.sqrt(2.5) / 2.0))
    assert found["rmse_score"] == pytest.approx(np.exp(-1.5))


def test_an_offset_of_two_sigma_with_one_sigma_of_uncertainty_scores_as_one_sigma(tmp_path):
    truth = cycles(3)
    sigma = sigma_of(truth)
    product = stating(tmp_path, truth, np.broadcast_to(sigma, truth.shape))
    benchmark([write_run(tmp_path, truth + 2.0 * sigma)], [product], tmp_path / "out")
    out = tmp_path / "out"
    assert number(out, "bias_score") == pytest.approx(np.exp(-2.0), rel=1e-9)
    assert number(out, "uncertain_bias_score") == pytest.approx(np.exp(-1.0), rel=1e-9)
    assert number(out, "uncertain_rmse_score") == pytest.approx(1.0)
    area = GRID.cell_area
    assert number(out, "reference_uncertainty") == pytest.approx(np.average(sigma, weights=area))


@pytest.mark.parametrize("frequency", ["mon", "yr"])
def test_without_uncertainty_anywhere_the_scores_are_the_ordinary_ones(tmp_path, frequency):
    truth = cycles(3)
    rng = np.random.default_rng(1)
    run = truth + rng.normal(size=truth.shape) * 5.0 + 2.0
    product = stating(tmp_path, truth, np.zeros(truth.shape))
    benchmark([write_run(tmp_path, run)], [product], tmp_path / "out", schemes=["ilamb3"])
    for name in ("bias_score", "rmse_score"):
        ordinary = number(tmp_path / "out", name, frequency=frequency)
        assert 0.0 <= ordinary < 0.99
        with_u = number(tmp_path / "out", f"uncertain_{name}", frequency=frequency)
        assert with_u == pytest.approx(ordinary, abs=1e-9)


def test_the_ordinary_rows_are_the_same_with_and_without_uncertainty(tmp_path):
    truth = cycles(3)
    rng = np.random.default_rng(2)
    runs = [
        write_run(tmp_path, truth + rng.normal(size=truth.shape), stage=stage)
        for stage in ("Prior", "Posterior")
    ]
    product = stating(tmp_path, truth, np.full(truth.shape, 2.0))
    benchmark(runs, [product], tmp_path / "with")
    benchmark(runs, [replace(product, uncertainty=None)], tmp_path / "without")
    added = (*WITH_U, "beyond_uncertainty_share")
    kept = [row for row in rows_of(tmp_path / "with") if row["quantity"] not in added]
    assert kept == rows_of(tmp_path / "without")
    new = [row for row in rows_of(tmp_path / "with") if row["quantity"] in added]
    changes = {row["quantity"] for row in new if row["stage"] == "Posterior-Prior"}
    assert changes == set(added) - {"reference_uncertainty"}
    assert {row["quantity"] for row in new if row["stage"] == "Prior"} == set(WITH_U)
    assert {row["units"] for row in new} == {"1", "W m-2"}


def test_the_second_reading_does_not_depend_on_tiles_and_blocks(tmp_path, monkeypatch):
    truth = cycles(3)
    rng = np.random.default_rng(3)
    run = truth + rng.normal(size=truth.shape) * 4.0
    run[5, 2] = np.nan
    product = stating(tmp_path, truth, rng.random(truth.shape) * 6.0)
    path = write_run(tmp_path, run)
    benchmark([path], [product], tmp_path / "whole")
    monkeypatch.setattr(comparing, "_tiles", lambda *args: [
        (slice(i, i + 2), slice(j, j + 3)) for i in (0, 2, 4) for j in (0, 3, 6)
    ])  # fmt: skip
    monkeypatch.setattr(comparing, "_block_steps", lambda *args: 7)
    benchmark([path], [product], tmp_path / "parts")
    for name in WITH_U:
        whole = number(tmp_path / "whole", name)
        assert number(tmp_path / "parts", name) == pytest.approx(whole, rel=1e-9)


def test_the_scheme_of_mean_cycles_has_no_rmse_score_with_uncertainty(tmp_path):
    truth = cycles(3)
    product = stating(tmp_path, truth, np.full(truth.shape, 2.0))
    options = {"schemes": list(SCHEMES), "regions": ["global"]}
    benchmark([write_run(tmp_path, truth + 1.0)], [product], tmp_path / "out", **options)
    has = {
        (row["scheme"], row["frequency"])
        for row in rows_of(tmp_path / "out")
        if row["quantity"] == "uncertain_rmse_score"
    }
    assert has == {(s, f) for s in SCHEMES for f in ("mon", "yr")} - {("ilamb27", "mon")}


def test_departures_have_no_bias_and_no_change_to_compare_with_the_uncertainty(tmp_path):
    truth = cycles(3)
    product = stating(tmp_path, truth, np.full(truth.shape, 2.0), anomaly=True)
    runs = [write_run(tmp_path, truth + 1.0, stage=stage) for stage in ("Prior", "Posterior")]
    benchmark(runs, [product], tmp_path / "out", frequencies=["mon"])
    has = {row["quantity"] for row in rows_of(tmp_path / "out")}
    assert has & {*WITH_U, "beyond_uncertainty_share"} == {WITH_U[0], WITH_U[2]}


def test_a_static_map_has_its_own_size_as_the_scale(tmp_path):
    """Model 12 against 8 +- 1: ordinary exp(-4/8), with uncertainty exp(-3/8)."""
    stock = np.full(GRID.shape, 8.0)
    options = {"variable": "cLiveBioAbove", "units": "kg m-2"}
    product = stating(tmp_path, stock, np.ones(GRID.shape), "kg m-2", static=True, **options)
    run = write_run(tmp_path, np.full((36, *GRID.shape), 12.0), **options)
    benchmark([run], [product], tmp_path / "out")
    found = tmp_path / "out"
    assert number(found, "bias_score", frequency="fx") == pytest.approx(np.exp(-0.5))
    assert number(found, "uncertain_bias_score", frequency="fx") == pytest.approx(np.exp(-3 / 8))
    assert "uncertain_rmse_score" not in {row["quantity"] for row in rows_of(found)}


def test_where_the_change_is_larger_than_the_uncertainty(tmp_path):
    """The south changes by 3, the north by 1, the uncertainty is 2; in one column it is unknown."""
    truth = cycles(3)
    change = np.where(np.arange(6)[:, None] < 3, 3.0, 1.0) * np.ones(GRID.shape)
    uncertainty = np.full(truth.shape, 2.0)
    uncertainty[:, :, 0] = np.nan
    product = stating(tmp_path, truth, uncertainty)
    runs = [
        write_run(tmp_path, truth - 1.0),
        write_run(tmp_path, truth - 1.0 + change, stage="Posterior"),
    ]
    benchmark(runs, [product], tmp_path / "out", frequencies=["mon"])
    for region, share in (("global", 0.5), ("sh", 1.0), ("nh", 0.0)):
        found = number(tmp_path / "out", "beyond_uncertainty_share", region=region)
        assert found == pytest.approx(share, abs=1e-9)
    row = next(r for r in rows_of(tmp_path / "out") if r["quantity"] == "beyond_uncertainty_share")
    assert (row["stage"], row["units"], row["n_cells"]) == ("Posterior-Prior", "1", "42")
    with xr.open_dataset(tmp_path / "out/maps/hfls_REF_M.v1_S3_mon.nc") as ds:
        assert float(ds["uncertainty"].max()) == float(ds["uncertainty"].min()) == 2.0
        assert np.isnan(ds["uncertainty"].values).sum() == 6
        assert ds["uncertainty"].attrs["units"] == "W m-2"


def test_the_change_of_scores_beyond_the_uncertainty_is_their_difference_without_an_interval(
    tmp_path,
):
    truth = cycles(5)
    options = {"years": (2001, 2005)}
    product = stating(tmp_path, truth, np.full(truth.shape, 2.0), **options)
    noise = np.random.default_rng(3).normal(size=truth.shape)
    runs = [
        write_run(tmp_path, truth + 9.0 + 8.0 * noise, **options),
        write_run(tmp_path, truth + 4.0 + 5.0 * noise, stage="Posterior", **options),
    ]
    out = tmp_path / "out"
    benchmark(runs, [product], out, frequencies=["mon"], regions=["global"])
    changes = {r["quantity"]: r for r in rows_of(out) if r["stage"] == "Posterior-Prior"}
    for quantity in WITH_U[1:]:
        prior, posterior = (number(out, quantity, stage=s) for s in ("Prior", "Posterior"))
        row = changes[quantity]
        assert float(row["value"]) == pytest.approx(posterior - prior, rel=1e-6)
        assert float(row["value"]) > 0.05
        assert (row["low"], row["high"], row["units"], row["n_cells"]) == ("", "", "1", "48")
        assert changes[quantity.removeprefix("uncertain_")]["low"], "the ordinary one has one"
    assert "reference_uncertainty" not in changes
    text = write_report(out, out=out / "report.html").read_text(encoding="utf-8")
    assert "an error within U counts as none" in text


def test_where_the_uncertainty_is_missing_it_is_none_and_that_is_told(tmp_path):
    """Half of the steps have 4 W m-2: the mean over the days is what is scored."""
    truth = cycles(3)
    uncertainty = np.full(truth.shape, 4.0)
    uncertainty[::2] = np.nan
    product = stating(tmp_path, truth, uncertainty)
    summary = benchmark(
        [write_run(tmp_path, truth)], [product], tmp_path / "out", frequencies=["mon"]
    )
    half = DAYS[1::2].sum() / DAYS.sum()
    assert number(tmp_path / "out", "reference_uncertainty") == pytest.approx(4.0 * half)
    assert summary["problems"] == []
    assert any("obs_sd is there at 50% of the steps" in note for note in summary["notes"])
    assert summary["products"][0]["uncertainty"] == "obs_sd"


UNITS = {
    "its own unit": ("W m-2", 3.0, {}),
    "another unit of the same": ("mW m-2", 3000.0, {}),
    "percent of the value": ("%", 10.0, {}),
    "the factor of the product": ("mm day-1", 0.1, {
        "units": "W m-2", "native_units": "mm day-1", "factor": 30.0}),
    "no unit, but the entry states one": (None, 3.0, {"native_units": "W m-2"}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNITS)
def test_the_uncertainty_is_3_or_a_tenth_of_30_in_any_unit(tmp_path, case):
    units, size, entry = UNITS[case]
    values = np.full((36, *GRID.shape), 30.0) + np.arange(36)[:, None, None] % 2 - 0.5
    factor = entry.get("factor", 1.0)
    own = entry.get("native_units", "W m-2")
    product = stating(tmp_path, values / factor, np.full(values.shape, size), units)
    path = Path(product.paths[0])
    with xr.open_dataset(path, decode_times=False) as ds:
        whole = ds.load()
    path.unlink()
    whole["obs"].attrs["units"] = own
    whole.to_netcdf(path)
    product = replace(product, **entry)
    summary = benchmark(
        [write_run(tmp_path, values)], [product], tmp_path / "out", frequencies=["mon"]
    )
    assert summary["problems"] == []
    found = number(tmp_path / "out", "reference_uncertainty")
    assert found == pytest.approx(3.0, rel=1e-3 if units == "%" else 1e-9)


def test_the_zero_of_a_temperature_is_no_part_of_its_uncertainty(tmp_path):
    values = cycles(3) - 40.0
    options = {"variable": "ts", "units": "degC"}
    product = write_product(tmp_path, values, uncertainty="obs_sd", **options)
    path = Path(product.paths[0])
    with xr.open_dataset(path, decode_times=False) as ds:
        whole = ds.load()
    path.unlink()
    whole["obs_sd"] = (("time", "lat", "lon"), np.full(values.shape, 0.7), {"units": "degC"})
    whole.to_netcdf(path)
    run = write_run(tmp_path, values + 273.15, variable="ts", units="K")
    for entry in ({}, {"units": "degC", "native_units": "K"}):
        if entry:
            whole["obs"].attrs["units"] = "K"
            path.unlink()
            whole.to_netcdf(path)
        out = tmp_path / f"out{len(entry)}"
        benchmark([run], [replace(product, **entry)], out, frequencies=["mon"])
        assert number(out, "reference_uncertainty") == pytest.approx(0.7)


def test_the_uncertainty_of_a_larger_cell_is_the_mean_over_its_area(tmp_path):
    """Four cells of a fine product in one of the run: U = 1, 2, 3, 6 of equal areas is 3."""
    fine = Grid("f", np.linspace(-90, 90, 13), np.linspace(-180, 180, 17))
    values = cycles(3, fine)
    uncertainty = np.zeros(values.shape)
    uncertainty[:, :, ::2] = 1.0
    uncertainty[:, :, 1::2] = 5.0
    product = stating(tmp_path, values, uncertainty, grid=fine)
    benchmark([write_run(tmp_path, cycles(3))], [product], tmp_path / "out", frequencies=["mon"])
    with xr.open_dataset(tmp_path / "out/maps/hfls_REF_M.v1_S3_mon.nc") as ds:
        np.testing.assert_allclose(ds["uncertainty"].values, 3.0, rtol=1e-6)


def test_one_map_of_uncertainty_holds_for_all_months(tmp_path):
    truth = cycles(3)
    map_of_u = np.arange(48.0).reshape(GRID.shape)
    product = stating(tmp_path, truth, map_of_u)
    benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    for frequency in ("mon", "yr"):
        with xr.open_dataset(tmp_path / f"out/maps/hfls_REF_M.v1_S3_{frequency}.nc") as ds:
            np.testing.assert_allclose(ds["uncertainty"].values, map_of_u, rtol=1e-6)


def negative(uncertainty: np.ndarray) -> np.ndarray:
    uncertainty[17, 3, 3] = -2.0
    return uncertainty


def filled(uncertainty: np.ndarray) -> np.ndarray:
    uncertainty[17, :3] = -9999.0
    return uncertainty


REFUSED = {
    "a share of unknown kind": (lambda u: u, "1", "units '1'", "Multiply it by 100"),
    "a unit of something else": (lambda u: u, "kg m-2", "units 'kg m-2'", "convertible"),
    "no unit": (lambda u: u, None, "units ''", "Set it: ncatted"),
    "a negative number": (negative, "W m-2", "-2 in 2002-06", "A fill value?"),
    "a fill value without a name": (filled, "W m-2", "-9999", "Name it first"),
    "no value": (lambda u: u * np.nan, "W m-2", "no value in the cells", ""),
}  # fmt: skip


@pytest.mark.parametrize("defect", REFUSED)
def test_an_uncertainty_that_cannot_be_used_is_one_line_and_the_rest_goes_on(tmp_path, defect):
    change, units, said, remedy = REFUSED[defect]
    truth = cycles(3)
    product = stating(tmp_path, truth, change(np.full(truth.shape, 2.0)), units)
    summary = benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    (line,) = summary["problems"]
    assert line.startswith("product REF")
    assert ": obs_sd: found" in line
    assert said in line
    assert remedy in line
    assert line.endswith("The product is used without its uncertainty. [uncertainty]")
    assert number(tmp_path / "out", "bias_score") == pytest.approx(1.0)
    assert not {row["quantity"] for row in rows_of(tmp_path / "out")} & set(WITH_U)
    (finding,) = check_product(product)
    assert not finding.refuse
    assert finding.problem.rule == "uncertainty"
    assert "uncertainty" in RULES
    assert "(REF.nc)" in str(finding.problem)


def test_an_uncertainty_that_is_not_in_the_files_says_how_to_go_without(tmp_path):
    truth = cycles(3)
    product = write_product(tmp_path, truth, uncertainty="obs_se")
    summary = benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    (line,) = summary["problems"]
    assert line == (
        "product REF (REF.nc): obs_se: found no such variable, wanted one of: obs. Name it with "
        "`uncertainty:`, or say `uncertainty: null`. The product is used without its uncertainty. "
        "[uncertainty]"
    )
    assert json.loads((tmp_path / "out/problems.json").read_text()) == [line]


def test_percent_of_a_product_in_percent_is_refused(tmp_path):
    values = cycles(3) / 10.0
    product = stating(tmp_path, values, np.full(values.shape, 10.0), "%", variable="lai", units="%")
    said = [str(finding.problem) for finding in check_product(product)]
    assert any("units '%', wanted a unit that says whether" in line for line in said)


def test_a_unit_that_the_factor_is_not_for_is_refused(tmp_path):
    values = cycles(3)
    product = stating(tmp_path, values, np.full(values.shape, 10.0), "mW m-2")
    product = replace(product, units="W m-2", native_units="W m-2", factor=1.0001)
    (line,) = [str(finding.problem) for finding in check_product(product)]
    assert "units 'mW m-2', wanted 'W m-2' as the product, for which its factor" in line


def test_files_are_named_and_converted_each_by_its_own_unit(tmp_path):
    """Three years in three files, the second in other units: series, uncertainty and scores."""
    truth = cycles(3)
    for year, units, size in ((2001, "W m-2", 1.0), (2002, "kW m-2", 1e-3), (2003, "W m-2", 1.0)):
        part = truth[12 * (year - 2001) : 12 * (year - 2000)]
        ds = dataset("obs", part * size, GRID, axis_of((year, year)), units)
        ds["obs_sd"] = (ds["obs"].dims, np.full(part.shape, 2.0 * size), {"units": units})
        ds.to_netcdf(tmp_path / f"p{year}.nc")
    product = Product(
        name="P",
        variable="hfls",
        paths=(str(tmp_path / "p*.nc"),),
        kind="synthetic",
        source="obs",
        uncertainty="obs_sd",
    )
    summary = benchmark([write_run(tmp_path, truth)], [product], tmp_path / "out")
    assert summary["problems"] == []
    assert number(tmp_path / "out", "rmse") == pytest.approx(0.0, abs=1e-6)
    assert number(tmp_path / "out", "reference_uncertainty") == pytest.approx(2.0)
