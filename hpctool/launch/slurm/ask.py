"""Asking Slurm: the one place that runs its programs, with a limit of time, and reads what they print.

Every call costs the controller something; lists of jobs are asked through queue.py, which shares one answer.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from hpctool.errors import SchedulerError

#: `Key=Value Key=Value …` as scontrol prints it; a value may hold spaces, a key begins with a letter.
_PAIR = re.compile(r"(?:^|\s)([A-Z][A-Za-z0-9_:./-]*)=")

#: What says which Slurm is meant and who asks it; all else of SLURM_* tells of a job.
_OF_THE_SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
#: Formats and filters of users' own, which change what Slurm's programs print and cancel.
_FOR_EYES = ("SQUEUE_", "SACCT_", "SACCTMGR_", "SINFO_", "SCANCEL_", "SCONTROL_")

TIMEOUT_S = 60.0


def have(program: str) -> bool:
    """Whether a Slurm program can be run here: some sites have none on compute nodes, containers have none."""
    return shutil.which(program) is not None


def outside() -> dict[str, str]:
    """This process's environment without what a job or step has left in it: a job inside a job must not inherit it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "PMI"))}
    return kept | {k: v for k, v in os.environ.items() if k in _OF_THE_SITE}


def as_read_here() -> dict[str, str]:
    """An environment in which Slurm's programs say all, in the form that is read here, whatever users like to see."""
    kept = {key: value for key, value in outside().items() if not key.startswith(_FOR_EYES)}
    # 0: cells that wait together are listed in full, not cut after 64 characters.
    return kept | {"SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard"}


def call(
    *command: str, timeout_s: float = TIMEOUT_S, env: Mapping[str, str] | None = None, with_stderr: bool = False
) -> str:
    """What a Slurm program prints. Raises SchedulerError where it is missing, does not answer or refuses.

    `env` is for those that start jobs, which inherit it.
    """
    env = as_read_here() if env is None else env
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False, env=env
        )
    except FileNotFoundError as error:
        raise SchedulerError(command, "the program is not here") from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(command, f"no answer within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise SchedulerError(command, plain(done.stderr or done.stdout) or f"exit code {done.returncode}")
    return done.stdout + done.stderr if with_stderr else done.stdout


def show(kind: str, name: str = "", timeout_s: float = TIMEOUT_S) -> list[dict[str, str]]:
    """`scontrol show <kind> [name]`, a dict for each record. Raises SchedulerError."""
    text = call("scontrol", "--oneliner", "show", kind, *([name] if name else []), timeout_s=timeout_s)
    return [record for line in text.splitlines() if (record := pairs(line))]


def site_config(timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """`scontrol show config`: every setting of the controller. Raises SchedulerError."""
    lines = call("scontrol", "show", "config", timeout_s=timeout_s).splitlines()
    split = (line.partition(" = ") if " = " in line else line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, mark, value in split if mark}


def pairs(line: str) -> dict[str, str]:
    """`Key=Value Key=Value` as a dict; a value reaches to the next key."""
    found = list(_PAIR.finditer(line))
    ends = [one.start() for one in found[1:]] + [len(line)]
    return {one.group(1): line[one.end() : end].strip() for one, end in zip(found, ends, strict=True)}


def plain(text: str) -> str:
    """An error text of Slurm's as one line without the programs' prefixes."""
    lines = [re.sub(r"^(\w+: )(error: |fatal: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def moment_s(text: str) -> float | None:
    """A time of Slurm's, local and without a zone, in seconds of time.time(); None for N/A and Unknown."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def seconds(text: str) -> float | None:
    """A duration as squeue prints it: `3:04` (minutes and seconds), `2:03:04`, `1-02:03:04`; None for UNLIMITED …"""
    days, _, rest = text.rpartition("-")
    parts = rest.split(":")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in [*parts, days or "0"]):
        return None
    hours, minutes, rest_s = [0] * (3 - len(parts)) + [int(part) for part in parts]
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + rest_s)


def kill_wait_s(config: Mapping[str, str]) -> int:
    """Seconds between Slurm's SIGTERM and its SIGKILL, from what `site_config` gives."""
    match = re.match(r"\d+", config.get("KillWait", "30 sec"))
    return int(match.group()) if match else 30
