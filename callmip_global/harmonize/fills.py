"""Fill values that no attribute names, found by evidence: one value, on many cells, always there.

The first step gives the evidence, every later step must bear it out: a value that is missing data
in some months and not in others is refused, never half believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.harmonize.checks import FAR

Array = NDArray[np.float64]

SENTINELS = (-99999.0, -9999.0, -999.0, 1e20, -1e20, 1e30, -1e30, 1e33, 1e34, 1e36, -1e36, 1e38)
"""Values seen as fill in model output (TRENDY, CMIP, CESM and CalLMIP's own template)."""
SHARE = 0.2
"""Share of all cells that must hold the value: the sea has 0.7 of them, Antarctica alone 0.03."""

# What users multiply by when they convert units, without powers of ten: days, months and years in
# seconds, CO2 and carbon, the latent heat of 1 mm/day.
_TIMES = (8.64, 2.592, 2.628, 2.62656, 3.1536, 3.15576, 3.1557, 3.15569, 2.72921, 2.894)
_SCALES = (1.0, *_TIMES, *(10.0 / t for t in _TIMES))


@dataclass(frozen=True, eq=False)
class Fill:
    """``value`` [native units] is missing data; it holds the cells (nlat, nlon) in every step."""

    value: float
    cells: NDArray[np.bool_]
    words: str


def states_fill(attributes: Mapping[str, Any]) -> bool:
    """Whether the attributes of a variable name a fill value."""
    return any(key in attributes for key in ("_FillValue", "missing_value"))


def find_fill(
    field: Array, convert: Callable[[Array], Array], tolerated: tuple[float, float], layers: int = 1
) -> Fill | None:
    """The fill value of a step that no attribute names, or None.

    field : (nlat, nlon) [native units], NaN where a named fill was
    convert : native values (..., nlat, nlon) to those of the store
    tolerated : the range that values of the store may have
    layers : how many layers were summed into the field

    One value on at least 20 % of the cells and outside the range: taken if it is a known sentinel,
    or one times a factor of unit conversion; otherwise if it is ten spans away.
    """
    low, high = tolerated
    with np.errstate(over="ignore", invalid="ignore"):
        values = convert(field[np.newaxis])[0]
    outside = ((values < low) | (values > high)) & np.isfinite(field)
    if outside.mean() < SHARE:
        return None
    found, counts = np.unique(field[outside], return_counts=True)
    at = int(counts.argmax())
    value = float(found[at])
    if counts[at] < SHARE * field.size:
        return None
    cells = field == value
    said = known_as(value / layers)
    stored = values[cells][0]
    far = FAR * (high - low)
    if said is None and low - far <= stored <= high + far:
        return None
    words = f"{value:g}" + (f" (the sum of {layers} layers)" if layers > 1 else "")
    words += f", which is {said}," if said else ""
    return Fill(value, cells, f"{words} without attribute set to missing, {int(cells.sum())} cells")


def known_as(value: float) -> str | None:
    """How a value comes from a known sentinel: ``""`` if it is one, None if it does not."""
    for sentinel in SENTINELS:
        if np.isclose(value, sentinel, rtol=1e-6, atol=0):
            return ""
    for sentinel in (-99999.0, -9999.0):
        ratio = value / sentinel
        size = abs(ratio)
        if not 0 < size < np.inf:
            continue
        digits = size / 10.0 ** np.floor(np.log10(size))
        if np.isclose(digits, _SCALES, rtol=5e-5, atol=0).any():
            return f"{sentinel:g} times {ratio:g}"
    return None


def stray_sentinel(
    values: Array, convert: Callable[[Array], Array], tolerated: tuple[float, float]
) -> tuple[float, int] | None:
    """A known sentinel among converted values (n, nlat, nlon), and how many hold it; or None.

    Only one that converts to what no value of the variable may be (``tolerated``) is looked for.
    """
    low, high = tolerated
    for sentinel in SENTINELS:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = convert(np.full((values.shape[0], 1, 1), sentinel))
        if np.any((stored >= low) & (stored <= high)):
            continue
        held = int(np.isclose(values, stored, rtol=1e-6, atol=0).sum())
        if held:
            return sentinel, held
    return None
