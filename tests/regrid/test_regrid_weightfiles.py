"""Weight files of other tools: the same result as with our own weights, or refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from grid_cases import gaussian
from mesh_cases import cubed_sphere, mesh_file
from typer.testing import CliRunner

from callmip_global.cli.app import app
from callmip_global.errors import DataError, UsageError
from callmip_global.grid import Grid, grid_of, standard_grid
from callmip_global.regrid import (
    conservative_weights,
    masked_mean,
    read_weights,
    regrid_files,
    write_weights,
)
from callmip_global.regrid.meshfiles import source_of
from callmip_global.store import grid_variables

TWO = standard_grid("2deg")
CORNERS = cubed_sphere(12, seed=8)
TARGET = (
    "gridtype = lonlat\nxsize = 180\nysize = 90\nxfirst = -179\nxinc = 2\nyfirst = -89\nyinc = 2\n"
)
cdo_is_there = pytest.mark.skipif(shutil.which("cdo") is None, reason="cdo is not installed")


def cdo(folder: Path, *arguments: str, **environment: str) -> None:
    (folder / "grid.txt").write_text(TARGET)
    command = ["cdo", "-s", "-b", "F64", *arguments]
    environment = {**os.environ, **environment}
    subprocess.run(command, cwd=folder, check=True, timeout=120, env=environment)


def on_grid(grid: Grid, *, north_first: bool, gaps: bool = False) -> xr.Dataset:
    values = np.random.default_rng(1).random((2, *grid.shape))
    if gaps:
        values[np.random.default_rng(2).random(values.shape) < 0.2] = np.nan
    time = ("time", [15.0, 45.0], {"units": "days since 2000-01-01"})
    ds = xr.Dataset(
        {"gpp": (("time", "lat", "lon"), values, {"units": "kg m-2 s-1"})},
        coords={"time": time, **grid_variables(grid)},
    ).drop_vars("areacella")
    return ds.isel(lat=slice(None, None, -1)) if north_first else ds


def on_cells(*, gaps: bool = False) -> xr.Dataset:
    return mesh_file(CORNERS, gaps=gaps)


def north_first(*, gaps: bool = False) -> xr.Dataset:
    return on_grid(gaussian(48, 96), north_first=True, gaps=gaps)


def from_greenwich(*, gaps: bool = False) -> xr.Dataset:
    grid = Grid("0-360", np.linspace(-90, 90, 46), np.linspace(0, 360, 73))
    return on_grid(grid, north_first=False, gaps=gaps)


SOURCES = {"cells": on_cells, "north first": north_first, "from Greenwich": from_greenwich}


def result(folder: Path, file: str, weight_file: str | None = None) -> xr.Dataset:
    out = folder / f"{file}-{weight_file}.zarr"
    path = folder / weight_file if weight_file is not None else None
    regrid_files([folder / file], grid=TWO, out=out, weight_file=path)
    with xr.open_zarr(out, decode_times=False) as ds:
        return ds.load()


def written(folder: Path, ds: xr.Dataset, kind: str) -> Path:
    source = source_of(ds, "data")
    weights = conservative_weights(source.grid, TWO, edge_model=source.edge_model)
    path = folder / f"{kind}.nc"
    write_weights(path, weights, source, TWO, kind)
    return path


@cdo_is_there
@pytest.mark.parametrize("made", SOURCES)
def test_weights_of_cdo_give_what_our_own_give(made: str, tmp_path: Path) -> None:
    SOURCES[made]().to_netcdf(tmp_path / "whole.nc")
    cdo(tmp_path, "gencon,grid.txt", "whole.nc", "weights.nc")
    SOURCES[made](gaps=True).to_netcdf(tmp_path / "in.nc")
    own, theirs = result(tmp_path, "in.nc"), result(tmp_path, "in.nc", "weights.nc")
    np.testing.assert_array_equal(np.isnan(theirs["gpp"]), np.isnan(own["gpp"]))
    np.testing.assert_allclose(theirs["gpp"], own["gpp"], rtol=1e-8)
    np.testing.assert_allclose(theirs["valid_fraction"], own["valid_fraction"], atol=1e-8)


@cdo_is_there
@pytest.mark.parametrize("made", SOURCES)
def test_cdo_applies_the_weights_that_we_write(made: str, tmp_path: Path) -> None:
    ds = SOURCES[made]()
    ds.to_netcdf(tmp_path / "in.nc")
    written(tmp_path, ds, "SCRIP")
    cdo(tmp_path, "remap,grid.txt,SCRIP.nc", "in.nc", "out.nc")
    with xr.open_dataset(tmp_path / "out.nc", decode_times=False) as witness:
        expected = witness["gpp"].values
    np.testing.assert_allclose(result(tmp_path, "in.nc")["gpp"], expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["ESMF", "SCRIP"])
@pytest.mark.parametrize("made", SOURCES)
def test_what_is_written_is_read_again(made: str, kind: str, tmp_path: Path) -> None:
    ds = SOURCES[made]()
    source = source_of(ds, "data")
    weights, again = read_weights(written(tmp_path, ds, kind), source, TWO)
    assert again == source
    weights.check(source.grid, TWO)
    values = np.random.default_rng(3).random((1, *source.grid.shape))
    values[values < 0.2] = np.nan
    own, part = masked_mean(conservative_weights(source.grid, TWO), values)
    out, covered = masked_mean(weights, values)
    np.testing.assert_allclose(out, own, rtol=1e-9)
    np.testing.assert_allclose(covered, part, atol=1e-9)


def test_points_without_corners_are_regridded_with_a_weight_file(tmp_path: Path) -> None:
    ds = on_cells(gaps=True)
    written(tmp_path, ds, "ESMF")
    ds.to_netcdf(tmp_path / "whole.nc")
    bare = ds.drop_vars(["lat_vertices", "lon_vertices"])
    for name in ("lat", "lon"):
        del bare[name].attrs["bounds"]
    bare.to_netcdf(tmp_path / "bare.nc")
    with pytest.raises(DataError, match="without the corners"):
        result(tmp_path, "bare.nc")
    out, own = result(tmp_path, "bare.nc", "ESMF.nc"), result(tmp_path, "whole.nc")
    np.testing.assert_allclose(out["gpp"], own["gpp"], rtol=1e-9)
    # In another order than the file's the cells are found by their places.
    order = np.random.default_rng(4).permutation(bare.sizes["cell"])
    bare.isel(cell=order).to_netcdf(tmp_path / "mixed.nc")
    mixed = result(tmp_path, "mixed.nc", "ESMF.nc")
    np.testing.assert_allclose(mixed["gpp"], own["gpp"], rtol=1e-9)


@cdo_is_there
def test_part_of_the_globe_needs_weights_that_know_their_coverage(tmp_path: Path) -> None:
    grid = Grid("land", np.linspace(-59, 90, 150), np.linspace(-180, 180, 361))
    on_grid(grid, north_first=False).to_netcdf(tmp_path / "in.nc")
    cdo(tmp_path, "gencon,grid.txt", "in.nc", "whole.nc", CDO_REMAP_NORM="destarea")
    own, theirs = result(tmp_path, "in.nc"), result(tmp_path, "in.nc", "whole.nc")
    np.testing.assert_allclose(theirs["valid_fraction"], own["valid_fraction"], atol=1e-9)
    # Row 59-60 S is half covered; normalised by what is covered the file cannot tell that.
    cdo(tmp_path, "gencon,grid.txt", "in.nc", "part.nc", CDO_REMAP_NORM="fracarea")
    with pytest.raises(DataError, match=r"lose or gain .* % of the source's area.*destarea"):
        result(tmp_path, "in.nc", "part.nc")


def test_the_three_normalisations_are_the_same_weights(tmp_path: Path) -> None:
    grid = Grid("part", np.linspace(-59, 90, 75), np.linspace(-180, 180, 91))
    ds = on_grid(grid, north_first=False)
    path = written(tmp_path, ds, "ESMF")
    source = grid_of(ds, "data")
    plain, _ = read_weights(path, source, TWO)
    with xr.open_dataset(path) as opened:
        file = opened.load()
    row = file["row"].values - 1
    for name, factor in (
        ("fracarea", 1.0 / file["frac_b"].values[row]),
        ("none", file["area_b"].values[row]),
    ):
        other = file.assign(S=file["S"] * factor).assign_attrs(normalization=name)
        other.to_netcdf(tmp_path / f"{name}.nc")
        weights, _ = read_weights(tmp_path / f"{name}.nc", source, TWO)
        np.testing.assert_allclose(weights.values, plain.values, rtol=1e-12)


def test_a_weight_file_by_hand(tmp_path: Path) -> None:
    # Two cells, 0-1 and 1-2 E of one row, onto one of 0-2 E and one of 2-4 E: halves and nothing.
    source_grid = Grid("a", np.array([0.0, 1.0]), np.array([0.0, 1.0, 2.0]))
    target = Grid("b", np.array([0.0, 1.0]), np.array([0.0, 2.0, 4.0]))
    area = np.deg2rad(1.0) * np.sin(np.deg2rad(1.0))
    xr.Dataset(
        {
            "yc_a": ("n_a", [0.5, 0.5]),
            "xc_a": ("n_a", [1.5, 0.5]),
            "area_a": ("n_a", [area, area]),
            "yc_b": ("n_b", [0.5, 0.5]),
            "xc_b": ("n_b", [1.0, 363.0]),
            "area_b": ("n_b", [2 * area, 2 * area]),
            "S": ("n_s", [0.5, 0.5]),
            "row": ("n_s", [1, 1]),
            "col": ("n_s", [1, 2]),
        }
    ).to_netcdf(tmp_path / "w.nc")
    data = on_grid(source_grid, north_first=False)
    weights, _ = read_weights(tmp_path / "w.nc", grid_of(data, "data"), target)
    out, covered = masked_mean(weights, np.array([[[1.0, 3.0]]]))
    np.testing.assert_allclose(out[0, 0], [2.0, np.nan])
    np.testing.assert_allclose(covered[0, 0], [1.0, 0.0])


BAD = {
    "of xESMF": (lambda f: f[["S", "row", "col"]], "weights without their grids"),
    "no weights": (lambda f: f[["xc_a"]], "no weights, wanted a file of ESMF"),
    "bilinear": (lambda f: f.assign_attrs(ESMF_regrid_method="Bilinear"), "'Bilinear', wanted fir"),
    "second order": (lambda f: f.assign(S=f["S"] - 0.1), "negative weights down to -0.1"),
    "masked": (lambda f: f.assign(mask_a=f["mask_a"] * (f["yc_a"] > 0)), "a source mask: .* cells"),
    "other source": (
        lambda f: f.assign(yc_a=f["yc_a"].where(f["yc_a"] != f["yc_a"][7], 1.23)),
        "source grid: found other cells: .* of 864 are nowhere, the first is at 1.23 N",
    ),
    "fewer cells": (lambda f: f.isel(n_b=slice(64_00)), "addresses beyond its own grids"),
    "other target": (lambda f: f.assign(xc_b=f["xc_b"] + 1.0), "target grid: found other cells"),
    "one place": (
        lambda f: f.assign(xc_a=f["xc_a"] * 0 + f["xc_a"][0], yc_a=f["yc_a"] * 0 + f["yc_a"][0]),
        "source grid: found several cells at one place",
    ),
    "beyond": (lambda f: f.assign(col=f["col"] + 1), "addresses beyond its own grids"),
    "half": (lambda f: f.assign(S=0.5 * f["S"]), "lose or gain 50 % of the source's area"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    change, message = BAD[case]
    ds = on_cells()
    with xr.open_dataset(written(tmp_path, ds, "ESMF")) as opened:
        change(opened.load()).to_netcdf(tmp_path / "bad.nc")
    with pytest.raises(DataError, match=message):
        read_weights(tmp_path / "bad.nc", source_of(ds, "data"), TWO)


def test_weights_for_a_grid_of_another_size_or_none_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, on_cells(), "ESMF")
    with pytest.raises(DataError, match="source grid: found 864 cells, wanted the 4608 cells"):
        read_weights(path, source_of(north_first(), "data"), TWO)
    with pytest.raises(DataError, match="target grid: found 16200 cells, wanted 64800"):
        read_weights(path, source_of(on_cells(), "data"), standard_grid("1deg"))
    with pytest.raises(UsageError, match="no such file"):
        read_weights(tmp_path / "absent.nc", source_of(on_cells(), "data"), TWO)
    (tmp_path / "text.nc").write_text("no netCDF")
    with pytest.raises(DataError, match="cannot be opened"):
        read_weights(tmp_path / "text.nc", source_of(on_cells(), "data"), TWO)


def test_the_command_takes_a_weight_file_and_says_so(tmp_path: Path) -> None:
    ds = on_cells()
    ds.to_netcdf(tmp_path / "in.nc")
    written(tmp_path, ds, "SCRIP")
    arguments = ["regrid", str(tmp_path / "in.nc"), "--grid", "2deg"]
    arguments += ["--out", str(tmp_path / "out.zarr"), "--weights", str(tmp_path / "SCRIP.nc")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "edges from weight-file" in done.output
    with xr.open_zarr(tmp_path / "out.zarr", decode_times=False) as out:
        assert '"engine": "weights (SCRIP file SCRIP.nc)"' in out.attrs["provenance"]
