"""A commit of an attempt that is no longer the newest cannot happen, however close the race."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.checkpoint import Checkpointer, committed
from hpctool.checkpoint.commits import Commit, commit
from hpctool.errors import FencedError
from hpctool.log import Entry, Log
from hpctool.rundir import RunDir, create_run
from hpctool.world import World

Begin = Callable[[RunDir], RunDir]
Spawn = Callable[..., "subprocess.Popen[str]"]


def test_a_commit_is_a_ledger_entry(run: RunDir) -> None:
    made = Commit(3, 1, run.checkpoint(3), "d" * 64)
    commit(run, run.ledger, made, 0.25)
    assert committed(run) == [made]
    body = run.story().checkpoints[0]
    assert body["path"] == "checkpoints/step-00000003.a1"
    assert body["save_s"] == 0.25
    assert run.story().step == 3


def test_other_facts_in_the_ledger_do_not_fence(run: RunDir) -> None:
    stale = run.ledger
    stale.entries()
    run.ledger.append({"kind": "cancel", "by": "somebody"})
    commit(run, stale, Commit(1, 1, run.checkpoint(1), ""), 0.0)
    assert len(committed(run)) == 1


def test_an_attempt_that_was_replaced_is_fenced_and_leaves_nothing(run: RunDir, begin: Begin) -> None:
    old = Checkpointer(run, World())
    old.save({"w": np.zeros(2)}, 1)
    second = begin(run)
    new = Checkpointer(second, World())
    with pytest.raises(FencedError) as fenced:
        old.save({"w": np.ones(2)}, 2)
    assert (fenced.value.attempt, fenced.value.newest) == (1, 2)
    new.save({"w": np.full(2, 2.0)}, 2)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-00000001.a1", "step-00000002.a2"]


def test_an_attempt_is_fenced_by_whatever_its_successor_has_written(run: RunDir, begin: Begin) -> None:
    old = Checkpointer(run, World())
    second = begin(run)
    begun = run.ledger.last()
    Checkpointer(second, World()).save({"w": np.zeros(2)}, 1)
    run.ledger.path(begun).write_bytes(b"torn")
    with pytest.warns(UserWarning, match="set aside"), pytest.raises(FencedError):
        old.save({"w": np.ones(2)}, 2)


def test_an_attempt_replaced_between_looking_and_writing_is_fenced(run: RunDir, begin: Begin) -> None:
    class SlowLog(Log):
        def entries(self, after: int = 0) -> list[Entry]:
            found = super().entries(after)
            if run.story().attempt == 1:
                begin(run)
            return found

    with pytest.raises(FencedError):
        commit(run, SlowLog(run.ledger.folder), Commit(1, 1, run.checkpoint(1), ""), 0.0)
    assert committed(run) == []


def test_an_attempt_replaced_while_it_writes_is_fenced_at_the_entry(run: RunDir, begin: Begin) -> None:
    with pytest.raises(FencedError):
        Checkpointer(run, World()).save({"w": np.ones(2)}, 1, before_commit=lambda: [begin(run)].clear())
    assert committed(run) == []
    assert list(run.checkpoints.iterdir()) == []


ZOMBIE = """
import sys
from pathlib import Path
from hpctool.checkpoint.commits import Commit, commit
from hpctool.errors import FencedError
from hpctool.rundir import RunDir

for path in sys.argv[1:]:
    run = RunDir(Path(path), 1)
    ledger = run.ledger
    try:
        for step in range(1, 100_000):
            commit(run, ledger, Commit(step, 1, run.checkpoint(step), ""), 0.0)
    except FencedError:
        print(step, flush=True)
"""


@pytest.mark.slow
def test_in_a_race_of_processes_no_old_commit_follows_a_new_beginning(
    tmp_path: Path, begin: Begin, spawn: Spawn
) -> None:
    rng = random.Random(0)
    runs = [create_run(tmp_path, {"identity": f"{n:064x}"[::-1], "name": "r", "job": "train"}, {}) for n in range(12)]
    for run in runs:
        begin(run)
    zombie = spawn(ZOMBIE, *[run.path for run in runs])
    for run in runs:
        while run.ledger.last() < 2:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        begin(run)
        seen = len(committed(run))
        assert zombie.stdout is not None
        assert int(zombie.stdout.readline()) == seen + 1
        assert len(committed(run)) == seen
