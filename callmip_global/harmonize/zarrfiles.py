"""Zarr stores, version 2 and 3, as native input: opened without believing a fill value of 0, and
checked for chunks that got lost.

A chunk that is not there reads as the fill value without any error. That is right where a writer
leaves out chunks without values, and wrong where a copy was interrupted; the chunks before and
after it tell which.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.backends.zarr import FillValueCoder
from xarray.core import indexing

from callmip_global.errors import DataError, Problem

Note = tuple[str, str]

_MARKS = ("zarr.json", ".zgroup", ".zmetadata")


def is_zarr(path: Path) -> bool:
    """Whether a folder is the top of a Zarr store."""
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


class _Lazy(BackendArray):
    """An array of a store as xarray indexes it; values are read when they are asked for."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array, self.shape = array, tuple(array.shape)
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        outer = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, outer, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        return np.asarray(self.array.oindex[key])


def open_zarr(path: Path, where: str) -> tuple[xr.Dataset, dict[str, list[Note]]]:
    """The store with nothing decoded, and notes by variable. DataError if it cannot be opened.

    Not by xarray, which takes the fill value of version 2 for missing whatever the attributes say,
    and cannot open a version 3 whose ``_FillValue`` is a plain number.
    """
    notes: dict[str, list[Note]] = {}
    variables = {}
    try:
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        for name, array in sorted(group.arrays()):
            attributes = dict(array.attrs)
            dims: Any = attributes.pop("_ARRAY_DIMENSIONS", None)
            dims = dims or getattr(array.metadata, "dimension_names", None) or ()
            if len(dims) != array.ndim:
                raise ValueError(f"{name}: {array.ndim} dimensions of which {len(dims)} have names")
            missing, more = _missing_value(array, attributes.pop("_FillValue", None))
            if missing is not None:
                attributes["_FillValue"] = missing
            if more and array.ndim > 1:
                notes[name] = more
            variables[name] = (tuple(dims), indexing.LazilyIndexedArray(_Lazy(array)), attributes)
        ds = xr.Dataset(
            {n: xr.Variable(*v) for n, v in variables.items()}, attrs=group.attrs.asdict()
        )
    except Exception as error:  # each codec and version of zarr raises its own
        text = " ".join(str(error).replace(str(path), "").split())[:120]
        remedy = "Copy it again, all of its files."
        found = f"a Zarr store that cannot be opened ({type(error).__name__}: {text})"
        raise DataError(Problem(where, "", found, "", remedy, "unreadable")) from None
    if not variables:
        remedy = "Copy it again, all of its files; variables in groups are not looked for."
        raise DataError(
            Problem(where, "", "a Zarr store without any array", "", remedy, "unreadable")
        )
    return ds, notes


def _missing_value(array: zarr.Array[Any], stated: Any) -> tuple[Any, list[Note]]:
    """What counts as missing, or None: the attribute, else the fill value where it is not 0.

    Rule ``zarr-fill``: arrays of version 2 have a fill value of 0 unless told otherwise, and xarray
    reads every true zero as missing. It is missing only where an attribute says so.
    """
    if isinstance(stated, str) and array.dtype.kind == "f":
        # Xarray writes the attribute of version 3 as base64 of the bytes.
        stated = FillValueCoder.decode(stated, array.dtype)
    fill = array.fill_value
    if stated is not None or fill is None or array.dtype.kind not in "iuf":
        return stated, []
    if fill != 0:
        return fill, []
    said = "the fill value 0 is not taken for missing: zeros stay zeros"
    return None, [("zarr-fill", said)] if array.metadata.zarr_format == 2 else []


def read_zarr(path: Path, name: str, index: tuple[slice | list[int], ...]) -> NDArray[Any]:
    """Values as stored, one slice or list of indices for each dimension.

    RuntimeError for what cannot be read, whatever the codec raises.
    """
    try:
        array = zarr.open_group(path, mode="r")[name]
        assert isinstance(array, zarr.Array)
        lists = tuple(i if isinstance(i, slice) else np.asarray(i, dtype=np.int64) for i in index)
        return np.asarray(array.oindex[lists])
    except Exception as error:  # each codec raises its own
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def lost_chunks(
    path: Path, where: str, name: str, dims: Mapping[str, int], time_dim: str | None
) -> tuple[list[Note], Problem | None]:
    """Rule ``zarr-chunks`` and refusal ``zarr-chunks-lost`` of one array with at least two axes.

    Evidence of a loss: chunks of the same place at other times are there, and what is read instead
    would be missing values; or none at all is there. Where the fill value is a number (0), chunks
    may have been left out because all their values are that number: kept, with a warning.
    """
    array = zarr.open_group(path, mode="r")[name]
    assert isinstance(array, zarr.Array)
    steps = array.shards or array.chunks
    shape = tuple(-(-size // step) for size, step in zip(array.shape, steps, strict=True))
    there = np.zeros(shape, dtype=bool)
    folder = path / name
    held = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    for place in np.ndindex(shape):
        there[place] = array.metadata.encode_chunk_key(place) in held
    if there.all():
        return [], None
    lost, total = int((~there).sum()), there.size
    fill = array.fill_value
    stated = array.attrs.get("_FillValue")
    blank = fill is None or bool(np.isnan(float(fill))) or (stated is not None and fill == stated)
    blank = blank or (array.metadata.zarr_format == 2 and float(fill) != 0.0)
    order = list(dims)
    along = order.index(time_dim) if time_dim in order else None
    holes = np.zeros(shape, dtype=bool)
    if not there.any():
        holes[:] = True
    elif blank and along is not None:
        holes = ~there & there.any(axis=along, keepdims=True)
    if holes.any():
        first = tuple(int(i) for i in np.argwhere(holes)[0])
        spans = ", ".join(
            f"{dim} {i * step + 1} to {min((i + 1) * step, size)}"
            for dim, i, step, size in zip(order, first, steps, array.shape, strict=True)
        )
        return [], Problem(
            where,
            name,
            f"{int(holes.sum())} of {total} chunks are not there, the first holds {spans}",
            "every chunk",
            "Copy the store again; a lost chunk reads as missing values without any error.",
            "zarr-chunks-lost",
        )
    if blank:
        return [], None
    said = f"{lost} of {total} chunks are not stored; all their values are read as {float(fill):g}"
    return [("zarr-chunks", said)], None
