"""What every scheduler is to us: facts, directive lines, command lines, and how to read answers.

A scheduler never runs anything here: it turns a `JobSpec` into directive lines and a `Submission`
into an argument list, and reads what the commands printed. The one place that runs them is
``callmip_global.workflow.client``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol


class JobState(Enum):
    """The four answers a scheduler can give about a job; only the success marker says *done*.

    ``UNKNOWN`` changes nothing: a scheduler that cannot be reached has not lost our jobs.
    """

    LIVE = "live"
    GONE = "gone"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Wait(Enum):
    """What a pending job waits for, as far as the scheduler says."""

    NONE = "nothing, or it does not say"
    JOBS = "other jobs"
    NEVER = "jobs of which one did not succeed: it would wait for ever"


@dataclass(frozen=True)
class JobSpec:
    """One job script: everything that the text of the script depends on, and nothing else.

    The script must be byte-equal for equal input, so what differs from submission to submission
    (token, array indices, dependencies) goes on the command line: see `Submission`.
    """

    name: str
    step: str
    run_dir: Path
    python: str
    nodes: int
    tasks: int
    cpus: int
    memory_bytes: int
    walltime_s: int
    queue: str | None = None
    account: str | None = None
    directives: tuple[str, ...] = ()
    shell_setup: str = ""
    export_environment: bool = False
    resource_line: str | None = None
    limit_threads: bool = True
    drop: tuple[str, ...] = ()
    """Options, as they stand after ``--``, that the script must not have (Slurm only)."""

    @property
    def log_dir(self) -> Path:
        """Where the scheduler puts what the script itself printed."""
        return self.run_dir / "jobs" / self.step / "log"


@dataclass(frozen=True)
class Dependency:
    """A live job that has to succeed first; ``elementwise``: element i waits for element i only."""

    job_id: str
    elementwise: bool = False


@dataclass(frozen=True)
class Submission:
    """One call of sbatch/qsub: which elements of a job script, under which token, after which jobs.

    ``indices``: 1-based rows of tasks.tsv (or packs of rows). One index is a plain job, never an
    array of one (PBS refuses ``-J 1-1``). ``offset`` is added to the array index by the job, so
    that a step with more tasks than the site's largest array is split without indices out of
    range. ``resources`` are arguments that ask for other resources than the script's directives:
    see `Scheduler.resource_arguments`.
    """

    script: Path
    name: str
    token: str
    indices: tuple[int, ...]
    offset: int = 0
    depends: tuple[Dependency, ...] = ()
    resources: tuple[str, ...] = ()

    @property
    def is_array(self) -> bool:
        return len(self.indices) > 1

    @property
    def array_indices(self) -> tuple[int, ...]:
        return tuple(i - self.offset for i in self.indices)


@dataclass(frozen=True)
class JobRecord:
    """One line of the queue, with the token it was submitted under: a job, or those elements of an
    array (their ``indices``) that are alike."""

    job_id: str
    indices: Sequence[int] | None
    token: str
    state: JobState
    detail: str = ""
    wait: Wait = Wait.NONE

    @property
    def size(self) -> int:
        """How many jobs or elements the record stands for."""
        return 1 if self.indices is None else len(self.indices)


@dataclass(frozen=True)
class Answer:
    """What a scheduler command said: return code and both streams."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class SchedulerFacts:
    """What differs between schedulers, as data."""

    name: str
    directive: str
    """Prefix of a directive line, e.g. ``#SBATCH``."""
    index_variable: str
    """Environment variable that holds the array index inside a job."""
    job_id_variable: str
    largest_array: int
    """Largest number of elements of one array, where the site file does not say."""
    elementwise: bool
    """Whether one array can wait element by element for another (Slurm's aftercorr)."""
    one_range: bool = False
    """Whether the indices of an array have to be one range without gaps."""
    element_ids: bool = False
    """Whether a job can wait for one element of an array."""
    deletes_dependents: bool = False
    """Whether a job is accepted, then deleted, when what it depends on has ended already."""
    log_suffix: str = ".out"
    """What follows the job id in the name of a job's log."""
    pending: tuple[str, ...] = ()
    """The states, as `JobRecord.detail` begins with them, of a job that has not begun."""
    log_says: Mapping[str, str] = field(default_factory=dict)
    """Class of failure by what the scheduler writes into the log of a job that it ends."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the commands need in their environment."""
    queue_full: tuple[str, ...] = ()
    """Texts that mean: refused because of a limit, nothing was submitted, try again later."""
    no_answer: tuple[str, ...] = ()
    """Texts that mean: the command may or may not have reached the scheduler."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """What to do about well-known refusals, by a text that occurs in them."""


class Scheduler(Protocol):
    """The small interface behind which slurm, pbs and local stand."""

    @property
    def facts(self) -> SchedulerFacts: ...

    def directives(self, job: JobSpec) -> list[str]:
        """Directive lines, without prefix, sorted. ValueError for text that cannot be one."""

    def submit_command(self, submission: Submission) -> list[str]:
        """Argument list that submits."""

    def parse_submit(self, stdout: str) -> str | None:
        """Job id, or None where the output holds none."""

    def list_command(self) -> list[str]:
        """Argument list that lists this user's jobs with their tokens."""

    def parse_list(self, answer: Answer) -> list[JobRecord] | None:
        """Jobs the scheduler knows; None when the answer says nothing certain."""

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """Argument list that cancels jobs or elements."""

    def element_id(self, job_id: str, index: int) -> str:
        """What one element of an array is called."""

    def resource_arguments(self, job: JobSpec) -> tuple[str, ...]:
        """Arguments of the submit command that ask for the walltime and memory of ``job``,
        whatever the directives of the script say."""

    def repair_command(
        self, job_ids: Sequence[str], depends: Sequence[Dependency]
    ) -> list[str] | None:
        """Argument list that lets pending jobs or elements wait for other jobs; None where the
        scheduler has no such thing, or has removed them by then."""


def consecutive(indices: Sequence[int]) -> Iterator[list[int]]:
    """Ascending indices cut where one is missing: 1 2 3 7 gives [1, 2, 3] and [7]."""
    part: list[int] = []
    for i in indices:
        if part and i != part[-1] + 1:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def index_ranges(indices: Sequence[int]) -> str:
    """``1-3,7,9-10`` of ascending unique indices."""
    return ",".join(
        str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in consecutive(indices)
    )


def expand_ranges(text: str) -> Sequence[int]:
    """Indices of ``3-5,9%2`` (Slurm) or ``1-9:2`` (PBS); the throttle after ``%`` is ignored."""
    parts = [_range(part) for part in text.split("%")[0].split(",")]
    return parts[0] if len(parts) == 1 else tuple(i for part in parts for i in part)


def _range(text: str) -> range:
    span, _, step = text.strip().partition(":")
    first, _, last = span.partition("-")
    return range(int(first), int(last or first) + 1, int(step or 1))


def one_line(text: str, what: str) -> str:
    """The text itself; ValueError if it would break out of its directive line."""
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ValueError(f"{what} holds a line break or control character: {text!r}")
    return text


def contains_any(text: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns occurs in the text, upper and lower case alike."""
    lower = text.lower()
    return any(p.lower() in lower for p in patterns)
