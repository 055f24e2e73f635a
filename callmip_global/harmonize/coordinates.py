"""Horizontal coordinates as groups write them: the grid of a file, and what was mended to find it.

`grid.grid_of` finds rectilinear grids, `landpoints` the cells of lists of land points; here it is
put into words what that took. A grid that leaves any doubt is refused, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.grid import Grid, SourceGrid, coordinate_names, grid_of
from callmip_global.landpoints import PointSource, indexed_points, regular_points, scattered

Note = tuple[str, str]
Array = NDArray[np.float64]

# Coordinates nearer than this [degrees] to the grid are it: rounding in the last place.
_EXACT_DEGREES = 1e-9
_AXES: tuple[Literal["latitude", "longitude"], ...] = ("latitude", "longitude")
_UNITS = {
    "latitude": ("degrees_north", "degree_north", "degrees_n", "degree_n", "degreesn", "degreen"),
    "longitude": ("degrees_east", "degree_east", "degrees_e", "degree_e", "degreese", "degreee"),
}


@dataclass(frozen=True, eq=False)
class LandVector(SourceGrid):
    """The grid whose cells a list of points are; fields are scattered to it, missing elsewhere.

    points : the list
    """

    points: PointSource | None = field(default=None, repr=False)

    def to_grid_order(self, da: xr.DataArray) -> xr.DataArray:
        """``da`` (..., points) as (..., lat, lon), NaN in cells without a point.

        Raises ValueError when ``da`` is not along the list.
        """
        assert self.points is not None
        listed = self.points.to_grid_order(da)
        values = scattered(listed.values, self.points.cells, self.grid.shape)
        return xr.DataArray(values, dims=(*listed.dims[:-1], "lat", "lon"), name=da.name)


def read_grid(ds: xr.Dataset, where: str) -> tuple[SourceGrid, tuple[Note, ...]]:
    """The grid of an undecoded dataset, and (rule, words) of what was mended.

    DataError, with the rule that refuses it, where there is no one rectilinear grid.
    """
    try:
        points = _land_vector(ds, where)
        if points is not None:
            return points
        source = grid_of(ds, where)
    except DataError as error:
        raise DataError(replace(p, rule=p.rule or "grid") for p in error.problems) from None
    notes = [*_names(ds, source), *_units(ds, source), *_jitter(ds, source), *_edges(source)]
    return source, (*notes, *_turn(source), *_extent(source.grid))


def aligned(sources: Sequence[SourceGrid]) -> list[SourceGrid]:
    """The grids of the files of one run: where only the first column differs, that of most files.

    Files from -180 to 180 beside files from 0 to 360 are on the same cells; ``lon_order`` of the
    result says how the columns are turned. Any other difference is left as it is.
    """
    counts = Counter(source.grid.digest for source in sources)
    usual = sorted({s.grid.digest: s.grid for s in sources}.values(), key=lambda g: g.digest)
    usual.sort(key=lambda grid: -counts[grid.digest])
    return [next((t for g in usual if (t := _turned(source, g))), source) for source in sources]


def _turned(source: SourceGrid, grid: Grid) -> SourceGrid | None:
    """``source`` with its columns in the order of ``grid``; None if the cells are not the same."""
    own = source.grid
    if own == grid:
        return source
    width = float(grid.lon_edges[-1] - grid.lon_edges[0])
    if isinstance(source, LandVector) or own.shape != grid.shape or width < 360.0 - 1e-9:
        return None
    order = np.argsort(np.mod(own.lon - grid.lon_edges[0], 360.0), kind="stable")
    off = np.mod(own.lon_edges[:-1][order] - grid.lon_edges[:-1] + 180.0, 360.0) - 180.0
    if not np.array_equal(own.lat_edges, grid.lat_edges) or np.abs(off).max() > _EXACT_DEGREES:
        return None
    held = np.arange(order.size) if source.lon_order is None else np.asarray(source.lon_order)
    columns = tuple(int(i) for i in held[order])
    return replace(
        source, grid=grid, lon_order=None if columns == (*range(order.size),) else columns
    )


def grid_words(grid: Grid) -> str:
    """A grid in words, for messages about two of them that differ."""
    south, north, west, east = (
        float(e[i]) for e in (grid.lat_edges, grid.lon_edges) for i in (0, -1)
    )
    nlat, nlon = grid.shape
    return f"{nlat} x {nlon} cells, {south:g} to {north:g} north, {west:g} to {east:g} east"


def _land_vector(ds: xr.Dataset, where: str) -> tuple[LandVector, tuple[Note, ...]] | None:
    """Rule ``land-vector``: a list of land points is scattered to the grid they are cells of.

    Evidence: an index (compression by gathering, CLM), or places that leave no doubt which regular
    or Gaussian grid they are a part of.
    """
    listed: PointSource | None = indexed_points(
        ds, where, lambda rest: grid_of(rest, where), "weights"
    )
    told = "their index"
    if listed is None:
        pair = _listed_places(ds)
        if pair is None:
            return None
        places = tuple(np.asarray(ds[name].values, dtype=np.float64) for name in pair)
        _check_places(ds, where, pair, places)
        found = regular_points(ds, where, pair, (places[0], places[1]), "weights")
        if found is None:
            raise DataError(
                Problem(
                    where,
                    ", ".join(pair),
                    f"{places[0].size} points on no regular or Gaussian grid, and no index",
                    "points that are cells of one grid",
                    "Hand in maps, or the index of each point's cell (CF: compress)",
                    rule="land-vector-unclear",
                )
            )
        grid, edge_model, cells = found
        dims = ds[pair[0]].dims
        listed = PointSource(grid, edge_model, dims, cells, frozenset(pair))
        told = "their latitudes and longitudes"
    if not isinstance(listed.grid, Grid):
        raise DataError(Problem(where, found="points of a grid that is not rectilinear"))
    nlat, nlon = listed.grid.shape
    names = sorted(listed.described)
    source = LandVector(
        grid=listed.grid,
        edge_model=listed.edge_model,
        lat_name=names[0] if names else "",
        lon_name=names[-1] if names else "",
        lat_dim=listed.lat_dim,
        lon_dim=listed.lon_dim,
        lat_descending=False,
        points=listed,
    )
    dims_said = ", ".join(str(d) for d in dict.fromkeys(listed.dims))
    words = f"{listed.cells.size} points along {dims_said} put on {nlat} x {nlon} cells by {told}"
    return source, (("land-vector", words), *_extent(listed.grid))


def _listed_places(ds: xr.Dataset) -> tuple[str, str] | None:
    """Latitude and longitude along one dimension that is the axis of neither; None without."""
    lats, lons = (
        [n for n in coordinate_names(ds, axis) if ds[n].ndim == 1 and ds[n].dtype.kind in "iuf"]
        for axis in _AXES
    )
    dims: set[Hashable] = {ds[n].dims[0] for n in lats}
    if not dims or dims != {ds[n].dims[0] for n in lons} or len(dims) > 1:
        return None
    return lats[0], lons[0]


def _check_places(
    ds: xr.Dataset, where: str, pair: tuple[str, str], places: tuple[Array, ...]
) -> None:
    for name, values, limit in zip(pair, places, (90.0, 720.0), strict=True):
        units = str(ds[name].attrs.get("units", ""))
        if not values.size or units.strip().lower().startswith("rad"):
            found = f"units {units!r}" if values.size else "no points"
            raise DataError(Problem(where, name, found, "degrees for every point"))
        bad = np.flatnonzero(~(np.abs(values) <= limit + 1e-4))
        if bad.size:
            found = f"{bad.size} of {values.size} values missing or beyond {limit:g} degrees"
            raise DataError(Problem(where, name, found, "degrees for every point"))


def _names(ds: xr.Dataset, source: SourceGrid) -> list[Note]:
    """Rule ``coordinate-names``: latitude and longitude of any name are lat and lon."""
    said = [
        name if dim == name else f"{name}({dim})"
        for name, dim, usual in (
            (source.lat_name, str(source.lat_dim), "lat"),
            (source.lon_name, str(source.lon_dim), "lon"),
        )
        if (name, dim) != (usual, usual)
    ]
    return [("coordinate-names", f"{' and '.join(said)} renamed")] if said else []


def _units(ds: xr.Dataset, source: SourceGrid) -> list[Note]:
    """Rule ``coordinate-units``: degrees in other words (``degree north (-90->90)``) or in none."""
    notes = []
    for name, axis in ((source.lat_name, "latitude"), (source.lon_name, "longitude")):
        stated = str(ds[name].attrs.get("units", "")).strip()
        if stated.lower() not in _UNITS[axis]:
            said = f"units {stated!r}" if stated else "no units"
            notes.append(("coordinate-units", f"{name}: {said}, taken as {_UNITS[axis][0]}"))
    return notes


def _jitter(ds: xr.Dataset, source: SourceGrid) -> list[Note]:
    """Rule ``coordinate-jitter``: points within 1e-4 degrees of a grid are put on it.

    Float32, and values printed with few digits, miss the grid they mean; two files of one model
    would otherwise be on two grids.
    """
    grid, notes = source.grid, []
    lat = _vector(ds[source.lat_name].values, source.lat_dim, ds[source.lat_name].dims)
    lon = _vector(ds[source.lon_name].values, source.lon_dim, ds[source.lon_name].dims)
    lat = lat[::-1] if source.lat_descending else lat
    lon = lon if source.lon_order is None else lon[np.asarray(source.lon_order)]
    turned = np.mod(lon - grid.lon + 180.0, 360.0) - 180.0
    for name, off in ((source.lat_name, lat - grid.lat), (source.lon_name, turned)):
        largest = float(np.abs(off).max())
        if largest > _EXACT_DEGREES:
            words = f"{name} up to {largest:.1e} degrees off, put on the grid it means"
            notes.append(("coordinate-jitter", words))
    return notes


def _vector(values: NDArray[np.generic], dim: Hashable, dims: tuple[Hashable, ...]) -> Array:
    """(n,) of a coordinate that may be a matrix repeating itself along the other dimension."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        return array
    along: Array = np.take(array, 0, axis=1 - dims.index(dim))
    return along


