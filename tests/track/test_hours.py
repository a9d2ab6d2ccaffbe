"""GPU- and CPU-hours: what an attempt held for how long, and what was done twice."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hpctool.rundir import Story
from hpctool.track.hours import Hours, Size, Span, of_run, size_of, spans
from tests.track.samples import Sample

T0 = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)


def at(minutes: float) -> str:
    """So many minutes after noon, as a ledger says it."""
    return (T0 + datetime.timedelta(minutes=minutes)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_s(minutes: float) -> float:
    return (T0 + datetime.timedelta(minutes=minutes)).timestamp()


def checkpoint(run: Sample, step: int, minutes: float) -> None:
    body = {"kind": "checkpoint", "attempt": run.rundir.attempt, "step": step, "path": f"checkpoints/{step}"}
    run.rundir.ledger.append({**body, "digest": "", "time": at(minutes)})


def end(run: Sample, state: str, minutes: float, attempt: int | None = None) -> None:
    body = {"kind": "ended", "attempt": attempt or run.rundir.attempt, "state": state, "cause": "", "step": 0}
    run.rundir.ledger.append({**body, "exit_code": 0, "time": at(minutes)})


def minutes_of(run: Sample, at_minutes: float = 1000) -> list[tuple[float, float, bool]]:
    found = spans(run.rundir, run.rundir.story(), now_s(at_minutes))
    return [(span.used_s / 60, span.lost_s / 60, span.is_estimate) for span in found]


def test_what_was_done_after_the_newest_checkpoint_of_a_preempted_attempt_is_lost(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin(time=at(0))
    checkpoint(run, 100, 20)
    end(run, "requeued", 30)
    run.begin(time=at(60))
    end(run, "completed", 90)
    assert minutes_of(run) == [(30, 10, False), (30, 0, False)]


def test_an_attempt_that_saved_nothing_is_lost_altogether(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin(time=at(0))
    end(run, "requeued", 30)
    assert minutes_of(run) == [(30, 30, False)]


def test_what_ended_for_good_is_not_done_twice(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin(time=at(0))
    end(run, "failed", 30)
    assert minutes_of(run) == [(30, 0, False)]


def test_what_runs_counts_until_now(tmp_path: Path) -> None:
    assert minutes_of(Sample(tmp_path).begin(time=at(0)), 45) == [(45, 0, False)]


def test_an_attempt_without_an_end_counts_until_it_was_last_heard_of_and_says_so(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin(time=at(0)).say("hello")
    checkpoint(run, 100, 10)
    log = run.rundir.log(0)
    os.utime(log, (now_s(25), now_s(25)))
    run.begin(time=at(60))
    end(run, "completed", 70)
    assert minutes_of(run) == [(25, 15, True), (10, 0, False)]
    os.utime(log, (now_s(80), now_s(80)))
    assert minutes_of(run)[0] == (60, 50, True), "the next attempt has begun by then"


def test_a_run_that_is_known_to_be_gone_counts_until_it_was_last_heard_of(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin(time=at(0))
    checkpoint(run, 100, 10)
    story = run.rundir.story()
    story.state = "failed"
    (span,) = spans(run.rundir, story, now_s(1000))
    assert (span.used_s, span.is_estimate) == (600, True)


def test_a_job_that_died_before_its_next_attempt_began_does_not_lengthen_the_one_before(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin(time=at(0))
    end(run, "requeued", 30)
    end(run, "failed", 90)
    assert minutes_of(run)[0][0] == 30


@pytest.mark.parametrize(
    ("resources", "num_ranks", "expected"),
    [
        ({"nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "cpus_per_task": 8}, None, Size(8, 64)),
        ({"nodes": 2, "tasks_per_node": 4, "gpus_per_task": "a100:1", "cpus_per_task": 8}, None, Size(8, 64)),
        ({"nodes": 2, "tasks_per_node": 4, "gpus": 6, "cpus_per_task": 8}, None, Size(6, 64)),
        ({"nodes": 2, "tasks_per_node": 1, "gres": "gpu:2,nvme:1", "cpus_per_gpu": 6}, None, Size(4, 24)),
        ({"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 2}, 3, Size(0, 6)),
        ({}, None, Size(0, 1)),
        ({"gres": "a:b:c:d"}, None, Size(0, 1)),
    ],
)
def test_what_a_run_holds(resources: dict[str, Any], num_ranks: int | None, expected: Size) -> None:
    assert size_of(resources, num_ranks) == expected


def test_hours_add_up_and_the_share_that_was_lost_is_that_of_the_gpus() -> None:
    found = Size(4, 32).hours([Span(3600, 360), Span(1800)]) + Size(0, 2).hours([Span(3600, 3600)])
    assert (found.gpu_hours, found.cpu_hours) == (6.0, 50.0)
    assert (found.lost_gpu_hours, found.lost_cpu_hours) == pytest.approx((0.4, 5.2))
    assert found.lost_share == pytest.approx(0.4 / 6)
    assert Size(0, 2).hours([Span(3600, 900)]).lost_share == 0.25
    assert Hours().lost_share == 0.0
    assert Hours.from_json(found.to_json()) == found


def test_a_runs_hours_follow_from_its_ledger_and_its_ranks(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin(time=at(0), world_size=4)
    end(run, "completed", 30)
    found = of_run(run.rundir, run.rundir.story(), {"gpus_per_node": 4, "cpus_per_task": 8}, time.time())
    assert (found.gpu_hours, found.cpu_hours) == (2.0, 16.0)
    assert of_run(run.rundir, Story(), {}, time.time()) == Hours()
