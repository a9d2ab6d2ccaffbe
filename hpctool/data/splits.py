"""Splits: which rows are for training, which for testing. Whatever the rule, new rows never move old ones.

- uid: a row's uid, which is as good as random, is held against the cumulated fractions. No other row matters.
- group: the same with the digest of the group's name, so that a writer or patient is in one split only.
- stratified: within each class the new rows fill up, in order of uid, what the old ones leave of the class's parts.
- given: somebody has said it of each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.data.identity import Digests
from hpctool.data.manifest import rule_splits
from hpctool.errors import ConfigError

Index = npt.NDArray[np.int64]

RULES = ("uid", "group", "stratified", "given")


def make_rule(fractions: Mapping[str, float], by: str = "uid") -> dict[str, Any]:
    """The rule as the manifest holds it; splits of no size are left out. Raises ConfigError unless the sum is 1.

    A rule of given splits gets its names from the rows (`given_rule`).
    """
    if by not in RULES:
        raise ConfigError("data.split_by", f"'{by}' is none of {', '.join(RULES)}.")
    if by == "given":
        return {"by": by, "splits": list(fractions)}
    total = sum(fractions.values())
    if any(not 0 <= f <= 1 for f in fractions.values()) or abs(total - 1) > 1e-6:
        found = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
        raise ConfigError(
            "data.splits", f"the fractions are {found}; each must be 0 to 1 and the sum 1, not {total:g}."
        )
    return {"by": by, "fractions": [[name, float(f)] for name, f in fractions.items() if f > 0]}


def given_rule(names: list[str], order: list[str]) -> dict[str, Any]:
    """The rule of splits that rows were given: those of `order` first."""
    return {"by": "given", "splits": [n for n in order if n in names] + sorted(set(names) - set(order))}


def split_rows(rule: Mapping[str, Any], index: Index) -> dict[str, Index]:
    """Split → its rows, ascending, int64, from the number of each row's split. Every row is in one split."""
    return {name: np.flatnonzero(index == number) for number, name in enumerate(rule_splits(rule))}


def hashed_splits(rule: Mapping[str, Any], digests: Digests) -> Index:
    """The number of each row's split in the rule: int64 (n,), from digests uint8 (n, 16) of uids or groups."""
    ends = np.cumsum([fraction for _, fraction in rule["fractions"]])
    # The sum of fractions may end a hair below 1.
    return np.minimum(np.searchsorted(ends, _places(digests), side="right"), len(ends) - 1)


def stratified_splits(rule: Mapping[str, Any], uids: Digests, labels: Index, before: Index) -> Index:
    """The number of each row's split: int64 (n,). `before` is that of rows which have one already, else -1.

    `labels` int64 (n,) are class indices, -1 for rows without: these are a class of their own.
    """
    fractions = np.array([fraction for _, fraction in rule["fractions"]])
    index = before.copy()
    places = _places(uids)
    for label in np.unique(labels):
        of_class = labels == label
        new = np.flatnonzero(of_class & (before < 0))
        there = np.bincount(before[of_class & (before >= 0)], minlength=len(fractions))
        counts = _fill(fractions * int(of_class.sum()) - there, len(new))
        index[new[np.argsort(places[new], kind="stable")]] = np.repeat(np.arange(len(fractions)), counts)
    return index


def _fill(wanted: npt.NDArray[np.float64], count: int) -> Index:
    """Whole numbers of this sum, as near as can be to what is wanted where that is more than nothing."""
    positive = np.maximum(wanted, 0)
    total = float(positive.sum())
    share = positive * (count / total) if total > 0 else np.full(len(wanted), count / len(wanted))
    counts = np.floor(share + 1e-9).astype(np.int64)
    rest = np.argsort(-(share - counts), kind="stable")[: count - int(counts.sum())]
    counts[rest] += 1
    return counts


def _places(digests: Digests) -> npt.NDArray[np.float64]:
    """The second half of each digest, read as a number in 0..1."""
    found: npt.NDArray[np.float64] = np.ascontiguousarray(digests[:, 8:]).view(">u8").reshape(-1) / 2.0**64
    return found
