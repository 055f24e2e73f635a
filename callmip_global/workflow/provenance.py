"""What a run was made of: a manifest written at submit, and whether it could be made again.

``RUN/provenance.json`` has every file that goes into the results with its hash, the state of the
repositories that the experiment and the executables are in, the environment, and for each step a
digest of the keys of its tasks: as long as that is the same, the step gives the same result.
Hashes are those of `callmip_global.files.file_hash`: a file above 64 MiB by its size and its ends.
A manifest that is replaced is kept as ``provenance-<digest>.json``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from callmip_global import __version__
from callmip_global.config.graph import build_plan
from callmip_global.config.plan import ENGINE_STEPS, Plan, Step, run_context
from callmip_global.config.validate import load_valid_experiment
from callmip_global.data import data_path
from callmip_global.errors import CallmipError, Problem, UsageError
from callmip_global.files import canonical_json, file_hash, read_json, text_hash, write_json
from callmip_global.workflow.journal import now
from callmip_global.workflow.prune import pruned_files
from callmip_global.workflow.rundir import RunDir

MANIFEST = "provenance.json"
FORMAT = 1

_VARIABLES = ("LOADEDMODULES", "CONDA_DEFAULT_ENV", "VIRTUAL_ENV")
# Packages whose version may show in the last digits of a result.
_COMPUTE = ("cftime", "dask", "netCDF4", "numba", "numpy", "pint", "xarray", "zarr")
_VERSION_COMMAND = {"slurm": ("sbatch", "--version"), "pbs": ("qstat", "--version")}
_COMMAND_S = 20.0
_GONE = "not there"
_OWN_VERSION = "version of callmip-global"


@dataclass(frozen=True)
class Difference:
    """One thing that is not what it was. ``steps``: those whose results it changes; where there are
    none it is told, and changes nothing."""

    what: str
    recorded: str
    now: str
    steps: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.what}: recorded {_short(self.recorded)}, now {_short(self.now)}"
        return f"{text}; changes {_names(self.steps)}" if self.steps else text


def write_provenance(run: RunDir, plan: Plan) -> None:
    """Write the manifest of a plan that is about to be submitted; the one before is kept.

    To be called with the run lock held.
    """
    manifest = manifest_of(plan)
    path = run.path / MANIFEST
    if path.exists():
        before = read_json(path)
        if _digest(before) == _digest(manifest):
            return
        kept = run.path / f"provenance-{_digest(before)[:12]}.json"
        if not kept.exists():
            write_json(kept, before)
    write_json(path, manifest)


def manifest_of(plan: Plan) -> dict[str, Any]:
    """What a plan is made of, as plain values. Reads no file that planning has not read, but the
    experiment itself; asks git and the scheduler for their word."""
    settings = plan.settings
    known: dict[str, dict[str, Any]] = {}
    executables = {
        name: {**_file(path, plan.inputs[path]), "repository": repository(Path(path).parent, known)}
        for name, path in settings["executables"].items()
    }
    programs = set(settings["executables"].values())
    experiment = Path(plan.experiment)
    templates = settings["templates"]
    return {
        "format": FORMAT,
        "time": now(),
        "name": plan.name,
        "experiment": _file(plan.experiment, _hash_now(plan.experiment)),
        "overrides": list(settings["overrides"]),
        "repository": repository(experiment.parent, known),
        "executables": executables,
        "inputs": {p: _file(p, digest) for p, digest in plan.inputs.items() if p not in programs},
        "templates": {p: _file(p, text_hash(text)) for p, text in templates.items()},
        "steps": step_digests(plan),
        "environment": environment(plan),
    }


def step_digests(plan: Plan) -> dict[str, str]:
    """For each step a digest of the keys of its tasks: of all that determines its results."""
    return {
        step.name: text_hash("\n".join(sorted(task.key for task in step.tasks)))
        for step in plan.steps
    }


def environment(plan: Plan) -> dict[str, Any]:
    """Software and machine that a run is submitted with."""
    site = plan.settings["site"]
    return {
        "text": plan.settings["environment"],
        "shell_setup": site["shell_setup"],
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "python": platform.python_version(),
        "callmip_global": __version__,
        "packages": _packages(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "site": site["name"],
        "scheduler": _scheduler_version(site["scheduler"]),
    }


def read_provenance(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run directory; UsageError where there is none, or one of another format."""
    path = run_dir / MANIFEST
    try:
        manifest: dict[str, Any] = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            Problem(
                str(run_dir),
                found=f"no {MANIFEST}",
                wanted="a run directory with its manifest",
                remedy="`callmip-global submit` writes it.",
            )
        ) from None
    if manifest.get("format") != FORMAT:
        found = repr(manifest.get("format"))
        raise UsageError(Problem(str(path), "format", found, str(FORMAT)))
    return manifest


