"""Annual means taken while months are read: sums over the months of each year.

The annual value of a cell is the mean over time and over the part of its area that is valid,

    sum(d_m f_m x_m) / sum(d_m f_m),    valid fraction  sum(d_m f_m) / sum(d_m),

d_m the days of month m in the file's calendar, f_m the covered fraction of the cell. So the
integral over the globe of an annual mean is the days-weighted mean of the monthly integrals, also
where masks change from month to month. Amounts per cell (extensive) are sum(d_m x_m) / sum(d_m).
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled
from callmip_global.files import write_atomic
from callmip_global.timeaxis import MonthAxis

Array = NDArray[np.float64]

# Twelve shares add up to 1 but for rounding; without the shortest month it is 0.92.
_ALL_MONTHS = 0.99

_PATIENCE_S = 120


@dataclass(frozen=True)
class Annual:
    """Which months of an axis make which whole years. ValueError where there is no whole year."""

    axis: MonthAxis

    @cached_property
    def months(self) -> slice:
        """The months that belong to whole years."""
        return self.axis.complete_years()[0]

    @cached_property
    def years(self) -> MonthAxis:
        """The annual axis."""
        return self.axis.complete_years()[1]

    @cached_property
    def shares(self) -> Array:
        """(months,) part of its year that each month is; 0 outside whole years."""
        shares = np.zeros(self.axis.size)
        lengths = self.axis.lengths_days[self.months].reshape(-1, 12)
        shares[self.months] = (lengths / lengths.sum(axis=1, keepdims=True)).ravel()
        return shares

    def year_of(self, month: int) -> int:
        """Position of the year that a month (of a whole year) belongs to."""
        return (month - int(self.months.start)) // 12

    def span(self, region: slice) -> slice:
        """The years that a run of months touches."""
        first = max(region.start, self.months.start)
        last = min(region.stop, self.months.stop)
        if first >= last:
            return slice(0, 0)
        return slice(self.year_of(first), self.year_of(last - 1) + 1)

    def sums(self, region: slice, shape: tuple[int, ...]) -> YearSums:
        """Empty sums for the months of a region; ``shape`` is that of one time step."""
        return YearSums(self, self.span(region), shape)

    def kept(
        self,
        folder: Path,
        name: str,
        regions: Iterable[slice],
        years: slice,
        shape: tuple[int, ...],
    ) -> YearSums:
        """The sums of these years, from what the regions of a variable have kept in ``folder``."""
        sums = YearSums(self, years, shape)
        for region in regions:
            sums._load(folder, name, region)
        return sums


@compiled
def _add_month(
    total: NDArray[np.float64],
    covered: NDArray[np.float64],
    values: NDArray[Any],
    fraction: NDArray[np.float64],
    share: float,
    extensive: bool,
) -> None:
    for k in range(values.shape[0]):
        f = k if fraction.shape[0] > 1 else 0
        for i in range(values.shape[1]):
            x = values[k, i]
            if not np.isnan(x):
                part = share * fraction[f, i]
                total[k, i] += share * x if extensive else part * x
                covered[k, i] += part


def _place(folder: Path, name: str, region: slice) -> Path:
    return folder / f"{name}-{region.start}.npz"


def when_there(path: Path) -> Path:
    """The path, when there is something at it.

    On network file systems a file that another node has made may take a minute to show.
    """
    for _ in range(_PATIENCE_S):
        if path.exists():
            break
        list(path.parent.iterdir())  # makes the client look again
        time.sleep(1)
    return path


class YearSums:
    """Sums over the months of some years; those of the regions of a variable add up.

    total, covered : (years, ...) float64, sum(d f x) / sum(d) and sum(d f) / sum(d)
    """

    def __init__(self, annual: Annual, span: slice, shape: tuple[int, ...]) -> None:
        self.annual, self.span = annual, span
        self.total: Array = np.zeros((span.stop - span.start, *shape))
        self.covered: Array = np.zeros(self.total.shape)

    def add(
        self, block: slice, values: NDArray[Any], fraction: NDArray[Any], *, extensive: bool = False
    ) -> None:
        """Add the months of a block.

        values : (steps, ..., nlat, nlon), NaN where missing
        fraction : (nlat, nlon), or one map for each of ``values``
        """
        steps = block.stop - block.start
        cells = values.shape[-2] * values.shape[-1]
        maps = values.reshape(steps, -1, cells)
        parts = np.ascontiguousarray(fraction).reshape(-1, cells)
        parts = parts.reshape(steps, -1, cells) if fraction.ndim > 2 else parts[np.newaxis]
        for step in range(steps):
            share = float(self.annual.shares[block.start + step])
            if share > 0.0:
                year = self.annual.year_of(block.start + step) - self.span.start
                _add_month(
                    self.total[year].reshape(-1, cells),
                    self.covered[year].reshape(-1, cells),
                    maps[step],
                    parts[step if len(parts) > 1 else 0],
                    share,
                    extensive,
                )

    def save(self, folder: Path, name: str, region: slice) -> None:
        """Keep the sums of a region of a variable as a file, whole or not at all."""
        content = io.BytesIO()
        np.savez(content, total=self.total, covered=self.covered)
        write_atomic(_place(folder, name, region), content.getvalue())

    def _load(self, folder: Path, name: str, region: slice) -> None:
        """Add the kept sums of a region, as far as its years are among these."""
        span = self.annual.span(region)
        first, last = max(span.start, self.span.start), min(span.stop, self.span.stop)
        if first >= last:
            return
        here = slice(first - self.span.start, last - self.span.start)
        there = slice(first - span.start, last - span.start)
        with np.load(when_there(_place(folder, name, region))) as kept:
            self.total[here] += kept["total"][there]
            self.covered[here] += kept["covered"][there]

    def whole(self) -> Array:
        """(years, ...) days-weighted sums where every month is valid, NaN elsewhere."""
        return np.where(self.covered > _ALL_MONTHS, self.total, np.nan)

    def means(self, *, extensive: bool = False) -> Array:
        """(years, ...) annual values, NaN where nothing was valid in any month."""
        valid = self.covered > 0.0
        divisor = np.where(valid, 1.0 if extensive else self.covered, np.nan)
        return np.asarray(self.total / divisor)
