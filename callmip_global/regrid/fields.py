"""What is to be regridded: variables in grid order, read lazily, from a data set or many files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cftime
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.grid import GaussianEdges, SourceGrid
from callmip_global.hdf5 import open_dataset
from callmip_global.regrid.mesh import MeshSource, PointSource, scattered
from callmip_global.regrid.meshfiles import source_of
from callmip_global.store import is_per_land, is_store, store_info
from callmip_global.timeaxis import Frequency, canonical_calendar, time_name

Array = NDArray[np.float64]
Source = SourceGrid | MeshSource | PointSource
LandFraction = Literal["auto"] | xr.DataArray | None

_NOT_DATA = ("cell_area", "land_area_fraction")
# What CF calls it, and CLM; its areas have no standard name.
_LAND_NAMES = ("sftlf", "landfrac")
_AREA_UNITS = ("m2", "m^2", "km2", "km^2")
_DROPPED_ATTRIBUTES = ("_FillValue", "missing_value", "cell_measures", "coordinates", "bounds")


@dataclass(frozen=True)
class Field:
    """One variable in grid order, (time, ..., lat, lon), in one or more parts along time.

    shape : (nlat, nlon) of the source; the parts of a list of cells have one dimension for both
    cells : for each part that is a list of points its cells, row by row in ``shape``; values are
        read as maps that are missing elsewhere. Empty where the parts have all cells.
    weight : (nlat, nlon), or one lazy (time, ..., lat, lon) array per part: the fraction of each
        source cell's area that the values speak for
    weighting : what that weight is, in words
    """

    name: str
    parts: tuple[xr.DataArray, ...]
    shape: tuple[int, int]
    weight: Array | tuple[xr.DataArray, ...]
    weighting: str
    cells: tuple[NDArray[np.int64], ...] = ()

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions, time first where there is one."""
        names = tuple(str(dim) for dim in self.parts[0].dims)
        return (*names[:-1], "lat", "lon") if names[-1] == "cell" else names

    @property
    def timed(self) -> bool:
        """Whether there is a time dimension."""
        return self.dims[0] == "time"

    @property
    def size(self) -> int:
        """Number of time steps (1 without time)."""
        return sum(part.sizes["time"] for part in self.parts) if self.timed else 1

    @property
    def dtype(self) -> Literal["float32", "float64"]:
        """float32 stays float32; everything else is float64."""
        return "float32" if self.parts[0].dtype == np.float32 else "float64"

    @property
    def leading(self) -> tuple[int, ...]:
        """Sizes of the dimensions before latitude and longitude, of all parts together."""
        own = self.parts[0].sizes
        return tuple(self.size if dim == "time" else own[dim] for dim in self.dims[:-2])

    @property
    def step_size(self) -> int:
        """Number of values of one time step, as ``read`` returns them."""
        return math.prod(self.leading) // self.size * math.prod(self.shape)

    @property
    def attributes(self) -> dict[str, Any]:
        """The variable's attributes, without those that the way of storing it decides."""
        own = self.parts[0].attrs.items()
        return {str(k): v for k, v in own if k not in _DROPPED_ATTRIBUTES}

    def read(self, region: slice) -> NDArray[Any]:
        """Values of a run of time steps (of everything without time)."""
        return self._read(self.parts, region).astype(self.dtype, copy=False)

    def read_weight(self, region: slice) -> Array:
        """(nlat, nlon), or the weights of a run of time steps; 0 where there is none."""
        if isinstance(self.weight, tuple):
            weight = self._read(self.weight, region).astype(np.float64)
            return np.clip(np.nan_to_num(weight), 0.0, 1.0)
        return self.weight

    def _read(self, parts: tuple[xr.DataArray, ...], region: slice) -> NDArray[Any]:
        """(..., nlat, nlon): the parts of a region joined, lists brought onto the map."""
        pieces, start = [], 0
        for position, part in enumerate(parts):
            stop = start + (part.sizes["time"] if self.timed else 1)
            low, high = max(region.start, start), min(region.stop, stop)
            if low < high or not self.timed:
                place = {"time": slice(low - start, high - start)} if self.timed else {}
                pieces.append(self._map(part.isel(place).values, position))
            start = stop
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _map(self, values: NDArray[Any], position: int) -> NDArray[Any]:
        if self.cells:
            return scattered(values, self.cells[position], self.shape)
        listed = self.parts[position].dims[-1] == "cell"
        return values.reshape(*values.shape[: -1 if listed else -2], *self.shape)


