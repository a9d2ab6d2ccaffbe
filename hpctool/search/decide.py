"""What a worker does next: go on with its own trial, else take over an orphan, promote, propose, or be done.

Pure functions of the state of the search; the worker writes the answer into the journal, and thinks again where
somebody was quicker (journal.Journal.decide).
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from hpctool.search import pbt, propose
from hpctool.search.journal import State, Trial, worth
from hpctool.search.space import Point

#: A trial whose process died so often in a row, without a word and without progress, is given up.
MAX_DEATHS = 3


@dataclass(frozen=True)
class Decision:
    """`what`: claim (a trial that is there), propose, stop (for everybody), wait (nothing for this worker), over."""

    what: str
    why: str = ""
    trial: int = -1
    point: Point | None = None
    #: the rung to train to
    to: int = 0
    #: unit-seconds that this will probably cost
    expected_s: float = 0.0
    #: the trial whose checkpoint a new one goes on from
    parent: int | None = None


def decide(state: State, slot: int, now_s: float, is_gone: Callable[[int], bool] = lambda _: False) -> Decision:
    """What the worker of a slot does next. `is_gone` says whether a slot's worker will not come back."""
    if why := state.stopped or why_enough(state, now_s):
        return Decision("over" if state.stopped else "stop", why)
    for trial in state.trials.values():
        if trial.state == "running" and trial.slot == slot:
            return Decision("claim", "resume", trial.number, to=trial.to, expected_s=cost_s(state, trial.to))
    found = _orphan(state, slot, is_gone) or _again(state) or _promotion(state) or _proposal(state, slot)
    if found is None:
        busy = any(trial.state == "running" for trial in state.trials.values())
        return Decision("wait" if busy else "stop", why_nothing(state))
    if found.why not in ("orphan", "again") and not fits(state, found, now_s):
        busy = any(trial.state == "running" for trial in state.trials.values())
        return Decision("wait" if busy else "stop", f"the budget of {state.hours:g} {state.spec.unit}-hours is used")
    return found


def why_enough(state: State, now_s: float) -> str:
    """Why nothing more is to be begun; empty while there is something to find out."""
    spec = state.spec
    if state.deadline_s is not None and now_s >= state.deadline_s:
        return "the deadline has passed"
    if state.hours is not None and state.used_s >= state.hours * 3600:
        return f"the budget of {state.hours:g} {spec.unit}-hours is used"
    if spec.target is not None:
        goal = worth(spec.target, spec.sign)
        for trial in state.trials.values():
            for value in trial.values.values():
                if worth(value, spec.sign) <= goal:
                    return f"trial {trial.number} has reached the target: {spec.metric} {value:g}"
    ended = [state.trials[number] for number in state.ended]
    first = ended[: spec.max_same_failures]
    causes = {re.sub(r"\d+(\.\d+)?", "#", trial.cause) for trial in first}
    if len(first) == spec.max_same_failures and len(causes) == 1 and all(t.state == "failed" for t in first):
        return f"the first {len(first)} trials all failed: {first[0].cause}"
    return _why_no_better(state, [trial for trial in ended if trial.values])


def _why_no_better(state: State, finished: list[Trial]) -> str:
    spec, best, since = state.spec, float("inf"), 0
    for trial in finished:
        value = worth(trial.values[trial.reached], spec.sign)
        best, since = (value, 0) if value < best else (best, since + 1)
    if spec.patience is not None and since >= spec.patience:
        return f"{since} trials in a row were no better"
    return ""


def why_nothing(state: State) -> str:
    """Why there is nothing to begin although nothing forbids it."""
    if state.max_trials is not None and len(state.trials) >= state.max_trials:
        return f"all {state.max_trials} trials are made"
    if state.spec.schedule == "pbt":
        return "all generations are trained"
    return "the space is exhausted"


def cost_s(state: State, rung: int) -> float:
    """What training to a rung has cost the trials before, from the rung before it: the median, 0 if none has."""
    spent = [
        trial.cost_s[rung] - max((trial.cost_s[r] for r in trial.cost_s if r < rung), default=0.0)
        for trial in state.trials.values()
        if rung in trial.cost_s
    ]
    return max(0.0, statistics.median(spent)) if spent else 0.0


