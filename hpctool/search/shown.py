"""How the history of a search is shown to a sampler, which matters more than the sampler.

A sampler knows one number for each trial. It is shown the values of the highest rung that enough trials have reached
(BOHB's rule): values of different rungs are never mixed. Trials that run are shown as running, so that workers side by
side do not ask for the same; what failed has the worst value that was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hpctool.search.journal import State
from hpctool.search.space import Point
from hpctool.search.spec import Spec

#: A sampler of Python is quadratic at heart: more is not shown than the newest and the best of these numbers.
MAX_NEWEST, MAX_BEST = 400, 200


@dataclass
class Shown:
    """Points with a value (more is better never: `values` are to be minimized), and points that run."""

    points: list[Point] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    running: list[Point] = field(default_factory=list)


def enough(spec: Spec) -> int:
    """How many values a rung must have before it is shown."""
    return max(len(spec.space.axes) + 4, 10)


def shown(state: State) -> Shown:
    """What a sampler sees of a state."""
    spec, trials = state.spec, list(state.trials.values())
    priors = [prior for prior in spec.priors if spec.space.holds(prior.point)]
    rung = 0
    for candidate in range(spec.last_rung, 0, -1):
        known = sum(candidate in one.values for one in trials) + sum(candidate in one.values for one in priors)
        if known >= enough(spec):
            rung = candidate
            break
    pairs = [(prior.point, prior.values[rung]) for prior in priors if rung in prior.values]
    pairs += [(trial.point, trial.values[rung]) for trial in trials if rung in trial.values]
    keyed = [(point, -spec.sign * value) for point, value in pairs]
    worst = max((value for _, value in keyed if not math.isnan(value)), default=0.0)
    keyed = [(point, worst if math.isnan(value) else value) for point, value in keyed]
    bad = [t.point for t in trials if t.state in ("failed", "infeasible") and rung not in t.values]
    keyed += [(point, worst) for point in bad] if keyed else []
    if len(keyed) > MAX_NEWEST + MAX_BEST:
        newest, older = keyed[-MAX_NEWEST:], keyed[:-MAX_NEWEST]
        keyed = sorted(older, key=lambda pair: pair[1])[:MAX_BEST] + newest
    running = [t.point for t in trials if t.state == "running" and rung not in t.values]
    return Shown([point for point, _ in keyed], [value for _, value in keyed], running)
