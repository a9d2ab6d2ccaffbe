"""What is done to a run, where, and to whom: drawn from a seed, so that a rehearsal can be repeated."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hpctool.errors import InputError, nearest
from hpctool.launch.moments import Moment

#: What each kind does; `none` runs the job twice and touches nothing.
KINDS = {
    "none": "nothing is done: two straight runs are compared",
    "kill": "SIGKILL of one rank, of all of them, or of the supervisor",
    "term": "SIGTERM or SIGUSR2 to all ranks, as a preemption or a time limit sends them",
    "hang": "one rank stands still (SIGSTOP, or blocked in Python) and never goes on",
    "enospc": "the disk is full while a checkpoint is written",
    "flip": "a bit of the newest checkpoint flips while nobody runs",
    "truncate": "a file of the newest checkpoint loses its end while nobody runs",
    "stale": "a dead attempt's unfinished files lie about",
    "zombie": "an attempt that was thought dead goes on while the next one runs",
    "clock": "file times and recorded times jump by a day (the system clock needs root and stays)",
}
#: `hpctool chaos` without --faults
USUAL = tuple(kind for kind in KINDS if kind != "none")

#: Where a fault strikes, as people say it, and the moments of a rank that are meant.
PHASES: dict[str, tuple[Moment, ...]] = {
    "start-up": ("start", "resume"),
    "first step": ("step",),
    "step": ("step",),
    "save": ("save", "written", "commit", "committed"),
    "evaluation": ("evaluate",),
}


@dataclass(frozen=True)
class Fault:
    """One thing that is done to a run."""

    number: int
    kind: str
    #: kill: rank, all, supervisor · term: SIGTERM, SIGUSR2 · hang: stop, block · else empty
    form: str
    phase: str
    moment: Moment
    #: strikes no earlier than after so many steps
    step: int
    #: whom it strikes, and who has to stand at the moment
    rank: int
    #: how long after the moment, as a part of how long such a phase takes; 0: exactly at it
    delay: float

    def __str__(self) -> str:
        """`kill rank 1`, `term (SIGUSR2)`."""
        if self.kind == "kill":
            return f"kill rank {self.rank}" if self.form == "rank" else f"kill {self.form}"
        if self.kind == "hang":
            return f"hang rank {self.rank} ({self.form})"
        return f"{self.kind} ({self.form})" if self.form else self.kind


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises InputError for a kind that there is not."""
    for kind in kinds:
        if kind not in KINDS:
            near = nearest(kind, KINDS)
            guess = f" Did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"There is no fault '{kind}'; there is: {', '.join(KINDS)}.{guess}")


def draw(
    seed: int, kinds: Sequence[str], count: int, *, max_steps: int, num_ranks: int, seen: Mapping[str, Collection[int]]
) -> list[Fault]:
    """The faults of one run, in the order in which they strike: a pure function of what is given.

    `seen` are the moments that the straight run came to, each with its ranks: where it never evaluates, nothing waits
    for an evaluation, and only rank 0 commits.
    """
    rng = random.Random(seed)
    phases = [phase for phase, moments in PHASES.items() if set(moments) & set(seen)]
    # Each kind as often as the others, in an order of its own.
    chosen = [kind for _ in range(-(-count // len(kinds))) for kind in rng.sample(list(kinds), len(kinds))][:count]
    steps = sorted(rng.randrange(1, max(2, max_steps)) for _ in chosen)
    return [
        _one(rng, number, kind, step, phases, num_ranks, seen)
        for number, (kind, step) in enumerate(zip(chosen, steps, strict=True), start=1)
    ]


def _one(
    rng: random.Random,
    number: int,
    kind: str,
    step: int,
    phases: list[str],
    num_ranks: int,
    seen: Mapping[str, Collection[int]],
) -> Fault:
    if kind == "enospc":
        # A disk is full when somebody writes.
        phases = [phase for phase in phases if phase == "save"] or phases
    if kind == "hang":
        # A start may take an hour, and so may a first step, which compiles: nobody wants to wait for these limits.
        phases = [phase for phase in phases if phase not in ("start-up", "first step")] or phases
    phase = rng.choice(phases)
    moments: Sequence[Moment] = [moment for moment in PHASES[phase] if moment in seen]
    moment = moments[0] if kind == "enospc" else rng.choice(moments)
    rank = rng.choice(sorted(seen[moment]))
    form = {
        "kill": rng.choice(["rank", "rank", "all", "supervisor"]),
        "term": rng.choice(["SIGTERM", "SIGUSR2"]),
        "hang": rng.choice(["stop", "block"]) if num_ranks > 1 else "block",
    }.get(kind, "")
    delay = rng.choice([0.0, rng.random()])
    return Fault(number, kind, form, phase, moment, step, rank, 0.0 if form == "block" else delay)
