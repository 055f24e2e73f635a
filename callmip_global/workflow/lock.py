"""One process at a time, on file systems that several machines share."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from callmip_global.errors import Problem, UsageError
from callmip_global.files import read_json, write_json


@contextlib.contextmanager
def held_alone(path: Path, wanted: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock ``path``; UsageError with its owner and what is ``wanted`` where it is held.

    ``wait_s``: how long to wait for the owner to let go [s]. The lock is a file made with O_EXCL,
    because flock is not to be had on every cluster file system. That of a process of this machine
    that no longer lives is taken over; that of another machine is reported with its owner.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid4().hex}
    draft = path.with_name(f"{path.name}.{mine['id']}")
    write_json(draft, mine)
    try:
        end = time.monotonic() + wait_s
        while not _taken(path, draft, mine):
            if time.monotonic() >= end:
                raise _locked(path, wanted)
            time.sleep(0.1)
    finally:
        draft.unlink(missing_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if read_json(path)["id"] == mine["id"]:
                path.unlink()


def _taken(path: Path, draft: Path, mine: Mapping[str, Any]) -> bool:
    for _ in range(2):
        try:
            os.link(draft, path)
        except FileExistsError:
            if _take_over(path, draft, mine):
                return True
        else:
            return True
    return False


def _take_over(path: Path, draft: Path, mine: Mapping[str, Any]) -> bool:
    """Put our lock in the place of that of a process which no longer lives; False if it lives.

    Of several that find the same dead lock one may do so: who makes the heir file of its owner,
    or of the owner's heir if that one died over it. A lock is replaced, never away.
    """
    try:
        owner = last = read_json(path)
        heirs = []
        while True:
            if last["host"] != mine["host"] or Path(f"/proc/{last['pid']}").exists():
                return False
            heirs.append(path.with_name(f"{path.name}.{last['id']}.heir"))
            if not heirs[-1].exists():
                break
            last = read_json(heirs[-1])
        os.link(draft, heirs[-1])
        # Another heir may have been here, and gone, since we read the lock.
        ours = bool(read_json(path)["id"] == owner["id"])
        if ours:
            draft.replace(path)
    except (FileNotFoundError, FileExistsError, ValueError):
        return False
    for heir in reversed(heirs if ours else heirs[-1:]):
        heir.unlink(missing_ok=True)
    return ours


def _locked(path: Path, wanted: str) -> UsageError:
    try:
        owner = read_json(path)
        text = f"process {owner['pid']} on {owner['host']}"
    except (FileNotFoundError, ValueError):
        text = "another process"
    return UsageError(
        Problem(
            str(path.parent),
            found=f"locked by {text}",
            wanted=wanted,
            remedy=f"If that process is gone for certain, remove {path}.",
        )
    )
