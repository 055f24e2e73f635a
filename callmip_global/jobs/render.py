"""From a `JobSpec` to the text of its job script."""

from __future__ import annotations

import re
import shlex

from jinja2 import Environment, StrictUndefined

from callmip_global.data import data_path
from callmip_global.jobs.scheduler import JobSpec, Scheduler, one_line

# What no scheduler splits, quotes or expands. PBS reads a directive as a shell does, so that a
# space in an account's name would begin an option.
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+/=-]*")


def render_script(
    job: JobSpec, scheduler: Scheduler, template_name: str = "job.sh.j2", **more: object
) -> str:
    """The whole script, byte-equal for equal input. ``more``: what another template needs.

    Raises ValueError where a value cannot stand in a directive line, a path holds a line break, or
    a text is no valid Unicode.
    """
    for what, value in (("name", job.name), ("queue", job.queue), ("account", job.account)):
        if value is not None:
            _word(value, what)
    one_line(job.step, "step")
    one_line(str(job.run_dir), "run directory")
    facts = scheduler.facts
    if facts.name == "slurm" and "\\" in str(job.run_dir):
        raise ValueError(
            f"{str(job.run_dir)!r}: Slurm takes the backslash out of the path of --output, so that"
            " jobs fail without a log; choose another run directory"
        )
    text = data_path("jobs", template_name).read_text(encoding="utf-8")
    template = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    ).from_string(text)
    script = template.render(
        directives=scheduler.directives(job),
        prefix=facts.directive,
        scheduler=facts.name,
        index_variable=facts.index_variable,
        step=job.step,
        run_dir=job.run_dir,
        limit_threads=job.limit_threads,
        cpus=job.cpus,
        shell_setup=job.shell_setup.strip(),
        python=shlex.quote(job.python),
        run_dir_quoted=shlex.quote(str(job.run_dir)),
        step_quoted=shlex.quote(job.step),
        **more,
    )
    # A name that is not UTF-8 on disk, or NUL from a file of ours: bash would read something else.
    if "\0" in script or any("\ud800" <= c <= "\udfff" for c in script):
        raise ValueError("a path or setting of the job script is not valid UTF-8 or holds NUL")
    return script


def _word(text: str, what: str) -> None:
    one_line(text, what)
    if _WORD.fullmatch(text) is None:
        raise ValueError(
            f"{what} {text!r}: wanted letters, digits and _ . , : @ + / = -, no spaces or quotes"
        )
