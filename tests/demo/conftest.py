"""The small demonstration, written once: the land mask alone takes seconds to read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callmip_global.demo.experiment import write_demo


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small demonstration experiment. Not to be changed by a test."""
    return write_demo(tmp_path_factory.mktemp("demo"), scheduler="local", small=True).parent


@pytest.fixture
def namelist(small_demo: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``namelist(n_years=3)``: a namelist of the untiled 24 x 48 model from 1991, with changes."""
    base = {
        "surface": str(small_demo / "data" / "surface.nc"),
        "parameters": str(small_demo / "params" / "prior.yaml"),
        "first_year": 1991,
        "n_years": 2,
        "label_moves": True,
        "climate": "actual",
        "co2": {"table": str(small_demo / "data" / "co2.txt"), "year": "yearly"},
        "luc": "yearly",
        "tile": 1,
        "tiles": 1,
        "restart_in": None,
        "restart_out": str(tmp_path / "restart.nc"),
        "equilibrate": False,
        "output": None,
    }

    def changed(**changes: Any) -> dict[str, Any]:
        return copy.deepcopy(base) | {
            k: str(v) if isinstance(v, Path) else v for k, v in changes.items()
        }

    return changed
