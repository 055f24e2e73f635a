"""Spread between models: laws on random models, one study by hand, and what the files say."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product as combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import benchmark, cycles, number, rows_of, write_product, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.benchmark import Product, write_report
from callmip_global.benchmark.inputs import Run
from callmip_global.benchmark.regions import REGIONS, region_area
from callmip_global.benchmark.spread import (
    Spread,
    _spread_of_cell,
    between_models,
    land_fraction,
    one_stage_notes,
    total_units,
)
from callmip_global.grid import Grid
from callmip_global.regrid import regrid_dataset
from callmip_global.variables import variable_table

STAGES = ("Prior", "Posterior")
GRID = Grid("g", np.linspace(-90, 90, 5), np.linspace(-180, 180, 7))
DAYS = np.array([31, 28.25, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
AREAS = {name: region_area(REGIONS[name], GRID) for name in ("global", "tropics", "nh")}
REF = Product("REF", "hfls", ("x",), "synthetic")


def run_of(model: str, stage: str, member: int | None = None) -> Run:
    return Run(model, "S3", stage, member, "g", "", [])


def comparison_of(
    fields: Sequence[np.ndarray],
    runs: Sequence[Run],
    reference: np.ndarray,
    *,
    variable: str = "gpp",
    anomaly: bool = False,
) -> Any:
    """A comparison of mean years (12, nlat, nlon) of runs, as one pass over them leaves it."""
    product = Product("REF", variable, ("x",), "synthetic", anomaly=anomaly)

    def cycle(field: np.ndarray, area: np.ndarray) -> list[float]:
        cells = np.isfinite(reference) & (area > 0)
        if not cells.any():
            return [math.nan] * 12
        return np.average(field[:, cells], axis=1, weights=area[cells]).tolist()

    masked = [np.where(np.isfinite(reference), field, np.nan) for field in fields]
    # What the spread is made of, and no more.
    return SimpleNamespace(
        product=product,
        runs=list(runs),
        areas=AREAS,
        periods=tuple((2001, month) for month in range(1, 13)),
        days=DAYS,
        reference=reference,
        maps=[{"mean": np.average(field, axis=0, weights=DAYS)} for field in masked],
        cycles={
            name: [cycle(field, area) for field in (np.zeros((12, *GRID.shape)), *masked)]
            for name, area in AREAS.items()
        },
    )


@st.composite
def studies(draw: st.DrawFn, least: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Mean years (2 stages, n models, 12, nlat, nlon) and a product with gaps."""
    n = draw(st.integers(least, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([1e-8, 1.0, 300.0]))
    shape = (2, n, 12, *GRID.shape)
    own = rng.normal(size=shape) + 3 * rng.normal(size=(2, n, 1, 1, 1))
    reference = rng.normal(size=GRID.shape)
    reference[rng.random(GRID.shape) < 0.3] = np.nan
    reference[1, 0] = reference[2, 0] = 0.5
    return size * (draw(st.sampled_from([0.0, 20.0])) + own), size * reference


def spread_of(
    fields: np.ndarray, reference: np.ndarray, land: np.ndarray | None = None, **options: object
) -> Spread:
    runs = [run_of(f"M{i}", stage) for stage, i in combinations(STAGES, range(fields.shape[1]))]
    comparison = comparison_of([*fields[0], *fields[1]], runs, reference, **options)
    (spread,) = between_models(comparison, lambda: whole() if land is None else land)
    return spread


def whole() -> np.ndarray:
    return np.ones(GRID.shape)


def by_days(values: np.ndarray) -> np.ndarray:
    return np.average(values, axis=0, weights=DAYS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4).map(float), min_size=3, max_size=9))
