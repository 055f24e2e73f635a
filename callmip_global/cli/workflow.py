"""``submit``, ``status``, ``logs``, ``resume``, ``cancel``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callmip_global.cli.options import JsonOption, SetOption, print_json
from callmip_global.errors import EXIT_PROBLEMS, EXIT_SCHEDULER

if TYPE_CHECKING:
    from rich.table import Table

    from callmip_global.workflow.api import RunState
    from callmip_global.workflow.observe import TaskState
    from callmip_global.workflow.submit import SubmitResult

RunDirArgument = Annotated[Path, typer.Argument(help="The run directory.", metavar="RUN_DIR")]


def submit(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="Default: the experiment's name with .run, beside it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write exactly the files submit uses; submit nothing.")
    ] = False,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STEP", help="Submit this step (or kind) only.")
    ] = None,
    overrides: SetOption = None,
    reproduce: Annotated[
        Path | None,
        typer.Option(
            "--reproduce",
            metavar="OLD_RUN",
            help="Refuse unless all that decides results is as it was for this run directory.",
        ),
    ] = None,
) -> None:
    """Render every script, then submit the whole chain. Safe to repeat at any time."""
    from callmip_global.workflow import api

    if dry_run:
        run, plan = api.prepare(experiment, run_dir, overrides or [], like=reproduce)
        for command in api.dry_run_commands(run, plan):
            print(command)
        print(f"dry run: scripts are in {run.path}/jobs, nothing was submitted", file=sys.stderr)
        return
    run, result = api.submit(
        experiment, run_dir, overrides=overrides or [], only=only, like=reproduce
    )
    _tell(run.path, result)


def resume(
    run_dir: RunDirArgument,
    beyond_budget: Annotated[
        bool,
        typer.Option("--beyond-budget", help="Also what has used up its retries (see retry)."),
    ] = False,
) -> None:
    """Submit again what failed or got lost, with the experiment as it is now.

    What is queued and waits for a job that failed is told to wait for the new one.
    """
    from callmip_global.workflow import api

    run, result = api.resume(run_dir, beyond_budget=beyond_budget)
    _tell(run.path, result)


def _tell(run_dir: Path, result: SubmitResult) -> None:
    from callmip_global.workflow.observe import counts

    for problem in result.refused:
        print(problem, file=sys.stderr)
    if result.replaced:
        print(f"{result.replaced} queued tasks were cancelled and planned anew")
    if result.repaired:
        print(f"{result.repaired} pending tasks now wait for the jobs that were submitted again")
    tasks = sum(n for _, _, n in result.jobs)
    print(f"{len(result.jobs)} jobs with {tasks} tasks submitted; {_counts(counts(result.states))}")
    print(f"run directory: {run_dir}")
    if result.stopped:
        print(
            f"not everything is submitted: {result.stopped}. Run submit again later.",
            file=sys.stderr,
        )
    for reason, refs in _by_reason(result.exhausted).items():
        more = f" and {len(refs) - 1} more" if len(refs) > 1 else ""
        print(f"{refs[0]}{more}: not submitted, {reason}", file=sys.stderr)
    failed = [s for s in result.states.values() if s.state == "failed"]
    if failed and not result.refused and not result.exhausted:
        print(
            f"{len(failed)} failed tasks were left alone: see `callmip-global status {run_dir}`,"
            " then `callmip-global resume`.",
            file=sys.stderr,
        )
    if result.refused or result.stopped or failed:
        raise typer.Exit(EXIT_PROBLEMS)


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in found.items()) or "no tasks"


def _by_reason(exhausted: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for ref, reason in exhausted.items():
        found.setdefault(reason, []).append(ref)
    return found


def status(
    run_dir: RunDirArgument,
    json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again until nothing is alive.")
    ] = False,
) -> None:
    """Show the state of every step, what failed and why, and what to do next."""
    from callmip_global.errors import Problem, UsageError
    from callmip_global.workflow import api

    if watch and json:
        raise UsageError(Problem("--watch", found="--json", wanted="one of the two"))
    state = _watch(run_dir) if watch else api.status(run_dir)
    if json:
        print_json(status_json(state))
    else:
        print_status(state)
    if state.trouble is not None:
        for problem in state.trouble.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(EXIT_SCHEDULER)
    if any(t.state in ("failed", "held", "blocked") or t.problems for t in state.tasks.values()):
        raise typer.Exit(EXIT_PROBLEMS)


def status_json(state: RunState) -> dict[str, Any]:
    """``status --json``: one entry per task."""
    from callmip_global.workflow.observe import counts

    tasks = []
    for task in state.tasks.values():
        entry = task.to_json()
        if task.state == "failed" and entry["failure"] is not None:
            entry["failure"]["next"] = state.next_action(task)
        tasks.append(entry)
    return {"run_dir": str(state.run.path), "counts": counts(state.tasks), "tasks": tasks}


def _watch(run_dir: Path) -> RunState:
    """The table of the steps, renewed as often as the site file says, until nothing is alive."""
    from rich.console import Console
    from rich.live import Live

    from callmip_global.workflow import api

    console = Console()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        return api.wait(run_dir, each=lambda state: live.update(_live_table(state), refresh=True))


def _live_table(state: RunState) -> Table:
    from datetime import datetime

    table = _steps_table(state)
    looked = datetime.now().astimezone().strftime("%H:%M:%S")
    trouble = " (the scheduler does not answer)" if state.trouble else ""
    table.caption = f"{_counts(_all_counts(state))} at {looked}{trouble}. Ctrl-C ends the watching."
    return table


def _all_counts(state: RunState) -> dict[str, int]:
    from callmip_global.workflow.observe import counts

    return counts(state.tasks)


def _steps_table(state: RunState) -> Table:
    from rich.table import Table

    from callmip_global.workflow.observe import counts

    table = Table()
    table.add_column("step", overflow="fold")
    table.add_column("tasks", justify="right")
    table.add_column("state")
    by_step: dict[str, dict[str, TaskState]] = {step.name: {} for step in state.plan.steps}
    for ref, task in state.tasks.items():
        by_step[task.step.name][ref] = task
    for name, own in by_step.items():
        table.add_row(name, str(len(own)), _counts(counts(own)))
    return table


_MOST_SHOWN = 20
"""So many failures are shown one by one; `status --json` has all."""


def print_status(state: RunState) -> None:
    """A table of the steps, then the failures, each with its log and what comes next."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    print(state.run.path)
    console.print(_steps_table(state))
    failed = [t for t in state.tasks.values() if t.failure is not None and t.state == "failed"]
    for task in failed[:_MOST_SHOWN]:
        assert task.failure is not None
        failure = {**task.failure.to_json(), "next": state.next_action(task)}
        console.print(
            f"[bold red]{escape(task.ref)}[/]: {failure['class']} (attempt {task.attempts}):"
            f" {escape(failure['message'])}",
            soft_wrap=True,
        )
        for line in failure["tail"]:
            console.print(f"    {escape(line)}", style="dim", highlight=False, soft_wrap=True)
        if failure["log"]:
            console.print(f"  log: {escape(failure['log'])}", soft_wrap=True)
        console.print(f"  next: {escape(failure['next'])}", soft_wrap=True)
    if len(failed) > _MOST_SHOWN:
        more = len(failed) - _MOST_SHOWN
        console.print(f"and {more} more failures: `callmip-global status --json` has them all")
    for task in state.tasks.values():
        for problem in task.problems:
            console.print(f"{escape(task.ref)}: {escape(problem)}", soft_wrap=True)
    waiting = [t for t in state.tasks.values() if t.state == "waiting"]
    if waiting and not state.is_alive:
        console.print(f"{len(waiting)} tasks are not in the queue: `callmip-global submit` again.")


