"""A save beside the training: it is a copy of its moment, it counts wholly or not at all, and its errors come up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.checkpoint import Checkpointer, committed
from hpctool.errors import FencedError, InputError
from hpctool.rundir import RunDir
from hpctool.world import FakeWorld, World

Begin = Callable[[RunDir], RunDir]


class Held:
    """Keeps a save from being committed until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.go.wait(30)


def restored(run: RunDir) -> tuple[int, float] | None:
    found = Checkpointer(RunDir(run.path), World()).restore()
    return (found.step, float(found.state["w"][0])) if found else None


def test_a_save_is_of_its_moment_and_counts_when_it_is_committed(run: RunDir) -> None:
    saver, weight, held = Checkpointer(run, World()), np.ones(1000), Held()
    saver.async_save({"w": weight}, 1, before_commit=held)
    weight += 1
    saver.poll()
    assert held.begun.wait(30)
    assert committed(run) == []
    assert restored(run) is None
    held.go.set()
    # The next one waits for it, since both would use the same memory.
    saver.async_save({"w": weight}, 2)
    assert [made.step for made in committed(run)][:1] == [1]
    saver.close()
    assert restored(run) == (2, 2.0)


@pytest.mark.slow
def test_the_last_save_waits_for_the_one_under_way(run: RunDir) -> None:
    saver, held = Checkpointer(run, World()), Held()
    saver.async_save({"w": np.ones(3)}, 1, before_commit=held)
    threading.Timer(0.2, held.go.set).start()
    saver.save({"w": np.zeros(3)}, 2, is_last=True)
    assert [made.step for made in committed(run)] == [1, 2]


def test_an_error_is_told_until_it_is_raised_and_only_once(run: RunDir, begin: Begin) -> None:
    saver, held = Checkpointer(run, World()), Held()
    saver.async_save({"w": np.ones(3)}, 1, before_commit=held)
    assert held.begun.wait(30)
    begin(run)
    held.go.set()
    while not saver.poll():
        time.sleep(0.01)
    with pytest.raises(FencedError):
        saver.wait()
    assert not saver.poll()
    assert committed(run) == []
    assert list(run.checkpoints.iterdir()) == []


def test_what_cannot_be_stored_is_refused_by_its_path_on_all_ranks(run: RunDir) -> None:
    saver = Checkpointer(run, FakeWorld(0, 2))
    saver.async_save({"bad": print}, 1)
    with pytest.raises(InputError, match="The state at 'bad'"):
        saver.wait()


def test_an_attempt_that_fails_still_commits_what_is_under_way(run: RunDir) -> None:
    def train() -> None:
        with Checkpointer(run, World()) as saver:
            saver.async_save({"w": np.ones(3)}, 1)
            raise RuntimeError("training")

    with pytest.raises(RuntimeError, match="training"):
        train()
    assert restored(run) == (1, 1.0)


def test_memory_is_kept_from_save_to_save_and_follows_the_state(run: RunDir) -> None:
    saver = Checkpointer(run, World())
    for step, size in enumerate((1000, 1000, 5000, 10, 1000), 1):
        saver.async_save({"w": np.full(size, float(step))}, step)
        saver.wait()
        assert restored(run) == (step, step)


def test_where_ranks_have_no_second_channel_it_saves_before_it_returns(run: RunDir) -> None:
    class OneChannel(World):
        """Ranks as MPI or plain sockets join them."""

    saver = Checkpointer(run, OneChannel())
    saver.async_save({"w": np.ones(3)}, 1)
    assert [made.step for made in committed(run)] == [1]


def test_two_runs_are_compared_step_by_step_by_their_digests(tmp_path: Path, run: RunDir, begin: Begin) -> None:
    other = begin(RunDir(tmp_path / "other"))
    for which, change in ((run, 0.0), (other, 1.0)):
        saver = Checkpointer(which, World(), params="model")
        for step in (1, 2, 3):
            moved = change if step > 1 else 0.0
            state = {"model": {"w": np.full(3, step + (moved if step == 3 else 0.0))}, "optimizer": {"m": moved}}
            saver.save(state, step)
    mine, theirs = committed(run), committed(other)
    assert [a.param_digest == b.param_digest for a, b in zip(mine, theirs, strict=True)] == [True, True, False]
    assert [a.state_digest == b.state_digest for a, b in zip(mine, theirs, strict=True)] == [True, False, False]
    found = Checkpointer(begin(run), World()).restore()
    assert found is not None
    assert found.digest == mine[-1].digest


def test_memory_that_was_made_ready_is_what_the_first_save_copies_into(run: RunDir) -> None:
    saver, state = Checkpointer(run, World()), {"w": np.ones(300_000), "v": np.zeros(3)}
    saver.prepare(state)
    saver.wait()
    ready = dict(saver._buffers._held)
    assert sum(map(len, ready.values())) > 2_400_000
    saver.async_save(state, 1)
    saver.close()
    assert all(saver._buffers._held[name] is memory for name, memory in ready.items())
    assert restored(run) == (1, 1.0)
