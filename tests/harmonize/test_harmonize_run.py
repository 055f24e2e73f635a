"""Native files to the native store: what is written, what is refused, and why it says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_files import LAT, LON, SEA, field, write_native

from callmip_global.errors import DataError, Problem
from callmip_global.grid import EARTH_RADIUS_M
from callmip_global.harmonize import VariableMap, VariableSource, harmonize_run, planning
from callmip_global.harmonize import run as making
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.native import Inventory
from callmip_global.harmonize.planning import RefusedVariablesError
from callmip_global.parallel import in_threads, one_by_one
from callmip_global.store import StoreName, global_total, open_store, store_info
from callmip_global.timeaxis import month_axis

NAME = StoreName("M", "v1", "S3", "native", "Prior")
YEARS = (2001, 2002)
CARBON = {"units": "gC m-2 day-1"}
GPP = {"gpp": VariableSource(source="GPP")}
DAYS = month_axis(YEARS, "noleap").lengths_days


def run(
    tmp_path: Path,
    files: list[Path],
    entries: Mapping[str, VariableSource] = GPP,
    *,
    years: tuple[int, int] = YEARS,
    frequencies: tuple[Any, ...] = ("mon", "yr"),
    **options: Any,
) -> dict[str, Any]:
    return harmonize_run(
        files,
        variable_map=VariableMap(entries, **options),
        name=NAME,
        attributes={"institution": "Here"},
        years=years,
        frequencies=frequencies,
        out=tmp_path / NAME.text,
        variables=tuple(entries),
    )


def problem(tmp_path: Path, files: list[Path], entries: Any = GPP, **options: Any) -> str:
    """The rule and the one line of the one problem; nothing may have been written."""
    with pytest.raises(DataError) as caught:
        run(tmp_path, files, entries, **options)
    assert not list(tmp_path.glob("*.zarr*")), "nothing may be published"
    assert not list(tmp_path.glob(".*.work")), "nothing may be left behind"
    (found,) = caught.value.problems
    return f'"{found.rule}": {found}'


def ascending(values: np.ndarray) -> np.ndarray:
    """What the files hold, in the order of the store."""
    return values[:, ::-1, :]


def test_values_are_turned_converted_and_labelled(tmp_path: Path) -> None:
    gpp = field(0, 20)
    path = write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)})
    report = run(tmp_path, [path])
    ds = open_store(tmp_path / NAME.text, "mon")
    np.testing.assert_allclose(ds["gpp"].values, ascending(gpp) * 1e-3 / 86400, rtol=1e-6)
    np.testing.assert_array_equal(ds["lat"].values, LAT[::-1])
    assert ds["gpp"].attrs["units"] == "kg m-2 s-1"
    assert ds["gpp"].attrs["standard_name"].startswith("gross_primary_productivity")
    assert ds["gpp"].attrs["original_name"] == "GPP"
    assert ds["gpp"].dtype == np.float32
    # Column 3 never holds a value: sea, without the model saying so.
    np.testing.assert_array_equal(
        ds["sftlf"].values, np.where(np.arange(6) == 3, 0.0, 100.0) * np.ones((4, 1))
    )
    item = report["variables"]["gpp"]
    assert item["outcome"] == "fixed"
    assert set(item["fixes"]) == {"units", "latitude-order", "longitude-order"}
    assert item["max"] == pytest.approx(np.nanmax(gpp) * 1e-3 / 86400)
    info = store_info(tmp_path / NAME.text)
    assert info.provenance["harmonize"]["files"] == report["files"]
    assert info.attributes["institution"] == "Here"


def test_a_variable_of_several_names_goes_by_the_one_that_the_files_hold(tmp_path: Path) -> None:
    entry = {"gpp": VariableSource(source="GPP", names=("PhotoSynth", "gpptot"))}
    files = [write_native(tmp_path / "a.nc", {"PhotoSynth": (field(0, 20), CARBON)})]
    assert run(tmp_path, files, entry)["variables"]["gpp"]["source"] == "PhotoSynth"
    other = tmp_path / "other"
    other.mkdir()
    both = {"GPP": (field(0, 20), CARBON), "gpptot": (field(0, 20), CARBON)}
    said = problem(other, [write_native(other / "b.nc", both)], entry)
    assert said.startswith('"ambiguous"')
    assert "GPP and gpptot" in said
    said = problem(other, [write_native(other / "c.nc", {"other": (field(0, 20), CARBON)})], entry)
    assert "GPP" in said


def test_annual_values_are_means_weighted_by_the_days_of_the_months(tmp_path: Path) -> None:
    gpp = field(0, 20)
    run(tmp_path, [write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)})])
    by_hand = sum(gpp[m] * DAYS[m] for m in range(12)) / 365 * 1e-3 / 86400
    ds = open_store(tmp_path / NAME.text, "yr")
    np.testing.assert_allclose(ds["gpp"].values[0], by_hand[::-1], rtol=1e-6)
    assert ds.sizes["time"] == 2


def test_months_are_read_once_for_monthly_and_annual_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    converted = making.Block.converted

    def counted(self: Any, plan: Any, steps: slice) -> Any:
        read.extend(range(steps.start, steps.stop))
        return converted(self, plan, steps)

    monkeypatch.setattr(making.Block, "converted", counted)
    gpp = field(0, 20)
    gpp[14, 1, 1] = np.nan
    run(tmp_path, [write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)})])
    assert sorted(read) == list(range(24))
    yearly = open_store(tmp_path / NAME.text, "yr")["gpp"].values
    # A year without one of its months is none.
    np.testing.assert_array_equal(np.isnan(yearly[:, 2, 1]), [False, True])


def test_annual_values_are_the_same_where_regions_of_the_store_cut_years(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, entries = mixed(tmp_path, good=True)
    what_can_be_had(tmp_path / "whole", files, entries)
    monkeypatch.setattr("callmip_global.store._SHARD_BYTES", 7 * 4 * LAT.size * LON.size)
    what_can_be_had(tmp_path / "cut", files, entries)
    assert len(list((tmp_path / "cut" / NAME.text / "mon" / "gpp" / "c").iterdir())) == 4
    for group in ("mon", "yr"):
        whole, cut = (open_store(tmp_path / d / NAME.text, group) for d in ("whole", "cut"))
        np.testing.assert_array_equal(whole["gpp"].values, cut["gpp"].values)


def test_derived_variables_are_made_in_the_protocols_units(tmp_path: Path) -> None:
    gpp, ra, rh = field(8, 14), field(1, 5, seed=2), field(1, 5, seed=3)
    gpp[[5, 6, 7, 17, 18, 19]] += 3.0
    path = write_native(
        tmp_path / "a.nc",
        {"GPP": (gpp, CARBON), "Ra": (ra, CARBON), "Rh": (rh / 86400, {"units": "gC m-2 s-1"})},
    )
    entries = {
        "nep": VariableSource(derive="gpp - reco"),
        "reco": VariableSource(derive="ra + rh"),
        "ra": VariableSource(source="Ra"),
        "rh": VariableSource(source="Rh"),
        **GPP,
    }
    report = run(tmp_path, [path], entries)
    ds = open_store(tmp_path / NAME.text, "mon")
    scale = 1e-3 / 86400
    np.testing.assert_allclose(ds["reco"].values, ascending(ra + rh) * scale, rtol=1e-6)
    np.testing.assert_allclose(
        ds["nep"].values, ascending(gpp - ra - rh) * scale, rtol=1e-5, atol=1e-15
    )
    assert ds["nep"].attrs["derived_from"] == "gpp - reco"
    assert report["variables"]["reco"]["fixes"] == {"derived": "reco = ra + rh"}


@pytest.mark.parametrize("split", ["years", "months", "reversed names"])
def test_the_split_of_the_files_does_not_matter(tmp_path: Path, split: str) -> None:
    gpp = field(0, 20, years=(2000, 2003))
    files = []
    for year in range(2000, 2004):
        part = gpp[12 * (year - 2000) : 12 * (year - 1999)]
        if split == "months":
            files += [
                write_native(
                    tmp_path / f"{year}-{m:02d}.nc",
                    {"GPP": (part[m - 1 : m], CARBON)},
                    years=(year, year),
                    months=[m],
                )
                for m in range(1, 13)
            ]
        else:
            name = f"{3000 - year}.nc" if split == "reversed names" else f"{year}.nc"
            files.append(write_native(tmp_path / name, {"GPP": (part, CARBON)}, years=(year, year)))
    run(tmp_path, files)
    got = open_store(tmp_path / NAME.text, "mon")["gpp"].values
    np.testing.assert_allclose(got, ascending(gpp[12:36]) * 1e-3 / 86400, rtol=1e-6)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**20),
    west=st.sampled_from([0.0, -180.0, -160.0]),
    northward=st.booleans(),
    per=st.sampled_from(["land", "cell"]),
)
def test_the_global_total_is_that_of_the_native_values(
    tmp_path_factory: pytest.TempPathFactory, seed: int, west: float, northward: bool, per: Any
) -> None:
    tmp_path = tmp_path_factory.mktemp("law")
    rng = np.random.default_rng(seed)
    fraction = np.where(rng.random((4, 6)) < 0.3, 0.0, rng.random((4, 6)))
    fraction[0, 0] = 1.0
    gpp = rng.uniform(1, 20, (24, 4, 6))
    gpp[:, fraction == 0] = 0.0
    lat = np.sort(LAT) if northward else LAT
    path = write_native(
        tmp_path / "a.nc",
        {"GPP": (gpp, CARBON)},
        static={"landfrac": (fraction, {"units": "1"})},
        lat=lat,
        lon=west + LON,
    )
    entries = {"gpp": VariableSource(source="GPP", per=per)}
    # Cells with little land blow a value per cell up: that is the point of the division.
    if per == "cell":
        gpp_cell = gpp * fraction
        path.unlink()
        write_native(
            path,
            {"GPP": (gpp_cell, CARBON)},
            static={"landfrac": (fraction, {"units": "1"})},
            lat=lat,
            lon=west + LON,
        )
    report = run(tmp_path, [path], entries, land_fraction="landfrac")
    assert ("per-cell" in report["variables"]["gpp"]["fixes"]) == (per == "cell")
    edges = np.deg2rad([-90, -45, 0, 45, 90])
    rows = EARTH_RADIUS_M**2 * np.diff(np.sin(edges)) * np.deg2rad(60.0)
    rows = rows if northward else rows[::-1]
    by_hand = (gpp * fraction * rows[None, :, None]).sum(axis=(1, 2)) * 1e-3 / 86400
    got = global_total(open_store(tmp_path / NAME.text, "mon"), "gpp")
    np.testing.assert_allclose(got, by_hand, rtol=1e-6)


def test_a_flux_per_cell_with_nothing_but_sea_below_it_is_refused(tmp_path: Path) -> None:
    fraction = np.ones((4, 6))
    fraction[:, 3] = 0.0
    gpp = np.nan_to_num(field(1, 20), nan=10.0)
    path = write_native(
        tmp_path / "a.nc", {"GPP": (gpp, CARBON)}, static={"lf": (fraction, {"units": "1"})}
    )
    text = problem(
        tmp_path, [path], {"gpp": VariableSource(source="GPP", per="cell")}, land_fraction="lf"
    )
    assert "% of the integral in cells without land" in text


def test_a_land_fraction_in_percent_is_read_by_its_units(tmp_path: Path) -> None:
    percent = np.full((4, 6), 50.0)
    gpp = field(1, 20)
    path = write_native(
        tmp_path / "a.nc", {"GPP": (gpp, CARBON)}, static={"lf": (percent, {"units": "%"})}
    )
    run(tmp_path, [path], land_fraction="lf")
    assert np.unique(open_store(tmp_path / NAME.text, "mon")["sftlf"].values).tolist() == [50.0]
    path = write_native(
        tmp_path / "b.nc", {"GPP": (gpp, CARBON)}, static={"lf": (percent, {"units": "1"})}
    )
    with pytest.raises(DataError, match="values from 50 to 50"):
        run(tmp_path, [path], land_fraction="lf")


def test_amounts_per_month_are_divided_by_each_months_own_length(tmp_path: Path) -> None:
    daily = field(1, 20)
    gpp = daily * DAYS[:, None, None]
    path = write_native(tmp_path / "a.nc", {"GPP": (gpp, {"units": "gC m-2 month-1"})})
    run(tmp_path, [path])
    got = open_store(tmp_path / NAME.text, "mon")["gpp"].values
    np.testing.assert_allclose(got, ascending(daily) * 1e-3 / 86400, rtol=1e-6)


def test_annual_amounts_per_month_are_divided_by_a_twelfth_of_the_year(tmp_path: Path) -> None:
    gpp = field(1, 60, per_year=1)
    units = {"units": "gC m-2 month-1"}
    path = write_native(tmp_path / "a.nc", {"GPP": (gpp, units)}, annual=True)
    run(tmp_path, [path], frequencies=("yr",))
    got = open_store(tmp_path / NAME.text, "yr")["gpp"].values
    wanted = ascending(gpp) * 1e-3 / (365.0 / 12.0 * 86400.0)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_a_field_without_time_beside_a_time_axis_is_refused(tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.nc", {"GPP": (field(0, 20), CARBON)})
    with netCDF4.Dataset(path, "a") as nc:
        dims = nc["GPP"].dimensions[1:]
        nc.createVariable("Cs", "f4", dims)[...] = 5.0
        nc["Cs"].units = "kg m-2"
    entries = {**GPP, "cSoil": VariableSource(source="Cs")}
    assert "a field without time beside a time axis" in problem(tmp_path, [path], entries)


def test_land_that_only_shows_after_the_first_year_still_counts(tmp_path: Path) -> None:
    gpp = field(1, 20)
    gpp[12:, 0, 3] = 5.0
    run(tmp_path, [write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)})])
    ds = open_store(tmp_path / NAME.text, "mon")
    assert ds["sftlf"].values[3, 3] == 100.0
    np.testing.assert_allclose(ds["gpp"].values[12:, 3, 3], 5e-3 / 86400, rtol=1e-6)


def test_layers_are_selected_or_summed_and_plant_types_refused(tmp_path: Path) -> None:
    layers = np.stack([field(10, 90, seed=s) for s in range(3)], axis=1)
    path = write_native(tmp_path / "a.nc", {"W": (layers, {"units": "mm"})}, extra={"soil": 3})
    entries = {
        "mrsos": VariableSource(source="W", select={"soil": (0,)}, depth_m=(0.0, 0.1)),
        "mrso": VariableSource(source="W", select={"soil": (0, 1, 2)}),
    }
    run(tmp_path, [path], entries)
    ds = open_store(tmp_path / NAME.text, "mon")
    np.testing.assert_allclose(ds["mrsos"].values, ascending(layers[:, 0]), rtol=1e-6)
    np.testing.assert_allclose(ds["mrso"].values, ascending(layers.sum(axis=1)), rtol=1e-6)
    other = tmp_path / "other"
    text = problem(other, [path], {"mrso": VariableSource(source="W")})
    assert "the extra dimension soil (3)" in text
    assert "area fractions" in text
    text = problem(other, [path], {"mrso": VariableSource(source="W", select={"soil": (3,)})})
    assert "found soil 3, wanted 0 to 2" in text


def test_sign_and_factor_are_applied_and_recorded(tmp_path: Path) -> None:
    down = field(-50, 50)
    path = write_native(tmp_path / "a.nc", {"H": (down, {"units": "W/m2"})})
    entries = {"hfss": VariableSource(source="H", sign=-1, factor=0.5)}
    report = run(tmp_path, [path], entries)
    got = open_store(tmp_path / NAME.text, "mon")["hfss"].values
    np.testing.assert_allclose(got, -0.5 * ascending(down), rtol=1e-6)
    assert {"sign", "factor"} <= set(report["variables"]["hfss"]["fixes"])


def test_nep_with_the_sign_of_nee_is_refused_by_its_northern_seasons(tmp_path: Path) -> None:
    season = -np.cos(2 * np.pi * (np.arange(24) % 12) / 12)[:, None, None]
    nep = 3.0 * season * np.sign(LAT)[None, :, None] + field(-0.5, 0.5)
    right = write_native(tmp_path / "a.nc", {"F": (nep, CARBON)})
    entries = {"nep": VariableSource(source="F")}
    run(tmp_path / "right", [right], entries)
    wrong = write_native(tmp_path / "b.nc", {"F": (-nep, CARBON)})
    assert "say sign: -1" in problem(tmp_path / "wrong", [wrong], entries)
    run(tmp_path / "told", [wrong], {"nep": VariableSource(source="F", sign=-1)})


# --- the rest goes on -----------------------------------------------------------------------------


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def what_can_be_had(
    out: Path,
    files: list[Path],
    entries: Mapping[str, VariableSource],
    *,
    frequencies: tuple[Any, ...] = ("mon", "yr"),
    **options: Any,
) -> dict[str, Any]:
    return making.harmonize_files(
        Inventory.of(files, Declared()).files,
        variable_map=VariableMap(entries),
        name=NAME,
        attributes={},
        years=YEARS,
        frequencies=frequencies,
        out=out / NAME.text,
        variables=tuple(n for n in entries if n not in ("ra", "rh")),
        **options,
    )


def mixed(folder: Path, *, good: bool = False) -> tuple[list[Path], dict[str, VariableSource]]:
    """A run in which ts, reco, nep and lai cannot be had, each for another reason; or the rest."""
    gpp, soil = field(0, 20), field(5, 50, per_year=1)
    files = [
        write_native(folder / "g.nc", {"GPP": (gpp, CARBON)}),
        write_native(folder / "s.nc", {"Cs": (soil, {"units": "kgC m-2"})}, annual=True),
    ]
    entries = {**GPP, "cSoil": VariableSource(source="Cs")}
    if good:
        return files, entries
    everywhere = np.nan_to_num(field(250, 300), nan=280.0)
    return [
        *files,
        write_native(folder / "t.nc", {"T": (everywhere, {"units": "furlong"})}),
        write_native(folder / "l.nc", {"LAI": (100 * field(0, 5), {"units": "1"})}),
        write_native(folder / "r.nc", {"Ra": (-2 * gpp, CARBON), "Rh": (gpp, CARBON)}),
        write_native(folder / "h.nc", {"H": (everywhere - 270.0, {"units": "W m-2"})}),
    ], {
        "ts": VariableSource(source="T"),
        "hfss": VariableSource(source="H"),
        "lai": VariableSource(source="LAI"),
        "nep": VariableSource(derive="gpp - reco"),
        "reco": VariableSource(derive="ra + rh"),
        "ra": VariableSource(source="Ra"),
        "rh": VariableSource(source="Rh"),
        **entries,
    }


def test_a_refused_variable_leaves_no_trace_in_the_store_of_the_others(tmp_path: Path) -> None:
    report = what_can_be_had(tmp_path / "some", *mixed(tmp_path))
    alone = what_can_be_had(tmp_path / "alone", *mixed(tmp_path, good=True))
    refused = {name: str(problems[0]) for name, problems in report["refused"].items()}
    assert set(refused) == {"ts", "hfss", "lai", "reco", "nep"}
    assert "furlong" in refused["ts"]
    assert "values over land and sea alike" in refused["hfss"]
    assert "100: percent" in refused["lai"]
    assert "opposite sign" in refused["reco"]
    assert "no reco, which it is derived from" in refused["nep"]
    assert alone == {**report, "refused": {}}
    some = contents(tmp_path / "some" / NAME.text)
    assert some == contents(tmp_path / "alone" / NAME.text)
    assert not [name for name in some if set(refused) & set(name.split("/"))]
    assert [p.name for p in (tmp_path / "some").iterdir()] == [NAME.text]


def test_a_group_of_which_everything_is_refused_is_not_there(tmp_path: Path) -> None:
    files, entries = mixed(tmp_path)
    del entries["gpp"], entries["nep"]
    report = what_can_be_had(tmp_path, files, entries)
    assert set(report["variables"]) == {"cSoil"}
    info = store_info(tmp_path / NAME.text)
    assert info.frequencies == ("yr",)
    assert info.attributes["frequencies"] == "yr"


def test_where_nothing_can_be_had_every_reason_is_told(tmp_path: Path) -> None:
    files, entries = mixed(tmp_path)
    for name in ("gpp", "nep", "cSoil"):
        del entries[name]
    with pytest.raises(RefusedVariablesError) as caught:
        what_can_be_had(tmp_path, files, entries)
    assert set(caught.value.by_variable) == {"ts", "hfss", "lai", "reco"}
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_what_is_refused_by_its_first_step_takes_along_what_is_derived_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine = planning.examine

    def examined(plan: Any, item: Any, variable_map: VariableMap) -> None:
        if item.variable.name == "ra":
            raise DataError(Problem("r.nc", "Ra", "something in the first step"))
        examine(plan, item, variable_map)

    monkeypatch.setattr(planning, "examine", examined)
    files, entries = mixed(tmp_path)
    refused = what_can_be_had(tmp_path, files, entries)["refused"]
    assert "something in the first step" in str(refused["ra"][0])
    assert "no ra, which it is derived from" in str(refused["reco"][0])
    assert refused["reco"][0].rule == "derived-from-refused"
    assert "no ra" in str(refused["nep"][0])


def test_values_that_cannot_be_read_refuse_their_variable_alone(tmp_path: Path) -> None:
    files, entries = mixed(tmp_path, good=True)
    files.append(write_native(tmp_path / "l.nc", {"LAI": (field(0, 5), {"units": "1"})}))
    entries["lai"] = VariableSource(source="LAI")
    headers = Inventory.of(files, Declared())
    files[-1].unlink()
    report = making.harmonize_files(
        headers.files,
        variable_map=VariableMap(entries),
        name=NAME,
        attributes={},
        years=YEARS,
        frequencies=("mon", "yr"),
        out=tmp_path / NAME.text,
        variables=tuple(entries),
    )
    assert set(report["refused"]) == {"lai"}
    assert set(report["variables"]) == {"gpp", "cSoil"}


# Run in a process of its own, for it makes children and ends them at random moments.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = {paths}
import test_harmonize_run as here
import cftime, netCDF4, numpy, xarray, zarr
from callmip_global.annual import Annual
from callmip_global.harmonize.checks import Summary
from callmip_global.store import StoreWriter
from callmip_global.timeaxis import month_axis
from callmip_global.variables import variable_table

# What the children would load or compile, each of them: all but Zarr's threads.
values = numpy.ones((12, 4, 6))
Summary().add(values, values[0], variable_table()["gpp"])
Annual(month_axis((2001, 2001), "noleap")).sums(slice(0, 12), (4, 6)).add(
    slice(0, 12), values, values[0]
)

top, chance = Path({top!r}), random.Random({seed})
log = (top / "log").open("a", buffering=1)
record, write, publish = StoreWriter.record, StoreWriter.fill, StoreWriter.publish

def recorded(self, group, name, region, note=None):
    record(self, group, name, region, note)
    log.write(f"record {{group}} {{name}} {{region.start}}\\n")

def filled(self, group, name, region, values):
    log.write(f"fill {{group}} {{name}} {{region.start}}\\n")
    write(self, group, name, region, values)

def published(self, attributes=None):
    log.write("end\\n")  # whatever comes next is whole, or may start over
    publish(self, attributes)

StoreWriter.record, StoreWriter.fill, StoreWriter.publish = recorded, filled, published

def run(out, seconds):
    log.write("begin\\n")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # ends the process wherever it is
        report = here.interrupted(top, out)
        (top / "report").write_text(repr(report))
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

begun = time.monotonic()
assert run(top / "whole", 0)
took = time.monotonic() - begun
store, report = here.contents(top / "whole"), (top / "report").read_text()
finished = 0
for _ in range({kills}):
    if run(top / "killed", chance.uniform(0.1, 1.1) * took):
        finished += 1
        assert here.contents(top / "killed") == store
        assert (top / "report").read_text() == report
assert run(top / "killed", 0)
assert here.contents(top / "killed") == store
assert (top / "report").read_text() == report
print(finished)
"""


