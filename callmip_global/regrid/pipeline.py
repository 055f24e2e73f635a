"""Whole data sets to a standard grid: in memory, store to store, files to a flat store.

All three go the same way: variables in grid order, one weight set, blocks of time through one
kernel, the covered fraction kept beside the data. The two that write check, before they publish,
that every global integral is what it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.files import text_hash
from callmip_global.grid import Grid
from callmip_global.parallel import TaskMap, in_threads, run_units
from callmip_global.regrid.apply import covered_fraction, integrals, masked_mean
from callmip_global.regrid.fields import Field, Inputs, LandFraction, inputs_of, open_inputs
from callmip_global.regrid.weightfiles import read_weights
from callmip_global.regrid.weights import AnyWeights, conservative_weights
from callmip_global.store import (
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
    unmasked_fill,
)
from callmip_global.timeaxis import Frequency, decode_months, decode_years

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]

TOLERANCE = {"float32": 1e-6, "float64": 1e-11}
"""Largest relative drift of a global integral that is let through, by the type of the data."""

_BLOCK_BYTES = 64 * 1024**2
_BLOCK_STEPS = 60
# Fractions nearer than this are the same but for rounding.
_SAME = 1e-12


def _silent(message: str, done: float) -> None:
    pass


# --- in memory --------------------------------------------------------------------------------


def regrid_dataset(
    ds: xr.Dataset,
    *,
    grid: Grid,
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
    out: dict[str, Any] = {}
    fractions: dict[str, _Fraction] = {}
    whole = slice(0, max(field.size for field in inputs.fields))
    for field in inputs.fields:
        values, covered = _regridded(weights, field, whole, where)
        leading = covered.reshape(-1, *grid.shape)
        static = bool(np.all(leading == leading[:1]))
        out[field.name] = (field.dims, values, _measured(field.attributes))
        fractions[field.name] = _Fraction(
            ("lat", "lon") if static else field.dims, leading[0] if static else covered
        )
    for name, fraction in _named(fractions).items():
        out[name] = (fraction.dims, fraction.values, _fraction_attributes(name))
    if inputs.land is not None:
        out["sftlf"] = land_variable(covered_fraction(weights, inputs.land))
    coords: dict[Any, Any] = {**grid_variables(grid), **inputs.passed_on.variables}
    return xr.Dataset(out, coords=coords, attrs=dict(ds.attrs))


@dataclass(frozen=True)
class _Fraction:
    """A covered fraction: (nlat, nlon) when it never changes, else computed with the data."""

    dims: tuple[str, ...]
    values: Array | None
    dtype: Literal["float32", "float64"] = "float64"

    @property
    def static(self) -> bool:
        return self.values is not None and self.values.ndim == 2

    def same_as(self, other: _Fraction) -> bool:
        if self.values is None or other.values is None:
            return False
        return self.dims == other.dims and bool(np.all(np.abs(self.values - other.values) <= _SAME))


def _named(fractions: Mapping[str, _Fraction]) -> dict[str, _Fraction]:
    """``valid_fraction`` is what most variables have; the others get one with their name."""
    common = max(
        fractions.values(), key=lambda one: sum(one.same_as(f) for f in fractions.values())
    )
    own = {
        f"valid_fraction_{name}": fraction
        for name, fraction in fractions.items()
        if fraction is not common and not fraction.same_as(common)
    }
    return {"valid_fraction": common, **own}


def _measured(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**attributes, "cell_measures": "area: areacella"}


def _fraction_attributes(name: str) -> dict[str, str]:
    of = f"of {name[15:]} " if name.startswith("valid_fraction_") else ""
    return {
        "long_name": f"fraction of the cell's area that the values {of}speak for",
        "units": "1",
        "cell_measures": "area: areacella",
    }


def _regridded(
    weights: AnyWeights, field: Field, region: slice, where: str
) -> tuple[NDArray[Any], Array]:
    values = field.read(region)
    _check_missing(values, where, field.name)
    return masked_mean(weights, values, field.read_weight(region))


def _check_missing(values: NDArray[Any], where: str, name: str) -> None:
    """DataError where a fill value would be averaged as if it were a number."""
    fill = unmasked_fill(values)
    if fill is not None:
        remedy = f"Name it first: ncatted -a _FillValue,{name},o,f,{fill:g} FILE"
        found = f"{fill:g}, which no attribute calls missing"
        raise DataError(Problem(where, name, found, "missing values that the file names", remedy))


# --- to stores --------------------------------------------------------------------------------


def regrid_store(
    native: Path,
    *,
    grid: Grid,
    out: Path,
    name: StoreName,
    progress: Progress = _silent,
    task_map: TaskMap = in_threads,
) -> dict[str, Any]:
    """A native store on a standard grid, as the store ``out``: all groups, all variables.

    Variables per land area are weighted with the store's ``sftlf``, the others with the area that
    is valid; ``sftlf`` is carried over, ``areacella`` is the target's. Where the values of a
    variable speak for another part of the cell than ``sftlf`` says, that part is written beside it
    as ``valid_fraction_<name>``.

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
    inputs: dict[str, tuple[Inputs, AnyWeights]] = {}
    templates: dict[str, Template] = {}
    fractions: dict[str, dict[str, _Fraction]] = {}
    for frequency in info.frequencies:
        ds = open_store(native, frequency)
        group = inputs_of(ds, f"{native} {frequency}")
        if group.land is None:
            raise DataError(Problem(str(native), "sftlf", "none", "a land fraction in every store"))
        weights = conservative_weights(group.source.grid, grid, edge_model=group.source.edge_model)
        land = covered_fraction(weights, group.land)
        axis = (decode_months if frequency == "mon" else decode_years)(ds, str(native))
        found = _fractions(weights, group, task_map)
        by_land = {field.name for field in group.fields if field.weighting == "land fraction"}
        as_sftlf = _Fraction(("lat", "lon"), land)
        own = {
            f"valid_fraction_{key}": fraction
            for key, fraction in found.items()
            if key not in by_land or not fraction.same_as(as_sftlf)
        }
        template = protocol_template(
            grid=grid,
            axis=axis,
            variables={field.name: field.attributes for field in group.fields},
            land_fraction=land,
            attributes=attributes,
        )
        inputs[frequency] = (group, weights)
        fractions[frequency] = found
        templates[frequency] = _with_fractions(template, own)
    identity = {
        "what": "regrid_store",
        "version": __version__,
        "source": store_digest(native),
        "target": grid.digest,
    }
    writer = create_store(out, templates, fingerprint=identity, attributes=attributes)
    report = _fill(_Work(writer, inputs, fractions, grid), progress, task_map)
    _check(str(native), report)
    first = inputs[info.frequencies[0]][1]
    provenance = {
        **info.provenance,
        "regrid": {
            **first.provenance(),
            "source_store": native.name,
            "target_grid": grid.name,
            "conservation": report,
        },
    }
    writer.publish({"provenance": json.dumps(provenance, sort_keys=True)})
    return {"weights": dict(first.provenance()), "conservation": report}


