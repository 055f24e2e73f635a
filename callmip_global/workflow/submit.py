"""Render, submit, resume: every effect on the scheduler is told to the journal first.

Exactly once (design, section 5): the intent with its token is on disk before sbatch/qsub; a token
without a known fate is looked up in the queue and among the attempts before anything is submitted
again; dependencies are set on jobs that the scheduler confirmed to be live just before.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from callmip_global.config.plan import ENGINE_STEPS, Plan, Step, Task, tasks_table
from callmip_global.config.site import queue_options
from callmip_global.errors import Problem, SchedulerError, UsageError, counted
from callmip_global.files import read_json, refuse_links, text_hash, write_atomic, write_json
from callmip_global.jobs.render import render_script
from callmip_global.jobs.scheduler import (
    Dependency,
    JobSpec,
    Scheduler,
    Submission,
    consecutive,
)
from callmip_global.workflow.client import Client, Outcome, make_scheduler
from callmip_global.workflow.journal import Intent, unit_of, units_of
from callmip_global.workflow.lease import Lease
from callmip_global.workflow.observe import ALIVE, SETTLE_S, Observer, Queue, TaskState, observe
from callmip_global.workflow.prune import revive
from callmip_global.workflow.retry import Level, Verdict, level_of, verdict
from callmip_global.workflow.rundir import OWN_NAMES, Attempt, RunDir

CANCEL_S = 90.0
"""How long a cancelled job may take to end (Slurm waits KillWait, 30 s, before it kills)."""

_SETTLE_POLL_S = 1.5

_ROUNDS = 5
"""How often one call submits again what PBS deleted; the next call goes on."""


@dataclass
class SubmitResult:
    """What one call did: (job id, step, number of tasks) of each job, and what was left out.

    ``exhausted``: tasks that were not tried again, with the reason.
    """

    jobs: list[tuple[str, str, int]] = field(default_factory=list)
    adopted: int = 0
    replaced: int = 0
    repaired: int = 0
    exhausted: dict[str, str] = field(default_factory=dict)
    refused: list[Problem] = field(default_factory=list)
    stopped: str = ""
    states: dict[str, TaskState] = field(default_factory=dict)


def write_run_dir(run: RunDir, plan: Plan, experiment_yaml: str) -> None:
    """Write plan.json, experiment.yaml, and script and task table of every step.

    All texts are made before the first is written. Raises UsageError for a run directory of another
    experiment, for a script edited by hand since it was written, for links that lead out of the run
    directory, and for values that cannot stand in a job script.
    """
    scheduler = make_scheduler(plan.settings["site"], run.path)
    scripts = {step.name: _script(run, plan, step, scheduler) for step in plan.steps}
    hashes = {name: [text_hash(text)] for name, text in scripts.items()}
    refuse_links(run.path, OWN_NAMES)
    found = _check_run_dir(run, plan)
    if any(digest not in hashes.get(name, ()) for name, digest in found.items()):
        # Both are ours until all are written: a crash in between is no edit by hand.
        both = {name: [*hashes.get(name, ()), digest] for name, digest in found.items()}
        write_json(run.path / "jobs" / "scripts.json", {**hashes, **both})
    run.path.mkdir(parents=True, exist_ok=True)
    for step in plan.steps:
        folder = run.job_dir(step.name)
        (folder / "log").mkdir(parents=True, exist_ok=True)
        _write_table(run, step)
        _write_if_new(folder / "job.sh", scripts[step.name], mode=0o755)
    _write_if_new(run.path / "experiment.yaml", experiment_yaml)
    write_json(run.path / "jobs" / "scripts.json", hashes)
    write_json(run.path / "plan.json", plan.to_json())


def _check_run_dir(run: RunDir, plan: Plan) -> dict[str, str]:
    """Hash of each script that is there, none of them edited by hand."""
    if not (run.path / "plan.json").exists():
        return {}
    old = run.plan()
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
    found = {}
    for step, digests in written.items():
        script = run.job_dir(step) / "job.sh"
        if not script.exists():
            continue
        found[step] = text_hash(script.read_text(encoding="utf-8"))
        if found[step] not in digests:
            raise UsageError(
                Problem(
                    str(script),
                    found="edited by hand",
                    wanted="the script as it was written",
                    remedy="Move the change into the experiment or site file, then remove it.",
                )
            )
    return found


def _write_if_new(path: Path, text: str, mode: int | None = None) -> None:
    """Leave an equal file alone: its time says since when the script has been what it is."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text, mode=mode)


