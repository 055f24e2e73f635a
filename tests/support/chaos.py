"""Sequences of everything that can go wrong with a run: drawn from a seed, or written down.

The same list of actions always gives the same events; `chaos_world` says what must hold.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from chaos_cluster import FAULTS
from chaos_plans import CASES, Case, Workshop
from chaos_processes import use
from chaos_world import Action, World

REFERENCE: Final[tuple[Action, ...]] = (
    ("submit", 0, 0),
    ("start", 0, 0),
    ("model", 0, 0),
    ("start", 0, 0),
    ("edit", 1, 0),
    ("submit", 0, 0),
    ("start", 0, 0),
    ("start", 0, 9),
    ("cancel", 0, 0),
    ("time", 3, 0),
    ("resume", 0, 0),
    ("start", 0, 0),
    ("resume", 0, 0),
)
"""Submit, a success and a failure, an edited experiment, a cancelled job, resume: what every single
effect of is interrupted."""

_ALONE: Final = (("submit", 10), ("resume", 6), ("cancel", 2))
_BUSY: Final = (("go", 14), ("kill", 2), ("submit", 1), ("cancel", 1))
_JOBS: Final = (
    ("start", 10), ("run", 14), ("requeue", 1), ("lose", 1), ("crash", 2), ("limit", 2),
    ("scancel", 1), ("forget", 1),
)  # fmt: skip
_WORLD: Final = (
    ("fault", 8), ("time", 5), ("model", 1), ("reuse", 1), ("edit", 1), ("disk", 1), ("status", 1),
)  # fmt: skip
VERBS: Final = tuple(dict.fromkeys(v for v, _ in (*_ALONE, *_BUSY, *_JOBS, *_WORLD)))


def draw(world: World, luck: random.Random) -> Action:
    """What happens next: rather what there is something to do for."""
    part = luck.random()
    if part < 0.4:
        table: tuple[tuple[str, int], ...] = _BUSY if world.users else _ALONE
    elif part < 0.8:
        table = _JOBS
    else:
        table = _WORLD
    verb = luck.choices([v for v, _ in table], [w for _, w in table])[0]
    effects = 0 if luck.random() < 0.4 else int(luck.expovariate(1 / 12)) + 1
    if verb == "fault":
        kind = luck.choices(range(len(FAULTS)), (10, 4, 3, 3))[0]
        return verb, kind, luck.randrange(len(FAULTS[tuple(FAULTS)[kind]]))
    if verb == "kill":
        return verb, luck.randrange(12), luck.randrange(400)
    if verb == "edit":
        return verb, luck.randrange(len(world.case.plans)), 0
    return verb, luck.randrange(12), effects


@dataclass(frozen=True)
class Report:
    """What one sequence came to."""

    seed: int
    case: str
    actions: tuple[Action, ...]
    wrong: tuple[str, ...]
    effects: int
    interrupted: int
    """Effects that a process was killed at or between, and those that met a fault."""
    jobs: int
    trace: tuple[str, ...]


def run_seed(shop: Workshop, seed: int, *, traced: bool = False) -> Report:
    """The sequence of a seed, from its first action to the end of all trouble."""
    luck = random.Random(seed)
    case = _ready(shop, CASES[seed % len(CASES)])
    world = World(shop, case, traced=traced)
    actions: list[Action] = []

    def drawn() -> Iterator[Action]:
        for _ in range(luck.randint(10, 70)):
            action = draw(world, luck)
            actions.append(action)
            yield action

    _perform(world, drawn())
    return _report(world, seed, actions)


def run_actions(
    shop: Workshop, case: str, actions: Sequence[Action], *, crash_at: int | None = None,
    cut: int = 7, traced: bool = False,
) -> Report:  # fmt: skip
    """A written-down sequence. ``crash_at``: number of the effect before which its process dies."""
    world = World(shop, _ready(shop, case), traced=traced)
    world.kernel.crash_at, world.kernel.crash_cut = crash_at, cut
    _perform(world, actions)
    return _report(world, -1, actions)


def _ready(shop: Workshop, name: str) -> Case:
    """A case of which one sequence was played, so that what is asked only once has been asked."""
    is_new = not shop.has(name)
    case = shop.case(name)
    if is_new:
        _perform(World(shop, case), [])
    return case


def _perform(world: World, actions: Iterable[Action]) -> None:
    with use(world.kernel):
        for action in actions:
            world.do(action)
        world.finish()


def _report(world: World, seed: int, actions: Sequence[Action]) -> Report:
    return Report(
        seed, world.case.name, tuple(actions), tuple(world.wrong), world.kernel.effects,
        world.kernel.interrupted + world.cluster.faults_met, world.cluster.starts,
        tuple(world.kernel.trace or ()),
    )  # fmt: skip
