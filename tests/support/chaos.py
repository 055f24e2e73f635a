"""Sequences of everything that can go wrong with a run, and what must hold whatever happens.

A `World` is one run directory, the users who type commands, and a scheduler in memory
(`chaos_cluster`); every command and every job stops before each of its effects (`chaos_processes`),
so that an `Action` may come between any two. A sequence is a list of actions, drawn from a seed
(`Sequence_`), by hypothesis, or written down; the same list always gives the same events.

What must hold, after any sequence (`World.wrong` says what does not):

- at most one result of each task is published, and its model never runs again afterwards;
- two bodies of one task never live at the same time, unless the scheduler says that one is gone;
- nothing is seen half-written under its published name, or named before it is on disk;
- `status` agrees with what the simulator knows, whenever no command is under way;
- once the trouble ends, repeating `resume` gets every task done, and the values that the segments
  hand on add up.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml
from chaos_cluster import FAULTS, Cluster, Element, Flavour, Job
from chaos_processes import ALL, EPOCH, HEARTBEAT_S, Kernel, KilledError, Process, simulated, use

from callmip_global.config.plan import Plan, run_context
from callmip_global.errors import SchedulerError, UsageError
from callmip_global.workflow import api, model_run, rundir, submit, task  # noqa: F401

PACKAGES: Final = ("callmip_global.workflow", "callmip_global.files")
SETTLE_S: Final = 12.0
STALE_S: Final = 180.0
ROUNDS: Final = 25
"""How many times users repeat `resume` after the trouble has ended."""

Action = tuple[str, int, int]
"""A verb and two small numbers; what there is nothing to do for does nothing."""


# The plans.


@dataclass(frozen=True)
class Case:
    """An experiment, its edited versions, and the scheduler it runs on."""

    name: str
    plans: tuple[Plan, ...]
    text: str
    flavour: Flavour


def _tree(scheduler: str) -> dict[str, Any]:
    return {
        "model": {"name": "TOY", "version": "v1"},
        "protocol": "callmip-phase1-global",
        "simulations": ["S3"],
        "stages": {
            "Prior": {"parameters": "prior.txt"},
            "Posterior": {"parameters": "posterior.txt", "scenario": 1},
        },
        "run": {
            "command": "model {first_year} {last_year} {co2} {write_output} {parameters}",
            "restart": ["sum.txt"],
            "outputs": {"mon": "out/mon_{first_year}.txt"},
            "phases": [
                {
                    "name": "spin",
                    "years": [1900, 1900],
                    "cycles": 2,
                    "climate": {"recycle": [1901, 1920]},
                    "co2": 1900,
                },
                {"name": "past", "years": [1901, 2024], "climate": "actual", "co2": "yearly"},
            ],
        },
        "variables": "models/demo.yaml",
        "site": f"{scheduler}.yaml",
        "resources": {"run": {"memory": "100MB", "walltime": "00:05:00"}},
        "output": {"grid": "2deg", "years": 20},
    }


def _site(scheduler: str, **more: Any) -> dict[str, Any]:
    site = {"name": "here", "scheduler": scheduler, "source": "none", "date": "2026-11-22"}
    return {**site, **more}


def _chain(scheduler: str) -> tuple[dict[str, Any], ...]:
    """Two stages of three segments; edited: the last segment, then the resources, then a member
    more (which moves every row of the tables)."""
    first = _tree(scheduler)
    co2 = _tree(scheduler)
    co2["run"]["phases"][1]["co2"] = 1950
    co2["resources"]["run"]["memory"] = "200MB"
    longer = _tree(scheduler)
    longer["resources"]["run"]["walltime"] = "00:10:00"
    more = _tree(scheduler)
    more["simulations"] = ["CO2", "S3"]
    more["stages"] = {"Prior": {"parameters": "prior.txt"}}
    return first, co2, longer, more


def _tiles(scheduler: str) -> tuple[dict[str, Any], ...]:
    """Three tiles of two segments and a merge that waits for all of them."""
    first = _tree(scheduler)
    first["stages"] = {"Prior": {"parameters": "prior.txt"}}
    first["run"]["command"] += " {tile}"
    first["run"]["tiles"] = {"count": 3, "merge": "merge {inputs} {output}"}
    first["run"]["phases"][0].pop("cycles")
    edited = json.loads(json.dumps(first))
    edited["run"]["phases"][0]["co2"] = 1850
    return first, edited


def _packs(scheduler: str) -> tuple[dict[str, Any], ...]:
    """The same, two tiles to a job."""
    trees = _tiles(scheduler)
    for tree in trees:
        tree["resources"]["run"]["pack"] = 2
    return trees


def _small(scheduler: str) -> tuple[dict[str, Any], ...]:
    """Two segments of one stage; edited: the last one, and what all jobs ask for."""
    first = _tree(scheduler)
    first["stages"] = {"Prior": {"parameters": "prior.txt"}}
    first["run"]["phases"][0].pop("cycles")
    edited = json.loads(json.dumps(first))
    edited["run"]["phases"][1]["co2"] = 1950
    edited["resources"]["run"]["memory"] = "200MB"
    return first, edited


def _branches(scheduler: str) -> tuple[dict[str, Any], ...]:
    """Inner steps, and a last phase that builds on two phases before it; edited: the first one."""
    first = _tree(scheduler)
    first["stages"] = {"Prior": {"parameters": "prior.txt"}}
    first["simulations"] = ["S3", "CO2"]
    run = first["run"]
    run["restart"] = ["sum.txt", "old.txt"]
    spin, past = run["phases"]
    spin["steps"] = [{"name": "a"}, {"name": "b", "cycles": 1, "restart_out": ["sum.txt"]}]
    past["restart_in"] = {"sum.txt": "latest", "old.txt": "spin"}
    edited = json.loads(json.dumps(first))
    edited["run"]["phases"][0]["co2"] = 1850
    return first, edited


_CASES: Final[dict[str, tuple[Callable[[str], tuple[dict[str, Any], ...]], dict[str, Any], Flavour]]]
_CASES = {
    "slurm arrays": (_chain, {"scheduler": "slurm"}, Flavour("slurm")),
    "slurm kept": (
        _chain,
        {"scheduler": "slurm"},
        Flavour("slurm", kills_dependents=False),
    ),
    "slurm tiles": (
        _tiles,
        {"scheduler": "slurm", "max_array_size": 2},
        Flavour("slurm", kills_dependents=False),
    ),
    "slurm singles": (
        _tiles,
        {"scheduler": "slurm", "arrays": False, "max_queued": 4},
        Flavour("slurm"),
    ),
    "pbs singles": (_chain, {"scheduler": "pbs", "arrays": False}, Flavour("pbs")),
    "pbs arrays": (_chain, {"scheduler": "pbs", "arrays": True}, Flavour("pbs")),
    "pbs tiles": (
        _tiles,
        {"scheduler": "pbs", "arrays": True, "max_array_size": 2, "max_queued": 5},
        Flavour("pbs", borrows=True),
    ),
    "slurm branches": (
        _branches,
        {"scheduler": "slurm", "max_array_size": 10},
        Flavour("slurm", kills_dependents=False),
    ),
    "slurm packs": (
        _packs,
        {"scheduler": "slurm"},
        Flavour("slurm", kills_dependents=False),
    ),
    "pbs packs": (_packs, {"scheduler": "pbs", "arrays": True}, Flavour("pbs")),
    "small slurm": (_small, {"scheduler": "slurm"}, Flavour("slurm", kills_dependents=False)),
    "small pbs": (_small, {"scheduler": "pbs"}, Flavour("pbs")),
    "local": (
        _chain,
        {"scheduler": "local", "max_running": 2, "export_environment": True},
        Flavour("local"),
    ),
}
CASES: Final = tuple(_CASES)


class Workshop:
    """A folder in memory where the plans are made once and every sequence gets its run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._plan = folder, api.plan_experiment
        self.run_dir = folder / "run"
        self._cases: dict[str, Case] = {}

    def case(self, name: str) -> Case:
        if name not in self._cases:
            self._cases[name] = self._build(name)
        return self._cases[name]

    def _build(self, name: str) -> Case:
        make, site, flavour = _CASES[name]
        folder = self.folder / name.replace(" ", "-")
        folder.mkdir()
        for parameters in ("prior.txt", "posterior.txt"):
            (folder / parameters).write_text(parameters)
        scheduler = site["scheduler"]
        (folder / f"{scheduler}.yaml").write_text(yaml.safe_dump(_site(**site)))
        path = folder / "experiment.yaml"
        plans, text = [], ""
        for tree in make(scheduler):
            path.write_text(yaml.safe_dump(tree, sort_keys=False))
            plan, text = self._plan(path)
            kept = tuple(s for s in plan.steps if s.kind in ("run", "merge"))
            plans.append(replace(plan, steps=kept))
        return Case(name, tuple(plans), text, flavour)


