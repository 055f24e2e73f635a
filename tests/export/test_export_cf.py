"""CF twins: the metadata that CF tools need, on every file, and what the CF checkers say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from test_export_upload import make_store

from callmip_global.errors import UsageError
from callmip_global.export import export_cf
from callmip_global.store import global_total, open_store
from callmip_global.units import same_units
from callmip_global.variables import requested_variables, variable_table

EVERY = requested_variables()
# cfchecks fetches these tables from the network, unless it is given them.
AREA_TYPES = """<?xml version="1.0"?>
<area_type_table><version_number>10</version_number><date>2020-06-23T00:00:00Z</date>
<last_modified>2020-06-23T00:00:00Z</last_modified><entry id="land"/></area_type_table>"""
REGIONS = """<?xml version="1.0"?>
<standardized_region_list><version_number>4</version_number><date>2018</date>
<last_modified>2018</last_modified><entry id="global"/></standardized_region_list>"""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The twins of a store that holds every variable the protocol asks for."""
    folder = tmp_path_factory.mktemp("twins")
    store = make_store(folder, variables=EVERY, scenario="1", contact="me@here")
    return store, export_cf([store], out=folder / "cf", years=1)


def test_every_variable_and_frequency_has_a_file_named_for_it(
    twins: tuple[Path, list[Path]],
) -> None:
    store, files = twins
    identity = store.name.removesuffix(".zarr")
    assert {f.name for f in files} == {
        f"{name}_{frequency}_{identity}_2022-2022.nc"
        for name in EVERY
        for frequency in ("mon", "yr")
    }
    assert {f.parent.name for f in files} == {"S3"}


def test_every_file_has_the_metadata_that_cf_tools_need(twins: tuple[Path, list[Path]]) -> None:
    for path in twins[1]:
        name = path.name.split("_")[0]
        entry = variable_table()[name]
        with netCDF4.Dataset(path) as nc:
            assert nc.Conventions == "CF-1.8"
            wanted = {"title", "institution", "history", "references", "simulation"}
            wanted |= {"Model", "CalLMIP_Phase", "Calibration_stage"}
            assert wanted <= set(nc.ncattrs())
            variable = nc[name]
            assert variable.dimensions == ("time", "lat", "lon")
            # UDUNITS knows no kgC: the protocol's own spelling is for the upload alone.
            assert variable.units == entry.units
            assert "kgC" not in variable.units
            assert variable.long_name == entry.long_name
            assert getattr(variable, "standard_name", None) == entry.standard_name
            assert variable.cell_methods == entry.cell_methods
            assert variable.cell_measures == "area: areacella"
            assert variable._FillValue == variable.missing_value == np.float32(1e20)
            time = nc["time"]
            assert (time.standard_name, time.axis, time.bounds) == ("time", "T", "time_bnds")
            assert time.units == "days since 1850-01-01"
            assert time.calendar == "noleap"
            for axis, letter, units in (
                ("lat", "Y", "degrees_north"),
                ("lon", "X", "degrees_east"),
            ):
                assert nc[axis].dtype == np.float64
                assert (nc[axis].axis, nc[axis].units) == (letter, units)
                assert nc[nc[axis].bounds].shape == (nc[axis].size, 2)
            assert (nc["areacella"].standard_name, nc["areacella"].units) == ("cell_area", "m2")
            assert nc["areacella"].cell_methods == "area: sum"
            assert nc["sftlf"].standard_name == "land_area_fraction"
            # Bounds take units and calendar from their coordinate; a copy is an error to checkers.
            assert not nc["time_bnds"].ncattrs()


def test_values_and_totals_are_those_of_the_store(twins: tuple[Path, list[Path]]) -> None:
    store, files = twins
    (path,) = [f for f in files if f.name.startswith("gpp_mon")]
    source = open_store(store, "mon").isel(time=slice(24, None))
    with xr.open_dataset(path) as ds:
        assert same_units(ds["gpp"].attrs["units"], source["gpp"].attrs["units"])
        np.testing.assert_array_equal(ds["gpp"].values, source["gpp"].values)
        total = global_total(ds, "gpp")
    np.testing.assert_allclose(total, global_total(source, "gpp"), rtol=1e-12)


def test_two_stores_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = make_store(tmp_path, variables=("gpp",))
    copy = tmp_path / "copy" / store.name
    shutil.copytree(store, copy)
    with pytest.raises(UsageError, match="one store per file"):
        export_cf([store, copy], out=tmp_path / "out")
    with pytest.raises(UsageError, match="wanted 9 years"):
        export_cf([store], out=tmp_path / "out", years=9)
    assert not (tmp_path / "out").exists()


def test_compliance_checker_finds_no_error(twins: tuple[Path, list[Path]]) -> None:
    program = shutil.which("compliance-checker")
    if program is None:
        pytest.skip("no compliance-checker on this machine (pip install compliance-checker)")
    paths = [str(f) for f in twins[1]]
    options = ["--test", "cf:1.8", "--criteria", "strict"]
    result = subprocess.run([program, *options, *paths], capture_output=True, text=True)
    assert result.stdout.count("cf:1.8") >= len(paths), result.stderr
    assert "Errors" not in result.stdout, result.stdout


def test_cfchecks_finds_neither_error_nor_warning(
    twins: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    program = shutil.which("cfchecks")
    tables = (
        [] if program is None else [*Path(program).parent.parent.rglob("cf-standard-name*.xml")]
    )
    if program is None or not tables:
        pytest.skip(
            "no cfchecks, or no table of standard names (pip install cfchecker compliance-checker)"
        )
    (tmp_path / "areas.xml").write_text(AREA_TYPES)
    (tmp_path / "regions.xml").write_text(REGIONS)
    options = ["-s", str(tables[0]), "-a", "areas.xml", "-r", "regions.xml", "-v", "1.8"]
    paths = [str(f) for f in twins[1]]
    result = subprocess.run(
        [program, *options, *paths], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.stdout.count("ERRORS detected: 0") == len(paths), result.stdout
    assert result.stdout.count("WARNINGS given: 0") == len(paths), result.stdout
