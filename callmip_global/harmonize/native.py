"""A model's own NetCDF files: what is in them, and blocks of values as the map says they are.

Headers are read once (``scan``); which file holds which month of which variable is decided from
them (``Timeline``); values are then read in blocks of time, in float64, on the ascending grid.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.grid import SourceGrid, grid_of
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.netcdf3 import needed_bytes
from callmip_global.timeaxis import (
    Frequency,
    MonthAxis,
    canonical_calendar,
    decode_months,
    decode_years,
    month_axis,
    time_name,
)

DEFAULT_FILL = 9.969209968386869e36
"""NetCDF's own fill value for floats: missing even where no attribute says so."""

Array = NDArray[np.float64]
Period = tuple[int, int]
Note = tuple[str, str]

# The NetCDF library must not be called from two threads at a time.
_LIBRARY = threading.Lock()


@dataclass(frozen=True)
class NativeVariable:
    """Header of one variable: dimensions with sizes, and attributes."""

    dims: Mapping[str, int]
    attributes: Mapping[str, Any]

    @property
    def units(self) -> str | None:
        """The file's units, None where it states none (``unit`` is a slip that was seen)."""
        for key in ("units", "unit"):
            if str(self.attributes.get(key, "")).strip():
                return str(self.attributes[key])
        return None


@dataclass(frozen=True)
class NativeFile:
    """Header of one file.

    ``axis`` is None without a time axis. ``one_step``: a single stamp without bounds, which may be
    a month or a year; the files around it decide. ``notes``: (rule, words) of what had to be mended
    or assumed to read it. ``synthetic``: what the file says of itself where its values are
    synthetic. ``origin``: what reports and messages call the file, ``archive.tar.gz::member.nc``
    for one that was unpacked; the path if nothing else is given.
    """

    path: Path
    variables: Mapping[str, NativeVariable]
    source_grid: SourceGrid | None
    axis: MonthAxis | None
    time_dim: str | None
    one_step: bool
    notes: tuple[Note, ...] = ()
    synthetic: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        if not self.origin:
            object.__setattr__(self, "origin", str(self.path))

    @property
    def name(self) -> str:
        """The last part of the origin, for messages that name a second file."""
        return self.origin.rsplit("/", 1)[-1]

    def grid_dims(self) -> set[str]:
        """Names of the horizontal dimensions."""
        grid = self.source_grid
        return set() if grid is None else {str(grid.lat_dim), str(grid.lon_dim)}

    def data_variables(self) -> list[str]:
        """Variables that are fields on the grid and change in time, or may."""
        dims = self.grid_dims()
        return [n for n, v in self.variables.items() if dims and dims <= set(v.dims)]


def open_native(path: Path, origin: str = "") -> tuple[xr.Dataset, tuple[Note, ...]]:
    """The file with nothing decoded, and notes of what was mended. DataError if it cannot be read.

    A scalar variable named like a dimension (as in CalLMIP's own template: ``double lat;``) cannot
    be opened; it is dropped, the coordinate is then the one of another name.
    """
    where = origin or str(path)
    if path.suffix in (".gz", ".tar", ".zip", ".bz2"):
        raise DataError(Problem(where, found="a packed file", remedy="Unpack it first."))
    _check_length(path, where)
    notes: tuple[Note, ...] = ()
    try:
        try:
            ds = xr.open_dataset(path, engine="netcdf4", decode_cf=False, cache=False)
        except ValueError as error:
            if "already exists as a scalar variable" not in str(error):
                raise
            ds = xr.open_dataset(
                path,
                engine="netcdf4",
                decode_cf=False,
                cache=False,
                drop_variables=_scalars_named_like_dimensions(path),
            )
            notes = (("file", "scalar variables named like a dimension were ignored"),)
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).replace(str(path), "").split())[:120]
        remedy = "Copy it again; interrupted copies look like this."
        raise DataError(
            Problem(where, found=f"a file that cannot be opened ({text})", remedy=remedy)
        ) from None
    return ds, notes


def _check_length(path: Path, where: str) -> None:
    """DataError for a NetCDF-3 file shorter than its header says: it would be read as zeros."""
    found, wanted = "", ""
    try:
        needed = needed_bytes(path)
        size = path.stat().st_size
        if needed is not None and size < needed:
            found, wanted = f"a truncated file of {size} bytes", f"{needed} bytes by its header"
    except (OSError, ValueError) as error:
        found = f"a file that cannot be opened ({error})"
    if found:
        remedy = "Copy it again; interrupted copies look like this."
        raise DataError(Problem(where, "", found, wanted, remedy))


def _scalars_named_like_dimensions(path: Path) -> list[str]:
    with netCDF4.Dataset(path) as nc:
        return [n for n, v in nc.variables.items() if n in nc.dimensions and not v.dimensions]


