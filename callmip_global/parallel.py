"""How the independent units of an engine are run: one by one, in threads, or on other nodes.

An engine says what one unit is; where the units run is the caller's choice (`TaskMap`). Whatever
that is, the result is the same to the byte: units share no state, and the engine puts what they
return together in the order of the items.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Protocol, TypeVar

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[str, float], None]
"""Told what is under way, in words, and how much of the work is done, from 0 to 1."""

_MAX_THREADS = 8

# glibc's <malloc.h>: the number of each setting, and what it is set to.
_KEPT_MEMORY = {-1: 2**30, -2: 2**26, -3: 2**25}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Let the C library of this process keep what is freed for the next block that is asked for.

    Otherwise it goes back to the kernel, which clears it and hands it out again page by page: a
    third of the time of an engine that works block by block. For the whole process, any number of
    times; nothing where the library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for number, value in _KEPT_MEMORY.items():
            mallopt(number, value)


def processors() -> int:
    """How many threads of this process work at a time: its processors, at most 8."""
    return max(1, min(_MAX_THREADS, len(os.sched_getaffinity(0))))


def quiet(_text: str, _share: float) -> None:
    """The progress of work that nobody watches."""


class TaskMap(Protocol):
    """Runs ``function(shared, item)`` for every item.

    Yields (position of the item, result) in the order in which they finish. ``function`` can be
    imported by its name, ``shared`` and the items can be pickled; ``shared`` may be large, for it
    goes to each process once. A unit may run more than once (its worker died), so it must do no
    harm when it does: what it writes is whole or not there, and always the same. The first
    exception ends the map and is raised here.
    """

    def __call__(
        self, function: Callable[[S, T], R], shared: S, items: Sequence[T]
    ) -> Generator[tuple[int, R]]: ...


def one_by_one(
    function: Callable[[S, T], R], shared: S, items: Sequence[T]
) -> Generator[tuple[int, R]]:
    """One unit after the other, in this thread: least memory."""
    for position, item in enumerate(items):
        yield position, function(shared, item)


def in_threads(
    function: Callable[[S, T], R], shared: S, items: Sequence[T]
) -> Generator[tuple[int, R]]:
    """As many units at a time as this process has processors (at most 8)."""
    with ThreadPoolExecutor(processors()) as pool:
        futures = {pool.submit(function, shared, item): i for i, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()


def run_units(
    task_map: TaskMap,
    function: Callable[[S, T], R],
    shared: S,
    items: Sequence[T],
    each: Callable[[T, R, float], None] = lambda item, result, share: None,
) -> list[R]:
    """The results in the order of the items; ``each`` sees them as they come, with the share done.

    ``each`` runs in the caller's thread, so it may keep the one ledger of what is done.
    """
    results: dict[int, R] = {}
    # Closed at once when ``each`` raises: what is under way elsewhere ends.
    with closing(task_map(function, shared, items)) as finished:
        for position, result in finished:
            results[position] = result
            each(items[position], result, len(results) / len(items))
    return [results[position] for position in range(len(items))]
