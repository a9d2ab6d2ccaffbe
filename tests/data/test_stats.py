"""Statistics are what NumPy says, however the rows are cut into row groups."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctool import files
from hpctool.data.identity import uids_of_keys
from hpctool.data.manifest import Column
from hpctool.data.stats import Moments, duplicates, group_moments, label_counts, merge_moments


@pytest.mark.slow
@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=20), min_size=1, max_size=6))
def test_merged_moments_are_those_of_everything(groups: list[list[float]]) -> None:
    merged = Moments()
    for group in groups:
        merged.add(Moments.of(np.array(group)))
    everything = np.array([value for group in groups for value in group])
    assert merged.count == len(everything)
    if merged.count:
        found = merged.to_json()
        assert found["mean"] == pytest.approx(everything.mean(), abs=1e-3)
        assert found["std"] == pytest.approx(everything.std(), rel=1e-6, abs=1e-3)
        assert [found["min"], found["max"]] == pytest.approx([everything.min(), everything.max()])


def test_rows_can_be_added_to_what_a_manifest_says_of_seconds_since_1970() -> None:
    seconds = np.random.default_rng(0).normal(1.7e9, 1, (2, 10_000))
    moments = Moments.from_json(json.loads(files.canonical_json(Moments.of(seconds[0]).to_json())))
    moments.add(Moments.of(seconds[1]))
    assert moments.std == pytest.approx(seconds.std(), rel=1e-6)
    assert moments.mean == pytest.approx(seconds.mean(), rel=1e-15)
    assert (moments.least, moments.greatest) == (seconds.min(), seconds.max())


@pytest.mark.parametrize("size", [1e200, 1.7e308, 1e-200])
def test_numbers_whose_squares_are_no_float64_have_moments(size: float) -> None:
    values = np.array([size, -size, size, 0])
    everything = Moments.of(values)
    merged = merge_moments([{"train": {"x": Moments.of(values[n : n + 1])}} for n in range(4)])["train"]["x"]
    for found in (everything, merged):
        said = json.loads(files.canonical_json(found.to_json()))
        assert (said["min"], said["max"]) == (-size, size)
        assert said["mean"] == pytest.approx(size / 4)
        assert said["std"] == pytest.approx(size * (11 / 16) ** 0.5)


def test_values_that_are_not_finite_are_not_counted() -> None:
    assert Moments.of(np.array([1.0, np.nan, np.inf, 3.0])).to_json()["count"] == 2
    assert Moments.of(np.array([np.nan])).to_json() == {"count": 0, "min": 0, "max": 0, "mean": 0, "std": 0}


def test_columns_with_named_parts_have_moments_for_each() -> None:
    columns = {"x": Column("x", np.dtype(np.float32), (2,), names=["age", "height"])}
    values = np.array([[1, 10], [3, 20]], np.float32)
    found = merge_moments([group_moments({"x": values}, columns, {"train": np.array([0, 1])})])
    assert found["train"]["x.age"].mean == 2
    assert found["train"]["x.height"].mean == 15


def test_more_rows_than_one_chunk() -> None:
    columns = {"x": Column("x", np.dtype(np.int64), ())}
    found = group_moments({"x": np.arange(5000)}, columns, {"train": np.arange(5000), "val": np.arange(0)})
    std = pytest.approx(np.arange(5000).std(), rel=1e-14)
    assert found["train"]["x"].to_json() == {"count": 5000, "min": 0, "max": 4999, "mean": 2499.5, "std": std}
    assert found["val"] == {}


def test_rows_without_label_are_counted_apart() -> None:
    counts = label_counts(
        np.array([0, 1, 1, -1]), {"train": np.array([0, 1, 3]), "val": np.array([2])}, ["a", "b", "c"]
    )
    assert counts == {
        "train": {"classes": [1, 1, 0], "unlabelled": 1},
        "val": {"classes": [0, 1, 0], "unlabelled": 0},
    }


def test_rows_that_stand_twice_and_contents_in_two_splits_are_found() -> None:
    content = uids_of_keys(["a", "b", "a", "a", "c", "c"])
    assert duplicates(content, np.array([0, 0, 0, 1, 2, 2])) == {"repeated": 3, "leaked": 1}
    assert duplicates(content[:0], np.zeros(0, np.int64)) == {"repeated": 0, "leaked": 0}
