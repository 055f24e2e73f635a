"""Run and merge tasks: the group's own commands, with restarts handed on and outputs verified."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from callmip_global.config.chain import names_file
from callmip_global.config.placeholders import expand, render_template
from callmip_global.config.plan import Plan, Step, Task, expected_outputs, run_context
from callmip_global.files import (
    checked_target,
    file_hash,
    fsync_folder,
    inside,
    read_json,
    write_atomic,
    write_json,
)
from callmip_global.workflow.failures import Failure, TaskFailedError, classify, log_tail
from callmip_global.workflow.verify import verify_file

Markers = Mapping[str, Mapping[str, Any]]


def run_segment(
    plan: Plan,
    step: Step,
    task: Task,
    attempt: Path,
    upstream: Markers,
    piece_years: int | None = None,
) -> dict[str, Any]:
    """Run one segment in its attempt folder; returns what the success marker records.

    Restart files of the segment before are copied, never linked: a model that overwrites its
    restart in place must not spoil the segment before. ``piece_years``: run it in pieces of so many
    years, and go on after those that an earlier attempt finished. Raises TaskFailedError.
    """
    context = {**run_context(plan, step, task), "python": sys.executable}
    for path in (context["parameters"], *plan.settings["executables"].values()):
        _check_unchanged(plan, Path(path))
    if piece_years is not None:
        return _run_pieces(plan, step, task, context, attempt, upstream, piece_years)
    _copy_restarts(_restart_sources(step, task), attempt, upstream, attempt.parents[3])
    return _run_model(plan, step, context, attempt, step.outputs)


def _restart_sources(step: Step, task: Task) -> Mapping[str, str]:
    sources: Mapping[str, str] = step.recipe["simulations"][task.simulation]["restart_in"]
    return sources


def _run_model(
    plan: Plan, step: Step, context: Mapping[str, Any], folder: Path, outputs: Mapping[str, int]
) -> dict[str, Any]:
    """Render, run and verify in a folder that has its restart files already."""
    settings, recipe = plan.settings, step.recipe
    templates = settings["templates"]
    _render_files(
        {target: (source, templates[source]) for target, source in recipe["files"].items()},
        context,
        folder,
    )
    (folder / "restart_out").mkdir()
    for pattern in outputs:
        (folder / pattern).parent.mkdir(parents=True, exist_ok=True)
    command = expand(recipe["command"], context, quote=True)
    _run_command(settings["environment"], command, folder)
    restarts = {}
    for pattern in recipe["restart_out"]:
        for path in _matches(folder / "restart_out", pattern, "restart"):
            name = str(path.relative_to(folder / "restart_out"))
            restarts[name] = _describe(folder, path, "restart")
            verify_file(path, "restart")
    return {"outputs": _outputs(outputs, folder), "restarts": restarts}


def _run_pieces(
    plan: Plan,
    step: Step,
    task: Task,
    context: Mapping[str, Any],
    attempt: Path,
    upstream: Markers,
    piece_years: int,
) -> dict[str, Any]:
    """Run a segment piece by piece.

    A finished piece is moved into ``pieces/`` of the task, whole, by one rename; its name has the
    key, so that no other plan takes it for its own.
    """
    first, last = step.recipe["first_year"], step.recipe["last_year"]
    kept = checked_target(attempt.parent, "pieces/piece.json").parent
    outputs: dict[str, Any] = {}
    restarts: dict[str, Any] = {}
    before: Path | None = None
    for start in range(first, last + 1, piece_years):
        years = (start, min(start + piece_years - 1, last))
        done = kept / f"{years[0]}-{years[1]}-{task.key[:16]}"
        if not done.exists():
            folder = attempt / f"piece-{years[0]}-{years[1]}"
            folder.mkdir()
            # What the piece before did not leave comes, for every piece, from where it came first.
            sources = {
                pattern: source
                for pattern, source in _restart_sources(step, task).items()
                if not any(names_file(pattern, name) for name in restarts)
            }
            _copy_restarts(sources, folder, upstream, attempt.parents[3])
            if before is not None:
                _copy_files(before / "restart_out", folder / "restart_in", restarts)
            settings = plan.settings
            expected = expected_outputs(settings["outputs"], *years, settings["years"][0])
            found = _run_model(plan, step, _of_piece(plan, context, years), folder, expected)
            write_json(folder / "piece.json", found)
            folder.rename(done)
            fsync_folder(kept)
        found = read_json(done / "piece.json")
        _copy_files(done, attempt, found["outputs"])
        outputs |= found["outputs"]
        restarts, before = found["restarts"], done
    if before is not None:
        _copy_files(before / "restart_out", attempt / "restart_out", restarts)
    return {"outputs": outputs, "restarts": restarts}


def _of_piece(plan: Plan, context: Mapping[str, Any], years: tuple[int, int]) -> dict[str, Any]:
    """The placeholders of a segment, for some of its years."""
    own: dict[str, Any] = {
        **context,
        "first_year": years[0],
        "last_year": years[1],
        "n_years": years[1] - years[0] + 1,
        "first_segment": context["first_segment"] and years[0] == context["first_year"],
        "write_output": years[1] >= plan.settings["years"][0],
    }
    if context["climate"] == "actual":
        own |= {"climate_first_year": years[0], "climate_last_year": years[1]}
    return own


def _copy_files(source: Path, target: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy files of a finished piece; TaskFailedError where one is not what it was."""
    for name, wanted in files.items():
        path = checked_target(target, name)
        try:
            shutil.copyfile(source / name, path)
        except OSError as error:
            text = f"{source / name}: {error.strerror}"
            raise TaskFailedError(Failure("restart", text)) from error
        if file_hash(path) != wanted["sha256"]:
            text = f"{source / name} is not the file that its piece of the segment left"
            raise TaskFailedError(Failure("restart", text))


