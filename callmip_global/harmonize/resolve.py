"""What the files themselves add to a variable map: names, derivations, layers, fractions.

`complete` turns a map that says little into one that says all, from headers alone: a name that is
one of those a variable goes by, a derivation whose ingredients are there, soil layers whose bounds
are in the file. Nothing is taken where two answers are possible: such a variable is refused, with
what to write into the map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from callmip_global.errors import Problem
from callmip_global.harmonize.derive import LATENT_HEAT_J_KG
from callmip_global.harmonize.layers import layer_choice
from callmip_global.harmonize.native import NativeFile
from callmip_global.harmonize.variable_map import VariableMap, VariableSource
from callmip_global.variables import UNCERTAINTY, Variable, requested_variables, variable_table

_DERIVATIONS: Mapping[str, tuple[str, ...]] = {
    # Never from nbp: it has land use in it.
    "nep": ("gpp - ra - rh", "npp - rh"),
    "reco": ("ra + rh",),
    "hfls": (f"evspsbl * {LATENT_HEAT_J_KG:g}",),
    "cLiveBioAbove": ("cLeaf + cStem", "cLeaf + cWood"),
}
# Without one of these there is no trace of the variable, and nothing to refuse.
_TRACES = {"nep": ("ra", "rh"), "reco": ("ra", "rh"), "cLiveBioAbove": ("cStem", "cWood")}
_WORDS = {
    "nep": "fire emissions are not in it",
    "hfls": f"latent heat of vaporisation {LATENT_HEAT_J_KG:g} J kg-1, also for snow",
}


def complete(variable_map: VariableMap, files: Sequence[NativeFile]) -> VariableMap:
    """The map with everything that ``files`` add to it beyond doubt.

    Entries of the map stay as they are, but for a name that is found in one of its other spellings.
    Requested variables without an entry are found by name where the map is ``well_known``, derived
    where all ingredients are there, or get an entry that refuses them where the files speak of
    them without saying enough. What is added carries ``found``: rule -> why. Completing twice
    changes nothing.
    """
    table = variable_table()
    entries = dict(by_held_names(variable_map, files).entries)
    for name in requested_variables():
        if name in entries:
            continue
        added = _found(table[name], variable_map, files) or _layered(
            table[name], variable_map, files
        )
        if added is not None:
            entries[name] = added
    for name in requested_variables():
        if name not in entries and name in _DERIVATIONS:
            entries.update(_derivation(name, entries, variable_map, files))
    entries |= _uncertainties(entries, variable_map, files)
    held = {n for f in files for n in f.variables}
    return replace(
        variable_map,
        entries=MappingProxyType(entries),
        land_fraction=variable_map.land_fraction or _land_fraction(files),
        cover=variable_map.cover or next((n for n in sorted(held) if n.lower() == COVER), None),
    )


def by_held_names(variable_map: VariableMap, files: Sequence[NativeFile]) -> VariableMap:
    """The map whose entries with several native names have the one that the ``files`` hold; one of
    which they hold two is refused."""
    entries = {
        name: _named(name, entry, variable_map, files)
        for name, entry in variable_map.entries.items()
    }
    return replace(variable_map, entries=MappingProxyType(entries))


def of_stage(variable_map: VariableMap, stage: str, files: Sequence[NativeFile]) -> VariableMap:
    """The map as it holds for the ``files`` of a stage: a prior has the stated uncertainties that
    its files have, for calibration makes them. Both stages may share one map.

    Wants a map without problems. One that another variable is derived from stays.
    """
    if stage != "Prior":
        return variable_map
    entries = variable_map.entries
    held = {name for file in files for name in (*file.variables, *file.flaws)}
    needed = variable_map.closure(n for n in variable_map.delivered if not n.endswith(UNCERTAINTY))
    natives = {
        name: {entries[n].source for n in variable_map.closure([name])} - {None}
        for name in entries
        if name.endswith(UNCERTAINTY) and name not in needed
    }
    kept = {n: entry for n, entry in entries.items() if natives.get(n, set()) <= held}
    return replace(variable_map, entries=MappingProxyType(kept))


COVER = "landcoverfrac"
"""What TRENDY and CMIP call the area fractions of plant types, in small letters."""

# One standard name for both, though coarse roots may be in the one and not in the other.
_WOODY = ("cStem", "cWood")


def _uncertainties(
    entries: Mapping[str, VariableSource], variable_map: VariableMap, files: Sequence[NativeFile]
) -> dict[str, VariableSource]:
    """Entries of the stated uncertainties that the files hold, of variables that are delivered.

    They go by the name of the variable, the protocol's or the native one, and the protocol's
    ending; they are per land or per cell, and times a factor, as their variable is.
    """
    held = {n: v for f in files for n, v in f.variables.items() if n in f.data_variables()}
    added: dict[str, VariableSource] = {}
    for name, entry in entries.items():
        of = name + UNCERTAINTY
        if of in entries or name not in variable_table() or entry.absent or entry.refuse:
            continue
        asked = dict.fromkeys((of, f"{entry.source or name}{UNCERTAINTY}"))
        found = [native for native in asked if native in held]
        if len(found) > 1:
            said, remedy = " and ".join(found), f"Say which: {of}: {{source: {found[0]}}}."
            problem = Problem(variable_map.where, of, said, "one of them", remedy, "ambiguous")
            added[of] = VariableSource(refuse=problem)
        elif found:
            words = {} if found[0] == of else {"name": f"called {found[0]} in the files"}
            added[of] = VariableSource(
                source=found[0],
                units=None if held[found[0]].units else entry.units,
                factor=abs(entry.factor),
                per=entry.per if entry.source else variable_map.per,
                found=MappingProxyType(words),
            )
    return added


def _named(
    name: str, entry: VariableSource, variable_map: VariableMap, files: Sequence[NativeFile]
) -> VariableSource:
    """The entry with the one of its names that the files hold."""
    if entry.source is None:
        return entry
    asked = (entry.source, *entry.names)
    held = {n for f in files for n in f.variables}
    found = [n for n in asked if n in held]
    if len(found) > 1:
        said = " and ".join(found)
        remedy = f"Say which: {name}: {{source: {found[0]}, ...}}."
        problem = Problem(variable_map.place(name), name, said, "one of them", remedy, "ambiguous")
        return VariableSource(refuse=problem)
    if not found:
        small = {n.lower() for n in asked}
        found = sorted(n for n in held if n.lower() in small)
        if len(found) != 1:
            return entry
    (native,) = found
    words = {} if native == entry.source else {"name": f"called {native} in the files"}
    return replace(entry, source=native, names=(), found=MappingProxyType({**entry.found, **words}))


def _candidates(
    var: Variable, variable_map: VariableMap, files: Iterable[NativeFile], *, named: bool
) -> list[str]:
    """Native names that can only be this variable: its own, one it is known by, its standard name.

    ``named``: whether a name alone is enough.
    """
    used = {e.source for e in variable_map.entries.values()}
    held = {n: v for f in files for n, v in f.variables.items() if n in f.data_variables()}
    if named:
        if var.name in held:
            return [var.name]
        by_name = [n for n in var.known_as if n in held]
        by_name = [n for n in by_name if not n.endswith("pft")] or by_name
        if by_name:
            return by_name
    if var.name in _WOODY:
        return []
    return sorted(
        n
        for n, header in held.items()
        if var.standard_name
        and header.attributes.get("standard_name") == var.standard_name
        and n not in used
    )


def _found(
    var: Variable, variable_map: VariableMap, files: Sequence[NativeFile]
) -> VariableSource | None:
    """The entry of a requested variable that the map leaves to its usual names."""
    if not variable_map.well_known:
        return None
    found = _candidates(var, variable_map, files, named=True)
    if not found:
        return None
    if len(found) > 1:
        said = " and ".join(found)
        remedy = f"Say which: {var.name}: {{source: {found[0]}, ...}}."
        where = variable_map.where
        return VariableSource(
            refuse=Problem(where, var.name, said, "one of them", remedy, "ambiguous")
        )
    if var.depth_m is not None and found[0] != var.name:
        return _layered(var, variable_map, files)
    return _source(var, found[0], variable_map)


def _source(var: Variable, native: str, variable_map: VariableMap) -> VariableSource:
    words = {} if native == var.name else {"name": f"called {native} in the files"}
    return VariableSource(source=native, per=variable_map.per, found=MappingProxyType(words))


def _layered(
    var: Variable, variable_map: VariableMap, files: Sequence[NativeFile]
) -> VariableSource | None:
    """A variable of one soil depth from the layers of another, where the file bounds them."""
    if var.depth_m is None:
        return None
    named = variable_map.well_known
    found = [
        n
        for n in _candidates(var, variable_map, files, named=named)
        if n != var.name and any(len(f.variables[n].dims) > 3 for f in files if n in f.variables)
    ]
    if len(found) != 1:
        return None
    holder = next(f for f in files if found[0] in f.variables)
    choice = layer_choice(holder, found[0], var)
    if isinstance(choice, Problem):
        return VariableSource(refuse=choice)
    return VariableSource(
        source=found[0],
        per=variable_map.per,
        select=MappingProxyType({choice.dim: choice.indices}),
        last_share=choice.last_share,
        depth_m=var.depth_m,
        found=MappingProxyType({"layers": choice.words}),
    )


def _derivation(
    name: str,
    entries: Mapping[str, VariableSource],
    variable_map: VariableMap,
    files: Sequence[NativeFile],
) -> dict[str, VariableSource]:
    """The entry that derives a variable, and those of ingredients that had none; or a refusal."""
    table = variable_table()
    complete_: list[dict[str, VariableSource]] = []
    missing: list[str] = []
    traces = False
    for text in _DERIVATIONS[name]:
        derived = VariableSource(derive=text)
        assert derived.expression is not None
        added: dict[str, VariableSource] = {}
        lacking = []
        for needed in derived.expression.names:
            if needed in entries:
                if entries[needed].absent is None and entries[needed].refuse is None:
                    added[needed] = entries[needed]
                else:
                    lacking.append(needed)
                continue
            found = _candidates(table[needed], variable_map, files, named=variable_map.well_known)
            if len(found) == 1:
                added[needed] = _source(table[needed], found[0], variable_map)
            else:
                lacking.append(needed)
        traces = traces or bool(set(added) & set(_TRACES.get(name, ())))
        if not lacking:
            complete_.append({**added, name: derived})
        else:
            missing.append(f"no {' and '.join(lacking)} for {text}")
    if complete_:
        # Ingredients of one frequency first; else planning says which is annual, which monthly.
        even = [c for c in complete_ if len(_frequencies(c.values(), files)) == 1]
        chosen = (even or complete_)[0]
        words = f"{name} = {chosen[name].derive}" + (f" ({_WORDS[name]})" if name in _WORDS else "")
        chosen[name] = replace(chosen[name], found=MappingProxyType({"derived": words}))
        return chosen
    if not traces:
        return {}
    remedy = f"Hand it in, or say {name}: {{absent: the reason}}."
    where, wanted = variable_map.where, "all that it can be derived from"
    problem = Problem(where, name, "; ".join(missing), wanted, remedy, "not-derivable")
    return {name: VariableSource(refuse=problem)}


def _frequencies(entries: Iterable[VariableSource], files: Iterable[NativeFile]) -> set[str]:
    natives = {e.source for e in entries if e.source is not None}
    found: dict[str, str] = {}
    for file in files:
        for native in natives & set(file.variables):
            if file.axis is not None and found.get(native) != "mon":
                found[native] = file.axis.frequency
    return set(found.values())


def _land_fraction(files: Iterable[NativeFile]) -> str | None:
    """The one variable of all files that calls itself the land fraction, if there is one."""
    found = {
        name
        for file in files
        for name, header in file.variables.items()
        if header.attributes.get("standard_name") == "land_area_fraction" or name == "sftlf"
    }
    return next(iter(found)) if len(found) == 1 else None
