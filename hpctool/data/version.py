"""Version: one immutable state of a dataset, as everybody who reads data sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.data.access import Choice
from hpctool.data.identity import places, uids_from_hex
from hpctool.data.layout import split_ref
from hpctool.data.manifest import LABEL, UID, Column, Manifest
from hpctool.data.reader import Reader, Rows
from hpctool.data.store import Store, short
from hpctool.errors import InputError, UnknownName
from hpctool.world import Array, World


def open_version(datasets: Path, ref: str) -> Version:
    """The version that `name[@revision]` names now: a branch, a tag or the beginning of a commit (default: main).

    Raises UnknownName (with what there is), InputError, CorruptError, NewerFormat.
    """
    name, revision = split_ref(ref)
    store = Store.open(datasets, name)
    version = Version(store, revision, store.resolve(revision))
    if (noted := _noted.get()) is not None:
        noted.append(version)
    return version


@contextmanager
def noting_opened() -> Iterator[list[Version]]:
    """What somebody else's program opens in this block, so that its use can be recorded (usage.py)."""
    opened: list[Version] = []
    before = _noted.set(opened)
    try:
        yield opened
    finally:
        _noted.reset(before)


_noted: ContextVar[list[Version] | None] = ContextVar("noted", default=None)


def open_together(datasets: Path, ref: str, world: World) -> Version:
    """`open_version`, the same on all ranks: rank 0 looks the name up once. Collective: all ranks must call it.

    A branch may move meanwhile, and on a network file system nodes may see it move at different times.
    """
    commit = world.on_main(lambda: open_version(datasets, ref).commit)
    name, revision = split_ref(ref)
    found: list[Version] = []
    # Together, so that all stop where one node cannot read it.
    world.together(lambda: found.append(Version(Store.open(datasets, name), revision, commit)))
    return found[0]


class Version:
    """One commit of a dataset. `columns` are features and label; images are uint8 (H, W, C).

    Whoever opens it for many readers says how they read: `access`, and `stage`, a folder of this node that holds
    copies of objects (stage.py).
    """

    def __init__(self, store: Store, revision: str, commit: str) -> None:
        self.access: Choice = "auto"
        self.stage: Path | None = None
        #: an open file whose lock says that the stage is in use
        self.stage_lock: int | None = None
        self.store = store
        self.name = store.name
        self.revision = revision
        self.commit = commit
        self.contents: Manifest = store.manifest(store.commit_of(commit).manifest)

    @property
    def ref(self) -> str:
        """`name@revision`, as it was asked for."""
        return f"{self.name}@{self.revision}"

    @property
    def pinned(self) -> str:
        """`name@<12 hex of the commit>`: means the same for ever."""
        return f"{self.name}@{short(self.commit)}"

    @property
    def manifest(self) -> dict[str, Any]:
        """The table of contents as JSON."""
        return self.contents.to_json()

    @property
    def num_rows(self) -> int:
        return self.contents.num_rows

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Features and label by name; the identity columns `uid` and `content` can be read, too."""
        return {name: c for name, c in self.contents.columns.items() if c.role != "identity"}

    @property
    def features(self) -> list[str]:
        """The names of the feature columns."""
        return [name for name, column in self.columns.items() if column.role == "feature"]

    @property
    def classes(self) -> list[str]:
        """The classes' names, by the index that the label column holds; empty without labels."""
        label = self.columns.get(LABEL)
        return list(label.classes or []) if label else []

    @cached_property
    def splits(self) -> dict[str, int]:
        """Split → number of rows."""
        return {name: self.contents.splits.extents[name].shape[0] for name in self.contents.split_names}

    def split_rows(self, split: str) -> Rows:
        """The rows of a split, ascending: int64 (n,). Raises UnknownName, CorruptError."""
        if split not in self.splits:
            raise UnknownName(f"split of {self.ref} called", split, self.splits)
        return self.store.get(self.contents.splits, split)

    @cached_property
    def _readers(self) -> dict[str, Reader]:
        return {}

    def split_of_rows(self) -> list[str]:
        """Each row's split, in order of row."""
        names = np.full(self.num_rows, "", dtype=object)
        for split in self.splits:
            names[self.split_rows(split)] = split
        return [str(name) for name in names]

    def read(self, column: str, rows: Rows | None = None) -> Array:
        """A column's values, all or those of `rows`, in memory: (n, *shape). Raises UnknownName, CorruptError."""
        if column not in self.contents.columns:
            raise UnknownName(f"column of {self.ref} called", column, self.columns)
        if rows is not None:
            if column not in self._readers:
                self._readers[column] = Reader(self, [column])
            return self._readers[column].gather(rows)[column]
        stored = [group.holder(column) for group in self.contents.row_groups]
        ends = np.cumsum([0, *(one.extents[column].shape[0] for one in stored)]).tolist()
        form = self.contents.columns[column]
        found = np.empty((ends[-1], *form.shape), form.dtype)
        for one, start, stop in zip(stored, ends, ends[1:], strict=False):
            self.store.get(one, column, found[start:stop])
        return found

    def uids(self, rows: Rows | None = None) -> list[str]:
        """The rows' immutable names, 32 hex digits each."""
        return [uid.tobytes().hex() for uid in self.read(UID, rows)]

    def find(self, uids: list[str]) -> Rows:
        """The row of each uid, -1 where there is none: int64 (len(uids),). Raises ValueError on what is no uid."""
        return places(uids_from_hex(uids), self.read(UID))

    def label_index(self, name: str) -> int:
        """The index of a class given by its name or its index. Raises InputError."""
        if name in self.classes:
            return self.classes.index(name)
        if name.isascii() and name.isdigit() and int(name) < len(self.classes):
            return int(name)
        raise InputError(
            f"label '{name}' is out of range: the classes of {self.ref} are {', '.join(self.classes)} "
            f"(or 0 to {len(self.classes) - 1})."
        )
