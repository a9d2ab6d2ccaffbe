"""reference.json: what a monitor compares later traffic with, counted once and without any raw data.

inputs, outputs   statistic → {edges, counts, num_missing}: fixed quantile bins (statistics.py)
predicted, labels rows per class         confusion  rows, true class × predicted class
calibration       temperature, ECE and NLL before and after, reliability bins (calibration.py)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hpctool.export import calibration, statistics
from hpctool.export.deployed import Deployed


def reference(
    inputs: statistics.Statistics,
    logits_NK: npt.NDArray[np.float32],
    labels_N: npt.NDArray[np.int64],
    fit: calibration.Fit,
    *,
    split: str,
    num_bins: int,
    num_calibration_bins: int,
) -> dict[str, Any]:
    """The content of reference.json without its format; a label of -1 is missing and counts in no class."""
    # As they are served, in float32: near 1 it holds a value every 6e-8, and finer bins would never be met again.
    served = Deployed(torch.nn.Identity(), torch.nn.Identity(), fit.temperature)
    outputs = statistics.output_statistics(served(torch.from_numpy(logits_NK))[0].numpy())
    num_classes = logits_NK.shape[1]
    predicted_N = logits_NK.argmax(axis=1)
    known = labels_N >= 0
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (labels_N[known], predicted_N[known]), 1)
    return {
        "split": split,
        "num_rows": len(labels_N),
        "num_labelled": int(known.sum()),
        "inputs": {name: statistics.histogram(values, num_bins) for name, values in inputs.items()},
        "outputs": {name: statistics.histogram(values, num_bins) for name, values in outputs.items()},
        "predicted": np.bincount(predicted_N, minlength=num_classes).tolist(),
        "labels": np.bincount(labels_N[known], minlength=num_classes).tolist(),
        "confusion": confusion.tolist(),
        "calibration": calibration.report(logits_NK, labels_N, fit, num_calibration_bins),
    }