def interrupted(top: Path, out: Path) -> dict[str, Any]:
    """Twenty years: five regions of each variable, of which one cannot be had."""
    years = (1981, 2000)
    files = sorted((top / "files").glob("*.nc"))
    if not files:
        gpp, reco = field(0, 20, years=years), field(0, 20, years=years, seed=2)
        gpp[130:, 1, 3] = 5.0  # land that shows late
        lai = (100 * field(0, 5, years=years), {"units": "1"})
        files = [
            write_native(top / "files" / "g.nc", {"G": (gpp, CARBON), "L": lai}, years=years),
            write_native(top / "files" / "r.nc", {"R": (reco, CARBON)}, years=years),
        ]
    entries = {
        "gpp": VariableSource(source="G"),
        "lai": VariableSource(source="L"),
        "reco": VariableSource(source="R"),
        "nep": VariableSource(derive="gpp - reco"),
    }
    return making.harmonize_files(
        Inventory.of(files, Declared()).files,
        variable_map=VariableMap(entries),
        name=NAME,
        attributes={},
        years=years,
        frequencies=("mon", "yr"),
        out=out / NAME.text,
        variables=tuple(entries),
    )


def test_killed_at_random_moments_it_goes_on_to_the_same_store_and_report(tmp_path: Path) -> None:
    for out in ("whole", "killed"):
        (tmp_path / out).mkdir()
    here = Path(__file__).resolve()
    paths = [str(here.parent), str(here.parent.parent / "support")]
    code = KILLS.format(paths=paths, top=str(tmp_path), seed=1, kills=5)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    # What was recorded is never made again, until all is there. In "mon" three variables are made
    # of each other: they are when the last of them is recorded.
    for part in (tmp_path / "log").read_text().split("end\n")[:-1]:
        done = set()
        for line in part.splitlines():
            what, *key = line.split(" ")
            assert what != "fill" or tuple(key) not in done, line
            if what == "record":
                group, name, start = key
                together = ("gpp", "reco", "nep") if (group, name) == ("mon", "nep") else (name,)
                alone = group == "yr" or name in ("lai", "nep")
                done |= {(group, n, start) for n in together if alone}


