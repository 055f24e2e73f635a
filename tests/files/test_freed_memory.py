"""What is freed stays with the process, so that the next block costs no new pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

BLOCKS = """
import resource, sys
import numpy as np
from callmip_global.parallel import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def work():
    return [np.ones(3_000_000, np.float32) for _ in range(6)]

for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_blocks_that_follow_each_other_take_the_same_pages() -> None:
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", BLOCKS, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("kept", "given back")
    }
    # Ten times six blocks of 12 MB are 175,000 pages of 4 KiB, or 360 of 2 MiB.
    assert faults["kept"] * 5 < faults["given back"]
