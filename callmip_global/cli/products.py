"""``callmip-global products``: the catalogue of reference products, and a look at own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from callmip_global.cli.options import require_paths


def products(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[PRODUCTS]", help="Products file (products: {NAME: {...}})."),
    ] = None,
    variable: Annotated[
        list[str] | None, typer.Option(help="Only products of this variable. May be repeated.")
    ] = None,
) -> None:
    """List the catalogue of reference products, or look at the files of a products file.

    With PRODUCTS every file is read: one line for each product that is in order, on stderr one for
    each fault, and for each product that is missing where groups get it. Exit code 1 if any is.
    """
    from callmip_global.config.products import catalogue_lines, load_products
    from callmip_global.errors import EXIT_PROBLEMS
    from callmip_global.variables import variable as known

    for name in variable or ():
        known(name, "--variable")
    if file is None:
        typer.echo("\n".join(catalogue_lines(variable)))
        return
    from callmip_global.benchmark.product_check import check_products

    require_paths([file])
    chosen = [p for p in load_products(file) if not variable or p.variable in variable]
    faults = 0
    for product, findings in check_products(chosen):
        for finding in findings:
            typer.echo(str(finding.problem), err=True)
        faults += len(findings)
        if not findings:
            count = len(product.files())
            typer.echo(f"product {product.name}: {product.variable}: {count} files in order")
    if faults:
        raise typer.Exit(EXIT_PROBLEMS)
