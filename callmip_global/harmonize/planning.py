"""What every variable of a run is made of, decided from the headers of all files.

Beside the headers, the first step of each variable is read: it shows the fill values that no
attribute names and what lies over the sea (`examine`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.grid import Grid, SourceGrid
from callmip_global.harmonize.checks import Summary, tolerated
from callmip_global.harmonize.coordinates import grid_words
from callmip_global.harmonize.cover import Cover, cover_of
from callmip_global.harmonize.fills import Fill, find_fill, states_fill
from callmip_global.harmonize.layers import EXACT_M, layer_bounds, layer_choice
from callmip_global.harmonize.native import (
    NativeFile,
    NativeVariable,
    Timeline,
    build_timeline,
    read_static,
)
from callmip_global.harmonize.variable_map import (
    Per,
    VariableMap,
    VariableSource,
    substance_of,
)
from callmip_global.timeaxis import Frequency, MonthAxis, month_axis
from callmip_global.units import SECONDS_PER_DAY, Conversion, convert_factor, same_units
from callmip_global.variables import Variable, known_variable

Array = NDArray[np.float64]

LOST = 1e-3
"""Share of a per-cell variable's integral that may lie where the land fraction is 0."""
ASTRAY = 0.01
"""The same for carbon and pools that are per land area: more, and the land is another grid's."""
ZERO_SEA = 0.99
"""Share of the sea's values that must be exactly 0 to be taken for missing ones."""
TOTALS_AGREE = 0.01
"""How near a computed total must come to the group's own to count as the same."""


class RefusedVariablesError(DataError):
    """Problems by variable (``""`` for those of no single one), so that the others can go on."""

    def __init__(self, by_variable: Mapping[str, Sequence[Problem]]) -> None:
        self.by_variable = {name: tuple(found) for name, found in by_variable.items() if found}
        super().__init__(p for found in self.by_variable.values() for p in found)

    def __reduce__(self) -> tuple[type[RefusedVariablesError], tuple[object, ...]]:
        return type(self), (self.by_variable,)


@dataclass
class VariablePlan:
    """How one variable comes about. ``timeline`` and ``conversion`` are None for a derived one.

    ``frequency``: that of the native values; ``fixes``: rule -> what was done, for the report.
    ``per``: what the native values are per, decided. ``cover``: fractions of plant types or tiles
    that the values are averaged with. ``fill``: the unattributed fill value found in the first
    step. ``nee``: turned round because it is called NEE. ``zero_sea``: the sea of the first step is
    0. ``attributes``: what the variable in the store says of itself beside its CF attributes.
    """

    variable: Variable
    entry: VariableSource
    frequency: Frequency
    timeline: Timeline | None = None
    conversion: Conversion | None = None
    fixes: dict[str, str] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    per: Per = "land"
    cover: Cover | None = None
    fill: Fill | None = None
    nee: bool = False
    zero_sea: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)

    def read(self, steps: slice) -> Array:
        """(n, nlat, nlon) in native units: layers summed, plant types averaged, missing as NaN.

        DataError where the files cannot be read, or the cover fractions cannot be right.
        """
        timeline = self.timeline
        assert timeline is not None
        if self.cover is not None:
            return self.cover.average(timeline, steps)
        entry = self.entry
        if entry.last_share == 1.0:
            return timeline.read(steps, entry.select)
        ((dim, indices),) = entry.select.items()
        values = timeline.read(steps, {dim: indices[-1:]})
        values *= entry.last_share
        if len(indices) > 1:
            values += timeline.read(steps, {dim: indices[:-1]})
        return values

    def converted(self, native: Array, axis: MonthAxis) -> Array:
        """``native`` (n, ...) in the units of the store, changed in place; ``axis``: its steps."""
        conversion = self.conversion
        assert conversion is not None
        scale = self.entry.sign * self.entry.factor
        if conversion.factor * scale != 1.0:
            native *= conversion.factor * scale
        if conversion.offset:
            native += conversion.offset * scale
        if conversion.per is not None:
            seconds = period_days(axis, conversion) * SECONDS_PER_DAY
            native /= seconds.reshape((-1,) + (1,) * (native.ndim - 1))
        return native


