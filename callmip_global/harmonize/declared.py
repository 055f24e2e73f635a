"""What a group declares about its submission, where files alone cannot say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Month = tuple[int, int]


@dataclass(frozen=True)
class Declared:
    """Declarations beside the variable map. Nothing declared: nothing is assumed.

    prefixes : what file names begin with instead of the model's name (``E3SM`` for ELM)
    use : protocol or native variable -> file name pattern, where several files hold the same
    calendar : of files that state none
    start : (year, month) of the first step of files whose time axis has no units, or whose stamps
        may be ends of months as well as starts
    wood : what the native ``cWood`` holds: above-ground wood only, or coarse roots too
    annual_state : what the annual values of pools are: the year's mean, or its end
    totals : protocol variable -> year -> the group's own global total [Pg or PW or 1e3 km3, per
        year, or Pg of a pool], against which area, unit and sign are checked
    """

    prefixes: tuple[str, ...] = ()
    use: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    calendar: str | None = None
    start: Month | None = None
    wood: Literal["above-ground", "total"] | None = None
    annual_state: Literal["mean", "end"] | None = None
    totals: Mapping[str, Mapping[int, float]] = field(default_factory=lambda: MappingProxyType({}))
