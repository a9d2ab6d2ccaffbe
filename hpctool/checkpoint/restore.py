"""From disk to state: search the newest checkpoint that is whole for every rank, or read one by its path."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpctool.checkpoint import manifest, snapshot
from hpctool.checkpoint.commits import Commit, committed
from hpctool.checkpoint.manifest import Manifest
from hpctool.errors import CorruptError, listing
from hpctool.log import Log
from hpctool.rundir import RunDir, Story, check_private
from hpctool.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: as long as a network file system may take to show on one node what another has written
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Restored:
    """A checkpoint in memory. Tensors are new, on the CPU and without gradient; sharded ones where their mesh is."""

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
    #: of the whole checkpoint; the one that comes next names it
    digest: str = ""


def load(path: Path, *, checksums: bool = True) -> Restored:
    """Verify and read one checkpoint folder, for evaluation and export; nothing on disk is changed.

    A colleague's folder will do: nothing in it is executed. Sharded tensors come whole; what belongs to single ranks is
    left out. With `checksums=False` only sizes are compared. Raises CorruptError, NewerFormat, OSError.
    """
    found = manifest.verify(path) if checksums else manifest.read(path)
    return read(found, None, found.body["world_size"])


def read(found: Manifest, rank: int | None, size: int, mesh: DeviceMesh | None = None) -> Restored:
    """The state of a verified checkpoint, as rank `rank` of `size` needs it. Raises CorruptError, OSError."""
    body = found.body
    changed = body["world_size"] != size
    own = None if rank is None else snapshot.own_state(rank)
    has_own = own in body["files"] and not changed
    return Restored(
        step=body["step"],
        attempt=body["attempt"],
        state=snapshot.read(found.path, snapshot.STATE, mesh),
        per_rank=snapshot.read(found.path, own) if own and has_own else None,
        info=body["info"],
        path=found.path,
        world_size=body["world_size"],
        world_size_changed=changed,
        digest=found.digest,
    )


class Search:
    """The search of all ranks for what to go on from. Rank 0 knows the ledger; what it finds is what all take.

    An attempt (`rundir.attempt` above 0) sets damaged checkpoints aside by name, first checks that nobody else could
    have written them, and does not go behind what retention had kept; a reader changes nothing and takes any.
    """

    def __init__(self, rundir: RunDir, world: World, ledger: Log, checksums: bool, allow_regress: bool) -> None:
        self.rundir = rundir
        self.world = world
        self.checksums = checksums
        self.allow_regress = allow_regress or not rundir.attempt
        #: what is wrong with those that were gone around; rank 0's
        self.problems: list[str] = []
        #: how long the run's saves took, in seconds, oldest first
        self.saves_s: list[float] = []
        self._ledger = ledger
        self._commits: list[Commit] = []

    def newest(self, num_kept: int, mesh: DeviceMesh | None = None) -> Restored | None:
        """The newest committed checkpoint that is whole; None if none was ever committed. Collective.

        `num_kept` is how many of the last ones retention keeps. Raises as Checkpointer.restore does.
        """
        number = 0
        while True:
            found: int | None = self.world.on_main(functools.partial(self._next, number, num_kept))
            if found is None:
                return None
            number = found
            restored = self._try(number, mesh)
            if restored is not None:
                self.world.on_main(functools.partial(self._accept, number, num_kept, restored))
                return restored
            number += 1

    def _next(self, number: int, num_kept: int) -> int | None:
        """Rank 0: which candidate, counted from the newest, is looked at next; None to begin from nothing."""
        if not number:
            story = self.rundir.story()
            self.saves_s = [body["save_s"] for body in story.checkpoints if "save_s" in body]
            self.allow_regress = self.allow_regress or _is_allowed(story)
            self._commits = committed(self.rundir, self._ledger)[::-1]
        if not self._commits:
            return None
        while number < len(self._commits) and not self._commits[number].path.exists():
            self.problems += [f"{self._commits[number].path.name} is gone"] * (number < num_kept)
            number += 1
        if number < len(self._commits):
            return number
        self._begin_anew()
        return None

    def _accept(self, number: int, num_kept: int, restored: Restored) -> None:
        """Rank 0: say what was gone around; refuse what lies behind all that retention had kept of the last ones."""
        newest, said = self._commits[0].step, listing(self.problems, 4)
        if number >= num_kept and not self.allow_regress:
            raise CorruptError(
                self.rundir.checkpoints,
                f"step {newest} was committed, the newest checkpoints are not whole ({said}), and the next that is "
                f"whole is of step {restored.step}",
                f"Bring a folder back, or lose {newest - restored.step} steps with allow_regress=true.",
            )
        if self.problems:
            warnings.warn(
                f"Run {self.rundir.id} goes on from step {restored.step} and not from its newest checkpoint: {said}.",
                UserWarning,
                stacklevel=4,
            )

    def _begin_anew(self) -> None:
        """Rank 0: no checkpoint is whole: an error, unless it is allowed to begin from nothing."""
        newest, said = self._commits[0].step, listing(self.problems, 4)
        text = f"of {len(self._commits)} committed checkpoints none is whole ({said})"
        if not self.allow_regress or not self.rundir.attempt:
            raise CorruptError(
                self.rundir.checkpoints,
                text,
                "A run never starts from zero by itself: bring a folder back, or allow it with allow_regress=true.",
            )
        warnings.warn(f"Run {self.rundir.id} begins anew below step {newest}, as allowed: {text}.", stacklevel=2)

    def _try(self, number: int, mesh: DeviceMesh | None) -> Restored | None:
        """Verify and read one candidate; None where it is damaged for any rank."""
        opened = self.world.on_main(lambda: self._open(self._commits[number]))
        if "problem" in opened:
            return None
        found = Manifest(self.rundir.path / opened["path"], opened["body"])
        rank, size = self.world.rank, self.world.size
        sizes = {name: entry["size_bytes"] for name, entry in found.body["files"].items()}
        share = snapshot.split(sizes, size)[rank] if self.checksums else []
        restored: list[Restored] = []
        if self._is_whole(number, found, lambda: manifest.check_files(found, share)) and self._is_whole(
            number, found, lambda: restored.append(read(found, rank, size, mesh))
        ):
            return restored[0]
        return None

    def _is_whole(self, number: int, found: Manifest, action: Callable[[], object]) -> bool:
        """Whether no rank finds damage in a candidate. Collective."""
        problems = [problem for problem in self.world.together(lambda: _problem(action, found)) if problem]
        if problems:
            self.world.on_main(lambda: self._give_up(self._commits[number], problems[0]))
        return not problems

    def _open(self, made: Commit) -> dict[str, Any]:
        """Rank 0: the manifest of a candidate; a problem where it is damaged, which is noted."""
        if self.rundir.attempt:
            for folder in (self.rundir.path, self._ledger.folder, self.rundir.checkpoints, made.path):
                check_private(folder)
        try:
            found = manifest.read(made.path, made.digest)
        except CorruptError as error:
            self._give_up(made, f"{Path(error.path).name}: {error.problem}")
            return {"problem": True}
        return {"path": str(found.path.relative_to(self.rundir.path)), "body": found.body}

    def _give_up(self, made: Commit, problem: str) -> None:
        """Rank 0: go around a damaged checkpoint; an attempt gives it a name of its own."""
        where = f" as {_set_aside(made.path).name}" if self.rundir.attempt else ""
        self.problems.append(f"{made.path.name} is damaged ({problem}) and left aside{where}")


def _is_allowed(story: Story) -> bool:
    """Whether somebody has allowed the next attempt to go back: it is used up by the one that resumes."""
    said = [entry.body["kind"] for entry in story.entries if entry.body["kind"] in ("regress", "resumed")]
    return said[-1:] == ["regress"]


def _problem(action: Callable[[], object], found: Manifest) -> str:
    """What an action finds damaged; empty where all is well. Raises OSError."""
    _wait_until_seen(found)
    try:
        action()
    except CorruptError as error:
        return f"{Path(error.path).name}: {error.problem}"
    return ""


def _wait_until_seen(found: Manifest) -> None:
    """Wait for files that rank 0 has seen a moment ago: other nodes of a network file system may see them later.

    Raises FileNotFoundError, which is no damage.
    """
    deadline = time.monotonic() + _PATIENCE_S
    missing = set(found.body["files"])
    while missing := {name for name in missing if not (found.path / name).exists()}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            os.listdir(found.path)
    for name in missing:
        (found.path / name).stat()


def _set_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.corrupt-{number}")).exists():
        number += 1
    return folder.rename(aside)
