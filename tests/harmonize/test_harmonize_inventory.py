"""What a submission holds: names of every style, copies, contradictions, files that were named."""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
from collections import Counter
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from native_files import field, write_native

from callmip_global.errors import UsageError
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.inventory import Taken, take
from callmip_global.harmonize.naming import READABLE, Row, classify, classify_all, same_name
from callmip_global.harmonize.rules import RULES
from callmip_global.harmonize.submission import opened

LISTING = Path(__file__).parents[3] / "shared" / "data" / "trendy_v14_listing.json.gz"
KGC = {"units": "kg m-2 s-1"}


# --- names: laws ---------------------------------------------------------------------------------

# fmt: off
WORDS = st.sampled_from([
    "IBIS", "S0", "S3", "CO2", "gpp", "OLD", "correctedS2", "climate", "Prior", "mon", "PFT03",
    "2001-2010", "pft", "_", ".", "..", "/", ".nc", ".gz", ".tar.gz", ".nc\r", "zonalNBP", "\n",
    "CLASSIC.v2_global_0.5deg_mon_1901-2020_Prior", "Annual", "é", "\udcff", " ", "~",
])
# fmt: on
PATHS = st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=12).map("".join))


@given(PATHS, st.integers(0, 2**45))
def test_every_path_has_a_row_whatever_it_is(path: str, size: int) -> None:
    row = classify(path, size)
    assert (row.path, row.size) == (path, size)
    assert row == classify(path, size)
    assert row.kind == "folder" or row.name
    if row.years is not None:
        assert all(0 <= year <= 9999 for year in row.years)


@given(PATHS, st.integers(0, 2**45), st.sampled_from(["gz", "tar", "tar.gz"]))
def test_packing_changes_nothing_but_the_packing(path: str, size: int, packing: str) -> None:
    plain = classify(f"{path}x.nc", size)
    packed = classify(f"{path}x.nc.{packing}", size)
    if plain.kind in READABLE:
        assert packed.packed == packing
        assert (packed.kind, packed.variable, packed.simulation, packed.piece) == (
            plain.kind,
            plain.variable,
            plain.simulation,
            plain.piece,
        )


@given(st.lists(st.tuples(PATHS, st.integers(0, 2**45)), max_size=20))
def test_siblings_add_notes_and_change_nothing_else(files: list[tuple[str, int]]) -> None:
    rows = classify_all(files)
    assert [(row.path, row.size) for row in rows] == files
    for row, (path, size) in zip(rows, files, strict=True):
        alone = classify(path, size)
        assert row.notes[: len(alone.notes)] == alone.notes
        assert row.kind == alone.kind


# --- names: cases --------------------------------------------------------------------------------

