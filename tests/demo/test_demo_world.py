"""The demonstration's world: its grid, its land, its climate."""

from __future__ import annotations

from pathlib import Path

import netCDF4
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.demo.climate import Climate, warming_k
from callmip_global.demo.surface import gaussian_grid
from callmip_global.grid import EARTH_RADIUS_M


@given(half=st.integers(1, 80))
def test_gaussian_rows_fill_the_sphere_and_lie_inside_their_edges(half: int) -> None:
    lat, edges, lon = gaussian_grid(2 * half, 8)
    assert (edges[0], edges[-1]) == (90.0, pytest.approx(-90.0, abs=1e-5))
    assert (edges[:-1] > lat).all()
    assert (lat > edges[1:]).all()
    np.testing.assert_allclose(lat, -lat[::-1], atol=1e-12)
    assert lon.tolist() == [0, 45, 90, 135, 180, 225, 270, 315]


def test_two_gaussian_rows_are_at_the_nodes_of_the_textbook() -> None:
    lat, edges, _ = gaussian_grid(2, 4)
    np.testing.assert_allclose(np.sin(np.deg2rad(lat)), [3**-0.5, -(3**-0.5)], rtol=1e-14)
    np.testing.assert_allclose(edges, [90.0, 0.0, -90.0], atol=1e-6)


def test_the_land_is_where_it_is_and_as_much_as_there_is(small_demo: Path) -> None:
    with netCDF4.Dataset(small_demo / "data" / "surface.nc") as file:
        land, interior = file["land_frac"][:].data, file["interior"][:].data
        lat, lon = file["lat"][:].data, file["lon"][:].data
    edges = np.sin(np.deg2rad(gaussian_grid(24, 48)[1]))
    area = EARTH_RADIUS_M**2 * (edges[:-1] - edges[1:])[:, None] * 2.0 * np.pi / 48 * land
    # All land has 149 million km2, Antarctica 14 of them.
    assert area.sum() / 1e12 == pytest.approx(135.0, abs=3.0)

    def at(north: float, east: float) -> tuple[float, float]:
        cell = np.abs(lat - north).argmin(), np.abs(lon - east).argmin()
        return land[cell], interior[cell]

    assert at(48.0, 75.0) == (1.0, 1.0)  # Kazakhstan
    assert at(0.0, 220.0)[0] == 0.0  # the Pacific
    assert at(-80.0, 0.0)[0] == 0.0  # Antarctica, left out
    assert 0.0 <= at(-41.0, 173.0)[1] < 0.3  # New Zealand


@pytest.fixture
def world() -> Climate:
    lat, lon = (a.ravel() for a in np.meshgrid(np.linspace(-85, 85, 35), np.arange(0.0, 360, 10)))
    return Climate(lat, lon, np.full(lat.shape, 0.5))


def test_a_year_has_one_weather_and_every_year_its_own(world: Climate) -> None:
    one, again, other = world.weather(1910), world.weather(1910), world.weather(1911)
    np.testing.assert_array_equal(one.temperature_c, again.temperature_c)
    np.testing.assert_array_equal(one.precipitation_mm_day, again.precipitation_mm_day)
    assert np.abs(one.temperature_c - other.temperature_c).max() > 0.5


@given(first=st.integers(0, 300), count=st.integers(1, 40), year=st.integers(1901, 2024))
def test_the_weather_of_a_cell_does_not_depend_on_its_company(
    first: int, count: int, year: int
) -> None:
    rng = np.random.default_rng(3)
    lat, lon, interior = rng.uniform(-60, 85, 400), rng.uniform(0, 360, 400), rng.random(400)
    some = slice(first, first + count)
    whole = Climate(lat, lon, interior).weather(year)
    part = Climate(lat[some], lon[some], interior[some]).weather(year)
    for name in ("temperature_c", "precipitation_mm_day", "shortwave_w_m2", "cloud"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:, some])


def test_the_sun_gives_a_quarter_of_the_solar_constant_over_globe_and_year() -> None:
    lat = np.arange(-89.5, 90.0)
    sun = Climate(lat, np.zeros_like(lat), np.zeros_like(lat)).insolation_w_m2
    mean = np.average(sun.mean(axis=0), weights=np.cos(np.deg2rad(lat)))
    assert mean == pytest.approx(1361.0 / 4.0, rel=2e-3)
    assert (sun[11][lat > 67.0] == 0.0).all()  # polar night


def test_warming_begins_after_1900_and_reaches_a_degree_and_a_half() -> None:
    assert warming_k(1850) == warming_k(1900) == 0.0
    assert warming_k(1975) == pytest.approx(0.3)
    assert warming_k(2024) == pytest.approx(0.3 + 0.025 * 49)
