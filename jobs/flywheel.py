"""Go once round the loop: data, train, export, serve, watch, review, relabel, retrain, gate, promote.

    hpctool flywheel experiment=digits                 the whole loop on the handwritten digits, in minutes, on a laptop
    hpctool flywheel experiment=digits cluster=slurm   a chain of jobs, from the data to the monitor's report

Killed anywhere and started again it goes on where it was; started once more it finds everything again and says so.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from hpctool.flywheel.chain import chain
from hpctool.flywheel.schema import FlywheelConfig as Config
from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.world import World

__all__ = ["SERVICE", "Config", "chain", "resolve", "run"]

#: A second start goes through the stages again; each finds what is there.
SERVICE = True


def resolve(cfg: DictConfig) -> Resolved:
    """Nothing can be pinned yet: the stages do that, one by one."""
    return Resolved()


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Tell the story, on one rank."""
    from hpctool.flywheel.loop import run_flywheel

    return run_flywheel(rundir)
