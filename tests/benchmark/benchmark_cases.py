"""Small runs and products on disk, for the tests of the benchmark."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from callmip_global.benchmark import Product
from callmip_global.benchmark.run import run_benchmark
from callmip_global.grid import Grid
from callmip_global.regrid import regrid_dataset
from callmip_global.timeaxis import MonthAxis

GRID = Grid("g", np.linspace(-90, 90, 7), np.linspace(-180, 180, 9))


def axis_of(years: tuple[int, int], calendar: str = "noleap", frequency: Any = "mon") -> MonthAxis:
    n_years = years[1] - years[0] + 1
    return MonthAxis(
        calendar, (years[0], 1), n_years * (12 if frequency == "mon" else 1), frequency
    )


def dataset(
    name: str, values: np.ndarray, grid: Grid, axis: MonthAxis | None, units: str
) -> xr.Dataset:
    """CF data set of (time, lat, lon), or (lat, lon) without an axis."""
    dims = ("lat", "lon") if axis is None else ("time", "lat", "lon")
    ds = xr.Dataset(
        {name: (dims, values, {"units": units})},
        coords={
            "lat": ("lat", grid.lat, {"standard_name": "latitude", "bounds": "lat_bnds"}),
            "lon": ("lon", grid.lon, {"standard_name": "longitude", "bounds": "lon_bnds"}),
            "lat_bnds": (("lat", "bnds"), grid.lat_bnds),
            "lon_bnds": (("lon", "bnds"), grid.lon_bnds),
        },
    )
    if axis is not None:
        ds = ds.assign_coords(
            time=("time", axis.time, axis.time_attributes),
            time_bnds=(("time", "bnds"), axis.bounds),
        )
    return ds


def write_run(
    folder: Path,
    values: np.ndarray,
    *,
    variable: str = "hfls",
    units: str = "W m-2",
    model: str = "M.v1",
    stage: str = "Prior",
    simulation: str = "S3",
    grid: Grid = GRID,
    years: tuple[int, int] = (2001, 2003),
    calendar: str = "noleap",
    frequency: str = "mon",
    member: str = "",
) -> Path:
    """A run as a file named like those that are handed in."""
    ds = dataset(variable, values, grid, axis_of(years, calendar, frequency), units)
    ds.attrs = {"Model": model, "Calibration_stage": stage, "simulation": simulation}
    name = f"{model}_global_test_{frequency}_{years[0]}-{years[1]}_{stage}{member}.nc"
    path = folder / simulation / name
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.to_netcdf(path)
    return path


def write_product(
    folder: Path,
    values: np.ndarray,
    *,
    name: str = "REF",
    variable: str = "hfls",
    units: str = "W m-2",
    grid: Grid = GRID,
    years: tuple[int, int] = (2001, 2003),
    calendar: str = "noleap",
    frequency: str = "mon",
    **entry: Any,
) -> Product:
    """A product and its file."""
    axis = None if values.ndim == 2 else axis_of(years, calendar, frequency)
    path = folder / f"{name}.nc"
    dataset("obs", values, grid, axis, units).to_netcdf(path)
    settings = {"kind": "synthetic", "source": "obs", **entry}
    return Product(name=name, variable=variable, paths=(str(path),), **settings)


def benchmark(
    stores: list[Path], products: list[Product], out: Path, **options: Any
) -> dict[str, Any]:
    """run_benchmark with the conservative regridder."""
    return run_benchmark(
        stores,
        products=products,
        out=out,
        regridder=regrid_dataset,
        **options,
    )


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(out: Path, quantity: str, **where: str) -> float | None:
    """The one value of a quantity, global and monthly unless said otherwise; None if missing."""
    wanted = {"region": "global", "frequency": "mon", "quantity": quantity, **where}
    found = [r for r in rows_of(out) if all(r[k] == v for k, v in wanted.items())]
    assert len(found) == 1, f"{len(found)} rows of {wanted}"
    return float(found[0]["value"]) if found[0]["value"] else None


def cycles(n_years: int, grid: Grid = GRID, seed: int = 0, noise: float = 0.2) -> np.ndarray:
    """(12 n, nlat, nlon): a yearly cycle with its maximum in July, and other noise in each cell."""
    rng = np.random.default_rng(seed)
    months = np.arange(12 * n_years)
    cycle = 40.0 + 20.0 * np.cos(2 * np.pi * (months % 12 - 6) / 12.0)
    pattern = 1.0 + 0.3 * rng.random(grid.shape)
    wobble = noise * rng.normal(size=(n_years, *grid.shape)).repeat(12, axis=0)
    return cycle[:, None, None] * pattern + wobble
