"""Ensembles of a run, and the uncertainty that a calibration states, held against a product.

An ensemble is three or more members of one model, simulation and stage. If it tells its own
uncertainty honestly, the product is as likely to fall into any gap between its ordered members as
into any other, and its spread is as large as the error of its mean. A stated uncertainty (one
sigma, ``<variable>_post_unc`` of a posterior run) is asked the same: is it as large as the error,
and how often does the product lie within one and two sigma of the run?

Only the steps of the common mask count, of cells that have enough of them for a score. All sums
are plain sums over steps, so blocks of time and tiles of the map add up to the same.

Sources: Hamill (2001), Interpretation of rank histograms for verifying ensemble forecasts, Mon.
Weather Rev., 129, 550-560, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2. Fortin et al.
(2014), Why should ensemble spread match the RMSE of the ensemble mean?, J. Hydrometeorol., 15,
1708-1713, doi:10.1175/JHM-D-14-0008.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.benchmark.inputs import Run
from callmip_global.benchmark.parts import Parts
from callmip_global.benchmark.series import Box, Period, Series
from callmip_global.benchmark.statistics import Moments, common_mask
from callmip_global.compiled import compiled
from callmip_global.errors import DataError, Problem
from callmip_global.variables import UNCERTAINTY

Array = NDArray[np.float64]
Identity = tuple[str, str, str, str]

MINIMUM_MEMBERS = 3  # fewer have no spread worth the name
ENSEMBLE = "ensemble"  # what stands in the column of the member
_CELLS = 256

# Sums over steps, each times the length of the step, of an ensemble (the ranks follow) ...
_LENGTH, _VARIANCE, _ERROR, _RANKS = range(4)
# ... and of a stated uncertainty.
_KNOWN, _SIGMA, _SQUARE, _MISFIT, _WITHIN_1, _WITHIN_2 = range(6)
_TERMS = 6


@dataclass(frozen=True)
class Ensemble:
    """The members of one model, simulation and stage. ``members``: their positions among runs."""

    model: str
    simulation: str
    stage: str
    members: tuple[int, ...]

    @property
    def identity(self) -> Identity:
        """What its rows are filed under."""
        return self.model, self.simulation, self.stage, ENSEMBLE


def ensembles_of(runs: Sequence[Run]) -> tuple[Ensemble, ...]:
    """The ensembles among the runs, in their order; a run without a member number is in none."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for k, run in enumerate(runs):
        if run.member is not None:
            found.setdefault((run.model, run.simulation, run.stage), []).append(k)
    return tuple(
        Ensemble(*of, tuple(members))
        for of, members in found.items()
        if len(members) >= MINIMUM_MEMBERS
    )


@compiled
def _rank(
    reference: NDArray[Any],
    models: NDArray[Any],
    valid: NDArray[np.bool_],
    members: NDArray[np.int64],
    days: Array,
    sums: Array,
) -> None:
    """Add a block to the ``sums`` (_RANKS + n + 1, N) of an ensemble of n ``members``."""
    n_steps, n_cells = reference.shape
    n = len(members)
    total, square = np.empty(_CELLS), np.empty(_CELLS)
    below, equal = np.empty(_CELLS, np.int64), np.empty(_CELLS, np.int64)
    cells = np.empty(_CELLS, np.uint32)  # unsigned: no index counts from the end
    for start in range(0, n_cells, _CELLS):
        for t in range(n_steps):
            count = 0
            for c in range(start, min(start + _CELLS, n_cells)):
                cells[count] = c
                count += valid[t, c]
            total[:count] = 0.0
            square[:count] = 0.0
            below[:count] = 0
            equal[:count] = 0
            for k in members:
                for i in range(count):
                    value, here = models[k, t, cells[i]], reference[t, cells[i]]
                    total[i] += np.float64(value)
                    below[i] += value < here
                    equal[i] += value == here
            for k in members:
                for i in range(count):
                    square[i] += (np.float64(models[k, t, cells[i]]) - total[i] / n) ** 2
            for i in range(count):
                c = cells[i]
                error = total[i] / n - np.float64(reference[t, c])
                sums[_LENGTH, c] += days[t]
                sums[_VARIANCE, c] += days[t] * square[i] / (n - 1)
                sums[_ERROR, c] += days[t] * error * error
                share = days[t] / (equal[i] + 1)
                for j in range(equal[i] + 1):
                    sums[_RANKS + below[i] + j, c] += share


