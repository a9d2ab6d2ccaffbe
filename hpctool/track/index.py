"""The index of runs: the rows of runs that are over, remembered, so that a table of ten thousand opens few files.

`runs/.index/` is a log of facts. `sealed` has the rows of runs that have ended, and the inode of each one's folder;
`opened` (written by whoever starts a run again, see rundir.py) takes one back. It is a cache and never believed
against a folder: folders it does not know are read, rows without a folder are left out and forgotten, a folder with
another inode was made anew, and each reading compares some rows with their folders: the newest (somebody may have made
a folder anew, and have got the same inode) and some at random. Where it cannot be written it is done without.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import HpctoolError
from hpctool.log import Log
from hpctool.rundir import INDEX_FORMAT, OVER, RunDir, index_folder
from hpctool.track.metrics import from_json, to_json
from hpctool.track.row import Row

#: rows in one entry: some 700 bytes each
ROWS_PER_ENTRY = 1000
#: rows that each reading compares with their folders: half of them the newest, half at random
NUM_COMPARED = 20
#: of a row, what is kept: the rest is found again
_KEPT = (
    *("id", "name", "job", "state", "cause", "attempts", "step", "param_digest", "slurm_job_id", "data_commit"),
    *("created", "by", "sweep", "cell", "changed", "choices"),
)


@dataclass
class Index:
    """What the log says: a row for each run that is over, and where the log ended when it was read."""

    runs: Path
    rows: dict[str, Row] = field(default_factory=dict)
    inodes: dict[str, int] = field(default_factory=dict)
    last: int = 0

    @classmethod
    def read(cls, runs: Path) -> Index:
        """Read the log; what cannot be read of it is read from the folders instead."""
        index = cls(runs)
        log = Log(index_folder(runs))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a cache that is damaged is no news: the runs are read instead
                bodies = [entry.body for entry in log.entries()]
                index.last = log.top  # by the same listing, so that whatever comes later makes `seal` give up
        except (HpctoolError, OSError):
            return index
        newest: dict[str, dict[str, Any]] = {}
        for body in bodies:
            if body.get("format") != INDEX_FORMAT:
                continue
            if body["kind"] == "sealed":
                for told in body["rows"]:
                    newest.pop(told["id"], None)  # so that the newest stand last
                    newest[told["id"]] = told
            elif body["kind"] == "opened":
                for run_id in body["ids"]:
                    newest.pop(run_id, None)
        for run_id, told in newest.items():
            index.rows[run_id], index.inodes[run_id] = _unpacked(runs, told), told["inode"]
        return index

    def seal(self, rows: Sequence[Row], inodes: dict[str, int]) -> None:
        """Remember rows of runs that are over, unless something happened since the log was read: the next one will."""
        told = [one for row in rows if _can_be_kept(one := _packed(row, inodes[row.id]))]
        log = Log(index_folder(self.runs))
        for start in range(0, len(told), ROWS_PER_ENTRY):
            body = {"kind": "sealed", "format": INDEX_FORMAT, "rows": told[start : start + ROWS_PER_ENTRY]}
            try:
                if not log.cas(body, after=self.last):
                    return
            except (HpctoolError, OSError):  # somebody else's folder, a full disk
                return
            self.last += 1


def suspects(known: Sequence[str]) -> list[str]:
    """Some of the ids that are known, in the order in which they were sealed, to be compared with their folders."""
    newest = known[len(known) - NUM_COMPARED // 2 :] if len(known) > NUM_COMPARED else known
    rest = known[: len(known) - len(newest)]
    return [*newest, *random.sample(rest, min(NUM_COMPARED // 2, len(rest)))]


def folders(runs: Path) -> dict[str, int]:
    """The folders that may be runs, with their inodes: one listing, nothing is opened."""
    try:
        with os.scandir(runs) as found:
            return {one.name: one.inode() for one in found if one.name[0] != "." and one.name != "sweeps"}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def may_be_sealed(row: Row) -> bool:
    """Whether a row will stay as it is until somebody starts its run again."""
    return row.is_final and row.state in OVER and not row.problems


def same(ours: Row, theirs: Row) -> bool:
    """Whether two rows say the same of a run."""
    return _packed(ours, 0) == _packed(theirs, 0)


def _packed(row: Row, inode: int) -> dict[str, Any]:
    metrics = {name: to_json(value) for name, value in row.metrics.items()}
    return {**{name: getattr(row, name) for name in _KEPT}, "metrics": metrics, "plain": row.config, "inode": inode}


def _unpacked(runs: Path, told: dict[str, Any]) -> Row:
    kept = {name: told[name] for name in _KEPT}
    metrics = {name: from_json(value) for name, value in told["metrics"].items()}
    return Row(**kept, metrics=metrics, plain=told["plain"], rundir=RunDir(runs / told["id"]), is_final=True)


def _can_be_kept(told: dict[str, Any]) -> bool:
    try:
        files.canonical_json(told)
    except (TypeError, ValueError):  # a date or a NaN in somebody's configuration
        return False
    return True