def test_in_threads_the_store_and_the_report_are_the_same(tmp_path: Path) -> None:
    files, entries = mixed(tmp_path)
    reports = [
        what_can_be_had(tmp_path / spread.__name__, files, entries, task_map=spread)
        for spread in (one_by_one, in_threads)
    ]
    assert reports[0] == reports[1]
    one, other = (contents(tmp_path / f.__name__ / NAME.text) for f in (one_by_one, in_threads))
    assert one == other


def test_the_progress_says_what_and_how_fast_and_goes_on_after_an_interruption(
    tmp_path: Path,
) -> None:
    said: list[tuple[str, float]] = []

    def stop_in_the_middle(text: str, share: float) -> None:
        said.append((text, share))
        if len(said) == 2:
            raise KeyboardInterrupt

    files, entries = mixed(tmp_path, good=True)
    with pytest.raises(KeyboardInterrupt):
        what_can_be_had(tmp_path, files, entries, progress=stop_in_the_middle)
    what_can_be_had(tmp_path, files, entries, progress=lambda *text: said.append(text))
    assert [share for _, share in said] == [0.0, 0.5, 0.0, 1.0, 1.0]
    assert [text.split(" ")[:2] for text, _ in said[1:4:2]] == [["mon", "gpp"], ["yr", "cSoil"]]
    assert all(text.endswith(" MB/s") for text, _ in said[1:4:2])


