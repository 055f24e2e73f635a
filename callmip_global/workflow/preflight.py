"""What ``validate --site`` asks the scheduler and the disk, where the site's scheduler is.

Nothing is submitted, and nothing is written outside a temporary folder. The scheduler is asked for
its queues and limits, because it does not always refuse what can never run: Slurm lets a job that
is longer than its partition allows wait for ever (EnforcePartLimits=NO), and PBS takes any job into
a routing queue. Then sbatch is asked what it would say to each script (``--test-only``).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from callmip_global.config.graph import build_plan
from callmip_global.config.load import LoadedExperiment
from callmip_global.config.plan import Plan, Step, storage_bytes
from callmip_global.config.schema import Resources, StepKind
from callmip_global.config.site import queue_options
from callmip_global.config.validate import check_experiment, step_kinds
from callmip_global.config.yaml_source import KeyPath, dotted, nearest
from callmip_global.errors import Problem, SchedulerError
from callmip_global.jobs.render import render_script
from callmip_global.jobs.scheduler import Answer, Submission, contains_any
from callmip_global.resources import memory_bytes, walltime_seconds, walltime_text
from callmip_global.workflow.api import default_run_dir
from callmip_global.workflow.client import Client, make_scheduler
from callmip_global.workflow.rundir import RunDir
from callmip_global.workflow.submit import Submitter, job_name, job_spec

Ask = Callable[[Sequence[str]], Answer]

_UNLIMITED = ("", "unlimited", "infinite", "none", "n/a", "(null)")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at and is fine: which, and what was found."""

    what: str
    found: str


@dataclass
class Preflight:
    """What is fine, and what is not."""

    checks: list[Check] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class QueueState:
    """A partition of Slurm or a queue of PBS as the scheduler has it; None: no limit.

    ``max_cpus`` and ``max_memory_bytes`` are those of a whole job. ``open``: it takes jobs.
    ``leads_to``: the queues that a routing queue of PBS hands its jobs to; ``by_route_only``: only
    a routing queue may do so.
    """

    name: str
    open: bool = True
    state: str = ""
    max_walltime_s: int | None = None
    max_nodes: int | None = None
    max_cpus: int | None = None
    max_memory_bytes: int | None = None
    leads_to: tuple[str, ...] = ()
    by_route_only: bool = False


@dataclass(frozen=True)
class Cluster:
    """What a scheduler says of itself; ``largest_array``: number of elements, and largest index."""

    name: str
    queues: Mapping[str, QueueState]
    default_queue: str | None = None
    largest_array: int | None = None

    @property
    def offered(self) -> list[str]:
        """Queues that a user may name."""
        return [name for name, queue in self.queues.items() if not queue.by_route_only]


def parse_slurm(config: str, partitions: str) -> Cluster:
    """From ``scontrol show config`` and ``scontrol -o show partition``.

    Indices go up to MaxArraySize - 1, and ours start at 1.
    """
    values = dict(re.findall(r"^(\S+)\s*=\s*(.*?)\s*$", config, flags=re.MULTILINE))
    queues: dict[str, QueueState] = {}
    default = None
    for line in partitions.splitlines():
        fields = dict(part.partition("=")[::2] for part in line.split())
        name = fields.get("PartitionName")
        if name is None:
            continue
        nodes = [n for n in (_count(fields.get(k)) for k in ("MaxNodes", "TotalNodes")) if n]
        state = fields.get("State", "")
        queues[name] = QueueState(
            name,
            # A partition that is DOWN takes jobs, and starts them when it is up again.
            open=state in ("UP", "DOWN", ""),
            state=state,
            max_walltime_s=_seconds(fields.get("MaxTime")),
            max_nodes=min(nodes, default=None),
        )
        if fields.get("Default") == "YES":
            default = name
    size = _count(values.get("MaxArraySize"))
    name = _joined("Slurm", values.get("SLURM_VERSION"), "cluster", values.get("ClusterName"))
    return Cluster(name, queues, default, None if size is None else size - 1)


def parse_pbs(server: str, queues: str) -> Cluster:
    """From ``qstat -Bf`` and ``qstat -Qf``."""
    name, values = (_blocks(server, "Server") or [("", {})])[0]
    everywhere = _pbs_queue("", {**values, "enabled": "True"})
    found = {
        queue: _within(_pbs_queue(queue, fields), everywhere)
        for queue, fields in _blocks(queues, "Queue")
    }
    return Cluster(
        _joined("PBS", values.get("pbs_version"), "server", name),
        found,
        values.get("default_queue"),
        _count(values.get("max_array_size")),
    )