@dataclass
class RunPlan:
    """Everything decided from the headers. ``plans`` are ordered sources first."""

    plans: dict[str, VariablePlan]
    delivered: tuple[str, ...]
    calendar: str
    years: tuple[int, int]
    source_grid: SourceGrid
    land_fraction: Array | None
    inputs: tuple[NativeFile, ...]

    @property
    def grid(self) -> Grid:
        """The native grid, ascending."""
        return self.source_grid.grid

    def axis(self, frequency: Frequency) -> MonthAxis:
        """The whole wanted years."""
        return month_axis(self.years, self.calendar, frequency)


def plan_variables(
    files: Sequence[NativeFile],
    variable_map: VariableMap,
    wanted: Sequence[str],
    years: tuple[int, int] | None,
    frequencies: Sequence[Frequency],
) -> RunPlan:
    """Decide everything. RefusedVariablesError with every problem of every variable.

    ``years`` None takes all periods there are (for checks; a store has whole years).
    """
    problems: dict[str, list[Problem]] = {}
    plans: dict[str, VariablePlan] = {}
    for name in variable_map.closure(wanted):
        entry = variable_map.entries[name]
        place, var = variable_map.place(name), known_variable(name)
        assert var is not None  # a map without problems has no other
        try:
            if entry.absent is not None:
                raise DataError(Problem(place, name, f"declared absent ({entry.absent})"))
            if entry.refuse is not None:
                raise DataError(entry.refuse)
            if entry.expression is not None:
                plans[name] = _derived(var, entry, plans, variable_map)
            else:
                plans[name] = _sourced(var, entry, files, years, variable_map)
            if plans[name].frequency == "yr" and "yr" not in frequencies:
                del plans[name]
                remedy = 'Ask for "yr" too, or declare it absent; annual values are never repeated.'
                found, rule = "annual values only", "annual-only"
                raise DataError(Problem(place, name, found, "monthly values", remedy, rule))
            if plans[name].frequency == "yr" and "mon" in frequencies:
                plans[name].fixes["annual"] = "annual values only; never repeated for months"
        except DataError as error:
            problems[name] = list(error.problems)
        except KeyError as needed:
            # The variable it is derived from was refused: that problem says why.
            found = f"no {needed.args[0]}, which it is derived from"
            problems[name] = [Problem(place, name, found, rule="derived-from-refused")]
    problems |= _common_problems(plans)
    if any(problems.values()):
        raise RefusedVariablesError(problems)
    sources = [p.timeline for p in plans.values() if p.timeline is not None]
    try:
        fraction = _land_fraction(files, variable_map, sources[0])
    except DataError as error:
        raise RefusedVariablesError({"": error.problems}) from None
    first = sources[0].files[0]
    assert first.source_grid is not None
    used = {f.origin: f for timeline in sources for f in timeline.files}
    used |= {f.origin: f for p in plans.values() if p.cover for f in p.cover.timeline.files}
    plan = RunPlan(
        plans=plans,
        delivered=tuple(wanted),
        calendar=sources[0].axis.calendar,
        years=years or sources[0].axis.years,
        source_grid=first.source_grid,
        land_fraction=fraction,
        inputs=tuple(used[origin] for origin in sorted(used)),
    )
    for name, item in plans.items():
        try:
            examine(plan, item, variable_map)
        except DataError as error:
            problems[name] = list(error.problems)
    if any(problems.values()):
        raise RefusedVariablesError(problems)
    return plan


def _derived(
    var: Variable,
    entry: VariableSource,
    plans: Mapping[str, VariablePlan],
    variable_map: VariableMap,
) -> VariablePlan:
    expression, place = entry.expression, variable_map.place(var.name)
    assert expression is not None
    wood = variable_map.declared.wood
    if var.name == "cLiveBioAbove" and wood != "above-ground" and _has_wood(entry, variable_map):
        found = "cWood, of which nobody says whether coarse roots are in it"
        if wood == "total":
            found = "cWood, which has coarse roots in it (declared)"
        remedy = "Declare wood: above-ground in the manifest if it has none; else hand in cStem."
        wanted = "carbon above the ground"
        raise DataError(Problem(place, var.name, found, wanted, remedy, "wood-undeclared"))
    used = {needed: plans[needed].frequency for needed in expression.names}
    if len(set(used.values())) > 1:
        said = ", ".join(f"{n} ({f})" for n, f in used.items())
        remedy = "Deliver all of them monthly, or all annual; annual values are never repeated."
        found, wanted = f"a mixture: {said}", "one frequency"
        raise DataError(Problem(place, var.name, found, wanted, remedy, "frequencies-mixed"))
    plan = VariablePlan(var, entry, next(iter(used.values())))
    plan.fixes["derived"] = f"{var.name} = {expression.text}"
    plan.fixes.update(entry.found)
    plan.attributes["derived_from"] = expression.text
    if var.name == "hfls" and expression.names == ("evspsbl",):
        heat = expression.evaluate({"evspsbl": 1.0}) - expression.evaluate({"evspsbl": 0.0})
        plan.attributes["latent_heat_J_kg"] = float(heat)
    if plan.frequency == "yr" and var.kind == "pool":
        _annual_state(plan, variable_map)
    return plan


