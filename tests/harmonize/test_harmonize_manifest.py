"""Manifests: declarations, several runs in one, and the draft that files suggest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from submissions import World, land_fraction_file, trendy

from callmip_global.config.manifest import Manifest, load_manifest
from callmip_global.errors import UsageError
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.draft import _comment, _text, draft_manifest
from callmip_global.harmonize.native import NativeFile, scan
from callmip_global.harmonize.submission import Entry

WORLD = World(step_deg=30.0)
BASE: dict[str, Any] = {
    "model": {"name": "M", "version": "v1"},
    "simulation": "S3",
    "stage": "Prior",
    "grids": ["2deg"],
    "variables": {
        "per": "land",
        "variables": {"gpp": {"source": "GPP"}, "nep": {"source": "NEP", "sign": -1}},
    },
}


def load(folder: Path, *, without: tuple[str, ...] = (), **changes: Any) -> Manifest:
    content = {k: v for k, v in {**BASE, **changes}.items() if k not in without}
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_manifest(path)


def problems(folder: Path, **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, **changes)
    return str(caught.value)


# --- declarations ---------------------------------------------------------------------------------


def test_nothing_declared_is_nothing_assumed(tmp_path: Path) -> None:
    assert load(tmp_path).declared == Declared()


def test_everything_that_can_be_declared_arrives(tmp_path: Path) -> None:
    declared = load(
        tmp_path,
        prefixes=["E3SM"],
        use={"gpp": "**/GPP_v2.nc"},
        calendar="noleap",
        start="2001-03",
        wood="above-ground",
        annual_state="end",
        totals={"gpp": {2001: 118, 2002: 119.5}},
    ).declared
    assert declared == Declared(
        prefixes=("E3SM",),
        use={"gpp": "**/GPP_v2.nc"},
        calendar="noleap",
        start=(2001, 3),
        wood="above-ground",
        annual_state="end",
        totals={"gpp": {2001: 118.0, 2002: 119.5}},
    )
    assert load(tmp_path, prefixes="E3SM").declared.prefixes == ("E3SM",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start": "2001"}, "start: found '2001', wanted a month in quotes, \"YYYY-MM\""),
        ({"start": "2001-13"}, "start: found"),
        ({"wood": "stems"}, "wood: found 'stems', wanted one of: 'above-ground' or 'total'"),
        ({"annual_state": "last"}, "annual_state: found 'last', wanted one of: 'mean' or 'end'"),
        ({"calendar": "lunar"}, "calendar: found 'lunar'"),
        ({"use": {"gqp": "x.nc"}}, "use.gqp: found a variable that the map does not have"),
        ({"use": {"Gpp": "x.nc"}}, "Did you mean"),
        ({"totals": {"lai": {2001: 1}}}, "totals.lai: found a variable that is not delivered"),
        ({"totals": {"gpp": 118}}, "totals.gpp: wanted {2001: 118.2"),
        ({"totals": {"gpp": {"first": 1}}}, "totals.gpp: wanted {2001: 118.2"),
        ({"totals": {"gpp": {2001: float("nan")}}}, "totals.gpp: wanted {2001: 118.2"),
        ({"totals": {"gpp": "no.txt"}}, "no.txt, which cannot be read"),
        ({"prefix": "E3SM"}, "Did you mean 'prefixes'?"),
        ({"stage": "SET_STAGE"}, "stage: found SET_STAGE, wanted a value of yours"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    text = problems(tmp_path, **change)
    assert words in text
    assert text.startswith(f"{tmp_path}/m.yaml:")


def test_a_calendar_stated_twice_must_be_one(tmp_path: Path) -> None:
    variables = {**BASE["variables"], "calendar": "noleap"}
    assert load(tmp_path, variables=variables).declared.calendar == "noleap"
    assert "as in the map" in problems(tmp_path, variables=variables, calendar="360_day")


@pytest.mark.parametrize(
    ("text", "totals"),
    [
        ("2001 3.1\n2002 -0.5\n", {2001: 3.1, 2002: -0.5}),
        ("# nbp [PgC/yr]\nYear Global North Tropics South\n2001 3.1 1 1 1.1\n", {2001: 3.1}),
        ("year,north,global\r\n2001.0,1,3.1\r\n", {2001: 3.1}),
        ("year;gpp;nep\n2001;120;3.1\n", {2001: 3.1}),
    ],
)
def test_totals_come_from_a_text_file_as_groups_write_them(
    tmp_path: Path, text: str, totals: dict[int, float]
) -> None:
    (tmp_path / "zonal.txt").write_text(text)
    assert load(tmp_path, totals={"nep": "zonal.txt"}).declared.totals == {"nep": totals}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no year"),
        ("2001 1\n2001 2\n", "z.txt:2: totals.nep: found the year 2001 twice"),
        ("2001 1\n2002\n", "z.txt:2: totals.nep: found '2002', wanted a year and its total"),
        ("2001 1\n2002 x\n", "z.txt:2: totals.nep: found '2002 x'"),
        ("2001 1\n2002 1 2\n", "lines of different lengths"),
    ],
)
def test_a_table_that_is_none_is_told_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "z.txt").write_text(text)
    assert words in problems(tmp_path, totals={"nep": "z.txt"})


def test_one_table_can_hold_all_variables(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("year,gpp,nep\n2001,120,3\n2002,121,4\n")
    declared = load(tmp_path, totals="t.csv").declared
    assert declared.totals == {"gpp": {2001: 120, 2002: 121}, "nep": {2001: 3, 2002: 4}}
    (tmp_path / "t.csv").write_text("year,gpp,lai\n2001,120,3\n")
    assert "totals.lai" in problems(tmp_path, totals="t.csv")


# --- several runs ---------------------------------------------------------------------------------

RUNS = [
    {"simulation": "S3", "stage": "Prior", "files": "a/*.nc"},
    {"simulation": "S3", "stage": "Posterior", "files": ["b/*.nc"], "totals": {"gpp": {2001: 1}}},
    {"simulation": "CO2", "stage": "Prior", "member": 2, "files": "c/*.nc", "years": [2001, 2002]},
]


def test_runs_share_the_rest(tmp_path: Path) -> None:
    manifest = load(tmp_path, without=("simulation", "stage"), runs=RUNS, prefixes="E3SM")
    files = [run.file for run in manifest.runs]
    assert [(f.simulation, f.stage, f.member) for f in files] == [
        ("S3", "Prior", None),
        ("S3", "Posterior", None),
        ("CO2", "Prior", 2),
    ]
    assert [f.files for f in files] == [("a/*.nc",), ("b/*.nc",), ("c/*.nc",)]
    assert [f.years for f in files] == [None, None, (2001, 2002)]
    assert {run.declared.prefixes for run in manifest.runs} == {("E3SM",)}
    assert [bool(run.declared.totals) for run in manifest.runs] == [False, True, False]
    assert all(run.runs == (run,) for run in manifest.runs)


def test_a_manifest_of_one_run_is_that_run(tmp_path: Path) -> None:
    manifest = load(tmp_path)
    assert manifest.runs == (manifest,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runs": []}, "runs: wanted a list of {simulation"),
        ({"runs": RUNS, "stage": "Prior"}, "stage: found stage beside runs"),
        ({"runs": [RUNS[0], {**RUNS[1], "grids": ["1deg"]}]}, "runs.1.grids: found a key"),
        ({"runs": [RUNS[0], {"simulation": "S3", "stage": "Posterior"}]}, "runs.1.files"),
        ({"runs": [RUNS[0], {**RUNS[0], "files": "z/*.nc"}]}, "found S3 Prior, as runs.0"),
        ({"runs": [RUNS[0], {**RUNS[1], "stage": "posterior"}]}, "stage: found 'posterior'"),
    ],
    ids=["none", "beside", "key", "files", "twice", "stage"],
)
def test_runs_that_are_not_clear_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    without = tuple(key for key in ("simulation", "stage") if key not in change)
    assert words in problems(tmp_path, without=without, **change)


def test_what_runs_share_is_wrong_only_once(tmp_path: Path) -> None:
    text = problems(tmp_path, without=("simulation", "stage"), runs=RUNS, grids=["3deg"])
    assert text.count("grids.0: found '3deg'") == 1


# --- drafts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[NativeFile]:
    """A TRENDY-like submission: another prefix, an annual pool, nee, no units, layers."""
    folder = tmp_path_factory.mktemp("sub") / "ELM" / "S3"
    for name in ("gpp", "ra", "rh", "lai", "cSoil"):
        trendy(WORLD, name, annual=name == "cSoil").write(folder / f"E3SM_S3_{name}.nc")
    trendy(WORLD, "nep", called="nee").write(folder / "E3SM_S3_nee.nc")
    silent = trendy(WORLD, "tran")
    del silent.variables["tran"].attributes["units"]
    silent.write(folder / "E3SM_S3_tran.nc")
    trendy(WORLD, "ts", called="odd\u200bname").write(folder / "E3SM_S3_odd.nc")
    land_fraction_file(WORLD).write(folder / "E3SM_sftlf.nc")
    return [scan(path) for path in sorted(folder.glob("*.nc"))]


ANSWERS = {
    "SET_VERSION": "v3",
    "SET_INSTITUTION": "Here",
    "SET_STAGE": "Prior",
    "SET_PER": "land",
    "SET_SIGN": "-1",
    "SET_UNITS": "mm/day",
    "SET_REASON": "not written",
}


def test_a_draft_says_what_the_files_say_and_asks_the_rest(files: list[NativeFile]) -> None:
    entry = Entry("x.nc", "tran", "refused", ("units",), "x.nc: tran: found no\x1b units " * 9)
    text = draft_manifest(files, [entry, Entry("y.nc", "", "accepted", (), "fine")])
    for line in (
        "model: {name: ELM, version: SET_VERSION, institution: SET_INSTITUTION}",
        "prefixes: [E3SM]    # what file names begin with",
        "simulation: S3",
        "stage: SET_STAGE    # Prior or Posterior",
        "years: [2001, 2002]",
        "frequencies: [mon, yr]",
        "  land_fraction: sftlf",
        "    gpp: {source: gpp}",
        "    nep: {source: nee, sign: SET_SIGN}",
        "    tran: {source: tran, units: SET_UNITS}",
        '    reco: {derive: "ra + rh"}',
        "    hfg: {absent: SET_REASON}    # or {source: native name, units: ...}",
        "# Refused so far (1):",
    ):
        assert line in text.splitlines()
    assert "Not used: odd\\u200bname" in text
    assert all(len(line) <= 100 and line.isprintable() for line in text.splitlines())
    assert "fine" not in text


def test_an_answered_draft_is_a_manifest_and_an_unanswered_one_is_refused(
    files: list[NativeFile], tmp_path: Path
) -> None:
    text = draft_manifest(files, [])
    assert text == draft_manifest(files[::-1], [])
    path = tmp_path / "draft.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_manifest(path)
    asked = {word for word in ANSWERS if f"found {word}" in str(caught.value)}
    assert asked == set(ANSWERS)
    for word, answer in ANSWERS.items():
        text = text.replace(word, answer)
    path.write_text(text)
    manifest = load_manifest(path)
    assert (manifest.file.model.name, manifest.file.simulation) == ("ELM", "S3")
    assert manifest.file.years == (2001, 2002)
    assert manifest.declared.prefixes == ("E3SM",)
    entries = manifest.variable_map.entries
    assert entries["nep"].sign == -1
    assert entries["tran"].units == "mm/day"
    assert entries["reco"].derive == "ra + rh"
    assert entries["hfg"].absent == "not written"


def test_a_draft_of_nothing_still_asks_for_everything() -> None:
    content = yaml.safe_load(draft_manifest([], []))
    assert content["model"]["name"] == "SET_MODEL"
    assert content["simulation"] == "SET_SIMULATION"
    assert content["variables"]["variables"]["gpp"] == {"absent": "SET_REASON"}


def test_layers_and_several_units_are_questions(tmp_path: Path) -> None:
    layered = trendy(WORLD, "mrsos", called="msl")
    var = layered.variables["msl"]
    var.dims, var.values = ("time", "soil", "lat", "lon"), np.repeat(var.values[:, None], 3, 1)
    layered.write(tmp_path / "msl.nc")
    for year, units in ((2001, "kg m-2 s-1"), (2002, "gC m-2 day-1")):
        world = World(step_deg=30.0, years=(year, year))
        trendy(world, "gpp", units=units).write(tmp_path / f"gpp_{year}.nc")
    text = draft_manifest([scan(path) for path in sorted(tmp_path.glob("*.nc"))], [])
    assert "select: {soil: [0]}" in text
    assert "different units: 'kg m-2 s-1', 'gC m-2 day-1'" in text
    assert yaml.safe_load(text)["years"] == [2001, 2002]


@given(st.text())
def test_any_name_is_itself_in_yaml_and_harmless_in_a_comment(name: str) -> None:
    if name.isprintable():
        assert yaml.safe_load(f"{{source: {_text(name)}, x: 1}}") == {"source": name, "x": 1}
    assert yaml.safe_load(f"a: 1\n{_comment(name)}\nb: 2\n") == {"a": 1, "b": 2}


def test_a_file_that_is_refused_is_not_drafted_as_absent() -> None:
    broken = ["M/S3/M_S3_gpp.nc", "M/S3/M_S3_ra.nc", "M/S3/M_S3_rh.nc"]
    entries = [Entry(p, "", "refused", ("truncated",), f"{p}: found half of it") for p in broken]
    entries.append(Entry("M/S3/M_S3_lai.nc", "", "accepted", ("no-field",), "no field"))
    content = yaml.safe_load(draft_manifest([], entries))["variables"]["variables"]
    assert content["gpp"] == {"source": "gpp"}
    assert content["ra"] == {"source": "ra"}
    assert content["nep"] == {"derive": "gpp - ra - rh"}
    assert content["lai"] == {"absent": "SET_REASON"}
