"""The plan of an experiment: its steps, their tasks, and what a job needs to know of them.

An experiment may have 100,000 tasks. plan.json therefore holds the steps without their tasks, and
each step has a table of its own, tasks.tsv, which is read when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast, overload

from callmip_global.config.placeholders import expand
from callmip_global.config.schema import StageName
from callmip_global.errors import Problem, UsageError
from callmip_global.files import home_path

FORMAT = 2
"""Version of plan.json; a run directory of another version is refused."""

ENGINE_STEPS = ("harmonize", "regrid", "benchmark", "report", "export")
"""Kinds of steps that run in this package, not in the group's model."""

_TABLE_HEAD = "row\ttask\tsimulation\tstage\tmember\ttile\tshared_by\tkey\tupstream"


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
        return str(base / home_path(expand(text, values, quote=False)))

    context["parameters"] = absolute(stage["parameters"], context)
    # `{year}` and `{var}` are the model's to fill in: it reads many of them.
    kept = {**context, "year": "{year}", "var": "{var}"}
    context["inputs"] = {name: absolute(text, kept) for name, text in settings["inputs"].items()}
    return context


_OF_SEGMENT = (
    "phase", "step", "cycle", "first_year", "last_year", "n_years", "write_output", "options",
)  # fmt: skip
_OF_FORCING = ("climate", "climate_first_year", "climate_last_year", "co2", "luc", "ndep")
