"""Training in this process, as one rank: what a run does, what it leaves, and what belongs to the user."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpctool.checkpoint import load, param_digest
from hpctool.errors import ConfigError, CorruptError, InputError, OperationError, Stopped
from hpctool.launch import signals
from hpctool.rundir import RunDir
from hpctool.track.metrics import read_metrics
from hpctool.train.params import load_params
from hpctool.train.task import Classify
from tests.train.conftest import MakeRun

TrainHere = Callable[[RunDir], dict[str, Any]]

SHORT = "loop={max_steps: 10, global_batch_size: 24, eval_every_steps: 5}"


@pytest.mark.slow
def test_it_learns(make_run: MakeRun, train_here: TrainHere) -> None:
    result = train_here(make_run("loop.max_epochs=12"))
    assert result["metrics"]["val/accuracy"] > 0.9
    assert result["metrics"]["train/loss"] < 0.3


@pytest.mark.slow
def test_the_result_says_what_was_trained_on_what(make_run: MakeRun, train_here: TrainHere) -> None:
    run = make_run(SHORT, "track.every_steps=5")
    result = train_here(run)
    assert result["step"] == 10
    assert result["data_commit"] == run.record()["inputs"][0]["id"]
    metrics = result["metrics"]
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "best/loss", "best/accuracy"} == set(metrics)
    curves = read_metrics(run)
    assert [step for step, _ in curves["val/accuracy"]] == [5, 10]
    assert [step for step, _ in curves["train/loss"]] == [5, 10]
    assert metrics["val/accuracy"] == curves["val/accuracy"][-1][1]
    assert {"train/lr", "train/grad_norm", "train/samples_per_s", "epoch"} < set(curves)


@pytest.mark.slow
def test_load_params_gives_the_model_that_the_result_is_of(make_run: MakeRun, train_here: TrainHere) -> None:
    run = make_run(SHORT, "model=cnn", "model.channels=[4,8]")
    result = train_here(run)
    model, step = load_params(RunDir(run.path))
    assert (step, model.training) == (10, False)
    assert param_digest(model.state_dict()) == result["param_digest"]


@pytest.mark.slow
def test_load_params_needs_a_checkpoint(make_run: MakeRun) -> None:
    with pytest.raises(InputError, match="no checkpoint yet"):
        load_params(make_run(SHORT))


@pytest.mark.slow
def test_the_seed_alone_decides(make_run: MakeRun, train_here: TrainHere) -> None:
    digests = [
        train_here(make_run(SHORT, "model.dropout=0.2", f"name={name}", f"seed={seed}"))["param_digest"]
        for name, seed in (("one", 1), ("again", 1), ("two", 2))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_the_average_of_the_parameters_is_the_result_where_asked(make_run: MakeRun, train_here: TrainHere) -> None:
    run = make_run(SHORT, "loop.ema=0.9")
    result = train_here(run)
    model, _ = load_params(run)
    assert param_digest(model.state_dict()) == result["param_digest"]
    raw = load(run.path / run.story().checkpoints[-1]["path"]).state["model"]
    assert param_digest(raw) != result["param_digest"]


@pytest.mark.slow
def test_keep_best_makes_the_best_step_the_result(make_run: MakeRun, train_here: TrainHere) -> None:
    # A learning rate that destroys what the first steps have reached.
    wild = ["optim=sgd", "optim.lr=20", "schedule.kind=constant", "schedule.warmup_fraction=1"]
    run = make_run("loop={max_steps: 40, global_batch_size: 24, eval_every_steps: 2, keep_best: true}", *wild)
    result = train_here(run)
    curve = read_metrics(run)["val/accuracy"]
    best_step, best = max(curve, key=lambda point: (point[1], -point[0]))
    assert curve[-1][1] < best
    assert result["metrics"]["val/accuracy"] == result["metrics"]["best/accuracy"] == best
    assert result["outputs"]["best_step"] == result["outputs"]["params_step"] == best_step
    model, step = load_params(run)
    assert step == best_step
    assert param_digest(model.state_dict()) == result["param_digest"]


@pytest.mark.slow
def test_checkpoints_are_due_by_minutes_too(make_run: MakeRun, train_here: TrainHere) -> None:
    run = make_run(SHORT, "loop.checkpoint_every_min=1e-9")
    train_here(run)
    # Wished for at a boundary, read at the next.
    assert [c["step"] for c in run.story().checkpoints] == [2, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.slow
def test_a_stop_saves_and_says_where(make_run: MakeRun, train_here: TrainHere) -> None:
    run = make_run(SHORT)
    signals.request_stop("timeout")
    try:
        with pytest.raises(Stopped) as stopped:
            train_here(run)
    finally:
        signals.clear()
    assert (stopped.value.cause, stopped.value.step) == ("timeout", 2)
    assert run.story().checkpoints[-1]["step"] == 2
    assert train_here(run)["step"] == 10
    assert [e["step"] for e in run.story().of_kind("resumed")] == [0, 2]


class StopsWhileValidating(Classify):
    """Is told to stop by the second batch of its first validation at `step`; evaluates as ever otherwise."""

    told_at: list[int] = []

    def evaluate(self, model: Any, batch: Any) -> Any:
        if len(self.told_at) == 1:
            signals.request_stop("preempted")
        self.told_at.append(len(batch["y"]))
        return super().evaluate(model, batch)


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", [10, 5], ids=["in the middle", "at the end"])
def test_a_stop_during_a_validation_saves_at_once_and_validates_first_when_it_goes_on(
    make_run: MakeRun, train_here: TrainHere, max_steps: int
) -> None:
    loop = f"loop={{max_steps: {max_steps}, global_batch_size: 24, eval_every_steps: 5, eval_batch_size: 4}}"
    undisturbed = make_run(loop, "name=undisturbed")
    expected = train_here(undisturbed)
    run = make_run(loop, f"task._target_={__name__}.StopsWhileValidating")
    StopsWhileValidating.told_at.clear()
    try:
        with pytest.raises(Stopped) as stopped:
            train_here(run)
    finally:
        signals.clear()
    assert stopped.value.step == 5
    assert len(StopsWhileValidating.told_at) == 2, "it did not wait for the end of the validation"
    result = train_here(run)
    assert (result["param_digest"], result["metrics"]) == (expected["param_digest"], expected["metrics"])
    assert read_metrics(run)["val/accuracy"] == read_metrics(undisturbed)["val/accuracy"]


class StopsWhileGivingUp(StopsWhileValidating):
    """No validation is ever the best."""

    def evaluate(self, model: Any, batch: Any) -> Any:
        sums = super().evaluate(model, batch)
        return {**sums, "loss": sums["loss"] * math.nan}


@pytest.mark.slow
def test_a_stop_during_the_validation_that_ends_the_run_changes_no_metric(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    loop = "loop={max_steps: 10, global_batch_size: 24, eval_every_steps: 5, eval_batch_size: 4, patience: 1}"
    typed = [loop, "loop.best_metric=val/loss", "track.every_steps=3", f"task._target_={__name__}.StopsWhileGivingUp"]
    straight, run = make_run(*typed, "name=straight"), make_run(*typed)
    StopsWhileGivingUp.told_at[:] = [0, 0]
    expected = train_here(straight)
    StopsWhileGivingUp.told_at.clear()
    try:
        with pytest.raises(Stopped):
            train_here(run)
    finally:
        signals.clear()
    assert train_here(run)["metrics"] == expected["metrics"]
    for name in ("train/loss", "train/lr", "train/grad_norm"):
        assert read_metrics(run)[name] == read_metrics(straight)[name]
    assert read_metrics(run)["train/loss"][-1][0] == 5


@pytest.mark.slow
def test_what_is_not_like_when_it_was_saved_is_said(
    make_run: MakeRun, train_here: TrainHere, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(SHORT)
    train_here(run)
    capsys.readouterr()
    text = run.config_yaml.read_text()
    run.config_yaml.write_text(text.replace("num_threads: 1", "num_threads: 2"))
    train_here(run)
    assert "num_threads was 1 and is 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_config_of_an_older_hpctool_is_read_with_todays_defaults(make_run: MakeRun, train_here: TrainHere) -> None:
    run = make_run(SHORT)
    digest = train_here(run)["param_digest"]
    lines = run.config_yaml.read_text().splitlines(keepends=True)
    run.config_yaml.write_text("".join(line for line in lines if "find_unused_parameters" not in line))
    assert param_digest(load_params(run)[0].state_dict()) == digest


@pytest.mark.slow
def test_data_that_was_damaged_meanwhile_is_refused(
    make_run: MakeRun, train_here: TrainHere, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "datasets", tmp_path / "datasets")
    run = make_run(SHORT, f"paths.datasets={tmp_path}/datasets")
    path = next((tmp_path / "datasets" / "stripes" / "objects").rglob("*.h5"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptError, match=path.name):
        train_here(run)


@pytest.mark.slow
def test_a_validation_that_is_not_finite_does_not_break_the_result(
    make_run: MakeRun, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "blind 0 0")
    run = make_run(SHORT, "task._target_=usersown.Faulty")
    metrics = train_here(run)["metrics"]
    assert "train/loss" in metrics
    assert "val/loss" not in metrics
    assert math.isnan(read_metrics(run)["val/loss"][0][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        ["loop.patience=2"],
        ["loop.keep_best=true"],
        ["loop.keep_top=1"],
        [
            "schedule.kind=own",
            "schedule.own={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, mode: max}",
        ],
    ],
    ids=["patience", "keep_best", "keep_top", "plateau"],
)
def test_a_metric_that_something_depends_on_and_no_validation_gives_is_refused_by_the_first(
    make_run: MakeRun, train_here: TrainHere, typed: list[str]
) -> None:
    run = make_run(SHORT, "loop.best_metric=val/acuracy", *typed)
    with pytest.raises(
        ConfigError, match=r"gives val/loss, val/accuracy, and no val/acuracy\. Did you mean val/accuracy"
    ):
        train_here(run)


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_named(
    make_run: MakeRun, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "overflow 0 4")
    run = make_run(SHORT, "task._target_=usersown.Faulty")
    with pytest.raises(OperationError, match=r"Step 4: .*layers\.1\.weight.*optim\.lr"):
        train_here(run)
    assert not run.story().checkpoints


@pytest.mark.slow
def test_a_users_model_and_optimizer_train_by_their_names(make_run: MakeRun, train_here: TrainHere) -> None:
    result = train_here(make_run("model=plain", "optim=sign", "loop.max_epochs=10"))
    assert result["metrics"]["val/accuracy"] > 0.8


@pytest.mark.slow
def test_a_users_task_opens_the_whole_step(make_run: MakeRun, train_here: TrainHere) -> None:
    task = ["task._target_=usersown.Autoencode", "loop.best_metric=val/error", "loop.best_mode=min"]
    run = make_run("model=plain", "model.size_out=16", *task, "loop.max_epochs=4")
    metrics = train_here(run)["metrics"]
    assert set(metrics) == {"train/error", "val/error", "best/error"}
    assert metrics["best/error"] <= metrics["val/error"] < read_metrics(run)["train/error"][0][1]


class ScalarMetrics(Classify):
    """Gives its metrics as NumPy and torch make them."""

    def metrics(self, sums: Any) -> Any:
        found = super().metrics(sums)
        return {**found, "perplexity": np.exp(found["loss"]), "half": torch.tensor(0.5)}


@pytest.mark.slow
def test_metrics_that_are_scalars_of_numpy_or_torch_are_saved_as_numbers(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    run = make_run(SHORT, f"task._target_={__name__}.ScalarMetrics", "loop.best_metric=val/perplexity")
    metrics = train_here(run)["metrics"]
    assert {type(value) for value in metrics.values()} == {float}
    assert train_here(run)["metrics"] == metrics
    assert metrics["val/half"] == 0.5


class Versioned(torch.nn.Sequential):
    """A model with a state that is no tensor."""

    def __init__(self, **_: Any) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(16, 3))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.slow
def test_a_model_with_a_state_that_is_no_tensor_is_refused_before_the_first_step(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    run = make_run(SHORT, f"model={{_target_: {__name__}.Versioned}}")
    with pytest.raises(InputError, match=r"state '_extra_state' is a dict, and only tensors are kept.*get_extra_state"):
        train_here(run)
    assert not read_metrics(run)


@pytest.mark.slow
def test_accumulation_takes_the_same_step_as_one_large_batch(make_run: MakeRun, train_here: TrainHere) -> None:
    loop = "loop={max_steps: 3, global_batch_size: 24}"
    found = []
    for accumulate in (1, 4):
        run = make_run(loop, f"loop.accumulate={accumulate}", f"name=by{accumulate}")
        train_here(run)
        found.append(load_params(run)[0].state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_validation_among_the_best_is_saved_whatever_is_due(make_run: MakeRun, train_here: TrainHere) -> None:
    run = make_run("loop={max_steps: 24, global_batch_size: 24, eval_every_steps: 2, keep_top: 2}")
    result = train_here(run)
    top: list[float] = []
    entered = []
    for step, score in read_metrics(run)["val/accuracy"]:
        if len(top) < 2 or score > top[-1]:
            top = sorted([*top, score], reverse=True)[:2]
            entered.append(step)
    saved = {body["step"]: body["score"] for body in run.story().checkpoints}
    assert sorted(saved) == sorted({*entered, 24})
    assert 2 < len(entered) < 12, "some are among the best, and some are not"
    kept = {int(path.name[5:13]) for path in run.checkpoints.glob("step-*")}
    assert {saved[step] for step in kept} >= set(top), "the best stay, beside the last two"
    assert result["metrics"]["best/accuracy"] == top[0]
