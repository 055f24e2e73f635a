"""Lists of land points: the cells of a grid they are, told by their index or by their places.

An index is one number per point, counted over two dimensions (CF-1.8, section 8.2, "compression by
gathering"), or a row and a column (CLM). Without one, the points must be a part of a grid whose
rows are equally spaced or Gaussian and whose columns are equally spaced, so dense that they leave
no doubt which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.grid import (
    EdgeModel,
    GaussianEdges,
    Grid,
    SourceGrid,
    coordinate_names,
    grid_of,
)

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# Points nearer than this [degrees] to a regular spacing are on it (as in ``grid``); Gaussian
# latitudes are often printed with three digits.
_SNAP_DEGREES = 1e-4
_GAUSS_DEGREES = 1e-3
# Of a step near the tolerance anything would be a multiple.
_SMALLEST_STEP = 100.0 * _SNAP_DEGREES
# Land hangs together: of points on their own grid nearly all have a neighbour. Stations and
# thinned-out lists have few on the finest grid that they happen to fit.
_NEIGHBOURS = 0.5
_AXES: tuple[tuple[Literal["latitude", "longitude"], str], ...] = (
    ("latitude", "lat"),
    ("longitude", "lon"),
)
_CLM_LISTS = ("landunit", "column", "pft", "cohort", "topounit")
_RESOLUTION = (
    "Say it in the file, as ACDD does: ncatted -a geospatial_lat_resolution,global,o,d,DEGREES "
    "-a geospatial_lon_resolution,global,o,d,DEGREES FILE"
)


class Whole(Protocol):
    """The grid of whole maps, of any kind, and how a file's dimensions map onto it."""

    @property
    def grid(self) -> Any: ...
    @property
    def edge_model(self) -> EdgeModel: ...
    @property
    def lat_dim(self) -> Hashable: ...
    @property
    def lon_dim(self) -> Hashable: ...
    @property
    def own_names(self) -> frozenset[str]: ...
    @property
    def own_dims(self) -> frozenset[Hashable]: ...
    def on_grid(self, da: xr.DataArray) -> bool: ...
    def to_grid_order(self, da: xr.DataArray) -> xr.DataArray: ...


@dataclass(frozen=True, eq=False)
class PointSource:
    """A list of points that are cells of a grid; what the list leaves out is missing.

    grid : the `Grid`, or the mesh of a grid that is not rectilinear
    dims : the list's dimension, or two of which one has length 1
    cells : (n,) number, row by row in ``grid``, of each point's cell; each at most once
    described : variables that describe the list and are no data
    maps : how the whole maps that the file may also have lie on the grid
    other_dims : dimensions of other lists in the file
    """

    grid: Any
    edge_model: EdgeModel
    dims: tuple[Hashable, ...]
    cells: NDArray[np.int64] = field(repr=False)
    described: frozenset[str]
    maps: Whole | None = None
    other_dims: tuple[Hashable, ...] = ()

    @property
    def lat_dim(self) -> Hashable:
        """The slower dimension of the list."""
        return self.dims[0]

    @property
    def lon_dim(self) -> Hashable:
        """The faster dimension; the same one for a list of one dimension."""
        return self.dims[-1]

    @property
    def own_names(self) -> frozenset[str]:
        """Variables that describe the list or the grid."""
        return self.described | (self.maps.own_names if self.maps is not None else frozenset())

    @property
    def own_dims(self) -> frozenset[Hashable]:
        """Dimensions of the list, of other lists and of maps."""
        own = frozenset(self.dims) | frozenset(self.other_dims)
        return own | (self.maps.own_dims if self.maps is not None else frozenset())

    def on_grid(self, da: xr.DataArray) -> bool:
        """Whether ``da`` has a value for each point, or is a map."""
        if da.name in self.described:
            return False
        return self.is_list(da) or (self.maps is not None and self.maps.on_grid(da))

    def is_list(self, da: xr.DataArray) -> bool:
        """Whether ``da`` has a value for each point."""
        others = self.own_dims - set(self.dims)
        return set(self.dims) <= set(da.dims) and not others & set(da.dims)

    def to_grid_order(self, da: xr.DataArray) -> xr.DataArray:
        """``da`` as (..., cell), in the order of ``cells``, or (..., lat, lon) if a map; lazy.

        Raises ValueError when ``da`` is neither.
        """
        if self.maps is not None and not self.is_list(da):
            return self.maps.to_grid_order(da)
        if not self.on_grid(da):
            raise ValueError(f"{da.name}: dimensions {da.dims} lack {self.dims}")
        own = [name for name, coord in da.coords.items() if set(self.dims) & set(coord.dims)]
        da = da.drop_vars({*own, *({"cell"} & set(da.coords))})
        long = max(self.dims, key=lambda dim: da.sizes[dim])
        da = da.isel({dim: 0 for dim in self.dims if dim != long}).transpose(..., long)
        return da.rename({long: "cell"}) if long != "cell" else da


