"""Random streams go on where their state was taken."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from hpctool.checkpoint import check_state, random_state, set_random_state


def draws() -> list[Any]:
    # gauss() and normal() keep a second value back, which is part of the state.
    return [random.random(), random.gauss(0, 1), np.random.normal(), np.random.random(), torch.rand(3).tolist()]


def test_streams_continue_where_their_state_was_taken() -> None:
    draws()
    state = random_state()
    expected = [draws() for _ in range(3)]
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    set_random_state(state)
    assert [draws() for _ in range(3)] == expected


def test_a_checkpoint_can_hold_the_state() -> None:
    check_state(random_state())
