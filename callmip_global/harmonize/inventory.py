"""What a submission holds: every file found, named, unpacked, checked; conflicts are refused.

Which of two files is right is never decided by a date or a size: the group names it. A file whose
name, folder or attributes contradict each other, or the manifest, is refused with both.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.harmonize.contents import Contents, contents
from callmip_global.harmonize.declared import Declared
from callmip_global.harmonize.integrity import check, is_netcdf, is_zarr, stub_problem
from callmip_global.harmonize.naming import READABLE, Row, classify, same_name, unpacked_name
from callmip_global.harmonize.unpack import NoMemberError, unpack
from callmip_global.parallel import Progress, in_threads, quiet, run_units
from callmip_global.variables import variable_table

Note = tuple[str, str]

_NETCDF_ENDINGS = (".nc4", ".nc3", ".cdf", ".netcdf")
_SIMULATION = re.compile(r"S\d|CO2")
UNREAD = {
    "data": "matches no pattern of the manifest's files",
    "grid": "matches no pattern of the manifest's files",
    "superseded": "in a folder of old copies; matches no pattern of the manifest's files",
    "forcing": "forcing, not output",
    "table": "a table, no NetCDF file",
    "text": "text, no NetCDF file",
    "script": "a script, no NetCDF file",
    "archive": "an archive without a NetCDF file",
    "junk": "a leftover of a program or transfer",
    "folder": "a folder",
    "other": "no NetCDF file",
}


@dataclass(frozen=True)
class Found:
    """One file or Zarr store to read.

    path : where it can be read, unpacked where the submission packs it
    origin : what reports and messages call it: the submission's own path, with ``::member`` after
        an archive's
    size : bytes at ``path``
    notes : (rule, words) of what was done to have it, and of what is odd about it
    without : variables (as they are called inside) that another file was named for
    """

    path: Path
    origin: str
    size: int
    notes: tuple[Note, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taken:
    """A submission, walked. Every file and Zarr store is in exactly one of the three.

    files : what to harmonize, sorted by origin
    refused : (origin, why)
    notes : (origin, rule, words) of what is not read although nothing is wrong with it
    """

    files: tuple[Found, ...]
    refused: tuple[tuple[str, Problem], ...]
    notes: tuple[tuple[str, str, str], ...]


def take(
    submissions: Sequence[Path],
    patterns: Sequence[str],
    *,
    unpack_to: Path,
    declared: Declared,
    model: str,
    simulation: str,
    stage: str,
    progress: Progress = quiet,
) -> Taken:
    """What to harmonize of the submissions, and what becomes of all their other files.

    patterns : globs from each submission folder; ``.nc`` stands for ``.nc4``, ``.cdf`` and packed
        files too; Zarr stores are named by their folder (``**/*.zarr``). A file given by itself
        needs no pattern.
    unpack_to : folder for what comes out of archives; what is there already is used again
    model, simulation, stage : whose output it is; files of other runs are noted, not read. What is
        empty is not held against any name

    Links to folders are not followed. UsageError for a submission that is not there, and for a
    name in ``declared.use`` that no file has.
    """
    missing = [
        Problem(str(p), found="nothing there") for p in submissions if not os.path.lexists(p)
    ]
    if missing:
        raise UsageError(missing)
    job = _Taking(tuple(patterns), unpack_to, declared, model, simulation, stage)
    items = list(_walk(submissions, unpack_to))
    chosen = [item for item in items if job.is_read(item)]
    job.check_use(chosen)
    ready = run_units(
        in_threads,
        _prepare,
        unpack_to,
        chosen,
        lambda item, _, share: progress(f"checked {item.row.name}", share),
    )
    for item, result in zip(chosen, ready, strict=True):
        job.opened(item, result)
    return job.result()


# --- walking -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """One file walked. ``relative``: its path in the submission; ``odd``: what it is if no file.

    ``given``: named as a submission itself.
    """

    path: Path
    relative: str
    row: Row
    given: bool
    odd: str = ""

    @property
    def origin(self) -> str:
        return str(self.path)


def _walk(submissions: Sequence[Path], leave_out: Path) -> Iterator[_Item]:
    """Every file and Zarr store of the submissions, each once."""
    seen: set[str] = set()
    aside = os.path.realpath(leave_out)
    for submission in sorted(set(submissions), key=lambda p: (not p.is_file(), str(p))):
        label = (submission if submission.name.strip(".") else submission.resolve()).name
        if submission.is_file() or is_zarr(submission) or not submission.is_dir():
            found: Iterable[_Item] = [_item(submission, label, label, given=True)]
        else:
            found = _below(submission, "", label, aside)
        for item in found:
            key = str(item.path.absolute())
            if key not in seen:
                seen.add(key)
                yield item


def _below(folder: Path, relative: str, label: str, aside: str) -> Iterator[_Item]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        row = classify(f"{label}/{relative}", 0)
        yield _Item(
            folder, relative, row, False, f"a folder that cannot be read ({error.strerror})"
        )
        return
    for entry in entries:
        path, name = folder / entry.name, f"{relative}{entry.name}"
        if not entry.is_dir(follow_symlinks=False):
            yield _item(path, name, f"{label}/{name}", given=False)
        elif os.path.realpath(path) == aside:
            continue
        elif is_zarr(path):
            yield _item(path, name, f"{label}/{name}", given=False)
        else:
            yield from _below(path, f"{name}/", label, aside)


def _item(path: Path, relative: str, label: str, *, given: bool) -> _Item:
    odd, size = "", 0
    try:
        if path.is_dir():
            odd = "a link to a folder" if path.is_symlink() else ""
        elif path.is_file():
            size = path.stat().st_size
        else:
            odd = "a link to nothing" if path.is_symlink() else "a pipe, socket or device"
    except OSError as error:
        odd = f"a file that cannot be seen ({error.strerror or error})"
    row = classify(label, size)
    # Whether it is forcing or an old copy is for the folders inside of the submission to say.
    kind = classify(relative, size).kind
    return _Item(path, relative, replace(row, kind=kind), given, odd)


def _matches(relative: str, patterns: Iterable[str]) -> bool:
    """Whether a path fits one of the globs, in itself or with its ending read as ``.nc``."""
    plain = relative.rstrip("\r\n ")
    names = {relative, plain, unpacked_name(plain)[0]}
    for name in list(names):
        stem, dot, ending = name.rpartition(".")
        if dot + ending.lower() in (*_NETCDF_ENDINGS, ".nc"):
            names.add(f"{stem}.nc")
    return any(
        _glob(tuple(name.split("/")), tuple(p for p in pattern.split("/") if p not in ("", ".")))
        for pattern in patterns
        for name in names
    )


def _glob(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_glob(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    inside = bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0])
    return inside and _glob(parts[1:], pattern[1:])


def _named(items: Sequence[_Item], pattern: str) -> list[_Item]:
    """The files that ``use`` means: by their path in the submission, else by name or its end."""
    exact, loose = [], []
    for item in items:
        plain = unpacked_name(item.relative.rstrip("\r\n "))[0]
        if pattern in (item.relative, plain):
            exact.append(item)
        forms = {f for path in (item.relative, plain) for f in (path, path.rsplit("/", 1)[-1])}
        if any(fnmatch.fnmatchcase(f, p) for f in forms for p in (pattern, f"*/{pattern}")):
            loose.append(item)
    return exact or loose


# --- opening -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """What became of one file: ``found`` with its ``contents``, or a ``problem``, or nothing."""

    origin: str
    found: Found | None = None
    contents: Contents | None = None
    problem: Problem | None = None


def _prepare(unpack_to: Path, item: _Item) -> _Opened:
    """One file unpacked and checked; never raises for what is wrong with the file."""
    origin, path, notes = item.origin, item.path, tuple[Note, ...]()
    try:
        if item.row.packed or item.row.kind == "archive":
            if not item.row.packed:
                ending = path.suffix.lower()
                wanted = ".gz, .tar or .tar.gz, each with one NetCDF file"
                raise DataError(
                    Problem(origin, "", f"a {ending} archive", wanted, "Unpack it.", "archive")
                )
            unpacked = unpack(path, unpack_to, origin=origin)
            path = unpacked.path
            notes = (("unpacked", unpacked.words),)
            origin += f"::{unpacked.member}" if unpacked.member else ""
        notes += check(path, origin)
    except NoMemberError as error:
        return _Opened(origin, problem=error.problems[0] if item.row.kind != "archive" else None)
    except DataError as error:
        return _Opened(origin, problem=error.problems[0])
    return _Opened(origin, Found(path, origin, _size(path), notes))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a Zarr store."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


@dataclass
class _Candidate:
    """A file that could be harmonized.

    ``named``: by ``use``; ``without``: fields that other files were named for.
    """

    item: _Item
    found: Found
    contents: Contents
    named: bool = False
    without: set[str] = field(default_factory=set)

    @property
    def row(self) -> Row:
        return self.item.row

    @property
    def origin(self) -> str:
        return self.found.origin

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.contents.fields) - self.without

    @property
    def frequency(self) -> str:
        return self.contents.frequency or self.row.frequency

    @property
    def marked(self) -> bool:
        """Whether a word or folder calls it one of several copies, or an old one."""
        return not self.named and (bool(self.row.copy) or self.row.kind == "superseded")


