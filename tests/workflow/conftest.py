"""A toy experiment whose model is ten lines of shell: what is tested is the workflow around it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from callmip_global.workflow import api
from callmip_global.workflow.api import RunState
from callmip_global.workflow.observe import ALIVE
from callmip_global.workflow.submit import SubmitResult

PBS_CONF_FILE = os.environ.get("PBS_CONF_FILE")

# The model writes one line per call into a ledger, so that a run done twice can be seen; the
# parameter file is a shell script, so that a test can make it fail, wait, or whatever it needs.
MODEL = """
set -e
first=$1 last=$2 parameters=$3 write=$4
years=0
if [ -f restart_in/years.txt ]; then years=$(cat restart_in/years.txt); fi
echo "$(basename "$parameters" .sh) $first $last after $years" >> "$LEDGER"
. "$parameters"
echo $((years + last - first + 1)) > restart_out/years.txt
if [ "$write" = true ]; then echo "$first-$last" > "out/mon_$first.txt"; fi
"""


@dataclass
class Toy:
    """The experiment in a folder, its ledger, and shortcuts to the functions under test."""

    folder: Path
    tree: dict[str, Any]
    said: list[str] = field(default_factory=list)

    @property
    def experiment(self) -> Path:
        return self.folder / "experiment.yaml"

    @property
    def run_dir(self) -> Path:
        return self.folder / "experiment.run"

    def write(self) -> None:
        self.experiment.write_text(yaml.safe_dump(self.tree, sort_keys=False))

    def parameters(self, stage: str, text: str) -> None:
        (self.folder / f"{stage.lower()}.sh").write_text(text)

    def submit(self, *, retry_failed: bool = False, only: str | None = "run") -> SubmitResult:
        """Submit the run steps (the toy's output is text, so the engines would refuse it)."""
        _, result = api.submit(
            self.experiment, only=only, retry_failed=retry_failed, say=self.said.append
        )
        return result

    def wait(self) -> dict[str, str]:
        """State of every run task by ``segment/task`` once nothing is alive."""
        deadline = time.monotonic() + 600

        def in_time(state: RunState) -> None:
            alive = {r: t.state for r, t in state.tasks.items() if t.state in ALIVE}
            assert not alive or time.monotonic() < deadline, f"after ten minutes still {alive}"

        return self.states(api.wait(self.run_dir, each=in_time, poll_s=0.3))

    def states(self, state: RunState | None = None) -> dict[str, str]:
        state = state or api.status(self.run_dir)
        return {r: t.state for r, t in state.tasks.items() if t.step.kind == "run"}

    def ledger(self) -> list[str]:
        """Every call of the model that reached its first line, sorted."""
        path = self.folder / "ledger.txt"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def journal(self) -> list[str]:
        lines = (self.run_dir / "journal.jsonl").read_text().splitlines()
        return [json.loads(line)["event"] for line in lines]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, in a process of its own."""
        command = [sys.executable, "-m", "callmip_global.cli.app", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    def python(self, *lines: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a process of its own, which may be killed."""
        code = textwrap.dedent("\n".join(lines))
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
        )


CALLS = [
    "posterior 1901 1962 after 2",
    "posterior 1963 2024 after 64",
    "posterior 1900 1900 after 0",
    "posterior 1900 1900 after 1",
    "prior 1901 1962 after 2",
    "prior 1963 2024 after 64",
    "prior 1900 1900 after 0",
    "prior 1900 1900 after 1",
]
"""What the ledger holds when every segment ran exactly once, in the right order."""


@pytest.fixture
def calls() -> list[str]:
    return sorted(CALLS)


@pytest.fixture(scope="session")
def toy_in() -> Callable[..., Toy]:
    """``toy_in(parent, site)``: a toy experiment in a new folder below ``parent``."""

    def make(parent: Path, site: dict[str, Any], name: str = "toy") -> Toy:
        folder = parent / name
        folder.mkdir()
        (folder / "model.sh").write_text(MODEL)
        (folder / "site.yaml").write_text(yaml.safe_dump(site))
        model, ledger = (
            shlex.quote(str(folder / "model.sh")),
            shlex.quote(str(folder / "ledger.txt")),
        )
        tree: dict[str, Any] = {
            "model": {"name": "TOY", "version": "v1"},
            "protocol": "callmip-phase1-global",
            "simulations": ["S3"],
            "stages": {
                "Prior": {"parameters": "prior.sh"},
                "Posterior": {"parameters": "posterior.sh", "scenario": 1},
            },
            "run": {
                "environment": f"export LEDGER={ledger}",
                "command": f"bash {model} "
                "{first_year} {last_year} {parameters} {write_output}",
                "restart": ["years.txt"],
                "outputs": {"mon": "out/mon_{first_year}.txt"},
                "phases": [
                    {
                        "name": "spinup",
                        "years": [1900, 1900],
                        "cycles": 2,
                        "climate": {"recycle": [1901, 1920]},
                        "co2": 1900,
                    },
                    {
                        "name": "historical",
                        "years": [1901, 2024],
                        "climate": "actual",
                        "co2": "yearly",
                        "segment_years": 62,
                    },
                ],
            },
            "variables": "models/demo.yaml",
            "site": "site.yaml",
            "resources": {"run": {"memory": "100MB", "walltime": "00:05:00"}},
            "output": {"grid": "2deg", "years": 20},
        }
        toy = Toy(folder, tree)
        toy.write()
        toy.parameters("Prior", ":\n")
        toy.parameters("Posterior", ":\n")
        return toy

    return make


