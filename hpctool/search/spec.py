"""What a search is: sweeps/<id>/search.json, format 1, written once before the first worker begins.

Everything that a decision depends on stands here or in the journal, so that any worker on any host decides alike, and
`sweep verify` can decide once more.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import ConfigError, CorruptError, NewerFormat
from hpctool.launch.identity import NOT_IDENTITY
from hpctool.search.space import Point, Space

SEARCH_FORMAT = 1


@dataclass(frozen=True)
class Prior:
    """What is known of a point before the search: the metric at rungs, by their number."""

    point: Point
    values: dict[int, float]
    run: str = ""


@dataclass(frozen=True)
class Spec:
    """A search as it was asked for."""

    id: str
    job: str
    space: Space
    metric: str
    #: max or min
    mode: str
    seed: int
    sampler: str
    schedule: str
    num_workers: int
    #: the version of the package that draws, empty for our own samplers
    sampler_version: str = ""
    eta: int = 3
    #: the steps at which trials are compared, ascending; the end of a trial is one more rung
    rungs: list[int] = field(default_factory=list)
    #: promote or stop
    rule: str = "promote"
    #: the first points, in order of trial; those below `num_workers` belong to the worker of that number
    design: list[Point] = field(default_factory=list)
    priors: list[Prior] = field(default_factory=list)
    max_trials: int | None = None
    #: GPU-hours, or CPU-hours, one for each core (`unit`; it was called "core" before)
    hours: float | None = None
    unit: str = "core"
    #: how many of these a trial holds
    num_units: int = 1
    #: seconds of time.time() after which nothing is begun
    deadline_s: float | None = None
    target: float | None = None
    patience: int | None = None
    max_same_failures: int = 5
    #: what the checkpoints of paused trials may take together; None: without limit
    keep_paused_gb: float | None = None
    #: the job's configuration before it is worked out, by choices of groups: choices, config
    bases: list[dict[str, Any]] = field(default_factory=list)
    #: what all trials have in common, as it was typed
    fixed: list[str] = field(default_factory=list)
    cwd: str = ""
    #: population, quantile, factors, resample; empty for other schedules
    pbt: dict[str, Any] = field(default_factory=dict)

    @property
    def last_rung(self) -> int:
        """The number of the rung at which a trial has completed."""
        return len(self.rungs)

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.mode == "max" else -1

    @functools.cached_property
    def grid(self) -> list[Point]:
        """All points, where the sampler goes through them."""
        return list(self.space.points()) if self.sampler == "grid" else []

    def to_json(self) -> dict[str, Any]:
        body = {**asdict(self), "format": SEARCH_FORMAT, "space": self.space.to_json()}
        body["priors"] = [asdict(p) | {"values": {str(k): v for k, v in p.values.items()}} for p in self.priors]
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Spec:
        known = {key: body[key] for key in cls.__dataclass_fields__ if key in body}
        known["space"] = Space.from_json(body["space"])
        known["priors"] = [
            Prior(one["point"], {int(k): float(v) for k, v in one["values"].items()}, one["run"])
            for one in body["priors"]
        ]
        return cls(**known)


def path_of(folder: Path) -> Path:
    """Where a sweep's folder says what is searched; only searches have this file."""
    return folder / "search.json"


def is_search(folder: Path) -> bool:
    """Whether a sweep is a search."""
    return path_of(folder).exists()


def read_spec(folder: Path) -> Spec:
    """The search of a sweep's folder. Raises FileNotFoundError, CorruptError, NewerFormat."""
    path = path_of(folder)
    body = files.read_json(path)
    try:
        if body["format"] > SEARCH_FORMAT:
            raise NewerFormat(path, "search", body["format"], SEARCH_FORMAT)
        return Spec.from_json(body)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(path, f"it is not what was written ({type(error).__name__}: {error})") from error


def identity_of(made: Spec) -> str:
    """What makes a search another one: not how long it goes on, with how many workers, or where. Raises ConfigError."""
    body = made.to_json()
    keys = ("job", "space", "metric", "mode", "seed", "sampler", "schedule", "eta", "rungs", "rule", "priors", "pbt")
    chosen = [{key: value for key, value in base["config"].items() if key not in NOT_IDENTITY} for base in made.bases]
    try:
        return files.sha256_bytes(files.canonical_json([{key: body[key] for key in keys}, chosen, made.design[:1]]))
    except (TypeError, ValueError) as error:
        raise ConfigError("?", f"a value cannot be written down: {error}.") from error


def worker_identity(identity: str, slot: int) -> str:
    """The identity of the run that is one worker of a search."""
    return files.sha256_bytes(files.canonical_json([identity, slot]))
