"""What unit strings mean: the catalogue of strings seen in real submissions, then the laws."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.errors import DataError
from callmip_global.units import convert_factor, normalise_text, same_units

FLUX, POOL = "kg m-2 s-1", "kg m-2"
DAY = 86400.0

# Strings of TRENDY and CalLMIP files (reference: census of submissions), and what they mean.
CATALOGUE = [
    ("kg m-2 s-1", FLUX, 1.0),
    ("kgC m-2 s-1", FLUX, 1.0),
    ("kg C m-2 s-1", FLUX, 1.0),
    ("kgC/m2/s", FLUX, 1.0),
    ("KgC/m2.s", FLUX, 1.0),
    ("kg m^{-2} s^{-1}", FLUX, 1.0),
    ("kg C m$^{-2}$ s$^{-1}$", FLUX, 1.0),
    ("kg/m2/s", FLUX, 1.0),
    ("kg m**-2 s**-1", FLUX, 1.0),
    ("kg m⁻² s⁻¹", FLUX, 1.0),
    ("kg m−2 s−1", FLUX, 1.0),
    ("kg/(m2 s)", FLUX, 1.0),
    ("kgC m-2s-1", FLUX, 1.0),
    ("kg(H2O) m-2 s-1", FLUX, 1.0),
    ("kg [C] m-2 s-1", FLUX, 1.0),
    ("kg-C m-2 s-1", FLUX, 1.0),
    ("kg carbon m-2 s-1", FLUX, 1.0),
    ("kgC\\,m^{-2}\\,s^{-1}", FLUX, 1.0),
    ("Kg/m2.s", FLUX, 1.0),
    ("gC/m2.day", FLUX, 1e-3 / DAY),
    ("\ufeffkg m-2 s-1", FLUX, 1.0),
    ("mm H2O/s", FLUX, 1.0),
    ("mmH2O/s", FLUX, 1.0),
    ("kg m-2\u200b", POOL, 1.0),
    ("kg.m-2", POOL, 1.0),
    ("tC ha-1", POOL, 0.1),
    ("gC/m2/d", FLUX, 1e-3 / DAY),
    ("gC m-2 day-1", FLUX, 1e-3 / DAY),
    ("g C m^-2 d^-1", FLUX, 1e-3 / DAY),
    ("mm/s", FLUX, 1.0),
    ("mm day-1", FLUX, 1.0 / DAY),
    ("mm", POOL, 1.0),
    ("umolCO2 m-2 s-1", FLUX, 12.011e-9),
    ("µmol CO2 m-2 s-1", FLUX, 12.011e-9),
    ("kgCO2 m-2 s-1", FLUX, 12.011 / 44.009),
    ("watt/m2", "W m-2", 1.0),
    ("W/m2", "W m-2", 1.0),
    ("Wm-2", "W m-2", 1.0),
    ("W m$^{-2}$", "W m-2", 1.0),
    ("MJ m-2 day-1", "W m-2", 1e6 / DAY),
    ("m2.m-2", "1", 1.0),
    ("m2 m-2", "1", 1.0),
    ("%", "1", 0.01),
    ("-", "1", 1.0),
    ("[-]", "1", 1.0),
    ("[m2 m-2]", "1", 1.0),
    ("degree K", "K", 1.0),
    ("degrees Kelvin", "K", 1.0),
    ("hPa", "Pa", 100.0),  # a symbol the table lacks: pint knows it
]


@pytest.mark.parametrize(("text", "target", "factor"), CATALOGUE, ids=[c[0] for c in CATALOGUE])
def test_strings_seen_in_real_files_are_understood(text: str, target: str, factor: float) -> None:
    conversion = convert_factor(text, target, "file.nc", "x")
    assert conversion.factor == pytest.approx(factor, rel=1e-12)
    assert conversion.offset == 0.0
    assert conversion.per is None


@pytest.mark.parametrize(
    "text", ["degC", "deg C", "deg-C", "°C", "celsius", "C", "$^\\circ$C", "℃"]
)
def test_degrees_celsius_become_kelvin_by_an_offset(text: str) -> None:
    conversion = convert_factor(text, "K", "file.nc", "ts")
    assert conversion.apply(np.array([[[20.0]]])) == pytest.approx(293.15)


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        ("", "K", "no units"),
        ("\u200b", "K", "no units"),
        ("W m-2", FLUX, "latent heat"),
        (FLUX, "W m-2", "latent heat"),
        ("mm/day", "W m-2", "latent heat"),
        ("W m-2", "mm day-1", "latent heat"),
        ("umol m-2 s-1", FLUX, "molCO2"),
        ("kg m-2", FLUX, "wanted units convertible to 'kg m-2 s-1'"),
        ("Mm/day", FLUX, "unknown symbol 'Mm'"),
        ("kg m-2 s-1 per pft", FLUX, "wanted units convertible"),
        ("kgN m-2", POOL, "unknown symbol 'kgN'"),
        ("10^3 kg m-2", POOL, "10^3 kg m-2"),
        ("kg m-2 s-1 month-1", FLUX, "wanted units convertible"),
        ("mm", FLUX, "wanted units convertible"),
        ("m3 m-3", POOL, "thickness of each layer"),
        ("degree m K", "K", "unknown symbol 'degree'"),
        ("kg radian m-2", POOL, "unknown symbol 'radian'"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(
    text: str, target: str, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        convert_factor(text, target, "file.nc", "x")
    (problem,) = caught.value.problems
    assert words in str(problem)
    assert str(problem).startswith("file.nc: x: found ")


def test_a_depth_of_water_is_no_carbon() -> None:
    with pytest.raises(DataError, match="no mass of carbon"):
        convert_factor("mm/day", FLUX, "file.nc", "gpp", substance="carbon")
    with pytest.raises(DataError, match="speak of C, the variable is water"):
        convert_factor("kgC m-2 s-1", FLUX, "file.nc", "tran", substance="water")


def test_amounts_per_month_use_the_true_length_of_each_month() -> None:
    conversion = convert_factor("gC m-2 month-1", FLUX, "file.nc", "gpp")
    assert conversion.per_month
    got = conversion.apply(np.array([31.0, 28.0]).reshape(2, 1, 1), np.array([31.0, 28.0]))
    assert got.ravel() == pytest.approx([1e-3 / DAY, 1e-3 / DAY], rel=1e-12)
    with pytest.raises(ValueError, match="length of each month"):
        conversion.apply(np.ones((1, 1, 1)))


def test_amounts_per_year_use_the_true_length_of_each_year() -> None:
    conversion = convert_factor("mm yr-1", FLUX, "file.nc", "tran")
    got = conversion.apply(np.array([365.0, 366.0]).reshape(2, 1, 1), np.array([365.0, 366.0]))
    assert got.ravel() == pytest.approx([1 / DAY, 1 / DAY], rel=1e-12)


def test_the_note_says_what_was_done() -> None:
    assert convert_factor("mm.month-1", FLUX, "f", "evspsbl").note == (
        "mm.month-1 -> kg m-2 s-1 (true length of each month; 1 mm of water = 1 kg m-2)"
    )
    assert convert_factor(FLUX, FLUX, "f", "gpp").identity


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("W/m2", "watt m-2", True),
        ("kgC m-2 s-1", "kg m-2 s-1", True),
        ("mm/s", "kg m-2 s-1", True),
        ("mm/s", "kgC m-2 s-1", False),
        ("gC m-2 d-1", "kgC m-2 d-1", False),
        ("degC", "K", False),
        ("mm month-1", "mm day-1", False),
        ("kgC m-2 s-1", "kgCO2 m-2 s-1", False),
        ("furlongs of grass", "furlongs  of grass", True),
    ],
)
def test_same_units_compares_meanings_not_spellings(one: str, two: str, same: bool) -> None:
    assert same_units(one, two) is same
    assert same_units(two, one) is same


MASS = st.sampled_from(["kg", "g", "mg", "Pg", "kgC", "gC", "kg C", "g C"])
AREA = st.sampled_from(["m-2", "/m2", "ha-1", "m^-2", "/m^2", "cm-2"])
RATE = st.sampled_from(["s-1", "d-1", "/day", "h-1", "/s", "min-1"])


@given(MASS, AREA, RATE, MASS, AREA, RATE)
def test_there_and_back_is_the_identity(
    m1: str, a1: str, t1: str, m2: str, a2: str, t2: str
) -> None:
    one, two = f"{m1} {a1} {t1}", f"{m2} {a2} {t2}"
    there = convert_factor(one, two, "f", "gpp").factor
    back = convert_factor(two, one, "f", "gpp").factor
    assert there * back == pytest.approx(1.0, rel=1e-12)


@given(MASS, AREA, RATE)
def test_factors_multiply_along_a_chain(mass: str, area: str, rate: str) -> None:
    first = convert_factor(f"{mass} {area} {rate}", "g m-2 d-1", "f", "gpp").factor
    second = convert_factor("g m-2 d-1", FLUX, "f", "gpp").factor
    direct = convert_factor(f"{mass} {area} {rate}", FLUX, "f", "gpp").factor
    assert first * second == pytest.approx(direct, rel=1e-12)


@given(st.text(alphabet="kgCmsWd0123456789-^{}/. *()\u200b%°", max_size=12))
def test_any_text_is_either_understood_or_refused_never_a_crash(text: str) -> None:
    with contextlib.suppress(DataError):
        assert convert_factor(text, FLUX, "f", "gpp").factor != 0.0


@given(st.sampled_from([c[0] for c in CATALOGUE]))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once
