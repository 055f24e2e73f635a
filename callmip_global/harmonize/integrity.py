"""Whether a file is whole, before any of its values is believed.

The NetCDF library reads a NetCDF-3 file that was cut off as zeros, and a chunk that was never
written as missing, both without a word. What can be known from headers is checked here: the length
they imply, and where every chunk lies. Damage inside of chunks shows when they are read, once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import h5py
import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.harmonize.naming import BLOCK_BYTES, STUB_RATIO
from callmip_global.harmonize.netcdf3 import layout
from callmip_global.hdf5 import chunked

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAD_BYTES = 4096
_HEAP_BYTES = 4096
"""No global heap of HDF5 is smaller."""
_MAX_SCAN_BYTES = 64 * 1024**2
_COPY_AGAIN = "Copy it again; interrupted copies look like this."
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


def is_netcdf(head: bytes) -> bool:
    """Whether a file that begins so is a NetCDF file of any format."""
    return head[:4] in (b"CDF\x01", b"CDF\x02", b"CDF\x05") or _signature(head) is not None


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store (version 2 or 3)."""
    return any((path / mark).is_file() for mark in _ZARR_MARKS)


def _signature(head: bytes) -> int | None:
    """Where HDF5 begins: at 0, or after a user block of 512, 1024, ... bytes."""
    places = (0, 512, 1024, 2048)
    return next((at for at in places if head[at : at + 8] == HDF5_SIGNATURE), None)


def hdf5_needed_bytes(head: bytes) -> int | None:
    """Bytes that the superblock of an HDF5 file promises, from the first bytes of the file.

    None where it does not say, or is of a version unknown. HDF5 File Format Specification, II.A.
    """
    start = _signature(head)
    if start is None:
        return None
    block = head[start:]
    try:
        version = block[8]
        width, at = (block[13], 24) if version < 2 else (block[9], 12)
        if version > 3 or width not in (2, 4, 8):
            return None
        # Version 1 has four more bytes before the addresses: base, free space or extension, end.
        at += (4 if version == 1 else 0) + 2 * width
        end = int.from_bytes(block[at : at + width], "little")
        if len(block) < at + width or end == 256**width - 1:
            return None
    except IndexError:
        return None
    return end


def check(path: Path, origin: str = "") -> tuple[tuple[str, str], ...]:
    """(rule, words) of what is odd about a NetCDF file or Zarr store that is whole.

    ``origin``: what messages call it. DataError, which names the cause, for one that is empty or no
    NetCDF file, shorter than its header says, with chunks outside the file, or a header without
    any values (a stub).
    """
    origin = origin or str(path)
    try:
        if path.is_dir():
            return _check_zarr(path, origin)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if not is_netcdf(head):
            raise DataError(_not_netcdf(origin, size, head))
        if head.startswith(b"CDF"):
            _check_classic(path, origin, size)
            return ()
        needed = hdf5_needed_bytes(head)
        if needed is not None and size < needed:
            raise DataError(_truncated(origin, size, needed, ""))
        return _check_hdf5(path, origin, size)
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
        raise DataError(Problem(origin, found=found, rule="unreadable")) from None


def stub_problem(
    origin: str, size: int, value_bytes: int, siblings: Sequence[int]
) -> Problem | None:
    """The problem of a file that is a thousand times smaller than its ``siblings`` (bytes).

    ``value_bytes``: what its fields have unpacked. A field of zeros packs as well as that, and is
    none if it is long enough.
    """
    usual = median(siblings) if siblings else 0
    if size * STUB_RATIO >= usual or value_bytes * STUB_RATIO >= usual:
        return None
    found = f"a stub: {size} bytes, and {value_bytes} bytes of values"
    return Problem(
        origin, "", found, f"about {usual:.0f} bytes, as its siblings have", _COPY_AGAIN, "stub"
    )