class _Taking:
    """What becomes of each file, collected."""

    def __init__(
        self,
        patterns: tuple[str, ...],
        unpack_to: Path,
        declared: Declared,
        model: str,
        simulation: str,
        stage: str,
    ) -> None:
        self.patterns, self.unpack_to, self.declared = patterns, unpack_to, declared
        self.model, self.simulation, self.stage = model, simulation, stage
        self.candidates: list[_Candidate] = []
        self.refused: list[tuple[str, Problem]] = []
        self.notes: list[tuple[str, str, str]] = []
        self.broken: list[Row] = []

    # --- by name ---

    def is_read(self, item: _Item) -> bool:
        """Whether the file goes on to be opened; otherwise it is noted or refused here."""
        if item.odd:
            remedy = "Hand in what it leads to." if "link" in item.odd else "Remove it."
            wanted = "a file, or a folder of files"
            self.refuse(
                item.origin, Problem(item.origin, "", item.odd, wanted, remedy, "unreadable")
            )
            return False
        row = item.row
        read = item.given or _matches(item.relative, self.patterns)
        # An archive that no pattern fits may be the whole submission: never passed over in silence.
        read = read or (row.kind == "archive" and not _is_text(row))
        if not read or (row.kind in ("junk", "forcing") and not item.given):
            why = UNREAD[row.kind]
            if row.kind == "data" and item.path.is_dir():
                why = "a Zarr store; matches no pattern of the manifest's files"
            self.note(item.origin, "not-data", f"{why}; not read")
            return False
        if row.kind not in READABLE and not item.given and not _looks_like_netcdf(item.path):
            self.note(item.origin, "not-data", f"{UNREAD[row.kind]}; not read")
            return False
        return self.is_of_this_run(item)

    def is_of_this_run(self, item: _Item) -> bool:
        """Whether name and folders agree with each other and with the manifest."""
        row, name = item.row, classify(item.row.name, 0)
        # `land_CO2_flux.nc` is no file of a simulation CO2.
        of_name = bool(name.simulation) and (
            name.simulation != "CO2" or self._knows(name.model) or not name.model
        )
        found = [
            (
                "simulation",
                name.simulation if of_name else "",
                row.folder_simulation,
                self.simulation,
            ),
            ("stage", name.stage, row.folder_stage, self.stage),
        ]
        if not _SIMULATION.fullmatch(self.simulation):
            found = found[1:]
        for key, said, folder, wanted in (f for f in found if f[3]):
            both = bool(said and folder) and said != folder
            if both and wanted in (said, folder):
                problem = Problem(
                    item.origin,
                    key,
                    f"{said} in its name, {folder} in its folder",
                    wanted,
                    "Rename it, or move it to where it belongs.",
                    "contradiction",
                )
                self.refuse(item.origin, problem)
                return False
            if (said or folder) and wanted not in (said, folder):
                words = f"of {key} {said or folder}, not {wanted}; not read"
                if both:
                    words = f"of {key} {said} by its name, {folder} by its folder; not read"
                self.note(item.origin, "other-run", words)
                return False
        if of_name or name.version:
            return self._has_known_prefix(item, name.model)
        return True

    def _knows(self, prefix: str) -> bool:
        known = (self.model, *self.declared.prefixes)
        return not self.model or any(same_name(prefix, name) for name in known)

    def _has_known_prefix(self, item: _Item, prefix: str) -> bool:
        # `gpp_S3_monthly.nc` begins with its variable.
        if self._knows(prefix) or prefix in variable_table():
            return True
        known = " or ".join(map(repr, (self.model, *self.declared.prefixes)))
        declare = ", ".join((*self.declared.prefixes, prefix))
        problem = Problem(
            item.origin,
            "",
            f"a name that begins with {prefix!r}",
            known,
            f"If it is this model's, declare it in the manifest: prefixes: [{declare}]",
            "undeclared-prefix",
        )
        self.refuse(item.origin, problem)
        return False

    def check_use(self, items: Sequence[_Item]) -> None:
        """UsageError for a name of ``use`` that no file has: a slip would change nothing."""
        problems = [
            Problem(
                "manifest",
                f"use.{name}",
                f"{pattern!r}, which no file of this run is called",
                "the name of a file, or its path in the submission",
            )
            for name, pattern in self.declared.use.items()
            if not _named(items, pattern)
        ]
        if problems:
            raise UsageError(problems)

    # --- by contents ---

    def opened(self, item: _Item, result: _Opened) -> None:
        """Take up a file that was unpacked and checked."""
        if result.problem is not None:
            self.broken.append(item.row)
            self.refuse(result.origin, result.problem)
            return
        if result.found is None:
            self.note(result.origin, "not-data", f"{UNREAD['archive']}; not read")
            return
        found = result.found
        try:
            inside = contents(found.path, found.origin)
        except DataError as error:
            self.broken.append(item.row)
            self.refuse(found.origin, error.problems[0])
            return
        problem = self._attributes_problem(found.origin, inside.attributes)
        if problem is not None:
            self.refuse(found.origin, problem)
            return
        prefix = classify(item.row.name, 0).model
        if prefix and any(same_name(prefix, p) for p in self.declared.prefixes):
            words = f"its name begins with {prefix!r}, as declared for {self.model}"
            found = _with_note(found, ("prefix", words))
        self.candidates.append(_Candidate(item, found, inside))

    def _attributes_problem(self, origin: str, attributes: Mapping[str, str]) -> Problem | None:
        """Whether the file says that it is of another model, stage or simulation."""
        said = {key.lower(): value.strip() for key, value in attributes.items()}
        remedy = "Correct whichever is wrong."
        for key, wanted, valid in (
            ("calibration_stage", self.stage, re.compile(r"prior|posterior", re.IGNORECASE)),
            ("simulation", self.simulation, _SIMULATION),
        ):
            value = said.get(key, "")
            if (
                valid.fullmatch(value)
                and valid.fullmatch(wanted)
                and value.lower() != wanted.lower()
            ):
                name = next(k for k in attributes if k.lower() == key)
                return Problem(origin, name, repr(value), repr(wanted), remedy, "contradiction")
        model = re.fullmatch(r"([^\s.]+)\.\S+", said.get("model", ""))
        if model and not self._knows(model[1]) and not self._knows(model[0]):
            wanted = f"{self.model!r}, as the manifest says"
            return Problem(origin, "Model", repr(model[0]), wanted, remedy, "contradiction")
        return None

    def result(self) -> Taken:
        """Conflicts refused, and everything sorted."""
        self._use()
        self._refuse_stubs()
        self._refuse_copies()
        files = [replace(c.found, without=tuple(sorted(c.without))) for c in self.candidates]
        return Taken(
            tuple(sorted(files, key=lambda f: f.origin)),
            tuple(sorted(self.refused, key=lambda r: r[0])),
            tuple(sorted(self.notes)),
        )

    def _use(self) -> None:
        """Where the manifest names a file for a variable, no other file is read for it."""
        for variable, pattern in self.declared.use.items():
            meant = _named([c.item for c in self.candidates], pattern)
            chosen = [c for c in self.candidates if c.item in meant]
            for candidate in chosen:
                candidate.named = True
            target = self._fields_called(variable, chosen)
            for candidate in [c for c in self.candidates if c not in chosen]:
                hit = candidate.fields & target
                if not hit:
                    continue
                candidate.without |= hit
                if not candidate.fields:
                    words = f"the manifest names {pattern!r} for {variable}; not read"
                    self.candidates.remove(candidate)
                    self.note(candidate.origin, "not-named", words)
            # A broken file that was not named is no obstacle to the one that was.
            if chosen:
                names = {c.row.variable for c in chosen}
                self.broken = [row for row in self.broken if row.variable not in names]

    def _fields_called(self, variable: str, chosen: Sequence[_Candidate]) -> set[str]:
        """The names inside files of what ``use`` calls ``variable``."""
        low = variable.casefold()
        called = {f for c in self.candidates for f in c.fields if f.casefold() == low}
        for candidate in self.candidates:
            if candidate.row.variable.casefold() == low and len(candidate.fields) == 1:
                called |= candidate.fields
        if not called:
            for candidate in chosen:
                if len(candidate.fields) == 1:
                    called |= candidate.fields
        return called

    def _refuse_stubs(self) -> None:
        sizes = [c.found.size for c in self.candidates if c.contents.fields]
        for candidate in list(self.candidates):
            if not candidate.contents.fields or candidate.row.years is not None:
                continue
            values = sum(candidate.contents.fields.values())
            problem = stub_problem(candidate.origin, candidate.found.size, values, sizes)
            if problem is not None:
                self.drop(candidate, problem)

    def _refuse_copies(self) -> None:
        groups: dict[tuple[object, ...], list[_Candidate]] = defaultdict(list)
        for candidate in self.candidates:
            inside = candidate.fields or frozenset(candidate.contents.static)
            if inside:
                groups[bool(candidate.fields), inside, candidate.row.piece].append(candidate)
        for group in groups.values():
            for candidate, other in _clashes(group):
                if candidate in self.candidates:
                    name = ", ".join(sorted(candidate.fields)[:3]) or candidate.row.variable
                    self.drop(candidate, _copy_problem(candidate, other.origin, name))
        for candidate in [c for c in self.candidates if c.marked]:
            row = candidate.row
            twins = [
                b
                for b in self.broken
                if (b.variable, b.piece, b.frequency) == (row.variable, row.piece, row.frequency)
            ]
            if twins:
                self.drop(candidate, _copy_problem(candidate, twins[0].path, row.variable))
            elif row.kind == "superseded":
                found = f"an old copy, in {row.copy!r}, and no other file"
                remedy = (
                    f'If it is to be used: use: {{{row.variable}: "{candidate.item.relative}"}}'
                )
                problem = Problem(
                    candidate.origin, row.variable, found, "a current file", remedy, "superseded"
                )
                self.drop(candidate, problem)

    def drop(self, candidate: _Candidate, problem: Problem) -> None:
        """Refuse a file that was to be harmonized."""
        self.candidates.remove(candidate)
        self.broken.append(candidate.row)
        self.refuse(candidate.origin, problem)

    def refuse(self, origin: str, problem: Problem) -> None:
        self.refused.append((origin, problem))

    def note(self, origin: str, rule: str, words: str) -> None:
        self.notes.append((origin, rule, words))


