"""Submissions: every file and variable is accounted for; what is broken never stops the rest."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import xarray as xr
from native_files import field, write_native
from typer.testing import CliRunner

from callmip_global.cli.app import main
from callmip_global.cli.harmonize import check, harmonize
from callmip_global.config.manifest import load_manifest
from callmip_global.errors import EXIT_INTERRUPTED, DataError, Problem, UsageError
from callmip_global.harmonize.submission import Entry, check_path
from callmip_global.store import global_total, open_store, store_info
from callmip_global.workflow.ingest import check_manifest, ingest

CARBON = {"units": "gC m-2 day-1"}
MANIFEST = """\
model: {name: M, version: v1, institution: Here}
simulation: S3
stage: Posterior
scenario: 1
member: 4
files: "out/*.nc"
grids: [2deg]
variables:
  per: land
  variables:
    gpp: {source: GPP}
    ra: {source: Ra}
    rh: {source: Rh}
    reco: {derive: "ra + rh"}
    ts: {source: T, units: K}
    lai: {source: LAI}
    hfg: {absent: "the model has none"}
"""


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A submission with good, broken, superfluous and implausible parts, and what became of it."""
    top = tmp_path_factory.mktemp("ingest")
    folder = top / "sub" / "out"
    write_native(folder / "gpp.nc", {"GPP": (field(0, 20), CARBON), "extra": (field(0, 1), {})})
    write_native(folder / "ra_2001.nc", {"Ra": (field(1, 5)[:12], CARBON)}, years=(2001, 2001))
    write_native(folder / "ra_2002.nc", {"Ra": (field(1, 5)[12:], CARBON)}, years=(2002, 2002))
    write_native(folder / "rh.nc", {"Rh": (field(1, 5) * 1e3, CARBON)})
    write_native(folder / "ts.nc", {"T": (field(270, 300), {"units": "K"})})
    broken = folder / "broken.nc"
    broken.write_bytes((folder / "gpp.nc").read_bytes()[:2000])
    (top / "sub" / "README.txt").write_text("Spin-up was short.")
    (top / "manifest.yaml").write_text(MANIFEST)
    manifest = load_manifest(top / "manifest.yaml")
    stores, entries = ingest([top / "sub"], manifest, collection=top / "collection")
    return {"top": top, "manifest": manifest, "stores": stores, "entries": entries}


def test_the_good_variables_are_in_the_store_and_the_refused_are_not(
    ingested: dict[str, Any],
) -> None:
    (store,) = ingested["stores"]
    assert store.name == "M.v1_S3_2deg_Posterior_m004.zarr"
    assert set(open_store(store, "mon").data_vars) >= {"gpp", "ra", "ts"}
    assert not {"rh", "reco", "lai", "hfg"} & set(open_store(store, "mon").data_vars)
    info = store_info(store)
    assert info.scenario == 1
    assert info.frequencies == ("mon", "yr")


def test_every_file_and_every_variable_is_accounted_for_once(ingested: dict[str, Any]) -> None:
    entries = ingested["entries"]
    keys = Counter((e.path, e.variable) for e in entries)
    assert set(keys.values()) == {1}
    files = {p for p in (ingested["top"] / "sub").rglob("*") if p.is_file()}
    assert {Path(e.path) for e in entries if e.path} == files
    outcome = {(Path(e.path).name, e.variable): (e.outcome, e.rules) for e in entries}
    assert outcome[("README.txt", "")] == ("accepted", ("not-data",))
    assert outcome[("broken.nc", "")] == ("refused", ("truncated",))
    assert outcome[("gpp.nc", "extra")] == ("accepted", ("not-mapped",))
    turned = ("latitude-order", "longitude-order")
    assert outcome[("gpp.nc", "gpp")] == ("fixed", (*turned, "units"))
    assert outcome[("ts.nc", "ts")] == ("fixed", turned)
    assert outcome[("ra_2001.nc", "ra")] == outcome[("ra_2002.nc", "ra")]
    assert outcome[("rh.nc", "rh")][0] == "refused"
    assert outcome[("", "reco")][0] == "refused"
    assert outcome[("", "lai")][0] == "refused"
    assert outcome[("", "hfg")] == ("accepted", ("absent",))
    messages = {e.variable: e.message for e in entries if e.outcome == "refused"}
    assert "1000: g for kg?" in messages["rh"]
    assert "no rh, which it is derived from" in messages["reco"]


