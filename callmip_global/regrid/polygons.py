"""Exact overlaps of cells on the sphere with the boxes of a rectilinear grid.

In the plane of longitude and sin(latitude) areas are areas on the sphere, and the part of a cell
that lies in a box is an integral round the cell's own boundary (Green's theorem): of the height
s = sin(latitude) of the boundary, held between the box's two parallels, over the longitudes of the
box's column. Under a great circle that integral is known in closed form: together with a pole two
points make a triangle, whose area is 2 atan2(t1 t2 sin d, 1 + t1 t2 cos d), with t the tangent of
half the distance from the pole and d the difference in longitude (Todhunter 1886, Spherical
Trigonometry, section 103). So each edge is cut where it crosses the box's meridians and parallels,
and nothing is approximated: no points are put along the edges. Heights are measured from the pole
of the cell's hemisphere, so cells round a pole, with a corner on it or an edge through it need
nothing special, and they keep full precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled
from callmip_global.grid import Grid

Array = NDArray[np.float64]

# Differences in longitude below this [rad] are a meridian; this near to half a turn an edge runs
# through the pole; corners this near to a pole [rad] are on it.
_MERIDIAN = 1e-15
_THROUGH_POLE = 1e-12
_AT_POLE = 1e-12


@dataclass(frozen=True)
class Overlaps:
    """Common areas of the cells of a mesh and the boxes of a grid, on the unit sphere.

    cells : (k,) int64 cell of each overlap, ascending;  boxes : (k,) int64 row * nlon + column
    areas : (k,) float64 [sr]
    cell_areas : (n,) float64 [sr], areas of the whole cells
    smallest : (n,) float64 [sr]; 0, or below it where a cell's boundary crosses itself
    """

    cells: NDArray[np.int64]
    boxes: NDArray[np.int64]
    areas: Array
    cell_areas: Array
    smallest: Array


def cell_areas(lat: Array, lon: Array, *, parallels: bool = False) -> Array:
    """(n,) areas of cells [sr]; corners (n, m) [degrees] as for ``overlaps``."""
    out = np.empty(lat.shape[0])
    _areas_kernel(*_radians(lat, lon), parallels, out)
    return out


def overlaps(lat: Array, lon: Array, grid: Grid, *, parallels: bool = False) -> Overlaps:
    """Overlaps of cells, given by their corners, with the boxes of a rectilinear grid.

    lat, lon : (n, m) corners [degrees], in order round each cell, either way; cells with fewer
        corners repeat some. A cell must be smaller than a hemisphere.
    parallels : the edges between corners of one latitude follow their parallel (cells that are
        latitude-longitude boxes, less than half a turn wide); otherwise all are great circles
    """
    # Rows and a column beyond the grid take what lies outside it.
    south = int(grid.lat_edges[0] > -90.0)
    north = int(grid.lat_edges[-1] < 90.0)
    edges = np.concatenate([[-90.0] * south, grid.lat_edges, [90.0] * north])
    turn_open = grid.lon_edges[-1] - grid.lon_edges[0] < 360.0 - 1e-9
    meridians = np.deg2rad(grid.lon_edges)
    if turn_open:
        meridians = np.append(meridians, meridians[0] + 2.0 * np.pi)
    nlat, nlon = grid.shape
    per_cell = np.empty(lat.shape[0])
    smallest = np.zeros(lat.shape[0])
    cells, boxes, areas = _overlap_kernel(
        *_radians(lat, lon),
        parallels,
        *_heights(edges),
        *_heights(-edges[::-1]),
        meridians,
        south,
        nlat,
        nlon,
        per_cell,
        smallest,
    )
    return Overlaps(cells, boxes, areas, per_cell, smallest)


def _radians(lat: Array, lon: Array) -> tuple[Array, Array]:
    """Corners in radians, longitudes in [0, 2 pi), so that shared corners have the same bits."""
    if lat.ndim != 2 or lat.shape != lon.shape or lat.shape[1] < 3:
        raise ValueError(f"corners must be (n, 3 or more), got {lat.shape} and {lon.shape}")
    return (
        np.ascontiguousarray(np.deg2rad(lat)),
        np.ascontiguousarray(np.deg2rad(np.mod(lon, 360.0))),
    )


def _heights(edges: Array) -> tuple[Array, Array]:
    """tan(latitude) of ascending edges [degrees], and 1 - sin(latitude) without cancellation."""
    with np.errstate(over="ignore"):
        tangents = np.tan(np.deg2rad(edges))
    tangents = np.where(edges >= 90.0, np.inf, np.where(edges <= -90.0, -np.inf, tangents))
    return tangents, 2.0 * np.sin(0.5 * np.deg2rad(90.0 - edges)) ** 2


@compiled
def _half_tangent(tangent: float) -> float:
    """tan(half the distance from the north pole) of a tan(latitude)."""
    if tangent >= 0.0:
        return float(1.0 / (tangent + np.sqrt(1.0 + tangent * tangent)))
    return float(np.sqrt(1.0 + tangent * tangent) - tangent)


@compiled
def _polar_triangle(t1: float, t2: float, width: float) -> float:
    """Area between the north pole and a great circle [sr]: the integral of 1 - sin(latitude)."""
    product = t1 * t2
    return float(2.0 * np.arctan2(product * np.sin(width), 1.0 + product * np.cos(width)))


@compiled
def _row_of(tangents: Any, tangent: float) -> int:
    """Row whose latitudes hold the one given (the upper of two that share it)."""
    row = np.searchsorted(tangents, tangent, side="right") - 1
    return int(min(max(row, 0), tangents.size - 2))


@compiled
def _turned(difference: float) -> float:
    """A difference in longitude within half a turn."""
    return float(difference - 2.0 * np.pi * np.round(difference / (2.0 * np.pi)))


@compiled
def _edges_of(
    lat: Any,
    lon: Any,
    cell: int,
    parallels: bool,
    starts: Any,
    widths: Any,
    first: Any,
    second: Any,
) -> tuple[int, bool, bool]:
    """The edges of a cell that are no meridians, as seen from the pole of its hemisphere.

    starts : western or eastern end [rad], continued round the cell;  widths : signed [rad]
    first, second : tan(latitude) of both ends, mirrored for cells of the south
    Returns their number, whether the cell is mirrored, and whether the pole is in or on it; -1 for
    a cell that reaches from one pole into the other hemisphere so far that it has more of that.
    """
    corners = lat.shape[1]
    height = 0.0
    for k in range(corners):
        height += np.sin(lat[cell, k])
    south = height < 0.0
    sign = -1.0 if south else 1.0
    number = 0
    at_pole = False
    turn = 0.0
    here = lon[cell, 0]
    for k in range(corners):
        nxt = k + 1 if k + 1 < corners else 0
        phi1, phi2 = sign * lat[cell, k], sign * lat[cell, nxt]
        if phi1 < -0.5 * np.pi + _AT_POLE and not parallels:
            return -1, south, False
        pole1 = phi1 > 0.5 * np.pi - _AT_POLE
        pole2 = phi2 > 0.5 * np.pi - _AT_POLE
        width = _turned(lon[cell, nxt] - lon[cell, k])
        at_pole = at_pole or pole1
        is_edge = abs(width) > _MERIDIAN
        if not parallels and is_edge:
            if pole1 or pole2:
                is_edge = False
            elif np.pi - abs(width) < _THROUGH_POLE:
                is_edge = False
                at_pole = True
        if is_edge:
            starts[number] = here
            widths[number] = width
            if parallels and pole1:
                first[number] = np.inf
            elif parallels and phi1 < -0.5 * np.pi + _AT_POLE:
                first[number] = -np.inf
            else:
                first[number] = np.tan(phi1)
            second[number] = first[number] if parallels else np.tan(phi2)
            turn += width
            number += 1
        here += width
    # A cell round the pole goes once round; a mere difference in rounding does not.
    return number, south, at_pole or abs(turn) > np.pi


@compiled
def _areas_kernel(lat: Any, lon: Any, parallels: bool, out: Any) -> None:
    corners = lat.shape[1]
    starts, widths = np.empty(corners), np.empty(corners)
    first, second = np.empty(corners), np.empty(corners)
    for cell in range(lat.shape[0]):
        number, _, _ = _edges_of(lat, lon, cell, parallels, starts, widths, first, second)
        total = 0.0
        for e in range(number):
            total += _edge_area(first[e], second[e], widths[e], parallels)
        out[cell] = abs(total) if number >= 0 else np.nan


@compiled
def _edge_area(tangent1: float, tangent2: float, width: float, parallel: bool) -> float:
    """Area between the north pole and an edge [sr], with the sign of its width."""
    t1 = _half_tangent(tangent1)
    if parallel:
        if np.isinf(tangent1):
            return 0.0 if tangent1 > 0.0 else 2.0 * width
        return width * 2.0 * t1 * t1 / (1.0 + t1 * t1)
    return _polar_triangle(t1, _half_tangent(tangent2), width)


@compiled
def _overlap_kernel(
    lat: Any,
    lon: Any,
    parallels: bool,
    tangents_north: Any,
    depths_north: Any,
    tangents_south: Any,
    depths_south: Any,
    meridians: Any,
    offset: int,
    nlat: int,
    nlon: int,
    cell_area: Any,
    smallest: Any,
) -> Any:
    corners = lat.shape[1]
    starts, widths = np.empty(corners), np.empty(corners)
    first, second = np.empty(corners), np.empty(corners)
    rows = tangents_north.size - 1
    columns = meridians.size - 1
    # Parts of one cell, by row and column; only what it may touch is cleared and read.
    parts = np.zeros((rows, columns))
    capacity = 8 * lat.shape[0] + 1024
    cells = np.empty(capacity, dtype=np.int64)
    boxes = np.empty(capacity, dtype=np.int64)
    areas = np.empty(capacity)
    count = 0
    for cell in range(lat.shape[0]):
        number, south, around = _edges_of(lat, lon, cell, parallels, starts, widths, first, second)
        tangents = tangents_south if south else tangents_north
        depths = depths_south if south else depths_north
        total = 0.0
        lowest, highest = np.inf, -np.inf
        west, east = np.inf, -np.inf
        for e in range(number):
            total += _edge_area(first[e], second[e], widths[e], parallels)
            lowest = min(lowest, first[e], second[e])
            highest = max(highest, first[e], second[e])
            west = min(west, starts[e], starts[e] + widths[e])
            east = max(east, starts[e], starts[e] + widths[e])
            if not parallels:
                # The great circle is tan(latitude) = size cos(longitude - place).
                sine = np.sin(widths[e])
                slope = (second[e] - first[e] * np.cos(widths[e])) / sine
                size = np.hypot(first[e], slope)
                place = np.arctan2(slope, first[e])
                if 0.0 < place / widths[e] < 1.0:
                    highest = max(highest, size)
                place += -np.pi if place > 0.0 else np.pi
                if 0.0 < place / widths[e] < 1.0:
                    lowest = min(lowest, -size)
        cell_area[cell] = abs(total) if number >= 0 else np.nan
        if number <= 0:
            continue
        orientation = 1.0 if total >= 0.0 else -1.0
        bottom = _row_of(tangents, lowest)
        top = rows - 1 if around else _row_of(tangents, highest)
        left = _column_of(meridians, columns, west) - 1
        right = _column_of(meridians, columns, east) + 1
        if around or right - left + 1 > columns:
            left, right = 0, columns - 1
        for c in range(left, right + 1):
            for r in range(bottom, top + 1):
                parts[r, c % columns] = 0.0
        for e in range(number):
            _add_edge(
                starts[e],
                widths[e],
                first[e],
                second[e],
                parallels,
                tangents,
                depths,
                meridians,
                top,
                parts,
            )
        for r in range(bottom, top + 1):
            row = (rows - 1 - r if south else r) - offset
            if row < 0 or row >= nlat:
                continue
            for c in range(left, right + 1):
                column = c % columns
                area = orientation * parts[r, column]
                smallest[cell] = min(smallest[cell], area)
                if area <= 0.0 or column >= nlon:
                    continue
                if count == capacity:
                    capacity *= 2
                    cells = _longer(cells, capacity)
                    boxes = _longer(boxes, capacity)
                    areas = _longer(areas, capacity)
                cells[count] = cell
                boxes[count] = row * nlon + column
                areas[count] = area
                count += 1
    return cells[:count].copy(), boxes[:count].copy(), areas[:count].copy()


@compiled
def _longer(values: Any, size: int) -> Any:
    out = np.empty(size, dtype=values.dtype)
    out[: values.size] = values
    return out


@compiled
def _column_of(meridians: Any, columns: int, longitude: float) -> int:
    """Column of a longitude, counted on through whole turns."""
    turns = np.floor((longitude - meridians[0]) / (2.0 * np.pi))
    column = np.searchsorted(meridians, longitude - 2.0 * np.pi * turns, side="right") - 1
    return int(turns) * columns + int(min(max(column, 0), columns - 1))


@compiled
def _add_edge(
    start: float,
    width: float,
    tangent1: float,
    tangent2: float,
    parallel: bool,
    tangents: Any,
    depths: Any,
    meridians: Any,
    top: int,
    parts: Any,
) -> None:
    """Add what lies between an edge and the pole to all boxes up to row ``top``, with its sign."""
    sign = 1.0
    if width < 0.0:
        start, width, sign = start + width, -width, -1.0
        tangent1, tangent2 = tangent2, tangent1
    pieces, turning, height, size, place = 1, 0.0, 0.0, 0.0, 0.0
    if not parallel:
        slope = (tangent2 - tangent1 * np.cos(width)) / np.sin(width)
        size, place = np.hypot(tangent1, slope), np.arctan2(slope, tangent1)
        # Cut where the great circle turns, so that latitude only rises or only falls in a piece.
        turning, height = place, size
        if not 0.0 < turning < width:
            turning, height = place + (-np.pi if place > 0.0 else np.pi), -size
        if 0.0 < turning < width:
            pieces = 2
    begin = 0.0
    for piece in range(pieces):
        end, at_end = width, tangent2
        if piece < pieces - 1:
            end, at_end = turning, height
        _add_piece(
            start,
            begin,
            end,
            tangent1,
            at_end,
            parallel,
            sign,
            size,
            place,
            tangents,
            depths,
            meridians,
            top,
            parts,
        )
        begin, tangent1 = end, at_end


@compiled
def _add_piece(
    start: float,
    begin: float,
    end: float,
    tangent1: float,
    tangent2: float,
    parallel: bool,
    sign: float,
    size: float,
    place: float,
    tangents: Any,
    depths: Any,
    meridians: Any,
    top: int,
    parts: Any,
) -> None:
    """As ``_add_edge``, from ``begin`` to ``end`` east of ``start``, latitude monotonic."""
    columns = meridians.size - 1
    counted = _column_of(meridians, columns, start + begin)
    rises = tangent2 > tangent1
    row = _row_of(tangents, tangent1)
    half = _half_tangent(tangent1)
    x = begin
    while x < end:
        turns, column = counted // columns, counted % columns
        border = meridians[column + 1] + 2.0 * np.pi * turns - start
        if border >= end:
            border, at_border = end, tangent2
        elif parallel:
            at_border = tangent1
        else:
            at_border = size * np.cos(border - place)
            low, high = min(tangent1, tangent2), max(tangent1, tangent2)
            at_border = min(max(at_border, low), high)
        counted += 1
        if border <= x:
            continue
        last = row if parallel else _row_of(tangents, at_border)
        while True:
            # To the parallel between this row and the next, or to the border of the column.
            if row == last:
                to, half_to = border, _half_tangent(at_border)
            else:
                crossed = tangents[row + 1] if rises else tangents[row]
                bow = np.arccos(min(max(crossed / size, -1.0), 1.0))
                to = place - bow if rises else place + bow
                to = x + _turned(to - x)
                to = min(max(to, x), border)
                half_to = _half_tangent(crossed)
            span = to - x
            if row <= top:
                if not parallel:
                    below = _polar_triangle(half, half_to, span)
                elif np.isinf(tangent1):
                    below = 0.0 if tangent1 > 0.0 else 2.0 * span
                else:
                    below = span * 2.0 * half * half / (1.0 + half * half)
                parts[row, column] += sign * (below - depths[row + 1] * span)
                for r in range(row + 1, top + 1):
                    parts[r, column] += sign * (depths[r] - depths[r + 1]) * span
            x, half = to, half_to
            if row == last:
                break
            row += 1 if rises else -1
