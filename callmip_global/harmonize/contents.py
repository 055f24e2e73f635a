"""What a file says of itself without reading its values: fields, time covered, attributes.

Only as much as tells pieces of one variable from copies of it. Whether the time axis can be
believed is for those who read it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import zarr

from callmip_global.errors import DataError, Problem

_TIME_NAMES = ("time", "t", "time_counter")
_COORDINATES = ("lat", "lon", "latitude", "longitude", "nav_lat", "nav_lon", "areacella", "sftlf")
_SINCE = re.compile(
    r"\s*(month|year|day|hour|minute|second|sec|min|yr|d|h|s)s?\s+since\s+(?:AD\s+)?"
    r"(-?\d{1,4})-(\d{1,2}|[A-Za-z]{3})-(\d{1,2})",
    re.IGNORECASE,
)
_PER_DAY = {"day": 1, "d": 1, "hour": 24, "h": 24, "minute": 1440, "min": 1440}
_PER_DAY |= dict.fromkeys(("second", "sec", "s"), 86400)


@dataclass(frozen=True)
class Contents:
    """``fields``: name -> bytes unpacked, of what changes in time; ``static``: other fields.

    ``span``: first and last stamp in decimal years, None where the units do not tell; good for
    the order of files of one model, not for dates. ``frequency``: mon, yr or day by the usual step.
    """

    fields: Mapping[str, int]
    static: tuple[str, ...]
    span: tuple[float, float] | None
    frequency: str
    attributes: Mapping[str, str]


def contents(path: Path, origin: str = "") -> Contents:
    """Contents of a NetCDF file or Zarr store. DataError, of ``origin``, if it cannot be opened."""
    try:
        return _of_zarr(path) if path.is_dir() else _of_netcdf(path)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = " ".join(str(error).replace(str(path), "").split())[:120]
        raise DataError(
            Problem(
                origin or str(path),
                found=f"a file that cannot be opened ({text})",
                wanted="a NetCDF file",
                remedy="Copy it again; interrupted copies look like this.",
                rule="damaged",
            )
        ) from None


@dataclass(frozen=True)
class _Header:
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    item_bytes: int
    attributes: Mapping[str, Any]


def _of_netcdf(path: Path) -> Contents:
    with netCDF4.Dataset(path) as nc:
        nc.set_auto_maskandscale(False)
        headers = {
            name: _Header(
                tuple(var.dimensions),
                tuple(var.shape),
                np.dtype(var.dtype).itemsize if var.dtype is not str else 0,
                {key: var.getncattr(key) for key in var.ncattrs()},
            )
            for name, var in nc.variables.items()
        }
        name = _time(headers)
        values = _stamps(nc.variables[name]) if name else None
        attributes = {key: str(nc.getncattr(key)) for key in nc.ncattrs()}
        unlimited = {dim for dim, item in nc.dimensions.items() if item.isunlimited()}
    return _contents(headers, name, values, attributes, unlimited)


def _of_zarr(path: Path) -> Contents:
    group = zarr.open_group(path, mode="r")
    arrays = {str(name).lstrip("/"): item for name, item in group.members(max_depth=1)}
    headers = {}
    for name, item in arrays.items():
        if not isinstance(item, zarr.Array):
            continue
        named = getattr(item.metadata, "dimension_names", None)
        stated: Any = named or item.attrs.get("_ARRAY_DIMENSIONS", ())
        dims = tuple(map(str, stated))
        if len(dims) == len(item.shape):
            bytes_ = np.dtype(item.dtype).itemsize
            leaf = name.rsplit("/", 1)[-1]
            headers[name] = _Header(dims, tuple(item.shape), bytes_, dict(item.attrs))
            headers.setdefault(leaf, headers[name])
    time = _time(headers)
    array = arrays.get(time) if time else None
    values = _stamps(array) if array is not None else None
    attributes = {str(key): str(value) for key, value in group.attrs.items()}
    return _contents(headers, time, values, attributes, set())


def _time(headers: Mapping[str, _Header]) -> str | None:
    """The time axis: a vector that says so, or is named so."""
    vectors = {name: h for name, h in headers.items() if len(h.dims) == 1}
    for name, header in vectors.items():
        units = str(header.attributes.get("units", header.attributes.get("unit", "")))
        said = str(header.attributes.get("standard_name", "")).lower() == "time"
        if said or _SINCE.match(units):
            return name
    return next((name for name in vectors if name.lower() in _TIME_NAMES), None)


def _stamps(variable: Any) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    try:
        values = np.asarray(variable[:], dtype=np.float64)
    except (OSError, RuntimeError, ValueError, TypeError):
        return None
    return values if values.size and np.isfinite(values).all() else None


def _contents(
    headers: Mapping[str, _Header],
    time: str | None,
    values: np.ndarray[Any, np.dtype[np.float64]] | None,
    attributes: Mapping[str, str],
    unlimited: set[str],
) -> Contents:
    moving = set(headers[time].dims) if time else unlimited
    bounds = {str(h.attributes.get("bounds", "")) for h in headers.values()}
    fields, static = {}, []
    for name, header in headers.items():
        aside = name in bounds or name.lower() in _COORDINATES or name.lower().endswith("_bnds")
        if aside or len(header.dims) < 2:
            continue
        if moving & set(header.dims):
            fields[name] = math.prod(header.shape) * header.item_bytes
        else:
            static.append(name)
    span, frequency = None, ""
    if time and values is not None:
        units = str(headers[time].attributes.get("units", headers[time].attributes.get("unit", "")))
        years = _decimal_years(values, units, str(headers[time].attributes.get("calendar", "")))
        if years is not None:
            span = (float(years.min()), float(years.max()))
            frequency = _frequency(years)
    return Contents(fields, tuple(static), span, frequency, attributes)


def _decimal_years(
    values: np.ndarray[Any, np.dtype[np.float64]], units: str, calendar: str
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    match = _SINCE.match(units)
    if match is None:
        return None
    unit, year, month, day = match[1].lower(), int(match[2]), match[3], int(match[4])
    names = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    number = int(month) if month.isdigit() else names.index(month.lower()) + 1
    start = year + (number - 1) / 12 + (day - 1) / 365
    if unit in ("year", "yr"):
        return start + values
    if unit == "month":
        return start + values / 12
    length = {"noleap": 365.0, "365_day": 365.0, "360_day": 360.0}.get(calendar.lower(), 365.2425)
    return start + values / _PER_DAY[unit] / length


def _frequency(years: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    if years.size < 2:
        return ""
    step = float(np.median(np.diff(years)))
    for name, usual in (("yr", 1.0), ("mon", 1 / 12), ("day", 1 / 365)):
        if 0.8 * usual < step < 1.2 * usual:
            return name
    return ""
