"""How the history of a search is shown to a sampler, which matters more than the sampler.

A sampler knows one number for each trial, and trials have come to different rungs. Each is shown what its newest value
comes to at the highest rung that some trials have reached: from rung to rung by a straight line through the trials that
have both values. Where a rung says little of the next one the line is flat, and trials that stayed below are all alike.
So a good trial is not forgotten because it waits, and one that went on by luck does not stand before all others. Trials
that run are shown as running, so that workers side by side do not ask for the same; what failed has the worst value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from hpctool.search.journal import State
from hpctool.search.space import Point

#: what is shown of a history is part of how it is drawn from: it changes with this file (verify.py)
VIEW = 2
#: A sampler of Python is quadratic at heart: more is not shown than the newest and the best of these numbers.
MAX_NEWEST, MAX_BEST = 400, 200
#: so many values make a rung the one that is shown
ENOUGH = 5
#: a line begins as that of no change, which weighs as much as so many trials
_PRIOR_WEIGHT = 5.0
_STEEPEST = 2.0


@dataclass
class Shown:
    """Points with a value (more is better never: `values` are to be minimized), and points that run."""

    points: list[Point] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    running: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """What a value at one rung comes to at the next."""

    x: float = 0.0
    y: float = 0.0
    slope: float = 1.0

    def __call__(self, value: float) -> float:
        return self.y + self.slope * (value - self.x)


def shown(state: State) -> Shown:
    """What a sampler sees of a state."""
    spec, trials = state.spec, list(state.trials.values())
    known: list[tuple[Point, Mapping[int, float]]] = [
        (prior.point, prior.values) for prior in spec.priors if prior.values and spec.space.holds(prior.point)
    ]
    known += [(trial.point, trial.values) for trial in trials if trial.values]
    ladder = [values for _, values in known]
    keyed = list(zip([point for point, _ in known], _carried(ladder, spec.last_rung, -spec.sign), strict=True))
    worst = max((value for _, value in keyed if math.isfinite(value)), default=0.0)
    keyed = [(point, value if math.isfinite(value) else worst) for point, value in keyed]
    bad = [t.point for t in trials if t.state in ("failed", "infeasible") and not t.values]
    keyed += [(point, worst) for point in bad] if keyed else []
    if len(keyed) > MAX_NEWEST + MAX_BEST:
        newest, older = keyed[-MAX_NEWEST:], keyed[:-MAX_NEWEST]
        keyed = sorted(older, key=lambda pair: pair[1])[:MAX_BEST] + newest
    running = [t.point for t in trials if t.state == "running" and not t.values]
    return Shown([point for point, _ in keyed], [value for _, value in keyed], running)


def _carried(ladder: Sequence[Mapping[int, float]], last_rung: int, sign: int) -> list[float]:
    """What the newest value of each trial comes to at the highest rung with enough values."""
    top = next((rung for rung in range(last_rung, 0, -1) if sum(rung in one for one in ladder) >= ENOUGH), 0)
    lines = [_line(ladder, rung, sign) for rung in range(top)]
    found = []
    for values in ladder:
        # What was known before may have an end and nothing below.
        reached = max((rung for rung in values if rung <= top), default=min(values))
        value = sign * values[reached]
        for rung in range(reached, top):
            value = lines[rung](value)
        found.append(value)
    return found


def _line(ladder: Sequence[Mapping[int, float]], rung: int, sign: int) -> Line:
    """The line of least squares from a rung to the next, drawn towards that of no change; never downwards."""
    both = [(sign * one[rung], sign * one[rung + 1]) for one in ladder if rung in one and rung + 1 in one]
    pairs = [pair for pair in both if all(map(math.isfinite, pair))]
    if not pairs:
        return Line()
    x, y = fmean(pair[0] for pair in pairs), fmean(pair[1] for pair in pairs)
    spread = math.fsum((one - x) ** 2 for one, _ in pairs)
    slope = math.fsum((one - x) * (other - y) for one, other in pairs) / spread if len(pairs) > 2 and spread else 1.0
    weight = len(pairs) / (len(pairs) + _PRIOR_WEIGHT)
    return Line(x, y, weight * min(max(slope, 0.0), _STEEPEST) + (1 - weight))
