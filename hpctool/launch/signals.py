"""Being told to stop. Handlers only note the signal; the job asks at a step boundary and all ranks agree there."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType

# SIGUSR2 is Slurm's and submitit's word for "your time is nearly over"; SIGTERM is preemption, cancel or shutdown;
# SIGHUP comes when the terminal is closed or its connection breaks.
_CAUSES = {
    signal.SIGUSR2: "timeout",
    signal.SIGTERM: "preempted",
    signal.SIGINT: "interrupted",
    signal.SIGHUP: "interrupted",
}

#: Asks a rank for its Python stacks (stacks.py). NCCL has SIGUSR1, Slurm and submitit SIGUSR2; nobody has this one.
STACKS = int(signal.SIGRTMIN) + 5

_noted: list[tuple[str, float]] = []
#: how long after a signal the process is killed, by cause, where that is known beforehand
_grace_s: dict[str, float] = {}
_deadline_s: float | None = None
_owner_pid = 0
_wakeup: tuple[int, int] | None = None
_has_boundaries = True
_pause = ""


def install() -> None:
    """Note SIGUSR2, SIGTERM, SIGINT and SIGHUP from now on; ignore SIGCONT. Main thread only.

    SIGHUP stays ignored where it is (nohup). What the batch script blocked until now (script.py) arrives here. A second
    SIGINT ends the process at once: an impatient person at a terminal is right.
    """
    global _owner_pid, _wakeup
    _owner_pid = os.getpid()
    _noted.clear()
    if _wakeup is None:
        _wakeup = os.pipe()
        os.set_blocking(_wakeup[1], False)
    signal.set_wakeup_fd(_wakeup[1], warn_on_full_buffer=False)
    for number in _noticed():
        signal.signal(number, _note)
    signal.signal(signal.SIGCONT, lambda *_: None)
    # Until somebody listens to it; processes that are started from here ignore it, too.
    signal.signal(STACKS, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CAUSES)
    os.register_at_fork(after_in_child=ignore)
    faulthandler.enable()


def listen(also: signal.Signals) -> Callable[[], None]:
    """Note the same signals, and `also` as preemption, in a program that is not ours; the answer ends that.

    Main thread only. Raises ValueError in another.
    """
    global _owner_pid
    before = {number: signal.getsignal(number) for number in {*_noticed(), also}}
    _noted.clear()
    for number in before:
        signal.signal(number, _note)
    if not _owner_pid:
        os.register_at_fork(after_in_child=ignore)
    _owner_pid = os.getpid()

    def end() -> None:
        global _owner_pid
        _owner_pid = 0
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    return end


def _noticed() -> list[signal.Signals]:
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in _CAUSES if not (is_nohup and number == signal.SIGHUP)]


def expect(boundaries: bool) -> None:
    """Say whether the work that begins now asks for stops itself; where it does not, the first Ctrl-C ends it."""
    global _has_boundaries
    _has_boundaries = boundaries


def grace(seconds: Mapping[str, float]) -> None:
    """Say how long after a signal this process will be killed, in seconds by cause, as far as that is known."""
    global _deadline_s
    _grace_s.clear()
    _grace_s.update(seconds)
    _deadline_s = None


def know_deadline(seconds: float) -> None:
    """Whoever could ask has found out that the kill comes in so many seconds."""
    global _deadline_s
    _deadline_s = time.monotonic() + seconds


def seconds_left() -> float | None:
    """How long until this process, which was told to stop, is killed; None while nobody knows."""
    known = [noted_s + _grace_s[cause] for cause, noted_s in _noted if cause in _grace_s]
    ends_s = _deadline_s if _deadline_s is not None else min(known, default=None)
    return None if ends_s is None else max(0.0, ends_s - time.monotonic())


def ignore() -> None:
    """Leave stopping to the parent: Slurm signals every process of a step, data workers too."""
    if os.getpid() != _owner_pid and _owner_pid:
        signal.set_wakeup_fd(-1)
        for number in (*_CAUSES, STACKS):
            signal.signal(number, signal.SIG_IGN)


def wait(timeout_s: float) -> str:
    """Wait for the process to be told to stop, and say why; empty if nobody did. For a thread beside the main one.

    It hears of the signal even while the main thread is held up in C code and Python's handler has to wait.
    """
    assert _wakeup is not None, "install() comes first"
    if not _noted and select.select([_wakeup[0]], [], [], timeout_s)[0]:
        for number in os.read(_wakeup[0], 64):
            if number in _CAUSES:
                return _CAUSES[signal.Signals(number)]
    return _noted[0][0] if _noted else ""


def wake() -> None:
    """Let `wait` return at once."""
    if _wakeup is not None:
        os.write(_wakeup[1], b"\0")


def stop_cause() -> str:
    """Why this process was asked to stop: timeout, preempted, interrupted, or a pause; empty while nobody asked."""
    return _noted[0][0] if _noted else _pause


def stop_requested() -> bool:
    """Whether this process, or the work that it does now, was asked to stop."""
    return bool(_noted or _pause)


def pause(why: str) -> None:
    """Have the work under way save and stop like any other stop, where the process itself goes on with other work."""
    global _pause
    _pause = why


def is_pause() -> bool:
    """Whether only the work under way is to stop, and nobody asks the process itself."""
    return bool(_pause and not _noted)


def end_pause() -> None:
    """The work has stopped: from now on only what asks the whole process counts."""
    global _pause
    _pause = ""


def request_stop(cause: str) -> None:
    """Ask as a signal would: for deadlines that the process sees itself, and for tests."""
    _noted.append((cause, time.monotonic()))


def clear() -> None:
    """Forget what was noted: for several runs one after the other in one process."""
    _noted.clear()
    end_pause()


def name_of(number: int) -> str:
    """`SIGKILL` for 9, `signal 99` for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _note(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGINT and (_noted or not _has_boundaries):
        raise KeyboardInterrupt
    _noted.append((_CAUSES.get(signal.Signals(number), "preempted"), time.monotonic()))
