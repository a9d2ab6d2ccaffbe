"""Rows of many runs: all that lie in a folder, and the cells that have not started; chosen, sorted and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hpctool.config import flatten
from hpctool.errors import UnknownName
from hpctool.launch import cells
from hpctool.launch.overview import unbegun
from hpctool.launch.slurm.queue import Queue
from hpctool.rundir import RunDir, forget
from hpctool.track.index import Index, folders, may_be_sealed, same, suspects
from hpctool.track.row import FIELDS, Row, noting, read_rows, take_record
from hpctool.track.underway import Underway


def list_rows(runs: Path, queue: Queue | None = None, scan: bool = False) -> list[Row]:
    """All runs below a folder, and the cells of its sweeps that have not started; newest first.

    Slurm is asked once at most, and only if some run or cell is under way there. Runs that are over come from the
    index, unless `scan` says to read all of them.
    """
    rows = _begun_rows(runs, queue, scan)
    for sweep_id in cells.list_sweep_ids(runs):
        problems: list[str] = []
        with noting(problems):
            for row in _cell_rows(runs, sweep_id, rows, queue):
                row.sweep = row.sweep or sweep_id
        if problems:
            rows[sweep_id] = Row(sweep_id, cause="sweep.json cannot be read", problems=problems, sweep=sweep_id)
    # Cells of one sweep have one time; they stand in the order of their index.
    ordered = sorted(rows.values(), key=lambda row: row.cell or 0)
    return sorted(ordered, key=lambda row: row.created, reverse=True)


def _begun_rows(runs: Path, queue: Queue | None, scan: bool) -> dict[str, Row]:
    """The rows of all runs that have a folder, by id; those that are over and new to the index go into it."""
    inodes = folders(runs)
    index = Index.read(runs)
    known = {} if scan else {name: row for name, row in index.rows.items() if inodes.get(name) == index.inodes[name]}
    compared = suspects(list(known))
    underway = Underway(runs) if scan else Underway.read(runs)
    # A folder without run.json is what a submitter that was killed has left.
    open_ = [name for name in inodes if name not in known]
    unknown = [name for name in open_ if name in underway.known or os.path.exists(runs / name / "run.json")]
    rundirs = [RunDir(runs / name) for name in [*unknown, *compared]]
    fresh = {row.id: row for row in read_rows(rundirs, queue, underway)}
    wrong = [name for name in compared if not same(known[name], fresh[name])]
    news = [fresh[name] for name in (*unknown, *wrong) if may_be_sealed(fresh[name])]
    index.seal(news, inodes)
    underway.save()
    forget(runs, [name for name in index.rows if name not in inodes or (name in wrong and fresh[name] not in news)])
    for name in wrong:
        fresh[name].problems.append("the index of runs said otherwise; it was mended.")
    return known | fresh


# ---------------------------------------------------------------------------------------------- choosing and sorting


def select(rows: Iterable[Row], *, states: Sequence[str] = (), job: str = "", sweep: str = "") -> list[Row]:
    """The rows that fit; `sweep` is the id of a sweep or its beginning. Raises UnknownName where none is called so."""
    rows = list(rows)
    if job and not any(row.job == job for row in rows):
        raise UnknownName("run of a job called", job, sorted({row.job for row in rows if row.job}))
    if sweep and not any((row.sweep or "").startswith(sweep) for row in rows):
        raise UnknownName("sweep", sweep, sorted({row.sweep for row in rows if row.sweep}))
    return [
        row
        for row in rows
        if (not states or row.state in states)
        and (not job or row.job == job)
        and (not sweep or (row.sweep or "").startswith(sweep))
    ]


def sort_rows(rows: Sequence[Row], key: str) -> list[Row]:
    """Sorted by a column; `-` before it puts the largest first. Rows without a value, or with NaN, stand last."""
    name, down = key.removeprefix("-"), key.startswith("-")
    check_columns(rows, [name])
    has = [row for row in rows if _is_there(row.value(name))]
    has.sort(key=lambda row: _sortable(row.value(name)), reverse=down)
    return has + [row for row in rows if not _is_there(row.value(name))]


def check_columns(rows: Sequence[Row], names: Iterable[str]) -> None:
    """Raise UnknownName for a column that no row has, with the nearest names."""
    for name in names:
        if not rows or name in FIELDS or any(name in row.metrics or name in row.changed for row in rows):
            continue
        if not any(name in row.config for row in rows):
            known = [key for row in rows for key in (*row.metrics, *row.changed, *row.config)]
            raise UnknownName("column", name, sorted({*known, *FIELDS}))


def _is_there(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))


def _sortable(value: Any) -> tuple[int, Any]:
    # Numbers compare as numbers, and stand before words.
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _cell_rows(runs: Path, sweep_id: str, rows: dict[str, Row], queue: Queue | None) -> list[Row]:
    """The rows of a sweep's cells; those of cells that have not started are made and added."""
    sweep = cells.read_sweep(cells.sweeps_folder(runs) / sweep_id)
    body = sweep.body
    shared = {key: body.get(key) for key in ("name", "job", "created", "by", "varied")}
    waiting = {cell["index"]: cell for cell in body["cells"] if cell["run"] not in rows}
    for index, story in unbegun(runs, sweep, sorted(waiting), queue).items():
        cell = waiting[index]
        row = Row(cell["run"], state=story.state, cause=story.cause, slurm_job_id=story.slurm_job_id, plain={})
        take_record(row, {**shared, **cell, "sweep": sweep_id, "cell": index})
        if "base" in cell:
            row.plain = flatten(body["bases"][cell["base"]]) | cell["set"]
        rows[row.id] = row
    return [rows[cell["run"]] for cell in body["cells"]]
