"""Truncated NetCDF-3 files, which the NetCDF library reads as zeros without a word."""

from __future__ import annotations

from pathlib import Path

import netCDF4
import numpy as np
import pytest

from callmip_global.errors import DataError
from callmip_global.harmonize.native import scan
from callmip_global.harmonize.netcdf3 import layout, needed_bytes

FORMATS = ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]


def write(path: Path, form: str, *, unlimited: bool, records: int = 5, names: str = "ab") -> Path:
    """Variables of 2- and 4-byte items, with attributes of every length, and a scalar."""
    with netCDF4.Dataset(path, "w", format=form) as nc:
        nc.title = "odd length"
        nc.createDimension("time", None if unlimited else records)
        nc.createDimension("lat", 3)
        nc.createDimension("lon", 5)
        nc.createVariable("crs", "i4", ())[...] = 1
        for name, kind in zip(names, ("i2", "f4"), strict=False):
            var = nc.createVariable(name, kind, ("time", "lat", "lon"))
            var.units = "kg m-2"
            var[:] = np.ones((records, 3, 5))
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("unlimited", [True, False], ids=["records", "fixed"])
@pytest.mark.parametrize("names", ["a", "ab", ""], ids=["one", "two", "none"])
def test_a_whole_file_has_the_length_its_header_says(
    tmp_path: Path, form: str, unlimited: bool, names: str
) -> None:
    path = write(tmp_path / "a.nc", form, unlimited=unlimited, names=names)
    needed = needed_bytes(path)
    assert needed is not None
    # The library pads the end of the file to 4 bytes, which no value needs.
    assert 0 <= path.stat().st_size - needed < 4


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.9, 0.6, 0.1, 0.02])
def test_a_truncated_file_is_refused_not_read_as_zeros(
    tmp_path: Path, form: str, share: float
) -> None:
    path = write(tmp_path / "a.nc", form, unlimited=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError) as caught:
        scan(path)
    assert str(path) in str(caught.value)
    assert "Copy it again" in str(caught.value)


def test_other_formats_are_left_to_the_library(tmp_path: Path) -> None:
    assert needed_bytes(write(tmp_path / "a.nc", "NETCDF4", unlimited=True)) is None


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("unlimited", [True, False], ids=["records", "fixed"])
def test_what_is_cut_is_what_the_library_reads_as_zeros(
    tmp_path: Path, form: str, unlimited: bool
) -> None:
    path = write(tmp_path / "a.nc", form, unlimited=unlimited)
    content = path.read_bytes()
    for size in range(len(content) - 320, len(content), 17):
        path.write_bytes(content[:size])
        found = layout(path)
        assert found is not None
        cuts = {cut.name: cut for cut in found.cut(size)}
        with netCDF4.Dataset(path) as nc:
            nc.set_auto_mask(False)
            for name in "ab":
                values = nc[name][:]
                lost = [i for i in range(len(values)) if not np.all(values[i] == 1)]
                assert bool(lost) <= (name in cuts)
                if unlimited and name in cuts:
                    assert not lost or lost[0] >= (cuts[name].whole or 0)
                    assert str(cuts[name]) == f"{name} from record {cuts[name].whole + 1} of 5"  # type: ignore[operator]
    assert layout(path).cut(len(content)) == ()  # type: ignore[union-attr]


def test_a_length_out_of_all_reason_is_damage_not_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", "NETCDF3_64BIT_DATA", unlimited=True)
    content = bytearray(path.read_bytes())
    at = content.index(b"odd length") - 8
    content[at : at + 8] = b"\x3f" + b"\xff" * 7
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cut off or damaged"):
        layout(path)
