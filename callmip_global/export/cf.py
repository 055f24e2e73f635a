"""Stores to CF twins: the same values as NetCDF files that any tool of the field reads.

One file per variable and frequency, as ESMValTool, ILAMB and CDO users expect. Units are those of
the stores (``kg m-2 s-1``), which UDUNITS reads; the protocol's own ``kgC`` it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.export.upload import ATTRIBUTES, UploadFile, write_files
from callmip_global.parallel import Progress, quiet
from callmip_global.store import open_store, store_info
from callmip_global.timeaxis import decode_months, decode_years
from callmip_global.variables import variable_table, with_uncertainties


def export_cf(
    stores: Sequence[Path],
    *,
    out: Path,
    years: int | None = None,
    attributes: Mapping[str, str] = ATTRIBUTES,
    progress: Progress = quiet,
) -> list[Path]:
    """Write a file for every variable and frequency of every store; return the paths.

    They are ``<out>/<simulation>/<variable>_<frequency>_<model>.<version>_<simulation>_<grid>_
    <stage>[_mNNN]_<first>-<last>.nc``, the stores on any grid. ``years``: how many of the last ones
    (default: all). ``attributes``: patterns as `export_upload` takes them.

    UsageError before anything is written when two stores would give one name or hold fewer years;
    DataError for a store without any variable of the variable table.
    """
    planned = [file for store in stores for file in _planned(store, out, years)]
    return write_files(planned, attributes, progress, upload=False)


def _planned(store: Path, out: Path, years: int | None) -> list[UploadFile]:
    info = store_info(store)
    name = info.name
    if name is None:
        found = "a store without model, simulation and stage"
        raise UsageError(Problem(str(store), found=found, wanted="a harmonized store"))
    identity = name.text.removesuffix(".zarr")
    files = []
    for frequency in info.frequencies:
        ds = open_store(store, frequency)
        axis = (decode_months if frequency == "mon" else decode_years)(ds, f"{store} {frequency}")
        first, last = axis.years
        if years is not None:
            if years > last - first + 1:
                found, wanted = f"{last - first + 1} years ({first} to {last})", f"{years} years"
                raise UsageError(Problem(str(store), frequency, found, wanted))
            first = last - years + 1
        steps = axis.select(first, last, str(store))
        for variable in with_uncertainties(variable_table()):
            if variable in ds.variables:
                file = f"{variable}_{frequency}_{identity}_{first}-{last}.nc"
                path = out / name.simulation / file
                part = axis.part(steps)
                files.append(
                    UploadFile(store, info, name, frequency, steps, part, (variable,), path)
                )
    if not files:
        raise DataError(Problem(str(store), found="no variable of the variable table"))
    return files
