"""Measure a trained run on samples that it has not seen: accuracy, per-class report, confusion matrix, calibration.

hpctool evaluate run=train-4f2a
hpctool evaluate run=train-90ab metric=val/loss mode=min     the best run of a sweep
hpctool evaluate run=train-4f2a data.name=digits@v2 data.split=production
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from hpctool.launch.job import Resolved
from hpctool.rundir import RunDir
from hpctool.train.resolve import resolve_evaluate
from hpctool.train.schema import EvaluateConfig as Config
from hpctool.world import World

__all__ = ["NEEDS_TORCH", "PARENT", "Config", "resolve", "run"]

#: ranks are joined by torch, whoever started them
NEEDS_TORCH = True
#: what `after=<run|sweep>` fills
PARENT = "run"


def resolve(cfg: DictConfig) -> Resolved:
    """Pin the run (of a sweep: its best) and the dataset version."""
    return resolve_evaluate(cfg)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Predict, measure and write the report."""
    from hpctool.train.evaluate import evaluate

    return evaluate(rundir, world)
