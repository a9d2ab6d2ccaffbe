"""The save that is under way beside the training: one thread, at most one save, and what came of it."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

_NICER = 5


class Flight:
    """Runs an action in a thread of its own. A process that ends does not wait for it unless it is told to.

    The thread is there before the action is: to start one takes up to some ms where cores are busy, which belong into
    the time before the copy, not between it and the next step.
    """

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def begin(self, action: Callable[[], Any]) -> None:
        """Run it; once."""
        self._actions.put(action)

    @property
    def is_over(self) -> bool:
        """Whether `land` would return at once."""
        return not self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether `land` would raise, as far as is known by now."""
        return self.is_over and self._error is not None

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it is over, whatever comes of it."""
        self._thread.join(timeout_s)

    def land(self) -> Any:
        """Wait for the action and give its result, or raise its error."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        # Linux keeps a priority per thread: what computes goes before what writes, while both want a core.
        with contextlib.suppress(OSError, AttributeError):
            me = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + _NICER)
        try:
            self._result = self._actions.get()()
        except BaseException as error:
            self._error = error
