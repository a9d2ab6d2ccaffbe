"""Bad input is refused before submission with what exists, and the doctor tells the truth about the real cluster."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from hpctool import config
from hpctool.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT

HELLO = "import os\nprint('hello', flush=True)\n"


class Desk:
    """The ordinary user in a project folder with a small program."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        (folder / "hello.py").write_text(HELLO)

    def hpctool(self, *words: str) -> Any:
        command = [sys.executable, "-m", "hpctool.cli.main", *words]
        return self.cluster.run(*command, cwd=self.folder, check=False)

    def submit(self, *words: str) -> Any:
        limits = ("resources.time=10", "cluster.signal_delay_s=20")
        return self.hpctool("run", "script=hello.py", "cluster=slurm", *limits, *words)

    def doctor(self, *words: str) -> dict[str, Any]:
        done = self.hpctool("doctor", "--json", *words)
        assert done.returncode == EXIT_DONE, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        told["text"] = " ".join(one["text"] for found in told["sections"].values() for one in found)
        return told


@pytest.fixture
def desk(cluster: Any, user_folder: Path) -> Desk:
    return Desk(cluster, user_folder)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("cluster.partition=bacth", ["There is no partition 'bacth'", "batch, urgent", "Did you mean batch"]),
        ("cluster.account=nobody", ["no account of yours 'nobody'", "lab"]),
        ("cluster.qos=gold", ["There is no QOS 'gold'", "normal, short"]),
        ("resources.nodes=5", ["5 are asked for", "has 4"]),
        ("resources.gpus_per_node=a100:1", ["no gpu:a100", "gpu:2"]),
        ("resources.time=2-00:00:00", ["longer than partition 'batch' allows", "1-00:00:00"]),
        ("cluster.qos=short resources.time=11", ["longer than QOS 'short' allows", "0:10:00"]),
        ("resources.time=0:15", ["not longer than cluster.signal_delay_s=20"]),
    ],
)
def test_what_the_cluster_cannot_run_is_refused_before_submission(desk: Desk, asked: str, words: list[str]) -> None:
    done = desk.submit(*asked.split(" "))
    assert done.returncode == EXIT_INPUT
    [sentence] = done.stderr.splitlines()
    for word in words:
        assert word in sentence
    assert not (desk.folder / "runs").exists()
    assert desk.cluster.as_root("squeue", "--noheader") == ""


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("cluster.reservation=course", "Requested reservation is invalid"),
        ("resources.licenses=matlab:1", "Invalid license specification"),
    ],
)
def test_what_sbatch_refuses_is_passed_on_in_one_sentence_with_the_scripts_path(
    desk: Desk, asked: str, reason: str
) -> None:
    done = desk.submit(asked)
    assert done.returncode == EXIT_FAILED
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    [script] = re.findall(r"The script is (\S+)\.$", done.stderr.strip())
    assert "#SBATCH" in Path(script).read_text()


def test_all_that_can_be_asked_for_reaches_slurm_as_it_was_said(desk: Desk) -> None:
    comment = """it's "mine"; $(touch /tmp/hpctool-pwned) #1"""
    done = desk.submit(
        *(
            f"cluster.comment='{comment.replace(chr(39), chr(92) + chr(39))}'",
            "cluster.qos=short",
            "cluster.account=lab",
        ),
        *("resources.time=9", "resources.licenses=solver:1", "resources.mem_per_cpu_gb=0.5", "cluster.nodelist=n3"),
        *("cluster.constraint='old|new'", "+cluster.extra={deadline: now+1hour}", "cluster.partition='urgent,batch'"),
        *("cluster.teardown=[touch torn-down]", "resources.exclusive=true"),
    )
    assert done.returncode == EXIT_DONE, done.stderr
    job_id = re.findall(r"Slurm job (\d+)", done.stderr)[0]
    job = desk.cluster.job(job_id)
    assert job["Comment"] == comment
    assert (job["QOS"], job["Account"], job["Licenses"], job["TimeLimit"]) == ("short", "lab", "solver:1", "00:09:00")
    assert job["MinMemoryCPU"] == "512M"
    assert job["ReqNodeList"] == "n3"
    desk.cluster.wait_state(job_id, "COMPLETED")
    assert not Path("/tmp/hpctool-pwned").exists()


