"""Native model output to the harmonized store on the native grid.

Two passes: the headers of all files decide what every variable is made of (`plan_variables`); then
the values are streamed, one region of the store (one shard of months) of one variable (or of those
that are made of each other) at a time, converted in float64, checked, and written in float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.annual import Annual
from callmip_global.errors import DataError, Problem
from callmip_global.files import file_hash
from callmip_global.grid import Grid, SourceGrid
from callmip_global.harmonize.checks import Summary, summary_problem, tolerated, unflagged_fill
from callmip_global.harmonize.native import (
    Inventory,
    NativeFile,
    NativeVariable,
    Timeline,
    build_timeline,
    read_static,
)
from callmip_global.harmonize.variable_map import VariableMap, VariableSource, substance_of
from callmip_global.parallel import TaskMap, one_by_one, run_units
from callmip_global.store import (
    FREQUENCIES,
    StoreName,
    StoreWriter,
    Template,
    create_store,
    protocol_template,
    store_attributes,
)
from callmip_global.timeaxis import Frequency, MonthAxis, annual_mean, month_axis
from callmip_global.units import Conversion, convert_factor, same_units
from callmip_global.variables import Variable, variable_table

Array = NDArray[np.float64]

LOST = 1e-3
"""Share of a per-cell variable's integral that may lie where the land fraction is 0."""


EVERYWHERE = 0.9
"""A field with values on more than this share of the sphere is no land field (land: 0.29)."""


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


def harmonize_run(
    files: Sequence[Path],
    *,
    variable_map: VariableMap,
    name: StoreName,
    attributes: Mapping[str, str],
    years: tuple[int, int],
    frequencies: Sequence[Frequency],
    out: Path,
    variables: Sequence[str] | None = None,
    progress: Callable[[str, float], None] = lambda _text, _share: None,
    task_map: TaskMap = one_by_one,
) -> dict[str, Any]:
    """Write the harmonized store of one run on its native grid; return what was done.

    files : native NetCDF files, in any order; they may hold more years and variables than wanted
    name : identity of the run, grid ``native``;  out : final path of the store
    attributes : global attributes (institution, contact, scenario, synthetic ...)
    years : first and last year wanted;  frequencies : ``mon``, ``yr`` or both. The group ``mon``
        holds what the model writes monthly, ``yr`` everything: means of the months weighted by
        their lengths, or what the model writes once a year
    variables : names wanted; None takes all the map has, and then the map must speak of every
        variable the protocol asks for
    task_map : where the units run, each of them one region of one variable (or of several, where
        one is derived from another)

    The report is JSON-able: ``variables`` by name (source, units, fixes, outcome, min, max, mean,
    files), ``absent``, ``files``, ``grid``, ``calendar``, ``years``, ``store``.
    Raises `RefusedVariablesError`, a DataError, with every problem found when anything wanted
    cannot be had; nothing is published then.
    """
    inventory = Inventory.of(files, variable_map.calendar)
    problems = [p for found in inventory.problems.values() for p in found]
    problems += variable_map.problems(variables)
    if problems:
        raise RefusedVariablesError({"": problems})
    return harmonize_files(
        inventory.files,
        variable_map=variable_map,
        name=name,
        attributes=attributes,
        years=years,
        frequencies=frequencies,
        out=out,
        variables=variable_map.delivered if variables is None else variables,
        progress=progress,
        task_map=task_map,
    )


def harmonize_files(
    files: Sequence[NativeFile],
    *,
    variable_map: VariableMap,
    name: StoreName,
    attributes: Mapping[str, str],
    years: tuple[int, int],
    frequencies: Sequence[Frequency],
    out: Path,
    variables: Sequence[str],
    progress: Callable[[str, float], None] = lambda _text, _share: None,
    task_map: TaskMap = one_by_one,
) -> dict[str, Any]:
    """`harmonize_run` for files whose headers are read already and variables that are chosen."""
    progress("headers read", 0.0)
    plan = plan_variables(files, variable_map, variables, years, frequencies)
    said = sorted({f.synthetic for f in plan.inputs if f.synthetic})
    labelled = {"synthetic": "; ".join(said), **attributes} if said else attributes
    report = _write(plan, variable_map, name, labelled, frequencies, out, progress, task_map)
    progress("store published", 1.0)
    return report


