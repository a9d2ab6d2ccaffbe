"""Straight or stopped and resumed: the same bits, whatever a step consists of. In this process, as one rank."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from hpctool.checkpoint import load
from hpctool.data.exposure import runs_of
from hpctool.data.version import open_version
from hpctool.errors import InputError, Stopped
from hpctool.launch import signals
from hpctool.rundir import RunDir
from hpctool.track.metrics import read_metrics
from hpctool.train import params, seeds
from hpctool.train.samples import Samples
from tests.train.conftest import MakeRun

TrainHere = Callable[[RunDir], dict[str, Any]]

SHORT = "loop={max_steps: 8, global_batch_size: 24, eval_every_steps: 4}"
DROPOUT = "model.dropout=0.2"


def stopped_at_2(run: RunDir, train_here: TrainHere) -> None:
    signals.request_stop("preempted")
    try:
        with pytest.raises(Stopped):
            train_here(run)
    finally:
        signals.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        [DROPOUT, "loop.precision=bf16"],
        [DROPOUT, "loop.precision=fp16"],
        [DROPOUT, "schedule.kind=own", "schedule.own={_target_: usersown.halved, every: 2}"],
        ["schedule.kind=own", "schedule.own={_target_: torch.optim.lr_scheduler.StepLR, step_size: 3, gamma: 0.5}"],
        ["model=plain", "model.size_in=16", "data.dataset={_target_: usersown.Waves, noise: 0.2}", "model.size_out=3"],
        # At each validation after the first, none of which is ten times as good.
        [
            "loop.eval_every_steps=2",
            "schedule.kind=own",
            "schedule.own={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, mode: max, patience: 0, threshold: 9}",
        ],
        # inductor has its kernels built by a C++ compiler.
        pytest.param(
            [f"loop.compile={'inductor' if shutil.which('g++') else 'aot_eager'}"],
            # torch's own, of its own.
            marks=pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning"),
        ),
        ["model=tangled", "optim=parts", "task._target_=usersown.ByPart"],
    ],
    ids=["bf16", "fp16", "own schedule", "torch scheduler", "own dataset", "plateau", "compiled", "parts"],
)
def test_a_stop_changes_no_bits(make_run: MakeRun, train_here: TrainHere, chosen: list[str]) -> None:
    straight, stopped = make_run(SHORT, *chosen, "name=straight"), make_run(SHORT, *chosen, "name=stopped")
    expected = train_here(straight)
    stopped_at_2(stopped, train_here)
    found = train_here(stopped)
    assert (found["param_digest"], found["metrics"]) == (expected["param_digest"], expected["metrics"])
    if "mode: max" in chosen[-1]:
        assert read_metrics(stopped)["train/lr"][-1][1] == pytest.approx(3e-5), "a tenth at step 4, and again at 6"
    for name in ("train/lr", "train/grad_norm", "train/loss"):
        assert read_metrics(stopped).get(name) == read_metrics(straight).get(name)


@pytest.mark.slow
def test_a_dataset_of_ones_own_over_a_version_is_recorded_beside_it(
    make_run: MakeRun, train_here: TrainHere, root: Path
) -> None:
    own = f"data.dataset={{_target_: usersown.Ours, datasets: {root}/datasets, ref: stripes}}"
    run = make_run(SHORT, "model=plain", "model.size_in=16", "model.size_out=3", own)
    train_here(run)
    store = open_version(root / "datasets", "stripes").store
    used = [use for use in runs_of(store, store.resolve("main")) if use.run == run.id]
    assert [(use.job, use.split) for use in used] == [("train", "")]
    assert [path for path in store.layout.pins.iterdir() if path.name.startswith(run.id)]


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bits(make_run: MakeRun, train_here: TrainHere) -> None:
    shift = "augment={_target_: hpctool.train.augment.RandomShift, pixels: 1}"
    runs = [make_run(SHORT, DROPOUT, shift, f"loop.num_workers={count}") for count in (0, 1, 2)]
    assert len({train_here(run)["param_digest"] for run in runs}) == 1


@pytest.mark.slow
def test_the_scale_of_fp16_shrinks_where_gradients_overflow_and_is_kept(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    run = make_run(SHORT, "loop.precision=fp16", "optim=sgd", "optim.lr=1e-3")
    train_here(run)
    scaler = load(run.path / run.story().checkpoints[-1]["path"]).state["scaler"]
    scales = read_metrics(run)["train/loss_scale"]
    assert scaler["scale"] == scales[-1][1] <= 65536.0
    assert read_metrics(run)["train/grad_norm"][-1][1] < 100, "the norm is that of the gradient, not of its multiple"


@pytest.mark.slow
def test_what_cannot_be_computed_the_same_twice_is_refused_unless_the_config_allows_it(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    unordered = (SHORT, "task._target_=usersown.Unordered")
    with pytest.raises(InputError, match=r"computes put_, which torch cannot do .* loop\.deterministic=false"):
        train_here(make_run(*unordered, "name=strict"))
    run = make_run(*unordered, "name=loose", "loop.deterministic=false")
    with pytest.warns(UserWarning, match="put_ does not have a deterministic implementation"):
        train_here(run)
    made = load(run.path / run.story().checkpoints[-1]["path"])
    assert made.info["fingerprint"]["deterministic"] is False


def bare_loop(run: RunDir, root: Any, num_steps: int) -> dict[str, torch.Tensor]:
    """What anybody would write: accumulation over two halves, clipping, AdamW, a moving average."""
    cfg = params.read_config(run)
    seeds.seed_everything(cfg.seed)
    model = params.build_model(cfg)
    seeds.seed_everything(cfg.seed, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    samples = Samples(open_version(root / "datasets", "stripes"), cfg.data, "train", cfg.seed)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(num_steps):
        for half in range(2):
            batch = samples.stream(24 * step + 12 * half, 24 * step + 12 * (half + 1))
            x_NCHW = batch["x"].permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255.0
            total = functional.cross_entropy(model(x_NCHW), batch["y"], ignore_index=-1, reduction="sum")
            (total / 12 / 2).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        for name, p in model.named_parameters():
            average[name] = torch.lerp(average[name], p.detach(), 0.1) if step else p.detach().clone()
    return average


@pytest.mark.slow
def test_accumulation_clipping_and_average_are_those_of_a_bare_loop(
    make_run: MakeRun, train_here: TrainHere, root: Any
) -> None:
    # Without a warm-up the rate is 3e-3 throughout.
    run = make_run(
        *(SHORT, DROPOUT, "loop={accumulate: 2, grad_clip: 0.5, ema: 0.9}", "schedule.kind=constant"),
        *("schedule.warmup_fraction=0", "name=bare"),
    )
    train_here(run)
    found = params.load_params(run)[0].state_dict()
    for name, value in bare_loop(run, root, 8).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_before_its_budget_and_stays_ended(
    make_run: MakeRun, train_here: TrainHere
) -> None:
    wild = ["optim=sgd", "optim.lr=20", "schedule.kind=constant", "schedule.warmup_fraction=0", "track.every_steps=7"]
    run = make_run("loop={max_steps: 200, global_batch_size: 24, eval_every_steps: 2, patience: 3}", *wild)
    result = train_here(run)
    curve = read_metrics(run)["val/accuracy"]
    assert result["step"] == curve[-1][0] < 200
    assert result["step"] == result["outputs"]["best_step"] + 3 * 2
    assert read_metrics(run)["train/lr"][-1][0] == result["step"], "the last steps are in the metrics too"
    assert run.story().checkpoints[-1]["step"] == result["step"]
    again = train_here(run)
    assert (again["step"], again["param_digest"]) == (result["step"], result["param_digest"])


@pytest.mark.slow
def test_what_the_model_consists_of_is_written_down(make_run: MakeRun, train_here: TrainHere) -> None:
    run = make_run(SHORT, "model=transformer", "loop.max_steps=1")
    train_here(run)
    text = run.artifact("model.txt").read_text()
    num_params = sum(p.numel() for p in params.load_params(run)[0].parameters())
    rows = [line.split() for line in text.splitlines()[3:]]
    assert f"Transformer: {num_params:,} parameters" in text
    assert sum(int(row[2].replace(",", "")) for row in rows) == num_params


@pytest.mark.slow
def test_what_is_frozen_stays_as_it_is(make_run: MakeRun, train_here: TrainHere) -> None:
    states = []
    for max_steps in (1, 4):
        run = make_run("model=plain", "model._target_=usersown.HalfFrozen", SHORT, f"loop.max_steps={max_steps}")
        train_here(run)
        states.append(params.load_params(run)[0].state_dict())
    assert torch.equal(states[0]["1.weight"], states[1]["1.weight"])
    assert not torch.equal(states[0]["3.weight"], states[1]["3.weight"])


@pytest.mark.slow
def test_loss_and_metrics_of_ones_own_by_their_names(make_run: MakeRun, train_here: TrainHere) -> None:
    loss = "+task.loss={_target_: torch.nn.MultiMarginLoss}"
    metrics = "+task.metrics={top2: {_target_: hpctool.train.task.top_k, _partial_: true, k: 2}}"
    run = make_run("loop.max_epochs=6", loss, metrics, "loop.best_metric=val/top2")
    found = train_here(run)["metrics"]
    assert found["best/top2"] >= found["val/top2"] > found["val/accuracy"] > 0.6
    assert 0 < found["val/loss"] < 0.5, "a margin loss, which ends near 0"
