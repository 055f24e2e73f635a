"""From an experiment to its graph: steps, tasks, what each waits for, and a key for each result.

The key of a task is a hash of everything that determines its result: its own settings and files,
and the keys of the tasks it builds on. A success marker counts only while its key is the plan's,
so editing one phase reruns that phase and what depends on it, and nothing else. Resources, queue
and site are not part of it: where something ran does not change what it is.

The name of the simulation, and land use and N deposition, are part of it only where the command or
a template uses them. Simulations that agree in all else, forcing and all that came before, share a
segment: it has one task, and both build on it. Stages and members never share.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from callmip_global import __version__
from callmip_global.config.chain import Link, Segment, chain, segments
from callmip_global.config.placeholders import placeholder_names, template_names
from callmip_global.config.plan import (
    ENGINE_STEPS,
    Plan,
    Step,
    Task,
    TaskTable,
    expected_outputs,
    run_context,
    tasks_table,
)
from callmip_global.config.products import load_products
from callmip_global.config.schema import (
    Experiment,
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

# Paths are how results are reached, not what they are: their contents are hashed. Neither is the
# interpreter part of a result.
_NOT_IN_KEY = ("parameters", "inputs", "executables", "python")
# A model that is not told of these cannot depend on them. (CO2 and climate it may read unasked.)
_IN_KEY_IF_USED = ("simulation", "luc", "ndep")


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
            "regions": [text for text, _ in self._regions()],
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

    def _regions(self) -> list[tuple[str, Path | None]]:
        """Regions asked for, and the file of each that is a mask."""
        benchmark = self.experiment.benchmark
        if benchmark is None or not benchmark.regions:
            return []
        from callmip_global.benchmark.regions import seen_from

        return [seen_from(self.loaded.base_dir, text) for text in benchmark.regions]

    def _product_settings(self) -> dict[str, Any]:
        path = self._products()
        assert path is not None
        files = [f for product in load_products(path) for f in product.files()]
        settings: dict[str, Any] = {
            "products": self._hash(path),
            "files": {str(f): self._hash(f) for f in files},
        }
        if regions := self._regions():
            settings["regions"] = [[text, f and self._hash(f)] for text, f in regions]
        return settings

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
