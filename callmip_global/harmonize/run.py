"""Native model output to the harmonized store on the native grid.

Two passes: the headers of all files decide what every variable is made of (`plan_variables`); then
the values are streamed, one region of the store (one shard of months) of one variable (or of those
that are made of each other) at a time, converted in float64, checked, and written in float32.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.annual import Annual, YearSums, when_there
from callmip_global.errors import Problem
from callmip_global.files import content_hash, ends_hash, walk_files, write_atomic
from callmip_global.harmonize.checks import Summary
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.native import (
    Inventory,
    NativeFile,
    Timeline,
    whole_years,
)
from callmip_global.harmonize.planning import (
    RefusedVariablesError,
    RunPlan,
    VariablePlan,
    closing_problem,
    members_of,
    place_of,
    plan_variables,
)
from callmip_global.harmonize.plausibility import Field, fields_of, judge
from callmip_global.harmonize.resolve import by_held_names, of_stage
from callmip_global.harmonize.rules import outcome_of
from callmip_global.harmonize.values import Block
from callmip_global.harmonize.variable_map import VariableMap
from callmip_global.parallel import Progress, TaskMap, one_by_one, quiet
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

EVERYWHERE = 0.9
"""A field with values on more than this share of the sphere is no land field (land: 0.29)."""


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
    progress: Progress = quiet,
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
        variable the protocol asks for. Of a prior run None takes the stated uncertainties that
        its files have
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
    progress("headers read", 0.0)
    variable_map = by_held_names(variable_map, inventory.files)
    if variables is None:
        variable_map = of_stage(variable_map, name.stage, inventory.files)
    wanted = variable_map.delivered if variables is None else variables
    plan = plan_variables(inventory.files, variable_map, wanted, years, frequencies)
    making = _Making(plan, variable_map, name, attributes, frequencies, out)
    return making.store({}, strict=True, progress=progress, task_map=task_map)


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
    progress: Progress = quiet,
    task_map: TaskMap = one_by_one,
) -> dict[str, Any]:
    """`harmonize_run` for files whose headers are read already, of the variables that can be had.

    What is refused, by its header or by its values, and what is derived from it, is in no store and
    leaves no trace in it: the store is the one of the other variables alone. The report says why:
    ``refused`` has the Problems of each variable. RefusedVariablesError when none can be had.
    """
    progress("headers read", 0.0)
    refused: dict[str, list[Problem]] = {}
    left = list(variables)
    while True:
        try:
            plan = plan_variables(files, variable_map, left, years, frequencies)
            break
        except RefusedVariablesError as error:
            found = {n: list(p) for n, p in error.by_variable.items() if n}
            found = found or {n: list(error.by_variable[""]) for n in left}
            refused |= found | _lacking(variable_map, left, found)
            left = [n for n in left if n not in refused]
        if not left:
            raise RefusedVariablesError(refused) from None
    making = _Making(plan, variable_map, name, attributes, frequencies, out)
    return making.store(refused, strict=False, progress=progress, task_map=task_map)


def check_values(
    files: Sequence[NativeFile],
    variable_map: VariableMap,
    names: Sequence[str],
    progress: Progress = quiet,
) -> dict[str, Any]:
    """What harmonizing would do to all values of the variables ``names``, without writing them.

    The parts ``variables`` and ``refused`` of the report of `harmonize_files`. Values that do not
    fill whole years are checked as well.
    """
    refused: dict[str, list[Problem]] = {}
    plans: dict[str, RunPlan] = {}
    for done, name in enumerate(names):
        progress(f"checking the values of {name}", done / len(names))
        try:
            plan = _checking_plan(files, variable_map, name)
        except RefusedVariablesError as error:
            refused[name] = list(error.by_variable.get(name, error.problems))
            continue
        problems = _checked(plan, variable_map, name)
        if problems:
            refused[name] = problems
        else:
            plans[name] = plan
    totals = variable_map.declared.totals
    for digest in dict.fromkeys(plan.grid.digest for plan in plans.values()):
        fields: dict[str, Field] = {}
        alike = {n: plan for n, plan in plans.items() if plan.grid.digest == digest}
        for name, plan in alike.items():
            fields |= fields_of(plan, variable_map, [name], totals)
        grid = next(iter(alike.values())).grid
        for name, rule, said in judge(fields, grid):
            if isinstance(said, Problem):
                refused.setdefault(name, []).append(said)
            else:
                plans[name].plans[name].fixes[rule] = said
    refused |= _lacking(variable_map, names, refused)
    good = {n: _variable_report(p.plans[n]) for n, p in plans.items() if n not in refused}
    return {"variables": good, "refused": refused}


def _checking_plan(files: Sequence[NativeFile], variable_map: VariableMap, name: str) -> RunPlan:
    """The plan of one variable over all there is, or over the years that its sources share."""
    plan = plan_variables(files, variable_map, [name], None, ("mon", "yr"))
    axes = {item.timeline.axis for item in plan.plans.values() if item.timeline is not None}
    if len(axes) < 2:
        return plan
    spans = [whole_years(i.timeline) for i in plan.plans.values() if i.timeline is not None]
    first = max((span[0] for span in spans if span), default=1)
    last = min((span[1] for span in spans if span), default=0)
    if None in spans or first > last:
        found = "no whole year that all it is derived from has"
        raise RefusedVariablesError({name: [Problem(variable_map.place(name), name, found)]})
    return plan_variables(files, variable_map, [name], (first, last), ("mon", "yr"))


def _checked(plan: RunPlan, variable_map: VariableMap, name: str) -> list[Problem]:
    """Stream one variable, and what it is derived from, into its summary; the first problems."""
    item, problems = plan.plans[name], dict[str, list[Problem]]()
    timelines = [p.timeline for p in plan.plans.values() if p.timeline is not None]
    axis = timelines[0].axis
    fraction = np.ones(plan.grid.shape) if plan.land_fraction is None else plan.land_fraction
    for start in range(0, axis.size, 12):
        steps = slice(start, min(start + 12, axis.size))
        block = Block(plan, axis.part(steps), steps, fraction)
        for needed in variable_map.closure([name]):
            block.make(needed, problems)
        if any(problems.values()):
            return [problem for found in problems.values() for problem in found]
    closing = closing_problem(item, place_of(item, variable_map))
    return [closing] if closing is not None else []


def _lacking(
    variable_map: VariableMap, names: Sequence[str], causes: Mapping[str, Sequence[Problem]]
) -> dict[str, list[Problem]]:
    """Problems of the variables that are derived from one of ``causes`` and are not among them."""
    found = {}
    for name in names:
        needed = [n for n in variable_map.closure([name]) if n in causes]
        if needed and name not in causes:
            said = f"no {needed[0]}, which it is derived from"
            place = variable_map.place(name)
            found[name] = [Problem(place, name, said, rule="derived-from-refused")]
    return found


# --- streaming -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Making:
    """One store to be made: from what, what it is called, and where it will be."""

    plan: RunPlan
    variable_map: VariableMap
    name: StoreName
    attributes: Mapping[str, str]
    frequencies: Sequence[Frequency]
    out: Path

    def store(
        self,
        refused: dict[str, list[Problem]],
        *,
        strict: bool,
        progress: Progress,
        task_map: TaskMap,
    ) -> dict[str, Any]:
        """Make and publish it; the report. ``refused`` holds what was refused before.

        ``strict``: every variable must be had; otherwise what cannot be had is left out.
        """
        plan = self.plan
        work = self._begin()
        units = _units(work)
        _stream(work, units, progress, task_map)
        problems, hashes = _gathered(work, units)
        causes = self._causes(problems)
        if strict and causes:
            shutil.rmtree(work.writer.work)
            raise RefusedVariablesError(causes)
        refused |= causes | _lacking(self.variable_map, plan.delivered, causes)
        good = [n for n in plan.delivered if n not in refused]
        if not good:
            shutil.rmtree(work.writer.work)
            raise RefusedVariablesError(refused)
        _stream_years(work, good, task_map)
        report = self._report(good, hashes)
        self._publish(work, good, report)
        progress("store published", 1.0)
        return {**report, "refused": {n: refused[n] for n in sorted(refused)}}

    def _begin(self) -> _Work:
        """The store laid down, or taken up again where an interrupted run left it."""
        plan = self.plan
        fraction = np.ones(plan.grid.shape) if plan.land_fraction is None else plan.land_fraction
        groups: list[Frequency] = [
            f for f in FREQUENCIES if f in self.frequencies and members_of(plan, f)
        ]
        said = sorted({f.synthetic for f in plan.inputs if f.synthetic})
        labelled = {"synthetic": "; ".join(said)} if said else {}
        source = _source(self.variable_map)
        root = store_attributes(self.name, {**source, **labelled, **self.attributes}, groups)
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
        fingerprint = {
            "inputs": {f.origin: _identity(f) for f in plan.inputs},
            "map": repr(self.variable_map),
            "years": list(plan.years),
            "version": __version__,
        }
        writer = create_store(self.out, templates, fingerprint=fingerprint, attributes=root)
        annual = Annual(plan.axis("mon")) if groups == ["mon", "yr"] else None
        return _Work(plan, writer, tuple(groups), fraction, annual)

    def _causes(self, found: Mapping[str, list[Problem]]) -> dict[str, list[Problem]]:
        """Why variables are refused, without those that only lack what they are derived from.

        ``found``: problems of regions; to them come those of each variable as a whole.
        """
        plan, variable_map, causes = self.plan, self.variable_map, dict(found)
        while True:
            left = [n for n in plan.delivered if not causes.keys() & set(variable_map.closure([n]))]
            fields = fields_of(plan, variable_map, left, variable_map.declared.totals)
            findings = judge(fields, plan.grid)
            bad = {name: [said] for name, _, said in findings if isinstance(said, Problem)}
            bad |= {n: [p] for n in left if (p := self._alone(plan.plans[n])) is not None}
            if not bad:
                break
            # Again without them: what is kept is judged as if they had never been handed in.
            needed = {n: set(variable_map.closure([n])) - {n} for n in bad}
            causes |= {n: said for n, said in bad.items() if not needed[n] & bad.keys()}
        for name, rule, said in findings:
            fixes = plan.plans[name].fixes
            fixes[rule] = f"{fixes[rule]}; {said}" if rule in fixes else str(said)
        return causes

    def _alone(self, item: VariablePlan) -> Problem | None:
        """What shows that a variable cannot be used, beside its plausibility."""
        plan, place = self.plan, place_of(item, self.variable_map)
        problem = closing_problem(item, place)
        if problem is None and plan.land_fraction is None and plan.grid.is_global:
            area = plan.grid.cell_area
            if area[_held(item)].sum() > EVERYWHERE * area.sum():
                # Without this, oceans would count as land wherever the model writes something.
                return Problem(
                    place,
                    item.variable.name,
                    "values over land and sea alike",
                    "missing values over the sea, or a land fraction",
                    "Name the model's land fraction in the map: land_fraction: <native name>.",
                    rule="land-unknown",
                )
        return problem

    def _publish(self, work: _Work, good: Sequence[str], report: Mapping[str, Any]) -> None:
        groups = [g for g in work.groups if set(members_of(self.plan, g)) & set(good)]
        writer = work.writer.without(
            {g: [n for n in members_of(self.plan, g) if n not in good] for g in work.groups}
        )
        if self.plan.land_fraction is None:
            # Cells that ever hold a value are land; known only now, when everything was read once.
            land = np.any([_held(self.plan.plans[n]) for n in good], axis=0)
            for group in groups:
                writer.refill(group, "sftlf", 100.0 * land)
        provenance = json.dumps(_provenance(report), sort_keys=True)
        writer.publish({"frequencies": " ".join(groups), "provenance": provenance})

    def _report(self, good: Sequence[str], hashes: Mapping[str, str]) -> dict[str, Any]:
        plan, variable_map = self.plan, self.variable_map
        absent = {n: e.absent for n, e in variable_map.entries.items() if e.absent is not None}
        fraction = variable_map.land_fraction or "every cell that holds a value counts as all land"
        items = [plan.plans[n] for n in variable_map.closure(good)]
        used = {f.origin for item in items for t in _timelines(item) for f in t.files}
        return {
            "store": self.name.text,
            "years": list(plan.years),
            "calendar": plan.calendar,
            "grid": {
                "shape": list(plan.grid.shape),
                "edges_from": plan.source_grid.edge_model,
                "digest": plan.grid.digest,
            },
            "land_fraction": fraction,
            "variables": {name: _variable_report(plan.plans[name]) for name in good},
            "absent": absent,
            "files": {origin: hashes[origin] for origin in sorted(used)},
        }


@dataclass(frozen=True)
class _Work:
    """What the units of one call have in common.

    fraction : of land in each cell; 1 everywhere where no file says so, for then only what is
        missing is no land
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
    """One region of a group, of variables that are made of each other.

    ``members``: those of the group that this unit writes; ``files``: those that it hashes.
    """

    group: Frequency
    region: slice
    names: tuple[str, ...]
    members: tuple[str, ...]
    files: tuple[NativeFile, ...]
    input_bytes: float


