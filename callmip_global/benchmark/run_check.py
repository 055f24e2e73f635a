"""Whether the runs hold what they are said to hold, one line for each fault.

A run that cannot be read, or whose unit does not convert, is left out and the rest goes on. What
only looks wrong (size, sign, mask, a month that is missing) is told, and the run is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.benchmark.product_check import ZEROS, fault, lacking_months
from callmip_global.benchmark.series import AnnualSeries, FileSeries, Series
from callmip_global.errors import Problem
from callmip_global.grid import Grid

_MOST = 0.9
# A run with values in less of the area than this, of what the others have, makes the comparison of
# all of them one of a part of the land: masks of models differ by deserts and ice, a third at most.
_LACKS = 0.5
# Steps that are looked at, of so many.
_APART = 30
_SEEN = (0, 7)


@dataclass(eq=False)
class Masks:
    """Where a product and K runs have values, seen at few steps: January and August, then July and
    February, in five years of months.

    ``product`` (nlat, nlon), ``valid`` (K, nlat, nlon): there was a value; ``other``: one that is
    not 0.
    """

    product: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    other: NDArray[np.bool_]

    @classmethod
    def empty(cls, n_runs: int, grid: Grid) -> Masks:
        shape = (n_runs, *grid.shape)
        return cls(np.zeros(grid.shape, bool), np.zeros(shape, bool), np.zeros(shape, bool))

    def add(
        self,
        box: tuple[slice, slice],
        steps: slice,
        reference: NDArray[Any],
        runs: NDArray[Any],
    ) -> None:
        """Look at a block of a tile, some ``steps`` of the comparison: (T, N) and (K, T, N)."""
        seen = [t - steps.start for t in range(steps.start, steps.stop) if t % _APART in _SEEN]
        if not seen:
            return
        tile = self.product[box].shape
        self.product[box] |= np.isfinite(reference[seen]).any(axis=0).reshape(tile)
        for k, values in enumerate(runs):
            there = np.isfinite(values[seen])
            self.valid[k][box] |= there.any(axis=0).reshape(tile)
            self.other[k][box] |= (there & (values[seen] != 0)).any(axis=0).reshape(tile)

    def faults(self, k: int, grid: Grid, where: str, name: str) -> Iterator[Problem]:
        """What is wrong with the mask of run ``k``."""
        area = grid.cell_area
        covered = float(area[self.valid[k]].sum())
        zeros = float(area[self.valid[k] & ~self.other[k]].sum())
        if grid.is_global and covered > _MOST * float(area.sum()) and zeros > ZEROS * covered:
            yield fault(
                "mask",
                where,
                name,
                f"0 in {zeros / covered:.0%} of the Earth at every step read",
                "missing values where there is no land",
                "Set them missing in the model's output (cdo setctomiss,0) and harmonize it again.",
            ).problem
        others = self.product & np.delete(self.valid, k, axis=0).any(axis=0)
        wanted = float(area[others].sum())
        own = float(area[self.product & self.valid[k]].sum())
        if wanted > 0 and own < _LACKS * wanted:
            yield fault(
                "mask",
                where,
                name,
                f"values in {own / wanted:.0%} of the area where the product and other runs have "
                "some",
                "those cells too: all runs are compared over the cells that they share",
                "See its mask, or leave the run out.",
            ).problem


def _of_files(series: Series) -> FileSeries | None:
    """The series of files that is read, also for annual means; None for one of another kind."""
    own = series.monthly if isinstance(series, AnnualSeries) else series
    return own if isinstance(own, FileSeries) else None


def months_lacking(series: Series) -> Iterator[Problem]:
    """That a run lacks months between its first and its last."""
    own = _of_files(series)
    if own is not None:
        remedy = "Left out of all runs and products; write the run again."
        for finding in lacking_months(own, (), remedy):
            yield finding.problem


def without_a_value(series: Series, name: str, said: str, left_out: str) -> Problem:
    """That a product or run has no value at all in the steps that are compared."""
    own, where = _of_files(series), series.where
    if own is not None:
        name = own.name
        where = own.labels[0] if len(own.labels) == 1 else where
    remedy = f"Wrong file, or a wrong fill value? {left_out}"
    return fault("all-missing", where, name, f"no value at all in {said}", "values", remedy).problem


def empty_months(where: str, name: str, months: Sequence[str]) -> Problem:
    """That a run has no value in some steps, which are then lost for all."""
    return fault(
        "month-empty",
        where,
        name,
        f"no value in {', '.join(months)}",
        "values in every step",
        "Left out of all runs and products; write the run again.",
    ).problem
