"""A run that goes on where another was, and one whose config is no longer that of its checkpoint."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

from hpctool.checkpoint import load, param_digest
from hpctool.errors import ConfigError, InputError, UnknownName
from hpctool.launch import continued, task
from hpctool.place import Place
from hpctool.rundir import RunDir
from hpctool.track.metrics import read_metrics
from tests.train.conftest import Attempt, MakeRun
from tests.train.test_loop import TrainHere

CONSTANT = (
    *("task._target_=usersown.Faulty", "schedule={kind: constant, warmup_fraction: 0}", "model.dropout=0.1"),
    "loop={max_steps: 8, global_batch_size: 24, checkpoint_every_steps: 4, eval_every_steps: 4}",
)


def digest(rundir: RunDir) -> str:
    return str((rundir.result() or {})["param_digest"])


@pytest.mark.parametrize(
    ("theirs", "typed", "expected"),
    [
        (["a=1", "b=2"], ["b=3"], ["a=1", "b=3"]),
        (["model=cnn", "model.width=3", "+model.x=1"], ["model=mlp"], ["model=mlp"]),
        (["loop={max_steps: 8}"], ["loop.grad_clip=1"], ["loop={max_steps: 8}", "loop.grad_clip=1"]),
        (["loop={ema: 0.9}"], ["loop={grad_clip: 1}"], ["loop={ema: 0.9}", "loop={grad_clip: 1}"]),
        (["loop.max_epochs=3"], ["loop.max_steps=9"], ["loop.max_steps=9"]),
        (
            ["loop={max_epochs: 3}"],
            ["loop.max_steps=9"],
            ["loop={max_epochs: 3}", "loop.max_steps=9", "loop.max_epochs=null"],
        ),
        (["continue_from=x@1", "cluster=slurm", "paths.runs=r", "seed=1"], ["continue_from=y"], None),
    ],
)
def test_what_was_typed_for_the_parent_holds_unless_it_is_typed_anew(
    theirs: list[str], typed: list[str], expected: list[str] | None
) -> None:
    assert continued.merged(theirs, typed) == (expected or ["seed=1", "continue_from=y"])


@pytest.mark.slow
def test_a_run_that_goes_on_beyond_its_budget_is_the_longer_run_to_the_bit(make_run: MakeRun, attempt: Attempt) -> None:
    longer, first = make_run(*CONSTANT, "loop.max_steps=16", "name=longer"), make_run(*CONSTANT)
    assert attempt(longer, 3) == [0, 0, 0]
    assert attempt(first, 3) == [0, 0, 0]
    second = make_run(f"continue_from={first.id[:-3]}", "loop.max_steps=16")
    assert second.id != first.id
    record = second.record()
    assert record["continues"] == {"run": first.id, "step": 8, "changed": {"loop.max_steps": [8, 16]}}
    assert {one["kind"]: one["name"] for one in record["inputs"]}["run"] == first.id
    # Killed in its fourth step; its parent is gone by then, and it needs it no more.
    assert -9 in attempt(second, 3, FAULT="kill 1 5")
    assert [body["step"] for body in second.story().checkpoints] == [8]
    shutil.rmtree(first.path)
    assert attempt(second, 3) == [0, 0, 0]
    assert digest(second) == digest(longer)
    assert [step for step, _ in read_metrics(second)["val/accuracy"]] == [12, 16]


@pytest.mark.slow
def test_a_fork_has_its_own_settings_and_says_which(make_run: MakeRun, train_here: TrainHere) -> None:
    parent = make_run(*CONSTANT)
    train_here(parent)
    fork = make_run(f"continue_from={parent.id}@4", "optim.weight_decay=0.5", "optim.lr=1e-4", "loop.ema=0.9")
    changed = fork.record()["continues"]["changed"]
    assert set(changed) == {"optim.weight_decay", "optim.lr", "loop.ema"}
    assert changed["optim.weight_decay"][1] == 0.5
    result = train_here(fork)
    assert result["step"] == 8
    state = (fork.path / fork.story().checkpoints[-1]["path"] / "state.json").read_text()
    assert '"weight_decay":0.5' in re.sub(r"\s", "", state)
    again = make_run(f"continue_from={parent.id}@4", "optim=sgd", "optim.lr=1e-3")
    assert train_here(again)["step"] == 8, "another optimizer begins with no state"
    assert {fork.id, again.id, parent.id} == {run.id for run in (fork, again, parent)}


@pytest.mark.slow
@pytest.mark.parametrize("typed", [[], ["optim.lr=1e-4"]], ids=["as it was", "with another rate"])
def test_a_fork_of_a_run_that_gave_up_has_its_own_time_to_get_better(
    make_run: MakeRun, train_here: TrainHere, typed: list[str]
) -> None:
    wild = ["optim=sgd", "optim.lr=20", "schedule={kind: constant, warmup_fraction: 0}"]
    parent = make_run("loop={max_steps: 99, global_batch_size: 24, eval_every_steps: 2, patience: 2}", *wild)
    step = train_here(parent)["step"]
    assert step < 90
    fork = make_run(f"continue_from={parent.id}@{step}", *typed)
    assert train_here(fork)["step"] >= step + 2 * 2
    assert fork.story().checkpoints[0]["step"] == step


@pytest.mark.slow
@pytest.mark.parametrize("keep_best", ["true", "false"])
def test_a_fork_that_keeps_the_best_step_or_no_longer_does_has_parameters_and_metrics_of_one_step(
    make_run: MakeRun, train_here: TrainHere, keep_best: str
) -> None:
    before = "false" if keep_best == "true" else "true"
    parent = make_run(*CONSTANT, "loop.best_metric=val/loss", "loop.best_mode=min", f"loop.keep_best={before}")
    train_here(parent)
    # At this rate no step of the fork is better than its parent's, at the other each is.
    rate = ["optim.lr=0"] if keep_best == "true" else []
    fork = make_run(f"continue_from={parent.id}@4", "loop.max_steps=12", f"loop.keep_best={keep_best}", *rate)
    result = train_here(fork)
    assert result["outputs"]["best_step"] == (8 if keep_best == "true" else 12), "a validation of its own"
    assert result["outputs"]["params_step"] == result["outputs"]["best_step"]
    last = load(fork.path / fork.story().checkpoints[-1]["path"]).state["model"]
    assert result["param_digest"] == param_digest(last), "nothing moves, or the last step is the best"


STEP_LR = "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 2}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "typed", "rates"),
    [
        (["schedule.kind=linear"], ["schedule.kind=own", f"schedule.own={STEP_LR}"], [0.01, 0.001, 0.001, 0.0001]),
        (
            ["schedule.kind=own", f"schedule.own={STEP_LR}"],
            ["+schedule.own.gamma=0.5", "optim.lr=0.02"],
            [0.02, 0.01, 0.01, 0.005],
        ),
        (
            ["schedule.kind=linear"],
            [
                "schedule.kind=own",
                "schedule.own={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1, total_steps: 9}",
            ],
            [0.06514, 0.09944, 0.08986, 0.07056],
        ),
        (
            ["schedule.kind=own", f"schedule.own={STEP_LR}"],
            ["schedule.kind=linear", "schedule.own=null"],
            [0.0034, 0.002575, 0.00175, 0.000925],
        ),
    ],
    ids=["to a torch scheduler", "new argument", "one cycle", "to a function of the step"],
)
def test_another_schedule_begins_with_the_rate_of_the_config(
    make_run: MakeRun, train_here: TrainHere, theirs: list[str], typed: list[str], rates: list[float]
) -> None:
    parent = make_run(*CONSTANT, "track.every_steps=1", "optim.lr=0.01", *theirs)
    train_here(parent)
    fork = make_run(f"continue_from={parent.id}@8", "track.every_steps=1", "loop.max_steps=12", *typed)
    train_here(fork)
    # After each step the rate of the next one is in the metrics, where a torch scheduler sets it.
    found = [rate for _, rate in read_metrics(fork)["train/lr"]]
    assert found == pytest.approx(rates, rel=1e-3)


@pytest.mark.slow
def test_a_rate_that_the_state_of_a_torch_scheduler_would_set_aside_is_refused(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    parent = make_run(*CONSTANT, "schedule.kind=own", f"schedule.own={STEP_LR}", "optim.lr=0.01")
    train_here(parent)
    fork = make_run(f"continue_from={parent.id}@4", "optim.lr=0.02")
    with pytest.raises(
        InputError, match=r"optim\.lr was 0\.01 and is 0\.02.*StepLR goes on from the rate.*change sched"
    ):
        train_here(fork)
    assert not fork.story().checkpoints


@pytest.mark.slow
def test_another_dataset_of_ones_own_is_another_measure(make_run: MakeRun, train_here: TrainHere) -> None:
    chosen = ["model=plain", "model.size_in=16", "data.dataset={_target_: usersown.Waves}", "model.size_out=3"]
    parent = make_run(*(one for one in CONSTANT if "dropout" not in one), *chosen)
    train_here(parent)
    fork = make_run(f"continue_from={parent.id}@4", "+data.dataset.noise=9", "loop.max_steps=6")
    assert train_here(fork)["outputs"]["best_step"] == 6


@pytest.mark.slow
def test_what_cannot_be_gone_on_from_is_refused_before_it_runs(make_run: MakeRun, train_here: TrainHere) -> None:
    parent = make_run(*CONSTANT)
    with pytest.raises(InputError, match="it has no checkpoint to go on from; it is queued"):
        make_run(f"continue_from={parent.id}")
    train_here(parent)
    with pytest.raises(InputError, match="it is running, so its newest checkpoint is not its last"):
        make_run(f"continue_from={parent.id}", "loop.max_steps=16")
    assert make_run(f"continue_from={parent.id}@8", "loop.max_steps=16").record()["continues"]["step"] == 8
    with pytest.raises(InputError, match=r"@5: there is no such checkpoint; its checkpoints are of step 4, 8"):
        make_run(f"continue_from={parent.id}@5", "loop.max_steps=16")
    with pytest.raises(ConfigError, match=r"is at step 8 and the budget is 8 steps in all.*loop\.max_steps=16"):
        make_run(f"continue_from={parent.id}@8")
    with pytest.raises(UnknownName, match="no run 'nobody'"):
        make_run("continue_from=nobody")


def task_code(rundir: RunDir) -> int:
    return task.run_attempt(rundir, "inline", Place())


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused_with_the_first_tensors_that_differ(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    parent = make_run(*CONSTANT)
    train_here(parent)
    other = make_run(f"continue_from={parent.id}@8", "loop.max_steps=16", "model.hidden_sizes=[7]")
    with pytest.raises(InputError, match=r"layers\.1\.weight is \d+×16 there and 7×16 here"):
        train_here(other)
    assert not other.story().checkpoints


@pytest.mark.slow
def test_a_config_that_changed_since_the_checkpoint_is_refused_with_the_difference(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    run = make_run(*CONSTANT, "name=edited")
    train_here(run)
    text = run.config_yaml.read_text()
    run.config_yaml.write_text(text.replace("max_steps: 8", "max_steps: 16").replace("keep_last: 2", "keep_last: 3"))
    with pytest.raises(
        InputError, match=r"loop\.max_steps was 8 and is 16.*continue_from=edited-\w+ loop\.max_steps=16"
    ):
        train_here(run)
    assert [body["step"] for body in run.story().checkpoints] == [4, 8]
    run.config_yaml.write_text(text)
    assert train_here(run)["step"] == 8


@pytest.mark.slow
def test_ranks_that_do_not_divide_the_batch_are_refused_and_nothing_is_lost(
    make_run: MakeRun, attempt: Attempt
) -> None:
    run = make_run(*CONSTANT)
    assert attempt(run, 3, FAULT="stop 0 5") == [75, 75, 75]
    before: Any = run.story().checkpoints
    assert attempt(run, 5) == [2] * 5
    cause = run.story().cause
    assert "24 samples cannot be cut into 5 equal parts" in cause
    assert run.story().checkpoints == before
    assert attempt(run, 3) == [0, 0, 0]
