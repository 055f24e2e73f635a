"""Placeholders: exact values, safe in a shell, and no way from a template into Python."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.config.placeholders import (
    INPUT_NAMES,
    MERGE_NAMES,
    OUTPUT_NAMES,
    PARAMETER_NAMES,
    RUN_NAMES,
    expand,
    placeholder_names,
    render_template,
    sample_context,
    template_names,
)
from callmip_global.errors import UsageError

VALUES = st.text(min_size=1).filter(lambda text: "\0" not in text)
CONTEXT: dict[str, Any] = {
    "member": 7,
    "stage": "Prior",
    "first": True,
    "tile": None,
    "inputs": {"co2": "/d/a b.txt", "n-dep": "/n"},
    "files": ["a b", "c"],
}


@given(VALUES, VALUES)
def test_quoted_values_reach_the_shell_as_they_are(one: str, two: str) -> None:
    text = expand("cmd {a} --x={b}", {"a": one, "b": two}, quote=True)
    assert shlex.split(text) == ["cmd", one, f"--x={two}"]


@given(st.text("ab{}$ ."))
def test_doubled_braces_are_the_text_itself(text: str) -> None:
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert expand(doubled, {}, quote=True) == text
    assert placeholder_names(doubled) == frozenset()


@given(VALUES)
def test_a_value_is_never_expanded_again(value: str) -> None:
    assert expand("{a}", {"a": value, "b": "no"}, quote=False) == value


@pytest.mark.parametrize(
    ("template", "quote", "text"),
    [
        ("p_{member:03d}.txt", False, "p_007.txt"),
        ("p_{member:3d}", False, "p_  7"),
        ("p_{member}", False, "p_7"),
        ("{first} {stage}", True, "true Prior"),
        ("{inputs.co2}", False, "/d/a b.txt"),
        ("{inputs.co2} {inputs.n-dep}", True, "'/d/a b.txt' /n"),
        ("merge {files} out", True, "merge 'a b' c out"),
        ("awk '{{print $1}}' ${{HOME}} $HOME", True, "awk '{print $1}' ${HOME} $HOME"),
        ("{{{member}}}", False, "{7}"),
    ],
)
def test_expansions_worked_by_hand(template: str, quote: bool, text: str) -> None:
    assert expand(template, CONTEXT, quote=quote) == text


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{membr}", "wanted one of: member, stage, first, tile, inputs, files. Did you mean 'memb"),
        ("{stage.__class__}", "wanted {stage}. stage has no parts."),
        ("{inputs.__class__}", "wanted one of: inputs.co2, inputs.n-dep"),
        ("{inputs.c02}", "Did you mean 'co2'?"),
        ("{inputs}", "wanted one of: {inputs.co2}, {inputs.n-dep}"),
        ("{member!r}", "Write a literal brace twice"),
        ("{member:>10}", "Write a literal brace twice"),
        ("{inputs[co2]}", "Write a literal brace twice"),
        ("{stage:03d}", "stage is no whole number"),
        ("{first:03d}", "first is no whole number"),
        ("{tile}", "tile has none. Set run.tiles, or leave {tile} out."),
        ("${HOME}", "For a shell variable write $HOME or ${{HOME}}."),
        ("{}", "Write a literal brace twice"),
        ("a } b", "Write a literal brace twice"),
        ("{print $1}", "Write a literal brace twice"),
    ],
)
def test_what_is_no_placeholder_is_refused(template: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand(template, CONTEXT, quote=False, where="e.yaml:3", key="run.command")
    (problem,) = caught.value.problems
    assert str(problem).startswith("e.yaml:3: run.command: found '")
    assert words in str(problem)


def test_all_problems_of_a_template_come_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        expand("{a} {member} {b} {a}", CONTEXT, quote=False)
    assert [problem.found for problem in caught.value.problems] == ["'{a}'", "'{b}'"]


def test_names_are_found_without_values() -> None:
    names = placeholder_names("x {a} {{b}} {inputs.co2} {m:03d} ${no} {not this}")
    assert names == {"a", "inputs.co2", "m"}


def test_the_sample_has_every_name_of_a_run_and_each_name_has_a_meaning() -> None:
    assert list(sample_context()) == list(RUN_NAMES)
    for table in (RUN_NAMES, PARAMETER_NAMES, INPUT_NAMES, OUTPUT_NAMES, MERGE_NAMES):
        assert all(table.values())


def test_a_template_is_rendered_with_its_last_newline() -> None:
    text = "{% if first %}y = {{ member }}{% endif %}\n"
    assert render_template(text, CONTEXT, where="t.j2") == "y = 7\n"
    assert template_names(text) == {"first", "member"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n{{ membr }}\n", "t.j2:2: found 'membr' is undefined. The names are: member, stage"),
        ("a\n\n{{ member\n", "t.j2:3: found a jinja2 syntax error"),
        ("{{ inputs.x.y }}", "t.j2:1: found 'dict object' has no attribute 'x'"),
        ("a\n{{ 1 / 0 }}", "t.j2:2: found division by zero"),
    ],
)
def test_a_broken_template_names_its_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        render_template(text, CONTEXT, where="t.j2")
    assert str(caught.value).startswith(line)
