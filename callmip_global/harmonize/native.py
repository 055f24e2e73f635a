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

from callmip_global import hdf5
from callmip_global.errors import DataError, Problem
from callmip_global.grid import SourceGrid
from callmip_global.harmonize.coordinates import aligned, grid_words, read_grid
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.kernels import decode
from callmip_global.harmonize.netcdf3 import needed_bytes
from callmip_global.harmonize.times import read_axis
from callmip_global.harmonize.zarrfiles import lost_chunks, open_zarr, read_zarr
from callmip_global.timeaxis import Frequency, MonthAxis, month_axis

DEFAULT_FILL = 9.969209968386869e36
"""NetCDF's own fill value for floats: missing even where no attribute says so."""

_PACKING = {"scale_factor": 1.0, "add_offset": 0.0}

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
    synthetic. ``own_notes`` and ``flaws``: notes of single variables, and what makes one unusable.
    ``problems``: why the header as a whole cannot be used; every field then has a flaw.
    ``origin``: what reports and messages call the file, ``archive.tar.gz::member.nc``
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
    own_notes: Mapping[str, tuple[Note, ...]] = field(default_factory=dict)
    flaws: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        if not self.origin:
            object.__setattr__(self, "origin", str(self.path))

    @property
    def name(self) -> str:
        """The last part of the origin, for messages that name a second file."""
        return self.origin.rsplit("/", 1)[-1]

    def notes_of(self, name: str) -> tuple[Note, ...]:
        """(rule, words) of all that was mended to read one variable."""
        return (*self.notes, *self.own_notes.get(name, ()))

    def grid_dims(self) -> set[str]:
        """Names of the horizontal dimensions."""
        grid = self.source_grid
        return set() if grid is None else {str(grid.lat_dim), str(grid.lon_dim)}

    def data_variables(self) -> list[str]:
        """Variables that are fields on the grid and change in time, or may."""
        dims = self.grid_dims()
        return [n for n, v in self.variables.items() if dims and dims <= set(v.dims)]


class HeaderError(DataError):
    """A header that was read but cannot be used. ``file``: what it holds, a flaw for each field."""

    def __init__(self, file: NativeFile) -> None:
        self.file = file
        super().__init__(file.problems)

    def __reduce__(self) -> tuple[type[HeaderError], tuple[object, ...]]:
        return type(self), (self.file,)


def open_native(path: Path, origin: str = "") -> tuple[xr.Dataset, tuple[Note, ...]]:
    """A NetCDF file or Zarr store with nothing decoded, and (rule, words) of what was mended.

    A scalar variable named like a dimension (as in CalLMIP's own template: ``double lat;``) cannot
    be opened; it is dropped, the coordinate is then the one of another name. DataError if the file
    cannot be read.
    """
    where = origin or str(path)
    if path.is_dir():
        ds, by_variable = open_zarr(path, where)
        return ds, tuple(note for found in by_variable.values() for note in found)
    return _open_netcdf(path, where)


def _open_netcdf(path: Path, where: str) -> tuple[xr.Dataset, tuple[Note, ...]]:
    if path.suffix in (".gz", ".tar", ".zip", ".bz2"):
        raise DataError(
            Problem(where, found="a packed file", remedy="Unpack it first.", rule="unreadable")
        )
    _check_length(path, where)
    scalars: dict[str, float] = {}
    try:
        try:
            ds = xr.open_dataset(path, engine="netcdf4", decode_cf=False, cache=False)
        except ValueError as error:
            if "already exists as a scalar variable" not in str(error):
                raise
            scalars = _scalars_named_like_dimensions(path)
            ds = xr.open_dataset(
                path, engine="netcdf4", decode_cf=False, cache=False, drop_variables=list(scalars)
            )
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).replace(str(path), "").split())[:120]
        remedy = "Copy it again; interrupted copies look like this."
        found = f"a file that cannot be opened ({text})"
        raise DataError(Problem(where, found=found, remedy=remedy, rule="unreadable")) from None
    if not scalars:
        return ds, ()
    said = [f"{name} = {value:.10g}" + _beside(ds, name) for name, value in scalars.items()]
    words = "scalar variables named like a dimension were left out: " + ", ".join(said)
    return ds, (("file", words),)


