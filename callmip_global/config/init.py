"""A first experiment file for a model and a site, from config/examples/."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from callmip_global.config.schema import ModelInfo
from callmip_global.config.site import Site, config_names, config_path, load_site
from callmip_global.config.yaml_source import Located, Mark, load_yaml, validate_model
from callmip_global.data import data_path
from callmip_global.errors import Problem, UsageError
from callmip_global.files import write_atomic


def experiment_text(model: str, site: str, *, base_dir: Path) -> tuple[str, Site]:
    """The text of a commented experiment file, and the site it names.

    The example of the model's own name is taken if there is one, else the minimal one. UsageError
    for an unknown site, or a name that cannot be part of a file name.
    """
    # The schema's own rule for names, and its own words.
    own = {"name": model, "version": "v1"}
    validate_model(ModelInfo, Located(own, Path("init"), {(): Mark("init MODEL")}))
    try:
        site_file = load_site(config_path(site, "sites", base_dir))[0]
    except UsageError as error:
        problems = [replace(p, where=p.where or "init SITE") for p in error.problems]
        raise UsageError(problems) from None
    name = "minimal"
    if model.lower() in _examples():
        example = load_yaml(data_path("config", "examples", f"{model.lower()}.yaml"))
        # Resources are those of a cluster: the example serves only where it was written for.
        name = model.lower() if example.value["site"] == site else name
    text = data_path("config", "examples", f"{name}.yaml").read_text(encoding="utf-8")
    quoted = site if re.fullmatch(r"[\w./-]+", site) else json.dumps(site)
    changes = {
        "model: {name: ": f"model: {{name: {model}, version: v1",
        "site: ": f"site: {quoted}",
    }
    if model.lower() in config_names("models"):
        changes["variables: "] = f"variables: models/{model.lower()}.yaml"
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        for begin, new in changes.items():
            if line.startswith(begin):
                rest = line.partition(", institution")
                lines[number] = f"{new}{rest[1]}{rest[2]}" if rest[1] else f"{new}\n"
    text = "".join(lines)
    return text, site_file


def write_experiment(model: str, site: str, out: Path) -> list[str]:
    """Write the file; returns what to edit next, one line each. Never overwrites (UsageError)."""
    if out.exists():
        remedy = "Choose another name with --out, or move it away."
        raise UsageError(Problem(str(out), "", "a file that is already there", remedy=remedy))
    if not out.absolute().parent.is_dir():
        raise UsageError(Problem(str(out), "", "no such folder"))
    text, site_file = experiment_text(model, site, base_dir=out.absolute().parent)
    write_atomic(out.absolute(), text)
    steps = [
        "model: version, institution, contact",
        "stages: the parameter files, and the calibration scenario of Posterior",
        "run: environment, files, inputs, command, restart, outputs, and the years of the phases",
    ]
    if re.search(r"^variables: models/template", text, flags=re.MULTILINE):
        template = data_path("config", "models", "template.yaml")
        steps.append(f"variables: copy {template}, fill it in, and name the copy here")
    steps.append("resources.run: what one job of the model needs")
    for need, meaning in site_file.requires.items():
        key = need if need in ("account", "queue") else "directives"
        steps.append(f"resources.default.{key}: {meaning} ({site_file.name} needs it)")
    steps.append(f"then: callmip-global validate {out}")
    return steps


def _examples() -> list[str]:
    return [name for name in config_names("examples") if name not in ("minimal", "demo")]
