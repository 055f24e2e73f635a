"""The manifest that a submission seems to want: what the files say is filled in, the rest asked.

Nothing in it is a guess that could pass for a fact. What only the group can know is written as
SET_..., which `load_manifest` refuses, with the question beside it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from callmip_global.harmonize.naming import Row, classify
from callmip_global.harmonize.native import NativeFile
from callmip_global.harmonize.submission import refusals
from callmip_global.units import same_units
from callmip_global.variables import Variable, requested_variables, variable_table

if TYPE_CHECKING:
    from callmip_global.harmonize.submission import Entry

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
_TURNED = ("nee", "nbe")
_FRACTIONS = ("sftlf", "landfrac", "land_fraction", "landfraction", "land_frac", "frac_land")
_DERIVED: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "reco": (("ra + rh", ("ra", "rh")),),
    "nep": (
        ("npp - rh", ("npp", "rh")),
        ("gpp - reco", ("gpp", "reco")),
        ("gpp - ra - rh", ("gpp", "ra", "rh")),
    ),
    "hfls": (("evspsbl * 2.501e6", ("evspsbl",)),),
    "cLiveBioAbove": (
        ("cLeaf + cStem", ("cLeaf", "cStem")),
        ("cLeaf + cWood", ("cLeaf", "cWood")),
    ),
}
_WIDTH = 100


@dataclass
class _Held:
    """A native variable: the files that hold it, their units, the extra dimensions."""

    name: str
    files: list[NativeFile] = field(default_factory=list)

    @property
    def units(self) -> list[str]:
        """Every unit stated, in the order of the files; empty text where none is."""
        return list(dict.fromkeys(f.variables[self.name].units or "" for f in self.files))

    @property
    def extra(self) -> dict[str, int]:
        """Dimensions beside time, latitude and longitude, with their sizes."""
        first = self.files[0]
        known = {*first.grid_dims(), first.time_dim}
        return {d: n for d, n in first.variables[self.name].dims.items() if d not in known}

    @property
    def has_time(self) -> bool:
        """Whether it changes in time, or may."""
        return any(f.time_dim in f.variables[self.name].dims for f in self.files)


def draft_manifest(files: Sequence[NativeFile], entries: Sequence[Entry]) -> str:
    """The YAML text of a manifest for ``files``; ``entries``: what checking them has found.

    The same files and entries give the same text. It loads with `load_manifest` once every SET_...
    is answered; what was refused stands at its top as comments.
    """
    files = sorted(files, key=lambda file: file.origin)
    # What lies above a model's folder is the machine's business.
    rows = [classify("/".join(file.origin.split("/")[-4:]), 0) for file in files]
    held: dict[str, _Held] = {}
    for file in files:
        for name in file.data_variables():
            held.setdefault(name, _Held(name)).files.append(file)
    lines = [
        "# Drafted by `callmip-global check --draft` from the files alone. Answer every SET_...",
        "# and every question, and compare the rest with what you know before harmonizing.",
        *_refusals(entries),
        *_identity(rows),
        *_time(files),
        *_area(files),
        *_variables(held, _unread(entries)),
    ]
    return "\n".join(lines) + "\n"


# --- parts ----------------------------------------------------------------------------------------


def _refusals(entries: Sequence[Entry]) -> Iterator[str]:
    refused = refusals(entries)
    if refused:
        yield "#"
        yield f"# Refused so far ({len(refused)}):"
    for message, names in refused.items():
        said = f"{', '.join(names)}: " if len(names) > 1 else ""
        yield _comment(said + message, indent="#   ")


def _unread(entries: Iterable[Entry]) -> set[str]:
    """What the names of files say that are refused as a whole: they may hold these variables."""
    whole = [e.path for e in entries if e.outcome == "refused" and e.path and not e.variable]
    return {classify("/".join(path.split("/")[-4:]), 0).variable for path in whole}


def _identity(rows: Sequence[Row]) -> Iterator[str]:
    yield ""
    # A folder above that of a simulation is named for the model; file names may carry prefixes.
    models = _found((row.folder_simulation and row.folder_model) or row.model for row in rows)
    prefixes = _found(row.model for row in rows)
    versions = _found(row.version for row in rows)
    name = _name(models[0]) if models else "SET_MODEL"
    version = _name(versions[0]) if versions else "SET_VERSION"
    yield f"model: {{name: {name}, version: {version}, institution: SET_INSTITUTION}}"
    yield from _others("models", models)
    other = [prefix for prefix in prefixes if _name(prefix) != name]
    if other:
        yield f"prefixes: [{', '.join(map(_text, other))}]    # what file names begin with"
    for key, values, question in (
        (
            "simulation",
            _found(row.simulation or row.folder_simulation for row in rows),
            "S3, CO2, ...",
        ),
        ("stage", _found(row.stage or row.folder_stage for row in rows), "Prior or Posterior"),
    ):
        if len(values) == 1:
            yield f"{key}: {_text(values[0])}"
        else:
            yield f"{key}: SET_{key.upper()}    # {question}"
            yield from _others(f"{key}s", values)
    if len(_found(row.simulation for row in rows)) > 1 or len(_found(r.stage for r in rows)) > 1:
        yield "# Several runs in one submission: list them under `runs:`, each with its simulation,"
        yield '# stage and files: [{simulation: S3, stage: Prior, files: "S3/*.nc"}, ...]'


def _time(files: Sequence[NativeFile]) -> Iterator[str]:
    axes = [file.axis for file in files if file.axis is not None]
    if axes:
        first, last = min(a.years[0] for a in axes), max(a.years[1] for a in axes)
        common = max(a.years[0] for a in axes), min(a.years[1] for a in axes)
        yield f"years: [{first}, {last}]"
        if common != (first, last):
            yield "# Not every file covers these years: take those that every variable has."
        frequencies = [f for f in ("mon", "yr") if any(a.frequency == f for a in axes)]
        wanted = ["mon", "yr"] if "mon" in frequencies else ["yr"]
        yield f"frequencies: [{', '.join(wanted)}]"
        if "yr" in frequencies:
            yield "# annual_state: SET_STATE    # annual pools: mean of the year, or end of it?"
    calendars = _found(a.calendar for a in axes)
    said = {rule for file in files for rule, _ in file.notes}
    if any(rule.startswith("calendar") for rule in said) and calendars:
        yield "# Some files state no calendar. Is it this one?"
        yield f"# calendar: {_text(calendars[0])}"
    undated = [f.origin for f in files if f.axis is None and f.data_variables() and f.time_dim]
    if undated:
        yield _comment(f"No time axis could be read in {_some(undated)}.")
        yield '# start: "SET_YYYY-MM"    # the month of their first step'


def _area(files: Sequence[NativeFile]) -> Iterator[str]:
    grids = [file.source_grid.grid for file in files if file.source_grid is not None]
    steps = [180.0 / grid.shape[0] for grid in grids if grid.is_global]
    finest = min(steps, default=0.5)
    names = [n for n, step in (("0.5deg", 0.5), ("1deg", 1.0), ("2deg", 2.0)) if step >= finest]
    yield f"grids: [{', '.join(names or ['2deg'])}]"
    if len({grid.digest for grid in grids}) > 1:
        yield "# The files are on several grids: variables of one run must be on one."
    yield "# totals: {gpp: {2001: 120.5}}    # your own global totals [PgC yr-1, 1e3 km3 yr-1, PW]"


def _variables(held: Mapping[str, _Held], unread: set[str]) -> Iterator[str]:
    yield "variables:"
    yield "  per: SET_PER    # land: per m2 of land; cell: per m2 of the whole cell. Never guessed."
    fractions = [n for n in held if n.lower() in _FRACTIONS]
    if fractions:
        yield f"  land_fraction: {_text(fractions[0])}"
    else:
        yield "  # land_fraction: SET_NAME    # without one, cells that hold values are all land"
    yield "  variables:"
    table = variable_table()
    matched = {name: _candidates(var, held) for name, var in table.items()}
    # What is not asked for is only taken where something is derived from it.
    direct = {n for n in requested_variables() if matched[n]}
    derived: dict[str, str] = {}
    pending = {
        name: native
        for name, var in table.items()
        for native in (name, *var.known_as)
        if native in unread and not matched[name]
    }
    have = {n for n, found in matched.items() if found} | set(pending)
    for name in ("reco", "nep", "hfls", "cLiveBioAbove"):
        for text, needs in _DERIVED[name]:
            if name not in have and set(needs) <= have | set(derived):
                derived[name] = text
    needed = {
        n for name in derived for text, ns in _DERIVED[name] if text == derived[name] for n in ns
    }
    used: set[str] = set()
    for name, var in table.items():
        if name in direct or (name in needed and matched[name]):
            used |= {item.name for item in matched[name]}
            yield from _entry(var, matched[name])
        elif name in derived:
            yield from _derivation(name, derived[name])
        elif name in pending and (var.requested or name in needed):
            yield f"    {name}: {{source: {_text(pending[name])}}}"
            yield "      # its file is refused so far, see above: is that its name in there?"
        elif var.requested:
            yield f"    {name}: {{absent: SET_REASON}}    # or {{source: native name, units: ...}}"
    left = [n for n, item in held.items() if n not in used | set(fractions) and item.has_time]
    if left:
        yield _comment(f"Not used: {', '.join(left)}.", indent="    # ")


def _entry(var: Variable, found: Sequence[_Held]) -> Iterator[str]:
    item = found[0]
    keys = [f"source: {_text(item.name)}"]
    questions = []
    units = item.units
    if units == [""]:
        keys.append("units: SET_UNITS")
        questions.append("the files state no units")
    elif len(units) > 1:
        said = ", ".join(repr(unit) for unit in units)
        questions.append(f"the files state different units: {said}")
    elif not same_units(units[0], var.units):
        questions.append(f"the files say {units[0]!r}; converted to {var.units!r}")
    if item.name.lower() in _TURNED:
        keys.append("sign: SET_SIGN")
        questions.append(
            "-1 if positive is to the atmosphere, as the name says; 1 if into the land"
        )
    layers = {d: n for d, n in item.extra.items() if n > 1}
    for dim, size in layers.items():
        questions.append(
            f"{dim} has {size}: layers are chosen with select: {{{dim}: [0]}}, plant types need "
            "their cover fractions"
        )
    yield f"    {var.name}: {{{', '.join(keys)}}}"
    for other in found[1:]:
        questions.append(f"or is it {other.name}?")
    for question in questions:
        yield _comment(question, indent="      # ")


def _derivation(name: str, text: str) -> Iterator[str]:
    yield f'    {name}: {{derive: "{text}"}}'
    if name == "hfls":
        yield "      # states the latent heat [J kg-1]: is it your model's?"
    if "cWood" in text:
        yield "      # only if cWood holds no roots: then say wood: above-ground at the top"
    if name == "nep":
        yield "      # without fire; subtract its emissions if the model has them"


# --- words ----------------------------------------------------------------------------------------


def _candidates(var: Variable, held: Mapping[str, _Held]) -> list[_Held]:
    """Native variables that go by the variable's name, the best first."""
    known = [var.name, *var.known_as]
    exact = [held[name] for name in known if name in held]
    lower = {name.lower() for name in known}
    alike = [item for name, item in held.items() if name.lower() in lower and item not in exact]
    return [item for item in [*exact, *alike] if item.has_time]


def _found(values: Iterable[str]) -> list[str]:
    """Every text that is not empty, the most frequent first."""
    counts = Counter(value for value in values if value)
    return sorted(counts, key=lambda value: (-counts[value], value))


def _others(what: str, values: Sequence[str]) -> Iterator[str]:
    if len(values) > 1:
        yield _comment(f"The files speak of several {what}: {', '.join(values)}.")


def _name(text: str) -> str:
    """A model's name or version as file names can hold it, as YAML."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in text)
    return _text(plain.strip("-") or "SET_MODEL")


def _some(names: Sequence[str]) -> str:
    said = ", ".join(names[:3])
    return f"{said} and {len(names) - 3} more" if len(names) > 3 else said


def _text(value: str) -> str:
    """A scalar that YAML reads as this text."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return "".join(map(_printable, json.dumps(value, ensure_ascii=False)))


def _comment(text: str, indent: str = "# ") -> str:
    """``text`` as comment lines; whatever would end a comment or move a cursor is spelt out."""
    plain = "".join(map(_printable, " ".join(text.split())))
    lines, line = [], ""
    for word in plain.split(" "):
        if line and len(indent) + len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join(f"{indent}{part}" for part in [*lines, line])


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
