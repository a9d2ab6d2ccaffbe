"""Ranks that do not get any further: the late one is named, and the run comes back and ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hpctool import files
from hpctool.launch.stacks import rank_processes
from hpctool.rundir import RunDir
from tests.train.conftest import Attempt, MakeRun

pytestmark = pytest.mark.slow

BASE = (
    "task._target_=usersown.Faulty",
    "loop={max_steps: 60, global_batch_size: 24, checkpoint_every_steps: 20}",
    "cluster.hang={step_s: 4, step_p95: 1, start_min: 1, first_step_min: 1, evaluation_min: 1, save_min: 1}",
)


def digest(rundir: RunDir) -> str:
    return str((rundir.result() or {})["param_digest"])


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline_s:
        time.sleep(0.1)


def end_with_the_attempt(run: RunDir, rank: int) -> None:
    """As whoever ends the attempt does: here nobody else would reap a rank that cannot end itself."""
    deadline_s = time.monotonic() + 120
    while not run.story().of_kind("ended") and time.monotonic() < deadline_s:
        time.sleep(0.1)
    os.kill(rank_processes(run, 1)[rank].pid, signal.SIGKILL)


def test_a_rank_that_does_not_come_is_named_and_the_run_goes_on_exactly(make_run: MakeRun, attempt: Attempt) -> None:
    straight, run = make_run(*BASE, "name=straight"), make_run(*BASE, "name=hanging")
    assert attempt(straight, 3) == [0, 0, 0]
    # Two discarded passes: pass 47 is step 45.
    assert attempt(run, 3, FAULT="hang 2 47") == [75, 75, 75]
    ended = run.story().of_kind("ended")[-1]
    assert ended["cause"] == "hang: rank 2 stands in step 45 (forward), the others wait in step 45 (backward)"
    assert (ended["state"], ended["step"], ended["failure"]) == ("requeued", 40, True)
    error = files.read_json(run.error(2, 1))
    assert error["type"] == "HangError"
    assert "time.sleep" in error["traceback"] or "commit_fault" in error["traceback"]
    assert "in commit_fault" in run.stacks(2, 1).read_text()
    assert "backward" in run.stacks(0, 1).read_text()
    assert attempt(run, 3) == [0, 0, 0]
    assert digest(run) == digest(straight)


def test_a_rank_that_is_frozen_is_named_by_the_others(make_run: MakeRun, attempt: Attempt) -> None:
    run = make_run(*BASE)
    helper = threading.Thread(target=end_with_the_attempt, args=(run, 0))
    helper.start()
    assert attempt(run, 3, FAULT="freeze 0 40") == [-9, 75, 75]
    helper.join()
    cause = run.story().cause
    assert cause.startswith("hang: rank 0 gives no sign of life, the others wait in step 38 (backward)"), cause
    assert "it is stopped" in cause
    assert run.story().state == "requeued"


def test_a_rank_that_holds_the_interpreters_lock_is_named_by_the_others_with_its_stack(
    make_run: MakeRun, attempt: Attempt
) -> None:
    # Its watchdog is a thread of Python's and cannot run; the lock is held in C for ten minutes.
    run = make_run(*BASE)
    helper = threading.Thread(target=end_with_the_attempt, args=(run, 1))
    helper.start()
    assert attempt(run, 3, FAULT="gil 1 40") == [75, -9, 75]
    helper.join()
    cause = run.story().cause
    assert cause.startswith("hang: rank 1 gives no sign of life, the others wait in step 38 (backward)"), cause
    assert "in commit_fault" in run.stacks(1, 1).read_text()


def test_a_suspended_job_is_not_hanging(make_run: MakeRun, attempt: Attempt) -> None:
    run = make_run(*BASE, "loop.max_steps=600", "loop.checkpoint_every_steps=100")

    def suspend() -> None:
        wait_for(run.checkpoint(100, 1))
        pids = [one.pid for one in rank_processes(run, 1)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                os.kill(pid, number)
            # Twice as long as any step may take.
            time.sleep(9 if number == signal.SIGSTOP else 0)

    helper = threading.Thread(target=suspend)
    helper.start()
    assert attempt(run, 3) == [0, 0, 0]
    helper.join()
    assert json.loads(run.result_json.read_text())["step"] == 600


def test_the_same_hang_twice_without_progress_is_the_end(make_run: MakeRun, attempt: Attempt) -> None:
    run = make_run(*BASE)
    assert attempt(run, 1, FAULT="hang 0 30") == [75]
    assert run.story().cause == "hang: it stands in step 30 (forward)"
    assert attempt(run, 1, FAULT="hang 0 10") == [1]
    assert run.story().state == "failed"
    assert "the same happened before at step 20" in run.story().cause
