"""What is trained: the model in the form in which ranks share it, its optimizers, their schedules, its average.

Most runs have one optimizer for the whole model. Where `optim` names several, each trains the part of the model that
has its name (`model.generator`, `model.discriminator`), in the order of the config, one after the other in each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hpctool.errors import ConfigError
from hpctool.train import params
from hpctool.train.average import MovingAverage
from hpctool.train.precision import Precision
from hpctool.train.rate import LearningRate
from hpctool.train.schema import TrainConfig
from hpctool.train.strategy import make_strategy, sharded_like, share_buffers
from hpctool.train.task import Batch, Sums, Task
from hpctool.world import World


@dataclass
class Part:
    """Parameters that learn, with an optimizer of their own; `name` is empty where they are all of the model's."""

    name: str
    params: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    rate: LearningRate


class Learner:
    """Built alike on all ranks, from the current random stream. Collective: all ranks make one."""

    def __init__(self, cfg: TrainConfig, task: Task, world: World, device: torch.device, max_steps: int) -> None:
        self.cfg, self.world = cfg, world
        self.task = task
        self.model = params.build_model(cfg).to(device)
        average = MovingAverage(self.model, cfg.loop.ema) if cfg.loop.ema is not None else None
        if cfg.loop.compile:
            self.model.compile(backend=cfg.loop.compile)
        modules = _parts(self.model, cfg)
        self.strategy = make_strategy(self.model, device, world, cfg.parallel, len(modules))
        self.average = average
        if average is not None:
            self.strategy.shard(average.module)
        self.precision = Precision(cfg.loop.precision, device)
        self.parts = [self._part(name, module, max_steps) for name, module in modules.items()]

    def _part(self, name: str, module: nn.Module, max_steps: int) -> Part:
        optimizer = params.build_optimizer(self.cfg.optim[name] if name else self.cfg.optim, module)
        # What is frozen stays so.
        learnt = [p for p in module.parameters() if p.requires_grad]
        rate = LearningRate(self.cfg.schedule, optimizer, max_steps, self.cfg.loop.best_mode)
        return Part(name, learnt, optimizer, rate)

    @property
    def trained(self) -> nn.Module:
        """The model whose parameters are the result: the moving average where there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def follows_best(self) -> bool:
        """Whether a learning rate depends on loop.best_metric."""
        return any(part.rate.follows_best for part in self.parts)

    # ------------------------------------------------------------------------------------------ in a step

    def begin(self, part: Part, step: int) -> None:
        """Before the passes of a part: its learning rate; in the others no gradients are gathered. Collective."""
        self.strategy.begin_step()
        part.rate.begin_step(step)
        if len(self.parts) > 1:
            for other in self.parts:
                for p in other.params:
                    p.requires_grad_(other is part)

    def loss(self, part: Part, batch: Batch) -> tuple[Tensor, Sums]:
        """The task's loss and sums for a batch."""
        with self.precision.autocast():
            if not part.name:
                return self.task.loss(self.strategy.forward, batch)
            by_part = cast("Callable[[nn.Module, Batch, str], tuple[Tensor, Sums]]", self.task.loss)
            return by_part(self.model, batch, part.name)

    def clip(self, part: Part) -> float:
        """Finish a part's averaged gradient; clip it if it is finite. Its norm, the same on all ranks. Collective."""
        self.strategy.finish(part.params)
        self.precision.unscale(part.optimizer)
        norm = self.strategy.norm(part.params)
        grad_norm = float(norm)
        if self.cfg.loop.grad_clip is not None and math.isfinite(grad_norm):
            torch.nn.utils.clip_grads_with_norm_(part.params, self.cfg.loop.grad_clip, norm)
        return grad_norm

    def finish_step(self, moved: bool) -> None:
        """After the last part of a step. `moved`: whether any parameter has changed."""
        self.forget_gradients()
        self.precision.finish_step()
        for part in self.parts:
            part.rate.finish_step()
        if moved and self.average is not None:
            self.average.update(self.model)

    def validated(self, score: float | None) -> None:
        """After a validation, for schedulers that follow it; `score` is the higher the better."""
        for part in self.parts:
            if score is not None:
                part.rate.validated(score)

    def rates(self) -> dict[str, float]:
        """The learning rates, and the scale of the loss where there is one, as metrics."""
        found = {named("train/lr", part.name): float(part.optimizer.param_groups[0]["lr"]) for part in self.parts}
        scaler = self.precision.scaler
        return found | ({"train/loss_scale": scaler.get_scale()} if scaler is not None else {})

    def forget_gradients(self) -> None:
        """As after a step."""
        # Not by zero_grad, whose notes to profilers cost more than what it does.
        for part in self.parts:
            for p in part.params:
                p.grad = None
                if len(self.parts) > 1:
                    p.requires_grad_(True)

    # ------------------------------------------------------------------------------------------ to disk and back

    def share_buffers(self) -> None:
        """Let every rank have rank 0's buffers, which the next step would take anyway. Collective."""
        share_buffers(self.model, self.world)
        if self.average is not None:
            share_buffers(self.average.module, self.world)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; what is sharded stays so."""
        optimizers = {part.name: part.optimizer.state_dict() for part in self.parts}
        rates = {part.name: part.rate.state() for part in self.parts}
        state = {
            "model": self.model.state_dict(),
            "optimizer": optimizers.get("", optimizers),
            "ema": self.average.state_dict() if self.average is not None else None,
        }
        state |= {"scaler": scaler} if (scaler := self.precision.state()) else {}
        state |= {"schedule": rates} if any(rates.values()) else {}
        return state

    def begin_with(self, values: dict[str, Any]) -> None:
        """Take initial values for the model, and for its average."""
        _load(self.model, values)
        if self.average is not None:
            _load(self.average.module, values)

    def adopt(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        _load(self.model, state["model"])
        for part in self.parts:
            of_part = state["optimizer"][part.name] if part.name else state["optimizer"]
            part.optimizer.load_state_dict(_laid_out(of_part, part.optimizer))
            part.rate.adopt(state.get("schedule", {}).get(part.name))
        if self.average is not None:
            _load(self.average, state["ema"])
        self.precision.adopt(state.get("scaler"))


def named(metric: str, part: str) -> str:
    """`train/lr`, and `train/lr/generator` where there are several parts."""
    return f"{metric}/{part}" if part else metric


def _parts(model: nn.Module, cfg: TrainConfig) -> dict[str, nn.Module]:
    """Name → module with an optimizer of its own. Raises ConfigError where the model has no such part."""
    if "_target_" in cfg.optim:
        return {"": model}
    known = dict(model.named_children())
    for name in cfg.optim:
        if name not in known:
            raise ConfigError(f"optim.{name}", f"the model has no part of this name; it has {', '.join(known)}.")
    covered = {id(p) for name in cfg.optim for p in known[name].parameters()}
    if any(p.requires_grad and id(p) not in covered for p in model.parameters()):
        raise ConfigError("optim", f"its parts {', '.join(cfg.optim)} are not all of the model's parameters.")
    return {name: known[name] for name in cfg.optim}


def _load(owner: nn.Module | MovingAverage, state: dict[str, Any]) -> None:
    now = owner.state_dict()
    owner.load_state_dict({key: sharded_like(value, now[key]) if key in now else value for key, value in state.items()})


def _laid_out(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with its tensors laid out like their parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    of_params = {
        number: {
            key: sharded_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": of_params}
