"""Evaluate: a trained run on samples that it has not seen, shared over the ranks.

N rows, K classes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hpctool.checkpoint import param_digest
from hpctool.data.usage import begin_use
from hpctool.errors import InputError
from hpctool.rundir import RunDir
from hpctool.train import params, report
from hpctool.train.batches import to_device
from hpctool.train.meter import Meter
from hpctool.train.parallel import device_of
from hpctool.train.samples import Samples, Source, open_checked
from hpctool.train.schema import EvaluateConfig
from hpctool.train.task import Batch, Classify, Task, metrics_of
from hpctool.world import World

Logits = npt.NDArray[np.float32]


def evaluate(rundir: RunDir, world: World) -> dict[str, Any]:
    """Measure the run that `run` names on `data.split` and write the report; what result.json holds.

    For classification accuracy, macro F1, likelihood and calibration error, and the artifacts of report.py; for a task
    of the user's own its own metrics. Collective: all ranks must call it. Raises InputError where run and data do not
    fit.
    """
    cfg = cast(EvaluateConfig, params.read_as(rundir, "evaluate", EvaluateConfig))
    trained = RunDir(Path(cfg.paths.runs) / cfg.run)
    train_cfg = params.read_config(trained)
    assert cfg.data.name is not None, "resolve pins the dataset"
    data = replace(train_cfg.data, name=cfg.data.name, checksums=cfg.data.checksums, stage="off")
    version = open_checked(Path(cfg.paths.datasets), data, world)
    if world.is_main:
        begin_use(version, rundir, "evaluate", {cfg.data.split: None})
    samples = Samples(version, data, cfg.data.split)
    device = device_of(world)
    model, step = params.load_params(trained)
    task = params.build_task(train_cfg)
    task.preprocess.to(device)

    model.to(device)
    outputs: dict[str, Any] = {"run": trained.id, "rows": len(samples)}
    if isinstance(task, Classify):
        logits_NK = predict(model, task, samples, world, cfg.batch_size)
        labels_N = version.read(data.label, samples.rows)
        classes = version.columns[data.label].classes or [str(k) for k in range(logits_NK.shape[1])]
        _check_fit(trained.id, version.ref, logits_NK.shape[1], len(classes), labels_N)
        said = report.Predicted(version.uids(samples.rows), samples.rows, labels_N, logits_NK, classes)
        table = report.measure(said, cfg.num_bins)
        measured = {name: table[name] for name in ("accuracy", "macro_f1", "nll", "ece")}
        outputs["artifacts"] = world.on_main(lambda: report.write(rundir, said, table))
        if world.is_main:
            print(report.text(table), flush=True)
    else:
        measured = measure(model, task, samples, world, cfg.batch_size) or {}
    metrics = {f"{cfg.data.split}/{name}": value for name, value in measured.items()}
    if world.is_main:
        print(" · ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)
    digest = param_digest(model.state_dict())
    return {"step": step, "metrics": metrics, "param_digest": digest, "data_commit": version.commit, "outputs": outputs}


@torch.no_grad()
def measure(
    model: nn.Module,
    task: Task,
    samples: Source,
    world: World,
    batch_size: int,
    stopped: Callable[[], bool] = lambda: False,
    *,
    in_step: bool = False,
) -> dict[str, float] | None:
    """The task's own metrics over a split; the model is in eval mode. Collective: all ranks must call it.

    Each rank asks `stopped` before each batch; None on all ranks where any of them was. With `in_step` the forward
    pass is a collective: all ranks make as many, and give up together.
    """
    meter, given_up, device = Meter(), False, device_of(world)
    for batch, counts in _batches(samples, world, batch_size, in_step):
        given_up = stopped()
        if in_step:
            given_up = _anywhere(given_up, world)
        if given_up:
            break
        sums = task.evaluate(model, to_device(batch, device))
        if counts:
            meter.add(sums)
    if _anywhere(given_up, world):
        return None
    return metrics_of(task, meter.total(world))


def _batches(samples: Source, world: World, batch_size: int, in_step: bool) -> Iterator[tuple[Batch, bool]]:
    """This rank's batches of a split; `in_step` some that do not count, until all ranks have had as many."""
    number = 0
    for batch in samples.share(world.rank, world.size, batch_size):
        yield batch, True
        number += 1
    if in_step:
        most = math.ceil(math.ceil(len(samples) / world.size) / batch_size)
        for _ in range(number, most):
            yield next(samples.share(0, len(samples), 1)), False


def _anywhere(flag: bool, world: World) -> bool:
    return bool(world.reduce(np.array([flag], np.int64), "max")[0])


@torch.no_grad()
def predict(model: nn.Module, task: Task, samples: Samples, world: World, batch_size: int) -> Logits:
    """What the model, in eval mode, says of each row of a split: float32 (N, K), on every rank. Collective."""
    mine = []
    for batch in samples.share(world.rank, world.size, batch_size):
        logits_NK = model(task.preprocess(batch["x"].to(device_of(world))))
        mine.append(logits_NK.float().cpu().numpy())
    num_classes = int(world.reduce(np.array([part.shape[1] for part in mine[:1]] or [0], np.int64), "max")[0])
    # Each rank fills its own rows of zeros, so the sum over ranks is exact.
    everything_NK = np.zeros((len(samples), num_classes), np.float32)
    if mine:
        everything_NK[world.rank :: world.size] = np.concatenate(mine)
    return world.reduce(everything_NK)


def _check_fit(run: str, data: str, num_outputs: int, num_classes: int, labels_N: npt.NDArray[np.int64]) -> None:
    if num_outputs != num_classes:
        raise InputError(f"Run {run} tells {num_outputs} classes apart and {data} has {num_classes}; they do not fit.")
    if not (labels_N >= 0).any():
        raise InputError(f"None of the {len(labels_N)} rows of {data} has a label to compare with; choose a split=…")
