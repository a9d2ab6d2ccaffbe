"""The learning rate of an optimizer at each step: a pure function of the step, or a torch scheduler with its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hpctool.train.schedule import check_plateau, lr_factor
from hpctool.train.schema import Schedule


class LearningRate:
    """Sets the learning rate of one optimizer as `schedule` says."""

    def __init__(self, cfg: Schedule, optimizer: torch.optim.Optimizer, max_steps: int, best_mode: str) -> None:
        """Raises ConfigError for a ReduceLROnPlateau that is for metrics of the other kind than `best_mode`."""
        self.optimizer = optimizer
        self.scheduler: LRScheduler | None = None
        self.factor: Callable[[int], float] = lambda step: lr_factor(cfg, step, max_steps)
        if cfg.kind == "own":
            target = get_object(cfg.own["_target_"])
            if isinstance(target, type) and issubclass(target, LRScheduler):
                self.scheduler = instantiate(cfg.own, optimizer, _convert_="all")
            elif isinstance(target, type):
                self.factor = instantiate(cfg.own, _convert_="all")
            else:
                self.factor = instantiate(cfg.own, _partial_=True, _convert_="all")
        if isinstance(self.scheduler, ReduceLROnPlateau):
            check_plateau(self.scheduler.mode, best_mode)
        self._bases = [float(group["lr"]) for group in optimizer.param_groups]

    @property
    def follows_best(self) -> bool:
        """Whether it depends on loop.best_metric."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def begin_step(self, step: int) -> None:
        """Set the learning rate of `step`, counted from 0."""
        if self.scheduler is None:
            factor = self.factor(step)
            for group, base in zip(self.optimizer.param_groups, self._bases, strict=True):
                group["lr"] = base * factor

    def finish_step(self) -> None:
        """After the optimizer's step."""
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    def validated(self, score: float) -> None:
        """After a validation; `score` is the higher the better: loop.best_metric, negative where the mode is min."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(score if self.scheduler.mode == "max" else -score)

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint; None where the step says everything."""
        return self.scheduler.state_dict() if self.scheduler is not None else None

    def adopt(self, state: dict[str, Any] | None) -> None:
        """Take over what a checkpoint holds."""
        if self.scheduler is not None and state is not None:
            self.scheduler.load_state_dict(state)
