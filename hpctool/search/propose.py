"""The next point: a pure function of the search, its state and the number of the trial. Nothing else is random."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from hpctool.search.journal import State
from hpctool.search.shown import shown
from hpctool.search.space import Point, Space, name_of
from hpctool.search.spec import Spec

#: Points that are drawn at random are drawn so often if they were tried already; then the space is gone through.
MAX_TRIES = 20
#: A sampler is asked so often; then points beside the one that it wants are looked at, which costs next to nothing.
_MAX_ASKS, _MAX_NEAR = 2, 40
#: A space of more points than this is not gone through, but taken for exhausted.
_MAX_LEFT = 20_000

OWN = ("grid", "random", "sobol")


def seed_of(seed: int, *numbers: int) -> int:
    """A seed of 31 bits out of the search's and the number of the trial."""
    text = ",".join(map(str, (seed, *numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def propose(state: State, number: int) -> Point | None:
    """A point that was not tried yet, for trial `number`; None where there is none left. Raises InputError."""
    spec = state.spec
    for point in _offers(state, number):
        if name_of(point) not in state.points:
            return point
    if spec.sampler == "grid" or spec.space.count is None or spec.space.count > _MAX_LEFT:
        return None
    left = [point for point in spec.space.points() if name_of(point) not in state.points]
    return random.Random(seed_of(spec.seed, number)).choice(left) if left else None


def _offers(state: State, number: int) -> Iterator[Point]:
    spec = state.spec
    if spec.sampler == "grid":
        yield from spec.grid
        return
    if spec.sampler in OWN:
        for attempt in range(MAX_TRIES):
            draw = random.Random(seed_of(spec.seed, number, attempt))
            yield spec.space.at([draw.random() for _ in spec.space.axes])
        return
    from hpctool.search import samplers

    seen, point = shown(state), {}
    for attempt in range(_MAX_ASKS):
        point = samplers.ask(spec, seen, seed_of(spec.seed, number, attempt))
        yield point
    draw = random.Random(seed_of(spec.seed, number, _MAX_ASKS))
    for attempt in range(_MAX_NEAR):
        yield near(spec.space, point, 1 if attempt < _MAX_NEAR // 2 else 2, draw)


def near(space: Space, point: Point, num_axes: int, draw: random.Random) -> Point:
    """A point beside another: so many of its values are the next one up or down, or another choice."""
    found = dict(point)
    for axis in draw.sample(space.axes, min(num_axes, len(space.axes))):
        by = 1 / axis.count if axis.count else 0.02
        u = axis.coordinate(point[axis.key]) + draw.choice((-by, by))
        found[axis.key] = axis.at(draw.random() if axis.kind == "choice" else min(max(u, 0.0), 1 - 1e-9))
    return found


def sobol(space: Space, number: int, seed: int) -> list[Point]:
    """Points that are spread evenly: a scrambled Sobol sequence; each is there once."""
    from scipy.stats import qmc

    found: dict[str, Point] = {}
    size = 1 << max(0, (number - 1).bit_length())
    unit = qmc.Sobol(d=len(space.axes), scramble=True, rng=seed_of(seed, 0)).random(size)
    for us in unit.tolist():
        point = space.at(us)
        found.setdefault(name_of(point), point)
    return list(found.values())[:number]


def completed(space: Space, given: Point) -> Point:
    """A point that was given in part, with the middle of what is left."""
    return {axis.key: given[axis.key] if axis.key in given else axis.at(0.5) for axis in space.axes}


def design(spec: Spec, given: list[Point], number: int) -> list[Point]:
    """The first points of a search: those that were given, then points spread evenly."""
    found = {name_of(point): point for point in given}
    more = spec.grid if spec.sampler == "grid" else sobol(spec.space, number + len(found), spec.seed)
    for point in more:
        if len(found) >= max(number, len(given)):
            break
        found.setdefault(name_of(point), point)
    return list(found.values())
