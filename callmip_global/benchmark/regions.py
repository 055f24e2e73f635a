"""Latitude bands that scores are summarised over, with exact shares of the cells they cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from callmip_global.errors import Problem, UsageError
from callmip_global.grid import Grid

TROPIC_DEG = 23.5


@dataclass(frozen=True)
class Region:
    """A band of latitude, ``south`` to ``north`` in degrees_north."""

    name: str
    title: str
    south: float
    north: float


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
    """The regions of these names, in this order; UsageError lists the known names."""
    unknown = [name for name in names if name not in REGIONS]
    if unknown or not names:
        raise UsageError(
            Problem("regions", found=", ".join(unknown) or "none", wanted=", ".join(REGIONS))
        )
    return tuple(REGIONS[name] for name in dict.fromkeys(names))


def region_area(region: Region, grid: Grid) -> np.ndarray:
    """(nlat, nlon) float64, m2: area of each cell that lies inside the band.

    A cell that the band's edge cuts counts with its share in sin(latitude), so a region has the
    same area on every grid.
    """
    edges = np.asarray(grid.lat_edges, dtype=np.float64)
    inside = np.clip(edges, region.south, region.north)
    band = np.diff(np.sin(np.deg2rad(inside)))
    whole = np.diff(np.sin(np.deg2rad(edges)))
    return np.asarray(grid.cell_area * (band / whole)[:, None], dtype=np.float64)