@pytest.fixture
def make_toy(toy_in: Callable[..., Toy], awkward_dir: Path) -> Iterator[Callable[..., Toy]]:
    """``make_toy(site={...}, name=.., parent=..)``: a toy experiment, in a folder with an awkward
    name unless ``parent`` says where; what is left of its jobs is cancelled after the test."""
    made: list[Toy] = []

    def make(
        site: dict[str, Any] | None = None, name: str = "toy", parent: Path = awkward_dir
    ) -> Toy:
        made.append(toy_in(parent, site or LOCAL_SITE, name))
        return made[-1]

    yield make
    for toy in made:
        if (toy.run_dir / "plan.json").exists():
            api.cancel(toy.run_dir, say=lambda _: None)


LOCAL_SITE: dict[str, Any] = {
    "name": "here",
    "scheduler": "local",
    "max_running": 2,
    "export_environment": True,
    "source": "none",
    "date": "2026-11-22",
}

SLURM_SITE: dict[str, Any] = {
    "name": "test",
    "scheduler": "slurm",
    "max_array_size": 50,
    "source": "the test suite's own",
    "date": "2026-11-22",
}

PBS_SITE: dict[str, Any] = {
    "name": "test",
    "scheduler": "pbs",
    "max_array_size": 50,
    "source": "the test suite's own",
    "date": "2026-11-22",
}


@pytest.fixture
def local_site() -> dict[str, Any]:
    """The site that `toy` runs on, to change a copy of."""
    return LOCAL_SITE


@pytest.fixture
def toy(make_toy: Callable[..., Toy]) -> Toy:
    """The toy on the local scheduler."""
    return make_toy()


@pytest.fixture
def slurm_toy(make_toy: Callable[..., Toy], slurm: Any) -> Toy:
    """The toy on the suite's own Slurm."""
    os.environ.pop("SLURM_JOB_ID", None)
    return make_toy(SLURM_SITE)


@pytest.fixture(scope="session")
def slurm_site() -> dict[str, Any]:
    """The site that `slurm_toy` runs on, to change a copy of."""
    return SLURM_SITE


@pytest.fixture
def strict_toy(
    make_toy: Callable[..., Toy], strict_slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> Toy:
    """The toy on the suite's Slurm that enforces memory."""
    monkeypatch.setenv("SLURM_CONF", str(strict_slurm.conf))
    return make_toy(SLURM_SITE)


@pytest.fixture
def pbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PBS that is there already: qsub on the PATH and a server that answers; else the test skips.

    Jobs must see pytest's temporary folder and this Python: on a cluster, ``--basetemp`` on a
    shared file system.
    """
    if shutil.which("qsub") is None or shutil.which("qstat") is None:
        pytest.skip("no PBS for the tests: no qsub on the PATH")
    # Every test starts without the PBS_ variables of the shell; this one finds the server.
    if PBS_CONF_FILE is not None:
        monkeypatch.setenv("PBS_CONF_FILE", PBS_CONF_FILE)
    asked = subprocess.run(["qstat", "-B"], capture_output=True, text=True, timeout=60, check=False)
    if asked.returncode != 0:
        pytest.skip(f"no PBS for the tests: {' '.join(asked.stderr.split())}")


@pytest.fixture
def pbs_toy(
    request: pytest.FixtureRequest, make_toy: Callable[..., Toy], pbs: None, tmp_path: Path
) -> Toy:
    """The toy on a PBS that was found; with arrays if its parameter is true. Its folder has no
    awkward name, for PBS takes none for the logs."""
    return make_toy({**PBS_SITE, "arrays": getattr(request, "param", False)}, parent=tmp_path)
