"""Train a model on a version of a dataset; killed and started again, it ends with the same bits.

hpctool train data.name=digits
hpctool train data.name=digits model=cnn optim.lr=1e-2 loop.max_epochs=10
hpctool train -m cluster=local data.name=digits model=mlp,cnn optim.lr=1e-3,3e-3,1e-2
hpctool train cluster=slurm data.name=digits resources.nodes=2 resources.tasks_per_node=4
hpctool train --config-dir conf data.name=digits model=mine
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.train.resolve import TRAIN_STAGES as STAGES
from hpctool.train.resolve import measured_at, resolve_train
from hpctool.train.schema import TrainConfig as Config
from hpctool.world import World

__all__ = ["NEEDS_TORCH", "STAGES", "STOPS", "Config", "measured_at", "resolve", "run"]

#: ranks are joined by torch, whoever started them
NEEDS_TORCH = True
#: saves and stops at a step boundary
STOPS = True


def resolve(cfg: DictConfig) -> Resolved:
    """Pin the dataset version and check budget, batch and targets."""
    return resolve_train(cfg)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Train to the end of the budget."""
    from hpctool.train.loop import train

    return train(rundir, world)
