"""A run's way into Slurm's queue: one job for it, however many ask at once and whatever answer is lost on the way.

`submitting` in the ledger, by compare and swap, before sbatch is asked; then `submitted` with the job, or `refused`.
Where neither follows, the queue is looked through for the run's script.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hpctool.errors import ConflictError, SubmitError
from hpctool.launch.result import is_alive, own_process
from hpctool.launch.slurm import script as slurm
from hpctool.launch.slurm.queue import cluster_name
from hpctool.launch.slurm.standing import parse_time_s
from hpctool.log import Entry
from hpctool.rundir import RunDir, Story, now, who

#: sbatch is given up after two minutes
SUBMITTING_S = 150.0
_TOLD = ("submitting", "submitted", "refused", "begun")


def to_slurm(rundir: RunDir, options: Sequence[str], seen: int) -> str:
    """Hand a run's script to sbatch, and give the job's id. `seen`: the newest ledger entry when that was decided.

    Raises ConflictError where somebody else has started it since, SubmitError, InputError where there is no Slurm.
    """
    slurm.require_slurm()
    _announce(rundir, seen)
    try:
        job_id = slurm.submit_script(rundir.submit_script, *options)
    except SubmitError as error:
        # Else it is looked for when somebody asks again.
        if not slurm.may_have_been_taken(error):
            _note_refused(rundir, error.reason)
        raise
    mark_submitted(rundir, "slurm", job_id)
    return job_id


def is_unknown(story: Story) -> bool:
    """Whether nobody has written down if Slurm has taken a run's newest submission."""
    told = _told(story.entries)
    return bool(told) and told[-1].body["kind"] == "submitting"


def find_submitted(rundir: RunDir) -> bool:
    """Whether Slurm has the job of a run whose submitter ended before it knew; then it is written down.

    Raises ConflictError while somebody else is submitting it, SchedulerError.
    """
    told = _told(rundir.story().entries)
    newest = told[-1].body if told else {}
    if newest.get("kind", "submitting") != "submitting" or not rundir.submit_script.exists():
        return False
    job_id = slurm.in_queue().get(str(rundir.submit_script))
    if job_id:
        mark_submitted(rundir, "slurm", job_id)
    elif newest and is_being_made(newest["process"], newest["time"]):
        raise _conflict(rundir, newest)
    elif newest:
        _note_refused(rundir, "Slurm does not know it")
    return job_id is not None


def is_being_made(process: dict[str, Any], since: str) -> bool:
    """Whether the process that submits something since then may still be at it."""
    return is_alive(process) and time.time() - parse_time_s(since) < SUBMITTING_S


def mark_submitted(rundir: RunDir, where: str, slurm_job_id: str = "") -> None:
    """Write into the ledger that somebody will run this."""
    cluster = {"cluster": cluster_name()} if where == "slurm" else {}
    body = {"kind": "submitted", "where": where, "slurm_job_id": slurm_job_id, "time": now()}
    if rundir.ledger.append({**body, **cluster}) > 1:
        rundir.reopen()


def _announce(rundir: RunDir, seen: int) -> None:
    while True:
        ledger = rundir.ledger
        # Taken before the entries are read: whatever comes later makes `cas` fail.
        last = ledger.last()
        if later := [entry for entry in _told(ledger.entries()) if entry.number > seen]:
            raise _conflict(rundir, later[-1].body)
        if ledger.cas({"kind": "submitting", "by": who(), "process": own_process(), "time": now()}, after=last):
            return


def _note_refused(rundir: RunDir, reason: str) -> None:
    rundir.ledger.append({"kind": "refused", "reason": reason, "time": now()})


def _told(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.body["kind"] in _TOLD]


def _conflict(rundir: RunDir, theirs: dict[str, Any]) -> ConflictError:
    whose = f"that of {theirs['by']}" if "by" in theirs else "another one"
    hint = f"hpctool runs show {rundir.id} says how it stands."
    return ConflictError(
        f"Run {rundir.id}", "this submission", f"{whose}, since {theirs.get('time', 'a moment')}", hint
    )