CASES: dict[str, dict[str, object]] = {
    "ELM/S3/E3SM_S3_gpp.nc": {
        "kind": "data",
        "model": "E3SM",
        "folder_model": "ELM",
        "simulation": "S3",
        "variable": "gpp",
    },
    "CLASSIC.v2_global_0.5deg_mon_1901-2020_Posterior.nc": {
        "kind": "data",
        "model": "CLASSIC",
        "version": "v2",
        "resolution": "0.5deg",
        "frequency": "mon",
        "years": (1901, 2020),
        "stage": "Posterior",
        "variable": "",
    },
    "CO2/CLASSIC.v2_global_1deg_yr_2001-2020_Prior.nc": {
        "simulation": "CO2",
        "stage": "Prior",
        "frequency": "yr",
    },
    "SDGVM/S3/SDGVM_S3_nbpAnnual.nc.gz": {"variable": "nbp", "frequency": "yr", "packed": "gz"},
    "YIBs/S3/YIBs_S3_Monthly_nbp.nc": {"variable": "nbp", "frequency": "mon"},
    "CARDAMOM/S2/CARDAMOM_S2_mean_annual_gpp.nc": {"variable": "gpp", "frequency": "yr"},
    "iMAPLE/S0/iMAPLE_S0_cSoil.nc.tar.gz": {"variable": "cSoil", "packed": "tar.gz"},
    "CLM/S0/CLM6.0_S0_gpppft_PFT07.nc": {"variable": "gpppft", "piece": "PFT07"},
    "CLM/S0/CLM6.0_S0_cSoilpools_1m.nc": {"variable": "cSoilpools_1m", "copy": ""},
    "LPX-Bern/S0/LPX-Bern_S0_cSoilpft_lu.nc": {"variable": "cSoilpft", "piece": "lu"},
    "CLASSIC/S2/CLASSIC_S2_cSoil_prelim.nc": {"variable": "cSoil", "copy": "prelim"},
    "CLASSIC/correctedS2/CLASSIC_S2_gpp.nc": {"folder_simulation": "S2", "copy": "correctedS2"},
    "CLASSIC/S0_revisedNov3/CLASSIC_S0_gpp.nc": {"copy": "S0_revisedNov3", "kind": "data"},
    "IBIS/S1/IBIS_S1_evapotrans_1.nc": {"variable": "evapotrans", "copy": "1"},
    "IBIS/S1/IBIS_S1_npppft_re-upload.nc": {"variable": "npppft", "copy": "re-upload"},
    "VISIT-UT/S2/OLDs/VISIT-UT_S2_tas.nc": {"kind": "superseded", "variable": "tas"},
    "ED/S1/EDv3_landCoverFrac.nc": {
        "model": "EDv3",
        "simulation": "S1",
        "variable": "landCoverFrac",
    },
    "ELM/S3/E3SM_S3_sftlf.nc": {"kind": "grid"},
    "LPJ-GUESS/climate/crujra.v3.5d.pre.1901-2024.nc": {"kind": "forcing"},
    "TEM/GDSTEM_zonalNBP_S2.txt": {"kind": "table", "simulation": "S2", "model": "GDSTEM"},
    "out/ra_2001.nc": {"variable": "ra", "years": (2001, 2001), "model": ""},
    "M/S3/M_S3_gpp_200101-200212.nc": {"variable": "gpp", "years": (2001, 2002)},
    "M.v1_S3_0.5deg_Prior_m004.zarr": {"kind": "data", "simulation": "S3", "stage": "Prior"},
    "CLM5.0/S2/tmp.nc": {"kind": "junk"},
    "X/S3/.X_S3_gpp.nc.a1B2c3": {"kind": "junk"},
    "X/S3/X_S3_gpp.nc.part": {"kind": "junk", "notes": ("a transfer that did not finish?",)},
    "readme-v1.1.txt~": {"kind": "junk"},
    "._gpp.nc": {"kind": "junk"},
    "S3.tar.gz": {"kind": "archive", "packed": "tar.gz"},
    "S3/all.zip": {"kind": "archive", "packed": ""},
    "X/S3/X_S3_gpp.nc\r": {
        "kind": "data",
        "variable": "gpp",
        "notes": ("white space or a line end in the file name",),
    },
}


@pytest.mark.parametrize("path", CASES, ids=[p.strip().rsplit("/", 1)[-1] for p in CASES])
def test_names_are_read_as_they_are_meant(path: str) -> None:
    row = classify(path, 1234567)
    assert {key: getattr(row, key) for key in CASES[path]} == CASES[path]


def test_a_size_of_whole_blocks_and_an_empty_file_are_noted() -> None:
    broken = classify("IBIS/S1/IBIS_S1_evapotrans.nc", 650_444_800)
    assert broken.notes == ("interrupted upload? The size is 19850 times 32768 bytes exactly",)
    assert classify("IBIS/S1/IBIS_S1_evapotrans_1.nc", 792_400_691).notes == ()
    assert classify("IBIS/S1/IBIS_S1_evapotrans.nc", 650_444_800 + 4096).notes == ()
    assert classify("IBIS/S1/IBIS_S1_gpp.nc", 0).notes == ("empty",)
    assert classify("IBIS/S1/README.txt", 32768).notes == ()