def _beside(ds: xr.Dataset, dim: str) -> str:
    """What the coordinate of a dimension says, where its own name went to a scalar."""
    along = [str(n) for n, v in ds.variables.items() if v.dims == (dim,) and v.size == 1]
    said = [f"{n} is {float(ds[n].values[0]):.10g}" for n in along if ds[n].dtype.kind in "iuf"]
    return f" ({', '.join(said)})" if said else ""


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


def _scalars_named_like_dimensions(path: Path) -> dict[str, float]:
    with netCDF4.Dataset(path) as nc:
        nc.set_auto_maskandscale(False)
        return {
            n: float(v[...])
            for n, v in nc.variables.items()
            if n in nc.dimensions and not v.dimensions
        }


_NOTHING = Declared()


def scan(path: Path, declared: Declared = _NOTHING, origin: str = "") -> NativeFile:
    """Header of a NetCDF file or Zarr store.

    declared : its calendar is used where the file states none, its start where times have no units
    DataError for a file that cannot be opened. HeaderError, a DataError, with all problems of one
    whose time axis cannot be understood or contradicts what is declared, or whose grid is no
    rectilinear one; and with what was mended to open it.
    """
    where = origin or str(path)
    own_notes: dict[str, list[Note]] = {}
    if path.is_dir():
        ds, own_notes = open_zarr(path, where)
        notes: tuple[Note, ...] = ()
    else:
        ds, notes = _open_netcdf(path, where)
    opening = notes
    problems: list[Problem] = []
    times, grid = None, None
    with ds:
        variables = {
            str(n): NativeVariable(
                {str(d): int(s) for d, s in zip(v.dims, v.shape, strict=True)}, dict(v.attrs)
            )
            for n, v in ds.variables.items()
        }
        try:
            times = read_axis(ds, where, declared)
            notes += times.notes if times is not None else ()
        except DataError as error:
            problems += error.problems
        try:
            if any(len(v.dims) >= 2 for v in variables.values()):
                grid, more = read_grid(ds, where)
                notes += more
        except DataError as error:
            problems += error.problems
        synthetic = _synthetic(ds.attrs)
    if problems:
        told = (Problem(where, "", f"and mended before: {w}", rule=rule) for rule, w in opening)
        every = (*problems, *told)
        fields = [
            n for n, v in variables.items() if len(v.dims) >= 2 and n not in _bounds(variables)
        ]
        flaws = dict.fromkeys(fields, every)
        raise HeaderError(
            NativeFile(
                *(path, variables, grid, None, None, False),
                synthetic=synthetic,
                origin=where,
                flaws=flaws,
                problems=every,
            )
        )
    file = NativeFile(
        path=path,
        variables=variables,
        source_grid=grid,
        axis=times.axis if times is not None else None,
        time_dim=times.dim if times is not None else None,
        one_step=times is not None and times.one_step,
        notes=notes,
        synthetic=synthetic,
        origin=where,
    )
    return _with_variables(file, own_notes)


def _bounds(variables: Mapping[str, NativeVariable]) -> set[str]:
    """Names of the bounds of coordinates, by their attribute or their ending."""
    named = {str(v.attributes.get("bounds", "")) for v in variables.values()}
    return named | {n for n in variables if n.endswith(("_bnds", "_bounds", "_bnd"))}


def _with_variables(file: NativeFile, own_notes: dict[str, list[Note]]) -> NativeFile:
    """The file with notes and flaws of each field: order of dimensions, lost chunks.

    Rule ``dimension-order``: fields are turned to time, latitude, longitude.
    """
    flaws: dict[str, tuple[Problem, ...]] = {}
    grid = file.source_grid
    for name in file.data_variables():
        dims = tuple(file.variables[name].dims)
        wanted = [d for d in dims if d == file.time_dim]
        wanted += [d for d in dims if d != file.time_dim and d not in file.grid_dims()]
        assert grid is not None
        wanted += list(dict.fromkeys((str(grid.lat_dim), str(grid.lon_dim))))
        if list(dims) != wanted:
            words = f"({', '.join(dims)}) turned to ({', '.join(wanted)})"
            own_notes.setdefault(name, []).append(("dimension-order", words))
        if file.path.is_dir():
            more, flaw = lost_chunks(
                file.path, file.origin, name, file.variables[name].dims, file.time_dim
            )
            own_notes.setdefault(name, []).extend(more)
            if flaw is not None:
                flaws[name] = (flaw,)
    told = {name: tuple(notes) for name, notes in own_notes.items() if notes}
    return replace(file, own_notes=told, flaws=flaws)


