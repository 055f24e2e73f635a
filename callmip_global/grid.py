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
    # Cells of other grids: what joins their corners, or what stands in for corners.
    "great-circles",
    "parallels",
    "regular-spacing",
    "gauss-latitudes",
    "cell-centres",
    "weight-file",
]
Array = NDArray[np.float64]

# Coordinates and bounds closer than this to a regular grid are that grid: float32 latitudes and
# values printed with few digits miss it by up to 1e-5 degrees.
_SNAP_DEGREES = 1e-4
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


def grid_of(ds: xr.Dataset, where: str) -> SourceGrid:
    """The grid of a dataset: coordinates found, order understood, edges told or reconstructed.

    Coordinates are found by CF attributes, then by name. Edges come from the file's bounds, else
    from its cell areas, else from Gauss weights where the latitudes are Gaussian, else half way
    between the points; edges beyond a pole are clipped in every case.
    DataError (``where`` names the file in it) when there is no one rectilinear grid.
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

    lat_descending = lat.size > 1 and bool(lat[0] > lat[-1])
    lat_asc = lat[::-1] if lat_descending else lat
    if np.any(np.diff(lat_asc) <= 0):
        raise DataError(
            Problem(where, lat_name, "latitudes that go up and down", "a monotonic axis")
        )
    lon_asc, order = _unwrapped(where, lon_name, lon)

    lat_bounds = _bounds(ds, where, lat_name, lat.size, "latitude")
    lon_bounds = _bounds(ds, where, lon_name, lon.size, "longitude")
    if lat_bounds is not None and lat_descending:
        lat_bounds = lat_bounds[::-1]
    if lon_bounds is not None:
        west, east = _round_points(lon_asc, lon_bounds[order])
        hole = np.flatnonzero(~_touching(west, east))
    else:
        hole = _widest_gap(lon_asc)
    if hole.size == 1:
        # A region across the file's own seam (350 .. 359 and 0 .. 40): start behind the hole.
        turn = int(hole[0]) + 1
        lon_asc = np.concatenate([lon_asc[turn:], lon_asc[:turn] + 360.0])
        lon_asc -= 360.0 * (lon_asc[0] >= 180.0)
        order = np.roll(order, -turn)
    lon_edges = (
        _edges_from_lon_bounds(where, lon_name, lon_asc, lon_bounds[order])
        if lon_bounds is not None
        else _lon_midpoints(where, lon_name, lon_asc)
    )
    lon_order = None
    if not np.array_equal(order, np.arange(order.size)):
        lon_order = tuple(int(i) for i in order)
    model: EdgeModel
    if lat_bounds is not None:
        model, lat_edges = "bounds", _edges_from_lat_bounds(where, lat_name, lat_asc, lat_bounds)
    else:
        from_area = _edges_from_area(ds, lat_dim, lon_dim, lat_asc, lat_descending)
        from_gauss = _gauss_edges(lat_asc)
        if from_area is not None:
            model, lat_edges = "areacella", from_area
        elif from_gauss is not None:
            model, lat_edges = "gauss-weights", from_gauss
        else:
            model, lat_edges = "clipped-midpoints", _lat_midpoints(where, lat_name, lat_asc)
    try:
        grid = Grid("native", lat_edges, lon_edges, lat_asc, lon_asc)
    except ValueError as error:
        raise DataError(Problem(where, f"{lat_name}, {lon_name}", str(error))) from error
    for name in STANDARD_GRIDS:
        if standard_grid(name) == grid:
            grid = standard_grid(name)
    return SourceGrid(grid, model, lat_name, lon_name, lat_dim, lon_dim, lat_descending, lon_order)


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
    if not np.all(np.isfinite(values)) or values.min() < low or values.max() > high:
        raise DataError(
            Problem(
                where,
                name,
                f"values from {values.min():g} to {values.max():g}",
                f"finite degrees within [{low:g}, {high:g}]",
            )
        )


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
    if np.any(np.diff(values) <= 0) or values[-1] - values[0] > 360.0 - 1e-6:
        raise DataError(
            Problem(
                where,
                name,
                f"longitudes from {lon[0]:g} to {lon[-1]:g} that meet or overlap on the circle",
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
            values = np.asarray(ds[candidate].values, dtype=np.float64)
            if values.shape == (*coordinate.shape, 4) and coordinate.ndim == 2:
                values = _ends_of_corners(coordinate.values, values, axis)
            if values.shape == (size, 2) and np.all(np.isfinite(values)):
                return values
            raise DataError(
                Problem(
                    where,
                    candidate,
                    f"bounds of shape {values.shape}, or not finite",
                    f"finite ({size}, 2)",
                    "Mend the bounds, or remove them and they are reconstructed",
                )
            )
    return None


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
        raise DataError(
            Problem(
                where,
                name,
                f"bounds with a gap or overlap at {high[i]:g} / {low[i + 1]:g}",
                "cells that touch",
                "Mend the bounds, or remove them and they are reconstructed",
            )
        )
    return np.concatenate([low[:1], 0.5 * (low[1:] + high[:-1]), high[-1:]])


def _check_within(where: str, name: str, points: Array, edges: Array) -> None:
    bad = np.flatnonzero(
        (points < edges[:-1] - _SNAP_DEGREES) | (points > edges[1:] + _SNAP_DEGREES)
    )
    if bad.size:
        i = int(bad[0])
        raise DataError(
            Problem(
                where,
                name,
                f"{points[i]:g} outside its bounds [{edges[i]:g}, {edges[i + 1]:g}]",
                "every point within its cell",
                "Mend the bounds, or remove them and they are reconstructed",
            )
        )


def _edges_from_lat_bounds(where: str, name: str, lat: Array, bounds: Array) -> Array:
    edges = np.clip(_joined(where, name, bounds.min(axis=1), bounds.max(axis=1)), -90.0, 90.0)
    _check_within(where, name, lat, edges)
    return _snapped(edges, lat, 180.0, -90.0)


def _edges_from_lon_bounds(where: str, name: str, lon: Array, bounds: Array) -> Array:
    west, east = _round_points(lon, bounds)
    edges = _joined(where, name, west, east)
    return _closed(_snapped(edges, lon, 360.0, -180.0))


def _round_points(lon: Array, bounds: Array) -> tuple[Array, Array]:
    """West and east bounds brought round their points from any branch of the circle."""
    west = lon - np.mod(lon - bounds[:, 0], 360.0)
    east = lon + np.mod(bounds[:, 1] - lon, 360.0)
    if np.any(east - west > 360.0 + 1e-6):
        west = lon - np.mod(lon - bounds[:, 1], 360.0)
        east = lon + np.mod(bounds[:, 0] - lon, 360.0)
    return west, east


def _closed(lon_edges: Array) -> Array:
    """Edges that all but close the circle close it exactly."""
    if abs(lon_edges[-1] - lon_edges[0] - 360.0) < _SNAP_DEGREES:
        lon_edges = lon_edges.copy()
        lon_edges[-1] = lon_edges[0] + 360.0
    return lon_edges


def _snapped(edges: Array, points: Array, turn: float, origin: float) -> Array:
    """The exact regular edges when all given ones lie within 1e-4 degrees of them."""
    if points.size < 2:
        return edges
    spacing = (points[-1] - points[0]) / (points.size - 1)
    half = 0.5 * turn / max(1, round(turn / spacing))
    regular: Array = origin + np.round((edges - origin) / half) * half
    if np.all(np.abs(regular - edges) < _SNAP_DEGREES) and np.all(np.diff(regular) > 0):
        return regular
    return edges


def _one_point(where: str, name: str) -> DataError:
    return DataError(
        Problem(where, name, "one point and no bounds", "bounds, or at least two points")
    )


def _lat_midpoints(where: str, name: str, lat: Array) -> Array:
    if lat.size < 2:
        raise _one_point(where, name)
    middle = 0.5 * (lat[:-1] + lat[1:])
    first, last = 2 * lat[0] - middle[0], 2 * lat[-1] - middle[-1]
    edges = np.clip(np.concatenate([[first], middle, [last]]), -90.0, 90.0)
    return _snapped(edges, lat, 180.0, -90.0)


def _lon_midpoints(where: str, name: str, lon: Array) -> Array:
    if lon.size < 2:
        raise _one_point(where, name)
    middle = 0.5 * (lon[:-1] + lon[1:])
    seam = lon[0] + 360.0 - lon[-1]
    if seam < 1.5 * float(np.diff(lon).max()):
        first = lon[0] - 0.5 * seam
        last = first + 360.0
    else:
        first, last = 2 * lon[0] - middle[0], 2 * lon[-1] - middle[-1]
    edges = np.concatenate([[first], middle, [last]])
    return _closed(_snapped(edges, lon, 360.0, -180.0))


def _gauss_edges(lat: Array) -> Array | None:
    """Edges of a whole Gaussian grid: sin(edge) = cumulative Gauss weights - 1; None if not one.

    So the area of each row is its quadrature weight, as models on these grids sum it. Midpoints
    would be 5.8 % off in the polar rows.
    """
    if lat.size < 4:
        return None
    # The first zero of the Bessel function J0 tells where a Gaussian grid's polar row must be, so
    # that the nodes (an eigenvalue problem) are computed only for grids that are likely Gaussian.
    polar = 90.0 - np.rad2deg(2.404826 / (lat.size + 0.5))
    if abs(lat[-1] - polar) > 0.05 * 180.0 / lat.size:
        return None
    nodes, weights = np.polynomial.legendre.leggauss(lat.size)
    expected = np.rad2deg(np.arcsin(nodes))
    if np.max(np.abs(expected - lat)) > 0.01 * 180.0 / lat.size:
        return None
    sines = np.cumsum(weights) - 1.0
    # Both halves from the northern one, so that the grid is symmetric to the last bit.
    half = np.rad2deg(np.arcsin(np.clip(sines[:-1], -1.0, 1.0)))
    half = 0.5 * (half - half[::-1])
    return np.concatenate([[-90.0], half, [90.0]])


def _edges_from_area(
    ds: xr.Dataset, lat_dim: Hashable, lon_dim: Hashable, lat: Array, descending: bool
) -> Array | None:
    """Latitude edges from whole-sphere cell areas; None when there are none that fit the points.

    Areas masked to land, or on another sphere by more than 0.5 %, tell nothing about edges.
    """
    names = [
        name
        for name, var in ds.variables.items()
        if (var.attrs.get("standard_name") == "cell_area" or str(name).lower() == "areacella")
        and set(var.dims) == {lat_dim, lon_dim}
    ]
    if not names:
        return None
    area = np.asarray(ds[names[0]].transpose(lat_dim, lon_dim).values, dtype=np.float64)
    if descending:
        area = area[::-1]
    rows = area.sum(axis=1)
    if not np.all(np.isfinite(rows)) or np.any(area <= 0):
        return None
    radius = float(np.sqrt(rows.sum() / (4.0 * np.pi)))
    if abs(radius / EARTH_RADIUS_M - 1.0) > 5e-3:
        return None
    sines = np.cumsum(2.0 * rows / rows.sum()) - 1.0
    inner = np.rad2deg(np.arcsin(np.clip(sines[:-1], -1.0, 1.0)))
    edges = np.concatenate([[-90.0], inner, [90.0]])
    inside = (lat > edges[:-1] - _SNAP_DEGREES) & (lat < edges[1:] + _SNAP_DEGREES)
    if np.any(np.diff(edges) <= 0) or not np.all(inside):
        return None
    return _snapped(edges, lat, 180.0, -90.0)