def test_a_second_run_gives_the_same_report_byte_for_byte(
    ingested: dict[str, Any], tmp_path: Path
) -> None:
    runner, app = CliRunner(), typer.Typer()
    app.command()(harmonize)
    top = ingested["top"]
    texts = []
    for name in ("one", "two"):
        report = tmp_path / f"{name}.json"
        options = ["--manifest", str(top / "manifest.yaml"), "--out", str(tmp_path / "c")]
        result = runner.invoke(app, [str(top / "sub"), *options, "--report", str(report)])
        assert result.exit_code == 1
        assert "refused: " in result.output
        texts.append(report.read_bytes())
    assert texts[0] == texts[1]
    rows = json.loads(texts[0])
    assert {frozenset(r) for r in rows} == {
        frozenset({"path", "variable", "outcome", "rules", "message"})
    }


def test_the_total_on_the_standard_grid_is_the_native_one(ingested: dict[str, Any]) -> None:
    gpp = np.nan_to_num(field(0, 20)) * 1e-3 / 86400
    edges = np.deg2rad([90, 45, 0, -45, -90])
    rows = -(6.371e6**2) * np.diff(np.sin(edges)) * np.deg2rad(60)
    by_hand = (gpp * rows[None, :, None]).sum(axis=(1, 2))
    (store,) = ingested["stores"]
    got = global_total(open_store(store, "mon"), "gpp")
    np.testing.assert_allclose(got, by_hand, rtol=1e-6)


def test_without_years_the_common_whole_years_are_taken(tmp_path: Path) -> None:
    write_native(tmp_path / "s" / "out" / "g.nc", {"GPP": (field(0, 20), CARBON)})
    longer = field(1, 5, years=(2000, 2002))
    write_native(
        tmp_path / "s" / "out" / "r.nc", {"Ra": (longer[5:], CARBON)}, years=(2000, 2002), skip=5
    )
    (tmp_path / "m.yaml").write_text(MANIFEST)
    stores, _ = ingest(
        [tmp_path / "s"], load_manifest(tmp_path / "m.yaml"), collection=tmp_path / "c"
    )
    years = {t.year for t in open_store(stores[0], "mon")["time"].values}
    assert years == {2001, 2002}


