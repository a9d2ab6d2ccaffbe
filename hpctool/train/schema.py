"""The types of `train` and `evaluate`; the values stand in conf/. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from hpctool.launch.schema import JobConfig
from hpctool.track.schema import Track

#: `loop.precision`; train/precision.py says what each does
PRECISIONS = ("float32", "tf32", "bf16", "fp16")


@dataclass
class Data:
    """Which samples a run learns from. What is null is filled in by `resolve`, from the dataset's manifest."""

    #: `digits`, `digits@v1`, `digits@4f2a…`; pinned to `digits@<12 hex of the commit>`
    name: str = MISSING
    #: the commit in full, 64 hex digits
    commit: str | None = MISSING
    #: the column that the model sees; null: the dataset's only feature column
    feature: str | None = MISSING
    #: the column that it learns; -1 is a missing label
    label: str = MISSING
    train_split: str = MISSING
    val_split: str = MISSING
    #: samples are shuffled within windows of so many rows; 0 shuffles all of them
    window: int = MISSING
    #: before every attempt, compare the data's checksums (a pass over it, 1.4 GB/s); false: its sizes only
    checksums: bool = MISSING
    num_classes: int | None = MISSING
    #: of one sample as the model sees it: (C, H, W) for images, (F,) for feature vectors
    input_shape: list[int] | None = MISSING
    #: `_target_`: a torch Dataset of your own instead (train/own_data.py); `name` is then only what people call it
    dataset: Any = None
    # The following have defaults here for the configurations of runs that are older than they are.
    #: encoded images are scaled to [height, width] when they are read; null: as the first one is
    size: list[int] | None = None
    #: how bytes are read, which changes no result: memmap, pread, or auto: pread on shared file systems
    read: str = "auto"
    #: copies on the nodes' own disks: "off", auto ($SLURM_TMPDIR, $TMPDIR or /tmp, for data on a shared file system),
    #: or a folder
    stage: str = "off"


@dataclass
class Schedule:
    """The learning rate as a function of the step: a linear warm-up, then what `kind` says (train/schedule.py)."""

    #: constant, linear, cosine, step, wsd, inverse_sqrt, or own
    kind: str = MISSING
    #: how much of the budget the warm-up takes
    warmup_fraction: float = MISSING
    #: the same in steps; null: by the fraction
    warmup_steps: int | None = MISSING
    #: where linear, cosine and wsd end, as a fraction of optim.lr
    final_factor: float = MISSING
    #: step: where in the budget the rate is multiplied with `step_factor`, each time
    step_at: list[float] = MISSING
    step_factor: float = MISSING
    #: wsd: how much of the budget the decay takes
    decay_fraction: float = MISSING
    #: own: `_target_` names a torch scheduler, or a function: step (from 0) → factor of optim.lr
    own: Any = MISSING


@dataclass
class Loop:
    """How long, in what portions, and what is done in between."""

    #: the budget: one of these two …
    max_steps: int | None = MISSING
    max_epochs: int | None = MISSING
    #: … or neither, then so many epochs
    default_epochs: int = MISSING
    #: samples per optimizer step, over all ranks; ranks and accumulation only divide it
    global_batch_size: int = MISSING
    #: forward and backward passes per optimizer step
    accumulate: int = MISSING
    #: checkpoints are due by steps or by minutes, whichever comes first; null: not by these
    checkpoint_every_steps: int | None = MISSING
    checkpoint_every_min: float | None = MISSING
    #: which committed checkpoints are kept: the newest, those that were best in best_metric, every so many steps
    keep_last: int = MISSING
    keep_top: int = MISSING
    keep_every_steps: int | None = MISSING
    #: before going on from a checkpoint, compare its checksums; false: its sizes only
    checkpoint_checksums: bool = MISSING
    #: hold as much of the disk as one checkpoint takes, so that the last one fits whatever others write
    checkpoint_reserve: bool = MISSING
    #: validation; null: once per epoch
    eval_every_steps: int | None = MISSING
    #: samples per forward pass of validation, on each rank
    eval_batch_size: int = MISSING
    #: the largest norm of all gradients together; null: no clipping
    grad_clip: float | None = MISSING
    #: what a gradient that is not finite means: stop, skip (this update) or rollback (train/nonfinite.py)
    on_nonfinite: str = MISSING
    #: how many skips in a row, or rollbacks in all, before the run stops
    max_nonfinite: int = MISSING
    #: float32, tf32, bf16 or fp16 (train/precision.py)
    precision: str = MISSING
    #: compile the model with this backend of torch.compile, such as inductor; null: no
    compile: str | None = MISSING
    #: processes on each rank that make batches ready, for images to decode and augmentation; 0: the rank itself
    num_workers: int = MISSING
    #: decay of an exponential moving average of the parameters, which then are the run's result; null: none
    ema: float | None = MISSING
    #: the metric that says which step was best
    best_metric: str = MISSING
    #: max or min
    best_mode: str = MISSING
    #: so many validations without a better one end the run before its budget is used up; null: none do
    patience: int | None = MISSING
    #: the run's result is the parameters of the best step, not of the last
    keep_best: bool = MISSING
    # This has a default here for the configurations of runs that are older than it is.
    #: operations that cannot compute the same twice, as some on GPUs, are an error; false: a warning, and then resume
    #: is no longer exact to the bit
    deterministic: bool = True


