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
    members: int = 0,
    plain: bool = False,
) -> Path:
    """benchmark.json, scores.csv and maps of the first ``mapped`` products; returns ``folder``.

    Two products per variable. Every third model misses the last variable, every fifth has no
    posterior; one product is not like for like, and small changes are not significant. The
    satellite products have an uncertainty, every second model states that of its posterior.
    ``members``: as many in each of the first two models. ``plain``: nothing but scores, changes and
    a spread, as the first benchmarks had.
    """
    rng = np.random.default_rng(1)
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    runs, pairs = _runs(models, members)
    products = [_product(f"{v}-{k}", v, k) for v in variables for k in ("satellite", "upscaled")]
    comparisons, rows = [], []
    for number, product in enumerate(products):
        last = product["variable"] == variables[-1]
        present = [k for k, r in enumerate(runs) if not (last and int(r["model"][6:8]) % 3 == 0)]
        entry = _comparison(product, present, schemes, regions, rng)
        rows += _rows(entry, runs, pairs, rng, plain=plain)
        if number < mapped:
            entry["maps"] = list(_maps(folder, entry, runs, pairs, Grid("g", *_edges(cells)), rng))
        if not plain:
            product["uncertainty"] = "sigma" if _uncertain(entry) else None
            entry |= _more(entry, runs, rng)
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


def _runs(models: int, members: int) -> tuple[list[dict[str, Any]], list[list[int]]]:
    runs: list[dict[str, Any]] = []
    pairs = []
    own = {0: members, 1: members}
    names = [
        (m, f"r{k + 1}" if own.get(m) else "")
        for m in range(models)
        for k in range(own.get(m) or 1)
    ]
    for m, member in names:
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
                    "member": member,
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
    units = variable_table()[product["variable"]].units
    size = _size({"variable": product["variable"], "units": units})
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
        "units": units,
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


def _size(entry: dict[str, Any]) -> float:
    """An ordinary value of the variable, in its units."""
    if entry["units"] != "kg m-2 s-1":
        return 1.0
    return 2e-8 if entry["variable"] in ("nep", "gpp", "reco") else 2e-5


def _uncertain(entry: dict[str, Any]) -> bool:
    return bool(entry["product"].endswith("-satellite"))


def _other(entry: dict[str, Any]) -> str:
    """The other product of the variable."""
    kind = "upscaled" if _uncertain(entry) else "satellite"
    return f"{entry['variable']}-{kind}"


