"""Which samples make which batch: positions of one endless stream of epochs, the same for any number of ranks.

Batch s of global size G is the positions [s·G, (s+1)·G) of the stream: epoch 0 in its order, then epoch 1 in its own,
and so on. Where G does not divide an epoch, a batch takes the last samples of one epoch and the first of the next:
nothing is dropped, no batch is short, no rank has less to do than another. A rank takes its slice of the positions, so
the number of samples consumed says everything about where a run is, also to another number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from hpctool import files
from hpctool.data import usage
from hpctool.data.access import Choice
from hpctool.data.images import ImageForm
from hpctool.data.order import VERSION as ORDER_VERSION
from hpctool.data.order import Order
from hpctool.data.reader import Reader
from hpctool.data.shuffle import shuffle_quality
from hpctool.data.stage import stage
from hpctool.data.verify import check_readable
from hpctool.data.version import Version, noting_opened, open_together
from hpctool.launch import signals
from hpctool.rundir import RunDir
from hpctool.train.augment import Augment
from hpctool.train.schema import Data, TrainConfig
from hpctool.train.task import Batch
from hpctool.world import World

Rows = npt.NDArray[np.int64]

_AHEAD = 16384  # positions


def open_checked(datasets: Path, data: Data, world: World) -> Version:
    """The pinned dataset version, its objects found to be what was written (conf: data.checksums), the training and
    validation splits staged on the nodes' disks if that was chosen (data.stage).

    Collective: all ranks must call it. Raises UnknownName, CorruptError, on all ranks alike.
    """
    version = open_together(datasets, data.name, world)
    version.access = cast(Choice, data.read)
    columns = [column for column in (data.feature, data.label) if column]
    splits = [data.train_split, data.val_split]
    stop = signals.stop_requested
    said = stage(version, columns, splits, data.stage, world, checksums=data.checksums, stopped=stop)
    if said and world.is_main:
        print(said, flush=True)
    # What was staged has been compared while it was copied.
    everywhere = all(world.gather(version.stage is not None))
    checksums = data.checksums and not everywhere
    world.together(lambda: check_readable(version, columns, checksums=checksums, rank=world.rank, size=world.size))
    return version


def open_sources(cfg: TrainConfig, rundir: RunDir, world: World, augment: Augment | None) -> tuple[Source, Source]:
    """What a run trains on and what it validates on. Collective. Raises what open_checked does, InputError."""
    data = cfg.data
    if data.dataset is not None:
        from hpctool.train.own_data import OwnSamples

        with noting_opened() as opened:
            train, val = (OwnSamples(data.dataset, split, cfg.seed) for split in (data.train_split, data.val_split))
        order = usage.Order(cfg.seed, 0, cfg.loop.global_batch_size, usage.OWN)
        for version in {v.store.root / v.commit: v for v in opened}.values() if world.is_main else ():
            # A Dataset over a version of ours: that can be recorded, though not which rows.
            usage.begin_use(version, rundir, "train", {"": order})
        return train, val
    version = open_checked(Path(cfg.paths.datasets), data, world)
    if world.is_main:
        # Beside the data: that this run trains on it, and in which order.
        order = usage.Order(cfg.seed, data.window, cfg.loop.global_batch_size, ORDER_VERSION)
        usage.begin_use(version, rundir, "train", {data.train_split: order, data.val_split: None})
    # A forked worker cannot pin; there DataLoader does it.
    pinned = torch.cuda.is_available() and cfg.loop.num_workers == 0
    samples = Samples(version, data, data.train_split, cfg.seed, augment, pinned=pinned)
    if world.is_main and (said := said_shuffle(samples, rundir, data.label, cfg.loop.global_batch_size)):
        print(said, flush=True)
    return samples, Samples(version, data, data.val_split)


class Source(Protocol):
    """Where batches come from: an endless stream of epochs to train on, and shares of one pass to evaluate."""

    def __len__(self) -> int: ...

    def gather(self, ranges: Sequence[tuple[int, int]]) -> Batch:
        """Several ranges [start, stop) of positions of the endless stream, one behind the other."""
        ...

    def share(self, rank: int, size: int, batch_size: int) -> Iterator[Batch]:
        """Every sample exactly once over `size` ranks, unchanged: this rank's, in batches."""
        ...


