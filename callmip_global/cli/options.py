"""Options and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from callmip_global.errors import Problem, UsageError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, e.g. output.grid=2deg."),
]


def require_paths(paths: Iterable[Path]) -> None:
    """UsageError that names every path that is not there."""
    missing = [Problem(str(path), found="nothing there") for path in paths if not path.exists()]
    if missing:
        raise UsageError(missing)


def print_json(value: Any) -> None:
    """Indented JSON on stdout, without colours."""
    print(json.dumps(value, indent=1))
