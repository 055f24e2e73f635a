"""Whether model output and restart files may be handed on: readable, complete, finite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from callmip_global.workflow.failures import Failure, TaskFailedError

_BLOCK_VALUES = 4_000_000


def verify_outputs(paths: Sequence[Path], kind: str, years: tuple[int, int] | None) -> None:
    """Open every NetCDF file, read all of it once, refuse NaN-only or infinite fields.

    ``years``: where given, the files together must hold that many months (or years). Other formats
    are checked for existence and size by the caller. Raises TaskFailedError of class ``kind``.
    """
    steps = 0
    for path in paths:
        if path.suffix == ".nc":
            steps = max(steps, 0) + _verify_netcdf(path, kind)
    if years is None or not any(p.suffix == ".nc" for p in paths):
        return
    wanted = years[1] - years[0] + 1
    if steps < wanted:
        raise TaskFailedError(
            Failure(kind, f"outputs hold {steps} time steps, too few for {years[0]}-{years[1]}")
        )


def _verify_netcdf(path: Path, kind: str) -> int:
    import netCDF4

    try:
        with netCDF4.Dataset(path) as dataset:
            for name, variable in dataset.variables.items():
                if getattr(variable.dtype, "kind", "") == "f":
                    _verify_values(path, name, variable, kind)
            return _time_steps(dataset)
    except (OSError, RuntimeError) as error:
        raise TaskFailedError(Failure(kind, f"{path.name} cannot be read: {error}")) from error


def _verify_values(path: Path, name: str, variable: Any, kind: str) -> None:
    import numpy as np

    rows = variable.shape[0] if variable.ndim else 1
    per_row = max(1, int(np.prod(variable.shape[1:], dtype=np.int64)))
    block = max(1, _BLOCK_VALUES // per_row)
    any_value = False
    for start in range(0, max(rows, 1), block):
        values = np.ma.masked_invalid(
            variable[start : start + block] if variable.ndim else variable[:]
        )
        raw = np.ma.getdata(values)
        if np.isinf(raw[~np.ma.getmaskarray(np.ma.masked_equal(raw, np.nan))]).any():
            raise TaskFailedError(Failure(kind, f"{path.name}: {name} holds infinite values"))
        any_value = any_value or bool(values.count())
    if rows and not any_value:
        raise TaskFailedError(Failure(kind, f"{path.name}: {name} holds no value at all"))


def _time_steps(dataset: Any) -> int:
    for name in ("time", "time_counter", "Time", "t"):
        if name in dataset.dimensions:
            return len(dataset.dimensions[name])
    return 0
