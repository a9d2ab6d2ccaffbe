"""May a new model take the old one's place? A paired test on the same rows, overall and for each class.

    hpctool gate gate.keep_old=evaluate-1a2b gate.keep_new=evaluate-3c4d
    hpctool gate gate.keep_old=… gate.keep_new=… gate.improve_old=… gate.improve_new=…

Ends with exit code 1 where the gate stays shut, so that `afterok` means something.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from hpctool.flywheel.schema import GateConfig as Config
from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.world import World

__all__ = ["Config", "resolve", "run"]


def resolve(cfg: DictConfig) -> Resolved:
    """Pin the evaluations."""
    from hpctool.flywheel.loop import resolve_gate

    return resolve_gate(cfg)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Judge. Collective: all ranks must call it."""
    from hpctool.flywheel.loop import run_gate

    result: dict[str, Any] = world.on_main(lambda: run_gate(rundir))
    return result
