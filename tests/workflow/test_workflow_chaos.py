"""Everything that can go wrong, at random but repeatably: lost replies, crashes, forgotten jobs.

A scheduler in memory runs the jobs' own code in this process, each job in a thread that goes on
only when it is told to, so that commands and other jobs come between its steps. It loses replies,
hides new jobs for a while, does not answer, forgets what ended, starts a job again, submits twice
what was asked once, goes on running what it said it had cancelled. Commands and jobs die at any
write. Whatever the sequence: one result for each task, never a task run again after its result was
published, never two results, and in the end a correct status.
"""

from __future__ import annotations

import os
import random
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from callmip_global import files
from callmip_global.errors import SchedulerError
from callmip_global.jobs.local import Local
from callmip_global.jobs.scheduler import JobRecord, JobState, Submission
from callmip_global.workflow import api, model_run, rundir, submit, task
from callmip_global.workflow.client import Client, Outcome, Reply
from callmip_global.workflow.rundir import Attempt, RunDir

SEQUENCES = 60


class CrashError(BaseException):
    """kill -9, for one command or one job."""


@dataclass
class Job:
    job_id: str
    submission: Submission
    row: int
    state: str = "PENDING"
    hidden: int = 0
    thread: threading.Thread | None = None
    go: threading.Event = field(default_factory=threading.Event)
    rest: threading.Event = field(default_factory=threading.Event)
    dies: bool = False

    @property
    def index(self) -> int:
        return self.row - self.submission.offset


