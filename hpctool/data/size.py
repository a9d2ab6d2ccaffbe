"""Size: how many bytes each version needs, how many of them it shares with others, and what nothing needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hpctool.data.reach import Damage, Reach, Reached
from hpctool.data.store import Store, short


@dataclass(frozen=True)
class VersionSize:
    """One version: all its bytes, those that no other version needs, and the rest."""

    version: str
    commit: str
    num_rows: int
    num_files: int
    size_bytes: int
    unique_bytes: int

    @property
    def shared_bytes(self) -> int:
        return self.size_bytes - self.unique_bytes


@dataclass(frozen=True)
class StoreSize:
    """A whole dataset. `unneeded` is what `gc` may take in time, `trash` what it has taken."""

    versions: list[VersionSize]
    num_files: int
    size_bytes: int
    unneeded_files: int
    unneeded_bytes: int
    trash_bytes: int
    damaged: list[Damage]


def size(store: Store) -> StoreSize:
    """Measure every version that branches, tags and their histories lead to, the newest first. Raises OSError."""
    reach = Reach(store)
    found = sorted(reach.walk(), key=lambda reached: reached.commit.time, reverse=True)
    there = {path: path.stat().st_size for path in store.layout.addressed()}
    paths = {reached.commit.id: set(reached.paths(store)) & there.keys() for reached in found}
    users = Counter(path for needed in paths.values() for path in needed)
    unneeded = there.keys() - users.keys()
    thrown = [path for path in store.layout.trash.rglob("*") if path.is_file()]
    return StoreSize(
        versions=[_version_size(store, reached, paths[reached.commit.id], there, users) for reached in found],
        num_files=len(there),
        size_bytes=sum(there.values()),
        unneeded_files=len(unneeded),
        unneeded_bytes=sum(there[path] for path in unneeded),
        trash_bytes=sum(path.stat().st_size for path in thrown),
        damaged=reach.damaged,
    )


def _version_size(
    store: Store, reached: Reached, needed: set[Path], there: dict[Path, int], users: Counter[Path]
) -> VersionSize:
    names = [name for name in reached.names if not name.endswith(short(reached.commit.id))]
    return VersionSize(
        version=" ".join(name.partition("@")[2] for name in names),
        commit=reached.commit.id,
        num_rows=reached.num_rows,
        num_files=len(needed),
        size_bytes=sum(there[path] for path in needed),
        unique_bytes=sum(there[path] for path in needed if users[path] == 1),
    )
