"""From an experiment to its graph: steps, tasks, what each waits for, and a key for each result.

The key of a task is a hash of everything that determines its result: its own settings and files,
and the keys of the tasks it builds on. A success marker counts only while its key is the plan's,
so editing one phase reruns that phase and what depends on it, and nothing else. Resources, queue
and site are not part of it: where something ran does not change what it is.

The name of the simulation, and land use and N deposition, are part of it only where the command or
a template uses them. Simulations that agree in all else, forcing and all that came before, share a
segment: it has one task, and both build on it. Stages and members never share.

An experiment may have 100,000 tasks. plan.json therefore holds the steps without their tasks, and
each step has a table of its own, tasks.tsv, which is read when somebody asks for it.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast, overload

from callmip_global import __version__
from callmip_global.config.placeholders import expand, placeholder_names, template_names
from callmip_global.config.products import load_products
from callmip_global.config.schema import (
    LATEST,
    Experiment,
    Phase,
    Recycle,
    Run,
    Simulation,
    StageName,
    StepKind,
    phase_forcing,
)
from callmip_global.data import data_path
from callmip_global.errors import Problem, UsageError
from callmip_global.files import canonical_json, file_hash, text_hash

if TYPE_CHECKING:
    from callmip_global.config.load import LoadedExperiment

FORMAT = 2
"""Version of plan.json; a run directory of another version is refused."""

ENGINE_STEPS = ("harmonize", "regrid", "benchmark", "report", "export")
"""Kinds of steps that run in this package, not in the group's model."""

_TABLE_HEAD = "row\ttask\tsimulation\tstage\tmember\ttile\tshared_by\tkey\tupstream"

# Paths are how results are reached, not what they are: their contents are hashed. Neither is the
# interpreter part of a result.
_NOT_IN_KEY = ("parameters", "inputs", "executables", "python")
# A model that is not told of these cannot depend on them. (CO2 and climate it may read unasked.)
_IN_KEY_IF_USED = ("simulation", "luc", "ndep")


@dataclass(frozen=True)
class Segment:
    """Consecutive model years run by one job, and the name of its step. ``part`` is its phase, or
    its inner step as a phase of its own (see `Phase.parts`)."""

    phase: str
    inner: str | None
    cycle: int
    first_year: int
    last_year: int
    n_years: int
    name: str
    part: Phase


@dataclass(frozen=True, slots=True)
class Task:
    """One element of a step; ``upstream``: ``step/task`` names, ``index``: row in tasks.tsv.

    ``shared_by``: further simulations that build on this very run segment.
    """

    id: str
    index: int
    key: str
    upstream: tuple[str, ...]
    simulation: str | None = None
    stage: StageName | None = None
    member: int | None = None
    tile: int | None = None
    shared_by: tuple[str, ...] = ()


class TaskTable(Sequence[Task]):
    """The tasks of one step in the order of their rows; read on first use."""

    def __init__(self, load: Callable[[], list[Task]]) -> None:
        self._load = load

    @cached_property
    def _tasks(self) -> list[Task]:
        return self._load()

    @cached_property
    def _by_id(self) -> dict[str, Task]:
        return {task.id: task for task in self._tasks}

    def find(self, task_id: str) -> Task | None:
        """Task by name; None if there is none."""
        return self._by_id.get(task_id)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        return self._tasks[index]


def tasks_table(tasks: Iterable[Task]) -> str:
    """Text of tasks.tsv: what each array index stands for. `tasks_of_table` is the inverse."""
    rows = [_TABLE_HEAD]
    rows.extend(
        f"{t.index}\t{t.id}\t{t.simulation or ''}\t{t.stage or ''}\t"
        f"{'' if t.member is None else t.member}\t{'' if t.tile is None else t.tile}\t"
        f"{','.join(t.shared_by)}\t{t.key}\t{' '.join(t.upstream)}"
        for t in tasks
    )
    return "\n".join(rows) + "\n"


def tasks_of_table(text: str) -> list[Task]:
    """The tasks of a tasks.tsv."""
    tasks = []
    for line in text.splitlines()[1:]:
        row, name, simulation, stage, member, tile, shared, key, upstream = line.split("\t")
        tasks.append(
            Task(
                name,
                int(row),
                key,
                tuple(upstream.split(" ")) if upstream else (),
                simulation or None,
                cast("StageName", stage) if stage else None,
                int(member) if member else None,
                int(tile) if tile else None,
                tuple(shared.split(",")) if shared else (),
            )
        )
    return tasks


