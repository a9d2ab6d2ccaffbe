"""How a run stands and how it ended: result.json, and a story that knows whether the process still lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.launch.slurm import standing
from hpctool.launch.slurm.queue import Queue
from hpctool.rundir import RunDir, Story, now

RESULT_FORMAT = 1


def is_replaced(rundir: RunDir, attempt: int = 0) -> bool:
    """Whether a newer attempt than this one (0: that of `rundir`) has begun.

    A process that was cut off and comes back late may say how it ended in the ledger, where it does not count; but it
    must not put its end in the place of the run's, alarm anybody, or have Slurm requeue the job that runs again.
    """
    return 0 < (attempt or rundir.attempt) < rundir.story().attempt


def write_ended(
    rundir: RunDir, state: str, cause: str, outcome: dict[str, Any] | None = None, *, attempt: int = 0
) -> None:
    """Write result.json: state, cause, and what the job's `run` returned. Rank 0 or a supervisor writes it.

    Not of an attempt (0: that of `rundir`) which a newer one has replaced.
    """
    if is_replaced(rundir, attempt):
        return
    story = rundir.story()
    begun = story.of_kind("begun")
    result = {
        "format": RESULT_FORMAT,
        "state": state,
        "cause": cause,
        "step": story.step,
        "attempts": len(begun),
        "started": begun[0]["time"] if begun else None,
        "ended": now(),
        **(outcome or {}),
    }
    files.write_json(rundir.result_json, result)


def rank_errors(rundir: RunDir, attempt: int) -> list[dict[str, Any]]:
    """What the ranks that failed in an attempt wrote down, the first to fail first: rank, type, message, traceback …

    A rank that only lost its peers stands behind those that failed on their own account.
    """
    found: list[dict[str, Any]] = [
        files.read_json(path) for path in sorted(rundir.error(0, attempt).parent.glob("*.json"))
    ]
    return sorted(found, key=lambda error: (error["type"] == "WorldError", str(error["time"])))


def first_error(rundir: RunDir, attempt: int) -> str:
    """`rank 2: ValueError: …` of the rank that failed first; empty if none wrote anything down."""
    for first in rank_errors(rundir, attempt):
        return f"rank {first['rank']}: {first['type']}: {first['message']}".splitlines()[0]
    return ""


def process_start(pid: int) -> str:
    """When a process began, in the kernel's clock ticks: with the pid it names a process for ever. Empty if gone."""
    try:
        text = files.read_small(Path(f"/proc/{pid}/stat")).decode(errors="replace")
    except OSError:
        return ""
    # The command may hold spaces and brackets; fields are counted after its last bracket. A zombie does not live.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def is_alive(begun: dict[str, Any]) -> bool:
    """Whether the process of a ledger's `begun` entry lives; on another host we cannot know and believe it."""
    if begun.get("host") != socket.gethostname():
        return True
    return process_start(int(begun["pid"])) == str(begun["pid_start"])


def current_story(rundir: RunDir, queue: Queue | None = None) -> Story:
    """The run's story, corrected where what should be running is gone: a process here, or a job of Slurm's.

    Slurm is asked only for a run that is under way there; its answer is that of `queue`, else one that all share.
    """
    return current_stories([rundir], queue)[0]


def current_stories(rundirs: Sequence[RunDir], queue: Queue | None = None) -> list[Story]:
    """The stories of many runs, with one question to Slurm for all of them."""
    stories = [rundir.story() for rundir in rundirs]
    correct(rundirs, stories, queue)
    return stories


def correct(rundirs: Sequence[RunDir], stories: list[Story], queue: Queue | None = None) -> None:
    """Correct stories as their ledgers tell them, in place, where what should be running is gone."""
    for rundir, story in zip(rundirs, stories, strict=True):
        if story.where != "slurm":
            _correct_here(rundir, story)
    standing.correct(rundirs, stories, queue)


def _correct_here(rundir: RunDir, story: Story) -> None:
    begun = story.of_kind("begun")
    if story.state not in ("running", "stopping") or not begun or is_alive(begun[-1]):
        return
    if story.state == "stopping":
        story.state = "cancelled"
    elif story.where == "local":
        story.state, story.cause = "requeued", "its process is gone"
    else:
        # mpirun may have ended rank 0 before it could say which rank has failed.
        why = first_error(rundir, story.attempt) or "its process is gone"
        story.state, story.cause = "failed", f"{why}; run the same command again to go on"


def own_process() -> dict[str, Any]:
    """What a `begun` entry says of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_start": process_start(os.getpid())}
