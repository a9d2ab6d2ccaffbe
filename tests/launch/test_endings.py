from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpctool import files
from hpctool.errors import FencedError, Stopped
from hpctool.launch import alert, closing, endings
from hpctool.launch.endings import Verdict
from hpctool.launch.ranks import Outcome
from hpctool.launch.result import own_process
from hpctool.rundir import RunDir, create_run, now
from hpctool.world import World

KILLED = Outcome((0, -9), first_rank=1)
STOPPED = Outcome((75, 75), first_rank=0)


class Played:
    """A run whose attempts are played by writing what a task would write."""

    def __init__(self, path: Path) -> None:
        self.rundir = create_run(path, {"identity": "0" * 64, "job": "train", "name": "toy"}, {})
        self.before = self.rundir.story()

    def begin(self) -> None:
        self.before = self.rundir.story()
        number = self.before.attempt + 1
        self.add("begun", attempt=number, where="local", time=now(), **own_process())

    def add(self, kind: str, **more: Any) -> None:
        self.rundir.ledger.append({"kind": kind, **more})

    def checkpoint(self, step: int) -> None:
        self.add("checkpoint", attempt=self.rundir.story().attempt, step=step, path="", digest="")

    def said(self, state: str, cause: str, code: int) -> None:
        self.add("ended", attempt=self.rundir.story().attempt, state=state, cause=cause, step=0, exit_code=code)

    def ends(self, outcome: Outcome, max_failures: int = 3, cancelled_by: str = "") -> Verdict:
        verdict = endings.judge(self.rundir, self.before, outcome, max_failures, cancelled_by)
        endings.record(self.rundir, self.before, outcome, verdict)
        return verdict


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path / "toy-00000000")


def test_what_the_task_recorded_as_completed_is_completed_whatever_died_afterwards(played: Played) -> None:
    played.begin()
    played.said("completed", "", 0)
    assert played.ends(Outcome((0, -11), first_rank=1)).state == "completed"
    assert len(played.rundir.story().of_kind("ended")) == 1


@pytest.mark.parametrize(("kind", "state"), [("WorldError", "requeued"), ("ValueError", "failed")])
def test_a_rank_that_only_lost_one_which_stopped_does_not_fail_the_run(played: Played, kind: str, state: str) -> None:
    played.begin()
    path = played.rundir.error(0, 1)
    path.parent.mkdir(parents=True)
    files.write_json(path, {"rank": 0, "type": kind, "message": "no", "time": now()})
    assert played.ends(Outcome((1, 75), first_rank=0)).state == state


def test_an_attempt_that_was_replaced_does_not_put_its_end_in_the_place_of_the_runs(played: Played) -> None:
    played.begin()
    played.begin()
    late, newest = (RunDir(played.rundir.path, attempt) for attempt in (1, 2))
    closing.completed(newest, World(), {"step": 40, "param_digest": "abc"})
    closing.failed(late, "local", World(), FencedError(late.id, 1, 2))
    assert played.rundir.story().state == "completed"
    assert (newest.result() or {})["state"] == "completed"
    assert (newest.result() or {})["param_digest"] == "abc"