@contextlib.contextmanager
def workshop() -> Iterator[Workshop]:
    """The modules under test with stand-ins for the outside world, and a folder to work in."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    # Rendering is pure, and most of the time that a submission takes.
    real_render, real_plan = submit.render_script, api.plan_experiment
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", dir=memory if usable else None) as name,
        simulated(PACKAGES),
    ):
        submit.render_script = _remembering(real_render)
        here = Workshop(Path(name).resolve())
        try:
            yield here
        finally:
            submit.render_script, api.plan_experiment = real_render, real_plan


def _remembering(render: Callable[..., str]) -> Callable[..., str]:
    known: dict[tuple[Any, type], str] = {}

    def call(spec: Any, scheduler: Any) -> str:
        place = (spec, type(scheduler))
        if place not in known:
            known[place] = render(spec, scheduler)
        return known[place]

    return call


# The world.


class World:
    """One sequence: its run directory, users, jobs, and all that was noticed to be wrong."""

    def __init__(self, shop: Workshop, case: Case, *, traced: bool = False) -> None:
        self.case, self.run_dir = case, shop.run_dir
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.kernel = Kernel(self.run_dir, traced=traced)
        self.cluster = Cluster(self.kernel, case.flavour, self._job_body)
        self.cluster.accepted = self._accepted
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
                os.unlink(path)

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
        rows = _rows(table.read_text())
        intent = _journal(self.run_dir)[job.token]
        pack = intent["pack"]
        for element in job.elements:
            element.packed = pack > 1
            own = [r for r in intent["numbers"] if (r - 1) // pack + 1 == element.unit]
            element.tasks = tuple((f"{job.step}/{rows[r][0]}", rows[r][1]) for r in own)

    def _child(self, argv: Sequence[str], cwd: Path) -> int:
        """The group's own command: reads, adds, writes, with a stop before each effect."""
        process = self.kernel.current
        assert process is not None
        script = Path(argv[-1]).read_text().strip().splitlines()[-1]
        name, *words = shlex.split(script)
        ref = "/".join(cwd.parts[-3:-1])
        key = json.loads((cwd / "status.json").read_text())["key"]
        self._model_begins(process, ref, key)
        self.bodies.append((ref, process))
        try:
            self.kernel.effect(process, f"{name} of {ref} computes", on_disk=False)
            if self.model_fails:
                code = self.model_fails.pop(0)
                self.causes[str(cwd)] = "memory" if code == 137 else "model"
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
            _write(cwd / "out" / f"mon_{first}.txt", str(total))

    def _model_begins(self, process: Process, ref: str, key: str) -> None:
        if self.results.get(ref, {}).get(key):
            # It may have been published since this job looked, by one that the scheduler disowned.
            if self.publications[ref, key] <= process.started_at:
                self.complain(f"{ref} runs again after its result was published")
            elif not self._was_told_lies(ref):
                self.complain(f"{ref} runs although its result was published meanwhile")
        for other, owner in self.bodies:
            if other == ref and owner is not process and not owner.disowned:
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
            if self._marker(ref).get("key") != each.key:
                missing.append(ref)
        return missing

    def _marker(self, ref: str) -> dict[str, Any]:
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
            marker = self._marker(ref)
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
        for element in self.cluster.elements():
            # A packed job goes on, or starts again, for its other tasks.
            is_over = element.packed and element.starts > 0
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
        cause = self.causes.get(str(attempts[-1]))
        # A later job may have failed before it came to an attempt of its own.
        is_latest = found.lease is not None and told["token"] == found.lease.intent.token
        if is_latest and told["state"] == "failed" and cause is not None and kind != cause:
            interrupted = self.disk_was_full or str(attempts[-1]) in self.kernel.signalled
            if not (kind == "node" and interrupted):
                self.complain(f"{ref} failed: {kind}, in truth {cause}")


