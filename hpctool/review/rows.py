"""Rows of a dataset without a label, as a review queue: the answers become their labels. No model need be there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpctool.data.manifest import LABEL, NO_LABEL, Column
from hpctool.data.ragged import Values
from hpctool.data.reader import Reader, Rows
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError, UnknownName, listing
from hpctool.export.bundle import Bundle
from hpctool.review.picture import is_picture
from hpctool.review.queue import QUEUE_FORMAT, Item, Queue, check_classes, undecided, write_queue
from hpctool.review.select import Measure, Reason, uncertainty
from hpctool.serve.journal import Journal


@dataclass(frozen=True)
class Scored:
    """A model's version and the journal of what it said; `measure` tells of which rows it is least sure."""

    bundle: Bundle
    journal: Journal
    measure: Measure = "margin"


class _Chosen(NamedTuple):
    """Rows of the branch, why they were chosen, how probable that was, and what a model says of each."""

    rows: Rows
    reason: Reason
    probability: float
    #: (rows, classes); no class where no model was asked
    said: npt.NDArray[np.float32]


def make_rows_queue(
    reviews: Path,
    datasets: Path,
    dataset: str,
    num_rows: int,
    *,
    split: str | None = None,
    column: str | None = None,
    seed: int = 0,
    scored: Scored | None = None,
) -> Queue:
    """Choose rows without a label for people to look at, by chance or those that a model is least sure of.

    The same again finds it. `dataset` is NAME@branch; `split` narrows the rows down; `column` is what is shown, by
    default the dataset's image, or its only feature. Left out is what people skipped, or were at odds about, in a
    review that was applied: it waits there. Raises InputError, UnknownName.
    """
    branch = open_version(datasets, dataset)
    _check(branch, num_rows)
    shown = _column(branch, column)
    candidates = _candidates(reviews, branch, split)
    chosen = _unsure(branch, candidates, num_rows, scored) if scored else _by_chance(candidates, num_rows, seed)
    guesses = chosen.said.argmax(axis=1).tolist() if scored else [NO_LABEL] * len(chosen.rows)
    splits = branch.split_of_rows()
    content = {
        "format": QUEUE_FORMAT,
        "of": "rows",
        "model": str(scored.bundle) if scored else "",
        "dataset": branch.ref,
        "data_commit": branch.commit,
        "feature": shown.name,
        "names": shown.names,
        "encoding": shown.encoding,
        "classes": branch.classes,
        "selection": {
            "num_rows": num_rows,
            "split": split,
            "seed": seed,
            "measure": scored.measure if scored else None,
        },
        "num_candidates": len(candidates),
        "items": [
            asdict(Item(uid, "", splits[row], chosen.reason, chosen.probability, guess))
            for uid, row, guess in zip(branch.uids(chosen.rows), chosen.rows, guesses, strict=True)
        ],
    }
    arrays = {"inputs": _values(branch, shown, chosen.rows), "probabilities": chosen.said}
    return write_queue(reviews, branch.name, content, arrays)


def _by_chance(candidates: Rows, num_rows: int, seed: int) -> _Chosen:
    rows = np.random.default_rng(seed).permutation(candidates)[:num_rows]
    return _Chosen(rows, "unlabelled", len(rows) / len(candidates), np.zeros((len(rows), 0), np.float32))


def _unsure(branch: Version, candidates: Rows, num_rows: int, scored: Scored) -> _Chosen:
    """The rows that the model is least sure of, these first. Raises InputError where it has scored none."""
    classes = scored.bundle.signature().classes
    check_classes(branch, classes)
    found = scored.journal.read(model=str(scored.bundle), columns=["request", "probabilities"])
    newest = {request: place for place, request in enumerate(found.request)}
    places = np.array([newest.get(uid, -1) for uid in branch.uids(candidates)], np.int64)
    if (places < 0).all():
        raise InputError(
            f"{scored.bundle} has scored no row of {branch.ref} that waits for a label. First: hpctool score "
            f"data.name={branch.ref} score.model={scored.bundle}"
        )
    rows, said = candidates[places >= 0], np.zeros(((places >= 0).sum(), len(branch.classes)), np.float32)
    said[:, [branch.classes.index(name) for name in classes]] = found.probabilities[places[places >= 0]]
    order = np.argsort(-uncertainty(said, scored.measure), kind="stable")[:num_rows]
    return _Chosen(rows[order], "uncertain", 1.0, said[order])


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
