"""What a rank needs to compute like its others: determinism, a device, and a word for peers that are gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hpctool.checkpoint.streams import random_state, set_random_state
from hpctool.errors import InputError
from hpctool.world import TorchWorld, World


def be_deterministic(num_threads: int) -> None:
    """Make torch compute the same from the same, or say that it cannot. For this process, from now on."""
    # cuBLAS reads this when it is first used; without it torch refuses matrix products on GPUs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # It would fill all new memory with NaN before it is used, a tenth of a step, to show code that reads what it never
    # wrote; what is computed from written memory stays the same.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_of(world: World) -> torch.device:
    """Where this rank computes. Raises InputError for ranks that torch cannot join."""
    if isinstance(world, TorchWorld):
        return world.device
    if world.size > 1:
        raise InputError(f"train joins its ranks by torch, not by {world.backend}: start it with world 'torch'.")
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Run a block after which parameters, buffers, gradients and random streams are as they were before it."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    streams = random_state()
    yield
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(before[name])
    model.zero_grad(set_to_none=True)
    set_random_state(streams)
