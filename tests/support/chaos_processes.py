"""Processes that stop before every effect, so that anything may happen between any two.

The code under test runs unchanged, each command and each job in a thread of its own of which one
at a time goes on, and only when it is told to. An audit hook stops it before every write, rename,
link, folder and removal in the run directory; stand-ins for the clock, process numbers, host names
and child processes do the rest. A process that was killed can do nothing any more: whatever its
``finally`` clauses try raises again. Nothing waits in real time and nothing is left to chance.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import pathlib
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, tzinfo
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from uuid import UUID, uuid4

EPOCH: Final = 1_800_000_000.0
"""Time of day at which every sequence begins [s since 1970]."""

HEARTBEAT_S: Final = 20.0
ALL: Final = 1_000_000_000
"""As many effects as there are: to the end."""

_STUCK_S = 300.0
_EVENTS = {
    "open": "write",
    "os.rename": "rename",
    "os.link": "link",
    "os.symlink": "symlink",
    "os.remove": "remove",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.truncate": "truncate",
}
_WRITING = os.O_WRONLY | os.O_RDWR
_SCHEDULER_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "CALLMIP_JOB_ID")


class KilledError(BaseException):
    """kill -9: goes through every ``except Exception``, and no effect follows."""


class Process:
    """One command of a user, or one job: runs only inside `Kernel.advance`."""

    def __init__(
        self, kernel: Kernel, name: str, host: str, body: Callable[[], int], job_id: str | None
    ) -> None:
        self.kernel, self.name, self.host, self.job_id = kernel, name, host, job_id
        self.pid = kernel.next_pid()
        self.body = body
        self.alive = True
        self.killed = False
        self.code: int | None = None
        self.error: BaseException | None = None
        self.next_effect = ""
        """What it is about to do, where it rests."""
        self.budget = 0
        self.busy = False
        """Whether it is running, or waits inside for another one that is."""
        self.cut: int | None = None
        """Where a write that is under way when the process is killed is cut short [bytes]."""
        self.disk_full_after: int | None = None
        """After how many effects one effect fails as on a full disk."""
        self.signals: list[int] = []
        self.handlers: dict[int, Any] = {}
        self.attempt: str | None = None
        """The attempt it claimed, as a job."""
        self.model_runs = False
        self.lost_by_scheduler = False
        """The scheduler says it has ended, while it goes on."""
        self.parent: Process | None = None
        self.children: list[Process] = []
        self.started_at = kernel.effects
        self.last_beat = kernel.now
        self.on_end: Callable[[Process], None] = lambda _: None
        self._go, self._rest = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._rest.acquire()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                self.code = self.body()
        except KilledError:
            self.killed = True
        except BaseException as error:
            self.error = error
        self.alive = False
        self._rest.release()

    def switch_to(self) -> None:
        """Let the thread go on until it rests or ends."""
        self._go.release()
        if not self._rest.acquire(timeout=_STUCK_S):
            raise RuntimeError(f"{self.name} neither rests nor ends")

    def rest(self) -> None:
        """From inside the thread: hand over, until told to go on."""
        self._rest.release()
        self._go.acquire()

    def has_ended(self) -> bool:
        return not self.alive

    def join(self) -> None:
        self._thread.join(_STUCK_S)

    @property
    def disowned(self) -> bool:
        """Whether the scheduler says that it, or the job that it is part of, has ended."""
        return self.lost_by_scheduler or (self.parent is not None and self.parent.disowned)

    def is_me(self) -> bool:
        return self._thread.ident == threading.get_ident()


class Kernel:
    """The one clock, the processes, and what happens before each of their effects."""

    def __init__(self, root: pathlib.Path, *, traced: bool = False) -> None:
        self.root = str(root)
        self.now = 0.0
        self.current: Process | None = None
        self.processes: list[Process] = []
        self.effects = self.interrupted = 0
        self.quiet = False
        """Whether what is written is the simulator's own."""
        self.crash_at: int | None = None
        """Number of the effect before which whoever is about to do it is killed."""
        self.crash_cut = 7
        self.trace: list[str] | None = [] if traced else None
        self.wrong: list[str] = []
        self.published: Callable[[Process, str], None] = lambda process, path: None
        self.retired: Callable[[Process, str], None] = lambda process, path: None
        self.call: Callable[[Sequence[str]], Any] = lambda argv: None
        self.said: Callable[[Process, str], None] = lambda process, text: None
        """What a process prints."""
        self.start_child: Callable[[Sequence[str], pathlib.Path], Any] = lambda argv, cwd: None
        self.child_body: Callable[[Sequence[str]], Callable[[], int] | None] = lambda argv: None
        """What a child process runs that is one of ours; None for the model."""
        self.signalled: set[str] = set()
        """Attempts that were asked to end."""
        self._pids = 1000
        self._ids = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._durable: set[tuple[int, int]] = set()

    # Small numbers.

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def next_uuid(self) -> UUID:
        self._ids += 1
        return UUID(int=self._ids * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)

    def lives(self, pid: int) -> bool:
        return any(p.pid == pid and p.alive and not p.killed for p in self.processes)

    def log(self, text: str) -> None:
        if self.trace is not None:
            who = self.current.name if self.current else "-"
            self.trace.append(f"{self.now:9.1f} s  {self.effects:5d}  {who:<12}  {text}")

    # Processes.

    def spawn(
        self, name: str, host: str, body: Callable[[], int], job_id: str | None = None
    ) -> Process:
        process = Process(self, name, host, body, job_id)
        self.processes.append(process)
        self.log(f"{name} begins on {host}")
        return process

    def advance(self, process: Process, effects: int = ALL) -> None:
        """Let a process do so many effects; it then stops before the next one, or has ended."""
        if not process.alive or process.busy:
            return
        process.budget, process.busy = effects, True
        before, self.current = self.current, process
        self._set_environment(process)
        try:
            process.switch_to()
        finally:
            self.current, process.busy = before, False
            self._set_environment(before)
        if process.has_ended():
            self._ended(process)

    def kill(self, process: Process, cut: int | None = None) -> None:
        """kill -9, now. ``cut``: bytes that a write under way still wrote."""
        if not process.alive:
            return
        for child in process.children:
            self.kill(child, cut)
        process.killed, process.cut = True, cut
        self.interrupted += 1
        self.log(f"{process.name} is killed")
        self.advance(process)

    def _ended(self, process: Process) -> None:
        process.join()
        self.processes.remove(process)
        how = "killed" if process.killed else f"code {process.code}"
        if process.error is not None:
            how = f"{type(process.error).__name__}: {process.error}"
        self.log(f"{process.name} has ended: {how}")
        process.on_end(process)

    @staticmethod
    def _set_environment(process: Process | None) -> None:
        job_id = process.job_id if process else None
        for name in _SCHEDULER_VARIABLES:
            if job_id is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = job_id

    def end_all(self) -> None:
        """Kill whatever still lives: the end of a sequence."""
        for process in list(self.processes):
            process.on_end = lambda _: None
            self.kill(process)

    # Time.

    def at(self, time_s: float, what: Callable[[], None]) -> None:
        """Have something done when the clock reaches a time."""
        self._ids += 1
        heapq.heappush(self._timers, (time_s, self._ids, what))

    def pass_time(self, seconds: float) -> None:
        """Move the clock, doing on the way what is due; the living give signs of life."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, what = heapq.heappop(self._timers)
            self._move_clock(max(due, self.now))
            what()
        self._move_clock(max(end, self.now))

    def _move_clock(self, to: float) -> None:
        self.now = to
        for process in self.processes:
            if process.attempt and self.now - process.last_beat >= HEARTBEAT_S:
                process.last_beat = self.now
                seconds = EPOCH + self.now
                with contextlib.suppress(FileNotFoundError):
                    os.utime(f"{process.attempt}/status.json", (seconds, seconds))

    # Effects.

    def mine(self) -> Process | None:
        """The process whose thread this is; None in the thread of the test itself."""
        process = self.current
        return process if process is not None and process.is_me() else None

    def effect(
        self,
        process: Process,
        what: str,
        torn: Callable[[int], None] | None = None,
        on_disk: bool = True,
    ) -> None:
        """Called by a process before each effect. ``torn``: writes only so many bytes of it."""
        if process.killed:
            raise KilledError
        self.effects += 1
        process.next_effect = what
        if self.trace is not None:
            self.log(what)
        if self.effects == self.crash_at:
            self.interrupted += 1
            process.killed, process.cut = True, self.crash_cut
            self.log(f"{process.name} is killed")
            for child in process.children:
                self.kill(child)
        elif process.budget <= 0:
            process.rest()
        if process.killed:
            if torn is not None and process.cut is not None:
                torn(process.cut)
            raise KilledError
        process.budget -= 1
        if process.disk_full_after is not None and on_disk:
            process.disk_full_after -= 1
            if process.disk_full_after < 0:
                process.disk_full_after = None
                self.interrupted += 1
                self.log("no space left on device")
                raise OSError(28, "No space left on device")
        self.deliver(process)

    def deliver(self, process: Process) -> None:
        """Let a process react to the signals it was sent."""
        while process.signals:
            self._deliver(process, process.signals.pop(0))

    def wait_for(self, process: Process, child: Process) -> None:
        """From inside a process: rest until a child has ended."""
        while child.alive:
            process.rest()
            if process.killed:
                raise KilledError
            self.deliver(process)

    def _deliver(self, process: Process, number: int) -> None:
        handler = process.handlers.get(number, signal.SIG_DFL)
        self.log(f"signal {number}")
        if process.attempt:
            self.signalled.add(process.attempt)
        if handler == signal.SIG_DFL:
            process.killed = True
            raise KilledError
        if handler != signal.SIG_IGN:
            handler(number, None)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """What the interpreter is about to do; stops the process if that is an effect."""
        process = self.mine()
        if process is None or self.quiet:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return
        if isinstance(args[0], int):
            return
        path = os.fsdecode(args[0])
        if path.startswith("/") and not path.startswith(self.root):
            return
        where = path[len(self.root) + 1 :] if path.startswith("/") else path
        target = ""
        if event in ("os.rename", "os.link"):
            target = os.fsdecode(args[1])
            self._must_be_durable(path, target)
            target = " -> " + target.rpartition("/")[2]
        elif event == "open":
            self._must_be_a_draft(where)
        self.effect(process, f"{_EVENTS[event]} {where}{target}")

    def _must_be_durable(self, source: str, target: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = pathlib.Path(source).stat()
            if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in self._durable:
                self.wrong.append(f"{target} is published before it is on disk")

    def _must_be_a_draft(self, where: str) -> None:
        parts = where.split("/")
        if any(p.startswith(("attempt-", ".attempt-")) for p in parts):
            published = parts[-1] == "status.json"
        else:
            published = not parts[-1].startswith(".") and parts[-1] != "journal.jsonl"
        if published:
            self.wrong.append(f"{where} is written in place")

    # Stand-ins for functions of `os`, in force for processes of ours only.

    def fsync(self, handle: int) -> None:
        process = self.mine()
        if process is None:
            return
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return
        self.effect(process, "fsync")
        self._durable.add((found.st_dev, found.st_ino))
        seconds = EPOCH + self.now
        os.utime(handle, (seconds, seconds))

    def write(self, handle: int, data: bytes) -> int:
        process = self.mine()
        if process is not None:

            def torn(cut: int) -> None:
                _REAL.write(handle, data[: cut % (len(data) + 1)])

            self.effect(process, f"append {data.decode(errors='replace').strip()[:200]}", torn)
        written: int = _REAL.write(handle, data)
        return written

    def link(self, source: Any, target: Any, **options: Any) -> None:
        _REAL.link(source, target, **options)
        self._noticed(str(source), str(target))

    def rename(self, source: Any, target: Any, **options: Any) -> None:
        _REAL.rename(source, target, **options)
        self._noticed(str(source), str(target))

    def replace(self, source: Any, target: Any, **options: Any) -> None:
        _REAL.replace(source, target, **options)
        self._noticed(str(source), str(target))

    def _noticed(self, source: str, target: str) -> None:
        process = self.mine()
        if process is None:
            return
        name = target.rpartition("/")[2]
        if name == "done.json":
            self.published(process, target)
        elif source.endswith("/done.json"):
            self.retired(process, source)
        elif name.startswith("attempt-"):
            process.attempt, process.last_beat = target, self.now

    def sleep(self, seconds: float) -> None:
        process = self.mine()
        if process is not None and process.killed:
            raise KilledError
        self.pass_time(seconds)
        if process is not None and process.killed:
            raise KilledError

    def run_child(self, argv: Sequence[str], **options: Any) -> Any:
        """``subprocess.run`` of a scheduler command; its effect may come late or never be told."""
        process = self.mine()
        short = " ".join(argv) if "\n" not in "".join(argv) else argv[0]
        if process is not None:
            self.effect(process, f"calls {short[:200]}", on_disk=False)
        try:
            answer = self.call(argv)
        finally:
            if process is not None:
                self.effect(process, f"has the reply of {argv[0]}", on_disk=False)
        return answer


class _Child:
    """``subprocess.Popen``: the model, which runs when it is waited for, or a task of a pack, which
    is a process of its own."""

    def __init__(self, argv: Sequence[str], **options: Any) -> None:
        assert _kernel is not None
        parent = _kernel.mine()
        assert parent is not None
        self.argv, self.parent, self.returncode = argv, parent, None
        self.cwd = pathlib.Path(options.get("cwd") or "/")
        self.begun = False
        self.task: Process | None = None
        body = _kernel.child_body(argv)
        if body is not None:
            name = f"{parent.name}/{argv[-1]}"
            self.task = _kernel.spawn(name, parent.host, body, parent.job_id)
            self.task.parent = parent
            parent.children.append(self.task)
            self.pid = self.task.pid

    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        assert _kernel is not None
        if self.task is not None:
            _kernel.wait_for(self.parent, self.task)
            code = 1 if self.task.error is not None else self.task.code or 0
            self.returncode = -9 if self.task.killed else code
        elif not self.begun:
            self.begun = True
            self.returncode = _kernel.start_child(self.argv, self.cwd)
        return -9 if self.returncode is None else self.returncode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.task is not None and self.task.alive:
            self.task.signals.append(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        return None


class _NoThread:
    """The heartbeat, which `Kernel.pass_time` gives instead."""

    def __init__(self, *_: Any, **__: Any) -> None:
        return None

    def start(self) -> None:
        return None

    def join(self, timeout: float | None = None) -> None:
        return None


class _Datetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _Datetime:
        assert _kernel is not None
        then = cls.fromtimestamp(EPOCH, tz)
        return then + timedelta(seconds=_kernel.now)


class _Shim(SimpleNamespace):
    """A module with some of its names replaced."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        super().__init__(**names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