def test_names_of_a_model_are_the_same_up_to_case_and_hyphens() -> None:
    assert same_name("LPJml", "LPJmL")
    assert same_name("CABLEPOP", "CABLE-POP")
    assert not same_name("CLM", "CLM5.0")


# --- names: a real listing -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def listing() -> list[Row]:
    """All 6,209 rows of the TRENDY v14 listing."""
    if not LISTING.is_file():
        pytest.skip(f"{LISTING} is not here: the real listing is not part of this repository")
    files = json.loads(gzip.decompress(LISTING.read_bytes()))
    return classify_all((path, size) for path, size, _ in files)


def test_every_row_of_the_real_listing_is_classified(listing: list[Row]) -> None:
    kinds = Counter(row.kind for row in listing)
    assert kinds == {
        "data": 5975,
        "grid": 53,
        "superseded": 8,
        "forcing": 5,
        "table": 49,
        "text": 20,
        "script": 2,
        "junk": 87,
        "folder": 10,
    }
    assert sum(kinds.values()) == 6209
    data = [row for row in listing if row.kind in READABLE]
    assert len(data) + kinds["forcing"] == 6041
    assert all(row.model and row.variable for row in data)
    assert [row.name for row in data if not row.simulation] == ["JSBACH_canopyFract.nc"]
    assert not [row for row in listing if row.kind == "other"]


def test_the_real_listing_counts_as_the_catalogue_says(listing: list[Row]) -> None:
    data = [row for row in listing if row.kind in (*READABLE, "forcing")]
    conventional = re.compile(r".*/([^/]+)/(S\d)/\1_\2_\w+\.nc")
    keep = [row for row in data if conventional.fullmatch(row.path)]
    assert len(keep) == 2269
    assert all(row.model == row.folder_model and not row.packed for row in keep)
    assert sum(bool(row.piece) for row in data) == 2507
    assert sum(row.piece.startswith("PFT") for row in data) == 1944
    packed = Counter((row.folder_model, row.packed) for row in data if row.packed)
    assert packed == {("SDGVM", "gz"): 120, ("VISIT", "gz"): 108, ("iMAPLE", "tar.gz"): 93}
    prefixes = {(r.folder_model, r.model) for r in data if not same_name(r.folder_model, r.model)}
    assert prefixes == {
        ("CLM", "CLM6.0"),
        ("ED", "EDv3"),
        ("ELM", "E3SM"),
        ("JULES-ES", "JULES"),
        ("LPJwsl", "LPJ-EOSIM"),
        ("TEM", "GDSTEM"),
    }
    assert len({row.folder_model for row in data}) == 23


def test_the_defects_that_names_and_sizes_tell_are_found_in_the_real_listing(
    listing: list[Row],
) -> None:
    data = [row for row in listing if row.kind in READABLE]
    odd = {row.path.split("/", 1)[1]: row.notes for row in data if row.notes}
    stub = odd.pop("CLASSIC/S3/CLASSIC_S3_tsl.nc")
    assert stub == ("stub? 17569 bytes, the same variable elsewhere 40315924715",)
    for variable in ("pr", "rsds", "tas"):
        (said,) = odd.pop(f"IBIS/S0/IBIS_S1_{variable}.nc")
        assert said == "the name says S1, the folder S0: which is it?"
    assert set(odd) == {
        *(f"ED/S{i}/EDv3_landCoverFrac.nc" for i in range(4)),
        "JSBACH/JSBACH_canopyFract.nc",
    }
    copies = Counter(row.copy for row in data if row.copy)
    assert copies == {"correctedS2": 61, "read_the_readme": 4, "OLD": 4, "OLDs": 4, "prelim": 1}


# --- submissions on disk -------------------------------------------------------------------------


