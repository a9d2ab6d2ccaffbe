"""The end of an attempt on Slurm as the batch script's part judges it: srun's words in, the ledger's entry out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpctool import files
from hpctool.launch.slurm import settle
from hpctool.rundir import RunDir, create_run, now

CONFIG = "cluster: {max_failures: 2, max_timeouts: 2}\n"
RUNNING = (
    "JobId=7 JobState=RUNNING Restarts=0 Partition=batch StartTime=2026-01-01T00:00:00 EndTime=2099-01-01T00:00:00"
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose attempt 1 runs as job 7, and a stand-in scontrol that knows this job."""
    for key in [k for k in os.environ if k.startswith("SLURM_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    slurm_says(tmp_path, RUNNING)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    code = {"commit": "", "dirty": False, "snapshot": "none", "patch_sha256": ""}
    record = {"name": "toy", "identity": files.sha256_bytes(b"toy"), "job": "toy", "code": code, "cwd": "/"}
    run = create_run(tmp_path / "runs", record, {"config.yaml": CONFIG})
    run.ledger.append({"kind": "submitted", "where": "slurm", "slurm_job_id": "7", "time": now()})
    begin(run, 1)
    return run


def slurm_says(folder: Path, job: str) -> None:
    answers = {"job": job, "partition": "PartitionName=batch GraceTime=10", "config": "KillWait = 30 sec"}
    cases = "".join(f"*' {kind}'*) echo '{answer}';;\n" for kind, answer in answers.items())
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\ncase " $*" in\n{cases}esac\n')
    program.chmod(0o755)


def begin(run: RunDir, attempt: int, **values: Any) -> None:
    body = {"kind": "begun", "attempt": attempt, "where": "slurm", "slurm_job_id": "7", "host": "elsewhere", "pid": 1}
    run.ledger.append({**body, "restart_count": attempt - 1, "time": now(), **values})


def rank_error(run: RunDir, rank: int, kind: str, message: str) -> None:
    path = run.error(rank, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"rank": rank, "type": kind, "message": message, "time": now()})


def test_a_killed_rank_is_named_and_the_run_tried_again(run: RunDir) -> None:
    assert settle.settle(run, 137, "srun: error: n2: task 3: Killed\nsrun: error: n1: tasks 0-2: Terminated\n") == 75
    end = run.story().of_kind("ended")[-1]
    assert (end["state"], end["cause"]) == ("requeued", "rank 3 was killed by SIGKILL")
    assert end["failure"]


def test_a_job_that_began_after_its_run_was_cancelled_writes_nothing_and_fails(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # an administrator has requeued it
    run.ledger.append({"kind": "cancel", "by": "anna@login", "time": now()})
    run.ledger.append({"kind": "ended", "attempt": 1, "state": "cancelled", "cause": "", "step": 0, "time": now()})
    last = run.ledger.last()
    assert settle.settle(run, 1, "srun: error: n2: task 0: Exited with exit code 1\n") == 1
    assert (run.ledger.last(), run.story().state) == (last, "cancelled")


def test_the_same_death_at_the_same_step_stops_the_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "srun: error: n2: task 3: Segmentation fault (core dumped)\n"
    assert settle.settle(run, 139, said) == 75
    begin(run, 2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert settle.settle(run, 139, said) == 1
    assert "the same happened before at step 0" in run.story().cause


def test_an_error_of_ones_own_is_named_before_those_that_only_lost_their_peers(run: RunDir) -> None:
    rank_error(run, 0, "WorldError", "lost its peers")
    rank_error(run, 2, "ValueError", "bad label")
    assert settle.settle(run, 1, "srun: error: n2: task 2: Exited with exit code 1\n") == 1
    assert run.story().state == "failed"
    assert "rank 2: ValueError: bad label" in run.story().cause


@pytest.mark.parametrize(
    "words",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n",
        "slurmstepd-n1: error: Exceeded job memory limit\nmore\n",
        "srun: error: n2: task 1: Out Of Memory\n",
    ],
)
def test_out_of_memory_is_called_so_and_not_tried_again(run: RunDir, words: str) -> None:
    assert settle.settle(run, 137, "srun: error: n2: task 1: Killed\n", f"1: Killed\n 0: {words}") == 1
    assert run.story().state == "failed"
    assert run.story().cause.startswith(f"out of memory, says Slurm ({words.splitlines()[0]})")


def test_what_a_rank_wrote_down_holds(run: RunDir) -> None:
    body = {"kind": "ended", "attempt": 1, "state": "requeued", "cause": "preempted", "step": 4, "exit_code": 75}
    run.ledger.append({**body, "time": now()})
    assert settle.settle(run, 137, "srun: error: n2: task 3: Killed\n") == 75
    assert len(run.story().of_kind("ended")) == 1


def test_a_job_that_its_user_cancelled_before_it_could_save_is_cancelled(run: RunDir, tmp_path: Path) -> None:
    slurm_says(tmp_path, RUNNING.replace("RUNNING", "COMPLETING") + " PreemptTime=None TimeLimit=1-00:00:00")
    slurm_says(tmp_path, "JobId=7 JobState=COMPLETING Restarts=0 Partition=batch PreemptTime=None TimeLimit=UNLIMITED")
    assert settle.settle(run, 143, "srun: error: n1: task 0: Terminated\n") == 1
    assert run.story().state == "cancelled"


def test_an_attempt_that_never_began_tells_the_last_words_of_its_log(run: RunDir, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert settle.settle(run, 1, "srun: error: n1: task 0: Exited with exit code 1\n") == 1
    assert "rank 0 failed" in run.story().cause


def test_a_node_that_was_cut_off_and_is_back_does_not_requeue_the_job_that_runs_again(run: RunDir) -> None:
    # The same job, begun once more elsewhere: its restarts are counted.
    begin(run, 2)
    assert settle.settle(run, 137, "srun: error: n2: task 3: Killed\n") == 1
    assert run.story().state == "running"
    assert run.result() is None


def test_a_start_that_was_frozen_until_the_next_one_ran_says_nothing_of_it(run: RunDir, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    begin(run, 2, restart_count=2)
    assert settle.settle(run, 1, "srun: error: n1: task 0: Exited with exit code 1\n") == 1
    assert (run.story().state, run.story().of_kind("ended"), run.result()) == ("running", [], None)
