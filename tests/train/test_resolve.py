"""What a login node finds before anything is submitted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpctool import config
from hpctool.data.version import open_version
from hpctool.errors import ConfigError, CorruptError, HpctoolError, InputError, TargetError, UnknownName
from hpctool.files import write_json
from hpctool.launch.plan import Request, make_plan
from hpctool.train.resolve import best_of_sweep, chosen_run, input_shape
from tests.train.conftest import MakeRun

PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"
SHIFT = ("augment={_target_: hpctool.train.augment.RandomShift, pixels: 1}",)


@pytest.mark.slow
def test_the_dataset_is_pinned_and_says_what_the_model_needs(make_run: MakeRun) -> None:
    run = make_run("model=cnn")
    cfg, inputs = config.load(run.config_yaml), run.record()["inputs"]
    assert inputs == [{"kind": "dataset", "name": "stripes@main", "id": cfg.data.commit}]
    assert cfg.data.name == f"stripes@{cfg.data.commit[:12]}"
    assert cfg.data.feature == "image"
    assert list(cfg.model.input_shape) == [1, 4, 4]
    assert cfg.model.num_classes == 3


@pytest.mark.parametrize(("stored", "seen"), [((8, 9, 3), [3, 8, 9]), ((13,), [13]), ((5, 7), [5, 7])])
def test_images_are_seen_channels_first(stored: tuple[int, ...], seen: list[int]) -> None:
    assert input_shape(stored) == seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "budget"),
    [([], (None, 30)), (["loop.max_steps=5"], (5, None)), (["loop.max_epochs=2"], (None, 2))],
)
def test_one_budget_is_enough_and_none_means_the_default(
    make_run: MakeRun, overrides: list[str], budget: tuple[int | None, int | None]
) -> None:
    loop = config.load(make_run(*overrides).config_yaml).loop
    assert (loop.max_steps, loop.max_epochs) == budget


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["loop.max_steps=5", "loop.max_epochs=2"], ConfigError, "loop.max_steps.*exactly one"),
        (["loop.global_batch_size=50", "resources.tasks_per_node=4"], ConfigError, "4 ranks.*48 or 52 would do"),
        (["loop.accumulate=7"], ConfigError, "49 would do"),
        (["loop.keep_last=1"], ConfigError, "keep 2 or more"),
        (["loop.max_steps=0"], ConfigError, "loop.max_steps.*above 0"),
        (["loop.ema=1.5"], ConfigError, "between 0 and 1"),
        (["loop.best_mode=maximum"], ConfigError, "max, min"),
        (["schedule.kind=cosinus"], ConfigError, "Did you mean cosine"),
        (["schedule.warmup_fraction=2"], ConfigError, "warmup_fraction.*between 0 and 1"),
        (["data.train_split=trian"], ConfigError, "no split 'trian'.*Did you mean train"),
        (["data.label=lable"], ConfigError, "no column 'lable'.*Did you mean label"),
        (["data.name=strips"], UnknownName, "no dataset 'strips'.*stripes"),
        (["data.name=stripes@v9"], UnknownName, "v9"),
        (["model._target_=hpctool.nets.MPL"], TargetError, r"model\._target_.*MLP"),
        (["optim._target_=torch.optim.AdamV"], TargetError, "AdamV"),
        (["optim.lr=abc"], ConfigError, "'optim.lr'.*takes a number, and got 'abc'"),
        (["optim.lr="], ConfigError, "'optim.lr'.*takes a number, and got ''"),
        (["optim.lr=null"], ConfigError, "'optim.lr'.*takes a number, and got null"),
        (["optim=sgd", "optim.momentum=true"], ConfigError, "'optim.momentum'.*takes a number, and got true"),
        (["model.dropout=abc"], ConfigError, "'model.dropout'.*takes a number"),
        (["model=transformer", "model.width=[64]"], ConfigError, "'model.width'.*takes a number"),
        (["optim=parts", "optim.first.lr=abc"], ConfigError, "'optim.first.lr'.*takes a number"),
        (["task._target_=nowhere.Task"], TargetError, "no module 'nowhere'"),
        (["augment={_target_: hpctool.train.augment.Shift}"], TargetError, "RandomShift|no 'Shift'"),
        (["loop.precision=float23"], ConfigError, "not one of float32, tf32, bf16, fp16.*Did you mean float32"),
        (["loop.precision=fp16", "parallel=fsdp"], ConfigError, "loop.precision.*bf16"),
        (["parallel.kind=dpp"], ConfigError, "Did you mean ddp"),
        (["parallel=fsdp", "parallel.bucket_mb=4"], ConfigError, "parallel.bucket_mb.*for ddp"),
        (["parallel.blocks=[Linear]"], ConfigError, "parallel.blocks.*for fsdp"),
        (["loop.compile=inductr"], ConfigError, "Did you mean inductor"),
        (["loop.num_workers=-1"], ConfigError, "0 or more"),
        (["loop.patience=0"], ConfigError, "loop.patience.*above 0"),
        (["schedule.kind=own"], ConfigError, "schedule.own is not set"),
        (["schedule.own={_target_: torch.optim.lr_scheduler.StepLR}"], ConfigError, "belong together"),
        (
            ["schedule.kind=own", f"schedule.own={{_target_: {PLATEAU}}}"],
            ConfigError,
            "own.mode.*it is min.*is max.*mode: max",
        ),
        (["schedule.step_at=[2]"], ConfigError, "fractions of the budget"),
        (["data.dataset={_target_: usersown.Nowhere}"], TargetError, "Nowhere"),
        (["data.dataset={_target_: usersown.Waves}", *SHIFT], ConfigError, "augment.*makes its samples itself"),
        (["optim=parts", "optim.first._target_=torch.optim.AdamV"], TargetError, "optim.first"),
        (["optim=parts", "parallel=fsdp"], ConfigError, "parallel.kind.*first, last, layers, norms.*parallel=ddp"),
        (["track.every_steps=0"], ConfigError, "track.every_steps.*above 0"),
        (["data.window=-1"], ConfigError, "data.window.*0 .all rows. or more"),
        (["parallel.compare_every_steps=0"], ConfigError, "parallel.compare_every_steps.*above 0"),
        (["seed=-1"], ConfigError, "'seed'.*it is -1; it is 0 or more"),
        (["loop.max_step=5"], ConfigError, "Did you mean loop.max_steps"),
    ],
)
def test_bad_input_is_said_in_one_sentence_and_nothing_is_written(
    make_run: MakeRun, tmp_path: Path, overrides: list[str], error: type[HpctoolError], words: str
) -> None:
    with pytest.raises(error, match=words) as found:
        make_run(*overrides)
    assert found.value.exit_code == 2
    assert "\n" not in str(found.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_cell_whose_number_is_none_is_refused_with_its_sweep(root: Path, tmp_path: Path) -> None:
    paths = [f"paths.datasets={root}/datasets", f"paths.runs={tmp_path}/runs"]
    request = Request("train", ["data.name=stripes", *paths, "optim.lr=0.1,0.2,abc", "model.dropout=0.0,0.1"])
    with pytest.raises(ConfigError, match=r"'optim.lr'.*takes a number, and got 'abc'"):
        make_plan(request, True)


@pytest.mark.slow
def test_what_a_target_of_ones_own_takes_is_not_asked(make_run: MakeRun) -> None:
    run = make_run(
        "model._target_=usersown.PlainNet", "model.dropout=some", "+optim.betas=[0.9,0.99]", "~optim.weight_decay"
    )
    assert config.load(run.config_yaml).model.dropout == "some"


@pytest.mark.parametrize("key", ["batch_size", "num_bins"])
def test_an_evaluation_in_no_portions_is_refused(make_run: MakeRun, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*it is 0; it must be above 0"):
        make_run("run=anything", f"{key}=0", job="evaluate")


@pytest.mark.slow
def test_a_split_without_rows_is_refused(make_run: MakeRun, root: Path) -> None:
    base = ["data.name=stripes", f"paths.root={root}"]
    with pytest.raises(ConfigError, match="no split 'production'"):
        make_run(*base, "data.val_split=production")


@pytest.mark.slow
def test_the_login_node_needs_no_torch(root: Path, tmp_path: Path) -> None:
    code = """
