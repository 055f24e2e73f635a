"""``prune``, ``reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from callmip_global.cli.options import JsonOption, print_json
from callmip_global.errors import EXIT_PROBLEMS

RunDirArgument = Annotated[Path, typer.Argument(help="The run directory.", metavar="RUN_DIR")]


def prune(
    run_dir: RunDirArgument,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", help="Restart sets kept of each chain.", min=1)
    ] = 2,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Also outputs of tiles that are merged and read.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete it; without this it is only shown.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Free disk: restart files and failed attempts that nothing needs any more."""
    from callmip_global.workflow.prune import KINDS
    from callmip_global.workflow.prune import prune as prune_run

    run, items = prune_run(run_dir, keep=keep, outputs=outputs, delete=delete)
    kinds: dict[str, dict[str, int]] = {}
    for item in items:
        kind = kinds.setdefault(item.kind, {"files": 0, "bytes": 0})
        kind["files"] += 1
        kind["bytes"] += item.bytes
    total = sum(kind["bytes"] for kind in kinds.values())
    if json:
        value: dict[str, Any] = {"run_dir": str(run.path), "deleted": delete, "bytes": total}
        files = [{"task": i.ref, "kind": i.kind, "path": i.path, "bytes": i.bytes} for i in items]
        print_json({**value, "kinds": kinds, "files": files})
        return
    if not items:
        print("nothing to prune")
        return
    _print_table({KINDS[name]: kinds[name] for name in KINDS if name in kinds}, total, len(items))
    if delete:
        print(f"deleted; what it was is in pruned.json of each task in {run.path}/steps")
    else:
        print("nothing was deleted: add --delete to do it")


def _print_table(kinds: dict[str, dict[str, int]], total: int, n_files: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_footer=True)
    table.add_column("what", "total", overflow="fold")
    table.add_column("files", f"{n_files:,}", justify="right", no_wrap=True)
    table.add_column("size", size_text(total), justify="right", no_wrap=True)
    for name, kind in kinds.items():
        table.add_row(name, f"{kind['files']:,}", size_text(kind["bytes"]))
    Console().print(table)


def size_text(size_bytes: int) -> str:
    """Bytes in the largest unit that leaves a number of 1 or more: ``1.4 GB`` (powers of 1000)."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def reproduce(
    run_dir: RunDirArgument,
    results: Annotated[
        bool, typer.Option("--results", help="Also whether the results on disk are still whole.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check that all a run was made of is what it was: programs, inputs, settings, software."""
    from callmip_global.workflow import provenance

    found = provenance.reproduce(run_dir)
    damaged = provenance.check_results(run_dir) if results else []
    changes = [difference for difference in found if difference.steps]
    notes = [difference for difference in found if not difference.steps]
    if json:
        print_json(
            {
                "run_dir": str(run_dir.resolve()),
                "changes": provenance.to_json(changes),
                "damaged": provenance.to_json(damaged),
                "notes": provenance.to_json(notes),
            }
        )
    else:
        for difference in (*changes, *damaged):
            print(difference)
        for difference in notes:
            print(f"no result depends on it: {difference}")
        if not changes and not damaged:
            print("nothing changed")
    if changes or damaged:
        raise typer.Exit(EXIT_PROBLEMS)
