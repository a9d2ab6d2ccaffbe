"""The guard: a thread beside the job's own work that acts on a stop where the job itself cannot.

- A job that has no step boundary to stop at (evaluate, export …) is ended by it; its next attempt begins anew.
- Under Slurm, a job that has not managed to save when the kill is near is requeued at the last moment: it goes on
  from its newest checkpoint. Where preemption cancels, nobody else would bring it back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from hpctool.errors import SchedulerError
from hpctool.launch import signals
from hpctool.launch.slurm import inside

#: The requeue is asked for so long before the kill: a controller under load answers in a second or so.
MARGIN_S = 2.0
#: A job without boundaries gets this long to end by itself, in case it was at its end anyway.
PATIENCE_S = 1.0


class Guard(threading.Thread):
    """Waits for the stop of one attempt; `dismiss` it, or leave its `with`, before the job's own end is written.

    `leave(cause)` ends the process of a job that cannot stop itself; None for one that can. `last_moment(stop)` is
    called on rank 0 under Slurm shortly before the kill, asks for the requeue or says that there will be none.
    """

    def __init__(self, leave: Callable[[str], None] | None, last_moment: Callable[[inside.Stop], None] | None) -> None:
        super().__init__(name="guard", daemon=True)
        self.leave = leave
        self.last_moment = last_moment
        self.dismissed = threading.Event()

    def dismiss(self) -> None:
        """The job ends by itself: from now on the guard does nothing."""
        self.dismissed.set()
        signals.wake()
        if self is not threading.current_thread():
            self.join(timeout=5.0)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def run(self) -> None:
        """Wait for a stop, then for the job to end by itself, then act."""
        cause = ""
        while not cause:
            if self.dismissed.is_set():
                return
            cause = signals.wait(timeout_s=1.0)
        if self.leave is not None and not self.dismissed.wait(PATIENCE_S):
            self.leave(cause)
            return
        if self.last_moment is not None:
            self._watch(self.last_moment)

    def _watch(self, last_moment: Callable[[inside.Stop], None]) -> None:
        stop, asked_s = None, 0.0
        while not self.dismissed.wait(0.2):
            if stop is None and time.monotonic() - asked_s > inside.ASK_S:
                asked_s = time.monotonic()
                with contextlib.suppress(SchedulerError, LookupError, ValueError):
                    stop = inside.look()
                    if stop.deadline_s is not None:
                        # For the job, which may choose what there is still time for.
                        signals.know_deadline(stop.deadline_s - MARGIN_S - time.time())
            if stop is None or stop.deadline_s is None or time.time() < stop.deadline_s - MARGIN_S:
                continue
            with contextlib.suppress(SchedulerError, LookupError, ValueError):
                # Somebody may have cancelled it meanwhile, or Slurm has requeued it.
                now = inside.look()
                if (now.ask or now.cause == "cancelled") and not self.dismissed.is_set():
                    last_moment(now)
            return
