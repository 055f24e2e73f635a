"""The few file effects that everything else is built on: atomic writes, hashes, safe paths.

Files and folders get the permissions that the user's umask gives. A symbolic link is never followed
out of a folder that is ours: see `inside`, `checked_target`, `refuse_links`, `remove_below`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from callmip_global.errors import DataError, Problem, UsageError

_WHOLE_FILE_BYTES = 64 * 1024**2
_END_BYTES = 1024**2
_NAME_LETTERS = 60  # four parts stay below the 255 bytes that a name may have


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
    small = path.stat().st_size <= _WHOLE_FILE_BYTES
    return content_hash(path) if small else ends_hash(path)


def ends_hash(path: Path) -> str:
    """sha256 of the size, first and last MiB of a file, prefixed ``ends-``."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return f"ends-{digest.hexdigest()}"


def content_hash(path: Path) -> str:
    """sha256 of every byte of a file, or of the names and hashes of all files in a folder."""
    if path.is_dir():
        files = [name for name, status in walk_files(path) if stat.S_ISREG(status.st_mode)]
        return text_hash(canonical_json([[name, content_hash(path / name)] for name in files]))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def home_path(text: str | Path) -> Path:
    """A path whose ``~`` or ``~user`` is the home of that user; as it is where there is none."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def name_part(text: str, allowed: str = "") -> str:
    """Letters, digits, ``.``, ``+``, ``-`` and what is ``allowed``, for a part of a file name.

    Different texts have different names: one that is changed or cut ends in a hash of its text.
    """
    plain = re.sub(rf"[^A-Za-z0-9.+{re.escape(allowed)}-]+", "-", text)[:_NAME_LETTERS]
    return plain if plain == text else f"{plain}-{text_hash(text)[:8]}"


def fsync_folder(folder: Path) -> None:
    """Make a rename or a new name in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write whole or not at all: temporary name beside it, fsync, rename, fsync of the folder.

    Text is written as UTF-8. ``mode``: permissions (default 0o666), less what the umask takes away.
    """
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(temporary, flags, 0o666 if mode is None else mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
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


def inside(folder: Path, path: Path) -> bool:
    """Whether ``path``, with every symbolic link followed, is ``folder`` or below it."""
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(path)]) == root


def checked_target(folder: Path, name: str) -> Path:
    """``folder/name``, ready to be written: its folders made, no symbolic link followed out.

    DataError where a link on the way, or at its end, leads out of ``folder``.
    """
    path = folder / name
    if not inside(folder, path):
        raise DataError(
            Problem(
                str(path),
                found=f"a link that leads to {os.path.realpath(path)}",
                wanted=f"a place inside {folder}",
                remedy="Remove the link.",
            )
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def refuse_links(root: Path, names: Iterable[str], *, depth: int = 2) -> None:
    """UsageError with every symbolic link that leads out of ``root``, before anything is written.

    Looked at are the entries ``names`` of ``root`` and, down to ``depth`` levels, what is in those
    that are folders. A link that stays inside is fine.
    """
    found = [link for name in names for link in _links_out(root, root / name, depth)]
    if found:
        raise UsageError(
            Problem(
                str(link),
                found=f"a link that leads to {os.path.realpath(link)}",
                wanted=f"a file or folder inside {root}",
                remedy="Move what it leads to here, or choose another run directory.",
            )
            for link in found
        )


def _links_out(root: Path, path: Path, depth: int) -> Iterator[Path]:
    if path.is_symlink():
        if not inside(root, path):
            yield path
    elif depth and path.is_dir():
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_symlink() or (depth > 1 and entry.is_dir(follow_symlinks=False)):
                    yield from _links_out(root, Path(entry.path), depth - 1)


def walk_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path from ``folder``, lstat) of everything below it that is no folder, sorted.

    A symbolic link is itself, never what it leads to: what is in a linked folder is not below.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            for name, status in walk_files(Path(entry.path)):
                yield f"{entry.name}/{name}", status
        else:
            yield entry.name, entry.stat(follow_symlinks=False)


def remove_below(root: Path, names: Iterable[str]) -> None:
    """Remove files (or links) given by their paths from ``root``, and folders that are then empty.

    Every folder on the way is opened without following links, so that nothing outside ``root`` is
    removed whatever becomes a link meanwhile. What is not there any more is fine.
    """
    folders: dict[PurePosixPath, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.name or ".." in path.parts:
            raise ValueError(f"{name!r} is no path below {root}")
        folders.setdefault(path.parent, []).append(path.name)
    for parent in sorted(folders, key=lambda p: len(p.parts), reverse=True):
        with _opened(root, parent) as handle:
            if handle is not None:
                for name in folders[parent]:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=handle)
        _remove_empty(root, parent)


def _remove_empty(root: Path, folder: PurePosixPath) -> None:
    while folder.name:
        with _opened(root, folder.parent) as handle:
            if handle is None:
                return
            try:
                os.rmdir(folder.name, dir_fd=handle)
            except OSError:  # not empty, or gone
                return
        folder = folder.parent


@contextlib.contextmanager
def _opened(root: Path, folder: PurePosixPath) -> Iterator[int | None]:
    """Descriptor of a folder below ``root``; None if it, or one on the way, is gone or a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        try:
            handle = os.open(root, flags)
            stack.callback(os.close, handle)
            for part in folder.parts:
                handle = os.open(part, flags, dir_fd=handle)
                stack.callback(os.close, handle)
        except OSError:
            yield None
            return
        yield handle
