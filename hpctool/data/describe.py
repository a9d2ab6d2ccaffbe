"""Describe: datasets, versions, commits and rows as plain JSON, for tables and for other programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.data.commit import Commit
from hpctool.data.history import ancestors, newest_first
from hpctool.data.labels import class_name
from hpctool.data.layout import DEFAULT_BRANCH
from hpctool.data.manifest import LABEL
from hpctool.data.refs import tags, tips
from hpctool.data.store import Store, list_datasets
from hpctool.data.version import Version
from hpctool.errors import HpctoolError


def dataset_rows(datasets: Path) -> Iterator[dict[str, Any]]:
    """One entry for each dataset in a folder; one that cannot be read says why in `problem`."""
    for name in list_datasets(datasets):
        try:
            yield _dataset_row(Store.open(datasets, name))
        except HpctoolError as error:
            yield {"name": name, "problem": str(error)}


def version_summary(version: Version) -> dict[str, Any]:
    """What a version is: commit, columns, classes, splits, size."""
    commit = version.store.commit_of(version.commit)
    return {
        "name": version.name,
        "revision": version.revision,
        "commit": version.commit,
        "parents": commit.parents,
        "message": commit.message,
        "author": commit.author,
        "time": commit.time,
        "operation": commit.operation,
        "run": commit.run,
        "num_rows": version.num_rows,
        "num_row_groups": len(version.contents.row_groups),
        "size_bytes": sum({stored.id: stored.size_bytes for stored in version.contents.objects}.values()),
        "columns": {name: column.to_json() for name, column in version.columns.items()},
        "classes": version.classes,
        "splits": version.splits,
    }


def row_entries(version: Version, num_rows: int | None = None) -> list[dict[str, Any]]:
    """The first `num_rows` rows, or all: row, uid, split and label (the class's name, None where there is none)."""
    count = version.num_rows if num_rows is None else min(num_rows, version.num_rows)
    rows = np.arange(count)
    uids, splits = version.uids(rows), version.split_of_rows()[:count]
    labels = version.read(LABEL, rows).tolist() if LABEL in version.columns else [-1] * count
    return [
        {"row": row, "uid": uid, "split": split, "label": class_name(version, label) or None}
        for row, (uid, split, label) in enumerate(zip(uids, splits, labels, strict=True))
    ]


def commit_entries(version: Version, *, merged: bool = False, everything: bool = False) -> Iterator[dict[str, Any]]:
    """The history of a version, newest first, each commit with the branches and tags that name it.

    `merged`: also what was merged into it; `everything`: all that any branch or tag descends from.
    """
    store = version.store
    names: dict[str, list[str]] = {}
    for ref, commit_id in _refs(store).items():
        names.setdefault(commit_id, []).append(ref)
    if merged or everything:
        tips = [version.commit, *(names if everything else [])]
        commits: Iterable[Commit] = newest_first(ancestors(store, tips).values())
    else:
        commits = store.history(version.commit)
    for commit in commits:
        yield {
            "commit": commit.id,
            "refs": names.get(commit.id, []),
            "time": commit.time,
            "author": commit.author,
            "operation": commit.operation,
            "message": commit.message,
            "num_rows": store.manifest(commit.manifest).num_rows,
            "run": commit.run,
            "slurm_job_id": commit.slurm_job_id,
            "parents": commit.parents,
        }


def _dataset_row(store: Store) -> dict[str, Any]:
    branches = store.branches()
    row: dict[str, Any] = {"name": store.name, "branches": branches, "tags": store.tags(), "problem": ""}
    if not branches:
        return row | {"problem": "it has no commit yet"}
    branch = DEFAULT_BRANCH if DEFAULT_BRANCH in branches else branches[0]
    version = Version(store, branch, store.resolve(branch))
    commit = store.commit_of(version.commit)
    return row | {
        "commit": version.commit,
        "time": commit.time,
        "num_rows": version.num_rows,
        "splits": version.splits,
        "num_classes": len(version.classes),
    }


def _refs(store: Store) -> dict[str, str]:
    return {tip.ref: tip.commit for tip in [*tips(store), *tags(store)] if not tip.problem}
