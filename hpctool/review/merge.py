"""Merge: the decided items of a queue become rows of the dataset, with who labelled each, when and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpctool import files
from hpctool.data.append import Author, append
from hpctool.data.commit import Commit
from hpctool.data.layout import split_ref
from hpctool.data.manifest import LABEL
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError
from hpctool.review.answers import Answer, decide
from hpctool.review.queue import APPLIED, QUEUE_FORMAT, Item, Queue, row_keys, row_uids
from hpctool.rundir import now, who


@dataclass(frozen=True)
class Applied:
    """What came of it; `num_rows` were appended, 0 where all that is decided was there before."""

    dataset: str
    commit: str
    tag: str | None
    num_rows: int
    #: rows that were in the dataset already
    num_there: int
    #: of these, items whose answers have changed since: the dataset keeps what it has
    changed: list[str]
    #: what is left out: not looked at, skipped by all, and without a majority
    num_open: int
    num_skipped: int
    disputed: list[str]


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

    Skipped items are left out, and so are those on which people disagree, unless `accept` names whose answers decide.
    Applying again appends what was decided since, if anything. `split` sends the rows to one split instead of where
    the dataset's rule says. Raises InputError where nothing is decided or the tag is taken; nothing is written then.
    """
    answers = queue.answers()
    if accept is not None and not any(accept in said for said in answers.values()):
        raise InputError(f"'{accept}' has answered nothing in review {queue.id}, so nothing can be accepted from them.")
    version = open_version(datasets, queue.dataset)
    decisions = {item.prediction: decide(answers.get(item.prediction, {}), accept) for item in queue.items}
    rows = []
    for place, item in enumerate(queue.items):
        label = decisions[item.prediction].label
        if label is not None:
            author = _author(queue, item, answers[item.prediction], label, accept)
            rows.append(_Row(place, item, version.classes.index(queue.classes[label]), author))
    if not rows:
        raise InputError(f"No item of review {queue.id} is decided yet, so there is nothing to apply.")

    there = version.find(row_uids(queue.inputs[[row.place for row in rows]]))
    fresh = [row for row, found in zip(rows, there, strict=True) if found < 0]
    commit = _append(queue, version, fresh, message, tag, split, run) if fresh else _commit_of(queue, version)
    if tag is not None:
        version.store.create_tag(tag, commit.id)
    record = {"format": QUEUE_FORMAT, "dataset": queue.dataset, "commit": commit.id, "time": now(), "by": who()}
    if fresh or queue.applied() is None:
        files.write_json(queue.path / APPLIED, record)
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
    )


def _append(
    queue: Queue, version: Version, rows: list[_Row], message: str, tag: str | None, split: str | None, run: str
) -> Commit:
    inputs = queue.inputs[[row.place for row in rows]]
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


def _origin(queue: Queue) -> str:
    return f"review {queue.id}"


def _author(queue: Queue, item: Item, said: dict[str, Answer], label: int, accept: str | None) -> Author:
    """Whoever gave the label first, or the one who decided; the others who agree are named in the reason."""
    agreeing = [answer for answer in said.values() if answer.label == label]
    first = next((answer for answer in agreeing if answer.who == accept), agreeing[0])
    others = ", ".join(sorted(answer.who for answer in agreeing if answer is not first))
    also = f", so says {others}" if others else ""
    return Author(first.who, first.when, f"{_origin(queue)}: {item.reason}, prediction {item.prediction}{also}")


def _commit_of(queue: Queue, version: Version) -> Commit:
    """The newest commit that this queue made, where all its rows are in the dataset."""
    for commit in version.store.history(version.commit):
        if commit.operation.get("origin") == _origin(queue):
            return commit
    # Another queue had the same items and was quicker.
    return version.store.commit_of(version.commit)


def _changed(version: Version, rows: list[_Row], there: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[str]:
    old = [(row, int(place)) for row, place in zip(rows, there, strict=True) if place >= 0]
    if not old:
        return []
    labels = version.read(LABEL, np.array([place for _, place in old]))
    return [row.item.prediction for (row, _), label in zip(old, labels, strict=True) if row.label != label]
