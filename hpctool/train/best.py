"""Which step was best so far, and whether it is time to give up: decided alike on all ranks, kept in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from hpctool.errors import ConfigError, listing, nearest
from hpctool.train.schema import Loop


class Best:
    """Follows `loop.best_metric` from validation to validation."""

    def __init__(self, cfg: Loop) -> None:
        self.cfg = cfg
        self.sign = 1 if cfg.best_mode == "max" else -1
        self.step = 0
        self.metrics: dict[str, float] = {}
        #: the parameters of that step, where they are to be the run's result
        self.params: dict[str, Any] | None = None
        #: validations since then
        self.num_worse = 0
        #: the scores of the `keep_top` best validations, the best first
        self.top: list[float] = []
        #: whether the newest validation is one of them: it is worth a checkpoint, whatever is due
        self.entered = False

    @property
    def gave_up(self) -> bool:
        """Whether the run ends here, before its budget is used up."""
        return self.cfg.patience is not None and self.num_worse >= self.cfg.patience

    def score(self, values: Mapping[str, float]) -> float | None:
        """How good these metrics are, the higher the better; None where the metric is not among them or not finite."""
        value = values.get(self.cfg.best_metric, math.nan)
        return self.sign * value if math.isfinite(value) else None

    def check(self, values: Mapping[str, float], *, is_followed: bool) -> None:
        """Raises ConfigError where the metric is not among those of a validation, and something depends on it.

        `is_followed`: whether the learning rate does.
        """
        cfg, name = self.cfg, self.cfg.best_metric
        depends = is_followed or cfg.patience is not None or cfg.keep_best or cfg.keep_top > 0
        if depends and name not in values and not self.metrics:
            problem = f"a validation gives {listing(values)}, and no {name}."
            raise ConfigError("loop.best_metric", problem, nearest(name, list(values)))

    def note(self, step: int, values: dict[str, float], model: nn.Module) -> None:
        """Take in a validation; `model` is what was measured."""
        score, before = self.score(values), self.score(self.metrics)
        keep = self.cfg.keep_top
        self.entered = score is not None and keep > 0 and (len(self.top) < keep or score > self.top[keep - 1])
        if score is not None and self.entered:
            self.top = sorted([score, *self.top], reverse=True)[:keep]
        if score is None or (before is not None and score <= before):
            self.num_worse += 1
            return
        self.step, self.metrics, self.num_worse = step, values, 0
        kept = model.state_dict() if self.cfg.keep_best else None
        self.params = kept and {name: tensor.clone() for name, tensor in kept.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        counted = {"num_worse": self.num_worse, "top": self.top}
        return {"step": self.step, "metrics": self.metrics, "params": self.params, **counted}

    def adopt(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.step, self.metrics, self.params = state["step"], state["metrics"], state["params"]
        self.num_worse, self.top = state.get("num_worse", 0), list(state.get("top", []))