def test_a_file_that_changes_after_an_interruption_starts_the_store_over(tmp_path: Path) -> None:
    class StopHereError(Exception):
        pass

    def interrupt(text: str, _share: float) -> None:
        if "gpp" in text:
            raise StopHereError

    files, entries = mixed(tmp_path, good=True)
    with pytest.raises(StopHereError):
        what_can_be_had(tmp_path / "out", files, entries, progress=interrupt)
    assert list((tmp_path / "out").glob(".*.work/done/mon-gpp-0.json"))
    with netCDF4.Dataset(files[0], "a") as nc:
        nc["GPP"][3, 1, 1] = 12.5
    report = what_can_be_had(tmp_path / "out", files, entries)
    assert report["files"][str(files[0])] == sha256(files[0].read_bytes()).hexdigest()
    got = open_store(tmp_path / "out" / NAME.text, "mon")["gpp"].values[3, 2, 1]
    assert got == pytest.approx(12.5e-3 / 86400)


# --- the time axis --------------------------------------------------------------------------------


def test_missing_months_are_listed(tmp_path: Path) -> None:
    gpp = field(0, 20)
    files = [
        write_native(tmp_path / "a.nc", {"GPP": (gpp[:12], CARBON)}, years=(2001, 2001)),
        write_native(
            tmp_path / "b.nc", {"GPP": (gpp[:7], CARBON)}, years=(2002, 2002), months=range(3, 10)
        ),
    ]
    text = problem(tmp_path, files)
    assert "no 2002-01 to 2002-02, 2002-10 to 2002-12 (5 of 24 months)" in text


