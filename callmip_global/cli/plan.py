"""``callmip-global plan``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callmip_global.cli.options import JsonOption, SetOption, print_json

if TYPE_CHECKING:
    from callmip_global.config.plan import Plan, Step


def plan(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    overrides: SetOption = None,
    json: JsonOption = False,
    dot: Annotated[bool, typer.Option("--dot", help="The graph for Graphviz.")] = False,
) -> None:
    """Show the graph: steps, tasks, what waits for what, core-hours. Needs no scheduler."""
    from callmip_global.workflow.api import plan_experiment

    graph, _ = plan_experiment(experiment, overrides or [])
    if dot:
        print(dot_text(graph))
    elif json:
        print_json(plan_json(graph))
    else:
        _print_table(graph)


def core_hours(step: Step) -> float:
    """Core-hours asked for by all jobs of a step: the wall-clock limit times the cores."""
    resources = step.resources
    cores = resources["tasks"] * resources["cpus"]
    jobs = -(-len(step.tasks) // resources["pack"])
    if resources["workers"] > 1:
        # The job itself, and as many further jobs.
        jobs *= 1 + resources["workers"]
    return float(jobs * cores * resources["walltime_s"] / 3600)


def stage_totals(graph: Plan) -> dict[str, dict[str, float | None]]:
    """Tasks, core-hours and disk of each stage; what is made of all of them together is ``all``.

    ``storage_bytes`` is None where something in it is not known.
    """
    from callmip_global.config.plan import storage_bytes

    storage = storage_bytes(graph)
    found: dict[str, dict[str, float | None]] = {}
    for step in graph.steps:
        members = Counter(task.stage or "all" for task in step.tasks)
        for stage, n in members.items():
            own = found.setdefault(stage, {"tasks": 0, "core_hours": 0.0, "storage_bytes": 0})
            share = n / len(step.tasks)
            size = storage[step.name]
            own["tasks"] = (own["tasks"] or 0) + n
            own["core_hours"] = (own["core_hours"] or 0) + core_hours(step) * share
            if size is None or own["storage_bytes"] is None:
                own["storage_bytes"] = None
            else:
                own["storage_bytes"] += round(size * share)
    return found


def waits_for(step: Step) -> list[str]:
    """Names of the steps a step builds on."""
    return list(dict.fromkeys(ref.split("/")[0] for task in step.tasks for ref in task.upstream))


def plan_json(graph: Plan) -> dict[str, Any]:
    """``plan --json``: steps, tasks, core_hours, storage_bytes (None where unknown), inputs."""
    from callmip_global.config.plan import storage_bytes

    storage = storage_bytes(graph)
    known = [size for size in storage.values() if size is not None]
    return {
        "name": graph.name,
        "experiment": graph.experiment,
        "core_hours": sum(core_hours(step) for step in graph.steps),
        "storage_bytes": sum(known) if len(known) == len(storage) else None,
        "stages": stage_totals(graph),
        "steps": [
            {
                "name": step.name,
                "kind": step.kind,
                "tasks": len(step.tasks),
                "waits_for": waits_for(step),
                "resources": dict(step.resources),
                "core_hours": core_hours(step),
                "storage_bytes": storage[step.name],
            }
            for step in graph.steps
        ],
        "tasks": [
            {
                "step": step.name,
                "task": task.id,
                "simulation": task.simulation,
                "shared_by": list(task.shared_by),
                "stage": task.stage,
                "member": task.member,
                "tile": task.tile,
                "key": task.key,
                "upstream": list(task.upstream),
            }
            for step, task in graph.tasks()
        ],
        "inputs": dict(graph.inputs),
    }


def dot_text(graph: Plan) -> str:
    """The steps and what they wait for, in Graphviz' language."""
    lines = ["digraph plan {", "  rankdir=LR; node [shape=box];"]
    for step in graph.steps:
        n = len(step.tasks)
        lines.append(f'  "{step.name}" [label="{step.name}\\n{n} task{"" if n == 1 else "s"}"];')
        lines.extend(f'  "{name}" -> "{step.name}";' for name in waits_for(step))
    return "\n".join([*lines, "}"])


def _print_table(graph: Plan) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from callmip_global.config.plan import storage_bytes
    from callmip_global.resources import memory_mib, walltime_text

    storage = storage_bytes(graph)
    # Folded where the terminal is narrow, never cut: `submit --only` wants the whole name.
    table = Table(box=SIMPLE_HEAD)
    for name in ("step", "tasks", "waits for"):
        table.add_column(name, justify="right" if name == "tasks" else "left", overflow="fold")
    for name in ("cores", "memory", "walltime", "core-hours (limit)", "disk (at most)"):
        table.add_column(name, justify="right", overflow="fold")
    for step in graph.steps:
        resources = step.resources
        table.add_row(
            step.name,
            str(len(step.tasks)),
            ", ".join(waits_for(step)),
            str(resources["tasks"] * resources["cpus"]),
            f"{memory_mib(resources['memory_bytes']):,} MiB",
            walltime_text(resources["walltime_s"]),
            f"{core_hours(step):,.1f}",
            _size(storage[step.name]),
        )
    console = Console()
    if not console.is_terminal:
        # In a file a step is one line.
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    print(f"{graph.name}: {graph.experiment}")
    console.print(table)
    total = sum(core_hours(step) for step in graph.steps)
    tasks = sum(len(step.tasks) for step in graph.steps)
    for stage, own in stage_totals(graph).items():
        size = own["storage_bytes"]
        label = "all stages together" if stage == "all" else stage
        console.print(
            f"{label}: {own['tasks']} tasks, at most {own['core_hours']:,.1f} core-hours,"
            f" {_size(None if size is None else int(size))}"
        )
    known = [size for size in storage.values() if size is not None]
    console.print(
        f"{len(graph.steps)} steps, {tasks} tasks, at most {total:,.1f} core-hours and"
        f" {_size(sum(known))}{'' if len(known) == len(storage) else _UNKNOWN_DISK}"
    )


_UNKNOWN_DISK = " beside what the model writes: run.disk would say how much"


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "?"
    return f"{size_bytes / 1024**3:,.1f} GiB"
