"""What bit-identical resume depends on beside config, code and data; kept with every checkpoint."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from hpctool.world import World

#: what a difference means
MEANING = "every sample still counts once, but the last bits of the parameters may differ."


def fingerprint(world: World, device: torch.device) -> dict[str, Any]:
    """Library versions, threads, ranks and the kind of hardware of this attempt."""
    found = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "num_threads": torch.get_num_threads(),
        "world_size": world.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.is_deterministic_algorithms_warn_only_enabled():
        found["deterministic"] = False
    return {**found, **_of_gpus(world)} if device.type == "cuda" else found


def _of_gpus(world: World) -> dict[str, Any]:
    # In which order NCCL adds depends on how many ranks share a node.
    nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {"ranks_per_node": world.local_size, "nccl": ".".join(map(str, nccl)), "cudnn": cudnn}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed since the checkpoint: `num_threads was 1 and is 2`."""
    keys = {**now, **before}
    return [f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
