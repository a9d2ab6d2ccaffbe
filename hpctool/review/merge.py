"""Merge: the decided items of a queue become rows of the dataset, or labels of rows that are there, with who labelled
each, when and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpctool import files
from hpctool.data.append import Author, append
from hpctool.data.commit import Commit
from hpctool.data.identity import places, uids_from_hex
from hpctool.data.labels import Change, relabel
from hpctool.data.layout import split_ref
from hpctool.data.manifest import LABEL, NO_LABEL, UID
from hpctool.data.ragged import Values, take
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError, counted
from hpctool.review.answers import Answer, Answers, Decision, decide
from hpctool.review.queue import APPLIED, Item, Queue, check_classes, row_keys, row_uids
from hpctool.rundir import now, who

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Applied:
    """What came of it; `num_rows` were appended or got their label, 0 where all that is decided was there before."""

    dataset: str
    commit: str
    tag: str | None
    num_rows: int
    #: rows that were in the dataset, or had a label, already
    num_there: int
    #: of these, items whose answers have changed since: the dataset keeps what it has
    changed: list[str]
    #: what is left out: not looked at, skipped by all, without a majority, and rows that the dataset has no more
    num_open: int
    num_skipped: int
    disputed: list[str]
    gone: list[str]


@dataclass(frozen=True)
class _Row:
    """One decided item as a row to be."""

    place: int
    item: Item
    label: int
    author: Author


def apply(
    queue: Queue,
    datasets: Path,
    message: str,
    tag: str | None = None,
    *,
    accept: str | None = None,
    split: str | None = None,
    run: str = "",
) -> Applied:
    """Append the decided items to the queue's dataset, once; a row's key is a digest of its input.

    Where the items are rows of the dataset themselves, these get the labels; one that somebody has labelled meanwhile
    keeps what it has.

    Skipped items are left out, and rows that are gone from the dataset, and those on which people disagree, unless
    `accept` names whose answers decide.
    Applying again appends what was decided since, if anything. `split` sends the rows to one split instead of where
    the dataset's rule says. Raises InputError where nothing is decided or left, the dataset has not all classes, or
    the tag is taken; nothing is written then.
    """
    if split is not None and queue.of_rows:
        raise InputError(f"The items of review {queue.id} are rows of {queue.dataset} and stay in their splits.")
    answers = queue.answers()
    if accept is not None and not any(accept in said for said in answers.values()):
        raise InputError(f"'{accept}' has answered nothing in review {queue.id}, so nothing can be accepted from them.")
    version = open_version(datasets, queue.dataset)
    check_classes(version, queue.classes)
    decisions = {item.prediction: decide(answers.get(item.prediction, {}), accept) for item in queue.items}
    rows, gone = _without_gone(queue, version, _decided_rows(queue, version, answers, decisions, accept))
    there = _labelled_there(queue, version, rows) if queue.of_rows else version.find(row_uids(_inputs(queue, rows)))
    fresh = [row for row, found in zip(rows, there, strict=True) if found < 0]
    if not fresh:
        commit = _commit_of(queue, version)
    elif queue.of_rows:
        commit = _relabel(queue, version, fresh, message, tag, run)
    else:
        commit = _append(queue, version, fresh, message, tag, split, run)
    if tag is not None:
        version.store.create_tag(tag, commit.id)
    if fresh or queue.applied() is None:
        _remember(queue, commit)
    states = [decision.state for decision in decisions.values()]
    return Applied(
        dataset=queue.dataset,
        commit=commit.id,
        tag=tag,
        num_rows=len(fresh),
        num_there=len(rows) - len(fresh),
        changed=_changed(version, rows, there),
        num_open=states.count("open"),
        num_skipped=states.count("skipped"),
        disputed=[prediction for prediction, decision in decisions.items() if decision.state == "disputed"],
        gone=gone,
    )


def _remember(queue: Queue, commit: Commit) -> None:
    record = {"format": queue.record["format"], "dataset": queue.dataset, "commit": commit.id}
    files.write_json(queue.path / APPLIED, record | {"time": now(), "by": who()})


def _append(
    queue: Queue, version: Version, rows: list[_Row], message: str, tag: str | None, split: str | None, run: str
) -> Commit:
    inputs = _inputs(queue, rows)
    return append(
        version.store,
        split_ref(queue.dataset)[1],
        {queue.record["feature"]: inputs},
        row_keys(inputs),
        np.array([row.label for row in rows], np.int64),
        [row.author for row in rows],
        message,
        split=split,
        tag=tag,
        run=run,
        origin=_origin(queue),
    )


def _relabel(queue: Queue, version: Version, rows: list[_Row], message: str, tag: str | None, run: str) -> Commit:
    changes = [Change(row.item.prediction, row.label, row.author.who, row.author.why, row.author.when) for row in rows]
    branch = split_ref(queue.dataset)[1]
    return relabel(version.store, branch, changes, message, tag, base=version.commit, run=run, origin=_origin(queue))


def _inputs(queue: Queue, rows: list[_Row]) -> Values:
    return take(queue.inputs, np.array([row.place for row in rows], np.int64))


def _decided_rows(
    queue: Queue, version: Version, answers: Answers, decisions: Mapping[str, Decision], accept: str | None
) -> list[_Row]:
    """The decided items as rows to be. Raises InputError where there are none."""
    rows = []
    for place, item in enumerate(queue.items):
        label = decisions[item.prediction].label
        if label is not None:
            author = _author(queue, item, answers[item.prediction], label, accept)
            rows.append(_Row(place, item, version.classes.index(queue.classes[label]), author))
    if not rows:
        raise InputError(f"No item of review {queue.id} is decided yet, so there is nothing to apply.")
    return rows


def _without_gone(queue: Queue, version: Version, rows: list[_Row]) -> tuple[list[_Row], list[str]]:
    """The rows that can be applied, and the uids of those that the dataset has no more. Raises InputError on none."""
    if not queue.of_rows:
        return rows, []
    is_there = version.find([row.item.prediction for row in rows]) >= 0
    left = [row for row, there in zip(rows, is_there, strict=True) if there]
    if not left:
        raise InputError(
            f"{version.ref} has none of the {counted(len(rows), 'row')} any more that review {queue.id} decides, "
            "so there is nothing to apply."
        )
    return left, [row.item.prediction for row, there in zip(rows, is_there, strict=True) if not there]


def _labelled_there(queue: Queue, version: Version, rows: list[_Row]) -> Places:
    """The places of those rows that need no label of this queue any more, -1 for the others.

    They have one, or had this queue's once: whoever took it away since meant it.
    """
    uids = [row.item.prediction for row in rows]
    there = version.find(uids)
    open_now = version.read(LABEL, there) == NO_LABEL
    for commit in version.store.history(version.commit):
        if commit.changes is not None and commit.operation.get("origin") == _origin(queue):
            open_now &= places(uids_from_hex(uids), version.store.get(commit.changes, UID)) < 0
    return np.where(open_now, -1, there)


def _origin(queue: Queue) -> str:
    return f"review {queue.id}"


def _author(queue: Queue, item: Item, said: dict[str, Answer], label: int, accept: str | None) -> Author:
    """Whoever gave the label first, or the one who decided; the others who agree are named in the reason."""
    agreeing = [answer for answer in said.values() if answer.label == label]
    # People stand in the order of their first answers, which may have been others.
    earliest = min(agreeing, key=lambda answer: answer.when)
    first = next((answer for answer in agreeing if answer.who == accept), earliest)
    others = ", ".join(sorted(answer.who for answer in agreeing if answer is not first))
    also = f", so says {others}" if others else ""
    what = item.reason if queue.of_rows else f"{item.reason}, prediction {item.prediction}"
    return Author(first.who, first.when, f"{_origin(queue)}: {what}{also}")


def _commit_of(queue: Queue, version: Version) -> Commit:
    """The newest commit that this queue made, where all its rows are in the dataset."""
    for commit in version.store.history(version.commit):
        if commit.operation.get("origin") == _origin(queue):
            return commit
    # Another queue had the same items and was quicker.
    return version.store.commit_of(version.commit)


def _changed(version: Version, rows: list[_Row], there: Places) -> list[str]:
    old = [(row, int(place)) for row, place in zip(rows, there, strict=True) if place >= 0]
    if not old:
        return []
    labels = version.read(LABEL, np.array([place for _, place in old]))
    return [row.item.prediction for (row, _), label in zip(old, labels, strict=True) if row.label != label]
