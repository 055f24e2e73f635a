"""The uncertainty that a product states of itself: read beside it, and scores that allow for it.

An error within the uncertainty U counts as none. As in ilamb3 (``analysis/bias.py``,
``analysis/rmse.py``, 2026), with b the bias and sigma the standard deviation of the reference::

    bias score  exp(-max(|b| - mean U, 0) / sigma)
    RMSE score  exp(-crmse / sigma),
                crmse^2 = mean(max(|(m - mean m) - (r - mean r)| - U, 0)^2)

What is cut off at 0 follows from no sums that could be merged, so the series are read a second
time, when their means are known; only for products that state an uncertainty.

Errors are taken as fully correlated inside a cell of the comparison grid and in time: U of a larger
cell is the mean over its area, U of a year or of all time the mean over its days. That is the
largest it can be; were the errors independent, U would shrink with the square root of their number.
Where U is missing it counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from callmip_global.benchmark.product import Product
from callmip_global.benchmark.scores import Scheme, error_score, scale_in_time
from callmip_global.benchmark.series import (
    Box,
    FileSeries,
    Period,
    Scale,
    Series,
    file_opener,
    file_series,
    said_period,
    unit_scale,
)
from callmip_global.benchmark.statistics import Moments, common_mask
from callmip_global.compiled import compiled
from callmip_global.errors import DataError, Problem
from callmip_global.grid import Grid
from callmip_global.units import convert_factor, normalise_text, same_units
from callmip_global.variables import variable_table

Array = NDArray[np.float64]

# Of a run; and of the change from prior to posterior alone.
REFERENCE_UNCERTAINTY = "reference_uncertainty"
RUN_QUANTITIES = (REFERENCE_UNCERTAINTY, "uncertain_bias_score", "uncertain_rmse_score")
BEYOND = "beyond_uncertainty_share"
RULE = "uncertainty"

_CELLS = 256
_PERCENT = ("%", "percent", "per cent")


class UncertaintyError(DataError):
    """The uncertainty of a product cannot be used; the product itself can."""


def _refused(problem: Problem, remedy: str = "") -> UncertaintyError:
    """One line that says what becomes of the product: it is scored, its uncertainty is not used."""
    said = (remedy or problem.remedy).removesuffix(".")
    said = f"{said}. " if said else ""
    text = f"{said}The product is used without its uncertainty. [{RULE}]"
    return UncertaintyError(replace(problem, remedy=text, rule=RULE))


# --- the series -----------------------------------------------------------------------------------


@dataclass
class Uncertainty:
    """The uncertainty of a product: a ``Series`` in the units of the table, never negative.

    ``value``: the product, where the uncertainty is in percent of its size, else None. Reading
    raises UncertaintyError for a negative number, a fill value without a name, or damage.
    """

    series: FileSeries
    value: FileSeries | None = field(repr=False)

    def __post_init__(self) -> None:
        self.where, self.frequency = self.series.where, self.series.frequency
        self.calendar, self.periods = self.series.calendar, self.series.periods
        self.grid, self.land, self.chunk = self.series.grid, self.series.land, self.series.chunk
        self.dtype = np.dtype(np.float64) if self.value is not None else self.series.dtype

    def read(self, periods: Sequence[Period], box: Box | None = None) -> NDArray[Any]:
        try:
            values = self.series.read(periods, box)
            if self.value is not None:
                values = values / 100.0 * np.abs(self.value.read(periods, box), dtype=np.float64)
        except DataError as error:
            raise _refused(error.problems[0]) from error
        lowest = np.fmin.reduce(values, axis=(1, 2))
        if (lowest < 0).any():
            step = int(np.flatnonzero(lowest < 0)[0])
            period = periods[step]
            raise _refused(
                Problem(
                    self.series.place(period),
                    self.series.name,
                    f"{lowest[step]:.4g} in {said_period(period, self.frequency)}",
                    "an uncertainty of 0 or more",
                ),
                "A fill value? Then set it missing",
            )
        return values

    def close(self) -> None:
        self.series.close()
        if self.value is not None:
            self.value.close()


def uncertainty_series(product: Product, reference: FileSeries) -> Uncertainty | None:
    """The uncertainty beside the product that is read as ``reference``; None if it names none.

    UncertaintyError says in one line what is wrong with it.
    """
    if product.uncertainty is None:
        return None
    files = product.files()
    percent: set[bool] = set()

    def conversion(ds: xr.Dataset, name: str, at: str) -> Scale:
        beside = str(ds[reference.name].attrs.get("units", "")).strip()
        found = _conversion(product, ds[name], beside or product.native_units or "", at)
        percent.add(found is None)
        return None if found is None else found[0]

    try:
        series = file_series(
            reference.where,
            [f"{reference.where} ({path.name})" for path in files],
            [file_opener(path) for path in files],
            product.uncertainty,
            product.uncertainty,
            conversion,
            static=product.static,
            constant=True,
        )
    except UncertaintyError:
        raise
    except DataError as error:
        problem = error.problems[0]
        unnamed = "no such variable" in problem.found
        remedy = "Name it with `uncertainty:`, or say `uncertainty: null`" if unnamed else ""
        raise _refused(problem, remedy) from error
    if len(percent) > 1:
        raise _refused(
            Problem(
                reference.where,
                product.uncertainty,
                "percent in some files and not in others",
                "one of the two",
            )
        )
    # What is per area of land for the product is so for its uncertainty, whoever forgot to say it.
    series = replace(series, land=reference.land)
    return Uncertainty(series, replace(reference) if percent == {True} else None)


def _conversion(product: Product, da: xr.DataArray, beside: str, at: str) -> tuple[Scale] | None:
    """How the numbers of the file become those of the table; None: they are percent of the value.

    ``beside``: the unit of the product in the same file. The factor of the product counts here too,
    its sign and the zero of a temperature do not.
    """
    name = str(da.name)
    stated = str(da.attrs.get("units", "")).strip()
    own = stated or product.native_units or ""

    def refuse(wanted: str, remedy: str) -> UncertaintyError:
        return _refused(Problem(at, name, f"units {stated!r}", wanted, remedy))

    if not own:
        raise refuse(
            f"{beside!r}, or '%' of the value", f"Set it: ncatted -a units,{name},c,c,UNIT FILE"
        )
    if _is_percent(stated):
        if _is_percent(beside):
            raise refuse(
                "a unit that says whether it is percent of the value or of what the value is of",
                "Write product and uncertainty as fractions (units 1)",
            )
        return None
    if same_units(own, "1") and not same_units(beside, "1"):
        raise refuse(
            f"{beside!r}, or '%' of the value",
            f"A share of the value? Multiply it by 100 and set ncatted -a units,{name},o,c,% FILE",
        )
    target = variable_table()[product.variable].units
    try:
        if product.units is not None and not _same_size(own, beside):
            raise refuse(
                f"{beside!r} as the product, for which its factor {product.factor:g} is",
                "Convert it in the file",
            )
        units = own if product.units is None else product.units
        found = convert_factor(units, target, at, name)
    except UncertaintyError:
        raise
    except DataError as error:
        raise _refused(error.problems[0]) from error
    return (unit_scale(replace(found, offset=0.0), abs(product.factor)),)


def _is_percent(units: str) -> bool:
    return normalise_text(units).lower() in _PERCENT


def _same_size(first: str, second: str) -> bool:
    """Whether one of the first unit is one of the second; their zeros may differ (K, degC)."""
    if same_units(first, second):
        return True
    found = convert_factor(first, second, "", "")
    return bool(np.isclose(found.factor, 1.0, rtol=1e-12)) and found.per is None


# --- the second pass ------------------------------------------------------------------------------


@compiled
def _accumulate(
    reference: NDArray[Any],
    models: NDArray[Any],
    valid: NDArray[np.bool_],
    uncertainty: NDArray[Any],
    days: Array,
    mean_reference: Array,
    mean_model: Array,
    known: NDArray[np.int64],
    total: Array,
    excess: Array,
) -> None:
    """Add a block to the sums of ``ExcessSums``."""
    n_steps, n_cells = reference.shape
    departure = np.empty(_CELLS)
    allowed = np.empty(_CELLS)
    for start in range(0, n_cells, _CELLS):
        stop = min(start + _CELLS, n_cells)
        for t in range(n_steps):
            length = days[t]
            for c in range(start, stop):
                if not valid[t, c]:
                    continue
                allowed[c - start] = 0.0
                if np.isfinite(uncertainty[t, c]):
                    allowed[c - start] = np.float64(uncertainty[t, c])
                    known[c] += 1
                    total[c] += length * allowed[c - start]
                departure[c - start] = np.float64(reference[t, c]) - mean_reference[c]
            for k in range(len(models)):
                for c in range(start, stop):
                    if valid[t, c]:
                        off = np.float64(models[k, t, c]) - mean_model[k, c] - departure[c - start]
                        beyond = abs(off) - allowed[c - start]
                        if beyond > 0.0:
                            excess[k, c] += length * beyond * beyond


@dataclass(eq=False)
class ExcessSums:
    """Sums over the common steps of N cells and K models, about means that are known.

    ``mean_reference`` (N,), ``mean_model`` (K, N): NaN in cells that do not count. ``known`` (N,):
    steps with an uncertainty; ``total`` (N,): length [days] times uncertainty; ``excess`` (K, N):
    length times the square of the departure beyond the uncertainty.
    """

    mean_reference: Array
    mean_model: Array
    known: NDArray[np.int64]
    total: Array
    excess: Array

    @classmethod
    def about(cls, moments: Moments, cells: NDArray[np.int64], n_cells: int) -> ExcessSums:
        """Empty sums for all cells of a tile, about the means of the ``cells`` that count."""
        n_models = len(moments.mean_model)
        mean_reference = np.full(n_cells, np.nan)
        mean_model = np.full((n_models, n_cells), np.nan)
        mean_reference[cells] = moments.mean_reference
        mean_model[:, cells] = moments.mean_model
        return cls(
            mean_reference,
            mean_model,
            np.zeros(n_cells, np.int64),
            np.zeros(n_cells),
            np.zeros((n_models, n_cells)),
        )

    def add(self, reference: Any, models: Any, uncertainty: Any, days: Any) -> None:
        """Add a block of T steps: (T, N), (K, T, N), (T, N), NaN where missing; (T,) [days]."""
        reference, models = np.ascontiguousarray(reference), np.ascontiguousarray(models)
        _accumulate(
            reference,
            models,
            common_mask(reference, models),
            np.ascontiguousarray(uncertainty),
            np.asarray(days, np.float64),
            self.mean_reference,
            self.mean_model,
            self.known,
            self.total,
            self.excess,
        )


@dataclass(frozen=True, eq=False)
class CellUncertainty:
    """The uncertainty in N cells, and what of the errors of K models is beyond it.

    ``mean`` (N,): over the common steps, 0 where missing; ``known`` (N,): steps that have one;
    ``crmse`` (K, N): centred RMSE beyond it, None for static maps.
    """

    mean: Array
    known: NDArray[np.int64]
    crmse: Array | None

    @classmethod
    def of_map(cls, values: Array, count: NDArray[np.int64]) -> CellUncertainty:
        """From the map (N,) of a static product."""
        return cls(np.nan_to_num(values), np.where(np.isfinite(values), count, 0), None)

    @classmethod
    def of_sums(cls, sums: ExcessSums, weight: Array, cells: NDArray[np.int64]) -> CellUncertainty:
        """Of the ``cells`` alone, for which ``weight`` (N,) is the length of the common steps."""
        return cls(
            sums.total[cells] / weight,
            sums.known[cells],
            np.sqrt(sums.excess[:, cells] / weight),
        )

    @property
    def field(self) -> Array:
        """(N,) mean uncertainty, NaN where it is not known at any step."""
        return np.where(self.known > 0, self.mean, np.nan)

    def run_fields(
        self, moments: Moments, k: int, frequency: str, schemes: Sequence[Scheme], *, anomaly: bool
    ) -> dict[tuple[str, str], Array]:
        """(scheme, quantity) -> (N,) of run ``k``, as far as they apply.

        A scheme whose RMSE is that of mean cycles has no RMSE score of this kind: what a cycle may
        be off by is not known from the uncertainty of single months.
        """
        fields = {("", REFERENCE_UNCERTAINTY): self.field}
        scale = scale_in_time(moments, frequency)
        bias = np.abs(moments.mean_model[k] - moments.mean_reference)
        for scheme in schemes:
            wanted = scheme.applicable(frequency, anomaly=anomaly)
            if "bias_score" in wanted:
                beyond = np.maximum(bias - self.mean, 0.0)
                fields[scheme.name, "uncertain_bias_score"] = error_score(beyond, scale)
            of_cycle = scheme.cycle_rmse and frequency == "mon"
            if "rmse_score" in wanted and self.crmse is not None and not of_cycle:
                score = error_score(self.crmse[k], scale)
                fields[scheme.name, "uncertain_rmse_score"] = score
        return fields

    def beyond(self, moments: Moments, prior: int, posterior: int) -> Array:
        """(N,) 1 where the means of two runs differ by more than the uncertainty, else 0; NaN
        where that is not known."""
        change = np.abs(moments.mean_model[posterior] - moments.mean_model[prior])
        return np.where(self.known > 0, (change > self.mean).astype(np.float64), np.nan)


@dataclass(eq=False)
class ProductUncertainty:
    """The uncertainty in one comparison, gathered tile by tile.

    ``series``: what is read for each step; ``static``: the map of a static product instead.
    ``pairs``: of prior and posterior runs. ``field``: (nlat, nlon) mean uncertainty. ``known``,
    ``counted``: common steps of all cells that have one, and all of them.
    """

    series: Series
    pairs: Sequence[tuple[int, int]]
    field: Array
    static: Array | None = None
    known: int = 0
    counted: int = 0

    @classmethod
    def of(cls, series: Series, pairs: Sequence[tuple[int, int]], grid: Grid) -> ProductUncertainty:
        return cls(series, pairs, np.full(grid.shape, np.nan))

    def notes(self, product: Product) -> list[str]:
        """What share of the steps has an uncertainty, in words, unless it is all of them."""
        if self.known == self.counted:
            return []
        return [
            f"product {product.name}: {product.uncertainty} is there at "
            f"{self.known / self.counted:.0%} of the steps that count, over all cells; "
            "elsewhere the uncertainty counts as 0."
        ]


def no_values(product: Product) -> UncertaintyError:
    """That the uncertainty has no value where product and runs have some."""
    files = ", ".join(path.name for path in product.files()[:1])
    return _refused(
        Problem(
            f"product {product.name} ({files})",
            product.uncertainty or "",
            "no value in the cells and steps compared",
            "an uncertainty in some of them",
        )
    )
