"""The two examples open the whole step by `task`; killed, they end with the same bits."""

from __future__ import annotations

import pytest

from tests.train.conftest import EXAMPLES, Attempt, MakeRun
from tests.train.test_resume import curves, result

pytestmark = pytest.mark.slow

LOOP = "loop={max_steps: 9, global_batch_size: 12, checkpoint_every_steps: 3, eval_every_steps: 4, ema: 0.9}"


def test_two_networks_with_an_optimizer_each_resume_to_the_bit(make_run: MakeRun, attempt: Attempt) -> None:
    chosen = ["experiment=gan", "model.num_pixels=16", LOOP, "loop.accumulate=2", "loop.grad_clip=1.0"]
    straight, killed = (make_run(*chosen, f"name={name}", project=EXAMPLES / "gan") for name in ("straight", "killed"))
    assert attempt(straight, 3) == [0, 0, 0]
    assert -9 in attempt(killed, 3, KILL="1 7")
    assert attempt(killed, 3) == [0, 0, 0]
    assert result(killed)["param_digest"] == result(straight)["param_digest"]
    assert curves(killed) == curves(straight)
    assert {"train/loss_generator", "train/lr/discriminator", "train/grad_norm/generator"} < set(curves(straight))


def test_a_language_model_over_a_dataset_of_ones_own_resumes_to_the_bit_with_other_workers(
    make_run: MakeRun, attempt: Attempt
) -> None:
    chosen = ["experiment=language", "model.width=16", LOOP, "parallel=fsdp", "loop.eval_batch_size=64"]
    project = EXAMPLES / "language"
    straight = make_run(*chosen, "name=straight", project=project)
    killed = make_run(*chosen, "name=killed", "loop.num_workers=1", project=project)
    assert attempt(straight, 3) == [0, 0, 0]
    assert -9 in attempt(killed, 3, KILL="2 7")
    assert attempt(killed, 3) == [0, 0, 0]
    assert result(killed)["param_digest"] == result(straight)["param_digest"]
    assert curves(killed) == curves(straight)
