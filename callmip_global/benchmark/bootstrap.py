"""Intervals of the change from prior to posterior, by drawing whole years again.

A year holds seasons and weather that both runs share, so years are drawn, not months, and the same
years for the product, the prior and the posterior. All that a draw needs are sums per cell and
year, which have the size of a tile of the map. The years are drawn with a fixed seed: the same
input gives the same interval. The interval lies about the value as the draws do about their mean:
drawing adds noise, which by itself lowers all scores, so that the draws alone would be off centre.

Source: Künsch, H. R. (1989): The jackknife and the bootstrap for general stationary observations.
Ann. Statist., 17, 1217-1241, doi:10.1214/aos/1176347265; with blocks of one year.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from callmip_global.benchmark.parts import Parts
from callmip_global.benchmark.scores import RESOLUTION, Scheme
from callmip_global.benchmark.statistics import YearSums
from callmip_global.compiled import compiled

Array = NDArray[np.float64]

DRAWS = 200
LEVEL = 0.95
MINIMUM_DRAWN_YEARS = 5  # fewer years can be drawn in too few ways
_SEED = 20181

# What is summed over cells for each draw: area, area with a sigma, then area times each of these.
_CELL_TERMS = ("bias", "absolute_bias", "rmse")
_SCORES = ("bias_score", "rmse_score")
_PER_RUN = (*_CELL_TERMS, *_SCORES, "m", "mm", "mr")
_TERMS = 4 + 2 * len(_PER_RUN)


def drawn_years(n_years: int) -> Array:
    """(Y, D): how often each year is in each draw of as many years; the same every time."""
    rng = np.random.default_rng(_SEED)
    chosen = rng.integers(0, n_years, (DRAWS, n_years))
    return np.stack([(chosen == year).sum(axis=1) for year in range(n_years)]).astype(np.float64)


# ln 2 in two parts, the first of which has zeros at its end: products with small numbers are exact.
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_PER_LN2 = 1.0 / math.log(2.0)
# Added to a number below 2^51 it leaves the nearest whole number in the low bits.
_ROUNDING = 1.5 * 2.0**52
_SMALLEST = -700.0  # 1e-304
_TAYLOR = tuple(1.0 / math.factorial(n) for n in range(12, -1, -1))


@compiled
def _exponential(x: Array, powers: Array) -> None:
    """exp(x) in the place of x (N,) <= 0, to 5e-16; what is below -700 counts as -700.

    That of the C library is called for one number after the other, which took half of the time of
    all draws. 2^n e^r with abs(r) <= ln 2 / 2, the Taylor series of e^r up to r^12.
    ``powers`` (N,): room for 2^n.
    """
    bits = powers.view(np.int64)
    for i in range(x.size):
        within = max(x[i], _SMALLEST)
        powers[i] = within * _PER_LN2 + _ROUNDING
        n = powers[i] - _ROUNDING
        r = (within - n * _LN2_HIGH) - n * _LN2_LOW
        value = 0.0
        for k in range(13):
            value = value * r + _TAYLOR[k]
        x[i] = value
    for i in range(x.size):
        bits[i] = (bits[i] + 1023) << 52
    for i in range(x.size):
        x[i] *= powers[i]


@compiled
def _resample(
    counts: Array,
    weight: NDArray[np.float32],
    reference: NDArray[np.float32],
    models: NDArray[np.float32],
    guess_reference: Array,
    guess_models: Array,
    part: NDArray[np.int64],
    cut_first: NDArray[np.int64],
    cut_region: NDArray[np.int64],
    cut_share: Array,
    area: Array,
    centred: bool,
    floor: float,
    sums: Array,
    of_regions: Array,
) -> None:
    """Add all cells to ``sums`` (terms, parts, draws), and what regions have of cells that they
    cut to ``of_regions`` (terms, regions, draws).

    part, cut_first, cut_region, cut_share : ``part``, ``first``, ``region``, ``share`` of ``Parts``
    weight : (Y, N);  reference : (2, Y, N) sum, square;  models : (2, 3, Y, N) sum, square, product
    """
    n_years, n_draws = counts.shape
    per_run = (sums.shape[0] - 4) // 2
    total, r1, r2 = np.empty((3, n_draws))
    m = np.empty((2, 3, n_draws))
    here, here_scored, inverse_sigma = np.empty((3, n_draws))
    scores, powers = np.empty((2, n_draws)), np.empty(n_draws)
    of_cell = np.empty((sums.shape[0], 1, n_draws))
    for c in range(weight.shape[1]):
        total[:] = 0.0
        r1[:] = 0.0
        r2[:] = 0.0
        m[:] = 0.0
        for y in range(n_years):
            w = np.float64(weight[y, c])
            if w == 0.0:
                continue
            a, b = np.float64(reference[0, y, c]), np.float64(reference[1, y, c])
            for d in range(n_draws):
                total[d] += counts[y, d] * w
                r1[d] += counts[y, d] * a
                r2[d] += counts[y, d] * b
            for k in range(2):
                m0, m1, m2 = m[k, 0], m[k, 1], m[k, 2]
                v0, v1, v2 = models[k, 0, y, c], models[k, 1, y, c], models[k, 2, y, c]
                for d in range(n_draws):
                    m0[d] += counts[y, d] * v0
                    m1[d] += counts[y, d] * v1
                    m2[d] += counts[y, d] * v2
        p, added = part[c], sums
        shared = cut_first[c] < cut_first[c + 1]
        if shared:
            of_cell[:] = 0.0
            p, added = 0, of_cell
        # From here on no branch depends on the draw: all loops over draws are done several at a
        # time. A draw without a common step, and one that is not scored, has no area.
        areas, areas_scored, means, squares = added[0, p], added[1, p], added[2, p], added[3, p]
        whole, guess_r = area[c], guess_reference[c]
        for d in range(n_draws):
            there = total[d] > 0.0
            share = 1.0 / total[d] if there else 0.0
            off_r = r1[d] * share
            mean_r = guess_r + off_r
            variance_r = max(r2[d] * share - off_r * off_r, 0.0)
            sigma = np.sqrt(variance_r)
            here[d] = whole if there else 0.0
            here_scored[d] = here[d] if sigma > floor * abs(mean_r) else 0.0
            inverse_sigma[d] = 1.0 / sigma if here_scored[d] > 0.0 else 0.0
            total[d], r1[d], r2[d] = share, off_r, variance_r
            areas[d] += here[d]
            areas_scored[d] += here_scored[d]
            means[d] += here[d] * mean_r
            squares[d] += here[d] * mean_r * mean_r
        for k in range(2):
            own = added[4 + k * per_run : 4 + (k + 1) * per_run]
            biases, sizes, errors = own[0, p], own[1, p], own[2, p]
            values, value_squares, products = own[5, p], own[6, p], own[7, p]
            m0, m1, m2, guess_m = m[k, 0], m[k, 1], m[k, 2], guess_models[k, c]
            for d in range(n_draws):
                share, off_r, variance_r = total[d], r1[d], r2[d]
                mean_r = guess_r + off_r
                off_m = m0[d] * share
                mean_m = guess_m + off_m
                variance_m = m1[d] * share - off_m * off_m
                covariance = m2[d] * share - off_m * off_r
                square = max(variance_m + variance_r - 2.0 * covariance, 0.0)
                bias = mean_m - mean_r
                error = square if centred else square + bias * bias
                biases[d] += here[d] * bias
                sizes[d] += here[d] * abs(bias)
                errors[d] += here[d] * np.sqrt(error)
                scores[0, d] = -abs(bias) * inverse_sigma[d]
                scores[1, d] = -np.sqrt(square) * inverse_sigma[d]
                values[d] += here[d] * mean_m
                value_squares[d] += here[d] * mean_m * mean_m
                products[d] += here[d] * mean_m * mean_r
            for q in range(2):
                _exponential(scores[q], powers)
                of_score = own[3 + q, p]
                for d in range(n_draws):
                    of_score[d] += here_scored[d] * scores[q, d]
        if shared:
            for q in range(sums.shape[0]):
                for d in range(n_draws):
                    sums[q, part[c], d] += of_cell[q, 0, d]
                for e in range(cut_first[c], cut_first[c + 1]):
                    r, s = cut_region[e], cut_share[e]
                    for d in range(n_draws):
                        of_regions[q, r, d] += s * of_cell[q, 0, d]


@dataclass(eq=False)
class Resampled:
    """Sums over the cells of each region for each draw, of one pair of prior and posterior.

    ``sums`` (terms, regions, draws): tiles of the map add up.
    """

    sums: Array

    @classmethod
    def empty(cls, n_regions: int) -> Resampled:
        return cls(np.zeros((_TERMS, n_regions, DRAWS)))

    def add(
        self,
        years: YearSums,
        pair: tuple[int, int],
        guess_reference: Array,
        guess_model: Array,
        parts: Parts,
        area: Array,
        *,
        anomaly: bool,
    ) -> None:
        """Add the N cells of a tile.

        ``pair``: positions of prior and posterior. ``area`` (N,): of the whole cell [m2].
        """
        both = list(pair)
        names = ("sum_model", "square_model", "product")
        sums = np.zeros((_TERMS, parts.kinds.shape[1], DRAWS))
        _resample(
            drawn_years(len(years.weight)),
            years.weight,
            np.stack([years.sum_reference, years.square_reference]),
            np.stack([getattr(years, name)[both] for name in names], axis=1),
            guess_reference,
            guess_model[both],
            parts.part,
            parts.first,
            parts.region,
            parts.share,
            area,
            anomaly,
            RESOLUTION,
            sums,
            self.sums,
        )
        self.sums += parts.kinds @ sums

    def ends(
        self, region: int, scheme: Scheme, parts: tuple[Mapping[str, float], Mapping[str, float]]
    ) -> dict[str, tuple[float, float]]:
        """Quantity -> ends of the interval of posterior minus prior in a region, from the value.

        ``parts``: the scores of prior and posterior. Their seasonal cycle and interannual scores
        stand still in the interval of the overall score: they are made of all years together. A
        scheme that takes the RMSE of mean cycles, or counts cells without their area, gets no
        interval for what that changes.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            means = self.sums[:, region] / self.sums[0, region]
            scored = self.sums[:, region] / self.sums[1, region]
        runs = []
        for k in range(2):
            first = 4 + k * len(_PER_RUN)
            own = {}
            for i, name in enumerate(_PER_RUN):
                own[name] = (scored if name in _SCORES else means)[first + i]
            runs.append(own)
        names = [*_CELL_TERMS, "bias_score", "rmse_score"]
        if scheme.cycle_rmse:
            names = [name for name in names if not name.startswith("rmse")]
        changes = {name: runs[1][name] - runs[0][name] for name in names}
        if scheme.by_area and not scheme.cycle_rmse:
            changes["overall_score"] = self._overall(runs, means, scheme, parts)
        return {name: ends for name, values in changes.items() if (ends := spread_of(values))}

    def _overall(
        self,
        runs: list[dict[str, Array]],
        means: Array,
        scheme: Scheme,
        parts: tuple[Mapping[str, float], Mapping[str, float]],
    ) -> Array:
        """(D,) change of the overall score."""
        overall = []
        for own, scores in zip(runs, parts, strict=True):
            there = {name: value for name, value in scores.items() if np.isfinite(value)}
            drawn = {**own, "spatial_score": _taylor(own, means[2], means[3])}
            total = sum(scheme.weights[name] for name in there)
            weighted = [scheme.weights[n] * drawn.get(n, np.array(v)) for n, v in there.items()]
            overall.append(sum(weighted, np.zeros(DRAWS)) / (total or np.nan))
        return np.asarray(overall[1] - overall[0])


def _taylor(own: Mapping[str, Array], r: Array, rr: Array) -> Array:
    """(D,) spatial scores from means over cells: 4 (1 + R) / (2 (s + 1 / s)^2)."""
    variance_m = np.maximum(own["mm"] - own["m"] ** 2, 0.0)
    variance_r = np.maximum(rr - r**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = variance_m / variance_r
        correlation = (own["mr"] - own["m"] * r) / np.sqrt(variance_m * variance_r)
    correlation = np.clip(np.where(variance_m > 0, correlation, 0.0), -1.0, 1.0)
    return np.asarray(2.0 * (1.0 + correlation) * square / (square + 1.0) ** 2)


def spread_of(values: Array) -> tuple[float, float] | None:
    """Quantiles of the draws about their mean; None where any draw has no value."""
    if not np.isfinite(values).all():
        return None
    ends = np.quantile(values, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0]) - values.mean()
    return float(ends[0]), float(ends[1])
