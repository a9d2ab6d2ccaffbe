"""Coming back under Slurm: rank 0 asks for a requeue, everybody waits to be killed (see the table of signals)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from hpctool.errors import EXIT_CONTINUE


def slurm_job_id() -> str:
    """This job's id as scontrol takes it: `<array>_<index>` for a cell of an array. Empty outside Slurm."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID", "")


def from_inside(is_main: bool, patience_s: float = 3600.0) -> int:
    """Requeue this job and wait for the end that Slurm brings; 75 where Slurm cannot be asked from here.

    `requeue incomplete` requeues a running job and does nothing after scancel: a job that its user cancelled stays
    cancelled. No rank exits by itself before that: a job that exits inside the grace time is never requeued.
    """
    if shutil.which("scontrol") is None:
        return EXIT_CONTINUE
    if is_main:
        asked = subprocess.run(
            ["scontrol", "requeue", "incomplete", slurm_job_id()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if asked.returncode != 0:
            print(f"hpctool: Slurm did not requeue this job: {asked.stderr.strip()}", file=sys.stderr, flush=True)
            return EXIT_CONTINUE
    time.sleep(patience_s)
    return EXIT_CONTINUE
