"""Appended rows are rows like all others, say who labelled them, and leave everything that was there alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool.data.append import Author, append
from hpctool.data.commit import Commit
from hpctool.data.identity import uids_of_keys
from hpctool.data.labels import blame, relabel
from hpctool.data.reader import Reader
from hpctool.data.splits import hashed_splits, split_rows
from hpctool.data.verify import verify
from hpctool.data.version import Version, open_version
from hpctool.errors import HpctoolError, InputError, UnknownName

IMAGES = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 1), np.uint8)
KEYS = [f"3fa1c09b-{number:06d}" for number in range(5)]
LABELS = np.array([0, 1, 2, 3, -1], np.int64)
AUTHORS = [Author("ann", "2026-01-01T00:00:00Z", f"review: row {number}") for number in range(5)]


def add(version: Version, rows: slice = slice(None), **options: Any) -> Commit:
    """Append some of the rows above; options replace arguments."""
    given = {
        "columns": {"image": IMAGES[rows]},
        "keys": KEYS[rows],
        "labels": LABELS[rows],
        "authors": AUTHORS[rows],
        "message": "more",
    }
    return append(version.store, "main", **(given | options))


def uids(keys: list[str]) -> list[str]:
    return [uid.tobytes().hex() for uid in uids_of_keys(keys)]


def test_appended_rows_stand_at_the_end_with_uids_of_their_keys(tiny: Version, datasets: Path) -> None:
    commit = add(tiny, tag="v2", run="flywheel-0123abcd", origin="review x")
    after = open_version(datasets, "tiny@v2")
    assert (after.commit, after.num_rows) == (commit.id, tiny.num_rows + 5)
    assert commit.parents == [tiny.commit]
    assert (commit.kind, commit.operation["num_rows"], commit.operation["origin"]) == ("append", 5, "review x")
    new = np.arange(tiny.num_rows, after.num_rows)
    assert after.uids(new) == uids(KEYS)
    with Reader(after, ["image", "label"]) as reader:
        rows = reader.gather(new)
    assert np.array_equal(rows["image"], IMAGES)
    assert np.array_equal(rows["label"], LABELS)
    assert after.uids(np.arange(tiny.num_rows)) == tiny.uids()
    assert after.contents.row_groups[:-1] == tiny.contents.row_groups
    assert verify(after.store, deep=True).damaged == []


def test_blame_names_who_labelled_an_appended_row_when_and_why(tiny: Version, datasets: Path) -> None:
    commit = add(tiny)
    (only,) = blame(open_version(datasets, "tiny"), uids(KEYS)[2])
    assert (only.commit, only.old, only.new) == (commit.id, "", "2")
    assert (only.who, only.when, only.why) == AUTHORS[2]


def test_new_rows_follow_the_rule_and_move_no_old_row(tiny: Version, datasets: Path) -> None:
    add(tiny)
    after = open_version(datasets, "tiny")
    by_rule = split_rows(tiny.contents.rule, hashed_splits(tiny.contents.rule, after.read("uid")))
    for split in tiny.splits:
        assert after.split_rows(split).tolist() == by_rule[split].tolist()
        assert after.split_rows(split)[: tiny.splits[split]].tolist() == tiny.split_rows(split).tolist()
    assert sum(after.splits.values()) == after.num_rows


def test_all_rows_may_go_to_one_split(tiny: Version, datasets: Path) -> None:
    add(tiny, split="test")
    after = open_version(datasets, "tiny")
    assert after.split_of_rows()[tiny.num_rows :] == ["test"] * 5
    add(after, keys=[f"k{n}" for n in range(5)], split="train")
    twice = open_version(datasets, "tiny")
    assert twice.split_of_rows()[tiny.num_rows :] == ["test"] * 5 + ["train"] * 5
    with pytest.raises(UnknownName, match="no split of tiny@main called 'tst'"):
        add(tiny, keys=["a", "b", "c", "d", "e"], split="tst")


def test_the_statistics_are_those_of_all_rows(tiny: Version, datasets: Path) -> None:
    add(tiny)
    after = open_version(datasets, "tiny")
    images, labels = after.read("image"), after.read("label")
    for split, said in after.contents.stats["splits"].items():
        rows = after.split_rows(split)
        assert said["rows"] == len(rows)
        assert said["classes"] == np.bincount(labels[rows][labels[rows] >= 0], minlength=4).tolist()
        found = said["features"]["image"]
        assert found["count"] == images[rows].size
        assert found["mean"] == pytest.approx(images[rows].mean(), rel=1e-6)
        assert found["std"] == pytest.approx(images[rows].std(), rel=1e-6)
        assert (found["min"], found["max"]) == (images[rows].min(), images[rows].max())


def test_appending_the_same_again_finds_the_commit(tiny: Version, datasets: Path) -> None:
    first = add(tiny, tag="v2")
    relabel(tiny.store, "main", [(tiny.uids(np.array([0]))[0], 3, "bob", "", "2026-01-01T00:00:00Z")], "later")
    assert add(tiny, tag="v2").id == first.id
    assert open_version(datasets, "tiny").num_rows == tiny.num_rows + 5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"columns": {"image": IMAGES[:, :3]}},
            r"Column 'image' .* takes uint8 \(5, 4, 4, 1\) .* got uint8 \(5, 3, 4, 1\)",
        ),
        (
            {"columns": {"image": IMAGES.astype(np.float32)}},
            r"takes uint8 \(5, 4, 4, 1\) .* got float32 \(5, 4, 4, 1\)",
        ),
        ({"columns": {"picture": IMAGES}}, "Column 'image' .* got nothing"),
        ({"columns": {"image": IMAGES, "more": IMAGES}}, "Column 'more' of tiny@main takes nothing"),
        ({"keys": [*KEYS[:4], KEYS[0]]}, "'3fa1c09b-000000' stands twice"),
        ({"labels": np.array([0, 1, 2, 3, 4], np.int64)}, "Label 4 is out of range: tiny@main has 4 classes"),
        ({"labels": LABELS[:3]}, "5 rows came with 3 labels and 5 authors"),
        ({"keys": []}, "no rows to append"),
        ({"tag": "main"}, "already"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_both_sides_shown(tiny: Version, given: dict[str, Any], said: str) -> None:
    before = tiny.store.head("main").last()
    with pytest.raises(InputError, match=said):
        add(tiny, **given)
    assert tiny.store.head("main").last() == before


def test_a_key_that_is_there_already_is_refused(tiny: Version) -> None:
    add(tiny, slice(0, 3))
    with pytest.raises(InputError, match=f"key '{KEYS[2]}' is in tiny@main already"):
        add(tiny, slice(2, 5))


@pytest.mark.slow
def test_two_who_append_at_once_both_succeed_and_the_same_rows_come_once(tiny: Version, datasets: Path) -> None:
    """The loser of the race for the branch goes on from the winner's commit."""
    failed: list[HpctoolError] = []
    together = threading.Barrier(4)

    def work(rows: slice) -> None:
        together.wait()
        try:
            add(Version(tiny.store, "main", tiny.commit), rows)
        except HpctoolError as error:
            failed.append(error)

    parts = [slice(0, 2), slice(0, 2), slice(2, 4), slice(4, 5)]
    threads = [threading.Thread(target=work, args=(rows,)) for rows in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    after = open_version(datasets, "tiny")
    assert sorted(after.uids(np.arange(tiny.num_rows, after.num_rows))) == sorted(uids(KEYS))
    assert len(list(tiny.store.history(after.commit))) == 4
