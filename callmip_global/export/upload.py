"""Stores to the NetCDF files that CalLMIP asks for: names, attributes, units and bounds.

One file per stage and frequency, in a folder per simulation, because the name has no token for the
simulation. A member's file has ``_mNNN`` before ``.nc``: the protocol names no place for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import netCDF4
import numpy as np
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.files import fsync_folder
from callmip_global.parallel import Progress, quiet
from callmip_global.store import StoreInfo, StoreName, open_store, store_info
from callmip_global.timeaxis import Frequency, MonthAxis, decode_months, decode_years
from callmip_global.variables import known_variable, variable_table, with_uncertainties

if TYPE_CHECKING:
    import xarray as xr

FILL = 1e20
"""What missing values are in the files: CMIP's fill value."""

FILE_NAME = "{model}.{version}_global_{resolution}_{frequency}_{first_year}-{last_year}_{stage}.nc"
ATTRIBUTES: Mapping[str, str] = MappingProxyType(
    {
        "Model": "{model}.{version}",
        "CalLMIP_Phase": "Phase 1",
        "Calibration_Scenario": "Scen{scenario}",
        "Calibration_stage": "{stage}",
        "Cal_Val": "Global",
        "simulation": "{simulation}",
    }
)
REFERENCES = "CalLMIP Phase 1 Protocol v2 (June 2026)"

_BLOCK = 60
_KEPT = ("derived_from", "original_name", "original_units")


@dataclass(frozen=True)
class UploadFile:
    """One file to be written: a frequency of a store, its last years, its path."""

    store: Path
    info: StoreInfo
    name: StoreName
    frequency: Frequency
    steps: slice
    axis: MonthAxis
    variables: tuple[str, ...]
    path: Path


def export_upload(
    stores: Sequence[Path],
    *,
    out: Path,
    years: int | None = None,
    file_name: str = FILE_NAME,
    attributes: Mapping[str, str] = ATTRIBUTES,
    progress: Progress = quiet,
) -> list[Path]:
    """Write ``<out>/<simulation>/<file name>`` for every store and frequency; return the paths.

    stores : harmonized stores on a standard grid
    years : how many of the last years (default: all)
    file_name, attributes : patterns over {model} {version} {resolution} {frequency} {first_year}
        {last_year} {stage} {scenario} {simulation}; the defaults are those of Phase 1

    Variables are those the protocol asks for, in its units. Every file is written under a temporary
    name and renamed. UsageError before anything is written when two stores would give one name, a
    store is on its native grid, or holds fewer years; DataError when it holds no such variable.
    """
    planned = [f for store in stores for f in _planned(store, out, years, file_name)]
    return write_files(planned, attributes, progress)


def write_files(
    planned: Sequence[UploadFile],
    attributes: Mapping[str, str],
    progress: Progress,
    *,
    upload: bool = True,
) -> list[Path]:
    """Write all files and return their paths; UsageError before the first when two share a path."""
    by_path: dict[Path, UploadFile] = {}
    problems = []
    for file in planned:
        if file.path in by_path:
            found = f"{file.store} and {by_path[file.path].store}"
            remedy = "Export them into different folders."
            problems.append(Problem(str(file.path), "", found, "one store per file", remedy))
        by_path.setdefault(file.path, file)
    if problems:
        raise UsageError(problems)
    for number, file in enumerate(planned):
        progress(file.path.name, number / len(planned))
        write_file(file, attributes, upload=upload)
    progress("exported", 1.0)
    return [file.path for file in planned]


def _planned(store: Path, out: Path, years: int | None, file_name: str) -> list[UploadFile]:
    info = store_info(store)
    name = info.name
    if name is None or name.grid == "native":
        found = "the native grid" if name else "a store without model, simulation and stage"
        wanted = "a harmonized store on the 0.5, 1 or 2 degree grid"
        raise UsageError(Problem(str(store), "grid", found, wanted))
    files = []
    for frequency in info.frequencies:
        ds = open_store(store, frequency)
        axis = (decode_months if frequency == "mon" else decode_years)(ds, f"{store} {frequency}")
        asked = tuple(n for n, v in variable_table().items() if v.requested and n in ds)
        variables = tuple(n for n in with_uncertainties(asked) if n in ds)
        if not variables:
            wanted = "at least one variable that the protocol asks for"
            raise DataError(Problem(str(store), frequency, "none", wanted))
        first, last = axis.years
        if years is not None:
            if years > last - first + 1:
                found, wanted = f"{last - first + 1} years ({first} to {last})", f"{years} years"
                raise UsageError(Problem(str(store), frequency, found, wanted))
            first = last - years + 1
        steps = axis.select(first, last, str(store))
        path = out / name.simulation / _file_name(file_name, info, name, frequency, first, last)
        files.append(
            UploadFile(store, info, name, frequency, steps, axis.part(steps), variables, path)
        )
    return files


def _file_name(
    pattern: str, info: StoreInfo, name: StoreName, frequency: str, first: int, last: int
) -> str:
    values = _values(info, name) | {
        "frequency": frequency,
        "first_year": str(first),
        "last_year": str(last),
    }
    text = pattern.format(**values)
    if name.member is None:
        return text
    return f"{text.removesuffix('.nc')}_m{name.member:03d}.nc"


def _values(info: StoreInfo, name: StoreName) -> dict[str, str]:
    return {
        "model": name.model,
        "version": name.version,
        "resolution": name.grid,
        "stage": name.stage,
        "simulation": name.simulation,
        "scenario": "" if info.scenario is None else str(info.scenario),
    }


