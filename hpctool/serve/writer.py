"""The journal's writer in a server: predictions are buffered in memory and become segments about once a second."""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path

import numpy as np

from hpctool.serve.journal import COLUMNS, Origin, write_segment
from hpctool.serve.log import say_error
from hpctool.world import Array


class JournalWriter:
    """Numbers predictions of one model version and writes them; `add` never waits for the disk.

    With `flush_s` a thread writes that often, and when `segment_rows` are full; a flush that fails (disk full) keeps
    its rows and is tried again, and `problem` says why. Without `flush_s` only `flush` and `close` write.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        bundle: str,
        origin: str,
        run: str,
        data_commit: str = "",
        segment_rows: int = 65_536,
        flush_s: float | None = None,
    ) -> None:
        self.folder = folder
        self.origin = Origin(model, bundle, origin, run, data_commit)
        self.segment_rows = segment_rows
        #: 8 hex digits: the first half of every prediction's id
        self.writer = secrets.token_hex(4)
        #: why the newest flush failed; empty where it did not
        self.problem = ""
        self._flush_s = flush_s
        self._next = 0
        self._written = 0
        self._batches: list[dict[str, Array]] = []
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        if flush_s is not None:
            self._thread.start()

    def add(self, request: Array, source: Array, inputs: Array, probabilities: Array, logits: Array) -> int:
        """Take one batch of N answered rows, which must not change later; the first one's number, the others follow.

        `request` and `source`: bytes (N,); see journal.Predictions for the others.
        """
        rows = len(inputs)
        now = np.full(rows, time.time())
        with self._lock:
            first, self._next = self._next, self._next + rows
            number = np.arange(first, first + rows)
            values = (number, now, request, source, inputs, probabilities, logits)
            self._batches.append(dict(zip(COLUMNS, values, strict=True)))
            full = self._next - self._written >= self.segment_rows
        if full:
            self._wake.set()
        return first

    @property
    def backlog_rows(self) -> int:
        """Predictions that are given and not yet on disk."""
        return self._next - self._written

    @property
    def backlog_s(self) -> float:
        """The age of the oldest of them, 0 where there is none."""
        with self._lock:
            return max(0.0, time.time() - float(self._batches[0]["time"][0])) if self._batches else 0.0

    def flush(self) -> None:
        """Make everything durable that was added before. Raises OSError; then it stays in memory."""
        with self._flushing:
            upto = self._next
            while self._written < upto:
                self._flush_segment()

    def close(self) -> None:
        """End the thread and write the rest. Raises OSError."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def _flush_segment(self) -> None:
        """Write the oldest batches as one segment: as many as fit, at least one."""
        with self._lock:
            ends = np.cumsum([len(batch["number"]) for batch in self._batches])
            count = max(1, int(np.searchsorted(ends, self.segment_rows, side="right")))
            taken = self._batches[:count]
        columns = {name: np.concatenate([batch[name] for batch in taken]) for name in COLUMNS}
        segment = write_segment(self.folder, self.writer, self.origin, columns)
        with self._lock:
            del self._batches[:count]
            self._written += segment.rows

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait(self._flush_s)
            self._wake.clear()
            try:
                self.flush()
                self.problem = ""
            except OSError as error:
                is_new, self.problem = not self.problem, str(error)
                if is_new:
                    say_error(f"The journal in {self.folder} cannot be written: {error}")
                time.sleep(min(1.0, self._flush_s or 0.0))
