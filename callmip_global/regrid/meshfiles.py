"""Curvilinear and unstructured grids recognised in files, with the corners of their cells."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.grid import (
    EdgeModel,
    GaussianEdges,
    SourceGrid,
    coordinate_names,
    coordinate_vector,
    grid_of,
)
from callmip_global.landpoints import indexed_points, regular_points
from callmip_global.regrid.mesh import Mesh, MeshSource, PointSource

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]

_NO_CORNERS = (
    "Append the corners from the model's grid file (ncks -A GRID DATA), give a weight file "
    "(--weights), or take the nearest point, which does not conserve (--method nearest)"
)
_MPAS_CELLS = {
    *("latCell", "lonCell", "xCell", "yCell", "zCell", "areaCell", "nEdgesOnCell"),
    *("indexToCellID", "meshDensity", "verticesOnCell", "latVertex", "lonVertex"),
}
# Latitudes and longitudes in float32 are known to half a unit in the last place of 360.
_FLOAT32_DEGREES = 2.0**-16
# Points nearer than this to a regular spacing are on it (as in ``grid``).
_SNAP_DEGREES = 1e-4


def source_of(
    ds: xr.Dataset,
    where: str,
    *,
    corners: bool = True,
    gaussian_edges: GaussianEdges = "weights",
) -> SourceGrid | MeshSource | PointSource:
    """The grid of a data set, whatever its kind.

    Rectilinear grids as ``grid_of`` finds them. Else UGRID and MPAS meshes with their nodes, grids
    with a rotated pole, cells with their corners in CF bounds (2-D latitudes and longitudes; lists
    of cells as ICON and cubed spheres have them), and lists of land points: with the index of
    their cells (compression by gathering, CLM), or on a regular or Gaussian grid.
    ``corners`` false: points without corners and index will do as they are, which weight files
    and the nearest point need; the areas of their cells are then unknown. ``gaussian_edges``: as
    for ``grid_of``.
    DataError when there is none of these, or corners that are no cells.
    """
    indexed = indexed_points(
        ds,
        where,
        lambda rest: source_of(rest, where, corners=corners, gaussian_edges=gaussian_edges),
        gaussian_edges,
    )
    if indexed is not None:
        return indexed
    found: MeshSource | PointSource | None
    found = _ugrid(ds, where) or _mpas(ds, where) or _rotated(ds, where)
    if found is None:
        pair = _coordinates(ds)
        if pair is None:
            return grid_of(ds, where, gaussian_edges=gaussian_edges)
        found = _cf_cells(ds, where, *pair, corners, gaussian_edges)
    if isinstance(found.grid, Mesh) and found.grid.lat_corners is not None:
        _check(where, found.grid)
    return found


def _coordinates(ds: xr.Dataset) -> tuple[str, str] | None:
    """Latitude and longitude that are no axes of a rectilinear grid; None where they are."""
    lats, lons = (_candidates(ds, axis) for axis in ("latitude", "longitude"))
    axes = [
        {
            coordinate_vector(ds.variables[name], axis)[0]
            for name in names
            if ds.variables[name].dtype.kind in "iuf"
        }
        - {None}
        for axis, names in (("latitude", lats), ("longitude", lons))
    ]
    if any(a != b for a in axes[0] for b in axes[1]):
        return None
    pairs = [(a, b) for a in lats for b in lons if ds[a].dims == ds[b].dims]
    # Those with corners first; a file may also have the places of its nodes and edges.
    pairs.sort(key=lambda pair: _bounds_name(ds, pair[0]) is None)
    used = [p for p in pairs if any(_is_data_on(ds, name, p) for name in ds.data_vars)]
    return next(iter(used + pairs), None)


def _is_data_on(ds: xr.Dataset, name: Hashable, pair: tuple[str, str]) -> bool:
    dims = set(ds[pair[0]].dims)
    bounds = _bounds_name(ds, pair[0]), _bounds_name(ds, pair[1])
    return name not in (*pair, *bounds) and dims <= set(ds[name].dims)


def _candidates(ds: xr.Dataset, axis: Any) -> list[str]:
    letters = axis[:3]
    usual = [f"c{letters}", f"grid_center_{letters}", f"{letters}2d"]
    found = coordinate_names(ds, axis)
    return found + [n for n in usual if n in ds.variables and n not in found]


def _bounds_name(ds: xr.Dataset, name: str) -> str | None:
    var = ds[name]
    named = var.attrs.get("bounds") or var.encoding.get("bounds")
    letters = "lat" if "lat" in name.lower() else "lon"
    full = "latitude" if letters == "lat" else "longitude"
    usual = [
        f"{name}_{end}" for end in ("bnds", "bounds", "vertices", "bnd", "corners", "vert")
    ] + [f"bounds_{name}", f"vertices_{full}", f"vertices_{name}", f"{letters}_vertices"]
    for candidate in [str(named)] * bool(named) + usual:
        if candidate in ds.variables and ds[candidate].dims[: var.ndim] == var.dims:
            return candidate
    return None


def _cf_cells(
    ds: xr.Dataset,
    where: str,
    lat_name: str,
    lon_name: str,
    corners: bool,
    gaussian_edges: GaussianEdges,
) -> MeshSource | PointSource:
    lat, lon = (_degrees(ds, where, name, name) for name in (lat_name, lon_name))
    dims = ds[lat_name].dims
    shape = lat.shape if lat.ndim == 2 else (1, lat.size)
    points = lat.ravel(), lon.ravel()
    _check_places(where, (lat_name, lon_name), points)
    names = [_bounds_name(ds, lat_name), _bounds_name(ds, lon_name)]
    described = {lat_name, lon_name, *filter(None, names)}
    described |= {str(n) for n, v in ds.variables.items() if "grid_mapping_name" in v.attrs}
    if names[0] is not None and names[1] is not None:
        around = [
            _degrees(ds, where, str(bounds), name)
            for bounds, name in zip(names, (lat_name, lon_name), strict=True)
        ]
        first = ds[names[0]]
        if len(dims) == 1 and first.shape[1:] == (2,) == around[1].shape[1:]:
            # Ends in latitude and longitude of each point of a list: the corners of a box.
            south_north, west_east = around
            around = [south_north[:, [0, 0, 1, 1]], west_east[:, [0, 1, 1, 0]]]
        elif (
            around[0].shape != around[1].shape
            or first.ndim != len(dims) + 1
            or (first.shape[-1] < 3)
        ):
            raise DataError(
                Problem(
                    where,
                    str(names[0]),
                    f"corners of shape {first.shape}",
                    f"{ds[lat_name].shape} and 3 or more corners, the same for {names[1]}",
                )
            )
        float32 = any(ds[n].dtype == np.float32 for n in names)
        mesh, model = _mesh_of_corners(where, str(names[0]), shape, points, around, float32)
        return MeshSource(mesh, model, dims, frozenset({first.dims[-1]}), frozenset(described))
    if not corners:
        mesh = Mesh(shape, *points)
        return MeshSource(mesh, "cell-centres", dims, frozenset(), frozenset(described))
    names_of = lat_name, lon_name
    regular = regular_points(ds, where, names_of, points, gaussian_edges) if 1 in shape else None
    if regular is not None:
        grid, edges, cells = regular
        return PointSource(grid, edges, dims, cells, frozenset(described))
    kind = "a curvilinear grid" if 1 not in shape else "points that are on no regular grid,"
    raise DataError(
        Problem(
            where,
            f"{lat_name}, {lon_name}",
            f"{kind} without the corners of its cells",
            "bounds with the corners (CF)",
            _NO_CORNERS,
        )
    )


def _degrees(ds: xr.Dataset, where: str, name: str, coordinate: str) -> Array:
    """Values in degrees, by the variable's own units or those of its coordinate."""
    values = np.asarray(ds[name].values, dtype=np.float64)
    units = str(ds[name].attrs.get("units") or ds[coordinate].attrs.get("units", "")).strip()
    if units.lower().startswith("rad"):
        return np.asarray(np.rad2deg(values))
    if not units.lower().startswith("deg"):
        largest = float(np.nanmax(np.abs(values), initial=0.0))
        if largest <= 2.0 * np.pi + 1e-6:
            found = f"units {units!r} and values up to {largest:g}"
            raise DataError(Problem(where, f"{name}.units", found, "degrees or radians, by name"))
    return values


