"""Clusters that are told in a few lines: stand-ins for scontrol, sinfo, sacctmgr and srun on PATH.

What they print is cut from a real Slurm 22.05; a test says what is different.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

CONFIG = {
    "AccountingStorageEnforce": "associations,limits,qos",
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "ClusterName": "toy",
    "EnforcePartLimits": "NO",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "MaxArraySize": "1001",
    "MpiDefault": "none",
    "PreemptMode": "REQUEUE",
    "PreemptType": "preempt/partition_prio",
    "SchedulerParameters": "bf_interval=30",
    "SlurmctldParameters": "(null)",
    "SLURM_VERSION": "22.05.8",
}
_PARTITION = {
    "AllowAccounts": "ALL",
    "AllowQos": "ALL",
    "Default": "NO",
    "QoS": "N/A",
    "DefaultTime": "01:00:00",
    "GraceTime": "0",
    "MaxNodes": "UNLIMITED",
    "MaxTime": "1-00:00:00",
    "PriorityTier": "1",
    "PreemptMode": "OFF",
    "State": "UP",
    "TotalNodes": "4",
}
PARTITIONS = {
    "batch": {"Default": "YES", "PreemptMode": "REQUEUE", "GraceTime": "10"},
    "gpu": {"PriorityTier": "10", "MaxTime": "08:00:00", "TotalNodes": "3"},
}
#: partition, nodes, CPUs, MB, generic resources, features
SHAPES = (
    ("batch", "4", "8", "16000", "(null)", "old"),
    ("gpu", "2", "32", "256000", "gpu:a100:4(S:0-1),nvme:1", "new,ib"),
    ("gpu", "1", "64", "512000", "gpu:h100:8(S:0-1)", "new"),
)
#: name, longest time, grace, how preempted, whom it preempts, most of a job, jobs in the queue, jobs running, flags
QOS = (
    ("normal", "", "00:00:00", "cluster", "", "", "", "", ""),
    ("short", "00:10:00", "00:00:00", "cluster", "", "", "200", "", ""),
    ("wide", "", "00:00:00", "cluster", "", "node=2", "", "", "PartitionTimeLimit"),
    ("private", "", "00:00:00", "cluster", "", "", "", "", ""),
)
#: default account, account, partition, QOS, default QOS, jobs in the queue, jobs running, longest time
USERS = (
    ("lab", "lab", "", "normal,short,wide", "normal", "100", "", ""),
    ("lab", "paid", "", "normal", "", "", "", ""),
)


class ToySite:
    """A cluster that answers what a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        self._program("scontrol", f'cat "{folder}/$(echo $* | sed "s/.*show \\([a-z]*\\).*/\\1/")"')
        self._program("sinfo", f"cat {folder}/shapes")
        self._program("sacctmgr", f'cat "{folder}/$(echo $* | sed "s/.*show \\([a-z]*\\).*/\\1/")"')
        self._program("sbatch", "exit 1")
        self._program("srun", r"printf 'MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\n' >&2")
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        self.says()

    def says(
        self,
        config: Mapping[str, str] = {},
        partitions: Mapping[str, Mapping[str, str]] = PARTITIONS,
        shapes: Sequence[Sequence[str]] = SHAPES,
        qos: Sequence[Sequence[str]] = QOS,
        users: Sequence[Sequence[str]] = USERS,
    ) -> None:
        """What the cluster is from now on; `config` is added to the usual one."""
        lines = ["Configuration data as of 2026-11-22T20:00:00"]
        lines += [f"{key:<23} = {value}" for key, value in (CONFIG | dict(config)).items()]
        self._write("config", lines)
        records = [{"PartitionName": name, **_PARTITION, **values} for name, values in partitions.items()]
        self._write("partition", [" ".join(f"{k}={v}" for k, v in record.items()) for record in records])
        self._write("shapes", ["|".join(row) for row in shapes])
        self._write("qos", ["|".join(row) for row in qos])
        self._write("user", ["|".join(row) for row in users])

    def fails(
        self, *programs: str, text: str = "slurm_load_ctl_conf error: Unable to contact slurm controller"
    ) -> None:
        """With what programs refuse from now on."""
        for name in programs:
            self._program(name, f"echo '{name}: error: {text}' >&2; exit 1")

    def calls(self) -> list[str]:
        """The commands that were asked, in order."""
        return (self.folder / "calls").read_text().splitlines()

    def _program(self, name: str, text: str) -> None:
        program = self.folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.folder}/calls\n{text}\n')
        program.chmod(0o755)

    def _write(self, name: str, lines: Sequence[str]) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))
