"""What `validate --site` finds: on recorded answers, on the suite's real Slurm, on a PBS if any."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.config.schema import Resources
from callmip_global.jobs.scheduler import Answer
from callmip_global.workflow.preflight import (
    QueueState,
    ask_cluster,
    parse_pbs,
    parse_slurm,
    size_text,
    validate_at_site,
    violations,
)

HOUR = 3600
GB = 1024**3

# Slurm 22.05.8, without the lines that nobody reads here.
SLURM_CONFIG = """\
Configuration data as of 2026-11-22T16:39:35
AccountingStorageEnforce = none
ClusterName             = here
EnforcePartLimits       = NO
MaxArraySize            = 101
MaxJobCount             = 10000
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at vm is UP
"""
SLURM_PARTITIONS = """\
PartitionName=normal AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES \
QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO \
MaxNodes=UNLIMITED MaxTime=2-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=node[1-3] \
PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE \
PreemptMode=OFF State=UP TotalCPUs=12 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=(null) \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=12,mem=187.50G,node=3,billing=12
PartitionName=express AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO \
QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=2 \
MaxTime=01:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=node[1-3] PriorityJobFactor=1 \
PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF \
State=DRAIN TotalCPUs=12 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=(null)
PartitionName=endless Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TotalNodes=3
"""

# OpenPBS 23.06.06, with queues as on Gadi (normal), Derecho (develop) and at MetaCentrum (default).
PBS_SERVER = """\
Server: pbs1
    server_state = Active
    server_host = pbs1
    scheduling = True
    total_jobs = 0
    state_count = Transit:0 Queued:0 Held:0 Waiting:0 Running:0 Exiting:0 Begun
\t:0 
    default_queue = workq
    resources_default.walltime = 01:00:00
    max_array_size = 10
    pbs_version = 23.06.06

"""  # noqa: W291
PBS_QUEUES = """\
Queue: workq
    queue_type = Execution
    total_jobs = 0
    state_count = Transit:0 Queued:0 Held:0 Waiting:0 Running:0 Exiting:0 Begun
\t:0 
    enabled = True
    started = True

Queue: normal-exec
    queue_type = Execution
    total_jobs = 0
    max_queued = [p:PBS_GENERIC=1000]
    from_route_only = True
    resources_max.mem = 2660gb
    resources_max.ncpus = 672
    resources_max.walltime = 48:00:00
    resources_min.ncpus = 1
    enabled = True
    started = True

Queue: normal
    queue_type = Route
    total_jobs = 0
    route_destinations = normal-exec
    enabled = True
    started = True

Queue: develop
    queue_type = Execution
    total_jobs = 0
    resources_max.mem = 235gb
    resources_max.nodect = 2
    resources_max.walltime = 06:00:00
    enabled = True
    started = True

Queue: old
    queue_type = Execution
    total_jobs = 0
    enabled = False
    started = True

Queue: default
    queue_type = Route
    total_jobs = 0
    resources_max.walltime = 720:00:00
    route_destinations = develop,normal-exec,
\ta_queue_with_a_rather_long_name_one@otherserver,
\tanother_queue_with_a_long_name@otherserver
    enabled = True
    started = True

