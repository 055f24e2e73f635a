"""``cdo remapcon`` as a witness: the same values in the same cells, on every kind of grid.

Each case is a file as a model leaves it, read by both. Below 1e-9 of values from 0 to 10; CDO's own
rounding is some 2e-10 (it turns corners into vectors and back). Step 1 and 2 have one mask, for
which CDO makes weights once; step 3 has another, for which it makes them anew.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from grid_cases import gaussian

from callmip_global.grid import GaussianEdges, Grid, grid_of, standard_grid
from callmip_global.regrid import conservative_weights, masked_mean, regrid_dataset

pytestmark = pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")

N48 = gaussian(96, 192)
N96_LON = np.arange(192) * 1.875
ONE = standard_grid("1deg")
TWO = standard_grid("2deg")


@dataclass(frozen=True)
class Case:
    """Axes in the file's order, the target, and what the file says of its edges."""

    lat: np.ndarray
    lon: np.ndarray
    target: str = "2deg"
    lat_bnds: np.ndarray | None = None
    lon_bnds: np.ndarray | None = None
    gaussian_edges: GaussianEdges = "weights"


def with_bounds(grid: Grid, order: slice = slice(None), target: str = "2deg") -> Case:
    return Case(grid.lat[order], grid.lon, target, grid.lat_bnds[order], grid.lon_bnds)


OFFSET = Grid(
    "COLM", np.append(np.arange(-89.25, 89.0, 2), 90.0), np.linspace(-180.75, 179.25, 181)
)
NORTH_FIRST = slice(None, None, -1)
CASES = {
    "0.5 to 1 degree": Case(standard_grid("0.5deg").lat, standard_grid("0.5deg").lon, "1deg"),
    "1 to 0.5 degrees": Case(ONE.lat, ONE.lon, "0.5deg"),
    "1 to 2 degrees": Case(ONE.lat, ONE.lon),
    "N96, 144 x 192": Case(np.linspace(-89.375, 89.375, 144), N96_LON, "1deg"),
    "N96 centred on the poles, 145 x 192": Case(np.linspace(-90.0, 90.0, 145), N96_LON, "1deg"),
    "CLM, 192 x 288": Case(np.linspace(-90.0, 90.0, 192), np.arange(288) * 1.25, "1deg"),
    # CDO puts edges half way between Gaussian latitudes unless the file has bounds.
    "T63 with bounds by Gauss weights": with_bounds(N48, NORTH_FIRST, "1deg"),
    "T63 with midpoints on request": Case(
        N48.lat[::-1], N48.lon, "1deg", gaussian_edges="midpoints"
    ),
    "T63 without rows south of 60 S": Case(
        N48.lat[16:], N48.lon, lat_bnds=N48.lat_bnds[16:], lon_bnds=N48.lon_bnds
    ),
    # Edges 3/8 of a cell off those of the target; the northern row is cut off at the pole.
    "offset": Case(89.75 - 2.0 * np.arange(90), -179.75 + 2.0 * np.arange(180)),
    "offset with bounds": with_bounds(OFFSET, NORTH_FIRST),
    "without rows south of 60 S": Case(np.arange(-59.5, 90.0), ONE.lon),
    "without rows south of 56 S": Case(np.arange(-55.5, 90.0), ONE.lon),
    "CLM-FATES, 80 x 144": Case(np.linspace(-90.0, 90.0, 96)[16:], np.arange(144) * 2.5),
    "from north to south": Case(ONE.lat[::-1], ONE.lon),
    "0 to 360": Case(ONE.lat, np.arange(0.5, 360.0)),
    "-180 to 180, cells round 180": Case(ONE.lat, np.arange(-180.0, 180.0)),
    "0 to 180, then -178 to 0": Case(
        np.linspace(-88.75, 88.75, 72), np.append(np.arange(0, 181, 2.0), np.arange(-178, -1, 2.0))
    ),
}


def file_of(case: Case, path: Path) -> xr.Dataset:
    """The case as a file of three steps: values in [0, 10), seas and scattered gaps."""
    rng = np.random.default_rng(11)
    lat, lon = np.deg2rad(case.lat)[:, None], np.deg2rad(case.lon)
    values = 10.0 * rng.random((3, lat.size, lon.size))
    for steps, turn in ((slice(0, 2), 0.0), (slice(2, 3), 1.0)):
        sea = np.sin(3.0 * lon + turn) + np.cos(5.0 * lat - turn) < -0.2
        values[steps, sea | (rng.random(sea.shape) < 0.1)] = np.nan
    bounds = {"lat": case.lat_bnds, "lon": case.lon_bnds}
    coords = {
        name: (
            name,
            axis,
            {"units": f"degrees_{'north' if name == 'lat' else 'east'}"}
            | ({"bounds": f"{name}_bnds"} if bounds[name] is not None else {}),
        )
        for name, axis in (("lat", case.lat), ("lon", case.lon))
    }
    days = {"units": "days since 1850-01-01"}
    ds = xr.Dataset(
        {
            "x": (("time", "lat", "lon"), values),
            **{f"{k}_bnds": ((k, "b"), v) for k, v in bounds.items() if v is not None},
        },
        coords={"time": ("time", [15.5, 45.0, 74.5], days), **coords},
    )
    # CDO knows missing values by the attribute only; NaN it would take for numbers.
    ds.to_netcdf(
        path, encoding={n: {"_FillValue": 1e20 if n == "x" else None} for n in ds.variables}
    )
    return ds


@pytest.mark.parametrize("name", CASES)
def test_cdo_has_the_same_values_in_the_same_cells(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    ds = file_of(case, tmp_path / "in.nc")
    # The output of CDO has the type of the input but for -b, and its rounding with that.
    # REMAP_AREA_MIN stays 0: any part of a cell that is valid makes it valid, as here.
    target = f"global_{case.target.removesuffix('deg')}"
    command = ["cdo", "-s", "-b", "F64", f"remapcon,{target}", "in.nc", "out.nc"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    with xr.open_dataset(tmp_path / "out.nc", decode_times=False) as result:
        witness = result["x"].values
    grid = standard_grid(case.target)
    if case.gaussian_edges == "weights":
        out = regrid_dataset(ds, grid=grid)["x"].values
    else:
        source = grid_of(ds, "in.nc", gaussian_edges=case.gaussian_edges)
        assert source.edge_model == "clipped-midpoints"
        values = source.to_grid_order(ds["x"]).values
        out, _ = masked_mean(conservative_weights(source.grid, grid), values)

    missing = np.isnan(out)
    assert missing.any()
    assert not np.array_equal(missing[0], missing[2])
    for row in (0, 1, -2, -1):
        place = f"row at {grid.lat[row]:g} N"
        np.testing.assert_array_equal(missing[:, row], np.isnan(witness[:, row]), err_msg=place)
        np.testing.assert_allclose(out[:, row], witness[:, row], rtol=0, atol=1e-9, err_msg=place)
        # Truncated grids have none in the south; everywhere else this compares numbers.
        assert missing[:, row].all() == (grid.lat[row] < case.lat.min() - 3.0), place
    np.testing.assert_array_equal(missing, np.isnan(witness))
    np.testing.assert_allclose(out, witness, rtol=0, atol=1e-9)
