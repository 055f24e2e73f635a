"""The report of what became of a submission, or of a whole collection, as one HTML file.

Everything is in the file: it opens without network, server or tools, and can be sent by mail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from os.path import commonpath
from pathlib import Path
from typing import Any

from callmip_global import __version__
from callmip_global.files import write_atomic
from callmip_global.harmonize.rules import RULES
from callmip_global.variables import known_variable, variable_table

_OUTCOMES = ("accepted", "fixed", "refused")


def write_report(rows: Iterable[Mapping[str, Any]], *, out: Path) -> Path:
    """Write the report of ``rows`` to ``out``, whole or not at all; returns ``out``.

    rows : those of report.json (path, variable, outcome, rules, message), in the report of a
        collection each with its ``run``
    The same rows give the same bytes.
    """
    # Loading jinja2 takes longer than many a check.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    listed = [dict(row) for row in rows]
    environment = Environment(
        loader=PackageLoader("callmip_global.harmonize", "."),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        version=__version__,
        counts={o: sum(row["outcome"] == o for row in listed) for o in _OUTCOMES},
        # A closing tag inside the data would end the script element.
        data=json.dumps(_data(listed), separators=(",", ":"), allow_nan=False).replace(
            "</", "<\\/"
        ),
    )
    write_atomic(out, html)
    return out


def _data(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page draws: texts that occur often are written once and pointed to.

    ``rows``: [run, path, variable, outcome, rules, message], the first five by position in the
    lists beside them; paths without the folder that all have in common.
    """
    paths = sorted({str(row["path"]) for row in rows})
    top = _top([path for path in paths if path])
    runs = sorted({str(row.get("run", "")) for row in rows}, key=_by_number)
    variables = _ordered({str(row["variable"]) for row in rows})
    rules = sorted({rule for row in rows for rule in row["rules"]})
    messages = sorted({str(row["message"]) for row in rows})
    at = {
        kind: {text: i for i, text in enumerate(texts)}
        for kind, texts in (
            ("run", runs),
            ("path", paths),
            ("variable", variables),
            ("rule", rules),
            ("message", messages),
        )
    }
    table = variable_table()
    return {
        "top": top,
        "runs": runs,
        "paths": [path.removeprefix(top) for path in paths],
        "variables": [
            [name, var.long_name if (var := known_variable(name)) else ""] for name in variables
        ],
        "requested": [[n, entry.long_name] for n, entry in table.items() if entry.requested],
        "rules": [[r, RULES[r].kind, RULES[r].does, RULES[r].evidence] for r in rules],
        "messages": [text.replace(top, "") if top else text for text in messages],
        "rows": [
            [
                at["run"][str(row.get("run", ""))],
                at["path"][str(row["path"])],
                at["variable"][str(row["variable"])],
                _OUTCOMES.index(row["outcome"]),
                [at["rule"][rule] for rule in row["rules"]],
                at["message"][str(row["message"])],
            ]
            for row in rows
        ],
    }


def _top(paths: Sequence[str]) -> str:
    """The folder, with its slash, that all absolute paths lie in; empty where there is none."""
    folders = [path.rpartition("/")[0] for path in paths]
    if not folders or not all(folders) or len({path.startswith("/") for path in paths}) > 1:
        return ""
    top = commonpath(folders)
    return f"{top}/" if top not in ("", "/") else ""


def _by_number(text: str) -> list[tuple[int, str]]:
    """Sorts M2 before M10."""
    return [(int(part or 0), word) for word, part in re.findall(r"(\D*)(\d*)", text)]


def _ordered(names: set[str]) -> list[str]:
    """Those of the variable table in its order, then the others by name."""
    table = [name for name in variable_table() if name in names]
    return table + sorted(names - set(table))
