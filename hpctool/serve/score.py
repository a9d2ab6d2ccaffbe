"""A dataset version through a bundle into the journal, in the form that a server writes. The ranks share the rows.

The writer's name says dataset commit, split, bundle and source, and a prediction's number is the row's place in the
split: scoring again, on any number of ranks, finds what is there and adds what is missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpctool import files
from hpctool.data.images import ImageForm
from hpctool.data.manifest import UID
from hpctool.data.reader import Reader, Rows
from hpctool.data.usage import begin_use
from hpctool.data.version import Version, open_together
from hpctool.errors import Stopped
from hpctool.export import aliases
from hpctool.export.bundle import Bundle
from hpctool.export.verify import load_verified
from hpctool.launch import signals
from hpctool.rundir import RunDir
from hpctool.serve.journal import REQUEST_BYTES, SOURCE_BYTES, Journal, Origin, write_segment
from hpctool.serve.schema import ScoreConfig
from hpctool.world import Array, World

#: Consecutive places in the split, [start, stop).
Block = tuple[int, int]


@dataclass(frozen=True)
class _Task:
    """What is scored, with what, and as whom."""

    cfg: ScoreConfig
    version: Version
    bundle: Bundle
    rows: Rows
    origin: Origin

    @property
    def folder(self) -> Path:
        return Path(self.cfg.paths.journals) / self.bundle.name

    @property
    def writer(self) -> str:
        what = [self.version.commit, self.cfg.data.split, self.origin.bundle, self.cfg.score.source]
        return files.sha256_bytes(files.canonical_json(what))[:8]


def score(rundir: RunDir, world: World, cfg: ScoreConfig) -> dict[str, Any]:
    """Score what is not in the journal yet, and give what result.json keeps. Collective: all ranks must call it.

    Raises Stopped where the ranks were told to stop, CorruptError, ParityError, OSError.
    """
    task = _task(rundir, cfg, world)
    if world.is_main:
        begin_use(task.version, rundir, "score", {cfg.data.split or "": None})
    blocks = [(int(a), int(b)) for a, b in world.on_main(lambda: missing_blocks(task))]
    num_missing = sum(stop - start for start, stop in blocks)
    if world.is_main:
        print(f"{task.bundle} scores {num_missing} of {len(task.rows)} rows of {task.version.ref}", flush=True)
    done = _score_blocks(task, blocks[world.rank :: world.size])
    num_new = int(world.reduce(np.array([done], np.int64))[0])
    num_left = num_missing - num_new
    if num_left:
        cause = next(cause for cause in world.gather(signals.stop_cause()) if cause)
        raise Stopped(cause, len(task.rows) - num_left)
    return {
        "step": len(task.rows),
        "metrics": {"score/num_rows": len(task.rows), "score/num_new": num_new},
        "data_commit": task.version.commit,
        "outputs": {"journal": str(task.folder), "model": str(task.bundle), "writer": task.writer},
    }


def missing_blocks(task: _Task) -> list[Block]:
    """The places that no whole segment of this writer holds, in blocks of at most `segment_rows`."""
    missing = np.ones(len(task.rows), np.bool_)
    for segment in Journal(task.folder).segments():
        if segment.writer == task.writer:
            missing[segment.first : segment.first + segment.rows] = False
    # Where runs of missing places begin and end.
    edges = np.flatnonzero(np.diff(missing, prepend=False, append=False)).reshape(-1, 2).tolist()
    size = task.cfg.score.segment_rows
    return [(i, min(i + size, stop)) for start, stop in edges for i in range(start, stop, size)]


def _task(rundir: RunDir, cfg: ScoreConfig, world: World) -> _Task:
    version = open_together(Path(cfg.paths.datasets), cfg.data.name, world)
    bundle = aliases.resolve(Path(cfg.paths.models), cfg.score.model)
    rows = np.arange(version.num_rows) if cfg.data.split is None else version.split_rows(cfg.data.split)
    origin = Origin(str(bundle), bundle.manifest()["digest"], "score", rundir.id, version.commit)
    return _Task(cfg, version, bundle, rows, origin)


def _score_blocks(task: _Task, blocks: list[Block]) -> int:
    """Score one rank's share, a segment each, until done or told to stop; the number of rows."""
    if not blocks:
        return 0
    torch.set_num_threads(task.cfg.num_threads)
    loaded = load_verified(task.bundle.path)
    column = loaded.signature.inputs[0].name
    done = 0
    images = {}
    if task.version.columns[column].encoding is not None:
        images[column] = ImageForm(*loaded.signature.inputs[0].shape[1:])
    with Reader(task.version, [column, UID], images=images) as reader:
        for start, stop in blocks:
            if signals.stop_requested():
                break
            found = reader.gather(task.rows[start:stop])
            size = task.cfg.score.batch_rows
            answers = [loaded(found[column][i : i + size]) for i in range(0, stop - start, size)]
            outputs = {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}
            write_segment(task.folder, task.writer, task.origin, _columns(task, start, found, column, outputs))
            done += stop - start
    return done


def _columns(
    task: _Task, start: int, found: dict[str, Array], column: str, outputs: dict[str, Array]
) -> dict[str, Array]:
    count = len(found[column])
    return {
        "number": np.arange(start, start + count),
        "time": np.full(count, time.time()),
        "request": np.array([uid.tobytes().hex().encode() for uid in found[UID]], f"S{REQUEST_BYTES}"),
        "source": np.full(count, task.cfg.score.source.encode(), f"S{SOURCE_BYTES}"),
        "input": found[column],
        **outputs,
    }
