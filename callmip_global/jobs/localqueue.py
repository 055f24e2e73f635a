"""A scheduler in a folder, for one machine: submit, list, cancel, and the process that runs jobs.

Semantics are Slurm's where both have the thing: arrays, afterok, aftercorr, dependents of a
failed job are cancelled. `submit` starts the serving process where none runs; it ends when nothing
is left. If it is killed, running jobs go on and are found again by process id and start time; jobs
that had not started are gone, as after a reboot. Standard library only: every call is quick.

Layout of the folder: ``jobs/<id>.json`` what was submitted; ``state/<id>_<index>.json`` one file
per element (index 0: not an array); ``state/<id>_<index>.exit`` its exit code, written by its own
shell so that it survives the serving process; ``serve.lock`` held while serving; ``serving`` the
id of the serving process, removed when it decides to end.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callmip_global.files import read_json, write_json
from callmip_global.jobs.scheduler import expand_ranges

_POLL_S = 0.1
_TERM_WAIT_S = 5.0
_START_WAIT_S = 60
_RUN = '"$@"; code=$?; printf %s "$code" >"$0.tmp" && mv "$0.tmp" "$0"; exit "$code"'
_ENDED = ("COMPLETED", "FAILED", "CANCELLED")
_STOPPED = "the local queue was stopped before it started"


@dataclass
class Element:
    """One element of a job and the file that holds its state."""

    path: Path
    job: dict[str, Any]
    index: int
    state: str
    detail: str = ""
    pid: int = 0
    started: str = ""

    def save(self) -> None:
        fields = ("state", "detail", "pid", "started")
        write_json(self.path, {name: getattr(self, name) for name in fields})

    @property
    def exit_file(self) -> Path:
        return self.path.with_suffix(".exit")


def _process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot ("" if there is none): with the process id,
    an identity that survives the reuse of process ids."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _elements(queue: Path) -> list[Element]:
    found = []
    jobs: dict[str, dict[str, Any]] = {}
    for path in sorted((queue / "state").glob("*.json")):
        job_id, _, index = path.stem.partition("_")
        if job_id not in jobs:
            jobs[job_id] = read_json(queue / "jobs" / f"{job_id}.json")
        found.append(Element(path, jobs[job_id], int(index), **read_json(path)))
    return sorted(found, key=lambda e: (int(e.job["id"]), e.index))


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


def _is_served(queue: Path) -> bool:
    with _locked(queue / "serve.lock", wait=False) as free:
        return not free


def _reap(element: Element) -> bool:
    """Update a RUNNING element from its exit file or from the process table; True if it ended."""
    if element.exit_file.exists():
        code = element.exit_file.read_text()
        element.state = "COMPLETED" if code == "0" else "FAILED"
        element.detail = "" if code == "0" else f"exit code {code}"
    elif _process_start(element.pid) == element.started != "":
        return False
    elif element.exit_file.exists():
        return _reap(element)
    else:
        element.state, element.detail = "FAILED", "the process vanished"
    element.save()
    return True


def _dependency_state(element: Element, elements: list[Element]) -> str:
    """``ready``, ``wait`` or ``never`` for the dependencies of one element."""
    verdict = "ready"
    for part in filter(None, element.job["dependency"].split(",")):
        word, *ids = part.split(":")
        for job_id in ids:
            upstream = [e for e in elements if job_id in (e.job["id"], e.path.stem)]
            if word == "aftercorr":
                upstream = [e for e in upstream if e.index == element.index]
            states = {e.state for e in upstream}
            # An element without counterpart just runs (aftercorr), as with Slurm.
            if states & {"FAILED", "CANCELLED"}:
                return "never"
            if not states <= {"COMPLETED"}:
                verdict = "wait"
    return verdict


def _start(element: Element) -> None:
    job = element.job
    environment = {**os.environ, "CALLMIP_JOB_ID": job["id"]}
    environment.pop("CALLMIP_ARRAY_INDEX", None)
    if element.index:
        environment["CALLMIP_ARRAY_INDEX"] = str(element.index)
    log = Path(job["log"])
    log.mkdir(parents=True, exist_ok=True)
    name = f"{job['id']}_{element.index}" if element.index else job["id"]
    with (log / f"{name}.out").open("ab") as output:
        process = subprocess.Popen(
            ["bash", "-c", _RUN, str(element.exit_file), "bash", *job["command"]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    element.state, element.pid = "RUNNING", process.pid
    element.started = _process_start(process.pid)
    element.save()


def serve(queue: Path, slots: int) -> None:
    """Run what is queued, at most ``slots`` at a time, until nothing is left."""
    # Waits: the process before us may have decided to end but not yet be gone.
    with _locked(queue / "serve.lock", wait=True):
        (queue / "serving").write_text(str(os.getpid()))
        while _step(queue, slots):
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(_POLL_S)


def _step(queue: Path, slots: int) -> bool:
    """One round of the serving process; False when every element has ended."""
    # The same lock as `submit` and `cancel` take, so that no element changes under us.
    with _locked(queue / "queue.lock", wait=True):
        elements = _elements(queue)
        for e in elements:
            if e.state == "RUNNING":
                _reap(e)
        running = sum(e.state == "RUNNING" for e in elements)
        for e in elements:
            if e.state != "PENDING":
                continue
            verdict = _dependency_state(e, elements)
            if verdict == "never":
                e.state, e.detail = "CANCELLED", "DependencyNeverSatisfied"
                e.save()
            elif verdict == "ready" and running < slots:
                _start(e)
                running += 1
        alive = any(e.state not in _ENDED for e in elements)
        if not alive:
            # Said under the lock: a `submit` that comes now starts a new serving process.
            (queue / "serving").unlink(missing_ok=True)
        return alive


def submit(queue: Path, options: argparse.Namespace) -> int:
    """Add a job and print its id; start the serving process where none runs."""
    for folder in ("jobs", "state"):
        (queue / folder).mkdir(parents=True, exist_ok=True)
    with _locked(queue / "queue.lock", wait=True):
        if not _is_served(queue):
            _drop_unstarted(queue)
        number = 1 + max((int(p.stem) for p in (queue / "jobs").glob("*.json")), default=0)
        job = {
            "id": str(number),
            "comment": options.comment,
            "dependency": options.dependency,
            "command": options.command,
            "log": options.log,
        }
        write_json(queue / "jobs" / f"{number}.json", job)
        for index in expand_ranges(options.array) if options.array else [0]:
            Element(queue / "state" / f"{number}_{index}.json", job, index, "PENDING").save()
        if not (queue / "serving").exists() or not _is_served(queue):
            _start_serving(queue, options.slots)
    print(number)
    return 0


def _start_serving(queue: Path, slots: int) -> None:
    with (queue / "serve.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name, "serve", str(queue), f"--slots={slots}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # Wait until it serves: before that a `list` would call its pending jobs gone.
    deadline = time.monotonic() + _START_WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if (queue / "serving").read_text() == str(server.pid):
                return
        time.sleep(0.02)
    raise SystemExit(
        f"the local queue did not start within {_START_WAIT_S} s: see {queue}/serve.log"
    )


def _drop_unstarted(queue: Path) -> None:
    for e in _elements(queue):
        if e.state == "PENDING":
            e.state, e.detail = "CANCELLED", _STOPPED
            e.save()


def show(queue: Path) -> int:
    """Print ``id|index|comment|STATE|reason`` of every element."""
    if not (queue / "state").is_dir():
        return 0
    with _locked(queue / "queue.lock", wait=True):
        served = _is_served(queue)
        for e in _elements(queue):
            if e.state == "RUNNING":
                _reap(e)
            state, detail = e.state, e.detail
            if state == "PENDING" and not served:
                state, detail = "CANCELLED", _STOPPED
            index = e.index or ""
            print(f"{e.job['id']}|{index}|{e.job['comment']}|{state}|{detail}")
    return 0


def cancel(queue: Path, job_ids: list[str]) -> int:
    """Cancel jobs or elements (``id_index``): running ones by TERM and, after a while, KILL."""
    with _locked(queue / "queue.lock", wait=True):
        chosen = [
            e
            for e in _elements(queue)
            if {e.job["id"], e.path.stem} & set(job_ids) and e.state not in _ENDED
        ]
        running = [e for e in chosen if e.state == "RUNNING" and not _reap(e)]
        for e in chosen:
            if e.state == "PENDING":
                e.state, e.detail = "CANCELLED", "by the user"
                e.save()
        for sign, wait_s in ((signal.SIGTERM, _TERM_WAIT_S), (signal.SIGKILL, 1.0)):
            for e in running:
                if _process_start(e.pid) == e.started:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(e.pid, sign)
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline and any(
                _process_start(e.pid) == e.started for e in running
            ):
                time.sleep(0.05)
        for e in running:
            e.state, e.detail = "CANCELLED", "by the user"
            e.save()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``python -m callmip_global.jobs.localqueue VERB FOLDER ...``."""
    parser = argparse.ArgumentParser(prog="localqueue", description="A scheduler in a folder.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("submit")
    add.add_argument("queue", type=Path)
    add.add_argument("--comment", default="")
    add.add_argument("--dependency", default="")
    add.add_argument("--array", default="")
    add.add_argument("--log", required=True)
    add.add_argument("--slots", type=int, default=1)
    add.add_argument("command", nargs="+")
    run = verbs.add_parser("serve")
    run.add_argument("queue", type=Path)
    run.add_argument("--slots", type=int, required=True)
    verbs.add_parser("list").add_argument("queue", type=Path)
    stop = verbs.add_parser("cancel")
    stop.add_argument("queue", type=Path)
    stop.add_argument("ids", nargs="+")
    options = parser.parse_args(arguments)
    if options.verb == "submit":
        return submit(options.queue, options)
    if options.verb == "serve":
        serve(options.queue, options.slots)
        return 0
    if options.verb == "cancel":
        return cancel(options.queue, options.ids)
    return show(options.queue)


if __name__ == "__main__":
    sys.exit(main())
