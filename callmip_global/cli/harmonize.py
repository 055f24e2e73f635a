"""``callmip-global harmonize`` and ``callmip-global check``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from callmip_global.cli.options import require_paths
from callmip_global.cli.scale_out import (
    DaskOption,
    SiteOption,
    WorkerSetOption,
    WorkersOption,
    spread,
)
from callmip_global.errors import EXIT_OK, EXIT_PROBLEMS, counted

if TYPE_CHECKING:
    from rich.console import Console

    from callmip_global.harmonize.submission import Entry
    from callmip_global.parallel import Progress

_LOGGED_S = 60.0

ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="PATH.json",
        help="Write what became of every file and variable there, and as a page PATH.html.",
    ),
]


def harmonize(
    submissions: Annotated[
        list[Path], typer.Argument(metavar="SUBMISSION...", help="Folders or files handed in.")
    ],
    manifest: Annotated[
        Path, typer.Option("--manifest", help="What they are: model, stage, variables, years.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The collection that gets the stores.")],
    dask: DaskOption = None,
    workers: WorkersOption = None,
    site: SiteOption = None,
    overrides: WorkerSetOption = None,
    report: ReportOption = None,
) -> None:
    """Bring handed-in model output onto the standard grids, with a report of every file.

    What is broken is refused and named; the rest goes on. Run again, it goes on where it was
    interrupted, does nothing where nothing has changed, and keeps the older version of a store that
    changes. report.json and report.html of the collection tell of all its runs. Exit code 1 if
    anything was refused.
    """
    from callmip_global.config.manifest import load_manifest
    from callmip_global.workflow.ingest import ingest

    loaded = load_manifest(manifest)
    _prepare(report)
    with (
        _watched() as (console, progress),
        spread(
            dask, workers, site, overrides, kind="harmonize", out=out, console=console
        ) as task_map,
    ):
        stores, entries = ingest(
            submissions, loaded, collection=out, progress=progress, task_map=task_map
        )
    for store in stores:
        print(store)
    print(out / "report.html")
    _finish(entries, report)


def check(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE|STORE|DIR...", help="What to look at.")
    ],
    variables: Annotated[
        Path | None,
        typer.Option("--variables", help="Variable map, if names are not the protocol's."),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="Look as harmonize with this manifest would."),
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option("--draft", metavar="PATH", help="Write a draft of the manifest there."),
    ] = None,
    report: ReportOption = None,
) -> None:
    """Say what is wrong with files or stores, before they are handed in; changes nothing.

    Exit code 1 if anything would be refused.
    """
    from callmip_global.config.variable_map import load_variable_map
    from callmip_global.errors import Problem, UsageError
    from callmip_global.files import write_atomic
    from callmip_global.harmonize.draft import draft_manifest
    from callmip_global.harmonize.submission import accounted, check_path

    require_paths(paths)
    _prepare(report)
    if manifest is not None:
        from callmip_global.config.manifest import load_manifest
        from callmip_global.workflow.ingest import check_manifest

        if variables is not None or draft is not None:
            remedy = "The manifest says it all."
            raise UsageError(Problem("--manifest", found="--variables or --draft", remedy=remedy))
        loaded = load_manifest(manifest)
        with _watched() as (_, progress):
            entries = check_manifest(paths, loaded, progress)
        _finish(entries, report)
    if draft is not None and draft.exists():
        found = f"{draft}, which is there already"
        raise UsageError(Problem("--draft", found=found, wanted="the name of a new file"))
    variable_map = None if variables is None else load_variable_map(variables, requested=())
    with _watched() as (_, progress):
        checked = [check_path(path, variable_map, progress) for path in paths]
    entries = accounted((e for one in checked for e in one.entries), ())
    if draft is not None:
        files = {file.origin: file for one in checked for file in one.files}
        write_atomic(draft, draft_manifest(list(files.values()), entries))
        print(draft)
    _finish(entries, report)


@contextmanager
def _watched() -> Iterator[tuple[Console, Progress]]:
    """Shows how far the work is: a bar on a terminal, a line a minute in a log."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("reading headers", total=1.0)
            yield console, lambda text, share: bar.update(task, description=text, completed=share)
        return
    told = time.monotonic()

    def log(text: str, share: float) -> None:
        nonlocal told
        if time.monotonic() - told >= _LOGGED_S:
            told = time.monotonic()
            print(f"{share:4.0%} {text}", file=sys.stderr, flush=True)

    yield console, log


def _prepare(report: Path | None) -> None:
    """Refuse a report that could not be written before hours of work, not after."""
    from callmip_global.errors import Problem, UsageError

    if report is None:
        return
    if report.suffix == ".html" or report.is_dir():
        raise UsageError(Problem("--report", found=str(report), wanted="a file ending in .json"))
    report.parent.mkdir(parents=True, exist_ok=True)


def _finish(entries: Sequence[Entry], report: Path | None) -> NoReturn:
    """Print what was refused or fixed, write the report, and leave with the exit code."""
    from callmip_global.files import write_json
    from callmip_global.harmonize.report import write_report
    from callmip_global.harmonize.submission import entries_json, refusals, remarks

    if report is not None:
        rows = entries_json(entries)
        write_json(report, rows)
        write_report(rows, out=report.with_suffix(".html"))
    for message, names in refusals(entries).items():
        said = f" {len(names)} variables ({', '.join(names)})" if len(names) > 1 else ""
        print(f"refused{said}: {message}", file=sys.stderr)
    for what, names, files, message in remarks(entries):
        held = f" ({counted(files, 'file')})" if files else ""
        print(f"{what} {', '.join(names)}{held}: {message}")
    counts = Counter(entry.outcome for entry in entries)
    print(", ".join(f"{counts[o]} {o}" for o in ("accepted", "fixed", "refused")))
    raise typer.Exit(EXIT_PROBLEMS if counts["refused"] else EXIT_OK)
