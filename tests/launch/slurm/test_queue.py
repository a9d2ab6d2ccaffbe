"""One squeue for all: how seldom it is asked, how it is read, and what stands while it does not answer."""

from __future__ import annotations

import datetime
import json
import stat
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from hpctool.launch.slurm.ask import moment_s, seconds
from hpctool.launch.slurm.queue import Answer, Job, Queue, cache_key, parse
from tests.launch.slurm.stand_ins import StandIns

RUNNING = "42|RUNNING|1:00:00|3:04|2026-11-22T14:00:00|n[1-2]|None"
PENDING = "43|PENDING|2-00:00:00|0:00|N/A||Priority"

Spawn = Callable[..., "subprocess.Popen[str]"]

#: A shell that asks; prints the ids it was told.
SHELL = """
import sys
from hpctool.launch.slurm.queue import Queue
print(*sorted(Queue().answer().jobs))
"""


# -- reading


def test_a_line_is_a_job_with_its_state_reason_nodes_and_times() -> None:
    jobs = parse(f"{RUNNING}\n{PENDING}\n")
    start_s = datetime.datetime(2026, 11, 22, 14).timestamp()
    assert jobs["42"] == Job("RUNNING", "", "n[1-2]", start_s, 3600.0, 184.0)
    assert jobs["43"] == Job("PENDING", "Priority", "", None, 172_800.0, 0.0)
    assert not jobs["42"].waits
    assert jobs["43"].waits


def test_cells_that_wait_together_are_taken_apart() -> None:
    jobs = parse("7_[3,5-6,10-14:2%4]|PENDING|1:00|0:00|N/A||Resources\n7_1|RUNNING|1:00|0:01|N/A|n1|None")
    assert sorted(jobs, key=lambda job_id: int(job_id[2:])) == ["7_1", "7_3", "7_5", "7_6", "7_10", "7_12", "7_14"]
    assert jobs["7_12"].reason == "Resources"
    assert len(parse("8_[0-9999%64]|PENDING|1:00|0:00|N/A||Priority")) == 10_000


def test_reasons_may_hold_anything_and_other_lines_are_no_jobs() -> None:
    text = "CLUSTER: big\n44|PENDING|1:00|0:00|N/A||(ReqNodeNotAvail, UnavailableNodes:n[1|2])\nslurm: hello\n"
    assert parse(text)["44"].reason == "(ReqNodeNotAvail, UnavailableNodes:n[1|2])"
    assert set(parse(text)) == {"44"}
    assert set(parse("50+0|RUNNING|1:00|0:01|N/A|n1|None\n50+1|RUNNING|1:00|0:01|N/A|n2|None")) == {"50", "50+1"}


def test_a_state_that_nobody_knows_is_neither_waiting_nor_over() -> None:
    job = parse("45|DREAMING|1:00|0:00|N/A||None")["45"]
    assert (job.state, job.waits, job.is_over) == ("DREAMING", False, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3:04", 184), ("2:03:04", 7384), ("1-02:03:04", 93784), ("UNLIMITED", None), ("NOT_SET", None), ("", None)],
)
def test_durations(text: str, expected: float | None) -> None:
    assert seconds(text) == expected


def test_a_time_that_slurm_does_not_know_is_none() -> None:
    assert moment_s("N/A") is None


# -- sharing


@pytest.mark.slow
def test_many_shells_at_once_ask_once(slurm: StandIns, spawn: Spawn) -> None:
    slurm.says(RUNNING)
    slurm.takes(0.5)
    shells = [spawn(SHELL) for _ in range(5)]
    answers = [shell.communicate(timeout=60) for shell in shells]
    assert answers == [("42\n", "")] * 5
    assert len(slurm.calls()) == 1


