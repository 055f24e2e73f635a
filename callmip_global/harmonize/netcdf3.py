"""How long a NetCDF-3 file must be, and which values lie where, from its header.

A truncated file of the classic formats (CDF-1, CDF-2, CDF-5) is read as zeros without any error by
the NetCDF library, so its length is checked before anything is believed. Format: NetCDF User's
Guide, appendix "File Format Specifications".
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_STREAMING = {b"\x01": 0xFFFFFFFF, b"\x02": 0xFFFFFFFF, b"\x05": 0xFFFFFFFFFFFFFFFF}
_MAX_NAME_BYTES = 65536
_MAX_DIMENSIONS = 1024


@dataclass(frozen=True)
class Extent:
    """Where the values of one variable lie: ``size`` bytes from ``begin``, of one record if
    ``record``."""

    name: str
    begin: int
    size: int
    record: bool


@dataclass(frozen=True)
class Cut:
    """A variable that a file too short does not hold in full.

    ``whole`` of ``records`` records are there; both None for a variable without records.
    """

    name: str
    whole: int | None
    records: int | None

    def __str__(self) -> str:
        return self.name if self.records is None else f"{self.name} from record {self._next}"

    @property
    def _next(self) -> str:
        return f"{(self.whole or 0) + 1} of {self.records}"


@dataclass(frozen=True)
class Layout:
    """A header: ``records`` of ``record_bytes`` each, None records where the file does not say."""

    extents: tuple[Extent, ...]
    records: int | None
    record_bytes: int
    header_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Bytes that the file must have."""
        ends = [self.header_bytes]
        for extent in self.extents:
            if not extent.record:
                ends.append(extent.begin + extent.size)
            elif self.records:
                ends.append(extent.begin + extent.size + (self.records - 1) * self.record_bytes)
        return max(ends)

    def cut(self, size: int) -> tuple[Cut, ...]:
        """The variables that a file of ``size`` bytes does not hold in full."""
        found = []
        for extent in self.extents:
            if not extent.record:
                if extent.begin + extent.size > size:
                    found.append(Cut(extent.name, None, None))
                continue
            records = self.records or 0
            beyond = size - extent.begin - extent.size
            whole = beyond // self.record_bytes + 1 if beyond >= 0 and self.record_bytes else 0
            if extent.size and whole < records:
                found.append(Cut(extent.name, whole, records))
        return tuple(found)


def needed_bytes(path: Path) -> int | None:
    """Bytes that the header promises; None for a file of another format.

    ValueError when the header itself is cut off or makes no sense.
    """
    found = layout(path)
    return None if found is None else found.needed_bytes


def layout(path: Path) -> Layout | None:
    """The layout of a file; None for another format. ValueError for a damaged header."""
    with path.open("rb") as file:
        return read_layout(file)


def read_layout(file: BinaryIO) -> Layout | None:
    """As `layout`, of an open file at its start, or of its first bytes."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    magic = file.read(4)
    if magic[:3] != b"CDF" or magic[3:] not in (b"\x01", b"\x02", b"\x05"):
        return None
    try:
        return _Header(file, magic[3:], size).layout()
    except (struct.error, KeyError, IndexError, OverflowError):
        raise ValueError("the header is cut off or damaged") from None


class _Header:
    """The header read in order. Numbers are big-endian; counts are 64 bits wide in CDF-5."""

    def __init__(self, file: BinaryIO, version: bytes, size: int) -> None:
        self.file, self.size = file, size
        self.count_format = ">Q" if version == b"\x05" else ">I"
        self.offset_format = ">I" if version == b"\x01" else ">Q"
        records = self.count()
        self.records = None if records == _STREAMING[version] else records

    def layout(self) -> Layout:
        self.integer()
        sizes = []
        for _ in range(self.count()):
            self.name()
            sizes.append(self.count())
        self.attributes()
        self.integer()
        extents = []
        for _ in range(self.count()):
            name = self.name()
            rank = self.count()
            if rank > _MAX_DIMENSIONS:
                raise IndexError
            dims = [sizes[self.count()] for _ in range(rank)]
            self.attributes()
            item = _ITEM_BYTES[self.integer()]
            self.count()  # vsize, redundant and wrong for large variables
            begin = self.number(self.offset_format)
            # A dimension of length 0 is the record dimension.
            record = bool(dims) and dims[0] == 0
            values = 1
            for size in dims[1:] if record else dims:
                values *= size
            extents.append(Extent(name, begin, values * item, record))
        records = [extent.size for extent in extents if extent.record]
        # One record variable alone is not padded to 4 bytes; several are, each.
        padded = records if len(records) == 1 else [-(-n // 4) * 4 for n in records]
        header = self.file.tell()
        if any(extent.begin < header and extent.size for extent in extents):
            raise IndexError
        return Layout(tuple(extents), self.records, sum(padded), header)

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.file.read(struct.calcsize(form)))[0])

    def integer(self) -> int:
        return self.number(">I")

    def count(self) -> int:
        return self.number(self.count_format)

    def skip(self, size: int) -> None:
        # A damaged length must not be read into memory.
        to = self.file.tell() + -(-size // 4) * 4
        if to > self.size:
            raise IndexError
        self.file.seek(to)

    def name(self) -> str:
        size = self.count()
        if size > _MAX_NAME_BYTES:
            raise IndexError
        text = self.file.read(size)
        if len(text) < size:
            raise IndexError
        self.file.seek(-size % 4, 1)
        return text.decode("utf-8", "replace")

    def attributes(self) -> None:
        self.integer()
        for _ in range(self.count()):
            self.name()
            item = _ITEM_BYTES[self.integer()]
            self.skip(item * self.count())
