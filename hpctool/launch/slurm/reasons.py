"""Why a job waits: Slurm's reason codes in a short sentence. A code that is not known here is shown as it is."""

from __future__ import annotations

import re

#: The codes of job_reason_codes(5), 20.11 to 25.05, that do not follow a pattern.
REASONS: dict[str, str] = {
    "None": "Slurm has not looked at it yet",
    "WaitingForScheduling": "Slurm has not looked at it yet",
    "SchedDefer": "Slurm looks at it later",
    "DeferBatch": "Slurm looks at it later",
    "Priority": "waits behind jobs of higher priority",
    "Resources": "waits for free resources",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "the job it waits for did not end as it had to; it will never run",
    "BeginTime": "waits for its begin time",
    "JobArrayTaskLimit": "cluster.max_parallel others of its array run",
    "JobHeldUser": "held by its user; scontrol release lets it go",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "held: it was requeued too often; scontrol release lets it go",
    "Cleaning": "its attempt before is still being cleaned up",
    "Prolog": "its nodes are being made ready",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation",
    "ReservationDeleted": "its reservation was deleted",
    "ReqNodeNotAvail": "a node it asks for is down, reserved or in use",
    "NodeDown": "a node it needs is down",
    "FrontEndDown": "no front end node is up",
    "BadConstraints": "no nodes are as it asks; it will never run",
    "Constraints": "no nodes are as it asks at the moment",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionConfig": "it asks for what its partition does not give",
    "PartitionNodeLimit": "it asks for more or fewer nodes than its partition gives",
    "PartitionTimeLimit": "it asks for more time than its partition gives",
    "MaxMemPerLimit": "it asks for more memory per CPU or node than the site allows",
    "AccountingPolicy": "a limit of its account or QOS is reached",
    "AccountNotAllowed": "its account may not use this partition",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "QOSNotAllowed": "its QOS may not be used here",
    "QOSJobLimit": "its QOS has as many jobs as it may",
    "QOSResourceLimit": "its QOS uses as much as it may",
    "QOSTimeLimit": "its QOS has used up its time",
    "QOSUsageThreshold": "its account has used too much for this QOS",
    "AssociationJobLimit": "its account has as many jobs as it may",
    "AssociationResourceLimit": "its account uses as much as it may",
    "AssociationTimeLimit": "its account has used up its time",
    "BurstBufferResources": "waits for room in the burst buffer",
    "BurstBufferStageIn": "its data are being staged in",
    "BurstBufferOperation": "its burst buffer failed",
    "PowerNotAvail": "waits for power",
    "PowerReserved": "waits for power",
    "FedJobLock": "waits for the federation",
    "DeadLine": "it cannot end before its deadline",
    "InactiveLimit": "it was inactive for too long",
    "JobLaunchFailure": "it could not be launched",
    "SystemFailure": "Slurm, a file system or the network failed",
    "NonZeroExitCode": "it ended with an error",
    "TimeLimit": "its time limit came",
    "OutOfMemory": "out of memory",
    "RaisedSignal": "it was killed by a signal",
}

# QOSMaxGRESPerUser, AssocGrpCPURunMinutesLimit, QOSMinCpuNotSatisfied, MaxJobsPerAccount …
_LIMIT = re.compile(
    r"(?P<whose>QOS|Assoc|)(?P<kind>Grp|Max|Min)(?P<what>[A-Z][A-Za-z]*?)(?P<minutes>(?:Run)?Min(?:ute)?s)?"
    r"(?:Per(?P<each>Job|Node|User|Account))?(?:Limit|NotSatisfied)?"
)
_WHAT = {
    **{
        "Cpu": "CPUs",
        "CPU": "CPUs",
        "Mem": "memory",
        "Memory": "memory",
        "Node": "nodes",
        "GRES": "GPUs or other gres",
    },
    **{"Job": "jobs", "Jobs": "jobs", "SubmitJob": "submitted jobs", "SubmitJobs": "submitted jobs"},
    **{"Wall": "time", "WallDuration": "time", "BB": "burst buffer", "License": "licences", "Energy": "energy"},
    **{"Billing": "billing units", "Unknown": "a resource"},
}


def sentence(reason: str) -> str:
    """A reason code as squeue prints it (`ReqNodeNotAvail, UnavailableNodes:n[1-4]`) in words; empty for none."""
    text = reason.strip()
    text = text[1:-1] if text.startswith("(") and text.endswith(")") else text
    code = re.split("[,:]", text)[0].strip()
    nodes = re.search(r"UnavailableNodes:(\S+)", text)
    words = REASONS.get(code) or _limit(code) or text
    return f"{words} ({nodes[1]})" if nodes else words


def _limit(code: str) -> str:
    """`the limit of its QOS on running jobs of a user is reached`, for the codes that are put together."""
    found = _LIMIT.fullmatch(code)
    if found is None:
        return ""
    owner = "its account's" if found["whose"] == "Assoc" else "its QOS's"
    what = _WHAT.get(found["what"], found["what"])
    what = f"minutes of {what}" if found["minutes"] else what
    each = f" per {found['each'].lower()}" if found["each"] else ""
    if found["kind"] == "Min":
        return f"it asks for less of {what} than {owner} least"
    return f"{owner} limit on {what}{each} is reached" + (" by all its jobs together" if found["kind"] == "Grp" else "")