def run(
    *submissions: Path,
    model: str = "X",
    simulation: str = "S3",
    stage: str = "Prior",
    patterns: tuple[str, ...] = ("**/*.nc",),
    **declared: object,
) -> Taken:
    out = submissions[0].absolute().parent / "unpacked"
    taken = take(
        submissions,
        patterns,
        unpack_to=out,
        declared=Declared(**declared),  # type: ignore[arg-type]
        model=model,
        simulation=simulation,
        stage=stage,
    )
    origins = [f.origin for f in taken.files]
    origins += [origin for origin, _ in taken.refused]
    origins += [origin for origin, _, _ in taken.notes]
    assert len(origins) == len(set(origins))
    plain = {origin.partition("::")[0] for origin in origins}
    for submission in submissions:
        walked = [submission, *submission.rglob("*")] if submission.is_dir() else [submission]
        files = {str(p) for p in walked if p.is_file()}
        assert {f for f in files if not {str(p) for p in Path(f).parents} & plain} == files & plain
    assert {problem.rule for _, problem in taken.refused} <= set(RULES)
    assert {rule for _, rule, _ in taken.notes} <= set(RULES)
    return taken


def put(
    path: Path, name: str = "gpp", years: tuple[int, int] = (2001, 2002), **more: object
) -> Path:
    return write_native(path, {name: (field(0, 1e-7, years=years), KGC)}, years=years, **more)  # type: ignore[arg-type]


def taken_names(taken: Taken) -> list[str]:
    return sorted(Path(f.origin).name for f in taken.files)


def refusals(taken: Taken) -> dict[str, str]:
    return {Path(o).name: f'"{problem.rule}": {problem}' for o, problem in taken.refused}


def test_what_is_no_data_is_noted_and_the_rest_taken(tmp_path: Path) -> None:
    top = tmp_path / "X"
    put(top / "S3" / "X_S3_gpp.nc")
    put(top / "climate" / "crujra.tas.nc", "tas")
    put(top / "tmp.nc", "tas")
    for name in ("README.txt", "S3/.keep", "S3/zonal.py", "X_zonalNBP_S3.txt"):
        (top / name).write_text("words")
    put(top / "S2" / "X_S2_gpp.nc")
    taken = run(top)
    assert taken_names(taken) == ["X_S3_gpp.nc"]
    assert not taken.refused
    notes = {Path(origin).name: (rule, words) for origin, rule, words in taken.notes}
    assert notes["X_S2_gpp.nc"] == ("other-run", "of simulation S2, not S3; not read")
    assert notes["crujra.tas.nc"] == ("not-data", "forcing, not output; not read")
    assert {rule for name, (rule, _) in notes.items() if name != "X_S2_gpp.nc"} == {"not-data"}
    assert run(top) == taken


def test_a_declared_prefix_is_taken_and_a_second_one_refused(tmp_path: Path) -> None:
    top = tmp_path / "ELM"
    put(top / "S3" / "E3SM_S3_gpp.nc")
    put(top / "S3" / "CLM_S3_ra.nc", "ra")
    put(top / "S3" / "elm_S3_rh.nc", "rh")
    put(top / "S3" / "lai_S3_monthly.nc", "lai")
    taken = run(top, model="ELM", prefixes=("E3SM",))
    assert taken_names(taken) == ["E3SM_S3_gpp.nc", "elm_S3_rh.nc", "lai_S3_monthly.nc"]
    notes = {Path(f.origin).name: f.notes for f in taken.files}
    assert notes["E3SM_S3_gpp.nc"][0][0] == "prefix"
    assert notes["elm_S3_rh.nc"] == ()
    assert '"undeclared-prefix": ' in refusals(taken)["CLM_S3_ra.nc"]
    assert "prefixes: [E3SM, CLM]" in refusals(taken)["CLM_S3_ra.nc"]
    assert "'ELM' or 'E3SM'" in refusals(taken)["CLM_S3_ra.nc"]


