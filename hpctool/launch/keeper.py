"""The keeper: a small process between a rank and somebody's own program, so that nothing of the program gets lost.

    python -I -S keeper.py <socket> <stop signal> <command…>      started by program.py; needs nothing but Python

It is the program's parent and adopts what the program leaves behind, daemons too. All of that is ended when the
program has ended, and when the rank is gone, even by `kill -9`. The program is told to stop exactly once: some Slurm
configurations signal every process of a step, others only the ranks. What reaches the keeper has reached the program
as well; what does not, the keeper passes on.

Lines from the rank:     tell <signal>      kill
Lines to the rank:       started <pid>      cannot <errno> <reason>      ended <exit code> <1 if it ignored the signal>
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
#: A signal that the rank got may be on its way to everybody else.
_ON_ITS_WAY_S = 0.3
#: One that came longer ago was another one.
_LATELY_S = 5.0
_POLL_S = 0.05
#: A shell passes no signal on to what it waits for.
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "mksh", "busybox"}


class Keeper:
    """The parent of one program; `link` leads to the rank. Raises OSError where the program cannot be started."""

    def __init__(self, link: socket.socket, stop_signal: int, command: list[str]) -> None:
        self.link = link
        self.noted: dict[int, float] = {}
        self.asked: tuple[int, float] | None = None
        #: whom the signal went to: the program, and what it had started if it is a shell
        self.told: list[int] = []
        self.ignored = False
        self.code: int | None = None
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (*_NOTED, signal.SIGCHLD):
            signal.signal(number, self._note)
        adopt_orphans()
        parent = os.getpid()
        self._program = subprocess.Popen(
            command, preexec_fn=lambda: _before_program(parent, stop_signal), process_group=0
        )
        self.pid = self._program.pid
        self._say(f"started {self.pid}")

    def run(self) -> None:
        """Wait for the program's end and say it; end everything at once where the rank says so or is gone."""
        while self.code is None or set(self.told) & set(_descendants()):
            waiting = self.code is not None or (self.asked is not None and not self.told)
            link = self.link.fileno()
            ready = select.select([link, self._wake], [], [], _POLL_S if waiting else None)[0]
            if self._wake in ready:
                os.read(self._wake, 4096)
            if link in ready:
                words = self.link.recv(4096).split()
                if not words or b"kill" in words:
                    end_descendants()
                if not words:
                    return
                if b"tell" in words:
                    self.asked = int(words[words.index(b"tell") + 1]), time.monotonic()
            self._tell()
            self._reap()
        end_descendants()
        self._say(f"ended {self.code} {int(self.ignored)}")

    def _note(self, number: int, _frame: object) -> None:
        self.noted[number] = time.monotonic()

    def _tell(self) -> None:
        """Pass on what the rank asked for, unless it comes to everybody by itself."""
        if self.asked is None or self.told or self.code is not None:
            return
        number, asked_s = self.asked
        has_come = asked_s - self.noted.get(number, -_LATELY_S) < _LATELY_S
        if not has_come and time.monotonic() - asked_s < _ON_ITS_WAY_S:
            return
        self.told = [self.pid, *_started_by_shell(self.pid)]
        self.ignored = _ignores(self.pid, number)
        for pid in () if has_come else self.told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self.pid:
                    self.code = os.waitstatus_to_exitcode(found[1])

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self.link.sendall(f"{line}\n".encode())


def adopt_orphans() -> None:
    """Become the parent of whatever a descendant leaves behind, in place of process 1."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(patience_s: float = 10.0) -> None:
    """Kill everything below this process; what it started meanwhile, too. Zombies are left to be reaped."""
    deadline = time.monotonic() + patience_s
    while (found := _descendants()) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _before_program(parent: int, stop_signal: int) -> None:
    """In the new process: die with the keeper, and take no harm from Slurm's word for the time limit."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    if stop_signal != signal.SIGUSR2:
        # The rank gets it as well, and says it in the signal that the program knows.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _parents() -> dict[int, int]:
    """Every process that lives and its parent's pid; zombies do not live."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[int(path.parent.name)] = int(parent)
    return found


def _descendants() -> list[int]:
    """What lives below this process, children before their own."""
    parents, found = _parents(), [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _started_by_shell(pid: int) -> list[int]:
    """The children of a shell, and theirs as far as these are shells; nothing where `pid` is none."""
    try:
        if os.path.basename(os.readlink(f"/proc/{pid}/exe")) not in _SHELLS:
            return []
    except OSError:
        return []
    found = []
    for child, parent in _parents().items():
        if parent == pid:
            found += [child, *_started_by_shell(child)]
    return found


def _ignores(pid: int, number: int) -> bool:
    """Whether a process ignores or blocks a signal, so that it ends for reasons of its own."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = [int(mask, 16) for mask in re.findall(r"^Sig(?:Ign|Blk):\s*(\w+)", text, re.M)]
    return any(mask >> (number - 1) & 1 for mask in masks)


def main(arguments: list[str]) -> None:
    """Start the program, say so or why not, and keep it."""
    with socket.socket(fileno=int(arguments[0])) as link:
        try:
            keeper = Keeper(link, int(arguments[1]), arguments[2:])
        except OSError as error:
            link.sendall(f"cannot {error.errno} {error.strerror}\n".encode())
            return
        keeper.run()


if __name__ == "__main__":
    main(sys.argv[1:])