def _has_wood(entry: VariableSource, variable_map: VariableMap) -> bool:
    """Whether it is made of what is called cWood, as it is (a factor says which part is taken)."""
    for name in entry.expression.names if entry.expression else ():
        needed = variable_map.entries[name]
        called = "cwood" in (name.lower(), str(needed.source).lower())
        if called and needed.factor == 1.0:
            return True
    return False


def _annual_state(plan: VariablePlan, variable_map: VariableMap) -> None:
    """Say what the annual value of a pool is, the mean of the year or its end, as declared."""
    state = variable_map.declared.annual_state
    if state is None:
        plan.fixes["annual-state-unknown"] = (
            "annual values taken as means of the year; annual_state: mean or end is not declared"
        )
        return
    said = "the mean of each year" if state == "mean" else "the state at the end of each year"
    plan.fixes["annual-state"] = f"annual values are {said} (declared)"
    method = "time: mean" if state == "mean" else "time: point"
    plan.attributes["cell_methods"] = plan.variable.cell_methods.replace("time: mean", method)


def _sourced(
    var: Variable,
    entry: VariableSource,
    files: Sequence[NativeFile],
    years: tuple[int, int] | None,
    variable_map: VariableMap,
) -> VariablePlan:
    assert entry.source is not None
    place = variable_map.place(var.name)
    _check_pieces(entry.source, files)
    _check_name(var, entry.source, files, place)
    timeline = build_timeline(entry.source, files, years, place)
    header, first = timeline.header, timeline.files[0]
    plan = VariablePlan(var, entry, timeline.axis.frequency, timeline, per=entry.per or "land")
    plan.fixes.update(entry.found)
    plan.conversion = _conversion(var, entry, timeline, place)
    entry = plan.entry = _layers(plan, first, place)
    _check_dims(plan, files, years, variable_map)
    stated = entry.units or header.units or ""
    if not plan.conversion.identity:
        plan.fixes["units"] = plan.conversion.note
    elif stated != var.units:
        plan.fixes["units"] = f"{stated!r} is {var.units}"
    if var.name == "nep" and not entry.sign_stated and entry.sign == 1 and _says_nee(entry, header):
        # What says that this is right is the seasons of all values: see `closing_problem`.
        entry = plan.entry = replace(entry, sign=-1)
        plan.nee = True
        plan.fixes["sign"] = (
            f"{entry.source} is flux into the air: values turned round, as their seasons confirm"
        )
    elif entry.sign == -1:
        plan.fixes["sign"] = "values turned round (declared)"
    if plan.frequency == "yr" and var.kind == "pool":
        _annual_state(plan, variable_map)
    if entry.factor != 1.0:
        plan.fixes["factor"] = f"values times {entry.factor:g} (declared)"
    if entry.select and "layers" not in plan.fixes:
        said = "; ".join(f"{dim} {list(i)}" for dim, i in entry.select.items())
        plan.fixes["layers"] = f"taken from {said}"
    grid = first.source_grid
    assert grid is not None
    if grid.lat_descending:
        plan.fixes["latitude-order"] = "turned to south to north"
    if grid.lon_order is not None:
        plan.fixes["longitude-order"] = f"turned to ascend from {grid.grid.lon[0]:g}"
    for rule, words in sorted(
        {note for file in timeline.files for note in file.notes_of(timeline.name)}
    ):
        plan.fixes[rule] = f"{plan.fixes[rule]}; {words}" if rule in plan.fixes else words
    return plan


