"""`hpctool doctor --write`: what was found, as a commented file for conf/cluster/ that people go on editing."""

from __future__ import annotations

import datetime
import re
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hpctool import files
from hpctool.errors import InputError, SchedulerError, listing
from hpctool.launch.slurm import ask, doctor, stops
from hpctool.launch.slurm import check as limits_here
from hpctool.launch.slurm.doctor import Report
from hpctool.launch.slurm.site import Site

#: Networks that are faster than the one that host names stand for.
_FAST = re.compile(r"(ib|hsn|opa|roce)\d*")
_LEAST_DELAY_S = 60


def check(path: Path) -> None:
    """Refuse a place that cannot hold a choice of the group `cluster`. Raises InputError."""
    if path.suffix != ".yaml" or path.parent.name != "cluster" or path.stem.startswith("_"):
        raise InputError(
            f"A site file lies in a folder 'cluster' as NAME.yaml, and {path} does not: conf/cluster/mysite.yaml"
        )
    if path.exists():
        raise InputError(f"{path} exists already. Remove it, or give the new one another name.")


def write(path: Path, report: Report, cfg: DictConfig) -> str:
    """Write the file and return its name as a choice, `mysite`. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, text(report, cfg, path.stem))
    return path.stem


def text(report: Report, cfg: DictConfig, name: str) -> str:
    """The file's text."""
    today = datetime.datetime.now(datetime.UTC).date()
    lines = _comment(
        f"{report.title}. Written by hpctool doctor on {today}; yours from now on. "
        f"Use it: hpctool train … --config-dir conf cluster={name}"
    )
    changes = [one for section in report.sections for one in section.findings if one.level == "CHANGE"]
    for one in changes:
        lines += _comment(f"To change: {one.text} {one.advice}")
    lines.append("defaults: [_base, _self_]")
    lines += ["kind: local"] if report.site is None else _settings(report, report.site, cfg)
    return "\n".join(lines) + "\n"


def _settings(report: Report, found: Site, cfg: DictConfig) -> list[str]:
    lines = ["kind: slurm", ""]
    lines += _comment("Where jobs go if they name nothing else. There is:")
    for name, longest, nodes, cpus, memory, gpus, _ in doctor.partition_rows(found):
        lines.append(f"#   {name}: up to {longest}; {nodes} nodes of {cpus} CPUs, {memory} GB, GPUs: {gpus}")
    partition = cfg.cluster.partition or found.default_partition
    lines.append(_line("partition", partition or None))
    lines += _accounts(found, cfg)
    lines += _delay(report, found, partition)
    lines += ["", *_comment("So many cells of a sweep may run at once.")]
    lines.append(_line("max_parallel", _max_parallel(found, cfg)))
    lines += _starting(report, cfg)
    lines += [
        "",
        *_comment("Shell lines that jobs need before Python starts: 'module load cuda', 'source …/bin/activate'."),
    ]
    lines.append(_line("setup", list(cfg.cluster.setup)))
    return lines


def _accounts(found: Site, cfg: DictConfig) -> list[str]:
    try:
        accounts = list(dict.fromkeys(one.account for one in found.associations))
        qos = sorted({name for one in found.associations for name in one.qos})
    except SchedulerError:
        accounts, qos = [], []
    lines = [""]
    if accounts:
        lines += _comment(f"Who pays; null is your default account. Yours: {listing(accounts)}.")
    lines.append(_line("account", cfg.cluster.account))
    if qos:
        lines += _comment(f"A named set of limits; null is your account's usual one. You may use: {listing(qos)}.")
    lines.append(_line("qos", cfg.cluster.qos))
    return lines


def _delay(report: Report, found: Site, partition: str) -> list[str]:
    """How long before the time limit a job is told: twice the longest save, and what preemption gives beside it."""
    longest_s = report.measured.longest_s
    delay_s = max(_LEAST_DELAY_S, int(stops.MARGIN * longest_s) + 30) if longest_s else 120
    known = found.partitions.get(partition.split(",")[0]) if partition else None
    if known is not None and known.max_time_s is not None:
        delay_s = min(delay_s, known.max_time_s // 4)
    said = f"your longest save took {longest_s:.1f} s" if longest_s else "no save has been measured yet"
    lines = ["", *_comment(f"So many seconds before its time limit a job is told to save ({said}).")]
    if known is not None and known.max_time_s is not None:
        longest = limits_here.time_text(known.max_time_s)
        lines += _comment(f"resources.time may be up to {longest}; shorter jobs often start sooner.")
    try:
        for one in stops.preemptions(found):
            room_s = one.grace_s + ask.kill_wait_s(found.config)
            lines += _comment(f"Preempted in {one.whose}, it has {room_s} s instead.")
    except SchedulerError:
        pass
    return [*lines, _line("signal_delay_s", delay_s)]


def _max_parallel(found: Site, cfg: DictConfig) -> int:
    try:
        association = found.association(cfg.cluster.account)
        given = [association.max_jobs] if association else []
        given += [one.max_jobs for one in found.qos_of(cfg.cluster.qos, cfg.cluster.account)]
    except SchedulerError:
        given = []
    return min([int(cfg.cluster.max_parallel), *(number for number in given if number)])


def _starting(report: Report, cfg: DictConfig) -> list[str]:
    lines = ["", *_comment("The plugin by which srun starts MPI programs; null for training by torch.")]
    if report.mpi_plugins:
        lines += _comment(f"There is: {listing(report.mpi_plugins)}.")
    lines.append(_line("mpi", cfg.cluster.mpi))
    names = [set(one["interfaces"]) for one in report.probe]
    common = sorted(set.intersection(*names)) if names else []
    fast = [name for name in common if _FAST.fullmatch(name)]
    seen = f"The probe's nodes have: {listing(common)}." if common else "hpctool doctor --probe lists them."
    lines += ["", *_comment(f"The network interface over which ranks meet; null leaves it to gloo and NCCL. {seen}")]
    lines.append(_line("interface", cfg.cluster.interface or (fast[0] if fast else None)))
    return lines


def _comment(words: str) -> list[str]:
    return textwrap.wrap(words, 98, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _line(key: str, value: Any) -> str:
    if value is None:
        return f"{key}: null"
    # JSON is YAML: what it quotes needs quotes.
    return f"{key}: {files.canonical_json(value).decode()}" if isinstance(value, str | list) else f"{key}: {value}"
