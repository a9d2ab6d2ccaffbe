"""Run folders as launch and train leave them, made step by step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.launch.result import own_process, write_ended
from hpctool.rundir import RunDir, create_run, now
from hpctool.track.metrics import MetricWriter, read_metrics, summary
from hpctool.world import World

COMMIT = "3fa9" * 16
CODE = {"commit": "9f2c1e0a" * 5, "dirty": False, "snapshot": "abc123def456", "patch_sha256": ""}
ENVIRONMENT = "# Python 3.11.2 at /usr/bin/python\n# modules: none\nnumpy==2.1.0\ntorch==2.13.0\n"


class Sample:
    """A run folder; each call adds what a real run would write at that point."""

    def __init__(
        self, runs: Path, digits: str = "ab", *, lr: float = 0.01, environment: str = ENVIRONMENT, **record: Any
    ) -> None:
        full = {
            "identity": (digits * 64)[:64],
            "job": "train",
            "name": record.get("job", "train"),
            "inputs": [{"kind": "dataset", "name": "digits@main", "id": COMMIT}],
            "choices": {"model": "cnn", "cluster": "local"},
            "overrides": ["model=cnn", f"optim.lr={lr}", "cluster=local"],
            "varied": [],
            "sweep": None,
            "cell": None,
            "code": CODE,
            "cwd": "/project",
        } | record
        config = (
            f"name: {full['name']}\nseed: 0\nmodel:\n  width: 8\noptim:\n  lr: {lr}\ntrack:\n  tensorboard: false\n"
        )
        self.rundir = create_run(runs, full, {"config.yaml": config, "environment.txt": environment})

    @property
    def id(self) -> str:
        return self.rundir.id

    def submit(self, slurm_job_id: str = "") -> Sample:
        where = "slurm" if slurm_job_id else "local"
        self.rundir.ledger.append({"kind": "submitted", "where": where, "slurm_job_id": slurm_job_id})
        return self

    def begin(self, resumed: int | None = None, **more: Any) -> Sample:
        """Begin the next attempt, in this process."""
        self.rundir = RunDir(self.rundir.path, self.rundir.attempt + 1)
        body = {"kind": "begun", "attempt": self.rundir.attempt, "where": "local", "time": now(), "world_size": 1}
        body |= {"nodes": ["node17"], "slurm_job_id": "", **own_process(), **more}
        self.rundir.ledger.append(body)
        if resumed is not None:
            self.rundir.ledger.append({"kind": "resumed", "attempt": self.rundir.attempt, "step": resumed})
        return self

    def log(self, steps: Iterable[int], accuracy: float = 0.9, noise: float = 0.0) -> Sample:
        with MetricWriter(self.rundir, World()) as writer:
            for step in steps:
                writer.log(step, {"train/loss": math.exp(-step / 300) + noise, "val/accuracy": accuracy})
        return self

    def checkpoint(self, step: int) -> Sample:
        folder = self.rundir.checkpoint(step)
        folder.mkdir(parents=True)
        (folder / "state.json").write_bytes(b"x" * 1000)
        path = str(folder.relative_to(self.rundir.path))
        body = {"kind": "checkpoint", "attempt": self.rundir.attempt, "step": step, "path": path, "digest": "dd" * 32}
        self.rundir.ledger.append(body)
        return self

    def say(self, text: str, rank: int = 0) -> Sample:
        path = self.rundir.log(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(text)
        return self

    def complete(self, digest: str = "5a" * 32) -> Sample:
        curves = read_metrics(self.rundir)
        found = summary(curves)
        step = max((points[-1][0] for points in curves.values()), default=0)
        metrics = {name: values["last"] for name, values in found.items()}
        outcome = {"step": step, "metrics": metrics, "param_digest": digest, "data_commit": COMMIT}
        write_ended(self.rundir, "completed", "", outcome)
        return self.end("completed", "", step)

    def fail(self, message: str, rank: int = 0, step: int = 0, kind: str = "ValueError", time: str = "") -> Sample:
        """Leave a rank's error; `end` says that the attempt is over."""
        path = self.rundir.error(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        error = {"rank": rank, "type": kind, "message": message, "traceback": f"Traceback …\n{kind}: {message}\n"}
        files.write_json(path, {**error, "step": step, "host": "node17", "time": time or now()})
        return self

    def end(self, state: str, cause: str, step: int = 0) -> Sample:
        body = {"kind": "ended", "attempt": self.rundir.attempt, "state": state, "cause": cause, "step": step}
        self.rundir.ledger.append({**body, "exit_code": 0, "time": now()})
        return self


def sweep_of(runs: Path, sweep_id: str, identities: list[str]) -> None:
    """A sweep.json with a cell for each identity, over optim.lr = 0.001, 0.002 …"""
    cells = [
        {"index": index, "run": f"train-{identity[:8]}", "identity": identity, "overrides": [f"optim.lr={lr}"]}
        for index, identity in enumerate(identities)
        for lr in [(index + 1) / 1000]
    ]
    folder = runs / "sweeps" / sweep_id
    folder.mkdir(parents=True)
    shared = {"format": 1, "id": sweep_id, "job": "train", "name": "train", "created": now(), "by": "me@here"}
    files.write_json(folder / "sweep.json", {**shared, "overrides": [], "varied": ["optim.lr"], "cells": cells})
