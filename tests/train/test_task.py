from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hpctool.errors import ConfigError, InputError
from hpctool.train.augment import RandomShift
from hpctool.train.task import Batch, Classify, ToFloat, metrics_of


def batch(labels: list[int]) -> Batch:
    return {"x": torch.rand(len(labels), 5), "y": torch.tensor(labels), "row": torch.arange(len(labels))}


def test_images_become_floats_channels_first() -> None:
    x_NHWC = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    x_NCHW = ToFloat()(x_NHWC)
    assert (x_NCHW.shape, x_NCHW.dtype) == ((2, 5, 3, 4), torch.float32)
    assert x_NCHW[1, 4, 2, 3] == 119 / 255
    assert ToFloat()(torch.full((1, 2, 2, 1), 255, dtype=torch.uint8)).max() == 1.0


def test_vectors_keep_their_shape_and_scale() -> None:
    assert torch.equal(ToFloat()(torch.tensor([[3, 250]], dtype=torch.uint8)), torch.tensor([[3.0, 250.0]]))


def test_preprocessing_goes_into_a_scripted_graph() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(ToFloat())
    x_NHWC = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8)
    assert torch.equal(script(x_NHWC), ToFloat()(x_NHWC))


def test_missing_labels_teach_nothing_and_count_nowhere() -> None:
    task, model = Classify(), nn.Linear(5, 3)
    some = batch([0, 2, -1, 1, -1, -1])
    known = {name: value[some["y"] >= 0] for name, value in some.items()}
    loss, sums = task.loss(model, some)
    expected = functional.cross_entropy(model(known["x"]), known["y"])
    assert loss.item() == pytest.approx(expected.item() * 3 / 6)
    metrics = task.metrics({name: float(value) for name, value in sums.items()})
    assert metrics["loss"] == pytest.approx(expected.item())
    assert metrics["accuracy"] == int((model(known["x"]).argmax(1) == known["y"]).sum()) / 3


def test_a_part_without_any_label_has_a_gradient_of_zero() -> None:
    task, model = Classify(), nn.Linear(5, 3)
    loss, sums = task.loss(model, batch([-1, -1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    assert not model.weight.grad.any()
    assert task.metrics({name: float(value) for name, value in sums.items()}) == {}


def test_label_smoothing_is_for_learning_only() -> None:
    model, some = nn.Linear(5, 3), batch([0, 1, 2])
    assert Classify(0.2).loss(model, some)[0] != Classify().loss(model, some)[0]
    assert Classify(0.2).evaluate(model, some)["loss"] == Classify().evaluate(model, some)["loss"]


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        (lambda logits_nK, y_n: (logits_nK.argmax(1) == y_n).float().mean(), r"the shape \[\]"),
        (lambda logits_nK, y_n: logits_nK, r"the shape \[2, 3\]"),
        (lambda logits_nK, y_n: 0.5, "float"),
    ],
)
def test_a_metric_that_gives_no_value_for_each_row_is_refused(metric: Any, found: str) -> None:
    task = Classify(metrics={"mine": metric})
    with pytest.raises(ConfigError, match=rf"'task\.metrics\.mine': for 2 rows it gave {found}\. Let it give a value"):
        task.evaluate(nn.Linear(5, 3), batch([0, 2, -1]))


def test_a_metric_that_is_no_number_is_refused() -> None:
    class Broken(Classify):
        def metrics(self, sums: Any) -> Any:
            return {"matrix": np.eye(2)}

    with pytest.raises(InputError, match="'matrix' is a ndarray, not a number"):
        metrics_of(Broken(), {})


def test_shifts_stay_within_their_pixels_and_bring_in_zeros() -> None:
    image = np.full((4, 6, 3), 7, np.uint8)
    seen = set()
    for seed in range(60):
        shifted = RandomShift(1)(image, np.random.default_rng(seed))
        assert (shifted.shape, shifted.dtype) == (image.shape, image.dtype)
        rows, columns = np.nonzero(shifted[..., 0])
        assert math.prod(shifted.shape[:2]) - len(rows) <= 4 + 6 - 1
        seen.add((int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())))
    assert len(seen) == 9