def _mesh_of_corners(
    where: str,
    name: str,
    shape: tuple[int, ...],
    points: tuple[Array, Array],
    around: list[Array],
    float32: bool,
) -> tuple[Mesh, EdgeModel]:
    lat, lon = (values.reshape(-1, values.shape[-1]) for values in around)
    finite = np.isfinite(lat) & np.isfinite(lon)
    few = np.flatnonzero(finite.sum(axis=1) < 3)
    if few.size:
        found = f"{few.size} cells with fewer than 3 corners (the first is cell {few[0] + 1})"
        raise DataError(Problem(where, name, found, "corners for every cell"))
    if not np.all(finite):
        # Padding by missing values: as if the last corner were repeated.
        column = np.arange(lat.shape[1])
        last = np.maximum.accumulate(np.where(finite, column, -1), axis=1)
        last = np.where(last < 0, np.argmax(finite, axis=1)[:, None], last)
        lat, lon = np.take_along_axis(lat, last, 1), np.take_along_axis(lon, last, 1)
    if np.abs(lat).max() > 90.0 + _SNAP_DEGREES:
        found = f"latitudes of corners up to {np.abs(lat).max():g}"
        raise DataError(Problem(where, name, found, "within [-90, 90]"))
    lat = np.clip(lat, -90.0, 90.0)
    parallels = _are_boxes(lat, lon)
    mesh = Mesh(
        (int(shape[0]), int(shape[1])),
        *points,
        lat,
        lon,
        parallels=parallels,
        precision=_FLOAT32_DEGREES if float32 else 0.0,
    )
    return mesh, "parallels" if parallels else "great-circles"


