"""Regions that scores are summarised over, with exact shares of the cells they cut."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from callmip_global.errors import Problem, UsageError
from callmip_global.grid import Grid

TROPIC_DEG = 23.5
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Region:
    """``south`` to ``north`` in degrees_north, and ``width`` degrees eastwards from ``west`` in
    degrees_east: all around the earth unless said otherwise."""

    name: str
    title: str
    south: float
    north: float
    west: float = -180.0
    width: float = 360.0


REGIONS: dict[str, Region] = {
    region.name: region
    for region in (
        Region("global", "Global", -90.0, 90.0),
        Region("nh", "Northern Hemisphere", 0.0, 90.0),
        Region("sh", "Southern Hemisphere", -90.0, 0.0),
        Region("tropics", "Tropics 23.5°S–23.5°N", -TROPIC_DEG, TROPIC_DEG),
        Region("nh_temperate", "Northern mid-latitudes 23.5–50°N", TROPIC_DEG, 50.0),
        Region("nh_boreal", "Northern high latitudes 50–90°N", 50.0, 90.0),
        Region("sh_extratropics", "Southern extratropics 23.5–90°S", -90.0, -TROPIC_DEG),
    )
}


def select_regions(names: Sequence[str]) -> tuple[Region, ...]:
    """The regions of these names, in this order, each once.

    ``NAME=SOUTH,NORTH,WEST,EAST`` is a box in degrees north and east; one whose west is east of its
    east goes across the date line. UsageError lists the known names, or says what a box lacks.
    """
    chosen: dict[str, Region] = {}
    unknown = []
    for text in names:
        if "=" in text:
            region = _box(text)
            if chosen.get(region.name, region) != region:
                raise UsageError(
                    Problem("regions", found=f"{region.name} twice", wanted="a name for each box")
                )
        elif text in REGIONS:
            region = REGIONS[text]
        else:
            unknown.append(text)
            continue
        chosen[region.name] = region
    if unknown or not chosen:
        known = f"{', '.join(REGIONS)}, or NAME=SOUTH,NORTH,WEST,EAST"
        raise UsageError(Problem("regions", found=", ".join(unknown) or "none", wanted=known))
    return tuple(chosen.values())


def _box(text: str) -> Region:
    name, _, numbers = text.partition("=")
    try:
        edges = [float(number) for number in numbers.split(",")]
    except ValueError:
        edges = []
    wanted = ""
    if len(edges) != 4 or not all(math.isfinite(edge) for edge in edges):
        wanted = "NAME=SOUTH,NORTH,WEST,EAST in degrees, such as europe=35,70,-10,40"
    elif _NAME.fullmatch(name) is None or name in REGIONS:
        wanted = "a name of letters, digits, . _ and - that no other region has"
    elif not -90.0 <= edges[0] < edges[1] <= 90.0:
        wanted = "-90 <= SOUTH < NORTH <= 90"
    elif not all(-360.0 <= edge <= 360.0 for edge in edges[2:]) or edges[2] == edges[3]:
        wanted = "WEST and EAST apart, both within -360 and 360"
    if wanted:
        raise UsageError(Problem("regions", found=text, wanted=wanted))
    south, north, west, east = edges
    around = (east - west) % 360.0 or 360.0
    title = f"{name} {south:g} to {north:g}°N, {west:g} to {east:g}°E"
    return Region(name, title, south, north, west, around)


def region_area(region: Region, grid: Grid) -> np.ndarray:
    """(nlat, nlon) float64, m2: area of each cell that lies inside the region.

    A cell that an edge cuts counts with its share in sin(latitude) and in longitude, so a region
    has the same area on every grid.
    """
    edges = np.asarray(grid.lat_edges, dtype=np.float64)
    inside = np.clip(edges, region.south, region.north)
    band = np.diff(np.sin(np.deg2rad(inside)))
    whole = np.diff(np.sin(np.deg2rad(edges)))
    area = grid.cell_area * (band / whole)[:, None]
    if region.width < 360.0:
        area = area * _shares_of_longitude(region, np.asarray(grid.lon_edges, np.float64))
    return np.asarray(area, dtype=np.float64)


def _shares_of_longitude(region: Region, edges: np.ndarray) -> np.ndarray:
    """(nlon,) share of each column between the region's west and east, however far around."""
    # Seen from the region's west: it is 0 to width, and again a whole turn on either side.
    lower = (edges[:-1] - region.west) % 360.0
    size = np.diff(edges)
    inside = np.zeros_like(size)
    for turn in (0.0, 360.0):
        top = np.minimum(lower + size, region.width + turn)
        inside += np.clip(top - np.maximum(lower, turn), 0.0, None)
    return np.asarray(inside / size)
