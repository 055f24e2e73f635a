"""Render, submit, resume: every effect on the scheduler is told to the journal first.

Exactly once (design, section 5): the intent with its token is on disk before sbatch/qsub; a token
without a known fate is looked up in the queue and among the attempts before anything is submitted
again; dependencies are set on jobs that the scheduler confirmed to be live just before.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from callmip_global.config.plan import ENGINE_STEPS, Plan, Step, plan_from_json
from callmip_global.config.site import queue_options
from callmip_global.errors import Problem, SchedulerError, UsageError
from callmip_global.files import read_json, text_hash, write_atomic, write_json
from callmip_global.jobs.render import render_script
from callmip_global.jobs.scheduler import (
    Dependency,
    JobSpec,
    Scheduler,
    Submission,
    consecutive,
)
from callmip_global.workflow.client import Client, Outcome, make_scheduler
from callmip_global.workflow.journal import Intent, latest_intents
from callmip_global.workflow.observe import ALIVE, SETTLE_S, Queue, TaskState, observe
from callmip_global.workflow.rundir import Attempt, RunDir

CANCEL_S = 90.0
"""How long a cancelled job may take to end (Slurm waits KillWait, 30 s, before it kills)."""

_SETTLE_POLL_S = 1.5


@dataclass
class SubmitResult:
    """What one call did: (job id, step, number of tasks) of each job, and what was left out."""

    jobs: list[tuple[str, str, int]] = field(default_factory=list)
    adopted: int = 0
    replaced: int = 0
    refused: list[Problem] = field(default_factory=list)
    stopped: str = ""
    states: dict[str, TaskState] = field(default_factory=dict)


def write_run_dir(run: RunDir, plan: Plan, experiment_yaml: str) -> None:
    """Write plan.json, experiment.yaml, and script and task table of every step.

    All texts are made before the first is written. Raises UsageError for a run directory of another
    experiment, for a script edited by hand since it was written, and for values that cannot stand
    in a job script.
    """
    scheduler = make_scheduler(plan.settings["site"], run.path)
    scripts = {step.name: _script(run, plan, step, scheduler) for step in plan.steps}
    hashes = {name: text_hash(text) for name, text in scripts.items()}
    _check_run_dir(run, plan)
    run.path.mkdir(parents=True, exist_ok=True)
    for step in plan.steps:
        folder = run.job_dir(step.name)
        (folder / "log").mkdir(parents=True, exist_ok=True)
        _write_if_new(folder / "tasks.tsv", tasks_table(step))
        _write_if_new(folder / "job.sh", scripts[step.name], mode=0o755)
    _write_if_new(run.path / "experiment.yaml", experiment_yaml)
    write_json(run.path / "jobs" / "scripts.json", hashes)
    write_json(run.path / "plan.json", plan.to_json())


def _check_run_dir(run: RunDir, plan: Plan) -> None:
    path = run.path / "plan.json"
    if not path.exists():
        return
    old = plan_from_json(read_json(path), str(path))
    if old.experiment != plan.experiment:
        raise UsageError(
            Problem(
                str(run.path),
                found=f"the run of {old.experiment}",
                wanted=f"a run directory for {plan.experiment}",
                remedy="Choose another one with --run-dir.",
            )
        )
    written = read_json(run.path / "jobs" / "scripts.json")
    for step, digest in written.items():
        script = run.job_dir(step) / "job.sh"
        if script.exists() and text_hash(script.read_text(encoding="utf-8")) != digest:
            raise UsageError(
                Problem(
                    str(script),
                    found="edited by hand",
                    wanted="the script as it was written",
                    remedy="Move the change into the experiment or site file, then remove it.",
                )
            )


def _write_if_new(path: Path, text: str, mode: int | None = None) -> None:
    """Leave an equal file alone: its time says since when the script has been what it is."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text, mode=mode)


def tasks_table(step: Step) -> str:
    """tasks.tsv: what each array index stands for."""
    rows = ["row\ttask\tsimulation\tstage\tmember\ttile\tkey\tupstream"]
    for task in step.tasks:
        cells = [task.index, task.id, task.simulation, task.stage, task.member, task.tile]
        text = ["" if c is None else str(c) for c in cells]
        rows.append("\t".join([*text, task.key, " ".join(task.upstream)]))
    return "\n".join(rows) + "\n"