_NOTHING = Declared()


def scan(path: Path, declared: Declared = _NOTHING, origin: str = "") -> NativeFile:
    """Header of a file. ``declared``: its calendar is used where the file states none.

    DataError for a file that cannot be opened, whose time axis cannot be understood or whose
    calendar contradicts the declared one, whose grid is no rectilinear one.
    """
    where = origin or str(path)
    ds, notes = open_native(path, where)
    with ds:
        variables = {
            str(n): NativeVariable(
                {str(d): int(s) for d, s in zip(v.dims, v.shape, strict=True)}, dict(v.attrs)
            )
            for n, v in ds.variables.items()
        }
        axis, time_dim, one_step, more = _axis(ds, where, declared.calendar)
        has_grid = any(len(v.dims) >= 2 for v in variables.values())
        grid = grid_of(ds, where) if has_grid else None
        synthetic = _synthetic(ds.attrs)
    notes += more
    return NativeFile(path, variables, grid, axis, time_dim, one_step, notes, synthetic, where)


def _synthetic(attributes: Mapping[Any, Any]) -> str:
    """The words of a file that calls itself synthetic, so that the label is never lost."""
    stated = str(attributes.get("synthetic", ""))
    comment = str(attributes.get("comment", ""))
    if stated and stated.lower() != "false":
        return comment or stated
    return comment if "synthetic" in comment.lower() else ""


def _axis(
    ds: xr.Dataset, where: str, calendar: str | None
) -> tuple[MonthAxis | None, str | None, bool, tuple[Note, ...]]:
    """(axis, its dimension, whether the one step may be a month or a year, notes)."""
    try:
        name = time_name(ds, where)
    except DataError:
        return None, None, False, ()
    time = ds[name]
    notes: tuple[Note, ...] = ()
    stated = str(time.attrs.get("calendar", "")).strip()
    declared = None
    if not stated:
        declared = calendar
        rule = "calendar-assumed" if calendar is None else "calendar-declared"
        notes = ((rule, f"calendar not stated, taken as {calendar or 'standard'}"),)
    elif calendar is not None:
        try:
            differ = canonical_calendar(stated) != canonical_calendar(calendar)
        except ValueError:
            differ = True
        if differ:
            raise DataError(
                Problem(
                    where,
                    f"{name}.calendar",
                    repr(stated),
                    f"{calendar!r}, as the variable map declares",
                    "Correct whichever is wrong.",
                )
            )
    dim = str(time.dims[0]) if time.ndim else None
    bounds = ds.get(str(time.attrs.get("bounds", f"{name}_bnds")))
    has_bounds = bounds is not None and bounds.shape == (max(time.size, 1), 2)
    try:
        axis = decode_months(ds, where, declared)
    except DataError as monthly:
        try:
            axis = decode_years(ds, where, declared)
        except DataError:
            raise monthly from None
    return axis, dim, time.size == 1 and not has_bounds, notes


@dataclass(frozen=True)
class Piece:
    """Consecutive periods of one variable in one file: ``periods[i]`` is step ``start + i``."""

    file: NativeFile
    periods: tuple[Period, ...]
    start: int


