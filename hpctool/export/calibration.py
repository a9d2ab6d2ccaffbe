"""Calibration: one temperature, so that "90 % sure" is right nine times in ten. NumPy and SciPy only.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks"): probabilities are
softmax(logits / T); T minimises the negative log-likelihood of held-out rows. In β = 1/T it is convex.

N rows, K classes
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hpctool.train.scores import Floats, Ints, expected_calibration_error, nll, reliability, softmax

#: Where the temperature is looked for. An optimum outside says that the rows cannot tell.
LOWEST, HIGHEST = 0.02, 50.0


@dataclass(frozen=True)
class Fit:
    """A temperature, and in `note` why it was left at 1 where that is so."""

    temperature: float
    note: str = ""


def fit_temperature(logits_NK: Floats, labels_N: Ints) -> Fit:
    """The temperature of held-out rows; rows without a label (-1) are left out.

    1.0 with a note where the rows cannot tell: none labelled, one class, or a likelihood without a minimum
    (all answers right, or no better than guessing).
    """
    from scipy.optimize import minimize_scalar

    known = labels_N >= 0
    z_NK, y_N = logits_NK[known].astype(np.float64), labels_N[known]
    if len(y_N) == 0:
        return Fit(1.0, "no row has a label")
    if z_NK.shape[1] < 2:
        return Fit(1.0, "there is only one class")
    bounds = (float(np.log(LOWEST)), float(np.log(HIGHEST)))
    # `bounded` is Brent's method: no starting point, no step size, the same answer on every machine up to rounding.
    found = minimize_scalar(lambda t: nll(z_NK, y_N, float(np.exp(t))), bounds=bounds, method="bounded")
    edge = 0.01
    if found.x < bounds[0] + edge or bool((z_NK.argmax(1) == y_N).all()):
        return Fit(1.0, f"all {len(y_N)} answers are right, so there is no mistake to learn doubt from")
    if found.x > bounds[1] - edge:
        return Fit(1.0, f"the {len(y_N)} answers are no better than guessing")
    return Fit(float(np.exp(found.x)))


def report(logits_NK: Floats, labels_N: Ints, fit: Fit, num_bins: int) -> dict[str, Any]:
    """What a bundle says of its calibration: before (T = 1) and after, JSON values."""
    known = labels_N >= 0
    z_NK, y_N = logits_NK[known], labels_N[known]
    before = reliability(softmax(z_NK), y_N, num_bins)
    after = reliability(softmax(z_NK, fit.temperature), y_N, num_bins)
    return {
        "temperature": fit.temperature,
        "note": fit.note,
        "num_rows": len(y_N),
        "accuracy": float((z_NK.argmax(axis=1) == y_N).mean()) if len(y_N) else None,
        "nll_before": nll(z_NK, y_N) if len(y_N) else None,
        "nll_after": nll(z_NK, y_N, fit.temperature) if len(y_N) else None,
        "ece_before": expected_calibration_error(before),
        "ece_after": expected_calibration_error(after),
        "bins": [asdict(b) for b in after],
    }
