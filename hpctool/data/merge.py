"""Merge: what was done on another branch comes onto this one, too. Changes of different rows mix by themselves.

Three versions are compared row by row: ours, theirs, and the newest that both descend from. A row whose label only one
side changed gets that side's; a row that both changed, and otherwise, is a conflict that names both. After merges in
both directions there may be several that both descend from: where these differ, nobody knows which side changed a row
since, and it is a conflict, too. Only row groups whose labels change are written. The commit carries who set each label
that came over, when and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np

from hpctool.data.commit import Commit, Draft
from hpctool.data.history import merge_bases
from hpctool.data.identity import places
from hpctool.data.labels import Change, blame, class_name, put_changes, quoted, with_labels
from hpctool.data.layout import check_name
from hpctool.data.manifest import CONTENT, LABEL, NO_LABEL, UID, Manifest, RowGroup
from hpctool.data.objects import StoredObject, read_column
from hpctool.data.reader import Rows
from hpctool.data.stats import described_moments, duplicates, group_moments, label_counts, merge_moments
from hpctool.data.store import Move, Store, short
from hpctool.data.version import Version
from hpctool.errors import InputError, MergeConflict
from hpctool.world import Array

Side = Literal["ours", "theirs"]

_UNKNOWN = NO_LABEL - 1
_SHOWN = 3  # rows in a sentence; all are in MergeConflict.rows


@dataclass(frozen=True)
class Merged:
    """What came of it: `how` is "unchanged", "fast-forward" or "merge"."""

    commit: Commit
    how: str
    num_labels: int = 0
    num_rows: int = 0


def merge(
    store: Store,
    branch: str,
    theirs: Version,
    message: str = "",
    *,
    prefer: Side | None = None,
    expect: str | None = None,
    tag: str | None = None,
    run: str = "",
) -> Merged:
    """Bring a version of the same dataset onto a branch. Who is quicker meanwhile only makes it think again.

    `prefer` decides for rows that both sides labelled; `expect` is the commit that the branch must still be at. Raises
    MergeConflict, UnknownName, InputError where the branch has moved or the tag is taken; the branch then is as it was.
    """
    if tag is not None:
        check_name("tag", tag)
    done: list[Merged] = []

    def decide(tip: Commit | None) -> Draft | Move | Commit:
        if tip is None:
            raise store.unknown_branch(branch)
        _check_moved(store, branch, tip, expect)
        if tag is not None:
            store.check_free(tag)
        bases = merge_bases(store, tip.id, theirs.commit)
        ours = Version(store, branch, tip.id)
        if not bases:
            raise MergeConflict(ours.ref, theirs.ref, [], "they have no commit in common.")
        if theirs.commit in bases:
            done.append(Merged(tip, "unchanged"))
            return tip
        if tip.id in bases:
            done.append(Merged(tip, "fast-forward"))
            return Move(theirs.commit)
        mixed = _Mix([Version(store, short(base), base) for base in bases], ours, theirs, prefer)
        text = message or f"merge {theirs.revision} into {branch}"
        draft = mixed.draft(text, run)
        done.append(Merged(tip, "merge", len(mixed.relabelled), mixed.num_new))
        return draft

    commit = store.commit(branch, decide)
    if tag is not None:
        store.create_tag(tag, commit.id)
    return replace(done[-1], commit=commit)


def _check_moved(store: Store, branch: str, tip: Commit, expect: str | None) -> None:
    if expect is not None and not tip.id.startswith(expect):
        raise InputError(
            f"{store.name}@{branch} has moved: it was to be at {short(expect)} and is at {short(tip.id)} "
            f"('{tip.message}' by {tip.author}). Look at that, and merge again."
        )


class _Mix:
    """The versions that are compared, and what becomes of them."""

    def __init__(self, bases: list[Version], ours: Version, theirs: Version, prefer: Side | None) -> None:
        self.bases, self.ours, self.theirs, self.prefer = bases, ours, theirs, prefer
        self.store = ours.store
        self._check_alike()
        self.new_groups = self._new_groups()
        self.num_new = sum(group.num_rows for _, group in self.new_groups)
        #: rows of ours that get a label of theirs, and rows of theirs that it comes from
        self.relabelled, self.sources = self._labels() if LABEL in ours.columns else (_NONE, _NONE)

    def draft(self, message: str, run: str) -> Draft:
        """The merged version, not yet committed."""
        manifest, theirs = self.ours.contents, self.theirs
        if self.relabelled.size:
            manifest = with_labels(self.ours, self.relabelled, theirs.read(LABEL, self.sources))
        if self.new_groups:
            manifest = self._with_new_groups(manifest)
        operation = {
            "kind": "merge",
            "of": theirs.revision,
            "num_labels": int(self.relabelled.size),
            "num_rows": self.num_new,
        }
        return Draft(
            self.store.put_manifest(manifest),
            message,
            operation,
            changes=self._changes(),
            run=run,
            parents=[theirs.commit],
        )

    # -- what fits

    def _check_alike(self) -> None:
        """Raises MergeConflict where one side has other columns or splits, or was prepared anew."""
        ours, theirs = self.ours, self.theirs
        if ours.contents.columns != theirs.contents.columns:
            names = sorted({*ours.contents.columns, *theirs.contents.columns})
            other = [n for n in names if ours.contents.columns.get(n) != theirs.contents.columns.get(n)]
            self._refuse(f"they have different columns: {', '.join(other)}.")
        if ours.contents.rule != theirs.contents.rule:
            self._refuse("they follow different rules for splits.")
        for side, base in product((ours, theirs), self.bases):
            if _identities(base.contents) - _identities(side.contents):
                self._refuse(f"{side.ref} was prepared anew since {base.ref}, so its rows are none of the other's.")

    def _refuse(self, problem: str) -> None:
        raise MergeConflict(self.ours.ref, self.theirs.ref, [], problem)

    def _new_groups(self) -> list[tuple[int, RowGroup]]:
        """Their row groups that we do not have, each with its first row in theirs. Raises MergeConflict."""
        have = _identities(self.ours.contents)
        found, first = [], 0
        for group in self.theirs.contents.row_groups:
            if group.holder(UID).id not in have:
                found.append((first, group))
            first += group.num_rows
        if found:
            uids = np.concatenate([self.store.get(group.holder(UID), UID) for _, group in found])
            if (twice := np.flatnonzero(places(uids, self.ours.read(UID)) >= 0)).size:
                uid = uids[int(twice[0])].tobytes().hex()
                more = f" and {twice.size - 1} more" if twice.size > 1 else ""
                self._refuse(f"both have appended the row {uid}{more}, and not alike.")
        return found

    def _labels(self) -> tuple[Rows, Rows]:
        """Rows of ours that get a label of theirs, and where it stands in theirs. Raises MergeConflict."""
        in_theirs = places(self.ours.read(UID), self.theirs.read(UID))
        rows = np.flatnonzero(in_theirs >= 0)
        source = in_theirs[rows]
        ours, theirs = self.ours.read(LABEL)[rows], self.theirs.read(LABEL)[source]
        different = np.flatnonzero(ours != theirs)
        rows, source, ours, theirs = rows[different], source[different], ours[different], theirs[different]
        before = self._before(rows)
        both = (ours != before) & (theirs != before)
        if both.any() and self.prefer is None:
            self._conflict(rows[both], source[both])
        take = (ours == before) | (both & (self.prefer == "theirs"))
        return rows[take], source[take]

    def _before(self, rows: Rows) -> Rows:
        """The labels that rows of ours had before the sides parted; what is no label for rows of which none is known.

        These came since, or the bases disagree. A base that has no such row says nothing of it.
        """
        before = np.full(rows.size, _UNKNOWN, np.int64)
        disputed = np.zeros(rows.size, bool)
        for base in self.bases:
            if base.columns.get(LABEL) != self.ours.columns[LABEL]:
                return np.full(rows.size, _UNKNOWN, np.int64)
            place = places(self.ours.read(UID, rows), base.read(UID))
            there = np.where(place >= 0, base.read(LABEL)[place], before)
            disputed |= (before != _UNKNOWN) & (there != before)
            before = there
        return np.where(disputed, _UNKNOWN, before)

    def _conflict(self, rows: Rows, sources: Rows) -> None:
        """Raises MergeConflict with both sides of every row."""
        entries: list[dict[str, Any]] = []
        for uid, row, source in zip(self.ours.uids(rows), rows.tolist(), sources.tolist(), strict=True):
            entry: dict[str, Any] = {"uid": uid}
            for side, version, place in (("ours", self.ours, row), ("theirs", self.theirs, source)):
                label = class_name(version, int(version.read(LABEL, np.array([place]))[0]))
                entry[side] = {"label": label}
                if len(entries) < _SHOWN:
                    last = blame(version, uid)[0]
                    entry[side] |= {"who": last.who, "when": last.when, "why": last.why, "commit": last.commit}
            entries.append(entry)
        shown = "; ".join(_sides(entry) for entry in entries[:_SHOWN])
        more = f"; and {len(entries) - _SHOWN:,} more" if len(entries) > _SHOWN else ""
        raise MergeConflict(
            self.ours.ref,
            self.theirs.ref,
            entries,
            f"rows labelled otherwise by both: {len(entries):,} (ours, theirs): {shown}{more}. "
            "Relabel them alike on one side, or say --prefer ours or theirs.",
        )

    # -- what becomes of it

    def _with_new_groups(self, manifest: Manifest) -> Manifest:
        """Our contents with their new row groups behind them, whose rows stay in their splits."""
        names = manifest.split_names
        there = {name: self.store.get(manifest.splits, name) for name in names}
        of_theirs = {name: self.theirs.split_rows(name) for name in names}
        moments, num_rows = [described_moments(manifest.stats)], manifest.num_rows
        splits = {name: [there[name]] for name in names}
        for first, group in self.new_groups:
            inside = {n: r[(r >= first) & (r < first + group.num_rows)] - first for n, r in of_theirs.items()}
            for name in names:
                splits[name].append(num_rows + inside[name])
            layout = self.store.layout
            features = {name: read_column(layout, group.holder(name), name) for name in self.theirs.features}
            moments.append(group_moments(features, manifest.columns, inside))
            num_rows += group.num_rows
        groups = [*manifest.row_groups, *(group for _, group in self.new_groups)]
        joined = {name: np.concatenate(parts) for name, parts in splits.items()}
        mixed = replace(manifest, row_groups=groups, splits=self.store.put(joined))
        return replace(mixed, stats=_stats(self.store, mixed, joined, merge_moments(moments)))

    def _changes(self) -> StoredObject | None:
        """Who set the labels that come over, when and why. Nobody set those of new rows that came in with the data."""
        rows = [self.sources]
        rows += [np.arange(first, first + group.num_rows) for first, group in self.new_groups]
        source = np.concatenate(rows)
        if LABEL not in self.theirs.columns or not source.size:
            return None
        uids, num_relabelled = self.theirs.uids(source), self.relabelled.size
        said = _of_the_import(self.theirs, uids[:num_relabelled]) | last_changes(self.theirs, uids)
        if not said:
            return None
        old = np.full(len(uids), NO_LABEL, np.int64)
        old[:num_relabelled] = self.ours.read(LABEL, self.relabelled)
        new = self.theirs.read(LABEL, source).tolist()
        told = [place for place, uid in enumerate(uids) if uid in said]
        changes = [Change(uids[place], new[place], *said[uids[place]]) for place in told]
        return put_changes(self.store, changes, old[told])


_NONE: Rows = np.zeros(0, np.int64)


def last_changes(version: Version, uids: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """uid → who set its label last, why and when; without those whose label nobody has set since it came in."""
    store = version.store
    left = dict.fromkeys(uids)
    said: dict[str, tuple[str, str, str]] = {}
    for commit in store.history(version.commit):
        if not left:
            break
        if commit.changes is None:
            continue
        columns = [store.get(commit.changes, name).tolist() for name in ("who", "why", "when")]
        for uid, who, why, when in zip(store.get(commit.changes, UID), *columns, strict=True):
            name = uid.tobytes().hex()
            if name in left:
                del left[name]
                said[name] = (who.decode(), why.decode() or commit.message, when.decode())
    return said


def _of_the_import(version: Version, uids: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """uid → who brought the version's data in, why and when: a prepare may have given the same rows other labels."""
    history = list(version.store.history(version.commit))
    last = next((commit for commit in history if commit.kind == "prepare"), history[-1])
    return dict.fromkeys(uids, (last.author, last.message, last.time))


