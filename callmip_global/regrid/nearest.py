"""The nearest cell centre: for places whose cells are unknown, when asked for by name.

Each target cell takes the value of the source cell whose centre is nearest to its own on the
sphere, unless even that one is too far away to speak for it: oceans are not filled from a distant
coast. Nothing is conserved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
    """Weights of 1 for the source cell with the nearest centre on the sphere.

    Of equally near ones (to 6 cm) it is the southernmost, of these the first east of Greenwich,
    in whatever order the source has them; of centres in the same place the first.

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
    points, places = _Bands.of(*_centres(source)), _Bands.of(*_centres(target))
    if max_distance_km is None:
        between = min(_REACH * _spacing(points), _angle(_FARTHEST_KM))
        reach = np.maximum(_half_diagonals(target), between)
        limit = f"{_km(between):.4g} km or half a target cell"
    else:
        reach = np.full(places.lat.size, _angle(max_distance_km))
        limit = f"{max_distance_km:g} km"
    found = _nearest(points, places, 2.0 * np.sin(0.5 * np.minimum(reach, np.pi)))
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


@dataclass(frozen=True)
class _Bands:
    """Points sorted into bands of latitude, and by longitude within each.

    lat, lon : (n,) [radians], lon in 0..2 pi;  vectors : (n, 3);  names : (n,) number of each point
    ranks : (n,) who comes first among equally near ones: from the south, then from 0 E
    edges : (k+1,) latitudes [radians];  starts : (k+1,) first point of each band
    """

    lat: Array
    lon: Array
    vectors: Array
    names: Index
    ranks: Index
    edges: Array
    starts: Index

    @classmethod
    def of(cls, lat: Array, lon: Array) -> _Bands:
        """Bands about as high as points are apart; ``lat``, ``lon`` in degrees."""
        y, x = np.deg2rad(lat), np.deg2rad(np.mod(lon, 360.0))
        edges = np.linspace(y.min(), y.max(), max(2, int(0.7 * math.sqrt(y.size))))
        band = np.clip(np.searchsorted(edges, y, side="right") - 1, 0, edges.size - 2)
        order = np.lexsort((x, band))
        starts = np.searchsorted(band[order], np.arange(edges.size))
        vectors = np.ascontiguousarray(_vectors(lat, lon)[order])
        ranks = np.empty(y.size, dtype=np.int64)
        # To 6 cm, as distances: latitudes of one row of cells may differ by rounding.
        ranks[np.lexsort((x, np.round(y / _TIE)))] = np.arange(y.size)
        return cls(y[order], x[order], vectors, order, ranks[order], edges, starts)

    def nearest(self, places: _Bands, limits: Array, *, same: bool = False) -> tuple[Index, Array]:
        """(m,) number of the point nearest to each place, -1 where none is within the limit, and
        the chord to it (the limit then), in the order of ``places``.

        limits : (m,) chords of the unit sphere
        same : the places are these points, and do not count for themselves
        """
        found, far = np.empty(places.lat.size, dtype=np.int64), np.empty(places.lat.size)
        _nearest_kernel(
            self.lon,
            self.vectors,
            self.ranks,
            self.edges,
            self.starts,
            places.lat,
            places.lon,
            places.vectors,
            limits + _TIE,
            same,
            found,
            far,
        )
        by_rank = np.empty_like(self.names)
        by_rank[self.ranks] = self.names
        return np.where(found >= 0, by_rank[found], -1), far


def _nearest(points: _Bands, places: _Bands, limit: Array) -> Index:
    """(m,) number of the point nearest to each place, -1 where none is within ``limit``.

    limit : (m,) chord of the unit sphere, as the result in the order the places came in
    """
    found = np.empty(places.lat.size, dtype=np.int64)
    found[places.names] = points.nearest(places, limit[places.names])[0]
    return found