@dataclass
class Parallel:
    """How ranks share the work (conf/parallel/, train/strategy.py). What belongs to the other kind is null."""

    #: ddp: every rank holds the whole model; fsdp: a slice of it
    kind: str = MISSING
    #: ddp: gradients travel in buckets of so many MB
    bucket_mb: float | None = MISSING
    #: ddp: for models whose forward pass leaves parameters out
    find_unused_parameters: bool | None = MISSING
    #: fsdp: class names of the modules that are gathered one after the other; null: the layers of the model's lists
    blocks: list[str] | None = MISSING
    #: fsdp: give the rest of a block back after its forward pass, and gather it again for the backward one
    reshard_after_forward: bool | None = MISSING
    #: after so many steps the bits of the parameters are compared over the ranks, and before each save an eighth of
    #: each large one; null: never
    compare_every_steps: int | None = MISSING


@dataclass
class TrainConfig(JobConfig):
    """conf/train.yaml."""

    data: Data = MISSING
    #: begin where another run was, with what was typed for it: `<run>`, `<run>@<step>`, `<run>@best`; null: at step 0
    continue_from: str | None = MISSING
    #: initial weights (train/initial.py): a completed run, the best of a sweep, or a file: .safetensors, .pt, .pth …
    init_from: str | None = MISSING
    #: `_target_`: a torch module, input (N, *input_shape) → logits (N, num_classes)
    model: Any = MISSING
    #: `_target_`: a torch optimizer, `lr` and its other arguments; or one of these for each part of the model
    optim: Any = MISSING
    schedule: Schedule = MISSING
    #: `_target_`: a Task (hpctool/train/task.py), which owns preprocessing, loss and metrics; Classify by default
    task: Any = MISSING
    #: `_target_`: (one sample, its random generator) → one sample; null: none
    augment: Any = MISSING
    loop: Loop = MISSING
    parallel: Parallel = MISSING
    track: Track = MISSING
    #: where the newest checkpoints are damaged or gone: go back further, or begin anew, rather than refuse
    allow_regress: bool = MISSING


@dataclass
class EvaluateData:
    """Which samples are predicted."""

    #: null: the dataset that the run learnt from, at the commit that it learnt from
    name: str | None = MISSING
    commit: str | None = MISSING
    split: str = MISSING
    #: compare the data's checksums first; false: its sizes only
    checksums: bool = MISSING


@dataclass
class EvaluateConfig(JobConfig):
    """conf/evaluate.yaml."""

    #: a run's id, or a sweep's: then its best run; any unique beginning of it. Pinned to the run's id.
    run: str = MISSING
    #: what `best` means in a sweep
    metric: str = MISSING
    #: max or min
    mode: str = MISSING
    data: EvaluateData = MISSING
    #: samples per forward pass, on each rank
    batch_size: int = MISSING
    #: confidence bins of the calibration error
    num_bins: int = MISSING
