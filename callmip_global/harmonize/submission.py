"""What becomes of every file and every variable of a submission: accepted, fixed or refused.

`check_file` and `check_store` look without writing anything; both use the rules that harmonizing
uses. A broken file never stops the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from callmip_global.errors import CallmipError, DataError, Problem
from callmip_global.harmonize.checks import Summary, summary_problem
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.native import NativeFile, scan
from callmip_global.harmonize.planning import RefusedVariablesError
from callmip_global.harmonize.rules import outcome_of
from callmip_global.harmonize.run import check_values
from callmip_global.harmonize.variable_map import VariableMap, VariableSource
from callmip_global.store import is_per_land, open_store, store_info, value_fraction
from callmip_global.units import same_units
from callmip_global.variables import variable_table

Outcome = Literal["accepted", "fixed", "refused"]

_BLOCK = 60


@dataclass(frozen=True, order=True)
class Entry:
    """One line of the report. ``rules``: names of the rules that fixed or refused it.

    ``variable`` is the protocol's name, the native one where it is not in the map, and empty for a
    file as a whole; ``path`` is empty for what is derived from other variables.
    """

    path: str
    variable: str
    outcome: Outcome
    rules: tuple[str, ...]
    message: str


def entries_json(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The report as JSON, sorted: the same submission gives the same bytes."""
    return [{**asdict(entry), "rules": list(entry.rules)} for entry in sorted(entries)]