def _are_boxes(lat: Array, lon: Array) -> bool:
    """Whether every cell is between two parallels and two meridians.

    A cell round a pole with all its corners at one latitude is none: great circles join them.
    """
    along = np.abs(lat - np.roll(lat, -1, axis=1)) < 1e-9
    turn = np.mod(lon - np.roll(lon, -1, axis=1) + 180.0, 360.0) - 180.0
    south, north = lat.min(axis=1, keepdims=True), lat.max(axis=1, keepdims=True)
    on_two = (lat - south < 1e-9) | (north - lat < 1e-9)
    return bool(
        np.all(along | (np.abs(turn) < 1e-9)) and np.all(on_two) and np.all(north - south > 1e-9)
    )


def _check_places(where: str, names: tuple[str, str], points: tuple[Array, Array]) -> None:
    """DataError for places that are none."""
    for name, values, low, high in zip(names, points, (-90.0, -360.0), (90.0, 720.0), strict=True):
        lost = np.flatnonzero(~np.isfinite(values))
        if lost.size:
            found = f"{lost.size} of {values.size} without a value, the first is {lost[0] + 1}"
            raise DataError(Problem(where, name, found, "the place of every point"))
        bad = np.flatnonzero((values < low - _SNAP_DEGREES) | (values > high + _SNAP_DEGREES))
        if bad.size:
            found = f"{values[bad[0]]:g} at point {bad[0] + 1}, and {bad.size - 1} more"
            raise DataError(Problem(where, name, found, f"degrees within [{low:g}, {high:g}]"))


def _ugrid(ds: xr.Dataset, where: str) -> MeshSource | None:
    names = [n for n, v in ds.variables.items() if v.attrs.get("cf_role") == "mesh_topology"]
    if not names:
        return None
    topology = ds[names[0]]
    try:
        nodes = str(topology.attrs["node_coordinates"]).split()
        faces = ds[str(topology.attrs["face_node_connectivity"])]
        lat_name = next(n for n in nodes if "lat" in _kind(ds, n))
        lon_name = next(n for n in nodes if "lon" in _kind(ds, n))
    except (KeyError, StopIteration) as error:
        raise DataError(
            Problem(where, str(names[0]), f"a mesh topology without {error}", "a UGRID 2-D mesh")
        ) from error
    cell_dim = topology.attrs.get("face_dimension", faces.dims[0])
    table = np.asarray(faces.transpose(cell_dim, ...).values, dtype=np.float64)
    start = int(faces.attrs.get("start_index", 0))
    missing = ~np.isfinite(table) | (table < start)
    index = np.where(missing, -1, table - start).astype(np.int64)
    middles = str(topology.attrs.get("face_coordinates", "")).split()
    middles = sorted((n for n in middles if n in ds.variables), key=lambda n: _kind(ds, n))
    described = {str(names[0]), str(faces.name), *nodes, *middles}
    points = None
    if len(middles) == 2:
        lat, lon = (_degrees(ds, where, name, name) for name in middles)
        points = lat, lon
    return _of_nodes(
        ds, where, index, (lat_name, lon_name), points, faces.dims, cell_dim, described
    )