def test_a_grid_that_fails_is_refused_and_the_report_still_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError(Problem("store", "gpp", "a drift of 1e-3", "less than 1e-6"))

    monkeypatch.setattr("callmip_global.workflow.ingest.regrid_store", fail)
    write_native(tmp_path / "s" / "out" / "g.nc", {"GPP": (field(0, 20), CARBON)})
    (tmp_path / "m.yaml").write_text(MANIFEST)
    stores, entries = ingest(
        [tmp_path / "s"], load_manifest(tmp_path / "m.yaml"), collection=tmp_path / "c"
    )
    assert stores == []
    (entry,) = [e for e in entries if e.variable == "all on 2deg"]
    assert (entry.outcome, entry.rules) == ("refused", ("regridding",))
    assert "drift" in entry.message
    assert not list((tmp_path / "c").glob("*.zarr"))
    assert json.loads((tmp_path / "c" / "report.json").read_text())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("stage: Posterior", "stage: Posteriori", "m.yaml:3: stage: found 'Posteriori'"),
        ("grids: [2deg]", "grids: [3deg]", "m.yaml:7: grids.0: found '3deg'"),
        ("simulation:", "simulatoin:", "Did you mean 'simulation'?"),
        ("source: GPP}", "source: GPP, units: furlong}", "m.yaml:11: gpp.units: found units"),
        ("member: 4", "years: [2002]", "two years, [first, last]"),
    ],
)
def test_a_wrong_manifest_says_where(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_manifest(path)
    assert words in str(caught.value)


def test_check_finds_in_a_file_what_harmonizing_would(tmp_path: Path) -> None:
    good = write_native(tmp_path / "a.nc", {"gpp": (field(0, 2e-7), {"units": "kg m-2 s-1"})})
    bad = write_native(tmp_path / "b.nc", {"ts": (field(-20, 30), {"units": "K"})})
    text = write_native(tmp_path / "c.nc", {"gpp": (field(0, 20), {"units": "apples"})})
    outcome = {path: check_path(path).entries[0] for path in (good, bad, text)}
    assert outcome[good].outcome == "fixed"
    assert "degrees Celsius" in outcome[bad].message
    assert "apples" in outcome[text].message


def test_check_reads_stores_and_folders_of_stores(ingested: dict[str, Any]) -> None:
    entries = check_path(ingested["top"] / "collection").entries
    assert {e.outcome for e in entries} == {"accepted"}
    assert {(Path(e.path).name, e.variable) for e in entries} == {
        (group, name) for group in ("mon", "yr") for name in ("gpp", "ra", "ts")
    }


def test_check_looks_at_the_models_of_a_folder_one_by_one(tmp_path: Path) -> None:
    carbon = {"units": "kg m-2 s-1"}
    for model in ("A", "B"):
        parts = {n: (field(0, 1e-7, seed=i), carbon) for i, n in enumerate(("ra", "rh"))}
        write_native(tmp_path / model / "S3" / f"{model}_S3_parts.nc", parts)
    (tmp_path / "README").write_text("Two models.")
    said = {(e.path, e.variable): e.outcome for e in check_path(tmp_path).entries}
    assert said[str(tmp_path / "README"), ""] == "accepted"
    for model in ("A", "B"):
        assert said[str(tmp_path / model), "reco"] == "fixed", "derived from each model's own"
        assert said[str(tmp_path / model / "S3" / f"{model}_S3_parts.nc"), "ra"] == "fixed"
    # A folder of revised files is no other model: then both copies are refused, as ever.
    (tmp_path / "B").rename(tmp_path / "revised")
    rules = {rule for e in check_path(tmp_path).entries for rule in e.rules}
    assert "duplicate" in rules


def test_check_exits_with_1_when_something_would_be_refused(tmp_path: Path) -> None:
    runner, app = CliRunner(), typer.Typer()
    app.command()(check)
    path = write_native(tmp_path / "a.nc", {"gpp": (field(0, 2e-7), {"units": "kg m-2 s-1"})})
    report = tmp_path / "r.json"
    result = runner.invoke(app, [str(path), "--report", str(report)])
    assert result.exit_code == 0, result.output
    assert json.loads(report.read_text())[0]["variable"] == "gpp"
    path = write_native(tmp_path / "b.nc", {"gpp": (field(0, 2e-3), {"units": "kg m-2 s-1"})})
    assert runner.invoke(app, [str(path)]).exit_code == 1


def test_check_tells_how_far_it_is_in_a_log_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callmip_global.cli.harmonize._LOGGED_S", 0.0)
    path = write_native(tmp_path / "a.nc", {"gpp": (field(0, 2e-7), {"units": "kg m-2 s-1"})})
    app = typer.Typer()
    app.command()(check)
    said = CliRunner().invoke(app, [str(path)]).output
    assert "  0% checked a.nc" in said
    assert "% checking the values of gpp" in said


def test_a_report_that_cannot_be_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("work begun")

    monkeypatch.setattr("callmip_global.harmonize.submission.check_path", never)
    app = typer.Typer()
    app.command()(check)
    for name in ("r.html", "."):
        result = CliRunner().invoke(app, [str(tmp_path), "--report", str(tmp_path / name)])
        assert isinstance(result.exception, UsageError)
        assert "a file ending in .json" in str(result.exception)


@pytest.mark.parametrize("command", ["check", "harmonize"])
def test_ctrl_c_ends_with_130_and_one_word(
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("callmip_global.harmonize.submission.check_path", interrupt)
    monkeypatch.setattr("callmip_global.workflow.ingest.ingest", interrupt)
    (tmp_path / "m.yaml").write_text(MANIFEST)
    more = ["--manifest", str(tmp_path / "m.yaml"), "--out", str(tmp_path / "c")]
    arguments = [str(tmp_path), *(more if command == "harmonize" else [])]
    monkeypatch.setattr("sys.argv", ["callmip-global", command, *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_check_takes_packed_files_and_zarr_stores_and_drafts_a_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    carbon = {"units": "kg m-2 s-1"}
    plain = write_native(folder / "gpp.nc", {"gpp": (field(0, 2e-7), carbon)})
    (folder / "gpp.nc.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    source = write_native(tmp_path / "ts.nc", {"ts": (field(270, 300), {"units": "K"})})
    with xr.open_dataset(source, decode_cf=False) as ds:
        ds.drop_encoding().to_zarr(folder / "ts.zarr", zarr_format=2)
    (folder / "notes.txt").write_text("no data")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    runner, app = CliRunner(), typer.Typer()
    app.command()(check)
    report, draft = tmp_path / "r.json", tmp_path / "m.yaml"
    options = ["--report", str(report), "--draft", str(draft)]
    result = runner.invoke(app, [str(folder), *options])
    assert result.exit_code == 0, result.output
    rows = {(Path(r["path"]).name, r["variable"]): r for r in json.loads(report.read_text())}
    assert set(rows) == {("gpp.nc.gz", "gpp"), ("ts.zarr", "ts"), ("notes.txt", "")}
    assert "unpacked" in rows["gpp.nc.gz", "gpp"]["rules"]
    assert rows["ts.zarr", "ts"]["outcome"] == "fixed"
    assert report.with_suffix(".html").is_file()
    assert "gpp: {source: gpp}" in draft.read_text()
    with pytest.raises(UsageError, match="SET_"):
        load_manifest(draft)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_check_with_a_manifest_says_what_harmonize_would(ingested: dict[str, Any]) -> None:
    def said(entries: list[Entry]) -> set[tuple[str, str, str]]:
        return {(Path(e.path).name, e.variable, e.outcome) for e in entries}

    found = check_manifest([ingested["top"] / "sub"], ingested["manifest"])
    assert said(found) == said(ingested["entries"])
