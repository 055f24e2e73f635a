"""The shipped sites, protocol and examples: all of them load, and say where they come from."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from callmip_global.config.load import load_leniently
from callmip_global.config.protocol import load_protocol
from callmip_global.config.site import (
    Queue,
    Site,
    config_names,
    config_path,
    load_site,
    queue_options,
)
from callmip_global.config.validate import check_experiment
from callmip_global.data import data_path
from callmip_global.errors import UsageError
from callmip_global.jobs.render import render_script
from callmip_global.jobs.scheduler import JobSpec
from callmip_global.resources import memory_mib, walltime_text
from callmip_global.variables import requested_variables
from callmip_global.workflow import api
from callmip_global.workflow.client import make_scheduler

GENERAL = ("local", "pbs", "slurm")
SITES = config_names("sites")
CLUSTERS = [name for name in SITES if name not in GENERAL]
GB = 1024**3


def shipped(name: str) -> Site:
    return load_site(config_path(name, "sites", Path()))[0]


QUEUES = [(name, queue) for name in CLUSTERS for queue in shipped(name).queues]


@dataclass
class Request:
    """A job that is exactly as large and as long as a queue allows, as far as its limits are set.

    Where larger jobs get less time it is the largest of the longest.
    """

    nodes: int
    tasks: int
    memory_bytes: int
    walltime_s: int

    @classmethod
    def at_the_limits(cls, queue: Queue) -> Request:
        per_node, nodes = queue.max_cpus or 4, queue.max_nodes or 1
        tasks = per_node * nodes
        if queue.max_walltime_by_cpus:
            tasks = queue.max_walltime_by_cpus[0].cpus
            nodes = -(-tasks // queue.max_cpus) if queue.max_cpus else 1
        walltime_s = queue.walltime_limit_s(tasks)
        assert walltime_s is not None
        return cls(nodes, tasks, queue.max_memory_bytes or 4 * GB, walltime_s)

    def yaml(self) -> dict[str, Any]:
        return {
            "nodes": self.nodes,
            "tasks": self.tasks,
            "memory": f"{memory_mib(self.memory_bytes)}MB",
            "walltime": walltime_text(self.walltime_s),
        }


def what_the_group_must_say(site: Site) -> dict[str, Any]:
    default: dict[str, Any] = {}
    if "account" in site.requires:
        default["account"] = "ab12"
    directives = [f"{need}ab12" for need in site.requires if need.startswith("-")]
    return {**default, "directives": directives} if directives else default


def test_there_are_sites_for_every_scheduler_and_for_the_clusters_of_land_models() -> None:
    assert set(GENERAL) <= set(SITES)
    assert set(CLUSTERS) == {
        "archer2", "derecho", "gadi", "jasmin-lotus2", "jean-zay", "levante", "perlmutter",
    }  # fmt: skip


@pytest.mark.parametrize("name", SITES)
def test_a_shipped_site_loads_and_names_its_source_and_date(name: str) -> None:
    site = shipped(name)
    assert site.name == name
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", site.date)
    assert site.scheduler == "local" or "http" in site.source
    assert site.poll_seconds >= (60 if site.scheduler == "pbs" else 1)


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_has_a_default_queue_known_walltimes_and_asks_who_pays(name: str) -> None:
    site = shipped(name)
    assert site.default_queue in site.queues
    assert all(queue.walltime_limit_s(1) for queue in site.queues.values())
    assert {"account", "-P"} & set(site.requires)
    for kind, asked in site.defaults.get("resources", {}).items():
        assert asked["queue"] in site.queues, kind


@pytest.mark.parametrize("name", CLUSTERS)
def test_an_array_fits_into_the_jobs_that_may_be_queued(name: str) -> None:
    site = shipped(name)
    if site.arrays and site.max_queued:
        assert site.max_array_size is not None
        assert site.max_array_size <= site.max_queued


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_directives_of_every_queue_at_its_limits_are_the_golden_ones(
    name: str, golden: Callable[[str, str], None], tmp_path: Path
) -> None:
    site = shipped(name)
    values = site.model_dump(mode="json")
    scheduler = make_scheduler(values, tmp_path)
    parts = []
    for queue in site.queues:
        options, asked = queue_options(values, queue), Request.at_the_limits(site.queues[queue])
        job = JobSpec(
            name="CLASSIC.v2-run-historical",
            step="run-historical",
            run_dir=Path("/scratch/ab12/classic.run"),
            python="/scratch/ab12/env/bin/python",
            nodes=asked.nodes,
            tasks=asked.tasks,
            cpus=1,
            memory_bytes=asked.memory_bytes,
            walltime_s=asked.walltime_s,
            queue=options.name,
            account="ab12" if "account" in site.requires else None,
            directives=(*site.directives, *options.directives),
            shell_setup=site.shell_setup,
            resource_line=site.resource_line,
            limit_threads=False,
            drop=options.drop,
        )
        script = tmp_path / "job.sh"
        script.write_text(render_script(job, scheduler))
        subprocess.run(["bash", "-n", str(script)], check=True)
        lines = script.read_text().splitlines()
        header = [line for line in lines if line.startswith(scheduler.facts.directive)]
        assert site.shell_setup.strip() in script.read_text()
        parts.append("\n".join([f"{queue}:", *header, ""]))
    golden(f"sites/{name}.txt", "\n".join(parts))


@pytest.mark.parametrize(("name", "queue"), QUEUES)
def test_a_small_experiment_is_valid_in_every_queue_up_to_its_limits_and_no_further(
    name: str, queue: str, group: Any, problems: Callable[..., list[str]]
) -> None:
    site = shipped(name)
    limits, asked = site.queues[queue], Request.at_the_limits(site.queues[queue])
    tree = yaml.safe_load(group.experiment.read_text())
    tree["site"] = name
    default = what_the_group_must_say(site)
    tree["resources"] = {"default": default, "run": {**asked.yaml(), "queue": queue}}
    group.experiment.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert problems() == []

    over = {"walltime": walltime_text(asked.walltime_s + 1)}
    if limits.max_memory_bytes is not None:
        over["memory"] = f"{memory_mib(asked.memory_bytes) + 1}MB"
    found = problems(*(f"resources.run.{key}={value}" for key, value in over.items()))
    assert sorted(t.split(": ")[1] for t in found) == sorted(f"resources.run.{k}" for k in over)
    assert all(f"of queue {queue} on {name}" in text for text in found)


@pytest.mark.parametrize("name", SITES)
def test_every_step_of_a_small_experiment_has_a_script_on_every_site(
    name: str, group: Any, tmp_path: Path
) -> None:
    site = shipped(name)
    tree = yaml.safe_load(group.experiment.read_text())
    tree["site"] = name
    run = {"tasks": 1, "memory": "1GB", "walltime": "00:20:00"}
    tree["resources"] = {"default": what_the_group_must_say(site), "run": run}
    group.experiment.write_text(yaml.safe_dump(tree, sort_keys=False))
    made, plan = api.prepare(group.experiment, tmp_path / "run")
    defaults = site.defaults.get("resources", {})
    for step in plan.steps:
        script = made.job_dir(step.name) / "job.sh"
        subprocess.run(["bash", "-n", str(script)], check=True)
        text = script.read_text()
        queue = defaults.get(step.kind, {}).get("queue", site.default_queue)
        assert step.resources["queue"] == queue
        options = queue_options(site.model_dump(mode="json"), queue)
        prefix = {"slurm": "#SBATCH", "pbs": "#PBS", "local": "#"}[site.scheduler]
        if site.scheduler != "local":
            for directive in (*site.directives, *options.directives):
                assert f"{prefix} {directive}\n" in text
        if options.name is not None:
            flag = "--partition=" if site.scheduler == "slurm" else "-q "
            assert f"{prefix} {flag}{options.name}\n" in text
        for option in options.drop:
            assert f"{prefix} --{option}" not in text


@pytest.mark.parametrize("name", [n for n in CLUSTERS if shipped(n).requires])
def test_what_only_the_group_knows_is_asked_for_once(
    name: str, group: Any, problems: Callable[..., list[str]]
) -> None:
    asked = ["resources.run.tasks=1", "resources.run.memory=1GB", "resources.run.walltime=00:10:00"]
    queue = shipped(name).default_queue
    found = problems(f"site={name}", f"resources.run.queue={queue}", *asked)
    assert len(found) == len(shipped(name).requires)
    assert all("resources.default" in text and f"which {name} needs" in text for text in found)


def test_a_queue_that_is_a_qos_names_partition_and_qos_and_leaves_out_what_it_must() -> None:
    values = Site.model_validate(
        {
            "name": "x", "scheduler": "slurm", "source": "-", "date": "2026-11-22",
            "drop_directives": ["requeue"],
            "queues": {
                "short": {"partition": "cpu", "directives": ["--qos=short"]},
                "any": {"drop_directives": ["partition", "mem"]},
                "plain": {},
            },
        }
    ).model_dump(mode="json")  # fmt: skip
    found = {queue: queue_options(values, queue) for queue in ("short", "any", "plain", "own")}
    assert [f.name for f in found.values()] == ["cpu", None, "plain", "own"]
    assert found["short"].directives == ("--qos=short",)
    assert found["any"].drop == ("requeue", "partition", "mem")
    assert found["own"].directives == ()
    assert queue_options(values, None).name is None


def test_dropping_what_no_job_script_has_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    base = 'name: x\nscheduler: slurm\nsource: here\ndate: "2026-11-22"\n'
    path.write_text(base + "drop_directives: [memory]\n")
    with pytest.raises(UsageError, match=r"site\.yaml:5: drop_directives.*'memory'.*'mem'"):
        load_site(path)
    path.write_text(base.replace("slurm", "pbs") + "drop_directives: [mem]\n")
    with pytest.raises(UsageError, match="drop_directives only with scheduler: slurm"):
        load_site(path)


def test_gadi_gives_large_jobs_less_time() -> None:
    site = shipped("gadi")
    hours = [site.queues["normal"].walltime_limit_s(cpus) for cpus in (48, 672, 673, 3000, 99999)]
    assert hours == [48 * 3600, 48 * 3600, 24 * 3600, 5 * 3600, 5 * 3600]


def test_the_smaller_of_two_walltime_limits_holds() -> None:
    steps = [{"cpus": 8, "walltime": "10:00:00"}]
    queue = Queue.model_validate({"max_walltime": "02:00:00", "max_walltime_by_cpus": steps})
    assert queue.walltime_limit_s(1) == 7200
    assert Queue().walltime_limit_s(1) is None


def test_mistakes_in_a_site_file_name_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        "name: x\nscheduler: lsf\nqueues:\n  a: {max_walltime: 24:00:00}\ndefault_queue: b\n"
        "source: here\ndate: 2026-11-22\n"
    )
    with pytest.raises(UsageError) as caught:
        load_site(path)
    assert [str(p).replace(f"{tmp_path}/", "") for p in caught.value.problems] == [
        "site.yaml:2: scheduler: found 'lsf', wanted one of: 'local', 'slurm' or 'pbs'",
        "site.yaml:4: queues.a.max_walltime: found 24:00:00 without quotes, which YAML reads as"
        ' 86400, wanted "HH:MM:SS" or "D-HH:MM:SS", in quotes. Put the quotes around it.',
        'site.yaml:7: date: found 2026-11-22, wanted text: when, as "YYYY-MM-DD"',
    ]


def test_the_protocol_asks_for_the_requested_variables_in_their_order() -> None:
    protocol, _ = load_protocol(config_path("callmip-phase1-global", "protocols", Path()))
    assert protocol.variables == requested_variables()
    assert len(protocol.variables) == 14
    assert protocol.min_years == 20
    assert {name: set(p.varies) for name, p in protocol.simulations.items()} == {
        "S0": set(),
        "S1": {"co2", "ndep"},
        "S2": {"climate", "co2", "ndep"},
        "S3": {"climate", "co2", "luc", "ndep"},
        "CO2": {"co2"},
    }
    assert [s.streams for s in protocol.scenarios.values()] == [
        ("NEE", "LE", "H"),
        ("NEE",),
        ("LE",),
        ("H",),
        ("NEE", "LE"),
        ("LE", "H"),
    ]


@pytest.mark.parametrize("name", config_names("examples"))
def test_a_shipped_example_is_a_valid_experiment_file(name: str) -> None:
    loaded, problems = load_leniently(data_path("config", "examples", f"{name}.yaml"))
    assert problems == []
    assert loaded is not None


@pytest.mark.parametrize("name", config_names("examples"))
def test_a_shipped_example_lacks_nothing_but_the_files_of_the_group(name: str) -> None:
    _, problems = check_experiment(data_path("config", "examples", f"{name}.yaml"))
    assert problems
    assert {problem.found[:7] for problem in problems} == {"no file"}


def test_the_minimal_example_explains_every_key_of_the_schema() -> None:
    """What a user can write is in the one file that is made to be read."""
    from callmip_global.config.schema import Experiment, Phase, Resources, Run

    text = data_path("config", "examples", "minimal.yaml").read_text(encoding="utf-8")
    for model in (Experiment, Run, Phase, Resources):
        for name, field in model.model_fields.items():
            assert re.search(rf"\b{field.alias or name}\b", text), f"{name} is not mentioned"


def test_no_shipped_value_says_who_pays() -> None:
    for path in data_path("config", "sites").glob("*.yaml"):
        defaults = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", {})
        assert "account" not in str(defaults)
