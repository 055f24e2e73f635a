"""Tables of scores: scores.csv, one number per line, and scalar_database.json of CMEC.

Always the same columns and the same bytes for the same input.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from callmip_global.files import write_atomic


@dataclass(frozen=True, slots=True)
class Score:
    """One line of scores.csv; a value that is not defined is an empty field, never 0.

    ``frequency``: mon, yr, or fx for static products. ``stage``: Prior, Posterior, or
    Posterior-Prior for their difference. ``n_cells``: cells behind the number; ``n_months``:
    months that all series have in common (twelve per year for annual data). ``low``, ``high``:
    ends of the 95 % interval of the value, NaN where none was made.
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


def read_scores(path: Path) -> Iterator[Score]:
    """The rows of a scores.csv, one after the other; an empty value is NaN."""
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            values: dict[str, Any] = {name: sys.intern(text) for name, text in line.items()}
            for name in ("value", "low", "high"):
                values[name] = float(line[name]) if line.get(name) else math.nan
            for name in ("n_cells", "n_months"):
                values[name] = int(line[name])
            yield Score(**values)
