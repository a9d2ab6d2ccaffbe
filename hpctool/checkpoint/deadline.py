"""What a training that was told to stop still has time for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

#: `step`: finish the step that has begun and save; `save`: save what is there; `keep`: the newest checkpoint must do
Choice = Literal["step", "save", "keep"]

#: as many of the newest saves say how long the next one takes
_NUM_SAVES = 20
#: a disk that everybody saves to before a maintenance is slower than it was
_FACTOR = 1.25
#: for the ranks to agree and to leave
_MARGIN_S = 2.0


def expected_s(saves_s: Sequence[float]) -> float | None:
    """How long the next save should take at most: the 95th percentile of the newest ones; None before the first."""
    newest = sorted(saves_s[-_NUM_SAVES:])
    return newest[math.ceil(0.95 * len(newest)) - 1] if newest else None


def choose(left_s: float, step_s: float, save_s: float | None, in_flight_s: float = 0.0) -> Choice:
    """What `left_s` seconds are enough for, if a step takes `step_s` and a save `save_s` (None: nobody knows yet).

    `in_flight_s` is for how long a save under way will still keep the disk busy. Where nobody knows, a save is tried:
    it is committed whole or not at all, and costs nothing but the time until the kill.
    """
    needed_s = in_flight_s + _FACTOR * (save_s or 0.0) + _MARGIN_S
    if left_s >= needed_s + step_s:
        return "step"
    return "save" if left_s >= needed_s or save_s is None else "keep"