def test_months_in_two_files_are_refused_with_both_names(tmp_path: Path) -> None:
    gpp = field(0, 20)
    files = [
        write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)}),
        write_native(
            tmp_path / "corrected" / "a.nc", {"GPP": (gpp[:12], CARBON)}, years=(2002, 2002)
        ),
    ]
    text = problem(tmp_path, files)
    assert '"period-twice": ' in text
    assert "2002-01 to 2002-12 again" in text
    assert str(files[0]) in text
    assert str(files[1]) in text


def test_copies_outside_the_wanted_years_do_not_matter(tmp_path: Path) -> None:
    old = field(0, 20, years=(1999, 2000))
    files = [
        write_native(tmp_path / "a.nc", {"GPP": (field(0, 20), CARBON)}),
        write_native(tmp_path / "b.nc", {"GPP": (old, CARBON)}, years=(1999, 2000)),
        write_native(tmp_path / "c.nc", {"GPP": (old, CARBON)}, years=(1999, 2000)),
    ]
    run(tmp_path, files)


def test_annual_output_goes_to_the_annual_group_only(tmp_path: Path) -> None:
    soil = field(5, 50, per_year=1)
    files = [
        write_native(tmp_path / "g.nc", {"GPP": (field(0, 20), CARBON)}),
        write_native(tmp_path / "s.nc", {"Cs": (soil, {"units": "kgC m-2"})}, annual=True),
    ]
    entries = {**GPP, "cSoil": VariableSource(source="Cs")}
    run(tmp_path, files, entries)
    assert "cSoil" not in open_store(tmp_path / NAME.text, "mon")
    annual = open_store(tmp_path / NAME.text, "yr")
    np.testing.assert_allclose(annual["cSoil"].values, ascending(soil), rtol=1e-6)
    assert set(annual.data_vars) == {"gpp", "cSoil"}
    text = problem(tmp_path / "x", files, entries, frequencies=("mon",))
    assert '"annual-only": ' in text
    assert "annual values only" in text


