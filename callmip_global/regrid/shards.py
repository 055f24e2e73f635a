"""The unit of work of a store in the making: one shard of one variable, read once.

A shard is read block by block. Each block is surveyed in one pass (integrals, extremes, whether
the valid cells are still those of the first map), put on the target grid, and its integrals are
taken again. Where the valid cells never change the weights are normalised once, and the covered
fraction is one map; it becomes an array over time only when a shard finds another mask. Annual sums
are taken on the way, so that each byte of the input is read once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from callmip_global.annual import Annual
from callmip_global.errors import DataError, Problem
from callmip_global.grid import Grid
from callmip_global.parallel import Progress, TaskMap, run_units
from callmip_global.regrid.apply import (
    FixedMean,
    Survey,
    integrals,
    masked_mean,
    survey,
)
from callmip_global.regrid.categories import largest_category
from callmip_global.regrid.fields import Field, Inputs
from callmip_global.regrid.weights import AnyWeights
from callmip_global.store import StoreWriter, fill_among

Array = NDArray[np.float64]
Kind = Literal["intensive", "extensive", "categorical"]

# Large enough that the work is in the kernels, small enough that eight threads stay under 1 GB.
_BLOCK_BYTES = 24 * 1024**2
_BLOCK_STEPS = 60


def kind_of(attributes: Mapping[str, Any]) -> Kind:
    """What the numbers of a variable are, from its CF attributes.

    A sum over the cell (``cell_methods`` "area: sum") is extensive; classes (``flag_values``,
    "area: mode") are categorical; everything else is a mean, intensive.
    """
    methods = str(attributes.get("cell_methods", ""))
    if "area: sum" in methods:
        return "extensive"
    if "area: mode" in methods or "flag_values" in attributes:
        return "categorical"
    return "intensive"


@dataclass(frozen=True)
class Remap:
    """How one variable goes onto the target grid: what is the same for all of its shards.

    source_area : (nlat, nlon) [m2]; None for points whose cells are unknown: no integrals then
    valid : (nlat, nlon) of the source: the cells that have values in the first map
    min_fraction : target cells of which less than this is valid are missing
    """

    weights: AnyWeights
    source_area: Array | None
    target_area: Array
    kind: Kind
    weight: Array | None
    valid: NDArray[np.bool_]
    min_fraction: float = 0.0

    @cached_property
    def fixed(self) -> FixedMean | None:
        """The weights normalised for the first map's valid cells; None where they carry a weight
        that changes with time."""
        return None if self.weight is None else FixedMean(self.weights, self.valid, self.weight)

    @property
    def has_integrals(self) -> bool:
        """Whether integrals of this variable mean something."""
        return self.kind != "categorical" and self.source_area is not None

    @property
    def covered(self) -> Array | None:
        """(nlat, nlon) covered fraction of the target cells in the first map."""
        return None if self.fixed is None else self.fixed.covered

    def read(self, field: Field, block: slice, where: str) -> tuple[NDArray[Any], Array, Survey]:
        """The maps (n, nlat, nlon) of a block, what weighs them, (nlat, nlon) or one map for each,
        and their survey. DataError where a fill value is among the numbers."""
        values = field.read(block)
        maps = np.ascontiguousarray(values).reshape(-1, *values.shape[-2:])
        weight = self.weight
        if weight is None:
            weight = field.read_weight(block).reshape(maps.shape)
        seen = self._before(maps, weight)
        _check_missing(maps, seen, where, field.name)
        return maps, weight, seen

    def is_fixed(self, seen: Survey) -> bool:
        """Whether all maps of a block have the valid cells of the first map, so that the covered
        fraction is ``self.covered``. Either way gives the same bits: a map's result does not
        depend on those it was read with."""
        return self.fixed is not None and bool(seen.same.all())

    def apply(
        self,
        values: NDArray[Any],
        weight: Array,
        out: NDArray[Any],
        covered: NDArray[Any] | None,
    ) -> None:
        """Values on the target grid, and where maps are not fixed their covered fractions.

        values : (n, nlat, nlon);  weight : (nlat, nlon) or (n, nlat, nlon)
        out : (n, nlat, nlon) of the target in the type of ``values``, contiguous: written
        covered : like ``out``, float32 or float64, written; None for fixed maps
        """
        if covered is None:
            assert self.fixed is not None  # the caller asks ``is_fixed``
            self._apply_fixed(self.fixed, values, out)
        elif self.kind == "intensive":
            masked_mean(self.weights, values, weight, out=out, covered=covered)
        elif self.kind == "categorical":
            out[...], covered[...] = largest_category(self.weights, values, weight)
        else:
            density, part = masked_mean(self.weights, self._density(values), weight)
            out[...] = density * part * self.target_area
            covered[...] = part

    def _apply_fixed(self, fixed: FixedMean, values: NDArray[Any], out: NDArray[Any]) -> None:
        if self.kind == "intensive":
            fixed.mean(values, out=out)
        elif self.kind == "categorical":
            out[...] = largest_category(self.weights, values, self.weight)[0]
        else:
            density = fixed.mean(self._density(values))
            out[...] = density * fixed.covered * self.target_area

    def _density(self, amounts: NDArray[Any]) -> Array:
        assert self.source_area is not None  # ``remaps`` refuses amounts without areas
        return np.asarray(amounts / self.source_area)

    def _before(self, values: NDArray[Any], weight: Array) -> Survey:
        """The survey of a block; its integrals are sums for an extensive variable."""
        area = None if self.kind == "extensive" else self.source_area
        whole = np.ones(self.weights.source_shape)
        return survey(values, weight, whole if area is None else area, self.valid)

    def after(self, result: NDArray[Any], covered: NDArray[Any]) -> Array:
        """(n,) integrals of what was made, as the survey has them (of no use for classes)."""
        if self.kind == "extensive":
            whole = np.ones(self.weights.target_shape)
            return integrals(result, whole, whole)[0]
        return integrals(result, covered, self.target_area)[0]


def remaps(
    weights: AnyWeights,
    inputs: Inputs,
    grid: Grid,
    kinds: Mapping[str, Kind] | None = None,
    min_fraction: float = 0.0,
) -> dict[str, Remap]:
    """How every variable goes onto ``grid``; reads the first map of each.

    ``kinds`` overrules ``kind_of``. DataError for amounts per cell where areas are unknown, or with
    weights that do not conserve.
    """
    found = {}
    source = inputs.source.grid
    known = isinstance(source, Grid) or source.lat_corners is not None or source.areas is not None
    for field in inputs.fields:
        first = field.read(slice(0, 1)).reshape(-1, *source.shape)[0]
        kind = (kinds or {}).get(field.name, kind_of(field.attributes))
        weight = None if isinstance(field.weight, tuple) else field.weight
        if kind == "extensive" and not (known and math.isfinite(weights.tolerance)):
            wanted = "cells with corners, and conservative weights"
            raise DataError(
                Problem(inputs.where, field.name, "amounts per cell (extensive)", wanted)
            )
        if kind == "extensive":
            # The amount in a cell is all there is of it, on however much of the cell it lies.
            weight = np.ones(source.shape)
        found[field.name] = Remap(
            weights,
            source.cell_area if known else None,
            grid.cell_area,
            kind,
            weight,
            ~np.isnan(first),
            min_fraction,
        )
    return found


def _check_missing(values: NDArray[Any], seen: Survey, where: str, name: str) -> None:
    """DataError where a fill value would be averaged as if it were a number."""
    fill = fill_among(seen.low, seen.high, seen.low_count / max(1, values.size))
    if fill is not None:
        remedy = f"Name it first: ncatted -a _FillValue,{name},o,f,{fill:g} FILE"
        found = f"{fill:g}, which no attribute calls missing"
        raise DataError(Problem(where, name, found, "missing values that the file names", remedy))


@dataclass(frozen=True)
class Work:
    """What the units of one call have in common.

    ``inputs`` and ``remaps`` are by group; ``fractions`` names the array, by group and variable,
    that holds a covered fraction that changes; ``annual`` says which months make which years.
    """

    writer: StoreWriter
    inputs: Mapping[str, Inputs]
    remaps: Mapping[str, Mapping[str, Remap]]
    fractions: Mapping[str, Mapping[str, str]]
    grid: Grid
    annual: Annual | None = None

    def field(self, group: str, position: int) -> Field:
        """One variable of a group."""
        return self.inputs[group].fields[position]


def has_years(field: Field, remap: Remap) -> bool:
    """Whether a variable has annual means: it has time steps, and its values are no classes."""
    return field.timed and remap.kind != "categorical"


Unit = tuple[str, int, slice]
"""Group, position of the field, region: one shard."""


def fill_shards(work: Work, progress: Progress, task_map: TaskMap) -> None:
    """Write every shard that is not done yet, and the fractions that turn out to change."""
    writer = work.writer
    units = [
        (group, position, region)
        for group, given in work.inputs.items()
        for position, field in enumerate(given.fields)
        for region in writer.regions(group, field.name)
    ]
    to_do = [u for u in units if not writer.is_done(u[0], work.field(*u[:2]).name, u[2])]
    resumed = len(units) - len(to_do)
    started, read = monotonic(), 0

    def done(unit: Unit, note: Mapping[str, Any], share: float) -> None:
        nonlocal read
        group, position, region = unit
        field = work.field(group, position)
        if note["changes"]:
            writer.record(group, work.fractions[group][field.name], region)
        writer.record(group, field.name, region, note)
        read += bytes_per_step(field) * (region.stop - region.start)
        rate = read / 1e6 / max(monotonic() - started, 1e-3)
        text = " ".join(filter(None, (group, field.name, f"{rate:.0f} MB/s")))
        progress(text, (resumed + share * len(to_do)) / len(units))

    run_units(task_map, fill_shard, work, to_do, done)
    for group, given in work.inputs.items():
        for field in given.fields:
            _fill_up(work, group, field)


def _fill_up(work: Work, group: str, field: Field) -> None:
    """Where a mask changes, the fraction of the shards in which it does not."""
    writer, name = work.writer, work.fractions[group][field.name]
    if not writer.begun(group, name):
        return
    covered = work.remaps[group][field.name].covered
    shape = writer.templates[group].shape(name)
    for region in writer.regions(group, name):
        if covered is None or writer.is_done(group, name, region):
            continue
        steps = (region.stop - region.start, *shape[1:]) if field.timed else shape
        writer.write(group, name, region, np.broadcast_to(covered, steps).astype(field.dtype))


def fill_shard(work: Work, unit: Unit) -> dict[str, Any]:
    """Regrid one region and fill its shard, and that of its fraction where that changes.

    Returns what goes into the ledger: the integrals per time step, and whether the mask changes.
    """
    group, position, region = unit
    writer, given = work.writer, work.inputs[group]
    field = given.fields[position]
    remap = work.remaps[group][field.name]
    remap.weights.check(given.source.grid, work.grid)
    shape = writer.templates[group].shape(field.name)
    length = region.stop - region.start
    shard = np.empty((length, *shape[1:]) if field.timed else shape, dtype=field.dtype)
    changing: NDArray[Any] | None = None
    years = None
    if work.annual and has_years(field, remap):
        years = work.annual.sums(region, shape[1:])
    sums: dict[str, list[float]] = {"before": [], "after": [], "scale": []}
    if remap.min_fraction > 0.0:
        sums["kept"] = []
    for block in blocks(field, region):
        place = slice(block.start - region.start, block.stop - region.start)
        target = place if field.timed else slice(None)
        maps, weight, seen = remap.read(field, block, given.where)
        _check_finite(seen, given.where, field.name, block)
        result = shard[target].reshape(-1, *shape[-2:])
        if remap.is_fixed(seen):
            part = remap.covered
            remap.apply(maps, weight, result, None)
        else:
            if changing is None:
                changing = np.empty_like(shard)
                if remap.covered is not None:
                    changing[...] = remap.covered
            # What is stored, to its last digit, is what totals are taken with.
            part = changing[target].reshape(result.shape)
            remap.apply(maps, weight, result, part)
        assert part is not None  # without a fixed mask every map brings its own
        sums["before"] += _per_step(seen.total, field, block)
        sums["scale"] += _per_step(seen.absolute, field, block)
        sums["after"] += _per_step(remap.after(result, part), field, block)
        if remap.min_fraction > 0.0:
            result[np.broadcast_to(part < remap.min_fraction, result.shape)] = np.nan
            sums["kept"] += _per_step(remap.after(result, part), field, block)
        if years is not None:
            years.add(block, shard[target], part, extensive=remap.kind == "extensive")
    if changing is not None:
        writer.fill(group, work.fractions[group][field.name], region, changing)
    if years is not None:
        years.save(writer.scratch, field.name, region)
    writer.fill(group, field.name, region, shard)
    return {**sums, "changes": changing is not None}


def _check_finite(seen: Survey, where: str, name: str, block: slice) -> None:
    if np.all(np.isfinite(seen.absolute)):
        return
    found = f"infinite values, in steps {block.start + 1} to {block.stop}"
    wanted = "numbers, or missing values"
    raise DataError(Problem(where, name, found, wanted, "Mask them in the source"))


def blocks(field: Field, region: slice) -> list[slice]:
    """Runs of time steps of about 24 MB of source data, in whole chunks of the file."""
    if not field.timed:
        return [region]
    steps = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // bytes_per_step(field)))
    chunk = _chunk_steps(field)
    if 1 < chunk <= 4 * steps:
        steps = max(chunk, steps // chunk * chunk)
    return [slice(a, min(a + steps, region.stop)) for a in range(region.start, region.stop, steps)]


def _chunk_steps(field: Field) -> int:
    """Time steps per chunk of the file; 1 where it says nothing."""
    return int(field.parts[0].encoding.get("preferred_chunks", {}).get("time", 1))


def bytes_per_step(field: Field) -> int:
    """Size of one time step of the source (of everything without time)."""
    return np.dtype(field.dtype).itemsize * field.step_size


def _per_step(sums: Array, field: Field, block: slice) -> list[float]:
    """Sums over the maps of each time step (of everything without time)."""
    steps = block.stop - block.start if field.timed else 1
    return [float(value) for value in sums.reshape(steps, -1).sum(axis=1)]


# --- annual means -----------------------------------------------------------------------------


def fill_years(work: Work, monthly: str, yearly: str) -> None:
    """The annual arrays, from the sums that the shards of the monthly ones have kept."""
    if work.annual is None:
        return
    writer, annual = work.writer, work.annual
    for field in work.inputs[monthly].fields:
        if field.name not in writer.templates[yearly].arrays:
            continue
        fraction = work.fractions[monthly][field.name]
        changes = writer.begun(monthly, fraction)
        extensive = work.remaps[monthly][field.name].kind == "extensive"
        shape = writer.templates[yearly].shape(field.name)[1:]
        for region in writer.regions(yearly, field.name):
            if writer.is_done(yearly, field.name, region):
                continue
            months = writer.regions(monthly, field.name)
            sums = annual.kept(writer.scratch, field.name, months, region, shape)
            if changes:
                covered = np.minimum(sums.covered, 1.0).astype(field.dtype)
                writer.write(yearly, fraction, region, covered)
            values = sums.means(extensive=extensive).astype(field.dtype)
            writer.write(yearly, field.name, region, values)


# --- what was conserved -----------------------------------------------------------------------


def series(work: Work, group: str, name: str) -> dict[str, Array]:
    """Integrals per time step of a variable, from the ledger: ``before``, ``after``, ``scale``
    (that of the absolute values), with a minimum valid fraction ``kept``; and the ``drift``: the
    change of the integral relative to that of the absolute values."""
    notes = [work.writer.note(group, name, r) for r in work.writer.regions(group, name)]
    keys = [key for key in notes[0] if key != "changes"]
    found = {key: np.concatenate([np.asarray(note[key]) for note in notes]) for key in keys}
    scale = np.where(found["scale"] > 0.0, found["scale"], 1.0)
    return {**found, "drift": np.abs(found["after"] - found["before"]) / scale}


def summary(
    work: Work, group: str, field: Field, found: Mapping[str, Array] | None
) -> dict[str, Any]:
    """What the report says of one variable; ``found``: its ``series``, where it has integrals."""
    remap = work.remaps[group][field.name]
    changes = work.writer.begun(group, work.fractions[group][field.name])
    said: dict[str, Any] = {
        "kind": remap.kind,
        "weighting": "amount" if remap.kind == "extensive" else field.weighting,
        "mask": "changes" if changes else "static",
        "stored_as": field.dtype,
    }
    if found is None:
        return said
    said |= {
        "integral_before": float(found["before"].mean()),
        "integral_after": float(found["after"].mean()),
        "max_relative_drift": float(found["drift"].max()),
    }
    if "kept" in found:
        said["integral_kept"] = float(found["kept"].mean())
    return said
