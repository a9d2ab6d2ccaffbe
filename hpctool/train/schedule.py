"""How many steps a run has, and the learning rate at each: pure functions of the config. Imports no torch."""

from __future__ import annotations

import math

from hpctool.train.schema import Loop, Schedule


def num_steps(loop: Loop, num_rows: int) -> int:
    """The run's budget in optimizer steps.

    Batches are cut from an endless stream of epochs, so none is short and no sample is dropped: the last batch of
    the budget is filled up with the first samples of one more epoch.
    """
    if loop.max_steps is not None:
        return loop.max_steps
    assert loop.max_epochs is not None, "resolve sets one of max_steps and max_epochs"
    return math.ceil(loop.max_epochs * num_rows / loop.global_batch_size)


def lr_factor(schedule: Schedule, step: int, max_steps: int) -> float:
    """What optim.lr is multiplied with at `step` (from 0): up to 1 in the warm-up, down to `final_factor` after it."""
    warmup_steps = math.ceil(schedule.warmup_fraction * max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule.kind == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return schedule.final_factor + (1 - schedule.final_factor) * (1 + math.cos(math.pi * done)) / 2
