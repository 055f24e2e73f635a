"""Chunks read outside the HDF5 library: the same numbers, by any number of threads, or an error."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from callmip_global import hdf5
from callmip_global.errors import DataError
from callmip_global.hdf5 import chunked, open_dataset

FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "gzip", "compression_opts": 1},
    {"compression": "gzip", "shuffle": True},
    {"shuffle": True},
    {"fletcher32": True},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
)


def _numbers(shape: tuple[int, ...], dtype: str, seed: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 100, shape).astype(dtype)


@st.composite
def _boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    chunk = tuple(draw(st.integers(1, n)) for n in shape)
    box = []
    for n in shape:
        low = draw(st.integers(0, n))
        box.append(slice(low, draw(st.integers(low, n))))
    return shape, chunk, tuple(box)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    _boxes(),
    st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<i2", "<i4", "u1"]),
    st.sampled_from(FILTERS),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_box_of_any_layout_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...]],
    dtype: str,
    filters: dict[str, Any],
    whole: bool,
    seed: int,
) -> None:
    shape, chunk, box = case
    path = tmp_path_factory.mktemp("box") / "a.h5"
    values = _numbers(shape, dtype, seed)
    with h5py.File(path, "w") as file:
        variable = file.create_dataset("x", shape, dtype, chunks=chunk, fillvalue=7, **filters)
        if whole:
            variable[...] = values
        else:
            variable[:1] = values[:1]  # the other chunks are never written
        expected = variable[...]
    found = chunked(path, "x")
    assert found is not None
    read = found.read(box)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(read, expected[box])


def test_a_contiguous_variable_is_read_by_rows_of_any_length(tmp_path: Path) -> None:
    values = _numbers((50, 400, 300), "<f4", 1)  # 24 MB: more than one piece
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = values
        file.create_dataset("empty", (3, 2), "<f4", fillvalue=2.5)
        file["one"] = np.float32(4.0)
    box = (slice(3, 47), slice(10, 20), slice(0, 300))
    x, empty, one = (chunked(tmp_path / "a.h5", name) for name in ("x", "empty", "one"))
    assert x is not None
    assert empty is not None
    assert one is not None
    assert np.array_equal(x.read(box), values[box])
    assert (empty.read((slice(None), slice(None))) == 2.5).all()
    assert one.read(()) == 4.0


@pytest.mark.parametrize("filters", FILTERS[:3])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
def test_missing_values_are_compared_in_the_type_they_are_stored_in(
    tmp_path: Path, filters: dict[str, Any], dtype: str
) -> None:
    stored = np.array([[1.0, 1e20, -0.0, 0.0, np.nan, -999.0]], dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=stored, chunks=(1, 3), **filters)
    found = chunked(tmp_path / "a.h5", "x")
    assert found is not None
    all_of_it = (slice(None), slice(None))
    # Double's 1e20 is no float's 1e20.
    missing = found.with_missing([np.float64(1e20), 0.0]).read(all_of_it)
    assert np.isnan(missing).tolist() == [[False, True, True, True, True, False]]
    assert np.array_equal(found.read(all_of_it), stored, equal_nan=True)


def _netcdf(path: Path, **how: Any) -> Path:
    with netCDF4.Dataset(path, "w") as nc:
        for name, size in (("time", 40), ("lat", 6), ("lon", 8)):
            nc.createDimension(name, size)
            nc.createVariable(name, "f8", (name,))[:] = np.arange(size)
        gpp = nc.createVariable("gpp", "f4", ("time", "lat", "lon"), fill_value=-99999.0, **how)
        gpp.units = "kg m-2 s-1"
        values = _numbers((40, 6, 8), "f4", 3)
        values[:, 2] = -99999.0
        gpp[:] = values
        packed = nc.createVariable("lai", "i2", ("time", "lat", "lon"), fill_value=-1, zlib=True)
        packed.setncatts({"scale_factor": 0.01, "add_offset": 1.0})
        packed.set_auto_scale(False)
        packed[:] = _numbers((40, 6, 8), "i2", 4)
        nc.createVariable("title", str, ())[...] = "words"
    return path


@pytest.mark.parametrize(
    "key",
    [
        {},
        {"time": slice(3, 17)},
        {"lat": slice(None, None, -1), "time": slice(1, 30, 4)},
        {"lon": [6, 7, 0, 1], "time": 5},
    ],
)
def test_a_data_set_is_the_one_that_xarray_opens(tmp_path: Path, key: dict[str, Any]) -> None:
    path = _netcdf(tmp_path / "it's a file.nc", zlib=True, chunksizes=(7, 6, 8))
    with xr.open_dataset(path, decode_times=False) as expected, open_dataset(path) as found:
        assert found.gpp.encoding["preferred_chunks"]["time"] == 7
        xr.testing.assert_identical(found.isel(key).load(), expected.isel(key).load())
        again = pickle.loads(pickle.dumps(found))
        assert np.array_equal(again.gpp.values, expected.gpp.values, equal_nan=True)


def test_what_other_filters_or_formats_hold_is_left_to_the_library(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("lzf", data=np.ones((4, 4)), compression="lzf")
        file.create_dataset("text", data="words")
        file.create_group("group")
    (tmp_path / "b.nc").write_bytes(b"CDF\x01" + bytes(40))
    for name in ("lzf", "text", "group", "nothing"):
        assert chunked(tmp_path / "a.h5", name) is None
    assert chunked(tmp_path / "b.nc", "x") is None
    assert chunked(tmp_path / "none.nc", "x") is None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every chunk inflated."""
    inflated: list[int] = []
    real: Callable[[bytes, int], bytes] = hdf5.deflate.zlib_decompress

    def counting(data: bytes, size: int) -> bytes:
        inflated.append(size)
        return real(data, size)

    monkeypatch.setattr(hdf5.deflate, "zlib_decompress", counting)
    return inflated


