"""The watchdog: a thread of each rank that sees when it no longer gets any further, and ends the attempt for a requeue.

The job's main thread says where it is, which costs it an assignment; it may be stuck in C, the thread looks at the
clock. Only time in which this thread itself ran is counted: a job that was suspended (SIGSTOP, Slurm's SUSPEND) or a
clock that was set is no hang. All ranks pass the same marks in the same order, so the one with the fewest is late.

Each rank writes a beat (logs/<attempt>/<rank>.beat) every few seconds. Who has stood for too long dumps its stacks,
says so in its beat, waits for the others to do the same, and the first of them names the late one (hang.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool import config
from hpctool.rundir import RunDir

#: How often a rank writes its beat: one small write each on the shared file system.
BEAT_EVERY_S = 5.0
#: A limit for steps is learnt from so many, and counts when so many are known.
LEARNT_FROM, LEAST_STEPS = 256, 20
_TICK_S = 1.0


@dataclass(frozen=True)
class Limits:
    """How long a rank may stand at one mark, in seconds, by phase; None: for ever (conf: cluster.hang)."""

    step_s: float | None = 60.0
    #: or so many times the 95th percentile of the steps, whichever is longer
    step_p95: float = 10.0
    start_s: float | None = 3600.0
    first_step_s: float | None = 1800.0
    evaluation_s: float | None = 1800.0
    save_s: float | None = 1800.0

    @classmethod
    def of(cls, hang: Mapping[str, Any]) -> Limits:
        """From a config's `cluster.hang`; runs of earlier versions have none."""
        minutes = {name: hang.get(f"{name}_min") for name in ("start", "first_step", "evaluation", "save")}
        limits = {f"{name}_s": None if value is None else 60.0 * value for name, value in minutes.items()}
        return cls(hang.get("step_s"), hang.get("step_p95") or 0.0, **limits)

    def given(self) -> list[float]:
        """Those that there are."""
        every = (self.step_s, self.start_s, self.first_step_s, self.evaluation_s, self.save_s)
        return [limit for limit in every if limit is not None]


@dataclass(frozen=True)
class Beat:
    """What a rank last said of itself."""

    rank: int
    #: marks passed since the attempt began: the same sequence on all ranks
    marks: int = 0
    #: grows with every beat, whatever the main thread does
    number: int = 0
    phase: str = "start"
    stage: str = ""
    step: int = 0
    hung: bool = False

    def words(self) -> str:
        """`step 18 (backward)`, `the save behind step 18`, `its start`."""
        if self.phase == "start":
            return "its start"
        if self.phase in ("step", "first step"):
            return f"step {self.step} ({self.stage})"
        return f"the {self.phase} behind step {self.step}"


class Watchdog(threading.Thread):
    """Watches one rank; calls `ended(watchdog)` in its own thread when the rank has stood still for too long."""

    def __init__(self, rundir: RunDir, rank: int, limits: Limits, ended: Callable[[Watchdog], None]) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.rundir, self.rank, self.limits, self.ended = rundir, rank, limits, ended
        self._tick_s = min([_TICK_S, *(limit / 5 for limit in limits.given())])
        self._beat_every_s = min([BEAT_EVERY_S, *(limit / 2 for limit in limits.given())])
        self._dismissed = threading.Event()
        self._phase, self._stage, self._step = "start", "", 0
        self._marks = self._pulse = self._number = 0
        self._began_s = 0.0
        self._durations: deque[float] = deque(maxlen=LEARNT_FROM)
        self.stood_s = 0.0

    # -- what the main thread says; it must cost nothing

    def begin_step(self, step: int) -> None:
        """Step `step` begins now."""
        self._phase = "step" if self._durations else "first step"
        self._step = step
        self._began_s = time.monotonic()
        self.mark("batch")

    def mark(self, stage: str) -> None:
        """The step has come to this stage; the same calls in the same order on all ranks."""
        self._stage = stage
        self._marks += 1

    def end_step(self) -> None:
        """The step is done; what follows belongs to its boundary."""
        self._durations.append(time.monotonic() - self._began_s)
        self._phase = "step"
        self.mark("boundary")

    def pulse(self) -> None:
        """Something of a phase is done, as a batch of an evaluation; ranks may differ in how often they say it."""
        self._pulse += 1

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A block with a limit of its own: evaluation or save."""
        before = self._phase, self._stage
        self._phase = name
        self.mark("")
        yield
        self._phase = before[0]
        self.mark(before[1])

    def dismiss(self) -> None:
        """The job ends by itself."""
        self._dismissed.set()
        if self.is_alive() and self is not threading.current_thread():
            self.join(timeout=5.0)

    # -- what the thread does

    def run(self) -> None:
        """Look at the clock until the job ends, or stands still for too long."""
        seen = (-1, -1)
        last_s, beat_in_s = time.monotonic(), 0.0
        while not self._dismissed.wait(self._tick_s):
            now_s = time.monotonic()
            # More than that was a suspension: this thread did not run either.
            awake_s, last_s = min(now_s - last_s, 2 * self._tick_s), now_s
            where = (self._marks, self._pulse)
            self.stood_s = self.stood_s + awake_s if where == seen else 0.0
            seen = where
            limit_s = self.limit_s()
            if limit_s is not None and self.stood_s > limit_s:
                self.ended(self)
                self.stood_s = 0.0
            beat_in_s -= awake_s
            if beat_in_s <= 0:
                beat_in_s = self._beat_every_s
                self.beat()

    def limit_s(self) -> float | None:
        """How long this rank may stand where it is now."""
        if self._phase == "step":
            return self._step_limit_s()
        return {
            "start": self.limits.start_s,
            "first step": self.limits.first_step_s,
            "evaluation": self.limits.evaluation_s,
            "save": self.limits.save_s,
        }[self._phase]

    def _step_limit_s(self) -> float | None:
        if self.limits.step_s is None:
            return None
        known = sorted(self._durations.copy())
        if len(known) < LEAST_STEPS:
            # Nothing is known of them yet; the first ones may compile.
            return max(self.limits.step_s, self.limits.first_step_s or 0.0)
        return max(self.limits.step_s, self.limits.step_p95 * known[int(0.95 * (len(known) - 1))])

    def here(self, hung: bool = False) -> Beat:
        """Where this rank is."""
        return Beat(self.rank, self._marks, self._number, self._phase, self._stage, self._step, hung)

    def beat(self, hung: bool = False) -> None:
        """Write where this rank is for the others; a disk that is full or away for a while is lived with."""
        self._number += 1
        text = json.dumps(vars(self.here(hung))).ljust(255) + "\n"
        with contextlib.suppress(OSError):
            handle = os.open(self.rundir.beat(self.rank), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(handle, text.encode(), 0)
            finally:
                os.close(handle)

    @property
    def is_dismissed(self) -> bool:
        """Whether the job has ended by itself meanwhile."""
        return self._dismissed.is_set()

    @property
    def beat_every_s(self) -> float:
        """How often the ranks of this run write their beats."""
        return self._beat_every_s


def read_beat(path: Path) -> Beat | None:
    """A rank's beat; None where there is none, or it is just being written."""
    try:
        return Beat(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def watching(rundir: RunDir, rank: int, size: int) -> Iterator[Watchdog]:
    """Watch this rank of an attempt for the length of a block, by the limits of the run's config."""
    from hpctool.launch import hang

    cluster = config.load(rundir.config_yaml).get("cluster") or {}
    limits = Limits.of(cluster.get("hang") or {})
    watchdog = Watchdog(rundir, rank, limits, lambda me: hang.end_attempt(me, size))
    if limits.given():
        watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.dismiss()
