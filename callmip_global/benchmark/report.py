"""The report: one HTML file with everything in it, readable without network, server or tools."""

from __future__ import annotations

import base64
import json
import math
import re
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
    is_own_png,
    map_png,
    nice_limit,
    range_scale,
    symmetric_scale,
)
from callmip_global.benchmark.run import ALL_MODELS, CHANGE
from callmip_global.benchmark.tables import Score, cmec, read_scores
from callmip_global.errors import DataError, Problem, counted
from callmip_global.files import name_part, read_json, write_atomic, write_json

SECONDS_PER_DAY = 86400.0
# Fluxes are read per day; scores.csv keeps the units of the variable table.
_CARBON = ("nep", "gpp", "reco", "ra", "rh")
# Pixels across a map; a study of many models gets smaller ones.
_WIDE, _NARROW = 640, 420
_FEW_FILES = 60
_MAP_BYTES = 4_000_000
_NAMED_MODELS = 4
_STAGES = ("Prior", "Posterior", CHANGE)
# Rows of no single run: a product scored against another one, and all members of a model.
_OTHER_PRODUCT = "Reference"
_ENSEMBLE = "ensemble"
_PRODUCT_KEYS = (
    *("variable", "like_for_like", "independent_of_towers", "anomaly", "doi"),
    "uncertainty",
)
_COMPARISON_KEYS = (
    "variable",
    "product",
    "frequency",
    "grid",
    "years",
    "n_months",
    "runs",
    "notes",
)
_OTHER_KEYS = ("product", "years", "of_runs", "scores_present", "taylor")
_SIGNED_FIELDS = ("bias_prior", "bias_posterior")


def write_report(benchmark_dir: Path, *, out: Path) -> Path:
    """Write one self-contained report of a benchmark folder to ``out``; returns ``out``.

    The first 4 MB of maps are inside the page; if there are more, they are written to
    ``benchmark_dir/pictures`` and the page finds them there from its place in ``benchmark_dir``.
    ``benchmark_dir/scalar_database.json`` gets the scores of the first scheme in the form of CMEC.
    Raises DataError when the folder holds no finished benchmark.
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
    subjects = _subjects(summary)
    level = round(100 * summary["bootstrap"]["level"])
    displays = {
        name: _display(name, entry["units"]) for name, entry in summary["variables"].items()
    }
    numbers, totals = _numbers(read_scores(benchmark_dir / "scores.csv"), summary, displays)
    pictures = _pictures(benchmark_dir, summary["comparisons"], displays)
    write_json(benchmark_dir / "scalar_database.json", cmec(summary, numbers))
    data = {
        "runs": [
            {key: run[key] for key in ("model", "simulation", "stage", "member")}
            for run in summary["runs"]
        ],
        "subjects": subjects,
        "regions": summary["regions"],
        "frequencies": summary["frequencies"],
        "level": level,
        "schemes": [scheme["scheme"] for scheme in summary["schemes"]],
        "variables": {
            name: {"display": displays[name][0], "total": _superscript(totals.get(name, ""))}
            for name in summary["variables"]
        },
        "products": {
            product["name"]: {key: product.get(key) for key in _PRODUCT_KEYS}
            for product in summary["products"]
        },
        "comparisons": [
            _comparison(entry, displays[entry["variable"]][1]) for entry in summary["comparisons"]
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
        level=level,
        years=_years(summary["comparisons"]),
        sections=_sections(summary),
        told=_told(summary),
        simulations=list(dict.fromkeys(subject["simulation"] for subject in subjects)),
        data=_script(data),
        numbers={scheme: _script(of) for scheme, of in _without_repeats(numbers).items()},
    )
    write_atomic(out, html)
    return out


def _script(data: Any) -> str:
    """JSON for a script element, which a closing tag inside the data would end."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


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
    return _superscript(units), 1.0


