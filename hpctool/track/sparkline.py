"""A metric's course in one word of a terminal: `val/accuracy ▁▃▅▆▇▇█ 0.953`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hpctool.rundir import RunDir, Story
from hpctool.track.compare import is_measured, telling_metrics
from hpctool.track.metrics import read_metrics
from hpctool.track.row import noting

_BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 12


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """At most `width` blocks, each the mean of its stretch; a stretch without a finite number is a space."""
    num = min(width, len(values))
    parts = [values[i * len(values) // num : (i + 1) * len(values) // num] for i in range(num)]
    means = [_mean([value for value in part if math.isfinite(value)]) for part in parts]
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if mean is None else _BLOCKS[round((mean - low) * scale)] for mean in means)


def course(rundir: RunDir, story: Story) -> str:
    """The most telling metric of a run: its name, its course and its last value; empty before it has any."""
    curves: dict[str, Any] = {}
    with noting([]):  # a damaged line is said by `runs list`
        curves = read_metrics(rundir, story)
    names = [name for name in telling_metrics([curves]) if not is_measured(name)]
    if not names:
        return ""
    values = [value for _, value in curves[names[0]]]
    return f"{names[0]} {sparkline(values)} {values[-1]:.4g}"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
