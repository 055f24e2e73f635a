"""What can be wrong, said once: a problem names place, key, what was found, what was wanted.

Exit codes, the same for every command: 0 all well; 1 the work ran and found problems; 2 wrong use
or invalid configuration; 3 scheduler unreachable or in an unknown state; 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

W = TypeVar("W")

EXIT_OK = 0
EXIT_PROBLEMS = 1
EXIT_USAGE = 2
EXIT_SCHEDULER = 3
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in words that let the reader mend it without asking.

    ``where`` is a file, ``file:line`` or store; ``key`` the dotted key or the variable. Empty parts
    are left out of the line. ``rule``: name of the harmonization rule that found it, for reports.
    """

    where: str
    key: str = ""
    found: str = ""
    wanted: str = ""
    remedy: str = ""
    rule: str = ""

    def __str__(self) -> str:
        parts = [p for p in (self.where, self.key) if p]
        text = ": ".join(parts)
        tail = [p for p in (f"found {self.found}" if self.found else "",) if p]
        if self.wanted:
            tail.append(f"wanted {self.wanted}")
        line = f"{text}: {', '.join(tail)}" if tail else text
        line = f"{line}. {self.remedy}" if self.remedy else line
        # A name may hold what moves the cursor of a terminal or turns the line around.
        plain = (c if c.isprintable() else repr(c)[1:-1] for c in " ".join(line.split()))
        return "".join(plain)


class CallmipError(Exception):
    """Base of every error meant for the user: problems and an exit code, never a traceback."""

    exit_code = EXIT_PROBLEMS

    def __init__(self, problems: Problem | str | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (
            (problems,) if isinstance(problems, Problem) else tuple(problems)
        )
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[CallmipError], tuple[object, ...]]:
        # Pickled with the problems, not with their text: errors come back from other processes.
        return type(self), (self.problems,)


class UsageError(CallmipError):
    """Wrong use or invalid configuration; nothing was done (exit code 2)."""

    exit_code = EXIT_USAGE


class DataError(CallmipError):
    """Data that cannot be used as they are; the work found problems (exit code 1)."""

    exit_code = EXIT_PROBLEMS


class SchedulerError(CallmipError):
    """The scheduler could not be reached, or its answer says nothing certain (exit code 3)."""

    exit_code = EXIT_SCHEDULER


def counted(number: int, what: str) -> str:
    """A number of things in words: ``1 task``, ``2 tasks``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def one_of(option: str, text: str, known: Sequence[W]) -> W:
    """The word among those known that ``text`` is; UsageError for another one."""
    for word in known:
        if text == word:
            return word
    raise UsageError(Problem(option, found=repr(text), wanted=" or ".join(map(str, known))))
