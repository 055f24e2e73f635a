"""Scoring schemes: what the scores of ``collier2018``, ``ilamb27`` and ``ilamb3`` are made of.

Scores lie in [0, 1], 1 is a perfect match. NaN marks a score that is not defined; it is never
counted as 0 or left out of an overall score unseen. All schemes are functions of the same moments
(``statistics.Moments``), so a second scheme costs no second reading.

Sources: Collier et al. (2018), The International Land Model Benchmarking (ILAMB) system: design,
theory, and implementation, J. Adv. Model. Earth Syst., 10.1029/2018MS001354; the defaults of the
programs ILAMB 2.7 and ilamb3 (2026).

Deviations, on purpose and in all three: reference and models share one mask in space and time (the
programs take each series' own months); areas of cells are exact; correlations are of the cells
that have values (ILAMB 2.7 counts masked cells as zeros); there is no weighting by the mean flux.
In ``collier2018`` alone the standard deviations and the correlation of the spatial score are
weighted by area too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.benchmark.statistics import Moments
from callmip_global.errors import Problem, UsageError

Array = NDArray[np.float64]

# Days of the middle of each month in a year of 365 days.
MID_MONTH_DAY = np.array(
    [15.5, 45.0, 74.5, 105.0, 135.5, 166.0, 196.5, 227.5, 258.0, 288.5, 319.0, 349.5]
)
DAYS_PER_YEAR = 365.0
MINIMUM_REPEATS = 3  # years behind an interannual variability
MINIMUM_CALENDAR_MONTHS = 6  # calendar months behind a month of maximum
MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], dtype=np.float64)
# Numbers come in float32: what varies by less than this share of its size does not vary.
RESOLUTION = 1e-6


def noticeable(spread: Any, size: Any) -> Array:
    """``spread``, NaN where it is nothing beside ``size``: such a cell has no scale to score by."""
    spread = np.asarray(spread, np.float64)
    floor = RESOLUTION * np.abs(np.nan_to_num(np.asarray(size, np.float64)))
    return np.asarray(np.where(spread > floor, spread, np.nan))


def error_score(error: Any, scale: Any) -> Array:
    """exp(-|error| / scale); NaN where the scale is."""
    return np.asarray(np.exp(-np.abs(np.asarray(error, np.float64)) / np.asarray(scale)))


def scale_in_time(moments: Moments, frequency: str) -> Array:
    """(N,) standard deviation of the reference, by which errors are scored; NaN without one.

    A map has no sigma in time: its own size is the scale.
    """
    mean = moments.mean_reference
    if frequency == "fx":
        return np.where(np.abs(mean) > 0, np.abs(mean), np.nan)
    return noticeable(np.sqrt(moments.variance_reference), mean)


def centred_rmse(variance_model: Any, variance_reference: Any, covariance: Any) -> Array:
    """sqrt(var m + var r - 2 cov), 0 where rounding makes that negative."""
    square = np.asarray(variance_model) + variance_reference - 2.0 * np.asarray(covariance)
    return np.asarray(np.sqrt(np.maximum(square, 0.0)))


def cycle_errors(cycle_model: Any, cycle_reference: Any) -> tuple[Array, Array]:
    """(N,) RMSE of two mean cycles (12, N), and their centred RMSE, by the length of the months.

    Each cycle is centred about the plain mean of its months, as ILAMB 2.7 has it.
    """
    off = np.asarray(cycle_model, np.float64) - cycle_reference
    there = np.isfinite(off)
    days = np.where(there, MONTH_DAYS[:, None], 0.0)
    off = np.where(there, off, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        centred = off - off.sum(axis=0) / there.sum(axis=0)
        rmse = np.sqrt((days * off**2).sum(axis=0) / days.sum(axis=0))
        crmse = np.sqrt((days * centred**2).sum(axis=0) / days.sum(axis=0))
    return rmse, crmse


def month_of_maximum(cycle: Any, *, flat: bool = False) -> Array:
    """(N,) 0-based month of the maximum of a mean cycle (12, N), the first one of equals.

    NaN where fewer than MINIMUM_CALENDAR_MONTHS months are there, or the cycle is flat. With
    ``flat`` such a cycle has a maximum too, its first month, as in the programs.
    """
    cycle = np.asarray(cycle, np.float64)
    present = np.isfinite(cycle)
    filled = np.where(present, cycle, -np.inf)
    months = filled.argmax(axis=0)
    if flat:
        return np.where(present.any(axis=0), months, np.nan)
    highest = filled.max(axis=0)
    lowest = np.where(present, cycle, np.inf).min(axis=0)
    usable = present.sum(axis=0) >= MINIMUM_CALENDAR_MONTHS
    with np.errstate(invalid="ignore"):
        amplitude = noticeable(highest - lowest, np.maximum(np.abs(highest), np.abs(lowest)))
    return np.where(usable & np.isfinite(amplitude), months, np.nan)


def cosine_phase_score(month_model: Any, month_reference: Any) -> Array:
    """(1 + cos(2 pi days / 365)) / 2 of the days between two months of maximum."""
    month_model = np.asarray(month_model, np.float64)
    month_reference = np.asarray(month_reference, np.float64)
    known = np.isfinite(month_model) & np.isfinite(month_reference)
    day_model = MID_MONTH_DAY[np.where(known, month_model, 0).astype(int)]
    day_reference = MID_MONTH_DAY[np.where(known, month_reference, 0).astype(int)]
    score = 0.5 * (1.0 + np.cos(2.0 * np.pi * (day_model - day_reference) / DAYS_PER_YEAR))
    return np.where(known, score, np.nan)


def linear_phase_score(month_model: Any, month_reference: Any) -> Array:
    """1 - months / 6 of the whole months between two months of maximum, at most 6."""
    apart = np.abs(np.asarray(month_model, np.float64) - np.asarray(month_reference, np.float64))
    return np.asarray(1.0 - np.minimum(apart, 12.0 - apart) / 6.0)


def area_mean(field: Any, area: Any) -> tuple[float, int]:
    """Mean over the cells that have a value and an area, and their number; (NaN, 0) if none."""
    field = np.asarray(field, np.float64)
    used = np.isfinite(field) & (np.asarray(area) > 0)
    count = int(used.sum())
    if count == 0:
        return float("nan"), 0
    weight = np.where(used, area, 0.0)
    return float((np.where(used, field, 0.0) * weight).sum() / weight.sum()), count


PATTERN_TERMS = ("m", "r", "mm", "rr", "mr")


def pattern_terms(model: Any, reference: Any) -> dict[str, Array]:
    """What the spatial pattern is made of, to be summed over cells with their weights."""
    model, reference = np.asarray(model, np.float64), np.asarray(reference, np.float64)
    products = (model, reference, model * model, reference * reference, model * reference)
    return dict(zip(PATTERN_TERMS, products, strict=True))


def spatial_pattern(means: Mapping[str, float], count: int) -> tuple[float, float, int]:
    """sigma = std(model) / std(reference), correlation R, number of cells, from weighted means of
    the ``pattern_terms``.

    (NaN, NaN, n) where the reference does not vary; R is NaN where the model does not.
    """
    if count < 2:
        return float("nan"), float("nan"), count
    std_m, std_r = (float(np.sqrt(max(means[x + x] - means[x] ** 2, 0.0))) for x in ("m", "r"))
    if not np.isfinite(noticeable(std_r, np.sqrt(means["rr"]))):
        return float("nan"), float("nan"), count
    if not np.isfinite(noticeable(std_m, np.sqrt(means["mm"]))):
        return 0.0, float("nan"), count
    correlation = (means["mr"] - means["m"] * means["r"]) / (std_m * std_r)
    return std_m / std_r, min(1.0, max(-1.0, correlation)), count


def taylor_score(sigma: float, correlation: float) -> float:
    """4 (1 + R) / (2 (sigma + 1 / sigma)^2); 0, its limit, for a model without any pattern."""
    if sigma == 0.0:
        return 0.0
    return 4.0 * (1.0 + correlation) / (2.0 * (sigma + 1.0 / sigma) ** 2)


@dataclass(frozen=True, eq=False)
class Scheme:
    """Which scores there are and how they are made.

    ``weights``: of each score in the overall one, in the order of the tables. ``phase``: score of
    two months of maximum. ``cycle_rmse``: RMSE and its score are of the mean cycles of monthly
    data, not of the series. ``flat_cycles``: a flat cycle has its maximum in January instead of
    none. ``by_area``: whether the spatial score weighs cells by area.
    """

    name: str
    citation: str
    weights: Mapping[str, float]
    formulas: tuple[tuple[str, str], ...]
    phase: Callable[[Any, Any], Array]
    cycle_rmse: bool
    flat_cycles: bool
    by_area: bool

    def applicable(self, frequency: str, *, anomaly: bool = False) -> tuple[str, ...]:
        """Scores that make sense for ``mon``, ``yr`` or ``fx`` (static) data; for anomalies."""
        if frequency == "fx":
            return ("bias_score", "spatial_score")
        names = [n for n in self.weights if frequency == "mon" or n != "seasonal_cycle_score"]
        if anomaly:
            names = [name for name in names if name not in ("bias_score", "spatial_score")]
        return tuple(names)

    def cell_maps(
        self, moments: Moments, k: int, frequency: str, *, anomaly: bool = False
    ) -> dict[str, Array]:
        """(N,) RMSE and scores of run ``k`` as far as they apply; scores NaN where undefined."""
        mean_r = moments.mean_reference
        bias = moments.mean_model[k] - mean_r
        sigma = scale_in_time(moments, frequency)
        if frequency == "fx":
            return {"bias_score": error_score(bias, sigma)}
        cycles = moments.cycle_model[k], moments.cycle_reference
        if self.cycle_rmse and frequency == "mon":
            rmse, crmse = cycle_errors(*cycles)
        else:
            crmse = centred_rmse(
                moments.variance_model[k], moments.variance_reference, moments.covariance[k]
            )
            rmse = np.sqrt(crmse**2 + bias**2)
        maps = {"rmse": crmse if anomaly else rmse, "rmse_score": error_score(crmse, sigma)}
        wanted = self.applicable(frequency, anomaly=anomaly)
        if "bias_score" in wanted:
            maps["bias_score"] = error_score(bias, sigma)
        if "seasonal_cycle_score" in wanted:
            months = (month_of_maximum(cycle, flat=self.flat_cycles) for cycle in cycles)
            maps["seasonal_cycle_score"] = self.phase(*months)
        if "interannual_score" in wanted:
            iav_r = noticeable(np.sqrt(moments.interannual_variance_reference), mean_r)
            iav_m = np.sqrt(moments.interannual_variance_model[k])
            repeats = moments.count / np.maximum(moments.slots_present, 1)
            iav_r = np.where(repeats >= MINIMUM_REPEATS, iav_r, np.nan)
            maps["interannual_score"] = error_score(iav_m - iav_r, iav_r)
        return maps

    def variant(self, quantity: str, frequency: str) -> tuple[Any, ...]:
        """Equal for schemes whose maps of a quantity (``cell_maps``) are the same."""
        if quantity in ("rmse", "rmse_score"):
            return (self.cycle_rmse and frequency == "mon",)
        if quantity == "seasonal_cycle_score":
            return self.phase, self.flat_cycles
        return ()

    def overall(self, scores: Mapping[str, float]) -> tuple[float, int, int]:
        """Weighted mean of the scores there are, how many those are, and how many were wanted."""
        there = {name: value for name, value in scores.items() if np.isfinite(value)}
        if not there:
            return float("nan"), 0, len(scores)
        total = sum(self.weights[name] for name in there)
        value = sum(self.weights[name] * value for name, value in there.items()) / total
        return value, len(there), len(scores)


_BIAS = ("bias_score", "exp(−|mean(m) − mean(r)| / σr), σr of the full series of the reference")
_RMSE = (
    "rmse_score",
    "exp(−crmse / σr), crmse² = mean(((m − mean m) − (r − mean r))²), full series",
)
_PHASE = (
    "seasonal_cycle_score",
    "(1 + cos(2π Δd / 365)) / 2, Δd days between the months of maximum",
)
_TAYLOR = "4 (1 + R) / (2 (σ + 1/σ)²), σ = std m / std r of the mean maps, "

COLLIER2018 = Scheme(
    name="collier2018",
    citation=(
        "Collier, N., et al. (2018): The International Land Model Benchmarking (ILAMB) system: "
        "design, theory, and implementation. J. Adv. Model. Earth Syst., 10, 2731-2754, "
        "doi:10.1029/2018MS001354"
    ),
    weights={
        "bias_score": 1.0,
        "rmse_score": 2.0,
        "seasonal_cycle_score": 1.0,
        "interannual_score": 1.0,
        "spatial_score": 1.0,
    },
    formulas=(
        _BIAS,
        _RMSE,
        _PHASE,
        (
            "interannual_score",
            "exp(−|iav m − iav r| / iav r), iav = rms departure from the mean cycle",
        ),
        ("spatial_score", _TAYLOR + "by area"),
        (
            "overall_score",
            "(bias + 2 rmse + seasonal + interannual + spatial) / 6, of those there are",
        ),
    ),
    phase=cosine_phase_score,
    cycle_rmse=False,
    flat_cycles=False,
    by_area=True,
)

ILAMB27 = Scheme(
    name="ilamb27",
    citation="The defaults of ILAMB 2.7, https://github.com/rubisco-sfa/ILAMB; "
    + COLLIER2018.citation,
    weights={
        "bias_score": 1.0,
        "rmse_score": 2.0,
        "seasonal_cycle_score": 1.0,
        "spatial_score": 1.0,
    },
    formulas=(
        _BIAS,
        (
            "rmse_score",
            "exp(−crmse / σr), crmse of the mean cycles of twelve months; σr of the full series; "
            "annual data: of the series",
        ),
        _PHASE,
        ("spatial_score", _TAYLOR + "each cell counting the same"),
        ("overall_score", "(bias + 2 rmse + seasonal + spatial) / 5, of those there are"),
    ),
    phase=cosine_phase_score,
    cycle_rmse=True,
    flat_cycles=True,
    by_area=False,
)

ILAMB3 = Scheme(
    name="ilamb3",
    citation="The defaults of ilamb3, https://github.com/rubisco-sfa/ilamb3; "
    + COLLIER2018.citation,
    weights=dict.fromkeys(
        ("bias_score", "rmse_score", "seasonal_cycle_score", "spatial_score"), 1.0
    ),
    formulas=(
        _BIAS,
        _RMSE,
        ("seasonal_cycle_score", "1 − |Δ| / 6, Δ whole months between the months of maximum"),
        ("spatial_score", _TAYLOR + "each cell counting the same"),
        ("overall_score", "mean of bias, rmse, seasonal and spatial, of those there are"),
    ),
    phase=linear_phase_score,
    cycle_rmse=False,
    flat_cycles=True,
    by_area=False,
)

SCHEMES: dict[str, Scheme] = {s.name: s for s in (COLLIER2018, ILAMB27, ILAMB3)}


def select_schemes(names: Sequence[str]) -> tuple[Scheme, ...]:
    """The schemes of these names, in this order, each once; UsageError lists the known names."""
    unknown = [name for name in names if name not in SCHEMES]
    if unknown or not names:
        raise UsageError(
            Problem("schemes", found=", ".join(unknown) or "none", wanted=", ".join(SCHEMES))
        )
    return tuple(SCHEMES[name] for name in dict.fromkeys(names))
