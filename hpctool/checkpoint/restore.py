"""From disk to state: choose the newest checkpoint that is whole, or read one by its path."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool.checkpoint import snapshot
from hpctool.checkpoint.commits import Commit
from hpctool.checkpoint.manifest import Manifest, verify
from hpctool.errors import CorruptError, listing
from hpctool.rundir import RunDir, check_private


@dataclass(frozen=True)
class Restored:
    """A checkpoint in memory. Tensors are new, on the CPU and without gradient."""

    step: int
    attempt: int
    state: Any
    #: the state of this rank only; None if there was none, or if the number of ranks is another now
    per_rank: Any
    info: dict[str, Any]
    path: Path
    #: how many ranks wrote it
    world_size: int
    #: whether that is another number than now: nothing per rank is restored then
    world_size_changed: bool = False


def load(path: Path) -> Restored:
    """Verify and read one checkpoint folder, for evaluation and export; nothing on disk is changed.

    A colleague's folder will do: nothing in it is executed. What belongs to single ranks is left out.
    Raises CorruptError, NewerFormat, OSError.
    """
    manifest = verify(path)
    return read(manifest, None, manifest.body["world_size"])


def read(manifest: Manifest, rank: int | None, size: int) -> Restored:
    """The state of a verified checkpoint, as rank `rank` of `size` needs it. Raises CorruptError, OSError."""
    body = manifest.body
    changed = body["world_size"] != size
    own = None if rank is None else snapshot.own_state(rank)
    has_own = own in body["files"] and not changed
    return Restored(
        step=body["step"],
        attempt=body["attempt"],
        state=snapshot.read(manifest.path, snapshot.STATE),
        per_rank=snapshot.read(manifest.path, own) if own and has_own else None,
        info=body["info"],
        path=manifest.path,
        world_size=body["world_size"],
        world_size_changed=changed,
    )


def choose(rundir: RunDir, commits: Iterable[Commit]) -> Manifest | None:
    """The newest committed checkpoint that verifies; None if none was ever committed.

    Damaged ones are gone around with a warning. An attempt (`rundir.attempt` above 0) also sets them aside by name
    and first checks that nobody else could have written them; a reader changes nothing.
    Raises CorruptError if checkpoints were committed and none is whole, OperationError if others can write here,
    NewerFormat.
    """
    newest_first = list(commits)[::-1]
    problems: list[str] = []
    for made in newest_first:
        try:
            found = _examine(rundir, made, problems)
        except FileNotFoundError:
            problems.append(f"{made.path.name} is gone")
            continue
        if found and problems:
            warnings.warn(
                f"Run {rundir.id} goes on from step {made.step} and not from its newest checkpoint: "
                f"{listing(problems, 4)}.",
                UserWarning,
                stacklevel=2,
            )
        if found:
            return found
    if not newest_first:
        return None
    raise CorruptError(
        rundir.checkpoints,
        f"of {len(newest_first)} committed checkpoints none is whole ({listing(problems, 4)})",
        "A run never starts from zero by itself: bring a folder back, or start another run.",
    )


def _examine(rundir: RunDir, made: Commit, problems: list[str]) -> Manifest | None:
    """Verify one checkpoint, or say in `problems` what is wrong with it. Raises FileNotFoundError if it is gone."""
    made.path.stat()
    if rundir.attempt:
        for folder in (rundir.path, rundir.checkpoints, made.path):
            check_private(folder)
    try:
        return verify(made.path, made.digest)
    except CorruptError as error:
        where = f" as {_set_aside(made.path).name}" if rundir.attempt else ""
        file = Path(error.path).name
        problems.append(f"{made.path.name} is damaged ({file}: {error.problem}) and left aside{where}")
        return None


def _set_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.corrupt-{number}")).exists():
        number += 1
    return folder.rename(aside)
