"""A log loses nothing among many writers, and none of them needs to come to an end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool import files
from hpctool.log import Log

Spawn = Callable[..., "subprocess.Popen[str]"]

APPENDS = """
import sys; from pathlib import Path; from hpctool.log import Log
folder, who, count, primitive = sys.argv[1:]
log = Log(Path(folder), primitive)
for n in range(int(count)):
    log.append({"who": who, "n": n})
"""

COUNTS = """
import sys; from pathlib import Path; from hpctool.log import Log
folder, who, count, primitive = sys.argv[1:]
log = Log(Path(folder), primitive); done = 0
while done < int(count):
    newest = log.newest()
    number, value = (newest.number, newest.body["value"]) if newest else (0, 0)
    done += log.cas({"value": value + 1, "who": who}, after=number)
"""


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said


@pytest.mark.slow
def test_eight_writers_lose_nothing(tmp_path: Path, primitive: files.Primitive, spawn: Spawn) -> None:
    finish([spawn(APPENDS, tmp_path, who, 100, primitive) for who in range(8)])
    found = Log(tmp_path).entries()
    assert [e.number for e in found] == list(range(1, 801))
    for who in range(8):
        assert [e.body["n"] for e in found if e.body["who"] == str(who)] == list(range(100))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".e-")] or primitive == "symlink"


@pytest.mark.slow
def test_eight_deciders_count_to_the_last_one(tmp_path: Path, primitive: files.Primitive, spawn: Spawn) -> None:
    finish([spawn(COUNTS, tmp_path, who, 25, primitive) for who in range(8)])
    assert [e.body["value"] for e in Log(tmp_path).entries()] == list(range(1, 201))


@pytest.mark.slow
def test_writers_that_are_killed_leave_a_whole_log(tmp_path: Path, primitive: files.Primitive, spawn: Spawn) -> None:
    log = Log(tmp_path, primitive)
    for victim in range(6):
        writers = [spawn(APPENDS, tmp_path, f"{victim}-{who}", 10_000, primitive) for who in range(2)]
        goal = log.last() + 15 * (victim + 1)
        while log.last() < goal:
            assert all(w.poll() is None for w in writers)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    found = Log(tmp_path).entries()  # warnings are errors: nothing is broken
    assert [e.number for e in found] == list(range(1, log.last() + 1))
    for who in {e.body["who"] for e in found}:
        mine = [e.body["n"] for e in found if e.body["who"] == who]
        assert mine == list(range(len(mine)))
    assert log.append({"who": "after", "n": 0}) == len(found) + 1