def _script(run: RunDir, plan: Plan, step: Step, scheduler: Scheduler) -> str:
    site, resources = plan.settings["site"], step.resources
    queue = queue_options(site, resources["queue"])
    spec = JobSpec(
        name=job_name(plan, step),
        step=step.name,
        run_dir=run.path,
        python=sys.executable,
        nodes=resources["nodes"],
        tasks=resources["tasks"],
        cpus=resources["cpus"],
        memory_bytes=resources["memory_bytes"],
        walltime_s=resources["walltime_s"],
        queue=queue.name,
        account=resources["account"],
        directives=(*site["directives"], *queue.directives, *resources["directives"]),
        shell_setup=site["shell_setup"],
        export_environment=site["export_environment"],
        resource_line=site["resource_line"],
        limit_threads=step.kind in ENGINE_STEPS,
        drop=queue.drop,
    )
    try:
        return render_script(spec, scheduler)
    except ValueError as error:
        raise UsageError(Problem(plan.experiment, f"step {step.name}", str(error))) from None


def job_name(plan: Plan, step: Step) -> str:
    """Name of the job in the queue."""
    return f"{plan.name}-{step.name}"


class Submitter:
    """One call of submit or resume on a run directory whose files are written."""

    def __init__(
        self, run: RunDir, plan: Plan, client: Client, say: Callable[[str], None] = print
    ) -> None:
        self.run, self.plan, self.client, self.say = run, plan, client, say
        self.site: Mapping[str, Any] = plan.settings["site"]
        self.result = SubmitResult()
        self.queue = Queue([])
        # Once in a call: what fails at once, without a word, must not be sent round and round.
        self._asked: set[str] = set()

    def submit(self, *, retry_failed: bool, only: str | None = None) -> SubmitResult:
        """Submit every task that is neither done nor alive; failed ones only on ``retry_failed``.

        Raises SchedulerError (nothing further changed) when the scheduler gives no sure answer.
        """
        self.queue = Queue(self.client.jobs())
        self._reconcile()
        doomed = self._unfit(observe(self.run, self.plan, self.queue))
        self._await_end(doomed)
        states = observe(self.run, self.plan, self.queue)
        while True:
            before = len(self.result.jobs)
            for step in self.plan.steps:
                if only is not None and only not in (step.name, step.kind):
                    continue
                if not self._submit_step(step, states, retry_failed):
                    break
            if not self._forget_deleted(before):
                break
            states = observe(self.run, self.plan, self.queue)
        self.result.states = observe(self.run, self.plan, self.queue)
        return self.result

    def _forget_deleted(self, first: int) -> bool:
        """Whether jobs submitted just now, from the given one on, were deleted by the scheduler.

        What a job waits for may end between our look at the queue and its submission. PBS accepts
        the job all the same and deletes it, and all that waits for it: as if never submitted.
        """
        ids = {job_id for job_id, _, _ in self.result.jobs[first:]}
        fresh = [i for i in self.run.journal.intents().values() if i.job_id in ids and i.depends]
        if not fresh or not self.client.scheduler.facts.deletes_dependents:
            return False
        self.queue = Queue(self.client.jobs())
        deleted = [i for i in fresh if not self._is_known(i)]
        for intent in deleted:
            self.run.journal.append("lost", token=intent.token)
            self._asked.difference_update(f"{intent.step}/{task}" for task in intent.tasks)
        gone = {intent.job_id for intent in deleted}
        self.result.jobs = [job for job in self.result.jobs if job[0] not in gone]
        return bool(deleted)

    def _is_known(self, intent: Intent) -> bool:
        return self.queue.job_id(intent.token) is not None or self._attempt_of(intent) is not None

    def _attempt_of(self, intent: Intent) -> Attempt | None:
        """An attempt that one of the intent's jobs made, if there is any."""
        for task in intent.tasks:
            for attempt in self.run.attempts(f"{intent.step}/{task}"):
                if attempt.status.get("token") == intent.token:
                    return attempt
        return None

    def _reconcile(self) -> None:
        """Find out what became of every token whose reply was lost."""
        open_intents = [i for i in self.run.journal.intents().values() if i.is_open]
        deadline = time.monotonic() + SETTLE_S
        while open_intents:
            open_intents = [i for i in open_intents if not self._adopt(i)]
            if not open_intents:
                break
            if time.monotonic() > deadline:
                for intent in open_intents:
                    self.run.journal.append("lost", token=intent.token)
                break
            time.sleep(_SETTLE_POLL_S)
            self.queue = Queue(self.client.jobs())

    def _adopt(self, intent: Intent) -> bool:
        job_id = self.queue.job_id(intent.token)
        if job_id is not None:
            self.run.journal.append("adopted", token=intent.token, job_id=job_id)
            self.say(f"{intent.step}: found job {job_id}, whose reply was lost")
            self.result.adopted += 1
            return True
        attempt = self._attempt_of(intent)
        if attempt is None:
            return False
        self.run.journal.append("seen", token=intent.token, job_id=attempt.status["job_id"])
        return True

    def _unfit(self, states: Mapping[str, TaskState]) -> list[tuple[Intent, int]]:
        """Live elements that must not be, cancelled: those of an older plan or an older submission,
        those whose cancelling was cut short, and those whose dependency names a job that will
        never succeed."""
        intents = self.run.journal.intents()
        latest = latest_intents(intents)
        known = {f"{s.name}/{t.id}": t for s, t in self.plan.tasks()}
        doomed: list[tuple[Intent, int]] = []
        for intent in intents.values():
            for name, key, row in zip(intent.tasks, intent.keys, intent.rows, strict=True):
                if intent.job_id is None or not self.queue.is_live(intent, row):
                    continue
                ref = f"{intent.step}/{name}"
                task = known.get(ref)
                outdated = task is None or key != task.key or latest.get(ref) is not intent
                waits = () if task is None or states[ref].state != "queued" else task.upstream
                stuck = not all(_holds(states[upstream], intent) for upstream in waits)
                if outdated or stuck or intent.outcome == "cancelled":
                    doomed.append((intent, row))
        for intent in {i.token: i for i, _ in doomed}.values():
            rows = [row for i, row in doomed if i.token == intent.token]
            self._cancel(intent, rows)
            if intent.outcome != "cancelled":
                self.result.replaced += len(rows)
        return doomed

    def _await_end(self, doomed: Sequence[tuple[Intent, int]]) -> None:
        """Wait until cancelled tasks are gone: a task never has two jobs that live."""
        deadline = time.monotonic() + CANCEL_S
        while doomed:
            self.queue = Queue(self.client.jobs())
            doomed = [(i, row) for i, row in doomed if self.queue.is_live(i, row)]
            if doomed and time.monotonic() > deadline:
                jobs = ", ".join(dict.fromkeys(str(i.job_id) for i, _ in doomed))
                raise SchedulerError(
                    Problem(
                        str(self.run.path),
                        found=f"cancelled jobs that still live: {jobs}",
                        wanted="their end before their tasks are submitted again",
                        remedy="Run the same command again when they are gone.",
                    )
                )
            if doomed:
                time.sleep(_SETTLE_POLL_S)

    def _cancel(self, intent: Intent, rows: Sequence[int]) -> None:
        assert intent.job_id is not None
        whole = set(rows) == set(intent.rows)
        indices = [intent.array_index(row) for row in rows]
        ids = [
            intent.job_id
            if whole or i is None
            else self.client.scheduler.element_id(intent.job_id, i)
            for i in indices
        ]
        complaint = self.client.cancel(list(dict.fromkeys(ids)))
        if complaint:
            self.say(f"{intent.step}: cancelling {intent.job_id}: {complaint}")
        if whole:
            self.run.journal.append("cancelled", token=intent.token, job_id=intent.job_id)

    def _submit_step(self, step: Step, states: dict[str, TaskState], retry_failed: bool) -> bool:
        """Submit what is to be submitted of one step; False when no more may be queued now."""
        refs = {task.index: f"{step.name}/{task.id}" for task in step.tasks}
        chosen = [
            row
            for row, ref in refs.items()
            if ref not in self._asked and self._is_wanted(states[ref], retry_failed)
        ]
        with_upstream: dict[bool, list[int]] = {False: [], True: []}
        for row in chosen:
            task = step.tasks[row - 1]
            pending = any(states[ref].state != "done" for ref in task.upstream)
            if any(states[ref].state not in ("done", *ALIVE) for ref in task.upstream):
                continue
            with_upstream[pending].append(row)
        for rows in with_upstream.values():
            for chunk, offset in self.chunks(rows):
                if not self._submit_chunk(step, chunk, offset, states):
                    return False
        return True

    def _is_wanted(self, state: TaskState, retry_failed: bool) -> bool:
        if state.state in ("waiting", "cancelled", "blocked"):
            return True
        refused = state.failure is not None and state.failure.kind == "submit"
        return state.state == "failed" and (retry_failed or refused)

    def chunks(self, rows: Sequence[int]) -> Iterable[tuple[tuple[int, ...], int]]:
        """(rows, offset) of each job: arrays no longer than the site allows, or single jobs.

        Cut at fixed multiples of the largest array, so that element i of one step always meets
        element i of the next.
        """
        facts = self.client.scheduler.facts
        largest = self.site["max_array_size"] or facts.largest_array
        if not self.site["arrays"]:
            largest = 1
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault((row - 1) // largest, []).append(row)
        for number, group in groups.items():
            for part in consecutive(group) if facts.one_range else [group]:
                yield tuple(part), number * largest

    def _submit_chunk(
        self, step: Step, rows: tuple[int, ...], offset: int, states: dict[str, TaskState]
    ) -> bool:
        tasks = [step.tasks[row - 1] for row in rows]
        refs = [f"{step.name}/{task.id}" for task in tasks]
        if not self._confirm(step, [u for t in tasks for u in t.upstream], states):
            return True
        limit = self.site["max_queued"]
        if limit and self.queue.live + len(rows) > limit:
            self.result.stopped = f"max_queued of the site file ({limit}) is reached"
            return False
        token = f"callmip-{uuid4().hex}"
        submission = Submission(
            script=self.run.job_dir(step.name) / "job.sh",
            name=job_name(self.plan, step),
            token=token,
            indices=rows,
            offset=offset,
            depends=self._depends(tasks, rows, offset, states),
        )
        # What was seen to be dead when the task was chosen: an attempt that began since lives.
        replaced = [token for token in (states[ref].dead_token for ref in refs) if token]
        self._asked.update(refs)
        self.run.journal.append(
            "intent",
            token=token,
            step=step.name,
            tasks=[task.id for task in tasks],
            keys=[task.key for task in tasks],
            rows=list(rows),
            offset=offset,
            depends=[d.job_id for d in submission.depends],
            replaces=list(dict.fromkeys(replaced)),
        )
        return self._send(step, submission, refs, states)

    def _confirm(self, step: Step, upstream: Sequence[str], states: dict[str, TaskState]) -> bool:
        """Whether all that is waited for is done, or in the queue at this moment.

        A dependency on a job that the scheduler does not know is satisfied at once (Slurm) or
        deletes the new job (PBS). A job submitted just now may take a while to be listed.
        """
        refs = list(dict.fromkeys(upstream))
        pending = [ref for ref in refs if states[ref].state != "done"]
        if not pending and not self.site["max_queued"]:
            return True
        deadline = time.monotonic() + SETTLE_S
        while True:
            self.queue = Queue(self.client.jobs())
            fresh = observe(self.run, self.plan, self.queue)
            states.update({ref: fresh[ref] for ref in refs})
            pending = [ref for ref in refs if not self._is_done_or_listed(states[ref])]
            if not pending:
                return True
            if time.monotonic() > deadline or any(states[r].state not in ALIVE for r in pending):
                break
            time.sleep(_SETTLE_POLL_S)
        held = states[pending[0]]
        self.say(f"{step.name}: not submitted now, {pending[0]} is {held.state} {held.detail}")
        return False

    def _is_done_or_listed(self, state: TaskState) -> bool:
        if state.state == "done":
            return True
        intent = state.intent
        return intent is not None and self.queue.is_live(intent, state.task.index)

    def _send(
        self,
        step: Step,
        submission: Submission,
        refs: Sequence[str],
        states: dict[str, TaskState],
    ) -> bool:
        reply = self.client.submit(submission)
        token = submission.token
        if reply.outcome is Outcome.ACCEPTED:
            self.run.journal.append("submitted", token=token, job_id=reply.job_id)
        elif reply.outcome is Outcome.UNKNOWN:
            self.say(f"{step.name}: {reply.message}; looking for the job in the queue")
            self.queue = Queue(self.client.jobs())
            self._reconcile()
        elif reply.outcome is Outcome.QUEUE_FULL:
            # Postponed, not failed: as if never asked.
            self.run.journal.append("lost", token=token, message=reply.message)
        else:
            self.run.journal.append("rejected", token=token, message=reply.message)
        intent = self.run.journal.intents()[token]
        if reply.outcome is Outcome.QUEUE_FULL:
            self.result.stopped = reply.message
            return False
        if reply.outcome is Outcome.REJECTED:
            problem = Problem(
                str(submission.script), f"step {step.name}", reply.message, "a job that is accepted"
            )
            self.result.refused.append(problem)
        if intent.outcome == "lost":
            raise SchedulerError(
                Problem(
                    f"step {step.name}",
                    found=reply.message,
                    wanted="a reply to the submission",
                    remedy="The job is not in the queue; run submit again.",
                )
            )
        alive = intent.job_id is not None
        if alive:
            self.result.jobs.append((str(intent.job_id), step.name, len(refs)))
            self.say(f"{step.name}: job {intent.job_id}, {_plural(len(refs), 'task')}")
        for ref in refs:
            state = states[ref]
            states[ref] = TaskState(
                ref, state.step, state.task, "queued" if alive else "failed", state.attempts,
                intent=intent,
            )  # fmt: skip
        return True

    def _depends(
        self,
        tasks: Sequence[Any],
        rows: Sequence[int],
        offset: int,
        states: Mapping[str, TaskState],
    ) -> tuple[Dependency, ...]:
        """Jobs to wait for: element by element where both sides are arrays that match."""
        waits: list[list[TaskState]] = [
            [states[u] for u in task.upstream if states[u].state != "done"] for task in tasks
        ]
        ids = list(dict.fromkeys(str(s.job_id) for wait in waits for s in wait))
        elementwise = (
            self.client.scheduler.facts.elementwise
            and len(rows) > 1
            and len(ids) == 1
            and all(
                len(wait) == 1
                and wait[0].intent is not None
                and wait[0].intent.array_index(wait[0].task.index) == row - offset
                for wait, row in zip(waits, rows, strict=True)
            )
        )
        return tuple(Dependency(job_id, elementwise) for job_id in ids)


def _holds(upstream: TaskState, intent: Intent) -> bool:
    """Whether what a queued task waits for is done, or alive and the very job it waits for."""
    if upstream.state == "done":
        return True
    return upstream.state in ALIVE and upstream.job_id in intent.depends


def _plural(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def planned_commands(run: RunDir, plan: Plan) -> list[str]:
    """The submit commands of a dry run: every task, with step names in place of job ids."""
    scheduler = make_scheduler(plan.settings["site"], run.path)
    submitter = Submitter(run, plan, Client(scheduler))
    commands = []
    for step in plan.steps:
        upstream = dict.fromkeys(u.split("/")[0] for t in step.tasks for u in t.upstream)
        same = all(len(t.upstream) == 1 and t.upstream[0].endswith(f"/{t.id}") for t in step.tasks)
        for rows, offset in submitter.chunks([t.index for t in step.tasks]):
            elementwise = same and scheduler.facts.elementwise and len(rows) > 1
            submission = Submission(
                run.job_dir(step.name) / "job.sh",
                job_name(plan, step),
                "TOKEN",
                rows,
                offset,
                tuple(Dependency(f"<{name}>", elementwise) for name in upstream),
            )
            commands.append(shlex.join(scheduler.submit_command(submission)))
    return commands
