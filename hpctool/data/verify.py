"""Verify: is everything that a version needs there, and is it what was written?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpctool.data.commit import Commit
from hpctool.data.objects import StoredObject, array_digest, damage
from hpctool.data.store import Store, short
from hpctool.data.version import Version
from hpctool.errors import CorruptError, NewerFormat


@dataclass(frozen=True)
class Damage:
    """One file that is not what was written, and the versions that need it."""

    path: str
    problem: str
    versions: list[str]


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


def verify_objects(version: Version, columns: Sequence[str] | None = None, *, checksums: bool = True) -> list[Damage]:
    """The damaged objects among those that hold some columns (None: all) and the splits of a version."""
    contents = version.contents
    names = list(contents.columns) if columns is None else list(columns)
    needed = [contents.splits, *(group.holder(name) for group in contents.row_groups for name in names)]
    found = []
    for stored in {stored.id: stored for stored in needed}.values():
        path = version.store.layout.object(stored.id)
        if problem := damage(path, stored.id, stored.size_bytes, checksum=checksums):
            found.append(Damage(str(path), problem, [version.ref]))
    return found


def check_readable(version: Version, columns: Sequence[str] | None = None, *, checksums: bool = True) -> None:
    """Refuse to read damaged data: before training, for all objects of some columns. Raises CorruptError.

    That every object is there with its size is always checked; checksums cost a pass over the data (1.4 GB/s).
    """
    found = verify_objects(version, columns, checksums=checksums)
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
    report = Report()
    names: dict[str, list[str]] = {}
    for ref, commit_id in _refs(store, report):
        names.setdefault(commit_id, []).append(ref)
    users: dict[str, tuple[StoredObject, list[str]]] = {}
    manifests: set[str] = set()
    for commit, name in _commits(store, names, report):
        if commit.changes:
            users.setdefault(commit.changes.id, (commit.changes, []))[1].append(name)
        try:
            contents = store.manifest(commit.manifest)
        except (CorruptError, NewerFormat) as error:
            report.damaged.append(_said(error, [name]))
            continue
        manifests.add(commit.manifest)
        for stored in contents.objects:
            users.setdefault(stored.id, (stored, []))[1].append(name)
    report.num_manifests, report.num_objects = len(manifests), len(users)
    for stored, versions in users.values():
        report.size_bytes += stored.size_bytes
        if problem := _object_damage(store, stored, deep):
            report.damaged.append(Damage(str(store.layout.object(stored.id)), problem, versions))
    return report


def _refs(store: Store, report: Report) -> Iterable[tuple[str, str]]:
    """(`name@ref`, commit) of every branch's tip and every tag, and (`name@branch`, commit) of what came before."""
    for branch in store.branches():
        log = store.head(branch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken entries are reported here
            entries = log.entries()
        for name, problem in sorted(log.broken.items()):
            report.damaged.append(Damage(str(log.folder / name), problem, [f"{store.name}@{branch}"]))
        for entry in entries:
            is_tip = entry is entries[-1]
            commit_id = str(entry.body["commit"])
            yield f"{store.name}@{branch}" if is_tip else f"{store.name}@{short(commit_id)}", commit_id
    for tag in store.tag_names():
        try:
            yield f"{store.name}@{tag}", store.read_tag(tag)
        except CorruptError as error:
            report.damaged.append(_said(error, [f"{store.name}@{tag}"]))


def _commits(store: Store, names: dict[str, list[str]], report: Report) -> Iterable[tuple[Commit, str]]:
    """Every commit that can be reached, once, with the name that people know it by."""
    waiting = [(commit_id, " ".join(found)) for commit_id, found in names.items()]
    seen = set(names)
    while waiting:
        commit_id, name = waiting.pop()
        try:
            commit = store.commit_of(commit_id)
        except (CorruptError, NewerFormat) as error:
            report.damaged.append(_said(error, [name]))
            continue
        report.num_commits += 1
        yield commit, name
        for parent in commit.parents:
            if parent not in seen:
                seen.add(parent)
                waiting.append((parent, f"{store.name}@{short(parent)}"))


def _object_damage(store: Store, stored: StoredObject, deep: bool) -> str:
    problem = damage(store.layout.object(stored.id), stored.id, stored.size_bytes, checksum=deep)
    if problem or not deep:
        return problem
    for name, extent in stored.extents.items():
        if array_digest(store.get(stored, name)) != extent.digest:
            return f"column '{name}' does not lie where its manifest says"
    return ""


def _said(error: CorruptError | NewerFormat, versions: list[str]) -> Damage:
    problem = error.problem if isinstance(error, CorruptError) else str(error)
    return Damage(str(Path(error.path)), problem, versions)
