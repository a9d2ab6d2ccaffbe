"""Class prior: predicted shares, and the true ones behind them."""

from __future__ import annotations

import numpy as np
import pytest

from hpctool.monitor import prior


def test_rows_without_numbers_are_counted_as_no_class() -> None:
    probabilities = np.array([[0.9, 0.1], [np.nan, 0.5], [0.2, 0.8], [0.7, 0.3]], np.float32)
    assert prior.predicted_counts(probabilities).tolist() == [2, 1, 1]


def test_true_shares_are_found_through_a_confused_model() -> None:
    confusion = np.array([[80, 20, 0], [10, 70, 20], [0, 30, 70]])
    truth = np.array([0.6, 0.3, 0.1])
    predicted = np.round((confusion / 100).T @ truth * 100_000).astype(np.int64)
    shares, reason = prior.true_shares(confusion, predicted)
    assert shares == pytest.approx(truth, abs=1e-3)
    assert reason == ""


def test_shares_are_never_negative() -> None:
    shares, _ = prior.true_shares(np.array([[90, 10], [10, 90]]), np.array([99, 1]))
    assert shares == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("confusion", "predicted", "reason"),
    [
        ([[51, 49], [50, 50]], [9, 1], "confuses"),
        ([[50, 50], [50, 50]], [9, 1], "confuses"),
        ([[50, 1], [0, 4]], [9, 1], "fewer than 5"),
        ([[50, 1], [0, 50]], [0, 0], "nothing was predicted"),
    ],
)
def test_what_cannot_be_told_is_not_told(confusion: list[list[int]], predicted: list[int], reason: str) -> None:
    shares, said = prior.true_shares(np.array(confusion), np.array(predicted))
    assert shares is None
    assert reason in said
