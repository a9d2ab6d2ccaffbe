"""Exposure: which runs saw a row, in which steps and with which label.

Nothing is kept for this but a line per run: the order of samples is a pure function of what the run's record says, so
the steps are computed. How far a run came is read from its folder, where that can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.data import order as orders
from hpctool.data.labels import class_name
from hpctool.data.manifest import LABEL
from hpctool.data.refs import tips
from hpctool.data.store import Store, short
from hpctool.data.usage import OWN, Use, uses
from hpctool.data.version import Version
from hpctool.errors import CorruptError, HpctoolError, InputError, UnknownName
from hpctool.rundir import RunDir

_COLLECTED = "its version was collected (or lost: hpctool data verify), so whether it had the row cannot be said"
_CHUNK = 1 << 20  # positions of an epoch that are computed at a time


@dataclass(frozen=True)
class Standing:
    """How a run stands: its state, and the newest step that is known of; None where its folder cannot be read."""

    state: str | None
    step: int | None
    #: (the first step of a stretch, the position in the stream of samples where that begins): more than one where a
    #: rollback passed over samples
    stretches: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Exposure:
    """A run that used a row. `steps` are those that saw it, up to the step that is known of; None: it cannot be said.

    An evaluation takes every row of its split once, so it has no steps.
    """

    run: str
    job: str
    folder: str
    commit: str
    split: str
    label: str
    state: str | None
    step: int | None
    steps: list[int] | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def standing(use: Use) -> Standing:
    """How the run stands, as its folder says."""
    rundir = RunDir(Path(use.folder))
    try:
        rundir.record()
        story, result = rundir.story(), rundir.result() or {}
    except (HpctoolError, OSError):
        return Standing(None, None)
    batch = use.order.global_batch_size if use.order else 0
    stretches = [(1, 0)]
    for fact in story.of_kind("rollback"):
        stretches = [one for one in stretches if one[0] <= fact["to_step"]]
        stretches.append((fact["to_step"] + 1, fact["consumed"] + batch))
    return Standing(story.state, max(story.step, int(result.get("step") or 0)), tuple(stretches))


def runs_of(store: Store, commit: str | None = None) -> list[Use]:
    """The runs that used a version, or any version, oldest first. Raises CorruptError on a record that is damaged."""
    found = []
    for use in uses(store):
        if isinstance(use, HpctoolError):
            raise use
        if commit is None or use.commit == commit:
            found.append(use)
    return sorted(found, key=lambda use: (use.time, use.run))


def exposures(store: Store, uid: str) -> Iterator[Exposure]:
    """The runs that had the row in a split that they used, and those whose version is gone, with a note.

    Raises InputError, CorruptError, UnknownName where no version has it.
    """
    versions: dict[str, Version] = {}
    found = False
    for use in runs_of(store):
        try:
            if use.commit not in versions:
                versions[use.commit] = Version(store, short(use.commit), use.commit)
            version = versions[use.commit]
            row = _row(version, uid)
        except CorruptError as error:
            if Path(error.path).exists():
                raise
            found = True
            yield _exposure_to_what_is_gone(use)
            continue
        if row >= 0:
            found = True
            rows = version.split_rows(use.split) if use.split else np.arange(version.num_rows)
            index = np.flatnonzero(rows == row)
            if index.size:
                yield _exposure(use, version, row, int(index[0]))
    whole = [tip for tip in tips(store) if not tip.problem]
    if not found and not any(_row(Version(store, tip.ref, tip.commit), uid) >= 0 for tip in whole):
        raise UnknownName(f"row of dataset '{store.name}' called", uid, [], f"See: hpctool data show {store.name}.")


def _row(version: Version, uid: str) -> int:
    try:
        return int(version.find([uid])[0])
    except ValueError as error:
        raise InputError(f"'{uid}' cannot be the uid of a row: {error}.") from error


def _exposure(use: Use, version: Version, row: int, index: int) -> Exposure:
    label = ""
    if LABEL in version.columns:
        label = class_name(version, int(version.read(LABEL, np.array([row]))[0]))
    stands = standing(use)
    steps, note = _steps(use, version.splits[use.split] if use.split else version.num_rows, index, stands)
    return Exposure(
        *(use.run, use.job, use.folder, use.commit, use.split, label, stands.state, stands.step), steps, note
    )


def _exposure_to_what_is_gone(use: Use) -> Exposure:
    stands = standing(use)
    said = (use.run, use.job, use.folder, use.commit, use.split, "", stands.state, stands.step)
    return Exposure(*said, None, _COLLECTED)


def _steps(use: Use, num_rows: int, index: int, stands: Standing) -> tuple[list[int] | None, str]:
    """The steps taken that saw sample `index` of the split, counted from 1; and why that is unknown.

    Steps that a rollback took back do not count: the model is as if they had not been.
    """
    if use.order is None:
        return None, "each row once"
    if use.order.version == OWN:
        return None, "its own Dataset chose the rows"
    if use.order.version != orders.VERSION:
        return None, f"its order is of version {use.order.version}, this hpctool computes {orders.VERSION}"
    if stands.step is None:
        return None, "how far it came cannot be read"
    order, batch = orders.Order(num_rows, use.order.seed, use.order.window), use.order.global_batch_size
    ends = [first - 1 for first, _ in stands.stretches[1:]] + [stands.step]
    steps = []
    for (first, begin), last in zip(stands.stretches, ends, strict=True):
        end = begin + (min(last, stands.step) - first + 1) * batch
        for epoch in range(begin // num_rows, -(-end // num_rows)):
            position = epoch * num_rows + _position(order, epoch, index)
            if begin <= position < end:
                steps.append(first + (position - begin) // batch)
    return steps, ""


def _position(order: orders.Order, epoch: int, index: int) -> int:
    for start in range(0, order.num_rows, _CHUNK):
        found = np.flatnonzero(order.rows(epoch, start, min(start + _CHUNK, order.num_rows)) == index)
        if found.size:
            return start + int(found[0])
    raise AssertionError("an order has every sample once in each epoch")
