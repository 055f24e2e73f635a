"""Sites: what is special about a cluster, read from config/sites/NAME.yaml or a file of the group.

Nothing about a cluster is in code. A shipped site states where its numbers come from (``source``,
``date``); what only the group can know is listed under ``requires`` and asked for by ``validate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, PrivateAttr, field_validator, model_validator

from callmip_global.config.schema import (
    Count,
    FilledText,
    Flag,
    MemoryBytes,
    Strictly,
    Text,
    WalltimeSeconds,
)
from callmip_global.config.yaml_source import Located, load_yaml, nearest, try_model
from callmip_global.data import data_path
from callmip_global.errors import Problem, UsageError
from callmip_global.files import home_path

Droppable: TypeAlias = Literal[
    "cpus-per-task", "export", "mem", "nodes", "ntasks", "partition", "requeue"
]
"""Options of sbatch that a job script has unless the site drops them."""


class WalltimeStep(Strictly):
    """Jobs of up to ``cpus`` cores in all may run for up to ``walltime_s``."""

    cpus: Count = Field(description="the largest number of cores the limit holds for")
    walltime_s: WalltimeSeconds = Field(alias="walltime", description='"HH:MM:SS", in quotes')


class Queue(Strictly):
    """Limits of one queue (partition); None means that none is known.

    ``max_memory_bytes`` and ``max_cpus`` are per node. ``max_walltime_by_cpus`` is for sites where
    larger jobs get less time: steps in ascending order of cores, the last one being the largest
    job of all.

    A site that chooses by quality of service has a queue for each, with that in ``directives``
    (``--qos=short``) and the ``partition`` its jobs go to; without one the queue's name is that of
    the partition. ``drop_directives``: options that jobs of this queue must not have.
    """

    max_walltime_s: WalltimeSeconds | None = Field(None, alias="max_walltime")
    max_walltime_by_cpus: tuple[WalltimeStep, ...] = ()
    max_nodes: Count | None = None
    max_cpus: Count | None = None
    max_memory_bytes: MemoryBytes | None = Field(None, alias="max_memory")
    partition: FilledText | None = None
    directives: tuple[FilledText, ...] = ()
    drop_directives: tuple[Droppable, ...] = ()

    @field_validator("max_walltime_by_cpus")
    @classmethod
    def _ascending(cls, value: tuple[WalltimeStep, ...]) -> tuple[WalltimeStep, ...]:
        cpus = [step.cpus for step in value]
        if cpus != sorted(set(cpus)):
            raise ValueError("steps in ascending order of cpus")
        return value

    def walltime_limit_s(self, cpus: int) -> int | None:
        """The longest walltime of a job of ``cpus`` cores in all; None where no limit is known.

        Above the largest step it is that step's: that the job is too large is another matter.
        """
        steps = [s.walltime_s for s in self.max_walltime_by_cpus if cpus <= s.cpus]
        steps = steps[:1] or [s.walltime_s for s in self.max_walltime_by_cpus[-1:]]
        limits = [*steps, *([self.max_walltime_s] if self.max_walltime_s else [])]
        return min(limits) if limits else None


class Site(Strictly):
    """One cluster.

    ``arrays``: tasks of a step go as job arrays (else as single jobs), split at
    ``max_array_size``; ``max_queued`` counts all own jobs in the queue; ``max_running`` is how
    many tasks the ``local`` scheduler runs at once. ``directives`` are options as they would
    follow ``#SBATCH`` or ``#PBS``; ``drop_directives`` (Slurm only) are options that no job script
    may have, such as ``mem`` where memory comes with the node. ``resource_line`` is what follows
    ``-l`` on PBS, with the names {nodes} {tasks} {cpus} {tasks_per_node} {cpus_per_node}
    {cpus_total} {memory_mb} {memory_total_mb}. ``export_environment``: jobs inherit the submitting
    shell's environment. ``interface`` is the network that nodes reach each other by, such as
    ``ib0``, for dask workers on several nodes; without it the one that leads outside is taken.
    ``requires``: what the group must set under ``resources``, with its meaning: ``account``,
    ``queue``, or how a directive begins, such as ``-P``. ``defaults`` is a part of an experiment
    file that the experiment overrides.
    """

    name: FilledText = Field(description="the site's name")
    scheduler: Literal["local", "slurm", "pbs"] = Field(description="local, slurm or pbs")
    queues: dict[FilledText, Queue] = Field(default_factory=dict)
    default_queue: FilledText | None = None
    max_array_size: Count | None = None
    max_queued: Count | None = None
    arrays: Flag = True
    max_running: Count = 2
    directives: tuple[FilledText, ...] = ()
    drop_directives: tuple[Droppable, ...] = ()
    resource_line: FilledText | None = None
    export_environment: Flag = False
    shell_setup: Text = ""
    interface: FilledText | None = None
    poll_seconds: Count = 30
    requires: dict[FilledText, FilledText] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)
    source: FilledText = Field(description="where the limits were read (an address)")
    date: FilledText = Field(description='when, as "YYYY-MM-DD"')

    _path: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """The file the site was read from."""
        return self._path

    @model_validator(mode="after")
    def _default_is_known(self) -> Site:
        if self.default_queue and self.queues and self.default_queue not in self.queues:
            raise ValueError(
                f"default_queue to be one of the queues: {', '.join(self.queues)}"
                f" | It is {self.default_queue!r}."
            )
        return self

    @model_validator(mode="after")
    def _drops_are_for_slurm(self) -> Site:
        drops = self.drop_directives or any(q.drop_directives for q in self.queues.values())
        if drops and self.scheduler != "slurm":
            raise ValueError("drop_directives only with scheduler: slurm | PBS has resource_line.")
        return self


@dataclass(frozen=True)
class QueueOptions:
    """What a queue of a site means to its scheduler.

    ``name`` goes after ``--partition`` or ``-q`` (None: nothing does); ``directives`` come after
    those of the site; ``drop`` is what job scripts must not have.
    """

    name: str | None
    directives: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


def queue_options(site: Mapping[str, Any], queue: str | None) -> QueueOptions:
    """Options of the queue that a step asks for, from a site's plain values (as in plan.json).

    A queue the site file does not list is the scheduler's own, by that name.
    """
    known = site["queues"].get(queue) or {}
    drop = (*site.get("drop_directives", ()), *known.get("drop_directives", ()))
    name = None if "partition" in drop else known.get("partition") or queue
    return QueueOptions(name, tuple(known.get("directives", ())), drop)


def config_names(folder: str) -> list[str]:
    """Names of the shipped files of config/``folder``, sorted, without the suffix."""
    return sorted(path.stem for path in data_path("config", folder).glob("*.yaml"))


def config_path(text: str, folder: str, base_dir: Path) -> Path:
    """The file that ``text`` means: a path from ``base_dir``, else a shipped one of that name.

    UsageError that lists the shipped names if it is neither.
    """
    own = base_dir / home_path(text)
    if own.is_file():
        return own
    names = config_names(folder)
    if text in names:
        return data_path("config", folder, f"{text}.yaml")
    remedy = nearest(text, names) or f"Or a path from {base_dir}."
    raise UsageError(Problem("", "", repr(text), f"one of: {', '.join(names)}", remedy))


def load_site(path: Path) -> tuple[Site, Located]:
    """The site of a file and its positions; UsageError with every problem at once."""
    located = load_yaml(path)
    site, found = try_model(Site, located)
    if site is None:
        raise UsageError([problem for _, problem in found])
    site._path = path
    return site, located
