"""The journal of a search, and the state that it tells: sweeps/<id>/journal, a log whose entries have `v` and `op`.

    propose  decision  t, params, run, slot, seen, to, parent, why (design, sampler, generation); is fence 1
    claim    decision  t, fence, slot, to, why (resume, promote, orphan)           who may train it from now on
    rung     fact      t, fence, rung, step, value, used_s                         what it measured
    pause    fact      t, fence, step, used_s, saved_bytes                         it waits for a promotion
    drop     decision  t, why                                     its checkpoints go, while it waits (retention.py)
    end      fact      t, fence, state, cause, step, used_s, value
    again    fact      t, fence                                                    one that failed is to be tried again
    stop     decision  why, by                                                     nothing more is begun
    resume   fact      by, max_trials, hours, deadline_s                           begun again, with other limits

A decision is made from everything before it (`seen` is the number of the last entry), or not at all; a fact is added.
Facts and claims with an old fence are ignored: who has lost a trial cannot report. What cannot be, is ignored by
everybody alike, because the state is a pure function of the entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool.errors import NewerFormat
from hpctool.log import Entry, Log
from hpctool.rundir import now, who
from hpctool.search.space import Point, name_of
from hpctool.search.spec import Spec

JOURNAL_FORMAT = 1

#: States of a trial. `stopped`: compared at a rung and ended; `infeasible`: it does not fit (out of memory).
OVER = ("completed", "stopped", "failed", "infeasible")


@dataclass
class Trial:
    """One trial as the journal tells it."""

    number: int
    point: Point
    run: str
    slot: int
    why: str
    #: the last entry that its proposal was made from
    seen: int
    fence: int = 1
    #: running, paused, or one of OVER
    state: str = "running"
    cause: str = ""
    #: the rung that it is being trained to
    to: int = 0
    #: rung → value; the last rung is the end
    values: dict[int, float] = field(default_factory=dict)
    step: int = 0
    #: unit-seconds (GPUs or cores) of all its attempts, as last reported
    used_s: float = 0.0
    #: unit-seconds at each rung
    cost_s: dict[int, float] = field(default_factory=dict)
    #: what it was expected to cost when it was claimed, and when that was
    expected_s: float = 0.0
    claimed_s: float = 0.0
    #: claims in a row after attempts that died without a word and without progress
    num_deaths: int = 0
    #: the trial whose checkpoint it goes on from
    parent: int | None = None
    #: what its checkpoints take while it waits
    saved_bytes: int = 0
    #: it failed, and somebody has asked for another attempt
    is_again: bool = False
    #: the entry that proposed it
    entry: int = 0

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def reached(self) -> int:
        """The highest rung with a value; -1 for none."""
        return max(self.values, default=-1)


@dataclass
class State:
    """A search at one moment."""

    spec: Spec
    trials: dict[int, Trial] = field(default_factory=dict)
    #: number of the last entry that was folded
    last: int = 0
    #: why nothing more is begun; empty while the search goes on
    stopped: str = ""
    max_trials: int | None = None
    hours: float | None = None
    deadline_s: float | None = None
    #: numbers of trials that are over, in the order in which they ended
    ended: list[int] = field(default_factory=list)
    #: entries that mean nothing, by number
    odd: dict[int, str] = field(default_factory=dict)
    #: points that were proposed
    points: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        spec = self.spec
        self.max_trials, self.hours, self.deadline_s = spec.max_trials, spec.hours, spec.deadline_s

    @property
    def used_s(self) -> float:
        """Unit-seconds that all trials have reported."""
        return sum(trial.used_s for trial in self.trials.values())

    @property
    def has_answer(self) -> bool:
        """Whether there is anything to choose from: a trial that has not failed and has measured a number."""
        return any(
            math.isfinite(value)
            for trial in self.trials.values()
            if trial.state not in ("failed", "infeasible")
            for value in trial.values.values()
        )

    def at_rung(self, rung: int) -> list[Trial]:
        """The trials that have a value at a rung, the best first; NaN is worst, the earlier trial is the better."""
        there = [trial for trial in self.trials.values() if rung in trial.values]
        return sorted(there, key=lambda trial: (worth(trial.values[rung], self.spec.sign), trial.number))

    def best(self) -> Trial | None:
        """The best trial: of those at the highest rung that any has reached."""
        for rung in range(self.spec.last_rung, -1, -1):
            there = [trial for trial in self.at_rung(rung) if not math.isnan(trial.values[rung])]
            if there:
                return there[0]
        return None


def worth(value: float, sign: int) -> float:
    """A key that sorts the best value first, and NaN last."""
    return math.inf if math.isnan(value) else -sign * value


def fold(state: State, entries: Iterable[Entry]) -> State:
    """Take entries into a state, in order; gives the same state. Raises NewerFormat."""
    for entry in entries:
        body = entry.body
        state.last = max(state.last, entry.number)
        try:
            if body["v"] > JOURNAL_FORMAT:
                raise NewerFormat(f"journal entry {entry.number}", "search journal", body["v"], JOURNAL_FORMAT)
            _FOLDS[body["op"]](state, {**body, "entry": entry.number})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            state.odd[entry.number] = f"{type(error).__name__}: {error}"
    return state


def _propose(state: State, body: Mapping[str, Any]) -> None:
    number = int(body["t"])
    if number in state.trials or (state.max_trials is not None and len(state.trials) >= state.max_trials):
        return
    trial = Trial(
        number, dict(body["params"]), str(body["run"]), int(body["slot"]), str(body["why"]), int(body["seen"])
    )
    trial.expected_s, trial.claimed_s = float(body["expected_s"]), float(body["at_s"])
    trial.to, trial.parent = int(body["to"]), body.get("parent")
    trial.entry = int(body["entry"])
    state.trials[number] = trial
    state.points.add(name_of(trial.point))


def _claim(state: State, body: Mapping[str, Any]) -> None:
    trial = state.trials[int(body["t"])]
    if trial.is_over or int(body["fence"]) != trial.fence + 1:
        return
    trial.fence, trial.slot, trial.state, trial.to = int(body["fence"]), int(body["slot"]), "running", int(body["to"])
    trial.expected_s, trial.claimed_s = float(body["expected_s"]), float(body["at_s"])
    trial.is_again = False
    trial.used_s = max(trial.used_s, float(body["used_s"]))
    died = bool(body["died"]) and int(body["step"]) <= trial.step
    trial.num_deaths = trial.num_deaths + 1 if died else 0
    trial.step = max(trial.step, int(body["step"]))


def _mine(state: State, body: Mapping[str, Any]) -> Trial | None:
    """The trial of a fact, if who writes it still had it."""
    trial = state.trials[int(body["t"])]
    return None if trial.is_over or trial.state != "running" or int(body["fence"]) != trial.fence else trial


def _take(trial: Trial, body: Mapping[str, Any]) -> None:
    trial.step = max(trial.step, int(body["step"]))
    trial.used_s = max(trial.used_s, float(body["used_s"]))


def _rung(state: State, body: Mapping[str, Any]) -> None:
    trial, rung = _mine(state, body), int(body["rung"])
    if trial is not None and rung not in trial.values:
        trial.values[rung] = float(body["value"])
        _take(trial, body)
        trial.cost_s[rung] = trial.used_s
        trial.num_deaths = 0


def _pause(state: State, body: Mapping[str, Any]) -> None:
    if (trial := _mine(state, body)) is not None:
        _take(trial, body)
        trial.state, trial.saved_bytes = "paused", int(body.get("saved_bytes", 0))


def _drop(state: State, body: Mapping[str, Any]) -> None:
    state.trials[int(body["t"])].saved_bytes = 0


def _end(state: State, body: Mapping[str, Any]) -> None:
    trial = _mine(state, body)
    if trial is None or body["state"] not in OVER:
        return
    _take(trial, body)
    trial.state, trial.cause = str(body["state"]), str(body["cause"])
    for rung, value in (body.get("values") or {}).items():
        trial.values.setdefault(int(rung), float(value))
    if trial.state == "completed":
        trial.cost_s[state.spec.last_rung] = trial.used_s
    state.ended.append(trial.number)


def _again(state: State, body: Mapping[str, Any]) -> None:
    trial = state.trials[int(body["t"])]
    if trial.state in ("failed", "infeasible") and int(body["fence"]) == trial.fence:
        trial.state, trial.cause, trial.num_deaths = "paused", "", 0
        trial.is_again = True
        state.ended.remove(trial.number)


def _stop(state: State, body: Mapping[str, Any]) -> None:
    state.stopped = str(body["why"])


def _resume(state: State, body: Mapping[str, Any]) -> None:
    state.stopped = ""
    state.max_trials, state.hours, state.deadline_s = body["max_trials"], body["hours"], body["deadline_s"]


_FOLDS = {
    **{"propose": _propose, "claim": _claim, "rung": _rung, "pause": _pause, "end": _end},
    **{"drop": _drop, "again": _again, "stop": _stop, "resume": _resume},
}


class Journal:
    """The journal of one sweep's folder, and the state as far as it was read."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.log = Log(folder / "journal")
        self.state = State(spec)

    def read(self) -> State:
        """The state now. Raises NewerFormat, OSError."""
        fold(self.state, self.log.entries(after=self.state.last))
        # The number of a broken entry is taken, too, and a decision stands behind it.
        self.state.last = max(self.state.last, self.log.top)
        return self.state

    def decide(self, op: str, **body: Any) -> bool:
        """Write a decision that was made from `state`; False where somebody has written something meanwhile."""
        return self.log.cas(self._entry(op, body), after=self.state.last)

    def add(self, op: str, **body: Any) -> int:
        """Write a fact; gives the number of its entry."""
        return self.log.append(self._entry(op, body))

    def _entry(self, op: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"v": JOURNAL_FORMAT, "op": op, "time": now(), "by": who(), **body}
