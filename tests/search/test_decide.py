"""What a worker does next, and where the next point comes from: pure functions of a journal's entries."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest

from hpctool.errors import NewerFormat
from hpctool.log import Entry
from hpctool.search import decide, propose
from hpctool.search.journal import State, fold
from hpctool.search.pbt import child_of
from hpctool.search.shown import shown
from hpctool.search.space import Axis, Space
from hpctool.search.spec import Prior, Spec

SPACE = Space([Axis("x", "float", [], 0.0, 1.0), Axis("kind", "choice", ["a", "b"])])
SPEC = Spec("s", "toy", SPACE, "loss", "min", 0, "random", "asha", 2, rungs=[1, 3], max_trials=100)


class Story:
    """A state that is told entry by entry."""

    def __init__(self, **changes: Any) -> None:
        self.state = State(dataclasses.replace(SPEC, **changes))
        self.numbers = itertools.count(1)

    def add(self, op: str, **body: Any) -> Story:
        whole = {"v": 1, "op": op, "step": 0, "used_s": 0.0, **body}
        fold(self.state, [Entry(next(self.numbers), whole)])
        return self

    def propose(self, t: int, slot: int = 0, x: float | None = None) -> Story:
        params = {"x": t / 1000 if x is None else x, "kind": "a"}
        common = {"run": f"r{t}", "seen": self.state.last, "why": "sampler", "expected_s": 0.0, "at_s": 0.0, "to": 0}
        return self.add("propose", t=t, params=params, slot=slot, **common)

    def claim(self, t: int, fence: int, slot: int = 0, to: int = 0, **body: Any) -> Story:
        whole = {"why": "resume", "expected_s": 0.0, "at_s": 0.0, "died": False, **body}
        return self.add("claim", t=t, fence=fence, slot=slot, to=to, **whole)

    def paused(self, t: int, value: float, rung: int = 0) -> Story:
        if t not in self.state.trials:
            self.propose(t)
        fence = self.state.trials[t].fence
        return self.add("rung", t=t, fence=fence, rung=rung, value=value).add("pause", t=t, fence=fence)

    def ended(self, t: int, state: str, cause: str = "", value: float | None = None) -> Story:
        values = {} if value is None else {"2": value}
        return self.propose(t).add("end", t=t, fence=1, state=state, cause=cause, values=values)

    def next(self, slot: int = 0, now_s: float = 0.0, gone: tuple[int, ...] = ()) -> decide.Decision:
        return decide.decide(self.state, slot, now_s, lambda other: other in gone)


def test_a_worker_goes_on_with_its_own_trial_before_anything_else() -> None:
    story = Story().paused(0, 0.1).paused(1, 0.2).paused(2, 0.3).propose(3, slot=1)
    assert (story.next(1).why, story.next(1).trial) == ("resume", 3)
    assert (story.next(0).why, story.next(0).trial, story.next(0).to) == ("promote", 0, 1)


def test_one_in_eta_is_promoted_the_highest_rung_first_and_nobody_twice() -> None:
    story = Story()
    for number in range(9):
        story.paused(number, value=number / 10)
    for number in range(3):
        assert story.next().trial == number
        story.claim(number, 2, to=1, why="promote").paused(number, value=1 + number / 10, rung=1)
    assert (story.next().trial, story.next().to) == (0, 2)
    story.claim(0, 3, to=2, why="promote")
    assert story.next(slot=1).what == "propose"


def test_when_all_trials_are_made_the_best_one_is_trained_to_its_end() -> None:
    story = Story(max_trials=2).paused(0, 0.5).paused(1, 0.4)
    assert (story.next().why, story.next().trial) == ("promote", 1)
    story.claim(1, 2, to=1, why="promote").paused(1, 0.3, rung=1)
    assert (story.next().trial, story.next().to) == (1, 2)


def test_the_worst_of_a_population_go_on_from_the_best_and_the_youngest_first() -> None:
    pbt = {"population": 4, "interval": 1, "quantile": 0.25, "factors": [0.5], "resample": 0.0}
    story = Story(schedule="pbt", pbt=pbt, max_trials=None, design=[{"x": 0.1 * n, "kind": "a"} for n in range(4)])
    for number in range(4):
        assert (story.next().why, story.next().trial) == ("design", number)
        story.propose(number, x=0.1 * number)
        if number < 3:
            story.paused(number, value=number / 10)
    # The last member still runs; the worst of three has nobody to follow yet, since a quarter of three is nobody.
    assert (story.next(1).trial, story.next(1).parent, story.next(1).to) == (4, 0, 1)
    story.paused(3, value=0.9)
    worst = child_of(story.state, story.state.trials[3])
    assert (worst.number, worst.parent.number, worst.point) == (7, 0, {"x": 0.0, "kind": "a"})
    kept = child_of(story.state, story.state.trials[1])
    assert (kept.number, kept.parent.number, kept.point["x"]) == (5, 1, 0.1)


def test_nobody_goes_on_from_a_member_without_a_number() -> None:
    pbt = {"population": 4, "interval": 1, "quantile": 0.5, "factors": [0.5], "resample": 0.0}
    story = Story(schedule="pbt", pbt=pbt, max_trials=None, design=[{"x": 0.1 * n, "kind": "a"} for n in range(4)])
    for number, value in enumerate((math.nan, 0.7, math.nan, math.nan)):
        story.propose(number, x=0.1 * number).paused(number, value=value)
    # By value the better half is trial 1 and, as the earliest of the others, trial 0.
    children = [child_of(story.state, trial) for trial in story.state.trials.values()]
    assert [child.parent.number for child in children] == [0, 1, 1, 1]


def test_nan_is_the_worst_value_and_never_the_best_trial() -> None:
    story = Story().paused(0, math.nan).paused(1, 5.0).paused(2, 6.0)
    assert story.next().trial == 1
    best = story.state.best()
    assert best is not None
    assert best.number == 1


def test_nan_is_not_promoted_though_nothing_better_is_there() -> None:
    story = Story(max_trials=9)
    for number in range(9):
        story.paused(number, 0.5 + number if number < 2 else math.nan)
    for number in (0, 1):
        assert (story.next().why, story.next().trial) == ("promote", number)
        story.claim(number, 2, to=1, why="promote").paused(number, math.nan, rung=1)
    assert (story.next().what, story.next().why) == ("stop", "all 9 trials are made")
    assert not decide.may_go_on(story.state, story.state.trials[2], 0)
    assert not decide.survives(story.state, story.state.trials[0], 1)


def test_a_zombie_cannot_report_and_an_orphan_is_taken_over_once() -> None:
    story = Story().propose(0, slot=1)
    assert story.next(0).what == "propose"
    assert (story.next(0, gone=(1,)).why, story.next(0, gone=(1,)).trial) == ("orphan", 0)
    story.claim(0, 2, slot=0, why="orphan").claim(0, 2, slot=2, why="orphan")
    assert story.state.trials[0].slot == 0
    story.add("rung", t=0, fence=1, rung=0, value=0.1).add("end", t=0, fence=1, state="failed", cause="zombie")
    assert (story.state.trials[0].values, story.state.trials[0].state) == ({}, "running")
    story.add("rung", t=0, fence=2, rung=0, value=0.2).add("rung", t=0, fence=2, rung=0, value=0.9)
    assert story.state.trials[0].values == {0: 0.2}


def test_a_trial_whose_process_dies_again_and_again_without_progress_is_counted() -> None:
    story = Story().propose(0)
    for fence in (2, 3, 4):
        story.claim(0, fence, died=True)
    assert story.state.trials[0].num_deaths == decide.MAX_DEATHS
    story.claim(0, 5, died=True, step=10)
    assert story.state.trials[0].num_deaths == 0


def test_max_trials_is_exact_whoever_writes_at_the_same_moment() -> None:
    story = Story(max_trials=2).propose(0, slot=0).propose(1, slot=1).propose(2, slot=2)
    assert sorted(story.state.trials) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"target": 0.25}, "trial 1 has reached the target: loss 0.2"),
        ({"patience": 2}, "2 trials in a row were no better"),
        ({"deadline_s": 50.0}, "the deadline has passed"),
    ],
)
def test_a_search_stops_where_there_is_nothing_more_to_find_out(changes: dict[str, Any], why: str) -> None:
    story = Story(**changes).ended(0, "completed", value=0.4).ended(1, "completed", value=0.2)
    story.ended(2, "completed", value=0.3).ended(3, "completed", value=0.21)
    assert (story.next(now_s=60.0).what, story.next(now_s=60.0).why) == ("stop", why)


def test_the_same_failure_at_the_start_stops_and_other_failures_do_not() -> None:
    same, other = Story(max_same_failures=3), Story(max_same_failures=3)
    for number in range(3):
        same.ended(number, "failed", f"ValueError: row {number}")
        other.ended(number, "failed" if number else "infeasible", "out of memory")
    assert same.next().why == "the first 3 trials all failed: ValueError: row 0"
    assert other.next().what == "propose"


def test_the_budget_holds_what_was_lost_what_runs_and_what_is_to_begin() -> None:
    story = Story(hours=1.0)
    story.propose(0).add("rung", t=0, fence=1, rung=0, value=0.1, used_s=1500.0)
    story.add("pause", t=0, fence=1, used_s=1500.0)
    # Another one like it runs, of which 1500 s are expected.
    story.add(
        "propose",
        t=1,
        params={"x": 0.5, "kind": "b"},
        run="r1",
        seen=3,
        slot=1,
        why="sampler",
        to=0,
        expected_s=1500.0,
        at_s=0.0,
    )
    assert story.next(0, now_s=1.0).what == "wait"
    assert "budget of 1 core-hours" in story.next(0, now_s=1.0).why
    story.add("end", t=1, fence=1, state="failed", cause="x", used_s=100.0)
    assert story.next(0, now_s=1.0).what == "propose"


def test_an_entry_that_means_nothing_is_named_and_a_later_format_refused() -> None:
    story = Story().add("propose").add("dance").propose(0)
    assert sorted(story.state.odd) == [1, 2]
    assert sorted(story.state.trials) == [0]
    with pytest.raises(NewerFormat):
        story.add("propose", v=2)


def test_a_sampler_is_shown_every_trial_at_the_highest_rung_that_enough_have_reached() -> None:
    story = Story(rungs=[1, 3])
    for number in range(30):
        story.paused(number, value=float(number))
    assert shown(story.state).values == [float(number) for number in range(30)]
    for number in range(4):
        story.claim(number, 2, to=1, why="promote").paused(number, value=100.0 + 2 * number, rung=1)
    assert shown(story.state).values[0] == 0.0, "four are not enough"
    story.claim(4, 2, to=1, why="promote").paused(4, value=108.0, rung=1)
    story.propose(30, x=0.9)
    seen = shown(story.state)
    # Who has been there has what it measured there; the others what the line of these five makes of theirs.
    assert seen.values[:5] == [100.0, 102.0, 104.0, 106.0, 108.0]
    steps = [late - early for early, late in itertools.pairwise(seen.values[5:])]
    assert steps == pytest.approx([1.5] * 24), "half way between no change (1) and what five have shown (2)"
    assert [point["x"] for point in seen.running] == [0.9]


def test_a_trial_that_went_on_by_luck_does_not_stand_before_those_that_wait() -> None:
    story = Story(rungs=[1, 3])
    for number in range(20):
        story.paused(number, value=1.0 + number / 100)
    for number, late in enumerate((0.9, 1.0, 1.1, 5.0, 1.2, 1.0)):
        story.claim(number, 2, to=1, why="promote").paused(number, value=late, rung=1)
    values = shown(story.state).values
    assert max(values) == values[3]


def test_a_value_that_is_no_number_is_shown_as_the_worst() -> None:
    story = Story(rungs=[1, 3]).paused(0, 1.0).paused(1, math.nan).paused(2, math.inf).ended(3, "failed", "no")
    assert shown(story.state).values == [1.0, 1.0, 1.0, 1.0]


def test_what_is_known_before_is_shown_and_is_no_trial() -> None:
    known = [Prior({"x": n / 20, "kind": "b"}, {0: 1.0, 1: 2.0, 2: 3.0}) for n in range(12)]
    story = Story(priors=known)
    assert (len(shown(story.state).values), shown(story.state).values[0]) == (12, 3.0)
    assert story.state.trials == {}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
def test_a_proposal_follows_from_seed_number_and_state_and_learns(sampler: str) -> None:
    story = Story(sampler=sampler, rungs=[], schedule="none", max_trials=None)
    for number in range(36):
        point = propose.propose(story.state, number)
        assert point is not None
        assert point == propose.propose(story.state, number)
        assert SPACE.holds(point)
        story.add(
            "propose", t=number, params=point, run="r", seen=0, slot=0, why="sampler", to=0, expected_s=0.0, at_s=0.0
        )
        value = (point["x"] - 0.3) ** 2 + (point["kind"] == "a")
        story.add("end", t=number, fence=1, state="completed", cause="", values={"0": value})
    assert len(story.state.points) == 36
    late = [abs(t.point["x"] - 0.3) for t in story.state.trials.values() if t.number >= 26]
    if sampler in ("tpe", "cmaes"):
        assert sorted(late)[5] < 0.2


@pytest.mark.slow
def test_a_finite_space_is_gone_through_to_its_last_point_by_every_sampler() -> None:
    space = Space([Axis("k", "choice", ["a", "b", "c"]), Axis("n", "int", [], 1, 3)])
    for sampler in ("grid", "random", "tpe"):
        story = Story(space=space, sampler=sampler, schedule="none", rungs=[], max_trials=None)
        while (decision := story.next()).what == "propose":
            story.add(
                "propose",
                t=decision.trial,
                params=decision.point,
                run="r",
                seen=0,
                slot=0,
                why="",
                to=0,
                expected_s=0.0,
                at_s=0.0,
            )
            story.add("end", t=decision.trial, fence=1, state="completed", cause="", values={"0": 1.0})
        assert (len(story.state.points), decision.why) == (9, "the space is exhausted")
