"""``demo``: the whole chain with the built-in demonstration model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from callmip_global.errors import EXIT_PROBLEMS, EXIT_SCHEDULER

if TYPE_CHECKING:
    from callmip_global.workflow.api import RunState


class SchedulerName(StrEnum):
    """Where the demonstration can run."""

    LOCAL = "local"
    SLURM = "slurm"
    PBS = "pbs"


class Size(StrEnum):
    """How much of it is run."""

    FULL = "full"
    SMALL = "small"


def demo(
    scheduler: Annotated[
        SchedulerName, typer.Option(help="Run on this machine, or through its Slurm or PBS.")
    ] = SchedulerName.LOCAL,
    directory: Annotated[
        Path, typer.Option("--dir", help="Where everything goes; kept, and taken up again.")
    ] = Path("callmip-demo"),
    size: Annotated[
        Size, typer.Option(help="full: two simulations on 1 degree; small: one on 2 degrees.")
    ] = Size.FULL,
) -> None:
    """Run the whole chain: a small land model, prior and posterior, to the benchmark report.

    Safe to interrupt and to repeat: what is done stays done.
    """
    from callmip_global.demo.experiment import write_demo

    print("writing the experiment: model inputs and synthetic reference products ...", flush=True)
    experiment = write_demo(directory, scheduler=scheduler.value, small=size is Size.SMALL)
    print(f"experiment: {experiment}", flush=True)
    state = _run_chain(experiment, directory / "run")
    _tell_outcome(state, experiment)


def _run_chain(experiment: Path, run_dir: Path) -> RunState:
    """Submit the chain, what failed before too, and watch it to its end, saying what changes."""
    from callmip_global.workflow import api
    from callmip_global.workflow.observe import counts

    said = ""

    def tell(state: RunState) -> None:
        nonlocal said
        line = ", ".join(f"{n} {name}" for name, n in counts(state.tasks).items())
        if line != said:
            print(f"  {line}", flush=True)
            said = line

    api.submit(experiment, run_dir, retry_failed=True)
    return api.wait(run_dir, each=tell)


def _tell_outcome(state: RunState, experiment: Path) -> None:
    """Where the results are; or what went wrong, and the exit code that says so."""
    from callmip_global.cli.workflow import print_status

    run_dir = state.run.path
    if not state.is_done:
        print_status(state)
        raise typer.Exit(EXIT_PROBLEMS if state.trouble is None else EXIT_SCHEDULER)
    print("done. All of it is synthetic: it shows the software, not the land.")
    for words, path in (
        ("report", run_dir / "benchmark" / "report.html"),
        ("scores", run_dir / "benchmark" / "scores.csv"),
        ("stores", run_dir / "stores"),
        ("protocol files", run_dir / "export"),
        ("the experiment file, commented, to start your own from", experiment),
    ):
        print(f"{words}: {path.resolve()}")
