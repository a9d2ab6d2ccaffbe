"""Number formats: what a model computes in (`loop.precision`), and the scale that keeps fp16's gradients above zero.

float32  everything in single precision
tf32     the same, but GPUs that can round what goes into matrix products and convolutions to 10 bits, and are faster
bf16     autocast: matrix products and convolutions in bfloat16, sums and parameters in float32
fp16     autocast in float16; the loss is multiplied by a scale, or small gradients would round to zero. Where a
         gradient overflows, the step is left out and the scale halved: all ranks see it alike, because it is looked
         for in the averaged gradients. The scale is in the checkpoint.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hpctool.train.schema import PRECISIONS

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NOTHING = nullcontext()
assert set(PRECISIONS) == {"float32", "tf32", *_DTYPES}


class Precision:
    """What the forward pass computes in, and the scale of the loss."""

    def __init__(self, kind: str, device: torch.device) -> None:
        self.device_type = device.type
        self.dtype = _DTYPES.get(kind)
        self.scaler = torch.amp.GradScaler(device.type) if kind == "fp16" else None
        # For the whole process. By itself torch rounds in convolutions only.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"

    def autocast(self) -> AbstractContextManager[Any]:
        """Around forward passes."""
        return torch.autocast(self.device_type, self.dtype) if self.dtype is not None else _NOTHING

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a loss."""
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make an optimizer's averaged gradients those of the loss itself."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def overflowed(self, grad_norm: float) -> bool:
        """Whether a step must be left out only because the scale was too large; a smaller one comes next."""
        return self.scaler is not None and not math.isfinite(grad_norm) and self.scaler.get_scale() > 1.0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer's step."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)

    def finish_step(self) -> None:
        """After the last optimizer of a step: the next scale."""
        if self.scaler is not None:
            self.scaler.update()

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint; None where there is no scale."""
        return self.scaler.state_dict() if self.scaler is not None else None

    def adopt(self, state: dict[str, Any] | None) -> None:
        """Take over what a checkpoint holds."""
        if self.scaler is not None and state is not None:
            # A new one: this one may be in the middle of a step, whose gradients are unscaled already.
            self.scaler = torch.amp.GradScaler(self.device_type)
            self.scaler.load_state_dict(state)
