"""A plain torch Dataset as data: `data.dataset._target_`. It works, with weaker guarantees than a dataset version.

It is called with `split` (the names in `data.train_split` and `data.val_split`) and the other keys of `data.dataset`,
and has a length and samples by index: a dict of tensors (`x`, and what else the task wants), a pair (x, y), or x alone.

What still holds: every sample exactly once per epoch, in an order that knows nothing of ranks and workers; a resume to
the bit, if the Dataset gives the same for the same index. What it draws from Python's, NumPy's or torch's global
streams (augmentation) is seeded by seed, epoch and index, and disturbs no other stream. What does not hold: nobody
knows later what the data was, and who set its labels; damage is not found. Where the Dataset opens versions of ours
while it is made (`hpctool.data.version.open_version`), these are pinned and the run is recorded beside them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from hydra.utils import instantiate
from torch.utils.data import default_collate

from hpctool.data.order import Order
from hpctool.errors import InputError
from hpctool.train.seeds import seed_everything
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
                seed_everything(self.seed, epoch, row)
                samples.append(self._named(self.dataset[row]))
        try:
            batch = cast(Batch, default_collate(samples))
        except (TypeError, RuntimeError) as error:
            raise InputError(
                f"data.dataset: the samples of {self.name} do not make a batch ({str(error).splitlines()[0]}). Give "
                "tensors, arrays or numbers, of the same shape in every sample."
            ) from error
        return {**batch, "row": torch.tensor([row for _, row in wanted])}

    def _named(self, sample: Any) -> dict[str, Any]:
        if isinstance(sample, dict):
            return sample
        if isinstance(sample, tuple | list) and len(sample) == 2:
            return {"x": sample[0], "y": sample[1]}
        return {"x": sample}


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Whatever is drawn in this block, the global streams go on as if nothing was."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
