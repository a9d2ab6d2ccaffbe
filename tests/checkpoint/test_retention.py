"""What stays of old checkpoints, and what is swept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpctool.checkpoint import Checkpointer, kept, pin
from hpctool.errors import InputError
from hpctool.rundir import RunDir
from hpctool.world import World

Begin = Callable[[RunDir], RunDir]


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def test_the_last_k_the_best_and_every_nth_stay(run: RunDir, begin: Begin) -> None:
    saver = Checkpointer(run, World(), keep_last=3, keep_top=1)
    for step, score in enumerate([0.1, 0.9, None, 0.3, 0.2, None, 0.1], 1):
        saver.save({"w": np.full(3, step)}, step, score=score)
    assert names(run) == [f"step-{step:08d}.a1" for step in (2, 5, 6, 7)]
    # The ledger knows the scores: another attempt keeps the same.
    saver = Checkpointer(begin(run), World(), keep_last=2, keep_top=1, keep_every_steps=4)
    for step, score in ((8, 1.0), (9, None), (10, None), (11, None)):
        saver.save({"w": np.zeros(3)}, step, score=score)
    assert names(run) == [f"step-{step:08d}.a2" for step in (8, 10, 11)]


@pytest.mark.slow
def test_what_is_pinned_stays_until_it_is_let_go(run: RunDir) -> None:
    saver = Checkpointer(run, World())
    first = saver.save({}, 1)
    with kept(first, "pbt"):
        for step in (2, 3, 4):
            saver.save({}, step)
        assert first.is_dir()
    saver.save({}, 5)
    assert names(run) == ["step-00000004.a1", "step-00000005.a1"]
    with pytest.raises(InputError, match="it is gone"):
        pin(first, "pbt")
    assert names(run) == ["step-00000004.a1", "step-00000005.a1"]


def test_what_an_attempt_resumed_from_stays_until_two_newer_are_committed(run: RunDir, begin: Begin) -> None:
    Checkpointer(run, World()).save({}, 1)
    second = Checkpointer(begin(run), World())
    second.save({}, 2)
    assert names(run) == ["step-00000001.a1", "step-00000002.a2"]
    second.save({}, 3)
    assert names(run) == ["step-00000002.a2", "step-00000003.a2"]


def test_less_than_two_is_refused(run: RunDir) -> None:
    with pytest.raises(InputError, match="keep_last=1"):
        Checkpointer(run, World(), keep_last=1)


def test_what_dead_attempts_left_is_swept_and_nothing_else(run: RunDir, begin: Begin) -> None:
    Checkpointer(run, World()).save({}, 1)
    leftovers = [".tmp-step-00000002.a1-host-1-abc", ".trash-step-00000001.a1-host-1-abc", "step-00000002.a1"]
    strangers = [".tmp-step-00000002.a3-host-1-abc", "step-00000002.a3", "step-00000001.a1.corrupt-1", "notes"]
    for name in leftovers + strangers:
        (run.checkpoints / name).mkdir()
        (run.checkpoints / name / "file").touch()
    Checkpointer(begin(run), World())
    assert names(run) == sorted(["step-00000001.a1", *strangers])


def test_a_reader_sweeps_nothing(run: RunDir) -> None:
    Checkpointer(run, World()).save({}, 1)
    (run.checkpoints / ".tmp-step-00000002.a1-x").mkdir()
    Checkpointer(RunDir(run.path), World()).restore()
    assert ".tmp-step-00000002.a1-x" in names(run)


def test_with_a_broken_ledger_no_named_folder_is_swept(run: RunDir, begin: Begin) -> None:
    Checkpointer(run, World()).save({}, 1)
    entry = run.ledger.path(2)
    entry.write_bytes(entry.read_bytes().replace(b"checkpoint", b"checkpoinT"))
    with pytest.warns(UserWarning, match="set aside"):
        second = begin(run)
    with pytest.warns(UserWarning, match="set aside"):
        Checkpointer(second, World())
    assert names(run) == ["step-00000001.a1"]
