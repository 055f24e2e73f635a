"""Make the checkout's .venv, or see at once that it is good: ``_setup.py ROOT [EXTRA]``.

Standard library only, run by any Python 3.11 or newer. Safe to run twice, at the same time, and
to kill at any moment: a lock keeps others out, and the stamp that says "complete" is removed
before anything is changed and written when everything is done. Exit codes: 0 ready, 1 it could not
be made, 2 something is in the way.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

LOG_LINES = 15


def main(root: Path, extra: str) -> int:
    venv = root / ".venv"
    stamp = venv / "callmip-global.json"
    project = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()
    if not os.access(root, os.W_OK):
        _say(f"{root} cannot be written to, and .venv is made in it: use a copy of your own")
        return 2
    with _locked(root / ".venv.lock") as lock:
        found = _read(stamp)
        # A checkout that was moved or a Python that was upgraded: the old environment is useless.
        is_sound = found.get("root") == str(root) and found.get("python") == _version_of(venv)
        extras = set(found.get("extras", [])) if is_sound else set()
        if is_sound and found.get("project") == project and {extra} <= extras | {""}:
            return 0
        if venv.exists() and not found and not lock.read():
            _say(f"{venv} was not made by these scripts; move it away first")
            return 2
        started = time.monotonic()
        lock.write("making\n")
        lock.flush()
        stamp.unlink(missing_ok=True)
        if not is_sound:
            _say(f"making {venv} with Python {platform.python_version()}")
            if not _make(venv, lock):
                return 1
        extras |= {extra} - {""}
        names = f"[{','.join(sorted(extras))}]" if extras else ""
        _say("installing callmip-global and what it needs (the first time takes minutes)")
        if not _install(venv, root, names, lock):
            return 1
        complete = {
            "root": str(root),
            "python": _version_of(venv),
            "project": project,
            "extras": sorted(extras),
        }
        partial = stamp.with_suffix(".partial")
        partial.write_text(json.dumps(complete), encoding="utf-8")
        partial.replace(stamp)
        lock.truncate(0)
        _say(f"environment ready after {time.monotonic() - started:.0f} s")
    return 0


def _make(venv: Path, lock: IO[str]) -> bool:
    """An empty venv, whatever was there before; without ensurepip, one that our pip can fill."""
    options = ["--clear"]
    if importlib.util.find_spec("ensurepip") is None:
        if importlib.util.find_spec("pip") is None:
            _say("this Python has neither ensurepip nor pip: apt-get install python3-venv")
            return False
        options.append("--without-pip")
    argv = [sys.executable, "-m", "venv", *options, str(venv)]
    return _run(argv, "python -m venv failed", lock)


def _install(venv: Path, root: Path, extras: str, lock: IO[str]) -> bool:
    python = str(venv / "bin" / "python")
    has_pip = any(venv.glob("lib/python*/site-packages/pip"))
    pip = [python, "-m", "pip"] if has_pip else [sys.executable, "-m", "pip", "--python", python]
    return _run(
        [*pip, "install", "--quiet", "--no-input", "--editable", f".{extras}"],
        "pip could not install (above); without a connection to a package index it cannot",
        lock,
        # Relative, because pip would read brackets or quotes in the checkout's path as its own.
        cwd=root,
    )


def _run(argv: list[str], failure: str, lock: IO[str], cwd: Path | None = None) -> bool:
    quiet = {
        "PIP_USER": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    answer = subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **quiet},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        # Should this process be killed, pip goes on: it must keep the next set-up waiting.
        pass_fds=[lock.fileno()],
    )
    if answer.returncode == 0:
        return True
    for line in answer.stdout.splitlines()[-LOG_LINES:]:
        print(f"  {line}", file=sys.stderr)
    _say(failure)
    return False


def _locked(path: Path) -> IO[str]:
    """The open, locked file; the kernel frees the lock however this process ends.

    It holds text while, and only while, an environment is being made.
    """
    file = path.open("a+", encoding="ascii")
    file.seek(0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say("waiting for another set-up of this checkout to end")
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _version_of(venv: Path) -> str:
    """Full version of the environment's interpreter; empty when there is none that runs."""
    try:
        argv = [str(venv / "bin" / "python"), "-c", "import sys; print(sys.version)"]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _read(stamp: Path) -> dict[str, Any]:
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