def _spacing(points: _Bands) -> float:
    """Median angle [rad] between each point and the nearest other one; 0 for a single one."""
    n = points.lat.size
    if n == 1:
        return 0.0
    # Fewer than half of n points can be this far from all others: discs round them would not fit
    # on the sphere. So the median is known without looking farther.
    limit = np.full(n, min(6.0 / np.sqrt(n), 2.0))
    far = points.nearest(points, limit, same=True)[1]
    return float(2.0 * np.arcsin(min(0.5 * float(np.median(far)), 1.0)))


@compiled
def _chord(a: Any, i: int, b: Any, j: int) -> float:
    x, y, z = a[i, 0] - b[j, 0], a[i, 1] - b[j, 1], a[i, 2] - b[j, 2]
    return float(np.sqrt(x * x + y * y + z * z))


@compiled
def _window(lat: float, chord: float) -> float:
    """Points within a chord of a place differ from it by no more than this in longitude [rad].

    The plane of a meridian d away has the distance cos(lat) sin(d) from the place.
    """
    ratio = (chord + _TIE) / max(np.cos(lat), 1e-300)
    return float(np.arcsin(ratio)) if ratio < 1.0 else np.pi


@compiled
def _in_band(
    lon: Any,
    vectors: Any,
    ranks: Any,
    start: int,
    stop: int,
    m: int,
    lat_m: float,
    lon_m: float,
    place: Any,
    bound: float,
    first: int,
    last: bool,
    same: bool,
) -> tuple[float, int]:
    """The search in one band, from the place's longitude to both sides.

    last : of all points within the bound the lowest rank is wanted; else the smallest chord
    """
    window = _window(lat_m, bound)
    middle = start + int(np.searchsorted(lon[start:stop], lon_m))
    for step in (1, -1):
        k = middle + min(step, 0)
        for _ in range(stop - start):
            if k >= stop:
                k = start
            if k < start:
                k = stop - 1
            ahead = (lon[k] - lon_m) * step
            if ahead < 0.0:
                ahead += 2.0 * np.pi
            if ahead > window:
                break
            if not (same and k == m):
                chord = _chord(vectors, k, place, m)
                if chord <= bound:
                    if last:
                        first = ranks[k] if first < 0 else min(first, ranks[k])
                    elif chord < bound:
                        bound = chord
                        window = _window(lat_m, bound)
            k += step
    return bound, first


@compiled
def _search(
    lon: Any,
    vectors: Any,
    ranks: Any,
    edges: Any,
    starts: Any,
    m: int,
    lat_m: float,
    lon_m: float,
    place: Any,
    bound: float,
    last: bool,
    same: bool,
) -> tuple[float, int]:
    """The search in the place's own band, and in those above and below that reach into the bound:
    a chord is no shorter than that of the difference in latitude."""
    first = -1
    here = min(max(int(np.searchsorted(edges, lat_m)) - 1, 0), edges.size - 2)
    for step in (1, -1):
        band = here + min(step, 0)
        while 0 <= band < edges.size - 1:
            gap = edges[band] - lat_m if step > 0 else lat_m - edges[band + 1]
            if gap > 0.0 and 2.0 * np.sin(0.5 * gap) > bound + _TIE:
                break
            bound, first = _in_band(
                lon,
                vectors,
                ranks,
                starts[band],
                starts[band + 1],
                m,
                lat_m,
                lon_m,
                place,
                bound,
                first,
                last,
                same,
            )
            band += step
    return bound, first


@compiled
def _nearest_kernel(
    lon: Any,
    vectors: Any,
    ranks: Any,
    edges: Any,
    starts: Any,
    lats: Any,
    lons: Any,
    places: Any,
    bounds: Any,
    same: bool,
    found: Any,
    far: Any,
) -> None:
    """The nearest of the points to each place; of equally near ones that of the lowest rank.

    found : its rank, -1 where no point is within the bound
    """
    for m in range(lats.size):
        best, _ = _search(
            lon, vectors, ranks, edges, starts, m, lats[m], lons[m], places, bounds[m], False, same
        )
        far[m] = best
        # Ties of the nearest; where none is within the bound, there are none beyond it either.
        reach = min(best + _TIE, bounds[m])
        _, found[m] = _search(
            lon, vectors, ranks, edges, starts, m, lats[m], lons[m], places, reach, True, same
        )


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