def scattered(
    values: NDArray[Any], cells: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[Any]:
    """(..., rows, columns) maps from (..., n) values of the cells given, NaN elsewhere.

    Whole numbers become float64.
    """
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    out = np.full((*values.shape[:-1], shape[0] * shape[1]), np.nan, dtype=dtype)
    out[..., cells] = values
    return out.reshape(*values.shape[:-1], *shape)


Finder = Callable[[xr.Dataset], "Whole | PointSource"]


def indexed_points(
    ds: xr.Dataset, where: str, whole: Finder, gaussian_edges: GaussianEdges
) -> PointSource | None:
    """The source of data along a list of points with an index; None where there is no such list.

    whole : finds the grid of what remains of ``ds`` without its lists
    DataError for an index that is missing, repeated, out of range, or not that of the coordinates.
    """
    return _gathered(ds, where, whole) or _clm(ds, where, whole, gaussian_edges)


def regular_points(
    ds: xr.Dataset,
    where: str,
    names: tuple[str, str],
    place: tuple[Array, Array],
    gaussian_edges: GaussianEdges,
) -> tuple[Grid, EdgeModel, Index] | None:
    """The regular or Gaussian grid of points without an index, and the cell of each of them.

    names, place : the coordinates' names, and their (n,) values [degrees]
    None where the points are on no such grid; DataError where they leave doubt which, or two of
    them are in one cell.
    """
    key, (lat, lon) = ", ".join(names), place
    stated = [_stated(ds, where, axis) for axis in ("lat", "lon")]
    rows, columns = _rows(where, names[0], lat, stated[0]), _columns(lon, stated[1])
    if rows is None or columns is None:
        if None not in stated:
            found = "points that are not on the grid of geospatial_lat_resolution and _lon_"
            raise DataError(Problem(where, key, found, "the resolution of their grid"))
        return None
    if None in stated:
        share = _neighbours(rows, columns)
        if share < _NEIGHBOURS:
            raise DataError(
                Problem(
                    where,
                    key,
                    f"{lat.size} points of which {100 * share:.0f} % have a neighbour on the "
                    f"coarsest grid they fit ({rows.step:.4g} x {columns.step:.4g} degrees)",
                    "the resolution of the grid that they are cells of",
                    _RESOLUTION + "; or take the nearest point (--method nearest)",
                )
            )
    return _on_axes(where, key, rows, columns, place, gaussian_edges)


def _stated(ds: xr.Dataset, where: str, axis: str) -> float | None:
    """Degrees that the file says its cells have (ACDD; a number, or text that begins with one)."""
    name = f"geospatial_{axis}_resolution"
    if name not in ds.attrs:
        return None
    match = re.match(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*(deg.*|°)?\s*$", str(ds.attrs[name]))
    step = float(match[1]) if match and match[1].count(".") < 2 else 0.0
    if not _SMALLEST_STEP <= step <= 90.0:
        wanted = f"degrees, at least {_SMALLEST_STEP:g}"
        raise DataError(Problem(where, name, repr(ds.attrs[name]), wanted))
    return step


# --- points with an index ---------------------------------------------------------------------


def _gathered(ds: xr.Dataset, where: str, whole: Finder) -> PointSource | None:
    lists = {
        str(name): str(var.attrs["compress"]).split()
        for name, var in ds.variables.items()
        if "compress" in var.attrs and var.ndim == 1
    }
    used = [name for name in lists if _has_data(ds, ds[name].dims[0], name)]
    if not used:
        return None
    rest = ds.drop_dims([ds[name].dims[0] for name in lists])
    flat = [name for name in used if len(lists[name]) == 2 and set(lists[name]) <= set(rest.sizes)]
    if not flat:
        name = used[0]
        if _has_places(ds, ds[name].dims[0]):
            return None
        raise DataError(
            Problem(
                where,
                name,
                f'compress = "{" ".join(lists[name])}"',
                "the two dimensions of latitude and longitude, with their coordinates in the file",
                "Append them from the model's grid file (ncks -A GRID DATA)",
            )
        )
    name = flat[0]
    maps = whole(rest)
    dims = (maps.lat_dim, maps.lon_dim)
    if isinstance(maps, PointSource) or set(dims) != set(lists[name]):
        raise DataError(
            Problem(
                where,
                name,
                f'compress = "{" ".join(lists[name])}", coordinates along {dims[0]} and {dims[1]}',
                "the dimensions of latitude and longitude",
            )
        )
    sizes = tuple(rest.sizes[dim] for dim in lists[name])
    place = _places(ds, str(ds[name].dims[0]))
    given = _whole_numbers(ds, where, name)
    _check_once(where, name, given)
    tried = []
    for base in _bases(ds, where, name, given, sizes[0] * sizes[1]):
        first, second = np.unravel_index(given - base, sizes)
        row, column = (first, second) if lists[name][0] == dims[0] else (second, first)
        cells = _cells(maps, row, column)
        tried.append(_misplaced(maps, cells, place))
        if not tried[-1]:
            break
    if tried[-1]:
        raise _other_places(where, name, tried[0])
    return _source(ds, (ds[name].dims[0],), cells, maps, {name, *lists}, tuple(lists))


def _clm(
    ds: xr.Dataset, where: str, whole: Finder, gaussian_edges: GaussianEdges
) -> PointSource | None:
    """Cells of CLM and ELM history files without maps (``hist_dov2xy = .false.``)."""
    names = ("grid1d_jxy", "grid1d_ixy")
    if not set(names) <= set(ds.variables):
        return None
    dim = ds[names[0]].dims[0]
    if not _has_data(ds, dim, *(str(n) for n in ds.variables if str(n).startswith("grid1d_"))):
        return None
    row, column = (_whole_numbers(ds, where, name) for name in names)
    if row.max(initial=0) == 1 and column.size > 1:
        # A list of cells that never were a map (a cubed sphere): numbered along one row.
        return None
    described = {str(n) for n in ds.variables if re.match(r"(grid|land|cols|pfts)1d_", str(n))}
    lists = [str(d) for d in (dim, *_CLM_LISTS) if d in ds.sizes]
    rest = ds.drop_dims(lists)
    place = _places(ds, str(dim))
    if all(coordinate_names(rest, axis) for axis, _ in _AXES):
        maps = whole(rest)
        if isinstance(maps, PointSource):
            return None
        for name, number, size in zip(names, (row, column), maps.grid.shape, strict=True):
            _check_range(where, name, number, 1, size)
        cells = _cells(maps, row - 1, column - 1)
        wrong = _misplaced(maps, cells, place)
        if wrong:
            raise _other_places(where, ", ".join(names), wrong)
        _check_once(where, ", ".join(names), cells)
        return _source(ds, (dim,), cells, maps, described, tuple(lists))
    if place is None:
        return None
    rows = _rows(where, names[0], place[0], None, row)
    columns = _columns(place[1], None, column)
    if rows is None or columns is None:
        found = "rows and columns that are not equally spaced, nor Gaussian"
        wanted = "the coordinates of the whole grid"
        remedy = "Append them from the model's grid file (ncks -A -v lat,lon GRID DATA)"
        raise DataError(Problem(where, ", ".join(names), found, wanted, remedy))
    grid, model, cells = _on_axes(where, ", ".join(names), rows, columns, place, gaussian_edges)
    return PointSource(grid, model, (dim,), cells, frozenset(described), other_dims=tuple(lists))


def _source(
    ds: xr.Dataset,
    dims: tuple[Hashable, ...],
    cells: Index,
    maps: Whole,
    described: set[str],
    lists: Sequence[str],
) -> PointSource:
    names = {str(n) for axis, _ in _AXES for n in coordinate_names(ds, axis)}
    others = tuple(
        d for name in lists for d in (ds[name].dims if name in ds.variables else (name,))
    )
    return PointSource(
        maps.grid, maps.edge_model, dims, cells, frozenset(described | names), maps, others
    )


def _has_data(ds: xr.Dataset, dim: Hashable, *own: str) -> bool:
    """Whether there is a numeric variable along ``dim`` that is no coordinate of it."""
    places = {n for axis, _ in _AXES for n in coordinate_names(ds, axis)}
    return any(
        dim in var.dims and var.dtype.kind in "iuf" and name not in own and name not in places
        for name, var in ds.data_vars.items()
    )


def _has_places(ds: xr.Dataset, dim: Hashable) -> bool:
    return _places(ds, dim) is not None


def _places(ds: xr.Dataset, dim: Hashable) -> tuple[Array, Array] | None:
    """(n,) latitudes and longitudes [degrees] of the points along ``dim``; None without any."""
    found = []
    for axis, letters in _AXES:
        names = [*coordinate_names(ds, axis), f"grid1d_{letters}"]
        names = [n for n in names if n in ds.variables and ds[n].dims == (dim,)]
        if not names:
            return None
        values = np.asarray(ds[names[0]].values, dtype=np.float64)
        if str(ds[names[0]].attrs.get("units", "")).lower().startswith("rad"):
            values = np.rad2deg(values)
        found.append(values)
    return found[0], found[1]


def _whole_numbers(ds: xr.Dataset, where: str, name: str) -> Index:
    values = np.asarray(ds[name].values)
    if values.dtype.kind not in "iuf":
        raise DataError(Problem(where, name, f"{values.dtype} values", "whole numbers"))
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers) | (numbers != np.round(numbers)))
    if bad.size:
        found = f"{bad.size} of {values.size} points without an index, the first is {bad[0] + 1}"
        raise DataError(Problem(where, name, found, "a whole number for each point"))
    return numbers.astype(np.int64)


