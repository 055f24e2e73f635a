"""Small submissions as modelling groups hand them in: a world, its files, the defects, the outcome.

A `World` has values that could be real: land where there is land, seasons that turn round at the
equator, totals as published. `trendy` writes one variable of it as an `NcFile`, which is plain
data: a defect is a change of that, or of the bytes once they are written. `Submission` puts files
and a manifest together and runs the commands as a user does.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import cftime
import netCDF4
import numpy as np
import typer
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

Array = NDArray[np.float64]
Format = Literal["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]

RADIUS_M = 6.371e6
LATENT_J_KG = 2.5e6
"""Latent heat that the world's hfls is made with."""

_YEAR_S = 365 * 86400.0
_MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], dtype=float)

_UNITS = {
    "hfls": "W m-2", "hfss": "W m-2", "hfg": "W m-2", "ts": "K", "lai": "1",
    "cLeaf": "kg m-2", "cStem": "kg m-2", "cLiveBioAbove": "kg m-2", "cSoil": "kg m-2",
    "mrso": "kg m-2", "mrsos": "kg m-2",
}  # fmt: skip

# --- worlds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A regular global grid of ``step_deg`` with land, and monthly values on it.

    Years are whole and of 365 days. ``values(name)`` are (month, lat, lon), south to north and
    from -180, per land area, in protocol units, rounded to float32, NaN over the sea and south of
    60 S.
    """

    step_deg: float = 12.0
    years: tuple[int, int] = (2001, 2002)

    @property
    def lat(self) -> Array:
        return np.asarray(-90 + self.step_deg * (np.arange(round(180 / self.step_deg)) + 0.5))

    @property
    def lon(self) -> Array:
        return np.asarray(-180 + self.step_deg * (np.arange(round(360 / self.step_deg)) + 0.5))

    @property
    def months(self) -> int:
        return 12 * (self.years[1] - self.years[0] + 1)

    @cached_property
    def land(self) -> NDArray[np.bool_]:
        """(nlat, nlon): more land than sea, north of 60 S."""
        return (_land_share(self.step_deg) > 0.5) & (self.lat > -60)[:, None]

    @cached_property
    def area(self) -> Array:
        """(nlat, nlon) m2 of every cell."""
        half = self.step_deg / 2
        rows = np.sin(np.deg2rad(self.lat + half)) - np.sin(np.deg2rad(self.lat - half))
        return np.repeat(
            RADIUS_M**2 * np.deg2rad(self.step_deg) * rows[:, None], self.lon.size, axis=1
        )

    def values(self, name: str) -> Array:
        """(month, nlat, nlon) of a protocol variable, or of one that they are made of."""
        return _values(self)[name]

    def annual(self, name: str) -> Array:
        """(year, nlat, nlon): means over the months, weighted by their lengths."""
        monthly = self.values(name).reshape(-1, 12, *self.land.shape)
        mean = (monthly * _MONTH_DAYS[:, None, None]).sum(axis=1) / 365
        return np.asarray(mean.astype(np.float32), dtype=np.float64)

    def total(self, name: str) -> float:
        """Mean over time of the global integral, in 1 s-1 of the units."""
        return float((np.nan_to_num(self.values(name)).mean(axis=0) * self.area).sum())


@cache
def _land_share(step_deg: float) -> Array:
    from global_land_mask import globe

    fine = 0.5
    lat, lon = np.arange(-90 + fine / 2, 90, fine), np.arange(-180 + fine / 2, 180, fine)
    k = round(step_deg / fine)
    is_land = globe.is_land(*np.meshgrid(lat, lon, indexing="ij"))
    return np.asarray(is_land.reshape(lat.size // k, k, lon.size // k, k).mean(axis=(1, 3)))


@cache
def _values(world: World) -> Mapping[str, Array]:
    random = np.random.default_rng(1)
    lat, lon = np.meshgrid(world.lat, world.lon, indexing="ij")
    month = np.arange(world.months)[:, None, None]
    # Warmest in July in the north, in January in the south; hardly any season at the equator.
    summer = np.cos(2 * np.pi * (month % 12 - 6) / 12) * np.sin(np.deg2rad(lat))
    dry = 0.75 + 0.25 * np.sin(np.deg2rad(3 * lon + 2 * lat))
    warm = np.cos(np.deg2rad(lat)) ** 2

    def varied(shape: Array) -> Array:
        return shape * random.uniform(0.95, 1.05, shape.shape)

    def scaled(shape: Array, wanted: float) -> Array:
        """Positive values whose mean integral is ``wanted``."""
        held = np.where(world.land, varied(np.maximum(shape, 1e-3)), 0.0)
        return held * wanted / float((held.mean(axis=0) * world.area).sum())

    land_m2 = float(world.area[world.land].sum())
    growth = (0.1 + warm) * dry * (1 + 0.8 * summer)
    wet = (0.15 + warm) * dry * (1 + 0.7 * summer)
    decay = (0.1 + warm) * dry * (1 + 0.35 * summer)
    out = {
        "gpp": scaled(growth, 130e12 / _YEAR_S),
        "ra": scaled(0.15 * growth + decay, 68e12 / _YEAR_S),
        "rh": scaled(decay, 59e12 / _YEAR_S),
        "evspsbl": scaled(wet, 6.7e16 / _YEAR_S),
        "lai": scaled((0.2 + warm) * dry * (1 + 0.4 * summer), 2.2 * land_m2),
        "hfss": scaled((0.3 + warm) * (1.5 - dry) * (1 + 0.6 * summer), 36 * land_m2),
        "cLeaf": scaled((0.1 + warm) * dry * (1 + 0.2 * summer), 20e12),
        "cStem": scaled((0.1 + warm) * dry + 1e-4 * month, 330e12),
        "cSoil": scaled(1.3 - 0.8 * warm + 1e-4 * month, 1300e12),
        "mrsos": scaled(1 + dry - 0.2 * summer, 24 * land_m2),
        "mrso": scaled(1 + dry - 0.1 * summer, 600 * land_m2),
        "hfg": varied(8 * summer + 0 * lat) - 0.0,
        "ts": 256 + 44 * warm + 14 * summer + random.uniform(-0.5, 0.5, summer.shape),
    }
    out["npp"] = out["gpp"] - out["ra"]
    out["nep"] = out["npp"] - out["rh"]
    out["reco"] = out["ra"] + out["rh"]
    out["tran"] = out["evspsbl"] * 0.58
    out["evspsblsoi"] = out["evspsbl"] * 0.27
    out["hfls"] = out["evspsbl"] * LATENT_J_KG
    out["cLiveBioAbove"] = out["cLeaf"] + out["cStem"]
    for name, values in out.items():
        values[:, ~world.land] = np.nan
        out[name] = values.astype(np.float32).astype(np.float64)
        out[name].flags.writeable = False
    return out


# --- files ------------------------------------------------------------------------------------


@dataclass
class NcVar:
    """A variable to be written: NaN becomes ``fill`` where there is one; None writes NaN as it is.

    ``storage``: options of ``createVariable`` (compression, chunks, checksums).
    """

    dims: tuple[str, ...]
    values: NDArray[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    fill: float | None = None
    dtype: str = "f8"
    storage: dict[str, Any] = field(default_factory=dict)


@dataclass
class NcFile:
    """A NetCDF file to be written. The first dimension named in ``unlimited`` is a record one."""

    variables: dict[str, NcVar]
    attributes: dict[str, Any] = field(default_factory=dict)
    unlimited: str | None = None
    format: Format = "NETCDF4"

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with netCDF4.Dataset(path, "w", format=self.format) as nc:
            nc.setncatts(self.attributes)
            nc.set_fill_off()
            for var in self.variables.values():
                for dim, size in zip(var.dims, var.values.shape, strict=True):
                    if dim not in nc.dimensions:
                        nc.createDimension(dim, None if dim == self.unlimited else size)
            for name, var in self.variables.items():
                out = nc.createVariable(
                    name,
                    var.dtype,
                    var.dims,
                    fill_value=var.attributes.get("_FillValue"),
                    **(var.storage if self.format == "NETCDF4" else {}),
                )
                out.set_auto_maskandscale(False)
                out.setncatts({k: v for k, v in var.attributes.items() if k != "_FillValue"})
                values = var.values
                if var.fill is not None:
                    values = np.where(np.isnan(values), var.fill, values)
                out[...] = values.astype(var.dtype)
        return path

    def copy(self) -> NcFile:
        return copy.deepcopy(self)

    def rename(self, old: str, new: str) -> None:
        """A variable's name, in its place."""
        self.variables = {new if n == old else n: v for n, v in self.variables.items()}

    def rename_dim(self, old: str, new: str) -> None:
        for var in self.variables.values():
            var.dims = tuple(new if d == old else d for d in var.dims)

    def turn(self, dim: str, order: NDArray[Any] | slice) -> None:
        """Take everything along ``dim`` in another order, or only a part of it."""
        for var in self.variables.values():
            if dim in var.dims:
                axis = var.dims.index(dim)
                var.values = var.values[(slice(None),) * axis + (order,)]


