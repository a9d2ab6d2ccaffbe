"""The trained run that is exported: its model and preprocessing, and the held-out rows that it is tested with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from hpctool.data.reader import Reader
from hpctool.data.version import Version, open_version
from hpctool.export.deployed import Deployed
from hpctool.export.schema import ExportConfig
from hpctool.rundir import RunDir
from hpctool.train.params import build_task, load_params, read_config
from hpctool.train.samples import image_forms
from hpctool.train.schema import TrainConfig
from hpctool.world import Array


def deployed(rundir: RunDir, temperature: float = 1.0) -> Deployed:
    """What goes into service from a run, in eval mode. Raises InputError, CorruptError, NewerFormat."""
    model, _ = load_params(rundir)
    module = Deployed(build_task(read_config(rundir)).preprocess, model, temperature)
    module.eval()
    return module


def model_dtype(module: nn.Module) -> str:
    """The dtype of a module's first floating-point parameter: `float32` …"""
    found = (p.dtype for p in module.parameters() if p.is_floating_point())
    return str(next(found, "float32")).removeprefix("torch.")


@dataclass
class Source:
    """A completed training run, and a split of the dataset version it learnt from."""

    rundir: RunDir
    train: TrainConfig
    version: Version
    rows: npt.NDArray[np.int64]

    @classmethod
    def open(cls, cfg: ExportConfig) -> Source:
        """What the configuration names. Raises UnknownName, CorruptError."""
        rundir = RunDir(Path(cfg.paths.runs) / cfg.run)
        train = read_config(rundir)
        version = open_version(Path(cfg.paths.datasets), train.data.name)
        return cls(rundir, train, version, version.split_rows(cfg.data.split))

    @property
    def feature(self) -> str:
        """The column that the model sees."""
        assert self.train.data.feature is not None, "a training run has pinned its feature column"
        return self.train.data.feature

    @property
    def classes(self) -> list[str]:
        """The classes' names, in the order of the model's outputs."""
        named = self.version.columns[self.train.data.label].classes
        return list(named) if named is not None else [str(i) for i in range(self.train.data.num_classes or 0)]

    def inputs(self, rows: npt.NDArray[np.int64]) -> Array:
        """The inputs of these rows of the dataset, as stored or, where that is encoded, decoded: (n, *shape)."""
        with Reader(self.version, [self.feature], images=image_forms(self.version, self.train.data)) as reader:
            return reader.gather(rows)[self.feature]

    def batches(self, size: int) -> Iterator[tuple[Array, Array]]:
        """All rows of the split in order: inputs (n, *shape) and labels int64 (n,), at most `size` at a time."""
        label = self.train.data.label
        images = image_forms(self.version, self.train.data)
        with Reader(self.version, [self.feature, label], images=images) as reader:
            for start in range(0, len(self.rows), size):
                found = reader.gather(self.rows[start : start + size])
                yield found[self.feature], found[label]