_REAL = SimpleNamespace(
    write=os.write, link=os.link, rename=os.rename, replace=os.replace, getpid=os.getpid,
    exists=pathlib.Path.exists,
)  # fmt: skip
_kernel: Kernel | None = None
_hooked = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _kernel is not None and event in _EVENTS:
        _kernel.audit(event, args)


def _signal(number: int, handler: Any) -> Any:
    process = _kernel.mine() if _kernel is not None else None
    if process is None:
        return signal.SIG_DFL
    before = process.handlers.get(number, signal.SIG_DFL)
    process.handlers[number] = handler
    return before


def _getpid() -> int:
    process = _kernel.mine() if _kernel is not None else None
    return int(_REAL.getpid()) if process is None else process.pid


def _gethostname() -> str:
    process = _kernel.mine() if _kernel is not None else None
    return "login" if process is None else process.host


def _print(*words: Any, **_: Any) -> None:
    process = _kernel.mine() if _kernel is not None else None
    if process is not None and _kernel is not None:
        _kernel.said(process, " ".join(str(word) for word in words) + "\n")


def _exists(path: pathlib.Path) -> bool:
    text = str(path)
    if _kernel is not None and text.startswith("/proc/") and text[6:].isdigit():
        return _kernel.lives(int(text[6:]))
    return bool(_REAL.exists(path))