# --- what every variable is made of --------------------------------------------------------------


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
    used = {f.path: f for timeline in sources for f in timeline.files}
    return RunPlan(
        plans=plans,
        delivered=tuple(wanted),
        calendar=sources[0].axis.calendar,
        years=years or sources[0].axis.years,
        source_grid=first.source_grid,
        land_fraction=fraction,
        inputs=tuple(used[path] for path in sorted(used)),
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
    notes = sorted({note for file in timeline.files for note in file.notes})
    if notes:
        plan.fixes["file"] = "; ".join(notes)
    return plan


def _conversion(var: Variable, entry: VariableSource, timeline: Timeline, place: str) -> Conversion:
    stated = {f.variables[timeline.name].units for f in timeline.files}
    first = timeline.files[0].path
    if len(stated) > 1:
        said = ", ".join(sorted(repr(u) for u in stated))
        raise DataError(
            Problem(str(first), timeline.name, f"units {said}", "one unit in all files")
        )
    (units,) = stated
    if units is None and entry.units is None:
        remedy = f"State them in the variable map: {var.name}: {{units: ...}}."
        raise DataError(Problem(str(first), timeline.name, "no units", "units", remedy))
    if units is not None and entry.units is not None and not same_units(units, entry.units):
        remedy = "Correct whichever is wrong; the file's attribute, or units in the map."
        wanted = f"{entry.units!r} (as {place} says)"
        raise DataError(Problem(str(first), timeline.name, f"units {units!r}", wanted, remedy))
    used = entry.units if entry.units is not None else units
    where = place if entry.units is not None else str(first)
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
            Problem(str(file.path), str(entry.source), found, "time, latitude, longitude", remedy)
        )


def _common_problems(sources: Sequence[Timeline]) -> list[Problem]:
    """Calendar and grid must be the same for all variables of a store."""
    problems = []
    for timeline in sources[1:]:
        path, first = timeline.files[0], sources[0].files[0]
        if timeline.axis.calendar != sources[0].axis.calendar:
            found, wanted = f"calendar {timeline.axis.calendar}", sources[0].axis.calendar
            wanted = f"{wanted}, as in {first.path.name}"
            problems.append(Problem(str(path.path), timeline.name, found, wanted))
        grids = (path.source_grid, first.source_grid)
        if grids[0] is not None and grids[1] is not None and grids[0].grid != grids[1].grid:
            wanted = f"the grid of {first.path.name}"
            problems.append(Problem(str(path.path), timeline.name, "another grid", wanted))
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
        wanted = f"the grid of {timeline.files[0].path.name}"
        raise DataError(Problem(str(holder.path), name, "another grid", wanted))
    units = holder.variables[name].units or "1"
    conversion = convert_factor(units, "1", str(holder.path), name)
    values = np.nan_to_num(conversion.apply(read_static(holder, name)), nan=0.0)
    if values.min() < -1e-6 or values.max() > 1.0 + 1e-6:
        found = f"values from {values.min():g} to {values.max():g} with units {units!r}"
        remedy = 'Set its units to "%" or "1", whichever holds.'
        raise DataError(Problem(str(holder.path), name, found, "fractions of 0 to 1", remedy))
    return np.clip(values, 0.0, 1.0)


def check_values(
    files: Sequence[NativeFile], variable_map: VariableMap, name: str
) -> dict[str, Any]:
    """What harmonizing would do to all values of one variable, without writing them.

    Returns the variable's part of the report of `harmonize_run`; RefusedVariablesError if it would
    be refused. Values that do not fill whole years are checked as well.
    """
    plan = plan_variables(files, variable_map, [name], None, ("mon", "yr"))
    item = plan.plans[name]
    timeline = item.timeline
    assert timeline is not None
    fraction = np.ones(plan.grid.shape) if plan.land_fraction is None else plan.land_fraction
    problems: dict[str, list[Problem]] = {}
    for start in range(0, timeline.axis.size, 12):
        steps = slice(start, min(start + 12, timeline.axis.size))
        _Block(plan, timeline.axis.part(steps), steps, fraction).make(name, problems)
    problem = (
        None
        if problems
        else summary_problem(item.summary, item.variable, _where(item, variable_map))
    )
    if problem:
        problems[name] = [problem]
    if problems:
        raise RefusedVariablesError(problems)
    return _variable_report(item)


# --- streaming -----------------------------------------------------------------------------------


