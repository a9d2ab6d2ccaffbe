"""What one rank does from beginning to end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool.rundir import create_run

Spawn = Callable[..., "subprocess.Popen[str]"]

BEGINS = """
import sys; from pathlib import Path
from hpctool.launch.task import begin; from hpctool.rundir import RunDir; from hpctool.place import Place
for _ in range(15):
    begin(RunDir(Path(sys.argv[1])), "local", Place())
"""


@pytest.mark.slow
def test_no_two_attempts_have_the_same_number(tmp_path: Path, spawn: Spawn) -> None:
    run = create_run(tmp_path, {"name": "train", "identity": "ab" * 32, "job": "train", "code": {}}, {})
    for process in [spawn(BEGINS, run.path) for _ in range(6)]:
        said = process.communicate(timeout=100)
        assert process.returncode == 0, said
    assert [body["attempt"] for body in run.story().of_kind("begun")] == list(range(1, 91))
