"""``callmip-global export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from callmip_global.cli.options import require_paths

if TYPE_CHECKING:
    from rich.console import Console

    from callmip_global.export.ilamb import Reference
    from callmip_global.export.ilamb_setup import Tool

TARGETS = ("upload", "cf", "ilamb", "ilamb3")


def export(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Harmonized stores.")],
    out: Annotated[Path, typer.Option("--out", help="The folder that gets the files.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="What for: upload (the protocol's NetCDF files), cf (a CF file per variable), "
            "ilamb or ilamb3 (a folder that ILAMB 2.7 or ilamb3 runs on).",
        ),
    ] = "upload",
    years: Annotated[
        int | None, typer.Option("--years", min=1, help="The last N years (default: all).")
    ] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="Names and attributes: config/protocols/NAME.yaml.")
    ] = "callmip-phase1-global",
    products: Annotated[
        Path | None,
        typer.Option("--products", "-p", help="Products file: references for ilamb and ilamb3."),
    ] = None,
) -> None:
    """Write the files that CalLMIP asks for: one per stage and frequency, by simulation.

    With --to cf, one file per variable and frequency instead, in units that every CF tool reads.
    With --to ilamb or ilamb3, a folder with data, configuration and the command that runs it.
    """
    from rich.console import Console
    from rich.progress import Progress

    from callmip_global.config.protocol import load_protocol
    from callmip_global.data import data_path
    from callmip_global.errors import Problem, UsageError
    from callmip_global.export import export_cf, export_upload
    from callmip_global.export.upload import ATTRIBUTES

    if to not in TARGETS:
        raise UsageError(Problem("--to", found=repr(to), wanted=f"one of: {', '.join(TARGETS)}"))
    for tool in ("ilamb", "ilamb3"):
        if to == tool:
            require_paths([*stores, *([products] if products else [])])
            _export_ilamb(stores, out, tool, years, products, Console(stderr=True))
            return
    if products is not None:
        raise UsageError(Problem("--products", found=f"--to {to}", wanted="--to ilamb or ilamb3"))
    try:
        path = data_path("config", "protocols", f"{protocol}.yaml")
    except FileNotFoundError as error:
        raise UsageError(Problem("--protocol", found=repr(protocol), remedy=str(error))) from None
    rules, _ = load_protocol(path)
    require_paths(stores)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)

        def tell(text: str, share: float) -> None:
            bar.update(task, description=text, completed=share)

        said = {**ATTRIBUTES, **rules.attributes}
        if to == "cf":
            files = export_cf(stores, out=out, years=years, attributes=said, progress=tell)
        else:
            files = export_upload(
                stores,
                out=out,
                years=years,
                file_name=rules.file_name,
                attributes=said,
                progress=tell,
            )
    for file in files:
        print(file)


def _export_ilamb(
    stores: list[Path],
    out: Path,
    tool: Tool,
    years: int | None,
    products: Path | None,
    console: Console,
) -> None:
    """Write the folder, print its command, say what is to be known; DataError with problems."""
    import xarray as xr
    from rich.progress import Progress

    from callmip_global.errors import DataError
    from callmip_global.export import export_ilamb
    from callmip_global.grid import Grid
    from callmip_global.regrid import regrid_dataset

    def regridder(ds: xr.Dataset, grid: Grid) -> xr.Dataset:
        return regrid_dataset(ds, grid=grid)

    references = [] if products is None else _references(products)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        done = export_ilamb(
            stores,
            out=out,
            tool=tool,
            references=references,
            regridder=regridder,
            years=years,
            progress=lambda text, share: bar.update(task, description=text, completed=share),
        )
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{out / 'README.txt'}\n{done.command}")
    if done.problems:
        raise DataError(done.problems)


def _references(path: Path) -> list[Reference]:
    """The products of a products file, not yet opened."""
    from functools import partial

    from callmip_global.benchmark.series import product_series
    from callmip_global.config.products import load_products
    from callmip_global.export.ilamb import Reference

    found = []
    for product in load_products(path):
        files = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in product.files()
        ]
        told = {
            "source": product.version,
            "references": product.doi,
            "license": product.licence,
            "comment": product.note,
        }
        found.append(
            Reference(
                name=product.name,
                variable=product.variable,
                open_series=partial(product_series, product),
                identity=f"{product!r} {files}",
                static=product.static,
                anomaly=product.anomaly,
                window=product.window,
                about={key: text for key, text in told.items() if text not in ("", "unknown")},
            )
        )
    return found
