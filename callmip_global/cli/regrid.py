"""``callmip-global regrid``: any CF file or store to a standard grid, by itself."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from callmip_global.cli.scale_out import (
    DaskOption,
    SiteOption,
    WorkerSetOption,
    WorkersOption,
    spread,
)


def _kinds(texts: list[str]) -> dict[str, Any]:
    """NAME=KIND of every ``--kind``; UsageError for another form."""
    from callmip_global.errors import Problem, UsageError

    pairs = [text.partition("=") for text in texts]
    problems = [
        Problem("--kind", found=repr(text), wanted="NAME=KIND, for example pft=categorical")
        for text, (name, _, kind) in zip(texts, pairs, strict=True)
        if not name or not kind
    ]
    if problems:
        raise UsageError(problems)
    return {name: kind for name, _, kind in pairs}


def regrid(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="CF NetCDF files or stores; files that continue each other in time are joined.",
        ),
    ],
    grid: Annotated[str, typer.Option(help="Target grid: 0.5deg, 1deg or 2deg.")],
    out: Annotated[Path, typer.Option(help="Zarr store to write; an older store is replaced.")],
    frequency: Annotated[
        str | None, typer.Option(help="mon or yr: which group of a store that has both.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weight file of ESMF, SCRIP or CDO to use; for cells whose corners are unknown."
        ),
    ] = None,
    save_weights: Annotated[
        Path | None,
        typer.Option(help="Write the weights that are used to this file, as ESMF has them."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="conservative; nearest, for points without corners; bilinear (xESMF). The last "
            "two keep no integral."
        ),
    ] = "conservative",
    engine: Annotated[
        str,
        typer.Option(
            help="Whose weights: native, xesmf (needs ESMPy), or auto: native where it can."
        ),
    ] = "auto",
    gaussian_edges: Annotated[
        str,
        typer.Option(
            help="Edges of a Gaussian grid without bounds: weights (those of Gauss) or midpoints "
            "(as CDO has them)."
        ),
    ] = "weights",
    annual: Annotated[
        bool,
        typer.Option(
            "--annual", help="Also annual means, weighted by days: groups mon and yr in the store."
        ),
    ] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND",
            help="intensive, extensive (amounts per cell) or categorical (classes), where a "
            "variable's attributes do not say it.",
        ),
    ] = None,
    min_fraction: Annotated[
        float,
        typer.Option(help="Cells of which less than this part is valid become missing (0 to 1)."),
    ] = 0.0,
    dask: DaskOption = None,
    workers: WorkersOption = None,
    site: SiteOption = None,
    overrides: WorkerSetOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Regrid conservatively; the store has the variables at its root, valid_fraction beside them.

    Integrals over the result are sums of value x areacella x valid_fraction; those of every
    variable and time step, before and after, are in the group conservation.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from callmip_global.grid import standard_grid
    from callmip_global.parallel import in_threads
    from callmip_global.regrid import regrid_files

    target = standard_grid(grid)
    with (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as bar,
        spread(
            dask, workers, site, overrides, kind="regrid", out=out, console=bar.console
        ) as task_map,
    ):
        task = bar.add_task("reading", total=1.0)
        report = regrid_files(
            inputs,
            grid=target,
            out=out,
            frequency=frequency,
            weight_file=weights,
            save_weights=save_weights,
            engine=engine,
            method=method,
            gaussian_edges=gaussian_edges,
            kinds=_kinds(kind or []),
            min_fraction=min_fraction,
            annual=annual,
            progress=lambda text, share: bar.update(task, description=text, completed=share),
            task_map=task_map or in_threads,
        )
    if json:
        typer.echo(json_text.dumps(report, indent=1, sort_keys=True))
        return
    made = report["weights"]
    typer.echo(f"{out}: {grid}, {made['method']}, edges from {made['edge_model']}")
    for name, entry in next(iter(report["conservation"].values())).items():
        kept = "no integrals"
        if entry["kind"] == "categorical":
            kept = "the class with the largest area"
        elif "max_relative_drift" in entry:
            kept = f"integral kept to {entry['max_relative_drift']:.0e}"
        typer.echo(f"  {name}: weighted by {entry['weighting']}, mask {entry['mask']}, {kept}")
    for text in report["left_out"]:
        typer.echo(f"  left out: {text}")