@dataclass
class _Made:
    """What came of a unit, beside the values that it wrote: by variable, and hashes by origin."""

    summaries: dict[str, Summary] = field(default_factory=dict)
    fixes: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For the ledger; `from_json` of it is the same bit by bit."""
        return {
            "summaries": {n: summary.to_json() for n, summary in self.summaries.items()},
            "fixes": self.fixes,
            "problems": {n: [asdict(p) for p in found] for n, found in self.problems.items()},
            "hashes": self.hashes,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> _Made:
        """What `to_json` was made of."""
        return cls(
            {n: Summary.from_json(summary) for n, summary in kept["summaries"].items()},
            kept["fixes"],
            {n: [Problem(**p) for p in found] for n, found in kept["problems"].items()},
            kept["hashes"],
        )


def _units(work: _Work) -> list[_Unit]:
    """All of them. Each file is hashed by the first that reads it."""
    plan, units, hashed = work.plan, [], set[str]()
    costs = _bytes_per_step(plan)
    for group in work.groups:
        for names, members in _families(work, group):
            for region in work.writer.regions(group, members[0]):
                files: dict[str, NativeFile] = {}
                size = 0.0
                for name in names:
                    item = plan.plans[name]
                    per = 12 if (group, item.frequency) == ("yr", "mon") else 1
                    steps = slice(per * region.start, per * region.stop)
                    size += costs.get(name, 0.0) * (steps.stop - steps.start)
                    for timeline in _timelines(item):
                        files |= {f.origin: f for f in _files_at(timeline, steps)}
                mine = tuple(f for origin, f in files.items() if origin not in hashed)
                hashed |= set(files)
                units.append(_Unit(group, region, names, members, mine, size))
    return units


def _timelines(item: VariablePlan) -> list[Timeline]:
    """Of the variable itself, and of the cover fractions that it is averaged with."""
    cover = None if item.cover is None else item.cover.timeline
    return [timeline for timeline in (item.timeline, cover) if timeline is not None]


def _files_at(timeline: Timeline, steps: slice) -> Iterator[NativeFile]:
    """The files that some steps of a timeline lie in."""
    at = 0
    for piece in timeline.pieces:
        if at < steps.stop and at + len(piece.periods) > steps.start:
            yield piece.file
        at += len(piece.periods)


def _bytes_per_step(plan: RunPlan) -> dict[str, float]:
    """About how many bytes of the files one step of each native variable is, to tell the rate."""
    users: dict[str, int] = {}
    timelines = {n: p.timeline for n, p in plan.plans.items() if p.timeline is not None}
    for timeline in timelines.values():
        for file in timeline.files:
            users[file.origin] = users.get(file.origin, 0) + 1
    return {
        name: sum(_size(f.path) / users[f.origin] for f in timeline.files) / timeline.axis.size
        for name, timeline in timelines.items()
    }


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where it is gone."""
    if path.is_dir():
        return sum(status.st_size for _, status in walk_files(path))
    return path.stat().st_size if path.exists() else 0