def _write_table(run: RunDir, step: Step) -> None:
    """Write tasks.tsv; one that differs is kept under its digest, for jobs submitted from it."""
    path = run.job_dir(step.name) / "tasks.tsv"
    text = tasks_table(step.tasks)
    if path.exists():
        old = path.read_text(encoding="utf-8")
        if old == text:
            return
        kept = run.old_table(step.name, text_hash(old))
        if not kept.exists():
            os.link(path, kept)
    write_atomic(path, text)


def job_spec(run: RunDir, plan: Plan, step: Step) -> JobSpec:
    """Everything that the job script of a step depends on."""
    site, resources = plan.settings["site"], step.resources
    queue = queue_options(site, resources["queue"])
    return JobSpec(
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


def _script(run: RunDir, plan: Plan, step: Step, scheduler: Scheduler) -> str:
    try:
        return render_script(job_spec(run, plan, step), scheduler)
    except ValueError as error:
        raise UsageError(Problem(plan.experiment, f"step {step.name}", str(error))) from None


def job_name(plan: Plan, step: Step) -> str:
    """Name of the job in the queue."""
    return f"{plan.name}-{step.name}"


@dataclass(frozen=True)
class _Group:
    """Tasks that can go as one job: rows of a step, what is added to array indices, whether each
    element waits for its like, the resources, and what is being retried."""

    offset: int
    elementwise: bool
    level: Level
    retry: str


class Submitter:
    """One call of submit or resume on a run directory whose files are written.

    ``beyond_budget``: also what has used up its retries.
    """

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        client: Client,
        say: Callable[[str], None] = print,
        *,
        beyond_budget: bool = False,
    ) -> None:
        self.run, self.plan, self.client, self.say = run, plan, client, say
        self.beyond_budget = beyond_budget
        self.site: Mapping[str, Any] = plan.settings["site"]
        self.result = SubmitResult()
        self.queue = Queue([])
        self.leases = run.leases()
        # Once in a call: what fails at once, without a word, must not be sent round and round.
        self._asked: set[str] = set()

    def submit(self, *, retry_failed: bool, only: str | None = None) -> SubmitResult:
        """Submit every task that is neither done nor alive; failed ones only on ``retry_failed``.

        Raises SchedulerError (nothing further changed) when the scheduler gives no sure answer.
        """
        self.queue = Queue(self.client.jobs())
        self._reconcile()
        self._part_twins()
        states = observe(self.run, self.plan, self.queue)
        doomed = self._unfit(states)
        if doomed:
            self._await_end(doomed)
            states = observe(self.run, self.plan, self.queue)
        states = self._await_fate(states)
        revived = revive(self.run, states, only=only)
        if revived:
            self.say(f"{counted(len(revived), 'task')} to run again, pruned: {revived[0]} ...")
            states = observe(self.run, self.plan, self.queue)
        for _ in range(_ROUNDS):
            before = len(self.result.jobs)
            self.leases = self.run.leases()
            for step in self.plan.steps:
                if only is not None and only not in (step.name, step.kind):
                    continue
                self._repair(step, states)
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
        if not self.client.scheduler.facts.deletes_dependents:
            return False
        ids = {job_id for job_id, _, _ in self.result.jobs[first:]}
        leases = self.run.leases()
        fresh = [i for i in leases.intents.values() if i.job_id in ids and i.depends]
        if not fresh:
            return False
        self.queue = Queue(self.client.jobs())
        deleted = [i for i in fresh if not self._is_known(i)]
        for intent in deleted:
            self.run.journal.append("lost", token=intent.token)
            self._asked.difference_update(f"{intent.step}/{t.id}" for t in leases.tasks(intent))
        gone = {intent.job_id for intent in deleted}
        self.result.jobs = [job for job in self.result.jobs if job[0] not in gone]
        return bool(deleted)

    def _is_known(self, intent: Intent) -> bool:
        return self.queue.job_id(intent.token) is not None or self._attempt_of(intent) is not None

    def _attempt_of(self, intent: Intent) -> Attempt | None:
        """An attempt that one of the intent's jobs made, if there is any."""
        for task in self.run.leases().tasks(intent):
            for attempt in self.run.attempts(f"{intent.step}/{task.id}"):
                if attempt.status.get("token") == intent.token:
                    return attempt
        return None

    def _reconcile(self) -> None:
        """Find out what became of every token whose reply was lost."""
        open_intents = [i for i in self.run.journal.intents().values() if i.is_open]
        looked = time.monotonic()
        deadline = looked + SETTLE_S
        while open_intents:
            open_intents = [i for i in open_intents if not self._adopt(i)]
            if not open_intents:
                break
            # By when we looked last, not by now: this process may have been stopped in between.
            if looked > deadline:
                for intent in open_intents:
                    self.run.journal.append("lost", token=intent.token)
                break
            time.sleep(_SETTLE_POLL_S)
            looked = time.monotonic()
            self.queue = Queue(self.client.jobs())

    def _part_twins(self) -> None:
        """Leave one job to a submission that the scheduler accepted twice.

        What waits for the one is not helped by the other, so the one that goes on has to be known.
        """
        for intent in self.run.journal.intents().values():
            living = self.queue.live_ids(intent.token)
            if intent.job_id is None or not living or living == [intent.job_id]:
                continue
            kept: str | None = intent.job_id if intent.job_id in living else living[0]
            if intent.outcome == "cancelled":
                kept = None
            elif kept != intent.job_id:
                self.run.journal.append("adopted", token=intent.token, job_id=kept)
            others = [job_id for job_id in living if job_id != kept]
            if others:
                self.say(f"{intent.step}: accepted twice; cancelling {', '.join(others)}")
                complaint = self.client.cancel(others)
                if complaint:
                    self.say(complaint)

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
        never succeed, where the scheduler cannot give them another one."""
        leases = self.leases = self.run.leases()
        steps = {step.name: step for step in self.plan.steps}
        doomed: list[tuple[Intent, int]] = []
        for intent in leases.intents.values():
            if intent.job_id is None or not self.queue.has_live(intent):
                continue
            step = steps.get(intent.step)
            unfit_units: set[int] = set()
            outdated_rows: list[int] = []
            busy_units: set[int] = set()
            for row, old in zip(intent.rows, leases.tasks(intent), strict=True):
                if not self.queue.is_live(intent, row):
                    continue
                task = step.tasks.find(old.id) if step else None
                lease = leases.latest(step, task) if step and task else None
                outdated = (
                    task is None
                    or old.key != task.key
                    or lease is None
                    or lease.intent.token != intent.token
                )
                stuck = not outdated and self._is_stuck(f"{intent.step}/{old.id}", states)
                unit = unit_of(row, intent.pack)
                if intent.outcome == "cancelled":
                    doomed.append((intent, row))
                elif outdated:
                    outdated_rows.append(row)
                elif stuck and not self._repairs:
                    unfit_units.add(unit)
                elif states[f"{intent.step}/{old.id}"].state in ALIVE:
                    busy_units.add(unit)
            # Nobody is cancelled for what shares a job with him: a task of a pack that failed and
            # was submitted again, say. What is outdated leaves by itself.
            doomed += [
                (intent, r) for r in outdated_rows if unit_of(r, intent.pack) not in busy_units
            ]
            # What shares a job with a stuck task waits with it, so it goes with it.
            doomed += [(intent, r) for r in intent.rows if unit_of(r, intent.pack) in unfit_units]
        for intent in {i.token: i for i, _ in doomed}.values():
            rows = [row for i, row in doomed if i.token == intent.token]
            self._cancel(intent, rows)
            if intent.outcome != "cancelled":
                self.result.replaced += len(rows)
        return doomed

    def _is_stuck(self, ref: str, states: Mapping[str, TaskState]) -> bool:
        """Whether a task waits in the queue for a job that is not the right one any more."""
        state = states[ref]
        lease = state.lease
        if state.state not in ("queued", "held") or lease is None:
            return False
        if self.queue.waits_in_vain(lease.intent, lease.row, lease.depends):
            return True
        return not all(self._holds(states[u], lease) for u in state.task.upstream)

    def _holds(self, upstream: TaskState, lease: Lease) -> bool:
        """Whether what a queued task waits for is, or was, done by a job that it does wait for.

        A job that waits for an earlier try, which failed, is not helped by the later one.
        """
        now = upstream.job_id
        if upstream.state in ALIVE:
            return now in lease.depends
        history = self.leases.history(upstream.step, upstream.task)
        earlier = {old.intent.job_id for old in history}.difference({now, None})
        return upstream.state == "done" and not earlier.intersection(lease.depends)

    @property
    def _repairs(self) -> bool:
        """Whether the scheduler can give a pending job other jobs to wait for."""
        return self.client.scheduler.repair_command([], []) is not None

    def _element(self, intent: Intent, row: int) -> str:
        """What the scheduler calls the job, or the element, that a row is in."""
        index = intent.array_index(row)
        job_id = str(intent.job_id)
        return job_id if index is None else self.client.scheduler.element_id(job_id, index)

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

    def _await_fate(self, states: dict[str, TaskState]) -> dict[str, TaskState]:
        """States as soon as every held task is known to be in the queue or to have left it.

        PBS deletes what waits for a job that failed; a new job may also just not be listed yet.
        """
        deadline = time.monotonic() + SETTLE_S + _SETTLE_POLL_S
        while time.monotonic() < deadline and any(
            s.state == "held" and s.lease and not self.queue.is_live(s.lease.intent, s.lease.row)
            for s in states.values()
        ):
            time.sleep(_SETTLE_POLL_S)
            self.queue = Queue(self.client.jobs())
            states = observe(self.run, self.plan, self.queue)
        return states

    def _cancel(self, intent: Intent, rows: Sequence[int]) -> None:
        assert intent.job_id is not None
        whole = set(rows) == intent.row_set
        ids = [intent.job_id if whole else self._element(intent, row) for row in rows]
        complaint = self.client.cancel(list(dict.fromkeys(ids)))
        if complaint:
            self.say(f"{intent.step}: cancelling {intent.job_id}: {complaint}")
        if whole:
            self.run.journal.append("cancelled", token=intent.token, job_id=intent.job_id)

    def _repair(self, step: Step, states: dict[str, TaskState]) -> None:
        """Let pending jobs of a step wait for what was submitted anew, in place of what failed."""
        if not self._repairs:
            return
        groups: dict[tuple[str, tuple[Dependency, ...]], list[TaskState]] = {}
        for token, members in self._pending_units(step, states):
            upstream = [u for state in members for u in state.task.upstream]
            if not any(self._is_stuck(state.ref, states) for state in members):
                continue
            if any(states[u].state not in ("done", *ALIVE) for u in upstream):
                continue
            rows = [state.task.index for state in members]
            index = members[0].lease.array_index if members[0].lease else None
            match = self._match(self._unit_waits(step, rows, states))
            waits = self._depends(
                [state.task for state in members],
                states,
                elementwise=index is not None and index == match,
                alone=True,
            )
            groups.setdefault((token, waits), []).extend(members)
        for (token, waits), members in groups.items():
            if not self._confirm(step, [u for s in members for u in s.task.upstream], states):
                continue
            intent = members[0].intent
            assert intent is not None
            rows = sorted(s.lease.row for s in members if s.lease)
            ids = list(dict.fromkeys(self._element(intent, row) for row in rows))
            complaints = []
            for first in range(0, len(ids), _MOST_REPAIRED):
                part = ids[first : first + _MOST_REPAIRED]
                command = self.client.scheduler.repair_command(part, waits)
                complaints.append(self.client.change(command) if command else "")
            if any(complaints):
                self.say(f"{step.name}: {' '.join(complaints).strip()}")
                continue
            depends = [_base(wait.job_id) for wait in waits]
            self.run.journal.append("repaired", token=token, rows=rows, depends=depends)
            self.result.repaired += len(rows)
            fresh = self.run.journal.intents()[token]
            for state in members:
                assert state.lease is not None
                lease = replace(state.lease, intent=fresh)
                states[state.ref] = replace(state, state="queued", lease=lease, detail="")
            ids_text = ", ".join(dict.fromkeys(depends)) or "nothing"
            self.say(f"{step.name}: {counted(len(rows), 'pending task')} now for {ids_text}")

    def _pending_units(
        self, step: Step, states: Mapping[str, TaskState]
    ) -> Iterator[tuple[str, list[TaskState]]]:
        """Token and tasks of each job, or element, of a step that has not begun."""
        units: dict[tuple[str, int], list[TaskState]] = {}
        for task in step.tasks:
            state = states[f"{step.name}/{task.id}"]
            if state.state in ("queued", "held") and state.lease is not None:
                intent = state.lease.intent
                unit = unit_of(state.lease.row, intent.pack)
                units.setdefault((intent.token, unit), []).append(state)
        for (token, _), members in units.items():
            yield token, members

    def _submit_step(self, step: Step, states: dict[str, TaskState], retry_failed: bool) -> bool:
        """Submit what is to be submitted of one step; False when no more may be queued now."""
        chosen: dict[int, Verdict] = {}
        for task in step.tasks:
            state = states[f"{step.name}/{task.id}"]
            if state.state == "done" or state.state in ALIVE or state.ref in self._asked:
                continue
            if any(states[u].state not in ("done", *ALIVE) for u in task.upstream):
                continue
            decision = self._decide(state, retry_failed)
            if decision is not None:
                chosen[task.index] = decision
        for group, rows in self._groups(step, chosen, states):
            for chunk in self._parts(step, rows):
                if not self._submit_chunk(step, chunk, group, states):
                    return False
        return True

    def _decide(self, state: TaskState, retry_failed: bool) -> Verdict | None:
        """Whether a task that is neither done nor alive is submitted now, and asking for what."""
        history = [
            lease
            for lease in self.leases.history(state.step, state.task)
            if lease.key == state.task.key
        ]
        if state.state in ("waiting", "cancelled", "blocked"):
            return Verdict("", level_of(self.plan, state.step, history))
        if state.state != "failed" or state.failure is None:
            return None
        if not retry_failed and state.failure.kind != "submit":
            return None
        found = verdict(
            self.plan, state.step, state.failure.kind, history, beyond_budget=self.beyond_budget
        )
        if found.refused:
            self.result.exhausted[state.ref] = found.refused
            return None
        return found

    def _groups(
        self, step: Step, chosen: Mapping[int, Verdict], states: Mapping[str, TaskState]
    ) -> list[tuple[_Group, list[int]]]:
        """The rows that can go together. A job's elements differ in nothing but their index, so
        they ask for the same, and wait for the same or each for the element of its own number."""
        pack = step.resources["pack"]
        largest = self.largest_array(step)
        by_unit: dict[tuple[int, Verdict], list[int]] = {}
        for row, decision in chosen.items():
            by_unit.setdefault((unit_of(row, pack), decision), []).append(row)
        groups: dict[tuple[Any, ...], tuple[_Group, list[int]]] = {}
        for (unit, decision), rows in by_unit.items():
            waits = self._unit_waits(step, rows, states)
            match = self._match(waits)
            offset = (unit - 1) // largest * largest if match is None else unit - match
            # Elements of several jobs have the same numbers, so the jobs are part of the group.
            tokens = {lease.intent.token for lease in waits} if match is not None else set()
            group = _Group(offset, match is not None, decision.level, decision.retry)
            place = (group, bool(waits), frozenset(tokens))
            groups.setdefault(place, (group, []))[1].extend(rows)
        return [(group, sorted(rows)) for group, rows in groups.values()]

    def _unit_waits(
        self, step: Step, rows: Sequence[int], states: Mapping[str, TaskState]
    ) -> list[Lease]:
        """The submissions that the tasks of one element wait for."""
        upstream = dict.fromkeys(u for row in rows for u in step.tasks[row - 1].upstream)
        leases = [states[u].lease for u in upstream if states[u].state != "done"]
        return [lease for lease in leases if lease is not None]

    def _match(self, waits: Sequence[Lease]) -> int | None:
        """The array index that all that is waited for has; None where there is no single one."""
        if not waits or not self.client.scheduler.facts.elementwise:
            return None
        indices = {lease.array_index for lease in waits}
        return indices.pop() if len(indices) == 1 else None

    def largest_array(self, step: Step) -> int:
        """How many elements one job of a step may have: an array is queued as a whole."""
        if not self.site["arrays"]:
            return 1
        largest = int(self.site["max_array_size"] or self.client.scheduler.facts.largest_array)
        return min(largest, self.site["max_queued"] or largest)

    def planned(
        self, step: Step, states: Mapping[str, TaskState]
    ) -> Iterator[tuple[_Group, list[int]]]:
        """The jobs of a step none of whose tasks was submitted so far."""
        fresh = dict.fromkeys(range(1, len(step.tasks) + 1), Verdict("", Level()))
        for group, rows in self._groups(step, fresh, states):
            for part in self._parts(step, rows):
                yield group, part

    def _parts(self, step: Step, rows: Sequence[int]) -> Iterator[list[int]]:
        """Rows of one group as they may go into one job: where indices must be one range, cut."""
        if not self.client.scheduler.facts.one_range:
            yield list(rows)
            return
        pack = step.resources["pack"]
        by_unit: dict[int, list[int]] = {}
        for row in rows:
            by_unit.setdefault(unit_of(row, pack), []).append(row)
        for units in consecutive(list(by_unit)):
            yield [row for unit in units for row in by_unit[unit]]

    def _submit_chunk(
        self, step: Step, rows: Sequence[int], group: _Group, states: dict[str, TaskState]
    ) -> bool:
        pack = step.resources["pack"]
        tasks = [step.tasks[row - 1] for row in rows]
        refs = [f"{step.name}/{task.id}" for task in tasks]
        if not self._confirm(step, [u for t in tasks for u in t.upstream], states):
            return True
        units = units_of(rows, pack)
        limit = self.site["max_queued"]
        if limit and self.queue.live + len(units) > limit:
            self.result.stopped = f"max_queued of the site file ({limit}) is reached"
            return False
        submission = self.submission(step, rows, group, states, f"callmip-{uuid4().hex}")
        # What was seen to be dead when the task was chosen: an attempt that began since lives.
        replaced = [token for token in (states[ref].dead_token for ref in refs) if token]
        self._asked.update(refs)
        self.run.journal.append(
            "intent",
            token=submission.token,
            step=step.name,
            table=step.table,
            rows=rows,
            pack=pack,
            offset=group.offset,
            depends=list(dict.fromkeys(_base(d.job_id) for d in submission.depends)),
            replaces=list(dict.fromkeys(replaced)),
            retry=group.retry,
            walltime_s=group.level.walltime_s,
            memory_bytes=group.level.memory_bytes,
            segment_years=group.level.segment_years,
        )
        return self._send(step, submission, tasks, states)

    def submission(
        self,
        step: Step,
        rows: Sequence[int],
        group: _Group,
        states: Mapping[str, TaskState],
        token: str,
    ) -> Submission:
        """The job of some rows of a step."""
        units = units_of(rows, step.resources["pack"])
        tasks = [step.tasks[row - 1] for row in rows]
        elementwise = group.elementwise and len(units) > 1
        return Submission(
            script=self.run.job_dir(step.name) / "job.sh",
            name=job_name(self.plan, step),
            token=token,
            indices=units,
            offset=group.offset,
            depends=self._depends(tasks, states, elementwise=elementwise, alone=len(units) == 1),
            resources=self._resource_arguments(step, group.level),
        )

    def _resource_arguments(self, step: Step, level: Level) -> tuple[str, ...]:
        """Nothing where the script's own directives hold."""
        if level.walltime_s is None and level.memory_bytes is None:
            return ()
        spec = job_spec(self.run, self.plan, step)
        spec = replace(
            spec,
            walltime_s=level.walltime_s or spec.walltime_s,
            memory_bytes=level.memory_bytes or spec.memory_bytes,
        )
        return self.client.scheduler.resource_arguments(spec)

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
            states.update(Observer(self.run, self.plan, self.queue).some(pending))
            pending = [ref for ref in pending if not self._is_done_or_listed(states[ref])]
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
        return state.lease is not None and self.queue.is_live(state.lease.intent, state.lease.row)

    def _send(
        self,
        step: Step,
        submission: Submission,
        tasks: Sequence[Task],
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
            self.result.jobs.append((str(intent.job_id), step.name, len(tasks)))
            self.say(f"{step.name}: job {intent.job_id}, {counted(len(tasks), 'task')}")
        for task in tasks:
            ref = f"{step.name}/{task.id}"
            states[ref] = replace(
                states[ref],
                state="queued" if alive else "failed",
                failure=None,
                lease=Lease(intent, task.index, task.key),
                detail="",
                dead_token=None,
            )
        return True

    def _depends(
        self,
        tasks: Sequence[Task],
        states: Mapping[str, TaskState],
        *,
        elementwise: bool,
        alone: bool,
    ) -> tuple[Dependency, ...]:
        """Jobs to wait for; ``alone``: for a single job or element.

        Of an array that has failed elements no more than the elements themselves can be waited
        for, and few elements are named in any case: what else is in that job does not matter.
        """
        upstream = dict.fromkeys(ref for task in tasks for ref in task.upstream)
        by_job: dict[str, list[Lease]] = {}
        for ref in upstream:
            lease = states[ref].lease
            if states[ref].state != "done" and lease is not None:
                by_job.setdefault(str(lease.intent.job_id), []).append(lease)
        found: list[str] = []
        for job_id, leases in by_job.items():
            few = alone and len(leases) <= _MOST_ELEMENTS
            exact = self.client.scheduler.facts.element_ids and not elementwise
            if exact and (few or not self._is_clean(leases[0].intent, states)):
                found += dict.fromkeys(self._element(ls.intent, ls.row) for ls in leases)
            else:
                found.append(job_id)
        return tuple(Dependency(job_id, elementwise) for job_id in found)

    def _is_clean(self, intent: Intent, states: Mapping[str, TaskState]) -> bool:
        """Whether no task of a submission has failed, or was submitted again since."""
        for task in self.leases.tasks(intent) if intent.token in self.leases.intents else ():
            state = states.get(f"{intent.step}/{task.id}")
            if state is None or state.intent is None or state.intent.token != intent.token:
                return False
            if state.state not in ("done", *ALIVE):
                return False
        return True


_MOST_ELEMENTS = 50
"""So many elements are named in a dependency; beyond that it is the whole array."""

_MOST_REPAIRED = 500
"""So many elements are named in one command that repairs: an argument has a greatest length."""


def _base(job_id: str) -> str:
    """The job of an element of a Slurm or local array (PBS jobs do not wait for elements)."""
    return job_id.partition("_")[0]


def planned_commands(run: RunDir, plan: Plan) -> list[str]:
    """The submit commands of a dry run: every task, with step names in place of job ids."""
    scheduler = make_scheduler(plan.settings["site"], run.path)
    submitter = Submitter(run, plan, Client(scheduler))
    states: dict[str, TaskState] = {}
    commands = []
    for step in plan.steps:
        for task in step.tasks:
            ref = f"{step.name}/{task.id}"
            states[ref] = TaskState(ref, step, task, "waiting")
        for number, (group, rows) in enumerate(submitter.planned(step, states), start=1):
            submission = submitter.submission(step, rows, group, states, "TOKEN")
            commands.append(shlex.join(scheduler.submit_command(submission)))
            name = step.name if number == 1 else f"{step.name}:{number}"
            intent = Intent(
                name, step.name, step.table, tuple(rows), step.resources["pack"], group.offset,
                (), (), "", None, None, None, "", job_id=f"<{name}>",
            )  # fmt: skip
            for row in rows:
                task = step.tasks[row - 1]
                ref = f"{step.name}/{task.id}"
                lease = Lease(intent, row, task.key)
                states[ref] = TaskState(ref, step, task, "queued", lease=lease)
    return commands
