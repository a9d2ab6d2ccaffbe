"""Inside a job that is told to stop: why, how long is left, and what will bring it back.

What `scontrol show job` says while the ranks save (measured, Slurm 22.05):

    event                                JobState     PreemptTime  Restarts    what follows
    preempted, grace time                RUNNING      set          unchanged   we ask for the requeue
    preempted REQUEUE, no grace          COMPLETING   None         raised      Slurm has requeued
    preempted CANCEL, no grace           COMPLETING   set          unchanged   we ask, and Slurm does it
    its grace time is over               COMPLETING   the end's    unchanged   the same
    scancel                              COMPLETING   None         unchanged   nothing: it is over
    scancel within a grace time          COMPLETING   set          unchanged   nothing; the grace time was not over
    scontrol requeue by anyone           COMPLETING   None         raised      Slurm has requeued
    time limit near                      RUNNING      None         unchanged   we ask
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hpctool.errors import SchedulerError
from hpctool.launch.slurm import ask

#: Slurm may send the signal before the time limit up to a minute early (sbatch(1), --signal).
EARLY_S = 60.0
#: Asked from a job that is being stopped: it must not wait for a controller that does not answer.
ASK_S = 8.0
#: within the seconds that a requeued job has until it is killed (KillWait)
_EXCLUDE_TRIES = 6
#: A lost node is Slurm's to find out (SlurmdTimeout, 300 s by default); who goes before that makes a failure of what
#: would have been requeued.
VERDICT_S = 420.0


@dataclass(frozen=True)
class Stop:
    """Why a job is stopped: `cause` in our words; `state` that the attempt ends in; how to come back."""

    #: preempted, timeout, cancelled, requeued (Slurm has done it already) or signal
    cause: str
    #: how to ask for the requeue: `incomplete`, `plain`, or empty where nothing is to be asked
    ask: str = ""
    #: when the job will be killed, in seconds of time.time(); None if nobody knows
    deadline_s: float | None = None

    @property
    def state(self) -> str:
        """requeued or cancelled."""
        return "cancelled" if self.cause == "cancelled" else "requeued"


def slurm_job_id() -> str:
    """This job's id as scontrol takes it: `<array>_<index>` for a cell of an array. Empty outside Slurm."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")


def where() -> str:
    """`slurm` for a rank that our batch script started, else `local`: being in an allocation changes nothing."""
    return "slurm" if os.environ.get("HPCTOOL_WHERE") == "slurm" and slurm_job_id() else "local"


def is_job(where: str) -> bool:
    """Whether Slurm is who ends this process: a rank of our script, or of `srun hpctool … cluster=inline`."""
    return where == "slurm" or (where == "inline" and "SLURM_STEP_NUM_TASKS" in os.environ and bool(slurm_job_id()))


def restart_count() -> int:
    """How often Slurm has started this job again; it says nothing the first time."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def look() -> Stop:
    """Ask Slurm once why this job is being stopped. Raises SchedulerError."""
    record = ask.show("job", slurm_job_id(), timeout_s=ASK_S)[0]
    limits = Limits.of(record["Partition"])
    return judge(record, restart_count(), limits, time.time())


@dataclass(frozen=True)
class Limits:
    """What the site gives a job that is preempted: the partition's grace time and KillWait, in seconds."""

    grace_s: float = 0.0
    kill_wait_s: float = 30.0

    @staticmethod
    @functools.cache
    def of(partition: str) -> Limits:
        """Ask for both, once; a QOS may say another grace time, which is not asked (it sees a shorter deadline)."""
        record = ask.show("partition", partition, timeout_s=ASK_S)[0]
        return Limits(float(record.get("GraceTime", "0")), ask.kill_wait_s(ask.site_config(timeout_s=ASK_S)))


def judge(record: dict[str, str], restarts_before: int, limits: Limits, now_s: float) -> Stop:
    """The table above: `record` is what `scontrol show job` says, `now_s` the time at which it said it."""
    preempted_s = ask.moment_s(record.get("PreemptTime", ""))
    started_s, end_s = (ask.moment_s(record.get(key, "")) for key in ("StartTime", "EndTime"))
    if int(record.get("Restarts", "0")) > restarts_before:
        return Stop("requeued")
    if record["JobState"] in ("RUNNING", "SUSPENDED"):
        if preempted_s is not None:
            return Stop("preempted", "incomplete", preempted_s + limits.grace_s + limits.kill_wait_s)
        signal_s = _signal_delay_s()
        if end_s is not None and end_s - now_s <= signal_s + EARLY_S:
            return Stop("timeout", "incomplete", end_s)
        return Stop("signal", "incomplete")
    limit_s = ask.seconds(record.get("TimeLimit", ""))
    if started_s is not None and limit_s is not None and now_s >= started_s + limit_s:
        return Stop("timeout", "plain", started_s + limit_s + limits.kill_wait_s)
    if preempted_s is not None and _made_way(preempted_s, now_s if end_s is None else end_s, limits.grace_s):
        killed_s = preempted_s + limits.grace_s if end_s is None else end_s
        return Stop("preempted", "plain", killed_s + limits.kill_wait_s)
    return Stop("cancelled", deadline_s=None if end_s is None else end_s + limits.kill_wait_s)


def _made_way(preempted_s: float, end_s: float, grace_s: float) -> bool:
    """Whether preemption has ended a job, and not its user meanwhile.

    Slurm sets PreemptTime anew when it ends the job behind the grace time, to the same second as EndTime. A user's
    scancel leaves it as it was, and EndTime lies within the grace time.
    """
    return end_s <= preempted_s or end_s >= preempted_s + grace_s


def requeue(how: str) -> None:
    """Ask for this job's requeue; the moment it is granted every rank is killed. Raises SchedulerError.

    `incomplete` does nothing after scancel: it closes the gap between looking and asking.
    """
    words = ["incomplete"] if how == "incomplete" else []
    ask.call("scontrol", "requeue", *words, slurm_job_id(), timeout_s=ASK_S)


def requeue_without(nodes: Sequence[str]) -> None:
    """Ask for the requeue, and while the job ends for it, that these nodes be left out.

    An ordinary user may change that of a job which waits, and a requeued one does from the moment it is granted. Where
    Slurm refuses, the script asks for the requeue once more, and the check fails again if the node comes again.
    """
    with contextlib.suppress(SchedulerError):
        requeue("incomplete")
    for _ in range(_EXCLUDE_TRIES):
        try:
            ask.call("scontrol", "update", f"JobId={slurm_job_id()}", f"ExcNodeList={','.join(nodes)}", timeout_s=ASK_S)
        except SchedulerError:
            time.sleep(0.5)
        else:
            return


def try_requeue() -> None:
    """Ask for the requeue of a job that preemption has cancelled; where that fails, whoever asks next sees it gone."""
    with contextlib.suppress(SchedulerError):
        requeue("plain")


def why(signal_cause: str) -> Stop:
    """Like `look`; where Slurm cannot be asked from here, what the signal alone says: the script will ask."""
    try:
        return look()
    except (SchedulerError, IndexError, KeyError, ValueError):
        return Stop(signal_cause, "incomplete")


def _signal_delay_s() -> float:
    # Our batch script exports what it asked for; job.sbatch asks for the default.
    return float(os.environ.get("HPCTOOL_SIGNAL_DELAY_S", "120"))
