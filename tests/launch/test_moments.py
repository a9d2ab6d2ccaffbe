"""A rank stands where a rehearsal wants it to, and goes on where nobody rehearses."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hpctool.launch import moments

RANK = """
from hpctool.launch import moments
moments.reached("step", 3, 2)
print("went on", flush=True)
moments.reached("step", 4, 2)
print("went on", flush=True)
"""


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    # The limit for a socket's name is 107 bytes, and pytest's folders are deep.
    monkeypatch.chdir(tmp_path)
    server = socket.socket(socket.AF_UNIX)
    server.bind("chaos")
    server.listen()
    return server


@pytest.mark.slow
def test_a_rank_waits_at_a_moment_until_it_is_let_go(listening: socket.socket) -> None:
    command = [sys.executable, "-c", RANK]
    environ = {**os.environ, moments.CHAOS: "chaos", "RANK": "1", "WORLD_SIZE": "3"}
    listening.settimeout(60)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as rank:
        assert rank.stdout is not None
        link = listening.accept()[0]
        said = json.loads(link.recv(4096))
        assert said == {"moment": "step", "step": 3, "attempt": 2, "rank": 1, "pid": rank.pid}
        assert not select.select([rank.stdout], [], [], 0.2)[0]
        link.sendall(b".")
        assert json.loads(link.recv(4096))["step"] == 4
        # A rehearsal that ends leaves nobody waiting.
        link.close()
        listening.close()
        assert rank.wait(60) == 0
        assert rank.stdout.read() == "went on\nwent on\n"


def test_without_a_rehearsal_a_moment_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_address", None)
    assert not moments.reached("save", 1, 1)
    monkeypatch.setattr(moments, "_address", "/nowhere/at-all")
    assert not moments.reached("save", 1, 1)
    assert moments._address is None, "a rehearsal that is gone is forgotten"
