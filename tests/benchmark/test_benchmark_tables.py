"""The tables of scores: the same numbers in scores.csv and scores.parquet, the same bytes."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from benchmark_cases import benchmark, cycles, write_product, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.benchmark.tables import COLUMNS, Score, read_scores, write_parquet, write_scores

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=6)
rows = st.builds(
    Score,
    *[words] * 10,
    st.floats(),
    words,
    st.integers(0, 2**62),
    st.integers(0, 10**5),
    st.floats(),
    st.floats(),
)


def in_parquet(path: Path) -> list[Score]:
    return [
        Score(**{name: math.nan if value is None else value for name, value in row.items()})
        for row in pq.read_table(path).to_pylist()
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(rows, max_size=4))
def test_parquet_and_csv_hold_the_same_numbers(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("tables")
    write_scores(folder / "scores.csv", table)
    write_parquet(folder / "scores.parquet", table)
    assert repr(in_parquet(folder / "scores.parquet")) == repr(
        list(read_scores(folder / "scores.csv"))
    )


def test_the_columns_of_parquet_have_types(tmp_path):
    row = Score(*"abcdefghij", 1 / 3, "1", 2, 3)
    for table in ([], [row, row]):
        write_parquet(tmp_path / "s.parquet", table)
        schema = pq.read_schema(tmp_path / "s.parquet")
        assert schema.names == list(COLUMNS)
        kinds = {name: schema.field(name).type for name in COLUMNS}
        text = pa.dictionary(pa.int32(), pa.string())
        numbers = {"value": pa.float64(), "low": pa.float64(), "high": pa.float64()}
        counts = {"n_cells": pa.int64(), "n_months": pa.int64()}
        assert kinds == dict.fromkeys(COLUMNS, text) | numbers | counts
    table = pq.read_table(tmp_path / "s.parquet")
    assert table["value"].to_pylist() == [0.3333333333] * 2
    assert table["low"].null_count == 2


def test_a_benchmark_writes_both_and_the_same_bytes_every_time(tmp_path):
    truth = cycles(3)
    runs = [write_run(tmp_path, truth + 1), write_run(tmp_path, truth, stage="Posterior")]
    product = write_product(tmp_path, truth)
    for name in ("one", "two"):
        benchmark(runs, [product], tmp_path / name, regions=["global"])
    one, two = ((tmp_path / name / "scores.parquet").read_bytes() for name in ("one", "two"))
    assert one == two
    found = in_parquet(tmp_path / "one" / "scores.parquet")
    assert len(found) > 20
    assert repr(found) == repr(list(read_scores(tmp_path / "one" / "scores.csv")))