def _kind(ds: xr.Dataset, name: str) -> str:
    """What a coordinate is by its attributes, else by its name."""
    attributes = ds[name].attrs
    return (
        str(attributes.get("standard_name") or attributes.get("units") or name)
        .lower()
        .replace("degrees_north", "lat")
        .replace("degrees_east", "lon")
    )


def _mpas(ds: xr.Dataset, where: str) -> MeshSource | None:
    if not {"verticesOnCell", "nEdgesOnCell", "latVertex", "lonVertex"} <= set(ds.variables):
        return None
    table = ds["verticesOnCell"]
    cell_dim = table.dims[0]
    index = np.asarray(table.values, dtype=np.int64) - 1
    number = np.asarray(ds["nEdgesOnCell"].values, dtype=np.int64)
    index = np.where(np.arange(index.shape[1]) < number[:, None], index, -1)
    described = _MPAS_CELLS & {str(name) for name in ds.variables}
    points = None
    if {"latCell", "lonCell"} <= described:
        points = _mpas_degrees(ds, "latCell"), _mpas_degrees(ds, "lonCell")
    nodes = "latVertex", "lonVertex"
    return _of_nodes(ds, where, index, nodes, points, table.dims, cell_dim, described)


def _mpas_degrees(ds: xr.Dataset, name: str) -> Array:
    """MPAS writes radians, mostly without saying so."""
    return np.asarray(np.rad2deg(np.asarray(ds[name].values, dtype=np.float64)))


def _of_nodes(
    ds: xr.Dataset,
    where: str,
    index: NDArray[np.int64],
    nodes: tuple[str, str],
    points: tuple[Array, Array] | None,
    dims: tuple[Hashable, ...],
    cell_dim: Hashable,
    described: set[str],
) -> MeshSource:
    """Cells from the numbers of their nodes, (n, m) from 0, -1 where there is none."""
    lat, lon = (
        _mpas_degrees(ds, name) if name.endswith("Vertex") else _degrees(ds, where, name, name)
        for name in nodes
    )
    if index.max(initial=-1) >= lat.size:
        found = f"node {index.max() + 1} of {lat.size}"
        raise DataError(Problem(where, "connectivity", found, "numbers of nodes that exist"))
    around = [np.where(index < 0, np.nan, values[np.maximum(index, 0)]) for values in (lat, lon)]
    float32 = any(ds[n].dtype == np.float32 for n in nodes)
    points = points or _middles(*around)
    mesh, model = _mesh_of_corners(where, nodes[0], (1, len(index)), points, around, float32)
    extra = (set(dims) | set(ds[nodes[0]].dims)) - {cell_dim}
    extra |= {d for d in ("nEdges", "nVertices", "maxEdges", "maxEdges2") if d in ds.dims}
    return MeshSource(mesh, model, (cell_dim,), frozenset(extra), frozenset(described))


def _rotated(ds: xr.Dataset, where: str) -> MeshSource | None:
    """A grid with axes round another pole, whose cells' own corners the file does not have."""
    mappings = [
        v.attrs
        for v in ds.variables.values()
        if v.attrs.get("grid_mapping_name") == "rotated_latitude_longitude"
    ]
    names = [
        [str(n) for n, v in ds.variables.items() if v.ndim == 1 and is_axis(str(n), v.attrs)]
        for is_axis in (_is_rotated_latitude, _is_rotated_longitude)
    ]
    lats = coordinate_names(ds, "latitude")
    if not mappings or not all(names) or any(_bounds_name(ds, name) for name in lats):
        return None
    given: dict[str, Any] = {}
    for new, name in zip(("lat", "lon"), (names[0][0], names[1][0]), strict=True):
        units = {"units": "degrees_north" if new == "lat" else "degrees_east"}
        given[new] = (new, ds[name].values, units)
        bounds = str(ds[name].attrs.get("bounds", ""))
        if bounds in ds.variables:
            given[f"{new}_bnds"] = ((new, "two"), ds[bounds].values, {})
    axes = grid_of(type(ds)(coords=given), where)
    dims = ds[names[0][0]].dims[0], ds[names[1][0]].dims[0]
    south, north = axes.grid.lat_bnds.T
    rlat = axes.grid.lat
    if axes.lat_descending:
        south, north, rlat = south[::-1], north[::-1], rlat[::-1]
    order = np.argsort(axes.lon_order) if axes.lon_order is not None else slice(None)
    west, east = axes.grid.lon_bnds[order].T
    rows, columns = np.ones((rlat.size, 1)), np.ones((1, west.size))
    pole = mappings[0]
    lat, lon = _unrotated(
        np.stack([south, south, north, north], -1)[:, None] * columns[..., None],
        np.stack([west, east, east, west], -1)[None] * rows[..., None],
        pole,
    )
    middle = _unrotated(rlat[:, None] * columns, axes.grid.lon[order][None] * rows, pole)
    points = middle[0].ravel(), middle[1].ravel()
    shape = rlat.size, west.size
    mesh, model = _mesh_of_corners(where, names[0][0], shape, points, [lat, lon], False)
    described = {*names[0], *names[1], *lats, *coordinate_names(ds, "longitude")}
    described |= {str(n) for n, v in ds.variables.items() if "grid_mapping_name" in v.attrs}
    return MeshSource(mesh, model, dims, frozenset(), frozenset(described))


