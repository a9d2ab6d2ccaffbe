"""The estimate of accuracy is right, and honest about its width, where probabilities are calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from hpctool.monitor.accuracy import estimate_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [30, 1000])
@pytest.mark.parametrize("sharpness", [1.0, 8.0])
def test_the_interval_covers_the_accuracy_of_calibrated_answers(num_rows: int, sharpness: float) -> None:
    rng = np.random.default_rng(0)
    covered, repetitions = 0, 400
    for _ in range(repetitions):
        scores = np.exp(rng.normal(size=(num_rows, 10)) * sharpness)
        p = scores / scores.sum(axis=1, keepdims=True)
        truth = (rng.random((num_rows, 1)) > p.cumsum(axis=1)).sum(axis=1)
        estimate = estimate_accuracy(p)
        assert estimate is not None
        covered += estimate.low <= (p.argmax(axis=1) == truth).mean() <= estimate.high
    assert covered / repetitions >= 0.94


def test_the_interval_is_no_wider_than_it_must_be() -> None:
    p = np.full((10_000, 2), 0.5)
    estimate = estimate_accuracy(p)
    assert estimate is not None
    assert (estimate.low, estimate.accuracy, estimate.high) == pytest.approx((0.490, 0.5, 0.510), abs=1e-3)


def test_rows_without_numbers_are_left_out_and_no_rows_give_no_number() -> None:
    estimate = estimate_accuracy(np.array([[0.8, 0.2], [np.nan, np.nan]]))
    assert estimate is not None
    assert estimate.accuracy == pytest.approx(0.8)
    assert estimate.num_rows == 1
    assert estimate_accuracy(np.full((3, 2), np.nan)) is None
    assert estimate_accuracy(np.zeros((0, 2))) is None
