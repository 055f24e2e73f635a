"""Regions from files: a field of shares, or a map of labels, on any rectilinear grid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.benchmark.overlap import map_shares
from callmip_global.benchmark.series import why_unreadable
from callmip_global.errors import CallmipError, Problem, UsageError
from callmip_global.files import content_hash
from callmip_global.grid import Grid, SourceGrid, grid_of
from callmip_global.hdf5 import open_dataset

Array = NDArray[np.float64]

MOST_LABELS = 200
_ROUNDING = 1e-6
_WANTED = "0 to 1, 0 to 100 with units '%', true and false, or whole numbers as labels"


@dataclass(frozen=True, eq=False)
class MapFile:
    """A field of a file, in ascending order on its grid.

    values : (nlat, nlon) shares in [0, 1], float64, missing ones 0; or labels, int64
    names : label -> what it is called; empty for shares
    sha256 : of the file's content;  licence : what the file says of it
    """

    path: Path
    variable: str
    grid: Grid
    values: NDArray[Any]
    names: Mapping[int, str]
    sha256: str
    licence: str

    def shares(self, label: int | None, grid: Grid) -> Array:
        """(nlat, nlon): share of each cell of ``grid``, or the part of it that has the label."""
        own = self.values if label is None else self.values == label
        return map_shares(own, self.grid, grid)


def read_map(path: Path, variable: str | None = None) -> MapFile:
    """The field of a file that is given, or its only one.

    Labels are named by ``flag_values`` and ``flag_meanings`` (CF), or by the variable that the
    attribute ``labels`` names, as in the region files of ILAMB; other whole numbers beyond 1 are
    labels without a name, 0 none of them. UsageError for anything else.
    """
    if not path.is_file():
        raise UsageError(Problem(str(path), found="no such file", wanted="a NetCDF file"))
    try:
        with open_dataset(path) as ds:
            source = grid_of(ds, str(path))
            name = _chosen(ds, source, path, variable)
            da = ds[name]
            values = np.asarray(source.to_grid_order(_map(da, source)).values)
            names, known = _labels(ds, da, values, f"{path}:{name}")
            licence = next((str(ds.attrs[k]) for k in ("licence", "license") if k in ds.attrs), "")
            field = known if names else _shares(da, values, f"{path}:{name}")
    except CallmipError as error:
        raise UsageError(error.problems) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = why_unreadable(error)
        raise UsageError(
            Problem(str(path), found=f"a file that cannot be read ({reason})", wanted="NetCDF")
        ) from error
    return MapFile(path, name, source.grid, field, names, content_hash(path), licence)


def _map(da: xr.DataArray, source: SourceGrid) -> xr.DataArray:
    """Without dimensions of length 1 beside those of the grid."""
    return da.squeeze([d for d, n in da.sizes.items() if n == 1 and d not in source.own_dims])


def _chosen(ds: xr.Dataset, source: SourceGrid, path: Path, variable: str | None) -> str:
    """The variable asked for, or the only map of the file."""
    dims = f"({source.lat_dim}, {source.lon_dim})"
    maps = [
        str(name)
        for name, da in ds.data_vars.items()
        if set(_map(da, source).dims) == source.own_dims and name not in source.own_names
    ]
    listed = ", ".join(maps) or "none"
    if variable is None:
        if len(maps) == 1:
            return maps[0]
        found = f"{len(maps)} variables {dims} ({listed})" if maps else f"no variable {dims}"
        raise UsageError(
            Problem(str(path), found=found, wanted="one, or its name as FILE.nc:VARIABLE")
        )
    if variable in maps:
        return variable
    found = "no such variable"
    if variable in ds.variables:
        found = f"dimensions ({', '.join(map(str, ds[variable].dims))})"
    raise UsageError(Problem(str(path), variable, found, f"a map {dims}; the file has {listed}"))


def _labels(
    ds: xr.Dataset, da: xr.DataArray, values: NDArray[Any], where: str
) -> tuple[dict[int, str], NDArray[np.int64]]:
    """Label -> name of those that the map has, and (nlat, nlon) labels; no names for shares."""
    whole = np.dtype(da.encoding.get("dtype", da.dtype)).kind in "iu"
    there = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, np.bool_)
    given = dict(_given_labels(ds, da, where))
    none = min(given, default=0) - 1
    if not whole or da.attrs.get("units") in ("%", "percent"):
        if not given:
            return {}, np.zeros((0, 0), np.int64)
        if (values[there] % 1 != 0).any():
            raise UsageError(Problem(where, found="fractions", wanted="whole numbers as labels"))
    labels = np.where(there, np.nan_to_num(values), none).astype(np.int64)
    present = [int(label) for label in np.unique(labels[there])]
    if not given:
        if max(present, default=0) <= 1 and min(present, default=0) >= 0:
            return {}, labels
        if present[0] < 0 or len(present) > MOST_LABELS:
            found = f"whole numbers from {present[0]} to {present[-1]}"
            wanted = f"at most {MOST_LABELS} labels from 1 on, 0 for none, or {_WANTED}"
            raise UsageError(Problem(where, found=found, wanted=wanted))
        return {label: str(label) for label in present if label > 0}, labels
    names = {label: given[label] for label in present if label in given}
    if not names:
        raise UsageError(Problem(where, found="no cell", wanted="cells with one of its labels"))
    return names, labels


def _given_labels(ds: xr.Dataset, da: xr.DataArray, where: str) -> Iterator[tuple[int, str]]:
    """Label and name, as the attributes of a variable tell them."""
    if "labels" in da.attrs:
        listed = str(da.attrs["labels"])
        if listed not in ds.variables:
            raise UsageError(
                Problem(where, "labels", f"no variable {listed}", "a variable with their names")
            )
        texts = [str(text).strip() for text in np.atleast_1d(ds[listed].values)]
        yield from enumerate(texts)
    elif "flag_values" in da.attrs:
        flags = np.atleast_1d(da.attrs["flag_values"])
        meanings = str(da.attrs.get("flag_meanings", "")).split()
        if len(meanings) != len(flags):
            found = f"{len(flags)} flag_values and {len(meanings)} flag_meanings"
            raise UsageError(Problem(where, found=found, wanted="as many of both"))
        yield from zip((int(flag) for flag in flags), meanings, strict=True)


def _shares(da: xr.DataArray, values: NDArray[Any], where: str) -> Array:
    """(nlat, nlon) shares in [0, 1], missing ones 0."""
    if values.dtype.kind not in "fiub":
        raise UsageError(Problem(where, found=f"{values.dtype} values", wanted=_WANTED))
    units = str(da.attrs.get("units", "")).strip()
    plain = np.nan_to_num(values.astype(np.float64))
    shares = plain / (100.0 if units in ("%", "percent") else 1.0)
    low, high = float(shares.min()), float(shares.max())
    if low < -_ROUNDING or high > 1.0 + _ROUNDING:
        found = f"values from {plain.min():g} to {plain.max():g}" + (
            f" {units}" if units != "1" else ""
        )
        raise UsageError(Problem(where, found=found, wanted=_WANTED))
    if high <= 0.0:
        raise UsageError(Problem(where, found="no value above 0", wanted=_WANTED))
    return np.clip(shares, 0.0, 1.0)


def plain_name(text: str) -> str:
    """A label as part of a region's name: letters, digits, ``.``, ``_`` and ``-``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-")