def _stand_ins() -> dict[Any, Any]:
    """What takes the place of what in the modules under test."""
    import socket

    def kernel() -> Kernel:
        assert _kernel is not None
        return _kernel

    return {
        time: _Shim(
            time,
            monotonic=lambda: kernel().now,
            time=lambda: EPOCH + kernel().now,
            sleep=lambda seconds: kernel().sleep(seconds),
        ),
        socket: _Shim(socket, gethostname=_gethostname),
        signal: _Shim(signal, signal=_signal),
        subprocess: _Shim(
            subprocess, run=lambda argv, **o: kernel().run_child(argv, **o), Popen=_Child
        ),
        threading: _Shim(threading, Thread=_NoThread),
        datetime: _Datetime,
        uuid4: lambda: kernel().next_uuid(),
    }


@contextlib.contextmanager
def simulated(packages: Sequence[str]) -> Iterator[None]:
    """Put the stand-ins into all loaded modules of some packages; `use` says whose kernel rules."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    undo: list[tuple[Any, str, Any]] = []

    def put(where: Any, name: str, value: Any) -> None:
        undo.append((where, name, getattr(where, name, None)))
        setattr(where, name, value)

    stand_ins = _stand_ins()
    for name, module in list(sys.modules.items()):
        if not any(name == p or name.startswith(f"{p}.") for p in packages):
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, ModuleType) or value is datetime or value is uuid4:
                replacement = stand_ins.get(value)
                if replacement is not None:
                    put(module, attribute, replacement)
        put(module, "print", _print)
    put(os, "fsync", lambda handle: _kernel.fsync(handle) if _kernel else None)
    for verb in ("write", "link", "rename", "replace"):
        put(os, verb, _dispatch(verb))
    put(os, "getpid", _getpid)
    put(pathlib.Path, "exists", _exists)
    try:
        yield
    finally:
        for where, name, value in reversed(undo):
            if name == "print":
                delattr(where, name)
            else:
                setattr(where, name, value)


def _dispatch(verb: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        target = _REAL if _kernel is None or _kernel.mine() is None else _kernel
        return getattr(target, verb)(*args, **options)

    return call


@contextlib.contextmanager
def use(kernel: Kernel) -> Iterator[None]:
    """Run one sequence under a kernel; whatever still lives at its end is killed."""
    global _kernel
    _kernel = kernel
    try:
        yield
    finally:
        try:
            kernel.end_all()
        finally:
            _kernel = None
