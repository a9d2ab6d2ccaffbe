"""Resources in the forms that people write, checked before anything is submitted."""

from __future__ import annotations

import re

from omegaconf import DictConfig

from hpctool.errors import ConfigError

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KINDS = ("inline", "local", "slurm")


def time_limit_s(text: str) -> int:
    """Seconds of a time limit as Slurm reads it: `90` (minutes), `4:00:00`, `30:00` (minutes:seconds), `2-12`,
    `2-12:30`, `2-12:30:00`. Raises ConfigError.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ConfigError("resources.time", f"'{text}' is no time. Write minutes, 4:00:00 or 2-00:00:00.")
    days, first, second, third = (int(match[g]) if match[g] else 0 for g in ("days", "first", "second", "third"))
    if match["days"]:
        seconds = days * 86400 + first * 3600 + second * 60 + third
    elif match["third"]:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    if seconds == 0:
        raise ConfigError("resources.time", "it is zero. Write minutes, 4:00:00 or 2-00:00:00.")
    return seconds


def check(cfg: DictConfig) -> None:
    """Check name, cluster and resources of a typed job configuration. Raises ConfigError."""
    if not _NAME.fullmatch(cfg.name) or cfg.name == "sweeps":
        raise ConfigError("name", f"'{cfg.name}' is no name for a folder: letters, digits, '-', '_' and '.'.")
    if cfg.cluster.kind not in KINDS:
        raise ConfigError("cluster.kind", f"'{cfg.cluster.kind}' is not one of {', '.join(KINDS)}.", KINDS)
    if cfg.code not in ("reuse", "rerun"):
        raise ConfigError("code", f"'{cfg.code}' is neither reuse nor rerun.")
    for key, least in (("nodes", 1), ("tasks_per_node", 1), ("gpus_per_node", 0), ("cpus_per_task", 1)):
        if cfg.resources[key] < least:
            raise ConfigError(f"resources.{key}", f"it is {cfg.resources[key]}; the least is {least}.")
    if cfg.num_threads < 1:
        raise ConfigError("num_threads", f"it is {cfg.num_threads}; the least is 1.")
    if cfg.cluster.max_parallel < 1:
        raise ConfigError("cluster.max_parallel", f"it is {cfg.cluster.max_parallel}; the least is 1.")
    if cfg.cluster.kind == "local" and cfg.resources.nodes > 1:
        raise ConfigError("resources.nodes", f"cluster=local is this one machine, not {cfg.resources.nodes} nodes.")
    limit_s = time_limit_s(cfg.resources.time)
    if cfg.cluster.kind != "inline" and limit_s <= cfg.cluster.signal_delay_s:
        raise ConfigError(
            "resources.time",
            f"the limit of {limit_s} s is not longer than cluster.signal_delay_s={cfg.cluster.signal_delay_s}, so the "
            "job would be told to stop before it has begun. Ask for more time or a shorter delay.",
        )


def num_ranks(cfg: DictConfig) -> int:
    """The processes of a job: nodes times tasks on each."""
    return int(cfg.resources.nodes * cfg.resources.tasks_per_node)