def _write(
    plan: RunPlan,
    variable_map: VariableMap,
    name: StoreName,
    attributes: Mapping[str, str],
    frequencies: Sequence[Frequency],
    out: Path,
    progress: Callable[[str, float], None],
    task_map: TaskMap,
) -> dict[str, Any]:
    hashes = {str(f.path): file_hash(f.path) for f in plan.inputs}
    fraction = plan.land_fraction
    if fraction is None:
        fraction = _mask(plan, variable_map)
    groups: list[Frequency] = [f for f in FREQUENCIES if f in frequencies and _members(plan, f)]
    root = store_attributes(name, {**_defaults(variable_map), **attributes}, groups)
    fingerprint = {
        "inputs": hashes,
        "map": repr(variable_map),
        "years": list(plan.years),
        "version": __version__,
    }
    while True:
        for variable_plan in plan.plans.values():
            variable_plan.summary = Summary()
        templates: dict[str, Template] = {
            group: protocol_template(
                grid=plan.grid,
                axis=plan.axis(group),
                variables={n: _attributes(plan.plans[n]) for n in _members(plan, group)},
                land_fraction=fraction,
                attributes=root,
            )
            for group in groups
        }
        writer = create_store(out, templates, fingerprint=fingerprint, attributes=root)
        annual = Annual(plan.axis("mon")) if groups == ["mon", "yr"] else None
        work = _Work(plan, writer, tuple(groups), fraction, annual)
        seen, problems = _stream(work, progress, task_map)
        if plan.land_fraction is not None or not (seen & (fraction == 0.0)).any():
            break
        # Values appear in cells that were empty in the first year: they are land too. The template
        # changes with the fraction, so the store starts over.
        fraction = np.maximum(fraction, seen)
    for variable_name, variable_plan in plan.plans.items():
        needed = set(variable_map.closure([variable_name]))
        if variable_name not in plan.delivered or needed & {n for n, p in problems.items() if p}:
            continue  # refused already, or made of something refused: that problem says it all
        problem = summary_problem(
            variable_plan.summary, variable_plan.variable, _where(variable_plan, variable_map)
        )
        problems[variable_name] = [problem] if problem else []
    if any(problems.values()):
        shutil.rmtree(writer.work)
        raise RefusedVariablesError(problems)
    report = _report(plan, variable_map, name, hashes)
    writer.publish({"provenance": json.dumps(_provenance(report), sort_keys=True)})
    return report


@dataclass(frozen=True)
class _Work:
    """What the units of one call have in common.

    annual : which months make which years, where both are written: then the annual means of monthly
        variables are taken while their months are read, and each byte is read once
    """

    plan: RunPlan
    writer: StoreWriter
    groups: tuple[Frequency, ...]
    fraction: Array
    annual: Annual | None


@dataclass(frozen=True)
class _Unit:
    """One region of a group, of variables that are made of each other; ``done``: written before."""

    group: Frequency
    region: slice
    names: tuple[str, ...]
    done: frozenset[str]


@dataclass
class _Made:
    """What came of a unit. ``seen``: cells that ever held a value of a delivered variable."""

    written: list[str]
    seen: NDArray[np.bool_]
    summaries: dict[str, Summary]
    fixes: dict[str, dict[str, str]]
    problems: dict[str, list[Problem]]


def _stream(
    work: _Work, progress: Callable[[str, float], None], task_map: TaskMap
) -> tuple[NDArray[np.bool_], dict[str, list[Problem]]]:
    """Write every region of every variable; summaries and fixes go into the plan.

    Returns the cells that ever held a value, and the problems of variables that cannot be made.
    """
    units = [
        _Unit(
            group,
            region,
            names,
            frozenset(n for n in members if work.writer.is_done(group, n, region)),
        )
        for group in work.groups
        for names, members in _families(work, group)
        for region in work.writer.regions(group, members[0])
    ]

    def done(unit: _Unit, made: _Made, share: float) -> None:
        for name in made.written:
            work.writer.record(unit.group, name, unit.region)
        said = f"{unit.group} {', '.join(unit.names)} {unit.region.start}:{unit.region.stop}"
        progress(said, share)

    seen = np.zeros(work.plan.grid.shape, dtype=bool)
    problems: dict[str, list[Problem]] = {}
    # In the order of the units, whatever the order they ran in: sums of the same numbers.
    for made in run_units(task_map, _make, work, units, done):
        seen |= made.seen
        for name, found in made.problems.items():
            problems.setdefault(name, found)
        for name, summary in made.summaries.items():
            work.plan.plans[name].summary.merge(summary)
        for name, fixes in made.fixes.items():
            work.plan.plans[name].fixes.update(fixes)
    if work.annual is not None:
        for name in _members(work.plan, "mon"):
            if not problems.get(name):
                _write_years(work, work.annual, name)
    return seen, problems


