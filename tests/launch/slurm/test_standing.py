"""How a run stands on Slurm: its ledger first, then the queue, accounting last."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import pytest

from hpctool.errors import OperationError
from hpctool.launch.result import current_stories, current_story
from hpctool.launch.slurm.queue import Queue
from hpctool.launch.start import cancel
from hpctool.log import encode_entry
from tests.launch.slurm.stand_ins import StandIns
from tests.track.samples import Sample


def ago(seconds: float) -> str:
    """A time as the ledger says it, so many seconds ago."""
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local(seconds: float) -> str:
    """A time as squeue prints it, so many seconds from now."""
    return (datetime.datetime.now() + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def run(folder: Path, digits: str = "a", job: str = "42", since_s: float = 62.0) -> Sample:
    """A run that was submitted to Slurm a while ago."""
    sample = Sample(folder / "runs", digits)
    body = {"kind": "submitted", "where": "slurm", "slurm_job_id": job, "time": ago(since_s)}
    sample.rundir.ledger.append(body)
    return sample


def begun(folder: Path, digits: str = "a", job: str = "42", since_s: float = 62.0) -> Sample:
    """One that has begun there, on another host."""
    sample = run(folder, digits, job, since_s)
    return sample.begin(where="slurm", slurm_job_id=job, time=ago(since_s), host="n1")


def stands(sample: Sample) -> tuple[str, str]:
    story = current_story(sample.rundir, Queue())
    return story.state, story.cause


def test_what_waits_says_why_and_when_it_is_expected(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("42|PENDING|1:00|0:00|N/A||Priority")
    assert stands(run(tmp_path)) == ("queued", "waits behind jobs of higher priority")
    slurm.forget()
    start = local(1)
    slurm.says(f"42|PENDING|1:00|0:00|{local(3 * 86_400)}||Resources")
    _, cause = stands(run(tmp_path, "b"))
    day = (datetime.date.fromisoformat(start[:10]) + datetime.timedelta(days=3)).isoformat()
    assert cause.startswith(f"waits for free resources; expected on {day} at ")


def test_a_cell_is_found_among_those_that_wait_together(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("7_[2-9%4]|PENDING|1:00|0:00|N/A||JobArrayTaskLimit")
    assert stands(run(tmp_path, job="7_5")) == ("queued", "cluster.max_parallel others of its array run")


def test_a_job_that_has_nodes_but_no_attempt_yet_is_starting(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(f"42|RUNNING|1:00|0:01|{local(-5)}|n[1-2]|None")
    assert stands(run(tmp_path)) == ("queued", "starting on n[1-2]")


def test_what_runs_runs(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(f"42|RUNNING|1:00|0:01|{local(-61)}|n1|None")
    assert stands(begun(tmp_path)) == ("running", "")


@pytest.mark.parametrize(
    ("state", "cause"),
    [("SUSPENDED", "suspended by Slurm"), ("COMPLETING", ""), ("DREAMING", "Slurm says DREAMING")],
)
def test_what_runs_and_is_more_than_that_says_so(slurm: StandIns, tmp_path: Path, state: str, cause: str) -> None:
    slurm.says(f"42|{state}|1:00|0:01|{local(-61)}|n1|None")
    assert stands(begun(tmp_path)) == ("running", cause)


def test_what_an_administrator_has_requeued_is_requeued(slurm: StandIns, tmp_path: Path) -> None:
    sample = begun(tmp_path)
    slurm.says("42|PENDING|1:00|0:00|N/A||BeginTime")
    state, cause = stands(sample)
    assert state == "requeued"
    assert cause.startswith("requeued by Slurm; ")
    assert "two minutes" in cause
    slurm.forget()
    slurm.says(f"42|RUNNING|1:00|0:01|{local(3)}|n3|None")
    assert stands(sample)[0] == "requeued", "its next attempt has not begun yet"
    assert stands(sample)[1].endswith("starting on n3")


def test_slurm_itself_says_when_an_attempts_job_began(slurm: StandIns, tmp_path: Path) -> None:
    # The node's clock is 40 s behind the controller's: by it the job began again after its attempt.
    started_s = int(time.time()) - 20
    sample = run(tmp_path).begin(
        where="slurm", slurm_job_id="42", slurm_start_s=started_s, time=ago(60 - 0.5), host="n1"
    )
    slurm.says(f"42|RUNNING|1:00|0:20|{local(started_s - time.time())}|n1|None")
    assert stands(sample)[0] == "running"
    slurm.forget()
    slurm.says(f"42|RUNNING|1:00|0:01|{local(-2)}|n3|None")
    assert stands(sample) == ("requeued", "requeued by Slurm; starting on n3")


def test_a_requeued_run_keeps_its_cause_and_says_what_it_waits_for(slurm: StandIns, tmp_path: Path) -> None:
    sample = begun(tmp_path)
    end(sample, "requeued", "preempted")
    slurm.says(f"42|PENDING|1:00|0:00|{local(-1)}||BeginTime")
    assert stands(sample) == ("requeued", "preempted; Slurm holds a requeued job back for two minutes")


def end(sample: Sample, state: str, cause: str) -> None:
    body = {"kind": "ended", "attempt": sample.rundir.attempt, "state": state, "cause": cause, "step": 0}
    sample.rundir.ledger.append({**body, "exit_code": 75, "time": ago(30)})


def test_a_requeued_run_that_left_the_queue_was_cancelled_meanwhile(slurm: StandIns, tmp_path: Path) -> None:
    sample = begun(tmp_path)
    end(sample, "requeued", "preempted")
    slurm.says("")
    slurm.fails("Slurm accounting storage is disabled", name="sacct")
    assert stands(sample) == ("cancelled", "preempted; then it left Slurm's queue: cancelled there")


def test_what_ended_without_a_word_is_looked_up(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("")
    slurm.says("42|NODE_FAIL|0:0", name="sacct")
    assert stands(begun(tmp_path)) == ("failed", "its node was lost")


def test_what_squeue_still_knows_of_an_end_needs_no_accounting(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says(f"42|TIMEOUT|1:00|1:00|{local(-61)}|n1|TimeLimit")
    slurm.fails("Slurm accounting storage is disabled", name="sacct")
    assert stands(begun(tmp_path)) == ("failed", "its time limit came")


def test_without_accounting_it_says_so_and_names_the_log(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("")
    slurm.fails("Slurm accounting storage is disabled", name="sacct")
    sample = begun(tmp_path).say("hello")
    state, cause = stands(sample)
    assert state == "failed"
    assert cause == "Slurm ended it without a word, and there is no accounting here; see logs/1/0.log"


def test_a_job_that_died_before_our_python_began_names_its_batch_log(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("")
    sample = run(tmp_path)
    (sample.rundir.path / "logs").mkdir()
    (sample.rundir.path / "logs" / "42_0_log.out").write_text("conda: command not found\n")
    state, cause = stands(sample)
    assert state == "failed"
    assert cause.startswith("Slurm ended it before it began")
    assert cause.endswith("see logs/42_0_log.out")


def test_a_run_that_its_user_was_stopping_is_cancelled(slurm: StandIns, tmp_path: Path) -> None:
    sample = begun(tmp_path)
    sample.rundir.ledger.append({"kind": "cancel", "by": "anna@login", "time": ago(30)})
    slurm.says("")
    slurm.says("42|CANCELLED by 0|0:0", name="sacct")
    assert stands(sample) == ("cancelled", "cancelled by anna@login")


def test_an_answer_from_before_the_submission_says_nothing_of_it(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("")
    assert stands(run(tmp_path, since_s=1.0)) == ("queued", "")
    # This host's clock may be ahead of the one that submitted it.
    assert stands(run(tmp_path, "c", since_s=40.0)) == ("queued", "")
    assert stands(begun(tmp_path, "b", since_s=1.0)) == ("running", "")


def test_an_end_that_was_written_while_slurm_was_asked_counts(slurm: StandIns, tmp_path: Path) -> None:
    sample = begun(tmp_path)
    slurm.says("")
    ledger = sample.rundir.ledger
    body = {"kind": "ended", "attempt": 1, "state": "completed", "cause": "", "step": 9, "exit_code": 0, "time": ago(0)}
    entry = tmp_path / "entry"
    entry.write_bytes(encode_entry(body))
    program = slurm.folder / "squeue"
    program.write_text(f"{program.read_text()}cp {entry} {ledger.path(ledger.last() + 1)}\n")
    assert stands(sample) == ("completed", "")


def test_while_slurm_does_not_answer_the_ledger_stands(slurm: StandIns, tmp_path: Path) -> None:
    slurm.fails("slurm_load_jobs error: Unable to contact slurm controller")
    assert stands(begun(tmp_path)) == ("running", "")
    assert stands(run(tmp_path, "b")) == ("queued", "")


@pytest.mark.slow
def test_many_runs_cost_one_squeue_and_one_sacct(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("7_[2-3]|PENDING|1:00|0:00|N/A||Priority")
    slurm.says("7_0|NODE_FAIL|0:0", "7_1|CANCELLED by 0|0:0", name="sacct")
    samples = [begun(tmp_path, str(i), f"7_{i}") for i in (0, 1)] + [run(tmp_path, str(i), f"7_{i}") for i in (2, 3)]
    found = current_stories([sample.rundir for sample in samples], Queue())
    assert [story.state for story in found] == ["failed", "cancelled", "queued", "queued"]
    assert (len(slurm.calls()), len(slurm.calls("sacct"))) == (1, 1)


def test_runs_that_are_over_or_elsewhere_cost_nothing(slurm: StandIns, tmp_path: Path) -> None:
    done, here = begun(tmp_path).log([1]).complete(), Sample(tmp_path / "runs", "b").submit().begin()
    assert [story.state for story in current_stories([done.rundir, here.rundir])] == ["completed", "running"]
    assert not slurm.calls()


def test_what_waits_for_any_of_a_sweeps_jobs_is_not_taken_for_gone(slurm: StandIns, tmp_path: Path) -> None:
    sample = begun(tmp_path)
    end(sample, "failed", "rank 0: no")
    sample.rundir.ledger.append({"kind": "submitted", "where": "slurm", "slurm_job_id": "", "time": ago(20)})
    slurm.says("")
    assert stands(sample) == ("queued", "")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_nothing_is_concluded_of_runs_that_somebody_else_has_submitted(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("")
    sample = begun(tmp_path)
    os.chown(sample.rundir.path, 65534, 65534)
    assert stands(sample) == ("running", "")


@pytest.mark.slow
def test_jobs_of_another_cluster_with_the_same_file_system_are_left_alone(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says("ClusterName             = here", name="scontrol")
    slurm.says("")
    there, here = run(tmp_path, "a"), run(tmp_path, "b")
    for sample, cluster in ((there, "elsewhere"), (here, "here")):
        body = {"kind": "submitted", "where": "slurm", "slurm_job_id": "42", "cluster": cluster, "time": ago(62)}
        sample.rundir.ledger.append(body)
    assert stands(there) == ("queued", "")
    assert stands(here)[0] == "failed"
    assert len(slurm.calls("scontrol")) == 1
    with pytest.raises(OperationError, match="is on the cluster 'elsewhere', and this is 'here'"):
        cancel(there.rundir)
    assert not there.rundir.story().of_kind("cancel")
