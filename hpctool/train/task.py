"""What a run learns: the task turns raw samples into a loss, and into sums from which metrics are made.

A task of your own is a class with the three methods and the one attribute of `Task`, named in the config:
`hpctool train task._target_=myproject.MyTask`. Its constructor gets the other keys of `task`.

Shapes: N samples, H rows, W columns, C channels, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

#: `x`: the feature column as stored (N, …) · `y`: the label column (N, …) · `row`: int64 (N,), the dataset's rows
Batch = dict[str, Tensor]

#: Numbers that may be added over batches and ranks, as scalars: sums and counts, never means.
Sums = Mapping[str, Tensor]


class Task(Protocol):
    """The whole contract between the loop and what is learnt.

    A task keeps nothing from step to step: what is learnt or counted belongs into the model, which checkpoints hold.
    """

    #: The raw feature column → what the model takes. Scriptable: export puts this module into the model's graph.
    preprocess: nn.Module

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Sums]:
        """The scalar whose gradient is followed, and sums for the training metrics.

        Call `model` itself, once: with several ranks it is the wrapper that averages the gradients. The loss is
        averaged over ranks and accumulated passes, so divide by the number of rows, which is the same in each.
        """
        ...

    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Sums:
        """Sums for the validation metrics; the model is in eval mode and no gradient is kept."""
        ...

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics by name (`loss`, `accuracy` …) from the sums of all batches and ranks."""
        ...


class ToFloat(nn.Module):
    """uint8 images (N, H, W, C) → float32 (N, C, H, W) in 0..1; anything else becomes float32 and keeps its shape."""

    def forward(self, x: Tensor) -> Tensor:
        """The raw column of a batch → what the model takes."""
        if x.dtype == torch.uint8 and x.dim() == 4:
            x_NCHW: Tensor = x.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255.0
            return x_NCHW
        return x.to(torch.float32)


class Classify:
    """One of K classes per sample, by cross entropy. A label of -1 is missing and teaches nothing."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        self.preprocess: nn.Module = ToFloat()

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Sums]:
        logits_NK = model(self.preprocess(batch["x"]))
        total = functional.cross_entropy(
            logits_NK, batch["y"], ignore_index=-1, reduction="sum", label_smoothing=self.label_smoothing
        )
        # By all rows, not by the labelled ones: then the gradient is the same however ranks and accumulation cut the
        # batch, and a part without any label is not 0/0.
        return total / len(batch["y"]), _sums(logits_NK.detach(), batch["y"], total.detach())

    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Sums:
        logits_NK = model(self.preprocess(batch["x"]))
        total = functional.cross_entropy(logits_NK, batch["y"], ignore_index=-1, reduction="sum")
        return _sums(logits_NK, batch["y"], total)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        if not sums["labelled"]:
            return {}
        return {"loss": sums["loss"] / sums["labelled"], "accuracy": sums["correct"] / sums["labelled"]}


def _sums(logits_NK: Tensor, y_N: Tensor, loss: Tensor) -> Sums:
    # A missing label, -1, equals no class.
    return {"loss": loss, "correct": (logits_NK.argmax(1) == y_N).sum(), "labelled": (y_N >= 0).sum()}