def _is_rotated_latitude(name: str, attributes: dict[str, Any]) -> bool:
    return name == "rlat" or attributes.get("standard_name") == "grid_latitude"


def _is_rotated_longitude(name: str, attributes: dict[str, Any]) -> bool:
    return name == "rlon" or attributes.get("standard_name") == "grid_longitude"


def _unrotated(rlat: Array, rlon: Array, pole: dict[str, Any]) -> tuple[Array, Array]:
    """Latitude and longitude [degrees] of places on a grid whose pole is elsewhere (CF, app. F)."""
    tilt = np.deg2rad(float(pole["grid_north_pole_latitude"]))
    p = np.deg2rad(rlat)
    q = np.deg2rad(rlon - float(pole.get("north_pole_grid_longitude", 0.0)))
    x = np.cos(p) * np.cos(q) * np.sin(tilt) - np.sin(p) * np.cos(tilt)
    y = np.cos(p) * np.sin(q)
    z = np.sin(p) * np.sin(tilt) + np.cos(p) * np.cos(q) * np.cos(tilt)
    lon = np.rad2deg(np.arctan2(y, x)) + 180.0 + float(pole["grid_north_pole_longitude"])
    return np.rad2deg(np.arctan2(z, np.hypot(x, y))), lon


def _vectors(lat: Array, lon: Array) -> Array:
    p, q = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(p) * np.cos(q), np.cos(p) * np.sin(q), np.sin(p)], axis=-1)


def _middles(lat: Array, lon: Array) -> tuple[Array, Array]:
    """(n,) latitudes and longitudes of the middles of the corners (missing ones left out)."""
    x, y, z = np.nansum(_vectors(lat, lon), axis=1).T
    return np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.rad2deg(np.arctan2(y, x))


def _check(where: str, mesh: Mesh) -> None:
    """DataError for cells without area, larger than a hemisphere, or away from their points."""
    assert mesh.lat_corners is not None
    assert mesh.lon_corners is not None
    area = mesh.cell_area.ravel() / (4.0 * np.pi)
    corners = _vectors(mesh.lat_corners, mesh.lon_corners)
    middle = corners.mean(axis=1)
    reach = np.linalg.norm(corners - middle[:, None], axis=-1).max(axis=1)
    away = np.linalg.norm(_vectors(mesh.lat_points, mesh.lon_points) - middle, axis=-1)
    slack = np.deg2rad(_SNAP_DEGREES)
    for bad, found in (
        (~np.isfinite(area), "corners that are no cell smaller than a hemisphere"),
        (area <= 0.0, "corners without area between them"),
        (away > 1.001 * reach + slack, "a point outside its corners"),
    ):
        cells = np.flatnonzero(bad)
        if cells.size:
            k = int(cells[0])
            place = f"cell {k + 1} at {mesh.lat_points[k]:.4g} N, {mesh.lon_points[k]:.4g} E"
            raise DataError(
                Problem(
                    where,
                    "corners",
                    f"{found} in {cells.size} cells; the first is {place}",
                    "the corners of each cell, in order round it",
                    "Mend the bounds",
                )
            )
