"""Verify: is everything that a version needs there, and is it what was written?"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from hpctool import files
from hpctool.data.objects import StoredObject, array_digest, damage
from hpctool.data.reach import Damage, Reach
from hpctool.data.store import Store
from hpctool.data.version import Version
from hpctool.errors import CorruptError

_THREADS = 4


@dataclass
class Report:
    """What `verify` looked at and found."""

    num_commits: int = 0
    num_manifests: int = 0
    num_objects: int = 0
    size_bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify_objects(
    version: Version, columns: Sequence[str] | None = None, *, checksums: bool = True, rank: int = 0, size: int = 1
) -> list[Damage]:
    """The damaged objects among those that hold some columns (None: all) and the splits of a version.

    Of `size` ranks that share the work this one looks at its part, by several threads: a shared file system is slow
    to answer and quick to deliver.
    """
    contents = version.contents
    names = list(contents.columns) if columns is None else list(columns)
    needed = [contents.splits, *(group.holder(name) for group in contents.row_groups for name in names)]
    mine = list({stored.id: stored for stored in needed}.values())[rank::size]

    def problem_of(stored: StoredObject) -> str:
        return damage(version.store.layout.object(stored.id), stored.id, stored.size_bytes, checksum=checksums)

    with ThreadPoolExecutor(_THREADS) as threads:
        problems = zip(mine, threads.map(problem_of, mine), strict=True)
        return [
            Damage(str(version.store.layout.object(stored.id)), problem, [version.ref])
            for stored, problem in problems
            if problem
        ]


def check_readable(
    version: Version, columns: Sequence[str] | None = None, *, checksums: bool = True, rank: int = 0, size: int = 1
) -> None:
    """Refuse to read damaged data: before training, for all objects of some columns. Raises CorruptError.

    That every object is there with its size is always checked; checksums cost a pass over the data (1.4 GB/s and core).
    Several ranks each look at their part.
    """
    found = verify_objects(version, columns, checksums=checksums, rank=rank, size=size)
    if found:
        more = f"; {len(found) - 1} more objects are damaged, too" if len(found) > 1 else ""
        raise CorruptError(
            found[0].path,
            found[0].problem + more,
            f"{version.pinned} needs it and is not read. See: hpctool data verify {version.name} --deep",
        )


def verify(store: Store, *, deep: bool = False) -> Report:
    """Look at everything that branches and tags lead to: refs, commits, manifests and objects.

    Objects are checked for being there with their size; `deep` reads them all, and the arrays at their offsets.
    """
    report, reach = Report(), Reach(store)
    # The same object with other offsets is another thing to look at.
    users: dict[bytes, tuple[StoredObject, list[str], list[str]]] = {}
    manifests: set[str] = set()
    for reached in reach.walk():
        report.num_commits += 1
        manifests.add(reached.commit.manifest)
        for stored in reached.objects:
            known = users.setdefault(files.canonical_json(stored.to_json()), (stored, [], []))
            known[1].extend(reached.names)
            known[2].extend(reached.runs)
    sizes = {stored.id: stored.size_bytes for stored, *_ in users.values()}
    report.num_manifests, report.num_objects, report.size_bytes = len(manifests), len(sizes), sum(sizes.values())
    report.damaged = reach.damaged
    for stored, names, runs in users.values():
        if problem := _object_damage(store, stored, deep):
            path = str(store.layout.object(stored.id))
            report.damaged.append(Damage(path, problem, list(dict.fromkeys(names)), list(dict.fromkeys(runs))))
    return report


def _object_damage(store: Store, stored: StoredObject, deep: bool) -> str:
    problem = damage(store.layout.object(stored.id), stored.id, stored.size_bytes, checksum=deep)
    if problem or not deep:
        return problem
    for name, extent in stored.extents.items():
        if array_digest(store.get(stored, name)) != extent.digest:
            return f"column '{name}' does not lie where its manifest says"
    return ""