def _joined(kind: str, version: str | None, what: str, name: str | None) -> str:
    return f"{kind} {version}, {what} {name}" if version and name else kind


def _pbs_queue(name: str, fields: Mapping[str, str]) -> QueueState:
    limits = {key[14:]: text for key, text in fields.items() if key.startswith("resources_max.")}
    destinations = fields.get("route_destinations", "")
    return QueueState(
        name,
        open=fields.get("enabled") == "True",
        state="enabled" if fields.get("enabled") == "True" else "not enabled",
        max_walltime_s=_seconds(limits.get("walltime")),
        max_nodes=_count(limits.get("nodect")),
        max_cpus=_count(limits.get("ncpus")),
        max_memory_bytes=_bytes(limits.get("mem")),
        leads_to=tuple(d.strip() for d in destinations.split(",") if d.strip()),
        by_route_only=fields.get("from_route_only") == "True",
    )


def _blocks(text: str, word: str) -> list[tuple[str, dict[str, str]]]:
    """``Queue: NAME`` and the indented ``key = value`` lines after it; a tab continues a line."""
    found: list[tuple[str, dict[str, str]]] = []
    for line in text.replace("\n\t", "").splitlines():
        begin, _, name = line.partition(": ")
        if begin == word:
            found.append((name.strip(), {}))
        elif found and " = " in line:
            key, _, value = line.strip().partition(" = ")
            found[-1][1][key] = value
    return found


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _seconds(text: str | None) -> int | None:
    """Seconds of a limit; None where there is none, or none that is understood."""
    if text is None or text.lower() in _UNLIMITED:
        return None
    try:
        return walltime_seconds(text)
    except ValueError:
        return _count(text)


def _bytes(text: str | None) -> int | None:
    try:
        return memory_bytes(text)
    except ValueError:
        return _count(text)


def ask_cluster(scheduler: str, ask: Ask) -> Cluster:
    """What the scheduler says of itself; SchedulerError where it does not tell its queues.

    Some sites keep the rest to themselves: then no limit of arrays is known.
    """
    if scheduler == "slurm":
        # -a: hidden partitions take jobs like any other.
        partitions = _answer(ask, ["scontrol", "-a", "-o", "show", "partition"])
        return parse_slurm(_answer(ask, ["scontrol", "show", "config"], optional=True), partitions)
    queues = _answer(ask, ["qstat", "-Qf"])
    return parse_pbs(_answer(ask, ["qstat", "-Bf"], optional=True), queues)


def _answer(ask: Ask, command: Sequence[str], *, optional: bool = False) -> str:
    try:
        answer = ask(command)
    except subprocess.TimeoutExpired as error:
        answer = Answer(124, "", f"no reply within {error.timeout:.0f} s")
    if answer.code == 0 or optional:
        return answer.stdout
    found = " ".join(answer.stderr.split()) or f"exit code {answer.code}"
    remedy = "Try again when the scheduler answers, or without --site."
    raise SchedulerError(Problem(" ".join(command), "", found, "an answer", remedy))


def validate_at_site(
    path: Path, overrides: Sequence[str] = (), run_dir: Path | None = None
) -> tuple[LoadedExperiment | None, Preflight]:
    """Everything that `check_experiment` finds, and everything that `check_site` finds besides.

    Raises SchedulerError where nothing is wrong but that the scheduler does not answer.
    """
    loaded, problems = check_experiment(path, overrides)
    if loaded is None:
        return None, Preflight([], problems)
    plan = None if problems else build_plan(loaded, overrides)
    try:
        found = check_site(loaded, plan, (run_dir or default_run_dir(path)).resolve())
    except SchedulerError as error:
        if not problems:
            raise
        found = Preflight([], list(error.problems))
    known = {problem.key for problem in problems}
    more = [problem for problem in found.problems if not problem.key or problem.key not in known]
    return loaded, Preflight(found.checks, [*problems, *more])


def check_site(loaded: LoadedExperiment, plan: Plan | None, run_dir: Path) -> Preflight:
    """Compare an experiment with the scheduler it is for, and with the disk of its run directory.

    ``plan`` is None for an experiment that is not valid: then only what does not need it is asked.
    Raises SchedulerError where the scheduler does not answer.
    """
    return _Checker(loaded, plan, run_dir).run()