def test_one_file_a_year_with_one_stamp_each_is_annual(tmp_path: Path) -> None:
    soil = field(5, 50, per_year=1)
    files = [
        write_native(
            tmp_path / f"{year}.nc",
            {"Cs": (soil[i : i + 1], {"units": "kgC m-2"})},
            years=(year, year),
            annual=True,
        )
        for i, year in enumerate((2001, 2002))
    ]
    run(tmp_path, files, {"cSoil": VariableSource(source="Cs")})
    annual = open_store(tmp_path / NAME.text, "yr")
    np.testing.assert_allclose(annual["cSoil"].values, ascending(soil), rtol=1e-6)


def test_monthly_and_annual_sources_are_never_mixed(tmp_path: Path) -> None:
    files = [
        write_native(tmp_path / "g.nc", {"L": (field(1, 2), {"units": "kgC m-2"})}),
        write_native(
            tmp_path / "s.nc", {"S": (field(1, 9, per_year=1), {"units": "kgC m-2"})}, annual=True
        ),
    ]
    entries = {
        "cLeaf": VariableSource(source="L"),
        "cStem": VariableSource(source="S"),
        "cLiveBioAbove": VariableSource(derive="cLeaf + cStem"),
    }
    assert "a mixture: cLeaf (mon), cStem (yr)" in problem(tmp_path, files, entries)