def _bases(ds: xr.Dataset, where: str, name: str, given: Index, size: int) -> list[int]:
    """What the index may count from, likeliest first; DataError where it does not fit the grid.

    CF counts from 0. ALMA, and with it IOIPSL (ORCHIDEE, forcing files of CABLE and JULES), took
    the attribute over with numbers from 1; its coordinates are nav_lat and nav_lon.
    """
    start = ds[name].attrs.get("start_index")
    if start is not None:
        bases = [int(start)]
    elif given.min(initial=1) == 0:
        bases = [0]
    elif given.max(initial=0) == size:
        bases = [1]
    else:
        alma = {"nav_lat", "nav_lon"} <= set(ds.variables)
        bases = [1, 0] if alma else [0, 1]
        if _places(ds, ds[name].dims[0]) is None:
            if alma and "xios" in str(ds.attrs).lower():
                found = f"numbers from {given.min()} to {given.max()} for {size} cells"
                wanted = "whether they count from 0 (CF) or from 1 (IOIPSL)"
                remedy = f"Say it: ncatted -a start_index,{name},o,l,0 FILE"
                raise DataError(Problem(where, name, found, wanted, remedy))
            bases = bases[:1]
    _check_range(where, name, given, bases[0], bases[0] + size - 1)
    return [base for base in bases if base <= given.min(initial=1)]


