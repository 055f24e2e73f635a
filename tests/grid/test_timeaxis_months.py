"""Months and years of every calendar, as files spell them."""

from __future__ import annotations

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.errors import DataError
from callmip_global.timeaxis import (
    TIME_UNITS,
    MonthAxis,
    annual_mean,
    canonical_calendar,
    decode_months,
    decode_years,
    month_axis,
    month_bounds,
)

CALENDARS = ("noleap", "standard", "proleptic_gregorian", "360_day", "all_leap", "julian")
axes = st.builds(
    MonthAxis,
    st.sampled_from(CALENDARS),
    st.tuples(st.integers(1600, 2100), st.integers(1, 12)),
    st.integers(1, 40),
)


def times(values, units: str, calendar: str | None = None, name: str = "time") -> xr.Dataset:
    attributes = {"units": units} | ({"calendar": calendar} if calendar else {})
    return xr.Dataset(coords={name: (name, np.asarray(values), attributes)})


@given(axes)
def test_an_axis_that_is_written_is_read_back_as_itself(axis: MonthAxis) -> None:
    stamps = times(axis.time, TIME_UNITS, axis.calendar)
    assert decode_months(stamps, "file.nc") == axis
    stamps["time"].attrs["bounds"] = "time_bnds"
    bounded = stamps.assign(time_bnds=(("time", "b"), axis.bounds))
    assert decode_months(bounded, "file.nc") == axis
    decoded = xr.decode_cf(bounded, decode_times=xr.coders.CFDatetimeCoder(use_cftime=True))
    assert decode_months(decoded, "file.nc") == axis


@given(axes)
def test_months_follow_each_other_without_a_gap(axis: MonthAxis) -> None:
    np.testing.assert_array_equal(axis.bounds[1:, 0], axis.bounds[:-1, 1])
    assert np.all((axis.lengths_days >= 28) & (axis.lengths_days <= 31))
    np.testing.assert_array_equal(axis.time, axis.bounds.mean(axis=1))


@pytest.mark.parametrize(
    ("calendar", "february", "year"),
    [("noleap", 28, 365), ("standard", 29, 366), ("360_day", 30, 360), ("all_leap", 29, 366)],
)
def test_2004_has_the_days_of_its_calendar(calendar: str, february: int, year: int) -> None:
    bounds = month_bounds((2004, 2004), calendar)
    assert bounds.shape == (12, 2)
    assert np.diff(bounds, axis=1)[1, 0] == february
    assert bounds[-1, 1] - bounds[0, 0] == year


def test_the_first_month_of_1850_starts_at_zero() -> None:
    assert month_bounds((1850, 1850), "noleap")[0].tolist() == [0.0, 31.0]


def test_an_annual_axis_is_written_and_read_back() -> None:
    axis = month_axis((2005, 2024), "noleap", "yr")
    assert axis.size == 20
    assert axis.lengths_days.tolist() == [365.0] * 20
    ds = times(axis.time, TIME_UNITS, "noleap").assign(time_bnds=(("time", "b"), axis.bounds))
    assert decode_years(ds, "file.nc") == axis
    assert decode_years(times([2005.0, 2006.0], "years since 0000-01-01", "noleap"), "f").years == (
        2005,
        2006,
    )


