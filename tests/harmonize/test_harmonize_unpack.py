"""Archives: what comes out is what went in; attacks and damage are refused and leave nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.errors import DataError
from callmip_global.harmonize import unpack as module
from callmip_global.harmonize.unpack import NoMemberError, unpack


def netcdf(path: Path, form: str) -> bytes:
    """A NetCDF file of some 300 kB."""
    with netCDF4.Dataset(path, "w", format=form) as nc:
        nc.createDimension("time", None)
        nc.createDimension("x", 4000)
        values = np.random.default_rng(1).normal(size=(20, 4000)).astype("f4")
        nc.createVariable("gpp", "f4", ("time", "x"))[:] = values
    return path.read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A NetCDF-4 file of some 300 kB."""
    return netcdf(tmp_path_factory.mktemp("nc") / "x.nc", "NETCDF4")


def tar_of(path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def refused(archive: Path, into: Path, *words: str, **more: int) -> str:
    """The message; nothing is left behind, in ``into`` or beside it."""
    into.mkdir(exist_ok=True)
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        unpack(archive, into, origin="sub/a.nc.gz", **more)
    message = str(caught.value)
    assert message.startswith("sub/a.nc.gz")
    for word in words:
        assert word in message
    assert sorted(archive.parent.rglob("*")) == before
    assert not list(into.iterdir())
    return message


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT_DATA"])
@pytest.mark.parametrize("packing", ["gz", "tar", "tar.gz"])
def test_what_comes_out_is_what_went_in_with_both_hashes(
    tmp_path: Path, form: str, packing: str
) -> None:
    content = netcdf(tmp_path / "x.nc", form)
    archive = tmp_path / f"X_S3_gpp.nc.{packing}"
    if packing == "gz":
        archive.write_bytes(gzip.compress(content))
    else:
        mode = "w:gz" if packing == "tar.gz" else "w"
        readme = ("a/README.txt", b"words" * 300)
        tar_of(archive, [special("a", tarfile.DIRTYPE), readme, ("a/X.nc", content)], mode)
    got = unpack(archive, tmp_path / "out")
    assert got.path.read_bytes() == content
    assert got.size == len(content)
    assert got.sha256 == hashlib.sha256(content).hexdigest()
    assert got.archive_sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert got.path.name == f"{got.archive_sha256}.nc"
    assert got.member == ("" if packing == "gz" else "a/X.nc")
    assert got.sha256 in got.words
    assert got.archive_sha256 in got.words


def test_what_is_there_whole_is_used_again_and_what_is_not_is_made_again(
    tmp_path: Path, content: bytes
) -> None:
    archive, out = tmp_path / "a.nc.gz", tmp_path / "out"
    archive.write_bytes(gzip.compress(content))
    first = unpack(archive, out)
    stamp = first.path.stat().st_mtime_ns
    copy = tmp_path / "another name.nc.gz"
    copy.write_bytes(archive.read_bytes())
    assert unpack(copy, out) == first
    assert first.path.stat().st_mtime_ns == stamp
    first.path.write_bytes(content[:100])
    assert unpack(archive, out).path.read_bytes() == content
    first.path.with_suffix(".json").write_text("{")
    assert unpack(archive, out) == first
    assert len(list(out.iterdir())) == 2


def test_an_archive_whose_content_changed_gives_another_file(
    tmp_path: Path, content: bytes
) -> None:
    archive, out = tmp_path / "a.nc.gz", tmp_path / "out"
    archive.write_bytes(gzip.compress(content, 9))
    first = unpack(archive, out)
    size = archive.stat().st_size
    archive.write_bytes(gzip.compress(content, 1))
    second = unpack(archive, out)
    assert size != archive.stat().st_size
    assert first.path != second.path
    assert first.sha256 == second.sha256


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 300_000), max_size=4),
    st.binary(max_size=200).map(lambda b: b"\0" * len(b)),
)
def test_gzip_members_in_a_row_are_one_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], padding: bytes
) -> None:
    content = b"CDF\x01" + struct.pack(">I", 0xFFFFFFFF) + b"\0" * 24
    content += np.random.default_rng(1).bytes(100_000) + b"\0" * 200_000
    top = tmp_path_factory.mktemp("cuts")
    edges = [0, *sorted(min(c, len(content)) for c in cuts), len(content)]
    parts = [content[a:b] for a, b in itertools.pairwise(edges)]
    archive = top / "a.nc.gz"
    archive.write_bytes(b"".join(map(gzip.compress, parts)) + padding)
    assert unpack(archive, top / "out").path.read_bytes() == content


