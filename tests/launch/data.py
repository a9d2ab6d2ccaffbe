"""Small datasets for plans and sweeps of `train`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpctool import config
from hpctool.data.prepare import prepare
from hpctool.data.schema import PrepareConfig
from hpctool.world import World


def make_datasets(root: Path) -> None:
    """The datasets `stripes` (3 classes) and `bars` (2): 60 images of 4×4 below `root`/datasets."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (60, 4, 4), np.uint8), rng.integers(0, 3, 60)
    for name, num_classes in (("stripes", 3), ("bars", 2)):
        np.savez(root / f"{name}.npz", image=images, label=labels % num_classes)
        told = [f"data.name={name}", f"paths.root={root}", "source=npz", f"source.path={root}/{name}.npz"]
        told += ["source.label=label", "data.splits={train: 0.5, val: 0.3, test: 0.2, production: 0}"]
        prepare(config.resolved(config.typed(config.compose("prepare", told).cfg, PrepareConfig)), World())
