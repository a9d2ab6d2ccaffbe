"""Append: new rows onto a branch, as row groups of their own. Who set each label, when and why, goes with them.

No row that is there is written anew, and none changes its place or its split. The index of the splits is: 8 bytes for
each row of the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hpctool import files
from hpctool.data.commit import Commit, Draft
from hpctool.data.filters import Filter
from hpctool.data.identity import Digests, content_digests, places, uids_of_keys, words
from hpctool.data.labels import Change, put_changes
from hpctool.data.layout import check_name
from hpctool.data.manifest import CONTENT, GROUP, LABEL, NO_LABEL, UID, Column, Manifest, RowGroup
from hpctool.data.ragged import Ragged, Values, not_finite
from hpctool.data.splits import Index, hashed_splits, split_rows, stratified_splits
from hpctool.data.stats import (
    SplitMoments,
    described_moments,
    duplicates,
    group_moments,
    label_counts,
    merge_moments,
)
from hpctool.data.store import Store
from hpctool.data.version import Version
from hpctool.errors import InputError, UnknownName

Labels = npt.NDArray[np.int64]


class Author(NamedTuple):
    """Who set a row's label, when (ISO 8601) and why."""

    who: str
    when: str
    why: str


class NewRows(NamedTuple):
    """What is appended: features, uids and digests of groups uint8 (n, 16), class indices int64 (n,)."""

    columns: Mapping[str, Values]
    uids: Digests
    labels: Labels
    groups: Digests | None


def append(
    store: Store,
    branch: str,
    columns: Mapping[str, Values],
    keys: Sequence[str],
    labels: Labels,
    authors: Sequence[Author],
    message: str,
    *,
    groups: Sequence[str] | None = None,
    split: str | None = None,
    tag: str | None = None,
    run: str = "",
    origin: str = "",
) -> Commit:
    """Commit new rows onto a branch; the commit that holds them already where exactly these were appended before.

    `columns` are all features, (n, …) or ragged as the dataset has them; `keys` name the rows for ever; `labels` int64
    (n,) are class indices or -1; `groups` say whose they are. Each row goes to the split that the dataset's rule says,
    or all to `split`. `origin` says in the commit where the rows come from. Raises InputError on another schema, on a
    label that is no class, and on keys that stand twice or are in the branch already; UnknownName; the dataset is
    unchanged then.
    """
    uids = uids_of_keys(keys)
    _check_unique(keys, uids)
    _check_rows(_version(store, branch, store.tip(branch)), columns, labels, len(keys), len(authors), split)
    if tag is not None:
        check_name("tag", tag)
    new = NewRows(columns, uids, labels, uids_of_keys(groups) if groups is not None else None)
    group = _put_group(store, _version(store, branch, store.tip(branch)), new)
    hexes = [uid.tobytes().hex() for uid in uids]
    changes = [Change(uid, int(y), *author) for uid, y, author in zip(hexes, labels, _whys(authors), strict=True)]
    stored = put_changes(store, changes, np.full(len(keys), NO_LABEL, np.int64))
    operation = {
        "kind": "append",
        "num_rows": len(keys),
        "origin": origin,
        "rows": files.sha256_bytes(files.canonical_json([o.id for o in [*group.objects, stored]])),
    }

    def decide(tip: Commit | None) -> Draft | Commit:
        current = _version(store, branch, tip)
        for commit in store.history(current.commit):
            if commit.operation.get("rows") == operation["rows"]:
                return commit
        _check_new(current, keys, uids)
        _check_rows(current, columns, labels, len(keys), len(authors), split)
        if tag is not None:
            store.check_free(tag)
        manifest = _with_rows(current, group, new, split)
        return Draft(store.put_manifest(manifest), message, operation, changes=stored, run=run)

    commit = store.commit(branch, decide)
    if tag is not None:
        store.create_tag(tag, commit.id)
    return commit


def _version(store: Store, branch: str, tip: Commit | None) -> Version:
    if tip is None:
        raise UnknownName(f"branch of dataset '{store.name}' called", branch, store.branches())
    return Version(store, branch, tip.id)


def _check_unique(keys: Sequence[str], uids: Digests) -> None:
    if not keys:
        raise InputError("There are no rows to append.")
    _, first, counts = np.unique(words(uids), return_index=True, return_counts=True)
    if (twice := first[counts > 1]).size:
        raise InputError(f"The key '{keys[int(twice.min())]}' stands twice among the rows to append; keys name rows.")


def _check_new(version: Version, keys: Sequence[str], uids: Digests) -> None:
    there = np.flatnonzero(places(uids, version.read(UID)) >= 0)
    if there.size:
        more = f", and {there.size - 1} more are" if there.size > 1 else ""
        raise InputError(f"The row with the key '{keys[int(there[0])]}' is in {version.ref} already{more}.")


