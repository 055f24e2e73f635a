"""Placeholders in an experiment file: ``{name}``, ``{inputs.co2}``, ``{member:03d}``; nothing else.

Not str.format: that would let a configuration file reach into Python (``{x.__class__}``).
Literal braces are written twice. Templates of ``run.files`` are jinja2 with strict undefined names
and see the same context.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any

from callmip_global.config.shell import insert
from callmip_global.config.yaml_source import nearest
from callmip_global.errors import Problem, UsageError

RUN_NAMES: Mapping[str, str] = {
    "model": "name of the model",
    "version": "version of the model",
    "simulation": "name of the simulation, e.g. S3",
    "stage": "Prior or Posterior",
    "scenario": "number of the calibration scenario (stages that have one)",
    "member": "number of the member, from 1 (stages with members)",
    "tile": "number of the tile, from 1 (runs with tiles)",
    "tiles": "how many tiles there are (runs with tiles)",
    "phase": "name of the phase",
    "step": "name of the inner step (phases that have some)",
    "cycle": "number of the cycle within the phase, from 1",
    "first_year": "first model year of the segment",
    "last_year": "last model year of the segment",
    "n_years": "years to simulate in the segment",
    "climate": "recycle or actual",
    "climate_first_year": "first year of the climate forcing that is used",
    "climate_last_year": "last year of the climate forcing that is used",
    "co2": "the year whose CO2 is held, or yearly",
    "luc": "the year whose land use is held, or yearly",
    "ndep": "the year whose N deposition is held, or yearly",
    "first_segment": "true in the first segment, which has no restart files to read",
    "write_output": "true in segments that hold delivered years",
    "parameters": "absolute path of the parameter file",
    "inputs": "paths of run.inputs: {inputs.NAME}",
    "executables": "paths of run.executables: {executables.NAME}",
    "options": "values of run.options, the phase's over them: {options.NAME}",
    "python": "the Python interpreter that runs callmip-global",
    "calendar": "run.calendar",
}
"""What run.command, the targets of run.files and their templates may use."""

PARAMETER_NAMES: Mapping[str, str] = {
    name: RUN_NAMES[name]
    for name in ("model", "version", "simulation", "stage", "scenario", "member")
}
"""What ``parameters`` of a stage may use."""

INPUT_NAMES: Mapping[str, str] = {
    **PARAMETER_NAMES,
    "year": "each year the input is needed for (kept for the model to fill in)",
    "var": "anything: a variable of the forcing (kept for the model to fill in)",
}
"""What ``run.inputs`` may use; ``{year}`` and ``{var}`` reach the model as they are."""

OUTPUT_NAMES: Mapping[str, str] = {
    "variable": "anything: a name in the model's own output",
    "year": "each model year of the file",
    "frequency": "mon or yr",
    "first_year": RUN_NAMES["first_year"],
    "last_year": RUN_NAMES["last_year"],
}
"""What ``run.outputs`` may use."""

MERGE_NAMES: Mapping[str, str] = {
    **{name: RUN_NAMES[name] for name in (*PARAMETER_NAMES, "tiles", "python")},
    "inputs": "the tiles' files, in the order of the tiles",
    "output": "the merged file",
}
"""What ``run.tiles.merge`` may use."""

_TOKEN = re.compile(r"\{\{|\}\}|\$\{[^{}]*\}|\{[^{}]*\}|[{}]")
_FIELD = re.compile(r"([A-Za-z_]\w*)(?:\.([A-Za-z_][\w-]*))?(?::0?(\d{1,2})d?)?")


def expand(
    template: str, context: Mapping[str, Any], *, quote: bool, where: str = "", key: str = ""
) -> str:
    """``template`` with every placeholder replaced by its value in ``context``.

    ``quote``: the text is a shell command, in which every inserted value is read as (part of) one
    argument; one with special characters inside quotes, a comment or a here-document is a problem
    (see `callmip_global.config.shell`). Values: text, numbers, paths; true/false for bool; a list
    becomes its items with spaces between; a mapping is reached by ``{name.key}``.
    UsageError (every problem at once, at ``where``/``key``) for an unknown name, one without a
    value here, a format other than ``:03d`` on a whole number, ``${x}``, or a lone brace.
    """
    problems: list[Problem] = []
    text, end = "", 0
    for match in _TOKEN.finditer(template):
        token = match.group()
        text += template[end : match.start()]
        end = match.end()
        if token in ("{{", "}}"):
            text += token[0]
            continue
        try:
            text += _text(token, context, text if quote else None)
        except _RefusedError as refused:
            problems.append(Problem(where, key, repr(token), refused.wanted, refused.remedy))
            text += token
    if problems:
        raise UsageError(dict.fromkeys(problems))
    return text + template[end:]


def placeholder_names(template: str) -> frozenset[str]:
    """Names used in ``template``, ``inputs.co2`` with its key; other braces are passed over."""
    names = set()
    for token in _TOKEN.findall(template):
        field = _FIELD.fullmatch(token[1:-1]) if token.startswith("{") and len(token) > 2 else None
        if field and token not in ("{{", "}}"):
            names.add(".".join(part for part in field.group(1, 2) if part))
    return frozenset(names)


def sample_context(**values: Any) -> dict[str, Any]:
    """A context with a plausible value for every name of `RUN_NAMES`; ``values`` replace some."""
    sample: dict[str, Any] = {
        "model": "MODEL",
        "version": "v1",
        "simulation": "S3",
        "stage": "Posterior",
        "scenario": 1,
        "member": 1,
        "tile": 1,
        "tiles": 1,
        "phase": "historical",
        "step": None,
        "cycle": 1,
        "first_year": 2001,
        "last_year": 2010,
        "n_years": 10,
        "climate": "actual",
        "climate_first_year": 2001,
        "climate_last_year": 2010,
        "co2": "yearly",
        "luc": "yearly",
        "ndep": "yearly",
        "first_segment": False,
        "write_output": True,
        "parameters": "/parameters",
        "inputs": {},
        "executables": {},
        "options": {},
        "python": "python3",
        "calendar": "noleap",
    }
    return {**sample, **values}


def render_template(text: str, context: Mapping[str, Any], *, where: str) -> str:
    """A jinja2 template of ``run.files`` rendered; an undefined name is an error, never empty.

    UsageError naming the line of ``where`` (the template's file) for a syntax error, an undefined
    name, or whatever else fails inside the template. One template is one file: no includes.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Sandboxed: like placeholders, a template reaches values and not into Python.
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    try:
        return environment.from_string(text).render(context)
    except jinja2.TemplateSyntaxError as error:
        found = f"a jinja2 syntax error ({error.message})"
        raise UsageError(Problem(f"{where}:{error.lineno}", found=found)) from None
    except Exception as error:
        # Anything may go wrong in an expression; the last template line on the stack is where.
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == "<template>"
        ]
        remedy = ""
        if isinstance(error, jinja2.UndefinedError):
            remedy = f"The names are: {', '.join(context)}."
        place = f"{where}:{lines[-1]}" if lines else where
        raise UsageError(Problem(place, found=str(error), remedy=remedy)) from None


