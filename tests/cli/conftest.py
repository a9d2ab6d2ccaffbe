"""What tests of several verbs share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HPCTOOL_ROOT, and a terminal whose width nobody has fixed."""
    monkeypatch.setenv("HPCTOOL_ROOT", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path
