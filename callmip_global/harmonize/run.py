"""Native model output to the harmonized store on the native grid.

Two passes: the headers of all files decide what every variable is made of (`plan_variables`); then
the values are streamed, one region of the store (one shard of months) of one variable (or of those
that are made of each other) at a time, converted in float64, checked, and written in float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.annual import Annual
from callmip_global.errors import Problem
from callmip_global.files import file_hash
from callmip_global.harmonize.checks import Summary, summary_problem
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.native import (
    Inventory,
    NativeFile,
)
from callmip_global.harmonize.planning import (
    RefusedVariablesError,
    RunPlan,
    VariablePlan,
    members_of,
    place_of,
    plan_variables,
)
from callmip_global.harmonize.rules import outcome_of
from callmip_global.harmonize.values import Block, held_cells
from callmip_global.harmonize.variable_map import VariableMap
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
from callmip_global.timeaxis import Frequency, annual_mean

Array = NDArray[np.float64]


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
    inventory = Inventory.of(files, Declared(calendar=variable_map.calendar))
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
        Block(plan, timeline.axis.part(steps), steps, fraction).make(name, problems)
    problem = (
        None
        if problems
        else summary_problem(item.summary, item.variable, place_of(item, variable_map))
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
    hashes = {f.origin: file_hash(f.path) for f in plan.inputs}
    fraction = plan.land_fraction
    if fraction is None:
        fraction = held_cells(plan, variable_map)
    groups: list[Frequency] = [f for f in FREQUENCIES if f in frequencies and members_of(plan, f)]
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
                variables={n: _attributes(plan.plans[n]) for n in members_of(plan, group)},
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
            variable_plan.summary, variable_plan.variable, place_of(variable_plan, variable_map)
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
        for name in members_of(work.plan, "mon"):
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
    members = members_of(plan, group)
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
    block = Block(plan, plan.axis("mon").part(region), region, work.fraction)
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
            block = Block(plan, axis, months, work.fraction)
            for name, values in _values(block, "mon", made):
                mean = annual_mean(values, axis.lengths_days)[0]
                annual.setdefault(name, []).append(mean.astype(np.float32))
        year = slice(step, step + 1)
        block = Block(plan, plan.axis("yr").part(year), year, work.fraction)
        for name, values in _values(block, "yr", made):
            annual.setdefault(name, []).append(values[0].astype(np.float32))
    for name, fields in annual.items():
        # Fewer fields where a year could not be made, by itself or by what it derives from.
        if len(fields) == region.stop - region.start:
            yield name, np.stack(fields)


def _values(block: Block, frequency: Frequency, made: _Made) -> Iterator[tuple[str, Array]]:
    """(name, values) of every delivered variable of a native frequency that can be made."""
    for name, item in block.plan.plans.items():
        if item.frequency != frequency:
            continue
        values = block.make(name, made.problems)
        if values is not None and name in block.plan.delivered:
            made.seen |= np.isfinite(values).any(axis=0)
            yield name, values


# --- words about it ------------------------------------------------------------------------------


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
    files = [] if item.timeline is None else [f.origin for f in item.timeline.files]
    return {
        **item.summary.report(),
        "outcome": outcome_of(item.fixes),
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
