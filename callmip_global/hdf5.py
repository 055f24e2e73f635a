"""NetCDF-4 and HDF5 variables read chunk by chunk, by as many threads as ask, without any lock.

The HDF5 library lets one thread in at a time, and so inflating, most of the work of reading, takes
place on one processor whatever the machine has. Here the library only says where each chunk lies
in the file (HDF5 File Format Specification, section III.A.1); reading, inflating (libdeflate),
unshuffling and setting what is missing to NaN happen outside of it, in the thread that asks.

Only what is certain is read this way: numbers, stored contiguously or in chunks, with the filters
NetCDF-4 offers everywhere (shuffle, deflate, Fletcher-32). ``chunked`` answers None for everything
else, and the NetCDF library reads it.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import deflate
import h5py
import numpy as np
import xarray as xr
from h5py import h5d, h5z
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from callmip_global.compiled import compiled
from callmip_global.errors import DataError, Problem

_CHECKSUM_BYTES = 4
_KNOWN_FILTERS = (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32)
_REMEDY = "Copy it again, or ask for it again; damaged copies look like this."


# Steps that are contiguous in the file: what is done with them next finds them in the cache.
_STEPS_BYTES = 2 * 1024**2
# What two shards of months are read from is inflated once, as long as a row of chunks fits.
_KEPT_BYTES = 384 * 1024**2


class _Kept:
    """Chunks that hold more steps than were asked for, until all of their steps were handed out.

    Files whose time is no record dimension come in chunks of hundreds of months. Bounded; the chunk
    that was asked for longest ago goes first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lock = threading.Lock()
        self.size = 0
        self.chunks: OrderedDict[Hashable, Future[NDArray[Any]]] = OrderedDict()
        self.handed_out: dict[Hashable, int] = {}

    def get(
        self,
        key: Hashable,
        steps: int,
        length: int,
        make: Callable[[], NDArray[Any]],
        wait: bool,
    ) -> NDArray[Any] | None:
        """A chunk of ``length`` steps of which ``steps`` are wanted, made by whoever comes first.

        None where another thread is making it and the caller does not want to wait.
        """
        with self.lock:
            found = self.chunks.get(key)
            mine = found is None
            if found is None:
                found = self.chunks[key] = Future()
            elif not (wait or found.done()):
                return None
            self.chunks.move_to_end(key)
            self.handed_out[key] = self.handed_out.get(key, 0) + steps
        if mine:
            try:
                found.set_result(make())
            except BaseException as error:  # whatever it is, those who wait must hear of it
                found.set_exception(error)
                self._drop(key)
                raise
            with self.lock:
                self.size += found.result().nbytes
                full = [k for k, f in self.chunks.items() if f.done() and k != key]
            for other in full:
                if self.size <= self.limit:
                    break
                self._drop(other)
        whole = found.result()
        if self.handed_out.get(key, 0) >= length:
            self._drop(key)
        return whole

    def _drop(self, key: Hashable) -> None:
        with self.lock:
            gone = self.chunks.pop(key, None)
            self.handed_out.pop(key, None)
            if gone is not None and gone.done() and gone.exception() is None:
                self.size -= gone.result().nbytes


_kept = _Kept(_KEPT_BYTES)