def _global_attributes(file: UploadFile, patterns: Mapping[str, str]) -> dict[str, str]:
    info, name = file.info, file.name
    stored = {k: str(v) for k, v in info.attributes.items()}
    what = f"{name.model}.{name.version} {name.simulation} {name.stage}"
    member = "" if name.member is None else f", member {name.member}"
    title = f"CalLMIP global run: {what}{member}, {name.grid}, {file.frequency}"
    comment = " ".join(t for t in (info.synthetic, stored.get("comment", "")) if t)
    found = {
        "Conventions": "CF-1.8",
        "title": f"SYNTHETIC, not a result. {title}" if info.synthetic else title,
        "institution": stored.get("institution", ""),
        "contact": stored.get("contact", ""),
        "source": stored.get("source", ""),
        "history": f"exported by callmip-global {__version__} from {file.store.name}",
        "references": stored.get("references", REFERENCES),
        "comment": comment,
        "frequency": file.frequency,
    }
    values = _values(info, name)
    for key, pattern in patterns.items():
        if "{scenario}" in pattern and not values["scenario"]:
            # A prior belongs to no calibration scenario.
            found[key] = "none" if name.stage == "Prior" else "not stated"
        else:
            found[key] = pattern.format(**values)
    if name.member is not None:
        found["member"] = str(name.member)
    return {key: text for key, text in found.items() if text}


def write_file(file: UploadFile, patterns: Mapping[str, str], *, upload: bool = True) -> None:
    """Write one file under a temporary name, and rename it.

    ``patterns``: further global attributes; ``upload``: units as the protocol spells them, not CF.
    """
    file.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.path.with_name(f".{file.path.name}.{uuid4().hex}.tmp")
    ds = open_store(file.store, file.frequency)
    try:
        with netCDF4.Dataset(temporary, "w", format="NETCDF4") as nc:
            nc.setncatts(_global_attributes(file, patterns))
            _write_coordinates(nc, ds, file.axis)
            for name in file.variables:
                _write_variable(nc, ds, name, file.steps, upload)
        temporary.replace(file.path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(file.path.parent)


def _write_coordinates(nc: Any, ds: xr.Dataset, axis: MonthAxis) -> None:
    nc.createDimension("time", None)
    nc.createDimension("lat", ds.sizes["lat"])
    nc.createDimension("lon", ds.sizes["lon"])
    nc.createDimension("bnds", 2)
    _put(nc, "time", ("time",), axis.time, axis.time_attributes)
    _put(nc, "time_bnds", ("time", "bnds"), axis.bounds, {})
    for name in ("lat", "lon", "lat_bnds", "lon_bnds", "areacella", "sftlf"):
        if name in ds.variables:
            dims = tuple(str(d) for d in ds[name].dims)
            _put(nc, name, dims, ds[name].values, ds[name].attrs)


def _put(
    nc: Any, name: str, dims: tuple[str, ...], values: NDArray[Any], attributes: Mapping[str, Any]
) -> None:
    variable = nc.createVariable(name, "f8", dims)
    variable.setncatts(_own(attributes))
    variable[...] = values


def _own(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in attributes.items() if k != "_FillValue"}


def _write_variable(nc: Any, ds: xr.Dataset, name: str, steps: slice, upload: bool) -> None:
    """One variable in blocks of time, float32, missing as 1e20; no value is changed."""
    var = known_variable(name)
    assert var is not None
    stored = ds[name]
    attributes: dict[str, Any] = {
        **var.cf_attributes(upload=upload),
        "missing_value": np.float32(FILL),
        "cell_measures": "area: areacella",
        **{k: str(stored.attrs[k]) for k in _KEPT if k in stored.attrs},
    }
    if var.depth_m is not None:
        attributes["coordinates"] = _depth(nc, var.depth_m)
    fraction = f"valid_fraction_{var.name}"
    if fraction in ds.variables:
        attributes["ancillary_variables"] = fraction
    _write_series(nc, stored, attributes, steps)
    if fraction in ds.variables and "time" in ds[fraction].dims:
        _write_series(nc, ds[fraction], _own(ds[fraction].attrs), steps)
    elif fraction in ds.variables:
        _put(nc, fraction, ("lat", "lon"), ds[fraction].values, ds[fraction].attrs)


def _write_series(
    nc: Any, stored: xr.DataArray, attributes: Mapping[str, Any], steps: slice
) -> None:
    out = nc.createVariable(
        str(stored.name),
        "f4",
        ("time", "lat", "lon"),
        zlib=True,
        complevel=4,
        shuffle=True,
        chunksizes=(1, stored.sizes["lat"], stored.sizes["lon"]),
        fill_value=np.float32(FILL),
    )
    out.setncatts(attributes)
    for start in range(steps.start, steps.stop, _BLOCK):
        stop = min(start + _BLOCK, steps.stop)
        values = stored.isel(time=slice(start, stop)).transpose("time", "lat", "lon").values
        filled = np.where(np.isnan(values), np.float32(FILL), values)
        out[start - steps.start : stop - steps.start] = filled


def _depth(nc: Any, bounds: tuple[float, float]) -> str:
    """The scalar coordinate of the soil layer that a variable speaks of, with its bounds."""
    if "depth" not in nc.variables:
        depth = nc.createVariable("depth", "f8", ())
        depth.setncatts(
            {
                "standard_name": "depth",
                "long_name": "depth of the soil layer",
                "units": "m",
                "positive": "down",
                "axis": "Z",
                "bounds": "depth_bnds",
            }
        )
        depth[...] = 0.5 * (bounds[0] + bounds[1])
        nc.createVariable("depth_bnds", "f8", ("bnds",))[...] = np.asarray(bounds)
    return "depth"
