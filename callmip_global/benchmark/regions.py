"""Regions that scores are summarised over, with exact shares of the cells they cut."""

from __future__ import annotations

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from callmip_global.benchmark.masks import MapFile, plain_name, read_map
from callmip_global.benchmark.overlap import Array, polygon_shares
from callmip_global.data import data_path
from callmip_global.errors import Problem, UsageError
from callmip_global.files import home_path
from callmip_global.grid import Grid, sine_difference

TROPIC_DEG = 23.5
IPCC = "ipcc"
"""The name that stands for all land regions of the IPCC's Sixth Assessment Report."""
KNOWN_AS = (
    "NAME=SOUTH,NORTH,WEST,EAST in degrees, such as europe=35,70,-10,40, or NAME=FILE.nc[:VARIABLE]"
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_FILE = re.compile(r"(?P<path>.+\.(?:nc|nc4|cdf|h5|hdf5))(?::(?P<variable>[^:/]+))?", re.IGNORECASE)
# Shares nearer to none or all of a cell are that, but for the rounding of sines.
_ROUNDING = 1e-11


@dataclass(frozen=True)
class Region(ABC):
    """A part of the sphere. ``source``, ``licence``: of what its outline is taken from."""

    name: str
    title: str
    source: str = field(default="", kw_only=True)
    licence: str = field(default="", kw_only=True)

    @abstractmethod
    def shares(self, grid: Grid) -> Array:
        """(nlat, nlon) share of the area of each cell that lies inside, to rounding."""

    @abstractmethod
    def definition(self) -> dict[str, Any]:
        """All that the shares follow from, as JSON can hold it: equal for equal regions."""

    def entry(self) -> dict[str, str]:
        """What benchmark.json says of the region."""
        parts = {"source": self.source, "licence": self.licence}
        return {"name": self.name, "title": self.title} | {k: v for k, v in parts.items() if v}


@dataclass(frozen=True)
class Box(Region):
    """``south`` to ``north`` in degrees_north, and ``width`` degrees eastwards from ``west`` in
    degrees_east: all around the earth unless said otherwise."""

    south: float
    north: float
    west: float = -180.0
    width: float = 360.0

    def shares(self, grid: Grid) -> Array:
        edges = np.asarray(grid.lat_edges, dtype=np.float64)
        inside = np.clip(edges, self.south, self.north)
        rows = sine_difference(inside[:-1], inside[1:]) / sine_difference(edges[:-1], edges[1:])
        return np.asarray(rows[:, None] * self._columns(np.asarray(grid.lon_edges, np.float64)))

    def _columns(self, edges: Array) -> Array:
        """(nlon,) share of each column between west and east, however far around."""
        size = np.diff(edges)
        if self.width >= 360.0:
            return np.ones_like(size)
        # Seen from the region's west: it is 0 to width, and again a whole turn on either side.
        lower = (edges[:-1] - self.west) % 360.0
        inside = np.zeros_like(size)
        for turn in (0.0, 360.0):
            top = np.minimum(lower + size, self.width + turn)
            inside += np.clip(top - np.maximum(lower, turn), 0.0, None)
        return np.asarray(inside / size)

    def definition(self) -> dict[str, Any]:
        return {"name": self.name, "box": [self.south, self.north, self.west, self.width]}


@dataclass(frozen=True)
class Polygon(Region):
    """Rings of corners (degrees_east, degrees_north); see ``overlap.polygon_shares``."""

    rings: tuple[tuple[tuple[float, float], ...], ...]

    def shares(self, grid: Grid) -> Array:
        return polygon_shares(self.rings, grid)

    def definition(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rings": [[list(corner) for corner in ring] for ring in self.rings],
        }


@dataclass(frozen=True)
class Mask(Region):
    """The shares of a file, or the cells of one label of it."""

    file: MapFile = field(repr=False)
    label: int | None = None

    def shares(self, grid: Grid) -> Array:
        return self.file.shares(self.label, grid)

    def definition(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "sha256": self.file.sha256,
            "variable": self.file.variable,
            "label": self.label,
        }

    def entry(self) -> dict[str, str]:
        return super().entry() | {"sha256": self.file.sha256}


REGIONS: dict[str, Region] = {
    region.name: region
    for region in (
        Box("global", "Global", -90.0, 90.0),
        Box("nh", "Northern Hemisphere", 0.0, 90.0),
        Box("sh", "Southern Hemisphere", -90.0, 0.0),
        Box("tropics", "Tropics 23.5°S–23.5°N", -TROPIC_DEG, TROPIC_DEG),
        Box("nh_temperate", "Northern mid-latitudes 23.5–50°N", TROPIC_DEG, 50.0),
        Box("nh_boreal", "Northern high latitudes 50–90°N", 50.0, 90.0),
        Box("sh_extratropics", "Southern extratropics 23.5–90°S", -90.0, -TROPIC_DEG),
    )
}


@cache
def ipcc_regions() -> dict[str, Region]:
    """The 46 land regions of Iturbide et al. (2020) by their acronyms, in the source's order."""
    text = data_path("config", "regions", "ipcc-ar6-land.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    return {
        name: Polygon(
            name,
            f"{entry['title']} ({name})",
            tuple(tuple((float(lon), float(lat)) for lon, lat in ring) for ring in entry["rings"]),
            source=f"{content['title']}, version {content['version']}: {content['source']}",
            licence=content["licence"],
        )
        for name, entry in content["regions"].items()
    }


def select_regions(names: Sequence[str]) -> tuple[Region, ...]:
    """The regions of these names, in this order, each once.

    A name of ``REGIONS``, the acronym of a land region of the IPCC, or ``ipcc`` for all of them.
    ``NAME=SOUTH,NORTH,WEST,EAST`` is a box in degrees north and east; one whose west is east of its
    east goes across the date line. ``NAME=FILE.nc:VARIABLE`` is a field of shares, or a map of
    labels, each of them a region NAME-LABEL; the variable may be left out where the file has one
    map. UsageError lists the known names, or says what a box or a file lacks.
    """
    chosen: dict[str, Region] = {}
    unknown = []
    for text in names:
        found = list(_found(text))
        if not found:
            unknown.append(text)
        for region in found:
            there = chosen.setdefault(region.name, region)
            if there.definition() != region.definition():
                raise UsageError(
                    Problem(
                        "regions", found=f"{region.name} twice", wanted="a name for each region"
                    )
                )
    if unknown or not chosen:
        known = (
            f"{', '.join(REGIONS)}, {IPCC} (all land regions of the IPCC's AR6) or the acronym of"
            f" one of them, {KNOWN_AS}"
        )
        remedy = " ".join(filter(None, map(_near, unknown)))
        raise UsageError(
            Problem("regions", found=", ".join(unknown) or "none", wanted=known, remedy=remedy)
        )
    return tuple(chosen.values())


def seen_from(folder: Path, text: str) -> tuple[str, Path | None]:
    """A text for ``select_regions`` with the path of its file absolute, as seen from a folder, and
    that path; None where it names no file."""
    name, _, of = text.partition("=")
    file = _FILE.fullmatch(of)
    if file is None:
        return text, None
    path = folder / home_path(file["path"])
    variable = f":{file['variable']}" if file["variable"] else ""
    return f"{name}={path}{variable}", path


def _found(text: str) -> Iterator[Region]:
    """What one text stands for; nothing if it is no name."""
    name, equals, of = text.partition("=")
    if not equals:
        if text in REGIONS:
            yield REGIONS[text]
        elif text == IPCC:
            yield from ipcc_regions().values()
        elif text in ipcc_regions():
            yield ipcc_regions()[text]
        return
    if _NAME.fullmatch(name) is None or name in (IPCC, *REGIONS, *ipcc_regions()):
        wanted = "a name of letters, digits, . _ and - that no other region has"
        raise UsageError(Problem("regions", found=text, wanted=wanted))
    file = _FILE.fullmatch(of)
    if file is None:
        yield _box(text, name, of)
    else:
        yield from _masks(name, home_path(file["path"]), file["variable"])


def _near(text: str) -> str:
    """A hint at the name that was perhaps meant; empty if none is near."""
    known = {name.lower(): name for name in (IPCC, *REGIONS, *ipcc_regions())}
    near = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.6)
    return f"Did you mean {known[near[0]]}?" if near else ""


