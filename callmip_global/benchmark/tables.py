"""scores.csv: one number per line, always the same columns, the same bytes for the same input."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from callmip_global.files import write_atomic


@dataclass(frozen=True)
class Score:
    """One line of scores.csv; a value that is not defined is an empty field, never 0.

    ``frequency``: mon, yr, or fx for static products. ``stage``: Prior, Posterior, or
    Posterior-Prior for their difference. ``n_cells``: cells behind the number; ``n_months``:
    months that all series have in common (twelve per year for annual data).
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


COLUMNS = tuple(field.name for field in fields(Score))


def number_text(value: float) -> str:
    """Ten significant digits, which float64 sums agree on; empty where there is no value."""
    return f"{value:.10g}" if math.isfinite(value) else ""


def write_scores(path: Path, rows: Iterable[Score]) -> None:
    """Write scores.csv whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = asdict(row)
        values["value"] = number_text(row.value)
        writer.writerow([values[name] for name in COLUMNS])
    write_atomic(path, text.getvalue())


def read_scores(path: Path) -> list[Score]:
    """The rows of a scores.csv; an empty value is NaN."""
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            values: dict[str, Any] = dict(line)
            values["value"] = float(line["value"]) if line["value"] else math.nan
            values["n_cells"] = int(line["n_cells"])
            values["n_months"] = int(line["n_months"])
            rows.append(Score(**values))
    return rows