def _conversion(var: Variable, entry: VariableSource, timeline: Timeline, place: str) -> Conversion:
    stated = {f.variables[timeline.name].units for f in timeline.files}
    first = timeline.files[0].origin
    if len(stated) > 1:
        said = ", ".join(sorted(repr(u) for u in stated))
        raise DataError(Problem(first, timeline.name, f"units {said}", "one unit in all files"))
    (units,) = stated
    if units is None and entry.units is None:
        remedy = f"State them in the variable map: {var.name}: {{units: ...}}."
        raise DataError(Problem(first, timeline.name, "no units", "units", remedy))
    if units is not None and entry.units is not None and not same_units(units, entry.units):
        remedy = "Correct whichever is wrong; the file's attribute, or units in the map."
        wanted = f"{entry.units!r} (as {place} says)"
        raise DataError(Problem(first, timeline.name, f"units {units!r}", wanted, remedy))
    used = entry.units if entry.units is not None else units
    where = place if entry.units is not None else first
    found = convert_factor(used or "", var.units, where, var.name, substance=substance_of(var))
    # A width has no zero point: 2 degrees Celsius are 2 K.
    return replace(found, offset=0.0) if var.is_uncertainty else found


_NEE = re.compile(r"(^|[^a-z])nee([^a-z]|$)|net[ _]ecosystem[ _]exchange")
_PIECE = re.compile(r"[_.-]pft[_-]?\d+", re.IGNORECASE)


def _says_nee(entry: VariableSource, header: NativeVariable) -> bool:
    """Whether the native name, or the long name under it, is that of net ecosystem exchange."""
    source = str(entry.source).lower()
    long_name = str(header.attributes.get("long_name", "")).lower()
    return bool(_NEE.search(source) or ("nep" not in source and _NEE.search(long_name)))


def _check_pieces(native: str, files: Iterable[NativeFile]) -> None:
    """DataError where each plant type has a file of its own."""
    found = [f for f in files if native in f.variables and _PIECE.search(f.origin)]
    if len(found) > 1:
        remedy = "Hand in the average over the plant types, weighted with their area fractions."
        said = f"one of {len(found)} files that hold one plant type each"
        raise DataError(
            Problem(found[0].origin, native, said, "values of the cell", remedy, "plant-types")
        )


def _check_name(var: Variable, native: str, files: Sequence[NativeFile], place: str) -> None:
    """DataError where a file is called like the variable and holds another one."""
    if any(native in f.variables for f in files):
        return
    called = re.compile(rf"(^|[^a-z0-9]){re.escape(native.lower())}([^a-z0-9]|$)")
    for file in files:
        if called.search(file.origin.lower().rsplit("/", 1)[-1]):
            held = [n for n in file.data_variables() if file.time_dim in file.variables[n].dims]
            said = ", ".join(repr(n) for n in held) or "no field"
            remedy = (
                f"If one of them is {var.name}, say so in the map: {var.name}: {{source: ...}}."
            )
            raise DataError(
                Problem(
                    file.origin, native, f"{said} under that name", native, remedy, "other-name"
                )
            )


def _layers(plan: VariablePlan, file: NativeFile, place: str) -> VariableSource:
    """The entry with the layers that make up the variable's depth, where it speaks of one.

    Layers that the map selects without saying their depth must have bounds in the file that fit.
    """
    var, entry = plan.variable, plan.entry
    if var.depth_m is None or entry.depth_m is not None:
        return entry
    assert entry.source is not None
    known = {*file.grid_dims(), file.time_dim}
    extra = {d: n for d, n in file.variables[entry.source].dims.items() if d not in known}
    if not entry.select:
        if not any(size > 1 for size in extra.values()):
            return entry
        choice = layer_choice(file, entry.source, var)
        if isinstance(choice, Problem):
            raise DataError(choice)
        plan.fixes["layers"] = choice.words
        chosen = {choice.dim: choice.indices}
        return replace(entry, select=chosen, last_share=choice.last_share, depth_m=var.depth_m)
    if len(entry.select) == 1:
        ((dim, indices),) = entry.select.items()
        bounds = layer_bounds(file, dim) if dim in extra else None
        if bounds is None and dim in extra:
            low, high = var.depth_m
            remedy = f"Say which depth they make up: depth: [{low:g}, {high:g}]."
            found, wanted = f"layers of {dim} without bounds", f"{low:g} to {high:g} m"
            raise DataError(Problem(place, var.name, found, wanted, remedy, "layers-unbounded"))
        if bounds is not None and max(indices) < len(bounds):
            chosen_bounds = bounds[sorted(indices)]
            low, high = chosen_bounds.min(), chosen_bounds.max()
            thick = float((chosen_bounds[:, 1] - chosen_bounds[:, 0]).sum())
            fits = np.allclose((low, high), var.depth_m, rtol=0, atol=EXACT_M)
            if not fits or abs(thick - (high - low)) > EXACT_M:
                remedy = "Select the layers that make it up, or leave select out."
                wanted = f"{var.depth_m[0]:g} to {var.depth_m[1]:g} m"
                found = f"layers from {low:g} to {high:g} m"
                raise DataError(Problem(place, var.name, found, wanted, remedy, "layers-unbounded"))
    return entry


