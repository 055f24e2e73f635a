"""Small native model files with known values: their own order, names, units, as models do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cftime
import netCDF4
import numpy as np
from numpy.typing import NDArray

LAT = np.array([67.5, 22.5, -22.5, -67.5])
LON = np.arange(6) * 60.0
SEA = (slice(None), 3)
"""Every column at 180 degrees is sea in the fields of `field`."""


def field(
    low: float,
    high: float,
    *,
    years: tuple[int, int] = (2001, 2002),
    per_year: int = 12,
    seed: int = 1,
) -> NDArray[np.float64]:
    """(time, 4, 6) values between low and high, NaN over the sea."""
    steps = per_year * (years[1] - years[0] + 1)
    values = np.random.default_rng(seed).uniform(low, high, (steps, LAT.size, LON.size))
    values[(slice(None), *SEA)] = np.nan
    return values


def write_native(
    path: Path,
    variables: Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]],
    *,
    years: tuple[int, int] = (2001, 2002),
    months: Sequence[int] = range(1, 13),
    calendar: str = "noleap",
    say_calendar: bool = True,
    time_units: str = "days since 1901-01-01",
    skip: int = 0,
    annual: bool = False,
    static: Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]] | None = None,
    extra: Mapping[str, int] | None = None,
    attributes: Mapping[str, str] | None = None,
    fill: float | None = -9999.0,
    lat: NDArray[Any] = LAT,
    lon: NDArray[Any] = LON,
) -> Path:
    """A NetCDF file: ``variables`` (time, [extra,] lat, lon), stamps in the middle of each period.

    ``skip``: how many periods of the years are left out at the beginning. ``fill``: the _FillValue
    that NaN is written as; None writes NaN without any attribute.
    """
    stamps = [
        cftime.datetime(year, 7 if annual else month, 1 if annual else 15, calendar=calendar)
        for year in range(years[0], years[1] + 1)
        for month in ([1] if annual else months)
    ][skip:]
    path.parent.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(path, "w") as nc:
        nc.setncatts(dict(attributes or {}))
        nc.createDimension("time", len(stamps))
        nc.createDimension("lat", lat.size)
        nc.createDimension("lon", lon.size)
        for name, size in (extra or {}).items():
            nc.createDimension(name, size)
        time = nc.createVariable("time", "f8", ("time",))
        time.units = time_units
        if say_calendar:
            time.calendar = calendar
        time[:] = cftime.date2num(stamps, time_units, calendar)
        for name, values, units in (
            ("lat", lat, "degrees_north"),
            ("lon", lon, "degrees_east"),
        ):
            axis = nc.createVariable(name, "f8", (name,))
            axis.units = units
            axis[:] = values
        fields = {n: (*f, ("time", *(extra or {}))) for n, f in variables.items()}
        fields |= {n: (*f, ()) for n, f in (static or {}).items()}
        for name, (values, attrs, lead) in fields.items():
            values = np.asarray(values, dtype=np.float64)
            out = nc.createVariable(name, "f8", (*lead, "lat", "lon"), fill_value=fill)
            out.setncatts(dict(attrs))
            out[:] = values if fill is None else np.where(np.isnan(values), fill, values)
    return path