def _identity(file: NativeFile) -> list[Any]:
    """What shows that a file is another one than when the run began, without reading all of it."""
    path = file.path
    try:
        if path.is_dir():
            return [[name, s.st_size, s.st_mtime_ns] for name, s in walk_files(path)]
        # Unpacked files are made anew by every run.
        changed = path.stat().st_mtime_ns if file.origin == str(path) else None
        return [changed, ends_hash(path)]
    except OSError as error:
        return [type(error).__name__]


def _stream(work: _Work, units: Sequence[_Unit], progress: Progress, task_map: TaskMap) -> None:
    """Write every region of every variable that no earlier run has written."""

    def is_done(unit: _Unit) -> bool:
        return all(work.writer.is_done(unit.group, n, unit.region) for n in unit.members)

    to_do = [unit for unit in units if not is_done(unit)]
    started, read, count = monotonic(), 0.0, len(units) - len(to_do)
    with closing(task_map(_make, work, to_do)) as finished:
        for position, made in finished:
            unit = to_do[position]
            for name in unit.members:
                # What came of the unit is noted once; it counts as done when all are recorded.
                note = made if name == unit.members[-1] else None
                work.writer.record(unit.group, name, unit.region, note)
            count += 1
            read += unit.input_bytes
            rate = read / 1e6 / max(monotonic() - started, 1e-3)
            text = f"{unit.group} {', '.join(unit.members)} {rate:.0f} MB/s"
            progress(text, count / len(units))


