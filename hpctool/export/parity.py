"""Parity: the exported graph answers like the model it was made from, or it is not published.

N batch, K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpctool.errors import ParityError
from hpctool.export.deployed import OUTPUTS

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Gate:
    """What is asked of the graph: these batch sizes, each so many times, within this tolerance."""

    batch_sizes: Sequence[int]
    repeats: int
    tolerance: float


def check(eager: nn.Module, graph: nn.Module, x_N: Tensor, gate: Gate) -> float:
    """Compare both on batches of every size, drawn from the rows of `x_N`; the largest difference found.

    Every batch is repeated because TorchScript's executor changes kernels after the first call. Raises ParityError.
    """
    worst = 0.0
    for size in gate.batch_sizes:
        batch = x_N[torch.arange(size) % len(x_N)]
        expected = answers(eager, batch)
        for call in range(1, gate.repeats + 1):
            where = f"batch of {size}, call {call}"
            found = answers_or_refusal(graph, batch, where)
            worst = max(worst, compare(found, expected, gate.tolerance, where))
    return worst


def answers(module: nn.Module, x_N: Tensor) -> dict[str, Array]:
    """The outputs of a deployed module by name, as arrays float32 (N, K)."""
    with torch.inference_mode():
        outputs = module(x_N)
    return {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}


def answers_or_refusal(graph: nn.Module, x_N: Tensor, where: str) -> dict[str, Array]:
    """The outputs of an exported graph. Raises ParityError where it cannot take this batch."""
    try:
        return answers(graph, x_N)
    except RuntimeError as error:
        raise ParityError(f"{where}: the exported graph cannot take it: {_last_line(error)}") from error


def compare(found: dict[str, Array], expected: dict[str, Array], tolerance: float, where: str) -> float:
    """The largest difference, relative to the larger of 1 and the row's largest value. Raises ParityError beyond."""
    worst = 0.0
    for name, right_NK in expected.items():
        got_NK = found[name]
        if got_NK.shape != right_NK.shape or got_NK.dtype != right_NK.dtype:
            got, right = f"{got_NK.dtype} {got_NK.shape}", f"{right_NK.dtype} {right_NK.shape}"
            raise ParityError(f"{where}: '{name}' is {got} where {right} was expected.")
        if not right_NK.size:
            continue
        scale_N1 = np.maximum(1.0, np.abs(right_NK).max(axis=1, keepdims=True))
        difference_NK = np.abs(got_NK.astype(np.float64) - right_NK) / scale_N1
        # A NaN compares as false with everything, so what is asked is "within", never "beyond".
        outside_NK = ~(difference_NK <= tolerance)
        if outside_NK.any():
            row, column = np.argwhere(outside_NK)[0]
            rows = int(outside_NK.any(axis=1).sum())
            values = f"{got_NK[row, column]:.6g} for {right_NK[row, column]:.6g}"
            raise ParityError(
                f"{where}: '{name}' differs by up to {difference_NK.max():.2g} (allowed {tolerance:.2g}) in {rows} of "
                f"{len(right_NK)} rows; first at row {row}, column {column}: {values}."
            )
        worst = max(worst, float(difference_NK.max()))
    return worst


def check_decisions(found: dict[str, Array], expected_logits_NK: Array, tolerance: float, first_row: int) -> None:
    """The predicted classes agree on these rows; where the best two are closer than the tolerance either will do.

    Raises ParityError naming the first row that differs, counted from `first_row`.
    """
    got_N, right_N = found["logits"].argmax(axis=1), expected_logits_NK.argmax(axis=1)
    rows = np.arange(len(right_N))
    scale_N = np.maximum(1.0, np.abs(expected_logits_NK).max(axis=1))
    gap_N = (expected_logits_NK[rows, right_N] - expected_logits_NK[rows, got_N]) / scale_N
    wrong = np.flatnonzero((got_N != right_N) & ~(gap_N <= 2 * tolerance))
    if len(wrong):
        row = int(wrong[0])
        raise ParityError(
            f"The exported graph decides otherwise in {len(wrong)} of {len(rows)} rows of the split; "
            f"row {first_row + row}: class {got_N[row]} for {right_N[row]}."
        )


def _last_line(error: Exception) -> str:
    # TorchScript puts its own trace first and what happened last.
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
