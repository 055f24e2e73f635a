"""Grids for tests: drawn at random, and the ones that models really have."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from callmip_global.grid import Grid


@st.composite
def axis_edges(draw: st.DrawFn, low: float, high: float, whole: bool) -> np.ndarray:
    """Ascending edges, at least 0.01 degrees apart, from pole to pole (or round) when ``whole``."""
    steps = int((high - low) * 100)
    inner = draw(
        st.lists(st.integers(1, steps - 1), min_size=0 if whole else 2, max_size=7, unique=True)
    )
    edges = np.array(sorted(inner)) / 100.0 + low
    return np.concatenate([[low], edges, [high]]) if whole else edges


@st.composite
def grids(draw: st.DrawFn, whole: bool = True) -> Grid:
    """Any rectilinear grid of up to 8 x 8 cells; its longitudes start anywhere."""
    start = draw(st.integers(-36000, 36000)) / 100.0
    lat = draw(axis_edges(-90.0, 90.0, whole))
    lon = draw(axis_edges(start, start + 360.0, whole))
    return Grid("drawn", lat, lon)


def gaussian(n_lat: int, n_lon: int) -> Grid:
    """A Gaussian grid as models have it: rows as high as their quadrature weight."""
    nodes, weights = np.polynomial.legendre.leggauss(n_lat)
    inner = np.rad2deg(np.arcsin(np.cumsum(weights)[:-1] - 1.0))
    # Symmetric to the last bit, as the edges that are read out of a file are.
    lat_edges = np.concatenate([[-90.0], 0.5 * (inner - inner[::-1]), [90.0]])
    step = 360.0 / n_lon
    lon_edges = np.asarray((np.arange(n_lon + 1) - 0.5) * step, dtype=np.float64)
    return Grid("gauss", lat_edges, lon_edges, np.rad2deg(np.arcsin(nodes)))


def pole_centred(n_lat: int, n_lon: int) -> Grid:
    """A grid with half rows centred on the poles (CLM, ELM; N96 is 145 x 192)."""
    centres = np.linspace(-90.0, 90.0, n_lat)
    inner = 0.5 * (centres[:-1] + centres[1:])
    lon_edges = (np.arange(n_lon + 1) - 0.5) * 360.0 / n_lon
    return Grid("poles", np.concatenate([[-90.0], inner, [90.0]]), lon_edges, centres)


def fields(grid: Grid, seed: int, steps: int = 2) -> np.ndarray:
    """(steps, nlat, nlon) float64 in [0, 10), a third of it missing."""
    rng = np.random.default_rng(seed)
    values = 10.0 * rng.random((steps, *grid.shape))
    values[rng.random(values.shape) < 0.33] = np.nan
    return values


def integral(grid: Grid, values: np.ndarray, fraction: np.ndarray | float) -> np.ndarray:
    """(...) integral over each map [units of values x m2], NaN counted as nothing."""
    return np.asarray(np.nansum(values * fraction * grid.cell_area, axis=(-2, -1)))
