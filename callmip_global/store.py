"""Zarr v3 stores: written shard by shard, resumable, published whole; opened, described, summed.

A store is laid down as a template (metadata, coordinates, no data) in a work folder beside its
final path, filled one region at a time, and renamed once when every region is there:

    .<name>.work/work.json                  fingerprint of everything that determines the content
    .<name>.work/store/                     the store in the making
    .<name>.work/done/<group>-<array>-<start>.json    ledger: one entry per finished region
    .<name>.work/scratch/                  what the maker keeps until then

A region is a run of time steps that is exactly one shard: NumPy writes that share a shard corrupt
each other silently, so regions are handed out here and any other is refused. Chunk files cannot
tell what is done (all-missing chunks have none), hence the ledger. A rerun with the same
fingerprint skips finished regions; with another one it starts over.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.files import canonical_json, fsync_folder, read_json, text_hash, write_json
from callmip_global.grid import Grid
from callmip_global.timeaxis import Frequency, MonthAxis

if TYPE_CHECKING:
    from collections.abc import Sequence

Stage = Literal["Prior", "Posterior"]

FREQUENCIES: tuple[Frequency, ...] = ("mon", "yr")
PER_LAND = "where land"
"""What ``cell_methods`` says of a variable that is a mean over the land part of its cell."""

_TIME_CHUNK = 60
_CELL_CHUNK = 90
_SHARD_BYTES = 256 * 1024**2
_NEGATIVE_FILLS = (-999.0, -9999.0, -99999.0)
_FILL_SHARE = 0.01
_NAME = re.compile(
    r"(?P<model>[A-Za-z0-9][^./\s]*)\.(?P<version>[^/\s]+)_(?P<simulation>[A-Za-z0-9-]+)"
    r"_(?P<grid>native|0\.5deg|1deg|2deg)_(?P<stage>Prior|Posterior)(?:_m(?P<member>\d{3,}))?\.zarr"
)


# --- names ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreName:
    """``<model>.<version>_<simulation>_<grid>_<Stage>[_mNNN].zarr``."""

    model: str
    version: str
    simulation: str
    grid: str
    stage: Stage
    member: int | None = None

    def __post_init__(self) -> None:
        match = _NAME.fullmatch(self.text)
        said = (self.model, self.version, self.simulation, self.grid, self.stage)
        if match is None or match.group(1, 2, 3, 4, 5) != said:
            raise UsageError(
                Problem(
                    "store name",
                    found=repr(self.text),
                    wanted="<model>.<version>_<simulation>_<grid>_<Stage>[_mNNN].zarr",
                    remedy="A model's name has no dot, a simulation's no underscore; the grid is "
                    "native, 0.5deg, 1deg or 2deg, the stage Prior or Posterior",
                )
            )

    @property
    def text(self) -> str:
        """The folder name of the store."""
        member = "" if self.member is None else f"_m{self.member:03d}"
        head = f"{self.model}.{self.version}_{self.simulation}_{self.grid}_{self.stage}"
        return f"{head}{member}.zarr"

    @classmethod
    def parse(cls, text: str) -> StoreName:
        """The parts of a store's folder name; UsageError when it is none."""
        match = _NAME.fullmatch(Path(text).name)
        if match is None:
            raise UsageError(
                Problem(
                    "store name",
                    found=repr(text),
                    wanted="<model>.<version>_<simulation>_<grid>_<Stage>[_mNNN].zarr",
                )
            )
        member = match["member"]
        stage: Stage = "Prior" if match["stage"] == "Prior" else "Posterior"
        return cls(
            match["model"],
            match["version"],
            match["simulation"],
            match["grid"],
            stage,
            None if member is None else int(member),
        )


# --- templates --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArraySpec:
    """An array that is filled region by region.

    dims : names, time first where there is one;  attributes : CF attributes
    provisional : only in the store when one of its regions was written, and then all must be
    """

    dims: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "float64"] = "float32"
    provisional: bool = False


