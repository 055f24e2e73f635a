"""Cells on the sphere for tests: corners (n, m) in degrees, made from unit vectors."""

from __future__ import annotations

import numpy as np
import xarray as xr

from callmip_global.regrid import Mesh

Corners = tuple[np.ndarray, np.ndarray]


def turned(vectors: np.ndarray, seed: int | None) -> np.ndarray:
    """Unit vectors (..., 3) turned at random (not at all without a seed)."""
    if seed is None:
        return vectors
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return np.asarray(vectors @ q.T)


def corners_of(vectors: np.ndarray) -> Corners:
    """lat, lon (...) [degrees] of vectors (..., 3)."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.rad2deg(np.arctan2(z, np.hypot(x, y))), np.rad2deg(np.arctan2(y, x))


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def cubed_sphere(n: int, seed: int | None = None) -> Corners:
    """Equiangular cubed sphere, 6 n^2 cells of 4 corners; poles are corners for even n."""
    t = np.tan(np.linspace(-np.pi / 4, np.pi / 4, n + 1))
    a, b = np.meshgrid(t, t)
    one = np.ones_like(a)
    faces = [(one, a, b), (-a, one, b), (-one, -a, b), (a, -one, b), (-b, a, one), (b, a, -one)]
    cells = []
    for face in faces:
        v = turned(unit(np.stack(face, axis=-1)), seed)
        quads = np.stack([v[:-1, :-1], v[:-1, 1:], v[1:, 1:], v[1:, :-1]], axis=2)
        cells.append(quads.reshape(-1, 4, 3))
    return corners_of(np.concatenate(cells))


def icosahedral(levels: int, root: int = 1, seed: int | None = None) -> Corners:
    """Triangles of a subdivided icosahedron (ICON R<root>B<levels>): 20 root^2 4^levels cells."""
    golden = 0.5 * (1 + np.sqrt(5))
    third = [(-1, golden, 0), (1, golden, 0), (-1, -golden, 0), (1, -golden, 0)]
    others = [(c, a, b) for a, b, c in third] + [(b, c, a) for a, b, c in third]
    v = unit(np.array(third + others, float))
    d = np.linalg.norm(v[:, None] - v[None], axis=-1)
    near = (d > 0) & (d < 1.1 * d[d > 0].min())
    faces = [
        (i, j, k)
        for i in range(12)
        for j in range(i + 1, 12)
        for k in range(j + 1, 12)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    triangles = v[np.array(faces)]
    n = root * 2**levels
    a, b, c = (triangles[:, None, i] for i in range(3))
    cells = []
    for up in (True, False):
        pairs = [(i, j) for i in range(n) for j in range(n - i - (not up))]
        i, j = np.array(pairs, dtype=int).reshape(-1, 2).T
        shift = ((0, 0), (1, 0), (0, 1)) if up else ((1, 0), (1, 1), (0, 1))
        points = [
            (a * (n - i - di - j - dj)[None, :, None] + b * (i + di)[None, :, None])
            + c * (j + dj)[None, :, None]
            for di, dj in shift
        ]
        cells.append(np.stack(points, axis=2).reshape(-1, 3, 3))
    return corners_of(turned(unit(np.concatenate(cells)), seed))


def hexagonal(levels: int, seed: int | None = None) -> Corners:
    """The dual of ``icosahedral`` (as MPAS has it): 12 pentagons, padded, among hexagons."""
    lat, lon = icosahedral(levels)
    x = np.cos(np.deg2rad(lat)) * np.cos(np.deg2rad(lon))
    y = np.cos(np.deg2rad(lat)) * np.sin(np.deg2rad(lon))
    corners = np.stack([x, y, np.sin(np.deg2rad(lat))], axis=-1)
    keys, index = np.unique(np.round(corners.reshape(-1, 3), 9), axis=0, return_inverse=True)
    index = index.reshape(-1, 3)
    centres = unit(corners.sum(axis=1))
    order = np.argsort(index.ravel(), kind="stable")
    counts = np.bincount(index.ravel())
    starts = np.concatenate([[0], np.cumsum(counts)])
    cells = np.empty((len(keys), 6, 3))
    for k, key in enumerate(keys):
        around = centres[order[starts[k] : starts[k + 1]] // 3]
        east = unit(np.cross(key + 0.1 * np.array([key[1], key[2], key[0]]), key))
        north = np.cross(key, east)
        around = around[np.argsort(np.arctan2(around @ north, around @ east))]
        cells[k] = np.concatenate([around, np.repeat(around[-1:], 6 - len(around), axis=0)])
    return corners_of(turned(cells, seed))


def rotated_pole(n_lat: int, n_lon: int, lat: float, lon: float) -> Corners:
    """A regular grid of the whole globe whose north pole is at ``lat``, ``lon``."""
    p, q = np.deg2rad(np.linspace(-90, 90, n_lat + 1)), np.deg2rad(np.linspace(0, 360, n_lon + 1))
    v = np.stack(
        [
            np.cos(p)[:, None] * np.cos(q)[None],
            np.cos(p)[:, None] * np.sin(q)[None],
            np.repeat(np.sin(p)[:, None], n_lon + 1, 1),
        ],
        axis=-1,
    )
    # The seam and the poles must have the same bits from both sides.
    v[:, -1], v[0], v[-1] = v[:, 0], (0, 0, -1), (0, 0, 1)
    tilt, spin = np.deg2rad(90 - lat), np.deg2rad(lon)
    about_y = np.array(
        [[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]]
    )
    about_z = np.array(
        [[np.cos(spin), -np.sin(spin), 0], [np.sin(spin), np.cos(spin), 0], [0, 0, 1]]
    )
    v = v @ (about_z @ about_y).T
    quads = np.stack([v[:-1, :-1], v[:-1, 1:], v[1:, 1:], v[1:, :-1]], axis=2)
    return corners_of(quads.reshape(-1, 4, 3))


def boxes(lat_edges: np.ndarray, lon_edges: np.ndarray) -> Corners:
    """The cells of a rectilinear grid as boxes, row by row."""
    s, w = np.meshgrid(lat_edges[:-1], lon_edges[:-1], indexing="ij")
    n, e = np.meshgrid(lat_edges[1:], lon_edges[1:], indexing="ij")
    lat = np.stack([s, s, n, n], axis=-1).reshape(-1, 4)
    return lat, np.stack([w, e, e, w], axis=-1).reshape(-1, 4)


def mesh_of(corners: Corners, parallels: bool = False) -> Mesh:
    lat, lon = corners
    x = np.cos(np.deg2rad(lat)) * np.cos(np.deg2rad(lon))
    y = np.cos(np.deg2rad(lat)) * np.sin(np.deg2rad(lon))
    middle = np.stack([x, y, np.sin(np.deg2rad(lat))], axis=-1).sum(axis=1)
    return Mesh((1, len(lat)), *corners_of(unit(middle)), lat, lon, parallels=parallels)


def mesh_file(
    corners: Corners,
    units: str = "degrees",
    shape: tuple[int, ...] | None = None,
    gaps: bool = False,
) -> xr.Dataset:
    """A smooth field, two steps, on cells with CF bounds; ``shape`` of two: curvilinear."""
    mesh = mesh_of(corners)
    lat, lon = mesh.lat_points, mesh.lon_points
    shape = shape or (lat.size,)
    dims = ("cell",) if len(shape) == 1 else ("j", "i")
    factor = np.pi / 180 if units.startswith("rad") else 1.0
    smooth = 2.0 + np.cos(np.deg2rad(lat)) ** 2 * np.cos(2.0 * np.deg2rad(lon))
    values = np.stack([smooth, 2.0 * smooth]).reshape(2, *shape)
    if gaps:
        values[np.random.default_rng(2).random(values.shape) < 0.2] = np.nan
    attributes = {"units": "kg m-2 s-1", "coordinates": "lat lon"}
    ds = xr.Dataset(
        {"gpp": (("time", *dims), values, attributes)},
        coords={"time": ("time", [15.0, 45.0], {"units": "days since 2000-01-01"})},
    )
    for name, standard, points, around in (
        ("lat", "latitude", lat, corners[0]),
        ("lon", "longitude", lon, corners[1]),
    ):
        attributes = {"standard_name": standard, "units": units, "bounds": f"{name}_vertices"}
        ds[name] = (dims, (points * factor).reshape(shape), attributes)
        ds[f"{name}_vertices"] = ((*dims, "nv"), (around * factor).reshape(*shape, -1))
    return ds
