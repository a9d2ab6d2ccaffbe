"""A review queue: chosen predictions, or rows without a label, with everything that is needed to look at them, and
what people said of them.

<root>/reviews/<model>-<8 hex>/
  queue.json     what is to be reviewed and why, immutable; the id is the checksum of its content
  objects/       inputs and probabilities of the items, so that the journal is not needed any more
  answers/       a log of facts (answers.py)
  applied.json   the commit that the answers became (merge.py)
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool import files
from hpctool.data.identity import content_digests, uids_of_keys
from hpctool.data.layout import Layout
from hpctool.data.objects import StoredObject, offsets_of, read_array, write_object
from hpctool.data.ragged import Ragged, Values
from hpctool.data.version import Version, open_version
from hpctool.errors import CorruptError, InputError, NewerFormat, UnknownName, listing
from hpctool.export.bundle import Bundle
from hpctool.log import Log
from hpctool.review.answers import Answer, Answers, check_person, decide, fold, standing
from hpctool.review.select import Reason, Selection, choose
from hpctool.rundir import SHORT, now, who
from hpctool.serve.journal import Journal, Predictions
from hpctool.world import Array

#: The newest that is read. A queue of predictions is of format 1, one of a dataset's rows (rows.py) of format 2.
QUEUE_FORMAT = 2
_OF_PREDICTIONS = 1
_UID = re.compile(r"[0-9a-f]{32}")
RECORD, APPLIED = "queue.json", "applied.json"


@dataclass(frozen=True)
class Item:
    """One prediction or row to be looked at; `guess` is the model's class index, -1 where no model was asked.

    Of a row `prediction` is its uid and `source` its split.
    """

    prediction: str
    request: str
    source: str
    reason: Reason
    inclusion_probability: float
    guess: int


class Queue:
    """One review queue on disk. Raises UnknownName, CorruptError, NewerFormat."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        try:
            record = files.read_json(path / RECORD)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UnknownName("review", path.name, list_queues(path.parent), f"They lie in {path.parent}.") from error
        if not isinstance(record, dict) or not isinstance(record.get("format"), int):
            raise CorruptError(path / RECORD, "it describes no review")
        if record["format"] > QUEUE_FORMAT:
            raise NewerFormat(path / RECORD, "review", record["format"], QUEUE_FORMAT)
        self.record: dict[str, Any] = record
        self.items = [Item(**item) for item in record["items"]]
        self._log = Log(path / "answers")
        self._lock = threading.Lock()

    @property
    def classes(self) -> list[str]:
        """The names of the model's classes."""
        return list(self.record["classes"])

    @property
    def model(self) -> str:
        """`digits@0001`; empty where no model was asked."""
        return str(self.record["model"])

    @property
    def of_rows(self) -> bool:
        """Whether the items are rows of the dataset that wait for a label, instead of predictions to be appended."""
        return self.record.get("of") == "rows"

    @property
    def subject(self) -> str:
        """What the items are of: a model's version, or the dataset's branch."""
        return self.dataset if self.of_rows else self.model

    @property
    def dataset(self) -> str:
        """`digits@main`: where the answers will go."""
        return str(self.record["dataset"])

    @cached_property
    def inputs(self) -> Values:
        """What people look at, which is what the model saw: (items, …); ragged are texts and encoded images."""
        if (offsets := offsets_of("inputs")) in self._stored.extents:
            return Ragged(self._array("inputs"), self._array(offsets))
        return self._array("inputs")

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """What the model said, (items, classes); no class where none was asked."""
        return self._array("probabilities")

    @cached_property
    def places(self) -> dict[str, int]:
        """Prediction id → place among the items."""
        return {item.prediction: place for place, item in enumerate(self.items)}

    def label_index(self, text: str) -> int:
        """The index of a class given by its name or its index. Raises InputError."""
        if text in self.classes:
            return self.classes.index(text)
        if text.isascii() and text.isdigit() and int(text) < len(self.classes):
            return int(text)
        raise InputError(f"'{text}' is none of the {len(self.classes)} classes: {listing(self.classes, 12)}.")

    def answers(self) -> Answers:
        """What everybody says now: item → person → answer."""
        return fold(standing(self._facts()))

    def answer(self, item: str, label: int | None, person: str, client: str) -> None:
        """Take an answer, durably; `label` None is a skip. The same `client` again changes nothing.

        Raises UnknownName on an item that is not in the queue, InputError on a label that is no class.
        """
        self._check_item(item)
        if label is not None and not 0 <= label < len(self.classes):
            raise InputError(f"Label {label} is out of range: {self.subject} has {len(self.classes)} classes.")
        self._add({"kind": "answer", "item": item, "label": label}, person, client)

    def undo(self, item: str, action: str, person: str, client: str) -> None:
        """Take back the answer to `item` whose client id is `action`. Raises UnknownName, InputError."""
        self._check_item(item)
        if not any(f["client"] == action and (f["item"], f["who"]) == (item, person) for f in self._facts()):
            raise InputError(f"There is no answer '{action}' of {person} to item {item} that could be undone.")
        self._add({"kind": "undo", "item": item, "undo": action}, person, client)

    def history(self, person: str) -> list[Answer]:
        """A person's answers that were not taken back, the oldest first; of several to one item the last counts."""
        return [answer for answer in standing(self._facts()) if answer.who == person]

    def applied(self) -> dict[str, Any] | None:
        """What the answers became, None before they were applied."""
        path = self.path / APPLIED
        return files.read_json(path) if path.exists() else None

    def _array(self, name: str) -> Array:
        return read_array(Layout(self.path), self._stored, name)

    @property
    def _stored(self) -> StoredObject:
        return StoredObject.from_json(self.record["object"])

    def _facts(self) -> list[dict[str, Any]]:
        with self._lock:
            return [entry.body for entry in self._log.entries()]

    def _check_item(self, item: str) -> None:
        if item not in self.places:
            raise UnknownName(f"item of review {self.id} called", item, self.places)

    def _add(self, fact: dict[str, Any], person: str, client: str) -> None:
        if not client:
            raise InputError("An answer needs the id of its action, so that sending it twice counts once.")
        fact = {"format": self.record["format"], **fact, "who": check_person(person), "when": now(), "client": client}
        with self._lock:
            if all(entry.body["client"] != client for entry in self._log.entries()):
                self._log.append(fact)