@compiled
def _judge(
    reference: NDArray[Any],
    model: NDArray[Any],
    sigma: NDArray[Any],
    valid: NDArray[np.bool_],
    days: Array,
    sums: Array,
) -> int:
    """Add a block to the ``sums`` (6, N) of a stated uncertainty; how many of it are negative."""
    negative = 0
    for t in range(reference.shape[0]):
        for c in range(reference.shape[1]):
            s = np.float64(sigma[t, c])
            if s < 0.0:
                negative += 1
            if not valid[t, c] or not np.isfinite(s) or s < 0.0:
                continue
            off = abs(np.float64(model[t, c]) - np.float64(reference[t, c]))
            sums[_KNOWN, c] += days[t]
            sums[_SIGMA, c] += days[t] * s
            sums[_SQUARE, c] += days[t] * s * s
            sums[_MISFIT, c] += days[t] * off * off
            sums[_WITHIN_1, c] += days[t] * (off <= s)
            sums[_WITHIN_2, c] += days[t] * (off <= 2.0 * s)
    return negative


@dataclass
class Stated:
    """The stated uncertainty of a run, a series that has NaN for the steps it lacks.

    ``run``: position of the run. What is wrong with it is kept, and costs its own rows alone: the
    scores do without it.
    """

    run: int
    label: str
    name: str
    series: Series
    negative: int = 0
    faults: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        series = self.series
        self.where, self.frequency, self.calendar = series.where, series.frequency, series.calendar
        self.periods, self.grid = series.periods, series.grid
        self.land, self.chunk = series.land, series.chunk

    def read(self, periods: Sequence[Period], box: Box | None = None) -> NDArray[Any]:
        """As ``Series.read``; all NaN where the file cannot be read."""
        rows, columns = box or (slice(None), slice(None))
        nlat, nlon = self.grid.shape
        shape = len(range(nlat)[rows]), len(range(nlon)[columns])
        out = np.full((len(periods), *shape), np.nan, getattr(self.series, "dtype", np.float64))
        known = set(self.periods)
        there = [i for i, period in enumerate(periods) if period in known]
        if there and not self.faults:
            try:
                out[there] = self.series.read([periods[i] for i in there], box)
            except DataError as error:
                self.faults += error.problems
        return out

    def close(self) -> None:
        """Close what the series holds open."""
        self.series.close()

    def problems(self) -> list[Problem]:
        """What was wrong with what has been read."""
        if not self.negative:
            return self.faults
        problem = Problem(
            self.label,
            self.name,
            f"{self.negative} negative values",
            "one sigma, 0 or more",
            "They count as missing.",
        )
        return [*self.faults, problem]


@dataclass(eq=False)
class CellSums:
    """Sums over the steps of N cells. ``ensembles``: (_RANKS + n + 1, N) of each ensemble;
    ``stated``: (6, N) of each stated uncertainty."""

    ensembles: list[Array]
    stated: list[Array]


