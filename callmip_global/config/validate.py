"""Everything that can be known to be wrong before a single job is submitted.

`validate_experiment` checks a loaded experiment against the disk, the site and the protocol, and
returns every problem at once. Rules about the files' contents stop where reading would be slow:
tables are read, NetCDF is not opened.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

from callmip_global.config.chain import Link, Segment, chain
from callmip_global.config.load import LoadedExperiment, load_leniently, problem_order
from callmip_global.config.placeholders import (
    INPUT_NAMES,
    MERGE_NAMES,
    OUTPUT_NAMES,
    PARAMETER_NAMES,
    expand,
    placeholder_names,
    render_template,
    sample_context,
    template_names,
)
from callmip_global.config.schema import (
    Overlay,
    Phase,
    PhaseForcing,
    Recycle,
    Run,
    Simulation,
    StageName,
    StepKind,
    phase_forcing,
)
from callmip_global.config.unset import unset_values
from callmip_global.config.yaml_source import KeyPath
from callmip_global.errors import CallmipError, Problem, UsageError
from callmip_global.resources import walltime_text

_BINARY = {".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".gz", ".bz2", ".zip", ".grb", ".zarr"}
# "1700 276.59", "1700, 276.59", "1700.5;276.59" and TRENDY's "Annee_1700=277.57".
_TABLE_ROW = re.compile(
    r"\s*(?:[A-Za-z]+_?)?(\d{1,4})(?:\.\d*)?\s*[=,;\s]\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:[\s,;].*)?"
)


def validate_experiment(loaded: LoadedExperiment) -> list[Problem]:
    """All problems of a loaded experiment, in the order of the file; empty if it can be run."""
    checks = (
        _stages,
        _phases,
        _placeholders,
        _files,
        _inputs,
        _site,
        _workers,
        _retries,
        _output,
        _variables,
        _products,
        _regions,
    )
    unset = unset_values(loaded)
    told = {problem.where for problem in unset}
    # That there is no file SET_FORCING/... only follows.
    others = [p for check in checks for p in check(loaded) if p.where not in told]
    problems = [*unset, *others]
    return sorted(dict.fromkeys(problems), key=lambda p: problem_order(p, str(loaded.path)))


def check_experiment(
    path: Path | str, overrides: Sequence[str] = ()
) -> tuple[LoadedExperiment | None, list[Problem]]:
    """Load and validate in one go: the problems of the file itself and of what it names.

    The experiment is None if it could not be built at all. What was refused in the file is left
    out of the second part, so that nothing is reported that only follows from it.
    """
    loaded, found = load_leniently(Path(path), overrides)
    problems = [problem for _, problem in found]
    if loaded is None:
        return None, problems
    touched = [key for key, _ in found]
    # A misspelt key was meant to be another one, which is then missing.
    slips = [(key, re.fullmatch(r"Did you mean '(.+)'\?", p.remedy)) for key, p in found]
    touched += [(*key[:-1], slip[1]) for key, slip in slips if key and slip]
    for problem in validate_experiment(loaded):
        key = tuple(problem.key.split("."))
        if not any(_related(key, tuple(map(str, other))) for other in touched):
            problems.append(problem)
    return loaded, sorted(dict.fromkeys(problems), key=lambda p: problem_order(p, str(path)))


def load_valid_experiment(path: Path | str, *, overrides: Sequence[str] = ()) -> LoadedExperiment:
    """An experiment that is ready to be planned; UsageError with every problem at once."""
    loaded, problems = check_experiment(path, overrides)
    if problems or loaded is None:
        raise UsageError(problems)
    return loaded


def read_table(path: Path) -> dict[int, float] | None:
    """Years and values of a plain-text table; None if the file is no text (NetCDF, compressed).

    Rows are ``year value`` (blank, comma or semicolon between; further columns are passed over) or
    ``Annee_1700=277.57`` as TRENDY distributes CO2. Lines before the first row and lines that
    begin with # ! or % are taken as comments; any other line raises UsageError with its number.
    """
    if any(suffix.lower() in _BINARY for suffix in path.suffixes):
        return None
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    table: dict[int, float] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        clean = line.strip()
        if not clean or clean[0] in "#!%":
            continue
        row = _TABLE_ROW.fullmatch(line)
        try:
            if row is None:
                raise ValueError
            table[int(row[1])] = float(row[2])
        except ValueError:
            if table:
                wanted = "a year and a value, e.g. 1700 277.57 or Annee_1700=277.57"
                raise UsageError(
                    Problem(f"{path}:{number}", found=repr(clean[:40]), wanted=wanted)
                ) from None
    return table


def _related(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether one key lies at, above or below the other."""
    size = min(len(one), len(two))
    return size > 0 and tuple(one[:size]) == tuple(two[:size])


