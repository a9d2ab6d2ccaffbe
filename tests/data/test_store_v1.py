"""A store that the first format wrote is read for ever. Its files are never edited; a new format gets its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from hpctool.data.diff import diff
from hpctool.data.labels import blame, relabel
from hpctool.data.reader import Reader
from hpctool.data.verify import verify
from hpctool.data.version import open_version

STORE_V1 = Path(__file__).parents[1] / "assets" / "store_v1"
FIRST_UID = "52283fba1cfe71ddba8231710351aa38"
IMAGE = [60, 24, 18, 0, 12, 36, 30, 6, 54, 66, 42, 48]  # the first pixel of each row's image
LABEL_V1 = [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0]
LABEL_V2 = [0, 1, 0, 0, 0, 0, 0, 1, 0, -1, 1, 0]
SPLITS = {"train": [3, 6, 7, 8, 9, 10], "val": [], "test": [0, 1], "production": [2, 4, 5, 11]}


def test_its_values_are_what_was_written() -> None:
    version = open_version(STORE_V1, "tiny")
    assert version.commit == "dbc611dafdead91f16dd1e2642c411a1df5bfc3b118cd775a71dac34a8f89080"
    assert [group.num_rows for group in version.contents.row_groups] == [8, 4]
    assert version.classes == ["cat", "dog"]
    assert version.features == ["image", "weight"]
    assert version.uids()[0] == FIRST_UID
    assert version.read("label").tolist() == LABEL_V2
    assert {split: version.split_rows(split).tolist() for split in version.splits} == SPLITS
    rows = np.arange(12)[::-1]
    for access in ("memmap", "pread"):
        with Reader(version, ["image", "weight"], access) as reader:
            found = reader.gather(rows)
        first_pixel = np.array(IMAGE)[rows]
        assert np.array_equal(found["image"], first_pixel[:, None, None, None] + np.arange(6).reshape(1, 2, 3, 1))
        assert np.array_equal(found["weight"], np.linspace(0, 1, 12, dtype=np.float32)[first_pixel // 6])


def test_its_history_is_what_happened() -> None:
    first, second = open_version(STORE_V1, "tiny@v1"), open_version(STORE_V1, "tiny@v2")
    assert first.read("label").tolist() == LABEL_V1
    assert open_version(STORE_V1, "tiny@other").commit == first.commit
    assert diff(first, second).label_counts() == [("dog", "cat", 1), ("cat", "", 1)]
    last, imported = blame(second, FIRST_UID)
    assert (last.who, last.when, last.why) == ("bob@cluster", "2026-11-01T12:00:00.000Z", "it barks")
    assert (imported.new, imported.who, imported.why) == ("dog", "import", "the first")


def test_it_is_whole() -> None:
    report = verify(open_version(STORE_V1, "tiny").store, deep=True)
    assert (report.num_commits, report.num_objects, report.damaged) == (2, 10, [])


def test_it_can_be_written_on(datasets: Path) -> None:
    shutil.copytree(STORE_V1, datasets)
    store = open_version(datasets, "tiny").store
    relabel(store, "main", [(FIRST_UID, 1, "me", "", "")], "third look")
    assert open_version(datasets, "tiny").read("label")[0] == 1
    assert verify(store, deep=True).damaged == []
