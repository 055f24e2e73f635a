"""From an experiment file to checked values: overlays, presets, and where every value came from.

Layers, the later one wins: packaged defaults (config/defaults.yaml) < ``defaults`` of the site <
experiment file < ``--set key=value``. Under ``resources`` each layer's entry for a step wins over
the same layer's ``default``, and a later layer wins over an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from callmip_global.config.protocol import Protocol, load_protocol
from callmip_global.config.schema import (
    FORCINGS,
    STEP_KINDS,
    Experiment,
    FixedForcing,
    Resources,
    StepKind,
)
from callmip_global.config.site import Site, config_path, load_site
from callmip_global.config.yaml_source import (
    KeyPath,
    Located,
    Mark,
    apply_override,
    dotted,
    load_yaml,
    nearest,
    overlay,
    try_model,
)
from callmip_global.data import data_path
from callmip_global.errors import CallmipError, Problem, UsageError
from callmip_global.files import home_path

_STAND_IN_SITE = "local"
_STAND_IN_PROTOCOL = "callmip-phase1-global"
# Values that let the rest be checked where the user's own value was refused; never returned.
_STAND_INS: Mapping[str, Any] = {
    "walltime": "00:00:01",
    "memory": "1MB",
    "version": "v0",
    "grid": "1deg",
    "climate": "actual",
    "co2": "yearly",
}


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment with its site and protocol.

    ``path``: the file as the user named it; ``base_dir``: its folder (absolute), which relative
    paths are relative to; ``sources``: all layers joined, as one experiment file would say it, for
    the record and for the file and line of any key.
    """

    experiment: Experiment
    path: Path
    base_dir: Path
    sources: Located
    site: Site
    protocol: Protocol

    def resolve(self, text: str | Path) -> Path:
        """A path of the experiment file, made absolute."""
        return self.base_dir / home_path(text)

    def resolve_variables(self) -> Path:
        """The variable map: a file of the group, else a shipped one (config/models/)."""
        from callmip_global.config.variable_map import variable_map_path

        return variable_map_path(self.experiment.variables, self.base_dir)

    def resources(self, kind: StepKind) -> Resources:
        """What a task of this kind of step asks for; the site's default queue is filled in."""
        asked = self.experiment.resources[kind]
        if asked.queue is None and self.site.default_queue is not None:
            return asked.model_copy(update={"queue": self.site.default_queue})
        return asked

    @property
    def fixed_forcing(self) -> FixedForcing:
        """What a forcing that does not vary is held at: the protocol's value, or ``run.fixed``."""
        own = self.experiment.run.fixed
        update: dict[str, Any] = {
            name: getattr(own, name) for name in FORCINGS if getattr(own, name) is not None
        }
        return self.protocol.fixed.model_copy(update=update)

    def where(self, *key: str | int) -> str:
        """``file:line`` (or ``--set ...``) that the value of ``key`` comes from."""
        return self.sources.where(key)


def load_experiment(path: Path | str, *, overrides: Sequence[str] = ()) -> LoadedExperiment:
    """The experiment of a file with ``overrides`` (``key=value``) over it.

    Raises UsageError with every problem at once, each with its file and line. Whether the files
    it names exist is asked by `callmip_global.config.validate.validate_experiment`.
    """
    loaded, problems = load_leniently(Path(path), overrides)
    if problems or loaded is None:
        raise UsageError([problem for _, problem in problems])
    return loaded


