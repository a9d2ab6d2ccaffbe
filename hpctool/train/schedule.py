"""How many steps a run has, and the learning rate at each: pure functions of the config. Imports no torch."""

from __future__ import annotations

import math

from hpctool.errors import ConfigError
from hpctool.train.schema import Loop, Schedule

#: `schedule.kind`; `own` is what `schedule.own._target_` names
KINDS = ("constant", "linear", "cosine", "step", "wsd", "inverse_sqrt", "own")


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
    """What optim.lr is multiplied with at `step` (from 0): up to 1 in the warm-up, then as `kind` says.

    constant      1
    linear        down to `final_factor` in a straight line
    cosine        down to `final_factor` along half a cosine; with a long warm-up this is one-cycle
    step          times `step_factor` behind each of `step_at`, fractions of the budget
    wsd           warm-up, stable, decay: 1, and in the last `decay_fraction` of the budget linear to `final_factor`
    inverse_sqrt  √(w / step) behind a warm-up of w steps, whatever the budget
    """
    warmup_steps = schedule.warmup_steps
    if warmup_steps is None:
        warmup_steps = math.ceil(schedule.warmup_fraction * max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    if schedule.kind == "linear":
        return _between(1.0, schedule.final_factor, done)
    if schedule.kind == "cosine":
        return _between(schedule.final_factor, 1.0, (1 + math.cos(math.pi * done)) / 2)
    if schedule.kind == "step":
        return math.prod(schedule.step_factor for at in schedule.step_at if step >= at * max_steps)
    if schedule.kind == "wsd":
        begin = max(warmup_steps, math.floor((1 - schedule.decay_fraction) * max_steps))
        return (
            _between(1.0, schedule.final_factor, (step - begin) / max(1, max_steps - begin)) if step >= begin else 1.0
        )
    if schedule.kind == "inverse_sqrt":
        return math.sqrt(max(1, warmup_steps) / (step + 1))
    return 1.0


def check_plateau(mode: str, best_mode: str) -> None:
    """Raises ConfigError where a ReduceLROnPlateau would take getting worse for getting better.

    Its input is loop.best_metric. With the sign turned around its relative threshold would be, too.
    """
    if mode != best_mode:
        problem = f"it is {mode} (min where it is not given) and loop.best_mode, of the metric that it follows, is"
        raise ConfigError("schedule.own.mode", f"{problem} {best_mode}. Write mode: {best_mode} into schedule.own.")


def _between(start: float, end: float, fraction: float) -> float:
    return start + (end - start) * fraction