@dataclass(eq=False)
class Judged:
    """What is gathered of the ensembles and stated uncertainties of one comparison.

    ``ensembles``, ``stated``: those there are. ``static``: the product is a map without time, so
    the time means are held against it. ``anomaly``: only departures from the mean are comparable.
    ``sums``: area times the sums of the cells, (regions, terms) of each ensemble and then of each
    stated uncertainty; ``cells`` (regions,) of each: how many are behind them.
    """

    ensembles: tuple[Ensemble, ...]
    stated: tuple[Stated, ...]
    static: bool
    anomaly: bool
    sums: list[Array]
    cells: list[NDArray[np.int64]]

    @classmethod
    def empty(
        cls,
        runs: Sequence[Run],
        stated: Mapping[Identity, Series],
        variable: str,
        n_regions: int,
        *,
        static: bool,
        anomaly: bool,
    ) -> Judged:
        """``stated``: the uncertainties of ``variable`` there are, by the identity of the run."""
        ensembles = ensembles_of(runs)
        found = tuple(
            Stated(k, run.label, f"{variable}{UNCERTAINTY}", stated[run.identity])
            for k, run in enumerate(runs)
            if run.identity in stated
        )
        terms = [_RANKS + len(of.members) + 1 for of in ensembles] + [_TERMS] * len(found)
        return cls(
            ensembles,
            found,
            static,
            anomaly,
            [np.zeros((n_regions, n)) for n in terms],
            [np.zeros(n_regions, np.int64) for _ in terms],
        )

    def tile(self, n_cells: int) -> CellSums:
        """Empty sums of a tile of N cells."""
        return CellSums(
            [np.zeros((_RANKS + len(of.members) + 1, n_cells)) for of in self.ensembles],
            [np.zeros((_TERMS, n_cells)) for _ in self.stated],
        )

    def add_block(
        self,
        tile: CellSums,
        reference: NDArray[Any],
        models: NDArray[Any],
        sigmas: Sequence[NDArray[Any]],
        days: Array,
    ) -> None:
        """Add a block of T steps to the sums of a tile.

        ``reference`` (T, N), ``models`` (K, T, N): NaN where missing. ``sigmas``: (T, N) of each
        stated uncertainty, on the grid of the comparison. ``days`` (T,): length of the steps.
        """
        if not self.sums:
            return
        reference = np.ascontiguousarray(reference)
        valid = common_mask(reference, models)
        if not self.static:
            for of, sums in zip(self.ensembles, tile.ensembles, strict=True):
                _rank(reference, models, valid, np.array(of.members), days, sums)
        for said, sigma, sums in zip(self.stated, sigmas, tile.stated, strict=True):
            said.negative += _judge(reference, models[said.run], sigma, valid, days, sums)

    def add_tile(
        self,
        tile: CellSums,
        cells: NDArray[np.int64],
        parts: Parts,
        area: Array,
        moments: Moments,
    ) -> None:
        """Add those cells of a tile that count to the sums over regions.

        ``cells``: their positions; ``parts``, ``area`` (N,) [m2], ``moments``: of these cells.
        """
        kept = [sums[:, cells] for sums in (*tile.ensembles, *tile.stated)]
        if self.static:
            kept = self._of_means(kept, moments)
        elif self.anomaly:
            for of, sums in zip(self.ensembles, kept, strict=False):
                _take_off_means(sums, moments.mean_model[list(of.members)], moments.mean_reference)
        for i, sums in enumerate(kept):
            total, _, count = parts.sums(np.where(sums[0] > 0, sums, np.nan), area)
            self.sums[i] += total.T
            self.cells[i] += count[0]

    def _of_means(self, kept: list[Array], moments: Moments) -> list[Array]:
        """The sums of a single step, that of the time means; a mean sigma is that of the mean."""
        with np.errstate(invalid="ignore"):
            sigmas = [sums[_SIGMA] / sums[_KNOWN] for sums in kept[len(self.ensembles) :]]
        means = self.tile(len(moments.mean_reference))
        reference, models = moments.mean_reference[None], moments.mean_model[:, None]
        single = Judged(
            self.ensembles, self.stated, static=False, anomaly=False, sums=self.sums, cells=[]
        )
        single.add_block(means, reference, models, [s[None] for s in sigmas], np.ones(1))
        return [*means.ensembles, *means.stated]

    def problems(self) -> list[Problem]:
        """What was wrong with the stated uncertainties."""
        return [problem for said in self.stated for problem in said.problems()]

    def notes(self, product: str) -> list[str]:
        """What was left out, in words."""
        if not self.anomaly or not self.sums:
            return []
        return [
            f"product {product}: holds anomalies, so it has no place among the members of an "
            "ensemble and in a stated uncertainty: no rank histogram and no coverage."
        ]

    def rows(self, runs: Sequence[Run], region: int) -> Iterator[tuple[Identity, str, float, int]]:
        """(identity, quantity, value, cells) of a region, by its position."""
        for i, of in enumerate(self.ensembles):
            sums, cells = self.sums[i][region], int(self.cells[i][region])
            for quantity, value in _ensemble_numbers(sums, anomaly=self.anomaly).items():
                yield of.identity, quantity, value, cells
        for i, said in enumerate(self.stated, len(self.ensembles)):
            if said.faults:
                continue
            sums, cells = self.sums[i][region], int(self.cells[i][region])
            for quantity, value in _stated_numbers(sums, anomaly=self.anomaly).items():
                yield runs[said.run].identity, quantity, value, cells

    def entries(self, regions: Sequence[str]) -> list[dict[str, Any]]:
        """What benchmark.json has of each ensemble; nothing where no rank can be told.

        ``rank_histogram``: region -> share of area and time at which the product has 0, 1 ... n
        members below it; regions without a cell are left out.
        """
        if self.anomaly:
            return []
        return [
            {
                "model": of.model,
                "simulation": of.simulation,
                "stage": of.stage,
                "members": len(of.members),
                "rank_histogram": {
                    name: (sums[_RANKS:] / sums[_LENGTH]).tolist()
                    for name, sums in zip(regions, self.sums[i], strict=True)
                    if sums[_LENGTH] > 0
                },
            }
            for i, of in enumerate(self.ensembles)
        ]