def _not_netcdf(origin: str, size: int, head: bytes) -> Problem:
    text = head.lstrip().lower()
    if size == 0:
        found, remedy = "an empty file", _COPY_AGAIN
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        found, remedy = "a web page, no NetCDF file", "Download it again; log in first."
    elif head[:2] == b"\x1f\x8b":
        found, remedy = "a gzip file", "Name it .nc.gz, or unpack it."
    elif head[257:262] == b"ustar":
        found, remedy = "a tar archive", "Name it .tar, or unpack it."
    elif not head.strip(b"\0"):
        found, remedy = "zeros, no NetCDF file", _COPY_AGAIN
    elif all(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in head):
        found, remedy = "text, no NetCDF file", "Hand in the NetCDF file."
    else:
        found, remedy = f"no NetCDF file: it begins with {head[:8]!r}", _COPY_AGAIN
    return Problem(origin, "", found, "a NetCDF file", remedy, "not-netcdf")


def _truncated(origin: str, size: int, needed: int, cut: str) -> Problem:
    found = f"a truncated file: it has {size} bytes"
    if cut:
        found += f", and lacks {cut}"
    if size % BLOCK_BYTES == 0:
        blocks = size // BLOCK_BYTES
        found += f"; an interrupted upload: that is {blocks} times {BLOCK_BYTES} bytes exactly"
    return Problem(
        origin, "", found, f"{needed} bytes, as its header needs", _COPY_AGAIN, "truncated"
    )


