"""A training of nine steps that takes milliseconds: its loss is known, and it stops and resumes like a real one."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, DictConfig

from hpctool import config, files
from hpctool.errors import Stopped
from hpctool.launch import signals
from hpctool.launch.job import Resolved
from hpctool.launch.schema import JobConfig
from hpctool.rundir import RunDir
from hpctool.track.metrics import MetricWriter
from hpctool.world import World

STOPS = True
NUM_STEPS = 9


@dataclass
class Config(JobConfig):
    """What a toy takes."""

    x: float = MISSING
    kind: str = MISSING
    fail: str = MISSING
    metric: str = MISSING
    step_s: float = MISSING


def resolve(cfg: DictConfig) -> Resolved:
    """Nothing is pinned."""
    return Resolved()


def measured_at(cfg: DictConfig) -> tuple[int, int]:
    """Every step is measured."""
    return NUM_STEPS, 1


def loss(x: float, kind: str, step: int) -> float:
    """What a training with these values has come to at a step: the best is x = 0.3 of kind b."""
    return (x - 0.3) ** 2 + (0.0 if kind == "b" else 0.2) + 1 / (step + 1)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Take nine steps; what is done is kept in a file of the run."""
    cfg = config.load(rundir.config_yaml)
    kept = rundir.artifact("step.json")
    step = json.loads(kept.read_text())["step"] if kept.exists() else 0
    if cfg.fail:
        raise {"ValueError": ValueError, "MemoryError": MemoryError}[cfg.fail](f"x is {cfg.x}")
    rundir.ledger.append({"kind": "resumed", "attempt": rundir.attempt, "step": step})
    with MetricWriter(rundir, world) as writer:
        while step < NUM_STEPS:
            step += 1
            time.sleep(cfg.step_s)
            value = float("nan") if cfg.metric == "nan" else loss(cfg.x, cfg.kind, step)
            writer.log(step, {"other": 0.0})
            writer.log(step, {"loss" if cfg.metric == "nan" else cfg.metric: value})
            if signals.stop_requested():
                writer.flush()
                files.write_json(kept, {"step": step})
                raise Stopped(signals.stop_cause(), step, saved=True)
    files.write_json(kept, {"step": step})
    return {"step": step, "metrics": {} if cfg.metric == "nan" else {cfg.metric: value}}
