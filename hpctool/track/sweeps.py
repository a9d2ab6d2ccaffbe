"""A sweep as a whole: how its cells stand and why, which is best, when it will be done, and what it has cost."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hpctool.config import flatten
from hpctool.launch import overview, sweeplog
from hpctool.launch.cells import Sweep
from hpctool.launch.progress import progress
from hpctool.launch.slurm.queue import Queue
from hpctool.launch.slurm.standing import last_time_s, parse_time_s
from hpctool.rundir import STATES, RunDir, Story
from hpctool.track import hours
from hpctool.track.compare import more_is_better, telling_metrics
from hpctool.track.keys import typed_values
from hpctool.track.metrics import from_json, read_last, to_json


@dataclass
class Cell:
    """One cell: where it stands, what it has measured, and what it has cost."""

    index: int
    run: str
    #: what the sweep varies, with this cell's values
    values: dict[str, Any]
    state: str = "queued"
    cause: str = ""
    attempts: int = 0
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    hours: hours.Hours = field(default_factory=hours.Hours)
    #: how long its attempts have run, without the time between them
    used_s: float = 0.0
    #: for how long it will still run, by its own speed; None if it does not tell
    left_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        plain = {key: value for key, value in vars(self).items() if key not in ("hours", "metrics", "used_s")}
        metrics = {name: to_json(value) for name, value in self.metrics.items()}
        return plain | {"metrics": metrics, "hours": self.hours.to_json()}


@dataclass(frozen=True)
class Group:
    """Cells that stand alike for the same reason; `cause` is that of the first, others may differ in numbers."""

    state: str
    cause: str
    cells: list[int]

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"state": self.state, "cause": self.cause, "count": len(self.cells), "cells": self.cells}


@dataclass
class Overview:
    """All cells of a sweep at one moment."""

    sweep: Sweep
    cells: list[Cell]
    #: for how long it has only waited; None where something runs, or nothing will
    waits_s: float | None = None

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many cells are in which state; states that none is in are left out."""
        found = Counter(cell.state for cell in self.cells)
        return {state: found[state] for state in STATES if found[state]}

    @cached_property
    def groups(self) -> list[Group]:
        """The cells that say a cause, by state and cause, the largest group of a state first."""
        found: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            if cell.cause:
                # `loss is nan at step 812` and `… at step 40` are one cause.
                found.setdefault((cell.state, re.sub(r"\d+", "#", cell.cause)), []).append(cell)
        order = ("failed", "cancelled", "requeued", "stopping", "running", "queued", "completed")
        ranked = sorted(found.items(), key=lambda item: (order.index(item[0][0]), -len(item[1])))
        return [Group(state, cells[0].cause, [cell.index for cell in cells]) for (state, _), cells in ranked]

    @cached_property
    def metric(self) -> tuple[str, bool]:
        """The metric that says which cell is best, and whether more of it is better; empty if there is none."""
        base = (self.sweep.body.get("bases") or [{}])[0]
        loop = base.get("loop") or {}
        if name := loop.get("best_metric"):
            return str(name), loop.get("best_mode", "max") == "max"
        names = telling_metrics(cell.metrics for cell in self.cells)
        return (names[0], more_is_better(names[0])) if names else ("", True)

    @cached_property
    def ranked(self) -> list[Cell]:
        """The cells that have measured the metric, the best first."""
        name, more_is_better = self.metric
        has = [cell for cell in self.cells if name in cell.metrics and not math.isnan(cell.metrics[name])]
        return sorted(has, key=lambda cell: -cell.metrics[name] if more_is_better else cell.metrics[name])

    @cached_property
    def hours(self) -> hours.Hours:
        """What all cells have cost so far."""
        return sum((cell.hours for cell in self.cells), hours.Hours())

    @cached_property
    def max_parallel(self) -> int:
        """How many cells may run at once."""
        base = (self.sweep.body.get("bases") or [{}])[0]
        return int((base.get("cluster") or {}).get("max_parallel") or 1)

    @cached_property
    def typical_s(self) -> float | None:
        """How long a cell takes: the median of those done, else of those that run; None before that."""
        done = [cell.used_s for cell in self.cells if cell.state == "completed" and cell.used_s]
        done = done or [cell.used_s + cell.left_s for cell in self.cells if cell.left_s is not None]
        return statistics.median(done) if done else None

    @cached_property
    def eta_s(self) -> float | None:
        """For how long the sweep will go on, if as many cells run at once as now; None if nobody knows, 0 if done."""
        left = [cell for cell in self.cells if cell.state in ("queued", "running", "stopping", "requeued")]
        rest = [self._rest_s(cell) for cell in left]
        known = [seconds for seconds in rest if seconds is not None]
        if len(known) < len(rest):
            return None
        at_once = self.counts.get("running", 0) or self.max_parallel
        return max([*known, sum(known) / at_once], default=0.0)

    def _rest_s(self, cell: Cell) -> float | None:
        """For how long a cell will still run."""
        if cell.left_s is not None:
            return cell.left_s
        if self.typical_s is None:
            return None
        # One that takes longer than the others may be done at any moment.
        return max(self.typical_s - cell.used_s, self.typical_s / 10)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        body, (name, more_is_better) = self.sweep.body, self.metric
        best = self.ranked[0] if self.ranked else None
        value = to_json(best.metrics[name]) if best else None
        return {
            **{"id": self.sweep.id, "job": body["job"], "cells": len(self.cells), "states": self.counts},
            **{"varied": body["varied"], "created": body["created"], "folder": str(self.sweep.path)},
            "metric": name,
            "more_is_better": more_is_better,
            "best": best and {"cell": best.index, "run": best.run, "value": value, "values": best.values},
            "eta_s": self.eta_s,
            "waits_s": self.waits_s,
            "hours": self.hours.to_json(),
            "causes": [group.to_json() for group in self.groups],
        }


