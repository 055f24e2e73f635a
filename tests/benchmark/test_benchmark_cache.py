"""Results that are kept: never another number for it, nothing computed that need not be."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import GRID, benchmark, cycles, dataset, number, write_product, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.benchmark import Product, cache
from callmip_global.benchmark import run as running
from callmip_global.benchmark.cache import (
    FileDigests,
    Found,
    Kept,
    plain,
    take_over,
    unit_key,
)
from callmip_global.benchmark.regions import REGIONS
from callmip_global.benchmark.tables import Score
from callmip_global.errors import Problem
from callmip_global.grid import Grid
from callmip_global.parallel import in_threads, one_by_one
from callmip_global.regrid import regrid_dataset
from callmip_global.workflow import engines

YEARS = {"years": (2001, 2003)}


@dataclass
class Study:
    """Two runs, two products of the one variable and one of another, and what was computed."""

    runs: list[Path]
    products: list[Product]
    out: Path
    computed: list[str]

    def again(self, out: Path | None = None, **options: Any) -> list[str]:
        """Run the benchmark; which units were computed."""
        self.computed.clear()
        options = {"frequencies": ["mon"], "regions": ["global"], **options}
        benchmark(self.runs, self.products, out or self.out, **options)
        return sorted(self.computed)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    truth = cycles(3)
    runs = [
        write_run(tmp_path, truth + 2.0),
        write_run(tmp_path, truth + 1.0, stage="Posterior"),
        write_run(tmp_path, truth + 1.0, variable="hfss", model="N.v1"),
    ]
    products = [
        write_product(tmp_path, truth, name="A"),
        write_product(tmp_path, cycles(3, seed=1), name="B", variable="hfss"),
        write_product(tmp_path, truth[:, ::-1], name="C"),
    ]
    computed: list[str] = []
    real = running._found

    def counted(work: Any, unit: Any) -> Found:
        other = "" if unit.other is None else f"-{unit.other.name}"
        computed.append(f"{unit.product.name}{other} {unit.frequency}")
        return real(work, unit)

    monkeypatch.setattr(running, "_found", counted)
    return Study(runs, products, tmp_path / "out", computed)


def files_of(out: Path) -> dict[str, bytes]:
    """Everything a benchmark has written but what it keeps for itself."""
    kept = out / cache.FOLDER
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and kept not in path.parents
    }


def kept_in(out: Path) -> list[Path]:
    return [path for path in (out / "kept").glob("*.json") if path.name != "files.json"]


ALL = ["A mon", "A-C mon", "B mon", "C mon", "C-A mon"]
OF_A = ["A mon", "A-C mon", "C-A mon"]
OF_C = ["A-C mon", "C mon", "C-A mon"]
OF_HFLS = ["A mon", "C mon"]


def test_nothing_is_computed_twice_and_no_byte_differs(study, tmp_path):
    assert study.again() == ALL
    first = files_of(study.out)
    stamps = {path: path.stat().st_mtime_ns for path in study.out.glob("maps/*.nc")}
    assert len(stamps) == 3
    assert study.again() == []
    assert files_of(study.out) == first
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert study.again(tmp_path / "elsewhere", task_map=in_threads) == ALL
    assert files_of(tmp_path / "elsewhere") == first


def test_the_progress_says_how_many_are_kept(study):
    study.again()
    rewrite(Path(study.products[1].paths[0]), 1.0)
    said: list[tuple[str, float]] = []
    study.again(progress=lambda text, share: said.append((text, share)))
    assert [text for text, _ in said] == [
        "2 of 3 comparisons kept from before",
        "hfss: B, mon",
        "2 of 2 pairs of products kept from before",
        "writing",
    ]
    # Three comparisons of three runs and a product, two of two products: 12 and 4 series.
    assert [share for _, share in said] == pytest.approx([0.5, 0.75, 1.0, 1.0])


def rewrite(path: Path, off: float) -> None:
    with xr.open_dataset(path, decode_times=False) as ds:
        changed = ds.load()
    name = next(name for name in ("obs", "hfls", "hfss") if name in changed)
    changed[name] += off
    changed.to_netcdf(path)


def entry(study: Study, k: int, **changes: Any) -> None:
    study.products[k] = replace(study.products[k], **changes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: rewrite(Path(s.products[0].paths[0]), 1.0), OF_A),
        (lambda s: entry(s, 0, window=(2001, 2002)), OF_A),
        (lambda s: entry(s, 1, factor=2.0, units="W m-2"), ["B mon"]),
        (lambda s: entry(s, 2, version="2"), OF_C),
        (lambda s: rewrite(s.runs[2], 1.0), ["B mon"]),
        (lambda s: rewrite(s.runs[1], 1.0), OF_HFLS),
        (lambda s: s.runs.pop(1), OF_HFLS),
    ],
    ids=["product's file", "window", "factor", "version", "run", "other run", "one run less"],
)
def test_what_has_changed_is_computed_and_the_rest_is_kept(study, tmp_path, change, expected):
    study.again()
    change(study)
    assert study.again() == expected
    now = files_of(study.out)
    study.again(tmp_path / "elsewhere")
    assert files_of(tmp_path / "elsewhere") == now


@pytest.mark.parametrize(
    "options",
    [
        {"regions": ["nh"]},
        {"regions": ["global", "here=0,10,0,10"]},
        {"schemes": ["ilamb27"]},
        {"schemes": ["collier2018", "ilamb3"]},
    ],
    ids=str,
)
def test_other_regions_or_schemes_are_computed(study, options):
    study.again()
    assert study.again(**options) == ALL
    assert study.again(**options) == []


def test_a_box_of_the_same_name_with_other_edges_is_another_region(study):
    study.again(regions=["here=0,10,0,10"])
    assert study.again(regions=["here=0,10,0,20"]) == ALL


def test_another_version_or_code_computes_all(study, monkeypatch):
    study.again()
    monkeypatch.setattr(cache, "versions", lambda: {"numpy": "0"})
    assert study.again() == ALL
    monkeypatch.setattr(cache, "code_digest", lambda: "other")
    assert study.again() == ALL


def test_a_change_of_the_code_or_of_the_table_of_variables_shows(tmp_path, monkeypatch):
    package = tmp_path / "callmip_global"
    (package / "benchmark").mkdir(parents=True)
    table = tmp_path / "variables.yaml"
    source = package / "benchmark" / "cache.py"
    for path in (source, table):
        path.write_text("a")
    monkeypatch.setattr(cache, "__file__", str(source))
    monkeypatch.setattr(cache, "data_path", lambda *parts: table)
    digest = cache.code_digest.__wrapped__
    found = [digest()]
    source.write_text("b")
    found.append(digest())
    table.write_text("b")
    found.append(digest())
    assert len(set(found)) == 3


def test_a_new_run_without_the_variable_leaves_the_positions_of_the_others_right(study, tmp_path):
    """The new run is the first of the list, so that what is kept of A speaks of other positions."""
    study.again()
    study.runs.append(write_run(tmp_path, cycles(3), variable="hfss", model="A.v1"))
    assert study.again() == ["B mon"]
    summary = json.loads((study.out / "benchmark.json").read_text())
    of = {entry["product"]: entry["runs"] for entry in summary["comparisons"]}
    assert of == {"A": [1, 2], "B": [0, 3], "C": [1, 2]}


def test_products_moved_or_touched_are_the_same_products(study, tmp_path):
    study.again()
    other = tmp_path / "moved"
    other.mkdir()
    for k, product in enumerate(study.products):
        path = Path(product.paths[0]).rename(other / Path(product.paths[0]).name)
        os.utime(path)
        entry(study, k, paths=(str(path),))
    assert study.again() == []


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_digit(path: Path) -> None:
    """Still JSON, and of the right form."""
    head, _, text = path.read_text().partition("\n")
    value = json.loads(text)
    value["rows"]["value"][0] += 1.0
    path.write_text(f"{head}\n{json.dumps(value)}\n")


def test_what_is_kept_damaged_is_computed_again(study):
    study.again()
    first = files_of(study.out)
    kept = kept_in(study.out)
    assert len(kept) == 5
    damages = (cut_short, other_digit, Path.unlink, cut_short, Path.unlink)
    for damage, path in zip(damages, kept, strict=True):
        damage(path)
    assert study.again() == ALL
    assert files_of(study.out) == first
    for path, data in zip(kept, (b"", bytes(range(256)), b"[]", b"", b"\n"), strict=True):
        path.write_bytes(data)
    assert study.again() == ALL
    assert files_of(study.out) == first


def test_a_map_that_was_changed_or_removed_is_made_again(study):
    study.again()
    first = files_of(study.out)
    cut_short(study.out / "maps" / "hfls_A_M.v1_S3_mon.nc")
    (study.out / "maps" / "hfss_B_N.v1_S3_mon.nc").unlink()
    assert study.again() == ["A mon", "B mon"]
    assert files_of(study.out) == first


def test_a_kept_file_of_another_form_is_computed_again(study, monkeypatch):
    study.again()
    keys = [path.stem for path in kept_in(study.out)]
    assert all(Kept(study.out).load(keys))
    monkeypatch.setattr(cache, "FORM", 0)
    assert Kept(study.out).load(keys) == [None] * 5


def test_a_benchmark_that_was_killed_goes_on_where_it_was(study, tmp_path):
    class KilledError(Exception):
        pass

    def stop(text: str, share: float) -> None:
        if text.startswith("hfss"):
            raise KilledError

    with pytest.raises(KilledError):
        study.again(progress=stop)
    assert not (study.out / "scores.csv").exists()
    assert study.again() == OF_C
    now = files_of(study.out)
    study.again(tmp_path / "elsewhere")
    assert files_of(tmp_path / "elsewhere") == now


def test_what_belongs_to_nothing_any_more_is_removed(study):
    study.again(frequencies=["mon", "yr"])
    half = [f"maps/.half.nc.{'0' * 32}.tmp", f"kept/.{'0' * 32}.tmp"]
    for name in half:
        (study.out / name).touch()
    study.products.pop(0)
    assert study.again() == []
    maps = sorted(path.name for path in (study.out / "maps").iterdir())
    assert maps == ["hfls_C_M.v1_S3_mon.nc", "hfss_B_N.v1_S3_mon.nc"]
    assert len(kept_in(study.out)) == 2
    assert not any((study.out / name).exists() for name in half)


def test_files_of_the_users_own_in_the_folders_of_a_benchmark_stay(study):
    study.again()
    own = [study.out / name for name in ("maps/land.nc", "maps/notes.txt", "kept/settings.json")]
    dataset("sftlf", np.ones(GRID.shape), GRID, None, "1").to_netcdf(own[0])
    own[1].touch()
    own[2].touch()
    study.products.pop(0)
    study.again()
    assert all(path.exists() for path in own)


def test_a_fault_that_was_told_is_told_again(study):
    rewrite(study.runs[2], 4000.0)
    entry(study, 0, paths=("/no/such/file.nc",))
    study.again()
    first = json.loads((study.out / "problems.json").read_text())
    assert len(first) == 2
    assert study.again() == ["A mon"]
    assert json.loads((study.out / "problems.json").read_text()) == first


def test_nothing_is_kept_of_a_strangers_regridder(study):
    def stranger(ds: xr.Dataset, grid: Grid) -> xr.Dataset:
        return regrid_dataset(ds, grid)

    for _ in range(2):
        study.computed.clear()
        running.run_benchmark(
            study.runs, products=study.products, out=study.out, regridder=stranger
        )
        assert len(set(study.computed)) == len(study.computed) == 10
    assert number(study.out, "bias", stage="Prior", product="A") == pytest.approx(2.0)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_large_run_changed_in_its_middle_is_another_run(study, monkeypatch, large):
    """The digest of a large file is of its ends: the time of its change counts too."""
    if large:
        monkeypatch.setattr("callmip_global.files._WHOLE_FILE_BYTES", 0)
        monkeypatch.setattr("callmip_global.files._END_BYTES", 100)
    study.again()
    rewrite(study.runs[1], 1.0)
    assert study.again() == OF_HFLS
    os.utime(study.runs[2])
    assert study.again() == (["B mon"] if large else [])


def test_another_folder_takes_over_what_is_kept_and_leaves_it_as_it_is(study, tmp_path):
    study.again()
    first = files_of(study.out)
    other = tmp_path / "other"
    take_over(study.out, other)
    take_over(tmp_path / "none", other)
    rewrite(Path(study.products[1].paths[0]), 1.0)
    assert study.again(other) == ["B mon"]
    assert files_of(study.out) == first
    assert files_of(other) != first
    rewrite(Path(study.products[1].paths[0]), 2.0)
    take_over(study.out, other)
    study.again(other)
    assert files_of(study.out) == first


def test_a_task_goes_on_where_a_killed_attempt_was_and_a_later_one_where_that_was(study, tmp_path):
    """As the workflow runs it: each attempt in a folder of its own, renamed when it is done."""
    products = tmp_path / "products.yaml"
    entries = {
        p.name: {"variable": p.variable, "path": p.paths[0], "kind": p.kind, "source": p.source}
        for p in study.products
    }
    products.write_text(json.dumps({"products": entries}))
    run = SimpleNamespace(path=tmp_path / "RUN", stores=Path("/"))
    plan = SimpleNamespace(settings={"products": str(products), "frequencies": ["mon"]})
    upstream = {"regrid": {"stores": [str(path) for path in study.runs]}}
    task = SimpleNamespace(upstream=["regrid"])

    def attempt(number: int, task_map: Any) -> list[str]:
        study.computed.clear()
        folder = run.path / "steps" / f"attempt-{number:02d}"
        folder.mkdir(parents=True)
        with contextlib.suppress(InterruptedError):
            engines._benchmark(run, plan, task, folder, upstream, task_map=task_map)
        return sorted(study.computed)

    def killed(function: Any, shared: Any, items: Any) -> Any:
        yield 0, function(shared, items[0])
        raise InterruptedError

    assert attempt(1, killed) == ["A mon"]
    assert attempt(2, one_by_one) == [unit for unit in ALL if unit != "A mon"]
    rewrite(study.runs[2], 1.0)
    assert attempt(3, one_by_one) == ["B mon"]
    now = files_of(run.path / "benchmark")
    study.again(tmp_path / "elsewhere", regions=tuple(REGIONS))
    expected = files_of(tmp_path / "elsewhere")
    assert now.keys() == expected.keys()
    assert now["scores.csv"] == expected["scores.csv"]


# --- digests of files -------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files count as written long ago."""
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(cache, "_RACY_NS", -(10**15))
    return tmp_path


