"""The thirty worked cases: one defect each in a submission that is good otherwise.

Each runs through the command as a user runs it, twice, and says what must come of it: which rule,
in which words, with which values in the store, and that the rest of the submission goes on. Values
that a fix must restore are those of the world that the files were made of.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from submissions import (
    LATENT_J_KG,
    NcFile,
    NcVar,
    Outcome,
    Submission,
    World,
    damage,
    land_fraction_file,
    native_instead_of_regridded,
    time_days,
    trendy,
)

from callmip_global.harmonize.rules import outcome_of
from callmip_global.store import open_store

WORLD = World()
MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], dtype=float)


@pytest.fixture
def sub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    """A submission with a good ``ts`` that must come through whatever happens to the rest."""
    monkeypatch.setattr("callmip_global.workflow.ingest.regrid_store", native_instead_of_regridded)
    made = Submission(tmp_path)
    made.sources("ts")
    made.put("X/S3/X_S3_ts.nc", trendy(WORLD, "ts"))
    return made


def bystander(outcome: Outcome) -> None:
    """What is good was delivered, and every file is accounted for."""
    outcome.accounted()
    assert outcome.row("ts").outcome in ("accepted", "fixed")
    np.testing.assert_array_equal(outcome.values("ts"), WORLD.values("ts"))


def is_refused(outcome: Outcome, variable: str, *words: str, rule: str = "") -> None:
    """Refused, in these words, and in no store; the exit code tells."""
    rows = [r for r in outcome.rows if r.outcome == "refused"]
    assert rows
    message = " ".join(r.message for r in rows)
    for word in words:
        assert word.lower() in message.lower(), f"{word!r} not in {message!r}"
    if rule:
        assert any(rule in r.rules for r in rows), [(r.rules, r.message) for r in rows]
    assert variable not in outcome.held("mon")
    assert outcome.exit_code == 1


def is_fixed(outcome: Outcome, variable: str, *rules: str, words: tuple[str, ...] = ()) -> None:
    """Fixed by these rules, in these words."""
    (row,) = [r for r in outcome.rows if r.variable == variable]
    assert row.outcome == "fixed", row
    assert set(rules) <= set(row.rules), row
    for word in words:
        assert word.lower() in row.message.lower(), f"{word!r} not in {row.message!r}"


def is_kept(outcome: Outcome, variable: str, *rules: str, words: tuple[str, ...] = ()) -> None:
    """Kept as it is, with a warning."""
    (row,) = [r for r in outcome.rows if r.variable == variable]
    assert row.outcome == outcome_of(row.rules) == "accepted", row
    assert set(rules) <= set(row.rules), row
    for word in words:
        assert word.lower() in row.message.lower(), f"{word!r} not in {row.message!r}"


def holds(outcome: Outcome, variable: str, wanted: Any = None, rtol: float = 1e-6) -> None:
    """The store's values are those of the world (or ``wanted``), missing where they are missing."""
    wanted = WORLD.values(variable) if wanted is None else wanted
    np.testing.assert_allclose(outcome.values(variable), wanted, rtol=rtol)


def gpp(sub: Submission, name: str = "X/S3/X_S3_gpp.nc", **options: Any) -> tuple[NcFile, Path]:
    """A good gpp, mapped, not written yet, and where it is to be written."""
    sub.sources("gpp")
    return trendy(WORLD, "gpp", **options), sub.path(name)


# --- files: cases 1 to 7 -------------------------------------------------------------------------


def test_case_01_a_gzipped_file_is_unpacked_and_both_hashes_recorded(sub: Submission) -> None:
    file, path = gpp(sub)
    plain = file.write(path).read_bytes()
    packed = path.with_name("X_S3_gpp.nc.gz")
    packed.write_bytes(gzip.compress(plain, mtime=0))
    path.unlink()
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", "unpacked")
    holds(outcome, "gpp")
    (row,) = outcome.of_variable("gpp")
    assert "X_S3_gpp.nc.gz" in row.path
    said = row.message + open_provenance(outcome)
    for content in (plain, packed.read_bytes()):
        assert hashlib.sha256(content).hexdigest()[:12] in said


def open_provenance(outcome: Outcome) -> str:
    (store,) = outcome.stores
    with open_store(store, "mon") as ds:
        return str(ds.attrs.get("provenance", ""))


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_case_01_a_tar_with_one_member_is_unpacked(sub: Submission) -> None:
    file, path = gpp(sub)
    plain = file.write(path).read_bytes()
    path.unlink()
    tar_of(path.with_name("X_S3_gpp.nc.tar.gz"), {"X_S3_gpp.nc": plain})
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", "unpacked")
    holds(outcome, "gpp")


@pytest.mark.parametrize("member", ["../X_S3_gpp.nc", "/tmp/X_S3_gpp.nc"])
def test_case_01_a_tar_with_a_path_outside_is_refused(sub: Submission, member: str) -> None:
    file, path = gpp(sub)
    plain = file.write(path).read_bytes()
    path.unlink()
    tar_of(path.with_name("X_S3_gpp.nc.tar.gz"), {member: plain})
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "X_S3_gpp.nc.tar.gz", member)


def test_case_01_a_tar_with_two_members_for_one_file_is_refused(sub: Submission) -> None:
    file, path = gpp(sub)
    plain = file.write(path).read_bytes()
    path.unlink()
    tar_of(path.with_name("X_S3_gpp.nc.tar.gz"), {"X_S3_gpp.nc": plain, "X_S3_gpp2.nc": plain})
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "X_S3_gpp.nc.tar.gz", "X_S3_gpp2.nc")


@pytest.fixture
def elm(sub: Submission) -> Submission:
    """A folder ELM with files that begin with E3SM."""
    shutil.rmtree(sub.folder)
    sub.model = "ELM"
    for name in ("ts", "gpp"):
        sub.put(f"ELM/S3/E3SM_S3_{name}.nc", trendy(WORLD, name))
    sub.sources("gpp", "lai")
    return sub


