"""One job for a run, on the real cluster: typed twice, an answer lost, a cancel that did not arrive, a late start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpctool.errors import EXIT_FAILED
from hpctool.rundir import RunDir
from tests.slurm.survive import Lab

HPCTOOL = (sys.executable, "-m", "hpctool.cli.main")
ASKED = ("script=wait.sh", "cluster=slurm", "resources.time=10", "cluster.signal_delay_s=20")
HELD = "+cluster.extra={hold: null}"

#: Slurm has the job, and whoever asked is not told.
DEAF = """#!/bin/sh
PATH=${PATH#*:} sbatch "$@" >/dev/null
echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
exit 1
"""

#: The rank of a job's first start stops itself in Python's first import, long before its attempt begins.
FREEZES = """
import os, signal
from pathlib import Path
if "SLURM_STEP_ID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ and not Path("{told}").exists():
    Path("{told}.new").write_text(str(os.getpid()))
    os.rename("{told}.new", "{told}")
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def lab(cluster: Any) -> Lab:
    """A project of the ordinary user's with a program that waits for the file `go`."""
    folder = cluster.new_folder()
    (folder / "wait.sh").write_text(f"#!/bin/sh\nwhile [ ! -e {folder}/go ]; do sleep 0.2; done\n")
    (folder / "wait.sh").chmod(0o755)
    return Lab(cluster, folder)


def ask(lab: Lab, *more: str) -> RunDir:
    done = lab.hpctool("run", *ASKED, *more, "--json")
    return RunDir(lab.runs / json.loads(done.stdout)["runs"][0])


def the_run(lab: Lab) -> RunDir:
    (found,) = lab.runs.glob("*/run.json")
    return RunDir(found.parent)


def num_jobs(lab: Lab) -> int:
    """How many jobs of this project Slurm has in its queue; an array is one."""
    listed = lab.cluster.run("squeue", "--me", "--noheader", "--array", "--format=%F|%o").stdout.splitlines()
    return len({line.partition("|")[0] for line in listed if str(lab.runs) in line})


def finish(lab: Lab, run: RunDir) -> None:
    (lab.folder / "go").touch()
    assert lab.until_ended(run, attempts=1).state == "completed"


@pytest.mark.parametrize("words", [["run"], ["run", "-m", "args=[0],[1]"]])
def test_a_command_typed_twice_at_once_makes_one_job(lab: Lab, words: list[str]) -> None:
    both = [lab.cluster.popen(*HPCTOOL, *words, *ASKED, HELD, cwd=lab.folder) for _ in range(2)]
    said = [one.communicate(timeout=60)[1] for one in both]
    assert sorted(one.returncode for one in both) in ([0, 0], [0, EXIT_FAILED]), said
    assert "Traceback" not in "".join(said)
    assert num_jobs(lab) == 1, said


def test_a_submission_whose_answer_was_lost_is_found_and_not_made_again(lab: Lab) -> None:
    folder = lab.folder / "deaf"
    folder.mkdir(mode=0o755)
    (folder / "sbatch").write_text(DEAF)
    (folder / "sbatch").chmod(0o755)
    deaf = {"PATH": f"{folder}:{lab.cluster.environment()['PATH']}"}
    done = lab.cluster.run(*HPCTOOL, "run", *ASKED, HELD, cwd=lab.folder, env=deaf, check=False)
    assert (done.returncode, num_jobs(lab)) == (EXIT_FAILED, 1)
    assert "timed out" in done.stderr
    assert "Traceback" not in done.stderr
    run = ask(lab, HELD)
    assert (num_jobs(lab), run.story().state, run.id) == (1, "queued", the_run(lab).id)
    lab.cluster.scontrol("release", run.story().slurm_job_id)
    finish(lab, run)


def test_a_job_that_a_cancel_did_not_reach_begins_and_leaves_the_run_cancelled(lab: Lab) -> None:
    run = ask(lab, HELD)
    job_id = run.story().slurm_job_id
    lab.cluster.stop_controller()
    try:
        done = lab.hpctool("runs", "cancel", run.id, check=False)
    finally:
        lab.cluster.start_controller()
    assert done.returncode == EXIT_FAILED
    assert "Unable to contact slurm controller" in done.stderr
    lab.cluster.scontrol("release", job_id)
    assert lab.cluster.wait_state(job_id, {"CANCELLED", "FAILED", "COMPLETED"}) != "COMPLETED"
    story = run.story()
    assert (story.state, story.of_kind("begun")) == ("cancelled", [])
    assert lab.cluster.job(job_id)["Restarts"] == "0"


def test_a_start_that_freezes_on_a_lost_node_and_wakes_up_later_leaves_the_run_to_the_one_that_runs(lab: Lab) -> None:
    told = lab.folder / "frozen"
    (lab.folder / "sitecustomize.py").write_text(FREEZES.format(told=told))
    run = ask(lab, f"cluster.setup=['export PYTHONPATH={lab.folder}']")
    pid = int(read_when_there(told))
    node = lab.cluster.job(run.story().slurm_job_id)["NodeList"]
    lab.cluster.fail(node, now=True)
    story = lab.until(run, lambda story: story.attempt == 1, hurry=True)
    assert story.of_kind("begun")[0]["restart_count"] == 1
    os.kill(pid, signal.SIGCONT)
    deadline_s = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s, subprocess.run(["ps", "-fp", str(pid)], capture_output=True).stdout
        time.sleep(0.1)
    assert (run.story().state, len(run.story().of_kind("begun"))) == ("running", 1)
    finish(lab, run)


def read_when_there(path: Path) -> str:
    deadline_s = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline_s, f"{path} does not appear"
        time.sleep(0.1)
    return path.read_text()
