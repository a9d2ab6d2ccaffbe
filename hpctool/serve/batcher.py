"""Dynamic batching without waiting: a batch is whatever has queued up while the one before it ran.

One thread runs the model; requests come from the event loop and are answered there, one wake-up per batch.

N rows, K classes
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpctool.serve.log import say_error
from hpctool.serve.metrics import Metrics
from hpctool.serve.protocol import Query, Refused
from hpctool.world import Array

Outputs = dict[str, npt.NDArray[np.float32]]


class Model(Protocol):
    """What the thread needs of a model version; only that thread calls `answer` and `record`."""

    def refusal(self, query: Query) -> Refused | None:
        """Why this version cannot answer; None where it can."""
        ...

    def answer(self, inputs: Array) -> Outputs:
        """The outputs by name, each (N, K)."""
        ...

    def record(self, request: Array, source: Array, inputs: Array, outputs: Outputs) -> int:
        """Take the predictions into the journal; the first one's number, the others follow."""
        ...


@dataclass(frozen=True)
class Answer:
    """One request's part of a batch, and the version that answered all of it."""

    model: Model
    first: int
    outputs: Outputs


@dataclass(eq=False)
class _Item:
    query: Query
    future: asyncio.Future[Answer]
    queued_at: float = field(default_factory=time.perf_counter)

    @property
    def rows(self) -> int:
        return len(self.query.inputs)


@dataclass
class Limits:
    """The most rows in a batch, and what may wait."""

    max_batch_rows: int
    max_queue_rows: int
    max_queue_bytes: int


