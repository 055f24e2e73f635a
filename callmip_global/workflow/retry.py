"""What `resume` does about a task that failed: which classes are tried again, how often, with what.

The journal is the memory: each retry is an intent that names the class it follows. A task whose key
changed (edited parameters, files, command) has no past.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from callmip_global.config.plan import Plan, Step
from callmip_global.resources import walltime_text
from callmip_global.workflow.lease import Lease

_MINUTE_S = 60
_MIB = 1024**2


@dataclass(frozen=True)
class Level:
    """What a submission asks for instead of what the job script says; None: what it says.

    ``segment_years``: longest piece that a segment is run in; None: whole.
    """

    walltime_s: int | None = None
    memory_bytes: int | None = None
    segment_years: int | None = None


@dataclass(frozen=True)
class Verdict:
    """``retry``: the class of failure that is retried ("" for a task that did not fail);
    ``refused``: why it is not, if it is not."""

    retry: str
    level: Level
    refused: str = ""


def level_of(plan: Plan, step: Step, history: Sequence[Lease], retry: str = "") -> Level:
    """Resources after all retries so far (and one more after a failure of class ``retry``)."""
    rules = plan.settings["retry"]
    classes = [*(lease.intent.retry for lease in history), retry]

    def grown(name: str, asked: int, unit: int) -> int | None:
        factor: float = math.prod(rules[kind][name] for kind in classes if kind in rules)
        if factor <= 1:
            return None
        wanted = math.ceil(asked * factor / unit) * unit
        limit: int | None = step.limits[_LIMITED[name]]
        return wanted if limit is None else max(asked, min(wanted, limit))

    asked = step.resources
    return Level(
        grown("walltime", asked["walltime_s"], _MINUTE_S),
        grown("memory", asked["memory_bytes"], _MIB),
        _piece_years(step, [rules[kind]["segment_years"] for kind in classes if kind in rules]),
    )


def _piece_years(step: Step, asked: Sequence[int | None]) -> int | None:
    """The shortest length asked for; None where the segment is no longer, or is one labelled year
    that stands for a whole pass over the climate."""
    years = min((n for n in asked if n is not None), default=None)
    recipe = step.recipe
    if years is None or step.kind != "run":
        return None
    length = recipe["last_year"] - recipe["first_year"] + 1
    return years if years < length == recipe["n_years"] else None


_LIMITED = {"walltime": "walltime_s", "memory": "memory_bytes"}


def verdict(
    plan: Plan, step: Step, kind: str, history: Sequence[Lease], *, beyond_budget: bool
) -> Verdict:
    """Whether a task is tried again after a failure of class ``kind``, and asking for what.

    ``history``: its submissions under the key it has now. Refused are a budget that is used up
    (unless ``beyond_budget``) and more of a resource of which the queue gives no more.
    """
    rule: dict[str, Any] = plan.settings["retry"][kind]
    level = level_of(plan, step, history, kind)
    used = sum(lease.intent.retry == kind for lease in history)
    refused = ""
    if used >= rule["times"] and not beyond_budget:
        refused = (
            f"tried again {used} times after this class of failure, which is all that"
            f" retry.{kind}.times allows: mend the cause, then `resume --beyond-budget`"
        )
    before = level_of(plan, step, history)
    asked = step.resources["walltime_s"]
    if rule["walltime"] > 1 and _same(level.walltime_s, before.walltime_s, asked):
        limit = walltime_text(before.walltime_s or asked)
        refused = f"the queue gives no more than {limit}: lower segment_years"
    asked = step.resources["memory_bytes"]
    if rule["memory"] > 1 and _same(level.memory_bytes, before.memory_bytes, asked):
        limit = f"{(before.memory_bytes or asked) / 1024**3:g}GB"
        refused = f"the queue gives no more than {limit} a node: use more nodes or fewer tasks"
    return Verdict(kind, level, refused)


def _same(new: int | None, before: int | None, asked: int) -> bool:
    return (new or asked) <= (before or asked)
