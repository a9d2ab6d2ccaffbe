"""How good and how honest probabilities are: likelihood and calibration. NumPy only.

N rows, K classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: rows with a confidence in (low, high], means over them (0 where empty)."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def softmax(logits_NK: Floats, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Probabilities, float64 (N, K)."""
    z_NK = logits_NK.astype(np.float64) / temperature
    e_NK = np.exp(z_NK - z_NK.max(axis=1, keepdims=True))
    return np.asarray(e_NK / e_NK.sum(axis=1, keepdims=True))


def nll(logits_NK: Floats, labels_N: Ints, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    z_NK = logits_NK.astype(np.float64) / temperature
    top_N1 = z_NK.max(axis=1, keepdims=True)
    log_sum_N = np.log(np.exp(z_NK - top_N1).sum(axis=1)) + top_N1[:, 0]
    return float((log_sum_N - z_NK[np.arange(len(z_NK)), labels_N]).mean())


def reliability(probabilities_NK: Floats, labels_N: Ints, num_bins: int) -> list[Bin]:
    """The reliability diagram of the top class in equal bins of confidence; rows without a label are left out."""
    known = labels_N >= 0
    p_NK, y_N = probabilities_NK[known], labels_N[known]
    confidence_N, right_N = p_NK.max(axis=1), p_NK.argmax(axis=1) == y_N
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    which_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, num_bins - 1)
    bins = []
    for number in range(num_bins):
        inside = which_N == number
        count = int(inside.sum())
        means = (float(confidence_N[inside].mean()), float(right_N[inside].mean())) if count else (0.0, 0.0)
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), count, *means))
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """ECE: Σ over bins of (rows in the bin / all rows) · |accuracy - confidence|; 0 without rows.

    Equation 3 of Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / total if total else 0.0
