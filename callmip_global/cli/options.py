"""Options and output that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, e.g. output.grid=2deg."),
]


def print_json(value: Any) -> None:
    """Indented JSON on stdout, without colours."""
    print(json.dumps(value, indent=1))