@dataclass(frozen=True)
class Inputs:
    """A set of variables on one grid and one time axis.

    where : the file, files or store they come from
    land : (nlat, nlon) in [0, 1] in grid order, None without
    passed_on : coordinates and bounds that have no horizontal dimension
    attributes : global attributes (of the first file)
    left_out : variables that are not regridded, and why
    """

    where: str
    source: Source
    fields: tuple[Field, ...]
    land: Array | None
    passed_on: xr.Dataset
    attributes: Mapping[str, Any]
    left_out: tuple[str, ...]


def inputs_of(
    ds: xr.Dataset,
    where: str,
    land_fraction: LandFraction = "auto",
    *,
    corners: bool = True,
    gaussian_edges: GaussianEdges = "weights",
) -> Inputs:
    """The regriddable variables of one data set.

    Values speak for the part of the cell that ``valid_fraction_<name>`` or ``valid_fraction`` of
    the data set say, else for its land fraction where ``cell_methods`` say "where land", else for
    all of it. ``land_fraction``: "auto" is the data set's own, an array (in [0, 1], or in % by its
    units) overrules it and the fractions above, None ignores them all. ``corners`` and
    ``gaussian_edges``: as for ``source_of``.
    DataError when there is no grid that can be regridded or no numeric variable on it.
    """
    source = source_of(ds, where, corners=corners, gaussian_edges=gaussian_edges)
    ds = _time_first(ds, where)
    land = _land(ds, source, where, land_fraction)
    fields, left_out = [], []
    for name, da in ds.data_vars.items():
        if name in source.own_names or _bounds_like(ds, str(name)):
            continue
        if not source.on_grid(da):
            if source.own_dims & set(da.dims):
                left_out.append(f"{name}: not on the grid")
            continue
        if _is_measure(da) or str(name).startswith("valid_fraction"):
            continue
        if da.dtype.kind not in "iuf":
            left_out.append(f"{name}: not numeric ({da.dtype})")
            continue
        if not da.size:
            raise DataError(Problem(where, str(name), "no time steps at all"))
        ordered = source.to_grid_order(da)
        fields.append(_field(ds, source, ordered, land, land_fraction))
    if not fields:
        raise _nothing_on_grid(ds, source, where)
    passed_on = _without_horizontal(ds, source)
    return Inputs(where, source, tuple(fields), land, passed_on, dict(ds.attrs), tuple(left_out))


def _nothing_on_grid(ds: xr.Dataset, source: Source, where: str) -> DataError:
    """What there is instead; a list of points without an index looks like this."""
    numbers = {
        dims: name
        for name, var in ds.data_vars.items()
        if var.dtype.kind in "iuf" and (dims := tuple(map(str, var.dims))) and len(dims) < 4
    }
    found = "no numeric variable on the grid"
    if not numbers:
        return DataError(Problem(where, found=found))
    longest = max(numbers, key=lambda dims: math.prod(ds.sizes[dim] for dim in dims))
    last = longest[-1]
    along = ", ".join(dict.fromkeys(str(dim) for dim in (source.lat_dim, source.lon_dim)))
    return DataError(
        Problem(
            where,
            str(numbers[longest]),
            f"{found}; this one is along {', '.join(longest)}",
            f"variables along {along}",
            f"If {last} is an index of land points, say so: ncatted -a compress,{last},o,c,"
            f'"{along.replace(",", "")}" FILE',
        )
    )


def _time_first(ds: xr.Dataset, where: str) -> xr.Dataset:
    """The time dimension, where there is one, named ``time`` and first."""
    try:
        name = time_name(ds, where)
    except DataError:
        return ds
    dims = ds[name].dims
    if dims and dims[0] != "time":
        ds = ds.rename({dims[0]: "time"})
    if name != "time" and name in ds.variables:
        ds = ds.rename({name: "time"})
    return ds.transpose("time", ...) if "time" in ds.dims else ds


