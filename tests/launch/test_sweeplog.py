"""The log of a sweep tells how cells stand that have no folder yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpctool.launch import cells, sweeplog
from hpctool.launch.slurm.queue import Answer, Job, Queue
from hpctool.launch.sweeplog import ARRAY, CLAIMS, LOCAL, SweepLog, from_ranges, newest, stories, to_ranges

GOLDEN = Path(__file__).parents[1] / "assets" / "sweep_v1" / "run-5c2ff0d1"
CODE = {"snapshot": "0123456789ab"}
THEN, LATER_S = "2026-01-01T00:00:00.000Z", 1_800_000_000.0


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepLog:
    monkeypatch.setattr(sweeplog, "now", lambda: THEN)
    return SweepLog(tmp_path)


class Told(Queue):
    """A queue that has answered once, with these tasks in it."""

    def __init__(self, *tasks: str, asked_s: float = LATER_S) -> None:
        super().__init__()
        self.said = Answer(dict.fromkeys(tasks, Job("PENDING")), asked_s)

    def answer(self) -> Answer:
        return self.said


def submit(log: SweepLog, cells: list[int], job: str, mode: str = ARRAY) -> int:
    number = log.submitting(cells, mode, CODE, 8)
    log.submitted(number, job)
    return number


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8"), (list(range(1000)), "0-999")]
)
def test_cells_are_written_as_ranges(numbers: list[int], text: str) -> None:
    assert to_ranges(numbers) == text
    assert from_ranges(text) == numbers


def states(log: SweepLog, cells: list[int], queue: Queue) -> list[tuple[str, str]]:
    return [(story.state, story.slurm_job_id) for story in stories(cells, log, queue).values()]


def test_a_cell_waits_in_the_task_of_its_array_as_long_as_that_is_there(log: SweepLog) -> None:
    submit(log, [2, 4, 6], "10")
    assert states(log, [2, 4, 6], Told("10_0", "10_2")) == [
        ("queued", "10_0"),
        ("cancelled", "10_1"),
        ("queued", "10_2"),
    ]
    # An answer from before the submission says nothing about it.
    assert states(log, [4], Told(asked_s=1.0)) == [("queued", "10_1")]


def test_a_cell_that_was_never_submitted_has_no_entries(log: SweepLog) -> None:
    submit(log, [0], "10")
    assert [bool(story.entries) for story in stories([0, 1], log, Told("10_0")).values()] == [True, False]


def test_the_newest_submission_counts_and_one_that_was_refused_does_not(log: SweepLog) -> None:
    submit(log, [0, 1, 2], "10")
    submit(log, [1], "11")
    number = log.submitting([2], ARRAY, CODE, 8)
    log.refused(number, "Slurm is tired")
    assert {cell: one.slurm_job_id for cell, one in newest(log.submissions()).items()} == {0: "10", 1: "11", 2: "10"}


def test_cancelled_holds_for_what_was_submitted_before_and_not_after(log: SweepLog) -> None:
    submit(log, [0, 1, 2], "10")
    log.cancelled([1, 2])
    submit(log, [2], "11")
    told = stories([0, 1, 2], log, Told("10_0", "10_1", "11_0"))
    assert [story.state for story in told.values()] == ["queued", "cancelled", "queued"]
    assert "before it began" in told[1].cause


def test_cells_that_are_claimed_wait_for_any_task_until_one_has_claimed_them(log: SweepLog) -> None:
    number = submit(log, [5, 6, 7], "10", CLAIMS)
    log.claims_log(number).append({"task": "10_0", "slot": 0, "time": THEN})
    assert states(log, [5, 6, 7], Told("10_0", "10_1")) == [("queued", ""), ("queued", ""), ("queued", "")]
    # The task that has claimed the first is gone; another one is there for the others.
    assert states(log, [5, 6, 7], Told("10_1")) == [("cancelled", ""), ("queued", ""), ("queued", "")]
    assert states(log, [5, 6, 7], Told()) == [("cancelled", "")] * 3


def test_slurm_is_not_asked_about_what_it_does_not_have(log: SweepLog) -> None:
    class Deaf(Queue):
        def answer(self) -> Answer:
            raise AssertionError("asked")

    log.submitting([0, 1], LOCAL, CODE, 8)
    log.cancelled([1])
    assert [story.state for story in stories([0, 1, 2], log, Deaf()).values()] == ["queued", "cancelled", "queued"]
    assert not sweeplog.is_in_slurm(log, Deaf())


def test_the_code_is_that_of_the_newest_submission(log: SweepLog) -> None:
    assert log.code() is None
    submit(log, [0], "10")
    log.submitting([0], ARRAY, {"snapshot": "new"}, 8)
    assert log.code() == {"snapshot": "new"}


def test_a_submission_nobody_has_confirmed_is_unknown(log: SweepLog) -> None:
    log.submitting([0], ARRAY, CODE, 8)
    (one,) = log.submissions()
    assert one.is_unknown
    assert not one.is_being_made()  # that was long ago


def test_a_sweep_of_format_1_is_read_for_ever() -> None:
    sweep = cells.read_sweep(GOLDEN)
    assert sweep.run_ids == ["run-00000000", "run-00000001", "run-00000002"]
    assert [cells.plain_config(sweep, index)["args"] for index in range(3)] == [["a"], ["b"], ["c"]]
    log = SweepLog(GOLDEN)
    first, second, third = log.submissions()
    assert (first.slurm_job_id, first.mode, first.cells, first.share) == ("101", ARRAY, [0, 1, 2], 2)
    assert first.cancelled == {2: "ann@login1"}
    assert (second.slurm_job_id, second.mode, second.cluster, second.is_refused) == ("102", CLAIMS, "big", False)
    assert (third.positions, third.is_refused) == ({0: 0, 2: 5}, True)
    assert {cell: one.number for cell, one in newest(log.submissions()).items()} == {0: 1, 1: 4, 2: 4}
    assert log.claims(second.number) == {0: "102_0"}
    assert log.children() == ["export-00000001"]
