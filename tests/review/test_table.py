"""Review through csv: what is written can be filled in and read back; what does not fit is refused with its line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hpctool.errors import SourceError
from hpctool.review.queue import Queue
from hpctool.review.table import COLUMNS, read_answers, take_answers, write_items
from tests.review.conftest import true_label


def test_the_table_is_filled_in_and_read_back(queue: Queue, tmp_path: Path) -> None:
    write_items(queue, tmp_path / "items.csv")
    with open(tmp_path / "items.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["item"] for row in rows] == [item.prediction for item in queue.items]
    assert rows[0]["guess"] == str(queue.items[0].guess)
    for row in rows[:4]:
        row["label"] = row["request"].removeprefix("truth-").partition(":")[0]
    with open(tmp_path / "answers.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    answers = read_answers(queue, tmp_path / "answers.csv")
    assert answers == {queue.items[place].prediction: true_label(queue, place) for place in range(4)}
    assert take_answers(queue, answers, "oracle") == 4
    assert take_answers(queue, answers, "oracle") == 0
    assert {who: a.label for who, a in queue.answers()[queue.items[1].prediction].items()} == {
        "oracle": true_label(queue, 1)
    }


def test_an_answer_that_differs_from_before_counts_anew(queue: Queue) -> None:
    item = queue.items[0].prediction
    for label in (3, 5, 3):
        assert take_answers(queue, {item: label}, "ann") == 1
    assert queue.answers()[item]["ann"].label == 3


@pytest.mark.parametrize(
    ("rows", "line", "said"),
    [
        (["{0},3", "ffffffff-000001,3"], 3, "no item of review digits-[0-9a-f]{{8}} called 'ffffffff-000001'"),
        (["{0},3", "{1},x"], 3, "'x' is none of the 10 classes: 0, 1, 2"),
        (["{0},10"], 2, "'10' is none of the 10 classes"),
        (["{0},3", "{0},4"], 3, "stands before with another label"),
        (["{0}"], 2, "it has 1 cells where the header has 2"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(
    queue: Queue, tmp_path: Path, rows: list[str], line: int, said: str
) -> None:
    path = tmp_path / "answers.csv"
    items = [item.prediction for item in queue.items]
    path.write_text("prediction,label\n" + "".join(row.format(*items) + "\n" for row in rows))
    with pytest.raises(SourceError, match=said.format()) as caught:
        read_answers(queue, path)
    assert caught.value.line == line
    assert queue.answers() == {}


def test_a_table_without_the_columns_is_refused(queue: Queue, tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    for header, missing in (("item,answer", "label"), ("row,label", "prediction")):
        path.write_text(header + "\n")
        with pytest.raises(SourceError, match=f"no column '{missing}'; it has"):
            read_answers(queue, path)
