"""Random streams: the state of Python's, NumPy's and torch's global generators as a checkpoint can hold it."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np


def random_state() -> dict[str, Any]:
    """The state of the global streams of this process, torch's only if it is loaded: tensors and JSON scalars."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, np.int64), "gauss": gauss},
        "numpy": {**numpy, "state": dict(numpy["state"])},
    }
    if torch := sys.modules.get("torch"):
        state["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Continue the global streams of this process where `random_state` saw them."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(int(w) for w in np.asarray(python["words"])), python["gauss"]))
    np.random.set_state(numpy)
    torch = sys.modules.get("torch")
    if torch and "torch" in state:
        torch.set_rng_state(torch.as_tensor(state["torch"]))
        if torch.cuda.is_initialized() and "cuda" in state:
            torch.cuda.set_rng_state(torch.as_tensor(state["cuda"]))
