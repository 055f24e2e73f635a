"""Tables of scores: scores.csv and scores.parquet, one number per line, and CMEC's JSON.

Always the same columns and the same bytes for the same input.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from callmip_global.files import write_atomic


@dataclass(frozen=True, slots=True)
class Score:
    """One line of scores.csv; a value that is not defined is an empty field, never 0.

    ``frequency``: mon, yr, or fx for static products. ``stage``: Prior, Posterior, or
    Posterior-Prior for their difference. ``n_cells``: cells behind the number; ``n_months``:
    months that all series have in common (twelve per year for annual data). ``low``, ``high``:
    ends of the 95 % interval of the value, or of a reduction of the spread across models the range
    of it when each model in turn is left out; NaN where none was made.
    """

    variable: str
    product: str
    model: str
    simulation: str
    stage: str
    member: str
    region: str
    frequency: str
    scheme: str
    quantity: str
    value: float
    units: str
    n_cells: int
    n_months: int
    low: float = math.nan
    high: float = math.nan


# Quantities with such names have the unit 1.
UNITLESS = ("_score", "_reduction", "_coverage", "_skill", "_share")
COLUMNS = tuple(field.name for field in fields(Score))


def number_text(value: float) -> str:
    """Ten significant digits, which float64 sums agree on; empty where there is no value."""
    return f"{value:.10g}" if math.isfinite(value) else ""


def write_scores(path: Path, rows: Iterable[Score]) -> None:
    """Write scores.csv whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    get = attrgetter(*COLUMNS)
    for row in rows:
        writer.writerow([number_text(v) if isinstance(v, float) else v for v in get(row)])
    write_atomic(path, text.getvalue())


def write_parquet(path: Path, rows: Iterable[Score]) -> None:
    """Write scores.parquet whole or not at all: the columns of scores.csv, and its very numbers.

    Texts are dictionary-encoded, numbers float64 or int64; a value that is not defined is null.
    """
    # Takes a third of a second to load.
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = list(rows)
    columns = []
    for column in fields(Score):
        values = [getattr(row, column.name) for row in kept]
        if column.type == "float":
            digits = [_number(number_text(value)) for value in values]
            columns.append(pa.array(digits, pa.float64(), from_pandas=True))
        elif column.type == "int":
            columns.append(pa.array(values, pa.int64()))
        else:
            columns.append(pa.array(values, pa.string()).dictionary_encode())
    data = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, names=COLUMNS), data, compression="zstd")
    write_atomic(path, data.getvalue().to_pybytes())


def read_scores(path: Path) -> Iterator[Score]:
    """The rows of a scores.csv, one after the other; an empty value is NaN."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        pick = itemgetter(*map(next(lines).index, COLUMNS))
        for line in lines:
            *names, value, units, n_cells, n_months, low, high = pick(line)
            found: list[Any] = [*map(sys.intern, names), _number(value), sys.intern(units)]
            found += [int(n_cells), int(n_months), _number(low), _number(high)]
            yield Score(*found)


def _number(text: str) -> float:
    return float(text) if text else math.nan


def cmec(summary: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of the first scheme as scalar_database.json of ILAMB 2.7 and ilamb3.

    ``summary``: that of benchmark.json; ``numbers``: scheme -> comparison -> region -> ``v``:
    quantity -> value of each run. Each run is a model of its own, MODEL_SIMULATION_STAGE; metrics
    are Monthly, Monthly::VARIABLE and Monthly::VARIABLE!!PRODUCT (or Annual, Static), the upper
    ones means of those below. A score that is not defined is null, and so are means with it.

    Source: CMEC json v1, as written by ILAMB.Post.CreateJSON (2.7.3) and ilamb3.meta (2026).
    """
    runs = [
        "_".join(part for part in (r["model"], r["simulation"], r["stage"], r["member"]) if part)
        for r in summary["runs"]
    ]
    scheme = summary["schemes"][0]
    names = [*scheme["weights"], "overall_score"]
    results: dict[str, Any] = {r["name"]: {run: {} for run in runs} for r in summary["regions"]}
    above: dict[str, list[str]] = {}
    leaves: list[str] = []
    for entry, of in zip(summary["comparisons"], numbers[scheme["scheme"]], strict=True):
        section = _SECTIONS[entry["frequency"]]
        group = f"{section}::{entry['variable']}"
        leaf = f"{group}!!{entry['product']}"
        leaves.append(leaf)
        above.setdefault(group, []).append(leaf)
        for region, found in of.items():
            for column, k in enumerate(entry["runs"]):
                results[region][runs[k]][leaf] = {
                    _title(name): found["v"][name][column] for name in names if name in found["v"]
                }
    for group in list(above):
        above.setdefault(group.split("::")[0], []).append(group)
    for of_region in results.values():
        for of_run in of_region.values():
            for upper, lower in above.items():
                parts = [of_run[name] for name in lower if name in of_run]
                if parts:
                    shared = [name for name in parts[0] if all(name in part for part in parts)]
                    of_run[upper] = {name: _mean([part[name] for part in parts]) for name in shared}
    metrics = {
        name: {"Name": name, "Abstract": "composite score" if name in above else "benchmark score"}
        for name in [*above, *leaves]
    }
    about = {"URI": ["https://doi.org/10.1029/2018MS001354"], "Contact": "unknown"}
    return {
        "SCHEMA": {"name": "CMEC", "version": "v1", "package": "callmip-global"},
        "DIMENSIONS": {
            "json_structure": ["region", "model", "metric", "statistic"],
            "dimensions": {
                "region": {
                    r["name"]: {
                        "LongName": r["title"],
                        "Description": r["title"],
                        "Generator": "N/A",
                    }
                    for r in summary["regions"]
                },
                "model": {run: {"Description": run, "Source": run} for run in runs},
                "metric": {name: {**of, **about} for name, of in metrics.items()},
                "statistic": {
                    "indices": [_title(name) for name in names],
                    "short_names": [_title(name) for name in names],
                },
            },
        },
        "RESULTS": results,
    }


_SECTIONS = {"mon": "Monthly", "yr": "Annual", "fx": "Static"}


def _title(score: str) -> str:
    """``rmse_score`` as ILAMB has it: RMSE Score."""
    return " ".join("RMSE" if word == "rmse" else word.title() for word in score.split("_"))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