def _synthetic(attributes: Mapping[Any, Any]) -> str:
    """The words of a file that calls itself synthetic, so that the label is never lost."""
    stated = str(attributes.get("synthetic", ""))
    comment = str(attributes.get("comment", ""))
    if stated and stated.lower() != "false":
        return comment or stated
    return comment if "synthetic" in comment.lower() else ""


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
    found_in = [f for f in files if name in f.variables]
    flaws = [problem for f in found_in for problem in f.flaws.get(name, ())]
    if flaws:
        raise DataError(flaws)
    holders = [f for f in found_in if f.axis is not None]
    fixed = [
        f
        for f in holders
        if f.axis and f.axis.size > 1 and f.time_dim not in f.variables[name].dims
    ]
    if fixed:
        remedy = "Give it a time axis; one map is never repeated for every month."
        found = "a field without time beside a time axis"
        raise DataError(
            Problem(fixed[0].origin, name, found, "values along time", remedy, "time-missing")
        )
    if not holders:
        found = "no file that can be used with this native variable and a time axis"
        remedy = "Hand it in; if its file was refused, mend that."
        raise DataError(Problem(where, name, found, remedy=remedy, rule="no-file"))
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
        own = piece.file.axis
        if own is not None and own.calendar != calendar:
            found = f"calendar {own.calendar}"
            wanted = f"{calendar}, as in {first.name}"
            raise DataError(
                Problem(piece.file.origin, "time", found, wanted, rule="calendar-differs")
            )
        grid, reference = piece.file.source_grid, first.source_grid
        if grid is None or reference is None or grid.grid != reference.grid:
            found, wanted = "another grid", f"the grid of {first.name}"
            if grid is not None and reference is not None:
                found = f"{found}, {grid_words(grid.grid)}"
                wanted = f"{wanted}, {grid_words(reference.grid)}"
            raise DataError(Problem(piece.file.origin, name, found, wanted, rule="grid-differs"))
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
                    rule="period-twice",
                )
            )
        holder.update(dict.fromkeys(part.periods, part))
        cut.append(part)
    missing = [p for p in axis.periods if p not in holder]
    if missing:
        raise DataError(_missing(where, name, missing, axis, _extent(pieces, calendar, frequency)))
    return Timeline(name, axis, tuple(cut))


def _missing(
    where: str, name: str, missing: Sequence[Period], axis: MonthAxis, held: MonthAxis
) -> Problem:
    """The problem of periods that no file has: other years than wanted, or a part of them."""
    frequency = axis.frequency
    unit = "years" if frequency == "yr" else "months"
    wanted = f"every period of {axis.years[0]} to {axis.years[1]}"
    found = f"no {_spans(missing, frequency)} ({len(missing)} of {axis.size} {unit})"
    if held.size == axis.size and held.first != axis.first:
        found += f"; the times decode to {held.years[0]} to {held.years[1]}"
        remedy = "As many as wanted, but others: are the time units right? Nothing is shifted."
        return Problem(where, name, found, wanted, remedy, "time-other-years")
    return Problem(where, name, found, wanted, rule="period-missing")


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
    raw = _raw(file, name, index)
    field_ = grid.to_grid_order(xr.DataArray(raw, dims=dims, name=name))
    attributes = file.variables[name].attributes
    lead = [d for d in field_.dims if d not in ("lat", "lon")]
    order = [d for d in lead if d == file.time_dim] + [d for d in lead if d != file.time_dim]
    try:
        values = decoded(field_.transpose(*order, "lat", "lon").values, attributes)
    except (TypeError, ValueError):
        packing = [f"{k} {attributes[k]!r}" for k in _PACKING if k in attributes]
        remedy = "Correct the attributes; what is packed cannot be told from the values."
        raise DataError(
            Problem(where, name, ", ".join(packing), "numbers", remedy, rule="packing")
        ) from None
    shape = (values.shape[0] if order[:1] == [file.time_dim] else 1, -1, *values.shape[-2:])
    by_layer: Array = values.reshape(shape)
    return by_layer


