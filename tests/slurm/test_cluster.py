"""The throwaway cluster is what it claims to be: the tests beside this one build on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import NODES, SCRIPT, Cluster


def lines(text: str) -> list[str]:
    return sorted(text.splitlines())


def test_four_nodes_are_hosts_of_their_own(cluster: Cluster) -> None:
    assert {node: cluster.node_state(node) for node in NODES} == dict.fromkeys(NODES, "idle")
    told = 'echo "$(hostname) $(getent hosts $(hostname) | cut -d" " -f1)"; touch /var/tmp/$(hostname); ls /var/tmp'
    shown = cluster.run("srun", "--nodes=4", "bash", "-c", told).stdout.split()
    addresses = {word for word in shown if word.startswith("10.")}
    assert sorted(set(shown) - addresses) == list(NODES)
    assert len(addresses) == 4
    # Each node saw its own file in its own scratch, and no other's.
    assert all(shown.count(node) == 2 for node in NODES)


def test_a_job_is_the_ordinary_user_who_can_import_this_checkout(cluster: Cluster, user_folder: Path) -> None:
    code = "import os, hpctool; print(os.getuid() == os.stat('.').st_uid, hpctool.__file__)"
    shown = cluster.run("srun", sys.executable, "-c", code, cwd=user_folder).stdout.split()
    assert shown == ["True", str(SCRIPT.parent.parent / "hpctool" / "__init__.py")]
    assert user_folder.stat().st_mode & 0o777 == 0o700
    assert user_folder.stat().st_uid != 0


@pytest.mark.parametrize("asked", ["--gpus-per-node=2", "--gres=gpu:2", "--gpus=4"])
def test_jobs_are_given_gpus(cluster: Cluster, asked: str) -> None:
    told = "echo $(hostname) $CUDA_VISIBLE_DEVICES"
    shown = cluster.run("srun", "--nodes=2", asked, "bash", "-c", told).stdout
    assert lines(shown) == ["n1 0,1", "n2 0,1"]


def test_nodes_reach_each_other_by_name(cluster: Cluster, user_folder: Path) -> None:
    (user_folder / "meet.py").write_text(
        "import os, socket\n"
        "if os.environ['SLURM_PROCID'] == '0':\n"
        "    with socket.create_server(('n1', 29500)) as server:\n"
        "        open('ready', 'w').close()\n"
        "        print(server.accept()[0].recv(9).decode(), flush=True)\n"
        "else:\n"
        "    while not os.path.exists('ready'): pass\n"
        "    with socket.create_connection(('n1', 29500)) as other:\n"
        "        other.send(socket.gethostname().encode())\n"
    )
    shown = cluster.run("srun", "--nodelist=n1,n2", sys.executable, "meet.py", cwd=user_folder)
    assert shown.stdout == "n2\n"


@pytest.mark.mpi
def test_mpi_ranks_of_two_nodes_sum(cluster: Cluster) -> None:
    code = "from mpi4py import MPI; w = MPI.COMM_WORLD; print(w.allreduce(w.rank), w.size, MPI.Get_processor_name())"
    command = ("srun", "--mpi=pmix", "--nodes=2", "--ntasks-per-node=2", sys.executable, "-c", code)
    assert lines(cluster.run(*command).stdout) == ["6 4 n1", "6 4 n1", "6 4 n2", "6 4 n2"]


def test_a_preempted_job_is_requeued_and_runs_again(cluster: Cluster, user_folder: Path) -> None:
    cluster.policy("REQUEUE", grace_s=0)
    told = "echo start ${SLURM_RESTART_COUNT:-0} >> starts; sleep 60"
    job = cluster.sbatch("--requeue", "--nodes=2", wrap=told, cwd=user_folder)
    wait_for(user_folder / "starts")
    urgent = cluster.preempt(seconds=1)
    cluster.wait_state(urgent, "COMPLETED")
    cluster.start_now(job)
    cluster.wait_state(job, "RUNNING")
    assert cluster.job(job)["Restarts"] == "1"
    wait_until(lambda: (user_folder / "starts").read_text() == "start 0\nstart 1\n")


def test_a_preempted_job_is_cancelled_where_that_is_the_policy(cluster: Cluster) -> None:
    cluster.policy("CANCEL", grace_s=0)
    job = cluster.sbatch("--nodes=1", wrap="sleep 60")
    cluster.wait_state(job, "RUNNING")
    cluster.preempt(seconds=1)
    cluster.wait_state(job, "PREEMPTED")


@pytest.mark.parametrize("signal", ["on", "off"])
def test_the_user_signal_comes_at_preemption_where_the_site_says_so(
    cluster: Cluster, user_folder: Path, signal: str
) -> None:
    cluster.policy("REQUEUE", 10, user_signal="on" if signal == "on" else "off")
    traps = "".join(f"trap 'echo {name} >> got; exit' {name}; " for name in ("USR2", "TERM"))
    step = f"{traps} touch ready; while :; do sleep .1; done"
    job = cluster.sbatch("--signal=USR2@60", wrap=f'srun bash -c "{step}"', cwd=user_folder)
    cluster.wait_state(job, "RUNNING")
    wait_for(user_folder / "ready")
    cluster.preempt(seconds=1)
    wait_for(user_folder / "got")
    assert (user_folder / "got").read_text() == ("USR2\n" if signal == "on" else "TERM\n")


def wait_for(path: Path) -> None:
    wait_until(path.exists)


def wait_until(true: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_node_that_is_cut_off_is_lost_and_comes_back(cluster: Cluster, user_folder: Path) -> None:
    job = cluster.sbatch(
        "--requeue", "--nodelist=n1", wrap="while :; do date >> alive; sleep .2; done", cwd=user_folder
    )
    cluster.wait_state(job, "RUNNING")
    wait_for(user_folder / "alive")
    cluster.fail("n1", now=True)
    cluster.wait_node("n1", "down")
    assert cluster.wait_state(job, "PENDING") == "PENDING"
    # Slurm has given the job up; what runs on the other side of the cut does not know.
    size = (user_folder / "alive").stat().st_size
    time.sleep(1)
    assert (user_folder / "alive").stat().st_size > size
    cluster.heal("n1")
    # Once Slurm can reach it, it ends what should not run there.
    wait_until(lambda: cluster.node_state("n1") == "idle")
    size = (user_folder / "alive").stat().st_size
    time.sleep(1)
    assert (user_folder / "alive").stat().st_size == size


def test_slurm_notices_by_itself_that_a_node_is_gone(cluster: Cluster) -> None:
    cluster.fail("n4")
    cluster.wait_node("n4", "down")
    cluster.heal("n4")


def test_a_restarted_controller_loses_no_job(cluster: Cluster, user_folder: Path) -> None:
    running = cluster.sbatch("--nodelist=n2", wrap="sleep 4; echo done > result", cwd=user_folder)
    waiting = cluster.sbatch("--hold", wrap="true")
    cluster.wait_state(running, "RUNNING")
    cluster.restart_controller()
    assert cluster.state(waiting) == "PENDING"
    cluster.wait_state(running, "COMPLETED")
    assert (user_folder / "result").read_text() == "done\n"
    cluster.stop_controller()
    assert "is DOWN" in cluster.run("scontrol", "ping", check=False).stdout
    cluster.start_controller()
    assert cluster.state(waiting) == "PENDING"


def test_a_step_over_its_memory_is_killed(cluster: Cluster, user_folder: Path) -> None:
    code = "import time; held = bytearray(300_000_000); time.sleep(60)"
    job = cluster.sbatch("--mem=100M", wrap=f"srun {sys.executable} -c '{code}'; exit $?", cwd=user_folder)
    cluster.wait_state(job, "FAILED")
    assert cluster.job(job)["ExitCode"] == "137:0"
    assert "Exceeded job memory limit" in (user_folder / f"slurm-{job}.out").read_text()


def test_accounting_answers(cluster: Cluster) -> None:
    job = cluster.sbatch("--qos=short", "--time=5", wrap="exit 3")
    cluster.wait_state(job, "FAILED")
    asked = ("sacct", "-X", "--noheader", "--parsable2", f"--jobs={job}", "--format=account,qos,state,exitcode")
    wait_until(lambda: cluster.run(*asked).stdout.strip() == "lab|short|FAILED|3:0")


def test_limits_are_limits(cluster: Cluster) -> None:
    cluster.limits(max_array_size=4, max_submit_jobs=3)
    refused = cluster.run("sbatch", "--array=0-4", "--wrap=true", check=False)
    assert "Invalid job array specification" in refused.stderr
    cluster.sbatch("--hold", "--array=0-2", wrap="true")
    refused = cluster.run("sbatch", "--hold", "--wrap=true", check=False)
    assert "AssocMaxSubmitJobLimit" in refused.stderr
    cluster.limits(max_submit_jobs=0)
    cluster.sbatch("--hold", wrap="true")


def test_jobs_are_not_requeued_where_the_site_forbids_it(cluster: Cluster) -> None:
    cluster.limits(job_requeue=False)
    silent = cluster.sbatch("--hold", wrap="true")
    asked = cluster.sbatch("--hold", "--requeue", wrap="true")
    assert [cluster.job(job)["Requeue"] for job in (silent, asked)] == ["0", "1"]


def test_without_accounting_sacct_says_so(cluster: Cluster) -> None:
    cluster.limits(accounting="off")
    assert "disabled" in cluster.run("sacct", check=False).stderr
    cluster.wait_state(cluster.sbatch(wrap="true"), "COMPLETED")
    cluster.reset()
    assert cluster.run("sacct", check=False).stderr == ""


def test_a_second_cluster_stands_beside_the_first_and_none_beside_a_real_one(cluster: Cluster, tmp_path: Path) -> None:
    second = Path(f"/tmp/hpctool-cluster-beside-{os.getpid()}")

    def do(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), f"--folder={second}", *words]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})

    refused = do("up", SLURM_CONF="/etc/other/slurm.conf")
    assert refused.returncode == 2
    assert "SLURM_CONF names another Slurm: /etc/other/slurm.conf" in refused.stderr
    real = shutil.copy(str(shutil.which("sleep")), tmp_path / "slurmd")
    with subprocess.Popen([real, "60"]) as process:
        refused = do("up")
        process.kill()
    assert f"Another Slurm runs here: slurmd is process {process.pid}." in refused.stderr
    assert not second.exists()

    first_job = cluster.sbatch("--nodelist=n1", wrap="sleep 600")
    cluster.wait_state(first_job, "RUNNING")
    try:
        made = do("up", "--no-accounting", f"--readable={sys.prefix}")
        assert made.returncode == 0, made.stderr
        told = json.loads(do("status", "--json").stdout)
        assert told["nodes"] == dict.fromkeys(NODES, "idle")
        assert told["user"] != cluster.user
        hosts = do("run-as-user", "srun", "--nodes=4", "hostname")
        assert lines(hosts.stdout) == list(NODES), hosts.stderr
    finally:
        ended = do("down")
    assert ended.returncode == 0, ended.stderr
    assert not second.exists()
    assert cluster.state(first_job) == "RUNNING"
    assert lines(cluster.run("srun", "--nodes=4", "hostname").stdout) == list(NODES)


def test_status_tells_people_and_programs(cluster: Cluster, tmp_path: Path) -> None:
    status = json.loads(cluster.change("status", "--json"))
    assert status["nodes"] == dict.fromkeys(NODES, "idle")
    assert "controller  answers" in cluster.change("status")
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path / "none"), "status"]
    assert subprocess.run(command, capture_output=True).returncode == 3


def test_an_ordinary_user_is_told_that_root_is_needed(cluster: Cluster) -> None:
    refused = cluster.run(sys.executable, SCRIPT, f"--folder={cluster.folder}", "down", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "root" in refused.stderr
    assert shutil.which("sinfo")
    assert cluster.run("sinfo", "--noheader").stdout
