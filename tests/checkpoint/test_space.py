"""A disk that is full costs one save and not the training; the last one has bytes of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.checkpoint import Checkpointer, committed
from hpctool.checkpoint.space import SLACK_BYTES, free_bytes, give_up_reserve, make_reserve, parse_lustre_quota
from hpctool.rundir import RunDir
from hpctool.world import World

Begin = Callable[[RunDir], RunDir]
MB = 1 << 20


def state(step: int) -> dict[str, object]:
    return {"w": np.full(MB // 8, step), "step": step}


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def fill(disk: Path) -> Path:
    """Take everything that is left."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert free_bytes(disk) == 0
    return filler


@pytest.fixture
def saver(small_disk: Path, begin: Begin) -> Checkpointer:
    (small_disk / "run").mkdir(mode=0o700)
    return Checkpointer(begin(RunDir(small_disk / "run")), World(), reserve=True)


@pytest.mark.parametrize("small_disk", [8 * MB], indirect=True)
def test_a_full_disk_costs_one_save_and_the_last_one_fits_by_its_reserve(small_disk: Path, saver: Checkpointer) -> None:
    run = saver.rundir
    saver.async_save(state(1), 1)
    saver.wait()
    filler = fill(small_disk)
    saver.async_save(state(2), 2)
    with pytest.warns(UserWarning, match="step 2 was not saved .No space left on device.; the one before it stays"):
        saver.wait()
    # The ledger was as full as the rest; what counts is that the last good one is there, and nothing half done.
    assert names(run) == [".reserve", "step-00000001.a1"]
    os.truncate(filler, os.path.getsize(filler) - 8192)
    saver.async_save(state(3), 3)
    with pytest.warns(UserWarning, match="step 3 was not saved"):
        saver.wait()
    assert [body["step"] for body in run.story().of_kind("unsaved")] == [3]
    fill(small_disk)
    saver.save(state(4), 4, is_last=True)
    assert names(run) == ["step-00000001.a1", "step-00000004.a1"]
    found = Checkpointer(RunDir(run.path), World()).restore()
    assert found is not None
    assert (found.step, found.state["step"]) == (4, 4)
    saver.close()


@pytest.mark.parametrize("small_disk", [8 * MB], indirect=True)
def test_room_is_made_by_what_would_go_anyway(small_disk: Path, begin: Begin) -> None:
    (small_disk / "run").mkdir(mode=0o700)
    saver = Checkpointer(begin(RunDir(small_disk / "run")), World(), keep_last=3, keep_every_steps=4)
    for step in (4, 5, 6, 7):
        saver.save(state(step), step)
    with open(small_disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(small_disk) - MB // 2)
    saver.save(state(8), 8)
    assert [made.step for made in committed(saver.rundir)] == [4, 5, 6, 7, 8]
    assert names(saver.rundir) == [f"step-{step:08d}.a1" for step in (4, 6, 7, 8)]


@pytest.mark.parametrize("small_disk", [8 * MB], indirect=True)
def test_a_reserve_takes_real_bytes_and_only_where_another_save_still_fits(small_disk: Path) -> None:
    free = free_bytes(small_disk)
    assert make_reserve(small_disk, 2 * MB)
    assert free_bytes(small_disk) <= free - 2 * MB
    assert make_reserve(small_disk, 2 * MB)
    assert not make_reserve(small_disk, 5 * MB)
    assert give_up_reserve(small_disk)
    assert not give_up_reserve(small_disk)
    assert free_bytes(small_disk) == free


def test_the_reserve_goes_when_an_attempt_ends_and_never_makes_a_save_fail(run: RunDir) -> None:
    with Checkpointer(run, World(), reserve=True) as saver:
        saver.save(state(1), 1)
        assert (run.checkpoints / ".reserve").stat().st_size >= MB + SLACK_BYTES
        saver.save({"w": np.zeros(1 << 19)}, 2)
        assert (run.checkpoints / ".reserve").stat().st_size >= 4 * MB + SLACK_BYTES
    assert names(run) == ["step-00000001.a1", "step-00000002.a1"]


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("/lustre 1000 0 4000 - 12 0 0 -", 3000 * 1024),
        ("/lustre/a/very/long/name/of/a/file/system\n  5000* 4000 4500 6d23h 12 0 0 -", 0),
        ("/lustre 1000 2000 0 - 12 0 0 -", 1000 * 1024),
        ("/lustre 1000 0 0 - 12 0 0 -", None),
        ("Permission denied.", None),
    ],
)
def test_what_a_quota_leaves_is_read_from_what_lustre_says(said: str, left: int | None) -> None:
    assert parse_lustre_quota(said) == left
