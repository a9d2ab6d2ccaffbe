"""How a run stands whose processes are gone: by what they have written down."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from hpctool import files
from hpctool.launch.result import current_story
from hpctool.launch.start import cancel
from hpctool.launch.sweeps import is_settled
from hpctool.rundir import RunDir, create_run, now
from tests.launch.toy_slurm import ToySlurm

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


@pytest.fixture
def elsewhere(tmp_path: Path) -> RunDir:
    """A run that somebody has typed on a host which is not this one."""
    run = create_run(tmp_path, {"identity": "0123456789abcdef" * 4, "job": "train", "name": "one"}, {})
    run.attempt = run.begin({"where": "inline", "host": "elsewhere", "pid": 1, "pid_start": "1", "slurm_job_id": ""})
    return run


def beats(run: RunDir, age_s: float) -> None:
    for path in (run.beat(0), run.log(0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_a_run_whose_host_is_gone_can_be_cancelled_and_gone_on_with(elsewhere: RunDir) -> None:
    beats(elsewhere, 10.0)
    assert "runs on elsewhere, which cannot be told from here" in cancel(elsewhere)
    assert elsewhere.story().state == "stopping"
    beats(elsewhere, 1000.0)
    assert "gives no sign of life" in cancel(elsewhere)
    story = current_story(elsewhere)
    assert (story.state, is_settled(story), (elsewhere.result() or {})["state"]) == ("cancelled", False, "cancelled")


def test_where_nobody_can_know_whether_a_host_is_gone_it_is_asked_twice(elsewhere: RunDir) -> None:
    assert "If elsewhere is gone, cancel it once more" in cancel(elsewhere)
    assert elsewhere.story().state == "stopping"
    cancel(elsewhere)
    assert elsewhere.story().state == "cancelled"


def test_a_run_that_was_typed_within_a_job_has_ended_with_it(tmp_path: Path, toy_slurm: ToySlurm) -> None:
    run = create_run(tmp_path, {"identity": "0123456789abcdef" * 4, "job": "train", "name": "one"}, {})
    facts = {"where": "inline", "host": "elsewhere", "pid": 1, "pid_start": "1", "slurm_job_id": "999"}
    run.ledger.append({"kind": "begun", "attempt": 1, "time": "2026-01-01T00:00:00.000Z", **facts})
    assert current_story(run).state == "failed"
