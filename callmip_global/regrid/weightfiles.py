"""Weight files of other tools: ESMF_RegridWeightGen, SCRIP and CDO, read and written.

Read, they are weights like any others: bound to the grids of the data and of the target, cell by
cell by the places of their centres, in whatever order the file has the cells; normalised by the
whole area of the target cell; and applied by the same kernel with the same masks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.grid import EARTH_RADIUS_M, Grid, SourceGrid
from callmip_global.regrid.mesh import Mesh, MeshSource, PointSource
from callmip_global.regrid.weights import AnyWeights, CellWeights, Weights, cell_weights

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Source = SourceGrid | MeshSource | PointSource

TOLERANCE = 1e-3
"""Largest part of the source's area that weights of another tool may lose or gain.

Tools differ in what joins the corners of cells: great circles along parallels cost up to 3e-4.
"""

# Centres this near [degrees] are one place; cells are at least ten times as far apart.
_SAME_PLACE = 1e-4
_CELL = 1e-3


@dataclass(frozen=True)
class _Side:
    """Cells of one side of a weight file, in its order.

    lat, lon : (n,) centres [degrees];  area : (n,) [sr];  mask : (n,) whether they take part
    fraction : (n,) part of each cell that takes part, as the file says
    """

    lat: Array
    lon: Array
    area: Array
    mask: NDArray[np.bool_]
    fraction: Array


def read_weights(path: Path, source: Source, target: Grid) -> tuple[CellWeights, Source]:
    """Conservative weights of a file, for data on ``source`` and the grid ``target``.

    The second result is the source with areas: those of the file, where its corners are unknown.
    UsageError when there is no such file; DataError when it is no weight file or has no grids
    (xESMF's), when its grids are not these two, when its weights are not first-order conservative,
    were made with a mask, or lose more than 1e-3 of the area.
    """
    where = str(path)
    if not path.exists():
        raise UsageError(Problem(where, found="no such file"))
    try:
        with xr.open_dataset(path, decode_times=False) as ds:
            ds.load()
    except (OSError, ValueError) as error:
        raise DataError(Problem(where, found=f"cannot be opened: {error}")) from error
    if {"remap_matrix", "src_address", "dst_address"} <= set(ds.variables):
        kind, names = "SCRIP", ("src", "dst")
        matrix = ds["remap_matrix"].values
        if matrix.ndim == 2 and matrix.shape[1] != 1:
            raise _not_first_order(where, f"{matrix.shape[1]} weights for each pair of cells")
        values = np.asarray(matrix, dtype=np.float64).ravel()
        columns, rows = ds["src_address"].values, ds["dst_address"].values
    elif {"S", "row", "col"} <= set(ds.variables):
        kind, names = "ESMF", ("a", "b")
        values = np.asarray(ds["S"].values, dtype=np.float64)
        columns, rows = ds["col"].values, ds["row"].values
    else:
        raise DataError(
            Problem(
                where, found="no weights", wanted="a file of ESMF_RegridWeightGen, SCRIP or CDO"
            )
        )
    method = str(ds.attrs.get("ESMF_regrid_method", ds.attrs.get("map_method", "conserv")))
    if "conserv" not in method.lower():
        raise _not_first_order(where, f"{method!r}")
    if values.min(initial=0.0) < -1e-9:
        raise _not_first_order(where, f"negative weights down to {values.min():.2g}")
    a, b = (_side(ds, where, kind, name) for name in names)
    cells = np.asarray(columns, dtype=np.int64) - 1
    into = np.asarray(rows, dtype=np.int64) - 1
    if cells.size and (
        min(cells.min(), into.min()) < 0 or cells.max() >= a.area.size or into.max() >= b.area.size
    ):
        raise DataError(Problem(where, found="addresses beyond its own grids"))
    if not np.all(a.mask):
        found = f"a source mask: {int((~a.mask).sum())} of {a.mask.size} cells take no part"
        raise DataError(
            Problem(
                where,
                "source grid",
                found,
                "weights made without a mask; missing values are left out when they are applied",
                "Make the weights from a field without missing values",
            )
        )
    mine = _match(where, "source grid", a, *_places(source.grid))
    theirs = _match(where, "target grid", b, *_places(target))
    if isinstance(source, MeshSource) and source.grid.lat_corners is None:
        areas = np.empty(a.area.size)
        areas[mine] = a.area * EARTH_RADIUS_M**2
        source = replace(source, grid=replace(source.grid, areas=areas))
    weights = cell_weights(
        mine[cells],
        theirs[into],
        _covered_parts(ds, values, into, b),
        source=source.grid,
        target=target,
        edge_model="weight-file",
    )
    _check_area(where, weights, source.grid, target)
    engine = f"weights ({kind} file {path.name})"
    return replace(weights, engine=engine, tolerance=TOLERANCE), source


def _not_first_order(where: str, found: str) -> DataError:
    return DataError(
        Problem(
            where,
            "method",
            found,
            "first-order conservative weights",
            "Make them with cdo gencon or ESMF_RegridWeightGen -m conserve",
        )
    )


def _side(ds: xr.Dataset, where: str, kind: str, name: str) -> _Side:
    if kind == "SCRIP":
        names = [f"{name}_grid_{end}" for end in ("center_lat", "center_lon", "area", "imask")]
        fraction = f"{name}_grid_frac"
    else:
        names = [f"{start}_{name}" for start in ("yc", "xc", "area", "mask")]
        fraction = f"frac_{name}"
    missing = [n for n in names[:3] if n not in ds.variables]
    if missing:
        raise DataError(
            Problem(
                where,
                found=f"weights without their grids (no {', '.join(missing)})",
                wanted="centres and areas of the cells, to tell whether the grids are those",
                remedy="Make the weights with ESMF_RegridWeightGen or cdo gencon",
            )
        )
    lat, lon = (np.asarray(ds[n].values, dtype=np.float64).ravel() for n in names[:2])
    if str(ds[names[0]].attrs.get("units", "")).lower().startswith("rad"):
        lat, lon = np.rad2deg(lat), np.rad2deg(lon)
    area = np.asarray(ds[names[2]].values, dtype=np.float64).ravel()
    ones = np.ones(area.size)
    mask = ds[names[3]].values.ravel() != 0 if names[3] in ds.variables else ones > 0
    part = ds[fraction].values.ravel() if fraction in ds.variables else ones
    return _Side(lat, lon, area, mask, np.asarray(part, dtype=np.float64))


def _covered_parts(ds: xr.Dataset, values: Array, into: Index, target: _Side) -> Array:
    """Covered part of the target cell, from weights normalised in any of the three ways."""
    normalisation = str(ds.attrs.get("normalization", "destarea")).lower()
    if normalisation == "none":
        return np.asarray(values / target.area[into])
    return values * target.fraction[into] if "frac" in normalisation else values


def _check_area(where: str, weights: CellWeights, source: Grid | Mesh, target: Grid) -> None:
    """DataError unless the area of every source cell is carried over, or a part at the border.

    With our own areas: files have been seen whose areas are those of what was carried.
    """
    rows, cells, values = triples(weights)
    area = source.cell_area.ravel()
    carried = np.bincount(cells, values * target.cell_area.ravel()[rows], minlength=area.size)
    excess = carried - area
    if not target.is_global:
        excess = np.maximum(excess, 0.0)
    worst = float(np.abs(excess).sum() / area.sum())
    if worst > TOLERANCE:
        raise DataError(
            Problem(
                where,
                "weights",
                f"weights that lose or gain {100 * worst:.2g} % of the source's area",
                f"at most {100 * TOLERANCE:g} %",
                "Make them normalised by the target's area, from a field without missing values "
                "(CDO_REMAP_NORM=destarea cdo gencon)",
            )
        )


def _places(grid: Grid | Mesh) -> tuple[Array, Array]:
    """Latitude and longitude of every cell of a grid, row by row."""
    if isinstance(grid, Mesh):
        return grid.lat_points, grid.lon_points
    lat, lon = np.meshgrid(grid.lat, grid.lon, indexing="ij")
    return lat.ravel(), lon.ravel()


def _match(where: str, side: str, theirs: _Side, lat: Array, lon: Array) -> Index:
    """(n,) number of our cell for each cell of the file; DataError unless they are one to one."""
    if theirs.lat.size != lat.size:
        raise DataError(
            Problem(
                where,
                side,
                f"{theirs.lat.size} cells",
                f"the {lat.size} cells of the data" if side == "source grid" else f"{lat.size}",
                "Make the weights for this grid",
            )
        )
    columns = round(360.0 / _CELL)

    def key(row: Array, column: Array) -> Index:
        return (row * columns + np.mod(column, columns)).astype(np.int64)

    ours = key(np.floor(lat / _CELL), np.floor(lon / _CELL))
    order = np.argsort(ours, kind="stable")
    found = np.full(lat.size, -1, dtype=np.int64)
    # A place near the border of a little box of 1e-3 degrees may be in the next one for us.
    for north in (-_SAME_PLACE, _SAME_PLACE):
        for east in (-_SAME_PLACE, _SAME_PLACE):
            wanted = key(
                np.floor((theirs.lat + north) / _CELL), np.floor((theirs.lon + east) / _CELL)
            )
            at = np.minimum(np.searchsorted(ours[order], wanted), lat.size - 1)
            candidate = order[at]
            turn = np.mod(lon[candidate] - theirs.lon + 180.0, 360.0) - 180.0
            near = np.abs(lat[candidate] - theirs.lat) < 2 * _SAME_PLACE
            near &= np.abs(turn) < 2 * _SAME_PLACE
            found = np.where(near, candidate, found)
    lost = np.flatnonzero(found < 0)
    if lost.size:
        k = int(lost[0])
        raise DataError(
            Problem(
                where,
                side,
                f"other cells: {lost.size} of {lat.size} are nowhere, the first is at "
                f"{theirs.lat[k]:.5g} N, {theirs.lon[k]:.5g} E",
                "the centres of the cells of the data"
                if side == "source grid"
                else "the centres of the target grid",
                "Make the weights for this grid",
            )
        )
    if np.unique(found).size != found.size:
        found_text = "several cells at one place"
        raise DataError(Problem(where, side, found_text, "each cell once"))
    return found


# --- writing ----------------------------------------------------------------------------------


def write_weights(
    path: Path,
    weights: AnyWeights,
    source: Source,
    target: Grid,
    kind: Literal["ESMF", "SCRIP"] = "ESMF",
) -> None:
    """Weights as a file that ESMF's tools and xESMF (ESMF) or CDO (SCRIP) read.

    The source's cells are in the order of the data file, the target's from south to north.
    Normalised by the whole area of the target cell. ``weights`` must be those of the two grids
    (DataError).
    """
    weights.check(source.grid, target)
    rows, cells, values = triples(weights)
    place = _file_order(source)
    cells = place[cells]
    order = np.lexsort((cells, rows))
    rows, cells, values = rows[order], cells[order], values[order]
    coverage = np.clip(weights.coverage().ravel(), 0.0, 1.0)
    target_area = target.cell_area.ravel() / EARTH_RADIUS_M**2
    source_area = np.empty(place.size)
    source_area[place] = source.grid.cell_area.ravel() / EARTH_RADIUS_M**2
    carried = np.bincount(cells, values * target_area[rows], minlength=place.size) / source_area
    sides = []
    for grid, at in ((source.grid, place), (target, np.arange(target_area.size))):
        sides.append([_placed(part, at) for part in (*_places(grid), *_corners(grid))])
    columns, lines = _dimensions(source), target.shape[::-1]
    attributes = {
        "title": f"callmip-global {__version__} weights",
        "normalization": "destarea",
        "map_method": "Conservative remapping",
        "source_grid_sha256": weights.source_digest,
        "target_grid_sha256": weights.target_digest,
    }
    areas, parts = (source_area, target_area), (np.minimum(carried, 1.0), coverage)
    data: dict[str, tuple[object, ...]] = {}
    if kind == "ESMF":
        attributes["ESMF_regrid_method"] = "First-order Conservative"
        for s, size, side, area, part in zip(
            "ab", (columns, lines), sides, areas, parts, strict=True
        ):
            grid_name = "src" if s == "a" else "dst"
            n = f"n_{s}"
            data[f"{grid_name}_grid_dims"] = (
                (f"{grid_name}_grid_rank",),
                np.asarray(size, dtype=np.int32),
            )
            for name, values_of in zip(("yc", "xc", "yv", "xv"), side, strict=False):
                dims = (n, f"nv_{s}")[: values_of.ndim]
                data[f"{name}_{s}"] = (dims, values_of, {"units": "degrees"})
            data[f"mask_{s}"] = ((n,), np.ones(area.size, dtype=np.int32))
            data[f"area_{s}"] = ((n,), area, {"units": "steradian"})
            data[f"frac_{s}"] = ((n,), part)
        data["col"] = (("n_s",), (cells + 1).astype(np.int32))
        data["row"] = (("n_s",), (rows + 1).astype(np.int32))
        data["S"] = (("n_s",), values)
    else:
        attributes["conventions"] = "SCRIP"
        attributes["source_grid"] = "unstructured" if len(columns) == 1 else "curvilinear"
        attributes["dest_grid"] = "lonlat"
        if isinstance(source.grid, Grid):
            attributes["source_grid"] = "lonlat"
        for s, size, side, area, part in zip(
            ("src", "dst"), (columns, lines), sides, areas, parts, strict=True
        ):
            n = f"{s}_grid_size"
            data[f"{s}_grid_dims"] = ((f"{s}_grid_rank",), np.asarray(size, dtype=np.int32))
            ends = ("center_lat", "center_lon", "corner_lat", "corner_lon")
            for end, values_of in zip(ends, side, strict=False):
                dims = (n, f"{s}_grid_corners")[: values_of.ndim]
                data[f"{s}_grid_{end}"] = (dims, np.deg2rad(values_of), {"units": "radians"})
            ones = np.ones(area.size, dtype=np.int32)
            data[f"{s}_grid_imask"] = ((n,), ones, {"units": "unitless"})
            data[f"{s}_grid_area"] = ((n,), area, {"units": "square radians"})
            data[f"{s}_grid_frac"] = ((n,), part, {"units": "unitless"})
        data["src_address"] = (("num_links",), (cells + 1).astype(np.int32))
        data["dst_address"] = (("num_links",), (rows + 1).astype(np.int32))
        data["remap_matrix"] = (("num_links", "num_wgts"), values[:, None])
    ds = xr.Dataset(data, attrs=attributes)
    encoding = {str(name): {"_FillValue": None} for name in ds.variables}
    ds.to_netcdf(path, format="NETCDF3_64BIT", encoding=encoding)


def triples(weights: AnyWeights) -> tuple[Index, Index, Array]:
    """Target cell, source cell and value of every weight."""
    if isinstance(weights, CellWeights):
        rows = np.repeat(np.arange(weights.indptr.size - 1), np.diff(weights.indptr))
        return rows, weights.indices, weights.values
    return _product(weights)


def _product(weights: Weights) -> tuple[Index, Index, Array]:
    lat, lon = weights.lat, weights.lon
    j = np.repeat(np.arange(lat.n_target), np.diff(lat.indptr))
    i = np.repeat(np.arange(lon.n_target), np.diff(lon.indptr))
    rows = (j[:, None] * lon.n_target + i[None, :]).ravel()
    cells = (lat.indices[:, None] * lon.n_source + lon.indices[None, :]).ravel()
    return rows, cells, np.outer(lat.values, lon.values).ravel()


def _file_order(source: Source) -> Index:
    """(n,) place in the data file of each cell of the grid."""
    place = np.arange(source.grid.shape[0] * source.grid.shape[1]).reshape(source.grid.shape)
    if isinstance(source, SourceGrid):
        if source.lon_order is not None:
            place = place[:, np.asarray(source.lon_order)]
        if source.lat_descending:
            place = place[::-1]
    return place.ravel()


def _placed(values: Array, place: Index) -> Array:
    out = np.empty_like(values)
    out[place] = values
    return out


def _dimensions(source: Source) -> tuple[int, ...]:
    """Sizes of the file's horizontal dimensions, fastest first."""
    if isinstance(source, MeshSource) and len(source.dims) == 1:
        return (source.grid.shape[1],)
    return source.grid.shape[::-1]


def _corners(grid: Grid | Mesh) -> tuple[Array, ...]:
    """Corners (n, m) of every cell, latitude and longitude; nothing where they are unknown."""
    if isinstance(grid, Mesh):
        if grid.lat_corners is None or grid.lon_corners is None:
            return ()
        return grid.lat_corners, grid.lon_corners
    south, west = np.meshgrid(grid.lat_edges[:-1], grid.lon_edges[:-1], indexing="ij")
    north, east = np.meshgrid(grid.lat_edges[1:], grid.lon_edges[1:], indexing="ij")
    lat = np.stack([south, south, north, north], axis=-1)
    return lat.reshape(-1, 4), np.stack([west, east, east, west], axis=-1).reshape(-1, 4)
