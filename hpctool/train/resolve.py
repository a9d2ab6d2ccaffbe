"""What can be known about a training or an evaluation before it is submitted. Imports no torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from hpctool.config import check_target, load, set_value, shipped_values
from hpctool.data.access import access_of
from hpctool.data.reader import Reader
from hpctool.data.stage import check_choice
from hpctool.data.verify import check_readable
from hpctool.data.version import Version, open_version
from hpctool.errors import ConfigError, InputError, UnknownName, nearest
from hpctool.launch.cells import find_sweep, list_sweep_ids, members
from hpctool.launch.job import Input, Resolved, in_stages
from hpctool.rundir import RunDir, find_run, list_run_ids
from hpctool.train.continued import resolve_origin
from hpctool.train.initial import resolve_initial
from hpctool.train.schedule import KINDS, check_plateau, num_steps
from hpctool.train.schema import PRECISIONS, Loop

#: As much data is read on a login node to compare checksums: a second or so.
_QUICK_BYTES = 1 << 30

_ABOVE_ZERO = (
    *("max_steps", "max_epochs", "global_batch_size", "accumulate", "checkpoint_every_steps"),
    *("checkpoint_every_min", "keep_every_steps", "eval_every_steps", "eval_batch_size", "grad_clip", "max_nonfinite"),
    "patience",
)

_WEAKER = (
    "data.dataset is a program: every sample still comes once per epoch, and a resume is exact if it gives the same "
    "for the same index; but its data has no version, no checksums and no history of labels"
)
#: images whose sizes are compared
_LOOKED_AT = 64
#: keys of `parallel` by the kind that they are for
_OF_KIND = {"ddp": ("bucket_mb", "find_unused_parameters"), "fsdp": ("blocks", "reshard_after_forward")}


def resolve_train(cfg: DictConfig) -> Resolved:
    """Pin the dataset version and what follows from it; check budget, batch, schedule and targets.

    Raises UnknownName, ConfigError, TargetError, CorruptError.
    """
    return in_stages(cfg, TRAIN_STAGES)


def measured_at(cfg: DictConfig) -> tuple[int, int]:
    """How many steps a resolved training takes, and every how many of them it measures on the validation split."""
    if cfg.data.dataset is not None:
        if cfg.loop.max_steps is None or cfg.loop.eval_every_steps is None:
            problem = "how long data.dataset is says only its program; give loop.max_steps and loop.eval_every_steps."
            raise ConfigError("loop.max_steps", problem)
        return int(cfg.loop.max_steps), int(cfg.loop.eval_every_steps)
    num_rows = open_version(Path(cfg.paths.datasets), cfg.data.name).splits[cfg.data.train_split]
    per_epoch = math.ceil(num_rows / cfg.loop.global_batch_size)
    return num_steps(cfg.loop, num_rows), int(cfg.loop.eval_every_steps or per_epoch)


def _dataset(cfg: DictConfig) -> Resolved:
    if cfg.data.dataset is not None:
        check_target("data.dataset", cfg.data.dataset)
        if cfg.augment is not None:
            raise ConfigError("augment", "data.dataset makes its samples itself; augment them there.")
        return Resolved([], [_WEAKER])
    version = open_version(Path(cfg.paths.datasets), cfg.data.name)
    asked = version.ref
    access_of(version.store.root, cfg.data.read)
    if cfg.data.window < 0:
        raise ConfigError("data.window", f"it is {cfg.data.window}; it is 0 (all rows) or more.")
    check_choice(cfg.data.stage)
    pin_data(cfg, version)
    check_data(Path(cfg.paths.datasets), cfg.data.name, (cfg.data.feature, cfg.data.label))
    for key in ("train_split", "val_split"):
        check_split(version, f"data.{key}", cfg.data[key])
    return Resolved([Input("dataset", asked, version.commit)], said_size(version, cfg.data.feature, cfg.data.size))


def _budget(cfg: DictConfig) -> None:
    if cfg.loop.max_steps is None and cfg.loop.max_epochs is None:
        set_value(cfg, "loop.max_epochs", cfg.loop.default_epochs)


def _batch(cfg: DictConfig) -> None:
    check_loop(cfg.loop)
    check_layout(cfg.loop, cfg.resources.nodes * cfg.resources.tasks_per_node)
    _above_zero("track.every_steps", cfg.track.every_steps)


def _targets(cfg: DictConfig) -> None:
    for key in ("model", "task"):
        check_target(key, cfg[key])
    check_target("augment", cfg.augment, required=False)
    check_target("schedule.own", cfg.schedule.own, required=False)
    for part in [] if "_target_" in cfg.optim else cfg.optim:
        check_target(f"optim.{part}", cfg.optim[part])
    if "_target_" in cfg.optim or not cfg.optim:
        check_target("optim", cfg.optim)


# Two stages: cells that vary both are not checked for each pair of values. Each value takes half a millisecond.
def _model_numbers(cfg: DictConfig) -> None:
    _check_numbers("model", "model", cfg.model)


def _optim_numbers(cfg: DictConfig) -> None:
    if "_target_" in cfg.optim:
        _check_numbers("optim", "optim", cfg.optim)
    else:
        for part in cfg.optim:
            _check_numbers(f"optim.{part}", "optim", cfg.optim[part])


def _check_numbers(key: str, group: str, cfg: DictConfig) -> None:
    """What is a number in conf/ is one here. A user's own target takes what it likes. Raises ConfigError."""
    for name, default in shipped_values(group, str(cfg["_target_"])).items():
        # What is left out has the target's own default, and an argument may be made by a `_target_` of its own.
        value = cfg.get(name, default)
        if _is_number(default) and not _is_number(value) and not isinstance(value, DictConfig):
            found = "null" if value is None else str(value).lower() if isinstance(value, bool) else f"'{value}'"
            raise ConfigError(f"{key}.{name}", f"it takes a number, and got {found}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _initial(cfg: DictConfig) -> Resolved | None:
    return resolve_initial(cfg, chosen_run)


def resolve_evaluate(cfg: DictConfig) -> Resolved:
    """Pin the run (of a sweep: its best) and the dataset version. Raises UnknownName, InputError, ConfigError."""
    for key in ("batch_size", "num_bins"):
        _above_zero(key, cfg[key])
    rundir, notes = chosen_run(Path(cfg.paths.runs), cfg.run, cfg.metric, cfg.mode)
    record = rundir.record()
    if record["job"] != "train":
        raise InputError(f"Run {rundir.id} is a run of '{record['job']}'; evaluate takes a run of 'train'.")
    set_value(cfg, "run", rundir.id)
    learnt = load(rundir.config_yaml).data
    if learnt.get("dataset") is not None and cfg.data.name is None:
        raise InputError(
            f"Run {rundir.id} learnt from a Dataset of its own ({learnt.dataset._target_}), which evaluate does not "
            "read. Prepare such data (hpctool prepare) and name it: data.name=…"
        )
    version = open_version(Path(cfg.paths.datasets), cfg.data.name or learnt.name)
    asked = version.ref
    for column in (learnt.feature, learnt.label):
        if column not in version.columns:
            known = ", ".join(version.columns)
            raise InputError(
                f"Run {rundir.id} needs the column '{column}'; {asked} has {known}. Name another data.name."
            )
    check_data(Path(cfg.paths.datasets), version.pinned, (learnt.feature, learnt.label))
    set_value(cfg, "data.name", version.pinned)
    set_value(cfg, "data.commit", version.commit)
    check_split(version, "data.split", cfg.data.split)
    return Resolved([Input("run", rundir.id, record["identity"]), Input("dataset", asked, version.commit)], notes)


def chosen_run(runs: Path, name: str, metric: str, mode: str) -> tuple[RunDir, list[str]]:
    """The run that `name` means, or the best of the sweep that it means, and what is worth saying about the choice.

    Raises UnknownName, InputError where a sweep has no completed run with this metric.
    """
    _one_of("mode", mode, ("max", "min"))
    ids, sweeps = list_run_ids(runs), list_sweep_ids(runs)
    if name in sweeps or (name not in ids and any(s.startswith(name) for s in sweeps)):
        return best_of_sweep(runs, name, metric, mode)
    if not any(i.startswith(name) for i in ids):
        raise UnknownName("run or sweep", name, [*ids, *sweeps], f"They lie in {runs.absolute()}.")
    return find_run(runs, name), []


def best_of_sweep(runs: Path, name: str, metric: str, mode: str) -> tuple[RunDir, list[str]]:
    """The completed run of a sweep whose `metric` is best. Raises UnknownName, InputError where there is none."""
    sweep = find_sweep(runs, name)
    scores: dict[str, float] = {}
    for run_id in members(runs, sweep):
        result = RunDir(runs / run_id).result() or {}
        if result.get("state") == "completed" and metric in result.get("metrics", {}):
            scores[run_id] = result["metrics"][metric]
    if not scores:
        raise InputError(f"No run of sweep {sweep.id} has completed with the metric '{metric}'; wait, or name a run.")
    sign = 1 if mode == "max" else -1
    best = max(scores, key=lambda run_id: sign * scores[run_id])
    note = f"{best} is the best of {len(scores)} completed runs of {sweep.id}: {metric} {scores[best]:.4f}"
    if missing := len(members(runs, sweep)) - len(scores):
        note += f" ({missing} have not completed)"
    return RunDir(runs / best), [note]


def pin_data(cfg: DictConfig, version: Version) -> None:
    """Write into `cfg.data` what the dataset's manifest says. Raises ConfigError on a column that is not there."""
    data = cfg.data
    if data.feature is None:
        if len(version.features) != 1:
            raise ConfigError("data.feature", f"{version.ref} has several; choose one.", version.features)
        set_value(cfg, "data.feature", version.features[0])
    for key in ("feature", "label"):
        if data[key] not in version.columns:
            known = list(version.columns)
            problem = f"{version.ref} has no column '{data[key]}'; it has {', '.join(known)}."
            raise ConfigError(f"data.{key}", problem, nearest(data[key], known))
    set_value(cfg, "data.name", version.pinned)
    set_value(cfg, "data.commit", version.commit)
    set_value(cfg, "data.input_shape", input_shape(sample_shape(version, data.feature, data.get("size"))))
    classes = version.columns[data.label].classes
    if classes is not None:
        set_value(cfg, "data.num_classes", len(classes))


@functools.lru_cache(maxsize=32)
def check_data(datasets: Path, pinned: str, columns: tuple[str, ...]) -> None:
    """Once per command, however many cells a sweep has: objects are there, and whole where that is quickly known.

    Raises CorruptError. The job itself checks everything (`data.checksums`).
    """
    version = open_version(datasets, pinned)
    size_bytes = sum(stored.size_bytes for stored in version.contents.objects)
    check_readable(version, columns, checksums=size_bytes <= _QUICK_BYTES)


def sample_shape(version: Version, feature: str, size: Iterable[int] | None) -> tuple[int, ...]:
    """The shape of one sample as it is read; encoded images are like the first one, or of the size that was asked for.

    Raises ConfigError where samples have different lengths, which make no batch; SourceError on what is no image.
    """
    column = version.columns[feature]
    if column.encoding is None:
        if column.ragged:
            raise ConfigError("data.feature", f"the rows of '{feature}' have different lengths; no batch holds them.")
        if size is not None:
            raise ConfigError("data.size", f"'{feature}' of {version.ref} is not encoded; its size is {column.shape}.")
        return column.shape
    from hpctool.data.images import ImageForm

    with Reader(version, [feature]) as reader:
        first = reader.ragged(feature, np.zeros(1, np.int64))[0]
    return ImageForm.of(first, list(size) if size is not None else None, f"row 0 of {version.ref}").shape


def said_size(version: Version, feature: str, size: Iterable[int] | None) -> list[str]:
    """What people should hear who have encoded images and did not say to which size they are scaled."""
    if version.columns[feature].encoding is None or size is not None or not version.num_rows:
        return []
    from hpctool.data.images import size_of

    rows = np.unique(np.linspace(0, version.num_rows - 1, _LOOKED_AT).astype(np.int64))
    with Reader(version, [feature]) as reader:
        images = reader.ragged(feature, rows)
    sizes = [size_of(images[place]) for place in range(len(rows))]
    height, width = sizes[0]
    others = sum(one != sizes[0] for one in sizes)
    found = f"{others} of {len(rows)} that were looked at have another" if others else f"so are {len(rows)} of them"
    return [f"data.size is not given, so images are scaled to {height}×{width}, the size of the first ({found})"]


def input_shape(shape: Iterable[int]) -> list[int]:
    """The shape of one sample as the model sees it: (H, W, C) as stored becomes (C, H, W), others stay."""
    stored = [int(n) for n in shape]
    return [stored[2], stored[0], stored[1]] if len(stored) == 3 else stored


def check_loop(loop: Loop | DictConfig) -> None:
    """Raises ConfigError where the values of `loop` do not fit each other."""
    if (loop.max_steps is None) == (loop.max_epochs is None):
        problem = f"it is {loop.max_steps} and loop.max_epochs is {loop.max_epochs}; exactly one says how long."
        raise ConfigError("loop.max_steps", problem + " Set the other to null.")
    for key in _ABOVE_ZERO:
        _above_zero(f"loop.{key}", getattr(loop, key))
    if loop.keep_last < 2:
        raise ConfigError("loop.keep_last", f"it is {loop.keep_last}; keep 2 or more, one may turn out damaged.")
    if loop.ema is not None and not 0 < loop.ema < 1:
        raise ConfigError("loop.ema", f"it is {loop.ema}; a decay lies between 0 and 1.")
    _one_of("loop.precision", loop.precision, PRECISIONS)
    if loop.compile is not None:
        _one_of("loop.compile", loop.compile, ("inductor", "cudagraphs", "aot_eager", "eager"))
    if loop.num_workers < 0:
        raise ConfigError("loop.num_workers", f"it is {loop.num_workers}; it is 0 or more.")
    _one_of("loop.best_mode", loop.best_mode, ("max", "min"))
    _one_of("loop.on_nonfinite", loop.on_nonfinite, ("stop", "skip", "rollback"))
    if loop.on_nonfinite == "rollback" and loop.checkpoint_every_steps is None:
        raise ConfigError(
            "loop.on_nonfinite",
            "rollback goes back to a checkpoint that is due by steps. Set loop.checkpoint_every_steps.",
        )


def check_layout(loop: Loop | DictConfig, num_ranks: int) -> None:
    """Raises ConfigError where ranks and accumulation do not divide the global batch."""
    parts = num_ranks * loop.accumulate
    batch = loop.global_batch_size
    if batch % parts:
        below, above = batch // parts * parts, (batch // parts + 1) * parts
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            "loop.global_batch_size",
            f"{batch} samples cannot be cut into {parts} equal parts ({num_ranks} ranks × accumulate "
            f"{loop.accumulate}); {near} would do.",
        )


