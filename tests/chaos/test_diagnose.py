"""Why bits differ: what is known without a further run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpctool.chaos.diagnose import unlike
from hpctool.checkpoint import Checkpointer
from hpctool.rundir import RunDir
from hpctool.world import World
from tests.chaos.scenarios import Scenario, rehearse_one


def saved(path: Path, num_threads: int) -> RunDir:
    path.mkdir(mode=0o700)
    run = RunDir(path, 1)
    run.begin({})
    run.ledger.append({"kind": "begun", "attempt": 1, "step": 0})
    info = {"fingerprint": {"torch": "2.13.0", "num_threads": num_threads}}
    Checkpointer(run, World()).save({"x": np.zeros(3)}, 4, info=info)
    return run


def test_what_was_not_the_same_in_both_runs_or_between_attempts_is_the_reason(tmp_path: Path) -> None:
    straight, broken = saved(tmp_path / "straight", 1), saved(tmp_path / "broken", 2)
    assert unlike(straight, straight) == []
    assert unlike(straight, broken) == ["  why: num_threads was 1 in the straight run and 2 in the broken one."]
    # The attempt that differed has left no checkpoint.
    fact = {"kind": "resumed", "attempt": 2, "step": 4, "unlike": ["torch was 2.13.0 and is 2.14.0"]}
    straight.ledger.append(fact)
    assert unlike(straight, straight) == [
        "  why: attempt 2 was not like the one that saved what it went on from: torch was 2.13.0 and is 2.14.0."
    ]


#: Few steps, each with a save to go back to.
SMALL = (
    *("data.name=stripes", "model=tangled", "track=off"),
    "loop={max_steps: 8, global_batch_size: 24, checkpoint_every_steps: 2, eval_every_steps: 8}",
)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("culprit", "kind", "words"),
    [
        (
            "augment={_target_: usersown.Unseeded}",
            "none",
            ("two runs that nobody touched are not the same from step 1 on, in model/", "randomness without a seed"),
        ),
        (
            "task._target_=usersown.Forgetful",
            "term",
            ("undisturbed it is the same each time; stopped and resumed after step", "is in no checkpoint: state that"),
        ),
    ],
)
def test_a_job_that_is_not_exact_is_told_where_and_why(
    project: Path, culprit: str, kind: str, words: tuple[str, ...]
) -> None:
    one = Scenario("train", (*SMALL, culprit), 1, kinds=(kind,))
    verdict = rehearse_one(one, project / "chaos", 1, seed=2)
    said = "\n".join(verdict.sentences())
    assert said.startswith("NOT the same bits."), said
    for sentence in words:
        assert sentence in said
