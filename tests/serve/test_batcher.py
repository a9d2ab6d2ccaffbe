from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hpctool.serve.batcher import Answer, Batcher, Limits, Outputs
from hpctool.serve.metrics import Metrics
from hpctool.serve.protocol import Query, Refused
from hpctool.world import Array
from tests.serve.samples import full_log

POISON, NOT_A_NUMBER = 666, 667


class Doubler:
    """Answers every number with its double, notes its batches, and waits at a gate."""

    def __init__(self, name: str = "one", takes: type = np.int64) -> None:
        self.name = name
        self.takes = takes
        self.batches: list[list[int]] = []
        self.recorded = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def refusal(self, query: Query) -> Refused | None:
        return None if query.inputs.dtype == self.takes else Refused(400, "another kind")

    def answer(self, inputs: Array) -> Outputs:
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append(inputs.tolist())
        if POISON in inputs:
            raise RuntimeError("Traceback of TorchScript:\n  poison in the batch.")
        doubled = (2.0 * inputs).astype(np.float32).reshape(-1, 1)
        doubled[inputs == NOT_A_NUMBER] = np.nan
        return {"logits": doubled}

    def record(self, request: Array, source: Array, inputs: Array, outputs: Outputs) -> int:
        assert len(request) == len(source) == len(inputs) == len(outputs["logits"])
        self.recorded += len(inputs)
        return self.recorded - len(inputs)


def query(*numbers: int, dtype: Any = np.int64) -> Query:
    return Query("r", np.array(numbers, dtype), np.full(len(numbers), b"r:0"), b"")


Run = Callable[[Callable[[Batcher], Awaitable[None]]], None]


@pytest.fixture
def model() -> Doubler:
    return Doubler()


@pytest.fixture
def run(model: Doubler) -> Iterator[Run]:
    """Run a coroutine with a batcher of batches of 4, a queue of 10 rows and 100 bytes."""
    batcher = Batcher(model, Limits(4, 10, 100), Metrics())

    async def limited(story: Callable[[Batcher], Awaitable[None]]) -> None:
        await asyncio.wait_for(story(batcher), 20)

    yield lambda story: asyncio.run(limited(story))
    model.gate.set()
    batcher.close()


async def close_the_gate(batcher: Batcher, model: Doubler) -> asyncio.Future[Answer]:
    """Keep the thread busy with a first request, so that everything else queues up."""
    model.gate.clear()
    first = batcher.submit(query(0))
    await asyncio.to_thread(model.entered.wait)
    return first


def test_a_batch_is_what_has_queued_up_and_rows_are_counted(run: Run, model: Doubler) -> None:
    async def story(batcher: Batcher) -> None:
        first = await close_the_gate(batcher, model)
        asked = [batcher.submit(query(*numbers)) for numbers in ((1,), (2, 3), (4, 5), (6,))]
        assert batcher.queued_rows == 6
        model.gate.set()
        answers = await asyncio.gather(first, *asked)
        assert [a.outputs["logits"].reshape(-1).tolist() for a in answers] == [[0], [2], [4, 6], [8, 10], [12]]
        assert [a.first for a in answers] == [0, 1, 2, 4, 6]
        assert batcher.queued_rows == 0

    run(story)
    assert model.batches == [[0], [1, 2, 3], [4, 5, 6]]


def test_a_request_larger_than_a_batch_goes_alone(run: Run, model: Doubler) -> None:
    async def story(batcher: Batcher) -> None:
        first = await close_the_gate(batcher, model)
        asked = [batcher.submit(query(1)), batcher.submit(query(*range(7)))]
        model.gate.set()
        await asyncio.gather(first, *asked)

    run(story)
    assert [len(batch) for batch in model.batches] == [1, 1, 7]


