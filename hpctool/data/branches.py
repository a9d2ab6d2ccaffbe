"""Branches: where each one is, also where its commit is lost, and what of it is left then."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from hpctool.data.store import Store, commit_in
from hpctool.errors import CorruptError, HpctoolError, NewerFormat


@dataclass(frozen=True)
class Tip:
    """Where a branch is; `problem` says why that cannot be read, and `whole` is its newest commit that can be."""

    branch: str
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
            problem = error.problem if isinstance(error, CorruptError) else str(error)
            what = "its commit cannot be read: " if commit else ""
            found.append(Tip(branch, commit, what + problem, _whole(store, branch)))
    return found


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