def logs(
    run_dir: RunDirArgument,
    task: Annotated[
        str | None, typer.Argument(help="A task as STEP/TASK, or a step; default: what failed.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many last lines.", min=1)] = 20,
) -> None:
    """Show the last lines of the logs of the latest attempts."""
    from callmip_global.errors import Problem, UsageError
    from callmip_global.workflow import api

    state = api.status(run_dir)
    if task is None:
        chosen = [r for r, t in state.tasks.items() if t.state == "failed"]
    else:
        chosen = [r for r, t in state.tasks.items() if task in (r, t.step.name)]
        if not chosen:
            steps = ", ".join(step.name for step in state.plan.steps)
            raise UsageError(
                Problem(str(run_dir), found=repr(task), wanted=f"STEP/TASK or one of: {steps}")
            )
    if not chosen:
        print("nothing failed")
    for ref in chosen:
        for path in log_files(state, ref):
            print(f"==> {path}")
            text = path.read_text(encoding="utf-8", errors="replace").splitlines()
            print("\n".join(text[-lines:]))


def log_files(state: RunState, ref: str) -> list[Path]:
    """Logs of a task that hold something: its latest attempt's, then the job script's own."""
    from callmip_global.workflow.client import make_scheduler
    from callmip_global.workflow.joblog import job_log_path

    found = []
    attempts = state.run.attempts(ref)
    if attempts:
        found += [attempts[-1].path / name for name in ("stdout", "stderr")]
    lease = state.tasks[ref].lease
    if lease is not None:
        scheduler = make_scheduler(state.plan.settings["site"], state.run.path)
        log = job_log_path(state.run, scheduler, lease)
        found += [] if log is None else [log]
    return [path for path in found if path.exists() and path.stat().st_size]


def cancel(run_dir: RunDirArgument) -> None:
    """Cancel everything of a run that is queued or running. What is done stays done."""
    from callmip_global.workflow import api

    n = api.cancel(run_dir)
    print(f"{n} jobs cancelled")