SPELLINGS: dict[str, tuple[xr.Dataset, str, tuple[int, int]]] = {
    "months since, unpadded, int": (
        times([0, 1, 2], "months since 1700-1-16"),
        "standard",
        (1700, 1),
    ),
    "months since, middles": (
        times([0.5, 1.5, 2.5], "months since 1860-01-01", "noleap"),
        "noleap",
        (1860, 1),
    ),
    "decimal years, middles": (
        times(1700 + (np.arange(30) + 0.5) / 12, "years since AD 0-Jan-1st (double)"),
        "standard",
        (1700, 1),
    ),
    "decimal years, starts": (
        times(1700 + np.arange(30) / 12, "years since 0-1-1", "no_leap"),
        "noleap",
        (1700, 1),
    ),
    "capital S": (times([0.0, 31.0, 59.0], "Days Since 1700-01-01", "NoLeap"), "noleap", (1700, 1)),
    "minutes": (times([54721440, 54764640], "minutes since 1900-1-1 0:0:0"), "standard", (2004, 1)),
    "hours from year one": (
        times(24.0 * (365 * 1700 + np.array([15, 45])), "hours since 0001-01-01 00:00:00", "365"),
        "noleap",
        (1701, 1),
    ),
    "CDO absolute months": (
        times([170011.5, 170012.5], "month as %Y%m.%f"),
        "standard",
        (1700, 11),
    ),
    "CDO absolute days": (
        times([20041215.5, 20050115.5], "day as %Y%m%d.%f"),
        "standard",
        (2004, 12),
    ),
    "ends of months": (times([30, 58, 89], "days since 2001-01-01", "noleap"), "noleap", (2001, 1)),
    "time_counter": (
        times([15.0, 45.0], "days since 1999-01-01", "360_day", name="time_counter"),
        "360_day",
        (1999, 1),
    ),
    "datetime64": (
        xr.Dataset(coords={"time": np.array(["1999-12-16", "2000-01-16"], "M8[ns]")}),
        "standard",
        (1999, 12),
    ),
    "cftime": (
        xr.Dataset(
            coords={"time": [cftime.DatetimeNoLeap(1, 2, 15), cftime.DatetimeNoLeap(1, 3, 15)]}
        ),
        "noleap",
        (1, 2),
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_axes_as_groups_write_them_are_understood(spelling: str) -> None:
    ds, calendar, first = SPELLINGS[spelling]
    size = next(iter(ds.sizes.values()))
    assert decode_months(ds, "file.nc") == MonthAxis(calendar, first, size)


def test_stamps_at_the_end_of_the_month_are_put_right_by_bounds() -> None:
    axis = month_axis((2001, 2001), "noleap")
    ds = times(axis.bounds[:, 1], TIME_UNITS, "noleap")
    assert decode_months(ds, "clm.nc").first == (2001, 2)
    ds = ds.assign(time_bounds=(("time", "b"), axis.bounds))
    assert decode_months(ds, "clm.nc") == axis


def test_a_calendar_that_is_told_overrules_the_file() -> None:
    axis = month_axis((1995, 2000), "noleap")
    ds = times(axis.time, "days since 1850-01-01")
    assert decode_months(ds, "file.nc", calendar="noleap") == axis


REFUSED: dict[str, tuple[xr.Dataset, str]] = {
    "no time": (xr.Dataset(), "no time coordinate"),
    "no units": (times([1, 2, 3], ""), r"time\.units: found ''"),
    "one word": (times([1, 2, 3], "yr"), r"time\.units: found 'yr'"),
    "nonsense": (times([1, 2, 3], "days since banana"), "'days since banana'"),
    "a year alone": (times([15, 45], "days since 1700"), "'days since 1700'"),
    "nan": (times([15, np.nan], "days since 2001-01-01"), "no time at step 2"),
    "never written": (times([15, 9.96921e36], "days since 2001-01-01"), "no time at step 2"),
    "unknown calendar": (times([1, 2], "days since 1850-01-01", "lunar"), "'lunar' is unknown"),
    "gap": (
        times([15, 45, 105], "days since 2001-01-01", "noleap"),
        "months missing: 2001-03",
    ),
    "twice": (
        times([15, 16, 45], "days since 2001-01-01", "noleap"),
        "months twice or more: 2001-01",
    ),
    "one twice and one missing": (
        times([15, 45, 45, 105], "days since 2001-01-01", "noleap"),
        "twice or more: 2001-02; months missing: 2001-03",
    ),
    "backwards": (times([45, 15], "days since 2001-01-01", "noleap"), "out of order"),
    "between months": (times([0.1, 1.5, 2.9], "months since 2001-01-01"), "fall between"),
    "daily bounds": (
        times([0.5, 1.5], "days since 2001-01-01", "noleap").assign(
            time_bnds=(("time", "b"), [[0.0, 1.0], [1.0, 2.0]])
        ),
        "a period of 1 days at step 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_axes_that_are_not_consecutive_months_are_refused_with_the_reason(case: str) -> None:
    ds, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        decode_months(ds, "model.nc")
    assert str(caught.value).startswith("model.nc: time")
    assert "\n" not in str(caught.value)


@given(axes)
def test_whole_years_start_in_january_and_end_in_december(axis: MonthAxis) -> None:
    whole = sum(1 for y, m in axis.periods if m == 1 and (y, 12) in axis.periods)
    if whole == 0:
        with pytest.raises(ValueError, match="no whole year"):
            axis.complete_years()
        return
    months, annual = axis.complete_years()
    assert annual.size == whole
    assert axis.periods[months.start][1] == 1
    assert axis.periods[months.stop - 1][1] == 12
    np.testing.assert_array_equal(annual.bounds[:, 0], axis.bounds[months][::12, 0])


def test_years_that_are_not_there_are_named() -> None:
    axis = MonthAxis("noleap", (2004, 1), 24)
    assert axis.select(2005, 2005, "file.nc") == slice(12, 24)
    assert axis.part(slice(12, 24)) == month_axis((2005, 2005), "noleap")
    with pytest.raises(DataError, match=r"found 2004-01 to 2005-12, wanted all of 2005 to 2006"):
        axis.select(2005, 2006, "file.nc")
    with pytest.raises(DataError, match=r"found years 2004 to 2004"):
        month_axis((2004, 2004), "noleap", "yr").select(2003, 2004, "file.nc")


def test_annual_means_are_weighted_with_the_days_of_the_months() -> None:
    # February alone has a value, 1: its share of the year, 28/365 and 29/366, by hand.
    values = np.zeros((24, 1), dtype=np.float32)
    values[[1, 13]] = 1.0
    lengths = month_axis((2003, 2004), "standard").lengths_days
    result = annual_mean(values, lengths)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[:, 0], [28 / 365, 29 / 366], rtol=1e-7)


@given(st.floats(-1e6, 1e6, allow_subnormal=False), st.sampled_from(CALENDARS))
def test_the_annual_mean_of_a_constant_is_the_constant(value: float, calendar: str) -> None:
    lengths = month_axis((2000, 2002), calendar).lengths_days
    result = annual_mean(np.full((36, 2, 3), value), lengths)
    assert result.shape == (3, 2, 3)
    np.testing.assert_allclose(result, value, rtol=1e-14, atol=1e-300)


def test_a_year_with_a_missing_month_has_no_mean() -> None:
    values = np.ones((24, 2))
    values[5, 0] = np.nan
    result = annual_mean(values, month_axis((2001, 2002), "noleap").lengths_days)
    np.testing.assert_allclose(result, [[np.nan, 1.0], [1.0, 1.0]], rtol=1e-14)
    with pytest.raises(ValueError, match="13 months"):
        annual_mean(np.ones(13), np.ones(13))


@pytest.mark.parametrize(
    ("text", "calendar"),
    [("gregorian ", "standard"), ("NoLeap", "noleap"), ("365-day", "noleap"), ("360", "360_day")],
)
def test_spellings_of_calendars(text: str, calendar: str) -> None:
    assert canonical_calendar(text) == calendar


def test_an_axis_checks_itself() -> None:
    with pytest.raises(ValueError, match="size must be >= 1"):
        MonthAxis("noleap", (2000, 1), 0)
    with pytest.raises(ValueError, match="first must be"):
        MonthAxis("noleap", (2000, 13), 1)
    with pytest.raises(ValueError, match="first must be"):
        MonthAxis("noleap", (2000, 2), 1, "yr")
    with pytest.raises(ValueError, match="none of CF's"):
        MonthAxis("lunar", (2000, 1), 1)
