"""What the pages of docs/ point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from callmip_global.harmonize.rules import RULES

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs").glob("*.md"))


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_pages() -> None:
    assert PAGES


def test_every_test_that_a_page_names_exists(project_root: Path, page: Path) -> None:
    files = {path.stem: path for path in (project_root / "tests").rglob("test_*.py")}
    named = re.findall(r"`(test_\w+)::(test_\w+)`", page.read_text(encoding="utf-8"))
    missing = [
        f"{module}::{name}"
        for module, name in named
        if module not in files or f"\ndef {name}(" not in files[module].read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_link_of_a_page_has_a_target_and_none_is_left_over(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    defined = re.findall(r"^\[([^\]]+)\]: \S", text, re.MULTILINE)
    used = re.findall(r"\]\[([^\]]+)\]", text)
    assert sorted(defined) == sorted(set(used))
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_the_table_of_rules_is_that_of_the_registry(
    project_root: Path, request: pytest.FixtureRequest
) -> None:
    path = project_root / "docs" / "harmonizing.md"
    text = path.read_text(encoding="utf-8")
    start, end = (
        "<!-- rules: pytest tests/test_docs.py --update-golden -->\n",
        "<!-- end of rules -->",
    )
    rows = [f"| `{r.name}` | {r.kind} | {r.does} | {r.evidence} |" for r in RULES.values()]
    table = "\n".join(["| rule | kind | what happens | evidence |", "|---|---|---|---|", *rows])
    before, rest = text.split(start)
    wanted = f"{before}{start}{table}\n{end}{rest.split(end)[1]}"
    if request.config.getoption("--update-golden"):
        path.write_text(wanted, encoding="utf-8")
        pytest.skip(f"{path} written")
    assert text == wanted, "the rules have changed; pytest tests/test_docs.py --update-golden"