def _write_years(work: _Work, annual: Annual, name: str) -> None:
    """The annual means of a monthly variable, from the sums that its regions have kept."""
    writer = work.writer
    for region in writer.regions("yr", name):
        if writer.is_done("yr", name, region):
            continue
        months, shape = writer.regions("mon", name), work.plan.grid.shape
        sums = annual.kept(writer.scratch, name, months, region, shape)
        writer.write("yr", name, region, _on_land(sums.whole(), work.fraction))


def _on_land(values: Array, fraction: Array) -> NDArray[np.float32]:
    return np.where(fraction > 0.0, values, np.nan).astype(np.float32)


def _families(work: _Work, group: Frequency) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Variables that are made of each other, in the order of the plans, and those of the group
    that are made by units of their own."""
    plan = work.plan
    family = {name: {name} for name in plan.plans}
    for name, item in plan.plans.items():
        for needed in item.entry.expression.names if item.entry.expression else ():
            joined = family[name] | family[needed]
            family.update(dict.fromkeys(joined, joined))
    members = _members(plan, group)
    if group == "yr" and work.annual is not None:
        members = [n for n in members if plan.plans[n].frequency == "yr"]
    found = {}
    for name in members:
        names = tuple(n for n in plan.plans if n in family[name])
        found[names] = tuple(n for n in members if n in family[name])
    return list(found.items())


def _make(work: _Work, unit: _Unit) -> _Made:
    """Make and write one region of the variables of a unit, as far as it is not written yet."""
    mine = {n: replace(work.plan.plans[n], summary=Summary(), fixes={}) for n in unit.names}
    plan = replace(work.plan, plans=mine)
    made = _Made([], np.zeros(plan.grid.shape, dtype=bool), {}, {}, {})
    fields = _months if unit.group == "mon" else _years
    for name, values in fields(plan, work, unit.region, made):
        if name not in unit.done:
            if work.annual is not None and unit.group == "mon":
                sums = work.annual.sums(unit.region, plan.grid.shape)
                sums.add(unit.region, values, np.ones(plan.grid.shape))
                sums.save(work.writer.scratch, name, unit.region)
            work.writer.fill(unit.group, name, unit.region, _on_land(values, work.fraction))
            made.written.append(name)
    made.summaries = {name: item.summary for name, item in mine.items()}
    made.fixes = {name: item.fixes for name, item in mine.items() if item.fixes}
    return made


def _months(
    plan: RunPlan, work: _Work, region: slice, made: _Made
) -> Iterator[tuple[str, NDArray[Any]]]:
    block = _Block(plan, plan.axis("mon").part(region), region, work.fraction)
    yield from _values(block, "mon", made)


def _years(
    plan: RunPlan, work: _Work, region: slice, made: _Made
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Annual values: what the model wrote as such, and the means of its months."""
    annual: dict[str, list[NDArray[np.float32]]] = {}
    for step in range(region.start, region.stop):
        if work.annual is None:
            months = slice(12 * step, 12 * step + 12)
            axis = plan.axis("mon").part(months)
            block = _Block(plan, axis, months, work.fraction)
            for name, values in _values(block, "mon", made):
                mean = annual_mean(values, axis.lengths_days)[0]
                annual.setdefault(name, []).append(mean.astype(np.float32))
        year = slice(step, step + 1)
        block = _Block(plan, plan.axis("yr").part(year), year, work.fraction)
        for name, values in _values(block, "yr", made):
            annual.setdefault(name, []).append(values[0].astype(np.float32))
    for name, fields in annual.items():
        # Fewer fields where a year could not be made, by itself or by what it derives from.
        if len(fields) == region.stop - region.start:
            yield name, np.stack(fields)


def _values(block: _Block, frequency: Frequency, made: _Made) -> Iterator[tuple[str, Array]]:
    """(name, values) of every delivered variable of a native frequency that can be made."""
    for name, item in block.plan.plans.items():
        if item.frequency != frequency:
            continue
        values = block.make(name, made.problems)
        if values is not None and name in block.plan.delivered:
            made.seen |= np.isfinite(values).any(axis=0)
            yield name, values