def test_case_02_a_declared_prefix_is_taken(elm: Submission) -> None:
    elm.put("ELM/S3/E3SM_S3_lai.nc", trendy(WORLD, "lai"))
    elm.extra["prefixes"] = ["E3SM"]
    outcome = elm.harmonize()
    bystander(outcome)
    for name in ("gpp", "lai"):
        holds(outcome, name)
    assert not [r for r in outcome.rows if r.outcome == "refused"]


def test_case_02_a_second_prefix_that_nobody_declared_is_refused(elm: Submission) -> None:
    elm.put("ELM/S3/CLM_S3_lai.nc", trendy(WORLD, "lai"))
    elm.extra["prefixes"] = ["E3SM"]
    outcome = elm.harmonize()
    bystander(outcome)
    holds(outcome, "gpp")
    is_refused(outcome, "lai", "CLM", "E3SM")


def test_case_03_another_scenario_in_the_name_than_in_the_folder_is_refused(
    sub: Submission,
) -> None:
    file, path = gpp(sub, "X/S3/X_S1_gpp.nc")
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "S1", "S3", "X_S1_gpp.nc")


@pytest.mark.parametrize("other", ["X/S3/OLD/X_S3_gpp.nc", "X/correctedS3/X_S3_gpp.nc"])
def test_case_04_two_copies_of_a_variable_are_refused_until_one_is_named(
    sub: Submission, other: str
) -> None:
    file, path = gpp(sub)
    file.write(path)
    older = trendy(WORLD, "gpp", values=WORLD.values("gpp") * 0.99)
    older.write(sub.path(other))
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "X/S3/X_S3_gpp.nc", other)
    sub.extra["use"] = {"gpp": "X/S3/X_S3_gpp.nc"}
    outcome = sub.harmonize()
    bystander(outcome)
    holds(outcome, "gpp")
    assert [r.outcome for r in outcome.of_file(other)] == ["accepted"]


@pytest.mark.parametrize("form", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
def test_case_05_a_truncated_netcdf3_is_refused_with_both_sizes(sub: Submission, form: str) -> None:
    file, path = gpp(sub)
    file.format, file.unlimited = form, "time"
    file.write(path)
    full = path.stat().st_size
    cut = int(0.6 * full)
    damage(path, lambda data: data.__delitem__(slice(cut, None)))
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", f"{cut}", "bytes")
    assert any(str(n) in outcome.output for n in range(full - 3, full + 1))


def test_case_05_a_whole_number_of_blocks_is_called_an_interrupted_upload(
    sub: Submission,
) -> None:
    file, path = gpp(sub)
    file.format = "NETCDF3_CLASSIC"
    file.write(path)
    damage(path, lambda data: data.__delitem__(slice(32768, None)))
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "32768", "interrupted upload")


def deflated_chunks(path: Path, size: int) -> list[tuple[int, int]]:
    """(start, end) of every zlib stream of ``size`` bytes of content in a file."""
    data, found, at = path.read_bytes(), [], 0
    while (at := data.find(b"\x78\x01", at)) >= 0:
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(data[at:])
        except zlib.error:
            content = b""
        if stream.eof and len(content) == size:
            found.append((at, len(data) - len(stream.unused_data)))
            at = found[-1][1]
        else:
            at += 1
    return found


def test_case_06_a_damaged_chunk_is_refused_with_its_variable_and_time(sub: Submission) -> None:
    shape = (1, *WORLD.land.shape)
    options = {"zlib": True, "complevel": 1, "shuffle": True, "chunksizes": shape}
    file, path = gpp(sub, storage=options)
    file.write(path)
    chunks = deflated_chunks(path, 4 * int(np.prod(shape)))
    assert len(chunks) == WORLD.months
    start, end = chunks[17]

    def flip(data: bytearray) -> None:
        for at in range(start + 40, min(start + 90, end)):
            data[at] ^= 0xFF

    damage(path, flip)
    outcome = sub.harmonize()
    bystander(outcome)
    # HDF5 does not promise that chunks lie in the order of time, so any month may be named.
    is_refused(outcome, "gpp", "X_S3_gpp.nc", "chunk", "200")


def test_case_07_garbage_in_a_plain_chunk_is_refused_by_range(sub: Submission) -> None:
    file, path = gpp(sub, storage={"contiguous": True})
    file.write(path)
    first = np.float32(WORLD.values("gpp")[5][WORLD.land][0]).tobytes()
    at = path.read_bytes().find(first)
    assert at > 0
    garbage = np.full(2, 1.8e31, dtype="<f4").tobytes()
    damage(path, lambda data: data.__setitem__(slice(at, at + 8), garbage))
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "1.8e+31")


def test_case_07_a_stub_beside_whole_siblings_is_refused(sub: Submission) -> None:
    file, path = gpp(sub)
    file.variables["gpp"].storage = {}
    file.write(path)
    # The header of 24 months, and no value ever written.
    with netCDF4.Dataset(path) as whole, netCDF4.Dataset(path.with_name("stub.nc"), "w") as stub:
        for name, dim in whole.dimensions.items():
            stub.createDimension(name, len(dim))
        for name, var in whole.variables.items():
            fill = getattr(var, "_FillValue", None)
            chunks = None if len(var.dimensions) == 1 else (1, *WORLD.land.shape)
            out = stub.createVariable(
                name, var.dtype, var.dimensions, fill_value=fill, chunksizes=chunks, zlib=True
            )
            out.setncatts({k: getattr(var, k) for k in var.ncattrs() if k != "_FillValue"})
            if name != "gpp":
                out[:] = var[:]
    path.with_name("stub.nc").replace(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "stub")


# --- time: cases 8 to 15 -------------------------------------------------------------------------


def months_of(outcome: Outcome, frequency: str = "mon") -> list[tuple[int, int]]:
    (store,) = outcome.stores
    with open_store(store, frequency) as ds:  # type: ignore[arg-type]
        return [(t.year, t.month) for t in ds["time"].values]


ALL_MONTHS = [(y, m) for y in (2001, 2002) for m in range(1, 13)]


