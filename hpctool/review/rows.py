"""Rows of a dataset without a label, as a review queue: no model is asked, and the answers become their labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from hpctool.data.manifest import LABEL, NO_LABEL, Column
from hpctool.data.ragged import Values
from hpctool.data.reader import Reader, Rows
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError, UnknownName, listing
from hpctool.review.picture import is_picture
from hpctool.review.queue import QUEUE_FORMAT, Item, Queue, undecided, write_queue


def make_rows_queue(
    reviews: Path,
    datasets: Path,
    dataset: str,
    num_rows: int,
    *,
    split: str | None = None,
    column: str | None = None,
    seed: int = 0,
) -> Queue:
    """Choose rows without a label at random for people to look at; the same again finds it.

    `dataset` is NAME@branch; `split` narrows the rows down; `column` is what is shown, by default the dataset's image,
    or its only feature. Left out is what people skipped, or were at odds about, in a review that was applied: it waits
    there. Raises InputError, UnknownName.
    """
    branch = open_version(datasets, dataset)
    _check(branch, num_rows)
    shown = _column(branch, column)
    candidates = _candidates(reviews, branch, split)
    rows = np.random.default_rng(seed).permutation(candidates)[:num_rows]
    probability = len(rows) / len(candidates)
    splits = branch.split_of_rows()
    content = {
        "format": QUEUE_FORMAT,
        "of": "rows",
        "model": "",
        "dataset": branch.ref,
        "data_commit": branch.commit,
        "feature": shown.name,
        "names": shown.names,
        "encoding": shown.encoding,
        "classes": branch.classes,
        "selection": {"num_rows": num_rows, "split": split, "seed": seed},
        "num_candidates": len(candidates),
        "items": [
            asdict(Item(uid, "", splits[row], "unlabelled", probability, NO_LABEL))
            for uid, row in zip(branch.uids(rows), rows, strict=True)
        ],
    }
    arrays = {"inputs": _values(branch, shown, rows), "probabilities": np.zeros((len(rows), 0), np.float32)}
    return write_queue(reviews, branch.name, content, arrays)


def _check(branch: Version, num_rows: int) -> None:
    if branch.revision not in branch.store.branches():
        raise InputError(f"'{branch.revision}' is no branch of dataset '{branch.name}'; labels go onto a branch.")
    if not branch.classes:
        raise InputError(f"{branch.ref} has no labels; prepare it with source.classes=[…] to label it.")
    if num_rows < 1:
        raise InputError(f"{num_rows} rows were asked for; ask for at least one.")


def _column(branch: Version, name: str | None) -> Column:
    """What people are shown. Raises InputError where it must be said, UnknownName."""
    if name is not None:
        if name not in branch.features:
            raise UnknownName(f"feature of {branch.ref} called", name, branch.features)
        return branch.columns[name]
    features = [branch.columns[feature] for feature in branch.features]
    pictures = [column for column in features if is_picture(column.encoding, column.dtype, column.shape)]
    found = pictures or features
    if len(found) != 1:
        raise InputError(
            f"{branch.ref} has the features {listing(branch.features)}; say which is shown: --column NAME."
        )
    return found[0]


def _candidates(reviews: Path, branch: Version, split: str | None) -> Rows:
    rows = np.flatnonzero(branch.read(LABEL) == NO_LABEL)
    if split is not None:
        rows = np.intersect1d(rows, branch.split_rows(split))
    uids, known = branch.uids(rows), undecided(reviews)
    fresh: Rows = rows[[uid not in known for uid in uids]] if len(rows) else rows
    if not len(fresh):
        where = f"split '{split}' of {branch.ref}" if split is not None else branch.ref
        skipped = f", apart from {len(rows):,} that people have skipped or dispute" if len(rows) else ""
        raise InputError(f"No row of {where} waits for a label{skipped}.")
    return fresh


def _values(branch: Version, column: Column, rows: Rows) -> Values:
    with Reader(branch, [column.name]) as reader:
        return reader.ragged(column.name, rows) if column.ragged else reader.gather(rows)[column.name]
