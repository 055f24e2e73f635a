"""Values that a shipped example leaves to the group: ``SET_...``, refused until they are set.

The examples in config/examples state what is public about a model. What only its group can know (a
path, a project, a constant of its forcing) is written as SET_ and capitals, so that nothing runs
with a guess: in the experiment file, in the templates it names and in its variable map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callmip_global.config.yaml_source import KeyPath, Located, dotted, load_yaml
from callmip_global.errors import Problem, UsageError

if TYPE_CHECKING:
    from callmip_global.config.load import LoadedExperiment

_UNSET = re.compile(r"\bSET_[A-Z][A-Z0-9_]+")
_COMMENT = re.compile(r"\{#.*?#\}", flags=re.DOTALL)
_WANTED = "a value of yours"


def unset_values(loaded: LoadedExperiment) -> list[Problem]:
    """One problem for each place that still says SET_..., with its file and line."""
    found: dict[tuple[str, str], Problem] = {}
    for key, text in _leaves(loaded.sources.value, ()):
        for word in _UNSET.findall(text):
            problem = Problem(loaded.sources.where(key), dotted(key), word, _WANTED)
            twin = found.get((problem.where, word))
            if twin is not None and key[0] == "resources":
                # The schema's `default` was laid under every kind of step.
                problem = replace(twin, key=dotted(("resources", "default", *key[2:])))
            found[problem.where, word] = problem
    others = [*_in_templates(loaded), *_in_variable_map(loaded)]
    return [*found.values(), *others]


def unset_in(located: Located) -> list[Problem]:
    """One problem for each place of a YAML tree that still says SET_...."""
    return [
        Problem(located.where(key), dotted(key), word, _WANTED)
        for key, text in _leaves(located.value, ())
        for word in _UNSET.findall(text)
    ]


def _leaves(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*key, index))


def _in_templates(loaded: LoadedExperiment) -> Iterator[Problem]:
    run = loaded.experiment.run
    layers = [run.files]
    for phase in run.phases:
        layers += [phase.files, *(step.files for step in phase.steps)]
    for text in dict.fromkeys(path for files in layers for path in files.values()):
        path = loaded.resolve(text)
        # A template that is not there is reported where it is named.
        if path.is_file():
            yield from _in_text(path)


def _in_text(path: Path) -> Iterator[Problem]:
    text = path.read_text(encoding="utf-8", errors="replace")
    # Comments of jinja2 are for the reader; their lines still count.
    bare = _COMMENT.sub(lambda comment: "\n" * comment.group().count("\n"), text)
    for number, line in enumerate(bare.splitlines(), start=1):
        for word in _UNSET.findall(line):
            yield Problem(f"{path}:{number}", "", word, _WANTED)


def _in_variable_map(loaded: LoadedExperiment) -> Iterator[Problem]:
    path = loaded.resolve_variables()
    try:
        located = load_yaml(path)
    except UsageError:
        return
    shipped = loaded.base_dir not in path.parents
    remedy = "Copy the file, and name the copy in `variables`." if shipped else ""
    yield from (replace(problem, remedy=remedy) for problem in unset_in(located))