def reproduce(run_dir: Path) -> list[Difference]:
    """Everything in the manifest of a run that is not what it was; first what changes results.

    The experiment is planned again, and every file hashed again. Raises UsageError for a folder
    without a manifest.
    """
    run = RunDir(run_dir.resolve())
    manifest, plan = read_provenance(run.path), run.plan()
    changed, trouble = _changed_steps(manifest)
    files = list(_files(manifest, plan, changed))
    software = list(_software(manifest["environment"], plan))
    # Of all software only our own version is part of a key.
    in_keys = [*files, *(d for d in software if d.what == _OWN_VERSION)]
    told = {step for difference in in_keys for step in difference.steps}
    found = [*files, *software]
    recorded, digest = manifest["experiment"]["sha256"], _hash_now(plan.experiment)
    if changed is None:
        found.append(Difference(plan.experiment, "a valid experiment", trouble, _all(plan)))
    elif digest != recorded:
        found.append(Difference(plan.experiment, recorded, digest, _ordered(plan, changed - told)))
    elif not changed <= told:
        what = f"settings that {plan.experiment} takes over"
        found.append(Difference(what, "others", "these", _ordered(plan, changed - told)))
    found += _circumstances(manifest, plan)
    return sorted(found, key=lambda difference: not difference.steps)


def check_reproduces(plan: Plan, manifest: Mapping[str, Any]) -> list[Problem]:
    """Why a plan would not give the results that another run's manifest stands for: nothing if it
    would. Where files are does not matter, only what is in them."""
    steps = step_digests(plan)
    recorded = manifest["steps"]
    changed = {name for name in {*steps, *recorded} if steps.get(name) != recorded.get(name)}
    problems = [
        Problem(d.what, found=_short(d.now), wanted=f"{_short(d.recorded)} as recorded")
        for d in _software(manifest["environment"], plan)
        if d.steps
    ]
    if not changed:
        return problems
    fresh = manifest_of(plan)
    for kind in ("executables", "inputs", "templates"):
        old, new = manifest[kind], fresh[kind]
        same = {entry["sha256"] for entry in old.values()}
        mine = {entry["sha256"] for entry in new.values()}
        for name, entry in new.items():
            if entry["sha256"] not in same:
                wanted = _short(old[name]["sha256"]) if name in old else "a file of the record"
                problems.append(Problem(entry["path"], kind, _short(entry["sha256"]), wanted))
        for name, entry in old.items():
            if name not in new and entry["sha256"] not in mine:
                problems.append(Problem(name, kind, "no such file", _short(entry["sha256"])))
    ordered = [*(s for s in steps if s in changed), *(s for s in recorded if s not in steps)]
    problems.append(
        Problem(
            plan.experiment,
            found=f"other keys for {_names(ordered)}",
            wanted="those of the recorded run",
            remedy="Undo the change, or submit without --reproduce.",
        )
    )
    return problems


def check_results(run_dir: Path) -> list[Difference]:
    """Published outputs and restart files that are not on disk as their success markers say.

    Files above 64 MiB are compared by size and ends. What was pruned is on record and no damage.
    """
    run = RunDir(run_dir.resolve())
    plan = run.plan()
    found = []
    for step, task in plan.tasks():
        ref = f"{step.name}/{task.id}"
        marker = run.marker(ref)
        if marker is None or marker["key"] != task.key:
            continue
        files = {
            **{f"{marker['attempt']}/{n}": e for n, e in marker.get("outputs", {}).items()},
            **{
                f"{marker['attempt']}/restart_out/{n}": e
                for n, e in marker.get("restarts", {}).items()
            },
        }
        gone: Mapping[str, Any] | None = None
        for name, entry in files.items():
            path = run.task_dir(ref) / name
            digest = _hash_now(str(path))
            if digest == entry["sha256"]:
                continue
            if digest == _GONE:
                gone = pruned_files(run, ref) if gone is None else gone
                if os.path.normpath(name) in gone:
                    continue
            found.append(Difference(str(path), entry["sha256"], digest, (step.name,)))
    return found