class _Checker:
    """Holds what all checks share."""

    def __init__(self, loaded: LoadedExperiment, plan: Plan | None, run_dir: Path) -> None:
        self.loaded, self.plan, self.run_dir = loaded, plan, run_dir
        self.site: dict[str, Any] = loaded.site.model_dump(mode="json")
        self.client = Client(make_scheduler(self.site, run_dir))
        self.found = Preflight()
        self.told: set[str] = set()
        """Kinds of steps of which it is known that they cannot run."""

    def run(self) -> Preflight:
        self._disk()
        if self.loaded.site.scheduler == "local":
            running = f"{self.loaded.site.max_running} at a time"
            self._fine("scheduler", f"none: tasks are processes of this machine, {running}")
            return self.found
        try:
            self._ask()
        except SchedulerError as error:
            if not self.found.problems:
                raise
            self.found.problems += error.problems
        return self.found

    def _ask(self) -> None:
        cluster = ask_cluster(self.loaded.site.scheduler, self.client.run)
        self._fine("scheduler", f"answers: {cluster.name}")
        self._queues(cluster)
        self._arrays(cluster)
        self._dry_runs(cluster)

    def _fine(self, what: str, found: str) -> None:
        self.found.checks.append(Check(what, found))

    def _wrong(self, key: KeyPath, found: str, wanted: str, remedy: str = "") -> None:
        """One problem of a key: what follows from it is not said besides."""
        label = dotted(key)
        if all(problem.key != label for problem in self.found.problems):
            where = self.loaded.sources.where(key)
            self.found.problems.append(Problem(where, label, found, wanted, remedy))

    def _queues(self, cluster: Cluster) -> None:
        """Every queue that is asked for exists, is open, and gives what is asked of it."""
        used: dict[str, list[StepKind]] = {}
        unknown: dict[str, list[StepKind]] = {}
        for kind in step_kinds(self.loaded):
            asked = self.loaded.resources(kind)
            options = queue_options(self.site, asked.queue)
            name = options.name or cluster.default_queue or ""
            names = name.split(",")
            if "partition" in options.drop:
                used.setdefault("(chosen by the scheduler)", []).append(kind)
            elif "@" in name:
                used.setdefault(f"{name} (another server, not asked)", []).append(kind)
            elif any(n not in cluster.offered for n in names):
                unknown.setdefault(name, []).append(kind)
            else:
                used.setdefault(name, []).append(kind)
                self._limits(kind, asked, [cluster.queues[n] for n in names], cluster)
        for name, kinds in unknown.items():
            self._unknown_queue(name, kinds, cluster)
        for name, kinds in used.items():
            state = cluster.queues.get(name)
            limits = f" ({_limits_text(state)}{self._promised(kinds, state)})" if state else ""
            self._fine("queue", f"{name}{limits} for {', '.join(kinds)}")

    def _promised(self, kinds: Iterable[StepKind], state: QueueState) -> str:
        """Where the site file gives more time than the scheduler does: it is out of date."""
        for kind in kinds:
            asked = self.loaded.resources(kind)
            known = self.loaded.site.queues.get(asked.queue or "")
            said = known.walltime_limit_s(asked.tasks * asked.cpus) if known is not None else None
            if said is not None and said > (state.max_walltime_s or said):
                return f"; the site file says {walltime_text(said)}"
        return ""

    def _unknown_queue(self, name: str, kinds: Sequence[StepKind], cluster: Cluster) -> None:
        wanted = f"one of those of {cluster.name}: {', '.join(cluster.offered)}"
        remedy = [nearest(name, cluster.offered)]
        if self.loaded.resources(kinds[0]).queue in self.site["queues"]:
            remedy.append(f"The site file says it: {self.loaded.site.path}.")
        if len(kinds) > 1:
            remedy.append(f"It is that of {', '.join(kinds)}.")
        found = repr(name) if name else "nothing, and no default queue"
        key: KeyPath = ("resources", kinds[0], "queue")
        self.told.update(kinds)
        self._wrong(key, found, wanted, " ".join(text for text in remedy if text))

    def _limits(
        self, kind: StepKind, asked: Resources, queues: Iterable[QueueState], cluster: Cluster
    ) -> None:
        """Problems of the queue that comes nearest: a job in one of several may start in any."""
        ways = [way for queue in queues for way in _ways(queue, cluster)]
        tries = [list(violations(asked, way)) for way in ways]
        best = min(tries, key=len, default=[])
        for name, found, wanted in best:
            remedy = ""
            if name == "walltime" and kind == "run":
                remedy = "Set a smaller segment_years in the phases."
            self.told.add(kind)
            self._wrong(("resources", kind, name), found, wanted, remedy)

    def _arrays(self, cluster: Cluster) -> None:
        if self.plan is None or not self.loaded.site.arrays:
            return
        largest = max(self._largest_array(step) for step in self.plan.steps)
        limit = cluster.largest_array
        if limit is None or largest < 2:
            return
        if largest <= limit:
            self._fine("arrays", f"up to {largest} elements, of {limit} that are allowed")
            return
        site = self.loaded.site
        self.found.problems.append(
            Problem(
                str(site.path),
                "max_array_size",
                f"{site.max_array_size or 'nothing'}, and steps of {largest} elements",
                f"at most {limit}, the limit of {cluster.name}",
                "Set it in a copy of the site file beside the experiment, and name that one there.",
            )
        )

    def _largest_array(self, step: Step) -> int:
        """Number of elements of the largest job of a step."""
        assert self.plan is not None
        submitter = Submitter(RunDir(self.run_dir), self.plan, self.client)
        n_jobs = -(-len(step.tasks) // int(step.resources["pack"]))
        return min(submitter.largest_array(step), n_jobs)

    def _dry_runs(self, cluster: Cluster) -> None:
        """What sbatch says to the script of each kind of step."""
        if self.plan is None:
            self._fine("dry run", "not made before the experiment is valid")
            return
        if self.loaded.site.scheduler == "pbs":
            self._fine("dry run", "PBS has none: qsub is asked for the first time by submit")
        kinds = {step.kind: step for step in reversed(self.plan.steps)}
        with tempfile.TemporaryDirectory(prefix="callmip-preflight-") as folder:
            for kind, step in reversed(kinds.items()):
                # An array that is too large was told already.
                size = min(self._largest_array(step), cluster.largest_array or len(step.tasks))
                self._dry_run(kind, step, size, Path(folder))

    def _dry_run(self, kind: str, step: Step, size: int, folder: Path) -> None:
        assert self.plan is not None
        scheduler = self.client.scheduler
        script = folder / f"{kind}.sh"
        try:
            spec = job_spec(RunDir(self.run_dir), self.plan, step)
            script.write_text(render_script(spec, scheduler), encoding="utf-8")
        except ValueError as error:
            self._wrong(("resources", kind), str(error), "a job script")
            return
        if scheduler.facts.name != "slurm" or kind in self.told:
            return
        indices = tuple(range(1, size + 1))
        name = job_name(self.plan, step)
        command = scheduler.submit_command(Submission(script, name, "callmip-preflight", indices))
        try:
            answer = self.client.run([command[0], "--test-only", *command[1:]])
        except subprocess.TimeoutExpired as error:
            answer = Answer(124, "", f"timed out: no reply within {error.timeout:.0f} s")
        words = "; ".join(
            line.strip().removeprefix("sbatch: ") for line in answer.stderr.splitlines() if line
        )
        if answer.code == 0:
            self._fine("sbatch", f"{kind}: {words or 'accepted'}")
        elif contains_any(words, scheduler.facts.no_answer):
            raise SchedulerError(Problem("sbatch --test-only", "", words, "an answer"))
        else:
            hints = [hint for text, hint in scheduler.facts.hints.items() if text in words]
            wanted = "a job that sbatch accepts"
            self._wrong(("resources", kind), words, wanted, " ".join(hints))

    def _disk(self) -> None:
        """The run directory can be made, and what the plan writes fits on its file system."""
        folder = next(p for p in (self.run_dir, *self.run_dir.parents) if p.exists())
        if not os.access(folder, os.W_OK | os.X_OK):
            problem = Problem(
                str(self.run_dir), found=f"no right to write in {folder}", wanted="a run directory",
                remedy="Choose another one with --run-dir.",
            )  # fmt: skip
            self.found.problems.append(problem)
        system = os.statvfs(folder)
        free = system.f_bavail * system.f_frsize
        there = f"{size_text(free)} free on the file system of {folder} (quotas are not known here)"
        if self.plan is None:
            self._fine("disk", there)
            return
        sizes = storage_bytes(self.plan).values()
        needed = sum(size for size in sizes if size is not None)
        if needed > free:
            exists = (
                " What the run directory holds already is counted." if self.run_dir.exists() else ""
            )
            self._wrong(
                ("run", "disk"),
                f"{size_text(needed)} needed at most, {there}",
                "a run directory with room for it",
                f"Choose one with --run-dir, or run less at a time.{exists}",
            )
        elif None in sizes:
            own = "what the model writes is not known (run.disk)"
            self._fine("disk", f"{size_text(needed)} needed at most for stores, {own}; {there}")
        else:
            self._fine("disk", f"{size_text(needed)} needed at most, {there}")


def _ways(queue: QueueState, cluster: Cluster) -> list[QueueState]:
    """The queue, or each queue that a routing queue leads to, with the tighter of both limits."""
    known = (cluster.queues.get(name) for name in queue.leads_to)
    ways = [_within(way, queue) for way in known if way is not None]
    # A destination on another server is not known here: it may take anything the queue itself does.
    foreign = len(ways) < len(queue.leads_to)
    return [*ways, replace(queue, leads_to=())] if foreign or not ways else ways


def _within(queue: QueueState, outer: QueueState) -> QueueState:
    """A queue with the limits of what it is in, or is reached by, as well."""
    return replace(
        queue,
        open=queue.open and outer.open,
        state=queue.state if outer.open else outer.state,
        max_walltime_s=_tighter(queue.max_walltime_s, outer.max_walltime_s),
        max_nodes=_tighter(queue.max_nodes, outer.max_nodes),
        max_cpus=_tighter(queue.max_cpus, outer.max_cpus),
        max_memory_bytes=_tighter(queue.max_memory_bytes, outer.max_memory_bytes),
    )


def _tighter(one: int | None, two: int | None) -> int | None:
    return min((limit for limit in (one, two) if limit is not None), default=None)


def violations(asked: Resources, queue: QueueState) -> Iterator[tuple[str, str, str]]:
    """Key, what is asked and what is given, of each limit that is not kept."""
    label = f"the limit of queue {queue.name} as the scheduler has it"
    if not queue.open:
        yield "queue", f"{queue.name!r}, which is {queue.state}", "a queue that takes jobs"
    if queue.max_walltime_s is not None and asked.walltime_s > queue.max_walltime_s:
        limit = walltime_text(queue.max_walltime_s)
        yield "walltime", walltime_text(asked.walltime_s), f"at most {limit}, {label}"
    if queue.max_nodes is not None and asked.nodes > queue.max_nodes:
        yield "nodes", str(asked.nodes), f"at most {queue.max_nodes}, {label}"
    cpus = asked.tasks * asked.cpus
    if queue.max_cpus is not None and cpus > queue.max_cpus:
        yield "tasks", f"{cpus} cores", f"at most {queue.max_cpus}, {label}"
    memory = asked.memory_bytes * asked.nodes
    if queue.max_memory_bytes is not None and memory > queue.max_memory_bytes:
        limit = size_text(queue.max_memory_bytes)
        yield "memory", f"{size_text(memory)} in all", f"at most {limit}, {label}"


def _limits_text(queue: QueueState) -> str:
    """What a queue allows, in a few words."""
    limits = [
        f"{walltime_text(queue.max_walltime_s)}" if queue.max_walltime_s else "",
        f"{queue.max_nodes} nodes" if queue.max_nodes else "",
        f"{queue.max_cpus} cores" if queue.max_cpus else "",
        size_text(queue.max_memory_bytes) if queue.max_memory_bytes else "",
    ]
    text = ", ".join(limit for limit in limits if limit)
    if queue.leads_to:
        text = f"{text}{', ' if text else ''}leads to {', '.join(queue.leads_to)}"
    text = f"up to {text}" if text and not queue.leads_to else text or "no limits"
    return f"{text}; {queue.state}" if queue.state not in ("UP", "enabled", "") else text


def size_text(size_bytes: int) -> str:
    """``1.5 TB``, in powers of 1024, as everywhere in experiment and site files."""
    size = float(size_bytes)
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if size < 1024 or unit == "TB":
            break
        size /= 1024
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
