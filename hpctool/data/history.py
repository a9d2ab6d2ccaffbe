"""History: how commits descend from each other. A merge has two parents; all questions here walk both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hpctool.data.commit import Commit
from hpctool.data.store import Store


def ancestors(store: Store, tips: Iterable[str]) -> dict[str, Commit]:
    """The commits and all that they descend from, by id, in no order. Raises CorruptError."""
    found: dict[str, Commit] = {}
    waiting = list(tips)
    while waiting:
        commit_id = waiting.pop()
        if commit_id not in found:
            found[commit_id] = store.commit_of(commit_id)
            waiting += found[commit_id].parents
    return found


def merge_bases(store: Store, a: str, b: str) -> list[str]:
    """The newest common ancestors of two commits, which may be one of them; the last made first.

    After merges in both directions there are several, none of which descends from another. Raises CorruptError.
    """
    of_a, of_b = ancestors(store, [a]), ancestors(store, [b])
    common = of_a.keys() & of_b.keys()
    older = {parent for commit_id in common for parent in of_a[commit_id].parents}
    return sorted(common - older, key=lambda commit_id: (of_a[commit_id].time, commit_id), reverse=True)


def newest_first(commits: Iterable[Commit]) -> list[Commit]:
    """Commits in an order in which each stands before its parents; else by time."""
    left = {commit.id: commit for commit in commits}
    children = dict.fromkeys(left, 0)
    for commit in left.values():
        for parent in commit.parents:
            if parent in children:
                children[parent] += 1
    ready = [commit for commit in left.values() if not children[commit.id]]
    ordered: list[Commit] = []
    while ready:
        ready.sort(key=lambda commit: (commit.time, commit.id))
        commit = ready.pop()
        ordered.append(commit)
        for parent in commit.parents:
            if parent in children:
                children[parent] -= 1
                if not children[parent]:
                    ready.append(left[parent])
    return ordered


@dataclass(frozen=True)
class GraphLine:
    """One line of the drawing beside a log: `commit` is the one that `*` stands for, None on lines between."""

    drawing: str
    commit: str | None


def graph(commits: Sequence[Commit]) -> Iterator[GraphLine]:
    """Draw lines of descent beside commits in the order of `newest_first`, as `git log --graph` does.

    Each column is a line that waits for one commit; a merge opens a column, a fork closes one.
    """
    known = {commit.id for commit in commits}
    columns: list[str] = []
    for commit in commits:
        if commit.id not in columns:
            columns.append(commit.id)
        place = columns.index(commit.id)
        # Lines that fork at this commit end here.
        while columns.count(commit.id) > 1:
            extra = len(columns) - 1 - columns[::-1].index(commit.id)
            yield GraphLine(_drawn(len(columns), place, extra, "┘", "╱"), None)
            del columns[extra]
        yield GraphLine(" ".join("*" if n == place else "│" for n in range(len(columns))), commit.id)
        parents = [parent for parent in commit.parents if parent in known]
        if not parents:
            del columns[place]
            continue
        columns[place] = parents[0]
        for parent in parents[1:]:
            columns.insert(place + 1, parent)
            yield GraphLine(_drawn(len(columns), place, place + 1, "┐", "╲"), None)


def _drawn(num_columns: int, place: int, end: int, corner: str, beyond: str) -> str:
    """A line between: column `end` begins or ends at column `place`, and all beyond it move over by one."""
    cells = ["│"] * end + [corner] + [beyond] * (num_columns - end - 1)
    cells[place] = "├"
    return "".join(cell + ("─" if place <= n < end else " ") for n, cell in enumerate(cells)).rstrip()
