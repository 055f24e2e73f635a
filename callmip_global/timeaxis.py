"""Months and years as exact periods of a calendar: read from files, encoded, averaged.

The convention, once: an axis is a run of consecutive months (or years) without gaps. Times are
days since 1850-01-01 in the axis' own calendar, bounds are the exact starts of the period and of
the next one, and the stamp is half way between them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import cftime
import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem

if TYPE_CHECKING:
    import xarray as xr

TIME_UNITS = "days since 1850-01-01"

Frequency = Literal["mon", "yr"]
Array = NDArray[np.float64]

_CALENDARS = {
    "standard": "standard",
    "gregorian": "standard",
    "proleptic_gregorian": "proleptic_gregorian",
    "noleap": "noleap",
    "no_leap": "noleap",
    "365_day": "noleap",
    "365": "noleap",
    "365day": "noleap",
    "all_leap": "all_leap",
    "366_day": "all_leap",
    "360_day": "360_day",
    "360": "360_day",
    "360day": "360_day",
    "julian": "julian",
}
_TIME_NAMES = ("time", "time_counter", "t", "date", "month", "year")
_SINCE = re.compile(r"(\w+)\s+since\s+(.+)", re.IGNORECASE)
_REFERENCE = re.compile(
    r"(?:AD\s+)?(-?\d{1,4})-([a-z]{3}|\d{1,2})-(\d{1,2})(?:st|nd|rd|th)?(?!\d)", re.IGNORECASE
)
_SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})(?!\d)")
_ABSOLUTE = re.compile(r"(day|month|year)s?\s+as\s+%Y(%m)?(%d)?\.?%f", re.IGNORECASE)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True)
class MonthAxis:
    """A run of consecutive months (frequency ``mon``) or years (``yr``) of one calendar.

    calendar : CF name (standard, proleptic_gregorian, noleap, all_leap, 360_day, julian)
    first : (year, month) of the first period; the month of an annual axis is 1
    size : number of periods
    """

    calendar: str
    first: tuple[int, int]
    size: int
    frequency: Frequency = "mon"

    def __post_init__(self) -> None:
        if self.calendar not in _CALENDARS.values():
            raise ValueError(f"calendar {self.calendar!r} is none of CF's")
        if self.size < 1:
            raise ValueError(f"size must be >= 1, got {self.size}")
        if not 1 <= self.first[1] <= 12 or (self.frequency == "yr" and self.first[1] != 1):
            raise ValueError(f"first must be (year, month), got {self.first}")

    @property
    def _step(self) -> int:
        return 12 if self.frequency == "yr" else 1

    @cached_property
    def periods(self) -> tuple[tuple[int, int], ...]:
        """(year, month) of every period, in order."""
        start = self.first[0] * 12 + self.first[1] - 1
        return tuple(_year_month(start + i * self._step) for i in range(self.size))

    @cached_property
    def bounds(self) -> Array:
        """(size, 2) starts of each period and of the next, days since 1850-01-01."""
        start = self.first[0] * 12 + self.first[1] - 1
        starts = _starts([start + i * self._step for i in range(self.size + 1)], self.calendar)
        return np.stack([starts[:-1], starts[1:]], axis=1)

    @property
    def time(self) -> Array:
        """(size,) middles of the periods, days since 1850-01-01."""
        return np.asarray(self.bounds.mean(axis=1))

    @property
    def lengths_days(self) -> Array:
        """(size,) lengths of the periods [days]."""
        return np.asarray(np.diff(self.bounds, axis=1)[:, 0])

    @property
    def years(self) -> tuple[int, int]:
        """First and last year touched."""
        return self.periods[0][0], self.periods[-1][0]

    @property
    def time_attributes(self) -> dict[str, str]:
        """CF attributes of the time coordinate."""
        return {
            "standard_name": "time",
            "long_name": "time",
            "units": TIME_UNITS,
            "calendar": self.calendar,
            "axis": "T",
            "bounds": "time_bnds",
        }

    def select(self, first_year: int, last_year: int, where: str) -> slice:
        """Indices of the whole years first..last; DataError when the axis does not cover them."""
        wanted_first = (first_year, 1)
        wanted_last = (last_year, 1 if self.frequency == "yr" else 12)
        if wanted_first not in self.periods or wanted_last not in self.periods:
            (y0, m0), (y1, m1) = self.periods[0], self.periods[-1]
            found = (
                f"years {y0} to {y1}"
                if self.frequency == "yr"
                else f"{y0}-{m0:02d} to {y1}-{m1:02d}"
            )
            raise DataError(
                Problem(
                    where,
                    "time",
                    found,
                    f"all of {first_year} to {last_year}",
                    "Hand in the missing years, or ask for fewer",
                )
            )
        return slice(self.periods.index(wanted_first), self.periods.index(wanted_last) + 1)

    def part(self, indices: slice) -> MonthAxis:
        """The axis of a contiguous slice of the periods."""
        start, stop, _ = indices.indices(self.size)
        return MonthAxis(self.calendar, self.periods[start], stop - start, self.frequency)

    def complete_years(self) -> tuple[slice, MonthAxis]:
        """The months that make up whole calendar years, and the annual axis of those years.

        ValueError when there is no whole year, or when the axis is annual already.
        """
        if self.frequency != "mon":
            raise ValueError("an annual axis has no months")
        start = (13 - self.first[1]) % 12
        n_years = (self.size - start) // 12
        if n_years < 1:
            raise ValueError(f"{self.size} months from {self.first} hold no whole year")
        annual = MonthAxis(self.calendar, self.periods[start], n_years, "yr")
        return slice(start, start + 12 * n_years), annual


def canonical_calendar(text: str) -> str:
    """CF's name of a calendar in any of the spellings seen; ValueError for an unknown one."""
    key = text.strip().lower().replace("-", "_")
    if key not in _CALENDARS:
        raise ValueError(f"calendar {text!r} is unknown")
    return _CALENDARS[key]


