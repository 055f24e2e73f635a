"""From a model's own output to the harmonized store on the model's native grid.

The heavy parts load when they are first asked for: checking a variable map needs no xarray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callmip_global.harmonize.variable_map import VariableMap, VariableSource

if TYPE_CHECKING:
    from callmip_global.harmonize.run import harmonize_run

__all__ = ["VariableMap", "VariableSource", "harmonize_run"]


def __getattr__(name: str) -> Any:
    if name == "harmonize_run":
        from callmip_global.harmonize.run import harmonize_run

        return harmonize_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