def load_leniently(
    path: Path, overrides: Sequence[str] = ()
) -> tuple[LoadedExperiment | None, list[tuple[KeyPath, Problem]]]:
    """What `load_experiment` does, but going on past problems so that more of them are found.

    Returns the experiment without the parts that were refused (None if too little is left) and the
    problems with the key each is about. Only for reporting: with problems, the experiment is not
    what the user wrote.
    """
    problems: list[tuple[KeyPath, Problem]] = []
    own = load_yaml(path)
    if not isinstance(own.value, dict):
        found = "an empty file" if own.value is None else "no mapping"
        raise UsageError(Problem(str(path), "", found, "an experiment (keys and values)"))
    for text in overrides:
        try:
            own = apply_override(own, text)
        except UsageError as error:
            problems += [((), problem) for problem in error.problems]
    base_dir = path.absolute().parent

    site_path = _named(own, "site", "sites", base_dir, _STAND_IN_SITE, problems)
    protocol_path = _named(own, "protocol", "protocols", base_dir, _STAND_IN_PROTOCOL, problems)
    try:
        site, site_tree = load_site(site_path)
    except CallmipError as error:
        problems += [(("site",), problem) for problem in error.problems]
        site, site_tree = load_site(config_path(_STAND_IN_SITE, "sites", base_dir))
    try:
        protocol, _ = load_protocol(protocol_path)
    except CallmipError as error:
        problems += [(("protocol",), problem) for problem in error.problems]
        protocol, _ = load_protocol(config_path(_STAND_IN_PROTOCOL, "protocols", base_dir))

    layers = [load_yaml(data_path("config", "defaults.yaml"))]
    if "defaults" in site_tree.value:
        layers.append(site_tree.sub(("defaults",)))
    layers.append(own)
    tree = layers[0]
    for layer in layers[1:]:
        tree = overlay(tree, layer)
    tree = _with_resources(tree, layers)
    resolved = _with_simulations(tree, protocol, problems)

    experiment, found_problems = try_model(Experiment, resolved)
    problems += _of_default_resources(found_problems, layers)
    if experiment is None:
        experiment, _ = try_model(Experiment, _salvaged(resolved, [k for k, _ in found_problems]))
    problems.sort(key=lambda item: problem_order(item[1], str(path)))
    if experiment is None:
        return None, problems
    return LoadedExperiment(experiment, path, base_dir, tree, site, protocol), problems


def problem_order(problem: Problem, label: str) -> tuple[int, str, int]:
    """Sort key: problems of the file ``label`` first, by line; then ``--set``; then other files."""
    name, _, line = problem.where.rpartition(":")
    if not line.isdigit():
        return (1, problem.where, 0)
    return (0 if name == label else 2, name, int(line))


def _named(
    own: Located,
    key: str,
    folder: str,
    base_dir: Path,
    stand_in: str,
    problems: list[tuple[KeyPath, Problem]],
) -> Path:
    """The file that ``site`` or ``protocol`` names; a stand-in where it names none."""
    text = own.value.get(key)
    if isinstance(text, str) and text:
        try:
            return config_path(text, folder, base_dir)
        except UsageError as error:
            place = own.where((key,))
            problems += [((key,), replace(p, where=place, key=key)) for p in error.problems]
    # Anything but text is reported by the schema.
    return config_path(stand_in, folder, base_dir)


def _with_resources(tree: Located, layers: Iterable[Located]) -> Located:
    """``resources`` with an entry for each kind of step, joined from all layers."""
    per_layer = [
        layer.sub(("resources",))
        for layer in layers
        if isinstance(layer.value, dict) and isinstance(layer.value.get("resources"), dict)
    ]
    own = tree.value.get("resources")
    if own is not None and not isinstance(own, dict):
        return tree
    known = {*STEP_KINDS, "default"}
    extra = {name for layer in per_layer for name in layer.value if name not in known}
    value: dict[Any, Any] = {}
    marks: dict[KeyPath, Mark] = {(): tree.mark(("resources",))}
    for kind in [*STEP_KINDS, *sorted(extra, key=str)]:
        entry: Located | None = None
        for layer in per_layer:
            for name in ("default", kind) if kind not in extra else (kind,):
                if name in layer.value and layer.value[name] is not None:
                    part = layer.sub((name,))
                    entry = part if entry is None else overlay(entry, part)
        value[kind] = {} if entry is None else entry.value
        marks[(kind,)] = tree.mark(("resources",))
        if entry is not None:
            marks.update({(kind, *path): mark for path, mark in entry.marks.items()})
    return tree.replaced(("resources",), value, marks)


def _of_default_resources(
    problems: list[tuple[KeyPath, Problem]], layers: Sequence[Located]
) -> list[tuple[KeyPath, Problem]]:
    """One problem in ``resources.default`` shows in every kind of step: said once, where it is."""
    merged: dict[tuple[str, str], tuple[KeyPath, Problem]] = {}
    for key, problem in problems:
        if len(key) > 1 and key[0] == "resources":
            default = ("resources", "default", *key[2:])
            for layer in layers:
                if default in layer.marks and str(layer.marks[default]) == problem.where:
                    at_kind = ("resources", *key[1:])
                    if str(layer.marks.get(at_kind)) != problem.where:
                        problem = replace(problem, key=dotted(default))
        merged.setdefault((problem.where, problem.key), (key, problem))
    return list(merged.values())


