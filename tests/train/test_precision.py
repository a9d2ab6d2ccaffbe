"""Number formats, as far as they can be seen without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hpctool.train.precision import Precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_a_state_is_taken_over_amid_a_step_whose_gradients_are_unscaled() -> None:
    precision = Precision("fp16", CPU)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], 0.1)
    before = precision.state()
    for _ in range(2):
        precision.backward(weight.sum())
        precision.unscale(optimizer)
        assert weight.grad is not None
        assert weight.grad.tolist() == [1.0, 1.0, 1.0]
        # As a rollback does, which leaves the step where it is.
        precision.adopt(before)
        weight.grad = None
    assert precision.state() == before


@pytest.mark.parametrize(("kind", "rounds"), [("float32", False), ("tf32", True), ("bf16", False)])
def test_gpus_round_single_precision_only_where_that_was_chosen(kind: str, rounds: bool) -> None:
    Precision(kind, CPU)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (rounds, rounds)
    assert (torch.get_float32_matmul_precision() == "highest") is not rounds
