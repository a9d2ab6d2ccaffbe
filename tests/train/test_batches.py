"""Batches made ready ahead are those that are asked for, whoever makes them ready."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpctool.data.version import open_version
from hpctool.train.augment import RandomShift
from hpctool.train.batches import Batches
from hpctool.train.samples import Samples
from hpctool.train.schema import Data


@pytest.fixture
def samples(root: Path) -> Samples:
    data = Data("", None, "image", "label", "train", "val", 0, False, 3, [1, 4, 4])
    return Samples(open_version(root / "datasets", "stripes"), data, "train", 0, RandomShift(1))


def names(count: int, accumulate: int = 2) -> list[tuple[int, int]]:
    """Passes of the first steps with 24 samples each."""
    return [(24 * step, number) for step in range(count) for number in range(accumulate)]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_depends_on_its_name_alone(samples: Samples, num_workers: int) -> None:
    batches = Batches(samples, 24, 2, rank=1, size=3, num_workers=num_workers)
    expected = {name: samples.stream(first := name[0] + 8 + name[1] * 4, first + 4) for name in names(40)}
    # As a run does that resumes, and one that goes back and passes over samples.
    for order in (names(40), names(40)[13:], names(20)[10:12] + names(30)[48:]):
        for name in order:
            found = batches.get(*name)
            assert all(torch.equal(found[role], values) for role, values in expected[name].items())
            assert all(values.data_ptr() % 64 == 0 for values in found.values())
    batches.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_random_stream_is_touched(samples: Samples, num_workers: int) -> None:
    before = torch.get_rng_state()
    batches = Batches(samples, 24, num_workers=num_workers)
    batches.get(0, 0)
    batches.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_wait_is_a_fraction_of_the_time_since_it_was_asked_for(samples: Samples) -> None:
    batches = Batches(samples, 24)
    batches.get(0, 0)
    assert 0 < batches.data_wait() <= 1
    assert batches.data_wait() == 0
