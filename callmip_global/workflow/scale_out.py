"""Engines on more than one node: dask workers as jobs of the site, and the map that feeds them.

The process that calls the engine is the driver. It starts workers through dask-jobqueue, as jobs
made from the same site file as every other job, sends them the engine's units, and ends them:
however it ends, for a worker that loses its driver stops by itself, and one that starts without
finding it gives up after `GIVE_UP_S`. A unit whose worker dies runs again on another; a job that
ends early is replaced.

dask-jobqueue's own job scripts quote nothing and know one shape of request (``-n 1``, ``--mem``,
``select=1``), so of its clusters only the life cycle is used: scripts, submission, names and
cancelling are those of all our jobs (`callmip_global.jobs`, `callmip_global.workflow.client`).

Whoever can talk to a dask scheduler can run code as its user, and login nodes have many users:
driver and workers speak TLS with keys made for the occasion.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from uuid import uuid4

from callmip_global.config.schema import Resources, StepKind
from callmip_global.config.site import config_path, load_site, queue_options
from callmip_global.config.yaml_source import (
    Located,
    apply_override,
    load_yaml,
    overlay,
    validate_model,
)
from callmip_global.data import data_path
from callmip_global.errors import Problem, SchedulerError, UsageError
from callmip_global.files import write_atomic
from callmip_global.jobs.render import render_script
from callmip_global.jobs.scheduler import JobRecord, JobSpec, JobState, Scheduler, Submission
from callmip_global.parallel import TaskMap
from callmip_global.workflow.client import Client, Outcome, make_scheduler

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
Say = Callable[[str], None]

PATIENCE_S = 1800.0
"""How long the driver goes without a single worker before it gives up."""
GIVE_UP_S = 120
"""How long a worker looks for its driver before it ends."""
DEATHS = 3
"""A unit on whose worker so many died is to blame itself."""
REPLACED = 2
"""Jobs that end early are replaced, up to so many for each worker asked for."""

_VISIBLE_S = 30.0  # a job may be missing from the queue's list for as long after its submission
_LOOK_S = 1.0
_STUCK_S = 10.0  # a cluster that takes longer to start or to end may be interrupted all the same
_THREAD_BYTES = 2 * 1024**3  # a unit holds some blocks of maps; less memory, fewer at a time


class WorkersError(SchedulerError):
    """There are no workers, or they die. ``kind``: the class of failure, node or memory."""

    def __init__(self, problem: Problem, kind: str = "node") -> None:
        super().__init__(problem)
        self.kind = kind


# --- the job of a worker ----------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerSpec(JobSpec):
    """The job of one worker; ``run_dir`` is the folder of scripts, logs and keys.

    ``interface``: name of the network interface that nodes reach each other by, None for the
    default one.
    """

    interface: str | None = None

    @property
    def log_dir(self) -> Path:
        return self.run_dir

    @property
    def private(self) -> Path:
        """For the TLS keys and what units share: this user's alone, and only while it runs."""
        return self.run_dir / "private"

    @property
    def threads(self) -> int:
        """Units at a time: one per core, as far as the memory goes round."""
        return max(1, min(self.cpus, self.memory_bytes // _THREAD_BYTES))


def worker_spec(
    site: Mapping[str, Any], resources: Mapping[str, Any], *, folder: Path, name: str
) -> WorkerSpec:
    """The job of a worker from plain values of a site file and of one step's ``resources``.

    A worker is one process on one node, whatever ``nodes`` and ``tasks`` say. UsageError where the
    site requires what the resources lack.
    """
    options = queue_options(site, resources["queue"] or site["default_queue"])
    directives = (*site["directives"], *options.directives, *resources["directives"])
    lacking = [
        Problem(f"site {site['name']}", need, "nothing", meaning, f"Set it: {_how(need)}.")
        for need, meaning in site["requires"].items()
        if not (
            resources[need]
            if need in ("account", "queue")
            else any(text.startswith(need) for text in directives)
        )
    ]
    if lacking:
        raise UsageError(lacking)
    return WorkerSpec(
        name=f"{name}-worker",
        step=name,
        run_dir=folder,
        python=sys.executable,
        nodes=1,
        tasks=1,
        cpus=resources["cpus"],
        memory_bytes=resources["memory_bytes"],
        walltime_s=resources["walltime_s"],
        queue=options.name,
        account=resources["account"],
        directives=directives,
        shell_setup=site["shell_setup"],
        export_environment=site["export_environment"],
        resource_line=site["resource_line"],
        drop=options.drop,
        interface=site.get("interface"),
    )


def _how(need: str) -> str:
    if need in ("account", "queue"):
        return f"--set {need}=..., or resources.default.{need} of the experiment"
    return f"--set 'directives=[\"{need}...\"]', or resources.default.directives"


def worker_script(spec: WorkerSpec, scheduler: Scheduler, *, worker: str, address: str) -> str:
    """The job script of a worker by name that is to find its driver at ``address``.

    ValueError where a value cannot stand in a job script.
    """
    arguments = [
        address,
        f"--name={worker}",
        f"--nthreads={spec.threads}",
        "--nworkers=1",
        # A worker that breaks down is started again in the same job.
        "--nanny",
        f"--memory-limit={spec.memory_bytes}",
        f"--death-timeout={GIVE_UP_S}",
        "--no-dashboard",
        "--dashboard-address=127.0.0.1:0",
        *(f"--tls-{part}={spec.private / name}" for part, name in _KEYS.items()),
        *([f"--interface={spec.interface}"] if spec.interface else []),
    ]
    return render_script(
        spec,
        scheduler,
        "worker.sh.j2",
        environment=[(n, shlex.quote(v)) for n, v in _environment(spec.threads).items()],
        arguments=" ".join(map(shlex.quote, arguments)),
    )


_KEYS = {"ca-file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}


def _environment(threads: int) -> dict[str, str]:
    """The threads of a worker are its units: no library starts more below them.

    Units hold arrays that dask does not see, so it must neither pause the worker (it would wait
    for memory that nobody frees) nor spill; above the limit the worker is started anew.
    """
    one = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    memory = ("TARGET", "SPILL", "PAUSE")
    return {
        **{f"{name}_NUM_THREADS": "1" for name in one},
        "BLOSC_NTHREADS": "1",
        "ZARR_THREADING__MAX_WORKERS": str(threads),
        **{f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}": "False" for name in memory},
        "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
    }


def site_and_resources(
    dask: str, site: str | None, kind: StepKind, overrides: Sequence[str], base_dir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain values of a site and of what one worker of a kind of step asks for, without experiment.

    ``dask``: slurm or pbs, what the site has to be;  ``site``: a shipped one or a path from
    ``base_dir``, None for the shipped one of that name. The resources are our defaults, then those
    of the site, then ``overrides``, each ``key=value``. UsageError with what is wrong.
    """
    path = config_path(site or dask, "sites", base_dir)
    found, tree = load_site(path)
    if found.scheduler != dask:
        raise UsageError(
            Problem(
                str(path),
                "scheduler",
                found.scheduler,
                dask,
                f"Say --dask {found.scheduler}, or name another --site.",
            )
        )
    layers = [load_yaml(data_path("config", "defaults.yaml")).sub(("resources",))]
    if "resources" in (tree.value.get("defaults") or {}):
        layers.append(tree.sub(("defaults", "resources")))
    entry: Located | None = None
    for layer in layers:
        for name in ("default", kind):
            if layer.value.get(name):
                part = layer.sub((name,))
                entry = part if entry is None else overlay(entry, part)
    assert entry is not None
    for text in overrides:
        entry = apply_override(entry, text)
    asked = validate_model(Resources, entry, prefix=("resources", kind))
    return found.model_dump(mode="json"), asked.model_dump(mode="json")


# --- the jobs of all workers ------------------------------------------------------------------


@dataclass
class _Job:
    """A submitted job; without ``job_id`` the reply was lost and the token will find it.

    ``seen``: in the queue or at work; one that is nowhere after that has ended.
    """

    token: str
    submitted: float
    job_id: str | None = None
    seen: bool = False


@dataclass
class _Fleet:
    """The jobs of all workers. Used from dask's thread and from the driver's own."""

    spec: WorkerSpec
    client: Client
    id: str
    jobs: dict[str, _Job] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    closed: bool = False
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, worker: str, address: str) -> None:
        """Submit the job of a worker. Never raises: dask would only log it; see ``refusals``."""
        with self.lock:
            if self.closed:
                return
            self.count += 1
            job = _Job(f"{self.id}-{self.count}", time.monotonic())
            self.jobs[worker] = job
        try:
            script = self.spec.run_dir / f"{job.token}.sh"
            text = worker_script(self.spec, self.client.scheduler, worker=worker, address=address)
            write_atomic(script, text, mode=0o700)
            reply = self.client.submit(Submission(script, self.spec.name, job.token, (1,)))
        except (SchedulerError, OSError) as error:
            self._refuse(worker, str(error))
            return
        if reply.outcome in (Outcome.REJECTED, Outcome.QUEUE_FULL):
            self._refuse(worker, reply.message)
            return
        with self.lock:
            job.job_id = reply.job_id
        if self._is_closed() and reply.job_id is not None:
            self.client.cancel([reply.job_id])

    def _is_closed(self) -> bool:
        with self.lock:
            return self.closed

    def _refuse(self, worker: str, message: str) -> None:
        with self.lock:
            self.jobs.pop(worker, None)
            self.refusals.append(message)

    def forget(self, worker: str) -> _Job | None:
        """The job has ended."""
        with self.lock:
            return self.jobs.pop(worker, None)

    def cancel(self, worker: str) -> None:
        """Cancel the job of one worker."""
        job = self.forget(worker)
        if job is not None and job.job_id is not None:
            self.client.cancel([job.job_id])

    def records(self) -> dict[str, JobRecord]:
        """Our jobs in the queue, by token; SchedulerError without a sure answer."""
        own = f"{self.id}-"
        return {r.token: r for r in self.client.jobs() if r.token.startswith(own)}

    def close(self) -> str:
        """Cancel every job, first those known by number; returns what could not be done."""
        with self.lock:
            self.closed = True
            jobs = list(self.jobs.values())
            self.jobs.clear()
        complaints = [self.client.cancel([j.job_id for j in jobs if j.job_id is not None])]
        lost = {j.token for j in jobs if j.job_id is None}
        if lost:
            try:
                found = [r.job_id for token, r in self.records().items() if token in lost]
                complaints.append(self.client.cancel(found))
            except SchedulerError as error:
                complaints.append(str(error))
        return " ".join(filter(None, complaints))


def _job_class(base: Any, fleet: _Fleet) -> Any:
    """A job class of dask-jobqueue whose script and commands are ours."""
    import asyncio

    from distributed.deploy.spec import ProcessInterface

    # The base is one of dask-jobqueue's classes, known only at run time.
    class WorkerJob(base):  # type: ignore[misc]
        def job_script(self) -> str:
            scheduler = fleet.client.scheduler
            return worker_script(
                fleet.spec, scheduler, worker=str(self.name), address=str(self.scheduler)
            )

        async def start(self) -> None:
            await asyncio.to_thread(fleet.submit, str(self.name), str(self.scheduler))
            await ProcessInterface.start(self)

        async def close(self) -> None:
            await asyncio.to_thread(fleet.cancel, str(self.name))
            await ProcessInterface.close(self)

    return WorkerJob


# --- the maps ---------------------------------------------------------------------------------


def cluster_map(
    site: Mapping[str, Any],
    resources: Mapping[str, Any],
    *,
    workers: int,
    folder: Path,
    name: str,
    say: Say,
    patience_s: float = PATIENCE_S,
) -> contextlib.AbstractContextManager[TaskMap]:
    """A task map over at most ``workers`` jobs of a Slurm or PBS site; they end with the context.

    site, resources : plain values of a site file and of the resources of one worker
    folder : gets job scripts and logs; on a file system that all nodes share
    name : of the work, for job names and messages;  say : told of workers that come and go

    Jobs are submitted when the first units come, never more than there are units for. The map
    raises `WorkersError` where no worker comes within ``patience_s``, all of them end, or a unit
    kills its workers. UsageError for what cannot stand in a job script, before anything is made.
    """
    folder = folder.resolve()
    spec = worker_spec(site, resources, folder=folder, name=name)
    scheduler = make_scheduler(site, folder)
    try:
        worker_script(spec, scheduler, worker="worker", address="tls://address:0")
    except ValueError as error:
        raise UsageError(Problem(f"workers of {name}", found=str(error))) from None
    return _fleet_map(site, spec, scheduler, workers, name, say, patience_s)


@contextlib.contextmanager
def _fleet_map(
    site: Mapping[str, Any],
    spec: WorkerSpec,
    scheduler: Scheduler,
    workers: int,
    name: str,
    say: Say,
    patience_s: float,
) -> Iterator[TaskMap]:
    import dask
    import distributed  # noqa: F401  its defaults have to be there before ours are set, and stay

    fleet = _Fleet(spec, Client(scheduler), f"dask-{uuid4().hex[:12]}")
    with contextlib.ExitStack() as stack:
        # Last in, first out: jobs are cancelled before anything else is taken down.
        stack.enter_context(_ended_by_signals())
        stack.enter_context(dask.config.set(DRIVER_CONFIG))
        stack.enter_context(_private_folder(spec.private))
        cluster = _Cluster(site, fleet, workers, name, say, patience_s, stack)

        def task_map(
            function: Callable[[S, T], R], shared: S, items: Sequence[T]
        ) -> Generator[tuple[int, R]]:
            if items:
                client = cluster.scale(-(-len(items) // spec.threads))
                yield from _dispatch(client, spec.private, cluster.watch, function, shared, items)

        yield task_map


@contextlib.contextmanager
def local_map(*, workers: int, folder: Path, say: Say) -> Iterator[TaskMap]:
    """A task map over ``workers`` processes on this machine, for instance inside an allocation.

    ``folder`` holds what the processes share, while the map runs.
    """
    with _signals_held_back():
        import dask
        import distributed

    private = folder.resolve() / "private"
    environ = {f"distributed.nanny.pre-spawn-environ.{n}": v for n, v in _environment(1).items()}
    with (
        _ended_by_signals(),
        _private_folder(private),
        dask.config.set({**DRIVER_CONFIG, **environ}),
        contextlib.ExitStack() as stack,
    ):
        try:
            with _signals_held_back():
                start = partial(
                    distributed.LocalCluster,
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    worker_dashboard_address="127.0.0.1:0",
                    security=distributed.Security.temporary(),
                    silence_logs=logging.CRITICAL,
                )
                cluster = stack.enter_context(_deaf(start))
                client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
            say(f"{workers} worker process{'es' if workers > 1 else ''} on this machine")

            def task_map(
                function: Callable[[S, T], R], shared: S, items: Sequence[T]
            ) -> Generator[tuple[int, R]]:
                if items:
                    yield from _dispatch(client, private, lambda: None, function, shared, items)

            yield task_map
        finally:
            with _signals_held_back():
                stack.close()


DRIVER_CONFIG: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": DEATHS,
    # No unit waits on one worker while another is idle.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.http.routes": [],
    # Whether a job is gone is asked of the site's scheduler, see `_Cluster.watch`.
    "distributed.deploy.lost-worker-timeout": "365 days",
}


class _Cluster:
    """The dask cluster of a fleet, made when it is first needed, and the watch over it."""

    def __init__(
        self,
        site: Mapping[str, Any],
        fleet: _Fleet,
        most: int,
        name: str,
        say: Say,
        patience_s: float,
        stack: contextlib.ExitStack,
    ) -> None:
        self.site, self.fleet, self.most, self.name = site, fleet, most, name
        self.say, self.patience_s, self.stack = say, patience_s, stack
        self.cluster: Any = None
        self.client: Any = None
        self.wanted = 0
        self.here: dict[str, str] = {}
        self.ever: set[str] = set()
        self.replaced = 0
        self.told = 0
        self.alone_since = time.monotonic()
        self.next_look = 0.0

    def scale(self, jobs: int) -> Any:
        """The dask client of at least so many workers, up to the most that were asked for."""
        if self.cluster is None:
            self._start()
        if min(jobs, self.most) > self.wanted:
            self.wanted = min(jobs, self.most)
            self.say(
                f"{self.name}: asking {self.site['name']} for {self.wanted} workers;"
                f" their logs are in {self.fleet.spec.run_dir}"
            )
            self.cluster.scale(jobs=self.wanted)
        self.alone_since = time.monotonic()
        return self.client

    def _start(self) -> None:
        import distributed

        dask_jobqueue = _dask_jobqueue()
        spec = self.fleet.spec
        slurm = self.site["scheduler"] == "slurm"
        cluster_class = dask_jobqueue.SLURMCluster if slurm else dask_jobqueue.PBSCluster
        job_class = dask_jobqueue.slurm.SLURMJob if slurm else dask_jobqueue.pbs.PBSJob
        try:
            self.cluster = cluster_class(
                job_cls=_job_class(job_class, self.fleet),
                name=self.fleet.id,
                cores=spec.threads,
                memory=f"{spec.memory_bytes} B",
                processes=1,
                interface=spec.interface,
                security=_security(distributed, spec.private),
                protocol="tls://",
                scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
            )
        except (RuntimeError, ValueError) as error:
            # An interface that this machine does not have, no free port.
            text = " ".join(str(error).split())
            raise UsageError(Problem(f"site {self.site['name']}", "interface", text)) from None
        self.stack.callback(self.cluster.close)
        self.client = self.stack.enter_context(
            distributed.Client(self.cluster, set_as_default=False)
        )
        self.stack.callback(self._cancel)

    def _cancel(self) -> None:
        complaint = self.fleet.close()
        if complaint:
            self.say(f"{self.name}: workers may be left over (tokens {self.fleet.id}): {complaint}")

    def watch(self) -> None:
        """Called about every second: tells of changes, replaces jobs that ended, gives up."""
        workers = self.cluster.scheduler_info["workers"].values()
        here = {str(w["name"]): str(w["host"]) for w in workers}
        for worker in self.here.keys() - here.keys():
            self.say(f"{self.name}: the worker on {self.here[worker]} is gone")
        new = sorted(here.keys() - self.here.keys())
        for count, worker in enumerate(new, start=len(here) - len(new) + 1):
            self.say(f"{self.name}: a worker on {here[worker]}, {count} of {self.wanted}")
        self.here = here
        self.ever |= here.keys()
        now = time.monotonic()
        if here:
            self.alone_since = now
        if now >= self.next_look:
            self.next_look = now + min(self.site["poll_seconds"], self.patience_s)
            self._look(now)

    def _look(self, now: float) -> None:
        """Compare the workers with the queue."""
        with self.fleet.lock:
            jobs = dict(self.fleet.jobs)
            refusals = self.fleet.refusals[self.told :]
        self.told += len(refusals)
        for text in refusals:
            self.say(f"{self.name}: a worker was refused: {text}")
        records: dict[str, JobRecord] = {}
        if jobs:
            try:
                records = self.fleet.records()
            except SchedulerError as error:
                if now - self.alone_since > self.patience_s:
                    raise WorkersError(error.problems[0]) from None
                return
        ended = {}
        for worker, job in jobs.items():
            record = records.get(job.token)
            job.seen = job.seen or record is not None or worker in self.ever
            unseen = not job.seen and now - job.submitted < _VISIBLE_S
            alive = record is not None and record.state in (JobState.LIVE, JobState.UNKNOWN)
            if worker not in self.here and not unseen and not alive:
                ended[worker] = record
        others = len(jobs) > len(ended)
        for worker, record in ended.items():
            self._replace(worker, record, others=others)
        starting = self.cluster.sync(self._is_starting)
        with self.fleet.lock:
            nobody = not self.fleet.jobs and not self.here
        if nobody and not starting:
            raise self._none_left(ended)
        if now - self.alone_since > self.patience_s:
            raise self._none_came([records[j.token] for j in jobs.values() if j.token in records])

    async def _is_starting(self) -> bool:
        """Whether dask is about to submit jobs."""
        return self.cluster._correct_state_waiting is not None or self.cluster._lock.locked()

    def _replace(self, worker: str, record: JobRecord | None, *, others: bool) -> None:
        """Submit a job in place of one that ended, unless it never came to work.

        One that never reached the driver would not the second time, except where others did.
        """
        self.fleet.forget(worker)
        worked = worker in self.ever
        self.ever.discard(worker)
        how = f" ({record.detail})" if record is not None and record.detail else ""
        may = (worked or bool(self.here)) and self.replaced < REPLACED * self.most
        self.say(
            f"{self.name}: the job of a worker ended early{how};"
            f" {'it is replaced' if may else 'the others go on' if others else 'none is left'}"
        )

        async def drop() -> None:
            self.cluster.worker_spec.pop(worker, None)
            self.cluster.workers.pop(worker, None)

        self.cluster.sync(drop)
        if may:
            self.replaced += 1
            self.cluster.scale(jobs=len(self.cluster.worker_spec) + 1)

    def _none_left(self, ended: Mapping[str, JobRecord | None]) -> WorkersError:
        refusals = self.fleet.refusals
        details = " ".join(r.detail for r in ended.values() if r is not None)
        memory = "OUT_OF_ME" in details
        last = _last_words(self.fleet.spec.run_dir)
        found = (
            refusals[-1]
            if refusals and not ended
            else f"all of them ended: {last or details or 'no log'}"
        )
        remedy = f"The logs are in {self.fleet.spec.run_dir}."
        if memory:
            remedy = f"Raise the memory of {self.name}. {remedy}"
        return WorkersError(
            Problem(f"workers of {self.name}", "", found, "", remedy),
            "memory" if memory else "node",
        )

    def _none_came(self, records: Sequence[JobRecord]) -> WorkersError:
        minutes = f"no worker came within {self.patience_s / 60:.0f} minutes"
        waiting = [r for r in records if r.detail[:1] == "Q" or "PENDING" in r.detail]
        folder = self.fleet.spec.run_dir
        if waiting or not records:
            why = f"the queue is full ({waiting[0].detail})" if waiting else "no job is listed"
            remedy = "Try another queue, less memory or a shorter walltime."
        else:
            why = f"jobs run, but do not reach {self.cluster.scheduler_address}"
            remedy = (
                "Name the network interface that nodes share in the site file (interface: ib0)."
            )
        return WorkersError(
            Problem(
                f"workers of {self.name}",
                "",
                f"{minutes}: {why}",
                "",
                f"{remedy} The logs are in {folder}.",
            )
        )


@contextlib.contextmanager
def _private_folder(folder: Path) -> Iterator[None]:
    """A folder for this user alone: who could write there could run code in the workers."""
    made = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # where nothing else came into it


def _dask_jobqueue() -> Any:
    """The package; importing it makes Ctrl-C end the program with exit code 0, which is undone."""
    interrupt = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    signal.signal(signal.SIGINT, interrupt)
    return dask_jobqueue


def _security(distributed: Any, keys: Path) -> Any:
    """TLS for driver and workers, with a new key; workers read it from the folder ``keys``."""
    made = distributed.Security.temporary()
    texts = {"ca.pem": made.tls_ca_file, "cert.pem": made.tls_worker_cert}
    texts["key.pem"] = made.tls_worker_key
    for name, text in texts.items():
        write_atomic(keys / name, text, mode=0o600)
    roles = ("client", "scheduler", "worker")
    return distributed.Security(
        require_encryption=True,
        tls_ca_file=str(keys / "ca.pem"),
        **{f"tls_{role}_cert": str(keys / "cert.pem") for role in roles},
        **{f"tls_{role}_key": str(keys / "key.pem") for role in roles},
    )


def _last_words(folder: Path) -> str:
    """The last line of the newest log in the folder."""
    logs = [p for p in folder.glob("*") if p.is_file() and p.suffix != ".sh"]
    for log in sorted(logs, key=lambda p: p.stat().st_mtime, reverse=True):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()
    return ""


# --- units ------------------------------------------------------------------------------------


def _dispatch(
    client: Any,
    private: Path,
    watch: Callable[[], None],
    function: Callable[[S, T], R],
    shared: S,
    items: Sequence[T],
) -> Generator[tuple[int, R]]:
    """Send every unit to the workers of a dask client; yield what comes back, as it comes.

    What the units share goes through a file: dask would lose it with the worker that holds it, and
    would send it with every unit.
    """
    import cloudpickle
    import distributed

    path = private / f"shared-{uuid4().hex}.pickle"
    with path.open("wb") as file:
        cloudpickle.dump((Path.cwd(), shared), file)
    name = f"{function.__name__.strip('_')}-{uuid4().hex[:8]}"
    pending = {
        client.submit(run_unit, str(path), function, item, key=f"{name}-{i}", pure=False): i
        for i, item in enumerate(items)
    }
    try:
        while pending:
            with contextlib.suppress(TimeoutError), client.as_current():
                distributed.wait(list(pending), timeout=_LOOK_S, return_when="FIRST_COMPLETED")
            for future in [f for f in pending if f.done()]:
                if future.status == "finished":
                    try:
                        result = future.result(timeout=10)
                    except TimeoutError:
                        continue  # it went with its worker: dask makes it again
                else:
                    raise _failure(future, private.parent)
                yield pending.pop(future), result
            watch()
    finally:
        if pending:
            with contextlib.suppress(Exception):
                client.cancel(list(pending), force=True)
        path.unlink(missing_ok=True)


def _failure(future: Any, folder: Path) -> BaseException:
    """What a failed unit raises here."""
    import distributed

    error = future.exception()
    if isinstance(error, distributed.KilledWorker):
        return WorkersError(
            Problem(
                "workers",
                "",
                f"{DEATHS + 1} of them ended at the same unit of work",
                "",
                f"Most likely it needs more memory. The logs are in {folder}.",
            ),
            "memory",
        )
    return error if isinstance(error, BaseException) else RuntimeError(f"unit {future.status}")


_shared: dict[str, Any] = {}
_shared_lock = threading.Lock()


def run_unit(path: str, function: Callable[[Any, T], R], item: T) -> R:
    """In a worker: run a unit; what it shares with others is read once from ``path``.

    Paths may be relative to the driver's folder, so the worker goes there (PBS starts jobs at
    home). Where the folder is not on this node, they are not either, and the unit will say so.
    """
    with _shared_lock:
        if path not in _shared:
            import cloudpickle

            with Path(path).open("rb") as file:
                folder, value = cloudpickle.load(file)
            with contextlib.suppress(OSError):
                os.chdir(folder)
            _shared.clear()
            _shared[path] = value
        shared = _shared[path]
    return function(shared, item)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """TERM and HUP end the driver as Ctrl-C does, so that its jobs are cancelled.

    Only where nothing else was arranged for them, as in the jobs of the workflow.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    changed = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Ctrl-C, TERM and HUP take effect when the context ends.

    dask cannot be interrupted while a cluster starts or ends: it would fail once more, and say so,
    when Python ends. Nor can imports be everywhere: Python may drop the interruption. Where it
    hangs, a signal `_STUCK_S` after the first one takes effect at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, float]] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append((signum, time.monotonic()))
        if came[-1][1] - came[0][1] > _STUCK_S:
            signal.signal(signum, before[signum])
            signal.raise_signal(signum)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {int(number): signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
        if came:
            signal.raise_signal(came[0][0])


def _deaf(start: Callable[[], T]) -> T:
    """What ``start`` returns; the processes that it starts do not hear Ctrl-C or HUP.

    A terminal sends these to all processes of a command, but it is the driver that ends workers.
    They have the mask of the thread that starts them, even while they import their modules.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
            # It ignores Ctrl-C itself, but lifts the mask of the thread that first needs it.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            result.set_result(start())
        except BaseException as error:  # whatever it is, who waits must hear of it
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result()
