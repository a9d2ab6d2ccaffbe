"""The table of stops: what Slurm says of a job that is being stopped, and what that means."""

from __future__ import annotations

import datetime

import pytest

from hpctool.launch.slurm.inside import Limits, Stop, judge

NOW_S = 1_800_000_000.0
LIMITS = Limits(grace_s=10.0, kill_wait_s=5.0)
NO_GRACE = Limits(grace_s=0.0, kill_wait_s=5.0)


def at(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(NOW_S + seconds).strftime("%Y-%m-%dT%H:%M:%S")


def job(state: str, **values: str) -> dict[str, str]:
    usual = {
        "PreemptTime": "None",
        "Restarts": "0",
        "StartTime": at(-600),
        "EndTime": at(3000),
        "TimeLimit": "01:00:00",
    }
    return {"JobState": state, **usual, **values}


@pytest.mark.parametrize(
    ("record", "limits", "expected"),
    [
        (job("RUNNING", PreemptTime=at(-2)), LIMITS, Stop("preempted", "incomplete", NOW_S + 13)),
        (job("COMPLETING", Restarts="1"), NO_GRACE, Stop("requeued")),
        (job("COMPLETING", PreemptTime=at(-1), EndTime=at(-1)), NO_GRACE, Stop("preempted", "plain", NOW_S + 4)),
        (job("COMPLETING", EndTime=at(-1)), LIMITS, Stop("cancelled", deadline_s=NOW_S + 4)),
        (job("COMPLETING", PreemptTime=at(-3), EndTime=at(-1)), LIMITS, Stop("cancelled", deadline_s=NOW_S + 4)),
        (job("COMPLETING", PreemptTime=at(-12), EndTime=at(-4)), LIMITS, Stop("cancelled", deadline_s=NOW_S + 1)),
        (job("COMPLETING", PreemptTime=at(-2), EndTime=at(-2)), LIMITS, Stop("preempted", "plain", NOW_S + 3)),
        (job("COMPLETING", PreemptTime=at(-12), EndTime=at(-2)), LIMITS, Stop("preempted", "plain", NOW_S + 3)),
        (job("COMPLETING", PreemptTime=at(-12), EndTime="Unknown"), LIMITS, Stop("preempted", "plain", NOW_S + 3)),
        (job("RUNNING", EndTime=at(100)), LIMITS, Stop("timeout", "incomplete", NOW_S + 100)),
        (job("RUNNING"), LIMITS, Stop("signal", "incomplete")),
        (job("SUSPENDED", PreemptTime="Unknown"), LIMITS, Stop("signal", "incomplete")),
        (job("COMPLETING", StartTime=at(-3601)), LIMITS, Stop("timeout", "plain", NOW_S + 4)),
        (job("COMPLETING", TimeLimit="UNLIMITED", EndTime="Unknown"), LIMITS, Stop("cancelled")),
    ],
    ids=[
        "preempted with grace",
        "requeued by Slurm or an admin",
        "preempted CANCEL without grace",
        "scancel",
        "scancel within the grace time",
        "scancel within the grace time, looked at behind it",
        "CANCEL after the grace time, when PreemptTime was set anew",
        "CANCEL after the grace time",
        "CANCEL after the grace time, without an end",
        "time limit near",
        "a signal by hand",
        "suspended",
        "after the time limit",
        "scancel of a job without limit",
    ],
)
def test_every_row_of_the_table(record: dict[str, str], limits: Limits, expected: Stop) -> None:
    assert judge(record, 0, limits, NOW_S) == expected


def test_a_restart_that_was_known_before_is_no_requeue() -> None:
    assert judge(job("COMPLETING", Restarts="2"), 2, LIMITS, NOW_S).cause == "cancelled"


def test_only_a_cancelled_job_ends_cancelled() -> None:
    assert {Stop(cause).state for cause in ("preempted", "timeout", "requeued", "signal")} == {"requeued"}
    assert Stop("cancelled").state == "cancelled"