@pytest.mark.parametrize("simulation", ["S0", "S1"])
@pytest.mark.parametrize("deep", [True, False], ids=["model folder", "simulation folder"])
def test_another_scenario_in_the_name_than_in_the_folder_is_refused(
    tmp_path: Path, simulation: str, deep: bool
) -> None:
    path = put(tmp_path / "IBIS" / "S0" / "IBIS_S1_pr.nc", "pr")
    top = path.parents[1] if deep else path.parent
    taken = run(top, model="IBIS", simulation=simulation)
    assert not taken.files
    message = refusals(taken)["IBIS_S1_pr.nc"]
    assert '"contradiction": ' in message
    assert "S1 in its name, S0 in its folder" in message


def test_a_name_with_co2_in_it_is_no_file_of_a_simulation_co2(tmp_path: Path) -> None:
    put(tmp_path / "X" / "land_CO2_flux.nc")
    put(tmp_path / "X" / "X_CO2_gpp.nc", "other")
    taken = run(tmp_path / "X")
    assert taken_names(taken) == ["land_CO2_flux.nc"]
    assert [rule for _, rule, _ in taken.notes] == ["other-run"]


def test_without_a_run_nothing_is_held_against_a_name(tmp_path: Path) -> None:
    put(tmp_path / "X" / "S2" / "Y_S2_gpp.nc", attributes={"Calibration_stage": "Prior"})
    put(tmp_path / "X" / "X.v1_global_1deg_mon_2001-2002_Prior.nc", "ra")
    taken = run(tmp_path / "X", model="", simulation="", stage="")
    assert len(taken.files) == 2


def test_stages_that_contradict_are_refused_and_the_other_stage_noted(tmp_path: Path) -> None:
    top = tmp_path / "X"
    tail = "global_1deg_mon_2001-2002"
    put(top / "Prior" / f"X.v1_{tail}_Posterior.nc")
    put(top / "out" / f"X.v1_{tail}_Posterior.nc", "ra")
    put(top / "out" / f"X.v1_{tail}_Prior.nc", "rh")
    put(top / "out" / "ts.nc", "ts", attributes={"Calibration_stage": "Posterior"})
    put(top / "out" / "lai.nc", "lai", attributes={"Model": "Y.v2"})
    put(top / "out" / "hfls.nc", "hfls", attributes={"simulation": "S2"})
    taken = run(top)
    assert [f.origin for f in taken.files] == [str(top / "out" / f"X.v1_{tail}_Prior.nc")]
    assert [(o, r) for o, r, _ in taken.notes] == [
        (str(top / "out" / f"X.v1_{tail}_Posterior.nc"), "other-run")
    ]
    said = refusals(taken)
    assert "Posterior in its name, Prior in its folder" in said[f"X.v1_{tail}_Posterior.nc"]
    assert "'Posterior', wanted 'Prior'" in said["ts.nc"]
    assert "'Y.v2'" in said["lai.nc"]
    assert "'S2', wanted 'S3'" in said["hfls.nc"]


@pytest.mark.parametrize(
    "other", ["S3/OLD/X_S3_gpp.nc", "correctedS3/X_S3_gpp.nc", "S3/X_S3_gpp_prelim.nc"]
)
def test_copies_are_refused_until_the_manifest_names_one(tmp_path: Path, other: str) -> None:
    top = tmp_path / "X"
    live, copy = put(top / "S3" / "X_S3_gpp.nc"), put(top / other)
    os.utime(live, (2e9, 2e9))
    taken = run(top)
    assert not taken.files
    for origin, problem in taken.refused:
        assert problem.rule == "duplicate"
        assert str(live) in str(problem)
        assert str(copy) in str(problem)
        assert origin in (str(live), str(copy))
    for chosen, left in ((live, copy), (copy, live)):
        name = str(chosen.relative_to(top))
        taken = run(top, use={"gpp": name})
        assert [f.origin for f in taken.files] == [str(chosen)]
        assert taken.notes == (
            (str(left), "not-named", f"the manifest names {name!r} for gpp; not read"),
        )
        assert not taken.refused


