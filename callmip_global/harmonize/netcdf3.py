"""How long a NetCDF-3 file must be, from its header.

A truncated file of the classic formats (CDF-1, CDF-2, CDF-5) is read as zeros without any error by
the NetCDF library, so its length is checked before anything is believed. Format: NetCDF User's
Guide, appendix "File Format Specifications".
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_STREAMING = {b"\x01": 0xFFFFFFFF, b"\x02": 0xFFFFFFFF, b"\x05": 0xFFFFFFFFFFFFFFFF}


def needed_bytes(path: Path) -> int | None:
    """Bytes that the header promises; None for a file of another format.

    ValueError when the header itself is cut off or makes no sense.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic[:3] != b"CDF" or magic[3:] not in (b"\x01", b"\x02", b"\x05"):
            return None
        try:
            return _Header(file, magic[3:]).needed_bytes()
        except (struct.error, KeyError, IndexError):
            raise ValueError("the header is cut off or damaged") from None


class _Header:
    """The header read in order. Numbers are big-endian; counts are 64 bits wide in CDF-5."""

    def __init__(self, file: BinaryIO, version: bytes) -> None:
        self.file = file
        self.count_format = ">Q" if version == b"\x05" else ">I"
        self.offset_format = ">I" if version == b"\x01" else ">Q"
        self.records = self.count()
        if self.records == _STREAMING[version]:
            self.records = 0

    def needed_bytes(self) -> int:
        self.integer()
        sizes = []
        for _ in range(self.count()):
            self.name()
            sizes.append(self.count())
        self.attributes()
        self.integer()
        fixed_ends, records = [0], []
        for _ in range(self.count()):
            self.name()
            dims = [sizes[self.count()] for _ in range(self.count())]
            self.attributes()
            item = _ITEM_BYTES[self.integer()]
            self.count()  # vsize, redundant and wrong for large variables
            begin = self.number(self.offset_format)
            # A dimension of length 0 is the record dimension.
            record = bool(dims) and dims[0] == 0
            values = 1
            for size in dims[1:] if record else dims:
                values *= size
            if record:
                records.append((begin, values * item))
            else:
                fixed_ends.append(begin + values * item)
        if not records or not self.records:
            return max(fixed_ends)
        # One record variable alone is not padded to 4 bytes; several are, each.
        alone = len(records) == 1
        record_bytes = sum(n if alone else -(-n // 4) * 4 for _, n in records)
        last = max(begin + n for begin, n in records)
        return max(*fixed_ends, last + (self.records - 1) * record_bytes)

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.file.read(struct.calcsize(form)))[0])

    def integer(self) -> int:
        return self.number(">I")

    def count(self) -> int:
        return self.number(self.count_format)

    def skip(self, size: int) -> None:
        padded = -(-size // 4) * 4
        if len(self.file.read(padded)) < padded:
            raise IndexError

    def name(self) -> None:
        self.skip(self.count())

    def attributes(self) -> None:
        self.integer()
        for _ in range(self.count()):
            self.name()
            item = _ITEM_BYTES[self.integer()]
            self.skip(item * self.count())