class _Block:
    """The values of some steps: every variable made once, kept while a derivation needs it."""

    def __init__(self, plan: RunPlan, axis: MonthAxis, region: slice, fraction: Array) -> None:
        self.plan, self.axis, self.region = plan, axis, region
        self.weights = plan.grid.cell_area * fraction
        self.kept: dict[str, Array] = {}
        self.needed = {
            n for p in plan.plans.values() if p.entry.expression for n in p.entry.expression.names
        }

    def make(self, name: str, problems: dict[str, list[Problem]]) -> Array | None:
        """(n, nlat, nlon) float64 in store units, or None where it, or what it needs, failed."""
        plan = self.plan.plans[name]
        if problems.get(name):
            return None
        if plan.entry.expression is not None:
            if any(needed not in self.kept for needed in plan.entry.expression.names):
                return None
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.asarray(plan.entry.expression.evaluate(self.kept), dtype=np.float64)
        else:
            try:
                values = self.converted(plan, self.region)
            except DataError as error:
                problems[name] = list(error.problems)
                return None
        plan.summary.add(values, self.weights, plan.variable)
        if self.axis.frequency == "mon":
            months = [month for _, month in self.axis.periods]
            plan.summary.seasons.add(values, self.weights, self.plan.grid.lat, months)
        if name in self.needed:
            self.kept[name] = values
        return values

    def converted(self, plan: VariablePlan, steps: slice) -> Array:
        """(n, nlat, nlon) of a native variable in store units, per land area."""
        timeline = plan.timeline
        assert timeline is not None
        values = timeline.read(steps, plan.entry.select)
        conversion, var = plan.conversion, plan.variable
        assert conversion is not None
        axis = timeline.axis.part(steps)
        scale = plan.entry.sign * plan.entry.factor
        low, high = tolerated(var)
        days = _period_days(axis, conversion)

        def convert(native: Array) -> Array:
            return conversion.apply(native, days[: native.shape[0]]) * scale

        def plausible(value: float) -> bool:
            return low <= float(convert(np.array([[[value]]]))[0, 0, 0]) <= high

        unflagged = unflagged_fill(values, plausible)
        if unflagged is not None:
            values[:, unflagged[1]] = np.nan
            cells = int(unflagged[1].sum())
            plan.fixes["fill"] = f"{unflagged[0]:g} without attribute set to missing, {cells} cells"
        return self._per_land(plan, convert(values), timeline)

    def _per_land(self, plan: VariablePlan, values: Array, timeline: Timeline) -> Array:
        fraction = self.plan.land_fraction
        if fraction is None:
            return values
        sea = fraction == 0.0
        if plan.entry.per == "cell" and plan.variable.kind != "state":
            mass = np.abs(np.nan_to_num(values)).sum(axis=0) * self.plan.grid.cell_area
            lost = float(mass[sea].sum() / mass.sum()) if mass.sum() else 0.0
            if lost > LOST:
                where = str(timeline.files[0].path)
                found = f"{100 * lost:.2g} % of the integral in cells without land"
                remedy = "Is it per land area (per: land), or the land fraction another grid's?"
                raise DataError(Problem(where, timeline.name, found, "nothing there", remedy))
            with np.errstate(divide="ignore", invalid="ignore"):
                values = values / fraction
            plan.fixes["per-cell"] = "divided by the land fraction, to values per land area"
        held = int(np.isfinite(values[:, sea]).any(axis=0).sum())
        if held:
            plan.fixes["sea"] = f"set to missing where the land fraction is 0, {held} cells"
        values[:, sea] = np.nan
        return values


def _period_days(axis: MonthAxis, conversion: Conversion) -> Array:
    """(n,) length of the month or year each step lies in; of a mean month for annual values."""
    if conversion.per == "month" and axis.frequency == "yr":
        return axis.lengths_days / 12.0
    if conversion.per != "year" or axis.frequency == "yr":
        return axis.lengths_days
    first, last = axis.years
    lengths = month_axis((first, last), axis.calendar, "yr").lengths_days
    return np.array([lengths[year - first] for year, _ in axis.periods])