@pytest.mark.parametrize("bad", [POISON, NOT_A_NUMBER])
def test_a_row_that_the_model_cannot_take_fails_alone(run: Run, model: Doubler, bad: int, capfd: Any) -> None:
    async def story(batcher: Batcher) -> None:
        first = await close_the_gate(batcher, model)
        asked = [batcher.submit(query(n)) for n in (1, bad, 3, 4)]
        model.gate.set()
        answers = await asyncio.gather(first, *asked, return_exceptions=True)
        said = answers.pop(2)
        assert isinstance(said, Refused)
        assert said.status == 500
        assert str(said).removeprefix("The model cannot answer this request: ") in (
            "poison in the batch.",
            "its answer is not finite.",
        )
        numbers = [a.outputs["logits"].item() for a in answers if isinstance(a, Answer)]
        assert numbers == [0, 2, 6, 8]

    run(story)
    assert model.recorded == 4
    # What the model said is for the log, once; an answer that is no number has nothing more to say.
    assert capfd.readouterr().err.count("\nRuntimeError:") == (bad == POISON)


def test_what_comes_on_top_of_a_full_queue_is_refused_with_a_time(run: Run, model: Doubler) -> None:
    async def story(batcher: Batcher) -> None:
        first = await close_the_gate(batcher, model)
        asked = [batcher.submit(query(*range(5))), batcher.submit(query(*range(5)))]
        with pytest.raises(Refused, match="10 rows are waiting already") as caught:
            batcher.submit(query(1))
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) >= 1
        model.gate.set()
        await asyncio.gather(first, *asked)
        await batcher.submit(query(1))

    run(story)


def test_the_queue_is_bounded_in_bytes_too_and_what_never_fits_is_said(run: Run, model: Doubler) -> None:
    async def story(batcher: Batcher) -> None:
        with pytest.raises(Refused, match="Send it in parts") as caught:
            batcher.submit(query(*range(11)))
        assert caught.value.status == 413
        first = await close_the_gate(batcher, model)
        wide = batcher.submit(Query("r", np.zeros((1, 8)), np.array([b"r:0"]), b""))
        with pytest.raises(Refused, match="waiting already"):
            batcher.submit(Query("r", np.zeros((1, 8)), np.array([b"r:0"]), b""))
        model.gate.set()
        await first
        with pytest.raises(Refused, match="another kind"):
            await wide

    run(story)


def test_a_client_that_has_gone_is_not_computed_for(run: Run, model: Doubler) -> None:
    async def story(batcher: Batcher) -> None:
        first = await close_the_gate(batcher, model)
        gone, there = batcher.submit(query(1)), batcher.submit(query(2))
        gone.cancel()
        model.gate.set()
        await asyncio.gather(first, there)

    run(story)
    assert model.batches == [[0], [2]]


def test_versions_change_between_two_batches_and_a_swap_waits_for_the_old_one(run: Run, model: Doubler) -> None:
    other = Doubler("two", takes=np.float64)

    async def story(batcher: Batcher) -> None:
        first = await close_the_gate(batcher, model)
        asked, fits = batcher.submit(query(1)), batcher.submit(query(2, dtype=np.float64))
        swap = asyncio.create_task(asyncio.to_thread(batcher.swap, other))
        await asyncio.sleep(0.05)
        assert not swap.done()
        model.gate.set()
        assert (await first).model is model
        await swap
        assert (await fits).model is other
        # It was checked against the version before, and does not fit the one that is in service now.
        with pytest.raises(Refused, match="another kind"):
            await asked

    run(story)


def test_closing_answers_what_is_queued(model: Doubler) -> None:
    async def story() -> None:
        batcher = Batcher(model, Limits(4, 10, 100), Metrics())
        asked = [batcher.submit(query(n)) for n in range(6)]
        await asyncio.to_thread(batcher.close)
        answers = await asyncio.gather(*asked)
        assert [a.outputs["logits"].item() for a in answers] == [0, 2, 4, 6, 8, 10]

    asyncio.run(story())


def test_a_log_that_cannot_be_written_ends_no_request_but_the_one_to_blame(run: Run) -> None:
    async def story(batcher: Batcher) -> None:
        with full_log(), pytest.raises(Refused, match="poison in the batch"):
            await batcher.submit(query(POISON))
        assert (await batcher.submit(query(2))).outputs["logits"].item() == 4

    run(story)
