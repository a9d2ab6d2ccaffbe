"""How well a window mixes is known before the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.data.order import Order
from hpctool.data.prepare import Prepared
from hpctool.data.shuffle import shuffle_quality
from hpctool.data.version import Version, open_version

NUM_ROWS = 8192


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 8, NUM_ROWS)


@pytest.fixture
def version(prepare_arrays: Callable[..., Prepared], datasets: Path, labels: np.ndarray) -> Version:
    prepare_arrays("data.row_group_rows=4096", x=np.zeros((NUM_ROWS, 1), np.uint8), label=labels)
    return open_version(datasets, "tiny")


@pytest.fixture
def by_class(version: Version) -> np.ndarray:
    """A split whose rows stand by class, as what was appended in one piece does."""
    return np.argsort(version.read("label"), kind="stable")


@pytest.mark.slow
def test_permuted_rows_are_as_good_within_a_window(version: Version) -> None:
    found = shuffle_quality(version, np.arange(NUM_ROWS), "label", Order(NUM_ROWS, 0, 1024), 64)
    assert found is not None
    assert found.is_good
    # Of 64 labels in 8 classes: the mean deviation of a binomial count, 8 times, halved.
    assert found.ideal == pytest.approx(4 * np.sqrt(2 / np.pi * 1 / 8 * 7 / 8 / 64), rel=0.1)
    assert "as good as a full shuffle" in str(found)


@pytest.mark.slow
def test_many_small_blocks_mix_better_than_few_and_one_class_at_a_time_is_seen(
    version: Version, by_class: np.ndarray
) -> None:
    wide, narrow = (
        shuffle_quality(version, by_class, "label", Order(NUM_ROWS, 0, window), 64) for window in (4096, 64)
    )
    one_long_run = shuffle_quality(version, by_class, "label", _Sequential(NUM_ROWS, 0, 64), 64)
    assert wide is not None
    assert narrow is not None
    assert one_long_run is not None
    assert narrow.found < 1.5 * narrow.ideal
    assert wide.is_good
    assert one_long_run.found == pytest.approx(7 / 8, abs=0.05)
    assert not one_long_run.is_good
    assert "raise data.window" in str(one_long_run)


@pytest.mark.slow
def test_without_classes_there_is_no_number(prepare_arrays: Callable[..., Prepared], datasets: Path) -> None:
    prepare_arrays("source.label=null", image=np.zeros((40, 4), np.uint8))
    version = open_version(datasets, "tiny")
    assert shuffle_quality(version, np.arange(40), "label", Order(40, 0, 8), 8) is None


class _Sequential(Order):
    """What reading shard after shard amounts to."""

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop)