def test_what_an_attempt_leaves_that_was_replaced_is_neither_a_result_nor_an_alarm(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(alert, "tell", lambda _run, state, cause: told.append(f"{state} {cause}"))
    played.begin()
    before = played.before
    played.begin()
    newest, late = (RunDir(played.rundir.path, attempt) for attempt in (2, 1))
    closing.completed(newest, World(), {"step": 40})
    # Its supervisor judges late what its ranks came to, which end by an error and by a stop.
    endings.record(late, before, Outcome((1,), first_rank=0), Verdict("failed", "rank 0 failed"))
    assert closing.stopped(late, "local", True, Stopped("preempted", 7)) == 1
    closing.failed(late, "local", World(), ValueError("late"))
    assert told == ["completed "]
    assert (newest.result() or {})["state"] == "completed"
    assert played.rundir.story().state == "completed"


def test_exit_code_zero_without_a_recorded_end_is_a_failure(played: Played) -> None:
    played.begin()
    assert played.ends(Outcome((0, 0))).state == "failed"
    assert "did not record the end" in played.rundir.story().cause


def test_a_stop_that_saved_is_requeued_in_the_tasks_own_words(played: Played) -> None:
    played.begin()
    played.said("requeued", "preempted", 75)
    assert played.ends(STOPPED) == Verdict("requeued", "preempted", recorded=True)


def test_a_rank_killed_while_it_was_leaving_has_saved_all_the_same(played: Played) -> None:
    played.begin()
    played.checkpoint(5)
    played.said("requeued", "timeout", 75)
    assert played.ends(Outcome((-15, 75), first_rank=0, told="timeout")).recorded
    assert played.rundir.story().cause == "timeout"


def test_failures_with_progress_between_them_never_give_up(played: Played) -> None:
    for step in range(1, 6):
        played.begin()
        played.checkpoint(step)
        assert played.ends(KILLED, max_failures=1).state == "requeued"


def test_different_failures_without_progress_give_up_after_so_many(played: Played) -> None:
    states = []
    for number in (9, 11, 7):
        played.begin()
        states.append(played.ends(Outcome((-number,), first_rank=0), max_failures=2).state)
    assert states == ["requeued", "requeued", "failed"]
    assert "failure 3 without progress beyond step 0" in played.rundir.story().cause


def test_failures_before_an_attempt_begins_are_counted_as_well(played: Played) -> None:
    for expected in ("requeued", "failed"):
        played.before = played.rundir.story()
        assert played.ends(KILLED).state == expected


def test_a_preemption_between_two_failures_is_no_failure_and_no_progress(played: Played) -> None:
    played.begin()
    assert played.ends(KILLED).state == "requeued"
    played.begin()
    played.said("requeued", "preempted", 75)
    assert played.ends(STOPPED).state == "requeued"
    played.begin()
    assert played.ends(KILLED).state == "failed"


def test_submitted_again_all_failures_are_forgiven(played: Played) -> None:
    for _ in range(2):
        played.begin()
        played.ends(KILLED)
    assert played.rundir.story().state == "failed"
    played.add("submitted", where="local")
    played.begin()
    assert played.ends(KILLED).state == "requeued"


def test_a_time_limit_without_progress_counts_as_failure(played: Played) -> None:
    told = Outcome((75,), first_rank=0, told="timeout")
    for expected in ("requeued", "failed"):
        played.begin()
        played.said("requeued", "timeout", 75)
        assert played.ends(told).state == expected
    assert "the time limit came without progress" in played.rundir.story().cause


def test_what_the_supervisors_own_end_killed_is_no_failure(played: Played) -> None:
    for _ in range(3):
        played.begin()
        assert played.ends(Outcome((-9,), first_rank=0, told="shutdown"), max_failures=1).state == "requeued"


def test_a_cancelled_run_is_cancelled_however_it_ended(played: Played) -> None:
    played.begin()
    endings.record_cancel(played.rundir, "me@here")
    assert played.rundir.story().state == "stopping"
    assert played.ends(KILLED, cancelled_by="me@here").state == "cancelled"
    story = played.rundir.story()
    assert (story.state, story.cause) == ("cancelled", "cancelled by me@here")
    result = played.rundir.result()
    assert result is not None
    assert result["state"] == "cancelled"


def test_an_error_of_another_rank_than_0_replaces_what_rank_0_saw_of_it(played: Played) -> None:
    played.begin()
    played.said("failed", "rank 0: WorldError: lost its peers", 1)
    log = played.rundir.log(1, attempt=1)
    log.parent.mkdir(parents=True)
    log.write_text("Traceback\nValueError: no such lamp\n")
    played.ends(Outcome((1, 1), first_rank=1))
    assert played.rundir.story().cause == "rank 1 failed: ValueError: no such lamp (logs/1/1.log)"


def test_an_attempt_of_somebody_else_is_not_ended_for_them(played: Played) -> None:
    played.begin()
    played.add("begun", attempt=2, where="slurm", time=now(), host="elsewhere", pid=1, pid_start="1")
    played.ends(Outcome((1,), first_rank=0))
    story = played.rundir.story()
    assert (story.state, story.attempt) == ("running", 2)
    assert story.of_kind("ended")[0]["attempt"] == 1


def test_only_an_attempt_whose_process_is_gone_is_closed_as_lost(played: Played) -> None:
    played.begin()  # by this process, which lives
    endings.record_lost(played.rundir)
    assert played.rundir.story().state == "running"
    played.add("begun", attempt=2, where="local", time=now(), **{**own_process(), "pid_start": "1"})
    endings.record_lost(played.rundir)
    assert (played.rundir.story().state, played.rundir.story().cause) == ("requeued", "its supervisor was gone")
