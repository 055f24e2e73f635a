"""The experiment file: one model version, its simulations, stages, run recipe, site and outputs.

Field names are those of the YAML file, except where a number gets its unit into its name:
``memory: "32GB"`` is `Resources.memory_bytes`, ``walltime: "01:00:00"`` `Resources.walltime_s`.
Years are model calendar years, both ends included. Everything is frozen; an unknown key is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    field_validator,
    model_validator,
)

from callmip_global.resources import memory_bytes, walltime_seconds

StageName: TypeAlias = Literal["Prior", "Posterior"]
StepKind: TypeAlias = Literal[
    "run", "merge", "harmonize", "regrid", "benchmark", "report", "export"
]
ResourceKind: TypeAlias = Literal[
    "run", "merge", "harmonize", "regrid", "benchmark", "report", "export", "default"
]
Forcing: TypeAlias = Literal["climate", "co2", "luc", "ndep"]
FailureClass: TypeAlias = Literal[
    "submit", "node", "walltime", "memory", "model", "input", "restart", "upstream", "internal"
]
Frequency: TypeAlias = Literal["mon", "yr"]
GridName: TypeAlias = Literal["0.5deg", "1deg", "2deg"]
Calendar: TypeAlias = Literal[
    "noleap", "365_day", "standard", "gregorian", "proleptic_gregorian", "360_day", "all_leap"
]

STAGES: tuple[StageName, ...] = get_args(StageName)
STEP_KINDS: tuple[StepKind, ...] = get_args(StepKind)
FORCINGS: tuple[Forcing, ...] = get_args(Forcing)
FAILURE_CLASSES: tuple[FailureClass, ...] = get_args(FailureClass)
LATEST = "latest"
"""Source of a restart file: the segment before that left it last."""


class Strictly(BaseModel):
    """Base of everything read from YAML: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, arbitrary_types_allowed=False
    )


# Names are joined to those of steps and tasks, which are names of folders: 255 bytes at most.
_LONGEST_NAME = 64
_LONGEST_FILE_NAME = 255
# What is in the working folder of a task beside the files of the group.
_OWN_FILES = ("command.sh", "status.json", "stderr", "stdout")


def _year_range(value: Any) -> tuple[int, int]:
    whole = isinstance(value, list | tuple) and all(
        isinstance(y, int) and not isinstance(y, bool) for y in value
    )
    if not whole or len(value) != 2:
        raise ValueError("two years, [first, last]")
    first, last = value
    if last < first:
        raise ValueError(f"first <= last | Did you mean [{last}, {first}]?")
    if first < 1 or last > 9_999:
        raise ValueError("years between 1 and 9999")
    return first, last


def _year_or_yearly(value: Any) -> int | Literal["yearly"]:
    if value == "yearly":
        return "yearly"
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10_000:
        raise ValueError('a year (its value is kept for the whole phase) or "yearly"')
    return value


