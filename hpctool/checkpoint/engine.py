"""Checkpointer: saves a run's state so that it survives anything, and brings it back.

A save, in order: every rank copies its part and writes it durably into a temporary folder; sizes, checksums and errors
are gathered; rank 0 looks at the files, writes the manifest, syncs, gives the folder its name, and writes the ledger
entry. The entry is the commit. Before it, nothing has happened; after it, nothing can undo it.

    checkpoints/
      step-00001200.a2/         written by attempt 2, never changed, never written twice
        MANIFEST.json           files with sizes and checksums, step, attempt, info, digest of the whole
        state.json  tensors-00000.safetensors …  rank-00000.json  rank-00000.safetensors …   (snapshot.py)
      step-00001100.a1.corrupt-1/    damaged, set aside
      .tmp-…  .trash-…               unfinished or half deleted; swept by the next attempt
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.checkpoint import manifest, retention, snapshot
from hpctool.checkpoint.commits import Commit, check_fence, commit, committed
from hpctool.checkpoint.restore import Restored, choose, read
from hpctool.errors import InputError, OperationError
from hpctool.launch import moments
from hpctool.rundir import RunDir, now
from hpctool.world import World


class Checkpointer:
    """Saves and restores the state of one run.

    With an attempt's RunDir it writes, and sweeps what dead attempts left; with a reader's (`attempt` 0) it only reads.
    Works with torch, NumPy or both; no pickle is written or read. Raises InputError if `keep_last` is below 2.
    """

    def __init__(self, rundir: RunDir, world: World, keep_last: int = 2) -> None:
        if keep_last < 2:
            raise InputError(
                f"keep_last={keep_last} would leave nothing to go back to when the newest checkpoint is damaged; "
                "give 2 or more."
            )
        self.rundir = rundir
        self.world = world
        self.keep_last = keep_last
        #: steps that retention spares beside the last ones (the best so far); rank 0's counts
        self.keep: set[int] = set()
        self._ledger = rundir.ledger
        if world.is_main and rundir.attempt and rundir.checkpoints.exists():
            known = committed(rundir, self._ledger)
            retention.sweep(rundir.checkpoints, rundir.attempt, None if self._ledger.broken else known)

    def save(self, state: Any, step: int, *, per_rank: Any = None, info: Mapping[str, Any] | None = None) -> Path:
        """Commit the state of `step` and return its folder. Collective: all ranks must call it.

        `state` is the same on all ranks, which share the writing; `per_rank` is this rank's own (random generators);
        `info` is JSON for the manifest. A step that this attempt has already committed is not written again.
        Raises InputError (state that cannot be stored), FencedError, OSError (disk full, …) or OperationError, on all
        ranks alike; nothing of this save is left then and the checkpoint before it stays.
        """
        began_s = time.monotonic()
        final = self.rundir.checkpoint(step)
        name = self.world.on_main(lambda: self._begin(final))
        if name is None:
            return final
        moments.reached("save", step, self.rundir.attempt)
        try:
            reports = self.world.together(lambda: self._write(final.parent / name, step, state, per_rank))
            self.world.on_main(lambda: self._commit(final.parent / name, final, step, info, reports, began_s))
        except Exception as error:
            if self.world.is_main:
                self._undo(final.parent / name, final)
            if isinstance(error, OSError):
                text = (
                    f"The checkpoint of step {step} was not saved ({error.strerror or error}); the one before it stays"
                )
                raise OSError(error.errno, text, error.filename or str(final)) from error
            raise
        if self.world.is_main:
            retention.prune(committed(self.rundir, self._ledger), self.keep_last, self.keep)
        return final

    def restore(self) -> Restored | None:
        """The newest checkpoint that is whole, or None if the run never committed one. Collective.

        Rank 0 verifies and decides; damaged checkpoints are gone around, with a warning, and set aside as
        `<name>.corrupt-<n>` (a reader leaves them). Raises CorruptError if checkpoints were committed and none is
        whole, OperationError if others can write where this attempt resumes from, NewerFormat, OSError.
        """
        moments.reached("resume", attempt=self.rundir.attempt)
        chosen = self.world.on_main(self._choose)
        if chosen is None:
            return None
        found = manifest.Manifest(self.rundir.path / chosen["path"], chosen["body"])
        restored: list[Restored] = []
        self.world.together(lambda: restored.append(read(found, self.world.rank, self.world.size)))
        return restored[0]

    def _begin(self, final: Path) -> str | None:
        """Make the temporary folder and say its name; None if this step is already committed."""
        check_fence(self.rundir, self._ledger)
        if self._is_committed(final):
            return None
        if final.exists():  # of a save that failed so badly that it could not be undone
            retention.discard(final)
        if not final.parent.exists():
            final.parent.mkdir(mode=0o700)
            files.fsync_dir(self.rundir.path)
        folder = retention.temporary_for(final)
        folder.mkdir(mode=0o700)
        return folder.name

    def _write(self, folder: Path, step: int, state: Any, per_rank: Any) -> dict[str, Any]:
        """Write this rank's files and report their sizes and checksums."""
        taken = snapshot.take(state, per_rank, self.world.rank, self.world.size)
        entries = {}
        for name, image in taken.images.items():
            files.write_durably(folder / name, memoryview(image), mode=0o600)
            entries[name] = {"size_bytes": len(image), "sha256": files.sha256_bytes(memoryview(image))}
        moments.reached("written", step, self.rundir.attempt)
        return {"files": entries, "table": taken.table_digest}

    def _commit(
        self,
        folder: Path,
        final: Path,
        step: int,
        info: Mapping[str, Any] | None,
        reports: list[dict[str, Any]],
        began_s: float,
    ) -> None:
        """Rank 0: from files that are written to a checkpoint that counts."""
        differing = [rank for rank, report in enumerate(reports) if report["table"] != reports[0]["table"]]
        if differing:
            raise OperationError(
                f"Ranks {differing} hold other tensors than rank 0 (names, dtypes or shapes), so the state is not the "
                "same on all ranks. Pass what differs as per_rank."
            )
        entries = {name: entry for report in reports for name, entry in report["files"].items()}
        attempt, world_size = self.rundir.attempt, self.world.size
        head = {"step": step, "attempt": attempt, "world_size": world_size, "time": now(), "info": _plain(info)}
        made = manifest.make(folder, head, entries)
        files.fsync_dir(folder)
        try:
            os.rename(folder, final)
        except FileNotFoundError:
            # On NFS a lost reply makes the client ask again, and the second time the old name is gone.
            if not final.exists():
                raise
        files.fsync_dir(final.parent)
        save_s = round(time.monotonic() - began_s, 3)
        moments.reached("commit", step, attempt)
        commit(self.rundir, self._ledger, Commit(step, attempt, final, made.digest), save_s)
        moments.reached("committed", step, attempt)

    def _undo(self, folder: Path, final: Path) -> None:
        """Rank 0: leave nothing of a save that failed, unless its entry stands after all."""
        if folder.exists():
            retention.discard(folder)
        elif final.exists() and not self._is_committed(final):
            retention.discard(final)

    def _choose(self) -> dict[str, Any] | None:
        found = choose(self.rundir, committed(self.rundir, self._ledger))
        if found is None:
            return None
        return {"path": str(found.path.relative_to(self.rundir.path)), "body": found.body}

    def _is_committed(self, final: Path) -> bool:
        return any(made.path == final for made in committed(self.rundir, self._ledger))


def _plain(info: Mapping[str, Any] | None) -> dict[str, Any]:
    """The info as JSON gives it back, so that its digest is the same before and after. Raises InputError."""
    try:
        plain: dict[str, Any] = json.loads(files.canonical_json(dict(info or {})))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The info of a checkpoint is not plain JSON ({error}); put such values into the state."
        ) from error
    return plain
