"""Whether the variables of a run can be what they claim to be, each alone and with the others.

Everything is judged from what `checks.Summary` has gathered while the values were streamed: nothing
is read again. A finding is either a Problem, and the variable is refused, or words about something
that is kept but should be looked at. Each check says what evidence it needs; without it (a region,
a few months, one file) it is silent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import Problem
from callmip_global.grid import Grid
from callmip_global.harmonize.checks import Summary, summary_problem
from callmip_global.harmonize.landmask import Placement, placement
from callmip_global.harmonize.variable_map import substance_of
from callmip_global.timeaxis import MonthAxis
from callmip_global.units import CAUSES
from callmip_global.variables import Variable, windows

if TYPE_CHECKING:
    from callmip_global.harmonize.planning import RunPlan
    from callmip_global.harmonize.variable_map import VariableMap

Array = NDArray[np.float64]
Finding = tuple[str, str, "str | Problem"]
"""(variable, rule, why it is refused or what should be looked at)."""

LATENT_J_KG = 2.5e6
"""Latent heat of vaporization that heat and water are compared with [J kg-1]."""
AGREE = 0.01
"""Relative difference up to which a global total is the one that a group declares."""

_SECONDS_PER_DAY = 86400.0
_DAYS_PER_YEAR = 365.25
_LAND_M2 = (0.9e14, 1.75e14)
"""Land of the Earth in masks with and without Antarctica, with and without deserts [m2]."""


@dataclass(frozen=True)
class Field:
    """One variable after streaming.

    axis : of the summary's steps;  where : the file or entry that messages name
    pieces : (first step, file) of every file the values come from, in time order
    sources : variables it was derived from, directly or not
    totals : the group's own global totals by year, see `Declared`
    """

    variable: Variable
    summary: Summary
    axis: MonthAxis
    where: str
    pieces: tuple[tuple[int, str], ...] = ()
    sources: frozenset[str] = frozenset()
    totals: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def complete(self) -> bool:
        """Whether every step of the axis was summarized."""
        return len(self.summary.steps) == self.axis.size

    def said(self, step: int) -> str:
        """A step in words: 2001-07, or 2001 of annual values."""
        year, month = self.axis.periods[step]
        return f"{year}-{month:02d}" if self.axis.frequency == "mon" else str(year)


# --- everything -----------------------------------------------------------------------------------


def fields_of(
    plan: RunPlan,
    variable_map: VariableMap,
    names: Sequence[str],
    totals: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
) -> dict[str, Field]:
    """The fields of a run that was streamed. ``totals``: the group's own, see `Declared`."""
    found = {}
    for name in names:
        item, timeline = plan.plans[name], plan.plans[name].timeline
        pieces: list[tuple[int, str]] = []
        axis = timeline.axis if timeline is not None else plan.axis(item.frequency)
        if timeline is not None:
            at = 0
            for piece in timeline.pieces:
                pieces.append((at, piece.file.origin))
                at += len(piece.periods)
        place = pieces[0][1] if pieces else variable_map.place(name)
        sources = frozenset(variable_map.closure([name])) - {name}
        found[name] = Field(
            item.variable,
            item.summary,
            axis,
            place,
            tuple(pieces),
            sources,
            totals.get(name, MappingProxyType({})),
        )
    return found


def judge(fields: Mapping[str, Field], grid: Grid) -> list[Finding]:
    """Everything there is to say about the fields of a run on one grid, in their order.

    A field that is refused by itself is not compared with the others.
    """
    places = _placements(fields, grid)
    findings: list[Finding] = []
    for name, item in fields.items():
        findings += _alone(name, item, places[name], grid)
    bad = {name for name, _, said in findings if isinstance(said, Problem)}
    good = {name: item for name, item in fields.items() if name not in bad}
    found = cross_checks(good, grid, {name: places[name] for name in good})
    order = {name: i for i, name in enumerate(fields)}
    return sorted([*findings, *found], key=lambda finding: order[finding[0]])


