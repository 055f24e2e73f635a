"""Parts of a map that lie in the same regions, so that sums over regions are made of few sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Parts:
    """N cells by the R regions they lie in.

    Cells that lie wholly in the same regions are one part of P, whatever other regions cut them:
    with ragged borders (a map of climates) each cell would otherwise be a part of its own.

    ``part`` (N,): part of each cell;  ``kinds`` (R, P): 1 where a part lies in a region, else 0
    ``first`` (N + 1,), ``region`` (E,), ``share`` (E,): regions that cut cell c, and their shares
    of it, strictly between 0 and 1, are the entries ``first[c]`` to ``first[c + 1]``
    """

    part: NDArray[np.int64]
    kinds: Array
    first: NDArray[np.int64]
    region: NDArray[np.int64]
    share: Array

    @classmethod
    def of(cls, areas: Array, whole: Array) -> Parts:
        """From the area of each cell inside each region (R, N), and its own (N,) [m2]."""
        # Shares of 1 come out of sines with rounding.
        shares = np.round(areas / whole, 12)
        inside = shares == 1.0
        # Sorting one number for each cell is faster than sorting columns.
        key = np.random.default_rng(0).random(len(inside)) @ inside
        _, at, part = np.unique(key, return_index=True, return_inverse=True)
        kinds = inside[:, at]
        if not np.array_equal(kinds[:, part], inside):
            kinds, part = np.unique(inside, axis=1, return_inverse=True)
        cell, region = np.nonzero(((shares > 0.0) & ~inside).T)
        first = np.searchsorted(cell, np.arange(whole.size + 1))
        part = part.reshape(-1).astype(np.int64)
        return cls(part, kinds.astype(np.float64), first, region, shares[region, cell])

    def of_cells(self, cells: NDArray[np.int64]) -> Parts:
        """The parts of these cells alone."""
        counts = self.first[cells + 1] - self.first[cells]
        first = np.concatenate([[0], np.cumsum(counts)])
        entries = np.arange(first[-1]) + np.repeat(self.first[cells] - first[:-1], counts)
        return Parts(self.part[cells], self.kinds, first, self.region[entries], self.share[entries])

    def sums(self, values: NDArray[Any], area: Array) -> tuple[Array, Array, NDArray[np.int64]]:
        """Sums of ``values`` (F, N) over each region: (F, R) area times value, area, and number of
        cells that lie in it at least in part; of cells that have a value (not NaN)."""
        n_parts, n_regions = self.kinds.shape[1], self.kinds.shape[0]
        sums = np.zeros((3, len(values), n_parts + n_regions))
        _sum_cells(
            np.ascontiguousarray(values),
            self.part,
            self.first,
            self.region + n_parts,
            self.share,
            area,
            sums,
        )
        total, weight, cells = sums[..., :n_parts] @ self.kinds.T + sums[..., n_parts:]
        return total, weight, np.rint(cells).astype(np.int64)

    def add_cut(
        self, reference: Any, models: Any, area: Array, areas: NDArray[Any], sums: NDArray[Any]
    ) -> None:
        """Add what regions have of the cells they cut, for each of T steps.

        ``reference`` (T, N), ``models`` (K, T, N): NaN where missing; a cell counts where all have
        a value. ``area`` (N,): of the whole cell. Added to ``areas`` (R, T), and area times value
        of the reference and the models to ``sums`` (K + 1, R, T).
        """
        cells = np.flatnonzero(np.diff(self.first))
        if cells.size:
            reference, models = np.ascontiguousarray(reference), np.ascontiguousarray(models)
            weight = self.share * np.repeat(area, np.diff(self.first))
            _add_cut(reference, models, cells, self.first, self.region, weight, areas, sums)


@compiled
def _add_values(
    values: NDArray[Any],
    cells: NDArray[np.int64],
    first: NDArray[np.int64],
    region: NDArray[np.int64],
    weight: Array,
    total: Array,
) -> None:
    """Set ``total`` (R,) to the sums of weight times value."""
    total[:] = 0.0
    for c in cells:
        value = np.float64(values[c])
        for e in range(first[c], first[c + 1]):
            total[region[e]] += weight[e] * value


@compiled
def _add_cut(
    reference: NDArray[Any],
    models: NDArray[Any],
    cells: NDArray[np.int64],
    first: NDArray[np.int64],
    region: NDArray[np.int64],
    weight: Array,
    areas: NDArray[Any],
    sums: NDArray[Any],
) -> None:
    there = np.empty(cells.size, np.int64)
    own = np.empty(areas.shape[0])
    for t in range(reference.shape[0]):
        n = 0
        for c in cells:
            valid = np.isfinite(reference[t, c])
            for k in range(models.shape[0]):
                valid &= np.isfinite(models[k, t, c])
            there[n] = c
            n += valid
        own[:] = 0.0
        for c in there[:n]:
            for e in range(first[c], first[c + 1]):
                own[region[e]] += weight[e]
        areas[:, t] += own
        _add_values(reference[t], there[:n], first, region, weight, own)
        sums[0, :, t] += own
        for k in range(models.shape[0]):
            _add_values(models[k, t], there[:n], first, region, weight, own)
            sums[k + 1, :, t] += own


@compiled
def _sum_cells(
    values: NDArray[Any],
    part: NDArray[np.int64],
    first: NDArray[np.int64],
    region: NDArray[np.int64],
    share: Array,
    area: Array,
    sums: Array,
) -> None:
    """Add to ``sums`` (3, F, P + R) area times value, area and number of cells, of the parts and
    then of what regions cut; ``region`` (E,) counts on from the parts."""
    for f in range(values.shape[0]):
        total, weight, cells = sums[0, f], sums[1, f], sums[2, f]
        for c in range(part.size):
            value = np.float64(values[f, c])
            if not np.isfinite(value):
                continue
            p = part[c]
            total[p] += area[c] * value
            weight[p] += area[c]
            cells[p] += 1.0
            for e in range(first[c], first[c + 1]):
                p = region[e]
                total[p] += share[e] * area[c] * value
                weight[p] += share[e] * area[c]
                cells[p] += 1.0
