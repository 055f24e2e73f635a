"""Protocol files: names, attributes, units, bounds; readable by xarray, ncdump and cdo."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

from callmip_global.errors import DataError, UsageError
from callmip_global.export import export_upload
from callmip_global.grid import standard_grid
from callmip_global.store import (
    ArraySpec,
    StoreName,
    create_store,
    global_total,
    open_store,
    protocol_template,
    store_attributes,
)
from callmip_global.timeaxis import annual_mean, month_axis
from callmip_global.variables import variable_table

YEARS = (2020, 2022)


def make_store(
    folder: Path,
    *,
    stage: str = "Posterior",
    member: int | None = None,
    simulation: str = "S3",
    variables: tuple[str, ...] = ("gpp", "mrsos", "evspsbl"),
    grid: str = "2deg",
    **attributes: str,
) -> Path:
    """A store with random values, the sea missing, both frequencies."""
    name = StoreName("M", "v1", simulation, grid, stage, member)  # type: ignore[arg-type]
    cells = standard_grid("2deg")
    land = np.zeros(cells.shape)
    land[20:40, 60:90] = 0.75
    root = store_attributes(name, {"institution": "Here", **attributes}, ("mon", "yr"))
    axes = {f: month_axis(YEARS, "noleap", f) for f in ("mon", "yr")}  # type: ignore[arg-type]
    templates = {
        frequency: protocol_template(
            grid=cells,
            axis=axis,
            variables={v: variable_table()[v].cf_attributes() for v in variables},
            land_fraction=land,
            attributes=root,
        )
        for frequency, axis in axes.items()
    }
    writer = create_store(folder / name.text, templates, fingerprint={}, attributes=root)
    rng = np.random.default_rng(1)
    for variable in variables:
        months = rng.uniform(0, variable_table()[variable].valid_range[1], (36, *cells.shape))
        months = np.where(land > 0, months, np.nan).astype(np.float32)
        (region,) = writer.regions("mon", variable)
        writer.write("mon", variable, region, months)
        (region,) = writer.regions("yr", variable)
        writer.write("yr", variable, region, annual_mean(months, axes["mon"].lengths_days))
    return writer.publish()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("export")
    store = make_store(folder, scenario="1", contact="me@here")
    return store, export_upload([store], out=folder / "upload", years=2)


def test_one_file_per_frequency_in_a_folder_per_simulation(
    exported: tuple[Path, list[Path]],
) -> None:
    store, files = exported
    assert [str(f.relative_to(store.parent / "upload")) for f in files] == [
        "S3/M.v1_global_2deg_mon_2021-2022_Posterior.nc",
        "S3/M.v1_global_2deg_yr_2021-2022_Posterior.nc",
    ]
    assert sorted(p.name for p in files[0].parent.iterdir()) == [f.name for f in files]


def test_values_are_those_of_the_store_with_cmips_fill_value(
    exported: tuple[Path, list[Path]],
) -> None:
    store, files = exported
    source = open_store(store, "mon").isel(time=slice(12, None))
    with xr.open_dataset(files[0]) as ds:
        np.testing.assert_array_equal(ds["gpp"].values, source["gpp"].values)
        total = global_total(ds, "gpp")
    np.testing.assert_allclose(total, global_total(source, "gpp"), rtol=1e-12)
    with netCDF4.Dataset(files[0]) as nc:
        nc.set_auto_mask(False)
        assert nc["gpp"][0, 0, 0] == np.float32(1e20)
        assert nc["gpp"]._FillValue == nc["gpp"].missing_value == np.float32(1e20)


def test_a_fraction_that_changes_goes_along_so_that_totals_are_kept(tmp_path: Path) -> None:
    cells, axis = standard_grid("2deg"), month_axis((2022, 2022), "noleap")
    name = StoreName("M", "v1", "S3", "2deg", "Prior")
    root = store_attributes(name, {}, ("mon",))
    template = protocol_template(
        grid=cells,
        axis=axis,
        variables={"gpp": variable_table()["gpp"].cf_attributes()},
        land_fraction=np.ones(cells.shape),
        attributes=root,
        extra={"valid_fraction_gpp": ArraySpec(("time", "lat", "lon"))},
    )
    writer = create_store(tmp_path / name.text, {"mon": template}, fingerprint={}, attributes=root)
    rng = np.random.default_rng(2)
    for array in ("gpp", "valid_fraction_gpp"):
        (region,) = writer.regions("mon", array)
        writer.write("mon", array, region, rng.random((12, *cells.shape)).astype(np.float32))
    store = writer.publish()
    (path,) = export_upload([store], out=tmp_path / "upload")
    with xr.open_dataset(path) as ds:
        assert ds["gpp"].attrs["ancillary_variables"] == "valid_fraction_gpp"
        total = global_total(ds, "gpp")
    np.testing.assert_allclose(total, global_total(open_store(store, "mon"), "gpp"), rtol=1e-12)


def test_units_names_and_attributes_are_the_protocols(exported: tuple[Path, list[Path]]) -> None:
    _, files = exported
    with netCDF4.Dataset(files[0]) as nc:
        assert "evspsbl" not in nc.variables, "the protocol does not ask for it"
        assert nc["gpp"].units == "kgC m-2 s-1"
        assert nc["gpp"].cell_methods == "area: mean where land time: mean"
        assert nc["gpp"].cell_measures == "area: areacella"
        assert nc["sftlf"].units == "%"
        attributes = {name: nc.getncattr(name) for name in nc.ncattrs()}
    wanted = {
        "Conventions": "CF-1.8",
        "Model": "M.v1",
        "CalLMIP_Phase": "Phase 1",
        "Calibration_Scenario": "Scen1",
        "Calibration_stage": "Posterior",
        "simulation": "S3",
        "institution": "Here",
    }
    assert {k: attributes[k] for k in wanted} == wanted
    assert {"title", "source", "history", "references", "Cal_Val"} <= set(attributes) | {"source"}


def test_times_have_bounds_and_a_soil_layer_its_depth(exported: tuple[Path, list[Path]]) -> None:
    _, files = exported
    with netCDF4.Dataset(files[0]) as nc:
        assert nc["time"].units == "days since 1850-01-01"
        assert nc["time"].calendar == "noleap"
        lengths = np.diff(nc["time_bnds"][:], axis=1)[:, 0]
        assert lengths.tolist()[:3] == [31.0, 28.0, 31.0]
        assert nc["lat_bnds"][0].tolist() == [-90.0, -88.0]
        assert nc["mrsos"].coordinates == "depth"
        assert nc["depth_bnds"][:].tolist() == [0.0, 0.1]
        assert float(nc["depth"][...]) == pytest.approx(0.05)
        assert nc["time"].shape == (24,)
    with netCDF4.Dataset(files[1]) as nc:
        assert np.diff(nc["time_bnds"][:], axis=1)[:, 0].tolist() == [365.0, 365.0]


@pytest.mark.parametrize(
    "tool", [["ncdump", "-h"], ["cdo", "-s", "sinfon"], ["cdo", "-s", "griddes"]]
)
def test_other_tools_read_the_files(exported: tuple[Path, list[Path]], tool: list[str]) -> None:
    if shutil.which(tool[0]) is None:
        pytest.skip(f"no {tool[0]} on this machine")
    result = subprocess.run([*tool, str(exported[1][0])], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr.lower()
    wanted = {"ncdump": "gpp:units", "cdo": "lonlat"}[tool[0]]
    assert wanted in result.stdout


def test_cdos_global_mean_is_ours(exported: tuple[Path, list[Path]]) -> None:
    """cdo weights with the areas of the file's own bounds: an independent check of both."""
    if shutil.which("cdo") is None:
        pytest.skip("no cdo on this machine")
    _, files = exported
    command = ["cdo", "-s", "outputf,%.9g", "-fldmean", "-selname,gpp", str(files[0])]
    theirs = [float(t) for t in subprocess.check_output(command, text=True).split()]
    with xr.open_dataset(files[0]) as ds:
        weights = ds["areacella"].where(ds["gpp"].isel(time=0).notnull())
        ours = (ds["gpp"] * weights).sum(("lat", "lon")) / weights.sum()
        np.testing.assert_allclose(theirs, ours.values, rtol=1e-5)