def _check_range(where: str, name: str, given: Index, low: int, high: int) -> None:
    bad = np.flatnonzero((given < low) | (given > high))
    if bad.size:
        found = (
            f"{bad.size} of {given.size} points beyond the grid, the first is point {bad[0] + 1} "
            f"with {given[bad[0]]}"
        )
        raise DataError(Problem(where, name, found, f"numbers from {low} to {high}"))


def _check_once(where: str, name: str, cells: Index) -> None:
    order = np.argsort(cells, kind="stable")
    twice = np.flatnonzero(np.diff(cells[order]) == 0)
    if twice.size:
        one, other = sorted(int(order[k]) + 1 for k in (twice[0], twice[0] + 1))
        found = f"{twice.size} cells given twice, the first by points {one} and {other}"
        raise DataError(Problem(where, name, found, "each cell once"))


def _cells(maps: Whole, row: Index, column: Index) -> Index:
    """Numbers, row by row in the grid's order, of cells given by the file's rows and columns."""
    rows, columns = maps.grid.shape
    if isinstance(maps, SourceGrid):
        if maps.lat_descending:
            row = rows - 1 - row
        if maps.lon_order is not None:
            column = np.argsort(np.asarray(maps.lon_order))[column]
    return np.asarray(row * columns + column, dtype=np.int64)


