"""What is drawn can be repeated, reaches everything, and waits for nothing that never comes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from hpctool.chaos.faults import KINDS, PHASES, USUAL, check_kinds, draw
from hpctool.errors import InputError

ALL_MOMENTS = {moment for moments in PHASES.values() for moment in moments}
#: Only rank 0 commits.
SEEN: dict[str, list[int]] = {moment: [0] if moment in ("commit", "committed") else [0, 1, 2] for moment in ALL_MOMENTS}
LIKE: dict[str, Any] = {"max_steps": 100, "num_ranks": 3, "seen": SEEN}


def test_a_seed_says_everything() -> None:
    assert draw(7, USUAL, 40, **LIKE) == draw(7, USUAL, 40, **LIKE)
    assert draw(7, USUAL, 40, **LIKE) != draw(8, USUAL, 40, **LIKE)


def test_every_kind_form_phase_and_rank_is_struck() -> None:
    faults = list(itertools.chain.from_iterable(draw(seed, USUAL, 20, **LIKE) for seed in range(40)))
    assert {fault.kind for fault in faults} == set(USUAL) == set(KINDS) - {"none"}
    assert {fault.phase for fault in faults} == set(PHASES)
    assert {fault.moment for fault in faults} == ALL_MOMENTS
    assert {fault.form for fault in faults if fault.kind == "kill"} == {"rank", "all", "supervisor"}
    assert {fault.form for fault in faults if fault.kind == "hang"} == {"stop", "block"}
    assert {fault.rank for fault in faults if fault.kind == "kill"} == {0, 1, 2}
    assert {fault.rank for fault in faults if fault.moment in ("commit", "committed")} == {0}
    assert {fault.delay == 0 for fault in faults} == {True, False}


def test_kinds_take_turns_and_steps_go_up() -> None:
    faults = draw(3, USUAL, 2 * len(USUAL), **LIKE)
    assert sorted(fault.kind for fault in faults) == sorted([*USUAL, *USUAL])
    assert [fault.step for fault in faults] == sorted(fault.step for fault in faults)
    assert all(1 <= fault.step < 100 for fault in faults)


def test_a_moment_that_the_job_never_comes_to_is_not_waited_for() -> None:
    seen: dict[str, list[int]] = {moment: [0] for moment in ALL_MOMENTS - {"evaluate", "commit"}}
    faults = draw(1, USUAL, 200, max_steps=2, num_ranks=1, seen=seen)
    assert {fault.moment for fault in faults} <= seen.keys()
    assert {fault.step for fault in faults} == {1}


def test_a_rank_that_never_comes_to_a_moment_is_not_waited_for_there() -> None:
    # A script starts as one process, and what its mpirun starts are the ranks.
    faults = draw(1, USUAL, 200, **{**LIKE, "seen": {**SEEN, "start": [0]}})
    assert {fault.rank for fault in faults if fault.moment == "start"} == {0}


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no fault 'zombi'; there is: none, kill.*Did you mean zombie\?"):
        check_kinds(["kill", "zombi"])
