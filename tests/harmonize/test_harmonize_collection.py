"""A collection keeps every version of its stores, whatever is killed, and tells of all its runs."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_files import field, write_native
from submissions import native_instead_of_regridded

from callmip_global import files
from callmip_global.config.manifest import load_manifest
from callmip_global.errors import UsageError
from callmip_global.files import file_hash
from callmip_global.harmonize.submission import Entry, accounted, check_path
from callmip_global.store import open_store
from callmip_global.workflow import collection as collections
from callmip_global.workflow.collection import Collection, content_hash
from callmip_global.workflow.ingest import ingest, run_name
from callmip_global.workflow.lock import held_alone

CARBON = {"units": "gC m-2 day-1"}
STORE = "M.v1_S3_2deg_Prior.zarr"
RUN = "M.v1_S3_Prior"
MANIFEST = """\
model: {name: M, version: v1}
simulation: S3
stage: Prior
grids: [2deg]
variables:
  per: land
  variables:
    gpp: {source: GPP}
    ts: {source: T, units: K}
"""


@dataclass(frozen=True)
class Handed:
    """A submission, and the collection it goes to."""

    top: Path

    @property
    def folder(self) -> Path:
        return self.top / "submission"

    @property
    def out(self) -> Path:
        return self.top / "collection"

    def put(self, seed: int, name: str = "gpp.nc") -> None:
        write_native(self.folder / name, {"GPP": (field(0, 20, seed=seed), CARBON)})

    def ingest(self) -> tuple[list[Path], list[Entry]]:
        path = self.top / "manifest.yaml"
        path.write_text(MANIFEST)
        return ingest([self.folder], load_manifest(path), collection=self.out)

    def contents(self) -> dict[str, str]:
        """Hash of every file that a user sees."""
        files = (p for p in self.out.rglob("*") if p.is_file() and ".harmonize" not in p.parts)
        return {str(p.relative_to(self.out)): file_hash(p) for p in files}

    def gpp(self, store: str) -> Any:
        return open_store(self.out / store, "mon")["gpp"].values


@pytest.fixture(autouse=True)
def _no_regridding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is not the point here; killing and resuming `regrid_store` is tested there."""
    monkeypatch.setattr("callmip_global.workflow.ingest.regrid_store", native_instead_of_regridded)


@pytest.fixture
def handed(tmp_path: Path) -> Handed:
    handed = Handed(tmp_path)
    write_native(handed.folder / "t.nc", {"T": (field(270, 300), {"units": "K"})})
    handed.put(seed=1)
    return handed


# --- versions -------------------------------------------------------------------------------------


def test_a_changed_file_makes_a_new_version_and_the_old_one_is_kept(handed: Handed) -> None:
    handed.ingest()
    first = handed.gpp(STORE)
    digest = content_hash(handed.out / STORE)
    handed.put(seed=2)
    handed.ingest()
    old = "versions/M.v1_S3_2deg_Prior.v1.zarr"
    np.testing.assert_array_equal(handed.gpp(old), first)
    assert content_hash(handed.out / old) == digest
    assert not np.array_equal(handed.gpp(STORE), first, equal_nan=True)
    index = json.loads((handed.out / "collection.json").read_text())
    (entries,) = index.values()
    assert [(e["version"], e["path"]) for e in entries] == [(1, old), (2, STORE)]
    assert entries[0]["content"] == digest
    hashes = [{Path(n).name: h for n, h in e["inputs"].items()} for e in entries]
    assert hashes[0]["t.nc"] == hashes[1]["t.nc"]
    assert hashes[1]["gpp.nc"] == file_hash(handed.folder / "gpp.nc") != hashes[0]["gpp.nc"]


