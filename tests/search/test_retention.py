"""Checkpoints of trials that wait: which go first, and which somebody still goes on from."""

from __future__ import annotations

from typing import Any

from hpctool.search import retention
from tests.search.test_decide import Story

GB = 10**9


def paused(story: Story, t: int, value: float, rung: int = 0, gb: float = 1.0) -> None:
    story.paused(t, value, rung)
    story.state.trials[t].saved_bytes = int(gb * GB)


def test_the_worst_of_the_lowest_rung_goes_first_until_the_rest_fits() -> None:
    story = Story(keep_paused_gb=2.0)
    for number, value in enumerate((0.3, 0.1, 0.2)):
        paused(story, number, value)
    story.claim(1, 2, to=1, why="promote")
    paused(story, 1, 0.9, rung=1)
    first = retention.to_drop(story.state)
    assert first is not None
    assert first.number == 0
    story.add("drop", t=0, why="search.keep_paused_gb")
    assert retention.to_drop(story.state) is None
    # It waits on, and may be promoted like any other.
    assert story.state.trials[0].state == "paused"


def test_nothing_goes_where_no_limit_was_asked_for() -> None:
    story = Story()
    paused(story, 0, 0.3, gb=1000.0)
    assert retention.to_drop(story.state) is None


def test_a_member_of_a_population_stays_until_all_of_the_next_generation_have_their_own() -> None:
    pbt: dict[str, Any] = {"population": 2, "interval": 1, "quantile": 0.5, "factors": [0.5], "resample": 0.0}
    design = [{"x": 0.1, "kind": "a"}, {"x": 0.2, "kind": "a"}]
    story = Story(schedule="pbt", pbt=pbt, max_trials=None, design=design, keep_paused_gb=0.5)
    paused(story, 0, 0.1)
    paused(story, 1, 0.2)
    assert retention.to_drop(story.state) is None
    story.propose(2)
    story.propose(3)
    for number in (2, 3):
        story.state.trials[number].parent = 0
    first = retention.to_drop(story.state)
    assert first is not None
    assert first.number == 1
    story.add("drop", t=1, why="")
    assert retention.to_drop(story.state) is None
    paused(story, 2, 0.1, rung=1, gb=0)
    paused(story, 3, 0.1, rung=1, gb=0)
    last = retention.to_drop(story.state)
    assert last is not None
    assert last.number == 0