def _frequency(text: str | None) -> Frequency | None:
    known: tuple[Frequency | None, ...] = ("mon", "yr", None)
    for frequency in known:
        if text == frequency:
            return frequency
    raise UsageError(Problem("--frequency", found=repr(text), wanted="mon or yr"))


def regrid_files(
    paths: Sequence[Path],
    *,
    grid: Grid,
    out: Path,
    frequency: str | None = None,
    weight_file: Path | None = None,
    progress: Progress = _silent,
    task_map: TaskMap = in_threads,
) -> dict[str, Any]:
    """Any CF files or stores on a standard grid, as one flat store.

    Variables at the root under their own names, ``valid_fraction`` beside them; several files are
    joined along time. Types, attributes, time axis and further dimensions stay as they are.
    ``weight_file``: conservative weights of another tool instead of our own (``read_weights``).
    ``task_map`` as for ``regrid_store``.
    Returns a report as ``regrid_store`` does (frequency ""), with what was left out.
    UsageError when ``out`` is something other than a store; otherwise the errors of
    ``open_inputs``.
    """
    if out.exists() and not is_store(out):
        raise UsageError(
            Problem(str(out), found="something that is no store", wanted="a new path, or a store")
        )
    inputs = open_inputs(paths, _frequency(frequency), corners=weight_file is None)
    weights: AnyWeights
    if weight_file is None:
        source = inputs.source
        weights = conservative_weights(source.grid, grid, edge_model=source.edge_model)
    else:
        weights, source = read_weights(weight_file, inputs.source, grid)
        inputs = replace(inputs, source=source)
    found = _fractions(weights, inputs, task_map)
    # Text coordinates have no settled form in Zarr v3.
    numbers = {k: v for k, v in inputs.passed_on.variables.items() if v.dtype.kind in "iuf"}
    coordinates = xr.Dataset(
        coords={**grid_variables(grid), **numbers},
        attrs={
            **{k: v for k, v in inputs.attributes.items() if k not in _OF_THE_SOURCE},
            "Conventions": "CF-1.8",
        },
    )
    for field in inputs.fields:
        # Levels without a coordinate are numbered: a store knows the sizes by its coordinates.
        sizes = field.parts[0].sizes
        lost = [dim for dim in field.dims if dim in sizes and dim not in coordinates.sizes]
        coordinates = coordinates.assign_coords({dim: np.arange(sizes[dim]) for dim in lost})
    if inputs.land is not None:
        coordinates["sftlf"] = land_variable(covered_fraction(weights, inputs.land))
    arrays = {
        field.name: ArraySpec(field.dims, _measured(field.attributes), field.dtype)
        for field in inputs.fields
    }
    named = _named(found)
    template = _with_fractions(Template(coordinates, arrays), named)
    identity = {
        "what": "regrid_files",
        "version": __version__,
        "sources": [[str(p.resolve()), _file_identity(p)] for p in paths],
        "target": grid.digest,
        **({"weights": _file_identity(weight_file)} if weight_file is not None else {}),
    }
    writer = create_store(out, {"": template}, fingerprint=identity)
    work = _Work(writer, {"": (inputs, weights)}, {"": found}, grid)
    report = _fill(work, progress, task_map)
    _check(", ".join(str(path) for path in paths[:3]), report, weights.tolerance)
    provenance = {
        "regrid": {
            **weights.provenance(),
            "sources": [path.name for path in paths],
            "target_grid": grid.name,
            "conservation": report,
        }
    }
    writer.publish({"provenance": json.dumps(provenance, sort_keys=True)})
    return {
        "weights": dict(weights.provenance()),
        "conservation": report,
        "left_out": list(inputs.left_out),
    }


