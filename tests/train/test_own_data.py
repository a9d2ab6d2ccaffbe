"""A Dataset of the user's own as data: what its samples may be, and which random streams they leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from hpctool.errors import InputError
from hpctool.train.batches import Batches
from hpctool.train.own_data import OwnSamples


class Numbered(Dataset[Any]):
    """Ten samples of a kind."""

    def __init__(self, split: str, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        x = torch.rand(3)
        kinds = {
            "pair": (x, index),
            "texts": {"x": x, "y": index, "name": f"{index}.png"},
            "triple": (x, index, index),
            "nested": {"x": x, "boxes": {"corner": x}},
        }
        return kinds[self.kind]


def samples(kind: str) -> OwnSamples:
    return OwnSamples({"_target_": f"{__name__}.Numbered", "kind": kind}, "train", 0)


@pytest.mark.parametrize("kind", ["pair", "texts"])
def test_texts_are_left_out_of_a_batch(kind: str) -> None:
    batch = Batches(samples(kind), 4).get(0, 0)
    assert {role: tuple(values.shape) for role, values in batch.items()} == {"x": (4, 3), "y": (4,), "row": (4,)}
    assert torch.equal(batch["y"], batch["row"])


@pytest.mark.parametrize(("kind", "why"), [("triple", "'x' becomes a list"), ("nested", "'boxes' becomes a dict")])
def test_samples_that_make_no_tensors_are_refused(kind: str, why: str) -> None:
    with pytest.raises(InputError, match=rf"Numbered do not make a batch \({why}\)\. Give a dict of tensors.*pair"):
        Batches(samples(kind), 4).get(0, 0)


def test_samples_draw_from_streams_of_their_own_and_start_none_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a GPU, what would be started there can be seen where torch hands it on.
    started: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", started.append)
    before = torch.get_rng_state()
    first, again = (samples("pair").gather([(0, 4)])["x"] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not started