@dataclass(frozen=True)
class Template:
    """One group of a store before its data: coordinates in memory, arrays to come."""

    coordinates: xr.Dataset
    arrays: Mapping[str, ArraySpec]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array to come."""
        return tuple(self.coordinates.sizes[dim] for dim in self.arrays[name].dims)


def grid_variables(grid: Grid) -> dict[str, Any]:
    """Coordinates, bounds and areas of a grid with CF attributes, as ``xr.Dataset`` takes them."""
    return {
        "lat": (
            ("lat",),
            grid.lat,
            {
                "standard_name": "latitude",
                "long_name": "latitude",
                "units": "degrees_north",
                "axis": "Y",
                "bounds": "lat_bnds",
            },
        ),
        "lon": (
            ("lon",),
            grid.lon,
            {
                "standard_name": "longitude",
                "long_name": "longitude",
                "units": "degrees_east",
                "axis": "X",
                "bounds": "lon_bnds",
            },
        ),
        "lat_bnds": (("lat", "bnds"), grid.lat_bnds, {}),
        "lon_bnds": (("lon", "bnds"), grid.lon_bnds, {}),
        "areacella": (
            ("lat", "lon"),
            grid.cell_area,
            {
                "standard_name": "cell_area",
                "long_name": "area of the grid cell",
                "units": "m2",
                "cell_methods": "area: sum",
            },
        ),
    }


def land_variable(land_fraction: NDArray[np.float64]) -> tuple[Any, ...]:
    """``sftlf`` [%] from the land fraction (nlat, nlon) in [0, 1], as ``xr.Dataset`` takes it."""
    return (
        ("lat", "lon"),
        land_fraction * 100.0,
        {
            "standard_name": "land_area_fraction",
            "long_name": "percentage of the grid cell that is land",
            "units": "%",
            "cell_methods": "area: mean",
            "cell_measures": "area: areacella",
        },
    )


def protocol_template(
    *,
    grid: Grid,
    axis: MonthAxis,
    variables: Mapping[str, Mapping[str, Any]],
    land_fraction: NDArray[np.float64],
    attributes: Mapping[str, Any],
    extra: Mapping[str, ArraySpec] | None = None,
) -> Template:
    """The group ``mon`` or ``yr`` of a protocol store.

    variables : name -> CF attributes; become float32 (time, lat, lon)
    land_fraction : (nlat, nlon) in [0, 1], 0 where there is no land; written as ``sftlf`` [%]
    attributes : global attributes of the group
    extra : further arrays (``valid_fraction_<name>``)
    ValueError on a land fraction of another shape or outside [0, 1].
    """
    if land_fraction.shape != grid.shape:
        raise ValueError(f"land_fraction is {land_fraction.shape}, the grid {grid.shape}")
    if not np.all((land_fraction >= 0.0) & (land_fraction <= 1.0)):
        raise ValueError("land_fraction must lie within [0, 1] everywhere, without NaN")
    coordinates = {
        "time": (("time",), axis.time, axis.time_attributes),
        "time_bnds": (("time", "bnds"), axis.bounds, {}),
        **grid_variables(grid),
        "sftlf": land_variable(land_fraction),
    }
    measures = {"cell_measures": "area: areacella"}
    arrays = {
        name: ArraySpec(("time", "lat", "lon"), {**given, **measures})
        for name, given in variables.items()
    }
    return Template(
        xr.Dataset(coords=coordinates, attrs=dict(attributes)), {**arrays, **(extra or {})}
    )


def store_attributes(
    name: StoreName, attributes: Mapping[str, Any], frequencies: Sequence[str]
) -> dict[str, Any]:
    """Global attributes that every protocol store carries, from its name and the caller's own."""
    identity: dict[str, Any] = {
        "model_name": name.model,
        "model_version": name.version,
        "simulation": name.simulation,
        "stage": name.stage,
        "grid": name.grid,
        "frequencies": " ".join(frequencies),
    }
    if name.member is not None:
        identity["member"] = name.member
    title = f"{name.model}.{name.version} {name.simulation} {name.stage}, {name.grid} grid"
    defaults = {"Conventions": "CF-1.8", "title": title, "institution": "", "contact": ""}
    return {**defaults, **attributes, **identity}


