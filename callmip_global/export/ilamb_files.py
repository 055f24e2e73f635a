"""The NetCDF files that ILAMB and ilamb3 read: layout, bounds, time, missing values.

Longitudes ascend within -180 to 180 and latitudes from south to north, both with bounds, for both
tools re-estimate or refuse what is laid out otherwise; a column that lies across 180 degrees is
cut in two of the same value, so that no area moves. Times have exact bounds, without gaps: ILAMB
stops at a missing month, so that one is written as a month without values. All files have the
calendar noleap. ILAMB turns every other one into it; ilamb3 weighs the months of each file by its
own calendar, so that model and reference of different ones would get a bias from February alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import netCDF4
import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.files import fsync_folder
from callmip_global.grid import Grid
from callmip_global.timeaxis import TIME_UNITS, MonthAxis

Array = NDArray[np.float64]

FILL = np.float32(1e20)
_EDGE_DEGREES = 1e-6


@dataclass(frozen=True)
class Layout:
    """Where the cells of a grid come to lie in the files.

    ``grid``: the one in the files; ``columns`` (nlon written,): the column of the source grid that
    each of its columns is, or is a part of.
    """

    grid: Grid
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, source: Grid, where: str) -> Layout:
        """The columns of ``source`` from -180 to 180.

        DataError for a regional grid that would have a hole in it.
        """
        pieces: list[tuple[float, float, int]] = []
        for column, (west, east) in enumerate(source.lon_bnds):
            turn = 360.0 * np.floor((0.5 * (west + east) + 180.0) / 360.0)
            low, high = _snapped(west - turn), _snapped(east - turn)
            if low < -180.0:
                pieces += [(-180.0, high, column), (low + 360.0, 180.0, column)]
            elif high > 180.0:
                pieces += [(low, 180.0, column), (-180.0, high - 360.0, column)]
            else:
                pieces.append((low, high, column))
        pieces.sort()
        hole = max((b[0] - a[1] for a, b in pairwise(pieces)), default=0.0)
        if hole > _EDGE_DEGREES:
            raise DataError(
                Problem(
                    where,
                    "longitude",
                    f"a region across 180 degrees, {hole:g} degrees apart when it is laid out",
                    "a region that does not lie across 180 degrees, or the globe",
                    "Regrid it to a standard grid first.",
                )
            )
        edges = np.array([pieces[0][0], *(piece[1] for piece in pieces)])
        columns = np.array([piece[2] for piece in pieces])
        return cls(Grid(source.name, source.lat_edges, edges, source.lat_points), columns)

    def lay(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (..., nlat, nlon of the source) as (..., nlat, nlon written)."""
        if np.array_equal(self.columns, np.arange(values.shape[-1])):
            return values
        return np.asarray(values[..., self.columns])


def _snapped(longitude: float) -> float:
    """The dateline where a longitude misses it by rounding."""
    for line in (-180.0, 180.0):
        if abs(longitude - line) < _EDGE_DEGREES:
            return line
    return float(longitude)


CALENDAR = "noleap"


@dataclass(frozen=True)
class Steps:
    """A time axis as written: noleap, days since 1850-01-01. ``time`` (n,), ``bounds`` (n, 2)."""

    time: Array
    bounds: Array

    @classmethod
    def of(cls, axis: MonthAxis) -> Steps:
        """The same months or years as those of an axis in any calendar."""
        same = MonthAxis(CALENDAR, axis.first, axis.size, axis.frequency)
        return cls(same.time, same.bounds)

    @classmethod
    def one(cls, axis: MonthAxis) -> Steps:
        """A single step as long as the axis: what ILAMB compares with a mean over it."""
        whole = cls.of(axis).bounds
        bounds = np.array([[whole[0, 0], whole[-1, 1]]])
        return cls(bounds.mean(axis=1), bounds)


def write_field(
    path: Path,
    name: str,
    attributes: Mapping[str, str],
    layout: Layout,
    steps: Steps,
    blocks: Iterable[NDArray[Any]],
    about: Mapping[str, str],
) -> None:
    """One variable along time, under a temporary name that is then renamed.

    ``blocks``: (steps, nlat, nlon) of the source grid one after the other, NaN where missing;
    together they fill the axis. ``about``: global attributes.
    """
    with _Renamed(path) as nc:
        nc.setncatts({"Conventions": "CF-1.8", **about})
        nc.createDimension("time", None)
        _write_grid(nc, layout.grid)
        _put(
            nc,
            "time",
            ("time",),
            steps.time,
            {
                "standard_name": "time",
                "long_name": "time",
                "units": TIME_UNITS,
                "calendar": CALENDAR,
                "axis": "T",
                "bounds": "time_bnds",
            },
        )
        _put(nc, "time_bnds", ("time", "bnds"), steps.bounds, {})
        out = nc.createVariable(
            name,
            "f4",
            ("time", "lat", "lon"),
            zlib=True,
            complevel=1,
            shuffle=True,
            chunksizes=(1, *layout.grid.shape),
            fill_value=FILL,
        )
        out.setncatts({**attributes, "missing_value": FILL})
        start = 0
        for block in blocks:
            laid = layout.lay(block)
            stop = start + laid.shape[0]
            out[start:stop] = np.where(np.isnan(laid), FILL, laid).astype(np.float32)
            start = stop
        if start != steps.time.size:
            raise ValueError(f"{path.name}: {start} steps for an axis of {steps.time.size}")


def write_fixed(
    path: Path, name: str, attributes: Mapping[str, str], grid: Grid, values: Array
) -> None:
    """A map without time (nlat, nlon), already laid out."""
    with _Renamed(path) as nc:
        nc.Conventions = "CF-1.8"
        _write_grid(nc, grid)
        _put(nc, name, ("lat", "lon"), values, attributes)


class _Renamed:
    """A NetCDF file that gets its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")

    def __enter__(self) -> Any:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = netCDF4.Dataset(self.temporary, "w", format="NETCDF4")
        return self.file

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.file.close()
            if kind is None:
                # An export that goes on after a power cut takes the name for a whole file.
                with self.temporary.open("rb") as written:
                    os.fsync(written.fileno())
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)
        if kind is None:
            fsync_folder(self.path.parent)


def _write_grid(nc: Any, grid: Grid) -> None:
    nc.createDimension("lat", grid.shape[0])
    nc.createDimension("lon", grid.shape[1])
    nc.createDimension("bnds", 2)
    for name, text, units, axis, values, bounds in (
        ("lat", "latitude", "degrees_north", "Y", grid.lat, grid.lat_bnds),
        ("lon", "longitude", "degrees_east", "X", grid.lon, grid.lon_bnds),
    ):
        attributes = {
            "standard_name": text,
            "long_name": text,
            "units": units,
            "axis": axis,
            "bounds": f"{name}_bnds",
        }
        _put(nc, name, (name,), values, attributes)
        _put(nc, f"{name}_bnds", (name, "bnds"), bounds, {})


def _put(
    nc: Any, name: str, dims: tuple[str, ...], values: NDArray[Any], attributes: Mapping[str, str]
) -> None:
    variable = nc.createVariable(name, "f8", dims)
    variable.setncatts(dict(attributes))
    variable[...] = values