def row_keys(inputs: Values) -> list[str]:
    """What names the rows that items become, for ever: a digest of the input, which is one row whoever predicted it."""
    return [f"review:{bytes(digest).hex()}" for digest in content_digests({"input": inputs})]


def row_uids(inputs: Values) -> list[str]:
    """The uids of the rows that items become."""
    return [bytes(uid).hex() for uid in uids_of_keys(row_keys(inputs))]


def make_queue(
    reviews: Path, datasets: Path, journal: Journal, bundle: Bundle, asked: Selection, dataset: str | None = None
) -> Queue:
    """Choose predictions of a model version from its journal for people to look at; the same again finds it.

    `dataset` is NAME@branch, by default the main branch of what the model was trained on. What is in it already, and
    what people have said something about in a queue that was applied, is left out. Raises InputError, UnknownName.
    """
    data = bundle.lineage()["data"]
    branch = open_version(datasets, dataset or data["name"])
    if branch.revision not in branch.store.branches():
        raise InputError(f"'{branch.revision}' is no branch of dataset '{branch.name}'; rows go onto a branch.")
    predictions = journal.read(model=str(bundle), source=asked.source, since=asked.since, until=asked.until)
    spec, classes = bundle.signature().inputs[0], bundle.signature().classes
    _check_fits(branch, spec.name, classes)
    chosen, num_candidates = choose(predictions, asked, _reviewed(reviews, branch, predictions))
    guesses = predictions.probabilities.argmax(axis=1)
    rows = np.array([c.row for c in chosen])
    arrays = {"inputs": predictions.input[rows], "probabilities": predictions.probabilities[rows]}
    ids, requests, sources = predictions.ids, predictions.request, predictions.source
    content = {
        "format": _OF_PREDICTIONS,
        "model": str(bundle),
        "bundle": bundle.manifest()["digest"],
        "dataset": branch.ref,
        "data_commit": data["commit"],
        "feature": spec.name,
        "names": branch.columns[spec.name].names,
        "classes": classes,
        "selection": asdict(asked),
        "num_candidates": num_candidates,
        "items": [
            asdict(Item(ids[r], requests[r], sources[r], reason, probability, int(guesses[r])))
            for r, reason, probability in chosen
        ],
    }
    return write_queue(reviews, bundle.name, content, arrays)