def _placements(fields: Mapping[str, Field], grid: Grid) -> dict[str, Placement | None]:
    """Where the land of each field lies; most fields share one mask, which is looked at once."""
    known: dict[bytes, Placement | None] = {}
    found: dict[str, Placement | None] = {}
    for name, item in fields.items():
        held = item.summary.held
        if held is None or held.shape != grid.shape:
            found[name] = None
            continue
        key = np.packbits(held).tobytes()
        if key not in known:
            known[key] = placement(held, grid)
        found[name] = known[key]
    return found


def _alone(name: str, item: Field, place: Placement | None, grid: Grid) -> Iterator[Finding]:
    problem = summary_problem(item.summary, item.variable, item.where)
    if problem is not None:
        yield name, problem.rule, _with_place(problem, item, grid)
        return
    checks = (_few_outside, _still, _steps, _joins)
    for check in checks:
        found = list(check(item))
        yield from ((name, rule, said) for rule, said in found)
        if any(isinstance(said, Problem) for _, said in found):
            return
    if place is not None and place.misplaced:
        said = f"a land mask that correlates best with the Earth's at {place.words} "
        said += f"({place.best:.3f})"
        wanted = f"the best at the coordinates stated ({place.here:.3f} there)"
        remedy = "Correct the coordinates, or the order of the rows and columns."
        if "1/2" in place.words:
            remedy = "Half a cell: are the coordinates corners of the cells and not their centres?"
        yield name, "placement", Problem(item.where, name, said, wanted, remedy, rule="placement")
        return
    yield from ((name, rule, said) for rule, said in _declared_total(item))
    if _is_whole_earth(item, place):
        yield from ((name, rule, said) for rule, said in _world(item))


def _with_place(problem: Problem, item: Field, grid: Grid) -> Problem:
    """The problem with where and when the extreme value is that it speaks of."""
    if problem.rule != "damaged" or not item.complete:
        return problem
    low, high = item.variable.valid_range
    summary = item.summary
    beyond = summary.high - high >= low - summary.low
    at = summary.high_at if beyond else summary.low_at
    if at is None:
        return problem
    row, column = divmod(at[1], grid.shape[1])
    value = summary.high if beyond else summary.low
    found = f"{problem.found}, {value:.4g} in {item.said(at[0])} at {_city(grid, row, column)}"
    return Problem(
        _file_of(item, at[0]), problem.key, found, problem.wanted, problem.remedy, problem.rule
    )


def _city(grid: Grid, row: int, column: int) -> str:
    lat, lon = float(grid.lat[row]), (float(grid.lon[column]) + 180.0) % 360.0 - 180.0
    return f"{abs(lat):.4g}{'N' if lat >= 0 else 'S'} {abs(lon):.4g}{'E' if lon >= 0 else 'W'}"


def _file_of(item: Field, step: int) -> str:
    files = [file for first, file in item.pieces if first <= step]
    return files[-1] if files else item.where


def _is_whole_earth(item: Field, place: Placement | None) -> bool:
    """Whether the field shows the continents, all of them, so that totals mean something."""
    if place is None or not place.is_earth:
        return False
    area = float(np.median(item.summary.areas))
    return _LAND_M2[0] <= area <= _LAND_M2[1]


# --- one variable in time -------------------------------------------------------------------------


Said = Iterator[tuple[str, "str | Problem"]]


def _few_outside(item: Field) -> Said:
    if item.summary.outside:
        low, high = item.variable.valid_range
        span = f"{item.summary.low:.4g} to {item.summary.high:.4g} {item.variable.units}"
        yield (
            "few-outside",
            f"{item.summary.outside} of {item.summary.count} values outside {low:g} to {high:g} "
            f"({span}), kept",
        )


def _still(item: Field) -> Said:
    """Cells whose value never changes: all of them, or many that are not zero."""
    steps = int((item.summary.counts > 0).sum())
    if steps < 2 or item.variable.is_uncertainty:
        return
    every, not_zero = item.summary.still_share
    name = item.variable.name
    if every == 1.0:
        found = f"one map that {steps} steps repeat"
        remedy = "Declare it absent if the model does not have it; a map is never repeated."
        yield (
            "constant",
            Problem(item.where, name, found, "values that change in time", remedy, "constant"),
        )
    elif steps >= 12 and not_zero > 0.3:
        yield (
            "constant-cells",
            f"{100 * not_zero:.2g} % of the cells hold one value, not 0, in all {steps} steps",
        )


