"""The class prior: how often each class is predicted, and how often it truly occurs if only that has changed.

N rows, K classes
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

Floats = npt.NDArray[np.floating[Any]]

#: Beyond this condition number the estimate says more about noise than about classes.
MAX_CONDITION = 20.0
#: Labelled reference rows that each class needs, or its column of the confusion matrix is a guess.
MIN_CLASS_ROWS = 5


def predicted_counts(probabilities_NK: Floats) -> npt.NDArray[np.int64]:
    """Rows predicted as each class, and last those whose probabilities are not numbers: int64 (K + 1,)."""
    known_NK = probabilities_NK[np.isfinite(probabilities_NK).all(axis=1)]
    counts_K = np.bincount(known_NK.argmax(axis=1), minlength=probabilities_NK.shape[1])
    return np.append(counts_K, len(probabilities_NK) - len(known_NK))


def true_shares(
    confusion_KK: npt.NDArray[np.int64], predicted_K: npt.NDArray[np.int64]
) -> tuple[list[float] | None, str]:
    """The share of each class in truth, and otherwise None with the reason why it cannot be told.

    Lipton et al. 2018, "Detecting and Correcting for Label Shift with Black Box Predictors": solves C w = predicted
    shares, C the reference's P(predicted | true), for shares that are not negative. Right only where each class still
    looks as it did.
    """
    rows_K = confusion_KK.sum(axis=1)
    if predicted_K.sum() == 0:
        return None, "nothing was predicted"
    if rows_K.min() < MIN_CLASS_ROWS:
        return None, f"a class has fewer than {MIN_CLASS_ROWS} labelled rows in the reference"
    given_KK = (confusion_KK / rows_K[:, None]).T
    condition = float(np.linalg.cond(given_KK))
    if not condition <= MAX_CONDITION:
        return None, f"the model confuses the classes too much (condition number {condition:.0f})"
    shares_K, _ = optimize.nnls(given_KK, predicted_K / predicted_K.sum())
    return [float(share) for share in shares_K / shares_K.sum()], ""
