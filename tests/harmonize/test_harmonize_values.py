"""Values: fills, signs, derivations, layers, plant types, per land or cell; evidence or refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_files import LAT, LON, SEA, field, write_native

from callmip_global.errors import DataError
from callmip_global.harmonize import VariableMap, VariableSource
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.fills import find_fill, known_as
from callmip_global.harmonize.native import scan
from callmip_global.harmonize.planning import RefusedVariablesError, RunPlan, plan_variables
from callmip_global.harmonize.resolve import complete
from callmip_global.harmonize.run import harmonize_files
from callmip_global.store import StoreName, open_store
from callmip_global.variables import variable_table

NAME = StoreName("M", "v1", "S3", "native", "Prior")
YEARS = (2001, 2002)
CARBON = {"units": "gC m-2 day-1"}
KG = {"units": "kg m-2"}
TO_KG = 1e-3 / 86400
LAND = np.arange(6) != 3
GPP = {"gpp": VariableSource(source="GPP")}
SEASON = -np.cos(2 * np.pi * (np.arange(24) % 12) / 12)[:, None, None]


def ascending(values: np.ndarray) -> np.ndarray:
    return values[..., ::-1, :]


def made(
    tmp_path: Path, files: list[Path], variable_map: VariableMap, *, frequency: str = "mon"
) -> tuple[dict[str, Any], Any]:
    """(report, data set) of everything the map delivers once the files have completed it."""
    headers = [scan(path) for path in files]
    whole = complete(variable_map, headers)
    out = tmp_path / NAME.text
    report = harmonize_files(
        headers,
        variable_map=whole,
        name=NAME,
        attributes={},
        years=YEARS,
        frequencies=("mon", "yr"),
        out=out,
        variables=whole.delivered,
    )
    return report, open_store(out, frequency)


def refused(tmp_path: Path, files: list[Path], variable_map: VariableMap, name: str) -> Any:
    """The one problem of a variable that is refused; nothing of it is in a store."""
    try:
        report, _ = made(tmp_path, files, variable_map)
    except RefusedVariablesError as error:
        found = error.by_variable[name]
    else:
        assert name not in report["variables"]
        found = report["refused"][name]
    (problem,) = found
    return problem


def nep() -> np.ndarray:
    """nep with the seasons of the land it lies on [gC m-2 day-1]."""
    return 3.0 * SEASON * np.sign(LAT)[None, :, None] + field(-0.5, 0.5)


# --- fills ----------------------------------------------------------------------------------------


@given(
    value=st.one_of(
        st.sampled_from([-99999.0, -9999.0, -999.0, 1e20, 1e33, 9.9e36]),
        st.floats(100, 1e30),
        st.floats(-1e30, -100),
    ),
    share=st.integers(0, 20),
)
def test_a_fill_is_one_value_on_a_fifth_of_the_cells_outside_the_range(
    value: float, share: int
) -> None:
    values = np.linspace(0.1, 5.0, 20)
    values[:share] = value
    found = find_fill(values.reshape(4, 5), lambda v: v, (0.0, 6.0))
    if share >= 4:
        assert found is not None
        assert found.value == value
        np.testing.assert_array_equal(found.cells.ravel(), np.arange(20) < share)
    else:
        assert found is None


def test_neither_zero_nor_many_different_values_nor_infinity_is_a_fill() -> None:
    ones = np.ones((4, 5))
    ones[:3] = 0.0
    assert find_fill(ones, lambda v: v, (0.0, 6.0)) is None
    many = 1e9 * np.arange(1.0, 21.0).reshape(4, 5)
    assert find_fill(many, lambda v: v, (0.0, 6.0)) is None
    ones[:3] = np.inf
    assert find_fill(ones, lambda v: v, (0.0, 6.0)) is None
    # Not known, and not far enough to be no value.
    ones[:3] = 61.0
    assert find_fill(ones, lambda v: v, (0.0, 6.0)) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-99999.0, ""),
        (np.float32(1e20), ""),
        (3.1557e3, "-99999 times -0.0315573"),
        (-99999 * 86400.0, "-99999 times 86400"),
        (-9999 / 86400.0, "-9999 times 1.15741e-05"),
        (-5000.0, None),
        (1234.5, None),
    ],
)
def test_a_fill_that_was_scaled_with_the_values_is_known(value: float, said: str | None) -> None:
    assert known_as(float(value)) == said


@pytest.mark.parametrize("sentinel", [-99999.0, -9999.0, 1e20, 1e36, 3.1557e3])
def test_a_sentinel_without_attribute_is_set_to_missing_with_its_count(
    tmp_path: Path, sentinel: float
) -> None:
    gpp = field(0, 20)
    gpp[:, 3, :] = np.nan
    raw = np.nan_to_num(gpp, nan=sentinel)
    path = write_native(tmp_path / "a.nc", {"GPP": (raw, CARBON)}, fill=None)
    report, ds = made(tmp_path, [path], VariableMap(GPP))
    np.testing.assert_allclose(ds["gpp"].values, ascending(gpp) * TO_KG, rtol=1e-6)
    said = report["variables"]["gpp"]["fixes"]["fill"]
    assert said.startswith(f"{sentinel:g}")
    assert said.endswith("9 cells")


def test_missing_values_that_no_attribute_names_are_recorded(tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.nc", {"GPP": (field(0, 20), CARBON)}, fill=None)
    report, _ = made(tmp_path, [path], VariableMap(GPP))
    assert report["variables"]["gpp"]["fixes"]["fill-unnamed"].endswith("4 cells")
    named = write_native(tmp_path / "b" / "a.nc", {"GPP": (field(0, 20), CARBON)})
    report, _ = made(tmp_path / "b", [named], VariableMap(GPP))
    assert "fill-unnamed" not in report["variables"]["gpp"]["fixes"]


@pytest.mark.parametrize("step", [7, 23])
def test_a_sentinel_that_moves_or_goes_is_refused(tmp_path: Path, step: int) -> None:
    gpp = field(0, 20)
    gpp[:, 3, :] = np.nan
    raw = np.nan_to_num(gpp, nan=-99999.0)
    raw[step, 3, 0] = 5.0
    path = write_native(tmp_path / "a.nc", {"GPP": (raw, CARBON)}, fill=None)
    problem = refused(tmp_path, [path], VariableMap(GPP), "gpp")
    assert problem.rule == "fill-changes"
    assert f"{2001 + step // 12}-{step % 12 + 1:02d}" in problem.found
    assert "_FillValue" in problem.remedy


@pytest.mark.parametrize("cells", [1, 6])
def test_a_sentinel_in_some_months_only_is_refused_by_name(tmp_path: Path, cells: int) -> None:
    gpp = np.nan_to_num(field(0, 20), nan=1.0)
    gpp[13].ravel()[:cells] = -999.0
    path = write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)}, fill=None)
    problem = refused(tmp_path, [path], VariableMap(GPP), "gpp")
    assert problem.rule == "fill-changes"
    assert f"-999 as {cells} of the values" in problem.found


def test_a_sum_of_layers_of_sentinels_is_a_fill(tmp_path: Path) -> None:
    layers = np.stack([field(10, 40, seed=i) for i in range(3)], axis=1)
    raw = np.nan_to_num(layers, nan=-99999.0)
    raw[:, :, 3, :] = -99999.0
    path = write_native(tmp_path / "a.nc", {"W": (raw, KG)}, extra={"soil": 3}, fill=None)
    entry = VariableSource(source="W", select={"soil": (0, 1, 2)})
    report, ds = made(tmp_path, [path], VariableMap({"mrso": entry}))
    assert "sum of 3 layers" in report["variables"]["mrso"]["fixes"]["fill"]
    layers[:, :, 3, :] = np.nan
    np.testing.assert_allclose(ds["mrso"].values, ascending(layers.sum(axis=1)), rtol=1e-6)


# --- the sea --------------------------------------------------------------------------------------


def with_fraction(
    path: Path, values: np.ndarray, fraction: np.ndarray, attrs: Mapping[str, Any] = CARBON
) -> Path:
    static = {"sftlf": (fraction, {"units": "1", "standard_name": "land_area_fraction"})}
    return write_native(path, {"GPP": (values, attrs)}, static=static)


def test_zero_over_the_sea_is_missing_where_the_land_fraction_says_so(tmp_path: Path) -> None:
    gpp = field(0, 20)
    gpp[5, 1, 1] = 0.0
    fraction = np.broadcast_to(np.where(LAND, 0.7, 0.0), (4, 6))
    path = with_fraction(tmp_path / "a.nc", np.nan_to_num(gpp), fraction)
    report, ds = made(tmp_path, [path], VariableMap(GPP))
    # A zero on land is a value.
    np.testing.assert_allclose(ds["gpp"].values, ascending(gpp) * TO_KG, rtol=1e-6)
    said = report["variables"]["gpp"]["fixes"]["sea"]
    assert said.startswith("0 over the sea")
    assert said.endswith("4 cells")
    np.testing.assert_allclose(ds["sftlf"].values, 100 * fraction[::-1])


def test_a_sea_that_is_zero_in_the_first_step_only_is_refused(tmp_path: Path) -> None:
    gpp = np.nan_to_num(field(0, 20))
    gpp[20][SEA] = 4.0
    fraction = np.broadcast_to(np.where(LAND, 1.0, 0.0), (4, 6))
    path = with_fraction(tmp_path / "a.nc", gpp, fraction)
    assert refused(tmp_path, [path], VariableMap(GPP), "gpp").rule == "sea-changes"


def test_carbon_where_no_land_is_is_refused_and_heat_is_not(tmp_path: Path) -> None:
    fraction = np.broadcast_to(np.where(np.roll(LAND, 1), 1.0, 0.0), (4, 6))
    path = with_fraction(tmp_path / "a.nc", field(0, 20), fraction)
    problem = refused(tmp_path, [path], VariableMap(GPP), "gpp")
    assert problem.rule == "land-mismatch"
    assert "half a cell" in problem.remedy
    heat = np.nan_to_num(field(10, 90), nan=50.0)
    path = with_fraction(tmp_path / "b" / "a.nc", heat, fraction, {"units": "W m-2"})
    entries = {"hfss": VariableSource(source="GPP")}
    report, _ = made(tmp_path / "b", [path], VariableMap(entries))
    assert report["variables"]["hfss"]["fixes"]["sea"].endswith("4 cells")


# --- signs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("native", "long_name"),
    [("nee", ""), ("NEE_mean", ""), ("Fnet", "Net ecosystem exchange of CO2")],
)
def test_nee_is_turned_round_where_the_seasons_agree(
    tmp_path: Path, native: str, long_name: str
) -> None:
    attrs = {**CARBON, "long_name": long_name}
    path = write_native(tmp_path / "a.nc", {native: (-nep(), attrs)})
    report, ds = made(tmp_path, [path], VariableMap({"nep": VariableSource(source=native)}))
    np.testing.assert_allclose(ds["nep"].values, ascending(nep()) * TO_KG, rtol=1e-6, atol=1e-20)
    assert native in report["variables"]["nep"]["fixes"]["sign"]


def test_nee_with_the_sign_of_nep_or_without_seasons_is_refused(tmp_path: Path) -> None:
    entries = {"nep": VariableSource(source="nee")}
    path = write_native(tmp_path / "a.nc", {"nee": (nep(), CARBON)})
    problem = refused(tmp_path, [path], VariableMap(entries), "nep")
    assert problem.rule == "sign-unclear"
    assert "sign: 1 if positive into the land" in problem.remedy
    stated = {"nep": VariableSource(source="nee", sign=1, sign_stated=True)}
    report, _ = made(tmp_path / "stated", [path], VariableMap(stated))
    assert "sign" not in report["variables"]["nep"]["fixes"]
    south = -nep()
    south[:, LAT > 40] = np.nan
    path = write_native(tmp_path / "south" / "a.nc", {"nee": (south, CARBON)})
    assert refused(tmp_path / "south", [path], VariableMap(entries), "nep").rule == "sign-unclear"


def test_what_is_called_nep_is_never_turned_round(tmp_path: Path) -> None:
    attrs = {**CARBON, "long_name": "net ecosystem exchange"}
    path = write_native(tmp_path / "a.nc", {"nep": (-nep(), attrs)})
    problem = refused(tmp_path, [path], VariableMap({"nep": VariableSource(source="nep")}), "nep")
    assert problem.rule == "season"


# --- derivations ----------------------------------------------------------------------------------


def carbon_files(tmp_path: Path, **others: Any) -> list[Path]:
    gpp, ra, rh = nep() + 6.0, field(2.0, 3.0, seed=2), field(2.0, 3.0, seed=3)
    fields = {"gpp": (gpp, CARBON), "ra": (ra, CARBON), "rh": (rh, CARBON), **others}
    return [
        write_native(tmp_path / f"M_S3_{name}.nc", {name: given}) for name, given in fields.items()
    ]


def test_trendy_names_need_no_words(tmp_path: Path) -> None:
    water = field(0.5, 3.0, seed=5)
    files = carbon_files(
        tmp_path,
        evapotrans=(water, {"units": "mm/day"}),
        LAI=(field(0, 6), {"units": "m2 m-2"}),
        shflx=(field(0, 90), {"units": "W/m2"}),
    )
    report, ds = made(tmp_path, files, VariableMap({}, well_known=True, per="land"))
    values = {n: ascending(netCDF4.Dataset(f)[n][:].filled(np.nan)) for n, f in zip(
        ("gpp", "ra", "rh"), files, strict=False)}  # fmt: skip
    wanted = (values["gpp"] - values["ra"] - values["rh"]) * TO_KG
    np.testing.assert_allclose(ds["nep"].values, wanted, rtol=1e-4, atol=1e-13)
    np.testing.assert_allclose(ds["hfls"].values, ascending(water) / 86400 * 2.501e6, rtol=1e-6)
    assert ds["hfls"].attrs["latent_heat_J_kg"] == 2.501e6
    assert ds["hfls"].attrs["derived_from"] == "evspsbl * 2.501e+06"
    assert ds["reco"].attrs["derived_from"] == "ra + rh"
    items = report["variables"]
    assert "fire emissions are not in it" in items["nep"]["fixes"]["derived"]
    assert items["lai"]["fixes"]["name"] == "called LAI in the files"
    assert items["hfss"]["source"] == "shflx"
    assert set(items) == {"nep", "hfls", "hfss", "gpp", "reco", "lai", "ra", "rh", "evspsbl"}
    assert not report["refused"]


def test_npp_is_taken_where_autotrophic_respiration_is_missing(tmp_path: Path) -> None:
    files = carbon_files(tmp_path, npp=(nep() + 3.0, CARBON))
    whole = complete(
        VariableMap({}, well_known=True), [scan(f) for f in files if "ra" not in f.name]
    )
    assert whole.entries["nep"].derive == "npp - rh"
    assert whole.entries["reco"].refuse is not None
    assert whole.entries["reco"].refuse.rule == "not-derivable"
    assert "nbp" not in str(whole.entries)


def test_ingredients_of_two_frequencies_are_refused_for_that_variable_only(tmp_path: Path) -> None:
    files = carbon_files(tmp_path)
    annual = field(2.0, 3.0, per_year=1, seed=3)
    files[2] = write_native(tmp_path / "annual.nc", {"rh": (annual, CARBON)}, annual=True)
    report, ds = made(tmp_path, files, VariableMap({}, well_known=True, per="land"))
    for name in ("nep", "reco"):
        (problem,) = report["refused"][name]
        assert problem.rule == "frequencies-mixed"
        assert "rh (yr)" in problem.found
    assert {"gpp", "ra"} <= set(ds.data_vars)


def test_two_names_for_one_variable_are_refused(tmp_path: Path) -> None:
    fields = {n: (field(0, 90), {"units": "W m-2"}) for n in ("shflx", "hfsspft")}
    path = write_native(tmp_path / "a.nc", {"gpp": (field(0, 20), CARBON), **fields})
    # A name that ends in pft only counts where there is no other.
    found = complete(VariableMap({}, well_known=True), [scan(path)])
    assert found.entries["hfss"].source == "shflx"
    entries = {"gpp": VariableSource(source="gpp", names=("shflx",))}
    problem = refused(tmp_path, [path], VariableMap(entries), "gpp")
    assert problem.rule == "ambiguous"


def test_without_well_known_names_only_standard_names_give_ingredients(tmp_path: Path) -> None:
    stated = {**CARBON, "standard_name": variable_table()["rh"].standard_name}
    files = carbon_files(tmp_path, soilr=(field(2, 3), stated))
    entries = {n: VariableSource(source=n) for n in ("gpp", "ra")}
    headers = [scan(f) for f in files]
    whole = complete(VariableMap(entries), headers)
    assert whole.entries["rh"].source == "soilr"
    assert whole.entries["reco"].derive == "ra + rh"
    assert complete(whole, headers) == whole
    assert set(complete(VariableMap(entries), headers[:3]).entries) == {"gpp", "ra", "nep", "reco"}
    assert complete(VariableMap(entries), headers[:3]).entries["nep"].refuse is not None


@pytest.mark.parametrize("wood", [None, "total", "above-ground"])
def test_biomass_above_ground_needs_to_know_what_wood_is(tmp_path: Path, wood: Any) -> None:
    leaf, stem = field(0.1, 1), field(1, 20, seed=2)
    fields = {"cLeaf": (leaf, KG), "cWood": (stem, KG)}
    path = write_native(tmp_path / "a.nc", fields)
    given = VariableMap({}, well_known=True, per="land", declared=Declared(wood=wood))
    if wood == "above-ground":
        _, ds = made(tmp_path, [path], given)
        np.testing.assert_allclose(ds["cLiveBioAbove"].values, ascending(leaf + stem), rtol=1e-6)
        return
    problem = refused(tmp_path, [path], given, "cLiveBioAbove")
    assert problem.rule == "wood-undeclared"
    assert "coarse roots" in problem.found


@pytest.mark.parametrize(
    ("state", "method", "rule"),
    [
        ("mean", "time: mean", "annual-state"),
        ("end", "time: point", "annual-state"),
        (None, "time: mean", "annual-state-unknown"),
    ],
)
def test_annual_pools_say_whether_they_are_means_or_the_end_of_the_year(
    tmp_path: Path, state: Any, method: str, rule: str
) -> None:
    soil = field(1, 20, per_year=1)
    path = write_native(tmp_path / "a.nc", {"cSoil": (soil, KG)}, annual=True)
    given = VariableMap({"cSoil": VariableSource(source="cSoil")})
    given = replace(given, declared=Declared(annual_state=state))
    report, ds = made(tmp_path, [path], given, frequency="yr")
    assert ds["cSoil"].attrs["cell_methods"] == f"area: mean where land {method}"
    assert rule in report["variables"]["cSoil"]["fixes"]


# --- layers ---------------------------------------------------------------------------------------


def layered(path: Path, bounds: list[float] | None, units: str = "m") -> tuple[Path, np.ndarray]:
    """A file with water in layers between ``bounds``, and the water."""
    kinds = 3 if bounds is None else len(bounds) - 1
    water = np.stack([field(5, 30, seed=i) for i in range(kinds)], axis=1)
    write_native(path, {"mrsol": (water, KG)}, extra={"depth": kinds})
    if bounds is not None:
        with netCDF4.Dataset(path, "a") as nc:
            nc.createDimension("two", 2)
            depth = nc.createVariable("depth", "f8", ("depth",))
            depth.setncatts({"units": units, "bounds": "depth_bnds"})
            depth[:] = np.arange(kinds)
            nc.createVariable("depth_bnds", "f8", ("depth", "two"))[:] = np.stack(
                [bounds[:-1], bounds[1:]], axis=1
            )
    return path, water


@pytest.mark.parametrize(
    ("bounds", "units", "weights"),
    [
        ([0, 0.1, 0.3], "m", [1, 0]),
        ([0, 10, 30], "cm", [1, 0]),
        ([0, 0.02, 0.1, 1], "m", [1, 1, 0]),
        ([0, 0.022, 0.08, 0.23], "m", [1, 1, 0.02 / 0.15]),
        ([0, 0.4, 1], "m", [0.25, 0]),
        ([0, -0.1, -0.3], "m", [1, 0]),
    ],
)
def test_soil_moisture_of_the_top_is_made_of_the_layers_that_bound_it(
    tmp_path: Path, bounds: list[float], units: str, weights: list[float]
) -> None:
    path, water = layered(tmp_path / "a.nc", bounds, units)
    report, ds = made(tmp_path, [path], VariableMap({}, well_known=True, per="land"))
    wanted = np.einsum("tkyx,k->tyx", water, np.array(weights))
    np.testing.assert_allclose(ds["mrsos"].values, ascending(wanted), rtol=1e-6)
    said = report["variables"]["mrsos"]["fixes"]["layers"]
    assert ("evenly spread" in said) == any(0 < w < 1 for w in weights)
    np.testing.assert_allclose(ds["mrsos"].attrs["depth_bounds_m"], [0.0, 0.1])


@pytest.mark.parametrize("bounds", [None, [0.02, 0.1, 0.3], [0, 0.02, 0.05]])
def test_layers_without_bounds_that_reach_from_the_surface_are_refused(
    tmp_path: Path, bounds: list[float] | None
) -> None:
    path, _ = layered(tmp_path / "a.nc", bounds)
    given = VariableMap({"mrsos": VariableSource(source="mrsol")})
    problem = refused(tmp_path, [path], given, "mrsos")
    assert problem.rule == "layers-unbounded"
    assert "depth: [0, 0.1]" in problem.remedy


def test_selected_layers_must_make_up_the_depth(tmp_path: Path) -> None:
    path, _ = layered(tmp_path / "a.nc", [0, 0.05, 0.3])
    given = VariableMap({"mrsos": VariableSource(source="mrsol", select={"depth": (0,)})})
    problem = refused(tmp_path, [path], given, "mrsos")
    assert problem.rule == "layers-unbounded"
    assert "layers from 0 to 0.05 m" in problem.found


# --- plant types ----------------------------------------------------------------------------------


def tiled(
    tmp_path: Path, cover: np.ndarray, *, annual: bool = False, units: str = "1"
) -> tuple[list[Path], np.ndarray]:
    """Files of gpp by plant type and of cover (time, pft, lat, lon), and gpp."""
    gpp = np.stack([field(0, 20, seed=i) for i in range(3)], axis=1)
    gpp[:, 2, 1, 1] = np.nan
    attrs = {"units": units}
    return [
        write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)}, extra={"pft": 3}),
        write_native(
            tmp_path / "c.nc", {"landCoverFrac": (cover, attrs)}, extra={"pft": 3}, annual=annual
        ),
    ], gpp


@pytest.mark.parametrize("annual", [False, True])
@pytest.mark.parametrize("units", ["1", "%"])
def test_plant_types_are_averaged_with_the_cover_of_their_time(
    tmp_path: Path, annual: bool, units: str
) -> None:
    steps = 2 if annual else 24
    cover = np.random.default_rng(3).dirichlet([2, 2, 2, 1], (steps, 4, 6)).transpose(0, 3, 1, 2)
    cover = cover[:, :3]
    files, gpp = tiled(tmp_path, cover * (100 if units == "%" else 1), annual=annual, units=units)
    report, ds = made(tmp_path, files, VariableMap(GPP))
    each = np.repeat(cover, 12, axis=0) if annual else cover
    wanted = np.nansum(gpp * each, axis=1)
    wanted[np.isnan(gpp).all(axis=1)] = np.nan
    np.testing.assert_allclose(ds["gpp"].values, ascending(wanted) * TO_KG, rtol=1e-6)
    assert "3 of pft" in report["variables"]["gpp"]["fixes"]["cover"]


def test_steps_of_two_years_have_the_cover_of_their_own_year(tmp_path: Path) -> None:
    cover = np.stack([np.full((3, 4, 6), 0.1), np.full((3, 4, 6), 0.3)])
    files, gpp = tiled(tmp_path, cover, annual=True)
    whole = complete(VariableMap(GPP), [scan(f) for f in files])
    plan = plan_variables([scan(f) for f in files], whole, ["gpp"], YEARS, ("mon",))
    got = plan.plans["gpp"].read(slice(10, 14))
    wanted = np.nansum(gpp[10:14], axis=1) * np.array([0.1, 0.1, 0.3, 0.3])[:, None, None]
    wanted[np.isnan(gpp[10:14]).all(axis=1)] = np.nan
    np.testing.assert_allclose(got, ascending(wanted), rtol=1e-12)


def test_plant_types_without_cover_or_with_too_much_are_refused(tmp_path: Path) -> None:
    files, _ = tiled(tmp_path, np.full((24, 3, 4, 6), 0.4))
    assert refused(tmp_path, files, VariableMap(GPP), "gpp").rule == "cover-sums"
    problem = refused(tmp_path, files[:1], VariableMap(GPP), "gpp")
    assert problem.rule == "extra-dimension"
    assert "cover: landCoverFrac" in problem.remedy
    given = VariableMap(GPP, cover="tileFrac")
    assert "no file with the cover" in refused(tmp_path, files[:1], given, "gpp").found


def test_a_temperature_needs_the_cover_of_all_the_area(tmp_path: Path) -> None:
    kinds = np.stack([field(270, 300, seed=i) for i in range(2)], axis=1)
    entries = {"ts": VariableSource(source="T", cover="f")}
    for share, good in ((0.5, True), (0.4, False)):
        top = tmp_path / str(share)
        fields = {"T": (kinds, {"units": "K"}), "f": (np.full(kinds.shape, share), {"units": "1"})}
        path = write_native(top / "a.nc", fields, extra={"tile": 2})
        if good:
            _, ds = made(top, [path], VariableMap(entries))
            np.testing.assert_allclose(ds["ts"].values, ascending(kinds.mean(axis=1)), rtol=1e-6)
        else:
            assert "bare ground" in refused(top, [path], VariableMap(entries), "ts").remedy


def test_one_file_per_plant_type_is_refused(tmp_path: Path) -> None:
    files = [
        write_native(tmp_path / f"CLM_S3_gpp_PFT{i:02d}.nc", {"GPP": (field(0, 20), CARBON)})
        for i in range(2)
    ]
    problem = refused(tmp_path, files, VariableMap(GPP), "gpp")
    assert problem.rule == "plant-types"
    assert "one of 2 files" in problem.found


def test_a_file_called_like_the_variable_that_holds_another_is_told(tmp_path: Path) -> None:
    path = write_native(tmp_path / "ISAM_S3_nep.nc", {"npp-rh+ld": (nep(), CARBON)})
    entries = {"nep": VariableSource(source="nep")}
    problem = refused(tmp_path, [path], VariableMap(entries), "nep")
    assert problem.rule == "other-name"
    assert "'npp-rh+ld'" in problem.found


# --- per land or per cell -------------------------------------------------------------------------


def total_pg(plan: RunPlan, gpp: np.ndarray, weight: np.ndarray) -> float:
    """Global total of the first year by hand [Pg]."""
    days = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
    kg = np.nan_to_num(ascending(gpp)[:12]) * 1e-3 * days[:, None, None]
    return float((kg.sum(axis=0) * plan.grid.cell_area * weight).sum() * 1e-12)


@pytest.mark.parametrize("per", ["land", "cell"])
def test_the_groups_totals_tell_what_values_are_per(tmp_path: Path, per: str) -> None:
    gpp = field(0, 10)
    fraction = np.where(LAND, 0.4 + 0.1 * np.arange(6), 0.0) * np.ones((4, 1))
    path = with_fraction(tmp_path / "a.nc", gpp, fraction)
    open_map = VariableMap({"gpp": VariableSource(source="GPP", per=None)}, land_fraction="sftlf")
    plan = plan_variables([scan(path)], open_map, ["gpp"], YEARS, ("mon",))
    assert "not say" in plan.plans["gpp"].fixes["per-assumed"]
    total = total_pg(plan, gpp, fraction[::-1] if per == "land" else fraction[::-1] > 0)
    declared = Declared(totals={"gpp": {2001: total * 1.004}})
    report, ds = made(tmp_path, [path], replace(open_map, declared=declared))
    item = report["variables"]["gpp"]
    assert f"per {per} area" in item["fixes"]["per-by-totals"]
    assert item["per"] == per
    with np.errstate(invalid="ignore", divide="ignore"):
        wanted = gpp if per == "land" else gpp / fraction
    np.testing.assert_allclose(ds["gpp"].values, ascending(wanted) * TO_KG, rtol=1e-6)


def test_totals_that_fit_neither_way_decide_nothing(tmp_path: Path) -> None:
    fraction = np.where(LAND, 0.5, 0.0) * np.ones((4, 1))
    path = with_fraction(tmp_path / "a.nc", field(0, 10), fraction)
    entries = {"gpp": VariableSource(source="GPP", per=None)}
    declared = Declared(totals={"gpp": {2001: 1.0}, "nep": {2001: 1.0}})
    given = VariableMap(entries, land_fraction="sftlf", declared=declared)
    plan = plan_variables([scan(path)], given, ["gpp"], YEARS, ("mon",))
    assert "1 declared" in plan.plans["gpp"].fixes["per-assumed"]
    assert plan.plans["gpp"].per == "land"


@pytest.mark.parametrize("rule", ["grids-differ", "calendars-differ"])
def test_the_variable_that_differs_from_most_is_the_one_that_is_refused(
    tmp_path: Path, rule: str
) -> None:
    files = carbon_files(tmp_path)
    other: dict[str, Any] = {"calendar": "360_day"}
    if rule == "grids-differ":
        other = {"lon": LON + 10}
    files[1] = write_native(tmp_path / "other.nc", {"ra": (field(2, 3), CARBON)}, **other)
    headers = [scan(f) for f in files]
    entries = {n: VariableSource(source=n) for n in ("gpp", "ra", "rh")}
    with pytest.raises(DataError) as caught:
        plan_variables(headers, VariableMap(entries), list(entries), YEARS, ("mon",))
    assert isinstance(caught.value, RefusedVariablesError)
    assert {n: [p.rule for p in f] for n, f in caught.value.by_variable.items()} == {"ra": [rule]}
