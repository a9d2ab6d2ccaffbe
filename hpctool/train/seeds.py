"""Random numbers: where each stream begins.

The model's initial values come from the seed alone and are equal on all ranks. After that every rank draws from
streams of its own (dropout must not repeat itself over the ranks), and each rank's state is in the checkpoint.
"""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(*entropy: int) -> None:
    """Start Python's, NumPy's and torch's (CPU and CUDA) global streams from these numbers and nothing else."""
    first, second, third = (int(word) for word in np.random.SeedSequence(entropy).generate_state(3, np.uint32))
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)
