"""A difference between versions is told by uid, whatever the order of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.data.diff import diff
from hpctool.data.labels import relabel
from hpctool.data.prepare import Prepared
from hpctool.data.version import Version, open_version


def test_a_version_does_not_differ_from_itself(tiny: Version) -> None:
    assert diff(tiny, tiny).is_empty


def test_labels_are_told_from_and_to(tiny: Version, datasets: Path) -> None:
    rows = np.flatnonzero(tiny.read("label") == 1)[:3]
    uids = tiny.uids(rows)
    relabel(tiny.store, "main", [(uid, 0, "me", "", "") for uid in uids[:2]] + [(uids[2], -1, "me", "", "")], "look")
    found = diff(tiny, open_version(datasets, "tiny"))
    assert found.relabelled == [(uids[0], "1", "0"), (uids[1], "1", "0"), (uids[2], "1", "")]
    assert found.label_counts() == [("1", "0", 2), ("1", "", 1)]
    assert found.rows_added == found.rows_removed == found.rows_changed == found.columns_changed == []
    told = found.to_json()
    assert told["labels"][0] == {"from": "1", "to": "0", "count": 2}
    assert told["relabelled"][2] == {"uid": uids[2], "from": "1", "to": ""}


@pytest.mark.slow
def test_rows_and_columns_are_told_though_another_seed_orders_them_otherwise(
    prepare_arrays: Callable[..., Prepared], datasets: Path
) -> None:
    key = np.array([f"row {i}" for i in range(6)])
    x, label = np.arange(6.0), np.array(list("ababab"))
    prepare_arrays("source.key=key", "data.name=tiny@a", key=key, x=x, y=x, label=label)
    other = np.where(x == 2, 7.0, x)
    options = ["source.key=key", "data.name=tiny@b", "seed=5", "source.classes=[new,a,b]"]
    prepare_arrays(*options, key=key[1:], x=other[1:], z=x[1:], label=label[1:])
    a, b = open_version(datasets, "tiny@a"), open_version(datasets, "tiny@b")
    found, back = diff(a, b), diff(b, a)
    assert (len(found.rows_added), len(found.rows_removed)) == (0, 1)
    assert found.rows_removed == back.rows_added
    # Columns differ, so every row's content does; the classes' order does not count as a change of label.
    assert len(found.rows_changed) == 5
    assert (found.columns_added, found.columns_removed, found.columns_changed) == (["z"], ["y"], ["label"])
    assert found.relabelled == []


@pytest.mark.slow
def test_a_row_with_other_features_is_told(prepare_arrays: Callable[..., Prepared], datasets: Path) -> None:
    x = np.arange(4)
    prepare_arrays("source.label=null", "data.name=tiny@a", x=x)
    prepare_arrays("source.label=null", "data.name=tiny@b", x=np.where(x == 2, 9, x))
    a, b = open_version(datasets, "tiny@a"), open_version(datasets, "tiny@b")
    found = diff(a, b)
    assert found.rows_changed == [uid for uid, value in zip(a.uids(), a.read("x"), strict=True) if value == 2]
    assert found.rows_added == found.rows_removed == []
