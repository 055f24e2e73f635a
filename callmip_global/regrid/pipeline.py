"""Whole data sets to a standard grid: in memory, store to store, files to a flat store.

All three go the same way: variables in grid order, one weight set, blocks of time through one
kernel, the covered fraction kept beside the data. The two that write check, before they publish,
that every global integral is what it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.annual import Annual
from callmip_global.errors import DataError, Problem, UsageError, one_of
from callmip_global.files import text_hash
from callmip_global.grid import GaussianEdges, Grid
from callmip_global.parallel import Progress, TaskMap, in_threads, quiet
from callmip_global.regrid.apply import covered_fraction
from callmip_global.regrid.engines import check_engine, make_weights
from callmip_global.regrid.fields import Field, Inputs, LandFraction, inputs_of, open_inputs
from callmip_global.regrid.shards import (
    Kind,
    Remap,
    Work,
    fill_shards,
    fill_years,
    has_years,
    remaps,
    series,
    summary,
)
from callmip_global.regrid.weightfiles import Source, read_weights, write_weights
from callmip_global.regrid.weights import AnyWeights, conservative_weights
from callmip_global.store import (
    FREQUENCIES,
    ArraySpec,
    StoreName,
    StoreWriter,
    Template,
    create_store,
    grid_variables,
    is_store,
    land_variable,
    open_store,
    protocol_template,
    store_attributes,
    store_digest,
    store_info,
)
from callmip_global.timeaxis import Frequency, decode_months, decode_years

Array = NDArray[np.float64]
_GAUSSIAN_EDGES: tuple[GaussianEdges, ...] = ("weights", "midpoints")

TOLERANCE = {"float32": 1e-6, "float64": 1e-11}
"""Largest relative drift of a global integral that is let through, by the type of the data."""

# Fractions nearer than this are the same but for rounding.
_SAME = 1e-12


# --- in memory --------------------------------------------------------------------------------


def regrid_dataset(
    ds: xr.Dataset,
    grid: Grid,
    *,
    land_fraction: LandFraction = "auto",
    where: str = "dataset",
) -> xr.Dataset:
    """Every numeric variable of ``ds`` that lies on its grid, whatever its kind, on ``grid``.

    In memory, and at once: for what does not fit there are ``regrid_files`` and ``regrid_store``.

    land_fraction : what weighs variables that are means over land (``cell_methods`` with "where
        land"): "auto" the data set's own ``sftlf``; an array in [0, 1] or in % on the grid of
        ``ds``; None nothing. Variables that are means over the whole cell are never weighted
        with it.

    float32 stays float32. The result has ``valid_fraction`` beside the data (and
    ``valid_fraction_<name>`` for a variable with another one): the part of each cell that the
    values speak for, with which integrals are to be taken. Also ``areacella``, bounds, ``sftlf``
    where there was one, and time and other coordinates unchanged.
    DataError when there is no grid (``source_of``), no variable on it, or land without units.
    """
    inputs = inputs_of(ds, where, land_fraction)
    weights = conservative_weights(inputs.source.grid, grid, edge_model=inputs.source.edge_model)
    ways = remaps(weights, inputs, grid)
    out: dict[str, Any] = {}
    changing: dict[str, Any] = {}
    static: dict[str, Array] = {}
    for field in inputs.fields:
        remap = ways[field.name]
        maps, weight, seen = remap.read(field, slice(0, field.size), where)
        result = np.empty((len(maps), *grid.shape), dtype=maps.dtype)
        covered = None if remap.is_fixed(seen) else np.empty(result.shape)
        remap.apply(maps, weight, result, covered)
        shape = (*field.leading, *grid.shape)
        out[field.name] = (field.dims, result.reshape(shape), _measured(field.attributes))
        if covered is not None:
            changing[field.name] = (field.dims, covered.reshape(shape))
        elif remap.covered is not None:
            static[field.name] = remap.covered
    for name, fraction in _named(static, len(inputs.fields)).items():
        out[name] = (("lat", "lon"), fraction, _fraction_attributes(name))
    for name, (dims, fraction) in changing.items():
        own = _fraction_name(name, len(inputs.fields))
        out[own] = (dims, fraction, _fraction_attributes(own))
    if inputs.land is not None:
        out["sftlf"] = land_variable(covered_fraction(weights, inputs.land))
    coords: dict[Any, Any] = {**grid_variables(grid), **inputs.passed_on.variables}
    return xr.Dataset(out, coords=coords, attrs=dict(ds.attrs))


def _fraction_name(name: str, variables: int) -> str:
    """Where the covered fraction of a variable goes when it changes with time."""
    return "valid_fraction" if variables == 1 else f"valid_fraction_{name}"


def _named(fractions: Mapping[str, Array], variables: int) -> dict[str, Array]:
    """Static fractions by the name they get: ``valid_fraction`` is what most variables have, the
    others get one with their own name."""
    if not fractions:
        return {}
    common = max(fractions.values(), key=lambda one: sum(_same(one, f) for f in fractions.values()))
    own = {
        _fraction_name(name, variables): fraction
        for name, fraction in fractions.items()
        if not _same(fraction, common)
    }
    return {"valid_fraction": common, **own}


def _same(a: Array, b: Array) -> bool:
    return a is b or bool(np.all(np.abs(a - b) <= _SAME))


def _measured(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**attributes, "cell_measures": "area: areacella"}


def _fraction_attributes(name: str) -> dict[str, str]:
    of = f"of {name[15:]} " if name.startswith("valid_fraction_") else ""
    return {
        "long_name": f"fraction of the cell's area that the values {of}speak for",
        "units": "1",
        "cell_measures": "area: areacella",
    }


# --- to stores --------------------------------------------------------------------------------


def regrid_store(
    native: Path,
    *,
    grid: Grid,
    out: Path,
    name: StoreName,
    progress: Progress = quiet,
    task_map: TaskMap = in_threads,
) -> dict[str, Any]:
    """A native store on a standard grid, as the store ``out``: all groups, all variables.

    Variables per land area are weighted with the store's ``sftlf``, the others with the area that
    is valid; ``sftlf`` is carried over, ``areacella`` is the target's. Where the values of a
    variable speak for another part of the cell than ``sftlf`` says, that part is written beside it
    as ``valid_fraction_<name>``. The group ``conservation`` of each group has the global integral
    of every variable and time step, before and after.

    Resumable: killed at any moment and called again it goes on, and the result is the same.
    ``task_map``: where the units run, each of them one shard of one variable.
    Returns (and records in the store's ``provenance``) per frequency and variable the mean global
    integral before and after and its largest relative drift over time, relative to the integral
    of the absolute values. DataError when that is above 1e-6 (float32); then nothing is published.
    """
    info = store_info(native)
    if not info.frequencies:
        raise DataError(
            Problem(str(native), found="no group mon or yr", wanted="a store made by harmonize")
        )
    kept = {k: v for k, v in info.attributes.items() if k not in ("provenance", "title")}
    attributes = store_attributes(name, kept, info.frequencies)
    inputs: dict[str, Inputs] = {}
    ways: dict[str, dict[str, Remap]] = {}
    templates: dict[str, Template] = {}
    fractions: dict[str, dict[str, str]] = {}
    lands: dict[str, Array] = {}
    for frequency in info.frequencies:
        ds = open_store(native, frequency)
        group = inputs_of(ds, f"{native} {frequency}")
        if group.land is None:
            raise DataError(Problem(str(native), "sftlf", "none", "a land fraction in every store"))
        weights = conservative_weights(group.source.grid, grid, edge_model=group.source.edge_model)
        lands[frequency] = covered_fraction(weights, group.land)
        axis = (decode_months if frequency == "mon" else decode_years)(ds, str(native))
        fractions[frequency] = {f.name: f"valid_fraction_{f.name}" for f in group.fields}
        template = protocol_template(
            grid=grid,
            axis=axis,
            variables={field.name: field.attributes for field in group.fields},
            land_fraction=lands[frequency],
            attributes=attributes,
        )
        inputs[frequency] = group
        ways[frequency] = remaps(weights, group, grid)
        templates[frequency] = _with_fractions(template, group.fields, fractions[frequency])
    identity = {
        "what": "regrid_store",
        "version": __version__,
        "source": store_digest(native),
        "target": grid.digest,
    }
    writer = create_store(out, templates, fingerprint=identity, attributes=attributes)
    work = Work(writer, inputs, ways, fractions, grid)
    fill_shards(work, progress, task_map)
    for each, given in inputs.items():
        by_land = {field.name for field in given.fields if field.weighting == "land fraction"}
        static = {
            fractions[each][key]: fraction
            for key, fraction in _static(work, each).items()
            if key not in by_land or not _same(fraction, lands[each])
        }
        _put_fractions(writer, each, static)
    report = _report(work)
    _check(str(native), report)
    weights = ways[info.frequencies[0]][inputs[info.frequencies[0]].fields[0].name].weights
    provenance = {
        **info.provenance,
        "regrid": {
            **weights.provenance(),
            "source_store": native.name,
            "target_grid": grid.name,
            "conservation": report,
        },
    }
    writer.publish({"provenance": json.dumps(provenance, sort_keys=True)})
    return {"weights": dict(weights.provenance()), "conservation": report}


def _frequency(text: str | None) -> Frequency | None:
    return None if text is None else one_of("--frequency", text, FREQUENCIES)


def regrid_files(
    paths: Sequence[Path],
    *,
    grid: Grid,
    out: Path,
    frequency: str | None = None,
    weight_file: Path | None = None,
    save_weights: Path | None = None,
    engine: str = "auto",
    method: str = "conservative",
    gaussian_edges: str = "weights",
    kinds: Mapping[str, Kind] | None = None,
    min_fraction: float = 0.0,
    annual: bool = False,
    progress: Progress = quiet,
    task_map: TaskMap = in_threads,
) -> dict[str, Any]:
    """Any CF files or stores on a standard grid, as one flat store.

    Variables at the root under their own names, ``valid_fraction`` beside them, and a group
    ``conservation`` with the global integrals before and after; several files are joined along
    time. Types, attributes, time axis and further dimensions stay as they are.

    weight_file : conservative weights of another tool instead of our own (``read_weights``)
    save_weights : where to write the weights that are used (``write_weights``, as ESMF has them)
    engine, method : whose weights, and which, where there is no file (``engines.make_weights``)
    gaussian_edges : edges of a Gaussian grid that names none: from the "weights" of Gauss, or at
        the "midpoints" between its latitudes, as CDO has them
    kinds : variable -> intensive, extensive or categorical, over what its attributes say
        (``kind_of``). Amounts per cell are shared out by area, so that their sum is kept; of
        classes a cell gets the one with the largest area.
    min_fraction : cells of which less than this part (0 to 1) is valid become missing; the report
        then has what is left of the integral, too
    annual : also annual means of monthly variables, weighted by days, each byte of the input still
        read once. The store then has groups ``mon`` and ``yr`` in place of a flat root.
    task_map : as for ``regrid_store``

    Returns a report as ``regrid_store`` does (frequency "" for a flat store), with what was left
    out. UsageError when ``out`` is something other than a store, for a variable in ``kinds`` that
    is not there, and for ``min_fraction`` outside [0, 1]; DataError for ``annual`` without months
    or a whole year; otherwise the errors of ``open_inputs``.
    """
    if out.exists() and not is_store(out):
        raise UsageError(
            Problem(str(out), found="something that is no store", wanted="a new path, or a store")
        )
    if not 0.0 <= min_fraction <= 1.0:
        raise UsageError(Problem("--min-fraction", found=str(min_fraction), wanted="0 to 1"))
    whose, how = check_engine(engine, method)
    corners = weight_file is None and how == "conservative"
    inputs = open_inputs(
        paths,
        _frequency(frequency),
        corners=corners,
        gaussian_edges=one_of("--gaussian-edges", gaussian_edges, _GAUSSIAN_EDGES),
    )
    _check_kinds(kinds or {}, inputs)
    weights: AnyWeights
    if weight_file is None:
        source, edges = inputs.source, inputs.source.edge_model
        weights = make_weights(source.grid, grid, engine=whose, method=how, edge_model=edges)
    else:
        weights, source = read_weights(weight_file, inputs.source, grid)
        inputs = replace(inputs, source=source)
    ways = remaps(weights, inputs, grid, kinds, min_fraction)
    if save_weights is not None:
        _save_weights(save_weights, weights, source, grid)
    years = _annual(inputs, ways) if annual else None
    group = "mon" if years is not None else ""
    names = {f.name: _fraction_name(f.name, len(inputs.fields)) for f in inputs.fields}
    arrays = {
        field.name: ArraySpec(field.dims, _measured(field.attributes), field.dtype)
        for field in inputs.fields
    }
    coordinates = _coordinates(inputs, grid, weights)
    templates = {group: _with_fractions(Template(coordinates, arrays), inputs.fields, names)}
    if years is not None:
        timed = [field for field in inputs.fields if has_years(field, ways[field.name])]
        template = Template(_yearly(coordinates, years), {f.name: arrays[f.name] for f in timed})
        templates["yr"] = _with_fractions(template, timed, names)
    identity = {
        "what": "regrid_files",
        "version": __version__,
        "sources": [[str(p.resolve()), _file_identity(p)] for p in paths],
        "target": grid.digest,
        "edges": inputs.source.edge_model,
        "weights": [*weights.provenance().values()],
        "weight file": None if weight_file is None else _file_identity(weight_file),
        "kinds": {name: way.kind for name, way in ways.items()},
        "min_fraction": min_fraction,
    }
    writer = create_store(out, templates, fingerprint=identity, attributes=coordinates.attrs)
    work = Work(writer, {group: inputs}, {group: ways}, {group: names}, grid, years)
    fill_shards(work, progress, task_map)
    static = _named(_static(work, group), len(inputs.fields))
    _put_fractions(writer, group, static)
    if years is not None:
        fill_years(work, "mon", "yr")
        _put_fractions(writer, "yr", static)
    report = _report(work)
    _check(", ".join(str(path) for path in paths[:3]), report, weights.tolerance)
    provenance = {
        "regrid": {
            **weights.provenance(),
            "sources": [path.name for path in paths],
            "target_grid": grid.name,
            "min_fraction": min_fraction,
            "conservation": report,
        }
    }
    writer.publish({"provenance": json.dumps(provenance, sort_keys=True)})
    return {
        "weights": dict(weights.provenance()),
        "conservation": report,
        "left_out": list(inputs.left_out),
    }


def _save_weights(path: Path, weights: AnyWeights, source: Source, grid: Grid) -> None:
    """Whole or not at all. UsageError for weights that such a file would call conservative, and
    where nothing can be written."""
    if not math.isfinite(weights.tolerance):
        raise UsageError(
            Problem("--save-weights", found=weights.method, wanted="conservative weights")
        )
    partial = path.with_name(f"{path.name}.partial")
    try:
        write_weights(partial, weights, source, grid)
        partial.replace(path)
    except OSError as error:
        text = f"cannot be written: {error.strerror or error}"
        raise UsageError(Problem("--save-weights", str(path), text, "a file to write")) from error


# What another store says of itself would be wrong of a flat store made from it.
_OF_THE_SOURCE = ("grid", "frequencies", "provenance")


def _check_kinds(kinds: Mapping[str, Kind], inputs: Inputs) -> None:
    """UsageError for what is no variable, or no kind."""
    there = [field.name for field in inputs.fields]
    known = ("intensive", "extensive", "categorical")
    problems = [
        Problem("--kind", name, "no such variable on the grid", f"one of: {', '.join(there)}")
        for name in kinds
        if name not in there
    ]
    problems += [
        Problem("--kind", name, repr(kind), f"one of: {', '.join(known)}")
        for name, kind in kinds.items()
        if kind not in known
    ]
    if problems:
        raise UsageError(problems)


def _coordinates(inputs: Inputs, grid: Grid, weights: AnyWeights) -> xr.Dataset:
    """Everything of a flat store that is not regridded, with its global attributes."""
    # Text coordinates have no settled form in Zarr v3.
    numbers = {k: v for k, v in inputs.passed_on.variables.items() if v.dtype.kind in "iuf"}
    own = {k: v for k, v in inputs.attributes.items() if k not in _OF_THE_SOURCE}
    coordinates = xr.Dataset(
        coords={**grid_variables(grid), **numbers}, attrs={**own, "Conventions": "CF-1.8"}
    )
    for field in inputs.fields:
        # Levels without a coordinate are numbered: a store knows the sizes by its coordinates.
        sizes = field.parts[0].sizes
        lost = [dim for dim in field.dims if dim in sizes and dim not in coordinates.sizes]
        coordinates = coordinates.assign_coords({dim: np.arange(sizes[dim]) for dim in lost})
    if inputs.land is not None:
        coordinates["sftlf"] = land_variable(covered_fraction(weights, inputs.land))
    return coordinates


def _annual(inputs: Inputs, ways: Mapping[str, Remap]) -> Annual:
    """The years of monthly inputs; DataError where there are none."""
    if not any(has_years(field, ways[field.name]) for field in inputs.fields):
        found = "no variable over time that has a mean"
        raise DataError(Problem(inputs.where, "time", found, "monthly variables", "Leave --annual"))
    annual = Annual(decode_months(inputs.passed_on, inputs.where))
    try:
        assert annual.years
    except ValueError as error:
        wanted = "January to December of a year"
        raise DataError(
            Problem(inputs.where, "time", str(error), wanted, "Leave --annual out")
        ) from None
    return annual


def _yearly(coordinates: xr.Dataset, annual: Annual) -> xr.Dataset:
    """The coordinates of the annual group."""
    axis = annual.years
    timed = [name for name, var in coordinates.variables.items() if "time" in var.dims]
    rest = coordinates.drop_vars(timed)
    return rest.assign_coords(
        time=("time", axis.time, axis.time_attributes), time_bnds=(("time", "bnds"), axis.bounds)
    )


def _file_identity(path: Path) -> str:
    if path.is_dir():
        return store_digest(path)
    stat = path.stat()
    return text_hash(f"{stat.st_size} {stat.st_mtime_ns}")


def _with_fractions(
    template: Template, fields: Sequence[Field], names: Mapping[str, str]
) -> Template:
    """Room for the covered fractions that will turn out to change with time."""
    arrays = dict(template.arrays)
    for field in fields:
        name = names[field.name]
        attributes = _fraction_attributes(name)
        arrays[name] = ArraySpec(field.dims, attributes, field.dtype, provisional=True)
    return Template(template.coordinates, arrays)


def _static(work: Work, group: str) -> dict[str, Array]:
    """The covered fraction of every variable for which it never changed."""
    found = {}
    for name, remap in work.remaps[group].items():
        covered = remap.covered
        if covered is not None and not work.writer.begun(group, work.fractions[group][name]):
            found[name] = covered
    return found


def _put_fractions(writer: StoreWriter, group: str, fractions: Mapping[str, Array]) -> None:
    variables = {
        name: (("lat", "lon"), fraction, _fraction_attributes(name))
        for name, fraction in fractions.items()
    }
    writer.put(group, xr.Dataset(variables))


# --- what was conserved -----------------------------------------------------------------------

_SERIES = {
    "before": "integral over the source, of {} with the fraction it speaks for",
    "after": "integral over the target, of {} with its valid fraction",
    "kept": "integral over the target, of {} where enough of the cell is valid",
    "drift": "change of the integral of {}, relative to that of the absolute values",
}


def _report(work: Work) -> dict[str, dict[str, Any]]:
    """Per group and variable what was conserved; the series go into the store, too."""
    report: dict[str, dict[str, Any]] = {}
    for group, given in work.inputs.items():
        report[group] = {}
        variables: dict[str, Any] = {}
        for field in given.fields:
            whole = work.remaps[group][field.name].has_integrals
            found = series(work, group, field.name) if whole else None
            report[group][field.name] = summary(work, group, field, found)
            if found is None:
                continue
            units = field.attributes.get("units", "1")
            measure = "" if work.remaps[group][field.name].kind == "extensive" else " m2"
            for key, text in _SERIES.items():
                if key in found:
                    said = {
                        "long_name": text.format(field.name),
                        "units": "1" if key == "drift" else f"{units}{measure}",
                    }
                    dims = ("time",) if field.timed else ()
                    values = found[key] if field.timed else found[key][0]
                    variables[f"{field.name}_{key}"] = (dims, values, said)
        coordinates = work.writer.templates[group].coordinates
        time = {"time": coordinates["time"].variable} if "time" in coordinates.variables else {}
        work.writer.put(
            f"{group}/conservation" if group else "conservation",
            xr.Dataset(variables, coords=time),
        )
    return report


def _check(
    where: str, report: Mapping[str, Mapping[str, Mapping[str, Any]]], tolerance: float = 0.0
) -> None:
    """DataError that lists every variable whose integral was not kept.

    ``tolerance``: what the weights themselves may lose, if that is more than rounding.
    """
    allowed = {name: max(limit, tolerance) for name, limit in TOLERANCE.items()}
    problems = [
        Problem(
            where,
            " ".join(filter(None, (group, name))),
            f"a global integral that drifts by {entry['max_relative_drift']:.2e}",
            f"at most {allowed[entry['stored_as']]:.0e}",
            "Nothing was published",
        )
        for group, variables in report.items()
        for name, entry in variables.items()
        if "max_relative_drift" in entry
        and not entry["max_relative_drift"] <= allowed[entry["stored_as"]]
    ]
    if problems:
        raise DataError(problems)
