from __future__ import annotations

from typing import Any

import pytest
import torch

from hpctool.errors import ConfigError
from hpctool.train.rate import LearningRate
from hpctool.train.schedule import KINDS, lr_factor, num_steps
from hpctool.train.schema import Loop, Schedule


def loop(**values: int | None) -> Loop:
    return Loop(**{"max_steps": None, "max_epochs": None, "global_batch_size": 10, **values})  # type: ignore[arg-type]


def schedule(kind: str, warmup_fraction: float = 0.0, final_factor: float = 0.0, **values: Any) -> Schedule:
    defaults = {"warmup_steps": None, "step_at": [0.5, 0.75], "step_factor": 0.1, "decay_fraction": 0.2}
    return Schedule(kind, warmup_fraction, final_factor=final_factor, **{**defaults, **values})


def rates(chosen: Schedule, max_steps: int = 100) -> list[float]:
    return [lr_factor(chosen, step, max_steps) for step in range(max_steps)]


def test_epochs_are_rounded_up_to_whole_batches() -> None:
    assert num_steps(loop(max_epochs=3), 100) == 30
    assert num_steps(loop(max_epochs=3), 101) == 31
    assert num_steps(loop(max_epochs=1), 3) == 1
    assert num_steps(loop(max_steps=7), 100) == 7


def test_the_rate_climbs_to_the_full_one_and_ends_at_its_fraction() -> None:
    cosine = schedule("cosine", 0.1, 0.01)
    found = rates(cosine)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(found) == found[10] == 1.0
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[55] == pytest.approx(0.505)
    assert lr_factor(cosine, 100, 100) == pytest.approx(0.01)


def test_constant_stays_after_its_warm_up() -> None:
    assert rates(schedule("constant", 0.5), 4) == [0.5, 1.0, 1.0, 1.0]
    assert rates(schedule("constant", 0.5, warmup_steps=3), 4) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_linear_goes_down_in_a_straight_line() -> None:
    assert rates(schedule("linear", final_factor=0.5), 4) == pytest.approx([1.0, 0.875, 0.75, 0.625])


def test_step_multiplies_at_fractions_of_the_budget() -> None:
    assert rates(schedule("step"), 8) == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)


def test_wsd_is_stable_between_warm_up_and_decay() -> None:
    found = rates(schedule("wsd", 0.1, decay_fraction=0.2), 20)
    assert found == pytest.approx([0.5, 1.0] + [1.0] * 14 + [1.0, 0.75, 0.5, 0.25])


def test_inverse_sqrt_begins_where_its_warm_up_ends() -> None:
    found = rates(schedule("inverse_sqrt", warmup_steps=4), 16)
    assert found[3] == found[4 - 1] == 1.0
    assert found[15] == pytest.approx(0.5)


@pytest.mark.slow
def test_a_plateau_follows_the_metric_itself_or_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    target = "torch.optim.lr_scheduler.ReduceLROnPlateau"
    with pytest.raises(ConfigError, match=r"schedule\.own\.mode.*it is min.*is max\. Write mode: max"):
        LearningRate(schedule("own", own={"_target_": target}), optimizer, 100, "max")
    for mode, sign in (("max", 1), ("min", -1)):
        optimizer.param_groups[0]["lr"] = 1.0
        own = {"_target_": target, "mode": mode, "patience": 1}
        rate = LearningRate(schedule("own", own=own), optimizer, 100, mode)
        for _ in range(4):
            rate.validated(sign * 0.9)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1), f"a metric of 0.9 gets no better ({mode})"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own"])
@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_the_shortest_runs_have_rates_too(kind: str, warmup: float, max_steps: int) -> None:
    assert all(0 < rate <= 1 for rate in rates(schedule(kind, warmup), max_steps))