def template_names(text: str) -> frozenset[str]:
    """Names a jinja2 template takes from its context; empty for one that does not parse."""
    import jinja2
    from jinja2 import meta

    try:
        return frozenset(meta.find_undeclared_variables(jinja2.Environment().parse(text)))
    except jinja2.TemplateSyntaxError:
        return frozenset()


class _RefusedError(Exception):
    def __init__(self, wanted: str, remedy: str = "") -> None:
        super().__init__(wanted)
        self.wanted = wanted
        self.remedy = remedy


def _text(token: str, context: Mapping[str, Any], before: str | None) -> str:
    """What takes the place of a token; ``before``: the shell command up to it, if it is one."""
    if token.startswith("$"):
        name = token[2:-1]
        raise _RefusedError(
            "a placeholder {name}",
            f"For a shell variable write ${name} or ${{{{{name}}}}}.",
        )
    field = _FIELD.fullmatch(token[1:-1]) if len(token) > 1 else None
    if field is None:
        raise _RefusedError(
            "{name}, {inputs.name} or {name:03d}", "Write a literal brace twice: {{ or }}."
        )
    name, item, width = field.groups()
    known = ", ".join(context)
    if name not in context:
        raise _RefusedError(f"one of: {known}", nearest(name, context))
    value = context[name]
    if item is not None:
        if not isinstance(value, Mapping):
            raise _RefusedError(f"{{{name}}}", f"{name} has no parts.")
        if item not in value:
            choices = ", ".join(f"{name}.{k}" for k in value) or f"nothing: {name} is empty"
            raise _RefusedError(f"one of: {choices}", nearest(item, map(str, value)))
        value = value[item]
    elif isinstance(value, Mapping):
        choices = ", ".join(f"{{{name}.{k}}}" for k in value) or f"nothing: {name} is empty"
        raise _RefusedError(f"one of: {choices}")
    if value is None:
        raise _RefusedError(f"a name with a value here; {name} has none", _WITHOUT.get(name, ""))
    if width is not None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _RefusedError(f"{{{name}}}", f"{name} is no whole number, so it has no width.")
        return str(value).zfill(int(width)) if ":0" in token else str(value).rjust(int(width))
    if isinstance(value, list | tuple):
        return " ".join(_plain(v, before, token) for v in value)
    return _plain(value, before, token)


def _plain(value: Any, before: str | None, token: str) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if before is None:
        return text
    try:
        return insert(text, before)
    except ValueError as error:
        remedy = f"Take {token} out of the quotes: it is quoted for you, here as {text!r}."
        raise _RefusedError(str(error), remedy) from None


_WITHOUT = {
    "member": "Give the stage members, or leave {member} out.",
    "tile": "Set run.tiles, or leave {tile} out.",
    "tiles": "Set run.tiles, or leave {tiles} out.",
    "scenario": "Give the stage a scenario, or leave {scenario} out.",
    "step": "Only phases with inner steps have it.",
    "luc": "Say luc in every phase.",
    "ndep": "Say ndep in every phase.",
}