def _mask(plan: RunPlan, variable_map: VariableMap) -> Array:
    """1 where any variable holds a value in the first year, else 0: what counts as land."""
    everywhere = []
    seen = np.zeros(plan.grid.shape, dtype=bool)
    for variable_plan in plan.plans.values():
        timeline = variable_plan.timeline
        if timeline is None:
            continue
        steps = slice(0, 12 if timeline.axis.frequency == "mon" else 1)
        block = _Block(plan, timeline.axis.part(steps), steps, np.ones(plan.grid.shape))
        try:
            values = block.converted(variable_plan, steps)
        except DataError as error:
            raise RefusedVariablesError({variable_plan.variable.name: error.problems}) from None
        held = np.asarray(np.isfinite(values).any(axis=0))
        if plan.grid.is_global and _area_share(held, plan.grid) > EVERYWHERE:
            everywhere.append(variable_plan)
        seen |= held
    if everywhere:
        # Without this, oceans would count as land wherever the model writes something there.
        raise RefusedVariablesError(
            {
                item.variable.name: [
                    Problem(
                        _where(item, variable_map),
                        item.variable.name,
                        "values over land and sea alike",
                        "missing values over the sea, or a land fraction",
                        "Name the model's land fraction in the map: land_fraction: <native name>.",
                    )
                ]
                for item in everywhere
            }
        )
    return seen.astype(np.float64)


def _area_share(cells: NDArray[np.bool_], grid: Grid) -> float:
    return float(grid.cell_area[cells].sum() / grid.cell_area.sum())


# --- words about it ------------------------------------------------------------------------------


def _members(plan: RunPlan, group: Frequency) -> list[str]:
    """Variables of a group: ``yr`` has all, as annual means where the model wrote months."""
    return [n for n in plan.delivered if group == "yr" or plan.plans[n].frequency == "mon"]


def _where(plan: VariablePlan, variable_map: VariableMap) -> str:
    if plan.timeline is not None:
        return str(plan.timeline.files[0].path)
    return variable_map.place(plan.variable.name)


def _defaults(variable_map: VariableMap) -> dict[str, str]:
    tool = f"callmip-global {__version__}"
    return {"source": f"{tool}, variable map {Path(variable_map.where).name}"}


def _attributes(plan: VariablePlan) -> dict[str, Any]:
    """CF attributes of a variable in the store, with where it comes from."""
    attributes: dict[str, Any] = dict(plan.variable.cf_attributes())
    if plan.entry.expression is not None:
        attributes["derived_from"] = plan.entry.expression.text
    else:
        attributes["original_name"] = plan.entry.source
        assert plan.timeline is not None
        units = plan.entry.units or plan.timeline.header.units
        attributes["original_units"] = units
    depth = plan.entry.depth_m or plan.variable.depth_m
    if depth is not None:
        attributes["depth_bounds_m"] = [float(depth[0]), float(depth[1])]
    return attributes


def _variable_report(item: VariablePlan) -> dict[str, Any]:
    files = [] if item.timeline is None else [str(f.path) for f in item.timeline.files]
    return {
        **item.summary.report(),
        "outcome": "fixed" if item.fixes else "accepted",
        "fixes": dict(sorted(item.fixes.items())),
        "source": item.entry.source,
        "units": None if item.timeline is None else item.timeline.header.units,
        "derived_from": item.entry.derive,
        "per": item.entry.per,
        "frequency": item.frequency,
        "files": sorted(set(files)),
    }


def _report(
    plan: RunPlan, variable_map: VariableMap, name: StoreName, hashes: Mapping[str, str]
) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for variable_name in plan.delivered:
        entries[variable_name] = _variable_report(plan.plans[variable_name])
    absent = {n: e.absent for n, e in variable_map.entries.items() if e.absent is not None}
    fraction = variable_map.land_fraction or "every cell that holds a value counts as all land"
    return {
        "store": name.text,
        "years": list(plan.years),
        "calendar": plan.calendar,
        "grid": {
            "shape": list(plan.grid.shape),
            "edges_from": plan.source_grid.edge_model,
            "digest": plan.grid.digest,
        },
        "land_fraction": fraction,
        "variables": entries,
        "absent": absent,
        "files": dict(sorted(hashes.items())),
    }


def _provenance(report: Mapping[str, Any]) -> dict[str, Any]:
    import cftime
    import netCDF4
    import xarray
    import zarr

    software = {
        "callmip-global": __version__,
        "cftime": cftime.__version__,
        "netCDF4": netCDF4.__version__,
        "numpy": np.__version__,
        "xarray": xarray.__version__,
        "zarr": zarr.__version__,
    }
    return {"harmonize": dict(report), "software": software}
