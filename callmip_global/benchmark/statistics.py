"""Sufficient statistics of a reference and any number of models, gathered in one pass over time.

Every score of the scheme follows from sums per cell and per calendar month (slot): the number and
length of the steps, the sums of the values, of their squares and of their products. They need
memory of the size of the map, not of the series; blocks of time can be added in any order, and
the sums of separate blocks merged.

One mask for all: a step of a cell counts only where the reference and *every* model have a value,
so a gap of one of them never moves the scores of another.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.compiled import compiled

Array = NDArray[np.float64]


# Cells whose sums stay in the processor's cache while all steps of a block are added.
_CELLS = 256


@compiled
def _accumulate(
    reference: NDArray[Any],
    models: NDArray[Any],
    days: Array,
    slots: NDArray[np.int64],
    part: NDArray[np.int64],
    area: Array,
    low: float,
    high: float,
    begun: NDArray[np.bool_],
    guess_reference: Array,
    guess_model: Array,
    count: NDArray[np.int32],
    weight: Array,
    sum_reference: Array,
    sum_model: Array,
    square_reference: Array,
    square_model: Array,
    product: Array,
    part_areas: Array,
    part_sums: Array,
    seen: NDArray[np.int64],
    years: NDArray[np.int64],
    year_weight: NDArray[np.float32],
    year_sum_reference: NDArray[np.float32],
    year_square_reference: NDArray[np.float32],
    year_sum_model: NDArray[np.float32],
    year_square_model: NDArray[np.float32],
    year_product: NDArray[np.float32],
) -> int:
    """Add a block to the sums of ``PairSums``, in the order of time, and to those of ``YearSums``
    unless they are empty; returns how many numbers of the reference are outside ``low`` to
    ``high``."""
    n_steps, n_cells = reference.shape
    n_models = models.shape[0]
    outside = 0
    yearly = year_weight.size > 0
    valid = np.empty(_CELLS, np.bool_)
    cells = np.empty(_CELLS, np.uint32)  # unsigned: no index counts from the end
    departure = np.empty(_CELLS)
    for start in range(0, n_cells, _CELLS):
        size = min(_CELLS, n_cells - start)
        for t in range(n_steps):
            length, slot, year = days[t], slots[t], years[t]
            here = reference[t, start : start + size]
            there = 0
            for i in range(size):
                valid[i] = np.isfinite(here[i])
                there += valid[i]
                outside += valid[i] & ((here[i] < low) | (here[i] > high))
            seen[0] += there
            for k in range(n_models):
                model = models[k, t, start : start + size]
                there = 0
                for i in range(size):
                    known = np.isfinite(model[i])
                    there += known
                    valid[i] &= known
                seen[k + 1] += there
            n = 0
            for i in range(size):
                cells[n] = start + i
                n += valid[i]
            # Neighbours mostly lie in the same part: its sums are added to once for all of them.
            own, own_area, own_sum = np.int64(-1), 0.0, 0.0
            for i in range(n):
                c = cells[i]
                value = np.float64(reference[t, c])
                if not begun[c]:
                    guess_reference[c] = value
                r = value - guess_reference[c]
                departure[i] = length * r
                count[slot, c] += 1
                weight[slot, c] += length
                sum_reference[slot, c] += departure[i]
                square_reference[c] += departure[i] * r
                if yearly:
                    year_weight[year, c] += length
                    year_sum_reference[year, c] += departure[i]
                    year_square_reference[year, c] += departure[i] * r
                if part[c] != own:
                    if own >= 0:
                        part_areas[own, t] += own_area
                        part_sums[0, own, t] += own_sum
                    own, own_area, own_sum = part[c], 0.0, 0.0
                own_area += area[c]
                own_sum += area[c] * value
            if own >= 0:
                part_areas[own, t] += own_area
                part_sums[0, own, t] += own_sum
            for k in range(n_models):
                own, own_sum = np.int64(-1), 0.0
                for i in range(n):
                    c = cells[i]
                    value = np.float64(models[k, t, c])
                    if not begun[c]:
                        guess_model[k, c] = value
                    m = value - guess_model[k, c]
                    weighted = length * m
                    sum_model[k, slot, c] += weighted
                    square_model[k, c] += weighted * m
                    product[k, c] += departure[i] * m
                    if yearly:
                        year_sum_model[k, year, c] += weighted
                        year_square_model[k, year, c] += weighted * m
                        year_product[k, year, c] += departure[i] * m
                    if part[c] != own:
                        if own >= 0:
                            part_sums[k + 1, own, t] += own_sum
                        own, own_sum = part[c], 0.0
                    own_sum += area[c] * value
                if own >= 0:
                    part_sums[k + 1, own, t] += own_sum
            for i in range(n):
                begun[cells[i]] = True
    return outside


@compiled
def common_mask(reference: NDArray[Any], models: NDArray[Any]) -> NDArray[np.bool_]:
    """(T, N) where the reference (T, N) and all models (K, T, N) have a value."""
    valid: NDArray[np.bool_] = np.isfinite(reference)
    n_steps, n_cells = valid.shape
    for t in range(n_steps):
        for start in range(0, n_cells, _CELLS):
            here = valid[t, start : start + _CELLS]
            if not here.any():
                continue  # sea
            for k in range(len(models)):
                values = models[k, t, start : start + _CELLS]
                for i in range(len(here)):
                    here[i] &= np.isfinite(values[i])
    return valid


@dataclass(frozen=True, eq=False)
class Added:
    """What a block of T steps held, beside what the scores are made of.

    ``areas`` (P, T): common area in each part of the map; ``sums`` (K + 1, P, T): area times value
    there, of the reference and the models. ``seen`` (K + 1,): values of each, common or not;
    ``outside``: numbers of the reference outside the plausible range.
    """

    areas: Array
    sums: Array
    seen: NDArray[np.int64]
    outside: int


@dataclass(eq=False)
class YearSums:
    """Sums over the steps of each of Y years for N cells and K models, about the guesses of the
    ``PairSums`` they are gathered with; float32, for the intervals that are made of them need no
    more.

    ``weight``, ``sum_reference``, ``square_reference`` (Y, N); ``sum_model``, ``square_model``,
    ``product`` (K, Y, N): length, length times departure, and so on.
    """

    weight: NDArray[np.float32]
    sum_reference: NDArray[np.float32]
    square_reference: NDArray[np.float32]
    sum_model: NDArray[np.float32]
    square_model: NDArray[np.float32]
    product: NDArray[np.float32]

    @classmethod
    def empty(cls, n_models: int, n_cells: int, n_years: int) -> YearSums:
        one, many = (n_years, n_cells), (n_models, n_years, n_cells)
        return cls(*(np.zeros(shape, np.float32) for shape in (one, one, one, many, many, many)))

    def of_cells(self, cells: NDArray[np.int64]) -> YearSums:
        """The sums of these cells alone."""
        return YearSums(*(getattr(self, f.name)[..., cells] for f in fields(self)))


@dataclass(eq=False)
class PairSums:
    """Sums over time for N cells, K models and S slots (12 calendar months, or 1 for annual data).

    Values are held as departures from a first guess per cell and series, in float64: the variance
    of 300 K with a sigma of 0.1 K would otherwise lose half of its digits.

    ``guess_reference`` (N,), ``guess_model`` (K, N): units of the variable. ``begun`` (N,): False
    while a cell has no guess.
    ``count`` (S, N): steps that count; ``weight`` (S, N): their length in days.
    ``sum_reference`` (S, N), ``sum_model`` (K, S, N): length times departure.
    ``square_reference`` (N,), ``square_model`` (K, N), ``product`` (K, N): length times squared
    departure, and times the product of the two departures.
    """

    begun: NDArray[np.bool_]
    guess_reference: Array
    guess_model: Array
    count: NDArray[np.int32]
    weight: Array
    sum_reference: Array
    sum_model: Array
    square_reference: Array
    square_model: Array
    product: Array

    @classmethod
    def empty(cls, n_models: int, n_cells: int, n_slots: int) -> PairSums:
        """Empty sums; the guesses are the values of the first step that counts."""
        sums = cls.start(np.zeros(n_cells), np.zeros((n_models, n_cells)), n_slots)
        sums.begun[:] = False
        return sums

    @classmethod
    def start(cls, guess_reference: Any, guess_model: Any, n_slots: int) -> PairSums:
        """Empty sums about these guesses; a guess that is not finite counts as 0."""
        reference = np.nan_to_num(np.array(guess_reference, np.float64), posinf=0.0, neginf=0.0)
        model = np.nan_to_num(np.array(guess_model, np.float64), posinf=0.0, neginf=0.0)
        n_models, n_cells = model.shape
        if reference.shape != (n_cells,):
            raise ValueError(f"guesses of {reference.shape} and {model.shape} do not fit")
        return cls(
            np.ones(n_cells, np.bool_),
            reference,
            model,
            np.zeros((n_slots, n_cells), np.int32),
            np.zeros((n_slots, n_cells)),
            np.zeros((n_slots, n_cells)),
            np.zeros((n_models, n_slots, n_cells)),
            np.zeros(n_cells),
            np.zeros((n_models, n_cells)),
            np.zeros((n_models, n_cells)),
        )

    def add(
        self,
        reference: Any,
        models: Any,
        days: Any,
        slots: Any,
        *,
        part: Any = None,
        area: Any = None,
        plausible: tuple[float, float] = (-np.inf, np.inf),
        years: Any = None,
        yearly: YearSums | None = None,
    ) -> Added:
        """Add a block of T steps.

        ``reference`` (T, N), ``models`` (K, T, N): NaN where missing. ``days`` (T,): length of the
        steps. ``slots`` (T,): 0-based calendar month, 0 for annual data. ``part`` (N,), ``area``
        (N,): part of the map each cell lies in, and its area, for sums per step. ``years`` (T,):
        position of the year of each step in ``yearly``, to which the block is added as well.
        """
        reference, models = np.ascontiguousarray(reference), np.ascontiguousarray(models)
        n_steps, n_cells = reference.shape
        part = np.zeros(n_cells, np.int64) if part is None else np.asarray(part, np.int64)
        area = np.ones(n_cells) if area is None else np.asarray(area, np.float64)
        n_parts = int(part.max(initial=0)) + 1
        areas = np.zeros((n_parts, n_steps))
        sums = np.zeros((len(models) + 1, n_parts, n_steps))
        seen = np.zeros(len(models) + 1, np.int64)
        by_year = YearSums.empty(len(models), 0, 0) if yearly is None else yearly
        low, high = plausible
        outside = _accumulate(
            reference,
            models,
            np.asarray(days, np.float64),
            np.asarray(slots, np.int64),
            part,
            area,
            float(low),
            float(high),
            self.begun,
            self.guess_reference,
            self.guess_model,
            self.count,
            self.weight,
            self.sum_reference,
            self.sum_model,
            self.square_reference,
            self.square_model,
            self.product,
            areas,
            sums,
            seen,
            np.zeros(n_steps, np.int64) if yearly is None else np.asarray(years, np.int64),
            *(getattr(by_year, f.name) for f in fields(by_year)),
        )
        return Added(areas, sums, seen, outside)

    def merged(self, other: PairSums) -> PairSums:
        """The sums of both blocks of time, about the guesses of this one."""
        shift_r = other.guess_reference - self.guess_reference
        shift_m = other.guess_model - self.guess_model
        total = other.weight.sum(axis=0)
        sum_r = other.sum_reference.sum(axis=0)
        sum_m = other.sum_model.sum(axis=1)
        return PairSums(
            self.begun | other.begun,
            self.guess_reference,
            self.guess_model,
            self.count + other.count,
            self.weight + other.weight,
            self.sum_reference + other.sum_reference + other.weight * shift_r,
            self.sum_model + other.sum_model + other.weight * shift_m[:, None, :],
            self.square_reference
            + other.square_reference
            + 2.0 * shift_r * sum_r
            + total * shift_r**2,
            self.square_model + other.square_model + 2.0 * shift_m * sum_m + total * shift_m**2,
            self.product
            + other.product
            + shift_m * sum_r
            + shift_r * sum_m
            + total * shift_r * shift_m,
        )

    def of_cells(self, cells: Any) -> PairSums:
        """The sums of these cells alone; ``cells``: positions, or (N,) of bool."""
        return PairSums(
            self.begun[cells], *(getattr(self, f.name)[..., cells] for f in fields(self)[1:])
        )

    def moments(self) -> Moments:
        """Means, variances and climatologies of what has been added."""
        total = self.weight.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            off_r = self.sum_reference.sum(axis=0) / total
            off_m = self.sum_model.sum(axis=1) / total
            variance_r = self.square_reference / total - off_r**2
            variance_m = self.square_model / total - off_m**2
            covariance = self.product / total - off_r * off_m
            slot_r = self.sum_reference / self.weight
            slot_m = self.sum_model / self.weight
            within_r = (
                self.square_reference - np.nansum(self.sum_reference * slot_r, axis=0)
            ) / total
            within_m = (self.square_model - np.nansum(self.sum_model * slot_m, axis=1)) / total
        return Moments(
            count=self.count.sum(axis=0),
            slots_present=(self.count > 0).sum(axis=0),
            mean_reference=self.guess_reference + off_r,
            mean_model=self.guess_model + off_m,
            variance_reference=np.maximum(variance_r, 0.0),
            variance_model=np.maximum(variance_m, 0.0),
            covariance=covariance,
            cycle_reference=self.guess_reference + slot_r,
            cycle_model=self.guess_model[:, None, :] + slot_m,
            interannual_variance_reference=np.maximum(within_r, 0.0),
            interannual_variance_model=np.maximum(within_m, 0.0),
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """What the scores are made of; NaN in cells without a single common step.

    ``count`` (N,) common steps; ``slots_present`` (N,) calendar months with at least one of them.
    Means, variances and covariances over time, weighted by the length of the steps: reference
    (N,), models (K, N). ``cycle_*``: mean per slot, (S, N) and (K, S, N), NaN for an absent slot.
    ``interannual_variance_*``: mean square of the departures from that cycle.
    """

    count: NDArray[np.int64]
    slots_present: NDArray[np.int64]
    mean_reference: Array
    mean_model: Array
    variance_reference: Array
    variance_model: Array
    covariance: Array
    cycle_reference: Array
    cycle_model: Array
    interannual_variance_reference: Array
    interannual_variance_model: Array
