"""The rungs of a search: the steps at which its trials are compared. Each must be one at which the job measures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from omegaconf import DictConfig

from hpctool.errors import ConfigError, InputError
from hpctool.launch.job import load_job
from hpctool.search.spec import Spec


def choose(spec: Spec, asked: Sequence[int] | None, cfgs: Sequence[DictConfig]) -> list[int]:
    """The rungs below the end of a trial, ascending. `cfgs` are trials as they would run.

    Raises ConfigError where no evaluation hits a rung, InputError where trials are of different lengths.
    """
    if spec.schedule == "none":
        if asked:
            raise ConfigError("search.rungs", f"search.schedule={spec.schedule} compares trials at their end only.")
        return []
    measures = getattr(load_job(spec.job), "measured_at", None)
    if asked and (list(asked) != sorted(set(asked)) or asked[0] < 1):
        raise ConfigError("search.rungs", f"they are steps in ascending order, and got {list(asked)}.")
    if measures is None:
        if not asked:
            raise ConfigError(
                "search.rungs",
                f"when '{spec.job}' measures is not known here; name the steps that it reports: [1,3,9].",
            )
        return list(asked)
    found = {measures(cfg) for cfg in cfgs}
    if len(found) > 1:
        (one, _), (other, _) = sorted(found)[:2]
        raise InputError(
            f"Trials of this search have {one} and {other} steps, or measure at different ones, so they cannot be "
            "compared at rungs. Set loop.max_steps and loop.eval_every_steps, or vary something else."
        )
    num_steps, every = found.pop()
    if spec.schedule == "pbt" and not asked:
        interval = spec.pbt["interval"] or max(1, num_steps // every // 10) * every
        asked = range(interval, num_steps, interval)
        if not asked:
            raise ConfigError(
                "search.pbt.interval", f"a training of {num_steps} steps has no generation of {interval}."
            )
    return checked(num_steps, every, spec.eta, asked)


def checked(num_steps: int, every: int, eta: int, asked: Sequence[int] | None = None) -> list[int]:
    """The rungs of a training of `num_steps` that measures every so many steps. Raises ConfigError."""
    if asked:
        for step in asked:
            if step % every or step > num_steps:
                below, above = max(every, step // every * every), min(-(-step // every) * every, num_steps)
                near = f"{below} or {above}" if below != above else str(below)
                raise ConfigError(
                    "search.rungs",
                    f"no evaluation hits step {step}: it measures every {every} of {num_steps} steps. Take {near}, "
                    "or change loop.eval_every_steps.",
                )
        return [step for step in asked if step < num_steps]
    num_evaluations = math.ceil(num_steps / every)
    found, number = set(), num_evaluations // eta
    while number >= 1:
        found.add(number * every)
        number //= eta
    if not found:
        raise ConfigError(
            "search.schedule",
            f"asha compares trials before their end, and this training of {num_steps} steps measures {num_evaluations} "
            f"time{'s' if num_evaluations > 1 else ''}: lower loop.eval_every_steps, or search.eta.",
        )
    return sorted(found)
