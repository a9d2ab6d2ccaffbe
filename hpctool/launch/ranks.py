"""The ranks of one attempt on this machine: started together, watched without blocking, ended together.

All ranks are one process group, so that a signal reaches what they started as well, as it does under Slurm. Its
leader is reaped last: until then nobody else can get the group's number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpctool.errors import OperationError, listing
from hpctool.rendezvous import RENDEZVOUS
from hpctool.rundir import RunDir

#: The program that is one rank; the run folder is its last argument.
TASK = (sys.executable, "-m", "hpctool.launch.task")

#: Environment variable of all that a queue starts: which queue. What outlives its supervisor is found by it.
MARK = "HPCTOOL_LOCAL_QUEUE"

#: When one rank has failed, the others get this long to say what they saw before they are ended.
GRACE_S = 2.0


@dataclass(frozen=True)
class Limits:
    """How long an attempt may run (None: for ever), when it is told before that, and how long it may take to stop."""

    time_s: float | None
    signal_delay_s: float
    kill_wait_s: float


@dataclass(frozen=True)
class Outcome:
    """How the ranks ended: exit codes in order of rank, negative for a signal."""

    codes: tuple[int, ...]
    #: the first rank that did not end with 0, or None
    first_rank: int | None = None
    #: why the ranks had been told to stop when that happened: timeout, cancelled, shutdown, or empty
    told: str = ""

    @property
    def first_code(self) -> int:
        """The exit code of the first rank that did not end with 0; 0 if all did."""
        return 0 if self.first_rank is None else self.codes[self.first_rank]


class Attempt:
    """The processes of one attempt. Call `poll` every now and then: it also keeps the limits."""

    def __init__(
        self,
        rundir: RunDir,
        num_ranks: int,
        limits: Limits,
        environ: Mapping[str, str],
        command: Sequence[str] = TASK,
        cwd: Path | None = None,
    ) -> None:
        """Start the ranks. Raises OSError where the machine cannot; nothing runs then."""
        self.limits = limits
        self._started = time.monotonic()
        self._told = ""
        self._warned = self._killed = False
        self._kill_at: float | None = None
        self._failed_at: float | None = None
        self._failed_told = ""
        self._first_rank: int | None = None
        self._codes: dict[int, int] = {}
        self._outcome: Outcome | None = None
        self._rendezvous = rundir.path / "logs" / f"meet-{uuid.uuid4().hex}.json"
        self._rendezvous.parent.mkdir(parents=True, exist_ok=True)
        self._ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(num_ranks):
                own = self._environment(environ, rank, num_ranks)
                self._ranks.append(self._start(rundir, rank, own, command, cwd))
        except BaseException:
            self._end_group()
            raise

    @property
    def pid(self) -> int:
        """The process id of rank 0, which is also the number of the process group."""
        return self._ranks[0].pid

    @property
    def pids(self) -> list[int]:
        """The process ids of the ranks, in order."""
        return [process.pid for process in self._ranks]

    def poll(self) -> Outcome | None:
        """How the attempt ended, or None while it runs. Sends what signals are due; never waits."""
        if self._outcome is None:
            self._observe()
            if len(self._codes) == len(self._ranks):
                self._end_group()
                codes = tuple(self._codes[rank] for rank in range(len(self._ranks)))
                self._outcome = Outcome(codes, self._first_rank, self._failed_told)
            else:
                self._keep_limits(time.monotonic())
        return self._outcome

    def stop(self, why: str) -> None:
        """Tell all ranks to stop (SIGTERM); what lives after `kill_wait_s` is killed. `why` as in Outcome.told."""
        self._told = self._told or why
        if self._kill_at is None and self._outcome is None:
            self._kill_at = time.monotonic() + self.limits.kill_wait_s
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all ranks now and wait for their end."""
        if self._outcome is None:
            self._end_group()

    def _environment(self, environ: Mapping[str, str], rank: int, num_ranks: int) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": "1",
            # A log that is followed, and what a killed rank said last.
            "PYTHONUNBUFFERED": "1",
            **environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "HPCTOOL_WHERE": "local",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            RENDEZVOUS: str(self._rendezvous),
        }

    def _start(
        self, rundir: RunDir, rank: int, environ: dict[str, str], command: Sequence[str], cwd: Path | None
    ) -> subprocess.Popen[bytes]:
        with open(starting_log(rundir, rank), "ab") as log:
            return subprocess.Popen(
                [*command, str(rundir.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=cwd or rundir.path,
                process_group=self.pid if self._ranks else 0,
            )

    def _observe(self) -> None:
        """Note which ranks have ended, without reaping them."""
        found = {}
        for rank, process in enumerate(self._ranks):
            if rank not in self._codes:
                info = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if info is not None:
                    found[rank] = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        self._codes.update(found)
        # Seen in the same moment: a rank that was killed did not die of the others' failure, but they of its.
        failed = sorted((code > 0, rank) for rank, code in found.items() if code != 0)
        if failed and self._first_rank is None:
            self._first_rank = failed[0][1]
            self._failed_at, self._failed_told = time.monotonic(), self._told

    def _keep_limits(self, now: float) -> None:
        age_s, limits = now - self._started, self.limits
        if limits.time_s is not None:
            if not self._warned and age_s >= limits.time_s - limits.signal_delay_s:
                self._warned = True
                self._told = self._told or "timeout"
                self._signal(signal.SIGUSR2)
            if age_s >= limits.time_s:
                self.stop("timeout")
        if self._failed_at is not None and now >= self._failed_at + GRACE_S:
            self.stop("")
        if self._kill_at is not None and now >= self._kill_at and not self._killed:
            self._killed = True
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Safe until the leader is reaped: its number is taken, be it a zombie. That nobody is there, or only what
        # became another user's, must not keep whoever watches from the other runs.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _end_group(self) -> None:
        """Kill what is left of the group (what ranks started and left behind, too) and reap the ranks."""
        if self._ranks:
            self._signal(signal.SIGKILL)
        for process in reversed(self._ranks):
            process.wait()
        self._rendezvous.unlink(missing_ok=True)


def starting_log(rundir: RunDir, rank: int) -> Path:
    """What a rank says before its attempt has begun and given it a log of its own."""
    return rundir.path / "logs" / f"starting-{rank}.log"


def end_orphans(mark: str, patience_s: float = 60.0) -> list[int]:
    """Kill every process that a queue whose supervisor died has left running; returns their pids.

    Found by the mark in their environment, which also children and those that changed their group have. Only the one
    supervisor of that queue may call it. Raises OperationError where one does not die.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + patience_s
    while found := _marked(mark):
        if time.monotonic() > deadline:
            raise OperationError(f"The processes {listing(map(str, found))} of an earlier supervisor cannot be killed.")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended.update(found)
        time.sleep(0.05)
    return sorted(ended)


def _marked(mark: str) -> list[int]:
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]