def _problem(loaded: LoadedExperiment, key: KeyPath, *words: str) -> Problem:
    return Problem(loaded.sources.where(key), ".".join(map(str, key)), *words)


def _at(loaded: LoadedExperiment, key: KeyPath, error: CallmipError) -> Iterator[Problem]:
    """An error's problems, placed at a key where they have no place of their own."""
    for problem in error.problems:
        if problem.where:
            yield problem
        else:
            label = ".".join(map(str, key))
            yield replace(problem, where=loaded.sources.where(key), key=label)


def _runs(loaded: LoadedExperiment) -> Iterator[tuple[Simulation, Phase, PhaseForcing]]:
    """Each phase of each simulation, inner steps as phases of their own, with its forcing."""
    for simulation in loaded.experiment.simulations:
        for phase in _phases_of(loaded, simulation):
            for part in phase.parts():
                yield simulation, part, phase_forcing(part, simulation, loaded.fixed_forcing)


def _phases_of(loaded: LoadedExperiment, simulation: Simulation) -> list[Phase]:
    return [phase for phase in loaded.experiment.run.phases if phase.is_in(simulation.name)]


def _stages(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Parameter files of every stage and member; scenarios of the protocol."""
    scenarios = loaded.protocol.scenarios
    for name, stage in loaded.experiment.stages.items():
        key: KeyPath = ("stages", name)
        known = ", ".join(f"{n} ({'+'.join(s.streams)})" for n, s in scenarios.items())
        if stage.scenario is None and name == "Posterior":
            remedy = "It says which observations the calibration used."
            yield _problem(loaded, (*key, "scenario"), "nothing", f"one of: {known}", remedy)
        elif stage.scenario is not None and stage.scenario not in scenarios:
            found = str(stage.scenario)
            yield _problem(loaded, (*key, "scenario"), found, f"one of: {known}")
        if name not in loaded.protocol.stages:
            wanted = f"one of: {', '.join(loaded.protocol.stages)}"
            yield _problem(loaded, key, "a stage the protocol does not have", wanted)
        yield from _parameter_files(loaded, name)


def _parameter_files(loaded: LoadedExperiment, name: StageName) -> Iterator[Problem]:
    stage = loaded.experiment.stages[name]
    key: KeyPath = ("stages", name, "parameters")
    if stage.members is not None and "member" not in placeholder_names(stage.parameters):
        yield _problem(
            loaded,
            key,
            f"{stage.parameters!r} for {stage.members} members",
            "a file for each member",
            'For example "params/posterior_{member:03d}.yaml".',
        )
        return
    missing: dict[int | None, Path] = {}
    paths: set[Path] = set()
    for simulation in loaded.experiment.simulations:
        for member in stage.member_numbers:
            context = {
                "model": loaded.experiment.model.name,
                "version": loaded.experiment.model.version,
                "simulation": simulation.name,
                "stage": name,
                "scenario": stage.scenario,
                "member": member,
            }
            try:
                path = loaded.resolve(expand(stage.parameters, context, quote=False))
            except UsageError as error:
                yield from _at(loaded, key, error)
                return
            paths.add(path)
            if not path.is_file():
                missing.setdefault(member, path)
    if missing:
        first = next(iter(missing.values()))
        members = [m for m in missing if m is not None]
        found = f"no file {first}"
        if members:
            found = f"no file for member {number_ranges(members)}: {first}"
        wanted = f"each of {len(paths)} parameter files" if len(paths) > 1 else "a parameter file"
        yield _problem(loaded, key, found, wanted)


def _phases(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Years without gaps, restarts handed on, delivered years run exactly once."""
    run = loaded.experiment.run
    names = [simulation.name for simulation in loaded.experiment.simulations]
    for number, phase in enumerate(run.phases):
        for unknown in sorted(set(phase.simulations or ()).difference(names)):
            key: KeyPath = ("run", "phases", number, "simulations")
            yield _problem(loaded, key, repr(unknown), f"one of: {', '.join(names)}")
    for simulation in loaded.experiment.simulations:
        phases = _phases_of(loaded, simulation)
        if run.phases[-1] not in phases:
            key = ("run", "phases", len(run.phases) - 1, "simulations")
            remedy = "Its last years are what is delivered."
            yield _problem(loaded, key, f"no {simulation.name}", "all simulations", remedy)
            continue
        yield from _consecutive(loaded, simulation, phases)
        yield from _restarts(loaded, simulation)
        first, last = loaded.experiment.delivered_years
        covered = _years_run_once(phases)
        if covered is None or first < covered:
            found = f"{loaded.experiment.output.years} ({first}-{last})"
            wanted = (
                f"years that one phase after the other runs once: {covered}-{last}"
                if covered is not None
                else f"a last phase with cycles: 1, not {run.phases[-1].cycles}"
            )
            yield _problem(loaded, ("output", "years"), found, wanted)


def _consecutive(
    loaded: LoadedExperiment, simulation: Simulation, phases: Sequence[Phase]
) -> Iterator[Problem]:
    for before, after in pairwise(phases):
        due = before.years[1] + 1
        steady = all(
            phase_forcing(part, simulation, loaded.fixed_forcing).steady for part in before.parts()
        )
        # Model years of a spin-up are labels, so the phase after it may start anywhere before.
        if after.years[0] == due or (after.years[0] < due and steady):
            continue
        number = loaded.experiment.run.phases.index(after)
        yield _problem(
            loaded,
            ("run", "phases", number, "years"),
            f"{after.name} from {after.years[0]} after {before.name} to {before.years[1]}",
            f"{due}, the next year",
            "Only after a spin-up (recycled climate, nothing yearly) may years go back.",
        )


def _restarts(loaded: LoadedExperiment, simulation: Simulation) -> Iterator[Problem]:
    """Whatever a segment reads was left by one before it; only said so does one start from zero."""
    run = loaded.experiment.run
    links = chain(run, simulation.name)
    silent = [
        link for link in links[1:] if not link.restart_in and link.segment.part.restart_in is None
    ]
    if silent:
        yield _problem(
            loaded,
            ("run", "restart"),
            f"nothing, but {len(links)} segments that follow each other",
            "the names of the restart files, e.g. [rsFile.nc]",
            "The command leaves each in restart_out/ and finds those of the segment before in"
            " restart_in/.",
        )
    told = set()
    for link in links:
        segment = link.segment
        number = [phase.name for phase in run.phases].index(segment.phase)
        key: KeyPath = ("run", "phases", number)
        if segment.inner is not None:
            inner = [step.name for step in run.phases[number].steps].index(segment.inner)
            if run.phases[number].steps[inner].restart_in is not None:
                key = (*key, "steps", inner)
        for name, source in link.missing:
            if (key, name) in told:
                continue
            told.add((key, name))
            known = sorted({text for other in links for text in other.restart_out})
            phases = [phase.name for phase in run.phases]
            if source != "latest" and source not in phases:
                found, wanted = repr(source), f"latest or one of: {', '.join(phases)}"
            else:
                place = "no segment before" if source == "latest" else f"no earlier {source}"
                found = f"{name}, which {place} leaves in {simulation.name}"
                wanted = f"one of the files that are left: {', '.join(known)}"
            yield _problem(loaded, (*key, "restart_in"), found, wanted)


def _years_run_once(phases: Sequence[Phase]) -> int | None:
    """First of the consecutive years up to the end that are simulated once; None if none is."""
    first: int | None = None
    for phase in reversed(phases):
        frozen = phase.n_years != phase.years[1] - phase.years[0] + 1
        if phase.cycles > 1 or frozen or (first is not None and phase.years[1] != first - 1):
            break
        first = phase.years[0]
    return first


@dataclass(frozen=True)
class _Use:
    """One kind of run task: values of its placeholders, and the texts they go into with the keys
    these come from: the command, and for each target its template."""

    context: Mapping[str, Any]
    command: tuple[KeyPath, str]
    files: Mapping[str, tuple[KeyPath, str]]


def _uses(loaded: LoadedExperiment) -> Iterator[_Use]:
    """Each kind of run task once, with values as they will be."""
    experiment = loaded.experiment
    run, tiles = experiment.run, experiment.run.tiles
    inputs = {name: str(loaded.resolve(text)) for name, text in run.inputs.items()}
    executables = {name: str(loaded.resolve(text)) for name, text in run.executables.items()}
    for simulation in experiment.simulations:
        for link in _first_links(loaded, simulation):
            segment, part = link.segment, link.segment.part
            forcing = phase_forcing(part, simulation, loaded.fixed_forcing)
            climate = forcing.climate
            recycled = isinstance(climate, Recycle)
            years = climate.recycle if isinstance(climate, Recycle) else part.years
            command, files = _texts(loaded, segment)
            for name, stage in experiment.stages.items():
                context = sample_context(
                    model=experiment.model.name,
                    version=experiment.model.version,
                    simulation=simulation.name,
                    stage=name,
                    scenario=stage.scenario,
                    member=stage.member_numbers[0],
                    tile=None if tiles is None else 1,
                    tiles=None if tiles is None else tiles.count,
                    phase=segment.phase,
                    step=segment.inner,
                    first_year=part.years[0],
                    last_year=part.years[1],
                    n_years=part.n_years,
                    climate="recycle" if recycled else "actual",
                    climate_first_year=years[0],
                    climate_last_year=years[1],
                    co2=forcing.co2,
                    luc=forcing.luc,
                    ndep=forcing.ndep,
                    first_segment=not link.restart_in,
                    write_output=part.years[1] >= experiment.delivered_years[0],
                    inputs=inputs,
                    executables=executables,
                    options={**run.options, **part.options},
                    calendar=run.calendar,
                )
                yield _Use(context, command, files)


def _first_links(loaded: LoadedExperiment, simulation: Simulation) -> list[Link]:
    """The first segment of each phase and inner step of a simulation."""
    found: dict[tuple[str, str | None], Link] = {}
    for link in chain(loaded.experiment.run, simulation.name):
        found.setdefault((link.segment.phase, link.segment.inner), link)
    return list(found.values())


def _texts(
    loaded: LoadedExperiment, segment: Segment
) -> tuple[tuple[KeyPath, str], dict[str, tuple[KeyPath, str]]]:
    """Command and templates of a segment, each with the key of the overlay that says it."""
    run = loaded.experiment.run
    number = [phase.name for phase in run.phases].index(segment.phase)
    phase = run.phases[number]
    layers: list[tuple[KeyPath, Run | Overlay]] = [
        (("run",), run), (("run", "phases", number), phase),
    ]  # fmt: skip
    for i, step in enumerate(phase.steps):
        if step.name == segment.inner:
            layers.append((("run", "phases", number, "steps", i), step))
    command: tuple[KeyPath, str] = (("run", "command"), run.command)
    files: dict[str, tuple[KeyPath, str]] = {}
    for key, layer in layers:
        if layer.command is not None:
            command = ((*key, "command"), layer.command)
        files.update({t: ((*key, "files", t), text) for t, text in layer.files.items()})
    return command, files


def _placeholders(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Every placeholder of the command, targets, outputs and merge is known and has a value."""
    run = loaded.experiment.run
    for use in _uses(loaded):
        yield from _expanded(loaded, *use.command, use.context)
        for target, (key, _) in use.files.items():
            yield from _expanded(loaded, key, target, use.context)
    outputs = {**dict.fromkeys(OUTPUT_NAMES, "x"), "year": 2001, "first_year": 1, "last_year": 2}
    for frequency, text in run.outputs.items():
        yield from _expanded(loaded, ("run", "outputs", frequency), text, outputs)
    if run.tiles is not None:
        for use in _uses(loaded):
            merge: dict[str, Any] = {
                name: use.context[name] for name in MERGE_NAMES if name in use.context
            }
            merge |= {"inputs": ["a", "b"], "output": "c"}
            yield from _expanded(loaded, ("run", "tiles", "merge"), run.tiles.merge, merge)
    yield from _distinctions(loaded)


def _expanded(
    loaded: LoadedExperiment, key: KeyPath, text: str, context: Mapping[str, Any]
) -> Iterator[Problem]:
    try:
        expand(text, context, quote=True)
    except UsageError as error:
        yield from _at(loaded, key, error)


def _distinctions(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Tasks that differ must tell the model so: else all tiles, or prior and posterior, are one."""
    run = loaded.experiment.run
    n_sets = sum(len(stage.member_numbers) for stage in loaded.experiment.stages.values())
    remedy = "Use it in run.command or in a template of run.files."
    for use in _uses(loaded):
        used = _names_used(loaded, use)
        if used is None:
            # Reported already, and it may be the one that makes the difference.
            return
        if run.tiles is not None and run.tiles.count > 1 and "tile" not in used:
            yield _problem(
                loaded,
                ("run", "tiles"),
                f"{run.tiles.count} tiles, but no command or template that uses {{tile}}",
                "a run that knows which tile it is",
                remedy,
            )
        if n_sets > 1 and not used & {"parameters", "stage", "member"}:
            yield _problem(
                loaded,
                use.command[0],
                f"{n_sets} parameter files, but no command or template that uses {{parameters}}",
                "runs that differ in their parameters",
                remedy,
            )


def _names_used(loaded: LoadedExperiment, use: _Use) -> set[str] | None:
    """Placeholders of command, targets and templates; None where a template is not there."""
    used = set(placeholder_names(use.command[1]))
    for target, (_, template) in use.files.items():
        path = loaded.resolve(template)
        if not path.is_file():
            return None
        used |= placeholder_names(target)
        used |= template_names(path.read_text(encoding="utf-8", errors="replace"))
    return used


def _files(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Templates exist and render for every kind of task; executables exist."""
    for name, text in loaded.experiment.run.executables.items():
        path = loaded.resolve(text)
        if not path.is_file():
            key: KeyPath = ("run", "executables", name)
            yield _problem(loaded, key, f"no file {path}", "the file that is run")
    texts: dict[Path, str | None] = {}
    for use in _uses(loaded):
        for key, template in use.files.values():
            path = loaded.resolve(template)
            if path not in texts:
                texts[path] = None
                if not path.is_file():
                    yield _problem(loaded, key, f"no file {path}", "a jinja2 template")
                    continue
                try:
                    texts[path] = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    found = f"text that is not UTF-8 in {path}"
                    yield _problem(loaded, key, found, "a jinja2 template")
            content = texts[path]
            if content is None:
                continue
            try:
                render_template(content, use.context, where=str(path))
            except UsageError as error:
                yield from error.problems


def _inputs(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Input files exist for every year they are needed for; text tables cover their years."""
    listings: dict[str, list[str]] = {}
    for name, text in loaded.experiment.run.inputs.items():
        key: KeyPath = ("run", "inputs", name)
        needed = _needed_years(loaded, name)
        seen: set[str] = set()
        for context in _input_contexts(loaded):
            try:
                pattern = expand(text, context, quote=False)
            except UsageError as error:
                yield from _at(loaded, key, error)
                break
            if pattern in seen:
                continue
            seen.add(pattern)
            yield from _input_files(loaded, key, pattern, needed, listings)


# What the model is given to fill in, and what is looked for on the disk.
_YEAR, _VAR = "{year}", "{var}"


def _input_contexts(loaded: LoadedExperiment) -> Iterator[dict[str, Any]]:
    experiment = loaded.experiment
    for simulation in experiment.simulations:
        for name, stage in experiment.stages.items():
            for member in stage.member_numbers:
                values = {
                    "model": experiment.model.name,
                    "version": experiment.model.version,
                    "simulation": simulation.name,
                    "stage": name,
                    "scenario": stage.scenario,
                    "member": member,
                    "year": _YEAR,
                    "var": _VAR,
                }
                yield {known: values[known] for known in (*PARAMETER_NAMES, *INPUT_NAMES)}


def _needed_years(loaded: LoadedExperiment, name: str) -> list[int]:
    """Years an input is read for: co2, luc, ndep by name; anything else goes with the climate."""
    years: set[int] = set()
    for _, phase, forcing in _runs(loaded):
        value: Any = getattr(forcing, name) if name in ("co2", "luc", "ndep") else forcing.climate
        if isinstance(value, int):
            years.add(value)
        elif isinstance(value, Recycle):
            years.update(range(value.recycle[0], value.recycle[1] + 1))
        elif value is not None:
            years.update(range(phase.years[0], phase.years[1] + 1))
    return sorted(years)


def _input_files(
    loaded: LoadedExperiment,
    key: KeyPath,
    pattern: str,
    needed: Sequence[int],
    listings: dict[str, list[str]],
) -> Iterator[Problem]:
    shown = str(loaded.resolve(pattern))
    if _YEAR in pattern:
        absent = [y for y in needed if not _matches(shown.replace(_YEAR, str(y)), listings)]
        if absent:
            yield _problem(
                loaded,
                key,
                f"no file for {number_ranges(absent)}: {shown}",
                f"a file for each of the years {number_ranges(needed)} that the phases use",
                _remedy(pattern),
            )
        return
    if not _matches(shown, listings):
        yield _problem(loaded, key, f"no file {shown}", "", _remedy(pattern))
        return
    path = Path(shown)
    if key[-1] not in ("co2", "luc", "ndep") or not path.is_file():
        return
    try:
        table = read_table(path)
    except UsageError as error:
        yield from error.problems
        return
    if table is None:
        return
    bad = [y for y in needed if y in table and not (table[y] >= 0 and math.isfinite(table[y]))]
    absent = [y for y in needed if y not in table]
    if absent:
        has = number_ranges(sorted(table)) if table else "no year"
        remedy = "A year that is held comes from run.phases, run.fixed or the protocol."
        yield _problem(
            loaded,
            key,
            f"no value for {number_ranges(absent)} in {path} (it has {has})",
            f"all years that the phases use: {number_ranges(needed)}",
            remedy,
        )
    if bad:
        found = f"{table[bad[0]]:g} for {number_ranges(bad)} in {path}"
        yield _problem(loaded, key, found, "values of 0 or more")


def _remedy(pattern: str) -> str:
    return "Environment variables are not expanded here." if "$" in pattern else ""


def _matches(text: str, listings: dict[str, list[str]]) -> bool:
    """Whether a path, in which ``{var}`` stands for anything, names something that exists.

    ``listings`` keeps folders that were read: forcing folders are large and on slow file systems.
    """
    if _VAR not in text:
        return Path(text).exists()
    folder, _, name = text.rpartition("/")
    wanted = glob.escape(name).replace(_VAR, "*")
    if _VAR in folder:
        fixed, _, rest = folder.partition(_VAR)
        base, _, begin = fixed.rpartition("/")
        pattern = f"{glob.escape(begin)}*{glob.escape(rest).replace(_VAR, '*')}/{wanted}"
        return any(Path(base or "/").glob(pattern))
    if folder not in listings:
        path = Path(folder)
        listings[folder] = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    return any(fnmatchcase(entry, wanted) for entry in listings[folder])


def step_kinds(loaded: LoadedExperiment) -> list[StepKind]:
    """The kinds of steps this experiment will have."""
    benchmark = loaded.experiment.benchmark
    kinds: list[StepKind] = ["run", "harmonize", "regrid", "export"]
    if loaded.experiment.run.tiles is not None:
        kinds.append("merge")
    if benchmark is not None and benchmark.products is not None:
        kinds += ["benchmark", "report"]
    return kinds


def _site(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Queues exist, limits are kept, and what the site requires of the group is there."""
    site = loaded.site
    lacking: dict[str, list[str]] = {}
    for kind in step_kinds(loaded):
        asked = loaded.resources(kind)
        given = (*asked.directives, *site.directives)
        for need in site.requires:
            has = (
                getattr(asked, need) is not None
                if need in ("account", "queue")
                else any(text.startswith(need) for text in given)
            )
            if not has:
                lacking.setdefault(need, []).append(kind)
        yield from _limits(loaded, kind)
    everything = len(step_kinds(loaded))
    for need, kinds in lacking.items():
        name = need if need in ("account", "queue") else "directives"
        block = "default" if len(kinds) == everything else kinds[0]
        wanted = site.requires[need]
        found = "nothing" if name != "directives" else f"no directive {need!r}"
        steps = "" if block == "default" else f"It is missing for {', '.join(kinds)}."
        yield _problem(
            loaded,
            ("resources", block, name),
            f"{found}, which {site.name} needs",
            wanted,
            steps,
        )


def _limits(loaded: LoadedExperiment, kind: StepKind) -> Iterator[Problem]:
    site, asked = loaded.site, loaded.resources(kind)
    if asked.queue is None or not site.queues:
        return

    def problem(name: str, found: str, wanted: str, remedy: str = "") -> Problem:
        return _problem(loaded, ("resources", kind, name), found, wanted, remedy)

    if asked.queue not in site.queues:
        remedy = f"{site.path} lists them."
        yield problem("queue", repr(asked.queue), f"one of: {', '.join(site.queues)}", remedy)
        return
    queue, label = site.queues[asked.queue], f"of queue {asked.queue} on {site.name}"
    cpus = asked.tasks * asked.cpus
    limit = queue.walltime_limit_s(cpus)
    if limit is not None and asked.walltime_s > limit:
        found, wanted = walltime_text(asked.walltime_s), f"at most {walltime_text(limit)}"
        remedy = "Set a smaller segment_years in the phases." if kind == "run" else ""
        sized = f", the limit {label}" + (
            f" for {cpus} cores" if queue.max_walltime_by_cpus else ""
        )
        yield problem("walltime", found, wanted + sized, remedy)
    if queue.max_walltime_by_cpus and cpus > queue.max_walltime_by_cpus[-1].cpus:
        largest = queue.max_walltime_by_cpus[-1].cpus
        yield problem("tasks", f"{cpus} cores", f"at most {largest}, the limit {label}")
    if queue.max_nodes is not None and asked.nodes > queue.max_nodes:
        yield problem("nodes", str(asked.nodes), f"at most {queue.max_nodes}, the limit {label}")
    if queue.max_memory_bytes is not None and asked.memory_bytes > queue.max_memory_bytes:
        found, most = _gib(asked.memory_bytes), _gib(queue.max_memory_bytes)
        yield problem("memory", f"{found} per node", f"at most {most}, the limit {label}")
    per_node = -(-asked.tasks // asked.nodes) * asked.cpus
    if queue.max_cpus is not None and per_node > queue.max_cpus:
        found = f"{per_node} cores per node (tasks x cpus / nodes)"
        yield problem("tasks", found, f"at most {queue.max_cpus}, the limit {label}")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**3:g}GB"


def _workers(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Only what runs in this package can spread over further jobs."""
    for kind in step_kinds(loaded):
        workers = loaded.resources(kind).workers
        if workers > 1 and kind not in ("harmonize", "regrid", "benchmark"):
            key: KeyPath = ("resources", kind, "workers")
            wanted = "1: only harmonize, regrid and benchmark have workers"
            yield _problem(loaded, key, str(workers), wanted)


def _retries(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Shorter pieces are for running out of time, and their output must not be named by them."""
    run = loaded.experiment.run
    for name, rule in loaded.experiment.retry.items():
        if rule.segment_years is None:
            continue
        key: KeyPath = ("retry", name, "segment_years")
        if name != "walltime":
            yield _problem(loaded, key, str(rule.segment_years), "it under retry.walltime alone")
        for frequency, text in run.outputs.items():
            used = placeholder_names(text)
            if "year" in used and not used & {"first_year", "last_year"}:
                continue
            yield _problem(
                loaded,
                key,
                f"run.outputs.{frequency}: {text!r}, whose name is that of a whole segment",
                "names by {year}, the same however a segment is cut",
            )


def _output(loaded: LoadedExperiment) -> Iterator[Problem]:
    """What is delivered is what the protocol takes, and the model writes it."""
    output, protocol = loaded.experiment.output, loaded.protocol
    if output.grid not in protocol.grids:
        wanted = f"one of: {', '.join(protocol.grids)}"
        yield _problem(loaded, ("output", "grid"), repr(output.grid), wanted)
    written = loaded.experiment.run.outputs
    for frequency in output.frequencies:
        if frequency not in protocol.frequencies:
            wanted = f"one of: {', '.join(protocol.frequencies)}"
            yield _problem(loaded, ("output", "frequencies"), repr(frequency), wanted)
        # Annual means can be made from monthly output, monthly ones from nothing else.
        if frequency not in written and "mon" not in written:
            wanted = 'mon: "..." in run.outputs'
            yield _problem(loaded, ("output", "frequencies"), frequency, wanted)


def _variables(loaded: LoadedExperiment) -> Iterator[Problem]:
    """The variable map loads, its units convert, and every requested variable is accounted for."""
    from callmip_global.config.site import config_names
    from callmip_global.config.variable_map import load_variable_map

    path = loaded.resolve_variables()
    if not path.is_file():
        names = ", ".join(f"models/{name}.yaml" for name in config_names("models"))
        yield _problem(
            loaded,
            ("variables",),
            f"no file {path}",
            f"a file of yours or one of: {names}",
            "models/template.yaml is made to be copied.",
        )
        return
    try:
        load_variable_map(path, requested=loaded.protocol.variables)
    except CallmipError as error:
        yield from _at(loaded, ("variables",), error)


def _products(loaded: LoadedExperiment) -> Iterator[Problem]:
    """The products file loads and the files it names are there."""
    benchmark = loaded.experiment.benchmark
    if benchmark is None or benchmark.products is None:
        return
    from callmip_global.config.products import load_products

    key: KeyPath = ("benchmark", "products")
    path = loaded.resolve(benchmark.products)
    if not path.is_file():
        yield _problem(loaded, key, f"no file {path}", "a products file")
        return
    try:
        load_products(path, require_files=True)
    except CallmipError as error:
        yield from _at(loaded, key, error)


def _regions(loaded: LoadedExperiment) -> Iterator[Problem]:
    """Regions are known, and the files of those that are masks can be used."""
    benchmark = loaded.experiment.benchmark
    if benchmark is None or not benchmark.regions:
        return
    from callmip_global.benchmark.regions import seen_from, select_regions

    key: KeyPath = ("benchmark", "regions")
    if benchmark.products is None:
        yield _problem(loaded, key, "regions, but no products", "benchmark.products")
        return
    try:
        select_regions([seen_from(loaded.base_dir, text)[0] for text in benchmark.regions])
    except CallmipError as error:
        for problem in error.problems:
            if problem.where == "regions":
                yield replace(problem, where=loaded.sources.where(key), key="benchmark.regions")
            else:
                yield problem


def number_ranges(numbers: Iterable[int]) -> str:
    """``1, 3-5, 9``: ascending numbers with runs joined; long lists are cut after four parts."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in parts]
    if len(shown) > 4:
        shown = [*shown[:4], f"and {len(shown) - 4} more"]
    return ", ".join(shown)
