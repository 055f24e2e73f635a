"""Weights applied to data: one compiled kernel for every mask, every variable, every grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled
from callmip_global.regrid.weights import AnyWeights, CellWeights, Weights

# Separable weights act along latitude first, whole source rows at a time, then along longitude. The
# sums of both kernels, of a mask that changes and of one that does not, are the same in the same
# order; what is missing adds nothing.


@compiled
def _set_row(
    values: NDArray[Any],
    fraction: NDArray[Any] | None,
    t: int,
    f: int,
    row: Any,
    weight: float,
    num: NDArray[np.float64],
    den: NDArray[np.float64] | None,
) -> None:
    """num, den = the first source row of a target row: weight x fraction x value, and weight x
    fraction, of its numbers. No fraction: all 1; no den: not wanted."""
    for i in range(values.shape[2]):
        x = values[t, row, i]
        w = weight
        if fraction is not None:
            w = weight * fraction[f, row, i]
        # Not the product alone: the sum of nothing and -0 is 0.
        num[i] = 0.0 + (w * np.float64(x) if x == x else 0.0)
        if den is not None:
            den[i] = w if x == x else 0.0


@compiled
def _add_row(
    values: NDArray[Any],
    fraction: NDArray[Any] | None,
    t: int,
    f: int,
    row: Any,
    weight: float,
    num: NDArray[np.float64],
    den: NDArray[np.float64] | None,
) -> None:
    """Add one more source row to num and den."""
    for i in range(values.shape[2]):
        x = values[t, row, i]
        w = weight
        if fraction is not None:
            w = weight * fraction[f, row, i]
        num[i] += w * np.float64(x) if x == x else 0.0
        if den is not None:
            den[i] += w if x == x else 0.0


@compiled
def _sum_rows(
    values: NDArray[Any],
    fraction: NDArray[Any] | None,
    t: int,
    f: int,
    rows: NDArray[np.uint64],
    weights: NDArray[np.float64],
    num: NDArray[np.float64],
    den: NDArray[np.float64] | None,
) -> None:
    """The weighted sums over source rows, and of the weights.

    One row after the other: two at once are no faster in the cache and slower out of memory.
    """
    if rows.size == 0:
        num[:] = 0.0
        if den is not None:
            den[:] = 0.0
        return
    _set_row(values, fraction, t, f, rows[0], weights[0], num, den)
    for a in range(1, rows.size):
        _add_row(values, fraction, t, f, rows[a], weights[a], num, den)


@compiled
def _along_pairs(
    num: NDArray[np.float64],
    pairs: NDArray[np.uint64],
    weights: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Sums along longitude where target cells have two source cells each, in runs of pairs."""
    for r in range(pairs.shape[0]):
        into, source = pairs[r, 0], pairs[r, 2]
        for i in range(pairs[r, 1]):
            j = source + i + i
            total[into + i] = (
                weights[0, into + i] * num[j] + weights[1, into + i] * num[j + np.uint64(1)]
            )


