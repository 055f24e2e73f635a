"""What the bench scripts share: the environment they run in, the machine, and watched processes.

Imported by the scripts beside it, before the package is known to be there: standard library only.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MIB = 2**20


def use_package(script: str) -> None:
    """Go on in the checkout's own environment where this Python does not have the package."""
    if find_spec("callmip_global") is not None:
        return
    here = Path(__file__).resolve().parent
    lines = 'source "$1"; set_up ""; printf %s "$venv_python"'
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines, "bash", here / "_setup.bash"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if answer.returncode:
        sys.exit(answer.returncode)
    os.execv(answer.stdout, [answer.stdout, str(Path(script).resolve()), *sys.argv[1:]])


def machine(packages: Sequence[str] = (), programs: Sequence[str] = ()) -> dict[str, str]:
    """What the numbers depend on, with the versions of these packages and programs."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "processor": names[0] if names else platform.processor() or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in ("callmip-global", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not found"
    for program in programs:
        found[program] = "not found"
        if shutil.which(program):
            argv = [program, "--version"]
            said = subprocess.run(argv, capture_output=True, text=True, check=False)
            words = (said.stdout + said.stderr).splitlines()
            found[program] = next((line for line in words if "version" in line), words[0])
    found["load before"] = f"{os.getloadavg()[0]:.1f}"
    return found


@dataclass
class Measure:
    """One command, run once or more. Seconds are wall-clock, ``cpu_s`` user and system of all its
    processes, ``peak_mib`` the largest sum of what its processes held at one time."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.wall_s)

    @property
    def best_cpu(self) -> float:
        return min(self.cpu_s)

    @property
    def peak(self) -> float:
        return max(self.peak_mib)


# The kernel's record of a process begins with the memory of the one that started it. A script that
# has made data holds much; this holds little.
LAUNCHER = """
import json, os, sys, time
begun = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump({
        "wall_s": time.perf_counter() - begun,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
        "code": os.waitstatus_to_exitcode(status),
    }, file)
"""
NOT_STARTED = '{"code": "none"}'


def execute(
    command: Sequence[Any],
    measure: Measure,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end in a folder, add time and memory to the measure, return what it
    printed. Where it fails, so does the script, with its last words."""
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory(prefix="measure-", dir=folder) as name:
        output, errors, usage = (Path(name) / part for part in ("output", "errors", "usage"))
        with output.open("w") as out, errors.open("w") as err:
            launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCHER, str(usage), *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environment,
            )
            tree = PeakOfTree(launcher.pid)
            launcher.wait()
            sampled = tree.stop()
        printed = output.read_text(errors="replace")
        told = errors.read_text(errors="replace").splitlines()
        used: dict[str, Any] = json.loads(usage.read_text() if usage.exists() else NOT_STARTED)
    if used["code"]:
        text = shlex.join(word[:200] for word in words)
        tail = "\n".join(told[-25:])
        sys.exit(f"{Path(sys.argv[0]).name}: exit code {used['code']} of: {text}\n{tail}")
    measure.wall_s.append(used["wall_s"])
    measure.cpu_s.append(used["cpu_s"])
    # The kernel's figure is exact but only of the largest process, the samples are of all of them.
    measure.peak_mib.append(max(used["peak"], sampled) / MIB)
    return printed


class PeakOfTree:
    """Samples the memory of all descendants of a process (Linux; 0 elsewhere)."""

    EVERY_S = 0.1

    def __init__(self, pid: int) -> None:
        self.pid, self.peak = pid, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Largest sum [bytes] seen."""
        self._stop.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self._stop.wait(self.EVERY_S):
            self.peak = max(self.peak, sum(map(resident_bytes, descendants(self.pid))))


def descendants(pid: int) -> Iterator[int]:
    """All processes below this one that live now."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
