"""The command line as a person uses it: real commands in a folder of their own, with a dataset that is made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HPCTOOL = str(Path(sys.executable).with_name("hpctool"))


class Shell:
    """A folder one stands in, and `hpctool` in it."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root

    def run(self, *arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `hpctool arguments…`; nothing is checked."""
        env = os.environ | {"HPCTOOL_ROOT": str(self.root), "OMP_NUM_THREADS": "1"} | (environ or {})
        return subprocess.run(
            [HPCTOOL, *arguments], cwd=self.folder, env=env, capture_output=True, text=True, check=False, timeout=110
        )

    def json(self, *arguments: str) -> Any:
        """The JSON of a command that must succeed."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: str, code: int = 2) -> str:
        """What a command says that must be refused: one sentence, no traceback, nothing written."""
        before = sorted(self.root.rglob("*"))
        done = self.run(*arguments)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert sorted(self.root.rglob("*")) == before
        return lines[0]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the digits prepared and one short training run; tests only read it."""
    root = tmp_path_factory.mktemp("prepared")
    shell = Shell(root, root)
    shell.json("prepare", "data.name=digits", "source=digits", "data.tag=v1")
    shell.json("train", "data.name=digits", "name=short", "loop.max_steps=30")
    return root


@pytest.fixture
def shell(tmp_path: Path, prepared: Path) -> Shell:
    """A fresh folder to stand in, above the prepared root."""
    return Shell(tmp_path, prepared)


@pytest.fixture
def fresh(tmp_path: Path, prepared: Path) -> Shell:
    """A root of one's own, with the prepared dataset in it."""
    (tmp_path / "datasets").symlink_to(prepared / "datasets")
    return Shell(tmp_path, tmp_path)