def fits(state: State, decision: Decision, now_s: float, but: int = -1) -> bool:
    """Whether the budget holds what runs (without trial `but`) and this, too."""
    if state.hours is None:
        return True
    return state.used_s + committed_s(state, now_s, but) + decision.expected_s <= state.hours * 3600


def committed_s(state: State, now_s: float, but: int = -1) -> float:
    """Unit-seconds that running trials (without trial `but`) have cost since they were claimed, or will."""
    running = [t for t in state.trials.values() if t.state == "running" and t.number != but]
    return sum(max(t.expected_s, state.spec.num_units * max(0.0, now_s - t.claimed_s)) for t in running)


def _orphan(state: State, slot: int, is_gone: Callable[[int], bool]) -> Decision | None:
    for trial in state.trials.values():
        if trial.state == "running" and trial.slot != slot and is_gone(trial.slot):
            return Decision("claim", "orphan", trial.number, to=trial.to, expected_s=cost_s(state, trial.to))
    return None


def _again(state: State) -> Decision | None:
    for trial in state.trials.values():
        if trial.is_again:
            return Decision("claim", "again", trial.number, to=trial.to, expected_s=cost_s(state, trial.to))
    return None


def top(state: State, rung: int) -> list[Trial]:
    """The best one in `eta` of those that have reached a rung; NaN is the worst of them."""
    ranked = state.at_rung(rung)
    return ranked[: num_best(state, len(ranked))]


def may_go_on(state: State, trial: Trial, rung: int) -> bool:
    """Whether a trial is to be promoted beyond a rung: it is in the top, and what it measured is a number."""
    return trial in top(state, rung) and not math.isnan(trial.values[rung])


def num_best(state: State, num: int) -> int:
    """How many of those at a rung may go on; once all trials are made at least one, so that some trial ends."""
    all_made = state.max_trials is not None and len(state.trials) >= state.max_trials
    return max(num // state.spec.eta, int(all_made and num > 0))


def survives(state: State, trial: Trial, rung: int) -> bool:
    """The stop-rule: whether a trial goes on beyond a rung, by those that were there before; the first one does.

    Unless what it measured is NaN.
    """
    ranked = state.at_rung(rung)
    return not math.isnan(trial.values[rung]) and trial in ranked[: max(1, len(ranked) // state.spec.eta)]


def _promotion(state: State) -> Decision | None:
    """The best paused trial of the highest rung where one in `eta` has not gone on yet."""
    spec = state.spec
    if spec.schedule != "asha" or spec.rule != "promote":
        return None
    for rung in range(spec.last_rung - 1, -1, -1):
        for trial in top(state, rung):
            if trial.state == "paused" and trial.reached == rung and not math.isnan(trial.values[rung]):
                return Decision("claim", "promote", trial.number, to=rung + 1, expected_s=cost_s(state, rung + 1))
    return None


def _proposal(state: State, slot: int) -> Decision | None:
    """The next trial: of the design first, whose beginning belongs to the slots of the same numbers."""
    spec = state.spec
    if state.max_trials is not None and len(state.trials) >= state.max_trials:
        return None
    expected = cost_s(state, 0)
    own = [slot] if slot < min(len(spec.design), spec.num_workers) else []
    # Members of a population are waited for by the others: anyone may begin one.
    first = 0 if spec.schedule == "pbt" else spec.num_workers
    for number in (*own, *range(first, len(spec.design))):
        if number not in state.trials:
            return Decision("propose", "design", number, spec.design[number], expected_s=expected)
    if spec.schedule == "pbt":
        child = pbt.next_child(state)
        if child is None:
            return None
        cost = cost_s(state, child.to)
        return Decision("propose", "generation", child.number, child.point, child.to, cost, child.parent.number)
    number = max([len(spec.design) - 1, *state.trials]) + 1
    point = propose.propose(state, number)
    return None if point is None else Decision("propose", "sampler", number, point, expected_s=expected)
