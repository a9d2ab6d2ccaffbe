"""Small datasets, made as users make them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool import config
from hpctool.data.prepare import Prepared, prepare, resolve
from hpctool.data.schema import PrepareConfig
from hpctool.data.version import Version, open_version
from hpctool.world import World


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    return tmp_path / "datasets"


@pytest.fixture
def prepare_with(tmp_path: Path) -> Callable[..., Prepared]:
    """`hpctool prepare key=value …` in this process."""
    return lambda *overrides: run_prepare(tmp_path, *overrides)


@pytest.fixture
def prepare_arrays(tmp_path: Path) -> Callable[..., Prepared]:
    """Prepare arrays as dataset `tiny`; without any, 40 images of 4 × 4 with the classes 0 to 3."""
    return lambda *overrides, **arrays: run_prepare_arrays(tmp_path, *overrides, **arrays)


@pytest.fixture
def bring(prepare_with: Callable[..., Prepared], datasets: Path) -> Callable[..., Version]:
    """Prepare a source as dataset `rows` and open it."""

    def go(*overrides: str) -> Version:
        prepare_with("data.name=rows", *overrides)
        return open_version(datasets, "rows")

    return go


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    run_prepare_arrays(root)
    return root / "datasets"


@pytest.fixture
def tiny(datasets: Path, tiny_original: Path) -> Version:
    """40 images of 4 × 4 with four classes, in three row groups, in a store that may be harmed."""
    shutil.copytree(tiny_original, datasets)
    return open_version(datasets, "tiny")


def run_prepare(root: Path, *overrides: str) -> Prepared:
    composed = config.compose("prepare", [f"paths.root={root}", *overrides])
    cfg = config.typed(composed.cfg, PrepareConfig)
    resolve(cfg)
    return prepare(config.resolved(cfg), World())


def run_prepare_arrays(root: Path, *overrides: str, **arrays: Any) -> Prepared:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8)
    path = root / "tiny.npz"
    np.savez(path, **(arrays or {"image": images, "label": np.arange(40) % 4}))
    usual = ["data.name=tiny", "data.row_group_rows=16", "source=npz", f"source.path={path}"]
    return run_prepare(root, *usual, *overrides)
