"""One job for a run: however many submit it at once, and whatever answer of Slurm's is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpctool.errors import CancelledError, ConflictError, InputError, SchedulerError, SubmitError
from hpctool.launch import handover, starts, submit
from hpctool.launch.start import cancel, retry
from hpctool.rundir import RunDir
from tests.launch.toy_slurm import ToySlurm

TOLD = ["script=work.sh", "cluster=slurm"]
LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_slurm: ToySlurm) -> ToySlurm:
    (tmp_path / "work.sh").write_text("#!/bin/sh\n")
    (tmp_path / "work.sh").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return toy_slurm


def ask() -> RunDir:
    answer = submit.submit(submit.Request("run", TOLD), False, say=lambda _text: None)
    return RunDir(Path(answer.folder))


def fail(rundir: RunDir, slurm: ToySlurm, job: str) -> None:
    """What the job of a run writes when it begins and fails."""
    attempt = rundir.begin({"where": "slurm", "slurm_job_id": job})
    rundir.ledger.append({"kind": "ended", "attempt": attempt, "state": "failed", "cause": "no", "step": 0})
    slurm.ends(job)
    slurm.forget()


def in_background(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpctool.cli.main", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [False, True])
def test_the_same_command_typed_twice_at_once_makes_one_job(slurm: ToySlurm, sweep: bool) -> None:
    slurm.set("slow", 3)
    words = ["run", "-m", *TOLD, "args=[0],[1]"] if sweep else ["run", *TOLD]
    both = [in_background(*words) for _ in range(2)]
    said = [one.communicate()[0] for one in both]
    assert sorted(one.returncode for one in both) in ([0, 1], [0, 0]), said
    assert len(slurm.calls("sbatch")) == 1, said
    if 1 in [one.returncode for one in both]:
        assert sum("was changed by two at once: ours is this submission, theirs is that of" in one for one in said) == 1


@pytest.mark.slow
def test_whoever_decided_before_another_submitted_is_told_so(slurm: ToySlurm) -> None:
    rundir = ask()
    seen = rundir.ledger.last()
    fail(rundir, slurm, "101")
    handover.to_slurm(rundir, [], rundir.ledger.last())
    with pytest.raises(ConflictError, match=f"hpctool runs show {rundir.id}"):
        handover.to_slurm(rundir, [], seen)
    assert slurm.tasks == ["102"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["retry", "ask"])
def test_a_second_submission_whose_answer_was_lost_is_found(slurm: ToySlurm, how: str) -> None:
    rundir = ask()
    fail(rundir, slurm, "101")
    slurm.set("deaf", LOST)
    with pytest.raises(SubmitError, match="timed out"):
        ask()
    slurm.clear("deaf")
    slurm.forget()
    if how == "ask":
        ask()
    else:
        with pytest.raises(InputError, match="is queued"):
            retry(rundir, print)
    assert slurm.tasks == ["102"]
    assert (rundir.story().state, rundir.story().slurm_job_id) == ("queued", "102")


@pytest.mark.slow
def test_a_run_that_slurm_has_refused_says_why_and_can_be_asked_for_again(slurm: ToySlurm) -> None:
    slurm.set("refuse", "sbatch: error: Batch job submission failed: Invalid qos specification")
    with pytest.raises(SubmitError, match="Invalid qos"):
        ask()
    (rundir,) = (RunDir(path.parent) for path in Path("runs").absolute().glob("*/run.json"))
    assert rundir.story().state == "failed"
    assert "not submitted: Batch job submission failed: Invalid qos specification" in rundir.story().cause
    slurm.clear("refuse")
    ask()
    assert (slurm.tasks, rundir.story().state) == (["101"], "queued")


@pytest.mark.slow
def test_a_job_whose_submission_was_not_answered_is_cancelled_in_slurm_too(slurm: ToySlurm) -> None:
    slurm.set("deaf", LOST)
    with pytest.raises(SubmitError):
        ask()
    (rundir,) = (RunDir(path.parent) for path in Path("runs").absolute().glob("*/run.json"))
    assert cancel(rundir) == f"Slurm job 101 of run {rundir.id} is cancelled."
    assert not slurm.tasks


@pytest.mark.slow
def test_a_cancel_that_did_not_reach_slurm_can_be_repeated_and_the_job_does_not_run(
    slurm: ToySlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    rundir = ask()
    slurm.set("silent")
    with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
        cancel(rundir)
    assert rundir.story().state == "cancelled"
    monkeypatch.setenv("SLURM_JOB_ID", "101")

    def begin() -> int:
        return rundir.begin({}, lambda entries: starts.refuse(rundir, entries, starts.of_job()))

    with pytest.raises(CancelledError, match=f"hpctool runs retry {rundir.id} starts it again"):
        begin()
    monkeypatch.setenv("SLURM_JOB_ID", "555")
    assert begin() == 1, "what was submitted by hand is meant"


@pytest.mark.slow
def test_a_cancelled_run_whose_job_waits_on_is_cancelled_once_more(slurm: ToySlurm) -> None:
    rundir = ask()
    slurm.set("silent")
    with pytest.raises(SchedulerError):
        cancel(rundir)
    slurm.clear("silent")
    slurm.forget()
    assert "Slurm job 101" in cancel(rundir)
    assert not slurm.tasks
    slurm.forget()
    with pytest.raises(InputError, match="is cancelled already"):
        cancel(rundir)
