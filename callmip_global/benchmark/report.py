"""The report: one HTML file with everything in it, readable without network, server or tools."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from callmip_global import __version__
from callmip_global.benchmark.pictures import (
    Projection,
    Scale,
    map_png,
    nice_limit,
    range_scale,
    symmetric_scale,
)
from callmip_global.benchmark.run import ALL_MODELS, CHANGE
from callmip_global.benchmark.tables import Score, number_text, read_scores
from callmip_global.errors import DataError, Problem
from callmip_global.files import read_json, write_atomic

SECONDS_PER_DAY = 86400.0
# Fluxes are read per day; scores.csv keeps the units of the variable table.
_CARBON = ("nep", "gpp", "reco", "ra", "rh")
_MAP_WIDTHS = (640, 520, 400, 300)
_MAP_BYTES = 4_500_000
_SIGNED_FIELDS = ("bias_prior", "bias_posterior")


def write_report(benchmark_dir: Path, *, out: Path) -> Path:
    """Write one self-contained report of a benchmark folder to ``out``; returns ``out``.

    Raises DataError when the folder holds no finished benchmark. Maps get smaller, and the last
    ones are left out (they stay in the folder), where the file would exceed about 8 MB.
    """
    source = benchmark_dir / "benchmark.json"
    if not source.is_file():
        raise DataError(
            Problem(
                str(benchmark_dir),
                found="no benchmark.json",
                wanted="the folder that a benchmark was written to",
            )
        )
    summary = read_json(source)
    rows = [
        row for row in read_scores(benchmark_dir / "scores.csv") if row.scheme == summary["scheme"]
    ]
    subjects = _subjects(summary)
    displays = {
        name: _display(name, entry["units"]) for name, entry in summary["variables"].items()
    }
    pictures, left_out = _pictures(benchmark_dir, summary["comparisons"], displays)
    data = {
        "runs": summary["runs"],
        "subjects": subjects,
        "regions": summary["regions"],
        "frequencies": summary["frequencies"],
        "variables": {
            name: {**entry, "display": displays[name][0], "factor": displays[name][1]}
            for name, entry in summary["variables"].items()
        },
        "products": {product["name"]: product for product in summary["products"]},
        "comparisons": [
            _comparison(c, [r for r in rows if _belongs(r, c)], summary["runs"])
            for c in summary["comparisons"]
        ],
        "pictures": pictures,
    }
    environment = Environment(
        loader=PackageLoader("callmip_global.benchmark", "."),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        summary=summary,
        version=__version__,
        title=_title(summary),
        years=_years(summary["comparisons"]),
        sections=_sections(summary),
        left_out=left_out,
        # A closing tag inside the data would end the script element.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"),
    )
    write_atomic(out, html)
    return out


def _subjects(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Model, simulation and member with the positions of their prior and posterior runs."""
    runs = summary["runs"]
    found = [(prior, posterior) for prior, posterior in summary["pairs"]]
    paired = {k for pair in found for k in pair}
    alone = [
        (k, None) if run["stage"] == "Prior" else (None, k)
        for k, run in enumerate(runs)
        if k not in paired
    ]
    subjects = []
    for prior, posterior in sorted(found + alone, key=lambda p: min(k for k in p if k is not None)):
        run = runs[posterior if posterior is not None else prior]
        parts = (run["model"], run["simulation"], run["member"])
        subjects.append(
            {
                "label": " ".join(part for part in parts if part),
                "model": run["model"],
                "simulation": run["simulation"],
                "member": run["member"],
                "prior": prior,
                "posterior": posterior,
            }
        )
    return subjects


def _display(variable: str, units: str) -> tuple[str, float]:
    """Units that people read, and the factor from those of the table."""
    if units == "kg m-2 s-1" and variable in _CARBON:
        return "gC m⁻² d⁻¹", 1000.0 * SECONDS_PER_DAY
    if units == "kg m-2 s-1":
        return "mm d⁻¹", SECONDS_PER_DAY
    if variable == "lai":
        return "m² m⁻²", 1.0
    return units.replace("m-2", "m⁻²"), 1.0


def _belongs(row: Score, comparison: Mapping[str, Any]) -> bool:
    return (row.variable, row.product, row.frequency) == (
        comparison["variable"],
        comparison["product"],
        comparison["frequency"],
    )