@dataclass(frozen=True)
class Chunked:
    """Where the values of one variable lie in a file.

    shape, dtype : as stored (the byte order too);  name : path of the variable in the file
    chunk : shape of a chunk; that of the variable where it is contiguous
    offsets, sizes : first byte and stored bytes of each chunk, on the grid of chunks; offset -1 for
        a chunk that was never written: all ``fill``
    skipped : bit i set where filter i was not applied to a chunk
    filters : HDF5's numbers of the filters, in the order in which they were applied
    stamp : time of modification [ns] and size of the file
    missing : values read as NaN; only for floating-point numbers
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    skipped: NDArray[np.uint32]
    filters: tuple[int, ...]
    fill: Any
    stamp: tuple[int, int]
    missing: tuple[float, ...] = ()

    def with_missing(self, values: Sequence[float]) -> Chunked:
        """The same, with these values read as NaN."""
        return replace(self, missing=tuple(float(v) for v in values))

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file that hold its values."""
        return int(self.sizes[self.offsets >= 0].sum())

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """The values of a box: one slice with step 1 for each dimension, in native byte order.

        Safe to call from any number of threads. DataError, with the chunk and the steps it holds,
        where the file is too short or a chunk is damaged.
        """
        box = [range(*k.indices(n)) for k, n in zip(key, self.shape, strict=True)]
        out = np.empty([len(r) for r in box], self.dtype.newbyteorder("="))
        if not out.size:
            return out
        file = os.open(self.path, os.O_RDONLY)
        try:
            if self.offsets.size == 1 and self.chunk == self.shape and not self.filters:
                self._read_contiguous(file, box, out)
            else:
                self._read_chunks(file, box, out)
        finally:
            os.close(file)
        return out

    def _read_contiguous(self, file: int, box: Sequence[range], out: NDArray[Any]) -> None:
        """Of each step of the first dimension what lies between the first and the last wanted row
        of the second, a few MB at a time."""
        start = int(self.offsets.flat[0])
        if start < 0:
            self._blank(out)
            return
        first, second, *rest = [*box, range(1), range(1)][: max(2, len(box))]
        n_rows = self.shape[1] if len(box) > 1 else 1
        row = math.prod(self.shape[2:]) * self.dtype.itemsize
        several = max(1, _STEPS_BYTES // (len(second) * row))
        into = out.reshape(len(first), len(second), *out.shape[2:])
        columns = tuple(slice(r.start, r.stop) for r in rest)
        whole = out.shape[2:] == self.shape[2:] and self.dtype == out.dtype
        for low in range(first.start, first.stop, several):
            high = min(low + several, first.stop)
            target = into[low - first.start : high - first.start]
            rows = target
            if not whole:
                rows = np.empty((high - low, len(second), *self.shape[2:]), self.dtype)
            # Steps that are wanted as a whole lie one behind the other.
            pieces = [rows] if len(second) == n_rows else rows
            for step, piece in enumerate(pieces, low):
                at = start + (step * n_rows + second.start) * row
                self._fill(file, at, piece, "values", (low, high))
            if rows is not target:
                target[...] = rows[(slice(None), slice(None), *columns)]
            self._set_missing(target)

    def _read_chunks(self, file: int, box: Sequence[range], out: NDArray[Any]) -> None:
        touched = [
            range(r.start // c, -(-r.stop // c)) for r, c in zip(box, self.chunk, strict=True)
        ]
        later = []
        for at in itertools.product(*touched):
            if not self._copy(file, at, box, out, wait=False):
                later.append(at)
        for at in later:
            self._copy(file, at, box, out, wait=True)

    def _copy(
        self,
        file: int,
        at: tuple[int, ...],
        box: Sequence[range],
        out: NDArray[Any],
        *,
        wait: bool,
    ) -> bool:
        """What ``box`` wants of one chunk; False where another thread is inflating it, unless
        ``wait``: there are others to go on with."""
        corner = [i * c for i, c in zip(at, self.chunk, strict=True)]
        ends = [min(a + c, n) for a, c, n in zip(corner, self.chunk, self.shape, strict=True)]
        lows = [max(r.start, a) for r, a in zip(box, corner, strict=True)]
        highs = [min(r.stop, b) for r, b in zip(box, ends, strict=True)]
        target = out[
            tuple(slice(a - r.start, b - r.start) for a, b, r in zip(lows, highs, box, strict=True))
        ]
        if self.offsets[at] < 0:
            self._blank(target)
            return True
        if target.shape == self.chunk and target.flags.c_contiguous:
            self._decode(file, at, target)
            return True
        inner = tuple(slice(a - c, b - c) for a, b, c in zip(lows, highs, corner, strict=True))
        steps = highs[0] - lows[0]
        if steps == ends[0] - corner[0] or self._row_bytes > _KEPT_BYTES:
            target[...] = self._chunk(file, at)[inner]
            return True
        key = (self.path, self.stamp, self.name, self.missing, at)
        whole = _kept.get(key, steps, ends[0] - corner[0], lambda: self._chunk(file, at), wait)
        if whole is None:
            return False
        target[...] = whole[inner]
        return True

    def _chunk(self, file: int, at: tuple[int, ...]) -> NDArray[Any]:
        whole = np.empty(self.chunk, self.dtype.newbyteorder("="))
        self._decode(file, at, whole)
        return whole

    @property
    def _row_bytes(self) -> int:
        """Bytes of all chunks that hold the same steps."""
        return self.chunk[0] * math.prod(self.shape[1:]) * self.dtype.itemsize

    def _decode(self, file: int, at: tuple[int, ...], target: NDArray[Any]) -> None:
        """One chunk into ``target``, contiguous and of the chunk's shape."""
        steps = (at[0] * self.chunk[0], (at[0] + 1) * self.chunk[0])
        what = f"chunk {', '.join(map(str, at))}"
        raw: Any = self._bytes(file, int(self.offsets[at]), int(self.sizes[at]), what, steps)
        shuffled = False
        for position in reversed(range(len(self.filters))):
            if int(self.skipped[at]) >> position & 1:
                continue
            kind = self.filters[position]
            if kind == h5z.FILTER_SHUFFLE:
                shuffled = True
            elif kind == h5z.FILTER_DEFLATE:
                # What was shuffled and deflated may have been data with their checksum.
                room = target.nbytes + _CHECKSUM_BYTES * (position > 0)
                try:
                    raw = deflate.zlib_decompress(raw, room)
                except (deflate.DeflateError, ValueError) as error:
                    raise self._damaged(what, steps, f"cannot be inflated: {error}") from None
            else:
                raw = self._checked(
                    _in_order(raw, target.itemsize) if shuffled else raw, what, steps
                )
                shuffled = False
        if len(raw) != target.nbytes:
            found = f"holds {len(raw)} bytes, not {target.nbytes}"
            raise self._damaged(what, steps, found)
        swapped = self.dtype != target.dtype
        if shuffled and target.itemsize in (4, 8):
            blank, nan = self._patterns(target.dtype)
            joined = _joined_4 if target.itemsize == 4 else _joined_8
            words = target.reshape(-1).view(blank.dtype)
            joined(np.frombuffer(raw, np.uint8), swapped, blank, nan, words)
            return
        if shuffled:
            raw = _in_order(raw, target.itemsize)
        target[...] = np.frombuffer(raw, self.dtype).reshape(target.shape)
        self._set_missing(target)

    def _fill(
        self, file: int, offset: int, target: NDArray[Any], what: str, steps: tuple[int, int]
    ) -> None:
        """Contiguous ``target`` as its bytes lie in the file."""
        room = target.reshape(-1).view(np.uint8).data
        done = 0
        try:
            while done < len(room) and (more := os.preadv(file, [room[done:]], offset + done)):
                done += more
        except OSError as error:
            raise self._damaged(what, steps, f"cannot be read: {error}") from None
        if done < len(room):
            raise self._damaged(what, steps, "lies beyond the end of the file")

    def _bytes(
        self, file: int, offset: int, size: int, what: str, steps: tuple[int, int]
    ) -> memoryview:
        raw = np.empty(size, np.uint8)
        self._fill(file, offset, raw, what, steps)
        return raw.data

    def _checked(
        self, raw: bytes | memoryview, what: str, steps: tuple[int, int]
    ) -> bytes | memoryview:
        """Without its checksum; some old versions of HDF5 stored that in another byte order."""
        data, stored = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        made = int(_fletcher32(np.frombuffer(data, np.uint8)))
        swapped = (made & 0x00FF00FF) << 8 | (made & 0xFF00FF00) >> 8
        if int.from_bytes(stored, "little") not in (made, swapped):
            raise self._damaged(what, steps, "does not have the checksum stored with it")
        return data

    def _blank(self, target: NDArray[Any]) -> None:
        target[...] = self.fill
        self._set_missing(target)

    def _set_missing(self, target: NDArray[Any]) -> None:
        if not self.missing:
            return
        if target.itemsize in (4, 8) and target.flags.c_contiguous:
            blank, nan = self._patterns(target.dtype)
            _blanked(target.reshape(-1).view(blank.dtype), blank, nan)
            return
        for value in self.missing:
            np.putmask(target, target == target.dtype.type(value), np.nan)

    def _patterns(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], Any]:
        """The bits of the values that are missing, in the type that is stored (1e20 in double is
        no float's 1e20), and those of NaN."""
        word = np.uint32 if dtype.itemsize == 4 else np.uint64
        values = [*self.missing, *(-v for v in self.missing if v == 0.0)]
        nan = np.array([np.nan], f"f{dtype.itemsize}").view(word)[0]
        return np.array(values, dtype).view(word), nan

    def _damaged(self, what: str, steps: tuple[int, int], found: str) -> DataError:
        last = min(steps[1], self.shape[0]) if self.shape else 1
        said = f"{what} (steps {steps[0] + 1} to {last} of the first dimension) {found}"
        return DataError(
            Problem(self.path, self.name, said, "an undamaged file", _REMEDY, rule="damaged")
        )


def _in_order(raw: bytes | memoryview, itemsize: int) -> bytes:
    """HDF5's shuffle undone: byte ``k`` of number ``i`` is ``raw[k * n + i]``."""
    planes = np.frombuffer(raw, np.uint8)
    if itemsize in (4, 8):
        words = np.empty(planes.size // itemsize, np.uint32 if itemsize == 4 else np.uint64)
        joined = _joined_4 if itemsize == 4 else _joined_8
        joined(planes, False, words[:0], words.dtype.type(0), words)
        return words.tobytes()
    return planes.reshape(itemsize, -1).T.tobytes()


@compiled
def _joined_4(
    planes: NDArray[np.uint8],
    swapped: bool,
    blank: NDArray[Any],
    nan: Any,
    out: NDArray[Any],
) -> None:
    """``_in_order`` for numbers of 4 bytes; those with the bits of ``blank`` become ``nan``."""
    n = out.size
    low, second, third, high = planes[:n], planes[n : 2 * n], planes[2 * n : 3 * n], planes[3 * n :]
    if swapped:
        low, second, third, high = high, third, second, low
    for i in range(n):
        out[i] = (
            np.uint32(low[i])
            | np.uint32(second[i]) << np.uint32(8)
            | np.uint32(third[i]) << np.uint32(16)
            | np.uint32(high[i]) << np.uint32(24)
        )
    for pattern in blank:
        for i in range(n):
            out[i] = nan if out[i] == pattern else out[i]


@compiled
def _joined_8(
    planes: NDArray[np.uint8],
    swapped: bool,
    blank: NDArray[Any],
    nan: Any,
    out: NDArray[Any],
) -> None:
    """``_joined_4`` for numbers of 8 bytes."""
    n = out.size
    out[:] = 0
    for k in range(8):
        plane = planes[k * n : (k + 1) * n]
        shift = np.uint64(8 * (7 - k if swapped else k))
        for i in range(n):
            out[i] |= np.uint64(plane[i]) << shift
    for pattern in blank:
        for i in range(n):
            out[i] = nan if out[i] == pattern else out[i]


@compiled
def _blanked(words: NDArray[Any], blank: NDArray[Any], nan: Any) -> None:
    """Numbers with the bits of ``blank`` become ``nan``, in place."""
    for pattern in blank:
        for i in range(words.size):
            words[i] = nan if words[i] == pattern else words[i]


@compiled
def _fletcher32(data: NDArray[np.uint8]) -> int:
    """Fletcher's checksum of 16-bit words, as ``H5_checksum_fletcher32`` takes it."""
    first, second = np.uint64(0), np.uint64(0)
    for i in range(data.size // 2):
        first += np.uint64(data[2 * i]) << np.uint64(8) | np.uint64(data[2 * i + 1])
        second += first
        if i % 360 == 359:
            first = (first & np.uint64(0xFFFF)) + (first >> np.uint64(16))
            second = (second & np.uint64(0xFFFF)) + (second >> np.uint64(16))
    if data.size % 2:
        first += np.uint64(data[data.size - 1]) << np.uint64(8)
        second += first
    for _ in range(4):
        first = (first & np.uint64(0xFFFF)) + (first >> np.uint64(16))
        second = (second & np.uint64(0xFFFF)) + (second >> np.uint64(16))
    return int(second << np.uint64(16) | first)


def chunked(path: Path | str, name: str) -> Chunked | None:
    """Where the values of a variable of the file's root group lie; None if it is to be read by
    the NetCDF library (another format, filter or kind of numbers), or is not there."""
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return _chunked(str(path), name, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _chunked(path: str, name: str, stamp: tuple[int, int]) -> Chunked | None:
    try:
        # Locks are refused by some network file systems, and reading needs none.
        with h5py.File(path, "r", locking=False) as file:
            found = file.get(name)
            return _layout(path, name, found, stamp) if isinstance(found, h5py.Dataset) else None
    except (OSError, RuntimeError, ValueError, KeyError):
        return None  # the NetCDF library's words about it are better


def _layout(path: str, name: str, variable: h5py.Dataset, stamp: tuple[int, int]) -> Chunked | None:
    dtype, shape = variable.dtype, tuple(int(n) for n in variable.shape or ())
    properties = variable.id.get_create_plist()
    kind = properties.get_layout()
    filters = tuple(properties.get_filter(i)[0] for i in range(properties.get_nfilters()))
    if dtype.kind not in "iuf" or h5py.check_enum_dtype(dtype) or math.prod(shape) == 0:
        return None
    if kind == h5d.CONTIGUOUS and not properties.get_external_count():
        offset = variable.id.get_offset()
        offsets = np.full((1,) * len(shape), -1 if offset is None else offset, np.int64)
        sizes = np.full(offsets.shape, math.prod(shape) * dtype.itemsize, np.int64)
        skipped = np.zeros(offsets.shape, np.uint32)
        return Chunked(
            path, name, shape, dtype, shape, offsets, sizes, skipped, (), variable.fillvalue, stamp
        )
    if kind != h5d.CHUNKED or any(f not in _KNOWN_FILTERS for f in filters):
        return None
    chunk = tuple(int(n) for n in variable.chunks)
    grid = tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    offsets = np.full(grid, -1, np.int64)
    sizes = np.zeros(grid, np.int64)
    skipped = np.zeros(grid, np.uint32)

    def note(info: Any) -> None:
        at = tuple(a // c for a, c in zip(info.chunk_offset, chunk, strict=True))
        if all(i < n for i, n in zip(at, grid, strict=True)):
            offsets[at], sizes[at], skipped[at] = info.byte_offset, info.size, info.filter_mask

    variable.id.chunk_iter(note)
    return Chunked(
        path, name, shape, dtype, chunk, offsets, sizes, skipped, filters, variable.fillvalue, stamp
    )


# --- for xarray ---------------------------------------------------------------------------------


class _Lazy(BackendArray):
    """A variable that xarray indexes lazily. Pickled without the table of its chunks."""

    def __init__(self, found: Chunked) -> None:
        self.path, self.name, self.missing = found.path, found.name, found.missing
        self.shape, self.dtype = found.shape, found.dtype.newbyteorder("=")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        found = chunked(self.path, self.name)
        if found is None or found.shape != self.shape:
            remedy = "Start again when nothing writes to it any more."
            raise DataError(Problem(self.path, self.name, "a file that was changed", "", remedy))
        whole = [
            slice(k, k + 1) if isinstance(k, int | np.integer) else slice(k.start, k.stop)
            for k in key
        ]
        values = found.with_missing(self.missing).read(tuple(whole))
        rest = (0 if isinstance(k, int | np.integer) else slice(None, None, k.step) for k in key)
        return values[tuple(rest)]


def open_dataset(path: Path | str) -> xr.Dataset:
    """A file as ``xr.open_dataset(path, decode_times=False)`` opens it, values read from it by
    ``Chunked.read`` where that can be: by all threads at a time.

    Floating-point numbers equal to ``_FillValue`` or ``missing_value`` in the type they are stored
    in are NaN. Raises what ``xr.open_dataset`` raises.
    """
    raw = xr.open_dataset(path, decode_cf=False)
    replaced: dict[Any, xr.Variable] = {}
    for name, variable in raw.variables.items():
        # Coordinates are small, and xarray has read those with an index already.
        if name in raw.dims or not (found := chunked(path, str(name))):
            continue
        if found.shape != variable.shape:
            continue
        attributes = dict(variable.attrs)
        if found.dtype.kind == "f" and not {"scale_factor", "add_offset"} & set(attributes):
            found = found.with_missing(_missing(attributes, found.dtype))
        data = indexing.LazilyIndexedArray(_Lazy(found))
        replaced[name] = xr.Variable(variable.dims, data, attributes, variable.encoding)
    coordinates = {name: v for name, v in replaced.items() if name in raw.coords}
    others = {name: v for name, v in replaced.items() if name not in raw.coords}
    return xr.decode_cf(raw.assign(others).assign_coords(coordinates), decode_times=False)


def _missing(attributes: dict[str, Any], dtype: np.dtype[Any]) -> list[float]:
    """The values that the attributes call missing, which are taken out of them."""
    found = []
    for key in ("_FillValue", "missing_value"):
        for value in np.atleast_1d(attributes.pop(key, [])):
            try:
                found.append(float(dtype.type(value)))
            except (TypeError, ValueError, OverflowError):
                continue  # no number: nothing can be equal to it
    return list(dict.fromkeys(found))
