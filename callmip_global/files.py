"""The few file effects that everything else is built on: atomic writes, durable appends, hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

_WHOLE_FILE_BYTES = 64 * 1024**2
_END_BYTES = 1024**2


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN. What hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def text_hash(text: str) -> str:
    """sha256 of the text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file; above 64 MiB of its size, first and last MiB (prefixed ``ends-``).

    Forcing files reach hundreds of GB: reading them whole at every ``plan`` would make users
    switch the check off, and truncation or replacement shows at the ends and in the size.
    """
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE_FILE_BYTES:
            while block := file.read(_END_BYTES):
                digest.update(block)
            return digest.hexdigest()
        digest.update(str(size).encode())
        digest.update(file.read(_END_BYTES))
        file.seek(-_END_BYTES, os.SEEK_END)
        digest.update(file.read(_END_BYTES))
    return f"ends-{digest.hexdigest()}"


def fsync_folder(folder: Path) -> None:
    """Make a rename or a new name in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str, *, mode: int | None = None) -> None:
    """Write whole or not at all: temporary name beside it, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Atomic, indented, sorted JSON with a final newline."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value of a file; FileNotFoundError and ValueError pass through."""
    return json.loads(path.read_text(encoding="utf-8"))
