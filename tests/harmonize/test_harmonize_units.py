"""Harmonizing in pieces: what belongs together stays together, and sums of parts are the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.harmonize.checks import Summary
from callmip_global.harmonize.derive import parse_expression
from callmip_global.harmonize.run import _families
from callmip_global.variables import variable_table

LAT = np.array([-50.0, 50.0])
MONTHS = [1, 2, 6, 7, 8, 12]


@given(
    cut=st.integers(0, len(MONTHS)),
    values=st.lists(
        st.one_of(st.integers(-8, 8), st.just(np.nan), st.just(np.inf)),
        min_size=12 * 2,
        max_size=12 * 2,
    ),
)
def test_a_summary_of_two_parts_is_that_of_the_whole(cut: int, values: list[float]) -> None:
    var = variable_table()["gpp"]
    weights = np.array([[1.0, 2.0], [4.0, 8.0]])
    block = np.array(values).reshape(len(MONTHS), 2, 2)

    def summary(steps: slice) -> Summary:
        made = Summary()
        made.add(block[steps], weights, var)
        made.seasons.add(block[steps], weights, LAT, MONTHS[steps])
        return made

    whole, joined = summary(slice(None)), Summary()
    joined.merge(summary(slice(0, cut)))
    joined.merge(summary(slice(cut, None)))
    assert joined.report() == whole.report()
    assert (joined.infinite, joined.weighted) == (whole.infinite, whole.weighted)
    assert joined.seasons == whole.seasons


def plan_of(derivations: dict[str, str | None], annual: tuple[str, ...] = ()) -> Any:
    plans = {
        name: SimpleNamespace(
            entry=SimpleNamespace(expression=None if text is None else parse_expression(text)),
            frequency="yr" if name in annual else "mon",
        )
        for name, text in derivations.items()
    }
    delivered = tuple(name for name in plans if name != "hidden")
    return SimpleNamespace(plans=plans, delivered=delivered)


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        (
            "mon",
            [
                (("gpp", "ra", "rh", "reco", "nep"), ("gpp", "ra", "rh", "reco", "nep")),
                (("hidden", "et"), ("et",)),
                (("ts",), ("ts",)),
            ],
        ),
        (
            "yr",
            [
                (("gpp", "ra", "rh", "reco", "nep"), ("gpp", "ra", "rh", "reco", "nep")),
                (("hidden", "et"), ("et",)),
                (("ts",), ("ts",)),
                (("cVeg",), ("cVeg",)),
            ],
        ),
    ],
)
def test_variables_that_are_made_of_each_other_are_one_unit(group: Any, wanted: Any) -> None:
    plan = plan_of(
        {
            "gpp": None,
            "ra": None,
            "rh": None,
            "hidden": None,
            "ts": None,
            "cVeg": None,
            "reco": "ra + rh",
            "nep": "gpp - reco",
            "et": "hidden * 2",
        },
        annual=("cVeg",),
    )
    # Annual means that are taken while months are read need no units of their own.
    alongside: Any = SimpleNamespace(plan=plan, annual=object())
    assert _families(alongside, "yr") == [(("cVeg",), ("cVeg",))]
    work: Any = SimpleNamespace(plan=plan, annual=None)
    assert _families(work, group) == sorted(
        wanted, key=lambda family: list(plan.delivered).index(family[1][0])
    )
