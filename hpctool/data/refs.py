"""Refs: where branches and tags lead, also where that is lost, and what is left then."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from hpctool import files
from hpctool.data.store import Store, commit_in, short
from hpctool.errors import CorruptError, HpctoolError, InputError, NewerFormat, UnknownName


@dataclass(frozen=True)
class Tip:
    """Where a ref leads; `problem` says why that cannot be read, `whole` is a branch's newest commit that can."""

    ref: str
    commit: str
    problem: str = ""
    whole: str = ""


def tips(store: Store) -> list[Tip]:
    """All branches in order of name. One that is damaged says so and does not hide the others."""
    found = []
    for branch in store.branches():
        try:
            tip = store.tip(branch)
            if tip is not None:  # else ended meanwhile
                found.append(Tip(branch, tip.id))
        except (CorruptError, NewerFormat) as error:
            commit = _named(store, branch)
            found.append(Tip(branch, commit, _problem(error, commit), _whole(store, branch)))
    return found


def tags(store: Store) -> list[Tip]:
    """All tags in order of name; one that is damaged says so."""
    found = []
    for tag in store.tag_names():
        commit = ""
        try:
            commit = store.read_tag(tag)
            found.append(Tip(tag, store.commit_of(commit).id))
        except (CorruptError, NewerFormat) as error:
            found.append(Tip(tag, commit, _problem(error, commit)))
    return found


def drop_tag(store: Store, tag: str) -> str:
    """Take away a tag that leads nowhere, so that others can be collected again; the commit that it named, if known.

    Raises UnknownName, and InputError where it leads somewhere: tags are for ever.
    """
    found = next((one for one in tags(store) if one.ref == tag), None)
    if found is None:
        raise UnknownName(f"tag of dataset '{store.name}' called", tag, store.tag_names())
    if not found.problem:
        raise InputError(f"{store.name}@{tag} is commit {short(found.commit)}, which is there; a tag is for ever.")
    path = store.layout.tags / tag
    path.unlink(missing_ok=True)
    files.fsync_dir(path.parent)
    return found.commit


def _problem(error: CorruptError | NewerFormat, commit: str) -> str:
    problem = error.problem if isinstance(error, CorruptError) else str(error)
    return f"its commit cannot be read: {problem}" if commit else problem


def _named(store: Store, branch: str) -> str:
    """The commit that a branch's last entry names, empty where that cannot be read."""
    entries = store.moves(branch)
    return (
        str(entries[-1].body.get("commit", "")) if entries and entries[-1].number == store.head(branch).last() else ""
    )


def _whole(store: Store, branch: str) -> str:
    """The newest commit of a branch that can be read, with its table of contents; empty where none can."""
    for entry in reversed(store.moves(branch)):
        with contextlib.suppress(HpctoolError):
            commit = store.commit_of(commit_in(store.head(branch).path(entry.number), entry.body))
            store.manifest(commit.manifest)
            return commit.id
    return ""
