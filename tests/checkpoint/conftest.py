"""A run with an attempt that has begun, and how another begins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, or of the parameter's bytes; only root can have one."""
    size = getattr(request, "param", 1 << 20)
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, as a program that is called own.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["own.py"])
    return tmp_path
