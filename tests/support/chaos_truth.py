"""What `status` may say of a task, from what the simulator knows and what the journal holds."""

from __future__ import annotations

import functools
import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chaos_cluster import Element
from chaos_processes import EPOCH, HEARTBEAT_S, Process

if TYPE_CHECKING:
    from chaos_world import World

SETTLE_S: Final = 12.0
STALE_S: Final = 180.0


class Truth:
    """What `status` may say of a task, from what the simulator and the journal hold."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = world.kernel.now
        self.intents = journal(world.run_dir)
        self.latest: dict[str, dict[str, Any]] = {}
        for intent in self.intents.values():
            if intent["outcome"] != "lost":
                self.latest.update(dict.fromkeys(intent["refs"], intent))

    def states(self, ref: str, key: str) -> set[str]:
        """Every state that is right."""
        world = self.world
        if world.marker(ref).get("key") == key:
            return {"done"}
        attempts = self._attempts(ref)
        last = attempts[-1] if attempts else None
        also: set[str] = set()
        if last is not None and last["state"] == "running":
            owner = self._process(last["path"])
            if owner is not None and not owner.disowned:
                # Of a submission that was accepted twice, the other job may be the one looked at.
                twins = {e.job.id for e in self._elements(ref, last["token"])}
                return {"running"} if len(twins) == 1 else {"running", "queued", "held"}
            if owner is not None:
                return _ANY
            # Its process is gone without a word, which shows when its heartbeat is missed.
            silence = self.now - last["touched"]
            also = {"running"} if silence < STALE_S + HEARTBEAT_S or self._is_live(last) else set()
            if any(e.state == "EXITING" for e in self._elements(ref, last["token"])):
                also |= {"unknown"}
        return also | self._of_job(ref, key, last)

    def _of_job(self, ref: str, key: str, last: dict[str, Any] | None) -> set[str]:
        intent = self.latest.get(ref)
        mine = last if last is not None and last["key"] == key else None
        if intent is None or intent["refs"][ref] != key:
            return {"failed"} if mine and mine["state"] == "failed" else {"waiting", "blocked"}
        if intent["outcome"] == "cancelled":
            # One that is asked to end may be back in the queue, by the scheduler's own doing.
            again = mine is not None and mine["state"] == "running" and self._is_live(mine)
            return {"cancelled", "queued", "held"} if again else {"cancelled"}
        if intent["outcome"] == "rejected":
            return {"failed"}
        if intent["outcome"] == "intent":
            return {"submitting"}
        elements = self._elements(ref, intent["token"])
        hidden = any(e.job.visible_at > self.now for e in elements)
        young = self.now - intent["at"] < SETTLE_S + 1
        found: set[str] = set()
        live = [e for e in elements if e.is_live and not e.job.forgotten]
        if live:
            found |= {"held"} if all(e.hopeless for e in live) else {"queued", "held"}
            if intent["pack"] > 1 and mine is not None and mine["token"] == intent["token"]:
                # The others of its job go on.
                found |= {"failed"}
            if not hidden:
                return found
        if any(e.state == "EXITING" for e in elements):
            found |= {"unknown"}
        if young:
            found |= {"queued", "held"}
        mine = mine if mine is not None and mine["token"] == intent["token"] else None
        if mine is not None:
            return found | {"failed"}
        listed = [e for e in elements if not e.job.forgotten and e.job.visible_at <= self.now]
        failing = ["FAILED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY"]
        if self.world.case.flavour.name == "pbs":
            # PBS tells an exit status, not who ended the job.
            failing.append("CANCELLED")
        if any(e.state in failing and e.starts for e in listed):
            found.add("failed")
        # Its log may also be that of an older job of the same number.
        if any(e.state != "COMPLETED" and e.log.exists() for e in elements):
            found.add("failed")
        return found | {"waiting", "blocked"}

    def _elements(self, ref: str, token: str) -> list[Element]:
        return [
            e for j in self.world.cluster.jobs if j.token == token
            for e in j.elements if any(r == ref for r, _ in e.tasks)
        ]  # fmt: skip

    def _is_live(self, attempt: dict[str, Any]) -> bool:
        """Whether the scheduler still has the job of an attempt, to be started again perhaps."""
        return any(
            e.is_live or e.state == "EXITING"
            for e in self._elements(attempt["ref"], attempt["token"])
            if not e.job.forgotten
        )

    def _process(self, path: str) -> Process | None:
        return next((p for p in self.world.kernel.processes if p.attempt == path), None)

    def _attempts(self, ref: str) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.world.run_dir / "steps" / ref).glob("attempt-*")):
            status = path / "status.json"
            value = json.loads(status.read_text())
            if value["state"] != "left":
                touched = status.stat().st_mtime - EPOCH
                found.append({**value, "path": str(path), "touched": touched, "ref": ref})
        return found


_ANY: Final = {
    "running", "queued", "waiting", "submitting", "failed", "blocked", "cancelled", "unknown",
    "held",
}  # fmt: skip


def journal(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The journal's intents by token, read independently of the code under test."""
    found: dict[str, dict[str, Any]] = {}
    path = run_dir / "journal.jsonl"
    tables: dict[str, dict[str, dict[int, tuple[str, str]]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == "intent":
            step = event["step"]
            if step not in tables:
                folder = run_dir / "jobs" / step
                texts = [p.read_text() for p in folder.glob("tasks*.tsv")]
                tables[step] = {hashlib.sha256(t.encode()).hexdigest(): rows_of(t) for t in texts}
            rows = tables[step][event["table"]]
            numbers = _numbers(event["rows"])
            refs = {f"{step}/{rows[n][0]}": rows[n][1] for n in numbers}
            at = _seconds(event["time"])
            more = {"refs": refs, "outcome": "intent", "at": at, "numbers": numbers}
            found[event["token"]] = {**event, **more}
        elif event["token"] in found and event["event"] != "repaired":
            found[event["token"]]["outcome"] = event["event"]
            found[event["token"]]["at"] = _seconds(event["time"])
    return found


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() - EPOCH


@functools.cache
def rows_of(text: str) -> dict[int, tuple[str, str]]:
    """Task and key of each row of a table."""
    head, *lines = text.splitlines()
    names = head.split("\t")
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    return {number: (row["task"], row["key"]) for number, row in enumerate(rows, start=1)}


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found