def _box(text: str, name: str, numbers: str) -> Region:
    try:
        edges = [float(number) for number in numbers.split(",")]
    except ValueError:
        edges = []
    wanted = ""
    if len(edges) != 4 or not all(math.isfinite(edge) for edge in edges):
        wanted = KNOWN_AS
    elif not -90.0 <= edges[0] < edges[1] <= 90.0:
        wanted = "-90 <= SOUTH < NORTH <= 90"
    elif not all(-360.0 <= edge <= 360.0 for edge in edges[2:]) or edges[2] == edges[3]:
        wanted = "WEST and EAST apart, both within -360 and 360"
    if wanted:
        raise UsageError(Problem("regions", found=text, wanted=wanted))
    south, north, west, east = edges
    around = (east - west) % 360.0 or 360.0
    title = f"{name} {south:g} to {north:g}°N, {west:g} to {east:g}°E"
    return Box(name, title, south, north, west, around)


def _masks(name: str, path: Path, variable: str | None) -> Iterator[Region]:
    file = read_map(path, variable)
    source, licence = f"{path}:{file.variable}", file.licence
    if not file.names:
        yield Mask(name, f"{name} ({path.name})", file, source=source, licence=licence)
        return
    names = {label: f"{name}-{plain_name(text)}" for label, text in file.names.items()}
    if len(set(names.values())) < len(names):
        found = f"labels {', '.join(file.names.values())}"
        raise UsageError(
            Problem(f"{path}:{file.variable}", found=found, wanted="each label to have its name")
        )
    for label, own in names.items():
        yield Mask(own, f"{name}: {file.names[label]}", file, label, source=source, licence=licence)


def region_area(region: Region, grid: Grid) -> Array:
    """(nlat, nlon) float64, m2: area of each cell that lies inside the region.

    A cell that the outline cuts counts with its share in sin(latitude) and in longitude, so a
    region has the same area on every grid.
    """
    shares = np.clip(region.shares(grid), 0.0, 1.0)
    shares[shares < _ROUNDING] = 0.0
    shares[shares > 1.0 - _ROUNDING] = 1.0
    return np.asarray(shares * grid.cell_area)
