"""The registry of rules: complete, without leftovers, and what decides an outcome."""

from __future__ import annotations

import ast
from pathlib import Path

import callmip_global
from callmip_global.benchmark.product_check import RULES as PRODUCT_RULES
from callmip_global.harmonize import rules
from callmip_global.harmonize.rules import RULES, outcome_of

PACKAGE = Path(callmip_global.__file__).parent


def _texts() -> set[str]:
    """Every text in the code that harmonizes, outside the registry itself."""
    files = [*(PACKAGE / "harmonize").glob("*.py"), PACKAGE / "workflow" / "ingest.py"]
    files += [PACKAGE / "timeaxis.py", PACKAGE / "grid.py", PACKAGE / "units.py"]
    found = set()
    for path in files:
        if path.name == "rules.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_every_rule_of_the_registry_is_used_by_the_code() -> None:
    assert set(RULES) - _texts() == set()


def test_every_rule_that_a_problem_names_is_in_the_registry() -> None:
    """The benchmark has one of its own, for products and runs that are read and not mended."""
    unknown = set()
    for path in PACKAGE.rglob("*.py"):
        registry = PRODUCT_RULES if path.parent.name == "benchmark" else RULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            given = isinstance(node, ast.keyword) and node.arg == "rule"
            if given and isinstance(node.value, ast.Constant):
                unknown |= {str(node.value.value)} - set(registry)
    assert unknown == set()


def test_every_rule_is_shown_by_a_test_that_names_it() -> None:
    here = Path(__file__)
    tests = "".join(
        path.read_text(encoding="utf-8") for path in here.parent.glob("*.py") if path != here
    )
    assert [name for name in RULES if f'"{name}"' not in tests] == []


def test_the_worst_rule_decides_the_outcome() -> None:
    assert outcome_of([]) == "accepted"
    assert outcome_of(["not-used"]) == "accepted"
    assert outcome_of(["not-used", "units"]) == "fixed"
    assert outcome_of(["units", "unreadable"]) == "refused"


def test_no_name_is_given_to_two_rules() -> None:
    """The later one would hide the earlier, in reports and in the documentation."""
    assert len(RULES) == len(rules._ALL)
