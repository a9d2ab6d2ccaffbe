"""A search on the real cluster: preempted workers come back to their own trials, and nothing is lost or doubled."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hpctool.rundir import RunDir
from hpctool.search.journal import Journal
from hpctool.search.spec import read_spec
from tests.slurm.survive import Lab

pytestmark = pytest.mark.timeout(600)

#: Its loss is known; saves when it is told to stop, and goes on from there. Whoever takes a file `hold` away is in the
#: first of the two steps up to a rung for ten seconds more, and says where: later it might be about to be paused.
PROGRAM = """
import argparse, contextlib, os, pathlib, socket, time
import hpctool

def held():
    with contextlib.suppress(FileNotFoundError):
        os.rename("FOLDER/hold", "FOLDER/taken")
        pathlib.Path("FOLDER/held").write_text(socket.gethostname())
        return True

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
lr = parser.parse_args().lr
losses = []
job = hpctool.Preemptible()
job.register(losses=losses)
for step in job.steps(9):
    time.sleep(10 if step == 0 and held() else 0.1)
    losses.append((lr - 0.3) ** 2 + 1 / (step + 1))
    hpctool.report({"loss": losses[-1]}, step=step + 1)
"""
SEARCH = [
    *("run", "-m", "script=work.py", "params.lr=interval(0,1)", "search=asha", "search.sampler=random"),
    *("search.rungs=[2,4]", "search.metric=loss", "search.mode=min", "search.workers=4", "search.budget.max_trials=30"),
    *("cluster=slurm", "resources.time=8", "resources.cpus_per_task=8", "cluster.signal_delay_s=20"),
]


def test_asha_of_thirty_trials_survives_workers_that_are_preempted(cluster: Any) -> None:
    folder: Path = cluster.new_folder()
    (folder / "work.py").write_text(PROGRAM.replace("FOLDER", str(folder)))
    lab = Lab(cluster, folder)
    cluster.policy("REQUEUE", 30)
    answer = json.loads(lab.hpctool(*SEARCH, "--json").stdout)
    sweep = lab.runs / "sweeps" / answer["sweep"]
    jobs = answer["slurm_job_ids"]
    assert len(jobs) == 1, "one array of workers"

    def journal() -> Journal:
        found = Journal(sweep, read_spec(sweep))
        found.read()
        return found

    def wait_for(what: Any, timeout_s: float = 240.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not what(journal().state):
            said = cluster.as_root("squeue", "--array")
            assert time.monotonic() < end_s, f"{len(journal().state.trials)} trials\n{said}"
            # What was requeued would wait for two minutes.
            cluster.as_root("scontrol", "update", f"JobId={jobs[0]}", "StartTime=now", check=False)
            time.sleep(0.5)

    held = folder / "held"
    for number in (5, 10):
        wait_for(lambda state, number=number: len(state.trials) >= number)
        (folder / "hold").touch()
        wait_for(lambda _state: held.exists() and held.read_text())
        cluster.preempt(nodes=held.read_text(), seconds=2)
        held.unlink()
    wait_for(lambda state: state.stopped)

    found, state = journal(), journal().state
    assert state.stopped == "all 30 trials are made"
    assert sorted(state.trials) == list(range(30))
    assert {trial.state for trial in state.trials.values()} <= {"paused", "completed"}
    entries = [entry.body for entry in found.log.entries()]
    facts = Counter((b["op"], b["t"], b.get("rung")) for b in entries if b["op"] in ("propose", "rung", "end"))
    assert set(facts.values()) == {1}
    resumed = [body for body in entries if body.get("why") == "resume"]
    assert len(resumed) >= 2, "both were preempted in the middle of a trial"
    for body in resumed:
        # It came back to its own: the same slot had it before.
        holders = [b for b in entries if b.get("t") == body["t"] and b["op"] in ("propose", "claim")]
        assert holders[holders.index(body) - 1]["slot"] == body["slot"]
    for trial in state.trials.values():
        story = RunDir(lab.runs / trial.run).story()
        lr = trial.point["params.lr"]
        assert trial.values[0] == (lr - 0.3) ** 2 + 1 / 2
        assert story.of_kind("begun")[-1]["slurm_job_id"].startswith(f"{jobs[0]}_")
    verified = json.loads(lab.hpctool("sweep", "verify", answer["sweep"], "--json").stdout)
    assert (verified["num_proposals"], verified["different"], verified["broken"]) == (30, [], {})
    status = json.loads(lab.hpctool("sweep", "status", answer["sweep"], "--json").stdout)
    assert status["states"]["completed"] >= 1
    assert status["workers"] == {"completed": 4}


#: Says who has ended and how, into a file beside itself.
TELL = """#!/bin/sh
echo "$HPCTOOL_ALERT_RUN $HPCTOOL_ALERT_STATE: $HPCTOOL_ALERT_CAUSE" >> "$(dirname "$0")/told"
"""


def test_a_search_is_cancelled_and_resumed_with_more_workers_and_what_comes_after_it_waits(cluster: Any) -> None:
    folder: Path = cluster.new_folder()
    (folder / "work.py").write_text(PROGRAM.replace("FOLDER", str(folder)))
    (folder / "tell.sh").write_text(TELL)
    (folder / "tell.sh").chmod(0o755)
    lab = Lab(cluster, folder)
    alert = (f"cluster.alert.command=[{folder}/tell.sh]", "cluster.alert.when=[completed,cancelled]")
    answer = json.loads(lab.hpctool(*SEARCH, "search.workers=2", *alert, "--json").stdout)
    search = answer["sweep"]
    # One after each of as many workers would begin too early.
    later = ("run", "-m", "script=work.py", "params.lr=0.1,0.2", f"after={search}", "cluster=slurm", "resources.time=5")
    runs = [RunDir(lab.runs / one) for one in json.loads(lab.hpctool(*later, "--json").stdout)["runs"]]

    def told(state: str) -> str:
        end_s = time.monotonic() + 120
        lines: list[str] = []
        while not any(line.startswith(f"{search} {state}: ") for line in lines):
            assert time.monotonic() < end_s, f"{lines}\n{cluster.as_root('squeue', '--array')}"
            time.sleep(0.5)
            lines = (folder / "told").read_text().splitlines() if (folder / "told").exists() else []
        return next(line for line in lines if line.startswith(f"{search} {state}: "))

    journal = Journal(lab.runs / "sweeps" / search, read_spec(lab.runs / "sweeps" / search))
    end_s = time.monotonic() + 120
    while len(journal.read().trials) < 3:
        assert time.monotonic() < end_s, cluster.as_root("squeue", "--array")
        time.sleep(0.2)
    lab.hpctool("sweep", "cancel", search)
    assert "cancelled by" in told("cancelled")
    lab.hpctool("sweep", "resume", search, "--workers", "4", "--max-trials", "8")
    assert "all 8 trials are made; 8 trials, best loss" in told("completed")
    for run in runs:
        story = lab.until(run, lambda story: story.state == "completed")
        ended = [RunDir(lab.runs / one).story().of_kind("ended")[-1] for one in workers(lab, search)]
        assert story.of_kind("begun")[0]["time"] > max(body["time"] for body in ended)
    status = json.loads(lab.hpctool("sweep", "status", search, "--json").stdout)
    assert (status["workers"], status["trials"]) == ({"completed": 4}, 8)
    assert len((folder / "told").read_text().splitlines()) == 2, "one alert for each end"


def workers(lab: Lab, search: str) -> list[str]:
    body = json.loads((lab.runs / "sweeps" / search / "sweep.json").read_text())
    return [cell["run"] for cell in body["cells"]]
