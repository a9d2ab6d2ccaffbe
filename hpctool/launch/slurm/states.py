"""Slurm's job states and what they mean for a run. The complete table of squeue(1) and sacct(1), 20.11 to 25.05."""

from __future__ import annotations

from hpctool.rundir import OVER

#: Slurm's state → our word. `ended` states say nothing of success: the run's own files know more.
STATES: dict[str, str] = {
    # waits
    "PENDING": "queued",
    "CONFIGURING": "queued",
    "REQUEUED": "requeued",
    "REQUEUE_FED": "requeued",
    "REQUEUE_HOLD": "requeued",
    "SPECIAL_EXIT": "requeued",
    "RESV_DEL_HOLD": "queued",
    "POWER_UP_NODE": "queued",
    "EXPEDITING": "queued",
    "LAUNCH_FAILED": "requeued",
    "RECONFIG_FAIL": "requeued",
    # holds nodes
    "RUNNING": "running",
    "COMPLETING": "stopping",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "stopping",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "UPDATE_DB": "stopping",
    # is over
    "COMPLETED": "completed",
    "BOOT_FAIL": "failed",
    "CANCELLED": "cancelled",
    "DEADLINE": "failed",
    "FAILED": "failed",
    "NODE_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "PREEMPTED": "failed",
    "REVOKED": "cancelled",
    "TIMEOUT": "failed",
}

#: squeue's compact states (%t) → the long ones
COMPACT: dict[str, str] = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "CF": "CONFIGURING",
    "CG": "COMPLETING",
    "DL": "DEADLINE",
    "EX": "EXPEDITING",
    "F": "FAILED",
    "LF": "LAUNCH_FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "R": "RUNNING",
    "RD": "RESV_DEL_HOLD",
    "RF": "REQUEUE_FED",
    "RH": "REQUEUE_HOLD",
    "RQ": "REQUEUED",
    "RS": "RESIZING",
    "RV": "REVOKED",
    "SI": "SIGNALING",
    "SE": "SPECIAL_EXIT",
    "SO": "STAGE_OUT",
    "ST": "STOPPED",
    "S": "SUSPENDED",
    "TO": "TIMEOUT",
    "UD": "UPDATE_DB",
}

#: why a job that ended in such a state did, in words
CAUSES: dict[str, str] = {
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "cancelled in Slurm",
    "DEADLINE": "its deadline came",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted, and not requeued",
    "TIMEOUT": "its time limit came",
}


def base(state: str) -> str:
    """The state proper of `CANCELLED by 1000`, `CANCELLED+`, `RUNNING,SUSPENDED` or a compact `CA`, in capitals."""
    word = state.strip().upper().replace("+", " ").replace(",", " ").split(" ")[0]
    return COMPACT.get(word, word)


def word(state: str) -> str:
    """Our word for a Slurm state; one that Slurm has invented since is shown as it is, in small letters."""
    return STATES.get(base(state), base(state).lower())


def is_over(state: str) -> bool:
    """Whether a job in this state is over for Slurm; an unknown state counts as still there."""
    return STATES.get(base(state)) in OVER
