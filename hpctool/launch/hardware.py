"""What machine an attempt runs on, as two runs are compared by it: processor, cores, GPUs. No program is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
#: the driver's own words, one folder for each GPU of the machine; a job may see fewer of them
_GPUS = Path("/proc/driver/nvidia/gpus")


def hardware(cpuinfo: Path = _CPUINFO, gpus: Path = _GPUS) -> dict[str, Any]:
    """`cpu` the processor's name, `num_cpus` those this process may use, `gpus` the names of the machine's GPUs."""
    return {"cpu": _cpu(cpuinfo), "num_cpus": len(os.sched_getaffinity(0)), "gpus": _gpu_names(gpus)}


def _cpu(path: Path) -> str:
    for line in _lines(path):
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu"):
            return " ".join(value.split())
    return os.uname().machine


def _gpu_names(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.glob("*/information")):
        found += [line.partition(":")[2].strip() for line in _lines(path) if line.startswith("Model:")]
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
