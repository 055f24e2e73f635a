"""Weights of ESMF: other numbers by a hair, the same masks, the same promises."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from grid_cases import gaussian, pole_centred
from mesh_cases import boxes, cubed_sphere, hexagonal, mesh_of, rotated_pole

from callmip_global.errors import DataError, UsageError
from callmip_global.grid import Grid, SourceGrid, standard_grid
from callmip_global.regrid import (
    CellWeights,
    Mesh,
    conservative_weights,
    esmf,
    masked_mean,
    read_weights,
    write_weights,
)
from callmip_global.regrid.esmf import esmf_triples, esmf_weights
from callmip_global.regrid.mesh import MeshSource
from callmip_global.regrid.weights import cell_weights


def why_not() -> str:
    """Why ESMF cannot be had here; nothing where it can."""
    try:
        # Only whether they can be imported is asked.
        import esmpy  # noqa: F401
        import xesmf  # noqa: F401
    except (ImportError, OSError) as error:
        return f"xESMF or ESMPy is not installed: {error}"
    return ""


def with_esmf(test: Callable[..., None]) -> Any:
    reason = why_not()
    return pytest.mark.esmf(pytest.mark.skipif(bool(reason), reason=reason)(test))


ONE = standard_grid("1deg")
TWO = standard_grid("2deg")
N96 = Grid("N96", np.linspace(-90, 90, 145), np.linspace(0, 360, 193))
ROTATED = replace(mesh_of(rotated_pole(60, 120, 39.25, 18.0)), shape=(60, 120))
LAND = Grid("no Antarctica", np.linspace(-60, 90, 151), np.linspace(0, 360, 361))

# Source and target of every kind; the first three are those of the benchmark.
CASES: dict[str, tuple[Grid | Mesh, Grid]] = {
    "0.5 to 1 degree": (standard_grid("0.5deg"), ONE),
    "N96 to 1 degree": (N96, ONE),
    "cubed sphere to 1 degree": (mesh_of(cubed_sphere(90)), ONE),
    "2 to 1 degree": (TWO, ONE),
    "Gaussian": (gaussian(64, 128), TWO),
    "rows centred on the poles": (pole_centred(73, 96), TWO),
    "none south of 60 S": (LAND, TWO),
    "hexagons": (mesh_of(hexagonal(4, seed=5)), TWO),
    "rotated pole": (ROTATED, TWO),
}


@cache
def bare(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ESMF makes of a case."""
    return esmf_triples(*CASES[case])


