"""``callmip-global export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from callmip_global.cli.options import require_paths

TARGETS = ("upload", "cf")


def export(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Harmonized stores.")],
    out: Annotated[Path, typer.Option("--out", help="The folder that gets the files.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="What for: upload (the protocol's NetCDF files), or cf (a CF file per variable).",
        ),
    ] = "upload",
    years: Annotated[
        int | None, typer.Option("--years", min=1, help="The last N years (default: all).")
    ] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="Names and attributes: config/protocols/NAME.yaml.")
    ] = "callmip-phase1-global",
) -> None:
    """Write the files that CalLMIP asks for: one per stage and frequency, by simulation.

    With --to cf, one file per variable and frequency instead, in units that every CF tool reads.
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
