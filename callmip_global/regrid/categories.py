"""Classes (land cover, plant functional types) on another grid: the one with the largest area."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled
from callmip_global.regrid.apply import one_matrix
from callmip_global.regrid.weights import AnyWeights


@compiled
def _category_kernel(
    values: NDArray[Any],
    fraction: NDArray[np.float64],
    indptr: NDArray[Any],
    indices: NDArray[Any],
    weights: NDArray[np.float64],
    classes: NDArray[Any],
    areas: NDArray[np.float64],
    out: NDArray[Any],
    covered: NDArray[np.float64],
) -> None:
    for t in range(values.shape[0]):
        f = t if fraction.shape[0] > 1 else 0
        for k in range(out.shape[1]):
            total = 0.0
            # Classes met in this cell so far, with their areas.
            met = 0
            for a in range(indptr[k], indptr[k + 1]):
                x = values[t, indices[a]]
                w = weights[a] * fraction[f, indices[a]]
                if np.isnan(x) or w <= 0.0:
                    continue
                total += w
                place = met
                for c in range(met):
                    if classes[c] == x:
                        place = c
                        break
                if place == met:
                    classes[met] = x
                    areas[met] = 0.0
                    met += 1
                areas[place] += w
            largest = 0.0
            for c in range(met):
                largest = max(largest, areas[c])
            best = np.nan
            for c in range(met):
                # Areas that differ by rounding only are equal: the smallest number has it.
                if areas[c] > largest - 1e-12 and not best <= classes[c]:
                    best = classes[c]
            covered[t, k] = min(total, 1.0)
            out[t, k] = best


def largest_category(
    weights: AnyWeights, values: NDArray[Any], fraction: NDArray[np.float64] | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The class that has the largest area in each target cell, and how much of the cell is valid.

    values : (n, nlat, nlon) float32 or float64 class numbers, NaN where missing
    fraction : (nlat, nlon) or (n, nlat, nlon) in [0, 1]: part of each source cell that counts
    Returns (n, nlat, nlon) in the type of ``values``, NaN where nothing is valid, and the covered
    fraction, float64. Of classes with equal areas the smaller number is taken.
    """
    matrix = one_matrix(weights)
    n, cells = len(values), values.shape[-2] * values.shape[-1]
    part = np.ones((1, cells)) if fraction is None else np.ascontiguousarray(fraction)
    out = np.empty((n, matrix.indptr.size - 1), dtype=values.dtype)
    covered = np.empty(out.shape)
    longest = int(np.diff(matrix.indptr).max(initial=1))
    _category_kernel(
        np.ascontiguousarray(values).reshape(n, cells),
        part.reshape(-1, cells),
        matrix.indptr,
        matrix.indices,
        matrix.values,
        np.empty(longest, dtype=values.dtype),
        np.empty(longest),
        out,
        covered,
    )
    shape = (n, *weights.target_shape)
    return out.reshape(shape), covered.reshape(shape)
