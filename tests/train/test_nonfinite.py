"""Gradients that are not finite: skipped or rolled back from, alike on all ranks and to the bit over kills."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpctool.errors import ConfigError
from hpctool.rundir import RunDir
from hpctool.track.metrics import read_metrics
from tests.train.conftest import Attempt, MakeRun

pytestmark = pytest.mark.slow

BASE = (
    *("model=tangled", "task._target_=usersown.Faulty", "track.every_steps=1"),
    "loop={max_steps: 16, global_batch_size: 24, checkpoint_every_steps: 4, eval_every_steps: 5, ema: 0.9}",
)


@pytest.fixture
def rows(make_run: MakeRun, attempt: Attempt, tmp_path: Any) -> list[list[int]]:
    """Which rows the batches of the steps have."""
    folder = tmp_path / "seen"
    folder.mkdir()
    run = make_run(*BASE, "name=seen")
    assert attempt(run, 1, SEEN=str(folder)) == [0]
    return [[int(row) for row in line.split()] for line in (folder / "0").read_text().splitlines()]


def poison(rows: list[list[int]], *steps: int) -> str:
    """What spoils these steps and no others: of three ranks, the second one's part of their batch."""
    return " ".join("+".join(map(str, rows[step - 1][8:12])) for step in steps)


def digest(rundir: RunDir) -> str:
    found = rundir.result()
    assert found is not None
    return str(found["param_digest"])


def test_a_skipped_step_changes_nothing_and_a_kill_after_it_changes_nothing_either(
    make_run: MakeRun, attempt: Attempt, rows: list[list[int]]
) -> None:
    # They are on one rank only, and all leave the update out.
    spoilt = poison(rows, 6, 11)
    skip = (*BASE, "loop.on_nonfinite=skip")
    straight, killed = make_run(*skip, "name=straight"), make_run(*skip, "name=killed")
    assert attempt(straight, 3, POISON=spoilt) == [0, 0, 0]
    assert -9 in attempt(killed, 3, POISON=spoilt, FAULT="kill 1 10")
    assert attempt(killed, 3, POISON=spoilt) == [0, 0, 0]
    assert digest(straight) == digest(killed)
    curve = dict(read_metrics(killed)["train/skipped"])
    assert (curve.get(5), curve[6], curve[10], curve[11], curve[16]) == (None, 1, 1, 2, 2)
    assert all(value == value for _, value in read_metrics(killed)["val/loss"]), "batch norm saw nothing of it"


def test_too_many_skips_in_a_row_stop_the_run(make_run: MakeRun, attempt: Attempt, rows: list[list[int]]) -> None:
    run = make_run(*BASE, "loop.on_nonfinite=skip", "loop.max_nonfinite=2")
    assert attempt(run, 3, POISON=poison(rows, 6, 7, 8)) == [1, 1, 1]
    assert "Step 8: the gradient is not finite" in run.story().cause
    assert "loop.max_nonfinite=2 allows no more in a row" in run.story().cause


def test_a_rollback_passes_over_what_lies_between_and_is_exact_over_kills(
    make_run: MakeRun, attempt: Attempt, rows: list[list[int]]
) -> None:
    spoilt = poison(rows, 10)
    back = (*BASE, "loop.on_nonfinite=rollback")
    straight, killed = make_run(*back, "name=straight"), make_run(*back, "name=killed")
    assert attempt(straight, 3, POISON=spoilt) == [0, 0, 0]
    [fact] = straight.story().of_kind("rollback")
    assert (fact["step"], fact["to_step"], fact["consumed"]) == (10, 8, 9 * 24)
    # A stop saves step 9, to which the straight run could not go back; then a kill right behind the rollback.
    assert attempt(killed, 3, POISON=spoilt, FAULT="stop 2 10") == [75, 75, 75]
    assert killed.story().checkpoints[-1]["step"] == 9
    assert -9 in attempt(killed, 3, POISON=spoilt, FAULT="kill 0 6")
    assert [body["to_step"] for body in killed.story().of_kind("rollback")] == [8]
    assert attempt(killed, 3, POISON=spoilt) == [0, 0, 0]
    assert digest(straight) == digest(killed)
    state = killed.path / killed.story().checkpoints[-1]["path"] / "state.json"
    assert json.loads(state.read_text())["structure"], "the newest checkpoint is there"
    assert [step for step, _ in read_metrics(straight)["train/loss"]] == list(range(1, 17))


def test_rollbacks_have_a_limit(make_run: MakeRun, attempt: Attempt, rows: list[list[int]]) -> None:
    run = make_run(*BASE, "loop.on_nonfinite=rollback", "loop.max_nonfinite=1")
    assert attempt(run, 3, POISON=poison(rows, 10, 13)) == [1, 1, 1]
    assert "loop.max_nonfinite=1 rollbacks did not help" in run.story().cause


def test_with_several_optimizers_a_spoilt_part_is_a_spoilt_step(
    make_run: MakeRun, attempt: Attempt, rows: list[list[int]]
) -> None:
    parts = (*BASE, "optim=parts", "task._target_=usersown.FaultyByPart")
    # The other parts are sound in each step.
    skip = make_run(*parts, "loop.on_nonfinite=skip", "loop.max_nonfinite=1", "name=skip")
    assert attempt(skip, 3, POISON=poison(rows, 4, 8, 9)) == [1, 1, 1]
    assert "Step 9: the gradient is not finite" in skip.story().cause
    assert dict(read_metrics(skip)["train/skipped"])[8] == 2
    back = (*parts, "loop.on_nonfinite=rollback")
    straight, killed = make_run(*back, "name=straight"), make_run(*back, "name=killed")
    spoilt = poison(rows, 10)
    assert attempt(straight, 3, POISON=spoilt) == [0, 0, 0]
    assert [fact["to_step"] for fact in straight.story().of_kind("rollback")] == [8]
    assert -9 in attempt(killed, 3, POISON=spoilt, KILL="1 12")
    assert attempt(killed, 3, POISON=spoilt) == [0, 0, 0]
    assert digest(straight) == digest(killed)


def test_a_rollback_needs_checkpoints_by_steps(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"Set loop\.checkpoint_every_steps"):
        make_run("loop.on_nonfinite=rollback")
