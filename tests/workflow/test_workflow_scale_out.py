"""Dask workers as jobs of the site: the same bytes whoever dies, nothing left, plain errors."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import held_units
import numpy as np
import pytest
import typer
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from native_files import field, write_native
from typer.testing import CliRunner
from waiting import LIMIT_S, wait_for

from callmip_global.benchmark import Product, run_benchmark
from callmip_global.cli import scale_out as options
from callmip_global.cli.regrid import regrid as regrid_command
from callmip_global.config.manifest import load_manifest
from callmip_global.config.site import Site, config_path, load_site
from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.files import file_hash, write_json
from callmip_global.grid import Grid, standard_grid
from callmip_global.harmonize.planning import RefusedVariablesError
from callmip_global.jobs.pbs import Pbs
from callmip_global.jobs.scheduler import Scheduler
from callmip_global.jobs.slurm import Slurm
from callmip_global.parallel import TaskMap, in_threads, one_by_one, run_units
from callmip_global.regrid import regrid_dataset, regrid_files, regrid_store
from callmip_global.store import StoreName, create_store, protocol_template, store_attributes
from callmip_global.timeaxis import month_axis
from callmip_global.workflow import scale_out
from callmip_global.workflow.engines import run_engine
from callmip_global.workflow.failures import TaskFailedError
from callmip_global.workflow.ingest import ingest

SUPPORT = Path(held_units.__file__).parent
GB = 1024**3
RESOURCES: dict[str, Any] = {
    "nodes": 1,
    "tasks": 1,
    "cpus": 1,
    "memory_bytes": 2 * GB,
    "walltime_s": 600,
    "queue": None,
    "account": None,
    "directives": [],
    "workers": 2,
}
NATIVE = StoreName("DEMO", "v1", "S3", "native", "Prior")
TWO = replace(NATIVE, grid="2deg")
GRID = Grid("coarse", np.linspace(-90, 90, 13), np.linspace(-180, 180, 25))


def site(scheduler: str = "slurm", **more: Any) -> dict[str, Any]:
    """Plain values of a site whose workers find the modules of the tests."""
    values = {
        "name": "here",
        "scheduler": scheduler,
        "poll_seconds": 1,
        "interface": "lo",
        "shell_setup": f"export PYTHONPATH={shlex.quote(str(SUPPORT))}",
        "source": "the test suite's own",
        "date": "2026-11-22",
        **more,
    }
    return Site(**values).model_dump(mode="json")


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_hash(p) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six years of two variables, months and years: three shards each; one has changing gaps."""
    out = tmp_path_factory.mktemp("native") / NATIVE.text
    land = np.where(GRID.lat[:, None] * np.ones(GRID.shape) < -60, 0.0, 0.8)
    rng = np.random.default_rng(1)
    made = {
        "gpp": {"units": "kg m-2 s-1", "cell_methods": "area: mean where land time: mean"},
        "ts": {"units": "K", "cell_methods": "area: mean time: mean"},
    }
    attributes = store_attributes(NATIVE, {}, ["mon", "yr"])
    templates = {
        frequency: protocol_template(
            grid=GRID,
            axis=month_axis((2001, 2006), "noleap", frequency),
            variables=made,
            land_fraction=land,
            attributes=attributes,
        )
        for frequency in ("mon", "yr")
    }
    writer = create_store(out, templates, fingerprint={}, attributes=attributes)
    for frequency, template in templates.items():
        for name in made:
            shape = template.shape(name)
            values = rng.random(shape, dtype=np.float32)
            values[:, land == 0] = np.nan
            if name == "ts":
                values[rng.random(shape) < 0.1] = np.nan
            for region in writer.regions(frequency, name):
                writer.write(frequency, name, region, values[region])
    return writer.publish()


