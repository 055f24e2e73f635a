"""Weights applied to data: one compiled kernel for every mask, every variable, every grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
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


# Sums over a map run in this many lanes, cell k in lane k % _LANES: the same additions in the same
# order on every machine, however wide its vectors are.
_LANES = 1024
_ROUND = 4 * _LANES


# Indices are unsigned wherever they are sums: of a signed one it is asked at every cell whether it
# counts from the end, and then nothing runs in vectors.
@compiled
def _add_round(
    values: NDArray[Any],
    t: int,
    start: Any,
    stop: Any,
    weight: NDArray[np.float64],
    sums: NDArray[np.float64],
    absolute: NDArray[np.float64],
) -> None:
    """Add values x weight of cells start:stop (one round of the lanes) to the lanes."""
    lanes = np.uint64(_LANES)
    second, third, fourth = start + lanes, start + lanes + lanes, start + lanes + lanes + lanes
    if fourth + lanes == stop:
        for i in range(lanes):
            a, b = values[t, start + i], values[t, second + i]
            c, d = values[t, third + i], values[t, fourth + i]
            p = np.float64(a) * weight[start + i] if a == a else 0.0
            q = np.float64(b) * weight[second + i] if b == b else 0.0
            r = np.float64(c) * weight[third + i] if c == c else 0.0
            s = np.float64(d) * weight[fourth + i] if d == d else 0.0
            sums[i] = sums[i] + p + q + r + s
            absolute[i] = absolute[i] + abs(p) + abs(q) + abs(r) + abs(s)
        return
    for first in range(start, stop, lanes):
        for i in range(min(lanes, stop - first)):
            a = values[t, first + i]
            p = np.float64(a) * weight[first + i] if a == a else 0.0
            sums[i] += p
            absolute[i] += abs(p)


@compiled
def _widen_round(
    values: NDArray[Any],
    t: int,
    start: Any,
    stop: Any,
    lows: NDArray[Any],
    highs: NDArray[Any],
) -> None:
    """Widen the lanes' smallest and largest numbers by cells start:stop (one round)."""
    lanes = np.uint64(_LANES)
    second, third, fourth = start + lanes, start + lanes + lanes, start + lanes + lanes + lanes
    if fourth + lanes == stop:
        for i in range(lanes):
            a, b = values[t, start + i], values[t, second + i]
            c, d = values[t, third + i], values[t, fourth + i]
            low, high = lows[i], highs[i]
            low = a if a < low else low
            low = b if b < low else low
            low = c if c < low else low
            low = d if d < low else low
            high = a if a > high else high
            high = b if b > high else high
            high = c if c > high else high
            high = d if d > high else high
            lows[i], highs[i] = low, high
        return
    for first in range(start, stop, lanes):
        for i in range(min(lanes, stop - first)):
            a, low, high = values[t, first + i], lows[i], highs[i]
            lows[i] = a if a < low else low
            highs[i] = a if a > high else high


