"""A first experiment for a model and a site, from config/examples/.

An example is a folder: experiment.yaml, and the templates it names. What only a group can know is
SET_... in it (see `callmip_global.config.unset`). A model without an example begins with
minimal.yaml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from callmip_global.config.schema import ModelInfo
from callmip_global.config.site import Site, config_names, config_path, load_site
from callmip_global.config.yaml_source import Located, Mark, validate_model
from callmip_global.data import data_path
from callmip_global.errors import Problem, UsageError
from callmip_global.files import write_atomic

_ALSO_KNOWN_AS = {"clm": "ctsm", "cable": "cable-pop"}


@dataclass(frozen=True)
class FirstExperiment:
    """What `init` writes: the experiment file, and by relative path the files that come with it."""

    text: str
    site: Site
    files: Mapping[str, str] = field(default_factory=dict)


def example_names() -> list[str]:
    """Models that have an example of their own, as its folder is named, sorted."""
    folders = data_path("config", "examples").glob("*/experiment.yaml")
    return sorted(path.parent.name for path in folders)


def first_experiment(model: str, site: str, *, base_dir: Path) -> FirstExperiment:
    """A commented experiment for a model and a site, from the model's example if it has one.

    UsageError for an unknown site, or a name that cannot be part of a file name.
    """
    # The schema's own rule for names, and its own words.
    own = {"name": model, "version": "v1"}
    validate_model(ModelInfo, Located(own, Path("init"), {(): Mark("init MODEL")}))
    try:
        site_file = load_site(config_path(site, "sites", base_dir))[0]
    except UsageError as error:
        problems = [replace(p, where=p.where or "init SITE") for p in error.problems]
        raise UsageError(problems) from None
    key = _ALSO_KNOWN_AS.get(model.lower(), model.lower())
    named = site if re.fullmatch(r"[\w./-]+", site) else json.dumps(site)
    changes = {
        r"^model: \{name: [^,]*, version: [^,]*,": f"model: {{name: {model}, version: v1,",
        r"^site: .*$": f"site: {named}",
    }
    if key not in example_names():
        if key in config_names("models"):
            changes[r"^variables: .*$"] = f"variables: models/{key}.yaml"
        return FirstExperiment(_changed(_text("minimal.yaml"), changes), site_file)
    text = _text(key, "experiment.yaml")
    written_for = re.search(r"^site: (\S+)$", text, flags=re.MULTILINE)
    if written_for is None or written_for[1] != named:
        # What another site calls its queues means nothing here.
        changes[r", queue: [^,}]+(?=[,}])"] = ""
    changes[r"^  default: \{.*\}$"] = _payer(site_file)
    folder = data_path("config", "examples", key)
    files = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("templates/*"))
    }
    variables = data_path("config", "models", f"{key}.yaml").read_text(encoding="utf-8")
    if "SET_" in variables:
        files["variables.yaml"] = variables
        changes[r"^variables: .*$"] = "variables: variables.yaml"
    return FirstExperiment(_changed(text, changes), site_file, files)


def _text(*parts: str) -> str:
    return data_path("config", "examples", *parts).read_text(encoding="utf-8")


def _changed(text: str, changes: Mapping[str, str]) -> str:
    for pattern, new in changes.items():
        text = re.sub(pattern, new.replace("\\", r"\\"), text, flags=re.MULTILINE)
    return text


def _payer(site: Site) -> str:
    """The line of ``resources`` that says what the site asks of every group."""
    values: dict[str, object] = {}
    directives = []
    for need in site.requires:
        if need in ("account", "queue"):
            values[need] = f"SET_{need.upper()}"
        else:
            directives.append(f"{need}{'' if need.endswith('=') else ' '}SET_DIRECTIVE")
    if directives:
        values["directives"] = directives
    if not values:
        return f"  # {site.name} asks for no account, queue or directives."
    items = ", ".join(f"{name}: {json.dumps(value)}" for name, value in values.items())
    return f"  default: {{{items}}}"


def write_experiment(model: str, site: str, out: Path) -> list[str]:
    """Write the file and what comes with it; returns what to edit next, one line each.

    Never overwrites (UsageError).
    """
    folder = out.absolute().parent
    _refuse_existing([out])
    if not folder.is_dir():
        raise UsageError(Problem(str(out), "", "no such folder"))
    first = first_experiment(model, site, base_dir=folder)
    _refuse_existing([out.parent / name for name in first.files])
    for name, text in first.files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, text)
    write_atomic(out.absolute(), first.text)
    return [*_next_steps(first), f"then: callmip-global validate {out}"]


def _refuse_existing(paths: Iterable[Path]) -> None:
    remedy = "Choose another name or folder with --out, or move it away."
    there = [path for path in paths if path.exists()]
    if there:
        found = "a file that is already there"
        raise UsageError([Problem(str(path), "", found, remedy=remedy) for path in there])


def _next_steps(first: FirstExperiment) -> list[str]:
    steps = ["stages: the parameter files, and the calibration scenario of Posterior"]
    if first.files:
        names = ", ".join(dict.fromkeys(name.partition("/")[0] for name in first.files))
        steps.insert(0, f"every SET_..., here and in {names}: what only your group can say")
    else:
        steps.insert(0, "model: version, institution, contact")
        parts = "environment, files, inputs, command, restart, outputs"
        steps.append(f"run: {parts}, and the years of the phases")
        if re.search(r"^variables: models/template", first.text, flags=re.MULTILINE):
            template = data_path("config", "models", "template.yaml")
            steps.append(f"variables: copy {template}, fill it in, and name the copy here")
    steps.append("resources.run: what one job of the model needs")
    for need, meaning in first.site.requires.items():
        key = need if need in ("account", "queue") else "directives"
        steps.append(f"resources.default.{key}: {meaning} ({first.site.name} needs it)")
    return steps