def _with_simulations(
    tree: Located, protocol: Protocol, problems: list[tuple[KeyPath, Problem]]
) -> Located:
    """``simulations`` as a list of {name, varies}, looked up in the protocol's presets."""
    raw = tree.value.get("simulations")
    presets = protocol.simulations
    if isinstance(raw, dict):
        items = [(("simulations", name), name, changes) for name, changes in raw.items()]
    elif isinstance(raw, list):
        items = [(("simulations", i), name, None) for i, name in enumerate(raw)]
    else:
        return tree
    value: list[dict[str, Any]] = []
    marks: dict[KeyPath, Mark] = {(): tree.mark(("simulations",))}
    seen: set[str] = set()
    varies: set[str]
    wrong: list[tuple[KeyPath, str, str, str]]
    for key, name, changes in items:
        if not isinstance(name, str):
            varies, wrong = set(), [((), repr(name), f"a preset: {', '.join(presets)}", "")]
        elif name in seen:
            varies, wrong = set(), [((), f"{name} twice", "each simulation once", "")]
        else:
            seen.add(name)
            varies, wrong = _varies(name, changes, protocol, preset_only=isinstance(raw, list))
        label = ("simulations", str(name)) if isinstance(raw, dict) else ("simulations",)
        for sub, found, wanted, remedy in wrong:
            place = tree.where((*key, *sub))
            problem = Problem(place, dotted((*label, *sub)), found, wanted, remedy)
            problems.append((key, problem))
        if not wrong:
            marks.update({(len(value), *p): tree.mark(key) for p in ((), ("name",), ("varies",))})
            value.append({"name": name, "varies": sorted(varies)})
    if items and not value:
        # The refused names were reported; a preset lets everything else be checked.
        value.append({"name": "S3", "varies": list(FORCINGS)})
    return tree.replaced(("simulations",), value, marks)


def _varies(
    name: str, changes: Any, protocol: Protocol, *, preset_only: bool
) -> tuple[set[str], list[tuple[KeyPath, str, str, str]]]:
    """The forcings a simulation varies; and what is wrong: key below it, found, wanted, remedy."""
    presets = protocol.simulations
    if changes is not None and not isinstance(changes, dict):
        return set(), [((), repr(changes), "{climate|co2|luc|ndep: vary|fixed}", "")]
    if name not in presets and preset_only:
        own = "For one of your own: simulations: {NAME: {climate: vary, co2: vary, ...}}."
        remedy = nearest(name, presets) or own
        return set(), [((), repr(name), f"one of: {', '.join(presets)}", remedy)]
    said = changes or {}
    varies: set[str] = set(presets[name].varies) if name in presets else set()
    wrong: list[tuple[KeyPath, str, str, str]] = []
    for forcing, word in said.items():
        if forcing not in FORCINGS:
            remedy = nearest(str(forcing), FORCINGS)
            wanted = f"one of: {', '.join(FORCINGS)}"
            wrong.append(((str(forcing),), "an unknown key", wanted, remedy))
        elif word not in ("vary", "fixed"):
            wrong.append(((forcing,), repr(word), "vary or fixed", ""))
        elif word == "vary":
            varies.add(forcing)
        else:
            varies.discard(forcing)
    silent = [forcing for forcing in FORCINGS if forcing not in said]
    if name not in presets and silent:
        wanted = "vary or fixed for each forcing of a simulation that is no preset"
        wrong.append(((), f"nothing about {', '.join(silent)}", wanted, nearest(name, presets)))
    return varies, wrong


def _salvaged(tree: Located, keys: Iterable[KeyPath]) -> Located:
    """The tree without what was refused, from the back so that list positions stay true."""
    for key in sorted(set(keys), key=lambda k: [(isinstance(p, int), p) for p in k], reverse=True):
        if key[:1] == ("resources",) and len(key) == 2:
            tree = tree.replaced(key, {"memory": "1MB", "walltime": "00:00:01"}, {})
            continue
        if key and key[-1] in _STAND_INS:
            tree = tree.replaced(key, _STAND_INS[str(key[-1])], {})
            continue
        try:
            tree.get(key)
        except KeyError:
            continue
        tree = tree.without(key) if key else tree
    return tree
