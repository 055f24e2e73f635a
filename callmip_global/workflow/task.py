"""What runs inside a job: claim the task, check what it builds on, do it, verify, publish.

``python -m callmip_global.workflow.task RUN_DIR STEP UNIT TOKEN [ROW]``

A unit is a row of tasks.tsv, or a pack of them: then each of its rows is run by a process of its
own, side by side.

The rules that make a task run exactly once (design, section 5):

- A job whose token is not that of the latest intent for the task, or that finds the task done or
  owned by another live attempt, exits with code 0 without touching anything.
- The claim is the folder of the attempt: one rename makes exactly one owner of each number.
- The result is published by one link() of the success marker, after the outputs were verified and
  the claim was found to be still the latest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

from callmip_global.config.plan import Plan, Step, Task
from callmip_global.errors import CallmipError, Problem
from callmip_global.files import checked_target, write_json
from callmip_global.workflow.client import make_scheduler
from callmip_global.workflow.failures import Failure, TaskFailedError, classify
from callmip_global.workflow.joblog import LEFT, first_words
from callmip_global.workflow.journal import Intent, now, unit_of
from callmip_global.workflow.rundir import HEARTBEAT_S, Attempt, RunDir

EXIT_FAILED = 1
_UPSTREAM_WAIT_S = 15.0


class _Terminated(BaseException):
    """The scheduler asked the job to end."""


def run_unit(run: RunDir, step_name: str, unit: int, token: str) -> int:
    """Run what one job, or element, was submitted for; returns the exit code of the job."""
    intent = run.journal.intents().get(token)
    if intent is None or unit not in intent.units:
        return _leave(f"{step_name} {unit}", "no such submission")
    rows = [row for row in intent.rows if unit_of(row, intent.pack) == unit]
    if intent.pack == 1:
        return run_task(run, step_name, rows[0], token)
    return _run_pack(run, step_name, unit, rows, token)


def run_task(run: RunDir, step_name: str, row: int, token: str) -> int:
    """Run one task under a token; returns the exit code of the job.

    ``row`` is that of the table which the token was submitted from.
    """
    plan = run.plan()
    leases = run.leases()
    intent = leases.intents.get(token)
    if intent is None or row not in intent.row_set:
        return _leave(f"{step_name} row {row}", "no such submission")
    submitted = leases.tasks(intent)[intent.rows.index(row)]
    ref = f"{step_name}/{submitted.id}"
    try:
        step, task = plan.step(step_name), plan.task(ref)
    except KeyError:
        return _leave(ref, "the plan has no such task any more")
    lease = leases.latest(step, task)
    cancelled = lease is not None and lease.intent.outcome in ("cancelled", "rejected")
    if lease is None or lease.intent.token != token or cancelled:
        return _leave(ref, "another submission owns this task now")
    if lease.key != task.key:
        return _leave(ref, "the plan changed since this job was submitted")
    if run.is_done(ref, task.key):
        return _leave(ref, "already done")
    attempt = claim(run, plan, ref, task.key, lease.intent)
    if attempt is None:
        return _leave(ref, "another live attempt owns this task")
    return _Attempt(run, plan, step, task, attempt, lease.intent).perform()


def _run_pack(run: RunDir, step_name: str, unit: int, rows: Sequence[int], token: str) -> int:
    """Run the tasks of a pack side by side, each in a process of its own, and wait for all.

    A task whose process was killed (by the memory limit, say) cannot speak for itself any more.
    """
    children = {
        row: subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name, str(run.path), step_name, str(unit), token,
             str(row)],
            stdin=subprocess.DEVNULL,
        )
        for row in rows
    }  # fmt: skip

    def pass_on(signum: int, frame: FrameType | None) -> None:
        for child in children.values():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signum)

    signal.signal(signal.SIGTERM, pass_on)
    codes = {row: child.wait() for row, child in children.items()}
    for row, code in codes.items():
        if code < 0:
            _speak_for(run, step_name, row, token, children[row].pid, code)
    return EXIT_FAILED if any(codes.values()) else 0


def _speak_for(run: RunDir, step_name: str, row: int, token: str, pid: int, code: int) -> None:
    leases = run.leases()
    intent = leases.intents[token]
    task = leases.tasks(intent)[intent.rows.index(row)]
    for attempt in run.attempts(f"{step_name}/{task.id}"):
        if attempt.state == "running" and attempt.status["pid"] == pid:
            failure = classify(attempt.path, "the process of this task was killed", code)
            status = {**attempt.status, "state": "failed", "ended": now()}
            write_json(attempt.path / "status.json", {**status, "failure": failure.to_json()})


def _leave(ref: str, why: str) -> int:
    print(f"{ref}: {why}; {LEFT}")
    return 0


def claim(run: RunDir, plan: Plan, ref: str, key: str, lease: Intent) -> Attempt | None:
    """A new attempt of the task, or None while another live attempt owns it.

    An earlier attempt is dead when it said so, when it was this very job (started again by the
    scheduler), when the scheduler had let go of it before this job was submitted, when its process
    on this machine is gone, or when it gave no sign of life for `STALE_S`.
    """
    folder = checked_target(run.path, f"steps/{ref}/done.json").parent
    job_id = os.environ.get(make_scheduler(plan.settings["site"], run.path).facts.job_id_variable)
    attempts = run.attempts(ref)
    if attempts:
        last = attempts[-1]
        owner = last.status
        again = owner.get("job_id") == job_id and owner.get("token") == lease.token
        replaced = owner.get("token") in lease.replaces
        dead = again or replaced or last.owner_vanished() or not last.is_fresh()
        if last.state == "running" and not dead:
            return None
    number = attempts[-1].number + 1 if attempts else 1
    path = folder / f"attempt-{number:02d}"
    status = {
        "state": "running",
        "token": lease.token,
        "job_id": job_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": now(),
        "key": key,
    }
    # The folder appears with its owner's name in it, or not at all: renaming onto a folder that
    # holds a file fails, so of two jobs one gets the number.
    draft = folder / f".attempt-{uuid4().hex}"
    draft.mkdir()
    write_json(draft / "status.json", status)
    try:
        draft.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(draft)
        return None
    return Attempt(path, number, status)


class _Attempt:
    """One attempt from claim to publication."""

    def __init__(
        self, run: RunDir, plan: Plan, step: Step, task: Task, attempt: Attempt, intent: Intent
    ) -> None:
        self.run, self.plan, self.step, self.task = run, plan, step, task
        self.attempt, self.intent = attempt, intent
        self.ref = f"{step.name}/{task.id}"
        self.begun = time.monotonic()

    def perform(self) -> int:
        """Do the task; the outcome is in status.json, and in done.json if it succeeded."""
        begin = first_words(self.ref, self.attempt.number)
        print(f"{begin}{socket.gethostname()}", flush=True)
        if self.run.is_done(self.ref, self.task.key):
            # Published by a second job of the same submission between our look and our claim.
            self._status("left", {"why": "already done"})
            return 0
        signal.signal(signal.SIGTERM, _on_term)
        try:
            with self._heartbeat():
                upstream = self._upstream()
                self.run.retire_marker(self.ref, self.task.key)
                result = self._work(upstream)
                return self._publish(result)
        except _Terminated:
            return self._fail(self._ended_by_scheduler())
        except TaskFailedError as error:
            failure = error.failure
            if failure.kind == "node" and failure.exit_code in (143, -signal.SIGTERM):
                # The scheduler tells all processes of a job; the model may end before we hear it.
                failure = self._over_time() or failure
            return self._fail(failure)
        except CallmipError as error:
            return self._fail(Failure("input", str(error)))
        except OSError as error:
            return self._fail(Failure("node", f"{type(error).__name__}: {error}"))
        except MemoryError:
            return self._fail(Failure("memory", "out of memory in the job itself"))
        except Exception as error:  # a defect of ours: the log has the traceback, status the line
            import traceback

            traceback.print_exc()
            return self._fail(Failure("internal", f"{type(error).__name__}: {error}"))

    def _work(self, upstream: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        if self.step.kind == "run":
            from callmip_global.workflow.model_run import run_segment

            return run_segment(
                self.plan,
                self.step,
                self.task,
                self.attempt.path,
                upstream,
                piece_years=self.intent.segment_years,
            )
        if self.step.kind == "merge":
            from callmip_global.workflow.model_run import run_merge

            return run_merge(self.plan, self.step, self.task, self.attempt.path, upstream)
        from callmip_global.workflow.engines import run_engine

        return run_engine(self.run, self.plan, self.step, self.task, self.attempt.path, upstream)

    def _upstream(self) -> dict[str, Mapping[str, Any]]:
        """Success markers of everything this task builds on.

        The scheduler's word is not enough: Slurm runs a job whose dependency it has forgotten.
        Waits a little, for a marker made on another node may be slow to show.
        """
        keys = {ref: self.plan.task(ref).key for ref in self.task.upstream}
        deadline = time.monotonic() + _UPSTREAM_WAIT_S
        while True:
            missing = [r for r in self.task.upstream if not self.run.is_done(r, keys[r])]
            if not missing:
                break
            if time.monotonic() > deadline:
                raise TaskFailedError(Failure("upstream", f"not done: {', '.join(missing[:5])}"))
            time.sleep(0.5)
        found = {}
        for ref in self.task.upstream:
            marker = self.run.marker(ref)
            if marker is not None:
                found[ref] = marker
        return found

    def _publish(self, result: Mapping[str, Any]) -> int:
        if self.run.attempts(self.ref)[-1].number != self.attempt.number:
            self._status("left", {"why": "a later attempt took over"})
            return 0
        marker = {
            "key": self.task.key,
            "attempt": self.attempt.path.name,
            "token": self.attempt.status["token"],
            "job_id": self.attempt.status["job_id"],
            "host": self.attempt.status["host"],
            "started": self.attempt.status["started"],
            "finished": now(),
            "seconds": round(time.monotonic() - self.begun, 3),
            **result,
        }
        if not self.run.publish(self.ref, marker):
            self._status("left", {"why": "another attempt was published first"})
            return 0
        self._status("done", {})
        shutil.rmtree(self.attempt.path.parent / "pieces", ignore_errors=True)
        print(f"{self.ref}: done in {marker['seconds']:.1f} s")
        return 0

    def _fail(self, failure: Failure) -> int:
        # A second TERM must not cut off the last words.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._status("failed", {"failure": failure.to_json()})
        print(f"{self.ref}: failed ({failure.kind}): {failure.message}", file=sys.stderr)
        return EXIT_FAILED

    def _ended_by_scheduler(self) -> Failure:
        what = "ended by the scheduler or the user"
        return self._over_time() or classify(self.attempt.path, what, -signal.SIGTERM)

    def _over_time(self) -> Failure | None:
        """That the attempt was ended at its time limit, if it has been going on for so long."""
        spent = time.monotonic() - self.begun
        limit = self.intent.walltime_s or self.step.resources["walltime_s"]
        if spent < 0.9 * limit:
            return None
        return Failure("walltime", f"ended by the scheduler after {spent:.0f} s of {limit} s")

    def _status(self, state: str, fields: Mapping[str, Any]) -> None:
        status = {**self.attempt.status, "state": state, "ended": now(), **fields}
        write_json(self.attempt.path / "status.json", status)

    @contextlib.contextmanager
    def _heartbeat(self) -> Iterator[None]:
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_S):
                with contextlib.suppress(OSError):
                    os.utime(self.attempt.path / "status.json", follow_symlinks=False)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _on_term(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def main(arguments: list[str]) -> int:
    """Entry point of the job script."""
    try:
        run_dir, step, unit, token, *row = arguments
        if row:
            return run_task(RunDir(Path(run_dir)), step, int(row[0]), token)
        return run_unit(RunDir(Path(run_dir)), step, int(unit), token)
    except (ValueError, KeyError, IndexError) as error:
        print(Problem("job arguments", found=f"{arguments} ({error})"), file=sys.stderr)
        return EXIT_FAILED
    except CallmipError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