def _check_classic(path: Path, origin: str, size: int) -> None:
    try:
        found = layout(path)
    except ValueError as error:
        # A header that goes on beyond the end of the file cannot be told from a damaged one.
        said = f"a damaged file of {size} bytes: {error}"
        if size % BLOCK_BYTES == 0:
            said += "; an interrupted upload?"
        problem = Problem(origin, "", said, "a whole header", _COPY_AGAIN, "damaged")
        raise DataError(problem) from None
    if found is None:
        return
    if size < found.needed_bytes:
        names = [str(cut) for cut in found.cut(size)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DataError(_truncated(origin, size, found.needed_bytes, ", ".join(names[:3]) + more))
    fields = [extent.name for extent in found.extents if extent.record and extent.size > 8]
    if found.records == 0 and fields:
        raise DataError(_stub(origin, fields, "no records"))


def _stub(origin: str, fields: Sequence[str], why: str) -> Problem:
    found = f"a stub: a header with {why} of {', '.join(fields[:3])}"
    return Problem(
        origin, "", found, "values", "Write it again; a job that died leaves these.", "stub"
    )


def _check_hdf5(path: Path, origin: str, size: int) -> tuple[tuple[str, str], ...]:
    try:
        with h5py.File(path, "r") as file:
            shapes = {
                str(name): tuple(item.shape or ())
                for name, item in file.items()
                if isinstance(item, h5py.Dataset)
            }
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        text = " ".join(str(error).replace(str(path), "").split())[:120]
        found = f"a damaged file ({text})"
        problem = Problem(origin, "", found, "a NetCDF-4 file", _COPY_AGAIN, "damaged")
        raise DataError(problem) from None
    fields = [name for name, shape in shapes.items() if len(shape) > 1 and not _is_bounds(name)]
    empty = [name for name in fields if 0 in shapes[name]]
    unwritten: dict[str, tuple[int, int]] = {}
    written: list[NDArray[np.int64]] = []
    for name in shapes:
        chunks = chunked(path, name)
        if chunks is None:
            continue
        there = chunks.offsets.ravel() >= 0
        written.append(np.stack([chunks.offsets.ravel()[there], chunks.sizes.ravel()[there]], 1))
        ends = chunks.offsets + chunks.sizes
        beyond = (chunks.offsets >= 0) & (ends > size)
        if beyond.any():
            at = np.argwhere(beyond)[0]
            steps = f"from step {int(at[0]) * chunks.chunk[0] + 1}" if at.size else "all of it"
            found = f"{int(beyond.sum())} chunks beyond the end of the file, {steps}"
            raise DataError(
                Problem(origin, name, found, f"all within its {size} bytes", _COPY_AGAIN, "damaged")
            )
        missing = int((chunks.offsets < 0).sum())
        if missing:
            unwritten[name] = (missing, chunks.offsets.size)
    _check_heaps(path, origin, size, written)
    bare = [
        n for n in fields if n in empty or (n in unwritten and unwritten[n][0] == unwritten[n][1])
    ]
    if fields and len(bare) == len(fields):
        raise DataError(_stub(origin, bare, "no values"))
    return _unwritten({n: unwritten[n] for n in fields if n in unwritten})


def _check_heaps(path: Path, origin: str, size: int, written: list[NDArray[np.int64]]) -> None:
    """DataError for a damaged global heap: the HDF5 library goes round in it for ever.

    Attributes of variable length, such as those that tie variables to dimensions, are kept there.
    Heaps lie between the chunks, ``written``: (offset, size) of each. HDF5 File Format
    Specification, III.E.
    """
    table = np.concatenate([np.empty((0, 2), np.int64), *written])
    table = table[np.argsort(table[:, 0])]
    starts = np.concatenate([[0], np.maximum.accumulate(table[:, 0] + table[:, 1])])
    ends = np.concatenate([table[:, 0], [size]])
    left = _MAX_SCAN_BYTES
    with path.open("rb") as file:
        for at in np.flatnonzero(ends - starts >= _HEAP_BYTES):
            if left <= 0:
                return
            file.seek(int(starts[at]))
            block = file.read(min(int(ends[at] - starts[at]), left))
            left -= len(block)
            place = block.find(b"GCOL\1\0\0\0")
            while place >= 0:
                end = int.from_bytes(block[place + 8 : place + 16], "little")
                if not _is_heap(block[place : place + end], end):
                    found = f"a damaged heap of attributes at byte {int(starts[at]) + place}"
                    raise DataError(
                        Problem(origin, "", found, "a whole file", _COPY_AGAIN, "damaged")
                    )
                place = block.find(b"GCOL\1\0\0\0", place + 8)


def _is_heap(block: bytes, end: int) -> bool:
    """Whether the objects of a heap of ``end`` bytes follow each other up to its end."""
    if end > len(block):
        return False
    at = 16
    while at + 16 <= end:
        index = int.from_bytes(block[at : at + 2], "little")
        length = int.from_bytes(block[at + 8 : at + 16], "little")
        step = 16 + -(-length // 8) * 8 if index else length
        if step < 16 or at + step > end:
            return False
        at += step
    return True


def _unwritten(chunks: dict[str, tuple[int, int]]) -> tuple[tuple[str, str], ...]:
    """The note of chunks never written; many writers leave out chunks without any land."""
    if not chunks:
        return ()
    said = ", ".join(f"{missing} of {of} of {name}" for name, (missing, of) in chunks.items())
    return (("unwritten", f"chunks never written, read as missing: {said}"),)


def _is_bounds(name: str) -> bool:
    return name.lower().endswith(("_bnds", "_bounds", "_vertices", "bnds", "bounds"))


# --- Zarr ----------------------------------------------------------------------------------------


def _check_zarr(path: Path, origin: str) -> tuple[tuple[str, str], ...]:
    """As `check`, of a Zarr store: its metadata parse, and its fields have chunks."""
    arrays = {}
    for mark in (*path.glob("**/zarr.json"), *path.glob("**/.zarray")):
        try:
            meta = json.loads(mark.read_text(encoding="utf-8"))
            if mark.name == ".zarray" or meta["node_type"] == "array":
                arrays[mark.parent] = tuple(int(n) for n in meta["shape"])
        except (ValueError, KeyError, TypeError, AttributeError):
            found = f"metadata that cannot be read in {mark.relative_to(path)}"
            problem = Problem(origin, "", found, "JSON of a Zarr store", _COPY_AGAIN, "damaged")
            raise DataError(problem) from None
    fields = [a for a, shape in arrays.items() if len(shape) > 1 and not _is_bounds(a.name)]
    bare = [a.name for a in fields if not _has_chunks(a)]
    if fields and len(bare) == len(fields):
        raise DataError(_stub(origin, bare, "no chunks"))
    if bare:
        said = f"no chunks of {', '.join(sorted(bare))}, read as missing"
        return (("unwritten", said),)
    return ()


def _has_chunks(array: Path) -> bool:
    """Whether anything but metadata lies in the folder of an array."""
    for item in array.iterdir():
        if not item.name.startswith(".z") and item.name != "zarr.json":
            return True
    return False