def _raw(file: NativeFile, name: str, index: tuple[slice | list[int], ...]) -> NDArray[Any]:
    """Values as stored, one slice or list of indices for each dimension; DataError if damaged."""
    found = None if file.path.is_dir() else hdf5.chunked(file.path, name)
    if found is not None:
        box = tuple(i if isinstance(i, slice) else slice(min(i), max(i) + 1) for i in index)
        try:
            raw = found.read(box)
        except DataError as error:
            said = _where_damaged(file, name, index)
            raise DataError(
                replace(p, where=file.origin, found=f"{p.found}{said}") for p in error.problems
            ) from None
        for axis, i in enumerate(index):
            if not isinstance(i, slice):
                raw = raw.take([k - min(i) for k in i], axis)
        return raw
    try:
        return _stored(file, name, index)
    except (OSError, RuntimeError) as error:
        text = " ".join(str(error).replace(str(file.path), "").split())[:120]
        raise DataError(
            Problem(
                file.origin,
                name,
                f"values that cannot be read{_where_damaged(file, name, index)} ({text})",
                "an undamaged file",
                "Copy it again; damaged copies look like this.",
                rule="damaged",
            )
        ) from None


def _stored(file: NativeFile, name: str, index: tuple[slice | list[int], ...]) -> NDArray[Any]:
    """As ``_raw``, through the libraries; OSError or RuntimeError if damaged."""
    if file.path.is_dir():
        return read_zarr(file.path, name, index)
    # Not through xarray: its opening takes longer than the reading of a month.
    with _LIBRARY, netCDF4.Dataset(file.path) as nc:
        nc.set_auto_maskandscale(False)
        return np.asarray(nc.variables[name][index])


def _where_damaged(file: NativeFile, name: str, index: tuple[slice | list[int], ...]) -> str:
    """The first run of steps that cannot be read, in words: `` in 2003-01 to 2003-12``."""
    dims = list(file.variables[name].dims)
    if file.axis is None or file.time_dim not in dims:
        return ""
    at = dims.index(file.time_dim)
    wanted = index[at]
    assert isinstance(wanted, slice)
    bad: list[int] = []
    for step in range(*wanted.indices(file.axis.size)):
        try:
            _stored(file, name, (*index[:at], slice(step, step + 1), *index[at + 1 :]))
        except (OSError, RuntimeError):
            bad.append(step)
        else:
            if bad:
                break
    if not bad:
        return ""
    said = _spans([file.axis.periods[i] for i in bad], file.axis.frequency)
    return f" in {said} (steps {bad[0] + 1} to {bad[-1] + 1})"


def decoded(raw: NDArray[Any], attributes: Mapping[str, Any]) -> Array:
    """Packed or masked values as float64 with NaN for missing (CF sections 2.5.1 and 8.1).

    Missing are ``_FillValue`` and ``missing_value``, compared in the type they are stored in, and
    NetCDF's own default fill.
    """
    missing = []
    for key in ("_FillValue", "missing_value"):
        for value in np.atleast_1d(attributes.get(key, [])):
            try:
                missing.append(raw.dtype.type(value))
            except (TypeError, ValueError, OverflowError):
                continue
    if raw.dtype.kind == "f":
        missing.append(raw.dtype.type(DEFAULT_FILL))
    if not raw.dtype.isnative:
        raw = raw.astype(raw.dtype.newbyteorder("="))
    scale, offset = (float(attributes.get(key, usual)) for key, usual in _PACKING.items())
    values = np.empty(raw.shape)
    shape = (-1, *raw.shape[-2:]) if raw.ndim > 1 else (1, 1, -1)
    decode(
        raw.reshape(shape), np.array(missing, dtype=raw.dtype), scale, offset, values.reshape(shape)
    )
    return values


class Readable(Protocol):
    """A file to read, and what to call it."""

    @property
    def path(self) -> Path: ...
    @property
    def origin(self) -> str: ...


@dataclass
class Inventory:
    """All native files of one run.

    files : their headers, also those whose fields all have flaws (`NativeFile.problems`)
    problems : of files that cannot be opened or hold no field, by origin
    """

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
            except HeaderError as error:
                if error.file.flaws:
                    inventory.files.append(error.file)
                else:
                    inventory.problems[origin] = list(error.problems)
            except DataError as error:
                inventory.problems[origin] = list(error.problems)
        sources = [file.source_grid for file in inventory.files if file.source_grid is not None]
        turned = iter(aligned(sources))
        inventory.files = [
            file if file.source_grid is None else replace(file, source_grid=next(turned))
            for file in inventory.files
        ]
        return inventory