def _take_off_means(sums: Array, means: Array, reference: Array) -> None:
    """Variance and error of departures from the time means, from those of the values.

    The time mean of the variance across members is that of the departures plus the variance across
    members of the time means, exactly: departures have no mean. Likewise for the squared error.

    sums : (terms, N);  means : (n, N) of the members;  reference : (N,)
    """
    length = sums[_LENGTH]
    sums[_VARIANCE] -= length * means.var(axis=0, ddof=1)
    sums[_ERROR] -= length * (means.mean(axis=0) - reference) ** 2
    np.maximum(sums[: _ERROR + 1], 0.0, out=sums[: _ERROR + 1])


def _ensemble_numbers(sums: Array, *, anomaly: bool) -> dict[str, float]:
    """Spread from the mean of the variances (over n - 1), and (n + 1) / n, as in Fortin et al."""
    n = len(sums) - _RANKS - 1
    if sums[_LENGTH] <= 0:
        spread = rmse = coverage = math.nan
    else:
        spread, rmse = (math.sqrt(sums[k] / sums[_LENGTH]) for k in (_VARIANCE, _ERROR))
        coverage = 1.0 - float(sums[_RANKS] + sums[-1]) / float(sums[_LENGTH])
    numbers = {
        "ensemble_spread": spread,
        "ensemble_rmse": rmse,
        "spread_skill": _ratio(math.sqrt((n + 1) / n) * spread, rmse),
    }
    return numbers if anomaly else {**numbers, "range_coverage": coverage}


def _stated_numbers(sums: Array, *, anomaly: bool) -> dict[str, float]:
    known = float(sums[_KNOWN]) if sums[_KNOWN] > 0 else math.nan
    if anomaly:
        return {"uncertainty": sums[_SIGMA] / known}
    return {
        "uncertainty": sums[_SIGMA] / known,
        "spread_skill": _ratio(math.sqrt(sums[_SQUARE]), math.sqrt(sums[_MISFIT])),
        "within_1sd_coverage": sums[_WITHIN_1] / known,
        "within_2sd_coverage": sums[_WITHIN_2] / known,
    }


def _ratio(spread: float, error: float) -> float:
    return spread / error if error > 0 else math.nan
