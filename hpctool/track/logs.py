"""The logs of a run's ranks, whole, by their last lines, or as they grow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpctool.errors import UnknownName
from hpctool.launch.ranks import starting_log
from hpctool.launch.result import current_story
from hpctool.launch.slurm.standing import batch_logs
from hpctool.rundir import OVER, RunDir

_TAIL_BLOCK_BYTES = 64 * 1024
_CHUNK_BYTES = 1 << 20


def log_path(rundir: RunDir, rank: int = 0, attempt: int | None = None) -> Path:
    """The log of a rank in an attempt, the newest if none is said. Raises UnknownName with what there is.

    Of a run that has not begun an attempt, what was said on the way to it: by its batch script, or by the rank.
    """
    logs = rundir.log(0, 1).parent.parent
    attempts = _numbers(logs, "")
    if not attempts and attempt is None and (early := early_log(rundir, rundir.story().slurm_job_id, rank)):
        return early
    number = attempt if attempt is not None else max(attempts, default=0)
    if number not in attempts:
        raise UnknownName(f"log of {rundir.id} for attempt", str(number), [str(a) for a in attempts])
    path = rundir.log(rank, number)
    if not path.exists():
        ranks = [str(r) for r in _numbers(path.parent, ".log")]
        raise UnknownName(f"log of {rundir.id}, attempt {number}, for rank", str(rank), ranks)
    return path


def early_log(rundir: RunDir, slurm_job_id: str, rank: int = 0, sweep: str = "") -> Path | None:
    """What was said before the first attempt began, if anything was. `sweep` is that of a cell without a folder."""
    found = batch_logs(rundir, slurm_job_id, sweep) if slurm_job_id else []
    return next((path for path in [*found, starting_log(rundir, rank)] if path.exists()), None)


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
        elif path is None and story.state in OVER and (early := early_log(rundir, story.slurm_job_id, rank)):
            say(f"{rundir.id} never began; what was said on the way ({early}):")
            path = early
        if path is not None and path.exists() and (grown := _from(path, position)):
            position += len(grown)
            yield grown
        if story.state in OVER or (attempt is not None and story.attempt > attempt):
            if story.state != "completed" and attempt is None:
                say(f"{rundir.id} is {story.state}{f': {story.cause}' if story.cause else ''}")
            return
        if story.state != said and story.state != "running":
            said = story.state
            say(f"{rundir.id} is {said}{f' ({story.cause})' if story.cause else ''}; waiting for it.")
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
