"""Damage to a submission that is known to be good, and a judge who knows the truth.

A case is a submission of eight variables of a small world (`submissions.World`), written in the
ways that groups write, one to four of which are then damaged, each by one mutation. The judge does
not ask the code under test what is right: the store may hold a variable only with the values of
the world, unless the report warns of it, or no tool could tell (`Mutation.untold` says why, and
the values must be ones that a model could have; ``could_be``).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from submissions import (
    Array,
    NcFile,
    NcVar,
    Submission,
    World,
    land_fraction_file,
    native_instead_of_regridded,
    time_days,
    trendy,
)

from callmip_global.config.manifest import load_manifest
from callmip_global.errors import CallmipError
from callmip_global.harmonize.rules import RULES
from callmip_global.store import open_store
from callmip_global.workflow import ingest as ingest_module

WORLD = World()
NAMES = ("gpp", "nep", "hfls", "hfss", "tran", "ts", "lai", "mrsos")

# What no global land model has had: (lowest, highest cell), and limits of the global total. From
# the catalogue of defects: ranges of cells, and totals at which it says "fail"; where it gives
# only what is usual, three times as much or as little. Totals: 1e12 kg a year, W, or land means.
_YEAR = 365 * 86400.0
_LIMITS: Mapping[str, tuple[float, float, float, float, str]] = {
    "gpp": (0, 3e-7, 50, 300, "Pg"),
    "nep": (-2e-7, 2e-7, -20, 20, "Pg"),
    "hfls": (-60, 250, 1.6, 18, "PW"),
    "hfss": (-150, 300, 8, 150, "mean"),
    "tran": (-1e-6, 1e-4, 0.35 * 55e3 / 3, 0.75 * 80e3 * 3, "Pg"),
    "ts": (180, 345, 268, 302, "mean"),
    "lai": (0, 12, 0.33, 10.5, "mean"),
    "mrsos": (0, 100, 3.3, 100, "mean"),
}

# The options of the files: how values are stored decides what can be known of their damage.
_PLAIN: dict[str, Any] = {"contiguous": True}
_STORAGES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "deflated": ("NETCDF4", {"zlib": True, "complevel": 1, "shuffle": True}),
    "deflated months": (
        "NETCDF4",
        {"zlib": True, "complevel": 4, "chunksizes": (1, *WORLD.land.shape)},
    ),
    "checksums": ("NETCDF4", {"fletcher32": True, "chunksizes": (1, *WORLD.land.shape)}),
    "plain": ("NETCDF4", _PLAIN),
    "classic": ("NETCDF3_CLASSIC", {}),
    "64-bit offset": ("NETCDF3_64BIT_OFFSET", {}),
    "CDF-5": ("NETCDF3_64BIT_DATA", {}),
}
_UNPROTECTED = ("plain", "classic", "64-bit offset", "CDF-5")


@dataclass
class Victim:
    """One variable's file before its damage. ``file`` is what will be written to ``path``."""

    name: str
    file: NcFile
    path: Path
    storage: str

    @property
    def values(self) -> Array:
        return np.asarray(self.file.variables[self.name].values)

    @values.setter
    def values(self, new: Array) -> None:
        self.file.variables[self.name].values = new

    @property
    def attributes(self) -> dict[str, Any]:
        return self.file.variables[self.name].attributes

    @property
    def time(self) -> NcVar:
        return self.file.variables["time"]

    def write(self) -> None:
        self.file.write(self.path)


Rng = np.random.Generator
Apply = Callable[[Rng, Victim], str]
Bytes = Callable[[Rng, bytearray], str]


@dataclass(frozen=True)
class Mutation:
    """``apply`` damages and writes the file, and says how. ``untold``: why no tool could tell."""

    kind: str
    name: str
    apply: Apply
    untold: str = ""


MUTATIONS: list[Mutation] = []


def _mutation(kind: str, untold: str = "") -> Callable[[Apply], Apply]:
    def add(apply: Apply) -> Apply:
        name = apply.__name__.lstrip("_").replace("_", " ")
        MUTATIONS.append(Mutation(kind, name, apply, untold))
        return apply

    return add


def _bytes(untold: str = "") -> Callable[[Bytes], Bytes]:
    """A mutation of the bytes of the written file."""

    def add(change: Bytes) -> Bytes:
        def apply(rng: Rng, victim: Victim) -> str:
            victim.write()
            data = bytearray(victim.path.read_bytes())
            said = change(rng, data)
            victim.path.write_bytes(bytes(data))
            return f"{said} of {victim.storage} file"

        apply.__name__ = change.__name__
        _mutation("bytes", untold)(apply)
        return change

    return add


