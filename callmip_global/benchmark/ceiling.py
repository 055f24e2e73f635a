"""Product against product: how well a run can be expected to agree with a product at all.

Two products of one variable differ as well. One of them, scored against the other as if it were a
run, says what agreement is within reach: a run that scores more than that is not known to be
better, for the products do not tell (the "benchmark scores" of AMBER: Seiler et al. 2021, CLASSIC
v1.0 part 2: Global benchmarking, Geosci. Model Dev., 10.5194/gmd-14-2371-2021).

The two products have a common mask of their own: neither takes a cell or a month from the runs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from callmip_global.benchmark.compare import (
    MINIMUM_STEPS,
    Comparison,
    Regridder,
    compare,
    static_map,
)
from callmip_global.benchmark.inputs import Run
from callmip_global.benchmark.product import Product
from callmip_global.benchmark.regions import Region
from callmip_global.benchmark.scores import Scheme
from callmip_global.benchmark.series import Box, Period, Series, at_frequency, product_series
from callmip_global.benchmark.uncertainty import UncertaintyError, uncertainty_series

STAGE = "Reference"
_ANY_YEAR = 2000  # a map without time


def rivals(product: Product, products: Sequence[Product]) -> list[Product]:
    """The products that may be held against ``product``: of its variable, static if it is.

    Not those known to speak of another quantity, nor another entry of the very same data.
    """
    return [
        other
        for other in products
        if other is not product
        and other.variable == product.variable
        and other.static == product.static
        and other.like_for_like is not False
        and not (other.source == product.source and set(other.files()) & set(product.files()))
    ]


def as_run(product: Product) -> Run:
    """What a product is in tables when it stands where a run would."""
    return Run(f"product {product.name}", "", STAGE, None, "", "", [])


@dataclass(frozen=True)
class Ceiling:
    """``comparison``: with the other product as its only run, None where they share too little.
    ``of_runs``: whether of the period that the runs are scored over. ``shared``: steps in common.
    """

    comparison: Comparison | None
    of_runs: bool
    shared: int


def against(
    product: Product,
    other: Product,
    *,
    periods: Collection[Period],
    frequency: str,
    regions: Sequence[Region],
    schemes: Sequence[Scheme],
    regridder: Regridder,
) -> Ceiling | None:
    """Score ``other`` against ``product`` at ``mon``, ``yr`` or ``fx``.

    ``periods``: those that the runs are scored over. Where the two share enough of them those
    count, else all that the two share. If one of them has anomalies only, both are taken as such.
    None where one of the two has no data at this frequency; DataError where nothing can be
    compared.
    """
    whole = product_series(product)
    reference, series = (at_frequency(found, frequency) for found in (whole, product_series(other)))
    if reference is None or series is None:
        return None
    uncertainty: Series | None = None
    try:
        beside = uncertainty_series(product, whole)
        uncertainty = None if beside is None else at_frequency(beside, frequency)
    except UncertaintyError:
        pass  # told with the runs
    opened = [one for one in (reference, series, uncertainty) if one is not None]
    try:
        of_runs, shared = True, 1
        if frequency == "fx":
            series = _still(product, other, series, regridder)
        else:
            both = other.in_window(series.periods) & product.in_window(reference.periods)
            within = both & set(periods)
            of_runs = len(within) >= MINIMUM_STEPS[frequency]
            series.periods = tuple(sorted(within if of_runs else both))
            shared = len(series.periods)
            if shared < MINIMUM_STEPS[frequency]:
                return Ceiling(None, of_runs, shared)
        comparison, _ = compare(
            replace(product, anomaly=product.anomaly or other.anomaly),
            reference,
            [(as_run(other), series)],
            frequency=frequency,
            regions=regions,
            schemes=schemes,
            regridder=regridder,
            uncertainty=uncertainty,
        )
    finally:
        for one in opened:
            one.close()
    if frequency == "fx":
        comparison.n_months = 0
    return Ceiling(comparison, of_runs, shared)


@dataclass
class _Map:
    """A static product as a run of one step."""

    series: Series
    values: NDArray[np.float64]
    periods: tuple[Period, ...]
    frequency: str = "mon"

    def __post_init__(self) -> None:
        self.where, self.calendar = self.series.where, self.series.calendar
        self.grid, self.land, self.chunk = self.series.grid, self.series.land, self.series.chunk

    def read(self, periods: Sequence[Period], box: Box | None = None) -> NDArray[np.float64]:
        return self.values[(None, *(box or ()))]

    def close(self) -> None:
        self.series.close()


def _still(product: Product, other: Product, series: Series, regridder: Regridder) -> Series:
    values = static_map(other, series, series.grid, regridder)
    year = product.window[0] if product.window else _ANY_YEAR
    return _Map(series, values, ((year, 1),))