def _check_dims(
    plan: VariablePlan,
    files: Sequence[NativeFile],
    years: tuple[int, int] | None,
    variable_map: VariableMap,
) -> None:
    """DataError for what ``select`` gets wrong, and for a dimension that nothing takes away."""
    var, entry, timeline = plan.variable, plan.entry, plan.timeline
    assert timeline is not None
    file, place = timeline.files[0], variable_map.place(var.name)
    known = {*file.grid_dims(), file.time_dim}
    extra = {d: n for d, n in timeline.header.dims.items() if d not in known}
    for dim, indices in entry.select.items():
        if dim not in extra:
            found = f"no dimension {dim!r} in {entry.source!r}"
            raise DataError(Problem(place, f"{var.name}.select", found, ", ".join(extra) or "none"))
        bad = [i for i in indices if not 0 <= i < extra[dim]]
        if bad:
            found = f"{dim} {bad[0]}"
            raise DataError(Problem(place, f"{var.name}.select", found, f"0 to {extra[dim] - 1}"))
    left = {d: n for d, n in extra.items() if n > 1 and d not in entry.select}
    if not left:
        return
    name = entry.cover or variable_map.cover
    if name is not None and len(left) == 1 and not entry.select:
        plan.cover = cover_of(name, timeline, next(iter(left)), files, years, place, var)
        plan.fixes["cover"] = plan.cover.words
        return
    remedy = (
        "Layers: choose or sum them with select. Plant types or tiles: name the variable with "
        "their area fractions, cover: landCoverFrac; a plain sum or mean would be wrong."
    )
    found = f"the extra dimension {', '.join(f'{d} ({n})' for d, n in left.items())}"
    wanted = "time, latitude, longitude"
    raise DataError(
        Problem(file.origin, str(entry.source), found, wanted, remedy, "extra-dimension")
    )


def _common_problems(plans: Mapping[str, VariablePlan]) -> dict[str, list[Problem]]:
    """Calendar and grid must be the same for all variables of a store: who differs from most."""
    timelines = {n: p.timeline for n, p in plans.items() if p.timeline is not None}
    problems: dict[str, list[Problem]] = {}

    def grid(timeline: Timeline) -> Grid:
        source = timeline.files[0].source_grid
        assert source is not None
        return source.grid

    if not timelines:
        return {}
    usual = Counter(t.axis.calendar for t in timelines.values()).most_common(1)[0][0]
    most = Counter(grid(t) for t in timelines.values()).most_common(1)[0][0]
    for name, timeline in timelines.items():
        file = timeline.files[0]
        if timeline.axis.calendar != usual:
            other = next(t for t in timelines.values() if t.axis.calendar == usual)
            found = f"calendar {timeline.axis.calendar}"
            wanted = f"{usual}, as in {other.files[0].name}"
            problem = Problem(file.origin, timeline.name, found, wanted, rule="calendars-differ")
            problems.setdefault(name, []).append(problem)
        if grid(timeline) != most:
            other = next(t for t in timelines.values() if grid(t) == most)
            found = f"another grid, {grid_words(grid(timeline))}"
            wanted = f"the grid of {other.files[0].name}, {grid_words(most)}"
            problem = Problem(file.origin, timeline.name, found, wanted, rule="grids-differ")
            problems.setdefault(name, []).append(problem)
    return problems


