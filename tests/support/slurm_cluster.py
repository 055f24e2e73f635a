"""A private Slurm on this host: munge, one controller, three nodes, all below one folder.

For the test suite (`start_cluster`, used by the `slurm` fixtures) and for people
(``scripts/slurm-here start DIR``). It needs no /etc/slurm, no configured munge and no root: every
daemon runs as the user who starts it, on free ports, with a key of its own. Standard library only.

The daemons belong to one supervisor process. It is a "child subreaper", so whatever a job leaves
behind becomes its child and ends with it, and it ends when told to or, for the test suite, when
its standard input closes, which happens however pytest dies.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import pwd
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

NODES = 3
CPUS_PER_NODE = 4
MEMORY_PER_NODE_MB = 64_000  # claimed, not owned: SlurmdParameters=config_overrides
MAX_ARRAY_SIZE = 101  # largest index 100, so that tests reach it
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 120.0
ACTIVE_STATES = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD"}
)

_BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel", "scontrol")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./+-]{1,70}")  # slurm.conf has no quoting; sockets are short
_MARK = ".slurm-here"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_CONF = """\
# Written by slurm_cluster.py; lives as long as the cluster in this folder.
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters={select}
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
FirstJobId={first_job_id}
MaxArraySize={max_array_size}
MinJobAge=300
# What a job without the caller's environment gets comes from StateSaveLocation/env_cache. A login
# shell of the user, for each job, takes a second, and Slurm gives it two.
GetEnvTimeout=0
KillWait=2
# A busy machine is slow, not broken.
MessageTimeout={message_timeout_s}
BatchStartTimeout=120
UnkillableStepTimeout=600
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] \
CPUs={cpus} RealMemory={memory_mb} State=UNKNOWN
{more}PartitionName=normal Nodes=ALL Default=YES MaxTime=2-00:00:00 State=UP
PartitionName=express Nodes=ALL MaxTime=01:00:00 State=UP
"""

# Without cgroups, which need root: slurmd adds up the memory of a job's processes every second.
_ENFORCE_MEMORY = """\
DefMemPerNode=100
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
"""


class SlurmUnavailableError(RuntimeError):
    """Slurm cannot run here; the message says why, in one line."""


@dataclass(frozen=True)
class SlurmJob:
    """One line of ``squeue``: a job, or one task of an array."""

    job_id: str  # "12", or "12_3" for task 3 of array 12
    state: str  # "PENDING", "RUNNING", "COMPLETED", ...
    reason: str
    name: str
    comment: str

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE_STATES


@dataclass
class SlurmCluster:
    """A running private Slurm, as its user sees it."""

    root: Path
    _supervisor: subprocess.Popen[str] = field(repr=False)

    @property
    def conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """This process's environment, pointed at the cluster: for ``subprocess.run(env=...)``."""
        return environment(self.root)

    @contextlib.contextmanager
    def as_ours(self) -> Iterator[None]:
        """While inside, this process's own environment is pointed at the cluster."""
        before = dict(os.environ)
        ours = self.env
        try:
            os.environ.clear()
            os.environ.update(ours)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def run(self, *argv: str, timeout_s: float = 300.0) -> str:
        """Standard output of a command run against the cluster; RuntimeError if it fails."""
        return _output(argv, self.env, timeout_s)

    def jobs(self) -> list[SlurmJob]:
        """Every job the controller remembers, ended ones and single array tasks included."""
        text = self.run("squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%r|%j|%k")
        fields = (line.split("|", 4) for line in text.replace("(null)", "").splitlines() if line)
        return [SlurmJob(*(part.strip() for part in parts)) for parts in fields]

    def wait_idle(self, timeout_s: float = 300.0) -> list[SlurmJob]:
        """Wait until no job is pending or running, and return all jobs; TimeoutError names them."""
        deadline = time.monotonic() + timeout_s
        while True:
            jobs = self.jobs()
            active = [job for job in jobs if job.is_active]
            if not active:
                return jobs
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_s} s still active: {active}")
            time.sleep(0.1)

    def cancel_all(self) -> None:
        """Cancel every job and wait until they are gone."""
        active = {job.job_id.split("_")[0] for job in self.jobs() if job.is_active}
        if active:
            # A job may end between the look and the cancel: scancel then fails, which is fine.
            subprocess.run(["scancel", *active], env=self.env, capture_output=True, check=False)
        self.wait_idle()

    def forget_jobs(self) -> None:
        """Make the controller forget every job, as it does MinJobAge after a job's end.

        Job ids go on from a higher number, so an old id never names a new job. Only for an idle
        cluster: a running job would be killed.
        """
        self._tell("forget")

    @contextlib.contextmanager
    def node_lost(self, node: str, *, with_jobs: bool) -> Iterator[None]:
        """While inside, a node is gone, and the controller knows: ``with_jobs`` it crashed; else
        it cannot be reached, and what runs on it runs on."""
        self._tell(f"{'crash' if with_jobs else 'cut'} {node}")
        # By itself the controller would know after SlurmdTimeout, five minutes.
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        try:
            yield
        finally:
            self._tell(f"revive {node}")

    def node_of(self, job_id: str) -> str:
        """The node that a running job, or element, is on."""
        return self.run("squeue", "-h", "-j", job_id, "-o", "%N").strip()

    def dependency(self, job_id: str) -> str:
        """What a pending job, or element, waits for, as ``scontrol show job`` has it."""
        text = self.run("scontrol", "show", "job", job_id)
        return text.partition(" Dependency=")[2].partition("\n")[0].strip()

    def view(self) -> str:
        """What the scheduler knows and said last, for a test that failed: why does nothing run?"""
        columns = "%.10i %.11T %.22r %.6N %.19S %.30E %j %k"
        commands = (
            ("squeue", "-a", "-r", "-t", "all", "-S", "i", "-o", columns),
            ("sinfo", "-N", "-p", "normal", "-o", "%N %T %E"),
        )
        parts = []
        for command in commands:
            try:
                header, *lines = self.run(*command).splitlines()
                parts.append("\n".join([header, *lines[-50:]]))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                parts.append(str(error))
        for log in sorted((self.root / "log").glob("*.log")):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            parts.append("\n".join([f"last of {log.name}:", *lines[-40:]]))
        return "\n".join(parts)

    @contextlib.contextmanager
    def controller_down(self) -> Iterator[None]:
        """While inside, sbatch, squeue and scancel cannot contact the controller."""
        self._tell("down")
        try:
            yield
        finally:
            self._tell("up")

    def stop(self) -> None:
        """End every job, step and daemon, and remove the folder."""
        for stream in (self._supervisor.stdin, self._supervisor.stdout):
            if stream is not None:
                stream.close()
        try:
            self._supervisor.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def _tell(self, command: str) -> None:
        stdin, stdout = self._supervisor.stdin, self._supervisor.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{command}\n")
        stdin.flush()
        answer = stdout.readline().strip()
        if answer != "ready":
            raise RuntimeError(f"{command}: {answer or 'the supervisor has ended'}")