def _is_measure(da: xr.DataArray) -> bool:
    if da.attrs.get("standard_name") in _NOT_DATA or da.name in ("areacella", *_LAND_NAMES):
        return True
    return da.name == "area" and da.attrs.get("units") in _AREA_UNITS


def _bounds_like(ds: xr.Dataset, name: str) -> bool:
    return any(ds[v].attrs.get("bounds") == name for v in ds.variables) or name.endswith(
        ("_bnds", "_bounds")
    )


def _without_horizontal(ds: xr.Dataset, source: Source) -> xr.Dataset:
    horizontal = source.own_dims | source.own_names
    names = [
        name
        for name, var in ds.variables.items()
        if not horizontal & {*var.dims, name} and var.dtype.kind in "iufMOU"
    ]
    return ds[names].reset_coords(drop=False).set_coords(names).drop_encoding()


def _land(ds: xr.Dataset, source: Source, where: str, given: LandFraction) -> Array | None:
    """(nlat, nlon) land fraction in [0, 1] in grid order, 0 where missing."""
    if given is None:
        return None
    if isinstance(given, xr.DataArray):
        found = given
    else:
        names = [
            name
            for name, var in ds.variables.items()
            if var.attrs.get("standard_name") == "land_area_fraction" or name in _LAND_NAMES
        ]
        if not names or not source.on_grid(ds[names[0]]):
            return None
        found = ds[names[0]]
    whole = _whole_map(source, found) if source.on_grid(found) else None
    if whole is None:
        raise DataError(
            Problem(
                where,
                str(found.name or "land fraction"),
                f"dimensions {found.dims}",
                f"{source.lat_dim}, {source.lon_dim}",
            )
        )
    values = np.nan_to_num(whole)
    units = str(found.attrs.get("units", "")).strip()
    if units in ("%", "percent"):
        values = values / 100.0
    elif units not in ("1", "", "fraction", "-") or values.max() > 1.0 + 1e-6:
        raise DataError(
            Problem(
                where,
                str(found.name or "land fraction"),
                f"units {units!r} and values up to {values.max():g}",
                "% or a fraction within [0, 1]",
                "Set its units attribute",
            )
        )
    if values.min() < -1e-6 or values.max() > 1.0 + 1e-6:
        raise DataError(
            Problem(
                where,
                str(found.name or "land fraction"),
                f"fractions from {values.min():g} to {values.max():g}",
                "within [0, 1]",
            )
        )
    clipped: Array = np.clip(values, 0.0, 1.0)
    return clipped


def _whole_map(source: Source, da: xr.DataArray) -> Array | None:
    """(nlat, nlon) in grid order, NaN where a list has no point; None with further dimensions."""
    ordered = source.to_grid_order(da)
    if ordered.ndim != (1 if ordered.dims[-1] == "cell" else 2):
        return None
    values = ordered.values.astype(np.float64)
    if isinstance(source, PointSource) and ordered.dims[-1] == "cell":
        return scattered(values, source.cells, source.grid.shape)
    result: Array = values.reshape(source.grid.shape)
    return result


def _field(
    ds: xr.Dataset,
    source: Source,
    ordered: xr.DataArray,
    land: Array | None,
    land_fraction: LandFraction,
) -> Field:
    name = str(ordered.name)
    parts, shape = (ordered,), source.grid.shape
    listed = isinstance(source, PointSource) and ordered.dims[-1] == "cell"
    cells = (source.cells,) if isinstance(source, PointSource) and listed else ()
    if isinstance(land_fraction, str):
        for candidate in (f"valid_fraction_{name}", "valid_fraction"):
            if candidate not in ds.variables or not source.on_grid(ds[candidate]):
                continue
            fraction = source.to_grid_order(ds[candidate])
            if fraction.dims == ordered.dims:
                return Field(name, parts, shape, (fraction,), candidate, cells)
            values = _whole_map(source, ds[candidate])
            if values is not None:
                return Field(name, parts, shape, np.nan_to_num(values), candidate, cells)
    if land is not None and is_per_land(ordered):
        return Field(name, parts, shape, land, "land fraction", cells)
    return Field(name, parts, shape, np.ones(shape), "valid area", cells)


