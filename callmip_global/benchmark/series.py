"""One variable along time on one grid, read a few steps at a time, in the table's units."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.benchmark.product import Product
from callmip_global.compiled import compiled
from callmip_global.errors import DataError, Problem
from callmip_global.grid import Grid, SourceGrid, grid_of
from callmip_global.hdf5 import open_dataset
from callmip_global.store import is_per_land, unmasked_fill
from callmip_global.timeaxis import (
    MonthAxis,
    annual_mean,
    decode_months,
    decode_years,
    time_name,
)
from callmip_global.units import SECONDS_PER_DAY, Conversion, convert_factor, same_units
from callmip_global.variables import UNCERTAINTY, variable_table

Array = NDArray[np.float64]
Period = tuple[int, int]
Box = tuple[slice, slice]
Opener = Callable[[], xr.Dataset]
# Factor and offset of one step, from its period, the frequency and the calendar; None: 1 and 0.
Scale = Callable[[Period, str, str], tuple[float, float]] | None

# What a store holds in one chunk.
_YEARS_AT_ONCE = 5


class Series(Protocol):
    """What the comparison needs of a product or of a run.

    ``periods``: (year, month) of each step, ascending, the month of annual steps 1. ``read`` gives
    (T, nlat, nlon) floats in ``grid`` order, NaN where missing, or the rows and columns of ``box``
    alone. ``land``: land fraction (nlat, nlon) in [0, 1] where the values are means over land and
    the file knows it. ``chunk``: rows and columns that are stored together.
    """

    where: str
    frequency: str
    calendar: str
    periods: tuple[Period, ...]
    grid: Grid
    land: Array | None
    chunk: tuple[int, int]

    def read(self, periods: Sequence[Period], box: Box | None = None) -> NDArray[Any]: ...

    def close(self) -> None: ...


@lru_cache(maxsize=4096)
def days_of(period: Period, frequency: str, calendar: str) -> float:
    """Length of a month or year in its calendar [days]."""
    first = (period[0], 1) if frequency == "yr" else period
    kind: Any = "yr" if frequency == "yr" else "mon"
    return float(MonthAxis(calendar, first, 1, kind).lengths_days[0])


@dataclass
class FileSeries:
    """A series over any number of parts (files, or one group of a store), opened when read.

    ``labels``: of each part, for messages; ``scales``: of each part, for its own units.
    ``dtype``: float32 where all parts hold that, as in a store, whatever their units; else float64.
    """

    where: str
    frequency: str
    calendar: str
    periods: tuple[Period, ...]
    grid: Grid
    land: Array | None
    openers: Sequence[Opener]
    labels: Sequence[str]
    name: str
    places: dict[Period, tuple[int, int]]
    dtype: np.dtype[Any]
    chunk: tuple[int, int]
    scales: Sequence[Scale] = field(repr=False)
    _open: tuple[int, xr.Dataset, SourceGrid] | None = field(default=None, init=False, repr=False)
    # A second pass over a tile reads while the next tile is read ahead.
    _reading: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def read(self, periods: Sequence[Period], box: Box | None = None) -> NDArray[Any]:
        with self._reading:
            return self._read(periods, box)

    def _read(self, periods: Sequence[Period], box: Box | None) -> NDArray[Any]:
        rows, columns = box or (slice(None), slice(None))
        shape = [
            len(range(*cut.indices(n)))
            for cut, n in zip((rows, columns), self.grid.shape, strict=True)
        ]
        out = np.empty((len(periods), *shape), self.dtype)
        flat = out.reshape(len(periods), -1)
        wanted = [(*self.places[period], i) for i, period in enumerate(periods)]
        for part in sorted({place[0] for place in wanted}):
            ds, source = self._part(part)
            at = self.labels[part]
            da = source.to_grid_order(_plain(ds[self.name], source, _time_dim(ds), at))
            steps = [step for p, step, _ in wanted if p == part]
            places = [i for p, _, i in wanted if p == part]
            if _time_dim(ds) in da.dims:
                first, last = steps[0], steps[-1]
                run = steps == list(range(first, last + 1))
                # A slice is read chunk by chunk, a list of indices cell by cell.
                da = da.isel({_time_dim(ds): slice(first, last + 1) if run else steps})
            da = da.isel(lat=rows, lon=columns)
            try:
                values = np.asarray(da.values)
            except (OSError, RuntimeError, ValueError) as error:
                raise DataError(
                    Problem(at, self.name, f"data that cannot be read ({why_unreadable(error)})")
                ) from error
            fill = unmasked_fill(values)
            if fill is not None:
                found = f"{fill:g}, which no attribute calls missing"
                remedy = f"Name it first: ncatted -a _FillValue,{self.name},o,f,{fill:g} FILE"
                raise DataError(Problem(at, self.name, found, "missing values", remedy))
            if _time_dim(ds) in da.dims or len(steps) == 1:
                values = values.reshape(len(steps), *shape)
            else:
                # What has no time of its own is the same at every step.
                values = np.repeat(values[None], len(steps), axis=0)
            scale = self.scales[part]
            if scale is None and places == list(range(len(periods))):
                return values.astype(self.dtype, copy=False)
            if scale is None:
                out[places] = values
                continue
            of = [scale(periods[place], self.frequency, self.calendar) for place in places]
            factors, offsets = np.array(of, np.float64).T
            _scaled(values.reshape(len(steps), -1), factors, offsets, np.array(places), flat)
        return out

    def place(self, period: Period) -> str:
        """The part that a period is in, for messages."""
        return self.labels[self.places[period][0]]

    def _part(self, part: int) -> tuple[xr.Dataset, SourceGrid]:
        """The open part; only one is held open at a time."""
        if self._open is None or self._open[0] != part:
            self.close()
            ds = self.openers[part]()
            self._open = (part, ds, grid_of(ds, self.labels[part]))
        return self._open[1:]

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


@dataclass
class AnnualSeries:
    """Annual means, weighted by the length of the months, of a monthly series' whole years."""

    monthly: Series
    frequency: str = "yr"

    def __post_init__(self) -> None:
        self.where = self.monthly.where
        self.calendar = self.monthly.calendar
        self.grid = self.monthly.grid
        self.land = self.monthly.land
        self.chunk = self.monthly.chunk
        months = set(self.monthly.periods)
        years = sorted({year for year, _ in months})
        self.periods: tuple[Period, ...] = tuple(
            (year, 1) for year in years if all((year, m) in months for m in range(1, 13))
        )

    def read(self, periods: Sequence[Period], box: Box | None = None) -> Array:
        parts = []
        for start in range(0, len(periods), _YEARS_AT_ONCE):
            months = [
                (year, month)
                for year, _ in periods[start : start + _YEARS_AT_ONCE]
                for month in range(1, 13)
            ]
            lengths = np.array([days_of(month, "mon", self.calendar) for month in months])
            parts.append(annual_mean(self.monthly.read(months, box), lengths))
        return np.concatenate(parts).astype(np.float64)

    def close(self) -> None:
        self.monthly.close()


