"""A merge mixes what was done on two branches, loses nothing, and asks where both did the same thing otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool.data import append as appending
from hpctool.data.append import Author
from hpctool.data.authors import label_authors
from hpctool.data.commit import Commit
from hpctool.data.history import ancestors, graph, merge_bases, newest_first
from hpctool.data.labels import blame, relabel
from hpctool.data.merge import merge
from hpctool.data.reader import Reader
from hpctool.data.verify import verify
from hpctool.data.version import Version, open_version
from hpctool.errors import ConflictError, InputError, MergeConflict, UnknownName

IMAGES = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 1), np.uint8)


def set_label(version: Version, branch: str, row: int, label: int, who: str) -> Commit:
    uid = version.uids(np.array([row]))[0]
    return relabel(version.store, branch, [(uid, label, who, f"{who} saw it", "2026-01-01")], f"by {who}")


def add(version: Version, branch: str, first: int, stop: int) -> Commit:
    rows = range(first, stop)
    return appending.append(
        version.store,
        branch,
        {"image": IMAGES[first:stop]},
        [f"new-{n}" for n in rows],
        np.array([n % 4 for n in rows]),
        [Author("cam", "2026-01-02", "camera") for _ in rows],
        "more",
    )


def at(version: Version, revision: str) -> Version:
    return Version(version.store, revision, version.store.resolve(revision))


@pytest.fixture
def other(tiny: Version) -> Version:
    """`tiny`, with a branch `other` where it is."""
    tiny.store.create_branch("other", tiny.commit)
    return tiny


def test_labels_of_different_rows_mix_and_say_who_set_them(other: Version) -> None:
    labels = other.read("label")
    set_label(other, "main", 3, (labels[3] + 1) % 4, "ann")
    set_label(other, "other", 3 + 16, (labels[19] + 1) % 4, "bob")
    set_label(other, "other", 4, (labels[4] + 2) % 4, "bob")
    done = merge(other.store, "main", at(other, "other"))
    merged = at(other, "main")
    wanted = labels.copy()
    wanted[[3, 19, 4]] = (labels[[3, 19, 4]] + [1, 1, 2]) % 4
    assert np.array_equal(merged.read("label"), wanted)
    assert (done.how, done.num_labels, done.num_rows) == ("merge", 2, 0)
    assert (done.commit.kind, len(done.commit.parents)) == ("merge", 2)
    assert merged.contents.row_groups[2] == other.contents.row_groups[2]
    for row, who in ((3, "ann"), (19, "bob"), (4, "bob")):
        told = blame(merged, merged.uids(np.array([row]))[0])
        assert [entry.who for entry in told] == [who, told[-1].who]
        assert told[0].why == f"{who} saw it"
    assert label_authors(merged) == {"import": 37, "bob": 2, "ann": 1}
    assert merged.contents.stats["splits"] == recounted(merged)
    assert verify(other.store, deep=True).damaged == []


def recounted(version: Version) -> dict[str, Any]:
    """The statistics with the labels' counts made anew."""
    labels = version.read("label")
    return {
        name: said
        | {
            "classes": np.bincount(labels[version.split_rows(name)], minlength=4).tolist(),
            "unlabelled": 0,
            "rows": len(version.split_rows(name)),
        }
        for name, said in version.contents.stats["splits"].items()
    }


@pytest.mark.slow
def test_appends_mix_with_appends_and_labels_and_no_row_moves(other: Version) -> None:
    add(other, "main", 0, 2)
    add(other, "other", 2, 6)
    labels = other.read("label")
    set_label(other, "other", 1, (labels[1] + 1) % 4, "bob")
    ours, theirs = at(other, "main"), at(other, "other")
    set_label(theirs, "other", 41, (theirs.read("label")[41] + 1) % 4, "eve")
    theirs = at(other, "other")
    done = merge(other.store, "main", theirs)
    merged = at(other, "main")
    assert (done.num_rows, done.num_labels, merged.num_rows) == (4, 1, 46)
    assert merged.uids()[:42] == ours.uids()
    place = merged.find(theirs.uids())
    assert (place >= 0).all()
    assert np.array_equal(merged.read("label")[place], theirs.read("label"))
    with Reader(merged, ["image"]) as mixed, Reader(theirs, ["image"]) as source:
        every = np.arange(theirs.num_rows)
        assert np.array_equal(mixed.gather(place)["image"], source.gather(every)["image"])
    where = np.array(merged.split_of_rows())
    assert where[place].tolist() == theirs.split_of_rows()
    rows = {name: said["rows"] for name, said in merged.contents.stats["splits"].items()}
    assert rows == merged.splits
    counts = [said["features"]["image"]["count"] for said in merged.contents.stats["splits"].values()]
    assert sum(counts) == 46 * 16
    assert [entry.who for entry in blame(merged, theirs.uids()[41])] == ["eve", "cam"]
    assert verify(other.store, deep=True).damaged == []


