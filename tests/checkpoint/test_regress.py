"""A run that has committed a step does not go back behind what was kept, nor to zero, unless somebody says so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpctool.checkpoint import Checkpointer
from hpctool.errors import CorruptError
from hpctool.rundir import RunDir
from hpctool.world import World
from tests.checkpoint.test_restore import flip

Begin = Callable[[RunDir], RunDir]


@pytest.fixture
def damaged(run: RunDir) -> RunDir:
    """A run whose last two checkpoints, of steps 7 and 8, are damaged; that of step 4 was kept for its step."""
    saver = Checkpointer(run, World(), keep_every_steps=4)
    for step in (4, 6, 7, 8):
        saver.save({"w": np.full(3, step)}, step)
    flip(run.checkpoint(7) / "state.json")
    flip(run.checkpoint(8) / "state.json")
    return run


def test_an_older_one_is_not_taken_in_silence(damaged: RunDir, begin: Begin) -> None:
    with pytest.raises(CorruptError) as refused:
        Checkpointer(begin(damaged), World()).restore()
    said = str(refused.value)
    assert "step 8 was committed" in said
    assert "step-00000008.a1 is damaged (state.json: its checksum differs)" in said
    assert "the next that is whole is of step 4" in said
    assert "lose 4 steps with allow_regress=true" in said
    with pytest.warns(UserWarning, match="goes on from step 4"):
        found = Checkpointer(begin(damaged), World()).restore(allow_regress=True)
    assert found is not None
    assert found.step == 4


def test_a_reader_takes_what_there_is(damaged: RunDir) -> None:
    with pytest.warns(UserWarning, match="goes on from step 4"):
        found = Checkpointer(RunDir(damaged.path), World()).restore()
    assert found is not None
    assert found.step == 4


def test_zero_is_only_begun_from_when_it_is_allowed(damaged: RunDir, begin: Begin) -> None:
    flip(damaged.checkpoint(4) / "state.json")
    with pytest.raises(CorruptError, match=r"none is whole .*allow it with allow_regress=true"):
        Checkpointer(begin(damaged), World()).restore()
    with pytest.warns(UserWarning, match="begins anew below step 8, as allowed"):
        assert Checkpointer(begin(damaged), World()).restore(allow_regress=True) is None


def test_what_was_allowed_once_holds_for_one_attempt(damaged: RunDir, begin: Begin) -> None:
    damaged.ledger.append({"kind": "regress", "by": "somebody"})
    second = begin(damaged)
    with pytest.warns(UserWarning, match="goes on from step 4"):
        assert Checkpointer(second, World()).restore() is not None
    damaged.ledger.append({"kind": "resumed", "attempt": 2, "step": 4})
    flip(damaged.checkpoint(4) / "state.json")
    with pytest.raises(CorruptError, match="allow_regress"):
        Checkpointer(begin(damaged), World()).restore()