import sys
from hpctool.launch.plan import Request, make_plan
make_plan(Request("train", sys.argv[1:]), False)
from hpctool.jobs import evaluate
heavy = {"torch", "sklearn", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    paths = [f"paths.datasets={root}/datasets", f"paths.runs={tmp_path}"]
    subprocess.run([sys.executable, "-c", code, "data.name=stripes", *paths], check=True)


def completed(make_run: MakeRun, name: str, metrics: dict[str, float]) -> str:
    run = make_run(f"name={name}")
    write_json(run.result_json, {"state": "completed", "metrics": metrics})
    return run.id


def sweep(runs: Path, name: str, ids: list[str]) -> None:
    (runs / "sweeps" / name).mkdir(parents=True)
    body = {"format": 1, "id": name, "cells": [{"run": run_id} for run_id in ids]}
    write_json(runs / "sweeps" / name / "sweep.json", body)


@pytest.mark.slow
def test_of_a_sweep_the_best_completed_run_is_taken(make_run: MakeRun, tmp_path: Path) -> None:
    good = completed(make_run, "good", {"val/accuracy": 0.9, "val/loss": 0.5})
    better = completed(make_run, "better", {"val/accuracy": 0.8, "val/loss": 0.3})
    sweep(tmp_path / "runs", "sweep-1234abcd", [good, better, "later-00000000"])
    run, notes = chosen_run(tmp_path / "runs", "sweep-12", "val/accuracy", "max")
    assert run.id == good
    assert "best of 2 completed" in notes[0]
    assert "1 have not completed" in notes[0]
    assert best_of_sweep(tmp_path / "runs", "sweep-12", "val/loss", "min")[0].id == better


@pytest.mark.slow
def test_a_sweep_without_the_metric_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    sweep(tmp_path / "runs", "sweep-1234abcd", [completed(make_run, "one", {"val/loss": 0.5})])
    with pytest.raises(InputError, match="'val/f1'"):
        chosen_run(tmp_path / "runs", "sweep-1234abcd", "val/f1", "max")


@pytest.mark.slow
def test_a_run_is_found_by_its_beginning_and_a_typo_shows_what_there_is(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("name=alpha")
    assert chosen_run(tmp_path / "runs", "alph", "val/accuracy", "max")[0].id == run.id
    with pytest.raises(UnknownName, match=run.id):
        chosen_run(tmp_path / "runs", "alhpa", "val/accuracy", "max")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.slow
def test_damaged_data_is_refused_before_submission(make_run: MakeRun, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "datasets", tmp_path / "datasets")
    path = open_version(tmp_path / "datasets", "stripes").contents.row_groups[0].objects[0].id
    flip(tmp_path / "datasets" / "stripes" / "objects" / path[:2] / f"{path}.h5")
    with pytest.raises(CorruptError, match="hpctool data verify stripes"):
        make_run(f"paths.datasets={tmp_path}/datasets")
    assert not (tmp_path / "runs").exists()