@pytest.mark.parametrize(
    "name", ["with\nnewline.nc", "a b'\"$(touch x).nc", "é.nc", "x" * 180 + "/" + "y" * 90 + ".nc"]
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_odd_names_are_words_for_the_record_only(
    tmp_path: Path, content: bytes, name: str, form: int
) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    got = unpack(archive, tmp_path / "out")
    assert got.member == name
    assert got.path.read_bytes() == content
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert "\n" not in str(got.words)


def test_leftovers_of_other_systems_in_a_tar_are_no_second_member(
    tmp_path: Path, content: bytes
) -> None:
    members = [("._X.nc", b"apple"), ("X.nc", content), ("__MACOSX/X.nc", b"apple")]
    archive = tar_of(tmp_path / "a.tar", list(members))
    assert unpack(archive, tmp_path / "out").member == "X.nc"


# --- attacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    "name", ["../x.nc", "/tmp/x.nc", "a/../../x.nc", "..\\x.nc", "\\x.nc", "C:x.nc", "a/.."]
)
def test_a_name_that_leads_outside_is_refused(
    tmp_path: Path, content: bytes, name: str, packing: str
) -> None:
    mode = "w:gz" if packing == "tar.gz" else "w"
    archive = tar_of(tmp_path / f"a.{packing}", [("x.nc", content), (name, content)], mode)
    refused(archive, tmp_path / "out", "leads outside")
    alone = tar_of(tmp_path / f"b.{packing}", [(name, content)], mode)
    refused(alone, tmp_path / "out", "leads outside")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a symbolic link 'x.nc'"),
        (tarfile.LNKTYPE, "a hard link 'x.nc'"),
        (tarfile.CHRTYPE, "a device 'x.nc'"),
        (tarfile.BLKTYPE, "a device 'x.nc'"),
        (tarfile.FIFOTYPE, "a pipe 'x.nc'"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file 'x.nc'"),
        (b"Z", "something unknown 'x.nc'"),
    ],
)
def test_links_and_devices_are_refused(
    tmp_path: Path, content: bytes, kind: bytes, words: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    members = [("y.nc", content), special("x.nc", kind, str(secret))]
    refused(tar_of(tmp_path / "a.tar", list(members)), tmp_path / "out", words)


def test_two_members_are_refused_with_both_names(tmp_path: Path, content: bytes) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", [("x.nc", content), ("y.nc", content)], "w:gz")
    refused(archive, tmp_path / "out", "'x.nc'", "'y.nc'", "one archive per file")


def test_a_tar_without_netcdf_or_with_packed_members_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "out"
    archive = tar_of(tmp_path / "a.tar", [("readme.txt", b"words")])
    with pytest.raises(NoMemberError, match="no NetCDF member"):
        unpack(archive, out)
    inner = [("x.nc.gz", gzip.compress(content))]
    refused(tar_of(tmp_path / "b.tar", list(inner)), out, "packed member 'x.nc.gz'")
    refused(tar_of(tmp_path / "c.tar", [("x.nc", b"<html>")]), out, "b'<html>'")


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    def pack(head: bytes, zeros: int) -> bytes:
        packer = zlib.compressobj(9, wbits=31)
        block = b"\0" * 1024**2
        parts = [packer.compress(head)] + [packer.compress(block) for _ in range(zeros)]
        return b"".join([*parts, packer.flush()])

    archive, out = tmp_path / "a.nc.gz", tmp_path / "out"
    archive.write_bytes(pack(b"", 16))
    refused(archive, out, "content that begins with")
    # One variable of 4 EB, and of 8 bytes only.
    for size, words in ((2**60, "bytes at most"), (2, "as its header says")):
        head = b"CDF\x05" + struct.pack(">Q", 0)
        head += struct.pack(">IQQ4sQ", 10, 1, 1, b"x\0\0\0", size)
        head += struct.pack(">IQ", 0, 0)
        head += struct.pack(">IQQ4sQQIQIQQ", 11, 1, 1, b"v\0\0\0", 1, 0, 0, 0, 5, 0, 200)
        archive.write_bytes(pack(head, 16))
        refused(archive, out, words)
    archive.write_bytes(pack(b"CDF\x01" + b"\xff" * 4 + b"\0" * 24, 16))
    refused(archive, out, "more than 10000000 bytes", limit_bytes=10_000_000)


def test_a_bomb_beside_the_file_is_refused_without_being_read(
    tmp_path: Path, content: bytes
) -> None:
    info = tarfile.TarInfo("readme.txt")
    info.size = 2**40
    start = tar_of(tmp_path / "t.tar", [("x.nc", content)]).read_bytes()
    archive = tmp_path / "a.tar"
    archive.write_bytes(
        start[: 512 + -(-len(content) // 512) * 512] + info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096
    )
    refused(archive, tmp_path / "out", "bytes beside the NetCDF file")


def test_a_header_that_promises_less_than_the_tar_member_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    archive = tar_of(tmp_path / "a.tar", [("x.nc", content + b"\0" * 3 * 1024**2)])
    refused(archive, tmp_path / "out", "as its own header says")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_header_is_not_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    info = special("x.nc", kind)
    info.size = 2**33
    archive = tmp_path / "a.tar"
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    refused(archive, tmp_path / "out", "a header of 8589934592 bytes")


def test_members_hidden_after_the_end_are_found(tmp_path: Path, content: bytes) -> None:
    first = tar_of(tmp_path / "t.tar", [("x.nc", content)]).read_bytes()
    archive = tmp_path / "a.tar"
    archive.write_bytes(first + first)
    refused(archive, tmp_path / "out", "more after the end")


def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    size = 48 * 1024**2
    path = tmp_path / "x.nc"
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_OFFSET") as nc:
        nc.createDimension("x", size // 4)
        nc.createVariable("v", "f4", ("x",))
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(path, "x.nc")
    tracemalloc.start()
    got = unpack(archive, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.size == path.stat().st_size
    assert peak < 16 * 1024**2


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["gz", "tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.999, 0.6, 0.01])
def test_an_archive_cut_off_is_refused_with_the_place(
    tmp_path: Path, content: bytes, packing: str, share: float
) -> None:
    archive = tmp_path / f"a.nc.{packing}"
    if packing == "gz":
        archive.write_bytes(gzip.compress(content))
    else:
        tar_of(archive, [("x.nc", content)], "w:gz" if packing == "tar.gz" else "w")
    whole = archive.read_bytes()
    end = int(len(whole) * share)
    if packing == "tar":  # its last blocks are zeros that nobody needs all of
        end = min(end, 512 + len(content) - 100)
    archive.write_bytes(whole[:end])
    refused(archive, tmp_path / "out", f"at byte {end} of the archive", "Pack it again")


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_flipped_bits_are_refused_with_the_place(tmp_path: Path, content: bytes, at: float) -> None:
    archive = tmp_path / "a.nc.gz"
    packed = bytearray(gzip.compress(content))
    place = int(len(packed) * at)
    packed[place] ^= 0xFF
    archive.write_bytes(packed)
    message = refused(archive, tmp_path / "out", "of the archive")
    assert int(message.partition("at byte ")[2].split()[0]) <= len(packed)


def test_a_tar_without_its_end_mark_is_cut_off(tmp_path: Path, content: bytes) -> None:
    whole = tar_of(tmp_path / "t.tar", [("x.nc", content)]).read_bytes()
    archive = tmp_path / "a.tar"
    archive.write_bytes(whole[: 512 + -(-len(content) // 512) * 512])
    refused(archive, tmp_path / "out", "damaged tar")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damage_of_a_tar_never_raises_anything_else_and_never_gives_another_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = b"CDF\x01" + b"\0" * 4 + b"\0" * 24 + bytes(range(256)) * 4
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("é" * 80 + ".nc")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    raw = bytearray(stream.getvalue()[:4096])
    head = raw.index(b"CDF\x01")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    top = tmp_path_factory.mktemp("damage")
    archive = top / "a.tar"
    archive.write_bytes(raw)
    try:
        got = unpack(archive, top / "out")
    except DataError:
        assert not list((top / "out").iterdir())
    else:
        assert got.path.read_bytes() in (content, content[: got.size])


def test_a_full_disk_is_a_problem_of_one_archive(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, out = tmp_path / "a.nc.gz", tmp_path / "out"
    archive.write_bytes(gzip.compress(content))
    usage = module.shutil.disk_usage(tmp_path)
    full = type(usage)(usage.total, usage.total, len(content) // 2)
    # Enough for one, but another is being unpacked at the same time.
    enough = type(usage)(usage.total, usage.total, 2 * len(content))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: enough)
    monkeypatch.setitem(module._promises.bytes, out / "other", len(content))
    refused(archive, out, "the disk has room for")
    monkeypatch.delitem(module._promises.bytes, out / "other")
    assert unpack(archive, tmp_path / "enough").size == len(content)
    assert module._promises.bytes == {}
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: full)
    refused(archive, out, "the disk has room for", "Make room")
    monkeypatch.undo()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    refused(archive, out, "No space left on device")
