"""What a prepare chooses: splits by group, class or as given; twins said, dropped or refused; what is packed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpctool.data import choices
from hpctool.data.append import Author, append
from hpctool.data.identity import uids_of_keys
from hpctool.data.labels import relabel
from hpctool.data.objects import read_column
from hpctool.data.prepare import Prepared
from hpctool.data.store import list_datasets
from hpctool.data.verify import verify
from hpctool.data.version import Version, open_version
from hpctool.errors import ConfigError, InputError, SourceError
from hpctool.world import Array

Run = Callable[..., Prepared]
ME = Author("me", "2026-11-27T12:00:00.000Z", "")


def arrays(num_rows: int = 300) -> dict[str, Array]:
    row = np.arange(num_rows)
    return {"x": row.astype(np.float32), "label": row % 3, "writer": row // 10}


def rows_by_split(version: Version, column: str = "x") -> dict[str, set[float]]:
    return {split: set(version.read(column, version.split_rows(split)).tolist()) for split in version.splits}


# -- splits


@pytest.mark.slow
def test_no_group_stands_in_two_splits_and_new_rows_of_a_group_join_it(prepare_arrays: Run, datasets: Path) -> None:
    prepare_arrays("source.group=writer", "data.split_by=group", **arrays())
    version = open_version(datasets, "tiny")
    writers = {split: {value // 10 for value in values} for split, values in rows_by_split(version).items()}
    assert sum(len(found) for found in writers.values()) == 30
    assert len(writers["train"]) > 8
    train = int(min(writers["train"]))
    new = {"columns": {"x": np.array([-1, -2], np.float32)}, "keys": ["a", "b"], "labels": np.array([0, 1])}
    with pytest.raises(InputError, match="its splits follow groups"):
        append(version.store, "main", **new, authors=[ME] * 2, message="")  # type: ignore[arg-type]
    append(version.store, "main", **new, authors=[ME] * 2, message="", groups=[str(train)] * 2)  # type: ignore[arg-type]
    assert {-1.0, -2.0} <= rows_by_split(open_version(datasets, "tiny"))["train"]
    assert verify(version.store, deep=True).damaged == []


@pytest.mark.slow
def test_stratified_splits_have_each_class_in_parts_and_grow_without_moving_a_row(
    prepare_arrays: Run, datasets: Path
) -> None:
    choose = ["data.split_by=stratified", "data.splits={train:0.8,val:0,test:0.2,production:0}", "source.columns=[x]"]
    prepare_arrays(*choose, **arrays(300))
    first = rows_by_split(open_version(datasets, "tiny"))
    assert [sum(value % 3 == label for value in first["test"]) for label in range(3)] == [20, 20, 20]
    prepare_arrays(*choose, **arrays(600))
    after = rows_by_split(open_version(datasets, "tiny"))
    assert first["test"] <= after["test"]
    assert first["train"] <= after["train"]
    assert [sum(value % 3 == label for value in after["test"]) for label in range(3)] == [40, 40, 40]


@pytest.mark.slow
def test_given_splits_come_from_a_column_a_folder_or_a_csv(
    prepare_arrays: Run, prepare_with: Run, datasets: Path, tmp_path: Path
) -> None:
    part = np.array(["test", "train", "train", "hold"])
    x = {"x": np.arange(4, dtype=np.float32), "label": np.arange(4)}
    prepare_arrays("source.split=part", "data.split_by=given", "source.columns=[x]", part=part, **x)
    by_column = rows_by_split(open_version(datasets, "tiny"))
    assert list(by_column) == ["train", "test", "hold"]
    assert by_column == {"train": {1, 2}, "test": {0}, "hold": {3}}
    listed = tmp_path / "splits.csv"
    listed.write_text("key,split\n" + "".join(f"tiny.npz#{row},{part[row]}\n" for row in range(4)))
    prepare_arrays("data.name=listed", "data.split_by=given", f"data.splits_from={listed}", **x)
    assert rows_by_split(open_version(datasets, "listed")) == by_column
    listed.write_text("key,split\ntiny.npz#0,train\n")
    with pytest.raises(SourceError, match=r"splits.csv: the row 'tiny.npz#1' is given no split \(3 rows are not\)"):
        prepare_arrays("data.name=less", "data.split_by=given", f"data.splits_from={listed}", **x)
    for place in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "photos" / place / "a.png")
    folder = ["source=imagefolder", f"source.path={tmp_path}/photos", "source.split=folder", "data.split_by=given"]
    prepare_with("data.name=photos", *folder)
    photos = open_version(datasets, "photos")
    assert (photos.splits, photos.classes) == ({"train": 2, "test": 1}, ["cat", "dog"])
    assert set(list_datasets(datasets)) == {"tiny", "listed", "photos"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data.split_by=group"], "'group' needs source.group"),
        (["data.split_by=given"], "'given' needs source.split"),
        (["data.split_by=stratified", "source.label=null"], "'stratified' needs labels"),
        (["data.split_by=random"], "none of uid, group, stratified, given"),
        (["data.splits_from=a.csv"], "it counts with data.split_by=given only"),
        (["data.duplicates=keep"], "none of say, drop, refuse"),
        (["data.compression=lz4"], "none of none, auto"),
    ],
)
def test_choices_that_cannot_be_are_refused_by_their_key(
    prepare_arrays: Run, datasets: Path, overrides: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        prepare_arrays("source.columns=[x]", *overrides, **arrays(9))
    assert list_datasets(datasets) == []


def test_a_key_that_stands_twice_among_many_splits_is_named_in_the_time_of_reading_them(tmp_path: Path) -> None:
    listed, rows = tmp_path / "splits.csv", [f"images/{row:08d}.png,train" for row in range(30_000)]
    uids = uids_of_keys(["images/00000001.png"])

    def seconds(lines: list[str], problem: str) -> float:
        listed.write_text("\n".join(["key,split", *lines]))
        began = time.process_time()
        with pytest.raises(SourceError, match=problem) if problem else nullcontext():
            choices._listed(listed, uids)
        return time.process_time() - began

    alone = seconds(rows, "")
    assert seconds([*rows, rows[-1]], r"splits.csv.*30001.*'images/00029999.png' stands more than once") < 5 * alone + 1


# -- twins


def twins() -> dict[str, Array]:
    """Rows 3 and 4 are rows 0 and 1 again, the last with another label."""
    return {"x": np.array([5, 6, 7, 5, 6], np.float32), "label": np.array([0, 1, 2, 0, 2])}


@pytest.mark.slow
def test_twins_are_named_with_what_contradicts(prepare_arrays: Run) -> None:
    notes = prepare_arrays("data.shuffle=false", **twins()).notes
    pairs = "(tiny.npz#0 = tiny.npz#3; tiny.npz#1 = tiny.npz#4)"
    assert notes[0] == f"2 rows have exactly the features of another row {pairs}."
    assert notes[1] == "1 of these have another label than the first of their kind."


@pytest.mark.slow
def test_twins_can_be_dropped_so_that_the_first_stays(prepare_arrays: Run, datasets: Path) -> None:
    prepared = prepare_arrays("data.duplicates=drop", "data.row_group_rows=2", **twins())
    version = open_version(datasets, "tiny")
    assert sorted(zip(version.read("x").tolist(), version.read("label").tolist(), strict=True)) == [
        (5, 0),
        (6, 1),
        (7, 2),
    ]
    assert prepared.notes[0].endswith("tiny.npz#4): left out.")
    assert version.contents.stats["duplicates"] == {"repeated": 0, "leaked": 0}


@pytest.mark.slow
def test_twins_can_be_refused_and_nothing_is_written(prepare_arrays: Run, datasets: Path) -> None:
    first = prepare_arrays(**arrays(9))
    before = sorted(datasets.rglob("*"))
    with pytest.raises(SourceError, match="2 rows have exactly the features of another row"):
        prepare_arrays("data.duplicates=refuse", **twins())
    assert open_version(datasets, "tiny").commit == first.commit
    assert sorted(datasets.rglob("*")) == before


# -- numbers, order, packing


@pytest.mark.slow
def test_nan_is_refused_unless_it_is_allowed_and_then_the_schema_says_so(prepare_arrays: Run, datasets: Path) -> None:
    holes = {"x": np.array([[1, 2], [3, np.nan]], np.float32), "label": np.array([0, 1])}
    with pytest.raises(SourceError, match=r"tiny.npz: row 1: column 'x' holds NaN or infinity; data.allow_nan=true"):
        prepare_arrays(**holes)
    assert list_datasets(datasets) == []
    prepare_arrays("data.allow_nan=true", **holes)
    version = open_version(datasets, "tiny")
    assert not version.columns["x"].finite
    assert np.isnan(version.read("x")).sum() == 1
    prepare_arrays("data.name=whole", x=np.ones((2, 2), np.float32), label=np.array([0, 1]))
    whole = open_version(datasets, "whole")
    with pytest.raises(InputError, match="Column 'x' of whole@main takes no NaN or infinity, and row 1 has one"):
        append(whole.store, "main", {"x": holes["x"]}, ["a", "b"], np.array([0, 1]), [ME] * 2, "")


@pytest.mark.slow
def test_rows_stay_in_order_where_that_is_asked_for(prepare_arrays: Run, datasets: Path) -> None:
    prepare_arrays("data.shuffle=false", "data.row_group_rows=50", "source.columns=[x]", **arrays())
    assert open_version(datasets, "tiny").read("x").tolist() == list(range(300))


@pytest.mark.slow
def test_columns_are_packed_where_that_saves_enough_and_it_is_said(prepare_arrays: Run, datasets: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 500), np.uint8)
    smooth = np.arange(100_000, dtype=np.int32).reshape(200, 500)
    notes = prepare_arrays(
        "data.compression=auto", "data.row_group_rows=60", noise=noise, smooth=smooth, label=np.arange(200) % 2
    ).notes
    assert any(note.startswith("packing column 'noise' (deflate) saves 0% of") for note in notes)
    assert any("'smooth' (shuffle+deflate) saves 9" in note and "it is packed" in note for note in notes)
    version = open_version(datasets, "tiny")
    packed = [group.holder("smooth") for group in version.contents.row_groups]
    assert all(stored.extents["smooth"].chunks and not stored.extents["noise"].chunks for stored in packed)
    found = np.concatenate([np.asarray(read_column(version.store.layout, stored, "smooth")) for stored in packed])
    places = np.sort(found[:, 0])
    assert np.array_equal(places, smooth[:, 0])
    assert verify(version.store, deep=True).damaged == []


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["resize", "crop", "pad"])
def test_images_of_other_sizes_are_brought_to_one_by_the_rule_that_is_chosen(
    prepare_with: Run, datasets: Path, tmp_path: Path, fit: str
) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    half = np.zeros((8, 16), np.uint8)
    half[:, 8:] = 255  # black on the left, white on the right
    Image.fromarray(half).save(tmp_path / "photos" / "a" / "wide.png")
    wanted = ["source=imagefolder", f"source.path={tmp_path}/photos", "source.size=[8,8]", f"source.fit={fit}"]
    prepare_with("data.name=photos", *wanted)
    image = open_version(datasets, "photos").read("image")[0, :, :, 0]
    assert image.shape == (8, 8)
    assert image[4, 0] == 0
    assert image[4, -1] == 255
    # Only padding leaves black above and below.
    assert (image[0] == 0).all() == (fit == "pad")


# -- onto what is there


@pytest.mark.slow
def test_a_source_comes_onto_a_branch_by_its_schema_and_rule_and_only_once(prepare_arrays: Run, datasets: Path) -> None:
    prepare_arrays("source.columns=[x]", "data.compression=auto", **arrays(300))
    before = open_version(datasets, "tiny")
    relabelled = relabel(before.store, "main", [(before.uids()[0], 0, "me", "", "")], "look")
    more = {"x": np.arange(300, 350, dtype=np.float32), "label": np.array([2, -1] * 25)}
    more["id"] = np.array([f"new {row}" for row in range(50)])
    onto = ["data.append=true", "source.key=id", "data.row_group_rows=30"]
    added = prepare_arrays(*onto, "data.tag=more", **more)
    after = open_version(datasets, "tiny@more")
    assert (added.num_rows, added.unchanged, after.classes) == (350, False, before.classes)
    assert after.store.commit_of(added.commit).parents == [relabelled.id]
    assert after.contents.row_groups[: len(before.contents.row_groups)] != after.contents.row_groups
    for split in before.splits:
        assert after.split_rows(split)[: before.splits[split]].tolist() == before.split_rows(split).tolist()
    assert sorted(after.read("x")[300:].tolist()) == list(range(300, 350))
    assert sum(part["unlabelled"] for part in after.contents.stats["splits"].values()) == 25
    assert verify(after.store, deep=True).damaged == []
    again = prepare_arrays(*onto, "data.tag=more", **more)
    assert (again.commit, again.unchanged) == (added.commit, True)
    with pytest.raises(InputError, match="would lose the new labels and rows"):
        prepare_arrays("source.columns=[x]", **arrays(9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "overrides", "problem"),
    [
        (
            {"x": np.zeros((3, 2), np.float32)},
            [],
            r"'x' of tiny@main is float32 of one number, and the source has float32 2",
        ),
        ({"x": np.zeros(3)}, [], r"is float32 of one number, and the source has float64 of one"),
        ({"y": np.zeros(3)}, [], r"Column 'y' of tiny@main is not there, and the source has float64 of one"),
        ({"x": np.array([0, np.inf, 1], np.float32)}, ["data.allow_nan=true"], "row 1: column 'x' holds NaN"),
        ({"label": np.array([0, 1, 7])}, [], "row 2: label '7' is none of the classes 0, 1, 2"),
        ({"id": np.array(["a", "tiny.npz#3", "c"])}, [], "The row with the key 'tiny.npz#3' is in tiny@main already"),
        ({"id": np.array(["a", "b", "a"])}, [], "the key 'a' stands more than once"),
        ({}, ["data.name=tiny@other"], "'other'"),
    ],
)
def test_what_does_not_fit_onto_a_branch_is_refused_with_both_sides_and_nothing_is_left(
    prepare_arrays: Run, datasets: Path, change: dict[str, Array], overrides: list[str], problem: str
) -> None:
    first = prepare_arrays("source.columns=[x]", **arrays(30))
    before = sorted(datasets.rglob("*"))
    rows = {"x": np.arange(3, dtype=np.float32), "label": np.arange(3), "id": np.array(["a", "b", "c"])}
    with pytest.raises(InputError, match=problem):
        prepare_arrays("data.append=true", "source.key=id", *overrides, **(rows | change))
    assert open_version(datasets, "tiny").commit == first.commit
    assert sorted(datasets.rglob("*")) == before


@pytest.mark.slow
def test_rows_that_the_branch_has_already_are_said_or_left_out_when_they_come_again_under_other_keys(
    prepare_arrays: Run, datasets: Path
) -> None:
    prepare_arrays("source.columns=[x]", **arrays(30))
    twin = {"x": np.array([7, 900], np.float32), "label": np.array([1, 1]), "id": np.array(["seven", "new"])}
    onto = ["data.append=true", "source.key=id"]
    with pytest.raises(SourceError, match=r"1 row has exactly the features of a row of tiny@main \(seven, for one\)"):
        prepare_arrays(*onto, "data.duplicates=refuse", **twin)
    left = prepare_arrays(*onto, "data.duplicates=drop", **twin)
    assert (left.num_rows, open_version(datasets, "tiny").contents.stats["duplicates"]["repeated"]) == (31, 0)
    more = {"x": np.array([8.0], np.float32), "label": np.array([1]), "id": np.array(["eight"])}
    assert "1 of these has exactly the features of another row" in prepare_arrays(*onto, **more).notes[-1]
