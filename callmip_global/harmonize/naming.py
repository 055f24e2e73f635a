"""What a file of a submission is, from its path and size alone.

Real submissions keep to no one convention: in TRENDY v14, 3,772 of 6,041 NetCDF names deviate
from ``MODEL/S3/MODEL_S3_variable.nc``. `classify` reads every style seen in v10 to v14 and the
names that CalLMIP's protocol prescribes, and says what is odd. Contents are looked at elsewhere.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

Kind = Literal[
    "data",
    "grid",
    "forcing",
    "superseded",
    "table",
    "text",
    "script",
    "archive",
    "junk",
    "folder",
    "other",
]
"""``data``: fields of the model; ``grid``: areas, masks; ``superseded``: data below a folder of
old copies; ``table``: totals as text; ``archive``: packed, of several files perhaps; ``other``: a
format that is not read. Data may be packed, see `Row.packed`.
"""

READABLE: tuple[Kind, ...] = ("data", "grid", "superseded", "archive")
"""Kinds that can hold what is harmonized."""

BLOCK_BYTES = 32768
"""Interrupted uploads have whole blocks: 45 of 23,834 files of TRENDY v10-v14, 0.7 by chance."""

STUB_RATIO = 1000
"""A file this many times smaller than its siblings is a stub: a header without its values."""


@dataclass(frozen=True)
class Row:
    """One file. Empty text where neither name nor folder says.

    path : as given, with ``/`` between its parts; size : bytes
    model, simulation, stage : as the name says, else the folder
    folder_model, folder_simulation, folder_stage : as the folders say
    version : what follows the model's name after a dot, in protocol names
    variable : without words of frequency, years, pieces and copies
    frequency : mon, yr or day; years : first and last, of the name
    piece : ``PFT03``, ``pft``, ``lu``, ``tile``: one part of a variable, or split by parts
    packed : ``gz``, ``tar`` or ``tar.gz``
    copy : the word that marks one of several copies (``correctedS2``, ``prelim``, ``1``)
    notes : what is odd, in words
    """

    path: str
    size: int
    kind: Kind
    model: str = ""
    simulation: str = ""
    stage: str = ""
    folder_model: str = ""
    folder_simulation: str = ""
    folder_stage: str = ""
    version: str = ""
    variable: str = ""
    frequency: str = ""
    resolution: str = ""
    years: tuple[int, int] | None = None
    piece: str = ""
    packed: str = ""
    copy: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]


_NETCDF = (".nc", ".nc4", ".nc3", ".cdf", ".netcdf")
_PACKED = {
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".tar": "tar",
    ".gz": "gz",
}
_OTHER_PACKED = (".zip", ".bz2", ".xz", ".7z", ".rar", ".zst", ".lz4", ".z")
_TEXT = (".txt", ".md", ".rst", ".pdf", ".doc", ".docx", ".log", ".rtf", ".cdl", ".html", ".odt")
_TABLE = (".dat", ".csv", ".tsv", ".xls", ".xlsx", ".asc")
_SCRIPT: tuple[str, ...] = (
    ".py",
    ".sh",
    ".r",
    ".jl",
    ".m",
    ".ncl",
    ".ipynb",
    ".pl",
    ".awk",
    ".csh",
    ".bash",
)
_SCRIPT += (".f90", ".f", ".c", ".cpp", ".nml", ".yaml", ".yml", ".json")
_JUNK_NAMES = {".keep", ".gitkeep", ".ds_store", "thumbs.db", "desktop.ini", ".gitignore"}
_JUNK_ENDS = ("~", ".swp", ".swo", ".tmp", ".bak")
_PARTIAL = (".part", ".filepart", ".partial", ".crdownload", ".aria2", ".download", ".uploading")

_SIMULATION = r"S\d|CO2"
_FREQUENCIES = {
    **dict.fromkeys(("mon", "monthly", "month", "monmean", "monsum", "mm"), "mon"),
    **dict.fromkeys(("yr", "annual", "yearly", "year", "ann", "yearmean", "yearsum"), "yr"),
    **dict.fromkeys(("day", "daily", "daymean", "daysum", "dd"), "day"),
}
_STAGES = {"prior": "Prior", "posterior": "Posterior"}
_GRID = {"area", "areacella", "gridarea", "cellarea", "cell_area", "grid_area", "sftlf", "orog"}
_GRID |= {"landmask", "land_mask", "mask", "lsm", "landfrac", "land_fraction", "landfraction"}
_GRID |= {"oceancoverfrac", "oceanmask", "sftof"}

_OLD_FOLDER = re.compile(
    r"(?:.*[_-])?(?:olds?|superseded|obsolete|deprecated|backup|bak|previous|outdated)"
    r"(?:[_-].*|\d*)?",
    re.IGNORECASE,
)
_COPY_WORD = r"corrected|revised|updated?|re-?upload(?:ed)?|re-?run|new|fixed"
_COPY_FOLDER = re.compile(rf"(?:.*[_-])?(?:{_COPY_WORD})(?:[A-Z_-].*|\d*)?|v\d+", re.IGNORECASE)
_COPY_NAME = re.compile(
    rf"[_.](prelim(?:inary)?|{_COPY_WORD}|final|old|copy|test|\d|v\d+|read_the_readme)$",
    re.IGNORECASE,
)
_FORCING_FOLDER = re.compile(r"climate|forcings?|inputs?|drivers?|met", re.IGNORECASE)
_FORCING_NAME = re.compile(r"cru-?_?jra|luh2|gswp3|(?:global_)?co2_ann", re.IGNORECASE)
_TABLE_NAME = re.compile(r"zonal[_-]?nbp", re.IGNORECASE)
_TABLE_SIMULATION = re.compile(r"(?P<model>.+?)_(?P<rest>zonal[_-]?nbp)_?(?P<simulation>S\d)", re.I)
_SUBFOLDER = re.compile(r"nbp|zonalnbp|out(?:put)?s?|data|netcdf|nc|mon|yr|annual|monthly", re.I)
_FOLDER_SIMULATION = re.compile(
    rf"(?:(?:old|{_COPY_WORD})[_-]?)?({_SIMULATION})(?:[_-].*)?", re.IGNORECASE
)

_PROTOCOL = re.compile(
    r"(?P<model>[^_.]+)\.(?P<version>[^_]+)_(?P<domain>global)_(?P<resolution>[^_]+)"
    r"_(?P<frequency>[^_]+)_(?P<first>\d{4})-(?P<last>\d{4})_(?P<stage>prior|posterior)"
    r"(?:_m\d+)?",
    re.IGNORECASE,
)
_STORE = re.compile(
    r"(?P<model>[^_.]+)\.(?P<version>[^_]+)_(?P<simulation>[^_]+)_(?P<resolution>[^_]+)"
    r"_(?P<stage>prior|posterior)(?:_m\d+)?",
    re.IGNORECASE,
)
_SCENARIO_NAME = re.compile(rf"(?P<model>.+?)_(?P<simulation>{_SIMULATION})_(?P<rest>.+)", re.S)
_YEARS = re.compile(r"[_.-](\d{4})(?:\d{2}){0,2}(?:-(\d{4})(?:\d{2}){0,2})?$")
_GLUED = re.compile(r"(?<=[a-z])(Annual|Monthly|Daily)$")
_PIECE = re.compile(r"_(PFT\d+|pft\d+|lu|tile\d*)$")


def unpacked_name(name: str) -> tuple[str, str]:
    """(name without the ending of its packing, the packing): ``x.nc.gz`` is ``x.nc``, ``gz``."""
    low = name.lower()
    for ending, packing in _PACKED.items():
        if low.endswith(ending) and len(low) > len(ending):
            return name[: -len(ending)], packing
    return name, ""


def same_name(one: str, other: str) -> bool:
    """Whether two names of a model differ in case, hyphens and the like at most."""
    return _letters(one) == _letters(other)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def classify(path: str, size: int) -> Row:
    """What the file is. Total: every path and size has a row; nothing is opened.

    Folders end in ``/``. Case of endings does not matter.
    """
    notes: list[str] = []
    parts = [part for part in path.split("/") if part not in ("", ".")]
    name = parts[-1] if parts else ""
    clean = name.strip().rstrip("\r\n")
    if clean != name:
        notes.append("white space or a line end in the file name")
    folders = parts if path.endswith("/") else parts[:-1]
    row = _of_folders(Row(path, size, "other"), folders)
    if path.endswith("/") or not clean:
        return replace(row, kind="folder", notes=tuple(notes))
    kind, stem, packed = _kind(clean, folders)
    row = replace(row, packed=packed)
    if kind == "junk" and clean.lower().endswith(_PARTIAL):
        notes.append("a transfer that did not finish?")
    if kind in ("data", "table"):
        row = _named(row, stem, notes)
    if kind == "data":
        if row.variable.lower() in _GRID:
            kind = "grid"
        if any(_OLD_FOLDER.fullmatch(folder) for folder in folders):
            kind = "superseded"
    if kind in READABLE:
        notes += _odd_size(size)
    if row.simulation and row.folder_simulation not in ("", row.simulation):
        notes.append(
            f"the name says {row.simulation}, the folder {row.folder_simulation}: which is it?"
        )
    if row.stage and row.folder_stage not in ("", row.stage):
        notes.append(f"the name says {row.stage}, the folder {row.folder_stage}: which is it?")
    return replace(
        row,
        kind=kind,
        model=row.model or row.folder_model,
        simulation=row.simulation or row.folder_simulation,
        stage=row.stage or row.folder_stage,
        notes=tuple(notes),
    )


def _kind(name: str, folders: list[str]) -> tuple[Kind, str, str]:
    """(kind by ending and folder, name without endings, packing)."""
    low = name.lower()
    if low in _JUNK_NAMES or low.startswith(("._", ".nfs")) or "__MACOSX" in folders:
        return "junk", name, ""
    if low.endswith((*_JUNK_ENDS, *_PARTIAL)):
        return "junk", name, ""
    # rsync writes to .name.XXXXXX and renames at the end.
    if re.fullmatch(r"\..+\.[A-Za-z0-9]{6}", name):
        return "junk", name, ""
    inner, packed = unpacked_name(name)
    ending = next((e for e in (*_NETCDF, ".zarr") if inner.lower().endswith(e)), None)
    if ending is not None:
        stem = inner[: -len(ending)]
        if stem.lower() in ("tmp", "temp", "test"):
            return "junk", stem, packed
        forcing = any(_FORCING_FOLDER.fullmatch(f) for f in folders) or _FORCING_NAME.match(stem)
        return "forcing" if forcing else "data", stem, packed
    if packed or low.endswith(_OTHER_PACKED):
        return "archive", inner, packed
    stem = name.rsplit(".", 1)[0]
    if _TABLE_NAME.search(name) and "readme" not in low:
        return "table", stem, ""
    if "readme" in low or low.endswith(_TEXT):
        return "text", stem, ""
    if low.endswith(_TABLE):
        return "table", stem, ""
    if low.endswith(_SCRIPT) or low == "makefile":
        return "script", stem, ""
    return "other", stem, ""


def _of_folders(row: Row, folders: list[str]) -> Row:
    """The row with what its folders say of simulation, stage, model and copies."""
    simulation, stage, copy, at = "", "", "", len(folders)
    for i, folder in enumerate(folders):
        match = _FOLDER_SIMULATION.fullmatch(folder)
        if match:
            simulation, at = match[1].upper(), min(at, i)
        stage = _STAGES.get(folder.lower(), stage)
        more = match is not None and len(folder) > len(match[1])
        if more or _OLD_FOLDER.fullmatch(folder) or _COPY_FOLDER.fullmatch(folder):
            copy = folder
    models = [
        f
        for f in folders[:at]
        if f.lower() not in _STAGES
        and not (
            _SUBFOLDER.fullmatch(f) or _FORCING_FOLDER.fullmatch(f) or _OLD_FOLDER.fullmatch(f)
        )
    ]
    return replace(
        row,
        folder_simulation=simulation,
        folder_stage=stage,
        folder_model=models[-1] if models else "",
        copy=copy,
    )


def _named(row: Row, stem: str, notes: list[str]) -> Row:
    """The row with what the file name says."""
    if match := _PROTOCOL.fullmatch(stem):
        frequency = match["frequency"].lower()
        return replace(
            row,
            model=match["model"],
            version=match["version"],
            resolution=match["resolution"],
            frequency=_FREQUENCIES.get(frequency, frequency),
            years=(int(match["first"]), int(match["last"])),
            stage=_STAGES[match["stage"].lower()],
        )
    if match := _STORE.fullmatch(stem):
        return replace(
            row,
            model=match["model"],
            version=match["version"],
            simulation=match["simulation"],
            resolution=match["resolution"],
            stage=_STAGES[match["stage"].lower()],
        )
    if match := _SCENARIO_NAME.fullmatch(stem) or _TABLE_SIMULATION.fullmatch(stem):
        row = replace(row, model=match["model"], simulation=match["simulation"].upper())
        rest = match["rest"]
    else:
        rest = stem
        head, _, tail = stem.partition("_")
        folder = _letters(row.folder_model)
        if folder and tail and _letters(head).startswith(folder):
            row, rest = replace(row, model=head), tail
        if not row.folder_simulation:
            notes.append("no simulation in its name or folder")
        else:
            notes.append("no simulation in its name")
    return _variable(row, rest)


def _variable(row: Row, rest: str) -> Row:
    """The row with variable, frequency, years, piece and copy of the rest of a name."""
    years, frequency, piece, copy = None, "", "", row.copy
    if match := _COPY_NAME.search(rest):
        rest, copy = rest[: match.start()], copy or match[1]
    if match := _YEARS.search(rest):
        years = (int(match[1]), int(match[2] or match[1]))
        rest = rest[: match.start()]
    if match := _PIECE.search(rest):
        rest, piece = rest[: match.start()], match[1]
    elif rest.endswith("pft") and len(rest) > 3:
        piece = "pft"
    stage = row.stage
    words = rest.split("_")
    while len(words) > 1 and (words[0].lower() in _FREQUENCIES or words[0].lower() in _STAGES):
        frequency = _FREQUENCIES.get(words[0].lower(), frequency)
        stage = _STAGES.get(words[0].lower(), stage)
        words = words[1:]
    while len(words) > 1 and (words[-1].lower() in _FREQUENCIES or words[-1].lower() in _STAGES):
        frequency = _FREQUENCIES.get(words[-1].lower(), frequency)
        stage = _STAGES.get(words[-1].lower(), stage)
        words = words[:-1]
    if len(words) > 2 and words[:2] == ["mean", "annual"]:
        frequency, words = "yr", words[2:]
    variable = "_".join(words)
    if match := _GLUED.search(variable):
        frequency = _FREQUENCIES[match[1].lower()]
        variable = variable[: match.start()]
    return replace(
        row,
        variable=variable,
        frequency=frequency,
        years=years,
        piece=piece,
        copy=copy,
        stage=stage,
    )


def _odd_size(size: int) -> list[str]:
    if size == 0:
        return ["empty"]
    if size > 0 and size % BLOCK_BYTES == 0:
        blocks = size // BLOCK_BYTES
        return [f"interrupted upload? The size is {blocks} times {BLOCK_BYTES} bytes exactly"]
    return []


def classify_all(files: Iterable[tuple[str, int]]) -> list[Row]:
    """Rows of a whole listing, in its order, with what only siblings tell: stubs.

    A stub is less than a thousandth of the median of its twins, which hold the same variable in
    the other simulations of the model.
    """
    rows = [classify(path, size) for path, size in files]
    twins: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in rows:
        if row.kind == "data":
            twins[_twin(row)].append(row.size)
    done = []
    for row in rows:
        sizes = list(twins[_twin(row)]) if row.kind == "data" else []
        if sizes:
            sizes.remove(row.size)
        usual = median(sizes) if sizes else 0
        if row.size * STUB_RATIO < usual:
            note = f"stub? {row.size} bytes, the same variable elsewhere {usual:.0f}"
            row = replace(row, notes=(*row.notes, note))
        done.append(row)
    return done


def _twin(row: Row) -> tuple[str, ...]:
    years = "" if row.years is None else f"{row.years[0]}-{row.years[1]}"
    return (row.folder_model, row.model, row.variable, row.frequency, row.piece, row.packed, years)
