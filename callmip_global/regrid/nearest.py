"""The nearest cell centre: for places whose cells are unknown, when asked for by name.

Each target cell takes the value of the source cell whose centre is nearest to its own on the
sphere, unless even that one is too far away to speak for it: oceans are not filled from a distant
coast. Nothing is conserved.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled
from callmip_global.errors import Problem, UsageError
from callmip_global.grid import EARTH_RADIUS_M, Grid
from callmip_global.regrid.mesh import Mesh
from callmip_global.regrid.weights import CellWeights, cell_weights

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# Centres whose distances differ by less than this (chord of the unit sphere, 6 cm) are equally far.
_TIE = 1e-8
# Between the points of a regular grid nowhere is farther from all of them than 0.71 of their
# spacing, and 1.5 allows for cells nearly three times as long as wide.
_REACH = 1.5
# Stations are farther apart than what they stand for; cells of models are smaller than this.
_FARTHEST_KM = 500.0


def nearest_weights(
    source: Grid | Mesh, target: Grid, *, max_distance_km: float | None = None
) -> CellWeights:
    """Weights of 1 for the source cell with the nearest centre; of equally near ones the first.

    max_distance_km : target cells with no centre within this great-circle distance of their own
        stay empty. Without it: the larger of half a diagonal of the target cell, and 1.5 times the
        median distance of the source's centres from their nearest neighbours, but not more than
        500 km. So a point fills the target cell that it lies in, coarse points leave no holes
        between them, and stations do not stand for continents.

    The result does not conserve, and says so: its ``method`` names the distance, its ``tolerance``
    is infinite. UsageError for a distance that is none.
    """
    if max_distance_km is not None and not 0.0 < max_distance_km < math.inf:
        raise UsageError(Problem("max_distance_km", found=repr(max_distance_km), wanted="above 0"))
    points = _vectors(*_centres(source))
    places = _vectors(*_centres(target))
    if max_distance_km is None:
        between = min(_REACH * _spacing(points), _angle(_FARTHEST_KM))
        reach = np.maximum(_half_diagonals(target), between)
        limit = f"{_km(between):.4g} km or half a target cell"
    else:
        reach = np.full(len(places), _angle(max_distance_km))
        limit = f"{max_distance_km:g} km"
    found = _first_nearest(points, places, 2.0 * np.sin(0.5 * np.minimum(reach, np.pi)))
    into = np.flatnonzero(found >= 0)
    weights = cell_weights(
        found[into],
        into,
        np.ones(into.size),
        source=source,
        target=target,
        edge_model="cell-centres",
    )
    method = f"nearest cell centre within {limit}; not conservative"
    return replace(weights, method=method, tolerance=math.inf)


def _first_nearest(points: Array, places: Array, limit: Array) -> Index:
    """(m,) first of the points that are nearest to each place, -1 where none is within ``limit``.

    points, places : (n, 3), (m, 3) unit vectors;  limit : (m,) chord of the unit sphere
    """
    order = np.argsort(points[:, 2], kind="stable")
    ascending = np.ascontiguousarray(points[order])
    starts = np.searchsorted(ascending[:, 2], places[:, 2])
    found, far = np.empty(len(places), dtype=np.int64), np.empty(len(places))
    _nearest_kernel(ascending, order, places, starts, limit, False, found, far)
    return found


def _spacing(points: Array) -> float:
    """Median angle [rad] between each point and the nearest other one; 0 for a single one."""
    if len(points) == 1:
        return 0.0
    ascending = np.ascontiguousarray(points[np.argsort(points[:, 2], kind="stable")])
    n = len(points)
    # Fewer than half of n points can be this far from all others: discs round them would not fit
    # on the sphere. So the median is known without looking farther.
    limit = np.full(n, min(6.0 / np.sqrt(n), 2.0))
    found, far = np.empty(n, dtype=np.int64), np.empty(n)
    own = np.arange(n)
    _nearest_kernel(ascending, own, ascending, own, limit, True, found, far)
    return float(2.0 * np.arcsin(min(0.5 * float(np.median(far)), 1.0)))


@compiled
def _chord(a: Any, i: int, b: Any, j: int) -> float:
    x, y, z = a[i, 0] - b[j, 0], a[i, 1] - b[j, 1], a[i, 2] - b[j, 2]
    return float(np.sqrt(x * x + y * y + z * z))


@compiled
def _nearest_kernel(
    points: Any, names: Any, places: Any, starts: Any, limits: Any, same: bool, found: Any, far: Any
) -> None:
    """The nearest of ``points``, which ascend in z, to each place; of equally near ones the first.

    names : number of each point;  starts : first point that is not below each place
    limits, far : chords;  same : the places are the points, and do not count for themselves
    found : -1 where no point is within the limit
    A chord is no shorter than its difference in z, so the search ends a chord above and below.
    """
    for m in range(places.shape[0]):
        best = limits[m] + _TIE
        near = -1
        for step in (1, -1):
            k = starts[m] + min(step, 0)
            while 0 <= k < points.shape[0] and abs(points[k, 2] - places[m, 2]) <= best:
                chord = _chord(points, k, places, m)
                if chord <= best and not (same and k == m):
                    best, near = chord, k
                k += step
        far[m] = best
        found[m] = -1
        if near >= 0:
            first = names[near]
            for step in (1, -1):
                k = starts[m] + min(step, 0)
                while 0 <= k < points.shape[0] and abs(points[k, 2] - places[m, 2]) <= best + _TIE:
                    if _chord(points, k, places, m) <= best + _TIE and not (same and k == m):
                        first = min(first, names[k])
                    k += step
            found[m] = first


def _half_diagonals(grid: Grid) -> Array:
    """(n,) largest angle [rad] between the centre of a cell and its corners, row by row."""
    lat, lon = np.meshgrid(grid.lat, grid.lon, indexing="ij")
    middle = _vectors(lat.ravel(), lon.ravel())
    largest = np.zeros(len(middle))
    for rows in (grid.lat_edges[:-1], grid.lat_edges[1:]):
        for columns in (grid.lon_edges[:-1], grid.lon_edges[1:]):
            lat, lon = np.meshgrid(rows, columns, indexing="ij")
            chord = np.linalg.norm(_vectors(lat.ravel(), lon.ravel()) - middle, axis=1)
            largest = np.maximum(largest, 2.0 * np.arcsin(np.minimum(0.5 * chord, 1.0)))
    return largest


def _centres(grid: Grid | Mesh) -> tuple[Array, Array]:
    if isinstance(grid, Mesh):
        return grid.lat_points, grid.lon_points
    lat, lon = np.meshgrid(grid.lat, grid.lon, indexing="ij")
    return lat.ravel(), lon.ravel()


def _vectors(lat: Array, lon: Array) -> Array:
    """(n, 3) unit vectors of latitudes and longitudes [degrees]."""
    p, q = np.deg2rad(lat), np.deg2rad(np.mod(lon, 360.0))
    return np.stack([np.cos(p) * np.cos(q), np.cos(p) * np.sin(q), np.sin(p)], axis=-1)


def _km(angle: float) -> float:
    return angle * EARTH_RADIUS_M / 1e3


def _angle(km: float) -> float:
    return km * 1e3 / EARTH_RADIUS_M