def _misplaced(maps: Whole, cells: Index, place: tuple[Array, Array] | None) -> str:
    """What is wrong where the points' own coordinates lie outside the cells; empty if nothing."""
    if place is None:
        return ""
    grid = maps.grid
    if isinstance(grid, Grid):
        row, column = np.divmod(cells, grid.shape[1])
        lat, lon = grid.lat[row], grid.lon[column]
        high = 0.5 * np.diff(grid.lat_edges)[row] + _SNAP_DEGREES
        wide = 0.5 * np.diff(grid.lon_edges)[column] + _SNAP_DEGREES
    else:
        lat, lon = grid.lat_points[cells], grid.lon_points[cells]
        high = np.full(lat.size, 0.01)
        wide = 0.01 / np.maximum(np.cos(np.deg2rad(lat)), 0.01)
    turn = np.mod(place[1] - lon + 180.0, 360.0) - 180.0
    bad = np.flatnonzero(~((np.abs(place[0] - lat) <= high) & (np.abs(turn) <= wide)))
    if not bad.size:
        return ""
    k = int(bad[0])
    return (
        f"{bad.size} of {cells.size} points elsewhere than their coordinates; point {k + 1} is at "
        f"{place[0][k]:.5g} N, {place[1][k]:.5g} E, its cell at {lat[k]:.5g} N, {lon[k]:.5g} E"
    )


def _other_places(where: str, name: str, found: str) -> DataError:
    wanted = "an index that leads to the points' own latitudes and longitudes"
    return DataError(Problem(where, name, found, wanted, "Mend the index, or remove it"))


# --- points without an index ------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """The whole axis that given coordinates are a part of.

    points : (n,) [degrees], ascending;  index : (k,) place on the axis of each coordinate given
    step : distance of neighbours [degrees], the mean one of Gaussian latitudes
    """

    points: Array
    index: Index
    step: float
    gaussian: bool = False
    closed: bool = False


def _levels(values: Array) -> tuple[Array, Index]:
    """Ascending values without repeats (those within the tolerance are one), and which is which."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    new = np.concatenate([[False], np.diff(ascending) > 2.0 * _SNAP_DEGREES])
    number = np.cumsum(new)
    levels = np.bincount(number, weights=ascending) / np.bincount(number)
    which = np.empty(values.size, dtype=np.int64)
    which[order] = number
    return levels, which


def _step(levels: Array) -> float | None:
    """The mean step of levels that are multiples of their smallest distance apart, or nearly."""
    if levels.size < 3:
        return None
    gaps = np.diff(levels)
    smallest = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
    if smallest < _SMALLEST_STEP:
        return None
    return float((levels[-1] - levels[0]) / np.round(gaps / smallest).sum())


def _step_of_index(levels: Array, which: Index, number: Index) -> float | None:
    """The mean step of levels whose places on their axis are known."""
    places = np.zeros(levels.size, dtype=np.int64)
    places[which] = number
    if levels.size < 2 or np.any(places[which] != number) or places[-1] == places[0]:
        return None
    return float(abs((levels[-1] - levels[0]) / (places[-1] - places[0])))


