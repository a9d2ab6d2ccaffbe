"""Calibration: the temperature that was hidden is found, and rows that cannot tell leave it alone."""

from __future__ import annotations

import numpy as np
import pytest

from hpctool.export import calibration
from hpctool.train.scores import Bin, Floats, Ints, expected_calibration_error, nll, reliability, softmax


def drawn(num_rows: int = 4000, num_classes: int = 5) -> tuple[Floats, Ints]:
    """Logits that say exactly how sure one may be, and labels drawn from them."""
    rng = np.random.default_rng(0)
    logits_NK = rng.normal(0, 2, (num_rows, num_classes))
    p_NK = softmax(logits_NK)
    labels_N = np.array([rng.choice(num_classes, p=p) for p in p_NK])
    return logits_NK, labels_N


@pytest.mark.parametrize("hidden", [0.3, 1.0, 4.0])
def test_the_hidden_temperature_is_found(hidden: float) -> None:
    logits_NK, labels_N = drawn()
    fit = calibration.fit_temperature((logits_NK * hidden).astype(np.float32), labels_N)
    assert fit.temperature == pytest.approx(hidden, rel=0.06)
    assert fit.note == ""


def test_calibration_lowers_loss_and_error_and_changes_no_decision() -> None:
    logits_NK, labels_N = drawn()
    found = calibration.report(logits_NK * 3, labels_N, calibration.fit_temperature(logits_NK * 3, labels_N), 15)
    assert found["nll_after"] < found["nll_before"]
    assert found["ece_after"] < 0.03 < found["ece_before"]
    assert found["accuracy"] == pytest.approx((logits_NK.argmax(1) == labels_N).mean())


def test_no_other_temperature_is_better() -> None:
    logits_NK, labels_N = drawn(500)
    best = calibration.fit_temperature(logits_NK * 2, labels_N).temperature
    loss = nll(logits_NK * 2, labels_N, best)
    assert all(loss <= nll(logits_NK * 2, labels_N, t) for t in np.geomspace(0.05, 20, 400))


def test_rows_without_a_label_are_left_out() -> None:
    logits_NK, labels_N = drawn(600)
    labels_N[::3] = -1
    known = labels_N >= 0
    whole = calibration.fit_temperature(logits_NK * 2, labels_N)
    assert whole == calibration.fit_temperature(logits_NK[known] * 2, labels_N[known])
    assert calibration.report(logits_NK, labels_N, whole, 15)["num_rows"] == 400


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        ([[1.0, 0.0]] * 3, [-1, -1, -1], "no row has a label"),
        ([[1.0]] * 3, [0, 0, 0], "only one class"),
        ([[2.0, 0.0], [0.0, 0.1]], [0, 1], "all 2 answers are right"),
        ([[2.0, 0.0], [0.0, 2.0]], [1, 0], "no better than guessing"),
    ],
)
def test_rows_that_cannot_tell_leave_the_temperature_at_one(
    logits: list[list[float]], labels: list[int], reason: str
) -> None:
    fit = calibration.fit_temperature(np.array(logits), np.array(labels))
    assert fit.temperature == 1.0
    assert reason in fit.note
    calibration.report(np.array(logits), np.array(labels), fit, 15)


def test_huge_logits_do_not_overflow() -> None:
    logits_NK, labels_N = drawn(300)
    assert np.isfinite(nll(logits_NK * 1e5, labels_N))
    assert np.isfinite(softmax(logits_NK * 1e5)).all()


def test_the_error_is_the_weighted_distance_of_confidence_and_accuracy() -> None:
    probabilities_NK = np.array([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4], [0.6, 0.4], [0.5, 0.5]])
    bins = reliability(probabilities_NK, np.array([0, 1, 0, 0, -1]), 10)
    assert bins[9] == Bin(0.9, 1.0, 2, pytest.approx(0.95), 0.5)  # type: ignore[arg-type]
    assert sum(b.count for b in bins) == 4
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.45 + 2 * 0.4) / 4)