def _gathered(
    work: _Work, units: Sequence[_Unit]
) -> tuple[dict[str, list[Problem]], dict[str, str]]:
    """Problems by variable and hashes by origin, from the ledger; the rest goes into the plan.

    In the order of the units, whatever the order and the run that they were made in: sums of the
    same numbers.
    """
    problems: dict[str, list[Problem]] = {}
    hashes: dict[str, str] = {}
    for unit in units:
        noted = work.writer.note(unit.group, unit.members[-1], unit.region)
        made = _Made.from_json(noted)
        for name, found in made.problems.items():
            problems.setdefault(name, found)
        for name, summary in made.summaries.items():
            work.plan.plans[name].summary.merge(summary)
        for name, fixes in made.fixes.items():
            work.plan.plans[name].fixes.update(fixes)
        hashes |= made.hashes
    return problems, hashes


def _stream_years(work: _Work, names: Sequence[str], task_map: TaskMap) -> None:
    """The annual means of monthly variables, from the sums that their regions have kept."""
    if work.annual is None:
        return
    writer = work.writer
    units = [
        (name, region)
        for name in members_of(work.plan, "mon")
        if name in names
        for region in writer.regions("yr", name)
        if not writer.is_done("yr", name, region)
    ]
    with closing(task_map(_make_years, work, units)) as finished:
        for position, _ in finished:
            writer.record("yr", *units[position])


