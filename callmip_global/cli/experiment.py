"""``callmip-global init`` and ``callmip-global validate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from callmip_global.cli.options import JsonOption, SetOption, print_json
from callmip_global.errors import EXIT_USAGE, UsageError, counted

if TYPE_CHECKING:
    from callmip_global.config.load import LoadedExperiment
    from callmip_global.workflow.preflight import Check


def init(
    model: Annotated[str, typer.Argument(help="Name of the model, e.g. CLASSIC.")],
    site: Annotated[str, typer.Argument(help="A site of config/sites, e.g. gadi, or a path.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path(
        "experiment.yaml"
    ),
) -> None:
    """Write a commented experiment file to begin with, and say what to edit next."""
    from callmip_global.config.init import write_experiment

    steps = write_experiment(model, site, out)
    print(f"{out}: written. Edit next:")
    for step in steps:
        print(f"  {step}")


def validate(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    overrides: SetOption = None,
    json: JsonOption = False,
    site: Annotated[
        bool, typer.Option("--site", help="Ask the site's scheduler and disk too; submit nothing.")
    ] = False,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="With --site. Default: as for submit."),
    ] = None,
) -> None:
    """Say everything that is wrong with an experiment, before anything is submitted."""
    from callmip_global.config.validate import check_experiment

    checks: list[Check] = []
    try:
        if site:
            from callmip_global.workflow.preflight import validate_at_site

            loaded, found = validate_at_site(experiment, overrides or [], run_dir)
            problems, checks = found.problems, found.checks
        else:
            loaded, problems = check_experiment(experiment, overrides or [])
    except UsageError as error:
        if not json:
            raise
        loaded, problems = None, list(error.problems)
    valid = loaded is not None and not problems
    if json:
        report: dict[str, Any] = {"experiment": str(experiment), "valid": valid}
        report["problems"] = [
            {key: said for key, said in asdict(problem).items() if key != "rule"}
            for problem in problems
        ]
        if site:
            report["checks"] = [asdict(check) for check in checks]
        if loaded is not None and valid:
            report["summary"] = _counts(loaded)
        print_json(report)
        if not valid:
            raise typer.Exit(EXIT_USAGE)
        return
    if checks:
        _print_checks(checks)
    if loaded is None or problems:
        raise UsageError(problems)
    print(summary(loaded))


def _print_checks(checks: Sequence[Check]) -> None:
    """What was looked at and is fine; a line each where the output is no terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for check in checks:
            print(f"{check.what}: {check.found}")
        return
    table = Table.grid(padding=(0, 2))
    for check in checks:
        table.add_row(Text(check.what, style="bold"), Text(check.found))
    console.print(table)


def _counts(loaded: LoadedExperiment) -> dict[str, Any]:
    experiment = loaded.experiment
    tiles = experiment.run.tiles
    return {
        "simulations": [simulation.name for simulation in experiment.simulations],
        "stages": {name: len(s.member_numbers) for name, s in experiment.stages.items()},
        "tiles": 1 if tiles is None else tiles.count,
        "segments": sum(phase.n_segments for phase in experiment.run.phases),
        "years": list(experiment.delivered_years),
        "grid": experiment.output.grid,
        "site": loaded.site.name,
    }


def summary(loaded: LoadedExperiment) -> str:
    """One line: what would run, and what would be delivered."""
    counts = _counts(loaded)
    stages = " + ".join(
        f"{name} ({n} members)" if n > 1 else name for name, n in counts["stages"].items()
    )
    first, last = counts["years"]
    line = (
        f"{loaded.path}: valid: {counted(len(counts['simulations']), 'simulation')}"
        f" ({', '.join(counts['simulations'])}) x {stages} x {counts['segments']} segments"
        + (f" x {counts['tiles']} tiles" if counts["tiles"] > 1 else "")
        + f" on {counts['site']}; delivers {first}-{last} at {counts['grid']}"
    )
    if last - first + 1 < loaded.protocol.min_years:
        line += f" (the protocol asks for at least {loaded.protocol.min_years} years)"
    return line
