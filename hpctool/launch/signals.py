"""Being told to stop. Handlers only note the signal; the job asks at a step boundary and all ranks agree there."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from types import FrameType

# SIGUSR2 is Slurm's and submitit's word for "your time is nearly over"; SIGTERM is preemption, cancel or shutdown.
_CAUSES = {signal.SIGUSR2: "timeout", signal.SIGTERM: "preempted", signal.SIGINT: "interrupted"}

_noted: list[tuple[str, float]] = []
_owner_pid = 0


def install() -> None:
    """Note SIGUSR2, SIGTERM and SIGINT from now on; ignore SIGCONT. Main thread only.

    A second SIGINT ends the process at once: an impatient person at a terminal is right.
    """
    global _owner_pid
    _owner_pid = os.getpid()
    _noted.clear()
    for number in _CAUSES:
        signal.signal(number, _note)
    signal.signal(signal.SIGCONT, lambda *_: None)
    os.register_at_fork(after_in_child=ignore)
    faulthandler.enable()


def ignore() -> None:
    """Leave stopping to the parent: Slurm signals every process of a step, data workers too."""
    if os.getpid() != _owner_pid and _owner_pid:
        for number in _CAUSES:
            signal.signal(number, signal.SIG_IGN)


def stop_cause() -> str:
    """Why this process was asked to stop: timeout, preempted or interrupted; empty while nobody asked."""
    return _noted[0][0] if _noted else ""


def stop_requested() -> bool:
    """Whether this process was asked to stop."""
    return bool(_noted)


def request_stop(cause: str) -> None:
    """Ask as a signal would: for deadlines that the process sees itself, and for tests."""
    _noted.append((cause, time.monotonic()))


def clear() -> None:
    """Forget what was noted: for several runs one after the other in one process."""
    _noted.clear()


def _note(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGINT and stop_requested():
        raise KeyboardInterrupt
    _noted.append((_CAUSES[signal.Signals(number)], time.monotonic()))
