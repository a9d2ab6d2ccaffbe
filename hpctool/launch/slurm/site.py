"""What a cluster says of itself: partitions, nodes, limits, and the accounts and QOS of this user. Read once.

Partitions and shapes of nodes cost the controller three requests, whatever its size; accounts and QOS are asked of the
accounting database only where somebody needs them, and only where there is one.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hpctool.errors import ConfigError
from hpctool.launch import limits
from hpctool.launch.gres import Gres, listed_gres
from hpctool.launch.slurm import ask

#: A cluster that does not answer within this is not waited for: sbatch will say what it thinks.
TIMEOUT_S = 20.0
_NO_LIMIT = ("", "UNLIMITED", "INFINITE", "NONE", "N/A", "(NULL)", "NO")
# What sacctmgr is asked for, in the order of the fields that are made of it.
_QOS_FIELDS = (
    *("Name", "MaxWall", "GraceTime", "PreemptMode", "Preempt"),
    *("MaxTRES", "MaxSubmitPU", "MaxJobsPU", "Flags"),
)
_USER_FIELDS = (
    *("DefaultAccount", "Account", "Partition", "QOS", "DefaultQOS"),
    *("MaxSubmitJobs", "MaxJobs", "MaxWall"),
)


@dataclass(frozen=True)
class Partition:
    """A partition as `scontrol show partition` has it; None is without limit."""

    name: str
    is_default: bool
    state: str
    num_nodes: int
    max_nodes: int | None
    max_time_s: int | None
    default_time_s: int | None
    priority_tier: int
    preempt_mode: str
    grace_s: int
    #: the QOS whose limits hold for all jobs of it, or empty
    qos: str
    #: the accounts and QOS that may use it; empty is all
    accounts: tuple[str, ...]
    allowed_qos: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """Nodes of one kind in one partition."""

    partition: str
    num_nodes: int
    cpus: int
    memory_mb: int
    gres: tuple[Gres, ...]
    features: frozenset[str]

    def count(self, wanted: Gres) -> int:
        """How many of a generic resource each of these nodes has."""
        return sum(one.count for one in self.gres if one.is_a(wanted))


@dataclass(frozen=True)
class Qos:
    """A quality of service: limits and priorities with a name. None is without limit."""

    name: str
    max_time_s: int | None
    grace_s: int
    preempt_mode: str
    #: the QOS whose jobs have to make way for it
    preempts: tuple[str, ...]
    #: what one job may have at most: `node`, `cpu`, `gres/gpu` … → number
    max_of_a_job: Mapping[str, int]
    max_submit_jobs: int | None
    max_jobs: int | None
    #: `PartitionTimeLimit` and others by which it is above a partition's limits
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Association:
    """An account that this user may charge, in one partition or (empty) in all, and under which limits."""

    account: str
    is_default: bool
    partition: str
    qos: tuple[str, ...]
    default_qos: str
    max_submit_jobs: int | None
    max_jobs: int | None
    max_time_s: int | None


@dataclass(frozen=True)
class Site:
    """A cluster's own description."""

    config: Mapping[str, str]
    partitions: Mapping[str, Partition]
    shapes: tuple[Shape, ...]

    @property
    def default_partition(self) -> str:
        """The partition that takes jobs that name none; empty if there is none."""
        return next((one.name for one in self.partitions.values() if one.is_default), "")

    @property
    def has_accounting(self) -> bool:
        """Whether there is a database of accounts, QOS and past jobs (slurmdbd)."""
        return self.config.get("AccountingStorageType", "").endswith("slurmdbd")

    @property
    def enforced(self) -> set[str]:
        """What of the database is enforced: `associations`, `limits`, `qos`, `safe` …"""
        words = {word.strip().lower() for word in self.config.get("AccountingStorageEnforce", "").split(",")}
        return words | ({"limits"} if words & {"safe", "all"} else set())

    @property
    def max_array_tasks(self) -> int:
        """The most tasks that one array may have: indices begin at 0 and end before MaxArraySize."""
        found = [int(self.config.get("MaxArraySize", "1001"))]
        match = re.search(r"\bmax_array_tasks=(\d+)", self.config.get("SchedulerParameters", ""))
        return min([*found, *([int(match[1])] if match else [])])

    @functools.cached_property
    def qos(self) -> dict[str, Qos]:
        """Every QOS by name; empty without accounting. Raises SchedulerError."""
        return {row[0]: _qos(row) for row in self._accounting("qos", (), _QOS_FIELDS)}

    @functools.cached_property
    def associations(self) -> list[Association]:
        """What this user may charge; empty without accounting. Raises SchedulerError."""
        which = (user_name(), "withassoc", f"cluster={self.config.get('ClusterName', '')}")
        return [_association(row) for row in self._accounting("user", which, _USER_FIELDS)]

    def ask_accounts(self) -> None:
        """Ask for QOS and associations, both at once: each takes its time, whatever there is. Raises SchedulerError."""
        with ThreadPoolExecutor(2) as pool:
            both = pool.submit(lambda: self.qos), pool.submit(lambda: self.associations)
        for one in both:
            one.result()

    def association(self, account: str | None, partition: str = "") -> Association | None:
        """The one that a job with this account (None: the default one) is under, if any. Raises SchedulerError."""
        fitting = [a for a in self.associations if (a.is_default if account is None else a.account == account.lower())]
        own = [a for a in fitting if a.partition == partition] or [a for a in fitting if not a.partition]
        return own[0] if own else None

    def qos_of(self, asked: str | None, account: str | None, partition: str = "") -> list[Qos]:
        """The QOS whose limits a job is under: its own or its association's, and its partition's. SchedulerError."""
        association = self.association(account, partition)
        names = [asked or (association.default_qos if association else "")]
        if partition in self.partitions:
            names.append(self.partitions[partition].qos)
        return [self.qos[name] for name in names if name in self.qos]

    def max_submit_jobs(self, asked: str | None, account: str | None, partition: str | None = None) -> int | None:
        """How many jobs, array tasks counted, this user may have in the queue at once; None if unlimited or unknown.

        Raises SchedulerError.
        """
        if not self.has_accounting or "limits" not in self.enforced:
            return None
        where = (partition or self.default_partition).split(",")[0]
        association = self.association(account, where)
        found = [association.max_submit_jobs] if association else []
        found += [one.max_submit_jobs for one in self.qos_of(asked, account, where)]
        return min((number for number in found if number is not None), default=None)

    def _accounting(self, kind: str, which: Iterable[str], fields: Iterable[str]) -> list[list[str]]:
        if not self.has_accounting:
            return []
        command = ("sacctmgr", "--noheader", "--parsable2", "--readonly", "show", kind, *which)
        text = ask.call(*command, f"format={','.join(fields)}", timeout_s=TIMEOUT_S)
        return [line.split("|") for line in text.splitlines() if line.strip()]


