"""Told to stop with little time: what there is time for, and what the ledger says of it."""

from __future__ import annotations

import re

import pytest

from hpctool.launch import signals
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
