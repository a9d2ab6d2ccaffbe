"""A search as a whole, in the words in which sweeps are shown: its trials as cells, and what only a search has."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hpctool.launch.cells import Sweep, read_sweep, sweeps_folder
from hpctool.launch.overview import cell_stories, quick_stories
from hpctool.launch.slurm.queue import Queue
from hpctool.log import Entry
from hpctool.search import decide
from hpctool.search.journal import Journal, State, Trial, worth
from hpctool.search.spec import is_search, read_spec
from hpctool.track.hours import Hours
from hpctool.track.sweeps import Cell, Overview, waiting_s
from hpctool.track.sweeps import look as look_at_sweep

#: States of trials, in the order in which they are told.
STATES = ("completed", "running", "paused", "stopped", "failed", "infeasible")


@dataclass
class Looked(Overview):
    """A search at one moment. `cells` are its trials, in order of number."""

    state: State = field(kw_only=True)
    #: state of a worker → how many are in it
    workers: dict[str, int] = field(kw_only=True)
    #: why workers wait
    why: list[str] = field(kw_only=True, default_factory=list)
    #: entries of the journal that cannot be used, and why
    broken: dict[str, str] = field(kw_only=True)
    #: the best value of the highest rung, each time that a value was told
    course: list[float] = field(kw_only=True, default_factory=list)

    @cached_property
    def counts(self) -> dict[str, int]:
        found = Counter(cell.state for cell in self.cells)
        return {state: found[state] for state in STATES if found[state]}

    @cached_property
    def groups(self) -> list[Any]:
        return []

    @cached_property
    def metric(self) -> tuple[str, bool]:
        return self.state.spec.metric, self.state.spec.mode == "max"

    @cached_property
    def ranked(self) -> list[Cell]:
        """The trials of the highest rung that any has reached, then those of the one below, each the best first.

        Without those whose newest value is not finite: they are in no order, and none of them is the best.
        """
        state, by_number = self.state, {cell.index: cell for cell in self.cells}
        return [
            by_number[trial.number]
            for rung in range(state.spec.last_rung, -1, -1)
            for trial in state.at_rung(rung)
            if trial.reached == rung and math.isfinite(trial.values[rung])
        ]

    @cached_property
    def eta_s(self) -> float | None:
        return None if self.state.stopped == "" else 0.0

    @cached_property
    def rungs(self) -> list[dict[str, Any]]:
        """Per rung: its step (None: the end), how many trials have a value, the best, and how many have gone on."""
        spec, rows = self.state.spec, []
        for rung in range(spec.last_rung + 1):
            there = self.state.at_rung(rung)
            step = spec.rungs[rung] if rung < spec.last_rung else None
            beyond = sum(trial.reached > rung for trial in there)
            best = next((trial.values[rung] for trial in there if math.isfinite(trial.values[rung])), None)
            rows.append({"rung": rung, "step": step, "trials": len(there), "best": best, "went_on": beyond})
        return rows

    @property
    def used_hours(self) -> float:
        """GPU-hours, or CPU-hours, of all attempts so far."""
        return self.state.used_s / 3600

    @property
    def saved_hours(self) -> float | None:
        """What training every trial to its end would have cost beyond that; None while none has completed."""
        whole = [t.used_s for t in self.state.trials.values() if t.state == "completed" and t.used_s]
        if not whole:
            return None
        return max(0.0, len(self.state.trials) * sum(whole) / len(whole) - self.state.used_s) / 3600

    def to_json(self) -> dict[str, Any]:
        spec, state, best = self.state.spec, self.state, self.ranked[0] if self.ranked else None
        name, more_is_better = self.metric
        return {
            **{"id": spec.id, "job": spec.job, "cells": len(self.cells), "states": self.counts, "search": True},
            **{"varied": [axis.key for axis in spec.space.axes], "created": self.sweep.body["created"]},
            **{"folder": str(self.sweep.path), "metric": name, "more_is_better": more_is_better},
            "best": best and {"cell": best.index, "run": best.run, "value": best.metrics[name], "values": best.values},
            **{"trials": len(self.cells), "rungs": self.rungs, "workers": self.workers, "broken": self.broken},
            **{"waits_s": self.waits_s, "why": self.why},
            **{"stopped": state.stopped, "max_trials": state.max_trials, "hours": self.hours.to_json()},
            "budget": {
                **{"unit": f"{spec.unit}-hours", "used": self.used_hours, "limit": state.hours},
                **{"committed": decide.committed_s(state, time.time()) / 3600, "saved": self.saved_hours},
            },
        }


def look(runs: Path, sweep: Sweep, queue: Queue | None = None) -> Overview:
    """How a sweep stands now, be it a search or not."""
    if not is_search(sweep.path):
        return look_at_sweep(runs, sweep, queue)
    return look_into(runs, sweep, Journal(sweep.path, read_spec(sweep.path)), queue)


def look_into(runs: Path, sweep: Sweep, journal: Journal, queue: Queue | None = None) -> Looked:
    """How a search stands now; whoever looks again gives the same journal, of which only what is new is read."""
    spec, state = journal.state.spec, journal.read()
    sweep = read_sweep(sweeps_folder(runs) / sweep.id)
    body = sweep.body | {"job": spec.job, "varied": [axis.key for axis in spec.space.axes]}
    stories = cell_stories(runs, sweep, quick_stories, queue)
    workers = dict(Counter(story.state for story in stories))
    waits_s = waiting_s(stories, time.time())
    why = list(dict.fromkeys(s.cause for s in stories if s.cause and s.state in ("queued", "requeued")))
    broken = dict(journal.log.broken) | {f"{number:010d}": why for number, why in state.odd.items()}
    trials = [_cell(state, trial) for _, trial in sorted(state.trials.items())]
    course = _course(state, journal.log.entries())
    return Looked(
        Sweep(sweep.path, body), trials, waits_s, state=state, workers=workers, broken=broken, course=course, why=why
    )


def _course(state: State, entries: Iterable[Entry]) -> list[float]:
    """The best value at the highest rung that any trial has reached, after each value that counts."""
    found, rung, best = list[float](), -1, math.nan
    for body in (entry.body for entry in entries):
        trial = state.trials.get(body.get("t", -1))
        is_rung = body.get("op") == "rung"
        values: dict[Any, Any] = {body["rung"]: body["value"]} if is_rung else body.get("values") or {}
        for at, told in ((int(key), float(value)) for key, value in values.items() if trial is not None):
            if math.isnan(told):
                continue
            if at > rung or (at == rung and worth(told, state.spec.sign) < worth(best, state.spec.sign)):
                rung, best = at, told
            found.append(best)
    return found


def _cell(state: State, trial: Trial) -> Cell:
    cell = Cell(trial.number, trial.run, dict(trial.point), trial.state, trial.cause)
    cell.step = trial.step
    if trial.values:
        cell.metrics = {state.spec.metric: trial.values[trial.reached]}
    used = trial.used_s / 3600
    cell.hours = Hours(gpu_hours=used) if state.spec.unit == "GPU" else Hours(cpu_hours=used)
    cell.used_s = trial.used_s / max(1, state.spec.num_units)
    return cell


def how_it_ended(runs: Path, sweep: Sweep) -> tuple[str, str] | None:
    """How a search whose workers have all ended is told to people: state and sentence; None for what is no search."""
    found = look(runs, sweep) if is_search(sweep.path) else None
    if not isinstance(found, Looked):
        return None
    stopped, best = found.state.stopped, found.ranked[0] if found.ranked else None
    name, _ = found.metric
    nothing = f"no {name} was finite" if any(cell.metrics for cell in found.cells) else "nothing was measured"
    told = f"best {name} {best.metrics[name]:.4g} (trial {best.index}, {best.run})" if best else nothing
    state = "cancelled" if stopped.startswith("cancelled") else "completed" if stopped and best else "failed"
    return state, f"{stopped or 'no worker is left, and it had not stopped'}; {len(found.cells)} trials, {told}"
