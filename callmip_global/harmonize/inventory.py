"""What a submission holds: every file found, named, unpacked, checked; conflicts are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from callmip_global.errors import Problem

Note = tuple[str, str]


@dataclass(frozen=True)
class Found:
    """One file or Zarr store to read.

    path : where it can be read, unpacked where the submission packs it
    origin : what reports and messages call it: the submission's own path, with ``::member`` after
        an archive's
    size : bytes at ``path``
    notes : (rule, words) of what was done to have it
    without : variables (as they are called inside) that another file was named for
    """

    path: Path
    origin: str
    size: int
    notes: tuple[Note, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taken:
    """A submission, walked. Every file and Zarr store is in exactly one of the three.

    files : what to harmonize
    refused : (origin, why)
    notes : (origin, rule, words) of what is not read although nothing is wrong with it
    """

    files: tuple[Found, ...]
    refused: tuple[tuple[str, Problem], ...]
    notes: tuple[tuple[str, str, str], ...]