def _steps(item: Field) -> Said:
    """Steps that hold nothing, nothing but zeros, or what another step holds."""
    summary, axis, name = item.summary, item.axis, item.variable.name
    if not item.complete:
        return
    empty = np.flatnonzero(summary.counts == 0)
    if empty.size:
        found = f"no value in {empty.size} of {axis.size} steps: {_some(item, empty)}"
        remedy = "Deliver the missing steps; files that were not closed look like this."
        where = _file_of(item, int(empty[0]))
        yield "empty-steps", Problem(where, name, found, "values in all", remedy, "empty-steps")
        return
    zero = np.flatnonzero(summary.sizes == 0.0)
    if zero.size:
        months = [month for _, month in axis.periods]
        alive = {month for step, month in enumerate(months) if summary.sizes[step] > 0.0}
        dead = np.array([step for step in zero if months[step] in alive], dtype=np.intp)
        if dead.size:
            found = f"nothing but 0 in {dead.size} of {axis.size} steps: {_some(item, dead)}"
            wanted = "values, as in the same months of other years"
            remedy = "Copy or write the file again; interrupted files are read as zeros."
            where = _file_of(item, int(dead[0]))
            yield "zero-steps", Problem(where, name, found, wanted, remedy, "zero-steps")
            return
    usual = float(np.median(summary.counts))
    thin = np.flatnonzero(summary.counts < 0.95 * usual)
    if thin.size:
        yield (
            "thin-steps",
            f"fewer cells with values in {_some(item, thin)}: at least "
            f"{int(summary.counts[thin].min())}, usually {usual:g}",
        )
    yield from _repeated(item)


def _repeated(item: Field) -> Said:
    """Years that repeat one value for all months, or one year."""
    if item.axis.frequency != "mon" or item.axis.size < 24 or item.variable.is_uncertainty:
        return
    try:
        months, years = item.axis.complete_years()
    except ValueError:
        return
    kept = item.summary.steps[months].reshape(years.size, 12, -1)
    name = item.variable.name
    if years.size < 2:
        return
    if np.array_equal(kept, np.broadcast_to(kept[:, :1], kept.shape)):
        found = "the same values in all months of each year"
        if item.variable.kind == "pool":
            yield "annual-steps", f"{found}: the model changes them once a year, or they are annual"
            return
        remedy = "Hand in annual values as annual; they are never repeated for months."
        yield "repeated", Problem(item.where, name, found, "monthly values", remedy, "repeated")
    elif np.array_equal(kept, np.broadcast_to(kept[:1], kept.shape)):
        yield "repeated-years", f"the same values in each of the {years.size} years"


def _joins(item: Field) -> Said:
    """What changes where one file ends and the next begins, and nowhere else."""
    summary, axis = item.summary, item.axis
    joins = [first for first, _ in item.pieces if first > 0]
    if not joins or not item.complete or axis.frequency != "mon":
        return
    worst: tuple[float, int, str, float] | None = None
    for join in joins:
        before, after = _alike_months(axis, join)
        if len(before) < 6:
            continue
        small, large = summary.sizes[before].sum(), summary.sizes[after].sum()
        if small <= 0.0 or large <= 0.0:
            continue
        ratio = large / small
        words = ""
        if max(ratio, 1 / ratio) > 3.0:
            words = f"values {ratio:.3g} times those before"
        elif item.variable.signed and len(before) == 12:
            a, b = summary.totals[before], summary.totals[after]
            if a.std() > 0 and b.std() > 0 and np.corrcoef(a, b)[0, 1] < -0.8 and a @ b < 0:
                words, ratio = "seasons of the opposite sign", -1.0
        how = abs(math.log(ratio)) if ratio > 0 else math.inf
        if words and (worst is None or how > worst[0]):
            worst = (how, join, words, ratio)
    if worst is not None:
        _, join, words, ratio = worst
        one, two = _file_of(item, join - 1), _file_of(item, join)
        mended, other = _cause(1 / ratio), _cause(ratio)
        remedy = "Check the units of both."
        if mended:
            remedy = f"Perhaps wrong by {mended}"
        elif other:
            remedy = f"Perhaps {one} is wrong by {other}"
        found, wanted = f"{words}, from {item.said(join)}", f"what {one} ends with"
        problem = Problem(two, item.variable.name, found, wanted, remedy, "join")
        yield "join", problem
        return
    yield from _level_shift(item, joins)


