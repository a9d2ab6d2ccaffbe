"""The reason: where bits differ, further runs that save after every step tell the first step, the tensors, and why.

Two undisturbed runs that differ say that the job itself does. Two that are equal, while one that was told to stop,
saved and went on differs, say that something the job depends on is not in the checkpoint.

Saves are compared by their parameters: a save on request may stand before a validation that the straight run had
behind it, so the rest of the state need not be equal at the same step.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpctool.chaos.compare import compare_checkpoints, last
from hpctool.chaos.listener import Held, Listener
from hpctool.chaos.stage import Stage
from hpctool.checkpoint import committed
from hpctool.checkpoint.manifest import read
from hpctool.errors import listing
from hpctool.rundir import RunDir

#: So much may lie on the disk for one such run; beyond that only the newest checkpoints stay.
_MOST_BYTES = 4 << 30
_MANY = 100_000


@dataclass
class First:
    """Where two runs begin to differ."""

    step: int
    #: tensors and values, by path; of the first step at which both checkpoints are still there
    paths: list[str] = field(default_factory=list)
    paths_step: int = 0

    def words(self) -> str:
        """`from step 3 on, first in model/0.weight`."""
        where = f", in {listing(self.paths, 3)}" if self.paths else ""
        later = f" (seen at step {self.paths_step})" if self.paths and self.paths_step != self.step else ""
        return f"from step {self.step} on{where}{later}"


#: (name, further overrides, listener, what is done once the run stands at a step) → the run
Trace = Callable[[str, Sequence[str], Listener, Callable[[Stage, Held], None] | None], RunDir]


def diagnose(trace: Trace, straight: RunDir, job: str, stop_at: int) -> list[str]:
    """Sentences on why a straight and a broken run differ; `stop_at` is a step after which the broken one went on."""
    size = sum(path.stat().st_size for made in [last(straight)] if made for path in made.path.iterdir())
    steps = max((made.step for made in committed(straight)), default=0)
    kept = _MANY if size * steps < min(_MOST_BYTES, shutil.disk_usage(straight.path).free // 8) else 2
    every = ["loop.checkpoint_every_steps=1", f"loop.keep_last={kept}"] if job == "train" else []

    def run(name: str, act: Callable[[Stage, Held], None] | None = None) -> RunDir:
        with Listener(save_each_step=True) as listener:
            return trace(name, every, listener, act)

    again = run("again")
    if first_difference(straight, again):
        found = first_difference(again, run("once-more"))
        if found is None:
            return ["  why: two more undisturbed runs agree with each other and not with the first: it differs rarely."]
        return [
            f"  why: the job itself differs: two runs that nobody touched are not the same {found.words()}.",
            f"       {_guess(found)}",
        ]
    stopped = run("stopped", lambda stage, _held: stage.send(signal.SIGTERM, stage.started()))
    found = first_difference(again, stopped)
    if found is None:
        return [
            f"  why: undisturbed it is the same each time, and also when it is told to stop at step {stop_at}, saves "
            "and goes on; so it needs the fault after which the table says NO."
        ]
    resumed = [body["step"] for body in stopped.story().of_kind("resumed")][-1]
    return [
        f"  why: undisturbed it is the same each time; stopped and resumed after step {resumed} it differs "
        f"{found.words()}.",
        "       Something that a step depends on is in no checkpoint: state that the task, the model (not as parameter "
        "or buffer), an augmentation or the program keeps to itself, or a random stream of its own.",
    ]


def unlike(straight: RunDir, broken: RunDir) -> list[str]:
    """What exactness depends on and was not the same in all attempts, in words: libraries, threads, device, ranks."""
    found = [
        f"  why: attempt {body['attempt']} was not like the one that saved what it went on from: "
        f"{listing(body['unlike'], 4)}."
        for body in broken.story().of_kind("resumed")
        if body.get("unlike")
    ]
    prints = [_fingerprint(run) for run in (straight, broken)]
    for key, value in prints[0].items():
        if prints[1].get(key, value) != value and not any(key in one for one in found):
            found.append(f"  why: {key} was {value} in the straight run and {prints[1][key]} in the broken one.")
    return found


def _fingerprint(run: RunDir) -> dict[str, Any]:
    made = last(run)
    found: dict[str, Any] = read(made.path).body["info"].get("fingerprint", {}) if made else {}
    return found


def first_difference(one: RunDir, other: RunDir) -> First | None:
    """The first step that both runs have saved, and not alike; None where there is none."""
    saves = [{made.step: made for made in committed(run)} for run in (one, other)]
    common = sorted(saves[0].keys() & saves[1].keys())
    steps = [step for step in common if saves[0][step].param_digest != saves[1][step].param_digest]
    if not steps:
        return None
    for step in steps:
        pair = saves[0][step], saves[1][step]
        if all(made.path.exists() for made in pair):
            shared, own = compare_checkpoints(*pair)
            return First(steps[0], [*shared, *own], step)
    return First(steps[0])


def _guess(found: First) -> str:
    """The likely cause, from what differs first."""
    paths = found.paths
    if any(path in ("consumed", "step") for path in paths):
        return "The order of the data differs: another number of samples was consumed."
    if paths and all("rng" in path for path in paths):
        return "Only random streams differ yet: something draws from them as often as the clock or another thread says."
    return (
        "Likely: randomness without a seed (`default_rng()` without a number, os.urandom, hash() of text, the time), "
        "or a kernel that adds in no fixed order."
    )
