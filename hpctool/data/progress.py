"""Progress: how far a long piece of work is, how fast, and how long it will take. A bar on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINE_EVERY_S = 5.0
_BAR_EVERY_S = 0.2

#: Called with the number of rows that were done since the last call.
Tick = Callable[[int], None]


@contextmanager
def progress(what: str, total: int, done: Callable[[], int], num_ranks: int, *, shown: bool) -> Iterator[Tick]:
    """Say how many of `total` parts are done, as `done` counts them over all ranks, and this rank's rate in rows.

    On one rank only: `shown` says whether this is the one.
    """
    if not shown:
        yield lambda _: None
    elif sys.stderr.isatty():
        yield from _bar(what, total, done, num_ranks)
    else:
        yield _Lines(what, total, done, num_ranks).tick


class _Lines:
    """A line every few seconds, for logs."""

    def __init__(self, what: str, total: int, done: Callable[[], int], num_ranks: int) -> None:
        self.what, self.total, self.done, self.num_ranks = what, total, done, num_ranks
        self.begun = self.said = time.monotonic()
        self.before = done()
        self.num_rows = 0

    def tick(self, num_rows: int) -> None:
        self.num_rows += num_rows
        now = time.monotonic()
        if now - self.said < _LINE_EVERY_S:
            return
        self.said = now
        print(f"prepare: {self.text(now - self.begun)}", flush=True)

    def text(self, elapsed_s: float) -> str:
        done = self.done()
        ranks = "" if self.num_ranks == 1 else f" on rank 0 of {self.num_ranks}"
        rate = f"{self.num_rows / max(elapsed_s, 1e-9):,.0f} rows/s{ranks}"
        fresh = done - self.before
        left = f", {(self.total - done) * elapsed_s / fresh:,.0f} s left" if fresh > 0 else ""
        return f"{self.what} {done} of {self.total}, {rate}{left}"


def _bar(what: str, total: int, done: Callable[[], int], num_ranks: int) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    lines = _Lines(what, total, done, num_ranks)
    columns = (TextColumn("prepare"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        shown_at = 0.0

        def tick(num_rows: int) -> None:
            nonlocal shown_at
            lines.num_rows += num_rows
            now = time.monotonic()
            if now - shown_at > _BAR_EVERY_S:
                shown_at = now
                bar.update(task, completed=done(), description=lines.text(now - lines.begun))

        yield tick
