"""What the commands do: stateless functions on an experiment file or a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from callmip_global.config.graph import build_plan
from callmip_global.config.load import LoadedExperiment
from callmip_global.config.plan import Plan
from callmip_global.config.validate import load_valid_experiment
from callmip_global.errors import Problem, SchedulerError, UsageError
from callmip_global.resources import memory_mib, walltime_text
from callmip_global.workflow.client import Client, make_scheduler
from callmip_global.workflow.failures import NEXT_ACTION
from callmip_global.workflow.lease import Leases
from callmip_global.workflow.observe import ALIVE, Observer, Queue, TaskState
from callmip_global.workflow.provenance import (
    check_reproduces,
    read_provenance,
    write_provenance,
)
from callmip_global.workflow.retry import verdict
from callmip_global.workflow.rundir import RunDir
from callmip_global.workflow.submit import (
    SubmitResult,
    Submitter,
    planned_commands,
    write_run_dir,
)

Say = Callable[[str], None]


def default_run_dir(experiment: Path) -> Path:
    """``<experiment without .yaml>.run`` beside the experiment file."""
    return experiment.resolve().with_suffix(".run")


def plan_experiment(experiment: Path, overrides: Sequence[str] = ()) -> tuple[Plan, str]:
    """The plan of a valid experiment and its resolved YAML; UsageError with every problem."""
    loaded = load_valid_experiment(experiment.resolve(), overrides=overrides)
    return build_plan(loaded, overrides), resolved_yaml(loaded)


def resolved_yaml(loaded: LoadedExperiment) -> str:
    """The experiment after all overlays, as YAML: what was really run."""
    return str(
        yaml.safe_dump(
            loaded.sources.value, sort_keys=False, allow_unicode=True, default_flow_style=False
        )
    )


def prepare(
    experiment: Path,
    run_dir: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    like: Path | None = None,
) -> tuple[RunDir, Plan]:
    """Validate, plan and write everything that submitting needs; nothing is submitted."""
    plan, text = plan_experiment(experiment, overrides)
    _require_like(plan, like)
    run = RunDir((run_dir or default_run_dir(experiment)).resolve())
    with run.lock():
        write_run_dir(run, plan, text)
        write_provenance(run, plan)
    return run, plan


def submit(
    experiment: Path,
    run_dir: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    only: str | None = None,
    retry_failed: bool = False,
    beyond_budget: bool = False,
    like: Path | None = None,
    say: Say = print,
) -> tuple[RunDir, SubmitResult]:
    """Write the run directory and submit what is neither done nor alive.

    ``only``: name or kind of the one step to submit. ``retry_failed``: also what failed, as far as
    the retry rules allow; ``beyond_budget``: further. ``like``: another run directory, whose
    manifest this run must agree with in everything that determines results.
    Raises UsageError (nothing submitted) or SchedulerError.
    """
    plan, text = plan_experiment(experiment, overrides)
    if only is not None and only not in {n for s in plan.steps for n in (s.name, s.kind)}:
        names = ", ".join(dict.fromkeys(s.name for s in plan.steps))
        raise UsageError(Problem("--only", found=repr(only), wanted=f"one of: {names}"))
    run = RunDir((run_dir or default_run_dir(experiment)).resolve())
    _require_like(plan, like)
    with run.lock():
        write_run_dir(run, plan, text)
        write_provenance(run, plan)
        client = client_of(run, plan)
        submitter = Submitter(run, plan, client, say, beyond_budget=beyond_budget)
        return run, submitter.submit(retry_failed=retry_failed, only=only)


def _require_like(plan: Plan, like: Path | None) -> None:
    if like is not None:
        problems = check_reproduces(plan, read_provenance(like.resolve()))
        if problems:
            raise UsageError(problems)


def resume(
    run_dir: Path, *, beyond_budget: bool = False, say: Say = print
) -> tuple[RunDir, SubmitResult]:
    """Plan again with the experiment as it is now, and submit what is missing, failed tasks too."""
    old = RunDir(run_dir.resolve()).plan()
    return submit(
        Path(old.experiment),
        run_dir,
        overrides=old.settings["overrides"],
        retry_failed=True,
        beyond_budget=beyond_budget,
        say=say,
    )


def dry_run_commands(run: RunDir, plan: Plan) -> list[str]:
    """The scheduler commands that `submit` would run."""
    return planned_commands(run, plan)


@dataclass(frozen=True)
class RunState:
    """The whole run as it stands; ``trouble`` says why the scheduler gave no answer."""

    run: RunDir
    plan: Plan
    tasks: dict[str, TaskState]
    leases: Leases
    trouble: SchedulerError | None = None

    def next_action(self, task: TaskState) -> str:
        """What to do about a failed task: what `resume` will do, or why it will not."""
        assert task.failure is not None
        leases = self.leases.history(task.step, task.task)
        history = [lease for lease in leases if lease.key == task.task.key]
        kind = task.failure.kind
        found = verdict(self.plan, task.step, kind, history, beyond_budget=False)
        if found.refused:
            return f"`callmip-global resume` leaves it: {found.refused}."
        asking = ""
        if found.level.walltime_s is not None:
            asking = f", asking for {walltime_text(found.level.walltime_s)}"
        if found.level.memory_bytes is not None:
            joined = " and " if asking else ", asking for "
            asking += f"{joined}{memory_mib(found.level.memory_bytes):,} MiB"
        if found.level.segment_years is not None:
            asking += f", in pieces of {found.level.segment_years} years"
        return NEXT_ACTION[kind].replace("{asking}", asking)

    @property
    def is_alive(self) -> bool:
        """Whether anything is queued, running or of unknown fate."""
        return any(t.state in ALIVE for t in self.tasks.values())

    @property
    def is_done(self) -> bool:
        return all(t.state == "done" for t in self.tasks.values())


def client_of(run: RunDir, plan: Plan) -> Client:
    """The client of the site's scheduler."""
    return Client(make_scheduler(plan.settings["site"], run.path))


