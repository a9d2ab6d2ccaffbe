"""The process behind `cluster=local`: starts what is queued, watches it, brings it back, and ends when all is done.

python -m hpctool.launch.background <runs> <lock>      started by local.py, which hands its lock over as a file handle

What it does is in supervisor.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path

from hpctool.launch import ranks
from hpctool.launch.local import Queue
from hpctool.launch.result import process_start
from hpctool.launch.supervisor import Supervisor, say

#: How often the inbox is looked at; the end of a process is seen at once.
POLL_S = 0.1
#: A supervisor with nothing to do ends after this time.
IDLE_S = 2.0


def supervise(queue: Queue, lock: int) -> None:
    """Work the queue off until nothing is left to do. `lock` is the handle from `Queue.lock`."""
    other = queue.state()["supervisor"]
    if other is not None and other["pid"] != os.getpid() and process_start(other["pid"]) == other["pid_start"]:
        # The lock alone would not see one in a session with a /tmp of its own, or after somebody cleaned /tmp.
        say(f"Another supervisor works here, pid {other['pid']}.")
        return
    if orphans := ranks.end_orphans(queue.mark()):
        say(f"Ended what an earlier supervisor left: {orphans}")
    supervisor = Supervisor(queue)
    wake = _listen(supervisor)
    try:
        while True:
            _work(supervisor, lock, wake)
            # The order counts: whoever enqueues looks for the lock after writing, we look for entries after letting go.
            supervisor.save(leaving=True)
            fcntl.flock(lock, fcntl.LOCK_UN)
            if supervisor.shutting_down or queue.inbox.last() <= supervisor.digested or not _lock_again(lock):
                return
    except BaseException:
        supervisor.kill()
        raise


def _work(supervisor: Supervisor, lock: int, wake: int) -> None:
    """Go round until there has been nothing to do for a while, or the queue's folder is gone."""
    supervisor.save()
    idle_since = time.monotonic()
    touched = 0.0
    while True:
        if supervisor.is_gone():
            say("The queue's folder is gone.")
            supervisor.kill()
            sys.exit(0)
        _tick(supervisor)
        if not supervisor.is_idle():
            idle_since = time.monotonic()
        elif supervisor.shutting_down or time.monotonic() > idle_since + IDLE_S:
            return
        if time.monotonic() > touched + 3600:
            os.utime(lock)  # so that nobody who cleans /tmp finds the lock old
            touched = time.monotonic()
        if select.select([wake], [], [], POLL_S)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)


def _tick(supervisor: Supervisor) -> None:
    """Whatever goes wrong with one of them, the runs that run are not killed for it, as they would be at our end."""
    try:
        supervisor.tick()
    except Exception:
        if not supervisor.running:
            raise
        say(f"An error of its own, after which it goes on:\n{traceback.format_exc()}")
        time.sleep(1.0)  # it may come each time


def _listen(supervisor: Supervisor) -> int:
    """Note signals; returns a handle that becomes readable when a child ends or a signal comes."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: setattr(supervisor, "stop_asked", True))
    return readable


def _lock_again(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str]) -> None:
    """Leave the one who called behind, and work."""
    queue, lock = Queue(Path(arguments[0])), int(arguments[1])
    if os.fork():
        os._exit(0)
    os.set_inheritable(lock, False)
    try:
        supervise(queue, lock)
    except Exception:
        say(f"This supervisor ends by an error of its own:\n{traceback.format_exc()}")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
