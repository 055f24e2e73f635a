"""The experiments that sequences are played with, planned once, and the folder for it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from chaos_cluster import Flavour
from chaos_processes import simulated

from callmip_global.config.plan import Plan
from callmip_global.jobs.render import render_script
from callmip_global.workflow import api, model_run, rundir, submit, task  # noqa: F401

PACKAGES: Final = ("callmip_global.workflow", "callmip_global.files")


@dataclass(frozen=True)
class Case:
    """An experiment, its edited versions, and the scheduler it runs on."""

    name: str
    plans: tuple[Plan, ...]
    text: str
    flavour: Flavour


def _tree(scheduler: str) -> dict[str, Any]:
    return {
        "model": {"name": "TOY", "version": "v1"},
        "protocol": "callmip-phase1-global",
        "simulations": ["S3"],
        "stages": {
            "Prior": {"parameters": "prior.txt"},
            "Posterior": {"parameters": "posterior.txt", "scenario": 1},
        },
        "run": {
            "command": "model {first_year} {last_year} {co2} {write_output} {parameters}",
            "restart": ["sum.txt"],
            "outputs": {"mon": "out/mon_{year}.txt"},
            "phases": [
                {
                    "name": "spin",
                    "years": [1900, 1900],
                    "cycles": 2,
                    "climate": {"recycle": [1901, 1920]},
                    "co2": 1900,
                },
                {"name": "past", "years": [1901, 2024], "climate": "actual", "co2": "yearly"},
            ],
        },
        "variables": "models/demo.yaml",
        "site": f"{scheduler}.yaml",
        "resources": {"run": {"memory": "100MB", "walltime": "00:05:00"}},
        "output": {"grid": "2deg", "years": 1},
        "retry": {"walltime": {"times": 9, "segment_years": 62}},
    }


def _site(scheduler: str, **more: Any) -> dict[str, Any]:
    site = {"name": "here", "scheduler": scheduler, "source": "none", "date": "2026-11-22"}
    return {**site, **more}


def _chain(scheduler: str) -> tuple[dict[str, Any], ...]:
    """Two stages of three segments; edited: the last segment, then the resources, then a member
    more (which moves every row of the tables)."""
    first = _tree(scheduler)
    co2 = _tree(scheduler)
    co2["run"]["phases"][1]["co2"] = 1950
    co2["resources"]["run"]["memory"] = "200MB"
    longer = _tree(scheduler)
    longer["resources"]["run"]["walltime"] = "00:10:00"
    more = _tree(scheduler)
    more["simulations"] = ["CO2", "S3"]
    more["stages"] = {"Prior": {"parameters": "prior.txt"}}
    return first, co2, longer, more


def _tiles(scheduler: str) -> tuple[dict[str, Any], ...]:
    """Three tiles of two segments and a merge that waits for all of them."""
    first = _tree(scheduler)
    first["stages"] = {"Prior": {"parameters": "prior.txt"}}
    first["run"]["command"] += " {tile}"
    first["run"]["tiles"] = {"count": 3, "merge": "merge {inputs} {output}"}
    first["run"]["phases"][0].pop("cycles")
    edited = json.loads(json.dumps(first))
    edited["run"]["phases"][0]["co2"] = 1850
    return first, edited


def _packs(scheduler: str) -> tuple[dict[str, Any], ...]:
    """The same, two tiles to a job."""
    trees = _tiles(scheduler)
    for tree in trees:
        tree["resources"]["run"]["pack"] = 2
    return trees


def _small(scheduler: str) -> tuple[dict[str, Any], ...]:
    """Two segments of one stage; edited: the last one, and what all jobs ask for."""
    first = _tree(scheduler)
    first["stages"] = {"Prior": {"parameters": "prior.txt"}}
    first["run"]["phases"][0].pop("cycles")
    edited = json.loads(json.dumps(first))
    edited["run"]["phases"][1]["co2"] = 1950
    edited["resources"]["run"]["memory"] = "200MB"
    return first, edited


def _branches(scheduler: str) -> tuple[dict[str, Any], ...]:
    """Inner steps, and a last phase that builds on two phases before it; edited: the first one."""
    first = _tree(scheduler)
    first["stages"] = {"Prior": {"parameters": "prior.txt"}}
    first["simulations"] = ["S3", "CO2"]
    # What a piece goes on from is one file, as far as the sum is concerned.
    del first["retry"]
    run = first["run"]
    run["restart"] = ["sum.txt", "old.txt"]
    spin, past = run["phases"]
    spin["steps"] = [{"name": "a"}, {"name": "b", "cycles": 1, "restart_out": ["sum.txt"]}]
    past["restart_in"] = {"sum.txt": "latest", "old.txt": "spin"}
    edited = json.loads(json.dumps(first))
    edited["run"]["phases"][0]["co2"] = 1850
    return first, edited


_CASES: dict[str, tuple[Callable[[str], tuple[dict[str, Any], ...]], dict[str, Any], Flavour]] = {
    "slurm arrays": (_chain, {"scheduler": "slurm"}, Flavour("slurm")),
    "slurm kept": (
        _chain,
        {"scheduler": "slurm"},
        Flavour("slurm", kills_dependents=False),
    ),
    "slurm tiles": (
        _tiles,
        {"scheduler": "slurm", "max_array_size": 2},
        Flavour("slurm", kills_dependents=False),
    ),
    "slurm singles": (
        _tiles,
        {"scheduler": "slurm", "arrays": False, "max_queued": 4},
        Flavour("slurm"),
    ),
    "pbs singles": (_chain, {"scheduler": "pbs", "arrays": False}, Flavour("pbs")),
    "pbs arrays": (_chain, {"scheduler": "pbs", "arrays": True}, Flavour("pbs")),
    "pbs tiles": (
        _tiles,
        {"scheduler": "pbs", "arrays": True, "max_array_size": 2, "max_queued": 5},
        Flavour("pbs", borrows=True),
    ),
    "slurm branches": (
        _branches,
        {"scheduler": "slurm", "max_array_size": 10},
        Flavour("slurm", kills_dependents=False),
    ),
    "slurm packs": (
        _packs,
        {"scheduler": "slurm"},
        Flavour("slurm", kills_dependents=False),
    ),
    "pbs packs": (_packs, {"scheduler": "pbs", "arrays": True}, Flavour("pbs")),
    "small slurm": (_small, {"scheduler": "slurm"}, Flavour("slurm", kills_dependents=False)),
    "small pbs": (_small, {"scheduler": "pbs"}, Flavour("pbs")),
    "local": (
        _chain,
        {"scheduler": "local", "max_running": 2, "export_environment": True},
        Flavour("local"),
    ),
}
CASES: Final = tuple(_CASES)


class Workshop:
    """A folder in memory, where plans are made once and every sequence gets its run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._plan = folder, api.plan_experiment
        self.run_dir = folder / "run"
        self._cases: dict[str, Case] = {}

    def has(self, name: str) -> bool:
        """Whether a case has been made."""
        return name in self._cases

    def case(self, name: str) -> Case:
        """The plans of a case, made when they are first asked for."""
        if name not in self._cases:
            self._cases[name] = self._build(name)
        return self._cases[name]

    def _build(self, name: str) -> Case:
        make, site, flavour = _CASES[name]
        folder = self.folder / name.replace(" ", "-")
        folder.mkdir()
        for parameters in ("prior.txt", "posterior.txt"):
            (folder / parameters).write_text(parameters)
        scheduler = site["scheduler"]
        (folder / f"{scheduler}.yaml").write_text(yaml.safe_dump(_site(**site)))
        path = folder / "experiment.yaml"
        plans, text = [], ""
        for tree in make(scheduler):
            path.write_text(yaml.safe_dump(tree, sort_keys=False))
            plan, text = self._plan(path)
            kept = tuple(s for s in plan.steps if s.kind in ("run", "merge"))
            plans.append(replace(plan, steps=kept))
        return Case(name, tuple(plans), text, flavour)


@contextlib.contextmanager
def workshop() -> Iterator[Workshop]:
    """The modules under test with stand-ins for the outside world, and a folder to work in."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    # Rendering is pure, and most of the time that a submission takes.
    real_plan = api.plan_experiment
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", dir=memory if usable else None) as name,
        simulated(PACKAGES),
    ):
        _put_render(_remembering(render_script))
        here = Workshop(Path(name).resolve())
        try:
            yield here
        finally:
            _put_render(render_script)
            api.plan_experiment = real_plan


def _put_render(render: Callable[..., str]) -> None:
    vars(submit)["render_script"] = render


def _remembering(render: Callable[..., str]) -> Callable[..., str]:
    known: dict[tuple[Any, type], str] = {}

    def call(spec: Any, scheduler: Any) -> str:
        place = (spec, type(scheduler))
        if place not in known:
            known[place] = render(spec, scheduler)
        return known[place]

    return call
