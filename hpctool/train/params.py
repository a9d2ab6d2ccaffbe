"""From a run's config to its model, task and optimizer; and from a run's folder to the trained model."""

from __future__ import annotations

from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from hpctool import config
from hpctool.checkpoint import Checkpointer
from hpctool.errors import InputError
from hpctool.rundir import RunDir
from hpctool.train.augment import Augment
from hpctool.train.schema import TrainConfig
from hpctool.train.task import Task
from hpctool.world import World


def read_config(rundir: RunDir) -> TrainConfig:
    """A training run's config.yaml as plain typed objects. Raises FileNotFoundError, ConfigError."""
    return cast(TrainConfig, read_as(rundir, "train", TrainConfig))


def read_as(rundir: RunDir, job: str, schema: type) -> Any:
    """A run's config.yaml as an object of `schema`; keys that are newer than the run have today's defaults."""
    cfg = config.typed(config.load(rundir.config_yaml), schema)
    if newer := OmegaConf.missing_keys(cfg):
        defaults = config.compose(job).cfg
        for key in newer:
            config.set_value(cfg, key, OmegaConf.select(defaults, key))
    return OmegaConf.to_object(cfg)


def build_model(cfg: TrainConfig) -> nn.Module:
    """The model that `model._target_` names, with initial values from the current random stream, on the CPU."""
    return cast(nn.Module, instantiate(cfg.model, _convert_="all"))


def build_task(cfg: TrainConfig) -> Task:
    """The task that `task._target_` names."""
    return cast(Task, instantiate(cfg.task, _convert_="all"))


def build_augment(cfg: TrainConfig) -> Augment | None:
    """What `augment._target_` names, None where there is none."""
    return cast("Augment | None", cfg.augment and instantiate(cfg.augment, _convert_="all"))


def build_optimizer(cfg: Any, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `cfg._target_` names, over all parameters of a module."""
    return cast(torch.optim.Optimizer, instantiate(cfg, _partial_=True, _convert_="all")(module.parameters()))


def build_checkpointer(cfg: TrainConfig, rundir: RunDir, world: World) -> Checkpointer:
    """The attempt's checkpoints as `loop` wants them kept. Collective."""
    return Checkpointer(
        rundir,
        world,
        cfg.loop.keep_last,
        keep_top=cfg.loop.keep_top,
        keep_every_steps=cfg.loop.keep_every_steps,
        checksums=cfg.loop.checkpoint_checksums,
        reserve=cfg.loop.checkpoint_reserve,
        params="model",
    )


def load_params(rundir: RunDir) -> tuple[nn.Module, int]:
    """The run's model in eval mode on the CPU, and the step that its parameters are of.

    They are those of the last step, or of the best where the run was made with loop.keep_best=true; with loop.ema
    their moving average. Read from the newest checkpoint that is whole; nothing on disk is changed, so a colleague's
    run will do. Raises InputError for a run without a checkpoint, CorruptError, NewerFormat.
    """
    restored = Checkpointer(RunDir(rundir.path), World()).restore()
    if restored is None:
        raise InputError(f"Run {rundir.id} has no checkpoint yet, so there is no model to load.")
    model = build_model(read_config(rundir))
    values, step = kept_params(restored.state)
    model.load_state_dict(values)
    return model.eval(), step


def kept_params(state: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The parameters and buffers that are the run's result, out of a checkpoint's state, and their step."""
    best = state["best"]
    if best.get("params") is not None:
        return best["params"], best["step"]
    averaged = state["ema"] or {}
    # As average.py names them; its counter is `n_averaged`.
    values = {name.removeprefix("module."): value for name, value in averaged.items() if name != "n_averaged"}
    return values or state["model"], state["step"]
