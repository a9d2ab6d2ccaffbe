"""A project of its own, which knows hpctool's contracts and is named in the config: model, task, optimizer."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hpctool import files
from hpctool.data.version import open_version
from hpctool.launch import signals
from hpctool.train.task import Batch, Classify, Sums


class Tangled(nn.Module):
    """Layers that run in another order than they are registered, with batch norm and dropout: hard for DDP."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int = 32, depth: int = 6) -> None:
        super().__init__()
        self.last = nn.Linear(width, num_classes)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(depth))
        self.dropout = nn.Dropout(0.1)
        self.first = nn.Linear(int(torch.Size(input_shape).numel()), width)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_ND = torch.relu(self.first(x_NCHW.flatten(1)))
        order = range(len(self.layers))
        for number in [*order[::2], *order[1::2]]:
            x_ND = x_ND + self.dropout(torch.relu(self.norms[number](self.layers[number](x_ND))))
        logits_NK: Tensor = self.last(x_ND)
        return logits_NK


def failing(write: Callable[..., None]) -> Callable[..., None]:
    """Write, but no part of a checkpoint."""

    def instead(path: Path, *arguments: Any, **more: Any) -> None:
        if path.name.startswith("rank-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        write(path, *arguments, **more)

    return instead


def commit_fault(what: str, model: Any) -> float:
    """Go wrong in one of many ways; what the loss is multiplied with, if this process is still there."""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "stop":
        signals.request_stop("preempted")
    if what == "nudge":
        list(model.parameters())[-1].data[0] += 1e-6
    if what == "hang":
        time.sleep(600)
    if what == "unwritable":
        files.write_durably = failing(files.write_durably)
    if what == "gil":
        # As a library does that computes for ever and never lets Python's other threads run.
        # Not by a sleep: a signal, as of who asks for stacks, would end it.
        libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)
    if what == "raise":
        raise ValueError("row 17 is not what it was")
    if what.startswith("exit"):
        sys.exit(int(what.removeprefix("exit")))
    return float("inf") if what == "overflow" else 1.0


class Faulty(Classify):
    """Classify, and what the environment orders.

    FAULT="<what> <rank> <pass>" · SEEN=<folder for the rows seen> · POISON="1+2 7+9": a batch that has rows 1 and 2, or
    7 and 9, has no finite loss
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_passes = 0

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Sums]:
        self.num_passes += 1
        rank = os.environ.get("RANK") or os.environ.get("OMPI_COMM_WORLD_RANK", "0")
        if folder := os.environ.get("SEEN"):
            with open(Path(folder) / f"{rank}", "a") as file:
                file.write(" ".join(str(row) for row in batch["row"].tolist()) + "\n")
        loss, sums = super().loss(model, batch)
        what, _, when = os.environ.get("FAULT", "none").partition(" ")
        if when == f"{rank} {self.num_passes}":
            loss = loss * commit_fault(what, model)
        poison = [set(map(int, rows.split("+"))) for rows in os.environ.get("POISON", "").split()]
        if any(rows <= set(batch["row"].tolist()) for rows in poison):
            loss = loss * float("nan")
        return loss, sums

    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Sums:
        sums = super().evaluate(model, batch)
        blind = os.environ.get("FAULT", "").startswith("blind")
        return {**sums, "loss": sums["loss"] * float("nan")} if blind else sums


class Forgetful(Classify):
    """Keeps to itself how often it was called, and lets that count: so a resumed run is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.num_passes = 0

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Sums]:
        self.num_passes += 1
        loss, sums = super().loss(model, batch)
        return loss * self.num_passes, sums


class Unordered(Classify):
    """Computes what torch cannot compute the same twice."""

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Sums]:
        torch.zeros(4).put_(torch.tensor([0, 1]), torch.ones(2))
        return super().loss(model, batch)


class Unseeded:
    """An augmentation that asks no generator it was given."""

    def __call__(self, sample: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
        return np.random.default_rng().permutation(sample)


class ByPart(Classify):
    """Classify for a model whose parts have an optimizer each: all of them follow the same loss."""

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch, part: str = "") -> tuple[Tensor, Sums]:
        loss, sums = super().loss(model, batch)
        return loss, sums if part == "first" else {}


class FaultyByPart(Faulty):
    """What is poisoned there spoils the last of the parts only."""

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch, part: str = "") -> tuple[Tensor, Sums]:
        of_all = Faulty if part == "norms" else Classify
        loss, sums = of_all.loss(self, model, batch)
        return loss, sums if part == "first" else {}


class Pixels(nn.Module):
    """uint8 (N, H, W, C) → float (N, H·W·C), 0..1."""

    def forward(self, x_NHWC: Tensor) -> Tensor:
        return x_NHWC.to(torch.float32).flatten(1) / 255


class Autoencode:
    """A task without labels: give back the pixels."""

    def __init__(self) -> None:
        self.preprocess: nn.Module = Pixels()

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Sums]:
        sums = self.evaluate(model, batch)
        return sums["error"] / len(batch["x"]), {name: value.detach() for name, value in sums.items()}

    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Sums:
        x_NF = self.preprocess(batch["x"])
        return {"error": (model(x_NF) - x_NF).square().sum(), "rows": torch.tensor(len(x_NF))}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"error": sums["error"] / sums["rows"]}


class PlainNet(nn.Sequential):
    """A model that knows nothing of hpctool."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(size_in, 8), nn.Tanh(), nn.Linear(8, size_out))


class HalfFrozen(PlainNet):
    """For fine-tuning: only the last layer learns."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__(size_in, size_out)
        self[1].requires_grad_(False)


class SignDescent(torch.optim.Optimizer):
    """An optimizer of one's own, with a state."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 0.1)
                p.sub_(average.sign(), alpha=group["lr"])


class Waves(Dataset[tuple[Tensor, int]]):
    """A plain Dataset that knows nothing of hpctool: noisy waves of three lengths, with noise from a global stream."""

    def __init__(self, split: str, noise: float = 0.3) -> None:
        self.num_samples, self.noise = {"train": 101, "val": 31}[split], noise

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x_F = torch.sin(torch.arange(16) * (1 + index % 3) / 3 + index)
        return x_F + self.noise * torch.randn(16) + random.gauss(0, self.noise), index % 3


class Ours(Dataset[tuple[Tensor, int]]):
    """A Dataset of the user's that reads a version of ours by itself."""

    def __init__(self, split: str, datasets: str, ref: str) -> None:
        version = open_version(Path(datasets), ref)
        rows = version.split_rows(split)
        self.x = torch.from_numpy(version.read("image", rows)).flatten(1) / 255
        self.y = version.read("label", rows).clip(0)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])


class BrokenWaves(Waves):
    """One that has a bad sample."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 17:
            raise ValueError("sample 17 cannot be decoded")
        return super().__getitem__(index)


def halved(step: int, every: int) -> float:
    """A schedule of one's own: half the rate after so many steps, and again."""
    return float(0.5 ** (step // every))