def _check_rows(
    version: Version, columns: Mapping[str, Values], labels: Labels, num_rows: int, num_authors: int, split: str | None
) -> None:
    """Raises InputError where the rows do not fit the version's schema, UnknownName on the split."""
    if LABEL not in version.columns:
        raise InputError(f"{version.ref} has no labels; prepare it with source.classes=[…] to append labelled rows.")
    for name in sorted({*columns, *version.features}):
        there, given = version.columns.get(name), columns.get(name)
        wanted = _wanted(there, num_rows) if there and there.role == "feature" else "nothing"
        found = _found(given) if given is not None else "nothing"
        if found != wanted:
            raise InputError(f"Column '{name}' of {version.ref} takes {wanted} for these rows, and got {found}.")
        if there and there.finite and given is not None and (row := not_finite(given)) is not None:
            raise InputError(f"Column '{name}' of {version.ref} takes no NaN or infinity, and row {row} has one.")
    if labels.shape != (num_rows,) or num_authors != num_rows:
        raise InputError(f"{num_rows} rows came with {len(labels)} labels and {num_authors} authors.")
    if labels.min() < NO_LABEL or labels.max() >= len(version.classes):
        wrong = labels[(labels < NO_LABEL) | (labels >= len(version.classes))][0]
        raise InputError(f"Label {wrong} is out of range: {version.ref} has {len(version.classes)} classes.")
    if split is not None and split not in version.splits:
        raise UnknownName(f"split of {version.ref} called", split, version.splits)


def _wanted(column: Column, num_rows: int) -> str:
    return f"{column.dtype} rows of {column.shape}" if column.ragged else f"{column.dtype} {(num_rows, *column.shape)}"


def _found(values: Values) -> str:
    if isinstance(values, Ragged):
        return f"{values.dtype} rows of {values.values.shape[1:]}"
    return f"{values.dtype} {values.shape}"


def _whys(authors: Sequence[Author]) -> list[tuple[str, str, str]]:
    """In the order in which a Change has them."""
    return [(author.who, author.why, author.when) for author in authors]


def _put_group(store: Store, version: Version, new: NewRows) -> RowGroup:
    identity: dict[str, Values] = {UID: new.uids, CONTENT: content_digests(new.columns)}
    if GROUP in version.contents.columns:
        # A row of nobody's is a group of its own.
        identity[GROUP] = new.uids if new.groups is None else new.groups
    objects = [store.put(new.columns, filters_of(version)), store.put(identity), store.put({LABEL: new.labels})]
    return RowGroup(len(new.uids), objects)


def filters_of(version: Version) -> dict[str, Filter]:
    """How the version's features are packed, so that new rows are packed alike."""
    if not version.contents.row_groups:
        return {}
    extents = version.contents.row_groups[0].holder(version.features[0]).extents
    return {name: extent.chunks.filter for name, extent in extents.items() if extent.chunks}


def index_of_new(version: Version, uids: Digests, labels: Labels | None, groups: Digests | None) -> Index:
    """The number of each new row's split by the version's rule. Raises InputError where the rule cannot tell."""
    rule = version.contents.rule
    if rule["by"] == "given" or (rule["by"] == "group" and groups is None):
        what = "its rows were given their splits" if rule["by"] == "given" else "its splits follow groups"
        raise InputError(f"{version.ref} cannot say where these rows belong: {what}. Name the split of the new ones.")
    if rule["by"] == "stratified" and labels is not None:
        before = np.full(version.num_rows + len(uids), -1)
        for number, name in enumerate(version.contents.split_names):
            before[version.split_rows(name)] = number
        all_uids = np.concatenate([version.read(UID), uids])
        return stratified_splits(rule, all_uids, np.concatenate([version.read(LABEL), labels]), before)[
            version.num_rows :
        ]
    return hashed_splits(rule, groups if groups is not None and rule["by"] == "group" else uids)


def _index_of_new(version: Version, new: NewRows, split: str | None) -> Index:
    """The number of each new row's split. Raises InputError where the dataset's rule cannot tell."""
    if split is not None:
        return np.full(len(new.uids), version.contents.split_names.index(split))
    return index_of_new(version, new.uids, new.labels, new.groups)


def _with_rows(version: Version, group: RowGroup, new: NewRows, split: str | None) -> Manifest:
    """The version's contents with one more row group."""
    added = split_rows(version.contents.rule, _index_of_new(version, new, split))
    moments = group_moments(new.columns, version.columns, added)
    return extended(version, [group], added, new.labels, moments)


def extended(
    version: Version,
    groups: Sequence[RowGroup],
    added: Mapping[str, Index],
    labels: Labels | None,
    moments: SplitMoments,
) -> Manifest:
    """The version's contents with more row groups, their rows at the end of their splits.

    `added` says which of the new rows, counted from 0, come into each split; `labels` int64 (n,) and `moments` are
    theirs.
    """
    store, contents = version.store, version.contents
    names = contents.split_names
    splits = {name: np.concatenate([version.split_rows(name), version.num_rows + added[name]]) for name in names}
    content = np.concatenate([version.read(CONTENT), *(store.get(g.holder(CONTENT), CONTENT) for g in groups)])
    split_of_row = np.empty(len(content), np.int64)
    for number, name in enumerate(names):
        split_of_row[splits[name]] = number
    merged = merge_moments([described_moments(contents.stats), moments])
    described: dict[str, dict[str, Any]] = {
        name: {
            "rows": len(splits[name]),
            "features": {feature: m.to_json() for feature, m in merged.get(name, {}).items()},
        }
        for name in names
    }
    if labels is not None:
        counts = label_counts(np.concatenate([version.read(LABEL), labels]), splits, version.classes)
        for name in names:
            described[name] |= counts[name]
    stats = contents.stats | {"duplicates": duplicates(content, split_of_row), "splits": described}
    return replace(contents, row_groups=[*contents.row_groups, *groups], splits=store.put(dict(splits)), stats=stats)
