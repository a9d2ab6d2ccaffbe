"""Eight asynchronous workers in virtual time, on tables of trained curves; shared by hpctool's searches and its peers.

A searcher says which point a free worker trains next and from which step (`next_job`), is told of every step
(`on_step`, which says whether that training goes on), and nothing else. One unit of budget is one whole training.
Imports no hpctool: peers run it in environments of their own.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass
from typing import Any, Protocol

NUM_WORKERS, NUM_STEPS = 8, 27


@dataclass
class Work:
    """One training that a worker has in hand."""

    key: Any
    config: int
    step: int = 0


class Searcher(Protocol):
    """What decides."""

    def next_job(self, worker: int) -> Work | None:
        """What a free worker trains, or None: nothing now."""

    def on_step(self, worker: int, work: Work, value: float) -> bool:
        """Whether the training goes on after this step; at the last one it ends anyway."""


def index_of(axes: dict[str, int], point: dict[str, int]) -> int:
    """The number of a configuration."""
    index = 0
    for name, size in axes.items():
        index = index * size + int(point[name])
    return index


def simulate(searcher: Searcher, table: dict[str, Any], seed: int, budgets: list[float]) -> list[float]:
    """The regret of the incumbent at each budget, in whole trainings.

    The incumbent is the configuration that looks best among those which were trained furthest; its regret is what it
    comes to at the end of its curve, against the best in the table.
    """
    draw = random.Random(seed)
    curves = table["curves"]
    best = min(curve[-1] for curve in curves)
    speeds = [draw.lognormvariate(0, 0.25) for _ in range(NUM_WORKERS)]
    busy: list[tuple[float, int, Work]] = []
    idle, now, used = list(range(NUM_WORKERS)), 0.0, 0
    seen: dict[int, tuple[int, float]] = {}
    regrets: list[float] = []
    while True:
        for worker in list(idle):
            work = searcher.next_job(worker)
            if work is not None:
                idle.remove(worker)
                heapq.heappush(busy, (now + draw.lognormvariate(0, 0.1) / speeds[worker], worker, work))
        if not busy:
            break
        now, worker, work = heapq.heappop(busy)
        work.step += 1
        used += 1
        value = curves[work.config][work.step - 1]
        if work.step >= seen.get(work.config, (0, 0.0))[0]:
            seen[work.config] = (work.step, value)
        while len(regrets) < len(budgets) and used >= budgets[len(regrets)] * NUM_STEPS:
            furthest = max(step for step, _ in seen.values())
            looks = {config: at[1] for config, at in seen.items() if at[0] == furthest}
            regrets.append(curves[min(looks, key=lambda config: looks[config])][-1] - best)
        if len(regrets) == len(budgets):
            break
        goes_on = searcher.on_step(worker, work, value)
        if goes_on and work.step < NUM_STEPS:
            heapq.heappush(busy, (now + draw.lognormvariate(0, 0.1) / speeds[worker], worker, work))
        else:
            idle.append(worker)
    return regrets + [regrets[-1] if regrets else math.inf] * (len(budgets) - len(regrets))
