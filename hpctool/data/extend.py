"""Extend: the rows of a source onto a branch that is there, as row groups of their own (`data.append=true`).

The branch's schema, classes and rule of splits count; no old row is written anew or moves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import DictConfig

from hpctool import config, files
from hpctool.data.append import extended
from hpctool.data.commit import Commit, Draft
from hpctool.data.identity import Digests, places
from hpctool.data.ingest import Plan
from hpctool.data.layout import check_name
from hpctool.data.manifest import GROUP, LABEL, NO_LABEL, UID, Column, RowGroup
from hpctool.data.sources.base import RowSource
from hpctool.data.splits import split_rows
from hpctool.data.spool import Identity, Spooled
from hpctool.data.stats import SplitMoments
from hpctool.data.store import Store
from hpctool.data.version import Version
from hpctool.errors import InputError, counted, listing


def take_over(source: RowSource, onto: Version) -> None:
    """Let the classes of a version count for what is read. Raises InputError on a class that it has not."""
    if other := [name for name in source.classes or [] if name not in onto.classes]:
        raise InputError(f"{onto.ref} has the classes {listing(onto.classes)}, and the source has '{other[0]}'.")
    if LABEL in onto.columns:
        source.classes = onto.classes
    if any(column.finite for column in onto.columns.values()):
        source.allow_nan = False


def fitting(onto: Version, columns: dict[str, Column], identity: Identity) -> dict[str, Column]:
    """The version's features, where the source's are the same; labels and groups as the version has them.

    Raises InputError with both sides where they differ.
    """
    for name in sorted({*columns, *onto.features}):
        there, given = (
            found if found and found.role == "feature" else None
            for found in (onto.columns.get(name), columns.get(name))
        )
        if there is None or given is None or replace(there, finite=given.finite) != given:
            raise InputError(f"Column '{name}' of {onto.ref} is {_said(there)}, and the source has {_said(given)}.")
    num_rows = len(identity.uids)
    if LABEL not in onto.columns and identity.labels is not None:
        raise InputError(f"{onto.ref} has no labels, and the source has: source.label=null leaves them out.")
    if LABEL in onto.columns and identity.labels is None:
        identity.labels, identity.classes = np.full(num_rows, NO_LABEL, np.int64), onto.classes
    if GROUP in onto.contents.columns and identity.groups is None:
        raise InputError(f"{onto.ref} knows whose each row is, and the source does not say it: name source.group.")
    if GROUP not in onto.contents.columns:
        identity.groups = None
    return {name: onto.columns[name] for name in columns}


def check_new(onto: Version, spooled: Spooled, uids: Digests) -> None:
    """Raises InputError where some of the rows are there and some are new; all there may be the same append again."""
    there = places(uids, onto.read(UID)) >= 0
    if there.any() and not there.all():
        raise _known(onto, spooled.key(int(np.argmax(there))), int(there.sum()))


def commit(
    store: Store, branch: str, plan: Plan, groups: list[RowGroup], moments: SplitMoments, cfg: DictConfig, run: str
) -> Commit:
    """Commit the rows onto the branch as it is now; the commit that holds exactly these already where there is one.

    Raises UnknownName where the branch is gone, InputError on keys that it has, or where its schema has changed
    meanwhile; it then is as it was.
    """
    kind = str(cfg.source.get("kind") or cfg.source.get("_target_"))
    if cfg.data.tag is not None:
        check_name("tag", cfg.data.tag)
    operation: dict[str, Any] = {
        "kind": "append",
        "num_rows": len(plan.order),
        "origin": kind,
        "source": config.to_plain(cfg.source),
        "rows": files.sha256_bytes(files.canonical_json([o.id for group in groups for o in group.objects])),
    }
    uids = plan.identity.uids[plan.order]
    labels = plan.identity.labels[plan.order] if plan.identity.labels is not None else None
    added = split_rows(plan.rule, plan.split_index)

    def decide(tip: Commit | None) -> Draft | Commit:
        if tip is None:  # deleted meanwhile
            raise store.unknown_branch(branch)
        current = Version(store, branch, tip.id)
        for before in store.history(tip.id):
            if before.operation.get("rows") == operation["rows"]:
                return before
        if current.contents.columns != plan.schema() or current.contents.rule != plan.rule:
            raise InputError(f"{current.ref} has other columns or splits since a moment ago; append again.")
        there = places(uids, current.read(UID)) >= 0
        if there.any():
            raise _known(current, plan.spooled.key(int(plan.order[np.argmax(there)])), int(there.sum()))
        if cfg.data.tag is not None:
            store.check_free(cfg.data.tag)
        manifest = extended(current, groups, added, labels, moments)
        return Draft(store.put_manifest(manifest), cfg.data.message or f"append {kind}", operation, run=run)

    made = store.commit(branch, decide)
    if cfg.data.tag is not None:
        store.create_tag(cfg.data.tag, made.id)
    return made


def notes_of(plan: Plan, onto: Version, made: Version) -> list[str]:
    """What people should hear of rows that came onto a version."""
    notes = [f"{counted(len(plan.order), 'row of it is', 'rows of it are')} from this source."]
    before, after = (version.contents.stats["duplicates"]["repeated"] for version in (onto, made))
    if after > before:
        twins = counted(after - before, "of these has", "of these have")
        notes.append(f"{twins} exactly the features of another row; see data.duplicates.")
    return notes


def _known(version: Version, key: str, count: int) -> InputError:
    more = f", and {count - 1:,} more are" if count > 1 else ""
    return InputError(f"The row with the key '{key}' is in {version.ref} already{more}.")


def _said(column: Column | None) -> str:
    if column is None:
        return "not there"
    names = f" ({listing(column.names)})" if column.names else ""
    return f"{column.dtype} {column.form or 'of one number'}{names}"