@dataclass(frozen=True)
class Step:
    """One node of the graph: tasks of one kind that become an array (or single jobs)."""

    name: str
    kind: str
    resources: Mapping[str, Any]
    tasks: TaskTable
    outputs: Mapping[str, int] = field(default_factory=dict)
    """What each run or merge task must leave: file or pattern in its attempt folder, and how many
    time steps each such file holds at least."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Of a run segment: years, command, files, options, restart files, forcing by simulation."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """``walltime_s`` and ``memory_bytes`` that the queue gives at most; None where not known."""
    table: str = ""
    """Digest of the table of its tasks."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the tasks."""
        names = ("name", "kind", "resources", "outputs", "recipe", "limits", "table")
        return {"n_tasks": len(self.tasks), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Plan:
    """The resolved experiment; written to RUN/plan.json and the tables, all that a job reads."""

    name: str
    experiment: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    steps: tuple[Step, ...]
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, without the tasks; `plan_from_json` is the inverse."""
        names = ("name", "experiment", "settings", "inputs", "format")
        own = {name: getattr(self, name) for name in names}
        return {**own, "steps": [step.to_json() for step in self.steps]}

    @cached_property
    def _steps(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}

    def step(self, name: str) -> Step:
        """Step by name; KeyError if there is none."""
        return self._steps[name]

    def task(self, ref: str) -> Task:
        """Task by ``step/task``; KeyError if there is none."""
        step, _, name = ref.partition("/")
        task = self._steps[step].tasks.find(name)
        if task is None:
            raise KeyError(ref)
        return task

    def tasks(self) -> Iterator[tuple[Step, Task]]:
        """All tasks in the order of the graph."""
        for step in self.steps:
            for task in step.tasks:
                yield step, task

    def keys(self) -> dict[str, str]:
        """Key of each task by ``step/task``."""
        return {f"{step.name}/{task.id}": task.key for step, task in self.tasks()}


def plan_from_json(value: Mapping[str, Any], where: str, table: Callable[[str, str], str]) -> Plan:
    """The plan of a plan.json; ``table(step, digest)`` gives the text of a table when it is needed.

    UsageError for another format.
    """
    if value.get("format") != FORMAT:
        raise UsageError(
            Problem(
                where,
                "format",
                repr(value.get("format")),
                str(FORMAT),
                "This run directory belongs to another version of callmip-global.",
            )
        )

    def step_of(item: Mapping[str, Any]) -> Step:
        own = {name: text for name, text in item.items() if name != "n_tasks"}
        tasks = TaskTable(lambda: tasks_of_table(table(item["name"], item["table"])))
        return Step(**own, tasks=tasks)

    names = ("name", "experiment", "settings", "inputs", "format")
    return Plan(
        steps=tuple(step_of(step) for step in value["steps"]),
        **{name: value[name] for name in names},
    )


def segments(phases: Iterable[Phase]) -> list[Segment]:
    """All segments of all phases in order; see `callmip_global.config.schema.Phase` for cycles."""
    found: list[Segment] = []
    for phase in phases:
        inner: list[str | None] = [step.name for step in phase.steps]
        for cycle in range(1, phase.cycles + 1):
            label = f"-c{cycle:02d}" if phase.cycles > 1 else ""
            for name, part in zip(inner or [None], phase.parts(), strict=True):
                if cycle > part.cycles:
                    continue
                prefix = f"run-{phase.name}{label}{f'-{name}' if name else ''}"
                found += _cut(phase.name, name, cycle, part, prefix)
    return found


def _cut(phase: str, inner: str | None, cycle: int, part: Phase, prefix: str) -> Iterator[Segment]:
    first, last = part.years
    length = part.segment_years or last - first + 1
    for start in range(first, last + 1, length):
        end = min(start + length - 1, last)
        # A single labelled year stands for a whole pass over the recycled climate.
        n_years = part.n_years if first == last else end - start + 1
        span = f"-{start}-{end}" if length < last - first + 1 else ""
        yield Segment(phase, inner, cycle, start, end, n_years, f"{prefix}{span}", part)


@dataclass(frozen=True)
class Link:
    """A segment in the chain of one simulation: what it leaves, and where what it reads is from.

    ``restart_in``: name or pattern -> the segment that left it. ``missing``: names that were asked
    for and that no earlier segment leaves, with the source that was asked.
    """

    segment: Segment
    restart_out: tuple[str, ...]
    restart_in: Mapping[str, str]
    missing: tuple[tuple[str, str], ...] = ()


def chain(run: Run, simulation: str) -> list[Link]:
    """The segments of one simulation in order, with their restart files followed back."""
    links: list[Link] = []
    for segment in segments(phase for phase in run.phases if phase.is_in(simulation)):
        part = segment.part
        out = run.restart if part.restart_out is None else part.restart_out
        asked = part.restart_in
        sources: dict[str, str] = {}
        missing: list[tuple[str, str]] = []
        for name, source in (
            dict.fromkeys(run.restart, LATEST) if asked is None else asked
        ).items():
            before = _left_by(links, name, source)
            if before is not None:
                sources[name] = before
            elif asked is not None:
                missing.append((name, source))
        links.append(Link(segment, out, sources, tuple(missing)))
    return links


def _left_by(links: Sequence[Link], name: str, source: str) -> str | None:
    """The last segment (of the phase ``source``) that left a restart file."""
    for link in reversed(links):
        if source in (LATEST, link.segment.phase) and any(
            name == left or fnmatchcase(name, left) for left in link.restart_out
        ):
            return link.segment.name
    return None


def storage_bytes(plan: Plan) -> dict[str, int | None]:
    """Disk that each step will need at most, by its name; None where the group has not said.

    Run steps from ``run.disk`` (a copy of the restart set read, the set left, delivered years),
    stores from their shape without compression.
    """
    disk = plan.settings["disk"]
    found: dict[str, int | None] = {}
    for step in plan.steps:
        size: int | None = 0
        if step.kind in ("run", "merge"):
            size = None if disk is None else _model_bytes(step, disk)
        elif step.kind in ("regrid", "export"):
            size = plan.settings["store_bytes"]
        found[step.name] = None if size is None else size * len(step.tasks)
    return found


def _model_bytes(step: Step, disk: Mapping[str, int]) -> int:
    recipe = step.recipe
    sets = 0
    if step.kind == "run":
        reads = any(s["restart_in"] for s in recipe["simulations"].values())
        sets = int(bool(recipe["restart_out"])) + int(reads)
    years = recipe["output_years"]
    return int(sets * disk["restart_bytes"] + years * disk["year_bytes"])


def expected_outputs(
    patterns: Mapping[str, str], first_year: int, last_year: int, first_delivered: int
) -> dict[str, int]:
    """Files that a run of these model years must leave, with their least number of time steps in
    delivered years. `{variable}` becomes ``*``: at least one file matches."""
    found: dict[str, int] = {}
    for frequency, pattern in patterns.items():
        context = {
            "frequency": frequency,
            "variable": "*",
            "first_year": first_year,
            "last_year": last_year,
        }
        for year in range(max(first_year, first_delivered), last_year + 1):
            text = expand(pattern, {**context, "year": year}, quote=False)
            found[text] = found.get(text, 0) + (12 if frequency == "mon" else 1)
    return found


def run_context(plan: Plan, step: Step, task: Task) -> dict[str, Any]:
    """Values of the placeholders for one run task; see `config.placeholders.RUN_NAMES`."""
    settings, recipe = plan.settings, step.recipe
    stage = settings["stages"][task.stage]
    own = recipe["simulations"][task.simulation]
    context: dict[str, Any] = {
        "model": settings["model"]["name"],
        "version": settings["model"]["version"],
        "simulation": task.simulation,
        "stage": task.stage,
        "scenario": stage["scenario"],
        "member": task.member,
        "tile": task.tile,
        "tiles": settings["tiles"],
        **{name: recipe[name] for name in _OF_SEGMENT},
        **{name: own[name] for name in _OF_FORCING},
        "first_segment": not own["restart_in"],
        "calendar": settings["calendar"],
        "executables": settings["executables"],
    }
    base = Path(settings["base_dir"])

    def absolute(text: str, values: Mapping[str, Any]) -> str:
        return str(base / Path(expand(text, values, quote=False)).expanduser())

    context["parameters"] = absolute(stage["parameters"], context)
    # `{year}` and `{var}` are the model's to fill in: it reads many of them.
    kept = {**context, "year": "{year}", "var": "{var}"}
    context["inputs"] = {name: absolute(text, kept) for name, text in settings["inputs"].items()}
    return context


_OF_SEGMENT = (
    "phase", "step", "cycle", "first_year", "last_year", "n_years", "write_output", "options",
)  # fmt: skip
_OF_FORCING = ("climate", "climate_first_year", "climate_last_year", "co2", "luc", "ndep")


def build_plan(loaded: LoadedExperiment, overrides: Sequence[str] = ()) -> Plan:
    """The whole graph of a validated experiment. Reads files to hash them; writes nothing.

    ``overrides``: the ``--set`` values it was loaded with, kept so that `resume` plans the same.
    Raises UsageError where a file vanished since validation.
    """
    return _Builder(loaded, overrides).build()


class _Builder:
    """Holds what all steps share while the graph is put together."""

    def __init__(self, loaded: LoadedExperiment, overrides: Sequence[str]) -> None:
        self.loaded = loaded
        self.overrides = list(overrides)
        self.experiment: Experiment = loaded.experiment
        self.inputs: dict[str, str] = {}
        self.steps: list[Step] = []
        self.keys: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.input_digests: dict[str, str] = {}
        self.window = self.experiment.delivered_years
        self.variable_map = loaded.resolve_variables()
        tiles = self.experiment.run.tiles
        numbers: list[int | None] = [None] if tiles is None else list(range(1, tiles.count + 1))
        width = max(2, len(str(len(numbers))))
        self.tiles = [(n, None if n is None else f"t{n:0{width}d}") for n in numbers]
        self.settings = self._settings()

    def build(self) -> Plan:
        """Steps in the order of the graph, each from the keys of those before it."""
        delivered = self._run_steps()
        if self.experiment.run.tiles is not None:
            delivered = self._merge(delivered)
        upstream = self._per_store("harmonize", delivered, self._harmonize_settings())
        upstream = self._per_store("regrid", upstream, {"grid": self._grid_text()})
        if self._products() is not None:
            everything = tuple(ref for refs in upstream.values() for ref in refs)
            ref = self._single("benchmark", everything, self._product_settings())
            self._single("report", (ref,), {})
        self._per_store("export", upstream, {"protocol": self._protocol_text()})
        return Plan(
            name=f"{self.experiment.model.name}.{self.experiment.model.version}",
            experiment=str(self.loaded.path),
            settings=self.settings,
            inputs=dict(sorted(self.inputs.items())),
            steps=tuple(self.steps),
        )

    def _settings(self) -> dict[str, Any]:
        """What jobs need beside the graph, as plain values."""
        experiment, run = self.experiment, self.experiment.run
        return {
            "model": experiment.model.model_dump(mode="json"),
            "protocol": str(self.loaded.protocol.path),
            "base_dir": str(self.loaded.base_dir),
            "overrides": self.overrides,
            "stages": {
                name: stage.model_dump(mode="json") for name, stage in experiment.stages.items()
            },
            "environment": run.environment,
            "templates": self.texts,
            "inputs": run.inputs,
            "outputs": run.outputs,
            "executables": {name: str(path) for name, path in self._executables().items()},
            "calendar": run.calendar,
            "merge": None if run.tiles is None else run.tiles.merge,
            "tiles": None if run.tiles is None else run.tiles.count,
            "disk": None if run.disk is None else run.disk.model_dump(mode="json"),
            "store_bytes": self._store_bytes(),
            "variables": str(self.variable_map),
            "grid": experiment.output.grid,
            "frequencies": list(experiment.output.frequencies),
            "years": list(self.window),
            "products": None if self._products() is None else str(self._products()),
            "retry": {
                name: rule.model_dump(mode="json") for name, rule in experiment.retry.items()
            },
            "site": self.loaded.site.model_dump(mode="json"),
        }

    def _executables(self) -> dict[str, Path]:
        executables = self.experiment.run.executables
        return {name: self.loaded.resolve(text) for name, text in executables.items()}

    def _store_bytes(self) -> int:
        """One store in float32 without compression, an upper bound."""
        cells = {"0.5deg": 720 * 360, "1deg": 360 * 180, "2deg": 180 * 90}
        output = self.experiment.output
        steps = sum(12 if name == "mon" else 1 for name in output.frequencies) * output.years
        return 4 * cells[output.grid] * steps * len(self.loaded.protocol.variables)

    def _run_steps(self) -> dict[_Store, tuple[str, ...]]:
        """All run steps; returns the segments that hold delivered years, of each store."""
        run = self.experiment.run
        links = {
            simulation.name: {link.segment.name: link for link in chain(run, simulation.name)}
            for simulation in self.experiment.simulations
        }
        made: dict[tuple[str, str], list[str]] = {}
        delivered: dict[_Store, list[str]] = {store: [] for store in self._stores()}
        for segment in segments(run.phases):
            own = {
                name: found[segment.name] for name, found in links.items() if segment.name in found
            }
            if not own:
                continue
            step = self._segment_step(segment, own, made)
            for simulation, refs in step.items():
                made[simulation, segment.name] = refs
                if segment.last_year >= self.window[0]:
                    for store, some in self._by_store(simulation, refs):
                        delivered[store] += some
        return {store: tuple(refs) for store, refs in delivered.items()}

    def _stores(self) -> Iterator[_Store]:
        for simulation in self.experiment.simulations:
            for stage, member in self._parameter_sets():
                yield simulation.name, stage, member

    def _parameter_sets(self) -> Iterator[tuple[StageName, int | None]]:
        for name, stage in self.experiment.stages.items():
            for member in stage.member_numbers:
                yield name, member

    def _by_store(self, simulation: str, refs: Sequence[str]) -> Iterator[tuple[_Store, list[str]]]:
        n = len(self.tiles)
        for i, (stage, member) in enumerate(self._parameter_sets()):
            yield (simulation, stage, member), list(refs[i * n : (i + 1) * n])

    def _segment_step(
        self,
        segment: Segment,
        links: Mapping[str, Link],
        made: Mapping[tuple[str, str], Sequence[str]],
    ) -> dict[str, list[str]]:
        """Add the step of one segment; returns its tasks by simulation, one for each parameter set
        and tile, in that order. Simulations that agree in all that is used have the same tasks."""
        recipe, outputs = self._recipe(segment, links)
        unused = set(_IN_KEY_IF_USED).difference(self._names_used(recipe))
        shared = [
            "run",
            self.experiment.model.name,
            self.experiment.model.version,
            self.experiment.run.environment,
            recipe["command"],
            {target: self.texts[source] for target, source in recipe["files"].items()},
            recipe["restart_out"],
            outputs,
            {name: self._hash(path) for name, path in self._executables().items()},
        ]
        context_of = Plan("", "", self.settings, {}, ())
        rows: list[Task] = []
        row_of: dict[str, int] = {}
        found: dict[str, list[str]] = {}
        for simulation, link in links.items():
            refs = found.setdefault(simulation, [])
            sources = link.restart_in
            before = [made[simulation, name] for name in dict.fromkeys(sources.values())]
            names = canonical_json(sources)
            for stage, member in self._parameter_sets():
                task = Task("", 0, "", (), simulation, stage, member, None)
                step = Step(segment.name, "run", {}, TaskTable(list), outputs, recipe)
                context = run_context(context_of, step, task)
                base = _key(
                    *shared,
                    {k: v for k, v in context.items() if k not in (*_NOT_IN_KEY, *unused)},
                    self._hash(Path(context["parameters"])),
                    self._input_digest(context),
                    [stage, member],
                    names,
                )
                for tile, tile_text in self.tiles:
                    upstream = tuple(refs_of[len(refs)] for refs_of in before)
                    key = text_hash(" ".join([base, str(tile), *(self.keys[r] for r in upstream)]))
                    row = row_of.get(key)
                    if row is None:
                        row = row_of[key] = len(rows)
                        name = _task_id(simulation, stage, member, tile_text)
                        rows.append(
                            Task(name, row + 1, key, upstream, simulation, stage, member, tile)
                        )
                        ref = f"{segment.name}/{name}"
                        self.keys[ref] = key
                    else:
                        first = rows[row]
                        rows[row] = replace(first, shared_by=(*first.shared_by, simulation))
                        ref = f"{segment.name}/{first.id}"
                    refs.append(ref)
        self._add(segment.name, "run", rows, outputs, recipe)
        return found

    def _recipe(
        self, segment: Segment, links: Mapping[str, Link]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """How the tasks of a segment are run, as plain values, and the outputs they must leave."""
        run, part = self.experiment.run, segment.part
        writes = segment.last_year >= self.window[0]
        files = {
            target: self._template(text) for target, text in {**run.files, **part.files}.items()
        }
        first_delivered = max(segment.first_year, self.window[0])
        recipe: dict[str, Any] = {
            "phase": segment.phase,
            "step": segment.inner,
            "cycle": segment.cycle,
            "first_year": segment.first_year,
            "last_year": segment.last_year,
            "n_years": segment.n_years,
            "write_output": writes,
            "output_years": segment.last_year - first_delivered + 1 if writes else 0,
            "command": part.command or run.command,
            "files": files,
            "options": {**run.options, **part.options},
            "restart_out": list(next(iter(links.values())).restart_out),
            "simulations": {
                simulation.name: self._forcing(segment, simulation, links[simulation.name])
                for simulation in self.experiment.simulations
                if simulation.name in links
            },
        }
        years = (segment.first_year, segment.last_year)
        patterns = {str(frequency): text for frequency, text in run.outputs.items()}
        return recipe, expected_outputs(patterns, *years, self.window[0]) if writes else {}

    def _template(self, text: str) -> str:
        """The template's file as a name; its text is kept once."""
        path = self.loaded.resolve(text)
        name = str(path)
        if name not in self.texts:
            self.texts[name] = path.read_text(encoding="utf-8")
        return name

    def _names_used(self, recipe: Mapping[str, Any]) -> set[str]:
        """Placeholders of the command, of the targets and of the templates."""
        names = set(placeholder_names(recipe["command"]))
        for target, source in recipe["files"].items():
            names |= placeholder_names(target) | template_names(self.texts[source])
        return names

    def _forcing(self, segment: Segment, simulation: Simulation, link: Link) -> dict[str, Any]:
        forcing = phase_forcing(segment.part, simulation, self.loaded.fixed_forcing)
        climate = forcing.climate
        recycled = isinstance(climate, Recycle)
        years = (
            climate.recycle
            if isinstance(climate, Recycle)
            else (segment.first_year, segment.last_year)
        )
        return {
            "climate": "recycle" if recycled else "actual",
            "climate_first_year": years[0],
            "climate_last_year": years[1],
            "co2": forcing.co2,
            "luc": forcing.luc,
            "ndep": forcing.ndep,
            "restart_in": dict(link.restart_in),
        }

    def _input_digest(self, context: Mapping[str, Any]) -> str:
        """Digest of the input files one task reads: their hashes by name, in order."""
        files = {
            text.replace("{year}", str(year)): name
            for name, text in context["inputs"].items()
            for year in (_input_years(name, context) if "{year}" in text else (None,))
        }
        asked = canonical_json(list(files))
        if asked not in self.input_digests:
            found = []
            for text, name in files.items():
                pattern = glob.escape(text.lstrip("/")).replace("{var}", "*")
                paths = sorted(Path("/").glob(pattern))
                found += [(name, path.name, self._hash(path)) for path in paths]
            self.input_digests[asked] = _key(found)
        return self.input_digests[asked]

    def _merge(self, delivered: Mapping[_Store, Sequence[str]]) -> dict[_Store, tuple[str, ...]]:
        tiles = self.experiment.run.tiles
        names = {ref.partition("/")[0] for refs in delivered.values() for ref in refs}
        writing = [step for step in self.steps if step.name in names]
        outputs = {
            pattern: time_steps for step in writing for pattern, time_steps in step.outputs.items()
        }
        settings = {"merge": tiles.merge if tiles else None, "outputs": outputs}
        recipe = {"output_years": sum(step.recipe["output_years"] for step in writing)}
        return self._per_store("merge", delivered, settings, outputs, recipe)

    def _per_store(
        self,
        kind: StepKind,
        upstream: Mapping[_Store, Sequence[str]],
        settings: Mapping[str, Any],
        outputs: Mapping[str, int] = MappingProxyType({}),
        recipe: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[_Store, tuple[str, ...]]:
        """A step with one task for each simulation, stage and member."""
        tasks: list[Task] = []
        references: dict[_Store, tuple[str, ...]] = {}
        for index, (store, before) in enumerate(upstream.items(), start=1):
            simulation, stage, member = store
            key = _key(
                kind, __version__ if kind in ENGINE_STEPS else None, self._identity_settings(stage),
                settings, [simulation, stage, member], [self.keys[ref] for ref in before],
            )  # fmt: skip
            task_id = _task_id(simulation, stage, member, None)
            tasks.append(Task(task_id, index, key, tuple(before), simulation, stage, member))
            references[store] = (f"{kind}/{task_id}",)
            self.keys[f"{kind}/{task_id}"] = key
        self._add(kind, kind, tasks, outputs, recipe)
        return references

    def _single(
        self, kind: StepKind, upstream: tuple[str, ...], settings: Mapping[str, Any]
    ) -> str:
        """A step with one task over everything before it."""
        key = _key(kind, __version__, settings, [self.keys[ref] for ref in upstream])
        self._add(kind, kind, [Task("all", 1, key, upstream)], {}, {})
        self.keys[f"{kind}/all"] = key
        return f"{kind}/all"

    def _identity_settings(self, stage: StageName) -> dict[str, Any]:
        """What is written into every store and file of a stage."""
        model = self.experiment.model.model_dump(mode="json")
        return {"model": model, "scenario": self.experiment.stages[stage].scenario}

    def _harmonize_settings(self) -> dict[str, Any]:
        return {
            "variable_map": self._hash(self.variable_map),
            "variables": self._hash(data_path("config", "variables.yaml")),
            "years": list(self.window),
            "frequencies": list(self.experiment.output.frequencies),
        }

    def _grid_text(self) -> str:
        return data_path("regrid", "grids", f"{self.experiment.output.grid}.yaml").read_text()

    def _protocol_text(self) -> str:
        return self.loaded.protocol.path.read_text(encoding="utf-8")

    def _products(self) -> Path | None:
        benchmark = self.experiment.benchmark
        if benchmark is None or not benchmark.products:
            return None
        return self.loaded.resolve(benchmark.products)

    def _product_settings(self) -> dict[str, Any]:
        path = self._products()
        assert path is not None
        files = [f for product in load_products(path) for f in product.files()]
        return {
            "products": self._hash(path),
            "files": {str(f): self._hash(f) for f in files},
        }

    def _hash(self, path: Path) -> str:
        name = str(path)
        if name not in self.inputs:
            try:
                self.inputs[name] = file_hash(path)
            except OSError as error:
                raise UsageError(
                    Problem(name, found=error.strerror or str(error), wanted="a readable file")
                ) from error
        return self.inputs[name]

    def _add(
        self,
        name: str,
        kind: StepKind,
        tasks: list[Task],
        outputs: Mapping[str, int],
        recipe: Mapping[str, Any],
    ) -> None:
        asked = self.loaded.resources(kind)
        queue = self.loaded.site.queues.get(asked.queue or "")
        limits = {
            "walltime_s": queue.walltime_limit_s(asked.tasks * asked.cpus) if queue else None,
            "memory_bytes": queue.max_memory_bytes if queue else None,
        }
        text = tasks_table(tasks)
        step = Step(
            name, kind, asked.model_dump(mode="json"), TaskTable(lambda: tasks), dict(outputs),
            dict(recipe), limits, text_hash(text),
        )  # fmt: skip
        self.steps.append(step)


_Store = tuple[str, StageName, int | None]
"""Simulation, stage and member: what becomes one store."""


def _input_years(name: str, context: Mapping[str, Any]) -> Iterable[int]:
    """Years whose files a task reads: of co2, luc and ndep by name, of all else the climate's."""
    if name not in ("co2", "luc", "ndep"):
        return range(context["climate_first_year"], context["climate_last_year"] + 1)
    level = context[name]
    if level == "yearly":
        return range(context["first_year"], context["last_year"] + 1)
    return () if level is None else (level,)


def _task_id(simulation: str, stage: str, member: int | None, tile: str | None) -> str:
    name = f"{simulation}.{stage}"
    if member is not None:
        name += f".m{member:03d}"
    return name if tile is None else f"{name}.{tile}"


def _key(*parts: Any) -> str:
    return text_hash(canonical_json(parts))