# What differs, by kind.


def _files(
    manifest: Mapping[str, Any], plan: Plan, changed: set[str] | None
) -> Iterator[Difference]:
    """Files whose content is another, with the steps that this changes."""
    for kind in ("executables", "inputs", "templates"):
        for name, entry in manifest[kind].items():
            path = entry.get("path", name)
            digest = _hash_now(path)
            if digest == entry["sha256"]:
                continue
            steps = _downstream(plan, _users(plan, kind, path))
            if changed is not None:
                steps &= changed
            what = path if kind != "executables" else f"{name} ({path})"
            yield Difference(what, entry["sha256"], digest, _ordered(plan, steps))


def _users(plan: Plan, kind: str, path: str) -> set[str]:
    """Steps that read a file themselves."""
    settings = plan.settings
    runs = [step for step in plan.steps if step.kind == "run"]
    if kind == "executables":
        return {step.name for step in runs}
    if kind == "templates":
        return {step.name for step in runs if path in step.recipe["files"].values()}
    if path in (settings["variables"], str(data_path("config", "variables.yaml"))):
        return {step.name for step in plan.steps if step.kind == "harmonize"}
    found = {step.name for step in runs if _reads(plan, step, path)}
    return found or {step.name for step in plan.steps if step.kind == "benchmark"}


def _reads(plan: Plan, step: Step, path: str) -> bool:
    seen = set()
    for task in step.tasks:
        identity = (task.simulation, task.stage, task.member)
        # What the tiles of a member read differs only where a path says {tile}.
        if identity in seen and "{tile}" not in str(plan.settings["inputs"]):
            continue
        seen.add(identity)
        context = run_context(plan, step, task)
        if path == context["parameters"] or any(
            _pattern(text).fullmatch(path) for text in context["inputs"].values()
        ):
            return True
    return False


@cache
def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text).replace(r"\{year\}", r"\d+").replace(r"\{var\}", "[^/]*")
    return re.compile(escaped)


def _changed_steps(manifest: Mapping[str, Any]) -> tuple[set[str] | None, str]:
    """Steps that would be made otherwise if the experiment were submitted now, and why that cannot
    be said (then None)."""
    experiment = Path(manifest["experiment"]["path"])
    try:
        loaded = load_valid_experiment(experiment, overrides=manifest["overrides"])
        steps = step_digests(build_plan(loaded, manifest["overrides"]))
    except CallmipError as error:
        return None, str(error.problems[0])
    recorded = manifest["steps"]
    return {n for n in {*steps, *recorded} if steps.get(n) != recorded.get(n)}, ""


def _software(recorded: Mapping[str, Any], plan: Plan) -> Iterator[Difference]:
    """Versions of what computes; the model's own are a matter of its executables."""
    engines = tuple(step.name for step in plan.steps if step.kind in ENGINE_STEPS)
    here = environment(plan)
    versions = {
        "Python": (recorded["python"], here["python"]),
        "callmip-global": (recorded["callmip_global"], here["callmip_global"]),
    }
    for name in sorted({*recorded["packages"], *here["packages"]}):
        pair = (recorded["packages"].get(name, "none"), here["packages"].get(name, "none"))
        versions[name] = pair
    for name, (old, new) in versions.items():
        if old == new:
            continue
        minor = old.rpartition(".")[0] != new.rpartition(".")[0]
        decides = name in (*_COMPUTE, "callmip-global") or (name == "Python" and minor)
        yield Difference(f"version of {name}", old, new, engines if decides else ())


