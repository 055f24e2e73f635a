"""Every rule of harmonizing and checking by name: what it does, and the evidence it needs.

A report names rules, never code. ``fix``: the values or their description were changed, and the
record says how; ``warn``: kept as it is, somebody should look; ``refuse``: not used, the rest goes
on; ``note``: nothing is wrong, but the file or variable was not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["fix", "warn", "refuse", "note"]


@dataclass(frozen=True)
class Rule:
    """``does``: what happens, in one sentence; ``evidence``: what must hold for it to happen."""

    name: str
    kind: Kind
    does: str
    evidence: str


_ALL = (
    # --- files
    Rule("not-data", "note", "The file is not read.", "It matches no pattern of the manifest."),
    Rule("no-field", "note", "The file is not used.", "It has no field on latitudes, longitudes."),
    Rule("not-mapped", "note", "The field is not used.", "The variable map does not name it."),
    Rule("land-fraction", "note", "It weights values per land area.", "The map names it."),
    Rule("not-used", "note", "The file is not used.", "It holds none of the wanted periods."),
    Rule("unreadable", "refuse", "The file is refused.", "Its header cannot be read or believed."),
    Rule("file", "fix", "What kept the file from opening was left out.", "The rest is complete."),
    # --- time
    Rule("calendar-assumed", "warn", "The standard calendar is assumed.", "The file states none."),
    Rule("calendar-declared", "fix", "The declared calendar is used.", "The file states none."),
    # --- coordinates
    Rule("latitude-order", "fix", "Rows are turned to run south to north.", "Latitudes descend."),
    Rule("longitude-order", "fix", "Columns are turned to ascend.", "Longitudes wrap or descend."),
    # --- values
    Rule("units", "fix", "Values are converted to the protocol's units.", "Units are stated."),
    Rule("sign", "fix", "Values are turned round.", "The variable map or manifest declares it."),
    Rule("factor", "fix", "Values are multiplied by a factor.", "The variable map declares it."),
    Rule("layers", "fix", "Layers are chosen and summed.", "The variable map names them."),
    Rule("derived", "fix", "Made from other variables.", "The variable map gives the expression."),
    Rule(
        "fill",
        "fix",
        "A fill value that no attribute names is set to missing.",
        "A known sentinel at the same cells in every step, on 20 % of them, outside the range.",
    ),
    Rule(
        "per-cell",
        "fix",
        "Divided by the land fraction, to values per land area.",
        "The variable map declares values per cell area; nothing lies where there is no land.",
    ),
    Rule("sea", "fix", "Set to missing where there is no land.", "The land fraction is 0 there."),
    # --- everything else
    Rule(
        "land-unknown",
        "refuse",
        "The variable is refused: what is land cannot be told.",
        "Values on more than 90 % of the sphere, and no land fraction.",
    ),
    Rule(
        "derived-from-refused",
        "refuse",
        "The variable is refused.",
        "What the variable map derives it from was refused.",
    ),
    Rule("regridding", "refuse", "Nothing is on the standard grid.", "Regridding failed."),
    Rule("refused", "refuse", "The variable is refused.", "The message says why."),
)

RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _ALL})


def outcome_of(rules: Iterable[str]) -> Literal["accepted", "fixed", "refused"]:
    """What rules make of a file or variable: the worst of them decides. KeyError for an unknown."""
    kinds = {RULES[name].kind for name in rules}
    if "refuse" in kinds:
        return "refused"
    return "fixed" if "fix" in kinds else "accepted"
