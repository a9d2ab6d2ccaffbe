"""Diff: what is different between two versions, row by row, by uid."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpctool.data.identity import places
from hpctool.data.labels import class_name
from hpctool.data.manifest import CONTENT, LABEL, UID
from hpctool.data.reader import Rows
from hpctool.data.version import Version


@dataclass(frozen=True)
class Diff:
    """How version `b` differs from version `a`. Rows are uids, labels class names (empty for none)."""

    a: str
    b: str
    rows_added: list[str]
    rows_removed: list[str]
    #: the same row with other features
    rows_changed: list[str]
    columns_added: list[str]
    columns_removed: list[str]
    #: the same column with another dtype, shape or classes
    columns_changed: list[str]
    #: uid, from, to
    relabelled: list[tuple[str, str, str]]

    @property
    def is_empty(self) -> bool:
        """Whether there is no difference."""
        return not any(value for value in vars(self).values() if isinstance(value, list))

    def label_counts(self) -> list[tuple[str, str, int]]:
        """(from, to, how many), the most frequent first."""
        counts = Counter((old, new) for _, old, new in self.relabelled)
        return [(old, new, count) for (old, new), count in counts.most_common()]

    def to_json(self) -> dict[str, Any]:
        relabelled = [{"uid": uid, "from": old, "to": new} for uid, old, new in self.relabelled]
        counts = [{"from": old, "to": new, "count": count} for old, new, count in self.label_counts()]
        return vars(self) | {"relabelled": relabelled, "labels": counts}


def diff(a: Version, b: Version) -> Diff:
    """Compare two versions, of one dataset or of two. Raises CorruptError."""
    uids_a, uids_b = a.read(UID), b.read(UID)
    row_in_a, row_in_b = places(uids_b, uids_a), places(uids_a, uids_b)
    common_b = np.flatnonzero(row_in_a >= 0)
    common_a = row_in_a[common_b]
    changed = (a.read(CONTENT)[common_a] != b.read(CONTENT)[common_b]).any(axis=1)
    both = sorted(a.columns.keys() & b.columns.keys())
    return Diff(
        a=a.ref,
        b=b.ref,
        rows_added=b.uids(np.flatnonzero(row_in_a < 0)),
        rows_removed=a.uids(np.flatnonzero(row_in_b < 0)),
        rows_changed=b.uids(common_b[changed]),
        columns_added=sorted(b.columns.keys() - a.columns.keys()),
        columns_removed=sorted(a.columns.keys() - b.columns.keys()),
        columns_changed=[name for name in both if a.columns[name] != b.columns[name]],
        relabelled=_relabelled(a, b, common_a, common_b) if LABEL in both else [],
    )


def _relabelled(a: Version, b: Version, rows_a: Rows, rows_b: Rows) -> list[tuple[str, str, str]]:
    # By name: the same class may have another index where classes were added.
    names = sorted({*a.classes, *b.classes})
    codes_a, codes_b = (
        np.array([names.index(name) for name in version.classes] + [-1])[version.read(LABEL)[rows]]
        for version, rows in ((a, rows_a), (b, rows_b))
    )
    different = np.flatnonzero(codes_a != codes_b)
    old, new = (version.read(LABEL, rows[different]) for version, rows in ((a, rows_a), (b, rows_b)))
    uids = b.uids(rows_b[different])
    return [(uid, class_name(a, int(x)), class_name(b, int(y))) for uid, x, y in zip(uids, old, new, strict=True)]
