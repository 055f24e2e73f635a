"""The scoring scheme ``collier2018``: formulas, on arrays of cells.

Source: Collier et al. (2018), The International Land Model Benchmarking (ILAMB) system: design,
theory, and implementation, J. Adv. Model. Earth Syst., 10.1029/2018MS001354. Scores lie in [0, 1],
1 is a perfect match. NaN marks a score that is not defined; it is never counted as 0 or left out
of an overall score unseen.

Deviations, on purpose: means over a region, and the standard deviations and the correlation of the
spatial score, are weighted by exact cell area (the published code takes the latter unweighted);
reference and models share one mask in space and time; there is no weighting by the mean flux.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SCHEME = "collier2018"
CITATION = (
    "Collier, N., et al. (2018): The International Land Model Benchmarking (ILAMB) system: design, "
    "theory, and implementation. J. Adv. Model. Earth Syst., 10, 2731-2754, "
    "doi:10.1029/2018MS001354"
)
WEIGHTS: dict[str, float] = {
    "bias_score": 1.0,
    "rmse_score": 2.0,
    "seasonal_cycle_score": 1.0,
    "interannual_score": 1.0,
    "spatial_score": 1.0,
}
FORMULAS: tuple[tuple[str, str], ...] = (
    ("bias_score", "exp(−|mean(m) − mean(r)| / σr), σr of the full series of the reference"),
    ("rmse_score", "exp(−crmse / σr), crmse² = mean(((m − mean m) − (r − mean r))²), full series"),
    ("seasonal_cycle_score", "(1 + cos(2π Δd / 365)) / 2, Δd days between the months of maximum"),
    ("interannual_score", "exp(−|iav m − iav r| / iav r), iav = rms departure from the mean cycle"),
    ("spatial_score", "4 (1 + R) / (2 (σ + 1/σ)²), σ = std m / std r of the mean maps, by area"),
    ("overall_score", "(bias + 2 rmse + seasonal + interannual + spatial) / 6, of those there are"),
)
# Days of the middle of each month in a year of 365 days.
MID_MONTH_DAY = np.array(
    [15.5, 45.0, 74.5, 105.0, 135.5, 166.0, 196.5, 227.5, 258.0, 288.5, 319.0, 349.5]
)
DAYS_PER_YEAR = 365.0
MINIMUM_REPEATS = 3  # years behind an interannual variability
MINIMUM_CALENDAR_MONTHS = 6  # calendar months behind a month of maximum
# Numbers come in float32: what varies by less than this share of its size does not vary.
_RESOLUTION = 1e-6


def applicable_scores(frequency: str, *, anomaly: bool = False) -> tuple[str, ...]:
    """Scores that make sense for ``mon``, ``yr`` or ``fx`` (static) data; for anomalies alone."""
    if frequency == "fx":
        return ("bias_score", "spatial_score")
    names = [name for name in WEIGHTS if frequency == "mon" or name != "seasonal_cycle_score"]
    if anomaly:
        names = [name for name in names if name not in ("bias_score", "spatial_score")]
    return tuple(names)


def noticeable(spread: Any, size: Any) -> Array:
    """``spread``, NaN where it is nothing beside ``size``: such a cell has no scale to score by."""
    spread = np.asarray(spread, np.float64)
    floor = _RESOLUTION * np.abs(np.nan_to_num(np.asarray(size, np.float64)))
    return np.asarray(np.where(spread > floor, spread, np.nan))


def error_score(error: Any, scale: Any) -> Array:
    """exp(-|error| / scale); NaN where the scale is."""
    return np.asarray(np.exp(-np.abs(np.asarray(error, np.float64)) / np.asarray(scale)))


def centred_rmse(variance_model: Any, variance_reference: Any, covariance: Any) -> Array:
    """sqrt(var m + var r - 2 cov), 0 where rounding makes that negative."""
    square = np.asarray(variance_model) + variance_reference - 2.0 * np.asarray(covariance)
    return np.asarray(np.sqrt(np.maximum(square, 0.0)))


def month_of_maximum(cycle: Any) -> Array:
    """(N,) 0-based month of the maximum of a mean cycle (12, N), the first one of equals.

    NaN where fewer than MINIMUM_CALENDAR_MONTHS months are there, or the cycle is flat.
    """
    cycle = np.asarray(cycle, np.float64)
    present = np.isfinite(cycle)
    filled = np.where(present, cycle, -np.inf)
    highest = filled.max(axis=0)
    lowest = np.where(present, cycle, np.inf).min(axis=0)
    usable = present.sum(axis=0) >= MINIMUM_CALENDAR_MONTHS
    with np.errstate(invalid="ignore"):
        amplitude = noticeable(highest - lowest, np.maximum(np.abs(highest), np.abs(lowest)))
    return np.where(usable & np.isfinite(amplitude), filled.argmax(axis=0), np.nan)


def phase_score(month_model: Any, month_reference: Any) -> Array:
    """(1 + cos(2 pi days / 365)) / 2 of the days between two months of maximum."""
    month_model = np.asarray(month_model, np.float64)
    month_reference = np.asarray(month_reference, np.float64)
    known = np.isfinite(month_model) & np.isfinite(month_reference)
    day_model = MID_MONTH_DAY[np.where(known, month_model, 0).astype(int)]
    day_reference = MID_MONTH_DAY[np.where(known, month_reference, 0).astype(int)]
    score = 0.5 * (1.0 + np.cos(2.0 * np.pi * (day_model - day_reference) / DAYS_PER_YEAR))
    return np.where(known, score, np.nan)


def area_mean(field: Any, area: Any) -> tuple[float, int]:
    """Mean over the cells that have a value and an area, and their number; (NaN, 0) if none."""
    field = np.asarray(field, np.float64)
    used = np.isfinite(field) & (np.asarray(area) > 0)
    count = int(used.sum())
    if count == 0:
        return float("nan"), 0
    weight = np.where(used, area, 0.0)
    return float((np.where(used, field, 0.0) * weight).sum() / weight.sum()), count


def spatial_pattern(model: Any, reference: Any, area: Any) -> tuple[float, float, int]:
    """sigma = std(model) / std(reference), correlation R, number of cells; both weighted by area.

    (NaN, NaN, n) where the reference does not vary; R is NaN where the model does not.
    """
    model = np.asarray(model, np.float64)
    reference = np.asarray(reference, np.float64)
    used = np.isfinite(model) & np.isfinite(reference) & (np.asarray(area) > 0)
    count = int(used.sum())
    if count < 2:
        return float("nan"), float("nan"), count
    weight = np.asarray(area, np.float64)[used]
    weight = weight / weight.sum()
    m, r = model[used], reference[used]
    m_off, r_off = m - (weight * m).sum(), r - (weight * r).sum()
    std_m = float(np.sqrt((weight * m_off**2).sum()))
    std_r = float(np.sqrt((weight * r_off**2).sum()))
    if not np.isfinite(noticeable(std_r, np.abs(r).max())):
        return float("nan"), float("nan"), count
    if not np.isfinite(noticeable(std_m, np.abs(m).max())):
        return 0.0, float("nan"), count
    correlation = float((weight * m_off * r_off).sum()) / (std_m * std_r)
    return std_m / std_r, min(1.0, max(-1.0, correlation)), count


def taylor_score(sigma: float, correlation: float) -> float:
    """4 (1 + R) / (2 (sigma + 1 / sigma)^2); 0, its limit, for a model without any pattern."""
    if sigma == 0.0:
        return 0.0
    return 4.0 * (1.0 + correlation) / (2.0 * (sigma + 1.0 / sigma) ** 2)


def overall_score(scores: Mapping[str, float]) -> tuple[float, int, int]:
    """Weighted mean of the scores that are there, how many those are, and how many were wanted."""
    there = {name: value for name, value in scores.items() if np.isfinite(value)}
    if not there:
        return float("nan"), 0, len(scores)
    total = sum(WEIGHTS[name] for name in there)
    value = sum(WEIGHTS[name] * value for name, value in there.items()) / total
    return value, len(there), len(scores)
