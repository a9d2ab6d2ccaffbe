"""GPU- and CPU-hours of runs, from their ledgers: each attempt from its beginning to its end, and what was in vain.

Lost is what the next attempt has to do again: the time of an attempt after its newest committed checkpoint, if it did
not complete and another one follows. Time in a queue costs nothing; what Slurm needs around an attempt is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hpctool.errors import HpctoolError
from hpctool.launch.gres import num_gpus
from hpctool.launch.slurm.standing import parse_time_s
from hpctool.rundir import RunDir, Story


@dataclass(frozen=True)
class Hours:
    """What something cost. `is_estimate`: an attempt never said when it ended."""

    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    lost_gpu_hours: float = 0.0
    lost_cpu_hours: float = 0.0
    is_estimate: bool = False

    def __add__(self, other: Hours) -> Hours:
        return Hours(
            self.gpu_hours + other.gpu_hours,
            self.cpu_hours + other.cpu_hours,
            self.lost_gpu_hours + other.lost_gpu_hours,
            self.lost_cpu_hours + other.lost_cpu_hours,
            self.is_estimate or other.is_estimate,
        )

    @property
    def lost_share(self) -> float:
        """The part that had to be done twice, 0 to 1; of the GPUs' time where there are any."""
        used, lost = (self.gpu_hours, self.lost_gpu_hours) if self.gpu_hours else (self.cpu_hours, self.lost_cpu_hours)
        return lost / used if used else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, with the share that was lost."""
        return vars(self) | {"lost_share": self.lost_share}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Hours:
        """What `to_json` made."""
        return cls(**{key: value[key] for key in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Span:
    """One attempt: how long it ran and how much of that was lost, in seconds."""

    used_s: float
    lost_s: float = 0.0
    is_estimate: bool = False


@dataclass(frozen=True)
class Size:
    """What a run holds while it runs."""

    num_gpus: int
    num_cpus: int

    def hours(self, spans: Sequence[Span]) -> Hours:
        """What attempts of this size cost."""
        used, lost = sum(span.used_s for span in spans) / 3600, sum(span.lost_s for span in spans) / 3600
        gpus, cpus = self.num_gpus, self.num_cpus
        return Hours(gpus * used, cpus * used, gpus * lost, cpus * lost, any(span.is_estimate for span in spans))


def size_of(resources: Mapping[str, Any], num_ranks: int | None = None) -> Size:
    """What the `resources` of a configuration ask for; `num_ranks` is how many really ran."""
    asked = _Default(resources)
    try:
        gpus = num_gpus(asked)
    except HpctoolError:  # words of a site that only its Slurm understands
        gpus = 0
    ranks = num_ranks or int(asked["nodes"] or 1) * int(asked["tasks_per_node"] or 1)
    per_gpu = asked["cpus_per_gpu"]
    return Size(gpus, gpus * int(per_gpu) if per_gpu and gpus else ranks * int(asked["cpus_per_task"] or 1))


class _Default(dict[str, Any]):
    """Runs of earlier versions have fewer keys."""

    def __missing__(self, key: str) -> Any:
        return 1 if key in ("nodes", "tasks_per_node") else None


def spans(rundir: RunDir, story: Story, now_s: float) -> list[Span]:
    """The attempts of a run, oldest first; `story` is how it stands now, its newest attempt may still run."""
    begun = story.of_kind("begun")
    # The first end counts: a job that died before its next attempt began ends the one before it once more.
    ended = {body["attempt"]: parse_time_s(body.get("time")) for body in reversed(story.of_kind("ended"))}
    found = []
    for position, body in enumerate(begun):
        number, began_s = body["attempt"], parse_time_s(body.get("time"))
        is_newest = position == len(begun) - 1
        saved = [parse_time_s(one.get("time")) for one in story.checkpoints if one["attempt"] == number]
        end_s, is_estimate = ended.get(number, 0.0), False
        if not end_s and is_newest and story.state in ("running", "stopping"):
            end_s = now_s
        elif not end_s:
            next_s = now_s if is_newest else parse_time_s(begun[position + 1].get("time"))
            end_s, is_estimate = min(_last_sign_s(rundir, number, [began_s, *saved]), next_s), True
        again = not is_newest or story.state == "requeued"
        lost_s = end_s - max([began_s, *saved]) if again else 0.0
        found.append(Span(max(0.0, end_s - began_s), max(0.0, lost_s), is_estimate))
    return found


def _last_sign_s(rundir: RunDir, attempt: int, known_s: Sequence[float]) -> float:
    """When an attempt was last heard of: its newest checkpoint, metric or word."""
    signs = list(known_s)
    for path in (rundir.metrics(attempt), rundir.log(0, attempt)):
        with suppress(OSError):
            signs.append(os.stat(path).st_mtime)
    return max(signs)


def of_run(rundir: RunDir, story: Story, resources: Mapping[str, Any], now_s: float) -> Hours:
    """What a run has cost so far."""
    begun = story.of_kind("begun")
    size = size_of(resources, begun[-1].get("world_size") if begun else None)
    return size.hours(spans(rundir, story, now_s))
