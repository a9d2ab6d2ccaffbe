"""Predict a whole dataset version with a bundle, into the journal that a server would write.

hpctool score data.name=digits score.model=digits@production
hpctool score data.name=digits@v2 data.split=test score.model=digits@0003 score.source=test
hpctool score data.name=digits@v2 score.model=export-4f2a        the bundle that this run has exported
hpctool score data.name=scans score.model=scans cluster=slurm resources.tasks_per_node=8
"""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.serve.resolve import resolve_score
from hpctool.serve.schema import ScoreConfig as Config
from hpctool.world import World

__all__ = ["PARENT", "STOPS", "Config", "resolve", "run"]

#: what `after=<run>` fills: an export
PARENT = "score.model"
#: stops between batches, and goes on from what is written
STOPS = True


def resolve(cfg: DictConfig) -> Resolved:
    """Pin dataset version and model version, and check that they fit."""
    return resolve_score(cfg)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Score what is missing. Collective: all ranks must call it."""
    from hpctool.serve.score import score

    cfg = cast(Config, OmegaConf.to_object(config.typed(config.load(rundir.config_yaml), Config)))
    return score(rundir, world, cfg)