# --- writing ----------------------------------------------------------------------------------


def chunking(
    dims: Sequence[str], shape: Sequence[int], item_bytes: int = 4
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(inner chunk, shard) of an array: about (60, 90, 90) in (60, whole map).

    A map then touches one file, and a time series of one cell reads little; with chunks of 45 cells
    a series is as fast, a map and everything take two and three times as long (measured by
    scripts/bench_regrid, part layout). Times per shard are fewer where 60 whole maps (with all
    levels) would be more than 256 MB.
    """
    chunk, shard = [], []
    per_step = item_bytes * math.prod(n for d, n in zip(dims, shape, strict=True) if d != "time")
    for dim, size in zip(dims, shape, strict=True):
        if dim == "time":
            steps = max(1, min(_TIME_CHUNK, size, _SHARD_BYTES // max(1, per_step)))
            chunk.append(steps)
            shard.append(steps)
        elif dim in ("lat", "lon"):
            cells = _cell_chunk(size)
            chunk.append(cells)
            shard.append(-(-size // cells) * cells)
        else:
            chunk.append(1)
            shard.append(size)
    return tuple(chunk), tuple(shard)


def _cell_chunk(size: int) -> int:
    """The divisor of ``size`` nearest to 90 within 60 to 128, else 90 (the last one is padded)."""
    divisors = [n for n in range(60, 129) if size % n == 0]
    return min(size, min(divisors, key=lambda n: abs(n - _CELL_CHUNK), default=_CELL_CHUNK))


@dataclass(frozen=True)
class StoreWriter:
    """A store in the making. Made by ``create_store``; see the module for the files."""

    out: Path
    work: Path
    templates: Mapping[str, Template]
    fingerprint: str

    @property
    def _store(self) -> Path:
        return self.work / "store"

    @property
    def scratch(self) -> Path:
        """A folder for what is needed until the store is published; kept when interrupted."""
        return self.work / "scratch"

    def regions(self, group: str, name: str) -> tuple[slice, ...]:
        """The regions of an array, one per shard: slices of time (of everything without time)."""
        template = self.templates[group]
        dims, shape = template.arrays[name].dims, template.shape(name)
        if not dims or dims[0] != "time":
            return (slice(0, shape[0] if shape else 1),)
        item = np.dtype(template.arrays[name].dtype).itemsize
        step = chunking(dims, shape, item)[1][0]
        return tuple(slice(a, min(a + step, shape[0])) for a in range(0, shape[0], step))

    def is_done(self, group: str, name: str, region: slice) -> bool:
        """Whether this region was written in full by this or an earlier, interrupted run."""
        return self._entry(group, name, region).exists()

    def write(
        self,
        group: str,
        name: str,
        region: slice,
        values: NDArray[Any],
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """`fill` a region and `record` it."""
        self.fill(group, name, region, values)
        self.record(group, name, region, note)

    def fill(self, group: str, name: str, region: slice, values: NDArray[Any]) -> None:
        """Write the data of one whole region, durably; the ledger does not know of it yet.

        May be done on another node, and again: the shard is replaced by one rename.
        ``values`` has the array's shape with time cut to the region. ValueError for a region that
        ``regions`` does not list or values of another shape; DataError when the work folder is no
        longer that of this writer.
        """
        allowed = self.regions(group, name)
        if region not in allowed:
            raise ValueError(
                f"{name}: region {region.start}:{region.stop} is not one shard; shards are "
                + ", ".join(f"{r.start}:{r.stop}" for r in allowed)
            )
        shape = self.templates[group].shape(name)
        timed = self.templates[group].arrays[name].dims[:1] == ("time",)
        wanted = (region.stop - region.start, *shape[1:]) if timed else shape
        if values.shape != wanted:
            raise ValueError(f"{name}: values are {values.shape}, the region is {wanted}")
        if not self._is_ours():
            # A worker that outlived its driver must not write into what replaced the store.
            found = "a store that another run has started over, or published"
            raise DataError(Problem(str(self.out), found=found))
        if self.templates[group].arrays[name].provisional:
            _lay_down_array(self._store, group, self.templates[group], name)
        array = zarr.open_array(self._store, path=_path(group, name), mode="r+")
        array[region if timed else ...] = values.astype(array.dtype, copy=False)
        shard = allowed.index(region)
        _fsync_tree(self._store / _path(group, name) / "c", shard if timed else None)

    def record(
        self, group: str, name: str, region: slice, note: Mapping[str, Any] | None = None
    ) -> None:
        """Enter a filled region into the ledger; only the process that publishes does so.

        It reads what it wrote itself: on network file systems, files that another node has just
        made may not show for a minute. ``note`` (JSON) comes back from ``note``, also after a
        resume.
        """
        write_json(
            self._entry(group, name, region),
            {"start": region.start, "stop": region.stop, "note": dict(note or {})},
        )

    def note(self, group: str, name: str, region: slice) -> dict[str, Any]:
        """What was noted when a finished region was written."""
        noted: dict[str, Any] = read_json(self._entry(group, name, region))["note"]
        return noted

    def begun(self, group: str, name: str) -> bool:
        """Whether any region of an array was written."""
        return any(self.is_done(group, name, region) for region in self.regions(group, name))

    def put(self, group: str, variables: xr.Dataset) -> None:
        """Add small variables that are known only when the data are; may be done again.

        ``group`` is made where there is none yet (``mon/conservation``).
        """
        for name in variables.variables:
            shutil.rmtree(self._store / _path(group, str(name)), ignore_errors=True)
        _write_whole(self._store, group, variables)

    def refill(self, group: str, name: str, values: NDArray[Any]) -> None:
        """Other values for a coordinate that is known only when the data are; may be done again."""
        zarr.open_array(self._store, path=_path(group, name), mode="r+")[...] = values

    def without(self, names: Mapping[str, Iterable[str]]) -> StoreWriter:
        """The same store less some arrays of some groups, and less groups left without any.

        What to leave out may be known only when everything was read. The ledger keeps what it
        knows of them: a run that is resumed comes to the same end.
        """
        templates = {}
        for group, template in self.templates.items():
            gone = set(names.get(group, ()))
            arrays = {n: spec for n, spec in template.arrays.items() if n not in gone}
            whole = not arrays and group != ""
            for name in [""] if whole else gone:
                shutil.rmtree(self._store / group / name, ignore_errors=True)
            if not whole:
                templates[group] = Template(template.coordinates, arrays)
        return replace(self, templates=templates)

    def publish(self, attributes: Mapping[str, Any] | None = None) -> Path:
        """Check that every region is there, consolidate, rename to the final path once.

        ``attributes`` are added to the root and to every group. A store that is already at the
        final path is exchanged in one step where the file system can, and then removed.
        DataError that lists what is missing when a region was never written.
        """
        missing = [
            f"{group or '/'} {name} {region.start}:{region.stop}"
            for group, template in self.templates.items()
            for name, spec in template.arrays.items()
            if not spec.provisional or self.begun(group, name)
            for region in self.regions(group, name)
            if not self.is_done(group, name, region)
        ]
        if missing:
            raise DataError(
                Problem(
                    str(self.out),
                    found=f"{len(missing)} regions never written, first {missing[0]}",
                    wanted="every region",
                )
            )
        root = zarr.open_group(self._store, mode="r+", use_consolidated=False)
        for group in {"", *self.templates}:
            target = root[group] if group else root
            target.attrs.update(_plain(attributes or {}))
        for partial in self._store.rglob("*.partial"):
            partial.unlink()
        with _consolidation_allowed():
            # Each group too: older readers look for it in the group that they open.
            for group in filter(None, self.templates):
                zarr.consolidate_metadata(self._store, path=group)
            zarr.consolidate_metadata(self._store)
        # From here on the ledger no longer speaks of what is in the work folder: killed after the
        # rename, a rerun must not take the replaced store for its own finished work.
        (self.work / "work.json").unlink()
        _publish(self._store, self.out)
        shutil.rmtree(self.work)
        return self.out

    def _is_ours(self) -> bool:
        try:
            return bool(read_json(self.work / "work.json") == {"fingerprint": self.fingerprint})
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False

    def _entry(self, group: str, name: str, region: slice) -> Path:
        return self.work / "done" / f"{group or 'root'}-{name}-{region.start}.json"


def create_store(
    out: Path,
    templates: Mapping[str, Template],
    *,
    fingerprint: Mapping[str, Any],
    attributes: Mapping[str, Any] | None = None,
) -> StoreWriter:
    """Lay down (or take up again) the store that will be published at ``out``.

    templates : group name -> template; the group "" is the root of a flat store
    fingerprint : everything that determines the content (inputs, weights, versions); with the same
        one the finished regions of an interrupted run are kept, with another it starts over
    attributes : attributes of the root
    """
    text = text_hash(
        canonical_json([dict(fingerprint), _said(templates), _texts(attributes or {})])
    )
    work = out.with_name(f".{out.name}.work")
    writer = StoreWriter(out, work, dict(templates), text)
    if writer._is_ours():
        return writer
    if work.exists():
        shutil.rmtree(work)
    (work / "done").mkdir(parents=True)
    (work / "scratch").mkdir()
    root = zarr.open_group(work / "store", mode="w", zarr_format=3)
    root.attrs.update(_plain(attributes or {}))
    for group, template in templates.items():
        _lay_down(work / "store", group, template)
    write_json(work / "work.json", {"fingerprint": text})
    return writer


def _said(templates: Mapping[str, Template]) -> dict[str, Any]:
    """What of the templates goes into the fingerprint."""
    return {
        group: {
            "attrs": _texts(template.coordinates.attrs),
            "coordinates": {
                str(name): text_hash(
                    f"{var.dims}{var.dtype}{np.ascontiguousarray(var.values).tobytes().hex()}"
                )
                for name, var in template.coordinates.variables.items()
            },
            "arrays": {
                name: [list(spec.dims), spec.dtype, spec.provisional, _texts(spec.attributes)]
                for name, spec in template.arrays.items()
            },
        }
        for group, template in templates.items()
    }


def _texts(attributes: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in attributes.items()}


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON holds them: files deliver NumPy numbers and arrays."""
    return {
        str(key): value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for key, value in attributes.items()
    }


def _write_whole(store: Path, group: str, variables: xr.Dataset) -> None:
    """Small variables through xarray, each as one chunk."""
    plain = variables.drop_encoding()
    encoding = {
        str(name): {"chunks": var.shape, "_FillValue": None}
        for name, var in plain.variables.items()
        if var.ndim and var.dtype.kind in "iuf"
    }
    plain.to_zarr(
        store,
        group=group or None,
        mode="a",
        zarr_format=3,
        consolidated=False,
        encoding=encoding,
    )


def _lay_down(store: Path, group: str, template: Template) -> None:
    """Coordinates through xarray; the empty arrays beside them, as xarray would write them."""
    coordinates = template.coordinates
    _write_whole(store, group, coordinates)
    for name, spec in template.arrays.items():
        if not spec.provisional:
            _lay_down_array(store, group, template, name)


def _lay_down_array(store: Path, group: str, template: Template, name: str) -> None:
    """An empty array, unless it is there: shards of one array may be the first at the same time."""
    if (store / _path(group, name) / "zarr.json").exists():
        return
    spec, coordinates = template.arrays[name], template.coordinates
    shape = template.shape(name)
    dtype = np.dtype(spec.dtype)
    chunks, shards = chunking(spec.dims, shape, dtype.itemsize)
    seen = [
        str(extra)
        for extra, var in coordinates.coords.items()
        if extra not in coordinates.dims
        and set(var.dims) <= set(spec.dims)
        and not str(extra).endswith("_bnds")
    ]
    attributes = {**_plain(spec.attributes), "_FillValue": _ENCODED_NAN}
    if seen:
        attributes["coordinates"] = " ".join(seen)
    root = zarr.open_group(store, path=group or None, mode="r+", use_consolidated=False)
    with suppress(zarr.errors.ContainsArrayError):
        root.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            fill_value=np.nan,
            dimension_names=spec.dims,
            attributes=attributes,
            compressors=[
                BloscCodec(cname="zstd", clevel=1, shuffle=BloscShuffle.shuffle),
                Crc32cCodec(),
            ],
        )


