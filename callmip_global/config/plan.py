"""From an experiment to its graph: steps, tasks, what each waits for, and a key for each result.

The key of a task is a hash of everything that determines its result: its own settings and files,
and the keys of the tasks it builds on. A success marker counts only while its key is the plan's,
so editing one phase reruns that phase and what depends on it, and nothing else. Resources, queue
and site are not part of it: where something ran does not change what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from callmip_global import __version__
from callmip_global.config.placeholders import expand
from callmip_global.config.products import load_products
from callmip_global.config.schema import (
    Experiment,
    Phase,
    Recycle,
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

FORMAT = 1
"""Version of plan.json; a run directory of another version is refused."""

ENGINE_STEPS = ("harmonize", "regrid", "benchmark", "report", "export")
"""Kinds of steps that run in this package, not in the group's model."""


@dataclass(frozen=True)
class Segment:
    """Consecutive model years run by one job, and the name of its step."""

    phase: str
    cycle: int
    first_year: int
    last_year: int
    n_years: int
    name: str


@dataclass(frozen=True)
class Task:
    """One element of a step; ``upstream``: ``step/task`` names, ``index``: row in tasks.tsv."""

    id: str
    index: int
    key: str
    upstream: tuple[str, ...]
    simulation: str | None = None
    stage: StageName | None = None
    member: int | None = None
    tile: int | None = None
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One node of the graph: tasks of one kind that become an array (or single jobs)."""

    name: str
    kind: str
    resources: Mapping[str, Any]
    tasks: tuple[Task, ...]
    outputs: Mapping[str, int] = field(default_factory=dict)
    """What each run or merge task must leave: file or pattern in its attempt folder, and how many
    time steps each such file holds at least."""


@dataclass(frozen=True)
class Plan:
    """The resolved experiment; written to RUN/plan.json, which is all that a job reads."""

    name: str
    experiment: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    steps: tuple[Step, ...]
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; `plan_from_json` is the inverse."""
        return asdict(self)

    def step(self, name: str) -> Step:
        """Step by name; KeyError if there is none."""
        return {s.name: s for s in self.steps}[name]

    def tasks(self) -> Iterator[tuple[Step, Task]]:
        """All tasks in the order of the graph."""
        for step in self.steps:
            for task in step.tasks:
                yield step, task

    def keys(self) -> dict[str, str]:
        """Key of each task by ``step/task``."""
        return {f"{step.name}/{task.id}": task.key for step, task in self.tasks()}


def plan_from_json(value: Mapping[str, Any], where: str) -> Plan:
    """The plan of a plan.json; UsageError for another format."""
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
    steps = tuple(
        Step(
            **{
                **step,
                "tasks": tuple(
                    Task(**{**task, "upstream": tuple(task["upstream"])}) for task in step["tasks"]
                ),
            }
        )
        for step in value["steps"]
    )
    names = {f.name for f in fields(Plan)} - {"steps"}
    return Plan(steps=steps, **{name: value[name] for name in names})


