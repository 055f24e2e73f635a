"""The chain of a simulation: phases cut into segments, and where each takes its restart files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from callmip_global.config.schema import LATEST, Phase, Run


@dataclass(frozen=True)
class Segment:
    """Consecutive model years run by one job, and the name of its step. ``part`` is its phase, or
    its inner step as a phase of its own (see `Phase.parts`)."""

    phase: str
    inner: str | None
    cycle: int
    first_year: int
    last_year: int
    n_years: int
    name: str
    part: Phase


def segments(phases: Iterable[Phase]) -> list[Segment]:
    """All segments of all phases in order; see `callmip_global.config.schema.Phase` for cycles."""
    found: list[Segment] = []
    for phase in phases:
        inner: list[str | None] = [step.name for step in phase.steps]
        for cycle in range(1, phase.cycles + 1):
            label = f"-c{cycle:02d}" if phase.cycles > 1 else ""
            for name, part in zip(inner or [None], phase.parts(), strict=True):
                if cycle > part.cycles:
                    continue
                prefix = f"run-{phase.name}{label}{f'-{name}' if name else ''}"
                found += _cut(phase.name, name, cycle, part, prefix)
    return found


def _cut(phase: str, inner: str | None, cycle: int, part: Phase, prefix: str) -> Iterator[Segment]:
    first, last = part.years
    length = part.segment_years or last - first + 1
    for start in range(first, last + 1, length):
        end = min(start + length - 1, last)
        # A single labelled year stands for a whole pass over the recycled climate.
        n_years = part.n_years if first == last else end - start + 1
        span = f"-{start}-{end}" if length < last - first + 1 else ""
        yield Segment(phase, inner, cycle, start, end, n_years, f"{prefix}{span}", part)


@dataclass(frozen=True)
class Link:
    """A segment in the chain of one simulation: what it leaves, and where what it reads is from.

    ``restart_in``: name or pattern -> the segment that left it. ``missing``: names that were asked
    for and that no earlier segment leaves, with the source that was asked.
    """

    segment: Segment
    restart_out: tuple[str, ...]
    restart_in: Mapping[str, str]
    missing: tuple[tuple[str, str], ...] = ()


def names_file(pattern: str, name: str) -> bool:
    """Whether a name or pattern of restart files means this file (or this very pattern)."""
    return name == pattern or fnmatchcase(name, pattern)


def chain(run: Run, simulation: str) -> list[Link]:
    """The segments of one simulation in order, with their restart files followed back."""
    links: list[Link] = []
    for segment in segments(phase for phase in run.phases if phase.is_in(simulation)):
        part = segment.part
        out = run.restart if part.restart_out is None else part.restart_out
        asked = part.restart_in
        sources: dict[str, str] = {}
        missing: list[tuple[str, str]] = []
        for name, source in (
            dict.fromkeys(run.restart, LATEST) if asked is None else asked
        ).items():
            before = _left_by(links, name, source)
            if before is not None:
                sources[name] = before
            elif asked is not None:
                missing.append((name, source))
        links.append(Link(segment, out, sources, tuple(missing)))
    return links


def _left_by(links: Sequence[Link], name: str, source: str) -> str | None:
    """The last segment (of the phase ``source``) that left a restart file."""
    for link in reversed(links):
        if source in (LATEST, link.segment.phase) and any(
            names_file(left, name) for left in link.restart_out
        ):
            return link.segment.name
    return None
