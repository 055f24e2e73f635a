"""Plausibility: each check on values that have the defect, and on a near miss that has not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from submissions import World, trendy

from callmip_global.config.manifest import load_manifest
from callmip_global.data import data_path
from callmip_global.errors import Problem
from callmip_global.grid import Grid, standard_grid
from callmip_global.harmonize.checks import Summary
from callmip_global.harmonize.landmask import earth_land, placement
from callmip_global.harmonize.native import scan
from callmip_global.harmonize.plausibility import (
    Field,
    Finding,
    annual_totals,
    judge,
    same_values,
)
from callmip_global.harmonize.rules import RULES
from callmip_global.harmonize.submission import Entry, check_files
from callmip_global.harmonize.variable_map import VariableMap, VariableSource
from callmip_global.timeaxis import MonthAxis, month_axis
from callmip_global.units import CAUSES
from callmip_global.variables import variable_table, windows
from callmip_global.workflow.ingest import ingest

Array = NDArray[np.float64]

WORLD = World(step_deg=10.0)
LONG = World(step_deg=10.0, years=(2001, 2006))
GRID = Grid("test", np.linspace(-90, 90, 19), np.linspace(-180, 180, 37))
ALL = (
    *("nep", "gpp", "reco", "ra", "rh", "hfls", "hfss", "hfg", "ts", "lai", "evspsbl", "tran"),
    *("evspsblsoi", "cLiveBioAbove", "cLeaf", "cStem", "cSoil", "mrso", "mrsos"),
)


def summed(name: str, values: Array, weights: Array, axis: MonthAxis, other: Any = None) -> Summary:
    made = Summary()
    lat = GRID.lat if values.shape[1] == GRID.shape[0] else np.linspace(50, 60, values.shape[1])
    for start in range(0, len(values), 7):
        block = values[start : start + 7]
        made.add(block, weights, variable_table()[name], other)
        months = [month for _, month in axis.part(slice(start, start + 7)).periods]
        made.seasons.add(block, weights, lat, months)
    return made


def made(
    name: str,
    change: Callable[[Array], Array | None] = lambda _: None,
    *,
    world: World = WORLD,
    fraction: Array | None = None,
    **more: Any,
) -> Field:
    """One variable of a world, changed (in place, or what ``change`` returns)."""
    values = np.array(world.values(name))
    changed = change(values)
    values = values if changed is None else changed
    axis = month_axis(world.years, "noleap")
    share = np.ones(GRID.shape) if fraction is None else fraction
    weights = GRID.cell_area * share
    summary = summed(name, values, weights, axis, GRID.cell_area * share**2)
    return Field(variable_table()[name], summary, axis, f"{name}.nc", **more)


@cache
def world() -> Mapping[str, Field]:
    return {name: made(name) for name in ALL}


def found(fields: Mapping[str, Field] | Field, grid: Grid = GRID) -> dict[tuple[str, str], Any]:
    """(variable, rule) -> words or Problem; a single field is judged alone."""
    given = {fields.variable.name: fields} if isinstance(fields, Field) else fields
    out: list[Finding] = judge(given, grid)
    assert all(rule in RULES for _, rule, _ in out)
    for _, rule, said in out:
        assert (RULES[rule].kind == "refuse") == isinstance(said, Problem)
        assert not isinstance(said, Problem) or said.rule == rule
    return {(name, rule): said for name, rule, said in out}


def swapped(name: str, field: Field) -> dict[tuple[str, str], Any]:
    """What is found when one variable of the world is another."""
    return found({**world(), name: field})


def test_a_world_that_could_be_real_gives_no_finding_at_all() -> None:
    assert found(world()) == {}


# --- what a summary holds -------------------------------------------------------------------------


@given(
    cuts=st.lists(st.integers(0, 24), max_size=4),
    seed=st.integers(0, 5),
    single=st.booleans(),
)
def test_a_summary_is_the_same_bit_by_bit_however_it_was_gathered_and_kept(
    cuts: list[int], seed: int, single: bool
) -> None:
    random = np.random.default_rng(seed)
    values = random.choice(
        [np.nan, 0.0, 1e-7, 2e-7, 5e-7, np.inf], (24, 3, 4), p=[0.3, *[0.14] * 5]
    )
    values[:, 0, 0] = 1e-8
    values[:, 2, 3] = np.nan
    values = values.astype(np.float32) if single else values
    weights = random.uniform(0, 1, (3, 4))
    lat, var = np.array([-50.0, 45.0, 60.0]), variable_table()["gpp"]
    edges = [0, *sorted(cuts), 24]

    def part(first: int, last: int) -> Summary:
        block = Summary()
        block.add(values[first:last], weights, var)
        return Summary.from_json(json.loads(json.dumps(block.to_json())))

    whole, joined = Summary(), Summary()
    whole.add(values, weights, var)
    for first, last in pairwise(edges):
        joined.merge(part(first, last))
    joined.sample, whole.sample = None, None  # of the first part
    assert json.dumps(joined.to_json()) == json.dumps(whole.to_json())
    months = [1 + i % 12 for i in range(24)]
    whole.seasons.add(values, weights, lat, months)
    assert Summary.from_json(json.loads(json.dumps(whole.to_json()))).seasons == whole.seasons


def test_a_summary_holds_what_numpy_finds_by_hand() -> None:
    values = np.array([[[1.0, np.nan], [3.0, 4.0]], [[1.0, np.nan], [-3.0, np.inf]]]) * 1e-8
    weights = np.array([[1.0, 2.0], [4.0, 8.0]])
    summary = Summary()
    summary.add(values, weights, variable_table()["gpp"], weights * 2)
    np.testing.assert_allclose(summary.totals, [45e-8, -11e-8])
    np.testing.assert_allclose(summary.other_totals, [90e-8, -22e-8])
    np.testing.assert_allclose(summary.sizes, [45e-8, 13e-8])
    assert summary.areas.tolist() == [13.0, 5.0]
    assert summary.counts.tolist() == [3, 2]
    assert (summary.low, summary.low_at) == (values[1, 1, 0], (1, 2))
    assert (summary.high, summary.high_at) == (values[0, 1, 1], (0, 3))
    assert (summary.infinite, summary.outside) == (1, 1)
    # Of three cells with values the first never changes, and the last has only one.
    assert summary.still_share == (2 / 3, 2 / 3)
    assert Summary().report()["values"] == 0


# --- where the land is ----------------------------------------------------------------------------


def test_the_land_fraction_is_what_its_script_makes(tmp_path: Path, project_root: Path) -> None:
    script = project_root / "scripts" / "make_land_fraction"
    subprocess.run([sys.executable, str(script), str(tmp_path / "l.npz")], check=True)
    with (
        np.load(tmp_path / "l.npz") as new,
        np.load(data_path("regrid", "land_fraction_0.25deg.npz")) as kept,
    ):
        np.testing.assert_array_equal(new["percent"], kept["percent"])


@given(
    lat=st.lists(st.floats(-90, 90), min_size=2, max_size=6, unique=True),
    shift=st.floats(-400, 400),
    n=st.integers(1, 9),
)
def test_the_land_of_any_cells_adds_up_to_that_of_the_strip(
    lat: list[float], shift: float, n: int
) -> None:
    edges = np.array(sorted(lat))
    if np.diff(edges).min() < 1e-3:
        return
    fine = Grid("fine", edges, np.linspace(shift, shift + 360, n + 1))
    whole = Grid("whole", edges[[0, -1]], np.array([-180.0, 180.0]))
    parts = float((earth_land(fine) * fine.cell_area).sum())
    assert parts == pytest.approx(float((earth_land(whole) * whole.cell_area).sum()), rel=1e-6)
    assert earth_land(fine).min() >= 0.0
    assert earth_land(fine).max() <= 1.0


def test_the_land_of_the_earth_is_where_it_is() -> None:
    land = earth_land(standard_grid("1deg"))
    area = standard_grid("1deg").cell_area
    assert (land * area).sum() / area.sum() == pytest.approx(0.289, abs=0.002)
    assert land[90 + 45, 180 + 90] == 1.0  # Asia
    assert land[90, 180 - 150] == 0.0  # Pacific


def shifted(step: float, lat: float = 0.0, lon: float = 0.0) -> Grid:
    """The true grid, its coordinates moved by parts of a cell."""
    lats = np.linspace(-90, 90, round(180 / step) + 1)
    inner = slice(1, -1) if lat else slice(None)
    lons = np.linspace(-180, 180, round(360 / step) + 1)
    return Grid("moved", (lats + lat * step)[inner], lons + lon * step)


@pytest.mark.parametrize(
    ("lat", "lon", "words"),
    [
        (0, 0, ""),
        (0, -0.5, "+1/2 cell in longitude"),
        (0, 0.5, "-1/2 cell in longitude"),
        (0, 1, "-1 cell in longitude"),
        (0.5, 0, "-1/2 cell in latitude"),
    ],
)
@pytest.mark.parametrize(
    ("step", "least"),
    [(0.5, 0.5), *((step, least) for step in (2.0, 5.0) for least in (0, 0.5, 0.9))],
)
def test_coastlines_tell_half_a_cell(
    step: float, lat: float, lon: float, words: str, least: float
) -> None:
    mask = earth_land(shifted(step)) > least
    grid = shifted(step, lat, lon)
    place = placement(mask[1:-1] if lat else mask, grid)
    assert place is not None
    assert place.misplaced == bool(words)
    assert place.words.endswith(words)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ((slice(None, None, -1), slice(None)), "north and south swapped"),
        ((slice(None), slice(None, None, -1)), "east and west swapped"),
        ((slice(None), np.roll(np.arange(72), 36)), "a shift of 180 degrees in longitude"),
    ],
)
def test_maps_that_are_turned_or_begin_elsewhere_are_seen(order: Any, words: str) -> None:
    grid = shifted(5.0)
    mask = earth_land(grid) > 0.5
    place = placement(mask[order], grid)
    assert place is not None
    assert place.misplaced
    assert place.words == words


def test_models_leave_out_antarctica_greenland_or_deserts_and_are_no_error() -> None:
    grid = shifted(2.0)
    land = earth_land(grid) > 0.5
    lat, lon = np.meshgrid(grid.lat, grid.lon, indexing="ij")
    greenland = (lat > 59) & (lon > -75) & (lon < -10)
    sahara = (lat > 15) & (lat < 32) & (lon > -17) & (lon < 35)
    for mask in (land & (lat > -60), land & ~greenland, land & ~sahara & ~greenland):
        place = placement(mask, grid)
        assert place is not None
        assert not place.misplaced
        assert place.is_earth
    # Without coasts, cells or the whole circle there is no evidence.
    assert placement(np.ones(grid.shape, bool), grid) is None
    assert placement(np.zeros(grid.shape, bool), grid) is None
    part = Grid("part", grid.lat_edges, grid.lon_edges[:90])
    assert placement(land[:, :89], part) is None


def test_a_misplaced_field_is_refused_with_the_place_that_fits() -> None:
    east = Grid("east", GRID.lat_edges, GRID.lon_edges + 5.0)
    problem = found(made("gpp"), east)["gpp", "placement"]
    assert "correlates best with the Earth's at a shift of -1/2 cell in longitude" in str(problem)
    assert ("lai", "placement") in found(made("lai", lambda v: v[:, ::-1]))
    near = Grid("near", GRID.lat_edges, GRID.lon_edges + 1.0)
    assert ("gpp", "placement") not in found(made("gpp"), near)


# --- totals and means -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor", "words"),
    [
        ("gpp", 44.009 / 12.011, "44/12: CO2 for carbon?"),
        ("reco", 44.009 / 12.011, "44/12: CO2 for carbon?"),
        ("hfls", 1 / 28.94, "1/28.9: mm/day for W m-2?"),
        ("mrsos", 1e-2, ""),
        ("cSoil", 1e-2, ""),
        ("lai", 0.1, ""),
    ],
)
def test_a_total_that_no_earth_has_is_refused_with_the_cause(
    name: str, factor: float, words: str
) -> None:
    everything = found(made(name, lambda v: v * factor))
    (rule,) = {rule for _, rule in everything}
    assert rule in ("total", "range")
    assert words in str(everything[name, rule])


@pytest.mark.parametrize("name", sorted(windows()))
def test_totals_and_means_within_the_window_pass_and_beyond_it_are_told(name: str) -> None:
    window = windows()[name]
    assert window.fail[0] <= window.warn[0] < window.warn[1] <= window.fail[1]
    field = made(name)
    (first, *_) = annual_totals(field).values()
    assert found(field) == {}
    values = np.array(WORLD.values(name))
    usual = first
    if window.of == "mean":
        usual = float(np.nansum(values.mean(0) * GRID.cell_area) / GRID.cell_area[WORLD.land].sum())
    target = 0.5 * (window.warn[1] + window.fail[1])
    change = (target - usual) if usual <= 0 or name in ("ts", "hfg") else None
    unit = usual / first if window.of == "total" and first else 1.0
    if change is None:
        everything = found(made(name, lambda v: v * (target / usual) * unit))
        assert set(everything) <= {(name, "total-unusual"), (name, "few-outside")}
        assert (name, "total-unusual") in everything


def test_without_all_continents_totals_say_nothing() -> None:
    def region(values: Array) -> None:
        values[:, :, 18:] = np.nan

    assert found(made("gpp", region)) == {}
    assert found(made("gpp", lambda v: v * 3)).keys() == {("gpp", "total")}


def test_totals_are_those_by_hand() -> None:
    values, axis = WORLD.values("gpp"), month_axis(WORLD.years, "noleap")
    days = axis.lengths_days[:12]
    by_hand = (
        sum(float(np.nansum(values[m] * GRID.cell_area)) * days[m] for m in range(12))
        / days.sum()
        * 365.25
        * 86400e-12
    )
    assert annual_totals(made("gpp"))[2001] == pytest.approx(by_hand, rel=1e-12)
    assert annual_totals(made("hfls"))[2001] == pytest.approx(5.3, rel=0.05)
    assert annual_totals(made("cSoil"))[2002] == pytest.approx(1300, rel=0.02)


def test_the_groups_own_totals_confirm_or_refuse() -> None:
    fraction = np.where(WORLD.land, 0.8, 0.0)
    field = made("gpp", fraction=fraction)
    right = annual_totals(field)
    assert found(replace(field, totals=right)).keys() == {("gpp", "totals-met")}
    near = {year: value * 1.009 for year, value in right.items()}
    assert found(replace(field, totals=near)).keys() == {("gpp", "totals-met")}
    off = {year: value * 1.03 for year, value in right.items()}
    assert "The ratio is" in str(found(replace(field, totals=off))["gpp", "totals"])
    grams = {year: value * 1e3 for year, value in right.items()}
    assert "kg for g" in str(found(replace(field, totals=grams))["gpp", "totals"])
    other = annual_totals(field, other=True)
    assert "say per: cell instead" in str(found(replace(field, totals=other))["gpp", "totals"])
    assert ("gpp", "totals-unused") in found(replace(field, totals={1850: 3.0}))


# --- in time --------------------------------------------------------------------------------------


def test_one_map_in_all_steps_is_refused_and_one_that_changes_a_little_is_not() -> None:
    still = made("cSoil", lambda v: np.broadcast_to(v[:1], v.shape))
    assert "one map that 24 steps repeat" in str(found(still)["cSoil", "constant"])
    assert found(made("cSoil", lambda v: v[:1] * np.linspace(1, 1.001, 24)[:, None, None])) == {}
    zero = made("lai", lambda v: np.where(np.isnan(v), np.nan, 0.0))
    assert "the constant 0" in str(found(zero)["lai", "constant"])


def test_many_cells_that_never_change_are_told_but_not_those_of_zero() -> None:
    def half(value: float) -> Callable[[Array], None]:
        def change(values: Array) -> None:
            values[:, :, ::2] = np.where(np.isnan(values[:, :, ::2]), np.nan, value)

        return change

    assert ("lai", "constant-cells") in found(made("lai", half(3.0)))
    assert ("lai", "constant-cells") not in found(made("lai", half(0.0)))


def test_steps_of_nothing_and_of_zeros_are_refused_by_their_dates() -> None:
    def cut(value: float) -> Callable[[Array], None]:
        def change(values: Array) -> None:
            values[20:] = np.where(np.isnan(values[20:]), np.nan, value)

        return change

    problem = found(made("gpp", cut(0.0)))["gpp", "zero-steps"]
    assert "nothing but 0 in 4 of 24 steps: 2002-09, 2002-10, 2002-11 and others" in str(problem)
    problem = found(made("gpp", cut(np.nan)))["gpp", "empty-steps"]
    assert "no value in 4 of 24 steps: 2002-09" in str(problem)


def test_a_polar_night_without_growth_is_no_gap() -> None:
    values = np.abs(np.random.default_rng(2).normal(5e-8, 1e-8, (24, 4, 6)))
    values[[0, 1, 10, 11, 12, 13, 22, 23]] = 0.0
    axis = month_axis((2001, 2002), "noleap")
    summary = summed("gpp", values, np.ones((4, 6)), axis)
    grid = Grid("region", np.linspace(65, 75, 5), np.linspace(10, 40, 7))
    assert found(Field(variable_table()["gpp"], summary, axis, "x.nc"), grid) == {}


def test_fewer_cells_in_some_steps_are_told() -> None:
    def holes(values: Array) -> None:
        values[3, :, ::4] = np.nan

    assert "fewer cells with values in 2001-04" in found(made("ts", holes))["ts", "thin-steps"]


def test_annual_values_written_for_every_month_are_refused_but_pools_may_change_yearly() -> None:
    def yearly(values: Array) -> Array:
        return np.repeat(values.reshape(-1, 12, *values.shape[1:]).mean(axis=1), 12, axis=0)

    assert ("gpp", "repeated") in found(made("gpp", yearly))
    assert ("cSoil", "annual-steps") in found(made("cSoil", yearly))
    assert ("lai", "repeated-years") in found(made("lai", lambda v: np.tile(v[:12], (2, 1, 1))))


# --- where files meet -----------------------------------------------------------------------------

PIECES = ((0, "a.nc"), (12, "b.nc"))


def from_second_file(factor: float) -> Callable[[Array], None]:
    def change(values: Array) -> None:
        values[12:] *= factor

    return change


@pytest.mark.parametrize(
    ("name", "factor", "words"),
    [
        ("gpp", 44.009 / 12.011, "Perhaps wrong by 44/12: CO2 for carbon?"),
        ("gpp", 12.011 / 44.009, "Perhaps a.nc is wrong by 44/12: CO2 for carbon?"),
        ("evspsblsoi", 0.01, "Perhaps a.nc is wrong by 100: percent"),
        ("lai", 0.2, "Check the units of both"),
        ("nep", -1.0, "Perhaps wrong by -1: the opposite sign?"),
    ],
)
def test_a_file_with_other_units_or_sign_than_the_one_before_is_refused(
    name: str, factor: float, words: str
) -> None:
    problem = found(made(name, from_second_file(factor), pieces=PIECES))[name, "join"]
    assert problem.where == "b.nc"
    assert "what a.nc ends with" in problem.wanted
    assert words in str(problem)


def test_files_that_go_on_as_others_end_are_no_jump() -> None:
    for name in ("gpp", "nep", "cSoil", "ts", "hfg"):
        assert found(made(name, pieces=PIECES)) == {}
        assert found(made(name, pieces=tuple((i, f"{i}.nc") for i in range(24)))) == {}


def test_a_level_that_changes_where_a_file_begins_is_told() -> None:
    def restart(values: Array) -> None:
        values[24:] *= 1.1

    pieces = ((0, "a.nc"), (24, "b.nc"))
    said = found(made("cSoil", restart, world=LONG, pieces=pieces))
    assert "where b.nc begins" in said["cSoil", "join-unusual"]
    assert found(made("cSoil", world=LONG, pieces=pieces)) == {}


# --- seasons and single values --------------------------------------------------------------------


def test_winters_greener_than_summers_are_refused_where_the_land_is_wide() -> None:
    half_a_year = np.roll(np.arange(24), 6)
    for name in ("gpp", "nep", "ts", "hfls"):
        assert (name, "season") in found(made(name, lambda v: v[half_a_year]))
    assert ("nep", "season") in found(made("nep", lambda v: -v))
    # Around the Mediterranean it is so.
    values = -np.array(WORLD.values("nep"))[:, 12:15, 18:20]
    axis = month_axis((2001, 2002), "noleap")
    summary = summed("nep", values, np.full(values.shape[1:], 1e11), axis)
    grid = Grid("region", np.linspace(35, 45, 4), np.linspace(0, 10, 3))
    assert found(Field(variable_table()["nep"], summary, axis, "x.nc"), grid) == {}


def test_a_damaged_value_is_named_by_date_and_place() -> None:
    def damage(values: Array) -> None:
        values[14, 12, 20] = 1.8e31

    field = made("gpp", damage, pieces=PIECES)
    problem = str(found(field)["gpp", "damaged"])
    assert "1.8e+31 in 2002-03 at 35N 25E" in problem
    assert problem.startswith("b.nc: gpp")


def test_a_few_values_beyond_the_range_are_told_and_kept() -> None:
    def few(values: Array) -> None:
        values[3, 12, 20] = 4e-7

    assert "1 of " in found(made("gpp", few))["gpp", "few-outside"]


# --- variables together ---------------------------------------------------------------------------


def test_nep_is_held_against_gpp_and_reco() -> None:
    turned = swapped("nep", made("nep", lambda v: -v))
    assert ("nep", "season") in turned
    # Where seasons do not tell (the tropics, a region), the balance does.
    south = {n: replace(f, summary=f.summary) for n, f in world().items() if n in ("gpp", "reco")}
    values = -np.array(WORLD.values("nep"))
    axis = month_axis(WORLD.years, "noleap")
    blind = Summary()
    blind.add(values, GRID.cell_area, variable_table()["nep"])
    nep = Field(variable_table()["nep"], blind, axis, "nep.nc")
    problem = found({**south, "nep": nep})["nep", "carbon-balance"]
    assert "-1 times gpp - reco" in str(problem)
    assert "say sign: -1" in str(problem)
    fire = made("nep", lambda v: v - 0.02 * WORLD.values("gpp"))
    assert swapped("nep", fire) == {}
    lost = made("nep", lambda v: v - 0.1 * WORLD.values("gpp"))
    assert ("nep", "carbon-open") in swapped("nep", lost)
    derived = replace(lost, sources=frozenset({"gpp", "reco"}))
    assert ("nep", "carbon-open") not in swapped("nep", derived)


def test_heat_is_held_against_water() -> None:
    def region(values: Array) -> None:
        values[:, :, 18:] = np.nan

    fields = {n: made(n, region) for n in ("hfls", "tran", "evspsblsoi")}
    assert found(fields) == {}
    millimetres = made("hfls", lambda v: (region(v), v / 28.94)[1])
    problem = found({**fields, "hfls": millimetres})["hfls", "evaporation-factor"]
    assert "mm/day" in str(problem)
    assert ("hfls", "evaporation-open") in swapped("hfls", made("hfls", lambda v: v * 1.3))
    assert swapped("hfls", made("hfls", lambda v: v * 1.02)) == {}


def test_parts_are_held_against_the_whole() -> None:
    assert ("mrsos", "layer-exceeds") in found(
        {"mrso": made("mrso", lambda v: v / 20), "mrsos": made("mrsos", lambda v: v * 2)}
    )
    assert found({"mrso": made("mrso", lambda v: v / 20), "mrsos": made("mrsos")}) == {}
    assert ("cStem", "part-exceeds") in swapped(
        "cLiveBioAbove", made("cLiveBioAbove", lambda v: v * 0.8)
    )
    assert ("tran", "transpiration-share") in swapped("tran", made("tran", lambda v: v * 0.4))


def test_the_same_values_under_two_names_are_told() -> None:
    assert swapped("rh", made("ra"))  # under the name of ra
    twin = replace(made("ra"), variable=variable_table()["rh"])
    assert "the same values as ra" in swapped("rh", twin)["rh", "copy"]


def test_a_variable_with_values_elsewhere_is_told() -> None:
    def more(values: Array) -> None:
        values[:, 9:11, :8] = 1.0

    everything = swapped("lai", made("lai", more))
    assert "more and 0 % less area than" in everything["lai", "mask-differs"]


def test_a_stage_handed_in_twice_is_refused_and_one_variable_left_alone_is_told() -> None:
    def report(**fields: Field) -> dict[str, Any]:
        variables = {name: field.summary.report() for name, field in fields.items()}
        return {"variables": variables, "grid": {"digest": GRID.digest}}

    prior = report(gpp=made("gpp"), lai=made("lai"))
    other = report(gpp=made("gpp", lambda v: v * 1.01), lai=made("lai"))
    twice = same_values(prior, prior, "m.yaml", "M_S3_Prior")
    assert [(name, rule) for name, rule, _ in twice] == [
        ("gpp", "copy-of-stage"),
        ("lai", "copy-of-stage"),
    ]
    assert "the values of M_S3_Prior" in str(twice[0][2])
    assert same_values(prior, other, "m.yaml", "M_S3_Prior") == [
        ("lai", "same-in-stage", "the same values as in M_S3_Prior")
    ]
    elsewhere = {**other, "grid": {"digest": "another"}}
    assert same_values(prior, elsewhere, "m.yaml", "M_S3_Prior") == []


def test_every_cause_has_a_factor_of_its_own() -> None:
    factors = [factor for factor, _ in CAUSES]
    assert len({round(f, 12) for f in factors}) == len(factors)


# --- through the whole tool -----------------------------------------------------------------------


def test_checking_files_judges_derived_variables_and_all_together(tmp_path: Path) -> None:
    coarse = World(step_deg=30.0)
    for name in ("gpp", "ra", "rh", "evspsbl"):
        trendy(coarse, name).write(tmp_path / f"{name}.nc")
    trendy(coarse, "hfls", values=coarse.values("hfls") * 1.4).write(tmp_path / "hfls.nc")
    later = World(step_deg=30.0, years=(2003, 2004))
    trendy(later, "lai").write(tmp_path / "lai.nc")
    sources = ("gpp", "ra", "rh", "evspsbl", "hfls", "lai")
    entries = {name: VariableSource(source=name) for name in sources}
    entries["reco"] = VariableSource(derive="ra + rh")
    entries["cLeaf"] = VariableSource(derive="lai + gpp")
    files = [scan(path) for path in sorted(tmp_path.glob("*.nc"))]
    found = {e.variable: e for e in check_files(files, VariableMap(entries))}
    assert {n for n, e in found.items() if e.outcome == "refused"} == {"cLeaf"}
    assert "no whole year that all it is derived from has" in found["cLeaf"].message
    assert found["reco"].rules == ("derived",)
    assert found["hfls"].rules == ("evaporation-open",)
    assert "1.4" in found["hfls"].message


def test_one_stage_handed_in_as_both_is_refused_until_it_differs(tmp_path: Path) -> None:
    coarse = World(step_deg=30.0)

    def taken(stage: str, factor: float) -> dict[str, Entry]:
        for name, change in (("gpp", factor), ("lai", 1.0)):
            values = coarse.values(name) * change
            trendy(coarse, name, values=values).write(tmp_path / stage / f"{name}.nc")
        path = tmp_path / f"{stage}.yaml"
        path.write_text(
            f"model: {{name: M, version: v1}}\nsimulation: S3\nstage: {stage}\ngrids: [2deg]\n"
            "frequencies: [mon]\nvariables:\n  per: land\n  variables:\n"
            "    gpp: {source: gpp}\n    lai: {source: lai}\n"
        )
        entries = ingest([tmp_path / stage], load_manifest(path), collection=tmp_path / "c")[1]
        return {entry.variable: entry for entry in entries}

    store = tmp_path / "c" / "M.v1_S3_2deg_Posterior.zarr"
    assert {e.outcome for e in taken("Prior", 1.0).values()} == {"accepted"}
    twice = taken("Posterior", 1.0)
    assert {e.rules for e in twice.values()} == {("copy-of-stage",)}
    assert "the values of M.v1_S3_Prior" in twice["gpp"].message
    assert not store.exists()
    differs = taken("Posterior", 1.01)
    assert differs["gpp"].rules == ()
    assert differs["lai"].rules == ("same-in-stage",)
    assert store.exists()
