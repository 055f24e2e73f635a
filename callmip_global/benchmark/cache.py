"""Results that are kept: a unit whose inputs are unchanged is not computed again.

A unit is one product at one frequency with all runs that have its variable. What came of it lies
in ``OUT/kept/<key>.json``; the key is a hash of all that it depends on: the content of the files
of the product and of the runs, the entry in the products file, regions and schemes, and the code
that computes it. It is written as soon as the unit is done, whole or not at all, so that a
benchmark that was stopped goes on where it was.

What is kept is never trusted unseen: a file that is damaged, of another form, or one of whose maps
is gone or changed is as good as none. Nor is kept that a product could not be compared, or that a
file could not be read: to find that out again costs little, and the reason may have gone.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from callmip_global import __version__
from callmip_global.benchmark.product import Product
from callmip_global.benchmark.series import Period
from callmip_global.benchmark.tables import Score
from callmip_global.data import data_path
from callmip_global.errors import CallmipError, Problem
from callmip_global.files import canonical_json, content_hash, text_hash, write_atomic
from callmip_global.hdf5 import open_dataset
from callmip_global.parallel import in_threads, processors, run_units

FORM = 1
FOLDER = "kept"
UNREADABLE, CHANGED = "unreadable", "changed"
PACKAGES = ("numpy", "xarray", "zarr", "netCDF4", "cftime")
"""Packages that the numbers and the maps are made with."""

_INDEX = "files.json"
# A result under its key, or a file that is not yet whole.
_OWN_NAME = re.compile(r"[0-9a-f]{64}\.json|\.(.+\.)?[0-9a-f]{32}\.tmp")
_RACY_NS = 2_000_000_000
# What readers say of a file or its data, by rule and in words.
_UNREAD = ("damaged", "unreadable")
_SAID = "cannot be read"
# Beside the code: units and plausible ranges of the variables.
_TABLES = ("variables.yaml", "plausible.yaml")


@dataclass
class Found:
    """What came of a unit.

    ``entries``: of benchmark.json, at most one, whose ``runs`` are identities of runs; plain JSON.
    ``periods``: (year, month) of the steps compared. ``short``: too few of them, perhaps no fault.
    """

    rows: list[Score] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    short: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    periods: list[Period] = field(default_factory=list)


@dataclass(frozen=True)
class Kept:
    """What is kept in a benchmark's folder ``out``."""

    out: Path

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.out / FOLDER

    def empty(self) -> bool:
        """Whether there is no result, of whatever key."""
        return not any(path.name != _INDEX for path in self.folder.glob("*.json"))

    def load(self, keys: Sequence[str]) -> list[Found | None]:
        """What is kept under each key; None where there is nothing that can be used."""
        return run_units(in_threads, Kept._load, self, keys)

    def save(self, key: str, found: Found) -> None:
        """Keep what came of a unit whose maps are written.

        Nothing where it has no comparison, or something could not be read, perhaps for the moment.
        """
        unread = any(p.rule in _UNREAD or _SAID in p.found for p in found.problems)
        if not key or not found.entries or unread:
            return
        value = {
            "form": FORM,
            "rows": _columns(found.rows),
            "entries": found.entries,
            "problems": [astuple(problem) for problem in found.problems],
            "short": [astuple(problem) for problem in found.short],
            "notes": found.notes,
            "periods": found.periods,
            "maps": {name: content_hash(self.out / name) for name in maps_of(found)},
        }
        text = canonical_json(value)
        write_atomic(self._path(key), f"{text_hash(text)}\n{text}\n")

    def remove_others(self, keys: Collection[str], maps: Collection[str]) -> None:
        """Remove what is kept under other keys, and maps (by their place in ``out``) but these.

        Only what a benchmark has written: ``out`` may be a folder with maps of the user's own.
        """
        staying = {self._path(key) for key in keys if key} | {self.out / name for name in maps}
        for folder in (self.folder, self.out / "maps"):
            for path in folder.iterdir():
                if path not in staying and _written_by_a_benchmark(path):
                    path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _load(self, key: str) -> Found | None:
        if not key:
            return None
        try:
            digest, _, text = self._path(key).read_text(encoding="utf-8").partition("\n")
            if digest != text_hash(text.removesuffix("\n")):
                return None
            value = json.loads(text)
            if value["form"] != FORM:
                return None
            for name, known in value["maps"].items():
                if content_hash(self.out / name) != known:
                    return None
            return Found(
                _rows(value["rows"]),
                value["entries"],
                [Problem(*parts) for parts in value["problems"]],
                [Problem(*parts) for parts in value["short"]],
                value["notes"],
                [(year, month) for year, month in value["periods"]],
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None


def _written_by_a_benchmark(path: Path) -> bool:
    """Whether a file of ``kept`` or ``maps`` is a result, a map, or what a killed call left."""
    if path.suffix == ".nc":
        try:
            with open_dataset(path) as ds:
                made = str(ds.attrs.get("source", "")).startswith("callmip-global ")
                return made and {"product", "scheme"} <= ds.attrs.keys()
        except (CallmipError, OSError, RuntimeError, ValueError):
            return False
    return _OWN_NAME.fullmatch(path.name) is not None


def take_over(earlier: Path, out: Path) -> None:
    """Give ``out`` what is kept in the folder of an earlier benchmark, by hard links.

    All of it is only ever replaced as a whole, so neither folder changes with the other. What
    ``out`` has already stays; where the file system has no hard links nothing is taken over.
    """
    for part in (FOLDER, "maps"):
        for path in (earlier / part).glob("[!.]*"):
            (out / part).mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                os.link(path, out / part / path.name)


def maps_of(found: Found) -> list[str]:
    """The maps that a unit has written, by their place in the folder of the benchmark."""
    return [file["file"] for entry in found.entries for file in entry.get("maps", ())]


def _columns(rows: Sequence[Score]) -> dict[str, Any]:
    """Rows by column: numbers as they are, null where not finite; texts as positions in a list."""
    found: dict[str, Any] = {}
    for column in fields(Score):
        values = [getattr(row, column.name) for row in rows]
        if column.type == "float":
            found[column.name] = [float(v) if math.isfinite(v) else None for v in values]
        elif column.type == "int":
            found[column.name] = values
        else:
            places = {text: i for i, text in enumerate(dict.fromkeys(values))}
            found[column.name] = [list(places), [places[text] for text in values]]
    return found


def _rows(columns: Mapping[str, Any]) -> list[Score]:
    found = []
    for column in fields(Score):
        values = columns[column.name]
        if column.type == "float":
            values = [math.nan if v is None else v for v in values]
        elif column.type == "str":
            texts, places = values
            values = [texts[i] for i in places]
        found.append(values)
    return [Score(*row) for row in zip(*found, strict=True)]


# --- what a unit depends on -------------------------------------------------------------------


@cache
def versions() -> dict[str, str]:
    """The versions that a benchmark depends on, of this package and of others."""
    return {
        "callmip-global": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


@cache
def code_digest() -> str:
    """sha256 over the source code of this package and the tables of variables it reads."""
    package = Path(__file__).resolve().parent.parent
    sources = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    sources |= {name: data_path("config", name) for name in _TABLES}
    return text_hash(canonical_json({name: content_hash(sources[name]) for name in sources}))


def unit_key(function: Callable[..., Any], *parts: Any) -> str:
    """Name of what is kept of a unit that depends on ``parts``, this package and ``function``.

    ``parts``: numbers, texts, arrays, and containers and dataclasses of them; TypeError for others.
    Empty, which stands for nothing to be kept, where ``function`` is none of this package: what a
    stranger's function does is not told by its name.
    """
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    if not name.startswith("callmip_global.") or "<" in name:
        return ""
    return text_hash(canonical_json([FORM, versions(), code_digest(), name, plain(parts)]))


def product_parts(product: Product, files: Sequence[tuple[Path, str]]) -> Any:
    """What of a product its comparison depends on: entry and content of files, not their place.

    ``files``: with their digests. None where one cannot be read or has just changed.
    """
    if any(digest in (UNREADABLE, CHANGED) for _, digest in files):
        return None
    entry = {f.name: getattr(product, f.name) for f in fields(product) if f.name != "paths"}
    return entry, [(path.name, digest) for path, digest in files]


def plain(value: Any) -> Any:
    """A value as JSON that differs where the value does: arrays by their hash, paths by content."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, np.ndarray):
        return [value.dtype.str, list(value.shape), text_hash(value.tobytes().hex())]
    if isinstance(value, Path):
        return content_hash(value)
    if isinstance(value, Mapping):
        return [[plain(key), plain(value[key])] for key in sorted(value)]
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        own = [[f.name, plain(getattr(value, f.name))] for f in fields(value)]
        return [type(value).__qualname__, own]
    raise TypeError(f"a {type(value).__name__} has no plain form that a key could be made of")


# --- content of files -------------------------------------------------------------------------


class FileDigests:
    """sha256 of the content of files, read in threads beside the work of the caller, who asks for
    them when they are needed.

    ``unreadable`` where a file cannot be read, ``changed`` where it is no longer what it was at the
    beginning: what the caller has made of it meanwhile may be of either. A file that has the size,
    the times and the place on disk that it had when it was last read for ``out`` is not read again;
    one that had just been written then is.
    """

    def __init__(self, paths: Iterable[Path], out: Path) -> None:
        self._index = out / FOLDER / _INDEX
        try:
            self._known: dict[str, Any] = dict(json.loads(self._index.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}
        self._kept = self._known
        # Hashing frees the interpreter lock.
        self._pool = ThreadPoolExecutor(processors())
        self._coming = {
            path: self._pool.submit(self._digest, path, _state(path), time.time_ns())
            for path in dict.fromkeys(paths)
        }
        for path, coming in self._coming.items():
            if path.is_dir():  # does not show later that a file in it has changed
                coming.result()

    def __enter__(self) -> FileDigests:
        return self

    def __exit__(self, *_: object) -> None:
        """Files that nobody has asked for are not read any more."""
        self._pool.shutdown(cancel_futures=True)

    def __getitem__(self, path: Path) -> str:
        return self._coming[path].result()[0]

    def remember(self) -> None:
        """Keep for the next call what is known by now of files that stay as they are."""
        kept = {}
        for path, coming in self._coming.items():
            if coming.done():
                found, state = coming.result()
                if state is not None:
                    kept[str(path)] = [*state, found]
            elif str(path) in self._known:
                kept[str(path)] = self._known[str(path)]
        if kept != self._kept:
            write_atomic(self._index, canonical_json(kept) + "\n")
            self._kept = kept

    def _digest(
        self, path: Path, state: list[int] | None, now: int
    ) -> tuple[str, list[int] | None]:
        before = self._known.get(str(path))
        if state is not None and isinstance(before, list) and before[:-1] == state:
            return str(before[-1]), state
        try:
            found = content_hash(path)
        except OSError:
            return UNREADABLE, None
        if _state(path) != state:
            return CHANGED, None
        # What changes twice within a tick of the clock keeps its times.
        settled = state is not None and max(state[1:3]) < now - _RACY_NS
        return found, state if settled else None


def _state(path: Path) -> list[int] | None:
    """Size, times and inode of a file; None for a folder, whose files may change without it, and
    for what is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    if stat.S_ISDIR(status.st_mode):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