# How xarray spells a NaN _FillValue in Zarr v3 metadata: base64 of the float64.
_ENCODED_NAN = "AAAAAAAA+H8="


def _path(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _fsync_tree(folder: Path, first: int | None) -> None:
    """Force the files of one shard to disk before the ledger says that they are there."""
    start = folder if first is None else folder / str(first)
    for file in [start] if start.is_file() else start.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _publish(work: Path, out: Path) -> None:
    """Put ``work`` in the place of ``out`` by one rename, or one exchange when ``out`` exists."""
    if not out.exists():
        work.rename(out)
    elif not exchange(work, out):
        # File systems without RENAME_EXCHANGE: a reader may find nothing for an instant, but
        # never a partial store.
        old = work.with_name("replaced")
        out.rename(old)
        work.rename(out)
    fsync_folder(out.parent)


def exchange(a: Path, b: Path) -> bool:
    """Swap two names atomically (Linux renameat2); False where it is not to be had."""
    at_fdcwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    failed = libc.renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange)
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


@contextmanager
def _consolidation_allowed() -> Iterator[None]:
    """Consolidated metadata is not yet in the Zarr 3 specification, and zarr warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        yield


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreInfo:
    """What a store says of itself; a flat store has no ``name`` and no ``frequencies``."""

    path: Path
    name: StoreName | None
    attributes: Mapping[str, Any]
    frequencies: tuple[Frequency, ...]
    provenance: Mapping[str, Any]
    synthetic: str

    @property
    def scenario(self) -> int | None:
        """Calibration scenario of a posterior, where it is known."""
        value = self.attributes.get("scenario")
        return None if value in (None, "") else int(str(value))


def is_store(path: Path) -> bool:
    """Whether ``path`` is a Zarr v3 group."""
    return (path / "zarr.json").is_file()


def store_info(path: Path) -> StoreInfo:
    """Name, attributes, frequencies and provenance of a store; DataError when it is none."""
    root = _root(path)
    attributes = dict(root.attrs)
    frequencies = tuple(f for f in FREQUENCIES if f in root)
    name = None
    if frequencies and "model_name" in attributes:
        member = attributes.get("member")
        name = StoreName(
            str(attributes["model_name"]),
            str(attributes["model_version"]),
            str(attributes["simulation"]),
            str(attributes["grid"]),
            "Prior" if attributes["stage"] == "Prior" else "Posterior",
            None if member is None else int(str(member)),
        )
    provenance = json.loads(str(attributes.get("provenance", "{}")))
    synthetic = str(attributes.get("synthetic", ""))
    return StoreInfo(path, name, attributes, frequencies, provenance, synthetic)


def _root(path: Path) -> zarr.Group:
    if not is_store(path):
        raise DataError(
            Problem(str(path), found="no Zarr v3 store", wanted="a folder with zarr.json in it")
        )
    return zarr.open_group(path, mode="r")


def open_store(path: Path, frequency: Frequency | None = None) -> xr.Dataset:
    """A group of a store (the root of a flat store without ``frequency``), read lazily, no dask.

    Times are decoded to cftime, so that every calendar behaves alike. DataError when there is no
    store or no such group.
    """
    root = _root(path)
    if frequency is not None and frequency not in root:
        there = ", ".join(f for f in FREQUENCIES if f in root) or "none (a flat store)"
        raise DataError(
            Problem(str(path), "frequency", f"no group {frequency!r}", f"one of: {there}")
        )
    ds: xr.Dataset = xr.open_zarr(
        path,
        group=frequency,
        chunks=None,
        decode_times=xr.coders.CFDatetimeCoder(use_cftime=True),
    )
    return ds


def store_digest(path: Path) -> str:
    """Identity of a published store's files: names, sizes, times of change (not their content)."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listing = [[str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return text_hash(canonical_json(listing))