def _alike_months(axis: MonthAxis, join: int) -> tuple[list[int], list[int]]:
    """Up to twelve steps from ``join`` on, and those of the same months of the year before it."""
    before, after = [], []
    for step in range(join, min(join + 12, axis.size)):
        earlier = step - 12
        if 0 <= earlier < join:
            before.append(earlier)
            after.append(step)
    return before, after


def _level_shift(item: Field, joins: Sequence[int]) -> Said:
    """A step of the yearly mean at a join, many times what it is elsewhere."""
    means = item.summary.totals / np.where(item.summary.areas > 0, item.summary.areas, 1.0)
    if means.size < 48:
        return
    sums = np.concatenate([[0.0], np.cumsum(means)])
    at = np.arange(12, means.size - 11)
    change = (sums[at + 12] - 2 * sums[at] + sums[at - 12]) / 12
    near = np.zeros(at.size, dtype=bool)
    for join in joins:
        near |= np.abs(at - join) < 12
    if (~near).sum() < 12:
        return
    usual = float(np.median(np.abs(change[~near])))
    level = float(np.abs(means).mean())
    for join in joins:
        if 12 <= join < means.size - 11:
            jump = abs(float(change[join - 12]))
            if jump > 10 * usual and jump > 0.05 * level:
                yield (
                    "join-unusual",
                    f"the yearly mean changes by {100 * jump / level:.2g} % from {item.said(join)} "
                    f"on, where {_file_of(item, join)} begins; elsewhere by "
                    f"{100 * usual / level:.2g} %",
                )
                return


def _some(item: Field, steps: NDArray[np.intp]) -> str:
    said = ", ".join(item.said(int(step)) for step in steps[:3])
    return f"{said} and others" if steps.size > 3 else said


# --- totals ---------------------------------------------------------------------------------------


def annual_totals(item: Field, *, other: bool = False) -> dict[int, float]:
    """Global total of each whole year [Pg or PW or 1e3 km3 per year, or Pg of a pool].

    ``other``: as they are if the values are per area of the cell (see `checks.Summary.add`).
    """
    if not item.complete:
        return {}
    steps = item.summary.other_totals if other else item.summary.totals
    factor = _per_year(item.variable)
    if item.axis.frequency == "yr":
        return {year: factor * t for (year, _), t in zip(item.axis.periods, steps, strict=True)}
    try:
        months, years = item.axis.complete_years()
    except ValueError:
        return {}
    days = item.axis.lengths_days[months].reshape(-1, 12)
    means = (steps[months].reshape(-1, 12) * days).sum(axis=1) / days.sum(axis=1)
    return {y: factor * float(m) for (y, _), m in zip(years.periods, means, strict=True)}


def _per_year(var: Variable) -> float:
    """Factor from an integral in the units of the table times m2 to those of the totals."""
    year = _DAYS_PER_YEAR * _SECONDS_PER_DAY
    if var.units == "kg m-2 s-1":
        return year * (1e-12 if substance_of(var) == "carbon" else 1e-15)
    if var.units == "kg m-2":
        return 1e-12
    return 1e-15 if var.units == "W m-2" else 1.0


