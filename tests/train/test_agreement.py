"""What ranks agree on, and that they notice when they are no longer alike: alone, and three that are real."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hpctool.checkpoint.snapshot import take
from hpctool.train.agreement import Agreement, Check, Position, Wishes, _sum_on_device, bits_of, combined
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


class Listener(World):
    """Hears what its one rank says to the others."""

    def gather(self, value: Any) -> list[Any]:
        self.said = value
        return [value]


@pytest.mark.parametrize("part", [None, 0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_a_save_says_the_same_whichever_tensors_it_has_copied_and_whatever_the_next_step_does(
    dtype: torch.dtype, part: int | None
) -> None:
    # Copies lie behind each other, so words of 64 bits begin anywhere; t7 and t8 are of many blocks.
    sizes = [*(3 * n + 1 for n in range(7)), 20_001, 40_003]
    tensors = {f"t{n}": torch.arange(s).sub(7 if dtype != torch.uint8 else 0).to(dtype) for n, s in enumerate(sizes)}
    before, worlds = combined(bits_of(tensors.items(), part)), [Listener(), Listener()]
    checks = []
    for rank in range(2):
        check = Check(Position(3), "model", dict(tensors), {}, part)
        check.copied(take({"model": tensors, "other": torch.ones(5)}, None, rank, 2))
        checks.append(check)
    for tensor in tensors.values():
        tensor.add_(1)
    for check, world in zip(checks, worlds, strict=True):
        check.compare(world)
    assert [world.said.params for world in worlds] == [before, before]


def test_eight_saves_look_at_every_bit_and_each_of_them_at_an_eighth() -> None:
    large, small = torch.arange(5001, dtype=torch.int64), torch.arange(4000, dtype=torch.int64)
    whole = [bits_of([("large", large), ("small", small)], part) for part in range(8)]
    assert [one["large"] for one in whole] == [int(large[5001 * n // 8 : 5001 * (n + 1) // 8].sum()) for n in range(8)]
    assert {one["small"] for one in whole} == {int(small.sum())}
    for place in (0, 624, 625, 1249, 1250, 4375, 4376, 5000):
        changed = large.clone()
        changed[place] += 1
        found = [bits_of([("large", changed)], part)["large"] != whole[part]["large"] for part in range(8)]
        assert sum(found) == 1


def test_a_device_sums_up_what_the_host_does() -> None:
    # No GPU runs here: the way that is for one takes tensors of the CPU as well.
    for tensor in (torch.randn(10_001), torch.arange(7).to(torch.uint8), torch.randn(3, 5).to(torch.bfloat16).T):
        for part in (None, 0, 7):
            assert {"t": int(_sum_on_device(tensor, part))} == bits_of([("t", tensor)], part)


def test_a_save_looks_at_all_of_them_where_a_whole_comparison_is_due() -> None:
    agreement, parts = Agreement(World(), torch.nn.Linear(1, 1), 6), []
    agreement._group = object()  # type: ignore[assignment]  # never asked
    for step in (4, 6, 8, 10, 12, 14, 16):
        check = agreement.check(Position(step))
        assert check is not None
        parts.append(check._part)
    assert parts == [0, None, 2, 3, None, 5, 6]


@pytest.mark.slow
def test_a_rank_whose_parameters_are_others_is_named_before_anything_is_saved(
    make_run: MakeRun, attempt: Attempt
) -> None:
    loop = "loop={max_steps: 12, global_batch_size: 24, checkpoint_every_steps: 4}"
    base = (loop, "task._target_=usersown.Faulty", "parallel.compare_every_steps=2")
    straight, run = make_run(*base, "name=straight"), make_run(*base, "name=nudged")
    assert attempt(straight, 3) == [0, 0, 0]
    # Two discarded passes, then one for each step: pass 9 is step 7, which the save of step 8 compares; of the attempt
    # that begins with step 5, pass 3 is that one, and step 6 is compared without a save.
    for number, at in ((1, 9), (2, 3)):
        assert attempt(run, 3, FAULT=f"nudge 1 {at}") == [1, 1, 1]
        errors = [json.loads(run.error(rank, number).read_text()) for rank in range(3)]
        assert {error["type"] for error in errors} == {"DesyncError"}
        assert "layers.7.bias, rank 1 against ranks 0, 2" in errors[0]["message"]
        assert "newest checkpoint from before it stays" in errors[0]["message"]
        assert [body["step"] for body in run.story().checkpoints] == [4]
    assert attempt(run, 3) == [0, 0, 0]
    results = [one.result() or {} for one in (straight, run)]
    assert results[0]["param_digest"] == results[1]["param_digest"]
