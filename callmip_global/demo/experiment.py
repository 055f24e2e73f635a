"""Write the demonstration's experiment folder: everything `callmip-global submit` needs."""

from __future__ import annotations

import re
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from callmip_global.data import data_path
from callmip_global.demo import SYNTHETIC
from callmip_global.errors import Problem, UsageError
from callmip_global.files import write_atomic

SCHEDULERS = ("local", "slurm", "pbs")

# The small size differs from config/examples/demo.yaml in these lines: pattern, replacement.
_SMALL = (
    (r"^simulations: \[S3, CO2\]$", "simulations: [S3]"),
    (r"years: \[1851, 1900\]", "years: [1851, 1980]"),
    (r"years: \[1901, 2024\]", "years: [1981, 2024]"),
    (r"segment_years: 26", "segment_years: 22"),
    (r"26 years a job, which", "22 years a job, which"),
    (r"transient phase is 50 years", "transient phase is 130 years"),
    (r"grid: 1deg", "grid: 2deg"),
    (r"years: 20\}", "years: 4}"),
)

# Rounded values of the published record (ice cores, Mauna Loa), joined by straight lines.
_CO2_PPM = (
    (1700, 277.0), (1750, 278.0), (1800, 283.0), (1850, 285.0), (1875, 289.0), (1900, 296.0),
    (1925, 305.0), (1950, 311.0), (1960, 317.0), (1970, 325.0), (1980, 339.0), (1990, 354.0),
    (2000, 369.0), (2010, 389.0), (2020, 413.0), (2024, 424.0),
)  # fmt: skip


def write_demo(folder: Path, *, scheduler: str, small: bool) -> Path:
    """Write the experiment into ``folder`` and return the path of its experiment.yaml.

    ``scheduler``: local, slurm or pbs (the site of that name). ``small``: a 24 x 48 grid, one
    simulation, four delivered years on the 2 degree grid, for tests. What is there already and
    would come out the same is not touched, so that hashes and markers of a run stay valid.
    Raises UsageError for an unknown scheduler.
    """
    if scheduler not in SCHEDULERS:
        wanted = f"one of: {', '.join(SCHEDULERS)}"
        raise UsageError(Problem("demo", "scheduler", repr(scheduler), wanted))
    for name in ("params", "templates", "data", "products", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for target, text in _texts(scheduler, small).items():
        _put(folder / target, text)
    _write_data(folder, small)
    return folder / "experiment.yaml"


def co2_table() -> str:
    """The CO2 input file: ``year ppm`` for 1700 to 2024."""
    lines = ["# Annual mean CO2, ppm: rounded, straight lines between a few years. " + SYNTHETIC]
    for (year, ppm), (next_year, next_ppm) in pairwise(_CO2_PPM):
        slope = (next_ppm - ppm) / (next_year - year)
        lines += [f"{y} {ppm + slope * (y - year):.2f}" for y in range(year, next_year)]
    lines.append(f"{_CO2_PPM[-1][0]} {_CO2_PPM[-1][1]:.2f}")
    return "\n".join(lines) + "\n"


def _texts(scheduler: str, small: bool) -> dict[str, str]:
    """{path in the folder: text} of everything that is text."""
    from callmip_global.demo.products import products_text

    experiment = _shipped("examples", "demo.yaml")
    for pattern, replacement in (
        *(_SMALL if small else ()),
        ("^site: local$", f"site: {scheduler}"),
    ):
        experiment, count = re.subn(pattern, replacement, experiment, flags=re.MULTILINE)
        if count != 1:
            raise AssertionError(f"config/examples/demo.yaml: {pattern!r} is there {count} times")
    return {
        "experiment.yaml": experiment,
        "models/demo.yaml": _shipped("models", "demo.yaml"),
        "params/prior.yaml": _shipped("examples", "demo", "prior.yaml"),
        "params/posterior.yaml": _shipped("examples", "demo", "posterior.yaml"),
        "data/truth.yaml": _shipped("examples", "demo", "truth.yaml"),
        "templates/namelist.j2": _shipped("examples", "demo", "namelist.j2"),
        "data/co2.txt": co2_table(),
        "products/products.yaml": products_text(small),
    }


def _write_data(folder: Path, small: bool) -> None:
    """The surface file and the products, unless those there were made by the same recipe."""
    from callmip_global.demo.products import demo_products, write_products
    from callmip_global.demo.surface import write_surface

    nlat, nlon = (24, 48) if small else (96, 192)
    surface = folder / "data" / "surface.nc"
    surface_recipe = _recipe("surface.py", f"{nlat}x{nlon}")
    if _recipe_of(surface) != surface_recipe:
        write_surface(surface, nlat=nlat, nlon=nlon, recipe=surface_recipe)
    truth, co2 = folder / "data" / "truth.yaml", folder / "data" / "co2.txt"
    code = ("climate.py", "model.py", "products.py")
    recipe = _recipe(*code, surface_recipe, truth.read_text(), co2.read_text(), f"small {small}")
    products = folder / "products"
    if any(
        _recipe_of(products / f"{product.name}.nc") != recipe for product in demo_products(small)
    ):
        write_products(products, surface=surface, truth=truth, co2=co2, recipe=recipe, small=small)


def _recipe(*parts: str) -> str:
    """Hash of texts; a part that ends in .py stands for the source of that module."""
    digest = sha256()
    for part in parts:
        source = Path(__file__).with_name(part).read_text() if part.endswith(".py") else part
        digest.update(source.encode() + b"\0")
    return digest.hexdigest()


def _recipe_of(path: Path) -> str | None:
    """The recipe in a NetCDF file, or None if it has none or is none."""
    import netCDF4

    try:
        with netCDF4.Dataset(path) as file:
            return str(file.recipe)
    except (OSError, AttributeError):
        return None


def _shipped(*parts: str) -> str:
    return data_path("config", *parts).read_text(encoding="utf-8")


def _put(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)
