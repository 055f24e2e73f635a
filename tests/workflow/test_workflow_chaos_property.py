"""Sequences drawn by hypothesis, which cuts one that fails down to the few actions that matter."""

from __future__ import annotations

from collections.abc import Iterator

import chaos
import pytest
from chaos_plans import CASES, Workshop, workshop
from chaos_world import Action
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# What is drawn is one of these as it stands; often the ones that get anywhere.
_OFTEN = ("submit", "start", "run", "go")
_VERBS = (*_OFTEN, *_OFTEN, *chaos.VERBS)

actions: st.SearchStrategy[list[Action]] = st.lists(
    st.tuples(st.sampled_from(_VERBS), st.integers(0, 11), st.integers(0, 60)), max_size=30
)


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    with workshop() as here:
        yield here


@given(case=st.sampled_from(CASES), sequence=actions)
@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_sequence_of_actions_loses_or_doubles_a_result_or_makes_status_lie(
    shop: Workshop, case: str, sequence: list[Action]
) -> None:
    report = chaos.run_actions(shop, case, [("submit", 0, 0), *sequence])
    assert report.wrong == ()


@given(number=st.integers(1, 400), cut=st.integers(0, 400), sequence=actions)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nor_does_a_crash_at_any_effect_of_it_with_the_write_cut_anywhere(
    shop: Workshop, number: int, cut: int, sequence: list[Action]
) -> None:
    report = chaos.run_actions(
        shop, "small slurm", [("submit", 0, 0), *sequence], crash_at=number, cut=cut
    )
    assert report.wrong == ()
