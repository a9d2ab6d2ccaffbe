"""A version is found by name and says what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool.data.commit import Draft
from hpctool.data.store import Store
from hpctool.data.version import Version, open_together, open_version
from hpctool.errors import InputError, UnknownName
from hpctool.world import World


def test_a_version_says_what_it_holds(tiny: Version) -> None:
    assert tiny.ref == "tiny@main"
    assert tiny.pinned == f"tiny@{tiny.commit[:12]}"
    assert tiny.num_rows == 40
    assert list(tiny.columns) == ["image", "label"]
    assert tiny.features == ["image"]
    assert tiny.columns["image"].dtype == np.uint8
    assert tiny.columns["image"].shape == (4, 4, 1)
    assert tiny.classes == tiny.columns["label"].classes == ["0", "1", "2", "3"]
    assert tiny.manifest["num_rows"] == 40


def test_splits_hold_every_row_once(tiny: Version) -> None:
    rows = {name: tiny.split_rows(name) for name in tiny.splits}
    assert list(rows) == ["train", "val", "test", "production"]
    assert {name: len(found) for name, found in rows.items()} == tiny.splits
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(40))
    of_rows = tiny.split_of_rows()
    assert [row for row in range(40) if of_rows[row] == "train"] == rows["train"].tolist()
    with pytest.raises(UnknownName, match="split of tiny@main called 'tran'"):
        tiny.split_rows("tran")


def test_rows_are_found_by_their_uid(tiny: Version) -> None:
    uids = tiny.uids(np.array([7, 0]))
    assert tiny.find([*uids, "ff" * 16]).tolist() == [7, 0, -1]
    assert len(set(tiny.uids())) == 40


def test_a_label_is_named_by_its_class_or_its_index(tiny: Version) -> None:
    assert tiny.label_index("3") == 3
    for wrong in ("4", "-1", "", "three", "²"):
        with pytest.raises(InputError, match=f"label '{wrong}' is out of range"):
            tiny.label_index(wrong)


def test_a_pinned_version_stays_what_it_is(tiny: Version, datasets: Path) -> None:
    assert open_version(datasets, tiny.pinned).commit == tiny.commit
    with pytest.raises(UnknownName, match="'v7'; there is: main"):
        open_version(datasets, "tiny@v7")
    with pytest.raises(UnknownName, match="no dataset 'other'; there is: tiny"):
        open_version(datasets, "other")


def test_rank_0_looks_a_name_up_once_for_all(tiny: Version, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    resolve = Store.resolve

    def moving(store: Store, revision: str) -> str:
        asked.append(revision)
        found = resolve(store, revision)
        # Whoever asks later is told something else.
        store.commit("main", lambda tip: Draft(store.commit_of(found).manifest, "later", {"kind": "test"}))
        return found

    monkeypatch.setattr(Store, "resolve", moving)
    assert open_together(datasets, "tiny@main", World()).commit == tiny.commit

    class Other(World):
        def on_main(self, action: Callable[[], Any]) -> Any:
            return tiny.commit  # what rank 0 has sent

    found = open_together(datasets, "tiny@main", Other())
    assert (found.commit, found.ref, asked) == (tiny.commit, "tiny@main", ["main"])
