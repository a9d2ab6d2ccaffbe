"""A site of stand-in programs; what answers for the queue is in tests/conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.slurm.sites import ToySite


@pytest.fixture
def toy_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToySite:
    """scontrol, sinfo and sacctmgr of a cluster that the test describes."""
    return ToySite(tmp_path / "site", monkeypatch)
