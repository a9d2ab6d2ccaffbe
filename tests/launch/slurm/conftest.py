"""A Slurm of stand-in programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.slurm.sites import ToySite
from tests.launch.slurm.stand_ins import StandIns


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    """squeue and sacct that answer what the test says."""
    programs = StandIns(tmp_path / "programs", monkeypatch)
    yield programs
    programs.forget()


@pytest.fixture
def toy_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToySite:
    """scontrol, sinfo and sacctmgr of a cluster that the test describes."""
    return ToySite(tmp_path / "site", monkeypatch)