def at_frequency(series: Series, frequency: str) -> Series | None:
    """The series at ``mon``, ``yr`` or ``fx`` (as it is): itself or its annual means, else None."""
    if frequency in ("fx", series.frequency):
        return series
    if (frequency, series.frequency) == ("yr", "mon"):
        return AnnualSeries(series)
    return None


def product_series(product: Product) -> FileSeries:
    """The product's files as one series; DataError says in one line what is wrong with them."""
    where = f"product {product.name}"
    files = product.files()
    if not files:
        raise DataError(
            Problem(where, product.variable, "no file", f"files at {', '.join(product.paths)}")
        )
    openers = [file_opener(path) for path in files]
    places = [f"{where} ({path.name})" for path in files]
    return file_series(
        where,
        places,
        openers,
        product.source,
        product.variable,
        lambda ds, name, at: _product_conversion(product, ds[name], at),
        static=product.static,
    )


def run_series(
    where: str, places: Sequence[str], openers: Sequence[Opener], variable: str
) -> FileSeries:
    """One variable of a run: named as in the protocol, in any units that convert to the table's.

    A stated uncertainty is a width: its units convert without their offset.
    """
    of = variable.removesuffix(UNCERTAINTY)

    def conversion(ds: xr.Dataset, name: str, at: str) -> Scale:
        units = str(ds[name].attrs.get("units", ""))
        found = convert_factor(units, variable_table()[of].units, at, variable)
        return unit_scale(found if of == variable else replace(found, offset=0.0))

    return file_series(where, places, openers, variable, variable, conversion)


