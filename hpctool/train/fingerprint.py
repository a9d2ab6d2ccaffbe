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
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "num_threads": torch.get_num_threads(),
        "world_size": world.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed since the checkpoint: `num_threads was 1 and is 2`."""
    return [f"{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]]
