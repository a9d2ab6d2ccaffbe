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


def be_deterministic(num_threads: int, strictly: bool = True) -> None:
    """Make torch compute the same from the same, or say that it cannot. For this process, from now on.

    `strictly`: operations that can only do otherwise, as some on GPUs, raise; else they warn.
    """
    # cuBLAS reads this when it is first used; without it matrix products may come to other bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Sums within a switch (NVLink SHARP) come in no fixed order; read when a communicator is made, with the first sum.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True, warn_only=not strictly)
    # It would fill all new memory with NaN before it is used, a tenth of a step, to show code that reads what it never
    # wrote; what is computed from written memory stays the same.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def explained() -> Iterator[None]:
    """Say how to have what torch refuses because it cannot compute it the same twice. Raises InputError."""
    try:
        yield
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
        if not refused:
            raise
        raise InputError(
            f"The run computes {operation}, which torch cannot do the same way twice here. Have another one in its "
            "place, or allow it with loop.deterministic=false: then resume is no longer exact to the bit."
        ) from error


def device_of(world: World) -> torch.device:
    """Where this rank computes. Raises InputError for ranks that torch cannot join."""
    if isinstance(world, TorchWorld):
        return world.device
    if world.size > 1:
        raise InputError(f"train joins its ranks by torch, not by {world.backend}: start it with world 'torch'.")
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Run passes after which buffers, gradients and random streams are as they were before them.

    Parameters are not copied, for which a GPU may have no room: no pass may change them. Raises InputError if one does.
    """
    before = {name: value.clone() for name, value in model.named_buffers()}
    versions = {name: one._version for name, one in model.named_parameters()}
    streams = random_state()
    yield
    if changed := [name for name, one in model.named_parameters() if one._version != versions[name]]:
        raise InputError(
            f"The model changes its parameter '{changed[0]}' in its own forward pass. Each attempt on several ranks "
            "begins with passes that do not count, so nothing could go on exactly. Keep such values in a buffer "
            "(register_buffer), or change them in the optimizer."
        )
    with torch.no_grad():
        for name, value in model.named_buffers():
            value.copy_(before[name])
    model.zero_grad(set_to_none=True)
    set_random_state(streams)
