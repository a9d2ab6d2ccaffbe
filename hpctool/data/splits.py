"""Splits by rule: a row's uid alone decides where it goes, so new rows never move old ones.

The second half of the uid, read as a number in 0..1, is held against the cumulated fractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.data.identity import Digests
from hpctool.errors import ConfigError


def make_rule(fractions: Mapping[str, float]) -> dict[str, Any]:
    """The rule as the manifest holds it; splits of no size are left out. Raises ConfigError unless the sum is 1."""
    total = sum(fractions.values())
    if any(not 0 <= f <= 1 for f in fractions.values()) or abs(total - 1) > 1e-6:
        found = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
        raise ConfigError(
            "data.splits", f"the fractions are {found}; each must be 0 to 1 and the sum 1, not {total:g}."
        )
    return {"by": "uid", "fractions": [[name, float(f)] for name, f in fractions.items() if f > 0]}


def split_rows(rule: Mapping[str, Any], uids: Digests) -> dict[str, npt.NDArray[np.int64]]:
    """Split → its rows, ascending, int64. Every row is in one split."""
    names = [name for name, _ in rule["fractions"]]
    index = split_index(rule, uids)
    return {name: np.flatnonzero(index == number) for number, name in enumerate(names)}


def split_index(rule: Mapping[str, Any], uids: Digests) -> npt.NDArray[np.int64]:
    """The number of each row's split in the rule: int64 (n,), from uids uint8 (n, 16)."""
    place = np.ascontiguousarray(uids[:, 8:]).view(">u8").reshape(-1) / 2.0**64
    ends = np.cumsum([fraction for _, fraction in rule["fractions"]])
    # The sum of fractions may end a hair below 1.
    return np.minimum(np.searchsorted(ends, place, side="right"), len(ends) - 1)
