"""Packed files of a submission: one NetCDF file out of ``.gz``, ``.tar`` or ``.tar.gz``, safely.

An archive comes from somebody else. Nothing is written but one file, under a name of ours; names
and links in the archive are never followed. How large the file may become is known before it is
written: its own header says so. Memory is bounded, the archive is read once.

Formats: RFC 1952 (gzip); POSIX.1-2001 (ustar, pax), with GNU's long names.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

from callmip_global.errors import DataError, Problem
from callmip_global.files import read_json, write_json
from callmip_global.harmonize.integrity import hdf5_needed_bytes, is_netcdf
from callmip_global.harmonize.naming import classify, unpacked_name
from callmip_global.harmonize.netcdf3 import read_layout

_BLOCK = 1024**2
_TAR_BLOCK = 512
_MAX_MEMBERS = 10_000
_MAX_EXTENSION_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 16 * 1024**2
_MAX_BESIDE_BYTES = 256 * 1024**2
"""Of readmes and the like beside the NetCDF file of a tar, in all."""
_SLACK_BYTES = 1024**2
"""Files may be padded beyond what their header says."""
_DISK_SHARE = 0.9
"""Of the free disk, at most this much is filled."""
_AGAIN = "Pack it again, or hand it in unpacked."


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive.

    path : the NetCDF file;  member : its name in a tar, empty in a gz;  size : bytes
    archive_sha256, sha256 : of the archive as handed in, and of the file
    """

    path: Path
    member: str
    size: int
    archive_sha256: str
    sha256: str

    @property
    def words(self) -> str:
        """For the record: what it was unpacked from, with both hashes."""
        member = f" its member {self.member!r}," if self.member else ""
        return (
            f"unpacked:{member} {self.size} bytes, sha256 {self.sha256},"
            f" of an archive with sha256 {self.archive_sha256}"
        )


def unpack(
    archive: Path, into: Path, *, origin: str = "", limit_bytes: int | None = None
) -> Unpacked:
    """The one NetCDF file of an archive, as ``into/<sha256 of the archive>.nc``.

    It is there whole or not at all; one that is there already, from an archive of the same content,
    is taken as it is. ``limit_bytes``: the most it may have, less where the disk is nearly full.
    DataError names the archive (as ``origin``) and the place in it: damaged or cut off, no NetCDF
    file in it or several, a name that leads outside, links and devices, more than it promises.
    """
    origin = origin or str(archive)
    into.mkdir(parents=True, exist_ok=True)
    packing = unpacked_name(archive.name.rstrip("\r\n"))[1]
    try:
        size = archive.stat().st_size
        # Only where something is there that could be it, the archive is read once more.
        if any(_record_of(p).get("archive_bytes") == size for p in sorted(into.glob("*.json"))):
            found = _complete(into, _hash(archive))
            if found is not None:
                return found
        with archive.open("rb") as file:
            return _Unpacking(file, into, origin, packing, limit_bytes).run()
    except OSError as error:
        raise DataError(
            Problem(origin, found=f"an archive that cannot be unpacked ({error.strerror or error})")
        ) from None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_of(path: Path) -> dict[str, object]:
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _complete(into: Path, archive_sha256: str) -> Unpacked | None:
    """What was unpacked before from an archive with this hash, if it is there whole."""
    path = into / f"{archive_sha256}.nc"
    record = _record_of(path.with_suffix(".json"))
    try:
        size = path.stat().st_size
    except OSError:
        return None
    if record.get("bytes") != size:
        return None
    member, sha256 = str(record.get("member", "")), str(record.get("sha256", ""))
    return Unpacked(path, member, size, archive_sha256, sha256)


class NoMemberError(DataError):
    """A tar without any NetCDF file: perhaps nobody meant to hand one in."""


class _DamagedError(Exception):
    """Bytes that are no gzip or tar: ``found``, and where in the archive."""

    def __init__(self, found: str, offset: int) -> None:
        super().__init__(found)
        self.found, self.offset = found, offset


class _Stream(Protocol):
    @property
    def offset(self) -> int: ...

    def read(self, size: int) -> bytes: ...


class _Raw:
    """The archive, hashed as it is read. ``offset``: bytes read so far."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.offset = file, 0
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.offset += len(block)
        self.digest.update(block)
        return block


class _Inflated:
    """The content of gzip members one after the other; what is asked for bounds the memory.

    ``offset``: bytes of the archive that were used, where damage is found.
    """

    def __init__(self, raw: _Raw) -> None:
        self.raw = raw
        self.pending = b""
        self.stream = zlib.decompressobj(wbits=31)
        self.begun = False

    @property
    def offset(self) -> int:
        return self.raw.offset - len(self.pending)

    def read(self, size: int) -> bytes:
        while True:
            if not self.pending:
                self.pending = self.raw.read(_BLOCK // 4)
                if not self.pending:
                    if self.begun:
                        raise _DamagedError("the end of the file in the middle", self.raw.offset)
                    return b""
            if not self.begun:
                # Tapes and block devices pad with zeros.
                self.pending = self.pending.lstrip(b"\0")
                if not self.pending:
                    continue
                self.begun = True
            try:
                block = self.stream.decompress(self.pending, size)
            except zlib.error as error:
                text = str(error).partition(": ")[2] or str(error)
                raise _DamagedError(f"damaged compression ({text})", self.offset) from None
            if self.stream.eof:
                self.pending = self.stream.unused_data
                self.stream, self.begun = zlib.decompressobj(wbits=31), False
            else:
                self.pending = self.stream.unconsumed_tail
            if block:
                return block


class _Exact:
    """Reads of exactly the size asked for, from a stream that gives less at a time."""

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream

    def read(self, size: int) -> bytes:
        parts, missing = [], size
        while missing and (block := self.stream.read(missing)):
            parts.append(block)
            missing -= len(block)
        return b"".join(parts)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int


class _Promises:
    """What the archives being unpacked now will need, by temporary file."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bytes: dict[Path, int] = {}


