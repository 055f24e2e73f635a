"""Time axes as groups write them: what is mended, on what evidence, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from native_files import field, write_native

from callmip_global.errors import DataError
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.native import HeaderError, Inventory, build_timeline, scan
from callmip_global.harmonize.rules import RULES
from callmip_global.harmonize.times import TimeAxis, read_axis
from callmip_global.timeaxis import TIME_UNITS, MonthAxis, month_axis

CARBON = {"units": "kg m-2 s-1"}
MONTHS_1700 = np.arange(3900)


def axis_of(
    values: Any,
    units: str | None,
    calendar: str | None = None,
    *,
    where: str = "model.nc",
    declared: Declared | None = None,
    name: str = "time",
    unit: str | None = None,
    bounds: Any = None,
) -> TimeAxis:
    attributes = {"units": units, "calendar": calendar, "unit": unit}
    attributes = {k: v for k, v in attributes.items() if v is not None}
    ds = xr.Dataset(coords={name: (name, np.asarray(values, dtype=np.float64), attributes)})
    if bounds is not None:
        ds["time_bnds"] = (("time", "two"), np.asarray(bounds, dtype=np.float64))
        ds["time"].attrs["bounds"] = "time_bnds"
    found = read_axis(ds, where, declared or Declared())
    assert found is not None
    assert {rule for rule, _ in found.notes} <= set(RULES)
    return found


def refusal(*args: Any, **kwargs: Any) -> tuple[str, str]:
    """(rule, message) of the one problem."""
    with pytest.raises(DataError) as caught:
        axis_of(*args, **kwargs)
    (problem,) = caught.value.problems
    assert problem.rule in RULES
    assert RULES[problem.rule].kind == "refuse"
    return problem.rule, str(problem)


def rules(found: TimeAxis) -> list[str]:
    return [rule for rule, _ in found.notes]


@given(
    st.sampled_from(["noleap", "standard", "360_day"]),
    st.tuples(st.integers(1600, 2100), st.integers(1, 12)),
    st.integers(1, 40),
    st.sampled_from(["days", "hours", "Days", "seconds"]),
    st.sampled_from(["1850-01-01", "1850-1-1", "1850-Jan-1st", "1/1/1850", "1850-01-01 00:00:00"]),
)
def test_middles_are_read_however_units_are_spelt(
    calendar: str, first: tuple[int, int], size: int, unit: str, origin: str
) -> None:
    axis = MonthAxis(calendar, first, size)
    scale = {"hours": 24.0, "seconds": 86400.0}.get(unit, 1.0)
    found = axis_of(axis.time * scale, f"{unit} since {origin}", calendar)
    assert found.axis == axis
    plain = unit != "Days" and origin.startswith("1850-01-01")
    assert rules(found) == ([] if plain else ["time-units"])


@given(st.integers(1600, 2000), st.integers(3, 40), st.floats(-0.29, 0.29))
def test_months_since_a_date_are_decoded_within_a_third_of_a_month_and_no_further(
    year: int, size: int, off: float
) -> None:
    counts = np.arange(size) + 0.5
    counts[1] += off
    found = axis_of(counts, f"months since {year}-01-01", "noleap")
    assert found.axis == MonthAxis("noleap", (year, 1), size)
    assert rules(found) == ["time-counting"]
    assert str(size) in found.notes[0][1]


# units, values, calendar -> first month, rules
SEEN: dict[str, tuple[str, Any, str | None, tuple[int, int], list[str]]] = {
    "CABLE-POP": (
        "months since 1700-1-16",
        MONTHS_1700,
        "noleap",
        (1700, 1),
        ["time-units", "time-counting"],
    ),
    "VISIT v12": (
        "months since 1860-01-01",
        np.arange(24) + 0.5,
        "noleap",
        (1860, 1),
        ["time-counting"],
    ),
    "VISIT": (
        "years since AD 0-Jan-1st (double)",
        1700.042 + np.arange(36) / 12,
        "noleap",
        (1700, 1),
        ["time-units", "time-counting"],
    ),
    "absolute months": (
        "month as %Y%m.%f",
        [170001.5, 170002.5],
        "noleap",
        (1700, 1),
        ["time-counting"],
    ),
    "absolute days": (
        "day as %Y%m%d.%f",
        [17001216.5, 17010116.5],
        "noleap",
        (1700, 12),
        ["time-counting"],
    ),
    "absolute years": (
        "year as %Y.%f",
        1700 + (np.arange(24) + 0.5) / 12,
        "noleap",
        (1700, 1),
        ["time-counting"],
    ),
    "starts": ("days since 1700-01-01", [0, 31, 59], "noleap", (1700, 1), ["time-stamps"]),
    "ends": ("days since 1700-01-01", [30, 58, 89], "noleap", (1700, 1), ["time-stamps"]),
    "the 16th": ("days since 1700-01-01", [15, 46, 74], "noleap", (1700, 1), []),
    "no_leap": ("days since 1700-01-01", [15, 46], "no_leap", (1700, 1), ["calendar-spelling"]),
    "365": ("days since 1700-01-01", [15, 46], "365", (1700, 1), ["calendar-spelling"]),
    "blank": ("days since 1700-01-01", [15, 46], "gregorian ", (1700, 1), ["calendar-spelling"]),
    "NoLeap": ("days since 1700-01-01", [15, 46], "NoLeap", (1700, 1), []),
    "ELM": ("days since 0001-01-01", 365 * 1699 + np.array([15, 46]), "noleap", (1700, 1), []),
    "year 0": ("days since 0000-01-01", 365 * 1700 + np.array([15, 46]), "noleap", (1700, 1), []),
}


@pytest.mark.parametrize("group", SEEN)
def test_axes_that_groups_wrote_are_read_and_what_was_mended_is_recorded(group: str) -> None:
    units, values, calendar, first, wanted = SEEN[group]
    found = axis_of(values, units, calendar)
    assert found.axis.first == first
    assert found.axis.size == len(values)
    assert rules(found) == wanted


def test_a_year_0_of_the_standard_calendar_is_read_as_cdo_does_with_a_warning() -> None:
    # 1700 years of the Julian-Gregorian calendar from year 0: 1700 * 365 + 426 leap days - 10.
    start = 1700 * 365 + 425 - 10 + 0.0
    middles = start + np.array([15.0, 46.0, 74.0])
    found = axis_of(middles, "days since 0000-01-01", "standard")
    assert found.axis.first == (1700, 1)
    assert rules(found) == ["time-epoch"]


def test_unit_stands_in_for_units() -> None:
    found = axis_of([15, 46], None, "noleap", unit="days since 1700-01-01")
    assert found.axis.first == (1700, 1)
    assert rules(found) == ["time-units"]


def test_time_counter_is_time() -> None:
    found = axis_of([15, 46], "days since 1700-01-01", "noleap", name="time_counter")
    assert found.dim == "time_counter"
    assert rules(found) == ["time-name"]


def test_a_dummy_time_gives_way_to_the_variable_that_says_since_when_it_counts() -> None:
    axis = MonthAxis("standard", (2003, 1), 264)
    days = axis.time - MonthAxis("standard", (2003, 1), 1).bounds[0, 0]
    told = {"units": "d", "long_name": "days since 01/01/2003"}
    ds = xr.Dataset(
        {"Time": ("time", days, told)},
        coords={"time": ("time", np.arange(1.0, 265), {"units": ""})},
    )
    found = read_axis(ds, "CARDAMOM.nc", Declared())
    assert found is not None
    assert found.axis == axis
    assert found.dim == "time"
    assert rules(found)[0] == "time-variable"
    assert "Time (days since 01/01/2003) in place of time" in found.notes[0][1]
    # 3/4/2003 may be the third of April or the fourth of March.
    ds["Time"].attrs["long_name"] = "days since 03/04/2003"
    with pytest.raises(DataError, match=r"time\.units: found ''"):
        read_axis(ds, "CARDAMOM.nc", Declared())


# --- calendars that are not stated ---------------------------------------------------------------


def test_a_calendar_not_stated_is_proven_by_the_lengths_of_the_months() -> None:
    days = np.asarray(month_axis((1700, 2024), "noleap").time)
    found = axis_of(days, TIME_UNITS)
    assert found.axis == month_axis((1700, 2024), "noleap")
    assert rules(found) == ["calendar-proven"]
    assert "noleap" in found.notes[0][1]
    true = axis_of(month_axis((1700, 2024), "standard").time, TIME_UNITS)
    assert true.axis == month_axis((1700, 2024), "standard")
    assert rules(true) == ["calendar-proven"]


def test_even_steps_of_a_twelfth_of_365_days_prove_a_calendar_without_leap_days() -> None:
    days = (np.arange(3900) + 0.5) * 365 / 12
    found = axis_of(days, "days since 1700-01-01")
    assert found.axis == month_axis((1700, 2024), "noleap")
    assert "calendar-proven" in rules(found)


def test_a_calendar_that_nothing_proves_is_the_standard_one_with_a_warning() -> None:
    # One year without a leap day is the same in both.
    months = month_axis((2001, 2001), "noleap")
    found = axis_of(months.time - months.bounds[0, 0], "days since 2001-01-01")
    assert found.axis == month_axis((2001, 2001), "standard")
    assert rules(found) == ["calendar-assumed"]
    assert RULES["calendar-assumed"].kind == RULES["calendar-proven"].kind == "warn"


def test_steps_of_30_days_prove_the_calendar_of_360_days() -> None:
    found = axis_of(15 + 30 * np.arange(24), "days since 2001-01-01")
    assert found.axis == month_axis((2001, 2002), "360_day")


def test_a_declared_calendar_is_used_where_none_is_stated_and_may_not_contradict() -> None:
    days = month_axis((2001, 2001), "noleap").time
    found = axis_of(days, TIME_UNITS, declared=Declared(calendar="noleap"))
    assert found.axis.calendar == "noleap"
    assert rules(found) == ["calendar-declared"]
    rule, _ = refusal(days, TIME_UNITS, "standard", declared=Declared(calendar="noleap"))
    assert rule == "calendar-differs"


def test_a_wrong_calendar_is_refused_and_the_fitting_one_named() -> None:
    days = month_axis((1700, 2024), "noleap").bounds[:, 0]
    rule, message = refusal(days, TIME_UNITS, "standard")
    assert rule == "time-gaps"
    assert "fit the calendar noleap" in message
    assert "ncatted" in message


# --- bounds and stamps ---------------------------------------------------------------------------


def test_bounds_without_length_are_left_out_and_the_stamps_used() -> None:
    axis = month_axis((2001, 2001), "noleap")
    found = axis_of(axis.time, TIME_UNITS, "noleap", bounds=np.stack([axis.time] * 2, axis=1))
    assert found.axis == axis
    assert rules(found) == ["time-bounds"]
    assert rules(axis_of(axis.time, TIME_UNITS, "noleap", bounds=axis.bounds)) == []


def test_bounds_of_which_some_are_wrong_are_refused() -> None:
    axis = month_axis((2001, 2001), "noleap")
    bounds = axis.bounds.copy()
    bounds[4, 1] = bounds[4, 0]
    rule, message = refusal(axis.time, TIME_UNITS, "noleap", bounds=bounds)
    assert rule == "time-bounds-wrong"
    assert "step 5" in message


def test_stamps_outside_their_bounds_are_refused() -> None:
    axis = month_axis((2001, 2001), "noleap")
    rule, message = refusal(axis.time + 365, TIME_UNITS, "noleap", bounds=axis.bounds)
    assert rule == "time-bounds-wrong"
    assert "12 stamps outside their bounds" in message


def test_stamps_at_the_first_of_february_to_january_need_bounds_or_a_declaration() -> None:
    axis = month_axis((1700, 1701), "noleap")
    ends = axis.bounds[:, 1]
    rule, message = refusal(ends, TIME_UNITS, "noleap")
    assert rule == "time-ends-unclear"
    assert 'start: "1700-01" for ends' in message
    found = axis_of(ends, TIME_UNITS, "noleap", declared=Declared(start=(1700, 1)))
    assert found.axis == axis
    assert rules(found) == ["time-ends"]
    starts = axis_of(ends, TIME_UNITS, "noleap", declared=Declared(start=(1700, 2)))
    assert starts.axis.first == (1700, 2)
    bounded = axis_of(ends, TIME_UNITS, "noleap", bounds=axis.bounds)
    assert bounded.axis == axis
    assert rules(bounded) == ["time-stamps"]


# --- no units ------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [None, "", "1", "months"])
def test_a_count_without_units_needs_the_declared_start(units: str | None) -> None:
    count = np.arange(1, 265)
    rule, message = refusal(count, units, "standard")
    assert rule == "time-units-missing"
    assert 'start: "YYYY-MM"' in message
    found = axis_of(count, units, "standard", declared=Declared(start=(2003, 1)))
    assert found.axis == MonthAxis("standard", (2003, 1), 264)
    assert rules(found) == ["time-declared"]
    assert "declared" in found.notes[0][1]
    assert "264 months from 2003-01 to 2024-12" in found.notes[0][1]


def test_units_that_mean_something_else_are_not_counted_from_the_declared_start() -> None:
    declared = Declared(start=(2003, 1))
    assert refusal([1, 2, 3], "K", declared=declared)[0] == "time-units-missing"
    assert refusal([1, 2, 4], "", declared=declared)[0] == "time-gaps"
    assert refusal([1, 2, 3], "days", declared=declared)[0] == "time-units-missing"


def test_decimal_years_without_units_must_begin_in_the_declared_year() -> None:
    years = 1700 + (np.arange(24) + 0.5) / 12
    found = axis_of(years, None, "noleap", declared=Declared(start=(1700, 1)))
    assert found.axis == month_axis((1700, 1701), "noleap")
    rule, _ = refusal(years, None, "noleap", declared=Declared(start=(1701, 1)))
    assert rule == "time-units-missing"


def test_a_count_in_an_annual_file_is_one_of_years() -> None:
    declared = Declared(start=(1700, 1))
    found = axis_of(np.arange(10), None, "noleap", where="X_S3_cSoil_Annual.nc", declared=declared)
    assert found.axis == month_axis((1700, 1709), "noleap", "yr")
    said = axis_of(np.arange(10), "years", "noleap", declared=declared)
    assert said.axis.frequency == "yr"


# --- what is refused -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "between months": (
        {"values": [0.1, 1.5, 2.9], "units": "months since 2001-01-01"},
        "time-fraction",
        "fall between",
    ),
    "month 13": (
        {"values": [200012, 200013], "units": "month as %Y%m.%f", "calendar": "noleap"},
        "time-undecodable",
        "month 13 in 200013",
    ),
    "no date": (
        {"values": [1, 2], "units": "days since banana", "calendar": "noleap"},
        "time-undecodable",
        "banana",
    ),
    "two dates": (
        {"values": [15, 46], "units": "days since 3/4/1900", "calendar": "noleap"},
        "time-undecodable",
        "3/4/1900",
    ),
    "doubled and missing": (
        {"values": [15, 46, 46, 105], "units": "days since 2001-01-01", "calendar": "noleap"},
        "time-gaps",
        "months twice or more: 2001-02; months missing: 2001-03",
    ),
    "out of order": (
        {"values": [46, 15, 74], "units": "days since 2001-01-01", "calendar": "noleap"},
        "time-gaps",
        "out of order",
    ),
    "daily": (
        {"values": np.arange(365) + 0.5, "units": "days since 2001-01-01", "calendar": "noleap"},
        "time-daily",
        "365 steps of 1 days",
    ),
    "six-hourly": (
        {"values": 6 * np.arange(1460), "units": "hours since 2001-01-01", "calendar": "noleap"},
        "time-daily",
        "cdo monmean",
    ),
    "lunar": (
        {"values": [15, 46], "units": "days since 2001-01-01", "calendar": "lunar"},
        "calendar-unknown",
        "'lunar' is unknown",
    ),
    "a count that ran away": (
        {"values": [1e7, 1e7 + 1], "units": "months since 1850-01-01", "calendar": "noleap"},
        "time-undecodable",
        "wanted years 1 to 9999",
    ),
    "never written": (
        {"values": [15, 9.96921e36], "units": "days since 2001-01-01", "calendar": "noleap"},
        "time-missing",
        "no time at step 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_axes_without_one_meaning_are_refused_with_rule_and_reason(case: str) -> None:
    given_, rule, message = REFUSED[case]
    values, units = given_["values"], given_["units"]
    found, text = refusal(values, units, given_.get("calendar"))
    assert found == rule
    assert message in text
    assert text.startswith("model.nc: time")


def test_times_that_are_text_are_refused() -> None:
    ds = xr.Dataset(coords={"time": ("time", np.array(["2001-01", "2001-02"], dtype=object))})
    with pytest.raises(DataError, match="values that are no numbers") as caught:
        read_axis(ds, "model.nc", Declared())
    assert caught.value.problems[0].rule == "time-undecodable"


def test_a_file_that_decodes_to_other_years_than_its_name_is_refused() -> None:
    # ELM: as many months as there should be, two years early.
    elm = month_axis((1698, 2022), "noleap").time
    rule, message = refusal(elm, TIME_UNITS, "noleap", where="sub/E3SM_S3_gpp_1700-2024.nc")
    assert rule == "time-other-years"
    assert "from 1698-01 to 2022-12" in message
    assert "never shifted" in message
    right = month_axis((1901, 1910), "noleap")
    for name in ("gpp_1901-1910.nc", "gpp_190101-191012.nc", "gpp_1901_2020.nc", "gpp_8x12-1.nc"):
        assert axis_of(right.time, TIME_UNITS, "noleap", where=f"1600-1650/{name}").axis == right
    rule, _ = refusal(right.time, TIME_UNITS, "noleap", where="gpp_190102-191012.nc")
    assert rule == "time-other-years"
    annual = month_axis((1901, 1910), "noleap", "yr")
    assert axis_of(annual.time, TIME_UNITS, "noleap", where="c_190107-191012.nc").axis == annual


# --- whole files ---------------------------------------------------------------------------------


def test_wanted_years_that_are_as_many_but_others_are_refused_as_such(tmp_path: Path) -> None:
    path = write_native(tmp_path / "gpp.nc", {"GPP": (field(0, 20), CARBON)})
    file = scan(path)
    with pytest.raises(DataError, match="decode to 2001 to 2002") as caught:
        build_timeline("GPP", [file], (2003, 2004), "map")
    assert caught.value.problems[0].rule == "time-other-years"
    with pytest.raises(DataError, match=r"no 2003-01 to 2003-12 \(12 of 36 months\)") as caught:
        build_timeline("GPP", [file], (2001, 2003), "map")
    assert caught.value.problems[0].rule == "period-missing"


def test_problems_of_time_and_grid_are_told_together_and_for_every_field(tmp_path: Path) -> None:
    path = write_native(
        tmp_path / "gpp.nc",
        {"GPP": (field(0, 20), CARBON)},
        lon=np.array([0.0, 60.0, 110.0, 180.0, 240.0, 300.0]),
    )
    with netCDF4.Dataset(path, "a") as nc:
        nc["time"].units = "fortnights since 1901-01-01"
    with pytest.raises(HeaderError) as caught:
        scan(path, origin="hand-in.tar.gz::gpp.nc")
    assert [p.rule for p in caught.value.problems] == ["time-undecodable", "grid"]
    assert all(p.where == "hand-in.tar.gz::gpp.nc" for p in caught.value.problems)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert copied.problems == caught.value.problems
    inventory = Inventory.of([path])
    (file,) = inventory.files
    assert inventory.problems == {}
    assert list(file.flaws) == ["GPP"]
    with pytest.raises(DataError, match="fortnights"):
        build_timeline("GPP", inventory.files, None, "map")


def test_a_single_step_may_be_a_month_or_a_year_unless_bounds_tell(tmp_path: Path) -> None:
    found = axis_of([15], "days since 2001-01-01", "noleap")
    assert found.one_step
    assert not axis_of([15], "days since 2001-01-01", "noleap", bounds=[[0, 31]]).one_step
    assert axis_of([15], "days since 2001-01-01", "noleap").axis.first == (2001, 1)


def test_a_file_without_time_has_no_axis(tmp_path: Path) -> None:
    path = tmp_path / "area.nc"
    with netCDF4.Dataset(path, "w") as nc:
        for name, values, units in (
            ("lat", [-45.0, 45.0], "degrees_north"),
            ("lon", [0.0, 90.0, 180.0, 270.0], "degrees_east"),
        ):
            nc.createDimension(name, len(values))
            axis = nc.createVariable(name, "f8", (name,))
            axis.units = units
            axis[:] = values
        nc.createVariable("sftlf", "f4", ("lat", "lon"))[:] = 1.0
    file = scan(path)
    assert file.axis is None
    assert file.time_dim is None
    assert file.source_grid is not None
    assert file.source_grid.grid.is_global