def _circumstances(manifest: Mapping[str, Any], plan: Plan) -> Iterator[Difference]:
    """What is worth telling and changes no result: commits, modules, machine."""
    folders = {"the experiment": (manifest["repository"], Path(plan.experiment).parent)}
    for name, entry in manifest["executables"].items():
        folders[name] = (entry["repository"], Path(entry["path"]).parent)
    for name, (recorded, folder) in folders.items():
        old, new = _commit_text(recorded), _commit_text(repository(folder))
        if old != new:
            yield Difference(f"git commit of {name}", old, new)
    recorded, here = manifest["environment"], environment(plan)
    for name in ("platform", "host", "scheduler"):
        if recorded[name] != here[name]:
            yield Difference(name, str(recorded[name]), str(here[name]))
    for name in _VARIABLES:
        old, new = recorded["variables"].get(name, ""), here["variables"].get(name, "")
        if old != new:
            yield Difference(name, old or "not set", new or "not set")


# Small things.


def repository(
    folder: Path, known: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any] | None:
    """Root, commit and whether tracked files differ from it (None: git did not say in time), of
    the git repository that a folder is in; None if it is in none.

    ``known``: repositories looked at already, by root: on a slow disk git takes its time.
    """
    known = {} if known is None else known
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    root = _git(folder, "rev-parse", "--show-toplevel")
    if root is None:
        return None
    if root in known:
        return known[root]
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    known[root] = {
        "root": root,
        "commit": commit,
        "dirty": None if status is None else bool(status),
    }
    return known[root]


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it fails. Nothing that the repository configures is started."""
    own = {n: v for n, v in os.environ.items() if not n.startswith("GIT_")}
    safe = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    return _ask(command, {**own, **safe})


def _ask(command: list[str], variables: Mapping[str, str] | None = None) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _scheduler_version(name: str) -> str | None:
    command = _VERSION_COMMAND.get(name)
    return None if command is None else _ask(list(command))


@cache
def _packages() -> dict[str, str]:
    """Versions of the packages that callmip-global asks for."""
    try:
        required = metadata.requires("callmip-global") or []
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for text in required:
        name = re.split(r"[^\w.-]", text, maxsplit=1)[0]
        if "extra ==" not in text:
            found[name] = metadata.version(name)
    return dict(sorted(found.items()))


def _file(path: str, digest: str) -> dict[str, Any]:
    try:
        status = Path(path).stat()
    except OSError:
        return {"path": path, "bytes": None, "mtime": None, "sha256": digest}
    mtime = datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"path": path, "bytes": status.st_size, "mtime": mtime, "sha256": digest}


def _hash_now(path: str) -> str:
    try:
        return file_hash(Path(path))
    except OSError as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        return _GONE if gone else f"unreadable ({error.strerror})"


def _digest(manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest without its times: touching a file is no change."""

    def timeless(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: timeless(v) for k, v in value.items() if k not in ("time", "mtime")}

    return text_hash(canonical_json(timeless(manifest)))


def _commit_text(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "none"
    return f"{entry['commit']}{' with changes' if entry['dirty'] else ''}"


def _downstream(plan: Plan, steps: set[str]) -> set[str]:
    """These steps and all that build on them."""
    found = set(steps)
    for step in plan.steps:
        if step.name not in found and found:
            before = {ref.partition("/")[0] for task in step.tasks for ref in task.upstream}
            if before & found:
                found.add(step.name)
    return found


def _ordered(plan: Plan, steps: Iterable[str]) -> tuple[str, ...]:
    wanted = set(steps)
    known = [step.name for step in plan.steps]
    return (*(n for n in known if n in wanted), *sorted(wanted.difference(known)))


def _all(plan: Plan) -> tuple[str, ...]:
    return tuple(step.name for step in plan.steps)


def _names(steps: Iterable[str]) -> str:
    names = list(steps)
    return (
        ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
    )


def _short(text: str) -> str:
    """A hash by its first characters: enough to tell two apart."""
    digest = re.fullmatch(r"((?:ends-)?[0-9a-f]{12})[0-9a-f]{52}", text)
    return digest.group(1) if digest else text


def to_json(differences: Iterable[Difference]) -> list[dict[str, Any]]:
    """Differences for ``reproduce --json``."""
    return [asdict(difference) for difference in differences]
