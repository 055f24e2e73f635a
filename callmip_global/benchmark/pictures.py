"""Maps as small PNG images: equal-area projection, colours that everyone can tell apart.

Pure numpy and zlib, so that the same map gives the same bytes on every machine.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Ramps of monotone lightness (sequential) or symmetrical about a pale middle (diverging); both
# keep their order for all common kinds of colour blindness.
RAMPS: dict[str, tuple[str, ...]] = {
    "sequential": ("#f4ecc2", "#c4d79b", "#7fbf9a", "#3f9fa0", "#26759b", "#2a4a85", "#2b1f55"),
    "diverging": ("#1d4e7a", "#4a8ab5", "#9cc3d9", "#f3f0e8", "#efbd86", "#cf7a35", "#7f3b08"),
    "change": ("#0d5c54", "#45a094", "#a5d4ca", "#f4f1ea", "#dcb7d6", "#a866a5", "#5b2160"),
}
_LEVELS = 120
_OUTSIDE, _MISSING, _FIRST = 0, 1, 2
_DOT = _FIRST + _LEVELS
_MISSING_RGBA = (128, 134, 142, 44)
_DOT_RGBA = (16, 24, 29, 225)
# Pixels from one dot to the next, and across a dot.
_DOT_STEP, _DOT_SIZE = 8, 2

_MADE_BY = b"Software\0callmip-global"
_HEAD_BYTES = 128

# Equal Earth projection: Savric, Patterson & Jenny (2018), doi:10.1080/13658816.2018.1504949.
_A = (1.340264, -0.081106, 0.000893, 0.003796)
_M = math.sqrt(3.0) / 2.0


@dataclass(frozen=True)
class Scale:
    """What the colours mean: ``low`` to ``high`` in the map's units; beyond, the end colours."""

    ramp: str
    low: float
    high: float

    def css(self) -> str:
        """The ramp as a CSS gradient, for the legend."""
        return f"linear-gradient(90deg, {', '.join(RAMPS[self.ramp])})"


def nice_limit(value: float) -> float:
    """The next larger of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    if not value > 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(s * power for s in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if s * power >= value * 0.999)


def range_scale(maps: list[Array]) -> Scale:
    """One scale for several maps of a quantity: from 0, or about 0 if much of it is negative.

    Fields far from 0 (temperatures) get a scale between their own rounded percentiles.
    """
    values = _values(maps)
    if values.size == 0:
        return Scale("sequential", 0.0, 1.0)
    low, high = (float(v) for v in np.percentile(values, (1.0, 99.0)))
    if low < 0 < high and -low > 0.2 * high:
        limit = nice_limit(max(-low, high))
        return Scale("diverging", -limit, limit)
    if low > 0.5 * high > 0:
        step = nice_limit((high - low) / 5.0 or abs(high))
        return Scale("sequential", math.floor(low / step) * step, math.ceil(high / step) * step)
    if high <= 0 and low < 0:
        return Scale("sequential", -nice_limit(-low), 0.0)
    return Scale("sequential", 0.0, nice_limit(high))


def symmetric_scale(maps: list[Array], ramp: str) -> Scale:
    """About 0, wide enough for 98 % of the values of all maps."""
    values = np.abs(_values(maps))
    limit = nice_limit(float(np.percentile(values, 98.0)) if values.size else 1.0)
    return Scale(ramp, -limit, limit)


def _values(maps: list[Array]) -> Array:
    finite = [np.asarray(m, np.float64)[np.isfinite(m)] for m in maps]
    return np.concatenate(finite) if finite else np.empty(0)


@dataclass(frozen=True, eq=False)
class Projection:
    """For each pixel of an Equal Earth map the cell it lies in, -1 where there is none.

    ``row``, ``column``: (height, width); ``inside``: pixels on the globe.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    inside: NDArray[np.bool_]

    @classmethod
    def of(cls, lat_edges: Array, lon_edges: Array, width: int) -> Projection:
        """The projection of a grid, ascending edges in degrees, ``width`` pixels wide."""
        x_max = 2.0 * math.sqrt(3.0) * math.pi / (3.0 * _A[0])
        theta_max = math.asin(_M)
        y_max = float(_y_of(np.array([theta_max]))[0])
        height = round(width * y_max / x_max)
        y = y_max * (1.0 - (2.0 * np.arange(height) + 1.0) / height)
        theta = y / y_max * theta_max
        for _ in range(12):
            theta = np.clip(theta - (_y_of(theta) - y) / _slope(theta), -theta_max, theta_max)
        lat = np.rad2deg(np.arcsin(np.clip(np.sin(theta) / _M, -1.0, 1.0)))
        x = x_max * ((2.0 * np.arange(width) + 1.0) / width - 1.0)
        lon = np.rad2deg(x * (3.0 * _slope(theta) / (4.0 * _M * np.cos(theta)))[:, None])
        inside = np.abs(lon) <= 180.0
        row = np.searchsorted(lat_edges, lat, side="right") - 1
        turned = lon_edges[0] + np.mod(lon - lon_edges[0], 360.0)
        column = np.searchsorted(lon_edges, turned, side="right") - 1
        covered = inside & ((row >= 0) & (row < len(lat_edges) - 1))[:, None]
        covered &= column < len(lon_edges) - 1
        return cls(np.where(covered, row[:, None], -1), np.where(covered, column, -1), inside)


