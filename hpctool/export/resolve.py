"""What can be known about an export before it is submitted. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from hpctool.config import load, set_value
from hpctool.data.layout import split_ref
from hpctool.data.version import open_version
from hpctool.errors import ConfigError, InputError
from hpctool.export.bundle import check_name
from hpctool.export.schema import FORMATS
from hpctool.launch.job import Input, Resolved
from hpctool.launch.result import current_story
from hpctool.train.resolve import check_split, chosen_run


def resolve_export(cfg: DictConfig) -> Resolved:
    """Pin the run (of a sweep: its best), the bundle's name and the data.

    Raises UnknownName, InputError where the run has not completed, ConfigError.
    """
    rundir, notes = chosen_run(Path(cfg.paths.runs), cfg.run, cfg.metric, cfg.mode)
    record = rundir.record()
    if record["job"] != "train":
        raise InputError(f"Run {rundir.id} is a run of '{record['job']}'; export takes a run of 'train'.")
    story = current_story(rundir)
    if story.state != "completed":
        cause = f" ({story.cause})" if story.cause else ""
        raise InputError(f"Run {rundir.id} is {story.state}{cause}, not completed; export takes a completed run.")
    learnt = load(rundir.config_yaml).data
    if learnt.get("dataset") is not None:
        raise InputError(
            f"Run {rundir.id} learnt from a Dataset of its own ({learnt.dataset._target_}), and export needs a version "
            "of a dataset, for its classes, its golden rows and its statistics: hpctool prepare makes one (source=own "
            "takes a reader), and a run of it can be exported."
        )
    version = open_version(Path(cfg.paths.datasets), learnt.name)
    check_split(version, "data.split", cfg.data.split)
    _check(cfg)
    set_value(cfg, "run", rundir.id)
    set_value(cfg, "data.name", version.pinned)
    name = cfg.bundle.name or split_ref(version.pinned)[0]
    set_value(cfg, "bundle.name", check_name("bundle.name", name))
    return Resolved([Input("run", rundir.id, record["identity"])], notes)


def _check(cfg: DictConfig) -> None:
    for name in cfg.bundle.formats:
        if name not in FORMATS:
            raise ConfigError("bundle.formats", f"'{name}' is none of {', '.join(FORMATS)}.")
    if "torchscript" not in cfg.bundle.formats:
        raise ConfigError("bundle.formats", "a bundle needs torchscript: it is what servers load.")
    if not cfg.parity.batch_sizes or min(cfg.parity.batch_sizes) < 1:
        raise ConfigError("parity.batch_sizes", f"{list(cfg.parity.batch_sizes)} are no batch sizes; use 1 and above.")
    for key, lowest in (
        ("parity.repeats", 1),
        ("bundle.num_golden", 1),
        ("calibration.num_bins", 2),
        ("reference.num_bins", 2),
    ):
        group, name = key.split(".")
        if cfg[group][name] < lowest:
            raise ConfigError(key, f"it is {cfg[group][name]}; it must be {lowest} or more.")