def test_the_remedy_of_a_refused_copy_works_as_it_is_printed(tmp_path: Path) -> None:
    top = tmp_path / "S3"
    live = put(top / "X_S3_gpp.nc")
    put(top / "OLD" / "X_S3_gpp.nc")
    said = refusals(run(top))["X_S3_gpp.nc"]
    assert 'use: {gpp: "' in said
    assert [f.origin for f in run(top, use={"gpp": "X_S3_gpp.nc"}).files] == [str(live)]


def test_an_old_copy_alone_is_no_current_file(tmp_path: Path) -> None:
    path = put(tmp_path / "X" / "S3" / "OLD" / "X_S3_gpp.nc")
    taken = run(tmp_path / "X")
    assert [problem.rule for _, problem in taken.refused] == ["superseded"]
    assert [f.origin for f in run(tmp_path / "X", use={"GPP": "OLD/*"}).files] == [str(path)]


def test_an_intact_retry_does_not_replace_a_broken_file_by_itself(tmp_path: Path) -> None:
    top = tmp_path / "X"
    broken, retry = put(top / "S3" / "X_S3_gpp.nc"), put(top / "S3" / "X_S3_gpp_1.nc")
    broken.write_bytes(broken.read_bytes()[:3000])
    taken = run(top)
    assert not taken.files
    assert {problem.rule for _, problem in taken.refused} == {"truncated", "duplicate"}
    taken = run(top, use={"gpp": "X_S3_gpp_1.nc"})
    assert [f.origin for f in taken.files] == [str(retry)]
    assert [problem.rule for _, problem in taken.refused] == ["truncated"]


def test_pieces_of_time_frequencies_and_plant_types_are_no_copies(tmp_path: Path) -> None:
    top = tmp_path / "X"
    for year in (2001, 2002, 2003):
        put(top / "S3" / f"X_S3_gpp_{year}.nc", years=(year, year))
    put(top / "S3" / "X_S3_gpp_1.nc", years=(2004, 2005))
    annual = field(0, 1e-7, per_year=1)
    write_native(top / "S3" / "X_S3_Annual_gpp.nc", {"gpp": (annual, KGC)}, annual=True)
    for piece in ("PFT00", "PFT01"):
        put(top / "S3" / f"X_S3_gpppft_{piece}.nc", "gpppft")
    taken = run(top)
    assert not taken.refused
    assert len(taken.files) == 7


def test_where_times_have_no_units_names_tell_pieces_from_copies(tmp_path: Path) -> None:
    def plain(path: Path) -> Path:
        put(path)
        with netCDF4.Dataset(path, "a") as nc:
            nc["time"].delncattr("units")
        return path

    pieces, copies, unsure = (tmp_path / name for name in ("pieces", "copies", "unsure"))
    for years in ("2001-2002", "2003-2004"):
        plain(pieces / f"X_S3_gpp_{years}.nc")
        plain(copies / f"X_S3_gpp_{years}.nc")
    assert not run(pieces).refused
    plain(copies / "corrected" / "X_S3_gpp_2003-2004.nc")
    taken = run(copies)
    assert taken_names(taken) == ["X_S3_gpp_2001-2002.nc"]
    assert {problem.rule for _, problem in taken.refused} == {"duplicate"}
    # Nothing tells: the timeline will.
    plain(unsure / "a.nc")
    plain(unsure / "b.nc")
    assert not run(unsure).refused
    plain(unsure / "OLD" / "c.nc")
    assert len(run(unsure).refused) == 3
    plain(tmp_path / "twice" / "one" / "a.nc")
    plain(tmp_path / "twice" / "two" / "a.nc")
    assert len(run(tmp_path / "twice").refused) == 2


def test_pieces_that_overlap_are_refused_with_their_partner(tmp_path: Path) -> None:
    top = tmp_path / "X"
    put(top / "a.nc", years=(2001, 2003))
    put(top / "b.nc", years=(2003, 2004))
    put(top / "c.nc", years=(2005, 2006))
    taken = run(top)
    assert taken_names(taken) == ["c.nc"]
    assert "b.nc" in refusals(taken)["a.nc"]


