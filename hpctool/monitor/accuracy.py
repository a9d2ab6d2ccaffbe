"""How accurate a model is on rows without labels, as far as its probabilities can be believed.

N rows, K classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: Said wherever the number is said.
ASSUMPTION = (
    "This holds as far as the probabilities are still calibrated, which nobody can know without labels: "
    "under drift a model is often surer than it should be, and the true accuracy lower. Reviewed rows tell."
)
_Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """An accuracy without labels; the interval is for the accuracy of these very rows, 95 %."""

    accuracy: float
    low: float
    high: float
    #: rows with probabilities that are numbers
    num_rows: int


def estimate_accuracy(probabilities_NK: npt.NDArray[np.floating[Any]]) -> Estimate | None:
    """Confidence-based performance estimation: the mean of the largest calibrated probabilities; None without rows.

    A row is right with probability p = its confidence, so the number of right rows is Poisson binomial with variance
    Σ p (1 - p); the normal interval is widened by half a row. After NannyML's CBPE.
    """
    p_N = probabilities_NK.max(axis=1).astype(np.float64) if len(probabilities_NK) else np.zeros(0)
    p_N = p_N[np.isfinite(p_N)]
    if not len(p_N):
        return None
    mean = float(p_N.mean())
    half = (_Z95 * float(np.sqrt((p_N * (1 - p_N)).clip(0).sum())) + 0.5) / len(p_N)
    return Estimate(min(1.0, mean), max(0.0, mean - half), min(1.0, mean + half), len(p_N))