def segments(phases: tuple[Phase, ...]) -> list[Segment]:
    """All segments of all phases in order; see `callmip_global.config.schema.Phase` for cycles."""
    found = []
    for phase in phases:
        first, last = phase.years
        length = phase.segment_years or last - first + 1
        for cycle in range(1, phase.cycles + 1):
            label = f"-c{cycle:02d}" if phase.cycles > 1 else ""
            for start in range(first, last + 1, length):
                end = min(start + length - 1, last)
                # A single labelled year stands for a whole pass over the recycled climate.
                n_years = phase.n_years if first == last else end - start + 1
                span = f"-{start}-{end}" if length < last - first + 1 else ""
                name = f"run-{phase.name}{label}{span}"
                found.append(Segment(phase.name, cycle, start, end, n_years, name))
    return found


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
        run = self.experiment.run
        self.templates = {
            target: {"source": str(path), "text": path.read_text(encoding="utf-8")}
            for target, path in ((t, loaded.resolve(p)) for t, p in run.files.items())
        }
        self.window = self.experiment.delivered_years
        self.variable_map = loaded.resolve_variables()
        self.tile_numbers: list[int | None] = (
            [None] if run.tiles is None else list(range(1, run.tiles.count + 1))
        )

    def build(self) -> Plan:
        """Steps in the order of the graph, each from the keys of those before it."""
        delivered = self._run_steps()
        if self.experiment.run.tiles is not None:
            delivered = {identity: [ref] for identity, ref in self._merge(delivered).items()}
        harmonized = self._per_store("harmonize", delivered, self._harmonize_settings())
        upstream = {identity: [ref] for identity, ref in harmonized.items()}
        regridded = self._per_store("regrid", upstream, {"grid": self._grid_text()})
        upstream = {identity: [ref] for identity, ref in regridded.items()}
        if self.experiment.benchmark is not None and self.experiment.benchmark.products:
            everything = [ref for refs in upstream.values() for ref in refs]
            ref = self._single("benchmark", everything, self._product_settings())
            self._single("report", [ref], {})
        self._per_store("export", upstream, {"protocol": self._protocol_text()})
        return Plan(
            name=f"{self.experiment.model.name}.{self.experiment.model.version}",
            experiment=str(self.loaded.path),
            settings=self._settings(),
            inputs=dict(sorted(self.inputs.items())),
            steps=tuple(self.steps),
        )

    def _settings(self) -> dict[str, Any]:
        """What jobs need beside the graph, as plain values."""
        experiment, run = self.experiment, self.experiment.run
        return {
            "model": experiment.model.model_dump(mode="json"),
            "protocol": str(self.loaded.protocol.path),
            "overrides": self.overrides,
            "stages": {
                name: {"scenario": stage.scenario, "members": stage.members}
                for name, stage in experiment.stages.items()
            },
            "environment": run.environment,
            "command": run.command,
            "files": self.templates,
            "restart": list(run.restart),
            "calendar": run.calendar,
            "merge": None if run.tiles is None else run.tiles.merge,
            "tiles": None if run.tiles is None else run.tiles.count,
            "variables": str(self.variable_map),
            "grid": experiment.output.grid,
            "frequencies": list(experiment.output.frequencies),
            "years": list(self.window),
            "products": None if self._products() is None else str(self._products()),
            "site": self.loaded.site.model_dump(mode="json"),
        }

    def _run_steps(self) -> dict[tuple[Any, ...], list[str]]:
        """All run steps; returns the segments that hold delivered years, by identity with tile."""
        run = self.experiment.run
        phases = {phase.name: phase for phase in run.phases}
        previous: dict[tuple[Any, ...], tuple[str, str]] = {}
        delivered: dict[tuple[Any, ...], list[str]] = {}
        for number, segment in enumerate(segments(run.phases)):
            tasks = []
            writes = segment.last_year >= self.window[0]
            outputs = self._outputs(segment) if writes else {}
            for index, identity in enumerate(self._identities(), start=1):
                simulation, stage_name, member, tile = identity
                context = self._context(segment, phases[segment.phase], identity)
                context["first_segment"] = number == 0
                context["write_output"] = writes
                before = previous.get(identity)
                key = _key(
                    "run",
                    self.experiment.model.name,
                    self.experiment.model.version,
                    run.environment,
                    run.command,
                    {target: t["text"] for target, t in self.templates.items()},
                    list(run.restart),
                    outputs,
                    # Paths are how results are reached, not what they are: contents are hashed.
                    {k: v for k, v in context.items() if k not in ("parameters", "inputs")},
                    self._hash(Path(context["parameters"])),
                    self._input_hashes(context),
                    before[1] if before else None,
                )
                task_id = _task_id(simulation.name, stage_name, member, self._tile_text(tile))
                upstream = (before[0],) if before else ()
                tasks.append(
                    Task(
                        task_id, index, key, upstream, simulation.name, stage_name, member, tile,
                        context,
                    )
                )  # fmt: skip
                reference = f"{segment.name}/{task_id}"
                previous[identity] = (reference, key)
                if writes:
                    delivered.setdefault((simulation.name, stage_name, member, tile), []).append(
                        reference
                    )
            self._add(segment.name, "run", tasks, outputs)
        return delivered

    def _identities(self) -> Iterator[tuple[Simulation, StageName, int | None, int | None]]:
        for simulation in self.experiment.simulations:
            for name, stage in self.experiment.stages.items():
                for member in stage.member_numbers:
                    for tile in self.tile_numbers:
                        yield simulation, name, member, tile

    def _tile_text(self, tile: int | None) -> str | None:
        return None if tile is None else f"t{tile:0{max(2, len(str(len(self.tile_numbers))))}d}"

    def _context(
        self,
        segment: Segment,
        phase: Phase,
        identity: tuple[Simulation, StageName, int | None, int | None],
    ) -> dict[str, Any]:
        """Values of the placeholders for one run task; see `config.placeholders.RUN_NAMES`."""
        simulation, stage_name, member, tile = identity
        stage = self.experiment.stages[stage_name]
        forcing = phase_forcing(phase, simulation, self.loaded.fixed_forcing)
        recycled = isinstance(forcing.climate, Recycle)
        years = (
            forcing.climate.recycle
            if isinstance(forcing.climate, Recycle)
            else (segment.first_year, segment.last_year)
        )
        context: dict[str, Any] = {
            "model": self.experiment.model.name,
            "version": self.experiment.model.version,
            "simulation": simulation.name,
            "stage": stage_name,
            "scenario": stage.scenario,
            "member": member,
            "tile": tile,
            "tiles": None if self.experiment.run.tiles is None else len(self.tile_numbers),
            "phase": segment.phase,
            "cycle": segment.cycle,
            "first_year": segment.first_year,
            "last_year": segment.last_year,
            "n_years": segment.n_years,
            "climate": "recycle" if recycled else "actual",
            "climate_first_year": years[0],
            "climate_last_year": years[1],
            "calendar": self.experiment.run.calendar,
            "co2": forcing.co2,
            "luc": forcing.luc,
            "ndep": forcing.ndep,
        }
        context["parameters"] = str(
            self.loaded.resolve(expand(stage.parameters, context, quote=False))
        )
        # `{year}` and `{var}` are the model's to fill in: it reads many of them.
        kept = {**context, "year": "{year}", "var": "{var}"}
        context["inputs"] = {
            name: str(self.loaded.resolve(expand(text, kept, quote=False)))
            for name, text in self.experiment.run.inputs.items()
        }
        return context

    def _outputs(self, segment: Segment) -> dict[str, int]:
        """Files a segment must leave, with their least number of time steps in delivered years.

        `{variable}` becomes ``*``: at least one file matches.
        """
        found: dict[str, int] = {}
        years = range(max(segment.first_year, self.window[0]), segment.last_year + 1)
        for frequency, pattern in self.experiment.run.outputs.items():
            context = {
                "frequency": frequency,
                "variable": "*",
                "first_year": segment.first_year,
                "last_year": segment.last_year,
            }
            for year in years:
                text = expand(pattern, {**context, "year": year}, quote=False)
                found[text] = found.get(text, 0) + (12 if frequency == "mon" else 1)
        return found

    def _input_hashes(self, context: Mapping[str, Any]) -> dict[str, str]:
        """Hashes of the input files one task reads, by name and year."""
        first, last = context["climate_first_year"], context["climate_last_year"]
        found = {}
        for name, text in context["inputs"].items():
            years = range(first, last + 1) if "{year}" in text else (first,)
            for year in years:
                pattern = Path(text.replace("{year}", str(year)).replace("{var}", "*"))
                paths = sorted(pattern.parent.glob(pattern.name))
                for path in paths:
                    found[f"{name} {path.name}"] = self._hash(path)
        return found

    def _merge(self, delivered: Mapping[tuple[Any, ...], list[str]]) -> dict[tuple[Any, ...], str]:
        grouped: dict[tuple[Any, ...], list[str]] = {}
        for (simulation, stage, member, _), references in delivered.items():
            grouped.setdefault((simulation, stage, member), []).extend(references)
        tiles = self.experiment.run.tiles
        names = {text.split("/")[0] for refs in grouped.values() for text in refs}
        outputs = {
            pattern: time_steps
            for step in self.steps
            if step.name in names
            for pattern, time_steps in step.outputs.items()
        }
        settings = {"merge": tiles.merge if tiles else None, "outputs": outputs}
        return self._per_store("merge", grouped, settings, outputs)

    def _per_store(
        self,
        kind: StepKind,
        upstream: Mapping[tuple[Any, ...], list[str]],
        settings: Mapping[str, Any],
        outputs: Mapping[str, int] = MappingProxyType({}),
    ) -> dict[tuple[Any, ...], str]:
        """A step with one task for each simulation, stage and member."""
        keys = self._keys()
        tasks, references = [], {}
        for index, (identity, before) in enumerate(upstream.items(), start=1):
            simulation, stage, member = identity[:3]
            key = _key(
                kind, __version__ if kind in ENGINE_STEPS else None, self._identity_settings(stage),
                settings, [simulation, stage, member], [keys[ref] for ref in before],
            )  # fmt: skip
            task_id = _task_id(simulation, stage, member, None)
            tasks.append(Task(task_id, index, key, tuple(before), simulation, stage, member))
            references[(simulation, stage, member)] = f"{kind}/{task_id}"
        self._add(kind, kind, tasks, outputs)
        return references

    def _single(self, kind: StepKind, upstream: list[str], settings: Mapping[str, Any]) -> str:
        """A step with one task over everything before it."""
        keys = self._keys()
        key = _key(kind, __version__, settings, [keys[ref] for ref in upstream])
        self._add(kind, kind, [Task("all", 1, key, tuple(upstream))], {})
        return f"{kind}/all"

    def _keys(self) -> dict[str, str]:
        return {f"{s.name}/{t.id}": t.key for s in self.steps for t in s.tasks}

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
        self, name: str, kind: StepKind, tasks: list[Task], outputs: Mapping[str, int]
    ) -> None:
        resources = self.loaded.resources(kind).model_dump(mode="json")
        self.steps.append(Step(name, kind, resources, tuple(tasks), dict(outputs)))


def _task_id(simulation: str, stage: str, member: int | None, tile: str | None) -> str:
    parts = [simulation, stage, None if member is None else f"m{member:03d}", tile]
    return ".".join(p for p in parts if p is not None)


def _key(*parts: Any) -> str:
    return text_hash(canonical_json(parts))