def _rows(
    where: str, name: str, lat: Array, stated: float | None, number: Index | None = None
) -> _Axis | None:
    """Rows from pole to pole: centred between them, on them, or Gaussian; else some in between."""
    levels, which = _levels(lat)
    step = stated
    if step is None:
        step = _step(levels) if number is None else _step_of_index(levels, which, number)
    if step is None:
        return None
    count = round(180.0 / step)
    for size, first in ((count, 0.5), (count + 1, 0.0)):
        exact = 180.0 / count
        place = (levels + 90.0) / exact - first
        if np.abs(place - np.round(place)).max() * exact <= _SNAP_DEGREES:
            points = np.asarray(-90.0 + exact * (first + np.arange(size)), dtype=np.float64)
            return _Axis(points, np.round(place).astype(np.int64)[which], exact)
    gaussian = _gaussian_rows(where, name, levels, step)
    if gaussian is not None:
        nodes, place_of = gaussian
        return _Axis(nodes, place_of[which], 180.0 / nodes.size, gaussian=True)
    return _run(levels, which, step)


def _gaussian_rows(where: str, name: str, levels: Array, step: float) -> tuple[Array, Index] | None:
    """All latitudes of the one Gaussian grid that has these, and the place of each."""
    found = []
    middle = round(180.0 / step - 0.5)
    for size in range(max(4, middle - 2), middle + 3):
        # Nearly, and cheaply: the nodes are an eigenvalue problem.
        angle = (np.arange(size, 0, -1) - 0.25) * np.pi / (size + 0.5)
        angle = angle + 1.0 / (8.0 * (size + 0.5) ** 2 * np.tan(angle))
        if _off(90.0 - np.rad2deg(angle), levels).max() > 0.1 * step:
            continue
        nodes = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(size)[0]))
        if _off(nodes, levels).max() <= min(_GAUSS_DEGREES, 0.02 * step):
            found.append(nodes)
    if len(found) > 1:
        raise DataError(
            Problem(
                where,
                name,
                f"latitudes that fit Gaussian grids of {' and '.join(str(f.size) for f in found)}",
                "latitudes with more digits, or the index of the points",
            )
        )
    if not found:
        return None
    nodes = found[0]
    return nodes, np.argmin(np.abs(levels[:, None] - nodes), axis=1).astype(np.int64)


def _off(nodes: Array, levels: Array) -> Array:
    at = np.clip(np.searchsorted(nodes, levels), 1, nodes.size - 1)
    return np.minimum(np.abs(nodes[at] - levels), np.abs(nodes[at - 1] - levels))


def _columns(lon: Array, stated: float | None, number: Index | None = None) -> _Axis | None:
    """Columns all round the globe; else some side by side."""
    around = np.sort(np.mod(lon, 360.0))
    gaps = np.diff(np.append(around, around[0] + 360.0))
    # Counted from behind the widest gap, no point is on both sides of the seam.
    start = around[(int(np.argmax(gaps)) + 1) % around.size] - 10.0 * _SNAP_DEGREES
    levels, which = _levels(np.mod(lon - start, 360.0) + start)
    step = stated
    if step is None:
        step = _step(levels) if number is None else _step_of_columns(levels, which, number)
    if step is None:
        return None
    count = max(1, round(360.0 / step))
    exact = 360.0 / count
    place = (levels - levels[0]) / exact
    off = (place - np.round(place)) * exact
    if off.max() - off.min() > 2.0 * _SNAP_DEGREES:
        return _run(levels, which, step)
    phase = levels[0] + float(off.mean())
    half = np.round((phase + 180.0) / (0.5 * exact)) * (0.5 * exact) - 180.0
    phase = half if abs(half - phase) <= _SNAP_DEGREES else phase
    low = -180.0 if lon.min() < -_SNAP_DEGREES else 0.0
    offset = float(np.mod(phase - low, exact))
    offset = 0.0 if exact - offset < 1e-9 else offset
    points = np.asarray(low + offset + exact * np.arange(count), dtype=np.float64)
    index = np.mod(np.round((levels - points[0]) / exact).astype(np.int64), count)
    return _Axis(points, index[which], exact, closed=True)