def test_a_calendar_that_contradicts_the_map_is_refused_and_a_missing_one_taken_from_it(
    tmp_path: Path,
) -> None:
    gpp = field(0, 20)
    stated = write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)}, calendar="standard")
    assert "'noleap', as the variable map declares" in problem(
        tmp_path, [stated], calendar="noleap"
    )
    silent = write_native(tmp_path / "b.nc", {"GPP": (gpp, CARBON)}, say_calendar=False)
    report = run(tmp_path, [silent], calendar="noleap")
    assert report["calendar"] == "noleap"
    assert "taken as noleap" in report["variables"]["gpp"]["fixes"]["calendar-declared"]


# --- what is refused, and the cause it names ------------------------------------------------------


def test_units_of_map_and_file_must_agree(tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.nc", {"GPP": (field(0, 20), {"units": "gC m-2 month-1"})})
    entries = {"gpp": VariableSource(source="GPP", units="gC m-2 day-1")}
    text = problem(tmp_path, [path], entries)
    assert "'gC m-2 month-1'" in text
    assert "'gC m-2 day-1'" in text
    path = write_native(tmp_path / "b.nc", {"GPP": (field(0, 20), {})})
    run(tmp_path, [path], entries)
    text = problem(tmp_path / "x", [path])
    assert "no units" in text


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1e3, "1000: g for kg?"),
        (86400.0, "86400: per day"),
        (30.4 * 86400, "2.6e6: per month"),
        (-1.0, "-1: the opposite sign?"),
        (1e-3, "1/1000: kg for g?"),
        (1e25, "No usual factor explains it"),
    ],
)
def test_an_implausible_variable_is_refused_with_the_likely_cause(
    tmp_path: Path, factor: float, words: str
) -> None:
    path = write_native(tmp_path / "a.nc", {"GPP": (field(0, 20) * factor, CARBON)})
    text = problem(tmp_path, [path])
    assert "wanted values within 0 to 3e-07 kg m-2 s-1" in text
    assert words in text


def test_celsius_for_kelvin_is_named(tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.nc", {"T": (field(-20, 30), {"units": "K"})})
    text = problem(tmp_path, [path], {"ts": VariableSource(source="T")})
    assert "degrees Celsius for K?" in text


def test_one_absurd_value_is_enough_but_a_few_large_ones_are_not(tmp_path: Path) -> None:
    years = (1981, 2030)
    many = field(0, 20, years=years)
    many[3, 1, 1] = 40.0
    path = write_native(tmp_path / "a.nc", {"GPP": (many, CARBON)}, years=years)
    report = run(tmp_path, [path], years=years, frequencies=("mon",))
    assert report["variables"]["gpp"]["outside_range"] == 1
    many[3, 1, 1] = 1.8e31
    path = write_native(tmp_path / "b.nc", {"GPP": (many, CARBON)}, years=years)
    text = problem(tmp_path / "x", [path], years=years, frequencies=("mon",))
    assert "Damaged data, or a fill value" in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (0.0, '"constant": '),
        (np.nan, '"no-values": '),
        (np.inf, '"infinite": '),
    ],
    ids=["constant", "all missing", "infinite"],
)
def test_a_field_that_says_nothing_is_refused(tmp_path: Path, values: float, words: str) -> None:
    gpp = np.full((24, 4, 6), values)
    gpp[(slice(None), *SEA)] = np.nan
    path = write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)})
    assert words in problem(tmp_path, [path])