def test_of_a_file_with_more_variables_only_what_another_was_named_for_is_left_out(
    tmp_path: Path,
) -> None:
    top = tmp_path / "X"
    both = {"gpp": (field(0, 1e-7), KGC), "ra": (field(0, 1e-7), KGC)}
    many = write_native(top / "many.nc", both)
    better = put(top / "better.nc")
    taken = run(top, use={"gpp": "better.nc"})
    without = {f.origin: f.without for f in taken.files}
    assert without == {str(many): ("gpp",), str(better): ()}
    kept = {f.origin: f.data_variables() for f in opened(taken, Declared())[0]}
    assert kept == {str(many): ["ra"], str(better): ["gpp"]}


def test_a_name_in_use_that_no_file_has_is_said_at_once(tmp_path: Path) -> None:
    put(tmp_path / "X" / "X_S3_gpp.nc")
    with pytest.raises(UsageError, match=r"use\.gpp: found 'X_S3_gp\.nc'"):
        run(tmp_path / "X", use={"gpp": "X_S3_gp.nc"})
    with pytest.raises(UsageError, match="nothing there"):
        run(tmp_path / "nowhere")


def test_archives_are_unpacked_or_refused_and_never_passed_over(tmp_path: Path) -> None:
    top = tmp_path / "X"
    plain = put(tmp_path / "x.nc").read_bytes()
    (top / "S3").mkdir(parents=True)
    (top / "S3" / "X_S3_gpp.nc.gz").write_bytes(gzip.compress(plain))
    other = put(tmp_path / "y.nc", "ra")
    with tarfile.open(top / "S3" / "X_S3_ra.nc.tar.gz", "w:gz") as tar:
        tar.add(other, "X_S3_ra.nc")
    with tarfile.open(top / "code.tar.gz", "w:gz") as tar:
        tar.add(__file__, "code.py")
    with tarfile.open(top / "all.tgz", "w:gz") as tar:
        tar.add(other, "a.nc")
        tar.add(other, "b.nc")
    (top / "all.zip").write_bytes(b"PK\x03\x04")
    (top / "notes.txt.gz").write_bytes(gzip.compress(b"words"))
    taken = run(top)
    packed = str(top / "S3" / "X_S3_ra.nc.tar.gz")
    assert [f.origin for f in taken.files] == [
        str(top / "S3" / "X_S3_gpp.nc.gz"),
        f"{packed}::X_S3_ra.nc",
    ]
    assert [f.notes[0][0] for f in taken.files] == ["unpacked", "unpacked"]
    assert taken.files[0].path.read_bytes() == plain
    assert set(refusals(taken)) == {"all.tgz", "all.zip"}
    assert {Path(o).name for o, _, _ in taken.notes} == {"code.tar.gz", "notes.txt.gz"}
    assert all("unpacked" in dict(file.notes) for file in opened(taken, Declared())[0])


def test_endings_count_as_nc_and_a_given_file_needs_no_pattern(tmp_path: Path) -> None:
    top = tmp_path / "X"
    put(top / "a.NC4", "a")
    put(top / "b.cdf", "b")
    put(top / "c.nc\r", "c")
    given_file = put(tmp_path / "given.out", "d")
    put(top / "deep" / "e.nc", "e")
    taken = run(top, given_file, patterns=("*.nc",))
    assert taken_names(taken) == ["a.NC4", "b.cdf", "c.nc\r", "given.out"]
    assert [Path(o).name for o, _, _ in taken.notes] == ["e.nc"]


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_store_is_one_file(tmp_path: Path, version: int) -> None:
    top = tmp_path / "X"
    top.mkdir()
    path = put(tmp_path / "x.nc")
    with xr.open_dataset(path) as ds:
        ds.to_zarr(top / "X_S3_gpp.zarr", zarr_format=version, consolidated=False)
    taken = run(top, patterns=("**/*.nc", "**/*.zarr"))
    assert taken_names(taken) == ["X_S3_gpp.zarr"]
    assert taken.files[0].size > 1000
    assert [Path(o).name for o, _, _ in run(top).notes] == ["X_S3_gpp.zarr"]
    put(top / "X_S3_gpp.nc")
    taken = run(top, patterns=("**/*.nc", "**/*.zarr"))
    assert {problem.rule for _, problem in taken.refused} == {"duplicate"}


