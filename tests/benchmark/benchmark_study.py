"""What a benchmark of twenty models writes, made without running one: for tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from callmip_global.benchmark.regions import REGIONS
from callmip_global.benchmark.run import ALL_MODELS, CHANGE
from callmip_global.benchmark.scores import SCHEMES
from callmip_global.benchmark.tables import Score, write_scores
from callmip_global.grid import Grid
from callmip_global.store import grid_variables
from callmip_global.variables import variable_table

VARIABLES = (
    *("nep", "gpp", "reco", "hfls", "hfss", "tran", "evspsblsoi"),
    *("hfg", "ts", "lai", "cLiveBioAbove", "cSoil", "mrsos", "mrso"),
)
STAGES = ("Prior", "Posterior")


def write_study(
    folder: Path,
    *,
    models: int = 20,
    variables: tuple[str, ...] = VARIABLES,
    schemes: tuple[str, ...] = ("collier2018", "ilamb27", "ilamb3"),
    regions: tuple[str, ...] = tuple(REGIONS),
    mapped: int = 0,
    cells: tuple[int, int] = (18, 36),
) -> Path:
    """benchmark.json, scores.csv and maps of the first ``mapped`` products; returns ``folder``.

    Two products per variable. Every third model misses the last variable, every fifth has no
    posterior; one product is not like for like, and small changes are not significant.
    """
    rng = np.random.default_rng(1)
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    runs, pairs = _runs(models)
    products = [_product(f"{v}-{k}", v, k) for v in variables for k in ("satellite", "upscaled")]
    comparisons, rows = [], []
    for number, product in enumerate(products):
        last = product["variable"] == variables[-1]
        present = [k for k, r in enumerate(runs) if not (last and int(r["model"][6:8]) % 3 == 0)]
        entry = _comparison(product, present, schemes, regions, rng)
        rows += _rows(entry, runs, pairs, rng)
        if number < mapped:
            entry["maps"] = list(_maps(folder, entry, runs, pairs, Grid("g", *_edges(cells)), rng))
        comparisons.append(entry)
    write_scores(folder / "scores.csv", rows)
    texts = [
        {
            "scheme": name,
            "citation": SCHEMES[name].citation,
            "formulas": [list(pair) for pair in SCHEMES[name].formulas],
            "weights": dict(SCHEMES[name].weights),
        }
        for name in schemes
    ]
    summary = {
        **texts[0],
        "schemes": texts,
        "minimum": {"months": 12, "years": 3},
        "bootstrap": {"draws": 200, "level": 0.95, "minimum_years": 5},
        "versions": {"callmip-global": "test"},
        "synthetic": ["random numbers in the shape of a benchmark of twenty models"],
        "frequencies": ["mon"],
        "regions": [
            {"name": r.name, "title": r.title} for r in (REGIONS[name] for name in regions)
        ],
        "variables": {
            name: {"long_name": entry.long_name, "units": entry.units}
            for name, entry in variable_table().items()
            if name in variables
        },
        "runs": runs,
        "pairs": pairs,
        "products": products,
        "comparisons": comparisons,
        "problems": ["product gone: gpp: found no file, wanted gone/*.nc"],
        "notes": [],
    }
    (folder / "benchmark.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def _runs(models: int) -> tuple[list[dict[str, Any]], list[list[int]]]:
    runs: list[dict[str, Any]] = []
    pairs = []
    for m in range(models):
        for stage in STAGES:
            if stage == "Posterior" and m % 5 == 4:
                continue
            if stage == "Posterior":
                pairs.append([len(runs) - 1, len(runs)])
            runs.append(
                {
                    "model": f"MODEL-{m + 1:02d}.v1",
                    "simulation": "S3",
                    "stage": stage,
                    "member": "",
                    "grid": "test",
                    "synthetic": "",
                    "paths": [f"MODEL-{m + 1:02d}.v1_S3_{stage}.zarr"],
                    "digests": {"mon": "0" * 64},
                }
            )
    return runs, pairs


def _product(name: str, variable: str, kind: str) -> dict[str, Any]:
    return {
        "name": name,
        "variable": variable,
        "kind": kind,
        "version": "1",
        "doi": "unknown",
        "licence": "unknown",
        "independent_of_towers": kind == "satellite",
        "like_for_like": name != "nep-satellite",
        "static": False,
        "anomaly": variable == "mrso",
        "window": None,
        "source": None,
        "units": None,
        "factor": 1.0,
        "sign": 1,
        "note": "",
        "files": {},
    }


def _comparison(
    product: dict[str, Any],
    present: list[int],
    schemes: tuple[str, ...],
    regions: tuple[str, ...],
    rng: Any,
) -> dict[str, Any]:
    size = 1.0 if variable_table()[product["variable"]].units != "kg m-2 s-1" else 2e-8
    cycle = size * (2.0 + np.cos(2 * np.pi * (np.arange(12) - 6) / 12))
    years = list(range(2001, 2021))
    one = len(present) + 1
    of_schemes = {
        name: {
            "scores": list(SCHEMES[name].applicable("mon", anomaly=product["anomaly"])),
            "scores_present": {},
            "taylor": {
                region: [
                    [float(v) for v in (0.6 + 0.9 * rng.random(), 0.5 + 0.45 * rng.random())]
                    for _ in present
                ]
                for region in regions
            },
        }
        for name in schemes
    }
    for of in of_schemes.values():
        of["scores_present"] = {r: [len(of["scores"])] * len(present) for r in regions}
    return {
        "variable": product["variable"],
        "product": product["name"],
        "frequency": "mon",
        "grid": "180 × 360 cells of 1° × 1°",
        "years": [years[0], years[-1]],
        "n_months": 240,
        "n_cells": 15000,
        "units": variable_table()[product["variable"]].units,
        **of_schemes[schemes[0]],
        "schemes": of_schemes,
        "runs": present,
        "cycles": {
            region: [(cycle * f).tolist() for f in [1.0, *(0.6 + 0.9 * rng.random(one - 1))]]
            for region in regions
        },
        "annual": {
            region: {
                "years": years,
                "series": (size * (2.0 + 0.2 * rng.random((one, len(years))))).tolist(),
            }
            for region in regions
        },
        "maps": [],
        "notes": [],
    }


def _rows(
    entry: dict[str, Any], runs: list[dict[str, Any]], pairs: list[list[int]], rng: Any
) -> Iterator[Score]:
    size = 1.0 if entry["units"] != "kg m-2 s-1" else 2e-8
    for scheme, of in entry["schemes"].items():

        def row(
            model: str,
            stage: str,
            region: str,
            name: str,
            value: float,
            half: float = math.nan,
            scheme: str = scheme,
        ) -> Score:
            of_row = (entry["variable"], entry["product"], model, "S3", stage, "", region)
            units = "1" if name.endswith(("_score", "_reduction")) else entry["units"]
            ends = (value - half, value + half)
            return Score(*of_row, "mon", scheme, name, value, units, 15000, 240, *ends)

        for region in entry["cycles"]:
            raw = ("reference_mean", "mean", "bias", "absolute_bias", "rmse")
            names = [*raw, *of["scores"], "overall_score"]
            skill = 0.25 + 0.5 * rng.random(len(runs))
            found = {}
            for k in entry["runs"]:
                for name in names:
                    scale = 0.7 + 0.4 * rng.random()
                    value = min(1.0, skill[k] * scale) * (1 if name.endswith("_score") else size)
                    found[k, name] = value if name != "reference_mean" else 2 * size
                    yield row(runs[k]["model"], runs[k]["stage"], region, name, found[k, name])
            for i, j in pairs:
                for name in names[1:] if j in entry["runs"] else ():
                    change = found[j, name] - found[i, name]
                    half = 0.05 * (1 if name.endswith("_score") else size) * (1 + rng.random())
                    yield row(runs[j]["model"], CHANGE, region, name, change, half)
            before = size * (0.3 + 0.2 * rng.random())
            after = before * (0.4 + 0.8 * rng.random())
            yield row(ALL_MODELS, "Prior", region, "spread", before)
            yield row(ALL_MODELS, "Posterior", region, "spread", after)
            yield row(ALL_MODELS, CHANGE, region, "spread", after - before)
            yield row(ALL_MODELS, CHANGE, region, "spread_reduction", 1 - after / before, 0.08)


def _edges(cells: tuple[int, int]) -> tuple[Any, Any]:
    return np.linspace(-90, 90, cells[0] + 1), np.linspace(-180, 180, cells[1] + 1)


def _maps(
    folder: Path,
    entry: dict[str, Any],
    runs: list[dict[str, Any]],
    pairs: list[list[int]],
    grid: Grid,
    rng: Any,
) -> Iterator[dict[str, Any]]:
    size = 1.0 if entry["units"] != "kg m-2 s-1" else 2e-8
    wave = np.cos(np.deg2rad(grid.lat))[:, None] * (1 + 0.4 * np.sin(np.deg2rad(2 * grid.lon)))
    land = np.sin(np.deg2rad(grid.lon * 1.7))[None, :] + np.sin(np.deg2rad(3 * grid.lat))[:, None]
    reference = np.where(land > -0.4, 2 * size * wave, np.nan)

    def write(name: str, fields: dict[str, Any], **of: str) -> dict[str, Any]:
        path = f"maps/{entry['product']}_{name}.nc"
        variables = {n: (("lat", "lon"), v.astype(np.float32)) for n, v in fields.items()}
        xr.Dataset(variables, coords=grid_variables(grid)).to_netcdf(folder / path)
        return {"file": path, "simulation": "S3", "member": "", "fields": list(fields), **of}

    for i, j in pairs:
        if j not in entry["runs"]:
            continue
        bias = {
            stage: size
            * rng.normal()
            * np.sin(np.deg2rad(grid.lat * 2 + 90 * rng.random()))[:, None]
            for stage in ("prior", "posterior")
        }
        fields = {"reference": reference}
        for stage, off in bias.items():
            fields |= {f"mean_{stage}": reference + off, f"bias_{stage}": reference * 0 + off}
        change = np.abs(fields["bias_posterior"]) - np.abs(fields["bias_prior"])
        yield write(runs[i]["model"], fields | {"misfit_change": change}, model=runs[i]["model"])
    spread = {f"spread_{s}": reference * f for s, f in (("prior", 0.4), ("posterior", 0.25))}
    yield write("all-models", spread, model=ALL_MODELS)
