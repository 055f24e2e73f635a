"""A scheduler in memory that answers the real commands, with the manners of Slurm, PBS or `local`.

It takes the argument lists that would go to sbatch, squeue, scancel, scontrol, qsub, qstat, qdel or
the local queue, and answers with the text and the exit code that these are known to give. Whatever
can go wrong on the way is armed beforehand (`arm`), one fault for one call.

What is modelled, from measured behaviour: Slurm takes a dependency on a job it has forgotten as
satisfied; dependents of a failed job are killed or stay for ever; aftercorr; requeue under the same
id; COMPLETING until a cancelled job is gone. PBS deletes what waits for a job that failed or is
gone, holds for ever what is made to wait for a job that is just ending, has no element-wise
dependency, takes arrays of one range only, and forgets what has ended. An array on PBS ends as its
last element ends.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from chaos_processes import Kernel, Process

KILL_WAIT_S: Final = 30.0
"""Between TERM and KILL."""

REMEMBERED_S: Final = 300.0
"""How long Slurm knows a job that has ended (MinJobAge)."""

EXITING_S: Final = 2.0
"""How long a PBS job is in state E."""

LATE_S: Final = 5.0
"""How long after the reply was given up a submission may still arrive."""

ENDED: Final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

FAULTS: Final = {
    "submit": (
        "full",
        "lost",
        "lost after",
        "refused connection",
        "error after",
        "late",
        "twice",
        "rejected",
        "garbled",
        "hidden",
    ),
    "list": ("down", "timeout"),
    "cancel": ("down", "late", "timeout after"),
    "repair": ("down", "timeout after"),
}
"""What can be armed, by kind of call."""


@dataclass(frozen=True)
class Flavour:
    """Which scheduler, and which of its manners."""

    name: str
    """``slurm``, ``pbs`` or ``local``."""
    kills_dependents: bool = True
    """Slurm: dependents of a failed job are cancelled (--kill-on-invalid-dep), not kept."""
    borrows: bool = False
    """PBS without history: an ended element shows the attributes of the whole array."""


@dataclass
class Element:
    """One job, or one element of an array."""

    job: Job
    unit: int
    """Row of the table of tasks, or number of the pack of rows."""
    index: int | None
    state: str = "PENDING"
    waits: list[Wait] = field(default_factory=list)
    satisfied: bool = False
    hopeless: bool = False
    """Waits for something that will never come."""
    process: Process | None = None
    ending: str = ""
    """The state it ends in, once its process is gone."""
    ended_at: float = 0.0
    starts: int = 0
    tasks: tuple[tuple[str, str], ...] = ()
    """What it runs: ``step/task`` and key of each."""
    packed: bool = False
    """Whether each of its tasks is run by a process of its own."""

    @property
    def name(self) -> str:
        return self.job.id if self.index is None else f"{self.job.id}_{self.index}"

    @property
    def log(self) -> Path:
        """What the job prints, where the scheduler puts it."""
        name, suffix = self.name, ".out"
        if self.job.id.endswith(".pbs1"):
            name, suffix = self.job.id.replace("[]", f"[{self.index}]"), ".OU"
        return self.job.run_dir / "jobs" / self.job.step / "log" / f"{name}{suffix}"

    @property
    def is_live(self) -> bool:
        return self.state not in (*ENDED, "EXITING")


@dataclass
class Job:
    """One accepted submission."""

    id: str
    token: str
    run_dir: Path
    step: str
    visible_at: float
    was_hidden: bool
    """Whether it was not listed for a while after it was accepted."""
    elements: list[Element] = field(default_factory=list)
    forgotten: bool = False

    @property
    def is_array(self) -> bool:
        return self.elements[0].index is not None

    @property
    def is_exiting(self) -> bool:
        """PBS: just ending, its dependents seen to."""
        states = {e.state for e in self.elements}
        return "EXITING" in states and not self.is_live

    @property
    def is_live(self) -> bool:
        return any(e.is_live for e in self.elements)

    def has_succeeded(self) -> bool | None:
        """None until it has ended; PBS asks the element that ended last, Slurm all of them."""
        if self.is_live:
            return None
        return all(_succeeded(e) for e in self.elements)


@dataclass(frozen=True)
class Wait:
    """A dependency; ``on`` None: the scheduler did not know it."""

    on: Job | Element | None
    elementwise: bool = False
    too_late: bool = False
    """PBS: the job was ending already, and sees to no more dependents."""


def _succeeded(element: Element) -> bool:
    return "COMPLETED" in (element.state, element.ending)


class Cluster:
    """The queue; `run_child` of the kernel ends here."""

    def __init__(
        self, kernel: Kernel, flavour: Flavour, start: Callable[[Element], Callable[[], int]]
    ) -> None:
        self.kernel, self.flavour, self.start_body = kernel, flavour, start
        self.jobs: list[Job] = []
        self.armed: dict[str, list[str]] = {kind: [] for kind in FAULTS}
        self.accepted: Callable[[Job], None] = lambda job: None
        self.ended: Callable[[Element, str], None] = lambda element, ending: None
        """What is told when the scheduler ends a job that runs."""
        self.starts = self.faults_met = 0
        self.reuse: str | None = None
        """Id of a forgotten job that the next one gets."""
        self._last_id = 0
        self._element_of: dict[int, Element] = {}
        """By the number of the process that runs it."""
        kernel.call, kernel.said = self.call, self._said

    # What users and jobs ask for.

    def arm(self, kind: str, fault: str) -> None:
        """One fault for the next call of a kind."""
        self.armed[kind].append(fault)

    def _next_fault(self, kind: str) -> str:
        if not self.armed[kind]:
            return ""
        fault = self.armed[kind].pop(0)
        self.faults_met += 1
        self.kernel.log(f"{kind} meets: {fault}")
        return fault

    def call(self, argv: Sequence[str]) -> Any:
        """Answer a command line."""
        words = list(argv)
        if words[-1] == "--version":
            return _answer(0, f"{words[0]} 22.05\n", "")
        if words[0] == "git":
            return _answer(128, "", "fatal: not a git repository")
        if words[0] == "sbatch":
            return self._submit(self._parse_sbatch(words))
        if words[0] == "qsub":
            return self._submit(self._parse_qsub(words))
        if words[0] == "squeue":
            return self._list(lambda: self._squeue(words))
        if words[0] == "scancel":
            return self._cancel(words[1:])
        if words[0] == "scontrol":
            return self._scontrol(words)
        if words[0] == "sh" and "qdel" in words[2]:
            return self._cancel(words[4:])
        if words[0] == "sh" and "qselect" in words[2]:
            return self._list(self._qstat)
        if words[2:3] == ["callmip_global.jobs.localqueue"]:
            if words[3] == "submit":
                return self._submit(self._parse_local(words))
            if words[3] == "list":
                return self._list(self._local_list)
            return self._cancel(words[5:])
        raise AssertionError(f"a command that the cluster does not know: {words}")

    # Submitting.

    def _parse_sbatch(self, words: list[str]) -> dict[str, Any]:
        options = dict(w.removeprefix("--").partition("=")[::2] for w in words if w[:2] == "--")
        script, token, single, offset = words[-4:]
        assert options["comment"] == token, words
        return self._request(script, token, single, offset, options)

    def _parse_local(self, words: list[str]) -> dict[str, Any]:
        cut = words.index("--")
        options = dict(w.removeprefix("--").partition("=")[::2] for w in words[5:cut])
        script, token, single, offset = words[cut + 1 :]
        return self._request(script, token, single, offset, options)

    def _request(
        self, script: str, token: str, single: str, offset: str, options: dict[str, str]
    ) -> dict[str, Any]:
        text = options.get("array", "")
        indices = _expand(text) if text else [None]
        assert len(indices) > 1 or not text, f"an array of one element: {text}"
        waits: list[tuple[str, bool]] = []
        for part in filter(None, options.get("dependency", "").split(",")):
            word, *ids = part.split(":")
            waits += [(job_id, word == "aftercorr") for job_id in ids]
        units = [int(single) if i is None else i + int(offset) for i in indices]
        return {"script": Path(script), "token": token, "units": units, "indices": indices,
                "waits": waits}  # fmt: skip

    def _parse_qsub(self, words: list[str]) -> dict[str, Any]:
        options: dict[str, list[str]] = {}
        for name, value in zip(words[1:-1:2], words[2:-1:2], strict=True):
            options.setdefault(name, []).append(value)
        variables = dict(pair.partition("=")[::2] for pair in options["-v"][0].split(","))
        array = options.get("-J", [""])[0]
        waits = []
        for text in options["-W"]:
            if text.startswith("depend="):
                waits = [(i, False) for i in text.removeprefix("depend=afterok:").split(":")]
        indices: list[int | None] = [*_expand(array)] if array else [None]
        offset, single = int(variables["CALLMIP_OFFSET"]), variables["CALLMIP_INDEX"]
        units = [int(single) if i is None else i + offset for i in indices]
        return {"script": Path(words[-1]), "token": variables["CALLMIP_TOKEN"], "units": units,
                "indices": indices, "waits": waits}  # fmt: skip

    def _submit(self, request: dict[str, Any]) -> Any:
        fault = self._next_fault("submit")
        pbs, local = self.flavour.name == "pbs", self.flavour.name == "local"
        if fault == "full":
            if pbs:
                return _answer(1, "", "qsub: would exceed queue generic's per-user limit")
            return _answer(1, "", "sbatch: error: Batch job submission failed: Job violates"
                           " accounting/QOS policy (job submit limit, user's size and/or time)"
                           )  # fmt: skip
        if fault == "rejected":
            text = "qsub: Unknown queue" if pbs else "sbatch: error: invalid partition specified"
            return _answer(1, "", text)
        if fault == "refused connection" and not local:
            if pbs:
                return _answer(1, "", "Connection refused\nqsub: cannot connect to server pbs1")
            return _answer(1, "", "sbatch: error: Unable to contact slurm controller")
        if fault == "lost" or (local and fault == "refused connection"):
            self._time_out()
        if fault == "late":
            self.kernel.at(self.kernel.now + 120.0 + LATE_S, lambda: self._arrives(request))
            self._time_out()
        # PBS lists what it has accepted: qsub and qstat ask the same one server.
        hidden = 8.0 if fault == "hidden" and not pbs else 0.0
        job = self._accept(request, hidden)
        if fault == "twice":
            self._accept(request, hidden)
        if fault == "lost after" or (local and fault == "error after"):
            self._time_out()
        if fault == "error after":
            if pbs:
                return _answer(1, "", "qsub: Premature end of message")
            return _answer(1, "", "sbatch: error: Batch job submission failed:"
                           " Socket timed out on send/recv operation")  # fmt: skip
        if fault == "garbled":
            return _answer(0, "", "")
        banner = "" if pbs or local else "Welcome\n"
        return _answer(0, f"{banner}{job.id}\n", "")

    def _time_out(self) -> None:
        self.kernel.pass_time(120.0)
        raise subprocess.TimeoutExpired("the scheduler's command", 120.0)

    def _arrives(self, request: dict[str, Any]) -> None:
        self._accept(request, 0.0)

    def _accept(self, request: dict[str, Any], hidden_s: float) -> Job:
        number = self.reuse
        self.reuse = None
        if number is None or any(j.id == number and not j.forgotten for j in self.jobs):
            self._last_id += 1
            number = str(self._last_id)
            if self.flavour.name == "pbs":
                number += "[].pbs1" if request["indices"][0] is not None else ".pbs1"
        elif self.flavour.name == "pbs":
            number = number.partition(".")[0].removesuffix("[]")
            number += "[].pbs1" if request["indices"][0] is not None else ".pbs1"
        script: Path = request["script"]
        job = Job(
            number,
            request["token"],
            script.parents[2],
            script.parent.name,
            self.kernel.now + hidden_s,
            hidden_s > 0,
        )
        pairs = zip(request["units"], request["indices"], strict=True)
        job.elements = [Element(job, unit, index) for unit, index in pairs]
        waits = [self._wait_for(*each) for each in request["waits"]]
        for element in job.elements:
            element.waits = waits
        self.jobs.append(job)
        units = ",".join(str(e.unit) for e in job.elements)
        self.kernel.log(f"accepted {job.id}: {job.step} {units}")
        self.accepted(job)
        self.settle()
        return job

    def _wait_for(self, name: str, elementwise: bool) -> Wait:
        job_id, _, index = name.partition("_")
        job = next((j for j in self.jobs if j.id == job_id and not j.forgotten), None)
        if job is None:
            return Wait(None)
        if index:
            return Wait(next((e for e in job.elements if str(e.index) == index), None))
        return Wait(job, elementwise, too_late=job.is_exiting)

    # Listing.

    def _list(self, text: Callable[[], str]) -> Any:
        fault = self._next_fault("list")
        if fault == "timeout":
            self._time_out()
        if fault == "down":
            if self.flavour.name == "pbs":
                return _answer(255, "", "Connection refused\nqselect: cannot connect to server")
            return _answer(1, "", "slurm_load_jobs error: Unable to contact slurm controller")
        return _answer(0, text(), "")

    def listed(self) -> Iterator[Job]:
        """Jobs that the scheduler would tell of at this moment."""
        for job in self.jobs:
            if not job.forgotten and job.visible_at <= self.kernel.now:
                yield job

    def _squeue(self, words: list[str]) -> str:
        layout = words[words.index("-o") + 1] if "-o" in words else ""
        one_by_one = "-r" in words
        assert words[words.index("-t") + 1] == "all", words
        lines = []
        for job in self.listed():
            together = [e for e in job.elements if e.state == "PENDING" and not one_by_one]
            groups = _alike(together) if job.is_array else [[e] for e in together]
            groups += [[e] for e in job.elements if e not in together]
            for group in groups:
                first = group[0]
                name = first.name
                if len(group) > 1 or (job.is_array and first in together):
                    inner = ",".join(str(e.index) for e in group)
                    name = f"{job.id}_[{inner}]"
                reason = "None"
                if first.state == "PENDING":
                    reason = "Priority" if first.satisfied or not first.waits else "Dependency"
                    if first.hopeless:
                        reason = "DependencyNeverSatisfied"
                line = layout
                for letter, value in {
                    "%i": name,
                    "%k": job.token,
                    "%T": first.state,
                    "%r": reason,
                }.items():
                    line = line.replace(letter, value)
                lines.append(line)
        return "".join(f"{line}\n" for line in lines)

    def _local_list(self) -> str:
        return "".join(
            f"{j.id}|{'' if e.index is None else e.index}|{j.token}|{e.state}|\n"
            for j in self.listed()
            for e in j.elements
        )

    def _qstat(self) -> str:
        lines: list[str] = []

        def waiting(element: Element) -> str:
            return "Q" if element.satisfied or not element.waits else "H"

        letters = {"PENDING": "Q", "RUNNING": "R", "COMPLETING": "R", "EXITING": "E"}
        for job in self.listed():
            variables = f"    Variable_List = CALLMIP_TOKEN={job.token},CALLMIP_OFFSET=0"
            if job.is_array:
                begun = any(e.starts for e in job.elements)
                state = "B" if begun else waiting(job.elements[0])
                lines += [f"Job Id: {job.id}", f"    job_state = {state}", variables]
                lines += ["    Hold_Types = s", ""] if state == "H" else [""]
            for e in job.elements:
                name = job.id.replace("[]", f"[{e.index}]")
                state = letters.get(e.state, "X" if job.is_array else "F")
                if e.state == "PENDING":
                    state = "Q" if job.is_array and self.flavour.borrows else waiting(e)
                lines += [f"Job Id: {name}", f"    job_state = {state}", variables]
                if job.is_array and not (self.flavour.borrows and state == "X"):
                    lines.append(f"    array_id = {job.id}")
                if state == "H":
                    lines.append("    Hold_Types = s")
                if state in ("X", "F") and e.starts:
                    code = 0 if _succeeded(e) or self.flavour.borrows else 271
                    lines.append(f"    Exit_status = {code}")
                lines.append("")
        return "\n".join(lines)

    # Cancelling and changing.

    def _cancel(self, ids: Sequence[str]) -> Any:
        fault = self._next_fault("cancel")
        if fault == "down":
            return _answer(1, "", "Unable to contact the scheduler")
        for job in list(self.listed()):
            for element in job.elements:
                names = {job.id, element.name, job.id.replace("[]", f"[{element.index}]")}
                if names & set(ids):
                    self.cancel(element, delay_s=20.0 if fault == "late" else 0.0)
        if fault == "timeout after":
            self._time_out()
        return _answer(0, "", "")

    def _scontrol(self, words: list[str]) -> Any:
        """``scontrol update JobId=ID,ID_INDEX Dependency=...``, the one that is used."""
        fault = self._next_fault("repair")
        if fault == "down":
            return _answer(1, "", "slurm_update error: Unable to contact slurm controller")
        assert words[1] == "update", words
        fields = dict(w.partition("=")[::2] for w in words[2:])
        complaint = ""
        for name in fields["JobId"].split(","):
            complaint = self._repair(name, fields["Dependency"]) or complaint
        self.settle()
        if fault == "timeout after":
            self._time_out()
        return _answer(1 if complaint else 0, "", complaint)

    def _repair(self, name: str, dependency: str) -> str:
        job_id, _, index = name.partition("_")
        job = next((j for j in self.listed() if j.id == job_id), None)
        chosen = [e for e in job.elements if index in ("", str(e.index))] if job else []
        if not chosen:
            return "slurm_update error: Invalid job id specified"
        if any(e.state != "PENDING" for e in chosen):
            return "slurm_update error: Job is no longer pending execution"
        for element in chosen:
            element.waits = []
            for part in filter(None, dependency.split(",")):
                word, *ids = part.split(":")
                element.waits += [self._wait_for(i, word == "aftercorr") for i in ids]
            element.satisfied = element.hopeless = False
        self.kernel.log(f"{name} waits for {dependency} now")
        return ""

    # What goes on by itself.

    def elements(self) -> list[Element]:
        return [e for j in self.jobs if not j.forgotten for e in j.elements]

    def settle(self) -> None:
        """Let dependencies be satisfied, or never be; until nothing changes any more."""
        changed = True
        while changed:
            changed = False
            for element in self.elements():
                if element.state == "PENDING" and element.waits and not element.satisfied:
                    changed |= self._look_at_waits(element)

    def _look_at_waits(self, element: Element) -> bool:
        verdicts = [self._verdict(wait, element) for wait in element.waits]
        if all(v is True for v in verdicts):
            element.satisfied = True
            return True
        if False not in verdicts or element.hopeless:
            return False
        if self.flavour.name == "slurm" and not self.flavour.kills_dependents:
            element.hopeless = True
            return True
        for each in element.job.elements if self.flavour.name == "pbs" else [element]:
            if each.state == "PENDING":
                self._end(each, "CANCELLED")
        return True

    def _verdict(self, wait: Wait, element: Element) -> bool | None:
        """Whether a dependency is satisfied; None: not yet known, False: it never will be."""
        on = wait.on
        if on is None:
            return self.flavour.name != "pbs"
        if wait.too_late:
            return None
        if isinstance(on, Job) and wait.elementwise:
            matching = [e for e in on.elements if e.index == element.index]
            if not matching:
                return True
            on = matching[0]
        if isinstance(on, Element):
            return None if on.is_live else _succeeded(on)
        if self.flavour.name == "pbs" and on.is_array:
            if any(e.is_live for e in on.elements):
                return None
            return _succeeded(max(on.elements, key=lambda e: e.ended_at))
        return on.has_succeeded()

    def startable(self) -> list[Element]:
        """Elements that the scheduler may start now."""
        return [
            e for e in self.elements()
            if e.state == "PENDING" and (e.satisfied or not e.waits)
        ]  # fmt: skip

    def running(self) -> list[Element]:
        return [e for e in self.elements() if e.process is not None and e.process.alive]

    def start(self, element: Element) -> None:
        """Begin a job's body on a node; it does nothing until it is advanced."""
        element.state, element.ending = "RUNNING", ""
        element.starts += 1
        self.starts += 1
        host = f"node{self.starts % 3}"
        job_id = element.name
        if self.flavour.name == "slurm" and element.index is not None:
            job_id = f"{element.job.id}{element.index:03d}"
        process = self.kernel.spawn(
            f"job {element.name}.{element.starts}", host, self.start_body(element), job_id
        )
        process.on_end = lambda p: self._process_ended(element, p)
        element.process = process
        self._element_of[process.pid] = element

    def _process_ended(self, element: Element, process: Process) -> None:
        if element.process is not process:
            return
        element.process = None
        state = "COMPLETED" if process.code == 0 and not process.killed else "FAILED"
        self._end(element, element.ending or state)

    def _end(self, element: Element, state: str) -> None:
        element.ended_at = self.kernel.now + self.kernel.effects * 1e-6
        if self.flavour.name == "pbs" and element.process is None and element.starts:
            element.state, element.ending = "EXITING", state
            self.settle()
            self.kernel.at(self.kernel.now + EXITING_S, lambda: self._leave(element, state))
            return
        self._leave(element, state)

    def _leave(self, element: Element, state: str) -> None:
        element.state, element.ending = state, state
        self.settle()
        self.kernel.log(f"{element.job.step} {element.name} is {state}")
        job = element.job
        if any(e.state not in ENDED for e in job.elements):
            return
        if self.flavour.name == "pbs":
            job.forgotten = True
        elif self.flavour.name == "slurm":
            self.kernel.at(self.kernel.now + REMEMBERED_S, lambda: self.forget(job))

    # Misfortunes.

    def forget(self, job: Job) -> None:
        """A job that has ended is known no more."""
        if all(e.state in ENDED for e in job.elements) and not job.forgotten:
            self.settle()
            job.forgotten = True
            self.kernel.log(f"{job.id} is forgotten")

    def _terminate(self, element: Element, ending: str) -> None:
        """TERM now and KILL after a while, the way of cancelling and of the time limit."""
        process = element.process
        assert process is not None
        element.state, element.ending = "COMPLETING", ending
        self._last_words(element, ending)
        process.signals.append(signal.SIGTERM)

        def kill() -> None:
            # Whoever reacts to TERM at all has done so by now.
            for each in (process, *process.children, process):
                self.kernel.advance(each)
            self.kernel.kill(process)

        self.kernel.at(self.kernel.now + KILL_WAIT_S, kill)

    def cancel(self, element: Element, delay_s: float = 0.0) -> None:
        """scancel or qdel; ``delay_s``: how long the job does not hear of it."""
        if element.state == "PENDING":
            self._end(element, "CANCELLED")
        elif element.state == "RUNNING" and delay_s:
            element.state = "COMPLETING"
            process = element.process

            def late() -> None:
                if element.process is process is not None and element.state == "COMPLETING":
                    self._terminate(element, "CANCELLED")

            element.ending = "CANCELLED"
            self.kernel.at(self.kernel.now + delay_s, late)
        elif element.state == "RUNNING":
            self._terminate(element, "CANCELLED")

    def _said(self, process: Process, text: str) -> None:
        job = process.parent or process
        element = self._element_of.get(job.pid)
        if element is not None:
            self._write_log(element, text)

    def _write_log(self, element: Element, text: str) -> None:
        self.kernel.quiet = True
        with element.log.open("a") as file:
            file.write(text)
        self.kernel.quiet = False

    def _last_words(self, element: Element, ending: str) -> None:
        """What the scheduler itself writes into the log of a job that it ends."""
        self.ended(element, ending)
        line = _LAST_WORDS[self.flavour.name].get(ending)
        if line is not None:
            self._write_log(element, f"{line}\n")

    def time_limit(self, element: Element) -> None:
        """The job has used its time."""
        if element.state == "RUNNING":
            self._terminate(element, "TIMEOUT")

    def crash(self, element: Element, ending: str, cut: int | None = None) -> None:
        """The node fails, the memory runs out: the process is gone without a word."""
        if element.state == "RUNNING" and element.process is not None:
            element.ending = ending
            self._last_words(element, ending)
            self.kernel.kill(element.process, cut)

    def requeue(self, element: Element, *, disowned: bool) -> None:
        """Start again under the same id. ``disowned``: the first body goes on for a while, as on a
        node that lost its connection."""
        process = element.process
        if element.state != "RUNNING" or process is None:
            return
        element.process, element.state, element.ending = None, "PENDING", ""
        element.satisfied = True
        if disowned:
            self._disown(process)
        else:
            self.kernel.kill(process)

    def lose_node(self, element: Element) -> None:
        """NODE_FAIL is what the scheduler says, while the job goes on for a while."""
        process = element.process
        if element.state != "RUNNING" or process is None:
            return
        element.process = None
        self._disown(process)
        self._end(element, "NODE_FAIL")

    def _disown(self, process: Process) -> None:
        process.lost_by_scheduler = True
        self.kernel.log(f"{process.name} goes on unknown to the scheduler")
        self.kernel.at(self.kernel.now + 60.0, lambda: self.kernel.kill(process))

    def calm(self) -> None:
        """No more faults."""
        for faults in self.armed.values():
            faults.clear()
        self.reuse = None


