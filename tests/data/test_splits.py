"""Where a row goes follows from the rule, and no new row moves an old one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hpctool.data.identity import Digests, uids_of_keys
from hpctool.data.splits import Index, given_rule, hashed_splits, make_rule, split_rows, stratified_splits
from hpctool.errors import ConfigError

FRACTIONS = {"train": 0.6, "val": 0.1, "test": 0.15, "production": 0.15}


def by_uid(rule: dict[str, Any], uids: Digests) -> dict[str, Index]:
    return split_rows(rule, hashed_splits(rule, uids))


def test_every_row_is_in_one_split_in_about_the_fraction_asked_for() -> None:
    uids = uids_of_keys([f"row {i}" for i in range(20_000)])
    splits = by_uid(make_rule(FRACTIONS), uids)
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(20_000))
    for name, fraction in FRACTIONS.items():
        assert abs(len(splits[name]) / 20_000 - fraction) < 0.015


def test_new_rows_never_move_old_ones() -> None:
    rule, keys = make_rule(FRACTIONS), [f"row {i}" for i in range(500)]
    before = by_uid(rule, uids_of_keys(keys[:200]))
    after = by_uid(rule, uids_of_keys(keys))
    for name in FRACTIONS:
        assert set(before[name]) == {row for row in after[name] if row < 200}


def test_the_smallest_and_the_greatest_uid_find_a_split() -> None:
    edges = np.array([[0] * 16, [255] * 16], np.uint8)
    splits = by_uid(make_rule({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}), edges)
    assert {name: rows.tolist() for name, rows in splits.items()} == {"a": [0], "b": [], "c": [1]}


def test_splits_of_no_size_are_left_out() -> None:
    assert make_rule({"train": 1.0, "val": 0.0})["fractions"] == [["train", 1.0]]


@pytest.mark.parametrize("fractions", [{"train": 0.5}, {"train": 1.5, "val": -0.5}, {}])
def test_fractions_that_are_no_whole_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"data\.splits"):
        make_rule(fractions)


def test_stratified_every_class_has_the_fractions_to_the_row_and_new_rows_fill_up() -> None:
    rule = make_rule({"train": 0.7, "test": 0.3}, "stratified")
    labels = np.array([-1] * 10 + [0] * 100 + [1] * 7)
    uids = uids_of_keys([f"row {i}" for i in range(len(labels))])
    first = stratified_splits(rule, uids, labels, np.full(len(labels), -1))
    assert [int((first[labels == label] == 1).sum()) for label in (-1, 0, 1)] == [3, 30, 2]
    grown = np.concatenate([labels, [1] * 93])
    more = uids_of_keys([f"row {i}" for i in range(len(grown))])
    after = stratified_splits(rule, more, grown, np.concatenate([first, np.full(93, -1)]))
    assert np.array_equal(after[: len(first)], first)
    assert int((after[grown == 1] == 1).sum()) == 30
    # Which of the new rows come where is for their uids to say, not for the order in which they came.
    turned = np.concatenate([np.arange(len(first)), np.arange(len(grown) - 1, len(first) - 1, -1)])
    again = stratified_splits(rule, more[turned], grown[turned], np.concatenate([first, np.full(93, -1)]))
    assert np.array_equal(again, after[turned])


def test_given_splits_keep_the_order_that_people_know() -> None:
    names = ["zoo", "test", "train", "aux"]
    assert given_rule(names, ["train", "val", "test"])["splits"] == ["train", "test", "aux", "zoo"]


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'random' is none of uid, group, stratified, given"):
        make_rule(FRACTIONS, "random")