def test_case_08_months_since_become_days_with_bounds_of_the_months(sub: Submission) -> None:
    file, path = gpp(sub)
    file.variables["time"].values = 12.0 * 301 + np.arange(24)
    file.variables["time"].attributes["units"] = "months since 1700-1-16"
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", "time-counting", words=("months since 1700-1-16",))
    holds(outcome, "gpp")
    (store,) = outcome.stores
    with open_store(store, "mon") as ds:
        assert [(t.year, t.month) for t in ds["time"].values] == ALL_MONTHS
        assert all(14 <= t.day <= 17 for t in ds["time"].values)
        lengths = [(b[1] - b[0]).days for b in ds["time_bnds"].values]
        np.testing.assert_array_equal(lengths, np.tile(MONTH_DAYS, 2))


def test_case_09_decimal_years_are_taken_where_each_means_one_month(sub: Submission) -> None:
    file, path = gpp(sub)
    file.variables["time"].values = 2001 + (np.arange(24) + 0.5) / 12
    file.variables["time"].attributes = {
        "units": "years since AD 0-Jan-1st (double)",
        "calendar": "noleap",
    }
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", "time-counting", words=("years since AD 0-Jan-1st",))
    holds(outcome, "gpp")
    assert months_of(outcome) == ALL_MONTHS


def test_case_09_decimal_years_between_two_months_are_refused(sub: Submission) -> None:
    file, path = gpp(sub)
    file.variables["time"].values = 2001 + (np.arange(24) * 1.04 + 0.5) / 12
    file.variables["time"].attributes["units"] = "years since AD 0-Jan-1st (double)"
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "X_S3_gpp.nc")


def without_units(sub: Submission) -> None:
    file, path = gpp(sub)
    file.variables["time"].values = np.arange(24) + 1.0
    del file.variables["time"].attributes["units"]
    file.write(path)


def test_case_10_steps_without_units_are_refused(sub: Submission) -> None:
    without_units(sub)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "units", "start")


def test_case_10_steps_without_units_are_taken_from_the_declared_month(sub: Submission) -> None:
    without_units(sub)
    sub.extra["start"] = "2001-01"
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", words=("declared", "2001-01"))
    holds(outcome, "gpp")


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("units", "days since 1700-01-01", "Days Since 1700-01-01"),
        ("unit", "days since 1700-01-01", "days since 1700-01-01"),
        ("calendar", "noleap", "no_leap"),
        ("calendar", "noleap", "365"),
    ],
)
def test_case_11_another_spelling_is_understood(
    sub: Submission, key: str, old: str, new: str
) -> None:
    file, path = gpp(sub)
    attributes = file.variables["time"].attributes
    attributes.pop("units" if key == "unit" else key)
    attributes[key] = new
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", words=(new,) if key != "unit" else ("unit",))
    holds(outcome, "gpp")


def calendarless(sub: Submission, years: tuple[int, int]) -> Outcome:
    """A submission of files that state no calendar, in days since shortly before."""
    world = World(years=years)
    shutil.rmtree(sub.folder)
    sub.years = years
    for name in ("ts", "gpp"):
        file = trendy(world, name)
        days = np.cumsum(np.tile(MONTH_DAYS, years[1] - years[0] + 1))
        file.variables["time"].values = days - 15.0
        file.variables["time"].attributes = {"units": f"days since {years[0]}-01-01"}
        sub.put(f"X/S3/X_S3_{name}.nc", file)
    sub.sources("gpp")
    return sub.harmonize()


def test_case_11_a_missing_calendar_is_noleap_where_the_lengths_prove_it(sub: Submission) -> None:
    outcome = calendarless(sub, (2001, 2005))
    outcome.accounted()
    is_kept(outcome, "gpp", words=("noleap",))
    holds(outcome, "gpp", World(years=(2001, 2005)).values("gpp"))


def test_case_11_a_missing_calendar_that_changes_nothing_is_assumed_with_a_warning(
    sub: Submission,
) -> None:
    outcome = calendarless(sub, (2001, 2003))
    outcome.accounted()
    is_kept(outcome, "gpp", "calendar-assumed", words=("calendar not stated",))
    holds(outcome, "gpp", World(years=(2001, 2003)).values("gpp"))


def test_case_11_a_missing_calendar_that_would_change_the_months_is_refused(
    sub: Submission,
) -> None:
    file, path = gpp(sub)
    # A century on, the calendars are 25 days apart, and stamps at any day tell none of them.
    stray = np.random.default_rng(5).uniform(-4, 4, WORLD.months)
    file.variables["time"].values = time_days(WORLD.years, origin="days since 1900-01-01") + stray
    file.variables["time"].attributes = {"units": "days since 1900-01-01"}
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "calendar", "noleap", "standard", rule="calendar-unclear")


def test_case_12_an_axis_of_other_years_is_not_shifted_by_counting(sub: Submission) -> None:
    file, path = gpp(sub)
    file.variables["time"].values = time_days((1999, 2000))
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "1999", "2000", "2001", "2002")


def test_case_13_a_doubled_and_a_missing_month_are_both_listed(sub: Submission) -> None:
    file, path = gpp(sub)
    days = file.variables["time"].values
    days[16] = days[15]
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "2002-04", "2002-05")


def test_case_13_a_period_that_is_not_covered_is_refused_and_others_pass(sub: Submission) -> None:
    file, path = gpp(sub)
    file.turn("time", slice(0, 12))
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "2002")


def test_case_14_annual_values_are_published_as_annual_only(sub: Submission) -> None:
    file, path = gpp(sub, annual=True)
    file.write(path)
    sub.frequencies = ("mon", "yr")
    outcome = sub.harmonize()
    bystander(outcome)
    is_kept(outcome, "gpp", words=("annual",))
    assert "gpp" not in outcome.held("mon")
    np.testing.assert_allclose(outcome.values("gpp", "yr"), WORLD.annual("gpp"), rtol=1e-6)


