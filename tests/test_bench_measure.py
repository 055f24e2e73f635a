"""What the bench scripts measure of a command is the command's, all of it, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import _measure
import pytest

HOLD = "import time; held = b'x' * (60 << 20); time.sleep(1)"
TWO_HOLD = f"""
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-I", "-S", "-c", {HOLD!r}]) for _ in range(2)]
sys.exit(any(child.wait() for child in children))
"""


def peak_mib(folder: Path, code: str) -> float:
    measure = _measure.Measure()
    _measure.execute([sys.executable, "-I", "-S", "-c", code], measure, folder)
    assert len(measure.wall_s) == len(measure.cpu_s) == len(measure.peak_mib) == 1
    assert list(folder.iterdir()) == []
    return measure.peak


def test_the_memory_of_the_script_does_not_count_as_the_command_s(tmp_path: Path) -> None:
    held = bytearray(b"x") * (200 << 20)
    assert 1 < peak_mib(tmp_path, "pass") < 60
    del held


def test_memory_is_the_sum_of_what_the_processes_of_a_command_hold_together(
    tmp_path: Path,
) -> None:
    assert 60 < peak_mib(tmp_path, HOLD) < 100
    assert 120 < peak_mib(tmp_path, TWO_HOLD) < 180


def test_runs_of_a_command_are_added_to_the_measure_and_what_it_printed_is_returned(
    tmp_path: Path,
) -> None:
    measure = _measure.Measure()
    for _ in range(2):
        assert _measure.execute(["sh", "-c", "pwd"], measure, tmp_path) == f"{tmp_path}\n"
    assert measure.best == min(measure.wall_s)
    assert len(measure.cpu_s) == 2


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [(["sh", "-c", "echo why >&2; exit 3"], "3", "why"), (["no such"], "none", "No such file")],
    ids=["it fails", "it is not there"],
)
def test_a_command_that_fails_ends_the_script_with_its_last_words(
    tmp_path: Path, command: list[str], code: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        _measure.execute(command, _measure.Measure(), tmp_path)
    assert f": exit code {code} of: " in str(ended.value)
    assert words in str(ended.value)