def _superscript(units: str) -> str:
    """``PgC yr-1`` as it is read: PgC yr⁻¹."""
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return re.sub(r"(?<=[a-z])-\d+\b", lambda found: found.group().translate(raised), units)


def _comparison(entry: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """What the page needs of a comparison besides its numbers, in display units."""
    kept = {key: entry[key] for key in _COMPARISON_KEYS}
    kept["schemes"] = {
        name: {"scores": of["scores"], "taylor": _short(of["taylor"])}
        for name, of in entry["schemes"].items()
    }
    kept["cycles"] = {region: _drawn(of, factor) for region, of in entry["cycles"].items()}
    kept["annual"] = {
        region: {"years": of["years"], "series": _drawn(of["series"], factor)}
        for region, of in entry["annual"].items()
    }
    kept["spread_cycles"] = {
        region: {
            simulation: dict(zip(of, _drawn(list(of.values()), factor), strict=True))
            for simulation, of in simulations.items()
        }
        for region, simulations in entry.get("spread_cycles", {}).items()
    }
    models = entry.get("spread_models", {})
    kept["spread_models"] = {simulation: len(names) for simulation, names in models.items()}
    kept["ensembles"] = _short(entry.get("ensembles", []))
    kept["others"] = [
        {key: _short(of[key]) for key in _OTHER_KEYS if key in of}
        for of in entry.get("ceiling", [])
    ]
    return kept


def _short(value: Any) -> Any:
    """The same structure with numbers of four digits."""
    if isinstance(value, dict):
        return {key: _short(of) for key, of in value.items()}
    if isinstance(value, list):
        return [_short(of) for of in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _drawn(series: list[list[float | None]], factor: float) -> list[list[float | None]]:
    """Lines of one chart times ``factor``, in steps finer than a thousandth of its height."""
    known = [v * factor for of in series for v in of if v is not None]
    span = max(known) - min(known) if known else 0.0
    span = span or max(map(abs, known), default=0.0) or 1.0
    places = 3 - math.floor(math.log10(span))
    return [[None if v is None else round(v * factor, places) for v in of] for of in series]


def _numbers(
    rows: Iterable[Score],
    summary: Mapping[str, Any],
    displays: Mapping[str, tuple[str, float]],
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Scheme -> one entry per comparison -> region -> numbers; and units of totals by variable.

    ``v``: quantity -> value of each run of the comparison. ``c``: quantity -> change of each run,
    under the posterior one: a number, or [change, low, high]. ``s``: simulation -> quantity ->
    numbers of all models [prior, posterior, posterior - prior]. ``e``: model and simulation ->
    quantity -> numbers of its members, the same. ``r``: another product -> quantity -> value, as
    if it were a run. ``n``: cells. Rows of none of these kinds are left out. What scores.csv has
    in the units of the variable table is in display units here.
    """
    comparisons = summary["comparisons"]
    number = {(c["variable"], c["product"], c["frequency"]): k for k, c in enumerate(comparisons)}
    position = {
        (run["model"], run["simulation"], run["stage"], run["member"]): k
        for k, run in enumerate(summary["runs"])
    }
    column = [{run: w for w, run in enumerate(c["runs"])} for c in comparisons]
    own_units = {name: entry["units"] for name, entry in summary["variables"].items()}
    totals: dict[str, str] = {}
    found: dict[str, list[dict[str, Any]]] = {
        scheme["scheme"]: [{} for _ in comparisons] for scheme in summary["schemes"]
    }
    for row in rows:
        at = number[row.variable, row.product, row.frequency]
        empty = {"v": {}, "c": {}, "s": {}, "e": {}, "r": {}, "n": 0}
        of: dict[str, Any] = found[row.scheme][at].setdefault(row.region, empty)
        factor = displays[row.variable][1] if row.units == own_units[row.variable] else 1.0
        value = _number(row.value * factor)
        if row.stage == _OTHER_PRODUCT:
            of["r"].setdefault(row.model.removeprefix("product "), {})[row.quantity] = value
            continue
        changed = row.stage == CHANGE
        stage = "Posterior" if changed else row.stage
        run = column[at].get(position.get((row.model, row.simulation, stage, row.member), -1))
        if run is None:
            if row.stage in _STAGES and row.model == ALL_MODELS:
                group = of["s"].setdefault(row.simulation, {})
            elif row.stage in _STAGES and row.member == _ENSEMBLE:
                group = of["e"].setdefault(f"{row.model} {row.simulation}", {})
            else:
                continue
            if row.quantity == "total_spread":
                totals[row.variable] = row.units
            of_stages = group.setdefault(row.quantity, [None] * len(_STAGES))
            of_stages[_STAGES.index(row.stage)] = _with_interval(value, row, factor)
            continue
        blank = [None] * len(column[at])
        of["c" if changed else "v"].setdefault(row.quantity, blank)[run] = (
            _with_interval(value, row, factor) if changed else value
        )
        if row.quantity == "mean":
            of["n"] = max(of["n"], row.n_cells)
    return found, totals


def _without_repeats(numbers: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The same with 0 in place of what is as in the first scheme: most that is not a score."""
    first, *later = numbers
    for scheme in later:
        for of_comparison, of_first in zip(numbers[scheme], numbers[first], strict=True):
            for region, of in of_comparison.items():
                known = of_first.get(region, {"v": {}, "c": {}, "s": {}, "e": {}})
                for part in "vc":
                    of[part] = {
                        name: 0 if values == known[part].get(name) else values
                        for name, values in of[part].items()
                    }
                for part in "se":
                    if of[part] == known[part]:
                        of[part] = 0
    return numbers


def _with_interval(
    value: float | None, row: Score, factor: float
) -> float | list[float | None] | None:
    low, high = _number(row.low * factor), _number(row.high * factor)
    return value if value is None or low is None or high is None else [value, low, high]


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _title(summary: Mapping[str, Any]) -> str:
    models = list(dict.fromkeys(run["model"] for run in summary["runs"]))
    return ", ".join(models) if len(models) <= _NAMED_MODELS else f"{len(models)} models"


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


def _told(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The lines of problems under what became of those that they speak of."""
    products = summary["products"]
    compared = {comparison["product"] for comparison in summary["comparisons"]}
    own = {p["name"]: lines for p in products if (lines := p.get("problems"))}
    groups = {
        "not compared": [name for name in own if name not in compared],
        "compared, with a remark": [name for name in own if name in compared],
    }
    told = [
        (f"{counted(len(names), 'product')} {words}", [line for n in names for line in own[n]])
        for words, names in groups.items()
        if names
    ]
    rest = [text for text in summary["problems"] if not any(text in of for of in own.values())]
    if rest:
        # A benchmark of an earlier version does not say which lines are of a product.
        words = "about runs" if all("problems" in p for p in products) else "in all"
        told.append((f"{counted(len(rest), 'line')} {words}", rest))
    return told


# --- maps -------------------------------------------------------------------------------------


def _pictures(
    folder: Path,
    comparisons: list[dict[str, Any]],
    displays: Mapping[str, tuple[str, float]],
) -> dict[str, Any]:
    """Product -> legends and images: data URIs, and paths in ``pictures`` once those are many."""
    chosen: dict[str, dict[str, Any]] = {}
    for comparison in comparisons:
        # Monthly and annual means are of the same months: one set of maps is enough.
        chosen.setdefault(comparison["product"], comparison)
    files = sum(len(comparison["maps"]) for comparison in chosen.values())
    place = _Place(folder / "pictures", _MAP_BYTES)
    width = _WIDE if files <= _FEW_FILES else _NARROW
    return {
        product: _draw(folder, comparison, displays[comparison["variable"]], width, place)
        for product, comparison in chosen.items()
    }


class _Place:
    """Where images go: into the page until ``budget`` bytes are spent, then into a folder."""

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self._left = budget
        for old in folder.glob("*.png"):
            # The folder may be one with pictures of the user's own.
            if is_own_png(old):
                old.unlink()

    def put(self, png: bytes, name: str) -> str:
        """What the page calls the image."""
        inside = base64.b64encode(png).decode()
        self._left -= len(inside)
        if self._left >= 0:
            return f"data:image/png;base64,{inside}"
        self._folder.mkdir(exist_ok=True)
        (self._folder / f"{name}.png").write_bytes(png)
        return f"{self._folder.name}/{name}.png"


def _draw(
    folder: Path,
    comparison: Mapping[str, Any],
    display: tuple[str, float],
    width: int,
    place: _Place,
) -> dict[str, Any]:
    """Legends and images of one product."""
    units, factor = display
    loaded: list[tuple[dict[str, Any], dict[str, Any]]] = []
    lat_edges = lon_edges = np.empty(0)
    for file in comparison["maps"]:
        # The reference is the same in all files; its uncertainty too, but changes need it.
        skip = {"reference"} if loaded else set()
        with xr.open_dataset(folder / file["file"]) as ds:
            fields = {
                name: np.asarray(ds[name].values * np.float32(factor), np.float32)
                for name in file["fields"]
                if _kind(name) is not None and name not in skip
            }
            lat_edges = _edges(ds["lat_bnds"].values)
            lon_edges = _edges(ds["lon_bnds"].values)
        if "spread_prior" in fields and "spread_posterior" in fields:
            fields["change_of_spread"] = fields["spread_posterior"] - fields["spread_prior"]
        loaded.append((file, fields))
    scales = _scales([fields for _, fields in loaded])
    projection = Projection.of(lat_edges, lon_edges, width) if loaded else None
    images: dict[str, Any] = {"runs": {}, "reference": None, "uncertainty": None, "legends": {}}
    for legend, scale in scales.items():
        images["legends"][legend] = {
            "css": scale.css(),
            "low": _tick(scale.low),
            "middle": _tick(0.5 * (scale.low + scale.high)),
            "high": _tick(scale.high),
            "units": units,
        }
    for file, fields in loaded:
        run = [part for part in (file["model"], file["simulation"], file["member"]) if part]
        label = " ".join(run)
        start = "_".join([name_part(comparison["product"], "_"), *map(name_part, run)])
        for name, values in fields.items():
            kind = _kind(name)
            if kind is None or projection is None or (kind == "uncertainty" and images[kind]):
                continue
            dotted = _within(fields) if name == "misfit_change" else None
            png = map_png(values, projection, scales[kind], dotted)
            uri = place.put(png, f"{start}_{name}")
            if name in ("reference", "uncertainty"):
                images[name] = uri
            else:
                images["runs"].setdefault(label, {})[name] = uri
    return images


def _within(fields: Mapping[str, Any]) -> Any:
    """Cells where the mean changed by no more than the product's uncertainty; None without one."""
    if not {"mean_prior", "mean_posterior", "uncertainty"} <= fields.keys():
        return None
    return np.abs(fields["mean_posterior"] - fields["mean_prior"]) <= fields["uncertainty"]


def _kind(field: str) -> str | None:
    """Which legend a field is drawn with; None for fields that the report does not show."""
    if field in ("reference", "mean_prior", "mean_posterior"):
        return "mean"
    if field in _SIGNED_FIELDS:
        return "bias"
    if field == "misfit_change":
        return "change"
    if field == "change_of_spread":
        return "spread_change"
    if field in ("spread_prior", "spread_posterior"):
        return "spread"
    return "uncertainty" if field == "uncertainty" else None


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
        elif kind in ("change", "spread_change"):
            scales[kind] = symmetric_scale(maps, "change")
        elif kind in ("spread", "uncertainty"):
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
