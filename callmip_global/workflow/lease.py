"""Who owns a task: the latest submission of it that was not lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from callmip_global.config.plan import Step, Task, tasks_of_table
from callmip_global.workflow.journal import Intent


@dataclass(frozen=True, slots=True)
class Lease:
    """One task of a submission, with its row and key in the table of that time."""

    intent: Intent
    row: int
    key: str

    @property
    def array_index(self) -> int | None:
        return self.intent.array_index(self.row)

    @property
    def depends(self) -> tuple[str, ...]:
        """The jobs it waits for."""
        return self.intent.depends_of(self.row)


class Leases:
    """All submissions of a run, by task. ``table(step, digest)`` gives the text of a table."""

    def __init__(self, intents: Mapping[str, Intent], table: Callable[[str, str], str]) -> None:
        self.intents = intents
        self._table = table
        self._rows: dict[tuple[str, str], dict[str, Task]] = {}

    @cached_property
    def _by_step(self) -> dict[str, list[Intent]]:
        found: dict[str, list[Intent]] = {}
        for intent in self.intents.values():
            found.setdefault(intent.step, []).append(intent)
        return found

    def _tasks(self, intent: Intent) -> dict[str, Task]:
        place = (intent.step, intent.table)
        if place not in self._rows:
            tasks = tasks_of_table(self._table(*place))
            self._rows[place] = {task.id: task for task in tasks}
        return self._rows[place]

    def tasks(self, intent: Intent) -> list[Task]:
        """The tasks of a submission, as its table has them."""
        table = list(self._tasks(intent).values())
        return [table[row - 1] for row in intent.rows]

    def history(self, step: Step, task: Task) -> Iterator[Lease]:
        """Every submission of one task that was not lost, oldest first."""
        for intent in self._by_step.get(step.name, ()):
            lease = None if intent.outcome == "lost" else self._lease(step, task, intent)
            if lease is not None:
                yield lease

    def _lease(self, step: Step, task: Task, intent: Intent) -> Lease | None:
        if intent.table == step.table:
            own = task.index in intent.row_set
            return Lease(intent, task.index, task.key) if own else None
        old = self._tasks(intent).get(task.id)
        if old is None or old.index not in intent.row_set:
            return None
        return Lease(intent, old.index, old.key)

    def latest(self, step: Step, task: Task) -> Lease | None:
        """The lease of one task; None if it was never submitted."""
        for intent in reversed(self._by_step.get(step.name, [])):
            lease = None if intent.outcome == "lost" else self._lease(step, task, intent)
            if lease is not None:
                return lease
        return None
