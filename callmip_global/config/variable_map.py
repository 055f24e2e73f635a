"""Variable maps: YAML (config/models/*.yaml or part of a manifest) to what harmonize uses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from callmip_global.config.yaml_source import KeyPath, Located, dotted, load_yaml, try_model
from callmip_global.data import data_path
from callmip_global.errors import Problem, UsageError
from callmip_global.files import home_path
from callmip_global.harmonize.variable_map import VariableMap, VariableSource
from callmip_global.variables import requested_variables


class VariableEntry(BaseModel):
    """One variable; the meaning of the keys is that of `VariableSource`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="the variable's name in the model's files; of several, the one found"
    )
    units: str | None = Field(None, description="the units of the model's values")
    factor: float = 1.0
    sign: Literal[1, -1] | None = None
    per: Literal["land", "cell"] | None = None
    select: dict[str, int | tuple[int, ...]] = {}
    depth: tuple[float, float] | None = Field(None, description="bounds of the layers in m")
    cover: str | None = Field(None, description="native name of the fractions of plant types")
    derive: str | None = Field(None, description="arithmetic on variables of this map")
    absent: str | None = Field(None, min_length=1, description="why the model does not have it")


class VariableMapFile(BaseModel):
    """``variables: {NAME: {...}}`` and what holds for all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="name of the model, for the reader")
    calendar: str | None = Field(None, description="the calendar where the files have none")
    per: Literal["land", "cell"] | None = Field(None, description="per m2 of land, or of the cell")
    land_fraction: str | None = Field(None, description="native name of the land fraction")
    cover: str | None = Field(None, description="native name of the fractions of plant types")
    well_known: bool = Field(False, description="variables may have the names TRENDY gives them")
    variables: dict[str, VariableEntry] = {}

    @model_validator(mode="after")
    def _speaks_of_something(self) -> VariableMapFile:
        if not self.variables and not self.well_known:
            raise ValueError("variables: at least one is wanted, or well_known: true")
        return self


def variable_map_path(text: str, base_dir: Path) -> Path:
    """The file that ``variables: TEXT`` means: relative to ``base_dir``, else a shipped map.

    The path below ``base_dir`` is returned where neither exists, so that its loading says so.
    """
    own = base_dir / home_path(text)
    if own.exists():
        return own
    for parts in (("config", *Path(text).parts), ("config", "models", *Path(text).parts)):
        try:
            return data_path(*parts)
        except FileNotFoundError:
            continue
    return own


def load_variable_map(
    path: Path, *, requested: Iterable[str] | None = None, submitted: bool = False
) -> VariableMap:
    """The map of a file. UsageError with every problem at once, each with file and line.

    ``requested``: variables that need an entry (default: those the protocol asks for).
    ``submitted``: the map of something handed in, where ``per`` may be left open: then the files
    and the group's totals decide, or the report warns.
    """
    return build_variable_map(load_yaml(path), requested=requested, submitted=submitted)


def build_variable_map(
    located: Located,
    *,
    prefix: KeyPath = (),
    requested: Iterable[str] | None = None,
    submitted: bool = False,
) -> VariableMap:
    """The map of a YAML tree, which hangs under ``prefix`` in the user's file."""
    parsed, found = try_model(VariableMapFile, located, prefix=prefix)
    if parsed is None:
        raise UsageError([problem for _, problem in found])
    problems: list[Problem] = []
    entries: dict[str, VariableSource] = {}
    for name, entry in parsed.variables.items():
        key = ("variables", name)
        label = dotted((*prefix, *key))
        per = entry.per or parsed.per
        if entry.source is not None and per is None and not submitted:
            remedy = "State it once for all (per: land) or for this variable; it is never guessed."
            wanted = "per: land (per m2 of land) or per: cell (per m2 of the whole cell)"
            problems.append(Problem(located.where(key), f"{label}.per", "nothing", wanted, remedy))
        select = {d: (i,) if isinstance(i, int) else i for d, i in entry.select.items()}
        try:
            names = (entry.source,) if isinstance(entry.source, str) else entry.source or (None,)
            entries[name] = VariableSource(
                source=names[0],
                names=tuple(n for n in names[1:] if n is not None),
                units=entry.units,
                factor=entry.factor,
                sign=entry.sign or 1,
                sign_stated=entry.sign is not None,
                per=per,
                select=MappingProxyType(select),
                depth_m=entry.depth,
                cover=entry.cover,
                derive=entry.derive,
                absent=entry.absent,
            )
        except ValueError as error:
            problems.append(Problem(located.where(key), label, remedy=f"{error}."))
    lines = {name: located.line_of(("variables", name)) for name in entries}
    result = VariableMap(
        entries=MappingProxyType(entries),
        calendar=parsed.calendar,
        land_fraction=parsed.land_fraction,
        cover=parsed.cover,
        per=parsed.per,
        well_known=parsed.well_known,
        where=str(located.path),
        lines=MappingProxyType(lines),
    )
    needed = requested_variables() if requested is None else requested
    broken = set(parsed.variables) - set(entries)
    problems += result.problems([name for name in needed if name not in broken])
    if problems:
        raise UsageError(problems)
    return result