def _ensembles(entry: dict[str, Any], runs: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Model and stage -> members, of those that have three."""
    found: dict[tuple[str, str], int] = {}
    for k in entry["runs"]:
        of = runs[k]["model"], runs[k]["stage"]
        found[of] = found.get(of, 0) + 1
    return {of: n for of, n in found.items() if n >= 3}


def _more(entry: dict[str, Any], runs: list[dict[str, Any]], rng: Any) -> dict[str, Any]:
    """The keys of a comparison that a benchmark may have or not."""
    size = _size(entry)
    regions, season = list(entry["cycles"]), 1 + 0.3 * np.cos(2 * np.pi * np.arange(12) / 12)
    ensembles = []
    for (model, stage), n in _ensembles(entry, runs).items():
        # The prior's members lie around the product, the posterior's all on one side of it.
        tilt = np.ones(n + 1) if stage == "Prior" else np.linspace(4, 0.4, n + 1)
        shares = {r: tilt * (0.7 + 0.6 * rng.random(n + 1)) for r in regions}
        ensembles.append(
            {
                "model": model,
                "simulation": "S3",
                "stage": stage,
                "members": n,
                "rank_histogram": {r: (h / h.sum()).tolist() for r, h in shares.items()},
            }
        )
    best = {
        scheme: {region: 0.6 + 0.15 * float(rng.random()) for region in regions}
        for scheme in entry["schemes"]
    }
    taylor = {
        scheme: {region: [0.8 + 0.3 * float(rng.random()), 0.9] for region in regions}
        for scheme in entry["schemes"]
    }
    other = {
        "product": _other(entry),
        "years": entry["years"],
        "n_months": entry["n_months"],
        "of_runs": True,
        "overall": best,
        "taylor": taylor,
    }
    both = [{runs[k]["model"] for k in entry["runs"] if runs[k]["stage"] == s} for s in STAGES]
    return {
        "spread_models": {"S3": sorted(both[0] & both[1])},
        "spread_cycles": {
            region: {
                "S3": {
                    stage: (size * share * season * (0.3 + 0.2 * rng.random())).tolist()
                    for stage, share in (("Prior", 1.0), ("Posterior", 0.6))
                }
            }
            for region in regions
        },
        "ensembles": ensembles,
        "ceiling": [other],
    }


_Row = tuple[Any, ...]
_UNITLESS = ("_score", "_reduction", "_coverage", "_skill", "_share")


def _rows(
    entry: dict[str, Any],
    runs: list[dict[str, Any]],
    pairs: list[list[int]],
    rng: Any,
    *,
    plain: bool,
) -> Iterator[Score]:
    """Scores are those of each scheme, all other numbers the same in all of them."""
    size = _size(entry)

    def row(
        model: str,
        stage: str,
        member: str,
        region: str,
        name: str,
        value: float,
        half: float = math.nan,
    ) -> _Row:
        """All columns but the scheme, which comes after the eighth."""
        of_row = (entry["variable"], entry["product"], model, "S3" if stage != "Reference" else "")
        units = "1" if name.endswith(_UNITLESS) else entry["units"]
        if name == "total_spread" and entry["units"] == "kg m-2 s-1":
            units = "PgC yr-1"
        ends = (value - half, value + half)
        return (*of_row, stage, member, region, "mon", name, value, units, 15000, 240, *ends)

    def of_runs(region: str, names: list[str], skill: Any) -> Iterator[_Row]:
        found = {}
        for k in entry["runs"]:
            for name in names:
                scale = 0.7 + 0.4 * rng.random()
                value = min(1.0, skill[k] * scale) * (1 if name.endswith("_score") else size)
                found[k, name] = value if name != "reference_mean" else 2 * size
                own = (runs[k]["model"], runs[k]["stage"], runs[k]["member"])
                yield row(*own, region, name, found[k, name])
        for i, j in pairs:
            for name in names if j in entry["runs"] else ():
                if name == "reference_mean":
                    continue
                change = found[j, name] - found[i, name]
                half = 0.05 * (1 if name.endswith("_score") else size) * (1 + rng.random())
                own = (runs[j]["model"], CHANGE, runs[j]["member"])
                yield row(*own, region, name, change, half)

    shared: dict[str, list[_Row]] = {}
    skills = {region: 0.25 + 0.5 * rng.random(len(runs)) for region in entry["cycles"]}
    for region, skill in skills.items():
        names = ["reference_mean", "mean", "bias", "absolute_bias", "rmse"]
        rows = shared[region] = list(of_runs(region, names, skill))
        before = size * (0.3 + 0.2 * rng.random())
        after = before * (0.4 + 0.8 * rng.random())
        rows += _between(row, region, size, before, after, rng, plain=plain)
        if not plain:
            rows += _stated(row, region, entry, runs, pairs, size, rng)
    for scheme, of in entry["schemes"].items():
        names = [*of["scores"], "overall_score"]
        for region, skill in skills.items():
            rows = [*shared[region], *of_runs(region, names, skill)]
            if not plain:
                if _uncertain(entry):
                    more = ["uncertain_bias_score", "uncertain_rmse_score"]
                    rows += of_runs(region, more, np.minimum(1, skill + 0.1))
                other = f"product {_other(entry)}"
                for name in [*names, "mean", "bias", "absolute_bias", "rmse"]:
                    value = 0.6 + 0.2 * rng.random() if name.endswith("_score") else 0.2 * size
                    rows.append(row(other, "Reference", "", region, name, value))
            for one in rows:
                yield Score(*one[:8], scheme, *one[8:])


def _between(
    row: Any, region: str, size: float, before: float, after: float, rng: Any, *, plain: bool
) -> Iterator[_Row]:
    """Rows of all models: the spread by several measures and in parts, and how near it is."""

    def both(name: str, prior: float, posterior: float) -> Iterator[_Row]:
        yield row(ALL_MODELS, "Prior", "", region, name, prior)
        yield row(ALL_MODELS, "Posterior", "", region, name, posterior)
        yield row(ALL_MODELS, CHANGE, "", region, name, posterior - prior)

    def reduced(name: str, prior: float, posterior: float) -> Iterator[_Row]:
        yield from both(name, prior, posterior)
        gone = 1 - posterior / prior
        yield row(ALL_MODELS, CHANGE, "", region, f"{name}_reduction", gone, 0.08)

    yield from reduced("spread", before, after)
    if plain:
        return
    for name, times in (("spread_mad", 0.6), ("spread_range", 3.1), ("total_spread", 4 / size)):
        yield from reduced(name, times * before, times * after * (0.9 + 0.2 * rng.random()))
    for name, share in (("offset", 0.5), ("seasonal", 0.5), ("pattern", 0.7)):
        own = after * share * (0.8 + 0.4 * rng.random())
        yield from reduced(f"spread_{name}", before * share, own)
    miss = before * (0.8 + rng.random())
    # Calibration brings the models together, and the mean of them nearer to a product or not.
    near = miss * (0.6 + 0.7 * rng.random())
    yield from both("multi_model_rmse", miss, near)
    yield from both("spread_skill", 1.03 * before / miss, 1.03 * after / near)
    share = round(0.5 + 0.3 * rng.random(), 2)
    fewer = 0.3 * rng.random()
    # Some lose so little that both are the same in whole percents.
    yield from both("range_coverage", share, share * (1 - fewer) if fewer > 0.1 else share - 0.002)


def _stated(
    row: Any,
    region: str,
    entry: dict[str, Any],
    runs: list[dict[str, Any]],
    pairs: list[list[int]],
    size: float,
    rng: Any,
) -> Iterator[_Row]:
    """Rows of the uncertainty of products, of ensembles and of posteriors that state their own."""
    for k in entry["runs"]:
        own = (runs[k]["model"], runs[k]["stage"], runs[k]["member"])
        if _uncertain(entry):
            yield row(*own, region, "reference_uncertainty", 0.3 * size)
        if runs[k]["stage"] == "Posterior" and int(runs[k]["model"][6:8]) % 2 == 0:
            yield row(*own, region, "uncertainty", size * (0.2 + 0.1 * rng.random()))
            yield row(*own, region, "spread_skill", 0.4 + 0.8 * rng.random())
            yield row(*own, region, "within_1sd_coverage", 0.4 + 0.3 * rng.random())
            yield row(*own, region, "within_2sd_coverage", 0.8 + 0.2 * rng.random())
    for _, j in pairs:
        if _uncertain(entry) and j in entry["runs"]:
            own = (runs[j]["model"], CHANGE, runs[j]["member"])
            yield row(*own, region, "beyond_uncertainty_share", float(rng.random()))
    for (model, stage), n in _ensembles(entry, runs).items():
        spread = size * (0.5 if stage == "Prior" else 0.2) * (0.8 + 0.4 * rng.random())
        miss = size * (0.5 + 0.1 * rng.random())
        of = (model, stage, "ensemble", region)
        yield row(*of, "ensemble_spread", spread)
        yield row(*of, "ensemble_rmse", miss)
        yield row(*of, "spread_skill", math.sqrt((n + 1) / n) * spread / miss)
        share = (n - 1) / (n + 1) * (1 if stage == "Prior" else 0.6)
        yield row(*of, "range_coverage", share)


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
    size = _size(entry)
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
        fields |= {"misfit_change": change, "mean_prior_ilamb27": fields["mean_prior"]}
        if _uncertain(entry):
            fields |= {"uncertainty": 0.1 * size + 0.2 * reference}
        model, member = runs[i]["model"], runs[i]["member"]
        yield write(f"{model}_{member}", fields, model=model, member=member)
    spread = {f"spread_{s}": reference * f for s, f in (("prior", 0.4), ("posterior", 0.25))}
    yield write("all-models", spread, model=ALL_MODELS)