@compiled
def _total(lanes: NDArray[np.float64]) -> float:
    """Sum of the lanes, half on half."""
    half = np.uint64(_LANES // 2)
    while half:
        for i in range(half):
            lanes[i] += lanes[half + i]
        half = half >> np.uint64(1)
    return float(lanes[0])


@compiled
def _map_weight(
    fraction: NDArray[Any], area: NDArray[np.float64], t: int, weight: NDArray[np.float64]
) -> None:
    """The weight of each cell in the integral of map t; one that never changes is made once."""
    if t == 0 or fraction.shape[0] > 1:
        for i in range(area.size):
            weight[i] = fraction[t, i] * area[i]


@compiled
def _integral_kernel(
    values: NDArray[Any],
    fraction: NDArray[Any],
    area: NDArray[np.float64],
    total: NDArray[np.float64],
    absolute: NDArray[np.float64],
) -> None:
    n = np.uint64(values.shape[1])
    weight = np.empty(values.shape[1])
    sums, sums_absolute = np.empty(_LANES), np.empty(_LANES)
    for t in range(values.shape[0]):
        _map_weight(fraction, area, t, weight)
        sums[:] = 0.0
        sums_absolute[:] = 0.0
        for start in range(np.uint64(0), n, np.uint64(_ROUND)):
            stop = min(start + np.uint64(_ROUND), n)
            _add_round(values, t, start, stop, weight, sums, sums_absolute)
        total[t], absolute[t] = _total(sums), _total(sums_absolute)


@compiled
def _survey_kernel(
    values: NDArray[Any],
    fraction: NDArray[Any],
    area: NDArray[np.float64],
    valid: NDArray[np.bool_],
    total: NDArray[np.float64],
    absolute: NDArray[np.float64],
    same: NDArray[np.bool_],
    extremes: NDArray[Any],
) -> int:
    n = np.uint64(values.shape[1])
    weight = np.empty(values.shape[1])
    sums, sums_absolute = np.empty(_LANES), np.empty(_LANES)
    lows, highs = np.empty(_LANES, values.dtype), np.empty(_LANES, values.dtype)
    extremes[0], extremes[1] = np.inf, -np.inf
    count: Any = 0
    for t in range(values.shape[0]):
        _map_weight(fraction, area, t, weight)
        sums[:] = 0.0
        sums_absolute[:] = 0.0
        lows[:] = np.inf
        highs[:] = -np.inf
        differing: Any = np.uint32(0)
        for start in range(np.uint64(0), n, np.uint64(_ROUND)):
            stop = min(start + np.uint64(_ROUND), n)
            _add_round(values, t, start, stop, weight, sums, sums_absolute)
            _widen_round(values, t, start, stop, lows, highs)
            for i in range(start, stop):
                x = values[t, i]
                differing = np.uint32(differing + np.uint32((x == x) != valid[i]))
        total[t], absolute[t] = _total(sums), _total(sums_absolute)
        same[t] = differing == np.uint32(0)
        half = np.uint64(_LANES // 2)
        while half:
            for i in range(half):
                low, high = lows[half + i], highs[half + i]
                lows[i] = low if low < lows[i] else lows[i]
                highs[i] = high if high > highs[i] else highs[i]
            half = half >> np.uint64(1)
        if highs[0] > extremes[1]:
            extremes[1] = highs[0]
        if lows[0] < extremes[0]:
            extremes[0] = lows[0]
            count = 0
        # Few maps hold the smallest number of all; those are still in the cache.
        if lows[0] == extremes[0]:
            equal: Any = np.uint32(0)
            for i in range(n):
                equal = np.uint32(equal + np.uint32(values[t, i] == extremes[0]))
            count += equal
    return int(count)


@dataclass(frozen=True)
class Survey:
    """What one reading of n maps tells of them.

    total, absolute : (n,) float64 integrals as of ``integrals`` [units of the values x m2]
    same : (n,) bool, whether the valid cells are exactly those asked about
    low, high : smallest and largest number, infinities included; NaN where nothing is valid
    low_count : how many cells of all maps hold exactly ``low``
    """

    total: NDArray[np.float64]
    absolute: NDArray[np.float64]
    same: NDArray[np.bool_]
    low: float
    high: float
    low_count: int


def survey(
    values: NDArray[Any],
    weight: NDArray[Any],
    area_m2: NDArray[np.float64],
    valid: NDArray[np.bool_] | None = None,
) -> Survey:
    """Integrals, valid cells and extremes of maps, each of which is read once.

    values : (..., nlat, nlon) float32 or float64, NaN where missing
    weight : (nlat, nlon) or like ``values``, float32 or float64 in [0, 1], NaN only where
        ``values`` are: the part of each cell the values speak for
    area_m2 : (nlat, nlon);  valid : (nlat, nlon), None for all
    Each map's sums are its own, whatever maps are given with it.
    """
    flat, fraction, area = _maps(values, weight, area_m2)
    n, cells = flat.shape
    wanted = np.ones(cells, dtype=np.bool_) if valid is None else np.ascontiguousarray(valid)
    total, absolute = np.empty(n), np.empty(n)
    same, extremes = np.empty(n, dtype=np.bool_), np.empty(2, dtype=flat.dtype)
    count = _survey_kernel(
        flat, fraction, area, wanted.reshape(-1), total, absolute, same, extremes
    )
    low, high = float(extremes[0]), float(extremes[1])
    if low > high:
        return Survey(total, absolute, same, math.nan, math.nan, 0)
    return Survey(total, absolute, same, low, high, int(count))


def integrals(
    values: NDArray[Any], fraction: NDArray[Any], area_m2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Integral over the map of the values, and of their absolute values, NaN counted as nothing.

    values : (..., nlat, nlon) float32 or float64;  fraction : (nlat, nlon) or like ``values``
    area_m2 : (nlat, nlon)
    Returns two (n,) arrays over the leading dimensions taken together [units of values x m2].
    """
    flat, weight, area = _maps(values, fraction, area_m2)
    total, absolute = np.empty(flat.shape[0]), np.empty(flat.shape[0])
    _integral_kernel(flat, weight, area, total, absolute)
    return total, absolute


def _maps(
    values: NDArray[Any], weight: NDArray[Any], area_m2: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Values and weight as (n or 1, cells), and the areas, all contiguous."""
    return (
        np.ascontiguousarray(values).reshape(-1, area_m2.size),
        np.ascontiguousarray(weight).reshape(-1, area_m2.size),
        np.ascontiguousarray(area_m2, dtype=np.float64).reshape(-1),
    )


@compiled
def _fixed_kernel(
    values: NDArray[Any],
    rows: NDArray[np.uint32],
    indptr: NDArray[np.uint32],
    indices: NDArray[np.uint32],
    weights: NDArray[np.float64],
    sums: NDArray[np.float64],
    out: NDArray[Any],
) -> None:
    for t in range(values.shape[0]):
        out[t, :] = np.nan
        for r in range(rows.size):
            total = 0.0
            for a in range(indptr[r], indptr[r + 1]):
                total += weights[a] * values[t, indices[a]]
            out[t, rows[r]] = total / sums[r]


class FixedMean:
    """``masked_mean`` for maps whose valid cells and weight never change: the same numbers, faster.

    covered : (nlat, nlon) float64 on the target grid, the part of each cell the values speak for
    """

    def __init__(
        self, weights: AnyWeights, valid: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> None:
        """Weights for values that are numbers exactly where ``valid``.

        valid : (nlat, nlon) on the source grid (the rows and columns of a mesh)
        weight : (nlat, nlon) in [0, 1]: the part of each source cell the values speak for
        ValueError on shapes that do not fit.
        """
        if not valid.shape == weight.shape == weights.source_shape:
            raise ValueError(
                f"valid is {valid.shape}, weight {weight.shape}, "
                f"the weights take {weights.source_shape}"
            )
        self.source_shape = weights.source_shape
        self.target_shape = weights.target_shape
        matrix = _one_matrix(weights)
        part = np.where(valid, weight, 0.0).reshape(-1)
        rows = np.repeat(np.arange(matrix.indptr.size - 1), np.diff(matrix.indptr))
        values = matrix.values * part[matrix.indices]
        n_target = matrix.indptr.size - 1
        sums = np.bincount(rows, weights=values, minlength=n_target).astype(np.float64)
        keep = (values != 0.0) & (sums[rows] > 0.0)
        counts = np.bincount(rows[keep], minlength=n_target)
        some = np.flatnonzero(counts)
        self._rows = some.astype(np.uint32)
        self._indptr = np.concatenate([[0], np.cumsum(counts[some])]).astype(np.uint32)
        self._indices = matrix.indices[keep].astype(np.uint32)
        self._values = values[keep]
        self._sums = sums[some]
        self.covered: NDArray[np.float64] = np.minimum(sums, 1.0).reshape(self.target_shape)

    def mean(self, values: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(..., nlat, nlon) means on the target grid, in the type of ``values``.

        values : (..., nlat, nlon) float32 or float64, numbers exactly in the valid cells
        out : where to write them, contiguous; else made here
        """
        flat, result = _check(values, out, self.source_shape, self.target_shape)
        steps = flat.shape[0]
        _fixed_kernel(
            flat.reshape(steps, -1),
            self._rows,
            self._indptr,
            self._indices,
            self._values,
            self._sums,
            result.reshape(steps, -1),
        )
        return result


def _one_matrix(weights: AnyWeights) -> CellWeights:
    """Separable weights as one sparse matrix."""
    if isinstance(weights, CellWeights):
        return weights
    lat, lon = weights.lat, weights.lon
    lat_rows = np.repeat(np.arange(lat.n_target), np.diff(lat.indptr))
    lon_rows = np.repeat(np.arange(lon.n_target), np.diff(lon.indptr))
    into = (lat_rows[:, None] * lon.n_target + lon_rows).reshape(-1)
    order = np.argsort(into, kind="stable")
    counts = np.bincount(into, minlength=lat.n_target * lon.n_target)
    cells = (lat.indices[:, None] * lon.n_source + lon.indices).reshape(-1)
    return CellWeights(
        weights.source_shape,
        weights.target_shape,
        np.concatenate([[0], np.cumsum(counts)]),
        cells[order],
        (lat.values[:, None] * lon.values).reshape(-1)[order],
        weights.source_digest,
        weights.target_digest,
        weights.edge_model,
    )


def _check(
    values: NDArray[Any],
    out: NDArray[Any] | None,
    source: tuple[int, int],
    target: tuple[int, int],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values as (n, nlat, nlon), contiguous, and the array that takes the means."""
    if values.dtype not in (np.float32, np.float64):
        raise ValueError(f"values must be float32 or float64, got {values.dtype}")
    if values.ndim < 2 or values.shape[-2:] != source:
        raise ValueError(f"values are {values.shape}, the weights take {source}")
    shape = (*values.shape[:-2], *target)
    if out is None:
        out = np.empty(shape, dtype=values.dtype)
    elif out.shape != shape or out.dtype != values.dtype or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous {shape} {values.dtype}")
    return np.ascontiguousarray(values).reshape(-1, *source), out


def masked_mean(
    weights: AnyWeights,
    values: NDArray[Any],
    fraction: NDArray[np.float64] | None = None,
    *,
    out: NDArray[Any] | None = None,
    covered: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """out = W(X f) / W f, and W f: the mean over what is valid, and how much of the cell that is.

    values : (..., nlat, nlon) on the source grid (the rows and columns of a mesh), float32 or
        float64, NaN where missing
    fraction : (nlat, nlon), or of the shape of ``values``, in [0, 1] without NaN: the part of each
        source cell the values speak for (the land fraction for values per land area); None: all
    out, covered : contiguous arrays that take the result, else made here; ``covered`` of any type
    Returns (..., nlat, nlon) on the target grid in the type of ``values``, NaN where nothing is
    valid, and the covered fraction of each target cell, float64. Any valid part is kept; sums are
    float64. With the returned fraction the area integral is that of the source (Taylor 2024, GMD
    17, 415-430). ValueError on shapes or types that do not fit.
    """
    flat, means = _check(values, out, weights.source_shape, weights.target_shape)
    if fraction is None:
        fraction = np.ones(weights.source_shape)
    if fraction.shape not in (weights.source_shape, values.shape) or not np.all(
        (fraction >= 0) & (fraction <= 1)
    ):
        raise ValueError("fraction must fit the source, within [0, 1], without NaN")
    if covered is None:
        covered = np.empty(means.shape, dtype=np.float64)
    elif covered.shape != means.shape or not covered.flags.c_contiguous:
        raise ValueError(f"covered must be contiguous {means.shape}")
    by_map = (-1, *weights.target_shape)
    part = np.ascontiguousarray(fraction, dtype=np.float64).reshape(-1, *weights.source_shape)
    if isinstance(weights, CellWeights):
        steps = flat.shape[0]
        _cell_mean_kernel(
            flat.reshape(steps, -1),
            part.reshape(part.shape[0], -1),
            weights.indptr,
            weights.indices,
            weights.values,
            means.reshape(steps, -1),
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
            means.reshape(by_map),
            covered.reshape(by_map),
        )
    return means, covered


def covered_fraction(weights: AnyWeights, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    """(nlat, nlon) W f: a fraction of cell area carried over, uncovered parts counted as none."""
    _, covered = masked_mean(weights, np.zeros((1, *weights.source_shape)), fraction)
    return np.asarray(covered[0])
