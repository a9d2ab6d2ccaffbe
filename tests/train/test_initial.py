"""Initial weights: of another run or of a file that somebody else made, of which nothing but tensors is taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hpctool.checkpoint import param_digest
from hpctool.errors import ConfigError, InputError, SourceError, UnknownName
from hpctool.rundir import RunDir
from hpctool.train.initial import unwrapped
from hpctool.train.params import build_model, load_params, read_config
from tests.train.conftest import MakeRun
from tests.train.test_loop import TrainHere

#: no step changes a parameter: what a run comes to is what it began with
STILL = ("loop={max_steps: 2, global_batch_size: 24, eval_every_steps: 2}", "optim=sgd", "optim.lr=0")


@pytest.fixture
def values(make_run: MakeRun) -> dict[str, torch.Tensor]:
    """Weights that no seed would give."""
    model = build_model(read_config(make_run(*STILL)))
    return {name: torch.full_like(value, 0.25) for name, value in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain.pt", "wrapped.pth", "ddp.ckpt", "weights.safetensors"])
def test_a_file_of_weights_is_what_the_run_begins_with(
    make_run: MakeRun, train_here: TrainHere, tmp_path: Path, values: dict[str, torch.Tensor], form: str
) -> None:
    path = tmp_path / form
    if form.endswith("safetensors"):
        save_file(values, path)
    else:
        ddp = {f"module.{name}": value for name, value in values.items()}
        wrapped = {"epoch": 3, "state_dict": values}
        torch.save({"plain.pt": values, "wrapped.pth": wrapped, "ddp.ckpt": {"model": ddp}}[form], path)
    run = make_run(*STILL, f"init_from={path}", "loop.ema=0.5")
    assert train_here(run)["param_digest"] == param_digest(values)
    assert {one["kind"]: one["name"] for one in run.record()["inputs"]}["weights"] == form


@pytest.mark.slow
def test_another_run_s_result_is_what_the_run_begins_with(make_run: MakeRun, train_here: TrainHere) -> None:
    first = make_run("loop={max_steps: 4, global_batch_size: 24, eval_every_steps: 4}", "name=first")
    with pytest.raises(InputError, match="not completed"):
        make_run(*STILL, f"init_from={first.id}")
    expected = train_here(first)["param_digest"]
    (first.path / "result.json").write_text('{"state": "completed", "metrics": {}}')
    run = make_run(*STILL, f"init_from={first.id[:-2]}")
    assert train_here(run)["param_digest"] == expected
    assert param_digest(load_params(RunDir(run.path))[0].state_dict()) == expected


class Runs:
    """A program that a file of weights would run."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was-run",)


@pytest.mark.slow
def test_nothing_in_a_file_of_weights_is_run(
    make_run: MakeRun, train_here: TrainHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    torch.save({"w": Runs()}, path)
    with pytest.raises(SourceError, match=r"holds more than tensors .*torch.save") as refused:
        train_here(make_run(*STILL, f"init_from={path}"))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "was-run").exists()


@pytest.mark.slow
def test_weights_of_another_model_are_refused_with_the_first_that_differ(
    make_run: MakeRun, train_here: TrainHere, tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "weights.pt"
    name = next(iter(values))
    torch.save({**values, name: values[name][..., :1], "extra": torch.zeros(3)}, path)
    run = make_run(*STILL, f"init_from={path}")
    with pytest.raises(InputError, match=rf"weights.pt is of another model .*{name} is .* extra is 3 there and absent"):
        train_here(run)
    assert run.story().checkpoints == []


@pytest.mark.slow
def test_a_file_that_has_changed_since_is_refused(
    make_run: MakeRun, train_here: TrainHere, tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(values, path)
    run = make_run(*STILL, f"init_from={path}")
    torch.save({name: value + 1 for name, value in values.items()}, path)
    with pytest.raises(InputError, match="another than when the run was asked for"):
        train_here(run)
    assert make_run(*STILL, f"init_from={path}").id != run.id


@pytest.mark.parametrize(
    ("found", "problem"), [([1], "no state dict"), ({}, "no state dict"), ({"lr": 0.1}, "no state dict")]
)
def test_what_holds_no_state_dict_is_said(found: Any, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        unwrapped(Path("weights.pt"), found)


@pytest.mark.slow
def test_what_is_not_there_is_refused_before_anything_is_submitted(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        make_run(*STILL, f"init_from={tmp_path}/none.pt")
    with pytest.raises(UnknownName):
        make_run(*STILL, "init_from=nobody")
