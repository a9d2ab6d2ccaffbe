"""Golden rows: inputs with the original's answers, so that a bundle can test itself wherever it is loaded.

golden.npz holds `input` (N, …) and `probabilities`, `logits` (N, K) float32, and `uid` (N,): the rows' names in the
dataset, `black` and `white` for the two images that no dataset has.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.errors import CorruptError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Golden:
    """Inputs, the answers they must get (by output's name), and the rows' names."""

    inputs: Array
    outputs: dict[str, Array]
    uids: list[str]


def choose_rows(margins_N: npt.NDArray[np.floating[Any]], num_rows: int) -> npt.NDArray[np.int64]:
    """Positions of the rows to keep: half the hardest (least margin), half spread evenly over the rest; sorted."""
    order = np.argsort(margins_N, kind="stable")
    num_rows = min(num_rows, len(order))
    hardest, rest = order[: (num_rows + 1) // 2], order[(num_rows + 1) // 2 :]
    spread = rest[np.linspace(0, len(rest) - 1, num_rows - len(hardest)).astype(np.int64)] if len(rest) else rest
    return np.sort(np.concatenate([hardest, spread]).astype(np.int64))


def with_edges(inputs: Array, uids: list[str]) -> tuple[Array, list[str]]:
    """The rows, and for images one all black and one all white; for other rows one of zeros."""
    if inputs.dtype == np.uint8 and inputs.ndim == 4:
        edges, names = [np.zeros_like(inputs[:1]), np.full_like(inputs[:1], 255)], ["black", "white"]
    else:
        edges, names = [np.zeros_like(inputs[:1])], ["zeros"]
    return np.concatenate([inputs, *edges]), [*uids, *names]


def to_bytes(golden: Golden) -> bytes:
    """The content of golden.npz; the same rows give the same bytes. No pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, input=golden.inputs, uid=np.array(golden.uids), **golden.outputs)
    return buffer.getvalue()


def read(path: Path) -> Golden:
    """The golden rows of a bundle. Raises CorruptError."""
    try:
        # Through memory: np.load leaves a file open that it cannot read.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        inputs, uids = arrays.pop("input"), arrays.pop("uid").tolist()
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CorruptError(path, f"it holds no golden rows ({error})") from error
    return Golden(inputs, arrays, uids)
