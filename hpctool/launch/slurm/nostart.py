"""Nodes on which ranks could not even begin: the run's folder, the code or Python is not there, as where a file system
is not mounted. Such a rank can write nothing down; what it says goes through srun into the batch script's log.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path

#: A file that was just made on another host may take some seconds to be seen: NFS remembers what a folder holds.
_SEEN_S = 10.0
#: `srun: error: n3: tasks 2-3: Exited with exit code 1`
_ENDED = re.compile(r"error: (\S+): tasks? ([0-9,-]+): Exited with exit code")
#: What is said of it behind the number of the task, as srun sets it before each line: by our own Python, by Python, and
#: by Slurm. The group is a path, where it is one.
_NOT_THERE = re.compile(
    r"^\s*(\d+): (?:hpctool: it does not see (\S+);|.*No module named '?hpctool|.*execve\(\): (\S+): No such file)",
    re.M,
)


def sees(path: Path) -> bool:
    """Whether what the job was started for is there; if not, it is said in words that `find` understands."""
    deadline_s = time.monotonic() + _SEEN_S
    while not path.exists():
        if time.monotonic() > deadline_s:
            print(f"hpctool: it does not see {path}; is the file system mounted?", file=sys.stderr, flush=True)
            return False
        time.sleep(0.2)
    return True


def find(said: str, log: str) -> dict[str, str]:
    """Nodes and what is not there, from srun's words and the log of one attempt.

    Empty where it is not there on this host either, on which rank 0 was to run: then no node is to blame.
    """
    here = {os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()}
    missing = {
        int(match[1]): match[2] or match[3] or "the package hpctool" for match in _NOT_THERE.finditer(f"{log}\n{said}")
    }
    nodes = {}
    for match in _ENDED.finditer(said):
        for rank in _numbers(match[2]):
            what = missing.get(rank, "")
            if what and match[1] not in here and (not what.startswith("/") or os.path.exists(what)):
                nodes[match[1]] = f"it does not see {what}"
    return nodes


def _numbers(text: str) -> list[int]:
    """`0,2-3` → 0, 2, 3."""
    pairs = (part.partition("-") for part in text.split(","))
    return [number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)]
