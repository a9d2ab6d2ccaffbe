"""Where a row goes depends on its uid alone."""

from __future__ import annotations

import numpy as np
import pytest

from hpctool.data.identity import uids_of_keys
from hpctool.data.splits import make_rule, split_rows
from hpctool.errors import ConfigError

FRACTIONS = {"train": 0.6, "val": 0.1, "test": 0.15, "production": 0.15}


def test_every_row_is_in_one_split_in_about_the_fraction_asked_for() -> None:
    uids = uids_of_keys([f"row {i}" for i in range(20_000)])
    splits = split_rows(make_rule(FRACTIONS), uids)
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(20_000))
    for name, fraction in FRACTIONS.items():
        assert abs(len(splits[name]) / 20_000 - fraction) < 0.015


def test_new_rows_never_move_old_ones() -> None:
    rule, keys = make_rule(FRACTIONS), [f"row {i}" for i in range(500)]
    before = split_rows(rule, uids_of_keys(keys[:200]))
    after = split_rows(rule, uids_of_keys(keys))
    for name in FRACTIONS:
        assert set(before[name]) == {row for row in after[name] if row < 200}


def test_the_smallest_and_the_greatest_uid_find_a_split() -> None:
    edges = np.array([[0] * 16, [255] * 16], np.uint8)
    splits = split_rows(make_rule({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}), edges)
    assert {name: rows.tolist() for name, rows in splits.items()} == {"a": [0], "b": [], "c": [1]}


def test_splits_of_no_size_are_left_out() -> None:
    assert make_rule({"train": 1.0, "val": 0.0})["fractions"] == [["train", 1.0]]


@pytest.mark.parametrize("fractions", [{"train": 0.5}, {"train": 1.5, "val": -0.5}, {}])
def test_fractions_that_are_no_whole_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"data\.splits"):
        make_rule(fractions)