def test_a_cell_has_the_deviations_that_numpy_finds_with_and_without_each_model(row):
    """Whole numbers, so that there are equal ones."""
    values = np.array(row)
    n = len(values)
    found = np.empty((4, n + 1))
    _spread_of_cell(values, np.empty(n, np.int64), np.empty(n), found)
    for position in range(n + 1):
        kept = values if position == 0 else np.delete(values, position - 1)
        mad = np.median(np.abs(kept - np.median(kept)))
        expected = [kept.std(ddof=1), mad, np.ptp(kept), kept.var(ddof=1)]
        np.testing.assert_allclose(found[:, position], expected, rtol=1e-12, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(studies())
def test_offset_pattern_and_season_add_up_with_what_is_left_in_cell_and_month(study):
    """The variance across models over area and days is offset, pattern, season of the region, and
    the rest: the departure of each cell's season from that of the region. None overlaps."""
    fields, reference = study
    spread = spread_of(fields, reference)
    cells = np.isfinite(reference)
    for (s, stage), (r, area) in combinations(enumerate(STAGES), enumerate(AREAS.values())):
        weight = area[cells] / area[cells].sum()
        own = fields[s][..., cells]
        part = {name: of[r] ** 2 for name, of in spread.values[stage].items()}
        mean_maps = np.average(own, axis=1, weights=DAYS)
        variance_of_means = mean_maps.var(axis=0, ddof=1) @ weight
        assert part["spread_offset"] + part["spread_pattern"] == pytest.approx(
            variance_of_means, rel=1e-10
        )
        whole = by_days(own.var(axis=0, ddof=1)) @ weight
        regional = own @ weight
        rest = own - mean_maps[:, None] - regional[..., None]
        rest += np.average(regional, axis=1, weights=DAYS)[:, None, None]
        left = by_days(rest.var(axis=0, ddof=1)) @ weight
        parts = sum(part[f"spread_{name}"] for name in ("offset", "pattern", "seasonal"))
        assert parts + left == pytest.approx(whole, rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(studies(least=4))
def test_the_ends_of_a_reduction_are_those_of_studies_without_one_of_the_models(study):
    fields, reference = study
    spread = spread_of(fields, reference)
    others = [
        spread_of(np.delete(fields, k, axis=1), reference).reductions
        for k in range(fields.shape[1])
    ]
    assert len(spread.reductions) == 7
    for name, (value, low, high) in spread.reductions.items():
        np.testing.assert_allclose(low, np.min([of[name][0] for of in others], axis=0), rtol=1e-6)
        np.testing.assert_allclose(high, np.max([of[name][0] for of in others], axis=0), rtol=1e-6)
        before, after = (spread.values[stage][name] for stage in STAGES)
        np.testing.assert_allclose(value, 1 - after / before, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(studies())
def test_members_count_as_their_mean_and_a_model_of_one_stage_not_at_all(study):
    fields, reference = study
    n = fields.shape[1]
    alone = spread_of(fields, reference)
    runs = [run_of(f"M{i}", stage) for stage, i in combinations(STAGES, range(n))]
    flat = [*fields[0], *fields[1]]
    off = fields[0, 1] - fields[0, 0]
    runs = [*runs[:-1], run_of(f"M{n - 1}", "Posterior", 1), run_of(f"M{n - 1}", "Posterior", 2)]
    flat = [*flat[:-1], flat[-1] + off, flat[-1] - off]
    runs, flat = [*runs, run_of("LONE", "Prior")], [*flat, 100 * flat[0]]
    (found,) = between_models(comparison_of(flat, runs, reference), whole)
    assert found.models == alone.models
    for stage in STAGES:
        for name, expected in alone.values[stage].items():
            np.testing.assert_allclose(found.values[stage][name], expected, rtol=1e-8)
        np.testing.assert_allclose(found.cycles[stage], alone.cycles[stage], rtol=1e-8)


@settings(max_examples=20, deadline=None)
@given(studies(), st.floats(0.0, 1.0))
def test_models_drawn_towards_their_mean_lose_that_share_of_every_spread(study, share):
    fields, reference = study
    mean = fields[0].mean(axis=0)
    spread = spread_of(np.stack([fields[0], mean + (1 - share) * (fields[0] - mean)]), reference)
    for found in spread.reductions.values():
        np.testing.assert_allclose(found, share, atol=1e-6)


def test_models_that_cannot_be_told_from_the_product_have_a_skill_of_one():
    """Five models and the product drawn alike: the product lies within the range of the models in
    4 of 6 cells. Drawn together about a wrong value, they are narrow and wrong."""
    rng = np.random.default_rng(5)
    skill, inside, narrow = [], [], []
    for _ in range(150):
        drawn = rng.normal(size=(6, *GRID.shape))
        prior = np.repeat(drawn[:5, None], 12, axis=1)
        spread = spread_of(np.stack([prior, 0.1 * prior + 5.0]), drawn[5])
        variance, error = (
            spread.values["Prior"][name][0] ** 2 for name in ("spread_skill", "multi_model_rmse")
        )
        skill.append((variance * error, error))
        inside.append(spread.values["Prior"]["range_coverage"][0])
        narrow.append(
            [spread.values["Posterior"][name][0] for name in ("spread_skill", "range_coverage")]
        )
    variance, error = np.mean(skill, axis=0)
    assert math.sqrt(variance / error) == pytest.approx(1.0, abs=0.04)
    assert np.mean(inside) == pytest.approx(4 / 6, abs=0.03)
    assert np.max(narrow, axis=0) == pytest.approx([0.0, 0.0], abs=0.05)


def test_where_nothing_differs_there_is_no_reduction_and_not_all_of_it():
    """Three equal priors, but for what float32 leaves: 1 - posterior / prior would be noise."""
    field = 300.0 + np.zeros((2, 3, 12, *GRID.shape))
    field[0, 1] += 1e-5
    field[1, 2] += 2.0
    spread = spread_of(field, np.full(GRID.shape, 300.0))
    for found in spread.reductions.values():
        assert np.isnan(found[0]).all()
    assert spread.values["Posterior"]["spread"][0] == pytest.approx(2.0 / math.sqrt(3.0))


def test_a_region_without_a_common_cell_has_no_spread():
    fields = np.random.default_rng(1).normal(size=(2, 3, 12, *GRID.shape))
    reference = np.zeros(GRID.shape)
    reference[2:] = np.nan
    spread = spread_of(fields, reference)
    north = list(AREAS).index("nh")
    assert spread.cells[north] == 0
    assert np.isnan([of[north] for of in spread.values["Prior"].values()]).all()
    assert np.isfinite(spread.values["Prior"]["spread"][0])


def test_an_anomaly_gets_no_number_that_needs_its_mean():
    fields = np.random.default_rng(1).normal(size=(2, 3, 12, *GRID.shape))
    spread = spread_of(fields, np.zeros(GRID.shape), variable="mrso", anomaly=True)
    assert not {"multi_model_rmse", "spread_skill", "range_coverage"} & set(spread.values["Prior"])
    assert set(spread.maps["Prior"]) == {"spread", "spread_mad", "spread_range"}


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("gpp", "PgC yr-1"),
        ("ra", "PgC yr-1"),
        ("tran", "1e3 km3 yr-1"),
        ("cSoil", "PgC"),
        ("hfls", "PW"),
        ("hfss", None),
        ("ts", None),
        ("mrso", None),
    ],
)
def test_a_total_has_the_units_people_know_it_in(name, units):
    assert total_units(variable_table()[name]) == units


def test_a_total_of_gpp_is_in_petagrams_a_year():
    """1 kg m-2 over a Julian year everywhere: the area of the Earth in m2, in 1e12 kg."""
    year = 365.25 * 86400.0
    fields = np.zeros((2, 3, 12, *GRID.shape))
    fields[0] += np.array([0.0, 1.0, 2.0])[:, None, None, None] / year
    spread = spread_of(fields, np.zeros(GRID.shape))
    found = spread.values["Prior"]["total_spread"][0]
    assert found == pytest.approx(GRID.cell_area.sum() * 1e-12, rel=1e-12)
    assert spread.units == {"total_spread": "PgC yr-1"}


def test_of_a_cell_only_the_land_counts_in_a_total():
    """Half of the north is land: its total differs by a quarter of the Earth; ts has no total."""
    fields = np.zeros((2, 3, 12, *GRID.shape))
    fields[:, 1, :, 2:] = 1.0
    fields[:, 2, :, 2:] = 2.0
    land = np.where(np.arange(4) < 2, 0.3, 0.5)[:, None] * np.ones(GRID.shape)
    spread = spread_of(fields, np.zeros(GRID.shape), land, variable="cSoil")
    earth = GRID.cell_area.sum() * 1e-12
    assert spread.values["Prior"]["total_spread"][0] == pytest.approx(earth / 4, rel=1e-12)
    assert spread.values["Prior"]["spread_offset"][0] == pytest.approx(0.5, rel=1e-12)
    mean = spread_of(fields, np.zeros(GRID.shape), land, variable="ts").values["Prior"]
    np.testing.assert_array_equal(mean["total_spread"], mean["spread_offset"])


def test_the_land_of_runs_on_other_grids_is_as_large_on_the_common_one():
    """Fine land of one run, none said by another: on the coarse grid the area of their mean."""
    rng = np.random.default_rng(0)
    fine = Grid("f", np.linspace(-90, 90, 9), np.linspace(-180, 180, 13))
    land, own = rng.random(fine.shape), rng.random(GRID.shape)
    runs = [
        SimpleNamespace(grid=grid, land=given)
        for grid, given in ((fine, land), (fine, land), (GRID, own), (GRID, None))
    ]
    found = land_fraction(runs, GRID, lambda ds, grid: regrid_dataset(ds, grid=grid))
    expected = 2 * (land * fine.cell_area).sum() + ((1 + own) * GRID.cell_area).sum()
    assert (found * GRID.cell_area).sum() == pytest.approx(expected / 4, rel=1e-9)
    assert found.max() <= 1.0


def test_runs_that_know_their_land_have_totals_of_land(tmp_path):
    truth = cycles(1)
    options = {"years": (2001, 2001)}
    runs = [
        write_run(tmp_path, truth + o, model=model, stage=stage, **options)
        for stage in STAGES
        for model, o in (("A", -1.0), ("B", 0.0), ("C", 1.0))
    ]
    for path in runs:
        with xr.open_dataset(path, decode_times=False) as ds:
            ds = ds.load()
        ds["sftlf"] = (("lat", "lon"), np.full((6, 8), 40.0), {"units": "%"})
        ds["hfls"].attrs["cell_methods"] = "area: mean where land"
        path.unlink()
        ds.to_netcdf(path)
    products = [write_product(tmp_path, truth, **options)]
    benchmark(runs, products, tmp_path / "out", frequencies=["mon"])
    found = number(tmp_path / "out", "total_spread", model="all models", stage="Prior")
    assert found == pytest.approx(0.4 * GRID.cell_area.sum() * 1e-15, rel=1e-9)


def test_models_of_one_stage_are_named_where_there_would_be_enough():
    runs = [run_of(model, stage) for model, stage in combinations("ABC", STAGES)]
    start = "spread between models, S3, of hfls (REF):"
    assert one_stage_notes([(REF, "mon", runs)]) == []
    assert one_stage_notes([(REF, "mon", [*runs, run_of("D", "Prior")])]) == [
        f"{start} without D, of one stage only."
    ]
    assert one_stage_notes([(REF, "mon", runs[:-1])]) == [
        f"{start} without C, of one stage only; that leaves 2, 3 are needed."
    ]
    few = f"{start} 2 are too few, 3 are needed."
    assert one_stage_notes([(REF, "mon", runs[:3])]) == [few]
    assert one_stage_notes([(REF, "mon", runs[:2])]) == []


def test_products_of_which_the_same_is_to_be_told_share_a_line():
    """Model D has a posterior of its annual nep alone; E has no posterior at all."""
    runs = [run_of(model, stage) for model, stage in combinations("ABC", STAGES)]
    runs.append(run_of("E", "Prior"))
    monthly = [*runs, run_of("D", "Prior")]
    annual = [*monthly, run_of("D", "Posterior")]
    other, nep = replace(REF, name="B"), replace(REF, name="C", variable="nep")
    compared = [(p, f, monthly) for p in (REF, other) for f in ("mon", "yr")]
    compared += [(nep, "mon", monthly), (nep, "yr", annual)]
    start = "spread between models, S3, of"
    assert one_stage_notes(compared) == [
        f"{start} hfls (REF, B), nep (C at mon): without D, E, of one stage only.",
        f"{start} nep (C at yr): without E, of one stage only.",
    ]


TWO = Grid("two", np.array([0.0, 90.0]), np.array([0.0, 120.0, 360.0]))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells of areas 1 : 2, months of 30 days, three models.

    Model i is the truth + o + a (2, -1) + s in odd and - s in even months. Prior: o = -3, 0, 3,
    a = 1, 0, -1, s = 2, 0, -2; so the first cell departs by -1, 0, 1, the second by -4, 0, 4.
    Posterior: o = 0, 0, 3; a and s are those of the prior, halved. The product is the truth - 2.
    """
    folder = tmp_path_factory.mktemp("spread")
    options = {"grid": TWO, "years": (2001, 2001), "calendar": "360_day"}
    truth = cycles(1, TWO)
    stripes = np.tile([1.0, -1.0], 6)[:, None, None]
    slope = np.array([2.0, -1.0])
    prior = {"A": (-3.0, 1.0, 2.0), "B": (0.0, 0.0, 0.0), "C": (3.0, -1.0, -2.0)}
    posterior = {"A": (0.0, 0.5, 1.0), "B": (0.0, 0.0, 0.0), "C": (3.0, -0.5, -1.0)}
    runs = [
        write_run(folder, truth + o + a * slope + s * stripes, model=model, stage=stage, **options)
        for stage, models in (("Prior", prior), ("Posterior", posterior))
        for model, (o, a, s) in models.items()
    ]
    runs.append(write_run(folder, truth + 99.0, model="LONE", **options))
    benchmark(runs, [write_product(folder, truth - 2.0, **options)], folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ("spread", (1 * 1 + 2 * 4) / 3),
        ("spread_mad", (1 * 1 + 2 * 4) / 3),
        ("spread_range", (1 * 2 + 2 * 8) / 3),
        ("spread_offset", 3.0),
        # The variance of a is 1, times the mean square of (2, -1) over the area.
        ("spread_pattern", math.sqrt((4 * 1 + 1 * 2) / 3)),
        ("spread_seasonal", 2.0),
        ("total_spread", 3.0 * TWO.cell_area.sum() * 1e-15),
        ("multi_model_rmse", 2.0),
        ("spread_skill", math.sqrt(4 / 3 * (1 * 1 + 2 * 16) / 3) / 2.0),
        # The product is 2 below the truth: outside -1 to 1, inside -4 to 4.
        ("range_coverage", 2 / 3),
    ],
)
def test_the_prior_of_three_models_by_hand(out, quantity, expected):
    found = number(out, quantity, model="all models", stage="Prior")
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_reduction_by_hand_with_each_model_left_out(out):
    """Offsets -3, 0, 3 and 0, 0, 3: without A, B, C the ratio of the two spreads is 1, 1/2, 0.

    Shapes halve, whichever model is left out."""
    row = one(out, "spread_offset_reduction")
    assert float(row["value"]) == pytest.approx(1.0 - math.sqrt(3.0) / 3.0, rel=1e-9)
    assert (float(row["low"]), float(row["high"])) == pytest.approx((0.0, 1.0), abs=1e-9)
    total = one(out, "total_spread_reduction")
    assert [float(total[key]) for key in ("value", "low", "high")] == pytest.approx(
        [float(row[key]) for key in ("value", "low", "high")]
    )
    for name in ("spread_pattern", "spread_seasonal"):
        row = one(out, f"{name}_reduction")
        assert [float(row[key]) for key in ("value", "low", "high")] == pytest.approx([0.5] * 3)


def one(out: Path, quantity: str, stage: str = "Posterior-Prior") -> dict[str, str]:
    wanted = {"model": "all models", "region": "global", "quantity": quantity, "stage": stage}
    (row,) = [r for r in rows_of(out) if all(r[key] == value for key, value in wanted.items())]
    return row


def test_every_change_is_posterior_minus_prior_and_has_its_units(out):
    before, after, change = (
        {r["quantity"]: r for r in rows_of(out) if r["model"] == "all models" and good(r, stage)}
        for stage in (*STAGES, "Posterior-Prior")
    )
    assert set(before) == set(after)
    assert set(change) - set(before) == {
        f"{name}_reduction"
        for name in before
        if name not in ("multi_model_rmse", "spread_skill", "range_coverage")
    }
    for name, row in before.items():
        difference = float(after[name]["value"]) - float(row["value"])
        assert float(change[name]["value"]) == pytest.approx(difference, abs=1e-8)
    units = {name: row["units"] for name, row in change.items()}
    assert units.pop("total_spread") == "PW"
    unitless = {name for name, unit in units.items() if unit == "1"}
    assert unitless == {n for n in units if n.endswith(("_reduction", "_skill", "_coverage"))}
    assert {units[name] for name in set(units) - unitless} == {"W m-2"}


def good(row: dict[str, str], stage: str) -> bool:
    return row["stage"] == stage and row["region"] == "global"


def test_the_files_say_which_models_count_and_how_their_seasons_differ(out):
    """Odd months of the region depart by -1, 0, 1, even ones by -5, 0, 5."""
    summary = json.loads((out / "benchmark.json").read_text())
    (entry,) = summary["comparisons"]
    assert entry["spread_models"] == {"S3": ["A", "B", "C"]}
    assert entry["spread_cycles"]["global"]["S3"]["Prior"] == pytest.approx([1.0, 5.0] * 6)
    assert set(entry["spread_cycles"]["global"]["S3"]) == set(STAGES)
    line = "spread between models, S3, of hfls (REF): without LONE, of one stage only."
    assert line in summary["notes"]


def test_maps_of_the_spread_and_of_the_error_of_the_mean_of_the_models(out):
    with xr.open_dataset(out / "maps" / "hfls_REF_all-models_S3_mon.nc") as ds:
        for name, expected in (
            ("spread_prior", [1, 4]),
            ("spread_mad_prior", [1, 4]),
            ("spread_range_prior", [2, 8]),
            ("multi_model_bias_prior", [2, 2]),
            ("multi_model_bias_posterior", [3, 3]),
        ):
            np.testing.assert_allclose(ds[name][0], expected, rtol=1e-6)
            assert ds[name].attrs["units"] == "W m-2"
            assert "long_name" in ds[name].attrs
        assert len(ds.data_vars) - sum(n.endswith("_bnds") for n in ds.data_vars) >= 8


def test_the_report_is_written_of_all_these_rows(out, tmp_path):
    text = write_report(out, out=tmp_path / "report.html").read_text(encoding="utf-8")
    assert "spread_offset_reduction" in text


def test_annual_and_static_comparisons_have_a_spread_without_a_season(tmp_path):
    truth = cycles(3)
    runs = [
        write_run(tmp_path, truth + o, model=model, stage=stage, variable="cSoil", units="kg m-2")
        for stage in STAGES
        for model, o in (("A", 0.0), ("B", 1.0), ("C", 2.0))
    ]
    options = {"variable": "cSoil", "units": "kg m-2"}
    products = [
        write_product(tmp_path, truth, **options),
        write_product(tmp_path, truth.mean(axis=0), name="MAP", static=True, **options),
    ]
    benchmark(runs, products, tmp_path / "out", frequencies=["yr"])
    for frequency in ("yr", "fx"):
        names = {r["quantity"] for r in rows_of(tmp_path / "out") if r["frequency"] == frequency}
        assert "spread_pattern" in names
        assert "spread_seasonal" not in names
        assert number(
            tmp_path / "out", "spread", model="all models", stage="Prior", frequency=frequency
        ) == pytest.approx(1.0)
    with (tmp_path / "out" / "scores.csv").open(encoding="utf-8", newline="") as file:
        assert {r["units"] for r in csv.DictReader(file) if r["quantity"] == "total_spread"} == {
            "PgC"
        }
