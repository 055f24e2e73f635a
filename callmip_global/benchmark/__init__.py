"""Scores of prior and posterior runs against reference products, their maps and the report.

The heavy parts load when they are first asked for: checking a products file needs no xarray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callmip_global.benchmark.product import KINDS, Product

if TYPE_CHECKING:
    from callmip_global.benchmark.report import write_report
    from callmip_global.benchmark.run import run_benchmark

__all__ = ["KINDS", "Product", "run_benchmark", "write_report"]


def __getattr__(name: str) -> Any:
    if name == "run_benchmark":
        from callmip_global.benchmark.run import run_benchmark

        return run_benchmark
    if name == "write_report":
        from callmip_global.benchmark.report import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