def test_a_fill_value_without_attribute_is_recognised_and_recorded(tmp_path: Path) -> None:
    gpp = field(0, 20)
    gpp[:, 3, :] = np.nan
    want = ascending(gpp) * 1e-3 / 86400
    path = write_native(
        tmp_path / "a.nc", {"GPP": (np.nan_to_num(gpp, nan=-99999.0), CARBON)}, fill=None
    )
    report = run(tmp_path, [path])
    np.testing.assert_allclose(
        open_store(tmp_path / NAME.text, "mon")["gpp"].values, want, rtol=1e-6
    )
    assert "-99999 without attribute" in report["variables"]["gpp"]["fixes"]["fill"]


def test_values_over_all_the_oceans_need_a_land_fraction(tmp_path: Path) -> None:
    path = write_native(
        tmp_path / "a.nc", {"T": (np.nan_to_num(field(250, 300), nan=280), {"units": "K"})}
    )
    text = problem(tmp_path, [path], {"ts": VariableSource(source="T")})
    assert '"land-unknown": ' in text
    assert "values over land and sea alike" in text


def test_every_problem_of_every_variable_is_told_at_once(tmp_path: Path) -> None:
    path = write_native(
        tmp_path / "a.nc",
        {"GPP": (field(0, 20), CARBON), "T": (field(250, 300), {"units": "furlong"})},
    )
    entries = {
        **GPP,
        "ts": VariableSource(source="T"),
        "lai": VariableSource(source="LAI"),
        "hfls": VariableSource(derive="evspsbl * 2.501e6"),
        "evspsbl": VariableSource(source="ET"),
    }
    with pytest.raises(DataError) as caught:
        run(tmp_path, [path], entries)
    text = str(caught.value)
    for words in (
        "furlong",
        ": LAI: found no file",
        ": ET: found no file",
        "no evspsbl, which it is derived",
    ):
        assert words in text
    assert len(caught.value.problems) == 4


def test_broken_files_are_named_not_traced(tmp_path: Path) -> None:
    good = write_native(tmp_path / "a.nc", {"GPP": (field(0, 20), CARBON)})
    broken = tmp_path / "b.nc"
    broken.write_bytes(good.read_bytes()[:3000])
    text = problem(tmp_path, [good, broken])
    assert f'": {broken}: ' in text
    assert "cannot be opened" in text
    packed = tmp_path / "c.nc.gz"
    packed.write_bytes(b"x")
    assert "Unpack it first" in problem(tmp_path, [good, packed])


def test_files_on_another_grid_are_refused(tmp_path: Path) -> None:
    gpp = field(0, 20)
    files = [
        write_native(tmp_path / "a.nc", {"GPP": (gpp[:12], CARBON)}, years=(2001, 2001)),
        write_native(
            tmp_path / "b.nc", {"GPP": (gpp[:12], CARBON)}, years=(2002, 2002), lon=LON + 10
        ),
    ]
    text = problem(tmp_path, files)
    assert '"grid-differs": ' in text
    assert "another grid, 4 x 6 cells, -90 to 90 north, -20 to 340 east" in text


def test_a_scalar_named_like_a_dimension_does_not_stop_the_reading(tmp_path: Path) -> None:
    gpp = field(0, 20)
    path = tmp_path / "template.nc"
    source = write_native(tmp_path / "a.nc", {"GPP": (gpp, CARBON)})
    with netCDF4.Dataset(source) as old, netCDF4.Dataset(path, "w") as nc:
        for name, dimension in old.dimensions.items():
            nc.createDimension(name, len(dimension))
        for name, var in old.variables.items():
            new = {"lat": "latitude", "lon": "longitude"}.get(name, name)
            out = nc.createVariable(new, "f8", var.dimensions)
            out.setncatts({k: var.getncattr(k) for k in var.ncattrs() if k != "_FillValue"})
            out[:] = var[:].filled(np.nan) if name == "GPP" else var[:]
        nc.createVariable("lat", "f8", ())[...] = 55.49
        nc.createVariable("lon", "f8", ())[...] = 11.64
    report = run(tmp_path, [path])
    assert "scalar variables" in report["variables"]["gpp"]["fixes"]["file"]


def test_the_synthetic_label_of_the_files_reaches_the_store(tmp_path: Path) -> None:
    path = write_native(
        tmp_path / "a.nc",
        {"GPP": (field(0, 20), CARBON)},
        attributes={"comment": "Synthetic: made for a test."},
    )
    run(tmp_path, [path])
    assert store_info(tmp_path / NAME.text).synthetic == "Synthetic: made for a test."


def test_without_variables_the_map_must_speak_of_everything_requested(tmp_path: Path) -> None:
    path = write_native(tmp_path / "a.nc", {"GPP": (field(0, 20), CARBON)})
    with pytest.raises(DataError, match="none for nep, hfls"):
        harmonize_run(
            [path],
            variable_map=VariableMap(GPP),
            name=NAME,
            attributes={},
            years=YEARS,
            frequencies=("mon",),
            out=tmp_path / NAME.text,
        )