# What another store says of itself would be wrong of a flat store made from it.
_OF_THE_SOURCE = ("grid", "frequencies", "provenance")


def _file_identity(path: Path) -> str:
    if path.is_dir():
        return store_digest(path)
    stat = path.stat()
    return text_hash(f"{stat.st_size} {stat.st_mtime_ns}")


def _fractions(weights: AnyWeights, inputs: Inputs, task_map: TaskMap) -> dict[str, _Fraction]:
    """The covered fraction of every variable, static where its mask and weight never change."""
    masks = run_units(task_map, _static_weight, inputs, range(len(inputs.fields)))
    return {
        field.name: _Fraction(
            ("lat", "lon") if mask is not None else field.dims,
            covered_fraction(weights, mask) if mask is not None else None,
            field.dtype,
        )
        for field, mask in zip(inputs.fields, masks, strict=True)
    }


def _static_weight(inputs: Inputs, position: int) -> Array | None:
    """(nlat, nlon) weight of a field's valid cells, None as soon as it is seen to change."""
    field = inputs.fields[position]
    if isinstance(field.weight, tuple):
        return None
    first: NDArray[np.bool_] | None = None
    for block in _blocks(field, slice(0, field.size)):
        values = field.read(block)
        valid = ~np.isnan(values.reshape(-1, *values.shape[-2:]))
        first = valid[0] if first is None else first
        if not np.all(valid == first):
            return None
    weight: Array = np.where(first if first is not None else False, field.weight, 0.0)
    return weight


def _blocks(field: Field, region: slice) -> list[slice]:
    """Runs of time steps of at most 64 MB of source data (and as many as one Zarr chunk has)."""
    if not field.timed:
        return [region]
    per_step = np.dtype(field.dtype).itemsize * math.prod(field.parts[0].shape[1:])
    steps = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // per_step))
    return [slice(a, min(a + steps, region.stop)) for a in range(region.start, region.stop, steps)]


def _with_fractions(template: Template, fractions: Mapping[str, _Fraction]) -> Template:
    """Static fractions into the coordinates at once, changing ones as arrays to be filled."""
    coordinates = template.coordinates
    arrays = dict(template.arrays)
    for name, fraction in fractions.items():
        if fraction.static:
            coordinates = coordinates.assign(
                {name: (fraction.dims, fraction.values, _fraction_attributes(name))}
            )
        else:
            attributes = _fraction_attributes(name)
            arrays[name] = ArraySpec(fraction.dims, attributes, fraction.dtype)
    return Template(coordinates, arrays)


@dataclass(frozen=True)
class _Work:
    """What the units of one call have in common. ``inputs`` and ``fractions`` are by group."""

    writer: StoreWriter
    inputs: Mapping[str, tuple[Inputs, AnyWeights]]
    fractions: Mapping[str, Mapping[str, _Fraction]]
    grid: Grid