@pytest.mark.parametrize("state", [None, "mean", "end"])
def test_case_14_annual_pools_need_a_declared_meaning(sub: Submission, state: str | None) -> None:
    sub.put("X/S3/X_S3_cSoil.nc", trendy(WORLD, "cSoil", annual=True))
    sub.sources("cSoil")
    sub.frequencies = ("mon", "yr")
    if state is not None:
        sub.extra["annual_state"] = state
    outcome = sub.harmonize()
    bystander(outcome)
    assert "cSoil" not in outcome.held("mon")
    if state is None:
        is_kept(outcome, "cSoil", "annual-state-unknown", words=("annual_state",))
    else:
        is_fixed(outcome, "cSoil", "annual-state", words=(state,))
    np.testing.assert_allclose(outcome.values("cSoil", "yr"), WORLD.annual("cSoil"), rtol=1e-6)


def test_case_15_daily_values_without_leap_days_are_refused(sub: Submission) -> None:
    # 2004 has no 29 February, though the calendar is the standard one.
    years = (2003, 2004)
    world = World(years=years)
    shutil.rmtree(sub.folder)
    sub.years = years
    sub.put("X/S3/X_S3_ts.nc", trendy(world, "ts"))
    file, path = gpp(sub)
    of_day = np.repeat(np.arange(24), np.tile(MONTH_DAYS, 2).astype(int))
    stamps = [
        netCDF4.date2num(d, "days since 2003-01-01", "standard")
        for d in netCDF4.num2date(np.arange(731), "days since 2003-01-01", "standard")
        if (d.month, d.day) != (2, 29)
    ]
    file.variables["time"].values = np.array(stamps, dtype=float)
    file.variables["time"].attributes = {
        "units": "days since 2003-01-01",
        "calendar": "standard",
    }
    file.variables["gpp"].values = world.values("gpp")[of_day]
    file.write(path)
    outcome = sub.harmonize()
    outcome.accounted()
    np.testing.assert_array_equal(outcome.values("ts"), world.values("ts"))
    is_refused(outcome, "gpp", "X_S3_gpp.nc", "month", rule="time-daily")


def test_case_15_months_of_a_year_without_leap_day_are_the_same_months(sub: Submission) -> None:
    years = (2003, 2005)
    world = World(years=years)
    shutil.rmtree(sub.folder)
    sub.years = years
    sub.put("X/S3/X_S3_ts.nc", trendy(world, "ts"))
    file, path = gpp(sub)
    file = trendy(world, "gpp")
    # Days without 29 February, counted from a date before it, with the standard calendar's name.
    file.variables["time"].attributes = {"units": "days since 2003-01-01", "calendar": "standard"}
    file.variables["time"].values = time_days(years, origin="days since 2003-01-01")
    file.write(path)
    sub.variables.pop("ts")
    outcome = sub.harmonize()
    outcome.accounted()
    holds(outcome, "gpp", world.values("gpp"))
    assert months_of(outcome) == [(y, m) for y in range(2003, 2006) for m in range(1, 13)]


# --- coordinates: cases 16 to 23 -----------------------------------------------------------------

CITIES = {"Manaus": (-3.1, -60.0), "Moscow": (55.8, 37.6), "Alice Springs": (-23.7, 133.9)}


def at_cities(lat: Any, lon: Any, values: Any) -> dict[str, Any]:
    """Time series of the cells that hold three cities."""
    found = {}
    for city, (north, east) in CITIES.items():
        row = int(np.abs(lat - north).argmin())
        column = int(np.abs((lon - east + 180) % 360 - 180).argmin())
        found[city] = values[:, row, column]
    return found


def on_2_degrees(values: Any) -> Any:
    """Each cell of 12 degrees as the 6 x 6 standard cells it is made of."""
    return np.repeat(np.repeat(values, 6, axis=1), 6, axis=2)


def whole(tmp_path: Path, change: Callable[[NcFile], object]) -> Submission:
    """A submission whose files all have the same defect, on its way to the standard grid."""
    sub = Submission(tmp_path)
    sub.sources("ts", "gpp")
    for name in ("ts", "gpp"):
        file = trendy(WORLD, name)
        change(file)
        sub.put(f"X/S3/X_S3_{name}.nc", file)
    return sub


def test_case_16_rows_from_the_north_and_columns_from_0_to_360_are_turned(
    tmp_path: Path,
) -> None:
    before: dict[str, Any] = {}

    def turn(file: NcFile) -> None:
        file.turn("lat", slice(None, None, -1))
        lon = file.variables["lon"].values
        file.variables["lon"].values = lon % 360
        file.turn("lon", np.argsort(lon % 360))
        if "gpp" in file.variables:
            lat, lon, values = (file.variables[n].values for n in ("lat", "lon", "gpp"))
            before.update(at_cities(lat, lon, values))

    outcome = whole(tmp_path, turn).harmonize()
    outcome.accounted()
    is_fixed(outcome, "gpp", "latitude-order")
    for name in ("ts", "gpp"):
        holds(outcome, name, on_2_degrees(WORLD.values(name)))
    (store,) = outcome.stores
    with open_store(store, "mon") as ds:
        after = at_cities(ds["lat"].values, ds["lon"].values, ds["gpp"].values)
    assert len(before) == 3
    for city, series in before.items():
        assert np.isfinite(series).all(), city
        np.testing.assert_allclose(after[city], series, rtol=1e-6)


@pytest.mark.parametrize(
    ("lat", "lon"), [("latitude", "longitude"), ("lat_FULL", "lon_FULL"), ("nav_lat", "nav_lon")]
)
def test_case_17_other_names_and_another_order_of_dimensions(
    sub: Submission, lat: str, lon: str
) -> None:
    file, path = gpp(sub)
    for old, new in (("lat", lat), ("lon", lon)):
        file.rename(old, new)
        file.rename_dim(old, new)
        del file.variables[new].attributes["units"]
    field = file.variables["gpp"]
    field.dims, field.values = (lon, lat, "time"), field.values.transpose(2, 1, 0)
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", words=(lat,))
    holds(outcome, "gpp")


def test_case_17_two_latitudes_that_differ_are_refused(sub: Submission) -> None:
    file, path = gpp(sub)
    file.variables["latitude"] = NcVar(
        ("lat",), WORLD.lat + 1.0, {"units": "degrees_north", "standard_name": "latitude"}
    )
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "latitude", "lat")


