"""What of old checkpoints stays: the last k, the best, some by their step, what is pinned; and nothing unfinished.

Only what was committed and is still there counts. A checkpoint that an attempt has resumed from stays until two newer
ones are committed, which the last k ≥ 2 see to.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpctool import files
from hpctool.checkpoint.commits import Commit
from hpctool.checkpoint.pins import pinned
from hpctool.errors import InputError

_TEMPORARY = ".tmp-"
_TRASH = ".trash-"
_ATTEMPT = re.compile(r"step-\d+\.a(\d+)|\.tmp-step-\d+\.a(\d+)-.*")


@dataclass(frozen=True)
class Rules:
    """Which committed checkpoints stay. Raises InputError if `last` is below 2."""

    #: the newest
    last: int = 2
    #: those with the highest score
    top: int = 0
    #: those whose step it divides; None: none for that
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.last < 2:
            raise InputError(
                f"keep_last={self.last} would leave nothing to go back to when the newest checkpoint is damaged; "
                "give 2 or more."
            )

    def kept(
        self, newest_first: Sequence[Commit], resumed_from: Path | None = None, *, one_more: bool = False
    ) -> set[str]:
        """The names of the folders that stay; `one_more`: as if another one had just been committed."""
        kept = {made.path.name for made in newest_first[: self.last - one_more]}
        scored = [made for made in newest_first if made.score is not None]
        kept |= {made.path.name for made in sorted(scored, key=lambda made: -(made.score or 0.0))[: self.top]}
        if self.every_steps:
            kept |= {made.path.name for made in newest_first if made.step % self.every_steps == 0}
        return kept | {made.path.name for made in newest_first[:2] if made.path == resumed_from}


def temporary_for(final: Path) -> Path:
    """The folder in which a checkpoint is written before it gets its name."""
    return final.parent / files.temporary_name(f"{_TEMPORARY}{final.name}")


def prune(
    commits: Iterable[Commit],
    rules: Rules,
    resumed_from: Path | None = None,
    spared: Collection[int] = (),
    *,
    one_more: bool = False,
) -> int:
    """Delete committed checkpoints that neither a rule, a pin nor their step in `spared` keeps; how many went."""
    newest_first = list(commits)[::-1]
    if not newest_first:
        return 0
    folder = newest_first[0].path.parent
    try:
        # One listing: the ledger also names all that was deleted before, and asking for each would take its time.
        names = set(os.listdir(folder))
    except OSError as error:
        _say(error)
        return 0
    there = [made for made in newest_first if made.path.name in names]
    kept = rules.kept(there, resumed_from, one_more=one_more) | pinned(names)
    going = [made.path for made in there if made.path.name not in kept and made.step not in spared]
    return sum(discard_unless_pinned(path) for path in going)


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
    if trash := _renamed(folder):
        _delete(trash)


def discard_unless_pinned(folder: Path) -> bool:
    """Delete a checkpoint; one that was pinned while it lost its name has it again (pins.py)."""
    trash = _renamed(folder)
    if trash is None:
        return False
    if folder.name in pinned(os.listdir(folder.parent)):
        trash.rename(folder)
        return False
    _delete(trash)
    return True


def _renamed(folder: Path) -> Path | None:
    trash = folder.parent / files.temporary_name(f"{_TRASH}{folder.name}")
    try:
        return folder.rename(trash)
    except OSError as error:
        _say(error)
        return None


def _delete(trash: Path) -> None:
    try:
        shutil.rmtree(trash)
    except OSError as error:
        _say(error)


def _say(error: OSError) -> None:
    # Somebody else deleted it first: just as well.
    if not isinstance(error, FileNotFoundError):
        warnings.warn(f"A checkpoint that is no longer needed could not be deleted: {error}.", stacklevel=3)