def test_nothing_is_done_again_where_nothing_has_changed(
    handed: Handed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, said = handed.ingest(), handed.contents()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for name in ("harmonize_files", "regrid_store"):
        monkeypatch.setattr(f"callmip_global.workflow.ingest.{name}", never)
    assert handed.ingest() == before
    assert handed.contents() == said


def test_the_same_content_is_no_new_version_however_it_was_copied(handed: Handed) -> None:
    handed.ingest()
    before = handed.contents()
    data = (handed.folder / "gpp.nc").read_bytes()
    (handed.folder / "gpp.nc").unlink()
    (handed.folder / "gpp.nc").write_bytes(data)
    handed.ingest()
    assert handed.contents() == before
    assert not (handed.out / "versions").exists()


def test_a_change_in_the_middle_of_a_file_of_the_same_size_is_seen(handed: Handed) -> None:
    handed.ingest()
    size = (handed.folder / "gpp.nc").stat().st_size
    values = field(0, 20, seed=1)
    values[10, 1, 1] *= 0.5
    write_native(handed.folder / "gpp.nc", {"GPP": (values, CARBON)})
    assert (handed.folder / "gpp.nc").stat().st_size == size
    handed.ingest()
    assert (handed.out / "versions" / "M.v1_S3_2deg_Prior.v1.zarr").is_dir()


def test_an_entry_of_before_there_were_versions_is_the_first(handed: Handed) -> None:
    handed.ingest()
    described = json.loads((handed.out / STORE / "zarr.json").read_text())
    for name in (collections.VERSION, collections.CONTENT):
        del described["attributes"][name]
    (handed.out / STORE / "zarr.json").write_text(json.dumps(described))
    handed.put(seed=2)
    handed.ingest()
    index = json.loads((handed.out / "collection.json").read_text())
    assert [e["version"] for e in index[STORE]] == [1, 2]


def test_readers_of_a_collection_never_find_an_old_version(handed: Handed) -> None:
    from callmip_global.cli.benchmark import _stores_in

    handed.ingest()
    handed.put(seed=2)
    handed.ingest()
    assert _stores_in(handed.out, handed.out / "benchmark") == [handed.out / STORE]
    assert {Path(e.path).parent for e in check_path(handed.out).entries} == {handed.out / STORE}


# --- killed ---------------------------------------------------------------------------------------


class KilledError(BaseException):
    """Like kill -9: nothing catches it."""


class Killer:
    """Counts the effects on the file system, and lets none happen after the ``last``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.last = 0, 1_000_000
        self.lock = threading.Lock()
        for owner, name in (
            (files, "write_atomic"),
            (collections, "exchange"),
            (Path, "rename"),
            (shutil, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                self.count += 1
                if self.count > self.last:
                    raise KilledError
            return function(*args, **kwargs)

        return run

    def run(self, function: Callable[[], Any], last: int = 1_000_000) -> int:
        """Call the function, killed after ``last`` effects; how many there were."""
        self.count, self.last = 0, last
        with contextlib.suppress(KilledError):
            function()
        self.last = 1_000_000
        return self.count


@pytest.mark.parametrize("swap", [True, False], ids=["exchange", "no exchange"])
def test_publishing_killed_at_any_moment_ends_the_same(
    handed: Handed, monkeypatch: pytest.MonkeyPatch, swap: bool
) -> None:
    """Killed after each of its effects: settled, and published again if it had not come so far."""
    handed.ingest()
    first, made, work = (handed.top / name for name in ("first", "made", "work"))
    shutil.copytree(handed.out, first)
    shutil.copytree(handed.out / STORE, made)
    described = json.loads((made / "zarr.json").read_text())
    kept = {k: v for k, v in described["attributes"].items() if not k.startswith("collection_")}
    described["attributes"] = {**kept, "comment": "another one"}
    (made / "zarr.json").write_text(json.dumps(described))
    if not swap:
        monkeypatch.setattr(collections, "exchange", lambda _a, _b: False)
    killer, home = Killer(monkeypatch), Collection(handed.out)

    def publish() -> None:
        home.settle(work)
        if not (work / STORE).exists():
            shutil.copytree(made, work / STORE)
        home.publish(work / STORE)

    def begin() -> None:
        for folder in (handed.out, work):
            if folder.exists():
                shutil.rmtree(folder)
        shutil.copytree(first, handed.out)
        work.mkdir()

    begin()
    total = killer.run(publish)
    wanted = handed.contents()
    index = json.loads((handed.out / "collection.json").read_text())
    assert [e["version"] for e in index[STORE]] == [1, 2]
    assert total >= 6
    for moment in range(total):
        begin()
        killer.run(publish, moment)
        # Whatever moment it was, a reader finds a whole store, unless there is no exchange.
        assert not swap or content_hash(handed.out / STORE) in {e["content"] for e in index[STORE]}
        publish()
        assert handed.contents() == wanted, moment


def test_killed_at_any_moment_and_run_again_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole ingest of a second version, killed at moments from its beginning to its end."""
    killer = Killer(monkeypatch)
    handed = Handed(tmp_path / "whole")
    handed.put(seed=1)
    handed.ingest()
    shutil.copytree(handed.out, tmp_path / "first")
    handed.put(seed=2)
    total = killer.run(handed.ingest)
    wanted, said = handed.contents(), handed.ingest()
    assert "versions/M.v1_S3_2deg_Prior.v1.zarr/zarr.json" in wanted
    for moment in [0, total // 3, 2 * total // 3, *range(total - 9, total, 2)]:
        shutil.rmtree(handed.out)
        shutil.copytree(tmp_path / "first", handed.out)
        killer.run(handed.ingest, moment)
        assert handed.ingest() == said, moment
        assert handed.contents() == wanted, moment


def test_what_was_begun_is_gone_on_with(handed: Handed, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("callmip_global.workflow.ingest.regrid_store", killed)
        with pytest.raises(KilledError):
            handed.ingest()
    monkeypatch.setattr("callmip_global.workflow.ingest.harmonize_files", killed)
    stores, entries = handed.ingest()
    assert [store.name for store in stores] == [STORE]
    assert {e.variable for e in entries} == {"gpp", "ts"}


def test_a_submission_that_changed_after_the_kill_is_begun_anew(
    handed: Handed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("callmip_global.workflow.ingest.regrid_store", killed)
        with pytest.raises(KilledError):
            handed.ingest()
    handed.put(seed=3)
    handed.ingest()
    got = handed.gpp(STORE)
    shutil.rmtree(handed.out)
    handed.ingest()
    np.testing.assert_array_equal(got, handed.gpp(STORE))


@pytest.mark.parametrize("swap", [True, False], ids=["exchange", "no exchange"])
def test_an_old_version_that_a_kill_left_aside_is_kept_though_the_submission_changed(
    handed: Handed, monkeypatch: pytest.MonkeyPatch, swap: bool
) -> None:
    def killed(*_: object) -> None:
        raise KilledError

    handed.ingest()
    first = content_hash(handed.out / STORE)
    handed.put(seed=2)
    with monkeypatch.context() as patch:
        if swap:
            patch.setattr(Collection, "_retire", killed)
        else:
            patch.setattr(collections, "exchange", lambda _a, _b: False)
            patch.setattr(collections, "fsync_folder", killed)
        with pytest.raises(KilledError):
            handed.ingest()
    handed.put(seed=3)
    handed.ingest()
    index = json.loads((handed.out / "collection.json").read_text())
    assert [e["version"] for e in index[STORE]] == [1, 2, 3]
    assert [e["content"] for e in index[STORE]] == [
        content_hash(handed.out / e["path"]) for e in index[STORE]
    ]
    assert index[STORE][0]["content"] == first


# --- several at once ------------------------------------------------------------------------------


def test_two_ingests_of_one_run_at_once_are_refused(handed: Handed) -> None:
    lock = Collection(handed.out).place / f"{RUN}.lock"
    with held_alone(lock, ""), pytest.raises(UsageError, match="one harmonize of a run at a time"):
        handed.ingest()
    assert handed.ingest()[0]


def test_the_reports_of_all_runs_of_a_collection_are_told_together(handed: Handed) -> None:
    path = handed.top / "two.yaml"
    runs = 'runs:\n- {simulation: S3, stage: Prior, files: ["[gt]*.nc"]}\n'
    runs += '- {simulation: CO2, stage: Prior, files: ["co2*.nc"]}\n'
    head = MANIFEST.replace("simulation: S3\nstage: Prior\n", runs)
    path.write_text(head)
    write_native(handed.folder / "co2.nc", {"GPP": (field(0, 20, seed=5), CARBON)})
    (handed.folder / "README").write_text("Read me.")
    stores, entries = ingest([handed.folder], load_manifest(path), collection=handed.out)
    assert [s.name for s in stores] == [STORE, STORE.replace("S3", "CO2")]
    keys = [(Path(e.path).name, e.variable) for e in entries]
    assert sorted(keys) == [
        ("M.v1_CO2_Prior", "ts"),
        ("README", ""),
        ("co2.nc", "gpp"),
        ("gpp.nc", "gpp"),
        ("t.nc", "ts"),
    ]
    rows = json.loads((handed.out / "report.json").read_text())
    said = {(row["run"], Path(row["path"]).name, row["variable"]) for row in rows}
    assert said == {
        ("M.v1_CO2_Prior", "", "ts"),
        ("M.v1_CO2_Prior", "co2.nc", "gpp"),
        (RUN, "README", ""),
        (RUN, "gpp.nc", "gpp"),
        (RUN, "t.nc", "ts"),
    }
    assert len(rows) == len(said)


def test_a_collection_inside_the_submission_is_refused_and_nothing_is_written(
    handed: Handed,
) -> None:
    path = handed.top / "manifest.yaml"
    path.write_text(MANIFEST)
    manifest = load_manifest(path)
    assert run_name(manifest) == RUN
    with pytest.raises(UsageError, match="a collection inside"):
        ingest([handed.folder], manifest, collection=handed.folder / "out")
    assert sorted(p.name for p in handed.folder.iterdir()) == ["gpp.nc", "t.nc"]


# --- everything is accounted for ------------------------------------------------------------------

NAMES = st.sampled_from(["a.nc", "b.nc", "c.tar::a.nc", "c.tar::b.nc", ""])
ENTRIES = st.builds(
    Entry,
    NAMES,
    st.sampled_from(["", "gpp", "ts"]),
    st.sampled_from(["accepted", "fixed", "refused"]),
    st.lists(st.sampled_from(["units", "fill"]), max_size=2, unique=True).map(tuple),
    st.sampled_from(["", "words"]),
)


@settings(max_examples=60)
@given(st.lists(ENTRIES), st.sets(st.sampled_from(["a.nc", "b.nc", "c.tar", "d.nc"])))
def test_every_file_is_accounted_for_and_nothing_twice_or_lost(
    entries: list[Entry], walked: set[str]
) -> None:
    found = accounted(entries, walked)
    keys = [(e.path, e.variable) for e in found]
    assert len(keys) == len(set(keys))
    assert found == sorted(found)
    assert walked <= {path for e in found for path in (e.path, e.path.split("::")[0])}
    told = {path for e in entries for path in (e.path, e.path.split("::")[0])}
    assert {e.rules for e in found if e.path in walked - told} <= {("not-used",)}
    order = ("accepted", "fixed", "refused")
    for entry in entries:
        (kept,) = [e for e in found if (e.path, e.variable) == (entry.path, entry.variable)]
        assert order.index(kept.outcome) >= order.index(entry.outcome)
        assert set(entry.rules) <= set(kept.rules)
    assert accounted(found, walked) == found