@pytest.fixture(scope="module")
def regridded(native: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The store of a run in threads, and its report."""
    out = native.parent / TWO.text
    report = regrid_store(native, grid=standard_grid("2deg"), out=out, name=TWO)
    return contents(out), report


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskMap]:
    """Two worker processes on this machine."""
    folder = tmp_path_factory.mktemp("local")
    with scale_out.local_map(workers=2, folder=folder, say=lambda _: None) as task_map:
        yield task_map
    assert list(folder.iterdir()) == []


# --- units ---


@given(items=st.lists(st.integers(), max_size=20), shared=st.integers())
@pytest.mark.parametrize("task_map", [one_by_one, in_threads])
def test_results_are_in_the_order_of_the_items_wherever_they_were_made(
    task_map: TaskMap, items: list[int], shared: int
) -> None:
    seen: list[tuple[int, int]] = []
    shares: list[float] = []

    def each(item: int, result: int, share: float) -> None:
        seen.append((item, result))
        shares.append(share)

    results = run_units(task_map, held_units.square, shared, items, each)
    assert results == [shared + i * i for i in items]
    assert sorted(seen) == sorted(zip(items, results, strict=True))
    assert shares == pytest.approx([(n + 1) / len(items) for n in range(len(items))])


@pytest.mark.parametrize("task_map", [one_by_one, in_threads])
def test_the_first_error_ends_the_work(task_map: TaskMap, tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    work = (held_units.fail, DataError("no"), tmp_path)
    with pytest.raises(DataError, match="no"):
        run_units(task_map, held_units.held, work, range(1000))
    assert len(list(tmp_path.iterdir())) < 500


# --- on a real Slurm ---


def test_a_store_is_the_same_to_the_byte_though_a_worker_and_a_job_are_killed(
    native: Path,
    regridded: tuple[dict[str, str], dict[str, Any]],
    slurm: Any,
    awkward_dir: Path,
    tmp_path: Path,
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    out, said = tmp_path / TWO.text, list[str]()

    def jobs() -> set[str]:
        return {job for job, _ in held_units.under_way(marks)}

    def kill() -> None:
        try:
            wait_for(lambda: len(jobs()) == 2)
            (one, pid), (two, _) = sorted(held_units.under_way(marks))
            os.kill(pid, signal.SIGKILL)
            slurm.run("scancel", two)
            # Another process in the job of the first, another job in place of the second.
            wait_for(lambda: {j for j, p in held_units.under_way(marks) if p != pid} > {one, two})
        finally:
            (marks / "open").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    with scale_out.cluster_map(
        site(),
        RESOURCES,
        workers=2,
        folder=awkward_dir / "dask",
        name="regrid",
        say=said.append,
    ) as task_map:
        held = held_units.holding(task_map, "fill_shard", marks)
        report = regrid_store(native, grid=standard_grid("2deg"), out=out, name=TWO, task_map=held)
    killer.join()
    assert (contents(out), report) == regridded
    assert len(jobs()) == 3
    assert any("ended early" in text and "it is replaced" in text for text in said), said
    ended = slurm.wait_idle()
    assert {job.comment.rsplit("-", 1)[0] for job in ended if job.comment.startswith("dask-")}
    # Scripts and logs stay, keys and what units shared do not.
    assert {p.suffix for p in (awkward_dir / "dask").iterdir()} == {".sh", ".out"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


MANIFEST = """\
model: {name: M, version: v1, institution: Here}
simulation: S3
stage: Posterior
files: "*.nc"
grids: [2deg]
variables:
  per: land
  variables:
    gpp: {source: GPP}
    ra: {source: Ra}
    rh: {source: Rh}
    reco: {derive: "ra + rh"}
    ts: {source: T, units: K}
"""


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a model; the respiration of one kind is a thousand times too large."""
    folder = tmp_path_factory.mktemp("submission")
    carbon = {"units": "gC m-2 day-1"}
    write_native(folder / "gpp.nc", {"GPP": (field(0, 20), carbon)})
    write_native(folder / "ra.nc", {"Ra": (field(1, 5), carbon)})
    write_native(folder / "rh.nc", {"Rh": (field(1, 5) * 1e3, carbon)})
    write_native(folder / "t.nc", {"T": (field(270, 300), {"units": "K"})})
    (folder / "manifest.yaml").write_text(MANIFEST)
    return folder


def ingested(submission: Path, out: Path, task_map: TaskMap | None) -> tuple[Any, list[Any]]:
    manifest = load_manifest(submission / "manifest.yaml")
    stores, entries = ingest([submission], manifest, collection=out, task_map=task_map)
    assert len(stores) == 1
    return contents(out), sorted(entries)


@pytest.fixture(scope="module")
def alone(submission: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """What an ingest in one process makes."""
    return ingested(submission, tmp_path_factory.mktemp("alone"), None)


def test_an_ingest_on_slurm_gives_the_stores_and_the_report_of_one_process(
    submission: Path, alone: tuple[Any, list[Any]], slurm: Any, tmp_path: Path
) -> None:
    with scale_out.cluster_map(
        site(),
        {**RESOURCES, "cpus": 2, "memory_bytes": 4 * GB},
        workers=2,
        folder=tmp_path / "dask",
        name="harmonize",
        say=lambda _: None,
    ) as task_map:
        assert ingested(submission, tmp_path / "spread", task_map) == alone
    assert any(e.variable == "rh" and e.outcome == "refused" for e in alone[1])


DRIVER = """
import json, signal, sys
from pathlib import Path
import held_units
from callmip_global.workflow import scale_out
site, resources, folder = json.loads(sys.argv[1])
folder = Path(folder)
(folder / "marks").mkdir()
# What a shell starts in the background has its Ctrl-C ignored, and so have its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
with scale_out.cluster_map(
    site, resources, workers=1, folder=folder / "dask", name="held", say=print
) as task_map:
    dict(held_units.holding(task_map, "square", folder / "marks")(held_units.square, 0, range(3)))
"""


@pytest.fixture
def drivers(slurm: Any, tmp_path: Path) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Three drivers, each with a worker in the middle of a unit, by the signal that is for them."""
    found = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        folder = tmp_path / str(int(number))
        folder.mkdir()
        values = json.dumps([site(), RESOURCES, str(folder)])
        found[int(number)] = subprocess.Popen(
            [sys.executable, "-c", DRIVER, values],
            env={**os.environ, "PYTHONPATH": str(SUPPORT)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    yield found
    for driver in found.values():
        driver.kill()
        driver.wait()


def test_no_worker_outlives_its_driver_however_that_ends(
    drivers: dict[int, subprocess.Popen[bytes]], slurm: Any, tmp_path: Path
) -> None:
    workers = []
    for number, driver in drivers.items():
        marks = tmp_path / str(number) / "marks"
        wait_for(lambda at=marks: at.exists() and any(at.iterdir()))
        workers += [pid for _, pid in held_units.under_way(marks)]
        driver.send_signal(number)
        if number == signal.SIGKILL:
            # Its worker ends when it is done with its unit, or half a minute later.
            (marks / "open").touch()
    ended = {number: driver.wait(LIMIT_S) for number, driver in drivers.items()}
    assert ended == {number: -number for number in drivers} | {signal.SIGTERM: 143}
    # Slurm cancels two of them; the third one's worker notices that its driver is gone.
    slurm.wait_idle()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


NO_WORKERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "refused": ({"queue": "nosuch"}, "", "invalid partition"),
    "they end at once": (
        {"site": {"shell_setup": "echo 'no such module: dask' >&2; exit 1"}},
        "",
        "all of them ended: no such module: dask.",
    ),
    "the queue is full": (
        {"directives": ["--begin=now+3hours"]},
        "PENDING BeginTime",
        "no worker came within 30 minutes: the queue is full (PENDING (BeginTime)).",
    ),
    "the driver is out of reach": (
        {"site": {"shell_setup": "sleep 900"}},
        "RUNNING None",
        "no worker came within 30 minutes: jobs run, but do not reach tls://127.0.0.1:",
    ),
}
"""What is asked for; the state of both jobs after which half an hour passes; what is said."""


@pytest.mark.parametrize("case", NO_WORKERS)
def test_no_workers_is_one_line_that_says_why_and_where_the_logs_are(
    case: str, slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, state, words = NO_WORKERS[case]
    changes = dict(changes)
    given = site(**changes.pop("site", {}))
    passed = 0.0

    def clock() -> float:
        nonlocal passed
        found = slurm.run("squeue", "-h", "-o", "%T %r").splitlines() if state else []
        if found == [state, state]:
            passed = scale_out.PATIENCE_S
        return time.monotonic() + passed

    monkeypatch.setattr(scale_out, "time", SimpleNamespace(monotonic=clock))
    with (
        pytest.raises(scale_out.WorkersError) as error,
        scale_out.cluster_map(
            given,
            {**RESOURCES, **changes},
            workers=2,
            folder=tmp_path / "dask",
            name="regrid",
            say=lambda _: None,
        ) as task_map,
    ):
        list(task_map(held_units.square, 1, range(4)))
    (problem,) = error.value.problems
    assert str(problem).startswith("workers of regrid: found ")
    assert words in str(problem)
    assert f"The logs are in {tmp_path / 'dask'}." in str(problem)
    assert error.value.exit_code == 3


# --- on PBS: one that is played by four scripts, and a real one where it is found ---

QSUB = """
folder=$(dirname "$0"); for script; do :; done
exec 9> "$folder/lock"; flock 9
number=$(( $(cat "$folder/last") + 1 )); echo $number > "$folder/last"
while [ $# -gt 1 ]; do [ "$1" = -v ] && echo "$2" > "$folder/$number.variables"; shift; done
cd /  # as PBS, which starts jobs elsewhere than where they were submitted
setsid bash "$script" > "$folder/$number.log" 2>&1 < /dev/null 9>&- &
echo $! > "$folder/$number.pid"; echo $number.server
"""
QSELECT = """
cd "$(dirname "$0")" || exit 1
for f in *.pid; do
  [ -e "$f" ] && kill -0 "$(cat "$f")" 2> /dev/null && echo "${f%.pid}.server"
done
exit 0
"""
QSTAT = """
cd "$(dirname "$0")" || exit 1; shift 3
for id; do
  echo "Job Id: $id"; echo "    job_state = R"
  echo "    Variable_List = $(cat "${id%.server}.variables")"; echo
done
"""
QDEL = """
cd "$(dirname "$0")" || exit 1; kill -TERM -- "-$(cat "${1%.server}.pid")"
"""


@pytest.fixture
def played_pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "pbs"
    folder.mkdir()
    (folder / "last").write_text("0")
    scripts = {"qsub": QSUB, "qselect": QSELECT, "qstat": QSTAT, "qdel": QDEL}
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def squares_on_pbs(folder: Path) -> list[int]:
    with scale_out.cluster_map(
        site("pbs"), RESOURCES, workers=2, folder=folder, name="squares", say=lambda _: None
    ) as task_map:
        assert run_units(task_map, held_units.folder, 1, [1]) == [str(Path.cwd())]
        return run_units(task_map, held_units.square, 1, range(20))


def test_workers_are_jobs_of_a_pbs(played_pbs: Path, tmp_path: Path) -> None:
    assert squares_on_pbs(tmp_path / "dask") == [1 + i * i for i in range(20)]
    assert (played_pbs / "last").read_text().strip() == "2"
    pids = [int(p.read_text()) for p in played_pbs.glob("*.pid")]
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


@pytest.mark.pbs
def test_workers_are_jobs_of_a_real_pbs_and_one_that_is_deleted_is_replaced(
    pbs: None, tmp_path: Path
) -> None:
    marks, said = tmp_path / "marks", list[str]()
    marks.mkdir()

    def jobs() -> set[str]:
        return {job for job, _ in held_units.under_way(marks)}

    def delete() -> None:
        try:
            wait_for(lambda: len(jobs()) == 2)
            subprocess.run(["qdel", min(jobs())], check=True)
            wait_for(lambda: len(jobs()) == 3)
        finally:
            (marks / "open").touch()

    deleter = threading.Thread(target=delete)
    deleter.start()
    with scale_out.cluster_map(
        site("pbs"),
        RESOURCES,
        workers=2,
        folder=tmp_path / "dask",
        name="squares",
        say=said.append,
    ) as task_map:
        held = held_units.holding(task_map, "square", marks)
        assert run_units(held, held_units.square, 1, range(20)) == [1 + i * i for i in range(20)]
    deleter.join()
    assert any("it is replaced" in text for text in said), said
    pids = [pid for _, pid in held_units.under_way(marks)]
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


# --- worker processes on this machine ---


def test_a_store_made_by_local_processes_is_the_same_to_the_byte(
    native: Path,
    regridded: tuple[dict[str, str], dict[str, Any]],
    local: TaskMap,
    tmp_path: Path,
) -> None:
    out = tmp_path / TWO.text
    report = regrid_store(native, grid=standard_grid("2deg"), out=out, name=TWO, task_map=local)
    assert (contents(out), report) == regridded


@pytest.mark.parametrize("where", ["processes", "threads"])
def test_an_ingest_spread_on_this_machine_is_the_one_of_one_thread(
    where: str, submission: Path, alone: tuple[Any, list[Any]], local: TaskMap, tmp_path: Path
) -> None:
    task_map = local if where == "processes" else in_threads
    assert ingested(submission, tmp_path / "spread", task_map) == alone


def test_netcdf_files_named_from_where_the_user_is_are_read_by_processes_elsewhere(
    local: TaskMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_file(tmp_path, "Prior", 3)
    monkeypatch.chdir(tmp_path)
    for name, task_map in (("alone", one_by_one), ("spread", local)):
        regrid_files(
            [Path(path.name)],
            grid=standard_grid("2deg"),
            out=Path(f"{name}.zarr"),
            task_map=task_map,
        )
    assert contents(tmp_path / "spread.zarr") == contents(tmp_path / "alone.zarr")


def run_file(folder: Path, stage: str, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    axis = month_axis((2001, 2004), "noleap", "mon")
    values = 20.0 + 40.0 * rng.random((48, *GRID.shape))
    ds = xr.Dataset(
        {"hfls": (("time", "lat", "lon"), values, {"units": "W m-2"})},
        coords={
            "time": ("time", axis.time, axis.time_attributes),
            "time_bnds": (("time", "bnds"), axis.bounds),
            "lat": ("lat", GRID.lat, {"standard_name": "latitude", "bounds": "lat_bnds"}),
            "lon": ("lon", GRID.lon, {"standard_name": "longitude", "bounds": "lon_bnds"}),
            "lat_bnds": (("lat", "bnds"), GRID.lat_bnds),
            "lon_bnds": (("lon", "bnds"), GRID.lon_bnds),
        },
        attrs={"Model": "M.v1", "Calibration_stage": stage, "simulation": "S3"},
    )
    path = folder / f"M.v1_global_test_mon_2001-2004_{stage}.nc"
    ds.to_netcdf(path)
    return path


def test_a_benchmark_by_local_processes_is_the_one_of_this_process(
    local: TaskMap, tmp_path: Path
) -> None:
    runs = [run_file(tmp_path, stage, i) for i, stage in enumerate(("Prior", "Posterior"))]
    (tmp_path / "products").mkdir()
    shown, other = (run_file(tmp_path / "products", stage, 7) for stage in ("Prior", "Posterior"))
    entry = {"variable": "hfls", "paths": (str(shown),), "kind": "synthetic"}
    products = [
        Product(name="A", **entry),
        Product(name="absent", **{**entry, "paths": (str(tmp_path / "none.nc"),)}),
        Product(name="B", **{**entry, "paths": (str(other),), "factor": 2.0, "units": "W m-2"}),
        Product(name="unused", **{**entry, "variable": "lai", "units": "1"}),
    ]
    found = []
    for name, task_map in (("alone", one_by_one), ("spread", local)):
        out = tmp_path / name
        run_benchmark(
            runs,
            products=products,
            out=out,
            regridder=regrid_dataset,
            task_map=task_map,
        )
        maps = {}
        for path in sorted((out / "maps").iterdir()):
            with xr.open_dataset(path) as ds:
                maps[path.name] = ds.load()
        texts = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
        texts |= {p.name: b"kept" for p in (out / "kept").iterdir() if p.name != "files.json"}
        found.append((texts, maps))
    (texts, maps), (spread_texts, spread_maps) = found
    assert spread_texts == texts
    # Two products at two frequencies with the runs, and each against the other one.
    assert sum(text == b"kept" for text in texts.values()) == 8
    assert len(maps) == 4
    assert spread_maps.keys() == maps.keys()
    for name, ds in maps.items():
        xr.testing.assert_identical(spread_maps[name], ds)
    problems = json.loads(texts["problems.json"])
    assert [p for p in problems if "absent" in p] == problems != []


def test_errors_of_units_arrive_as_they_were_raised(local: TaskMap) -> None:
    problems = [Problem("a.nc", "gpp", "x"), Problem("b.nc", found="y", remedy="z")]
    with pytest.raises(DataError) as one:
        run_units(local, held_units.fail, DataError(problems), [1, 2])
    assert list(one.value.problems) == problems
    refused = RefusedVariablesError({"gpp": problems[:1], "ra": problems[1:]})
    with pytest.raises(RefusedVariablesError) as two:
        run_units(local, held_units.fail, refused, [1])
    assert two.value.by_variable == refused.by_variable
    assert str(two.value) == str(refused)


def test_a_unit_that_kills_its_workers_is_told_and_taken_for_short_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_out, "DEATHS", 1)
    monkeypatch.setitem(scale_out.DRIVER_CONFIG, "distributed.scheduler.allowed-failures", 1)
    with (
        pytest.raises(scale_out.WorkersError, match="2 of them ended at the same unit") as error,
        scale_out.local_map(workers=1, folder=tmp_path, say=lambda _: None) as task_map,
    ):
        run_units(task_map, held_units.die, None, [1])
    assert error.value.kind == "memory"


SIGNALS = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: SystemExit,
    signal.SIGHUP: SystemExit,
}


@pytest.fixture
def interrupted_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[int, int], list[str]]]:
    """Has the process get signals while dask's cluster and client start and end; what became of
    each is listed."""
    import distributed

    # A task that another test has performed in this process has arranged for TERM.
    before = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGHUP)}

    def arrange(at_start: int, at_end: int) -> list[str]:
        events: list[str] = []

        class Part:
            def __init__(self, *_: Any, **options: Any) -> None:
                self.name = "cluster" if "n_workers" in options else "client"
                os.kill(os.getpid(), at_start)
                events.append(f"{self.name} started")

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: Any) -> None:
                os.kill(os.getpid(), at_end)
                events.append(f"{self.name} ended")

        monkeypatch.setattr(distributed, "LocalCluster", Part)
        monkeypatch.setattr(distributed, "Client", Part)
        return events

    yield arrange
    for number, handler in before.items():
        signal.signal(number, handler)


WHOLE_LIFE = ["cluster started", "client started", "client ended", "cluster ended"]


@pytest.mark.parametrize("when", ["start", "end", "both"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_local_cluster_starts_and_ends_whole_before_a_signal_takes_effect(
    number: signal.Signals,
    when: str,
    interrupted_cluster: Callable[[int, int], list[str]],
    tmp_path: Path,
) -> None:
    arranged = {n: signal.getsignal(n) for n in SIGNALS}
    events = interrupted_cluster(number if when != "end" else 0, number if when != "start" else 0)
    begun = False
    with (
        pytest.raises(SIGNALS[number]) as ended,
        scale_out.local_map(workers=1, folder=tmp_path, say=lambda _: None),
    ):
        begun = True
    assert events == WHOLE_LIFE
    assert begun == (when == "end")
    assert number == signal.SIGINT or ended.value.code == 128 + number
    assert {n: signal.getsignal(n) for n in SIGNALS} == arranged
    assert list(tmp_path.iterdir()) == []


def test_a_local_cluster_that_hangs_can_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    monkeypatch.setattr(scale_out, "_STUCK_S", -1.0)
    test_is_over = threading.Event()

    def hang(**_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        test_is_over.wait()

    monkeypatch.setattr(distributed, "LocalCluster", hang)
    with (
        pytest.raises(KeyboardInterrupt),
        scale_out.local_map(workers=1, folder=tmp_path, say=lambda _: None),
    ):
        pytest.fail("it did not start")
    test_is_over.set()


def test_workers_on_this_machine_do_not_hear_the_ctrl_c_of_the_terminal(local: TaskMap) -> None:
    (heard_not,) = run_units(local, held_units.not_heard, None, [1])
    assert {signal.SIGINT, signal.SIGHUP} <= heard_not
    assert signal.SIGTERM not in heard_not
    assert not {signal.SIGINT, signal.SIGHUP} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_step_with_workers_gives_the_store_of_one_without(
    native: Path,
    regridded: tuple[dict[str, str], dict[str, Any]],
    local: TaskMap,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def workers_here(**given: Any) -> contextlib.AbstractContextManager[TaskMap]:
        asked.append((given["workers"], given["folder"]))
        return contextlib.nullcontext(local)

    monkeypatch.setattr(scale_out, "local_map", workers_here)
    stores, attempt = tmp_path / "stores", tmp_path / "attempt"
    attempt.mkdir()
    stores.mkdir()
    shutil.copytree(native, stores / NATIVE.text)
    plan: Any = SimpleNamespace(
        name="x",
        settings={
            "model": {"name": "DEMO", "version": "v1"},
            "grid": "2deg",
            "site": site("local"),
        },
    )
    step: Any = SimpleNamespace(name="regrid", kind="regrid", resources=RESOURCES)
    task: Any = SimpleNamespace(id="S3.Prior", simulation="S3", stage="Prior", member=None)
    intent = SimpleNamespace(memory_bytes=3 * GB, walltime_s=None)
    run: Any = SimpleNamespace(
        path=tmp_path, stores=stores, leases=lambda: SimpleNamespace(intents={"t": intent})
    )
    write_json(attempt / "status.json", {"token": "t"})
    result = run_engine(run, plan, step, task, attempt, {})
    assert result["stores"] == [TWO.text]
    assert contents(stores / TWO.text) == regridded[0]
    assert asked == [(2, attempt / "dask")]
    # Where a job cannot submit jobs, the attempt fails as one whose node failed. Its script asks
    # for the memory of this retry.
    plan.settings["site"] = site("slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TaskFailedError) as failed:
        run_engine(run, plan, step, task, attempt, {})
    assert failed.value.failure.kind == "node"
    assert "sbatch" in failed.value.failure.message
    script = next((attempt / "dask").glob("*.sh")).read_text()
    assert "--mem=3072M" in script
    assert "--time=00:10:00" in script


def test_a_worker_that_outlived_its_driver_writes_nothing_into_the_store_that_replaces_its_own(
    native: Path, tmp_path: Path
) -> None:
    template = protocol_template(
        grid=GRID,
        axis=month_axis((2001, 2001), "noleap", "mon"),
        variables={"gpp": {"units": "1"}},
        land_fraction=np.ones(GRID.shape),
        attributes={},
    )
    old, new = (
        create_store(tmp_path / "x.zarr", {"mon": template}, fingerprint={"input": name})
        for name in ("old", "new")
    )
    (region,) = new.regions("mon", "gpp")
    values = np.ones((12, *GRID.shape), dtype=np.float32)
    with pytest.raises(DataError, match="another run has started over"):
        old.fill("mon", "gpp", region, values)
    new.write("mon", "gpp", region, values)
    new.publish()
    with pytest.raises(DataError, match="or published"):
        new.fill("mon", "gpp", region, values)


# --- scripts ---


def shipped(name: str, folder: Path, **changes: Any) -> tuple[scale_out.WorkerSpec, Scheduler]:
    """The worker of a shipped site, with the Python of somebody else."""
    found, _ = load_site(config_path(name, "sites", Path()))
    plain = found.model_dump(mode="json")
    resources = {**RESOURCES, "cpus": 8, "memory_bytes": 12 * GB, **changes}
    spec = scale_out.worker_spec(plain, resources, folder=folder, name="CLASSIC.v2-regrid")
    scheduler: Scheduler = Slurm() if plain["scheduler"] == "slurm" else Pbs()
    return replace(spec, python="/home/me/my env/bin/python"), scheduler


SHIPPED: Mapping[str, dict[str, Any]] = {
    "slurm": {},
    "pbs": {},
    "levante": {"account": "ab1234", "queue": "shared"},
    "gadi": {"directives": ["-P ab12", "-l storage=gdata/ab12"]},
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_script_of_a_worker_is_the_golden_one_to_the_byte(
    name: str, golden: Callable[[str, str], None], tmp_path: Path
) -> None:
    folder = Path("/scratch/classic.run/dask")
    spec, scheduler = shipped(name, folder, **SHIPPED[name])
    spec = replace(spec, interface="ib0") if name == "gadi" else spec
    text = scale_out.worker_script(
        spec, scheduler, worker="dask-0123456789ab-0", address="tls://10.0.0.1:40001"
    )
    golden(f"jobs/worker-{name}.sh", text)
    script = tmp_path / "worker.sh"
    script.write_text(text)
    subprocess.run(["bash", "-n", script], check=True)


def test_what_a_site_requires_is_asked_for() -> None:
    with pytest.raises(UsageError, match="--set account=") as error:
        shipped("levante", Path("/x"))
    assert len(error.value.problems) == 1
    with pytest.raises(UsageError) as error:
        shipped("gadi", Path("/x"), directives=["-P ab12"])
    assert "-l storage=" in str(error.value)


HOSTILE = ["a b'c", "$(touch pwned)", "`touch pwned`;touch pwned", '"', "ü*?", "-rf", "%j%"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_reach_the_worker_as_they_are(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    python = folder / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    spec, scheduler = shipped("slurm", folder)
    spec = replace(spec, python=str(python), interface=name)
    text = scale_out.worker_script(spec, scheduler, worker=name, address=f"tls://{name}")
    script = tmp_path / "worker.sh"
    script.write_text(text)
    shown = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {f"tls://{name}", f"--name={name}", f"--interface={name}"} <= set(shown)
    assert f"--tls-key={folder}/private/key.pem" in shown
    assert {p.name for p in tmp_path.iterdir()} == {name, "worker.sh"}


@pytest.mark.parametrize("key", ["queue", "account"])
@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_line_break_is_refused_in_one_line(key: str, scheduler: str, tmp_path: Path) -> None:
    resources = {**RESOURCES, key: "x\n#SBATCH --uid=0"}
    with (
        pytest.raises(UsageError, match="line break"),
        scale_out.cluster_map(
            site(scheduler), resources, workers=2, folder=tmp_path, name="n", say=print
        ),
    ):
        pass


def test_an_interface_that_is_not_there_is_one_line(slurm: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"site here: interface: found .*nosuch0"),
        scale_out.cluster_map(
            site(interface="nosuch0"),
            RESOURCES,
            workers=1,
            folder=tmp_path,
            name="n",
            say=lambda _: None,
        ) as task_map,
    ):
        list(task_map(held_units.square, 1, [1]))
    assert not any(job.comment.startswith("dask-") and job.is_active for job in slurm.jobs())


@pytest.mark.parametrize(
    ("cpus", "gigabytes", "threads"), [(1, 64, 1), (8, 64, 8), (8, 6, 3), (4, 1, 1)]
)
def test_a_worker_does_as_many_units_at_a_time_as_cores_and_memory_allow(
    cpus: int, gigabytes: int, threads: int
) -> None:
    spec, _ = shipped("slurm", Path("/x"), cpus=cpus, memory_bytes=gigabytes * GB)
    assert spec.threads == threads


# --- command line ---


def test_resources_come_from_our_defaults_the_site_and_the_command_line(tmp_path: Path) -> None:
    plain, asked = scale_out.site_and_resources(
        "slurm",
        "levante",
        "regrid",
        ["account=ab1234", "memory=3GB", "walltime=00:30:00"],
        tmp_path,
    )
    assert plain["name"] == "levante"
    assert (asked["queue"], asked["account"], asked["cpus"]) == ("shared", "ab1234", 2)
    assert (asked["memory_bytes"], asked["walltime_s"]) == (3 * GB, 1800)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("slurm", None, ["memory=3"]), "--set memory=3: resources.regrid.memory: found 3"),
        (("slurm", None, ["cpu=3"]), "Did you mean 'cpus'?"),
        (("slurm", "gadi", []), "found pbs, wanted slurm. Say --dask pbs"),
        (("pbs", "nowhere", []), "'nowhere'"),
    ],
    ids=["no unit", "no such key", "another scheduler", "no such site"],
)
def test_a_wrong_worker_is_one_line(given: Any, words: str, tmp_path: Path) -> None:
    dask, name, overrides = given
    with pytest.raises(UsageError) as error:
        scale_out.site_and_resources(dask, name, "regrid", overrides, tmp_path)
    assert len(error.value.problems) == 1
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, 3, None, None), "--workers: wanted --dask too"),
        ((None, None, "slurm", ["a=b"]), "--site, --set: wanted --dask too"),
        ((options.Dask.local, 2, "slurm", None), "--site: wanted --dask slurm or --dask pbs"),
    ],
    ids=["workers alone", "site alone", "site of a local cluster"],
)
def test_options_that_do_not_go_together_are_refused(given: Any, words: str) -> None:
    console: Any = None
    with (
        pytest.raises(UsageError, match=words),
        options.spread(*given, kind="regrid", out=Path("x"), console=console),
    ):
        pass


def test_the_command_regrids_with_local_processes(native: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(regrid_command)
    found = []
    for name, more in (("threads", []), ("dask", ["--dask", "local", "--workers", "1"])):
        out = tmp_path / name / "x.zarr"
        out.parent.mkdir()
        arguments = [str(native), "--frequency", "yr", "--grid", "2deg", "--out", str(out)]
        result = CliRunner().invoke(app, [*arguments, *more])
        assert result.exit_code == 0, result.output
        found.append(contents(out))
        assert [p.name for p in out.parent.iterdir()] == ["x.zarr"]
    assert found[0] == found[1]


def test_looking_at_the_options_loads_no_dask() -> None:
    code = (
        "import sys, callmip_global.cli.app, callmip_global.workflow.scale_out;"
        "print([m for m in ('dask', 'distributed', 'dask_jobqueue', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (shown.stdout.strip(), shown.stderr) == ("[]", "")