def _comparison(
    entry: Mapping[str, Any], rows: Iterable[Score], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The entry with its numbers: region -> run -> quantity, changes under the posterior run."""
    position = {
        (run["model"], run["simulation"], run["stage"], run["member"]): k
        for k, run in enumerate(runs)
    }
    values: dict[str, dict[str, dict[str, float | None]]] = {}
    changes: dict[str, dict[str, dict[str, float | None]]] = {}
    spreads: dict[str, dict[str, dict[str, float | None]]] = {}
    cells: dict[str, int] = {}
    for row in rows:
        text = number_text(row.value)
        value = float(f"{float(text):.5g}") if text else None
        if row.model == ALL_MODELS:
            key = row.stage if row.quantity == "spread" else "reduction"
            spreads.setdefault(row.region, {}).setdefault(row.simulation, {})[key] = value
            continue
        stage = "Posterior" if row.stage == CHANGE else row.stage
        run = str(position[row.model, row.simulation, stage, row.member])
        table = changes if row.stage == CHANGE else values
        table.setdefault(row.region, {}).setdefault(run, {})[row.quantity] = value
        if row.quantity == "mean":
            cells[row.region] = max(row.n_cells, cells.get(row.region, 0))
    kept = {k: v for k, v in entry.items() if k not in ("maps", "schemes")}
    return {**kept, "values": values, "changes": changes, "spreads": spreads, "cells": cells}


def _title(summary: Mapping[str, Any]) -> str:
    return ", ".join(dict.fromkeys(run["model"] for run in summary["runs"]))


def _years(comparisons: list[dict[str, Any]]) -> str:
    if not comparisons:
        return "none"
    first = min(c["years"][0] for c in comparisons)
    last = max(c["years"][1] for c in comparisons)
    return f"{first}–{last}"


def _sections(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One section per product that could be compared, with its frequencies."""
    products = {product["name"]: product for product in summary["products"]}
    sections: dict[str, dict[str, Any]] = {}
    for number, comparison in enumerate(summary["comparisons"]):
        section = sections.setdefault(
            comparison["product"],
            {
                "product": products[comparison["product"]],
                "variable": comparison["variable"],
                "long_name": summary["variables"][comparison["variable"]]["long_name"],
                "numbers": [],
            },
        )
        section["numbers"].append(number)
    return list(sections.values())


# --- maps -------------------------------------------------------------------------------------


def _pictures(
    folder: Path,
    comparisons: list[dict[str, Any]],
    displays: Mapping[str, tuple[str, float]],
) -> tuple[dict[str, Any], int]:
    """Product -> legends and images as data URIs, and the number of maps that did not fit."""
    chosen: dict[str, dict[str, Any]] = {}
    for comparison in comparisons:
        # Monthly and annual means are of the same months: one set of maps is enough.
        chosen.setdefault(comparison["product"], comparison)
    for width in _MAP_WIDTHS:
        budget = _MAP_BYTES
        pictures: dict[str, Any] = {}
        left_out = 0
        for product, comparison in chosen.items():
            drawn, size, missed = _draw(
                folder, comparison, displays[comparison["variable"]], width, budget
            )
            pictures[product] = drawn
            budget -= size
            left_out += missed
        if left_out == 0:
            break
    return pictures, left_out


def _draw(
    folder: Path,
    comparison: Mapping[str, Any],
    display: tuple[str, float],
    width: int,
    budget: int,
) -> tuple[dict[str, Any], int, int]:
    """Legends and images of one product; bytes used; maps left out."""
    units, factor = display
    loaded: list[tuple[dict[str, Any], dict[str, Any]]] = []
    lat_edges = lon_edges = np.empty(0)
    for file in comparison["maps"]:
        with xr.open_dataset(folder / file["file"]) as ds:
            fields = {
                name: np.asarray(ds[name].values, np.float64) * factor
                for name in file["fields"]
                if not name.endswith("_score_prior") and not name.endswith("_score_posterior")
            }
            lat_edges = _edges(ds["lat_bnds"].values)
            lon_edges = _edges(ds["lon_bnds"].values)
        loaded.append((file, fields))
    scales = _scales([fields for _, fields in loaded])
    projection = Projection.of(lat_edges, lon_edges, width)
    images: dict[str, Any] = {"runs": {}, "reference": None, "legends": {}}
    for legend, scale in scales.items():
        images["legends"][legend] = {
            "css": scale.css(),
            "low": _tick(scale.low),
            "middle": _tick(0.5 * (scale.low + scale.high)),
            "high": _tick(scale.high),
            "units": units,
        }
    used = missed = 0
    for file, fields in loaded:
        label = " ".join(p for p in (file["model"], file["simulation"], file["member"]) if p)
        for name, values in fields.items():
            kind = _kind(name)
            if kind is None or (name == "reference" and images["reference"] is not None):
                continue
            png = base64.b64encode(map_png(values, projection, scales[kind])).decode()
            if used + len(png) > budget:
                missed += 1
                continue
            used += len(png)
            uri = f"data:image/png;base64,{png}"
            if name == "reference":
                images["reference"] = uri
            else:
                images["runs"].setdefault(label, {})[name] = uri
    return images, used, missed


def _kind(field: str) -> str | None:
    """Which legend a field is drawn with; None for fields that the report does not show."""
    if field == "reference" or field.startswith("mean_"):
        return "mean"
    if field in _SIGNED_FIELDS:
        return "bias"
    if field == "misfit_change":
        return "change"
    return "spread" if field.startswith("spread_") else None


def _scales(files: list[dict[str, Any]]) -> dict[str, Scale]:
    grouped: dict[str, list[Any]] = {}
    for fields in files:
        for name, values in fields.items():
            kind = _kind(name)
            if kind is not None:
                grouped.setdefault(kind, []).append(values)
    scales: dict[str, Scale] = {}
    for kind, maps in grouped.items():
        if kind == "bias":
            scales[kind] = symmetric_scale(maps, "diverging")
        elif kind == "change":
            scales[kind] = symmetric_scale(maps, "change")
        elif kind == "spread":
            values = np.concatenate([m[np.isfinite(m)] for m in maps])
            top = float(np.percentile(values, 98.0)) if values.size else 1.0
            scales[kind] = Scale("sequential", 0.0, nice_limit(top))
        else:
            scales[kind] = range_scale(maps)
    return scales


def _edges(bounds: Any) -> Any:
    return np.append(bounds[:, 0], bounds[-1, 1])


def _tick(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return "0"
    return f"{value:.3g}".replace("-", "−")
