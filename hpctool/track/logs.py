"""The logs of a run's ranks, whole, by their last lines, or as they grow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpctool.errors import UnknownName
from hpctool.launch.endings import OVER
from hpctool.launch.result import current_story
from hpctool.rundir import RunDir

_TAIL_BLOCK_BYTES = 64 * 1024
_CHUNK_BYTES = 1 << 20


def log_path(rundir: RunDir, rank: int = 0, attempt: int | None = None) -> Path:
    """The log of a rank in an attempt, the newest if none is said. Raises UnknownName with what there is."""
    logs = rundir.log(0, 1).parent.parent
    attempts = _numbers(logs, "")
    number = attempt if attempt is not None else max(attempts, default=0)
    if number not in attempts:
        raise UnknownName(f"log of {rundir.id} for attempt", str(number), [str(a) for a in attempts])
    path = rundir.log(rank, number)
    if not path.exists():
        ranks = [str(r) for r in _numbers(path.parent, ".log")]
        raise UnknownName(f"log of {rundir.id}, attempt {number}, for rank", str(rank), ranks)
    return path


def read(path: Path, lines: int | None = None) -> Iterator[bytes]:
    """A log's bytes in pieces, or only its last `lines` lines."""
    with open(path, "rb") as file:
        file.seek(_start_of_last(path, lines))
        while block := file.read(_CHUNK_BYTES):
            yield block


def follow(
    rundir: RunDir,
    rank: int = 0,
    attempt: int | None = None,
    lines: int | None = None,
    *,
    say: Callable[[str], None],
    poll_s: float = 0.5,
) -> Iterator[bytes]:
    """A log as it grows, from its last `lines` lines on, until the run has ended; goes on with the next attempt.

    With `attempt` only that one is followed, until a newer one has begun. `say` hears of what is waited for.
    """
    path: Path | None = None
    position = 0
    said = ""
    while True:
        # The state is asked before the log is read, so that nothing written before the end is missed.
        story = current_story(rundir)
        wanted = rundir.log(rank, attempt or max(story.attempt, 1))
        if path is not None and wanted != path:
            yield _from(path, position)
            say(f"Attempt {story.attempt} of {rundir.id}:")
            path, position = wanted, 0
        elif path is None and wanted.exists():
            path, position = wanted, _start_of_last(wanted, lines)
        if path is not None and path.exists() and (grown := _from(path, position)):
            position += len(grown)
            yield grown
        if story.state in OVER or (attempt is not None and story.attempt > attempt):
            return
        if story.state != said and story.state != "running":
            said = story.state
            say(f"{rundir.id} is {said}; waiting for it.")
        time.sleep(poll_s)


def _from(path: Path, position: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(position)
        return file.read()


def _start_of_last(path: Path, lines: int | None) -> int:
    """The byte where the last `lines` lines of a file begin, 0 for all of them; only its end is read."""
    if lines is None:
        return 0
    with open(path, "rb") as file:
        end = position = file.seek(0, os.SEEK_END)
        data = b""
        while position and data.rstrip(b"\n").count(b"\n") < lines:
            size = min(position, _TAIL_BLOCK_BYTES)
            position -= size
            file.seek(position)
            data = file.read(size) + data
    kept = data.splitlines(keepends=True)[-lines:] if lines else []
    return end - sum(map(len, kept))


def _numbers(folder: Path, suffix: str) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isdigit())
