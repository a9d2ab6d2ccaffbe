"""Store: one dataset's folder, safe for many writers without a lock. Objects and manifests in, commits onto branches.

Everything is immutable but the branches, and these are logs (files.py): a commit becomes visible when its entry is
created. Whoever comes second looks at what happened meanwhile and decides again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hpctool import files
from hpctool.data.commit import Commit, Draft
from hpctool.data.filters import Filter
from hpctool.data.layout import FORMAT, Layout, again_if_stale, check_name, fresh
from hpctool.data.manifest import Manifest, check_format
from hpctool.data.objects import StoredObject, read_array, write_object
from hpctool.data.ragged import Values
from hpctool.errors import ConflictError, CorruptError, InputError, NewerFormat, UnknownName, listing
from hpctool.log import Entry, Log, decode_entry, encode_entry
from hpctool.rundir import now, who
from hpctool.world import Array


@dataclass(frozen=True)
class Move:
    """A branch goes on to a commit that is there already: it was behind."""

    commit: str


#: Given the tip, decides what follows it: a draft, a commit to go on to, or what is there already and need not follow.
Decide = Callable[[Commit | None], Draft | Move | Commit]

_SHORT = 12  # hex digits of a commit that tables and sentences show
_MIN_PREFIX = 4
_ID = re.compile(r"[0-9a-f]{64}")


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
                layout.make(folder)
            record = {"format": FORMAT, "hash": "sha256", "primitive": files.probe(layout.root), "created": now()}
            files.create(layout.format_file, files.canonical_json(record) + b"\n", exact=True)
        return cls.open(datasets, name)

    @classmethod
    def open(cls, datasets: Path, name: str) -> Store:
        """A dataset that is there. Raises UnknownName, NewerFormat, CorruptError."""
        layout = Layout(datasets / check_name("dataset", name))
        try:
            record = again_if_stale(lambda: files.read_json(layout.format_file))
        except (FileNotFoundError, NotADirectoryError) as error:
            where, make = f"They lie in {datasets.absolute()}.", f"Make it: hpctool prepare data.name={name} source=…"
            raise UnknownName("dataset", name, list_datasets(datasets), where, make) from error
        check_format(layout.format_file, "dataset", record)
        if record.get("primitive") not in ("link", "symlink"):
            raise CorruptError(layout.format_file, f"its primitive is {record.get('primitive')!r}")
        return cls(layout.root, cast(files.Primitive, record["primitive"]))

    # -- what is immutable

    def put(self, columns: Mapping[str, Values], filters: Mapping[str, Filter] | None = None) -> StoredObject:
        """Store columns as one object; see `write_object`."""
        return write_object(self.layout, columns, filters)

    def get(self, stored: StoredObject, name: str, out: Array | None = None) -> Array:
        """One array of an object, in memory, freshly made or in `out`. Raises CorruptError."""
        return read_array(self.layout, stored, name, out)

    def put_manifest(self, manifest: Manifest) -> str:
        """Store a table of contents and return its id."""
        return self._put_json(self.layout.manifest, manifest.to_json())

    def manifest(self, manifest_id: str) -> Manifest:
        """A table of contents. Raises CorruptError, NewerFormat."""
        path = self.layout.manifest(manifest_id)
        with _uncollected():
            return Manifest.from_json(path, self.read_addressed(path))

    def manifest_in(self, commit: Commit) -> Manifest:
        """The table of contents of a commit, from the trash if it was put there a moment ago. Raises CorruptError."""
        path = self.layout.manifest(commit.manifest)
        if not path.exists():
            self.layout.take_back(path)
        return self.manifest(commit.manifest)

    def commit_of(self, commit_id: str) -> Commit:
        """A commit by its full id. Raises CorruptError, NewerFormat."""
        path = self.layout.commit(commit_id)
        return Commit.from_json(path, self.read_addressed(path))

    def has_commit(self, commit_id: str) -> bool:
        """Whether a full id is that of a commit that is here."""
        return _ID.fullmatch(commit_id) is not None and self.layout.commit(commit_id).exists()

    def read_addressed(self, path: Path) -> Any:
        """The JSON of a file that is named by its checksum. Raises CorruptError where it is missing or differs."""
        try:
            data = again_if_stale(lambda: fresh(path).read_bytes())
        except OSError as error:
            problem = (
                "it is missing" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error.strerror})"
            )
            raise CorruptError(path, problem) from error
        if files.sha256_bytes(data) != path.stem:
            raise CorruptError(path, "its bytes do not fit its checksum")
        return files.parse_json(path, data)

    # -- history

    def commit(self, branch: str, decide: Decide) -> Commit:
        """Move a branch by one commit, which `decide` drafts from the tip it is shown, again if others were quicker.

        Raises whatever `decide` raises, ConflictError above all; the branch then is as it was.
        """
        log = self.head(check_name("branch", branch))
        wait_s = 0.0
        while True:
            number = log.last()
            tip = self.tip(branch)
            decided = decide(tip)
            if isinstance(decided, Commit):
                return decided
            made = decided.commit if isinstance(decided, Move) else self._put_draft(decided, tip)
            if self._move(log, made, after=number):
                commit = self.commit_of(made)
                self._hold(commit, tip)
                return commit
            if isinstance(decided, Draft):
                # Its nonce makes it mine alone, and nothing names it.
                self.layout.commit(made).unlink(missing_ok=True)
            # On NFS a listing may be old for seconds: whoever asks again at once is told the same.
            wait_s = min(1.0, 2 * wait_s + 0.002) if log.last() == number else 0.0
            time.sleep(random.uniform(0.0, wait_s))

    def tip(self, branch: str) -> Commit | None:
        """The newest commit of a branch, None for a branch that is not there. Raises CorruptError."""
        log = self.head(branch)
        last = log.last()
        newest = log.newest()
        if newest is None or newest.number < last:
            if last == 0:
                return None
            # Going on from an older entry would silently drop commits.
            known = f" The newest that can be read is {short(str(newest.body.get('commit')))}." if newest else ""
            raise CorruptError(log.path(last), f"the tip of branch '{branch}' cannot be read", known.strip())
        if newest.body.get("deleted"):
            return None
        try:
            return self.commit_of(commit_in(log.path(last), newest.body))
        except CorruptError as error:
            advice = (
                f"It is the tip of branch '{branch}'. See: hpctool data restore {self.name} --from <second root>; "
                f"hpctool data branch {self.name}"
            )
            raise CorruptError(error.path, error.problem, advice) from error

    def history(self, commit_id: str) -> Iterator[Commit]:
        """The commit and its first parents, newest first. Raises CorruptError."""
        following: str | None = commit_id
        while following:
            commit = self.commit_of(following)
            yield commit
            following = commit.parents[0] if commit.parents else None

    def head(self, branch: str) -> Log:
        """The log of a branch's moves; a new object reads everything anew."""
        return Log(self.layout.heads / branch, self.primitive, shared=True)

    # -- names of commits

    def branches(self) -> list[str]:
        """The branches that are there, in order of name; one whose tip cannot be read is, too."""
        found = []
        for name in _names_in(self.layout.heads):
            log = self.head(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `tip` says what is wrong with it
                newest, last = log.newest(), log.last()
            if last and not (newest and newest.number == last and newest.body.get("deleted")):
                found.append(name)
        return found

    def tags(self) -> dict[str, str]:
        """Tag → commit, in order of name. Raises CorruptError."""
        return {name: self.read_tag(name) for name in self.tag_names()}

    def tag_names(self) -> list[str]:
        """The tags, in order of name; none is read."""
        return _names_in(self.layout.tags)

    def read_tag(self, tag: str) -> str:
        """The commit that a tag which is there names. Raises CorruptError."""
        path = self.layout.tags / tag
        try:
            return commit_in(path, decode_entry(path, again_if_stale(path.read_bytes)))
        except OSError as error:
            raise CorruptError(path, f"it cannot be read ({error.strerror})") from error

    def create_branch(self, branch: str, commit_id: str) -> None:
        """Begin a branch at a commit. Raises InputError where the name is taken."""
        log = self.head(check_name("branch", branch))
        last = log.last()
        self.check_free(branch)
        if not self._move(log, commit_id, after=last):
            raise InputError(f"Dataset '{self.name}' has a branch '{branch}' since a moment ago; choose another name.")
        self._hold(self.commit_of(commit_id), None)

    def delete_branch(self, branch: str) -> str:
        """End a branch; the commit that was its tip. What no other ref needs can be taken by `gc` from now on.

        Also one whose tip is lost for good: else nothing could ever be collected. Raises UnknownName, ConflictError
        where it moved meanwhile, CorruptError where no entry of it can be read.
        """
        log = self.head(check_name("branch", branch))
        last, newest = log.last(), log.newest()
        if newest is None or (newest.number == last and newest.body.get("deleted")):
            raise self.unknown_branch(branch)
        was = commit_in(log.path(newest.number), newest.body)
        if not self._move(log, was, after=last, deleted=True):
            moved = self.tip(branch)
            theirs = f"commit {short(moved.id)}" if moved else "its end"
            raise ConflictError(f"Branch '{branch}' of dataset '{self.name}'", f"its end at {short(was)}", theirs)
        return was

    def reset_branch(self, branch: str, commit_id: str) -> str:
        """Let a branch that is there begin anew at a commit; the commit that it was, empty where that cannot be read.

        What only it led to is needed no more, as if it had been ended. Raises UnknownName, ConflictError where it moved
        meanwhile.
        """
        log = self.head(check_name("branch", branch))
        last, entries = log.last(), self.moves(branch)
        if branch not in self.branches():
            raise self.unknown_branch(branch)
        if not self._move(log, commit_id, after=last, anew=True):
            raise ConflictError(f"Branch '{branch}' of dataset '{self.name}'", short(commit_id), "it has just moved")
        self._hold(self.commit_of(commit_id), None)
        return str(entries[-1].body.get("commit", "")) if entries and entries[-1].number == last else ""

    def moves(self, branch: str) -> list[Entry]:
        """A branch's entries since it began, or began anew, the oldest first; those that can be read."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `tip` and `verify` say what is wrong with the others
            entries = self.head(branch).entries()
        begin = 0
        for place, entry in enumerate(entries):
            if entry.body.get("deleted"):
                begin = place + 1
            elif entry.body.get("anew"):
                begin = place
        return entries[begin:]

    def unknown_branch(self, branch: str) -> UnknownName:
        """The error for a branch that is not there."""
        return UnknownName(f"branch of dataset '{self.name}' called", branch, self.branches())

    def create_tag(self, tag: str, commit_id: str) -> None:
        """Name a commit for ever. The same tag on the same commit is fine; InputError where it names another."""
        path = self.layout.tags / check_name("tag", tag)
        if not path.exists():
            self.check_free(tag)
            body = {"commit": commit_id, "by": who(), "time": now()}
            self.layout.make(path.parent)
            files.create(path, encode_entry(body), exact=True, primitive=self.primitive)
        self.check_tag(tag, commit_id)

    def check_tag(self, tag: str, commit_id: str) -> None:
        """Raises InputError where the tag exists and names another commit."""
        if tag in self.tag_names() and (there := self.read_tag(tag)) != commit_id:
            raise InputError(
                f"Tag '{tag}' of dataset '{self.name}' names {short(there)} and never moves; "
                f"for {short(commit_id)} choose another name."
            )

    def check_free(self, name: str) -> None:
        """Raises InputError where a branch or tag has this name."""
        for kind, taken in (("branch", self.branches()), ("tag", self.tag_names())):
            if name in taken:
                raise InputError(f"Dataset '{self.name}' has a {kind} '{name}' already; choose another name.")

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag or the beginning of a commit names. Raises UnknownName, InputError."""
        if revision in self.branches():
            tip = self.tip(revision)
            assert tip is not None
            return tip.id
        if revision in self.tag_names():
            return self.read_tag(revision)
        if self.has_commit(revision):
            return revision  # asked for in full it is found where a listing is old
        if len(revision) >= _MIN_PREFIX and not set(revision) - set("0123456789abcdef"):
            found = self.layout.commits_like(revision)
            if len(found) == 1:
                return found[0]
            if found:
                raise InputError(f"'{revision}' is the beginning of {len(found)} commits: {listing(found)}.")
        known = [*self.branches(), *self.tag_names()]
        raise UnknownName(f"revision of dataset '{self.name}' called", revision, known)

    # -- inside

    def _move(self, log: Log, commit_id: str, after: int, **more: bool) -> bool:
        """Let a branch go to a commit, unless it has moved since entry `after`."""
        self.layout.make(log.folder)
        return log.cas({"commit": commit_id, "by": who(), "time": now(), **more}, after=after)

    def _put_draft(self, draft: Draft, tip: Commit | None) -> str:
        return self._put_json(self.layout.commit, draft.to_json(tip.id if tip else None))

    def _hold(self, commit: Commit, tip: Commit | None) -> None:
        """Take back from the trash what a gc that saw the branches before this move may have put there.

        Together with its own second look (gc.py) nothing is lost: it moves files and looks at the branches then; here
        the branch moves and the files are looked at then. One of the two comes second and sees the other.
        """
        if not self.layout.has_trash():
            return
        with contextlib.suppress(NewerFormat):  # what cannot be read here is none of what was put here
            self._hold_all(commit, tip)

    def _hold_all(self, commit: Commit, tip: Commit | None) -> None:
        contents = self.manifest_in(commit)
        there = {stored.id for stored in self.manifest_in(tip).objects} if tip else set()
        needed = [self.layout.object(stored.id) for stored in contents.objects if stored.id not in there]
        needed += [self.layout.object(commit.changes.id)] if commit.changes else []
        needed += [self.layout.manifest(commit.manifest), self.layout.commit(commit.id)]
        for path in needed:
            if not path.exists():
                self.layout.take_back(path)

    def _put_json(self, home: Callable[[str], Path], value: Any) -> str:
        data = files.canonical_json(value)
        digest = files.sha256_bytes(data)
        path = home(digest)
        if not path.exists() or path.read_bytes() != data or not self.layout.renew(path):
            self.layout.write(path, data)
        return digest


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector, which takes half of the time in which many objects are made and none is let go."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def commit_in(path: Path, body: Mapping[str, Any]) -> str:
    """The commit that an entry of a branch or a tag names. Raises CorruptError."""
    commit_id = body.get("commit")
    if not isinstance(commit_id, str) or not _ID.fullmatch(commit_id):
        raise CorruptError(path, "it names no commit")
    return commit_id


def list_datasets(datasets: Path) -> list[str]:
    """The names of the datasets in a folder, in order; empty where there is none."""
    return [name for name in _names_in(datasets) if Layout(datasets / name).format_file.exists()]


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
