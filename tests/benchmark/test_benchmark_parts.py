"""Parts of a map: sums over regions from few sums are those of each cell by itself."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.benchmark.parts import Parts
from callmip_global.benchmark.statistics import PairSums


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.random.Generator]:
    """(regions, cells) shares, many of them 0 or 1."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    kind = rng.random(shape)
    edge = draw(st.floats(0, 0.5))
    return np.where(kind < edge, 0.0, np.where(kind > 1 - edge, 1.0, rng.random(shape))), rng


@given(given=maps(), n_models=st.integers(1, 3), n_steps=st.integers(1, 5))
def test_regional_sums_are_those_of_all_cells_by_their_shares(given, n_models, n_steps):
    shares, rng = given
    n_cells = shares.shape[1]
    area = rng.uniform(1e8, 1e9, n_cells)
    parts = Parts.of(shares * area, area)
    reference = rng.normal(300.0, 1.0, (n_steps, n_cells))
    models = rng.normal(300.0, 1.0, (n_models, n_steps, n_cells)).astype(np.float32)
    reference[rng.random(reference.shape) < 0.2] = np.nan
    models[rng.random(models.shape) < 0.2] = np.nan
    sums = PairSums.empty(n_models, n_cells, 1)
    slots = np.zeros(n_steps, np.int64)
    added = sums.add(reference, models, np.ones(n_steps), slots, part=parts.part, area=area)
    areas, totals = parts.kinds @ added.areas, parts.kinds @ added.sums
    parts.add_cut(reference, models, area, areas, totals)
    series = np.concatenate([reference[None], models])
    there = np.isfinite(series).all(axis=0)
    weight = np.round(shares, 12) * area
    np.testing.assert_allclose(areas, weight @ there.T, rtol=1e-11)
    expected = np.einsum("rc,ktc->krt", weight, np.where(there, series, 0.0))
    np.testing.assert_allclose(totals, expected, rtol=1e-11)


@given(given=maps(), n_fields=st.integers(1, 3))
def test_sums_of_maps_are_those_of_all_cells_by_their_shares(given, n_fields):
    shares, rng = given
    area = rng.uniform(1e8, 1e9, shares.shape[1])
    values = rng.normal(300.0, 1.0, (n_fields, shares.shape[1]))
    values[rng.random(values.shape) < 0.2] = np.nan
    total, weight, cells = Parts.of(shares * area, area).sums(values, area)
    there = np.isfinite(values)
    own = np.round(shares, 12) * area
    np.testing.assert_allclose(total, np.where(there, values, 0.0) @ own.T, rtol=1e-11)
    np.testing.assert_allclose(weight, there @ own.T, rtol=1e-11)
    np.testing.assert_array_equal(cells, there.astype(int) @ (own > 0).astype(int).T)


@given(given=maps())
def test_parts_of_some_cells_are_those_of_the_cells(given):
    shares, rng = given
    area = rng.uniform(1e8, 1e9, shares.shape[1])
    cells = np.sort(rng.permutation(shares.shape[1])[: rng.integers(1, shares.shape[1] + 1)])
    some = Parts.of(shares * area, area).of_cells(cells)
    alone = Parts.of((shares * area)[:, cells], area[cells])
    np.testing.assert_array_equal(some.kinds[:, some.part], alone.kinds[:, alone.part])
    for name in ("first", "region", "share"):
        np.testing.assert_array_equal(getattr(some, name), getattr(alone, name))


def test_ragged_borders_do_not_make_more_parts():
    """100 cells of two regions that cut each of them: one part, not 100."""
    share = np.linspace(0.01, 0.99, 100)
    parts = Parts.of(np.stack([np.ones(100), share, 1.0 - share]), np.ones(100))
    assert parts.kinds.tolist() == [[1.0], [0.0], [0.0]]
    assert parts.region.tolist() == [1, 2] * 100
