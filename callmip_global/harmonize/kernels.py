"""Passes over blocks of values, compiled: each reads and writes every number once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled

Array = NDArray[np.float64]


@compiled
def decode(
    raw: NDArray[Any], missing: NDArray[Any], scale: float, offset: float, out: Array
) -> None:
    """``out`` = ``raw`` times scale plus offset, NaN where ``raw`` is one of ``missing``.

    raw : (n, nlat, nlon) integers or floats in native byte order, of any strides
    missing : values that mean missing, of the type of ``raw``;  out : (n, nlat, nlon)
    """
    for t in range(raw.shape[0]):
        for j in range(raw.shape[1]):
            for i in range(raw.shape[2]):
                x = raw[t, j, i]
                value = float(x) * scale + offset
                for k in range(missing.size):
                    if x == missing[k]:
                        value = np.nan
                out[t, j, i] = value


@compiled
def clear_fill(values: Array, fill: float, cells: NDArray[np.bool_]) -> tuple[int, int]:
    """Set ``values`` (n, cells) to NaN where they are ``fill``, as they must be at ``cells`` only.

    Returns the first step where that does not hold, and at how many cells; (-1, 0) if it does.
    """
    for t in range(values.shape[0]):
        differ = 0
        for i in range(values.shape[1]):
            same = values[t, i] == fill
            if same != cells[i]:
                differ += 1
            if same:
                values[t, i] = np.nan
        if differ:
            return t, differ
    return -1, 0


@compiled
def clear_sea(values: Array, sea: NDArray[np.intp]) -> tuple[int, int, int]:
    """Set ``values`` (n, cells) to NaN at the cells ``sea``, given by index.

    Returns how many of these cells held a value, how many values they held, how many of them 0.
    """
    cells, held, zeros = 0, 0, 0
    seen = np.zeros(sea.size, dtype=np.bool_)
    for t in range(values.shape[0]):
        for k in range(sea.size):
            x = values[t, sea[k]]
            if np.isfinite(x):
                held += 1
                if x == 0.0:
                    zeros += 1
                if not seen[k]:
                    seen[k] = True
                    cells += 1
            values[t, sea[k]] = np.nan
    return cells, held, zeros


@compiled
def divide_by_land(values: Array, fraction: Array, area: Array) -> tuple[float, float]:
    """``values`` (n, cells) divided by the land fraction (cells,) where there is any.

    Returns the integrals of their sizes before: over all cells, and over those without land.
    """
    total, lost = 0.0, 0.0
    for t in range(values.shape[0]):
        for i in range(values.shape[1]):
            x = values[t, i]
            if np.isnan(x):
                continue
            mass = abs(x) * area[i]
            total += mass
            if fraction[i] > 0.0:
                values[t, i] = x / fraction[i]
            else:
                lost += mass
    return total, lost