def status(run_dir: Path) -> RunState:
    """State of every task. A scheduler that does not answer is told, not raised."""
    run = RunDir(run_dir.resolve())
    plan = run.plan()
    trouble = None
    queue = None
    try:
        queue = Queue(client_of(run, plan).jobs())
    except SchedulerError as error:
        trouble = error
    observer = Observer(run, plan, queue)
    return RunState(run, plan, observer.all(), observer.leases, trouble)


def cancel(run_dir: Path, *, say: Say = print) -> int:
    """Cancel everything alive; returns the number of jobs. Done tasks stay done."""
    run = RunDir(run_dir.resolve())
    plan = run.plan()
    client = client_of(run, plan)
    with run.lock():
        queue = Queue(client.jobs())
        jobs = []
        for intent in run.journal.intents().values():
            job_id = intent.job_id or queue.job_id(intent.token)
            if job_id is None:
                continue
            if queue.has_live(intent):
                jobs.append((intent.token, job_id))
        # The journal first: a job that starts between the two finds that it is not wanted.
        for token, job_id in jobs:
            run.journal.append("cancelled", token=token, job_id=job_id)
        # A submission that was accepted twice has a second job, which the journal does not know.
        ids = dict.fromkeys(i for t, job_id in jobs for i in (job_id, *queue.live_ids(t)))
        complaint = client.cancel(list(ids))
        if complaint:
            say(complaint)
    return len(jobs)


def wait(
    run_dir: Path, *, each: Callable[[RunState], None], poll_s: float | None = None
) -> RunState:
    """Look until nothing is alive any more; ``each`` sees every look.

    ``poll_s``: seconds between looks, by default the ``poll_seconds`` of the site file.
    """
    while True:
        state = status(run_dir)
        each(state)
        if not state.is_alive:
            return state
        time.sleep(poll_s or state.plan.settings["site"]["poll_seconds"])
