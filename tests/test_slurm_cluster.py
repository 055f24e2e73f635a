"""The private Slurm itself: if these fail, no other Slurm test can be believed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slurm_cluster as module
from slurm_cluster import SlurmCluster
from waiting import wait_for


def submit(slurm: SlurmCluster, command: str, *options: str) -> str:
    return slurm.run(
        "sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={command}"
    ).strip()


def states(slurm: SlurmCluster) -> dict[str, str]:
    return {job.job_id: job.state for job in slurm.wait_idle()}


def test_a_job_runs_in_a_folder_with_a_space_and_a_quote(
    slurm: SlurmCluster, awkward_dir: Path
) -> None:
    job_id = submit(slurm, "pwd > where", f"--chdir={awkward_dir}")
    assert states(slurm)[job_id] == "COMPLETED"
    assert (awkward_dir / "where").read_text().strip() == str(awkward_dir)


def test_a_job_finds_the_cluster_it_runs_in_even_without_the_callers_environment(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    job_id = submit(slurm, "sinfo -h -o %R | sort > seen", "--export=NONE", f"--chdir={tmp_path}")
    assert states(slurm)[job_id] == "COMPLETED"
    assert (tmp_path / "seen").read_text().split() == ["express", "normal"]


def test_three_nodes_share_the_work(slurm: SlurmCluster, tmp_path: Path) -> None:
    job_id = submit(
        slurm,
        "echo $SLURMD_NODENAME > $SLURM_ARRAY_TASK_ID; sleep 2",
        "--array=1-3",
        f"--cpus-per-task={module.CPUS_PER_NODE}",
        f"--chdir={tmp_path}",
    )
    assert {states(slurm)[f"{job_id}_{task}"] for task in (1, 2, 3)} == {"COMPLETED"}
    nodes = {(tmp_path / task).read_text().strip() for task in ("1", "2", "3")}
    assert nodes == {"node1", "node2", "node3"}


def test_aftercorr_holds_back_only_the_task_whose_predecessor_failed(slurm: SlurmCluster) -> None:
    first = submit(slurm, "[ $SLURM_ARRAY_TASK_ID != 2 ]", "--array=1-3")
    second = submit(
        slurm,
        "true",
        "--array=1-3",
        f"--dependency=aftercorr:{first}",
        "--kill-on-invalid-dep=yes",
    )
    ended = states(slurm)
    assert [ended[f"{first}_{task}"] for task in (1, 2, 3)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [ended[f"{second}_{task}"] for task in (1, 2, 3)] == [
        "COMPLETED",
        "CANCELLED",
        "COMPLETED",
    ]


def test_a_comment_is_listed_beside_its_job(slurm: SlurmCluster) -> None:
    job_id = submit(slurm, "true", "--comment=token-4711|more")
    slurm.wait_idle()
    listed = slurm.run("squeue", "-h", "-t", "all", "-o", "%i|%k").splitlines()
    assert f"{job_id}|token-4711|more" in listed
    assert [job.comment for job in slurm.jobs() if job.job_id == job_id] == ["token-4711|more"]


def test_an_array_index_over_the_limit_is_refused(slurm: SlurmCluster) -> None:
    with pytest.raises(RuntimeError, match="Invalid job array specification"):
        submit(slurm, "true", f"--array={module.MAX_ARRAY_SIZE}")


def test_a_controller_that_is_down_cannot_be_contacted_and_comes_back(slurm: SlurmCluster) -> None:
    job_id = submit(slurm, "sleep 300")
    with (
        slurm.controller_down(),
        pytest.raises(RuntimeError, match="Unable to contact slurm controller"),
    ):
        slurm.jobs()
    assert [job.is_active for job in slurm.jobs() if job.job_id == job_id] == [True]
    slurm.cancel_all()
    assert states(slurm)[job_id] == "CANCELLED"


@pytest.mark.parametrize("with_jobs", [True, False], ids=["crashed", "unreachable"])
def test_a_lost_node_ends_its_jobs_or_lets_them_run_on_and_comes_back(
    slurm: SlurmCluster, tmp_path: Path, with_jobs: bool
) -> None:
    command = f"echo $$ >> {tmp_path}/pids; sleep 600"
    job_id = submit(slurm, command, "--requeue", "--nodelist=node2")
    wait_for(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
    pid = int((tmp_path / "pids").read_text())
    assert slurm.node_of(job_id) == "node2"
    with slurm.node_lost("node2", with_jobs=with_jobs):
        # Slurm puts the job back into its queue, and holds it there for two minutes.
        wait_for(lambda: "PENDING" in {job.state for job in slurm.jobs() if job.job_id == job_id})
        assert is_alive(pid) is not with_jobs
    assert {job.state for job in slurm.jobs() if job.job_id == job_id} == {"PENDING"}
    # A node that comes back ends what is not its own any more.
    wait_for(lambda: not is_alive(pid))


def test_a_forgotten_job_leaves_no_trace_and_its_id_is_not_given_again(slurm: SlurmCluster) -> None:
    old = submit(slurm, "true")
    slurm.wait_idle()
    slurm.forget_jobs()
    assert slurm.jobs() == []
    assert int(submit(slurm, "true")) > int(old) + 1


@pytest.mark.slurm
def test_nothing_is_left_running_when_the_test_process_is_killed(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    # slurm_cluster is asked for only so that this test skips where no Slurm can run.
    program = (
        "import slurm_cluster, time\n"
        "cluster = slurm_cluster.start_cluster()\n"
        "cluster.run('sbatch', '-o', '/dev/null', '--wrap', f'setsid sleep 300 & echo $! >"
        f" {tmp_path}/pid; wait')\n"
        "print(cluster.root, flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        root = Path(process.stdout.readline().strip())
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not root.exists())
    wait_for(lambda: not is_alive(pid))


@pytest.mark.slurm
def test_people_start_it_find_it_and_stop_it(
    slurm_cluster: SlurmCluster, project_root: Path
) -> None:
    script = str(project_root / "scripts" / "slurm-here")
    folder = slurm_cluster.root.with_name(f"{slurm_cluster.root.name}-people")
    started = subprocess.run(
        [script, "start", str(folder)], capture_output=True, text=True, timeout=300
    )
    try:
        assert (started.returncode, started.stderr) == (0, "")
        assert started.stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
        command = f'eval "$({shlex.quote(script)} start {folder})"; sinfo -h -p normal -o %D'
        again = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
        assert again.stdout.split() == ["3"]
    finally:
        stopped = subprocess.run(
            [script, "stop", str(folder)], capture_output=True, text=True, timeout=300
        )
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert not folder.exists()


def test_a_folder_slurm_cannot_use_is_refused_with_the_reason(
    slurm_cluster: SlurmCluster, awkward_dir: Path
) -> None:
    assert slurm_cluster.root.exists()
    answer = subprocess.run(
        [sys.executable, module.__file__, "start", str(awkward_dir)], capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "plain characters, no spaces" in answer.stderr


def test_without_the_binaries_the_reason_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BINARIES", ("no-such-daemon",))
    with pytest.raises(module.SlurmUnavailableError, match=r"no-such-daemon .*apt-get install"):
        module._Supervisor(tmp_path).start()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
