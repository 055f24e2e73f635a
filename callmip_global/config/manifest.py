"""Manifests: what a handed-in submission is, so that its files can be harmonized.

A manifest describes one simulation, stage and member, or lists several that share the rest::

    model: {name: CLASSIC, version: v2}
    files: "out/*.nc"
    runs:
      - {simulation: S3, stage: Prior, files: "S3/prior/*.nc"}
      - {simulation: S3, stage: Posterior, files: "S3/posterior/*.nc"}
    ...

`Manifest.runs` then has one manifest for each. Everything a submission does not deliver may be left
out of its variable map, or declared absent there with the reason. What files cannot say is declared
here, but what belongs to one variable (``sign``, ``per``, ``units``, ``select``) in its entry of
the map. A value that still says SET_... (as in the draft of ``check --draft``) is refused.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator

from callmip_global.config.schema import (
    Calendar,
    Count,
    FilledText,
    Frequency,
    GridName,
    ModelInfo,
    RelativePath,
    SimulationName,
    StageName,
    Strictly,
    YearRange,
)
from callmip_global.config.unset import unset_in
from callmip_global.config.variable_map import (
    build_variable_map,
    load_variable_map,
    variable_map_path,
)
from callmip_global.config.yaml_source import (
    KeyPath,
    Located,
    dotted,
    load_yaml,
    nearest,
    overlay,
    try_model,
)
from callmip_global.errors import Problem, UsageError
from callmip_global.harmonize.declared import Declared, Month
from callmip_global.harmonize.variable_map import VariableMap
from callmip_global.variables import variable_table

_OF_A_RUN = ("simulation", "stage", "scenario", "member", "files", "years", "use", "totals")
_MONTH = re.compile(r"(\d{4})-(\d{1,2})")
_COMMENT = ("#", "!", "%", "*")


def _month(value: Any) -> Month:
    if isinstance(value, datetime.date):
        return value.year, value.month
    match = _MONTH.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not 1 <= int(match[2]) <= 12:
        raise ValueError('a month in quotes, "YYYY-MM"')
    return int(match[1]), int(match[2])


class ManifestFile(Strictly):
    """The manifest of one run as written.

    ``files``: patterns inside each submission folder. ``years``: first and last year to take
    (default: all whole years that every variable has). ``variables``: a map file, or the map.
    ``prefixes``, ``use``, ``calendar``, ``start``, ``wood``, ``annual_state``, ``totals``: see
    `callmip_global.harmonize.declared.Declared`. ``totals``: for each variable its values by year,
    or a text file of years and global totals; or one table for all, its columns named.
    """

    model: ModelInfo = Field(description="{name, version, institution, contact}")
    simulation: SimulationName = Field(description="S3, CO2, ...")
    stage: StageName = Field(description="Prior or Posterior")
    scenario: Count | None = None
    member: Count | None = None
    files: tuple[RelativePath, ...] = Field(("**/*.nc", "**/*.zarr"), min_length=1)
    years: YearRange | None = None
    frequencies: tuple[Frequency, ...] = Field(("mon", "yr"), min_length=1)
    grids: tuple[GridName, ...] = Field(min_length=1, description="[0.5deg, 1deg, 2deg]")
    prefixes: tuple[FilledText, ...] = ()
    use: dict[str, FilledText] = Field(default_factory=dict)
    calendar: Calendar | None = None
    start: Annotated[Month, PlainValidator(_month)] | None = None
    wood: Literal["above-ground", "total"] | None = None
    annual_state: Literal["mean", "end"] | None = None
    totals: FilledText | dict[str, Any] = Field(default_factory=dict)
    variables: Any = Field(description="a variable map: its file, or its content")
    comment: str = ""

    @field_validator("files", "prefixes", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Manifest:
    """The manifest of a run with its variable map and declarations, checked.

    ``others``: the later runs of a manifest that lists several; this one is then the first.
    """

    file: ManifestFile
    path: Path
    variable_map: VariableMap
    declared: Declared
    others: tuple[Manifest, ...] = ()

    @property
    def runs(self) -> tuple[Manifest, ...]:
        """A manifest of its own for every run, in the order of the file."""
        return (replace(self, others=()), *self.others)

    @property
    def attributes(self) -> dict[str, str]:
        """Global attributes of the stores beside their name."""
        found = {
            "institution": self.file.model.institution,
            "contact": self.file.model.contact,
            "scenario": "" if self.file.scenario is None else str(self.file.scenario),
            "comment": self.file.comment,
        }
        return {name: text for name, text in found.items() if text}


def load_manifest(path: Path) -> Manifest:
    """The manifest of a file; UsageError with every problem at once, with file and line."""
    whole = load_yaml(path)
    problems = unset_in(whole)
    if problems:
        raise UsageError(problems)
    found: list[Manifest] = []
    for located in _runs(whole):
        try:
            found.append(_manifest(located, path))
        except UsageError as error:
            # What the runs share is wrong once, however many there are.
            problems += [p for p in error.problems if p not in problems]
    if problems:
        raise UsageError(problems)
    _check_different(whole, found)
    return replace(found[0], others=tuple(found[1:]))


# --- several runs ---------------------------------------------------------------------------------


def _runs(whole: Located) -> list[Located]:
    """The tree of every run: the shared keys with its own laid over them."""
    if not isinstance(whole.value, dict) or "runs" not in whole.value:
        return [whole]
    runs = whole.value["runs"]
    wanted = f"a list of {{{', '.join(_OF_A_RUN)}}}"
    if not isinstance(runs, list) or not runs or not all(isinstance(r, dict) for r in runs):
        raise UsageError(Problem(whole.where(("runs",)), "runs", wanted=wanted))
    problems: list[Problem] = []
    for key in ("simulation", "stage", "scenario", "member", "totals"):
        if key in whole.value:
            remedy = f"Put {key} into each of the runs."
            problems.append(Problem(whole.where((key,)), key, f"{key} beside runs", "", remedy))
    for i, run in enumerate(runs):
        for key in run:
            if key not in _OF_A_RUN:
                place, label = whole.where(("runs", i, key)), dotted(("runs", i, key))
                problems.append(Problem(place, label, "a key that no run has", wanted))
        if len(runs) > 1 and "files" not in run:
            place, label = whole.where(("runs", i)), dotted(("runs", i, "files"))
            remedy = "Name the files of each run, so that none is taken for another's."
            problems.append(Problem(place, label, "nothing", "patterns of its files", remedy))
    if problems:
        raise UsageError(problems)
    shared = whole.without(("runs",))
    return [overlay(shared, whole.sub(("runs", i))) for i in range(len(runs))]


def _check_different(whole: Located, found: list[Manifest]) -> None:
    """UsageError for two runs of one name: the second would take the place of the first."""
    seen: dict[tuple[Any, ...], int] = {}
    for i, manifest in enumerate(found):
        file = manifest.file
        identity = (file.simulation, file.stage, file.member)
        if identity in seen:
            said = " ".join(str(part) for part in identity if part is not None)
            place = whole.where(("runs", i))
            raise UsageError(
                Problem(place, f"runs.{i}", f"{said}, as runs.{seen[identity]}", "each run once")
            )
        seen[identity] = i


def _manifest(located: Located, path: Path) -> Manifest:
    parsed, found = try_model(ManifestFile, located)
    if parsed is None:
        raise UsageError([problem for _, problem in found])
    if isinstance(parsed.variables, str):
        source = variable_map_path(parsed.variables, path.parent)
        unset = unset_in(load_yaml(source))
        if unset:
            raise UsageError(unset)
        variable_map = load_variable_map(source, requested=(), submitted=True)
    elif isinstance(parsed.variables, dict):
        inner = located.sub(("variables",))
        variable_map = build_variable_map(
            inner, prefix=("variables",), requested=(), submitted=True
        )
    else:
        wanted = "a file (models/mymodel.yaml), or {per: ..., variables: {...}}"
        raise UsageError(Problem(located.where(("variables",)), "variables", wanted=wanted))
    if not variable_map.delivered and not variable_map.well_known:
        raise UsageError(
            Problem(located.where(("variables",)), "variables", "nothing delivered", "a variable")
        )
    declared = _declared(parsed, variable_map, located, path)
    return Manifest(parsed, path, replace(variable_map, declared=declared), declared)


# --- declarations ---------------------------------------------------------------------------------


def _declared(
    parsed: ManifestFile, variable_map: VariableMap, located: Located, path: Path
) -> Declared:
    problems: list[Problem] = []
    calendar = parsed.calendar or variable_map.calendar
    if variable_map.calendar is not None and calendar != variable_map.calendar:
        place, wanted = located.where(("calendar",)), f"{variable_map.calendar}, as in the map"
        remedy = "State it once."
        problems.append(Problem(place, "calendar", str(calendar), wanted, remedy))
    known = {*variable_map.entries, *variable_map.native_names}
    if variable_map.well_known:
        known |= {n for var in variable_table().values() for n in (var.name, *var.known_as)}
    for name in parsed.use:
        if name not in known:
            place = located.where(("use", name))
            found, wanted = "a variable that the map does not have", "one of its variables"
            problems.append(Problem(place, f"use.{name}", found, wanted, nearest(name, known)))
    totals = _totals(parsed.totals, variable_map, located, path, problems)
    if problems:
        raise UsageError(problems)
    return Declared(
        prefixes=parsed.prefixes,
        use=MappingProxyType(dict(parsed.use)),
        calendar=calendar,
        start=parsed.start,
        wood=parsed.wood,
        annual_state=parsed.annual_state,
        totals=MappingProxyType(totals),
    )


def _totals(
    given: str | Mapping[str, Any],
    variable_map: VariableMap,
    located: Located,
    path: Path,
    problems: list[Problem],
) -> dict[str, Mapping[int, float]]:
    """Global totals by variable and year, from the manifest or from the text files it names."""
    key: KeyPath = ("totals",)
    if isinstance(given, str):
        columns = _table(path.parent / given, located.where(key), "totals", problems)
        return _known(columns, variable_map, {}, str(path.parent / given), problems)
    found: dict[str, Mapping[int, float]] = {}
    for name, values in given.items():
        place, label = located.where((*key, name)), dotted((*key, name))
        if isinstance(values, str):
            columns = _table(path.parent / values, place, label, problems)
            # A table of one variable: its first column is the global total, then come regions.
            first = next(iter(columns.values()), {})
            found[name] = columns.get(name, columns.get("global", first))
        elif isinstance(values, dict) and values and all(map(_is_total, values.items())):
            found[name] = MappingProxyType({int(y): float(v) for y, v in values.items()})
        else:
            wanted = "{2001: 118.2, 2002: 119.0, ...} or a text file of years and totals"
            problems.append(Problem(place, label, wanted=wanted))
    places = {name: located.where((*key, name)) for name in given}
    return _known(found, variable_map, places, str(path), problems)


def _is_total(item: tuple[Any, Any]) -> bool:
    year, value = item
    whole = isinstance(year, int) and not isinstance(year, bool)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and number and math.isfinite(value)


def _known(
    totals: Mapping[str, Mapping[int, float]],
    variable_map: VariableMap,
    places: Mapping[str, str],
    where: str,
    problems: list[Problem],
) -> dict[str, Mapping[int, float]]:
    """``totals``, with a problem for each variable that the map does not deliver."""
    delivered = tuple(variable_table()) if variable_map.well_known else variable_map.delivered
    for name in totals:
        if name not in delivered:
            found = "a variable that is not delivered"
            wanted = "one of: " + ", ".join(delivered)
            hint = nearest(name, delivered) if name not in variable_table() else ""
            place = places.get(name, where)
            problems.append(Problem(place, f"totals.{name}", found, wanted, hint))
    return dict(totals)


def _table(
    path: Path, place: str, label: str, problems: list[Problem]
) -> dict[str, Mapping[int, float]]:
    """Columns of a text table by their names; those without a header are ``1``, ``2``, ...

    Like TRENDY's zonalNBP files: a year and a total per line, between blanks or commas; a line of
    names before them; comments after ``#``, ``!``, ``%`` or ``*``.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        said = f"{path}, which cannot be read ({error.strerror})"
        problems.append(Problem(place, label, said, "a text file of years and totals"))
        return {}
    header: list[str] = []
    rows: dict[int, tuple[float, ...]] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip().lstrip("\ufeff")
        if not text or text.startswith(_COMMENT):
            continue
        cells = [cell for cell in re.split(r"[\s,;]+", text) if cell]
        values = _numbers(cells)
        if values is None and not rows:
            header = cells
            continue
        here = f"{path}:{number}"
        if values is None or len(values) < 2 or values[0] != int(values[0]):
            problems.append(Problem(here, label, repr(text[:60]), "a year and its total"))
            return {}
        if int(values[0]) in rows:
            problems.append(Problem(here, label, f"the year {int(values[0])} twice", "each once"))
            return {}
        rows[int(values[0])] = values[1:]
    width = {len(values) for values in rows.values()}
    if len(width) != 1:
        found = "no year" if not rows else "lines of different lengths"
        problems.append(Problem(str(path), label, found, "a year and its total per line"))
        return {}
    (size,) = width
    names = header[1:] if len(header) == size + 1 else [str(i + 1) for i in range(size)]
    columns = {names[i]: {year: v[i] for year, v in rows.items()} for i in range(size)}
    return {_plain(name): MappingProxyType(column) for name, column in columns.items()}


def _plain(name: str) -> str:
    """``Global`` and ``GLOBAL`` mean the same; variables keep their case."""
    return "global" if name.lower() in ("global", "globe", "total") else name


def _numbers(cells: Iterable[str]) -> tuple[float, ...] | None:
    try:
        values = tuple(float(cell) for cell in cells)
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None