def _land_fraction(
    files: Iterable[NativeFile], variable_map: VariableMap, timeline: Timeline
) -> Array | None:
    """(nlat, nlon) in [0, 1] as the map's land fraction variable says; None if it names none."""
    name = variable_map.land_fraction
    if name is None:
        return None
    holder = next((f for f in files if name in f.variables), None)
    where = variable_map.where
    if holder is None:
        raise DataError(Problem(where, "land_fraction", f"no file with the variable {name!r}"))
    grid, reference = holder.source_grid, timeline.files[0].source_grid
    if grid is None or reference is None or grid.grid != reference.grid:
        wanted = f"the grid of {timeline.files[0].name}"
        raise DataError(Problem(holder.origin, name, "another grid", wanted))
    units = holder.variables[name].units or "1"
    conversion = convert_factor(units, "1", holder.origin, name)
    values = np.nan_to_num(conversion.apply(read_static(holder, name)), nan=0.0)
    if values.min() < -1e-6 or values.max() > 1.0 + 1e-6:
        found = f"values from {values.min():g} to {values.max():g} with units {units!r}"
        remedy = 'Set its units to "%" or "1", whichever holds.'
        raise DataError(Problem(holder.origin, name, found, "fractions of 0 to 1", remedy))
    return np.clip(values, 0.0, 1.0)


def examine(plan: RunPlan, item: VariablePlan, variable_map: VariableMap) -> None:
    """What the first step of a variable shows: fill values without attribute, values over the sea.

    What is found holds for all steps, and each block is tested for it. DataError when it cannot be
    right: values that lie where there is no land, totals that contradict each other.
    """
    timeline, var = item.timeline, item.variable
    if timeline is None:
        return
    first = slice(0, 1)
    axis = timeline.axis.part(first)
    field_ = item.read(first)
    if not states_fill(timeline.header.attributes) and item.cover is None:
        missing = int(np.isnan(field_).sum())
        if missing:
            item.fixes["fill-unnamed"] = (
                f"NaN or NetCDF's own fill without attribute, {missing} cells"
            )
    layers = max((len(indices) for indices in item.entry.select.values()), default=1)
    item.fill = find_fill(
        field_[0], lambda v: item.converted(np.array(v), axis), tolerated(var), layers
    )
    if item.fill is not None:
        item.fixes["fill"] = item.fill.words
        field_[:, item.fill.cells] = np.nan
    if plan.land_fraction is not None:
        _examine_sea(plan, item, field_[0])
        if item.entry.per is None:
            _decide_per(plan, item, variable_map)
    elif item.entry.per is None:
        item.fixes["per-assumed"] = "taken as values per land area; the map does not say it"


def _examine_sea(plan: RunPlan, item: VariablePlan, values: Array) -> None:
    """What lies where the land fraction is 0 in the first step (nlat, nlon)."""
    timeline, var, fraction = item.timeline, item.variable, plan.land_fraction
    assert timeline is not None
    assert fraction is not None
    sea = fraction == 0.0
    over_sea = values[sea]
    held = np.isfinite(over_sea)
    if not held.any():
        return
    zeros = int((over_sea[held] == 0.0).sum())
    item.zero_sea = zeros > ZERO_SEA * int(held.sum())
    if item.zero_sea:
        item.fixes["sea"] = (
            f"0 over the sea set to missing where the land fraction is 0, {int(held.sum())} cells"
        )
        return
    mass = np.abs(np.where(np.isfinite(values), values, 0.0)) * plan.grid.cell_area
    share = float(mass[sea].sum() / mass.sum()) if mass.sum() else 0.0
    of_land = substance_of(var) == "carbon" or var.kind == "pool"
    if item.per == "land" and share > ASTRAY and of_land:
        raise astray(item, share)


def astray(item: VariablePlan, share: float) -> DataError:
    """A share of a variable's integral lies where the land fraction is 0."""
    assert item.timeline is not None
    found = f"{100 * share:.2g} % of the integral in cells without land"
    remedy = "Is the land fraction another grid's, or shifted by half a cell?"
    if item.per == "cell":
        remedy = "Is it per land area (per: land), or the land fraction another grid's?"
    where = item.timeline.files[0].origin
    wanted = "nothing there"
    return DataError(Problem(where, item.timeline.name, found, wanted, remedy, "land-mismatch"))


