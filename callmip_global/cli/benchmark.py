"""``callmip-global benchmark``: runs against reference products, scores, maps and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from callmip_global.cli.options import require_paths
from callmip_global.cli.scale_out import (
    DaskOption,
    SiteOption,
    WorkerSetOption,
    WorkersOption,
    spread,
)


def benchmark(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE|FILE...",
            help="Stores, NetCDF files with the protocol's names, or folders of them.",
        ),
    ],
    products: Annotated[
        Path, typer.Option("--products", "-p", help="Products file (products: {NAME: {...}}).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for scores, maps and report.")],
    frequency: Annotated[
        list[str] | None, typer.Option(help="mon or yr; both when not given. May be repeated.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            help="Region: a name (global, nh, tropics ...), an IPCC AR6 land region (NEU, SAH ...)"
            " or ipcc for all 46, a box NAME=SOUTH,NORTH,WEST,EAST in degrees, a mask or map of"
            " labels NAME=FILE.nc[:VARIABLE]; globe and bands of latitude when not given. May be"
            " repeated."
        ),
    ] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            help="Scoring scheme: collier2018 (when not given), ilamb27 or ilamb3. May be repeated;"
            " all are in tables and maps, and the report switches between them."
        ),
    ] = None,
    dask: DaskOption = None,
    workers: WorkersOption = None,
    site: SiteOption = None,
    overrides: WorkerSetOption = None,
) -> None:
    """Score prior and posterior runs against reference products and write a report.

    OUT gets scores.csv, scores.parquet, scalar_database.json (CMEC), maps/*.nc, benchmark.json,
    problems.json and report.html; with many maps also pictures/*.png, which the report shows. The
    same OUT again computes only what has changed (results are in OUT/kept). A product that cannot
    be used is named on stderr and makes the exit code 1; the rest is done all the same.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from callmip_global.benchmark import write_report
    from callmip_global.benchmark.call import FREQUENCIES, usable_call
    from callmip_global.benchmark.regions import REGIONS
    from callmip_global.benchmark.run import raise_problems, run_call
    from callmip_global.benchmark.scores import COLLIER2018
    from callmip_global.config.products import load_products
    from callmip_global.parallel import one_by_one
    from callmip_global.regrid import regrid_dataset
    from callmip_global.workflow.lock import held_alone

    require_paths(inputs)
    console = Console(stderr=True)
    chosen = load_products(products)
    workers_of = spread(dask, workers, site, overrides, kind="benchmark", out=out, console=console)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("reading", total=1.0)
        # Before the lock, which makes OUT: a call that cannot be used leaves nothing behind.
        call = usable_call(
            [path for given in inputs for path in _stores_in(given, out)],
            products=chosen,
            frequencies=frequency or FREQUENCIES,
            regions=region or tuple(REGIONS),
            schemes=scheme or (COLLIER2018.name,),
        )
        with (
            held_alone(out / ".lock", "one benchmark of a folder at a time"),
            workers_of as task_map,
        ):
            summary = run_call(
                call,
                out=out,
                regridder=regrid_dataset,
                progress=lambda text, share: bar.update(task, description=text, completed=share),
                task_map=task_map or one_by_one,
            )
            bar.update(task, description="report", completed=1.0)
            report = write_report(out, out=out / "report.html")
    typer.echo(f"{out / 'scores.csv'}\n{report}")
    raise_problems(summary)


def _stores_in(path: Path, out: Path) -> list[Path]:
    """The path itself, or the stores, else the NetCDF files, inside a folder that is no store.

    Not the maps of a benchmark, whose folder ``out`` may lie among the files.
    """
    if not path.is_dir() or (path / "zarr.json").is_file():
        return [path]
    files = [file for file in sorted(path.rglob("*.nc")) if not _is_map(file, out)]
    return sorted(path.glob("*.zarr")) or files or [path]


def _is_map(file: Path, out: Path) -> bool:
    folder = file.parent.parent
    if file.parent.name != "maps":
        return False
    return (folder / "benchmark.json").is_file() or folder.resolve() == out.resolve()