def run_merge(
    plan: Plan, step: Step, task: Task, attempt: Path, upstream: Markers
) -> dict[str, Any]:
    """Merge the tiles' files, one call of the group's merge command per output file."""
    settings = plan.settings
    tiles = _files_by_name(attempt.parents[3], upstream)
    for name, paths in tiles.items():
        if len(paths) != settings["tiles"]:
            raise TaskFailedError(
                Failure("input", f"{name}: {len(paths)} tiles have it, wanted {settings['tiles']}")
            )
        output = checked_target(attempt, name)
        context = {
            "model": settings["model"]["name"],
            "version": settings["model"]["version"],
            "simulation": task.simulation,
            "stage": task.stage,
            "scenario": settings["stages"][task.stage]["scenario"],
            "member": task.member,
            "tiles": settings["tiles"],
            "python": sys.executable,
            "inputs": [str(p) for p in paths],
            "output": str(output),
        }
        command = expand(settings["merge"], context, quote=True)
        _run_command(settings["environment"], command, attempt)
    return {"outputs": _outputs(step.outputs, attempt)}


def published_folder(run_path: Path, ref: str, marker: Mapping[str, Any]) -> Path:
    """Folder of the attempt that a success marker publishes."""
    return run_path / "steps" / ref / str(marker["attempt"])


def output_files(run_path: Path, upstream: Markers) -> list[Path]:
    """All output files that the success markers name, by name, then in the order of the markers."""
    return [path for paths in _files_by_name(run_path, upstream).values() for path in paths]


def _files_by_name(run_path: Path, upstream: Markers) -> dict[str, list[Path]]:
    """The output files by their name in the attempt folder: one for each marker that has it."""
    found: dict[str, list[Path]] = {}
    for ref, marker in upstream.items():
        for name in marker["outputs"]:
            found.setdefault(name, []).append(published_folder(run_path, ref, marker) / name)
    return found


def _check_unchanged(plan: Plan, path: Path) -> None:
    """Parameter file and executables must be what they were at submission, or the key would lie."""
    wanted = plan.inputs[str(path)]
    try:
        found = file_hash(path)
    except OSError as error:
        raise TaskFailedError(Failure("input", f"{path}: {error.strerror}")) from error
    if found != wanted:
        raise TaskFailedError(
            Failure(
                "input", f"{path} was changed since `submit`; run `submit` again to plan with it"
            )
        )


