from __future__ import annotations

import pytest

from hpctool.train.schedule import lr_factor, num_steps
from hpctool.train.schema import Loop, Schedule


def loop(**values: int | None) -> Loop:
    return Loop(**{"max_steps": None, "max_epochs": None, "global_batch_size": 10, **values})  # type: ignore[arg-type]


def test_epochs_are_rounded_up_to_whole_batches() -> None:
    assert num_steps(loop(max_epochs=3), 100) == 30
    assert num_steps(loop(max_epochs=3), 101) == 31
    assert num_steps(loop(max_epochs=1), 3) == 1
    assert num_steps(loop(max_steps=7), 100) == 7


def test_the_rate_climbs_to_the_full_one_and_ends_at_its_fraction() -> None:
    schedule = Schedule("cosine", 0.1, 0.01)
    rates = [lr_factor(schedule, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.505)
    assert lr_factor(schedule, 100, 100) == pytest.approx(0.01)


def test_constant_stays_after_its_warm_up() -> None:
    schedule = Schedule("constant", 0.5, 0.0)
    assert [lr_factor(schedule, step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_the_shortest_runs_have_rates_too(kind: str, warmup: float, max_steps: int) -> None:
    rates = [lr_factor(Schedule(kind, warmup, 0.0), step, max_steps) for step in range(max_steps)]
    assert all(0 < rate <= 1 for rate in rates)
