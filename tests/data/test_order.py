"""The order of samples is a permutation, computed anywhere, different in every epoch."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctool.data.order import Order


@pytest.mark.slow
@given(
    num_rows=st.integers(0, 700),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 1000),
    window=st.sampled_from([0, 1, 2, 7, 64, 65, 130, 699, 5000]),
)
def test_every_row_comes_once_in_an_epoch(num_rows: int, seed: int, epoch: int, window: int) -> None:
    rows = Order(num_rows, seed, window).rows(epoch, 0, num_rows)
    assert rows.dtype == np.int64
    assert sorted(rows.tolist()) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [*range(1, 40), 255, 256, 257, 65_535, 65_536, 65_537, 100_003])
def test_sizes_at_the_edges_are_permutations(num_rows: int) -> None:
    assert np.array_equal(np.sort(Order(num_rows, 3).rows(5, 0, num_rows)), np.arange(num_rows))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 120),
    window=st.integers(0, 150),
    world=st.integers(1, 7),
    share=st.integers(1, 9),
    workers=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_ranks_and_workers_share_out_what_one_alone_would_see(
    num_rows: int, window: int, world: int, share: int, workers: int, seed: int
) -> None:
    """Two epochs and what is left of the last batch: rank r of step s takes its share, worker w every w-th step."""
    order, batch = Order(num_rows, seed, window), world * share

    def stream(start: int, stop: int) -> list[int]:
        found: list[int] = []
        while start < stop:
            epoch, first = divmod(start, num_rows)
            last = min(num_rows, first + stop - start)
            found += order.rows(epoch, first, last).tolist()
            start += last - first
        return found

    num_steps = -(-2 * num_rows // batch)
    by_step: dict[int, list[int]] = {}
    for worker in range(workers):
        for step in range(worker, num_steps, workers):
            parts = [stream(step * batch + r * share, step * batch + (r + 1) * share) for r in range(world)]
            assert {len(part) for part in parts} == {share}
            by_step[step] = [row for part in parts for row in part]
    seen = [row for step in range(num_steps) for row in by_step[step]]
    assert seen == stream(0, num_steps * batch)
    assert sorted(seen[:num_rows]) == sorted(seen[num_rows : 2 * num_rows]) == list(range(num_rows))


@pytest.mark.slow
@given(cuts=st.lists(st.integers(0, 500), max_size=8), window=st.sampled_from([0, 60]))
def test_an_epoch_may_be_read_in_any_pieces(cuts: list[int], window: int) -> None:
    order = Order(500, 1, window)
    edges = [0, *sorted(cuts), 500]
    pieces = [order.rows(2, start, stop) for start, stop in pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces), order.rows(2, 0, 500))


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(Order(200, seed).rows(epoch, 0, 200)) for seed in range(5) for epoch in range(20)]
    assert len(set(orders)) == 100


def test_the_order_is_the_same_for_ever() -> None:
    assert Order(10, 0).rows(0, 0, 10).tolist() == [7, 4, 3, 0, 2, 6, 5, 1, 9, 8]
    assert Order(10, 0, window=3).rows(1, 0, 10).tolist() == [6, 3, 2, 7, 5, 9, 0, 8, 4, 1]


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [2, 3, 4])
def test_every_permutation_of_a_few_rows_is_equally_likely(num_rows: int) -> None:
    drawn = Counter(tuple(Order(num_rows, seed).rows(0, 0, num_rows).tolist()) for seed in range(2400))
    counts = np.array([drawn[order] for order in permutations(range(num_rows))])
    fair = 2400 / len(counts)
    assert counts.sum() == 2400
    assert (np.abs(counts - fair) < 4 * np.sqrt(fair)).all()


def test_rows_that_stand_together_are_torn_apart() -> None:
    rows = Order(10_000, 0).rows(0, 0, 10_000)
    assert abs(np.corrcoef(np.arange(10_000), rows)[0, 1]) < 0.05
    assert np.mean(np.abs(np.diff(rows)) < 10) < 0.01


def test_a_window_is_64_blocks_from_everywhere() -> None:
    order = Order(64_000, 0, window=640)
    windows = order.rows(0, 0, 64_000).reshape(100, 640)
    assert order.block_rows == 10

    def blocks(begin: int) -> list[Counter[int]]:
        return [Counter(((window - begin) % 64_000 // 10).tolist()) for window in windows]

    # Where the first block begins is drawn.
    (found,) = (all_ for all_ in map(blocks, range(10)) if all(set(one.values()) == {10} for one in all_))
    assert all(len(one) == 64 and max(one) - min(one) > 3000 for one in found)
    # Inside its window a row may stand anywhere.
    assert np.mean(np.abs(np.diff(windows)) < 10) < 0.05


def test_the_short_last_block_is_another_one_in_every_epoch() -> None:
    order = Order(12_850, 0, window=6400)
    last = [set(order.rows(epoch, 12_800, 12_850).tolist()) for epoch in range(4)]
    assert len(set.intersection(*last)) < 50


def test_a_billion_rows_need_no_memory() -> None:
    tracemalloc.start()
    rows = Order(10**9, 0).rows(0, 999_999_000, 10**9)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(rows.tolist())) == 1000
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 11)])
def test_positions_outside_an_epoch_are_refused(start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="epoch of 10 rows"):
        Order(10, 0).rows(0, start, stop)
