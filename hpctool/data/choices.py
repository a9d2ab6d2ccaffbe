"""Choices of a prepare: which rows are taken, in which split each comes, which columns are packed. Then it is a plan.

All that is chosen follows from the source, the configuration and the branch as it is, never from the ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from hpctool import config
from hpctool.data import extend
from hpctool.data.append import filters_of, index_of_new
from hpctool.data.csvtable import read_csv
from hpctool.data.filters import Filter, saving
from hpctool.data.identity import Digests, places, uids_of_keys, words
from hpctool.data.ingest import (
    Plan,
    check_keys,
    digest_rows,
    feature_columns,
    row_order,
    rows_per_group,
    spool_pieces,
)
from hpctool.data.manifest import CONTENT, NO_LABEL, UID, Manifest
from hpctool.data.ragged import Ragged
from hpctool.data.reader import Rows
from hpctool.data.sources.base import Piece, RowSource
from hpctool.data.splits import Index, given_rule, hashed_splits, make_rule, stratified_splits
from hpctool.data.spool import Identity, Spool, Spooled
from hpctool.data.store import Store
from hpctool.data.version import Version
from hpctool.errors import ConfigError, SourceError, UnknownName, counted
from hpctool.world import World

DUPLICATES = ("say", "drop", "refuse")
COMPRESSION = ("none", "auto")
#: Packing that saves less costs more when the column is read.
_WORTH_SAVING = 0.15
_SAMPLE_BYTES = 8 << 20
_EXAMPLES = 3


def check(cfg: DictConfig) -> None:
    """On the login node: the values of `data` that cannot be. Raises ConfigError."""
    data = cfg.data
    make_rule(config.to_plain(data.splits), data.split_by)
    for key in ("row_group_rows", "row_group_mb"):
        if data[key] < 1:
            raise ConfigError(f"data.{key}", f"{data[key]} is less than 1.")
    for key, known in (("duplicates", DUPLICATES), ("compression", COMPRESSION)):
        if data[key] not in known:
            raise ConfigError(f"data.{key}", f"'{data[key]}' is none of {', '.join(known)}.")
    own = "_target_" in cfg.source
    if data.split_by == "group" and not own and not cfg.source.get("group"):
        raise ConfigError("data.split_by", "'group' needs source.group, which says whose a row is.")
    if data.split_by == "given" and not own and not cfg.source.get("split") and not data.splits_from:
        raise ConfigError("data.split_by", "'given' needs source.split, or data.splits_from=<csv with key and split>.")
    if data.splits_from and data.split_by != "given":
        raise ConfigError("data.splits_from", f"it counts with data.split_by=given only, not {data.split_by}.")


def make_plan(
    store: Store,
    base: str | None,
    source: RowSource,
    pieces: list[Piece],
    spool: Spool,
    cfg: DictConfig,
    world: World,
    onto: Version | None = None,
) -> tuple[Plan, list[str]]:
    """Read the source and decide what lies where; also what people should hear. Collective: all ranks must call it.

    Where the rows are to come `onto` a version that is there, its schema and its rule count.
    """
    if onto is not None:
        extend.take_over(source, onto)
    spooled = spool_pieces(spool, source, pieces, world)
    columns = feature_columns(source, spooled)
    if not spooled.num_rows:
        raise SourceError(pieces[0]["name"] if pieces else "source", "it has no rows.")
    identity = spooled.identity(source.classes)
    check_keys(spooled, identity)
    if onto is not None:
        columns = extend.fitting(onto, columns, identity)
        extend.check_new(onto, spooled, identity.uids)
    data, rows = cfg.data, np.arange(spooled.num_rows)
    group_rows = rows_per_group(columns, spooled, data.row_group_rows, data.row_group_mb)
    plan = Plan(source, spooled, identity, columns, rows, np.zeros(len(rows), np.int64), {}, group_rows)
    notes: list[str] = []
    if data.duplicates != "say":
        rows, notes = _without_twins(plan, digest_rows(plan, spool, world), data.duplicates, onto)
    if onto is None:
        rule, index = _splits(store, base, cfg, spooled, identity, rows)
    else:
        rule, index = onto.contents.rule, _splits_onto(onto, cfg, spooled, identity, rows)
    plan.rule, plan.order = rule, row_order(rows, cfg.seed, shuffle=data.shuffle)
    of_row = np.empty(spooled.num_rows, np.int64)
    of_row[rows] = index
    plan.split_index = of_row[plan.order]
    if onto is not None:
        plan.filters = filters_of(onto)
    elif data.compression == "auto":
        packed = world.on_main(lambda: _worth_packing(plan))
        plan.filters = packed["filters"]
        notes += packed["notes"]
    return plan, notes


def notes_of(plan: Plan, manifest: Manifest, store: Store) -> list[str]:
    """What people should hear of the rows: those without a label, twins, and what stands in several splits."""
    notes = []
    labels = plan.identity.labels
    if labels is not None and (missing := int((labels[plan.order] == NO_LABEL).sum())):
        notes.append(f"{_rows_have(missing)} no label.")
    found = manifest.stats["duplicates"]
    if found["repeated"]:
        content = np.concatenate([store.get(group.holder(CONTENT), CONTENT) for group in manifest.row_groups])
        first, twin = _twins(content)
        notes.append(
            f"{_rows_have(found['repeated'])} exactly the features of another row{_examples(plan, first, twin)}."
        )
        notes += _contradictions(plan, first, twin)
    if found["leaked"]:
        leaked = counted(found["leaked"], "of these stands", "of these stand")
        notes.append(
            f"{leaked} in more than one split, so a test on them flatters the model. "
            "data.duplicates=drop keeps the first of each, refuse stops."
        )
    if plan.identity.groups is not None and (torn := _torn_groups(plan)):
        notes.append(
            f"{counted(torn, 'group (source.group) stands', 'groups (source.group) stand')} in more than one split."
        )
    return notes


def _rows_have(number: int) -> str:
    return counted(number, "row has", "rows have")


def _without_twins(plan: Plan, content: Digests, what: str, onto: Version | None) -> tuple[Rows, list[str]]:
    """The rows of the source without those that repeat an earlier one, or one of the version that they come onto.

    Raises SourceError where such rows are refused, or where nothing is left.
    """
    first, twin = _twins(content)
    known = places(content, onto.read(CONTENT)) >= 0 if onto is not None else np.zeros(len(content), bool)
    said = []
    if len(twin):
        said.append(f"{_rows_have(len(twin))} exactly the features of another row{_examples(plan, first, twin)}")
    if known.any() and onto is not None:
        key = plan.spooled.key(int(plan.order[np.argmax(known)]))
        said.append(f"{_rows_have(int(known.sum()))} exactly the features of a row of {onto.ref} ({key}, for one)")
    if not said:
        return plan.order, []
    if what == "refuse":
        raise SourceError("source", f"{'; '.join(said)}. data.duplicates=drop leaves them out, say takes them all.")
    keep = ~known
    keep[twin] = False
    if not keep.any():
        raise SourceError("source", f"{'; '.join(said)}: nothing is left to take.")
    return plan.order[keep], [f"{'; '.join(said)}: left out.", *_contradictions(plan, first, twin)]


def _twins(content: Digests) -> tuple[Rows, Rows]:
    """Of each row whose content stands before: the first such row, and the row itself, in order of place."""
    _, first, which = np.unique(words(content), return_index=True, return_inverse=True)
    firsts = first[which]
    twin = np.flatnonzero(firsts != np.arange(len(content)))
    return firsts[twin], twin


def _examples(plan: Plan, first: Rows, twin: Rows) -> str:
    """The keys of some pairs, so that somebody can look."""
    a, b = (plan.spooled.keys(plan.order[rows[:_EXAMPLES]]) for rows in (first, twin))
    pairs = "; ".join(f"{x} = {y}" for x, y in zip(a, b, strict=True))
    return f" ({pairs}{'; …' if len(twin) > _EXAMPLES else ''})"


def _contradictions(plan: Plan, first: Rows, twin: Rows) -> list[str]:
    labels = plan.identity.labels
    if labels is None or not len(twin):
        return []
    differ = int((labels[plan.order[first]] != labels[plan.order[twin]]).sum())
    return [f"{differ:,} of these have another label than the first of their kind."] if differ else []


def _torn_groups(plan: Plan) -> int:
    groups = plan.identity.groups
    assert groups is not None, "asked only where there are groups"
    _, which = np.unique(words(groups[plan.order]), return_inverse=True)
    pairs = np.unique(np.stack([which, plan.split_index]), axis=1)
    return int((np.bincount(pairs[0]) > 1).sum())


def _splits(
    store: Store, base: str | None, cfg: DictConfig, spooled: Spooled, identity: Identity, rows: Rows
) -> tuple[dict[str, Any], Index]:
    """The rule, and the number of each row's split, for the rows of the source that are taken."""
    by, fractions = cfg.data.split_by, config.to_plain(cfg.data.splits)
    rule = make_rule(fractions, by)
    if by == "uid":
        return rule, hashed_splits(rule, identity.uids[rows])
    if by == "group":
        if identity.groups is None:
            raise ConfigError("data.split_by", "'group' needs rows that say whose they are.")
        return rule, hashed_splits(rule, identity.groups[rows])
    if by == "stratified":
        if identity.labels is None:
            raise ConfigError("data.split_by", "'stratified' needs labels, and the source has none.")
        before = _before(store, base, rule, identity.uids[rows])
        return rule, stratified_splits(rule, identity.uids[rows], identity.labels[rows], before)
    return _given(cfg, spooled, identity, rows, list(fractions))


