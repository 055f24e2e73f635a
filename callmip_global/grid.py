"""Rectilinear grids, said by their cell edges, and how a file's axes map onto them.

The convention, once: latitude edges ascend from south to north in degrees_north within [-90, 90];
longitude edges ascend from west to east in degrees_east and span at most 360. Where a grid starts
in longitude (-180, 0, -0.9375 ...) is its own affair; everything that compares grids is periodic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from callmip_global.data import data_path
from callmip_global.errors import DataError, Problem, UsageError

if TYPE_CHECKING:
    import xarray as xr

EARTH_RADIUS_M = 6.371e6
"""Radius of the sphere that all areas are taken on [m] (IUGG mean radius, rounded to a km)."""

STANDARD_GRIDS = ("0.5deg", "1deg", "2deg")

EdgeModel = Literal[
    "bounds",
    "areacella",
    "gauss-weights",
    "clipped-midpoints",
    # Even rows with half ones at the poles; even points, of grids that are lists of points.
    "regular-spacing",
    # Cells of other grids: what joins their corners, or what stands in for corners.
    "great-circles",
    "parallels",
    "gauss-latitudes",
    "cell-centres",
    "weight-file",
]
GaussianEdges = Literal["weights", "midpoints"]
"""Edges of Gaussian rows without bounds: by their quadrature weights, or half way as CDO does."""
Array = NDArray[np.float64]

# Coordinates and bounds closer than this to a regular or Gaussian grid are that grid: float32
# and values printed with few digits miss it by up to 1e-5 degrees.
_SNAP_DEGREES = 1e-4
# Edges nearer than this are the same but for rounding.
_EDGE_DEGREES = 1e-6
# Nor may they miss it by more than this part of a step. Points that miss even steps by more are
# uneven.
_EVEN = 0.01
# Cell areas of float32, or of flat cells, are those of a grid to this relative difference.
_SAME_AREAS = 1e-4
_UNITS = {"latitude": "degrees_north", "longitude": "degrees_east"}
_NAMES = {
    "latitude": ("lat", "latitude", "nav_lat", "lat_full", "lsmlat", "y"),
    "longitude": ("lon", "longitude", "nav_lon", "lon_full", "lsmlon", "x"),
}
_LETTERS = ("x", "y")


@dataclass(frozen=True, eq=False)
class Grid:
    """A rectilinear grid on the sphere.

    lat_edges : (nlat+1,) float64, degrees_north, strictly ascending, within [-90, 90]
    lon_edges : (nlon+1,) float64, degrees_east, strictly ascending, span at most 360
    lat_points, lon_points : (nlat,), (nlon,) or None; the points the cells are labelled with where
        they are not half way between the edges (Gaussian latitudes, rows centred on a pole)

    Two grids are equal when their edges are. Raises ValueError on edges that are no grid.
    """

    name: str
    lat_edges: Array
    lon_edges: Array
    lat_points: Array | None = field(default=None, repr=False)
    lon_points: Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for axis in ("lat_edges", "lon_edges", "lat_points", "lon_points"):
            given = getattr(self, axis)
            if given is None:
                continue
            # Adding 0.0 turns -0.0 into 0.0, so that equal edges have equal bytes.
            values = np.array(given, dtype=np.float64) + 0.0
            values.setflags(write=False)
            object.__setattr__(self, axis, values)
            smallest = 2 if axis.endswith("edges") else 1
            if values.ndim != 1 or values.size < smallest:
                raise ValueError(f"{axis} must be one-dimensional, got shape {values.shape}")
            if not np.all(np.isfinite(values)) or np.any(np.diff(values) <= 0):
                raise ValueError(f"{axis} must be finite and strictly ascending")
        if self.lat_edges[0] < -90.0 or self.lat_edges[-1] > 90.0:
            raise ValueError(
                f"lat_edges must lie in [-90, 90], got {self.lat_edges[0]} to {self.lat_edges[-1]}"
            )
        span = float(self.lon_edges[-1] - self.lon_edges[0])
        if span > 360.0 + 1e-9:
            raise ValueError(f"lon_edges must span at most 360 degrees, got {span}")
        for points, edges in ((self.lat_points, self.lat_edges), (self.lon_points, self.lon_edges)):
            if points is not None and (
                points.size != edges.size - 1
                or np.any(points < edges[:-1] - _SNAP_DEGREES)
                or np.any(points > edges[1:] + _SNAP_DEGREES)
            ):
                raise ValueError("every point must lie within the edges of its cell")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """sha256 over both edge arrays, hexadecimal: the identity of the grid."""
        digest = hashlib.sha256()
        for edges in (self.lat_edges, self.lon_edges):
            digest.update(edges.size.to_bytes(8, "little"))
            digest.update(edges.astype("<f8").tobytes())
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int, int]:
        """(nlat, nlon)."""
        return self.lat_edges.size - 1, self.lon_edges.size - 1

    @cached_property
    def lat(self) -> Array:
        """(nlat,) latitudes the rows are labelled with [degrees_north]."""
        if self.lat_points is not None:
            return self.lat_points
        return 0.5 * (self.lat_edges[:-1] + self.lat_edges[1:])

    @cached_property
    def lon(self) -> Array:
        """(nlon,) longitudes the columns are labelled with [degrees_east]."""
        if self.lon_points is not None:
            return self.lon_points
        return 0.5 * (self.lon_edges[:-1] + self.lon_edges[1:])

    @property
    def lat_bnds(self) -> Array:
        """(nlat, 2) [degrees_north]."""
        return np.stack([self.lat_edges[:-1], self.lat_edges[1:]], axis=1)

    @property
    def lon_bnds(self) -> Array:
        """(nlon, 2) [degrees_east]."""
        return np.stack([self.lon_edges[:-1], self.lon_edges[1:]], axis=1)

    @cached_property
    def cell_area(self) -> Array:
        """(nlat, nlon) R^2 (sin p2 - sin p1) (l2 - l1) [m2], exact on the sphere."""
        height = sine_difference(self.lat_edges[:-1], self.lat_edges[1:])
        width = np.deg2rad(np.diff(self.lon_edges))
        area: Array = EARTH_RADIUS_M**2 * height[:, None] * width[None, :]
        area.setflags(write=False)
        return area

    @property
    def mean_cell(self) -> float:
        """Mean height times mean width of a cell [degrees squared]."""
        return float(np.diff(self.lat_edges).mean() * np.diff(self.lon_edges).mean())

    def same_cells(self, other: Grid) -> bool:
        """Whether another grid has the same cells in the same order, to 1e-6 degrees."""
        return self.shape == other.shape and all(
            bool(np.allclose(a, b, rtol=0.0, atol=_EDGE_DEGREES))
            for a, b in ((self.lat_edges, other.lat_edges), (self.lon_edges, other.lon_edges))
        )

    @property
    def is_global(self) -> bool:
        """Whether the cells cover the sphere: sum of areas = 4 pi R^2 to 1e-9."""
        sphere = 4.0 * np.pi * EARTH_RADIUS_M**2
        return bool(abs(float(self.cell_area.sum()) / sphere - 1.0) < 1e-9)


def sine_difference(south: Array, north: Array) -> Array:
    """sin(north) - sin(south) of degrees, without the cancellation that thin polar rows suffer."""
    south_r, north_r = np.deg2rad(south), np.deg2rad(north)
    result: Array = 2.0 * np.cos(0.5 * (south_r + north_r)) * np.sin(0.5 * (north_r - south_r))
    return result


@cache
def standard_grid(name: str) -> Grid:
    """One of the grids of regrid/grids/*.yaml; UsageError that lists the names for any other."""
    if name not in STANDARD_GRIDS:
        raise UsageError(
            Problem("grid", found=repr(name), wanted=f"one of: {', '.join(STANDARD_GRIDS)}")
        )
    text = data_path("regrid", "grids", f"{name}.yaml").read_text(encoding="utf-8")
    entry = yaml.safe_load(text)
    lat, lon = (
        np.linspace(entry[axis]["first"], entry[axis]["last"], entry[axis]["count"])
        for axis in ("lat_edges", "lon_edges")
    )
    return Grid(name, lat, lon)


@dataclass(frozen=True)
class SourceGrid:
    """The grid of a file, in ascending order, and how the file's own axes map onto it.

    edge_model : where the edges come from (file bounds, areacella, Gauss weights, midpoints)
    lat_name, lon_name : the file's coordinate variables;  lat_dim, lon_dim : its dimensions
    lat_descending : whether the file runs from north to south
    lon_order : (nlon,) index into the file's longitudes for each column of the grid, or None when
        the file's order is the grid's
    """

    grid: Grid
    edge_model: EdgeModel
    lat_name: str
    lon_name: str
    lat_dim: Hashable
    lon_dim: Hashable
    lat_descending: bool
    lon_order: tuple[int, ...] | None = None

    @property
    def own_names(self) -> frozenset[str]:
        """Variables that describe the grid."""
        return frozenset({self.lat_name, self.lon_name})

    @property
    def own_dims(self) -> frozenset[Hashable]:
        """Dimensions of the grid."""
        return frozenset({self.lat_dim, self.lon_dim})

    def on_grid(self, da: xr.DataArray) -> bool:
        """Whether ``da`` has both horizontal dimensions."""
        return self.lat_dim in da.dims and self.lon_dim in da.dims

    def to_grid_order(self, da: xr.DataArray) -> xr.DataArray:
        """``da`` as (..., lat, lon), both ascending, with the grid's points as coordinates.

        Stays lazy when ``da`` is. Raises ValueError when ``da`` is not on this grid.
        """
        if not self.on_grid(da):
            raise ValueError(f"{da.name}: dimensions {da.dims} lack {self.lat_dim}, {self.lon_dim}")
        da = da.transpose(..., self.lat_dim, self.lon_dim)
        indexers: dict[Hashable, Any] = {}
        if self.lat_descending:
            indexers[self.lat_dim] = slice(None, None, -1)
        if self.lon_order is not None:
            indexers[self.lon_dim] = np.asarray(self.lon_order)
        da = da.isel(indexers) if indexers else da
        own = [
            name
            for name, coord in da.coords.items()
            if self.lat_dim in coord.dims or self.lon_dim in coord.dims
        ]
        da = da.drop_vars(own)
        renames = {
            dim: new for dim, new in ((self.lat_dim, "lat"), (self.lon_dim, "lon")) if dim != new
        }
        da = da.rename(renames) if renames else da
        return da.assign_coords(lat=self.grid.lat, lon=self.grid.lon)


def grid_of(ds: xr.Dataset, where: str, *, gaussian_edges: GaussianEdges = "weights") -> SourceGrid:
    """The grid of a dataset: coordinates found, order understood, edges told or reconstructed.

    Coordinates are found by CF attributes, then by name. Edges of rows come from the file's
    bounds, else from its cell areas, else from the latitudes: Gaussian rows (all of a grid, or a
    part that only one grid has) by ``gaussian_edges``, equal steps half way between the points,
    with half rows at the poles. Edges beyond a pole are clipped in every case. Points and edges
    within 1e-4 degrees of a regular or Gaussian grid (float32, few digits) are that grid.
    ``edge_model`` of the result says which of these it was.
    DataError (``where`` names the file in it) when there is no one rectilinear grid: coordinates
    that are missing, no numbers, repeated, not monotonic or beyond the pole; bounds with gaps or
    overlaps or away from their points; uneven steps without bounds.
    """
    lat_name, lat_dim, lat = _axis(ds, where, "latitude")
    lon_name, lon_dim, lon = _axis(ds, where, "longitude")
    if lat_dim == lon_dim:
        raise DataError(
            Problem(
                where,
                lat_name,
                f"latitude and longitude along one dimension ({lat_dim})",
                "a rectilinear grid",
                "Put them on a latitude-longitude grid first (callmip-global regrid)",
            )
        )
    _check_range(where, lat_name, lat, -90.0, 90.0)
    _check_range(where, lon_name, lon, -360.0, 720.0)
    lat = np.clip(lat, -90.0, 90.0)

    lat_descending = lat.size > 1 and bool(lat[0] > lat[-1])
    lat_order = np.arange(lat.size)[:: -1 if lat_descending else 1]
    lat_asc = lat[lat_order]
    _check_ascending(where, lat_name, lat, lat_asc)
    lon_asc, order = _unwrapped(where, lon_name, lon)

    lat_bounds = _bounds(ds, where, lat_name, lat.size, "latitude")
    lon_bounds = _bounds(ds, where, lon_name, lon.size, "longitude")
    if lon_bounds is not None:
        west, east = _round_points(where, lon_name, lon_asc, lon_bounds[order])
        hole = np.flatnonzero(~_touching(west, east) & (west[1:] > east[:-1]))
    else:
        hole = _widest_gap(lon_asc)
    if hole.size == 1:
        # A region across the file's own seam (350 .. 359 and 0 .. 40): start behind the hole.
        turn = int(hole[0]) + 1
        lon_asc = np.concatenate([lon_asc[turn:], lon_asc[:turn] + 360.0])
        lon_asc -= 360.0 * (lon_asc[0] >= 180.0)
        order = np.roll(order, -turn)
    lon_cells = (
        _columns_from_bounds(where, lon_name, lon_asc, lon_bounds[order])
        if lon_bounds is not None
        else _columns(where, lon_name, lon_asc)
    )
    lon_order = None
    if not np.array_equal(order, np.arange(order.size)):
        lon_order = tuple(int(i) for i in order)

    likely = _likely_rows(lat_asc, gaussian_edges)
    rows = (
        _rows_from_bounds(where, lat_name, lat_asc, lat_bounds[lat_order], likely)
        if lat_bounds is not None
        else _rows_from_area(
            ds, (lat_dim, lon_dim), (lat_order, order), lon_cells.edges, lat_asc, likely
        )
    )
    if rows is None:
        if not likely:
            raise _uneven(where, lat_name, lat_asc, np.diff(lat_asc))
        rows = likely[0]
    try:
        grid = Grid("native", rows.edges, lon_cells.edges, rows.points, lon_cells.points)
    except ValueError as error:
        raise DataError(Problem(where, f"{lat_name}, {lon_name}", str(error))) from error
    for name in STANDARD_GRIDS:
        if standard_grid(name) == grid:
            grid = standard_grid(name)
    return SourceGrid(
        grid, rows.model, lat_name, lon_name, lat_dim, lon_dim, lat_descending, lon_order
    )


def coordinate_names(ds: xr.Dataset, axis: Literal["latitude", "longitude"]) -> list[str]:
    """Variables that may be the coordinate of an axis, likeliest first.

    By CF attributes, else by name; vectors and matrices, no bounds.
    """
    variables = {str(name): var for name, var in ds.variables.items() if var.ndim in (1, 2)}
    units, names = _UNITS[axis], _NAMES[axis]
    # CF allows degree(s)_north, degree(s)_N and degree(s)N; groups also write a blank for the "_".
    letter = units.partition("_")[2][0]
    spelled = {units, units.replace("s_", "_"), units.replace("_", " ")}
    spelled |= {f"degree{s}{join}{letter}" for s in ("", "s") for join in ("", "_")}
    found = [
        name
        for name, var in variables.items()
        if var.attrs.get("standard_name") == axis
        or str(var.attrs.get("units", "")).strip().lower() in spelled
    ]
    bounds = {str(var.attrs.get("bounds", "")) for var in variables.values()}
    found = [name for name in found if name not in bounds and not _is_bounds(variables[name])]
    if not found:
        found = [n for n in variables if n.lower() in names and n.lower() not in _LETTERS]
    if not found:
        # x and y may just as well be data: only a vector along itself is taken for a coordinate.
        found = [n for n in variables if n.lower() in names and variables[n].dims == (n,)]
    # A dimension's own coordinate beats an auxiliary one; a vector beats a matrix.
    return sorted(found, key=lambda name: (variables[name].dims != (name,), variables[name].ndim))


def _axis(
    ds: xr.Dataset, where: str, standard_name: Literal["latitude", "longitude"]
) -> tuple[str, Hashable, Array]:
    """Name, dimension and (n,) values of the one coordinate for an axis; DataError without one."""
    variables, units, names = ds.variables, _UNITS[standard_name], _NAMES[standard_name]
    found = coordinate_names(ds, standard_name)
    for name in found:
        if variables[name].dtype.kind not in "iuf":
            kind = f"values that are no numbers ({variables[name].dtype})"
            raise DataError(Problem(where, name, kind, units))
    reduced = [(name, *coordinate_vector(variables[name], standard_name)) for name in found]
    usable = [(name, dim, values) for name, dim, values in reduced if values is not None]
    if not usable:
        raise DataError(
            Problem(
                where,
                standard_name,
                "a curvilinear grid" if found else "no such coordinate",
                f"one-dimensional {standard_name} with units {units}",
                "Put it on a rectilinear grid first (callmip-global regrid, or cdo remapcon)"
                if found
                else f"Set standard_name or name it one of: {', '.join(names)}",
            )
        )
    name, dim, values = usable[0]
    stated = str(variables[name].attrs.get("units", "")).strip().lower()
    if stated.startswith("rad"):
        remedy = "Give the coordinates in degrees"
        raise DataError(Problem(where, f"{name}.units", repr(stated), units, remedy))
    for other, other_dim, other_values in usable[1:]:
        same = other_dim == dim and np.allclose(other_values, values, rtol=0, atol=_SNAP_DEGREES)
        if not same:
            raise DataError(
                Problem(
                    where,
                    standard_name,
                    f"two coordinates that differ, {name} and {other}",
                    "one",
                    "Remove the wrong one (ncks -x -v NAME)",
                )
            )
    return name, dim, values


def _is_bounds(var: xr.Variable) -> bool:
    return var.ndim == 2 and var.shape[1] in (2, 4) and var.shape[0] != var.shape[1]


def coordinate_vector(var: xr.Variable, standard_name: str) -> tuple[Hashable, Any]:
    """The dimension and float64 values of a coordinate; a matrix that repeats a vector is one."""
    values = np.asarray(var.values, dtype=np.float64)
    if var.ndim == 1:
        return var.dims[0], values
    along = 0 if standard_name == "latitude" else 1
    first = values[:, :1] if along == 0 else values[:1, :]
    if np.all(np.abs(values - first) < _SNAP_DEGREES):
        return var.dims[along], first.ravel()
    return None, None


def _check_range(where: str, name: str, values: Array, low: float, high: float) -> None:
    missing = int(np.sum(~np.isfinite(values)))
    if not values.size:
        found = "no values"
    elif missing:
        found = f"{missing} of {values.size} values missing or infinite"
    elif values.min() < low - _SNAP_DEGREES or values.max() > high + _SNAP_DEGREES:
        found = f"values from {values.min():.8g} to {values.max():.8g}"
    else:
        return
    raise DataError(Problem(where, name, found, f"finite degrees within [{low:g}, {high:g}]"))


def _check_ascending(where: str, name: str, lat: Array, lat_asc: Array) -> None:
    same = np.flatnonzero(np.diff(lat_asc) == 0)
    if same.size:
        found = f"the latitude {lat_asc[same[0]]:.8g} twice"
        remedy = "Remove the repeated row (ncks -d)"
        raise DataError(Problem(where, name, found, "each latitude once", remedy))
    back = np.flatnonzero(np.diff(lat_asc) < 0)
    if back.size:
        at = lat.size - 1 - int(back[0]) if lat_asc[0] != lat[0] else int(back[0]) + 1
        found = f"latitudes that go up and down, at {lat[at]:.8g} (value {at + 1} of {lat.size})"
        raise DataError(Problem(where, name, found, "a monotonic axis"))


def _unwrapped(where: str, name: str, lon: Array) -> tuple[Array, NDArray[np.int64]]:
    """Longitudes as one ascending run of less than 360 degrees, and the file index of each."""
    order = np.arange(lon.size)
    if lon.size > 1 and np.sum(np.diff(lon) < 0) > lon.size // 2:
        order = order[::-1]
    values = lon[order].copy()
    # 0 .. 179, -180 .. -1 is one run with a jump of a whole turn in it.
    values += 360.0 * np.concatenate([[0], np.cumsum(np.diff(values) < -180.0)])
    if np.any(np.diff(values) <= 0) or values[-1] - values[0] >= 360.0:
        order = np.argsort(np.mod(lon, 360.0), kind="stable")
        values = np.mod(lon, 360.0)[order]
    steps = np.diff(np.append(values, values[0] + 360.0))
    meet = np.flatnonzero(steps < min(_SNAP_DEGREES, _EVEN * 360.0 / lon.size))
    if meet.size:
        first, second = lon[order[meet[0]]], lon[order[(meet[0] + 1) % lon.size]]
        raise DataError(
            Problem(
                where,
                name,
                f"longitudes {first:.8g} and {second:.8g} that meet or overlap on the circle",
                "each meridian once",
                "Remove the repeated column (ncks -d)",
            )
        )
    return values, order


def _widest_gap(lon: Array) -> NDArray[np.int64]:
    """Index before a gap half as wide again as every other one, the seam's included; or none."""
    gaps = np.diff(lon)
    if gaps.size < 2:
        return np.flatnonzero(gaps > 180.0)
    widest = int(np.argmax(gaps))
    others = max(float(np.delete(gaps, widest).max()), lon[0] + 360.0 - lon[-1])
    return np.flatnonzero(gaps >= max(1.5 * others, gaps[widest]))


def _bounds(ds: xr.Dataset, where: str, name: str, size: int, axis: str) -> Array | None:
    """The (n, 2) bounds of a coordinate, by its attribute or by the usual names; None without."""
    coordinate = ds[name]
    named = coordinate.attrs.get("bounds") or coordinate.encoding.get("bounds")
    usual = [f"{name}_bnds", f"{name}_bounds", f"bounds_{name}", f"{name}_bnd"]
    for candidate in ([str(named)] if named else []) + usual:
        if candidate in ds.variables:
            told = ds[candidate]
            others = [dim for dim in told.dims if dim not in coordinate.dims]
            if set(coordinate.dims) < set(told.dims):
                told = told.transpose(*others[:-1], *coordinate.dims, others[-1])
            values = np.asarray(told.values, dtype=np.float64)
            # Tools that join files along time repeat the bounds with it.
            while values.ndim > coordinate.ndim + 1 and np.all(values == values[:1]):
                values = values[0]
            if values.shape == (*coordinate.shape, 4) and coordinate.ndim == 2:
                values = _ends_of_corners(coordinate.values, values, axis)
            if values.shape == (size, 2) and np.all(np.isfinite(values)):
                return values
            missing = int(np.sum(~np.isfinite(values)))
            right = values.shape == (size, 2)
            found = f"{missing} values missing or infinite" if right else f"shape {values.shape}"
            raise DataError(Problem(where, candidate, found, f"finite ({size}, 2)", _MEND))
    return None


_MEND = "Mend the bounds, or remove them and they are reconstructed"


def _ends_of_corners(points: NDArray[Any], corners: Array, axis: str) -> Array:
    """(n, 2) ends of the cells of a matrix of coordinates that repeats a vector.

    corners : (ny, nx, 4). All of them, as they are, when the cells of a row or column differ.
    """
    from_point = corners - np.asarray(points, dtype=np.float64)[..., None]
    if axis == "longitude":
        from_point = np.mod(from_point + 180.0, 360.0) - 180.0
        from_point, points = np.swapaxes(from_point, 0, 1), points.T
    ends = np.stack([from_point.min(axis=-1), from_point.max(axis=-1)], axis=-1)
    if not np.all(np.abs(ends - ends[:, :1]) < _SNAP_DEGREES):
        return corners
    result: Array = np.asarray(points[:, :1], dtype=np.float64) + ends[:, 0]
    return result


def _touching(low: Array, high: Array) -> NDArray[np.bool_]:
    """(n-1,) whether each cell ends where the next begins, to a thousandth of a cell."""
    cell = np.abs(high - low)
    return np.asarray(np.abs(low[1:] - high[:-1]) <= 1e-3 * np.minimum(cell[1:], cell[:-1]))


def _joined(where: str, name: str, low: Array, high: Array) -> Array:
    """(n+1,) edges of cells that touch; DataError where they do not."""
    bad = np.flatnonzero(~_touching(low, high))
    if bad.size:
        i = int(bad[0])
        kind = "a gap" if low[i + 1] > high[i] else "an overlap"
        found = f"bounds with {kind} between {high[i]:.8g} and {low[i + 1]:.8g}"
        raise DataError(Problem(where, name, found, "cells that touch", _MEND))
    return np.concatenate([low[:1], 0.5 * (low[1:] + high[:-1]), high[-1:]])


def _check_within(where: str, name: str, points: Array, low: Array, high: Array) -> None:
    bad = np.flatnonzero((points < low - _SNAP_DEGREES) | (points > high + _SNAP_DEGREES))
    if bad.size:
        i = int(bad[0])
        found = f"{points[i]:.8g} outside its bounds [{low[i]:.8g}, {high[i]:.8g}]"
        raise DataError(Problem(where, name, found, "every point within its cell", _MEND))
    flat = np.flatnonzero(high <= low)
    if flat.size:
        i = int(flat[0])
        found = f"bounds [{low[i]:.8g}, {high[i]:.8g}] without extent"
        raise DataError(Problem(where, name, found, "cells with an area", _MEND))


# --- cells along an axis, told or reconstructed -----------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """Cells along one axis: edges (n+1,), points (n,), and where the edges come from."""

    model: EdgeModel
    edges: Array
    points: Array


def _tolerance(step: float) -> float:
    return min(_SNAP_DEGREES, _EVEN * step)


def _regular(values: Array, turn: float) -> Array | None:
    """The equally spaced values that all given ones are but for rounding, or None.

    Steps are a whole part of ``turn`` (360, 180), placed at a multiple of a 16th of the step; else
    steps and place are numbers of at most 5 decimals. They are the quotients of integers, so that
    one grid has the same bits however it was written.
    """
    if values.size < 2:
        return None
    step = float(values[-1] - values[0]) / (values.size - 1)
    numbers = np.arange(values.size)
    for one, divisor in ((round(turn), 16 * max(1, round(turn / step))), (1, 100_000)):
        unit = one / divisor
        count = max(1, 16 if one > 1 else round(step / unit))
        if one == 1 and round(turn / step) == values.size != turn * divisor / count:
            continue  # Steps of few digits that would not meet behind the whole turn.
        first = round(float(np.median(values - numbers * count * unit)) / unit)
        exact: Array = (first + numbers * count) * float(one) / divisor
        distance = float(np.abs(exact - values).max())
        if distance < _tolerance(step):
            return exact
    return None


def _midpoints(points: Array) -> Array:
    """(n+1,) edges half way between points, as far beyond the outer ones as inside of them."""
    middle = 0.5 * (points[:-1] + points[1:])
    first, last = 2 * points[0] - middle[0], 2 * points[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])


def _uneven(where: str, name: str, points: Array, steps: Array) -> DataError:
    if points.size < 2:
        return DataError(
            Problem(where, name, "one point and no bounds", "bounds, or at least two points")
        )
    typical = float(np.median(steps))
    i = int(np.argmax(np.abs(steps - typical)))
    found = f"a step of {steps[i]:.6g} after {points[i]:.8g} among steps of {typical:.6g}"
    remedy = "Add bounds, for instance from the model's grid file (ncks -A GRID DATA)"
    return DataError(Problem(where, name, f"{found}, no bounds", "bounds, or even steps", remedy))


def _is_even(steps: Array) -> bool:
    typical = float(np.median(steps))
    return bool(np.all(np.abs(steps - typical) <= 2.0 * _EVEN * typical))


# --- longitude ---


def _round_points(where: str, name: str, lon: Array, bounds: Array) -> tuple[Array, Array]:
    """West and east bounds brought round their points from any branch of the circle.

    Bounds run from west to east, or from east to west where only that holds the points.
    """
    width, back = (
        np.where((arc < 1e-9) & (np.ptp(bounds, axis=1) > 180.0), 360.0, arc)
        for arc in (
            np.mod(bounds[:, 1] - bounds[:, 0], 360.0),
            np.mod(bounds[:, 0] - bounds[:, 1], 360.0),
        )
    )
    holds, holds_back = (
        _about(lon - start + _SNAP_DEGREES) <= arc + 2.0 * _SNAP_DEGREES
        for start, arc in ((bounds[:, 0], width), (bounds[:, 1], back))
    )
    slack = 2.0 * _SNAP_DEGREES * lon.size
    if np.all(holds) and width.sum() <= 360.0 + slack:
        turned = np.zeros(lon.size, dtype=bool)
    elif np.all(holds_back) and back.sum() <= 360.0 + slack:
        turned = np.ones(lon.size, dtype=bool)
    else:
        # Neither way for all of them ([-179, 179] among others that run eastwards).
        holds, holds_back = holds & (width <= 180.0), holds_back & (back <= 180.0)
        turned = holds_back & (~holds | (back < width))
    start, width = np.where(turned, bounds[:, 1], bounds[:, 0]), np.where(turned, back, width)
    west = lon + _SNAP_DEGREES - _about(lon - start + _SNAP_DEGREES)
    bad = np.flatnonzero(~holds & ~holds_back)
    if bad.size:
        i = int(bad[0])
        found = f"{lon[i]:.8g} outside its bounds [{bounds[i, 0]:.8g}, {bounds[i, 1]:.8g}]"
        raise DataError(Problem(where, name, found, "every point within its cell", _MEND))
    return west, west + width


def _about(degrees: Array) -> Array:
    """Degrees in [0, 360)."""
    turned: Array = np.mod(degrees, 360.0)
    return np.where(turned >= 360.0, 0.0, turned)


def _columns_from_bounds(where: str, name: str, lon: Array, bounds: Array) -> _Cells:
    west, east = _round_points(where, name, lon, bounds)
    _check_within(where, name, lon, west, east)
    edges = _joined(where, name, west, east)
    points = _regular(lon, 360.0)
    if points is not None:
        middles = _midpoints(points)
        if np.all(np.abs(middles - edges) < _tolerance(float(middles[1] - middles[0]))):
            return _Cells("bounds", _closed(middles), points)
    exact = _regular(edges, 360.0)
    return _Cells("bounds", _closed(edges if exact is None else exact), lon)


def _columns(where: str, name: str, lon: Array) -> _Cells:
    steps = np.diff(lon)
    seam = lon[0] + 360.0 - lon[-1]
    around = lon.size > 1 and seam < 1.5 * float(steps.max())
    exact = _regular(lon, 360.0)
    if lon.size < 2 or not _is_even(np.append(steps, seam) if around else steps):
        raise _uneven(where, name, lon, np.append(steps, seam) if around else steps)
    points = lon if exact is None else exact
    edges = _midpoints(points)
    if around and exact is None:
        edges[0] = lon[0] - 0.5 * seam
        edges[-1] = edges[0] + 360.0
    return _Cells("clipped-midpoints", _closed(edges), points)


def _closed(lon_edges: Array) -> Array:
    """Edges that all but close the circle close it exactly."""
    if abs(lon_edges[-1] - lon_edges[0] - 360.0) < _SNAP_DEGREES:
        lon_edges = lon_edges.copy()
        lon_edges[-1] = lon_edges[0] + 360.0
    return lon_edges


# --- latitude ---


def _likely_rows(lat: Array, gaussian_edges: GaussianEdges) -> list[_Cells]:
    """Rows that ascending points may be the points of, likeliest first; none for uneven steps."""
    if lat.size < 2:
        return []
    exact = _regular(lat, 180.0)
    if exact is not None:
        edges = _to_the_poles(_midpoints(exact), _tolerance(float(exact[1] - exact[0])))
        return [_Cells("clipped-midpoints", edges, np.clip(exact, -90.0, 90.0))]
    gaussian = _gaussian_rows(lat)
    if gaussian:
        return gaussian if gaussian_edges == "weights" else gaussian[::-1]
    halved = _half_rows(lat)
    if halved is not None:
        return [halved]
    if _is_even(np.diff(lat)):
        edges = _to_the_poles(_midpoints(lat), _EVEN * float(np.median(np.diff(lat))))
        return [_Cells("clipped-midpoints", edges, lat)]
    return []


def _to_the_poles(edges: Array, slack: float) -> Array:
    """Edges clipped to the poles, and onto them where within ``slack``."""
    edges = np.clip(edges, -90.0, 90.0)
    edges[0] = -90.0 if edges[0] < slack - 90.0 else edges[0]
    edges[-1] = 90.0 if edges[-1] > 90.0 - slack else edges[-1]
    return edges


def _gaussian_rows(lat: Array) -> list[_Cells]:
    """Rows of a Gaussian grid, all or a run of them: edges by weights, then half way; or none.

    A run is taken for Gaussian only when the rows of exactly one grid fit it to 1e-4 degrees.
    """
    if lat.size < 4:
        return []
    step = float(lat[-1] - lat[0]) / (lat.size - 1)
    whole = _fitting_rows(lat, lat.size, 0, _EVEN * 180.0 / lat.size)
    if whole:
        return whole
    about = 180.0 / step
    fits = []
    for half in range(int(0.49 * about) - 1, int(0.51 * about) + 3):
        # Nodes are all but evenly spaced, which tells the row that the run would begin with.
        row = round((90.0 + lat[0]) * (2 * half + 0.5) / 180.0 - 0.75)
        if row >= 0 and row + lat.size <= 2 * half:
            fits.append(_fitting_rows(lat, 2 * half, row, _tolerance(step)))
    fits = [rows for rows in fits if rows]
    return fits[0] if len(fits) == 1 else []


def _fitting_rows(lat: Array, n: int, first: int, tolerance: float) -> list[_Cells]:
    """As ``_gaussian_rows``, for the rows of the grid of ``n`` from the given one on."""
    # Nodes are an eigenvalue problem: computed only where their asymptotic values (from the zeros
    # of the Bessel function J0; good to 1 % of a step at the poles) are near.
    numbers = np.array([first, first + lat.size - 1])
    polar = (numbers == 0) | (numbers == n - 1)
    from_pole = np.minimum(numbers + 0.75, n - 0.25 - numbers)
    from_pole = np.where(polar, 2.404826 / np.pi, from_pole) * 180.0 / (n + 0.5)
    near = np.where(numbers < n // 2, from_pole - 90.0, 90.0 - from_pole)
    if np.any(np.abs(near - lat[[0, -1]]) > 0.05 * 180.0 / n):
        return []
    nodes, by_weights = _gaussian_grid(n)
    rows, edges = slice(first, first + lat.size), slice(first, first + lat.size + 1)
    if float(np.abs(nodes[rows] - lat).max()) > tolerance:
        return []
    half_way = np.concatenate([[-90.0], 0.5 * (nodes[:-1] + nodes[1:]), [90.0]])
    return [
        _Cells("gauss-weights", by_weights[edges], nodes[rows]),
        _Cells("clipped-midpoints", half_way[edges], nodes[rows]),
    ]


@cache
def _gaussian_grid(n: int) -> tuple[Array, Array]:
    """Nodes (n,) of a Gaussian grid, and edges (n+1,) with sin(edge) = cumulative weights - 1.

    So the area of each row is its quadrature weight, as models on these grids sum it. Midpoints
    would be 5.8 % off in the polar rows.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n)
    sines = np.cumsum(weights) - 1.0
    # Both halves from the northern one, so that the grid is symmetric to the last bit.
    half = np.rad2deg(np.arcsin(np.clip(sines[:-1], -1.0, 1.0)))
    half = 0.5 * (half - half[::-1])
    return np.rad2deg(np.arcsin(nodes)), np.concatenate([[-90.0], half, [90.0]])


def _half_rows(lat: Array) -> _Cells | None:
    """Rows of equal height but half ones at one or both poles that are labelled at their middle."""
    for south, north in ((1, 1), (0, 1), (1, 0)):
        inner = _regular(lat[south : lat.size - north], 180.0) if lat.size > 4 else None
        if inner is None:
            continue
        edges, step = _midpoints(inner), float(inner[1] - inner[0])
        caps = np.array([edges[0] + 90.0, 90.0 - edges[-1]])
        middles = np.array([edges[0] - 0.5 * caps[0], edges[-1] + 0.5 * caps[1]])
        here = np.array([bool(south), bool(north)])
        fits = (caps > 0.0) & (caps < step) & (np.abs(middles - lat[[0, -1]]) < _tolerance(step))
        if np.all(fits[here]):
            return _Cells(
                "regular-spacing",
                np.concatenate([[-90.0] * south, np.clip(edges, -90.0, 90.0), [90.0] * north]),
                np.concatenate([middles[:south], inner, middles[2 - north :]]),
            )
    return None


def _rows_from_bounds(
    where: str, name: str, lat: Array, bounds: Array, likely: list[_Cells]
) -> _Cells:
    low, high = bounds.min(axis=1), bounds.max(axis=1)
    _check_within(where, name, lat, low, high)
    edges = np.clip(_joined(where, name, low, high), -90.0, 90.0)
    for rows in likely:
        if np.all(np.abs(rows.edges - edges) < _tolerance(float(np.diff(edges).max()))):
            return _Cells("bounds", rows.edges, rows.points)
    exact = _regular(edges, 180.0)
    return _Cells("bounds", edges if exact is None else np.clip(exact, -90.0, 90.0), lat)


def _rows_from_area(
    ds: xr.Dataset,
    dims: tuple[Hashable, Hashable],
    place: tuple[NDArray[np.int64], NDArray[np.int64]],
    lon_edges: Array,
    lat: Array,
    likely: list[_Cells],
) -> _Cells | None:
    """Rows told by the file's cell areas; None without any that fit the points.

    Some cells will do (those of the land) to tell which of the likely rows they are; at least one
    in each row of the whole sphere tells edges that nothing else does. Areas that differ along a
    row (of the land in each cell), or of another sphere by more than 0.5 %, tell nothing.

    dims : of latitude and longitude;  place : the file's rows and columns in the grid's order
    """
    names = [
        name
        for name, var in ds.variables.items()
        if (var.attrs.get("standard_name") == "cell_area" or str(name).lower() == "areacella")
        and set(var.dims) == set(dims)
    ]
    if not names:
        return None
    area = np.asarray(ds[names[0]].transpose(*dims).values, dtype=np.float64)[np.ix_(*place)]
    known = np.isfinite(area) & (area > 0.0)
    # R^2 times the height of the row in sin(latitude), as each of its cells has it.
    height = np.where(known, area / np.deg2rad(np.diff(lon_edges)), 0.0)
    count = known.sum(axis=1)
    rows = np.flatnonzero(count)
    mean = height.sum(axis=1) / np.maximum(count, 1)
    if rows.size < 2 or np.any(np.abs(height - mean[:, None])[known] > _SAME_AREAS * height[known]):
        return None
    best, nearest = None, _SAME_AREAS
    for cells in likely:
        ratio = mean[rows] / sine_difference(cells.edges[:-1], cells.edges[1:])[rows]
        middle = float(np.median(ratio))
        distance = float(np.abs(ratio / middle - 1.0).max())
        if _is_earth(middle) and distance < nearest:
            best, nearest = _Cells("areacella", cells.edges, cells.points), distance
    if best is not None or rows.size < lat.size or not _is_earth(0.5 * float(mean.sum())):
        return best
    sines = np.cumsum(2.0 * mean / mean.sum()) - 1.0
    inner = np.rad2deg(np.arcsin(np.clip(sines[:-1], -1.0, 1.0)))
    edges = np.concatenate([[-90.0], inner, [90.0]])
    inside = (lat > edges[:-1] - _SNAP_DEGREES) & (lat < edges[1:] + _SNAP_DEGREES)
    if np.any(np.diff(edges) <= 0) or not np.all(inside):
        return None
    exact = _regular(edges, 180.0)
    return _Cells("areacella", edges if exact is None else np.clip(exact, -90.0, 90.0), lat)


def _is_earth(radius_squared: float) -> bool:
    return bool(abs(np.sqrt(radius_squared) / EARTH_RADIUS_M - 1.0) < 5e-3)
