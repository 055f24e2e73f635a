"""Where the land of the Earth is on any grid, and whether a field's land lies there.

A field that is shifted by half a cell, turned upside down or begun at the wrong longitude has good
values and good coordinates; only the coastlines tell. The reference is the 1 km mask GLOBE in cells
of a quarter of a degree (regrid/land_fraction_0.25deg.npz, made by scripts/make_land_fraction).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from callmip_global.data import data_path
from callmip_global.grid import Grid

Array = NDArray[np.float64]

ALIKE = 0.8
"""Correlation of two masks above which they show the same land."""
CLEARLY = 0.1
"""Part of what is missing to a perfect correlation that another place must win to be believed."""
_FEWEST_CELLS = 400
_SOUTH, _NORTH = -60.0, 84.0


@dataclass(frozen=True)
class Placement:
    """How a mask lies on the Earth: correlation with its land as it is, and at the best place.

    ``words``: that place (``shift of +1/2 cell in longitude``); empty where the mask is right.
    """

    here: float
    best: float
    words: str

    @property
    def is_earth(self) -> bool:
        """Whether the mask shows the Earth's land where it is."""
        return self.here >= ALIKE

    @property
    def misplaced(self) -> bool:
        """Whether another place fits, and clearly better."""
        return self.best >= ALIKE and self.best - self.here > CLEARLY * (1.0 - self.here)


def earth_land(grid: Grid) -> Array:
    """(nlat, nlon) land fraction of the cells of a grid."""
    return _land(np.stack([grid.lat_edges[:-1], grid.lat_edges[1:]]), grid.lon_edges)


def _land(lat_edges: Array, lon_edges: Array) -> Array:
    """(nlat, nlon) land fraction between (south, north) edges (2, nlat) and (nlon + 1,) edges.

    Latitudes beyond the poles count as the poles; longitudes may lie anywhere and may descend.
    """
    table = _cumulated()
    edges = (np.sin(np.deg2rad(np.linspace(-90, 90, table.shape[0]))) + 1.0) / 2.0
    turns = (lon_edges + 180.0) / 360.0
    columns = (turns - np.floor(turns)) * (table.shape[1] - 1)
    left = np.minimum(columns.astype(np.intp), table.shape[1] - 2)
    part = columns - left
    upto = []
    rows = (np.sin(np.deg2rad(np.clip(lat_edges, -90, 90))) + 1.0) / 2.0
    for row in rows:
        # Between two edges of the table the land of a strip grows evenly with its area.
        lower = np.clip(np.searchsorted(edges, row, side="right") - 1, 0, edges.size - 2)
        share = ((row - edges[lower]) / (edges[lower + 1] - edges[lower]))[:, None]
        strips = (1 - share) * table[lower] + share * table[lower + 1]
        found = (1 - part) * strips[:, left] + part * strips[:, left + 1]
        upto.append(found + np.floor(turns) * strips[:, -1:])
    land = np.diff(upto[1] - upto[0], axis=1)
    area = (rows[1] - rows[0])[:, None] * np.diff(turns)
    fraction = np.divide(land, area, out=np.zeros_like(land), where=area != 0)
    return np.asarray(np.clip(fraction, 0.0, 1.0))


@cache
def _cumulated() -> Array:
    """(721, 1441) land from the south pole and 180 W up to each edge, as a share of the sphere."""
    with np.load(data_path("regrid", "land_fraction_0.25deg.npz")) as kept:
        fraction = kept["percent"] / 100.0
    rows = np.diff(np.sin(np.deg2rad(np.linspace(-90, 90, fraction.shape[0] + 1)))) / 2.0
    out = np.zeros((fraction.shape[0] + 1, fraction.shape[1] + 1))
    out[1:, 1:] = np.cumsum(np.cumsum(fraction * (rows[:, None] / fraction.shape[1]), 0), 1)
    return out


def placement(mask: NDArray[np.bool_], grid: Grid) -> Placement | None:
    """Where a mask (nlat, nlon) of a grid lies on the Earth.

    None without evidence: a grid that does not go round the Earth or has too few cells, a mask that
    is everywhere or nowhere. Only latitudes that every model has count (60 S to 84 N).
    """
    span = grid.lat_edges[-1] - grid.lat_edges[0]
    around = grid.lon_edges[-1] - grid.lon_edges[0] > 359.9
    if not around or span < 120.0 or mask.size < _FEWEST_CELLS:
        return None
    rows = (grid.lat >= _SOUTH) & (grid.lat <= _NORTH)
    if rows.sum() < 4 or mask[rows].all() or not mask[rows].any():
        return None
    held = mask[rows].astype(np.float64)
    weights = np.sqrt(grid.cell_area[rows])
    lat_edges = np.stack([grid.lat_edges[:-1], grid.lat_edges[1:]])[:, rows]
    here = _likeness(held, _land(lat_edges, grid.lon_edges), weights)
    best, words = here, ""
    for said, lats, lons in _elsewhere(lat_edges, grid.lon_edges):
        other = _likeness(held, _land(lats, lons), weights)
        if other > best:
            best, words = other, said
    return Placement(here, best, words)


def _elsewhere(lat_edges: Array, lon_edges: Array) -> Iterator[tuple[str, Array, Array]]:
    """(words, edges) of the places where misplaced fields have been seen to belong."""
    wide = float(np.median(np.diff(lon_edges)))
    high = float(np.median(lat_edges[1] - lat_edges[0]))
    steps = ((-1.0, "-1 cell"), (-0.5, "-1/2 cell"), (0.5, "+1/2 cell"), (1.0, "+1 cell"))
    for cells, text in steps:
        yield f"a shift of {text} in longitude", lat_edges, lon_edges + cells * wide
        yield f"a shift of {text} in latitude", lat_edges + cells * high, lon_edges
    flipped = -lat_edges[::-1]
    turned = lon_edges + 180.0
    yield "north and south swapped", flipped, lon_edges
    yield "a shift of 180 degrees in longitude", lat_edges, turned
    yield "north and south swapped and a shift of 180 degrees in longitude", flipped, turned
    yield "east and west swapped", lat_edges, -lon_edges


def _likeness(held: Array, land: Array, weights: Array) -> float:
    """Correlation of a mask with the land fraction, or with as many of the cells with most land.

    Nobody says above which fraction a cell counts as land; the number of cells tells it.
    """
    cells = int(held.sum())
    least = np.partition(land.ravel(), land.size - cells)[land.size - cells]
    counted = (land >= max(float(least), 1e-9)).astype(np.float64)
    return max(_correlation(held, land, weights), _correlation(held, counted, weights))


def _correlation(a: Array, b: Array, weights: Array) -> float:
    total = weights.sum()
    da, db = a - (a * weights).sum() / total, b - (b * weights).sum() / total
    spread = float((weights * da * da).sum() * (weights * db * db).sum())
    return float((weights * da * db).sum()) / np.sqrt(spread) if spread > 0 else 0.0
