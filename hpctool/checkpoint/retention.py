"""What of old checkpoints stays: the last k, those worth keeping, and nothing that dead attempts left unfinished."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

from hpctool import files
from hpctool.checkpoint.commits import Commit

_TEMPORARY = ".tmp-"
_TRASH = ".trash-"
_ATTEMPT = re.compile(r"step-\d+\.a(\d+)|\.tmp-step-\d+\.a(\d+)-.*")


def temporary_for(final: Path) -> Path:
    """The folder in which a checkpoint is written before it gets its name."""
    return final.parent / files.temporary_name(f"{_TEMPORARY}{final.name}")


def prune(commits: Iterable[Commit], keep_last: int, keep: Collection[int]) -> None:
    """Delete committed checkpoints beyond the last `keep_last`, except the steps in `keep`."""
    newest_first = list(commits)[::-1]
    try:
        # One listing: the ledger also names all that was deleted before, and asking for each would take its time.
        names = set(os.listdir(newest_first[0].path.parent)) if newest_first else set()
    except OSError as error:
        _say(error)
        return
    there = [made for made in newest_first if made.path.name in names]
    for made in there[keep_last:]:
        if made.step not in keep:
            discard(made.path)


def sweep(folder: Path, attempt: int, commits: Iterable[Commit] | None) -> None:
    """Delete what attempts up to this one left unfinished: temporary and half deleted folders.

    A folder that has its name but no ledger entry goes too; with `commits=None` (a ledger that cannot be read
    completely) none of these is touched.
    """
    committed = {made.path.name for made in commits} if commits is not None else None
    for path in sorted(folder.iterdir()):
        match = _ATTEMPT.fullmatch(path.name)
        if path.name.startswith(_TRASH):
            _delete(path)
        elif match and int(match.group(1) or match.group(2)) <= attempt:
            named = path.name.startswith("step-")
            if not named or (committed is not None and path.name not in committed):
                discard(path)


def discard(folder: Path) -> None:
    """Delete a folder: first its name, so that nobody finds half of it. What cannot be deleted is only warned of."""
    trash = folder.parent / files.temporary_name(f"{_TRASH}{folder.name}")
    try:
        folder.rename(trash)
    except OSError as error:
        _say(error)
    else:
        _delete(trash)


def _delete(trash: Path) -> None:
    try:
        shutil.rmtree(trash)
    except OSError as error:
        _say(error)


def _say(error: OSError) -> None:
    # Somebody else deleted it first: just as well.
    if not isinstance(error, FileNotFoundError):
        warnings.warn(f"A checkpoint that is no longer needed could not be deleted: {error}.", stacklevel=3)