def file_digests(paths: Sequence[Path], out: Path) -> dict[Path, str]:
    with FileDigests(paths, out) as digests:
        found = {path: digests[path] for path in paths}
        digests.remember()
    return found


def test_a_file_is_read_once_until_it_changes(out, monkeypatch):
    read = []
    real = cache.content_hash
    monkeypatch.setattr(cache, "content_hash", lambda path: read.append(path) or real(path))
    a, b = out / "a", out / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    first = file_digests([a, b, a], out)
    assert first == {a: real(a), b: real(b)}
    assert sorted(read) == [a, b]
    assert file_digests([a, b], out) == first
    assert len(read) == 2
    status = b.stat()
    b.write_bytes(b"too")
    os.utime(b, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digests([a, b], out)[b] == real(b) != first[b]
    assert len(read) == 3


def test_a_file_just_written_is_read_again(out, monkeypatch):
    monkeypatch.setattr(cache, "_RACY_NS", 10**15)
    path = out / "a"
    path.write_bytes(b"one")
    file_digests([path], out)
    assert not (out / "kept" / "files.json").exists()


def test_a_damaged_list_of_digests_is_made_anew(out):
    path, index = out / "a", out / "kept" / "files.json"
    path.write_bytes(b"one")
    expected = file_digests([path], out)
    for text in ("", "[1]", json.dumps({str(path): 3}), json.dumps({str(path): [1, 2]}), "\x00"):
        index.write_text(text)
        assert file_digests([path], out) == expected


def test_a_file_that_cannot_be_read_has_no_digest_and_no_key(out):
    missing = out / "none"
    assert file_digests([missing], out) == {missing: cache.UNREADABLE}
    product = Product(name="P", variable="gpp", paths=("x",), kind="synthetic")
    assert cache.product_parts(product, [(missing, cache.UNREADABLE)]) is None
    assert cache.product_parts(product, []) is not None


# --- what keys and kept files are made of -----------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=8)
rows = st.builds(
    Score,
    *[words] * 10,
    st.floats(allow_infinity=False),
    words,
    st.integers(0, 10**9),
    st.integers(0, 10**4),
    st.floats(allow_infinity=False),
    st.floats(allow_infinity=False),
)
problems = st.builds(Problem, *[words] * 6)
founds = st.builds(
    Found,
    st.lists(rows, max_size=3),
    st.builds(lambda number: [{"maps": [], "x": number}], finite),
    st.lists(problems, max_size=2),
    st.lists(problems, max_size=2),
    st.lists(words, max_size=2),
    st.lists(st.tuples(st.integers(1, 9999), st.integers(1, 12)), max_size=3),
)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


@settings(max_examples=15, deadline=None)
@given(founds)
def test_what_is_kept_comes_back_to_the_last_digit(tmp_path_factory, found):
    kept = Kept(tmp_path_factory.mktemp("out"))
    kept.folder.mkdir()
    kept.save("k", found)
    (back,) = kept.load(["k"])
    assert same(back, found)


def test_every_part_of_a_result_is_kept(tmp_path):
    """A part that is added to ``Found`` has to be kept too."""
    kept = Kept(tmp_path)
    kept.folder.mkdir()
    problem = Problem("w", "k", "f", "w", "r", "rule")
    row = Score(*"abcdefghij", 0.1, "1", 2, 3, math.nan, math.inf)
    found = Found([row], [{"maps": []}], [problem], [problem], ["note"], [(2001, 1)])
    assert all(vars(found).values())
    kept.save("k", found)
    (back,) = kept.load(["k"])
    assert vars(back).keys() == vars(found).keys()
    assert all(vars(back).values())
    assert same(back, replace(found, rows=[replace(row, high=math.nan)]))


def test_a_result_without_a_comparison_or_with_a_file_unread_is_not_kept(tmp_path):
    kept = Kept(tmp_path)
    kept.folder.mkdir()
    kept.save("k", Found(notes=["no run has it"]))
    kept.save("", Found(entries=[{"maps": []}]))
    for unread in (
        Problem("M.v1", "hfls", "data that cannot be read (Input/output error)"),
        Problem("M.v1", "hfls", "chunk 0, 0, 0", rule="damaged"),
    ):
        kept.save("k", Found(entries=[{"maps": []}], problems=[unread]))
    assert list(kept.folder.iterdir()) == []
    assert kept.load(["k", ""]) == [None, None]


@given(*[st.recursive(finite | words | st.integers() | st.none(), st.lists, max_leaves=5)] * 2)
def test_keys_are_the_same_for_the_same_and_others_for_others(one, other):
    assert unit_key(regrid_dataset, one) == unit_key(regrid_dataset, one) != ""
    alike = same(one, other) or (plain(one) == plain(other) and same(plain(one), plain(other)))
    assert (unit_key(regrid_dataset, one) == unit_key(regrid_dataset, other)) is alike


def test_arrays_and_files_enter_a_key_by_their_content(tmp_path):
    a = np.arange(6.0)
    for other in (a + 1e-12, a.astype(np.float32), a.reshape(2, 3)):
        assert plain(other) != plain(a)
    assert plain(a.copy()) == plain(a)
    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_text("x")
    copy.write_text("x")
    assert plain(path) == plain(copy)
    copy.write_text("y")
    assert plain(path) != plain(copy)


def test_what_has_no_plain_form_is_refused():
    with pytest.raises(TypeError, match="a object has no plain form"):
        plain([object()])
