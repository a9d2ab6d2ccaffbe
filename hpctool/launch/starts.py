"""Which start of a run a process belongs to, and whether a later one has begun meanwhile.

A process that was frozen before its attempt began and wakes up when another has taken its place must not take the run
from it. Whoever starts processes gives them what tells starts apart. The local queue: how far the run's ledger was then
(HPCTOOL_START). Slurm: the job, how often it was restarted, and which submission it is. What was typed here and now is
meant.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hpctool.errors import CancelledError, FencedError
from hpctool.launch.slurm import inside
from hpctool.log import Entry
from hpctool.rundir import RunDir, Story, is_of_job

#: environment variable of what the local queue starts: a run, and the newest entry that its ledger had
START = "HPCTOOL_START"


def said(run: str, last: int) -> dict[str, str]:
    """What the local queue says to the processes of a start of `run`, whose newest ledger entry is number `last`."""
    return {START: f"{run} {last}"}


@dataclass(frozen=True)
class Start:
    """What a process was started for."""

    slurm_job_id: str = ""
    restart_count: int = 0
    cluster: str = ""
    #: the newest entry that the ledger had; None where it was not the local queue that started it
    last: int | None = None

    def facts(self) -> dict[str, Any]:
        """What a `begun` entry says of it."""
        return {
            "slurm_job_id": self.slurm_job_id,
            "slurm_step_id": os.environ.get("SLURM_STEP_ID", "") if self.slurm_job_id else "",
            "restart_count": self.restart_count,
            # By the controller's clock, which says the same of a job in squeue. 22.05 does not tell its jobs: then 0.
            "slurm_start_s": int(os.environ.get("SLURM_JOB_START_TIME", 0)) if self.slurm_job_id else 0,
            "cluster": self.cluster,
        }


def of_job() -> Start:
    """That of the Slurm job in which this process is, if it is in one."""
    return Start(inside.slurm_job_id(), inside.restart_count(), os.environ.get("SLURM_CLUSTER_NAME", ""))


def own(run: str, where: str) -> Start:
    """The start that this process belongs to."""
    if inside.is_job(where):
        return of_job()
    told, _, last = os.environ.get(START, "").partition(" ")
    # A run that is begun within another one's process has that one's environment.
    return Start(last=int(last) if where == "local" and told == run else None)


def later(entries: Sequence[Entry], mine: Start) -> int:
    """The newest attempt of a later start than `mine`, which has not begun; 0 if none of a later one has."""
    if mine.slurm_job_id:
        is_later = _in_slurm(entries, mine)
    elif (last := mine.last) is not None:
        is_later = partial(_is_behind, last)
    else:
        return 0
    return max((e.body["attempt"] for e in entries if e.body["kind"] == "begun" and is_later(e)), default=0)


def refuse(rundir: RunDir, entries: Sequence[Entry], mine: Start) -> None:
    """Raise FencedError where a later start has begun, CancelledError where this one's job was cancelled before."""
    if newest := later(entries, mine):
        raise FencedError(rundir.id, 0, newest)
    if by := cancelled_by(entries, mine):
        raise CancelledError(rundir.id, by)


def cancelled_by(entries: Sequence[Entry], mine: Start) -> str:
    """Who has cancelled the submission that this start comes from; empty for nobody, or one made by hand.

    scancel may not have reached Slurm, or an administrator may have requeued the job.
    """
    own = max((e.number for e in entries if e.body["kind"] == "submitted" and _is_own(mine, e.body)), default=0)
    later_cancels = [e.body["by"] for e in entries if own and e.number > own and e.body["kind"] == "cancel"]
    return later_cancels[-1] if later_cancels else ""


def _is_own(mine: Start, submitted: Mapping[str, Any]) -> bool:
    return is_of_job(mine.slurm_job_id, *_named(submitted)) and submitted.get("cluster", "") in ("", mine.cluster)


def began_instead(rundir: RunDir, before: Story, pid: int) -> int:
    """The attempt that another start began when process `pid` of this host was to begin one; 0 if it has or could.

    `before` is the run's story when the process was started.
    """
    begun = [e.body for e in rundir.story().entries if e.number > before.last and e.body["kind"] == "begun"]
    is_own = not begun or (begun[0]["host"], begun[0]["pid"]) == (socket.gethostname(), pid)
    return 0 if is_own else int(begun[0]["attempt"])


def _is_behind(last: int, begun: Entry) -> bool:
    return begun.number > last


def _in_slurm(entries: Sequence[Entry], mine: Start) -> Callable[[Entry], bool]:
    """A restart of the same job, or what came of a submission after this one's."""
    job, cluster = mine.slurm_job_id, mine.cluster
    submitted = [entry for entry in entries if entry.body["kind"] == "submitted"]
    own = max((e.number for e in submitted if is_of_job(job, *_named(e.body))), default=0)
    after = [e for e in submitted if (e.number > own if own else _is_newer(job, cluster, e.body))]

    def is_later(begun: Entry) -> bool:
        theirs = begun.body.get("slurm_job_id", "")
        if (theirs, begun.body.get("cluster", "")) == (job, cluster):
            # A cluster that was set up anew counts from 1 again: what began before this submission was another job.
            return begun.number > own and begun.body.get("restart_count", 0) > mine.restart_count
        # A job may begin before the one who submitted it has written down its number.
        return any(begun.number > e.number or is_of_job(theirs, *_named(e.body)) for e in after)

    return is_later


def _named(submitted: Mapping[str, Any]) -> tuple[str, str]:
    """The job of a submission and its array, as far as they were known."""
    return submitted.get("slurm_job_id", ""), submitted.get("array", "")


def _is_newer(job: str, cluster: str, submitted: Mapping[str, Any]) -> bool:
    """Whether a submission came after a job that the ledger does not know: by hand, or the first to claim a cell."""
    numbers = [one.partition("_")[0] for one in (job, "".join(_named(submitted)[::-1]))]
    is_comparable = submitted.get("cluster", "") == cluster and all(number.isdigit() for number in numbers)
    return is_comparable and int(numbers[0]) < int(numbers[1])
