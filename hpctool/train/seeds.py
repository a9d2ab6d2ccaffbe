"""Random numbers: where each stream begins, and its state as a checkpoint can hold it.

The model's initial values come from the seed alone and are equal on all ranks. After that every rank draws from
streams of its own (dropout must not repeat itself over the ranks), and each rank's state is in the checkpoint.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(*entropy: int) -> None:
    """Start Python's, NumPy's and torch's (CPU and CUDA) global streams from these numbers and nothing else."""
    first, second, third = (int(word) for word in np.random.SeedSequence(entropy).generate_state(3, np.uint32))
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of all global streams of this rank, as tensors and JSON scalars."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, np.int64), "gauss": gauss},
        "numpy": {**numpy, "state": dict(numpy["state"])},
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue all global streams of this rank where `rng_state` saw them."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(int(w) for w in np.asarray(python["words"])), python["gauss"]))
    np.random.set_state(numpy)
    torch.set_rng_state(torch.as_tensor(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(torch.as_tensor(state["cuda"]), device)
