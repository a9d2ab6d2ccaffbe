"""One worker of a search, which trains trials until there is nothing left to find out.

hpctool search --cfg job                             what a search takes
hpctool train -m search=asha search.budget.max_trials=50 'optim.lr=tag(log,interval(1e-5,1e-1))'

The second submits an array of these; nobody starts one by hand.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from hpctool.errors import InputError
from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.search.schema import WorkerConfig as Config
from hpctool.world import World

__all__ = ["STOPS", "Config", "resolve", "run"]

#: a trial stops where its own job does, saved, and the worker with it
STOPS = True


def resolve(cfg: DictConfig) -> Resolved:
    """A worker belongs to a search, which is what one submits."""
    if cfg.sweep is None:
        raise InputError("A worker is submitted by its search: hpctool train -m search=asha search.metric=… key=…")
    return Resolved()


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Work for the search until there is nothing left to begin. Collective: all ranks must call it."""
    from hpctool.search import worker

    return worker.run(rundir, world)
