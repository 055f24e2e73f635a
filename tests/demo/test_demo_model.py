"""Laws of the demonstration model: cutting it up changes nothing, nothing comes from nothing."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import yaml

from callmip_global.config.variable_map import load_variable_map
from callmip_global.data import data_path
from callmip_global.demo.climate import MONTH_DAYS
from callmip_global.demo.merge import merge
from callmip_global.demo.model import (
    FILL,
    OUTPUTS,
    Model,
    ModelError,
    climate_year_of,
    integrate,
    read_cells,
    read_parameters,
    run,
)
from callmip_global.demo.surface import gaussian_grid
from callmip_global.grid import EARTH_RADIUS_M
from callmip_global.harmonize.variable_map import substance_of
from callmip_global.units import convert_factor
from callmip_global.variables import requested_variables, variable_table

Namelist = Callable[..., dict[str, Any]]
PARAMETERS = ("params/prior.yaml", "params/posterior.yaml", "data/truth.yaml")


def run_namelist(folder: Path, namelist: dict[str, Any]) -> None:
    path = folder / "namelist.yaml"
    path.write_text(yaml.safe_dump(namelist))
    run(path)


def fields(path: Path) -> dict[str, np.ndarray]:
    with netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        return {name: variable[:] for name, variable in file.variables.items()}


def assert_same_fields(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_run_cut_into_segments_equals_the_whole_run_bit_for_bit(
    namelist: Namelist, tmp_path: Path, cut: int
) -> None:
    whole = namelist(n_years=6, output=tmp_path / "whole.nc", restart_out=tmp_path / "r.nc")
    run_namelist(tmp_path, whole)
    run_namelist(
        tmp_path,
        namelist(n_years=cut, output=tmp_path / "a.nc", restart_out=tmp_path / "ra.nc"),
    )
    run_namelist(
        tmp_path,
        namelist(
            first_year=1991 + cut,
            n_years=6 - cut,
            output=tmp_path / "b.nc",
            restart_in=tmp_path / "ra.nc",
            restart_out=tmp_path / "rb.nc",
        ),
    )
    assert_same_fields(fields(tmp_path / "r.nc"), fields(tmp_path / "rb.nc"))
    first, second, both = (fields(tmp_path / f"{n}.nc") for n in ("a", "b", "whole"))
    for name in ("time", *OUTPUTS):
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), both[name])


@pytest.mark.parametrize("tiles", [2, 3, 7])
def test_merged_tiles_equal_the_untiled_run_bit_for_bit(
    namelist: Namelist, tmp_path: Path, tiles: int
) -> None:
    run_namelist(tmp_path, namelist(output=tmp_path / "whole.nc"))
    parts = [tmp_path / f"t{tile}.nc" for tile in range(1, tiles + 1)]
    for tile, part in enumerate(parts, 1):
        run_namelist(tmp_path, namelist(tile=tile, tiles=tiles, output=part))
    merge(parts, tmp_path / "merged.nc")
    assert_same_fields(fields(tmp_path / "merged.nc"), fields(tmp_path / "whole.nc"))
    with netCDF4.Dataset(tmp_path / "merged.nc") as a, netCDF4.Dataset(tmp_path / "whole.nc") as b:
        for name in b.variables:
            assert a[name].ncattrs() == b[name].ncattrs()
            assert a[name].dimensions == b[name].dimensions


def test_output_has_the_native_names_units_and_fill_over_the_sea(
    namelist: Namelist, tmp_path: Path
) -> None:
    run_namelist(tmp_path, namelist(output=tmp_path / "out.nc"))
    with netCDF4.Dataset(tmp_path / "out.nc") as file:
        file.set_auto_mask(False)
        assert "ynthetic" in file.comment
        assert file["latitude"][0] > file["latitude"][-1]
        assert file["longitude"][0] == 0.0
        assert (file["time"].calendar, file["time"][0]) == ("noleap", 291 * 365 + 15.5)
        sea = file["land_frac"][:] == FILL
        assert 0.5 < sea.mean() < 0.8
        for name, (units, _) in OUTPUTS.items():
            assert file[name].units == units
            assert (file[name][:][:, sea] == FILL).all()
            assert (file[name][:][:, ~sea] != FILL).all()


@pytest.fixture(scope="module")
def model(small_demo: Path) -> Model:
    cells = read_cells(small_demo / "data" / "surface.nc")
    return Model(cells, read_parameters(small_demo / "params" / "prior.yaml"))


def test_carbon_is_neither_made_nor_lost(model: Model) -> None:
    state = model.start()
    for year in range(1991, 1995):
        before = state.leaf_gc_m2 + state.wood_gc_m2 + state.soil_gc_m2
        out, _ = model.year(state, climate_year=year, co2_ppm=360.0, luc_year=year)
        gained = state.leaf_gc_m2 + state.wood_gc_m2 + state.soil_gc_m2 - before
        respired = 86400.0 * (out["AutoResp"] + out["HetResp"])
        flux = ((out["GPP_tot"] - respired - out["Harvest"]) * MONTH_DAYS[:, None]).sum(axis=0)
        np.testing.assert_allclose(gained, flux, atol=1e-8)
        assert np.abs(gained).max() > 10.0


def test_more_water_never_leaves_or_stays_than_falls(model: Model) -> None:
    state = model.start()
    runoff = np.zeros_like(model.cells.lat)
    for year in range(1991, 1995):
        before = state.top_water_mm + state.deep_water_mm + state.snow_mm
        out, _ = model.year(state, climate_year=year, co2_ppm=360.0, luc_year=year)
        after = state.top_water_mm + state.deep_water_mm + state.snow_mm
        rain = model.climate.weather(year).precipitation_mm_day
        runoff += ((rain - out["totEvap"]) * MONTH_DAYS[:, None]).sum(axis=0) - (after - before)
        assert (runoff > -1e-9).all()
        parts = out["transp"] + out["soilEvap"]
        assert (parts <= out["totEvap"] + 1e-12).all()
    assert 0.1 < np.average(runoff, weights=model.cells.fraction) / (4 * 900.0) < 0.6


def spinup_cycle(namelist: Namelist) -> dict[str, Any]:
    """One pass over 1901-1920 under the label 1850."""
    cycle = namelist(
        first_year=1850, n_years=20, label_moves=False, climate={"recycle": [1901, 1920]}, luc=1850
    )
    cycle["co2"]["year"] = 1850
    return cycle


def test_settled_carbon_comes_back_to_itself_when_the_period_is_repeated_exactly(
    model: Model, namelist: Namelist
) -> None:
    cycle = spinup_cycle(namelist)
    start = model.start()
    state = copy.deepcopy(start)
    for _ in integrate(model, state, cycle | {"equilibrate": True}):
        pass
    wood, soil = state.wood_gc_m2.copy(), state.soil_gc_m2.copy()
    assert np.abs(soil / start.soil_gc_m2 - 1.0).max() > 0.5  # far from where it began
    again = dataclasses.replace(start, wood_gc_m2=wood.copy(), soil_gc_m2=soil.copy())
    for _ in integrate(model, again, cycle):
        pass
    np.testing.assert_allclose(again.wood_gc_m2, wood, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(again.soil_gc_m2, soil, rtol=1e-9, atol=1e-9)


def test_two_cycles_of_spin_up_leave_no_drift_worth_the_name(
    model: Model, namelist: Namelist
) -> None:
    cycle = spinup_cycle(namelist)
    state = model.start()
    for _ in range(2):
        for _ in integrate(model, state, cycle | {"equilibrate": True}):
            pass
    before = state.leaf_gc_m2 + state.wood_gc_m2 + state.soil_gc_m2
    for _ in integrate(model, state, cycle):
        pass
    drift = state.leaf_gc_m2 + state.wood_gc_m2 + state.soil_gc_m2 - before
    # In gC m-2 a year; where snow still piles up, soil and plants have not quite come to rest.
    assert np.abs(drift).max() / 20.0 < 3.0
    # Of PgC a year, that is 0.003 for all land: the global carbon budget closes to 0.1.
    assert abs(np.average(drift, weights=model.cells.fraction)) / 20.0 < 0.02


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_every_variable_is_plausible_everywhere_and_in_total(
    small_demo: Path, namelist: Namelist, parameters: str
) -> None:
    cells = read_cells(small_demo / "data" / "surface.nc")
    model = Model(cells, read_parameters(small_demo / parameters))
    state = model.start()
    spinup = namelist(
        first_year=1990, n_years=20, label_moves=False, climate={"recycle": [1971, 1990]}, luc=1990
    )
    spinup["co2"]["year"] = 1980
    for _ in integrate(model, state, spinup | {"equilibrate": True}):
        pass
    years = list(integrate(model, state, namelist(n_years=20)))
    native = {name: np.concatenate([year[name] for year in years]) for name in OUTPUTS}

    variables = load_variable_map(data_path("config", "models", "demo.yaml"))
    values: dict[str, np.ndarray] = {}
    for name in variables.closure(requested_variables()):
        entry, wanted = variables.entries[name], variable_table()[name]
        if entry.source is None:
            continue
        assert entry.units == OUTPUTS[entry.source][0], name
        change = convert_factor(
            entry.units, wanted.units, "map", name, substance=substance_of(wanted)
        )
        values[name] = entry.sign * (native[entry.source] * change.factor + change.offset)
    values["reco"] = values["ra"] + values["rh"]
    values["nep"] = values["gpp"] - values["reco"]
    values["cLiveBioAbove"] = values["cLeaf"] + values["cStem"]
    assert set(requested_variables()) <= values.keys()
    for name, array in values.items():
        low, high = variable_table()[name].valid_range
        assert low <= array.min(), name
        assert array.max() <= high, name
        assert array.std() > 0.0, name

    edges = np.sin(np.deg2rad(gaussian_grid(24, 48)[1]))
    row_area = EARTH_RADIUS_M**2 * (edges[:-1] - edges[1:]) * 2.0 * np.pi / 48
    area = row_area[cells.index // 48] * cells.fraction
    mean = {name: np.average(array.mean(axis=0), weights=area) for name, array in values.items()}
    year_s = 365 * 86400.0
    assert 100.0 < mean["gpp"] * area.sum() * year_s / 1e12 < 180.0  # PgC a year
    assert -2.0 < mean["nep"] * area.sum() * year_s / 1e12 < 12.0
    assert 5.5e4 < mean["hfls"] / 2.45e6 * area.sum() * year_s / 1e12 < 8e4  # km3 a year
    assert 0.35 < mean["tran"] * 2.45e6 / mean["hfls"] < 0.75
    assert 25.0 < mean["hfss"] < 50.0
    assert abs(mean["hfg"]) < 1.0
    assert 278.0 < mean["ts"] < 292.0
    assert 1.0 < mean["lai"] < 3.5
    assert 200.0 < mean["cLiveBioAbove"] * area.sum() / 1e12 < 700.0  # PgC
    assert 600.0 < mean["cSoil"] * area.sum() / 1e12 < 2200.0
    assert 10.0 < mean["mrsos"] < 40.0
    # Test S of the harmonizing rules: the northern land takes up carbon in summer.
    north = (cells.lat > 40.0) & (cells.lat < 70.0)
    months = values["nep"].reshape(-1, 12, len(area))[:, :, north].mean(axis=(0, 2))
    assert months[5:8].mean() > 0.0 > months[[0, 1, 11]].mean()


def test_a_recycled_period_keeps_step_with_the_calendar_and_ends_before_the_actual_years() -> None:
    period = {"recycle": [1901, 1920]}

    def years(first: int, n: int, moves: bool) -> list[int]:
        return [climate_year_of(period, first, k, moves) for k in range(n)]

    assert years(1899, 4, True) == [1919, 1920, 1901, 1902]
    assert years(1851, 2, True) == [1911, 1912]
    assert years(1850, 21, False) == [*range(1901, 1921), 1901]
    assert climate_year_of("actual", 1901, 3, True) == 1904


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lai_max": None}, "missing parameter lai_max"),
        ({"lia_max": 5.0}, "unknown parameter lia_max"),
        ({"lai_max": -5.0}, "parameter lai_max: found -5.0, wanted a number above 0"),
        ({"lai_max": float("nan")}, "parameter lai_max: found nan"),
        ({"lai_max": "five"}, "parameter lai_max: found 'five'"),
        ({"lai_max": True}, "parameter lai_max: found True"),
    ],
)
def test_a_bad_parameter_file_is_refused_with_its_name_and_the_parameter(
    small_demo: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    values = yaml.safe_load((small_demo / "params" / "prior.yaml").read_text()) | change
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(ModelError) as caught:
        read_parameters(path)
    assert f"{path}: {words}" in str(caught.value)


def test_a_restart_of_other_cells_or_of_another_year_is_refused(
    namelist: Namelist, tmp_path: Path
) -> None:
    run_namelist(tmp_path, namelist(tile=1, tiles=2))
    restart = tmp_path / "restart.nc"
    with pytest.raises(ModelError, match="other cells"):
        run_namelist(tmp_path, namelist(tile=2, tiles=2, first_year=1993, restart_in=restart))
    with pytest.raises(ModelError, match="ends with 1992, but the namelist starts with 1994"):
        run_namelist(tmp_path, namelist(tile=1, tiles=2, first_year=1994, restart_in=restart))


def test_tiles_that_share_cells_or_differ_in_years_are_not_merged(
    namelist: Namelist, tmp_path: Path
) -> None:
    one, other, late = (tmp_path / f"{n}.nc" for n in ("one", "other", "late"))
    run_namelist(tmp_path, namelist(tile=1, tiles=2, output=one))
    run_namelist(tmp_path, namelist(tile=1, tiles=2, output=other))
    run_namelist(tmp_path, namelist(tile=2, tiles=2, first_year=1992, output=late))
    with pytest.raises(ModelError, match="share cells"):
        merge([one, other], tmp_path / "merged.nc")
    with pytest.raises(ModelError, match="its time is not that of"):
        merge([one, late], tmp_path / "merged.nc")
    assert not (tmp_path / "merged.nc").exists()


def test_the_command_fails_with_one_line_and_writes_nothing(
    namelist: Namelist, tmp_path: Path
) -> None:
    path = tmp_path / "namelist.yaml"
    values = namelist(output=tmp_path / "out.nc", first_year=2023, n_years=3)
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "callmip_global.demo.model", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    table = values["co2"]["table"]
    assert done.stderr == f"demonstration model: {table}: has no year 2025\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["namelist.yaml"]


def test_the_model_shares_no_code_with_the_package_and_starts_without_heavy_libraries() -> None:
    program = (
        "import sys, callmip_global.demo.model, callmip_global.demo.merge;"
        "print(*sorted(m for m in sys.modules if m.startswith('callmip_global')));"
        "print(*{'xarray', 'pydantic', 'pandas', 'numba', 'dask'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    demo = "callmip_global.demo"
    own = f"callmip_global {demo} {demo}.climate {demo}.merge {demo}.model"
    assert done.stdout == f"{own}\n\n"
