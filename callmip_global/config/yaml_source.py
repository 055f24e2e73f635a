"""YAML with positions: every value knows the file and line it came from.

The semantics are those of PyYAML's SafeLoader (YAML 1.1), minus its silent traps: a key given
twice is refused, and the text of a scalar is kept beside its value, because YAML 1.1 reads an
unquoted 10:00:00 as the integer 36000.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from callmip_global.errors import Problem, UsageError

KeyPath = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Mark:
    """Where one value stands: ``label`` is a file or ``--set key=value`` (then without a line).

    ``raw`` is a scalar's own text where YAML made something else of it.
    """

    label: str
    line: int | None = None
    raw: str | None = None

    def __str__(self) -> str:
        return self.label if self.line is None else f"{self.label}:{self.line}"


@dataclass(frozen=True)
class Located:
    """Plain values (dict, list, str, int, float, bool, None) with the mark of each.

    ``marks`` maps a key path such as ``("run", "phases", 2, "years")`` to its mark; ``()`` is the
    whole. ``path`` is the file the values were read from (of the topmost layer after `overlay`).
    """

    value: Any
    path: Path
    marks: Mapping[KeyPath, Mark]

    def mark(self, key: KeyPath) -> Mark:
        """The mark of ``key``, or of its nearest ancestor that has one."""
        while key and key not in self.marks:
            key = key[:-1]
        return self.marks.get(key, Mark(str(self.path), 1))

    def line_of(self, key: KeyPath) -> int:
        """Line of ``key`` (or of its nearest ancestor), counted from 1."""
        return self.mark(key).line or 1

    def where(self, key: KeyPath = ()) -> str:
        """``file:line`` of ``key``, for `Problem.where`."""
        return str(self.mark(key))

    def get(self, key: KeyPath) -> Any:
        """The value at ``key``; KeyError if there is none."""
        value = self.value
        for part in key:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                raise KeyError(dotted(key)) from None
        return value

    def sub(self, key: KeyPath) -> Located:
        """The part below ``key`` as a tree of its own; marks are kept."""
        size = len(key)
        marks = {path[size:]: mark for path, mark in self.marks.items() if path[:size] == key}
        marks.setdefault((), self.mark(key))
        return Located(self.get(key), self.path, marks)

    def replaced(self, key: KeyPath, value: Any, marks: Mapping[KeyPath, Mark]) -> Located:
        """A copy with ``value`` at ``key``; ``marks`` are relative to ``key``."""
        kept = {p: m for p, m in self.marks.items() if p[: len(key)] != key}
        kept.update({(*key, *p): m for p, m in marks.items()})
        return Located(_with(self.value, key, value), self.path, kept)

    def without(self, key: KeyPath) -> Located:
        """A copy without ``key`` (a mapping's key or a list's item); its mark goes too.

        The marks of later items of the same list keep their old indices.
        """
        kept = {p: m for p, m in self.marks.items() if p[: len(key)] != key}
        return Located(_without(self.value, key), self.path, kept)


def dotted(key: Sequence[str | int]) -> str:
    """``run.phases.2.years``: how a key is written in messages and in ``--set``."""
    return ".".join(str(part) for part in key)


def load_yaml(path: Path | str) -> Located:
    """Values and positions of the one YAML document in ``path``.

    UsageError, with file and line, for: a missing or unreadable file, text that is not UTF-8, a
    syntax error, a duplicate key, a key that is not text or a number.
    """
    path = Path(path)
    label = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(Problem(label, found="no such file")) from None
    except UnicodeDecodeError as error:
        raise UsageError(Problem(label, found=f"text that is not UTF-8 ({error.reason})")) from None
    except OSError as error:
        raise UsageError(
            Problem(label, found=f"a file that cannot be read ({error.strerror})")
        ) from None
    return parse_yaml(text, label=label, path=path)


def parse_yaml(text: str, *, label: str, path: Path) -> Located:
    """`load_yaml` of a text; ``label`` stands for the file in messages."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"the character U+{ord(text[error.position]):04X}, which YAML does not allow"
        raise UsageError(Problem(f"{label}:{line}", found=found)) from None
    problems: list[Problem] = []
    marks: dict[KeyPath, Mark] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return Located(None, path, {(): Mark(label, 1)})
        _refuse_duplicates(node, label, problems)
        if problems:
            raise UsageError(problems)
        value = loader.construct_document(node)
        _collect_marks(node, (), label, marks)
    except yaml.YAMLError as error:
        raise UsageError(_syntax_problem(error, label)) from None
    except (ValueError, RecursionError) as error:
        # Values that look like dates or numbers but are not (2026-13-45); aliases of themselves.
        raise UsageError(Problem(label, found=f"a value YAML cannot build ({error})")) from None
    finally:
        loader.dispose()
    return Located(value, path, marks)