@dataclass
class World:
    """A scheduler in memory, and the luck of one sequence."""

    luck: random.Random
    run: RunDir
    trouble: float
    jobs: list[Job] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    current: Job | None = None

    def happens(self, chance: float) -> bool:
        return self.luck.random() < chance * self.trouble

    # What the commands see.

    def submit(self, submission: Submission) -> Reply:
        if self.happens(0.10):
            raise CrashError
        if self.happens(0.05):
            return Reply(Outcome.QUEUE_FULL, message="job submit limit")
        if self.happens(0.10):
            return Reply(Outcome.UNKNOWN, message="Socket timed out")
        hidden = self.luck.randint(1, 3) if self.happens(0.2) else 0
        job_id = self._accept(submission, hidden)
        if self.happens(0.05):
            self._accept(submission, hidden)
        if self.happens(0.10):
            raise CrashError
        if self.happens(0.15):
            return Reply(Outcome.UNKNOWN, message="Socket timed out")
        return Reply(Outcome.ACCEPTED, job_id)

    def _accept(self, submission: Submission, hidden: int) -> str:
        job_id = str(len({job.job_id for job in self.jobs}) + 1)
        self.jobs += [Job(job_id, submission, row, hidden=hidden) for row in submission.indices]
        return job_id

    def list(self) -> list[JobRecord]:
        self.step()
        if self.happens(0.08):
            raise SchedulerError("Unable to contact slurm controller")
        records = []
        for job in self.jobs:
            job.hidden -= 1
            if job.hidden >= 0 or job.state == "FORGOTTEN":
                continue
            state = {
                "PENDING": JobState.LIVE,
                "RUNNING": JobState.LIVE,
                "COMPLETED": JobState.GONE,
            }
            index = job.index if job.submission.is_array else None
            records.append(
                JobRecord(
                    job.job_id,
                    index,
                    job.submission.token,
                    state.get(job.state, JobState.FAILED),
                    job.state,
                )
            )
        return records

    def cancel(self, ids: Sequence[str]) -> str:
        for job in self.jobs:
            if not {job.job_id, f"{job.job_id}_{job.index}"} & set(ids):
                continue
            if job.state == "PENDING":
                job.state = "CANCELLED"
            elif job.state == "RUNNING":
                self._kill(job, "CANCELLED")
        return ""

    # What goes on meanwhile.

    def step(self) -> None:
        """Let some jobs begin, go on, end or die."""
        for _ in range(self.luck.randint(0, 4)):
            ready = [j for j in self.jobs if j.state == "RUNNING" or self._may_start(j)]
            if not ready:
                return
            job = self.luck.choice(ready)
            if job.state == "PENDING":
                self._start(job)
            elif self.happens(0.15):
                self._kill(job, "PENDING" if self.luck.random() < 0.5 else "NODE_FAIL")
            else:
                self._resume(job)
        for job in self.jobs:
            if job.state not in ("PENDING", "RUNNING", "FORGOTTEN") and self.happens(0.1):
                job.state = "FORGOTTEN"

    def _may_start(self, job: Job) -> bool:
        if job.state != "PENDING":
            return False
        for wait in job.submission.depends:
            upstream = [j for j in self.jobs if j.job_id == wait.job_id]
            if wait.elementwise:
                upstream = [j for j in upstream if j.index == job.index]
            states = {j.state for j in upstream}
            if states & {"FAILED", "CANCELLED", "NODE_FAIL"}:
                job.state = "CANCELLED"
                return False
            # What Slurm has forgotten counts as satisfied.
            if states - {"COMPLETED", "FORGOTTEN"}:
                return False
        return True

    def _start(self, job: Job) -> None:
        """Run a job until its model is running, or to its end if it does not come so far."""
        job.state, job.dies = "RUNNING", False
        job.thread = threading.Thread(target=self._body, args=(job,), daemon=True)
        self._resume(job)

    def _resume(self, job: Job) -> None:
        assert job.thread is not None
        self.current = job
        job.rest.clear()
        if job.thread.ident is None:
            job.thread.start()
        else:
            job.go.set()
        assert job.rest.wait(30), "a job neither rests nor ends"
        self.current = None

    def _kill(self, job: Job, state: str) -> None:
        job.dies = True
        self._resume(job)
        assert job.thread is not None
        job.thread.join(30)
        job.state = state

    def _body(self, job: Job) -> None:
        os.environ["CALLMIP_JOB_ID"] = f"{job.job_id}.{job.row}"
        step = job.submission.script.parent.name
        try:
            code = task.run_task(self.run, step, job.row, job.submission.token)
            job.state = "COMPLETED" if code == 0 else "FAILED"
        except CrashError:
            job.state = "NODE_FAIL"
        finally:
            job.rest.set()

    # What the model is.

    def model(self, environment: str, command: str, attempt: Path) -> None:
        job = self.current
        assert job is not None
        ref = "/".join(attempt.parts[-3:-1])
        if ref in self.running:
            self.wrong.append(f"{ref} runs twice at the same time")
        if (attempt.parent / "done.json").exists():
            self.wrong.append(f"{ref} runs again after its result")
        self.running.append(ref)
        try:
            job.go.clear()
            job.rest.set()
            assert job.go.wait(30), "a resting job was forgotten"
            if job.dies:
                raise CrashError
            before = attempt / "restart_in" / "years.txt"
            years = int(before.read_text()) if before.exists() else 0
            (attempt / "restart_out" / "years.txt").write_text(str(years + 1))
            if (attempt / "out").is_dir():
                first = shlex.split(command)[2]
                (attempt / "out" / f"mon_{first}.txt").write_text(str(years + 1))
        finally:
            self.running.remove(ref)
        if self.happens(0.05):
            raise task.TaskFailedError(task.Failure("model", "bad luck"))

    def die_perhaps(self) -> None:
        if self.happens(0.03):
            raise CrashError


