"""A run with an attempt that has begun, and how another begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool.rundir import RunDir, create_run

Begin = Callable[[RunDir], RunDir]


@pytest.fixture
def begin() -> Begin:
    """Begin the next attempt of a run, as the task inside a job does."""

    def next_attempt(run: RunDir) -> RunDir:
        attempt = run.story().attempt + 1
        run.ledger.append({"kind": "begun", "attempt": attempt, "step": 0})
        return RunDir(run.path, attempt)

    return next_attempt


@pytest.fixture
def run(tmp_path: Path, begin: Begin) -> RunDir:
    """The first attempt of a new run."""
    return begin(create_run(tmp_path / "runs", {"identity": "ab" * 32, "job": "train", "name": "train"}, {}))