def overlay(base: Located, top: Located) -> Located:
    """``top`` over ``base``: mappings are joined key by key, everything else is replaced whole."""
    marks = dict(base.marks)
    marks.update({key: mark for key, mark in top.marks.items() if key not in marks or key == ()})
    value = _overlay(base.value, top.value, (), base, top, marks)
    return Located(value, top.path, marks)


def apply_override(located: Located, text: str) -> Located:
    """``key=value`` of ``--set`` put into the tree: ``run.phases.0.cycles=3``.

    Numbers in the key are list positions. The value is read as YAML, except that 10:00:00 stays
    text: on a command line the shell takes the quotes away. UsageError if the key leads nowhere.
    """
    label = f"--set {text}"
    name, equals, raw = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(
            Problem(label, wanted="key=value", remedy="For example --set output.grid=2deg.")
        )
    parsed = parse_yaml(raw, label=label, path=located.path)
    marks = {key: Mark(label, None, mark.raw) for key, mark in parsed.marks.items()}
    value = parsed.value
    if isinstance(value, int) and ":" in raw:
        value, marks = raw.strip(), {(): Mark(label)}
    key = _override_key(located.value, name.strip(), label)
    return located.replaced(key, value, marks)


def validate_model(
    model: type[ModelT], located: Located, where: str | Path | None = None, *, prefix: KeyPath = ()
) -> ModelT:
    """``model`` built from the values; UsageError with one problem per thing that is wrong.

    ``where`` replaces the file's name in messages (the lines stay); ``prefix`` is the key path the
    tree hangs under in the user's file, for the dotted keys.
    """
    instance, problems = try_model(model, located, where, prefix=prefix)
    if instance is None:
        raise UsageError([problem for _, problem in problems])
    return instance


def try_model(
    model: type[ModelT], located: Located, where: str | Path | None = None, *, prefix: KeyPath = ()
) -> tuple[ModelT | None, list[tuple[KeyPath, Problem]]]:
    """The instance, or None and each problem with the key path (inside the tree) it is about."""
    if not isinstance(located.value, dict):
        found = "an empty file" if located.value is None else _shown(located.value, None)
        wanted = f"keys and values: {', '.join(_keys_of(model))}"
        return None, [((), Problem(_place(located, (), where), dotted(prefix), found, wanted))]
    try:
        return model.model_validate(located.value), []
    except ValidationError as error:
        found_problems: dict[KeyPath, Problem] = {}
        for item in error.errors(include_url=False):
            key = _clean_key(located, item["loc"])
            if key not in found_problems:
                found_problems[key] = _problem(model, located, where, prefix, key, dict(item))
        unknown = [k for k, p in found_problems.items() if p.found == _UNKNOWN]
        below = {k for k in found_problems for u in unknown if k[: len(u)] == u and k != u}
        return None, [(k, p) for k, p in found_problems.items() if k not in below]


