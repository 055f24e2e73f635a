"""Integrity: what was cut off, damaged, never written or is something else is refused by name."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.errors import DataError
from callmip_global.harmonize.integrity import (
    BLOCK_BYTES,
    check,
    hdf5_needed_bytes,
    stub_problem,
)
from callmip_global.hdf5 import chunked

CLASSIC = ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]
SHAPE = (24, 20, 30)


def write(path: Path, form: str = "NETCDF4", *, steps: int = 24, **options: object) -> Path:
    """Two fields of 24 months and a fixed map; ``options`` are those of ``gpp``."""
    values = np.random.default_rng(1).normal(size=SHAPE)
    with netCDF4.Dataset(path, "w", format=form) as nc:
        for name, size in zip(("time", "lat", "lon"), (None, *SHAPE[1:]), strict=True):
            nc.createDimension(name, size)
        nc.createVariable("area", "f4", ("lat", "lon"))[:] = 1.0
        nc.createVariable("time", "f8", ("time",))[:steps] = np.arange(steps)
        for name in ("gpp", "ra"):
            more = options if name == "gpp" else {}
            out = nc.createVariable(name, "f4", ("time", "lat", "lon"), **more)  # type: ignore[call-overload]
            if steps:
                out[:] = values
    return path


def refused(path: Path, *words: str) -> str:
    with pytest.raises(DataError) as caught:
        check(path, "sub/x.nc")
    (problem,) = caught.value.problems
    message = str(problem)
    assert message.startswith("sub/x.nc: ")
    assert str(path) not in message
    for word in words:
        assert word in message
    return problem.rule


@pytest.mark.parametrize("form", ["NETCDF4", "NETCDF4_CLASSIC", *CLASSIC])
def test_a_whole_file_is_accepted_without_a_word(tmp_path: Path, form: str) -> None:
    assert check(write(tmp_path / "x.nc", form)) == ()


@pytest.mark.parametrize("form", ["NETCDF4", *CLASSIC])
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.0, 0.9999))
def test_a_file_cut_off_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, form: str, share: float
) -> None:
    path = write(tmp_path_factory.mktemp("cut") / "x.nc", form)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refused(path) in ("truncated", "damaged", "not-netcdf")


@pytest.mark.parametrize("form", CLASSIC)
def test_a_cut_file_says_both_sizes_and_what_is_missing(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "x.nc", form)
    content = path.read_bytes()
    cut = int(0.6 * len(content))
    path.write_bytes(content[:cut])
    step = SHAPE[1] * SHAPE[2] * 4
    whole = (cut - (len(content) - 24 * (2 * step + 8))) // (2 * step + 8)
    rule = refused(
        path, f"it has {cut} bytes", f"{len(content)} bytes, as its header needs", "Copy it again"
    )
    assert rule == "truncated"
    refused(path, f"ra from record {whole + 1} of 24")


def test_whole_blocks_make_it_an_interrupted_upload(tmp_path: Path) -> None:
    for form in ("NETCDF4", "NETCDF3_CLASSIC"):
        path = write(tmp_path / f"{form}.nc", form)
        path.write_bytes(path.read_bytes()[: 2 * BLOCK_BYTES])
        rule = refused(path, "65536 bytes", "an interrupted upload: that is 2 times 32768 bytes")
        assert rule == "truncated"
        path.write_bytes(path.read_bytes()[: 2 * BLOCK_BYTES - 1])
        with pytest.raises(DataError) as caught:
            check(path)
        assert "interrupted upload" not in str(caught.value)


def test_a_whole_file_of_whole_blocks_is_no_interrupted_upload(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nc", "NETCDF3_CLASSIC")
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * (-len(content) % BLOCK_BYTES))
    assert check(path) == ()


def ustar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x.nc"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>Login</html>", "a web page"),
        (b"\n <HTML>", "a web page"),
        (b"lat,lon,gpp\n1,2,3\n", "text, no NetCDF file"),
        (gzip.compress(b"x"), "Name it .nc.gz"),
        (ustar(), "a tar archive"),
        (b"\0" * 9000, "zeros, no NetCDF file"),
        (b"GRIB\0\0\x01\x02" + b"\xff" * 50, "it begins with b'GRIB"),
        (b"\x89HDF\r\n\x1a\n" + b"\xff" * 90, "a damaged file"),
        (b"CDF\x01" + b"\xff" * 90, "a damaged file"),
        (b"CDF\x05\0\0\0\0\0\0\0\0\0\0\0\x0a" + b"\x7f" * 90, "a damaged file"),
    ],
    ids=["empty", "html", "HTML", "text", "gzip", "tar", "zeros", "grib", "hdf5", "cdf1", "cdf5"],
)
def test_what_is_no_netcdf_file_is_called_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "x.nc"
    path.write_bytes(content)
    assert refused(path, words) in ("not-netcdf", "damaged")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_header_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    top = tmp_path_factory.getbasetemp()
    form = data.draw(st.sampled_from(CLASSIC))
    good = top / f"good-{form}.nc"
    if not good.exists():
        write(good, form)
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, 400))] = data.draw(st.sampled_from([0, 1, 127, 255]))
    path = top / "bad.nc"
    path.write_bytes(content)
    try:
        rule = check(path)
    except DataError as error:
        rule = error.problems[0].rule
    assert rule in ((), "truncated", "damaged", "stub")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_the_superblock_says_how_long_an_hdf5_file_is(tmp_path: Path, libver: str) -> None:
    for userblock in (0, 512, 1024):
        path = tmp_path / f"{userblock}.nc"
        with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
            file["x"] = np.arange(1000)
        content = path.read_bytes()
        assert hdf5_needed_bytes(content[:4096]) == len(content)
    assert hdf5_needed_bytes(b"CDF\x01") is None
    assert hdf5_needed_bytes(content[1024:1030]) is None


def test_a_chunk_beyond_the_end_of_the_file_is_refused_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.nc", chunksizes=(1, 20, 30), zlib=True)
    table = chunked(path, "gpp")
    assert table is not None
    sizes = table.sizes.copy()
    sizes[17] += 10**9
    moved = type(table)(**{**table.__dict__, "sizes": sizes})
    real = chunked
    monkeypatch.setattr(
        "callmip_global.harmonize.integrity.chunked",
        lambda p, name: moved if name == "gpp" else real(p, name),
    )
    assert refused(path, "gpp", "1 chunks beyond the end", "from step 18") == "damaged"


def test_a_damaged_heap_that_the_library_never_comes_back_from_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nc")
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL\1\0\0\0")
    at = heap + 16
    while content[at] or content[at + 1]:  # to the object of number 0, which is what is free
        at += 16 + -(-content[at + 8] // 8) * 8
    free = int.from_bytes(content[at + 8 : at + 16], "little")
    assert at + free == heap + 4096
    for length in (free - 126, free + 8, 0, 8):
        content[at + 8 : at + 16] = length.to_bytes(8, "little")
        path.write_bytes(content)
        assert refused(path, f"a damaged heap of attributes at byte {heap}") == "damaged"


def test_chunks_that_were_never_written_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    with netCDF4.Dataset(path, "w") as nc:
        for name, size in zip(("time", "lat", "lon"), SHAPE, strict=True):
            nc.createDimension(name, size)
        for name in ("gpp", "ra"):
            shape = (1, *SHAPE[1:])
            nc.createVariable(name, "f4", ("time", "lat", "lon"), chunksizes=shape)
        nc["gpp"][:5] = 1.0
        nc["ra"][:] = 1.0
    ((rule, words),) = check(path)
    assert rule == "unwritten"
    assert "19 of 24 of gpp" in words
    assert "ra" not in words


@pytest.mark.parametrize("form", ["NETCDF4", *CLASSIC])
def test_a_header_without_records_is_a_stub(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "x.nc", form, steps=0)
    if form == "NETCDF4":
        with netCDF4.Dataset(path, "w") as nc:
            nc.createDimension("time", 24)
            nc.createDimension("x", 3)
            nc.createVariable("gpp", "f4", ("time", "x"), chunksizes=(1, 3))
    assert refused(path, "a stub: a header with no", "gpp") == "stub"


def test_a_stub_is_a_thousand_times_smaller_than_its_siblings_in_content_too() -> None:
    siblings = [40_315_924_715] * 3
    problem = stub_problem("sub/CLASSIC_S3_tsl.nc", 17_569, 16_000, siblings)
    assert problem is not None
    assert problem.rule == "stub"
    assert "17569 bytes" in str(problem)
    # A field of zeros that packs well is long enough.
    assert stub_problem("x", 17_569, 4_000_000_000, siblings) is None
    assert stub_problem("x", 17_569, 16_000, []) is None
    assert stub_problem("x", 17_569, 16_000, [17_569_000]) is None
    assert stub_problem("x", 17_569, 16_000, [17_569_001]) is not None


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_stores_are_checked_by_their_metadata_and_chunks(tmp_path: Path, version: int) -> None:
    store = tmp_path / "x.zarr"
    group = zarr.open_group(store, mode="w", zarr_format=version)  # type: ignore[arg-type]
    for name in ("gpp", "ra"):
        array = group.create_array(name, shape=(4, 3, 2), chunks=(2, 3, 2), dtype="f4")
        if name == "ra":
            array[:] = 1.0
    ((rule, words),) = check(store, "sub/x.nc")
    assert rule == "unwritten"
    assert "no chunks of gpp" in words
    for chunk in [p for p in (store / "ra").rglob("*") if p.is_file()]:
        if not chunk.name.startswith(".z") and chunk.name != "zarr.json":
            chunk.unlink()
    for folder in sorted((p for p in (store / "ra").rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()
    assert refused(store, "a stub", "gpp") == "stub"
    mark = store / "ra" / ("zarr.json" if version == 3 else ".zarray")
    mark.write_text(mark.read_text()[:40])
    assert refused(store, "metadata that cannot be read", f"ra/{mark.name}") == "damaged"


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.nc", "cannot be read") == "unreadable"
