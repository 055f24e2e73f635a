"""The demonstration's reference products: a run with "true" parameters, seen through bad glasses.

Each product has its own grid, units, period, gaps and errors, as real ones have. They are brought
to their grids with a plain overlap matrix of this module and not with the package's regridding: the
maker of a product does not use ours, and an error of ours must not cancel against itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from callmip_global.demo import SYNTHETIC
from callmip_global.demo.climate import Climate
from callmip_global.demo.model import (
    SECONDS_PER_DAY,
    Cells,
    Model,
    integrate,
    read_cells,
    read_parameters,
)
from callmip_global.demo.surface import gaussian_grid

Array = NDArray[np.float64]

# Of a product's cell, this much has to be land for a value: products have no coasts.
_LEAST_LAND = 0.3
_SEED = 1850


@dataclass(frozen=True)
class Recipe:
    """How one product is made and described.

    ``native``: native outputs of the model that are added, with the factor to ``units`` of each;
    ``bias``: amplitude of its smooth relative (``offset``: absolute) systematic error; ``noise``:
    standard deviation of the random one; ``gaps``: share of months missing; ``winter_gap``: none
    where the sun is below 80 W m-2 at the top of the air.
    ``entry``: what the products file says beside path, kind and source.
    """

    name: str
    variable: str
    source: str
    long_name: str
    units: str
    native: Mapping[str, float]
    dlat: float
    dlon: float
    first_lon: Literal[-180, 0]
    north_first: bool
    years: tuple[int, int]
    entry: Mapping[str, Any]
    bias: float = 0.05
    noise: float = 0.1
    offset: bool = False
    gaps: float = 0.0
    winter_gap: bool = False
    static: bool = False
    bounds: bool = True


PRODUCTS = (
    Recipe(
        "DEMO-GPP", "gpp", "GPP", "gross primary production", "gC m-2 d-1", {"GPP_tot": 1.0},
        1.0, 1.25, -180, False, (2005, 2020), {"native_units": "gC m-2 d-1"}, noise=0.12, gaps=0.03,
    ),
    Recipe(
        "DEMO-NEE", "nep", "NEE", "net ecosystem exchange, positive into the air", "gC m-2 d-1",
        {"GPP_tot": -1.0, "AutoResp": SECONDS_PER_DAY, "HetResp": SECONDS_PER_DAY},
        2.5, 2.5, 0, True, (2005, 2024), {"sign": -1}, bias=0.08, noise=0.15,
    ),
    Recipe(
        "DEMO-LE", "hfls", "LE", "latent heat flux", "W m-2", {"LatentHeat": 1.0},
        2.5, 2.5, 0, True, (2005, 2024), {}, noise=0.08,
    ),
    Recipe(
        "DEMO-H", "hfss", "H", "sensible heat flux", "MJ m-2 d-1",
        {"SensHeat": -SECONDS_PER_DAY * 1e-6},
        2.5, 2.5, 0, True, (2005, 2024), {"native_units": "MJ m-2 d-1"}, noise=0.1,
    ),
    Recipe(
        "DEMO-LST", "ts", "LST", "land surface temperature, clear sky", "K", {"Tskin": 1.0},
        2.0, 2.0, -180, True, (2005, 2024), {}, bias=0.6, noise=0.7, offset=True, gaps=0.15,
    ),
    Recipe(
        "DEMO-LAI", "lai", "LAI", "leaf area index", "m2 m-2", {"LAI": 1.0},
        1.5, 1.5, -180, False, (2005, 2022), {}, bias=0.1, gaps=0.02, winter_gap=True, bounds=False,
    ),
    Recipe(
        "DEMO-SM", "mrsos", "sm", "volumetric soil moisture, 0 to 0.1 m", "m3 m-3",
        {"SoilWaterTop": 0.01},
        2.5, 2.5, -180, False, (2010, 2024),
        {"native_units": "m3 m-3", "factor": 100.0, "units": "kg m-2",
         "note": "100 kg m-2 of water fill 0.1 m of soil"},
        gaps=0.1, winter_gap=True,
    ),
    Recipe(
        "DEMO-BIOMASS", "cLiveBioAbove", "AGB", "above-ground biomass carbon", "MgC ha-1",
        {"leafC": 0.01, "stemC": 0.01},
        1.0, 1.0, -180, True, (2010, 2010), {"static": True}, bias=0.15, static=True,
    ),
    Recipe(
        "DEMO-SOC", "cSoil", "soc", "soil organic carbon", "kgC m-2", {"soilC": 0.001},
        1.0, 1.0, -180, False, (2005, 2024), {"static": True}, bias=0.2, noise=0.15, static=True,
        bounds=False,
    ),
)  # fmt: skip


def demo_products(small: bool) -> tuple[Recipe, ...]:
    """All products; ``small``: twice as coarse, and of the last four years alone."""
    if not small:
        return PRODUCTS
    return tuple(
        replace(product, dlat=2 * product.dlat, dlon=2 * product.dlon, years=(2021, 2024))
        for product in PRODUCTS
    )


def write_products(
    folder: Path, *, surface: Path, truth: Path, co2: Path, recipe: str, small: bool
) -> None:
    """Run the truth and write every product (``folder``/NAME.nc) and ``folder``/products.yaml.

    ``surface``, ``truth`` (parameters), ``co2``: input files of the model; ``recipe``: hash of how
    it was all made, kept in each file. The run is S3 without its tiles, segments and files.
    """
    cells = read_cells(surface)
    products = demo_products(small)
    first = min(product.years[0] for product in products)
    output = _true_run(Model(cells, read_parameters(truth)), co2, first)
    sun = Climate(cells.lat, cells.lon, cells.interior).insolation_w_m2
    for product in products:
        _write(folder / f"{product.name}.nc", product, output, sun, cells, first, recipe)


def products_text(small: bool) -> str:
    """The products file of the demonstration (see `demo_products`)."""
    lines = [
        "# Reference products of the demonstration: synthetic, made by the demonstration model",
        "# with other parameters (data/truth.yaml), errors and gaps. They test the software only.",
        "products:",
    ]
    for product in demo_products(small):
        entry: dict[str, Any] = {
            "variable": product.variable,
            "path": f"{product.name}.nc",
            "source": product.source,
            **product.entry,
            "kind": "synthetic",
            "independent_of_towers": "true",
            "like_for_like": "true",
            "licence": "Apache-2.0",
        }
        if not product.static:
            entry["window"] = list(product.years)
        lines.append(f"  {product.name}:")
        for key, value in entry.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            lines.append(f"    {key}: {text}")
    return "\n".join(lines) + "\n"


def _true_run(model: Model, co2: Path, first_kept: int) -> dict[str, NDArray[np.float32]]:
    """{native name: (months from ``first_kept`` to 2024, n_cells)}."""
    state = model.start()
    recycled = {"recycle": [1901, 1920]}
    spinup: dict[str, Any] = {
        "co2": {"table": str(co2), "year": 1850},
        "luc": 1850,
        "climate": recycled,
        "first_year": 1850,
        "n_years": 20,
        "label_moves": False,
        "equilibrate": True,
    }
    moving: dict[str, Any] = {"co2": {"table": str(co2), "year": "yearly"}, "luc": "yearly"}
    moving |= {"label_moves": True, "equilibrate": False}
    transient = moving | {"climate": recycled, "first_year": 1851, "n_years": 50}
    historical = moving | {"climate": "actual", "first_year": 1901, "n_years": 124}
    for namelist in (spinup, spinup, transient):
        for _ in integrate(model, state, namelist):
            pass
    kept: list[dict[str, NDArray[np.float32]]] = []
    names = sorted({name for product in PRODUCTS for name in product.native})
    for position, out in enumerate(integrate(model, state, historical)):
        if 1901 + position >= first_kept:
            kept.append({name: out[name].astype(np.float32) for name in names})
    return {name: np.concatenate([year[name] for year in kept]) for name in names}


def _overlap(source: Array, target: Array, period: float | None = None) -> Array:
    """(n_target, n_source) lengths that intervals share; edges rise, ``period`` wraps them."""
    total = np.zeros((len(target) - 1, len(source) - 1))
    for shift in (0.0,) if period is None else (-period, 0.0, period):
        low = np.maximum(target[:-1, None], source[None, :-1] + shift)
        high = np.minimum(target[1:, None], source[None, 1:] + shift)
        total += np.maximum(high - low, 0.0)
    return total


def _field(
    product: Recipe, output: Mapping[str, NDArray[np.float32]], sun: Array, cells: Cells, first: int
) -> tuple[Array, Array, Array]:
    """Values (time, lat, lon) with gaps as NaN, lat edges (north to south or not) and lon edges."""
    begin = 12 * (product.years[0] - first)
    months = slice(begin, begin + 12 * (product.years[1] - product.years[0] + 1))
    land = sum(factor * output[name][months] for name, factor in product.native.items())
    values = np.asarray(land, np.float64)
    if product.static:
        values = values.mean(axis=0, keepdims=True)

    numbers = np.random.default_rng([_SEED, crc32(product.name.encode())])
    lam, phi = np.deg2rad(cells.lon), np.deg2rad(cells.lat)
    phases = numbers.uniform(0.0, 2.0 * np.pi, 3)
    waves = ((2, 3.0), (3, 2.0), (5, 4.0))
    smooth = sum(
        np.cos(n * lam + k * phi + shift) for (n, k), shift in zip(waves, phases, strict=True)
    )
    error = product.bias * smooth

    nlat, nlon = len(cells.grid_lat), len(cells.grid_lon)
    # Edges of the model's rows, from the south; the model counts them from the north.
    sines: Array = np.sin(np.deg2rad(gaussian_grid(nlat, nlon)[1][::-1])).astype(np.float64)
    lon_step = 360.0 / nlon
    lon_edges_in = (np.arange(nlon + 1, dtype=np.float64) - 0.5) * lon_step
    lat_edges = np.asarray(np.linspace(-90.0, 90.0, round(180.0 / product.dlat) + 1))
    lon_edges = product.first_lon + np.linspace(0.0, 360.0, round(360.0 / product.dlon) + 1)
    rows = _overlap(sines, np.sin(np.deg2rad(lat_edges)).astype(np.float64))[:, ::-1]
    columns = _overlap(lon_edges_in, lon_edges, 360.0).T

    def to_grid(per_cell: Array) -> Array:
        whole = np.zeros((len(per_cell), nlat * nlon))
        whole[:, cells.index] = per_cell * cells.fraction
        return np.asarray(rows @ whole.reshape(-1, nlat, nlon) @ columns)

    share = to_grid(np.ones((1, len(cells.index))))
    full = rows.sum(axis=1)[:, None] * product.dlon
    seen = share > _LEAST_LAND * full
    with np.errstate(divide="ignore", invalid="ignore"):
        truth = to_grid(values) / share
        error_map = to_grid(error[None]) / share
        sunlit = to_grid(sun) / share
    random = product.noise * numbers.standard_normal(truth.shape)
    result = truth + error_map + random if product.offset else truth * (1.0 + error_map + random)
    missing = np.broadcast_to(~seen, result.shape) | (numbers.random(result.shape) < product.gaps)
    if product.winter_gap:
        missing |= np.tile(sunlit < 80.0, (len(result) // 12, 1, 1))
    result = np.where(missing, np.nan, result)
    if product.north_first:
        return result[:, ::-1], lat_edges[::-1], lon_edges
    return result, lat_edges, lon_edges


def _write(
    path: Path,
    product: Recipe,
    output: Mapping[str, NDArray[np.float32]],
    sun: Array,
    cells: Cells,
    first: int,
    recipe: str,
) -> None:
    import netCDF4

    values, lat_edges, lon_edges = _field(product, output, sun, cells, first)
    if product.variable == "ts":
        values = values + 273.15
    temporary = path.with_name(f".{path.name}.tmp")
    with netCDF4.Dataset(temporary, "w") as file:
        file.setncatts({"title": f"{product.name} (synthetic)", "comment": SYNTHETIC})
        file.setncatts({"synthetic": "true", "Conventions": "CF-1.8", "recipe": recipe})
        file.createDimension("bnds", 2)
        for axis, edges, units in (
            ("lat", lat_edges, "degrees_north"),
            ("lon", lon_edges, "degrees_east"),
        ):
            file.createDimension(axis, len(edges) - 1)
            coordinate = file.createVariable(axis, "f8", (axis,))
            coordinate.units = units
            coordinate[:] = 0.5 * (edges[1:] + edges[:-1])
            if product.bounds:
                coordinate.bounds = f"{axis}_bnds"
                bounds = file.createVariable(f"{axis}_bnds", "f8", (axis, "bnds"))
                bounds[:] = np.stack([edges[:-1], edges[1:]], axis=1)
        dims: tuple[str, ...] = ("lat", "lon")
        if not product.static:
            dims = ("time", *dims)
            _write_time(file, product)
        fill = np.float32(-9999.0)
        variable = file.createVariable(
            product.source,
            "f4",
            dims,
            zlib=True,
            complevel=1,
            fill_value=fill,
            significant_digits=4,
            chunksizes=(12, *values.shape[1:]) if not product.static else values.shape[1:],
        )
        variable.setncatts({"units": product.units, "long_name": product.long_name})
        variable[...] = np.ma.masked_invalid(values[0] if product.static else values)
    temporary.replace(path)


def _write_time(file: Any, product: Recipe) -> None:
    """Months of the real calendar, days since 1970, stamped in the middle."""
    first, last = product.years
    starts = np.arange(f"{first}-01", f"{last + 1}-02", dtype="datetime64[M]")
    days = starts.astype("datetime64[D]").astype(np.float64)
    file.createDimension("time", len(days) - 1)
    time = file.createVariable("time", "f8", ("time",))
    time.setncatts({"units": "days since 1970-01-01", "calendar": "standard", "axis": "T"})
    time[:] = 0.5 * (days[1:] + days[:-1])
    if product.bounds:
        time.bounds = "time_bnds"
        bounds = file.createVariable("time_bnds", "f8", ("time", "bnds"))
        bounds[:] = np.stack([days[:-1], days[1:]], axis=1)