def test_case_18_scalars_named_like_dimensions_are_left_out(sub: Submission) -> None:
    """The defect of the official template, on a global grid."""
    file, path = gpp(sub)
    for dim, name in (("lat", "latitude"), ("lon", "longitude")):
        file.rename(dim, name)
        file.variables[dim] = NcVar((), np.array(55.4849))
    file.format = "NETCDF3_64BIT_OFFSET"
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", words=("scalar", "55.4849"))
    holds(outcome, "gpp")


def test_case_18_the_official_template_is_opened_repaired_and_reported(
    tmp_path: Path, shared_dir: Path
) -> None:
    template = shared_dir / "data" / "CLASSIC.v2_Phase1b_Scen1_DK-Sor_Cal_Prior.nc"
    sub = Submission(tmp_path)
    sub.folder.mkdir()
    shutil.copy(template, sub.folder)
    outcome = sub.check()
    outcome.accounted()
    assert {r.variable for r in outcome.rows} >= {"gpp", "nep", "cSoil", "ts"}
    # What was mended is said, and why a site's days are still no global months.
    for row in outcome.rows:
        for word in ("scalar", "55.4849", "55.49", "11.6446", "11.64", "6574 steps of 1 days"):
            assert word in row.message
        assert row.outcome == "refused"
        assert {"file", "time-daily"} <= set(row.rules)


def test_case_19_jitter_of_single_precision_is_snapped_to_the_grid(sub: Submission) -> None:
    file, path = gpp(sub)
    random = np.random.default_rng(3)
    for name in ("lat", "lon"):
        var = file.variables[name]
        var.values = var.values + random.uniform(-5e-5, 5e-5, var.values.shape)
        var.dtype = "f4"
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", words=("grid",))
    holds(outcome, "gpp")
    (store,) = outcome.stores
    with open_store(store, "mon") as ds:
        np.testing.assert_allclose(ds["lon"].values, WORLD.lon, atol=1e-10)


def test_case_19_longitudes_without_a_regular_step_are_refused(sub: Submission) -> None:
    file, path = gpp(sub)
    lon = file.variables["lon"].values
    lon[3::4] += 2.5
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "lon")


def sphere_file(lat: Any, lon: Any, area: Any) -> tuple[NcFile, Any]:
    """gpp on any rows and columns: land in two bands, and its monthly totals [kg s-1]."""
    summer = np.cos(2 * np.pi * (np.arange(24) % 12 - 6) / 12)[:, None, None]
    field = np.broadcast_to(
        3.2e-8 * (1 + 0.5 * summer * np.sin(np.deg2rad(lat))[:, None]) * np.ones(lon.size),
        (24, lat.size, lon.size),
    ).copy()
    field *= 1 + 0.2 * np.sin(np.deg2rad(3 * lon))
    field[:, :, np.abs((lon + 180) % 360 - 180) > 55] = np.nan
    field[:, lat < -60] = np.nan
    field = field.astype(np.float32).astype(float)
    total = np.nansum(field * area, axis=(1, 2))
    file = trendy(WORLD, "gpp", values=field)
    file.variables["lat"].values, file.variables["lon"].values = lat, lon
    return file, total


def pole_centred() -> tuple[Any, Any, Any]:
    lat, lon = np.linspace(-90, 90, 19), np.arange(36) * 10.0
    edges = np.clip(np.append(lat - 5, 95), -90, 90)
    rows = np.diff(np.sin(np.deg2rad(edges)))
    return lat, lon, 6.371e6**2 * np.deg2rad(10) * rows[:, None] * np.ones(36)


def gaussian() -> tuple[Any, Any, Any]:
    nodes, weights = np.polynomial.legendre.leggauss(32)
    lon = np.arange(64) * 5.625
    area = 6.371e6**2 * np.deg2rad(5.625) * weights[:, None] * np.ones(64)
    return np.rad2deg(np.arcsin(nodes)), lon, area


@pytest.mark.parametrize("grid", [pole_centred, gaussian])
def test_case_20_poles_and_gaussian_rows_keep_the_area_and_the_total(
    tmp_path: Path, grid: Callable[[], tuple[Any, Any, Any]]
) -> None:
    lat, lon, area = grid()
    assert area.sum() == pytest.approx(4 * np.pi * 6.371e6**2, rel=1e-9)
    sub = Submission(tmp_path)
    sub.sources("gpp")
    file, total = sphere_file(lat, lon, area)
    sub.put("X/S3/X_S3_gpp.nc", file)
    outcome = sub.harmonize()
    outcome.accounted()
    (store,) = outcome.stores
    with open_store(store, "mon") as ds:
        areas = ds["areacella"].values
        land = ds["sftlf"].values / 100
        got = np.nansum(ds["gpp"].values.astype(float) * land * areas, axis=(1, 2))
        assert areas.sum() == pytest.approx(4 * np.pi * 6.371e6**2, rel=1e-6)
    np.testing.assert_allclose(got, total, rtol=1e-3)


def test_case_21_half_a_cell_beside_the_coastline_is_refused(sub: Submission) -> None:
    fine = World(step_deg=2.0)
    shutil.rmtree(sub.folder)
    sub.put("X/S3/X_S3_ts.nc", trendy(fine, "ts"))
    sub.put("X/S3/X_S3_gpp.nc", trendy(fine, "gpp"))
    sub.sources("gpp")
    good = sub.harmonize(twice=False)
    assert good.held() == {"ts", "gpp"}
    for name in ("ts", "gpp"):
        file = trendy(fine, name)
        file.variables["lon"].values = fine.lon - 1.0
        sub.put(f"X/S3/X_S3_{name}.nc", file)
    shutil.rmtree(sub.collection)
    outcome = sub.harmonize()
    outcome.accounted()
    is_refused(outcome, "gpp", "land mask", "half", "cell")
    assert not outcome.stores


