"""Told to stop with little time: what there is time for, and what the ledger says of it."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from hpctool.launch import signals
from hpctool.rundir import RunDir
from tests.train.conftest import Attempt, MakeRun

pytestmark = pytest.mark.slow

BASE = ("task._target_=usersown.Faulty", "loop={max_steps: 16, global_batch_size: 24, checkpoint_every_steps: 4}")


def test_with_no_time_for_a_save_the_newest_checkpoint_is_kept_and_said(make_run: MakeRun, attempt: Attempt) -> None:
    straight, run = make_run(*BASE, "name=straight"), make_run(*BASE, "cluster.kill_wait_s=1", "name=short")
    assert attempt(straight, 3) == [0, 0, 0]
    assert attempt(run, 3, FAULT="stop 1 5") == [75, 75, 75]
    assert run.story().cause == "preempted", "it had never saved, so it tried"
    first = run.story().checkpoints[-1]["step"]
    assert attempt(run, 3, FAULT="stop 2 8") == [75, 75, 75]
    ended = run.story().of_kind("ended")[-1]
    assert re.fullmatch(
        rf"preempted; 1 s are left and a save takes [\d.]+ s, so the checkpoint of step {ended['step']} is kept",
        ended["cause"],
    )
    # What was being written beside the steps may still have come through.
    assert first <= ended["step"] <= run.story().checkpoints[-1]["step"] < first + 6
    assert run.story().checkpoints[-1]["step"] % 4 == 0
    assert attempt(run, 3) == [0, 0, 0]
    assert (run.result() or {})["param_digest"] == (straight.result() or {})["param_digest"]


def test_with_enough_time_it_saves_and_says_how_much_there_was(make_run: MakeRun, attempt: Attempt) -> None:
    run = make_run(*BASE, "cluster.kill_wait_s=90")
    # Step 7 is the end of an epoch, whose validation is given up.
    for step in (4, 7):
        assert attempt(run, 3, FAULT="stop 2 5") == [75, 75, 75]
        ended = run.story().of_kind("ended")[-1]
        assert (ended["cause"], ended["step"]) == ("preempted", step)
    said = run.log(0, 2).read_text()
    assert "told to stop (preempted), " in said
    assert "s are left and a save takes" in said


@pytest.mark.parametrize("is_nohup", [False, True])
def test_a_training_whose_terminal_is_closed_saves_and_one_under_nohup_goes_on(
    root: Path, tmp_path: Path, is_nohup: bool
) -> None:
    words = [
        "train",
        "data.name=stripes",
        f"paths.datasets={root}/datasets",
        f"paths.runs={tmp_path}/runs",
        "track=off",
    ]
    words += ["loop={max_steps: 3000, global_batch_size: 24, checkpoint_every_min: 60}", "code=rerun"]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if is_nohup else signal.SIG_DFL)
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "hpctool.cli.main", *words])
    deadline_s = time.monotonic() + 60
    while not (made := [*tmp_path.glob("runs/train-*/logs/1/0.beat")]) or '"phase": "step"' not in made[0].read_text():
        assert time.monotonic() < deadline_s, [*tmp_path.glob("runs/*/logs/1/*")]
        time.sleep(0.02)
    os.close(terminal)  # the kernel sends SIGHUP to the session
    code, run = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), RunDir(made[0].parents[2])
    if is_nohup:
        assert (code, run.story().state, run.story().step) == (0, "completed", 3000)
    else:
        assert (code, run.story().of_kind("ended")[-1]["cause"]) == (130, "interrupted")
        assert 0 < run.story().checkpoints[-1]["step"] == run.story().step < 3000


def test_the_nearest_end_counts_and_what_slurm_says_counts_more() -> None:
    try:
        assert signals.seconds_left() is None
        signals.grace({"timeout": 150.0, "preempted": 30.0})
        signals.request_stop("timeout")
        assert 100 < (signals.seconds_left() or 0) <= 150
        signals.request_stop("preempted")
        assert (signals.seconds_left() or 0) <= 30
        signals.know_deadline(60.0)
        assert 30 < (signals.seconds_left() or 0) <= 60
    finally:
        signals.clear()
        signals.grace({})
