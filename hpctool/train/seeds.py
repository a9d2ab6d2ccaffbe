"""Random numbers: where each stream begins.

The model's initial values come from the seed alone and are equal on all ranks. After that every rank draws from
streams of its own (dropout must not repeat itself over the ranks), and each rank's state is in the checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch


def seed_everything(*entropy: int) -> None:
    """Start Python's, NumPy's and torch's (CPU and CUDA) global streams from these numbers and nothing else."""
    torch.manual_seed(_seed_others(entropy))


def seed_host(*entropy: int) -> None:
    """The same but for CUDA: what is drawn from on a GPU goes on as if nothing was."""
    torch.default_generator.manual_seed(_seed_others(entropy))


def _seed_others(entropy: Sequence[int]) -> int:
    """Start Python's and NumPy's streams; the number for torch's."""
    first, second, third = (int(word) for word in np.random.SeedSequence(entropy).generate_state(3, np.uint32))
    random.seed(first)
    np.random.seed(second)
    return third
