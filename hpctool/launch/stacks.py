"""Which process each rank is, and what it is doing: Python stacks that it writes down when it is asked.

logs/<attempt>/<rank>.stacks begins with a line of JSON that says which process this rank is, and on which host. Sent
`signals.STACKS`, the rank adds the stacks of all its threads, also while it hangs in C code or holds the lock of the
interpreter. Only ranks are asked, one by one: in any other process that signal would be deadly.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpctool.launch import signals
from hpctool.launch.result import is_alive, own_process
from hpctool.rundir import RunDir

_PATIENCE_S = 5.0
#: States of a process in /proc in which it cannot answer.
_UNABLE = {
    "D": "it waits for the file system or a device",
    "T": "it is stopped (suspended by Slurm, or SIGSTOP)",
    "t": "a debugger holds it",
    "Z": "it has ended",
}


@dataclass(frozen=True)
class RankProcess:
    """The process of one rank of an attempt, as it wrote itself down."""

    rank: int
    path: Path
    host: str
    pid: int
    pid_start: str
    #: the node as Slurm calls it, and the number of the job there; empty elsewhere
    node: str = ""
    slurm_job: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this host."""
        return self.host == socket.gethostname()


@dataclass(frozen=True)
class Reply:
    """What a rank did when it was asked: it wrote these bytes of its file, or there was a problem."""

    rank: int
    start: int = 0
    end: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Stacks:
    """The stacks of a rank, or why there are none."""

    rank: int
    text: str = ""
    problem: str = ""


@contextlib.contextmanager
def answering(rundir: RunDir, rank: int) -> Iterator[None]:
    """Write down which process this rank is, and let it answer to `signals.STACKS`."""
    facts = {**own_process(), "node": os.environ.get("SLURMD_NODENAME", "")}
    facts["slurm_job"] = os.environ.get("SLURM_JOB_ID", "")
    # Appended to: a rank that stands still adds its own (hang.py).
    with open(rundir.stacks(rank), "a", encoding="utf-8") as file:
        faulthandler.register(signals.STACKS, file=file, all_threads=True)
        # Last, as whoever reads it may ask at once.
        file.write(json.dumps(facts) + "\n")
        file.flush()
        try:
            yield
        finally:
            # What comes later is ignored again, as before.
            faulthandler.unregister(signals.STACKS)


def rank_processes(rundir: RunDir, attempt: int) -> list[RankProcess]:
    """The ranks of an attempt that have begun, in order."""
    found = []
    for path in rundir.stacks(0, attempt).parent.glob("*.stacks"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(path, encoding="utf-8") as file:
                facts = json.loads(file.readline())
            names = ("host", "pid", "pid_start", "node", "slurm_job")
            found.append(RankProcess(int(path.stem), path, **{name: facts[name] for name in names}))
    return sorted(found, key=lambda one: one.rank)


def ask_here(ranks: Sequence[RankProcess], patience_s: float = _PATIENCE_S) -> list[Reply]:
    """Ask ranks on this host, all at once, and wait until they have answered."""
    asked = {one: one.path.stat().st_size for one in ranks if is_alive(vars(one))}
    refused: dict[RankProcess, str] = {}
    for one in asked:
        try:
            os.kill(one.pid, signals.STACKS)
        except OSError as error:
            refused[one] = f"it could not be asked ({error.strerror})"
    deadline_s = time.monotonic() + patience_s
    ends = {one: _end(one, size, deadline_s) for one, size in asked.items() if one not in refused}
    found = []
    for one in ranks:
        if ends.get(one, 0) > asked.get(one, 0):
            found.append(Reply(one.rank, asked[one], ends[one]))
        else:
            found.append(Reply(one.rank, problem=refused.get(one) or _why_not(one)))
    return found


def _end(one: RankProcess, size_before: int, deadline_s: float) -> int:
    """Where a rank's file ends, once it has grown and grows no more."""
    size = size_before
    while time.monotonic() < deadline_s:
        time.sleep(0.1)
        grown = one.path.stat().st_size
        if grown > size_before and grown == size:
            break
        size = grown
    return size


def read(one: RankProcess, reply: Reply, patience_s: float = _PATIENCE_S) -> Stacks:
    """What a rank has answered, perhaps on another host, whose words a network file system shows a little later."""
    deadline_s = time.monotonic() + patience_s
    while True:
        with open(one.path, "rb") as file:
            file.seek(reply.start)
            data = file.read(reply.end - reply.start)
        if len(data) == reply.end - reply.start or time.monotonic() > deadline_s:
            return Stacks(one.rank, data.decode(errors="replace").strip(), reply.problem)
        time.sleep(0.1)


def _why_not(one: RankProcess) -> str:
    try:
        state = Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        state = ""
    if not state or not is_alive(vars(one)):
        return f"its process {one.pid} on {one.host} is gone"
    why = _UNABLE.get(state, "it may just be starting or ending")
    return f"its process {one.pid} on {one.host} does not answer: {why}"
