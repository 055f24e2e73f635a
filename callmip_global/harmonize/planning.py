"""What every variable of a run is made of, decided from the headers of all files alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.grid import Grid, SourceGrid
from callmip_global.harmonize.checks import Summary
from callmip_global.harmonize.native import (
    NativeFile,
    NativeVariable,
    Timeline,
    build_timeline,
    read_static,
)
from callmip_global.harmonize.variable_map import VariableMap, VariableSource, substance_of
from callmip_global.timeaxis import Frequency, MonthAxis, month_axis
from callmip_global.units import Conversion, convert_factor, same_units
from callmip_global.variables import Variable, variable_table

Array = NDArray[np.float64]


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
    """

    variable: Variable
    entry: VariableSource
    frequency: Frequency
    timeline: Timeline | None = None
    conversion: Conversion | None = None
    fixes: dict[str, str] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)


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
    """Decide from headers alone. RefusedVariablesError with every problem of every variable.

    ``years`` None takes all periods there are (for checks; a store has whole years).
    """
    table = variable_table()
    problems: dict[str, list[Problem]] = {}
    plans: dict[str, VariablePlan] = {}
    for name in variable_map.closure(wanted):
        entry = variable_map.entries[name]
        place = variable_map.place(name)
        try:
            if entry.absent is not None:
                raise DataError(Problem(place, name, f"declared absent ({entry.absent})"))
            if entry.expression is not None:
                plans[name] = _derived(table[name], entry, plans, place)
            else:
                plans[name] = _sourced(table[name], entry, files, years, place)
            if plans[name].frequency == "yr" and "yr" not in frequencies:
                del plans[name]
                remedy = 'Ask for "yr" too, or declare it absent; annual values are never repeated.'
                found = "annual values only"
                raise DataError(Problem(place, name, found, "monthly values", remedy))
        except DataError as error:
            problems[name] = list(error.problems)
        except KeyError as needed:
            # The variable it is derived from was refused: that problem says why.
            found = f"no {needed.args[0]}, which it is derived from"
            problems[name] = [Problem(place, name, found)]
    sources = [p.timeline for p in plans.values() if p.timeline is not None]
    problems[""] = _common_problems(sources)
    fraction = None
    if sources and not problems[""]:
        try:
            fraction = _land_fraction(files, variable_map, sources[0])
        except DataError as error:
            problems[""] = list(error.problems)
    if any(problems.values()):
        raise RefusedVariablesError(problems)
    first = sources[0].files[0]
    assert first.source_grid is not None
    used = {f.origin: f for timeline in sources for f in timeline.files}
    return RunPlan(
        plans=plans,
        delivered=tuple(wanted),
        calendar=sources[0].axis.calendar,
        years=years or sources[0].axis.years,
        source_grid=first.source_grid,
        land_fraction=fraction,
        inputs=tuple(used[origin] for origin in sorted(used)),
    )


def _derived(
    var: Variable, entry: VariableSource, plans: Mapping[str, VariablePlan], place: str
) -> VariablePlan:
    expression = entry.expression
    assert expression is not None
    found = {needed: plans[needed].frequency for needed in expression.names}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{n} ({f})" for n, f in found.items())
        remedy = "Deliver all of them monthly, or all annual."
        raise DataError(Problem(place, var.name, f"a mixture: {said}", "one frequency", remedy))
    plan = VariablePlan(var, entry, next(iter(found.values())))
    plan.fixes["derived"] = f"{var.name} = {expression.text}"
    return plan


def _sourced(
    var: Variable,
    entry: VariableSource,
    files: Sequence[NativeFile],
    years: tuple[int, int] | None,
    place: str,
) -> VariablePlan:
    assert entry.source is not None
    timeline = build_timeline(entry.source, files, years, place)
    plan = VariablePlan(var, entry, timeline.axis.frequency, timeline)
    header, first = timeline.header, timeline.files[0]
    plan.conversion = _conversion(var, entry, timeline, place)
    _check_dims(var, entry, header, first, place)
    if not plan.conversion.identity:
        plan.fixes["units"] = plan.conversion.note
    if entry.sign == -1:
        plan.fixes["sign"] = "values turned round (declared)"
    if entry.factor != 1.0:
        plan.fixes["factor"] = f"values times {entry.factor:g} (declared)"
    if entry.select:
        said = "; ".join(f"{dim} {list(i)}" for dim, i in entry.select.items())
        plan.fixes["layers"] = f"taken from {said}"
    grid = first.source_grid
    assert grid is not None
    if grid.lat_descending:
        plan.fixes["latitude-order"] = "turned to south to north"
    if grid.lon_order is not None:
        plan.fixes["longitude-order"] = f"turned to ascend from {grid.grid.lon[0]:g}"
    for rule, words in sorted({note for file in timeline.files for note in file.notes}):
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
    return convert_factor(used or "", var.units, where, var.name, substance=substance_of(var))


def _check_dims(
    var: Variable, entry: VariableSource, header: NativeVariable, file: NativeFile, place: str
) -> None:
    known = {*file.grid_dims(), file.time_dim}
    extra = {d: n for d, n in header.dims.items() if d not in known}
    for dim, indices in entry.select.items():
        if dim not in extra:
            found = f"no dimension {dim!r} in {entry.source!r}"
            raise DataError(Problem(place, f"{var.name}.select", found, ", ".join(extra) or "none"))
        bad = [i for i in indices if not 0 <= i < extra[dim]]
        if bad:
            found = f"{dim} {bad[0]}"
            raise DataError(Problem(place, f"{var.name}.select", found, f"0 to {extra[dim] - 1}"))
    left = [f"{d} ({n})" for d, n in extra.items() if n > 1 and d not in entry.select]
    if left:
        remedy = (
            "Layers: choose or sum them with select. Plant types or tiles: average them with "
            "their area fractions first; a plain sum or mean would be wrong."
        )
        found = f"the extra dimension {', '.join(left)}"
        raise DataError(
            Problem(file.origin, str(entry.source), found, "time, latitude, longitude", remedy)
        )


def _common_problems(sources: Sequence[Timeline]) -> list[Problem]:
    """Calendar and grid must be the same for all variables of a store."""
    problems = []
    for timeline in sources[1:]:
        path, first = timeline.files[0], sources[0].files[0]
        if timeline.axis.calendar != sources[0].axis.calendar:
            found, wanted = f"calendar {timeline.axis.calendar}", sources[0].axis.calendar
            wanted = f"{wanted}, as in {first.name}"
            problems.append(Problem(path.origin, timeline.name, found, wanted))
        grids = (path.source_grid, first.source_grid)
        if grids[0] is not None and grids[1] is not None and grids[0].grid != grids[1].grid:
            wanted = f"the grid of {first.name}"
            problems.append(Problem(path.origin, timeline.name, "another grid", wanted))
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


def members_of(plan: RunPlan, group: Frequency) -> list[str]:
    """Variables of a group: ``yr`` has all, as annual means where the model wrote months."""
    return [n for n in plan.delivered if group == "yr" or plan.plans[n].frequency == "mon"]


def place_of(plan: VariablePlan, variable_map: VariableMap) -> str:
    if plan.timeline is not None:
        return plan.timeline.files[0].origin
    return variable_map.place(plan.variable.name)
