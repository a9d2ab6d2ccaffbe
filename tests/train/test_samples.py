"""The endless stream of samples: everybody once per epoch, whoever asks, however it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpctool.data.version import Version, open_version
from hpctool.train.augment import RandomShift
from hpctool.train.samples import Samples
from hpctool.train.schema import Data


@pytest.fixture
def version(root: Path) -> Version:
    return open_version(root / "datasets", "stripes")


def samples(version: Version, split: str = "train", *, window: int = 0, **options: Any) -> Samples:
    data = Data("", None, "image", "label", "train", "val", window, False, 3, [1, 4, 4])
    return Samples(version, data, split, **options)


@pytest.mark.parametrize("window", [0, 16])
def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(version: Version, window: int) -> None:
    stream = samples(version, window=window)
    n = len(stream)
    first, second = stream.stream(0, n)["row"].tolist(), stream.stream(n, 2 * n)["row"].tolist()
    assert sorted(first) == sorted(second) == version.split_rows("train").tolist()
    assert first != second != sorted(second)


def test_the_stream_is_the_same_however_it_is_cut(version: Version) -> None:
    whole = samples(version).stream(0, 400)
    parts = [samples(version).stream(start, min(start + 7, 400)) for start in range(0, 400, 7)]
    backwards = samples(version)
    again = [backwards.stream(start, start + 40) for start in range(360, -1, -40)][::-1]
    for name, expected in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), expected)
        assert torch.equal(torch.cat([part[name] for part in again]), expected)


def test_a_batch_may_hold_the_end_of_one_epoch_and_the_beginning_of_another(version: Version) -> None:
    stream = samples(version)
    n = len(stream)
    rows = stream.stream(n - 5, 2 * n + 5)["row"].tolist()
    assert rows[:5] == stream.stream(n - 5, n)["row"].tolist()
    assert sorted(rows[5:-5]) == version.split_rows("train").tolist()
    assert rows[-5:] == stream.stream(2 * n, 2 * n + 5)["row"].tolist()


def test_a_batch_is_the_columns_of_its_rows(version: Version) -> None:
    batch = samples(version).stream(5, 25)
    rows = batch["row"].numpy()
    np.testing.assert_array_equal(batch["x"].numpy(), version.read("image", rows))
    np.testing.assert_array_equal(batch["y"].numpy(), version.read("label", rows))
    assert batch["x"].dtype == torch.uint8
    assert batch["x"].shape == (20, 4, 4, 1)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_shares_are_every_row_once_over_the_ranks(version: Version, size: int) -> None:
    val = samples(version, "val")
    rows = [row for rank in range(size) for batch in val.share(rank, size, 8) for row in batch["row"].tolist()]
    assert sorted(rows) == version.split_rows("val").tolist()


def test_augmentation_depends_on_seed_epoch_and_uid_alone(version: Version) -> None:
    shift = RandomShift(2)
    augmented, plain = samples(version, augment=shift), samples(version)
    n = len(plain)
    assert not torch.equal(augmented.stream(0, n)["x"], plain.stream(0, n)["x"])
    one_by_one = torch.cat([samples(version, augment=shift).stream(p, p + 1)["x"] for p in range(20)])
    assert torch.equal(one_by_one, augmented.stream(0, 20)["x"])
    epochs = [by_row(augmented.stream(epoch * n, (epoch + 1) * n)) for epoch in (0, 1)]
    assert any(not torch.equal(epochs[0][row], epochs[1][row]) for row in epochs[0])


def by_row(batch: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    return dict(zip(batch["row"].tolist(), batch["x"], strict=True))
