"""Ingest: the rows of a source as row groups, written by all ranks together.

Which rows lie in which row group, and in which order, depends on the source and the seed alone; ranks only share out
the row groups. So every object, and the manifest, is the same for any number of ranks, and a killed import that is
started again finds the objects it has already written.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hpctool.data.identity import Digests, content_digests, uids_of_keys, words
from hpctool.data.manifest import CONTENT, IDENTITY_COLUMNS, LABEL, UID, Column, Manifest, RowGroup
from hpctool.data.objects import StoredObject
from hpctool.data.order import Order
from hpctool.data.reader import Rows
from hpctool.data.sources.table import Table
from hpctool.data.splits import split_index, split_rows
from hpctool.data.stats import Moments, duplicates, group_moments, label_counts, merge_moments
from hpctool.data.store import Store
from hpctool.errors import SourceError, Stopped
from hpctool.launch import signals
from hpctool.world import Array, World

_MB = 1 << 20
_REPORT_EVERY_S = 5.0


@dataclass
class Plan:
    """Which row of the source comes where: all that decides the content of a version besides the source itself."""

    table: Table
    #: row of the source at each row of the dataset, int64 (n,)
    order: Rows
    #: uint8 (n, 16), in the dataset's order
    uids: Digests
    group_rows: int
    rule: dict[str, Any]

    @property
    def num_groups(self) -> int:
        return -(-len(self.order) // self.group_rows)

    def rows_of(self, group: int) -> slice:
        return slice(group * self.group_rows, min((group + 1) * self.group_rows, len(self.order)))

    def columns(self) -> dict[str, Column]:
        """The schema: features, label and identity."""
        found = {**self.table.columns, **{column.name: column for column in IDENTITY_COLUMNS}}
        if self.table.labels is not None:
            found[LABEL] = Column(LABEL, np.dtype(np.int64), (), classes=self.table.classes, role="label")
        return found


def make_plan(table: Table, seed: int, group_rows: int, group_mb: int, rule: dict[str, Any]) -> Plan:
    """Permute the rows, so that reading in sequence is reading at random, and cut them into groups of one size.

    Raises SourceError on an empty source, on keys that stand twice and on columns with a name of ours.
    """
    if not table.keys:
        raise SourceError("source", "it has no rows.")
    if reserved := {LABEL, UID, CONTENT} & table.columns.keys():
        raise SourceError("source", f"a feature cannot be called '{min(reserved)}'; that column is hpctool's own.")
    uids = uids_of_keys(table.keys)
    _check_unique(table.keys, uids)
    order = Order(len(table.keys), seed).rows(0, 0, len(table.keys))
    row_bytes = sum(c.dtype.itemsize * int(np.prod(c.shape)) for c in table.columns.values())
    most_rows = max(1, min(group_rows, group_mb * _MB // max(row_bytes, 1)))
    return Plan(table, order, uids[order], most_rows, rule)


def write_groups(store: Store, plan: Plan, world: World) -> tuple[list[RowGroup], dict[str, Any]]:
    """Write all row groups; every rank gets all of them and the merged moments. Collective: all ranks must call it.

    Raises the first rank's error on every rank; Stopped where one was asked to stop.
    """
    found = world.together(lambda: _write_share(store, plan, world))
    parts = sorted((part for share in found for part in share), key=lambda part: int(part["group"]))
    groups = [RowGroup(p["num_rows"], [StoredObject.from_json(o) for o in p["objects"]]) for p in parts]
    moments = merge_moments(
        {split: {name: Moments(**m) for name, m in named.items()} for split, named in part["moments"].items()}
        for part in parts
    )
    described = {split: {name: m.to_json() for name, m in named.items()} for split, named in moments.items()}
    return groups, described


def assemble(store: Store, plan: Plan, groups: list[RowGroup], features: dict[str, Any]) -> Manifest:
    """The version's table of contents, from the row groups and the moments of their features. Rank 0 does it."""
    splits = split_rows(plan.rule, plan.uids)
    content = np.concatenate([store.get(group.holder(CONTENT), CONTENT) for group in groups])
    stats: dict[str, Any] = {
        "duplicates": duplicates(content, split_index(plan.rule, plan.uids)),
        "splits": {s: {"rows": len(rows), "features": features.get(s, {})} for s, rows in splits.items()},
    }
    if plan.table.labels is not None:
        labels = plan.table.labels[plan.order]
        for split, counts in label_counts(labels, splits, plan.table.classes).items():
            stats["splits"][split] |= counts
    return Manifest(plan.columns(), groups, store.put(splits), plan.rule, stats)


def _write_share(store: Store, plan: Plan, world: World) -> list[dict[str, Any]]:
    """Write this rank's row groups, every `size`th one."""
    mine = range(world.rank, plan.num_groups, world.size)
    begun = reported = time.monotonic()
    parts: list[dict[str, Any]] = []
    for group in mine:
        if signals.stop_requested():
            raise Stopped(signals.stop_cause(), group)
        parts.append(_write_group(store, plan, group))
        if world.is_main and time.monotonic() - reported > _REPORT_EVERY_S:
            reported = time.monotonic()
            print(_progress(plan, len(parts), len(mine), reported - begun), flush=True)
    return parts


def _write_group(store: Store, plan: Plan, group: int) -> dict[str, Any]:
    """Write one row group and return it as JSON, with the moments of its features."""
    rows = plan.rows_of(group)
    uids, source_rows = plan.uids[rows], plan.order[rows]
    features = plan.table.read(source_rows)
    content = content_digests(features)
    objects = [store.put(features), store.put({UID: uids, CONTENT: content})]
    if plan.table.labels is not None:
        # An object of their own: relabelling writes nothing else.
        objects.append(store.put({LABEL: plan.table.labels[source_rows]}))
    moments = group_moments(features, plan.table.columns, split_rows(plan.rule, uids))
    return {
        "group": group,
        "num_rows": len(uids),
        "objects": [stored.to_json() for stored in objects],
        "moments": {split: {name: asdict(m) for name, m in named.items()} for split, named in moments.items()},
    }


def _check_unique(keys: list[str], uids: Array) -> None:
    _, first, counts = np.unique(words(uids), return_index=True, return_counts=True)
    if (twice := first[counts > 1]).size:
        raise SourceError(
            "source", f"the key '{keys[int(twice.min())]}' stands more than once; keys name rows for ever."
        )


def _progress(plan: Plan, done: int, total: int, elapsed_s: float) -> str:
    rate = done * plan.group_rows / elapsed_s
    left_s = (total - done) * elapsed_s / done
    return f"prepare: row group {done} of {total} on rank 0, {rate:,.0f} rows/s, {left_s:,.0f} s left"