def unmasked_fill(values: NDArray[np.floating[Any]]) -> float | None:
    """A fill value among the numbers, which no attribute of the file names; None without one.

    ``values`` (..., nlat, nlon), NaN where missing. No quantity of this field comes near 1e19, and
    none is exactly -9999 (or -999, -99999) on a hundredth of a map: such numbers mean "missing".
    """
    if not values.size:
        return None
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    share = float(np.mean(values == low)) if low in _NEGATIVE_FILLS else 0.0
    return fill_among(float(low), float(high), share)


def fill_among(low: float, high: float, share_of_low: float) -> float | None:
    """As `unmasked_fill`, from the extremes of the values (NaN ignored; NaN when all are) and the
    share of all cells that hold exactly the lowest."""
    for extreme in (low, high):
        if math.isfinite(extreme) and abs(extreme) > 1e19:
            return extreme
    if low in _NEGATIVE_FILLS and share_of_low >= _FILL_SHARE:
        return low
    return None


def is_per_land(variable: xr.DataArray) -> bool:
    """Whether a variable is a mean over land: its cell_methods say ``area: mean where land``."""
    return PER_LAND in str(variable.attrs.get("cell_methods", ""))


def value_fraction(ds: xr.Dataset, name: str) -> xr.DataArray:
    """Fraction of each cell's area that the values of ``name`` speak for (0 to 1), before NaN.

    ``valid_fraction_<name>`` where the store has it, else ``valid_fraction`` (flat stores), else
    ``sftlf`` for a variable per land area, else 1.
    """
    for candidate in (f"valid_fraction_{name}", "valid_fraction"):
        if candidate in ds.variables:
            return ds[candidate].astype(np.float64)
    if is_per_land(ds[name]) and "sftlf" in ds.variables:
        return ds["sftlf"].astype(np.float64) / 100.0
    return xr.ones_like(ds["areacella"], dtype=np.float64)