def _year(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10_000:
        raise ValueError("a year")
    return value


def _climate(value: Any) -> Any:
    if value == "actual" or isinstance(value, dict | BaseModel):
        return value
    raise ValueError('"actual" (the years of the phase) or {recycle: [first, last]}')


def _memory(value: Any) -> int:
    try:
        return memory_bytes(value)
    except ValueError as error:
        raise ValueError(
            f'a size with its unit, in quotes, e.g. "32GB" | {_sentence(error)}'
        ) from None


def _walltime(value: Any) -> int:
    try:
        return walltime_seconds(value)
    except ValueError as error:
        remedy = _sentence(error) if isinstance(value, str) else "Put the quotes around it."
        raise ValueError(f'"HH:MM:SS" or "D-HH:MM:SS", in quotes | {remedy}') from None


def _sentence(error: ValueError) -> str:
    return f"{error}."


def _name(value: str, allowed: str) -> str:
    """Text that is safe as a part of a file name, even with others."""
    plain = value.isascii() and value[:1].isalnum()
    if not plain or any(not (c.isalnum() or c in allowed) for c in value):
        raise ValueError(f"letters, digits and {allowed!r}, beginning with a letter or digit")
    if len(value) > _LONGEST_NAME:
        raise ValueError(f"a name of at most {_LONGEST_NAME} characters")
    return value


def _clean(value: str) -> str:
    """Text that a file, a file name or a terminal can hold: no NUL, no escape, no lone surrogate.

    In double quotes YAML makes them of ``\\0`` and the like.
    """
    for c in value:
        if (ord(c) < 32 and c not in "\n\t") or c == "\x7f" or "\ud800" <= c <= "\udfff":
            raise ValueError(f"text without control characters | It holds {c!r}.")
    return value


def _dashed(value: str) -> str:
    return _name(value, "-")


def _dotted(value: str) -> str:
    return _name(value, "-.")


def _underscored(value: str) -> str:
    return _name(value, "-_")


def _relative(value: str) -> str:
    if not value or value.startswith("/") or ".." in value.split("/"):
        raise ValueError("a path inside the working folder of the task (no leading /, no ..)")
    if value != str(PurePosixPath(value)) or any(c in value for c in "\n\t"):
        raise ValueError("a path without line breaks, ./, // and / at its end")
    if value in _OWN_FILES:
        raise ValueError(f"another name: callmip-global writes {value} there itself")
    if any(len(part) > _LONGEST_FILE_NAME for part in _clean(value).encode().split(b"/")):
        raise ValueError(f"file names of at most {_LONGEST_FILE_NAME} bytes")
    return value


def _option(value: Any) -> Any:
    if isinstance(value, str | bool | int | float):
        return _clean(value) if isinstance(value, str) else value
    raise ValueError("text, a number, true or false")


def _restart_sources(value: Any) -> Any:
    """A list of names means: each as it was left last."""
    if isinstance(value, list | tuple):
        if len(set(map(str, value))) != len(value):
            raise ValueError("each restart file once")
        return dict.fromkeys(value, LATEST)
    if isinstance(value, dict):
        return value
    raise ValueError(f"a list of restart files, or {{file: phase it is taken from | {LATEST}}}")


def _unique(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("each restart file once")
    return value


def _growth(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 1 <= value <= 100:
        raise ValueError("a factor of 1 or more: how much more each retry asks for")
    return float(value)


Text: TypeAlias = Annotated[str, Strict(), AfterValidator(_clean)]
FilledText: TypeAlias = Annotated[str, Strict(), Field(min_length=1), AfterValidator(_clean)]
Count: TypeAlias = Annotated[int, Strict(), Field(ge=1)]
Flag: TypeAlias = Annotated[bool, Strict()]
YearRange: TypeAlias = Annotated[tuple[int, int], PlainValidator(_year_range)]
Year: TypeAlias = Annotated[int, PlainValidator(_year)]
YearOrYearly: TypeAlias = Annotated[int | Literal["yearly"], PlainValidator(_year_or_yearly)]
MemoryBytes: TypeAlias = Annotated[int, PlainValidator(_memory)]
WalltimeSeconds: TypeAlias = Annotated[int, PlainValidator(_walltime)]
RelativePath: TypeAlias = Annotated[str, Strict(), AfterValidator(_relative)]
# "." and "_" separate the parts of store and file names, so a model's name has neither.
ModelName: TypeAlias = Annotated[str, Strict(), AfterValidator(_dashed)]
VersionName: TypeAlias = Annotated[str, Strict(), AfterValidator(_dotted)]
SimulationName: TypeAlias = Annotated[str, Strict(), AfterValidator(_dashed)]
PhaseName: TypeAlias = Annotated[str, Strict(), AfterValidator(_underscored)]
Factor: TypeAlias = Annotated[float, PlainValidator(_growth)]
Files: TypeAlias = dict[RelativePath, FilledText]
Options: TypeAlias = dict[PhaseName, Annotated[Any, PlainValidator(_option)]]
RestartNames: TypeAlias = Annotated[tuple[RelativePath, ...], AfterValidator(_unique)]
RestartSources: TypeAlias = Annotated[
    dict[RelativePath, PhaseName], BeforeValidator(_restart_sources)
]


class ModelInfo(Strictly):
    """Who made the runs; goes into file names and global attributes."""

    name: ModelName = Field(description='the model, e.g. "CLASSIC"')
    version: VersionName = Field(description='the model version, e.g. "v2"')
    institution: Text = ""
    contact: Text = ""


class Simulation(Strictly):
    """One simulation after its preset was looked up: which forcings change over time."""

    name: SimulationName
    varies: frozenset[Forcing]


class Stage(Strictly):
    """Prior or Posterior: a parameter file per member.

    ``members`` None means no ensemble (one task, member None); N means members 1..N and needs
    ``{member}`` in ``parameters``. ``scenario`` is the calibration scenario of the protocol.
    """

    parameters: FilledText = Field(description="the parameter file, e.g. params/prior.yaml")
    members: Count | None = None
    scenario: Count | None = None

    @property
    def member_numbers(self) -> tuple[int | None, ...]:
        """1..N of an ensemble, or (None,) without one."""
        return (None,) if self.members is None else tuple(range(1, self.members + 1))


class Recycle(Strictly):
    """Climate years used again and again, in order: ``{recycle: [1901, 1920]}``."""

    recycle: YearRange = Field(description="the recycled climate years, [first, last]")

    @property
    def length(self) -> int:
        """Number of years in the recycled period."""
        return self.recycle[1] - self.recycle[0] + 1


ClimateMode: TypeAlias = Annotated[Literal["actual"] | Recycle, BeforeValidator(_climate)]


class FixedForcing(Strictly):
    """What a forcing is held at by the simulations that do not vary it."""

    climate: Recycle
    co2: Year
    luc: Year
    ndep: Year


class FixedOverride(Strictly):
    """``run.fixed``: the parts of the protocol's fixed forcing that this experiment changes."""

    climate: Recycle | None = None
    co2: Year | None = None
    luc: Year | None = None
    ndep: Year | None = None


@dataclass(frozen=True)
class PhaseForcing:
    """The forcing of one phase in one simulation (see `phase_forcing`)."""

    climate: Literal["actual"] | Recycle
    co2: int | Literal["yearly"]
    luc: int | Literal["yearly"] | None
    ndep: int | Literal["yearly"] | None

    @property
    def steady(self) -> bool:
        """Nothing but recycled weather changes: a spin-up, whose model years are labels only."""
        return self.climate != "actual" and "yearly" not in (self.co2, self.luc, self.ndep)


class Overlay(Strictly):
    """What a phase, or an inner step of one, does differently from ``run``.

    ``files`` and ``options`` are laid over those of ``run`` one by one; ``command`` replaces it.
    ``restart_in``: the restart files read, each as an earlier segment left it last, or as the last
    segment of a named phase left it (default: every name of ``run.restart`` that was left so far);
    an empty list is a start from zero. ``restart_out``: those left (default: ``run.restart``). A
    name may be a pattern: all files that match, at least one.
    """

    files: Files = Field(default_factory=dict)
    options: Options = Field(default_factory=dict)
    command: FilledText | None = None
    restart_in: RestartSources | None = None
    restart_out: RestartNames | None = None


class InnerStep(Overlay):
    """One of several model runs that make up each cycle of a phase, such as CABLE-POP's a and b.

    ``cycles``: only in the first so many cycles of the phase. ``years`` and ``climate`` are the
    phase's unless they are given.
    """

    name: PhaseName = Field(description="a name for the inner step, e.g. a")
    cycles: Count | None = None
    years: YearRange | None = None
    climate: ClimateMode | None = None


class Phase(Overlay):
    """One part of the run: spin-up, transient, historical ...

    One cycle is one pass over ``years``. Where ``years`` is a single year and the climate is
    recycled, one cycle is one pass over the recycled period with the model year label kept.
    ``segment_years`` cuts a pass into jobs of at most so many years (None: one job per cycle).
    ``steps`` are run one after the other in every cycle. ``simulations`` (None: all) are those that
    have this phase. ``luc`` and ``ndep`` may be left out where the recipe does not use ``{luc}``
    and ``{ndep}``.
    """

    name: PhaseName = Field(description="a name for the phase, e.g. spinup")
    years: YearRange = Field(description="the model years, [first, last]")
    cycles: Count = 1
    climate: ClimateMode = Field(
        description='"actual" (the years of the phase) or {recycle: [first, last]}'
    )
    co2: YearOrYearly = Field(description='a year or "yearly"')
    luc: YearOrYearly | None = None
    ndep: YearOrYearly | None = None
    segment_years: Count | None = None
    simulations: Annotated[tuple[SimulationName, ...], Field(min_length=1)] | None = None
    steps: tuple[InnerStep, ...] = ()

    @field_validator("steps")
    @classmethod
    def _steps_differ(cls, value: tuple[InnerStep, ...]) -> tuple[InnerStep, ...]:
        names = [step.name for step in value]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"inner steps with different names | {', '.join(twice)}: used twice.")
        return value

    def is_in(self, simulation: str) -> bool:
        """Whether a simulation has this phase."""
        return self.simulations is None or simulation in self.simulations

    @property
    def n_years(self) -> int:
        """Years simulated in one cycle (see the class for the single-year case)."""
        first, last = self.years
        if first == last and isinstance(self.climate, Recycle):
            return self.climate.length
        return last - first + 1

    @property
    def n_segments(self) -> int:
        """Jobs that all cycles of the phase are cut into."""
        total = 0
        for part in self.parts():
            first, last = part.years
            length = part.segment_years or last - first + 1
            total += part.cycles * -(-(last - first + 1) // length)
        return total

    def parts(self) -> tuple[Phase, ...]:
        """The phase itself, or each of its inner steps as a phase of its own, with all overlays."""
        return tuple(self._part(step) for step in self.steps) or (self,)

    def _part(self, step: InnerStep) -> Phase:
        own = {
            "name": f"{self.name}-{step.name}",
            "years": step.years or self.years,
            "climate": step.climate or self.climate,
            "cycles": min(step.cycles or self.cycles, self.cycles),
            "files": {**self.files, **step.files},
            "options": {**self.options, **step.options},
            "command": step.command or self.command,
            "restart_in": self.restart_in if step.restart_in is None else step.restart_in,
            "restart_out": self.restart_out if step.restart_out is None else step.restart_out,
            "steps": (),
        }
        return self.model_copy(update=own)


def phase_forcing(phase: Phase, simulation: Simulation, fixed: FixedForcing) -> PhaseForcing:
    """The forcing of ``phase`` in ``simulation``: what it does not vary is held at ``fixed``.

    A phase that already holds a forcing (recycled climate, a CO2 year) holds it in every
    simulation: only ``actual``, ``yearly`` and silence are replaced. ``luc`` and ``ndep`` stay None
    where the phase is silent and the simulation varies them: the model decides.
    """

    def level(name: Literal["co2", "luc", "ndep"]) -> Any:
        value = getattr(phase, name)
        held = value is not None and value != "yearly"
        return value if held or name in simulation.varies else getattr(fixed, name)

    climate = phase.climate
    if climate == "actual" and "climate" not in simulation.varies:
        climate = fixed.climate
    return PhaseForcing(climate, level("co2"), level("luc"), level("ndep"))


class Tiles(Strictly):
    """The globe cut into ``count`` parts that run on their own and are merged afterwards.

    ``merge`` runs once per output file with ``{inputs}`` (the tiles' files, in order) and
    ``{output}``.
    """

    count: Count = Field(description="the number of tiles")
    merge: FilledText = Field(description='a command, e.g. "python merge.py {inputs} {output}"')

    @field_validator("merge")
    @classmethod
    def _names_both(cls, value: str) -> str:
        if "{inputs}" not in value or "{output}" not in value:
            raise ValueError("a command that names {inputs} and {output}")
        return value


class DiskUse(Strictly):
    """Sizes that only the group knows, for estimates: of one task's restart set and of one model
    year of its delivered output."""

    restart_bytes: MemoryBytes = Field(alias="restart", description='a size, e.g. "1GB"')
    year_bytes: MemoryBytes = Field(alias="year", description='a size, e.g. "500MB"')


class Run(Strictly):
    """How the model is run: environment, files, command, restart set, outputs, phases.

    A task works in its own folder: restart files of the segment before are in ``restart_in/``, the
    command leaves ``restart_out/<name>`` for each name of ``restart``, and the outputs where
    ``outputs`` says. ``files`` maps a target in that folder to a jinja2 template. ``executables``
    are files whose contents belong to the result, as the model's binary does; ``options`` are for
    templates and commands.
    """

    environment: Text = ""
    files: Files = Field(default_factory=dict)
    inputs: dict[PhaseName, FilledText] = Field(default_factory=dict)
    executables: dict[PhaseName, FilledText] = Field(default_factory=dict)
    options: Options = Field(default_factory=dict)
    command: FilledText = Field(description='the shell command, e.g. "srun ./model namelist.txt"')
    restart: RestartNames = ()
    outputs: dict[Frequency, RelativePath] = Field(
        min_length=1, description='{mon: "out/{variable}_{year}.nc"}'
    )
    phases: tuple[Phase, ...] = Field(min_length=1, description="a list of phases, in order")
    tiles: Tiles | None = None
    calendar: Calendar = "noleap"
    fixed: FixedOverride = FixedOverride()
    disk: DiskUse | None = None

    @field_validator("phases")
    @classmethod
    def _names_differ(cls, value: tuple[Phase, ...]) -> tuple[Phase, ...]:
        names = [phase.name for phase in value]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"phases with different names | {', '.join(twice)}: used twice.")
        return value


class Resources(Strictly):
    """What one task of a step asks of the scheduler.

    ``tasks`` are processes (MPI ranks) of the whole job, ``cpus`` the cores of each process,
    ``memory_bytes`` is per node. ``directives`` are extra options as they would follow ``#SBATCH``
    or ``#PBS``. ``pack``: up to so many tasks of the step share one job, side by side; all else is
    then that of the job. ``workers``: a task of harmonize, regrid or benchmark spreads its work
    over up to so many further jobs, each with these resources.
    """

    nodes: Count = 1
    tasks: Count = 1
    cpus: Count = 1
    memory_bytes: MemoryBytes = Field(
        alias="memory", description='memory per node with its unit, in quotes, e.g. "32GB"'
    )
    walltime_s: WalltimeSeconds = Field(
        alias="walltime", description='"HH:MM:SS" or "D-HH:MM:SS", in quotes'
    )
    queue: FilledText | None = None
    account: FilledText | None = None
    directives: tuple[FilledText, ...] = ()
    pack: Count = 1
    workers: Count = 1

    @model_validator(mode="after")
    def _tasks_fill_nodes(self) -> Resources:
        if self.tasks < self.nodes:
            raise ValueError(f"at least one task per node: {self.nodes} nodes, {self.tasks} tasks")
        return self


class Output(Strictly):
    """What is delivered: the last ``years`` years of the last phases, on a standard grid."""

    grid: GridName = Field(description="one of: 0.5deg, 1deg, 2deg")
    frequencies: tuple[Frequency, ...] = Field(default=("mon", "yr"), min_length=1)
    years: Count = 20

    @field_validator("frequencies")
    @classmethod
    def _each_once(cls, value: tuple[Frequency, ...]) -> tuple[Frequency, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each frequency once")
        return value


class Retry(Strictly):
    """What `resume` may do about one class of failure: ``times`` tries beyond the first, each
    asking ``walltime`` and ``memory`` times what the one before asked (up to the queue's limit).

    ``segment_years`` (after a walltime failure): the segment is run in pieces of so many years, one
    after the other, each kept once it is finished: the next try goes on from there.
    """

    times: Annotated[int, Strict(), Field(ge=0)] = Field(description="a number of retries")
    walltime: Factor = 1.0
    memory: Factor = 1.0
    segment_years: Count | None = None


class BenchmarkConfig(Strictly):
    """``products``: a products file, or None for the step being left out. ``regions``: as
    ``benchmark --region`` takes them; those that it has by itself when not given."""

    products: FilledText | None = None
    regions: tuple[FilledText, ...] = ()


class Experiment(Strictly):
    """The whole file, after overlays and presets (see `callmip_global.config.load`)."""

    model: ModelInfo = Field(description="{name, version, institution, contact}")
    protocol: FilledText = Field(description="e.g. callmip-phase1-global")
    simulations: tuple[Simulation, ...] = Field(
        min_length=1, description="a list of simulations, e.g. [S3, CO2]"
    )
    stages: dict[StageName, Stage] = Field(
        min_length=1, description="Prior and Posterior, each with its parameters"
    )
    run: Run = Field(description="how the model is run")
    variables: FilledText = Field(description="the model's variable map, e.g. models/classic.yaml")
    site: FilledText = Field(description="a site of config/sites or a path, e.g. local")
    resources: dict[ResourceKind, Resources]
    output: Output = Field(description="{grid, frequencies, years}")
    benchmark: BenchmarkConfig | None = None
    retry: dict[FailureClass, Retry] = Field(default_factory=dict)

    @property
    def delivered_years(self) -> tuple[int, int]:
        """First and last delivered model year, both included."""
        last = self.run.phases[-1].years[1]
        return last - self.output.years + 1, last

    @property
    def members(self) -> Mapping[str, tuple[int | None, ...]]:
        """Member numbers of each stage."""
        return {name: stage.member_numbers for name, stage in self.stages.items()}
