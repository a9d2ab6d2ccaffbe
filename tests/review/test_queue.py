"""A queue holds all that is needed to look at its items, and keeps every answer."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from hpctool import files
from hpctool.cli.output import Folders
from hpctool.errors import InputError, NewerFormat, UnknownName
from hpctool.review.merge import apply
from hpctool.review.queue import RECORD, Queue, list_queues, open_queue
from hpctool.serve.journal import Journal
from tests.review.conftest import MakeQueue, digits, images_of, predict, true_label


def test_a_queue_needs_no_journal_and_says_where_it_comes_from(queue: Queue, folders: Folders) -> None:
    found = Journal(folders.journals / "digits").read()
    shutil.rmtree(folders.journals)
    again = open_queue(folders.reviews, queue.id)
    rows = [found.ids.index(item.prediction) for item in again.items]
    assert np.array_equal(images_of(again), found.input[rows])
    assert np.array_equal(again.probabilities, found.probabilities[rows])
    assert [item.guess for item in again.items] == found.probabilities[rows].argmax(axis=1).tolist()
    assert [item.request for item in again.items] == [found.request[row] for row in rows]
    assert (again.model, again.dataset, again.classes) == ("digits@0001", "digits@main", [str(n) for n in range(10)])
    assert again.record["selection"]["num_uncertain"] == 8
    assert (len(again.record["data_commit"]), again.record["num_candidates"]) == (64, 60)


def test_asking_again_finds_the_queue_and_asking_otherwise_makes_another(make: MakeQueue, folders: Folders) -> None:
    first = make()
    before = (first.path / RECORD).read_bytes()
    assert make().id == first.id
    assert (first.path / RECORD).read_bytes() == before
    other = make(source="worn")
    assert list_queues(folders.reviews) == sorted([first.id, other.id])
    assert open_queue(folders.reviews, first.id[:10]).id == first.id
    with pytest.raises(InputError, match="is the beginning of 2 reviews"):
        open_queue(folders.reviews, "digits")
    with pytest.raises(UnknownName, match="no review 'faces'; there is: digits-"):
        open_queue(folders.reviews, "faces")


def test_only_the_version_and_the_source_that_were_asked_for(make: MakeQueue, folders: Folders) -> None:
    images, truth = digits()
    other = predict(folders.journals, images[:5], truth[:5], model="digits@0002")
    clean = predict(folders.journals, images[:7], truth[:7], source="clean")
    assert {item.prediction for item in make(100, 0, source="clean").items} == set(clean)
    everything = {item.prediction for item in make(100, 100).items}
    assert everything >= set(clean)
    assert not everything & set(other)
    with pytest.raises(InputError, match="the journal holds no prediction"):
        make(source="elsewhere")


def test_what_became_data_or_was_seen_is_not_asked_again(make: MakeQueue, folders: Folders) -> None:
    first = make()
    for place, item in enumerate(first.items[:6]):
        first.answer(item.prediction, None if place == 0 else true_label(first, place), "ann", f"a{place}")
    before = {item.prediction for item in make(100, 0).items}
    assert before >= {item.prediction for item in first.items}, "nothing is settled before it is applied"
    apply(first, folders.datasets, "more")
    after = {item.prediction for item in make(100, 0).items}
    assert before - after == {item.prediction for item in first.items[:6]}


def test_answers_are_kept_by_item_and_person(queue: Queue, folders: Folders) -> None:
    item = queue.items[0].prediction
    queue.answer(item, 3, "ann", "1")
    queue.answer(item, 5, "bob", "2")
    queue.answer(item, 4, " ann ", "3")
    queue.answer(queue.items[1].prediction, None, "ann", "4")
    queue.undo(item, "3", "ann", "5")
    said = open_queue(folders.reviews, queue.id).answers()
    assert {who: answer.label for who, answer in said[item].items()} == {"ann": 3, "bob": 5}
    assert [(a.item, a.label, a.client) for a in queue.history("ann")] == [
        (item, 3, "1"),
        (queue.items[1].prediction, None, "4"),
    ]


def test_an_action_that_is_sent_twice_is_written_once(queue: Queue) -> None:
    item = queue.items[0].prediction
    for _ in range(2):
        queue.answer(item, 3, "ann", "1")
        queue.answer(item, 4, "ann", "2")
        queue.undo(item, "2", "ann", "3")
    assert len(list((queue.path / "answers").iterdir())) == 3
    assert queue.answers()[item]["ann"].label == 3


def test_answers_that_cannot_be_are_refused_and_not_written(queue: Queue) -> None:
    item = queue.items[0].prediction
    with pytest.raises(UnknownName, match=f"no item of review {queue.id} called 'ffffffff-000001'"):
        queue.answer("ffffffff-000001", 3, "ann", "1")
    for label in (10, -1):
        with pytest.raises(InputError, match=f"Label {label} is out of range: digits@0001 has 10 classes"):
            queue.answer(item, label, "ann", "1")
    with pytest.raises(InputError, match="cannot be the name of a person"):
        queue.answer(item, 3, "import", "1")
    with pytest.raises(InputError, match="needs the id of its action"):
        queue.answer(item, 3, "ann", "")
    queue.answer(item, 3, "ann", "1")
    with pytest.raises(InputError, match="no answer '1' of bob"):
        queue.undo(item, "1", "bob", "2")
    assert len(list((queue.path / "answers").iterdir())) == 1


def test_many_who_answer_at_once_lose_nothing(queue: Queue) -> None:
    def work(person: str) -> None:
        mine = Queue(queue.path)
        for item in queue.items:
            mine.answer(item.prediction, 1, person, f"{person}-{item.prediction}")

    threads = [threading.Thread(target=work, args=(person,)) for person in ("ann", "bob", "cleo")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = queue.answers()
    assert len(said) == len(queue.items)
    assert all(by.keys() == {"ann", "bob", "cleo"} for by in said.values())


def test_a_queue_for_a_dataset_that_cannot_take_it_is_not_made(
    make: MakeQueue, folders: Folders, tmp_path: Path
) -> None:
    with pytest.raises(UnknownName, match="no dataset 'digitz'"):
        make(dataset="digitz")
    commit = json.loads((folders.datasets / "digits/refs/heads/main/0000000001").read_text().splitlines()[0])["commit"]
    with pytest.raises(InputError, match="is no branch of dataset 'digits'"):
        make(dataset=f"digits@{commit[:12]}")
    assert list_queues(folders.reviews) == []


def test_a_queue_of_a_newer_hpctool_is_refused(queue: Queue) -> None:
    path = queue.path / RECORD
    files.write_json(path, files.read_json(path) | {"format": 3})
    with pytest.raises(NewerFormat, match="is a review of format 3; this hpctool reads up to 2"):
        Queue(queue.path)