def _make_years(work: _Work, unit: tuple[str, slice]) -> None:
    assert work.annual is not None
    name, region = unit
    writer = work.writer
    months, shape = writer.regions("mon", name), work.plan.grid.shape
    if _in_whole_years(months):
        values = np.empty((region.stop - region.start, *shape), dtype=np.float32)
        for part in months:
            first, last = part.start // 12, part.stop // 12
            if first < region.stop and last > region.start:
                kept = np.load(when_there(_years_kept(writer, name, part)))
                here = slice(max(first, region.start), min(last, region.stop))
                values[here.start - region.start : here.stop - region.start] = kept[
                    here.start - first : here.stop - first
                ]
    else:
        sums = work.annual.kept(writer.scratch, name, months, region, shape)
        values = sums.whole().astype(np.float32)
    values[..., work.fraction == 0.0] = np.nan
    writer.fill("yr", name, region, values)


def _in_whole_years(months: Sequence[slice]) -> bool:
    """Whether each region of months holds whole years: their means need no other region's sums."""
    return all(region.start % 12 == 0 for region in months)


def _years_kept(writer: StoreWriter, name: str, months: slice) -> Path:
    return writer.scratch / f"{name}-{months.start}.npy"


def _keep_years(work: _Work, name: str, months: slice, sums: YearSums) -> None:
    """Keep the annual means of a region of months, or the sums where it cuts a year."""
    if _in_whole_years(work.writer.regions("mon", name)):
        content = io.BytesIO()
        np.save(content, sums.whole().astype(np.float32))
        write_atomic(_years_kept(work.writer, name, months), content.getvalue())
    else:
        sums.save(work.writer.scratch, name, months)