# --- files ------------------------------------------------------------------------------------


def open_inputs(
    paths: Sequence[Path],
    frequency: Frequency | None = None,
    *,
    corners: bool = True,
    gaussian_edges: GaussianEdges = "weights",
) -> Inputs:
    """The variables of CF files and stores, joined along time where they continue each other.

    ``frequency`` picks the group of a store that has several; ``corners`` and
    ``gaussian_edges`` as for ``source_of``.
    UsageError for paths that are not there; DataError for what cannot be read, other grids than
    the first, overlapping times, or variables on different time axes.
    """
    missing = [
        Problem(str(path), found="no such file or store") for path in paths if not path.exists()
    ]
    if missing:
        raise UsageError(missing)
    opened = [(str(path), _open(path, frequency)) for path in paths]
    if len(opened) == 1:
        where, ds = opened[0]
        return inputs_of(ds, where, corners=corners, gaussian_edges=gaussian_edges)
    parts = []
    for where, ds in opened:
        timed = _on_time(ds, where)
        part = inputs_of(timed, where, corners=corners, gaussian_edges=gaussian_edges)
        parts.append((where, part))
    return _joined(parts)


def _open(path: Path, frequency: Frequency | None) -> xr.Dataset:
    if is_store(path):
        there = store_info(path).frequencies
        if len(there) > 1 and frequency is None:
            raise UsageError(
                Problem(
                    str(path),
                    "frequency",
                    f"groups {' and '.join(there)}",
                    "one of them",
                    f"Give --frequency {there[0]}",
                )
            )
        group = frequency if frequency in there else (there[0] if there else None)
        ds: xr.Dataset = xr.open_zarr(path, group=group, chunks=None, decode_times=False)
        return ds
    try:
        return open_dataset(path)
    except (OSError, ValueError) as error:
        # xarray's words for what no library can read are a page of advice on installing others.
        why = "what is no NetCDF file" if "did not find a match" in str(error) else str(error)
        found = f"cannot be opened: {why}"
        raise DataError(
            Problem(str(path), found=found, wanted="a CF NetCDF file or store")
        ) from error


_COMMON_UNITS = "days since 1850-01-01"


def _on_time(ds: xr.Dataset, where: str) -> xr.Dataset:
    """Times and their bounds as days since 1850-01-01, so that files can be joined."""
    ds = _time_first(ds, where)
    if "time" not in ds.variables:
        return ds
    time = ds["time"]
    units = str(time.attrs.get("units", ""))
    try:
        calendar = canonical_calendar(str(time.attrs.get("calendar", "standard")))

        def converted(var: xr.DataArray) -> Array:
            dates = cftime.num2date(np.atleast_1d(var.values), units, calendar)
            return np.asarray(cftime.date2num(dates, _COMMON_UNITS, calendar), dtype=np.float64)

        attributes = {**time.attrs, "units": _COMMON_UNITS, "calendar": calendar}
        changed: dict[str, Any] = {"time": (("time",), converted(time), attributes)}
        bounds = str(time.attrs.get("bounds", ""))
        if bounds in ds.variables:
            changed[bounds] = (ds[bounds].dims, converted(ds[bounds]), {})
    except (ValueError, OverflowError, TypeError) as error:
        raise DataError(
            Problem(where, "time", f"units {units!r}: {error}", "units that CF can decode")
        ) from error
    if not time.dims:
        ds = ds.drop_vars("time").expand_dims("time")
    return ds.assign_coords(changed)


