"""``callmip-global regrid``: any CF file or store to a standard grid, by itself."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from callmip_global.cli.scale_out import (
    DaskOption,
    SiteOption,
    WorkerSetOption,
    WorkersOption,
    spread,
)


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
    dask: DaskOption = None,
    workers: WorkersOption = None,
    site: SiteOption = None,
    overrides: WorkerSetOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Regrid conservatively; the store has the variables at its root, valid_fraction beside them.

    Integrals over the result are sums of value x areacella x valid_fraction.
    """
    from rich.console import Console
    from rich.progress import Progress

    from callmip_global.grid import standard_grid
    from callmip_global.parallel import in_threads
    from callmip_global.regrid import regrid_files

    target = standard_grid(grid)
    with (
        Progress(console=Console(stderr=True), transient=True) as bar,
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
            progress=lambda text, share: bar.update(task, description=text, completed=share),
            task_map=task_map or in_threads,
        )
    if json:
        typer.echo(json_text.dumps(report, indent=1, sort_keys=True))
        return
    typer.echo(f"{out}: {grid}, edges from {report['weights']['edge_model']}")
    for name, entry in report["conservation"][""].items():
        typer.echo(
            f"  {name}: weighted by {entry['weighting']}, mask {entry['mask']}, "
            f"integral kept to {entry['max_relative_drift']:.0e}"
        )
    for text in report["left_out"]:
        typer.echo(f"  left out: {text}")