def _declared_total(item: Field) -> Said:
    """Whether the global totals are those that the group has computed itself."""
    if not item.totals:
        return
    here, other = annual_totals(item), annual_totals(item, other=True)
    years = sorted(set(item.totals) & set(here))
    if not years:
        yield "totals-unused", "the declared totals are of none of the years"
        return
    wanted = np.array([item.totals[year] for year in years])
    found, instead = (np.array([t[year] for year in years]) for t in (here, other))
    if _same(found, wanted):
        yield "totals-met", f"the group's own global totals are met in {len(years)} years"
        return
    worst = int(np.argmax(np.abs(found - wanted)))
    units = _total_units(item.variable)
    said = f"a global total of {found[worst]:.6g} {units} in {years[worst]}"
    remedy = ""
    if _same(instead, wanted):
        remedy = "They are met if the area is the other one: say per: cell instead of per: land, "
        remedy += "or the other way round."
    elif np.all(np.abs(found) > 0):
        ratio = float(np.median(wanted / found))
        cause = _cause(ratio)
        remedy = f"Perhaps wrong by {cause}" if cause else f"The ratio is {1 / ratio:.4g}."
    declared = f"{wanted[worst]:.6g} within 1 %, as the manifest's totals say"
    yield (
        "totals",
        Problem(item.where, item.variable.name, said, declared, remedy, "totals"),
    )


def _same(a: Array, b: Array) -> bool:
    """Whether totals agree; those of signed fluxes near 0 by the size of the others."""
    size = float(np.abs(b).mean())
    return bool(np.all(np.abs(a - b) <= AGREE * np.maximum(np.abs(b), 0.5 * size)))


def _total_units(var: Variable) -> str:
    if var.units == "kg m-2 s-1":
        return "PgC yr-1" if substance_of(var) == "carbon" else "1e3 km3 yr-1"
    return {"kg m-2": "Pg", "W m-2": "PW"}.get(var.units, f"{var.units} m2")


def _world(item: Field) -> Said:
    """Whether the whole Earth's total or mean is one that any model has."""
    window = windows().get(item.variable.name)
    found = annual_totals(item)
    if window is None or not found:
        return
    area = float(np.mean(item.summary.areas)) * _per_year(item.variable)
    value = float(np.mean(list(found.values())))
    if window.of == "mean":
        value /= area
    name = item.variable.name
    said = f"a global {window.of} of {value:.4g} {window.units}"
    low, high = window.fail
    if not low <= value <= high:
        other = float(np.mean(list(annual_totals(item, other=True).values())))
        other = other / area if window.of == "mean" else other
        remedies = []
        if other != value and window.warn[0] <= other <= window.warn[1]:
            remedies.append("Values per area of the cell, not per area of land?")
        # Around 0 a total tells no factor: any small one fits.
        telling = value != 0.0 and window.warn[0] > 0.0
        cause = _cause(sum(window.warn) / 2 / value, window.warn, value) if telling else ""
        if cause:
            remedies.append(f"Perhaps wrong by {cause}")
        remedy = " ".join(remedies) or "Check the units, the sign and the area."
        wanted = f"{low:g} to {high:g} (usually {window.warn[0]:g} to {window.warn[1]:g})"
        yield "total", Problem(item.where, name, said, wanted, remedy, "total")
    elif not window.warn[0] <= value <= window.warn[1]:
        yield (
            "total-unusual",
            f"{said}, usually {window.warn[0]:g} to {window.warn[1]:g} ({window.source})",
        )


def _cause(ratio: float, window: tuple[float, float] | None = None, value: float = math.nan) -> str:
    """The known mistakes that multiplying with about ``ratio`` would mend, most likely first.

    ``window``: any factor that brings ``value`` into it is about right.
    """
    likely = []
    for factor, text in CAUSES:
        if (factor < 0) != (ratio < 0):
            continue
        off = abs(math.log(factor / ratio))
        if off < 0.05 if window is None else window[0] <= value * factor <= window[1]:
            likely.append((off, text))
    return " or by ".join(text for _, text in sorted(likely)[:2])


# --- several variables ----------------------------------------------------------------------------


_PARTS = (
    ("cLeaf", "cLiveBioAbove"),
    ("cStem", "cLiveBioAbove"),
    ("ra", "reco"),
    ("rh", "reco"),
    ("tran", "evspsbl"),
    ("evspsblsoi", "evspsbl"),
)


def cross_checks(
    fields: Mapping[str, Field],
    grid: Grid,
    places: Mapping[str, Placement | None] | None = None,
) -> list[Finding]:
    """What variables of one run say about each other. ``places``: where their land lies."""
    if places is None:
        places = _placements(fields, grid)
    return [
        *_carbon_balance(fields),
        *_evaporation(fields, places),
        *_layer_and_column(fields),
        *_parts(fields),
        *_copies(fields),
        *_masks(fields, grid),
    ]


