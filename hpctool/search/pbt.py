"""Population based training: a member's life is a chain of runs, each going on from a checkpoint of the one before.

Trial `g · population + m` is member m in generation g: trained to the end of its interval, then paused for good. Its
successor goes on from its checkpoint with the same values; one of the worst goes on from the checkpoint of one of the
best instead (exploit), with values near that one's (explore). Members are compared at equal age with whoever was there
when the decision was made, so nobody waits. Nothing is changed in place: the winner's schedule is its lineage.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from hpctool.search.journal import State, Trial
from hpctool.search.propose import seed_of
from hpctool.search.space import Axis, Point
from hpctool.search.spec import Spec


@dataclass(frozen=True)
class Child:
    """The successor of a trial: its number, its values, whose checkpoint it goes on from, and to which rung."""

    number: int
    point: Point
    parent: Trial
    to: int


def next_child(state: State) -> Child | None:
    """The member that is furthest behind of those whose next generation can begin."""
    size = int(state.spec.pbt["population"])
    newest: dict[int, Trial] = {}
    for number in sorted(state.trials):
        newest[number % size] = state.trials[number]
    # By number: the generation first, so that many members on few workers grow up side by side.
    for trial in sorted(newest.values(), key=lambda trial: trial.number):
        if trial.state == "paused" and trial.number // size < state.spec.last_rung:
            return child_of(state, trial)
    return None


def child_of(state: State, trial: Trial) -> Child:
    """What follows a trial that has come to the end of its interval; a pure function of the state."""
    spec, size = state.spec, int(state.spec.pbt["population"])
    rung, number = trial.number // size, trial.number + size
    draw = random.Random(seed_of(spec.seed, number))
    # Only what has committed its checkpoint can be gone on from.
    ranked = [one for one in state.at_rung(rung) if one.state == "paused"]
    count = int(len(ranked) * float(spec.pbt["quantile"]))
    donors = [one for one in ranked[:count] if not math.isnan(one.values[rung])]
    if not donors or trial not in ranked[-count:]:
        return Child(number, trial.point, trial, rung + 1)
    donor = draw.choice(donors)
    return Child(number, explored(spec, donor.point, draw), donor, rung + 1)


def explored(spec: Spec, point: Point, draw: random.Random) -> Point:
    """A point near another: each number times a factor, or each value drawn anew now and then."""
    found = {}
    for axis in spec.space.axes:
        if draw.random() < float(spec.pbt["resample"]):
            found[axis.key] = axis.at(draw.random())
        else:
            found[axis.key] = _perturbed(axis, point[axis.key], draw.choice(list(spec.pbt["factors"])))
    return found


def _perturbed(axis: Axis, value: Any, factor: float) -> Any:
    if axis.kind == "choice":
        return value
    number = min(max(value * factor, axis.low), axis.high)
    if axis.step is not None:
        return axis.value(round((number - axis.low) / axis.step))
    return round(number) if axis.kind == "int" else number


def origin_of(state: State, parent: int | None) -> dict[str, Any]:
    """What a trial has in its configuration beside its values: the checkpoint that it goes on from."""
    if parent is None:
        return {}
    donor = state.trials[parent]
    return {"continue_from": f"{donor.run}@{donor.step}"}
