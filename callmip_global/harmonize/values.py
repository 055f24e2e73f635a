"""The values of some steps of every variable: read, converted, cleaned, put per land area."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.harmonize.checks import tolerated
from callmip_global.harmonize.fills import stray_sentinel
from callmip_global.harmonize.kernels import clear_fill, clear_sea, divide_by_land
from callmip_global.harmonize.planning import LOST, ZERO_SEA, RunPlan, VariablePlan, astray
from callmip_global.timeaxis import MonthAxis

Array = NDArray[np.float64]


class Block:
    """The values of some steps: every variable made once, kept while a derivation needs it.

    axis : the steps, all of one frequency;  region : which they are of the wanted ones
    fraction : (nlat, nlon) land fraction that integrals are taken with
    """

    def __init__(self, plan: RunPlan, axis: MonthAxis, region: slice, fraction: Array) -> None:
        self.plan, self.axis, self.region = plan, axis, region
        self.weights = plan.grid.cell_area * fraction
        land = plan.land_fraction
        self.sea = None if land is None else np.flatnonzero(land == 0.0)
        self.kept: dict[str, Array] = {}
        self.needed = {
            n for p in plan.plans.values() if p.entry.expression for n in p.entry.expression.names
        }

    def make(self, name: str, problems: dict[str, list[Problem]]) -> Array | None:
        """(n, nlat, nlon) float64 in store units, or None where it, or what it needs, failed."""
        plan = self.plan.plans[name]
        if problems.get(name):
            return None
        try:
            if plan.entry.expression is not None:
                if any(needed not in self.kept for needed in plan.entry.expression.names):
                    return None
                with np.errstate(divide="ignore", invalid="ignore"):
                    values = np.asarray(plan.entry.expression.evaluate(self.kept), dtype=np.float64)
            else:
                values = self.converted(plan, self.region)
            self._count(plan, values)
        except DataError as error:
            problems[name] = list(error.problems)
            return None
        if name in self.needed:
            self.kept[name] = values
        return values

    def _count(self, plan: VariablePlan, values: Array) -> None:
        """Add the values to the summary. DataError for a fill value among them."""
        var, summary = plan.variable, plan.summary
        summary.add(values, self.weights, var, self._other_weights(plan))
        if self.axis.frequency == "mon":
            months = [month for _, month in self.axis.periods]
            summary.seasons.add(values, self.weights, self.plan.grid.lat, months)
        low, high = tolerated(var)
        if plan.timeline is None or (summary.low >= low and summary.high <= high):
            return
        found = stray_sentinel(values, lambda v: plan.converted(v, self.axis), (low, high))
        if found is not None:
            where, native = plan.timeline.files[0].origin, plan.timeline.name
            said = f"{found[0]:g} as {found[1]} of the values of {_span(self.axis)}"
            remedy = (
                "Set the attribute _FillValue to it, or write one value for all that is missing."
            )
            wanted = "a fill value that an attribute names, or the same cells in every step"
            raise DataError(Problem(where, native, said, wanted, remedy, "fill-changes"))

    def _other_weights(self, plan: VariablePlan) -> Array | None:
        """Weights of the totals as they are if the values are per the other area after all."""
        fraction = self.plan.land_fraction
        if fraction is None or plan.variable.kind == "state":
            return None
        area = self.plan.grid.cell_area
        # Values that were divided by the fraction are multiplied by it to be what they were.
        return area * fraction**2 if plan.per == "cell" else np.where(fraction > 0.0, area, 0.0)

    def converted(self, plan: VariablePlan, steps: slice) -> Array:
        """(n, nlat, nlon) of a native variable in store units, per land area.

        DataError where the values cannot be read, and where they do not bear out what the first
        step showed.
        """
        timeline = plan.timeline
        assert timeline is not None
        values = plan.read(steps)
        axis = timeline.axis.part(steps)
        if plan.fill is not None:
            flat = values.reshape(values.shape[0], -1)
            step, cells = clear_fill(flat, plan.fill.value, plan.fill.cells.ravel())
            if step >= 0:
                at = _span(axis.part(slice(step, step + 1)))
                found = f"{plan.fill.value:g} in {at} not where it is at first, {cells} cells"
                remedy = "Set the attribute _FillValue to what means missing."
                wanted = "a fill value that an attribute names, or the same cells in every step"
                raise DataError(
                    Problem(
                        timeline.files[0].origin,
                        timeline.name,
                        found,
                        wanted,
                        remedy,
                        "fill-changes",
                    )
                )
        return self._per_land(plan, plan.converted(values, axis), axis)

    def _per_land(self, plan: VariablePlan, values: Array, axis: MonthAxis) -> Array:
        fraction, sea = self.plan.land_fraction, self.sea
        if fraction is None or sea is None:
            return values
        assert plan.timeline is not None
        flat = values.reshape(values.shape[0], -1)
        if plan.per == "cell" and plan.variable.kind != "state":
            area = self.plan.grid.cell_area.ravel()
            total, lost = divide_by_land(flat, fraction.ravel(), area)
            if lost > LOST * total:
                raise astray(plan, lost / total)
            plan.fixes["per-cell"] = "divided by the land fraction, to values per land area"
        cells, held, zeros = clear_sea(flat, sea)
        found, remedy = "", "Write missing values where there is no land."
        if plan.zero_sea and zeros < ZERO_SEA * held:
            found = f"other values than 0 over the sea in {_span(axis)}, 0 in the first step"
        elif held and zeros == held and (held < cells * len(flat) or not plan.zero_sea):
            # A page of zeros in the file lies over land as well, where 0 could be a value.
            found = f"0 over the sea in some steps of {_span(axis)} only, {cells} cells"
            remedy = "Damaged files look like this: copy it again. Else, write missing values."
        elif held and not plan.zero_sea:
            plan.fixes["sea"] = f"set to missing where the land fraction is 0, {cells} cells"
        if found:
            where, wanted = plan.timeline.files[0].origin, "0 or missing over the sea"
            raise DataError(
                Problem(where, plan.timeline.name, found, wanted, remedy, "sea-changes")
            )
        return values


def _span(axis: MonthAxis) -> str:
    """The periods in words: 2003, 2003-05 or 2003-05 to 2004-04."""

    def said(period: tuple[int, int]) -> str:
        return f"{period[0]}" if axis.frequency == "yr" else f"{period[0]}-{period[1]:02d}"

    first, last = said(axis.periods[0]), said(axis.periods[-1])
    return first if first == last else f"{first} to {last}"
