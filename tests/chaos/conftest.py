"""A project to rehearse in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.scenarios import MPIRUN, make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_project(tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    # What the ranks import, and the mpirun that they are started by.
    monkeypatch.setenv("PYTHONPATH", str(root))
    if MPIRUN is not None:
        monkeypatch.setenv("PATH", f"{Path(MPIRUN).parent}:{os.environ['PATH']}")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    return root