"""  # noqa: W291


def resources(**values: Any) -> Resources:
    return Resources.model_validate({"memory": "1GB", "walltime": "01:00:00", **values})


@given(
    asked=st.tuples(*[st.integers(1, 50)] * 4),
    limits=st.tuples(*[st.one_of(st.none(), st.integers(1, 50))] * 4),
)
def test_a_limit_is_told_exactly_when_more_is_asked_than_it_gives(
    asked: tuple[int, ...], limits: tuple[int | None, ...]
) -> None:
    hours, nodes, more_tasks, memory = asked
    tasks = nodes + more_tasks
    request = resources(
        nodes=nodes, tasks=tasks, memory=f"{memory}GB", walltime=f"{hours:02d}:00:00"
    )
    queue = QueueState(
        "q",
        max_walltime_s=limits[0] and limits[0] * HOUR,
        max_nodes=limits[1],
        max_cpus=limits[2],
        max_memory_bytes=limits[3] and limits[3] * GB,
    )
    sizes = (hours, nodes, tasks, memory * nodes)
    names = ("walltime", "nodes", "tasks", "memory")
    over = [
        name
        for name, size, limit in zip(names, sizes, limits, strict=True)
        if limit is not None and size > limit
    ]
    assert [name for name, _, _ in violations(request, queue)] == over
    closed = violations(request, replace(queue, open=False))
    assert [name for name, _, _ in closed] == ["queue", *over]


def test_slurms_own_words_give_partitions_limits_and_the_largest_array() -> None:
    cluster = parse_slurm(SLURM_CONFIG, SLURM_PARTITIONS)
    assert cluster.name == "Slurm 22.05.8, cluster here"
    assert cluster.default_queue == "normal"
    assert cluster.largest_array == 100
    assert cluster.queues == {
        "normal": QueueState("normal", True, "UP", 48 * HOUR, 3),
        "express": QueueState("express", False, "DRAIN", HOUR, 2),
        "endless": QueueState("endless", True, "UP", None, 3),
    }


def test_pbss_own_words_give_queues_what_routing_leads_to_and_wrapped_lines() -> None:
    cluster = parse_pbs(PBS_SERVER, PBS_QUEUES)
    assert cluster.name == "PBS 23.06.06, server pbs1"
    assert cluster.default_queue == "workq"
    assert cluster.largest_array == 10
    assert cluster.offered == ["workq", "normal", "develop", "old", "default"]
    assert cluster.queues["develop"] == QueueState(
        "develop", True, "enabled", 6 * HOUR, 2, None, 235 * GB
    )
    assert cluster.queues["normal-exec"] == QueueState(
        "normal-exec", True, "enabled", 48 * HOUR, None, 672, 2660 * GB, by_route_only=True
    )
    assert not cluster.queues["old"].open
    assert cluster.queues["default"].leads_to == (
        "develop",
        "normal-exec",
        "a_queue_with_a_rather_long_name_one@otherserver",
        "another_queue_with_a_long_name@otherserver",
    )


def test_a_limit_of_the_whole_pbs_server_holds_in_every_queue() -> None:
    server = PBS_SERVER.replace(
        "    max_array", "    resources_max.walltime = 24:00:00\n    max_array"
    )
    cluster = parse_pbs(server, PBS_QUEUES)
    hours = {name: (queue.max_walltime_s or 0) // HOUR for name, queue in cluster.queues.items()}
    assert (hours["workq"], hours["normal-exec"], hours["develop"]) == (24, 24, 6)


def test_a_site_that_keeps_its_configuration_to_itself_has_queues_all_the_same() -> None:
    def ask(command: Sequence[str]) -> Answer:
        if command[-1] == "partition":
            return Answer(0, SLURM_PARTITIONS, "")
        if command[-1] == "-Qf":
            return Answer(0, PBS_QUEUES, "")
        return Answer(1, "", "Access/permission denied")

    slurm, pbs = ask_cluster("slurm", ask), ask_cluster("pbs", ask)
    assert (slurm.name, slurm.largest_array, len(slurm.queues)) == ("Slurm", None, 3)
    assert (pbs.name, pbs.largest_array, len(pbs.queues)) == ("PBS", None, 6)
    assert pbs.default_queue is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (512, "512 bytes"), (1536, "1.5 KB"), (1010 * GB, "1,010 GB"),
     (3 * 1024 * GB // 2, "1.5 TB"), (5000 * 1024 * GB, "5,000 TB")],
)  # fmt: skip
def test_sizes_are_told_in_powers_of_1024(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.fixture
def pbs_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qstat that prints what a real one printed, and a qsub that must not be called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "server").write_text(PBS_SERVER)
    (folder / "queues").write_text(PBS_QUEUES)
    (folder / "qstat").write_text(
        f"#!/bin/sh\ncase $1 in -Bf) exec cat '{folder}/server';; -Qf) exec cat '{folder}/queues';;"
        " esac\nexit 2\n"
    )
    (folder / "qsub").write_text("#!/bin/sh\necho called > called; exit 1\n")
    for name in ("qstat", "qsub"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture
def pbs_experiment(
    make_toy: Callable[..., Any], pbs_answers: None, tmp_path: Path
) -> Callable[..., list[str]]:
    """Problems of the toy on the recorded PBS, with other values."""
    site = {
        "name": "test", "scheduler": "pbs", "max_array_size": 10, "source": "-",
        "date": "2026-11-22",
    }  # fmt: skip
    toy = make_toy(site, parent=tmp_path)

    def check(*overrides: str) -> list[str]:
        _, found = validate_at_site(toy.experiment, overrides)
        assert [c.found for c in found.checks if c.what == "dry run"]
        return [f"{p.key}: found {p.found}, wanted {p.wanted}" for p in found.problems]

    return check


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], None),
        (["queue=normal", "walltime=48:00:00"], None),
        # qsub takes such a job, and it stays in the routing queue for ever.
        (["queue=normal", "walltime=49:00:00"],
         "resources.run.walltime: found 49:00:00, wanted at most 48:00:00, the limit of queue"
         " normal-exec"),
        (["queue=normal", "tasks=673"], "resources.run.tasks: found 673 cores, wanted at most 672"),
        (["queue=normal-exec"], "resources.run.queue: found 'normal-exec', wanted one of those of"),
        (["queue=old"], "resources.run.queue: found 'old', which is not enabled"),
        (["queue=develop", "nodes=2", "tasks=2", "memory=120GB"],
         "resources.run.memory: found 240 GB in all, wanted at most 235 GB"),
        # Where it leads to is not known here, so only the queue's own limit is sure.
        (["queue=default", "walltime=700:00:00"], None),
        (["queue=default", "walltime=721:00:00"], "resources.run.walltime: found 721:00:00"),
        (["queue=casper@casper-pbs", "walltime=99:00:00"], None),
    ],
)  # fmt: skip
def test_what_a_pbs_queue_would_not_run_is_told(
    pbs_experiment: Callable[..., list[str]], overrides: list[str], wanted: str | None
) -> None:
    found = pbs_experiment(*(f"resources.run.{text}" for text in overrides))
    if wanted is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(wanted)


def test_an_array_that_pbs_would_refuse_is_told_once(
    pbs_experiment: Callable[..., list[str]], tmp_path: Path
) -> None:
    for number in range(1, 21):
        (tmp_path / "toy" / f"p{number}.sh").touch()
    members = ["stages.Posterior.members=20", "stages.Posterior.parameters=p{member}.sh"]
    members.append("output.years=1")  # so many members need much disk
    assert pbs_experiment(*members) == []
    site = tmp_path / "toy" / "site.yaml"
    site.write_text(site.read_text().replace("max_array_size: 10", "max_array_size: 15"))
    assert pbs_experiment(*members) == [
        "max_array_size: found 15, and steps of 15 elements, wanted at most 10, the limit of PBS"
        " 23.06.06, server pbs1"
    ]


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def job_ids(slurm: Any) -> set[str]:
    """Jobs of this and of earlier tests: Slurm forgets ended ones only after a while."""
    return {job.job_id for job in slurm.jobs()}


def test_an_experiment_that_slurm_accepts_is_valid_and_nothing_is_left_behind(
    slurm_toy: Any, slurm: Any
) -> None:
    before, jobs = files(slurm_toy.folder), job_ids(slurm)
    told = slurm_toy.cli("validate", str(slurm_toy.experiment), "--site")
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert "scheduler: answers: Slurm" in lines[1]
    assert lines[2] == "queue: normal (up to 48:00:00, 3 nodes) for run, harmonize, regrid, export"
    assert lines[3] == "arrays: up to 2 elements, of 100 that are allowed"
    for line, kind in zip(lines[4:8], ("run", "harmonize", "regrid", "export"), strict=True):
        assert line.startswith(f"sbatch: {kind}: Job")
        assert "in partition normal" in line
    assert lines[8].endswith("delivers 2005-2024 at 2deg")
    assert files(slurm_toy.folder) == before
    assert job_ids(slurm) <= jobs


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        # sbatch itself says nothing: such a job waits for ever (PartitionTimeLimit).
        ("walltime=2-00:00:01", "resources.run.walltime: found 48:00:01, wanted at most 48:00:00"),
        ("queue=nosuch", "resources.run.queue: found 'nosuch', wanted one of those of Slurm"),
        ("queue=expres", "Did you mean 'express'?"),
        ("nodes=4", "resources.run.nodes: found 4, wanted at most 3"),
        ("memory=65GB", "resources.run: found allocation failure: Requested node configuration"),
        ("directives=[--constraint=gpu]", "resources.run: found allocation failure: Invalid"),
    ],
)
def test_what_slurm_would_not_run_is_told_in_one_line_with_exit_code_2(
    slurm_toy: Any, slurm: Any, override: str, problem: str
) -> None:
    jobs = job_ids(slurm)
    arguments = ["--set", f"resources.run.{override}", "--set", "resources.run.tasks=4"]
    told = slurm_toy.cli("validate", str(slurm_toy.experiment), "--site", *arguments)
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) == 1
    assert problem in told.stderr
    # What is fine is told all the same.
    assert "sbatch: export: Job" in told.stdout
    assert job_ids(slurm) <= jobs


def test_an_array_over_maxarraysize_is_told_once_and_the_scripts_are_tried_all_the_same(
    slurm_toy: Any, slurm: Any
) -> None:
    for number in range(1, 121):
        (slurm_toy.folder / f"p{number}.sh").touch()
    slurm_toy.tree["stages"]["Posterior"].update(parameters="p{member}.sh", members=120)
    slurm_toy.tree["output"]["years"] = 1  # so many members need much disk
    slurm_toy.write()
    _, found = validate_at_site(slurm_toy.experiment)
    assert found.problems == []
    site = slurm_toy.folder / "site.yaml"
    site.write_text(site.read_text().replace("max_array_size: 50", "max_array_size: 1000"))
    _, found = validate_at_site(slurm_toy.experiment)
    (problem,) = found.problems
    assert problem.where == str(site)
    assert problem.found == "1000, and steps of 121 elements"
    assert problem.wanted.startswith("at most 100, the limit of Slurm")
    assert sum(check.what == "sbatch" for check in found.checks) == 4


def test_problems_of_the_experiment_and_of_the_site_come_at_once(
    slurm_toy: Any, slurm: Any
) -> None:
    slurm_toy.tree["stages"]["Posterior"]["parameters"] = "absent.sh"
    slurm_toy.tree["resources"]["run"]["queue"] = "nosuch"
    slurm_toy.write()
    told = slurm_toy.cli("validate", str(slurm_toy.experiment), "--site", "--json")
    assert told.returncode == 2
    report = json.loads(told.stdout)
    assert [p["key"] for p in report["problems"]] == [
        "stages.Posterior.parameters",
        "resources.run.queue",
    ]
    assert {"what": "dry run", "found": "not made before the experiment is valid"} in report[
        "checks"
    ]


def test_a_scheduler_that_does_not_answer_is_exit_code_3(
    make_toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "slurm_load_partitions error: Unable to contact slurm controller (connect failure)"
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(f"#!/bin/sh\necho '{words}' >&2; exit 1\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    site = {"name": "x", "scheduler": "slurm", "source": "-", "date": "2026-11-22"}
    toy = make_toy(site)
    told = toy.cli("validate", str(toy.experiment), "--site")
    assert told.returncode == 3
    assert told.stderr == (
        f"scontrol -a -o show partition: found {words}, wanted an answer."
        " Try again when the scheduler answers, or without --site.\n"
    )
    # With a problem that is known anyway it is one more, of a run that cannot be submitted.
    toy.tree["stages"]["Posterior"]["parameters"] = "absent.sh"
    toy.write()
    told = toy.cli("validate", str(toy.experiment), "--site")
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) == 2


def test_a_machine_without_the_scheduler_is_exit_code_3(
    make_toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = {"name": "x", "scheduler": "pbs", "source": "-", "date": "2026-11-22"}
    toy = make_toy(site, parent=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = toy.cli("validate", str(toy.experiment), "--site")
    assert told.returncode == 3
    assert told.stderr == (
        "qstat: found no such command on this machine, wanted the scheduler of the site file."
        " Run it on a login node, load its module, or choose another site.\n"
    )


def test_a_site_that_chooses_by_qos_is_asked_with_its_qos_and_without_a_partition(
    make_toy: Callable[..., Any], slurm: Any
) -> None:
    site = {
        "name": "qos", "scheduler": "slurm", "source": "-", "date": "2026-11-22",
        "drop_directives": ["partition"], "default_queue": "regular",
        "queues": {"regular": {"directives": ["--qos=regular"], "drop_directives": ["mem"]}},
    }  # fmt: skip
    _, found = validate_at_site(make_toy(site).experiment)
    assert found.problems == []
    assert [c.found for c in found.checks if c.what == "queue"] == [
        "(chosen by the scheduler) for run, harmonize, regrid, export"
    ]
    assert sum(check.what == "sbatch" for check in found.checks) == 4


def test_a_site_file_that_promises_more_than_the_scheduler_gives_is_told(
    make_toy: Callable[..., Any], slurm: Any
) -> None:
    site = {
        "name": "old", "scheduler": "slurm", "source": "-", "date": "2026-11-22",
        "default_queue": "express", "queues": {"express": {"max_walltime": "24:00:00"}},
    }  # fmt: skip
    _, found = validate_at_site(make_toy(site).experiment)
    (queue,) = [c.found for c in found.checks if c.what == "queue"]
    assert "express (up to 01:00:00, 3 nodes; the site file says 24:00:00)" in queue


def test_a_queue_name_of_the_site_file_that_the_cluster_lacks_names_that_file(
    make_toy: Callable[..., Any], slurm: Any
) -> None:
    site = {
        "name": "old", "scheduler": "slurm", "source": "-", "date": "2026-11-22",
        "default_queue": "gone", "queues": {"gone": {}},
    }  # fmt: skip
    toy = make_toy(site)
    _, found = validate_at_site(toy.experiment)
    (problem,) = found.problems
    assert problem.key == "resources.run.queue"
    assert f"The site file says it: {toy.folder / 'site.yaml'}." in problem.remedy
    assert "It is that of run, harmonize, regrid, export." in problem.remedy


def disk_of(toy: Any, **options: Any) -> tuple[list[str], list[str]]:
    _, found = validate_at_site(toy.experiment, **options)
    problems = [f"{p.key or p.where}: {p.found}" for p in found.problems]
    return problems, [c.found for c in found.checks if c.what == "disk"]


def test_disk_that_is_not_there_is_told_before_the_first_job(toy: Any) -> None:
    problems, (line,) = disk_of(toy)
    assert problems == []
    assert "what the model writes is not known (run.disk)" in line
    assert f"free on the file system of {toy.folder}" in line
    toy.tree["run"]["disk"] = {"restart": "1MB", "year": "1MB"}
    toy.write()
    problems, (line,) = disk_of(toy)
    assert problems == []
    assert "needed at most, " in line
    toy.tree["run"]["disk"] = {"restart": "9000TB", "year": "1MB"}
    toy.write()
    (problem,), lines = disk_of(toy)
    assert problem.startswith("run.disk: ")
    assert "TB needed at most" in problem
    assert lines == []
    assert not toy.run_dir.exists()


def test_the_disk_is_that_of_the_run_directory_that_is_given(toy: Any, tmp_path: Path) -> None:
    other = tmp_path / "far" / "away" / "run"
    _, (line,) = disk_of(toy, run_dir=other)
    assert f"of {tmp_path} (" in line
    assert not other.parent.exists()


def test_a_run_directory_that_cannot_be_made_is_told(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    # Root may write everywhere, so the rights are taken away here.
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed)
    problems, _ = disk_of(toy, run_dir=closed / "run")
    assert problems == [f"{closed / 'run'}: no right to write in {closed}"]


def test_files_of_years_that_only_an_inner_step_reads_are_looked_for(toy: Any) -> None:
    toy.tree["run"]["inputs"] = {"climate": "forcing_{year}.nc"}
    toy.tree["run"]["phases"].insert(
        0,
        {
            "name": "equilibrium", "years": [1898, 1899], "climate": {"recycle": [1905, 1906]},
            "co2": 1800, "cycles": 2,
            "steps": [{"name": "a"}, {"name": "b", "climate": {"recycle": [1891, 1892]}}],
        },
    )  # fmt: skip
    toy.write()
    for year in range(1901, 2025):
        (toy.folder / f"forcing_{year}.nc").touch()
    _, found = validate_at_site(toy.experiment)
    (problem,) = found.problems
    assert problem.key == "run.inputs.climate"
    assert problem.found.startswith("no file for 1891-1892: ")


def test_the_local_site_has_no_scheduler_to_ask(toy: Any) -> None:
    told = toy.cli("validate", str(toy.experiment), "--site")
    assert told.returncode == 0, told.stderr
    assert "scheduler: none: tasks are processes of this machine, 2 at a time" in told.stdout


@pytest.mark.pbs
def test_an_experiment_is_checked_against_a_real_pbs(pbs_toy: Any) -> None:
    _, found = validate_at_site(pbs_toy.experiment)
    assert found.problems == []
    (answer,) = [c.found for c in found.checks if c.what == "scheduler"]
    assert answer.startswith("answers: PBS ")
    _, found = validate_at_site(pbs_toy.experiment, ["resources.run.queue=nosuch"])
    (problem,) = found.problems
    assert problem.key == "resources.run.queue"