def _splits_onto(onto: Version, cfg: DictConfig, spooled: Spooled, identity: Identity, rows: Rows) -> Index:
    """The number of each new row's split in the rule of the version that it comes onto."""
    if onto.contents.rule["by"] != "given":
        labels = None if identity.labels is None else identity.labels[rows]
        groups = None if identity.groups is None else identity.groups[rows]
        return index_of_new(onto, identity.uids[rows], labels, groups)
    rule, index = _given(cfg, spooled, identity, rows, onto.contents.split_names)
    names = rule["splits"]
    if other := [name for name in names if name not in onto.contents.split_names]:
        raise UnknownName(f"split of {onto.ref} called", other[0], onto.contents.split_names)
    return np.array([onto.contents.split_names.index(name) for name in names], np.int64)[index]


def _before(store: Store, base: str | None, rule: dict[str, Any], uids: Digests) -> Index:
    """The split of each row that the branch has already, -1 for new ones; by another rule they all are new."""
    there = np.full(len(uids), -1, np.int64)
    if base is None:
        return there
    version = Version(store, base, base)
    if version.contents.rule != rule:
        return there
    place = places(uids, version.read(UID))
    index = np.empty(version.num_rows, np.int64)
    for number, name in enumerate(version.contents.split_names):
        index[version.split_rows(name)] = number
    there[place >= 0] = index[place[place >= 0]]
    return there


