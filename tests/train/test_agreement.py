"""What ranks agree on, and that they notice when they are no longer alike: alone, and three that are real."""

from __future__ import annotations

import json

import pytest
import torch

from hpctool.train.agreement import Agreement, Position, Wishes, bits_of, combined
from hpctool.world import World
from tests.train.conftest import Attempt, MakeRun


def test_wishes_are_answered_one_boundary_later() -> None:
    agreement = Agreement(World(), torch.nn.Linear(1, 1), 1)
    answers = [agreement.exchange(w, Position()) for w in (Wishes(stop=True), Wishes(save=True), Wishes(), Wishes())]
    assert answers == [Wishes(), Wishes(stop=True), Wishes(save=True), Wishes()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_any_bit_of_a_tensor_counts(dtype: torch.dtype) -> None:
    # Of 3 × 7 elements of one to eight bytes, not all fill whole words.
    tensor = torch.arange(21).reshape(3, 7).to(dtype)
    before = bits_of([("t", tensor)])
    for place in ((0, 0), (1, 3), (2, 6)):
        changed = tensor.clone()
        changed.view(torch.uint8)[place] ^= 1
        assert bits_of([("t", changed)]) != before
    assert bits_of([("t", tensor.T.contiguous().T)]) == before, "strides do not count"


def test_the_order_of_tensors_counts() -> None:
    assert combined({"a": 1, "b": 2}) != combined({"a": 2, "b": 1})


@pytest.mark.slow
def test_a_rank_whose_parameters_are_others_is_named_before_anything_is_saved(
    make_run: MakeRun, attempt: Attempt
) -> None:
    loop = "loop={max_steps: 12, global_batch_size: 24, checkpoint_every_steps: 4}"
    base = (loop, "task._target_=usersown.Faulty", "parallel.compare_every_steps=2")
    straight, run = make_run(*base, "name=straight"), make_run(*base, "name=nudged")
    assert attempt(straight, 3) == [0, 0, 0]
    # Two discarded passes, then one for each step: pass 9 is step 7, which is compared with step 8, before its save.
    assert attempt(run, 3, FAULT="nudge 1 9") == [1, 1, 1]
    errors = [json.loads(run.error(rank, 1).read_text()) for rank in range(3)]
    assert {error["type"] for error in errors} == {"DesyncError"}
    assert "layers.7.bias, rank 1 against ranks 0, 2" in errors[0]["message"]
    assert "newest checkpoint from before it stays" in errors[0]["message"]
    assert [body["step"] for body in run.story().checkpoints] == [4]
    assert attempt(run, 3) == [0, 0, 0]
    results = [one.result() or {} for one in (straight, run)]
    assert results[0]["param_digest"] == results[1]["param_digest"]