@pytest.mark.slow
def test_rows_that_were_imported_on_the_other_side_are_nobodys_after_a_merge(
    prepare_arrays: Any, datasets: Path, tmp_path: Path
) -> None:
    prepare_arrays()
    tiny = open_version(datasets, "tiny")
    tiny.store.create_branch("other", tiny.commit)
    new = {"image": IMAGES[..., 0], "label": np.array([0, 1, 2, 3, -1, -1]), "key": np.array(list("abcdef"))}
    added = prepare_arrays("data.name=tiny@other", "data.append=true", "source.key=key", "data.message=more", **new)
    theirs = at(tiny, "other")
    uids = {int(label): uid for label, uid in zip(theirs.read("label")[40:], theirs.uids()[40:], strict=True)}
    set_label(theirs, "other", int(theirs.find([uids[3]])[0]), 2, "eve")
    set_label(tiny, "main", 0, (int(tiny.read("label")[0]) + 1) % 4, "ann")
    done = merge(tiny.store, "main", at(tiny, "other"))
    merged = at(tiny, "main")
    assert (done.num_rows, merged.num_rows) == (6, 46)
    assert label_authors(merged) == {"import": 42, "eve": 1, "ann": 1}
    assert [(entry.commit, entry.new, entry.why) for entry in blame(merged, uids[0])] == [(added.commit, "0", "more")]
    assert blame(merged, uids[3])[0].who == "eve"
    assert blame(merged, uids[-1])[0].commit == added.commit


def test_a_branch_that_is_behind_goes_forward_and_one_that_is_ahead_stays(other: Version) -> None:
    moved = set_label(other, "other", 0, 3, "bob")
    done = merge(other.store, "main", at(other, "other"))
    assert (done.how, done.commit.id) == ("fast-forward", moved.id)
    assert other.store.resolve("main") == moved.id
    again = merge(other.store, "main", at(other, "other"))
    assert (again.how, other.store.head("main").last()) == ("unchanged", 2)


@pytest.mark.slow
def test_a_row_that_both_labelled_otherwise_is_a_conflict_with_both_sides(other: Version) -> None:
    for row in range(5):
        set_label(other, "main", row, (other.read("label")[row] + 1) % 4, "ann")
        set_label(other, "other", row, (other.read("label")[row] + 2) % 4, "bob")
    before = other.store.resolve("main")
    with pytest.raises(MergeConflict, match=r"by both: 5 .* by ann, .* by bob; .* and 2 more"
                       ) as caught:  # fmt: skip
        merge(other.store, "main", at(other, "other"))
    assert caught.value.exit_code == 2
    first = caught.value.rows[0]
    assert (first["uid"], first["ours"]["who"], first["theirs"]["who"]) == (other.uids()[0], "ann", "bob")
    assert len(caught.value.rows) == 5
    assert other.store.resolve("main") == before


@pytest.mark.parametrize(("prefer", "who"), [("ours", "ann"), ("theirs", "bob")])
def test_a_conflict_is_decided_by_whoever_is_preferred(other: Version, prefer: Any, who: str) -> None:
    set_label(other, "main", 0, 1, "ann")
    set_label(other, "other", 0, 2, "bob")
    set_label(other, "other", 7, 2, "bob")
    merge(other.store, "main", at(other, "other"), prefer=prefer)
    merged = at(other, "main")
    assert merged.read("label")[[0, 7]].tolist() == [1 if prefer == "ours" else 2, 2]
    assert blame(merged, merged.uids()[0])[0].who == who


def test_the_same_label_on_both_sides_is_no_conflict(other: Version) -> None:
    for branch in ("main", "other"):
        set_label(other, branch, 0, 2, branch)
    done = merge(other.store, "main", at(other, "other"))
    assert (done.how, done.num_labels) == ("merge", 0)


def test_the_same_row_appended_otherwise_is_refused(other: Version) -> None:
    add(other, "main", 0, 2)
    add(other, "other", 1, 3)
    with pytest.raises(MergeConflict, match="both have appended the row"):
        merge(other.store, "main", at(other, "other"))


def test_a_branch_that_has_moved_is_not_merged_into(other: Version) -> None:
    seen = other.commit
    set_label(other, "main", 0, 1, "ann")
    set_label(other, "other", 5, 2, "bob")
    with pytest.raises(InputError, match=r"tiny@main has moved: it was to be at .* \('by ann' by "):
        merge(other.store, "main", at(other, "other"), expect=seen[:12])
    with pytest.raises(UnknownName):
        merge(other.store, "nowhere", at(other, "other"))


