"""The end of a sweep as a whole is told once, by whoever ends last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpctool.launch import sweepend
from hpctool.launch.cells import SWEEP_FORMAT, sweeps_folder
from hpctool.launch.sweeplog import LOCAL, SweepLog
from hpctool.rundir import RunDir, create_run, now


def a_sweep(runs: Path, number: int) -> list[RunDir]:
    """A sweep of so many cells, all of which have a folder and run."""
    folder = sweeps_folder(runs) / "toy-00000000"
    folder.mkdir(parents=True)
    found = []
    cells: list[dict[str, Any]] = []
    for index in range(number):
        record = {"name": "toy", "identity": f"{index:x}" * 64, "job": "toy", "sweep": folder.name, "cell": index}
        found.append(create_run(runs, record, {}))
        cells.append({"index": index, "run": found[-1].id, "identity": record["identity"]})
        found[-1].ledger.append({"kind": "begun", "attempt": 1, "where": "slurm", "time": now()})
    (folder / "sweep.json").write_text(json.dumps({"format": SWEEP_FORMAT, "id": folder.name, "cells": cells}))
    SweepLog(folder).submitting(range(number), LOCAL, {}, 2)
    return found


def end(run: RunDir, state: str) -> None:
    run.ledger.append({"kind": "ended", "attempt": 1, "state": state, "cause": "", "step": 1, "time": now()})


def test_only_the_last_cell_ends_the_sweep_and_only_once_until_it_is_submitted_again(tmp_path: Path) -> None:
    cells = a_sweep(tmp_path, 3)
    for run in cells[:2]:
        end(run, "completed")
        assert sweepend.ended(tmp_path, "toy-00000000") is None
    end(cells[2], "failed")
    told = sweepend.ended(tmp_path, "toy-00000000")
    assert told is not None
    assert (told.state, told.text) == ("failed", "3 cells: 2 completed, 1 failed")
    assert sweepend.ended(tmp_path, "toy-00000000") is None
    SweepLog(sweeps_folder(tmp_path) / "toy-00000000").submitting([2], LOCAL, {}, 2)
    assert sweepend.ended(tmp_path, "toy-00000000") is not None
