"""Reach: what names lead to. From branches, tags and runs over commits and manifests to every file that is needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpctool.data.commit import Commit
from hpctool.data.objects import StoredObject
from hpctool.data.store import Store, commit_in, short
from hpctool.data.usage import Use, uses
from hpctool.errors import CorruptError, HpctoolError, NewerFormat

#: Commit → the names that people know it by, if any.
Names = dict[str, list[str]]


@dataclass(frozen=True)
class Damage:
    """One file that is not what was written, and the versions that need it and the runs that used those."""

    path: str
    problem: str
    versions: list[str]
    runs: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, error: HpctoolError, versions: Sequence[str], runs: Sequence[str] = ()) -> Damage:
        """What an error says."""
        path = error.path if isinstance(error, CorruptError | NewerFormat) else ""
        problem = error.problem if isinstance(error, CorruptError) else str(error)
        return cls(path, problem, list(versions), list(runs))


@dataclass
class Reached:
    """A commit that is needed, with its names, the runs that used it, and what it needs itself."""

    commit: Commit
    names: list[str]
    runs: list[str]
    num_rows: int
    objects: list[StoredObject]

    def paths(self, store: Store) -> Iterator[Path]:
        """Every file of this version."""
        layout = store.layout
        yield layout.commit(self.commit.id)
        yield layout.manifest(self.commit.manifest)
        yield from (layout.object(stored.id) for stored in self.objects)


class Reach:
    """What can be reached in a store. `damaged` says what could not be followed, with the names that lead there."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.damaged: list[Damage] = []
        self.names = self._refs()
        self.runs: dict[str, list[str]] = {}
        for use in uses(store):
            if isinstance(use, Use):
                self.runs.setdefault(use.commit, []).append(use.run)
            else:
                self.damaged.append(Damage.of(use, []))

    def walk(self, more: Iterable[str] = ()) -> Iterator[Reached]:
        """Every commit that the refs and `more` lead to, once; a part that is damaged is in `damaged` afterwards.

        A run's commit that is neither is gone rightly: gc has taken it after its branch was deleted.
        """
        waiting = [*self.names, *more]
        seen = set(waiting)
        while waiting:
            commit_id = waiting.pop()
            names = self.names.get(commit_id) or [f"{self.store.name}@{short(commit_id)}"]
            runs = self.runs.get(commit_id, [])
            try:
                commit = self.store.commit_of(commit_id)
            except (CorruptError, NewerFormat) as error:
                self.damaged.append(Damage.of(error, names, runs))
                continue
            objects, num_rows = [commit.changes] if commit.changes else [], 0
            try:
                manifest = self.store.manifest(commit.manifest)
                objects, num_rows = objects + manifest.objects, manifest.num_rows
            except (CorruptError, NewerFormat) as error:
                self.damaged.append(Damage.of(error, names, runs))
            yield Reached(commit, names, runs, num_rows, objects)
            waiting += [parent for parent in commit.parents if parent not in seen]
            seen.update(commit.parents)

    def _refs(self) -> Names:
        """The commits that branches and tags name, also those that a branch has left behind since it began."""
        names: Names = {}
        for branch in self.store.branches():
            ref, log = f"{self.store.name}@{branch}", self.store.head(branch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # broken entries are reported here
                log.entries()
            self.damaged += [Damage(str(log.folder / name), why, [ref]) for name, why in sorted(log.broken.items())]
            entries = self.store.moves(branch)
            for entry in entries:
                self._name(names, entry.body, log.path(entry.number), ref, entry is entries[-1])
        for tag in self.store.tag_names():
            ref, path = f"{self.store.name}@{tag}", self.store.layout.tags / tag
            try:
                self._name(names, {"commit": self.store.read_tag(tag)}, path, ref, True)
            except (CorruptError, NewerFormat) as error:
                self.damaged.append(Damage.of(error, [ref]))
        return names

    def _name(self, names: Names, body: Mapping[str, object], path: Path, ref: str, is_tip: bool) -> None:
        try:
            names.setdefault(commit_in(path, body), []).extend([ref] if is_tip else [])
        except CorruptError as error:
            self.damaged.append(Damage.of(error, [ref]))