def land_vector(file: NcFile, *, located: bool) -> None:
    """The field as a list of land cells, as models write it that know only land."""
    rows, columns = np.nonzero(WORLD.land)
    file.variables["gpp"].dims = ("time", "land")
    file.variables["gpp"].values = file.variables["gpp"].values[:, rows, columns]
    del file.variables["lat"], file.variables["lon"]
    if located:
        for name, values in (("lat", WORLD.lat[rows]), ("lon", WORLD.lon[columns])):
            unit = "degrees_north" if name == "lat" else "degrees_east"
            file.variables[name] = NcVar(("land",), values, {"units": unit})


def test_case_22_a_list_of_land_cells_is_put_on_the_map(sub: Submission) -> None:
    file, path = gpp(sub)
    land_vector(file, located=True)
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", words=(str(int(WORLD.land.sum())),))
    holds(outcome, "gpp")


def test_case_22_a_list_of_land_cells_without_places_is_refused(sub: Submission) -> None:
    file, path = gpp(sub)
    land_vector(file, located=False)
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "lat")


def test_case_23_a_grid_that_stops_in_the_south_is_padded_with_missing(tmp_path: Path) -> None:
    outcome = whole(tmp_path, lambda file: file.turn("lat", WORLD.lat > -60)).harmonize()
    outcome.accounted()
    is_fixed(outcome, "gpp", words=("missing",))
    for name in ("ts", "gpp"):
        holds(outcome, name, on_2_degrees(WORLD.values(name)))


# --- values: cases 24 to 30 ----------------------------------------------------------------------


@pytest.mark.parametrize("sentinel", [-99999.0, 1e20, 9.969209968386869e36, np.nan])
def test_case_24_fills_that_no_attribute_names_are_found(sub: Submission, sentinel: float) -> None:
    file, path = gpp(sub)
    field = file.variables["gpp"]
    field.values, field.fill = np.where(np.isnan(field.values), sentinel, field.values), None
    del field.attributes["_FillValue"]
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    holds(outcome, "gpp")
    if sentinel in (-99999.0, 1e20):
        cells = int((~WORLD.land).sum())
        is_fixed(outcome, "gpp", "fill", words=(f"{sentinel:g}", str(cells)))


def test_case_24_zeros_over_the_sea_are_masked_with_the_land_fraction(sub: Submission) -> None:
    file, path = gpp(sub)
    field = file.variables["gpp"]
    field.values = np.nan_to_num(field.values)
    file.write(path)
    sub.put("X/S3/X_S3_sftlf.nc", land_fraction_file(WORLD))
    sub.map_extra["land_fraction"] = "sftlf"
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", "sea")
    assert outcome.row("sftlf").rules == ("fractions",)
    holds(outcome, "gpp")


def test_case_24_zeros_over_a_part_of_the_sea_for_a_month_are_damage(sub: Submission) -> None:
    file, path = gpp(sub, storage={"contiguous": True})
    file.write(path)
    # A page of the file lost: zeros over land, which could be, and over the sea beside it.
    first = np.float32(WORLD.values("gpp")[5][WORLD.land][0]).tobytes()
    at = path.read_bytes().find(first)
    damage(path, lambda data: data.__setitem__(slice(at, at + 512), bytes(512)))
    sub.put("X/S3/X_S3_sftlf.nc", land_fraction_file(WORLD))
    sub.map_extra["land_fraction"] = "sftlf"
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "0 over the sea in some steps", rule="sea-changes")


def test_case_24_a_zarr_v2_fill_value_of_zero_is_no_missing_value(sub: Submission) -> None:
    import xarray as xr

    file, path = gpp(sub)
    # Winter without any growth: zeros that are values.
    values = WORLD.values("gpp").copy()
    quiet = np.zeros(values.shape, dtype=bool)
    quiet[0, WORLD.lat > 60] = WORLD.land[WORLD.lat > 60]
    values[quiet] = 0.0
    file.variables["gpp"].values = values
    file.write(path)
    with xr.open_dataset(path, decode_cf=False) as ds:
        del ds["gpp"].attrs["_FillValue"]
        ds["gpp"].attrs["missing_value"] = np.float32(-99999.0)
        ds["gpp"].encoding = {"fill_value": 0.0}
        ds.to_zarr(path.with_suffix(".zarr"), zarr_format=2, consolidated=True)
    path.unlink()
    sub.patterns = ("**/*.nc", "**/*.zarr")
    outcome = sub.harmonize()
    outcome.accounted()
    holds(outcome, "gpp", values)


@pytest.mark.parametrize(
    "units",
    ["kgC m-2 s-1", "kg C m-2 s-1", "kg m-2\u200b s-1", "kg m^{-2} s^{-1}", "KgC/m2.s"],
)
def test_case_25_units_of_another_spelling_are_known(sub: Submission, units: str) -> None:
    file, path = gpp(sub, units=units)
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", "units")
    holds(outcome, "gpp")


@pytest.mark.parametrize("declared", [False, True])
def test_case_25_no_units_are_refused_unless_declared(sub: Submission, declared: bool) -> None:
    file, path = gpp(sub)
    file.variables["gpp"].attributes["units"] = ""
    file.write(path)
    if declared:
        sub.sources(gpp={"source": "gpp", "units": "kg m-2 s-1"})
    outcome = sub.harmonize()
    bystander(outcome)
    if declared:
        holds(outcome, "gpp")
    else:
        is_refused(outcome, "gpp", "no units", "units")


def test_case_26_per_month_is_converted_with_the_length_of_each_month(sub: Submission) -> None:
    seconds = np.tile(MONTH_DAYS, 2)[:, None, None] * 86400.0
    file, path = gpp(sub, values=WORLD.values("gpp") * seconds * 1e3, units="gC m-2 month-1")
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", "units", words=("month",))
    holds(outcome, "gpp")
    february = outcome.values("gpp")[1]
    np.testing.assert_allclose(february, WORLD.values("gpp")[1], rtol=1e-6)


def test_case_26_millimetres_are_kilograms_of_water(sub: Submission) -> None:
    per_day = WORLD.values("tran") * 86400
    sub.put("X/S3/X_S3_tran.nc", trendy(WORLD, "tran", values=per_day, units="mm/day"))
    sub.sources("tran")
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "tran", "units")
    holds(outcome, "tran")


