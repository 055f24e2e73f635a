"""Harmonize, regrid, benchmark, report and export tasks: the package's own engines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from callmip_global.config.plan import Plan, Step, Task
from callmip_global.files import fsync_folder, read_json, refuse_links
from callmip_global.workflow.failures import Failure, TaskFailedError
from callmip_global.workflow.model_run import Markers, output_files
from callmip_global.workflow.rundir import RunDir

SPREAD = ("harmonize", "regrid", "benchmark")
"""Kinds of steps whose units may run on several workers."""

_PROGRESS_EVERY_S = 5.0


def run_engine(
    run: RunDir, plan: Plan, step: Step, task: Task, attempt: Path, upstream: Markers
) -> dict[str, Any]:
    """Run one engine task; returns what the success marker records.

    Stores, benchmark and export folders are made under a temporary name and renamed by their
    writers, so a reader never sees half of one. Where ``resources`` ask for several workers this
    job is their driver: it starts them as further jobs of the site. Raises CallmipError for data
    that cannot be used, TaskFailedError where the workers fail.
    """
    work: Callable[..., dict[str, Any]] = {
        "harmonize": _harmonize,
        "regrid": _regrid,
        "benchmark": _benchmark,
        "report": _report,
        "export": _export,
    }[step.kind]
    refuse_links(run.path, ("benchmark", "export", "stores"))
    with _workers(run, plan, step, attempt) as spread:
        return work(run, plan, task, attempt, upstream, **spread)


@contextlib.contextmanager
def _workers(run: RunDir, plan: Plan, step: Step, attempt: Path) -> Iterator[dict[str, Any]]:
    """``task_map`` over the workers that the step asks for; nothing where it is one.

    A retry that got more time or memory hands that on to them.
    """
    workers = step.resources.get("workers", 1)
    if workers == 1 or step.kind not in SPREAD:
        yield {}
        return
    from callmip_global.workflow import scale_out

    site, folder = plan.settings["site"], attempt / "dask"
    intent = run.leases().intents[read_json(attempt / "status.json")["token"]]
    raised = {"memory_bytes": intent.memory_bytes, "walltime_s": intent.walltime_s}
    resources = {**step.resources, **{k: v for k, v in raised.items() if v is not None}}

    def say(text: str) -> None:
        print(text, flush=True)

    name = f"{plan.name}-{step.name}"
    try:
        with (
            scale_out.local_map(workers=workers, folder=folder, say=say)
            if site["scheduler"] == "local"
            else scale_out.cluster_map(
                site, resources, workers=workers, folder=folder, name=name, say=say
            )
        ) as task_map:
            yield {"task_map": task_map}
    except scale_out.WorkersError as error:
        raise TaskFailedError(Failure(error.kind, str(error))) from None


def _store_name(plan: Plan, task: Task, grid: str) -> Any:
    from callmip_global.store import StoreName

    if task.simulation is None or task.stage is None:
        raise ValueError(f"task {task.id} stands for no single store")
    model = plan.settings["model"]
    return StoreName(
        model=model["name"],
        version=model["version"],
        simulation=task.simulation,
        grid=grid,
        stage=task.stage,
        member=task.member,
    )


def _harmonize(
    run: RunDir, plan: Plan, task: Task, attempt: Path, upstream: Markers, **spread: Any
) -> dict[str, Any]:
    from callmip_global.config.variable_map import load_variable_map
    from callmip_global.harmonize import harmonize_run

    settings = plan.settings
    name = _store_name(plan, task, "native")
    report = harmonize_run(
        output_files(run.path, upstream),
        variable_map=load_variable_map(Path(settings["variables"])),
        name=name,
        attributes=_attributes(plan, task),
        years=tuple(settings["years"]),
        frequencies=settings["frequencies"],
        out=_prepare(run.stores) / name.text,
        progress=progress_printer(),
        **spread,
    )
    _write_report(attempt, report)
    return {"outputs": {}, "stores": [name.text]}


def _attributes(plan: Plan, task: Task) -> dict[str, str]:
    """Root attributes of the store beside its name."""
    model = plan.settings["model"]
    stage = plan.settings["stages"][task.stage]
    scenario = stage["scenario"]
    attributes = {
        "institution": model["institution"],
        "contact": model["contact"],
        "scenario": "" if scenario is None else str(scenario),
    }
    return {name: text for name, text in attributes.items() if text}


def _regrid(
    run: RunDir, plan: Plan, task: Task, attempt: Path, upstream: Markers, **spread: Any
) -> dict[str, Any]:
    from callmip_global.grid import standard_grid
    from callmip_global.regrid import regrid_store

    name = _store_name(plan, task, plan.settings["grid"])
    native = run.stores / _store_name(plan, task, "native").text
    report = regrid_store(
        native,
        grid=standard_grid(plan.settings["grid"]),
        out=_prepare(run.stores) / name.text,
        name=name,
        progress=progress_printer(),
        **spread,
    )
    _write_report(attempt, report)
    return {"outputs": {}, "stores": [name.text]}


def _benchmark(
    run: RunDir, plan: Plan, task: Task, attempt: Path, upstream: Markers, **spread: Any
) -> dict[str, Any]:
    from callmip_global.benchmark import run_benchmark
    from callmip_global.benchmark.cache import take_over
    from callmip_global.benchmark.regions import REGIONS
    from callmip_global.config.products import load_products
    from callmip_global.regrid import regrid_dataset

    stores = [run.stores / name for ref in task.upstream for name in upstream[ref]["stores"]]
    out = attempt / "benchmark"
    # An attempt that was killed has got as far as it has; the newest knows most.
    for earlier in sorted(attempt.parent.glob("attempt-*/benchmark"), reverse=True):
        take_over(earlier, out)
    take_over(run.path / "benchmark", out)
    summary = run_benchmark(
        stores,
        products=load_products(Path(plan.settings["products"])),
        out=out,
        frequencies=tuple(plan.settings["frequencies"]),
        # A plan of an earlier version has no regions.
        regions=plan.settings.get("regions") or tuple(REGIONS),
        regridder=regrid_dataset,
        progress=progress_printer(),
        **spread,
    )
    replace_folder(out, run.path / "benchmark")
    # A product that cannot be used is told, but must not cost the scores of the others.
    return {"outputs": {}, "folder": "benchmark", "problems": summary["problems"]}


def _report(
    run: RunDir, plan: Plan, task: Task, attempt: Path, upstream: Markers
) -> dict[str, Any]:
    from callmip_global.benchmark import write_report

    draft = write_report(run.path / "benchmark", out=attempt / "report.html")
    draft.replace(run.path / "benchmark" / "report.html")
    return {"outputs": {}, "report": "benchmark/report.html"}


def _export(
    run: RunDir, plan: Plan, task: Task, attempt: Path, upstream: Markers
) -> dict[str, Any]:
    from callmip_global.export import export_upload

    stores = [run.stores / name for ref in task.upstream for name in upstream[ref]["stores"]]
    files = export_upload(stores, out=_prepare(run.path / "export"), progress=progress_printer())
    return {"outputs": {}, "files": [str(f.relative_to(run.path)) for f in files]}


def replace_folder(new: Path, final: Path) -> None:
    """Put a finished folder in place of an older one; the older one is removed afterwards.

    Between the two renames there is no folder at all, but never half of one.
    """
    old = final.with_name(f".{final.name}.old.{os.getpid()}")
    if final.exists():
        final.rename(old)
    new.rename(final)
    fsync_folder(final.parent)
    if old.exists():
        shutil.rmtree(old)


def progress_printer() -> Callable[[str, float], None]:
    """A progress function for jobs: one line every few seconds into the log, never a live bar."""
    last = 0.0

    def progress(what: str, fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_EVERY_S or fraction >= 1:
            last = time.monotonic()
            print(f"{100 * fraction:5.1f} %  {what}", file=sys.stdout, flush=True)

    return progress


def _prepare(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_report(attempt: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps(report, indent=1, sort_keys=True, default=str)
    (attempt / "report.json").write_text(text + "\n", encoding="utf-8")
