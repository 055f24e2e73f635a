"""A complete, valid experiment of a made-up group, to be spoiled one line at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

EXPERIMENT = """\
model: {name: LAND, version: v1, institution: "", contact: ""}
protocol: callmip-phase1-global
simulations: [S3, CO2]
stages:
  Prior: {parameters: params/prior.txt}
  Posterior: {scenario: 1, parameters: "params/posterior_{member:03d}.txt", members: 3}
run:
  files: {namelist.txt: namelist.j2}
  inputs:
    climate: "forcing/{var}_{year}.nc"
    co2: forcing/co2.txt
  command: "./land namelist.txt {first_year}"
  restart: [restart.nc]
  outputs: {mon: "out/{variable}_{year}.nc"}
  phases:
    - {name: spinup, years: [1700, 1700], cycles: 2, climate: {recycle: [1901, 1904]}, co2: 1700}
    - {name: transient, years: [1701, 1900], climate: {recycle: [1901, 1904]}, co2: yearly}
    - {name: historical, years: [1901, 1930], climate: actual, co2: yearly, segment_years: 10}
  fixed: {climate: {recycle: [1901, 1904]}}
variables: models/template.yaml
site: site.yaml
resources:
  run: {tasks: 4, memory: "16GB", walltime: "10:00:00"}
output: {grid: 1deg, frequencies: [mon, yr], years: 20}
"""

SITE = """\
name: cluster
scheduler: slurm
default_queue: normal
queues:
  normal: {max_walltime: "24:00:00", max_nodes: 4, max_cpus: 16, max_memory: "64GB"}
source: a cluster made up for the tests
date: "2026-11-22"
"""


@dataclass
class Group:
    """The folder of a group: experiment.yaml and everything it names."""

    folder: Path

    @property
    def experiment(self) -> Path:
        return self.folder / "experiment.yaml"

    def edit(self, *changes: tuple[str, str], file: str = "experiment.yaml") -> None:
        """Replace texts, each of which must be there exactly once."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, f"{old!r} is in the file {text.count(old)} times"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")

    def line(self, begin: str, file: str = "experiment.yaml") -> int:
        """Number of the one line that contains ``begin``."""
        lines = (self.folder / file).read_text(encoding="utf-8").splitlines()
        (number,) = [n for n, line in enumerate(lines, start=1) if begin in line]
        return number


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    for name in ("params", "forcing"):
        (tmp_path / name).mkdir()
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT, encoding="utf-8")
    (tmp_path / "site.yaml").write_text(SITE, encoding="utf-8")
    (tmp_path / "namelist.j2").write_text("p = {{ parameters }}\ny = {{ first_year }}\n")
    for name in ("prior", "posterior_001", "posterior_002", "posterior_003"):
        (tmp_path / "params" / f"{name}.txt").touch()
    for year in range(1901, 1931):
        (tmp_path / "forcing" / f"tas_{year}.nc").touch()
    rows = (f"Annee_{year}=277.57\n" for year in range(1700, 1936))
    (tmp_path / "forcing" / "co2.txt").write_text("".join(rows))
    monkeypatch.chdir(tmp_path)
    return Group(tmp_path)


@pytest.fixture
def problems(group: Group) -> Callable[..., list[str]]:
    """What ``validate`` would print for the group's experiment, as the user named it."""

    def check(*overrides: str) -> list[str]:
        from callmip_global.config.validate import check_experiment

        _, found = check_experiment(Path("experiment.yaml"), overrides)
        return [str(problem).replace(f"{group.folder}/", "") for problem in found]

    return check
