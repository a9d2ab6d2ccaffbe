"""Serve a model over HTTP (Open Inference Protocol v2), and keep a journal of what it predicts.

hpctool serve serve.model=digits@production                      follows the alias; Ctrl-C ends it
hpctool serve serve.model=digits@production cluster=local serve.port=0
hpctool serve serve.model=digits@0003 cluster=slurm serve.host=0.0.0.0
"""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.serve.resolve import resolve_serve
from hpctool.serve.schema import ServeConfig as Config
from hpctool.world import World

__all__ = ["SERVICE", "STOPS", "Config", "resolve", "run"]

#: it runs until it is told to stop; asked for again, it is started again
SERVICE = True
#: answers what it has, and stops
STOPS = True


def resolve(cfg: DictConfig) -> Resolved:
    """Check the model and the limits."""
    return resolve_serve(cfg)


def run(rundir: RunDir, _world: World) -> dict[str, Any]:
    """Serve until told to stop."""
    from hpctool.serve.server import serve

    return serve(rundir, cast(Config, OmegaConf.to_object(config.typed(config.load(rundir.config_yaml), Config))))