def _held(item: VariablePlan) -> NDArray[np.bool_]:
    """Cells that ever held a value."""
    assert item.summary.held is not None
    return item.summary.held


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


def _make(work: _Work, unit: _Unit) -> dict[str, Any]:
    """Make and write one region of the variables of a unit; what came of it, as JSON of `_Made`.

    A variable that cannot be made is not written; the others are.
    """
    made = _Made()
    mine = {n: replace(work.plan.plans[n], summary=Summary(), fixes={}) for n in unit.names}
    plan = replace(work.plan, plans=mine)
    # Right before its values are read: the bytes come from the disk once.
    for file in unit.files:
        try:
            made.hashes[file.origin] = content_hash(file.path)
        except OSError as error:
            problem = Problem(file.origin, found=f"a file that cannot be read ({error.strerror})")
            for name, item in mine.items():
                if any(file in timeline.files for timeline in _timelines(item)):
                    made.problems[name] = [problem]
    fields = _months if unit.group == "mon" else _years
    for name, values in fields(plan, work, unit.region, made):
        values[..., work.fraction == 0.0] = np.nan
        work.writer.fill(unit.group, name, unit.region, values)
    made.summaries = {name: item.summary for name, item in mine.items()}
    made.fixes = {name: item.fixes for name, item in mine.items() if item.fixes}
    return made.to_json()


def _months(
    plan: RunPlan, work: _Work, region: slice, made: _Made
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Monthly values, and what the annual ones need of them.

    A year at a time: what is at work is then small beside the region that is to be written.
    """
    whole, shape = plan.axis("mon"), plan.grid.shape
    fields: dict[str, NDArray[np.float32]] = {}
    sums: dict[str, YearSums] = {}
    steps_of: dict[str, int] = {}
    for start in range(region.start, region.stop, 12):
        steps = slice(start, min(start + 12, region.stop))
        block = Block(plan, whole.part(steps), steps, work.fraction)
        for name, values in _values(block, "mon", made):
            if name not in fields:
                fields[name] = np.empty((region.stop - region.start, *shape), dtype=np.float32)
                if work.annual is not None:
                    sums[name] = work.annual.sums(region, shape)
            fields[name][start - region.start : steps.stop - region.start] = values
            if work.annual is not None:
                sums[name].add(steps, values, np.ones(shape))
            steps_of[name] = steps_of.get(name, 0) + steps.stop - steps.start
    for name, field_ in fields.items():
        # Fewer steps where some could not be made, by themselves or by what they derive from.
        if steps_of[name] == region.stop - region.start:
            if name in sums:
                _keep_years(work, name, region, sums[name])
            yield name, field_


def _years(
    plan: RunPlan, work: _Work, region: slice, made: _Made
) -> Iterator[tuple[str, NDArray[np.float32]]]:
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
            yield name, values


# --- words about it ------------------------------------------------------------------------------


def _source(variable_map: VariableMap) -> dict[str, str]:
    tool = f"callmip-global {__version__}"
    return {"source": f"{tool}, variable map {Path(variable_map.where).name}"}


def _attributes(plan: VariablePlan) -> dict[str, Any]:
    """CF attributes of a variable in the store, with where it comes from."""
    attributes: dict[str, Any] = dict(plan.variable.cf_attributes())
    attributes |= plan.attributes
    if plan.entry.expression is None:
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
        "per": item.per,
        "frequency": item.frequency,
        "files": sorted(set(files)),
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
