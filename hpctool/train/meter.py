"""Sums over batches and ranks, and the line that tells a person how far the run is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpctool.errors import InputError
from hpctool.world import World

#: the sums of so many batches at most wait to be added up
_NOTED = 64


class Meter:
    """Adds up the sums of a task over batches (here) and over ranks (when asked)."""

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self._sums: dict[str, float] = dict(sums or {})
        self._noted: list[Mapping[str, Tensor]] = []

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sums of one batch. They stay on their device for a while: asking a GPU for each would hold it up.

        Plain numbers are taken too. Raises InputError that names what is no single number.
        """
        self._noted.append({name: _scalar(name, value) for name, value in sums.items()})
        if len(self._noted) >= _NOTED:
            self._settle()

    @property
    def sums(self) -> dict[str, float]:
        """What was added here."""
        self._settle()
        return self._sums

    def total(self, world: World) -> dict[str, float]:
        """The sums over all ranks, in order of rank. Collective: all ranks must call it."""
        total: dict[str, float] = {}
        for sums in world.gather(self.sums):
            for name, value in sums.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _settle(self) -> None:
        by_name: dict[str, list[Tensor]] = {}
        for sums in self._noted:
            for name, value in sums.items():
                by_name.setdefault(name, []).append(value)
        self._noted.clear()
        for name, values in by_name.items():
            for value in torch.stack(values).tolist():
                self._sums[name] = self._sums.get(name, 0.0) + value


def _scalar(name: str, value: Any) -> Tensor:
    if type(value) is Tensor and not value.ndim:
        return value.detach()
    try:
        tensor = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    except (TypeError, ValueError, RuntimeError):
        tensor = None
    if tensor is None or tensor.numel() != 1:
        found = type(value).__name__ if tensor is None else f"tensor of shape {list(tensor.shape)}"
        raise InputError(f"The task's sum '{name}' is a {found}, not one number. Add it up over the rows of the batch.")
    return tensor.detach().reshape(())


class Progress:
    """How far, how good, how fast and how long still: a plain line every few seconds."""

    def __init__(
        self, max_steps: int, say: Callable[[str], None], every_s: float = 5.0, best: str = "val/accuracy"
    ) -> None:
        self.max_steps = max_steps
        self.shown = ("train/loss", best)
        self.say = say
        self.every_s = every_s
        self.num_steps = self.num_samples = 0
        self._known = 0.0

    def begin(self) -> None:
        """The first step of this attempt comes now."""
        self.began_s = self.spoke_s = time.monotonic()

    def end(self) -> None:
        """No step follows in this attempt: how fast it was stays as it is."""
        self._known, self.num_samples = self.samples_per_s, 0

    def count(self, num_samples: int) -> None:
        """One step of so many samples is done."""
        self.num_steps += 1
        self.num_samples += num_samples

    @property
    def samples_per_s(self) -> float:
        """Since this attempt's first step, validation and saves included; before it, what the attempt before said."""
        if not self.num_samples:
            return self._known
        return round(self.num_samples / max(1e-9, time.monotonic() - self.began_s), 1)

    @samples_per_s.setter
    def samples_per_s(self, known: float) -> None:
        self._known = known

    def speak(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say how it stands, if it is time, and at the last step."""
        now_s = time.monotonic()
        if now_s - self.spoke_s < self.every_s and step < self.max_steps:
            return
        self.spoke_s = now_s
        left_s = (self.max_steps - step) * (now_s - self.began_s) / self.num_steps
        known = [f"{name} {metrics[name]:.4f}" for name in self.shown if name in metrics]
        parts = [f"step {step}/{self.max_steps}", *known, f"{self.samples_per_s:.0f} samples/s", f"eta {left_s:.0f} s"]
        self.say(" · ".join(parts))
