"""Time axes as groups write them: what is mended before months are decoded, and on what evidence.

Each step of `read_axis` is one rule of the registry (`harmonize.rules`) and says in words what it
did. A time is never shifted by counting: the months are those that the file's own numbers say, or
those that the group declares where the file says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.harmonize.declared import Declared, Month
from callmip_global.timeaxis import (
    Frequency,
    MonthAxis,
    canonical_calendar,
    check_times_there,
    checked_calendar,
    days_of,
    decode_values,
    reference_date,
    time_name,
)

Array = NDArray[np.float64]
Note = tuple[str, str]

_FREQUENCIES: tuple[Frequency, ...] = ("mon", "yr")
# Calendars that models run in, likeliest first.
_CALENDARS = ("standard", "noleap", "360_day")
_CF_CALENDARS = (
    *("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day"),
    *("all_leap", "366_day", "360_day", "julian"),
)
_SINCE = re.compile(r"\s*(\w+)\s+since\s+(.+?)\s*", re.IGNORECASE)
_SINCE_INSIDE = re.compile(r"(\w+)\s+since\s+(.+)", re.IGNORECASE)
_ABSOLUTE = re.compile(r"\s*(day|month|year)s?\s+as\s+%Y(%m)?(%d)?\.?%f\s*", re.IGNORECASE)
_WORDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "seconds"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "minutes"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "hours"),
    **dict.fromkeys(("d", "day", "days"), "days"),
    **dict.fromkeys(("mon", "month", "months"), "months"),
    **dict.fromkeys(("y", "yr", "yrs", "year", "years"), "years"),
}
# Stamps this near [days] are at the same place of their months; middles are also written as whole
# days, half a day off.
_STEADY = 0.02
_STEADY_MIDDLES = 0.51
# Steps of less than this are neither months nor years.
_SUBMONTHLY_DAYS = 10.5
_ANNUAL = re.compile(r"annual|yearly|(?<![a-z])yr(?![a-z])", re.IGNORECASE)
_NAMED_YEARS = re.compile(
    r"(?<!\d)(1[5-9]\d\d|2[01]\d\d)(\d\d)?\s?[-_]\s?(1[5-9]\d\d|2[01]\d\d)(\d\d)?(?!\d)"
)


@dataclass(frozen=True)
class TimeAxis:
    """The time axis of a file.

    dim : its dimension, None for a scalar;  one_step : one stamp without bounds, which may be a
    month or a year;  notes : (rule, words) of everything that was mended or assumed
    """

    axis: MonthAxis
    dim: str | None
    one_step: bool
    notes: tuple[Note, ...]


@dataclass
class _Times:
    """The raw axis on its way to months: each rule mends a part of it and leaves a note."""

    where: str
    name: str
    values: NDArray[Any]
    bounds: NDArray[Any] | None
    units: str
    calendar: str
    notes: list[Note]

    def note(self, rule: str, words: str) -> None:
        self.notes.append((rule, words))

    def decode(self, frequency: Frequency, calendar: str = "") -> MonthAxis:
        return decode_values(
            self.where,
            self.name,
            self.values,
            self.bounds,
            self.units,
            calendar or self.calendar,
            frequency,
        )

    def days(self, values: NDArray[Any], calendar: str = "") -> Array:
        used = calendar or self.calendar
        return np.atleast_1d(days_of(self.where, self.name, values, self.units, used))

    @property
    def counts_days(self) -> bool:
        """Whether the numbers are days, hours ... from a date: then the calendar matters."""
        match = _SINCE.fullmatch(self.units)
        return match is not None and match.group(1).lower() not in ("months", "years")


def read_axis(ds: xr.Dataset, where: str, declared: Declared) -> TimeAxis | None:
    """The monthly or annual axis of an undecoded dataset; None for one without a time coordinate.

    declared : the calendar is used where the file states none, the start where the axis has no
        units, or where its stamps may be ends of months as well as starts
    DataError, with the rule that refuses it, when the months cannot be told beyond doubt.
    """
    try:
        chosen = time_name(ds, where)
    except DataError:
        return None
    notes: list[Note] = []
    name, units = _named(ds, chosen, notes)
    variable = ds[name].variable
    times = _Times(where, name, np.atleast_1d(variable.values), None, units, "", notes)
    if times.values.size == 0:
        raise DataError(Problem(where, name, "no time steps at all", rule="time-missing"))
    if times.values.dtype.kind not in "iuf":
        found = f"values that are no numbers ({times.values.dtype})"
        wanted = "numbers with units such as 'days since 1850-01-01'"
        raise DataError(Problem(where, name, found, wanted, rule="time-undecodable"))
    dim = str(variable.dims[0]) if variable.ndim else None
    check_times_there(where, name, times.values)
    stated = str(variable.attrs.get("calendar", ""))
    if _SINCE.fullmatch(units) is None and _ABSOLUTE.fullmatch(units) is None:
        _calendar(times, stated, declared.calendar, inferred=False)
        axis = _declared_start(times, declared.start)
        _as_named(where, name, axis)
        return TimeAxis(axis, dim, False, tuple(notes))
    _spelling(times, variable.attrs)
    _bounds(times, ds, variable.attrs)
    _calendar(times, stated, declared.calendar, inferred=True)
    _epoch(times)
    _not_submonthly(times)
    axis = _in_history(times, _decoded(times))
    axis = _ends_of_months(times, axis, declared.start)
    _stamps(times, axis)
    _counting(times, axis)
    _as_named(where, name, axis)
    one_step = times.values.size == 1 and times.bounds is None
    return TimeAxis(axis, dim, one_step, tuple(notes))


# --- rules, in the order of their use ------------------------------------------------------------


def _named(ds: xr.Dataset, chosen: str, notes: list[Note]) -> tuple[str, str]:
    """Rules ``time-name``, ``time-variable``: (coordinate, units).

    A variable along the same dimension takes the coordinate's place when only its units, or its
    description in words, say since when it counts (CARDAMOM: ``time`` = 1, 2, 3, beside ``Time``).
    """
    units = _since(ds[chosen].variable)
    dims = ds[chosen].dims
    if not units and dims:
        others = {
            str(n): _since(v)
            for n, v in ds.variables.items()
            if v.dims == dims and n != chosen and v.dtype.kind in "iuf"
        }
        telling = [n for n, text in others.items() if text]
        if len(telling) == 1:
            words = f"{telling[0]} ({others[telling[0]]}) in place of {chosen}, which has no units"
            notes.append(("time-variable", words))
            return telling[0], others[telling[0]]
    if chosen != "time":
        notes.append(("time-name", f"{chosen} is the time coordinate"))
    return chosen, units or _stated_units(ds[chosen].variable)


def _stated_units(var: xr.Variable) -> str:
    return str(var.attrs.get("units", "") or var.attrs.get("unit", "")).strip()


def _since(var: xr.Variable) -> str:
    """Units that say since when, from the attributes or from the description; else empty."""
    stated = _stated_units(var)
    if _SINCE.fullmatch(stated) or _ABSOLUTE.fullmatch(stated):
        return stated
    match = _SINCE_INSIDE.search(str(var.attrs.get("long_name", "")))
    word = _WORDS.get(match.group(1).lower()) if match else None
    agree = word is not None and (not stated or _WORDS.get(stated.lower()) == word)
    if match is None or not agree or reference_date(match.group(2)) is None:
        return ""
    return match.group(0).strip()


def _spelling(times: _Times, attributes: Any) -> None:
    """Rule ``time-units``: capitals, ``unit`` for units, dates such as 1700-1-16 or AD 0-Jan-1st
    mean what they say, but other tools leave such times undecoded or misread them."""
    match = _SINCE.fullmatch(times.units)
    if match is None:
        return
    word = _WORDS.get(match.group(1).lower())
    found = reference_date(match.group(2))
    if word is None or found is None:
        raise DataError(
            Problem(
                times.where,
                f"{times.name}.units",
                repr(times.units),
                "for example 'days since 1850-01-01'",
                "Set the units and calendar of the time coordinate",
                rule="time-undecodable",
            )
        )
    (year, month, day), rest = found
    plain = f"{word} since {year:04d}-{month:02d}-{day:02d}{rest.rstrip()}"
    written = match.group(1) in (word, word[:-1]) and times.units.endswith(
        plain.split(maxsplit=1)[1]
    )
    if not written or not str(attributes.get("units", "")).strip():
        own = "units" if str(attributes.get("units", "")).strip() else "unit (not units)"
        times.note("time-units", f"{own} {times.units!r} read as {plain!r}")
    times.units = plain


def _bounds(times: _Times, ds: xr.Dataset, attributes: Any) -> None:
    """Rule ``time-bounds``: bounds of no use at all are left out, and the stamps are used.

    Of no use are bounds of another shape, and such as were never written or have no length in any
    step. Where only some are wrong, or the stamps lie elsewhere, it is not said which is right.
    """
    named = str(attributes.get("bounds", "")).strip()
    names = [named] if named else []
    names += [f"{times.name}{end}" for end in ("_bnds", "_bounds")] + ["time_bnds", "time_bounds"]
    held = [n for n in dict.fromkeys(names) if n in ds.variables]
    if named and named not in ds.variables:
        times.note(
            "time-bounds", f"bounds {named!r} are named but not in the file; stamps are used"
        )
    if not held:
        return
    bounds = np.asarray(ds[held[0]].values)
    if bounds.shape == (2,) and times.values.size == 1:
        bounds = bounds[None]
    if bounds.shape != (times.values.size, 2):
        said = f"bounds of shape {bounds.shape} for {times.values.size} steps; stamps are used"
        times.note("time-bounds", said)
        return
    if bounds.dtype.kind in "iuf":
        there = np.isfinite(bounds) & (np.abs(bounds) < 1e19)
        length = np.where(there.all(axis=1), bounds[:, 1] - bounds[:, 0], 0.0)
        if np.all(length == 0):
            times.note("time-bounds", "bounds without any length in every step; stamps are used")
            return
    times.bounds = bounds


def _calendar(times: _Times, stated: str, declared: str | None, *, inferred: bool) -> None:
    """Rules ``calendar-`` ``spelling``, ``declared``, ``proven`` and ``assumed``.

    The file's own calendar, else the declared one, else the only one in which every stamp lies at
    the same place of consecutive months, else CF's default.
    """
    if stated.strip():
        times.calendar = checked_calendar(times.where, times.name, stated)
        if stated.lower() not in _CF_CALENDARS:
            times.note("calendar-spelling", f"calendar {stated!r} read as {times.calendar}")
        if declared is not None and canonical_calendar(declared) != times.calendar:
            raise DataError(
                Problem(
                    times.where,
                    f"{times.name}.calendar",
                    repr(stated),
                    f"{declared!r}, as the variable map declares",
                    "Correct whichever is wrong.",
                    rule="calendar-differs",
                )
            )
        return
    if declared is not None:
        times.calendar = canonical_calendar(declared)
        times.note("calendar-declared", f"calendar not stated, taken as {declared}")
        return
    proven = _only_calendar(times) if inferred and times.counts_days else None
    times.calendar = proven or "standard"
    if proven:
        said = f"calendar not stated; only in {proven} are the stamps at one place of their months"
        times.note("calendar-proven", said)
    else:
        times.note("calendar-assumed", "calendar not stated, taken as standard")


def _only_calendar(times: _Times) -> str | None:
    """The one calendar that the lengths of the steps prove, or None where several will do.

    Several will do as long as they mean the same months; then CF's default is taken. The more
    regular the stamps are in a calendar, the more it proves.
    """
    possible = {c: axis for c in _CALENDARS if (axis := _tried(times, c)) is not None}
    if not possible:
        return None
    regularity = {c: _regularity(times, axis) for c, axis in possible.items()}
    best = [c for c in possible if regularity[c] == max(regularity.values())]
    if len(best) == 1:
        return best[0]
    if "standard" not in best or len({possible[c].first for c in best}) > 1:
        said = " or ".join(f"{_span(possible[c])} ({c})" for c in best)
        raise DataError(
            Problem(
                times.where,
                f"{times.name}.calendar",
                f"none, and the times may be {said}",
                "the calendar the model ran in",
                'Set the attribute, or declare it in the manifest ("calendar: ...").',
                rule="calendar-unclear",
            )
        )
    return None


def _tried(times: _Times, calendar: str) -> MonthAxis | None:
    for frequency in _FREQUENCIES:
        try:
            return times.decode(frequency, calendar)
        except DataError:
            continue
    return None


def _regularity(times: _Times, axis: MonthAxis) -> int:
    """2 where all stamps are on one day of their period, at its middle, or at its end; 1 where they
    are equally far from the end, which may be one day of the next month in another calendar."""
    days = times.days(times.values, axis.calendar)
    from_start, to_end = days - axis.bounds[:, 0], axis.bounds[:, 1] - days
    from_middle = days - axis.time
    even = np.ptp(to_end) <= _STEADY
    if (
        np.ptp(from_start) <= _STEADY
        or (even and to_end.max() <= 1.0 + _STEADY)
        or np.abs(from_middle).max() <= _STEADY_MIDDLES
    ):
        return 2
    return int(even)


def _epoch(times: _Times) -> None:
    """Rule ``time-epoch``: a year 0 to count from is one that CDO's standard calendar has.

    The other calendars have one in CF as well.
    """
    if times.counts_days and " since 0000-" in times.units and times.calendar == "standard":
        said = "counted from a year 0, which the standard calendar does not have; read as CDO does"
        times.note("time-epoch", said)


def _not_submonthly(times: _Times) -> None:
    """Rule ``time-daily``: values of days or hours are not averaged here."""
    if times.values.size < 3 or not times.counts_days:
        return
    step = float(np.median(np.diff(times.days(times.values))))
    if 0.0 < step < _SUBMONTHLY_DAYS:
        said = f"{24 * step:.3g} hours" if step < 0.99 else f"{step:.3g} days"
        raise DataError(
            Problem(
                times.where,
                times.name,
                f"{times.values.size} steps of {said}",
                "monthly means",
                "Average them to months (cdo monmean IN OUT) and hand those in.",
                rule="time-daily",
            )
        )


def _decoded(times: _Times) -> MonthAxis:
    """The axis, monthly where it can be; the monthly problem otherwise, with another calendar
    named as the likely cause where the times fit only that one."""
    try:
        axis = times.decode("mon")
    except DataError as monthly:
        try:
            axis = times.decode("yr")
        except DataError:
            raise _with_calendar(times, monthly) from None
    if times.bounds is not None:
        low, high = (times.days(times.bounds[:, side]) for side in (0, 1))
        stamps = times.days(times.values)
        away = np.flatnonzero((stamps < low - 1.0) | (stamps > high + 1.0))
        if away.size:
            i = int(away[0])
            found = f"{away.size} stamps outside their bounds, the first at step {i + 1}"
            remedy = "Correct whichever is wrong."
            raise DataError(
                Problem(
                    times.where,
                    f"{times.name} bounds",
                    found,
                    "each stamp within its period",
                    remedy,
                    rule="time-bounds-wrong",
                )
            )
    return axis


def _in_history(times: _Times, axis: MonthAxis) -> MonthAxis:
    """The axis, if its years have four digits at most; DataError for a count that ran away."""
    first, last = axis.years
    if first < 1 or last > 9999:
        found = f"times that decode to the years {first} to {last}"
        raise DataError(
            Problem(times.where, times.name, found, "years 1 to 9999", rule="time-undecodable")
        )
    return axis


def _with_calendar(times: _Times, error: DataError) -> DataError:
    if not times.counts_days:
        return error
    fitting = [
        c
        for c in _CALENDARS
        if c != times.calendar
        and (axis := _tried(times, c)) is not None
        and _regularity(times, axis) == 2
    ]
    if len(fitting) != 1:
        return error
    (problem,) = error.problems
    remedy = (
        f"The times fit the calendar {fitting[0]}, not {times.calendar}: if the model ran in it, "
        f"ncatted -a calendar,{times.name},o,c,{fitting[0]} FILE"
    )
    where, key, found, wanted = problem.where, problem.key, problem.found, problem.wanted
    return DataError(Problem(where, key, found, wanted, remedy, problem.rule))


def _ends_of_months(times: _Times, axis: MonthAxis, start: Month | None) -> MonthAxis:
    """Rule ``time-ends``: stamps that may be ends of months as well as starts need a declaration.

    Whole years of stamps at 00:00 on the first day, from February to the January after them, are
    what models write that stamp the end of a mean (CESM without its bounds); they may also be what
    they say.
    """
    if times.bounds is not None or axis.frequency != "mon" or axis.size % 12 or axis.first[1] != 2:
        return axis
    if times.counts_days and np.abs(times.days(times.values) - axis.bounds[:, 0]).max() > _STEADY:
        return axis
    earlier = MonthAxis(axis.calendar, (axis.first[0], 1), axis.size)
    if start is not None and start == axis.first:
        return axis
    if start is not None and start == earlier.first:
        times.note("time-ends", f"stamps are ends of months: {_span(earlier)} (declared start)")
        return earlier
    raise DataError(
        Problem(
            times.where,
            times.name,
            f"{axis.size} stamps at the first instant of months, {_span(axis)}",
            "whether they are starts of these months, or ends of the months before",
            f'Add time bounds, or declare it in the manifest: start: "{axis.first[0]}-01" for '
            f'ends, "{axis.first[0]}-02" for starts.',
            rule="time-ends-unclear",
        )
    )


def _stamps(times: _Times, axis: MonthAxis) -> None:
    """Rule ``time-stamps``: stamps at a start or an end become the middle of their period."""
    if not times.counts_days or any(rule == "time-ends" for rule, _ in times.notes):
        return
    days = times.days(times.values)
    period = "month" if axis.frequency == "mon" else "year"
    if np.abs(days - axis.bounds[:, 0]).max() <= _STEADY:
        times.note("time-stamps", f"stamps at the start of each {period}, now in its middle")
    elif np.all((days > axis.bounds[:, 1] - 1.0 - _STEADY) & (days < axis.bounds[:, 1] + _STEADY)):
        times.note("time-stamps", f"stamps at the end of each {period}, now in its middle")


def _counting(times: _Times, axis: MonthAxis) -> None:
    """Rule ``time-counting``: months or years since a date, and CDO's absolute times, become days.

    Evidence: every value lies within 0.3 month of the start or the middle of a month, and the
    months follow each other, each once (checked while decoding).
    """
    if not times.counts_days and times.values.dtype.kind in "iuf":
        said = f"{times.units!r}, {_ends(times.values)}, read as {_span(axis)}"
        times.note("time-counting", said)


def _declared_start(times: _Times, start: Month | None) -> MonthAxis:
    """Rule ``time-declared``: an axis without units counts from the declared first month.

    Evidence: the declaration, and even steps: of 1, a twelfth (decimal years), or as many days as
    a month or a year has. The steps of an annual file are a year only where they say so, by their
    units (``years``), length or the file's name (``Annual``); decimal years must begin in the
    declared year.
    """
    values = times.values.astype(np.float64)
    word = _WORDS.get(times.units.lower())
    key = f"{times.name}.units"
    if start is None or (word is None and times.units not in ("", "1", "-")):
        raise DataError(
            Problem(
                times.where,
                key,
                f"{times.units!r} ({_ends(values)})",
                "for example 'days since 1850-01-01'",
                "Set the units and calendar of the time coordinate, or declare the first month in "
                'the manifest (start: "YYYY-MM")',
                rule="time-units-missing",
            )
        )
    steps = np.diff(values)
    step = float(np.median(steps)) if steps.size else 1.0
    if steps.size and (step <= 0 or np.any(np.abs(steps / step - 1.0) > 0.12)):
        bad = int(np.argmax(np.abs(steps - step))) + 1
        raise DataError(
            Problem(
                times.where,
                times.name,
                f"uneven steps, the first after step {bad}: {values[bad - 1]:g}, {values[bad]:g}",
                "even steps from the declared start",
                rule="time-gaps",
            )
        )
    frequency = _frequency_of(step, word, bool(_ANNUAL.search(times.where.rsplit("/", 1)[-1])))
    decimal_years = abs(12.0 * step - 1.0) < 0.12 and (word in (None, "years"))
    if frequency is None or (decimal_years and int(values[0] + 1e-3) not in (0, start[0])):
        raise DataError(
            Problem(
                times.where,
                times.name,
                f"{_ends(values)} in steps of {step:g} {times.units}".rstrip(),
                f"months or years from the declared {start[0]}-{start[1]:02d}",
                "Correct whichever is wrong.",
                rule="time-units-missing",
            )
        )
    first = start if frequency == "mon" else (start[0], 1)
    axis = MonthAxis(times.calendar, first, values.size, frequency)
    times.note("time-declared", f"no units, {_ends(values)}: {_span(axis)} (declared start)")
    return axis


def _frequency_of(step: float, word: str | None, annual: bool) -> Frequency | None:
    months: dict[str, tuple[float, float]] = {
        "months": (0.99, 1.01),
        "years": (0.99 / 12, 1.01 / 12),
        "days": (27.0, 32.0),
    }
    years: dict[str, tuple[float, float]] = {
        "months": (11.9, 12.1),
        "years": (0.99, 1.01),
        "days": (359.0, 367.0),
    }

    def within(spans: dict[str, tuple[float, float]]) -> bool:
        chosen = spans.values() if word is None else [spans.get(word, (0.0, 0.0))]
        return any(low <= step <= high for low, high in chosen)

    # A plain count (1, 2, 3 without any unit) is one of months, unless the name says otherwise.
    if within(months) and not (annual and within(years)):
        return "mon"
    return "yr" if within(years) else None


def _as_named(where: str, name: str, axis: MonthAxis) -> None:
    """Rule ``time-other-years``: the file's name says other years than its axis (ELM: 1698-2022).

    Only a span of years in the name counts, and only times outside of it: a file may hold less.
    """
    found = list(_NAMED_YEARS.finditer(where.rsplit("/", 1)[-1]))
    if len(found) != 1:
        return
    year, month, last_year, last_month = found[0].groups()
    if (month or last_month) and not (month and last_month):
        return
    first = (int(year), int(month or 1))
    last = (int(last_year), int(last_month or 12))
    if first > last or first[1] not in range(1, 13) or last[1] not in range(1, 13):
        return
    last_found = axis.periods[-1] if axis.frequency == "mon" else (axis.periods[-1][0], 1)
    if axis.frequency == "yr":
        first = (first[0], 1)
    if axis.periods[0] < first or last_found > last:
        raise DataError(
            Problem(
                where,
                name,
                f"times that decode to {_span(axis)}",
                f"{found[0].group(0)}, as the file's name says",
                "Correct the time units, or the name; times are never shifted by count.",
                rule="time-other-years",
            )
        )


def _span(axis: MonthAxis) -> str:
    (y0, m0), (y1, m1) = axis.periods[0], axis.periods[-1]
    if axis.frequency == "yr":
        return f"{axis.size} years from {y0} to {y1}"
    return f"{axis.size} months from {y0}-{m0:02d} to {y1}-{m1:02d}"


def _ends(values: Sequence[Any] | NDArray[Any]) -> str:
    first, last = float(values[0]), float(values[-1])
    return f"the value {first:.10g}" if len(values) == 1 else f"values {first:.10g} to {last:.10g}"
