"""What people decided becomes data once, with their names; what they did not decide does not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from hpctool import files
from hpctool.cli.output import Folders
from hpctool.data.authors import label_authors
from hpctool.data.labels import blame
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError, UnknownName
from hpctool.review.merge import Applied, apply
from hpctool.review.queue import Queue, row_uids
from tests.review.conftest import MakeQueue, images_of, true_label


def say(queue: Queue, places: range, person: str = "ann", shift: int = 0) -> None:
    """A person labels these items with the truth, or with something else."""
    for place in places:
        item = queue.items[place].prediction
        queue.answer(item, (true_label(queue, place) + shift) % 10, person, f"{person}-{item}-{shift}")


def uid_of(queue: Queue, place: int) -> str:
    return row_uids(images_of(queue)[[place]])[0]


def tip(folders: Folders) -> Version:
    return open_version(folders.datasets, "digits")


@pytest.mark.slow
def test_labelled_items_become_rows_with_who_when_and_why(queue: Queue, folders: Folders) -> None:
    before = tip(folders)
    say(queue, range(5))
    queue.answer(queue.items[5].prediction, None, "ann", "skip")
    done = apply(queue, folders.datasets, "worn scans", "v2")
    after = open_version(folders.datasets, "digits@v2")
    assert (done.commit, done.num_rows, done.num_skipped, done.num_open) == (after.commit, 5, 1, 6)
    assert after.num_rows == before.num_rows + 5
    new = np.arange(before.num_rows, after.num_rows)
    assert after.uids(new) == [uid_of(queue, place) for place in range(5)]
    assert np.array_equal(after.read("image", new), images_of(queue)[:5])
    assert after.read("label", new).tolist() == [true_label(queue, place) for place in range(5)]
    assert label_authors(after) == {"import": 100, "ann": 5}
    (told,) = blame(after, uid_of(queue, 2))
    item = queue.items[2]
    assert told.who == "ann"
    assert told.when == queue.answers()[item.prediction]["ann"].when
    assert told.why == f"review {queue.id}: {item.reason}, prediction {item.prediction}"
    assert (queue.applied() or {})["commit"] == after.commit


def test_applying_again_changes_nothing_and_says_so(queue: Queue, folders: Folders) -> None:
    say(queue, range(5))
    first = apply(queue, folders.datasets, "worn scans", "v2")
    again = apply(queue, folders.datasets, "worn scans", "v2")
    assert (again.commit, again.num_rows, again.num_there) == (first.commit, 0, 5)
    assert tip(folders).commit == first.commit


@pytest.mark.parametrize("lost", ["applied.json", "tag", "both"])
def test_an_apply_that_was_killed_is_finished_by_the_next(queue: Queue, folders: Folders, lost: str) -> None:
    say(queue, range(5))
    first = apply(queue, folders.datasets, "worn scans", "v2")
    if lost in ("applied.json", "both"):
        (queue.path / "applied.json").unlink()
    if lost in ("tag", "both"):
        (folders.datasets / "digits/refs/tags/v2").unlink()
    again = apply(queue, folders.datasets, "worn scans", "v2")
    assert (again.commit, again.num_rows) == (first.commit, 0)
    assert open_version(folders.datasets, "digits@v2").commit == first.commit
    assert (queue.applied() or {})["commit"] == first.commit


def test_answers_that_come_later_are_appended_later(queue: Queue, folders: Folders) -> None:
    say(queue, range(3))
    apply(queue, folders.datasets, "some", "v2")
    say(queue, range(3, 6))
    say(queue, range(1), shift=1)
    with pytest.raises(InputError, match="has a tag 'v2' already"):
        apply(queue, folders.datasets, "more", "v2")
    assert tip(folders).num_rows == 103
    done = apply(queue, folders.datasets, "more", "v3")
    assert (done.num_rows, done.num_there, done.changed) == (3, 3, [queue.items[0].prediction])
    assert tip(folders).num_rows == 106


def test_disagreement_is_left_out_until_somebody_decides(queue: Queue, folders: Folders) -> None:
    say(queue, range(4))
    say(queue, range(2), "bob", shift=1)
    say(queue, range(2, 4), "bob")
    done = apply(queue, folders.datasets, "agreed")
    assert (done.num_rows, done.disputed) == (2, [queue.items[0].prediction, queue.items[1].prediction])
    (told,) = blame(tip(folders), uid_of(queue, 2))
    assert (told.who, told.why.endswith(", so says bob")) == ("ann", True)
    say(queue, range(1), "cleo")
    assert apply(queue, folders.datasets, "majority").disputed == [queue.items[1].prediction]
    with pytest.raises(InputError, match="'dan' has answered nothing"):
        apply(queue, folders.datasets, "adjudicated", accept="dan")
    done = apply(queue, folders.datasets, "adjudicated", accept="bob")
    assert (done.num_rows, done.disputed) == (1, [])
    (told,) = blame(tip(folders), uid_of(queue, 1))
    assert (told.who, told.new) == ("bob", str((true_label(queue, 1) + 1) % 10))


def test_the_label_is_of_whoever_gave_it_first_not_of_whoever_came_round_to_it(queue: Queue, folders: Folders) -> None:
    say(queue, range(1), "ann", shift=1)
    time.sleep(0.002)  # answers are timed to the millisecond
    say(queue, range(1), "bob")
    time.sleep(0.002)
    say(queue, range(1), "ann")
    apply(queue, folders.datasets, "agreed")
    (told,) = blame(tip(folders), uid_of(queue, 0))
    assert (told.who, told.why.endswith(", so says ann")) == ("bob", True)


@pytest.mark.slow
def test_rows_go_where_the_rule_says_or_to_one_split(make: MakeQueue, folders: Folders) -> None:
    queue = make(30, 0)
    before = tip(folders).splits
    say(queue, range(10))
    apply(queue, folders.datasets, "to train", split="train")
    assert tip(folders).splits == before | {"train": before["train"] + 10}
    say(queue, range(10, 30))
    apply(queue, folders.datasets, "by rule")
    assert tip(folders).splits["train"] < before["train"] + 30
    say(make(30, 0, seed=1), range(1))
    with pytest.raises(UnknownName, match="called 'trains'"):
        apply(make(30, 0, seed=1), folders.datasets, "no", split="trains")


def test_without_a_decision_there_is_nothing_to_apply(queue: Queue, folders: Folders) -> None:
    queue.answer(queue.items[0].prediction, None, "ann", "1")
    with pytest.raises(InputError, match=r"No item of review .* is decided yet"):
        apply(queue, folders.datasets, "nothing")
    assert queue.applied() is None


def test_two_queues_with_the_same_item_make_one_row(make: MakeQueue, folders: Folders) -> None:
    first, second = make(5, 0), make(6, 0)
    for queue in (first, second):
        say(queue, range(len(queue.items)))
    apply(first, folders.datasets, "first")
    done: Applied = apply(second, folders.datasets, "second")
    assert (done.num_rows, done.num_there) == (1, 5)
    assert len(set(tip(folders).uids())) == tip(folders).num_rows == 106


def test_a_class_that_the_dataset_has_no_more_is_said_before_anything_is_written(
    queue: Queue, folders: Folders
) -> None:
    say(queue, range(1))
    record = files.read_json(queue.path / "queue.json")
    files.write_json(queue.path / "queue.json", record | {"classes": ["zero", *record["classes"][1:]]})
    with pytest.raises(InputError, match=r"digits@main has no class zero and could not take such answers; it has: "):
        apply(Queue(queue.path), folders.datasets, "renamed")
    assert tip(folders).num_rows == 100


def test_the_dataset_may_have_its_classes_in_another_order(make: MakeQueue, folders: Folders, tmp_path: Path) -> None:
    queue = make()
    say(queue, range(1))
    record = files.read_json(queue.path / "queue.json")
    files.write_json(queue.path / "queue.json", record | {"classes": record["classes"][::-1]})
    apply(Queue(queue.path), folders.datasets, "reversed")
    label = int(tip(folders).read("label", np.array([100]))[0])
    assert label == 9 - true_label(queue, 0)