class Truth:
    """What `status` may say of a task, from what the simulator and the journal hold."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = world.kernel.now
        self.intents = _journal(world.run_dir)
        self.latest: dict[str, dict[str, Any]] = {}
        for intent in self.intents.values():
            if intent["outcome"] != "lost":
                self.latest.update(dict.fromkeys(intent["refs"], intent))

    def states(self, ref: str, key: str) -> set[str]:
        """Every state that is right."""
        world = self.world
        if world._marker(ref).get("key") == key:
            return {"done"}
        attempts = self._attempts(ref)
        last = attempts[-1] if attempts else None
        also: set[str] = set()
        if last is not None and last["state"] == "running":
            owner = self._process(last["path"])
            if owner is not None and not owner.disowned:
                # Of a submission that was accepted twice, the other job may be the one looked at.
                twins = {e.job.id for e in self._elements(ref, last["token"])}
                return {"running"} if len(twins) == 1 else {"running", "queued", "held"}
            if owner is not None:
                return _ANY
            # Its process is gone without a word, which shows when its heartbeat is missed.
            silence = self.now - last["touched"]
            also = {"running"} if silence < STALE_S + HEARTBEAT_S or self._is_live(last) else set()
            if any(e.state == "EXITING" for e in self._elements(ref, last["token"])):
                also |= {"unknown"}
        return also | self._of_job(ref, key, last)

    def _of_job(self, ref: str, key: str, last: dict[str, Any] | None) -> set[str]:
        intent = self.latest.get(ref)
        mine = last if last is not None and last["key"] == key else None
        if intent is None or intent["refs"][ref] != key:
            return {"failed"} if mine and mine["state"] == "failed" else {"waiting", "blocked"}
        if intent["outcome"] == "cancelled":
            # One that is asked to end may be back in the queue, by the scheduler's own doing.
            again = mine is not None and mine["state"] == "running" and self._is_live(mine)
            return {"cancelled", "queued", "held"} if again else {"cancelled"}
        if intent["outcome"] == "rejected":
            return {"failed"}
        if intent["outcome"] == "intent":
            return {"submitting"}
        elements = self._elements(ref, intent["token"])
        hidden = any(e.job.visible_at > self.now for e in elements)
        young = self.now - intent["at"] < SETTLE_S + 1
        found: set[str] = set()
        live = [e for e in elements if e.is_live and not e.job.forgotten]
        if live:
            found |= {"held"} if all(e.hopeless for e in live) else {"queued", "held"}
            if intent["pack"] > 1 and mine is not None and mine["token"] == intent["token"]:
                # The others of its job go on.
                found |= {"failed"}
            if not hidden:
                return found
        if any(e.state == "EXITING" for e in elements):
            found |= {"unknown"}
        if young:
            found |= {"queued", "held"}
        mine = mine if mine is not None and mine["token"] == intent["token"] else None
        if mine is not None:
            return found | {"failed"}
        listed = [e for e in elements if not e.job.forgotten and e.job.visible_at <= self.now]
        failing = ["FAILED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY"]
        if self.world.case.flavour.name == "pbs":
            # PBS tells an exit status, not who ended the job.
            failing.append("CANCELLED")
        if any(e.state in failing and e.starts for e in listed):
            found.add("failed")
        if any(e.state != "COMPLETED" and e.starts and e.log.exists() for e in elements):
            found.add("failed")
        return found | {"waiting", "blocked"}

    def _elements(self, ref: str, token: str) -> list[Element]:
        return [
            e for j in self.world.cluster.jobs if j.token == token
            for e in j.elements if any(r == ref for r, _ in e.tasks)
        ]  # fmt: skip

    def _is_live(self, attempt: dict[str, Any]) -> bool:
        """Whether the scheduler still has the job of an attempt, to be started again perhaps."""
        return any(
            e.is_live or e.state == "EXITING"
            for e in self._elements(attempt["ref"], attempt["token"])
            if not e.job.forgotten
        )

    def _process(self, path: str) -> Process | None:
        return next((p for p in self.world.kernel.processes if p.attempt == path), None)

    def _attempts(self, ref: str) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.world.run_dir / "steps" / ref).glob("attempt-*")):
            status = path / "status.json"
            value = json.loads(status.read_text())
            if value["state"] != "left":
                touched = status.stat().st_mtime - EPOCH
                found.append({**value, "path": str(path), "touched": touched, "ref": ref})
        return found


_ANY: Final = {
    "running", "queued", "waiting", "submitting", "failed", "blocked", "cancelled", "unknown",
    "held",
}  # fmt: skip


def _journal(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The journal's intents by token, read independently of the code under test."""
    found: dict[str, dict[str, Any]] = {}
    path = run_dir / "journal.jsonl"
    tables: dict[str, dict[str, dict[int, tuple[str, str]]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == "intent":
            step = event["step"]
            if step not in tables:
                folder = run_dir / "jobs" / step
                texts = [p.read_text() for p in folder.glob("tasks*.tsv")]
                tables[step] = {hashlib.sha256(t.encode()).hexdigest(): _rows(t) for t in texts}
            rows = tables[step][event["table"]]
            numbers = _numbers(event["rows"])
            refs = {f"{step}/{rows[n][0]}": rows[n][1] for n in numbers}
            at = _seconds(event["time"])
            more = {"refs": refs, "outcome": "intent", "at": at, "numbers": numbers}
            found[event["token"]] = {**event, **more}
        elif event["token"] in found and event["event"] != "repaired":
            found[event["token"]]["outcome"] = event["event"]
            found[event["token"]]["at"] = _seconds(event["time"])
    return found


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() - EPOCH


@functools.cache
def _rows(text: str) -> dict[int, tuple[str, str]]:
    """Task and key of each row of a table."""
    head, *lines = text.splitlines()
    names = head.split("\t")
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    return {number: (row["task"], row["key"]) for number, row in enumerate(rows, start=1)}


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


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
    return (int(last) - int(first) + 1) * 10_000 + fixed


def _task_of_pack(argv: Sequence[str]) -> Callable[[], int] | None:
    """What a process runs that a packed job starts for one of its tasks."""
    if task.__name__ not in argv:
        return None
    return lambda: task.main(list(argv[argv.index(task.__name__) + 1 :]))


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)


# Sequences.

REFERENCE: Final[tuple[Action, ...]] = (
    ("submit", 0, 0),
    ("start", 0, 0),
    ("model", 0, 0),
    ("start", 0, 0),
    ("edit", 1, 0),
    ("submit", 0, 0),
    ("start", 0, 0),
    ("start", 0, 9),
    ("cancel", 0, 0),
    ("time", 3, 0),
    ("resume", 0, 0),
    ("start", 0, 0),
    ("resume", 0, 0),
)
"""Submit, a success and a failure, an edited experiment, a cancelled job, resume: what every single
effect of is interrupted."""

_ALONE: Final = (("submit", 10), ("resume", 6), ("cancel", 2))
_BUSY: Final = (("go", 14), ("kill", 2), ("submit", 1), ("cancel", 1))
_JOBS: Final = (
    ("start", 10), ("run", 14), ("requeue", 1), ("lose", 1), ("crash", 2), ("limit", 1),
    ("scancel", 1), ("forget", 1),
)  # fmt: skip
_WORLD: Final = (
    ("fault", 8), ("time", 5), ("model", 1), ("reuse", 1), ("edit", 1), ("disk", 1), ("status", 1),
)  # fmt: skip
VERBS: Final = tuple(dict.fromkeys(v for v, _ in (*_ALONE, *_BUSY, *_JOBS, *_WORLD)))


def draw(world: World, luck: random.Random) -> Action:
    """What happens next: rather what there is something to do for."""
    part = luck.random()
    if part < 0.4:
        table = _BUSY if world.users else _ALONE
    elif part < 0.8:
        table = _JOBS
    else:
        table = _WORLD
    verb = luck.choices([v for v, _ in table], [w for _, w in table])[0]
    effects = 0 if luck.random() < 0.4 else int(luck.expovariate(1 / 12)) + 1
    if verb == "fault":
        kind = luck.choices(range(len(FAULTS)), (10, 4, 3, 3))[0]
        return verb, kind, luck.randrange(len(FAULTS[tuple(FAULTS)[kind]]))
    if verb == "kill":
        return verb, luck.randrange(12), luck.randrange(400)
    if verb == "edit":
        return verb, luck.randrange(len(world.case.plans)), 0
    return verb, luck.randrange(12), effects


@dataclass(frozen=True)
class Report:
    """What one sequence came to."""

    seed: int
    case: str
    actions: tuple[Action, ...]
    wrong: tuple[str, ...]
    effects: int
    interrupted: int
    """Effects that a process was killed at or between, and those that met a fault."""
    jobs: int
    trace: tuple[str, ...]


def run_seed(shop: Workshop, seed: int, *, traced: bool = False) -> Report:
    """The sequence of a seed, from its first action to the end of all trouble."""
    luck = random.Random(seed)
    case = shop.case(CASES[seed % len(CASES)])
    world = World(shop, case, traced=traced)
    actions: list[Action] = []

    def drawn() -> Iterator[Action]:
        for _ in range(luck.randint(10, 70)):
            action = draw(world, luck)
            actions.append(action)
            yield action

    _perform(world, drawn())
    return _report(world, seed, actions)


def run_actions(
    shop: Workshop, case: str, actions: Sequence[Action], *, crash_at: int | None = None,
    cut: int = 7, traced: bool = False,
) -> Report:  # fmt: skip
    """A written-down sequence. ``crash_at``: number of the effect before which its process dies."""
    world = World(shop, shop.case(case), traced=traced)
    world.kernel.crash_at, world.kernel.crash_cut = crash_at, cut
    _perform(world, actions)
    return _report(world, -1, actions)


def _perform(world: World, actions: Sequence[Action] | Iterator[Action]) -> None:
    with use(world.kernel):
        for action in actions:
            world.do(action)
        world.finish()


def _report(world: World, seed: int, actions: Sequence[Action]) -> Report:
    return Report(
        seed, world.case.name, tuple(actions), tuple(world.wrong), world.kernel.effects,
        world.kernel.interrupted + world.cluster.faults_met, world.cluster.starts, tuple(world.kernel.trace or ()),
    )  # fmt: skip
