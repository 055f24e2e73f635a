"""The shipped sites, protocol and examples: all of them load, and say where they come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from callmip_global.config.load import load_leniently
from callmip_global.config.protocol import load_protocol
from callmip_global.config.site import Queue, config_names, config_path, load_site
from callmip_global.config.validate import check_experiment
from callmip_global.data import data_path
from callmip_global.errors import UsageError
from callmip_global.variables import requested_variables


def test_there_are_sites_for_every_scheduler() -> None:
    assert {"gadi", "levante", "local", "pbs", "slurm"} <= set(config_names("sites"))


@pytest.mark.parametrize("name", config_names("sites"))
def test_a_shipped_site_loads_and_names_its_source_and_date(name: str) -> None:
    site, _ = load_site(config_path(name, "sites", Path()))
    assert site.name == name
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", site.date)
    assert site.scheduler == "local" or "http" in site.source
    assert site.poll_seconds >= (60 if site.scheduler == "pbs" else 1)


def test_gadi_gives_large_jobs_less_time() -> None:
    site, _ = load_site(config_path("gadi", "sites", Path()))
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
