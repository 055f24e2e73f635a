"""The files of a product: each defect one line with file, variable, rule and remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from benchmark_cases import (
    GRID,
    axis_of,
    benchmark,
    cycles,
    dataset,
    number,
    write_product,
    write_run,
)

from callmip_global.benchmark import Product
from callmip_global.benchmark.product_check import (
    RULES,
    check_product,
    check_products,
    check_series,
)
from callmip_global.benchmark.series import product_series
from callmip_global.grid import Grid

YEARS = (2001, 2003)


def lines(product: Product) -> list[str]:
    """What is said of a product, each line with the name of a rule at its end."""
    findings = check_product(product)
    for finding in findings:
        assert finding.problem.rule in RULES, finding.problem
        assert str(finding.problem).endswith(f"[{finding.problem.rule}]")
        assert "\n" not in str(finding.problem)
    return [str(finding.problem) for finding in findings]


def with_file(folder: Path, change: Callable[[xr.Dataset], xr.Dataset]) -> Product:
    """A sound product of latent heat, and what ``change`` makes of its file."""
    product = write_product(folder, cycles(3))
    path = Path(product.paths[0])
    with xr.open_dataset(path, decode_times=False) as ds:
        whole = ds.load()
    path.unlink()
    change(whole).to_netcdf(path)
    return product


def without_a_month(ds: xr.Dataset) -> xr.Dataset:
    return ds.isel(time=[*range(7), *range(8, 36)])


def with_units(text: str | None) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(ds: xr.Dataset) -> xr.Dataset:
        ds["obs"].attrs.pop("units")
        if text is not None:
            ds["obs"].attrs["units"] = text
        return ds

    return change


def times(factor: float) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda ds: ds.assign(obs=(ds["obs"] * factor).assign_attrs(ds["obs"].attrs))


def without_values(steps: slice) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(ds: xr.Dataset) -> xr.Dataset:
        ds["obs"][steps] = np.nan
        return ds

    return change


def with_short_bounds(ds: xr.Dataset) -> xr.Dataset:
    ds["time_bnds"][:, 1] = ds["time_bnds"][:, 0]
    return ds


def with_late_stamp(ds: xr.Dataset) -> xr.Dataset:
    stamps = ds["time"].values.copy()
    stamps[-1] += 400.0
    return ds.assign_coords(time=("time", stamps, ds["time"].attrs))


def in_a_wrong_epoch(ds: xr.Dataset) -> xr.Dataset:
    ds["time"].attrs["units"] = "days since 1766-01-01"
    return ds


def in_no_calendar(ds: xr.Dataset) -> xr.Dataset:
    ds["time"].attrs["calendar"] = "lunar"
    return ds


def from_0_to_360(ds: xr.Dataset) -> xr.Dataset:
    ds = ds.drop_vars(["lon_bnds", "lat_bnds"])
    for name in ("lat", "lon"):
        ds[name].attrs.pop("bounds")
    turned = ds.assign_coords(lon=("lon", ds["lon"].values % 360, ds["lon"].attrs))
    return turned.sortby("lon")


def named_y_and_x(ds: xr.Dataset) -> xr.Dataset:
    return ds.rename(lat="y", lon="x")


BAD: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str, str, str]] = {
    "wrong time epoch": (in_a_wrong_epoch, "period", "1917-01 to 1919-12", "epoch"),
    "no units": (with_units(None), "units", "no units", "State them"),
    "a unit of something else": (with_units("kg m-2"), "units", "units 'kg m-2'", ""),
    "one month missing": (without_a_month, "month-missing", "no 2001-08", "lacks_months"),
    "all missing": (without_values(slice(None)), "all-missing", "no value at all", "fill"),
    "a month without a value": (without_values(slice(4, 5)), "month-empty", "in 2001-05", "again"),
    "values x1000": (times(1e3), "scale", "100% of the values outside", "1000"),
    "values x86400": (times(86400.0), "scale", "100% of the values outside", "86400"),
    "values /1000": (times(1e-3), "scale", "a mean of 0.0", "1/1000"),
    "values /86400": (times(1 / 86400.0), "scale", "a mean of 0.00", "1/86400"),
    "the opposite sign": (times(-2.0), "sign", "of the values outside", "opposite sign"),
    "bounds of zero length": (with_short_bounds, "time-bounds-wrong", "0 days at step 1", "Mend"),
    "a stamp outside its bounds": (
        with_late_stamp, "time-outside-bounds", "at step 36", "bounds are used",
    ),
    "an unknown calendar": (in_no_calendar, "calendar", "'lunar'", ""),
}  # fmt: skip


@pytest.mark.parametrize("defect", BAD)
def test_a_defect_is_one_line_with_file_variable_rule_and_remedy(tmp_path, defect):
    change, rule, said, remedy = BAD[defect]
    product = replace(with_file(tmp_path, change), period=(1980, 2013))
    (line,) = lines(product)
    assert line.startswith("product REF (REF.nc): ")
    assert f"[{rule}]" in line
    assert said in line
    assert remedy in line


GOOD: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "as it is": lambda ds: ds,
    "longitudes 0 to 360 without bounds": from_0_to_360,
    "latitudes from north to south": lambda ds: ds.isel(lat=slice(None, None, -1)),
    "dimensions y and x": named_y_and_x,
    "another spelling of the unit": with_units("W/m2"),
}


@pytest.mark.parametrize("variant", GOOD)
def test_what_only_looks_different_is_no_defect_and_scores_the_same(tmp_path, variant):
    product = with_file(tmp_path, GOOD[variant])
    assert lines(product) == []
    benchmark([write_run(tmp_path, cycles(3))], [product], tmp_path / "out", frequencies=["mon"])
    assert number(tmp_path / "out", "rmse") == pytest.approx(0.0, abs=1e-5)


def test_carbon_in_the_units_of_the_protocol_is_no_defect(tmp_path):
    product = write_product(tmp_path, cycles(3) * 1e-9, variable="gpp", units="kgC m-2 s-1")
    assert lines(product) == []


@pytest.mark.parametrize("damage", ["cut short", "bytes changed"])
def test_damage_is_one_line_that_names_the_file(tmp_path, damage):
    grid = Grid("g", np.linspace(-90, 90, 61), np.linspace(-180, 180, 81))
    values = cycles(1, grid) + np.random.default_rng(0).normal(size=(12, *grid.shape))
    product = write_product(tmp_path, values, grid=grid, years=(2001, 2001))
    path = Path(product.paths[0])
    with xr.open_dataset(path, decode_times=False) as ds:
        whole = ds.load()
    whole.to_netcdf(path, encoding={"obs": {"zlib": True}})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "cut short":
        del data[middle:]
    else:
        data[middle : middle + 5000] = bytes(5000)
    path.write_bytes(data)
    (line,) = lines(product)
    assert line.startswith("product REF (REF.nc): ")
    assert line.endswith("[unreadable]" if damage == "cut short" else "[damaged]")


def test_a_fill_value_that_nothing_names_is_one_line(tmp_path):
    values = cycles(3)
    values[:, 0] = -9999.0
    (line,) = lines(write_product(tmp_path, values))
    assert line.endswith("[fill]")


def nep(sign: int) -> np.ndarray:
    return sign * (cycles(3) - 46.0) * 1e-9


def test_the_northern_seasons_tell_the_sign_of_a_net_flux(tmp_path):
    options = {"variable": "nep", "units": "kg m-2 s-1"}
    assert lines(write_product(tmp_path, nep(1), **options)) == []
    (line,) = lines(write_product(tmp_path, nep(-1), **options))
    assert "in June to August" in line
    assert line.endswith("Set sign: -1. Else check the dates and the latitudes. [sign]")
    turned = write_product(tmp_path, nep(-1), sign=-1, **options)
    assert lines(turned) == []


def test_a_net_flux_too_small_to_be_one_was_scaled(tmp_path):
    product = write_product(tmp_path, nep(1) / 86400.0, variable="nep", units="kg m-2 s-1")
    (line,) = lines(product)
    assert "1/86400" in line
    assert line.endswith("[scale]")


def test_a_flux_that_is_greater_in_winter_is_told_and_used(tmp_path):
    product = write_product(tmp_path, np.roll(cycles(3), 6, axis=0))
    (finding,) = check_product(product)
    assert finding.problem.rule == "season"
    assert not finding.refuse


def test_degrees_celsius_under_the_name_of_kelvin(tmp_path):
    values = cycles(3) - 40.0
    (line,) = lines(write_product(tmp_path, values, variable="ts", units="K"))
    assert "Degrees Celsius?" in line
    assert lines(write_product(tmp_path, values, variable="ts", units="degC")) == []


def test_months_of_another_calendar_than_the_one_named(tmp_path):
    """Bounds with leap days under the name noleap run ahead by a day each fourth year."""
    years = (2001, 2012)
    product = write_product(tmp_path, cycles(12), years=years, calendar="standard")
    path = Path(product.paths[0])
    with xr.open_dataset(path, decode_times=False) as ds:
        whole = ds.load()
    path.unlink()
    # Counted from the first year, as if every year had 365 days.
    start = float(whole["time_bnds"][0, 0])
    for name in ("time", "time_bnds"):
        whole[name] = (whole[name] - start).assign_attrs(whole[name].attrs)
    whole["time"].attrs |= {"units": "days since 2001-01-01", "calendar": "noleap"}
    whole.to_netcdf(path)
    said = lines(product)
    assert said[0].startswith("product REF (REF.nc): time.calendar: found 'noleap'")
    assert "wanted 'standard'" in said[0]


def test_a_flux_whose_mean_is_negative_has_the_opposite_sign(tmp_path):
    values = -cycles(3)
    (finding,) = check_product(write_product(tmp_path, values, variable="hfss"))
    assert finding.problem.rule == "sign"
    assert finding.refuse


def test_a_mean_that_is_only_unusual_is_told_and_used(tmp_path):
    (finding,) = check_product(write_product(tmp_path, cycles(3) / 20.0))
    assert "a mean of 2.32, wanted about 18 to 92 W m-2" in str(finding.problem)
    assert not finding.refuse


def test_the_mean_and_the_seasons_of_a_part_of_the_earth_are_not_judged(tmp_path):
    arctic = cycles(3)[::-1] / 40.0
    arctic[:, :5] = np.nan
    assert lines(write_product(tmp_path, arctic)) == []


def test_zeros_over_the_sea_are_told_and_used(tmp_path):
    values = cycles(3) * 2.0
    values[:, :, :6] = 0.0
    (finding,) = check_product(write_product(tmp_path, values))
    assert finding.problem.rule == "mask"
    assert "0 in 75% of the Earth at every step read" in finding.problem.found
    assert not finding.refuse


def test_gaps_that_are_known_of_a_product_are_no_defect(tmp_path):
    product = replace(with_file(tmp_path, without_a_month), lacks_months=True)
    assert lines(product) == []


def test_only_the_size_of_departures_is_left_unjudged(tmp_path):
    product = write_product(tmp_path, cycles(3) * 1e3, anomaly=True)
    assert lines(product) == []
    (line,) = lines(write_product(tmp_path, np.full((36, *GRID.shape), np.nan), anomaly=True))
    assert line.endswith("[all-missing]")


def test_every_file_of_a_product_is_looked_at_and_named(tmp_path):
    product = with_file(tmp_path, lambda ds: ds)
    with xr.open_dataset(product.paths[0], decode_times=False) as ds:
        for year, units in ((2001, "W m-2"), (2002, "kg m-2"), (2003, None)):
            part = ds[["obs"]].isel(time=slice(12 * (year - 2001), 12 * (year - 2000))).load()
            with_units(units)(part).to_netcdf(tmp_path / f"p{year}.nc")
    said = lines(replace(product, paths=(str(tmp_path / "p*.nc"),)))
    assert {line.split(": ")[0] for line in said} == {
        "product REF (p2002.nc)",
        "product REF (p2003.nc)",
    }
    with xr.open_dataset(product.paths[0], decode_times=False) as ds:
        part = ds[["obs"]].isel(time=slice(12, 24)).load()
    for year in (2002, 2003):
        (tmp_path / f"p{year}.nc").unlink()
    with_units("MJ m-2 day-1")(part).to_netcdf(tmp_path / "p2002.nc")
    of_both = replace(product, paths=(str(tmp_path / "p*.nc"),), units="W m-2", factor=1.01)
    (line,) = lines(of_both)
    assert "(p2002.nc): obs: found units 'MJ m-2 day-1', wanted 'W m-2' as in p2001.nc" in line


def test_files_without_a_factor_are_converted_each_by_its_own_unit(tmp_path):
    truth = cycles(2)
    for year, units, size in ((2001, "W m-2", 1.0), (2002, "MJ m-2 day-1", 0.0864)):
        part = truth[12 * (year - 2001) :][:12] * size
        dataset("obs", part, GRID, axis_of((year, year)), units).to_netcdf(tmp_path / f"p{year}.nc")
    product = Product(
        name="P", variable="hfls", paths=(str(tmp_path / "p*.nc"),), kind="synthetic", source="obs"
    )
    assert lines(product) == []
    run = write_run(tmp_path, truth, years=(2001, 2002))
    benchmark([run], [product], tmp_path / "out", frequencies=["mon"])
    assert number(tmp_path / "out", "rmse") == pytest.approx(0.0, abs=1e-5)


def test_two_months_are_enough_where_a_quick_look_is_asked_for(tmp_path, monkeypatch):
    product = write_product(tmp_path, cycles(9), years=(2001, 2009))
    series = product_series(product)
    read = []
    original = type(series).read
    monkeypatch.setattr(
        type(series),
        "read",
        lambda self, periods, box=None: read.extend(periods) or original(self, periods, box),
    )
    assert check_series(series, "hfls", ["REF.nc"], quick=True) == []
    assert sorted(read) == [(2005, 1), (2005, 7)]


def test_the_others_are_checked_when_one_is_not_there(tmp_path):
    good = write_product(tmp_path, cycles(3))
    absent = replace(
        good,
        name="GONE",
        paths=("/no/such/file.nc",),
        url="https://example.org",
        doi="10.1000/1",
        pattern="LE_*.nc",
    )
    found = {product.name: findings for product, findings in check_products([absent, good])}
    assert found["REF"] == []
    assert str(found["GONE"][0].problem) == (
        "product GONE: hfls: found no file, wanted files at /no/such/file.nc. "
        "Get it from https://example.org, doi 10.1000/1, files like LE_*.nc [missing]"
    )


def test_a_static_map_is_checked_too(tmp_path):
    rng = np.random.default_rng(0)
    stock = 5.0 + rng.random(GRID.shape)
    options = {"variable": "cLiveBioAbove", "units": "kg m-2", "static": True}
    assert lines(write_product(tmp_path, stock, **options)) == []
    (line,) = lines(write_product(tmp_path, stock * 1e3, **options))
    assert line.endswith("[scale]")


def test_annual_values_have_no_season(tmp_path):
    path = tmp_path / "A.nc"
    axis = axis_of((2001, 2004), "noleap", "yr")
    dataset("obs", np.full((4, *GRID.shape), 50.0), GRID, axis, "W m-2").to_netcdf(path)
    product = Product(name="A", variable="hfls", paths=(str(path),), kind="synthetic", source="obs")
    assert lines(product) == []


def test_the_size_and_sign_of_the_runs_are_told_by_their_means(tmp_path):
    """Both runs are compared all the same: a run is not left out for its size."""
    truth = cycles(3)
    runs = [write_run(tmp_path, truth * 1e3), write_run(tmp_path, truth, stage="Posterior")]
    summary = benchmark(
        runs, [write_product(tmp_path, truth)], tmp_path / "out", frequencies=["mon"]
    )
    (line,) = summary["problems"]
    where = "M.v1 S3 Prior (M.v1_global_test_mon_2001-2003_Prior.nc)"
    assert line.startswith(f"{where}: hfls: found 100% of the values outside")
    assert "1000: g for kg? Mend it in the variable map" in line
    assert line.endswith("[scale]")
    assert number(tmp_path / "out", "bias_score", stage="Posterior") == pytest.approx(1.0, abs=1e-6)


def test_a_run_of_the_opposite_sign_is_told_by_its_northern_seasons(tmp_path):
    options = {"variable": "nep", "units": "kg m-2 s-1"}
    product = write_product(tmp_path, nep(1), **options)
    run = write_run(tmp_path, nep(-1), **options)
    summary = benchmark([run], [product], tmp_path / "out", frequencies=["mon"])
    (line,) = summary["problems"]
    where = "M.v1 S3 Prior (M.v1_global_test_mon_2001-2003_Prior.nc)"
    assert line.startswith(f"{where}: nep: found a mean of")
    assert line.endswith("[sign]")


def test_a_product_that_is_refused_leaves_the_others_alone(tmp_path):
    truth = cycles(3)
    good = write_product(tmp_path, truth)
    bad = write_product(tmp_path, truth * 86400.0, name="BAD")
    summary = benchmark([write_run(tmp_path, truth)], [bad, good], tmp_path / "out")
    (line,) = summary["problems"]
    assert line.startswith("product BAD (BAD.nc): obs: found 100% of the values outside")
    assert {entry["product"] for entry in summary["comparisons"]} == {"REF"}