@pytest.fixture
def world(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], World]]:
    """``world(seed)``: the toy's run directory in a world with the luck of that seed."""

    def make(seed: int) -> World:
        luck = random.Random(seed)
        new = World(luck, RunDir(toy.run_dir), trouble=1.0)
        monkeypatch.setattr(Client, "submit", lambda self, submission: new.submit(submission))
        monkeypatch.setattr(Client, "jobs", lambda self: new.list())
        monkeypatch.setattr(Client, "cancel", lambda self, ids: new.cancel(ids))
        monkeypatch.setattr(model_run, "_run_command", new.model)
        real = files.write_atomic

        def dying_write(path: Path, text: str, *, mode: int | None = None) -> None:
            new.die_perhaps()
            real(path, text, mode=mode)
            new.die_perhaps()

        def dying_json(path: Path, value: Any) -> None:
            new.die_perhaps()
            files.write_json(path, value)
            new.die_perhaps()

        def gives_signs_of_life(attempt: Attempt) -> bool:
            """A dead attempt may look alive for a while, a living one never looks dead."""
            alive = any(
                job.state == "RUNNING" and f"{job.job_id}.{job.row}" == attempt.status["job_id"]
                for job in new.jobs
            )
            return alive or new.happens(0.3)

        monkeypatch.setattr(Attempt, "is_fresh", gives_signs_of_life)
        for module in (task, rundir):
            monkeypatch.setattr(module, "write_json", dying_json)
        monkeypatch.setattr(submit, "write_json", dying_json)
        monkeypatch.setattr(submit, "write_atomic", dying_write)
        return new

    monkeypatch.setattr(submit, "SETTLE_S", 0.02)
    monkeypatch.setattr(submit, "_SETTLE_POLL_S", 0.002)
    monkeypatch.setattr("callmip_global.workflow.observe.SETTLE_S", 0.0)
    monkeypatch.setattr(task, "_UPSTREAM_WAIT_S", 0.0)
    monkeypatch.setattr(task.signal, "signal", lambda *_: None)
    yield make
    os.environ.pop("CALLMIP_JOB_ID", None)


def one_command(world: World, toy: Any) -> None:
    """Whatever a user may do next."""
    try:
        if world.luck.random() < 0.1 and (world.run.path / "plan.json").exists():
            api.cancel(world.run.path, say=lambda _: None)
        else:
            toy.submit(retry_failed=world.luck.random() < 0.7)
    except (CrashError, SchedulerError):
        pass


def results(run: RunDir) -> dict[str, list[str]]:
    """States of all attempts of each run task that has any."""
    return {
        f"{folder.parent.name}/{folder.name}": [
            a.state for a in run.attempts(f"{folder.parent.name}/{folder.name}")
        ]
        for folder in sorted((run.path / "steps").glob("*/*"))
    }


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_whatever_goes_wrong_each_task_has_exactly_one_result(
    world: Callable[[int], World], toy: Any, seed: int
) -> None:
    here = world(seed)
    for _ in range(here.luck.randint(3, 12)):
        one_command(here, toy)
        here.step()
    # The trouble ends, and a user goes on submitting until it is done.
    here.trouble = 0.0
    for _ in range(60):
        toy.submit(retry_failed=True)
        for _ in range(4):
            here.step()
        if set(toy.states().values()) == {"done"}:
            break
    assert set(toy.states().values()) == {"done"}, toy.states()
    assert here.wrong == []
    for ref, attempts in results(here.run).items():
        assert attempts.count("done") <= 1, (ref, attempts)
    # Years add up over the chain: each segment began with the restart of the one before it.
    for stage in ("Prior", "Posterior"):
        marker = here.run.marker(f"run-historical-1963-2024/S3.{stage}")
        assert marker is not None
        last = here.run.task_dir(f"run-historical-1963-2024/S3.{stage}") / marker["attempt"]
        assert (last / "restart_out" / "years.txt").read_text() == "4"


def test_the_local_scheduler_is_what_the_chaos_stands_in_for(toy: Any) -> None:
    """A guard: were the toy not on `local`, the patched client would stand in for nothing."""
    run, plan = api.prepare(toy.experiment)
    assert isinstance(api.client_of(run, plan).scheduler, Local)