def _mean(fields: Mapping[str, Field], *names: str) -> tuple[float, ...] | None:
    """Mean over time and land area of each; None unless all are there on the same steps."""
    if any(name not in fields for name in names):
        return None
    axes = {(f.axis.first, f.axis.size, f.axis.frequency) for f in map(fields.__getitem__, names)}
    summaries = [fields[name].summary for name in names]
    if len(axes) != 1 or not all(f.complete for f in map(fields.__getitem__, names)):
        return None
    return tuple(s.mean for s in summaries) if all(s.weight for s in summaries) else None


def _carbon_balance(fields: Mapping[str, Field]) -> Iterator[Finding]:
    """nep is gpp - reco, less fire where a model has it."""
    if _mean(fields, "nep", "gpp", "reco") is None or fields["nep"].sources & {"gpp", "reco"}:
        return
    nep, gpp, reco = (fields[n].summary.totals for n in ("nep", "gpp", "reco"))
    net = gpp - reco
    size = float(np.sqrt((net**2).mean()))
    if nep.size < 12 or size <= 0.001 * float(np.abs(gpp).mean()):
        return
    where = fields["nep"].where
    slope = float(nep @ net / (net @ net))
    off = float(np.sqrt(((nep - slope * net) ** 2).mean())) / (abs(slope) * size) if slope else 1.0
    if off < 0.1 and not 0.5 < slope < 2.0:
        found = f"{slope:.4g} times gpp - reco"
        cause = _cause(1 / slope)
        remedy = f"Perhaps wrong by {cause}" if cause else "Check the units of nep, gpp and reco."
        if slope < 0 and cause:
            remedy = "The sign is that of NEE: say sign: -1 in the variable map."
        problem = Problem(where, "nep", found, "gpp - reco", remedy, "carbon-balance")
        yield "nep", "carbon-balance", problem
        return
    lost = net - nep
    share = float(lost.mean() / gpp.mean()) if gpp.mean() else 0.0
    if not -0.01 <= share <= 0.06:
        yield (
            "nep",
            "carbon-open",
            f"gpp - reco - nep is {100 * share:.2g} % of gpp; fire is 1 to 3 %",
        )


def _evaporation(
    fields: Mapping[str, Field], places: Mapping[str, Placement | None]
) -> Iterator[Finding]:
    """Heat and water leave together; transpiration and soil evaporation are parts of the water."""
    heat = _mean(fields, "hfls", "evspsbl")
    parts = _mean(fields, "hfls", "tran", "evspsblsoi")
    if heat is not None and "evspsbl" not in fields["hfls"].sources:
        yield from _heat_and_water(fields, heat[0] / LATENT_J_KG, heat[1], "evspsbl", 0.85, 1.18)
    elif parts is not None and not fields["hfls"].sources & {"tran", "evspsblsoi"}:
        # Interception is missing: the parts are less, but not by much.
        water = parts[1] + parts[2]
        yield from _heat_and_water(
            fields, parts[0] / LATENT_J_KG, water, "tran + evspsblsoi", 0.85, 2.5
        )
    share = _mean(fields, "tran", "evspsbl")
    place = places.get("tran")
    if share is not None and share[1] > 0 and place is not None and place.is_earth:
        part = share[0] / share[1]
        if not 0.25 <= part <= 0.85:
            yield (
                "tran",
                "transpiration-share",
                f"{100 * part:.3g} % of evapotranspiration, usually 35 to 75 %",
            )


def _heat_and_water(
    fields: Mapping[str, Field], heat: float, water: float, name: str, low: float, high: float
) -> Iterator[Finding]:
    if water == 0.0 or low <= heat / water <= high:
        return
    ratio = heat / water
    if 1 / 36.0 < ratio < 1 / 23.0:
        found = f"{ratio:.3g} times the heat that {name} takes"
        remedy = "Perhaps mm/day (28.9 W m-2 each) under the units W m-2?"
        problem = Problem(
            fields["hfls"].where, "hfls", found, "about 1", remedy, "evaporation-factor"
        )
        yield "hfls", "evaporation-factor", problem
    else:
        yield (
            "hfls",
            "evaporation-open",
            f"hfls / {LATENT_J_KG:g} J kg-1 is {ratio:.3g} times {name}, "
            f"wanted {low:g} to {high:g}",
        )


