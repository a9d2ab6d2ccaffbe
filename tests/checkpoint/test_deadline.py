"""What there is still time for is decided by how long saves took."""

from __future__ import annotations

import time

import pytest

from hpctool.checkpoint import Checkpointer
from hpctool.checkpoint.deadline import choose, expected_s
from hpctool.rundir import RunDir
from hpctool.world import World


@pytest.mark.parametrize(
    ("left_s", "step_s", "save_s", "in_flight_s", "choice"),
    [
        (30.0, 2.0, 8.0, 0.0, "step"),
        (13.0, 2.0, 8.0, 0.0, "save"),
        (11.9, 2.0, 8.0, 0.0, "keep"),
        (18.0, 2.0, 8.0, 7.0, "keep"),
        (5.0, 30.0, None, 0.0, "save"),  # nobody knows: trying costs nothing
        (0.0, 1.0, None, 0.0, "save"),
        (-5.0, 1.0, 0.1, 0.0, "keep"),
    ],
)
def test_the_time_left_decides_between_a_step_more_a_save_and_the_last_checkpoint(
    left_s: float, step_s: float, save_s: float | None, in_flight_s: float, choice: str
) -> None:
    assert choose(left_s, step_s, save_s, in_flight_s) == choice


def test_a_single_slow_save_among_many_is_not_expected_and_old_ones_are_forgotten() -> None:
    assert expected_s([]) is None
    assert expected_s([2.0]) == 2.0
    assert expected_s([1.0] * 19 + [60.0]) == 1.0
    assert expected_s([1.0] * 18 + [60.0] * 2) == 60.0
    assert expected_s([60.0] * 20 + [1.0] * 20) == 1.0


@pytest.mark.slow
def test_an_attempt_knows_how_long_the_saves_of_those_before_took(run: RunDir) -> None:
    saver = Checkpointer(run, World())
    assert saver.expected_save_s is None
    saver.save({}, 1, before_commit=lambda: time.sleep(0.5))
    later = Checkpointer(RunDir(run.path, 1), World())
    later.restore()
    measured = later.expected_save_s
    assert measured is not None
    assert measured >= 0.5
    assert later.choose(measured + 100, 1.0) == "step"
    assert later.choose(0.0, 1.0) == "keep"
