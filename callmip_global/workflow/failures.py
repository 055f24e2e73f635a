"""Classes of failure, each with what `resume` does about it and what the user should look at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAIL_LINES = 12

NEXT_ACTION = {
    "submit": "Mend what the scheduler refused, then `callmip-global submit`.",
    "node": "`callmip-global resume` tries again; nothing is wrong with the model.",
    "walltime": "`callmip-global resume` tries again{asking}.",
    "memory": "`callmip-global resume` tries again{asking}.",
    "model": "Look at the log of the attempt, mend the model or its parameters, then resume.",
    "input": "Mend the file or value named, then `callmip-global resume`.",
    "restart": "Look at the restart files of the segment before; then resume.",
    "upstream": "Mend the step it waits for; `callmip-global resume` then runs this one too.",
    "internal": "This is a defect of callmip-global: please report it with the log.",
}
"""What comes next for each class; `resume` tries again as the ``retry`` rules allow."""

_MEMORY = re.compile(r"out of memory|oom-kill|oom_kill|cannot allocate memory|std::bad_alloc", re.I)


# What Slurm's srun and PBS write into the log of a job that they end.
_WALLTIME = re.compile(r"due to time limit|walltime \d+ exceeded limit", re.I)


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed: a class of `NEXT_ACTION`, one line, exit code, end of the log."""

    kind: str
    message: str
    exit_code: int | None = None
    log: str = ""
    tail: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "class": self.kind,
            "message": " ".join(self.message.split()),
            "exit_code": self.exit_code,
            "log": self.log,
            "tail": list(self.tail),
        }


def failure_from_json(value: Mapping[str, Any]) -> Failure:
    """The inverse of `Failure.to_json`."""
    return Failure(
        value["class"], value["message"], value["exit_code"], value["log"], tuple(value["tail"])
    )


class TaskFailedError(Exception):
    """Ends an attempt with a classified failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def classify(attempt: Path, what: str, exit_code: int) -> Failure:
    """The failure of a command, from its exit code and its last lines.

    137 (or -9) is SIGKILL, which on a cluster nearly always is the memory limit.
    """
    log, tail = log_tail(attempt)
    text = "\n".join(tail)
    killed = exit_code in (137, -9)
    if _MEMORY.search(text) or killed:
        reason = "killed (signal 9), most likely by the memory limit" if killed else "out of memory"
        return Failure("memory", f"{what}: {reason}", exit_code, log, tail)
    if _WALLTIME.search(text):
        return Failure("walltime", f"{what}: ended at its time limit", exit_code, log, tail)
    if exit_code in (143, -15):
        return Failure("node", f"{what}: ended by signal 15", exit_code, log, tail)
    return Failure("model", f"{what}: exit code {exit_code}", exit_code, log, tail)


def log_tail(attempt: Path) -> tuple[str, tuple[str, ...]]:
    """(path, last lines) of the attempt's stderr, or of its stdout where stderr is empty."""
    for name in ("stderr", "stdout"):
        path = attempt / name
        if path.exists() and path.stat().st_size:
            return str(path), tuple(last_lines(path)[-TAIL_LINES:])
    return "", ()


def last_lines(path: Path) -> list[str]:
    """The lines in the last 20 kB of a text file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        return file.read().decode(errors="replace").splitlines()
