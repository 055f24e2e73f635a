"""The demonstration model's climate: idealised, smooth, the same for everybody, by year and cell.

Zonal means, a continentality term and a short table of regional departures give a recognisable
world (wet tropics, subtropical deserts, cold continental winters); a handful of plane waves with
seeded coefficients per calendar year give interannual variability; from 1901 a warming trend is
added. Year ``y`` always has the same weather, so a recycled period repeats exactly.

Every function works element by element over cells: the weather of a cell does not depend on which
other cells are asked for, which is what lets tiles equal the whole globe bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MONTH_DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], dtype=np.float64)
SOLAR_CONSTANT_W_M2 = 1361.0
_SEED = 20240501
_MODES = 5

# Regional departures: latitude, longitude (degrees), half widths (degrees), log of the
# precipitation factor, temperature offset (K; altitude, ice, currents). Chosen by eye.
_REGIONS = (
    (23.0, 12.0, 9.0, 38.0, -2.9, 1.5),  # Sahara
    (24.0, 50.0, 9.0, 16.0, -2.4, 1.0),  # Arabia, Iran
    (41.0, 75.0, 8.0, 28.0, -1.3, -1.0),  # Central Asia
    (34.0, 88.0, 6.0, 13.0, -0.5, -14.0),  # Tibet
    (-25.0, 132.0, 8.0, 17.0, -1.2, 1.0),  # Australia
    (-23.0, 18.0, 8.0, 8.0, -1.0, -1.0),  # Namib, Kalahari
    (-24.0, 290.0, 10.0, 5.0, -2.2, -7.0),  # Atacama, Andes
    (34.0, 248.0, 8.0, 11.0, -1.5, -1.0),  # south-western North America
    (9.0, 46.0, 8.0, 7.0, -1.3, 0.0),  # Horn of Africa
    (-4.0, 297.0, 10.0, 15.0, 0.25, -0.5),  # Amazon
    (0.0, 22.0, 7.0, 12.0, 0.1, -1.5),  # Congo
    (1.0, 115.0, 10.0, 22.0, 0.4, -0.5),  # maritime continent
    (22.0, 95.0, 8.0, 18.0, 0.9, 0.0),  # Asian monsoon
    (29.0, 115.0, 8.0, 10.0, 0.8, 0.0),  # eastern China
    (36.0, 275.0, 9.0, 12.0, 0.6, 0.0),  # eastern North America
    (50.0, 10.0, 9.0, 22.0, 0.0, 5.0),  # Europe: Atlantic warmth
    (73.0, 320.0, 9.0, 20.0, -0.5, -11.0),  # Greenland ice
    (66.0, 130.0, 9.0, 35.0, -0.3, -4.0),  # eastern Siberia
)


@dataclass(frozen=True)
class Weather:
    """Monthly means of one year; every array is (12, n_cells)."""

    temperature_c: Array
    precipitation_mm_day: Array
    shortwave_w_m2: Array
    relative_humidity: Array
    cloud: Array


class Climate:
    """The climate of given cells.

    ``lat``, ``lon``: degrees north and east, (n,). ``continentality``: 0 (island) .. 1 (interior).
    """

    def __init__(self, lat: Array, lon: Array, continentality: Array) -> None:
        phi = np.deg2rad(lat)
        sin_phi = np.sin(phi)
        self._sin2 = sin_phi * sin_phi
        self._continentality = continentality
        log_rain = np.zeros_like(lat)
        warmth = np.zeros_like(lat)
        for lat0, lon0, dlat, dlon, rain, offset_k in _REGIONS:
            east = (lon - lon0 + 180.0) % 360.0 - 180.0
            weight = np.exp(-(((lat - lat0) / dlat) ** 2) - (east / dlon) ** 2)
            log_rain = log_rain + rain * weight
            warmth = warmth + offset_k * weight
        self.temperature_c = self._seasonal_temperature(lat, sin_phi, warmth)
        self.precipitation_mm_day = self._seasonal_rain(lat, np.exp(log_rain))
        self.insolation_w_m2 = np.stack([_insolation(phi, month) for month in range(12)])
        self._temperature_spread_k = 0.45 + 1.6 * np.abs(sin_phi) * (0.4 + continentality)
        self._patterns = _patterns(phi, np.deg2rad(lon))

    def _seasonal_temperature(self, lat: Array, sin_phi: Array, warmth: Array) -> Array:
        mean = 26.7 - 39.5 * self._sin2 + warmth
        amplitude = sin_phi * (4.0 + 17.0 * self._continentality)
        # Warmest in late July north of the equator: month index 6.3.
        season = np.cos(2.0 * np.pi * (np.arange(12) - 6.3) / 12.0)
        return np.asarray(mean + season[:, None] * amplitude)

    def _seasonal_rain(self, lat: Array, factor: Array) -> Array:
        phase = 2.0 * np.pi * (np.arange(12) - 6.8) / 12.0
        summer = np.cos(phase)[:, None]
        rain_belt = np.exp(-(((lat - 11.0 * summer) / 13.0) ** 2))
        storms = np.exp(-(((np.abs(lat) - 50.0) / 16.0) ** 2))
        # Interiors have their rain in summer, coasts of the storm belts in winter.
        hemisphere = np.sign(lat) * summer
        storm_season = 1.0 + hemisphere * (1.1 * self._continentality - 0.35)
        rain = 7.4 * rain_belt + 2.1 * storms * storm_season + 0.6
        dryness = np.exp(-0.5 * (self._continentality - 0.5))
        return np.asarray(np.maximum(rain * factor * dryness, 0.01))

    def weather(self, year: int) -> Weather:
        """The twelve months of calendar year ``year``."""
        numbers = np.random.default_rng([_SEED, year])
        lasting = numbers.standard_normal((2, 1, _MODES))
        monthly = numbers.standard_normal((2, 12, _MODES))
        warm, wet = 0.6 * lasting + 0.8 * monthly
        trend = warming_k(year)
        temperature = (
            self.temperature_c
            + trend * (0.8 + 0.9 * self._sin2)
            + self._temperature_spread_k * self._field(warm)
        )
        # exp(-s2/2) keeps the mean of the log-normal factor at one.
        rain = self.precipitation_mm_day * np.exp(
            0.28 * self._field(wet) - 0.5 * 0.28**2 + 0.015 * trend
        )
        cloud = rain / (rain + 2.5)
        return Weather(
            temperature_c=temperature,
            precipitation_mm_day=rain,
            shortwave_w_m2=self.insolation_w_m2 * (0.73 - 0.34 * cloud),
            relative_humidity=0.38 + 0.47 * rain / (rain + 1.2),
            cloud=cloud,
        )

    def _field(self, coefficients: Array) -> Array:
        """(12, n) of unit variance; summed mode by mode, since BLAS may round by array length."""
        total = np.zeros_like(self.temperature_c)
        for mode in range(_MODES):
            total = total + coefficients[:, mode, None] * self._patterns[mode]
        return total


def warming_k(year: int) -> float:
    """Global warming of ``year`` above 1900: slow until 1975, then 0.025 K a year."""
    return 0.004 * min(max(year - 1900, 0), 75) + 0.025 * max(year - 1975, 0)


def _patterns(phi: Array, lam: Array) -> Array:
    """(modes, n) plane waves, periodic in longitude, of variance 1 / modes."""
    waves = ((0, 2.0, 0.3), (1, 1.5, 1.1), (2, 2.5, 2.0), (3, 2.0, 4.1), (4, 3.0, 5.2))
    scale = np.sqrt(2.0 / _MODES)
    return np.stack([scale * np.cos(n * lam + k * phi + shift) for n, k, shift in waves])


def _insolation(phi: Array, month: int) -> Array:
    """Daily mean insolation at the top of the atmosphere, W m-2, at mid-month.

    Source: Peixoto and Oort (1992), eq. 6.11, with a circular orbit.
    """
    day = MONTH_DAYS[:month].sum() + 0.5 * MONTH_DAYS[month]
    declination = np.deg2rad(-23.44) * np.cos(2.0 * np.pi * (day + 10.0) / 365.0)
    hour = np.arccos(np.clip(-np.tan(phi) * np.tan(declination), -1.0, 1.0))
    high = hour * np.sin(phi) * np.sin(declination)
    low = np.cos(phi) * np.cos(declination) * np.sin(hour)
    return np.asarray(np.maximum(SOLAR_CONSTANT_W_M2 / np.pi * (high + low), 0.0))
