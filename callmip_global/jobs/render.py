"""From a `JobSpec` to the text of its job script."""

from __future__ import annotations

import shlex

from jinja2 import Environment, StrictUndefined

from callmip_global.data import data_path
from callmip_global.jobs.scheduler import JobSpec, Scheduler, one_line


def render_script(job: JobSpec, scheduler: Scheduler) -> str:
    """The whole script, byte-equal for equal input.

    Raises ValueError where a value cannot stand in a directive line or a path holds a line break.
    """
    one_line(str(job.run_dir), "run directory")
    text = data_path("jobs", "job.sh.j2").read_text(encoding="utf-8")
    template = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    ).from_string(text)
    facts = scheduler.facts
    return template.render(
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
    )
