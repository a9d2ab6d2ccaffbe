"""A Slurm of shell scripts: it keeps a list of jobs, refuses what it is told to refuse, and runs nothing by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpctool.launch.private import private_folder
from hpctool.launch.slurm import queue

_SBATCH = """#!/bin/bash
echo "$@" >> {folder}/sbatch.calls
script="${{@: -1}}"
count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
count=$((${{count:-0}} + 1))
if [ -e {folder}/slow ]; then sleep $(cat {folder}/slow); fi
if [ -e {folder}/refuse ]; then cat {folder}/refuse >&2; exit 1; fi
most=$(cat {folder}/max_submit 2> /dev/null || echo 100000)
left=$(cat {folder}/refuse_after 2> /dev/null || echo 100000)
if [ $count -gt $most ]; then
    echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
    exit 1
fi
if [ $left = 0 ]; then echo "sbatch: error: Slurm is tired today" >&2; exit 1; fi
echo $((left - 1)) > {folder}/refuse_after
job=$(($(cat {folder}/last 2> /dev/null || echo 100) + 1))
echo $job > {folder}/last
if grep -q '^#SBATCH --array' "$script"; then
    for ((i = 0; i < count; i++)); do echo "$job ${{job}}_$i $script" >> {folder}/jobs; done
else
    echo "$job $job $script" >> {folder}/jobs
fi
[ -e {folder}/die ] && kill -9 $PPID
if [ -e {folder}/deaf ]; then cat {folder}/deaf >&2; exit 1; fi
echo "Submitted batch job $job"
"""

_SQUEUE = """#!/bin/bash
if [ -e {folder}/silent ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
case "$*" in
    *%F*) while read -r job task script; do echo "$job|$script"; done < {folder}/jobs ;;
    *) while read -r job task script; do echo "{line}"; done < {folder}/jobs ;;
esac
"""

_SCANCEL = """#!/bin/bash
echo "$@" >> {folder}/scancel.calls
if [ -e {folder}/silent ]; then echo "scancel: error: Unable to contact slurm controller" >&2; exit 1; fi
for job in "$@"; do sed -i "/^$job /d" {folder}/jobs; done
"""

_SCONTROL = """#!/bin/bash
case "$*" in
    *config*) echo "MaxArraySize            = $(cat {folder}/max_array 2> /dev/null || echo 1001)" ;;
    *partition*) echo "PartitionName=batch Default=YES State=UP TotalNodes=4" ;;
esac
"""


class ToySlurm:
    """What a test sees of it. Jobs that were submitted stay in the queue until `ends` or a scancel."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "jobs").touch()
        assert queue._FIELDS == ("%i", "%T", "%l", "%M", "%S", "%N", "%r")
        line = "$task|PENDING|1:00:00|0:00|N/A||None"
        for name, text in (("sbatch", _SBATCH), ("squeue", _SQUEUE), ("scancel", _SCANCEL), ("scontrol", _SCONTROL)):
            (folder / name).write_text(text.format(folder=folder, line=line))
            (folder / name).chmod(0o755)
        (folder / "sinfo").write_text("#!/bin/sh\necho 'batch|4|8|16000|(null)|(null)'\n")
        (folder / "sinfo").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("HPCTOOL_SQUEUE_EVERY_S", "0")
        # Another test may have asked another Slurm a moment ago.
        queue.QUEUE.forget()
        self.key = queue.cache_key()

    def set(self, name: str, value: object = "") -> None:
        """max_submit, max_array: a limit; refuse, deaf: what sbatch says; refuse_after: so many jobs; slow: seconds
        that sbatch takes; die, silent."""
        (self.folder / name).write_text(f"{value}\n")

    def clear(self, name: str) -> None:
        """Take a setting back."""
        (self.folder / name).unlink(missing_ok=True)

    def calls(self, program: str) -> list[str]:
        """The command lines of a program."""
        path = self.folder / f"{program}.calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def tasks(self) -> list[str]:
        """What is in the queue."""
        return [line.split()[1] for line in (self.folder / "jobs").read_text().splitlines()]

    def ends(self, *tasks: str) -> None:
        """These tasks (`101_3`) or whole arrays (`101`) leave the queue."""
        lines = (self.folder / "jobs").read_text().splitlines()
        left = [line for line in lines if not set(line.split()[:2]) & set(tasks)]
        (self.folder / "jobs").write_text("".join(f"{line}\n" for line in left))

    def forget(self) -> None:
        """Remove what the shells of this host share."""
        for path in private_folder().glob(f"*-{self.key}.*"):
            path.unlink()
        queue.QUEUE.forget()
