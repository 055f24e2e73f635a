"""Units of work that wait for a gate, so that a test can act while they are under way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from callmip_global.parallel import TaskMap


def held(work: tuple[Callable[[Any, Any], Any], Any, Path], item: Any) -> Any:
    """Say ``<job>-<pid>-...`` in a folder, wait until it holds ``open``, then do the work."""
    function, shared, folder = work
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID") or "0"
    (folder / f"{job}-{os.getpid()}-{uuid4().hex}").touch()
    while not (folder / "open").exists():
        time.sleep(0.05)
    return function(shared, item)


def holding(task_map: TaskMap, only: str, folder: Path) -> TaskMap:
    """A task map that holds the units of the function of that name."""

    def spread(
        function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]
    ) -> Generator[tuple[int, Any]]:
        if function.__name__ == only:
            return task_map(held, (function, shared, folder), items)
        return task_map(function, shared, items)

    return spread


def under_way(folder: Path) -> set[tuple[str, int]]:
    """(job, process) of every worker that has begun a unit."""
    names = [path.name.rsplit("-", 2) for path in folder.iterdir() if path.name != "open"]
    return {(name[0], int(name[1])) for name in names}


def square(shared: int, item: int) -> int:
    """shared + item * item."""
    return shared + item * item


def folder(shared: int, item: int) -> str:
    """Where the worker is."""
    return str(Path.cwd())


def not_heard(shared: Any, item: Any) -> set[int]:
    """Numbers of the signals that the worker does not hear."""
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def fail(shared: Exception, item: Any) -> Any:
    """Raise what is shared."""
    raise shared


def die(shared: Any, item: Any) -> Any:
    """End the process, as the kernel does when memory is short."""
    os._exit(9)