def month_bounds(years: tuple[int, int], calendar: str) -> Array:
    """(12 n, 2) exact bounds of the months of years first..last, days since 1850-01-01."""
    first, last = years
    return MonthAxis(calendar, (first, 1), 12 * (last - first + 1)).bounds


def month_axis(years: tuple[int, int], calendar: str, frequency: Frequency = "mon") -> MonthAxis:
    """The axis of the whole years first..last."""
    n_years = years[1] - years[0] + 1
    return MonthAxis(
        calendar, (years[0], 1), n_years * (12 if frequency == "mon" else 1), frequency
    )


def annual_mean(values: NDArray[np.floating[Any]], month_lengths: Array) -> NDArray[Any]:
    """Days-weighted means of whole years.

    values : (12 n, ...) monthly means, January first, any float type
    month_lengths : (12 n,) [days]
    Returns (n, ...) in the type of ``values``; sums are float64. A cell with a missing month (NaN)
    has no annual mean. ValueError when the months are not whole years.
    """
    months = values.shape[0]
    if months % 12 or month_lengths.shape != (months,):
        raise ValueError(f"got {months} months and lengths of shape {month_lengths.shape}")
    by_year = values.reshape(months // 12, 12, *values.shape[1:])
    lengths = np.asarray(month_lengths, dtype=np.float64).reshape(-1, 12)
    total = np.zeros((months // 12, *values.shape[1:]), dtype=np.float64)
    for month in range(12):
        weight = lengths[:, month] / lengths.sum(axis=1)
        total += weight.reshape(-1, *[1] * (values.ndim - 1)) * by_year[:, month]
    return total.astype(values.dtype)


def time_name(ds: xr.Dataset, where: str) -> str:
    """Name of the one time coordinate, by CF attributes, then by name; DataError without one."""
    vectors = {str(name): var for name, var in ds.variables.items() if var.ndim <= 1}
    found = [
        name
        for name, var in vectors.items()
        if var.attrs.get("standard_name") == "time" or var.attrs.get("axis") == "T"
    ]
    found = found or [
        name for name in vectors if _SINCE.match(str(vectors[name].attrs.get("units", "")))
    ]
    found = found or [name for name in vectors if name.lower() in _TIME_NAMES]
    found.sort(key=lambda name: (vectors[name].dims != (name,), name != "time"))
    if not found:
        raise DataError(
            Problem(
                where,
                "time",
                "no time coordinate",
                remedy="Set its standard_name to time",
                rule="time-missing",
            )
        )
    return found[0]


def decode_months(ds: xr.Dataset, where: str, calendar: str | None = None) -> MonthAxis:
    """The monthly axis of a dataset, opened with or without decoded times.

    ``calendar`` overrules the file's (for files that name none or a wrong one). A stamp belongs to
    the month it lies in; where the file has time bounds, to the month their middle lies in.
    DataError on units that cannot be decoded, on gaps, repetitions and disorder.
    """
    return _decode(ds, where, calendar, "mon")


def decode_years(ds: xr.Dataset, where: str, calendar: str | None = None) -> MonthAxis:
    """The annual axis of a dataset; otherwise as ``decode_months``."""
    return _decode(ds, where, calendar, "yr")


def _decode(ds: xr.Dataset, where: str, calendar: str | None, frequency: Frequency) -> MonthAxis:
    name = time_name(ds, where)
    time = ds[name]
    values = np.atleast_1d(time.values)
    if values.size == 0:
        raise DataError(Problem(where, name, "no time steps at all", rule="time-missing"))
    used = checked_calendar(where, name, calendar or _calendar(time, values))
    bounds = _time_bounds(ds, time, values.size)
    units = str(time.attrs.get("units", "")).strip()
    return decode_values(where, name, values, bounds, units, used, frequency)


def checked_calendar(where: str, name: str, text: str) -> str:
    """CF's name of the calendar of a time coordinate; DataError for an unknown one."""
    try:
        return canonical_calendar(text)
    except ValueError as error:
        wanted = f"one of: {', '.join(_CALENDARS)}"
        raise DataError(
            Problem(where, f"{name}.calendar", str(error), wanted, rule="calendar-unknown")
        ) from None


def decode_values(
    where: str,
    name: str,
    values: NDArray[Any],
    bounds: NDArray[Any] | None,
    units: str,
    calendar: str,
    frequency: Frequency,
) -> MonthAxis:
    """The axis of stamps (n,), or of bounds (n, 2) where there are any; n >= 1.

    values, bounds : numbers in ``units``, datetime64 or cftime objects
    calendar : one of CF's names;  name : of the coordinate, for messages
    DataError as from ``decode_months``.
    """
    check_times_there(where, name, values if bounds is None else bounds)
    if bounds is not None:
        indices = _bounded_months(where, name, bounds, units, calendar, frequency)
    else:
        indices = _month_indices(where, name, values, units, calendar, frequency)
    step = 12 if frequency == "yr" else 1
    if frequency == "yr":
        indices = indices // 12 * 12
    _check_consecutive(where, name, indices, step)
    return MonthAxis(calendar, _year_month(int(indices[0])), indices.size, frequency)


def check_times_there(where: str, name: str, values: NDArray[Any]) -> None:
    """DataError for times that were never written: NaN, NaT or NetCDF's default fill."""
    there = np.ones(values.shape, dtype=bool)
    if values.dtype.kind == "f":
        there = np.abs(values) < 1e19
    elif values.dtype.kind == "M":
        there = ~np.isnat(values)
    if not np.all(there):
        step = int(np.argwhere(~there)[0, 0]) + 1
        remedy = "Did the model stop while it wrote this file?"
        raise DataError(
            Problem(
                where,
                name,
                f"no time at step {step}",
                "a time for each step",
                remedy,
                rule="time-missing",
            )
        )


def _calendar(time: xr.DataArray, values: NDArray[Any]) -> str:
    if values.dtype.kind == "O" and hasattr(values[0], "calendar"):
        return str(values[0].calendar)
    named = time.attrs.get("calendar") or time.encoding.get("calendar")
    # CF section 4.4.1: a file that names no calendar means the standard one.
    return str(named) if named else "standard"


def _time_bounds(ds: xr.Dataset, time: xr.DataArray, size: int) -> NDArray[Any] | None:
    named = time.attrs.get("bounds") or time.encoding.get("bounds")
    for candidate in ([str(named)] if named else []) + [f"{time.name}_bnds", f"{time.name}_bounds"]:
        if candidate in ds.variables and ds[candidate].shape == (size, 2):
            return np.asarray(ds[candidate].values)
    return None


def _bounded_months(
    where: str,
    name: str,
    bounds: NDArray[Any],
    units: str,
    calendar: str,
    frequency: Frequency,
) -> NDArray[np.int64]:
    """Month index (12 year + month - 1) of the middle of each pair of bounds."""
    low, high = (days_of(where, name, bounds[:, side], units, calendar) for side in (0, 1))
    longest, shortest = (32.0, 27.0) if frequency == "mon" else (367.0, 359.0)
    length = high - low
    bad = np.flatnonzero((length < shortest) | (length > longest))
    if bad.size:
        i = int(bad[0])
        raise DataError(
            Problem(
                where,
                f"{name} bounds",
                f"a period of {length[i]:g} days at step {i + 1}",
                "one month" if frequency == "mon" else "one year",
                "Mend the bounds, or remove them and the stamps are used",
                rule="time-bounds-wrong",
            )
        )
    return _indices_of_days(0.5 * (low + high), calendar)


def _month_indices(
    where: str,
    name: str,
    values: NDArray[Any],
    units: str,
    calendar: str,
    frequency: Frequency,
) -> NDArray[np.int64]:
    """Month index (12 year + month - 1) of each stamp."""
    absolute = _ABSOLUTE.fullmatch(units)
    since = _SINCE.fullmatch(units)
    numeric = values.dtype.kind in "iuf"
    if numeric and absolute is not None:
        digits = np.floor(np.asarray(values, dtype=np.float64)).astype(np.int64)
        if absolute.group(1).lower() in ("day", "month"):
            digits = digits // 100 if absolute.group(1).lower() == "day" else digits
            bad = np.flatnonzero((digits % 100 < 1) | (digits % 100 > 12))
            if bad.size:
                found = f"month {digits[bad[0]] % 100} in {values[bad[0]]:.12g}"
                raise DataError(
                    Problem(where, name, found, "months 1 to 12", rule="time-undecodable")
                )
            return digits // 100 * 12 + digits % 100 - 1
        return _from_months(where, name, np.asarray(values, np.float64) * 12.0, frequency)
    if numeric and since is not None and since.group(1).lower().rstrip("s") in ("month", "year"):
        year, month, day = _reference(where, name, units, since.group(2))
        scale = 12.0 if since.group(1).lower().startswith("year") else 1.0
        base = year * 12 + month - 1 + (day - 1) / 30.0
        return _from_months(where, name, base + scale * np.asarray(values, np.float64), frequency)
    return _indices_of_days(days_of(where, name, values, units, calendar), calendar)


def _from_months(where: str, name: str, position: Array, frequency: Frequency) -> NDArray[np.int64]:
    """Month index of fractional months: all near a start, or all near a middle of a month."""
    if frequency == "yr":
        return np.floor(position + 1e-3).astype(np.int64)
    for offset in (0.5, 0.0):
        index = np.round(position - offset)
        if np.all(np.abs(position - offset - index) <= 0.3) and np.all(np.diff(index) == 1):
            return index.astype(np.int64)
    for offset in (0.5, 0.0):
        index = np.round(position - offset)
        if np.all(np.abs(position - offset - index) <= 0.3):
            return index.astype(np.int64)
    raise DataError(
        Problem(
            where,
            name,
            "fractional months or years that fall between months",
            "every stamp within 0.3 month of a month's start or middle",
            "Give the axis in days",
            rule="time-fraction",
        )
    )


def _reference(where: str, name: str, units: str, text: str) -> tuple[int, int, int]:
    found = reference_date(text)
    if found is None:
        raise _undecodable(where, name, units)
    return found[0]


def reference_date(text: str) -> tuple[tuple[int, int, int], str] | None:
    """((year, month, day), what follows them) of the date that times are counted from, or None.

    Also ``1700-1-16``, ``AD 0-Jan-1st`` and ``31/12/1699``; None where 3/4/1900 may be either.
    """
    text = text.strip()
    match, slashed = _REFERENCE.match(text), _SLASHED.match(text)
    if match is not None:
        word = match.group(2).lower()
        month = _MONTHS.index(word) + 1 if word in _MONTHS else int(word) if word.isdigit() else 0
        date, rest = (int(match.group(1)), month, int(match.group(3))), text[match.end() :]
    elif slashed is not None:
        one, other, year = (int(part) for part in slashed.groups())
        if one <= 12 and other <= 12 and one != other:
            return None
        day, month = (one, other) if other <= 12 else (other, one)
        date, rest = (year, month, day), text[slashed.end() :]
    else:
        return None
    return (date, rest) if 1 <= date[1] <= 12 and 1 <= date[2] <= 31 else None


def _undecodable(where: str, name: str, units: str) -> DataError:
    return DataError(
        Problem(
            where,
            f"{name}.units",
            repr(units),
            "for example 'days since 1850-01-01'",
            "Set the units and calendar of the time coordinate",
            rule="time-undecodable",
        )
    )


def days_of(where: str, name: str, values: NDArray[Any], units: str, calendar: str) -> Array:
    """Days since 1850-01-01 of datetimes or of numbers with units; DataError for other units.

    A count from the year 0 is one of the calendar with such a year (as in CDO), though the
    standard calendar has none.
    """
    if values.dtype.kind == "M":
        seconds = (values - np.datetime64("1850-01-01T00:00:00")) / np.timedelta64(1, "s")
        return np.asarray(seconds, dtype=np.float64) / 86400.0
    if values.dtype.kind == "O":
        return np.asarray(cftime.date2num(values, TIME_UNITS, values[0].calendar), np.float64)
    match = _SINCE.fullmatch(units)
    if match is None:
        raise _undecodable(where, name, units)
    origin, since, shift = reference_date(match.group(2)), match.group(2), 0.0
    if origin is not None:
        (year, month, day), rest = origin
        if year == 0 and not _year_zero(calendar):
            # The year 0 of the Julian calendar has a leap day.
            year, shift = 1, 366.0 if month <= 2 else 365.0
        since = f"{year:04d}-{month:02d}-{day:02d}{rest}"
    try:
        dates = cftime.num2date(
            np.asarray(values, dtype=np.float64),
            f"{match.group(1)} since {since}".lower(),
            calendar,
        )
        return np.asarray(cftime.date2num(dates, TIME_UNITS, calendar), np.float64) - shift
    except (ValueError, OverflowError, TypeError) as error:
        raise _undecodable(where, name, units) from error


def _indices_of_days(days: Array, calendar: str) -> NDArray[np.int64]:
    # A hair later, so that 00:00 stored with rounding noise is not the evening before.
    dates = cftime.num2date(days + 1e-4, TIME_UNITS, calendar)
    return np.array([d.year * 12 + d.month - 1 for d in np.atleast_1d(dates)], dtype=np.int64)


def _check_consecutive(where: str, name: str, indices: NDArray[np.int64], step: int) -> None:
    differences = np.diff(indices)
    if np.all(differences == step):
        return

    def said(index: Hashable) -> str:
        year, month = _year_month(int(str(index)))
        return str(year) if step == 12 else f"{year}-{month:02d}"

    unit = "year" if step == 12 else "month"
    present = set(indices.tolist())
    repeated = sorted({i for i in present if int(np.sum(indices == i)) > 1})
    missing = [
        i for i in range(int(indices.min()), int(indices.max()) + 1, step) if i not in present
    ]
    parts = []
    if repeated:
        parts.append(f"{unit}s twice or more: {_some([said(i) for i in repeated])}")
    if missing:
        parts.append(f"{unit}s missing: {_some([said(i) for i in missing])}")
    if not parts:
        parts.append(f"{unit}s out of order")
    raise DataError(
        Problem(
            where,
            name,
            "; ".join(parts),
            f"each {unit} once, in order",
            "Check the units, the calendar and the list of files",
            rule="time-gaps",
        )
    )


def _some(items: list[str], limit: int = 6) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _year_month(index: int) -> tuple[int, int]:
    return index // 12, index % 12 + 1


def _starts(indices: list[int], calendar: str) -> Array:
    """Days since 1850-01-01 of the first instant of each month index."""
    dates = [
        cftime.datetime(*_year_month(i), 1, calendar=calendar, has_year_zero=_year_zero(calendar))
        for i in indices
    ]
    return np.asarray(cftime.date2num(dates, TIME_UNITS, calendar), dtype=np.float64)


def _year_zero(calendar: str) -> bool:
    return calendar not in ("standard", "julian")