def _given(
    cfg: DictConfig, spooled: Spooled, identity: Identity, rows: Rows, order: list[str]
) -> tuple[dict[str, Any], Index]:
    if cfg.data.splits_from:
        names, index = _listed(Path(cfg.data.splits_from), identity.uids[rows])
    elif identity.splits is not None:
        names, index = identity.split_names, identity.splits[rows]
    else:
        raise ConfigError("data.split_by", "'given' needs rows that say their split, or data.splits_from.")
    if (without := np.flatnonzero(index < 0)).size:
        key = spooled.key(int(rows[without[0]]))
        where = cfg.data.splits_from or "source"
        raise SourceError(
            where, f"the row '{key}' is given no split ({counted(without.size, 'row is', 'rows are')} not)."
        )
    rule = given_rule(names, order)
    return rule, np.array([rule["splits"].index(name) for name in names], np.int64)[index]


def _listed(path: Path, uids: Digests) -> tuple[list[str], Index]:
    """The splits that a csv with the columns key and split names, and the number of each row's."""
    header, lines, cells = read_csv(path)
    for name in ("key", "split"):
        if name not in header:
            raise UnknownName(f"column in {path} called", name, header)
    keys, splits = ([row[header.index(name)] for row in cells] for name in ("key", "split"))
    names = sorted(set(splits))
    if "" in names:
        raise SourceError(path, f"the row '{keys[splits.index('')]}' is given no split.", lines[splits.index("")])
    listed = uids_of_keys(keys)
    _, first, counts = np.unique(words(listed), return_index=True, return_counts=True)
    if (twice := first[counts > 1]).size:
        row = int(twice.min())
        raise SourceError(path, f"the key '{keys[row]}' stands more than once.", lines[row])
    place = places(uids, listed)
    number: npt.NDArray[np.int64] = np.array([names.index(split) for split in splits] or [0], np.int64)
    return names, np.where(place >= 0, number[place], -1)


def _worth_packing(plan: Plan) -> dict[str, Any]:
    """Which columns are packed how, and what is said of it: measured on the first rows as they will lie."""
    row_bytes = max(1, sum(c.dtype.itemsize * int(np.prod(c.shape)) for c in plan.columns.values()))
    rows = plan.order[: max(1, min(plan.group_rows, _SAMPLE_BYTES // row_bytes, 4096))]
    filters: dict[str, Filter] = {}
    notes = []
    for name, values in plan.features(rows).items():
        array = values.values if isinstance(values, Ragged) else values
        kinds: list[Filter] = ["deflate"] if array.dtype.itemsize == 1 else ["shuffle+deflate", "deflate"]
        saved, best = max((saving(array, kind), kind) for kind in kinds)
        packed = saved > _WORTH_SAVING
        notes.append(
            f"packing column '{name}' ({best}) saves {saved:.0%} of {counted(len(rows), 'row')}, so it is "
            f"{'' if packed else 'not '}packed."
        )
        if packed:
            filters[name] = best
    return {"filters": filters, "notes": notes}
