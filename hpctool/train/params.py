"""From a run's config to its model, task and optimizer; and from a run's folder to the trained model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from hpctool import config
from hpctool.checkpoint import Checkpointer, param_digest
from hpctool.checkpoint.tensors import kind_of
from hpctool.errors import InputError, listing
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
    values, step, where = trained_values(rundir)
    model = build_model(read_config(rundir))
    check_model(model, values, where)
    model.load_state_dict(values)
    return model.eval(), step


def trained_values(rundir: RunDir) -> tuple[dict[str, Any], int, str]:
    """The parameters and buffers that a run has come to, their step, and words for where they were found.

    Raises as `load_params` does.
    """
    restored = Checkpointer(RunDir(rundir.path), World()).restore()
    if restored is None:
        raise InputError(f"Run {rundir.id} has no checkpoint yet, so there is no model to load.")
    return *kept_params(restored.state), f"The checkpoint {restored.path.name} of run {rundir.id}"


def check_storable(model: nn.Module) -> None:
    """Raises InputError for a model with a state that is no tensor: by tensors it is compared, kept and exported."""
    for name, value in model.state_dict().items():
        if kind_of(value) is None:
            raise InputError(
                f"The model's state '{name}' is a {type(value).__name__}, and only tensors are kept of a model. Let "
                "get_extra_state give a tensor, or hold it as a buffer (register_buffer)."
            )


def check_model(model: nn.Module, values: Mapping[str, Any], where: str) -> None:
    """Raises InputError, with the first tensors that differ, where a state is that of another model."""
    mine = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in values.items()}
    differing = [name for name in dict.fromkeys([*mine, *theirs]) if mine.get(name) != theirs.get(name)]
    if differing:
        text = listing(
            (f"{name} is {_shape(theirs, name)} there and {_shape(mine, name)} here" for name in differing), 3
        )
        raise InputError(f"{where} is of another model than the config describes: {text}. Choose the model it is of.")


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return "×".join(map(str, shapes[name])) or "a number" if name in shapes else "absent"


def kept_params(state: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The parameters and buffers that are the run's result, out of a checkpoint's state, and their step."""
    best = state["best"]
    if best.get("params") is not None:
        return best["params"], best["step"]
    averaged = state["ema"] or {}
    # As average.py names them; its counter is `n_averaged`.
    values = {name.removeprefix("module."): value for name, value in averaged.items() if name != "n_averaged"}
    return values or state["model"], state["step"]


def result(state: dict[str, Any], cfg: TrainConfig, samples_per_s: float) -> dict[str, Any]:
    """What result.json says of a finished training's state: metrics and digest of the parameters it has come to."""
    values, step = kept_params(state)
    of_best = state["best"]["metrics"]
    best = {f"best/{name.removeprefix('val/')}": value for name, value in of_best.items()}
    kept = of_best if state["best"]["params"] is not None else {}
    metrics = {**state["metrics"], **kept, **best}
    return {
        "step": state["step"],
        "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "param_digest": param_digest(values),
        "data_commit": cfg.data.commit,
        "outputs": {"params_step": step, "best_step": state["best"]["step"], "samples_per_s": samples_per_s},
    }
