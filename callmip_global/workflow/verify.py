"""Whether model output and restart files may be handed on: readable, complete, finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from callmip_global.workflow.failures import Failure, TaskFailedError

_BLOCK_VALUES = 4_000_000
_TIME_NAMES = ("time", "time_counter", "Time", "t")


def verify_file(path: Path, kind: str, time_steps: int = 0) -> None:
    """Read a NetCDF file once, whole; another format is left to the check of its size.

    Refused (TaskFailedError of class ``kind``): a file that cannot be read to its end, an infinite
    value, floating-point variables none of which holds any value, and fewer than ``time_steps``
    time steps. A variable that is missing everywhere is not: models write diagnostics they do not
    use, and what is asked for is looked at when it is harmonized.
    """
    if path.suffix != ".nc":
        return
    import netCDF4

    try:
        with netCDF4.Dataset(path) as dataset:
            floats = [v for v in dataset.variables.values() if _is_float(v)]
            filled = [_has_values(path, variable, kind) for variable in floats]
            steps = _time_steps(dataset)
    except (OSError, RuntimeError) as error:
        raise TaskFailedError(Failure(kind, f"{path.name} cannot be read: {error}")) from error
    if filled and not any(filled):
        raise TaskFailedError(Failure(kind, f"{path.name} holds no value at all"))
    if steps is not None and steps < time_steps:
        text = f"{path.name} holds {steps} time steps, wanted at least {time_steps}"
        raise TaskFailedError(Failure(kind, text))


def _is_float(variable: Any) -> bool:
    return getattr(variable.dtype, "kind", "") == "f"


def _has_values(path: Path, variable: Any, kind: str) -> bool:
    """Whether anything is neither missing nor NaN; blocks of rows, so that memory stays bounded."""
    import numpy as np

    per_row = max(1, int(np.prod(variable.shape[1:], dtype=np.int64)))
    rows = max(1, _BLOCK_VALUES // per_row)
    starts = range(0, variable.shape[0], rows) if variable.ndim else (0,)
    found = False
    for start in starts:
        block = variable[start : start + rows] if variable.ndim else variable[...]
        values = np.ma.compressed(block)
        if np.isinf(values).any():
            text = f"{path.name}: {variable.name} holds infinite values"
            raise TaskFailedError(Failure(kind, text))
        found = found or not np.isnan(values).all()
    return found


def _time_steps(dataset: Any) -> int | None:
    """Length of the time dimension, by its name or as the unlimited one; None if there is none."""
    dimensions = dataset.dimensions
    named = [dimensions[name] for name in _TIME_NAMES if name in dimensions]
    unlimited = [d for d in dimensions.values() if d.isunlimited()]
    return len((named or unlimited)[0]) if named or unlimited else None