def test_an_answer_is_good_for_a_while_and_then_asked_for_anew(
    slurm: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.says(RUNNING)
    queue = Queue()
    assert set(queue.answer().jobs) == set(Queue().answer().jobs) == {"42"}
    slurm.says(PENDING)
    assert set(Queue().answer().jobs) == {"42"}
    monkeypatch.setenv("HPCTOOL_SQUEUE_EVERY_S", "0.01")
    kept = json.loads(slurm.cache().read_text())
    slurm.cache().write_text(json.dumps(kept | {"pause_s": 0.0}))
    time.sleep(0.02)
    assert set(Queue().answer().jobs) == {"43"}
    assert set(queue.answer().jobs) == {"42"}, "what one command has been told it keeps"
    assert len(slurm.calls()) == 2


def test_nothing_is_asked_before_somebody_needs_it(slurm: StandIns) -> None:
    assert Queue().problem == ""
    assert not slurm.calls()


def test_it_is_asked_for_all_of_ones_own_jobs_whatever_the_environment_would_leave_out(
    slurm: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_PARTITION", "SQUEUE_STATES", "SLURM_TIME_FORMAT", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "relative")
    slurm.says(RUNNING)
    Queue().answer()
    (call,) = slurm.calls()
    assert "--me" in call
    assert "--states=all" in call
    assert "--array-unique" in call
    environ = slurm.environ()
    assert not {"SQUEUE_PARTITION", "SQUEUE_STATES", "SLURM_JOB_ID"} & set(environ)
    assert (environ["SLURM_BITSTR_LEN"], environ["SLURM_TIME_FORMAT"]) == ("0", "standard")


def test_nobody_else_can_read_the_shared_answer(slurm: StandIns) -> None:
    slurm.says(RUNNING)
    Queue().answer()
    assert stat.S_IMODE(slurm.cache().stat().st_mode) == 0o600
    assert stat.S_IMODE(slurm.cache().parent.stat().st_mode) == 0o700


def test_another_configuration_is_another_cluster(slurm: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.says(RUNNING)
    Queue().answer()
    monkeypatch.setenv("SLURM_CONF", str(slurm.folder / "other.conf"))
    slurm.says(PENDING)
    assert set(Queue().answer().jobs) == {"43"}
    (slurm.cache().parent / f"squeue-{cache_key()}.json").unlink()


def test_a_damaged_answer_is_asked_for_anew(slurm: StandIns) -> None:
    slurm.says(RUNNING)
    Queue().answer()
    slurm.cache().write_text("{")
    assert set(Queue().answer().jobs) == {"42"}


# -- a Slurm in trouble


def age(slurm: StandIns, **changes: Any) -> dict[str, Any]:
    """Let the shared answer look older."""
    kept: dict[str, Any] = json.loads(slurm.cache().read_text())
    kept |= {key: kept[key] - value for key, value in changes.items()}
    slurm.cache().write_text(json.dumps(kept))
    return kept


def test_a_controller_that_is_down_leaves_the_old_answer_with_its_age(slurm: StandIns) -> None:
    slurm.says(RUNNING)
    Queue().answer()
    age(slurm, tried_s=300, asked_s=300)
    slurm.fails("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    queue = Queue()
    answer = queue.answer()
    assert set(answer.jobs) == {"42"}
    assert "Unable to contact slurm controller" in queue.problem
    assert queue.problem.endswith("is 5 min old.")
    assert Queue().answer().asked_s == answer.asked_s
    assert len(slurm.calls()) == 2, "while it is down it is left in peace"


@pytest.mark.slow
def test_it_is_asked_more_and_more_rarely_while_it_does_not_answer(slurm: StandIns) -> None:
    slurm.fails("slurm_load_jobs error: Socket timed out on send/recv operation")
    pauses = []
    for _ in range(7):
        assert "Socket timed out" in Queue().answer().problem
        pauses.append(age(slurm, tried_s=1000)["pause_s"])
    assert pauses == [20, 40, 80, 160, 300, 300, 300]
    slurm.says(RUNNING)
    assert Queue().answer().problem == ""
    assert age(slurm, tried_s=0)["pause_s"] == 10


@pytest.mark.slow
def test_a_slow_controller_is_asked_less_often(slurm: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCTOOL_SQUEUE_EVERY_S", "0.1")
    slurm.says(RUNNING)
    slurm.takes(0.5)
    Queue().answer()
    assert age(slurm)["pause_s"] >= 2.5


def test_where_there_is_no_squeue_it_says_so(slurm: StandIns) -> None:
    (slurm.folder / "squeue").write_text("#!/nowhere\n")
    answer = Queue().answer()
    assert answer.jobs == {}
    assert answer.asked_s == 0
    assert "squeue" in answer.problem


def test_an_answer_tells_of_what_was_before_it_with_room_for_clocks() -> None:
    answer = Answer(asked_s=100.0)
    assert answer.is_after(90.0)
    assert not answer.is_after(99.0)
