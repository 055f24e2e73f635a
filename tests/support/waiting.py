"""Wait for events in tests, never for a time: the limit only ends what would wait for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 300.0
"""Far beyond what a busy machine needs for anything that the tests wait for."""


def wait_for(what: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Return as soon as ``what()`` is true; AssertionError after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, f"waited for {limit_s:.0f} s, in vain"
        time.sleep(0.1)