def _edges(source: SourceGrid) -> list[Note]:
    """Rule ``grid-edges``: rows of Gaussian grids and rows on the poles get edges of their own.

    Edges half way between the points would lie beyond the poles, or give Gaussian rows areas that
    differ from their quadrature weights by up to 6 %.
    """
    grid = source.grid
    if source.edge_model == "gauss-weights":
        return [("grid-edges", f"{grid.shape[0]} Gaussian rows, edges by their weights")]
    on_poles = grid.lat[-1] == 90.0 or grid.lat[0] == -90.0
    if on_poles and source.edge_model == "clipped-midpoints":
        return [("grid-edges", "rows centred on a pole are cut there to half their height")]
    return []


def _turn(source: SourceGrid) -> list[Note]:
    """Rule ``longitude-order``: columns from 0 to 360 are compared and regridded on the circle."""
    first, last = (float(source.grid.lon[i]) for i in (0, -1))
    if last <= 180.0:
        return []
    words = f"columns from {first:.6g} to {last:.6g} degrees east, turned to the order of each grid"
    return [("longitude-order", words)]


def _extent(grid: Grid) -> list[Note]:
    """Rule ``grid-truncated``: what a grid leaves out of the globe is missing, never zero."""
    if grid.is_global:
        return []
    south, north = float(grid.lat_edges[0]), float(grid.lat_edges[-1])
    width = float(grid.lon_edges[-1] - grid.lon_edges[0])
    parts = [f"rows from {south:.6g} to {north:.6g}"] if south > -90.0 or north < 90.0 else []
    if width < 360.0 - 1e-9:
        parts.append(f"columns from {grid.lon_edges[0]:.6g} to {grid.lon_edges[-1]:.6g}")
    said = " and ".join(parts) or "cells that do not close"
    return [("grid-truncated", f"{said}; everything beyond is missing on the standard grids")]
