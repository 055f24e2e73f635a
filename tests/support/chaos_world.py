"""One run directory, the users who type commands, a scheduler in memory, and all that must hold.

Every command and every job stops before each of its effects (`chaos_processes`), so that an
`Action` may come between any two. What must hold, whatever happens (`World.wrong` says what does
not):

- at most one result of each task is published, and its model never runs again afterwards;
- two bodies of one task never live at the same time, unless the scheduler says that one is gone;
- nothing is seen half-written under its published name, or named before it is on disk;
- `status` agrees with what the simulator knows, whenever no command is under way;
- once the trouble ends, repeating `submit` gets every task done, and the values that the segments
  hand on add up.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from chaos_cluster import FAULTS, Cluster, Element, Job
from chaos_plans import Case, Workshop
from chaos_processes import ALL, HEARTBEAT_S, Kernel, Process
from chaos_truth import STALE_S, Truth, journal, rows_of

from callmip_global.config.plan import Plan, run_context
from callmip_global.errors import SchedulerError, UsageError
from callmip_global.workflow import api, task

ROUNDS: Final = 25
"""How many times users repeat `submit` after the trouble has ended."""

Action = tuple[str, int, int]
"""A verb and two small numbers; what there is nothing to do for does nothing."""


class World:
    """One sequence: its run directory, users, jobs, and all that was noticed to be wrong."""

    def __init__(self, shop: Workshop, case: Case, *, traced: bool = False) -> None:
        self.case, self.run_dir = case, shop.run_dir
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.kernel = Kernel(self.run_dir, traced=traced)
        self.cluster = Cluster(self.kernel, case.flavour, self._job_body)
        self.cluster.accepted = self._accepted
        self.cluster.ended = self._ended
        self.kernel.published = self._published
        self.kernel.retired = self._retired
        self.kernel.start_child = self._child
        self.kernel.child_body = _task_of_pack
        self.edition = 0
        self.users: list[Process] = []
        self.model_fails: list[int] = []
        self.results: dict[str, dict[str, int]] = {}
        """How many results of each task are published, by ``step/task`` and key."""
        self.bodies: list[tuple[str, Process]] = []
        """The models that run: ``step/task`` and process."""
        self.causes: dict[str, str] = {}
        """Class of failure of the attempts (by folder) whose model failed."""
        self.endings: dict[str, str] = {}
        """The same for those that the scheduler ended."""
        self.publications: dict[tuple[str, str], int] = {}
        """After how many effects a result was published."""
        self.disk_was_full = False
        self.finds_lock = False
        """Whether a command has just said that another one holds the lock."""
        api.plan_experiment = lambda *_, **__: (self.plan, self.case.text)

    @property
    def plan(self) -> Plan:
        """The experiment as it is written at this moment."""
        return self.case.plans[self.edition % len(self.case.plans)]

    @property
    def wrong(self) -> list[str]:
        return self.kernel.wrong

    def complain(self, text: str) -> None:
        self.kernel.log(f"WRONG: {text}")
        self.wrong.append(text)

    # Commands.

    def command(
        self, verb: str, *, retry: bool = False, beyond: bool = False, host: str = "login"
    ) -> Process:
        """A user types `submit`, `resume` or `cancel`; nothing has happened yet."""

        def body() -> int:
            try:
                if verb == "cancel":
                    api.cancel(self.run_dir, say=_silent)
                elif verb == "resume":
                    api.resume(self.run_dir, say=_silent)
                else:
                    experiment = Path(self.plan.experiment)
                    api.submit(
                        experiment, self.run_dir, retry_failed=retry, beyond_budget=beyond,
                        say=_silent,
                    )  # fmt: skip
            except SchedulerError:
                return 3
            except UsageError as error:
                return self._refused(verb, error)
            return 0

        process = self.kernel.spawn(verb, host, body)
        process.on_end = self._command_ended
        self.users.append(process)
        return process

    def _refused(self, verb: str, error: UsageError) -> int:
        text = str(error)
        if "locked by" in text:
            self.finds_lock = True
        elif "no plan.json" not in text:
            self.complain(f"{verb} refuses: {text}")
        return 2

    def _remove_dead_lock(self) -> None:
        """What the message asks of the user, who knows that the process is gone."""
        path = self.run_dir / ".lock"
        with contextlib.suppress(FileNotFoundError):
            owner = json.loads(path.read_text())
            if not self.kernel.lives(owner["pid"]):
                path.unlink()

    def _command_ended(self, process: Process) -> None:
        self.users.remove(process)
        if self.finds_lock:
            self.finds_lock = False
            self._remove_dead_lock()
        error = process.error
        full = isinstance(error, OSError) and error.errno == 28
        if error is not None and not full:
            self.complain(f"{process.name} raises {type(error).__name__}: {error}")
        if process.killed or full:
            self.look_for_torn_files()
        if not self.users:
            self.check_status()

    # Jobs.

    def _job_body(self, element: Element) -> Callable[[], int]:
        job = element.job
        arguments = [str(job.run_dir), job.step, str(element.unit), job.token]
        return lambda: task.main(arguments)

    def _accepted(self, job: Job) -> None:
        """Note which tasks a submission stands for, from the table it was made from."""
        table = job.run_dir / "jobs" / job.step / "tasks.tsv"
        rows = rows_of(table.read_text())
        intent = journal(self.run_dir)[job.token]
        pack = intent["pack"]
        for element in job.elements:
            element.packed = pack > 1
            own = [r for r in intent["numbers"] if (r - 1) // pack + 1 == element.unit]
            element.tasks = tuple((f"{job.step}/{rows[r][0]}", rows[r][1]) for r in own)

    def _ended(self, element: Element, ending: str) -> None:
        """Note why the scheduler ends what runs in a job, unless it failed before."""
        kind = {"TIMEOUT": "walltime", "OUT_OF_MEMORY": "memory"}.get(ending)
        job = element.process
        if kind is not None and job is not None and self.case.flavour.name != "local":
            for process in (job, *job.children):
                if process.attempt and process.alive:
                    self.endings.setdefault(process.attempt, kind)

    def _child(self, argv: Sequence[str], cwd: Path) -> int:
        """The group's own command: reads, adds, writes, with a stop before each effect."""
        process = self.kernel.current
        assert process is not None
        script = Path(argv[-1]).read_text().strip().splitlines()[-1]
        name, *words = shlex.split(script)
        attempt = next(p for p in (cwd, *cwd.parents) if p.name.startswith("attempt-"))
        ref = "/".join(attempt.parts[-3:-1])
        key = json.loads((attempt / "status.json").read_text())["key"]
        self._model_begins(process, ref, key)
        self.bodies.append((ref, process))
        try:
            self.kernel.effect(process, f"{name} of {ref} computes", on_disk=False)
            if self.model_fails:
                code = self.model_fails.pop(0)
                self.causes[str(attempt)] = "memory" if code == 137 else "model"
                return code
            if name == "merge":
                *inputs, output = words
                _write(Path(output), str(sum(int(Path(i).read_text()) for i in inputs)))
            else:
                self._segment(cwd, words)
        finally:
            self.bodies.remove((ref, process))
        return 0

    @staticmethod
    def _segment(cwd: Path, words: list[str]) -> None:
        first, last, co2, writes, *_ = words
        total = sum(int(path.read_text()) for path in (cwd / "restart_in").glob("*.txt"))
        total += _contribution(first, last, co2)
        for name in ("sum.txt", "old.txt"):
            _write(cwd / "restart_out" / name, str(total))
        if writes == "true":
            _write(cwd / "out" / f"mon_{last}.txt", str(total))

    def _model_begins(self, process: Process, ref: str, key: str) -> None:
        if self.results.get(ref, {}).get(key):
            # It may have been published since this job looked, by one that the scheduler disowned.
            if self.publications[ref, key] <= process.started_at:
                self.complain(f"{ref} runs again after its result was published")
            elif not self._was_told_lies(ref):
                self.complain(f"{ref} runs although its result was published meanwhile")
        for other, owner in self.bodies:
            told_apart = owner.disowned or process.disowned
            if other == ref and owner is not process and not told_apart:
                self.complain(f"{ref} runs in {process.name} while it runs in {owner.name}")

    def _was_told_lies(self, ref: str) -> bool:
        return ref in self.lies

    @functools.cached_property
    def lies(self) -> set[str]:
        """Tasks of which the scheduler once said that they had ended while they went on."""
        return set()

    def _published(self, process: Process, path: str) -> None:
        ref = "/".join(path.split("/")[-3:-1])
        marker = json.loads(Path(path).read_text())
        counts = self.results.setdefault(ref, {})
        counts[marker["key"]] = counts.get(marker["key"], 0) + 1
        self.publications[ref, marker["key"]] = self.kernel.effects
        if sum(counts.values()) > 1:
            self.complain(f"{ref} has more than one result: {counts}")

    def _retired(self, process: Process, path: str) -> None:
        ref = "/".join(path.split("/")[-3:-1])
        self.results[ref] = {}

    # What may happen.

    def do(self, action: Action) -> None:
        """One action; numbers beyond what there is wrap round."""
        verb, a, b = action
        if self.kernel.trace is not None:
            self.kernel.log(f"== {verb} {a} {b}")
        getattr(self, f"_do_{verb}")(a, b)

    def _do_submit(self, a: int, b: int) -> None:
        self._begin("submit", a, b)

    def _do_resume(self, a: int, b: int) -> None:
        self._begin("resume", a, b)

    def _do_cancel(self, a: int, b: int) -> None:
        self._begin("cancel", a, b)

    def _begin(self, verb: str, a: int, b: int) -> None:
        if len(self.users) < 2:
            process = self.command(verb, retry=a % 2 == 1, host=("login", "login2")[a // 2 % 2])
            self.kernel.advance(process, b or ALL)

    def _do_go(self, a: int, b: int) -> None:
        """A command goes on for ``b`` effects."""
        if self.users:
            self.kernel.advance(self.users[a % len(self.users)], b or ALL)

    def _do_kill(self, a: int, b: int) -> None:
        """A command is killed; what it is just writing is cut after ``b`` bytes."""
        if self.users:
            self.kernel.kill(self.users[a % len(self.users)], b)

    def _do_disk(self, a: int, b: int) -> None:
        """The disk is full for one effect of a command (a even) or a job, after ``b`` more."""
        processes = self.users if a % 2 == 0 else [p for p in self.kernel.processes if p.job_id]
        if processes:
            processes[a // 2 % len(processes)].disk_full_after = b
            self.disk_was_full = True

    def _do_start(self, a: int, b: int) -> None:
        """The scheduler starts a job, which does ``b`` effects."""
        ready = self.cluster.startable()
        if ready:
            element = ready[a % len(ready)]
            self.cluster.start(element)
            assert element.process is not None
            self.kernel.advance(element.process, b or ALL)

    def _do_run(self, a: int, b: int) -> None:
        """A job goes on for ``b`` effects, also one that the scheduler has disowned."""
        jobs = [p for p in self.kernel.processes if p.job_id is not None]
        if jobs:
            self.kernel.advance(jobs[a % len(jobs)], b or ALL)

    def _running(self, a: int) -> Element | None:
        running = [e for e in self.cluster.running() if e.state == "RUNNING"]
        return running[a % len(running)] if running else None

    def _do_requeue(self, a: int, b: int) -> None:
        element = self._running(a)
        if element is not None and self.case.flavour.name != "local":
            if b % 2:
                self._will_lie(element)
            self.cluster.requeue(element, disowned=b % 2 == 1)

    def _do_lose(self, a: int, b: int) -> None:
        element = self._running(a)
        if element is not None and self.case.flavour.name != "local":
            self._will_lie(element)
            self.cluster.lose_node(element)

    def _will_lie(self, element: Element) -> None:
        self.lies.update(ref for ref, _ in element.tasks)

    def _do_crash(self, a: int, b: int) -> None:
        element = self._running(a)
        if element is not None:
            ending = ("NODE_FAIL", "OUT_OF_MEMORY", "FAILED")[b % 3]
            if self.case.flavour.name == "local":
                ending = "FAILED"
            children = [p for p in element.process.children if p.alive] if element.process else []
            if children and b % 2:
                # The memory limit takes one process of a packed job; the others go on.
                self.kernel.kill(children[b // 2 % len(children)])
            else:
                self.cluster.crash(element, ending, b)

    def _do_limit(self, a: int, b: int) -> None:
        element = self._running(a)
        if element is not None and self.case.flavour.name != "local":
            self.cluster.time_limit(element)

    def _do_scancel(self, a: int, b: int) -> None:
        """Somebody else's scancel."""
        elements = [e for e in self.cluster.elements() if e.is_live]
        if elements:
            self.cluster.cancel(elements[a % len(elements)], delay_s=20.0 * (b % 2))

    def _do_forget(self, a: int, b: int) -> None:
        if self.case.flavour.name == "slurm" and self.cluster.jobs:
            self.cluster.forget(self.cluster.jobs[a % len(self.cluster.jobs)])

    def _do_reuse(self, a: int, b: int) -> None:
        forgotten = [j for j in self.cluster.jobs if j.forgotten]
        if forgotten:
            self.cluster.reuse = forgotten[a % len(forgotten)].id

    def _do_fault(self, a: int, b: int) -> None:
        kind = tuple(FAULTS)[a % len(FAULTS)]
        self.cluster.arm(kind, FAULTS[kind][b % len(FAULTS[kind])])

    def _do_model(self, a: int, b: int) -> None:
        self.model_fails.append((1, 137)[a % 2])

    def _do_time(self, a: int, b: int) -> None:
        self.kernel.pass_time((1.0, 5.0, 15.0, 60.0, 200.0, 4000.0)[a % 6])

    def _do_edit(self, a: int, b: int) -> None:
        self.edition = a

    def _do_status(self, a: int, b: int) -> None:
        self.look_for_torn_files()
        if self.users:
            # Only that it can be read at every moment.
            with contextlib.suppress(UsageError):
                api.status(self.run_dir)
        else:
            self.check_status()

    # The end of a sequence.

    def finish(self) -> None:
        """The trouble ends; users repeat `resume` until everything is done."""
        self.cluster.calm()
        self.model_fails.clear()
        for process in self.kernel.processes:
            process.disk_full_after = None
        for process in list(self.users):
            self.kernel.advance(process)
        self.kernel.pass_time(HEARTBEAT_S * 4)
        for _ in range(ROUNDS):
            self.kernel.advance(self.command("submit", retry=True, beyond=True))
            self._let_jobs_run()
            self.kernel.pass_time(STALE_S + HEARTBEAT_S)
            if not self.cluster.startable() and self._all_done():
                break
        else:
            self.complain(f"not all is done after {ROUNDS} rounds: {self._not_done()}")
        self.check_status()
        self._check_values()
        self.look_for_torn_files()

    def _let_jobs_run(self) -> None:
        for _ in range(200):
            ready = self.cluster.startable()
            for element in ready:
                if element.state == "PENDING":
                    self.cluster.start(element)
            jobs = [p for p in self.kernel.processes if p.job_id is not None]
            if not ready and not jobs:
                return
            for process in jobs:
                self.kernel.advance(process)
            self.kernel.pass_time(5.0)

    def _all_done(self) -> bool:
        return not self._not_done()

    def _not_done(self) -> list[str]:
        missing = []
        for step, each in self.plan.tasks():
            ref = f"{step.name}/{each.id}"
            if self.marker(ref).get("key") != each.key:
                missing.append(ref)
        return missing

    def marker(self, ref: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(
                (self.run_dir / "steps" / ref / "done.json").read_text()
            )
        except FileNotFoundError:
            return {}
        return value

    def _check_values(self) -> None:
        """Each segment began with what the one before it left, each merge with all its tiles."""
        wanted: dict[str, int] = {}
        for step, each in self.plan.tasks():
            ref = f"{step.name}/{each.id}"
            wanted[ref] = sum(wanted[u] for u in each.upstream)
            if step.kind == "run":
                # One restart file for each name, from the segment that left it last.
                sources = step.recipe["simulations"][each.simulation]["restart_in"].values()
                by_step = {u.partition("/")[0]: u for u in each.upstream}
                wanted[ref] = sum(wanted[by_step[source]] for source in sources)
                context = run_context(self.plan, step, each)
                wanted[ref] += _contribution(
                    context["first_year"], context["last_year"], context["co2"]
                )
            marker = self.marker(ref)
            if not marker:
                continue
            attempt = self.run_dir / "steps" / ref / marker["attempt"]
            names = ["restart_out/sum.txt"] if step.kind == "run" else list(step.outputs)
            for name in names:
                found = int((attempt / name).read_text())
                if found != wanted[ref]:
                    self.complain(f"{ref}: {name} holds {found}, wanted {wanted[ref]}")

    # What must hold at any moment.

    def look_for_torn_files(self) -> None:
        """Every file that has its published name is whole."""
        if not self.run_dir.is_dir():
            return
        for folder, folders, names in os.walk(self.run_dir):
            folders[:] = [f for f in folders if not f.startswith(".")]
            for name in names:
                if name.startswith(".") or not name.endswith((".json", ".tsv", ".sh", ".yaml")):
                    continue
                text = Path(folder, name).read_text()
                if name.endswith(".json"):
                    try:
                        json.loads(text)
                    except ValueError:
                        self.complain(f"{folder}/{name} is torn: {text[-40:]!r}")
                elif not text.endswith("\n"):
                    self.complain(f"{folder}/{name} is torn: {text[-40:]!r}")

    def check_status(self) -> None:
        """`status` says of every task what the simulator knows."""
        if not (self.run_dir / "plan.json").exists():
            return
        state = api.status(self.run_dir)
        if self.kernel.trace is not None:
            shown = {ref: t.state for ref, t in state.tasks.items()}
            self.kernel.log(f"status: {shown}")
        if state.trouble is not None:
            return
        truth = Truth(self)
        for ref, found in state.tasks.items():
            allowed = truth.states(ref, found.task.key)
            if found.state not in allowed:
                self.complain(f"status of {ref} is {found.state}, in truth {sorted(allowed)}")
            before = {state.tasks[u].state for u in found.task.upstream}
            if not _agrees(found.state, before):
                self.complain(f"status of {ref} is {found.state} after {sorted(before)}")
            if found.failure is not None:
                self._check_class(ref, found)
        self._check_queue()

    def _check_queue(self) -> None:
        """No task is in the queue under two submissions: what was asked for is looked for first."""
        tokens: dict[str, set[str]] = {}
        begun = {j.token for j in self.cluster.jobs if any(e.starts for e in j.elements)}
        for element in self.cluster.elements():
            if element.job.was_hidden:
                continue
            # A packed job goes on, or starts again, for its other tasks.
            is_over = element.packed and element.job.token in begun
            if element.state in ("PENDING", "RUNNING") and not is_over:
                for ref, _ in element.tasks:
                    tokens.setdefault(ref, set()).add(element.job.token)
        for ref, found in tokens.items():
            if len(found) > 1:
                self.complain(f"{ref} is queued twice")

    def _check_class(self, ref: str, found: Any) -> None:
        kind = found.failure.kind
        if kind in ("internal", "restart", "input"):
            self.complain(f"{ref} failed: {kind}: {found.failure.message}")
        attempts = sorted((self.run_dir / "steps" / ref).glob("attempt-*"))
        if kind == "submit" or not attempts:
            return
        told = json.loads((attempts[-1] / "status.json").read_text())
        folder = str(attempts[-1])
        cause = self.endings.get(folder)
        if told["state"] == "failed":
            # What it said itself counts, unless it was that it was asked to end.
            asked_to_end = told["failure"]["exit_code"] == -signal.SIGTERM
            cause = self.causes.get(folder, cause if asked_to_end else None)
        # A later job may have failed before it came to an attempt of its own.
        is_latest = found.lease is not None and told["token"] == found.lease.intent.token
        if is_latest and told["state"] != "left" and cause is not None and kind != cause:
            interrupted = self.disk_was_full or folder in self.kernel.signalled
            if cause == "walltime" or not (kind == "node" and interrupted):
                self.complain(f"{ref} failed: {kind}, in truth {cause}")


def _agrees(state: str, before: set[str]) -> bool:
    """Whether a state fits those of what the task builds on."""
    if state in ("waiting", "blocked"):
        return bool(before & {"failed", "blocked", "held"}) == (state == "blocked")
    if state in ("queued", "held"):
        may_come = {"done", "running", "queued", "submitting", "unknown"}
        return state == "held" or not before - may_come
    return True


def _silent(text: str) -> None:
    return None


def _contribution(first: Any, last: Any, co2: Any) -> int:
    """What a segment adds to the value that is handed on."""
    fixed = 0 if co2 == "yearly" else int(co2)
    return (int(last) - int(first) + 1) * (10_000 + fixed)


def _task_of_pack(argv: Sequence[str]) -> Callable[[], int] | None:
    """What a process runs that a packed job starts for one of its tasks."""
    if task.__name__ not in argv:
        return None
    return lambda: task.main(list(argv[argv.index(task.__name__) + 1 :]))


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
