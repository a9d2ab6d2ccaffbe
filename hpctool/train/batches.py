"""Batches: what a rank learns from next, made ready before it is asked for.

A batch is named by where its global batch begins in the stream and by the pass of the step, and depends on nothing
else: whatever was made ready ahead, by whom and in which order is only used if it is what is asked for. So a run can
resume anywhere, with any number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hpctool.errors import OperationError
from hpctool.train.samples import Source
from hpctool.train.task import Batch

#: (where the global batch begins in the stream, pass of the step)
Name = tuple[int, int]

#: In this process, small batches are read many at once: a read has a price of its own, which a tiny model would feel.
_AHEAD_BYTES = 1 << 20
_AHEAD_BATCHES = 32
#: Kernels may add in another order where memory is not aligned to this, so every batch begins like torch's own memory.
_ALIGNMENT_BYTES = 64


class Batches(Dataset[tuple[Name, Batch]]):
    """This rank's parts of the global batches, one for each of `accumulate` passes of a step."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        size: int = 1,
        device: torch.device | None = None,
        num_workers: int = 0,
    ) -> None:
        self.source = source
        self.batch_size = batch_size  # samples of a step, over all ranks
        self.accumulate = accumulate
        self.rank = rank
        self.share = batch_size // (size * accumulate)
        self.device = device or torch.device("cpu")
        self.num_workers = num_workers
        self._ready: dict[Name, Batch] = {}
        self._from_workers: Iterator[tuple[Name, Batch]] | None = None
        self._num_ahead = 1
        self._waited_s, self._since_s = 0.0, time.perf_counter()

    def get(self, start: int, number: int) -> Batch:
        """The batch for pass `number` of the step whose global batch begins at position `start`, on the device."""
        asked_s = time.perf_counter()
        name = (start, number)
        if name not in self._ready:
            self._ready = self._next_of_workers(name) if self.num_workers else self._read_ahead(name)
        batch = self._ready.pop(name)
        self._waited_s += time.perf_counter() - asked_s
        return to_device(batch, self.device)

    def data_wait(self) -> float:
        """The fraction of the time since this was asked last (or since the beginning) that steps waited for data."""
        now_s = time.perf_counter()
        fraction = self._waited_s / max(1e-9, now_s - self._since_s)
        self._waited_s, self._since_s = 0.0, now_s
        return fraction

    def close(self) -> None:
        """End the workers."""
        self._from_workers = None

    def __getitem__(self, name: Name) -> tuple[Name, Batch]:
        """What a worker does."""
        return name, self.source.gather([self._range(name)])

    def _range(self, name: Name) -> tuple[int, int]:
        start, number = name
        first = start + (self.rank * self.accumulate + number) * self.share
        return first, first + self.share

    def _names(self, name: Name) -> Iterator[Name]:
        """This batch and all that follow it, without an end."""
        start, number = name
        while True:
            yield start, number
            number += 1
            if number == self.accumulate:
                start, number = start + self.batch_size, 0

    def _read_ahead(self, name: Name) -> dict[Name, Batch]:
        names = [following for following, _ in zip(self._names(name), range(self._num_ahead), strict=False)]
        block = self.source.gather([self._range(one) for one in names])
        size_bytes = sum(tensor.nbytes for tensor in block.values()) // len(names)
        self._num_ahead = max(1, min(_AHEAD_BATCHES, _AHEAD_BYTES // max(1, size_bytes)))
        cut = {role: [_aligned(part) for part in torch.split(tensor, self.share)] for role, tensor in block.items()}
        pinned = self.device.type == "cuda"
        return {
            one: {role: parts[place].pin_memory() if pinned else parts[place] for role, parts in cut.items()}
            for place, one in enumerate(names)
        }

    def _next_of_workers(self, name: Name) -> dict[Name, Batch]:
        try:
            found = next(self._from_workers) if self._from_workers is not None else None
            if found is None or found[0] != name:
                # The first batch of an attempt, or one out of turn: the warm-up's, or the one after a rollback.
                self._from_workers = self._start_workers(name)
                found = next(self._from_workers)
        except Exception as error:
            # Beginning and end of what torch makes of it: where it was caught, a traceback, and what was wrong.
            caught, *_, why = str(error).strip().splitlines() or [type(error).__name__]
            if not caught.startswith("Caught "):
                raise
            raise OperationError(f"A worker that reads samples (loop.num_workers) has failed: {why}") from error
        return dict([found])

    def _start_workers(self, name: Name) -> Iterator[tuple[Name, Batch]]:
        # Forked workers inherit the open files of the source, and leave stop signals to this process (signals.py).
        # The generator keeps DataLoader from drawing its seed from the stream that training draws from.
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=_Endless(self, name),
                num_workers=self.num_workers,
                pin_memory=self.device.type == "cuda",
                multiprocessing_context="fork",
                generator=torch.Generator(),
                collate_fn=_unchanged,
            )
        )


class _Endless:
    """A sampler for DataLoader: the names of all batches from one on."""

    def __init__(self, batches: Batches, first: Name) -> None:
        self.batches, self.first = batches, first

    def __iter__(self) -> Iterator[Name]:
        return self.batches._names(self.first)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    if device.type == "cpu":
        return batch
    return {role: tensor.to(device, non_blocking=True) for role, tensor in batch.items()}


def _unchanged(found: Any) -> Any:
    return found


def _aligned(part: torch.Tensor) -> torch.Tensor:
    return part.clone() if part.data_ptr() % _ALIGNMENT_BYTES else part
