"""A plain torch Dataset as data: `data.dataset._target_`. It works, with weaker guarantees than a dataset version.

It is called with `split` (the names in `data.train_split` and `data.val_split`) and the other keys of `data.dataset`,
and has a length and samples by index: a dict of tensors (`x`, and what else the task wants), a pair (x, y), or x alone.
Texts in the dict (names of files) are left out of the batch.

What still holds: every sample exactly once per epoch, in an order that knows nothing of ranks and workers; a resume to
the bit, if the Dataset gives the same for the same index. What it draws from Python's, NumPy's or torch's global
CPU streams (augmentation) is seeded by seed, epoch and index, and disturbs no other stream. What does not hold: nobody
knows later what the data was, and who set its labels; damage is not found. Where the Dataset opens versions of ours
while it is made (`hpctool.data.version.open_version`), these are pinned and the run is recorded beside them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch.utils.data import default_collate

from hpctool.data.order import Order
from hpctool.errors import InputError
from hpctool.train.seeds import seed_host
from hpctool.train.task import Batch

#: in a validation samples are as in no epoch of training
_NO_EPOCH = 0


class OwnSamples:
    """One split of a Dataset of the user's, as Samples is one of a dataset version. Raises InputError."""

    def __init__(self, cfg: Any, split: str, seed: int) -> None:
        self.name = str(cfg["_target_"])
        self.dataset = instantiate(cfg, split=split, _convert_="all")
        if not hasattr(self.dataset, "__getitem__") or not hasattr(self.dataset, "__len__"):
            raise InputError(
                f"data.dataset: {self.name} has no length or no samples by index, so nobody can say where a run is in "
                "it. Give a map-style Dataset, or prepare the data: hpctool prepare source=own."
            )
        if not len(self.dataset):
            raise InputError(f"data.dataset: {self.name} has no samples in the split '{split}'.")
        self.seed = seed
        self.order = Order(len(self.dataset), seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(self, ranges: Sequence[tuple[int, int]]) -> Batch:
        """As Samples.gather."""
        places = [divmod(position, len(self)) for start, stop in ranges for position in range(start, stop)]
        rows = [int(self.order.rows(epoch, place, place + 1)[0]) for epoch, place in places]
        return self._batch([(1 + epoch, row) for (epoch, _), row in zip(places, rows, strict=True)])

    def share(self, rank: int, size: int, batch_size: int) -> Iterator[Batch]:
        """As Samples.share."""
        mine = range(rank, len(self), size)
        for start in range(0, len(mine), batch_size):
            yield self._batch([(_NO_EPOCH, row) for row in mine[start : start + batch_size]])

    def _batch(self, wanted: list[tuple[int, int]]) -> Batch:
        samples = []
        with _streams_kept():
            for epoch, row in wanted:
                seed_host(self.seed, epoch, row)
                samples.append(self._named(self.dataset[row]))
        try:
            found = default_collate(samples)
        except (TypeError, RuntimeError) as error:
            raise self._no_batch(str(error).splitlines()[0]) from error
        batch = {role: values for role, values in found.items() if not _are_texts(values)}
        for role, values in batch.items():
            if not isinstance(values, torch.Tensor):
                raise self._no_batch(f"'{role}' becomes a {type(values).__name__}")
        return {**batch, "row": torch.tensor([row for _, row in wanted])}

    def _no_batch(self, why: str) -> InputError:
        return InputError(
            f"data.dataset: the samples of {self.name} do not make a batch ({why}). Give a dict of tensors, arrays or "
            "numbers, a pair of them (x, y), or one (x), of the same shape in every sample."
        )

    def _named(self, sample: Any) -> dict[str, Any]:
        if isinstance(sample, dict):
            return sample
        if isinstance(sample, tuple | list) and len(sample) == 2:
            return {"x": sample[0], "y": sample[1]}
        return {"x": sample}


def _are_texts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(one, str | bytes) for one in values)


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Whatever is drawn in this block, the global CPU streams go on as if nothing was."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
