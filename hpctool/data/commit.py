"""Commit: one version in a dataset's history. Who made it of what, when and why; and which labels it changed."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.data.layout import FORMAT
from hpctool.data.manifest import check_format
from hpctool.data.objects import StoredObject
from hpctool.errors import CorruptError
from hpctool.rundir import now, who


@dataclass(frozen=True)
class Commit:
    """A commit as it stands on disk; `id` is the SHA-256 of its file."""

    id: str
    parents: list[str]
    manifest: str
    message: str
    author: str
    time: str
    #: {"kind": "prepare" | "relabel", …parameters}
    operation: dict[str, Any]
    #: the run and Slurm job that made it, empty where a person did
    run: str
    slurm_job_id: str
    #: uid, old, new, who, when, why of each label that this commit changed
    changes: StoredObject | None

    @property
    def kind(self) -> str:
        """prepare, relabel …"""
        return str(self.operation["kind"])

    @classmethod
    def from_json(cls, path: Path, value: Any) -> Commit:
        """Parse and check what a commit's file holds. Raises NewerFormat, CorruptError."""
        check_format(path, "commit", value)
        try:
            return cls(
                id=path.stem,
                parents=[str(p) for p in value["parents"]],
                manifest=str(value["manifest"]),
                message=str(value["message"]),
                author=str(value["author"]),
                time=str(value["time"]),
                operation={"kind": value["operation"]["kind"], **value["operation"]},
                run=str(value["run"]),
                slurm_job_id=str(value["slurm_job_id"]),
                changes=_changes(value["changes"]) if value["changes"] else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(path, f"it is no commit ({type(error).__name__}: {error})") from error


def _changes(value: Any) -> StoredObject:
    """An object of changes of labels; ValueError where it lacks something that blame reads."""
    stored = StoredObject.from_json(value)
    count = stored.extents["uid"].shape[0]
    wanted = {"uid": ("u1", (count, 16)), "old": ("i8", (count,)), "new": ("i8", (count,))}
    for name, (dtype, shape) in wanted.items():
        extent = stored.extents[name]
        if extent.dtype != np.dtype(dtype) or extent.shape != shape:
            raise ValueError(f"'{name}' of its changes is {extent.dtype} {extent.shape}")
    for name in ("who", "when", "why"):
        if stored.extents[name].dtype.kind != "S" or stored.extents[name].shape != (count,):
            raise ValueError(f"'{name}' of its changes is no text for each")
    return stored


@dataclass(frozen=True)
class Draft:
    """What a commit is to say; parents, author, time and nonce are added when it is made."""

    manifest: str
    message: str
    operation: dict[str, Any]
    changes: StoredObject | None = None
    run: str = ""
    parents: list[str] = field(default_factory=list)

    def to_json(self, parent: str | None) -> dict[str, Any]:
        """The commit's file. The nonce makes every commit its own, so that a ref can tell mine from theirs."""
        return {
            "format": FORMAT,
            "parents": ([parent] if parent else []) + self.parents,
            "manifest": self.manifest,
            "message": self.message,
            "author": who(),
            "time": now(),
            "operation": self.operation,
            "run": self.run,
            "slurm_job_id": os.environ.get("SLURM_JOB_ID", ""),
            "changes": self.changes.to_json() if self.changes else None,
            "nonce": uuid.uuid4().hex,
        }