@cache
def made(case: str) -> CellWeights:
    """The weights that are made from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(esmf, "esmf_triples", lambda *_: bare(case))
        return esmf_weights(*CASES[case])


def places(source: Grid | Mesh) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(source, Mesh):
        lat, lon = source.lat_points, source.lon_points
    else:
        lat, lon = np.meshgrid(source.lat, source.lon, indexing="ij")
    return np.deg2rad(lat).reshape(source.shape), np.deg2rad(lon).reshape(source.shape)


def smooth(source: Grid | Mesh) -> np.ndarray:
    lat, lon = places(source)
    return (2.0 + np.cos(lat) ** 2 * np.cos(2.0 * lon))[None]


def continents(source: Grid | Mesh) -> np.ndarray:
    """Smooth where a sum of waves is high; holes of single cells in it."""
    lat, lon = places(source)
    waves = np.sin(3 * lon + 1) * np.cos(2 * lat) + np.sin(5 * lat + lon) + np.cos(7 * lon - lat)
    values = smooth(source)
    values[:, waves < 0.4] = np.nan
    values[:, np.random.default_rng(6).random(source.shape) < 0.05] = np.nan
    return values


every_case = pytest.mark.parametrize("case", CASES)


@with_esmf
@every_case
def test_a_smooth_field_is_that_of_our_own_weights(case: str) -> None:
    source, target = CASES[case]
    rows, cells, values = bare(case)
    weights = cell_weights(
        cells, rows, values, source=source, target=target, edge_model="great-circles"
    )
    theirs, _ = masked_mean(weights, smooth(source))
    ours, covered = masked_mean(conservative_weights(source, target), smooth(source))
    area = np.where(covered > 0, target.cell_area, 0.0)
    off = np.nansum(np.abs(theirs - ours) * area) / np.nansum(np.abs(ours) * area)
    assert off < 1e-4
    # Row by row too, at both poles: a global mean would hide them.
    assert np.nanmax(np.abs(theirs - ours)[0, [0, 1, -2, -1]]) < 1e-3


@with_esmf
@every_case
def test_a_target_cell_has_a_value_where_it_has_one_with_our_own_weights(case: str) -> None:
    source, target = CASES[case]
    theirs, _ = masked_mean(made(case), continents(source))
    ours, _ = masked_mean(conservative_weights(source, target), continents(source))
    assert 0.2 < np.isnan(ours).mean() < 0.9
    assert int((np.isnan(theirs) != np.isnan(ours)).sum()) == 0


@with_esmf
@every_case
def test_integrals_drift_by_no_more_than_the_weights_say(case: str) -> None:
    source, target = CASES[case]
    weights = made(case)
    assert weights.tolerance < 6e-4
    noise = np.random.default_rng(7).random((1, *source.shape))
    lat = places(source)[0]
    pole = np.where(lat > lat.max() - 0.02, 1.0, np.nan)[None]
    for values in (smooth(source), continents(source), noise, pole):
        out, covered = masked_mean(weights, values)
        before = np.nansum(values * source.cell_area)
        after = np.nansum(out * covered * target.cell_area)
        assert abs(after / before - 1.0) <= weights.tolerance + 1e-12


@with_esmf
@every_case
def test_a_constant_stays_and_the_coverage_is_that_of_our_own_weights(case: str) -> None:
    source, target = CASES[case]
    out, covered = masked_mean(made(case), np.full((1, *source.shape), 3.5))
    np.testing.assert_allclose(out[covered > 0], 3.5, rtol=1e-12)
    ours = conservative_weights(source, target).coverage()
    np.testing.assert_allclose(made(case).coverage(), ours, rtol=1e-12)


@with_esmf
def test_slivers_over_a_parallel_are_cut_off_and_nothing_is_lost() -> None:
    import xesmf

    source = Grid("s", np.array([58.0, 59.0, 60.0, 61.0]), np.array([0.0, 0.5, 1.0]))
    target = Grid("t", np.array([58.0, 59.0, 60.0, 61.0]), np.array([0.0, 1.0]))
    raw = xesmf.Regridder(
        *(
            {"lat": g.lat, "lon": g.lon, "lat_b": g.lat_edges, "lon_b": g.lon_edges}
            for g in (source, target)
        ),
        "conservative",
        ignore_degenerate=True,
    ).weights.data.todense()
    # The target's parallel bulges over that of the source: half its cell's row, of the row above.
    assert np.all(raw[1, 4:] > 0.0)
    assert raw[1, 4:].max() < 1e-3
    weights = esmf_weights(source, target)
    cut = np.zeros(raw.shape)
    cut[np.repeat(np.arange(3), np.diff(weights.indptr)), weights.indices] = weights.values
    np.testing.assert_array_equal(cut > 0, np.kron(np.eye(3), np.ones(2)) > 0)
    # Each cell lies whole in one target cell, and is half of it.
    np.testing.assert_allclose(cut[cut > 0], 0.5, rtol=1e-12)
    np.testing.assert_allclose(target.cell_area.ravel() @ cut, source.cell_area.ravel(), rtol=1e-12)
    assert weights.tolerance < 1e-12


@with_esmf
def test_the_weights_say_whose_they_are_and_what_they_promise() -> None:
    import esmpy
    import xesmf

    source = N96
    weights = esmf_weights(source, TWO, edge_model="clipped-midpoints")
    weights.check(source, TWO)
    said = weights.provenance()
    assert said["engine"] == "xesmf"
    assert said["version"] == f"xESMF {xesmf.__version__} on ESMF {esmpy.__version__}"
    assert said["edge_model"] == "clipped-midpoints"
    assert "great circles" in said["method"]


@with_esmf
@pytest.mark.parametrize("method", ["bilinear", "nearest_s2d", "patch"])
@pytest.mark.parametrize("source", [pole_centred(45, 72), mesh_of(cubed_sphere(16, seed=3))])
def test_other_methods_say_that_they_do_not_conserve(source: Grid | Mesh, method: str) -> None:
    weights = esmf_weights(source, TWO, method=method)
    assert weights.tolerance == math.inf
    assert weights.provenance()["method"] == f"{method} of ESMF"
    out, covered = masked_mean(weights, smooth(source))
    ours, _ = masked_mean(conservative_weights(source, TWO), smooth(source))
    # Across the date line and at the poles as well.
    np.testing.assert_allclose(covered, 1.0, rtol=1e-9)
    np.testing.assert_allclose(out, ours, atol=0.2)
    assert np.abs(out - ours).mean() < 0.03


@with_esmf
@pytest.mark.parametrize("method", ["conservative", "bilinear"])
def test_a_cell_without_an_area_takes_no_part(method: str) -> None:
    lat, lon = cubed_sphere(8, seed=3)
    sound = mesh_of((lat, lon))
    mesh = mesh_of(tuple(np.insert(part, 5, part[5, 0], axis=0) for part in (lat, lon)))
    values = np.insert(smooth(sound), 5, 1e9, axis=2)
    out, covered = masked_mean(esmf_weights(mesh, TWO, method=method), values)
    expected, _ = masked_mean(esmf_weights(sound, TWO, method=method), smooth(sound))
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    np.testing.assert_allclose(covered, 1.0, rtol=1e-9)


@with_esmf
def test_xesmf_applies_the_weights_that_we_write(tmp_path: Path) -> None:
    import xesmf

    weights = conservative_weights(N96, TWO)
    source = SourceGrid(N96, "bounds", "lat", "lon", "lat", "lon", lat_descending=False)
    write_weights(tmp_path / "weights.nc", weights, source, TWO, "ESMF")
    theirs = xesmf.Regridder(
        *(
            {"lat": g.lat, "lon": g.lon, "lat_b": g.lat_edges, "lon_b": g.lon_edges}
            for g in (N96, TWO)
        ),
        "conservative",
        weights=tmp_path / "weights.nc",
    )
    ours, _ = masked_mean(weights, smooth(N96))
    np.testing.assert_allclose(theirs(smooth(N96)), ours, rtol=1e-12)


@with_esmf
def test_a_file_of_xesmf_is_refused_for_it_does_not_say_its_grids(tmp_path: Path) -> None:
    import xesmf

    grid = Grid("coarse", np.linspace(-90, 90, 19), np.linspace(-180, 180, 37))
    regridder = xesmf.Regridder(
        *(
            {"lat": g.lat, "lon": g.lon, "lat_b": g.lat_edges, "lon_b": g.lon_edges}
            for g in (grid, TWO)
        ),
        "conservative",
    )
    regridder.to_netcdf(tmp_path / "weights.nc")
    source = SourceGrid(grid, "bounds", "lat", "lon", "lat", "lon", lat_descending=False)
    with pytest.raises(DataError, match="without their grids"):
        read_weights(tmp_path / "weights.nc", source, TWO)


def scrip_grid(path: Path, grid: Grid | Mesh) -> None:
    """Cells as ESMF_RegridWeightGen takes them."""
    if isinstance(grid, Mesh):
        lat, lon = grid.lat_corners, grid.lon_corners
    else:
        lat, lon = boxes(grid.lat_edges, grid.lon_edges)
    centre_lat, centre_lon = (np.rad2deg(part).ravel() for part in places(grid))
    degrees = {"units": "degrees"}
    size, corners = "grid_size", ("grid_size", "grid_corners")
    ds = xr.Dataset(
        {
            "grid_dims": ("grid_rank", np.array(grid.shape[::-1], dtype=np.int32)),
            "grid_center_lat": (size, centre_lat, degrees),
            "grid_center_lon": (size, centre_lon, degrees),
            "grid_corner_lat": (corners, lat, degrees),
            "grid_corner_lon": (corners, lon, degrees),
            "grid_imask": (size, np.ones(centre_lat.size, dtype=np.int32)),
        }
    )
    encoding = {str(name): {"_FillValue": None} for name in ds.variables}
    ds.to_netcdf(path, format="NETCDF3_64BIT", encoding=encoding)


@pytest.mark.esmf
@pytest.mark.skipif(
    shutil.which("ESMF_RegridWeightGen") is None, reason="no ESMF_RegridWeightGen on PATH"
)
@pytest.mark.parametrize("made", [N96, ROTATED], ids=["N96", "rotated pole"])
def test_a_file_of_esmf_regridweightgen_is_read(made: Grid | Mesh, tmp_path: Path) -> None:
    scrip_grid(tmp_path / "source.nc", made)
    scrip_grid(tmp_path / "target.nc", TWO)
    subprocess.run(
        [
            "ESMF_RegridWeightGen",
            "-s",
            "source.nc",
            "-d",
            "target.nc",
            "-w",
            "weights.nc",
            "-m",
            "conserve",
            "--ignore_degenerate",
            "--no_log",
        ],
        cwd=tmp_path,
        check=True,
        timeout=300,
        stdout=subprocess.DEVNULL,
    )
    source = (
        MeshSource(made, "bounds", ("y", "x"), frozenset(), frozenset())
        if isinstance(made, Mesh)
        else SourceGrid(made, "bounds", "lat", "lon", "lat", "lon", lat_descending=False)
    )
    weights, _ = read_weights(tmp_path / "weights.nc", source, TWO)
    theirs, _ = masked_mean(weights, smooth(made))
    ours, _ = masked_mean(conservative_weights(made, TWO), smooth(made))
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)


@with_esmf
def test_cells_that_cross_themselves_are_refused_in_one_line() -> None:
    lat, lon = cubed_sphere(8)
    lat[5, [1, 2]], lon[5, [1, 2]] = lat[5, [2, 1]], lon[5, [2, 1]]
    with pytest.raises(DataError, match="cell 6"):
        esmf_weights(mesh_of((lat, lon)), TWO)


@pytest.mark.parametrize("module", ["esmpy", "xesmf"])
def test_without_the_packages_the_message_says_what_to_install(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "esmpy", sys)
    monkeypatch.setitem(sys.modules, "xesmf", sys)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as caught:
        esmf_weights(N96, TWO)
    (problem,) = caught.value.problems
    assert f"no {'ESMPy' if module == 'esmpy' else 'xESMF'}" in str(problem)
    assert "conda env create -f environment.yml" in str(problem)
    assert "--engine native" in str(problem)


def test_a_method_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="conservative, bilinear, nearest_s2d, patch"):
        esmf_weights(N96, TWO, method="cubic")


def test_cells_without_corners_are_refused() -> None:
    points = Mesh((1, 2), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    with pytest.raises(DataError, match="without corners"):
        esmf_weights(points, TWO)
