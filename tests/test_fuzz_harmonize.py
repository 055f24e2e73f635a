"""scripts/fuzz_harmonize: what a judge must know, and a few of its cases; it runs thousands."""

from __future__ import annotations

from pathlib import Path

import fuzz_harmonize
import fuzz_report
import numpy as np
import pytest
from fuzz_harmonize import MUTATIONS, NAMES, WORLD, Case, Verdict, Victim, could_be
from submissions import trendy

SEEDS = range(1000, 1012)


def test_a_few_damaged_submissions_crash_nothing_and_nothing_wrong_is_accepted() -> None:
    total = fuzz_report.Total()
    for case in fuzz_report.run_here(SEEDS):
        total.add(case)
    assert total.mutations > len(SEEDS)
    assert not total.findings, "\n".join(map(str, total.findings))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_every_mutation_changes_the_file(tmp_path: Path, mutation: fuzz_harmonize.Mutation) -> None:
    good = tmp_path / "good" / "X_S3_gpp.nc"
    trendy(WORLD, "gpp", storage={"contiguous": True}).write(good)
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        file = trendy(WORLD, "gpp", storage={"contiguous": True})
        victim = Victim("gpp", file, folder / good.name, "plain")
        mutation.apply(np.random.default_rng(seed), victim)
        found = [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
        if found != [good.read_bytes()] or not victim.path.is_file():
            return
    pytest.fail(f"{mutation.name} did nothing in 20 tries")


@pytest.mark.parametrize("name", NAMES)
def test_the_judge_takes_the_world_for_possible_and_no_gross_mistake(name: str) -> None:
    values = WORLD.values(name)
    assert could_be(name, values)
    assert could_be(name, values * 1.01)
    for wrong in (values * 1e3, values * 0, values + 1e31, np.full_like(values, np.nan)):
        assert not could_be(name, wrong)


def test_a_process_that_dies_is_a_finding_and_its_seed_is_not_tried_again() -> None:
    worker = fuzz_report._Worker([3, 5, 7], "")
    worker.start()
    worker.seed = 5
    case = worker.lost("the process died")
    assert not worker.process.is_alive()
    assert worker.seeds == [7]
    total = fuzz_report.Total()
    total.add(case)
    assert [v.seed for v in total.findings] == [5]


def test_findings_are_counted_once_for_a_case_and_in_the_table() -> None:
    total = fuzz_report.Total()
    crash = [Verdict(1, n, "bytes", "truncated", "cut", "crash", "crash: X") for n in NAMES]
    total.add(Case(1, crash))
    assert len(total.findings) == 1
    assert total.outcomes["bytes", "FINDING"] == len(NAMES)
    assert "FINDING" in fuzz_report.table(total)