def global_total(ds: xr.Dataset, name: str) -> NDArray[np.float64]:
    """(time,) integral over the globe: sum of value x area x fraction, NaN counted as nothing.

    Units are those of the variable times m2. The one definition that harmonizing, regridding,
    benchmarks and exports agree on; without the fraction totals are off by about 10 %. Reads in
    blocks of time.
    """
    variable = ds[name]
    if "time" not in variable.dims:
        raise ValueError(f"{name} has no time dimension")
    area = ds["areacella"].astype(np.float64).values
    fraction = value_fraction(ds, name)
    timed = "time" in fraction.dims
    static = area if timed else area * np.nan_to_num(fraction.transpose("lat", "lon").values)
    total = np.empty(variable.sizes["time"], dtype=np.float64)
    for start in range(0, total.size, _TIME_CHUNK):
        block = slice(start, min(start + _TIME_CHUNK, total.size))
        values = variable.isel(time=block).transpose("time", "lat", "lon").values
        if timed:
            weights = area * np.nan_to_num(
                fraction.isel(time=block).transpose("time", "lat", "lon").values
            )
            product = np.nan_to_num(values.astype(np.float64)) * weights
        else:
            product = np.nan_to_num(values.astype(np.float64)) * static
        total[block] = product.sum(axis=(1, 2))
    return total
