"""What a job module is: a schema, `resolve` for the login node and `run` for the ranks."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol, cast

from omegaconf import DictConfig

from hpctool.errors import UnknownName
from hpctool.rundir import RunDir
from hpctool.world import World


@dataclass(frozen=True)
class Input:
    """Something a run is made from, pinned: `kind` dataset, run or model; `name` as people say it; `id` in full."""

    kind: str
    name: str
    id: str


@dataclass
class Resolved:
    """What `resolve` found: the pinned inputs (part of the run's identity) and notes worth saying aloud."""

    inputs: list[Input] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: Resolved) -> Resolved:
        return Resolved([*self.inputs, *other.inputs], [*self.notes, *other.notes])


@dataclass(frozen=True)
class Chain:
    """Commands that are submitted to Slurm together, and what a person may type when all of it has completed."""

    links: list[Link]
    next_steps: list[str]


@dataclass(frozen=True)
class Link:
    """One command of a chain: a job with its overrides, after another link of that chain if `after` names its job."""

    job: str
    overrides: list[str]
    after: str = ""
    multirun: bool = False


#: A part of `resolve`: it looks at a config, may pin something in it, and says what it found, if anything.
Stage = Callable[[DictConfig], Resolved | None]


class Job(Protocol):
    """A module of `hpctool.jobs`.

    It may also say `NEEDS_TORCH = True` (its ranks are joined by torch, even where MPI started them),
    `SERVICE = True` (a completed run of it is started again when it is asked for), and `STOPS = True` (its `run` asks
    signals.stop_requested() and raises Stopped; any other job is ended where it is, and begins anew), `LIGHT = True`
    (its ranks are joined by sockets, without torch and MPI, which it leaves to a program that it starts), and
    `FILES = ("script",)` (keys whose values are files that belong to the snapshot of code). If `run` returns `outputs`
    with a `path`, a completed run counts as done only as long as that is there.

    `PARENT = "run"` names the key that `after=<run|sweep>` fills: the run that this job is made from. A run that comes
    after another is resolved when it starts, because what `resolve` looks at may not be there before;
    `RESOLVES_EARLY = True` says that it looks at nothing that another job makes.

    `chain(cfg)` gives a Chain: where such a job is asked for on Slurm, the links are submitted at once, each after the
    one that it names, and the job itself is not.

    `measured_at(cfg)` tells of a resolved config how many steps it takes and every how many it measures, before it
    runs: a search compares its trials there.

    `STAGES` may name the parts that `resolve` consists of, in order. A part is a function of the config and of what
    lies on disk. A sweep runs it once for all cells in which the keys that it looks at have the same values: so what
    is dear should look at few keys, and what looks at many should be cheap. Without STAGES, `resolve` is one part.
    """

    #: the dataclass that types this job's configuration, a subclass of JobConfig
    Config: type

    def resolve(self, cfg: DictConfig) -> Resolved:
        """On the login node: pin revisions inside `cfg`, check what can be checked. Imports no torch; InputError."""
        ...

    def run(self, rundir: RunDir, world: World) -> dict[str, Any]:
        """In the job, on every rank: do it. Returns what result.json should hold (rank 0's counts). Stopped."""
        ...


def stages(job: Job) -> tuple[Stage, ...]:
    """The parts of a job's `resolve`, in order; run one after the other they are `resolve`."""
    found: tuple[Stage, ...] = getattr(job, "STAGES", (job.resolve,))
    return found


def in_stages(cfg: DictConfig, parts: Iterable[Stage]) -> Resolved:
    """Run the parts of a `resolve` one after the other on one config. Raises what they raise."""
    found = Resolved()
    for part in parts:
        found += part(cfg) or Resolved()
    return found


def job_names() -> list[str]:
    """The jobs there are, in alphabetical order; no job is imported."""
    package = importlib.import_module("hpctool.jobs")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def load_job(name: str) -> Job:
    """The job's module. Raises UnknownName."""
    if name not in job_names():
        raise UnknownName("job", name, job_names())
    module: ModuleType = importlib.import_module(f"hpctool.jobs.{name}")
    return cast(Job, module)
