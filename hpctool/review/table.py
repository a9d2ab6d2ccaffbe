"""Review through csv: the items as a table, and answers from one."""

from __future__ import annotations

import csv
import io
import uuid
from pathlib import Path

from hpctool import files
from hpctool.data.csvtable import read_csv
from hpctool.errors import InputError, SourceError, UnknownName
from hpctool.review.answers import check_person
from hpctool.review.queue import Queue

COLUMNS = ("item", "request", "source", "guess", "confidence", "label")


def write_items(queue: Queue, path: Path) -> None:
    """The queue as csv with an empty column `label` to be filled in. It does not tell why an item was chosen."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item, probabilities in zip(queue.items, queue.probabilities, strict=True):
        said = [queue.classes[item.guess], f"{probabilities[item.guess]:.4f}"] if item.guess >= 0 else ["", ""]
        writer.writerow([item.prediction, item.request, item.source, *said, ""])
    files.write_atomic(path, text.getvalue())


def read_answers(queue: Queue, path: Path) -> dict[str, int]:
    """Item → class index from a csv with the columns item (or prediction) and label (a class's name or index).

    A row with an empty label is not answered yet. The whole file is checked. Raises SourceError with the line.
    """
    header, lines, rows = read_csv(path)
    name = "item" if "item" in header else "prediction"
    for column in (name, "label"):
        if column not in header:
            raise SourceError(path, f"it has no column '{column}'; it has {', '.join(header)}.", 1)
    found: dict[str, int] = {}
    for line, row in zip(lines, rows, strict=True):
        item, text = row[header.index(name)].strip(), row[header.index("label")].strip()
        if item not in queue.places:
            problem = UnknownName(f"item of review {queue.id} called", item, queue.places)
            raise SourceError(path, str(problem), line)
        if not text:
            continue
        try:
            label = queue.label_index(text)
        except InputError as error:
            raise SourceError(path, str(error), line) from error
        if found.setdefault(item, label) != label:
            raise SourceError(path, f"item {item} stands before with another label.", line)
    return found


def take_answers(queue: Queue, labels: dict[str, int], person: str) -> int:
    """Give these answers in a person's name; how many are new. What they say already is not said again."""
    person = check_person(person)
    answers = queue.answers()
    new = 0
    for item, label in labels.items():
        mine = answers.get(item, {}).get(person)
        if mine is None or mine.label != label:
            queue.answer(item, label, person, uuid.uuid4().hex)
            new += 1
    return new
