from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from hpctool.errors import InputError
from hpctool.train.fingerprint import differences
from hpctool.train.meter import Meter, Progress
from hpctool.world import FakeWorld, World


def test_sums_add_up_over_batches_and_ranks() -> None:
    meter = Meter({"loss": 1.5})
    meter.add({"loss": torch.tensor(2.0), "rows": torch.tensor(4)})
    meter.add({"loss": torch.tensor(0.25), "rows": torch.tensor(3)})
    assert meter.total(World()) == {"loss": 3.75, "rows": 7.0}
    assert meter.total(FakeWorld(size=3)) == {"loss": 11.25, "rows": 21.0}


def test_plain_numbers_are_sums_too() -> None:
    meter = Meter()
    for seen in (3, np.int64(4), torch.tensor([5]), np.float32(0.5)):
        meter.add({"seen": seen, "error": 1e-9})  # type: ignore[dict-item]  # what a task may give all the same
    assert meter.total(World()) == {"seen": 12.5, "error": pytest.approx(4e-9, rel=1e-12)}


@pytest.mark.parametrize(
    ("value", "found"), [(torch.ones(3), r"tensor of shape \[3\]"), ("many", "str"), (None, "NoneType")]
)
def test_what_is_no_single_number_is_named(value: Any, found: str) -> None:
    with pytest.raises(InputError, match=rf"sum 'hits' is a {found}, not one number"):
        Meter().add({"hits": value})


def test_a_person_is_told_now_and_then_and_at_the_end() -> None:
    said: list[str] = []
    progress = Progress(4, said.append, every_s=0.05)
    progress.begin()
    for step in range(1, 5):
        progress.count(10)
        if step == 2:
            time.sleep(0.06)
        progress.speak(step, {"train/loss": 0.5, "val/accuracy": 0.75, "val/loss": 9.0})
    assert [line.split(" · ")[0] for line in said] == ["step 2/4", "step 4/4"]
    assert said[-1].split(" · ")[1:3] == ["train/loss 0.5000", "val/accuracy 0.7500"]
    assert said[-1].endswith("eta 0 s")
    assert progress.samples_per_s == pytest.approx(40 / 0.06, rel=0.5)


def test_only_what_has_changed_is_named() -> None:
    before = {"torch": "2.13.0", "world_size": 3, "device": "cpu"}
    assert differences(before, dict(before)) == []
    said = differences(before, {**before, "world_size": 4, "machine": "x86_64"})
    assert said == ["world_size was 3 and is 4", "machine was None and is x86_64"]
