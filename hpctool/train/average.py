"""An exponential moving average of a model's parameters, which often answers better than the model itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class MovingAverage:
    """a ← decay · a + (1 - decay) · p after each step; the first one is copied. Buffers are the model's.

    torch's AveragedModel asks the device for its counter at every parameter; this one never waits for the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).requires_grad_(False)
        self._num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model after a step."""
        mine: list[torch.Tensor] = list(self.module.parameters())
        theirs: list[torch.Tensor] = list(model.parameters())
        floating = [place for place, p in enumerate(mine) if p.is_floating_point()]
        if self._num_updates:
            torch._foreach_lerp_([mine[i] for i in floating], [theirs[i] for i in floating], 1 - self.decay)
        else:
            for p, other in zip(mine, theirs, strict=True):
                p.copy_(other)
        for buffer, other in zip(self.module.buffers(), model.buffers(), strict=True):
            buffer.copy_(other)
        self._num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """As torch's AveragedModel names it."""
        values = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {**values, "n_averaged": torch.tensor(self._num_updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self._num_updates = int(state["n_averaged"])
        values = {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
        self.module.load_state_dict(values)