def nearest(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'x'?`` for a slip of the pen, else an empty text."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"Did you mean {by_lower[close[0]]!r}?" if close else ""


def _with(value: Any, key: KeyPath, new: Any) -> Any:
    if not key:
        return new
    head, rest = key[0], key[1:]
    if isinstance(value, list) and isinstance(head, int):
        return [_with(v, rest, new) if i == head else v for i, v in enumerate(value)]
    inner = value if isinstance(value, dict) else {}
    return {**inner, head: _with(inner.get(head), rest, new)}


def _without(value: Any, key: KeyPath) -> Any:
    head, rest = key[0], key[1:]
    if isinstance(value, list):
        if rest:
            return [_without(v, rest) if i == head else v for i, v in enumerate(value)]
        return [v for i, v in enumerate(value) if i != head]
    if rest:
        return {k: _without(v, rest) if k == head else v for k, v in value.items()}
    return {k: v for k, v in value.items() if k != head}


def _overlay(
    base: Any, top: Any, key: KeyPath, low: Located, high: Located, marks: dict[KeyPath, Mark]
) -> Any:
    if isinstance(base, dict) and isinstance(top, dict):
        joined = dict(base)
        for name, value in top.items():
            inner = (*key, name)
            if name in base:
                joined[name] = _overlay(base[name], value, inner, low, high, marks)
            else:
                joined[name] = value
        if key in high.marks:
            marks[key] = high.marks[key]
        return joined
    for path in [p for p in marks if p[: len(key)] == key]:
        del marks[path]
    marks.update({p: m for p, m in high.marks.items() if p[: len(key)] == key})
    return top


def _override_key(value: Any, name: str, label: str) -> KeyPath:
    """The key path of a dotted name; keys that hold dots themselves (files) are recognised."""
    parts = name.split(".")
    key: list[str | int] = []
    while parts:
        if isinstance(value, list):
            part = parts.pop(0)
            if not part.isdigit() or int(part) >= len(value):
                raise UsageError(
                    Problem(label, dotted(key), f"position {part!r}", f"0 to {len(value) - 1}")
                )
            key.append(int(part))
            value = value[int(part)]
            continue
        if value is not None and not isinstance(value, dict):
            raise UsageError(
                Problem(label, dotted(key), "a single value", f"a mapping that holds {parts[0]!r}")
            )
        inner = value or {}
        joins = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        taken = next((j for j in joins if j in inner), parts[0])
        parts = parts[taken.count(".") + 1 :]
        key.append(taken)
        value = inner.get(taken)
    return tuple(key)


def _refuse_duplicates(node: yaml.Node, label: str, problems: list[Problem]) -> None:
    seen_nodes: set[int] = set()
    waiting: list[tuple[yaml.Node, KeyPath]] = [(node, ())]
    while waiting:
        here, key = waiting.pop()
        if id(here) in seen_nodes:
            continue
        seen_nodes.add(id(here))
        if isinstance(here, yaml.SequenceNode):
            waiting += [(item, (*key, i)) for i, item in enumerate(here.value)]
        if not isinstance(here, yaml.MappingNode):
            continue
        lines: dict[tuple[str, str], int] = {}
        for name_node, value_node in here.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                problems.append(Problem(f"{label}:{line}", dotted(key), "a key that is not text"))
                continue
            name = name_node.value
            waiting.append((value_node, (*key, name)))
            if name_node.tag == "tag:yaml.org,2002:merge":
                continue
            if (name_node.tag, name) in lines:
                first = lines[name_node.tag, name]
                found = f"the key a second time (first in line {first})"
                problems.append(Problem(f"{label}:{line}", dotted((*key, name)), found))
            lines.setdefault((name_node.tag, name), line)
    problems.sort(key=lambda p: int(p.where.rsplit(":", 1)[1]))


def _collect_marks(node: yaml.Node, key: KeyPath, label: str, marks: dict[KeyPath, Mark]) -> None:
    """Marks of the tree below ``node``; a key's mark is the line of the key itself."""
    raw = node.value if isinstance(node, yaml.ScalarNode) else None
    marks.setdefault(key, Mark(label, node.start_mark.line + 1, raw))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect_marks(item, (*key, index), label, marks)
    elif isinstance(node, yaml.MappingNode):
        for name_node, value_node in node.value:
            name = _scalar(name_node)
            inner = (*key, name)
            # After a merge (<<) the own keys follow the merged ones, and the last one counts.
            if inner in marks:
                for old in [p for p in marks if p[: len(inner)] == inner]:
                    del marks[old]
            text = value_node.value if isinstance(value_node, yaml.ScalarNode) else None
            marks[inner] = Mark(label, name_node.start_mark.line + 1, text)
            _collect_marks(value_node, inner, label, marks)


def _scalar(node: yaml.Node) -> str | int:
    """The key as SafeLoader builds it, kept as it is when it is a number."""
    constructor = yaml.constructor.SafeConstructor()
    value = constructor.construct_object(node)
    return value if isinstance(value, int | str) else str(value)


def _syntax_problem(error: yaml.YAMLError, label: str) -> Problem:
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(label, found=f"text that is not YAML ({error})")
    mark = error.problem_mark or error.context_mark
    place = label if mark is None else f"{label}:{mark.line + 1}"
    words = ", ".join(w for w in (error.context, error.problem) if w)
    remedy = ""
    if "'\\t'" in words:
        remedy = "Indent with spaces; YAML takes no tabs."
    elif "mapping values are not allowed" in words:
        remedy = "Put text that holds ': ' in quotes, and check the indentation."
    elif "found unhashable key" in words or "'{'" in words:
        remedy = "Put text that starts with { in quotes."
    return Problem(place, found=f"a YAML syntax error ({words})", remedy=remedy)


def _clean_key(located: Located, loc: Sequence[str | int]) -> KeyPath:
    """The part of pydantic's location that is a path in the file (unions add their own labels)."""
    key: list[str | int] = []
    value = located.value
    for position, part in enumerate(loc):
        if part == "[key]":
            break
        if isinstance(value, dict):
            if part in value:
                value = value[part]
            elif position == len(loc) - 1:
                key.append(part)
                break
            else:
                break
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            break
        key.append(part)
    return tuple(key)


def _place(located: Located, key: KeyPath, where: str | Path | None) -> str:
    mark = located.mark(key)
    if where is None or mark.line is None:
        return str(mark)
    return f"{where}:{mark.line}"


def _shown(value: Any, raw: str | None) -> str:
    """A value as the user would recognise it, short."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"a mapping ({', '.join(str(k) for k in list(value)[:4])})" if value else "{}"
    if isinstance(value, list):
        text = "[" + ", ".join(str(v) for v in value) + "]"
        return text if len(text) <= 60 else f"a list of {len(value)}"
    shown = repr(value) if isinstance(value, str) else str(value)
    if raw is not None and isinstance(value, int) and not isinstance(value, bool) and ":" in raw:
        return f"{raw} without quotes, which YAML reads as {value}"
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _keys_of(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _annotation_at(model: type[BaseModel], key: KeyPath) -> tuple[Any, str | None]:
    """The annotation at a key path and the description of the field it belongs to."""
    here: Any = model
    description: str | None = None
    for part in key:
        for option in _options(here):
            if isinstance(option, type) and issubclass(option, BaseModel):
                by_name = {f.alias or n: f for n, f in option.model_fields.items()}
                if part in by_name:
                    here, description = (
                        by_name[str(part)].annotation,
                        by_name[str(part)].description,
                    )
                    break
            elif typing.get_origin(option) in (tuple, list) and isinstance(part, int):
                here = typing.get_args(option)[0]
                break
            elif typing.get_origin(option) in (dict, Mapping) and typing.get_args(option):
                here = typing.get_args(option)[1]
                break
        else:
            return None, None
    return here, description


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a union, with Annotated taken off."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [o for a in typing.get_args(annotation) for o in _options(a)]
    return [annotation]


def _valid_keys(model: type[BaseModel], key: KeyPath) -> list[str]:
    """The keys that may stand in the mapping at ``key``, as far as the schema fixes them."""
    annotation, _ = _annotation_at(model, key) if key else (model, None)
    keys: list[str] = []
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            keys += _keys_of(option)
        elif typing.get_origin(option) in (dict, Mapping) and typing.get_args(option):
            for choice in _options(typing.get_args(option)[0]):
                if typing.get_origin(choice) is typing.Literal:
                    keys += [str(k) for k in typing.get_args(choice)]
    return keys


def _problem(
    model: type[BaseModel],
    located: Located,
    where: str | Path | None,
    prefix: KeyPath,
    key: KeyPath,
    item: dict[str, Any],
) -> Problem:
    """One pydantic error in the user's terms."""
    kind, context = str(item["type"]), item.get("ctx") or {}
    name = dotted((*prefix, *key))
    place = _place(located, key, where)
    bad_key = bool(item["loc"]) and item["loc"][-1] == "[key]"
    if kind == "extra_forbidden" or (bad_key and kind == "literal_error"):
        known = _valid_keys(model, key[:-1])
        return Problem(
            place,
            name,
            _UNKNOWN,
            f"one of: {', '.join(known)}",
            nearest(str(key[-1]), known) if key else "",
        )
    _, description = _annotation_at(model, key)
    if kind == "invalid_key" or (bad_key and kind == "string_type"):
        said = key[-1] if bad_key else item["input"]
        return Problem(place, name, f"a key that is not text ({said})", "text, in quotes")
    if kind == "missing":
        return Problem(place, name, "nothing", description or "a value (the key is required)")
    try:
        value = located.get(key)
    except KeyError:
        value = item.get("input")
    found = _shown(value, located.mark(key).raw if key in located.marks else None)
    if kind == "value_error":
        error = context.get("error")
        text = str(error) if error is not None else str(item["msg"])
        return Problem(place, name, found, *_split_wanted(text))
    remedy = ""
    if kind == "string_type" and isinstance(value, int | float):
        remedy = f'Write it in quotes: "{located.mark(key).raw or value}".'
    wanted = _WANTED.get(kind, "").format(**context) or str(item["msg"])
    if description and kind not in _NARROW:
        wanted = f"{wanted}: {description}"
    return Problem(place, name, found, wanted, remedy)


def _split_wanted(text: str) -> tuple[str, str]:
    """A validator's message is ``wanted`` or ``wanted | remedy``."""
    wanted, _, remedy = text.partition(" | ")
    return wanted.strip(), remedy.strip()


_UNKNOWN = "an unknown key"
_NARROW = {"literal_error", "greater_than_equal", "less_than_equal", "greater_than", "less_than"}
_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "dict_type": "a mapping (keys and values)",
    "model_type": "a mapping (keys and values)",
    "tuple_type": "a list",
    "list_type": "a list",
    "frozen_set_type": "a list",
    "literal_error": "one of: {expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "string_too_short": "text of at least {min_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}
