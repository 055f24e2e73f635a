"""What may be handed on: files as models write them, whole and spoiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import pytest

from callmip_global.workflow.failures import TaskFailedError
from callmip_global.workflow.verify import verify_file

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(values, steps)``: out.nc with a land variable of 3 cells and an unused one."""

    def make(spoil: float | None = None, steps: int = 12, time: str = "time") -> Path:
        path = tmp_path / "out.nc"
        with netCDF4.Dataset(path, "w") as ds:
            ds.createDimension(time, None)
            ds.createDimension("cell", 3)
            used = ds.createVariable("gpp", "f4", (time, "cell"), fill_value=-9999.0)
            ds.createVariable("unused", "f4", (time, "cell"), fill_value=-9999.0)
            ds.createVariable("name", str, ("cell",))
            values = np.ma.masked_less(np.ones((steps, 3)) * [1.0, 2.0, -1.0], 0.0)
            if spoil is not None:
                values[steps - 1, 0] = spoil
            used[:] = values
        return path

    return make


def test_a_whole_file_with_missing_cells_and_an_unused_variable_is_good(write: Write) -> None:
    verify_file(write(), "model", 12)
    verify_file(write(spoil=np.nan), "model", 12)
    verify_file(write(time="record"), "model", 12)


def test_another_format_is_not_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "restart.bin"
    path.write_bytes(b"\0")
    verify_file(path, "restart")


def spoil_end(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-400])
    return path


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (lambda write: write(spoil=np.inf), "gpp holds infinite values"),
        (lambda write: write(steps=11), "holds 11 time steps, wanted at least 12"),
        (lambda write: write(steps=0), "holds no value at all"),
        (lambda write: spoil_end(write()), "cannot be read"),
    ],
    ids=["infinite", "one-month-short", "nothing", "cut-short"],
)
def test_a_spoiled_file_is_a_failure_of_the_model(
    write: Write, spoiled: Callable[[Write], Path], words: str
) -> None:
    with pytest.raises(TaskFailedError, match=words) as caught:
        verify_file(spoiled(write), "model", 12)
    assert caught.value.failure.kind == "model"
