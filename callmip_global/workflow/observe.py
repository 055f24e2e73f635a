"""The state of every task, from markers, attempts, the journal and (where it answers) the queue.

Truth is the marker, never the queue alone: a scheduler that cannot be reached changes nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from callmip_global.config.plan import Plan, Step, Task
from callmip_global.jobs.scheduler import JobRecord, JobState, Wait
from callmip_global.workflow.client import make_scheduler
from callmip_global.workflow.failures import Failure, failure_from_json, log_tail
from callmip_global.workflow.joblog import JobLog, first_words, read_job_log
from callmip_global.workflow.journal import Intent, age_s
from callmip_global.workflow.lease import Lease, Leases
from callmip_global.workflow.rundir import PRUNED, Attempt, RunDir

STATES = (
    "done",
    "running",
    "queued",
    "waiting",
    "submitting",
    "failed",
    "held",
    "blocked",
    "cancelled",
    "unknown",
)
"""done: success marker with the plan's key. running, queued: the scheduler has it. waiting: not
submitted yet, or it left the queue before it started. submitting: asked for, reply not known.
failed. held: in the queue, but something it builds on failed. blocked: the same, and not in the
queue. cancelled: by the user. unknown: submitted, and the scheduler does not answer."""

SETTLE_S = 12.0
"""How long a submitted job may take to show in the queue."""

ALIVE = ("running", "queued", "submitting", "unknown")

_KINDS = (("TIMEOUT", "walltime"), ("DEADLINE", "walltime"), ("OUT_OF_ME", "memory"))
"""Class of failure by the state that the scheduler gives an ended job."""


@dataclass(frozen=True, slots=True)
class TaskState:
    """One task as it stands. ``lease`` is its latest submission that was not lost; ``problems``
    are what a task that is done could not use (a benchmark product, say); ``dead_token`` is that
    of a last attempt that says it is running and does not live."""

    ref: str
    step: Step
    task: Task
    state: str
    attempts: int = 0
    failure: Failure | None = None
    lease: Lease | None = None
    detail: str = ""
    problems: tuple[str, ...] = ()
    dead_token: str | None = None

    @property
    def intent(self) -> Intent | None:
        return self.lease.intent if self.lease else None

    @property
    def job_id(self) -> str | None:
        return self.lease.intent.job_id if self.lease else None

    def to_json(self) -> dict[str, Any]:
        """One entry of ``status --json``."""
        return {
            "step": self.step.name,
            "task": self.task.id,
            "simulation": self.task.simulation,
            "shared_by": list(self.task.shared_by),
            "stage": self.task.stage,
            "member": self.task.member,
            "tile": self.task.tile,
            "state": self.state,
            "attempts": self.attempts,
            "failure": self.failure.to_json() if self.failure else None,
            "job_id": self.job_id,
            "detail": self.detail,
            "problems": list(self.problems),
        }


class Queue:
    """The scheduler's list of jobs, found by token and element."""

    def __init__(self, records: Sequence[JobRecord]) -> None:
        self._by_token: dict[str, list[JobRecord]] = {}
        for record in records:
            self._by_token.setdefault(record.token, []).append(record)
        self.live = sum(r.size for r in records if r.state is JobState.LIVE)
        ended = (JobState.GONE, JobState.FAILED)
        self._present_ids = {r.job_id for r in records if r.state not in ended}

    def job_id(self, token: str) -> str | None:
        """Job id of a token that the scheduler knows."""
        for record in self._by_token.get(token, ()):
            return record.job_id
        return None

    def live_ids(self, token: str) -> list[str]:
        """Every job that lives under a token: two where a submission was accepted twice."""
        records = self._by_token.get(token, ())
        return list(dict.fromkeys(r.job_id for r in records if r.state is JobState.LIVE))

    def record(self, intent: Intent, row: int) -> JobRecord | None:
        """The record of one task of a submission; that of the whole array if it is all there is.

        Of two jobs under one token (a retried submission) the live one counts.
        """
        index = intent.array_index(row)
        found = whole = None
        for record in self._by_token.get(intent.token, ()):
            if record.indices is None:
                whole = _livelier(whole, record)
            elif index is not None and index in record.indices:
                found = _livelier(found, record)
        return found or whole

    def is_live(self, intent: Intent, row: int) -> bool:
        record = self.record(intent, row)
        return record is not None and record.state is JobState.LIVE

    def has_live(self, intent: Intent) -> bool:
        """Whether anything of a submission lives."""
        records = self._by_token.get(intent.token, ())
        return any(record.state is JobState.LIVE for record in records)

    def waits_in_vain(self, intent: Intent, row: int, depends: Iterable[str]) -> bool:
        """Whether a pending task waits for jobs that will never let it go.

        So the scheduler says (Slurm), or none of them is there any more: PBS holds for ever what it
        is asked to let wait for a job that is just ending.
        """
        index = intent.array_index(row)
        waits = {
            record.wait
            for record in self._by_token.get(intent.token, ())
            if record.state is JobState.LIVE
            and (record.indices is None or (index is not None and index in record.indices))
        }
        if Wait.NEVER in waits:
            return True
        return Wait.JOBS in waits and self._present_ids.isdisjoint(depends)