def file_series(
    where: str,
    places: Sequence[str],
    openers: Sequence[Opener],
    source: str | None,
    variable: str,
    conversion: Callable[[xr.Dataset, str, str], Scale],
    *,
    static: bool = False,
    constant: bool = False,
) -> FileSeries:
    """Index the parts by (year, month) and check that they are one series on one grid.

    ``conversion`` of each part, for files may have different units. ``static``: a map without time
    will do; ``constant``: so it will beside times, for all of them.
    """
    periods: dict[Period, tuple[int, int]] = {}
    frequencies: set[str] = set()
    first: SourceGrid | None = None
    calendar, name, land = "standard", "", None
    scales: list[Scale] = []
    dtype: np.dtype[Any] = np.dtype(np.float32)
    chunk = (0, 0)
    for index, (opener, at) in enumerate(zip(openers, places, strict=True)):
        with _opened(opener, at) as ds:
            own_name = _variable_name(ds, source, variable, at)
            grid = grid_of(ds, at)
            _plain(ds[own_name], grid, _time_dim(ds), at)
            if first is None:
                first, name = grid, own_name
                land = _land_fraction(ds, grid, at) if is_per_land(ds[name]) else None
                chunk = _stored_together(ds[name], grid)
            elif grid.grid.shape != first.grid.shape or own_name != name:
                raise DataError(
                    Problem(
                        at,
                        own_name,
                        f"{own_name} on {grid.grid.shape}",
                        f"{name} on {first.grid.shape} as in {places[0]}",
                    )
                )
            scales.append(conversion(ds, own_name, at))
            if ds[own_name].dtype != np.float32:
                dtype = np.dtype(np.float64)
            timeless = _time_dim(ds) not in ds[own_name].dims
            if timeless and not static and not constant and ds.sizes.get(_time_dim(ds), 1) > 1:
                raise DataError(
                    Problem(at, name, f"dimensions {ds[name].dims}", "time, latitude and longitude")
                )
            if static and timeless:
                frequency, calendar, found = "fx", "standard", [(2000, 1)]
            else:
                frequency, calendar, found = _periods(ds, at)
            frequencies.add(frequency)
            for step, period in enumerate(found):
                if period in periods:
                    raise DataError(
                        Problem(
                            at,
                            "time",
                            f"{said_period(period, frequency)} a second time",
                            f"each once ({places[periods[period][0]]} has it too)",
                        )
                    )
                periods[period] = (index, step)
    if first is None:
        raise DataError(Problem(where, variable, "no file"))
    if len(frequencies) > 1:
        raise DataError(
            Problem(where, variable, f"a mixture of frequencies {sorted(frequencies)}", "one")
        )
    frequency = frequencies.pop()
    same_month = len({month for _, month in periods}) == 1
    if frequency == "mon" and same_month and len(periods) > 1:
        # One stamp a year, in separate files or with its own middle: an annual series.
        frequency = "yr"
        periods = {(year, 1): place for (year, _), place in periods.items()}
    return FileSeries(
        where=where,
        frequency=frequency,
        calendar=calendar,
        periods=tuple(sorted(periods)),
        grid=first.grid,
        land=land,
        openers=openers,
        labels=places,
        name=name,
        places=periods,
        dtype=dtype,
        chunk=chunk,
        scales=scales,
    )


def _stored_together(da: xr.DataArray, grid: SourceGrid) -> tuple[int, int]:
    """Rows and columns of a chunk; those of the map where that is not known."""
    chunks = da.encoding.get("preferred_chunks") or {}
    rows, columns = grid.grid.shape
    if da.encoding.get("contiguous") and grid.lat_dim != da.dims[-1]:
        return 1, columns
    return int(chunks.get(grid.lat_dim, rows)), int(chunks.get(grid.lon_dim, columns))


def file_opener(path: Path) -> Opener:
    """Opens a NetCDF file lazily, missing values masked, times left as they are."""

    def open_file() -> xr.Dataset:
        # Times are decoded by timeaxis, which knows the units that xarray refuses.
        return open_dataset(path)

    return open_file


def _opened(opener: Opener, at: str) -> xr.Dataset:
    try:
        return opener()
    except (OSError, ValueError) as error:
        raise DataError(
            Problem(
                at, found=f"a file that cannot be read ({why_unreadable(error)})", wanted="NetCDF"
            )
        ) from error


def why_unreadable(error: Exception) -> str:
    """What a library says of a file that it cannot open, in a few words."""
    text = " ".join(str(error).split())
    return "no NetCDF file" if text.startswith("did not find a match") else text[:120]


def _time_dim(ds: xr.Dataset) -> str:
    try:
        dims = ds[time_name(ds, "")].dims
    except DataError:
        return "time"
    return str(dims[0]) if dims else "time"


def _variable_name(ds: xr.Dataset, source: str | None, variable: str, at: str) -> str:
    wanted = source if source is not None else variable
    if wanted in ds.data_vars:
        return wanted
    names = [
        str(n)
        for n, v in ds.data_vars.items()
        if v.ndim >= 2 and not str(n).endswith(("_bnds", "_bounds"))
    ]
    if source is None and len(names) == 1:
        return names[0]
    raise DataError(
        Problem(
            at,
            wanted,
            "no such variable",
            f"one of: {', '.join(names)}" if names else "a variable with latitude and longitude",
            "Name it with `source:` in the products file.",
        )
    )