def _sharing(cfg: DictConfig) -> None:
    parallel = cfg.parallel
    _one_of("parallel.kind", parallel.kind, ("ddp", "fsdp"))
    for kind, keys in _OF_KIND.items():
        for key in keys if kind != parallel.kind else ():
            if parallel[key] is not None:
                problem = f"it is for {kind}, and parallel.kind is {parallel.kind}."
                raise ConfigError(f"parallel.{key}", f"{problem} Choose parallel={kind}, or set it to null.")
    if parallel.kind == "ddp" and (parallel.bucket_mb is None or parallel.bucket_mb <= 0):
        raise ConfigError("parallel.bucket_mb", f"it is {parallel.bucket_mb}; it must be above 0.")
    _above_zero("parallel.compare_every_steps", parallel.compare_every_steps)
    if parallel.kind == "fsdp" and cfg.loop.precision == "fp16":
        problem = "fp16 needs a scale on which all ranks agree, which sharded gradients (parallel=fsdp) do not give."
        raise ConfigError("loop.precision", f"{problem} Choose bf16, or parallel=ddp.")
    if parallel.kind == "fsdp" and "_target_" not in cfg.optim:
        problem = f"optim trains {', '.join(map(str, cfg.optim))} apart from each other, which fsdp cannot."
        raise ConfigError("parallel.kind", f"{problem} Choose parallel=ddp.")


