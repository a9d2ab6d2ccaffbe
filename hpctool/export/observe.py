"""One pass over the held-out rows: what the original answers, what the labels say, what the inputs look like.

N rows, K classes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hpctool.errors import InputError
from hpctool.export import parity, statistics
from hpctool.export.source import Source


@dataclass(frozen=True)
class Observed:
    """The split as the original model sees it, in order of row."""

    #: (N, K)
    logits: npt.NDArray[np.float32]
    #: (N,); -1 is missing
    labels: npt.NDArray[np.int64]
    inputs: statistics.Statistics


def observe(source: Source, module: nn.Module, batch_size: int) -> Observed:
    """Run the eager module over the split. Raises InputError where its answers are not one logit per class."""
    logits, labels, seen = [], [], []
    for x, y in source.batches(batch_size):
        answer = parity.answers(module, torch.from_numpy(x))["logits"]
        if answer.shape != (len(x), len(source.classes)):
            raise InputError(
                f"The model of {source.rundir.id} answers {len(x)} rows with the shape {answer.shape}; export takes "
                f"classifiers, one logit for each of the {len(source.classes)} classes."
            )
        logits.append(answer)
        labels.append(y)
        seen.append(statistics.input_statistics(x))
    return Observed(
        np.concatenate(logits).astype(np.float32),
        np.concatenate(labels).astype(np.int64),
        {name: np.concatenate([part[name] for part in seen]) for name in seen[0]},
    )


def check_decisions(source: Source, graph: nn.Module, seen: Observed, batch_size: int, tolerance: float) -> None:
    """The exported graph decides every row of the split as the original did. Raises ParityError."""
    first = 0
    for x, _ in source.batches(batch_size):
        found = parity.answers_or_refusal(graph, torch.from_numpy(x), f"rows {first} to {first + len(x) - 1}")
        parity.check_decisions(found, seen.logits[first : first + len(x)], tolerance, first)
        first += len(x)