def _plain(da: xr.DataArray, grid: SourceGrid, time: str, at: str) -> xr.DataArray:
    """(time, lat, lon) or (lat, lon): dimensions of length 1 are dropped, others refused."""
    horizontal = {grid.lat_dim, grid.lon_dim}
    if not grid.on_grid(da):
        raise DataError(
            Problem(at, str(da.name), f"dimensions {da.dims}", "latitude and longitude")
        )
    extra = [dim for dim in da.dims if dim not in horizontal and dim != time]
    long = [f"{dim} ({da.sizes[dim]})" for dim in extra if da.sizes[dim] > 1]
    if long:
        raise DataError(
            Problem(
                at,
                str(da.name),
                f"further dimensions {', '.join(long)}",
                "time, latitude, longitude",
                "Select or sum them beforehand.",
            )
        )
    return da.isel(dict.fromkeys(extra, 0), drop=True)


def _land_fraction(ds: xr.Dataset, grid: SourceGrid, at: str) -> Array | None:
    if "sftlf" not in ds.variables:
        return None
    da = ds["sftlf"]
    if set(da.dims) != {grid.lat_dim, grid.lon_dim}:
        raise DataError(
            Problem(at, "sftlf", f"dimensions {da.dims}", "latitude and longitude alone")
        )
    values = np.asarray(grid.to_grid_order(da).values, dtype=np.float64)
    return values / (1.0 if str(da.attrs.get("units", "%")) == "1" else 100.0)


def _periods(ds: xr.Dataset, at: str) -> tuple[str, str, list[Period]]:
    """Frequency, calendar and (year, month) of each step; months may be missing, not repeated."""
    try:
        axis = decode_months(ds, at)
    except DataError as error:
        try:
            axis = decode_years(ds, at)
        except DataError:
            return _separate_months(ds, at, error)
    return axis.frequency, axis.calendar, list(axis.periods)


def _separate_months(ds: xr.Dataset, at: str, error: DataError) -> tuple[str, str, list[Period]]:
    """Each step read by itself, for a product may lack months; ``error`` where that is not it."""
    dim = _time_dim(ds)
    size = int(ds.sizes.get(dim, 1))
    if size == 1:
        raise error
    steps = [decode_months(ds.isel({dim: [i]}), at) for i in range(size)]
    found = [step.first for step in steps]
    if len(set(found)) < size or found != sorted(found):
        raise error
    return "mon", steps[0].calendar, found


def said_period(period: Period, frequency: str) -> str:
    """``2003`` or ``2003-07``."""
    return str(period[0]) if frequency == "yr" else f"{period[0]}-{period[1]:02d}"


def _product_conversion(product: Product, da: xr.DataArray, at: str) -> Scale:
    own = str(da.attrs.get("units", "")).strip()
    target = variable_table()[product.variable].units
    if product.units is not None:
        if product.native_units and own and not same_units(own, product.native_units):
            raise DataError(
                Problem(
                    at,
                    str(da.name),
                    f"units {own!r}",
                    f"{product.native_units!r}, which the factor {product.factor:g} presumes",
                    "State the file's units (native_units), factor and units for this product.",
                )
            )
        units = product.units
    else:
        units = own or product.native_units or ""
    scale = product.sign * product.factor
    try:
        conversion = convert_factor(units, target, at, product.variable)
    except DataError as error:
        raise DataError(_of_a_product(problem) for problem in error.problems) from error
    return unit_scale(conversion, scale)


def _of_a_product(problem: Problem) -> Problem:
    """The same with the remedy where a product has it: in its entry, not in a variable map."""
    true = "in its file (ncatted), or as factor and units in the products file"
    return replace(problem, remedy=problem.remedy.replace("in the variable map", true))


def unit_scale(conversion: Conversion, scale: float = 1.0) -> Scale:
    """``scale`` times the numbers, converted; None where they stay as they are."""
    if conversion.identity and scale == 1.0:
        return None

    def of(period: Period, frequency: str, calendar: str) -> tuple[float, float]:
        seconds = 1.0
        if conversion.per is not None:
            per = "yr" if conversion.per == "year" or frequency == "yr" else "mon"
            seconds = days_of(period, per, calendar) * SECONDS_PER_DAY
            if frequency == "yr" and conversion.per == "month":
                # Annual means of an amount per month: the year holds twelve of them.
                seconds /= 12.0
        return scale * conversion.factor / seconds, conversion.offset / seconds

    return of


@compiled
def _scaled(
    values: NDArray[Any], factors: Array, offsets: Array, places: NDArray[np.int64], out: Any
) -> None:
    """Steps (T, N) times factor plus offset (T,), each to its place in ``out``."""
    for t in range(len(values)):
        row = out[places[t]]
        for i in range(values.shape[1]):
            row[i] = values[t, i] * factors[t] + offsets[t]