def read() -> Site:
    """Ask the controller for its settings, partitions and nodes. Raises SchedulerError."""
    config = ask.site_config(timeout_s=TIMEOUT_S)
    partitions = [_partition(record) for record in ask.show("partition", timeout_s=TIMEOUT_S)]
    # Slurm has no order of its own; the default stands first.
    partitions.sort(key=lambda one: (not one.is_default, one.name))
    form = "--format=%R|%D|%c|%m|%G|%f"
    # One line for each kind of node, not for each node.
    lines = ask.call("sinfo", "--noheader", "--exact", "--all", form, timeout_s=TIMEOUT_S)
    shapes = tuple(_shape(line) for line in lines.splitlines() if line.count("|") == 5)
    return Site(config, {one.name: one for one in partitions}, shapes)


def user_name() -> str:
    """Who asks, as Slurm knows them: by the number, since the environment may say anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without a passwd entry
        return str(os.getuid())


def seconds(text: str) -> int | None:
    """A time limit as Slurm prints it; None where there is none."""
    if text.strip().upper() in _NO_LIMIT:
        return None
    try:
        return limits.time_limit_s(text)
    except ConfigError:  # 0, or something that a later Slurm prints
        return None


def number(text: str) -> int | None:
    """A count as Slurm prints it (`8`, `8+`, `1.2K`); None where there is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)\+?", text.strip())
    return None if match is None else round(float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2]])


def _partition(record: Mapping[str, str]) -> Partition:
    return Partition(
        name=record["PartitionName"],
        is_default=record.get("Default") == "YES",
        state=record.get("State", "UP"),
        num_nodes=number(record.get("TotalNodes", "")) or 0,
        max_nodes=number(record.get("MaxNodes", "")),
        max_time_s=seconds(record.get("MaxTime", "")),
        default_time_s=seconds(record.get("DefaultTime", "")),
        priority_tier=number(record.get("PriorityTier", "")) or 0,
        preempt_mode=record.get("PreemptMode", "OFF"),
        grace_s=number(record.get("GraceTime", "")) or 0,
        qos="" if record.get("QoS", "N/A") == "N/A" else record["QoS"],
        accounts=_names(record.get("AllowAccounts", "ALL")),
        allowed_qos=_names(record.get("AllowQos", "ALL")),
    )


def _shape(line: str) -> Shape:
    partition, nodes, cpus, memory, gres, features = line.split("|")
    return Shape(
        partition=partition.strip(),
        num_nodes=number(nodes) or 0,
        cpus=number(cpus) or 0,
        memory_mb=number(memory) or 0,
        gres=tuple(listed_gres(gres.strip())),
        features=frozenset(_names(features.strip())),
    )


def _qos(row: list[str]) -> Qos:
    name, wall, grace, mode, preempt, tres, submit, jobs, flags = row
    most = {kind: number(count) for kind, _, count in (part.partition("=") for part in _names(tres))}
    kept = {kind: count for kind, count in most.items() if count is not None}
    return Qos(
        *(name, seconds(wall), seconds(grace) or 0, mode, _names(preempt)),
        *(kept, number(submit), number(jobs), _names(flags)),
    )


def _association(row: list[str]) -> Association:
    default, account, partition, qos, default_qos, submit, jobs, wall = row
    return Association(
        *(account, account == default, partition, _names(qos), default_qos),
        *(number(submit), number(jobs), seconds(wall)),
    )


def _names(text: str) -> tuple[str, ...]:
    """A list joined by commas; empty for ALL and for none."""
    return () if text.upper() in (*_NO_LIMIT, "ALL") else tuple(part for part in text.split(",") if part)
