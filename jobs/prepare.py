"""Bring data in and commit it as a version of a dataset.

    hpctool prepare data.name=digits source=digits data.tag=v1
    hpctool prepare data.name=faces source=imagefolder source.path=photos source.size=[64,64]
    hpctool prepare data.name=wine source=csv source.path=wine.csv source.label=quality
    hpctool prepare data.name=scans source=own source._target_=myproject.Scans cluster=slurm resources.tasks_per_node=8

Ranks share the work; the version is the same for any number of them. conf/source/ has every kind of source.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from hpctool.data import prepare
from hpctool.data.schema import PrepareConfig as Config
from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.world import World

__all__ = ["STOPS", "Config", "resolve", "run"]

#: stops between row groups, and goes on from what is written
STOPS = True


def resolve(cfg: DictConfig) -> Resolved:
    """Check names, splits and source; pin the source's content."""
    return prepare.resolve(cfg)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Import and commit. Collective: all ranks must call it."""
    return prepare.run(rundir, world)
