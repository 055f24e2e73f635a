"""A collection: the newest version of every store, the versions before it, reports of all runs.

::

    COLLECTION/<store>.zarr               the newest version, always whole
    COLLECTION/versions/<store>.v<n>.zarr the versions before it, never changed
    COLLECTION/collection.json            every version, with hashes of its content and its inputs
    COLLECTION/reports/<run>.json         what became of every file and variable of one run
    COLLECTION/report.json report.html    the same of all runs
    COLLECTION/.harmonize/                ingests under way: locks, work that a killed one left

A run is what one manifest describes: model, version, simulation, stage, member. Every store says in
its own attributes which version it is and what its content hashes to; the index is made from them,
so that no moment at which a process is killed can leave the two in contradiction.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callmip_global.files import (
    canonical_json,
    fsync_folder,
    read_json,
    walk_files,
    write_json,
)
from callmip_global.store import exchange, is_store
from callmip_global.workflow.lock import held_alone

VERSION, CONTENT = "collection_version", "collection_content"
"""Attributes of a store: which version of its entry it is, and the hash of what it holds."""

_PUBLISHING_S = 600.0
_BLOCK_BYTES = 1024**2
# What does not belong to the content: where it came from, and the stamp itself.
_APART = ("provenance", VERSION, CONTENT)


@dataclass(frozen=True)
class Collection:
    """The folder of a collection."""

    path: Path

    @property
    def place(self) -> Path:
        """Where ingests work."""
        return self.path / ".harmonize"

    @property
    def versions(self) -> Path:
        """Where older versions are kept."""
        return self.path / "versions"

    @property
    def reports(self) -> Path:
        """Where the report of every run is."""
        return self.path / "reports"

    def publish(self, made: Path) -> Path:
        """Make the finished store ``made`` the newest version of its entry, by one rename.

        The version before it goes to ``versions``. Where that holds the same, nothing changes and
        ``made`` is removed. Killed at any moment and called again, or `settled`, the result is the
        same.
        """
        current = self.path / made.name
        with held_alone(self.place / "publishing.lock", "one at a time", wait_s=_PUBLISHING_S):
            version, content = _stamp(made)
            if version is None:
                content = content_hash(made)
                if current.exists() and _stamped(current)[1] == content:
                    # Half removed it must not be taken for a finished store.
                    shutil.rmtree(made.rename(made.with_suffix(".same")))
                    self._write_index()
                    return current
                _write_stamp(made, self._next(made.name), content)
            self._put(made, current)
            self._write_index()
        return current

    def settle(self, work: Path) -> None:
        """Bring to its end what was killed while it published from the folder ``work``."""
        with held_alone(self.place / "publishing.lock", "one at a time", wait_s=_PUBLISHING_S):
            for made in sorted(work.glob("*.zarr")):
                version, _ = _stamp(made)
                current = self.path / made.name
                begun = version is not None and (
                    _older(made, current) if current.exists() else version > 1
                )
                if begun:
                    self._put(made, current)
                    self._write_index()

    def index(self) -> dict[str, Any]:
        """What collection.json holds: name of the store -> its versions, the newest last."""
        entries: dict[str, list[dict[str, Any]]] = {}
        for folder in (self.versions, self.path):
            for store in sorted(folder.glob("*.zarr")):
                version, content = _stamp(store)
                if version is None:
                    continue
                name = store.name if folder == self.path else _entry_name(store, version)
                entry = {
                    "version": version,
                    "path": str(store.relative_to(self.path)),
                    "content": content,
                    "inputs": _inputs(store),
                }
                entries.setdefault(name, []).append(entry)
        return {
            name: sorted(found, key=lambda e: int(e["version"])) for name, found in entries.items()
        }

    def _write_index(self) -> None:
        write_json(self.path / "collection.json", self.index())

    def stores(self) -> dict[str, str]:
        """Name -> hash of the content of the newest versions that were published here."""
        stamps = {store.name: _stamp(store) for store in self.path.glob("*.zarr")}
        return {name: content for name, (version, content) in stamps.items() if version}

    def _put(self, made: Path, current: Path) -> None:
        """The stamped ``made`` in the place of ``current``, which goes to the versions."""
        if current.exists() and not _older(made, current):
            _write_stamp(current, *_stamped(current))
            if not exchange(made, current):
                # A reader may find nothing for an instant, but never a partial store.
                self._retire(current)
                made.rename(current)
                fsync_folder(self.path)
                return
            fsync_folder(self.path)
        if current.exists():
            self._retire(made)
        else:
            made.rename(current)
            fsync_folder(self.path)

    def _retire(self, store: Path) -> None:
        version, _ = _stamped(store)
        self.versions.mkdir(exist_ok=True)
        store.rename(self.versions / f"{store.stem}.v{version}.zarr")
        fsync_folder(self.versions)

    def _next(self, name: str) -> int:
        stem = name.removesuffix(".zarr")
        there = [_stamp(s)[0] or 1 for s in self.versions.glob(f"{stem}.v*.zarr")]
        current = self.path / name
        if current.exists():
            there.append(_stamped(current)[0])
        return 1 + max(there, default=0)


def content_hash(store: Path) -> str:
    """sha256 of all a store holds, of data and descriptions, without its provenance.

    The same values from files that lie elsewhere are the same content.
    """
    digest = hashlib.sha256()
    for name, _ in walk_files(store):
        digest.update(f"{name}\0".encode())
        if name.endswith("zarr.json"):
            digest.update(canonical_json(_described(read_json(store / name))).encode())
            continue
        with (store / name).open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _described(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _described(v) for k, v in value.items() if k not in _APART}
    return [_described(v) for v in value] if isinstance(value, list) else value


def _stamp(store: Path) -> tuple[int | None, str]:
    """(version, hash of the content) that a store carries; (None, "") for one without."""
    if not is_store(store):
        return None, ""
    attributes = read_json(store / "zarr.json").get("attributes", {})
    version = attributes.get(VERSION)
    return (None if version is None else int(version)), str(attributes.get(CONTENT, ""))


def _stamped(store: Path) -> tuple[int, str]:
    """As `_stamp`, of a store that is published: without a stamp it is the first version."""
    version, content = _stamp(store)
    return (1, content_hash(store)) if version is None else (version, content)


def _write_stamp(store: Path, version: int, content: str) -> None:
    described = read_json(store / "zarr.json")
    stamped = {**described.get("attributes", {}), VERSION: version, CONTENT: content}
    if stamped != described.get("attributes"):
        write_json(store / "zarr.json", {**described, "attributes": stamped})


def _older(made: Path, current: Path) -> bool:
    """Whether ``made`` is what was exchanged for ``current`` already."""
    version, _ = _stamp(made)
    return version is not None and version < _stamped(current)[0]


def _entry_name(store: Path, version: int) -> str:
    return f"{store.stem.removesuffix(f'.v{version}')}.zarr"


def _inputs(store: Path) -> dict[str, str]:
    """File -> hash, as the store's provenance has them."""
    said = read_json(store / "zarr.json").get("attributes", {}).get("provenance", "{}")
    found: dict[str, str] = json.loads(said).get("harmonize", {}).get("files", {})
    return found
