"""Sweeps on Slurm as launch leaves them, whose cells begin and end one by one."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.launch.cells import find_sweep
from hpctool.launch.slurm.queue import Queue
from hpctool.launch.sweeplog import SweepLog
from hpctool.log import decode_entry, encode_entry
from hpctool.rundir import now
from hpctool.track.metrics import to_json
from hpctool.track.sweeps import Overview, look
from tests.track.samples import CODE, Sample

SWEEP = "train-5eee0000"


def ago(seconds: float) -> str:
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Cells:
    """A sweep over optim.lr on Slurm, array 7, submitted an hour ago; cells begin one by one."""

    def __init__(self, root: Path, count: int, mode: str = "array", **base: Any) -> None:
        self.runs = root / "runs"
        self.count = count
        plain: dict[str, Any] = {"resources": {"nodes": 1, "tasks_per_node": 2, "gpus_per_node": 2, "cpus_per_task": 4}}
        plain |= {"cluster": {"max_parallel": 2}, "loop": {"best_metric": "val/accuracy", "best_mode": "max"}} | base
        cells = [
            {"index": i, "run": self.run_id(i), "identity": self.identity(i), "overrides": [f"optim.lr={i / 100}"]}
            | {"base": 0, "set": {}}
            for i in range(count)
        ]
        folder = self.runs / "sweeps" / SWEEP
        folder.mkdir(parents=True)
        shared = {"format": 1, "id": SWEEP, "job": "train", "name": "train", "created": now(), "by": "me@here"}
        shared |= {"overrides": [], "varied": ["optim.lr"], "bases": [plain], "cells": cells}
        files.write_json(folder / "sweep.json", shared)
        self.log = SweepLog(folder)
        if mode:
            number = self.log.submitting(range(count), mode, CODE, count)
            self.log.submitted(number, "7")
            for path in sorted((folder / "log").iterdir()):  # as if it had been an hour ago
                body = decode_entry(path, path.read_bytes())
                path.write_bytes(encode_entry(body | {"time": ago(3600)}))

    def identity(self, index: int) -> str:
        return files.sha256_bytes(str(index).encode())

    def run_id(self, index: int) -> str:
        return f"train-{self.identity(index)[:8]}"

    def begin(self, index: int, since_s: float = 600) -> Sample:
        run = Sample(self.runs, self.identity(index), sweep=SWEEP, cell=index, varied=["optim.lr"])
        return run.begin(time=ago(since_s), world_size=2, where="slurm", slurm_job_id=f"7_{index}", host="n1")

    def complete(self, index: int, accuracy: float, took_s: float = 300) -> None:
        run = self.begin(index, took_s)
        metrics = {"val/accuracy": to_json(accuracy), "val/loss": to_json(1 - accuracy)}
        result = {"format": 1, "state": "completed", "cause": "", "step": 100, "attempts": 1, "metrics": metrics}
        files.write_json(run.rundir.result_json, {**result, "started": ago(took_s), "ended": ago(0)})
        run.end("completed", "", 100)

    def look(self) -> Overview:
        return look(self.runs, find_sweep(self.runs, SWEEP), Queue())


def queue_of(*lines: str) -> tuple[str, ...]:
    """Lines of squeue: `0 RUNNING`, `2-9 PENDING Priority`."""
    found = []
    start = (datetime.datetime.now() - datetime.timedelta(seconds=700)).strftime("%Y-%m-%dT%H:%M:%S")
    for line in lines:
        cells, state, *reason = line.split()
        name = f"7_[{cells}]" if "-" in cells else f"7_{cells}"
        when = start if state == "RUNNING" else "N/A"
        found.append(f"{name}|{state}|1:00:00|0:00|{when}|n1|{reason[0] if reason else 'None'}")
    return tuple(found)