def test_links_pipes_and_closed_folders_never_hang_or_lead_outside(tmp_path: Path) -> None:
    top = tmp_path / "X"
    put(top / "X_S3_gpp.nc")
    (top / "lost.nc").symlink_to(tmp_path / "nothing")
    (top / "loop").symlink_to(top)
    os.mkfifo(top / "pipe.nc")
    taken = take(
        [top],
        ["**/*.nc"],
        unpack_to=top / "work",
        declared=Declared(),
        model="X",
        simulation="S3",
        stage="Prior",
    )
    assert taken_names(taken) == ["X_S3_gpp.nc"]
    said = refusals(taken)
    assert "a link to nothing" in said["lost.nc"]
    assert "a link to a folder" in said["loop"]
    assert "a pipe" in said["pipe.nc"]


def test_what_was_unpacked_inside_the_submission_is_not_taken_as_handed_in(tmp_path: Path) -> None:
    top = tmp_path / "X"
    plain = put(tmp_path / "x.nc").read_bytes()
    top.mkdir()
    (top / "X_S3_gpp.nc.gz").write_bytes(gzip.compress(plain))
    for _ in range(2):
        taken = take(
            [top],
            ["**/*.nc"],
            unpack_to=top / "collection" / "work",
            declared=Declared(),
            model="X",
            simulation="S3",
            stage="Prior",
        )
        assert [f.origin for f in taken.files] == [str(top / "X_S3_gpp.nc.gz")]
        assert not taken.refused


def test_a_file_far_smaller_than_its_siblings_is_a_stub(tmp_path: Path) -> None:
    top = tmp_path / "X"
    big = np.random.default_rng(1).uniform(0, 1e-7, (240, 90, 180))
    lat, lon = np.arange(-89.0, 90, 2), np.arange(1.0, 360, 2)
    for name in ("gpp", "ra", "rh"):
        write_native(
            top / f"X_S3_{name}.nc", {name: (big, KGC)}, years=(2001, 2020), lat=lat, lon=lon
        )
    put(top / "X_S3_tsl.nc", "tsl")
    put(top / "X_S3_rn_2001-2002.nc", "rn")  # a piece that says so
    # A map that never changes is small too, and is none.
    with netCDF4.Dataset(top / "X_S3_canopy.nc", "w") as nc:
        nc.createDimension("lat", 4)
        nc.createDimension("lon", 6)
        nc.createVariable("canopy", "f4", ("lat", "lon"))[:] = 1.0
    # Zeros pack well.
    with netCDF4.Dataset(top / "X_S3_fLuc.nc", "w") as nc:
        for name, size in (("time", 240), ("lat", 90), ("lon", 180)):
            nc.createDimension(name, size)
        time = nc.createVariable("time", "f8", ("time",))
        time.units = "days since 2001-01-01"
        time[:] = 15 + 30.4 * np.arange(240)
        nc.createVariable("fLuc", "f8", ("time", "lat", "lon"), zlib=True)[:] = 0.0
    taken = run(top)
    assert taken_names(taken) == [
        f"X_S3_{n}.nc" for n in ("canopy", "fLuc", "gpp", "ra", "rh", "rn_2001-2002")
    ]
    ((origin, problem),) = taken.refused
    assert (Path(origin).name, problem.rule) == ("X_S3_tsl.nc", "stub")
    assert "as its siblings have" in str(problem)