@compiled
def _mean_kernel(
    values: NDArray[Any],
    fraction: NDArray[Any] | None,
    each: bool,
    lat_indptr: NDArray[np.uint64],
    lat_indices: NDArray[np.uint64],
    lat_values: NDArray[np.float64],
    again: NDArray[np.bool_],
    slots: NDArray[np.uint32],
    lon_values: NDArray[np.float64],
    pairs: NDArray[np.uint64],
    columns: NDArray[np.uint32],
    times: int,
    out: NDArray[Any],
    covered: NDArray[Any],
    cap: float,
) -> None:
    n_lon, n = np.uint64(out.shape[2]), np.uint64(slots.shape[1])
    num, den = np.zeros(values.shape[2] + 1), np.zeros(values.shape[2] + 1)
    total, weight = np.zeros(n), np.zeros(n)
    means, parts = np.zeros(n, out.dtype), np.zeros(n, covered.dtype)
    for t in range(values.shape[0]):
        f = t if each else 0
        for j in range(out.shape[1]):
            if again[j]:
                for i in range(n_lon):
                    out[t, j, i] = out[t, j - 1, i]
                    covered[t, j, i] = covered[t, j - 1, i]
                continue
            first, last = lat_indptr[j], lat_indptr[j + 1]
            _sum_rows(
                values,
                fraction,
                t,
                f,
                lat_indices[first:last],
                lat_values[first:last],
                num,
                den,
            )
            if pairs.shape[0] > 0:
                _along_pairs(num, pairs, lon_values, total)
                _along_pairs(den, pairs, lon_values, weight)
            elif slots.shape[0] == 2:
                for i in range(n):
                    a, b = slots[0, i], slots[1, i]
                    p, q = lon_values[0, i], lon_values[1, i]
                    weight[i] = p * den[a] + q * den[b]
                    total[i] = p * num[a] + q * num[b]
            else:
                for i in range(n):
                    w = lon_values[0, i] * den[slots[0, i]]
                    x = lon_values[0, i] * num[slots[0, i]]
                    for k in range(1, slots.shape[0]):
                        w += lon_values[k, i] * den[slots[k, i]]
                        x += lon_values[k, i] * num[slots[k, i]]
                    weight[i], total[i] = w, x
            if times == 1:
                for i in range(n):
                    w = weight[i]
                    covered[t, j, i] = min(w, cap)
                    inverse = np.divide(1.0, w)
                    out[t, j, i] = total[i] * inverse if w > 0.0 else np.nan
                continue
            if times == 2:
                for i in range(n):
                    w = weight[i]
                    part = min(w, cap)
                    inverse = np.divide(1.0, w)
                    mean = total[i] * inverse if w > 0.0 else np.nan
                    first, second = i + i, i + i + np.uint64(1)
                    covered[t, j, first], covered[t, j, second] = part, part
                    out[t, j, first], out[t, j, second] = mean, mean
                continue
            for i in range(n):
                w = weight[i]
                parts[i] = min(w, cap)
                inverse = np.divide(1.0, w)
                means[i] = total[i] * inverse if w > 0.0 else np.nan
            for i in range(n_lon):
                out[t, j, i] = means[columns[i]]
                covered[t, j, i] = parts[columns[i]]


@compiled
def _fixed_mean_kernel(
    values: NDArray[Any],
    fraction: NDArray[np.float64] | None,
    lat_indptr: NDArray[np.uint64],
    lat_indices: NDArray[np.uint64],
    lat_values: NDArray[np.float64],
    again: NDArray[np.bool_],
    slots: NDArray[np.uint32],
    lon_values: NDArray[np.float64],
    pairs: NDArray[np.uint64],
    columns: NDArray[np.uint32],
    times: int,
    runs: NDArray[np.uint64],
    run_indptr: NDArray[np.uint64],
    inverse: NDArray[np.float64],
    out: NDArray[Any],
) -> None:
    n_lon, n = np.uint64(out.shape[2]), np.uint64(slots.shape[1])
    num, total = np.zeros(values.shape[2] + 1), np.zeros(n)
    means = np.full(n, np.nan, out.dtype)
    for t in range(values.shape[0]):
        for j in range(out.shape[1]):
            if again[j]:
                for i in range(n_lon):
                    out[t, j, i] = out[t, j - 1, i]
                continue
            if run_indptr[j] == run_indptr[j + 1]:
                for i in range(n_lon):
                    out[t, j, i] = np.nan
                continue
            first, last = lat_indptr[j], lat_indptr[j + 1]
            _sum_rows(
                values,
                fraction,
                t,
                0,
                lat_indices[first:last],
                lat_values[first:last],
                num,
                None,
            )
            if pairs.shape[0] > 0:
                _along_pairs(num, pairs, lon_values, total)
                for i in range(n):
                    out[t, j, i] = total[i] * inverse[j, i]
                continue
            means[:] = np.nan
            for r in range(run_indptr[j], run_indptr[j + 1]):
                if slots.shape[0] == 2:
                    for i in range(runs[r, 0], runs[r, 1]):
                        x = (
                            lon_values[0, i] * num[slots[0, i]]
                            + lon_values[1, i] * num[slots[1, i]]
                        )
                        means[i] = x * inverse[j, i]
                    continue
                for i in range(runs[r, 0], runs[r, 1]):
                    x = lon_values[0, i] * num[slots[0, i]]
                    for k in range(1, slots.shape[0]):
                        x += lon_values[k, i] * num[slots[k, i]]
                    means[i] = x * inverse[j, i]
            if times == 1:
                for i in range(n):
                    out[t, j, i] = means[i]
            elif times == 2:
                for i in range(n):
                    out[t, j, i + i] = means[i]
                    out[t, j, i + i + np.uint64(1)] = means[i]
            else:
                for i in range(n_lon):
                    out[t, j, i] = means[columns[i]]