def _with_note(found: Found, note: Note) -> Found:
    return replace(found, notes=(*found.notes, note))


def _copy_problem(candidate: _Candidate, other: str, name: str) -> Problem:
    return Problem(
        candidate.origin,
        name,
        f"the same variable and time as in {other}",
        "each in one file",
        f"Name the right one in the manifest: use: {{{candidate.row.variable or name}: "
        f'"{candidate.item.relative}"}}; none is ever picked by date.',
        "duplicate",
    )


def _clashes(group: Sequence[_Candidate]) -> Iterator[tuple[_Candidate, _Candidate]]:
    """(file, another one) for every file that holds the same variable over the same time.

    Pieces of time are no copies. Where neither stamps nor names tell, only files that are marked as
    copies clash: everything else is for the timeline to say.
    """
    by_frequency: dict[str, list[_Candidate]] = defaultdict(list)
    for candidate in group:
        by_frequency[candidate.frequency].append(candidate)
    unknown = by_frequency.pop("", [])
    for members in [[*m, *unknown] for m in by_frequency.values()] or [unknown]:
        if all(c.contents.span is not None for c in members):
            yield from _overlaps(members)
            continue
        for i, one in enumerate(members):
            for other in members[i + 1 :]:
                if _clash(one, other):
                    yield one, other
                    yield other, one