def _joined(parts: Sequence[tuple[str, Inputs]]) -> Inputs:
    """Inputs of several files as one: every variable over all its files, in order of time."""
    first_where, first = parts[0]
    for where, other in parts[1:]:
        if other.source.grid != first.source.grid:
            raise DataError(
                Problem(
                    where,
                    "grid",
                    f"{other.source.grid.shape}, other edges than {first_where}",
                    "one grid for all files",
                    "Regrid these files separately",
                )
            )
    names = list(dict.fromkeys(field.name for _, part in parts for field in part.fields))
    fields, axes = [], {}
    for name in names:
        holders = [
            (where, part, field)
            for where, part in parts
            for field in part.fields
            if field.name == name
        ]
        if holders[0][2].timed:
            holders.sort(key=lambda holder: float(holder[1].passed_on["time"].values[0]))
            axes[name] = _time_of(name, [(where, part) for where, part, _ in holders])
        elif len(holders) > 1:
            raise DataError(
                Problem(holders[1][0], name, f"also in {holders[0][0]}", "one file without time")
            )
        _check_alike(name, [(where, field) for where, _, field in holders])
        fields.append(_concatenated([field for _, _, field in holders]))
    times = {axis["time"].values.tobytes() for axis in axes.values()}
    if len(times) > 1:
        lengths = ", ".join(f"{name} {axis.sizes['time']}" for name, axis in axes.items())
        raise DataError(
            Problem(
                first_where,
                "time",
                f"variables on different time axes (steps: {lengths})",
                "one time axis",
                "Regrid them separately",
            )
        )
    passed_on = next(iter(axes.values())) if axes else first.passed_on
    land = next((part.land for _, part in parts if part.land is not None), None)
    left_out = tuple(dict.fromkeys(text for _, part in parts for text in part.left_out))
    return Inputs(
        first.where, first.source, tuple(fields), land, passed_on, first.attributes, left_out
    )


def _check_alike(name: str, holders: Sequence[tuple[str, Field]]) -> None:
    """DataError where the files of a variable differ in what their numbers mean."""
    (first_where, first), *others = holders

    def shape(field: Field) -> dict[str, int]:
        sizes = {str(d): n for d, n in field.parts[0].sizes.items() if d != "time"}
        if field.cells:
            # Lists of other cells of the same grid can be joined.
            sizes.pop("cell")
        return sizes

    for where, field in others:
        units, wanted = (str(f.attributes.get("units", "none")) for f in (field, first))
        changes = isinstance(field.weight, tuple) or isinstance(first.weight, tuple)
        differs = None
        if units != wanted:
            differs = ("units", repr(units), f"{wanted!r}, as in {first_where}")
        elif shape(field) != shape(first):
            differs = ("dimensions", str(shape(field)), f"{shape(first)}, as in {first_where}")
        elif field.weighting != first.weighting or (
            not (isinstance(field.weight, tuple) and isinstance(first.weight, tuple))
            and (changes or not np.allclose(field.weight, first.weight, rtol=0, atol=1e-6))
        ):
            found = f"another {field.weighting} than {first_where}"
            differs = (field.weighting, found, "the same in all files")
        if differs is not None:
            raise DataError(
                Problem(where, f"{name} {differs[0]}", *differs[1:], "Regrid them separately")
            )


def _time_of(name: str, holders: list[tuple[str, Inputs]]) -> xr.Dataset:
    """Coordinates of a variable's files joined along time; DataError where they overlap."""
    coordinates = [part.passed_on for _, part in holders]
    for (where_a, _), (where_b, _), a, b in zip(
        holders, holders[1:], coordinates, coordinates[1:], strict=False
    ):
        if float(a["time"].values[-1]) >= float(b["time"].values[0]):
            raise DataError(
                Problem(
                    where_b,
                    name,
                    f"times that overlap those of {where_a}",
                    "each time step once",
                    "Leave one of the files out",
                )
            )
    calendars = {c["time"].attrs.get("calendar") for c in coordinates}
    if len(calendars) > 1:
        raise DataError(
            Problem(holders[0][0], name, f"calendars {sorted(map(str, calendars))}", "one calendar")
        )
    if len(coordinates) == 1:
        return coordinates[0]
    return xr.concat(
        coordinates,
        "time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
    )


def _concatenated(fields: list[Field]) -> Field:
    weights: list[xr.DataArray] = []
    for field in fields:
        if isinstance(field.weight, tuple):
            weights.extend(field.weight)
    parts = tuple(part for field in fields for part in field.parts)
    cells = tuple(own for field in fields for own in field.cells)
    if len(weights) == len(parts):
        return replace(fields[0], parts=parts, weight=tuple(weights), cells=cells)
    return replace(fields[0], parts=parts, cells=cells)