@compiled
def _cell_mean_kernel(
    values: NDArray[Any],
    fraction: NDArray[Any],
    indptr: NDArray[np.uint64],
    indices: NDArray[np.uint64],
    weights: NDArray[np.float64],
    out: NDArray[Any],
    covered: NDArray[Any],
    cap: float,
) -> None:
    for t in range(values.shape[0]):
        f = t if fraction.shape[0] > 1 else 0
        for k in range(out.shape[1]):
            total = 0.0
            weight = 0.0
            for a in range(indptr[k], indptr[k + 1]):
                x = values[t, indices[a]]
                if x == x:
                    w = weights[a] * fraction[f, indices[a]]
                    total += w * x
                    weight += w
            covered[t, k] = min(weight, cap)
            out[t, k] = total * (1.0 / weight) if weight > 0.0 else np.nan


@compiled
def _fixed_cell_mean_kernel(
    values: NDArray[Any],
    rows: NDArray[np.uint32],
    indptr: NDArray[np.uint32],
    indices: NDArray[np.uint32],
    weights: NDArray[np.float64],
    inverse: NDArray[np.float64],
    out: NDArray[Any],
) -> None:
    for t in range(values.shape[0]):
        out[t, :] = np.nan
        for r in range(rows.size):
            total = 0.0
            for a in range(indptr[r], indptr[r + 1]):
                total += weights[a] * values[t, indices[a]]
            out[t, rows[r]] = total * inverse[r]


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
    second, third, fourth = (
        start + lanes,
        start + lanes + lanes,
        start + lanes + lanes + lanes,
    )
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
    second, third, fourth = (
        start + lanes,
        start + lanes + lanes,
        start + lanes + lanes + lanes,
    )
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
    fraction: NDArray[Any],
    area: NDArray[np.float64],
    t: int,
    weight: NDArray[np.float64],
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


@dataclass(frozen=True)
class _Axes:
    """Separable weights as the kernels take them.

    again : (nlat,) whether a target row has the very weights of the row before it
    slots, lon_values : (k, n) source columns and weights of target columns, k the most that one
        has, at least 2; what one has less is weight 0 of a column behind the last, which is 0
    columns : (nlon,) which of these k-tuples each target column has: where it is finer than the
        source, neighbours have the same one
    times : how often each of them comes, 1 or 2; 0 where they come otherwise
    pairs : (m, 3) runs of target columns that have two source columns each, one pair after the
        other: first target column, length, first source column; none where runs are short
    """

    lat_indptr: NDArray[np.uint64]
    lat_indices: NDArray[np.uint64]
    lat_values: NDArray[np.float64]
    again: NDArray[np.bool_]
    slots: NDArray[np.uint32]
    lon_values: NDArray[np.float64]
    columns: NDArray[np.uint32]
    times: int
    pairs: NDArray[np.uint64]

    @classmethod
    def of(cls, weights: Weights) -> _Axes:
        lat, lon = weights.lat, weights.lon
        again = np.zeros(lat.n_target, dtype=np.bool_)
        for j in range(1, lat.n_target):
            one, two = slice(*lat.indptr[j - 1 : j + 1]), slice(*lat.indptr[j : j + 2])
            again[j] = np.array_equal(lat.indices[one], lat.indices[two]) and np.array_equal(
                lat.values[one], lat.values[two]
            )
        counts = np.diff(lon.indptr)
        columns = np.repeat(np.arange(lon.n_target), counts)
        place = np.arange(columns.size) - lon.indptr[columns]
        most = max(2, int(counts.max(initial=2)))
        slots = np.full((most, lon.n_target), lon.n_source, dtype=np.uint32)
        values = np.zeros((most, lon.n_target))
        slots[place, columns] = lon.indices
        values[place, columns] = lon.values
        new = np.ones(lon.n_target, dtype=np.bool_)
        new[1:] = np.any(
            (slots[:, 1:] != slots[:, :-1]) | (values[:, 1:] != values[:, :-1]), axis=0
        )
        pairs = _pairs(slots, counts)
        new |= len(pairs) > 0
        tuples = (np.cumsum(new) - 1).astype(np.uint32)
        return cls(
            lat.indptr.astype(np.uint64),
            lat.indices.astype(np.uint64),
            lat.values,
            again,
            np.ascontiguousarray(slots[:, new]),
            np.ascontiguousarray(values[:, new]),
            tuples,
            _times(tuples),
            pairs,
        )