# --- bytes ------------------------------------------------------------------------------------

_VALUES = "values without a checksum"


@_bytes()
def _truncated(rng: Rng, data: bytearray) -> str:
    size = int(rng.integers(0, len(data)))
    if rng.random() < 0.3:
        size -= size % 4096
    del data[size:]
    return f"cut to {size}"


@_bytes(_VALUES)
def _bit_flipped(rng: Rng, data: bytearray) -> str:
    at, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


@_bytes(_VALUES)
def _header_bit_flipped(rng: Rng, data: bytearray) -> str:
    at, bit = int(rng.integers(min(1500, len(data)))), int(rng.integers(8))
    data[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


@_bytes(_VALUES)
def _bytes_overwritten(rng: Rng, data: bytearray) -> str:
    size = int(rng.integers(1, 64))
    at = int(rng.integers(max(1, len(data) - size)))
    data[at : at + size] = rng.bytes(size)
    return f"{size} bytes from {at}"


@_bytes()
def _page_zeroed(rng: Rng, data: bytearray) -> str:
    size = int(rng.choice([512, 4096]))
    at = int(rng.integers(max(1, len(data) // size))) * size
    data[at : at + size] = bytes(len(data[at : at + size]))
    return f"zeros in {size} bytes from {at}"


@_bytes()
def _pages_swapped(rng: Rng, data: bytearray) -> str:
    size = int(rng.choice([512, 4096]))
    pages = len(data) // size
    if pages < 2:
        return "nothing"
    a, b = (int(i) * size for i in rng.choice(pages, 2, replace=False))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return f"{size} bytes at {a} and {b} swapped"


@_bytes()
def _page_missing(rng: Rng, data: bytearray) -> str:
    at = int(rng.integers(len(data)))
    size = int(rng.choice([1, 4, 512, 4096]))
    del data[at : at + size]
    return f"{size} bytes at {at} left out"


@_bytes()
def _bytes_put_in(rng: Rng, data: bytearray) -> str:
    at, size = int(rng.integers(len(data))), int(rng.choice([1, 4, 512]))
    data[at:at] = rng.bytes(size)
    return f"{size} bytes put in at {at}"


@_bytes()
def _rubbish_at_the_end(rng: Rng, data: bytearray) -> str:
    data += rng.bytes(int(rng.integers(1, 5000)))
    return "rubbish at the end"


@_bytes()
def _all_rubbish(rng: Rng, data: bytearray) -> str:
    data[8:] = rng.bytes(len(data) - 8)
    return "all but the magic number"


@_bytes()
def _line_ends_changed(rng: Rng, data: bytearray) -> str:
    data[:] = bytes(data).replace(b"\n", b"\r\n")
    return "as text to another system"


# --- attributes ---------------------------------------------------------------------------------

_SAME: Mapping[str, tuple[str, ...]] = {
    "kg m-2 s-1": ("kg m**-2 s**-1", "kg/m2/s", "kg m^-2 s^-1", "kg m-2\u200b s-1", "kg.m-2.s-1"),
    "W m-2": ("W/m2", "W m^-2", "watt m-2", "W m**-2"),
    "K": ("kelvin", "degK", " K "),
    "1": ("m2 m-2", "m2/m2", "-", "unitless"),
    "kg m-2": ("kg/m2", "mm", "kg m^-2"),
}
_OTHER: Mapping[str, tuple[str, ...]] = {
    "kg m-2 s-1": ("g m-2 s-1", "kg m-2 day-1", "kg m-2 month-1", "g m-2 day-1", "kg m-2", "W m-2"),
    "W m-2": ("MJ m-2 day-1", "kW m-2", "J m-2", "mm day-1", "K"),
    "K": ("degC", "celsius", "degF", "W m-2"),
    "1": ("%", "kg m-2", "K"),
    "kg m-2": ("g m-2", "m", "cm", "m3 m-3", "%"),
}


@_mutation("attributes")
def _units_spelled_otherwise(rng: Rng, victim: Victim) -> str:
    units = str(rng.choice(_SAME[victim.attributes["units"]]))
    victim.attributes["units"] = units
    victim.write()
    return repr(units)


@_mutation("attributes", "another unit with values that could be")
def _units_of_something_else(rng: Rng, victim: Victim) -> str:
    units = str(rng.choice(_OTHER[victim.attributes["units"]]))
    victim.attributes["units"] = units
    victim.write()
    return repr(units)


@_mutation("attributes")
def _units_missing(rng: Rng, victim: Victim) -> str:
    new = rng.choice(["", "?", "none"]) if rng.random() < 0.5 else None
    del victim.attributes["units"]
    if new is not None:
        victim.attributes["units"] = str(new)
    victim.write()
    return repr(new)


@_mutation("attributes")
def _calendar_changed(rng: Rng, victim: Victim) -> str:
    new = str(rng.choice(["standard", "360_day", "all_leap", "julian", "no_leap", "lunar", ""]))
    victim.time.attributes["calendar"] = new
    victim.write()
    return repr(new)


@_mutation("attributes")
def _calendar_missing(rng: Rng, victim: Victim) -> str:
    del victim.time.attributes["calendar"]
    victim.write()
    return "none"


@_mutation("attributes")
def _time_units_changed(rng: Rng, victim: Victim) -> str:
    new = str(
        rng.choice(
            [
                "days since 1700-01-02", "days since 1701-01-01", "days since 1700-02-01",
                "Days Since 1700-1-1", "day since 1700-01-01 00:00", "hours since 1700-01-01",
                "months since 1700-01-01", "years since 1700-01-01", "days since 0000-01-01",
                "days since 1850-01-01", "days", "", "day as %Y%m%d.%f", "days since AD 1700",
                "seconds since 1700-01-01", "days since 1700-13-01", "days since 9999-01-01",
            ]
        )
    )  # fmt: skip
    victim.time.attributes["units"] = new
    victim.write()
    return repr(new)


@_mutation("attributes")
def _time_units_missing(rng: Rng, victim: Victim) -> str:
    units = victim.time.attributes.pop("units")
    if rng.random() < 0.5:
        victim.time.attributes["unit"] = units
    victim.write()
    return "missing"


@_mutation("attributes")
def _fill_attribute_missing(rng: Rng, victim: Victim) -> str:
    var = victim.file.variables[victim.name]
    del var.attributes["_FillValue"]
    var.fill = float(rng.choice([-99999.0, -9999.0, 1e20, 9.969209968386869e36, np.nan]))
    victim.write()
    return f"{var.fill}"


@_mutation("attributes")
def _fill_attribute_of_another_value(rng: Rng, victim: Victim) -> str:
    new = float(rng.choice([1e20, -9999.0, 0.0, np.nan]))
    victim.attributes["_FillValue"] = np.float32(new)
    victim.write()
    return f"{new}"


@_mutation("attributes", "a factor with values that could be")
def _scale_or_offset_put_in(rng: Rng, victim: Victim) -> str:
    key = str(rng.choice(["scale_factor", "add_offset"]))
    size = float(np.nanmax(np.abs(victim.values)))
    value = float(10 ** rng.uniform(-4, 4)) * (1.0 if key == "scale_factor" else size)
    victim.attributes[key] = value
    victim.write()
    return f"{key} {value:g}"


@_mutation("attributes")
def _scale_of_no_sense(rng: Rng, victim: Victim) -> str:
    key = str(rng.choice(["scale_factor", "add_offset", "_FillValue", "missing_value"]))
    new = rng.choice(["one", "nan", ""]) if key != "_FillValue" else None
    if new is None:
        victim.attributes["missing_value"] = "none"
    else:
        victim.attributes[key] = str(new)
    victim.write()
    return f"{key} {new!r}"


@_mutation("attributes")
def _packed_as_integers(rng: Rng, victim: Victim) -> str:
    """As CF describes it: harmless to a reader that unpacks."""
    values = victim.values
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scale = (high - low) / 60000
    packed = np.where(np.isnan(values), -32768, np.round((values - low) / scale) - 30000)
    var = victim.file.variables[victim.name]
    var.values, var.dtype, var.fill = packed, "i2", None
    var.attributes |= {
        "_FillValue": np.int16(-32768), "scale_factor": scale, "add_offset": low + 30000 * scale
    }  # fmt: skip
    victim.write()
    return "packed"


@_mutation("attributes")
def _bounds_that_are_not_there(rng: Rng, victim: Victim) -> str:
    name = str(rng.choice(["time", "lat", "lon"]))
    victim.file.variables[name].attributes["bounds"] = f"{name}_bounds"
    victim.write()
    return name


@_mutation("attributes")
def _odd_attributes(rng: Rng, victim: Victim) -> str:
    target = str(rng.choice([victim.name, "time", "lat", "lon"]))
    victim.file.variables[target].attributes |= {
        "standard_name": "x" * int(rng.integers(0, 300)),
        "coordinates": "nowhere",
        "comment": "Ünïcödé \u202e\x1b[2J",
        "valid_range": np.array([0.0, 1.0]),
    }
    victim.write()
    return target


# --- axes ---------------------------------------------------------------------------------------


@_mutation("axes")
def _rows_turned(rng: Rng, victim: Victim) -> str:
    victim.file.turn("lat", slice(None, None, -1))
    victim.write()
    return "with the values"


@_mutation("axes")
def _rows_turned_without_the_values(rng: Rng, victim: Victim) -> str:
    var = victim.file.variables["lat"]
    var.values = var.values[::-1]
    victim.write()
    return "upside down"


@_mutation("axes")
def _columns_from_0_to_360(rng: Rng, victim: Victim) -> str:
    lon = WORLD.lon % 360
    victim.file.variables["lon"].values = lon
    order = np.argsort(lon)
    if rng.random() < 0.7:
        victim.file.turn("lon", order)
    victim.write()
    return "with the values"


@_mutation("axes")
def _columns_relabelled_from_0_to_360(rng: Rng, victim: Victim) -> str:
    victim.file.variables["lon"].values = np.sort(WORLD.lon % 360)
    victim.write()
    return "the values stay"


@_mutation("axes")
def _coordinates_moved(rng: Rng, victim: Victim) -> str:
    name = str(rng.choice(["lat", "lon"]))
    by = float(rng.choice([0.5, -0.5, 1.0, 0.01, 0.25])) * WORLD.step_deg
    victim.file.variables[name].values = victim.file.variables[name].values + by
    victim.write()
    return f"{name} by {by:g}"


@_mutation("axes")
def _coordinates_jittered(rng: Rng, victim: Victim) -> str:
    name = str(rng.choice(["lat", "lon"]))
    size = float(10 ** rng.uniform(-7, 0.5))
    var = victim.file.variables[name]
    var.values = var.values + rng.uniform(-size, size, var.values.shape)
    if rng.random() < 0.5:
        var.dtype = "f4"
    victim.write()
    return f"{name} by {size:.2g}"


@_mutation("axes")
def _a_coordinate_broken(rng: Rng, victim: Victim) -> str:
    name = str(rng.choice(["lat", "lon", "time"]))
    value = float(rng.choice([np.nan, 0.0, 1e20, -999.0, 9.969209968386869e36]))
    var = victim.file.variables[name]
    var.values = var.values.copy()
    var.values[int(rng.integers(var.values.size))] = value
    victim.write()
    return f"{name} {value:g}"


@_mutation("axes")
def _coordinate_missing(rng: Rng, victim: Victim) -> str:
    name = str(rng.choice(["lat", "lon", "time"]))
    del victim.file.variables[name]
    victim.write()
    return name


@_mutation("axes")
def _coordinates_renamed(rng: Rng, victim: Victim) -> str:
    names = {"lat": ("latitude", "nav_lat", "lat_FULL", "y"), "lon": ("longitude", "nav_lon", "x")}
    old = str(rng.choice(["lat", "lon"]))
    new = str(rng.choice(names[old]))
    victim.file.rename(old, new)
    victim.file.rename_dim(old, new)
    victim.write()
    return new


@_mutation("axes")
def _dimensions_in_another_order(rng: Rng, victim: Victim) -> str:
    var = victim.file.variables[victim.name]
    order = [int(i) for i in rng.permutation(3)]
    var.dims = tuple(var.dims[i] for i in order)
    var.values = var.values.transpose(order)
    var.storage = {} if "chunksizes" in var.storage else var.storage
    if victim.file.unlimited is not None and var.dims[0] != "time":
        victim.file.unlimited = None
    victim.write()
    return ", ".join(var.dims)


@_mutation("axes")
def _rows_missing(rng: Rng, victim: Victim) -> str:
    n = int(rng.integers(1, 4))
    keep = slice(n, None) if rng.random() < 0.5 else slice(None, -n)
    victim.file.turn("lat", keep)
    victim.file.variables[victim.name].storage = {}
    victim.write()
    return f"{n} rows"


@_mutation("axes")
def _time_moved(rng: Rng, victim: Victim) -> str:
    by = float(rng.choice([-365, 365, 31, -31, 3650, 0.5, -10, 300 * 365]))
    victim.time.values = victim.time.values + by
    victim.write()
    return f"by {by:g} days"


@_mutation("axes")
def _stamps_jittered(rng: Rng, victim: Victim) -> str:
    size = float(rng.choice([0.5, 5, 12, 25]))
    victim.time.values = victim.time.values + rng.uniform(-size, size, victim.time.values.shape)
    victim.write()
    return f"by {size:g} days"


@_mutation("axes")
def _a_month_doubled_or_missing(rng: Rng, victim: Victim) -> str:
    n = victim.time.values.size
    at, how = int(rng.integers(n)), int(rng.integers(3))
    if how == 0:
        order: list[int] = [i for i in range(n) if i != at]
    elif how == 1:
        order = sorted([*range(n), at])
    else:
        order = [i if i != at else (i + 1) % n for i in range(n)]
    victim.file.turn("time", np.array(order))
    victim.file.variables[victim.name].storage = {}
    victim.write()
    return ("left out", "doubled", "in another's place")[how] + f" {at}"


@_mutation("axes")
def _stamps_out_of_order(rng: Rng, victim: Victim) -> str:
    order = np.arange(victim.time.values.size)
    if rng.random() < 0.5:
        order = order[::-1]
    else:
        a, b = rng.choice(order.size, 2, replace=False)
        order[[a, b]] = order[[b, a]]
    victim.file.turn("time", order)
    victim.write()
    return "with the values"


@_mutation("axes")
def _other_time_axis(rng: Rng, victim: Victim) -> str:
    """The same months said in another way."""
    how = int(rng.integers(5))
    months = np.arange(WORLD.months)
    if how == 0:
        victim.time.values = 301 * 12.0 + months
        victim.time.attributes["units"] = "months since 1700-1-1"
    elif how == 1:
        victim.time.values = 2001 + (months + 0.5) / 12
        victim.time.attributes["units"] = "years since AD 0-Jan-1st (double)"
    elif how == 2:
        victim.time.values = 200101.0 + 100 * (months // 12) + months % 12 + 0.5
        victim.time.attributes["units"] = "month as %Y%m.%f"
    elif how == 3:
        victim.time.values = victim.time.values * 24
        victim.time.attributes["units"] = "hours since 1700-01-01"
    else:
        victim.time.values = time_days(WORLD.years, "standard")
        victim.time.attributes["calendar"] = "standard"
    victim.write()
    return str(victim.time.attributes["units"])


@_mutation("axes")
def _counted_steps(rng: Rng, victim: Victim) -> str:
    victim.time.values = np.arange(WORLD.months) + float(rng.integers(2))
    if rng.random() < 0.5:
        victim.time.attributes = {}
    victim.write()
    return "steps"


# --- values -------------------------------------------------------------------------------------

_COULD_BE = "values that could be"


@_mutation("values", _COULD_BE)
def _scaled(rng: Rng, victim: Victim) -> str:
    factor = float(
        rng.choice([1e3, 1e-3, 86400, 1 / 86400, 12 / 44, 44 / 12, 100, 0.01, 2.63e6, 28.9, 1.1])
    )
    victim.values = victim.values * factor
    victim.write()
    return f"times {factor:g}"


@_mutation("values", _COULD_BE)
def _turned_round(rng: Rng, victim: Victim) -> str:
    victim.values = -victim.values
    victim.write()
    return "times -1"


@_mutation("values", _COULD_BE)
def _offset(rng: Rng, victim: Victim) -> str:
    by = -273.15 if victim.name == "ts" else float(np.nanmax(np.abs(victim.values)))
    by *= float(rng.choice([1.0, -1.0, 0.01, 10.0]))
    victim.values = victim.values + by
    victim.write()
    return f"{by:+g}"


@_mutation("values")
def _sea_filled(rng: Rng, victim: Victim) -> str:
    value = float(rng.choice([0.0, -99999.0, -9999.0, 1e20, -1.0]))
    victim.values = np.where(np.isnan(victim.values), value, victim.values)
    if rng.random() < 0.5:
        del victim.attributes["_FillValue"]
    victim.write()
    return f"with {value:g}"


@_mutation("values")
def _mask_moved(rng: Rng, victim: Victim) -> str:
    by = int(rng.choice([-3, -2, 2, 3, 8, 15]))
    axis = int(rng.choice([1, 2]))
    victim.values = np.roll(victim.values, by, axis=axis)
    victim.write()
    return f"values rolled by {by} cells along {('lat', 'lon')[axis - 1]}"


@_mutation("values", "values that could be, at other times")
def _months_swapped(rng: Rng, victim: Victim) -> str:
    a, b = (int(i) for i in rng.choice(WORLD.months, 2, replace=False))
    values = victim.values.copy()
    values[[a, b]] = values[[b, a]]
    victim.values = values
    victim.write()
    return f"steps {a} and {b}"


@_mutation("values")
def _a_month_lost(rng: Rng, victim: Victim) -> str:
    at, value = int(rng.integers(WORLD.months)), float(rng.choice([0.0, np.nan]))
    values = victim.values.copy()
    values[at, WORLD.land] = value
    victim.values = values
    victim.write()
    return f"step {at} is {value:g}"


@_mutation("values")
def _all_the_same(rng: Rng, victim: Victim) -> str:
    value = float(rng.choice([0.0, np.nan, float(np.nanmean(victim.values))]))
    victim.values = np.where(np.isnan(victim.values), np.nan, value)
    victim.write()
    return f"{value:g}"


@_mutation("values", "years that are alike")
def _one_year_for_all(rng: Rng, victim: Victim) -> str:
    victim.values = np.concatenate([victim.values[:12]] * 2)
    victim.write()
    return "the first year"


@_mutation("values")
def _wild_values(rng: Rng, victim: Victim) -> str:
    wild = float(rng.choice([np.inf, -np.inf, 1.8e31, 1e20, -99999.5, 3e38]))
    values = victim.values.copy()
    rows, columns = np.nonzero(WORLD.land)
    for _ in range(int(rng.integers(1, 5))):
        cell = int(rng.integers(rows.size))
        values[int(rng.integers(WORLD.months)), rows[cell], columns[cell]] = wild
    victim.values = values
    victim.write()
    return f"{wild:g}"


@_mutation("values", _COULD_BE)
def _of_another_variable(rng: Rng, victim: Victim) -> str:
    other = str(rng.choice([n for n in NAMES if n != victim.name]))
    victim.values = WORLD.values(other).copy()
    victim.write()
    return other


# --- files --------------------------------------------------------------------------------------


@_mutation("files")
def _renamed(rng: Rng, victim: Victim) -> str:
    victim.write()
    n = victim.name
    new = str(
        rng.choice(
            [
                f"X_S3_{n}_re-upload.nc", f"X_S3_{n}.nc\r", f"X_S3_{n}.nc.part", f"X_{n}.nc",
                f"{n}.nc", f"X_S3_Monthly_{n}.nc", f"x_s3_{n}.NC", f"X_S3_{n} (1).nc",
                f"X_S3_{n}.nc~", "tmp.nc", f"X_S3_{'lai' if n != 'lai' else 'gpp'}_2.nc",
            ]
        )
    )  # fmt: skip
    victim.path.rename(victim.path.with_name(new))
    return repr(new)


@_mutation("files")
def _of_another_scenario(rng: Rng, victim: Victim) -> str:
    victim.write()
    new = victim.path.with_name(f"X_S{int(rng.choice([0, 1, 2]))}_{victim.name}.nc")
    victim.path.rename(new)
    return new.name


@_mutation("files")
def _of_another_model(rng: Rng, victim: Victim) -> str:
    victim.write()
    new = victim.path.with_name(f"CLM_S3_{victim.name}.nc")
    victim.path.rename(new)
    return new.name


@_mutation("files")
def _an_older_copy_beside(rng: Rng, victim: Victim) -> str:
    victim.write()
    folder = str(rng.choice(["OLD", "correctedS3", "v1", ".trash"]))
    if rng.random() < 0.7:
        victim.values = victim.values * 0.9
    victim.file.write(victim.path.parent / folder / victim.path.name)
    return folder


@_mutation("files")
def _packed(rng: Rng, victim: Victim) -> str:
    victim.write()
    content = victim.path.read_bytes()
    victim.path.unlink()
    how = int(rng.integers(3))
    if how == 0:
        packed, suffix = gzip.compress(content, 1), ".gz"
    else:
        suffix = ".tar.gz"
        names = [victim.path.name] if how == 1 else ["../escaped.nc", victim.path.name]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        packed = out.getvalue()
    said = suffix
    if rng.random() < 0.4:
        cut = int(rng.integers(1, len(packed)))
        packed, said = packed[:cut], f"{suffix}, cut to {cut}"
    victim.path.with_name(victim.path.name + suffix).write_bytes(packed)
    return said


@_mutation("files")
def _no_file(rng: Rng, victim: Victim) -> str:
    how = int(rng.integers(4))
    if how == 0:
        victim.path.write_bytes(b"")
    elif how == 1:
        victim.path.mkdir()
    elif how == 2:
        victim.path.symlink_to("nowhere.nc")
    return ("empty", "a folder", "a link to nothing", "missing")[how]


@_mutation("files")
def _text_for_data(rng: Rng, victim: Victim) -> str:
    text = str(rng.choice(["404 Not Found", "version https://git-lfs.github.com/spec/v1", "CDF"]))
    victim.path.write_text(text, encoding="utf-8")
    return text


@_mutation("files")
def _cut_into_two(rng: Rng, victim: Victim) -> str:
    at = int(rng.integers(1, WORLD.months))
    overlap = int(rng.choice([0, 0, 1]))
    first, second = victim.file.copy(), victim.file.copy()
    first.turn("time", slice(0, at + overlap))
    second.turn("time", slice(at, None))
    for part, file in (("a", first), ("b", second)):
        file.variables[victim.name].storage = {}
        file.write(victim.path.with_name(f"X_S3_{victim.name}_{part}.nc"))
    return f"at {at}, {overlap} months in both"


@_mutation("files")
def _named_otherwise_inside(rng: Rng, victim: Victim) -> str:
    new = str(rng.choice([victim.name.upper(), f"{victim.name}Annual", "npp-rh+ld", "var1"]))
    victim.file.rename(victim.name, new)
    victim.write()
    return new


@_mutation("files")
def _more_variables_inside(rng: Rng, victim: Victim) -> str:
    for other in ("q05", "q95"):
        var = victim.file.copy().variables[victim.name]
        var.values = var.values * 0.5
        victim.file.variables[f"{victim.name}_{other}"] = var
    victim.write()
    return "two quantiles"


# --- cases --------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What became of one mutation. ``wrong`` is a finding where it is not empty."""

    seed: int
    variable: str
    kind: str
    mutation: str
    said: str
    outcome: str
    wrong: str = ""

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.variable}, {self.mutation} ({self.said}): " + (
            self.wrong or self.outcome
        )


@dataclass
class Case:
    """One seed: what was damaged, what the report said, and the verdicts."""

    seed: int
    verdicts: list[Verdict] = field(default_factory=list)
    report: list[str] = field(default_factory=list)


@contextmanager
def native_stores() -> Iterator[None]:
    """Within it, stores are published on the native grid: regridding is not what is tried here."""
    with mock.patch.object(ingest_module, "regrid_store", native_instead_of_regridded):
        yield


def could_be(name: str, values: Array) -> bool:
    """Whether a model could have these monthly values, by limits that are all that this knows."""
    low, high, least, most, how = _LIMITS[name]
    held = values[np.isfinite(values)]
    if not held.size or np.isinf(values).any() or held.min() == held.max():
        return False
    slack = 0.01 * (high - low)
    outside = ((held < low - slack) | (held > high + slack)).mean()
    far = 10 * (high - low)
    if outside > 1e-3 or held.min() < low - far or held.max() > high + far:
        return False
    present = np.isfinite(values)
    area = np.where(present, WORLD.area, 0.0)
    total = float((np.nan_to_num(values) * area).sum() / len(values))
    if how == "mean":
        total /= float(area.sum()) / len(values)
    else:
        total *= _YEAR / 1e12 if how == "Pg" else 1e-15
    return least <= total <= most


def run_seed(seed: int, top: Path) -> Case:
    """One case in the empty folder ``top``."""
    rng, case = np.random.default_rng(seed), Case(seed)
    sub = Submission(top)
    sub.sources(*NAMES)
    sub.patterns = ("**/*.nc", "**/*.nc.gz", "**/*.tar.gz")
    if rng.random() < 0.5:
        sub.put("X/S3/X_S3_sftlf.nc", land_fraction_file(WORLD))
        sub.map_extra["land_fraction"] = "sftlf"
    hit = {str(n) for n in rng.choice(NAMES, int(rng.integers(1, 5)), replace=False)}
    for name in NAMES:
        storage = str(rng.choice(list(_STORAGES)))
        form, options = _STORAGES[storage]
        file = trendy(WORLD, name, storage=options)
        file.format = form  # type: ignore[assignment]
        file.unlimited = "time" if form != "NETCDF4" and rng.random() < 0.5 else None
        path = sub.path(f"X/S3/X_S3_{name}.nc")
        path.parent.mkdir(parents=True, exist_ok=True)
        victim = Victim(name, file, path, storage)
        if name not in hit:
            victim.write()
            case.verdicts.append(Verdict(seed, name, "none", "none", storage, ""))
            continue
        mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        said = mutation.apply(rng, victim)
        case.verdicts.append(Verdict(seed, name, mutation.kind, mutation.name, said, ""))
    _judge(case, sub)
    return case


def _judge(case: Case, sub: Submission) -> None:
    before = _fingerprint(sub.folder)
    mutations = {m.name: m for m in MUTATIONS}
    try:
        manifest = load_manifest(sub.manifest())
        _, entries = ingest_module.ingest([sub.folder], manifest, collection=sub.collection)
    except CallmipError as error:
        # Everything refused at once is safe, but one broken file must not stop the others.
        for verdict in case.verdicts:
            verdict.wrong = f"nothing went on: {error}"
        return
    except Exception:
        last = traceback.format_exc().strip().splitlines()
        case.report += last
        for verdict in case.verdicts:
            verdict.outcome, verdict.wrong = "crash", f"crash: {last[-1]}"
        return
    case.report += [f"{e.outcome:9}{e.path} {e.variable} {e.rules} {e.message}" for e in entries]
    held = _held(sub.collection)
    leftovers = _leftovers(sub)
    changed = _fingerprint(sub.folder) != before
    keys = [(e.path, e.variable) for e in entries]
    for verdict in case.verdicts:
        rows = [e for e in entries if e.variable == verdict.variable]
        refused = [e for e in rows if e.outcome == "refused"]
        name, values = verdict.variable, held.get(verdict.variable)
        warned = any(RULES[r].kind == "warn" for e in rows for r in e.rules)
        untold = mutations[verdict.mutation].untold if verdict.kind != "none" else ""
        if values is None:
            verdict.outcome = "refused"
            if not refused:
                verdict.wrong = "absent without a word in the report"
            elif verdict.kind == "none":
                verdict.wrong = f"good, but refused: {refused[0].message}"
        elif refused:
            verdict.wrong = f"refused, but in the store: {refused[0].message}"
        elif _equal(values, WORLD.values(name), packed="packed as" in verdict.mutation):
            verdict.outcome = "unharmed" if not any(e.outcome == "fixed" for e in rows) else "fixed"
        elif verdict.kind == "none":
            verdict.wrong = f"good, but changed: {_difference(values, WORLD.values(name))}"
        elif warned:
            verdict.outcome = "warned"
        elif (
            untold == _VALUES and _few(values, WORLD.values(name)) and could_be(name, values)
        ) or (untold and untold != _VALUES and could_be(name, values)):
            verdict.outcome = f"undetectable: {untold}"
        else:
            verdict.wrong = f"WRONG ACCEPTED: {_difference(values, WORLD.values(name))}"
        if leftovers:
            verdict.wrong = verdict.wrong or f"left behind: {', '.join(leftovers)}"
        if changed:
            verdict.wrong = verdict.wrong or "the submission was changed"
        if len(keys) != len(set(keys)):
            twice = sorted(k for k in set(keys) if keys.count(k) > 1)
            verdict.wrong = verdict.wrong or f"in the report twice: {twice}"


def _held(collection: Path) -> dict[str, Array]:
    """Fields of the one store, in world order (south to north, from -180)."""
    found: dict[str, Array] = {}
    for store in sorted(collection.glob("*.zarr")):
        with open_store(store, "mon") as ds:
            order = np.argsort((ds["lon"].values + 180) % 360)
            for name in map(str, ds.data_vars):
                if ds[name].dims == ("time", "lat", "lon"):
                    found[name] = np.asarray(ds[name].values, dtype=np.float64)[..., order]
    return found


def _equal(values: Array, wanted: Array, *, packed: bool) -> bool:
    if values.shape != wanted.shape or (np.isnan(values) != np.isnan(wanted)).any():
        return False
    slack = 1e-6 if not packed else 0.0
    step = (np.nanmax(wanted) - np.nanmin(wanted)) / 60000 if packed else 0.0
    held = ~np.isnan(wanted)
    near = np.abs(values[held] - wanted[held]) <= slack * np.abs(wanted[held]) + step
    return bool(near.all())


def _few(values: Array, wanted: Array) -> bool:
    """Whether at most a hundredth of the values differ, and none is missing that was not."""
    if values.shape != wanted.shape or (np.isnan(values) & ~np.isnan(wanted)).any():
        return False
    differ = (values != wanted) & ~(np.isnan(values) & np.isnan(wanted))
    return bool(differ.mean() <= 0.01)


def _difference(values: Array, wanted: Array) -> str:
    if values.shape != wanted.shape:
        return f"shape {values.shape}, not {wanted.shape}"
    lost = int((np.isnan(values) & ~np.isnan(wanted)).sum())
    more = int((~np.isnan(values) & np.isnan(wanted)).sum())
    both = ~np.isnan(values) & ~np.isnan(wanted)
    other = int((np.abs(values[both] - wanted[both]) > 1e-6 * np.abs(wanted[both])).sum())
    span = f"{np.nanmin(values):.4g} to {np.nanmax(values):.4g}" if both.any() else "nothing"
    return f"{lost} values lost, {more} from nowhere, {other} others; {span}"


def _leftovers(sub: Submission) -> list[str]:
    if not sub.collection.is_dir():
        return []
    named = [p.name for p in sub.collection.iterdir() if p.name.startswith((".ingest", ".tmp"))]
    return sorted(named + [p.name for p in sub.collection.rglob("*.work")])


def _fingerprint(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir():
            found[str(path)] = "no file"
    return found


def clear(top: Path) -> None:
    """Make the folder of the next case empty."""
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir(parents=True)
