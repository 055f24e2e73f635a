"""Product against product: the numbers of a run, of the right period, and none of the runs' own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_cases import GRID, benchmark, cycles, rows_of, write_product, write_run

from callmip_global.benchmark import Product
from callmip_global.benchmark.ceiling import rivals

NUMBERS = ("region", "frequency", "scheme", "quantity", "value", "n_cells", "n_months", "units")


def rows_of_model(out: Path, model: str, product: str) -> list[tuple[str, ...]]:
    rows = [row for row in rows_of(out) if (row["model"], row["product"]) == (model, product)]
    return [tuple(row[name] for name in NUMBERS) for row in rows]


def entries(out: Path, product: str, frequency: str = "mon") -> list[dict[str, Any]]:
    summary = json.loads((out / "benchmark.json").read_text())
    (entry,) = (
        c for c in summary["comparisons"] if (c["product"], c["frequency"]) == (product, frequency)
    )
    return entry["ceiling"]


def value(out: Path, quantity: str, **where: str) -> float | None:
    wanted = {"stage": "Reference", "region": "global", "frequency": "mon", "quantity": quantity}
    (row,) = (r for r in rows_of(out) if all(r[k] == v for k, v in (wanted | where).items()))
    return float(row["value"]) if row["value"] else None


def gappy(values: np.ndarray) -> np.ndarray:
    other = values.copy()
    other[:7, 3] = np.nan
    other[:, 0, 0] = np.nan
    return other


def test_another_product_gets_the_numbers_it_would_get_as_a_run(tmp_path):
    """Mask and months are those of the two products alone, whatever the runs lack."""
    truth, other = cycles(3), gappy(cycles(3, seed=1))
    products = [write_product(tmp_path, v, name=n) for n, v in (("A", truth), ("B", other))]
    lacking = truth + 1.0
    lacking[:, 2:4] = np.nan
    run = write_run(tmp_path, lacking)
    as_run = write_run(tmp_path, other, model="B")
    schemes = ["collier2018", "ilamb27", "ilamb3"]
    benchmark([run], products, tmp_path / "both", schemes=schemes)
    benchmark([as_run], products[:1], tmp_path / "alone", schemes=schemes)
    expected = rows_of_model(tmp_path / "alone", "B", "A")
    assert len(expected) > 100
    assert rows_of_model(tmp_path / "both", "product B", "A") == expected


def test_the_ceiling_changes_no_number_of_a_run(tmp_path):
    truth = cycles(3)
    a = write_product(tmp_path, truth, name="A")
    b = write_product(tmp_path, gappy(truth)[:24], name="B", years=(2001, 2002))
    runs = [write_run(tmp_path, truth + i, stage=s) for i, s in enumerate(("Prior", "Posterior"))]
    benchmark(runs, [a], tmp_path / "alone")
    benchmark(runs, [a, b], tmp_path / "both")
    expected = rows_of_model(tmp_path / "alone", "M.v1", "A")
    assert len(expected) > 100
    assert rows_of_model(tmp_path / "both", "M.v1", "A") == expected
    maps = "maps/hfls_A_M.v1_S3_mon.nc"
    assert (tmp_path / "both" / maps).read_bytes() == (tmp_path / "alone" / maps).read_bytes()


def test_a_row_says_that_it_is_of_a_product_and_the_summary_holds_the_overall_score(tmp_path):
    truth = cycles(3)
    products = [write_product(tmp_path, truth, name=name) for name in ("A", "B")]
    benchmark([write_run(tmp_path, truth)], products, tmp_path / "o", regions=["global", "nh"])
    (row,) = (
        r
        for r in rows_of(tmp_path / "o")
        if r["quantity"] == "overall_score" and r["model"] == "product B"
        if (r["region"], r["frequency"]) == ("nh", "mon")
    )
    assert [row[name] for name in ("product", "simulation", "stage", "member", "value")] == [
        "A",
        "",
        "Reference",
        "",
        "1",
    ]
    assert entries(tmp_path / "o", "A") == [
        {
            "product": "B",
            "years": [2001, 2003],
            "n_months": 36,
            "of_runs": True,
            "overall": {"collier2018": {"global": 1.0, "nh": 1.0}},
            "scores_present": {"collier2018": {"global": 5, "nh": 5}},
            "taylor": {"collier2018": {"global": [1.0, 1.0], "nh": [1.0, 1.0]}},
        }
    ]
    assert [of["product"] for of in entries(tmp_path / "o", "B")] == ["A"]


@pytest.mark.parametrize(
    ("runs", "other", "window", "expected"),
    [
        ((2002, 2003), (2001, 2003), None, ([2002, 2003], 24, True)),
        ((2003, 2003), (2001, 2002), None, ([2001, 2002], 24, False)),
        ((2001, 2003), (2001, 2003), (2002, 2002), ([2002, 2002], 12, True)),
    ],
    ids=["months of the runs", "none of them: all in common", "window of the other"],
)
def test_the_period_is_that_of_the_runs_where_products_share_enough_of_it(
    tmp_path, runs, other, window, expected
):
    truth = cycles(3)

    def part(years: tuple[int, int]) -> np.ndarray:
        return truth[12 * (years[0] - 2001) : 12 * (years[1] - 2000)]

    products = [
        write_product(tmp_path, truth, name="A"),
        write_product(tmp_path, part(other) + 3.0, name="B", years=other, window=window),
    ]
    run = write_run(tmp_path, part(runs), years=runs)
    benchmark([run], products, tmp_path / "o", frequencies=["mon"])
    (entry,) = entries(tmp_path / "o", "A")
    assert (entry["years"], entry["n_months"], entry["of_runs"]) == expected
    assert value(tmp_path / "o", "bias", product="A") == pytest.approx(3.0)


def test_products_that_share_too_little_are_a_note(tmp_path):
    truth = cycles(3)
    products = [
        write_product(tmp_path, truth[:24], name="A", years=(2001, 2002)),
        write_product(tmp_path, truth[24:], name="B", years=(2003, 2003)),
    ]
    run = write_run(tmp_path, truth)
    summary = benchmark([run], products, tmp_path / "o", frequencies=["mon"])
    assert entries(tmp_path / "o", "A") == entries(tmp_path / "o", "B") == []
    assert "product A: no ceiling at mon from B: 0 steps in common." in summary["notes"]
    assert summary["problems"] == []


def test_products_that_meet_in_no_cell_are_a_note(tmp_path):
    north, south = cycles(3), cycles(3)
    north[:, :3] = np.nan
    south[:, 3:] = np.nan
    products = [write_product(tmp_path, v, name=n) for n, v in (("A", north), ("B", south))]
    summary = benchmark([write_run(tmp_path, cycles(3))], products, tmp_path / "o")
    assert entries(tmp_path / "o", "A") == []
    assert any("no ceiling at mon from B: product A: hfls" in note for note in summary["notes"])


def test_an_annual_product_is_a_ceiling_for_annual_means_only(tmp_path):
    truth = cycles(4)
    four = {"years": (2001, 2004)}
    a = write_product(tmp_path, truth, name="A", **four)
    annual = truth.reshape(4, 12, *GRID.shape).mean(axis=1)
    b = write_product(tmp_path, annual, name="B", frequency="yr", **four)
    benchmark([write_run(tmp_path, truth, **four)], [a, b], tmp_path / "o")
    assert entries(tmp_path / "o", "A") == []
    (entry,) = entries(tmp_path / "o", "A", "yr")
    assert (entry["product"], entry["n_months"]) == ("B", 48)
    assert [of["product"] for of in entries(tmp_path / "o", "B", "yr")] == ["A"]


def test_static_products_against_each_other_by_hand(tmp_path):
    """Twice the stock everywhere: exp(-1), and 8 / (2 * 2.5^2) for a pattern twice as strong."""
    stock = np.linspace(1.0, 9.0, GRID.shape[0] * GRID.shape[1]).reshape(GRID.shape)
    options = {"variable": "cSoil", "units": "kg m-2", "static": True}
    products = [
        write_product(tmp_path, stock, name="A", window=(2002, 2003), **options),
        write_product(tmp_path, 2.0 * stock, name="B", **options),
        write_product(tmp_path, cycles(3), name="C", variable="cSoil", units="kg m-2"),
    ]
    run = np.broadcast_to(stock, (36, *GRID.shape))
    benchmark(
        [write_run(tmp_path, run, variable="cSoil", units="kg m-2")], products, tmp_path / "o"
    )
    (entry,) = entries(tmp_path / "o", "A", "fx")
    assert (entry["product"], entry["years"], entry["n_months"]) == ("B", None, 0)
    where = {"frequency": "fx", "product": "A"}
    assert value(tmp_path / "o", "bias_score", **where) == pytest.approx(np.exp(-1.0))
    assert value(tmp_path / "o", "spatial_score", **where) == pytest.approx(0.64)


@pytest.mark.parametrize("which", ["A", "B"])
def test_where_one_product_is_of_anomalies_both_are_taken_so(tmp_path, which):
    truth = cycles(3)
    products = [
        write_product(tmp_path, truth - truth.mean(axis=0), name="B", anomaly=True),
        write_product(tmp_path, truth + 50.0, name="A"),
    ]
    benchmark([write_run(tmp_path, truth)], products, tmp_path / "o", frequencies=["mon"])
    where = {"product": which}
    assert value(tmp_path / "o", "rmse", **where) == pytest.approx(0.0, abs=1e-6)
    assert value(tmp_path / "o", "rmse_score", **where) == pytest.approx(1.0)
    quantities = {
        r["quantity"]
        for r in rows_of(tmp_path / "o")
        if r["stage"] == "Reference" and r["product"] == which
    }
    assert not quantities & {"bias", "bias_score", "spatial_score"}
    # Runs have bias and pattern in their overall score against A, and not against B.
    overall = None if which == "A" else pytest.approx(1.0)
    assert value(tmp_path / "o", "overall_score", **where) == overall
    (entry,) = entries(tmp_path / "o", which)
    assert entry["overall"]["collier2018"]["global"] == overall


def test_a_product_that_was_refused_is_no_ceiling(tmp_path):
    truth = cycles(3)
    products = [
        write_product(tmp_path, truth, name="A"),
        write_product(tmp_path, 1000.0 * truth, name="B"),
    ]
    summary = benchmark([write_run(tmp_path, truth)], products, tmp_path / "o")
    assert len(summary["problems"]) == 1
    assert entries(tmp_path / "o", "A") == []


def test_who_may_be_held_against_whom(tmp_path):
    one = Product(name="A", variable="gpp", paths=("a.nc",), kind="satellite")
    other = replace(one, name="B", paths=("b.nc",))
    refused = [
        replace(other, variable="nep"),
        replace(other, static=True),
        replace(other, like_for_like=False),
    ]
    for product in refused:
        assert rivals(one, [one, product]) == []
    assert rivals(one, [one, other]) == [other]
    # What is not like for like may be measured itself: runs are off by the same.
    assert rivals(refused[2], [one, refused[2]]) == [one]


def test_two_entries_of_the_same_data_are_no_two_products(tmp_path):
    a = write_product(tmp_path, cycles(3), name="A")
    assert rivals(a, [a, replace(a, name="B")]) == []
    assert rivals(a, [a, replace(a, name="B", source="other")]) != []