_promises = _Promises()


class _Unpacking:
    """One archive on its way to one file."""

    def __init__(
        self, file: BinaryIO, into: Path, origin: str, packing: str, limit_bytes: int | None
    ) -> None:
        self.raw = _Raw(file)
        self.stream: _Stream = self.raw if packing == "tar" else _Inflated(self.raw)
        self.into, self.origin, self.packing = into, origin, packing
        self.limit_bytes = limit_bytes
        self.temporary = into / f".{uuid4().hex}.tmp"

    def run(self) -> Unpacked:
        try:
            if self.packing == "gz":
                member, written, sha256 = "", *self._write(lambda n: self.stream.read(n), None)
            else:
                member, written, sha256 = self._of_tar()
            while self.raw.read(_BLOCK):
                pass
            archive_sha256 = self.raw.digest.hexdigest()
            path = self.into / f"{archive_sha256}.nc"
            self.temporary.replace(path)
            record = {
                "archive_bytes": self.raw.offset,
                "bytes": written,
                "member": member,
                "sha256": sha256,
            }
            write_json(path.with_suffix(".json"), record)
            return Unpacked(path, member, written, archive_sha256, sha256)
        except _DamagedError as error:
            found = f"{error.found}, at byte {error.offset} of the archive"
            raise self._refuse(found, "a whole archive") from None
        finally:
            self.temporary.unlink(missing_ok=True)
            with _promises.lock:
                _promises.bytes.pop(self.temporary, None)

    def _refuse(
        self, found: str, wanted: str = "", remedy: str = _AGAIN, key: str = ""
    ) -> DataError:
        return DataError(Problem(self.origin, key, found, wanted, remedy, rule="archive"))

    # --- gz ---

    def _write(self, read: Callable[[int], bytes], size: int | None) -> tuple[int, str]:
        """(bytes, sha256) of the content, written to the temporary file.

        ``size``: how long the archive says it is.
        """
        head = bytearray()
        while len(head) < _MAX_HEADER_BYTES and (block := read(_BLOCK)):
            head += block
            promised = self._promised(bytes(head))
            if promised is not _UNKNOWN:
                break
        else:
            promised = self._promised(bytes(head), whole=True)
        bound = self._bound(promised if promised is not _UNKNOWN else None, size)
        digest, written = hashlib.sha256(head), len(head)
        with self.temporary.open("xb") as out:
            out.write(head)
            while written <= bound and (block := read(_BLOCK)):
                digest.update(block)
                written += len(block)
                out.write(block)
            if written > bound:
                found = f"more than {bound} bytes when unpacked"
                raise self._refuse(found, f"{bound} bytes at most, as its header says or fit here")
            out.flush()
            os.fsync(out.fileno())
        return written, digest.hexdigest()

    def _promised(self, head: bytes, *, whole: bool = False) -> int | None:
        """Bytes that the header of the content promises; None where it does not say.

        `_UNKNOWN` where more of it must be seen first.
        """
        if len(head) < 8 and not whole:
            return _UNKNOWN
        if not is_netcdf(head):
            found = f"content that begins with {head[:8]!r}"
            raise self._refuse(found, "a NetCDF file", "Hand in the NetCDF file.")
        if not head.startswith(b"CDF"):
            return hdf5_needed_bytes(head)
        try:
            layout = read_layout(io.BytesIO(head))
        except ValueError:
            return None if whole else _UNKNOWN
        return None if layout is None or layout.records is None else layout.needed_bytes

    def _bound(self, promised: int | None, size: int | None) -> int:
        """Bytes that may be written. DataError where what is promised is too much.

        What other threads were promised and may not have written yet counts as written.
        """
        wanted = max(promised or 0, size or 0)
        with _promises.lock:
            others = sum(n for path, n in _promises.bytes.items() if path != self.temporary)
            free = int(shutil.disk_usage(self.into).free * _DISK_SHARE) - others
            bound = free if self.limit_bytes is None else min(free, self.limit_bytes)
            if wanted > bound:
                found = f"{wanted} bytes when unpacked"
                why = "as the disk has room for" if bound == free else "the limit set"
                most = f"{max(bound, 0)} bytes at most, {why}"
                raise self._refuse(found, most, "Make room, or pack less.")
            _promises.bytes[self.temporary] = wanted
        if promised is None:
            return bound
        if size is not None and size > promised + _SLACK_BYTES:
            found = f"a member of {size} bytes"
            raise self._refuse(found, f"{promised} bytes, as its own header says")
        return min(bound, promised + _SLACK_BYTES)

    # --- tar ---

    def _of_tar(self) -> tuple[str, int, str]:
        """(name, bytes, sha256) of the one NetCDF member of a tar."""
        exact = _Exact(self.stream)
        taken: tuple[str, int, str] | None = None
        beside = 0
        for member in self._members(exact):
            left = member.size

            def read(size: int) -> bytes:
                nonlocal left
                block = self.stream.read(min(size, left)) if left else b""
                if left and not block:
                    raise _DamagedError("the end of the file in a member", self.stream.offset)
                left -= len(block)
                return block

            row = classify(member.name, member.size)
            if row.kind in ("data", "grid", "superseded", "forcing") and not row.packed:
                if taken is not None:
                    found = f"two NetCDF members, {taken[0]!r} and {member.name!r}"
                    raise self._refuse(found, "one", "Hand in one archive per file.")
                taken = (member.name, *self._write(read, member.size))
            elif row.packed or row.kind == "archive":
                raise self._refuse(f"a packed member {member.name!r}", "a NetCDF file", _AGAIN)
            beside += left
            if beside > _MAX_BESIDE_BYTES:
                raise self._refuse(f"{beside} bytes beside the NetCDF file", "the file alone")
            while left:
                read(_BLOCK)
            exact.read(-member.size % _TAR_BLOCK)
        if taken is None:
            problems = self._refuse("no NetCDF member", "one", "Hand in the NetCDF file.").problems
            raise NoMemberError(problems)
        return taken

    def _members(self, exact: _Exact) -> Iterator[_Member]:
        """Plain files of a tar, in order; the caller reads each before it asks for the next.

        DataError for every other thing than files and folders, and for names that lead outside.
        """
        longer: dict[str, str] = {}
        for count in range(_MAX_MEMBERS + 1):
            at = self.stream.offset
            block = exact.read(_TAR_BLOCK)
            if not any(block) and len(block) == _TAR_BLOCK:
                self._nothing_more(exact)
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise _DamagedError(f"damaged tar ({error})", at) from None
            if count == _MAX_MEMBERS:
                raise self._refuse(f"more than {_MAX_MEMBERS} members", "one NetCDF file")
            if info.size < 0:
                raise _DamagedError("a member of negative size", at)
            if info.type in _EXTENSIONS:
                if info.size > _MAX_EXTENSION_BYTES:
                    raise self._refuse(f"a header of {info.size} bytes", "a plain tar")
                text = exact.read(-(-info.size // _TAR_BLOCK) * _TAR_BLOCK)[: info.size]
                longer |= self._extension(info.type, text, at)
                continue
            name = longer.get("path", info.name)
            size = info.size
            if "size" in longer:
                if not longer["size"].isascii() or not longer["size"].isdigit():
                    raise _DamagedError("damaged pax header", at)
                size = int(longer["size"][:20])
            if any(key.startswith("GNU.sparse") for key in longer):
                raise self._refuse(f"a sparse member {name!r}", "a plain file")
            longer = {}
            self._check_name(name)
            if info.type == tarfile.DIRTYPE:
                continue
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                what = _SPECIAL.get(info.type, "something unknown")
                raise self._refuse(f"{what} {name!r}", "files and folders only")
            yield _Member(name, size)

    def _nothing_more(self, exact: _Exact) -> None:
        """After the mark of the end come zeros only; members hidden there would never be seen."""
        padding = 0
        while block := self.stream.read(_BLOCK):
            padding += len(block)
            if padding > _MAX_BESIDE_BYTES or block.strip(b"\0"):
                raise _DamagedError("more after the end of the tar", self.stream.offset)

    def _extension(self, kind: bytes, text: bytes, at: int) -> dict[str, str]:
        """What a long-name or pax header says of the member after it."""
        if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            name = text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            return {"path": name} if kind == tarfile.GNUTYPE_LONGNAME else {}
        found = {}
        while text:
            length, space, _ = text.partition(b" ")
            if not space or not length.isdigit() or len(length) > 6:
                raise _DamagedError("damaged pax header", at)
            record, text = text[len(length) + 1 : int(length)], text[int(length) :]
            key, equals, value = record.rstrip(b"\n").partition(b"=")
            if not equals or int(length) <= len(length) + 1:
                raise _DamagedError("damaged pax header", at)
            found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        if kind == tarfile.XGLTYPE:
            if {"path", "size"} & set(found):
                raise self._refuse("a name or size for all members", "one for each")
            return {}
        return found

    def _check_name(self, name: str) -> None:
        parts = name.replace("\\", "/").split("/")
        if name[:1] in ("/", "\\") or ".." in parts or "\0" in name or name[1:2] == ":":
            found = f"a member that leads outside, {name!r}"
            raise self._refuse(found, "names inside the archive")


_UNKNOWN = -1
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_SPECIAL = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