def _render_files(
    files: Mapping[str, tuple[str, str]], context: Mapping[str, Any], attempt: Path
) -> None:
    """Render each target's template, given as (its file, its text)."""
    for target, (source, template) in files.items():
        text = render_template(template, context, where=source)
        write_atomic(checked_target(attempt, expand(target, context, quote=False)), text)


def _copy_restarts(
    sources: Mapping[str, str], folder: Path, upstream: Markers, run_path: Path
) -> None:
    """Copy each restart file from the segment (``sources``: pattern -> step) that left it."""
    by_step = {ref.partition("/")[0]: ref for ref in upstream}
    for pattern, step in sources.items():
        ref = by_step[step]
        left = upstream[ref]["restarts"]
        names = [name for name in left if names_file(pattern, name)]
        if not names:
            raise TaskFailedError(Failure("restart", f"{ref} left no restart file {pattern}"))
        for name in names:
            source = published_folder(run_path, ref, upstream[ref]) / "restart_out" / name
            target = checked_target(folder, f"restart_in/{name}")
            try:
                shutil.copyfile(source, target)
            except OSError as error:
                raise TaskFailedError(Failure("restart", f"{source}: {error.strerror}")) from error
            if file_hash(target) != left[name]["sha256"]:
                raise TaskFailedError(
                    Failure("restart", f"{source} is not the file that {ref} published")
                )


def _run_command(environment: str, command: str, attempt: Path) -> None:
    """Run a command in the attempt folder by a script that stays there for the record."""
    script = attempt / "command.sh"
    lines = ["#!/bin/bash", f"cd {shlex.quote(str(attempt))} || exit 1"]
    if environment.strip():
        lines.append(environment.strip())
    # Not before the environment: module files and activation scripts often trip over it.
    lines += ["set -eo pipefail", command.strip(), ""]
    write_atomic(script, "\n".join(lines), mode=0o755)
    logs = [checked_target(attempt, name) for name in ("stdout", "stderr")]
    with logs[0].open("ab") as out, logs[1].open("ab") as err:
        process = subprocess.Popen(
            ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=attempt
        )
        try:
            code = process.wait()
        except BaseException:
            # Whatever ends us (TERM is raised here as an exception) ends the model too.
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if code != 0:
        raise TaskFailedError(classify(attempt, shorten(command), code))


def shorten(command: str) -> str:
    """The command on one line of readable length."""
    text = " ".join(command.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _outputs(outputs: Mapping[str, int], attempt: Path) -> dict[str, dict[str, Any]]:
    """The verified output files of a run or merge task, with size and hash."""
    found: dict[str, dict[str, Any]] = {}
    for pattern, time_steps in outputs.items():
        for path in _matches(attempt, pattern, "model"):
            found[str(path.relative_to(attempt))] = _describe(attempt, path, "model")
            verify_file(path, "model", time_steps)
    return found


def _matches(folder: Path, pattern: str, kind: str) -> list[Path]:
    """The file of that name, or all that match the pattern: at least one."""
    if not set("*?[") & set(pattern):
        return [folder / pattern]
    paths = sorted(folder.glob(pattern))
    if not paths:
        attempt = folder if folder.name != "restart_out" else folder.parent
        log, tail = log_tail(attempt)
        text = f"no file matches {pattern}: the command left none"
        raise TaskFailedError(Failure(kind, text, 0, log, tail))
    return paths


def _describe(attempt: Path, path: Path, kind: str) -> dict[str, Any]:
    """Size and hash of a file that the command left.

    A link out of the attempt folder is refused: what it leads to is not ours to keep, and may be
    another file by the time that somebody reads it.
    """
    if not inside(attempt, path):
        text = f"{path.name} is a link that leaves the attempt folder, to {os.path.realpath(path)}"
        raise TaskFailedError(Failure("model", f"{text}: copy the file, or move it here"))
    if not path.is_file() or path.stat().st_size == 0:
        state = "is empty" if path.exists() else "is missing"
        log, tail = log_tail(attempt)
        raise TaskFailedError(
            Failure(kind, f"{path.name} {state}, although the command ended well", 0, log, tail)
        )
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}