def look(runs: Path, sweep: Sweep, queue: Queue | None = None) -> Overview:
    """How a sweep stands now: one listing, one result or ledger for each cell that has begun, one squeue at most."""
    results: dict[str, dict[str, Any]] = {}
    stories = overview.cell_stories(runs, sweep, lambda rundirs: overview.quick_stories(rundirs, results, queue), queue)
    sizes = _Sizes(sweep.body)
    now_s = time.time()
    cells = []
    for body, story in zip(sweep.body["cells"], stories, strict=True):
        cell = Cell(body["index"], body["run"], _values(body, sweep.body["varied"]), story.state, story.cause)
        cell.attempts, cell.step = story.attempt, story.step
        if story.attempt:
            _take_begun(cell, RunDir(runs / cell.run), story, results.get(cell.run, {}), sizes.of(body), now_s)
        cells.append(cell)
    return Overview(sweep, cells, waiting_s(stories, now_s))


def waiting_s(stories: Sequence[Story], now_s: float) -> float | None:
    """For how long nothing has begun, ended or been submitted of what only waits; None where something runs."""
    waits = any(story.state in ("queued", "requeued") and story.entries for story in stories)
    if not waits or any(story.state in ("running", "stopping") for story in stories):
        return None
    newest_s = max(map(last_time_s, stories))  # tickets of the local queue say no time
    return max(0.0, now_s - newest_s) if newest_s else None


def _take_begun(
    cell: Cell, rundir: RunDir, story: Story, result: Mapping[str, Any], size: hours.Size, now_s: float
) -> None:
    """What a cell that has begun has measured, and how long it ran."""
    if story.of_kind("begun"):
        spans = hours.spans(rundir, story, now_s)
    else:
        spans = [hours.Span(max(0.0, parse_time_s(result.get("ended")) - parse_time_s(result.get("started"))))]
    cell.hours, cell.used_s = size.hours(spans), sum(span.used_s for span in spans)
    if result.get("state") == story.state and "metrics" in result:
        cell.metrics = {name: from_json(value) for name, value in (result["metrics"] or {}).items()}
        cell.step = int(result.get("step", cell.step))
    elif story.state in ("running", "stopping", "requeued"):
        last = read_last(rundir, story)
        cell.metrics = {name: value for name, (_, value) in last.items()}
        if story.state != "requeued":
            how_far = progress(rundir, story, now_s)
            cell.step, cell.left_s = how_far.step, how_far.eta_s


def _values(body: Mapping[str, Any], varied: list[str]) -> dict[str, Any]:
    typed = typed_values(body["overrides"])
    return {key: typed[key] for key in varied if key in typed}


class _Sizes:
    """What each cell of a sweep holds while it runs; most are alike."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        bases = body.get("bases") or [{}]
        self._resources = [flatten(base.get("resources") or {}) for base in bases]
        self._known: dict[tuple[int, str], hours.Size] = {}

    def of(self, cell: Mapping[str, Any]) -> hours.Size:
        own = {key[10:]: value for key, value in (cell.get("set") or {}).items() if key.startswith("resources.")}
        number = int(cell.get("base", 0))
        key = (number, repr(own))
        if key not in self._known:
            self._known[key] = hours.size_of(self._resources[number] | own)
        return self._known[key]


def ranges(indices: Iterable[int]) -> str:
    """`0-99,103`: which cells."""
    return sweeplog.to_ranges(sorted(indices))
