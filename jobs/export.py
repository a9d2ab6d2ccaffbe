"""Export a trained run as a bundle: one graph with its preprocessing, and everything to test and watch it.

hpctool export run=train-4f2a                        the bundle is named after the run's dataset
hpctool export run=train-91c0 bundle.name=digits     the best run of a sweep
hpctool export run=train-4f2a cluster=slurm          on a node of the kind that will serve it
hpctool export -m after=train-91c0 cluster=slurm     each run of a sweep, as soon as it has completed
"""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.export.resolve import resolve_export
from hpctool.export.schema import ExportConfig as Config
from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.world import World

__all__ = ["PARENT", "Config", "resolve", "run"]

#: what `after=<run|sweep>` fills
PARENT = "run"


def resolve(cfg: DictConfig) -> Resolved:
    """Pin the run and the bundle's name."""
    return resolve_export(cfg)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Publish the bundle, or find the version that has the same content. Collective: all ranks must call it."""
    from hpctool.export.pipeline import export_job

    cfg = cast(Config, OmegaConf.to_object(config.typed(config.load(rundir.config_yaml), Config)))
    return cast(dict[str, Any], world.on_main(lambda: export_job(cfg)))