PACKED = {"zlib": True, "complevel": 1, "shuffle": True}


def time_days(
    years: tuple[int, int], calendar: str = "noleap", origin: str = "days since 1700-01-01"
) -> Array:
    """Middle of every month in days."""
    stamps = [
        cftime.datetime(y, m, 16, calendar=calendar)
        for y in range(years[0], years[1] + 1)
        for m in range(1, 13)
    ]
    return np.asarray(cftime.date2num(stamps, origin, calendar), dtype=float)


def year_days(years: tuple[int, int], origin: str = "days since 1700-01-01") -> Array:
    """Middle of every year in days."""
    stamps = [cftime.datetime(y, 7, 1, calendar="noleap") for y in range(years[0], years[1] + 1)]
    return np.asarray(cftime.date2num(stamps, origin, "noleap"), dtype=float)


def trendy(
    world: World,
    name: str,
    *,
    called: str | None = None,
    values: Array | None = None,
    units: str | None = None,
    annual: bool = False,
    storage: Mapping[str, Any] | None = None,
) -> NcFile:
    """A file of one variable as TRENDY groups write it: float32, -99999 flagged, mid-month days."""
    if values is None:
        values = world.annual(name) if annual else world.values(name)
    units = units or _UNITS.get(name, "kg m-2 s-1")
    days = year_days(world.years) if annual else time_days(world.years)
    return NcFile(
        {
            "time": NcVar(
                ("time",), days, {"units": "days since 1700-01-01", "calendar": "noleap"}
            ),
            "lat": NcVar(("lat",), world.lat, {"units": "degrees_north"}),
            "lon": NcVar(("lon",), world.lon, {"units": "degrees_east"}),
            called or name: NcVar(
                ("time", "lat", "lon"),
                np.array(values),
                {"units": units, "_FillValue": np.float32(-99999.0)},
                fill=-99999.0,
                dtype="f4",
                storage=dict(PACKED if storage is None else storage),
            ),
        },
        attributes={"institution": "The group", "title": f"{name} of a small world"},
    )


