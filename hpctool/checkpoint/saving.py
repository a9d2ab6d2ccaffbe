"""One save, from the copy of a state to the ledger entry, in whichever thread it runs.

In order: what must be alike on all ranks is compared; every rank writes its part durably into a temporary folder;
sizes, checksums and errors are gathered; rank 0 looks at the files, writes the manifest, syncs, gives the folder its
name, and writes the ledger entry. The entry is the commit. Before it, nothing has happened; after it, nothing can undo
it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpctool import files
from hpctool.checkpoint import manifest, retention, space
from hpctool.checkpoint.commits import Commit, check_fence, commit, committed
from hpctool.checkpoint.retention import Rules
from hpctool.checkpoint.snapshot import Snapshot
from hpctool.errors import OperationError
from hpctool.launch import moments
from hpctool.log import Log
from hpctool.rundir import RunDir, now
from hpctool.world import World


class Check(Protocol):
    """What must be alike on all ranks before anything is saved."""

    def copied(self, copy: Snapshot) -> None:
        """Behind the copy, in the thread that trains: take what is not in it and will be other after the next step."""

    def compare(self, world: World) -> None:
        """Collective, beside the next steps; what it raises, on all ranks alike, ends the save."""


@dataclass(frozen=True)
class Plan:
    """What is to be saved, as one rank knows it."""

    step: int
    #: the copy, or why there is none on this rank: the others must be told
    taken: Snapshot | Exception
    info: Mapping[str, Any]
    score: float | None
    #: rather give up the reserve than fail
    is_last: bool
    #: steps that retention spares
    keep: frozenset[int]
    #: compared first, in the channel of this save
    check: Check | None
    #: done on every rank before the commit: metrics that belong to this step become durable
    before_commit: Callable[[], None] | None


@dataclass
class Keeper:
    """What saves of an attempt have in common. `before` and `resumed_from` are rank 0's."""

    rundir: RunDir
    ledger: Log
    rules: Rules
    #: the key of the state that holds the parameters; empty: all of it
    params: str = ""
    wants_reserve: bool = False
    #: the digest of the checkpoint that this attempt has last committed, or begun from
    before: str = ""
    resumed_from: Path | None = None

    def save(self, world: World, plan: Plan) -> float | None:
        """Commit; the seconds it took, None where the step was committed already. Collective.

        Raises InputError, FencedError, OperationError or OSError, on all ranks alike; nothing is left then.
        """
        began_s = time.monotonic()
        sizes = world.together(lambda: _size(plan.taken))
        if plan.check is not None:
            plan.check.compare(world)
        final = self.rundir.checkpoint(plan.step)
        for is_again in (False, True):
            try:
                return self._try(world, plan, final, sum(sizes), began_s)
            except OSError as error:
                # All ranks have the same error, so all come here or none.
                # A file that may not be so large is not helped by room.
                helps = space.is_full(error) and error.errno != errno.EFBIG and not is_again
                if not helps or not world.on_main(lambda: self._make_room(plan)):
                    raise _said(error, plan.step, final) from error
        raise AssertionError("unreachable")

    def _try(self, world: World, plan: Plan, final: Path, size_bytes: int, began_s: float) -> float | None:
        name = world.on_main(lambda: self._begin(plan, final, size_bytes))
        if name is None:
            return None
        folder = final.parent / name
        moments.reached("save", plan.step, self.rundir.attempt)
        try:
            reports = world.together(lambda: self._write(folder, plan))
            world.on_main(lambda: self._commit(folder, final, plan, reports, began_s))
        except Exception:
            if world.is_main:
                self._undo(folder, final)
            raise
        if world.is_main:
            self._prune(plan)
            if self.wants_reserve and not plan.is_last:
                space.make_reserve(final.parent, size_bytes + space.SLACK_BYTES)
        return time.monotonic() - began_s

    def _begin(self, plan: Plan, final: Path, size_bytes: int) -> str | None:
        """Rank 0: make the temporary folder and say its name; None if this step is already committed."""
        check_fence(self.rundir, self.ledger)
        if self._is_committed(final):
            return None
        if final.exists():  # of a save that failed so badly that it could not be undone
            retention.discard(final)
        if not final.parent.exists():
            final.parent.mkdir(mode=0o700)
            files.fsync_dir(self.rundir.path)
        if space.free_bytes(final.parent) < size_bytes + space.SLACK_BYTES:
            self._make_room(plan, size_bytes + space.SLACK_BYTES)
        folder = retention.temporary_for(final)
        folder.mkdir(mode=0o700)
        return folder.name

    def _write(self, folder: Path, plan: Plan) -> dict[str, Any]:
        """Write this rank's files and report their sizes and checksums."""
        assert isinstance(plan.taken, Snapshot)
        entries = {}
        for name, content in plan.taken.contents():
            files.write_durably(folder / name, memoryview(content), mode=0o600)
            entries[name] = {"size_bytes": len(content), "sha256": files.sha256_bytes(content)}
        if plan.before_commit is not None:
            plan.before_commit()
        moments.reached("written", plan.step, self.rundir.attempt)
        return {"files": entries, "table": plan.taken.table_digest, "rows": plan.taken.rows(self.params)}

    def _commit(self, folder: Path, final: Path, plan: Plan, reports: list[dict[str, Any]], began_s: float) -> None:
        """Rank 0: from files that are written to a checkpoint that counts."""
        differing = [rank for rank, report in enumerate(reports) if report["table"] != reports[0]["table"]]
        if differing:
            raise OperationError(
                f"Ranks {differing} hold other tensors than rank 0 (names, dtypes or shapes), so the state is not the "
                "same on all ranks. Pass what differs as per_rank."
            )
        entries = {name: entry for report in reports for name, entry in sorted(report["files"].items())}
        head = {
            "step": plan.step,
            "attempt": self.rundir.attempt,
            "world_size": len(reports),
            "time": now(),
            "info": plan.info,
            "before": self.before,
            "param_digest": _param_digest(reports),
            "state_digest": manifest.state_digest(entries),
        }
        made = manifest.make(folder, head, entries)
        files.fsync_dir(folder)
        try:
            os.rename(folder, final)
        except FileNotFoundError:
            # On NFS a lost reply makes the client ask again, and the second time the old name is gone.
            if not final.exists():
                raise
        files.fsync_dir(final.parent)
        digests = {name: str(made.body[name]) for name in ("digest", "param_digest", "state_digest")}
        save_s = round(time.monotonic() - began_s, 3)
        made_now = Commit(plan.step, self.rundir.attempt, final, score=plan.score, **digests)
        moments.reached("commit", plan.step, self.rundir.attempt)
        commit(self.rundir, self.ledger, made_now, save_s)
        moments.reached("committed", plan.step, self.rundir.attempt)
        self.before = made.digest

    def _undo(self, folder: Path, final: Path) -> None:
        """Rank 0: leave nothing of a save that failed, unless its entry stands after all."""
        if folder.exists():
            retention.discard(folder)
        elif final.exists() and not self._is_committed(final):
            retention.discard(final)

    def _make_room(self, plan: Plan, needed_bytes: int | None = None) -> bool:
        """Rank 0: before a stop the reserve goes, then what would go anyway once this save is committed."""
        freed = plan.is_last and space.give_up_reserve(self.rundir.checkpoints)
        if needed_bytes is not None and space.free_bytes(self.rundir.checkpoints) >= needed_bytes:
            return freed
        return bool(self._prune(plan, one_more=True)) or freed

    def _prune(self, plan: Plan, *, one_more: bool = False) -> int:
        commits = committed(self.rundir, self.ledger)
        return retention.prune(commits, self.rules, self.resumed_from, plan.keep, one_more=one_more)

    def _is_committed(self, final: Path) -> bool:
        return any(made.path == final for made in committed(self.rundir, self.ledger))

    def note_unsaved(self, plan: Plan, error: BaseException) -> None:
        """Rank 0: write down that a save found no room; on a disk that is full even that may not be possible."""
        facts = {"kind": "unsaved", "attempt": self.rundir.attempt, "step": plan.step, "time": now()}
        with contextlib.suppress(OSError):
            self.ledger.append({**facts, "problem": str(error)})


def _size(taken: Snapshot | Exception) -> int:
    if isinstance(taken, Exception):
        raise taken
    return taken.size_bytes


def _param_digest(reports: list[dict[str, Any]]) -> str:
    rows = sorted((row for report in reports for row in report["rows"]), key=lambda row: (row[0], row[3] or []))
    return files.sha256_bytes(files.canonical_json(rows))


def _said(error: OSError, step: int, final: Path) -> OSError:
    text = f"The checkpoint of step {step} was not saved ({error.strerror or error}); the one before it stays"
    return OSError(error.errno, text, error.filename or str(final))
