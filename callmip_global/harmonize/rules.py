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
    Rule("fractions", "note", "It weights other fields.", "Land or plant fractions, by name."),
    Rule("absent", "note", "Nothing is expected of it.", "The manifest declares it, and why."),
    Rule("not-used", "note", "The file is not used.", "It holds none of the wanted periods."),
    Rule("unreadable", "refuse", "The file is refused.", "Its header cannot be read or believed."),
    Rule("file", "fix", "What kept the file from opening was left out.", "The rest is complete."),
    Rule("unpacked", "fix", "Unpacked from gz or tar.", "One whole NetCDF file is in it."),
    Rule("prefix", "fix", "Another model name is accepted.", "The manifest declares the prefix."),
    Rule("unwritten", "warn", "Chunks never written read as missing.", "Others were written."),
    Rule("other-run", "note", "The file is not read.", "It is of another simulation or stage."),
    Rule("not-named", "note", "The file is not read.", "The manifest names another for it."),
    Rule("archive", "refuse", "The archive is refused.", "It is damaged, unsafe or of several."),
    Rule("not-netcdf", "refuse", "The file is refused.", "It is empty, or of another format."),
    Rule("truncated", "refuse", "The file is refused.", "It is shorter than its header needs."),
    Rule(
        "damaged",
        "refuse",
        "The file or variable is refused.",
        "A header or chunks make no sense, or values 10 ranges beyond the range.",
    ),
    Rule("stub", "refuse", "The file is refused.", "It is a header without its values."),
    Rule("duplicate", "refuse", "All copies are refused.", "Same variable and time, none named."),
    Rule("superseded", "refuse", "The old copy is refused.", "Its folder says so; not named."),
    Rule("contradiction", "refuse", "The file is refused.", "Name, folder, attributes disagree."),
    Rule("undeclared-prefix", "refuse", "The file is refused.", "Another model is in its name."),
    # --- time
    Rule("calendar-assumed", "warn", "The standard calendar is assumed.", "The file states none."),
    Rule("calendar-declared", "fix", "The declared calendar is used.", "The file states none."),
    Rule(
        "calendar-proven",
        "warn",
        "The one calendar that fits is used.",
        "Only in it do all stamps lie at one place of consecutive months; the file states none.",
    ),
    Rule("calendar-spelling", "fix", "A calendar's name is put right.", "It means one calendar."),
    Rule("calendar-unknown", "refuse", "The file is refused.", "No calendar has the name."),
    Rule("calendar-differs", "refuse", "Not used.", "Declarations or files disagree on it."),
    Rule("calendar-unclear", "refuse", "The file is refused.", "It states none, several fit."),
    Rule("time-name", "fix", "The time coordinate is renamed.", "Attributes or name tell it."),
    Rule(
        "time-variable",
        "fix",
        "Another variable is the time coordinate.",
        "The coordinate has no units; the one other along it says since when it counts.",
    ),
    Rule("time-units", "fix", "Units of time are put right.", "They mean one unit and date."),
    Rule(
        "time-counting",
        "fix",
        "Months, years or dates as numbers become days.",
        "Each value lies within 0.3 month of a start or middle; the months are consecutive.",
    ),
    Rule("time-declared", "fix", "Steps count from the declared start.", "No units, even steps."),
    Rule("time-epoch", "warn", "Days are counted from a year 0.", "The calendar is standard."),
    Rule("time-bounds", "fix", "Bounds are left out.", "None of them has a length."),
    Rule("time-stamps", "fix", "Stamps go to the middle.", "All are at starts, or at ends."),
    Rule("time-ends", "fix", "Stamps are ends of months.", "The declared start says so."),
    Rule("time-ends-unclear", "refuse", "The file is refused.", "Stamps are starts or ends."),
    Rule("time-missing", "refuse", "Not used.", "A field or a step has no time."),
    Rule("time-units-missing", "refuse", "The file is refused.", "No units, no start declared."),
    Rule("time-undecodable", "refuse", "The file is refused.", "Units of time mean nothing."),
    Rule("time-fraction", "refuse", "The file is refused.", "Stamps fall between months."),
    Rule(
        "time-gaps", "refuse", "The file is refused.", "Months are missing, doubled, in disorder."
    ),
    Rule("time-daily", "refuse", "The file is refused.", "Its steps are shorter than a month."),
    Rule("time-bounds-wrong", "refuse", "The file is refused.", "Bounds are no months or years."),
    Rule("time-other-years", "refuse", "Not used.", "Times decode to other years than named."),
    Rule("period-missing", "refuse", "The variable is refused.", "Not every period is there."),
    Rule("period-twice", "refuse", "The variable is refused.", "Two files have one period."),
    # --- coordinates
    Rule("latitude-order", "fix", "Rows are turned to run south to north.", "Latitudes descend."),
    Rule("longitude-order", "fix", "Columns are turned to ascend.", "Longitudes wrap or descend."),
    Rule("dimension-order", "fix", "Turned to time, latitude, longitude.", "All are named."),
    Rule("coordinate-names", "fix", "Coordinates become lat, lon.", "Attributes or names tell."),
    Rule("coordinate-units", "fix", "Taken as degrees.", "The name or units mean degrees."),
    Rule("coordinate-jitter", "fix", "Points go on the grid they mean.", "Within 1e-4 degrees."),
    Rule("grid-edges", "fix", "Rows get edges.", "They are Gaussian, or centred on a pole."),
    Rule("grid-truncated", "fix", "What lies beyond is missing.", "The cells are not global."),
    Rule(
        "land-vector",
        "fix",
        "A list of land points is put on its grid.",
        "An index, or places that are a part of only one regular or Gaussian grid.",
    ),
    Rule("land-vector-unclear", "refuse", "The file is refused.", "Points are on no one grid."),
    Rule("grid", "refuse", "The file is refused.", "It has no one rectilinear grid."),
    Rule("grid-differs", "refuse", "Not used.", "It is on another grid than the other files."),
    # --- Zarr stores
    Rule("zarr-fill", "fix", "Zeros stay zeros.", "A fill value of 0 that no attribute states."),
    Rule("zarr-chunks", "warn", "Chunks not stored are read as 0.", "The fill value is 0."),
    Rule("zarr-chunks-lost", "refuse", "Not used.", "Chunks before and after are there."),
    # --- values
    Rule("packing", "refuse", "Not used.", "Its scale factor or offset is no number."),
    Rule("units", "fix", "Values are converted to the protocol's units.", "Units are stated."),
    Rule("name", "fix", "The variable is taken by another name.", "It is the only one it has."),
    Rule("ambiguous", "refuse", "The variable is refused.", "Two native names could be it."),
    Rule("other-name", "refuse", "Refused.", "A file is called like it and holds another."),
    Rule(
        "sign",
        "fix",
        "Values are turned round.",
        "Declared; or called NEE, and turned round 40-70 N takes up carbon in summer.",
    ),
    Rule("sign-unclear", "refuse", "Refused.", "Called NEE, but the seasons do not bear it out."),
    Rule("factor", "fix", "Values are multiplied by a factor.", "The variable map declares it."),
    Rule("layers", "fix", "Layers are chosen and summed.", "The map names them, or their bounds."),
    Rule("layers-unbounded", "refuse", "Refused.", "Bounds of layers are missing or do not fit."),
    Rule("extra-dimension", "refuse", "Refused.", "Plant types or layers that nothing combines."),
    Rule("plant-types", "refuse", "Refused.", "Each plant type has a file of its own."),
    Rule(
        "cover",
        "fix",
        "Plant types or tiles are averaged with their area fractions.",
        "Cover fractions with that dimension, for all periods, that sum to 1 at most.",
    ),
    Rule("cover-sums", "refuse", "Refused.", "Cover fractions exceed 1, or fit in no dimension."),
    Rule("derived", "fix", "Made from other variables.", "All of them are there, beyond doubt."),
    Rule("no-file", "refuse", "Refused.", "No file that can be used holds it, with a time axis."),
    Rule("not-derivable", "refuse", "Refused.", "Some of what it is derived from is not there."),
    Rule("frequencies-mixed", "refuse", "Refused.", "Derived from monthly and annual values."),
    Rule("wood-undeclared", "refuse", "Refused.", "cWood is not declared to be above ground."),
    Rule("annual", "warn", "Published as annual values only.", "No monthly ones are there."),
    Rule("annual-only", "refuse", "Refused.", "Monthly values are wanted, annual ones are there."),
    Rule("annual-state", "fix", "Annual pools are labelled.", "The manifest declares what holds."),
    Rule("annual-state-unknown", "warn", "Kept as annual means.", "Nobody says what annual is."),
    Rule("calendars-differ", "refuse", "Refused.", "Another calendar than most variables."),
    Rule("grids-differ", "refuse", "Refused.", "Another grid than most variables."),
    Rule(
        "fill",
        "fix",
        "A fill value that no attribute names is set to missing.",
        "One value at the same cells in every step, on 20 % of them, outside the range.",
    ),
    Rule("fill-unnamed", "fix", "NaN is missing.", "NaN or 9.97e36, and no attribute names it."),
    Rule(
        "fill-changes", "refuse", "Refused.", "A fill value without attribute in some steps only."
    ),
    Rule(
        "per-cell",
        "fix",
        "Divided by the land fraction, to values per land area.",
        "Declared, or shown by the group's totals; nothing lies where there is no land.",
    ),
    Rule("per-by-totals", "fix", "Per land or per cell is decided.", "One total fits to 1 %."),
    Rule("per-assumed", "warn", "Taken per land area.", "Nothing says per land or per cell."),
    Rule("land-mismatch", "refuse", "Refused.", "Part of the integral lies where no land is."),
    Rule("sea-changes", "refuse", "Refused.", "The sea is 0 in some steps only."),
    Rule("sea", "fix", "Set to missing where there is no land.", "The land fraction is 0 there."),
    # --- plausibility of one variable
    Rule("no-values", "refuse", "Refused: all is missing.", "No finite value at all."),
    Rule("infinite", "refuse", "Refused: infinite values.", "One is enough."),
    Rule("constant", "refuse", "Refused: nothing ever changes.", "One value, or one map, always."),
    Rule("constant-cells", "warn", "Kept.", "One value, not 0, always, on 30 % of the cells."),
    Rule("range", "refuse", "Refused, with the likely cause.", "0.1 % of all values out of range."),
    Rule("few-outside", "warn", "Kept.", "Less than 0.1 % of the values are out of range."),
    Rule(
        "season",
        "refuse",
        "Refused: the sign, the hemispheres or the months are turned round.",
        "Means of June-August and December-February at 40-70 N over 5e12 m2 of land.",
    ),
    Rule(
        "placement",
        "refuse",
        "Refused: shifted, swapped or mirrored against the Earth.",
        "A global grid whose mask fits the Earth's land clearly better at another place.",
    ),
    Rule("total", "refuse", "Refused, with the likely cause.", "All continents, whole years."),
    Rule("total-unusual", "warn", "Kept.", "A global total or mean that few models have."),
    Rule("totals", "refuse", "Refused.", "Global totals are not the declared ones within 1 %."),
    Rule("totals-met", "note", "Confirmed.", "Global totals are the declared ones within 1 %."),
    Rule("totals-unused", "warn", "Not compared.", "Declared totals are of other years."),
    Rule("empty-steps", "refuse", "Refused.", "Steps without values among others with some."),
    Rule("zero-steps", "refuse", "Refused.", "Nothing but 0 where other years have values."),
    Rule("thin-steps", "warn", "Kept.", "Steps with 5 % fewer values than usual."),
    Rule("repeated", "refuse", "Refused: annual, not monthly.", "All months of each year alike."),
    Rule("annual-steps", "warn", "Kept.", "A pool that is the same in all months of each year."),
    Rule("repeated-years", "warn", "Kept.", "Every year is like the first."),
    Rule(
        "join",
        "refuse",
        "Refused: where a file begins, units or sign change.",
        "Twelve months before and after: 3 times the size, or seasons turned round.",
    ),
    Rule("join-unusual", "warn", "Kept.", "A jump at a file's start, 10 times those elsewhere."),
    # --- plausibility of several variables together
    Rule("carbon-balance", "refuse", "Refused.", "nep follows gpp - reco by another factor."),
    Rule("carbon-open", "warn", "Kept.", "gpp - reco - nep is no fire: beyond 6 % of gpp."),
    Rule("evaporation-factor", "refuse", "Refused: mm/day as W m-2.", "hfls against the water."),
    Rule("evaporation-open", "warn", "Kept.", "hfls does not fit the water evaporated."),
    Rule("transpiration-share", "warn", "Kept.", "Below 25 or above 85 % of evapotranspiration."),
    Rule("layer-exceeds", "refuse", "Refused.", "mrsos holds more water than mrso."),
    Rule("part-exceeds", "warn", "Kept.", "A part is more than the whole it is a part of."),
    Rule("copy", "warn", "Kept.", "Two variables hold the same values."),
    Rule("mask-differs", "warn", "Kept.", "Values elsewhere than most variables: 2 % of area."),
    Rule("copy-of-stage", "refuse", "Refused.", "All values are those of the other stage."),
    Rule("same-in-stage", "warn", "Kept.", "Values of the other stage, but not all of them."),
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
