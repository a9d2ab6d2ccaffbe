"""Evaluation: what is measured, what is left behind, and that ranks share the work without changing it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpctool.data.version import open_version
from hpctool.errors import InputError
from hpctool.rundir import RunDir
from hpctool.train.evaluate import evaluate
from hpctool.train.report import Predicted, measure, write
from hpctool.world import World
from tests.train.conftest import Attempt, MakeRun

TrainHere = Callable[[RunDir], dict[str, Any]]


@pytest.fixture
def trained(make_run: MakeRun, train_here: TrainHere) -> RunDir:
    run = make_run("loop={max_epochs: 6, global_batch_size: 24}")
    train_here(run)
    return run


def predicted() -> Predicted:
    """Seven rows of three classes: one without a label, two mistakes."""
    said = np.array([0, 0, 1, 1, 2, 0, 2])
    logits = np.full((7, 3), -1.0, np.float32)
    logits[np.arange(7), said] = 1.0
    labels = np.array([0, 0, 1, 2, 2, 1, -1])
    return Predicted([f"{n:032x}" for n in range(7)], np.arange(7) * 2, labels, logits, ["a", "b$", "c"])


def test_the_report_counts_labelled_rows_only() -> None:
    report = measure(predicted(), num_bins=15)
    assert (report["rows"], report["labelled"]) == (7, 6)
    assert report["accuracy"] == pytest.approx(4 / 6)
    assert report["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert report["per_class"]["a"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2})
    confidence = np.exp(1) / (np.exp(1) + 2 * np.exp(-1))
    assert report["ece"] == pytest.approx(confidence - 4 / 6)
    assert report["nll"] == pytest.approx(-(4 * np.log(confidence) + 2 * np.log((1 - confidence) / 2)) / 6)


@pytest.mark.slow
def test_the_artifacts_hold_every_number_and_a_picture(tmp_path: Path) -> None:
    said = predicted()
    report = measure(said, num_bins=15)
    paths = [tmp_path / name for name in write(RunDir(tmp_path), said, report)]
    assert json.loads(paths[0].read_text()) == report
    table = list(csv.reader(paths[1].read_text().splitlines()))
    assert table[0][1:] == ["a", "b$", "c"]
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == report["confusion"]
    with Image.open(paths[2]) as picture:
        assert min(picture.size) > 200
        assert len(set(picture.convert("L").tobytes())) > 20
    with np.load(paths[3]) as rows:
        assert rows["uid"].tolist() == said.uids
        assert rows["label"].tolist() == said.labels.tolist()
        assert rows["predicted"].tolist() == [0, 0, 1, 1, 2, 0, 2]
        assert (rows["confidence"] > 0.5).all()


@pytest.mark.slow
def test_a_run_is_measured_on_rows_it_has_not_seen(make_run: MakeRun, trained: RunDir, root: Path) -> None:
    run = make_run(f"run={trained.id[:9]}", job="evaluate")
    result = evaluate(run, World())
    assert set(result["metrics"]) == {f"test/{name}" for name in ("accuracy", "macro_f1", "nll", "ece")}
    assert result["metrics"]["test/accuracy"] > 0.8
    train_result = trained.story().checkpoints[-1]
    assert result["step"] == train_result["step"]
    version = open_version(root / "datasets", "stripes")
    assert result["data_commit"] == version.commit
    with np.load(run.path / "artifacts" / "predictions.npz") as rows:
        assert rows["row"].tolist() == version.split_rows("test").tolist()
        assert rows["uid"].tolist() == version.uids(version.split_rows("test"))
    inputs = {one["kind"]: one["id"] for one in run.record()["inputs"]}
    assert inputs == {"run": trained.record()["identity"], "dataset": version.commit}


@pytest.mark.slow
def test_ranks_share_the_rows_and_find_the_same(make_run: MakeRun, trained: RunDir, attempt: Attempt) -> None:
    found = []
    for size in (1, 3):
        # Batches of one: whole batches of another size would round differently.
        run = make_run(f"run={trained.id}", "batch_size=1", f"name=by{size}", job="evaluate")
        assert attempt(run, size) == [0] * size
        result = run.result()
        assert result is not None
        found.append((result["metrics"], (run.path / "artifacts" / "report.json").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_task_of_ones_own_is_measured_by_its_own_metrics(make_run: MakeRun, train_here: TrainHere) -> None:
    task = ["task._target_=usersown.Autoencode", "model=plain", "model.size_out=16", "loop.max_steps=3"]
    run = make_run(*task)
    train_here(run)
    result = evaluate(make_run(f"run={run.id}", job="evaluate"), World())
    assert set(result["metrics"]) == {"test/error"}


@pytest.mark.slow
def test_only_training_runs_are_evaluated(make_run: MakeRun, trained: RunDir) -> None:
    run = make_run(f"run={trained.id}", job="evaluate")
    with pytest.raises(InputError, match="a run of 'evaluate'"):
        make_run(f"run={run.id}", "name=again", job="evaluate")
