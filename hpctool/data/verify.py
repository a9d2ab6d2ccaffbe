"""Verify: is everything that a version needs there, and is it what was written?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hpctool import files
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
    # The same object with other offsets is another thing to look at.
    users: dict[bytes, tuple[StoredObject, list[str]]] = {}
    manifests: set[str] = set()
    for commit, names in _commits(store, _names(store, report), report):
        needed = [commit.changes] if commit.changes else []
        try:
            needed += store.manifest(commit.manifest).objects
            manifests.add(commit.manifest)
        except (CorruptError, NewerFormat) as error:
            report.damaged.append(_said(error, names))
        for stored in needed:
            users.setdefault(files.canonical_json(stored.to_json()), (stored, []))[1].extend(names)
    sizes = {stored.id: stored.size_bytes for stored, _ in users.values()}
    report.num_manifests, report.num_objects, report.size_bytes = len(manifests), len(sizes), sum(sizes.values())
    for stored, names in users.values():
        if problem := _object_damage(store, stored, deep):
            report.damaged.append(Damage(str(store.layout.object(stored.id)), problem, list(dict.fromkeys(names))))
    return report


def _names(store: Store, report: Report) -> dict[str, list[str]]:
    """Commit → the branches and tags that name it; empty for those that a branch has left behind."""
    names: dict[str, list[str]] = {}
    for branch in store.branches():
        ref, log = f"{store.name}@{branch}", store.head(branch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken entries are reported here
            entries = log.entries()
        report.damaged += [Damage(str(log.folder / name), text, [ref]) for name, text in sorted(log.broken.items())]
        for entry in entries:
            names.setdefault(str(entry.body["commit"]), []).extend([ref] if entry is entries[-1] else [])
    for tag in store.tag_names():
        ref = f"{store.name}@{tag}"
        try:
            names.setdefault(store.read_tag(tag), []).append(ref)
        except CorruptError as error:
            report.damaged.append(_said(error, [ref]))
    return names


def _commits(store: Store, names: dict[str, list[str]], report: Report) -> Iterator[tuple[Commit, list[str]]]:
    """Every commit that can be reached, once, with the names that people know it by."""
    waiting = list(names)
    seen = set(waiting)
    while waiting:
        commit_id = waiting.pop()
        known_as = names.get(commit_id) or [f"{store.name}@{short(commit_id)}"]
        try:
            commit = store.commit_of(commit_id)
        except (CorruptError, NewerFormat) as error:
            report.damaged.append(_said(error, known_as))
            continue
        report.num_commits += 1
        yield commit, known_as
        waiting += [parent for parent in commit.parents if parent not in seen]
        seen.update(commit.parents)


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
    return Damage(error.path, problem, versions)
