"""How kernels are compiled: without the interpreter lock, machine code kept where it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile without the interpreter lock; keep the machine code where a place for it is found.

    Division by zero gives what it gives in numpy: a check of each would keep loops from being done
    several numbers at a time.

    In a read-only installation without a home directory numba finds none and says so at once.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return cast("Callable[P, R]", numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast("Callable[P, R]", numba.njit(**options)(function))
