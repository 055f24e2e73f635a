"""Everything that can go wrong, in every place: crashes at each effect, and seeded sequences.

The simulator is in ``tests/support/chaos*.py``; ``scripts/chaos`` runs many more sequences of the
same kind, and shows one of them event by event (``--replay SEED``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chaos
import chaos_report
import pytest
from chaos_plans import CASES, Workshop, workshop
from chaos_processes import ALL, use
from chaos_world import World

from callmip_global.workflow import observe, submit, task
from callmip_global.workflow.rundir import RunDir

SEEDS = 104
BATCHES = 4
SMALL = ("small slurm", "small pbs")


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    with workshop() as here:
        yield here


@pytest.fixture
def world(shop: Workshop) -> Iterator[Callable[[str], World]]:
    """``world(case)``: one to play through step by step."""
    made: list[Any] = []

    def make(case: str) -> World:
        here = World(shop, shop.case(case))
        made.append(use(here.kernel))
        made[-1].__enter__()
        return here

    yield make
    for context in made:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("case", SMALL)
def test_a_crash_at_any_single_effect_loses_and_doubles_nothing(shop: Workshop, case: str) -> None:
    """Each file written, renamed, linked or removed, each call of the scheduler, of submit, resume,
    cancel and of the jobs: killed before it, which is after the one before."""
    effects = chaos.run_actions(shop, case, chaos.REFERENCE).effects
    assert effects > 200
    wrong = {}
    for number in range(1, effects + 1):
        report = chaos.run_actions(shop, case, chaos.REFERENCE, crash_at=number)
        assert report.interrupted == 1
        if report.wrong:
            wrong[number] = report.wrong
    assert wrong == {}


def test_a_line_of_the_journal_may_be_cut_short_at_any_byte(shop: Workshop) -> None:
    """The line that says what the scheduler replied: whole, it is believed; torn, it is as if it
    had not been written."""
    once = (("submit", 0, 0),)
    report = chaos.run_actions(shop, "small slurm", once, traced=True)
    line = next(text for text in report.trace if 'append {"event": "submitted"' in text)
    number = int(line.split()[2])
    for cut in range(len(line.partition("append ")[2]) + 1):
        torn = chaos.run_actions(shop, "small slurm", once, crash_at=number, cut=cut)
        assert torn.wrong == (), f"cut after {cut} bytes"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_whatever_goes_wrong_each_task_has_exactly_one_result(shop: Workshop, batch: int) -> None:
    wrong = {}
    for seed in range(batch, SEEDS, BATCHES):
        report = chaos.run_seed(shop, seed)
        if report.wrong:
            wrong[seed] = (report.case, report.wrong)
    assert wrong == {}, "show one: scripts/chaos --replay SEED"


def test_a_seed_is_a_sequence(shop: Workshop) -> None:
    first = chaos.run_seed(shop, 17, traced=True)
    assert chaos.run_seed(shop, 17, traced=True) == first
    again = chaos.run_actions(shop, first.case, first.actions, traced=True)
    assert again.trace == first.trace


def test_every_kind_of_plan_and_every_action_is_tried(shop: Workshop) -> None:
    reports = [chaos.run_seed(shop, seed) for seed in range(len(CASES) * 3)]
    assert {report.case for report in reports} == set(CASES)
    assert {verb for r in reports for verb, _, _ in r.actions} == set(chaos.VERBS)


# Written down: what sequences found.


def advance_to(here: World, process: Any, words: str) -> None:
    """Let a process go on until the effect it is about to do has these words."""
    while process.alive and words not in process.next_effect:
        here.kernel.advance(process, 1)
    assert process.alive, f"it never comes to {words!r}"


def test_a_pbs_job_that_waits_for_one_that_is_just_ending_is_not_held_for_ever(
    world: Callable[[str], World],
) -> None:
    here = world("small pbs")
    process = here.command("submit")
    advance_to(here, process, "depend=afterok")
    here.do(("start", 0, 0))
    assert here.cluster.jobs[0].is_exiting
    here.kernel.advance(process, ALL)
    assert here.cluster.jobs[1].is_live
    here.finish()
    assert here.wrong == []


def test_an_element_that_waits_for_another_rows_failed_job_is_let_go(
    world: Callable[[str], World],
) -> None:
    """One array waits for two jobs, and Slurm never starts any of it once one of them failed: also
    not the element whose own upstream is done."""
    here = world("slurm kept")
    here.do(("submit", 0, 0))
    here.do(("start", 0, 0))
    here.do(("start", 0, 0))
    # Both of the first step are done, and only their second segments are taken out of the queue.
    for job in here.cluster.jobs[1:]:
        for element in job.elements:
            here.cluster.cancel(element)
    here.do(("submit", 0, 0))
    second, last = here.cluster.jobs[-2:]
    assert (second.step, last.step) == ("run-spin-c02", "run-past")
    here.do(("model", 0, 0))
    here.do(("start", 0, 0))
    here.finish()
    assert here.wrong == []


def test_a_submission_that_was_accepted_twice_keeps_one_job(
    world: Callable[[str], World],
) -> None:
    """What waits must wait for the job that is there, not for the one that ended as a copy."""
    here = world("small pbs")
    here.cluster.arm("submit", "twice")
    process = here.command("submit")
    advance_to(here, process, "depend=afterok")
    here.kernel.kill(process)
    first, copy = here.cluster.jobs
    assert first.token == copy.token
    here.cluster.cancel(first.elements[0])
    here.do(("submit", 0, 0))
    assert [j.step for j in here.cluster.jobs if j.is_live] == ["run-spin", "run-past"]
    here.finish()
    assert here.wrong == []
    assert [j.elements[0].starts for j in here.cluster.jobs if j.token == first.token] == [0, 1]


TWICE = ("fault", 0, 6)
"""The next submission is accepted twice."""


@pytest.mark.parametrize("case", SMALL)
def test_the_second_job_of_a_submission_may_come_at_any_moment_of_the_first(
    shop: Workshop, case: str
) -> None:
    """Between its look at the result and its claim, too: the model never runs again."""
    for effects in range(1, 40):
        both = (TWICE, ("submit", 0, 0), ("start", 0, effects), ("start", 0, 0), ("run", 0, 0))
        report = chaos.run_actions(shop, case, both)
        assert report.wrong == (), f"after {effects} effects of the first"


def test_two_commands_that_find_the_same_dead_lock_do_not_both_get_it(shop: Workshop) -> None:
    for effects in range(1, 40):
        actions = (
            ("submit", 0, 20),
            ("kill", 0, 0),
            ("submit", 0, effects),
            ("submit", 0, 15),
            ("go", 0, 1),
            ("go", 1, 0),
            ("go", 0, 0),
        )
        report = chaos.run_actions(shop, "small slurm", actions)
        assert report.wrong == (), f"after {effects} effects of the first"


# The simulator sees what it is there for: with a guarantee taken out, sequences fail.


def careless_claim(real: Callable[..., Any]) -> Callable[..., Any]:
    def claim(run: RunDir, plan: Any, ref: str, key: str, lease: Any) -> Any:
        for attempt in run.attempts(ref):
            lease.replaces = (*lease.replaces, str(attempt.status["token"]))
        return real(run, plan, ref, key, lease)

    return claim


def forgetful_reconcile(self: submit.Submitter) -> None:
    for intent in self.run.journal.intents().values():
        if intent.is_open:
            self.run.journal.append("lost", token=intent.token)


def unread_markers(run: RunDir, ref: str, key: str) -> bool:
    return False


def hopeful_queue(self: observe.Queue, *_: Any) -> bool:
    return False


def in_place(path: Path, value: Any) -> None:
    import json

    path.write_text(json.dumps(value) + "\n")


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (task, "claim", careless_claim(task.claim)),
        (submit.Submitter, "_reconcile", forgetful_reconcile),
        (RunDir, "is_done", unread_markers),
        (observe.Queue, "waits_in_vain", hopeful_queue),
        (task, "write_json", in_place),
    ],
    ids=[
        "a job that claims whatever lives",
        "replies never looked for",
        "markers not read by jobs",
        "jobs that wait for ever",
        "files written in place",
    ],
)
def test_the_simulator_sees_a_guarantee_that_is_taken_out(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, broken: Any
) -> None:
    monkeypatch.setattr(where, name, broken)
    both = (TWICE, ("submit", 0, 0), ("start", 0, 19), ("start", 0, 0))
    twice = chaos.run_actions(shop, "small slurm", both)
    assert twice.wrong or any(chaos.run_seed(shop, seed).wrong for seed in range(200))


def test_the_script_counts_what_it_tried_and_says_what_was_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = chaos_report.Total(1, 90, 3, 5, [(7, "local", ("not all is done after 25 rounds: x",))])
    good = chaos_report.Total(2, 100, 4, 6)
    good.add(bad)
    monkeypatch.setattr(chaos_report, "run_many", lambda *_: good)
    assert chaos_report.main(["3"]) == 1
    told = capsys.readouterr().out
    assert "3 sequences, 190 effects, 7 of them interrupted, 11 jobs started: 1 lost" in told
    assert "0 doubled, 0 wrong status" in told
    assert "--replay 7" in told