def _layer_and_column(fields: Mapping[str, Field]) -> Iterator[Finding]:
    means = _mean(fields, "mrsos", "mrso")
    if means is not None and means[0] > 1.01 * means[1]:
        found = f"a mean of {means[0]:.4g} kg m-2, more than the {means[1]:.4g} of mrso"
        remedy = "Check the layers that each of them takes, and their units."
        wanted = "the top 10 cm of what mrso holds"
        problem = Problem(fields["mrsos"].where, "mrsos", found, wanted, remedy, "layer-exceeds")
        yield "mrsos", "layer-exceeds", problem


def _parts(fields: Mapping[str, Field]) -> Iterator[Finding]:
    for part, whole in _PARTS:
        means = _mean(fields, part, whole)
        if means is None or part in fields[whole].sources or means[0] <= 1.02 * abs(means[1]):
            continue
        yield (
            part,
            "part-exceeds",
            f"its mean, {means[0]:.4g}, is more than that of {whole}, {means[1]:.4g}",
        )


def _copies(fields: Mapping[str, Field]) -> Iterator[Finding]:
    """Two variables that hold the same values, and are not made of each other."""
    seen: dict[tuple[str, str], str] = {}
    for name, item in fields.items():
        key = (item.variable.units, item.summary.digest)
        twin = seen.setdefault(key, name)
        if twin != name and name not in fields[twin].sources and twin not in item.sources:
            yield name, "copy", f"the same values as {twin}"


def _masks(fields: Mapping[str, Field], grid: Grid) -> Iterator[Finding]:
    """Variables that hold values elsewhere than most of the others do."""
    held = {n: f.summary.held for n, f in fields.items() if f.summary.held is not None}
    keys = {n: np.packbits(mask).tobytes() for n, mask in held.items()}
    if len(keys) < 3:
        return
    usual, number = Counter(keys.values()).most_common(1)[0]
    if number < 2 or 2 * number <= len(keys):
        return
    first = next(n for n in keys if keys[n] == usual)
    reference = held[first]
    area = float(grid.cell_area[reference].sum())
    for name, mask in held.items():
        more = float(grid.cell_area[mask & ~reference].sum()) / area
        less = float(grid.cell_area[reference & ~mask].sum()) / area
        if max(more, less) > 0.02:
            yield (
                name,
                "mask-differs",
                f"values on {100 * more:.2g} % more and {100 * less:.2g} % less area than {first} "
                f"and {number - 1} others",
            )


# --- the other stage ------------------------------------------------------------------------------


def same_values(
    report: Mapping[str, Any], other: Mapping[str, Any], where: str, other_name: str
) -> list[Finding]:
    """Variables whose values are those of the other stage of the same simulation.

    report, other : reports of `harmonize_files` (``variables`` with their digests, ``grid``), of
    this stage and of the other one, which messages call ``other_name``. A Problem for each variable
    when all that both have are the same: one stage was handed in twice. Words where some are, which
    calibrating may have left alone (a prescribed leaf area).
    """
    mine, others = report["variables"], other["variables"]
    if report["grid"]["digest"] != other["grid"]["digest"]:
        return []
    both = [n for n in mine if n in others and mine[n].get("digest") and others[n].get("digest")]
    same = [n for n in both if mine[n]["digest"] == others[n]["digest"]]
    if len(same) == len(both) and (len(both) > 1 or set(both) - {"lai"}):
        remedy = "Hand in the files of this stage, or correct the manifest's stage."
        wanted = "other values: calibrating changes them"
        return [
            (
                n,
                "copy-of-stage",
                Problem(where, n, f"the values of {other_name}", wanted, remedy, "copy-of-stage"),
            )
            for n in same
        ]
    return [(n, "same-in-stage", f"the same values as in {other_name}") for n in same]