def _overlaps(members: Sequence[_Candidate]) -> Iterator[tuple[_Candidate, _Candidate]]:
    """As `_clashes`, of files whose stamps are all known: in one pass in the order of time."""
    ordered = sorted(members, key=lambda c: (c.contents.span or (0.0, 0.0), c.origin))
    latest: _Candidate | None = None
    for candidate in ordered:
        first, last = candidate.contents.span or (0.0, 0.0)
        end = (latest.contents.span or (0.0, 0.0))[1] if latest is not None else first - 1
        if latest is not None and first <= end:
            yield candidate, latest
            yield latest, candidate
        if latest is None or last >= end:
            latest = candidate


def _clash(one: _Candidate, other: _Candidate) -> bool:
    for a, b in ((one.contents.span, other.contents.span), (one.row.years, other.row.years)):
        if a is not None and b is not None:
            return not (a[1] < b[0] or b[1] < a[0])
    if not one.contents.fields:  # no time at all: the same map twice
        return True
    return one.marked or other.marked or one.row.name == other.row.name


def _is_text(row: Row) -> bool:
    """Whether what is packed is no NetCDF file by its name: ``readme.txt.gz``."""
    inner = unpacked_name(row.name)
    return inner[1] == "gz" and classify(inner[0], 1).kind not in READABLE


def _looks_like_netcdf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_netcdf(file.read(4096))
    except OSError:
        return False
