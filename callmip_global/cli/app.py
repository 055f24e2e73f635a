"""The ``callmip-global`` command: one typer app over the functions of the sibling modules."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Annotated

import typer

from callmip_global import __version__
from callmip_global.cli import (
    benchmark,
    demo,
    experiment,
    export,
    harmonize,
    housekeeping,
    plan,
    products,
    regrid,
    workflow,
)
from callmip_global.errors import (
    EXIT_INTERRUPTED,
    EXIT_PROBLEMS,
    EXIT_USAGE,
    CallmipError,
    Problem,
)

app = typer.Typer(
    name="callmip-global",
    help="Post-calibration global runs for CalLMIP: plan, submit, harmonize, regrid, benchmark.",
    epilog="Exit codes: 0 all well; 1 the work ran and found problems; 2 wrong use or invalid"
    " configuration; 3 scheduler unreachable or in an unknown state; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(demo.demo)
app.command()(experiment.init)
app.command()(experiment.validate)
app.command()(plan.plan)
app.command()(workflow.submit)
app.command()(workflow.status)
app.command()(workflow.logs)
app.command()(workflow.resume)
app.command()(workflow.cancel)
app.command()(housekeeping.prune)
app.command()(housekeeping.reproduce)
app.command()(regrid.regrid)
app.command()(harmonize.harmonize)
app.command()(harmonize.check)
app.command()(benchmark.benchmark)
app.command()(products.products)
app.command()(export.export)

_debug = False


def _version(wanted: bool) -> None:
    if wanted:
        print(f"callmip-global {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Options before the command."""
    global _debug
    _debug = debug


def main() -> None:
    """Run the command line: one line per problem on stderr, and the documented exit codes."""
    # The plan and the states of a large run are a million small objects, all of which stay: looking
    # for garbage among them again and again would be a fifth of the time.
    gc.set_threshold(200_000)
    try:
        with _interruptions_kept():
            app()
    except CallmipError as error:
        if _debug:
            raise
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        # typer makes this of Ctrl-C, and says nothing.
        if leaving.code == EXIT_INTERRUPTED:
            print("interrupted", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader of our output is gone (`callmip-global status | head`).
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        # A path that cannot be written or read, a full disk: the path says more than a traceback.
        if _debug or error.errno is None:
            raise
        print(_system_problem(error), file=sys.stderr)
        sys.exit(EXIT_USAGE if error.errno in _WRONG_PATH else EXIT_PROBLEMS)
    except RuntimeError as error:
        # So the NetCDF library reports a full disk or a damaged file; it names neither.
        if _debug or not str(error).startswith("NetCDF: "):
            raise
        remedy = "Is the disk or the quota full, or a file damaged? --debug shows where."
        print(Problem("NetCDF library", found=repr(str(error)), remedy=remedy), file=sys.stderr)
        sys.exit(EXIT_PROBLEMS)


@contextlib.contextmanager
def _interruptions_kept() -> Iterator[None]:
    """Ctrl-C that comes where Python cannot raise, as in a callback of an import, is sent again.

    Python would print a traceback, drop it and go on.
    """
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            # A little later: here it would be dropped once more.
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


_WRONG_PATH = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


def _system_problem(error: OSError) -> Problem:
    where = "output" if error.filename is None else str(error.filename)
    found = f"an error of the operating system: {error.strerror}"
    return Problem(where, found=found, remedy="callmip-global --debug ... shows where.")


if __name__ == "__main__":
    main()