@pytest.mark.parametrize(("factor", "words"), [(1e3, ("1000", "g")), (86400.0, ("86400", "day"))])
def test_case_26_values_that_do_not_fit_their_units_are_refused_with_the_factor(
    sub: Submission, factor: float, words: tuple[str, ...]
) -> None:
    file, path = gpp(sub, values=WORLD.values("gpp") * factor)
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", *words)


def test_case_26_a_leaf_area_in_percent_is_refused(sub: Submission) -> None:
    sub.put("X/S3/X_S3_lai.nc", trendy(WORLD, "lai", values=WORLD.values("lai") * 100))
    sub.sources("lai")
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "lai", "100", "percent")


def test_case_27_nee_is_turned_round_into_nep(sub: Submission) -> None:
    values = -WORLD.values("nep")
    sub.put("X/S3/X_S3_nee.nc", trendy(WORLD, "nep", called="nee", values=values))
    sub.sources(nep={"source": "nee"})
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "nep", "sign")
    holds(outcome, "nep")


def test_case_27_nep_with_the_sign_of_nee_is_refused(sub: Submission) -> None:
    file = trendy(WORLD, "nep", values=-WORLD.values("nep"))
    file.variables["nep"].attributes["standard_name"] = (
        "surface_net_downward_mass_flux_of_carbon_dioxide_expressed_as_carbon_due_to_all_land_"
        "processes_excluding_anthropogenic_land_use_change"
    )
    sub.put("X/S3/X_S3_nep.nc", file)
    sub.sources("nep")
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "nep", "winter", "summer", "sign")


COVER = np.array([0.5, 0.3, 0.1])
"""Share of three plant types in every land cell; a tenth is bare."""


def by_plant_type(sub: Submission) -> Any:
    """gppft with the plant types' own values; returns the mean over the cell's land."""
    parts = np.array([1.6, 0.5, 0.5])
    values = WORLD.values("gpp")[:, None] * parts[None, :, None, None]
    file, path = gpp(sub)
    file.variables["gpp"].dims = ("time", "pft", "lat", "lon")
    file.variables["gpp"].values = values
    file.write(path)
    return (values * COVER[None, :, None, None]).sum(axis=1)


def cover_file(share: Any) -> NcFile:
    file = trendy(WORLD, "gpp", called="landCoverFrac", units="1")
    var = file.variables["landCoverFrac"]
    var.dims = ("time", "pft", "lat", "lon")
    shape = (WORLD.months, share.size, *WORLD.land.shape)
    var.values = np.broadcast_to(share[None, :, None, None], shape).copy()
    var.values[..., ~WORLD.land] = np.nan
    return file


def test_case_28_plant_types_are_averaged_with_their_cover(sub: Submission) -> None:
    wanted = by_plant_type(sub)
    sub.put("X/S3/X_S3_landCoverFrac.nc", cover_file(COVER))
    sub.variables["gpp"] = {"source": "gpp", "cover": "landCoverFrac"}
    outcome = sub.harmonize()
    bystander(outcome)
    is_fixed(outcome, "gpp", words=("landCoverFrac",))
    holds(outcome, "gpp", wanted, rtol=1e-5)


def test_case_28_plant_types_without_cover_are_refused(sub: Submission) -> None:
    by_plant_type(sub)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "pft", "cover")


def test_case_28_cover_of_more_than_all_is_refused(sub: Submission) -> None:
    by_plant_type(sub)
    sub.put("X/S3/X_S3_landCoverFrac.nc", cover_file(COVER * 1.5))
    sub.variables["gpp"] = {"source": "gpp", "cover": "landCoverFrac"}
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "landCoverFrac", "1.35")


def test_case_28_of_seven_variables_the_named_one_is_taken(sub: Submission) -> None:
    file, path = gpp(sub)
    for i, other in enumerate(("gpp_q05", "gpp_q25", "gpp_q75", "gpp_q95", "gpp_min", "gpp_max")):
        var = file.copy().variables["gpp"]
        var.values = var.values * (0.7 + 0.1 * i)
        file.variables[other] = var
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    holds(outcome, "gpp")
    others = {r.variable for r in outcome.of_file("X_S3_gpp.nc")} - {"gpp"}
    assert len(others) == 6


@pytest.mark.parametrize("declared", [False, True])
def test_case_28_another_name_in_the_file_needs_a_declaration(
    sub: Submission, declared: bool
) -> None:
    sub.put("X/S3/X_S3_nep.nc", trendy(WORLD, "nep", called="npp-rh+ld"))
    sub.sources(nep={"source": "npp-rh+ld" if declared else "nep"})
    outcome = sub.harmonize()
    bystander(outcome)
    if declared:
        holds(outcome, "nep")
    else:
        is_refused(outcome, "nep", "nep")
        assert "npp-rh+ld" in {r.variable for r in outcome.rows} or "npp-rh+ld" in outcome.output


def partial_land(sub: Submission) -> Any:
    """gpp per cell over partly land cells; returns (fraction, values per land area)."""
    fraction = np.where(WORLD.land, 0.55 + 0.4 * np.abs(np.sin(np.deg2rad(WORLD.lon))), 0.0)
    file = land_fraction_file(WORLD)
    file.variables["sftlf"].values = fraction
    sub.put("X/S3/X_S3_sftlf.nc", file)
    sub.map_extra["land_fraction"] = "sftlf"
    return fraction


def yearly_pg(values: Any, area: Any) -> dict[int, float]:
    """Global total of every year in Pg."""
    seconds = np.tile(MONTH_DAYS, 2) * 86400
    monthly = np.nansum(values * area, axis=(1, 2)) * seconds / 1e12
    return {
        y: round(float(monthly[12 * i : 12 * i + 12].sum()), 3) for i, y in ((0, 2001), (1, 2002))
    }


