"""Sweeps on Slurm: what is queued is not queued again, and what was lost, failed or cancelled can be started again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpctool.errors import ConflictError, InputError, SubmitError
from hpctool.launch import arrays, cells, submit, sweeplog, sweeps
from hpctool.launch.cells import Sweep
from hpctool.launch.overview import cell_stories, quick_stories
from hpctool.launch.sweeplog import SweepLog
from hpctool.log import Entry
from hpctool.rundir import RunDir, Story, fold
from tests.launch.toy_slurm import ToySlurm

LONG_AGO = "2026-01-01T00:00:00.000Z"


class Desk:
    """A project folder in which somebody submits sweeps of `work.sh`, long ago, and looks at them now."""

    def __init__(self, folder: Path, slurm: ToySlurm) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.slurm = slurm
        self.said: list[str] = []

    def ask(self, *overrides: str, multirun: bool = True) -> submit.Submission:
        self.slurm.forget()
        told = ["script=work.sh", "cluster=slurm", *overrides]
        return submit.submit(submit.Request("run", told), multirun, say=self.said.append)

    def sweep(self, answer: submit.Submission) -> Sweep:
        self.slurm.forget()
        return cells.find_sweep(self.runs, answer.sweep)

    def standing(self, answer: submit.Submission) -> list[Story]:
        return cell_stories(self.runs, self.sweep(answer), quick_stories)

    def states(self, answer: submit.Submission) -> list[str]:
        return [story.state for story in self.standing(answer)]

    def resume(self, answer: submit.Submission, states: tuple[str, ...] = (), code_now: bool = False) -> None:
        sweeps.resume(self.sweep(answer), self.runs, self.said.append, states=states, code_now=code_now)

    def cancel(self, answer: submit.Submission) -> None:
        sweeps.cancel(self.sweep(answer), self.runs, self.said.append)

    def begin(self, answer: submit.Submission, index: int, task: str, state: str = "") -> RunDir:
        """What a task writes when it begins a cell, and when it ends in that state."""
        rundir = cells.open_cell(self.runs, answer.sweep, index)
        attempt = rundir.begin({"where": "slurm", "slurm_job_id": task, "slurm_step_id": "3"})
        if state:
            rundir.ledger.append({"kind": "ended", "attempt": attempt, "state": state, "step": 0, "time": LONG_AGO})
        return rundir

    def last_script(self) -> str:
        return Path(self.slurm.calls("sbatch")[-1].split()[-1]).read_text()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_slurm: ToySlurm) -> Desk:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "work.sh").write_text("#!/bin/sh\necho $1\n")
    (folder / "work.sh").chmod(0o755)
    monkeypatch.chdir(folder)
    # Slurm's answer counts for what happened some seconds before it was asked.
    for module in (sweeplog, arrays):
        monkeypatch.setattr(module, "now", lambda: LONG_AGO)
    return Desk(folder, toy_slurm)


@pytest.mark.slow
def test_a_sweep_is_one_array_and_its_cells_wait_in_it(desk: Desk) -> None:
    answer = desk.ask("args=[1],[2],[3]")
    assert answer.slurm_job_ids == ["101"]
    assert desk.slurm.tasks == ["101_0", "101_1", "101_2"]
    assert [(story.state, story.slurm_job_id) for story in desk.standing(answer)] == [
        ("queued", "101_0"),
        ("queued", "101_1"),
        ("queued", "101_2"),
    ]
    assert not list(desk.runs.glob("run-*"))


@pytest.mark.slow
def test_what_is_queued_running_or_done_is_not_submitted_again(desk: Desk) -> None:
    answer = desk.ask("args=[0],[1],[2],[3],[4]")
    desk.begin(answer, 0, "101_0", "completed")
    desk.begin(answer, 1, "101_1")
    desk.begin(answer, 2, "101_2", "failed")
    desk.slurm.ends("101_0", "101_2", "101_4")
    again = desk.ask("args=[0],[1],[2],[3],[4]")
    assert again.sweep == answer.sweep
    assert again.submitted == [answer.runs[2], answer.runs[4]]
    assert "1 of 5 done, 1 running, 1 queued, submitting 2" in "\n".join(desk.said)
    assert desk.slurm.tasks == ["101_1", "101_3", "102_0", "102_1"]
    # The failed one waits again, and so do the one that was lost and the one that always waited.
    assert desk.states(answer) == ["completed", "running", *["queued"] * 3]
    assert [story.slurm_job_id for story in desk.standing(answer)[2:]] == ["102_0", "101_3", "102_1"]
    assert not desk.ask("args=[0],[1],[2],[3],[4]").submitted


@pytest.mark.slow
def test_a_run_that_waits_in_one_sweep_is_not_queued_for_another(desk: Desk) -> None:
    desk.ask("args=[0],[1]")
    second = desk.ask("args=[1],[2]")
    assert second.submitted == second.runs[1:]
    assert "1 queued in another sweep" in desk.said[-3]
    assert desk.slurm.tasks == ["101_0", "101_1", "102_0"]
    # A single run is looked for, too. (Its identity is that of a cell, where what varies is part of it anyway.)
    single = desk.ask("args=[0]", multirun=False)
    assert (single.submitted, single.reused) == ([], single.runs)
    assert "queued already, as a cell of sweep" in desk.said[-1]


@pytest.mark.slow
def test_while_slurm_does_not_answer_nothing_is_submitted_twice(desk: Desk) -> None:
    answer = desk.ask("args=[0],[1]")
    desk.slurm.set("silent")
    again = desk.ask("args=[0],[1]")
    assert not again.submitted
    assert "could not be asked" in "\n".join(desk.said)
    assert "taken to be there still" in "\n".join(desk.said)
    assert desk.states(answer) == ["queued", "queued"]


@pytest.mark.slow
def test_a_sweep_whose_array_is_gone_can_be_resumed_from_its_folder_alone(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = desk.ask("args=[0],[1],[2]", "resources.cpus_per_task=2", "cluster.max_parallel=2")
    desk.begin(answer, 0, "101_0", "completed")
    desk.slurm.ends("101")
    assert desk.states(answer) == ["completed", "cancelled", "cancelled"]
    monkeypatch.chdir(tmp_path)
    desk.resume(answer)
    assert desk.slurm.tasks == ["102_0", "102_1"]
    script = desk.last_script()
    assert "#SBATCH --array=0-1%2" in script
    assert "#SBATCH --cpus-per-task=2" in script
    code = desk.sweep(answer).body["code"]["snapshot"]
    assert f"/.code/{code}/" in script
    desk.resume(answer)
    assert "nothing to submit" in desk.said[-1]


@pytest.mark.slow
def test_resume_takes_the_code_as_it_was_submitted_or_as_it_is_now(desk: Desk) -> None:
    answer = desk.ask("args=[0],[1]")
    desk.begin(answer, 0, "101_0", "failed")
    before = desk.sweep(answer).body["code"]["snapshot"]
    (desk.folder / "work.sh").write_text("#!/bin/sh\necho repaired\n")
    desk.slurm.ends("101")
    desk.resume(answer)
    assert RunDir(desk.runs / answer.runs[0]).code()["snapshot"] == before
    desk.slurm.ends("102")
    desk.resume(answer, code_now=True)
    now = RunDir(desk.runs / answer.runs[0]).code()["snapshot"]
    assert now != before
    assert f"/.code/{now}/" in desk.last_script()
    assert cells.open_cell(desk.runs, answer.sweep, 1).record()["code"]["snapshot"] == now


@pytest.mark.slow
def test_retry_starts_the_failed_cells_only(desk: Desk) -> None:
    answer = desk.ask("args=[0],[1],[2]")
    rundir = desk.begin(answer, 1, "101_1", "failed")
    rundir.result_json.write_text("{}")
    desk.slurm.ends("101")
    desk.resume(answer, states=("failed",))
    assert desk.slurm.tasks == ["102_0"]
    assert (rundir.story().state, rundir.story().slurm_job_id) == ("queued", "102_0")
    assert not rundir.result_json.exists()


@pytest.mark.slow
def test_cancel_takes_the_array_away_and_says_who_did_it(desk: Desk) -> None:
    answer = desk.ask("args=[0],[1],[2]")
    desk.begin(answer, 0, "101_0", "completed")
    desk.begin(answer, 1, "101_1")
    desk.slurm.ends("101_0")
    desk.cancel(answer)
    assert desk.slurm.calls("scancel") == ["101"]
    done, running, waiting = desk.standing(answer)
    assert done.state == "completed"
    assert (running.state, waiting.state) == ("stopping", "cancelled")
    assert "before it began" in waiting.cause
    assert "cancelled by" in running.cause
    assert "cancelled by" in waiting.cause
    desk.resume(answer)
    assert desk.states(answer) == ["completed", "stopping", "queued"]


@pytest.mark.slow
def test_a_single_cell_that_waits_can_be_cancelled(desk: Desk) -> None:
    answer = desk.ask("args=[0],[1],[2]")
    assert sweeps.cancel_cell(desk.sweep(answer), desk.runs, 1) is not None
    assert desk.slurm.calls("scancel") == ["101_1"]
    assert desk.states(answer) == ["queued", "cancelled", "queued"]
    # One that has begun in a job of its own is a run like others.
    desk.begin(answer, 0, "101_0")
    assert sweeps.cancel_cell(desk.sweep(answer), desk.runs, 0) is None
    with pytest.raises(InputError, match="nothing to cancel"):
        sweeps.cancel_cell(desk.sweep(answer), desk.runs, 1)


@pytest.mark.slow
def test_a_cell_in_a_job_of_several_is_told_alone(desk: Desk) -> None:
    desk.slurm.set("max_array", 2)
    answer = desk.ask("args=[0],[1],[2]")
    run = desk.begin(answer, 0, "101_0")
    said = sweeps.cancel_cell(desk.sweep(answer), desk.runs, 0)
    assert said is not None
    assert desk.slurm.calls("scancel") == ["--signal=TERM 101_0.3"]
    assert run.story().state == "stopping"
    sweeps.cancel_cell(desk.sweep(answer), desk.runs, 2)
    assert len(desk.slurm.calls("scancel")) == 1
    assert desk.states(answer) == ["stopping", "queued", "cancelled"]


@pytest.mark.slow
def test_a_refusal_after_some_arrays_says_what_is_queued(desk: Desk) -> None:
    desk.slurm.set("refuse_after", 1)
    with pytest.raises(SubmitError, match="Slurm is tired") as caught:
        desk.ask("args=[0],[1]", "resources.cpus_per_task=1,2,3")
    assert "Slurm job 101 has cells 0,3" in str(caught.value)
    assert "hpctool sweep resume" in str(caught.value)
    desk.slurm.clear("refuse_after")
    again = desk.ask("args=[0],[1]", "resources.cpus_per_task=1,2,3")
    assert len(again.submitted) == 4
    assert len(desk.slurm.tasks) == 6


@pytest.mark.slow
def test_a_submitter_that_died_before_it_knew_has_submitted_all_the_same(desk: Desk) -> None:
    desk.slurm.set("die")
    command = [sys.executable, "-m", "hpctool.cli.main", "run", "-m", "script=work.sh", "cluster=slurm", "args=[0],[1]"]
    assert subprocess.run(command, cwd=desk.folder, capture_output=True, check=False).returncode == -9
    desk.slurm.clear("die")
    assert desk.slurm.tasks == ["101_0", "101_1"]
    assert not desk.ask("args=[0],[1]").submitted
    assert desk.slurm.tasks == ["101_0", "101_1"]


@pytest.mark.slow
def test_the_same_of_a_single_run(desk: Desk) -> None:
    desk.slurm.set("die")
    command = [sys.executable, "-m", "hpctool.cli.main", "run", "script=work.sh", "cluster=slurm", "args=[0]"]
    assert subprocess.run(command, cwd=desk.folder, capture_output=True, check=False).returncode == -9
    desk.slurm.clear("die")
    again = desk.ask("args=[0]", multirun=False)
    assert (again.submitted, len(again.reused)) == ([], 1)
    assert desk.slurm.tasks == ["101"]


@pytest.mark.slow
def test_an_sbatch_that_was_not_answered_in_time_may_have_been_heard(desk: Desk) -> None:
    desk.slurm.set("deaf", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    with pytest.raises(SubmitError, match="timed out"):
        desk.ask("args=[0],[1]")
    desk.slurm.clear("deaf")
    assert desk.slurm.tasks == ["101_0", "101_1"]
    assert not desk.ask("args=[0],[1]").submitted


@pytest.mark.slow
def test_a_submission_that_slurm_does_not_know_is_made_anew_unless_somebody_is_at_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = desk.ask("args=[0],[1]")
    desk.slurm.ends("101")
    log = SweepLog(desk.sweep(answer).path)
    log.submitting([0, 1], sweeplog.ARRAY, {"snapshot": ""}, 8)
    assert desk.ask("args=[0],[1]").submitted == answer.runs
    # This very process may be submitting, if it was a moment ago.
    monkeypatch.undo()
    monkeypatch.chdir(desk.folder)
    monkeypatch.setenv("PATH", f"{desk.slurm.folder}:/usr/bin:/bin")
    log.submitting([0, 1], sweeplog.ARRAY, {"snapshot": ""}, 8)
    with pytest.raises(ConflictError, match="by two at once"):
        desk.ask("args=[0],[1]")


@pytest.mark.slow
def test_without_slurm_nothing_is_written(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(desk.folder))
    with pytest.raises(InputError, match="no sbatch"):
        desk.ask("args=[0],[1]")
    assert not (desk.runs / "sweeps").exists()


def test_a_stopped_inline_run_is_brought_back_by_who_asks_and_a_jobs_own_earlier_start_is_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def story(*bodies: dict[str, Any]) -> Story:
        return fold([Entry(number, body) for number, body in enumerate(bodies, 1)])

    begun = {"kind": "begun", "attempt": 1, "where": "inline", "slurm_job_id": "7"}
    stopped = {"kind": "ended", "attempt": 1, "state": "requeued", "cause": "preempted", "step": 5}
    assert not sweeps.is_settled(story(begun, stopped))
    assert sweeps.is_settled(story({**begun, "where": "slurm"}, stopped)), "its script asks for the requeue"
    assert sweeps.is_settled(story(begun)), "somebody runs it"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert not sweeps.is_settled(story(begun)), "this very job, before its node was lost"