def entries_of(rows: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The entries that `entries_json` made the rows of; KeyError for other rows."""
    return [
        Entry(r["path"], r["variable"], r["outcome"], tuple(r["rules"]), r["message"]) for r in rows
    ]


def refused(path: str, variable: str, rule: str, problems: Sequence[Problem]) -> Entry:
    """The entry of something refused for ``problems``; ``rule`` stands for those without one."""
    rules = tuple(dict.fromkeys(p.rule or rule for p in problems))
    return Entry(path, variable, "refused", rules, "; ".join(str(p) for p in problems))


def variable_entries(report: Mapping[str, Any], files: Sequence[NativeFile]) -> list[Entry]:
    """Entries of what `harmonize_files` delivered: per file and variable, or per derivation."""
    entries = []
    for name, item in report["variables"].items():
        outcome = outcome_of(item["fixes"])
        message = "; ".join(f"{rule}: {text}" for rule, text in item["fixes"].items())
        rules = tuple(item["fixes"])
        used = set(item["files"])
        if item["source"] is None:
            entries.append(Entry("", name, outcome, rules, message))
            continue
        for file in files:
            if item["source"] not in file.variables:
                continue
            if file.origin in used:
                entries.append(Entry(file.origin, name, outcome, rules, message))
            else:
                said = "holds none of the wanted years, or annual values beside monthly ones"
                entries.append(Entry(file.origin, name, "accepted", ("not-used",), said))
    return entries


def file_entries(files: Sequence[NativeFile], variable_map: VariableMap) -> list[Entry]:
    """Entries of the fields that the map does not speak of, and of files without any field."""
    sources = {e.source for e in variable_map.entries.values()}
    entries = []
    for file in files:
        fields = file.data_variables()
        for name in fields:
            if name in sources:
                continue
            label = f"{name} (native)" if name in variable_map.entries else name
            if name == variable_map.land_fraction:
                rule, said = "land-fraction", "the land fraction of every cell"
            elif file.time_dim in file.variables[name].dims:
                rule, said = "not-mapped", "not in the variable map; not used"
            else:
                rule, said = "not-mapped", "a field without time; not used"
            entries.append(Entry(file.origin, label, "accepted", (rule,), said))
        if not fields:
            said = "no field on latitudes and longitudes; not used"
            entries.append(Entry(file.origin, "", "accepted", ("no-field",), said))
    return entries


def accounted(entries: Iterable[Entry], walked: Iterable[str]) -> list[Entry]:
    """The entries, sorted, each file and variable once, and one for every file without any.

    Of several entries of one (path, variable) the worst outcome is kept, with the rules and words
    of all. ``walked``: every file there is; of an archive its members may stand for it.
    """
    merged: dict[tuple[str, str], Entry] = {}
    for entry in sorted(set(entries)):
        key = (entry.path, entry.variable)
        merged[key] = _joined(merged[key], entry) if key in merged else entry
    said = {path for path, _ in merged} | {path.split("::")[0] for path, _ in merged}
    for path in sorted(set(walked) - said):
        text = "nothing in it was asked for; not used"
        merged[path, ""] = Entry(path, "", "accepted", ("not-used",), text)
    return sorted(merged.values())


def _joined(one: Entry, other: Entry) -> Entry:
    worst = max(one.outcome, other.outcome, key=("accepted", "fixed", "refused").index)
    rules = tuple(dict.fromkeys((*one.rules, *other.rules)))
    message = "; ".join(dict.fromkeys(m for m in (one.message, other.message) if m))
    return Entry(one.path, one.variable, worst, rules, message)


def refused_entries(
    name: str, problems: Sequence[Problem], files: Sequence[NativeFile], variable_map: VariableMap
) -> list[Entry]:
    """Entries of a refused variable: one per file that holds it, or one without a file."""
    source = variable_map.entries[name].source
    holders = [f.origin for f in files if source is not None and source in f.variables]
    return [refused(path, name, "refused", problems) for path in holders or [""]]


# --- checking alone ------------------------------------------------------------------------------


def check_files(files: Sequence[NativeFile], variable_map: VariableMap) -> list[Entry]:
    """What harmonizing would make of files that belong together, without writing a store."""
    entries = file_entries(files, variable_map)
    for name in variable_map.delivered:
        try:
            report = check_values(files, variable_map, name)
        except RefusedVariablesError as error:
            entries += refused_entries(name, error.problems, files, variable_map)
        else:
            entries += variable_entries({"variables": {name: report}}, files)
    return entries


def check_file(
    path: Path, variable_map: VariableMap | None = None, origin: str = ""
) -> list[Entry]:
    """Entries of one file: every variable of the map (default: protocol names) in it.

    ``origin``: what the report calls it (default: its path).
    """
    declared = Declared(calendar=variable_map.calendar if variable_map else None)
    try:
        file = scan(path, declared, origin)
    except DataError as error:
        return [refused(origin or str(path), "", "unreadable", error.problems)]
    return check_files([file], _map_of(file, variable_map))


def _map_of(file: NativeFile, given: VariableMap | None) -> VariableMap:
    """The part of the map that speaks of a file; without one, of the protocol's names in it."""
    if given is None:
        entries = {n: VariableSource(source=n) for n in variable_table() if n in file.variables}
        fraction = "sftlf" if "sftlf" in file.variables else None
        return VariableMap(entries, land_fraction=fraction, where=file.origin)
    held = {n: e for n, e in given.entries.items() if e.source in file.variables}
    fraction = given.land_fraction if given.land_fraction in file.variables else None
    return replace(given, entries=held, land_fraction=fraction)


def check_store(path: Path) -> list[Entry]:
    """Entries of a store: every variable of every group, its attributes, units and values."""
    entries: list[Entry] = []
    try:
        info = store_info(path)
        groups = info.frequencies or (None,)
    except CallmipError as error:
        return [refused(str(path), "", "unreadable", error.problems)]
    for group in groups:
        ds = open_store(path, group)
        where = f"{path}/{group}" if group else str(path)
        for name in map(str, ds.data_vars):
            if ds[name].dims != ("time", "lat", "lon") or name.startswith("valid_fraction"):
                continue
            problems = _store_problems(ds, name, where)
            if problems:
                entries.append(refused(where, name, "refused", problems))
            else:
                entries.append(Entry(where, name, "accepted", (), ""))
    return entries


def _store_problems(ds: Any, name: str, where: str) -> list[Problem]:
    table = variable_table()
    if name not in table:
        return []
    var = table[name]
    problems = []
    units = str(ds[name].attrs.get("units", ""))
    if not units or not same_units(units, var.units):
        problems.append(Problem(where, name, f"units {units!r}", repr(var.units)))
    for auxiliary in ("time_bnds", "lat_bnds", "lon_bnds", "areacella"):
        if auxiliary not in ds.variables:
            problems.append(Problem(where, auxiliary, "nothing", "the coordinate"))
    if problems:
        return problems
    if is_per_land(ds[name]) and "sftlf" not in ds.variables:
        problems.append(Problem(where, "sftlf", "nothing", "the land fraction of a per-land field"))
    summary = Summary()
    weights = ds["areacella"].values.astype(np.float64)
    fraction = value_fraction(ds, name)
    if "time" not in fraction.dims:
        weights = weights * np.nan_to_num(fraction.transpose("lat", "lon").values)
    for start in range(0, ds.sizes["time"], _BLOCK):
        block = ds[name].isel(time=slice(start, start + _BLOCK))
        values = block.values.astype(np.float64)
        summary.add(values, weights, var)
        if where.endswith("/mon"):
            months = [t.month for t in block["time"].values]
            summary.seasons.add(values, weights, ds["lat"].values, months)
    problem = summary_problem(summary, var, where)
    return problems + ([problem] if problem else [])


def check_path(path: Path, variable_map: VariableMap | None = None) -> list[Entry]:
    """Entries of a file, a store, or everything in a folder. DataError for what is not there.

    Every file is looked at by itself; of a collection, the newest version of every store.
    """
    if not path.exists():
        raise DataError(Problem(str(path), found="nothing there"))
    if path.is_file():
        return check_file(path, variable_map)
    if (path / "zarr.json").is_file():
        return check_store(path)
    stores = sorted(p.parent for p in path.rglob("zarr.json") if _outermost(p.parent, path))
    files = [p for p in sorted(path.rglob("*")) if p.suffix in (".nc", ".nc4", ".cdf", ".gz")]
    entries = [e for store in stores for e in check_store(store)]
    return entries + [e for file in files for e in check_file(file, variable_map)]


def _outermost(store: Path, top: Path) -> bool:
    """Whether no folder between ``store`` and ``top`` is a store itself (groups are folders)."""
    between = store.relative_to(top).parents
    return not any((top / p / "zarr.json").is_file() for p in between)