def test_a_read_only_folder_is_refused_and_nothing_submitted(desk: Desk) -> None:
    (desk.folder / "closed").mkdir(mode=0o555)
    done = desk.submit(f"paths.runs={desk.folder}/closed/runs")
    assert done.returncode == EXIT_INPUT
    assert "cannot be written to (Permission denied). Nothing was submitted." in done.stderr
    assert desk.cluster.as_root("squeue", "--noheader") == ""


def test_a_full_folder_is_refused_and_nothing_submitted(desk: Desk) -> None:
    command = f"ulimit -f 4; exec {sys.executable} -m hpctool.cli.main run script=hello.py cluster=slurm"
    done = desk.cluster.run("bash", "-c", command, cwd=desk.folder, check=False)
    assert done.returncode == EXIT_INPUT
    assert "cannot be written to (File too large). Nothing was submitted." in done.stderr
    assert not (desk.folder / "runs").exists()


def test_while_the_controller_is_down_a_submission_ends_with_a_sentence(desk: Desk) -> None:
    desk.cluster.stop_controller()
    try:
        done = desk.submit()
    finally:
        desk.cluster.start_controller()
    assert done.returncode == EXIT_FAILED
    assert "sbatch judges" in done.stderr
    assert "The submission was refused: Batch job submission failed: Unable to contact slurm controller" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_knows_how_this_cluster_stops_jobs(desk: Desk) -> None:
    text = desk.doctor()["text"]
    assert "told by the signal SIGTERM, and killed 15 s later (10 s of GraceTime and 5 s of KillWait)" in text
    assert "Slurm puts it back into the queue" in text
    assert "up to 1,001 tasks" in text
    assert "lab (unless you name another)" in text
    assert "pmix" in desk.doctor()["mpi_plugins"]
    desk.cluster.policy("CANCEL", 0, "on")
    desk.cluster.limits(max_array_size=51, max_submit_jobs=7, job_requeue=False)
    text = desk.doctor()["text"]
    assert "told by the signal SIGUSR2, and killed 5 s later (KillWait; no GraceTime)" in text
    assert "hpctool puts it back into the queue by itself" in text
    assert "up to 51 tasks" in text
    assert "7 jobs in the queue at once" in text
    assert "JobRequeue=0" in text
    desk.cluster.limits(accounting="off")
    assert "no slurmdbd" in desk.doctor()["text"]


def test_two_nodes_prove_what_jobs_need_and_the_site_file_composes(desk: Desk) -> None:
    done = desk.hpctool("doctor", "--probe", "--write", "conf/cluster/toy.yaml")
    assert done.returncode == EXIT_DONE, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    words = " ".join(done.stdout.split())
    for said in (
        "n1 and n2 see what each other and this machine write",
        "Of nodes that create the same name at once, one wins",
        "scontrol is there",
        "jobs import what is installed here",
        "The clocks of n1 and n2 agree",
        "eth0",
    ):
        assert said in words
    assert "CHANGE" not in done.stdout
    assert not list((desk.folder / "runs").glob(".doctor-*"))
    whole = config.compose("run", ["cluster=toy"], [desk.folder / "conf"]).cfg
    assert (whole.cluster.kind, whole.cluster.partition) == ("slurm", "batch")
    planned = desk.hpctool("run", "script=hello.py", "--config-dir", "conf", "cluster=toy", "--dry-run")
    assert "#SBATCH --partition=batch" in planned.stdout, planned.stderr


def test_a_probe_whose_nodes_lack_what_jobs_need_fails_and_says_what_to_do(desk: Desk) -> None:
    done = desk.hpctool("doctor", "--probe", "cluster.setup=[exec nosuchprogram]")
    assert done.returncode == EXIT_FAILED
    words = " ".join(done.stdout.split())
    assert "The probe failed: it ended as FAILED (NonZeroExitCode). Its last words:" in words
    assert "nosuchprogram: not found" in words
    assert "cluster.setup" in words


def test_a_probe_that_waits_too_long_is_given_up(desk: Desk) -> None:
    blocker = desk.cluster.preempt(seconds=60)
    desk.cluster.wait_state(blocker, "RUNNING")
    done = desk.hpctool("doctor", "--probe", "--probe-min", "0.1")
    assert done.returncode == EXIT_FAILED
    assert "it was still in the queue" in " ".join(done.stdout.split())
    queue = desk.cluster.as_root("squeue", "--noheader", f"--user={desk.cluster.user}", "--states=PENDING,RUNNING")
    assert queue == ""
