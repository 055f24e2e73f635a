"""Units: what a string means, and the factor, offset and period length that convert values.

An explicit table speaks first and pint only for single symbols it does not hold, because whole
strings defeat every parser: ``kgC m-2 s-1``, the string the CalLMIP protocol asks for, is unknown
to UDUNITS and pint; ``kg C m-2 s-1`` is read as coulomb; ``deg C`` as degree times coulomb.

Rules, applied and recorded, never guessed:

- a substance label (C, CO2, H2O) belongs to the mass or amount before it; carbon dioxide becomes
  carbon (12.011 g per mol), an amount (mol) without a label has no mass;
- a depth of water is a mass per area: 1 mm = 1 kg m-2 (never for a carbon variable);
- ``month-1`` and ``year-1`` are per calendar month and year: the conversion then needs the length
  of each step's month or year (a mean month is wrong by 8 % in February);
- a heat flux and a water flux are never converted into each other: that needs a latent heat, which
  only an explicit derivation in the variable map can state.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem

SECONDS_PER_DAY = 86400.0
WATER_DENSITY = 1000.0
"""kg m-3: what makes 1 mm of water 1 kg m-2."""
MOLAR_MASS = {"C": 12.011e-3, "CO2": 44.009e-3, "H2O": 18.015e-3}
"""kg mol-1 (IUPAC 2021 abridged atomic weights)."""

CAUSES: tuple[tuple[float, str], ...] = (
    (1e-3, "1000: g for kg?"),
    (1e3, "1/1000: kg for g?"),
    (1 / 86400.0, "86400: per day for per second?"),
    (86400.0, "1/86400: converted to per second twice?"),
    (1 / (30.4 * 86400.0), "2.6e6: per month for per second?"),
    (1 / (365.0 * 86400.0), "3.2e7: per year for per second?"),
    (1e-3 / 86400.0, "8.6e7: g and per day for kg and per second?"),
    (1e-3 / (30.4 * 86400.0), "2.6e9: g and per month for kg and per second?"),
    (12.011 / 44.009, "44/12: CO2 for carbon?"),
    (1e-2, "100: percent for a fraction, or cm for m?"),
    (28.94, "1/28.9: mm/day for W m-2?"),
    (1 / 28.94, "28.9: W m-2 for mm/day?"),
    (-1.0, "-1: the opposite sign?"),
)
"""Mistakes by the factor that would mend them."""

Substance = Literal["carbon", "water"]
Period = Literal["month", "year"]


@dataclass(frozen=True)
class Conversion:
    """``out = values * factor + offset``, divided by the period's length in seconds if ``per``.

    ``per``: the values are amounts per calendar month or year; ``apply`` then needs the length of
    the month or year that each step lies in. ``note`` says in words what was done.
    """

    factor: float
    offset: float = 0.0
    per: Period | None = None
    note: str = ""

    @property
    def per_month(self) -> bool:
        """Whether the true length of each step's month is needed."""
        return self.per == "month"

    @property
    def identity(self) -> bool:
        """Whether values stay as they are."""
        return self.factor == 1.0 and self.offset == 0.0 and self.per is None

    def apply(
        self, values: NDArray[Any], period_days: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Converted copy of ``values`` (time, ...), float64.

        ``period_days`` (time,): days in the month (``per == "month"``) or year of each step, in
        the calendar of the data. ValueError if it is needed and missing.
        """
        out = np.asarray(values, dtype=np.float64) * self.factor + self.offset
        if self.per is None:
            return out
        if period_days is None:
            raise ValueError(f"values per {self.per} need the length of each {self.per}")
        seconds = np.asarray(period_days, dtype=np.float64) * SECONDS_PER_DAY
        return out / seconds.reshape((-1,) + (1,) * (out.ndim - 1))


@dataclass(frozen=True)
class _Unit:
    """A parsed unit: SI factor, exponents of SI base dimensions, calendar periods, substance."""

    factor: float = 1.0
    dimensions: dict[str, int] = field(default_factory=dict)
    months: int = 0
    years: int = 0
    offset: float = 0.0
    substance: str | None = None


_M, _L, _T, _K, _N = "mass", "length", "time", "temperature", "amount"

# Symbols: SI factor and dimensions. Case counts (m is metre, M mega), so variants are spelled out.
_SYMBOLS: dict[str, tuple[float, dict[str, int]]] = {
    "kg": (1.0, {_M: 1}),
    "Kg": (1.0, {_M: 1}),
    "KG": (1.0, {_M: 1}),
    "g": (1e-3, {_M: 1}),
    "gram": (1e-3, {_M: 1}),
    "grams": (1e-3, {_M: 1}),
    "mg": (1e-6, {_M: 1}),
    "ug": (1e-9, {_M: 1}),
    "t": (1e3, {_M: 1}),
    "Mg": (1e3, {_M: 1}),
    "Gg": (1e6, {_M: 1}),
    "Tg": (1e9, {_M: 1}),
    "Pg": (1e12, {_M: 1}),
    "Gt": (1e12, {_M: 1}),
    "mol": (1.0, {_N: 1}),
    "mole": (1.0, {_N: 1}),
    "mmol": (1e-3, {_N: 1}),
    "umol": (1e-6, {_N: 1}),
    "μmol": (1e-6, {_N: 1}),
    "m": (1.0, {_L: 1}),
    "meter": (1.0, {_L: 1}),
    "metre": (1.0, {_L: 1}),
    "dm": (1e-1, {_L: 1}),
    "cm": (1e-2, {_L: 1}),
    "mm": (1e-3, {_L: 1}),
    "km": (1e3, {_L: 1}),
    "ha": (1e4, {_L: 2}),
    "s": (1.0, {_T: 1}),
    "sec": (1.0, {_T: 1}),
    "second": (1.0, {_T: 1}),
    "seconds": (1.0, {_T: 1}),
    "min": (60.0, {_T: 1}),
    "h": (3600.0, {_T: 1}),
    "hr": (3600.0, {_T: 1}),
    "hour": (3600.0, {_T: 1}),
    "d": (SECONDS_PER_DAY, {_T: 1}),
    "day": (SECONDS_PER_DAY, {_T: 1}),
    "Day": (SECONDS_PER_DAY, {_T: 1}),
    "days": (SECONDS_PER_DAY, {_T: 1}),
    "K": (1.0, {_K: 1}),
    "kelvin": (1.0, {_K: 1}),
    "Kelvin": (1.0, {_K: 1}),
    "W": (1.0, {_M: 1, _L: 2, _T: -3}),
    "watt": (1.0, {_M: 1, _L: 2, _T: -3}),
    "watts": (1.0, {_M: 1, _L: 2, _T: -3}),
    "Watt": (1.0, {_M: 1, _L: 2, _T: -3}),
    "Watts": (1.0, {_M: 1, _L: 2, _T: -3}),
    "J": (1.0, {_M: 1, _L: 2, _T: -2}),
    "kJ": (1e3, {_M: 1, _L: 2, _T: -2}),
    "MJ": (1e6, {_M: 1, _L: 2, _T: -2}),
    "Pa": (1.0, {_M: 1, _L: -1, _T: -2}),
    "%": (1e-2, {}),
    "percent": (1e-2, {}),
}
_PERIODS: dict[str, Period] = {
    "month": "month",
    "months": "month",
    "mon": "month",
    "mo": "month",
    "mth": "month",
    "Month": "month",
    "year": "year",
    "years": "year",
    "yr": "year",
    "y": "year",
    "a": "year",
    "annum": "year",
    "Year": "year",
}
_CELSIUS = (
    *("C", "degC", "deg C", "deg_C", "°C", "^circC", "celsius", "Celsius"),
    *("degrees C", "degrees_C", "degree_C", "degree Celsius", "degrees Celsius"),
    *("degree_Celsius", "degrees_Celsius", "degree_celsius", "degrees_celsius"),
)

# `KgC/m2.s` (CLASSIC, TRENDY) means per m2 and s.
_SLASH_DOT = re.compile(r"^([A-Za-z ]+)/m\^?2\.(s|h|d|day|month|mon|yr|year)$")

# Whole strings whose meaning no grammar gives.
_ALIASES: dict[str, str] = {
    "Wm-2": "W m-2",
    "deg K": "K",
    "deg_K": "K",
    "degK": "K",
    "degree K": "K",
    "degrees K": "K",
    "degree Kelvin": "K",
    "degrees Kelvin": "K",
    "degrees kelvin": "K",
    "-": "1",
    "(-)": "1",
    "ratio": "1",
    "Unitless": "1",
    "unitless": "1",
    "dimensionless": "1",
    "fraction": "1",
}
_DEPTH = {_L: 3, _M: -1}
_ENERGY = {_L: 2, _T: -2}
_MADE_OF: dict[str, Substance] = {"C": "carbon", "CO2": "carbon", "H2O": "water"}
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
_TOKEN = re.compile(
    r"\s*(?:(?P<slash>/|\bper\b)|(?P<open>\()|(?P<close>\))|(?P<times>[.*])"
    r"|(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![A-Za-z^])"
    r"|(?P<symbol>%|[A-Za-zμ]*(?:CO2|H2O)(?![A-Za-z\d])|°?[^\W\d]+)"
    r"(?:\*\*|\^)?(?P<power>[-+]?\d+)?)"
)
_LABELLED = re.compile(r"(?P<base>[A-Za-zμ]*?(?:g|mol|t))_?(?P<label>C|CO2|H2O)")


def normalise_text(text: str) -> str:
    """The string without what only looks different: NFKC, zero-width characters, LaTeX, blanks."""
    text = unicodedata.normalize("NFKC", text).translate(_DASHES)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").replace("·", ".")
    text = re.sub(r"\\[,;: ]", " ", text)
    text = re.sub(r"[{}$\\]", "", text)
    text = re.sub(r"[(\[](C|CO2|H2O)[)\]]", r"\1", text)
    text = re.sub(r"(?<=g)(?:-|\s+)(?:C|[Cc]arbon)\b(?!-)", " C", text)
    text = re.sub(r"\bmm\s?(?:of )?(?:H2O|water)\b", "mm", text)
    text = " ".join(text.split())
    text = text[1:-1].strip() if re.fullmatch(r"\[[^\[\]]*\]", text) else text
    # Read strictly, the time would multiply: no flux has such units.
    return _SLASH_DOT.sub(r"\1 m-2 \2-1", text)


def convert_factor(
    units_from: str,
    units_to: str,
    where: str,
    variable: str,
    *,
    substance: Substance | None = None,
) -> Conversion:
    """How values in ``units_from`` become values in ``units_to``.

    ``where`` (file, or file:line) and ``variable`` are named in the DataError raised when a string
    is empty or unknown, when the two do not measure the same thing, or when the label of the units
    contradicts ``substance``, what the variable is made of. Callers that check a configuration put
    the problems of the error into a UsageError.
    """
    source = _parsed(units_from, where, variable)
    target = _parsed(units_to, where, variable)
    clean = normalise_text(units_from)

    def refuse(remedy: str) -> DataError:
        return DataError(
            Problem(
                where, variable, f"units {clean!r}", f"units convertible to {units_to!r}", remedy
            )
        )

    declared = _MADE_OF.get(source.substance or "")
    if substance and declared and declared != substance:
        raise refuse(f"The units speak of {source.substance}, the variable is {substance}.")

    notes = []
    factor = source.factor / target.factor
    dimensions = dict(source.dimensions)
    if source.substance == "CO2" and target.substance != "CO2":
        factor *= (MOLAR_MASS["C"] / MOLAR_MASS["CO2"]) ** dimensions.get(_M, 0)
        notes.append("mass of CO2 to mass of C" if dimensions.get(_M) else "CO2 counted as C")
    excess = _quotient(dimensions, target.dimensions)
    if excess == {_N: 1, _M: -1} and source.substance:
        label = "C" if source.substance == "CO2" else source.substance
        factor *= MOLAR_MASS[label]
        notes.append(f"{MOLAR_MASS[label] * 1000:g} g per mol of {label}")
        excess = {}
    periods = (source.months - target.months, source.years - target.years)
    per: Period | None = None
    if periods in ((-1, 0), (0, -1)) and excess.get(_T) == 1:
        per = "month" if periods[0] else "year"
        notes.append(f"true length of each {per}")
        excess, periods = {k: v for k, v in excess.items() if k != _T}, (0, 0)
    if excess in (_DEPTH, _inverse(_DEPTH)) and substance != "carbon" and declared != "carbon":
        factor *= WATER_DENSITY if excess == _DEPTH else 1 / WATER_DENSITY
        notes.append("1 mm of water = 1 kg m-2")
        excess = {}
    if excess or periods != (0, 0):
        raise refuse(_remedy(source, target, excess, substance))

    offset = (source.offset - target.offset) / target.factor
    if np.isclose(factor, round(factor), rtol=1e-13, atol=0):
        factor = float(round(factor))
    if source.substance == "C" and target.substance is None:
        notes.append("mass of carbon")
    note = f"{clean} -> {normalise_text(units_to)}"
    return Conversion(factor, offset, per, f"{note} ({'; '.join(notes)})" if notes else note)


def same_units(first: str, second: str) -> bool:
    """Whether two strings mean the same unit: same factor, offset, period and substance."""
    try:
        one, two = _parsed(first, "", ""), _parsed(second, "", "")
    except DataError:
        return normalise_text(first) == normalise_text(second)
    substances = {s for s in (one.substance, two.substance) if s}
    return (
        np.isclose(one.factor, two.factor, rtol=1e-12)
        and (one.dimensions, one.months, one.years, one.offset)
        == (two.dimensions, two.months, two.years, two.offset)
        and len(substances) < 2
    ) or _water_equal(one, two)


def _water_equal(one: _Unit, two: _Unit) -> bool:
    """mm and kg m-2 name the same amount of water (sources often mix them)."""
    excess = _quotient(one.dimensions, two.dimensions)
    sign = {3: 1, -3: -1}.get(excess.get(_L, 0), 0)
    return (
        sign != 0
        and excess == {_L: 3 * sign, _M: -sign}
        and (one.months, one.years) == (two.months, two.years)
        and bool(np.isclose(one.factor * WATER_DENSITY**sign, two.factor, rtol=1e-12))
        and "C" not in (one.substance, two.substance)
    )


def _remedy(source: _Unit, target: _Unit, excess: dict[str, int], substance: str | None) -> str:
    if excess == {_N: 1, _M: -1}:
        return "An amount has no mass without its substance: write molC, molCO2 or molH2O."
    heat_from_depth = _quotient(_DEPTH, _ENERGY)
    if excess in (_ENERGY, _inverse(_ENERGY), heat_from_depth, _inverse(heat_from_depth)):
        return (
            "A heat flux and a water flux differ by the latent heat: "
            'derive the variable instead, e.g. derive: "evspsbl * 2.501e6".'
        )
    if excess == _DEPTH:
        return "A depth of water is no mass of carbon."
    if not source.dimensions and target.dimensions == {_M: 1, _L: -2}:
        return "Water per volume of soil becomes kg m-2 only with the thickness of each layer."
    if (source.months or source.years) and not (target.months or target.years):
        return "Only rates per month or year can be made rates per second."
    return "State the true units in the variable map."


@cache
def _parse(clean: str) -> _Unit | str:
    """The unit of a normalised string, or in words why it has none."""
    if clean in _CELSIUS:
        return _Unit(dimensions={_K: 1}, offset=273.15)
    clean = _ALIASES.get(clean, clean)
    if not clean:
        return "no units"
    factor, months, years = 1.0, 0, 0
    dimensions: dict[str, int] = {}
    substance: str | None = None
    last_mass = False
    for symbol, power in _factors(clean):
        if symbol is None or abs(power) > 9:
            return f"units {clean!r}"
        if isinstance(symbol, float):
            factor *= symbol**power
            continue
        if symbol in MOLAR_MASS and last_mass and power == 1 and substance is None:
            substance, last_mass = symbol, False
            continue
        labelled = _LABELLED.fullmatch(symbol)
        if labelled and labelled["base"] in _SYMBOLS and symbol not in _SYMBOLS:
            symbol, substance = labelled["base"], labelled["label"]
        last_mass = False
        if symbol in _PERIODS:
            if _PERIODS[symbol] == "month":
                months += power
            else:
                years += power
            continue
        known = _SYMBOLS.get(symbol) or _pint_symbol(symbol)
        if known is None:
            return f"units {clean!r} with the unknown symbol {symbol!r}"
        factor *= known[0] ** power
        for name, exponent in known[1].items():
            dimensions[name] = dimensions.get(name, 0) + exponent * power
        last_mass = bool({_M, _N} & set(known[1])) and len(known[1]) == 1 and power == 1
    return _Unit(
        factor,
        {name: exponent for name, exponent in dimensions.items() if exponent},
        months,
        years,
        substance=substance,
    )


def _parsed(text: str, where: str, variable: str) -> _Unit:
    result = _parse(normalise_text(text))
    if isinstance(result, str):
        remedy = 'State them, e.g. units: "kg m-2 s-1".'
        raise DataError(Problem(where, variable, result, "units that can be read", remedy))
    return result


def _factors(clean: str) -> Iterator[tuple[str | float | None, int]]:
    """(symbol or number, power) of each factor; (None, 0) where the text cannot be read.

    ``/`` turns the next factor, or the next parenthesis, upside down.
    """
    sign, group, position = 1, 1, 0
    while position < len(clean):
        match = _TOKEN.match(clean, position)
        if match is None:
            yield None, 0
            return
        position = match.end()
        if match["slash"]:
            sign = -1
        elif match["open"]:
            group, sign = sign, 1
        elif match["close"]:
            group = 1
        elif match["number"]:
            if float(match["number"]) == 0.0:
                yield None, 0
                return
            yield float(match["number"]), sign * group
            sign = 1
        elif match["symbol"]:
            yield match["symbol"], int(match["power"] or 1) * sign * group
            sign = 1


@cache
def _pint_symbol(symbol: str) -> tuple[float, dict[str, int]] | None:
    """SI factor and dimensions of one symbol the table lacks, or None.

    Only single symbols are asked, and none that is a label, has an offset or is a misspelt mm.
    """
    if symbol in ("C", "CO2", "H2O", "N", "°", "deg", "Mm", "MM"):
        return None
    import pint

    registry = _pint_registry()
    try:
        quantity = registry.Quantity(1.0, symbol).to_base_units()
    except (pint.PintError, AttributeError, TypeError, ValueError, AssertionError):
        return None
    names = {
        "[mass]": _M,
        "[length]": _L,
        "[time]": _T,
        "[temperature]": _K,
        "[substance]": _N,
    }
    dimensions = {names.get(k, k): v for k, v in quantity.dimensionality.items()}
    # An angle or a count says nothing about the values: "degree K" is no K times 0.017.
    if not dimensions or any(v != int(v) for v in dimensions.values()):
        return None
    return float(quantity.magnitude), {k: int(v) for k, v in dimensions.items()}


@cache
def _pint_registry() -> Any:
    import pint

    return pint.UnitRegistry()


def _inverse(dimensions: dict[str, int]) -> dict[str, int]:
    return {name: -exponent for name, exponent in dimensions.items()}


def _quotient(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    """Exponents of first / second, zeros left out."""
    names = {*first, *second}
    out = {n: first.get(n, 0) - second.get(n, 0) for n in names}
    return {n: v for n, v in out.items() if v}