class Samples:
    """One split of a dataset version: as a shuffled stream to train on, or in shares to evaluate."""

    def __init__(
        self,
        version: Version,
        data: Data,
        split: str,
        seed: int = 0,
        augment: Augment | None = None,
        *,
        pinned: bool = False,
    ) -> None:
        """`pinned` reads features into memory that a GPU copies from by itself; not in a forked worker."""
        assert data.feature is not None, "resolve chooses the feature column"
        self.version = version
        self.columns: dict[str, str] = {"x": data.feature, "y": data.label}
        columns = list(self.columns.values())
        self.reader = Reader(version, columns, window=data.window, images=image_forms(version, data))
        self.rows: Rows = version.split_rows(split)
        self.pinned = pinned
        self.seed = seed
        self.augment = augment
        self.order = Order(len(self.rows), seed, data.window)
        self._ahead: tuple[int, int, Rows] = (-1, 0, self.rows[:0])

    def __len__(self) -> int:
        return len(self.rows)

    def stream(self, start: int, stop: int) -> Batch:
        """The positions [start, stop) of the endless stream."""
        return self.gather([(start, stop)])

    def gather(self, ranges: Sequence[tuple[int, int]]) -> Batch:
        """Several ranges [start, stop) of positions of the endless stream, one behind the other."""
        parts: list[tuple[int, Rows]] = []
        for start, stop in ranges:
            while start < stop:
                epoch, first = divmod(start, len(self))
                last = min(len(self), first + stop - start)
                parts.append((epoch, self.rows[self._ordered(epoch, first, last)]))
                start += last - first
        rows = np.concatenate([rows for _, rows in parts])
        if self.pinned and self.augment is None:
            return self._pinned(rows)
        arrays = self.reader.gather(rows)
        if self.augment is not None:
            epochs = np.concatenate([np.full(len(rows), epoch, np.int64) for epoch, rows in parts])
            arrays[self.columns["x"]] = self._augmented(arrays[self.columns["x"]], epochs, rows)
        return self._batch(arrays, rows)

    def share(self, rank: int, size: int, batch_size: int) -> Iterator[Batch]:
        """Every sample of the split exactly once over `size` ranks, unchanged, in the order of rows: this rank's."""
        mine = self.rows[rank::size]
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            yield self._batch(self.reader.gather(rows), rows)

    def _ordered(self, epoch: int, first: int, last: int) -> Rows:
        # The order has a price per call, so it is asked for many positions at once.
        known_epoch, start, known = self._ahead
        if known_epoch != epoch or not start <= first <= last <= start + len(known):
            known, start = self.order.rows(epoch, first, min(len(self), max(last, first + _AHEAD))), first
            self._ahead = (epoch, start, known)
            self.reader.prefetch(self.rows[known])
        return known[first - start : last - start]

    def _batch(self, arrays: dict[str, npt.NDArray[Any]], rows: Rows) -> Batch:
        batch = {role: torch.from_numpy(arrays[column]) for role, column in self.columns.items()}
        return {**batch, "row": torch.from_numpy(rows)}

    def _pinned(self, rows: Rows) -> Batch:
        """The same, gathered right into memory that a GPU copies from by itself. (Not tried without a GPU.)"""
        column = self.version.columns[self.columns["x"]]
        dtype = torch.from_numpy(np.empty(0, column.dtype)).dtype
        # torch's own tensor is kept: it does not give the memory to somebody else while the copy is under way.
        x = torch.empty((len(rows), *self.reader.shape(column.name)), dtype=dtype, pin_memory=True)
        return {**self._batch(self.reader.gather(rows, {column.name: x.numpy()}), rows), "x": x}

    def _augmented(self, x: npt.NDArray[Any], epochs: Rows, rows: Rows) -> npt.NDArray[Any]:
        # By uid, not by row: the same sample changes alike in every version of the dataset.
        assert self.augment is not None
        samples = []
        for sample, epoch, uid in zip(x, epochs.tolist(), self.version.uids(rows), strict=True):
            key = int.from_bytes(hashlib.blake2b(f"{self.seed}/{epoch}/{uid}".encode(), digest_size=16).digest())
            samples.append(self.augment(sample, np.random.Generator(np.random.Philox(key=key))))
        return np.stack(samples)


def image_forms(version: Version, data: Data) -> dict[str, ImageForm]:
    """What the encoded feature column becomes, if it is one, by the configuration that `resolve` has completed."""
    assert data.feature is not None, "resolve chooses the feature column"
    if version.columns[data.feature].encoding is None:
        return {}
    assert data.input_shape is not None, "resolve fills it in"
    channels, height, width = data.input_shape
    return {data.feature: ImageForm(height, width, channels)}


def said_shuffle(samples: Samples, rundir: RunDir, label: str, batch_size: int) -> str:
    """How well a window mixes the classes, kept in artifacts/shuffle.json; empty without a window. For one rank."""
    if not samples.order.window or rundir.artifact("shuffle.json").exists():
        return ""
    found = shuffle_quality(samples.version, samples.rows, label, samples.order, batch_size)
    if found is None:
        return ""
    files.write_json(rundir.artifact("shuffle.json"), found.to_json())
    return str(found)
