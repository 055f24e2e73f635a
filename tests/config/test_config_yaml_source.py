"""YAML with positions: same values as SafeLoader, every value knows its line, no silent traps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from callmip_global.config.yaml_source import (
    Located,
    apply_override,
    load_yaml,
    overlay,
    parse_yaml,
    validate_model,
)
from callmip_global.errors import UsageError

PATH = Path("f.yaml")
NAMES = st.text("abcxyz", min_size=1, max_size=4)
LEAVES = st.none() | st.booleans() | st.integers(-9, 9999) | st.text("ab: #-'\"{}[]\n1", max_size=8)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def parse(text: str) -> Located:
    return parse_yaml(text, label="f.yaml", path=PATH)


def problems_of(text: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse(text)
    return [str(problem) for problem in caught.value.problems]


def leaves(value: Any, key: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    if isinstance(value, dict) and value:
        return {k: v for n, inner in value.items() for k, v in leaves(inner, (*key, n)).items()}
    if isinstance(value, list) and value:
        items = enumerate(value)
        return {k: v for n, inner in items for k, v in leaves(inner, (*key, n)).items()}
    return {key: value}


@given(TREES)
def test_values_are_those_of_safe_load_and_every_leaf_has_a_mark(tree: dict[str, Any]) -> None:
    located = parse(yaml.safe_dump(tree))
    assert located.value == tree
    assert set(leaves(tree)) - {()} <= set(located.marks)


@given(st.lists(NAMES, min_size=1, unique=True))
def test_the_line_of_a_key_is_the_line_it_stands_in(names: list[str]) -> None:
    located = parse("".join(f"# comment\n{name}: 1\n" for name in names))
    assert [located.line_of((name,)) for name in names] == [2 * n + 2 for n in range(len(names))]


def test_lines_of_nested_keys_list_items_and_missing_keys() -> None:
    located = parse("run:\n  phases:\n    - {name: a,\n       years: [1, 2]}\n    - {name: b}\n")
    assert located.line_of(("run", "phases", 0, "years")) == 4
    assert located.where(("run", "phases", 1)) == "f.yaml:5"
    assert located.where(("run", "phases", 1, "years")) == "f.yaml:5"
    assert located.where(("nowhere",)) == "f.yaml:1"


@given(TREES, TREES)
def test_overlay_keeps_every_leaf_of_the_top_with_its_own_mark(
    base: dict[str, Any], top: dict[str, Any]
) -> None:
    high = parse_yaml(yaml.safe_dump(top), label="top", path=PATH)
    joined = overlay(parse_yaml(yaml.safe_dump(base), label="base", path=PATH), high)
    for key, value in leaves(top).items():
        if not key or (value == {} and joined.get(key) != {}):
            continue  # an empty mapping changes nothing
        assert joined.get(key) == value
        assert joined.mark(key).label == "top"
    untouched = set(base) - set(top)
    assert {name: joined.value[name] for name in untouched} == {n: base[n] for n in untouched}
    assert {joined.mark((name,)).label for name in untouched} <= {"base"}


def test_a_list_is_replaced_whole_and_leaves_no_mark_behind() -> None:
    base = parse_yaml("a: [{x: 1}, {x: 2}]\n", label="base", path=PATH)
    joined = overlay(base, parse_yaml("\na: [{y: 3}]\n", label="top", path=PATH))
    assert joined.value == {"a": [{"y": 3}]}
    assert joined.where(("a", 0, "x")) == "top:2"
    assert all(mark.label == "top" for key, mark in joined.marks.items() if key)


@given(TREES.filter(bool), st.data())
def test_an_override_changes_its_own_value_and_no_other(
    tree: dict[str, Any], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(leaves(tree), key=str)))
    text = f"{'.'.join(map(str, key))}=4711"
    changed = apply_override(parse(yaml.safe_dump(tree)), text)
    assert leaves(changed.value) == {**leaves(tree), key: 4711}
    assert changed.where(key) == f"--set {text}"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("run.phases.0.cycles=3", ("run", "phases", 0, "cycles"), 3),
        ("output.grid=2deg", ("output", "grid"), "2deg"),
        ("simulations=[S3]", ("simulations",), ["S3"]),
        ("run.files.namelist.txt=other.j2", ("run", "files", "namelist.txt"), "other.j2"),
        ("run.walltime=10:00:00", ("run", "walltime"), "10:00:00"),
        ("stages.Prior.parameters=a=b", ("stages", "Prior", "parameters"), "a=b"),
    ],
)
def test_overrides_reach_list_items_new_keys_and_keys_with_dots(
    text: str, key: tuple[str | int, ...], value: object
) -> None:
    base = parse("run: {phases: [{name: a}], files: {namelist.txt: t.j2}}\noutput: {grid: 1deg}\n")
    assert apply_override(base, text).get(key) == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("run.phases.3.cycles=1", "--set run.phases.3.cycles=1: run.phases: found position '3', "),
        ("cycles", "--set cycles: wanted key=value. For example --set output.grid=2deg."),
        ("run.phases.0.name.x=1", "--set run.phases.0.name.x=1: run.phases.0.name: found a single"),
    ],
)
def test_an_override_that_leads_nowhere_says_so(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_override(parse("run: {phases: [{name: a}]}\n"), text)
    assert str(caught.value).startswith(line)


def test_every_duplicate_key_is_refused_with_both_lines() -> None:
    assert problems_of("a: 1\nb: {c: 1, c: 2}\na: 2\n") == [
        "f.yaml:2: b.c: found the key a second time (first in line 2)",
        "f.yaml:3: a: found the key a second time (first in line 1)",
    ]


def test_a_merged_key_may_be_overridden_and_knows_the_line_that_counts() -> None:
    located = parse("base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  x: 3\n")
    assert located.value["own"] == {"x": 3, "y": 2}
    assert located.line_of(("own", "x")) == 4
    assert located.line_of(("own", "y")) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n\tb: 2\n", "f.yaml:2: found a YAML syntax error"),
        ("a: b: c\n", "f.yaml:1: found a YAML syntax error (mapping values are not allowed here)."),
        ("a: [1, 2\n", "f.yaml:2: found a YAML syntax error"),
        ("a: 2026-13-45\n", "f.yaml: found a value YAML cannot build (month must be in 1..12)"),
        ("a: !!python/object:x.y {}\n", "f.yaml:1: found a YAML syntax error (could not determine"),
        ("[1, 2]: x\n", "f.yaml:1: found a key that is not text"),
        ("a: &x [*x]\n", "f.yaml: found a value YAML cannot build"),
        ("a: 1\nb: \0\n", "f.yaml:2: found the character U+0000, which YAML does not allow"),
    ],
    ids=["tab", "two-colons", "open-list", "no-date", "python-object", "list-key", "alias", "nul"],
)
def test_text_that_is_no_plain_yaml_is_refused_with_its_line(text: str, line: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(line)
    assert "\n" not in problem


def test_a_missing_file_and_one_that_is_not_text_are_problems(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: caf\xe9\n")
    for path, found in ((tmp_path / "no.yaml", "no such file"), (latin, "text that is not UTF-8")):
        with pytest.raises(UsageError, match=f"{path.name}: found {found}"):
            load_yaml(path)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    count: int = Field(description="how many")
    word: str = "x"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    inner: Inner
    many: dict[str, Inner] = {}


def test_every_schema_error_is_one_line_with_line_key_found_and_wanted() -> None:
    located = parse("inner: {wrod: 1, word: 2.0}\nmany:\n  a: {count: 3}\n  b: {count: no}\nx: 1\n")
    with pytest.raises(UsageError) as caught:
        validate_model(Outer, located, "my.yaml", prefix=("top",))
    assert sorted(map(str, caught.value.problems)) == [
        "my.yaml:1: top.inner.count: found nothing, wanted how many",
        'my.yaml:1: top.inner.word: found 2.0, wanted text. Write it in quotes: "2.0".',
        "my.yaml:1: top.inner.wrod: found an unknown key, wanted one of: count, word."
        " Did you mean 'word'?",
        "my.yaml:4: top.many.b.count: found False, wanted a whole number: how many",
        "my.yaml:5: top.x: found an unknown key, wanted one of: inner, many",
    ]


@pytest.mark.parametrize("text", ["", "- a\n", "word\n"])
def test_a_file_that_is_no_mapping_is_one_problem(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate_model(Outer, parse(text))
    (problem,) = caught.value.problems
    assert problem.wanted == "keys and values: inner, many"