def test_members_and_stages_never_share_a_file(tmp_path: Path) -> None:
    stores = [
        make_store(tmp_path, stage="Prior", variables=("gpp",)),
        make_store(tmp_path, variables=("gpp",)),
        *(make_store(tmp_path, member=m, variables=("gpp",)) for m in (1, 2)),
        make_store(tmp_path, simulation="CO2", variables=("gpp",)),
    ]
    files = export_upload(stores, out=tmp_path / "out")
    assert len(set(files)) == 10
    assert any(f.name == "M.v1_global_2deg_mon_2020-2022_Posterior_m002.nc" for f in files)
    assert any(f.parent.name == "CO2" for f in files)
    with netCDF4.Dataset(files[0]) as nc:
        assert nc.Calibration_Scenario == "none"
    copy = tmp_path / "copy" / stores[0].name
    shutil.copytree(stores[0], copy)
    with pytest.raises(UsageError, match="one store per file"):
        export_upload([stores[0], copy], out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_synthetic_stores_say_so_in_title_and_comment(tmp_path: Path) -> None:
    store = make_store(tmp_path, variables=("gpp",), synthetic="Synthetic: a test.")
    files = export_upload([store], out=tmp_path / "out")
    with netCDF4.Dataset(files[0]) as nc:
        assert nc.title.startswith("SYNTHETIC")
        assert nc.comment == "Synthetic: a test."


@pytest.mark.parametrize(
    ("options", "years", "error", "words"),
    [
        ({}, 20, UsageError, "found 3 years (2020 to 2022), wanted 20 years"),
        ({"variables": ("evspsbl",)}, None, DataError, "at least one variable"),
        ({"grid": "native"}, None, UsageError, "the native grid"),
    ],
    ids=["too few years", "nothing asked for", "native grid"],
)
def test_what_cannot_be_handed_in_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, str], years: int | None, error: type, words: str
) -> None:
    store = make_store(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        export_upload([store], out=tmp_path / "out", years=years)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_writing_again_replaces_the_file_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path, variables=("gpp",))
    first = export_upload([store], out=tmp_path / "out")
    before = first[0].read_bytes()
    assert export_upload([store], out=tmp_path / "out") == first
    assert first[0].read_bytes() == before
    assert not list(first[0].parent.glob(".*"))