def test_merges_can_be_merged_again_in_both_directions(other: Version) -> None:
    set_label(other, "main", 0, 1, "ann")
    set_label(other, "other", 5, 2, "bob")
    merge(other.store, "main", at(other, "other"))
    set_label(other, "other", 6, 1, "bob")
    merge(other.store, "other", at(other, "main"))
    set_label(other, "main", 7, 1, "ann")
    done = merge(other.store, "main", at(other, "other"))
    assert (done.how, done.num_labels) == ("merge", 1)
    assert at(other, "main").read("label")[[0, 5, 6, 7]].tolist() == [1, 2, 1, 1]


def crossed(other: Version) -> tuple[Commit, Commit]:
    """Ann's label of row 0 and bob's of row 5, after both have merged the other's tip as it was: two bases."""
    labels = other.read("label")
    first = set_label(other, "main", 0, (labels[0] + 1) % 4, "ann")
    second = set_label(other, "other", 5, (labels[5] + 1) % 4, "bob")
    ours, theirs = at(other, "main"), at(other, "other")
    merge(other.store, "main", theirs)
    merge(other.store, "other", ours)
    return first, second


@pytest.mark.slow
def test_after_merges_at_once_a_label_that_was_taken_back_is_not_set_again(other: Version) -> None:
    first, second = crossed(other)
    old = other.read("label")
    tips = [other.store.resolve(branch) for branch in ("main", "other")]
    assert sorted(merge_bases(other.store, *tips)) == sorted([first.id, second.id])
    back = set_label(at(other, "main"), "main", 0, old[0], "ann")
    with pytest.raises(MergeConflict, match="rows labelled otherwise by both: 1") as caught:
        merge(other.store, "main", at(other, "other"))
    assert [row["uid"] for row in caught.value.rows] == other.uids(np.array([0]))
    assert other.store.resolve("main") == back.id
    merge(other.store, "main", at(other, "other"), prefer="ours")
    assert at(other, "main").read("label")[0] == old[0]


@pytest.mark.slow
def test_after_merges_at_once_rows_that_nobody_disputes_mix(other: Version) -> None:
    crossed(other)
    labels = at(other, "main").read("label")
    set_label(at(other, "other"), "other", 7, (labels[7] + 1) % 4, "bob")
    done = merge(other.store, "main", at(other, "other"))
    assert (done.how, done.num_labels) == ("merge", 1)
    assert at(other, "main").read("label")[[0, 5, 7]].tolist() == [labels[0], labels[5], (labels[7] + 1) % 4]


def test_a_relabel_that_comes_second_is_merged_or_names_both_sides(tiny: Version) -> None:
    set_label(tiny, "main", 0, 1, "ann")
    uids = tiny.uids(np.array([0, 1]))
    label = (int(tiny.read("label")[1]) + 1) % 4
    relabel(tiny.store, "main", [(uids[1], label, "bob", "", "")], "late", base=tiny.commit)
    assert at(tiny, "main").read("label")[:2].tolist() == [1, label]
    with pytest.raises(ConflictError, match=r"ours is '2' by bob, theirs is '1' by ann in commit"):
        relabel(tiny.store, "main", [(uids[0], 2, "bob", "", "")], "late", base=tiny.commit)


@pytest.mark.slow
def test_a_prepare_on_one_side_is_refused(datasets: Path, prepare_arrays: Any, tmp_path: Path) -> None:
    prepare_arrays()
    tiny = open_version(datasets, "tiny")
    tiny.store.create_branch("other", tiny.commit)
    prepare_arrays("data.name=tiny@other", image=IMAGES, label=np.arange(6) % 4)
    set_label(tiny, "main", 0, 1, "ann")
    with pytest.raises(MergeConflict, match="tiny@other was prepared anew"):
        merge(tiny.store, "main", at(tiny, "other"))


def test_the_graph_draws_every_line_of_descent(other: Version) -> None:
    first = set_label(other, "main", 0, 1, "ann")
    second = set_label(other, "other", 5, 2, "bob")
    merged = merge(other.store, "main", at(other, "other")).commit
    commits = newest_first(ancestors(other.store, [merged.id]).values())
    assert [commit.id for commit in commits] == [merged.id, second.id, first.id, other.commit]
    assert [line.drawing for line in graph(commits)] == ["*", "├─┐", "│ *", "* │", "├─┘", "*"]
    assert merge_bases(other.store, first.id, second.id) == [other.commit]
    assert merge_bases(other.store, merged.id, second.id) == [second.id]


def test_a_branch_can_be_ended_and_begun_again(other: Version) -> None:
    moved = set_label(other, "other", 5, 2, "bob")
    assert other.store.delete_branch("other") == moved.id
    assert other.store.branches() == ["main"]
    with pytest.raises(UnknownName):
        other.store.resolve("other")
    with pytest.raises(UnknownName):
        other.store.delete_branch("other")
    with pytest.raises(UnknownName):
        set_label(other, "other", 6, 1, "bob")
    other.store.create_branch("other", moved.id)
    assert other.store.resolve("other") == moved.id