def start_cluster(*, enforce_memory: bool = False) -> SlurmCluster:
    """Start a Slurm that lives as long as this process, in a short temporary folder.

    ``enforce_memory``: it ends jobs that use more memory than they asked for.
    Raises SlurmUnavailableError with the reason, the daemons' last log lines included.
    """
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    supervisor = subprocess.Popen(
        [sys.executable, __file__, "serve", *["--enforce-memory"] * enforce_memory, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for pytest, which then closes stdin
    )
    cluster = SlurmCluster(root=root, _supervisor=supervisor)
    try:
        assert supervisor.stdout is not None
        answer = supervisor.stdout.readline().strip()
        if answer != "ready":
            raise SlurmUnavailableError(answer or "its supervisor ended without a word")
    except BaseException:
        cluster.stop()
        raise
    return cluster


def environment(root: Path) -> dict[str, str]:
    """The caller's environment, its own Slurm settings replaced by the cluster in ``root``."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_"))
    }
    return {**own, "PATH": _search_path(), "SLURM_CONF": str(root / "slurm.conf")}


class _Supervisor:
    """Owns the daemons: starts them, restarts the controller on request, ends them all."""

    def __init__(self, root: Path, *, enforce_memory: bool = False) -> None:
        self.root = root
        self.enforce_memory = enforce_memory
        self.env = environment(root)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.generation = 0
        self.ports: list[int] = []

    def start(self) -> None:
        missing = [name for name in _BINARIES if shutil.which(name, path=self.env["PATH"]) is None]
        if missing:
            raise SlurmUnavailableError(
                f"not installed: {', '.join(missing)} (Debian: apt-get install"
                " slurmctld slurmd slurm-client munge)"
            )
        if not _PLAIN_PATH.fullmatch(str(self.root)):
            raise SlurmUnavailableError(
                f"{self.root}: Slurm needs a folder of at most 70 plain characters, no spaces"
            )
        for name in ("munge", "state", "spool", "log", "state/env_cache"):
            (self.root / name).mkdir()
        user = pwd.getpwuid(os.geteuid())
        login = {"HOME": user.pw_dir, "LOGNAME": user.pw_name, "USER": user.pw_name}
        login |= {"SHELL": user.pw_shell, "PATH": self.env["PATH"]}
        text = "".join(f"{name}={value}\n" for name, value in login.items())
        (self.root / "state" / "env_cache" / user.pw_name).write_text(text, encoding="utf-8")
        key = self.root / "munge" / "key"
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(128))
        self.ports = _free_ports(1 + NODES)
        self._write_conf()
        munge = self.root / "munge"
        self._spawn(
            "munged",
            "--foreground",
            "--force",  # it would refuse a folder below a group-writable one
            f"--socket={munge}/socket",
            f"--key-file={key}",
            f"--log-file={self.root}/log/munged.log",
            f"--pid-file={munge}/pid",
            f"--seed-file={munge}/seed",
        )
        self._wait_for("munge socket", lambda: (munge / "socket").is_socket())
        self._spawn("slurmctld", "-D", "-c")
        for number in range(1, NODES + 1):
            self._start_node(f"node{number}")
        self._wait_for_nodes()

    def obey(self, command: str) -> None:
        command, _, node = command.partition(" ")
        if command in ("crash", "cut"):
            daemon = self.daemons.pop(node)
            daemon.kill()
            daemon.wait()
            if command == "crash":
                _kill_jobs_of(node)
        elif command == "revive":
            self._start_node(node)
            self._wait_for_nodes()
        elif command == "down":
            self._end("slurmctld")
            # Every command tries for so long before it gives up.
            self._write_conf(message_timeout_s=1)
        elif command == "up":
            self._write_conf()
            self._spawn("slurmctld", "-D")
            self._wait_for_nodes()
        elif command == "forget":
            self._end("slurmctld")
            self.generation += 1
            self._write_conf()
            self._spawn("slurmctld", "-D", "-c")
            self._wait_for_nodes()
        else:
            raise SlurmUnavailableError(f"unknown command {command!r}")

    def stop(self) -> None:
        for name in ("slurmctld", *(f"node{n}" for n in range(1, NODES + 1))):
            self._end(name)
        deadline = time.monotonic() + 3.0
        while pids := _descendants(os.getpid()) - {p.pid for p in self.daemons.values()}:
            number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.1)
            _reap()
        self._end("munged")
        shutil.rmtree(self.root, ignore_errors=True)

    def _start_node(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node, log_name=node)

    def _write_conf(self, message_timeout_s: int = 60) -> None:
        text = _CONF.format(
            host=socket.gethostname().split(".")[0],
            user=pwd.getpwuid(os.geteuid()).pw_name,
            root=self.root,
            controller_port=self.ports[0],
            node_ports=",".join(map(str, self.ports[1:])),
            nodes=NODES,
            cpus=CPUS_PER_NODE,
            memory_mb=MEMORY_PER_NODE_MB,
            max_array_size=MAX_ARRAY_SIZE,
            first_job_id=1 + 10_000 * self.generation,
            message_timeout_s=message_timeout_s,
            select="CR_CPU_Memory" if self.enforce_memory else "CR_CPU",
            more=_ENFORCE_MEMORY if self.enforce_memory else "",
        )
        (self.root / "slurm.conf").write_text(text, encoding="ascii")

    def _spawn(self, program: str, *arguments: str, log_name: str = "") -> None:
        name = log_name or program
        path = shutil.which(program, path=self.env["PATH"])
        assert path is not None
        with (self.root / "log" / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [path, *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=_die_with_parent,
            )

    def _end(self, name: str) -> None:
        daemon = self.daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(10.0)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait_for_nodes(self) -> None:
        def usable() -> bool:
            answer = subprocess.run(
                ["sinfo", "-h", "-N", "-p", "normal", "-o", "%T"],
                env=self.env,
                capture_output=True,
                text=True,
                check=False,
            )
            states = answer.stdout.split()
            return len(states) == NODES and set(states) <= {"idle", "mixed", "allocated"}

        self._wait_for(f"{NODES} usable nodes", usable)

    def _wait_for(self, what: str, is_true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_true():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                problem = f"{', '.join(dead)} ended" if dead else f"no {what}"
                raise SlurmUnavailableError(f"{problem}; last log lines: {self._log_tail()}")
            time.sleep(0.1)

    def _log_tail(self) -> str:
        """What the daemons complained about last, in one line."""
        tails = []
        for path in sorted((self.root / "log").glob("*.out")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            bad = [line for line in lines if re.search("error|fatal", line, re.IGNORECASE)]
            # Every daemon complains about MPI kinds that are not installed.
            tails += [f"{path.stem}: {line}" for line in bad if "mpi" not in line.lower()][-2:]
        return " / ".join(tails) or "none"


def serve(root: Path, *, until_stdin_closes: bool, enforce_memory: bool = False) -> int:
    """Run the cluster in an empty folder until told to end; says "ready" or the reason, once."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    supervisor = _Supervisor(root, enforce_memory=enforce_memory)
    lock = _take_lock(root)
    try:
        supervisor.start()
        _say("ready")
        buffer = b""
        while True:
            _reap()
            ready = select.select([0] if until_stdin_closes else [], [], [], 0.5)[0]
            if not ready:
                continue
            received = os.read(0, 1024)
            if not received:
                return 0
            *commands, buffer = (buffer + received).split(b"\n")
            for command in commands:
                supervisor.obey(command.decode())
                _say("ready")
    except SlurmUnavailableError as reason:
        _say(str(reason))
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        supervisor.stop()
        lock.close()


def start(root: Path) -> int:
    """Start a cluster that lives on by itself; print the line that points a shell at it."""
    if _is_running(root):
        print(f"# already running in {root}")
    else:
        if (root / _MARK).exists():
            shutil.rmtree(root)  # what a killed supervisor left
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            print(f"{root}: is not empty; name a new folder", file=sys.stderr)
            return 2
        process = subprocess.Popen(
            [sys.executable, __file__, "serve", "--detached", str(root)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # a caller who captures ours must not wait for its end
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        if answer != "ready":
            answer += process.stdout.read()
        process.stdout.close()
        if answer != "ready":
            print(f"Slurm does not start: {answer}", file=sys.stderr)
            return 1
    print(f"export SLURM_CONF={shlex.quote(str(root / 'slurm.conf'))}")
    return 0


def stop(root: Path) -> int:
    """End the cluster of `start` and remove its folder; nothing to end is fine."""
    if _is_running(root):
        pid = int((root / _MARK).read_text(encoding="ascii"))
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _is_running(root):
            if time.monotonic() > deadline:
                print(f"process {pid} does not end", file=sys.stderr)
                return 1
            time.sleep(0.1)
    elif not (root / _MARK).exists():
        print(f"{root}: no Slurm of slurm-here is there", file=sys.stderr)
        return 0
    shutil.rmtree(root, ignore_errors=True)
    print("unset SLURM_CONF")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="slurm-here",
        description="A private Slurm on this machine, for trying things out:"
        ' eval "$(scripts/slurm-here start DIR)"',
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("start", "start it and print the line that points a shell at it"),
        ("stop", "end its jobs and daemons, remove DIR"),
        ("serve", "run it in the foreground until standard input closes"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("root", metavar="DIR", type=Path, help="a new or empty folder")
        if name == "serve":
            command.add_argument("--detached", action="store_true", help="run until SIGTERM")
            command.add_argument(
                "--enforce-memory",
                action="store_true",
                help="end jobs over their memory",
            )
    options = parser.parse_args(arguments)
    root: Path = options.root.absolute()
    if options.command == "start":
        return start(root)
    if options.command == "stop":
        return stop(root)
    return serve(
        root,
        until_stdin_closes=not options.detached,
        enforce_memory=options.enforce_memory,
    )


def _say(text: str) -> None:
    """One line to whoever started the supervisor, who may have gone by now."""
    with contextlib.suppress(BrokenPipeError):
        print(" ".join(text.split()), flush=True)


def _take_lock(root: Path) -> IO[str]:
    """Hold the folder's lock, which the kernel frees however this process ends; pid inside."""
    file = (root / _MARK).open("w", encoding="ascii")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _is_running(root: Path) -> bool:
    try:
        with (root / _MARK).open(encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _search_path() -> str:
    """PATH with the places of daemons, which Debian leaves out for users other than root."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _output(argv: Sequence[str], env: dict[str, str], timeout_s: float) -> str:
    answer = subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if answer.returncode != 0:
        raise RuntimeError(f"{shlex.join(argv)}: exit {answer.returncode}: {answer.stderr.strip()}")
    return answer.stdout


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below the range the kernel gives to outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def _die_with_parent() -> None:
    """In a daemon, before it starts: get SIGTERM should the supervisor be killed outright."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _reap() -> None:
    """Collect ended orphans of jobs, which became this process's children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "pid (any name) state ppid ...": the name may hold spaces and parentheses.
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def _kill_jobs_of(node: str) -> None:
    """Kill all jobs of a node without a word, as a power cut does: their managers first."""
    own = f"SLURMD_NODENAME={node}".encode()
    jobs, managers = set(), set()
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if own in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                jobs.add(pid)
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                    managers.add(parent)
    for pid in (*managers, *jobs):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


_LIBC = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    sys.exit(main())
