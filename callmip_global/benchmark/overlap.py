"""Shares of the cells of a grid: inside a polygon, and of what a map of other cells says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled
from callmip_global.grid import Grid, sine_difference

Array = NDArray[np.float64]
Ring = Sequence[tuple[float, float]]
"""Corners (degrees_east, degrees_north), the last joined to the first by the last edge."""


def polygon_shares(rings: Sequence[Ring], grid: Grid) -> Array:
    """(nlat, nlon) float64: share of the area of each cell that lies inside one of the rings.

    Edges are straight in longitude and latitude; the area is that on the sphere, in longitude and
    sin(latitude), so it is the same on every grid. Corners may lie anywhere on the circle, but
    each ring goes once around its inside, without crossing itself; rings do not overlap.
    """
    total = np.zeros(grid.shape)
    for ring in rings:
        corners = np.asarray(ring, dtype=np.float64)
        x, y = corners.T
        # Of the rows of the polygon alone: most are small.
        low, high = np.searchsorted(grid.lat_edges, [y.min(), y.max()])
        rows = slice(max(0, low - 1), min(high, grid.shape[0]))
        edges = grid.lat_edges[rows.start : rows.stop + 1]
        if edges.size < 2:
            continue
        # What lies below each edge is added where the edge goes one way and taken away where it
        # goes the other: the inside is left. In the row of the edge that is a part of the cells
        # (``cut``), in all rows below it their height times the width of the edge (``under``).
        cut, under = np.zeros((2, edges.size, grid.shape[1]))
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            _add_edge(cut, under, start, end, edges, grid.lon_edges)
        width = np.cumsum(under[::-1], axis=0)[::-1][1:]
        height = sine_difference(edges[:-1], edges[1:])[:, None]
        turning = np.sign((np.roll(x, -1) - x) @ (np.roll(y, -1) + y))
        total[rows] += turning * (cut[:-1] / height + width) / np.diff(grid.lon_edges)
    return total


def _add_edge(
    cut: Array, under: Array, start: Array, end: Array, lat_edges: Array, lon_edges: Array
) -> None:
    """Add an edge of a polygon, cut at all edges of the grid that it crosses.

    cut, under : (nlat + 1, nlon), the last row for what lies north of the rows; ``cut`` in degrees
        times sin(latitude), ``under`` in degrees
    """
    sign = 1.0 if start[0] < end[0] else -1.0
    (x0, y0), (x1, y1) = (start, end) if sign > 0 else (end, start)
    if x0 == x1:
        return
    slope = (y1 - y0) / (x1 - x0)
    first = math.ceil((lon_edges[0] - x1) / 360.0)
    last = math.floor((lon_edges[-1] - x0) / 360.0)
    for turn in range(first, last + 1):
        origin = x0 + 360.0 * turn
        low, high = max(origin, lon_edges[0]), min(x1 + 360.0 * turn, lon_edges[-1])
        if low >= high:
            continue
        crossed = lat_edges[(lat_edges > min(y0, y1)) & (lat_edges < max(y0, y1))]
        at = np.concatenate([lon_edges, origin + (crossed - y0) / slope if slope else []])
        x = np.sort(np.concatenate([[low, high], at[(at > low) & (at < high)]]))
        y = np.clip(y0 + slope * (x - origin), min(y0, y1), max(y0, y1))
        middle, width = 0.5 * (y[1:] + y[:-1]), np.diff(x)
        column = np.searchsorted(lon_edges, 0.5 * (x[1:] + x[:-1]), side="right") - 1
        row = np.searchsorted(lat_edges, middle, side="right") - 1
        inside = row >= 0
        middle, width, half = middle[inside], width[inside], 0.5 * np.abs(np.diff(y))[inside]
        place = row[inside], np.clip(column[inside], 0, lon_edges.size - 2)
        np.add.at(under, place, sign * width)
        # Mean of sin(latitude) along the piece above the bottom of its row.
        half = np.deg2rad(half)
        flat = np.sinc(half / np.pi)
        above = sine_difference(lat_edges[place[0]], middle)
        np.add.at(cut, place, sign * width * (above - np.sin(np.deg2rad(middle)) * (1.0 - flat)))


def map_shares(values: NDArray[Any], source: Grid, grid: Grid) -> Array:
    """(nlat, nlon) float64: area-weighted mean over each cell of ``grid`` of a map on ``source``.

    values : (nlat, nlon) of ``source``, float or bool; what lies beyond its edges counts as 0
    """
    rows = _pieces(source.lat_edges, grid.lat_edges, turns=(0,))
    columns = _pieces(source.lon_edges, grid.lon_edges, turns=(-2, -1, 0, 1, 2))
    sines = sine_difference(rows[2], rows[3])
    total = np.zeros(grid.shape)
    widths = columns[3] - columns[2]
    _add_overlaps(np.ascontiguousarray(values), *rows[:2], sines, *columns[:2], widths, total)
    height = sine_difference(grid.lat_edges[:-1], grid.lat_edges[1:])
    return np.asarray(total / (height[:, None] * np.diff(grid.lon_edges)))


def _pieces(
    source: Array, target: Array, turns: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]:
    """What cells of two axes have in common, however many turns apart: number of the source cell,
    of the target cell, and first and last degree of each piece."""
    found = []
    for turn in turns:
        edges = source + 360.0 * turn
        low, high = max(edges[0], target[0]), min(edges[-1], target[-1])
        if low >= high:
            continue
        both = np.concatenate([edges, target])
        cuts = np.unique(np.concatenate([[low, high], both[(both > low) & (both < high)]]))
        middle = 0.5 * (cuts[1:] + cuts[:-1])
        # The middle of a piece as thin as rounding may be the last edge of all.
        own, other = (
            np.minimum(np.searchsorted(e, middle, side="right"), e.size - 1) - 1
            for e in (edges, target)
        )
        found.append((own, other, cuts[:-1], cuts[1:]))
    if not found:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0), np.zeros(0)
    own, other, first, last = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return own, other, first, last


@compiled
def _add_overlaps(
    values: NDArray[Any],
    rows: NDArray[np.int64],
    to_rows: NDArray[np.int64],
    heights: Array,
    columns: NDArray[np.int64],
    to_columns: NDArray[np.int64],
    widths: Array,
    total: Array,
) -> None:
    """Add each piece of a map, height times width times value, to the cell that it lies in."""
    for a in range(rows.size):
        own, target = values[rows[a]], total[to_rows[a]]
        for b in range(columns.size):
            target[to_columns[b]] += heights[a] * widths[b] * own[columns[b]]
