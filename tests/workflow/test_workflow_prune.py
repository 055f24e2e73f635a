"""Pruning: what nobody needs goes, what anybody needs stays, and what went can be had again."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callmip_global.config.plan import Plan, Step, Task, TaskTable
from callmip_global.errors import UsageError
from callmip_global.files import file_hash, read_json, write_json
from callmip_global.workflow import api
from callmip_global.workflow import prune as module
from callmip_global.workflow.observe import TaskState
from callmip_global.workflow.prune import _Selection, prune, pruned_files, revive
from callmip_global.workflow.rundir import RunDir
from callmip_global.workflow.task import run_task

SEGMENTS = [
    "run-spinup-c01",
    "run-spinup-c02",
    "run-spinup-c03",
    "run-historical-2001-2008",
    "run-historical-2009-2016",
    "run-historical-2017-2024",
]


@pytest.fixture
def chain(toy: Any) -> Any:
    """A toy of six segments, of one parameter set; the last one delivers."""
    tree = toy.tree
    tree["stages"] = {"Prior": {"parameters": "prior.sh"}}
    spinup, historical = tree["run"]["phases"]
    tree["run"]["phases"] = [
        {**spinup, "years": [2000, 2000], "cycles": 3},
        {**historical, "years": [2001, 2024], "segment_years": 8},
    ]
    tree["output"]["years"] = 8
    toy.write()
    return toy


def perform(toy: Any, steps: list[str], *, row: int = 1) -> RunDir:
    """Write the run directory and do one task of each of these steps, as its job would."""
    run, plan = api.prepare(toy.experiment)
    for step in steps:
        token = f"t{random.random()}"
        run.journal.append(
            "intent", token=token, step=step, table=plan.step(step).table, rows=[row], offset=0,
            pack=1, depends=[], replaces=[], retry="", walltime_s=None, memory_bytes=None,
        segment_years=None,
        )  # fmt: skip
        run.journal.append("submitted", token=token, job_id=token)
        run_task(run, step, row, token)
    return run


def tree_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash (a link with what it says)."""
    return {
        str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else file_hash(p)
        for p in sorted(folder.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def sets_left(run: RunDir) -> list[str]:
    return [s for s in SEGMENTS if list((run.path / "steps" / s).glob("*/attempt-*/restart_out/*"))]


# A finished chain.


def test_without_delete_nothing_is_touched(chain: Any) -> None:
    run = perform(chain, SEGMENTS)
    before = tree_of(run.path)
    _, items = prune(run.path)
    assert {i.kind for i in items} == {"restart_out", "restart_in"}
    assert tree_of(run.path) == before


@pytest.mark.parametrize("keep", [1, 2, 4, 9])
def test_the_last_sets_of_a_chain_stay(chain: Any, keep: int) -> None:
    run = perform(chain, SEGMENTS)
    prune(run.path, keep=keep, delete=True)
    assert sets_left(run) == SEGMENTS[-keep:]
    assert not list(run.path.glob("steps/*/*/attempt-*/restart_in/*"))
    # What is delivered, and every log and script, is still there.
    last = run.task_dir(f"{SEGMENTS[-1]}/S3.Prior")
    assert (last / "attempt-01/out/mon_2017.txt").exists()
    assert len(list(run.path.glob("steps/*/*/attempt-*/command.sh"))) == len(SEGMENTS)


def test_what_went_is_on_record_with_its_size_hash_and_time(chain: Any) -> None:
    run = perform(chain, SEGMENTS)
    ref = f"{SEGMENTS[1]}/S3.Prior"
    hashes = tree_of(run.task_dir(ref))
    _, items = prune(run.path, delete=True)
    record = read_json(run.task_dir(ref) / "pruned.json")["files"]
    mine = {i.path: i for i in items if i.ref == ref}
    assert set(record) == {"attempt-01/restart_out/years.txt", "attempt-01/restart_in/years.txt"}
    for path, entry in record.items():
        assert entry["sha256"] == hashes[path]
        assert entry["bytes"] == mine[path].bytes == 2
        assert entry["time"].endswith("Z")


def test_pruning_twice_is_pruning_once(chain: Any) -> None:
    run = perform(chain, SEGMENTS)
    prune(run.path, delete=True)
    after = tree_of(run.path)
    assert prune(run.path, delete=True)[1] == []
    assert tree_of(run.path) == after


@pytest.mark.parametrize("done", range(len(SEGMENTS)))
def test_what_the_next_segment_reads_stays_however_far_the_chain_is(chain: Any, done: int) -> None:
    run = perform(chain, SEGMENTS[:done])
    prune(run.path, keep=1, delete=True)
    perform(chain, SEGMENTS[done:])
    assert all(run.marker(f"{s}/S3.Prior") for s in SEGMENTS)


def test_a_set_taken_from_an_older_phase_stays_until_it_is_read(chain: Any) -> None:
    chain.tree["run"]["phases"].append(
        {
            "name": "again", "years": [2025, 2032], "climate": {"recycle": [1901, 1920]},
            "co2": 1900, "restart_in": {"years.txt": "spinup"},
        }
    )  # fmt: skip
    chain.write()
    run = perform(chain, SEGMENTS)
    prune(run.path, keep=1, delete=True)
    # The end of the historical chain, and what the last phase will read.
    assert sets_left(run) == [SEGMENTS[2], SEGMENTS[5]]
    perform(chain, ["run-again"])
    assert run.marker("run-again/S3.Prior")
    prune(run.path, keep=1, delete=True)
    assert sets_left(run) == [SEGMENTS[5]]


def test_failed_attempts_leave_their_logs(chain: Any) -> None:
    chain.parameters("Prior", "echo much > core; echo why >&2; exit 3\n")
    perform(chain, SEGMENTS[:1])
    chain.parameters("Prior", ":\n")
    run = perform(chain, SEGMENTS[:1])
    folder = run.task_dir(f"{SEGMENTS[0]}/S3.Prior")
    assert [a.state for a in run.attempts(f"{SEGMENTS[0]}/S3.Prior")] == ["failed", "done"]
    prune(run.path, delete=True)
    assert set(tree_of(folder / "attempt-01")) == {"status.json", "stderr", "stdout"}
    assert (folder / "attempt-01/stderr").read_text() == "why\n"
    assert "attempt-01/core" in pruned_files(run, f"{SEGMENTS[0]}/S3.Prior")


def test_a_failed_attempt_of_a_task_that_is_not_done_is_left_alone(chain: Any) -> None:
    chain.parameters("Prior", "echo much > core; exit 3\n")
    run = perform(chain, SEGMENTS[:1])
    before = tree_of(run.path)
    assert prune(run.path, delete=True)[1] == []
    assert tree_of(run.path) == before


def test_an_attempt_that_may_still_live_is_left_alone(chain: Any) -> None:
    run = perform(chain, SEGMENTS[:1])
    folder = run.task_dir(f"{SEGMENTS[0]}/S3.Prior")
    (folder / "attempt-01").rename(folder / "attempt-02")
    marker = read_json(folder / "done.json")
    write_json(folder / "done.json", {**marker, "attempt": "attempt-02"})
    (folder / "attempt-01").mkdir()
    write_json(folder / "attempt-01/status.json", {"state": "running"})
    (folder / "attempt-01/big").write_text("x")
    assert not [i for i in prune(run.path, delete=True)[1] if i.kind == "attempt"]
    assert (folder / "attempt-01/big").exists()


def test_pieces_left_by_a_kill_go_once_the_segment_is_done(chain: Any) -> None:
    for n, wanted in ((0, True), (1, False)):
        run = perform(chain, SEGMENTS[:n])
        piece = run.task_dir(f"{SEGMENTS[0]}/S3.Prior") / "pieces/1-2/restart_out/years.txt"
        piece.parent.mkdir(parents=True, exist_ok=True)
        piece.write_text("9")
        prune(run.path, delete=True)
        assert piece.exists() is wanted


# Links.


def test_a_link_is_removed_as_a_link(chain: Any, tmp_path: Path) -> None:
    run = perform(chain, SEGMENTS)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "f").write_text("precious")
    out = run.task_dir(f"{SEGMENTS[0]}/S3.Prior") / "attempt-01/restart_out"
    (out / "folder").symlink_to(precious)
    (out / "file").symlink_to(precious / "f")
    prune(run.path, keep=1, delete=True)
    assert (precious / "f").read_text() == "precious"
    assert not out.exists()
    assert "link" in pruned_files(run, f"{SEGMENTS[0]}/S3.Prior")["attempt-01/restart_out/folder"]


def test_a_restart_folder_that_is_a_link_is_not_entered(chain: Any, tmp_path: Path) -> None:
    run = perform(chain, SEGMENTS)
    out = run.task_dir(f"{SEGMENTS[0]}/S3.Prior") / "attempt-01/restart_out"
    out.rename(tmp_path / "elsewhere")
    out.symlink_to(tmp_path / "elsewhere")
    prune(run.path, keep=1, delete=True)
    assert (tmp_path / "elsewhere/years.txt").exists()


@pytest.mark.parametrize("name", ["steps", f"steps/{SEGMENTS[0]}", f"steps/{SEGMENTS[0]}/S3.Prior"])
def test_a_run_with_links_that_lead_out_is_refused(chain: Any, name: str, tmp_path: Path) -> None:
    run = perform(chain, SEGMENTS)
    (run.path / name).rename(tmp_path / "elsewhere")
    (run.path / name).symlink_to(tmp_path / "elsewhere")
    before = tree_of(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="a link that leads to"):
        prune(run.path, delete=True)
    assert tree_of(tmp_path / "elsewhere") == before


def test_what_a_delivered_link_leads_to_stays(chain: Any) -> None:
    chain.parameters(
        "Prior",
        'finish() { [ "$write" = false ] || { mv out/mon_*.txt restart_out/x;'
        " ln -s ../restart_out/x out/mon_$first.txt; }; }\ntrap finish EXIT\n",
    )
    chain.tree["output"]["years"] = 24
    chain.write()
    run = perform(chain, SEGMENTS)
    prune(run.path, keep=1, delete=True)
    assert sets_left(run) == SEGMENTS[3:]
    for step, year in ((SEGMENTS[3], 2001), (SEGMENTS[4], 2009)):
        attempt = run.task_dir(f"{step}/S3.Prior") / "attempt-01"
        assert (attempt / f"out/mon_{year}.txt").read_text() == f"{year}-{year + 7}\n"
        assert [p.name for p in (attempt / "restart_out").iterdir()] == ["x"]


def test_links_that_lead_to_links_stay_all_along(chain: Any) -> None:
    chain.parameters(
        "Prior",
        "finish() { mkdir -p work; mv restart_out/years.txt work/c; ln -s ../work/c restart_in/b;"
        " ln -s ../restart_in/b restart_out/years.txt; }\nmkdir -p restart_in\ntrap finish EXIT\n",
    )
    run = perform(chain, SEGMENTS)
    prune(run.path, keep=1, delete=True)
    last = run.task_dir(f"{SEGMENTS[-1]}/S3.Prior") / "attempt-01"
    assert (last / "restart_out/years.txt").read_text() == "27\n"
    assert [p.name for p in (last / "restart_in").iterdir()] == ["b"]


# Interruptions and other commands.


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_killed_half_way_it_goes_on_where_it_was(
    chain: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = perform(chain, SEGMENTS)
    real = module.remove_below
    calls = []

    def dying(root: Path, names: Any) -> None:
        listed = list(names)
        calls.append(listed)
        if len(calls) == 3:
            real(root, listed[: {"before": 0, "half": 1, "after": 2}[moment]])
            raise KeyboardInterrupt
        real(root, listed)

    monkeypatch.setattr(module, "remove_below", dying)
    with pytest.raises(KeyboardInterrupt):
        prune(run.path, keep=1, delete=True)
    monkeypatch.setattr(module, "remove_below", real)
    # Whatever is missing is on record, before anything else happens.
    for step in SEGMENTS:
        ref = f"{step}/S3.Prior"
        marker = run.marker(ref)
        assert marker is not None
        for name in marker["restarts"]:
            path = f"{marker['attempt']}/restart_out/{name}"
            assert (run.task_dir(ref) / path).exists() or path in pruned_files(run, ref)
    prune(run.path, keep=1, delete=True)
    assert sets_left(run) == SEGMENTS[-1:]
    ref = calls[2][0].split("/")
    assert len(pruned_files(run, f"{ref[1]}/{ref[2]}")) == 2


def test_while_another_command_works_it_waits_for_another_time(chain: Any) -> None:
    run = perform(chain, SEGMENTS)
    with run.lock(), pytest.raises(UsageError, match="locked by"):
        prune(run.path, delete=True)
    assert sets_left(run) == SEGMENTS
    assert prune(run.path)[1]


def test_a_folder_that_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no plan\.json"):
        prune(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Tiles.


@pytest.fixture
def tiled(chain: Any) -> Any:
    chain.tree["run"]["tiles"] = {"count": 2, "merge": "cat {inputs} > {output}"}
    chain.tree["run"]["command"] += " {tile}"
    chain.write()
    return chain


def finish_engine(run: RunDir, kind: str) -> None:
    """Publish an engine task as if it had run (the toy's output is text)."""
    for task in run.plan().step(kind).tasks:
        folder = run.task_dir(f"{kind}/{task.id}")
        (folder / "attempt-01").mkdir(parents=True)
        write_json(folder / "attempt-01/status.json", {"state": "done", "key": task.key})
        run.publish(f"{kind}/{task.id}", {"key": task.key, "attempt": "attempt-01", "outputs": {}})


def tile_outputs(run: RunDir) -> list[str]:
    return sorted(p.name for p in run.path.glob("steps/run-*/*/attempt-*/out/*"))


def test_tiles_outputs_go_once_what_reads_the_merged_files_is_done(tiled: Any) -> None:
    for row in (1, 2):
        run = perform(tiled, SEGMENTS, row=row)
    assert prune(run.path, outputs=True, delete=True)[1]
    assert len(tile_outputs(run)) == 2
    perform(tiled, ["merge"])
    prune(run.path, outputs=True, delete=True)
    assert len(tile_outputs(run)) == 2
    finish_engine(run, "harmonize")
    prune(run.path, delete=True)
    assert len(tile_outputs(run)) == 2
    prune(run.path, outputs=True, delete=True)
    assert tile_outputs(run) == []
    merged = run.task_dir("merge/S3.Prior") / "attempt-01/out/mon_2017.txt"
    assert merged.read_text() == "2017-2024\n" * 2


def test_merging_again_has_the_tiles_run_again(tiled: Any) -> None:
    for row in (1, 2):
        perform(tiled, SEGMENTS, row=row)
    run = perform(tiled, ["merge"])
    finish_engine(run, "harmonize")
    prune(run.path, keep=1, outputs=True, delete=True)
    tiled.tree["run"]["tiles"]["merge"] = "cat {inputs} > {output}; :"
    tiled.write()
    run, plan = api.prepare(tiled.experiment)
    revived = revive(run, waiting(run, plan))
    # Both tiles from their first segment on: the sets in between were pruned too.
    assert len(revived) == 2 * len(SEGMENTS)
    assert revived[-1] == f"{SEGMENTS[-1]}/S3.Prior.t02"


# Getting back what was pruned.


def waiting(run: RunDir, plan: Plan) -> dict[str, TaskState]:
    return {
        f"{step.name}/{task.id}": TaskState(
            f"{step.name}/{task.id}", step, task,
            "done" if run.is_done(f"{step.name}/{task.id}", task.key) else "waiting",
        )
        for step, task in plan.tasks()
    }  # fmt: skip


def edit_historical(toy: Any) -> None:
    toy.tree["run"]["phases"][1]["options"] = {"edited": True}
    toy.write()


def test_an_edited_late_phase_has_pruned_segments_run_again_with_equal_results(
    chain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.submit()
    assert set(chain.wait().values()) == {"done"}
    run = RunDir(chain.run_dir)
    refs = [f"{step}/S3.Prior" for step in SEGMENTS]
    before = {ref: run.marker(ref) for ref in refs}
    prune(run.path, keep=1, delete=True)
    edit_historical(chain)
    calls = chain.ledger()
    chain.submit()
    assert set(chain.wait().values()) == {"done"}
    assert "6 tasks" not in " ".join(chain.said)
    assert any("3 tasks to run again, pruned: run-spinup-c01/S3.Prior" in s for s in chain.said)
    # Each ran once more, and left the very same restart files.
    assert chain.ledger() == sorted(calls * 2)
    for ref in refs:
        old, new = before[ref], run.marker(ref)
        assert old is not None
        assert new is not None
        assert new["restarts"] == old["restarts"]
        assert new["attempt"] == "attempt-02"
        assert (run.task_dir(ref) / "attempt-02/restart_out/years.txt").exists()
    kept = run.task_dir(refs[0]) / f"done-{before[refs[0]]['key'][:12]}-pruned.json"
    assert read_json(kept) == before[refs[0]]


def test_only_what_is_needed_runs_again(chain: Any) -> None:
    run = perform(chain, SEGMENTS)
    prune(run.path, keep=4, delete=True)
    edit_historical(chain)
    run, plan = api.prepare(chain.experiment)
    assert revive(run, waiting(run, plan)) == []
    chain.tree["run"]["phases"][0]["options"] = {"edited": True}
    chain.write()
    run, plan = api.prepare(chain.experiment)
    assert revive(run, waiting(run, plan)) == []


def test_what_is_done_or_alive_revives_nothing(chain: Any) -> None:
    run = perform(chain, SEGMENTS)
    prune(run.path, keep=1, delete=True)
    plan = run.plan()
    assert revive(run, waiting(run, plan)) == []
    edit_historical(chain)
    run, plan = api.prepare(chain.experiment)
    states = {
        ref: TaskState(ref, s.step, s.task, "queued" if s.state == "waiting" else s.state)
        for ref, s in waiting(run, plan).items()
    }
    assert revive(run, states) == []


def test_a_restart_file_that_vanished_unexplained_is_not_made_again_in_silence(chain: Any) -> None:
    run = perform(chain, SEGMENTS[:3])
    (run.task_dir(f"{SEGMENTS[2]}/S3.Prior") / "attempt-01/restart_out/years.txt").unlink()
    plan = run.plan()
    assert revive(run, waiting(run, plan)) == []
    perform(chain, SEGMENTS[3:4])
    failure = run.attempts(f"{SEGMENTS[3]}/S3.Prior")[0].status["failure"]
    assert failure["class"] == "restart"


def test_reviving_cut_short_is_finished_by_the_next_submission(
    chain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = perform(chain, SEGMENTS)
    prune(run.path, keep=1, delete=True)
    edit_historical(chain)
    run, plan = api.prepare(chain.experiment)
    real = module.write_json

    def dying(path: Path, value: Any) -> None:
        real(path, value)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        revive(run, waiting(run, plan))
    monkeypatch.setattr(module, "write_json", real)
    revive(run, waiting(run, plan))
    perform(chain, SEGMENTS)
    assert all(run.is_done(f"{s}/S3.Prior", plan.task(f"{s}/S3.Prior").key) for s in SEGMENTS)


def test_pruned_twice_both_markers_are_kept(chain: Any) -> None:
    for edit in range(2):
        chain.tree["run"]["phases"][1]["options"] = {"edited": edit}
        chain.write()
        run, plan = api.prepare(chain.experiment)
        revive(run, waiting(run, plan))
        todo = [
            s for s in SEGMENTS if not run.is_done(f"{s}/S3.Prior", plan.task(f"{s}/S3.Prior").key)
        ]
        perform(chain, todo)
        prune(run.path, keep=1, delete=True)
    chain.tree["run"]["phases"][1]["options"] = {"edited": 2}
    chain.write()
    run, plan = api.prepare(chain.experiment)
    revive(run, waiting(run, plan))
    names = [p.name for p in run.task_dir(f"{SEGMENTS[0]}/S3.Prior").glob("done-*-pruned*.json")]
    assert len(names) == 2


# The law, for any graph.


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Mapping[str, Any], ...]:
    """Run tasks in an order they can run in: what each builds on, whether it is done."""
    n = draw(st.integers(1, 8))
    return tuple(
        {
            "upstream": sorted(draw(st.sets(st.integers(0, i - 1), max_size=2))) if i else [],
            "done": draw(st.booleans()),
            "restarts": draw(st.booleans()),
        }
        for i in range(n)
    )


def world(folder: Path, graph: tuple[Mapping[str, Any], ...]) -> tuple[RunDir, Plan]:
    steps = []
    for i, node in enumerate(graph):
        task = Task("x", 1, f"key{i}", tuple(f"run-{j}/x" for j in node["upstream"]), "S3", "Prior")
        steps.append(Step(f"run-{i}", "run", {}, TaskTable(lambda t=task: [t])))  # type: ignore[misc]
    run = RunDir(folder.resolve())
    for i, node in enumerate(graph):
        if not node["done"]:
            continue
        attempt = run.task_dir(f"run-{i}/x") / "attempt-01"
        for name in ("restart_in/r", "restart_out/r", "out/o"):
            (attempt / name).parent.mkdir(parents=True, exist_ok=True)
            (attempt / name).write_text(f"{i} {name}")
        write_json(attempt / "status.json", {"state": "done"})
        restarts = {"r": {"bytes": 1, "sha256": "h"}} if node["restarts"] else {}
        marker = {"key": f"key{i}", "attempt": "attempt-01", "restarts": restarts}
        write_json(attempt.parent / "done.json", {**marker, "outputs": {"out/o": {"bytes": 1}}})
    return run, Plan("p", "e", {}, {}, tuple(steps))


@settings(max_examples=50)
@given(graph=graphs(), keep=st.integers(1, 4), outputs=st.booleans())
def test_whatever_the_graph_nothing_that_is_needed_goes(
    graph: tuple[Mapping[str, Any], ...], keep: int, outputs: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        run, plan = world(Path(name), graph)
        before = tree_of(run.path)
        items = list(_Selection(run, plan, keep, outputs).items())
        going = {f"steps/{i.ref}/{i.path}" for i in items}
        assert going <= set(before)
        assert not [path for path in going if "/out/" in path or path.endswith(".json")]
        lost = {int(i.ref[4:-2]) for i in items if i.kind == "restart_out"}
        for i, node in enumerate(graph):
            if not node["done"]:
                assert not lost.intersection(node["upstream"])
                assert not any(path.startswith(f"steps/run-{i}/") for path in going)
        readers = [j for node in graph for j in node["upstream"]]
        for leaf in set(range(len(graph))) - set(readers):
            chain = {leaf}
            for i in sorted(range(leaf + 1), reverse=True):
                if i in chain:
                    chain.update(graph[i]["upstream"])
            sets = [i for i in sorted(chain) if graph[i]["done"] and graph[i]["restarts"]]
            assert not lost.intersection(sets[-keep:])
        module.remove_below(run.path, going)
        after = tree_of(run.path)
        assert after == {path: digest for path, digest in before.items() if path not in going}


# The command.


def test_the_command_shows_what_would_go_and_what_went(chain: Any) -> None:
    run = perform(chain, SEGMENTS)
    shown = chain.cli("prune", str(run.path), "--keep", "1")
    assert shown.returncode == 0, shown.stderr
    assert "restart files of superseded segments" in shown.stdout
    assert "nothing was deleted" in shown.stdout
    assert sets_left(run) == SEGMENTS
    done = chain.cli("prune", str(run.path), "--keep", "1", "--delete", "--json")
    value = json.loads(done.stdout)
    assert value["deleted"] is True
    assert value["bytes"] == sum(kind["bytes"] for kind in value["kinds"].values())
    assert value["kinds"]["restart_out"]["files"] == 5
    assert sets_left(run) == SEGMENTS[-1:]
    again = chain.cli("prune", str(run.path))
    assert "nothing to prune" in again.stdout


def test_the_command_refuses_to_keep_nothing(chain: Any) -> None:
    run = perform(chain, SEGMENTS)
    refused = chain.cli("prune", str(run.path), "--keep", "0", "--delete")
    assert refused.returncode == 2
    assert sets_left(run) == SEGMENTS
