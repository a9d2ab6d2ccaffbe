"""The commit: a checkpoint counts when its entry stands in the run's ledger, and only the newest attempt may write one.

A beginning attempt writes its `begun` entry before it reads anything. A commit reads the ledger, looks for a newer
attempt and creates the very next entry only if nobody else did meanwhile; so either the commit stands before `begun`
and the new attempt sees it, or it is refused. There is no moment between looking and writing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpctool.errors import FencedError
from hpctool.log import Log
from hpctool.rundir import RunDir, fold, newest_attempt, now


@dataclass(frozen=True)
class Commit:
    """A checkpoint that the ledger names; its folder may be gone by retention or damage."""

    step: int
    attempt: int
    path: Path
    digest: str
    #: how good it is, the higher the better; None where that was not measured
    score: float | None = None
    #: of the parameters alone, and of all files: to compare two runs by (manifest.py)
    param_digest: str = ""
    state_digest: str = ""


def committed(rundir: RunDir, ledger: Log | None = None) -> list[Commit]:
    """The run's committed checkpoints, oldest entry first. The order of entries counts, not that of the steps."""
    story = fold((ledger or rundir.ledger).entries())
    return [
        Commit(
            step=body["step"],
            attempt=body["attempt"],
            path=rundir.path / body["path"],
            digest=body["digest"],
            score=body.get("score"),
            param_digest=body.get("param_digest", ""),
            state_digest=body.get("state_digest", ""),
        )
        for body in story.checkpoints
    ]


def commit(rundir: RunDir, ledger: Log, made: Commit, save_s: float) -> None:
    """Write the ledger entry; `save_s` is how long the save took, in seconds.

    Raises FencedError where a newer attempt has begun, OSError where the disk is full.
    """
    body = {
        "kind": "checkpoint",
        "time": now(),
        "step": made.step,
        "attempt": made.attempt,
        "path": str(made.path.relative_to(rundir.path)),
        "digest": made.digest,
        "save_s": save_s,
        "score": made.score,
        "param_digest": made.param_digest,
        "state_digest": made.state_digest,
    }
    while True:
        # Taken before the entries are read: whatever comes later makes `cas` fail.
        last = ledger.last()
        check_fence(rundir, ledger)
        if ledger.cas(body, after=last):
            return


def check_fence(rundir: RunDir, ledger: Log) -> None:
    """Raise FencedError where a newer attempt of the run has begun."""
    newest = newest_attempt(ledger.entries())
    if newest > rundir.attempt:
        raise FencedError(rundir.id, rundir.attempt, newest)
