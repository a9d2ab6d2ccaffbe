"""Labels change by commits that write labels only, keep what others changed, and can be asked who did it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.data.authors import label_authors
from hpctool.data.labels import Change, blame, read_fixes, relabel
from hpctool.data.prepare import Prepared
from hpctool.data.version import Version, open_version
from hpctool.errors import ConflictError, InputError, SourceError


def change(uid: str, label: int, who: str = "ann", why: str = "it is blurred") -> Change:
    return Change(uid, label, who, why, "2026-01-01T00:00:00Z")


def objects_of(version: Version) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in (version.store.root / "objects").rglob("*.h5")}


def test_a_relabel_changes_these_labels_and_nothing_else(tiny: Version, datasets: Path) -> None:
    rows = np.array([3, 20])
    commit = relabel(tiny.store, "main", [change(uid, 2) for uid in tiny.uids(rows)], "second look", tag="v2")
    after = open_version(datasets, "tiny@v2")
    expected = tiny.read("label")
    expected[rows] = 2
    assert after.commit == commit.id
    assert np.array_equal(after.read("label"), expected)
    assert np.array_equal(after.read("image"), tiny.read("image"))
    assert after.uids() == tiny.uids()
    assert after.splits == tiny.splits
    counted = [sum(split["classes"][i] for split in after.contents.stats["splits"].values()) for i in range(4)]
    assert counted == np.bincount(expected, minlength=4).tolist()


def test_a_relabel_writes_labels_of_the_touched_row_groups_and_the_changes_only(tiny: Version) -> None:
    before = objects_of(tiny)
    commit = relabel(tiny.store, "main", [change(tiny.uids(np.array([20]))[0], 3)], "one")
    new = objects_of(tiny).keys() - before.keys()
    after = Version(tiny.store, "main", commit.id)
    assert commit.changes is not None
    assert new == {after.contents.row_groups[1].holder("label").id, commit.changes.id}
    shared = [a == b for a, b in zip(tiny.contents.row_groups, after.contents.row_groups, strict=True)]
    assert shared == [True, False, True]


def test_a_label_may_be_taken_away(tiny: Version, datasets: Path) -> None:
    uid = tiny.uids(np.array([0]))[0]
    relabel(tiny.store, "main", [change(uid, -1)], "nobody knows")
    after = open_version(datasets, "tiny")
    assert after.read("label")[0] == -1
    assert sum(split["unlabelled"] for split in after.contents.stats["splits"].values()) == 1
    assert blame(after, uid)[0].new == ""


def test_labels_that_are_so_already_make_no_commit(tiny: Version) -> None:
    uid, label = tiny.uids(np.array([5]))[0], int(tiny.read("label")[5])
    assert relabel(tiny.store, "main", [change(uid, label)], "again").id == tiny.commit


def test_blame_tells_every_setting_of_a_label(tiny: Version, datasets: Path) -> None:
    uid, first = tiny.uids(np.array([5]))[0], tiny.classes[int(tiny.read("label")[5])]
    other = (int(first) + 1) % 4
    relabel(tiny.store, "main", [change(uid, other)], "look")
    relabel(tiny.store, "main", [change(tiny.uids(np.array([6]))[0], 0)], "another row")
    last = relabel(tiny.store, "main", [change(uid, int(first), "bob", "")], "look again")
    told = blame(open_version(datasets, "tiny"), uid)
    assert [(b.old, b.new, b.who, b.why) for b in told[:2]] == [
        (str(other), first, "bob", "look again"),
        (first, str(other), "ann", "it is blurred"),
    ]
    assert told[0].commit == last.id
    assert (told[2].commit, told[2].old, told[2].new) == (tiny.commit, "", first)
    # As `data authors` counts it: whoever prepared the data did not look at the label.
    assert told[2].who == "import"
    with pytest.raises(InputError, match="There is no row"):
        blame(tiny, "ff" * 16)


def test_changes_of_other_rows_made_meanwhile_are_kept(tiny: Version, datasets: Path) -> None:
    mine, theirs = tiny.uids(np.array([1, 2]))
    relabel(tiny.store, "main", [change(theirs, 0)], "theirs")
    relabel(tiny.store, "main", [change(mine, 0)], "mine", base=tiny.commit)
    assert open_version(datasets, "tiny").read("label")[[1, 2]].tolist() == [0, 0]


def test_one_row_changed_by_two_is_a_conflict_that_names_both(tiny: Version, datasets: Path) -> None:
    uid = tiny.uids(np.array([1]))[0]
    label = int(tiny.read("label")[1])
    theirs = relabel(tiny.store, "main", [change(uid, (label + 1) % 4, "bob")], "theirs")
    message = f"row {uid} .* ours is '{(label + 2) % 4}' by ann, theirs is '{(label + 1) % 4}' by bob in commit"
    with pytest.raises(ConflictError, match=message):
        relabel(tiny.store, "main", [change(uid, (label + 2) % 4)], "mine", base=tiny.commit)
    assert open_version(datasets, "tiny").commit == theirs.id
    # The same answer by two people is no conflict.
    same = relabel(tiny.store, "main", [change(uid, (label + 1) % 4)], "mine", base=tiny.commit)
    assert same.id == theirs.id


@pytest.mark.slow
def test_a_class_stays_the_one_that_was_seen_where_the_data_were_prepared_with_others_since(
    prepare_arrays: Callable[..., Prepared], datasets: Path
) -> None:
    x = np.arange(4, dtype=np.float32)
    prepare_arrays(x=x, label=np.array(["cat", "dog", "cat", "dog"]))
    seen = open_version(datasets, "tiny")
    uid = seen.uids(np.flatnonzero(seen.read("label") == 0)[:1])[0]
    prepare_arrays("source.classes=[bird,cat,cow,dog]", x=x, label=np.array(["cat", "dog", "cat", "dog"]))
    relabel(seen.store, "main", [change(uid, seen.classes.index("dog"))], "it barks", base=seen.commit)
    now = open_version(datasets, "tiny")
    assert now.classes[int(now.read("label", now.find([uid]))[0])] == "dog"
    assert [entry.new for entry in blame(now, uid)] == ["dog", "cat"]


@pytest.mark.slow
def test_a_class_that_is_no_more_is_a_conflict_that_names_both(
    prepare_arrays: Callable[..., Prepared], datasets: Path
) -> None:
    x = np.arange(4, dtype=np.float32)
    prepare_arrays(x=x, label=np.array(["cat", "dog", "cat", "dog"]))
    seen = open_version(datasets, "tiny")
    uid = seen.uids(np.flatnonzero(seen.read("label") == 0)[:1])[0]
    later = prepare_arrays(x=x, label=np.array(["cat", "cow", "cat", "cow"]))
    with pytest.raises(ConflictError, match="ours is 'dog' by ann, theirs is a version whose classes are cat, cow"):
        relabel(seen.store, "main", [change(uid, 1)], "it barks", base=seen.commit)
    assert open_version(datasets, "tiny").commit == later.commit


def test_what_cannot_be_changed_is_refused_and_changes_nothing(tiny: Version) -> None:
    uid = tiny.uids(np.array([1]))[0]
    tiny.store.create_tag("taken", tiny.commit)
    before = objects_of(tiny)
    for wrong in ([change(uid, 4)], [change("ff" * 16, 1)], [change("x", 1)], [change(uid, 1)] * 2, []):
        with pytest.raises(InputError):
            relabel(tiny.store, "main", wrong, "wrong")
    with pytest.raises(InputError, match="tag 'taken' already"):
        relabel(tiny.store, "main", [change(uid, (int(tiny.read("label")[1]) + 1) % 4)], "wrong", tag="taken")
    with pytest.raises(InputError, match="no branch"):
        relabel(tiny.store, "other", [change(uid, 1)], "wrong")
    assert objects_of(tiny) == before
    assert tiny.store.resolve("main") == tiny.commit


@pytest.mark.slow
def test_a_dataset_without_labels_says_how_to_get_them(prepare_arrays: Callable[..., Prepared], datasets: Path) -> None:
    prepare_arrays("source.label=null", x=np.arange(5))
    version = open_version(datasets, "tiny")
    assert version.classes == []
    with pytest.raises(InputError, match=r"has no labels; prepare it with source\.classes"):
        relabel(version.store, "main", [change(version.uids()[0], 0)], "label")
    # Doing what that says: the file still has none, and the classes are those that people will give.
    prepare_arrays("source.label=null", "source.classes=[cat,dog]", x=np.arange(5))
    version = open_version(datasets, "tiny")
    assert (version.classes, version.read("label").tolist()) == (["cat", "dog"], [-1] * 5)
    relabel(version.store, "main", [change(version.uids()[0], 1)], "label")
    assert open_version(datasets, "tiny").read("label").tolist() == [1, -1, -1, -1, -1]


# -- from a csv file


@pytest.fixture
def fixes(tmp_path: Path) -> Path:
    return tmp_path / "fixes.csv"


@pytest.mark.slow
def test_fixes_name_classes_by_name_or_index_and_may_say_who_and_why(
    prepare_arrays: Callable[..., Prepared], datasets: Path, fixes: Path
) -> None:
    prepare_arrays(x=np.arange(3), label=np.array(["cat", "dog", "cat"]))
    version = open_version(datasets, "tiny")
    a, b, c = version.uids()
    # A spreadsheet's file: byte order mark, CRLF, an empty line at the end, capitals.
    text = f"label,uid,why,who\r\ndog,{a.upper()},it barks,bob\r\n0,{b},,\r\ncat,{c},,\r\n\r\n"
    fixes.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_fixes(version, fixes)
    assert [(f.uid, f.label, f.why) for f in found] == [(a, 1, "it barks"), (b, 0, ""), (c, 0, "")]
    assert found[0].who == "bob"
    assert "@" in found[1].who


@pytest.mark.parametrize(
    ("lines", "line", "problem"),
    [
        ("{a},1\n{b},17", 3, "label '17' is out of range: the classes of tiny@main are 0, 1, 2, 3"),
        ("{a},1\n{b},-1", 3, "gives the row no label. --allow-missing takes"),
        ("{a},", 2, "gives the row no label. --allow-missing takes"),
        ("{a},1\n\n" + "ff" * 16 + ",1", 4, "there is no row " + "ff" * 16),
        ("nonsense,1", 2, "'nonsense' cannot be the uid of a row"),
        ("{a},1\n{a},2", 3, "stands before with another label"),
        ("{a},1,2", 2, "it has 3 cells where the header has 2"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(
    tiny: Version, fixes: Path, lines: str, line: int, problem: str
) -> None:
    a, b = tiny.uids(np.array([0, 1]))
    fixes.write_text("uid,label\n" + lines.format(a=a, b=b) + "\n")
    with pytest.raises(SourceError) as caught:
        read_fixes(tiny, fixes)
    assert caught.value.line == line
    assert problem in str(caught.value)


def test_labels_are_taken_away_where_that_is_said_to_be_meant(tiny: Version, datasets: Path, fixes: Path) -> None:
    a, b, c = tiny.uids(np.array([0, 1, 2]))
    before = tiny.read("label")
    fixes.write_text(f"uid,label,who\n{a},,ann\n{b},-1,\n{c},{before[2]},\n")
    changes = read_fixes(tiny, fixes, allow_missing=True)
    assert [(one.uid, one.label) for one in changes] == [(a, -1), (b, -1), (c, before[2])]
    commit = relabel(tiny.store, "main", changes, "blurred")
    assert commit.operation == {"kind": "relabel", "num_labels": 2, "num_taken_away": 2}
    after = open_version(datasets, "tiny")
    assert after.read("label").tolist() == [-1, -1, *before[2:].tolist()]
    assert (blame(after, a)[0].old, blame(after, a)[0].new, blame(after, a)[0].who) == (str(before[0]), "", "ann")
    assert label_authors(after) == {"import": 38}
    # The same row, labelled by somebody who had not seen that.
    with pytest.raises(ConflictError, match=r"ours is '\d' by ann, theirs is \(no label\) by ann in commit"):
        relabel(tiny.store, "main", [change(a, (int(before[0]) + 1) % 4)], "late", base=tiny.commit)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "it is empty"), (b"id,label\n", "no column 'uid'"), (b"uid,uid,label\n", "twice"), (b"\xff\xfe\x00", "csv")],
)
def test_a_file_of_another_kind_is_refused(tiny: Version, fixes: Path, content: bytes, problem: str) -> None:
    fixes.write_bytes(content)
    with pytest.raises(SourceError, match=problem):
        read_fixes(tiny, fixes)
    with pytest.raises(SourceError, match="No such file"):
        read_fixes(tiny, fixes.with_name("elsewhere.csv"))