_LAST_WORDS: Final[dict[str, dict[str, str]]] = {
    "slurm": {
        "TIMEOUT": "slurmstepd: error: *** JOB 1 ON node1 CANCELLED AT 2027-01-15T08:00:00"
        " DUE TO TIME LIMIT ***",
        "CANCELLED": "slurmstepd: error: *** JOB 1 ON node1 CANCELLED AT 2027-01-15T08:00:00 ***",
        "OUT_OF_MEMORY": "slurmstepd: error: Detected 1 oom_kill event in StepId=1.batch.",
    },
    "pbs": {
        "TIMEOUT": "=>> PBS: job killed: walltime 301 exceeded limit 300",
        "OUT_OF_MEMORY": "=>> PBS: job killed: mem 200000kb exceeded limit 102400kb",
    },
    "local": {},
}


def _alike(elements: list[Element]) -> list[list[Element]]:
    """Pending elements of an array that are shown as one line."""
    groups: dict[tuple[bool, bool], list[Element]] = {}
    for element in elements:
        groups.setdefault((element.satisfied, element.hopeless), []).append(element)
    return list(groups.values())


def _answer(code: int, stdout: str, stderr: str) -> Any:
    return SimpleNamespace(returncode=code, stdout=stdout, stderr=stderr)


def _expand(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found