def _axes(weights: Weights) -> _Axes:
    """Made once for each set of weights, and kept among its attributes as a cached property is."""
    kept = vars(weights)
    if "_axes" not in kept:
        kept["_axes"] = _Axes.of(weights)
    axes: _Axes = kept["_axes"]
    return axes


def _times(columns: NDArray[np.uint32]) -> int:
    """How often each number comes, 1 or 2; 0 where they come otherwise."""
    for times in (1, 2):
        if columns.size % times == 0 and np.array_equal(columns, np.arange(columns.size) // times):
            return times
    return 0


_SHORT = 16


def _pairs(slots: NDArray[np.uint32], counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    none = np.empty((0, 3), dtype=np.uint64)
    if not np.all(counts == 2):
        return none
    one, two = slots.astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(one) != 2]))
    if np.any(two != one + 1) or starts.size * _SHORT > counts.size:
        return none
    lengths = np.diff(np.append(starts, counts.size))
    return np.stack([starts, lengths, one[starts]], axis=1).astype(np.uint64)


class FixedMean:
    """``masked_mean`` for maps whose valid cells and weight never change: the same bits, faster.

    covered : (nlat, nlon) float64 on the target grid, the part of each cell the values speak for
    """

    def __init__(
        self, weights: AnyWeights, valid: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> None:
        """Weights for values that are numbers exactly where ``valid``.

        valid : (nlat, nlon) on the source grid (the rows and columns of a mesh)
        weight : (nlat, nlon) in [0, 1]: the part of each source cell the values speak for; what
            it says of cells that are not valid does not matter
        ValueError on shapes that do not fit, and on weights outside [0, 1] or NaN.
        """
        if not valid.shape == weight.shape == weights.source_shape:
            raise ValueError(
                f"valid is {valid.shape}, weight {weight.shape}, "
                f"the weights take {weights.source_shape}"
            )
        part = np.where(valid, weight, 0.0)
        if not _within(part.reshape(-1)):
            raise ValueError("weight must lie within [0, 1], without NaN, where values are valid")
        self.source_shape = weights.source_shape
        self.target_shape = weights.target_shape
        # The kernel for masks that change adds up the weights, so that its sums are these.
        sums = np.empty((1, *weights.target_shape))
        nothing = np.where(valid, np.float32(0.0), np.float32(np.nan))[None]
        unused = np.empty(sums.shape, dtype=np.float32)
        whole = bool(np.all(part[valid] == 1.0))
        _apply(weights, nothing, part[None], whole, unused, sums, np.inf)
        self.covered: NDArray[np.float64] = np.minimum(sums[0], 1.0)
        inverse = np.divide(1.0, sums[0], out=np.full_like(sums[0], np.nan), where=sums[0] > 0.0)
        self._means = (
            _FixedCells.of(weights, part, inverse)
            if isinstance(weights, CellWeights)
            else _FixedAxes.of(_axes(weights), None if whole else part[None], inverse)
        )

    def mean(self, values: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """(..., nlat, nlon) means on the target grid, in the type of ``values``.

        values : (..., nlat, nlon) float32 or float64, numbers exactly in the valid cells
        out : where to write them, contiguous, not ``values`` itself; else made here
        """
        flat, result = _check(values, out, self.source_shape, self.target_shape)
        self._means.fill(flat, result.reshape(-1, *self.target_shape))
        return result


@dataclass(frozen=True)
class _FixedAxes:
    axes: _Axes
    fraction: NDArray[np.float64] | None
    runs: NDArray[np.uint64]
    run_indptr: NDArray[np.uint64]
    inverse: NDArray[np.float64]

    @classmethod
    def of(
        cls, axes: _Axes, fraction: NDArray[np.float64] | None, inverse: NDArray[np.float64]
    ) -> _FixedAxes:
        distinct = np.searchsorted(axes.columns, np.arange(axes.slots.shape[1]))
        inverse = np.ascontiguousarray(inverse[:, distinct])
        return cls(axes, fraction, *_runs(~np.isnan(inverse)), inverse)

    def fill(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        axes = self.axes
        _fixed_mean_kernel(
            values,
            self.fraction,
            axes.lat_indptr,
            axes.lat_indices,
            axes.lat_values,
            axes.again,
            axes.slots,
            axes.lon_values,
            axes.pairs,
            axes.columns,
            axes.times,
            self.runs,
            self.run_indptr,
            self.inverse,
            out,
        )


def _runs(valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(m, 2) first and last column (exclusive) of the runs of valid cells; where rows begin."""
    edges = np.diff(np.pad(valid, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, firsts = np.nonzero(edges == 1)
    lasts = np.nonzero(edges == -1)[1]
    counts = np.bincount(rows, minlength=valid.shape[0])
    return (
        np.stack([firsts, lasts], axis=1).astype(np.uint64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64),
    )


@dataclass(frozen=True)
class _FixedCells:
    """The rows of a matrix that have valid cells, and of these the entries that count."""

    rows: NDArray[np.uint32]
    indptr: NDArray[np.uint32]
    indices: NDArray[np.uint32]
    values: NDArray[np.float64]
    inverse: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        weights: CellWeights,
        part: NDArray[np.float64],
        inverse: NDArray[np.float64],
    ) -> _FixedCells:
        rows = np.repeat(np.arange(inverse.size), np.diff(weights.indptr))
        values = weights.values * part.reshape(-1)[weights.indices]
        keep = (values != 0.0) & (~np.isnan(inverse.reshape(-1)[rows]))
        counts = np.bincount(rows[keep], minlength=inverse.size)
        some = np.flatnonzero(counts)
        return cls(
            some.astype(np.uint32),
            np.concatenate([[0], np.cumsum(counts[some])]).astype(np.uint32),
            weights.indices[keep].astype(np.uint32),
            values[keep],
            inverse.reshape(-1)[some],
        )

    def fill(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        steps = values.shape[0]
        _fixed_cell_mean_kernel(
            values.reshape(steps, -1),
            self.rows,
            self.indptr,
            self.indices,
            self.values,
            self.inverse,
            out.reshape(steps, -1),
        )


def one_matrix(weights: AnyWeights) -> CellWeights:
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
    if covered is None:
        covered = np.empty(means.shape, dtype=np.float64)
    elif covered.shape != means.shape or not covered.flags.c_contiguous:
        raise ValueError(f"covered must be contiguous {means.shape}")
    if fraction is None:
        part = np.ones((1, *weights.source_shape))
    else:
        if fraction.dtype not in (np.float32, np.float64):
            fraction = fraction.astype(np.float64)
        part = np.ascontiguousarray(fraction)
        if fraction.shape not in (weights.source_shape, values.shape) or not _within(
            part.reshape(-1)
        ):
            raise ValueError("fraction must fit the source, within [0, 1], without NaN")
        part = part.reshape(-1, *weights.source_shape)
    whole = fraction is None or (len(part) == 1 and bool(np.all(part == 1.0)))
    by_map = (-1, *weights.target_shape)
    # Overlaps add up to 1 only to rounding; what is written must not exceed the cell.
    _apply(
        weights,
        flat,
        part,
        whole,
        means.reshape(by_map),
        covered.reshape(by_map),
        1.0,
    )
    return means, covered


def _apply(
    weights: AnyWeights,
    values: NDArray[Any],
    fraction: NDArray[Any],
    whole: bool,
    out: NDArray[Any],
    covered: NDArray[Any],
    cap: float,
) -> None:
    """``masked_mean`` of (n, nlat, nlon) maps; ``whole``: every fraction is 1."""
    if isinstance(weights, CellWeights):
        _cell_mean_kernel(
            values.reshape(values.shape[0], -1),
            fraction.reshape(fraction.shape[0], -1),
            weights.indptr.view(np.uint64),
            weights.indices.view(np.uint64),
            weights.values,
            out.reshape(out.shape[0], -1),
            covered.reshape(out.shape[0], -1),
            cap,
        )
        return
    axes = _axes(weights)
    _mean_kernel(
        values,
        None if whole else fraction,
        fraction.shape[0] > 1,
        axes.lat_indptr,
        axes.lat_indices,
        axes.lat_values,
        axes.again,
        axes.slots,
        axes.lon_values,
        axes.pairs,
        axes.columns,
        axes.times,
        out,
        covered,
        cap,
    )


@compiled
def _within(fraction: NDArray[Any]) -> bool:
    outside = np.uint32(0)
    for i in range(fraction.size):
        x = fraction[i]
        outside = np.uint32(outside + np.uint32(not (x >= 0.0 and x <= 1.0)))
    return bool(outside == np.uint32(0))


def covered_fraction(weights: AnyWeights, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    """(nlat, nlon) W f: a fraction of cell area carried over, uncovered parts counted as none."""
    _, covered = masked_mean(weights, np.zeros((1, *weights.source_shape)), fraction)
    return np.asarray(covered[0])