def _step_of_columns(levels: Array, which: Index, number: Index) -> float | None:
    """As ``_step_of_index``, of columns that are numbered from anywhere round the globe."""
    places = np.zeros(levels.size, dtype=np.int64)
    places[which] = number
    if levels.size < 2 or np.any(places[which] != number):
        return None
    ahead = np.diff(places) > 0
    return (
        float(np.diff(levels)[ahead].sum() / np.diff(places)[ahead].sum()) if ahead.any() else None
    )


def _run(levels: Array, which: Index, step: float) -> _Axis | None:
    """Equally spaced from the first to the last, with a step that divides nothing."""
    place = np.round((levels - levels[0]) / step).astype(np.int64)
    if place[-1] == 0:
        return None
    step = float((levels[-1] - levels[0]) / place[-1])
    if np.abs(levels - levels[0] - place * step).max() > _SNAP_DEGREES:
        return None
    points = np.asarray(levels[0] + step * np.arange(place[-1] + 1), dtype=np.float64)
    return _Axis(points, place[which], step)


def _neighbours(rows: _Axis, columns: _Axis) -> float:
    """Part of the points that have another one beside, above or below them."""
    width = columns.points.size
    here = np.unique(rows.index * (width + 1) + columns.index)
    row, column = np.divmod(here, width + 1)
    beside = np.zeros(here.size, dtype=np.bool_)
    for by_row, by_column in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        there = column + by_column
        there = np.mod(there, width) if columns.closed else there
        wanted = (row + by_row) * (width + 1) + there
        at = np.minimum(np.searchsorted(here, wanted), here.size - 1)
        beside |= here[at] == wanted
    return float(beside.mean())


def _on_axes(
    where: str,
    key: str,
    rows: _Axis,
    columns: _Axis,
    place: tuple[Array, Array],
    gaussian_edges: GaussianEdges,
) -> tuple[Grid, EdgeModel, Index]:
    cells = rows.index * columns.points.size + columns.index
    order = np.argsort(cells, kind="stable")
    twice = np.flatnonzero(np.diff(cells[order]) == 0)
    if twice.size:
        one, other = sorted(int(order[k]) for k in (twice[0], twice[0] + 1))
        lat, lon = place
        found = (
            f"two points in one cell, {twice.size} times; the first are points {one + 1} and "
            f"{other + 1}, at {lat[one]:.5g} N, {lon[one]:.5g} E"
        )
        raise DataError(Problem(where, key, found, "each cell once"))
    # The edges that a file of maps on these axes would be given.
    axes = xr.Dataset(
        coords={
            "lat": ("lat", rows.points, {"units": "degrees_north"}),
            "lon": ("lon", columns.points, {"units": "degrees_east"}),
        }
    )
    whole = grid_of(axes, f"{where}: {key}", gaussian_edges=gaussian_edges)
    grid, cells = _region(whole.grid, rows, columns)
    if not rows.gaussian:
        return grid, "regular-spacing", cells
    return grid, "gauss-latitudes" if gaussian_edges == "weights" else whole.edge_model, cells


def _region(grid: Grid, rows: _Axis, columns: _Axis) -> tuple[Grid, Index]:
    """The grid cut to what the points span, where that is less than half of it; their cells."""
    size = columns.points.size
    taken = np.unique(columns.index)
    gaps = np.diff(np.append(taken, taken[0] + size))
    # Not round the circle where the columns do not go round it.
    widest = int(np.argmax(gaps)) if columns.closed else taken.size - 1
    first = int(taken[(widest + 1) % taken.size])
    wide = size - int(gaps[widest]) + 1
    south = int(rows.index.min())
    high = int(rows.index.max()) - south + 1
    if 2 * high * wide >= rows.points.size * size:
        return grid, rows.index * size + columns.index
    west = np.concatenate([grid.lon_edges[:-1], grid.lon_edges + 360.0])[first : first + wide + 1]
    middle = np.concatenate([grid.lon, grid.lon + 360.0])[first : first + wide]
    back = 360.0 * (west[0] >= 180.0)
    part = Grid(
        grid.name,
        grid.lat_edges[south : south + high + 1],
        west - back,
        grid.lat[south : south + high],
        middle - back,
    )
    return part, (rows.index - south) * wide + np.mod(columns.index - first, size)