@dataclass(frozen=True)
class Timeline:
    """Every wanted period of one native variable, and the file each comes from.

    ``axis``: the wanted whole years, January first. ``pieces``: in time order, without gaps.
    """

    name: str
    axis: MonthAxis
    pieces: tuple[Piece, ...]

    @property
    def files(self) -> tuple[NativeFile, ...]:
        """Files the values come from, in time order."""
        return tuple(piece.file for piece in self.pieces)

    @property
    def header(self) -> NativeVariable:
        """Header of the variable in its first file."""
        return self.pieces[0].file.variables[self.name]

    def read(self, steps: slice, select: Mapping[str, Sequence[int]]) -> Array:
        """(n, nlat, nlon) float64 values of the wanted steps in native units, missing as NaN.

        DataError when a file cannot be read there (damaged chunks).
        """
        blocks = [_read_field(*part, select) for part in self._parts(steps)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def read_layers(self, steps: slice) -> Array:
        """(n, layers, nlat, nlon): as `read`, with the values of every layer or plant type."""
        blocks = [_read_layers(*part, {}) for part in self._parts(steps)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _parts(self, steps: slice) -> Iterator[tuple[NativeFile, str, slice]]:
        """(file, variable, steps in it) for the wanted steps, in time order."""
        at = 0
        for piece in self.pieces:
            first = max(steps.start - at, 0)
            last = min(steps.stop - at, len(piece.periods))
            if first < last:
                yield piece.file, self.name, slice(piece.start + first, piece.start + last)
            at += len(piece.periods)


def build_timeline(
    name: str, files: Iterable[NativeFile], years: tuple[int, int] | None, where: str
) -> Timeline:
    """The timeline of a native variable over the whole years first..last (None: all there is).

    Monthly values are taken where there are any, annual ones only where the model wrote nothing
    else. DataError on overlaps and on missing periods, which are listed, and when the files
    disagree on the calendar or the grid.
    """
    holders = [f for f in files if name in f.variables and f.axis is not None]
    fixed = [
        f
        for f in holders
        if f.axis and f.axis.size > 1 and f.time_dim not in f.variables[name].dims
    ]
    if fixed:
        remedy = "Give it a time axis; one map is never repeated for every month."
        found = "a field without time beside a time axis"
        raise DataError(Problem(fixed[0].origin, name, found, "values along time", remedy))
    if not holders:
        raise DataError(
            Problem(where, found=f"no file with the native variable {name!r} and a time axis")
        )
    monthly, annual = _by_frequency([Piece(f, f.axis.periods, 0) for f in holders if f.axis])
    if monthly:
        return _timeline(name, monthly, years, "mon", where)
    return _timeline(name, annual, years, "yr", where)


def _by_frequency(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Monthly and annual pieces; single stamps without bounds go where their neighbours are.

    Stamps of different years, never two in one year, are annual if no monthly file is there.
    """
    monthly, annual, unsure = [], [], []
    for piece in pieces:
        axis = piece.file.axis
        if piece.file.one_step:
            unsure.append(piece)
        elif axis is not None and axis.frequency == "yr":
            annual.append(piece)
        else:
            monthly.append(piece)
    years = [piece.periods[0][0] for piece in unsure]
    if unsure and (annual or len(unsure) > 1) and not monthly and len(set(years)) == len(years):
        annual += [replace(p, periods=((p.periods[0][0], 1),)) for p in unsure]
    else:
        monthly += unsure
    return monthly, annual


def _timeline(
    name: str,
    pieces: list[Piece],
    years: tuple[int, int] | None,
    frequency: Frequency,
    where: str,
) -> Timeline:
    first = pieces[0].file
    calendar = first.axis.calendar if first.axis else "standard"
    axis = _extent(pieces, calendar, frequency)
    if years is not None:
        axis = month_axis(years, calendar, frequency)
    for piece in pieces:
        other = piece.file.axis
        if other is not None and other.calendar != calendar:
            found = f"calendar {other.calendar}"
            wanted = f"{calendar}, as in {first.name}"
            raise DataError(Problem(piece.file.origin, "time", found, wanted))
        grid, reference = piece.file.source_grid, first.source_grid
        if grid is None or reference is None or grid.grid != reference.grid:
            found, wanted = "another grid", f"the grid of {first.name}"
            raise DataError(Problem(piece.file.origin, name, found, wanted))
    inside = set(axis.periods)
    holder: dict[Period, Piece] = {}
    cut: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (p.periods[0], str(p.file.path))):
        kept = [i for i, period in enumerate(piece.periods) if period in inside]
        if not kept:
            continue
        part = Piece(piece.file, piece.periods[kept[0] : kept[-1] + 1], piece.start + kept[0])
        double = [p for p in part.periods if p in holder]
        if double:
            other = holder[double[0]].file.origin
            raise DataError(
                Problem(
                    part.file.origin,
                    name,
                    f"{_spans(double, frequency)} again, also in {other}",
                    "each period in one file",
                    "Name the files to use; a newer copy is never picked by itself.",
                )
            )
        holder.update(dict.fromkeys(part.periods, part))
        cut.append(part)
    missing = [p for p in axis.periods if p not in holder]
    if missing:
        unit = "years" if frequency == "yr" else "months"
        raise DataError(
            Problem(
                where,
                name,
                f"no {_spans(missing, frequency)} ({len(missing)} of {axis.size} {unit})",
                f"every period of {axis.years[0]} to {axis.years[1]}",
            )
        )
    return Timeline(name, axis, tuple(cut))


def _extent(pieces: Sequence[Piece], calendar: str, frequency: Frequency) -> MonthAxis:
    """From the first to the last period of all pieces."""
    first = min(piece.periods[0] for piece in pieces)
    last = max(piece.periods[-1] for piece in pieces)
    months = 12 * (last[0] - first[0]) + last[1] - first[1]
    return MonthAxis(calendar, first, months // (12 if frequency == "yr" else 1) + 1, frequency)


def whole_years(timeline: Timeline) -> tuple[int, int] | None:
    """First and last whole year of a timeline, or None if it has none."""
    axis = timeline.axis
    if axis.frequency == "yr":
        return axis.years
    try:
        return axis.complete_years()[1].years
    except ValueError:
        return None


def _spans(periods: Sequence[Period], frequency: Frequency) -> str:
    """``2003-05 to 2003-07, 2004-01``: runs of periods in words, at most four of them."""
    step = 12 if frequency == "yr" else 1
    runs: list[list[int]] = []
    for year, month in sorted(periods):
        index = year * 12 + month - 1
        if runs and index == runs[-1][1] + step:
            runs[-1][1] = index
        else:
            runs.append([index, index])

    def said(index: int) -> str:
        return str(index // 12) if frequency == "yr" else f"{index // 12}-{index % 12 + 1:02d}"

    texts = [said(a) if a == b else f"{said(a)} to {said(b)}" for a, b in runs]
    more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
    return ", ".join(texts[:4]) + more


def read_static(file: NativeFile, name: str) -> Array:
    """(nlat, nlon) float64: a field that does not change; of a changing one its first step."""
    return np.asarray(_read_field(file, name, slice(0, 1), {})[0])


def _read_field(
    file: NativeFile, name: str, steps: slice, select: Mapping[str, Sequence[int]]
) -> Array:
    """(n, nlat, nlon) of one variable, decoded; extra dimensions of ``select`` are summed."""
    by_layer = _read_layers(file, name, steps, select)
    summed: Array = by_layer[:, 0] if by_layer.shape[1] == 1 else by_layer.sum(axis=1)
    return summed


def _read_layers(
    file: NativeFile, name: str, steps: slice, select: Mapping[str, Sequence[int]]
) -> Array:
    """(n, layers, nlat, nlon) of one variable, decoded; one layer at least."""
    where, grid = file.origin, file.source_grid
    dims = tuple(file.variables[name].dims)
    if grid is None or not {str(grid.lat_dim), str(grid.lon_dim)} <= set(dims):
        found = f"dimensions ({', '.join(dims)})"
        raise DataError(Problem(where, name, found, "a field on latitudes and longitudes"))
    index = tuple(
        steps if d == file.time_dim else list(select[d]) if d in select else slice(None)
        for d in dims
    )
    try:
        # Not through xarray: its opening takes longer than the reading of a month.
        with _LIBRARY, netCDF4.Dataset(file.path) as nc:
            nc.set_auto_maskandscale(False)
            raw = np.asarray(nc.variables[name][index])
    except (OSError, RuntimeError) as error:
        text = " ".join(str(error).replace(str(file.path), "").split())[:120]
        raise DataError(
            Problem(where, name, f"values that cannot be read ({text})", "an undamaged file")
        ) from None
    field_ = grid.to_grid_order(xr.DataArray(raw, dims=dims, name=name))
    attributes = file.variables[name].attributes
    lead = [d for d in field_.dims if d not in ("lat", "lon")]
    order = [d for d in lead if d == file.time_dim] + [d for d in lead if d != file.time_dim]
    values = decoded(field_.transpose(*order, "lat", "lon").values, attributes)
    shape = (values.shape[0] if order[:1] == [file.time_dim] else 1, -1, *values.shape[-2:])
    by_layer: Array = values.reshape(shape)
    return by_layer


def decoded(raw: NDArray[Any], attributes: Mapping[str, Any]) -> Array:
    """Packed or masked values as float64 with NaN for missing (CF sections 2.5.1 and 8.1).

    Missing are ``_FillValue`` and ``missing_value``, compared in the type they are stored in, and
    NetCDF's own default fill.
    """
    missing = np.zeros(raw.shape, dtype=bool)
    for key in ("_FillValue", "missing_value"):
        for value in np.atleast_1d(attributes.get(key, [])):
            try:
                missing |= raw == raw.dtype.type(value)
            except (TypeError, ValueError, OverflowError):
                continue
    values: Array = raw.astype(np.float64)
    if raw.dtype.kind == "f":
        missing |= raw == raw.dtype.type(DEFAULT_FILL)
    values *= float(attributes.get("scale_factor", 1.0))
    values += float(attributes.get("add_offset", 0.0))
    values[missing] = np.nan
    return values


class Readable(Protocol):
    """A file to read, and what to call it."""

    @property
    def path(self) -> Path: ...
    @property
    def origin(self) -> str: ...


@dataclass
class Inventory:
    """All native files of one run: their headers, and the problems of broken ones by origin."""

    files: list[NativeFile] = field(default_factory=list)
    problems: dict[str, list[Problem]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Iterable[Path | Readable], declared: Declared = _NOTHING) -> Inventory:
        """Headers of all files; a broken file is noted and never stops the others."""
        inventory = cls()
        named = {(str(f), f) if isinstance(f, Path) else (f.origin, f.path) for f in found}
        for origin, path in sorted(named):
            try:
                inventory.files.append(scan(path, declared, origin))
            except DataError as error:
                inventory.problems[origin] = list(error.problems)
        return inventory
