"""How far an attempt is and when it will be done, from what it has written: its ledger and the end of its metrics."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass

from hpctool.rundir import RunDir, Story

_TAIL_BYTES = 16 * 1024


@dataclass(frozen=True)
class Progress:
    """`max_steps` is 0 where the job does not say how many steps it takes; `eta_s` None where nobody can know."""

    step: int
    max_steps: int = 0
    eta_s: float | None = None

    def __str__(self) -> str:
        """`120/500`; empty before the first step."""
        return f"{self.step}/{self.max_steps}" if self.max_steps else str(self.step or "")


def progress(rundir: RunDir, story: Story, now_s: float) -> Progress:
    """How far a run is; the newest attempt's own speed says how long it still takes."""
    resumed = [body for body in story.of_kind("resumed") if body["attempt"] == story.attempt]
    max_steps = int(resumed[-1].get("max_steps", 0)) if resumed else 0
    if story.state not in ("running", "stopping") or not story.attempt:
        return Progress(story.step, max_steps)
    points = _last_points(rundir)
    step = max([story.step, *(step for step, _ in points)])
    if len(points) < 2 or not max_steps or points[-1][0] <= points[0][0]:
        return Progress(step, max_steps)
    (first, first_s), (last, last_s) = points[0], points[-1]
    rest_s = (max_steps - last) * (last_s - first_s) / (last - first)
    return Progress(step, max_steps, max(0.0, rest_s - (now_s - last_s)))


def _last_points(rundir: RunDir) -> list[tuple[int, float]]:
    """Step and time of the last lines of the newest attempt's metrics (track/metrics.py); empty if there are none."""
    points = []
    with suppress(OSError, ValueError):
        attempt = max(int(name[:-6]) for name in os.listdir(rundir.metrics(1).parent) if name.endswith(".jsonl"))
        with open(rundir.metrics(attempt), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[1:-1]
        for raw in lines:
            with suppress(ValueError, KeyError, TypeError):
                line = json.loads(raw)
                points.append((int(line["s"]), float(line["w"])))
    return points


def duration_text(seconds: float | None) -> str:
    """A duration in one or two units: `4.2 s`, `3 min 12 s`, `5 h 2 min`, `4 d`."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, rest_min = divmod(minutes, 60)
    if minutes == 0:
        return f"{rest_s} s"
    if hours == 0:
        return f"{minutes} min {rest_s} s" if minutes < 10 else f"{minutes} min"
    if hours < 48:
        return f"{hours} h {rest_min} min" if hours < 10 else f"{hours} h"
    return f"{hours // 24} d"