def _schedule(cfg: DictConfig) -> None:
    schedule = cfg.schedule
    _one_of("schedule.kind", schedule.kind, KINDS)
    for key in ("warmup_fraction", "final_factor", "decay_fraction"):
        if not 0 <= schedule[key] <= 1:
            raise ConfigError(f"schedule.{key}", f"it is {schedule[key]}; it lies between 0 and 1.")
    if any(not 0 <= at <= 1 for at in schedule.step_at):
        raise ConfigError("schedule.step_at", f"it is {list(schedule.step_at)}; these are fractions of the budget.")
    if schedule.warmup_steps is not None and schedule.warmup_steps < 0:
        raise ConfigError("schedule.warmup_steps", f"it is {schedule.warmup_steps}; it is 0 or more.")
    if (schedule.kind == "own") != (schedule.own is not None):
        problem = f"it is {schedule.kind}, and schedule.own is {'not set' if schedule.own is None else 'set'}."
        raise ConfigError("schedule.kind", f"{problem} kind=own and schedule.own._target_ belong together.")
    if isinstance(schedule.own, DictConfig) and str(schedule.own.get("_target_")).endswith(".ReduceLROnPlateau"):
        check_plateau(schedule.own.get("mode", "min"), cfg.loop.best_mode)


def check_split(version: Version, key: str, split: str) -> None:
    """Raises ConfigError where the split that `key` names is not there or has no rows."""
    if split not in version.splits:
        known = ", ".join(f"{name} ({count} rows)" for name, count in version.splits.items())
        raise ConfigError(key, f"{version.ref} has no split '{split}'; it has {known}.", nearest(split, version.splits))
    if not version.splits[split]:
        raise ConfigError(key, f"the split '{split}' of {version.ref} is empty; give it rows or name another.")


def _above_zero(key: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ConfigError(key, f"it is {value}; it must be above 0.")


def _one_of(key: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(key, f"'{value}' is not one of {', '.join(known)}.", nearest(str(value), known))


#: The parts of `resolve_train`, for sweeps: hpctool/launch/job.py.
TRAIN_STAGES = (
    _dataset,
    _budget,
    _batch,
    _sharing,
    _schedule,
    _targets,
    _model_numbers,
    _optim_numbers,
    resolve_origin,
    _initial,
)
