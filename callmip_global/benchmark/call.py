"""What a benchmark is asked to do, known to be possible before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from callmip_global.benchmark import scores
from callmip_global.benchmark.inputs import Run, read_runs
from callmip_global.benchmark.product import Product
from callmip_global.benchmark.regions import REGIONS, Region, select_regions
from callmip_global.errors import Problem, UsageError

FREQUENCIES = ("mon", "yr")


@dataclass(frozen=True)
class Call:
    """A call that can be used. ``damaged``: what is wrong with runs that are left out."""

    runs: Sequence[Run]
    damaged: Sequence[Problem]
    products: Sequence[Product]
    frequencies: Sequence[str]
    regions: Sequence[Region]
    schemes: Sequence[scores.Scheme]


def usable_call(
    stores: Sequence[Path],
    *,
    products: Sequence[Product],
    frequencies: Sequence[str] = FREQUENCIES,
    regions: Sequence[str] = tuple(REGIONS),
    schemes: Sequence[str] = (scores.COLLIER2018.name,),
) -> Call:
    """The call that names and paths ask for, as ``run_benchmark`` takes them; nothing is written.

    Raises UsageError for runs, frequencies, regions or schemes that cannot be used at all.
    """
    chosen = select_regions(regions)
    used = scores.select_schemes(schemes)
    unknown = [name for name in frequencies if name not in FREQUENCIES]
    if unknown or not frequencies:
        raise UsageError(
            Problem("frequencies", found=", ".join(unknown) or "none", wanted="mon, yr")
        )
    if not products:
        raise UsageError(Problem("products", found="none", wanted="at least one product"))
    runs, damaged = read_runs(stores)
    return Call(runs, damaged, products, frequencies, chosen, used)
