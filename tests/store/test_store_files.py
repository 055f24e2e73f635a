"""Stores: names, what a finished one holds, and that nothing half-done is ever taken for one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from grid_cases import gaussian, pole_centred
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.errors import DataError, UsageError
from callmip_global.grid import Grid, grid_of, standard_grid
from callmip_global.store import (
    ArraySpec,
    StoreName,
    StoreWriter,
    Template,
    chunking,
    create_store,
    global_total,
    grid_variables,
    is_per_land,
    open_store,
    protocol_template,
    store_attributes,
    store_digest,
    store_info,
    value_fraction,
)
from callmip_global.timeaxis import decode_months, decode_years, month_axis

NAME = StoreName("DEMO", "v1.0", "S3", "native", "Posterior", 7)
PER_LAND = {"units": "kg m-2 s-1", "cell_methods": "area: mean where land time: mean"}
PER_CELL = {"units": "K", "cell_methods": "area: mean time: mean"}
YEARS = (2001, 2006)


def land_of(grid: Grid) -> np.ndarray:
    rng = np.random.default_rng(11)
    return np.where(rng.random(grid.shape) < 0.5, 0.0, rng.random(grid.shape))


def templates(grid: Grid, land: np.ndarray) -> dict[str, Template]:
    attributes = store_attributes(NAME, {"institution": "somewhere"}, ["mon", "yr"])
    return {
        frequency: protocol_template(
            grid=grid,
            axis=month_axis(YEARS, "noleap", frequency),
            variables={"gpp": PER_LAND, "ts": PER_CELL},
            land_fraction=land,
            attributes=attributes,
        )
        for frequency in ("mon", "yr")
    }


def begin(out: Path, grid: Grid, mark: str = "a") -> StoreWriter:
    attributes = store_attributes(NAME, {"scenario": 1}, ["mon", "yr"])
    return create_store(
        out, templates(grid, land_of(grid)), fingerprint={"inputs": mark}, attributes=attributes
    )


def values_of(grid: Grid, name: str, region: slice) -> np.ndarray:
    """float32 values that depend on the variable, the time step and the cell; NaN at sea."""
    steps = np.arange(region.start, region.stop)[:, None, None]
    cells = np.arange(grid.shape[0] * grid.shape[1]).reshape(grid.shape)
    values = (np.sin(cells + steps) + (300.0 if name == "ts" else 2.0)).astype(np.float32)
    return np.where(land_of(grid) > 0, values, np.float32(np.nan))


def fill(writer: StoreWriter, grid: Grid) -> None:
    for group in writer.templates:
        for name in ("gpp", "ts"):
            for region in writer.regions(group, name):
                if not writer.is_done(group, name, region):
                    writer.write(group, name, region, values_of(grid, name, region))


def finished(out: Path, grid: Grid, mark: str = "a") -> Path:
    writer = begin(out, grid, mark)
    fill(writer, grid)
    return writer.publish({"provenance": json.dumps({"made_by": "test"})})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("stores") / NAME.text, gaussian(96, 192))


# --- names ---


words = st.text("ABCabc019-+", min_size=1, max_size=8).filter(lambda t: t[0] not in "-+")


@given(
    st.builds(
        StoreName,
        words,
        st.one_of(words, st.just("v2.1"), st.just("trunk_2024")),
        st.sampled_from(["S0", "S3", "CO2"]),
        st.sampled_from(["native", "0.5deg", "1deg", "2deg"]),
        st.sampled_from(["Prior", "Posterior"]),
        st.none() | st.integers(0, 2000),
    )
)
def test_names_of_stores_are_read_back(name: StoreName) -> None:
    assert StoreName.parse(name.text) == name
    assert StoreName.parse(f"/some/where/{name.text}") == name


def test_a_name_is_spelled_as_the_design_says() -> None:
    assert NAME.text == "DEMO.v1.0_S3_native_Posterior_m007.zarr"
    plain = StoreName("CABLE-POP", "r9", "CO2", "0.5deg", "Prior")
    assert plain.text == "CABLE-POP.r9_CO2_0.5deg_Prior.zarr"


@pytest.mark.parametrize("text", ["x.zarr", "A.v1_S3_3deg_Prior.zarr", "A_S3_1deg_Prior.zarr", ""])
def test_other_names_are_refused_with_the_pattern(text: str) -> None:
    with pytest.raises(UsageError, match=r"<model>\.<version>_<simulation>_<grid>"):
        StoreName.parse(text)


def test_parts_that_would_not_be_read_back_are_refused() -> None:
    with pytest.raises(UsageError, match="A model's name has no dot"):
        StoreName("A.B", "v1", "S3_x", "1deg", "Prior")


# --- what a store holds ---


def test_a_store_opens_in_plain_xarray_with_cf_metadata(store: Path) -> None:
    with xr.open_zarr(store, group="mon") as ds:
        gpp = ds["gpp"]
        assert gpp.dims == ("time", "lat", "lon")
        assert gpp.dtype == np.float32
        assert gpp.attrs == {**PER_LAND, "cell_measures": "area: areacella"}
        for axis, standard, letter in (
            ("time", "time", "T"),
            ("lat", "latitude", "Y"),
            ("lon", "longitude", "X"),
        ):
            assert ds[axis].attrs["standard_name"] == standard
            assert ds[axis].attrs["axis"] == letter
            bounds = ds[axis].attrs.get("bounds", f"{axis}_bnds")
            assert ds[bounds].shape == (ds.sizes[axis], 2)
        assert ds["lat"].dtype == ds["lon"].dtype == np.float64
        assert ds["time"].encoding["units"] == "days since 1850-01-01"
        assert ds["time"].encoding["calendar"] == "noleap"
        assert ds["areacella"].attrs["units"] == "m2"
        assert ds["sftlf"].attrs["units"] == "%"
        assert ds.attrs["Conventions"] == "CF-1.8"
        assert np.all(np.diff(ds["lat"]) > 0)


def test_values_come_back_as_they_were_written(store: Path) -> None:
    grid = gaussian(96, 192)
    for frequency, steps in (("mon", 72), ("yr", 6)):
        ds = open_store(store, frequency)
        for name in ("gpp", "ts"):
            np.testing.assert_array_equal(ds[name], values_of(grid, name, slice(0, steps)))


def test_grid_and_time_are_read_back_from_a_store(store: Path) -> None:
    ds = open_store(store, "mon")
    assert grid_of(ds, "store").grid == gaussian(96, 192)
    assert decode_months(ds, "store") == month_axis(YEARS, "noleap")
    assert decode_years(open_store(store, "yr"), "store") == month_axis(YEARS, "noleap", "yr")


def test_a_store_says_who_it_is(store: Path) -> None:
    info = store_info(store)
    assert info.name == NAME
    assert info.frequencies == ("mon", "yr")
    assert info.scenario == 1
    assert info.provenance == {"made_by": "test"}
    assert info.synthetic == ""
    assert info.attributes["frequencies"] == "mon yr"


def test_missing_cells_are_nan_by_both_fill_values(store: Path) -> None:
    array = zarr.open_array(store, path="mon/gpp", mode="r")
    assert np.isnan(array.fill_value)
    ds = open_store(store, "mon")
    assert np.isnan(ds["gpp"].encoding["_FillValue"])
    np.testing.assert_array_equal(np.isnan(ds["gpp"][0]), land_of(gaussian(96, 192)) == 0)


def test_metadata_are_consolidated_and_files_few(store: Path) -> None:
    assert zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None
    shards = [p for p in (store / "mon" / "gpp" / "c").rglob("*") if p.is_file()]
    assert len(shards) == 2  # 72 months: one shard of 60, one of 12


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    out = finished(tmp_path / NAME.text, standard_grid("2deg"))
    shard = max(
        (p for p in (out / "mon" / "gpp" / "c").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(Exception, match=r"(?i)crc|checksum"):
        open_store(out, "mon")["gpp"].values  # noqa: B018


@pytest.mark.parametrize(
    ("shape", "chunk", "shard"),
    [
        ((240, 180, 360), (60, 90, 90), (60, 180, 360)),
        ((240, 360, 720), (60, 90, 90), (60, 360, 720)),
        ((20, 90, 180), (20, 90, 90), (20, 90, 180)),
        ((240, 96, 192), (60, 96, 96), (60, 96, 192)),
        ((240, 145, 192), (60, 90, 96), (60, 180, 192)),
        ((240, 1800, 3600), (10, 90, 90), (10, 1800, 3600)),
    ],
)
def test_chunks_are_small_and_shards_whole_maps(shape, chunk, shard) -> None:
    assert chunking(("time", "lat", "lon"), shape) == (chunk, shard)


def test_grids_that_no_chunk_divides_are_written_whole(tmp_path: Path) -> None:
    grid = pole_centred(145, 191)
    out = finished(tmp_path / NAME.text, grid)
    got = open_store(out, "mon")["ts"]
    np.testing.assert_array_equal(got, values_of(grid, "ts", slice(0, 72)))


# --- integrals ---


def test_the_global_total_counts_land_for_land_and_cells_for_cells(store: Path) -> None:
    grid, land = gaussian(96, 192), land_of(gaussian(96, 192))
    ds = open_store(store, "mon")
    assert is_per_land(ds["gpp"])
    assert not is_per_land(ds["ts"])
    for name, weight in (("gpp", land), ("ts", (land > 0) * 1.0)):
        values = np.nan_to_num(values_of(grid, name, slice(0, 72)).astype(np.float64))
        expected = (values * grid.cell_area * weight).sum(axis=(1, 2))
        np.testing.assert_allclose(global_total(ds, name), expected, rtol=1e-13)


def test_a_fraction_of_its_own_goes_before_the_land_fraction(store: Path) -> None:
    ds = open_store(store, "mon")
    half = ds["areacella"] * 0.0 + 0.5
    own = ds.assign(valid_fraction_gpp=half)
    assert float(value_fraction(own, "gpp").max()) == 0.5
    assert float(value_fraction(own, "ts").min()) == 1.0
    changing = half * xr.ones_like(ds["time"], dtype=float)
    timed = ds.assign(valid_fraction_gpp=changing.transpose("time", "lat", "lon"))
    np.testing.assert_allclose(global_total(timed, "gpp"), global_total(own, "gpp"), rtol=1e-13)


# --- nothing half-done ---


def test_a_region_that_is_not_one_shard_is_refused(tmp_path: Path) -> None:
    grid = standard_grid("2deg")
    writer = begin(tmp_path / NAME.text, grid)
    assert writer.regions("mon", "gpp") == (slice(0, 60), slice(60, 72))
    for region in (slice(0, 12), slice(12, 72), slice(60, 71)):
        values = values_of(grid, "gpp", region)
        with pytest.raises(ValueError, match=r"is not one shard; shards are 0:60, 60:72"):
            writer.write("mon", "gpp", region, values)
    with pytest.raises(ValueError, match="values are"):
        writer.write("mon", "gpp", slice(0, 60), values_of(grid, "gpp", slice(0, 59)))


def test_a_store_with_a_region_missing_is_not_published(tmp_path: Path) -> None:
    out = tmp_path / NAME.text
    writer = begin(out, standard_grid("2deg"))
    writer.write("mon", "gpp", slice(0, 60), values_of(standard_grid("2deg"), "gpp", slice(0, 60)))
    with pytest.raises(DataError, match=r"5 regions never written, first mon gpp 60:72"):
        writer.publish()
    assert not out.exists()


def test_an_interrupted_store_goes_on_where_it_was(tmp_path: Path) -> None:
    grid = standard_grid("2deg")
    writer = begin(tmp_path / NAME.text, grid)
    writer.write("mon", "gpp", slice(0, 60), values_of(grid, "gpp", slice(0, 60)), {"sum": 1.5})
    again = begin(tmp_path / NAME.text, grid)
    assert again.is_done("mon", "gpp", slice(0, 60))
    assert again.note("mon", "gpp", slice(0, 60)) == {"sum": 1.5}
    assert not again.is_done("mon", "gpp", slice(60, 72))
    other = begin(tmp_path / NAME.text, grid, mark="other inputs")
    assert not other.is_done("mon", "gpp", slice(0, 60))


def test_an_older_store_is_exchanged_and_nothing_is_left_behind(tmp_path: Path) -> None:
    out = finished(tmp_path / NAME.text, standard_grid("2deg"), "old")
    before = store_digest(out)
    finished(out, standard_grid("1deg"), "new")
    assert store_digest(out) != before
    assert open_store(out, "mon").sizes["lat"] == 180
    assert [p.name for p in tmp_path.iterdir()] == [NAME.text]


def test_a_file_system_without_exchange_still_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / NAME.text, standard_grid("2deg"), "old")
    monkeypatch.setattr("callmip_global.store.exchange", lambda a, b: False)
    out = finished(tmp_path / NAME.text, standard_grid("1deg"), "new")
    assert open_store(out, "mon").sizes["lat"] == 180
    assert [p.name for p in tmp_path.iterdir()] == [NAME.text]


def test_a_rerun_after_a_kill_behind_the_rename_does_not_undo_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished(tmp_path / NAME.text, standard_grid("2deg"), "old")
    writer = begin(out, standard_grid("1deg"), "new")
    fill(writer, standard_grid("1deg"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("callmip_global.store.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.publish()
    assert open_store(out, "mon").sizes["lat"] == 180
    finished(out, standard_grid("1deg"), "new")
    assert open_store(out, "mon").sizes["lat"] == 180


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from test_store_files import begin, fill, values_of, standard_grid
import callmip_global.store as store
grid = standard_grid("2deg")
writer = begin(Path({out!r}), grid)
fill_slowly = store.StoreWriter.write
def slow(self, *args, **kwargs):
    fill_slowly(self, *args, **kwargs)
    print("written", flush=True)
    time.sleep(0.05)
store.StoreWriter.write = slow
fill(writer, grid)
print("all", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("after", [1, 2, 5])
def test_killed_without_warning_and_run_again_the_store_is_the_same(
    after: int, tmp_path: Path
) -> None:
    grid, out = standard_grid("2deg"), tmp_path / NAME.text
    here = Path(__file__).resolve()
    paths = [str(here.parent), str(here.parent.parent / "support")]
    code = textwrap.dedent(CHILD).format(paths=paths, out=str(out))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(after):
        assert child.stdout.readline() == "written\n"
    time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not out.exists()

    writer = begin(out, grid)
    done = [
        (group, name, region)
        for group in writer.templates
        for name in ("gpp", "ts")
        for region in writer.regions(group, name)
        if writer.is_done(group, name, region)
    ]
    assert len(done) >= after
    finished(out, grid)
    whole = finished(tmp_path / "elsewhere.zarr", grid)
    assert contents(out) == contents(whole)


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


# --- misuse and flat stores ---


def test_what_is_no_store_or_has_no_such_group_is_said(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Zarr v3 store"):
        open_store(tmp_path, "mon")
    flat = create_store(
        tmp_path / "flat.zarr",
        {
            "": Template(
                xr.Dataset(coords=grid_variables(standard_grid("2deg"))),
                {"x": ArraySpec(("lat", "lon"), {"units": "1", "count": np.int64(3)}, "float64")},
            )
        },
        fingerprint={},
    )
    (region,) = flat.regions("", "x")
    flat.write("", "x", region, np.full((90, 180), 1.25))
    flat.publish()
    with pytest.raises(DataError, match="a flat store"):
        open_store(tmp_path / "flat.zarr", "mon")
    ds = open_store(tmp_path / "flat.zarr")
    assert ds["x"].dtype == np.float64
    assert float(ds["x"].mean()) == 1.25
    assert ds["x"].attrs["count"] == 3
    info = store_info(tmp_path / "flat.zarr")
    assert (info.name, info.frequencies) == (None, ())


@pytest.mark.parametrize("land", [np.full((90, 180), 50.0), np.full((90, 180), np.nan)])
def test_a_land_fraction_in_percent_or_with_gaps_is_refused(land: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"within \[0, 1\] everywhere"):
        templates(standard_grid("2deg"), land)
