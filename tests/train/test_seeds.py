from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from hpctool.errors import InputError
from hpctool.train.parallel import without_trace
from hpctool.train.seeds import seed_everything


def draws() -> list[Any]:
    # gauss() and normal() keep a second value back, which is part of the state.
    return [random.random(), random.gauss(0, 1), np.random.normal(), np.random.random(), torch.rand(3).tolist()]


def test_other_numbers_make_other_streams() -> None:
    found = []
    for entropy in ((0,), (0, 1), (0, 2), (1, 1), (0, 1, 5)):
        seed_everything(*entropy)
        found.append(str(draws()))
    seed_everything(0, 1)
    assert str(draws()) == found[1]
    assert len(set(found)) == 5


class Clamped(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.01, 0.01)
        return super().forward(x)


def test_a_pass_that_changes_a_parameter_is_refused_by_its_name() -> None:
    model = torch.nn.Sequential(Clamped(4, 4))
    with pytest.raises(InputError, match=r"changes its parameter '0\.weight' in its own forward pass"):
        with without_trace(model):
            model(torch.rand(8, 4)).sum().backward()


def test_a_block_without_trace_changes_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    seed_everything(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with without_trace(model):
        model(torch.rand(8, 4)).sum().backward()
        draws()
        assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    after = draws()
    seed_everything(3)
    assert after == draws()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
