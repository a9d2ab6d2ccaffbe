"""Labels: changed by a commit that writes labels only and says who changed which, when and why; and asked for that."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hpctool.data.commit import Commit, Draft
from hpctool.data.csvtable import read_csv
from hpctool.data.identity import Digests, places, uids_from_hex
from hpctool.data.layout import check_name
from hpctool.data.manifest import LABEL, MISSING, NO_LABEL, UID, Manifest
from hpctool.data.objects import StoredObject
from hpctool.data.stats import label_counts
from hpctool.data.store import Store, short
from hpctool.data.version import Version
from hpctool.errors import ConflictError, InputError, SourceError, listing
from hpctool.rundir import now, who

#: What people read where there is no label.
NO_LABEL_TEXT = "(no label)"
#: The author of labels that came in with the data.
IMPORT = "import"
#: A class that another version has not.
_NO_CLASS = NO_LABEL - 1
#: Files that are written at once.
_WRITERS = 8


class Change(NamedTuple):
    """One label to be set: `label` is a class index, or -1 for none; who decided it, why, and when (ISO 8601)."""

    uid: str
    label: int
    who: str
    why: str
    when: str


@dataclass(frozen=True)
class Blame:
    """One setting of a row's label: class names, empty for no label; the first has no `old`.

    `who` is `import` where the label came with the data: whoever prepared them did not look at it.
    """

    commit: str
    old: str
    new: str
    who: str
    when: str
    why: str


def relabel(
    store: Store,
    branch: str,
    changes: Sequence[Change | tuple[str, int, str, str, str]],
    message: str,
    tag: str | None = None,
    *,
    base: str | None = None,
    run: str = "",
    origin: str = "",
) -> Commit:
    """Commit changed labels onto a branch; the tip itself where all labels are so already.

    `base` is the commit whose labels the deciders saw (default: the tip). A row that was changed otherwise since is a
    ConflictError that names both; other rows' changes are kept. `origin` says in the commit where the labels come from.
    Raises InputError on rows or labels that are not there and on a tag that is taken; the dataset is unchanged then.
    """
    wanted = [Change(*change) for change in changes]
    seen = Version(store, branch, base or _tip(store, branch).id)
    rows_seen = _check(seen, wanted)
    if tag is not None:
        check_name("tag", tag)
    uids = [change.uid for change in wanted]
    labels_seen = seen.read(LABEL, rows_seen)

    def decide(tip: Commit | None) -> Draft | Commit:
        if tip is None:  # deleted meanwhile
            raise store.unknown_branch(branch)
        unmoved = tip.id == seen.commit
        current = seen if unmoved else Version(store, branch, tip.id)
        rows = rows_seen if unmoved else current.find(uids)
        there = _in_classes_of(current, seen, wanted)
        new = np.array([change.label for change in there], np.int64)
        now_there = _labels_there(current, there, rows, _indices(current, seen, labels_seen), new)
        effective = np.flatnonzero(now_there != new)
        if not effective.size:
            return tip
        if tag is not None:
            store.check_free(tag)
        manifest = with_labels(current, rows[effective], new[effective])
        return Draft(
            manifest=store.put_manifest(manifest),
            message=message,
            operation=_operation(new[effective], origin),
            changes=put_changes(store, [there[i] for i in effective], now_there[effective]),
            run=run,
        )

    commit = store.commit(branch, decide)
    if tag is not None:
        store.create_tag(tag, commit.id)
    return commit


def read_fixes(version: Version, path: Path, *, allow_missing: bool = False) -> list[Change]:
    """The changes that a csv file asks for: columns uid and label (a class's name or index), perhaps who and why.

    With `allow_missing` an empty label, or -1, takes the row's label away; otherwise it may be a slip, and is refused.
    The whole file is checked. Raises SourceError with the line.
    """
    header, lines, rows = read_csv(path)
    for name in ("uid", "label"):
        if name not in header:
            raise SourceError(path, f"it has no column '{name}'; it has {', '.join(header)}.", 1)
    place = {name: header.index(name) for name in header}
    cells = [{name: row[number].strip() for name, number in place.items()} for row in rows]
    uids = [cell["uid"].lower() for cell in cells]
    labels = [
        _label(version, path, line, cell["label"], allow_missing) for line, cell in zip(lines, cells, strict=True)
    ]
    _check_uids(version, path, lines, uids)
    first: dict[str, int] = {}
    for line, uid, label in zip(lines, uids, labels, strict=True):
        if first.setdefault(uid, label) != label:
            raise SourceError(path, f"row {uid} stands before with another label.", line)
    time, person = now(), who()
    changes = {
        uid: Change(uid, label, cell.get("who") or person, cell.get("why") or "", time)
        for uid, label, cell in zip(uids, labels, cells, strict=True)
    }
    return list(changes.values())


def blame(version: Version, uid: str) -> list[Blame]:
    """Who set a row's label, when and why, the newest first; the last is the import. Raises UnknownName."""
    store, wanted = version.store, _one_uid(version, uid)
    found: list[Blame] = []
    label: str | None = None
    for commit in reversed(_commits_of_row(store, version.commit, wanted)):
        then = Version(store, commit.id, commit.id)
        if commit.changes is not None:
            row = int(places(wanted, store.get(commit.changes, UID))[0])
            if row >= 0:
                found.append(_change_of(then, commit, commit.changes, row))
                label = found[-1].new
            continue
        row = int(then.find([uid])[0])
        if row >= 0 and (given := class_name(then, int(then.read(LABEL, np.array([row]))[0]))) != label:
            found.append(Blame(commit.id, label or "", given, IMPORT, commit.time, commit.message))
            label = given
    return found[::-1]


def _commits_of_row(store: Store, commit_id: str, wanted: Digests) -> list[Commit]:
    """The commits that may have set a row's label, newest first: past a merge only those of the side it came from."""
    found: list[Commit] = []
    following: str | None = commit_id
    while following:
        commit = store.commit_of(following)
        merged = len(commit.parents) > 1
        came_over = merged and _came_over(store, commit, wanted)
        if not merged:
            found.append(commit)
        following = commit.parents[1 if came_over else 0] if commit.parents else None
    return found


def _came_over(store: Store, merge: Commit, wanted: Digests) -> bool:
    """Whether a merge set the row's label, or brought the row itself."""
    if merge.changes and places(wanted, store.get(merge.changes, UID))[0] >= 0:
        return True
    ours = store.manifest(store.commit_of(merge.parents[0]).manifest)
    return all(places(wanted, store.get(group.holder(UID), UID))[0] < 0 for group in ours.row_groups)


def class_name(version: Version, label: int) -> str:
    """The class's name, empty for -1."""
    return "" if label == NO_LABEL else version.classes[label]


def quoted(name: str) -> str:
    """A class's name as a sentence has it; empty is no label."""
    return f"'{name}'" if name else NO_LABEL_TEXT


def _tip(store: Store, branch: str) -> Commit:
    tip = store.tip(branch)
    if tip is None:
        raise store.unknown_branch(branch)
    return tip


def _check(version: Version, changes: list[Change]) -> npt.NDArray[np.int64]:
    """The rows that are to change. Raises InputError where one is not there, or cannot have that label."""
    if LABEL not in version.columns:
        raise InputError(f"{version.ref} has no labels; prepare it with source.classes=[…] to label it.")
    if not changes:
        raise InputError(f"There is no label to change in {version.ref}.")
    if len({change.uid for change in changes}) < len(changes):
        raise InputError("A row stands twice among the changes; give each uid once.")
    num_classes = len(version.classes)
    for change in changes:
        if not NO_LABEL <= change.label < num_classes:
            raise InputError(
                f"Label {change.label} of row {change.uid} is out of range: {version.ref} has {num_classes} classes."
            )
    try:
        rows = version.find([change.uid for change in changes])
    except ValueError as error:
        raise InputError(f"Among the changes is a uid that cannot be one: {error}.") from error
    if (rows < 0).any():
        raise InputError(f"There is no row {changes[int(np.argmin(rows))].uid} in {version.ref}.")
    return rows


def _in_classes_of(current: Version, seen: Version, wanted: list[Change]) -> list[Change]:
    """The changes with the class indices of the tip. Raises ConflictError where it has no longer one of the classes."""
    labels = _indices(current, seen, np.array([change.label for change in wanted], np.int64))
    if (gone := np.flatnonzero(labels == _NO_CLASS)).size:
        change = wanted[int(gone[0])]
        raise ConflictError(
            f"The label of row {change.uid} in {current.ref}",
            f"{quoted(class_name(seen, change.label))} by {change.who}",
            f"a version whose classes are {listing(current.classes)}",
        )
    return [change._replace(label=label) for change, label in zip(wanted, labels.tolist(), strict=True)]


def _indices(current: Version, seen: Version, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Class indices of one version as those of another, by name: a prepare in between may count other classes."""
    index = {name: number for number, name in enumerate(current.classes)}
    found = np.array([*(index.get(name, _NO_CLASS) for name in seen.classes), NO_LABEL], np.int64)
    return found[labels]  # NO_LABEL is the last


def _operation(labels: npt.NDArray[np.int64], origin: str) -> dict[str, Any]:
    """What the commit says of itself: how many labels were set, and how many of these to none."""
    num_taken_away = int((labels == NO_LABEL).sum())
    more = {"num_taken_away": num_taken_away, "origin": origin}
    return {"kind": "relabel", "num_labels": len(labels)} | {key: value for key, value in more.items() if value}


def _labels_there(
    current: Version,
    wanted: list[Change],
    rows: npt.NDArray[np.int64],
    old: npt.NDArray[np.int64],
    new: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The labels that the rows have at the tip. Raises ConflictError where somebody else changed one of them."""
    gone = rows < 0
    labels: npt.NDArray[np.int64] = np.where(gone, NO_LABEL, current.read(LABEL, np.where(gone, 0, rows)))
    touched = np.flatnonzero(gone | ((labels != old) & (labels != new)))
    if touched.size:
        first = int(touched[0])
        uid, label = wanted[first].uid, class_name(current, int(labels[first]))
        ours = f"{quoted(class_name(current, wanted[first].label))} by {wanted[first].who}"
        theirs = quoted(label) if not gone[first] else "gone"
        if not gone[first] and (last := blame(current, uid)):
            theirs += f" by {last[0].who} in commit {short(last[0].commit)}"
        raise ConflictError(f"The label of row {uid} in {current.ref}", ours, theirs)
    return labels


def with_labels(version: Version, rows: npt.NDArray[np.int64], new: npt.NDArray[np.int64]) -> Manifest:
    """The version's contents with other labels; only row groups that hold one of the rows get a new object."""
    store, contents = version.store, version.contents
    labels = version.read(LABEL)
    labels[rows] = new
    ends = np.cumsum([group.num_rows for group in contents.row_groups])
    touched = np.unique(np.searchsorted(ends, rows, side="right")).tolist()
    groups = list(contents.row_groups)

    def put(number: int) -> StoredObject:
        return store.put({LABEL: labels[ends[number] - groups[number].num_rows : ends[number]]})

    # Each waits for the disk, twice.
    with ThreadPoolExecutor(_WRITERS) as pool:
        for number, stored in zip(touched, list(pool.map(put, touched)), strict=True):
            groups[number] = groups[number].with_object(stored)
    counts = label_counts(labels, {split: version.split_rows(split) for split in version.splits}, version.classes)
    splits = {split: found | counts[split] for split, found in contents.stats["splits"].items()}
    return replace(contents, row_groups=groups, stats=contents.stats | {"splits": splits})


def put_changes(store: Store, changes: list[Change], old: npt.NDArray[np.int64]) -> StoredObject:
    """Store what a commit changes, for `blame`; `old` are the labels before, int64 (n,), -1 for none."""
    texts = {
        "who": [change.who for change in changes],
        "when": [change.when for change in changes],
        "why": [change.why for change in changes],
    }
    return store.put(
        {
            UID: uids_from_hex([change.uid for change in changes]),
            "old": old,
            "new": np.array([change.label for change in changes], np.int64),
            **{name: np.array([text.encode() for text in column]) for name, column in texts.items()},
        }
    )


def _change_of(version: Version, commit: Commit, changes: StoredObject, row: int) -> Blame:
    values = {name: version.store.get(changes, name)[row] for name in ("old", "new", "who", "when", "why")}
    old, new = (class_name(version, int(values[name])) for name in ("old", "new"))
    said, when, why = (values[name].decode() for name in ("who", "when", "why"))
    return Blame(commit.id, old, new, said, when, why or commit.message)


def _one_uid(version: Version, uid: str) -> npt.NDArray[np.uint8]:
    try:
        wanted = uids_from_hex([uid])
    except ValueError as error:
        lists = f"hpctool data show {version.ref} --rows 5 lists some"
        raise InputError(f"'{uid}' cannot be the uid of a row: {error}; {lists}.") from error
    if version.find([uid])[0] < 0:
        raise InputError(f"There is no row {uid} in {version.ref}. See: hpctool data show {version.ref} --rows all")
    return wanted


def _label(version: Version, path: Path, line: int, text: str, allow_missing: bool) -> int:
    if text in MISSING and text not in version.classes:
        if allow_missing:
            return NO_LABEL
        raise SourceError(
            path, "it gives the row no label. --allow-missing takes labels away where this is meant.", line
        )
    try:
        return version.label_index(text)
    except InputError as error:
        raise SourceError(path, str(error), line) from error


def _check_uids(version: Version, path: Path, lines: list[int], uids: list[str]) -> None:
    try:
        rows = version.find(uids)
    except ValueError:
        for line, uid in zip(lines, uids, strict=True):
            try:
                uids_from_hex([uid])
            except ValueError as error:
                raise SourceError(path, f"'{uid}' cannot be the uid of a row: {error}.", line) from error
        raise
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        first = int(unknown[0])
        raise SourceError(path, f"there is no row {uids[first]} in {version.ref}.", lines[first])
