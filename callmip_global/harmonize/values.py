"""The values of some steps of every variable: read, converted, cleaned, put per land area."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.harmonize.checks import tolerated, unflagged_fill
from callmip_global.harmonize.native import Timeline
from callmip_global.harmonize.planning import RunPlan, VariablePlan
from callmip_global.timeaxis import MonthAxis, month_axis
from callmip_global.units import Conversion

Array = NDArray[np.float64]

LOST = 1e-3
"""Share of a per-cell variable's integral that may lie where the land fraction is 0."""


class Block:
    """The values of some steps: every variable made once, kept while a derivation needs it."""

    def __init__(self, plan: RunPlan, axis: MonthAxis, region: slice, fraction: Array) -> None:
        self.plan, self.axis, self.region = plan, axis, region
        self.weights = plan.grid.cell_area * fraction
        self.kept: dict[str, Array] = {}
        self.needed = {
            n for p in plan.plans.values() if p.entry.expression for n in p.entry.expression.names
        }

    def make(self, name: str, problems: dict[str, list[Problem]]) -> Array | None:
        """(n, nlat, nlon) float64 in store units, or None where it, or what it needs, failed."""
        plan = self.plan.plans[name]
        if problems.get(name):
            return None
        if plan.entry.expression is not None:
            if any(needed not in self.kept for needed in plan.entry.expression.names):
                return None
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.asarray(plan.entry.expression.evaluate(self.kept), dtype=np.float64)
        else:
            try:
                values = self.converted(plan, self.region)
            except DataError as error:
                problems[name] = list(error.problems)
                return None
        plan.summary.add(values, self.weights, plan.variable)
        if self.axis.frequency == "mon":
            months = [month for _, month in self.axis.periods]
            plan.summary.seasons.add(values, self.weights, self.plan.grid.lat, months)
        if name in self.needed:
            self.kept[name] = values
        return values

    def converted(self, plan: VariablePlan, steps: slice) -> Array:
        """(n, nlat, nlon) of a native variable in store units, per land area."""
        timeline = plan.timeline
        assert timeline is not None
        values = timeline.read(steps, plan.entry.select)
        conversion, var = plan.conversion, plan.variable
        assert conversion is not None
        axis = timeline.axis.part(steps)
        scale = plan.entry.sign * plan.entry.factor
        low, high = tolerated(var)
        days = _period_days(axis, conversion)

        def convert(native: Array) -> Array:
            return conversion.apply(native, days[: native.shape[0]]) * scale

        def plausible(value: float) -> bool:
            return low <= float(convert(np.array([[[value]]]))[0, 0, 0]) <= high

        unflagged = unflagged_fill(values, plausible)
        if unflagged is not None:
            values[:, unflagged[1]] = np.nan
            cells = int(unflagged[1].sum())
            plan.fixes["fill"] = f"{unflagged[0]:g} without attribute set to missing, {cells} cells"
        return self._per_land(plan, convert(values), timeline)

    def _per_land(self, plan: VariablePlan, values: Array, timeline: Timeline) -> Array:
        fraction = self.plan.land_fraction
        if fraction is None:
            return values
        sea = fraction == 0.0
        if plan.entry.per == "cell" and plan.variable.kind != "state":
            mass = np.abs(np.nan_to_num(values)).sum(axis=0) * self.plan.grid.cell_area
            lost = float(mass[sea].sum() / mass.sum()) if mass.sum() else 0.0
            if lost > LOST:
                where = timeline.files[0].origin
                found = f"{100 * lost:.2g} % of the integral in cells without land"
                remedy = "Is it per land area (per: land), or the land fraction another grid's?"
                raise DataError(Problem(where, timeline.name, found, "nothing there", remedy))
            with np.errstate(divide="ignore", invalid="ignore"):
                values = values / fraction
            plan.fixes["per-cell"] = "divided by the land fraction, to values per land area"
        held = int(np.isfinite(values[:, sea]).any(axis=0).sum())
        if held:
            plan.fixes["sea"] = f"set to missing where the land fraction is 0, {held} cells"
        values[:, sea] = np.nan
        return values


def _period_days(axis: MonthAxis, conversion: Conversion) -> Array:
    """(n,) length of the month or year each step lies in; of a mean month for annual values."""
    if conversion.per == "month" and axis.frequency == "yr":
        return axis.lengths_days / 12.0
    if conversion.per != "year" or axis.frequency == "yr":
        return axis.lengths_days
    first, last = axis.years
    lengths = month_axis((first, last), axis.calendar, "yr").lengths_days
    return np.array([lengths[year - first] for year, _ in axis.periods])
