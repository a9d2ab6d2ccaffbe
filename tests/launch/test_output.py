"""What a rank says: in its log, whatever becomes of the terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

TALKS = """
import sys
from pathlib import Path
from hpctool.launch.output import to_log
with to_log(Path(sys.argv[1]), keep_terminal=True):
    print("one", flush=True)
    sys.stdin.read()
    for number in range(2000):
        print("number", number)
        print("error", number, file=sys.stderr)
print("and what it says afterwards", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a pipe", "a terminal"])
def test_a_terminal_that_is_closed_ends_no_work(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "logs" / "0.log"
    ours, theirs = os.pipe() if kind == "a pipe" else pty.openpty()
    command = [sys.executable, "-c", TALKS, str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.read(ours, 3)
        os.close(ours)
        process.communicate()
    assert process.returncode == 0
    assert log.read_text().splitlines()[-2:] == ["number 1999", "error 1999"]
