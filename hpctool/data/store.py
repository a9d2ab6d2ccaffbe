"""Store: one dataset's folder, safe for many writers without a lock. Objects and manifests in, commits onto branches.

Everything is immutable but the branches, and these are logs (files.py): a commit becomes visible when its entry is
created. Whoever comes second looks at what happened meanwhile and decides again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from hpctool import files
from hpctool.data.commit import Commit, Draft
from hpctool.data.filters import Filter
from hpctool.data.layout import FORMAT, Layout, check_name
from hpctool.data.manifest import Manifest, check_format
from hpctool.data.objects import StoredObject, read_array, write_object
from hpctool.data.ragged import Values
from hpctool.errors import CorruptError, InputError, UnknownName, listing
from hpctool.log import Log, decode_entry, encode_entry
from hpctool.rundir import now, who
from hpctool.world import Array

#: Given the tip, decides what follows it: a draft, or the tip itself where there is nothing to do.
Decide = Callable[[Commit | None], Draft | Commit]

_SHORT = 12  # hex digits of a commit that tables and sentences show
_MIN_PREFIX = 4


def short(commit_id: str) -> str:
    """The beginning of a commit's id, as people see and type it."""
    return commit_id[:_SHORT]


class Store:
    """One dataset: `<datasets>/<name>`. Use `Store.create` or `Store.open`."""

    def __init__(self, root: Path, primitive: files.Primitive) -> None:
        self.root = root
        self.name = root.name
        self.layout = Layout(root)
        self.primitive = primitive

    @classmethod
    def create(cls, datasets: Path, name: str) -> Store:
        """The dataset, made if it is not there. Raises InputError on the name, NewerFormat, OSError."""
        layout = Layout(datasets / check_name("dataset", name))
        if not layout.format_file.exists():
            for folder in (layout.heads, layout.tags, layout.tmp):
                folder.mkdir(parents=True, exist_ok=True)
            record = {"format": FORMAT, "hash": "sha256", "primitive": files.probe(layout.root), "created": now()}
            files.create(layout.format_file, files.canonical_json(record) + b"\n")
        return cls.open(datasets, name)

    @classmethod
    def open(cls, datasets: Path, name: str) -> Store:
        """A dataset that is there. Raises UnknownName, NewerFormat, CorruptError."""
        layout = Layout(datasets / check_name("dataset", name))
        try:
            record = files.read_json(layout.format_file)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UnknownName("dataset", name, list_datasets(datasets), f"They lie in {datasets}.") from error
        check_format(layout.format_file, "dataset", record)
        if record.get("primitive") not in ("link", "symlink"):
            raise CorruptError(layout.format_file, f"its primitive is {record.get('primitive')!r}")
        return cls(layout.root, cast(files.Primitive, record["primitive"]))

    # -- what is immutable

    def put(self, columns: Mapping[str, Values], filters: Mapping[str, Filter] | None = None) -> StoredObject:
        """Store columns as one object; see `write_object`."""
        return write_object(self.layout, columns, filters)

    def get(self, stored: StoredObject, name: str) -> Array:
        """One array of an object, in memory. Raises CorruptError."""
        return read_array(self.layout, stored, name)

    def put_manifest(self, manifest: Manifest) -> str:
        """Store a table of contents and return its id."""
        return self._put_json(self.layout.manifest, manifest.to_json())

    def manifest(self, manifest_id: str) -> Manifest:
        """A table of contents. Raises CorruptError, NewerFormat."""
        path = self.layout.manifest(manifest_id)
        return Manifest.from_json(path, self.read_addressed(path))

    def commit_of(self, commit_id: str) -> Commit:
        """A commit by its full id. Raises CorruptError, NewerFormat."""
        path = self.layout.commit(commit_id)
        return Commit.from_json(path, self.read_addressed(path))

    def read_addressed(self, path: Path) -> Any:
        """The JSON of a file that is named by its checksum. Raises CorruptError where it is missing or differs."""
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise CorruptError(path, "it is missing") from error
        if files.sha256_bytes(data) != path.stem:
            raise CorruptError(path, "its bytes do not fit its checksum")
        return files.read_json(path)

    # -- history

    def commit(self, branch: str, decide: Decide) -> Commit:
        """Move a branch by one commit, which `decide` drafts from the tip it is shown, again if others were quicker.

        Raises whatever `decide` raises, ConflictError above all; the branch then is as it was.
        """
        log = self.head(check_name("branch", branch))
        while True:
            number = log.last()
            tip = self.tip(branch)
            decided = decide(tip)
            if isinstance(decided, Commit):
                return decided
            made = self._put_json(self.layout.commit, decided.to_json(tip.id if tip else None))
            if log.cas({"commit": made, "by": who(), "time": now()}, after=number):
                return self.commit_of(made)

    def tip(self, branch: str) -> Commit | None:
        """The newest commit of a branch, None for a branch that is not there. Raises CorruptError."""
        log = self.head(branch)
        last = log.last()
        newest = log.newest()
        if newest is None or newest.number < last:
            if last == 0:
                return None
            # Going on from an older entry would silently drop commits.
            known = f" The newest that can be read is {short(newest.body['commit'])}." if newest else ""
            raise CorruptError(log.path(last), f"the tip of branch '{branch}' cannot be read", known.strip())
        return self.commit_of(newest.body["commit"])

    def history(self, commit_id: str) -> Iterator[Commit]:
        """The commit and its first parents, newest first. Raises CorruptError."""
        following: str | None = commit_id
        while following:
            commit = self.commit_of(following)
            yield commit
            following = commit.parents[0] if commit.parents else None

    def head(self, branch: str) -> Log:
        """The log of a branch's moves; a new object reads everything anew."""
        return Log(self.layout.heads / branch, self.primitive)

    # -- names of commits

    def branches(self) -> list[str]:
        """The branches that have a commit, in order of name."""
        return [name for name in _names_in(self.layout.heads) if self.head(name).last()]

    def tags(self) -> dict[str, str]:
        """Tag → commit, in order of name. Raises CorruptError."""
        return {name: self.read_tag(name) for name in self.tag_names()}

    def tag_names(self) -> list[str]:
        """The tags, in order of name; none is read."""
        return _names_in(self.layout.tags)

    def read_tag(self, tag: str) -> str:
        """The commit that a tag which is there names. Raises CorruptError."""
        path = self.layout.tags / tag
        return str(decode_entry(path, path.read_bytes())["commit"])

    def create_branch(self, branch: str, commit_id: str) -> None:
        """Begin a branch at a commit. Raises InputError where the name is taken."""
        self._check_free(check_name("branch", branch))
        if not self.head(branch).cas({"commit": commit_id, "by": who(), "time": now()}, after=0):
            raise InputError(f"Dataset '{self.name}' has a branch '{branch}' since a moment ago; choose another name.")

    def create_tag(self, tag: str, commit_id: str) -> None:
        """Name a commit for ever. The same tag on the same commit is fine; InputError where it names another."""
        path = self.layout.tags / check_name("tag", tag)
        if not path.exists():
            self._check_free(tag)
            body = {"commit": commit_id, "by": who(), "time": now()}
            files.create(path, encode_entry(body), primitive=self.primitive)
        self.check_tag(tag, commit_id)

    def check_tag(self, tag: str, commit_id: str) -> None:
        """Raises InputError where the tag exists and names another commit."""
        if tag in self.tag_names() and (there := self.read_tag(tag)) != commit_id:
            raise InputError(
                f"Tag '{tag}' of dataset '{self.name}' names {short(there)} and never moves; "
                f"for {short(commit_id)} choose another name."
            )

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag or the beginning of a commit names. Raises UnknownName, InputError."""
        if revision in self.branches():
            tip = self.tip(revision)
            assert tip is not None
            return tip.id
        if revision in self.tag_names():
            return self.read_tag(revision)
        if len(revision) >= _MIN_PREFIX and not set(revision) - set("0123456789abcdef"):
            found = self.layout.commits_like(revision)
            if len(found) == 1:
                return found[0]
            if found:
                raise InputError(f"'{revision}' is the beginning of {len(found)} commits: {listing(found)}.")
        known = [*self.branches(), *self.tag_names()]
        raise UnknownName(f"revision of dataset '{self.name}' called", revision, known)

    # -- inside

    def _check_free(self, name: str) -> None:
        for kind, taken in (("branch", self.branches()), ("tag", self.tag_names())):
            if name in taken:
                raise InputError(f"Dataset '{self.name}' has a {kind} '{name}' already; choose another name.")

    def _put_json(self, home: Callable[[str], Path], value: Any) -> str:
        data = files.canonical_json(value)
        digest = files.sha256_bytes(data)
        path = home(digest)
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(path, data, mode=0o444)
        return digest


def list_datasets(datasets: Path) -> list[str]:
    """The names of the datasets in a folder, in order; empty where there is none."""
    return [name for name in _names_in(datasets) if Layout(datasets / name).format_file.exists()]


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
