"""Ingest: the rows of a source as row groups, written by all ranks together.

Which rows lie in which row group, and in which order, depends on the source and the seed alone; ranks only share out
pieces and row groups. So every object, and the manifest, is the same for any number of ranks, and a killed import that
is started again finds what it has finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hpctool.data.filters import Filter
from hpctool.data.identity import Digests, content_digests, words
from hpctool.data.manifest import (
    CONTENT,
    GROUP,
    GROUP_COLUMN,
    IDENTITY_COLUMNS,
    LABEL,
    UID,
    Column,
    Manifest,
    RowGroup,
)
from hpctool.data.objects import StoredObject, damage
from hpctool.data.order import Order
from hpctool.data.progress import Tick, progress
from hpctool.data.ragged import Values
from hpctool.data.reader import Rows
from hpctool.data.sources.base import Piece, RowSource, check_names
from hpctool.data.splits import Index, split_rows
from hpctool.data.spool import Identity, Spool, Spooled
from hpctool.data.stats import Moments, SplitMoments, duplicates, group_moments, label_counts, merge_moments
from hpctool.data.store import Store
from hpctool.errors import SourceError, Stopped
from hpctool.launch import signals
from hpctool.world import World

_MB = 1 << 20
_CALLED = {"piece": "pieces", "digest": "digests of row groups", "group": "row groups"}


@dataclass
class Plan:
    """Which row of the source comes where: all that decides the content of a version besides the source itself."""

    source: RowSource
    spooled: Spooled
    identity: Identity
    #: the features
    columns: dict[str, Column]
    #: row of the source at each row of the dataset, int64 (n,)
    order: Rows
    #: number of each row's split, int64 (n,), in the dataset's order
    split_index: Index
    rule: dict[str, Any]
    group_rows: int
    filters: dict[str, Filter] = field(default_factory=dict)

    @property
    def num_groups(self) -> int:
        return -(-len(self.order) // self.group_rows)

    def rows_of(self, group: int) -> slice:
        return slice(group * self.group_rows, min((group + 1) * self.group_rows, len(self.order)))

    def schema(self) -> dict[str, Column]:
        """All columns: features, label and identity."""
        found = {**self.columns, **{column.name: column for column in IDENTITY_COLUMNS}}
        if self.identity.groups is not None:
            found[GROUP] = GROUP_COLUMN
        if self.identity.labels is not None:
            found[LABEL] = Column(LABEL, np.dtype(np.int64), (), classes=self.identity.classes, role="label")
        return found

    def features(self, rows: Rows) -> dict[str, Values]:
        """The features of some rows of the source. SourceError."""
        keys: list[str] = []

        def name_of(place: int) -> str:
            if not keys:
                keys.extend(self.spooled.keys(rows))
            return keys[place]

        return self.source.features(self.spooled.read(rows), name_of)


def spool_pieces(spool: Spool, source: RowSource, pieces: list[Piece], world: World) -> Spooled:
    """Write all pieces as they come. Collective: all ranks must call it.

    Raises the first rank's error on every rank; Stopped where one was asked to stop.
    """

    def write(number: int, tick: Tick) -> dict[str, Any]:
        for num_rows in spool.put_piece(number, source, pieces[number]):
            tick(num_rows)
            _heed_stop(number)
        return spool.entry("piece", number) or {}

    return Spooled(spool, _share("piece", len(pieces), write, spool, world))


def feature_columns(source: RowSource, spooled: Spooled) -> dict[str, Column]:
    """The features' schema. Raises SourceError on names that are ours."""
    found = source.schema(spooled.columns)
    check_names(found)
    floats = {name: not source.allow_nan and column.dtype.kind == "f" for name, column in found.items()}
    return {
        name: Column(name, c.dtype, c.shape, names=c.names, ragged=c.ragged, encoding=c.encoding, finite=floats[name])
        for name, c in found.items()
    }


def check_keys(spooled: Spooled, identity: Identity) -> None:
    """Raises SourceError on keys that stand twice."""
    _, first, counts = np.unique(words(identity.uids), return_index=True, return_counts=True)
    if (twice := first[counts > 1]).size:
        key = spooled.key(int(twice.min()))
        raise SourceError("source", f"the key '{key}' stands more than once; keys name rows for ever.")


