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

from hpctool.errors import ConfigError, InputError

#: `x`: the feature column as stored (N, …) · `y`: the label column (N, …) · `row`: int64 (N,), the dataset's rows
Batch = dict[str, Tensor]

#: Numbers that may be added over batches and ranks, as scalars: sums and counts, never means.
Sums = Mapping[str, Tensor]

#: (logits (n, K), labels (n,)) → a loss, or a value for each row
RowsToValue = Callable[[Tensor, Tensor], Tensor]


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

        Where `optim` names several parts of the model, this is called once for each of them, with the part's name as
        a third argument, and `model` is the model itself: call what you like of it, as often as you like
        (examples/gan).
        """
        ...

    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Sums:
        """Sums for the validation metrics; the model is in eval mode and no gradient is kept."""
        ...

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics by name (`loss`, `accuracy` …) from the sums of all batches and ranks."""
        ...


def metrics_of(task: Task, sums: Mapping[str, float]) -> dict[str, float]:
    """A task's metrics as plain numbers, which checkpoints can hold: NumPy's and torch's scalars are turned into them.

    Raises InputError for what is no number.
    """
    found = {}
    for name, value in task.metrics(sums).items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(value).__name__
            raise InputError(
                f"The task's metric '{name}' is a {kind}, not a number. Let metrics() give numbers."
            ) from error
    return found


class ToFloat(nn.Module):
    """uint8 images (N, H, W, C) → float32 (N, C, H, W) in 0..1; anything else becomes float32 and keeps its shape."""

    def forward(self, x: Tensor) -> Tensor:
        """The raw column of a batch → what the model takes."""
        if x.dtype == torch.uint8 and x.dim() == 4:
            x_NCHW: Tensor = x.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255.0
            return x_NCHW
        return x.to(torch.float32)


class Classify:
    """One of K classes per sample. A label of -1 is missing and teaches nothing.

    `loss`: (logits (n, K), labels (n,)) → their mean loss, of rows that have a label; None: cross entropy with
    `label_smoothing`. `metrics`: by name, (logits (n, K), labels (n,)) → a value for each row (n,), whose mean is
    reported; `top_k` is one. `preprocess`: the raw feature column → what the model takes; None: `ToFloat`. In the
    config each is a `_target_` below `task`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        loss: RowsToValue | None = None,
        metrics: Mapping[str, RowsToValue] | None = None,
        preprocess: nn.Module | None = None,
    ) -> None:
        if loss is not None and label_smoothing:
            raise ConfigError("task.label_smoothing", "task.loss replaces the loss that it is for; set one of them.")
        self.label_smoothing = label_smoothing
        self.own_loss = loss
        self.own_metrics = dict(metrics or {})
        self.preprocess: nn.Module = preprocess or ToFloat()

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Sums]:
        logits_NK, y_N = model(self.preprocess(batch["x"])).float(), batch["y"]
        total = self._total(logits_NK, y_N, self.label_smoothing)
        # By all rows, not by the labelled ones: then the gradient is the same however ranks and accumulation cut the
        # batch, and a part without any label is not 0/0.
        return total / len(y_N), self._sums(logits_NK.detach(), y_N, total.detach())

    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Sums:
        logits_NK = model(self.preprocess(batch["x"])).float()
        return self._sums(logits_NK, batch["y"], self._total(logits_NK, batch["y"]))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        if not sums["labelled"]:
            return {}
        names = {"loss": "loss", "accuracy": "correct", **{name: name for name in self.own_metrics}}
        return {name: sums[of] / sums["labelled"] for name, of in names.items()}

    def _total(self, logits_NK: Tensor, y_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The sum of the losses of the labelled rows."""
        if self.own_loss is None:
            smoothed = {"reduction": "sum", "label_smoothing": label_smoothing}
            return functional.cross_entropy(logits_NK, y_N, ignore_index=-1, **smoothed)  # type: ignore[arg-type]
        known = y_N >= 0
        if not known.any():
            return logits_NK.sum() * 0.0
        if isinstance(self.own_loss, nn.Module):
            self.own_loss.to(logits_NK.device)
        return self.own_loss(logits_NK[known], y_N[known]) * known.sum()

    def _sums(self, logits_NK: Tensor, y_N: Tensor, loss: Tensor) -> Sums:
        # A missing label, -1, equals no class.
        correct = torch.count_nonzero(logits_NK.argmax(1) == y_N)
        sums = {"loss": loss, "correct": correct, "labelled": torch.count_nonzero(y_N >= 0)}
        if self.own_metrics:
            known = y_N >= 0
            sums |= {name: self._own(name, logits_NK[known], y_N[known]).sum() for name in self.own_metrics}
        return sums

    def _own(self, name: str, logits_nK: Tensor, y_n: Tensor) -> Tensor:
        values_n = self.own_metrics[name](logits_nK, y_n)
        shape = getattr(values_n, "shape", None)
        if shape != y_n.shape:
            found = type(values_n).__name__ if shape is None else f"the shape {list(shape)}"
            problem = (
                f"for {len(y_n)} rows it gave {found}. Let it give a value for each row, of which the mean is made."
            )
            raise ConfigError(f"task.metrics.{name}", problem)
        return values_n


def top_k(logits_NK: Tensor, labels_N: Tensor, k: int = 5) -> Tensor:
    """A metric for Classify: 1 where the label is among the k classes that score best, float (N,)."""
    best_Nk = logits_NK.topk(min(k, logits_NK.shape[1]), dim=1).indices
    return (best_Nk == labels_N[:, None]).any(1).float()