def _decide_per(plan: RunPlan, item: VariablePlan, variable_map: VariableMap) -> None:
    """Per land or per cell, where the map does not say: by the group's own totals, if they tell."""
    var = item.variable
    declared = variable_map.declared.totals.get(var.name, {})
    item.fixes["per-assumed"] = "taken as values per land area; the map does not say it"
    both = totals_both_ways(plan, item, declared)
    if both is None:
        return
    year, per_land, per_cell = both
    given = declared[year]
    words = f"{year}: {per_land:.6g} if per land, {per_cell:.6g} if per cell, {given:.6g} declared"
    fits = [abs(total - given) <= TOTALS_AGREE * abs(given) for total in (per_land, per_cell)]
    item.fixes["per-assumed"] += f" ({words})"
    if fits[0] != fits[1]:
        del item.fixes["per-assumed"]
        item.per = "land" if fits[0] else "cell"
        item.fixes["per-by-totals"] = f"values per {item.per} area, by the group's total of {words}"


def totals_both_ways(
    plan: RunPlan, item: VariablePlan, years: Iterable[int]
) -> tuple[int, float, float] | None:
    """(year, total if per land area, total if per cell area) of the first year the files have.

    Both in the units of `callmip_global.harmonize.declared.Declared.totals`: of fluxes Pg, PW or
    1e3 km3 in the year, of pools the mean Pg. None without a land fraction, for states, and where
    the files hold none of the ``years``.
    """
    timeline, var, fraction = item.timeline, item.variable, plan.land_fraction
    if timeline is None or fraction is None or var.kind == "state":
        return None
    axis = timeline.axis
    for year in sorted(years):
        steps = [i for i, (y, _) in enumerate(axis.periods) if y == year]
        if len(steps) != (12 if axis.frequency == "mon" else 1):
            continue
        region = slice(steps[0], steps[-1] + 1)
        part = axis.part(region)
        values = item.read(region)
        if item.fill is not None:
            values[:, item.fill.cells] = np.nan
        values = np.nan_to_num(item.converted(values, part), nan=0.0)
        days = part.lengths_days
        mean = np.tensordot(days / days.sum(), values, axes=1) * plan.grid.cell_area
        scale = 1e-12
        if var.kind == "flux":
            seconds = float(days.sum()) * SECONDS_PER_DAY
            water = substance_of(var) == "water"
            scale = 1e-15 if "W" in var.units else seconds * (1e-15 if water else 1e-12)
        land = fraction > 0.0
        return year, float((mean * fraction).sum() * scale), float(mean[land].sum() * scale)
    return None


def period_days(axis: MonthAxis, conversion: Conversion) -> Array:
    """(n,) length of the month or year each step lies in; of a mean month for annual values."""
    if conversion.per == "month" and axis.frequency == "yr":
        return axis.lengths_days / 12.0
    if conversion.per != "year" or axis.frequency == "yr":
        return axis.lengths_days
    first, last = axis.years
    lengths = month_axis((first, last), axis.calendar, "yr").lengths_days
    return np.array([lengths[year - first] for year, _ in axis.periods])


def closing_problem(item: VariablePlan, where: str) -> Problem | None:
    """What only all values together can show of the evidence that ``item`` was planned on, or None.

    A variable that was turned round because it is named NEE must take up carbon in the northern
    summer: nothing else says which sign a file has.
    """
    if not item.nee or not item.summary.count:
        return None
    name = item.entry.source
    means = item.summary.seasons.means
    remedy = f"Say sign: -1 if {name} is positive into the air, sign: 1 if positive into the land."
    if means is None or means[0] <= means[1]:
        found = f"{name}, whose seasons at 40-70 N do not show that it is positive into the air"
        wanted = "more uptake in summer than in winter"
        return Problem(where, item.variable.name, found, wanted, remedy, "sign-unclear")
    return None


def members_of(plan: RunPlan, group: Frequency) -> list[str]:
    """Variables of a group: ``yr`` has all, as annual means where the model wrote months."""
    return [n for n in plan.delivered if group == "yr" or plan.plans[n].frequency == "mon"]


def place_of(plan: VariablePlan, variable_map: VariableMap) -> str:
    if plan.timeline is not None:
        return plan.timeline.files[0].origin
    return variable_map.place(plan.variable.name)