def _livelier(one: JobRecord | None, other: JobRecord) -> JobRecord:
    return one if one is not None and one.state is JobState.LIVE else other


def observe(run: RunDir, plan: Plan, queue: Queue | None) -> dict[str, TaskState]:
    """State of every task by ``step/task``, in graph order. ``queue`` None: no answer."""
    return Observer(run, plan, queue).all()


class Observer:
    """One look at a run: what the journal and the queue said then, and the markers as they are."""

    def __init__(self, run: RunDir, plan: Plan, queue: Queue | None) -> None:
        self.run, self.plan, self.queue = run, plan, queue
        self.leases: Leases = run.leases()
        self.scheduler = make_scheduler(plan.settings["site"], run.path)

    def all(self) -> dict[str, TaskState]:
        """State of every task by ``step/task``, in graph order."""
        states: dict[str, TaskState] = {}
        for step in self.plan.steps:
            begun = self._begun(step)
            for task in step.tasks:
                ref = f"{step.name}/{task.id}"
                state = self._state(step, task, ref, begun=task.id in begun)
                if state.state in ("waiting", "queued"):
                    state = _with_upstream(state, states)
                states[ref] = state
        return states

    def some(self, refs: Iterable[str]) -> dict[str, TaskState]:
        """States of these tasks alone: whether a queued one is held is not looked at."""
        states = {}
        begun: dict[str, set[str]] = {}
        for ref in refs:
            name, _, task_id = ref.partition("/")
            step = self.plan.step(name)
            if name not in begun:
                begun[name] = self._begun(step)
            states[ref] = self._state(step, self.plan.task(ref), ref, begun=task_id in begun[name])
        return states

    def _begun(self, step: Step) -> set[str]:
        """Tasks of a step that have a folder: one look instead of one for each task."""
        try:
            with os.scandir(self.run.path / "steps" / step.name) as entries:
                return {entry.name for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def _state(self, step: Step, task: Task, ref: str, *, begun: bool) -> TaskState:
        lease = self.leases.latest(step, task)
        if not begun:
            base = TaskState(ref, step, task, "waiting", lease=lease)
            return base if lease is None else self._submitted(base, lease, None)
        marker = self.run.marker(ref)
        if marker is not None and marker["key"] == task.key:
            number = int(str(marker["attempt"]).rpartition("-")[2])
            problems = tuple(marker.get("problems", ()))
            return TaskState(ref, step, task, "done", number, lease=lease, problems=problems)
        attempts = [a for a in self.run.attempts(ref) if a.state != "left"]
        base = TaskState(ref, step, task, "waiting", len(attempts), lease=lease)
        last = attempts[-1] if attempts else None
        if last is not None and last.state == "running":
            token = str(last.status["token"])
            owner = self._owner(step, task, token)
            life = self._life(last, owner)
            current = owner is not None and owner == lease and owner.key == task.key
            if current and self._was_put_back(last, owner):
                return replace(base, state="queued", detail="to be started again")
            if life is not JobState.GONE:
                state = "running" if life is JobState.LIVE else "unknown"
                return replace(base, state=state, lease=owner)
            base = replace(base, dead_token=token)
        if last is not None and last.status.get("key") != task.key:
            last = None
        if lease is None:
            return _without_job(base, last)
        return self._submitted(base, lease, last)

    def _owner(self, step: Step, task: Task, token: str) -> Lease | None:
        """The submission that an attempt belongs to."""
        for lease in self.leases.history(step, task):
            if lease.intent.token == token:
                return lease
        return None

    def _submitted(self, base: TaskState, lease: Lease, last: Attempt | None) -> TaskState:
        """A task that was submitted, has no success marker, and no attempt that lives."""
        queue, intent, row = self.queue, lease.intent, lease.row
        if lease.key != base.task.key:
            return _without_job(base, last)
        if intent.outcome == "cancelled":
            live = queue is not None and queue.is_live(intent, row)
            return replace(base, state="cancelled", detail="still ending" if live else "")
        if intent.outcome == "rejected":
            return replace(base, state="failed", failure=Failure("submit", intent.message))
        if intent.is_open:
            return replace(base, state="submitting")
        mine = last if last is not None and last.status.get("token") == intent.token else None
        if mine is not None and mine.state == PRUNED:
            return replace(base, detail="its files were pruned, so it runs again")
        # A failed attempt of a job that lives is one that the scheduler starts again (requeue).
        if mine is not None and mine.state == "failed" and not self._starts_again(lease):
            return self._failed(base, lease, mine)
        if queue is None:
            return replace(base, state="unknown", detail="the scheduler does not answer")
        record = queue.record(intent, row)
        if record is not None and record.state is JobState.LIVE:
            state = "held" if record.wait is Wait.NEVER else "queued"
            return replace(base, state=state, detail=record.detail)
        if record is not None and record.state is JobState.UNKNOWN:
            return replace(base, state="unknown", detail=record.detail)
        # An element that is missing where others of its array are listed was cancelled: Slurm
        # forgets at once what was still pending.
        unlisted = queue.job_id(intent.token) is None
        if unlisted and mine is None and intent.age_s() < SETTLE_S:
            return replace(base, state="queued", detail="not in the scheduler's list yet")
        if self.run.is_done(base.ref, base.task.key):  # it finished between the two looks
            return replace(base, state="done")
        return self._gone(base, lease, mine, record)

    def _was_put_back(self, attempt: Attempt, owner: Lease | None) -> bool:
        """Whether the scheduler put the job of an attempt back into the queue (its node is gone).

        Right after its start an attempt may be younger than the list of jobs.
        """
        record = self.queue.record(owner.intent, owner.row) if self.queue and owner else None
        if record is None or record.state is not JobState.LIVE:
            return False
        pending = record.detail.split(" ")[0] in self.scheduler.facts.pending
        return pending and age_s(str(attempt.status["started"])) > SETTLE_S

    def _failed(self, base: TaskState, lease: Lease, attempt: Attempt) -> TaskState:
        """A task whose attempt failed. Why the scheduler ended it, the log of the job may know."""
        state = _without_job(base, attempt)
        failure = state.failure
        if failure is None or failure.kind != "node" or failure.exit_code != -signal.SIGTERM:
            return state
        log = self._job_log(base, lease, attempt)
        if log is None or not log.kind:
            return state
        message = f"ended by the scheduler: {log.line}"
        return replace(state, failure=replace(failure, kind=log.kind, message=message))

    def _gone(
        self, base: TaskState, lease: Lease, attempt: Attempt | None, record: JobRecord | None
    ) -> TaskState:
        """A submitted task whose job has left the queue, and that left no success marker."""
        detail = record.detail if record else ""
        log = self._job_log(base, lease, attempt)
        if attempt is None:
            ended = record is not None and record.state is JobState.FAILED
            spoke = log is not None and not log.is_left
            if "CANCELLED" in detail or not (ended or spoke):
                return replace(base, detail=detail or "left the queue before it started")
            kind = log.kind if log and log.kind else "node"
            said = [part for part in (detail, log.line if log else "") if part]
            text = ": ".join(["the job ended before the task began", *said])
            folder = self.run.job_dir(base.step.name) / "log"
            path, tail = (log.path, log.tail) if log else (folder, ())
            return replace(base, state="failed", failure=Failure(kind, text, None, str(path), tail))
        kind = log.kind if log and log.kind else "node"
        for words, name in _KINDS:
            if words in detail:
                kind = name
        said = [part for part in (detail, log.line if log else "") if part]
        text = ": ".join(["the job ended without a word of the task", *said])
        log_path, tail = log_tail(attempt.path)
        if not tail and log is not None:
            log_path, tail = str(log.path), log.tail
        return replace(base, state="failed", failure=Failure(kind, text, None, log_path, tail))

    def _job_log(self, base: TaskState, lease: Lease, attempt: Attempt | None) -> JobLog | None:
        begin = first_words(base.ref, attempt.number) if attempt else ""
        return read_job_log(self.run, self.scheduler, lease, begin)

    def _starts_again(self, lease: Lease) -> bool:
        """Whether the job of a failed attempt lives on, which the scheduler then starts again.

        A packed job lives for as long as its other tasks run: that says nothing about this one.
        """
        live = self.queue is not None and self.queue.is_live(lease.intent, lease.row)
        return live and lease.intent.pack == 1

    def _life(self, attempt: Attempt, owner: Lease | None) -> JobState:
        """Whether an attempt that says it is running lives: LIVE, GONE or UNKNOWN.

        That the scheduler does not list a job is no evidence against a sign of life: new jobs show
        up late, and some schedulers forget at once. That it says the job ended is.
        """
        if attempt.owner_vanished():
            return JobState.GONE
        queue = self.queue
        record = queue.record(owner.intent, owner.row) if queue and owner else None
        if record is not None:
            return JobState.GONE if record.state is JobState.FAILED else record.state
        if not attempt.is_fresh():
            return JobState.GONE if queue is not None else JobState.UNKNOWN
        return JobState.LIVE if queue is not None else JobState.UNKNOWN


def _with_upstream(state: TaskState, states: Mapping[str, TaskState]) -> TaskState:
    """A task that something it builds on keeps from running: held in the queue, else blocked."""
    for ref in state.task.upstream:
        found = states[ref].state
        if state.state == "waiting" and found in ("failed", "blocked", "held"):
            return replace(state, state="blocked", detail=f"waits for {ref}")
        if state.state == "queued" and found not in ("done", *ALIVE):
            return replace(state, state="held", detail=f"waits for {ref}, which is {found}")
    return state


def _without_job(base: TaskState, last: Attempt | None) -> TaskState:
    if last is not None and last.state == "failed":
        return replace(base, state="failed", failure=failure_from_json(last.status["failure"]))
    return base


def counts(states: Mapping[str, TaskState]) -> dict[str, int]:
    """How many tasks are in each state, in the order of `STATES`, without zeros."""
    found = dict.fromkeys(STATES, 0)
    for state in states.values():
        found[state.state] += 1
    return {name: n for name, n in found.items() if n}