def land_fraction_file(world: World) -> NcFile:
    """The fraction of land of every cell, as a map without time."""
    return NcFile(
        {
            "lat": NcVar(("lat",), world.lat, {"units": "degrees_north"}),
            "lon": NcVar(("lon",), world.lon, {"units": "degrees_east"}),
            "sftlf": NcVar(("lat", "lon"), world.land.astype(float), {"units": "1"}),
        }
    )


def damage(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change the bytes of a file."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


# --- submissions ------------------------------------------------------------------------------


@dataclass
class Submission:
    """A folder of files, and the manifest that says what they are.

    ``variables``: the map's entries; ``sources`` adds plain ones. ``extra``: more keys of the
    manifest.
    """

    top: Path
    years: tuple[int, int] = (2001, 2002)
    model: str = "X"
    simulation: str = "S3"
    variables: dict[str, Any] = field(default_factory=dict)
    frequencies: tuple[str, ...] = ("mon",)
    grids: tuple[str, ...] = ("2deg",)
    patterns: tuple[str, ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    map_extra: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.top / "handed in"

    @property
    def collection(self) -> Path:
        return self.top / "collection"

    def path(self, name: str) -> Path:
        return self.folder / name

    def put(self, name: str, file: NcFile) -> Path:
        """Write a file below the submission's folder."""
        return file.write(self.path(name))

    def sources(self, *names: str, **entries: Mapping[str, Any]) -> None:
        """Map protocol variables to native ones of the same name, or as the entries say."""
        self.variables |= {n: {"source": n} for n in names}
        self.variables |= {n: dict(e) for n, e in entries.items()}

    def manifest(self) -> Path:
        content: dict[str, Any] = {
            "model": {"name": self.model, "version": "v1", "institution": "The group"},
            "simulation": self.simulation,
            "stage": "Prior",
            "years": list(self.years),
            "frequencies": list(self.frequencies),
            "grids": list(self.grids),
            "variables": {"per": "land", **self.map_extra, "variables": self.variables},
            **self.extra,
        }
        if self.patterns is not None:
            content["files"] = list(self.patterns)
        path = self.top / "manifest.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    def harmonize(self, *, twice: bool = True) -> Outcome:
        """Run ``callmip-global harmonize``; twice, to see that the report stays the same."""
        first = self._run(self.top / "report.json")
        if twice:
            again = self._run(self.top / "report again.json")
            assert again.report_bytes == first.report_bytes
            assert again.exit_code == first.exit_code
        return first

    def _run(self, report: Path) -> Outcome:
        from callmip_global.cli.harmonize import harmonize

        app = typer.Typer()
        app.command()(harmonize)
        manifest = str(self.manifest())
        options = ["--manifest", manifest, "--out", str(self.collection), "--report", str(report)]
        result = CliRunner().invoke(app, [str(self.folder), *options])
        return Outcome.of(result, report, self.folder, self.collection)

    def check(self, *options: str) -> Outcome:
        """Run ``callmip-global check`` on the folder."""
        from callmip_global.cli.harmonize import check

        app = typer.Typer()
        app.command()(check)
        report = self.top / "check.json"
        result = CliRunner().invoke(app, [str(self.folder), "--report", str(report), *options])
        return Outcome.of(result, report, self.folder, self.collection)


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    path: str
    variable: str
    outcome: str
    rules: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Outcome:
    """What a command said and left: its report, and the stores of the collection."""

    exit_code: int
    output: str
    rows: tuple[Row, ...]
    report_bytes: bytes
    folder: Path
    stores: tuple[Path, ...]

    @classmethod
    def of(cls, result: Any, report: Path, folder: Path, collection: Path) -> Outcome:
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        content = report.read_bytes()
        rows = tuple(Row(**{**r, "rules": tuple(r["rules"])}) for r in json.loads(content))
        stores = tuple(sorted(collection.glob("*.zarr"))) if collection.is_dir() else ()
        return cls(result.exit_code, result.output, rows, content, folder, stores)

    def of_file(self, name: str) -> list[Row]:
        """Rows of a file (or of a member of an archive) of the submission."""
        return [r for r in self.rows if r.path.endswith(name) and r.path]

    def of_variable(self, name: str) -> list[Row]:
        return [r for r in self.rows if r.variable == name]

    def row(self, variable: str) -> Row:
        """The one row of a variable."""
        (row,) = self.of_variable(variable)
        return row

    def values(self, variable: str, frequency: str = "mon") -> Array:
        """Values of a variable in the one store, in world order: from the south, from -180."""
        from callmip_global.store import open_store

        (store,) = self.stores
        with open_store(store, frequency) as ds:  # type: ignore[arg-type]
            order = np.argsort((ds["lon"].values + 180) % 360)
            return np.asarray(ds[variable].values, dtype=np.float64)[..., order]

    def held(self, frequency: str = "mon") -> set[str]:
        """Names of the fields in the stores; none where there is no store."""
        from callmip_global.store import open_store

        found: set[str] = set()
        for store in self.stores:
            with open_store(store, frequency) as ds:  # type: ignore[arg-type]
                found |= {str(n) for n in ds.data_vars if ds[n].dims == ("time", "lat", "lon")}
        return found

    def accounted(self, ignored: Iterable[str] = ()) -> None:
        """Assert that every file of the folder is in the report, and no line is there twice."""
        keys = [(r.path, r.variable) for r in self.rows]
        assert len(keys) == len(set(keys)), keys
        said = {r.path for r in self.rows if r.path}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            if path.name not in set(ignored):
                inside = [p for p in said if p == str(path) or p.startswith(f"{path}::")]
                parents = [str(p) for p in path.parents if str(p) in said]
                assert inside or parents, f"{path} is not in the report"


def native_instead_of_regridded(native: Path, *, out: Path, **_: Any) -> None:
    """Stands in for ``regrid_store``: the store on the native grid, where that is not the point."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(native, out)