@pytest.mark.parametrize("per", ["land", "cell"])
def test_case_29_the_groups_own_totals_tell_land_from_cell(sub: Submission, per: str) -> None:
    fraction = partial_land(sub)
    stated = WORLD.values("gpp") * 1.2  # what is in the file
    file, path = gpp(sub, values=stated)
    file.write(path)
    sub.variables["gpp"] = {"source": "gpp", "per": per}
    right = WORLD.area * (fraction if per == "land" else 1.0)
    wrong = WORLD.area * (1.0 if per == "land" else fraction)
    sub.extra["totals"] = {"gpp": yearly_pg(stated, right)}
    outcome = sub.harmonize()
    bystander_with_land(outcome)
    assert outcome.row("gpp").outcome in ("accepted", "fixed")
    with np.errstate(invalid="ignore", divide="ignore"):
        wanted = stated if per == "land" else stated / fraction
    holds(outcome, "gpp", wanted, rtol=1e-5)
    sub.extra["totals"] = {"gpp": yearly_pg(stated, wrong)}
    other = "cell" if per == "land" else "land"
    outcome = sub.harmonize()
    bystander_with_land(outcome)
    (row,) = outcome.of_variable("gpp")
    assert row.outcome == "refused" or f"per {other}" in row.message or other in row.message, row


def bystander_with_land(outcome: Outcome) -> None:
    outcome.accounted()
    np.testing.assert_array_equal(outcome.values("ts"), WORLD.values("ts"))


def test_case_29_a_field_of_zeros_is_refused_as_constant(sub: Submission) -> None:
    file, path = gpp(sub, values=WORLD.values("gpp") * 0)
    file.write(path)
    outcome = sub.harmonize()
    bystander(outcome)
    is_refused(outcome, "gpp", "constant")


def test_case_30_what_can_be_derived_is_and_says_from_what(sub: Submission) -> None:
    for name in ("gpp", "ra", "rh", "evspsbl"):
        sub.put(f"X/S3/X_S3_{name}.nc", trendy(WORLD, name))
    sub.sources("gpp", "ra", "rh", "evspsbl")
    sub.variables |= {
        "reco": {"derive": "ra + rh"},
        "nep": {"derive": "gpp - ra - rh"},
        "hfls": {"derive": f"{LATENT_J_KG:.0f} * evspsbl"},
    }
    outcome = sub.harmonize()
    bystander(outcome)
    for name, wanted in (
        ("reco", WORLD.values("ra") + WORLD.values("rh")),
        ("nep", WORLD.values("gpp") - WORLD.values("ra") - WORLD.values("rh")),
        ("hfls", WORLD.values("evspsbl") * LATENT_J_KG),
    ):
        is_fixed(outcome, name, "derived")
        np.testing.assert_allclose(
            outcome.values(name), wanted, rtol=1e-5, atol=1e-6 * np.nanmax(np.abs(wanted))
        )
    (store,) = outcome.stores
    with open_store(store, "mon") as ds:
        assert ds["reco"].attrs["derived_from"] == "ra + rh"
        assert "2500000" in ds["hfls"].attrs["derived_from"]
    assert "2500000" in outcome.row("hfls").message


def test_case_30_what_cannot_be_derived_is_refused_alone(sub: Submission) -> None:
    for name in ("gpp", "cLeaf"):
        sub.put(f"X/S3/X_S3_{name}.nc", trendy(WORLD, name))
    for name in ("ra", "rh"):
        sub.put(f"X/S3/X_S3_{name}.nc", trendy(WORLD, name, annual=True))
    sub.put("X/S3/X_S3_cWood.nc", trendy(WORLD, "cStem", called="cWood"))
    layers = trendy(WORLD, "mrsos", called="mrsol")
    layers.variables["mrsol"].dims = ("time", "depth", "lat", "lon")
    layers.variables["mrsol"].values = np.repeat(layers.variables["mrsol"].values[:, None], 3, 1)
    sub.put("X/S3/X_S3_mrsol.nc", layers)
    sub.sources("gpp", "ra", "rh", "cLeaf", cStem={"source": "cWood"}, mrsos={"source": "mrsol"})
    sub.variables |= {
        "nep": {"derive": "gpp - ra - rh"},
        "cLiveBioAbove": {"derive": "cLeaf + cStem"},
    }
    sub.frequencies = ("mon", "yr")
    outcome = sub.harmonize()
    bystander(outcome)
    holds(outcome, "gpp")
    is_refused(outcome, "nep", "annual")
    is_refused(outcome, "cLiveBioAbove", "wood")
    is_refused(outcome, "mrsos", "depth")


def test_case_30_wood_that_is_declared_above_ground_gives_biomass(sub: Submission) -> None:
    sub.put("X/S3/X_S3_cLeaf.nc", trendy(WORLD, "cLeaf"))
    sub.put("X/S3/X_S3_cWood.nc", trendy(WORLD, "cStem", called="cWood"))
    sub.sources("cLeaf", cStem={"source": "cWood"})
    sub.variables["cLiveBioAbove"] = {"derive": "cLeaf + cStem"}
    sub.extra["wood"] = "above-ground"
    outcome = sub.harmonize()
    bystander(outcome)
    wanted = WORLD.values("cLeaf") + WORLD.values("cStem")
    np.testing.assert_allclose(outcome.values("cLiveBioAbove"), wanted, rtol=1e-6)


def test_case_30_a_changed_file_makes_a_new_version_and_the_old_one_stays(
    sub: Submission,
) -> None:
    file, path = gpp(sub)
    file.write(path)
    first = sub.harmonize()
    holds(first, "gpp")
    changed = WORLD.values("gpp") * 0.98
    trendy(WORLD, "gpp", values=changed).write(path)
    second = sub.harmonize()
    found = []
    for store in sorted(p for p in sub.collection.rglob("*.zarr") if (p / "zarr.json").is_file()):
        with open_store(store, "mon") as ds:
            found.append(ds["gpp"].values.astype(float))
    assert len(found) == 2
    for wanted in (WORLD.values("gpp"), changed):
        assert any(np.allclose(got, wanted, rtol=1e-6, equal_nan=True) for got in found)
    assert second.row("gpp").outcome in ("accepted", "fixed")


def test_all_thirty_cases_are_here() -> None:
    """A case that is lost in an edit is missed."""
    names = [n for n in globals() if n.startswith("test_case_")]
    assert {int(n.split("_")[2]) for n in names} == set(range(1, 31))
