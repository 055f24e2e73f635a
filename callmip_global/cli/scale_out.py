"""``--dask`` and what belongs to it: where the units of regrid, harmonize and benchmark run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from callmip_global.errors import Problem, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from callmip_global.parallel import TaskMap


class Dask(StrEnum):
    """Where dask workers run."""

    local = "local"
    slurm = "slurm"
    pbs = "pbs"


DaskOption = Annotated[
    Dask | None,
    typer.Option(
        "--dask",
        help="Spread the work over dask workers: processes on this machine (local), or jobs.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="With --dask: how many workers at most (default 2)."),
]
SiteOption = Annotated[
    str | None,
    typer.Option(
        "--site",
        metavar="NAME|PATH",
        help="With --dask slurm or pbs: the site file, as in an experiment.",
    ),
]
WorkerSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="With --dask slurm or pbs: what a worker asks for, e.g. memory=16GB or account=ab12.",
    ),
]


def spread(
    dask: Dask | None,
    workers: int | None,
    site: str | None,
    overrides: Sequence[str] | None,
    *,
    kind: Literal["regrid", "harmonize", "benchmark"],
    out: Path,
    console: Console,
) -> AbstractContextManager[TaskMap | None]:
    """The task map that the options ask for, None without ``--dask``.

    Scripts and logs of workers go to ``OUT.dask`` beside the output; ``console`` is told what
    becomes of them. UsageError for options that do not go together, before anything is made.
    """
    given = {"--workers": workers, "--site": site, "--set": overrides}
    useless = [n for n, v in given.items() if v and (dask is None or n != "--workers")]
    if useless and dask in (None, Dask.local):
        wanted = "--dask slurm or --dask pbs" if dask else "--dask too"
        raise UsageError(Problem(", ".join(useless), wanted=wanted))
    if dask is None:
        return nullcontext()
    from callmip_global.workflow import scale_out

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    count = workers or 2
    folder = out.resolve().with_name(f"{out.resolve().name}.dask")
    if dask is Dask.local:
        return scale_out.local_map(workers=count, folder=folder, say=say)
    plain, resources = scale_out.site_and_resources(
        dask.value, site, kind, overrides or (), Path.cwd()
    )
    return scale_out.cluster_map(plain, resources, workers=count, folder=folder, name=kind, say=say)