@pytest.mark.parametrize("threads", [1, 6])
def test_chunks_of_many_months_are_inflated_once_for_all_the_blocks_in_them(
    tmp_path: Path, counted: list[int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = hdf5._Kept(10**6)
    monkeypatch.setattr(hdf5, "_kept", kept)
    values = _numbers((100, 12, 10), "<f4", 5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(64, 4, 5), compression="gzip", shuffle=True)
    found = chunked(tmp_path / "a.h5", "x")
    assert found is not None
    boxes = [(slice(t, t + 10), slice(None), slice(None)) for t in range(0, 100, 10)]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(found.read, boxes))
    assert np.array_equal(np.concatenate(parts), values)
    assert len(counted) == found.offsets.size
    assert kept.size == 0
    assert not kept.chunks


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _numbers((64, 12, 10), "<f4", 6)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(64, 4, 5), compression="gzip")
    found = chunked(tmp_path / "a.h5", "x")
    assert found is not None
    chunk = values[:, :4, :5].nbytes
    kept = hdf5._Kept(2 * chunk)
    monkeypatch.setattr(hdf5, "_kept", kept)
    for start in (0, 32):
        box = (slice(start, start + 32), slice(None), slice(None))
        assert np.array_equal(found.read(box), values[box])
        assert kept.size <= 3 * chunk  # one more while it is made


def test_another_file_of_the_same_name_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for seed in (1, 2):
        values = _numbers((20, 3), "<f4", seed)
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=values, chunks=(20, 3), compression="gzip")
        found = chunked(path, "x")
        assert found is not None
        assert np.array_equal(found.read((slice(0, 7), slice(None))), values[:7])


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"compression": "gzip", "shuffle": True}, "cannot be inflated"),
        ({"fletcher32": True}, "does not have the checksum stored with it"),
    ],
)
def test_a_damaged_chunk_is_named_with_the_steps_it_holds(
    tmp_path: Path, filters: dict[str, Any], said: str
) -> None:
    path = tmp_path / "a.nc"
    with h5py.File(path, "w") as file:
        values = _numbers((30, 6, 8), "<f4", 7)
        file.create_dataset("gpp", data=values, chunks=(10, 6, 8), **filters)
    found = chunked(path, "gpp")
    assert found is not None
    content = bytearray(path.read_bytes())
    start = int(found.offsets[1, 0, 0]) + 40
    content[start : start + 30] = b"\xff" * 30
    path.write_bytes(content)
    whole = (slice(None), slice(None))
    assert np.array_equal(found.read((slice(0, 10), *whole)), values[:10])
    with pytest.raises(DataError) as error:
        found.read((slice(0, 30), *whole))
    (problem,) = error.value.problems
    assert (problem.where, problem.key) == (str(path), "gpp")
    assert "chunk 1, 0, 0 (steps 11 to 20 of the first dimension)" in problem.found
    assert said in problem.found


def test_a_file_cut_off_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with h5py.File(path, "w") as file:
        file["gpp"] = _numbers((30, 6, 8), "<f4", 7)
    found = chunked(path, "gpp")
    assert found is not None
    path.write_bytes(path.read_bytes()[: int(found.offsets.flat[0]) + 100])
    with pytest.raises(DataError, match="beyond the end of the file"):
        found.read((slice(0, 30), slice(None), slice(None)))