def map_png(field: Any, projection: Projection, scale: Scale, dotted: Any = None) -> bytes:
    """PNG of a map (nlat, nlon); cells where ``dotted`` (nlat, nlon) is true carry dots.

    Every pixel takes the cell it lies in, nothing is smoothed. Outside the globe is transparent,
    cells without a value are a faint grey that suits light and dark pages.
    """
    values = np.asarray(field, np.float64)[projection.row, projection.column]
    known = (projection.row >= 0) & np.isfinite(values)
    share = np.clip((np.where(known, values, 0.0) - scale.low) / (scale.high - scale.low), 0, 1)
    index = np.where(projection.inside, _MISSING, _OUTSIDE)
    index = np.where(known, _FIRST + np.round(share * (_LEVELS - 1)).astype(int), index)
    colours = [(0, 0, 0, 0), _MISSING_RGBA, *((*rgb, 255) for rgb in _ramp(scale.ramp))]
    if dotted is not None:
        marked = known & np.asarray(dotted, bool)[projection.row, projection.column]
        index = np.where(marked & _dots(index.shape), _DOT, index)
        colours.append(_DOT_RGBA)
    return _palette_png(index.astype(np.uint8), colours)


def _dots(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels of a pattern of dots, every other row of them half a step aside."""
    y, x = np.indices(shape)
    aside = (y // _DOT_STEP % 2) * (_DOT_STEP // 2)
    return np.asarray((y % _DOT_STEP < _DOT_SIZE) & ((x + aside) % _DOT_STEP < _DOT_SIZE))


def _y_of(theta: Array) -> Array:
    a1, a2, a3, a4 = _A
    return np.asarray(theta * (a1 + a2 * theta**2 + a3 * theta**6 + a4 * theta**8))


def _slope(theta: Array) -> Array:
    a1, a2, a3, a4 = _A
    return np.asarray(a1 + 3 * a2 * theta**2 + 7 * a3 * theta**6 + 9 * a4 * theta**8)


@cache
def _ramp(name: str) -> tuple[tuple[int, int, int], ...]:
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMPS[name]], float)
    at = np.linspace(0, len(stops) - 1, _LEVELS)
    bands = [np.interp(at, np.arange(len(stops)), stops[:, band]) for band in range(3)]
    return tuple((round(r), round(g), round(b)) for r, g, b in zip(*bands, strict=True))


def is_own_png(path: Path) -> bool:
    """Whether a file is a PNG of ours, by the chunk that says what made it."""
    try:
        with path.open("rb") as file:
            return _MADE_BY in file.read(_HEAD_BYTES)
    except OSError:
        return False


def _palette_png(index: NDArray[np.uint8], colours: list[tuple[int, int, int, int]]) -> bytes:
    """A PNG of palette indices (height, width); PNG specification, third edition (W3C)."""
    height, width = index.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), index], axis=1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"tEXt", _MADE_BY),
        (b"PLTE", b"".join(bytes(c[:3]) for c in colours)),
        (b"tRNS", bytes(c[3] for c in colours)),
        (b"IDAT", zlib.compress(rows.tobytes(), 6)),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
