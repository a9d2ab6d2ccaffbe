"""Runs that come after others: what Slurm is told to wait for, and what becomes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpctool import config
from hpctool.errors import InputError, UnknownName
from hpctool.launch import cells, chain, repair, start, submit, sweeps
from hpctool.rundir import RunDir
from tests.launch.test_sweeps import Desk, desk

__all__ = ["desk"]


def after(desk: Desk, parent: str, *overrides: str, multirun: bool = False) -> submit.Submission:
    desk.slurm.forget()
    told = ["script=work.sh", "cluster=slurm", *overrides]
    return submit.submit(submit.Request("run", told, after=parent), multirun, say=desk.said.append)


def single(desk: Desk, *overrides: str) -> RunDir:
    """A run that waits in the queue."""
    return RunDir(desk.runs / desk.ask(*overrides, multirun=False).runs[0])


def end(desk: Desk, run: RunDir, job: str, state: str) -> None:
    attempt = run.begin({"where": "slurm", "slurm_job_id": job})
    run.ledger.append({"kind": "ended", "attempt": attempt, "state": state, "step": 0, "time": ""})
    desk.slurm.ends(job)


def waits(desk: Desk) -> str:
    """The options of the last sbatch."""
    return " ".join(desk.slurm.calls("sbatch")[-1].split()[:-1])


@pytest.mark.slow
def test_a_run_waits_for_the_run_before_it(desk: Desk) -> None:
    parent = single(desk, "args=[1]")
    child = after(desk, parent.id[:8], "args=[2]")
    assert waits(desk) == "--dependency=afterok:101 --kill-on-invalid-dep=yes"
    record = RunDir(desk.runs / child.runs[0]).record()
    assert record["after"] == {"kind": "run", "id": parent.id}
    assert {"kind": "run", "name": parent.id, "id": parent.record()["identity"]} in record["inputs"]
    # It is another run than the one that comes after nothing.
    assert desk.ask("args=[2]", multirun=False).runs != child.runs


@pytest.mark.slow
def test_what_has_completed_is_not_waited_for_and_changes_nothing_about_who_a_run_is(desk: Desk) -> None:
    parent = single(desk, "args=[1]")
    before = after(desk, parent.id, "args=[2]")
    end(desk, parent, "101", "completed")
    assert after(desk, parent.id, "args=[2]").reused == before.runs
    after(desk, parent.id, "args=[3]")
    assert waits(desk) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("state", "words"), [("failed", "failed"), ("cancelled", "was cancelled")])
def test_after_a_run_that_did_not_complete_nothing_is_submitted(desk: Desk, state: str, words: str) -> None:
    parent = single(desk, "args=[1]")
    end(desk, parent, "101", state)
    with pytest.raises(InputError, match=f"{parent.id} {words}.*First: hpctool runs retry {parent.id}"):
        after(desk, parent.id, "args=[2]")
    assert len(list(desk.runs.glob("run-*"))) == 1


@pytest.mark.slow
def test_what_nobody_knows_and_what_slurm_does_not_run_cannot_be_waited_for(desk: Desk) -> None:
    parent = single(desk, "args=[1]")
    with pytest.raises(UnknownName, match=r"no run or sweep 'nothing'"):
        after(desk, "nothing", "args=[2]")
    with pytest.raises(InputError, match="cluster=local cannot wait"):
        after(desk, parent.id, "args=[2]", "cluster=local")
    parent.ledger.append({"kind": "submitted", "where": "local", "time": ""})
    with pytest.raises(InputError, match="not on Slurm"):
        after(desk, parent.id, "args=[2]")


@pytest.mark.slow
def test_a_sweep_after_a_run_waits_as_a_whole(desk: Desk) -> None:
    parent = single(desk, "args=[1]")
    child = after(desk, parent.id, "args=[2],[3]", multirun=True)
    assert waits(desk) == "--dependency=afterok:101 --kill-on-invalid-dep=yes"
    assert [cell["after"]["id"] for cell in desk.sweep(child).body["cells"]] == [parent.id] * 2


@pytest.mark.slow
def test_of_two_sweeps_of_the_same_size_each_cell_waits_for_its_own(desk: Desk) -> None:
    parent = desk.ask("args=[1],[2],[3],[4]")
    desk.begin(parent, 1, "101_1", "completed")
    desk.slurm.ends("101_1")
    child = after(desk, parent.sweep, "args=[5],[6],[7],[8]", multirun=True)
    calls = desk.slurm.calls("sbatch")[1:]
    # Task i of the new array waits for task i of the old one; a cell whose parent is done waits for nothing.
    assert "--dependency=aftercorr:101 --kill-on-invalid-dep=yes --array=0,2-3%3" in calls[0]
    assert calls[1].startswith("/")
    assert [cell["after"]["id"] for cell in desk.sweep(child).body["cells"]] == parent.runs
    stories = desk.standing(child)
    assert [story.slurm_job_id for story in stories] == ["102_0", "103_0", "102_2", "102_3"]
    listed = json.loads(Path(calls[0].split()[-1]).with_suffix(".json").read_bytes())
    assert listed["cells"] == [0, None, 2, 3]


@pytest.mark.slow
def test_a_sweep_of_another_size_waits_for_all_of_its_parent(desk: Desk) -> None:
    parent = desk.ask("args=[1],[2],[3]")
    after(desk, parent.sweep, "args=[5],[6]", multirun=True)
    assert waits(desk) == "--dependency=afterok:101 --kill-on-invalid-dep=yes"


@pytest.mark.slow
def test_of_an_array_whose_failed_cell_runs_elsewhere_the_other_tasks_are_waited_for(desk: Desk) -> None:
    parent = desk.ask("args=[1],[2],[3]")
    desk.begin(parent, 1, "101_1", "failed")
    desk.slurm.ends("101_1")
    desk.resume(parent)
    after(desk, parent.sweep, "args=[7]")
    assert waits(desk) == "--dependency=afterok:101_0:101_2:102_0 --kill-on-invalid-dep=yes"


@pytest.mark.slow
def test_where_tasks_claim_cells_the_whole_array_is_waited_for_and_the_job_looks_itself(desk: Desk) -> None:
    desk.slurm.set("max_array", 2)
    parent = desk.ask("args=[1],[2],[3]")
    after(desk, parent.sweep, "args=[5],[6],[7]", multirun=True)
    assert waits(desk) == "--dependency=afterany:101 --kill-on-invalid-dep=yes"


@pytest.mark.slow
def test_a_job_that_names_its_parent_is_given_it(desk: Desk) -> None:
    """`export -m after=SWEEP`: one cell for each run of the sweep, which need not have completed."""
    parent = desk.ask("args=[1],[2]")
    told = ["cluster=slurm"]
    child = submit.submit(submit.Request("export", told, after=parent.sweep), multirun=True, say=desk.said.append)
    body = desk.sweep(child).body
    assert [cells.plain_config(desk.sweep(child), index)["run"] for index in range(2)] == parent.runs
    assert [cell["after"]["id"] for cell in body["cells"]] == parent.runs
    best = submit.submit(submit.Request("export", told, after=parent.sweep), say=desk.said.append)
    assert config.load(desk.runs / best.runs[0] / "config.yaml").run == parent.sweep


@pytest.mark.slow
def test_what_was_dropped_with_its_parent_says_so_and_comes_back_with_it(desk: Desk) -> None:
    parent = single(desk, "args=[1]")
    child = RunDir(desk.runs / after(desk, parent.id, "args=[2]").runs[0])
    grandchild = after(desk, child.id, "args=[3],[4]", multirun=True)
    end(desk, parent, "101", "failed")
    desk.slurm.ends("102", "103")  # Slurm drops what will never begin
    child.ledger.append({"kind": "submitted", "where": "slurm", "slurm_job_id": "102", "time": "2026-01-01T00:00:00Z"})
    desk.slurm.forget()
    from hpctool.launch.result import current_story

    assert (current_story(child).state, current_story(child).cause) == ("cancelled", f"its parent {parent.id} failed")
    assert [story.cause for story in desk.standing(grandchild)] == [f"its parent {child.id} was cancelled"] * 2
    start.retry(parent, desk.said.append)
    calls = [call.split()[0] for call in desk.slurm.calls("sbatch")[3:]]
    assert calls[0].startswith("/")
    assert calls[1:] == ["--dependency=afterok:104", "--dependency=afterok:105"]


@pytest.mark.slow
def test_a_run_after_a_cell_that_was_dropped_says_so_too(desk: Desk) -> None:
    first = desk.ask("args=[1],[2]")
    second = after(desk, first.sweep, "args=[3],[4]", multirun=True)
    last = after(desk, second.runs[0], "args=[5]")
    desk.begin(first, 0, "101_0", "failed")
    desk.slurm.ends("101_0", "102_0", "103")
    desk.slurm.forget()
    known = chain.Parents(desk.runs)
    assert known.why_not({"kind": "run", "id": second.runs[0]}) == f"its parent {second.runs[0]} was cancelled"
    assert known.why_not({"kind": "sweep", "id": second.sweep}).endswith("did not complete: 1 cancelled")
    assert known.why_not({"kind": "run", "id": last.runs[0]}) == ""


@pytest.mark.slow
def test_what_its_user_has_cancelled_does_not_come_back(desk: Desk) -> None:
    parent = desk.ask("args=[1],[2]")
    child = after(desk, parent.sweep, "args=[3],[4]", multirun=True)
    desk.cancel(child)
    desk.begin(parent, 0, "101_0", "failed")
    desk.slurm.ends("101_0", "102")
    desk.resume(parent)
    assert len(desk.slurm.calls("sbatch")) == 3
    repair.after_restart(desk.runs, parent.runs, desk.said.append, parent.sweep)
    assert len(desk.slurm.calls("sbatch")) == 3
    sweeps.resume(desk.sweep(child), desk.runs, desk.said.append)
    assert len(desk.slurm.calls("sbatch")) == 5


MAKE = """
import numpy as np
np.savez("made.npz", image=np.zeros((40, 4, 4), np.uint8), label=np.arange(40) % 2)
"""


@pytest.mark.slow
def test_what_a_parent_has_yet_to_make_is_looked_at_when_the_job_starts(desk: Desk) -> None:
    (desk.folder / "make.py").write_text(MAKE)
    parent = single(desk, "script=make.py")
    told = [
        "prepare",
        f"after={parent.id}",
        "data.name=made",
        "source=npz",
        "source.path=made.npz",
        "source.label=label",
    ]
    hpctool = [sys.executable, "-m", "hpctool.cli.main"]
    subprocess.run([*hpctool, *told, "cluster=slurm"], cwd=desk.folder, check=True, capture_output=True)
    (child,) = (RunDir(path) for path in desk.runs.glob("prepare-*"))
    assert config.load(child.config_yaml).source.path == "made.npz"
    run = [sys.executable, "-m", "hpctool.launch.task", str(child.path)]
    too_early = subprocess.run(run, cwd=desk.folder, capture_output=True, text=True, check=False)
    assert too_early.returncode == 1
    assert f"its parent {parent.id} has not completed" in child.story().cause
    done = [sys.executable, "-m", "hpctool.launch.task", str(parent.path)]
    assert subprocess.run(done, cwd=desk.folder, check=False).returncode == 0
    assert subprocess.run(run, cwd=desk.folder, check=False).returncode == 0
    assert child.story().state == "completed"
    assert config.load(child.config_yaml).source.path == str(desk.folder / "made.npz")
    assert [one["kind"] for one in child.inputs()] == ["run", "source"]
