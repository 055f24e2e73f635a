"""Weights applied to data: one compiled kernel for every mask, every variable, every grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.regrid.compiled import compiled
from callmip_global.regrid.weights import AnyWeights, CellWeights


@compiled
def _mean_kernel(
    values: NDArray[Any],
    fraction: NDArray[np.float64],
    lat_indptr: NDArray[np.int64],
    lat_indices: NDArray[np.int64],
    lat_values: NDArray[np.float64],
    lon_indptr: NDArray[np.int64],
    lon_indices: NDArray[np.int64],
    lon_values: NDArray[np.float64],
    out: NDArray[Any],
    covered: NDArray[np.float64],
) -> None:
    for t in range(values.shape[0]):
        f = t if fraction.shape[0] > 1 else 0
        for j in range(out.shape[1]):
            for i in range(out.shape[2]):
                total = 0.0
                weight = 0.0
                for a in range(lat_indptr[j], lat_indptr[j + 1]):
                    jj = lat_indices[a]
                    for b in range(lon_indptr[i], lon_indptr[i + 1]):
                        ii = lon_indices[b]
                        x = values[t, jj, ii]
                        if not np.isnan(x):
                            w = lat_values[a] * lon_values[b] * fraction[f, jj, ii]
                            total += w * x
                            weight += w
                # Overlaps add up to 1 only to rounding; what is written must not exceed the cell.
                covered[t, j, i] = min(weight, 1.0)
                out[t, j, i] = total / weight if weight > 0.0 else np.nan


@compiled
def _cell_mean_kernel(
    values: NDArray[Any],
    fraction: NDArray[np.float64],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int64],
    weights: NDArray[np.float64],
    out: NDArray[Any],
    covered: NDArray[np.float64],
) -> None:
    for t in range(values.shape[0]):
        f = t if fraction.shape[0] > 1 else 0
        for k in range(out.shape[1]):
            total = 0.0
            weight = 0.0
            for a in range(indptr[k], indptr[k + 1]):
                x = values[t, indices[a]]
                if not np.isnan(x):
                    w = weights[a] * fraction[f, indices[a]]
                    total += w * x
                    weight += w
            covered[t, k] = min(weight, 1.0)
            out[t, k] = total / weight if weight > 0.0 else np.nan


@compiled
def _integral_kernel(
    values: NDArray[Any],
    fraction: NDArray[np.float64],
    area: NDArray[np.float64],
    total: NDArray[np.float64],
    absolute: NDArray[np.float64],
) -> None:
    for t in range(values.shape[0]):
        f = t if fraction.shape[0] > 1 else 0
        for j in range(values.shape[1]):
            # Row by row, so that rounding does not grow with the number of cells.
            row = 0.0
            row_absolute = 0.0
            for i in range(values.shape[2]):
                x = values[t, j, i]
                if not np.isnan(x):
                    part = x * fraction[f, j, i] * area[j, i]
                    row += part
                    row_absolute += abs(part)
            total[t] += row
            absolute[t] += row_absolute


def integrals(
    values: NDArray[Any], fraction: NDArray[np.float64], area_m2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Integral over the map of the values, and of their absolute values, NaN counted as nothing.

    values : (..., nlat, nlon) float32 or float64;  fraction : (nlat, nlon) or like ``values``
    area_m2 : (nlat, nlon)
    Returns two (n,) arrays over the leading dimensions taken together [units of values x m2].
    """
    flat = np.ascontiguousarray(values).reshape(-1, *area_m2.shape)
    total, absolute = np.zeros(flat.shape[0]), np.zeros(flat.shape[0])
    weight = np.ascontiguousarray(fraction, dtype=np.float64).reshape(-1, *area_m2.shape)
    _integral_kernel(flat, weight, np.ascontiguousarray(area_m2), total, absolute)
    return total, absolute


def masked_mean(
    weights: AnyWeights,
    values: NDArray[Any],
    fraction: NDArray[np.float64] | None = None,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """out = W(X f) / W f, and W f: the mean over what is valid, and how much of the cell that is.

    values : (..., nlat, nlon) on the source grid (the rows and columns of a mesh), float32 or
        float64, NaN where missing
    fraction : (nlat, nlon), or of the shape of ``values``, in [0, 1] without NaN: the part of each
        source cell the values speak for (the land fraction for values per land area); None: all
    Returns (..., nlat, nlon) on the target grid in the type of ``values``, NaN where nothing is
    valid, and the covered fraction of each target cell, float64. Any valid part is kept; sums are
    float64. With the returned fraction the area integral is that of the source (Taylor 2024, GMD
    17, 415-430). ValueError on shapes or types that do not fit.
    """
    if values.dtype not in (np.float32, np.float64):
        raise ValueError(f"values must be float32 or float64, got {values.dtype}")
    if values.ndim < 2 or values.shape[-2:] != weights.source_shape:
        raise ValueError(f"values are {values.shape}, the weights take {weights.source_shape}")
    if fraction is None:
        fraction = np.ones(weights.source_shape)
    if fraction.shape not in (weights.source_shape, values.shape) or not np.all(
        (fraction >= 0) & (fraction <= 1)
    ):
        raise ValueError("fraction must fit the source, within [0, 1], without NaN")
    leading = values.shape[:-2]
    flat = np.ascontiguousarray(values).reshape(-1, *weights.source_shape)
    out = np.empty((flat.shape[0], *weights.target_shape), dtype=values.dtype)
    covered = np.empty(out.shape, dtype=np.float64)
    part = np.ascontiguousarray(fraction, dtype=np.float64).reshape(-1, *weights.source_shape)
    if isinstance(weights, CellWeights):
        steps = flat.shape[0]
        _cell_mean_kernel(
            flat.reshape(steps, -1),
            part.reshape(part.shape[0], -1),
            weights.indptr,
            weights.indices,
            weights.values,
            out.reshape(steps, -1),
            covered.reshape(steps, -1),
        )
    else:
        _mean_kernel(
            flat,
            part,
            weights.lat.indptr,
            weights.lat.indices,
            weights.lat.values,
            weights.lon.indptr,
            weights.lon.indices,
            weights.lon.values,
            out,
            covered,
        )
    shape = (*leading, *weights.target_shape)
    return out.reshape(shape), covered.reshape(shape)


def covered_fraction(weights: AnyWeights, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    """(nlat, nlon) W f: a fraction of cell area carried over, uncovered parts counted as none."""
    _, covered = masked_mean(weights, np.zeros((1, *weights.source_shape)), fraction)
    return np.asarray(covered[0])
