"""The nearest cell centre: for places whose cells are unknown, when asked for by name.

Each target cell takes the value of the source cell whose centre is nearest to its own on the
sphere, unless even that one is too far away to speak for it: oceans are not filled from a distant
coast. Nothing is conserved.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

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


def nearest_weights(
    source: Grid | Mesh, target: Grid, *, max_distance_km: float | None = None
) -> CellWeights:
    """Weights of 1 for the source cell with the nearest centre; of equally near ones the first.

    max_distance_km : target cells with no centre within this great-circle distance of their own
        stay empty. Without it: the larger of half a diagonal of the target cell, and 1.5 times the
        median distance of the source's centres from their nearest neighbours. So a point fills the
        target cell that it lies in, and coarse points leave no holes between them.

    The result does not conserve, and says so: its ``method`` names the distance, its ``tolerance``
    is infinite. UsageError for a distance that is none.
    """
    if max_distance_km is not None and not 0.0 < max_distance_km < math.inf:
        raise UsageError(Problem("max_distance_km", found=repr(max_distance_km), wanted="above 0"))
    points = _vectors(*_centres(source))
    places = _vectors(*_centres(target))
    tree = cKDTree(points)
    if max_distance_km is None:
        spacing = _spacing(tree, points)
        reach = np.maximum(_half_diagonals(target), _REACH * spacing)
        limit = f"{_km(_REACH * spacing):.4g} km or half a target cell"
    else:
        reach = np.full(len(places), max_distance_km * 1e3 / EARTH_RADIUS_M)
        limit = f"{max_distance_km:g} km"
    chord = 2.0 * np.sin(0.5 * np.minimum(reach, np.pi))
    far, found = _first_nearest(tree, places)
    into = np.flatnonzero(far <= chord + _TIE)
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


def _first_nearest(tree: cKDTree, places: Array) -> tuple[Array, Index]:
    """(m,) distance (chord) of the nearest point to each place, and the first point that near."""
    if tree.n == 1:
        far, found = tree.query(places)
        return far, np.asarray(found, dtype=np.int64)
    near, numbers = tree.query(places, k=2)
    found = np.asarray(numbers[:, 0], dtype=np.int64)
    tied = np.flatnonzero(near[:, 1] - near[:, 0] <= _TIE)
    if tied.size:
        lists = tree.query_ball_point(places[tied], near[tied, 0] + _TIE, return_sorted=False)
        found[tied] = [min(one) for one in lists]
    return near[:, 0], found


def _spacing(tree: cKDTree, points: Array) -> float:
    """Median angle [rad] between each centre and the nearest other one; 0 for a single one."""
    if tree.n == 1:
        return 0.0
    near = tree.query(points, k=2)[0][:, 1]
    return float(2.0 * np.arcsin(np.minimum(0.5 * np.median(near), 1.0)))


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
