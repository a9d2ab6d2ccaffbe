"""TensorBoard files: a run that was killed and resumed is one curve in every reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from hpctool.rundir import RunDir, create_run
from hpctool.track.metrics import MetricWriter
from hpctool.world import World

CONFIG = """
name: train
seed: 0
note: null
deep: true
model: {_target_: hpctool.nets.CNN, width: 8}
optim: {lr: 0.001, momentum: 1}
cluster: {kind: local}
track: {tensorboard: true, every_steps: 10}
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    record = {
        "identity": "cd" * 32,
        "job": "train",
        "name": "train",
        "choices": {"model": "cnn", "cluster": "local"},
        "overrides": ["model=cnn", "optim.lr=1e-3", "cluster=local", "deep=true", "note=null", "optim.momentum=1"],
        "varied": ["optim.lr"],
    }
    return create_run(tmp_path / "runs", record, {"config.yaml": CONFIG})


def attempt(run: RunDir, number: int, steps: range, *, kill: bool = False) -> None:
    writer = MetricWriter(RunDir(run.path, number), World())
    for step in steps:
        writer.log(step, {"train/loss": float(number), "val/accuracy": step / 1000})
    writer.close(completed=not kill)


def loss_of_python_loader(folder: Path) -> list[tuple[int, float]]:
    loader = PluginAccumulator(str(folder))
    loader.Reload()
    return [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in loader.Tensors("train/loss")]


def accumulated(folder: Path) -> Any:
    loader = EventAccumulator(str(folder))
    loader.Reload()
    return loader


def test_a_resumed_run_is_one_curve(run: RunDir) -> None:
    attempt(run, 1, range(100, 901, 100), kill=True)
    attempt(run, 2, range(600, 1001, 100))
    expected = [(s, 1.0) for s in range(100, 501, 100)] + [(s, 2.0) for s in range(600, 1001, 100)]
    assert [(e.step, e.value) for e in accumulated(run.tensorboard).Scalars("train/loss")] == expected
    assert loss_of_python_loader(run.tensorboard) == expected


def test_eleven_attempts_in_one_second_are_read_in_their_order(run: RunDir) -> None:
    for number in range(1, 12):
        attempt(run, number, range(number, number + 5), kill=True)
    steps = [e.step for e in accumulated(run.tensorboard).Scalars("train/loss")]
    assert steps == list(range(1, 16))
    assert len(list(run.tensorboard.iterdir())) == 11


def test_a_file_that_a_kill_has_torn_does_not_hide_the_next_attempt(run: RunDir) -> None:
    attempt(run, 1, range(1, 6), kill=True)
    (torn,) = run.tensorboard.iterdir()
    torn.write_bytes(torn.read_bytes()[:-7])
    attempt(run, 2, range(4, 8))
    assert [e.step for e in accumulated(run.tensorboard).Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_hparams_are_what_was_varied_or_typed_with_floats_as_floats_and_no_none(run: RunDir) -> None:
    attempt(run, 1, range(1, 3))
    content = accumulated(run.tensorboard).PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert {key: value.WhichOneof("kind") for key, value in start.hparams.items()} == {
        "model": "string_value",
        "optim.lr": "number_value",
        "optim.momentum": "number_value",
        "deep": "bool_value",
    }
    assert start.hparams["optim.lr"].number_value == 0.001
    assert start.hparams["model"].string_value == "cnn"
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS


def test_a_run_that_broke_off_has_no_session_end(run: RunDir) -> None:
    def train() -> None:
        with MetricWriter(RunDir(run.path, 1), World()) as writer:
            writer.log(1, {"train/loss": 0.5})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    content = accumulated(run.tensorboard).PluginTagToContent(metadata.PLUGIN_NAME)
    assert metadata.SESSION_START_INFO_TAG in content
    assert metadata.SESSION_END_INFO_TAG not in content


def test_a_folder_that_cannot_be_written_costs_the_event_files_and_not_the_training(run: RunDir) -> None:
    run.tensorboard.write_text("in the way")
    with MetricWriter(RunDir(run.path, 1), World()) as writer:
        with pytest.warns(UserWarning, match="TensorBoard files of train-cdcdcdcd end here"):
            writer.log(1, {"train/loss": 0.5})
        writer.log(2, {"train/loss": 0.25})
    assert run.metrics(1).exists()


@pytest.mark.slow
def test_writing_imports_neither_torch_nor_tensorflow() -> None:
    code = "import sys, hpctool.track.tensorboard; print({'torch', 'tensorflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