_Unit = tuple[str, int, slice]
"""Group, position of the field, region: one shard."""


def _fill(work: _Work, progress: Progress, task_map: TaskMap) -> dict[str, Any]:
    """Write every region that is not done yet; the conservation report of all of them."""
    writer = work.writer
    units = [
        (group, position, region)
        for group, (given, _) in work.inputs.items()
        for position, field in enumerate(given.fields)
        for region in writer.regions(group, field.name)
    ]
    fields = {group: given.fields for group, (given, _) in work.inputs.items()}
    to_do = [u for u in units if not writer.is_done(u[0], fields[u[0]][u[1]].name, u[2])]
    resumed = len(units) - len(to_do)

    def done(unit: _Unit, note: Mapping[str, Any], share: float) -> None:
        group, position, region = unit
        name = fields[group][position].name
        if not work.fractions[group][name].static:
            writer.record(group, _fraction_array(writer, group, name), region)
        writer.record(group, name, region, note)
        progress(" ".join(filter(None, (group, name))), (resumed + share * len(to_do)) / len(units))

    run_units(task_map, _fill_region, work, to_do, done)
    return {
        group: {
            field.name: _summary(writer, group, field, work.fractions[group][field.name])
            for field in given.fields
        }
        for group, (given, _) in work.inputs.items()
    }


def _fraction_array(writer: StoreWriter, group: str, name: str) -> str:
    own = f"valid_fraction_{name}"
    return own if own in writer.templates[group].arrays else "valid_fraction"


def _fill_region(work: _Work, unit: _Unit) -> dict[str, list[float]]:
    """Regrid one region and fill its shard, and that of its fraction where that changes.

    Returns the integrals per time step, which go into the ledger.
    """
    group, position, region = unit
    writer, (given, weights) = work.writer, work.inputs[group]
    field = given.fields[position]
    fraction = work.fractions[group][field.name]
    weights.check(given.source.grid, work.grid)
    source_area, target_area = given.source.grid.cell_area, work.grid.cell_area
    shape = writer.templates[group].shape(field.name)
    length = region.stop - region.start
    shard = np.empty((length, *shape[1:]) if field.timed else shape, dtype=field.dtype)
    changing = None if fraction.static else np.empty_like(shard)
    before: list[float] = []
    after: list[float] = []
    scale: list[float] = []
    for block in _blocks(field, region):
        place = slice(block.start - region.start, block.stop - region.start)
        target = place if field.timed else slice(None)
        values, weight = field.read(block), field.read_weight(block)
        _check_missing(values, given.where, field.name)
        result, covered = masked_mean(weights, values, weight)
        shard[target] = result
        if changing is not None:
            changing[target] = covered
            covered = changing[target].astype(np.float64)
        total, absolute = integrals(values, weight, source_area)
        if not np.all(np.isfinite(absolute)):
            raise DataError(
                Problem(
                    given.where,
                    field.name,
                    f"infinite values, in steps {block.start + 1} to {block.stop}",
                    "numbers, or missing values",
                    "Mask them in the source",
                )
            )
        before.extend(_per_step(total, field, block))
        scale.extend(_per_step(absolute, field, block))
        after.extend(_per_step(integrals(result, covered, target_area)[0], field, block))
    if changing is not None:
        writer.fill(group, _fraction_array(writer, group, field.name), region, changing)
    writer.fill(group, field.name, region, shard)
    return {"before": before, "after": after, "scale": scale}


def _per_step(sums: Array, field: Field, block: slice) -> list[float]:
    """Sums over the maps of each time step (of everything without time)."""
    steps = block.stop - block.start if field.timed else 1
    return [float(value) for value in sums.reshape(steps, -1).sum(axis=1)]


def _summary(writer: StoreWriter, group: str, field: Field, fraction: _Fraction) -> dict[str, Any]:
    notes = [writer.note(group, field.name, r) for r in writer.regions(group, field.name)]
    before, after, scale = (
        np.concatenate([np.asarray(note[key]) for note in notes])
        for key in ("before", "after", "scale")
    )
    drift = np.abs(after - before) / np.where(scale > 0.0, scale, 1.0)
    return {
        "weighting": field.weighting,
        "mask": "static" if fraction.static else "changes",
        "stored_as": field.dtype,
        "integral_before": float(before.mean()),
        "integral_after": float(after.mean()),
        "max_relative_drift": float(drift.max()),
    }


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
        if not entry["max_relative_drift"] <= allowed[entry["stored_as"]]
    ]
    if problems:
        raise DataError(problems)
