"""The demonstration model's surface file: Gaussian grid, land fraction, continentality.

The land mask is the one of the package ``global-land-mask`` (GLOBE, 1 km). It is read as a stream:
importing that package would unpack 933 MB of memory, which a laptop or a small queue may not have.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from callmip_global.demo import SYNTHETIC

Array = NDArray[np.float64]

# Forcing data of land models end at 60 S, and so does this world: no Antarctica.
_SOUTHERN_END = -60.0
# Every sixth row and fourth column of the 1 km mask: some hundred points in the smallest cell.
_ROW_STEP, _COLUMN_STEP = 6, 4
_SMOOTHING_DEGREES = 15.0


def gaussian_grid(nlat: int, nlon: int) -> tuple[Array, Array, Array]:
    """Latitudes north to south (nlat,), their edges (nlat + 1,) and longitudes from 0 (nlon,).

    Edges are where the cumulated Gauss weights are: sin(edge) falls by a weight per row.
    """
    nodes, weights = np.polynomial.legendre.leggauss(nlat)
    lat = np.rad2deg(np.arcsin(nodes[::-1]))
    edges = np.rad2deg(np.arcsin(np.clip(1.0 - np.concatenate([[0.0], np.cumsum(weights)]), -1, 1)))
    lon = np.arange(nlon, dtype=np.float64) * (360.0 / nlon)
    return np.asarray(lat), np.asarray(edges), lon


def land_fraction(lat_edges: Array, nlon: int) -> Array:
    """Land fraction (nlat, nlon) of cells with ``lat_edges`` falling, first longitude centred on 0.

    Rounded to 1e-4; cells with less than 0.5 % land count as sea, and so does all south of 60 S.
    """
    hits = np.zeros((len(lat_edges) - 1, nlon))
    points = np.zeros(len(lat_edges) - 1)
    column: NDArray[np.intp] | None = None
    for centre, sea in _mask_rows():
        if column is None:
            east = (np.arange(sea.size) + 0.5) * (360.0 / sea.size) - 180.0
            column = np.floor((east + 180.0 / nlon) % 360.0 / (360.0 / nlon)).astype(np.intp)
            per_column = np.bincount(column, minlength=nlon)
        row = int(np.searchsorted(-lat_edges, -centre, side="right")) - 1
        hits[row] += np.bincount(column, weights=~sea, minlength=nlon) / per_column
        points[row] += 1
    fraction = np.round(hits / points[:, None], 4)
    fraction[fraction < 0.005] = 0.0
    fraction[0.5 * (lat_edges[1:] + lat_edges[:-1]) < _SOUTHERN_END] = 0.0
    return np.asarray(fraction)


def _mask_rows() -> Iterator[tuple[float, NDArray[np.bool_]]]:
    """Latitude and sea flags (True is sea; from 180 W) of every sixth row, from the north."""
    spec = find_spec("global_land_mask")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package global-land-mask is missing: pip install it")
    archive = Path(spec.origin).with_name("globe_combined_mask_compressed.npz")
    with zipfile.ZipFile(archive) as files, files.open("mask.npy") as stream:
        npy_format.read_magic(stream)
        (rows, columns), _, _ = npy_format.read_array_header_1_0(stream)
        for row in range(rows):
            line = stream.read(columns)
            if row % _ROW_STEP == 0:
                yield 90.0 - (row + 0.5) * 180.0 / rows, np.frombuffer(line, bool)[::_COLUMN_STEP]


def continentality(fraction: Array, lat: Array) -> Array:
    """0 on islands .. 1 in the interior of Eurasia: land fraction smoothed over some 1600 km."""
    nlon = fraction.shape[1]
    apart = np.abs((np.arange(nlon) * (360.0 / nlon) + 180.0) % 360.0 - 180.0)
    around = np.empty_like(fraction)
    for row, latitude in enumerate(lat):
        kernel = np.exp(-((apart * np.cos(np.deg2rad(latitude)) / _SMOOTHING_DEGREES) ** 2))
        spectrum = np.fft.rfft(fraction[row]) * np.fft.rfft(kernel / kernel.sum())
        around[row] = np.fft.irfft(spectrum, nlon)
    across = np.exp(-(((lat[:, None] - lat) / _SMOOTHING_DEGREES) ** 2)) * np.cos(np.deg2rad(lat))
    smooth = (across / across.sum(axis=1, keepdims=True)) @ around
    return np.asarray(np.round(np.clip((smooth - 0.2) / 0.75, 0.0, 1.0), 4))


def write_surface(path: Path, *, nlat: int, nlon: int, recipe: str) -> None:
    """Write the surface file, by one rename; ``recipe`` is a hash of how it was made."""
    import netCDF4

    lat, edges, lon = gaussian_grid(nlat, nlon)
    fraction = land_fraction(edges, nlon)
    temporary = path.with_name(f".{path.name}.tmp")
    with netCDF4.Dataset(temporary, "w") as file:
        file.setncatts({"title": "Surface of the demonstration model", "comment": SYNTHETIC})
        file.source = "land mask of the package global-land-mask (GLOBE, 1 km), no Antarctica"
        file.recipe = recipe
        file.createDimension("lat", nlat)
        file.createDimension("lon", nlon)
        for name, values, dims, units, words in (
            ("lat", lat, ("lat",), "degrees_north", "latitude of cell centres, Gaussian"),
            ("lon", lon, ("lon",), "degrees_east", "longitude of cell centres"),
            ("land_frac", fraction, ("lat", "lon"), "1", "fraction of the cell that is land"),
            ("interior", continentality(fraction, lat), ("lat", "lon"), "1", "continentality"),
        ):
            variable = file.createVariable(name, "f8", dims, zlib=len(dims) == 2)
            variable.setncatts({"units": units, "long_name": words})
            variable[...] = values
    temporary.replace(path)