def rows_per_group(columns: dict[str, Column], spooled: Spooled, group_rows: int, group_mb: int) -> int:
    """How many rows make a row group: at most so many, and no more bytes of features (of ragged ones on average)."""
    fixed = sum(c.dtype.itemsize * int(np.prod(c.shape)) for c in columns.values() if not c.ragged)
    ragged = spooled.ragged_bytes // max(spooled.num_rows, 1) if any(c.ragged for c in columns.values()) else 0
    return max(1, min(group_rows, group_mb * _MB // max(fixed + ragged, 1)))


def row_order(rows: Rows, seed: int, *, shuffle: bool) -> Rows:
    """The rows as they are to lie: permuted, so that reading in sequence is reading at random."""
    return rows[Order(len(rows), seed).rows(0, 0, len(rows))] if shuffle else rows


def digest_rows(plan: Plan, spool: Spool, world: World) -> Digests:
    """The content digest of each row of the plan, uint8 (n, 16), before any is stored. Collective."""

    def look(group: int, tick: Tick) -> dict[str, Any]:
        noted = spool.entry("digest", group)
        if noted is None:
            digests = content_digests(plan.features(plan.order[plan.rows_of(group)]))
            noted = {"digests": digests.tobytes().hex()}
            spool.note("digest", group, noted)
            tick(len(digests))
        return noted

    noted = _share("digest", plan.num_groups, look, spool, world)
    return np.frombuffer(bytes.fromhex("".join(entry["digests"] for entry in noted)), np.uint8).reshape(-1, 16)


def write_groups(store: Store, plan: Plan, spool: Spool, world: World) -> tuple[list[RowGroup], SplitMoments]:
    """Write all row groups; every rank gets all of them and the merged moments. Collective: all ranks must call it.

    Raises the first rank's error on every rank; Stopped where one was asked to stop.
    """

    def write(group: int, tick: Tick) -> dict[str, Any]:
        noted = spool.entry("group", group)
        if noted is None or not _is_whole(store, noted):
            noted = _write_group(store, plan, group)
            spool.note("group", group, noted)
            tick(int(noted["num_rows"]))
        return noted

    parts = _share("group", plan.num_groups, write, spool, world)
    groups = [RowGroup(p["num_rows"], [StoredObject.from_json(o) for o in p["objects"]]) for p in parts]
    moments = merge_moments(
        {split: {name: Moments(**m) for name, m in named.items()} for split, named in part["moments"].items()}
        for part in parts
    )
    return groups, moments


def assemble(store: Store, plan: Plan, groups: list[RowGroup], moments: SplitMoments) -> Manifest:
    """The version's table of contents, from the row groups and the moments of their features. Rank 0 does it."""
    splits = split_rows(plan.rule, plan.split_index)
    content = np.concatenate([store.get(group.holder(CONTENT), CONTENT) for group in groups])
    features = {split: {name: m.to_json() for name, m in named.items()} for split, named in moments.items()}
    stats: dict[str, Any] = {
        "duplicates": duplicates(content, plan.split_index),
        "splits": {s: {"rows": len(rows), "features": features.get(s, {})} for s, rows in splits.items()},
    }
    if plan.identity.labels is not None:
        labels = plan.identity.labels[plan.order]
        for split, counts in label_counts(labels, splits, plan.identity.classes).items():
            stats["splits"][split] |= counts
    return Manifest(plan.schema(), groups, store.put(dict(splits)), plan.rule, stats)


def _write_group(store: Store, plan: Plan, group: int) -> dict[str, Any]:
    """Write one row group and return it as JSON, with the moments of its features."""
    place = plan.rows_of(group)
    rows = plan.order[place]
    features = plan.features(rows)
    identity: dict[str, Values] = {UID: plan.identity.uids[rows], CONTENT: content_digests(features)}
    if plan.identity.groups is not None:
        identity[GROUP] = plan.identity.groups[rows]
    objects = [store.put(features, plan.filters), store.put(identity)]
    if plan.identity.labels is not None:
        # An object of their own: relabelling writes nothing else.
        objects.append(store.put({LABEL: plan.identity.labels[rows]}))
    moments = group_moments(features, plan.columns, split_rows(plan.rule, plan.split_index[place]))
    return {
        "group": group,
        "num_rows": len(rows),
        "objects": [stored.to_json() for stored in objects],
        "moments": {split: {name: asdict(m) for name, m in named.items()} for split, named in moments.items()},
    }


def _is_whole(store: Store, noted: dict[str, Any]) -> bool:
    """Whether what a killed attempt had finished is still there, to the last bit."""
    for stored in map(StoredObject.from_json, noted["objects"]):
        path = store.layout.object(stored.id)
        # Young again, so that gc leaves it alone until the commit needs it.
        if damage(path, stored.id, stored.size_bytes) or not store.layout.renew(path):
            return False
    return True


def _share(
    kind: str, total: int, work: Callable[[int, Tick], dict[str, Any]], spool: Spool, world: World
) -> list[dict[str, Any]]:
    """Do this rank's share, every `size`th part, and give the results of all parts to all. Collective."""

    def share() -> list[dict[str, Any]]:
        found = []
        with progress(_CALLED[kind], total, lambda: spool.count(kind), world.size, shown=world.is_main) as tick:
            for number in range(world.rank, total, world.size):
                _heed_stop(number)
                if spool.has_failed():
                    break  # another rank has: nobody need wait for the rest of this share
                try:
                    found.append(work(number, tick))
                except BaseException:
                    spool.fail()
                    raise
        return found

    shares = world.together(share)
    return [shares[number % world.size][number // world.size] for number in range(total)]


def _heed_stop(step: int) -> None:
    if signals.stop_requested():
        raise Stopped(signals.stop_cause(), step)