def open_queue(reviews: Path, name: str) -> Queue:
    """A queue by its id or any unique beginning of it. Raises UnknownName, InputError."""
    known = list_queues(reviews)
    found = [queue for queue in known if queue == name] or [queue for queue in known if queue.startswith(name)]
    if len(found) > 1:
        raise InputError(f"'{name}' is the beginning of {len(found)} reviews: {listing(found)}.")
    if not found:
        raise UnknownName("review", name, known, f"They lie in {reviews}.")
    return Queue(reviews / found[0])


def list_queues(reviews: Path) -> list[str]:
    """The ids of all queues, in order of name."""
    return sorted(path.parent.name for path in reviews.glob(f"*/{RECORD}"))


def write_queue(reviews: Path, name: str, content: dict[str, Any], arrays: Mapping[str, Values]) -> Queue:
    """The queue of this content, made if it is not there yet; its id is `<name>-<8 hex of the content>`."""
    path = reviews / f"{name}-{files.sha256_bytes(files.canonical_json(content))[:SHORT]}"
    if not (path / RECORD).exists():
        path.mkdir(parents=True, exist_ok=True)
        stored = write_object(Layout(path), arrays)
        record = {**content, "object": stored.to_json(), "created": now(), "by": who()}
        files.create(path / RECORD, files.canonical_json(record) + b"\n")
    return Queue(path)


def _reviewed(reviews: Path, branch: Version, predictions: Predictions) -> Set[str]:
    """The ids of predictions that need no look any more."""
    there = branch.find(row_uids(predictions.input)) if len(predictions) else np.zeros(0, np.int64)
    found = {prediction for prediction, row in zip(predictions.ids, there, strict=True) if row >= 0}
    # Rows of this dataset that were scored: they are labelled where they are (rows.py), never appended once more.
    scored = [(one, uid) for one, uid in zip(predictions.ids, predictions.request, strict=True) if _UID.fullmatch(uid)]
    rows = branch.find([uid for _, uid in scored]) if scored else np.zeros(0, np.int64)
    found |= {prediction for (prediction, _), row in zip(scored, rows, strict=True) if row >= 0}
    for queue in _applied(reviews):
        found |= queue.answers().keys()
    return found


def undecided(reviews: Path) -> Set[str]:
    """The items that were looked at in a queue which was applied, and came to no label: skipped, or disputed."""
    return {
        item
        for queue in _applied(reviews)
        for item, said in queue.answers().items()
        if said and decide(said).label is None
    }


def _applied(reviews: Path) -> list[Queue]:
    queues = [Queue(reviews / name) for name in list_queues(reviews)]
    return [queue for queue in queues if queue.applied() is not None]


def _check_fits(branch: Version, feature: str, classes: list[str]) -> None:
    """Refuse what could never be applied before anybody spends an hour on it."""
    if branch.features != [feature]:
        raise InputError(
            f"The model takes '{feature}' and {branch.ref} has the features {listing(branch.features)}: "
            "its predictions cannot become rows there. Choose another with --dataset."
        )
    check_classes(branch, classes)


def check_classes(branch: Version, classes: list[str]) -> None:
    """Raises InputError where the model or the review knows a class that the dataset has not."""
    if missing := [name for name in classes if name not in branch.classes]:
        raise InputError(
            f"{branch.ref} has no class {listing(missing)} and could not take such answers; it has: "
            f"{listing(branch.classes, 12)}. Choose a dataset or branch with the same classes, or make a new review."
        )
