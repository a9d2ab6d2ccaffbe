"""The checkpoints of trials that wait: those that others go on from are pinned, and all take no more than was asked.

A trial that loses its checkpoints can still be promoted: its run has leave to begin anew.
"""

from __future__ import annotations

from pathlib import Path

from hpctool.checkpoint import pins, retention
from hpctool.checkpoint.commits import committed
from hpctool.errors import InputError
from hpctool.rundir import RunDir, now, who
from hpctool.search.journal import State, Trial, worth

_GB = 10**9


def saved_bytes(rundir: RunDir) -> int:
    """What the committed checkpoints of a run take."""
    there = {made.path for made in committed(rundir)}
    return sum(file.stat().st_size for path in there if path.is_dir() for file in path.rglob("*") if file.is_file())


def to_drop(state: State) -> Trial | None:
    """The paused trial whose checkpoints are to go next; None while they take no more than they may.

    Those of the lowest rung go first, and of these the worst. A pure function of the state.
    """
    limit_gb = state.spec.keep_paused_gb
    if limit_gb is None:
        return None
    waiting = [trial for trial in state.trials.values() if trial.state == "paused" and trial.saved_bytes]
    if sum(trial.saved_bytes for trial in waiting) <= limit_gb * _GB:
        return None
    free = [trial for trial in waiting if not is_needed(state, trial)]
    sign = state.spec.sign

    def rank(one: Trial) -> tuple[int, float, int]:
        return -one.reached, worth(one.values[one.reached], sign) if one.values else 0.0, one.number

    return max(free, key=rank, default=None)


def is_needed(state: State, trial: Trial) -> bool:
    """Whether trials that are to come, or have not come far enough, go on from a trial's checkpoint."""
    if state.spec.schedule != "pbt":
        return False
    size = int(state.spec.pbt["population"])
    first = (trial.number // size + 1) * size
    if any(number not in state.trials for number in range(first, first + size)):
        return True
    return any(one.parent == trial.number and not one.values for one in state.trials.values())


def drop(rundir: RunDir) -> None:
    """Delete the checkpoints of a run that waits; its next attempt may begin anew. Raises OSError."""
    rundir.ledger.append({"kind": "regress", "by": who(), "time": now()})
    for path in {made.path for made in committed(rundir) if made.path.exists()}:
        retention.discard_unless_pinned(path)


def pin_parent(runs: Path, child: Trial, parent: Trial) -> None:
    """Keep the checkpoint that a trial goes on from until it has one of its own. Raises InputError where it is gone."""
    found = _checkpoint(runs, parent)
    if found is None:
        raise InputError(f"Run {parent.run} has no checkpoint of step {parent.step}, from which this one was to go on.")
    pins.pin(found, child.run)


def unpin_parent(runs: Path, child: Trial, parent: Trial) -> None:
    """The trial has a checkpoint of its own."""
    found = _checkpoint(runs, parent)
    if found is not None:
        pins.unpin(found, child.run)


def _checkpoint(runs: Path, trial: Trial) -> Path | None:
    """The checkpoint that others go on from: that of the step at which the trial paused."""
    found = [made.path for made in committed(RunDir(runs / trial.run)) if made.step == trial.step]
    return found[-1] if found else None
