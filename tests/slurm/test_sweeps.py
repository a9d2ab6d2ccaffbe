"""Sweeps and chains on the real cluster: limits, claims, shared allocations, cancelling, and cell after cell."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpctool.rundir import RunDir
from tests.slurm.survive import Lab

pytestmark = pytest.mark.timeout(300)

#: Takes its time, saves by its own means when it is told to stop, goes on from there, and fails if it is told to. While
#: there is a file `hold`, nothing ends: how long anything takes before is the machine's affair.
WORK = """
import json, os, signal, sys, time
path = os.path.join(os.environ["HPCTOOL_RUN"], "artifacts", "steps")
done = int(open(path).read()) if os.path.exists(path) else 0
told = []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
open("begun", "a").write(f"{sys.argv[2]} {done}\\n")
while done < 10 * float(sys.argv[1]) or os.path.exists("hold"):
    time.sleep(0.1)
    done += 1
    if told:
        open(path, "w").write(str(done))
        sys.exit(75)
if sys.argv[2] == "bad" and not os.path.exists("repaired"):
    sys.exit(3)
"""
SHORT = ("cluster=slurm", "resources.time=5", "cluster.signal_delay_s=30", "script=work.py")


class Sweeps:
    """A project of the ordinary user's, and what they type there."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def submit(self, *words: str, job: str = "run", common: tuple[str, ...] = SHORT) -> dict[str, Any]:
        """Submit and give what --json says."""
        answer: dict[str, Any] = json.loads(self.lab.hpctool(job, "-m", *common, *words, "--json").stdout)
        return answer

    def states(self, answer: dict[str, Any]) -> list[str]:
        found = json.loads(self.lab.hpctool("sweep", "status", answer["sweep"], "--json").stdout)
        return [row["state"] for row in found["rows"]]

    def until(
        self, answer: dict[str, Any], what: Callable[[list[str]], bool], timeout_s: float = 90.0, requeued: bool = False
    ) -> list[str]:
        """Wait until the cells stand so; what waits because it was requeued is started at once."""
        deadline_s = time.monotonic() + timeout_s
        while not what(states := self.states(answer)):
            assert time.monotonic() < deadline_s, f"{states}\n{self.lab.cluster.as_root('squeue', '--array')}"
            for job in answer["slurm_job_ids"] if requeued else ():
                self.lab.cluster.as_root("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.5)
        return states

    def until_over(self, answer: dict[str, Any], timeout_s: float = 90.0, requeued: bool = False) -> list[str]:
        ended = {"completed", "failed", "cancelled"}
        return self.until(answer, lambda states: set(states) <= ended, timeout_s, requeued)

    def runs(self, answer: dict[str, Any]) -> list[RunDir]:
        return [RunDir(self.lab.runs / run_id) for run_id in answer["runs"]]

    def begun(self) -> list[str]:
        """What programs were started with, and how far they were: `name steps`."""
        path = self.lab.folder / "begun"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def sweeps(cluster: Any) -> Sweeps:
    folder: Path = cluster.new_folder()
    (folder / "work.py").write_text(WORK)
    return Sweeps(Lab(cluster, folder))


def most_at_once(runs: list[RunDir]) -> int:
    """How many runs were under way at the same time, by their ledgers."""
    moments: list[tuple[str, int]] = []
    for run in runs:
        story = run.story()
        moments += [(body["time"], 1) for body in story.of_kind("begun")]
        moments += [(body["time"], -1) for body in story.of_kind("ended")]
    count = most = 0
    for _, change in sorted(moments):
        count += change
        most = max(most, count)
    return most


def args(*cells: str) -> str:
    return f"args={','.join(f'[{cell}]' for cell in cells)}"


def test_where_arrays_are_shorter_than_the_sweep_tasks_claim_its_cells(sweeps: Sweeps) -> None:
    sweeps.lab.cluster.limits(max_array_size=4)
    answer = sweeps.submit(args(*(f"0.5,{name}" for name in "abcdef"), "0.5,bad"), "cluster.max_parallel=2")
    assert sweeps.until_over(answer) == ["completed"] * 6 + ["failed"]
    assert sorted(sweeps.begun()) == sorted([*(f"{name} 0" for name in "abcdef"), "bad 0"])
    jobs = {run.story().slurm_job_id for run in sweeps.runs(answer)}
    assert jobs == {f"{answer['slurm_job_id']}_{task}" for task in (0, 1)}
    assert most_at_once(sweeps.runs(answer)) == 2
    # Asked again, the failed one is what is left.
    (sweeps.lab.folder / "repaired").touch()
    again = sweeps.submit(args(*(f"0.5,{name}" for name in "abcdef"), "0.5,bad"), "cluster.max_parallel=2")
    assert again["submitted"] == answer["runs"][-1:]
    assert sweeps.until_over(again) == ["completed"] * 7


def test_where_a_user_may_have_few_jobs_tasks_claim_cells_too(sweeps: Sweeps) -> None:
    sweeps.lab.cluster.limits(max_submit_jobs=2)
    answer = sweeps.submit(args(*(f"0.5,{name}" for name in "abcde")))
    assert sweeps.until_over(answer) == ["completed"] * 5
    assert most_at_once(sweeps.runs(answer)) <= 2


def test_small_cells_share_an_allocation(sweeps: Sweeps) -> None:
    shared = ("cluster.cells_at_once=3", "cluster.max_parallel=3", "resources.gpus_per_node=0")
    answer = sweeps.submit(args(*(f"3,{name}" for name in "abcdef")), *shared)
    assert sweeps.until_over(answer) == ["completed"] * 6
    assert {run.story().slurm_job_id for run in sweeps.runs(answer)} == {f"{answer['slurm_job_id']}_0"}
    assert most_at_once(sweeps.runs(answer)) == 3


def test_a_cell_is_cancelled_without_those_that_share_its_job(sweeps: Sweeps) -> None:
    shared = ("cluster.cells_at_once=2", "cluster.max_parallel=2")
    answer = sweeps.submit(args("60,a", "5,b", "0.1,c", "60,d"), *shared)
    sweeps.until(answer, lambda states: states[:2] == ["running", "running"])
    time.sleep(2.0)
    sweeps.lab.hpctool("runs", "cancel", answer["runs"][0], answer["runs"][3])
    assert sweeps.until_over(answer) == ["cancelled", "completed", "completed", "cancelled"]
    assert (sweeps.runs(answer)[0].path / "artifacts" / "steps").exists()
    assert all(run.story().attempt == 1 for run in sweeps.runs(answer)[1:3])


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_task_that_is_preempted_comes_back_to_the_cells_that_it_had(sweeps: Sweeps, at_once: int) -> None:
    sweeps.lab.cluster.limits(max_array_size=3)
    shared = (f"cluster.cells_at_once={at_once}", f"cluster.max_parallel={at_once}")
    hold = sweeps.lab.folder / "hold"
    hold.touch()
    answer = sweeps.submit(args("0.1,a", "0.1,b", "0.1,c", "0.1,d"), *shared)
    sweeps.until(answer, lambda _states: len(sweeps.begun()) == at_once)
    sweeps.lab.cluster.preempt(seconds=1)
    sweeps.until(answer, lambda _states: len(sweeps.begun()) == 2 * at_once, requeued=True)
    hold.unlink()
    assert sweeps.until_over(answer, requeued=True) == ["completed"] * 4
    again = [line for line in sweeps.begun() if not line.endswith(" 0")]
    # What was under way went on from where it had saved, in the same task.
    assert sorted(line.split()[0] for line in again) == ["a", "b"][:at_once]
    assert {run.story().slurm_job_id for run in sweeps.runs(answer)} == {f"{answer['slurm_job_id']}_0"}
    assert sorted({line.split()[0] for line in sweeps.begun()}) == ["a", "b", "c", "d"]


def test_each_shape_of_resources_is_an_array_and_the_throttle_holds_for_all(sweeps: Sweeps) -> None:
    words = (args("1,a", "1,b", "1,c"), "resources.cpus_per_task=1,2", "cluster.max_parallel=3")
    answer = sweeps.submit(*words)
    assert len(answer["slurm_job_ids"]) == 2
    assert sweeps.until_over(answer) == ["completed"] * 6
    assert most_at_once(sweeps.runs(answer)) <= 3


def test_a_sweep_is_cancelled_resumed_and_never_submitted_twice(sweeps: Sweeps) -> None:
    words = (args("0.1,a", "60,b", "60,c", "0.1,d"), "cluster.max_parallel=2")
    answer = sweeps.submit(*words)
    sweeps.until(answer, lambda states: states == ["completed", "running", "running", "queued"])
    assert not sweeps.submit(*words)["submitted"]
    sweeps.lab.hpctool("sweep", "cancel", answer["sweep"])
    assert sweeps.until_over(answer) == ["completed", "cancelled", "cancelled", "cancelled"]
    # Somebody else takes the array away behind our back: it is found out, and resumed from the folder alone.
    sweeps.lab.hpctool("sweep", "resume", answer["sweep"])
    sweeps.until(answer, lambda states: states.count("running") == 2)
    sweeps.lab.cluster.as_root("scancel", f"--user={sweeps.lab.cluster.user}", "--full")
    states = sweeps.until_over(answer)
    assert states[0] == "completed"
    assert "cancelled" in states
    saved = [(run.path / "artifacts" / "steps").exists() for run in sweeps.runs(answer)]
    assert saved == [False, True, True, False]


def test_a_chain_from_the_data_to_the_bundles_is_submitted_at_once(sweeps: Sweeps) -> None:
    """prepare with 4 MPI ranks on 2 nodes → a sweep of 6 → the export of each of them, and of the best."""
    common = ("cluster=slurm", "resources.time=5", "cluster.signal_delay_s=30")
    lab = sweeps.lab
    ranks = ("resources.nodes=2", "resources.tasks_per_node=2", "cluster.mpi=pmix")
    done = lab.hpctool("prepare", *common, *ranks, "data.name=digits", "--json")
    prepare = json.loads(done.stdout)["runs"][0]
    axes = ("optim.lr=1e-3,1e-2,3e-2", "seed=1,2", "data.name=digits", "loop.max_steps=20", "track=off")
    train = sweeps.submit(f"after={prepare}", *axes, job="train", common=common)
    export = sweeps.submit(f"after={train['sweep']}", job="export", common=common)
    done = lab.hpctool("evaluate", *common, f"after={train['sweep']}", "--json")
    best = RunDir(lab.runs / json.loads(done.stdout)["runs"][0])
    assert sweeps.until_over(export, timeout_s=200) == ["completed"] * 6
    assert sweeps.states(train) == ["completed"] * 6
    lab.until(best, lambda story: story.state == "completed")
    began = RunDir(lab.runs / prepare).story().of_kind("begun")[0]
    assert (began["world_size"], RunDir(lab.runs / prepare).story().state) == (4, "completed")
    # What was not there at the submission was looked at when each job began.
    commit = next(one["id"] for one in sweeps.runs(train)[0].inputs() if one["kind"] == "dataset")
    assert len(commit) == 64
    assert [run.record()["after"]["id"] for run in sweeps.runs(export)] == train["runs"]


def test_the_loop_is_a_chain_of_jobs_up_to_where_people_review(sweeps: Sweeps) -> None:
    lab = sweeps.lab
    words = ["flywheel.sweep=['optim.lr=1e-2,3e-2']", "flywheel.train=['model=mlp','loop.max_epochs=2','track=off']"]
    told = ("flywheel", "experiment=digits", *words, "cluster=slurm", "resources.time=5", "cluster.signal_delay_s=30")
    answer = json.loads(lab.hpctool(*told, "--json").stdout)
    runs = {job: RunDir(lab.runs / one) for job, one in answer["links"].items() if job != "train"}
    lab.until(runs["monitor"], lambda story: story.state == "completed", timeout_s=240)
    assert {job: run.story().state for job, run in runs.items()} == dict.fromkeys(runs, "completed")
    results = {job: run.result() or {} for job, run in runs.items()}
    assert results["score"]["outputs"]["model"] == results["export"]["outputs"]["model"] == "digits@0001"
    assert results["monitor"]["metrics"]["monitor/alarm"] == 0
    # The best of the sweep was exported, and measured on what it never saw.
    inputs = [one for job in ("evaluate", "export") for one in runs[job].inputs()]
    assert len({one["name"] for one in inputs if one["kind"] == "run"}) == 1
    assert results["evaluate"]["metrics"]["test/accuracy"] > 0.5
    again = json.loads(lab.hpctool(*told, "--json").stdout)
    assert (again["links"], again["submitted"]) == (answer["links"], [])


def test_what_comes_after_a_failure_is_dropped_with_the_reason_and_repaired_by_retry(sweeps: Sweeps) -> None:
    lab = sweeps.lab
    (lab.folder / "hold").touch()
    first = sweeps.submit(args("0.1,a", "0.1,bad", "0.1,c"))
    second = sweeps.submit(f"after={first['sweep']}", args("0.1,x", "0.1,y", "0.1,z"))
    done = lab.hpctool("run", *SHORT, f"after={second['runs'][1]}", "args=[0.1,last]", "--json")
    last = json.loads(done.stdout)["runs"][0]
    (lab.folder / "hold").unlink()
    assert sweeps.until_over(second) == ["completed", "cancelled", "completed"]
    shown = json.loads(lab.hpctool("sweep", "status", second["sweep"], "--json").stdout)["rows"][1]
    assert shown["cause"] == f"its parent {first['runs'][1]} failed"
    shown = json.loads(lab.hpctool("runs", "show", last, "--json").stdout)
    assert (shown["state"], shown["cause"]) == ("cancelled", f"its parent {second['runs'][1]} was cancelled")
    refused = lab.hpctool("run", *SHORT, f"after={first['runs'][1]}", "args=[0.1,no]", check=False)
    assert refused.returncode == 2
    (lab.folder / "repaired").touch()
    lab.hpctool("sweep", "retry", first["sweep"])
    assert sweeps.until_over(second) == ["completed"] * 3
    lab.until(RunDir(lab.runs / last), lambda story: story.state == "completed")
