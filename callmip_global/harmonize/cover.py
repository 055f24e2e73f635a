"""Values of plant types or tiles, averaged with the part of the area that each one covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.harmonize.fills import SENTINELS
from callmip_global.harmonize.native import (
    NativeFile,
    Piece,
    Timeline,
    build_timeline,
)
from callmip_global.timeaxis import MonthAxis
from callmip_global.units import convert_factor
from callmip_global.variables import Variable

Array = NDArray[np.float64]

OVER = 0.01
"""By how much cover fractions may exceed 1 in sum: they are often rounded to percent."""
BLOCK_BYTES = 256 * 2**20
"""About as much is held of the values of all plant types at a time."""


@dataclass(frozen=True)
class Cover:
    """Fractions of the area by plant type. ``timeline``: theirs; one step for fractions that stay.

    ``factor`` makes them parts of 1. ``intensive``: the values are no amounts (temperatures), so
    that a mean needs all of the area, and is one over it.
    """

    timeline: Timeline
    dim: str
    factor: float
    intensive: bool

    @property
    def words(self) -> str:
        """What is done, for the report."""
        kinds = self.timeline.header.dims[self.dim]
        return f"{kinds} of {self.dim} averaged with their fractions, {self.timeline.name}"

    def average(self, values: Timeline, steps: slice) -> Array:
        """(n, nlat, nlon): sum of value times fraction over the plant types [native units].

        A plant type without a value counts as 0 (bare ground has no production); a cell without
        any is missing. DataError where fractions sum to more than 1, or are no fractions.
        """
        kinds = values.header.dims[self.dim]
        grid = values.files[0].source_grid
        assert grid is not None
        size = 8 * kinds * int(np.prod(grid.grid.shape))
        step = max(1, BLOCK_BYTES // (3 * size))
        parts = [
            self._average(values, slice(first, min(first + step, steps.stop)))
            for first in range(steps.start, steps.stop, step)
        ]
        return np.concatenate(parts)

    def _average(self, values: Timeline, steps: slice) -> Array:
        held = values.read_layers(steps)
        for sentinel in SENTINELS:
            same = held == sentinel
            if same.any():
                held[same] = np.nan
        fractions = self._fractions(values.axis.part(steps))
        self._check(fractions, held)
        known = np.isfinite(held)
        weights = np.where(known, fractions, 0.0)
        np.nan_to_num(held, copy=False, nan=0.0)
        out: Array = np.einsum("tkyx,tkyx->tyx", held, np.broadcast_to(weights, held.shape))
        covered = weights.sum(axis=1)
        missing = ~known.any(axis=1) | (np.broadcast_to(fractions, held.shape).sum(axis=1) == 0.0)
        if self.intensive:
            with np.errstate(invalid="ignore", divide="ignore"):
                out /= covered
        out[missing] = np.nan
        return out

    def _fractions(self, axis: MonthAxis) -> Array:
        """(n or 1, kinds, nlat, nlon): the fractions of each step; those of its year if annual."""
        own = self.timeline.axis
        if own.size == 1:
            found = self.timeline.read_layers(slice(0, 1))
        else:
            wanted = [(y, 1 if own.frequency == "yr" else m) for y, m in axis.periods]
            index = {period: i for i, period in enumerate(own.periods)}
            at = [index[period] for period in wanted]
            block = self.timeline.read_layers(slice(at[0], at[-1] + 1))
            found = block[[i - at[0] for i in at]]
        return np.nan_to_num(found, nan=0.0) * self.factor

    def _check(self, fractions: Array, values: Array) -> None:
        total = fractions.sum(axis=1)
        low, high = float(fractions.min()), float(total.max())
        where, name = self.timeline.files[0].origin, self.timeline.name
        if low < -OVER or high > 1.0 + OVER:
            found = f"fractions from {low:g}, in sum up to {high:g}"
            remedy = 'Set their units to "%" or "1", whichever holds.'
            raise DataError(
                Problem(where, name, found, "fractions that sum to 1 at most", remedy, "cover-sums")
            )
        if self.intensive:
            held = np.isfinite(values).any(axis=1) & (total > 0.0)
            least = float(np.broadcast_to(total, held.shape)[held].min(initial=1.0))
            if least < 1.0 - OVER:
                found = f"fractions that sum to {least:g} in places"
                remedy = "A mean temperature needs the fraction of bare ground too."
                raise DataError(
                    Problem(where, name, found, "fractions that sum to 1", remedy, "cover-sums")
                )


def cover_of(
    name: str,
    values: Timeline,
    dim: str,
    files: Sequence[NativeFile],
    years: tuple[int, int] | None,
    place: str,
    var: Variable,
) -> Cover:
    """The cover fractions ``name`` of the files for ``values`` along ``dim``.

    DataError where no file has them with that dimension, on that grid, for all the periods.
    """
    holders = [f for f in files if name in f.variables]
    if not holders:
        remedy = f"Hand in the file with {name}, or the average over {dim}."
        found = f"no file with the cover fractions {name!r}"
        raise DataError(Problem(place, f"{var.name}.cover", found, "", remedy, "extra-dimension"))
    first = holders[0]
    header, sizes = first.variables[name], values.header.dims
    grids = first.source_grid, values.files[0].source_grid
    if header.dims.get(dim) != sizes[dim]:
        said = ", ".join(f"{d} ({n})" for d, n in header.dims.items())
        wanted = f"the dimension {dim} ({sizes[dim]}), as {values.name} has it"
        raise DataError(Problem(first.origin, name, f"dimensions {said}", wanted, "", "cover-sums"))
    if grids[0] is None or grids[1] is None or grids[0].grid != grids[1].grid:
        wanted = f"the grid of {values.files[0].path.name}"
        raise DataError(Problem(first.origin, name, "another grid", wanted, "", "grids-differ"))
    factor = convert_factor(header.units or "1", "1", first.origin, name).factor
    if first.time_dim is None or first.time_dim not in header.dims:
        still = Piece(first, values.axis.periods[:1], 0)
        timeline = Timeline(name, values.axis.part(slice(0, 1)), (still,))
    else:
        timeline = build_timeline(name, files, years, place)
        wanted_years = {y for y, _ in values.axis.periods}
        lacking = wanted_years - {y for y, _ in timeline.axis.periods}
        finer = timeline.axis.frequency == "mon" and values.axis.frequency == "yr"
        if lacking or finer:
            found = "monthly fractions" if finer else f"no fractions of {min(lacking)}"
            wanted = "annual ones" if finer else "all the years of the values"
            raise DataError(Problem(first.origin, name, found, wanted, "", "cover-sums"))
    return Cover(timeline, dim, factor, var.units == "K")