def _sides(entry: dict[str, Any]) -> str:
    ours, theirs = (f"{quoted(entry[side]['label'])} by {entry[side]['who']}" for side in ("ours", "theirs"))
    return f"{entry['uid']} {ours}, {theirs}"


def _identities(manifest: Manifest) -> set[str]:
    """The objects of uids and contents: what a row group is, whatever its labels."""
    return {group.holder(UID).id for group in manifest.row_groups}


def _stats(store: Store, manifest: Manifest, splits: dict[str, Array], moments: Any) -> dict[str, Any]:
    contents = np.concatenate([store.get(group.holder(CONTENT), CONTENT) for group in manifest.row_groups])
    split_of_row = np.empty(len(contents), np.int64)
    for number, name in enumerate(splits):
        split_of_row[splits[name]] = number
    described: dict[str, Any] = {
        name: {"rows": len(rows), "features": {feature: m.to_json() for feature, m in moments[name].items()}}
        for name, rows in splits.items()
    }
    if LABEL in manifest.columns:
        labels = np.concatenate([store.get(group.holder(LABEL), LABEL) for group in manifest.row_groups])
        counts = label_counts(labels, splits, manifest.columns[LABEL].classes or [])
        described = {name: said | counts[name] for name, said in described.items()}
    return manifest.stats | {"duplicates": duplicates(contents, split_of_row), "splits": described}