class Batcher:
    """The queue, and the thread that works it off. `submit` belongs to the event loop, the rest to any thread."""

    def __init__(self, model: Model, limits: Limits, metrics: Metrics, num_threads: int = 1) -> None:
        self.limits = limits
        self.queued_rows = 0
        self.answered_rows = 0
        self._queued_bytes = 0
        self._model = model
        self._next: Model | None = None
        self._swapped = threading.Event()
        self._metrics = metrics
        self._num_threads = num_threads
        self._queue: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._row_s = 0.0  # seconds per row, a moving average
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, query: Query) -> asyncio.Future[Answer]:
        """Queue a request. Raises Refused 429 where too much is waiting, 413 where it is too large to ever fit.

        The future raises Refused too. Cancel it, and the request is dropped unless its batch has begun.
        """
        item = _Item(query, asyncio.get_running_loop().create_future())
        limits, size_bytes = self.limits, query.inputs.nbytes
        if item.rows > limits.max_queue_rows or size_bytes > limits.max_queue_bytes:
            raise Refused(
                413,
                f"A request of {item.rows} rows ({size_bytes} bytes) is more than may wait "
                f"({limits.max_queue_rows} rows, {limits.max_queue_bytes} bytes). Send it in parts.",
            )
        with self._changed:
            rows = self.queued_rows + item.rows
            if rows > limits.max_queue_rows or self._queued_bytes + size_bytes > limits.max_queue_bytes:
                wait_s = max(1, ceil(self.queued_rows * self._row_s))
                raise Refused(
                    429,
                    f"{self.queued_rows} rows are waiting already. Try again in {wait_s} s.",
                    {"Retry-After": str(wait_s)},
                )
            self._queue.append(item)
            self.queued_rows, self._queued_bytes = rows, self._queued_bytes + size_bytes
            self._changed.notify()
        return item.future

    def swap(self, model: Model) -> None:
        """Let another version answer from the next batch on; returns when no batch of the old one runs any more."""
        with self._changed:
            self._next = model
            self._swapped.clear()
            self._changed.notify()
        self._swapped.wait()

    def close(self) -> None:
        """End the thread after what is queued."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        import torch

        torch.set_num_threads(self._num_threads)
        while items := self._take():
            began = time.perf_counter()
            done = _Batch()
            try:
                self._run(items, done)
            except BaseException as error:  # nobody may wait for ever
                say_error(traceback.format_exc())
                for item in items:
                    done.failed.append((item, Refused(500, f"The server failed: {error}.")))
            self._count(items, began)
            # A loop that has ended has no one left to answer.
            with contextlib.suppress(RuntimeError):
                items[0].future.get_loop().call_soon_threadsafe(done.deliver)

    def _take(self) -> list[_Item]:
        """Wait for requests; as many of them as fit a batch, at least one. Empty at the end."""
        with self._changed:
            while True:
                if self._next is not None:
                    self._model, self._next = self._next, None
                    self._swapped.set()
                items, rows = list[_Item](), 0
                while self._queue and (not items or rows + self._queue[0].rows <= self.limits.max_batch_rows):
                    item = self._queue.popleft()
                    self.queued_rows -= item.rows
                    self._queued_bytes -= item.query.inputs.nbytes
                    if not item.future.cancelled():
                        items.append(item)
                        rows += item.rows
                if items or (self._closing and not self._queue):
                    return items
                self._changed.wait()

    def _run(self, items: list[_Item], done: _Batch) -> None:
        """Answer a batch."""
        fitting = []
        for item in items:
            # The version may have changed since the request was checked.
            if refused := self._model.refusal(item.query):
                done.failed.append((item, refused))
            else:
                fitting.append(item)
        self._answer(fitting, done)

    def _answer(self, items: list[_Item], done: _Batch) -> None:
        """Answer requests together; where that fails, each half by itself, down to the one that is to blame."""
        if not items:
            return
        inputs = items[0].query.inputs if len(items) == 1 else np.concatenate([item.query.inputs for item in items])
        problem = ""
        try:
            outputs = self._model.answer(inputs)
            if not all(np.isfinite(values).all() for values in outputs.values()):
                problem = "its answer is not finite"
        except Exception as error:
            # TorchScript puts its own trace first and what happened last.
            problem = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
            if len(items) == 1:
                say_error(traceback.format_exc())
        if problem:
            if len(items) == 1:
                done.failed.append((items[0], Refused(500, f"The model cannot answer this request: {problem}.")))
            else:
                self._answer(items[: len(items) // 2], done)
                self._answer(items[len(items) // 2 :], done)
            return
        self._keep(items, inputs, outputs, done)

    def _keep(self, items: list[_Item], inputs: Array, outputs: Outputs, done: _Batch) -> None:
        """Take the predictions into the journal, and give each request its part."""
        request = np.concatenate([item.query.request for item in items])
        source = np.repeat([item.query.source for item in items], [item.rows for item in items])
        first = self._model.record(request, source, inputs, outputs)
        self.answered_rows += len(inputs)
        start = 0
        for item in items:
            part = {name: values[start : start + item.rows] for name, values in outputs.items()}
            done.answered.append((item, Answer(self._model, first + start, part)))
            start += item.rows

    def _count(self, items: list[_Item], began: float) -> None:
        rows = sum(item.rows for item in items)
        row_s = (time.perf_counter() - began) / rows
        self._row_s = row_s if not self._row_s else 0.9 * self._row_s + 0.1 * row_s
        self._metrics.batch_rows.observe(rows)
        self._metrics.rows.inc(rows)
        # The one that waited longest speaks for its batch: one observation per batch, not per request.
        self._metrics.queue_wait.observe(began - items[0].queued_at)


@dataclass
class _Batch:
    """What came of a batch, for the event loop."""

    answered: list[tuple[_Item, Answer]] = field(default_factory=list)
    failed: list[tuple[_Item, Refused]] = field(default_factory=list)

    def deliver(self) -> None:
        """Answer everybody who is still there. On the event loop."""
        for item, answer in self.answered:
            if not item.future.done():
                item.future.set_result(answer)
        for item, error in self.failed:
            if not item.future.done():
                item.future.set_exception(error)
