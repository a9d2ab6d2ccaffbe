"""How a run stands whose processes are gone: by what they have written down."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from hpctool import files
from hpctool.launch.result import current_story
from hpctool.rundir import RunDir, create_run, now

AGAIN = "; run the same command again to go on"


@pytest.fixture
def gone(tmp_path: Path) -> RunDir:
    """A run whose rank 0 was ended by its launcher before it could say how the run ended."""
    run = create_run(tmp_path, {"identity": "0123456789abcdef" * 4, "job": "train", "name": "one"}, {})
    with subprocess.Popen(["true"]) as process:
        process.wait()
    facts = {"where": "inline", "host": socket.gethostname(), "pid": process.pid, "pid_start": "1"}
    run.attempt = run.begin(facts)
    return run


def said(run: RunDir, rank: int, kind: str, message: str) -> None:
    path = run.error(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"rank": rank, "type": kind, "message": message, "time": now()})


def test_a_run_that_ended_without_a_word_can_be_gone_on_with(gone: RunDir) -> None:
    story = current_story(gone)
    assert (story.state, story.cause) == ("failed", f"its process is gone{AGAIN}")


def test_a_run_whose_rank_0_was_ended_first_failed_of_the_rank_that_did(gone: RunDir) -> None:
    said(gone, 1, "WorldError", "Rank 1 has lost its peers.")
    said(gone, 2, "ValueError", "row 17 is not what it was")
    story = current_story(gone)
    assert (story.state, story.cause) == ("failed", f"rank 2: ValueError: row 17 is not what it was{AGAIN}")
