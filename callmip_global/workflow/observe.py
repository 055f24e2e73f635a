"""The state of every task, from markers, attempts, the journal and (where it answers) the queue.

Truth is the marker, never the queue alone: a scheduler that cannot be reached changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from callmip_global.config.plan import Plan, Step, Task
from callmip_global.jobs.scheduler import JobRecord, JobState
from callmip_global.workflow.failures import Failure, failure_from_json, log_tail
from callmip_global.workflow.journal import Intent, latest_intents
from callmip_global.workflow.rundir import Attempt, RunDir

STATES = (
    "done",
    "running",
    "queued",
    "waiting",
    "submitting",
    "failed",
    "blocked",
    "cancelled",
    "unknown",
)
"""done: success marker with the plan's key. running, queued: the scheduler has it. waiting: not
submitted yet, or it left the queue before it started. submitting: asked for, reply not known.
failed. blocked: something it builds on failed. cancelled: by the user. unknown: submitted, and the
scheduler does not answer."""

SETTLE_S = 12.0
"""How long a submitted job may take to show in the queue."""

ALIVE = ("running", "queued", "submitting", "unknown")


@dataclass(frozen=True)
class TaskState:
    """One task as it stands. ``intent`` is its latest submission that was not lost; ``problems``
    are what a task that is done could not use (a benchmark product, say); ``dead_token`` is that
    of a last attempt that says it is running and does not live."""

    ref: str
    step: Step
    task: Task
    state: str
    attempts: int = 0
    failure: Failure | None = None
    intent: Intent | None = None
    detail: str = ""
    problems: tuple[str, ...] = ()
    dead_token: str | None = None

    @property
    def job_id(self) -> str | None:
        return self.intent.job_id if self.intent else None

    def to_json(self) -> dict[str, Any]:
        """One entry of ``status --json``."""
        return {
            "step": self.step.name,
            "task": self.task.id,
            "simulation": self.task.simulation,
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
        self._by_token: dict[str, dict[int | None, JobRecord]] = {}
        for record in records:
            known = self._by_token.setdefault(record.token, {})
            before = known.get(record.index)
            # Two jobs under one token (a retried submission): the live one counts.
            if before is None or before.state is not JobState.LIVE:
                known[record.index] = record
        self.live = sum(r.state is JobState.LIVE for r in records)

    def job_id(self, token: str) -> str | None:
        """Job id of a token that the scheduler knows."""
        for record in self._by_token.get(token, {}).values():
            return record.job_id
        return None

    def record(self, intent: Intent, row: int) -> JobRecord | None:
        """The record of one task of a submission; that of the whole array if it is all there is."""
        known = self._by_token.get(intent.token, {})
        return known.get(intent.array_index(row)) or known.get(None)

    def is_live(self, intent: Intent, row: int) -> bool:
        record = self.record(intent, row)
        return record is not None and record.state is JobState.LIVE


def observe(run: RunDir, plan: Plan, queue: Queue | None) -> dict[str, TaskState]:
    """State of every task by ``step/task``, in graph order. ``queue`` None: no answer."""
    intents = run.journal.intents()
    latest = latest_intents(intents)
    states: dict[str, TaskState] = {}
    for step, task in plan.tasks():
        ref = f"{step.name}/{task.id}"
        state = _task_state(run, step, task, intents, latest.get(ref), queue)
        if state.state == "waiting":
            held = [r for r in task.upstream if states[r].state in ("failed", "blocked")]
            if held:
                state = replace(state, state="blocked", detail=f"waits for {held[0]}")
        states[ref] = state
    return states


def _task_state(
    run: RunDir,
    step: Step,
    task: Task,
    intents: Mapping[str, Intent],
    intent: Intent | None,
    queue: Queue | None,
) -> TaskState:
    ref, row = f"{step.name}/{task.id}", task.index
    attempts = [a for a in run.attempts(ref) if a.state != "left"]
    base = TaskState(ref, step, task, "waiting", len(attempts), intent=intent)
    marker = run.marker(ref)
    if marker is not None and marker["key"] == task.key:
        return replace(base, state="done", problems=tuple(marker.get("problems", ())))
    last = attempts[-1] if attempts else None
    if last is not None and last.state == "running":
        token = str(last.status["token"])
        owner = intents.get(token)
        life = _life(last, owner, task, queue)
        if life is not JobState.GONE:
            state = "running" if life is JobState.LIVE else "unknown"
            return replace(base, state=state, intent=owner)
        base = replace(base, dead_token=token)
    if last is not None and last.status.get("key") != task.key:
        last = None
    if intent is None or intent.key_of(task.id) != task.key:
        return _without_job(base, last)
    if intent.outcome == "cancelled":
        live = queue is not None and queue.is_live(intent, row)
        return replace(base, state="cancelled", detail="still ending" if live else "")
    if intent.outcome == "rejected":
        return replace(base, state="failed", failure=Failure("submit", intent.message))
    if intent.is_open:
        return replace(base, state="submitting")
    mine = last if last is not None and last.status.get("token") == intent.token else None
    # A failed attempt of a job that lives is one that the scheduler starts again (requeue).
    if mine is not None and mine.state == "failed" and not (queue and queue.is_live(intent, row)):
        return _without_job(base, mine)
    if queue is None:
        return replace(base, state="unknown", detail="the scheduler does not answer")
    record = queue.record(intent, row)
    if record is not None and record.state is JobState.LIVE:
        return replace(base, state="queued", detail=record.detail)
    if record is not None and record.state is JobState.UNKNOWN:
        return replace(base, state="unknown", detail=record.detail)
    if record is None and mine is None and intent.age_s() < SETTLE_S:
        return replace(base, state="queued", detail="not in the scheduler's list yet")
    if run.is_done(ref, task.key):  # it finished between the two looks
        return replace(base, state="done")
    return _gone(run, base, mine, record)


def _life(attempt: Attempt, owner: Intent | None, task: Task, queue: Queue | None) -> JobState:
    """Whether an attempt that says it is running lives: LIVE, GONE or UNKNOWN.

    That the scheduler does not list a job is no evidence against a sign of life: new jobs show up
    late, and some schedulers forget at once. That it says the job ended is.
    """
    if attempt.owner_vanished():
        return JobState.GONE
    record = queue.record(owner, task.index) if queue is not None and owner is not None else None
    if record is not None:
        return JobState.GONE if record.state is JobState.FAILED else record.state
    if not attempt.is_fresh():
        return JobState.GONE if queue is not None else JobState.UNKNOWN
    return JobState.LIVE if queue is not None else JobState.UNKNOWN


def _without_job(base: TaskState, last: Attempt | None) -> TaskState:
    if last is not None and last.state == "failed":
        return replace(base, state="failed", failure=failure_from_json(last.status["failure"]))
    return base


def _gone(
    run: RunDir, base: TaskState, attempt: Attempt | None, record: JobRecord | None
) -> TaskState:
    """A submitted task whose job is no longer in the queue and that left no success marker."""
    detail = record.detail if record else ""
    if attempt is None:
        if record is not None and record.state is JobState.FAILED and "CANCELLED" not in detail:
            log = run.job_dir(base.step.name) / "log"
            text = f"the job ended before the task began: {detail}"
            return replace(base, state="failed", failure=Failure("node", text, log=str(log)))
        return replace(base, detail=detail or "left the queue before it started")
    log_path, tail = log_tail(attempt.path)
    kind = "node"
    for words, name in (("TIMEOUT", "walltime"), ("OUT_OF_ME", "memory"), ("DEADLINE", "walltime")):
        if words in detail:
            kind = name
    text = f"the job ended without a word{f': {detail}' if detail else ''}"
    return replace(base, state="failed", failure=Failure(kind, text, log=log_path, tail=tail))


def counts(states: Mapping[str, TaskState]) -> dict[str, int]:
    """How many tasks are in each state, in the order of `STATES`, without zeros."""
    found = dict.fromkeys(STATES, 0)
    for state in states.values():
        found[state.state] += 1
    return {name: n for name, n in found.items() if n}
